//! One request: whose it is, whether it may, and there and back.

use std::error::Error;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::ext::Protocol;
use h2::{Reason, RecvStream};
use http::header::{
    CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderValue, LOCATION, REFERRER_POLICY,
    SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SET_COOKIE, TRANSFER_ENCODING, UPGRADE,
};
use http::uri::{Authority, Scheme};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version, response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::ext::on_informational;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf, copy_bidirectional};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::answer::{Refusal, full, wants_html};
use super::guest::{self, Pool, Sender, Streams};
use super::headers::{self, Origin, TOKEN};
use super::http2::{self, Received};
use super::informational::{self, Gate, Informed};
use super::registry::{Admission, Asleep, Ingress, Place, Route, Settings, Target};
use super::stream::Movement;
use super::{name, token};

/// Any body.
pub type Body = UnsyncBoxBody<Bytes, BodyError>;
/// Why one broke off.
pub type BodyError = Box<dyn Error + Send + Sync>;

const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
const TUNNEL_BYTES: usize = 64 * 1024;
/// For a program that has answered and may still read what it was asked.
const LEFT_OVER: Duration = Duration::from_secs(5);

/// What requests of one connection have in common.
pub struct Client {
    /// The process.
    pub ingress: Arc<Ingress>,
    /// As they were when it was accepted.
    pub settings: Arc<Settings>,
    /// Connections to guests of this thread.
    pub pool: Arc<Pool>,
    /// Those that are this client's alone.
    pub streams: Streams,
    /// Where requests come from.
    pub origin: Origin,
    /// A request had both a length and an encoding.
    pub conflict: Arc<AtomicBool>,
    /// When something last moved on it.
    pub movement: Arc<Movement>,
    /// Its place among all connections.
    pub admission: Admission,
}

/// Why no program's answer is passed on.
enum Failure {
    Refused(Refusal),
    /// The program took the stream back.
    Reset(Reason),
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// Answer a request. The error is what the program has reset its stream with.
pub async fn answer(
    client: Arc<Client>,
    request: Request<Body>,
    informed: Informed,
) -> Result<Response<Body>, h2::Error> {
    let html = wants_html(request.headers());
    let first_version = request.version() < Version::HTTP_2;
    let chunked = first_version && request.headers().contains_key(TRANSFER_ENCODING);
    let mut response = match passed(&client, request, informed).await {
        Ok(response) => {
            client.ingress.counts.answered(response.status());
            response
        }
        Err(Failure::Refused(refusal)) => {
            client.ingress.counts.refused(refusal);
            refusal.response(html)
        }
        Err(Failure::Reset(reason)) => {
            client.ingress.counts.reset();
            return Err(reason.into());
        }
    };
    if chunked && response.status() != StatusCode::SWITCHING_PROTOCOLS {
        // The server has dropped a length if there was one beside the encoding. Nothing that follows is another request.
        response
            .headers_mut()
            .insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}

async fn passed(client: &Arc<Client>, request: Request<Body>, informed: Informed) -> Result<Response<Body>, Failure> {
    if client.conflict.load(Ordering::Relaxed) {
        return Err(Refusal::BadRequest.into());
    }
    let settings = &client.settings;
    let authority = name::authority(request.uri(), request.headers())
        .ok_or(Refusal::BadRequest)?
        .to_owned();
    let subdomain = name::subdomain(&authority, &settings.domain);
    if let Some((server, port)) = &settings.webhooks
        && name::is_webhook(subdomain.as_deref(), request.uri().path())
    {
        return exchanged(client, server, *port, false, request, &authority, informed).await;
    }
    let subdomain = subdomain.ok_or(Refusal::NotFound)?;
    let Some(route) = client.ingress.route(&subdomain) else {
        let refusal = if client.ingress.complete() {
            Refusal::NotFound
        } else {
            Refusal::Starting
        };
        return Err(refusal.into());
    };
    if let Some(response) = admitted(client, &request, &subdomain, &route)? {
        return Ok(response);
    }
    let (target, waked) = running(client, &route).await?;
    exchanged(client, &target, route.port, waked, request, &authority, informed).await
}

/// Pass a request on, as long as the other end is there.
async fn exchanged(
    client: &Arc<Client>,
    target: &Arc<Target>,
    port: u16,
    waked: bool,
    request: Request<Body>,
    authority: &str,
    informed: Informed,
) -> Result<Response<Body>, Failure> {
    let settings = &client.settings;
    let place = Place::take(target, settings.max_requests_per_sandbox).ok_or(Refusal::Busy)?;
    let exchange = Exchange {
        client: Arc::clone(client),
        target: Arc::clone(target),
        port,
        place: Arc::new(place),
        informed,
        gate: None,
        listen_until: waked.then(|| Instant::now() + settings.listen_timeout),
    };
    tokio::select! {
        response = exchange.run(request, authority) => response,
        () = target.ended() => Err(Refusal::Stopped.into()),
    }
}

/// Whether a request may. An answer instead, when the token moves out of the address into a cookie.
fn admitted(
    client: &Client,
    request: &Request<Body>,
    subdomain: &str,
    route: &Route,
) -> Result<Option<Response<Body>>, Refusal> {
    if !route.private {
        return Ok(None);
    }
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(u64::MAX, |since| since.as_secs());
    let key = client.ingress.verification_key();
    let query = request.uri().query();
    let opens = |candidate: &String| token::valid(&key, candidate, subdomain, route.epoch, now);
    if !headers::tokens(request.headers(), query).iter().any(opens) {
        return Err(Refusal::Unauthorized);
    }
    let asked = headers::token_in(query).filter(opens);
    let page = matches!(*request.method(), Method::GET | Method::HEAD) && !request.headers().contains_key(UPGRADE);
    let (Some(value), true) = (asked, page) else {
        return Ok(None);
    };
    let mut response = Response::new(full(String::new()));
    *response.status_mut() = StatusCode::FOUND;
    let secure = if client.origin.https { "; Secure" } else { "" };
    // Two slashes at the beginning would be another host.
    let path = format!("/{}", request.uri().path().trim_start_matches(['/', '\\']));
    let set = [
        (LOCATION, headers::without_token(&path, query)),
        (
            SET_COOKIE,
            format!("{TOKEN}={value}; Path=/; HttpOnly; SameSite=Lax{secure}"),
        ),
        (CACHE_CONTROL, "no-store".to_owned()),
        (REFERRER_POLICY, "no-referrer".to_owned()),
    ];
    for (name, value) in set {
        let value = HeaderValue::from_str(&value).map_err(|_| Refusal::BadRequest)?;
        response.headers_mut().insert(name, value);
    }
    Ok(Some(response))
}

/// Where the sandbox runs, and whether it was resumed for this request.
async fn running(client: &Client, route: &Route) -> Result<(Arc<Target>, bool), Refusal> {
    if let Some(target) = client.ingress.target(&route.sandbox) {
        return Ok((target, false));
    }
    if !route.wake {
        return Err(Refusal::Stopped);
    }
    match client.ingress.wake(&route.sandbox, &client.settings).await {
        Ok(target) => Ok((target, true)),
        Err(Asleep::Crowded) => Err(Refusal::Busy),
        Err(Asleep::Failed) => Err(Refusal::NotResumed),
    }
}

struct Exchange {
    client: Arc<Client>,
    target: Arc<Target>,
    port: u16,
    place: Arc<Place>,
    informed: Informed,
    gate: Option<Gate>,
    listen_until: Option<Instant>,
}

impl Exchange {
    async fn run(mut self, mut request: Request<Body>, authority: &str) -> Result<Response<Body>, Failure> {
        let settings = Arc::clone(&self.client.settings);
        let extended = request
            .extensions()
            .get::<Protocol>()
            .map(|protocol| protocol.as_str() == headers::WEBSOCKET);
        if request.method() == Method::CONNECT && extended != Some(true) {
            return Err(Refusal::BadRequest.into());
        }
        if settings.max_body_bytes != 0 && length(request.headers()) > settings.max_body_bytes {
            return Err(Refusal::TooLarge.into());
        }
        let grpc = request.version() == Version::HTTP_2 && headers::is_grpc(request.headers());
        let mut headers =
            headers::request(request.headers(), authority, self.client.origin).ok_or(Refusal::BadRequest)?;
        let target = headers::without_token(request.uri().path(), request.uri().query());
        let target: Uri = target.parse().map_err(|_| Refusal::BadRequest)?;
        let mut method = request.method().clone();
        let upgraded = extended.is_none()
            && request.version() == Version::HTTP_11
            // A tunnel begins where the head ends.
            && request.body().is_end_stream()
            && headers::is_upgrade(request.headers());
        if extended == Some(true) {
            method = Method::GET;
            headers.insert(SEC_WEBSOCKET_KEY, websocket_key());
        }
        let tunnel = extended == Some(true) || upgraded;
        if tunnel {
            headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
            headers.insert(UPGRADE, HeaderValue::from_static(headers::WEBSOCKET));
        }
        let on_client = upgraded.then(|| hyper::upgrade::on(&mut request));
        let expects = request.version() > Version::HTTP_10 && headers::expects(request.headers());
        let mut head = Head {
            method,
            target,
            headers,
        };
        let body = request.into_body();
        let empty = tunnel || body.is_end_stream();
        if grpc {
            return self.on_stream(head, bounded(body, settings.max_body_bytes)).await;
        }
        if empty && !tunnel && head.again() {
            let (response, sender) = self.repeatable(&head).await?;
            return self.respond(response, sender);
        }
        let (body, client_end) = match (tunnel, on_client) {
            (false, _) if empty => (nothing(), None),
            (false, _) => {
                let body = bounded(body, settings.max_body_bytes);
                (if expects { self.held(&mut head, body) } else { body }, None)
            }
            (true, Some(on_client)) => (nothing(), Some(ClientEnd::Upgrade(on_client))),
            (true, None) => (nothing(), Some(ClientEnd::Stream(body))),
        };
        let mut sender = self.first().await?;
        let response = self
            .asked(&mut sender, head.with(body))
            .await?
            .map_err(|error| broken(&error))?;
        let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS && headers::is_upgrade(response.headers());
        match client_end {
            Some(client_end) if switched => {
                sender.release();
                Ok(self.tunnel(client_end, response))
            }
            _ => self.respond(response, sender),
        }
    }

    /// A body that is only sent when the program wants it.
    fn held(&mut self, head: &mut Head, body: Body) -> Body {
        head.headers.insert(EXPECT, HeaderValue::from_static("100-continue"));
        let (gate, held) = Gate::new(body, self.informed.clone());
        self.gate = Some(gate);
        held.boxed_unsync()
    }

    /// Ask on a connection, and pass on what comes before the answer.
    async fn asked(
        &self,
        sender: &mut Sender,
        mut request: Request<Body>,
    ) -> Result<hyper::Result<Response<Incoming>>, Refusal> {
        let (tell, mut told) = mpsc::channel(informational::MOST + 1);
        on_informational(&mut request, move |said| {
            let mut answer = Response::new(());
            *answer.status_mut() = said.status();
            answer.headers_mut().clone_from(said.headers());
            // What there is no room for is too much already.
            let _ = tell.try_send(answer);
        });
        let mut response = pin!(sender.send_request(request));
        let mut count = 0;
        loop {
            tokio::select! {
                biased;
                Some(answer) = told.recv() => self.informed(answer, &mut count).await?,
                response = &mut response => {
                    if let Some(gate) = &self.gate {
                        gate.answered();
                    }
                    return Ok(response);
                }
            }
        }
    }

    async fn informed(&self, answer: Response<()>, count: &mut usize) -> Result<(), Refusal> {
        *count += 1;
        if *count > informational::MOST {
            return Err(Refusal::BadAnswer);
        }
        if let Some(gate) = &self.gate
            && answer.status() == StatusCode::CONTINUE
        {
            gate.open();
        }
        self.informed.tell(answer).await;
        Ok(())
    }

    /// Ask what may be asked twice: on a connection that was kept, and again if that had just ended.
    async fn repeatable(&self, head: &Head) -> Result<(Response<Incoming>, Sender), Refusal> {
        if let Some(mut sender) = self.client.pool.take(&self.target, self.port)
            && let Ok(response) = self.asked(&mut sender, head.with(nothing())).await?
        {
            return Ok((response, sender));
        }
        let mut sender = self.first().await?;
        let response = self
            .asked(&mut sender, head.with(nothing()))
            .await?
            .map_err(|error| broken(&error))?;
        Ok((response, sender))
    }

    /// Ask on a stream of HTTP/2, there and back at the same time.
    async fn on_stream(self, head: Head, body: Body) -> Result<Response<Body>, Failure> {
        let sender = match self.client.streams.take(&self.target, self.port) {
            // One that the program has ended is not ready.
            Some(sender) => sender.ready().await.ok(),
            None => None,
        };
        let mut sender = match sender {
            Some(sender) => sender,
            None => self.second().await?,
        };
        let empty = body.is_end_stream();
        let (mut response, stream) = sender
            .send_request(head.on_stream().ok_or(Refusal::BadRequest)?, empty)
            .map_err(|_| Refusal::BadAnswer)?;
        let sending = (!empty).then(|| {
            let place = Arc::clone(&self.place);
            tokio::spawn(async move {
                let sent = http2::send(stream, body).await;
                drop(place);
                sent
            })
        });
        let mut count = 0;
        let response = loop {
            match poll_fn(|context| next(&mut response, context)).await {
                Next::Before(answer) => {
                    if let Err(refusal) = self.informed(answer, &mut count).await {
                        // Both ends of the stream are gone then.
                        sending.inspect(JoinHandle::abort);
                        return Err(refusal.into());
                    }
                }
                Next::Final(response) => break response,
            }
        };
        let response = match response {
            Ok(response) => response,
            Err(error) => {
                // It ends with its stream.
                if let Some(sending) = sending
                    && let Ok(Err(error)) = sending.await
                    && is_too_large(error.as_ref())
                {
                    return Err(Refusal::TooLarge.into());
                }
                return Err(match error.reason() {
                    Some(reason) if error.is_reset() && error.is_remote() => Failure::Reset(reason),
                    _ => Refusal::BadAnswer.into(),
                });
            }
        };
        let (parts, stream) = response.into_parts();
        let body = Answer {
            inner: Received::new(stream),
            ended: false,
            back: None,
            _gate: None,
            place: self.place,
        };
        answered(parts, body.boxed_unsync())
    }

    async fn first(&self) -> Result<Sender, Refusal> {
        let stream = self.connected().await?;
        guest::first(stream, &self.target).await.map_err(|_| Refusal::BadAnswer)
    }

    async fn second(&self) -> Result<SendRequest<Bytes>, Refusal> {
        let stream = self.connected().await?;
        let sender = guest::second(stream, &self.target)
            .await
            .map_err(|_| Refusal::BadAnswer)?;
        self.client
            .streams
            .put(Arc::clone(&self.target), self.port, sender.clone());
        sender.ready().await.map_err(|_| Refusal::BadAnswer)
    }

    async fn connected(&self) -> Result<TcpStream, Refusal> {
        let mut pause = FIRST_PAUSE;
        loop {
            let error = match guest::connect(&self.target, self.port, self.client.settings.connect_timeout).await {
                Ok(stream) => return Ok(stream),
                Err(error) => error,
            };
            let refused =
                error.kind() == io::ErrorKind::ConnectionRefused || error.kind() == io::ErrorKind::ConnectionReset;
            match self.listen_until {
                Some(until) if refused && Instant::now() < until => sleep(pause).await,
                _ if refused => return Err(Refusal::NotListening),
                _ => return Err(Refusal::Timeout),
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn respond(self, response: Response<Incoming>, sender: Sender) -> Result<Response<Body>, Failure> {
        let (parts, body) = response.into_parts();
        let body = Answer {
            inner: body,
            ended: false,
            back: Some((self.client, self.target, self.port, sender)),
            _gate: self.gate,
            place: self.place,
        };
        answered(parts, body.boxed_unsync())
    }

    fn tunnel(self, client_end: ClientEnd, mut response: Response<Incoming>) -> Response<Body> {
        let on_guest = hyper::upgrade::on(&mut response);
        let protocol = response.headers().get(UPGRADE).cloned();
        let (mut parts, _) = response.into_parts();
        headers::response(&mut parts.headers);
        parts.extensions.clear();
        parts.headers.remove(CONTENT_LENGTH);
        let (client, target, place) = (self.client, self.target, self.place);
        match client_end {
            ClientEnd::Upgrade(on_client) => {
                parts.headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
                if let Some(protocol) = protocol {
                    parts.headers.insert(UPGRADE, protocol);
                }
                tokio::spawn(async move {
                    if let (Ok(near), Ok(far)) = tokio::join!(on_client, on_guest) {
                        joined(TokioIo::new(near), TokioIo::new(far), &client, &target).await;
                    }
                    drop((place, client));
                });
                Response::from_parts(parts, nothing())
            }
            ClientEnd::Stream(body) => {
                parts.status = StatusCode::OK;
                parts.headers.remove(SEC_WEBSOCKET_ACCEPT);
                let (near, end) = tokio::io::duplex(TUNNEL_BYTES);
                let (from_guest, to_guest) = tokio::io::split(end);
                tokio::spawn(async move {
                    let Ok(far) = on_guest.await else { return };
                    tokio::select! {
                        () = joined(near, TokioIo::new(far), &client, &target) => {}
                        () = written(body, to_guest) => {}
                    }
                    drop((place, client));
                });
                Response::from_parts(parts, Read::new(from_guest).boxed_unsync())
            }
        }
    }
}

/// What comes next on a stream.
enum Next {
    Before(Response<()>),
    Final(Result<Response<RecvStream>, h2::Error>),
}

fn next(response: &mut ResponseFuture, context: &mut Context<'_>) -> Poll<Next> {
    if let Poll::Ready(Some(Ok(answer))) = response.poll_informational(context) {
        return Poll::Ready(Next::Before(answer));
    }
    Pin::new(response).poll(context).map(Next::Final)
}

/// Where the client's side of a tunnel is.
enum ClientEnd {
    /// Its connection.
    Upgrade(OnUpgrade),
    /// Its stream, and what comes on it.
    Stream(Body),
}

fn answered(mut parts: response::Parts, body: Body) -> Result<Response<Body>, Failure> {
    if parts.status == StatusCode::SWITCHING_PROTOCOLS {
        return Err(Refusal::BadAnswer.into());
    }
    headers::response(&mut parts.headers);
    parts.version = Version::HTTP_11;
    parts.extensions.clear();
    Ok(Response::from_parts(parts, body))
}

/// Pass on what either end says, until both have ended, or the session has, or nothing moves.
async fn joined<N, F>(mut near: N, mut far: F, client: &Client, target: &Target)
where
    N: AsyncRead + AsyncWrite + Unpin,
    F: AsyncRead + AsyncWrite + Unpin,
{
    tokio::select! {
        // An end that breaks off is an end.
        _ = copy_bidirectional(&mut near, &mut far) => {}
        () = target.ended() => {}
        () = client.movement.ceased(client.settings.idle_timeout) => {}
    }
}

/// Write a body, and its end: after that the other direction may go on. Returns when the body breaks off.
async fn written<W: AsyncWrite + Unpin>(mut body: Body, mut to: W) {
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return };
        if let Ok(data) = frame.into_data()
            && to.write_all(&data).await.is_err()
        {
            return;
        }
    }
    let _ = to.shutdown().await;
    drop(to);
    std::future::pending::<()>().await;
}

/// What is read, as a body.
struct Read<R> {
    from: R,
    buffer: Box<[u8]>,
}

impl<R> Read<R> {
    fn new(from: R) -> Self {
        Self {
            from,
            buffer: vec![0; TUNNEL_BYTES / 4].into(),
        }
    }
}

impl<R: AsyncRead + Unpin> HttpBody for Read<R> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Self { from, buffer } = &mut *self;
        let mut buffer = ReadBuf::new(buffer);
        let done = std::task::ready!(Pin::new(from).poll_read(context, &mut buffer));
        Poll::Ready(match done {
            Ok(()) if buffer.filled().is_empty() => None,
            Ok(()) => Some(Ok(Frame::data(Bytes::copy_from_slice(buffer.filled())))),
            Err(error) => Some(Err(error.into())),
        })
    }
}

struct Head {
    method: Method,
    target: Uri,
    headers: HeaderMap,
}

impl Head {
    fn again(&self) -> bool {
        matches!(self.method, Method::GET | Method::HEAD | Method::OPTIONS)
    }

    fn with(&self, body: Body) -> Request<Body> {
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.target.clone();
        *request.headers_mut() = self.headers.clone();
        request
    }

    /// As HTTP/2 has it: the host is part of what is asked for.
    fn on_stream(mut self) -> Option<Request<()>> {
        let host = self.headers.remove(HOST)?;
        let mut parts = self.target.into_parts();
        parts.scheme = Some(Scheme::HTTP);
        parts.authority = Some(Authority::try_from(host.as_bytes()).ok()?);
        let mut request = Request::new(());
        *request.method_mut() = self.method;
        *request.uri_mut() = Uri::from_parts(parts).ok()?;
        *request.version_mut() = Version::HTTP_2;
        *request.headers_mut() = self.headers;
        Some(request)
    }
}

fn length(headers: &HeaderMap) -> u64 {
    headers
        .get(CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse().ok())
        .unwrap_or(0)
}

fn nothing() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

fn bounded(body: Body, most: u64) -> Body {
    let body = body.map_frame(|frame| match frame.into_trailers() {
        Ok(mut trailers) => {
            headers::trailers(&mut trailers);
            Frame::trailers(trailers)
        }
        Err(frame) => frame,
    });
    match usize::try_from(most) {
        Ok(0) | Err(_) => body.boxed_unsync(),
        Ok(most) => Limited::new(body, most).boxed_unsync(),
    }
}

fn is_too_large(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(found) = cause {
        if found.is::<LengthLimitError>() {
            return true;
        }
        cause = found.source();
    }
    false
}

fn broken(error: &hyper::Error) -> Refusal {
    if is_too_large(error) {
        Refusal::TooLarge
    } else {
        Refusal::BadAnswer
    }
}

fn websocket_key() -> HeaderValue {
    let mut bytes = [0; 16];
    // It only shows that the other end speaks the protocol; without random bytes it still does.
    let _ = SystemRandom::new().fill(&mut bytes);
    HeaderValue::from_str(&hutch_policy::base64::encode(&bytes))
        .unwrap_or(HeaderValue::from_static("AAAAAAAAAAAAAAAAAAAAAA=="))
}

/// A program's answer. Once it was read, its connection is for the next request.
struct Answer<B: HttpBody> {
    inner: B,
    ended: bool,
    back: Option<(Arc<Client>, Arc<Target>, u16, Sender)>,
    _gate: Option<Gate>,
    place: Arc<Place>,
}

impl<B> HttpBody for Answer<B>
where
    B: HttpBody<Data = Bytes, Error: Into<BodyError>> + Unpin,
{
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = std::task::ready!(Pin::new(&mut self.inner).poll_frame(context));
        self.ended |= frame.is_none();
        Poll::Ready(frame.map(|frame| match frame.map(Frame::into_trailers) {
            Ok(Ok(mut trailers)) => {
                headers::trailers(&mut trailers);
                Ok(Frame::trailers(trailers))
            }
            Ok(Err(frame)) => Ok(frame),
            Err(error) => Err(error.into()),
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl<B: HttpBody> Drop for Answer<B> {
    fn drop(&mut self) {
        if !self.ended && !self.inner.is_end_stream() {
            return;
        }
        if let Some((client, target, port, mut sender)) = self.back.take() {
            let place = Arc::clone(&self.place);
            tokio::spawn(async move {
                if let Ok(Ok(())) = timeout(LEFT_OVER, sender.ready()).await {
                    client.pool.put(target, port, sender);
                }
                drop(place);
            });
        }
    }
}

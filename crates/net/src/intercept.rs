//! Flows whose requests are judged: TLS ends here, and another connection begins.
//!
//! HTTP/1 is read by our own strict reader (`http1`), because what one parser repairs another reads otherwise; HTTP/2 by
//! `h2`, which refuses what it must. Both bring requests to `exchange`.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, COOKIE};
use http::{HeaderMap, Method, StatusCode};
use http_body::{Body as HttpBody, Frame};
use http_body_util::BodyExt;
use hutch_policy::{Defence, Handling, Reason};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;

use crate::audit::{Decision, Kind};
use crate::body::{self, Body, BodyError, Severed};
pub use crate::exchange::Served;
use crate::exchange::{Admitted, Answer, Asked, Log, exchange, refusal};
use crate::flow::Kill;
use crate::hello::ClientHello;
use crate::http1::{self, BodyDecoder, BodyKind, Decoded, Framing, Head, HeadLimits, Version};
use crate::http2;
use crate::relay::{self, Meter, relay};
use crate::report;
use crate::scrub::Needles;
use crate::tcp::GuestStream;
use crate::tls::NoLeaf;

const HANDSHAKE: Duration = Duration::from_secs(10);
const HEAD: Duration = Duration::from_secs(10);
const KEEP_ALIVE: Duration = Duration::from_secs(60);
const BODY_IDLE: Duration = Duration::from_secs(60);
const READ_BYTES: usize = 16 * 1024;
const MAX_HELD_BYTES: usize = 64 * 1024;
/// For a client that is still sending when its request was answered.
const LINGER: Duration = Duration::from_secs(2);
const MAX_LINGER_BYTES: usize = 64 << 20;

/// Serve an intercepted flow to its end. The error is why it was refused as a whole.
pub async fn serve(served: Served, hello: Option<&ClientHello>, guest: GuestStream) -> Result<(), Reason> {
    let admission = served.flow.admission();
    let Some(name) = admission.name().cloned() else {
        return Err(Reason::Internal);
    };
    if admission.handling == Handling::InterceptPlaintext {
        return until_killed(&served, http1_connection(&served, guest)).await;
    }
    let offered = hello.map(|hello| hello.alpn.as_slice()).unwrap_or_default();
    let speaks = |protocol: &[u8]| offered.iter().any(|offer| offer == protocol);
    if !offered.is_empty() && !speaks(b"h2") && !speaks(b"http/1.1") && Defence::Alpn.holds() {
        // Something else within TLS: a name with rules speaks HTTP or nothing.
        return Err(Reason::ProtocolViolation);
    }
    let config = served
        .sandbox
        .authority
        .server(&name, SystemTime::now())
        .map_err(|no| match no {
            NoLeaf::TooMany => Reason::Limit,
            NoLeaf::Failed => Reason::Internal,
        })?;
    let accepting = timeout(HANDSHAKE, TlsAcceptor::from(config).accept(guest));
    let stream = tokio::select! {
        biased;
        reason = served.flow.kill.wait() => return Err(reason),
        accepted = accepting => match accepted {
            Ok(Ok(stream)) => stream,
            // It does not trust us, or does not speak TLS after all.
            Ok(Err(_)) => return Err(Reason::ProtocolViolation),
            Err(_) => return Err(Reason::ClientTimeout),
        },
    };
    let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let version = match stream.get_ref().1.protocol_version() {
        Some(rustls::ProtocolVersion::TLSv1_3) => "1.3",
        _ => "1.2",
    };
    let record = report::record(&served.sandbox.current(), Kind::Tls, Decision::Allow, admission.reason)
        .name(name.as_str())
        .dst_original(served.destination)
        .mode("mitm")
        .tls_version(version)
        .alpn(if is_http2 { "h2" } else { "http/1.1" });
    served.sandbox.report(record);
    served
        .sandbox
        .counters
        .tally(name.as_str(), |tally| tally.connections += 1);
    if is_http2 {
        until_killed(&served, http2_connection(&served, stream)).await
    } else {
        until_killed(&served, http1_connection(&served, stream)).await
    }
}

async fn until_killed(served: &Served, connection: impl Future<Output = Result<(), Reason>>) -> Result<(), Reason> {
    tokio::select! {
        biased;
        reason = served.flow.kill.wait() => Err(reason),
        outcome = connection => outcome,
    }
}

// -- HTTP/2 ---------------------------------------------------------------------------------------------------------

#[doc(hidden)]
pub async fn http2_connection<S>(served: &Served, stream: S) -> Result<(), Reason>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let handle = |request, has_place| {
        let served = served.clone();
        async move { http2_request(&served, request, has_place).await }
    };
    http2::serve(stream, &served.sandbox.places, served.sandbox.cpu(), handle).await
}

async fn http2_request(
    served: &Served,
    request: http::Request<http2::Lingering>,
    has_place: bool,
) -> Result<http::Response<Body>, BodyError> {
    let (parts, incoming) = request.into_parts();
    let mut headers = Vec::with_capacity(parts.headers.len());
    // Clients of HTTP/2 may send one header for each cookie, servers of HTTP/1 read one (RFC 9113 §8.2.3).
    let mut cookies = BytesMut::new();
    let mut last = None;
    for (name, value) in parts.headers {
        last = name.or(last);
        let Some(name) = &last else { continue };
        if name == COOKIE {
            cookies.extend_from_slice(if cookies.is_empty() { b"" } else { b"; " });
            cookies.extend_from_slice(value.as_bytes());
        } else {
            headers.push((
                Bytes::copy_from_slice(name.as_str().as_bytes()),
                Bytes::copy_from_slice(value.as_bytes()),
            ));
        }
    }
    if !cookies.is_empty() {
        headers.push((Bytes::from_static(b"cookie"), cookies.freeze()));
    }
    let target = parts.uri.path_and_query().map_or_else(
        || Bytes::from_static(b"/"),
        |target| Bytes::copy_from_slice(target.as_str().as_bytes()),
    );
    // Over TLS only one scheme is true.
    let is_https = parts.uri.scheme_str().is_none_or(|scheme| scheme == "https");
    let asked = Asked {
        method: Bytes::copy_from_slice(parts.method.as_str().as_bytes()),
        target,
        authority: parts
            .uri
            .authority()
            .map(|authority| Bytes::copy_from_slice(authority.as_str().as_bytes())),
        headers,
        body: body::WithoutTrailers(incoming).boxed_unsync(),
        admitted: None,
        http2: true,
    };
    let answer = if !has_place {
        served.unreadable(Reason::Limit, 429);
        refusal(429, Reason::Limit, false)
    } else if is_https {
        exchange(served, asked).await
    } else {
        served.unreadable(Reason::ProtocolViolation, 400);
        refusal(400, Reason::ProtocolViolation, true)
    };
    match answer {
        Answer::Response {
            status,
            headers,
            body,
            kill,
            ..
        } => {
            let body = match kill {
                Some(kill) if !body.is_end_stream() => Severed::new(body, kill, served.sandbox.cpu()).boxed_unsync(),
                _ => body,
            };
            let mut response = http::Response::new(body);
            *response.status_mut() = status;
            *response.headers_mut() = headers;
            *response.version_mut() = http::Version::HTTP_2;
            Ok(response)
        }
        Answer::Tunnel { .. } | Answer::Reset => Err(BodyError::Ended(Reason::Revoked)),
    }
}

// -- HTTP/1 ---------------------------------------------------------------------------------------------------------

/// What becomes of the connection.
enum Next {
    Another,
    Close,
    Reset,
}

struct Connection<'a, S> {
    served: &'a Served,
    reader: ReadHalf<S>,
    writer: WriteHalf<S>,
    buffer: BytesMut,
}

async fn http1_connection<S>(served: &Served, stream: S) -> Result<(), Reason>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (reader, writer) = tokio::io::split(stream);
    let mut connection = Connection {
        served,
        reader,
        writer,
        buffer: BytesMut::new(),
    };
    loop {
        let head = match next_head(&mut connection.reader, &mut connection.buffer, HEAD).await {
            Ok(Some(head)) => head,
            Ok(None) => break,
            Err(reason) => {
                connection.refuse(reason).await;
                break;
            }
        };
        match connection.request(head).await {
            Next::Another => {}
            Next::Close => break,
            Next::Reset => return Ok(()),
        }
    }
    connection.end().await;
    Ok(())
}

/// The next head, all of it within `patience` of its first byte; `None` at the end of the connection.
async fn next_head<R>(reader: &mut R, buffer: &mut BytesMut, patience: Duration) -> Result<Option<Head>, Reason>
where
    R: AsyncRead + Unpin,
{
    let limits = HeadLimits::default();
    // For all of it: a client that sends a byte now and then must not be here for ever.
    let mut deadline = None;
    loop {
        if !buffer.is_empty() {
            match http1::read_head(buffer, &limits) {
                Ok(Some((head, length))) => {
                    let _ = buffer.split_to(length);
                    return Ok(Some(head));
                }
                Ok(None) => {}
                Err(_) => return Err(Reason::ProtocolViolation),
            }
            let patience = if Defence::HeadTime.holds() {
                patience
            } else {
                KEEP_ALIVE
            };
            deadline.get_or_insert_with(|| Instant::now() + patience);
        }
        buffer.reserve(READ_BYTES);
        let until = deadline.unwrap_or_else(|| Instant::now() + KEEP_ALIVE);
        match timeout_at(until, reader.read_buf(buffer)).await {
            Ok(Ok(0) | Err(_)) => return Ok(None),
            Ok(Ok(_)) => {}
            Err(_) if buffer.is_empty() => return Ok(None),
            Err(_) => return Err(Reason::ClientTimeout),
        }
    }
}

impl<S> Connection<'_, S>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    /// End in order. What the client still sends is read and dropped for a moment: closing with bytes unread would reset
    /// the connection, and take from the client what it has not read yet.
    async fn end(&mut self) {
        if !Defence::EarlyAnswers.holds() {
            return;
        }
        let _ = timeout(LINGER, async {
            self.writer.shutdown().await?;
            let mut dropped = 0;
            while dropped < MAX_LINGER_BYTES {
                self.buffer.clear();
                self.buffer.reserve(READ_BYTES);
                match self.reader.read_buf(&mut self.buffer).await? {
                    0 => break,
                    count => dropped += count,
                }
            }
            Ok::<(), std::io::Error>(())
        })
        .await;
    }

    /// A head that cannot be read is nobody's request.
    async fn refuse(&mut self, reason: Reason) {
        let status = match reason {
            Reason::ClientTimeout => 408,
            _ => 400,
        };
        self.served.unreadable(reason, status);
        if let Answer::Response {
            status, headers, body, ..
        } = refusal(status, reason, true)
        {
            let _ = timeout(
                HANDSHAKE,
                self.respond(status, &headers, body, Method::GET, false, true),
            )
            .await;
        }
    }

    async fn request(&mut self, head: Head) -> Next {
        let kind = head.body;
        let length = declared_length(&kind);
        let has_body = !matches!(kind, BodyKind::None | BodyKind::Length(0));
        let incoming = has_body.then(|| body::Incoming::new(length));
        let (pieces, body) = incoming.map_or_else(
            || (None, body::empty()),
            |(pieces, incoming)| (Some(pieces), incoming.boxed_unsync()),
        );
        let (admitted, told) = oneshot::channel();
        let keep_alive = head.keep_alive;
        let is_http11 = head.version == Version::Http11;
        let method = Method::from_bytes(head.method()).unwrap_or(Method::GET);
        let asked = Asked {
            method: Bytes::copy_from_slice(head.method()),
            target: Bytes::copy_from_slice(head.target()),
            authority: None,
            headers: head
                .headers()
                .map(|(name, value)| (Bytes::copy_from_slice(name), Bytes::copy_from_slice(value)))
                .collect(),
            body,
            admitted: Some(admitted),
            http2: false,
        };
        let mut answering = Box::pin(exchange(self.served, asked));
        let mut pump = Pump {
            decoder: BodyDecoder::from(kind),
            pieces,
            told: Some(told),
            over: !has_body,
        };
        // The body is read only once the request is admitted, and while its answer comes.
        let answer = loop {
            tokio::select! {
                biased;
                answer = &mut answering => break answer,
                outcome = pump.step(&mut self.reader, &mut self.buffer, &mut self.writer, is_http11) => {
                    if outcome.is_err() {
                        return Next::Reset;
                    }
                }
            }
        };
        drop(answering);
        match answer {
            Answer::Reset => Next::Reset,
            Answer::Tunnel {
                headers,
                upgraded,
                needles,
                meter,
                ongoing,
                log,
            } => {
                self.tunnel(&headers, upgraded, needles, &meter, &ongoing.kill, log)
                    .await;
                Next::Reset
            }
            Answer::Response {
                status,
                headers,
                body,
                close,
                kill,
            } => {
                // What is left of the body would be read as the next request.
                let close = close || !keep_alive || !pump.over;
                let written = {
                    let (reader, buffer) = (&mut self.reader, &mut self.buffer);
                    let responding = respond(
                        &mut self.writer,
                        &status,
                        &headers,
                        body,
                        &method,
                        is_http11,
                        close,
                        &mut pump,
                        reader,
                        buffer,
                    );
                    tokio::select! {
                        biased;
                        () = ended(kill.as_deref()) => Err(()),
                        written = responding => written,
                    }
                };
                match written {
                    Err(()) => Next::Reset,
                    Ok(()) if close => Next::Close,
                    Ok(()) => Next::Another,
                }
            }
        }
    }

    async fn respond(
        &mut self,
        status: StatusCode,
        headers: &HeaderMap,
        body: Body,
        method: Method,
        is_http11: bool,
        close: bool,
    ) -> Result<(), ()> {
        let mut pump = Pump::nothing();
        let (reader, buffer) = (&mut self.reader, &mut self.buffer);
        respond(
            &mut self.writer,
            &status,
            headers,
            body,
            &method,
            is_http11,
            close,
            &mut pump,
            reader,
            buffer,
        )
        .await
    }

    async fn tunnel(
        &mut self,
        headers: &HeaderMap,
        upgraded: hyper::upgrade::Upgraded,
        needles: Option<Arc<Needles>>,
        meter: &Meter,
        kill: &Kill,
        mut log: Box<Log>,
    ) {
        if switch(&mut self.writer, headers, kill).await.is_err() {
            return;
        }
        let found = |hits| log.reflected(hits);
        let mut server = crate::tunnel::Masked::new(TokioIo::new(upgraded), needles, found);
        let mut guest = crate::tunnel::Joined::new(&mut self.reader, &mut self.writer, &mut self.buffer);
        let relayed = relay(&mut guest, &mut server, meter, kill).await;
        if let Err(reason @ (Reason::ByteLimit | Reason::ClientTimeout)) = relayed {
            log.failed(reason);
        }
    }
}

/// Tell the client that it is a WebSocket from here on.
async fn switch<W: AsyncWrite + Unpin>(writer: &mut W, headers: &HeaderMap, kill: &Kill) -> Result<(), ()> {
    let mut head = BytesMut::new();
    http1::write_response_head(
        &mut head,
        101,
        None,
        headers
            .iter()
            .map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()))
            .chain([(&b"upgrade"[..], &b"websocket"[..])]),
        Framing::None,
        true,
    );
    tokio::select! {
        biased;
        _ = kill.wait() => Err(()),
        written = write(writer, &head) => written,
    }
}

/// How long a body is, if its head says so.
fn declared_length(kind: &BodyKind) -> Option<u64> {
    match kind {
        BodyKind::None => Some(0),
        BodyKind::Length(length) => Some(*length),
        BodyKind::Chunked => None,
    }
}

/// Wait until an exchange is ended from outside, if it can be.
async fn ended(kill: Option<&Kill>) {
    match kill {
        Some(kill) => drop(kill.wait().await),
        None => std::future::pending().await,
    }
}

/// Reads a request's body for whoever sends it on.
struct Pump {
    decoder: BodyDecoder,
    pieces: Option<mpsc::Sender<Result<Frame<Bytes>, BodyError>>>,
    told: Option<oneshot::Receiver<Admitted>>,
    over: bool,
}

impl Pump {
    fn nothing() -> Self {
        Self {
            decoder: BodyDecoder::from(BodyKind::None),
            pieces: None,
            told: None,
            over: true,
        }
    }

    /// Move one piece. The error is a client that broke off or broke HTTP.
    async fn step<R, W>(
        &mut self,
        reader: &mut R,
        buffer: &mut BytesMut,
        writer: &mut W,
        is_http11: bool,
    ) -> Result<(), ()>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        if let Some(told) = &mut self.told {
            let Ok(admitted) = told.await else {
                // Refused: nobody reads the body.
                self.told = None;
                return std::future::pending().await;
            };
            self.told = None;
            if admitted.expects_continue && !self.over && is_http11 && buffer.is_empty() {
                writer.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.map_err(drop)?;
                writer.flush().await.map_err(drop)?;
            }
        }
        let Some(pieces) = self.pieces.clone() else {
            if !Defence::WholeBodies.holds() {
                return std::future::pending().await;
            }
            return watch(reader, buffer).await;
        };
        // A place first: this may be abandoned at any wait, and what was taken out of the buffer must not be lost.
        let Ok(place) = pieces.reserve().await else {
            // The server has answered without the rest.
            self.pieces = None;
            return Ok(());
        };
        match self.decoder.decode(buffer) {
            Err(_) if !Defence::WholeBodies.holds() => {
                self.ended(place);
                Ok(())
            }
            Err(_) => {
                place.send(Err(BodyError::Broken(None)));
                Err(())
            }
            Ok(Decoded::Data(data)) => {
                place.send(Ok(Frame::data(data)));
                if self.decoder.is_finished() {
                    self.over = true;
                    self.pieces = None;
                }
                Ok(())
            }
            // Trailers of requests are dropped: nothing that a rule looked at may come after it.
            Ok(Decoded::End(_)) => {
                self.ended(place);
                Ok(())
            }
            Ok(Decoded::NeedMore) => {
                buffer.reserve(READ_BYTES);
                match timeout(BODY_IDLE, reader.read_buf(buffer)).await {
                    Ok(Ok(count)) if count > 0 => Ok(()),
                    _ if !Defence::WholeBodies.holds() => {
                        self.ended(place);
                        Ok(())
                    }
                    _ => {
                        place.send(Err(BodyError::Broken(None)));
                        Err(())
                    }
                }
            }
        }
    }

    fn ended(&mut self, place: mpsc::Permit<'_, Result<Frame<Bytes>, BodyError>>) {
        place.send(Ok(Frame::trailers(HeaderMap::new())));
        self.over = true;
        self.pieces = None;
    }
}

/// Notice a client that goes away while it waits, and keep what it sends ahead.
async fn watch<R: AsyncRead + Unpin>(reader: &mut R, buffer: &mut BytesMut) -> Result<(), ()> {
    if buffer.len() >= MAX_HELD_BYTES {
        return std::future::pending().await;
    }
    buffer.reserve(READ_BYTES);
    match reader.read_buf(buffer).await {
        Ok(0) | Err(_) => Err(()),
        Ok(_) => Ok(()),
    }
}

/// Write a response, reading what is left of the request's body meanwhile, and noticing a client that goes away.
#[allow(clippy::too_many_arguments)]
async fn respond<R, W>(
    writer: &mut W,
    status: &StatusCode,
    headers: &HeaderMap,
    mut body: Body,
    method: &Method,
    is_http11: bool,
    close: bool,
    pump: &mut Pump,
    reader: &mut R,
    buffer: &mut BytesMut,
) -> Result<(), ()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let bodyless = *method == Method::HEAD || status.as_u16() == 204 || status.as_u16() == 304;
    let declared = headers
        .get(CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.parse().ok());
    let framing = match (body.size_hint().exact(), bodyless) {
        (_, true) => declared.map_or(Framing::None, Framing::Length),
        (Some(length), false) => Framing::Length(length),
        (None, false) if is_http11 => Framing::Chunked,
        (None, false) => Framing::UntilClose,
    };
    let close = close || matches!(framing, Framing::UntilClose);
    let mut out = BytesMut::with_capacity(1024);
    http1::write_response_head(
        &mut out,
        status.as_u16(),
        None,
        headers
            .iter()
            .map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes())),
        framing,
        !close,
    );
    if bodyless {
        drop(body);
        return write(writer, &out).await;
    }
    let chunked = matches!(framing, Framing::Chunked);
    let mut trailers = None;
    loop {
        let frame = tokio::select! {
            biased;
            frame = body.frame() => frame,
            // The client may have to see the head before there is a first piece.
            () = std::future::ready(()), if !out.is_empty() => {
                write(writer, &out).await?;
                out.clear();
                continue;
            }
            outcome = pump.step(reader, buffer, writer, false) => {
                outcome?;
                continue;
            }
        };
        match frame {
            None => break,
            Some(Err(_)) => return Err(()),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) if chunked => http1::write_chunk(&mut out, &data),
                Ok(data) => out.extend_from_slice(&data),
                Err(frame) => trailers = frame.into_trailers().ok(),
            },
        }
        // One write for head and first piece where that is there at once, and for pieces that are there together.
        if !out.is_empty() {
            write(writer, &out).await?;
            out.clear();
        }
    }
    if chunked {
        let lines = trailers.unwrap_or_default();
        http1::write_last_chunk(
            &mut out,
            lines
                .iter()
                .map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes())),
        );
    }
    write(writer, &out).await
}

/// Write and flush. A client that reads nothing for as long as no tunnel may be idle is gone.
async fn write<W: AsyncWrite + Unpin>(writer: &mut W, bytes: &[u8]) -> Result<(), ()> {
    let writing = async {
        writer.write_all(bytes).await?;
        writer.flush().await
    };
    timeout(relay::IDLE, writing).await.map_err(drop)?.map_err(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_millis(100);

    #[tokio::test]
    async fn a_head_that_comes_byte_by_byte_has_no_more_time_than_another() {
        let (mut client, mut reader) = tokio::io::duplex(64);
        let sending = async {
            // As long as anybody reads, and always well before a single read would have taken too long.
            while client.write_all(b"a").await.is_ok() {
                tokio::time::sleep(PATIENCE / 10).await;
            }
        };
        let mut buffer = BytesMut::new();
        let reading = async {
            let head = next_head(&mut reader, &mut buffer, PATIENCE).await;
            drop(reader);
            head
        };
        let (head, ()) = timeout(Duration::from_secs(10), async { tokio::join!(reading, sending) })
            .await
            .expect("the reader never gave up");
        assert_eq!(head.unwrap_err(), Reason::ClientTimeout);
    }

    /// Respond to a client with a body that is sent by hand, until the client is done.
    async fn responding<F, C>(client_does: F) -> (Result<(), ()>, BytesMut)
    where
        F: FnOnce(tokio::io::DuplexStream, mpsc::Sender<Result<Frame<Bytes>, BodyError>>) -> C,
        C: Future<Output = ()>,
    {
        let (client, stream) = tokio::io::duplex(1024);
        let (mut reader, mut writer) = tokio::io::split(stream);
        let (pieces, body) = body::Incoming::new(None);
        let (mut pump, mut buffer) = (Pump::nothing(), BytesMut::new());
        let headers = HeaderMap::new();
        let responding = respond(
            &mut writer,
            &StatusCode::OK,
            &headers,
            body.boxed_unsync(),
            &Method::GET,
            true,
            false,
            &mut pump,
            &mut reader,
            &mut buffer,
        );
        let both = async { tokio::join!(responding, client_does(client, pieces)) };
        let (responded, ()) = timeout(Duration::from_secs(10), both).await.expect("it waits for ever");
        (responded, buffer)
    }

    async fn read_until(client: &mut tokio::io::DuplexStream, end: &[u8]) {
        let mut got = Vec::new();
        while !got.ends_with(end) {
            got.push(client.read_u8().await.unwrap());
        }
    }

    #[tokio::test]
    async fn a_head_is_passed_on_before_there_is_a_body() {
        let (responded, _) = responding(async |mut client, pieces| {
            read_until(&mut client, b"\r\n\r\n").await;
            pieces.send(Ok(Frame::data(Bytes::from_static(b"late")))).await.unwrap();
            pieces.send(Ok(Frame::trailers(HeaderMap::new()))).await.unwrap();
            read_until(&mut client, b"4\r\nlate\r\n0\r\n\r\n").await;
        })
        .await;
        assert_eq!(responded, Ok(()));
    }

    #[tokio::test]
    async fn a_client_that_goes_away_is_noticed_while_its_response_waits() {
        let mut kept = None;
        let (responded, _) = responding(async |mut client, pieces| {
            read_until(&mut client, b"\r\n\r\n").await;
            kept = Some(pieces);
        })
        .await;
        assert_eq!(responded, Err(()));
    }

    #[tokio::test]
    async fn what_a_client_asks_next_is_kept_while_its_response_waits() {
        let (responded, buffer) = responding(async |mut client, pieces| {
            read_until(&mut client, b"\r\n\r\n").await;
            client.write_all(b"GET /next").await.unwrap();
            // Until the other side has had its turn.
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            pieces.send(Ok(Frame::trailers(HeaderMap::new()))).await.unwrap();
            read_until(&mut client, b"0\r\n\r\n").await;
        })
        .await;
        assert_eq!((responded, &buffer[..]), (Ok(()), &b"GET /next"[..]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_keeps_no_tunnel() {
        let (_client, mut writer) = tokio::io::duplex(1);
        let kill = Kill::default();
        let began = Instant::now();
        assert_eq!(switch(&mut writer, &HeaderMap::new(), &kill).await, Err(()));
        assert!((relay::IDLE..relay::IDLE + Duration::from_secs(1)).contains(&began.elapsed()));
        kill.now(Reason::RuleChanged);
        let began = Instant::now();
        assert_eq!(switch(&mut writer, &HeaderMap::new(), &kill).await, Err(()));
        assert!(began.elapsed() < Duration::from_secs(1));
    }

    #[tokio::test]
    async fn what_is_no_method_is_refused_without_the_end_of_its_line() {
        let (mut client, mut reader) = tokio::io::duplex(64);
        client.write_all(b"\0\0\0\x08").await.unwrap();
        let head = next_head(&mut reader, &mut BytesMut::new(), HEAD).await;
        assert_eq!(head.unwrap_err(), Reason::ProtocolViolation);
    }
}

//! Connections of guests that speak HTTP/2, between their requests: what is too much, and when they end.
//!
//! Frames and their limits are `h2`'s: it ends connections that flood with empty data or endless heads. It knows neither idle
//! connections nor clients that ask and take it back for ever; those end here.

#[cfg(test)]
pub(crate) mod credit;

use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;
use hutch_policy::{Defence, Reason};
use hyper::body::Incoming;
use hyper::server::conn::http2::Builder;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::Handle;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;

use crate::body::{Body, BodyError};
use crate::cpu::CpuTime;
use crate::locks::lock;
use crate::sandbox::Bucket;

/// Without a request, also before the first one and before the preface.
const IDLE: Duration = Duration::from_secs(60);
/// For a client that was told to go, or that is still sending when its request was answered.
const LINGER: Duration = Duration::from_secs(2);
const MAX_LINGER_BYTES: usize = 64 << 20;
const STREAMS: u32 = 128;
const HEADER_LIST_BYTES: u32 = 64 * 1024;
/// What a server does not read is held here, for each connection of a guest: fixed, where windows that adapt grow.
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;
/// What waits on each stream for a client that does not read.
const SEND_BUFFER_BYTES: usize = 64 * 1024;
/// Requests that a client takes back, per minute.
const MAX_RESETS: u32 = 100;
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Serve a connection to its end. The error is why it was refused as a whole.
///
/// `places` are those of the sandbox's connections: this one has its own, which is enough for one request at a time. Each
/// request beside it takes another, and `handle` is told whether there was one. `cpu` counts what all of it takes.
pub async fn serve<S, H, F>(stream: S, places: &Arc<Semaphore>, cpu: &CpuTime, handle: H) -> Result<(), Reason>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Fn(Request<Lingering>, bool) -> F,
    F: Future<Output = Result<Response<Body>, BodyError>> + Send + 'static,
{
    let requests = Arc::new(Requests::default());
    let service = service_fn(|request: Request<Incoming>| {
        let one = One::new(&requests, places);
        let response = handle(
            request.map(|body| Lingering(Some(body), cpu.clone())),
            one.place.is_some(),
        );
        answered(one, response)
    });
    let send_buffer_bytes = if Defence::SmallSendBuffers.holds() {
        SEND_BUFFER_BYTES
    } else {
        SEND_BUFFER_BYTES * 64
    };
    let mut builder = Builder::new(cpu.clone());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(HEADER_LIST_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(send_buffer_bytes)
        .max_pending_accept_reset_streams(MAX_RESETS as usize)
        .max_local_error_reset_streams(MAX_RESETS as usize)
        .keep_alive_interval(Some(PING_EVERY))
        .keep_alive_timeout(PING_TIMEOUT);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let mut ongoing = requests.ongoing.subscribe();
    let mut patience = IDLE;
    loop {
        tokio::select! {
            biased;
            () = requests.too_many_resets.notified() => return Err(Reason::Limit),
            ended = &mut connection => return match ended {
                Err(error) if breaks_http2(&error) => Err(Reason::ProtocolViolation),
                // How else a connection ended is nothing to refuse it for; its requests have their records.
                _ => Ok(()),
            },
            () = idle(&mut ongoing, patience) => {
                if patience == LINGER {
                    return Ok(());
                }
                connection.as_mut().graceful_shutdown();
                patience = LINGER;
            }
        }
    }
}

async fn answered(
    mut one: One,
    response: impl Future<Output = Result<Response<Body>, BodyError>>,
) -> Result<Response<Body>, BodyError> {
    let response = response.await;
    // What fails here, or has no body, is no less an answer.
    one.answered = response
        .as_ref()
        .map_or(true, |response| response.body().is_end_stream());
    Ok(response?.map(|body| Counted { body, one }.boxed_unsync()))
}

/// Whether the client did not keep to what it had negotiated. One that merely goes away does not.
fn breaks_http2(error: &hyper::Error) -> bool {
    std::error::Error::source(error)
        .and_then(|source| source.downcast_ref::<h2::Error>())
        .is_some_and(|error| !error.is_io() && !error.is_remote() && error.reason() != Some(h2::Reason::NO_ERROR))
}

/// Wait until there was no request for so long.
async fn idle(ongoing: &mut watch::Receiver<usize>, patience: Duration) {
    loop {
        // The sender lives as long as the connection.
        let _ = ongoing.wait_for(|count| *count == 0).await;
        if timeout(patience, ongoing.changed()).await.is_err() {
            return;
        }
    }
}

/// The requests of a connection.
struct Requests {
    ongoing: watch::Sender<usize>,
    resets: Mutex<Bucket>,
    too_many_resets: Notify,
}

impl Default for Requests {
    fn default() -> Self {
        let burst = f64::from(MAX_RESETS);
        Self {
            ongoing: watch::Sender::new(0),
            resets: Mutex::new(Bucket::new(burst / 60.0, burst)),
            too_many_resets: Notify::new(),
        }
    }
}

/// One request, until its answer is sent or the client does not want it any more.
struct One {
    requests: Arc<Requests>,
    place: Option<Place>,
    answered: bool,
}

/// Where a request is counted: with its connection, or on its own.
enum Place {
    Connection,
    Own { _permit: OwnedSemaphorePermit },
}

impl One {
    fn new(requests: &Arc<Requests>, places: &Arc<Semaphore>) -> Self {
        let mut is_only_one = false;
        requests.ongoing.send_modify(|count| {
            is_only_one = *count == 0;
            *count += 1;
        });
        let own = || Arc::clone(places).try_acquire_owned().ok();
        Self {
            requests: Arc::clone(requests),
            place: if is_only_one || !Defence::RequestPlaces.holds() {
                Some(Place::Connection)
            } else {
                own().map(|permit| Place::Own { _permit: permit })
            },
            answered: false,
        }
    }
}

impl Drop for One {
    fn drop(&mut self) {
        self.requests.ongoing.send_modify(|count| *count -= 1);
        if !self.answered && !lock(&self.requests.resets).take() && Defence::Resets.holds() {
            self.requests.too_many_resets.notify_one();
        }
    }
}

/// The body of an answer, with which its request ends.
struct Counted {
    body: Body,
    one: One,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(context));
        // An answer that fails is not the client's doing.
        self.one.answered = !matches!(frame, Some(Ok(_))) || self.body.is_end_stream();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of a request. What nobody wants of it is read and dropped for a moment: a server may reset a stream that it has
/// answered (RFC 9113 §8.1), but there are clients that then do not tell of the answer, curl 7.88 among them.
pub struct Lingering(Option<Incoming>, CpuTime);

impl Drop for Lingering {
    fn drop(&mut self) {
        if let Some(body) = self.0.take().filter(|body| !body.is_end_stream())
            && Handle::try_current().is_ok()
        {
            self.1.spawn(async { timeout(LINGER, drain(body)).await });
        }
    }
}

async fn drain(mut body: Incoming) {
    let mut dropped = 0;
    while let Some(Ok(frame)) = body.frame().await
        && dropped < MAX_LINGER_BYTES
    {
        dropped += frame.data_ref().map_or(0, Bytes::len);
    }
}

impl HttpBody for Lingering {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.0 {
            Some(body) => Pin::new(body).poll_frame(context),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map_or_else(SizeHint::default, Incoming::size_hint)
    }
}

#[cfg(test)]
mod tests {
    use h2::client::SendRequest;
    use tokio::io::{AsyncWriteExt, DuplexStream, duplex};
    use tokio::sync::mpsc;
    use tokio::task::JoinHandle;
    use tokio::time::{Instant, sleep};

    use super::credit::spent;
    use super::*;
    use crate::body;

    type Serving = JoinHandle<Result<(), Reason>>;

    const PLACES: usize = 3;

    /// A connection whose requests are each told, with whether there is a place for them, and answered after a while.
    fn connection(after: Duration) -> (DuplexStream, Serving, mpsc::UnboundedReceiver<bool>) {
        let (client, server) = duplex(64 * 1024);
        let (came, told) = mpsc::unbounded_channel();
        let serving = tokio::spawn(async move {
            let places = Arc::new(Semaphore::new(PLACES));
            let handle = |_, has_place| {
                came.send(has_place).unwrap();
                async move {
                    sleep(after).await;
                    Ok(Response::new(body::full("answer")))
                }
            };
            serve(server, &places, &CpuTime::default(), handle).await
        });
        (client, serving, told)
    }

    async fn client(stream: DuplexStream) -> SendRequest<Bytes> {
        let (sender, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        sender.ready().await.unwrap()
    }

    async fn answered(sender: &mut SendRequest<Bytes>) {
        let (response, _) = sender.send_request(Request::new(()), true).unwrap();
        let mut body = response.await.unwrap().into_body();
        assert_eq!(body.data().await.unwrap().unwrap(), "answer");
        assert!(body.data().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_without_a_whole_preface_is_ended() {
        for said in ["", "PRI * HTTP/2.0"] {
            let (mut stream, serving, _told) = connection(Duration::ZERO);
            stream.write_all(said.as_bytes()).await.unwrap();
            let began = Instant::now();
            assert_eq!(serving.await.unwrap(), Ok(()));
            assert!((IDLE..=IDLE + LINGER).contains(&began.elapsed()), "{said:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_only_answers_pings_is_ended() {
        let (stream, serving, _told) = connection(Duration::ZERO);
        let mut sender = client(stream).await;
        sleep(IDLE / 2).await;
        answered(&mut sender).await;
        let began = Instant::now();
        assert_eq!(serving.await.unwrap(), Ok(()));
        assert!((IDLE..=IDLE + LINGER).contains(&began.elapsed()));
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_an_answer_is_not_idle() {
        let (stream, serving, _told) = connection(IDLE * 10);
        let mut sender = client(stream).await;
        answered(&mut sender).await;
        assert!(!serving.is_finished());
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_too_many_requests_back_is_ended() {
        let (stream, serving, mut told) = connection(IDLE * 10);
        let mut sender = client(stream).await;
        for _ in 0..=MAX_RESETS {
            assert!(!serving.is_finished());
            let (_, mut stream) = sender.send_request(Request::new(()), false).unwrap();
            told.recv().await.unwrap();
            stream.send_reset(h2::Reason::CANCEL);
        }
        assert_eq!(serving.await.unwrap(), Err(Reason::Limit));
    }

    #[tokio::test(start_paused = true)]
    async fn requests_beside_each_other_take_places() {
        let (stream, _serving, mut told) = connection(IDLE);
        let mut sender = client(stream).await;
        for _ in 0..2 {
            let mut answers = Vec::new();
            for number in 0..PLACES + 3 {
                answers.push(sender.send_request(Request::new(()), true).unwrap().0);
                assert_eq!(told.recv().await, Some(number <= PLACES));
            }
            // With their answers they give them back.
            for answer in answers {
                let mut body = answer.await.unwrap().into_body();
                while body.data().await.is_some() {}
            }
            sleep(Duration::from_secs(1)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_still_sends_when_it_was_answered_may_for_a_moment() {
        let (stream, _serving, _told) = connection(Duration::ZERO);
        let mut sender = client(stream).await;
        let (response, mut sending) = sender.send_request(Request::new(()), false).unwrap();
        response.await.unwrap();
        let began = Instant::now();
        sending.send_data(Bytes::from_static(b"more"), false).unwrap();
        let reset = std::future::poll_fn(|context| sending.poll_reset(context)).await;
        assert_eq!(reset.unwrap(), h2::Reason::NO_ERROR);
        assert_eq!(began.elapsed(), LINGER);
    }

    #[tokio::test(start_paused = true)]
    async fn requests_that_are_answered_are_not_taken_back() {
        let (stream, serving, _told) = connection(Duration::ZERO);
        let mut sender = client(stream).await;
        for _ in 0..MAX_RESETS * 3 {
            answered(&mut sender).await;
        }
        assert!(!serving.is_finished());
    }
    /// A client with so many requests, of whose bodies nobody reads anything; how much it can send of them.
    async fn unread(requests: usize) -> usize {
        let (client_end, server) = duplex(64 * 1024);
        tokio::spawn(async move {
            let places = Arc::new(Semaphore::new(requests));
            let handle = |request, _| async move {
                let _held: Request<Lingering> = request;
                std::future::pending().await
            };
            serve(server, &places, &CpuTime::default(), handle).await
        });
        let (sender, mut connection) = h2::client::handshake(client_end).await.unwrap();
        let mut pings = connection.ping_pong().unwrap();
        tokio::spawn(connection);
        let mut sender = sender.ready().await.unwrap();
        let mut streams = Vec::new();
        let mut responses = Vec::new();
        for _ in 0..requests {
            let (response, stream) = sender.send_request(Request::new(()), false).unwrap();
            responses.push(response);
            streams.push(stream);
        }
        spent(&mut streams, &mut pings, CONNECTION_WINDOW_BYTES as usize).await
    }

    #[tokio::test]
    async fn what_no_server_reads_is_held_up_to_the_window_and_no_further() {
        for requests in [1, 3] {
            let sent = timeout(Duration::from_secs(60), unread(requests)).await.unwrap();
            assert_eq!(sent, CONNECTION_WINDOW_BYTES as usize, "{requests} requests");
        }
    }
}

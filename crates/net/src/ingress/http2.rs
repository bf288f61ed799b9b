//! HTTP/2, frame by frame, on both sides: clients of the ingress, and programs that are asked by it.
//!
//! `h2` has the frames and their limits. Here are its bodies, and who ends what: a reset of either side is one of the other.

use std::error::Error;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::server::{Builder, SendResponse};
use h2::{PingPong, Reason, RecvStream, SendStream};
use http::{Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::informational::Informed;
use super::proxy::{self, Body, BodyError, Client};

/// Of each stream, in either direction.
pub const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
/// Of a connection.
pub const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;
/// What waits on a stream for an end that does not read.
pub const SEND_BUFFER_BYTES: usize = 64 * 1024;
/// At once, of a client and so of the connections that are opened to programs for it.
pub const STREAMS: u32 = 100;
/// That the other end is to blame for.
pub const MAX_RESETS: usize = 64;
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Serve a client's connection to its end.
pub async fn serve<S>(client: Client, stream: S) -> Result<(), h2::Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let most = u32::try_from(client.settings.max_header_bytes).unwrap_or(u32::MAX);
    let mut builder = Builder::new();
    builder
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(most)
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buffer_size(SEND_BUFFER_BYTES)
        .max_pending_accept_reset_streams(MAX_RESETS)
        .max_local_error_reset_streams(Some(MAX_RESETS))
        .enable_connect_protocol();
    let greeting = timeout(client.settings.header_timeout, builder.handshake(stream));
    let Ok(connection) = greeting.await else { return Ok(()) };
    let mut connection = connection?;
    let client = Arc::new(client);
    let ongoing = Arc::new(());
    let mut gone = pin!(silent(connection.ping_pong(), &ongoing));
    loop {
        tokio::select! {
            accepted = connection.accept() => {
                let Some(accepted) = accepted else { return Ok(()) };
                let (request, respond) = accepted?;
                let (client, ongoing) = (Arc::clone(&client), Arc::clone(&ongoing));
                tokio::spawn(async move {
                    one(client, request, respond).await;
                    drop(ongoing);
                });
            }
            () = &mut gone => return Ok(()),
        }
    }
}

/// Returns when the other end no longer answers while it has requests. Without any it is not asked: a connection on which
/// nothing moves is to end.
async fn silent(pings: Option<PingPong>, ongoing: &Arc<()>) {
    let Some(mut pings) = pings else {
        return std::future::pending().await;
    };
    loop {
        sleep(PING_EVERY).await;
        // Each request has another one.
        let idle = Arc::strong_count(ongoing) == 1;
        if !idle && !matches!(timeout(PING_TIMEOUT, pings.ping(h2::Ping::opaque())).await, Ok(Ok(_))) {
            return;
        }
    }
}

/// Answer one request; not for longer than the client wants it.
async fn one(client: Arc<Client>, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let request = request.map(|stream| Received::new(stream).boxed_unsync());
    let (informed, mut before) = mpsc::unbounded_channel();
    let answer = {
        let mut answer = pin!(proxy::answer(client, request, Informed::Stream(informed)));
        loop {
            tokio::select! {
                biased;
                _ = poll_fn(|context| respond.poll_reset(context)) => return,
                Some(informational) = before.recv() => {
                    let _ = respond.send_informational(informational);
                }
                answer = &mut answer => break answer,
            }
        }
    };
    while let Ok(informational) = before.try_recv() {
        let _ = respond.send_informational(informational);
    }
    match answer {
        Ok(response) => {
            let (parts, body) = response.into_parts();
            let empty = body.is_end_stream();
            if let Ok(stream) = respond.send_response(Response::from_parts(parts, ()), empty)
                && !empty
            {
                // What broke off, the client learns by the reset.
                let _ = send(stream, body).await;
            }
        }
        Err(error) => respond.send_reset(reason(&error)),
    }
}

/// Send a body as fast as the other end takes it, until it wants no more. The error is that of the body.
pub async fn send(mut stream: SendStream<Bytes>, body: Body) -> Result<(), BodyError> {
    let mut body = pin!(body);
    loop {
        // Without room nothing is taken from who sends, so that it waits as well.
        stream.reserve_capacity(1);
        if !room(&mut stream).await {
            return Ok(());
        }
        let frame = tokio::select! {
            biased;
            _ = poll_fn(|context| stream.poll_reset(context)) => return Ok(()),
            frame = body.frame() => frame,
        };
        let frame = match frame {
            None => {
                let _ = stream.send_data(Bytes::new(), true);
                return Ok(());
            }
            Some(Err(error)) => {
                stream.send_reset(reason(error.as_ref()));
                return Err(error);
            }
            Some(Ok(frame)) => frame,
        };
        match frame.into_data() {
            Ok(data) => {
                if !send_all(&mut stream, data).await {
                    return Ok(());
                }
            }
            Err(frame) => {
                let Ok(trailers) = frame.into_trailers() else { continue };
                let _ = stream.send_trailers(trailers);
                return Ok(());
            }
        }
    }
}

async fn send_all(stream: &mut SendStream<Bytes>, mut data: Bytes) -> bool {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        if !room(stream).await {
            return false;
        }
        let piece = data.split_to(stream.capacity().min(data.len()));
        if stream.send_data(piece, false).is_err() {
            return false;
        }
    }
    true
}

/// Wait until something can be sent. False when the other end wants no more.
async fn room(stream: &mut SendStream<Bytes>) -> bool {
    poll_fn(|context| {
        if stream.poll_reset(context).is_ready() {
            return Poll::Ready(false);
        }
        while stream.capacity() == 0 {
            if !matches!(ready!(stream.poll_capacity(context)), Some(Ok(_))) {
                return Poll::Ready(false);
            }
        }
        Poll::Ready(true)
    })
    .await
}

/// Why a stream is reset on one side after this happened on the other.
pub fn reason(error: &(dyn Error + 'static)) -> Reason {
    let mut cause = Some(error);
    while let Some(found) = cause {
        if let Some(found) = found.downcast_ref::<h2::Error>() {
            return found.reason().unwrap_or(Reason::INTERNAL_ERROR);
        }
        cause = found.source();
    }
    Reason::INTERNAL_ERROR
}

/// A body that comes on a stream. What is taken from it may be sent again.
pub struct Received {
    stream: RecvStream,
    data_ended: bool,
}

impl Received {
    /// All that comes on it.
    pub fn new(stream: RecvStream) -> Self {
        Self {
            stream,
            data_ended: false,
        }
    }
}

impl HttpBody for Received {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if !self.data_ended {
            match ready!(self.stream.poll_data(context)) {
                Some(Ok(data)) => {
                    // A stream that was reset has no window.
                    let _ = self.stream.flow_control().release_capacity(data.len());
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                // Also one that was taken back, which must not look like one that is whole.
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                None => self.data_ended = true,
            }
        }
        match ready!(self.stream.poll_trailers(context)) {
            Ok(Some(trailers)) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
            Ok(None) => Poll::Ready(None),
            Err(error) => Poll::Ready(Some(Err(error.into()))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.stream.is_end_stream() {
            SizeHint::with_exact(0)
        } else {
            SizeHint::default()
        }
    }
}

//! Answers before the answer (1xx): what of a program's goes on to the client, and what waits for one.
//!
//! hyper has none for its clients. On a connection of HTTP/1.1 they are written here, when nothing of hyper's waits to be.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HeaderMap};
use http::{Response, StatusCode};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::io::AsyncWrite;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::sleep;

use super::headers;
use super::proxy::{Body, BodyError};
use crate::locks::lock;

/// Of one request. A program that says more is not one that answers.
pub const MOST: usize = 16;
/// Programs that know nothing of `Expect` are sent the body all the same.
const PATIENCE: Duration = Duration::from_secs(1);

/// Where those of a request go.
#[derive(Clone)]
pub enum Informed {
    /// To a client of HTTP/1.0, which has none.
    Nobody,
    /// Between what its server writes.
    Connection(Arc<Interim>),
    /// To the task that has the stream.
    Stream(mpsc::UnboundedSender<Response<()>>),
}

impl Informed {
    /// Pass one on. Returns when it is written.
    pub async fn tell(&self, mut answer: Response<()>) {
        let status = answer.status();
        // 100 is the business of whoever expects it; 101 is none of these.
        if status.as_u16() <= StatusCode::SWITCHING_PROTOCOLS.as_u16() {
            return;
        }
        headers::response(answer.headers_mut());
        answer.headers_mut().remove(CONTENT_LENGTH);
        match self {
            Self::Nobody => {}
            Self::Connection(interim) => interim.write(&head(status, answer.headers())).await,
            Self::Stream(stream) => {
                let _ = stream.send(answer);
            }
        }
    }

    /// The client is to send its body. hyper says so itself.
    fn proceed(&self) {
        if let Self::Stream(stream) = self {
            let mut answer = Response::new(());
            *answer.status_mut() = StatusCode::CONTINUE;
            let _ = stream.send(answer);
        }
    }
}

fn head(status: StatusCode, headers: &HeaderMap) -> Vec<u8> {
    let reason = status.canonical_reason().unwrap_or("");
    let mut bytes = format!("HTTP/1.1 {} {reason}\r\n", status.as_str()).into_bytes();
    for (name, value) in headers {
        bytes.extend_from_slice(name.as_str().as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"\r\n");
    bytes
}

/// What is to be written on a connection before the answer that its server is waiting for.
#[derive(Default)]
pub struct Interim {
    waiting: Mutex<Waiting>,
    written: Notify,
}

#[derive(Default)]
struct Waiting {
    bytes: Vec<u8>,
    begun: bool,
}

/// Takes back what nobody waits for any more: after the answer it would be another one's. What is half written is written.
struct Unsaid<'a>(&'a Interim);

impl Drop for Unsaid<'_> {
    fn drop(&mut self) {
        let mut waiting = lock(&self.0.waiting);
        if !waiting.begun {
            waiting.bytes.clear();
        }
    }
}

impl Interim {
    async fn write(&self, bytes: &[u8]) {
        lock(&self.waiting).bytes.extend_from_slice(bytes);
        let _unsaid = Unsaid(self);
        while !lock(&self.waiting).bytes.is_empty() {
            self.written.notified().await;
        }
    }

    /// Whether nothing else may be written now.
    pub fn has_begun(&self) -> bool {
        lock(&self.waiting).begun
    }

    /// Write it, at a moment when nothing else is half written.
    pub fn poll_write<S: AsyncWrite + Unpin>(&self, stream: &mut S, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut waiting = lock(&self.waiting);
        while !waiting.bytes.is_empty() {
            let count = ready!(Pin::new(&mut *stream).poll_write(context, &waiting.bytes))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            waiting.bytes.drain(..count);
            waiting.begun = !waiting.bytes.is_empty();
            if !waiting.begun {
                self.written.notify_one();
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Asked,
    Wanted,
    /// There is an answer, and there may be no need for the body.
    Answered,
}

/// Has the body of a request that expects 100 wait. When it is gone, what still waits breaks off.
pub struct Gate(watch::Sender<Stage>);

impl Gate {
    /// `body`, and what opens it.
    pub fn new(body: Body, client: Informed) -> (Self, Held) {
        let (stage, mut watched) = watch::channel(Stage::Asked);
        let opened = async move {
            let known = watched.wait_for(|stage| *stage != Stage::Asked);
            let late = tokio::select! {
                known = known => known.map(|stage| *stage),
                () = sleep(PATIENCE) => Ok(Stage::Wanted),
            };
            match late {
                Ok(Stage::Wanted) => client.proceed(),
                Ok(_) => {
                    let _ = watched.wait_for(|_| false).await;
                    return false;
                }
                Err(_) => return false,
            }
            true
        };
        let held = Held {
            inner: body,
            opened: Some(Box::pin(opened)),
        };
        (Self(stage), held)
    }

    /// The program wants the body.
    pub fn open(&self) {
        self.0.send_replace(Stage::Wanted);
    }

    /// The program has answered.
    pub fn answered(&self) {
        self.0.send_if_modified(|stage| {
            let changed = *stage == Stage::Asked;
            if changed {
                *stage = Stage::Answered;
            }
            changed
        });
    }
}

/// A body that waits.
pub struct Held {
    inner: Body,
    opened: Option<Pin<Box<dyn Future<Output = bool> + Send>>>,
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(opened) = &mut self.opened {
            if !ready!(opened.as_mut().poll(context)) {
                return Poll::Ready(Some(Err("the program answered without it".into())));
            }
            self.opened = None;
        }
        Pin::new(&mut self.inner).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    #[tokio::test]
    async fn what_is_half_written_is_finished_and_what_is_not_begun_is_taken_back() {
        let (mut near, mut far) = tokio::io::duplex(4);
        let interim = Interim::default();
        let mut context = Context::from_waker(std::task::Waker::noop());
        {
            let mut given_up = std::pin::pin!(interim.write(b"never"));
            assert!(given_up.as_mut().poll(&mut context).is_pending());
        }
        assert!(interim.poll_write(&mut near, &mut context).is_ready());
        {
            let mut given_up = std::pin::pin!(interim.write(b"half written"));
            assert!(given_up.as_mut().poll(&mut context).is_pending());
            assert!(interim.poll_write(&mut near, &mut context).is_pending());
            assert!(interim.has_begun());
        }
        let mut got = Vec::new();
        while interim.has_begun() {
            far.read_buf(&mut got).await.unwrap();
            let _ = interim.poll_write(&mut near, &mut context);
        }
        drop(near);
        far.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"half written");
    }
}

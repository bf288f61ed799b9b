//! Bodies of an exchange, which end with it, and what is alive as long as they are.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;
use hutch_policy::{Defence, Reason};

use super::Log;
use crate::body::{Body, BodyError, Scrubbed, Upload};
use crate::flow::{Kill, Ongoing};
use crate::locks::lock;
use crate::sandbox::Sandbox;
use crate::scrub::Needles;
use crate::upstream::{self, Key};

/// A body without what `needles` find.
pub(super) fn searched<B>(body: B, needles: &Arc<Needles>, log: Arc<std::sync::Mutex<Log>>) -> Body
where
    B: HttpBody<Data = Bytes, Error = BodyError> + Send + Unpin + 'static,
{
    if !Defence::ScrubBodies.holds() {
        return body.boxed_unsync();
    }
    let mut before = 0;
    Scrubbed::new(body, needles, move |scrubber| {
        let hits = scrubber.total();
        lock(&log).reflected(hits - before);
        before = hits;
    })
    .boxed_unsync()
}

/// A connection that goes back to the pool when its exchange is over.
pub(super) struct Returning {
    pub(super) key: Key,
    pub(super) sender: hyper::client::conn::http1::SendRequest<Body>,
    pub(super) address: SocketAddr,
    pub(super) epoch: u64,
    pub(super) sandbox: Arc<Sandbox>,
}

type Waiting = Pin<Box<dyn Future<Output = Reason> + Send>>;

/// Whatever ends an exchange from outside.
pub(super) struct Kills {
    waiting: Waiting,
}

impl Kills {
    pub(super) fn new(flow: Arc<crate::flow::Flow>, exchange: Arc<Kill>) -> Self {
        let waiting = Box::pin(async move {
            tokio::select! {
                reason = flow.kill.wait() => reason,
                reason = exchange.wait() => reason,
            }
        });
        Self { waiting }
    }

    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Option<Reason> {
        match self.waiting.as_mut().poll(context) {
            Poll::Ready(reason) => Some(reason),
            Poll::Pending => None,
        }
    }
}

/// The body of a request, which ends with its exchange.
pub(super) struct Until<B> {
    pub(super) inner: B,
    pub(super) kills: Kills,
}

impl<B> HttpBody for Until<B>
where
    B: HttpBody<Data = Bytes, Error = BodyError> + Unpin,
{
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(reason) = self.kills.poll(context) {
            if !Defence::WholeBodies.holds() {
                return Poll::Ready(None);
            }
            return Poll::Ready(Some(Err(BodyError::Ended(reason))));
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

/// The body of a response, which holds all that must live as long.
pub(super) struct Guarded<B> {
    pub(super) inner: B,
    pub(super) kills: Kills,
    pub(super) connection: Option<Returning>,
    pub(super) upload: Arc<Upload>,
    pub(super) _ongoing: Ongoing,
    pub(super) _log: Arc<std::sync::Mutex<Log>>,
}

impl<B> Guarded<B> {
    /// The response was read to its end.
    pub(super) fn finished(&mut self) {
        if let Some(back) = self.connection.take()
            && self.upload.is_sent()
        {
            let pool = if Defence::OwnPool.holds() {
                &back.sandbox.pool
            } else {
                upstream::everybodys()
            };
            pool.give_back(back.key, back.sender, back.address, back.epoch);
        }
    }
}

impl<B> HttpBody for Guarded<B>
where
    B: HttpBody<Data = Bytes, Error = BodyError> + Unpin,
{
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(reason) = self.kills.poll(context) {
            return Poll::Ready(Some(Err(BodyError::Ended(reason))));
        }
        let frame = std::task::ready!(Pin::new(&mut self.inner).poll_frame(context));
        if frame.is_none() || self.inner.is_end_stream() {
            self.finished();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

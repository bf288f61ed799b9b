//! The two ends of a WebSocket.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf, BytesMut};
use hutch_policy::Defence;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, ReadHalf, WriteHalf};

use crate::scrub::{Needles, Scrubber};

/// The guest's end: what was read ahead, then the connection.
pub struct Joined<'a, S> {
    reader: &'a mut ReadHalf<S>,
    writer: &'a mut WriteHalf<S>,
    ahead: &'a mut BytesMut,
}

impl<'a, S> Joined<'a, S> {
    /// Both halves as one again.
    pub fn new(reader: &'a mut ReadHalf<S>, writer: &'a mut WriteHalf<S>, ahead: &'a mut BytesMut) -> Self {
        Self { reader, writer, ahead }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Joined<'_, S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.ahead.is_empty() {
            let count = self.ahead.len().min(buffer.remaining());
            buffer.put_slice(&self.ahead[..count]);
            self.ahead.advance(count);
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut *self.reader).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Joined<'_, S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.writer).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.writer).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.writer).poll_shutdown(context)
    }
}

/// The server's end: what comes from it is searched. Frames from a server are not masked, so a secret in one is there as it
/// is, and masking it changes no length.
pub struct Masked<S, F> {
    inner: S,
    scrubber: Option<Scrubber>,
    found: F,
    before: u64,
    ready: BytesMut,
    ended: bool,
}

impl<S, F: FnMut(u64)> Masked<S, F> {
    /// `inner`, searched. `found` is told of secrets, how many more there were.
    pub fn new(inner: S, needles: Option<Arc<Needles>>, found: F) -> Self {
        Self {
            inner,
            scrubber: needles
                .filter(|_| Defence::ScrubTunnels.holds())
                .map(|needles| needles.scrubber()),
            found,
            before: 0,
            ready: BytesMut::new(),
            ended: false,
        }
    }
}

impl<S: AsyncRead + Unpin, F: FnMut(u64) + Unpin> AsyncRead for Masked<S, F> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let Some(scrubber) = &mut this.scrubber else {
            return Pin::new(&mut this.inner).poll_read(context, buffer);
        };
        loop {
            if !this.ready.is_empty() {
                let count = this.ready.len().min(buffer.remaining());
                buffer.put_slice(&this.ready[..count]);
                this.ready.advance(count);
                return Poll::Ready(Ok(()));
            }
            if this.ended {
                return Poll::Ready(Ok(()));
            }
            let mut bytes = [0; 8192];
            let mut piece = ReadBuf::new(&mut bytes);
            std::task::ready!(Pin::new(&mut this.inner).poll_read(context, &mut piece))?;
            if piece.filled().is_empty() {
                scrubber.finish(&mut this.ready);
                this.ended = true;
            } else {
                scrubber.push(piece.filled(), &mut this.ready);
            }
            let hits = scrubber.total();
            if hits > this.before {
                (this.found)(hits - this.before);
                this.before = hits;
            }
        }
    }
}

impl<S: AsyncWrite + Unpin, F: Unpin> AsyncWrite for Masked<S, F> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

//! A client's connection as HTTP reads it: what was read ahead, when something last moved, and a look at lengths.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::counts::Counts;
use super::informational::Interim;

/// When something last moved on a connection.
pub struct Movement {
    since: Instant,
    last_ms: AtomicU64,
}

impl Default for Movement {
    fn default() -> Self {
        Self {
            since: Instant::now(),
            last_ms: AtomicU64::new(0),
        }
    }
}

impl Movement {
    fn now(&self) {
        self.last_ms
            .store(self.since.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// Returns when nothing has moved for some time.
    pub async fn ceased(&self, patience: Duration) {
        loop {
            let due = self.since + Duration::from_millis(self.last_ms.load(Ordering::Relaxed)) + patience;
            if due <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(due).await;
        }
    }
}

/// A stream after something was read from it.
pub struct Watched<S> {
    inner: S,
    ahead: Bytes,
    movement: Arc<Movement>,
    counts: Arc<Counts>,
    first: Option<(Framing, Arc<Interim>)>,
}

impl<S> Watched<S> {
    /// `inner` after `ahead` was read from it; with what is done on a connection of HTTP/1.1.
    pub fn new(
        inner: S,
        ahead: Bytes,
        movement: Arc<Movement>,
        counts: Arc<Counts>,
        mut first: Option<(Framing, Arc<Interim>)>,
    ) -> Self {
        counts.received(ahead.len());
        if let Some((framing, _)) = &mut first {
            framing.push(&ahead);
        }
        Self {
            inner,
            ahead,
            movement,
            counts,
            first,
        }
    }

    fn moved<T>(&self, done: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if done.is_ready() {
            self.movement.now();
        }
        done
    }

    /// Finish what was begun between messages.
    fn poll_between(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>>
    where
        S: AsyncWrite + Unpin,
    {
        match &self.first {
            Some((_, interim)) if interim.has_begun() => interim.poll_write(&mut self.inner, context),
            _ => Poll::Ready(Ok(())),
        }
    }

    fn sent(&self, done: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(count)) = done {
            self.counts.sent(count);
        }
        self.moved(done)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.ahead.is_empty() {
            let count = this.ahead.len().min(buffer.remaining());
            buffer.put_slice(&this.ahead[..count]);
            this.ahead.advance(count);
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        let done = Pin::new(&mut this.inner).poll_read(context, buffer);
        if let Some((framing, _)) = &mut this.first {
            framing.push(&buffer.filled()[before..]);
        }
        this.counts.received(buffer.filled().len() - before);
        self.moved(done)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        std::task::ready!(self.poll_between(context))?;
        let done = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.sent(done)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        std::task::ready!(self.poll_between(context))?;
        let done = Pin::new(&mut self.inner).poll_write_vectored(context, pieces);
        self.sent(done)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Called when all that HTTP had to write is written.
        let this = &mut *self;
        if let Some((_, interim)) = &this.first {
            std::task::ready!(interim.poll_write(&mut this.inner, context))?;
        }
        Pin::new(&mut this.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

const MAX_LINE_BYTES: usize = 64;

/// Follows requests of HTTP/1.1 on a connection, and tells when one has both a length and an encoding: the server that reads them
/// drops the length, and what stands in front of us may have gone by it. It ends with the first request that is chunked: the
/// connection does as well.
pub struct Framing {
    state: State,
    line: Vec<u8>,
    first: bool,
    encoded: bool,
    length: Option<u64>,
    conflict: Arc<AtomicBool>,
}

enum State {
    Head,
    Body(u64),
    Over,
}

impl Framing {
    /// `conflict` is set when there is one.
    pub fn new(conflict: Arc<AtomicBool>) -> Self {
        Self {
            state: State::Head,
            line: Vec::new(),
            first: true,
            encoded: false,
            length: None,
            conflict,
        }
    }

    fn push(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match &mut self.state {
                State::Over => return,
                State::Body(left) => {
                    let count = (*left).min(bytes.len() as u64);
                    *left -= count;
                    bytes = &bytes[count as usize..];
                    if *left == 0 {
                        self.state = State::Head;
                    }
                }
                State::Head => {
                    let (piece, ended) = match memchr::memchr(b'\n', bytes) {
                        Some(at) => (&bytes[..at], true),
                        None => (bytes, false),
                    };
                    // The beginning is enough to know a header and a length by.
                    let room = MAX_LINE_BYTES.saturating_sub(self.line.len());
                    self.line.extend_from_slice(&piece[..piece.len().min(room)]);
                    bytes = &bytes[piece.len() + usize::from(ended)..];
                    if ended {
                        self.line_ended();
                    }
                }
            }
        }
    }

    fn line_ended(&mut self) {
        let line = std::mem::take(&mut self.line);
        let line = line.strip_suffix(b"\r").unwrap_or(&line);
        if line.is_empty() {
            if self.first {
                // Before a request line there may be empty ones.
                return;
            }
            self.state = match (self.encoded, self.length) {
                (true, Some(_)) => {
                    self.conflict.store(true, Ordering::Relaxed);
                    State::Over
                }
                (true, None) => State::Over,
                (false, Some(0) | None) => State::Head,
                (false, Some(length)) => State::Body(length),
            };
            (self.first, self.encoded, self.length) = (true, false, None);
            return;
        }
        if self.first {
            self.first = false;
            return;
        }
        let Some(colon) = memchr::memchr(b':', line) else {
            return;
        };
        let name = &line[..colon];
        if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.encoded = true;
        } else if name.eq_ignore_ascii_case(b"content-length") {
            let value = std::str::from_utf8(line[colon + 1..].trim_ascii()).ok();
            // What is no number is refused by the server.
            self.length = Some(value.and_then(|value| value.parse().ok()).unwrap_or(0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conflicts(bytes: &[u8], step: usize) -> bool {
        let conflict = Arc::new(AtomicBool::new(false));
        let mut framing = Framing::new(Arc::clone(&conflict));
        for piece in bytes.chunks(step) {
            framing.push(piece);
        }
        conflict.load(Ordering::Relaxed)
    }

    #[test]
    fn two_lengths_are_a_conflict_wherever_they_are_cut() {
        let first = b"POST / HTTP/1.1\r\nHost: a\r\ncontent-length: 5\r\n\r\nabc\r\nGET / HTTP/1.1\r\n\r\n".as_slice();
        let second =
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nHost: a\r\nContent-Length: 3\r\n\r\n".as_slice();
        let both = [first, second].concat();
        for step in [1, 2, 7, 1000] {
            assert!(!conflicts(first, step));
            assert!(conflicts(second, step));
            assert!(conflicts(&both, step));
            assert!(conflicts(
                b"P / HTTP/1.1\nContent-Length: 1\nTransfer-Encoding: chunked\n\n",
                step
            ));
        }
    }

    #[test]
    fn what_a_body_says_is_no_header() {
        let inner = b"\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n";
        let request = [
            format!("POST / HTTP/1.1\r\nContent-Length: {}\r\n\r\n", inner.len()).as_bytes(),
            inner,
        ]
        .concat();
        assert!(!conflicts(&request, 3));
    }
}

//! Bodies of requests and responses on their way through the gateway.

use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hutch_policy::{Defence, Reason};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout_at};

use crate::cpu::CpuTime;
use crate::flow::Kill;
use crate::locks::lock;
use crate::relay::{Meter, Way};
use crate::scrub::{Needles, Scrubber};

/// Why a body ended before its end.
#[derive(Debug)]
pub enum BodyError {
    /// The gateway ended it.
    Ended(Reason),
    /// The other side broke off or broke HTTP.
    Broken(Option<hyper::Error>),
}

impl std::fmt::Display for BodyError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ended(reason) => write!(f, "ended: {reason}"),
            Self::Broken(Some(error)) => write!(f, "broken: {error}"),
            Self::Broken(None) => f.write_str("broken"),
        }
    }
}

impl std::error::Error for BodyError {}

impl From<hyper::Error> for BodyError {
    fn from(error: hyper::Error) -> Self {
        Self::Broken(Some(error))
    }
}

/// Any body.
pub type Body = UnsyncBoxBody<Bytes, BodyError>;

/// No body.
pub fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// A body that is at hand.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A body that comes piece by piece from whoever reads the client. A frame of trailers, whatever is in it, is its end.
pub struct Incoming {
    pieces: mpsc::Receiver<Result<Frame<Bytes>, BodyError>>,
    left: Option<u64>,
    ended: bool,
}

impl Incoming {
    /// A body of `length` bytes, or of unknown length, and its other end.
    pub fn new(length: Option<u64>) -> (mpsc::Sender<Result<Frame<Bytes>, BodyError>>, Self) {
        let (sender, pieces) = mpsc::channel(2);
        (
            sender,
            Self {
                pieces,
                left: length,
                ended: false,
            },
        )
    }
}

impl HttpBody for Incoming {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.is_end_stream() {
            return Poll::Ready(None);
        }
        let piece = std::task::ready!(self.pieces.poll_recv(context));
        if let (Some(Ok(frame)), Some(left)) = (&piece, &mut self.left)
            && let Some(data) = frame.data_ref()
        {
            *left = left.saturating_sub(data.len() as u64);
        }
        Poll::Ready(match piece {
            Some(Ok(frame)) if frame.is_trailers() => {
                self.ended = true;
                None
            }
            // Its other end went away in the middle, because the flow was cut or the client left: the request must not
            // look complete to the server.
            None if Defence::WholeBodies.holds() => Some(Err(BodyError::Broken(None))),
            Some(Err(_)) if !Defence::WholeBodies.holds() => None,
            piece => piece,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.left == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// A body without trailers: nothing that a rule looked at, or sets, may come after it.
pub struct WithoutTrailers<B>(pub B);

impl<B> HttpBody for WithoutTrailers<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<BodyError>,
{
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        loop {
            return Poll::Ready(match std::task::ready!(Pin::new(&mut self.0).poll_frame(context)) {
                Some(Ok(frame)) if frame.is_trailers() && Defence::Trailers.holds() => continue,
                Some(frame) => Some(frame.map_err(Into::into)),
                None => None,
            });
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

/// How far a request's body is.
#[derive(Debug)]
pub struct Upload {
    sent: AtomicBool,
    moved: Mutex<Instant>,
}

impl Upload {
    /// Of a body that is not `sent` yet, or was never there.
    pub fn new(sent: bool) -> Self {
        Self {
            sent: AtomicBool::new(sent),
            moved: Mutex::new(Instant::now()),
        }
    }

    /// Whether all of it was taken.
    pub fn is_sent(&self) -> bool {
        self.sent.load(Ordering::Acquire)
    }

    /// A piece was taken, or the first one may be now.
    pub fn moves(&self) {
        *lock(&self.moved) = Instant::now();
    }

    fn ends(&self) {
        self.moves();
        self.sent.store(true, Ordering::Release);
    }

    /// Wait for an answer, no longer than `patience` since a piece was taken.
    pub async fn answered<F: Future>(&self, answer: F, patience: Duration) -> Result<F::Output, Elapsed> {
        let mut answer = pin!(answer);
        loop {
            let moved = *lock(&self.moved);
            match timeout_at(moved + patience, &mut answer).await {
                Err(_) if *lock(&self.moved) > moved => {}
                outcome => return outcome,
            }
        }
    }
}

/// Tells how far a request's body is.
pub struct Noted<B> {
    /// The body.
    pub inner: B,
    /// Told of each piece and of the end.
    pub upload: Arc<Upload>,
}

impl<B> HttpBody for Noted<B>
where
    B: HttpBody<Data = Bytes, Error = BodyError> + Unpin,
{
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = std::task::ready!(Pin::new(&mut self.inner).poll_frame(context));
        match &frame {
            Some(Err(_)) => {}
            Some(Ok(_)) if !self.inner.is_end_stream() => self.upload.moves(),
            Some(Ok(_)) | None => self.upload.ends(),
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

/// Counts a body, and ends it at a limit.
pub struct Counted<B> {
    inner: B,
    meter: Meter,
    way: Way,
    left: u64,
}

impl<B> Counted<B> {
    /// `inner`, counted.
    pub fn new(inner: B, meter: Meter, way: Way) -> Self {
        Self {
            inner,
            meter,
            way,
            left: u64::MAX,
        }
    }

    /// The same, ended where there are more than `most` bytes.
    #[must_use]
    pub fn at_most(mut self, most: u64) -> Self {
        self.left = most;
        self
    }

    fn pass(&mut self, count: usize) -> Result<(), BodyError> {
        let Some(left) = self.left.checked_sub(count as u64) else {
            self.meter.exceed(Reason::Limit);
            return Err(BodyError::Ended(Reason::Limit));
        };
        self.left = left;
        if self.meter.count(self.way, count) {
            Ok(())
        } else {
            Err(BodyError::Ended(Reason::ByteLimit))
        }
    }
}

impl<B> HttpBody for Counted<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<BodyError>,
{
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = std::task::ready!(Pin::new(&mut self.inner).poll_frame(context));
        Poll::Ready(match frame {
            Some(Ok(frame)) => {
                let count = frame.data_ref().map_or(0, Bytes::len);
                Some(self.pass(count).map(|()| frame))
            }
            Some(Err(_)) if !Defence::WholeAnswers.holds() => None,
            Some(Err(error)) => Some(Err(error.into())),
            None => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// A body that ends with its exchange even if nobody asks for more of it: whoever writes it waits for its client to read.
pub struct Severed {
    inner: Arc<Mutex<Option<Body>>>,
    ending: AbortHandle,
}

impl Severed {
    /// `inner`, until `kill`.
    pub fn new(inner: Body, kill: Arc<Kill>, cpu: &CpuTime) -> Self {
        let inner = Arc::new(Mutex::new(Some(inner)));
        let held = Arc::clone(&inner);
        let ending = cpu.spawn(async move {
            kill.wait().await;
            let cut = lock(&held).take();
            drop(cut);
        });
        Self {
            inner,
            ending: ending.abort_handle(),
        }
    }
}

impl Drop for Severed {
    fn drop(&mut self) {
        self.ending.abort();
        // The task is gone only later, and the record of the exchange is written with its body's end.
        let done = lock(&self.inner).take();
        drop(done);
    }
}

impl HttpBody for Severed {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *lock(&self.inner) {
            Some(inner) => Pin::new(inner).poll_frame(context),
            None => Poll::Ready(Some(Err(BodyError::Ended(Reason::Revoked)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        lock(&self.inner).as_ref().is_some_and(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        lock(&self.inner)
            .as_ref()
            .map_or_else(SizeHint::default, HttpBody::size_hint)
    }
}

/// Masks secrets in a body; its length stays.
pub struct Scrubbed<B, F> {
    inner: B,
    scrubber: Scrubber,
    found: F,
    finished: bool,
    trailers: Option<HeaderMap>,
}

impl<B, F: FnMut(&Scrubber)> Scrubbed<B, F> {
    /// `inner` without what `needles` find. `found` is called whenever something was masked, and at the end.
    pub fn new(inner: B, needles: &Arc<Needles>, found: F) -> Self {
        Self {
            inner,
            scrubber: needles.scrubber(),
            found,
            finished: false,
            trailers: None,
        }
    }
}

impl<B, F> HttpBody for Scrubbed<B, F>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<BodyError>,
    F: FnMut(&Scrubber) + Unpin,
{
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        loop {
            if let Some(trailers) = this.trailers.take() {
                return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
            }
            if this.finished {
                return Poll::Ready(None);
            }
            let mut out = BytesMut::new();
            match std::task::ready!(Pin::new(&mut this.inner).poll_frame(context)) {
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.scrubber.push(&data, &mut out),
                    Err(frame) => {
                        this.scrubber.finish(&mut out);
                        this.finished = true;
                        this.trailers = frame.into_trailers().ok();
                        if Defence::ScrubTrailers.holds() {
                            let found = this.trailers.take();
                            this.trailers = found.map(|trailers| scrub_headers(trailers, &mut this.scrubber));
                        }
                    }
                },
                None => {
                    this.scrubber.finish(&mut out);
                    this.finished = true;
                }
            }
            (this.found)(&this.scrubber);
            if !out.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(out.freeze()))));
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Fields of a response's head or trailer without secrets. A field whose name has one in it, in whatever case, is dropped.
pub fn scrub_headers(headers: HeaderMap, scrubber: &mut Scrubber) -> HeaderMap {
    let mut clean = HeaderMap::with_capacity(headers.len());
    let mut last = None;
    let mut is_secret = false;
    for (name, value) in headers {
        if let Some(name) = name {
            is_secret = scrubber.scrub_value(name.as_str().as_bytes()).is_some();
            last = Some(name);
        }
        let masked = scrubber.scrub_value(value.as_bytes());
        let value = masked
            .and_then(|bytes| http::HeaderValue::from_bytes(&bytes).ok())
            .unwrap_or(value);
        if let Some(name) = last.as_ref().filter(|_| !is_secret) {
            clean.append(name.clone(), value);
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;

    async fn collected(length: Option<u64>, frames: Vec<Frame<Bytes>>) -> Result<Bytes, BodyError> {
        let (sender, body) = Incoming::new(length);
        let sending = async move {
            for frame in frames {
                let _ = sender.send(Ok(frame)).await;
            }
        };
        let (collected, ()) = tokio::join!(body.collect(), sending);
        collected.map(http_body_util::Collected::to_bytes)
    }

    #[tokio::test]
    async fn a_body_ends_only_when_its_end_was_said() {
        let data = || Frame::data(Bytes::from_static(b"half"));
        let end = || Frame::trailers(HeaderMap::new());
        assert_eq!(collected(None, vec![data(), end()]).await.unwrap(), "half");
        assert_eq!(collected(None, vec![end()]).await.unwrap(), "");
        assert_eq!(collected(Some(4), vec![data()]).await.unwrap(), "half");
        assert!(collected(None, vec![data()]).await.is_err());
        assert!(collected(None, vec![]).await.is_err());
        assert!(collected(Some(8), vec![data()]).await.is_err());
    }

    const PATIENCE: Duration = Duration::from_secs(360);

    #[tokio::test(start_paused = true)]
    async fn an_answer_has_its_time_from_the_last_piece_on() {
        let upload = Upload::new(false);
        let sending = async {
            for _ in 0..10 {
                sleep(PATIENCE / 2).await;
                upload.moves();
            }
            upload.ends();
            sleep(PATIENCE / 2).await;
        };
        assert!(upload.answered(sending, PATIENCE).await.is_ok());
        assert!(upload.is_sent());
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_does_not_come_is_not_waited_for_longer() {
        let upload = Upload::new(false);
        let began = Instant::now();
        let sending = async {
            sleep(PATIENCE / 2).await;
            upload.moves();
            std::future::pending::<()>().await;
        };
        assert!(upload.answered(sending, PATIENCE).await.is_err());
        let most = PATIENCE * 3 / 2;
        assert!((most..most + Duration::from_secs(1)).contains(&began.elapsed()));
    }

    #[tokio::test]
    async fn a_body_that_nobody_reads_ends_with_its_exchange() {
        let (pieces, body) = Incoming::new(None);
        let kill = Arc::<Kill>::default();
        let mut severed = Severed::new(body.boxed_unsync(), Arc::clone(&kill), &CpuTime::default());
        pieces.send(Ok(Frame::data(Bytes::from_static(b"some")))).await.unwrap();
        assert!(matches!(severed.frame().await, Some(Ok(_))));
        assert!(!pieces.is_closed());
        kill.now(Reason::RuleChanged);
        tokio::time::timeout(Duration::from_secs(10), pieces.closed())
            .await
            .expect("its source is still open");
        assert!(matches!(severed.frame().await, Some(Err(BodyError::Ended(_)))));
        assert!(!severed.is_end_stream());
    }

    #[tokio::test]
    async fn a_body_that_is_done_with_is_gone_at_once() {
        let (pieces, body) = Incoming::new(None);
        let severed = Severed::new(body.boxed_unsync(), Arc::default(), &CpuTime::default());
        drop(severed);
        // Before any other task had its turn.
        assert!(pieces.is_closed());
    }

    #[tokio::test]
    async fn trailers_are_left_out() {
        let (sender, body) = mpsc::channel(4);
        let mut trailers = HeaderMap::new();
        trailers.insert("authorization", http::HeaderValue::from_static("mine"));
        for frame in [Frame::data(Bytes::from_static(b"all")), Frame::trailers(trailers)] {
            sender.send(Ok(frame)).await.unwrap();
        }
        drop(sender);
        let body = Incoming {
            pieces: body,
            left: None,
            ended: false,
        };
        let collected = WithoutTrailers(body).collect().await.unwrap();
        assert!(collected.trailers().is_none());
    }
}

//! Compressed responses that have to be searched: they are decoded, and go on as they are then.
//!
//! Requests with something injected ask for `identity`. A server that compresses all the same is understood if it speaks
//! gzip or deflate, within bounds (`egress.md` §3.13): a few bytes must not become gigabytes here.

use std::io::{self, Write};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use flate2::write::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use http::HeaderMap;
use http::header::CONTENT_ENCODING;
use http_body::{Body as HttpBody, Frame};
use hutch_policy::{Defence, Reason};

use crate::body::BodyError;

/// The most that a body becomes.
const MAX_DECODED_BYTES: u64 = 64 << 20;
/// What one byte may become on average.
const MAX_RATIO: u64 = 20;
/// What is beneath the ratio: small bodies of the same few lines do better than it.
const FREE_BYTES: u64 = 64 * 1024;
/// Taken at once: deflate makes up to 1,032 bytes of one, so that this is at most half a megabyte before anybody counts.
const STEP_BYTES: usize = 512;

/// Where gRPC and Connect declare what each message within a body is compressed with. None of that can be decoded here.
const OF_MESSAGES: [&str; 2] = ["grpc-encoding", "connect-content-encoding"];

/// How a body is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// Not at all.
    Identity,
    /// gzip.
    Gzip,
    /// zlib, or what some servers send under that name: deflate without a frame.
    Deflate,
}

/// The encoding that headers declare; `None` for one that cannot be decoded, or several.
pub fn declared(headers: &HeaderMap) -> Option<Encoding> {
    let mut of_messages = OF_MESSAGES.iter().flat_map(|name| headers.get_all(*name));
    if of_messages.any(|value| !value.as_bytes().eq_ignore_ascii_case(b"identity")) {
        return None;
    }
    let mut found = Encoding::Identity;
    for value in headers.get_all(CONTENT_ENCODING) {
        for token in value.as_bytes().split(|&byte| byte == b',') {
            let next = match token.trim_ascii().to_ascii_lowercase().as_slice() {
                b"" | b"identity" => continue,
                b"gzip" | b"x-gzip" => Encoding::Gzip,
                b"deflate" => Encoding::Deflate,
                _ => return None,
            };
            if found != Encoding::Identity {
                return None;
            }
            found = next;
        }
    }
    Some(found)
}

/// The body cannot be decoded, or not within the bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Undecodable;

impl From<io::Error> for Undecodable {
    fn from(_: io::Error) -> Self {
        Self
    }
}

enum State {
    Identity(Vec<u8>),
    Gzip(MultiGzDecoder<Vec<u8>>),
    /// Deflate of which the first two bytes, which tell its kinds apart, are not there yet.
    Unknown(Vec<u8>),
    Zlib(ZlibDecoder<Vec<u8>>),
    Raw(DeflateDecoder<Vec<u8>>),
}

/// Decodes one body.
pub struct Decoder {
    state: State,
    taken: u64,
    given: u64,
}

impl Decoder {
    /// A decoder at the start of a body.
    pub fn new(encoding: Encoding) -> Self {
        let state = match encoding {
            Encoding::Identity => State::Identity(Vec::new()),
            Encoding::Gzip => State::Gzip(MultiGzDecoder::new(Vec::new())),
            Encoding::Deflate => State::Unknown(Vec::new()),
        };
        Self {
            state,
            taken: 0,
            given: 0,
        }
    }

    /// What the next bytes become.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Bytes, Undecodable> {
        let mut decoded = Vec::new();
        for step in bytes.chunks(STEP_BYTES) {
            self.taken += step.len() as u64;
            self.step(step)?;
            self.collect(&mut decoded)?;
        }
        // A stream of events is not delayed: what is decoded goes on.
        match &mut self.state {
            State::Identity(_) | State::Unknown(_) => {}
            State::Gzip(decoder) => decoder.flush()?,
            State::Zlib(decoder) => decoder.flush()?,
            State::Raw(decoder) => decoder.flush()?,
        }
        self.collect(&mut decoded)?;
        Ok(decoded.into())
    }

    /// The rest. An end in the middle is none.
    pub fn finish(&mut self) -> Result<Bytes, Undecodable> {
        if self.taken == 0 {
            return Ok(Bytes::new());
        }
        match &mut self.state {
            State::Identity(_) => {}
            State::Gzip(decoder) => decoder.try_finish()?,
            State::Zlib(decoder) => decoder.try_finish()?,
            State::Raw(decoder) => decoder.try_finish()?,
            State::Unknown(_) => return Err(Undecodable),
        }
        let mut decoded = Vec::new();
        self.collect(&mut decoded)?;
        Ok(decoded.into())
    }

    fn last(&mut self, bytes: &[u8]) -> Result<Bytes, Undecodable> {
        let (decoded, rest) = (self.push(bytes)?, self.finish()?);
        Ok(if rest.is_empty() {
            decoded
        } else {
            [decoded, rest].concat().into()
        })
    }

    fn step(&mut self, bytes: &[u8]) -> Result<(), Undecodable> {
        match &mut self.state {
            State::Identity(out) => out.extend_from_slice(bytes),
            State::Gzip(decoder) => decoder.write_all(bytes)?,
            State::Zlib(decoder) => decoder.write_all(bytes)?,
            State::Raw(decoder) => decoder.write_all(bytes)?,
            State::Unknown(first) => {
                first.extend_from_slice(bytes);
                let Some(&[method, check]) = first.first_chunk::<2>() else {
                    return Ok(());
                };
                let first = std::mem::take(first);
                // The frame of zlib (RFC 1950): method 8, and both bytes together a multiple of 31.
                let is_zlib = method & 0x0f == 8 && u16::from_be_bytes([method, check]).is_multiple_of(31);
                self.state = if is_zlib {
                    State::Zlib(ZlibDecoder::new(Vec::new()))
                } else {
                    State::Raw(DeflateDecoder::new(Vec::new()))
                };
                return self.step(&first);
            }
        }
        Ok(())
    }

    fn collect(&mut self, decoded: &mut Vec<u8>) -> Result<(), Undecodable> {
        let out = match &mut self.state {
            State::Identity(out) => out,
            State::Gzip(decoder) => decoder.get_mut(),
            State::Zlib(decoder) => decoder.get_mut(),
            State::Raw(decoder) => decoder.get_mut(),
            State::Unknown(_) => return Ok(()),
        };
        self.given += out.len() as u64;
        decoded.append(out);
        let bounded = !matches!(self.state, State::Identity(_));
        let most = MAX_DECODED_BYTES.min(FREE_BYTES.max(self.taken * MAX_RATIO));
        if bounded && self.given > most && Defence::DecodeBounds.holds() {
            return Err(Undecodable);
        }
        Ok(())
    }
}

/// A body, decoded.
pub struct Decoded<B> {
    inner: B,
    decoder: Decoder,
    /// What the first piece became: it was looked at before the response began.
    first: Option<Frame<Bytes>>,
    trailers: Option<HeaderMap>,
    over: bool,
}

impl<B> Decoded<B>
where
    B: HttpBody<Data = Bytes, Error = BodyError> + Unpin,
{
    /// `inner`, decoded. Its first piece is awaited, so that what cannot be decoded at all, or is a bomb from its first
    /// bytes on, is known before anything was answered.
    pub async fn begin(inner: B, encoding: Encoding) -> Result<Self, BodyError> {
        let mut this = Self {
            inner,
            decoder: Decoder::new(encoding),
            first: None,
            trailers: None,
            over: false,
        };
        let first = std::future::poll_fn(|context| Pin::new(&mut this).poll_frame(context)).await;
        this.first = first.transpose()?;
        Ok(this)
    }
}

impl<B> HttpBody for Decoded<B>
where
    B: HttpBody<Data = Bytes, Error = BodyError> + Unpin,
{
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let refuse = |Undecodable| BodyError::Ended(Reason::Unscannable);
        if let Some(first) = this.first.take() {
            return Poll::Ready(Some(Ok(first)));
        }
        loop {
            if this.over {
                return Poll::Ready(this.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))));
            }
            let decoded = match std::task::ready!(Pin::new(&mut this.inner).poll_frame(context)) {
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                Some(Ok(frame)) => match frame.into_data() {
                    // A body that ends with this piece is known as a whole.
                    Ok(data) if this.inner.is_end_stream() => {
                        this.over = true;
                        this.decoder.last(&data)
                    }
                    Ok(data) => this.decoder.push(&data),
                    Err(frame) => {
                        this.over = true;
                        this.trailers = frame.into_trailers().ok();
                        this.decoder.finish()
                    }
                },
                None => {
                    this.over = true;
                    this.decoder.finish()
                }
            };
            match decoded {
                Err(undecodable) => {
                    this.over = true;
                    this.trailers = None;
                    return Poll::Ready(Some(Err(refuse(undecodable))));
                }
                Ok(bytes) if !bytes.is_empty() => return Poll::Ready(Some(Ok(Frame::data(bytes)))),
                Ok(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use flate2::Compression;
    use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn decode(encoding: Encoding, bytes: &[u8], piece: usize) -> Result<Vec<u8>, Undecodable> {
        let mut decoder = Decoder::new(encoding);
        let mut out = Vec::new();
        for piece in bytes.chunks(piece) {
            out.extend_from_slice(&decoder.push(piece)?);
        }
        out.extend_from_slice(&decoder.finish()?);
        Ok(out)
    }

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn every_kind_is_decoded_however_it_is_cut() {
        let text = b"some text, some more text".repeat(100);
        let mut zlib = ZlibEncoder::new(Vec::new(), Compression::fast());
        zlib.write_all(&text).unwrap();
        let mut raw = DeflateEncoder::new(Vec::new(), Compression::fast());
        raw.write_all(&text).unwrap();
        let (zlib, raw) = (zlib.finish().unwrap(), raw.finish().unwrap());
        for piece in [1, 7, 100_000] {
            assert_eq!(decode(Encoding::Identity, &text, piece).unwrap(), text);
            assert_eq!(decode(Encoding::Gzip, &gzip(&text), piece).unwrap(), text);
            assert_eq!(decode(Encoding::Deflate, &zlib, piece).unwrap(), text);
            assert_eq!(decode(Encoding::Deflate, &raw, piece).unwrap(), text);
        }
        // Two members are one body.
        let twice = [gzip(&text), gzip(&text)].concat();
        assert_eq!(decode(Encoding::Gzip, &twice, 50).unwrap(), text.repeat(2));
        assert_eq!(decode(Encoding::Gzip, b"", 1).unwrap(), b"");
    }

    #[test]
    fn what_is_no_such_body_is_refused() {
        let whole = gzip(&b"some text".repeat(1000));
        assert_eq!(decode(Encoding::Gzip, &whole[..whole.len() - 9], 100), Err(Undecodable));
        assert_eq!(decode(Encoding::Gzip, b"plain text", 100), Err(Undecodable));
        assert_eq!(decode(Encoding::Deflate, b"x", 100), Err(Undecodable));
        let trailing = [whole.as_slice(), b"and more"].concat();
        assert_eq!(decode(Encoding::Gzip, &trailing, 100), Err(Undecodable));
    }

    #[test]
    fn a_bomb_is_refused_and_a_small_repetitive_body_is_not() {
        let lines = b"the same line\n".repeat(4000);
        assert_eq!(decode(Encoding::Gzip, &gzip(&lines), 1000).unwrap(), lines);
        let bomb = gzip(&vec![0; 1 << 20]);
        assert!(bomb.len() < 2000);
        assert_eq!(decode(Encoding::Gzip, &bomb, 1000), Err(Undecodable));
    }

    #[test]
    fn only_one_encoding_that_is_known_is_accepted() {
        let declared = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(CONTENT_ENCODING, HeaderValue::from_static(value));
            }
            super::declared(&headers)
        };
        assert_eq!(declared(&[]), Some(Encoding::Identity));
        assert_eq!(declared(&["Identity"]), Some(Encoding::Identity));
        assert_eq!(declared(&["GZIP"]), Some(Encoding::Gzip));
        assert_eq!(declared(&["identity, x-gzip"]), Some(Encoding::Gzip));
        assert_eq!(declared(&["deflate"]), Some(Encoding::Deflate));
        for others in [
            &["br"][..],
            &["zstd"],
            &["gzip, gzip"],
            &["gzip", "deflate"],
            &["gzip;q=1"],
        ] {
            assert_eq!(declared(others), None, "{others:?}");
        }
    }

    #[test]
    fn compressed_messages_are_not_accepted() {
        for name in ["grpc-encoding", "connect-content-encoding"] {
            let with = |value| HeaderMap::from_iter([(HeaderName::from_static(name), HeaderValue::from_static(value))]);
            assert_eq!(declared(&with("identity")), Some(Encoding::Identity));
            assert_eq!(declared(&with("gzip")), None, "{name}");
        }
    }
}

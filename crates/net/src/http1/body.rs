//! Bodies of requests: where they end, and what comes after the data.

use bytes::{Buf, Bytes, BytesMut};
use memchr::memchr;

use super::fields::{self, BARE_LF};
use super::{Bad, BodyKind, Trailers};

/// A `u64` in hexadecimal.
const MAX_SIZE_DIGITS: usize = 16;
/// Beyond this, a peer's arithmetic may be signed.
const MAX_CHUNK_BYTES: u64 = i64::MAX as u64;
/// Of one chunk, with the semicolon. Nobody is known to use them.
const MAX_EXTENSION_BYTES: usize = 256;
/// Of all chunks of a body: without it, a client could make us read 260 bytes for each one of data (CVE-2023-39326).
const MAX_EXTENSIONS_BYTES: usize = 16 * 1024;
const MAX_SIZE_LINE_BYTES: usize = MAX_SIZE_DIGITS + MAX_EXTENSION_BYTES + 2;
const MAX_TRAILER_BYTES: usize = 16 * 1024;
const MAX_TRAILERS: usize = 64;

/// The next part of a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decoded {
    /// Data, at least one byte, taken out of the buffer.
    Data(Bytes),
    /// Nothing can be said without more bytes. If none come, the body is cut short.
    NeedMore,
    /// The body is complete, with these trailers. What is left in the buffer is the next request.
    End(Trailers),
}

/// Reads one body.
#[derive(Debug)]
pub enum BodyDecoder {
    /// There is none.
    None,
    /// By its length.
    Length(Length),
    /// By its chunks.
    Chunked(Chunked),
}

impl From<BodyKind> for BodyDecoder {
    fn from(kind: BodyKind) -> Self {
        match kind {
            BodyKind::None => Self::None,
            BodyKind::Length(length) => Self::Length(Length(length)),
            BodyKind::Chunked => Self::Chunked(Chunked::default()),
        }
    }
}

impl BodyDecoder {
    /// Take the next part off the front of `buffer`. After [`Decoded::End`] it says so again, and after [`Bad`] it is not
    /// to be used.
    pub fn decode(&mut self, buffer: &mut BytesMut) -> Result<Decoded, Bad> {
        match self {
            Self::None => Ok(Decoded::End(Trailers::new())),
            Self::Length(length) => Ok(length.decode(buffer)),
            Self::Chunked(chunked) => chunked.decode(buffer),
        }
    }

    /// Whether the whole body was read.
    pub fn is_finished(&self) -> bool {
        match self {
            Self::None => true,
            Self::Length(length) => length.0 == 0,
            Self::Chunked(chunked) => matches!(chunked.state, State::Done),
        }
    }
}

/// A body of so many bytes more.
#[derive(Debug)]
pub struct Length(pub u64);

impl Length {
    fn decode(&mut self, buffer: &mut BytesMut) -> Decoded {
        if self.0 == 0 {
            return Decoded::End(Trailers::new());
        }
        take_data(&mut self.0, buffer)
    }
}

/// Take what is there of `left` bytes, of which there is at least one.
fn take_data(left: &mut u64, buffer: &mut BytesMut) -> Decoded {
    if buffer.is_empty() {
        return Decoded::NeedMore;
    }
    let length = usize::try_from(*left).unwrap_or(usize::MAX).min(buffer.len());
    *left -= length as u64;
    Decoded::Data(buffer.split_to(length).freeze())
}

/// A body in chunks (RFC 9112 §7.1): sizes as hexadecimal digits and nothing else, lines that end with CR LF, extensions
/// dropped.
#[derive(Debug, Default)]
pub struct Chunked {
    state: State,
    extension_bytes: usize,
    trailer_bytes: usize,
    trailers: Trailers,
}

#[derive(Debug, Default)]
enum State {
    /// Before the line with a size.
    #[default]
    Size,
    /// So many bytes of a chunk are still to come.
    Data(u64),
    /// Before the end of the line that a chunk's data is.
    DataEnd,
    /// After the last chunk.
    Trailers,
    Done,
}

impl Chunked {
    fn decode(&mut self, buffer: &mut BytesMut) -> Result<Decoded, Bad> {
        loop {
            match &mut self.state {
                State::Size => match self.size(buffer)? {
                    None => return Ok(Decoded::NeedMore),
                    Some(0) => self.state = State::Trailers,
                    Some(size) => self.state = State::Data(size),
                },
                State::Data(0) => self.state = State::DataEnd,
                State::Data(left) => return Ok(take_data(left, buffer)),
                State::DataEnd => match buffer.as_ref() {
                    [b'\r', b'\n', ..] => {
                        buffer.advance(2);
                        self.state = State::Size;
                    }
                    [] | [b'\r'] => return Ok(Decoded::NeedMore),
                    _ => return Err(Bad("a chunk that is longer than its size")),
                },
                State::Trailers => {
                    let left = MAX_TRAILER_BYTES - self.trailer_bytes;
                    let Some(line) = take_line(buffer, left, Bad("trailers that are too long"))? else {
                        return Ok(Decoded::NeedMore);
                    };
                    self.trailer_bytes += line.len();
                    if self.trailer(&line[..line.len() - 2])? {
                        self.state = State::Done;
                        return Ok(Decoded::End(std::mem::take(&mut self.trailers)));
                    }
                }
                State::Done => return Ok(Decoded::End(Trailers::new())),
            }
        }
    }

    fn size(&mut self, buffer: &mut BytesMut) -> Result<Option<u64>, Bad> {
        let Some(line) = take_line(buffer, MAX_SIZE_LINE_BYTES, Bad("a chunk size line that is too long"))? else {
            return Ok(None);
        };
        let line = &line[..line.len() - 2];
        let digits = line.iter().position(|byte| !byte.is_ascii_hexdigit());
        let (digits, extension) = line.split_at(digits.unwrap_or(line.len()));
        if digits.is_empty() || digits.len() > MAX_SIZE_DIGITS {
            return Err(Bad("a chunk size that is not 1 to 16 hexadecimal digits"));
        }
        match extension {
            [] => {}
            [b';', rest @ ..] if rest.iter().all(u8::is_ascii_graphic) => {}
            _ => return Err(Bad("a chunk size with something else after it")),
        }
        self.extension_bytes += extension.len();
        if extension.len() > MAX_EXTENSION_BYTES || self.extension_bytes > MAX_EXTENSIONS_BYTES {
            return Err(Bad("chunk extensions that are too long"));
        }
        let size = digits.iter().fold(0, |size, &digit| {
            size << 4 | u64::from(char::from(digit).to_digit(16).unwrap_or(0))
        });
        if size > MAX_CHUNK_BYTES {
            return Err(Bad("a chunk size beyond all bounds"));
        }
        Ok(Some(size))
    }

    /// Read a line after the last chunk. Whether it is the empty one.
    fn trailer(&mut self, line: &[u8]) -> Result<bool, Bad> {
        if line.is_empty() {
            return Ok(true);
        }
        if self.trailers.len() == MAX_TRAILERS {
            return Err(Bad("too many trailers"));
        }
        let (name, value) = fields::split(line)?;
        let (name, value) = (&line[name], &line[value]);
        // Whoever adds trailers to the headers would believe them.
        for framing in ["content-length", "transfer-encoding"] {
            if name.eq_ignore_ascii_case(framing.as_bytes()) {
                return Err(Bad("framing in a trailer"));
            }
        }
        self.trailers.push((name.to_vec(), value.to_vec()));
        Ok(false)
    }
}

/// Take a line with its CR LF. `None`: it is not complete, and can still be no longer than `limit`.
fn take_line(buffer: &mut BytesMut, limit: usize, too_long: Bad) -> Result<Option<BytesMut>, Bad> {
    let window = &buffer[..buffer.len().min(limit)];
    match memchr(b'\n', window) {
        Some(end) if end > 0 && window[end - 1] == b'\r' => Ok(Some(buffer.split_to(end + 1))),
        Some(_) => Err(BARE_LF),
        None if window.len() == limit => Err(too_long),
        None => Ok(None),
    }
}

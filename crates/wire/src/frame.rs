//! Frames: a 12-byte header and a payload.

use std::fmt;

/// The largest payload of one frame.
pub const MAX_PAYLOAD_BYTES: usize = 262_144;
/// The size of every header.
pub const HEADER_BYTES: usize = 12;

/// The peer broke the protocol; the only answer is to close the channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation(pub String);

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Violation {}

/// What a frame is for; the numbers are those of the specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Kind {
    Hello = 1,
    Open = 2,
    Reply = 3,
    Event = 4,
    Data = 5,
    Credit = 6,
    End = 7,
    Error = 8,
    Cancel = 9,
    Ping = 10,
    Pong = 11,
}

impl Kind {
    fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Hello,
            2 => Self::Open,
            3 => Self::Reply,
            4 => Self::Event,
            5 => Self::Data,
            6 => Self::Credit,
            7 => Self::End,
            8 => Self::Error,
            9 => Self::Cancel,
            10 => Self::Ping,
            11 => Self::Pong,
            _ => return None,
        })
    }

    fn has_stream(self) -> bool {
        !matches!(self, Self::Hello | Self::Ping | Self::Pong)
    }

    /// The only payload size that this kind may have, if there is just one; all others carry at least one byte.
    fn fixed_length(self) -> Option<u32> {
        match self {
            Self::End | Self::Cancel => Some(0),
            Self::Ping | Self::Pong => Some(8),
            Self::Credit => Some(4),
            _ => None,
        }
    }
}

/// A header whose fields are all within their bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Payload bytes that follow.
    pub length: u32,
    /// What the frame is for.
    pub kind: Kind,
    /// 0 unless `kind` is DATA.
    pub channel: u8,
    /// 0 for HELLO, PING and PONG, and only for those.
    pub stream: u32,
}

impl Header {
    /// The header in its 12 bytes.
    pub fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..4].copy_from_slice(&self.length.to_le_bytes());
        bytes[4] = self.kind as u8;
        bytes[5] = self.channel;
        bytes[8..12].copy_from_slice(&self.stream.to_le_bytes());
        bytes
    }

    /// Read and check a header.
    pub fn from_bytes(bytes: [u8; HEADER_BYTES]) -> Result<Self, Violation> {
        let violation = |text: String| Err(Violation(text));
        let length = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let stream = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
        let (channel, zero) = (bytes[5], u16::from_le_bytes([bytes[6], bytes[7]]));
        let Some(kind) = Kind::from_number(bytes[4]) else {
            return violation(format!("unknown frame kind {}", bytes[4]));
        };
        if length as usize > MAX_PAYLOAD_BYTES {
            return violation(format!(
                "frame of {length} bytes, at most {MAX_PAYLOAD_BYTES} are allowed"
            ));
        }
        if zero != 0 {
            return violation(format!("reserved header field is {zero}, not 0"));
        }
        if channel != 0 && (kind != Kind::Data || channel > 2) {
            return violation(format!("channel {channel} on {kind:?}"));
        }
        if (stream != 0) != kind.has_stream() {
            return violation(format!("{kind:?} on stream {stream}"));
        }
        // Empty DATA or EVENT would cost the sender no credit, and the receiver something.
        if kind.fixed_length().map_or(length == 0, |fixed| fixed != length) {
            return violation(format!("{kind:?} with a payload of {length} bytes"));
        }
        Ok(Self {
            length,
            kind,
            channel,
            stream,
        })
    }
}

/// One frame as received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The checked header.
    pub header: Header,
    /// Exactly `header.length` bytes.
    pub payload: &'a [u8],
}

/// Turns chunks of any size into frames. Holds at most one frame and one chunk.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    /// Where the first byte that was not handed out yet is.
    start: usize,
}

impl Decoder {
    /// Add bytes.
    pub fn feed(&mut self, chunk: &[u8]) {
        self.space(chunk.len()).extend_from_slice(chunk);
    }

    /// The buffer to append received bytes to, with room for at least `wanted` more. What is in it must stay.
    pub fn space(&mut self, wanted: usize) -> &mut Vec<u8> {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.reserve_exact(wanted);
        &mut self.buffer
    }

    /// The next complete frame. After a violation the decoder must not be used any more.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, Violation> {
        let available = &self.buffer[self.start..];
        let Some((header, rest)) = available.split_first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let header = Header::from_bytes(*header)?;
        let length = header.length as usize;
        if rest.len() < length {
            return Ok(None);
        }
        let begin = self.start + HEADER_BYTES;
        self.start = begin + length;
        Ok(Some(Frame {
            header,
            payload: &self.buffer[begin..self.start],
        }))
    }

    /// Give memory back when nothing is held.
    pub fn release(&mut self) {
        if self.start == self.buffer.len() && self.buffer.capacity() > 0 {
            *self = Self::default();
        }
    }

    /// Bytes of memory that the decoder holds.
    pub fn capacity(&self) -> usize {
        self.buffer.capacity()
    }
}

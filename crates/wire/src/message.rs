//! The MessagePack values that both sides know, and the check that a payload is well formed.

use std::fmt;

use serde::de::{DeserializeOwned, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::frame::Violation;

/// Maps and arrays may be this many inside each other.
pub const MAX_NESTING: usize = 16;

/// The first frame of each side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Must be [`crate::VERSION`].
    pub version: u32,
    /// `"host"`, `"agent"` or `"control"`.
    pub role: String,
    /// Bytes of EVENT and DATA that the sender takes on each new stream before it grants credit.
    pub window: u32,
    /// Streams open at once.
    pub max_streams: u32,
    /// 32 hexadecimal digits, new at each start of an agent.
    #[serde(default)]
    pub boot: String,
    /// What the last claim gave the agent.
    #[serde(default)]
    pub token: String,
    /// The agent's release.
    #[serde(default)]
    pub agent: String,
}

/// The payload of ERROR.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorMessage {
    /// HTTP status.
    #[serde(rename = "s")]
    pub status: u16,
    /// Stable code, such as `not_found`.
    #[serde(rename = "c")]
    pub code: String,
    /// Text for people.
    #[serde(rename = "m")]
    pub message: String,
}

impl ErrorMessage {
    /// An error; the message is cut to 8 KiB.
    pub fn new(status: u16, code: &str, message: impl Into<String>) -> Self {
        let mut message: String = message.into();
        if message.len() > 8192 {
            let mut end = 8192;
            while !message.is_char_boundary(end) {
                end -= 1;
            }
            message.truncate(end);
        }
        Self {
            status,
            code: code.to_owned(),
            message,
        }
    }
}

/// A MessagePack `bin`: any bytes. Unlike `Vec<u8>` it takes neither arrays nor strings.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Bin(pub Vec<u8>);

impl Serialize for Bin {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Bin {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct BinVisitor;
        impl Visitor<'_> for BinVisitor {
            type Value = Bin;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bin")
            }
            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Bin, E> {
                Ok(Bin(bytes.to_vec()))
            }
            fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Bin, E> {
                Ok(Bin(bytes))
            }
        }
        deserializer.deserialize_byte_buf(BinVisitor)
    }
}

/// A value as a MessagePack map with string keys.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    rmp_serde::to_vec_named(value).unwrap_or_else(|error| unreachable!("our own messages encode: {error}"))
}

/// A payload as a value; the text says what is wrong with it.
pub fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, String> {
    if !is_map(payload) {
        return Err("Invalid request: a map is expected".to_owned());
    }
    rmp_serde::from_slice(payload).map_err(|error| format!("Invalid request: {error}"))
}

fn is_map(payload: &[u8]) -> bool {
    matches!(payload.first(), Some(0x80..=0x8f | 0xde | 0xdf))
}

/// Check that `payload` is exactly one well-formed map, that every map has `str` keys and that nothing is nested deeper
/// than [`MAX_NESTING`]. Allocates nothing.
pub fn check_message(payload: &[u8]) -> Result<(), Violation> {
    if !is_map(payload) {
        return Err(Violation("a message that is not a MessagePack map".to_owned()));
    }
    let mut reader = Reader { rest: payload };
    reader.skip(0)?;
    if reader.rest.is_empty() {
        Ok(())
    } else {
        Err(Violation("bytes after a MessagePack value".to_owned()))
    }
}

/// `m` and `p` of an OPEN. `p` is left encoded; `None` where a key is missing or of the wrong type.
pub(crate) fn split_open(payload: &[u8]) -> Result<(Option<&str>, Option<&[u8]>), Violation> {
    check_message(payload)?;
    let mut reader = Reader { rest: payload };
    let (mut method, mut params) = (None, None);
    let Some(count) = reader.map_length()? else {
        return Ok((None, None));
    };
    for _ in 0..count {
        let key = reader.string()?;
        let before = reader.rest;
        match key {
            Some(b"m") => method = reader.string()?.and_then(|bytes| std::str::from_utf8(bytes).ok()),
            Some(b"p") => {
                reader.skip(1)?;
                params = Some(&before[..before.len() - reader.rest.len()]);
            }
            _ => reader.skip(1)?,
        }
    }
    Ok((method, params))
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Violation> {
        if count > self.rest.len() {
            return Err(Violation("truncated MessagePack value".to_owned()));
        }
        let (head, rest) = self.rest.split_at(count);
        self.rest = rest;
        Ok(head)
    }

    fn number(&mut self, size: usize) -> Result<usize, Violation> {
        Ok(self
            .take(size)?
            .iter()
            .fold(0, |number, byte| number << 8 | usize::from(*byte)))
    }

    /// The number of entries when the next value is a map, which is then entered; otherwise the value is skipped.
    fn map_length(&mut self) -> Result<Option<usize>, Violation> {
        match self.rest.first() {
            Some(marker @ 0x80..=0x8f) => {
                self.take(1)?;
                Ok(Some(usize::from(marker & 0x0f)))
            }
            Some(0xde) => {
                self.take(1)?;
                self.number(2).map(Some)
            }
            Some(0xdf) => {
                self.take(1)?;
                self.number(4).map(Some)
            }
            _ => self.skip(0).map(|()| None),
        }
    }

    /// The next value when it is a `str`; otherwise it is skipped.
    fn string(&mut self) -> Result<Option<&'a [u8]>, Violation> {
        let length = match self.rest.first() {
            Some(marker @ 0xa0..=0xbf) => {
                self.take(1)?;
                usize::from(marker & 0x1f)
            }
            Some(marker @ 0xd9..=0xdb) => {
                self.take(1)?;
                self.number(1 << (marker - 0xd9))?
            }
            _ => return self.skip(1).map(|()| None),
        };
        self.take(length).map(Some)
    }

    fn skip(&mut self, depth: usize) -> Result<(), Violation> {
        let marker = self.take(1)?[0];
        let length = match marker {
            0x00..=0x7f | 0xe0..=0xff | 0xc0 | 0xc2 | 0xc3 => 0,
            0x80..=0x8f => return self.skip_map(usize::from(marker & 0x0f), depth),
            0x90..=0x9f => return self.skip_array(usize::from(marker & 0x0f), depth),
            0xa0..=0xbf => usize::from(marker & 0x1f),
            0xc1 => return Err(Violation("MessagePack marker 0xc1".to_owned())),
            0xc4..=0xc6 => self.number(1 << (marker - 0xc4))?,
            0xc7..=0xc9 => self.number(1 << (marker - 0xc7))? + 1,
            0xca => 4,
            0xcb => 8,
            0xcc | 0xd0 => 1,
            0xcd | 0xd1 => 2,
            0xce | 0xd2 => 4,
            0xcf | 0xd3 => 8,
            0xd4..=0xd8 => (1 << (marker - 0xd4)) + 1,
            0xd9..=0xdb => self.number(1 << (marker - 0xd9))?,
            0xdc | 0xdd => {
                let count = self.number(2 << (marker - 0xdc))?;
                return self.skip_array(count, depth);
            }
            0xde | 0xdf => {
                let count = self.number(2 << (marker - 0xde))?;
                return self.skip_map(count, depth);
            }
        };
        self.take(length).map(|_| ())
    }

    fn skip_array(&mut self, count: usize, depth: usize) -> Result<(), Violation> {
        let depth = deeper(depth)?;
        (0..count).try_for_each(|_| self.skip(depth))
    }

    fn skip_map(&mut self, count: usize, depth: usize) -> Result<(), Violation> {
        let depth = deeper(depth)?;
        for _ in 0..count {
            if !matches!(self.rest.first(), Some(0xa0..=0xbf | 0xd9..=0xdb)) {
                return Err(Violation("MessagePack map with a key that is not a str".to_owned()));
            }
            self.skip(depth)?;
            self.skip(depth)?;
        }
        Ok(())
    }
}

fn deeper(depth: usize) -> Result<usize, Violation> {
    if depth >= MAX_NESTING {
        return Err(Violation(format!("MessagePack nested deeper than {MAX_NESTING}")));
    }
    Ok(depth + 1)
}

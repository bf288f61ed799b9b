//! The `ClientHello` of TLS (RFC 8446 §4.1.2, RFC 5246 §7.4.1.2), read strictly.
//!
//! Records are taken apart first ([`gather`]), then the message is read with every length checked ([`parse`]). What two
//! readers could understand differently is refused: a second server name, an extension that comes twice, bytes that
//! are left over.

use std::borrow::Cow;

use super::Look;

/// The record type of handshake messages: the first byte of every TLS connection.
pub(super) const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const RECORD_HEADER_BYTES: usize = 5;
const MESSAGE_HEADER_BYTES: usize = 4;
/// RFC 8446 §5.1.
const MAX_RECORD_BYTES: usize = 1 << 14;
/// A hello with post-quantum key shares has 1.8 kB.
const MAX_HELLO_BYTES: usize = 16 * 1024;
/// A hello may come in records of one byte. As each look begins at the first record, this bounds what a client that
/// sends byte by byte can cost.
const MAX_RECORDS: usize = 4096;
pub(super) const MAX_BYTES: usize = MESSAGE_HEADER_BYTES + MAX_HELLO_BYTES + MAX_RECORDS * RECORD_HEADER_BYTES;

const TLS12: u16 = 0x0303;

const SERVER_NAME: u16 = 0;
const ALPN: u16 = 16;
const SUPPORTED_VERSIONS: u16 = 43;
const ENCRYPTED_CLIENT_HELLO: u16 = 0xfe0d;

const HOST_NAME: u8 = 0;

const OVERRUN: &str = "a length that points outside of the ClientHello";
const LEFT_OVER: &str = "bytes that no length of the ClientHello covers";

type Broken = &'static str;

/// What a client says of itself when it begins TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientHello {
    /// The bytes of the server name, unjudged. `None` without the extension.
    pub server_name: Option<Vec<u8>>,
    /// The application protocols that it offers, in order.
    pub alpn: Vec<Vec<u8>>,
    /// Whether it has encrypted another hello in this one, or pretends to (as browsers do).
    pub ech: bool,
    /// The highest version that it offers: 0x0303 is TLS 1.2, 0x0304 is TLS 1.3. Never less than TLS 1.2.
    pub newest_version: u16,
}

pub(super) fn read(bytes: &[u8]) -> Look {
    match gather(bytes) {
        Ok(None) => Look::NeedMore,
        Ok(Some(message)) => parse(&message).map_or_else(Look::Broken, Look::Tls),
        Err(reason) => Look::Broken(reason),
    }
}

/// The body of the first handshake message, taken out of its records. `None`: it is not complete.
fn gather(bytes: &[u8]) -> Result<Option<Cow<'_, [u8]>>, Broken> {
    let mut message = Cow::Borrowed(&[][..]);
    let mut rest = bytes;
    let mut records = 0;
    // The length of the message with its header, once that is known.
    let mut wanted = None;
    while !rest.is_empty() {
        if rest[0] != HANDSHAKE {
            return Err("a record of another type inside the ClientHello");
        }
        if rest.get(1).is_some_and(|&major| major != 3) {
            return Err("a record version that is not 3.x");
        }
        let Some((header, after)) = rest.split_first_chunk::<RECORD_HEADER_BYTES>() else {
            return Ok(None);
        };
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        records += 1;
        if length == 0 {
            // RFC 8446 §5.1 forbids it, and it would be a way to send for ever.
            return Err("an empty record");
        }
        if length > MAX_RECORD_BYTES {
            return Err("a record of more than 16 KiB");
        }
        if records > MAX_RECORDS {
            return Err("a ClientHello in too many records");
        }
        let before = message.len();
        let part = &after[..length.min(after.len())];
        if message.is_empty() {
            message = Cow::Borrowed(part);
        } else {
            message.to_mut().extend_from_slice(part);
        }
        if wanted.is_none() {
            wanted = message_bytes(&message)?;
        }
        // Another message in the same record would be read with the same keys as the hello, or with others.
        if wanted.is_some_and(|wanted| before + length > wanted) {
            return Err("bytes after the ClientHello in its record");
        }
        if wanted == Some(message.len()) {
            return Ok(Some(match message {
                Cow::Borrowed(message) => Cow::Borrowed(&message[MESSAGE_HEADER_BYTES..]),
                Cow::Owned(mut message) => Cow::Owned(message.split_off(MESSAGE_HEADER_BYTES)),
            }));
        }
        rest = &after[part.len()..];
    }
    Ok(None)
}

/// How long the message is, by its header.
fn message_bytes(message: &[u8]) -> Result<Option<usize>, Broken> {
    if message.first().is_some_and(|&kind| kind != CLIENT_HELLO) {
        return Err("a handshake message that is not a ClientHello");
    }
    let Some(&[_, high, middle, low]) = message.first_chunk::<MESSAGE_HEADER_BYTES>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes([0, high, middle, low]) as usize;
    if length > MAX_HELLO_BYTES {
        return Err("a ClientHello of more than 16 KiB");
    }
    Ok(Some(MESSAGE_HEADER_BYTES + length))
}

fn parse(message: &[u8]) -> Result<ClientHello, Broken> {
    let mut reader = Reader(message);
    let legacy_version = reader.u16()?;
    let _random = reader.take(32)?;
    let session = reader.vector8()?;
    let ciphers = reader.vector16()?;
    let compressions = reader.vector8()?;
    if session.len() > 32 || ciphers.is_empty() || ciphers.len() % 2 != 0 || compressions.is_empty() {
        return Err("a list of impossible length in the ClientHello");
    }
    // Before TLS 1.3 a hello may end here.
    let extensions = if reader.0.is_empty() { &[] } else { reader.vector16()? };
    reader.end()?;

    let mut hello = ClientHello {
        server_name: None,
        alpn: Vec::new(),
        ech: false,
        newest_version: legacy_version,
    };
    let mut seen = Vec::new();
    let mut reader = Reader(extensions);
    while !reader.0.is_empty() {
        let kind = reader.u16()?;
        let body = reader.vector16()?;
        seen.push(kind);
        match kind {
            SERVER_NAME => hello.server_name = Some(server_name(body)?),
            ALPN => hello.alpn = protocols(body)?,
            SUPPORTED_VERSIONS => hello.newest_version = newest_version(body)?,
            ENCRYPTED_CLIENT_HELLO => hello.ech = true,
            _ => {}
        }
    }
    seen.sort_unstable();
    if seen.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err("an extension that comes twice");
    }
    if legacy_version >> 8 != 3 || hello.newest_version < TLS12 {
        return Err("a version before TLS 1.2");
    }
    Ok(hello)
}

fn server_name(body: &[u8]) -> Result<Vec<u8>, Broken> {
    let mut reader = Reader(body);
    let mut names = Reader(reader.vector16()?);
    reader.end()?;
    // A list of nothing has no first name either.
    if names.0.is_empty() {
        return Err("an empty server name");
    }
    if names.u8()? != HOST_NAME {
        return Err("a server name that is not a host name");
    }
    let name = names.vector16()?;
    if !names.0.is_empty() {
        return Err("more than one server name");
    }
    if name.is_empty() {
        return Err("an empty server name");
    }
    Ok(name.to_vec())
}

fn protocols(body: &[u8]) -> Result<Vec<Vec<u8>>, Broken> {
    let mut reader = Reader(body);
    let mut list = Reader(reader.vector16()?);
    reader.end()?;
    let mut protocols = Vec::new();
    while !list.0.is_empty() {
        protocols.push(list.vector8()?.to_vec());
    }
    if protocols.is_empty() || protocols.iter().any(Vec::is_empty) {
        return Err("an empty application protocol");
    }
    Ok(protocols)
}

/// The highest version of the list that is one; clients add others to see whether servers cope (RFC 8701).
fn newest_version(body: &[u8]) -> Result<u16, Broken> {
    let mut reader = Reader(body);
    let list = reader.vector8()?;
    reader.end()?;
    if list.is_empty() || list.len() % 2 != 0 {
        return Err("a list of impossible length in the ClientHello");
    }
    let versions = list.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
    Ok(versions.filter(|version| version >> 8 == 3).max().unwrap_or(0))
}

/// Takes values off the front of a message.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Broken> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(OVERRUN)?;
        self.0 = rest;
        Ok(taken)
    }

    fn u8(&mut self) -> Result<u8, Broken> {
        Ok(self.take(1)?[0])
    }

    fn u16(&mut self) -> Result<u16, Broken> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn vector8(&mut self) -> Result<&'a [u8], Broken> {
        let length = self.u8()?;
        self.take(usize::from(length))
    }

    fn vector16(&mut self) -> Result<&'a [u8], Broken> {
        let length = self.u16()?;
        self.take(usize::from(length))
    }

    fn end(&self) -> Result<(), Broken> {
        if self.0.is_empty() { Ok(()) } else { Err(LEFT_OVER) }
    }
}

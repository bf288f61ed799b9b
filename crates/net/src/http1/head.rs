//! The head of a request.

use hutch_policy::Defence;

use std::fmt;
use std::ops::Range;

use bytes::Bytes;
use memchr::{memchr, memchr_iter, memchr2_iter, memmem};

use super::Bad;
use super::fields::{self, BARE_CR, BARE_LF};

/// What a request line has besides its target: the longest method that anybody has, two spaces and the version.
const MAX_REST_BYTES: usize = 64;
const LONG_LINE: Bad = Bad("a request line that is too long");
const NO_METHOD: Bad = Bad("a request that does not begin with a method");

/// How large a head may be (`egress.md` §3.13).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadLimits {
    /// All of it, with the empty line.
    pub head_bytes: usize,
    /// Header lines.
    pub fields: usize,
    /// One header line.
    pub field_bytes: usize,
    /// The target.
    pub target_bytes: usize,
}

impl Default for HeadLimits {
    fn default() -> Self {
        if !Defence::HeadSize.holds() {
            return Self {
                head_bytes: usize::MAX,
                fields: usize::MAX,
                field_bytes: usize::MAX,
                target_bytes: usize::MAX,
            };
        }
        Self {
            head_bytes: 64 * 1024,
            fields: 128,
            field_bytes: 16 * 1024,
            target_bytes: 16 * 1024,
        }
    }
}

/// The version of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    Http11,
}

/// What follows a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyKind {
    /// Nothing, and nothing was said about it.
    None,
    /// So many bytes.
    Length(u64),
    /// Chunks.
    Chunked,
}

/// The head of a request, as it came. Its bytes are shared; the parts are ranges of them.
#[derive(Clone)]
pub struct Head {
    bytes: Bytes,
    method: Span,
    target: Span,
    lines: Vec<(Span, Span)>,
    /// The version.
    pub version: Version,
    /// What follows.
    pub body: BodyKind,
    /// Whether the client wants another request on this connection.
    pub keep_alive: bool,
}

impl Head {
    /// The method: a token, in the client's spelling.
    pub fn method(&self) -> &[u8] {
        self.at(self.method)
    }

    /// The target: visible ASCII, at least one character.
    pub fn target(&self) -> &[u8] {
        self.at(self.target)
    }

    /// Names and values in order, values without the blanks around them.
    pub fn headers(&self) -> impl ExactSizeIterator<Item = (&[u8], &[u8])> {
        self.lines.iter().map(|&(name, value)| (self.at(name), self.at(value)))
    }

    /// The values of a header, whatever the case of its name.
    pub fn values<'a>(&'a self, name: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        let lines = self
            .headers()
            .filter(move |(other, _)| other.eq_ignore_ascii_case(name));
        lines.map(|(_, value)| value)
    }

    fn at(&self, span: Span) -> &[u8] {
        &self.bytes[span.start as usize..span.end as usize]
    }
}

/// Shows no values: they may be secrets of the client.
impl fmt::Debug for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Head")
            .field("method", &String::from_utf8_lossy(self.method()))
            .field("target_bytes", &self.target().len())
            .field("version", &self.version)
            .field("headers", &self.lines.len())
            .field("body", &self.body)
            .field("keep_alive", &self.keep_alive)
            .finish_non_exhaustive()
    }
}

#[derive(Clone, Copy)]
struct Span {
    start: u32,
    end: u32,
}

impl From<Range<usize>> for Span {
    fn from(range: Range<usize>) -> Self {
        // Heads are not longer than `HeadLimits::head_bytes`.
        Self {
            start: range.start as u32,
            end: range.end as u32,
        }
    }
}

/// Read the head at the start of `buffer`, and how many bytes it has. `None`: it is not complete. What is wrong is said
/// as early as it can be told cheaply, and always before more than `limits.head_bytes` have come.
pub fn read_head(buffer: &[u8], limits: &HeadLimits) -> Result<Option<(Head, usize)>, Bad> {
    let window = &buffer[..buffer.len().min(limits.head_bytes).min(u32::MAX as usize)];
    match memmem::find(window, b"\r\n\r\n") {
        Some(at) => {
            let length = at + 4;
            parse(&window[..length], limits).map(|head| Some((head, length)))
        }
        None => check_start(window, limits).map(|()| None),
    }
}

/// Whether the start of a head can still become one. Without this, a client that ends its lines in another way would
/// wait for us and we for it.
fn check_start(start: &[u8], limits: &HeadLimits) -> Result<(), Bad> {
    for at in memchr2_iter(b'\r', b'\n', start) {
        match start[at] {
            b'\n' if at == 0 || start[at - 1] != b'\r' => return Err(BARE_LF),
            b'\r' if start.get(at + 1).is_some_and(|&next| next != b'\n') => return Err(BARE_CR),
            _ => {}
        }
    }
    match memchr(b'\n', start) {
        Some(end) => request_line(&start[..end - 1], limits).map(|_| ())?,
        // The last byte may be the carriage return.
        None if start.len() > limits.target_bytes + MAX_REST_BYTES + 1 => return Err(LONG_LINE),
        // Another protocol may never send a line feed, and its client waits for us.
        None if !start.is_empty() && start[0] != b'\r' && fields::token_length(start) == 0 => return Err(NO_METHOD),
        None => {}
    }
    if memchr_iter(b'\n', start).count() > limits.fields + 1 {
        return Err(Bad("too many header lines"));
    }
    if start.len() >= limits.head_bytes {
        return Err(Bad("a head that is too long"));
    }
    Ok(())
}

/// Read a head that ends with the first empty line in it.
fn parse(head: &[u8], limits: &HeadLimits) -> Result<Head, Bad> {
    let mut ends = memchr_iter(b'\n', head);
    let mut start = 0;
    // Lines end with CR LF; a carriage return elsewhere is in no class of characters that a line may have.
    let mut next_line = || {
        let end = ends.next().ok_or(BARE_LF)?;
        let line = start..end.checked_sub(1).filter(|&at| head[at] == b'\r').ok_or(BARE_LF)?;
        start = end + 1;
        Ok(line)
    };
    let line = next_line()?;
    let (method, target, version) = request_line(&head[line], limits)?;

    let mut framing = Fields::new(version);
    let mut lines = Vec::with_capacity(16);
    loop {
        let line = next_line()?;
        if line.is_empty() {
            break;
        }
        if line.len() > limits.field_bytes {
            return Err(Bad("a header line that is too long"));
        }
        if lines.len() == limits.fields {
            return Err(Bad("too many header lines"));
        }
        let (name, value) = fields::split(&head[line.clone()])?;
        let name = line.start + name.start..line.start + name.end;
        let value = line.start + value.start..line.start + value.end;
        framing.see(&head[name.clone()], &head[value.clone()])?;
        lines.push((Span::from(name), Span::from(value)));
    }
    Ok(Head {
        bytes: Bytes::copy_from_slice(head),
        method,
        target,
        lines,
        version,
        body: framing.body()?,
        keep_alive: framing.keep_alive(),
    })
}

/// `method SP target SP version`, with exactly one space each.
fn request_line(line: &[u8], limits: &HeadLimits) -> Result<(Span, Span, Version), Bad> {
    if line.len() > limits.target_bytes + MAX_REST_BYTES {
        return Err(LONG_LINE);
    }
    let method = fields::token_length(line);
    if method == 0 {
        return Err(match line.first() {
            None => Bad("an empty line before the request"),
            Some(_) => NO_METHOD,
        });
    }
    if line.get(method) != Some(&b' ') {
        return Err(Bad("a method that is not a token"));
    }
    let start = method + 1;
    let visible = line[start..].iter().position(|byte| !byte.is_ascii_graphic());
    let end = start + visible.unwrap_or(line.len() - start);
    if line.get(end).is_some_and(|&byte| byte != b' ') {
        return Err(Bad("a character that no request target has"));
    }
    if end == start {
        return Err(Bad("an empty request target"));
    }
    if end - start > limits.target_bytes {
        return Err(Bad("a request target that is too long"));
    }
    let version = match line.get(end + 1..) {
        Some(b"HTTP/1.1") => Version::Http11,
        Some(b"HTTP/1.0") => Version::Http10,
        None => return Err(Bad("a request without a version")),
        Some(_) => return Err(Bad("a version that is neither HTTP/1.0 nor HTTP/1.1")),
    };
    Ok(((0..method).into(), (start..end).into(), version))
}

/// What the fields seen so far say about the body and the connection (RFC 9112 §6, §9.3).
struct Fields {
    version: Version,
    length: Option<u64>,
    is_chunked: bool,
    says_close: bool,
    says_keep_alive: bool,
}

impl Fields {
    fn new(version: Version) -> Self {
        Self {
            version,
            length: None,
            is_chunked: false,
            says_close: false,
            says_keep_alive: false,
        }
    }

    fn see(&mut self, name: &[u8], value: &[u8]) -> Result<(), Bad> {
        let is = |other: &str| name.eq_ignore_ascii_case(other.as_bytes());
        // By length first: nearly all lines are none of these.
        match name.len() {
            10 if is("connection") => self.see_connection(value),
            14 if is("content-length") => self.see_length(value),
            17 if is("transfer-encoding") => self.see_encoding(value),
            _ => Ok(()),
        }
    }

    fn see_length(&mut self, value: &[u8]) -> Result<(), Bad> {
        let length = match value {
            [b'0'] => 0,
            // One spelling per number: a leading zero is octal to some.
            [b'1'..=b'9', rest @ ..] if rest.iter().all(u8::is_ascii_digit) => std::str::from_utf8(value)
                .ok()
                .and_then(|digits| digits.parse().ok())
                .ok_or(Bad("a content length beyond all bounds"))?,
            _ => return Err(Bad("a content length that is not a number")),
        };
        if self.length.replace(length).is_some() && Defence::OneLength.holds() {
            return Err(Bad("more than one content length"));
        }
        Ok(())
    }

    fn see_encoding(&mut self, value: &[u8]) -> Result<(), Bad> {
        if self.version == Version::Http10 {
            return Err(Bad("a transfer encoding under HTTP/1.0"));
        }
        if self.is_chunked {
            return Err(Bad("more than one transfer encoding"));
        }
        if !value.eq_ignore_ascii_case(b"chunked") {
            return Err(Bad("a transfer encoding other than chunked"));
        }
        self.is_chunked = true;
        Ok(())
    }

    fn see_connection(&mut self, value: &[u8]) -> Result<(), Bad> {
        for option in value.split(|&byte| byte == b',') {
            let option = option.trim_ascii();
            // It names headers that must not be passed on; one that cannot be understood might be such a name.
            if !option.is_empty() && !fields::is_token(option) {
                return Err(Bad("a connection option that is not a token"));
            }
            self.says_close |= option.eq_ignore_ascii_case(b"close");
            self.says_keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
        }
        Ok(())
    }

    fn body(&self) -> Result<BodyKind, Bad> {
        match (self.is_chunked, self.length) {
            (true, Some(_)) if !Defence::OneLength.holds() => Ok(BodyKind::Chunked),
            (true, Some(_)) => Err(Bad("both a content length and a transfer encoding")),
            (true, None) => Ok(BodyKind::Chunked),
            (false, Some(length)) => Ok(BodyKind::Length(length)),
            (false, None) => Ok(BodyKind::None),
        }
    }

    fn keep_alive(&self) -> bool {
        !self.says_close && (self.version == Version::Http11 || self.says_keep_alive)
    }
}

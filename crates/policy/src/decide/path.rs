//! Paths that two readers may read in two ways.
//!
//! A rule about paths is worth nothing if the server takes `/public/%2e%2e/admin` for `/admin`. Nothing is repaired: the
//! bytes go out as they came or not at all.

use std::borrow::Cow;

/// In which ways a path is ambiguous.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ambiguity {
    /// `%2f`, which a rule may allow (`allowEncodedSlash`).
    pub encoded_slash: bool,
    /// `//`, which a rule may allow (`allowEmptySegments`).
    pub empty_segment: bool,
    /// Anything else, which nothing allows.
    pub other: bool,
}

impl Ambiguity {
    /// Whether there is more than one reading.
    pub fn is_ambiguous(self) -> bool {
        self != Self::default()
    }
}

/// Judge a path: the bytes of a request target before `?`.
pub fn inspect_path(raw: &[u8]) -> Ambiguity {
    let mut found = Ambiguity::default();
    if raw.first() != Some(&b'/') {
        found.other = true;
    }
    let plain = |byte: u8| (0x21..0x7f).contains(&byte) && !matches!(byte, b'\\' | b'#' | b'?');
    if !raw.iter().all(|&byte| plain(byte)) {
        found.other = true;
    }
    let Some(decoded) = decode(raw) else {
        found.other = true;
        return found;
    };
    let slashes = |bytes: &[u8]| memchr::memchr_iter(b'/', bytes).count();
    found.encoded_slash = slashes(&decoded) > slashes(raw);
    let hidden = |byte: u8| byte < 0x20 || matches!(byte, 0x7f | b'\\');
    // Overlong forms of `.` and `/` are not UTF-8; text in another encoding is refused with them.
    if decoded.iter().any(|&byte| hidden(byte)) || is_encoded_twice(&decoded) || std::str::from_utf8(&decoded).is_err()
    {
        found.other = true;
    }
    let segments: Vec<&[u8]> = decoded.split(|&byte| byte == b'/').skip(1).collect();
    for (index, segment) in segments.iter().enumerate() {
        if segment.is_empty() && index + 1 < segments.len() {
            found.empty_segment = true;
        }
        let name = segment.split(|&byte| byte == b';').next().unwrap_or_default();
        if matches!(name, b"." | b"..") {
            found.other = true;
        }
    }
    found
}

/// The path that rules compare: escapes of unreserved characters decoded, the others in upper case.
pub(crate) fn comparable_path(raw: &[u8]) -> Cow<'_, [u8]> {
    if !raw.contains(&b'%') {
        return Cow::Borrowed(raw);
    }
    let mut path = Vec::with_capacity(raw.len());
    let mut at = 0;
    while at < raw.len() {
        if let Some(byte) = escape(raw, at) {
            if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
                path.push(byte);
            } else {
                path.extend_from_slice(&raw[at..at + 3].to_ascii_uppercase());
            }
            at += 3;
        } else {
            path.push(raw[at]);
            at += 1;
        }
    }
    Cow::Owned(path)
}

/// The byte that the escape at `at` stands for, if there is one.
pub(crate) fn escape(raw: &[u8], at: usize) -> Option<u8> {
    let digit = |byte: u8| (byte as char).to_digit(16);
    match raw.get(at..at + 3)? {
        [b'%', high, low] => Some((digit(*high)? << 4 | digit(*low)?) as u8),
        _ => None,
    }
}

fn decode(raw: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(raw.len());
    let mut at = 0;
    while at < raw.len() {
        if raw[at] == b'%' {
            decoded.push(escape(raw, at)?);
            at += 3;
        } else {
            decoded.push(raw[at]);
            at += 1;
        }
    }
    Some(decoded)
}

/// Whether a second decoding would bring forth a dot, a slash, a backslash or a percent sign.
fn is_encoded_twice(decoded: &[u8]) -> bool {
    (0..decoded.len()).any(|at| matches!(escape(decoded, at), Some(b'.' | b'/' | b'\\' | b'%')))
}

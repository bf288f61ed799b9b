//! Canonical host names.
//!
//! A name on the wire, in DNS and in a policy becomes a [`Name`] or is refused; nothing else in the product compares
//! names. Text that anything in the world reads as an IP address (`0x7f.1`, `2130706433`, `127.1`) is never a name.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

const MAX_NAME_BYTES: usize = 253;
const MAX_LABEL_BYTES: usize = 63;

/// Why bytes are not a host name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NameError {
    /// Nothing, or only the dot of the root.
    Empty,
    /// A byte outside letters, digits, hyphen, underscore and dot.
    Byte(u8),
    /// More than 253 bytes.
    TooLong,
    /// Two dots in a row, or a dot in front.
    EmptyLabel,
    /// A label of more than 63 bytes.
    LabelTooLong,
    /// A host label with an underscore, or with a hyphen at one end.
    NotLdh,
    /// The last label is a number, so that somebody will read it as an address.
    Numeric,
    /// An IP address.
    Address,
    /// What follows the host is not `:` and a port.
    Port,
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("is empty"),
            Self::Byte(byte) => write!(f, "contains the byte 0x{byte:02x}"),
            Self::TooLong => write!(f, "has more than {MAX_NAME_BYTES} bytes"),
            Self::EmptyLabel => f.write_str("has an empty label"),
            Self::LabelTooLong => write!(f, "has a label of more than {MAX_LABEL_BYTES} bytes"),
            Self::NotLdh => f.write_str("has a label with an underscore, or with a hyphen at one end"),
            Self::Numeric => f.write_str("ends in a number"),
            Self::Address => f.write_str("is an IP address"),
            Self::Port => f.write_str("has no valid port"),
        }
    }
}

impl std::error::Error for NameError {}

/// A host name in its one spelling: ASCII lower case, no trailing dot, 1 to 253 bytes, labels of 1 to 63 bytes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Arc<str>);

impl Name {
    /// The name of a server (SNI, `Host`, `:authority`, URL): letters, digits and inner hyphens.
    pub fn host(raw: &[u8]) -> Result<Self, NameError> {
        let name = Self::question(raw)?;
        if name.labels().all(is_ldh) {
            Ok(name)
        } else {
            Err(NameError::NotLdh)
        }
    }

    /// The name in a DNS question, where underscores and outer hyphens occur.
    pub fn question(raw: &[u8]) -> Result<Self, NameError> {
        canonical(raw).map(|text| Self(text.into()))
    }

    /// The canonical text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The labels from left to right.
    pub fn labels(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.split('.')
    }

    /// Whether the name must never reach a DNS server or a pattern: one label, names of this machine or link, reverse
    /// zones, and the metadata servers that clouds give a name.
    pub fn is_special(&self) -> bool {
        const SUFFIXES: [&str; 6] = ["localhost", "local", "localdomain", "invalid", "onion", "arpa"];
        let Some((_, last)) = self.0.rsplit_once('.') else {
            return true;
        };
        SUFFIXES.contains(&last) || matches!(self.as_str(), "metadata.google.internal" | "metadata.goog")
    }
}

impl Name {
    /// Whether this is in the zone of reverse lookups, which only allow-all asks anybody about.
    pub(crate) fn is_reverse(&self) -> bool {
        self.0.ends_with(".in-addr.arpa") || self.0.ends_with(".ip6.arpa")
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

/// What stands where a host is expected.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Host {
    /// A name.
    Name(Name),
    /// An address, IPv4-mapped ones as IPv4.
    Address(IpAddr),
}

/// A host as in a URL or a `Host` header: a name, a dotted quad, or an IPv6 address of RFC 5952 in brackets.
pub fn parse_host(raw: &[u8]) -> Result<Host, NameError> {
    if let Some(inner) = raw.strip_prefix(b"[") {
        let inner = inner.strip_suffix(b"]").ok_or(NameError::Byte(b'['))?;
        let text = std::str::from_utf8(inner).map_err(|_| NameError::Byte(b'['))?;
        let address: Ipv6Addr = text.parse().map_err(|_| NameError::Byte(b'['))?;
        // One address has one spelling, or two parties may read two addresses.
        if !address.to_string().eq_ignore_ascii_case(text) {
            return Err(NameError::Byte(b'['));
        }
        return Ok(Host::Address(crate::canonical_address(address.into())));
    }
    match Name::host(raw) {
        Err(NameError::Address) => {
            let text = std::str::from_utf8(raw).map_err(|_| NameError::Address)?;
            let address: Ipv4Addr = text.parse().map_err(|_| NameError::Address)?;
            Ok(Host::Address(address.into()))
        }
        other => other.map(Host::Name),
    }
}

/// `host [":" port]`, the grammar of a `Host` header. User information, paths and blanks are not part of it.
pub fn parse_authority(raw: &[u8]) -> Result<(Host, Option<u16>), NameError> {
    let bracket = raw.iter().position(|&byte| byte == b']').unwrap_or(0);
    let Some(colon) = raw[bracket..].iter().position(|&byte| byte == b':') else {
        return Ok((parse_host(raw)?, None));
    };
    let (host, port) = raw.split_at(bracket + colon);
    let host = parse_host(host)?;
    let digits = &port[1..];
    if digits.is_empty() || digits.len() > 5 || digits[0] == b'0' || !digits.iter().all(u8::is_ascii_digit) {
        return Err(NameError::Port);
    }
    let port = digits
        .iter()
        .fold(0_u32, |sum, digit| sum * 10 + u32::from(digit - b'0'));
    Ok((host, Some(u16::try_from(port).map_err(|_| NameError::Port)?)))
}

fn canonical(raw: &[u8]) -> Result<String, NameError> {
    if let Some(&byte) = raw
        .iter()
        .find(|&&byte| !(byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')))
    {
        return Err(NameError::Byte(byte));
    }
    let bytes = raw.strip_suffix(b".").unwrap_or(raw);
    match bytes.len() {
        0 => return Err(NameError::Empty),
        1..=MAX_NAME_BYTES => {}
        _ => return Err(NameError::TooLong),
    }
    let text: String = bytes.iter().map(|&byte| byte.to_ascii_lowercase() as char).collect();
    if text.parse::<Ipv4Addr>().is_ok() {
        return Err(NameError::Address);
    }
    let mut last = "";
    for label in text.split('.') {
        match label.len() {
            0 => return Err(NameError::EmptyLabel),
            1..=MAX_LABEL_BYTES => last = label,
            _ => return Err(NameError::LabelTooLong),
        }
    }
    if is_number(last) {
        return Err(NameError::Numeric);
    }
    Ok(text)
}

/// What `inet_aton` and the URL standard read as a number: digits, or `0x` and hexadecimal digits.
fn is_number(label: &str) -> bool {
    let hex = label.strip_prefix("0x");
    label.bytes().all(|byte| byte.is_ascii_digit())
        || hex.is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Letters, digits and hyphens, no hyphen at either end.
pub(crate) fn is_ldh(label: &str) -> bool {
    !label.starts_with('-') && !label.ends_with('-') && !label.contains('_')
}

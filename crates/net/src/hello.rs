//! What a client speaks, from its first bytes.
//!
//! [`sniff`] takes everything that a client has sent so far and says what it is, or that more bytes are needed. It keeps
//! nothing between calls, so how the bytes arrived cannot change the answer: a verdict on some bytes holds for all that
//! begin with them (except for Postgres's requests, after which the client must wait). It never waits for more than
//! [`MAX_BYTES`], and asks for more only while what is there can still be the start of a protocol that it knows.
//!
//! A TLS `ClientHello` is read at the level of the handshake, whatever records it was cut into, and only if it has one
//! reading (`hello/client_hello.rs`). What begins like one and breaks the rules is [`Look::Broken`], never
//! [`Look::Other`]: a flow must not get past the check of its name by being sent in a form that we cannot read and the
//! server can.

mod client_hello;

pub use client_hello::ClientHello;

/// No more bytes than these are ever needed.
pub const MAX_BYTES: usize = client_hello::MAX_BYTES;

/// Postgres: a length of 8 and a code where the version of its protocol would be.
const POSTGRES_TLS: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
const POSTGRES_GSS: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x30];
/// The start of HTTP/2 without TLS, as far as no HTTP/1 request can begin.
const PREFACE: &[u8] = b"PRI * HTTP/2.0";
/// Longer than every registered method.
const MAX_METHOD_BYTES: usize = 32;

/// What the first bytes of a client are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Look {
    /// The start of something; ask again with more bytes.
    NeedMore,
    /// A complete `ClientHello`.
    Tls(ClientHello),
    /// Postgres's request for TLS, all 8 bytes. The client waits for `S`, then sends a `ClientHello`.
    PostgresTls,
    /// Postgres's request for GSS encryption, all 8 bytes. The client waits for `N`, then begins anew.
    PostgresGss,
    /// A method and a space: the start of an HTTP/1 request line. [`crate::http1::read_head`] reads it.
    Http1,
    /// HTTP/2 without TLS.
    Http2Preface,
    /// None of these.
    Other,
    /// TLS or Postgres, but not as the rules say; why.
    Broken(&'static str),
}

/// Say what a client speaks. `bytes` is everything that it has sent so far.
pub fn sniff(bytes: &[u8]) -> Look {
    match bytes {
        [] => Look::NeedMore,
        [client_hello::HANDSHAKE, ..] => client_hello::read(bytes),
        [0, ..] => postgres(bytes),
        [b'A'..=b'Z', ..] => http(bytes),
        [0x80..=0xff, ..] => ssl2(bytes),
        _ => Look::Other,
    }
}

fn postgres(bytes: &[u8]) -> Look {
    for (request, look) in [(POSTGRES_TLS, Look::PostgresTls), (POSTGRES_GSS, Look::PostgresGss)] {
        if request == bytes {
            return look;
        }
        if request.starts_with(bytes) {
            return Look::NeedMore;
        }
        // Both ends of the TLS connection could take such bytes for protected ones (CVE-2021-23222).
        if bytes.starts_with(&request) {
            return Look::Broken("bytes after Postgres's request for encryption");
        }
    }
    Look::Other
}

fn http(bytes: &[u8]) -> Look {
    if bytes.starts_with(PREFACE) {
        return Look::Http2Preface;
    }
    if PREFACE.starts_with(bytes) {
        return Look::NeedMore;
    }
    let is_method = |byte: &u8| byte.is_ascii_uppercase() || *byte == b'-';
    match bytes.iter().position(|byte| !is_method(byte)) {
        Some(end) if bytes[end] == b' ' && end <= MAX_METHOD_BYTES => Look::Http1,
        None if bytes.len() <= MAX_METHOD_BYTES => Look::NeedMore,
        _ => Look::Other,
    }
}

/// The hello of SSL 2, which some servers still take as a way to begin TLS: a length with its highest bit set, type 1,
/// and version 0.2 or 3.x. It has no server name.
fn ssl2(bytes: &[u8]) -> Look {
    match bytes {
        [_, _, 1, 3, ..] | [_, _, 1, 0, 2, ..] => Look::Broken("a hello of SSL 2"),
        [_] | [_, _] | [_, _, 1] | [_, _, 1, 0] => Look::NeedMore,
        _ => Look::Other,
    }
}

//! Responses, as bytes. What is written always has one reading, whatever the values come from.

use std::fmt::Write as _;

use bytes::{BufMut, BytesMut};
use http::StatusCode;

use super::fields::{is_token, is_value};

/// How the end of a response's body is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// By its length. Also for a response to `HEAD`, which says the length and has no body.
    Length(u64),
    /// By chunks: [`write_chunk`], [`write_last_chunk`].
    Chunked,
    /// Not at all, as there is no body: statuses 1xx, 204 and 304, and `HEAD`.
    None,
    /// By the end of the connection.
    UntilClose,
}

/// Headers that say something about this connection or the body's framing. They are ours to write.
const OWN: [&str; 5] = [
    "connection",
    "content-length",
    "keep-alive",
    "proxy-connection",
    "transfer-encoding",
];

/// Write the head of a response. Without a reason, or with one that no line can have, it is the usual one. Headers about
/// framing and connection are left out, as are those that would not be one line; of the latter there should be none.
///
/// With status 101 the connection is said to be upgraded; the `Upgrade` header is the caller's.
pub fn write_response_head<'a>(
    out: &mut BytesMut,
    status: u16,
    reason: Option<&str>,
    headers: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
    framing: Framing,
    keep_alive: bool,
) {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let reason = reason.filter(|reason| is_value(reason.as_bytes()));
    let reason = reason.or(status.canonical_reason()).unwrap_or("");
    put(out, format_args!("HTTP/1.1 {} {reason}\r\n", status.as_str()));
    for (name, value) in headers {
        let is_own = OWN.iter().any(|own| name.eq_ignore_ascii_case(own.as_bytes()));
        if !is_own {
            put_field(out, name, value);
        }
    }
    match framing {
        // RFC 9112 §6.1, §6.3: these have no body, and say nothing about one.
        _ if status.is_informational() || status == StatusCode::NO_CONTENT => {}
        Framing::Length(length) => put(out, format_args!("content-length: {length}\r\n")),
        Framing::Chunked => put(out, format_args!("transfer-encoding: chunked\r\n")),
        Framing::None | Framing::UntilClose => {}
    }
    if status == StatusCode::SWITCHING_PROTOCOLS {
        put(out, format_args!("connection: upgrade\r\n"));
    } else if !status.is_informational() {
        // Said in both cases: clients of HTTP/1.0 close unless they are told otherwise.
        let keep_alive = keep_alive && framing != Framing::UntilClose;
        let option = if keep_alive { "keep-alive" } else { "close" };
        put(out, format_args!("connection: {option}\r\n"));
    }
    out.put_slice(b"\r\n");
}

/// Write a chunk. Nothing is written for no data, as an empty chunk would be the last one.
pub fn write_chunk(out: &mut BytesMut, data: &[u8]) {
    if !data.is_empty() {
        put(out, format_args!("{:x}\r\n", data.len()));
        out.put_slice(data);
        out.put_slice(b"\r\n");
    }
}

/// Write the end of a chunked body. Trailers about framing and connection are left out.
pub fn write_last_chunk<'a>(out: &mut BytesMut, trailers: impl IntoIterator<Item = (&'a [u8], &'a [u8])>) {
    out.put_slice(b"0\r\n");
    for (name, value) in trailers {
        let is_own = OWN.iter().any(|own| name.eq_ignore_ascii_case(own.as_bytes()));
        if !is_own {
            put_field(out, name, value);
        }
    }
    out.put_slice(b"\r\n");
}

fn put_field(out: &mut BytesMut, name: &[u8], value: &[u8]) {
    let is_line = is_token(name) && is_value(value);
    debug_assert!(is_line, "a header that is not one line");
    if is_line {
        out.reserve(name.len() + value.len() + 4);
        out.put_slice(name);
        out.put_slice(b": ");
        out.put_slice(value);
        out.put_slice(b"\r\n");
    }
}

fn put(out: &mut BytesMut, text: std::fmt::Arguments) {
    out.write_fmt(text).expect("a buffer that grows takes everything");
}

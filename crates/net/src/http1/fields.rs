//! Header lines: `name ":" value` (RFC 9112 §5), as heads and trailers have them.

use std::ops::Range;

use super::Bad;

pub(super) const BARE_LF: Bad = Bad("a line feed without a carriage return before it");
pub(super) const BARE_CR: Bad = Bad("a carriage return without a line feed after it");

/// Which bytes a token has (RFC 9110 §5.6.2): methods, names of headers.
const TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let marks = b"!#$%&'*+-.^_`|~";
    let mut at = 0;
    while at < marks.len() {
        table[marks[at] as usize] = true;
        at += 1;
    }
    table
};

/// How many bytes of a token are at the start.
pub(super) fn token_length(bytes: &[u8]) -> usize {
    let other = bytes.iter().position(|&byte| !TOKEN[usize::from(byte)]);
    other.unwrap_or(bytes.len())
}

/// Whether all of it is one token.
pub(super) fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && token_length(bytes) == bytes.len()
}

/// Whether a value has no control characters but tabs. Bytes from 0x80 on are allowed; they mean nothing to HTTP.
pub(super) fn is_value(bytes: &[u8]) -> bool {
    // Numbers instead of an early exit, so that the compiler looks at many bytes at once.
    let is_control = |byte: u8| u8::from(byte < b' ') & u8::from(byte != b'\t') | u8::from(byte == 0x7f);
    bytes.iter().fold(0, |found, &byte| found | is_control(byte)) == 0
}

/// Where name and value are in a line without its end, the value without the blanks around it.
pub(super) fn split(line: &[u8]) -> Result<(Range<usize>, Range<usize>), Bad> {
    let colon = token_length(line);
    if colon == 0 || line.get(colon) != Some(&b':') {
        return Err(not_a_name(line, colon));
    }
    let value = &line[colon + 1..];
    if !is_value(value) {
        return Err(not_a_value(value));
    }
    // Spaces and tabs and nothing else: other white space is no part of the grammar.
    let is_content = |byte: &u8| !matches!(byte, b' ' | b'\t');
    let value = match (value.iter().position(is_content), value.iter().rposition(is_content)) {
        (Some(first), Some(last)) => colon + 1 + first..colon + 2 + last,
        _ => line.len()..line.len(),
    };
    Ok((0..colon, value))
}

#[cold]
fn not_a_name(line: &[u8], end: usize) -> Bad {
    match (end, line.get(end)) {
        (0, Some(b' ' | b'\t')) => Bad("a header line that begins with a blank"),
        (0, Some(b':')) => Bad("a header line without a name"),
        (_, Some(b' ' | b'\t')) => Bad("a blank before the colon of a header line"),
        (_, Some(b'\r')) => BARE_CR,
        (_, None) => Bad("a header line without a colon"),
        (_, Some(_)) => Bad("a character that no header name has"),
    }
}

#[cold]
fn not_a_value(value: &[u8]) -> Bad {
    if value.contains(&b'\r') {
        BARE_CR
    } else {
        Bad("a control character in a header value")
    }
}

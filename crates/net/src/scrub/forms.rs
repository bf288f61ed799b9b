//! The literal forms of a secret: what encoders make of it (`egress.md` §3.10).
//!
//! Encoders differ in which characters they escape. The extremes are always there, none and all; between them are the
//! sets that widespread libraries have. For secrets of letters and digits most of these are the same.

use std::fmt::Write as _;

use super::{Form, MIN_NEEDLE_BYTES, SecretForms};

/// As for secrets as a whole: shorter ones are also words.
const MIN_PASSWORD_BYTES: usize = 12;

/// Every form of a secret once, with letters in lower case.
pub(super) fn needles(secret: &SecretForms) -> Vec<(Form, Vec<u8>)> {
    let mut needles = Vec::new();
    let mut add = |form, mut bytes: Vec<u8>| {
        bytes.make_ascii_lowercase();
        let is_new = !needles.iter().any(|(_, other)| *other == bytes);
        if bytes.len() >= MIN_NEEDLE_BYTES && is_new {
            needles.push((form, bytes));
        }
    };
    spell(secret.value, Form::Value, &mut add);
    // Servers that check a password tend to know it without the user's name.
    let password = secret.value.split_once(':').map(|(_, password)| password);
    if let Some(password) = password.filter(|password| secret.basic && password.len() >= MIN_PASSWORD_BYTES) {
        spell(password, Form::Basic, &mut add);
    }
    if let Some(rendered) = secret.rendered {
        let form = if secret.basic { Form::Basic } else { Form::Rendered };
        add(form, rendered.into());
        if !rendered.contains(secret.value) {
            // Its forms are then not found by those of the value. The scheme before it is no secret.
            let credentials = rendered.rsplit(' ').next().unwrap_or(rendered);
            spell(if secret.basic { credentials } else { rendered }, form, &mut add);
        }
    }
    needles
}

fn spell(text: &str, plain: Form, add: &mut impl FnMut(Form, Vec<u8>)) {
    let bytes = text.as_bytes();
    add(plain, bytes.into());
    // With no byte before the text, two, or one: where its first digit begins that has no bit of those.
    for first_bit in [0, 2, 4] {
        let inner = base64_inner(bytes, first_bit);
        let for_urls = inner.iter().map(|&digit| match digit {
            b'+' => b'-',
            b'/' => b'_',
            other => other,
        });
        let for_urls = for_urls.collect();
        add(Form::Base64, inner);
        add(Form::Base64Url, for_urls);
    }
    add(Form::Hex, hex(bytes, ""));
    for kept in PERCENT_KEEPS {
        add(Form::Percent, percent(bytes, kept, false));
        add(Form::Percent, percent(bytes, kept, true));
    }
    add(Form::Percent, hex(bytes, "%"));
    for escaped in JSON_ESCAPES {
        for (slash, ascii_only) in [(false, false), (false, true), (true, false), (true, true)] {
            add(
                Form::Json,
                json(text, slash, |char| {
                    escaped.contains(char) || (ascii_only && !char.is_ascii())
                }),
            );
        }
    }
    add(Form::Json, json(text, false, |_| true));
    for entities in HTML_ENTITIES {
        add(
            Form::Html,
            html(text, |char| {
                let entity = entities.iter().find(|(other, _)| *other == char);
                entity.map(|(_, entity)| (*entity).to_owned())
            }),
        );
    }
    add(Form::Html, html(text, |char| Some(format!("&#{};", u32::from(char)))));
    add(
        Form::Html,
        html(text, |char| Some(format!("&#x{:x};", u32::from(char)))),
    );
    add(Form::Utf16, text.encode_utf16().flat_map(u16::to_le_bytes).collect());
    add(Form::Utf16, text.encode_utf16().flat_map(u16::to_be_bytes).collect());
}

/// The digits of Base64 from a bit on, as far as they are the same whatever comes after the bytes.
fn base64_inner(bytes: &[u8], first_bit: usize) -> Vec<u8> {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bit = |at: usize| bytes[at / 8] >> (7 - at % 8) & 1;
    (first_bit..)
        .step_by(6)
        .take_while(|start| start + 6 <= bytes.len() * 8)
        .map(|start| (start..start + 6).fold(0, |digit, at| digit << 1 | bit(at)))
        .map(|digit| DIGITS[usize::from(digit)])
        .collect()
}

/// Two digits for each byte, with something before them.
fn hex(bytes: &[u8], before: &str) -> Vec<u8> {
    let mut text = String::with_capacity(bytes.len() * (2 + before.len()));
    for byte in bytes {
        let _ = write!(text, "{before}{byte:02x}");
    }
    text.into_bytes()
}

/// What percent-encoders leave as it is, besides letters and digits.
const PERCENT_KEEPS: [&[u8]; 9] = [
    // Nothing: what some encoders of forms and of cautious templates do.
    b"",
    // RFC 3986: unreserved.
    b"-._~",
    // `encodeURIComponent`.
    b"-._~!*'()",
    // `encodeURI`.
    b"-._~!*'();,/?:@&=+$#",
    // Python's `quote`.
    b"-._~/",
    // Forms.
    b"-._*",
    // RFC 3986: a segment of a path, and a query.
    b"-._~!$&'()*+,;=:@",
    b"-._~!$&'()*+,;=:@/?",
    // WHATWG: a path.
    b"-._~!$%&'()*+,;=:@/[]\\^|",
];

fn percent(bytes: &[u8], kept: &[u8], plus_for_space: bool) -> Vec<u8> {
    let mut text = Vec::with_capacity(bytes.len() + 16);
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || kept.contains(&byte) {
            text.push(byte);
        } else if byte == b' ' && plus_for_space {
            text.push(b'+');
        } else {
            text.extend(hex(&[byte], "%"));
        }
    }
    text
}

/// What JSON's encoders write as `\uXXXX` besides what must be.
const JSON_ESCAPES: [&str; 4] = [
    "",       // Go.
    "<>&",    // PHP with all its options, Rails.
    "<>&'\"", // .NET.
    "<>&'\"+`",
];

fn json(text: &str, escape_slash: bool, is_escaped: impl Fn(char) -> bool) -> Vec<u8> {
    let mut escaped = String::with_capacity(text.len() + 16);
    for char in text.chars() {
        match char {
            _ if is_escaped(char) => {
                for unit in char.encode_utf16(&mut [0; 2]) {
                    let _ = write!(escaped, "\\u{unit:04x}");
                }
            }
            '"' | '\\' => escaped.extend(['\\', char]),
            '/' if escape_slash => escaped.push_str("\\/"),
            '\t' => escaped.push_str("\\t"),
            _ => escaped.push(char),
        }
    }
    escaped.into_bytes()
}

type Entities = &'static [(char, &'static str)];

/// What HTML's encoders write as entities.
const HTML_ENTITIES: [Entities; 7] = [
    &[('&', "&amp;"), ('<', "&lt;"), ('>', "&gt;")],
    &[('&', "&amp;"), ('<', "&lt;"), ('>', "&gt;"), ('"', "&quot;")],
    // Python.
    &[
        ('&', "&amp;"),
        ('<', "&lt;"),
        ('>', "&gt;"),
        ('"', "&quot;"),
        ('\'', "&#x27;"),
    ],
    // Rails, JavaScript.
    &[
        ('&', "&amp;"),
        ('<', "&lt;"),
        ('>', "&gt;"),
        ('"', "&quot;"),
        ('\'', "&#39;"),
    ],
    // Go, Jinja.
    &[
        ('&', "&amp;"),
        ('<', "&lt;"),
        ('>', "&gt;"),
        ('"', "&#34;"),
        ('\'', "&#39;"),
    ],
    // PHP.
    &[
        ('&', "&amp;"),
        ('<', "&lt;"),
        ('>', "&gt;"),
        ('"', "&quot;"),
        ('\'', "&#039;"),
    ],
    // Templates that do not trust the place where they write.
    &[
        ('&', "&amp;"),
        ('<', "&lt;"),
        ('>', "&gt;"),
        ('"', "&quot;"),
        ('\'', "&#39;"),
        ('/', "&#x2f;"),
        ('`', "&#x60;"),
        ('=', "&#x3d;"),
    ],
];

fn html(text: &str, entity: impl Fn(char) -> Option<String>) -> Vec<u8> {
    let mut escaped = String::with_capacity(text.len() + 16);
    for char in text.chars() {
        match entity(char) {
            Some(entity) => escaped.push_str(&entity),
            None => escaped.push(char),
        }
    }
    escaped.into_bytes()
}

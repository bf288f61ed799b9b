//! What encoders make of text, written apart from the gateway's own and in another way.

use std::fmt::Write as _;

/// Text by the names of the encoders that wrote it.
pub(crate) type Encoded = Vec<(&'static str, Vec<u8>)>;

/// Every encoding of which all is to be masked.
pub(crate) fn all(text: &str) -> Encoded {
    let hex: String = escape_bytes(text, |_| false, |byte| format!("{byte:02x}"));
    let mut encoded: Encoded = vec![
        ("as it is", text.into()),
        ("upper case", text.to_ascii_uppercase().into()),
        ("lower case", text.to_ascii_lowercase().into()),
        ("hex", hex.clone().into()),
        ("hex in upper case", hex.to_uppercase().into()),
        ("UTF-16LE", text.encode_utf16().flat_map(u16::to_le_bytes).collect()),
        ("UTF-16BE", text.encode_utf16().flat_map(u16::to_be_bytes).collect()),
    ];
    encoded.extend(percent(text));
    encoded.extend(json(text));
    encoded.extend(html(text));
    encoded
}

/// Base64 with padding.
pub(crate) fn base64(bytes: &[u8], is_for_urls: bool) -> String {
    let mut bits = String::new();
    for byte in bytes {
        write!(bits, "{byte:08b}").expect("a string takes everything");
    }
    let marks = if is_for_urls { "-_" } else { "+/" };
    let digits: Vec<char> = ('A'..='Z')
        .chain('a'..='z')
        .chain('0'..='9')
        .chain(marks.chars())
        .collect();
    let mut text: String = bits
        .as_bytes()
        .chunks(6)
        .map(|chunk| {
            let chunk = format!("{:0<6}", std::str::from_utf8(chunk).expect("digits"));
            digits[usize::from_str_radix(&chunk, 2).expect("digits")]
        })
        .collect();
    while !text.len().is_multiple_of(4) {
        text.push('=');
    }
    text
}

fn escape_bytes(text: &str, keeps: impl Fn(u8) -> bool, write: impl Fn(u8) -> String) -> String {
    let escape = |byte| {
        if keeps(byte) {
            char::from(byte).to_string()
        } else {
            write(byte)
        }
    };
    text.bytes().map(escape).collect()
}

fn escape_chars(text: &str, keeps: impl Fn(char) -> bool, write: impl Fn(char) -> String) -> String {
    let escape = |char| if keeps(char) { String::from(char) } else { write(char) };
    text.chars().map(escape).collect()
}

fn percent(text: &str) -> Encoded {
    let keeping = |marks: &str| {
        let keeps = |byte: u8| byte.is_ascii_alphanumeric() || marks.as_bytes().contains(&byte);
        escape_bytes(text, keeps, |byte| format!("%{byte:02X}"))
    };
    let everywhere = escape_bytes(text, |_| false, |byte| format!("%{byte:02x}"));
    vec![
        ("percent of RFC 3986", keeping("-._~").into()),
        (
            "percent of RFC 3986 in lower case",
            keeping("-._~").to_lowercase().into(),
        ),
        ("percent everywhere", everywhere.to_uppercase().into()),
        ("percent everywhere in lower case", everywhere.into()),
        ("encodeURIComponent", keeping("-._~!*'()").into()),
        ("encodeURI", keeping("-._~!*'();,/?:@&=+$#").into()),
        ("Python's quote", keeping("-._~/").into()),
        ("a form", keeping("-._* ").replace(' ', "+").into()),
    ]
}

fn json(text: &str) -> Encoded {
    let plain = serde_json::to_string(text).expect("text");
    let plain = &plain[1..plain.len() - 1];
    let unicode = |char: char| {
        let mut escaped = String::new();
        for unit in char.encode_utf16(&mut [0; 2]) {
            write!(escaped, "\\u{unit:04x}").expect("a string takes everything");
        }
        escaped
    };
    let ascii = escape_chars(plain, |char| char.is_ascii(), unicode);
    let everywhere = escape_chars(text, |_| false, unicode);
    vec![
        ("JSON", plain.into()),
        ("JSON of Python", ascii.clone().into()),
        ("JSON of PHP", ascii.replace('/', "\\/").into()),
        (
            "JSON of Go",
            escape_chars(plain, |char| !"<>&".contains(char), unicode).into(),
        ),
        ("JSON everywhere", everywhere.clone().into()),
        (
            "JSON everywhere in upper case",
            everywhere.to_uppercase().replace("\\U", "\\u").into(),
        ),
    ]
}

fn html(text: &str) -> Encoded {
    let named = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let quoted = named.replace('"', "&quot;");
    let everywhere = |write: fn(u32) -> String| escape_chars(text, |_| false, |char| write(u32::from(char)));
    vec![
        ("HTML", quoted.clone().into()),
        ("HTML without quotes", named.clone().into()),
        ("HTML of Python", quoted.replace('\'', "&#x27;").into()),
        ("HTML of PHP", quoted.replace('\'', "&#039;").into()),
        ("HTML of Go", named.replace('"', "&#34;").replace('\'', "&#39;").into()),
        ("HTML everywhere", everywhere(|code| format!("&#{code};")).into()),
        (
            "HTML everywhere in hex",
            everywhere(|code| format!("&#x{code:x};")).into(),
        ),
        (
            "HTML everywhere in upper hex",
            everywhere(|code| format!("&#X{code:X};")).into(),
        ),
    ]
}

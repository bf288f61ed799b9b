//! Query strings as rules see them, and as edits leave them.

use super::path::escape;

/// Name and value of every parameter, decoded: `&` separates, `+` is a blank, broken escapes stay as they are.
pub(crate) fn parameters(raw: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    pieces(raw)
        .map(|piece| {
            let (name, value) = cut(piece);
            (decode(name), decode(value))
        })
        .collect()
}

/// The query without the parameters of these names, byte for byte.
pub(crate) fn without(raw: &[u8], names: &[&str]) -> Vec<u8> {
    let kept: Vec<&[u8]> = pieces(raw)
        .filter(|piece| {
            let name = decode(cut(piece).0);
            !names.iter().any(|other| other.as_bytes() == name)
        })
        .collect();
    kept.join(&b'&')
}

fn pieces(raw: &[u8]) -> impl Iterator<Item = &[u8]> {
    raw.split(|&byte| byte == b'&').filter(|piece| !piece.is_empty())
}

fn cut(piece: &[u8]) -> (&[u8], &[u8]) {
    match piece.iter().position(|&byte| byte == b'=') {
        Some(at) => (&piece[..at], &piece[at + 1..]),
        None => (piece, &[]),
    }
}

fn decode(raw: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(raw.len());
    let mut at = 0;
    while at < raw.len() {
        if let Some(byte) = escape(raw, at) {
            text.push(byte);
            at += 3;
        } else {
            text.push(if raw[at] == b'+' { b' ' } else { raw[at] });
            at += 1;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes_names_and_values() {
        let pairs = parameters(b"a=1&b=x+y%26&&c&%61=2&=v&bad=%zz");
        let texts: Vec<(String, String)> = pairs
            .into_iter()
            .map(|(name, value)| (String::from_utf8(name).unwrap(), String::from_utf8(value).unwrap()))
            .collect();
        let expected = [
            ("a", "1"),
            ("b", "x y&"),
            ("c", ""),
            ("a", "2"),
            ("", "v"),
            ("bad", "%zz"),
        ];
        assert_eq!(texts, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    #[test]
    fn removes_every_spelling_of_a_name_and_keeps_the_rest_as_it_was() {
        assert_eq!(without(b"x=%7e&key=1&k%65y=2&y=a+b", &["key"]), b"x=%7e&y=a+b");
        assert_eq!(without(b"key=1", &["key"]), b"");
    }
}

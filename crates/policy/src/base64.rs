//! Base64 as it is written, and as it is found.

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD as WRITTEN, URL_SAFE_NO_PAD};

const FOUND: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// With the standard alphabet, padded.
pub fn encode(bytes: &[u8]) -> String {
    WRITTEN.encode(bytes)
}

/// With the alphabet for URLs, without padding.
pub fn encode_url(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// What any server could read out of it: either alphabet, with or without padding, up to the first sign of padding. `None`
/// for what is no Base64.
pub fn decode(text: &[u8]) -> Option<Vec<u8>> {
    let digits = text.trim_ascii().split(|&byte| byte == b'=').next()?;
    let standard: Vec<u8> = digits
        .iter()
        .map(|&byte| match byte {
            b'-' => b'+',
            b'_' => b'/',
            other => other,
        })
        .collect();
    // One digit alone is no byte.
    let whole = if standard.len() % 4 == 1 {
        standard.len() - 1
    } else {
        standard.len()
    };
    FOUND.decode(&standard[..whole]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        for text in ["", "a", "ab", "abc", "user:pass\u{e9}"] {
            assert_eq!(decode(encode(text.as_bytes()).as_bytes()).unwrap(), text.as_bytes());
            assert_eq!(decode(encode_url(text.as_bytes()).as_bytes()).unwrap(), text.as_bytes());
        }
        assert_eq!(encode(b"user:pass"), "dXNlcjpwYXNz");
        assert_eq!(encode_url(b"\xfb\xff"), "-_8");
    }

    #[test]
    fn what_some_servers_read_is_read() {
        for text in ["dXNlcg==", " dXNlcg ", "dXNlcg=garbage", "dXNlch", "dXNlcgA"] {
            assert_eq!(&decode(text.as_bytes()).unwrap()[..4], b"user", "{text}");
        }
        assert_eq!(decode(b"%%"), None);
    }
}

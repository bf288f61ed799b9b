//! Text that somebody else chose, made harmless.

use std::fmt::Write as _;

use hutch_policy::Defence;

/// Bytes as visible ASCII, others as `\xNN`, up to `limit` characters; and whether there was more. No `\xNN` is cut.
pub(super) fn visible(bytes: &[u8], limit: usize) -> (String, bool) {
    let mut text = String::with_capacity(bytes.len().min(limit));
    for &byte in bytes {
        let is_visible = matches!(byte, b' '..=b'~') || !Defence::EscapedRecords.holds();
        if text.len() + if is_visible { 1 } else { 4 } > limit {
            return (text, true);
        }
        if is_visible {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    (text, false)
}

/// A request's target without what may be secret: its path, and of its query the names of the parameters.
///
/// A scheme and an authority go, as the latter may have a password, and so does what follows a `#`.
pub(super) fn without_values(target: &[u8]) -> Vec<u8> {
    let target = match memchr::memmem::find(target, b"://") {
        Some(at) if target[0] != b'/' => {
            let rest = &target[at + 3..];
            let path = rest.iter().position(|byte| matches!(byte, b'/' | b'?' | b'#'));
            path.map_or(&b"/"[..], |at| &rest[at..])
        }
        // The target of `CONNECT` is an authority.
        None if target.first() != Some(&b'/') => {
            let host = memchr::memrchr(b'@', target).map_or(0, |at| at + 1);
            &target[host..]
        }
        _ => target,
    };
    let end = target
        .iter()
        .position(|&byte| byte == b'#')
        .map_or(target.len(), |at| at + 1);
    let target = &target[..end];
    let Some(query) = memchr::memchr(b'?', target) else {
        return target.to_vec();
    };
    let mut shown = target[..=query].to_vec();
    for (index, parameter) in target[query + 1..].split(|&byte| byte == b'&').enumerate() {
        if index > 0 {
            shown.push(b'&');
        }
        let name = parameter.split(|&byte| byte == b'=').next().unwrap_or(parameter);
        shown.extend_from_slice(name);
    }
    shown
}

/// Text that many records share.
#[allow(clippy::trivially_copy_pass_by_ref)]
pub(super) fn shared<S: serde::Serializer>(text: &std::sync::Arc<str>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(text)
}

/// Lower-case hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

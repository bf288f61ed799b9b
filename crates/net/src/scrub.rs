//! Masking secrets in responses.
//!
//! What the gateway puts into a request may come back: an echo, an error page, a redirect. [`Needles`] know every literal
//! form of some secrets (`forms`), and a [`Scrubber`] writes `*` over each of their bytes in a stream, so that lengths
//! stay what they were.
//!
//! The search is one Aho-Corasick automaton, whose state after some bytes is the longest end of them that begins a
//! needle. That makes it independent of how the bytes are cut: a state is all that is carried over, and exactly the bytes
//! of that end are held back, since only they can still become part of an occurrence. Bytes that begin nothing go out at
//! once, and a stream of events is not delayed. While no needle has begun, the text is skipped in larger steps
//! (`needles`).
//!
//! Letters are compared without regard to case. What has been computed in another way than by one of the forms (turned
//! around, hashed, one byte per response) is not found; only the scope of the rule can help against that.

mod forms;
mod needles;
mod stream;

pub use needles::Needles;
pub use stream::{Hit, Scrubber};

/// Needles of fewer bytes would mask what merely looks like them.
const MIN_NEEDLE_BYTES: usize = 8;

/// A secret, and how it is sent.
#[derive(Clone, Copy)]
pub struct SecretForms<'a> {
    /// What [`Hit`] calls it.
    pub id: usize,
    /// The secret. With fewer than 12 bytes scrubbing is no use; the caller refuses those.
    pub value: &'a str,
    /// The whole header value that is sent, where that is more than the secret.
    pub rendered: Option<&'a str>,
    /// Whether it is `Basic` with Base64 in it.
    pub basic: bool,
}

/// How a secret was written where it was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Form {
    /// As it is.
    Value,
    /// The whole header value.
    Rendered,
    /// The credentials of `Basic`.
    Basic,
    /// Base64, possibly with something before and after it.
    Base64,
    /// Base64 for URLs.
    Base64Url,
    /// Hexadecimal.
    Hex,
    /// With `%xx`.
    Percent,
    /// In a JSON string.
    Json,
    /// With HTML's entities.
    Html,
    /// UTF-16, either byte order.
    Utf16,
}

impl Form {
    /// Every form.
    pub const ALL: [Self; 10] = [
        Self::Value,
        Self::Rendered,
        Self::Basic,
        Self::Base64,
        Self::Base64Url,
        Self::Hex,
        Self::Percent,
        Self::Json,
        Self::Html,
        Self::Utf16,
    ];

    /// As in audit records.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Value => "value",
            Self::Rendered => "rendered",
            Self::Basic => "basic",
            Self::Base64 => "base64",
            Self::Base64Url => "base64url",
            Self::Hex => "hex",
            Self::Percent => "percent",
            Self::Json => "json",
            Self::Html => "html",
            Self::Utf16 => "utf16",
        }
    }
}

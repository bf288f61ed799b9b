//! HTTP/1 as a server speaks it, without I/O: strict, refusing what it does not understand and repairing nothing.
//!
//! * `head`: [`read_head`], the bytes of a request → a [`Head`] whose framing has one reading
//! * `body`: [`BodyDecoder`], the bytes after it → data and trailers
//! * `write`: heads of responses, chunks
//! * `fields`: header lines, which heads and trailers have in common
//!
//! Most of the holes of proxies come from being kind: two parsers that both guess what a client meant guess differently,
//! and a request hides between them. So there is one answer to every violation, [`Bad`]: the caller answers 400 and
//! closes. What the fields *say* (`Host`, the path, the method) is judged elsewhere; here it is only made sure that
//! they can be told apart, and where the body ends.

mod body;
mod fields;
mod head;
mod write;

pub use body::{BodyDecoder, Chunked, Decoded, Length};
pub use head::{BodyKind, Head, HeadLimits, Version, read_head};
pub use write::{Framing, write_chunk, write_last_chunk, write_response_head};

/// The bytes are not HTTP/1 as we read it, and why. What follows them cannot be trusted: answer 400 and close.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bad(pub &'static str);

impl std::fmt::Display for Bad {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Bad {}

/// Trailer fields, in order.
pub type Trailers = Vec<(Vec<u8>, Vec<u8>)>;

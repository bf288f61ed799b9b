//! The queue of bytes that wait for the transport.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::Arc;

use crate::frame::Header;

/// Small frames are collected in blocks of about this size, so that one write takes many of them.
const BLOCK_BYTES: usize = 16 * 1024;

#[derive(Debug)]
enum Segment {
    Bytes {
        bytes: Vec<u8>,
        start: usize,
    },
    Shared {
        bytes: Arc<Vec<u8>>,
        start: usize,
        end: usize,
    },
}

impl Segment {
    fn rest(&self) -> &[u8] {
        match self {
            Self::Bytes { bytes, start } => &bytes[*start..],
            Self::Shared { bytes, start, end } => &bytes[*start..*end],
        }
    }
}

/// Encoded frames in the order in which they leave. Large payloads are shared with their owner, not copied.
#[derive(Debug, Default)]
pub struct Outgoing {
    segments: VecDeque<Segment>,
    length: usize,
}

impl Outgoing {
    /// Bytes that wait.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Queue a frame whose payload is copied.
    pub fn push(&mut self, header: Header, payload: &[u8]) {
        debug_assert_eq!(header.length as usize, payload.len());
        let block = self.block();
        block.extend_from_slice(&header.to_bytes());
        block.extend_from_slice(payload);
        self.length += header.to_bytes().len() + payload.len();
    }

    /// Queue a frame whose payload is `bytes[start..start + header.length]`.
    pub fn push_shared(&mut self, header: Header, bytes: &Arc<Vec<u8>>, start: usize) {
        let length = header.length as usize;
        if length < 1024 {
            self.push(header, &bytes[start..start + length]);
            return;
        }
        self.block().extend_from_slice(&header.to_bytes());
        self.segments.push_back(Segment::Shared {
            bytes: Arc::clone(bytes),
            start,
            end: start + length,
        });
        self.length += header.to_bytes().len() + length;
    }

    /// Append what waits to `slices`, up to `limit` pieces, for one vectored write.
    pub fn slices<'a>(&'a self, slices: &mut Vec<IoSlice<'a>>, limit: usize) {
        slices.extend(
            self.segments
                .iter()
                .take(limit)
                .map(|segment| IoSlice::new(segment.rest())),
        );
    }

    /// Forget the first `written` bytes.
    pub fn consume(&mut self, mut written: usize) {
        debug_assert!(written <= self.length);
        self.length -= written;
        while let Some(segment) = self.segments.front_mut() {
            let rest = segment.rest().len();
            if rest > written {
                match segment {
                    Segment::Bytes { start, .. } | Segment::Shared { start, .. } => *start += written,
                }
                return;
            }
            written -= rest;
            self.segments.pop_front();
        }
    }

    /// Take everything out as one piece; for tests and for transports without vectored writes.
    pub fn take(&mut self) -> Vec<u8> {
        let mut all = Vec::with_capacity(self.length);
        for segment in self.segments.drain(..) {
            all.extend_from_slice(segment.rest());
        }
        self.length = 0;
        all
    }

    fn block(&mut self) -> &mut Vec<u8> {
        let fits = matches!(self.segments.back(), Some(Segment::Bytes { bytes, .. }) if bytes.len() < BLOCK_BYTES);
        if !fits {
            self.segments.push_back(Segment::Bytes {
                bytes: Vec::new(),
                start: 0,
            });
        }
        match self.segments.back_mut() {
            Some(Segment::Bytes { bytes, .. }) => bytes,
            _ => unreachable!("a block was just pushed"),
        }
    }
}

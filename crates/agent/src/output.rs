//! The output of one command that the host has not acknowledged yet, and where the attached stream is in it.
//!
//! Credit is the acknowledgement: the host grants what it has dealt with, in the order in which it was sent.

use std::collections::VecDeque;
use std::sync::Arc;

use hutch_wire::{MAX_PAYLOAD_BYTES, Mux, encode};

use crate::requests::Skipped;

/// Small reads are joined into pieces of up to this size, so that a command that writes byte by byte costs no more.
const JOIN_BYTES: usize = 64 * 1024;
/// Alternating one-byte writes to two channels cannot be joined; this bounds what their bookkeeping costs.
const MAX_PIECES: usize = 4096;
/// Reads below this are copied out of the read buffer instead of keeping it.
const COPY_BYTES: usize = 16 * 1024;

#[derive(Debug)]
struct Piece {
    channel: u8,
    offset: u64,
    bytes: Arc<Vec<u8>>,
}

impl Piece {
    fn end(&self) -> u64 {
        self.offset + self.bytes.len() as u64
    }
}

/// What credit acknowledges.
#[derive(Debug)]
enum Sent {
    Data { length: u64, end: u64 },
    Event { length: u64 },
}

/// Buffers to read into that pieces gave back.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    scratch: Vec<u8>,
    free: Vec<Vec<u8>>,
}

/// Enough for a whole frame.
pub(crate) const READ_BYTES: usize = MAX_PAYLOAD_BYTES;
const FREE_BUFFERS: usize = 8;

impl Buffers {
    /// An empty buffer of `READ_BYTES`.
    pub(crate) fn scratch(&mut self) -> &mut Vec<u8> {
        self.scratch.clear();
        if self.scratch.capacity() < READ_BYTES {
            self.scratch = self.free.pop().unwrap_or_default();
            self.scratch.clear();
            self.scratch.reserve_exact(READ_BYTES);
        }
        &mut self.scratch
    }

    fn give_back(&mut self, bytes: Arc<Vec<u8>>) {
        if let Ok(buffer) = Arc::try_unwrap(bytes)
            && buffer.capacity() >= READ_BYTES
            && self.free.len() < FREE_BUFFERS
        {
            self.free.push(buffer);
        }
    }

    /// Free all of it.
    pub(crate) fn release(&mut self) {
        *self = Self::default();
    }
}

/// Retained output.
#[derive(Debug, Default)]
pub(crate) struct Output {
    pieces: VecDeque<Piece>,
    retained: usize,
    /// Bytes that the command has written so far.
    end: u64,
    /// Offset of the next byte that the attached stream gets.
    next: u64,
    unacknowledged: VecDeque<Sent>,
}

impl Output {
    /// The first offset that is still there.
    pub(crate) fn start(&self) -> u64 {
        self.pieces.front().map_or(self.end, |piece| piece.offset)
    }

    /// The offset after the last byte.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// Bytes that are kept.
    pub(crate) fn retained(&self) -> usize {
        self.retained
    }

    /// Bytes that may be read from the command now.
    pub(crate) fn room(&self, window: usize) -> usize {
        if self.pieces.len() >= MAX_PIECES {
            0
        } else {
            window.saturating_sub(self.retained)
        }
    }

    /// Keep what was just read into the scratch buffer.
    pub(crate) fn keep(&mut self, channel: u8, buffers: &mut Buffers) {
        let length = buffers.scratch.len();
        let offset = self.end;
        self.end += length as u64;
        self.retained += length;
        if length >= COPY_BYTES {
            let bytes = Arc::new(std::mem::take(&mut buffers.scratch));
            self.pieces.push_back(Piece { channel, offset, bytes });
            return;
        }
        if let Some(last) = self.pieces.back_mut()
            && last.channel == channel
            && last.end() == offset
            && last.bytes.len() + length <= JOIN_BYTES
            && let Some(bytes) = Arc::get_mut(&mut last.bytes)
        {
            bytes.extend_from_slice(&buffers.scratch);
            return;
        }
        self.pieces.push_back(Piece {
            channel,
            offset,
            bytes: Arc::new(buffers.scratch.clone()),
        });
    }

    /// Count bytes that were read and dropped.
    pub(crate) fn skip(&mut self, length: usize) {
        self.end += length as u64;
    }

    /// Drop what was not sent yet; it counts as skipped.
    pub(crate) fn drop_unsent(&mut self, buffers: &mut Buffers) {
        while let Some(last) = self.pieces.back() {
            if last.end() <= self.next || last.offset < self.next {
                break;
            }
            self.retained -= last.bytes.len();
            if let Some(piece) = self.pieces.pop_back() {
                buffers.give_back(piece.bytes);
            }
        }
    }

    /// Drop everything that is kept.
    pub(crate) fn drop_all(&mut self) {
        self.pieces.clear();
        self.retained = 0;
    }

    /// Start a new stream at `offset`, which acknowledges what is before it; `None` continues with what is there.
    /// The offset at which it really starts, or nothing when the command has not written that much.
    pub(crate) fn attach(&mut self, offset: Option<u64>, buffers: &mut Buffers) -> Option<u64> {
        let wanted = offset.unwrap_or_else(|| self.start());
        if wanted > self.end {
            return None;
        }
        self.unacknowledged.clear();
        self.forget_until(wanted, buffers);
        self.next = wanted.max(self.start());
        Some(self.next)
    }

    /// The host has dealt with `bytes` more of what was sent.
    pub(crate) fn acknowledge(&mut self, bytes: u32, buffers: &mut Buffers) {
        let mut bytes = u64::from(bytes);
        let mut until = None;
        while bytes > 0 {
            let Some(sent) = self.unacknowledged.front_mut() else {
                break;
            };
            match sent {
                Sent::Data { length, end } => {
                    let part = bytes.min(*length);
                    bytes -= part;
                    *length -= part;
                    until = Some(*end - *length);
                    if *length > 0 {
                        break;
                    }
                }
                Sent::Event { length } => {
                    let part = bytes.min(*length);
                    bytes -= part;
                    *length -= part;
                    if *length > 0 {
                        break;
                    }
                }
            }
            self.unacknowledged.pop_front();
        }
        if let Some(offset) = until {
            self.forget_until(offset, buffers);
        }
    }

    fn forget_until(&mut self, offset: u64, buffers: &mut Buffers) {
        while let Some(first) = self.pieces.front() {
            if first.end() > offset {
                break;
            }
            self.retained -= first.bytes.len();
            if let Some(piece) = self.pieces.pop_front() {
                buffers.give_back(piece.bytes);
            }
        }
    }

    /// Whether `send` has something to do, credit aside.
    pub(crate) fn is_pending(&self) -> bool {
        self.next < self.end
    }

    /// Send what credit allows until about `limit` bytes wait for the transport. True when everything was sent;
    /// `flush` also reports what was skipped at the very end.
    pub(crate) fn send(&mut self, mux: &mut Mux, stream: u32, limit: usize, flush: bool) -> bool {
        let mut index = self.pieces.partition_point(|piece| piece.end() <= self.next);
        while let Some(piece) = self.pieces.get(index) {
            let credit = mux.send_credit(stream);
            if credit == 0 || mux.outgoing.len() >= limit {
                return false;
            }
            let gap = piece.offset.saturating_sub(self.next);
            if gap > 0 {
                if !send_skipped(&mut self.unacknowledged, mux, stream, gap) {
                    return false;
                }
                self.next = piece.offset;
                continue;
            }
            let start = (self.next - piece.offset) as usize;
            let length = (piece.bytes.len() - start).min(credit).min(MAX_PAYLOAD_BYTES);
            mux.data(stream, piece.channel, &piece.bytes, start, length);
            self.next += length as u64;
            match self.unacknowledged.back_mut() {
                Some(Sent::Data { length: before, end }) if *end + length as u64 == self.next => {
                    *before += length as u64;
                    *end = self.next;
                }
                _ => self.unacknowledged.push_back(Sent::Data {
                    length: length as u64,
                    end: self.next,
                }),
            }
            if self.next == piece.end() {
                index += 1;
            }
        }
        if flush && self.next < self.end {
            if !send_skipped(&mut self.unacknowledged, mux, stream, self.end - self.next) {
                return false;
            }
            self.next = self.end;
        }
        true
    }

    /// Send the last event of the stream, if credit allows it.
    pub(crate) fn send_event(&mut self, mux: &mut Mux, stream: u32, payload: &[u8]) -> bool {
        if mux.send_credit(stream) < payload.len() {
            return false;
        }
        mux.event(stream, payload);
        self.unacknowledged.push_back(Sent::Event {
            length: payload.len() as u64,
        });
        true
    }
}

fn send_skipped(unacknowledged: &mut VecDeque<Sent>, mux: &mut Mux, stream: u32, skipped: u64) -> bool {
    let payload = encode(&Skipped { skipped });
    if mux.send_credit(stream) < payload.len() {
        return false;
    }
    mux.event(stream, &payload);
    unacknowledged.push_back(Sent::Event {
        length: payload.len() as u64,
    });
    true
}

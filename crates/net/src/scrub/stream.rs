//! Masking in a stream.

use std::sync::Arc;

use bytes::BytesMut;

use super::Form;
use super::needles::{Found, Needles, Owner, State};

/// Occurrences that are remembered one by one. All are counted.
const MAX_HITS: usize = 64;

/// An occurrence of a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hit {
    /// Which secret.
    pub id: usize,
    /// How it was written.
    pub form: Form,
}

impl Needles {
    /// A scrubber at the start of a stream.
    pub fn scrubber(self: &Arc<Self>) -> Scrubber {
        Scrubber {
            state: State::START,
            held: Vec::new(),
            place: 0,
            count: Count {
                hits: Vec::new(),
                totals: vec![0; self.ids.len()],
                ends: vec![0; self.ids.len()],
            },
            needles: Arc::clone(self),
        }
    }
}

/// Masks the secrets in one stream of bytes.
pub struct Scrubber {
    needles: Arc<Needles>,
    state: State,
    /// The last bytes so far, masked as far as is known: what begins a needle.
    held: Vec<u8>,
    /// How many bytes came before.
    place: u64,
    count: Count,
}

impl Scrubber {
    /// Take the next bytes, and append to `out` what can be said of the bytes so far.
    pub fn push(&mut self, chunk: &[u8], out: &mut BytesMut) {
        let start = out.len() + self.held.len();
        out.extend_from_slice(&self.held);
        out.extend_from_slice(chunk);
        let (place, count, ids) = (self.place, &mut self.count, &self.needles.ids);
        self.state = self.needles.scan(self.state, chunk, |end, found| {
            // It does not begin before what was held back, which was all that it could begin in.
            out[start + end - found.longest..start + end].fill(b'*');
            count.see(place + end as u64, &found, ids);
        });
        self.place += chunk.len() as u64;
        self.held.clear();
        let held = out.len() - self.needles.held(self.state);
        self.held.extend_from_slice(&out[held..]);
        out.truncate(held);
    }

    /// The stream ends: append what was held back.
    pub fn finish(&mut self, out: &mut BytesMut) {
        out.extend_from_slice(&self.held);
        self.held.clear();
        self.state = State::START;
    }

    /// [`Needles::scrub_value`] that also counts: for the headers and trailers of the same response.
    pub fn scrub_value(&mut self, value: &[u8]) -> Option<Vec<u8>> {
        let mut masked = None;
        let (count, ids) = (&mut self.count, &self.needles.ids);
        let ends = std::mem::replace(&mut count.ends, vec![0; ids.len()]);
        self.needles.scan(State::START, value, |end, found| {
            let masked = masked.get_or_insert_with(|| value.to_vec());
            masked[end - found.longest..end].fill(b'*');
            count.see(end as u64, &found, ids);
        });
        count.ends = ends;
        masked
    }

    /// The first occurrences. Those of one secret that overlap are one.
    pub fn hits(&self) -> &[Hit] {
        &self.count.hits
    }

    /// How often each secret occurred, with its id.
    pub fn totals(&self) -> impl Iterator<Item = (usize, u64)> {
        let ids = self.needles.ids.iter().copied();
        ids.zip(self.count.totals.iter().copied())
    }

    /// How often any secret occurred.
    pub fn total(&self) -> u64 {
        self.count.totals.iter().sum()
    }
}

/// What was found.
struct Count {
    hits: Vec<Hit>,
    /// By secret: how often.
    totals: Vec<u64>,
    /// By secret: where its last occurrence ends.
    ends: Vec<u64>,
}

impl Count {
    fn see(&mut self, end: u64, found: &Found, ids: &[usize]) {
        for (length, Owner { secret, form }) in found.each() {
            // The secret inside of its header value, or of a longer form of itself, comes back once and not twice.
            if self.ends[secret] <= end - length as u64 {
                self.totals[secret] += 1;
                if self.hits.len() < MAX_HITS {
                    self.hits.push(Hit { id: ids[secret], form });
                }
            }
            self.ends[secret] = end;
        }
    }
}

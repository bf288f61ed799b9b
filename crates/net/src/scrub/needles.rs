//! The automaton that finds needles, and the skipping of text in which there is none.

use std::fmt;

use aho_corasick::automaton::{Automaton, StateID};
use aho_corasick::nfa::contiguous::NFA;
use aho_corasick::{Anchored, MatchKind};

use super::forms;
use super::{Form, MIN_NEEDLE_BYTES, SecretForms};

/// What to look for in the responses to requests that had some secrets in them.
pub struct Needles {
    search: Option<Search>,
    /// The ids of the secrets.
    pub(super) ids: Vec<usize>,
}

impl Needles {
    /// All forms of some secrets. Forms of fewer than 8 bytes are left out.
    pub fn new(secrets: &[SecretForms]) -> Self {
        let mut needles = Vec::new();
        let mut owners = Vec::new();
        for (index, secret) in secrets.iter().enumerate() {
            for (form, needle) in forms::needles(secret) {
                needles.push(needle);
                owners.push(Owner { secret: index, form });
            }
        }
        Self {
            search: (!needles.is_empty()).then(|| Search::new(&needles, owners)),
            ids: secrets.iter().map(|secret| secret.id).collect(),
        }
    }

    /// A value with the secrets in it masked, or `None` if there are none.
    pub fn scrub_value(&self, value: &[u8]) -> Option<Vec<u8>> {
        let mut masked = None;
        self.scan(State::START, value, |end, found| {
            let masked = masked.get_or_insert_with(|| value.to_vec());
            masked[end - found.longest..end].fill(b'*');
        });
        masked
    }

    /// Look at text that follows what led to `state`, and say of each end of occurrences where it is in `text` and what
    /// ends there.
    pub(super) fn scan<'a>(&'a self, state: State, text: &[u8], found: impl FnMut(usize, Found<'a>)) -> State {
        match &self.search {
            Some(search) => search.scan(state, text, found),
            None => state,
        }
    }

    /// How many of the last bytes that led to `state` may be the start of an occurrence.
    pub(super) fn held(&self, state: State) -> usize {
        self.search.as_ref().map_or(0, |search| search.held(state))
    }
}

/// Shows no secrets.
impl fmt::Debug for Needles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.search.as_ref().map_or(0, |search| search.owners.len());
        write!(f, "Needles({count} of {} secrets)", self.ids.len())
    }
}

/// Whose a needle is.
#[derive(Clone, Copy)]
pub(super) struct Owner {
    /// Its index among the secrets.
    pub(super) secret: usize,
    pub(super) form: Form,
}

/// What the text so far leaves to be expected.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct State(Option<StateID>);

impl State {
    /// Nothing has begun.
    pub(super) const START: Self = Self(None);
}

/// The needles that end at some place.
pub(super) struct Found<'a> {
    search: &'a Search,
    state: StateID,
    /// How long the longest of them is.
    pub(super) longest: usize,
}

impl Found<'_> {
    /// Each of them: how long it is, and whose.
    pub(super) fn each(&self) -> impl Iterator<Item = (usize, Owner)> {
        let automaton = &self.search.automaton;
        (0..automaton.match_len(self.state)).map(|index| {
            let needle = automaton.match_pattern(self.state, index);
            (automaton.pattern_len(needle), self.search.owners[needle.as_usize()])
        })
    }
}

struct Search {
    automaton: NFA,
    start: StateID,
    /// By needle.
    owners: Vec<Owner>,
    /// For each state but the start, how many bytes are to be held back in it. Sorted.
    held: Vec<(StateID, u32)>,
    skip: Skip,
}

impl Search {
    fn new(needles: &[Vec<u8>], owners: Vec<Owner>) -> Self {
        let automaton = NFA::builder()
            .match_kind(MatchKind::Standard)
            .ascii_case_insensitive(true)
            .prefilter(false)
            .build(needles)
            .expect("fewer states than the library can count");
        let start = |anchored| automaton.start_state(anchored).expect("both starts are built");
        Self {
            start: start(Anchored::No),
            held: held(&automaton, needles),
            skip: Skip::new(needles),
            owners,
            automaton,
        }
    }

    fn scan<'a>(&'a self, state: State, text: &[u8], mut found: impl FnMut(usize, Found<'a>)) -> State {
        let automaton = &self.automaton;
        let mut state = state.0.unwrap_or(self.start);
        let mut at = 0;
        while at < text.len() {
            if state == self.start {
                at = self.skip.next(text, at);
            }
            let Some(&byte) = text.get(at) else { break };
            state = automaton.next_state(Anchored::No, state, byte);
            at += 1;
            if automaton.is_match(state) {
                let ends = (0..automaton.match_len(state)).map(|index| automaton.match_pattern(state, index));
                let longest = ends.map(|needle| automaton.pattern_len(needle)).max();
                found(
                    at,
                    Found {
                        search: self,
                        state,
                        longest: longest.unwrap_or(0),
                    },
                );
            }
        }
        State((state != self.start).then_some(state))
    }

    fn held(&self, state: State) -> usize {
        let held = |state: StateID| self.held.binary_search_by_key(&state, |(state, _)| *state);
        let index = state.0.and_then(|state| held(state).ok());
        index.map_or(0, |index| self.held[index].1 as usize)
    }
}

/// How many bytes each state holds back: the longest end of what leads to it that begins a needle and is not all of it.
fn held(automaton: &NFA, needles: &[Vec<u8>]) -> Vec<(StateID, u32)> {
    let start = |anchored| automaton.start_state(anchored).expect("both starts are built");
    let mut held = Vec::new();
    let mut ends = Vec::new();
    for needle in needles {
        let mut state = start(Anchored::Yes);
        for (before, &byte) in needle.iter().enumerate() {
            state = automaton.next_state(Anchored::Yes, state, byte);
            if before + 1 < needle.len() {
                held.push((state, before as u32 + 1));
            }
        }
        ends.push((needle, state));
    }
    held.sort_unstable();
    held.dedup();
    // A needle that begins no longer one holds back what its own ends begin. Those may be such needles again.
    ends.sort_by_key(|(needle, _)| needle.len());
    for (needle, end) in ends {
        if let Err(place) = held.binary_search_by_key(&end, |(state, _)| *state) {
            let walk = |state, &byte| automaton.next_state(Anchored::No, state, byte);
            let shorter = needle[1..].iter().fold(start(Anchored::No), walk);
            let found = held.binary_search_by_key(&shorter, |(state, _)| *state);
            let count = found.map_or(0, |index| held[index].1);
            held.insert(place, (end, count));
        }
    }
    held
}

/// Bytes of text that are looked at together.
const BLOCK_BYTES: usize = 4;
/// A longer one would let larger steps be taken, for more blocks to remember.
const MAX_WINDOW_BYTES: usize = 32;

/// Steps over text in which no needle begins (Wu and Manber 1994).
///
/// A window is as long as the shortest needle. If the block at its end is in no needle's first `window` bytes, then no
/// needle begins where the window does, nor anywhere until the block is left behind; if it is, then only so far before
/// it as it is into the needle. Most text is stepped over with one look for many bytes, whatever bytes needles begin with.
struct Skip {
    window: usize,
    /// By the hash of a block: how many places from the window's start on a needle cannot begin at.
    steps: Box<[u8]>,
    hash_shift: u32,
}

impl Skip {
    fn new(needles: &[Vec<u8>]) -> Self {
        let shortest = needles.iter().map(Vec::len).min().unwrap_or(0);
        debug_assert!(shortest >= MIN_NEEDLE_BYTES);
        let window = shortest.min(MAX_WINDOW_BYTES);
        let blocks = window - BLOCK_BYTES + 1;
        // Sparse, so that few blocks of other text are taken for one of a needle's; and still in the nearest cache.
        let bits = (needles.len() * blocks * 8).next_power_of_two().ilog2().clamp(10, 15);
        let mut skip = Self {
            window,
            steps: vec![blocks as u8; 1 << bits].into_boxed_slice(),
            hash_shift: 32 - bits,
        };
        for needle in needles {
            for (at, block) in needle[..window].windows(BLOCK_BYTES).enumerate() {
                let step = &mut skip.steps[hash(block, skip.hash_shift)];
                *step = (*step).min((blocks - 1 - at) as u8);
            }
        }
        skip
    }

    /// The first place from `at` on where a needle may begin.
    fn next(&self, text: &[u8], mut at: usize) -> usize {
        while let Some(block) = text.get(at + self.window - BLOCK_BYTES..at + self.window) {
            match self.steps[hash(block, self.hash_shift)] {
                0 => return at,
                step => at += usize::from(step),
            }
        }
        // Too near to the end of the text for a whole window.
        at
    }
}

/// The same for letters of either case.
fn hash(block: &[u8], shift: u32) -> usize {
    let block = u32::from_le_bytes(block.try_into().expect("a block")) | 0x2020_2020;
    (block.wrapping_mul(0x9e37_79b1) >> shift) as usize
}

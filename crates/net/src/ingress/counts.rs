//! What is counted since the process started. Nothing here has a name of a sandbox or a client.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use http::StatusCode;
use serde::Serialize;

use super::answer::Refusal;

/// How requests ended that a program has answered: by the class of its status, and two that are no answers.
const RESULTS: [&str; 7] = ["1xx", "2xx", "3xx", "4xx", "5xx", "other", "reset"];
const OTHER: usize = 5;
const RESET: usize = 6;

/// Why a connection is closed unread.
#[derive(Debug, Clone, Copy)]
pub enum Full {
    /// There are as many as may be.
    All,
    /// This address has as many as one may have.
    Client,
}

const FULL: [&str; 2] = ["all", "client"];

/// How a sandbox was resumed for requests.
#[derive(Debug, Clone, Copy)]
pub enum Waked {
    /// It runs.
    Resumed,
    /// It does not, or not in time.
    Failed,
}

const WAKED: [&str; 2] = ["resumed", "failed"];

/// Counters.
#[derive(Default)]
pub struct Counts {
    results: [AtomicU64; RESULTS.len()],
    refusals: [AtomicU64; Refusal::ALL.len()],
    closed: [AtomicU64; FULL.len()],
    waked: [AtomicU64; WAKED.len()],
    received: AtomicU64,
    sent: AtomicU64,
}

/// What they say.
#[derive(Serialize)]
pub struct Counted {
    results: BTreeMap<&'static str, u64>,
    refusals: BTreeMap<&'static str, u64>,
    closed: BTreeMap<&'static str, u64>,
    wakes: BTreeMap<&'static str, u64>,
    received_bytes: u64,
    sent_bytes: u64,
}

impl Counts {
    /// A program answered.
    pub fn answered(&self, status: StatusCode) {
        let class = usize::from(status.as_u16() / 100);
        add(
            &self.results[class.checked_sub(1).map_or(OTHER, |class| class.min(OTHER))],
            1,
        );
    }

    /// A program reset its stream.
    pub fn reset(&self) {
        add(&self.results[RESET], 1);
    }

    /// A request was answered here.
    pub fn refused(&self, refusal: Refusal) {
        add(&self.refusals[refusal as usize], 1);
    }

    /// A connection was closed unread.
    pub fn closed(&self, why: Full) {
        add(&self.closed[why as usize], 1);
    }

    /// Requests had a sandbox resumed.
    pub fn waked(&self, how: Waked) {
        add(&self.waked[how as usize], 1);
    }

    /// Bytes came from a client.
    pub fn received(&self, count: usize) {
        add(&self.received, count as u64);
    }

    /// Bytes went to a client.
    pub fn sent(&self, count: usize) {
        add(&self.sent, count as u64);
    }

    /// As of now.
    pub fn counted(&self) -> Counted {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let named = |names: &[&'static str], counters: &[AtomicU64]| {
            names.iter().copied().zip(counters.iter().map(read)).collect()
        };
        Counted {
            results: named(&RESULTS, &self.results),
            refusals: named(&Refusal::ALL.map(|refusal| refusal.code().1), &self.refusals),
            closed: named(&FULL, &self.closed),
            wakes: named(&WAKED, &self.waked),
            received_bytes: read(&self.received),
            sent_bytes: read(&self.sent),
        }
    }
}

fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_and_every_refusal_has_its_counter() {
        let counts = Counts::default();
        for status in 100..1000 {
            counts.answered(StatusCode::from_u16(status).unwrap());
        }
        for (number, refusal) in Refusal::ALL.into_iter().enumerate() {
            assert_eq!(refusal as usize, number);
            counts.refused(refusal);
        }
        let counted = counts.counted();
        for (class, count) in counted.results {
            let expected = match class {
                "other" => 400,
                "reset" => 0,
                _ => 100,
            };
            assert_eq!(count, expected, "{class}");
        }
        assert_eq!(counted.refusals.len(), Refusal::ALL.len());
        assert!(counted.refusals.values().all(|&count| count == 1));
    }
}

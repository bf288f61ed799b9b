//! Answers to one sandbox's questions. Never shared: what one sandbox asked must not be seen from another by timing.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::Record;
use hutch_policy::Name;

use crate::locks::lock;

const MAX_ENTRIES: usize = 4096;

/// What a server answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// `NoError`, `NXDomain` or `ServFail`.
    pub code: ResponseCode,
    /// The addresses at the end of the chain of aliases, for questions about addresses.
    pub addresses: Vec<IpAddr>,
    /// The records of other questions, as received.
    pub records: Vec<Record>,
    /// How long it holds.
    pub ttl: Duration,
}

/// Addresses by name.
#[derive(Debug, Default)]
pub struct Cache {
    entries: Mutex<HashMap<Name, (Answer, Instant)>>,
}

/// What all sandboxes would have in common; for tests of the tests.
pub fn everybodys() -> &'static Cache {
    static SHARED: std::sync::LazyLock<Cache> = std::sync::LazyLock::new(Cache::default);
    &SHARED
}

impl Cache {
    /// An answer that still holds, with the time it has left.
    pub fn get(&self, name: &Name, now: Instant) -> Option<Answer> {
        let entries = lock(&self.entries);
        let (answer, until) = entries.get(name)?;
        let left = until.checked_duration_since(now)?;
        Some(Answer {
            ttl: left,
            ..answer.clone()
        })
    }

    /// Remember an answer.
    pub fn put(&self, name: &Name, answer: &Answer, now: Instant) {
        let mut entries = lock(&self.entries);
        if entries.len() >= MAX_ENTRIES {
            entries.retain(|_, (_, until)| *until > now);
            if entries.len() >= MAX_ENTRIES {
                entries.clear();
            }
        }
        entries.insert(name.clone(), (answer.clone(), now + answer.ttl));
    }

    /// Forget everything.
    pub fn clear(&self) {
        lock(&self.entries).clear();
    }
}

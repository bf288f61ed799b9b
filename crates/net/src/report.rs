//! Audit records on their way to the host.
//!
//! A record is sealed into its sandbox's chain and waits here until the host says that it has it. While the host is away
//! records wait, up to a bound; beyond it the oldest are dropped, which the gap in their numbers shows.

use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use hutch_policy::{Defence, Reason};
use tokio::sync::Notify;

use crate::audit::{Decision, Kind, Record};
use crate::locks::lock;
use crate::sandbox::{Bucket, Current, Identity};

/// Bytes of records that wait for the host.
const MAX_WAITING_BYTES: usize = 32 * 1024 * 1024;
const RECORDS_PER_SECOND: f64 = 200.0;
const RECORDS_BURST: f64 = 400.0;
/// Kinds of records that are counted apart when there are too many.
const MAX_COUNTED: usize = 1024;

/// A record about what a policy decided.
pub fn record(current: &Current, kind: Kind, decision: Decision, reason: Reason) -> Record {
    Record::new(kind, decision, reason.as_str())
        .generation(current.generation)
        .policy_hash(&current.hash)
}

/// A sealed record.
#[derive(Debug, Clone)]
pub struct Sealed {
    /// Counts records of all sandboxes since the start of this process.
    pub number: u64,
    /// Whose it is.
    pub sandbox_id: String,
    /// Its number there.
    pub seq: u64,
    /// One JSON object.
    pub bytes: Vec<u8>,
}

#[derive(Debug, Default)]
struct Queue {
    next: u64,
    bytes: usize,
    waiting: VecDeque<Sealed>,
}

/// Records of all sandboxes.
#[derive(Debug, Default)]
pub struct Reports {
    queue: Mutex<Queue>,
    denials_only: AtomicBool,
    /// A record came.
    pub arrived: Notify,
}

impl Reports {
    /// Whether only refusals are wanted.
    pub fn only_denials(&self, only: bool) {
        self.denials_only.store(only, Ordering::Relaxed);
    }

    /// Whether a record is wanted.
    pub fn wants(&self, record: &Record) -> bool {
        !self.denials_only.load(Ordering::Relaxed) || record.is_denial()
    }

    /// Add a record.
    pub fn push(&self, identity: &Identity, seq: u64, bytes: Vec<u8>) {
        let mut queue = lock(&self.queue);
        queue.next += 1;
        queue.bytes += bytes.len();
        let number = queue.next;
        queue.waiting.push_back(Sealed {
            number,
            sandbox_id: identity.sandbox_id.clone(),
            seq,
            bytes,
        });
        while queue.bytes > MAX_WAITING_BYTES
            && let Some(dropped) = queue.waiting.pop_front()
        {
            queue.bytes -= dropped.bytes.len();
        }
        drop(queue);
        self.arrived.notify_one();
    }

    /// Records after `number`, up to about `most` bytes.
    pub fn after(&self, number: u64, most: usize) -> Vec<Sealed> {
        let queue = lock(&self.queue);
        let start = queue.waiting.partition_point(|record| record.number <= number);
        let mut size = 0;
        queue
            .waiting
            .range(start..)
            .take_while(|record| {
                size += record.bytes.len() + 128;
                size <= most
            })
            .cloned()
            .collect()
    }

    /// The host has everything up to `number`.
    pub fn stored(&self, number: u64) {
        let mut queue = lock(&self.queue);
        while queue.waiting.front().is_some_and(|record| record.number <= number) {
            if let Some(record) = queue.waiting.pop_front() {
                queue.bytes -= record.bytes.len();
            }
        }
    }
}

type Like = (Kind, Decision, String, String);

/// Too many records are counted instead of written, each kind with its exact number.
#[derive(Debug)]
pub struct Aggregate {
    bucket: Bucket,
    counted: HashMap<Like, (Record, u64)>,
}

impl Default for Aggregate {
    fn default() -> Self {
        Self {
            bucket: Bucket::new(RECORDS_PER_SECOND, RECORDS_BURST),
            counted: HashMap::new(),
        }
    }
}

impl Aggregate {
    /// The record, if it is to be written now.
    pub fn admit(&mut self, record: Record) -> Option<Record> {
        let mut like = record.like();
        // Changes of the policy are the host's, few, and what everything else is read by: a guest that makes noise must not
        // have them moved or merged.
        if like.0 == Kind::Policy || self.bucket.take() {
            return Some(record);
        }
        if self.counted.len() >= MAX_COUNTED && !self.counted.contains_key(&like) {
            like.3 = String::new();
        }
        if Defence::CountedRecords.holds() {
            self.counted.entry(like).or_insert((record, 0)).1 += 1;
        }
        None
    }

    /// What was counted.
    pub fn take(&mut self) -> Vec<Record> {
        std::mem::take(&mut self.counted)
            .into_values()
            .map(|(record, count)| if count > 1 { record.count(count) } else { record })
            .collect()
    }
}

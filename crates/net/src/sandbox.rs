//! One sandbox as the gateway knows it.
//!
//! Identity is the address that the kernel has bound to the sandbox's link; nothing that the guest says matters. What
//! holds for it *now* is one immutable [`Current`]; an update replaces it as a whole and then judges every open flow.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use hutch_policy::{
    Change, CredentialState, Defence, EffectivePolicy, Limits, Name, Placeholder, Reason, RuleId, diff,
};
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use crate::audit::{Chain, Record};
use crate::cpu::CpuTime;
use crate::dns::DnsState;
use crate::dns::cache::Cache;
use crate::flow::{Bytes, Flows, Swept};
use crate::locks::{lock, read, write};
use crate::report::{Aggregate, Reports};
use crate::scrub::Needles;
use crate::tls::{Authority, Verifiers};
use crate::upstream::Pool;

/// Addresses that a name had are remembered this long, as evidence (`egress.md` §3.3).
const PIN_LIFE: Duration = Duration::from_secs(600);
const MAX_PINS: usize = 4096;
/// Reflections of one credential that disable its rule.
pub const MAX_REFLECTIONS: u64 = 3;

/// The version of what was closed.
const GONE: u64 = u64::MAX;
/// Connections with DNS questions that are open at once; they are no flows.
const MAX_DNS_STREAMS: usize = 32;
/// Questions in datagrams that are being answered at once.
pub const MAX_PENDING_QUESTIONS: usize = 256;

/// Who a session is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// The sandbox's id.
    pub sandbox_id: String,
    /// Its name.
    pub sandbox_name: String,
    /// Its team.
    pub team_id: String,
    /// Its project.
    pub project_id: String,
    /// The session's id.
    pub lifecycle: String,
}

/// What holds for a sandbox at one moment. Immutable.
pub struct Current {
    /// Counts every change of any part; stamps flows.
    pub version: u64,
    /// The generation of the policy, as clients see it.
    pub generation: u64,
    /// Bounds and tenant's policy.
    pub policy: EffectivePolicy,
    /// Values of stored credentials that the policy names.
    pub credentials: HashMap<String, Zeroizing<String>>,
    /// The guest's placeholders.
    pub placeholders: Vec<Placeholder>,
    /// The hash of the policy, as records have it.
    pub hash: Arc<str>,
    /// What responses are searched for, by rule; made when first needed.
    pub needles: Mutex<HashMap<RuleId, Arc<Needles>>>,
    /// How often each rule's secrets came back.
    pub reflections: Mutex<HashMap<RuleId, u64>>,
}

impl Current {
    /// The state of a stored credential.
    pub fn credential_state(&self, name: &str) -> CredentialState {
        if self.credentials.contains_key(name) {
            CredentialState::Present
        } else {
            CredentialState::Missing
        }
    }

    /// Whether the rule's secrets came back too often.
    pub fn is_reflected(&self, rule: RuleId) -> bool {
        lock(&self.reflections).get(&rule).copied().unwrap_or(0) >= MAX_REFLECTIONS && Defence::Reflections.holds()
    }

    /// Count reflections of a rule's secrets; how many there are now.
    pub fn reflected(&self, rule: RuleId, hits: u64) -> u64 {
        let mut reflections = lock(&self.reflections);
        let count = reflections.entry(rule).or_default();
        *count += hits;
        *count
    }
}

/// Counters by rule or by name.
#[derive(Debug, Default, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tally {
    /// Connections.
    pub connections: u64,
    /// Requests.
    pub requests: u64,
    /// Refusals.
    pub denied: u64,
    /// Requests that something was put into.
    pub injected: u64,
    /// Payload bytes from the sandbox.
    pub up_bytes: u64,
    /// Payload bytes to the sandbox.
    pub down_bytes: u64,
}

impl Tally {
    fn add(&mut self, other: &Self) {
        self.connections += other.connections;
        self.requests += other.requests;
        self.denied += other.denied;
        self.injected += other.injected;
        self.up_bytes += other.up_bytes;
        self.down_bytes += other.down_bytes;
    }

    fn weight(&self) -> (u64, u64, u64) {
        let bytes = self.up_bytes.saturating_add(self.down_bytes);
        (bytes, self.requests.saturating_add(self.connections), self.denied)
    }
}

/// What is counted for a sandbox, as the host is told it, and as it tells a gateway that has not seen the sandbox before.
#[derive(Debug, Default, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counted {
    /// Payload bytes from the sandbox.
    pub up_bytes: u64,
    /// Payload bytes to it.
    pub down_bytes: u64,
    /// By name or address, and by `rule:ID`: those with the most bytes, and `*` and `rule:*` for the others.
    pub tallies: BTreeMap<String, Tally>,
    /// Bytes from and to the sandbox that count towards the limits of a rule.
    pub rules: BTreeMap<String, (u64, u64)>,
    /// What passed without a rule: the rest beside `rule:ID`.
    #[serde(default)]
    pub unruled: Tally,
    /// CPU time that the gateway spent on the sandbox.
    #[serde(default)]
    pub cpu_us: u64,
}

/// One line of the counters; bytes are counted while they pass.
#[derive(Debug, Default)]
struct Line {
    tally: Tally,
    passed: Arc<Bytes>,
}

impl Line {
    fn read(&self) -> Tally {
        let (up, down) = self.passed.read();
        let mut tally = self.tally.clone();
        tally.up_bytes += up;
        tally.down_bytes += down;
        tally
    }
}

#[derive(Debug, Default)]
struct Lines(HashMap<String, Line>);

impl Lines {
    fn of(&mut self, key: &str, others: &str) -> &mut Line {
        if !Defence::BoundedLines.holds() {
            return self.0.entry(key.to_owned()).or_default();
        }
        if self.0.len() >= MAX_TALLIES && !self.0.contains_key(key) {
            self.fold(others);
        }
        let known = self.0.contains_key(key) || self.0.len() < MAX_TALLIES;
        self.0.entry(if known { key } else { others }.to_owned()).or_default()
    }

    /// Make room: of lines that nothing counts on, those with the fewest bytes go into the sum of the others. So a guest
    /// can't have what it moves counted there by saying many names before.
    fn fold(&mut self, others: &str) {
        let idle = self.0.iter_mut().filter_map(|(key, line)| {
            let unused = Arc::get_mut(&mut line.passed).is_some();
            unused.then(|| (line.read().weight(), key.clone()))
        });
        let mut light: Vec<_> = idle.collect();
        light.sort_unstable();
        light.truncate(MAX_TALLIES / 2);
        for (_, key) in light.iter().filter(|(_, key)| key != others) {
            if let Some(line) = self.0.remove(key) {
                self.0.entry(others.to_owned()).or_default().tally.add(&line.read());
            }
        }
    }

    /// At most `most` of those with the most bytes, and the sum of the others.
    fn read(&self, others: &str, most: usize) -> BTreeMap<String, Tally> {
        let mut lines: Vec<(&String, Tally)> = self.0.iter().map(|(key, line)| (key, line.read())).collect();
        lines.sort_unstable_by_key(|(key, tally)| (*key == others, std::cmp::Reverse(tally.weight()), *key));
        let mut told = BTreeMap::<String, Tally>::new();
        for (place, (key, tally)) in lines.into_iter().enumerate() {
            let key = if place < most || !Defence::BoundedLines.holds() {
                key
            } else {
                others
            };
            told.entry(key.to_owned()).or_default().add(&tally);
        }
        told
    }
}

/// Counters of one sandbox.
#[derive(Debug, Default)]
pub struct Counters {
    /// Payload bytes from the sandbox.
    pub up: AtomicU64,
    /// Payload bytes to it.
    pub down: AtomicU64,
    /// CPU time of the gateway.
    pub cpu: CpuTime,
    names: Mutex<Lines>,
    by_rule: Mutex<Lines>,
    unruled: Mutex<Line>,
    rules: Mutex<HashMap<RuleId, Arc<Bytes>>>,
}

/// Lines of names, and of rules; beyond, those with the fewest bytes are counted together.
const MAX_TALLIES: usize = 1024;
/// Names that the host is told of, and rules: with the longest names and all numbers in less than a frame.
const MAX_TOLD_NAMES: usize = 128;
const MAX_TOLD_RULES: usize = 1000;
/// Rules whose limits go on counting in another gateway: those with the most bytes.
const MAX_TOLD_LIMITS: usize = 1024;
/// What keys of rules begin with.
pub const RULE: &str = "rule:";
const OTHER_NAMES: &str = "*";
const OTHER_RULES: &str = "rule:*";

impl Counters {
    /// Counters that go on from what another gateway counted.
    pub fn resume(counted: Counted) -> Self {
        let counters = Self {
            up: counted.up_bytes.into(),
            down: counted.down_bytes.into(),
            cpu: CpuTime::resume(counted.cpu_us),
            ..Self::default()
        };
        lock(&counters.unruled).tally = counted.unruled;
        for (key, tally) in counted.tallies {
            counters.line(&key, |line| line.tally.add(&tally));
        }
        let known = counted.rules.into_iter().filter_map(|(rule, (up, down))| {
            let bytes = Bytes {
                up: up.into(),
                down: down.into(),
            };
            Some((RuleId::parse(&rule)?, Arc::new(bytes)))
        });
        lock(&counters.rules).extend(known);
        counters
    }

    /// What was counted until now.
    pub fn counted(&self) -> Counted {
        let mut tallies = lock(&self.names).read(OTHER_NAMES, MAX_TOLD_NAMES);
        tallies.append(&mut lock(&self.by_rule).read(OTHER_RULES, MAX_TOLD_RULES));
        let mut rules: Vec<(RuleId, (u64, u64))> = lock(&self.rules)
            .iter()
            .map(|(rule, bytes)| (*rule, bytes.read()))
            .collect();
        rules.sort_unstable_by_key(|(_, (up, down))| std::cmp::Reverse(up.saturating_add(*down)));
        rules.truncate(MAX_TOLD_LIMITS);
        Counted {
            up_bytes: self.up.load(Ordering::Relaxed),
            down_bytes: self.down.load(Ordering::Relaxed),
            tallies,
            rules: rules
                .into_iter()
                .map(|(rule, bytes)| (rule.to_string(), bytes))
                .collect(),
            unruled: lock(&self.unruled).read(),
            cpu_us: self.cpu.us(),
        }
    }

    /// What a rule ever admitted; policies come and go, a rule that stays the same goes on counting.
    pub fn of_rule(&self, rule: RuleId) -> Arc<Bytes> {
        Arc::clone(lock(&self.rules).entry(rule).or_default())
    }

    /// What counts the bytes of `key` while they pass.
    pub fn passing(&self, key: &str) -> Arc<Bytes> {
        self.line(key, |line| Arc::clone(&line.passed))
    }

    /// What counts the bytes of a rule while they pass, or those without one.
    pub fn passing_under(&self, rule: Option<RuleId>) -> Arc<Bytes> {
        match rule {
            Some(rule) => self.passing(&format!("{RULE}{rule}")),
            None => Arc::clone(&lock(&self.unruled).passed),
        }
    }

    /// Add to the tally of a rule, or to that of what has none.
    pub fn tally_under(&self, rule: Option<RuleId>, add: impl FnOnce(&mut Tally)) {
        match rule {
            Some(rule) => self.tally(&format!("{RULE}{rule}"), add),
            None => add(&mut lock(&self.unruled).tally),
        }
    }

    /// Add to the tally of `key` (a name, `rule:ID`, or an address).
    pub fn tally(&self, key: &str, add: impl FnOnce(&mut Tally)) {
        self.line(key, |line| add(&mut line.tally));
    }

    fn line<T>(&self, key: &str, work: impl FnOnce(&mut Line) -> T) -> T {
        // Apart, so that a guest that says many names does not take the places of rules.
        let (lines, others) = if key.starts_with(RULE) {
            (&self.by_rule, OTHER_RULES)
        } else {
            (&self.names, OTHER_NAMES)
        };
        work(lock(lines).of(key, others))
    }
}

/// Add to a counter unless that takes it beyond `most`.
pub fn add_within(counter: &AtomicU64, bytes: u64, most: Option<u64>) -> bool {
    let Some(most) = most else {
        counter.fetch_add(bytes, Ordering::Relaxed);
        return true;
    };
    let add = |counted: u64| counted.checked_add(bytes).filter(|sum| *sum <= most);
    counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).is_ok()
}

/// A bucket of tokens that fills with time.
#[derive(Debug)]
pub struct Bucket {
    tokens: f64,
    at: Instant,
    per_second: f64,
    burst: f64,
}

impl Bucket {
    /// A full bucket.
    pub fn new(per_second: f64, burst: f64) -> Self {
        Self {
            tokens: burst,
            at: Instant::now(),
            per_second,
            burst,
        }
    }

    /// Take one; false when there is none.
    pub fn take(&mut self) -> bool {
        let now = Instant::now();
        self.tokens = (self.tokens + (now - self.at).as_secs_f64() * self.per_second).min(self.burst);
        self.at = now;
        if self.tokens < 1.0 {
            return false;
        }
        self.tokens -= 1.0;
        true
    }
}

/// One sandbox.
pub struct Sandbox {
    /// The address that the kernel has bound to its link.
    pub address: Ipv4Addr,
    /// The host's end of the link.
    pub gateway_address: Ipv4Addr,
    /// Its certificate authority.
    pub authority: Authority,
    /// How its flows verify servers.
    pub verifiers: Verifiers,
    /// Open flows.
    pub flows: Arc<Flows>,
    /// Answers to its DNS questions, never shared with another sandbox.
    pub cache: Cache,
    /// Budgets of DNS questions, and addresses that stand for names.
    pub dns: Mutex<DnsState>,
    /// What passed.
    pub counters: Counters,
    /// New flows.
    pub arrivals: Mutex<Bucket>,
    /// Places for connections with DNS questions.
    pub dns_streams: Semaphore,
    /// Places for DNS questions in datagrams that are being answered.
    pub questions: Arc<Semaphore>,
    /// Connections that are open, from the first moment on: also those that nobody has decided on yet.
    pub places: Arc<Semaphore>,
    /// Connections to servers that wait for a request.
    pub pool: Pool,
    identity: RwLock<Arc<Identity>>,
    current: RwLock<Arc<Current>>,
    changes: tokio::sync::watch::Sender<u64>,
    updating: tokio::sync::Mutex<()>,
    chain: Mutex<Chain>,
    aggregate: Mutex<Aggregate>,
    pins: Mutex<HashMap<IpAddr, (Name, Instant)>>,
    reports: Arc<Reports>,
}

impl std::fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sandbox({})", self.address)
    }
}

/// Bounds of one sandbox's flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FlowLimits {
    /// Open at once.
    pub at_once: usize,
    /// New ones per second; [`FLOWS_BURST`] times as many in a burst.
    pub per_second: u32,
}

/// How many seconds' worth of flows may come at once.
const FLOWS_BURST: f64 = 5.0;

impl Sandbox {
    /// A sandbox that may do nothing yet.
    pub fn new(
        address: Ipv4Addr,
        gateway_address: Ipv4Addr,
        authority: Authority,
        verifiers: Verifiers,
        policy: EffectivePolicy,
        limits: FlowLimits,
        reports: Arc<Reports>,
    ) -> Self {
        let current = Current {
            version: 0,
            generation: 0,
            hash: policy.hash().to_string().into(),
            policy,
            credentials: HashMap::new(),
            placeholders: Vec::new(),
            needles: Mutex::default(),
            reflections: Mutex::default(),
        };
        Self {
            address,
            gateway_address,
            authority,
            verifiers,
            flows: Arc::default(),
            cache: Cache::default(),
            dns: Mutex::default(),
            counters: Counters::default(),
            arrivals: Mutex::new(Bucket::new(
                limits.per_second.into(),
                f64::from(limits.per_second) * FLOWS_BURST,
            )),
            dns_streams: Semaphore::new(MAX_DNS_STREAMS),
            questions: Arc::new(Semaphore::new(MAX_PENDING_QUESTIONS)),
            places: Arc::new(Semaphore::new(limits.at_once)),
            pool: Pool::default(),
            identity: RwLock::default(),
            current: RwLock::new(Arc::new(current)),
            changes: tokio::sync::watch::Sender::new(0),
            updating: tokio::sync::Mutex::default(),
            chain: Mutex::new(Chain::default()),
            aggregate: Mutex::default(),
            pins: Mutex::default(),
            reports,
        }
    }

    /// What counts the gateway's work for it.
    pub fn cpu(&self) -> &CpuTime {
        &self.counters.cpu
    }

    /// What holds now.
    pub fn current(&self) -> Arc<Current> {
        Arc::clone(&read(&self.current))
    }

    /// Wait until something else than `version` holds.
    pub async fn changed(&self, version: u64) {
        let mut changes = self.changes.subscribe();
        // Closed only with the sandbox, of which the caller is a part.
        let _ = changes.wait_for(|now| *now != version).await;
    }

    /// Whether it was closed: what still runs for it ends.
    pub fn is_gone(&self) -> bool {
        *self.changes.borrow() == GONE
    }

    /// Who it is.
    pub fn identity(&self) -> Arc<Identity> {
        Arc::clone(&read(&self.identity))
    }

    /// Say who it is, and where its audit goes on.
    pub fn identify(&self, identity: Identity, chain: Chain) {
        let mut known = write(&self.identity);
        if known.lifecycle != identity.lifecycle {
            let mut own = lock(&self.chain);
            // What the host has may be behind.
            if known.sandbox_id != identity.sandbox_id || own.seq() < chain.seq() {
                *own = chain;
            }
        }
        *known = Arc::new(identity);
    }

    /// Where its audit is.
    pub fn chain(&self) -> Chain {
        lock(&self.chain).clone()
    }

    /// Put another policy in place. When this is done, no flow is open and no exchange under way that it does not admit.
    pub async fn update(
        &self,
        generation: u64,
        policy: EffectivePolicy,
        credentials: HashMap<String, Zeroizing<String>>,
        placeholders: Vec<Placeholder>,
    ) -> Swept {
        let _turn = self.updating.lock().await;
        let before = self.current();
        let credentials = if Defence::Rotation.holds() || before.version == 0 {
            credentials
        } else {
            before.credentials.clone()
        };
        let changed = diff(&before.policy, &policy) == Change::Something;
        let same_secrets = before.credentials == credentials;
        if !changed && same_secrets && before.generation == generation && before.placeholders == placeholders {
            return Swept {
                cut: Vec::new(),
                kept: self.flows.len(),
            };
        }
        let next = Arc::new(Current {
            version: before.version + 1,
            generation: if Defence::StampedGenerations.holds() {
                generation
            } else {
                1
            },
            hash: policy.hash().to_string().into(),
            policy,
            credentials,
            placeholders,
            needles: Mutex::default(),
            reflections: Mutex::default(),
        });
        let rotated: Vec<String> = before
            .credentials
            .iter()
            .filter(|(name, value)| next.credentials.get(*name) != Some(*value))
            .map(|(name, _)| name.clone())
            .collect();
        let swept = self.flows.sweep(next.version, &next.policy, !changed, &rotated, || {
            if Defence::UpdatesHold.holds() || before.version == 0 {
                *write(&self.current) = Arc::clone(&next);
            }
            // Together, or whoever waits for a change of what holds now would be told of one that it knows.
            self.changes.send_modify(|version| {
                if *version != GONE {
                    *version = next.version;
                }
            });
        });
        self.pool.drain();
        if changed {
            self.cache.clear();
            lock(&self.pins).retain(|_, (name, _)| next.policy.tenant().covers(name));
        }
        swept
    }

    /// Remember that a name had these addresses.
    pub fn pin(&self, name: &Name, addresses: &[IpAddr]) {
        let now = Instant::now();
        let mut pins = lock(&self.pins);
        if pins.len() + addresses.len() > MAX_PINS {
            pins.retain(|_, (_, at)| now - *at < PIN_LIFE);
            if pins.len() + addresses.len() > MAX_PINS {
                pins.clear();
            }
        }
        for address in addresses {
            pins.insert(*address, (name.clone(), now));
        }
    }

    /// Whether `name` had this address lately.
    pub fn is_pinned(&self, name: &Name, address: IpAddr) -> bool {
        lock(&self.pins)
            .get(&address)
            .is_some_and(|(known, at)| known == name && at.elapsed() < PIN_LIFE)
    }

    /// Write an audit record, or count it when there are too many.
    pub fn report(&self, record: Record) {
        let mut aggregate = lock(&self.aggregate);
        if !self.reports.wants(&record) {
            return;
        }
        if let Some(record) = aggregate.admit(record) {
            self.seal(record);
        }
    }

    /// Write what was only counted.
    pub fn flush_reports(&self) {
        let counted = lock(&self.aggregate).take();
        for record in counted {
            self.seal(record);
        }
    }

    fn seal(&self, record: Record) {
        let identity = self.identity();
        let record = record.sandbox(&identity.sandbox_id).lifecycle(&identity.lifecycle);
        let mut chain = lock(&self.chain);
        let bytes = chain.seal(record, crate::clock::now_ms());
        // Within the lock, so that records arrive in the order of their numbers.
        self.reports.push(&identity, chain.seq(), bytes);
    }

    /// Count payload bytes of the whole sandbox. False where a limit of the policy does not admit them: they must not
    /// pass then, and are not counted.
    pub fn count(&self, up: u64, down: u64) -> bool {
        let mut limits = read(&self.current).policy.limits();
        if !Defence::SandboxLimits.holds() {
            limits = Limits::default();
        }
        if !add_within(&self.counters.up, up, limits.up_bytes) {
            return false;
        }
        let fits = add_within(&self.counters.down, down, limits.down_bytes);
        if !fits {
            self.counters.up.fetch_sub(up, Ordering::Relaxed);
        }
        fits
    }

    /// End everything: the sandbox is gone. `closed` is a policy that admits nothing: whoever still holds this sandbox, a
    /// flow of datagrams or a connection that is being decided on, must not go on under the old one.
    pub async fn close(&self, closed: EffectivePolicy) {
        if !Defence::EndedSandboxes.holds() {
            return;
        }
        self.changes.send_replace(GONE);
        let generation = self.current().generation;
        let swept = self.update(generation, closed, HashMap::new(), Vec::new()).await;
        swept.closed().await;
        self.flows.kill_all(Reason::Revoked).closed().await;
        self.pool.drain();
        self.flush_reports();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(counted: &Counted, is_rule: bool) -> Tally {
        let mut sum = Tally::default();
        for (key, tally) in &counted.tallies {
            if key.starts_with(RULE) == is_rule {
                sum.add(tally);
            }
        }
        sum
    }

    #[test]
    fn names_without_end_are_told_in_one_frame_and_lose_nothing() {
        let counters = Counters::default();
        let names = MAX_TALLIES as u64 * 2;
        for number in 0..names {
            // As long as names get.
            let name = format!("{number:0>61}.{0:a>63}.{0:b>63}.{0:c>63}", "");
            counters.tally(&name, |tally| {
                tally.denied += 1;
                tally.requests = u64::MAX / (4 * names);
            });
            counters
                .passing(&name)
                .up
                .fetch_add(u64::MAX / (4 * names), Ordering::Relaxed);
            counters.tally_under(Some(RuleId(number.to_be_bytes())), |tally| {
                *tally = Tally {
                    connections: u64::MAX / (2 * names),
                    requests: 1,
                    denied: u64::MAX / (2 * names),
                    injected: u64::MAX / (2 * names),
                    up_bytes: u64::MAX / (8 * names),
                    down_bytes: u64::MAX / (8 * names),
                }
            });
            counters
                .of_rule(RuleId(number.to_be_bytes()))
                .down
                .fetch_add(u64::MAX / 2, Ordering::Relaxed);
        }
        counters.passing("api.test").down.fetch_add(5, Ordering::Relaxed);
        let counted = counters.counted();
        assert!(hutch_wire::encode(&counted).len() < hutch_wire::MAX_PAYLOAD_BYTES - 1024);
        assert_eq!(sums(&counted, false).denied, names);
        assert_eq!(sums(&counted, false).down_bytes, 5);
        assert_eq!(sums(&counted, true).requests, names);
        let others = &counted.tallies[OTHER_NAMES];
        assert!(others.denied > names / 2, "{others:?}");
    }

    #[test]
    fn the_names_with_the_most_bytes_are_told_whenever_they_come() {
        let counters = Counters::default();
        let held = counters.passing("held.test");
        let names = MAX_TALLIES as u64 * 3;
        for number in 0..names {
            counters.tally(&format!("{number}.test"), |tally| tally.denied += 1);
        }
        counters.passing("late.test").up.fetch_add(1, Ordering::Relaxed);
        for number in 0..names {
            counters.tally(&format!("{number}.example"), |tally| tally.denied += 1);
        }
        held.up.fetch_add(2, Ordering::Relaxed);
        let counted = counters.counted();
        assert_eq!(counted.tallies["late.test"].up_bytes, 1);
        assert_eq!(counted.tallies["held.test"].up_bytes, 2);
        assert_eq!(sums(&counted, false).denied, 2 * names);
    }

    #[test]
    fn counters_go_on_from_what_was_counted() {
        let first = Counters::default();
        let rule = RuleId([0, 1, 2, 3, 4, 5, 6, 0xff]);
        first.up.store(10, Ordering::Relaxed);
        first.passing("a.test").up.fetch_add(7, Ordering::Relaxed);
        first.of_rule(rule).up.fetch_add(8, Ordering::Relaxed);
        first.passing_under(None).down.fetch_add(9, Ordering::Relaxed);
        first.tally_under(None, |tally| tally.connections += 1);
        first.cpu.during(|| {
            while first.cpu.us() < 100 {
                first.cpu.during(|| ());
            }
        });
        let second = Counters::resume(first.counted());
        assert_eq!(second.counted(), first.counted());
        second.passing("a.test").up.fetch_add(1, Ordering::Relaxed);
        assert_eq!(second.counted().tallies["a.test"].up_bytes, 8);
        second.passing_under(None).down.fetch_add(1, Ordering::Relaxed);
        let unruled = second.counted().unruled;
        assert_eq!((unruled.down_bytes, unruled.connections), (10, 1));
        assert!(!add_within(&second.of_rule(rule).up, 1, Some(8)));
    }
}

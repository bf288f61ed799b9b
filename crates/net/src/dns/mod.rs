//! The sandbox's name server.
//!
//! The policy decides on the name before anything is asked of anybody, so that a question for a name that is not allowed
//! never leaves. Answers carry the addresses that may be dialled and nothing else of what the server said; types that
//! could carry more are not answered unless everything is allowed.

pub mod cache;
pub mod resolver;

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{DNSClass, Name as DnsName, RData, Record, RecordType as Type};
use hutch_policy::{
    Defence, DnsDecision, EffectivePolicy, Mode, Name, Pattern, Question, Reason, RecordType, ResponseCode as Refusal,
};

use self::cache::Answer;
use crate::audit::{Decision, Kind};
use crate::gateway::Gateway;
use crate::locks::lock;
use crate::report;
use crate::sandbox::{Bucket, Current, Sandbox};

/// What fits into a datagram whose sender said nothing else, and the most that we send in one.
const DATAGRAM: (u16, u16) = (512, 1232);
const QUESTIONS_PER_SECOND: f64 = 50.0;
const QUESTIONS_BURST: f64 = 200.0;
/// Distinct names per minute and wildcard (`network.md`).
const NAMES_PER_WILDCARD: usize = 256;
const WILDCARD_WINDOW: Duration = Duration::from_secs(60);
const VIRTUAL_TTL_S: u32 = 60;
/// 198.18.0.0/15 without its first and last address.
const VIRTUAL_BASE: u32 = 0xC612_0000;
const VIRTUAL_COUNT: u32 = (1 << 17) - 2;
/// Names that have one of these addresses; they are never forgotten, because a guest may not have forgotten them either.
const MAX_VIRTUAL_NAMES: usize = 16_384;

/// What bounds a sandbox's questions, and the addresses that stand for names.
#[derive(Debug)]
pub struct DnsState {
    questions: Bucket,
    seen: HashMap<Pattern, (Instant, HashSet<Name>)>,
    virtual_names: HashMap<Ipv4Addr, Name>,
    virtual_addresses: HashMap<Name, Ipv4Addr>,
}

impl Default for DnsState {
    fn default() -> Self {
        Self {
            questions: Bucket::new(QUESTIONS_PER_SECOND, QUESTIONS_BURST),
            seen: HashMap::new(),
            virtual_names: HashMap::new(),
            virtual_addresses: HashMap::new(),
        }
    }
}

impl DnsState {
    fn within_budget(&mut self, pattern: &Pattern, name: &Name, now: Instant) -> bool {
        if !self.seen.contains_key(pattern) {
            // Policies come and go, and their patterns with them.
            self.seen.retain(|_, (since, _)| now - *since < WILDCARD_WINDOW);
        }
        let (since, names) = self
            .seen
            .entry(pattern.clone())
            .or_insert_with(|| (now, HashSet::new()));
        if now - *since >= WILDCARD_WINDOW {
            *since = now;
            names.clear();
        }
        if names.contains(name) {
            return true;
        }
        if names.len() >= NAMES_PER_WILDCARD {
            return false;
        }
        names.insert(name.clone());
        true
    }

    /// The address that stands for `name`; `None` when all are taken.
    fn virtual_address(&mut self, name: &Name) -> Option<Ipv4Addr> {
        if let Some(address) = self.virtual_addresses.get(name) {
            return Some(*address);
        }
        if self.virtual_addresses.len() >= MAX_VIRTUAL_NAMES {
            return None;
        }
        // From the name, so that a gateway that was started again means the same by the addresses that a guest remembers:
        // what it has for one server must never reach another.
        let digest = ring::digest::digest(&ring::digest::SHA256, name.as_str().as_bytes());
        let first = digest
            .as_ref()
            .iter()
            .take(4)
            .fold(0, |sum: u32, byte| sum << 8 | u32::from(*byte));
        let address = (0..VIRTUAL_COUNT)
            .map(|step| Ipv4Addr::from(VIRTUAL_BASE + 1 + (first.wrapping_add(step)) % VIRTUAL_COUNT))
            .find(|address| !self.virtual_names.contains_key(address))?;
        self.virtual_addresses.insert(name.clone(), address);
        self.virtual_names.insert(address, name.clone());
        Some(address)
    }
}

/// The name that an address stands for.
pub fn virtual_name(state: &Mutex<DnsState>, address: IpAddr) -> Option<Name> {
    match address {
        IpAddr::V4(address) => lock(state).virtual_names.get(&address).cloned(),
        IpAddr::V6(_) => None,
    }
}

/// What `name` has of this type, for the guest or for a flow of its. Both count against the budget of the name's wildcard: a
/// name in a greeting makes us ask as a question does.
pub async fn resolve(
    gateway: &Gateway,
    sandbox: &Sandbox,
    policy: &EffectivePolicy,
    name: &Name,
    kind: Type,
) -> Result<Answer, Reason> {
    if let Some(pattern) = policy.budget(name)
        && !lock(&sandbox.dns).within_budget(pattern, name, Instant::now())
    {
        return Err(Reason::DnsBudget);
    }
    let cache = if Defence::OwnCache.holds() {
        &sandbox.cache
    } else {
        cache::everybodys()
    };
    let answer = gateway.resolver().resolve(cache, name, kind).await;
    answer.map_err(|_| Reason::UpstreamConnect)
}

/// Answer a question; `None` for bytes that deserve no answer.
pub async fn answer(gateway: &Gateway, sandbox: &Sandbox, bytes: &[u8], is_datagram: bool) -> Option<Vec<u8>> {
    let Ok(query) = Message::from_vec(bytes) else {
        return malformed(sandbox, bytes);
    };
    if query.metadata.message_type != MessageType::Query {
        return None;
    }
    let mut reply = Message::new(query.metadata.id, MessageType::Response, OpCode::Query);
    reply.metadata.recursion_desired = query.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    let most = if is_datagram {
        let asked = query.edns.as_ref().map_or(DATAGRAM.0, Edns::max_payload);
        usize::from(asked.clamp(DATAGRAM.0, DATAGRAM.1))
    } else {
        usize::from(u16::MAX)
    };
    if query.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(DATAGRAM.1);
        reply.set_edns(edns);
    }
    let asked = query.queries.first().cloned();
    let well_formed = query.metadata.op_code == OpCode::Query
        && query.queries.len() == 1
        && asked.as_ref().is_some_and(|asked| asked.query_class == DNSClass::IN);
    let Some(asked) = asked else {
        return malformed(sandbox, bytes);
    };
    reply.add_query(asked.clone());
    // A label with a dot in it would be taken for two.
    let sound = asked.name.iter().all(|label| !label.contains(&b'.'));
    let text = asked.name.iter().collect::<Vec<_>>().join(&b'.');
    let question = Question {
        name: &text,
        kind: RecordType::from_number(asked.query_type.into()),
        well_formed: (well_formed && sound) || !Defence::QuestionGrammar.holds(),
        ipv6: false,
    };
    fill(gateway, sandbox, &question, asked.query_type, &asked.name, &mut reply).await;
    let bytes = reply.to_vec().ok()?;
    if bytes.len() <= most || !Defence::DatagramSize.holds() {
        return Some(bytes);
    }
    reply.truncate().to_vec().ok()
}

fn malformed(sandbox: &Sandbox, bytes: &[u8]) -> Option<Vec<u8>> {
    let id = u16::from_be_bytes(*bytes.first_chunk()?);
    // Answers to answers would make two servers talk for ever.
    if bytes.get(2)? & 0x80 != 0 {
        return None;
    }
    let current = sandbox.current();
    sandbox.report(report::record(
        &current,
        Kind::Dns,
        Decision::Deny,
        Reason::DnsMalformed,
    ));
    let mut reply = Message::new(id, MessageType::Response, OpCode::Query);
    reply.metadata.response_code = ResponseCode::FormErr;
    reply.to_vec().ok()
}

/// Says in the audit what became of a question.
struct Teller<'a> {
    sandbox: &'a Sandbox,
    current: &'a Current,
    name: String,
}

impl Teller<'_> {
    fn say(&self, decision: Decision, reason: Reason) {
        self.sandbox
            .report(report::record(self.current, Kind::Dns, decision, reason).name(&self.name));
    }

    fn refuse(&self, reply: &mut Message, code: ResponseCode, reason: Reason) {
        reply.metadata.response_code = code;
        self.say(Decision::Deny, reason);
    }
}

async fn fill(
    gateway: &Gateway,
    sandbox: &Sandbox,
    question: &Question<'_>,
    kind: Type,
    spelling: &DnsName,
    reply: &mut Message,
) {
    let current = sandbox.current();
    let teller = Teller {
        sandbox,
        current: &current,
        name: String::from_utf8_lossy(question.name).to_ascii_lowercase(),
    };
    if !lock(&sandbox.dns).questions.take() && Defence::QuestionBudget.holds() {
        return teller.refuse(reply, ResponseCode::Refused, Reason::DnsBudget);
    }
    match current.policy.dns(question) {
        DnsDecision::Refuse(code, reason) => {
            let code = match code {
                Refusal::FormatError => ResponseCode::FormErr,
                Refusal::NoSuchName => ResponseCode::NXDomain,
                Refusal::Refused => ResponseCode::Refused,
            };
            teller.refuse(reply, code, reason);
        }
        // No such records, which is no refusal: clients ask for both families as a matter of course.
        DnsDecision::NoData(Reason::DnsType) if kind == Type::AAAA => {}
        DnsDecision::NoData(reason) => teller.say(Decision::Deny, reason),
        DnsDecision::Virtual { name } => {
            let address = lock(&sandbox.dns).virtual_address(&name);
            match address {
                Some(address) => {
                    teller.say(Decision::Allow, Reason::Domain);
                    push(reply, spelling, VIRTUAL_TTL_S, RData::A(A(address)));
                }
                None => teller.refuse(reply, ResponseCode::Refused, Reason::DnsBudget),
            }
        }
        DnsDecision::Resolve { name, .. } => {
            let resolved = tokio::select! {
                biased;
                () = sandbox.changed(current.version), if Defence::PendingQuestions.holds() => None,
                resolved = resolve(gateway, sandbox, &current.policy, &name, kind) => Some(resolved),
            };
            match resolved {
                None if sandbox.is_gone() => teller.refuse(reply, ResponseCode::Refused, Reason::Revoked),
                // The policy changed while a name server was asked: it is not asked again, and the answer is that of the
                // new one.
                None => Box::pin(fill(gateway, sandbox, question, kind, spelling, reply)).await,
                Some(Ok(answer)) => give(&teller, &name, kind, spelling, answer, reply),
                Some(Err(Reason::DnsBudget)) => teller.refuse(reply, ResponseCode::Refused, Reason::DnsBudget),
                Some(Err(_)) => {
                    reply.metadata.response_code = ResponseCode::ServFail;
                    teller.say(Decision::Allow, Reason::UpstreamTimeout);
                }
            }
        }
    }
}

fn give(teller: &Teller<'_>, name: &Name, kind: Type, spelling: &DnsName, answer: Answer, reply: &mut Message) {
    reply.metadata.response_code = answer.code;
    let reason = if teller.current.policy.tenant().mode() == Mode::AllowAll {
        Reason::AllowAll
    } else {
        Reason::Domain
    };
    if kind != Type::A {
        teller.say(Decision::Allow, reason);
        for record in answer.records {
            reply.add_answer(record);
        }
        return;
    }
    let addresses = match teller.current.policy.dns_answer(&answer.addresses) {
        Ok(addresses) => addresses,
        Err(reason) => return teller.refuse(reply, ResponseCode::NXDomain, reason),
    };
    teller.sandbox.pin(name, &addresses);
    teller.say(Decision::Allow, reason);
    let seconds = u32::try_from(answer.ttl.as_secs()).unwrap_or(0).max(1);
    for address in addresses {
        if let IpAddr::V4(address) = address {
            push(reply, spelling, seconds, RData::A(A(address)));
        }
    }
}

fn push(reply: &mut Message, name: &DnsName, seconds: u32, data: RData) {
    let mut record = Record::from_rdata(name.clone(), seconds, data);
    record.dns_class = DNSClass::IN;
    reply.add_answer(record);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_of_former_policies_are_forgotten() {
        let mut state = DnsState::default();
        let began = Instant::now();
        for number in 0..100 {
            let pattern = Pattern::parse(&format!("*.p{number}.test")).unwrap();
            let name = Name::question(format!("a.p{number}.test").as_bytes()).unwrap();
            assert!(state.within_budget(&pattern, &name, began + WILDCARD_WINDOW * number / 2));
            assert!(state.seen.len() <= 2, "{}", state.seen.len());
        }
    }

    #[test]
    fn another_pattern_gives_no_new_budget() {
        let mut state = DnsState::default();
        let now = Instant::now();
        let [one, other] = ["*.one.test", "*.other.test"].map(|text| Pattern::parse(text).unwrap());
        let name = |number: usize| Name::question(format!("n{number}.one.test").as_bytes()).unwrap();
        for number in 0..NAMES_PER_WILDCARD {
            assert!(state.within_budget(&one, &name(number), now));
        }
        assert!(state.within_budget(&other, &Name::question(b"n.other.test").unwrap(), now));
        assert!(!state.within_budget(&one, &name(NAMES_PER_WILDCARD), now));
    }
}

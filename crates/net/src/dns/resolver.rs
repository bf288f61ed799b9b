//! Questions to the configured name servers.
//!
//! A question is built from scratch: the canonical name in lower case, a random number, a random port, no options of the
//! guest's. An answer counts only if it is for exactly that question. Aliases are followed here, at most eight of them and
//! with at most four questions in all.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name as DnsName, RData, Record, RecordType};
use hutch_policy::{Defence, Name};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::cache::{Answer, Cache};

const MAX_ALIASES: usize = 8;
const MAX_QUESTIONS: usize = 4;
const ATTEMPTS: usize = 2;
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);
const TTL: (u32, u32) = (5, 300);
const NEGATIVE_TTL: Duration = Duration::from_secs(5);
const MAX_UDP_BYTES: usize = 4096;
const MAX_RECORDS: usize = 64;

/// No server answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoAnswer;

/// Asks name servers.
#[derive(Debug, Clone)]
pub struct Resolver {
    servers: Vec<SocketAddr>,
}

impl Resolver {
    /// Asks these servers, in order.
    pub fn new(servers: Vec<SocketAddr>) -> Self {
        Self { servers }
    }

    /// What `name` has of this type; addresses from the cache if that still holds.
    pub async fn resolve(&self, cache: &Cache, name: &Name, kind: RecordType) -> Result<Answer, NoAnswer> {
        if kind != RecordType::A {
            // Not remembered: other records can be as large as a server likes.
            let answer = self.records(name, kind).await?;
            if !Defence::SmallCache.holds() {
                cache.put(name, &answer, Instant::now());
            }
            return Ok(answer);
        }
        if let Some(answer) = cache.get(name, Instant::now())
            && Defence::ResolvedOnce.holds()
        {
            return Ok(answer);
        }
        let answer = self.addresses(name).await?;
        cache.put(name, &answer, Instant::now());
        Ok(answer)
    }

    async fn records(&self, name: &Name, kind: RecordType) -> Result<Answer, NoAnswer> {
        let reply = self.ask(name.as_str(), kind).await?;
        let records: Vec<Record> = reply
            .answers
            .into_iter()
            .filter(|record| record.record_type() == kind || record.record_type() == RecordType::CNAME)
            .take(MAX_RECORDS)
            .collect();
        let ttl = ttl(records.iter().map(|record| record.ttl).min());
        Ok(Answer {
            code: reply.metadata.response_code,
            addresses: Vec::new(),
            records,
            ttl,
        })
    }

    async fn addresses(&self, name: &Name) -> Result<Answer, NoAnswer> {
        let mut wanted = name.as_str().to_owned();
        let mut aliases = 0;
        let mut least = None;
        for _ in 0..MAX_QUESTIONS {
            let reply = self.ask(&wanted, RecordType::A).await?;
            let code = reply.metadata.response_code;
            let mut moved = false;
            // Aliases may be in any order; each step takes the one for the name at hand.
            while let Some((target, seconds)) = alias(&reply.answers, &wanted) {
                aliases += 1;
                if aliases > MAX_ALIASES {
                    return Err(NoAnswer);
                }
                least = Some(least.map_or(seconds, |known: u32| known.min(seconds)));
                // What an alias points to is text of somebody's choice.
                let Some(target) = Name::question(target.as_bytes())
                    .ok()
                    .filter(|name| !name.is_special() || !Defence::SpecialNames.holds())
                else {
                    return Err(NoAnswer);
                };
                target.as_str().clone_into(&mut wanted);
                moved = true;
            }
            let mut addresses = Vec::new();
            for record in reply.answers.iter().filter(|record| is_for(record, &wanted)) {
                if let RData::A(address) = &record.data
                    && addresses.len() < MAX_RECORDS
                {
                    addresses.push(IpAddr::V4(Ipv4Addr::from(*address)));
                    least = Some(least.map_or(record.ttl, |known: u32| known.min(record.ttl)));
                }
            }
            if !addresses.is_empty() || !moved || code == ResponseCode::NXDomain {
                let ttl = if addresses.is_empty() { NEGATIVE_TTL } else { ttl(least) };
                return Ok(Answer {
                    code,
                    addresses,
                    records: Vec::new(),
                    ttl,
                });
            }
        }
        Err(NoAnswer)
    }

    async fn ask(&self, name: &str, kind: RecordType) -> Result<Message, NoAnswer> {
        // By its labels: as text, the library takes no label with a hyphen at its end, and the world has such names.
        let mut name = DnsName::from_labels(name.split('.').map(str::as_bytes)).map_err(|_| NoAnswer)?;
        name.set_fqdn(true);
        for _ in 0..ATTEMPTS {
            for &server in &self.servers {
                if let Ok(Some(reply)) = timeout(ATTEMPT_TIMEOUT, ask_one(server, &name, kind)).await
                    && matches!(
                        reply.metadata.response_code,
                        ResponseCode::NoError | ResponseCode::NXDomain
                    )
                {
                    return Ok(reply);
                }
            }
        }
        Err(NoAnswer)
    }
}

fn ttl(seconds: Option<u32>) -> Duration {
    seconds.map_or(NEGATIVE_TTL, |seconds| {
        Duration::from_secs(u64::from(seconds.clamp(TTL.0, TTL.1)))
    })
}

fn is_for(record: &Record, name: &str) -> bool {
    let same = record.name.to_ascii().trim_end_matches('.').eq_ignore_ascii_case(name);
    (record.dns_class == DNSClass::IN && same) || !Defence::AnswersMatch.holds()
}

fn alias(records: &[Record], name: &str) -> Option<(String, u32)> {
    records.iter().find_map(|record| match &record.data {
        RData::CNAME(target) if is_for(record, name) => {
            let target = target.0.to_ascii();
            Some((target, record.ttl)).filter(|(target, _)| !target.trim_end_matches('.').eq_ignore_ascii_case(name))
        }
        _ => None,
    })
}

/// `None`: no usable answer from this server.
async fn ask_one(server: SocketAddr, name: &DnsName, kind: RecordType) -> Option<Message> {
    let mut number = [0; 2];
    SystemRandom::new().fill(&mut number).ok()?;
    let id = if Defence::RandomQuestions.holds() {
        u16::from_ne_bytes(number)
    } else {
        1
    };
    let mut question = Message::new(id, MessageType::Query, OpCode::Query);
    question.metadata.recursion_desired = true;
    question.add_query(Query::query(name.clone(), kind));
    let bytes = question.to_vec().ok()?;
    let any: SocketAddr = if server.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (std::net::Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let socket = UdpSocket::bind(any).await.ok()?;
    socket.connect(server).await.ok()?;
    socket.send(&bytes).await.ok()?;
    let mut buffer = vec![0; MAX_UDP_BYTES];
    loop {
        let length = socket.recv(&mut buffer).await.ok()?;
        let Some(reply) = parse(&buffer[..length], id, name, kind) else {
            // Somebody else's answer, or a forged one: the right one may still come.
            continue;
        };
        if !reply.metadata.truncation {
            return Some(reply);
        }
        break;
    }
    let mut stream = TcpStream::connect(server).await.ok()?;
    let length = u16::try_from(bytes.len()).ok()?;
    stream
        .write_all(&[&length.to_be_bytes(), bytes.as_slice()].concat())
        .await
        .ok()?;
    let length = stream.read_u16().await.ok()?;
    let mut buffer = vec![0; usize::from(length)];
    stream.read_exact(&mut buffer).await.ok()?;
    parse(&buffer, id, name, kind)
}

#[doc(hidden)]
pub fn parse(bytes: &[u8], id: u16, name: &DnsName, kind: RecordType) -> Option<Message> {
    let reply = Message::from_vec(bytes).ok()?;
    let ours = reply.metadata.id == id
        && reply.metadata.message_type == MessageType::Response
        && reply.queries.len() == 1
        && reply.queries[0].query_type == kind
        && reply.queries[0].name.to_ascii().eq_ignore_ascii_case(&name.to_ascii());
    (ours || !Defence::AnswersMatch.holds()).then_some(reply)
}

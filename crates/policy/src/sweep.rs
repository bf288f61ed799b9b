//! What happens to open flows when the policy changes.
//!
//! A flow is decided again from the facts that the gateway stored when it was new. It goes on if the new policy would
//! handle it in the same way towards the same destination; within an intercepted flow, an exchange goes on if the rules
//! that admitted it are the same and the address that it was sent to is one that the new policy has.

use std::net::{IpAddr, SocketAddr};

use crate::decide::connection::{Admission, Dial, Flow, Sniffed, Step};
use crate::decide::http::Stamp;
use crate::defence::Defence;
use crate::intersect::EffectivePolicy;
use crate::names::Name;
use crate::reasons::Reason;
use crate::rules::ForwardUrl;

/// [`Sniffed`], to be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SeenBytes {
    /// TLS with this server name.
    Tls(Option<Vec<u8>>),
    /// TLS within Postgres.
    Postgres(Option<Vec<u8>>),
    /// HTTP/1 with this `Host`.
    Http(Option<Vec<u8>>),
    /// Something else.
    Other,
    /// Nothing.
    Silent,
}

impl SeenBytes {
    fn borrow(&self) -> Sniffed<'_> {
        match self {
            Self::Tls(name) => Sniffed::Tls {
                server_name: name.as_deref(),
            },
            Self::Postgres(name) => Sniffed::Postgres {
                server_name: name.as_deref(),
            },
            Self::Http(host) => Sniffed::Http { host: host.as_deref() },
            Self::Other => Sniffed::Other,
            Self::Silent => Sniffed::Silent,
        }
    }
}

/// A request or tunnel that is under way in an intercepted flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exchange {
    /// [`crate::Judgement::stamp`] of the request that began it.
    pub stamp: Stamp,
    /// Where it was sent instead of to the flow's name.
    pub forward: Option<ForwardUrl>,
    /// The address that it was sent to, once it was.
    pub dialled: Option<IpAddr>,
}

/// What is stored of an open flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowFacts {
    /// Where it went.
    pub flow: Flow,
    /// What its first bytes were; `None` if nobody had to look.
    pub seen: Option<SeenBytes>,
    /// How it was admitted.
    pub admission: Admission,
    /// The address that was dialled, once it was. Of an intercepted flow each exchange has its own.
    pub dialled: Option<IpAddr>,
    /// What is under way in it; several under HTTP/2.
    pub exchanges: Vec<Exchange>,
}

/// What happens to one flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sweep {
    /// It goes on, admitted by the same.
    Keep,
    /// It goes on, admitted by something else now.
    Restamp(Admission),
    /// It goes on, but these of its exchanges, by index, end: with [`Reason::RuleChanged`], or with why the new policy does not
    /// have the address.
    CutExchanges(Admission, Vec<(usize, Reason)>),
    /// It ends. The reason is why the new policy does not have it; [`Reason::Revoked`] if it would handle it otherwise.
    Cut(Reason),
}

/// How two policies differ, for all flows at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Not at all: every flow stays.
    Nothing,
    /// Something: every flow must be looked at.
    Something,
}

/// Whether there is anything to sweep.
pub fn diff(old: &EffectivePolicy, new: &EffectivePolicy) -> Change {
    let same = old.layers.len() == new.layers.len()
        && old.smtp == new.smtp
        && std::sync::Arc::ptr_eq(&old.hard_deny, &new.hard_deny)
        && old
            .layers
            .iter()
            .zip(new.layers.iter())
            .all(|(old, new)| old.fingerprint == new.fingerprint);
    if same { Change::Nothing } else { Change::Something }
}

/// Decide on an open flow under the new policy.
pub fn sweep(new: &EffectivePolicy, facts: &FlowFacts) -> Sweep {
    let step = match &facts.seen {
        None => new.accept(&facts.flow),
        Some(seen) => new.decide(&facts.flow, &seen.borrow()),
    };
    let admission = match step {
        Step::Refuse(reason) => return Sweep::Cut(reason),
        // Nobody looked when the flow was new, and its first bytes are gone.
        Step::NeedBytes => return Sweep::Cut(Reason::Revoked),
        Step::Admit(admission) => admission,
    };
    if admission.handling != facts.admission.handling || admission.dial != facts.admission.dial {
        return Sweep::Cut(Reason::Revoked);
    }
    if let Some(address) = facts.dialled
        && let Err(reason) = new.vet(&admission, address)
    {
        return Sweep::Cut(reason);
    }
    let gone = match &admission.dial {
        Dial::Name(name, _) if admission.handling.is_intercepted() => ended(new, name, &admission, &facts.exchanges),
        _ => Vec::new(),
    };
    if !gone.is_empty() {
        Sweep::CutExchanges(admission, gone)
    } else if admission == facts.admission {
        Sweep::Keep
    } else {
        Sweep::Restamp(admission)
    }
}

fn ended(new: &EffectivePolicy, name: &Name, admission: &Admission, exchanges: &[Exchange]) -> Vec<(usize, Reason)> {
    exchanges
        .iter()
        .enumerate()
        .filter_map(|(index, exchange)| Some((index, goes_on(new, name, admission, exchange).err()?)))
        .collect()
}

fn goes_on(new: &EffectivePolicy, name: &Name, admission: &Admission, exchange: &Exchange) -> Result<(), Reason> {
    let forwards = exchange
        .forward
        .as_ref()
        .is_none_or(|url| new.admits_forward(&url.host, url.port));
    if !forwards || !new.still_admits(name, admission, &exchange.stamp) {
        return Err(Reason::RuleChanged);
    }
    match (
        exchange.dialled.filter(|_| Defence::SweptAddresses.holds()),
        &exchange.forward,
    ) {
        (None, _) => Ok(()),
        (Some(address), Some(_)) => new.forward_address(address).map(drop),
        (Some(address), None) => new.vet(admission, address),
    }
}

impl FlowFacts {
    /// The facts of a flow that is spliced to where the guest sent it.
    pub fn raw(destination: SocketAddr, admission: Admission) -> Self {
        let flow = Flow {
            destination,
            virtual_name: None,
        };
        Self {
            flow,
            seen: None,
            dialled: Some(destination.ip()),
            admission,
            exchanges: Vec::new(),
        }
    }
}

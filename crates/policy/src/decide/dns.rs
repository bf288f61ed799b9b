//! DNS questions: decided by name before anything is asked upstream.

use std::net::IpAddr;

use crate::addresses::canonical_address;
use crate::defence::Defence;
use crate::intersect::EffectivePolicy;
use crate::names::Name;
use crate::pattern::Pattern;
use crate::policy::{Mode, Policy};
use crate::reasons::Reason;

/// The record types that decisions tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RecordType {
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
    /// HTTPS and SVCB, whose hints must not reach the guest.
    Service,
    /// ANY, AXFR, IXFR, OPT and other questions that no client of the guest needs.
    Meta,
    /// Everything else.
    Other,
}

impl RecordType {
    /// By its number.
    pub fn from_number(number: u16) -> Self {
        match number {
            1 => Self::A,
            28 => Self::Aaaa,
            64 | 65 => Self::Service,
            0 | 41 | 128 | 249..=255 => Self::Meta,
            _ => Self::Other,
        }
    }
}

/// A question as parsed: one of opcode QUERY and class IN, or [`Question::well_formed`] is false.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question<'a> {
    /// The labels joined by dots.
    pub name: &'a [u8],
    /// What is asked for.
    pub kind: RecordType,
    /// Opcode QUERY, class IN, exactly one question.
    pub well_formed: bool,
    /// Whether the sandbox has IPv6.
    pub ipv6: bool,
}

/// The code of an answer without records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResponseCode {
    /// FORMERR.
    FormatError,
    /// NXDOMAIN.
    NoSuchName,
    /// REFUSED.
    Refused,
}

/// The answer to a question about a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DnsDecision {
    /// Ask upstream for this name, afresh and in lower case.
    Resolve {
        /// The canonical name.
        name: Name,
        /// The wildcard whose budget of distinct names this counts against.
        budget: Option<Pattern>,
    },
    /// Answer with the address that stands for this name.
    Virtual {
        /// The canonical name.
        name: Name,
    },
    /// Answer that there are no such records.
    NoData(Reason),
    /// Answer with this code.
    Refuse(ResponseCode, Reason),
}

impl EffectivePolicy {
    /// Decide on a DNS question.
    pub fn dns(&self, question: &Question) -> DnsDecision {
        let refuse = |reason| DnsDecision::Refuse(ResponseCode::Refused, reason);
        if !question.well_formed {
            return DnsDecision::Refuse(ResponseCode::FormatError, Reason::DnsMalformed);
        }
        if self.is_closed() {
            return refuse(Reason::DenyAll);
        }
        let Ok(name) = Name::question(question.name) else {
            return DnsDecision::Refuse(ResponseCode::FormatError, Reason::NameInvalid);
        };
        let whole = self.layers.iter().all(|layer| layer.mode == Mode::AllowAll);
        if name.is_special() && !(whole && name.is_reverse()) && Defence::SpecialNames.holds() {
            return DnsDecision::Refuse(ResponseCode::NoSuchName, Reason::NameSpecial);
        }
        if self.is_blocked(&name) {
            return refuse(Reason::NameBlocked);
        }
        if !self.layers.iter().all(|layer| resolves(layer, &name)) && Defence::QuestionNames.holds() {
            return refuse(Reason::DomainDeny);
        }
        match question.kind {
            RecordType::A => {}
            RecordType::Aaaa if question.ipv6 => {}
            RecordType::Other if whole => {}
            _ if Defence::QuestionTypes.holds() => return DnsDecision::NoData(Reason::DnsType),
            _ => {}
        }
        if self.is_virtual() {
            return DnsDecision::Virtual { name };
        }
        let budget = self.budget(&name).cloned();
        DnsDecision::Resolve { name, budget }
    }

    /// The wildcard whose budget of distinct names a question to a name server counts against, whoever wants to know: the
    /// guest, or the gateway because of a name in the guest's greeting.
    pub fn budget(&self, name: &Name) -> Option<&Pattern> {
        self.tenant()
            .pattern_of(name)
            .filter(|pattern| pattern.exact().is_none() && Defence::NameBudget.holds())
    }

    /// The addresses of an answer that the guest may see; the refusal if there were some and none is left.
    pub fn dns_answer(&self, addresses: &[IpAddr]) -> Result<Vec<IpAddr>, Reason> {
        let visible =
            |address: &IpAddr| self.hard_deny.classify(*address).is_none() || !Defence::VettedAddresses.holds();
        let left: Vec<IpAddr> = addresses
            .iter()
            .copied()
            .map(canonical_address)
            .filter(visible)
            .collect();
        if left.is_empty() && !addresses.is_empty() {
            Err(Reason::DnsPrivate)
        } else {
            Ok(left)
        }
    }
}

fn resolves(layer: &Policy, name: &Name) -> bool {
    // With ranges and no names the vendor leaves DNS open, because ranges are useless to most programs otherwise.
    let open = layer.dns_open.unwrap_or(layer.entries.is_empty());
    layer.covers(name) || (open && !layer.is_closed())
}

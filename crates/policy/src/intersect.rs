//! Several policies as one: what the operator, the organisation and the tenant all allow.
//!
//! Nothing is merged. Every layer answers every question for itself and the strictest answer counts, so that no bug in
//! combining patterns can widen anything: a refusal of any layer refuses, a layer that needs to look makes all look, and
//! an address must be admitted by every layer in the way in which that layer admitted the flow.

use std::net::IpAddr;
use std::sync::Arc;

use crate::hard_deny::HardDeny;
use crate::names::Name;
use crate::pattern::Pattern;
use crate::policy::{DnsMode, Limits, Mode, Policy, PolicyHash};
use crate::rules::digest;

/// The policies that hold for one sandbox. Immutable and cheap to clone.
#[derive(Debug, Clone)]
pub struct EffectivePolicy {
    pub(crate) hard_deny: Arc<HardDeny>,
    /// Bounds first, the tenant's last; never empty.
    pub(crate) layers: Arc<[Arc<Policy>]>,
    /// Whether port 25 is open, which only an operator can say.
    pub(crate) smtp: bool,
}

impl EffectivePolicy {
    /// The tenant's policy within the bounds of the operator and the organisation.
    pub fn intersect(hard_deny: Arc<HardDeny>, bounds: &[Arc<Policy>], tenant: Arc<Policy>) -> Self {
        let layers = bounds.iter().cloned().chain([tenant]).collect();
        Self {
            hard_deny,
            layers,
            smtp: false,
        }
    }

    /// The same with TCP port 25 open.
    #[must_use]
    pub fn with_smtp(self) -> Self {
        Self { smtp: true, ..self }
    }

    /// The tenant's policy.
    pub fn tenant(&self) -> &Arc<Policy> {
        &self.layers[self.layers.len() - 1]
    }

    /// The policies of operator and organisation.
    pub fn bounds(&self) -> &[Arc<Policy>] {
        &self.layers[..self.layers.len() - 1]
    }

    /// The hard-deny set.
    pub fn hard_deny(&self) -> &HardDeny {
        &self.hard_deny
    }

    /// The hash of all policies together, for audit records; that of the tenant's where there are no bounds.
    pub fn hash(&self) -> PolicyHash {
        if self.bounds().is_empty() {
            return self.tenant().hash;
        }
        let hashes: Vec<&[u8]> = self.layers.iter().map(|layer| layer.hash.0.as_slice()).collect();
        PolicyHash(digest(&hashes))
    }

    /// The byte limits of the whole sandbox.
    pub fn limits(&self) -> Limits {
        self.layers
            .iter()
            .fold(Limits::default(), |limits, layer| limits.narrow(layer.limits))
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.layers.iter().any(|layer| layer.is_closed())
    }

    pub(crate) fn is_blocked(&self, name: &Name) -> bool {
        self.layers.iter().any(|layer| layer.blocked_lookup.get(name).is_some())
    }

    pub(crate) fn has_blocks(&self) -> bool {
        self.layers.iter().any(|layer| !layer.blocked.is_empty())
    }

    /// Whether names get addresses that stand for them.
    pub(crate) fn is_virtual(&self) -> bool {
        self.tenant().mode == Mode::Custom && self.tenant().dns_mode == DnsMode::Virtual
    }

    /// Whether a `forwardURL` to this host is within the bounds. The tenant's own patterns do not matter: handling is not
    /// access.
    pub(crate) fn admits_forward(&self, host: &crate::Host, port: u16) -> bool {
        self.bounds().iter().all(|layer| match (layer.mode, host) {
            (Mode::AllowAll, _) => true,
            (Mode::DenyAll, _) => false,
            (Mode::Custom, crate::Host::Name(name)) => {
                layer.covers(name) && layer.defaults.ports.as_ref().is_none_or(|ports| ports.contains(&port))
            }
            (Mode::Custom, crate::Host::Address(address)) => {
                !layer.deny.contains(*address) && layer.allow.contains(*address)
            }
        })
    }

    /// The address to dial for a `forwardURL`, if it is not closed.
    pub fn forward_address(&self, address: IpAddr) -> Result<IpAddr, crate::Reason> {
        let address = crate::canonical_address(address);
        let denied = self.bounds().iter().any(|layer| layer.deny.contains(address));
        match self.hard_deny.classify(address) {
            Some(_) => Err(crate::Reason::AddressClass),
            None if denied => Err(crate::Reason::SubnetDeny),
            None => Ok(address),
        }
    }
}

/// What a tenant's policy names beyond its bounds, where it will never have an effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outside {
    /// No pattern of the bounds includes all of this one.
    Pattern(Pattern),
    /// No range of the bounds includes all of this one.
    Range(crate::Cidr),
    /// The tenant's policy is allow-all and the bounds are not.
    AllowAll,
}

/// What of `tenant` is not wholly within `bounds`. Empty: the bounds take nothing away that the tenant names.
pub fn outside(bounds: &Policy, tenant: &Policy) -> Vec<Outside> {
    match (bounds.mode, tenant.mode) {
        (Mode::AllowAll, _) if bounds.blocked.is_empty() => return Vec::new(),
        (_, Mode::DenyAll) => return Vec::new(),
        (_, Mode::AllowAll) => return vec![Outside::AllowAll],
        _ => {}
    }
    let all = bounds.mode == Mode::AllowAll;
    let blocked = |pattern: &Pattern| {
        bounds
            .blocked
            .iter()
            .any(|block| block.includes(pattern) || pattern.includes(block))
    };
    let covered = |pattern: &Pattern| {
        (all || bounds.entries.iter().any(|entry| entry.pattern.includes(pattern))) && !blocked(pattern)
    };
    let patterns = tenant
        .entries
        .iter()
        .map(|entry| &entry.pattern)
        .filter(|pattern| !covered(pattern));
    let inside = |range: &crate::Cidr| {
        let denied = bounds
            .deny_ranges
            .iter()
            .any(|deny| deny.includes(*range) || range.includes(*deny));
        (all || bounds.allow_ranges.iter().any(|allow| allow.includes(*range))) && !denied
    };
    let ranges = tenant.allow_ranges.iter().filter(|range| !inside(range));
    patterns
        .map(|pattern| Outside::Pattern(pattern.clone()))
        .chain(ranges.map(|range| Outside::Range(*range)))
        .collect()
}

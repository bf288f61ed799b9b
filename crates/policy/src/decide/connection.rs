//! Connections and datagrams.
//!
//! The gateway accepts a flow and asks [`EffectivePolicy::accept`]. If the answer is [`Step::NeedBytes`] it looks at the
//! first bytes (3 s, 16 KiB) and asks [`EffectivePolicy::decide`] with what it saw. An [`Admission`] says how the flow is
//! handled; before dialling, every address goes through [`EffectivePolicy::dial`].

use std::net::{IpAddr, SocketAddr};

use crate::addresses::{Cidr, canonical_address};
use crate::defence::Defence;
use crate::hard_deny::DenyClass;
use crate::intersect::EffectivePolicy;
use crate::names::{Host, Name, NameError, parse_authority, parse_host};
use crate::pattern::Pattern;
use crate::policy::{Inspect, Mode, Policy, Unmatched};
use crate::reasons::Reason;

const SMTP_PORT: u16 = 25;
/// DNS over TLS: a resolver that nobody here can look into.
const DOT_PORT: u16 = 853;
const HTTPS_PORT: u16 = 443;
/// The ranges of addresses that stand for names; nothing is routed to them.
pub const VIRTUAL_RANGES: [&str; 2] = ["198.18.0.0/15", "fd68:7574:6368::/48"];

/// Where a flow goes, as the guest sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// The original destination.
    pub destination: SocketAddr,
    /// The name that this address stands for, under `dns.mode` "virtual".
    pub virtual_name: Option<Name>,
}

/// What the first bytes of a flow are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sniffed<'a> {
    /// A complete TLS `ClientHello`, with the bytes of its server name.
    Tls {
        /// `None` without the extension.
        server_name: Option<&'a [u8]>,
    },
    /// The same after Postgres's request for TLS.
    Postgres {
        /// `None` without the extension.
        server_name: Option<&'a [u8]>,
    },
    /// The head of an HTTP/1 request, with its only `Host`.
    Http {
        /// `None` without the header.
        host: Option<&'a [u8]>,
    },
    /// The preface of HTTP/2 without TLS.
    Http2,
    /// Something else.
    Other,
    /// Nothing came in time.
    Silent,
    /// The start of TLS or HTTP, but broken: two names, two hosts, too long, an old version.
    Broken,
}

/// By what a layer admits a flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Grant {
    /// allow-all.
    AllowAll,
    /// A range of `subnets.allow`.
    Cidr(Cidr),
    /// `*`, for a flow without a name.
    NoName,
    /// The most specific pattern that covers the name.
    Name(Pattern),
}

/// Whom the gateway connects to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dial {
    /// The address that the guest chose.
    Original(SocketAddr),
    /// Addresses that the gateway itself resolves for this name.
    Name(Name, u16),
}

/// What the gateway does with the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handling {
    /// Passes them on unseen.
    Splice,
    /// Passes on Postgres's request for TLS, then splices.
    SplicePostgres,
    /// Terminates TLS and judges every request.
    Intercept,
    /// Judges every request of a connection without TLS.
    InterceptPlaintext,
}

impl Handling {
    /// Whether requests are judged.
    pub fn is_intercepted(self) -> bool {
        matches!(self, Self::Intercept | Self::InterceptPlaintext)
    }
}

/// A flow that may go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admission {
    /// How.
    pub handling: Handling,
    /// To whom.
    pub dial: Dial,
    /// Why, for the audit record: the tenant's reason.
    pub reason: Reason,
    /// By what, for each layer, bounds first.
    pub grants: Vec<Grant>,
}

impl Admission {
    /// The canonical name of the flow, which SNI, `Host`, certificate and credential must all have.
    pub fn name(&self) -> Option<&Name> {
        match &self.dial {
            Dial::Name(name, _) => Some(name),
            Dial::Original(_) => None,
        }
    }

    /// The port that is dialled.
    pub fn port(&self) -> u16 {
        match &self.dial {
            Dial::Name(_, port) => *port,
            Dial::Original(address) => address.port(),
        }
    }
}

/// The answer to a question about a flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Reset it.
    Refuse(Reason),
    /// Look at the first bytes and ask again.
    NeedBytes,
    /// Let it go on.
    Admit(Admission),
}

/// What the bytes say about the name.
enum Seen {
    Nothing,
    NoName { is_http: bool },
    Name(Name, Protocol),
    Bad(Reason),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Tls,
    Postgres,
    Http,
    /// Anything, to an address that stands for a name.
    Raw,
}

/// One layer's answer.
enum Verdict {
    Refuse(Reason),
    NeedBytes,
    Grant(Grant, Handling),
}

impl EffectivePolicy {
    /// Decide on a flow before its first byte.
    pub fn accept(&self, flow: &Flow) -> Step {
        self.step(flow, None)
    }

    /// Decide on a flow of which the first bytes are known. Never answers [`Step::NeedBytes`].
    pub fn decide(&self, flow: &Flow, sniffed: &Sniffed) -> Step {
        match self.step(flow, Some(sniffed)) {
            Step::NeedBytes => Step::Refuse(Reason::Internal),
            step => step,
        }
    }

    fn step(&self, flow: &Flow, sniffed: Option<&Sniffed>) -> Step {
        let address = canonical_address(flow.destination.ip());
        let port = flow.destination.port();
        let virtual_name = match &flow.virtual_name {
            Some(name) if self.is_virtual() && is_virtual_address(address) => Some(name),
            // A map that is older than the policy, or an address that cannot be in it.
            Some(_) => return Step::Refuse(Reason::HardDeny),
            None => None,
        };
        if virtual_name.is_none()
            && let Some(reason) = self.closed(address)
        {
            return Step::Refuse(reason);
        }
        if port == SMTP_PORT && !self.smtp && Defence::Smtp.holds() {
            return Step::Refuse(Reason::Smtp);
        }
        if virtual_name.is_some_and(|name| self.is_blocked(name)) {
            return Step::Refuse(Reason::NameBlocked);
        }
        let seen = seen(virtual_name, port, sniffed);
        if let Seen::Name(name, _) = &seen
            && self.is_blocked(name)
        {
            return Step::Refuse(Reason::NameBlocked);
        }
        // Names can only be blocked where they are seen, so that raw flows are looked at as well.
        let mut waiting = self.has_blocks() && matches!(seen, Seen::Nothing) && !self.is_closed();
        let mut grants = Vec::with_capacity(self.layers.len());
        let mut handling = Handling::Splice;
        for layer in self.layers.iter() {
            match judge(layer, address, port, virtual_name, &seen) {
                Verdict::Refuse(reason) => return Step::Refuse(reason),
                Verdict::NeedBytes => waiting = true,
                Verdict::Grant(grant, own) => {
                    grants.push(grant);
                    handling = stricter(handling, own);
                }
            }
        }
        if waiting {
            return Step::NeedBytes;
        }
        let named = grants.iter().any(|grant| matches!(grant, Grant::Name(_)));
        let dial = match seen {
            Seen::Name(name, _) if named && Defence::OwnDial.holds() => Dial::Name(name, port),
            _ => Dial::Original(SocketAddr::new(address, port)),
        };
        let reason = match grants.last() {
            Some(Grant::AllowAll) => Reason::AllowAll,
            Some(Grant::Cidr(_)) => Reason::Cidr,
            Some(Grant::NoName) => Reason::NoName,
            Some(Grant::Name(_)) => Reason::Domain,
            None => return Step::Refuse(Reason::PolicyMissing),
        };
        Step::Admit(Admission {
            handling,
            dial,
            reason,
            grants,
        })
    }

    /// Decide on a datagram that is no DNS question.
    pub fn datagram(&self, destination: SocketAddr) -> Result<Reason, Reason> {
        let address = canonical_address(destination.ip());
        if let Some(reason) = self.closed(address) {
            return Err(reason);
        }
        let mut reason = Reason::AllowAll;
        for layer in self.layers.iter() {
            if layer.is_closed() {
                return Err(Reason::DenyAll);
            }
            if layer.mode == Mode::AllowAll {
                continue;
            }
            if layer.deny.contains(address) {
                return Err(Reason::SubnetDeny);
            }
            if !layer.allow.contains(address) && Defence::Datagrams.holds() {
                return Err(Reason::Udp);
            }
            reason = Reason::Cidr;
        }
        Ok(reason)
    }

    /// The addresses that may be dialled for an admitted flow, of those that the gateway resolved (for [`Dial::Name`]) or
    /// of the original one. All are vetted; the refusal is that of the last one.
    pub fn dial(&self, admission: &Admission, addresses: &[IpAddr]) -> Result<Vec<IpAddr>, Reason> {
        let mut refusal = Reason::AddressClass;
        let mut vetted = Vec::new();
        for &address in addresses {
            let address = canonical_address(address);
            match self.vet(admission, address) {
                Ok(()) if vetted.contains(&address) => {}
                Ok(()) => vetted.push(address),
                Err(reason) => refusal = reason,
            }
        }
        if vetted.is_empty() { Err(refusal) } else { Ok(vetted) }
    }

    /// Whether an address may be dialled for an admitted flow.
    pub fn vet(&self, admission: &Admission, address: IpAddr) -> Result<(), Reason> {
        let address = canonical_address(address);
        if !Defence::VettedAddresses.holds() {
            return Ok(());
        }
        match (self.closed(address), &admission.dial) {
            (Some(Reason::HardDeny), Dial::Name(..)) => return Err(Reason::AddressClass),
            (Some(reason), _) => return Err(reason),
            (None, Dial::Original(original)) if original.ip() != address => return Err(Reason::AddressClass),
            (None, _) => {}
        }
        if admission.grants.len() != self.layers.len() {
            return Err(Reason::Internal);
        }
        for (layer, grant) in self.layers.iter().zip(&admission.grants) {
            if *grant == Grant::AllowAll {
                continue;
            }
            if layer.deny.contains(address) {
                return Err(Reason::SubnetDeny);
            }
            if matches!(grant, Grant::Cidr(_)) && !layer.allow.contains(address) {
                return Err(Reason::AddressDeny);
            }
        }
        Ok(())
    }

    /// Whether the guest dialled an address that is not one of the name's, which the audit record notes: ours are dialled.
    pub fn is_mismatch(admission: &Admission, flow: &Flow, resolved: &[IpAddr], pinned: &[IpAddr]) -> bool {
        let address = canonical_address(flow.destination.ip());
        let known = resolved
            .iter()
            .chain(pinned)
            .any(|known| canonical_address(*known) == address);
        admission.name().is_some() && flow.virtual_name.is_none() && !known
    }

    fn closed(&self, address: IpAddr) -> Option<Reason> {
        self.hard_deny.classify(address).map(|class| match class {
            DenyClass::Own => Reason::SelfAddress,
            _ => Reason::HardDeny,
        })
    }
}

/// Whether an address can stand for a name.
fn is_virtual_address(address: IpAddr) -> bool {
    VIRTUAL_RANGES
        .iter()
        .any(|range| Cidr::parse(range).is_ok_and(|range| range.contains(address)))
}

fn stricter(one: Handling, other: Handling) -> Handling {
    let rank = |handling| match handling {
        Handling::Splice => 0,
        Handling::SplicePostgres => 1,
        Handling::Intercept => 2,
        Handling::InterceptPlaintext => 3,
    };
    if rank(other) > rank(one) { other } else { one }
}

fn seen(virtual_name: Option<&Name>, port: u16, sniffed: Option<&Sniffed>) -> Seen {
    let (found, protocol) = match sniffed {
        None => return Seen::Nothing,
        Some(Sniffed::Broken | Sniffed::Http2) => return Seen::Bad(Reason::ProtocolViolation),
        Some(Sniffed::Tls { server_name }) => (server_name.map(parse_host), Protocol::Tls),
        Some(Sniffed::Postgres { server_name }) => (server_name.map(parse_host), Protocol::Postgres),
        Some(Sniffed::Http { host }) => (host.map(|host| host_on(host, port)), Protocol::Http),
        Some(Sniffed::Other | Sniffed::Silent) => (None, Protocol::Raw),
    };
    let name = match found {
        Some(Ok(Host::Name(name))) => Some(name),
        // An address as a server name is no name; the flow is judged by where it goes.
        None | Some(Ok(Host::Address(_)) | Err(NameError::Address)) => None,
        Some(Err(NameError::Port)) => return Seen::Bad(Reason::NameMismatch),
        Some(Err(_)) if Defence::NameGrammar.holds() => return Seen::Bad(Reason::NameInvalid),
        Some(Err(_)) => None,
    };
    match (virtual_name, name) {
        (Some(wanted), Some(name)) if *wanted != name && Defence::VirtualNames.holds() => {
            Seen::Bad(Reason::NameMismatch)
        }
        (Some(wanted), _) => Seen::Name(wanted.clone(), protocol),
        (None, Some(name)) => Seen::Name(name, protocol),
        (None, None) => Seen::NoName {
            is_http: protocol == Protocol::Http,
        },
    }
}

fn host_on(raw: &[u8], port: u16) -> Result<Host, NameError> {
    match parse_authority(raw)? {
        (_, Some(other)) if other != port => Err(NameError::Port),
        (host, _) => Ok(host),
    }
}

fn judge(layer: &Policy, address: IpAddr, port: u16, virtual_name: Option<&Name>, seen: &Seen) -> Verdict {
    if layer.mode == Mode::AllowAll || (layer.is_closed() && !Defence::EmptyIsClosed.holds()) {
        return Verdict::Grant(Grant::AllowAll, Handling::Splice);
    }
    // A virtual address is no address: ranges say nothing about it.
    if virtual_name.is_none() {
        if layer.deny.contains(address) {
            return Verdict::Refuse(Reason::SubnetDeny);
        }
        if let Some(&index) = layer.allow.get(address) {
            return Verdict::Grant(Grant::Cidr(layer.allow_ranges[index]), Handling::Splice);
        }
    }
    if layer.is_closed() {
        return Verdict::Refuse(Reason::DenyAll);
    }
    if layer.entries.is_empty() {
        return Verdict::Refuse(Reason::AddressDeny);
    }
    let port_is_open = layer
        .defaults
        .ports
        .as_ref()
        .map_or(port != DOT_PORT, |ports| ports.contains(&port));
    if !port_is_open && Defence::Ports.holds() {
        return Verdict::Refuse(Reason::PortDeny);
    }
    if virtual_name.is_some_and(|name| name.is_special() || layer.entry_of(name).is_none()) {
        return Verdict::Refuse(Reason::DomainDeny);
    }
    let unnamed = |refusal| {
        // Under `*` the vendor lets pass what has no name, unless everything must be judged.
        if layer.lookup.any().is_some() && !layer.defaults.is_strict() || !Defence::UnnamedFlows.holds() {
            Verdict::Grant(Grant::NoName, Handling::Splice)
        } else {
            Verdict::Refuse(refusal)
        }
    };
    match seen {
        Seen::Nothing => Verdict::NeedBytes,
        Seen::Bad(reason) => Verdict::Refuse(*reason),
        Seen::NoName { is_http } => unnamed(if *is_http {
            Reason::PlaintextHttp
        } else {
            Reason::NoName
        }),
        Seen::Name(_, Protocol::Http) if !Defence::PlaintextHttp.holds() => {
            Verdict::Grant(Grant::NoName, Handling::Splice)
        }
        Seen::Name(_, Protocol::Http) if !layer.defaults.plaintext_http && virtual_name.is_none() => {
            unnamed(Reason::PlaintextHttp)
        }
        Seen::Name(_, Protocol::Http) if !layer.defaults.plaintext_http => Verdict::Refuse(Reason::PlaintextHttp),
        Seen::Name(name, protocol) => judge_name(layer, name, *protocol, port),
    }
}

fn judge_name(layer: &Policy, name: &Name, protocol: Protocol, port: u16) -> Verdict {
    if name.is_special() && Defence::SpecialNames.holds() {
        return Verdict::Refuse(Reason::NameSpecial);
    }
    let Some((_, entry)) = layer.entry_of(name) else {
        if !Defence::DomainPatterns.holds() {
            return Verdict::Grant(Grant::NoName, Handling::Splice);
        }
        return Verdict::Refuse(Reason::DomainDeny);
    };
    let inspected =
        (!entry.rules.is_empty() || layer.defaults.inspect == Inspect::All) && Defence::Interception.holds();
    let grant = Grant::Name(entry.pattern.clone());
    match protocol {
        Protocol::Tls if !inspected => Verdict::Grant(grant, Handling::Splice),
        Protocol::Tls => {
            // Nothing is injected on a port that nobody named: another server may listen there.
            let named = layer.defaults.ports.is_some() || port == HTTPS_PORT;
            if entry.injects() && !named && Defence::SecretPorts.holds() {
                return Verdict::Refuse(Reason::PortDeny);
            }
            Verdict::Grant(grant, Handling::Intercept)
        }
        // The vendor ignores rules for Postgres; where everything must be judged, that is not enough.
        Protocol::Postgres if layer.defaults.is_strict() => Verdict::Refuse(Reason::ProtocolViolation),
        Protocol::Postgres => Verdict::Grant(grant, Handling::SplicePostgres),
        Protocol::Http => Verdict::Grant(grant, Handling::InterceptPlaintext),
        Protocol::Raw if inspected || layer.defaults.unmatched == Unmatched::Deny => {
            Verdict::Refuse(Reason::ProtocolViolation)
        }
        Protocol::Raw => Verdict::Grant(grant, Handling::Splice),
    }
}

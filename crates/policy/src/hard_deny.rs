//! The addresses that no tenant policy opens.
//!
//! An operator may open private ranges (`egress.allow_private`); loopback, link-local, metadata, multicast, the host's
//! own addresses and those of sandboxes stay closed. An address that carries another one inside (6to4, NAT64, Teredo,
//! ISATAP …) is judged by what it carries as well.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::addresses::{Cidr, PrefixMap, canonical_address, subtract};
use crate::defence::Defence;

/// What kind of address it is that nobody may reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DenyClass {
    /// `0.0.0.0/8`, `::`.
    Unspecified,
    /// `127.0.0.0/8`, `::1`.
    Loopback,
    /// `169.254.0.0/16`, `fe80::/10`.
    LinkLocal,
    /// The metadata service of a cloud.
    Metadata,
    /// An address of this host, the gateway or the control plane.
    Own,
    /// An address that sandboxes get.
    Sandbox,
    /// Multicast and broadcast.
    Multicast,
    /// RFC 1918, unique local, site-local.
    Private,
    /// Shared address space of RFC 6598.
    Shared,
    /// Benchmarks, protocol assignments, reserved and discard-only ranges.
    Reserved,
    /// An address that stands for one of the other family.
    Translation,
}

impl DenyClass {
    /// Whether an operator can open addresses of this class.
    pub fn can_be_opened(self) -> bool {
        matches!(self, Self::Private | Self::Shared | Self::Reserved | Self::Translation)
    }
}

const FIXED: &[(&str, DenyClass)] = &[
    ("0.0.0.0/8", DenyClass::Unspecified),
    ("10.0.0.0/8", DenyClass::Private),
    ("100.64.0.0/10", DenyClass::Shared),
    ("100.100.100.200/32", DenyClass::Metadata),
    ("127.0.0.0/8", DenyClass::Loopback),
    ("168.63.129.16/32", DenyClass::Metadata),
    ("169.254.0.0/16", DenyClass::LinkLocal),
    ("169.254.169.254/32", DenyClass::Metadata),
    ("169.254.170.2/32", DenyClass::Metadata),
    ("169.254.170.23/32", DenyClass::Metadata),
    ("172.16.0.0/12", DenyClass::Private),
    ("192.0.0.0/24", DenyClass::Reserved),
    ("192.0.0.192/32", DenyClass::Metadata),
    ("192.88.99.0/24", DenyClass::Translation),
    ("192.168.0.0/16", DenyClass::Private),
    ("198.18.0.0/15", DenyClass::Reserved),
    ("224.0.0.0/4", DenyClass::Multicast),
    ("240.0.0.0/4", DenyClass::Reserved),
    ("255.255.255.255/32", DenyClass::Multicast),
    // The old IPv4-compatible addresses; `::` and `::1` are among them.
    ("::/96", DenyClass::Translation),
    ("::/128", DenyClass::Unspecified),
    ("::1/128", DenyClass::Loopback),
    ("64:ff9b::/96", DenyClass::Translation),
    ("64:ff9b:1::/48", DenyClass::Translation),
    ("100::/64", DenyClass::Reserved),
    ("2001::/32", DenyClass::Translation),
    ("2002::/16", DenyClass::Translation),
    ("5f00::/16", DenyClass::Reserved),
    ("fc00::/7", DenyClass::Private),
    ("fd00:ec2::/32", DenyClass::Metadata),
    ("fd20:ce::254/128", DenyClass::Metadata),
    ("fe80::/10", DenyClass::LinkLocal),
    ("fec0::/10", DenyClass::Private),
    ("ff00::/8", DenyClass::Multicast),
];

/// What an operator says about addresses.
#[derive(Debug, Clone, Default)]
pub struct HardDenySettings {
    /// Ranges that are opened (`egress.allow_private`).
    pub allow_private: Vec<Cidr>,
    /// Addresses of the host, the gateway, the control plane.
    pub own: Vec<IpAddr>,
    /// The ranges that sandboxes get addresses from.
    pub sandbox_pools: Vec<Cidr>,
}

/// The hard-deny set of one host.
#[derive(Debug, Clone)]
pub struct HardDeny {
    denied: PrefixMap<DenyClass>,
    opened: PrefixMap<()>,
    /// Everything that stays closed, for cutting a tenant's ranges.
    holes: Vec<Cidr>,
}

impl Default for HardDeny {
    fn default() -> Self {
        Self::new(&HardDenySettings::default()).expect("the defaults open nothing")
    }
}

impl HardDeny {
    /// The set under these settings; fails with the range in `allow_private` that lies wholly in what can never be opened.
    pub fn new(settings: &HardDenySettings) -> Result<Self, Cidr> {
        let fixed = FIXED
            .iter()
            .map(|(text, class)| (Cidr::parse(text).expect("a constant range"), *class));
        let own = settings
            .own
            .iter()
            .map(|&address| (Cidr::single(address), DenyClass::Own));
        let pools = settings.sandbox_pools.iter().map(|&pool| (pool, DenyClass::Sandbox));
        let (mut holes, mut never) = (Vec::new(), Vec::new());
        // Own addresses and pools come first: of one range the first class stays.
        let denied: Vec<(Cidr, DenyClass)> = own.chain(pools).chain(fixed).collect();
        for &(range, class) in &denied {
            if class.can_be_opened() {
                holes.extend(subtract(range, &settings.allow_private));
            } else {
                holes.push(range);
                never.push(range);
            }
        }
        let mut opened = Vec::new();
        for &range in &settings.allow_private {
            let left = subtract(range, &never);
            if left.is_empty() {
                return Err(range);
            }
            opened.extend(left.into_iter().map(|range| (range, ())));
        }
        Ok(Self {
            denied: denied.into_iter().collect(),
            opened: opened.into_iter().collect(),
            holes,
        })
    }

    /// Why nobody may reach `address`; `None` if policies decide.
    pub fn classify(&self, address: IpAddr) -> Option<DenyClass> {
        let address = canonical_address(address);
        if !Defence::ClosedAddresses.holds() {
            return None;
        }
        if let Some(class) = self.class_of(address) {
            return Some(class);
        }
        match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(v6) => carried(v6)
                .into_iter()
                .flatten()
                .find_map(|v4| self.class_of(v4.into())),
        }
    }

    fn class_of(&self, address: IpAddr) -> Option<DenyClass> {
        let class = *self.denied.get(address)?;
        if !class.can_be_opened() {
            return Some(class);
        }
        // A range that can be opened may lie inside a pool or another that cannot: then the longest prefix is not enough.
        (!self.opened.contains(address)).then_some(class)
    }

    /// Every range that stays closed; some lie within others.
    pub fn closed(&self) -> &[Cidr] {
        &self.holes
    }

    /// What is left of a tenant's range. Empty: all of it is closed.
    pub fn cut(&self, range: Cidr) -> Vec<Cidr> {
        subtract(range, &self.holes)
    }
}

/// The IPv4 addresses that an IPv6 address stands for in one of the known ways.
fn carried(address: Ipv6Addr) -> [Option<Ipv4Addr>; 3] {
    let segments = address.segments();
    let bits = address.to_bits();
    let v4 = |high: u16, low: u16| Some(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)));
    let last = v4(segments[6], segments[7]);
    match segments {
        [0, 0, 0, 0, 0, 0, ..] => [last, None, None],
        [0x64, 0xff9b, 0, 0, 0, 0, ..] => [last, None, None],
        // Local translation prefixes put the address behind 48 bits, with a byte of zeros in it, or at the end.
        [0x64, 0xff9b, 1, ..] => {
            let split = Ipv4Addr::from_bits(((bits >> 64) as u32) << 16 | ((bits >> 40) as u32 & 0xffff));
            [last, Some(split).filter(|split| split.octets()[0] != 0), None]
        }
        // Teredo: server, and the client with its bits turned over.
        [0x2001, 0, high, low, ..] => [v4(high, low), v4(!segments[6], !segments[7]), None],
        [0x2002, high, low, ..] => [v4(high, low), None, None],
        // ISATAP, under any prefix.
        [_, _, _, _, 0 | 0x200, 0x5efe, ..] => [last, None, None],
        _ => [None; 3],
    }
}

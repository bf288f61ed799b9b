//! Ranges of addresses and the lookup by longest prefix.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The address that is meant: IPv4-mapped IPv6 addresses are IPv4 addresses in disguise.
pub fn canonical_address(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(address, IpAddr::V4),
        IpAddr::V4(_) => address,
    }
}

/// Why text is not a range, as the end of a sentence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CidrError {
    /// Not an address, or not a decimal length.
    Syntax,
    /// Bits beyond the length are set.
    HostBits,
}

impl fmt::Display for CidrError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Syntax => "should be an address range such as 203.0.113.0/24 or 2001:db8::/32",
            Self::HostBits => "should NOT have bits set beyond the length of its prefix",
        })
    }
}

/// A range of addresses of one family. Equal ranges are equal values.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cidr {
    v6: bool,
    /// The address from the left of the 128 bits, in both families.
    bits: u128,
    // Last, so that in order a range comes before all that lie in it.
    length: u8,
}

impl Cidr {
    /// Read `ADDRESS/LENGTH`, or one address.
    pub fn parse(text: &str) -> Result<Self, CidrError> {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| CidrError::Syntax)?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let length = match length {
            None => most,
            // `parse` alone would take `+8` and `008`.
            Some(digits) if digits.len() <= 3 && digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                if digits.len() > 1 && digits.starts_with('0') {
                    return Err(CidrError::Syntax);
                }
                digits.parse().map_err(|_| CidrError::Syntax)?
            }
            Some(_) => return Err(CidrError::Syntax),
        };
        if length > most {
            return Err(CidrError::Syntax);
        }
        let (family, bits) = split(address);
        if bits & !mask(length) != 0 {
            return Err(CidrError::HostBits);
        }
        if let IpAddr::V6(v6) = address
            && length >= 96
            && let Some(v4) = v6.to_ipv4_mapped()
        {
            return Ok(Self {
                v6: false,
                length: length - 96,
                bits: split(v4.into()).1,
            });
        }
        Ok(Self {
            v6: family,
            length,
            bits,
        })
    }

    /// The range of one address.
    pub fn single(address: IpAddr) -> Self {
        let (v6, bits) = split(canonical_address(address));
        Self {
            v6,
            length: if v6 { 128 } else { 32 },
            bits,
        }
    }

    /// The length of the prefix in bits.
    pub fn prefix_length(self) -> u8 {
        self.length
    }

    /// Whether the canonical form of `address` is in the range.
    pub fn contains(self, address: IpAddr) -> bool {
        let (v6, bits) = split(canonical_address(address));
        v6 == self.v6 && bits & mask(self.length) == self.bits
    }

    /// Whether all of `other` is in the range.
    pub fn includes(self, other: Self) -> bool {
        self.v6 == other.v6 && self.length <= other.length && other.bits & mask(self.length) == self.bits
    }

    fn meets(self, other: Self) -> bool {
        self.includes(other) || other.includes(self)
    }

    fn halves(self) -> [Self; 2] {
        let length = self.length + 1;
        [
            Self { length, ..self },
            Self {
                length,
                bits: self.bits | 1 << (128 - length),
                ..self
            },
        ]
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.v6 {
            write!(f, "{}/{}", Ipv6Addr::from_bits(self.bits), self.length)
        } else {
            write!(f, "{}/{}", Ipv4Addr::from_bits((self.bits >> 96) as u32), self.length)
        }
    }
}

impl fmt::Debug for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn split(address: IpAddr) -> (bool, u128) {
    match address {
        IpAddr::V4(v4) => (false, u128::from(v4.to_bits()) << 96),
        IpAddr::V6(v6) => (true, v6.to_bits()),
    }
}

fn mask(length: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0)
}

/// What is left of `range` without `holes`, as few ranges as possible, in order. Empty: nothing is left.
pub fn subtract(range: Cidr, holes: &[Cidr]) -> Vec<Cidr> {
    let near: Vec<Cidr> = holes.iter().copied().filter(|hole| hole.meets(range)).collect();
    if near.is_empty() {
        return vec![range];
    }
    if near.iter().any(|hole| hole.includes(range)) {
        return Vec::new();
    }
    range
        .halves()
        .into_iter()
        .flat_map(|half| subtract(half, &near))
        .collect()
}

/// Values by range; the longest prefix that contains an address wins. A lookup is one binary search, and one step for
/// each range around the place it finds.
#[derive(Debug, Clone)]
pub struct PrefixMap<T> {
    /// In order of the ranges, each with the index of the closest range around it.
    entries: Vec<(Cidr, Option<usize>, T)>,
}

impl<T> Default for PrefixMap<T> {
    fn default() -> Self {
        Self { entries: Vec::new() }
    }
}

impl<T> FromIterator<(Cidr, T)> for PrefixMap<T> {
    /// Of one range the first value stays.
    fn from_iter<I: IntoIterator<Item = (Cidr, T)>>(pairs: I) -> Self {
        let mut pairs: Vec<(Cidr, T)> = pairs.into_iter().collect();
        pairs.sort_by_key(|(range, _)| *range);
        pairs.dedup_by_key(|(range, _)| *range);
        let mut entries: Vec<(Cidr, Option<usize>, T)> = Vec::with_capacity(pairs.len());
        let mut around: Vec<usize> = Vec::new();
        for (range, value) in pairs {
            while around.last().is_some_and(|&outer| !entries[outer].0.includes(range)) {
                around.pop();
            }
            let outer = around.last().copied();
            around.push(entries.len());
            entries.push((range, outer, value));
        }
        Self { entries }
    }
}

impl<T> PrefixMap<T> {
    /// The value of the longest prefix that contains `address`.
    pub fn get(&self, address: IpAddr) -> Option<&T> {
        let wanted = Cidr::single(address);
        let after = self.entries.partition_point(|(range, _, _)| *range <= wanted);
        let mut at = after.checked_sub(1);
        while let Some(index) = at {
            let (range, outer, value) = &self.entries[index];
            if range.includes(wanted) {
                return Some(value);
            }
            at = *outer;
        }
        None
    }

    /// Whether any range contains `address`.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.get(address).is_some()
    }

    /// Whether there are no ranges.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

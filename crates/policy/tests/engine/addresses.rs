//! Ranges and the hard-deny set.

use std::net::{IpAddr, Ipv4Addr};

use hutch_policy::{Cidr, CidrError, DenyClass, HardDeny, HardDenySettings, PrefixMap, Reason, subtract};
use proptest::prelude::*;
use serde_json::json;

use super::support::{addresses, any_address, any_range, connect, effective, open, refused, tls, warned};

fn range(text: &str) -> Cidr {
    Cidr::parse(text).unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn ranges_are_read_strictly() {
    assert_eq!(range("203.0.113.0/24").to_string(), "203.0.113.0/24");
    assert_eq!(range("2001:DB8::/32").to_string(), "2001:db8::/32");
    assert_eq!(range("203.0.113.5").to_string(), "203.0.113.5/32");
    assert_eq!(range("::ffff:203.0.113.0/120"), range("203.0.113.0/24"));
    assert_eq!(Cidr::parse("203.0.113.1/24"), Err(CidrError::HostBits));
    for bad in [
        "203.0.113.0/33",
        "203.0.113.0/+8",
        "203.0.113.0/08",
        "203.0.113.0/",
        "203.0.113/24",
        "0203.0.113.0/24",
        "::/129",
        "fe80::%1/64",
        "a.test",
        " ::/0",
        "1.2.3.4/0x8",
    ] {
        assert_eq!(Cidr::parse(bad), Err(CidrError::Syntax), "{bad}");
    }
}

#[test]
fn t05_addresses_within_addresses_are_closed() {
    let closed = HardDeny::default();
    for text in [
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::a9fe:a9fe",
        "2002:a9fe:a9fe::",
        "2001::1",
        "::ffff:169.254.169.254",
        "::10.0.0.1",
        "2001:db8::5efe:10.0.0.1",
        "2001:db8::200:5efe:10.0.0.1",
    ] {
        assert!(closed.classify(ip(text)).is_some(), "{text}");
    }
    let opened = HardDeny::new(&HardDenySettings {
        allow_private: vec![range("64:ff9b::/96"), range("2002::/16")],
        ..Default::default()
    })
    .unwrap();
    for text in [
        "64:ff9b::a9fe:a9fe",
        "64:ff9b::7f00:1",
        "2002:a9fe:a9fe::1",
        "64:ff9b::a00:1",
        "64:ff9b::",
    ] {
        assert!(opened.classify(ip(text)).is_some(), "{text}");
    }
    assert_eq!(opened.classify(ip("64:ff9b::c633:6407")), None);
    assert_eq!(opened.classify(ip("2002:c633:6407::1")), None);
}

#[test]
fn t06_metadata_is_never_reached() {
    let everything = effective(&json!({"allow": ["*"], "subnets": {"allow": ["0.0.0.0/0", "::/0"]}}));
    let opened = HardDeny::new(&HardDenySettings {
        allow_private: ["100.64.0.0/10", "192.0.0.0/24", "fc00::/7"].map(range).to_vec(),
        ..Default::default()
    })
    .unwrap();
    for text in [
        "169.254.169.254",
        "169.254.170.2",
        "100.100.100.200",
        "168.63.129.16",
        "192.0.0.192",
        "fd00:ec2::254",
        "fd20:ce::254",
    ] {
        let destination = std::net::SocketAddr::new(ip(text), 80).to_string();
        assert!(opened.classify(ip(text)).is_some(), "{text}");
        for policy in [&everything, &effective(&json!("allow-all"))] {
            assert_eq!(
                connect(policy, &destination, &tls("api.test")),
                Err(Reason::HardDeny),
                "{text}"
            );
            assert_eq!(policy.datagram(destination.parse().unwrap()), Err(Reason::HardDeny));
        }
        let admission = open(&effective(&json!({"allow": ["api.test"]})), "api.test");
        assert_eq!(
            effective(&json!({"allow": ["api.test"]})).dial(&admission, &[ip(text)]),
            Err(Reason::AddressClass)
        );
    }
    for text in [
        "169.254.0.0/16",
        "127.0.0.0/8",
        "100.100.100.200/32",
        "fd00:ec2::254/128",
        "::1/128",
    ] {
        let settings = HardDenySettings {
            allow_private: vec![range(text)],
            ..Default::default()
        };
        assert_eq!(HardDeny::new(&settings).err(), Some(range(text)));
        assert_eq!(
            refused(&json!({"subnets": {"allow": [text]}})).pointer,
            "/subnets/allow/0"
        );
    }
}

#[test]
fn t07_loopback_and_the_host_are_never_reached() {
    let settings = HardDenySettings {
        allow_private: vec![range("10.0.0.0/8"), range("192.168.0.0/16")],
        own: addresses(&["192.168.1.1", "198.51.100.1"]),
        sandbox_pools: vec![range("10.99.0.0/16")],
    };
    let closed = HardDeny::new(&settings).unwrap();
    for (text, class) in [
        ("127.0.0.1", DenyClass::Loopback),
        ("::1", DenyClass::Loopback),
        ("0.0.0.0", DenyClass::Unspecified),
        ("192.168.1.1", DenyClass::Own),
        ("::ffff:192.168.1.1", DenyClass::Own),
        ("198.51.100.1", DenyClass::Own),
    ] {
        assert_eq!(closed.classify(ip(text)), Some(class), "{text}");
    }
    assert_eq!(closed.classify(ip("192.168.1.2")), None);
    assert_eq!(closed.classify(ip("10.1.2.3")), None);
}

#[test]
fn t08_sandboxes_never_reach_each_other() {
    let settings = HardDenySettings {
        allow_private: vec![range("10.0.0.0/8")],
        sandbox_pools: vec![range("10.99.0.0/16"), range("fd42::/16")],
        own: vec![],
    };
    let closed = HardDeny::new(&settings).unwrap();
    assert_eq!(closed.classify(ip("10.99.3.4")), Some(DenyClass::Sandbox));
    assert_eq!(closed.classify(ip("fd42::1")), Some(DenyClass::Sandbox));
    assert_eq!(closed.classify(ip("10.98.3.4")), None);
    assert!(closed.cut(range("10.99.1.0/24")).is_empty());
    // A pool that is wider than what is opened within it stays closed as a whole.
    let settings = HardDenySettings {
        allow_private: vec![range("10.1.0.0/16")],
        sandbox_pools: vec![range("8.0.0.0/6")],
        own: vec![],
    };
    assert_eq!(HardDeny::new(&settings).err(), Some(range("10.1.0.0/16")));
}

#[test]
fn t13_multicast_and_broadcast_are_closed_under_every_policy() {
    let policy = effective(&json!("allow-all"));
    for text in [
        "224.0.0.251:5353",
        "255.255.255.255:67",
        "[ff02::fb]:5353",
        "239.255.255.250:1900",
    ] {
        assert_eq!(policy.datagram(text.parse().unwrap()), Err(Reason::HardDeny), "{text}");
    }
}

#[test]
fn ranges_of_tenants_are_cut_and_refused_only_if_nothing_is_left() {
    let error = refused(&json!({"subnets": {"allow": ["198.51.100.0/24", "10.1.0.0/16"]}}));
    assert_eq!(
        (error.pointer.as_str(), error.code),
        ("/subnets/allow/1", "invalid_network_policy")
    );
    assert_eq!(
        warned(&json!({"subnets": {"allow": ["8.0.0.0/6"]}})),
        [("/subnets/allow/0".to_owned(), "range_cut")]
    );
    assert_eq!(
        warned(&json!({"subnets": {"allow": ["0.0.0.0/0"]}})),
        [("/subnets/allow/0".to_owned(), "open_range")]
    );
    assert_eq!(warned(&json!({"subnets": {"deny": ["10.0.0.0/8"]}})), []);
}

proptest! {
    #[test]
    fn a_cut_range_has_exactly_what_is_not_closed(text in any_range(), address in any_address()) {
        let settings = HardDenySettings { allow_private: vec![range("10.0.0.0/8"), range("fd00::/8")], own: addresses(&["198.51.100.1"]), sandbox_pools: vec![range("10.9.0.0/16")] };
        let closed = HardDeny::new(&settings).unwrap();
        let left = closed.cut(range(&text)).iter().any(|part| part.contains(address));
        let isatap = matches!(address, IpAddr::V6(v6) if v6.segments()[5] == 0x5efe);
        if !isatap {
            prop_assert_eq!(left, range(&text).contains(address) && closed.classify(address).is_none());
        }
    }

    #[test]
    fn subtraction_is_exact(bits in any::<u32>(), wide in 0_u8..=32, hole in any::<u32>(), narrow in 0_u8..=32, address in any::<u32>()) {
        let cut = |bits: u32, length: u8| range(&format!("{}/{length}", Ipv4Addr::from_bits(bits & u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0))));
        let (wide, hole) = (cut(bits, wide), cut(hole, narrow));
        let address = IpAddr::V4(address.into());
        let left = subtract(wide, &[hole]);
        let count = left.iter().filter(|part| part.contains(address)).count();
        prop_assert_eq!(count, usize::from(wide.contains(address) && !hole.contains(address)));
    }

    #[test]
    fn the_longest_prefix_wins(ranges in prop::collection::vec((any::<u16>(), 0_u8..=32), 0..20), address in any::<u16>()) {
        let mut all = Vec::new();
        for (bits, length) in ranges {
            let bits = u32::from(bits) << 16 & u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
            let range = range(&format!("{}/{length}", Ipv4Addr::from_bits(bits)));
            all.push(range);
        }
        let map: PrefixMap<Cidr> = all.iter().map(|range| (*range, *range)).collect();
        let address = IpAddr::V4((u32::from(address) << 16).into());
        let best = all.iter().filter(|range| range.contains(address)).max_by_key(|range| range.prefix_length());
        prop_assert_eq!(map.get(address), best);
    }
}

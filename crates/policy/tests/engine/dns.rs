//! Decisions on DNS questions.

use hutch_policy::{DnsDecision, EffectivePolicy, Name, Pattern, Question, Reason, RecordType, ResponseCode};
use serde_json::json;

use super::support::{addresses, effective, within};

fn question(policy: &EffectivePolicy, name: &str, kind: RecordType) -> DnsDecision {
    policy.dns(&Question {
        name: name.as_bytes(),
        kind,
        well_formed: true,
        ipv6: true,
    })
}

fn resolves(policy: &EffectivePolicy, name: &str) -> bool {
    matches!(question(policy, name, RecordType::A), DnsDecision::Resolve { .. })
}

const fn refused(reason: Reason) -> DnsDecision {
    DnsDecision::Refuse(ResponseCode::Refused, reason)
}

#[test]
fn t24_a_name_that_is_not_allowed_never_reaches_a_server() {
    let policy = effective(&json!({"allow": ["api.test"]}));
    assert_eq!(
        question(&policy, "secret.evil.test", RecordType::A),
        refused(Reason::DomainDeny)
    );
    assert_eq!(
        question(&policy, "x.api.test", RecordType::Aaaa),
        refused(Reason::DomainDeny)
    );
    let closed = effective(&json!("deny-all"));
    assert_eq!(question(&closed, "api.test", RecordType::A), refused(Reason::DenyAll));
    assert!(resolves(&policy, "API.test."));
}

#[test]
fn t25_names_under_a_wildcard_have_a_budget() {
    let policy = effective(&json!({"allow": ["*.test", "api.test"]}));
    let budget = |name: &str| match question(&policy, name, RecordType::A) {
        DnsDecision::Resolve { budget, .. } => budget,
        other => panic!("{other:?}"),
    };
    assert_eq!(budget("data.test"), Some(Pattern::parse("*.test").unwrap()));
    assert_eq!(budget("api.test"), None);
}

#[test]
fn t26_only_addresses_are_answered() {
    let policy = effective(&json!({"allow": ["api.test"]}));
    for number in [2, 5, 6, 12, 15, 16, 10, 33, 35, 48, 64, 65, 252, 255] {
        let kind = RecordType::from_number(number);
        assert_eq!(
            question(&policy, "api.test", kind),
            DnsDecision::NoData(Reason::DnsType),
            "{number}"
        );
    }
    let open = effective(&json!("allow-all"));
    assert!(matches!(
        question(&open, "api.test", RecordType::from_number(16)),
        DnsDecision::Resolve { .. }
    ));
    for number in [64, 65, 252, 255] {
        assert_eq!(
            question(&open, "api.test", RecordType::from_number(number)),
            DnsDecision::NoData(Reason::DnsType)
        );
    }
    let v4 = Question {
        name: b"api.test",
        kind: RecordType::Aaaa,
        well_formed: true,
        ipv6: false,
    };
    assert_eq!(policy.dns(&v4), DnsDecision::NoData(Reason::DnsType));
}

#[test]
fn t27_the_name_that_is_asked_upstream_is_in_lower_case() {
    let policy = effective(&json!("allow-all"));
    let DnsDecision::Resolve { name, .. } = question(&policy, "aPi.TeSt", RecordType::A) else {
        panic!()
    };
    assert_eq!(name.as_str(), "api.test");
}

#[test]
fn t31_private_addresses_are_taken_out_of_answers() {
    let policy = effective(&json!({"allow": ["api.test"]}));
    assert_eq!(
        policy.dns_answer(&addresses(&["203.0.113.5", "10.9.9.9"])),
        Ok(addresses(&["203.0.113.5"]))
    );
    assert_eq!(
        policy.dns_answer(&addresses(&["10.9.9.9", "fd00::1"])),
        Err(Reason::DnsPrivate)
    );
    assert_eq!(policy.dns_answer(&[]), Ok(vec![]));
}

#[test]
fn t36_special_names_never_go_upstream() {
    let policy = effective(&json!({"allow": ["*"]}));
    for name in [
        "localhost",
        "localhost.",
        "printer",
        "x.local",
        "metadata.google.internal",
        "7.100.51.198.in-addr.arpa",
    ] {
        let expected = DnsDecision::Refuse(ResponseCode::NoSuchName, Reason::NameSpecial);
        assert_eq!(question(&policy, name, RecordType::A), expected, "{name}");
    }
    let malformed = DnsDecision::Refuse(ResponseCode::FormatError, Reason::NameInvalid);
    for name in ["", ".", "a..test", "a b.test", "1.2.3.4"] {
        assert_eq!(question(&policy, name, RecordType::A), malformed, "{name}");
    }
    assert!(resolves(&policy, "_acme.api.test"));
    assert!(resolves(&effective(&json!("allow-all")), "7.100.51.198.in-addr.arpa"));
    let bad = Question {
        name: b"api.test",
        kind: RecordType::A,
        well_formed: false,
        ipv6: true,
    };
    assert_eq!(
        policy.dns(&bad),
        DnsDecision::Refuse(ResponseCode::FormatError, Reason::DnsMalformed)
    );
}

#[test]
fn ranges_alone_leave_dns_open_unless_told_otherwise() {
    let ranges = json!({"subnets": {"allow": ["203.0.113.0/24"]}});
    assert!(resolves(&effective(&ranges), "any.test"));
    let mut closed = ranges.clone();
    closed["dns"] = json!({"open": false});
    assert!(!resolves(&effective(&closed), "any.test"));
    let both = json!({"subnets": {"allow": ["203.0.113.0/24"]}, "allow": ["api.test"]});
    assert!(!resolves(&effective(&both), "any.test"));
    assert!(resolves(&effective(&both), "api.test"));
    assert!(!resolves(
        &effective(&json!({"subnets": {"deny": ["203.0.113.0/24"]}})),
        "any.test"
    ));
}

#[test]
fn virtual_mode_asks_nobody() {
    let policy = effective(&json!({"allow": ["*.test"], "dns": {"mode": "virtual"}}));
    let name = Name::host(b"a.test").unwrap();
    assert_eq!(
        question(&policy, "A.test", RecordType::A),
        DnsDecision::Virtual { name }
    );
    assert_eq!(
        question(&policy, "evil.example", RecordType::A),
        refused(Reason::DomainDeny)
    );
}

#[test]
fn bounds_narrow_what_resolves() {
    let policy = within(
        &[json!({"allow": ["*.test"], "block": ["evil.test"]})],
        &json!("allow-all"),
    );
    assert!(resolves(&policy, "api.test"));
    assert_eq!(
        question(&policy, "evil.test", RecordType::A),
        refused(Reason::NameBlocked)
    );
    assert_eq!(
        question(&policy, "api.example", RecordType::A),
        refused(Reason::DomainDeny)
    );
}

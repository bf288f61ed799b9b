//! Decisions on connections.

use hutch_policy::{Admission, Dial, EffectivePolicy, Flow, Grant, Handling, Name, Reason, Sniffed, Step};
use serde_json::json;

use super::support::{SOMEWHERE, addresses, connect, effective, injecting, open, tls, to, within};

fn refusal(policy: &EffectivePolicy, destination: &str, sniffed: &Sniffed) -> Reason {
    connect(policy, destination, sniffed).unwrap_err()
}

fn summary(admission: &Admission) -> (Handling, Reason, Option<&str>) {
    (admission.handling, admission.reason, admission.name().map(Name::as_str))
}

#[test]
fn domains_are_spliced_unless_they_have_rules() {
    let policy = effective(&json!({"allow": {"api.test": [injecting()], "*.test": []}}));
    assert_eq!(
        summary(&open(&policy, "API.test.")),
        (Handling::Intercept, Reason::Domain, Some("api.test"))
    );
    assert_eq!(
        summary(&open(&policy, "cdn.test")),
        (Handling::Splice, Reason::Domain, Some("cdn.test"))
    );
    let all = effective(&json!({"allow": ["*.test"], "defaults": {"inspect": "all"}}));
    assert_eq!(open(&all, "cdn.test").handling, Handling::Intercept);
}

#[test]
fn t02_addresses_without_a_name_need_a_range() {
    let names = effective(&json!({"allow": ["api.test"]}));
    assert_eq!(
        refusal(&names, SOMEWHERE, &Sniffed::Tls { server_name: None }),
        Reason::NoName
    );
    assert_eq!(refusal(&names, SOMEWHERE, &tls("198.51.100.7")), Reason::NoName);
    let ranges = effective(&json!({"subnets": {"allow": ["198.51.100.0/24"], "deny": ["198.51.100.9/32"]}}));
    let Step::Admit(admission) = ranges.accept(&to(SOMEWHERE)) else {
        panic!()
    };
    assert_eq!(admission.reason, Reason::Cidr);
    assert_eq!(admission.dial, Dial::Original(SOMEWHERE.parse().unwrap()));
    assert_eq!(ranges.accept(&to("198.51.100.9:443")), Step::Refuse(Reason::SubnetDeny));
    assert_eq!(ranges.accept(&to("203.0.113.1:443")), Step::Refuse(Reason::AddressDeny));
}

#[test]
fn t12_t13_datagrams_need_a_range_under_every_custom_policy() {
    for policy in [json!({"allow": ["*"]}), json!({"allow": {"api.test": []}})] {
        assert_eq!(
            effective(&policy).datagram("198.51.100.7:443".parse().unwrap()),
            Err(Reason::Udp)
        );
    }
    let ranges = effective(&json!({"subnets": {"allow": ["198.51.100.0/24"], "deny": ["198.51.100.9/32"]}}));
    assert_eq!(ranges.datagram("198.51.100.7:443".parse().unwrap()), Ok(Reason::Cidr));
    assert_eq!(
        ranges.datagram("198.51.100.9:443".parse().unwrap()),
        Err(Reason::SubnetDeny)
    );
    assert_eq!(
        effective(&json!("allow-all")).datagram("198.51.100.7:443".parse().unwrap()),
        Ok(Reason::AllowAll)
    );
    assert_eq!(
        effective(&json!("deny-all")).datagram("198.51.100.7:443".parse().unwrap()),
        Err(Reason::DenyAll)
    );
}

#[test]
fn t17_flows_that_say_nothing_have_no_name() {
    let names = effective(&json!({"allow": ["api.test"]}));
    for sniffed in [Sniffed::Silent, Sniffed::Other] {
        assert_eq!(refusal(&names, "198.51.100.7:22", &sniffed), Reason::NoName);
        let star = effective(&json!({"allow": ["*"]}));
        assert_eq!(
            connect(&star, "198.51.100.7:22", &sniffed).unwrap().reason,
            Reason::NoName
        );
        for strict in [json!({"inspect": "all"}), json!({"unmatched": "deny"})] {
            let policy = effective(&json!({"allow": ["*"], "defaults": strict}));
            assert_eq!(refusal(&policy, "198.51.100.7:22", &sniffed), Reason::NoName);
        }
    }
}

#[test]
fn t18_mail_is_closed_under_every_policy() {
    for policy in [
        json!("allow-all"),
        json!({"allow": ["*"]}),
        json!({"subnets": {"allow": ["0.0.0.0/0"]}}),
    ] {
        assert_eq!(
            effective(&policy).accept(&to("198.51.100.7:25")),
            Step::Refuse(Reason::Smtp)
        );
    }
    let opened = effective(&json!("allow-all")).with_smtp();
    assert!(matches!(opened.accept(&to("198.51.100.7:25")), Step::Admit(_)));
}

#[test]
fn t20_the_gateway_never_dials_itself() {
    let settings = hutch_policy::HardDenySettings {
        own: addresses(&["198.51.100.1"]),
        ..Default::default()
    };
    let hard_deny = std::sync::Arc::new(hutch_policy::HardDeny::new(&settings).unwrap());
    let policy = EffectivePolicy::intersect(hard_deny, &[], super::support::tenant(&json!({"allow": ["api.test"]})));
    assert_eq!(
        policy.accept(&to("198.51.100.1:443")),
        Step::Refuse(Reason::SelfAddress)
    );
    let admission = open(&policy, "api.test");
    assert_eq!(
        policy.dial(&admission, &addresses(&["198.51.100.1"])),
        Err(Reason::SelfAddress)
    );
}

#[test]
fn t28_dns_over_tls_is_not_a_name() {
    let policy = effective(&json!({"allow": ["*", "dns.test"]}));
    assert_eq!(refusal(&policy, "198.51.100.7:853", &tls("dns.test")), Reason::PortDeny);
}

#[test]
fn t30_t31_every_address_is_vetted_and_only_vetted_ones_are_dialled() {
    let policy = effective(&json!({"allow": ["api.test"], "subnets": {"deny": ["203.0.113.0/24"]}}));
    let admission = open(&policy, "api.test");
    let dial = |texts: &[&str]| policy.dial(&admission, &addresses(texts));
    assert_eq!(
        dial(&["198.51.100.7", "10.9.9.9", "::ffff:198.51.100.7"]),
        Ok(addresses(&["198.51.100.7"]))
    );
    assert_eq!(dial(&["10.9.9.9", "198.51.100.8"]), Ok(addresses(&["198.51.100.8"])));
    assert_eq!(dial(&["10.9.9.9", "::ffff:127.0.0.1"]), Err(Reason::AddressClass));
    assert_eq!(dial(&["203.0.113.5"]), Err(Reason::SubnetDeny));
    assert_eq!(dial(&[]), Err(Reason::AddressClass));
}

#[test]
fn t33_the_address_that_the_guest_chose_is_never_dialled_for_a_name() {
    let policy = effective(&json!({"allow": ["api.test"]}));
    let flow = to("203.0.113.66:443");
    let admission = connect(&policy, "203.0.113.66:443", &tls("api.test")).unwrap();
    assert_eq!(admission.dial, Dial::Name(Name::host(b"api.test").unwrap(), 443));
    let resolved = addresses(&["198.51.100.7"]);
    assert!(EffectivePolicy::is_mismatch(&admission, &flow, &resolved, &[]));
    assert!(!EffectivePolicy::is_mismatch(
        &admission,
        &flow,
        &resolved,
        &addresses(&["203.0.113.66"])
    ));
    // A flow without a name may only go where the guest sent it.
    let star = effective(&json!({"allow": ["*"]}));
    let raw = connect(&star, SOMEWHERE, &Sniffed::Silent).unwrap();
    assert_eq!(
        star.dial(&raw, &addresses(&["203.0.113.66"])),
        Err(Reason::AddressClass)
    );
}

#[test]
fn t38_invalid_server_names_are_refused_even_under_a_star() {
    let star = effective(&json!({"allow": ["*"]}));
    for name in [
        "",
        "a_b.test",
        "api.test..",
        "a b.test",
        "ä.test",
        "a.test\0",
        "127.1",
        "0x7f.1",
    ] {
        assert_eq!(refusal(&star, SOMEWHERE, &tls(name)), Reason::NameInvalid, "{name:?}");
    }
    assert_eq!(refusal(&star, SOMEWHERE, &Sniffed::Broken), Reason::ProtocolViolation);
    assert_eq!(
        connect(&star, SOMEWHERE, &Sniffed::Tls { server_name: None })
            .unwrap()
            .grants,
        [Grant::NoName]
    );
    assert_eq!(refusal(&star, SOMEWHERE, &tls("localhost")), Reason::NameSpecial);
}

#[test]
fn t44_a_domain_with_rules_speaks_http_in_tls_or_nothing() {
    let policy = effective(&json!({"allow": {"api.test": [injecting()]}, "dns": {"mode": "virtual"}}));
    let flow = Flow {
        destination: "198.18.0.5:6379".parse().unwrap(),
        virtual_name: Some(Name::host(b"api.test").unwrap()),
    };
    assert_eq!(
        policy.decide(&flow, &Sniffed::Other),
        Step::Refuse(Reason::ProtocolViolation)
    );
    assert_eq!(
        policy.decide(&flow, &Sniffed::Silent),
        Step::Refuse(Reason::ProtocolViolation)
    );
}

#[test]
fn t60_http2_without_tls_is_never_spliced() {
    let star = effective(&json!({"allow": ["*"]}));
    assert_eq!(
        refusal(&star, "198.51.100.7:80", &Sniffed::Http2),
        Reason::ProtocolViolation
    );
}

#[test]
fn t85_nothing_is_injected_in_the_clear_or_on_a_port_that_nobody_named() {
    let http = Sniffed::Http {
        host: Some(b"api.test"),
    };
    let policy = effective(&json!({"allow": {"api.test": [injecting()]}}));
    assert_eq!(refusal(&policy, "198.51.100.7:80", &http), Reason::PlaintextHttp);
    assert_eq!(
        refusal(&policy, "198.51.100.7:8443", &tls("api.test")),
        Reason::PortDeny
    );
    let named = effective(
        &json!({"allow": {"api.test": [injecting()]}, "defaults": {"ports": [8443, 80], "plaintextHttp": true}}),
    );
    assert_eq!(
        connect(&named, "198.51.100.7:8443", &tls("api.test")).unwrap().handling,
        Handling::Intercept
    );
    assert_eq!(refusal(&named, "198.51.100.7:443", &tls("api.test")), Reason::PortDeny);
    let admission = connect(&named, "198.51.100.7:80", &http).unwrap();
    assert_eq!(admission.handling, Handling::InterceptPlaintext);
    let judgement = super::support::get("/").on(&named, &admission);
    assert_eq!(judgement.reason, Reason::PlaintextCredential);
}

#[test]
fn t86_one_name_decides_everything() {
    let policy = effective(&json!({"allow": ["api.test", "other.test"], "dns": {"mode": "virtual"}}));
    let flow = Flow {
        destination: "198.18.0.5:443".parse().unwrap(),
        virtual_name: Some(Name::host(b"api.test").unwrap()),
    };
    assert_eq!(
        policy.decide(&flow, &tls("other.test")),
        Step::Refuse(Reason::NameMismatch)
    );
    assert!(matches!(policy.decide(&flow, &tls("api.test")), Step::Admit(_)));
    let plain = effective(&json!({"allow": ["api.test"], "defaults": {"plaintextHttp": true}}));
    assert_eq!(
        refusal(
            &plain,
            "198.51.100.7:80",
            &Sniffed::Http {
                host: Some(b"api.test:81")
            }
        ),
        Reason::NameMismatch
    );
}

#[test]
fn virtual_names_work_for_any_protocol_and_only_on_virtual_addresses() {
    let policy = effective(&json!({"allow": ["db.test"], "dns": {"mode": "virtual"}}));
    let name = Some(Name::host(b"db.test").unwrap());
    let flow = Flow {
        destination: "198.18.0.5:6379".parse().unwrap(),
        virtual_name: name.clone(),
    };
    let Step::Admit(admission) = policy.decide(&flow, &Sniffed::Silent) else {
        panic!()
    };
    assert_eq!(summary(&admission), (Handling::Splice, Reason::Domain, Some("db.test")));
    let elsewhere = Flow {
        destination: "10.0.0.5:6379".parse().unwrap(),
        virtual_name: name.clone(),
    };
    assert_eq!(policy.accept(&elsewhere), Step::Refuse(Reason::HardDeny));
    // The map of an older policy is worth nothing under one that answers with real addresses.
    assert_eq!(
        effective(&json!({"allow": ["db.test"]})).accept(&flow),
        Step::Refuse(Reason::HardDeny)
    );
    assert_eq!(
        effective(&json!("allow-all")).accept(&flow),
        Step::Refuse(Reason::HardDeny)
    );
    let gone = effective(&json!({"allow": ["api.test"], "dns": {"mode": "virtual"}}));
    assert_eq!(gone.accept(&flow), Step::Refuse(Reason::DomainDeny));
}

#[test]
fn postgres_is_allowed_by_name_and_rules_are_ignored() {
    let policy = effective(&json!({"allow": {"db.test": [injecting()]}}));
    let postgres = Sniffed::Postgres {
        server_name: Some(b"db.test"),
    };
    assert_eq!(
        connect(&policy, "198.51.100.7:5432", &postgres).unwrap().handling,
        Handling::SplicePostgres
    );
    let strict = effective(&json!({"allow": ["db.test"], "defaults": {"inspect": "all"}}));
    assert_eq!(
        refusal(&strict, "198.51.100.7:5432", &postgres),
        Reason::ProtocolViolation
    );
}

#[test]
fn allow_all_needs_no_bytes_and_denies_need_none_either() {
    let Step::Admit(admission) = effective(&json!("allow-all")).accept(&to("198.51.100.7:22")) else {
        panic!()
    };
    assert_eq!(summary(&admission), (Handling::Splice, Reason::AllowAll, None));
    assert_eq!(
        effective(&json!("deny-all")).accept(&to(SOMEWHERE)),
        Step::Refuse(Reason::DenyAll)
    );
    assert_eq!(
        effective(&json!({"allow": ["api.test"]})).accept(&to(SOMEWHERE)),
        Step::NeedBytes
    );
}

#[test]
fn blocked_names_are_refused_under_ranges_and_allow_all_too() {
    let blocks = json!({"mode": "allow-all", "block": ["*.evil.test", "evil.test"]});
    for policy in [
        json!("allow-all"),
        json!({"subnets": {"allow": ["198.51.100.0/24"]}}),
        json!({"allow": ["*"]}),
    ] {
        let policy = within(std::slice::from_ref(&blocks), &policy);
        assert_eq!(policy.accept(&to(SOMEWHERE)), Step::NeedBytes);
        assert_eq!(refusal(&policy, SOMEWHERE, &tls("x.evil.test")), Reason::NameBlocked);
        assert!(connect(&policy, SOMEWHERE, &tls("api.test")).is_ok());
        assert!(connect(&policy, SOMEWHERE, &Sniffed::Silent).is_ok());
    }
}

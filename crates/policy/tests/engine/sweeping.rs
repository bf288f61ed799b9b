//! What becomes of open flows.

use hutch_policy::{
    Admission, Change, EffectivePolicy, Exchange, FlowFacts, Outcome, Reason, SeenBytes, Sniffed, Sweep, diff, sweep,
};
use serde_json::{Value, json};

use super::support::{KEY, SOMEWHERE, connect, effective, get, injecting, to, within};

fn opened(policy: &EffectivePolicy, name: &str) -> FlowFacts {
    let admission = super::support::open(policy, name);
    FlowFacts {
        flow: to(SOMEWHERE),
        seen: Some(SeenBytes::Tls(Some(name.as_bytes().to_vec()))),
        admission,
        dialled: Some("198.51.100.7".parse().unwrap()),
        exchanges: Vec::new(),
    }
}

fn asked(policy: &EffectivePolicy, target: &str) -> FlowFacts {
    let mut facts = opened(policy, "api.test");
    let judgement = get(target).on(policy, &facts.admission);
    let forward = match judgement.outcome {
        Outcome::Forward(forward, _) => Some(forward.url),
        _ => None,
    };
    facts.exchanges.push(Exchange {
        stamp: judgement.stamp,
        forward,
        dialled: None,
    });
    facts
}

fn admission(sweep: &Sweep) -> &Admission {
    match sweep {
        Sweep::Restamp(admission) | Sweep::CutExchanges(admission, _) => admission,
        other => panic!("{other:?}"),
    }
}

#[test]
fn t34_flows_whose_verdict_is_the_same_go_on() {
    let old = effective(&json!({"allow": ["api.test", "cdn.test"]}));
    let facts = opened(&old, "cdn.test");
    assert_eq!(sweep(&old, &facts), Sweep::Keep);
    assert_eq!(sweep(&effective(&json!({"allow": ["cdn.test"]})), &facts), Sweep::Keep);
    let wider = sweep(&effective(&json!({"allow": ["*.test"]})), &facts);
    assert_eq!(admission(&wider).reason, Reason::Domain);
    assert_eq!(diff(&old, &old), Change::Nothing);
    assert_eq!(
        diff(&old, &effective(&json!({"allow": ["cdn.test"]}))),
        Change::Something
    );
}

#[test]
fn t87_flows_that_the_new_policy_does_not_admit_end() {
    let star = effective(&json!({"allow": ["*"]}));
    let facts = opened(&star, "api.test");
    for (policy, reason) in [
        (json!("deny-all"), Reason::DenyAll),
        (json!({}), Reason::DenyAll),
        (json!({"allow": ["other.test"]}), Reason::DomainDeny),
        (
            json!({"allow": ["api.test"], "subnets": {"deny": ["198.51.100.0/24"]}}),
            Reason::SubnetDeny,
        ),
        (
            json!({"allow": ["api.test"], "defaults": {"ports": [8443]}}),
            Reason::PortDeny,
        ),
    ] {
        assert_eq!(sweep(&effective(&policy), &facts), Sweep::Cut(reason), "{policy}");
    }
    let raw = connect(&star, "198.51.100.7:22", &Sniffed::Silent).unwrap();
    let raw = FlowFacts {
        seen: Some(SeenBytes::Silent),
        ..FlowFacts::raw("198.51.100.7:22".parse().unwrap(), raw)
    };
    assert_eq!(sweep(&star, &raw), Sweep::Keep);
    assert_eq!(
        sweep(&effective(&json!({"allow": ["api.test"]})), &raw),
        Sweep::Cut(Reason::NoName)
    );
    let open = effective(&json!("allow-all"));
    let any = FlowFacts::raw(
        SOMEWHERE.parse().unwrap(),
        connect(&open, SOMEWHERE, &Sniffed::Silent).unwrap(),
    );
    assert_eq!(sweep(&open, &any), Sweep::Keep);
    assert_eq!(
        sweep(&effective(&json!({"allow": ["*"]})), &any),
        Sweep::Cut(Reason::Revoked)
    );
    let ranged = sweep(&effective(&json!({"subnets": {"allow": ["198.51.100.0/24"]}})), &any);
    assert_eq!(admission(&ranged).reason, Reason::Cidr);
}

#[test]
fn the_address_that_was_dialled_counts_too() {
    let old = effective(&json!({"allow": ["api.test"]}));
    let mut facts = opened(&old, "api.test");
    facts.dialled = Some("203.0.113.5".parse().unwrap());
    let new = effective(&json!({"allow": ["api.test"], "subnets": {"deny": ["203.0.113.0/24"]}}));
    assert_eq!(sweep(&new, &facts), Sweep::Cut(Reason::SubnetDeny));
}

#[test]
fn t88_a_spliced_flow_ends_when_its_name_gets_rules_and_back() {
    let spliced = effective(&json!({"allow": ["api.test"]}));
    let inspected = effective(&json!({"allow": {"api.test": [injecting()]}}));
    assert_eq!(
        sweep(&inspected, &opened(&spliced, "api.test")),
        Sweep::Cut(Reason::Revoked)
    );
    assert_eq!(
        sweep(&spliced, &opened(&inspected, "api.test")),
        Sweep::Cut(Reason::Revoked)
    );
}

#[test]
fn exchanges_end_when_what_admitted_them_changes() {
    let policy = |rules: &Value| effective(&json!({"allow": {"api.test": rules}}));
    let first = json!({"match": {"path": {"startsWith": "/a/"}}, "transform": injecting()["transform"]});
    let second = json!({"match": {"path": {"startsWith": "/b/"}}, "transform": []});
    let old = policy(&json!([first, second]));
    let (at_first, at_second, unmatched) = (asked(&old, "/a/"), asked(&old, "/b/"), asked(&old, "/c/"));
    for facts in [&at_first, &at_second, &unmatched] {
        assert_eq!(sweep(&old, facts), Sweep::Keep);
    }
    let cut = |new: &EffectivePolicy, facts: &FlowFacts| matches!(sweep(new, facts), Sweep::CutExchanges(_, gone) if gone == [(0, Reason::RuleChanged)]);
    // A rule behind is added: only what no rule admitted may be admitted otherwise now.
    let longer =
        policy(&json!([first, second, {"match": {"path": {"startsWith": "/c/"}}, "response": {"statusCode": 403}}]));
    assert_eq!(
        [
            cut(&longer, &at_first),
            cut(&longer, &at_second),
            cut(&longer, &unmatched)
        ],
        [false, false, true]
    );
    // A rule in front might catch everything.
    let before = policy(&json!([{"match": {"method": ["GET"]}, "response": {"statusCode": 403}}, first, second]));
    assert_eq!(
        [
            cut(&before, &at_first),
            cut(&before, &at_second),
            cut(&before, &unmatched)
        ],
        [true; 3]
    );
    let mut rotated = first.clone();
    rotated["transform"][0]["headers"]["authorization"] = json!(format!("Bearer new-{KEY}"));
    assert!(
        cut(&policy(&json!([rotated, second])), &at_first),
        "another value is another rule"
    );
    let strict = effective(&json!({"allow": {"api.test": [first, second]}, "defaults": {"unmatched": "deny"}}));
    assert!(cut(&strict, &unmatched));
    let idle = FlowFacts {
        exchanges: vec![],
        ..at_first
    };
    assert_eq!(sweep(&before, &idle), Sweep::Keep);
}

#[test]
fn a_forwarded_exchange_ends_when_bounds_no_longer_admit_where_it_goes() {
    let tenant = json!({"allow": {"api.test": [{"forwardURL": "https://proxy.test"}]}});
    let old = within(&[json!({"allow": ["*.test"]})], &tenant);
    let facts = asked(&old, "/");
    assert_eq!(sweep(&old, &facts), Sweep::Keep);
    let new = within(&[json!({"allow": ["*.test"], "block": ["x.test"]})], &tenant);
    assert_eq!(sweep(&new, &facts), Sweep::Keep);
    let new = within(&[json!({"allow": ["api.test"]})], &tenant);
    assert!(matches!(sweep(&new, &facts), Sweep::CutExchanges(..)));
}

#[test]
fn exchanges_end_where_the_new_policy_denies_their_address() {
    let api = json!({"api.test": [injecting()]});
    let old = effective(&json!({"allow": api}));
    let mut facts = asked(&old, "/");
    // Those that wait for a connection have none that could be denied.
    let waiting = facts.exchanges[0].clone();
    for address in ["203.0.113.5", "192.0.2.5"] {
        let dialled = Some(address.parse().unwrap());
        facts.exchanges.push(Exchange {
            dialled,
            ..waiting.clone()
        });
    }
    let denying = json!({"allow": api, "subnets": {"deny": ["203.0.113.0/24"]}});
    let bounds = json!({"allow": ["api.test"], "subnets": {"deny": ["203.0.113.0/24"]}});
    assert_eq!(sweep(&old, &facts), Sweep::Keep);
    let Sweep::CutExchanges(_, gone) = sweep(&effective(&denying), &facts) else {
        panic!("the tenant's");
    };
    assert_eq!(gone, [(1, Reason::SubnetDeny)]);
    let old = within(&[json!({"allow": ["api.test"]})], &json!({"allow": api}));
    let mut facts = asked(&old, "/");
    facts.exchanges[0].dialled = Some("203.0.113.5".parse().unwrap());
    assert_eq!(sweep(&old, &facts), Sweep::Keep);
    let Sweep::CutExchanges(_, gone) = sweep(&within(&[bounds], &json!({"allow": api})), &facts) else {
        panic!("the operator's");
    };
    assert_eq!(gone, [(0, Reason::SubnetDeny)]);
    facts.exchanges[0].dialled = Some("169.254.169.254".parse().unwrap());
    let Sweep::CutExchanges(_, gone) = sweep(&old, &facts) else {
        panic!("everybody's");
    };
    assert_eq!(gone, [(0, Reason::AddressClass)]);
}

#[test]
fn a_forwarded_exchange_ends_where_bounds_deny_its_address() {
    let tenant = json!({"allow": {"api.test": [{"forwardURL": "https://proxy.test"}]}});
    let bounds = |deny: &str| json!({"allow": ["*.test"], "subnets": {"deny": [deny]}});
    let mut facts = asked(&within(&[json!({"allow": ["*.test"]})], &tenant), "/");
    facts.exchanges[0].dialled = Some("203.0.113.5".parse().unwrap());
    let apart = within(&[bounds("192.0.2.0/24")], &tenant);
    assert!(matches!(sweep(&apart, &facts), Sweep::Keep | Sweep::Restamp(_)));
    let denied = within(&[bounds("203.0.113.0/24")], &tenant);
    let Sweep::CutExchanges(_, gone) = sweep(&denied, &facts) else {
        panic!("it goes on");
    };
    assert_eq!(gone, [(0, Reason::SubnetDeny)]);
}

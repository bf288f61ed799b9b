//! What holds for every policy.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hutch_policy::{
    Admission, Context, DnsDecision, EffectivePolicy, Facts, HardDeny, Outcome, Policy, Question, RecordType, Request,
    Role, SeenBytes, Sniffed, Step, Sweep, compile, sweep,
};
use proptest::prelude::*;

use super::support::{any_address, any_bounds, any_json, any_name, any_policy, bounds, connect, present, tenant};

fn alone(policy: Arc<Policy>) -> EffectivePolicy {
    EffectivePolicy::intersect(Arc::new(HardDeny::default()), &[], policy)
}

fn any_seen() -> impl Strategy<Value = SeenBytes> {
    let name = || prop::option::of(any_name().prop_map(String::into_bytes));
    prop_oneof![
        4 => name().prop_map(SeenBytes::Tls),
        1 => name().prop_map(SeenBytes::Postgres),
        2 => name().prop_map(SeenBytes::Http),
        1 => Just(SeenBytes::Other),
        1 => Just(SeenBytes::Silent),
    ]
}

fn sniffed(seen: &SeenBytes) -> Sniffed<'_> {
    match seen {
        SeenBytes::Tls(name) => Sniffed::Tls {
            server_name: name.as_deref(),
        },
        SeenBytes::Postgres(name) => Sniffed::Postgres {
            server_name: name.as_deref(),
        },
        SeenBytes::Http(host) => Sniffed::Http { host: host.as_deref() },
        SeenBytes::Other => Sniffed::Other,
        SeenBytes::Silent => Sniffed::Silent,
    }
}

fn any_destination() -> impl Strategy<Value = SocketAddr> {
    (
        any_address(),
        prop::sample::select(vec![443, 80, 22, 25, 853, 5432, 8443]),
    )
        .prop_map(|(address, port)| SocketAddr::new(address, port))
}

type Asked = (String, String, Vec<(String, String)>);

fn any_request() -> impl Strategy<Value = Asked> {
    let method = prop::sample::select(vec!["GET", "POST", "get", "DELETE", "TRACE"]).prop_map(str::to_owned);
    let target = prop_oneof![
        prop::sample::select(vec![
            "/",
            "/a",
            "/a/",
            "/v1/x",
            "/a/../v1/",
            "/a//b",
            "/a?x=GET&x=2",
            "/?a=/&/=a",
            "/v1/%2f",
            "/%61"
        ])
        .prop_map(str::to_owned),
        "/[ -~]{0,12}",
    ];
    let header = (
        prop::sample::select(vec!["x", "a", "/a", "x-team", "Authorization"]),
        prop::sample::select(vec!["x", "/", "GET", "/a"]),
    );
    let headers = prop::collection::vec(
        header.prop_map(|(name, value)| (name.to_owned(), value.to_owned())),
        0..3,
    );
    (method, target, headers)
}

/// Whether a request gets to the flow's name.
fn passes(policy: &EffectivePolicy, admission: &Admission, asked: &Asked) -> bool {
    let Some(name) = admission.name() else { return true };
    if !admission.handling.is_intercepted() {
        return true;
    }
    let host = name.to_string();
    let mut headers: Vec<(&[u8], &[u8])> = vec![(b"host", host.as_bytes())];
    headers.extend(asked.2.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())));
    let request = Request {
        method: asked.0.as_bytes(),
        target: asked.1.as_bytes(),
        authority: None,
        headers: &headers,
    };
    let facts = Facts {
        placeholders: &[],
        credential: &present,
    };
    matches!(policy.judge(admission, &request, &facts).outcome, Outcome::Pass(_))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_a_policy_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let hard_deny = HardDeny::default();
        let _ = compile(&bytes, &Context { hard_deny: &hard_deny, previous: None, role: Role::Tenant });
    }

    #[test]
    fn any_json_is_a_policy_or_refused_with_a_place_in_it(value in any_json()) {
        let hard_deny = HardDeny::default();
        for role in [Role::Tenant, Role::Bounds] {
            if let Err(error) = compile(value.to_string().as_bytes(), &Context { hard_deny: &hard_deny, previous: None, role }) {
                prop_assert!(value.pointer(&error.pointer).is_some(), "{} {}", error.pointer, value);
            }
        }
    }

    #[test]
    fn an_intersection_is_never_wider(limits in any_bounds(), policy in any_policy(), destination in any_destination(), seen in any_seen(), resolved in any_address(), asked in any_request()) {
        let (limits, policy) = (bounds(&limits), tenant(&policy));
        let both = EffectivePolicy::intersect(Arc::new(HardDeny::default()), &[Arc::clone(&limits)], Arc::clone(&policy));
        let parts = [alone(limits), alone(policy)];
        let target = destination.to_string();
        if let Ok(admission) = connect(&both, &target, &sniffed(&seen)) {
            for part in &parts {
                // Each part alone admits the flow and, to where it really goes, the request.
                let own = connect(part, &target, &sniffed(&seen)).unwrap();
                if own.handling.is_intercepted() {
                    prop_assert!(admission.handling.is_intercepted());
                }
                let address: IpAddr = if admission.name().is_some() { resolved } else { destination.ip() };
                if both.vet(&admission, address).is_ok() {
                    // A part that admits by address admits this address, whoever chose it.
                    let there = SocketAddr::new(address, destination.port()).to_string();
                    prop_assert!(connect(part, &there, &sniffed(&seen)).is_ok());
                }
                if passes(&both, &admission, &asked) {
                    prop_assert!(passes(part, &own, &asked));
                }
            }
        }
        if both.datagram(destination).is_ok() {
            prop_assert!(parts.iter().all(|part| part.datagram(destination).is_ok()));
        }
    }

    #[test]
    fn an_intersection_resolves_no_more(limits in any_bounds(), policy in any_policy(), name in any_name(), kind in prop::sample::select(vec![RecordType::A, RecordType::Aaaa, RecordType::Other])) {
        let (limits, policy) = (bounds(&limits), tenant(&policy));
        let both = EffectivePolicy::intersect(Arc::new(HardDeny::default()), &[Arc::clone(&limits)], Arc::clone(&policy));
        let question = Question { name: name.as_bytes(), kind, well_formed: true, ipv6: true };
        let resolves = |policy: &EffectivePolicy| matches!(policy.dns(&question), DnsDecision::Resolve { .. });
        if resolves(&both) {
            prop_assert!(resolves(&alone(limits)) && resolves(&alone(policy)));
        }
    }

    #[test]
    fn a_closed_address_is_never_admitted(limits in any_bounds(), policy in any_policy(), destination in any_destination(), seen in any_seen()) {
        let hard_deny = HardDeny::default();
        let policy = EffectivePolicy::intersect(Arc::new(hard_deny.clone()), &[bounds(&limits)], tenant(&policy));
        if hard_deny.classify(destination.ip()).is_some() {
            prop_assert!(connect(&policy, &destination.to_string(), &sniffed(&seen)).is_err());
            prop_assert!(policy.datagram(destination).is_err());
        }
    }

    #[test]
    fn a_decision_is_made_before_or_after_bytes_but_not_differently(policy in any_policy(), destination in any_destination(), seen in any_seen()) {
        let policy = alone(tenant(&policy));
        let flow = super::support::to(&destination.to_string());
        let early = policy.accept(&flow);
        if early != Step::NeedBytes {
            let late = policy.decide(&flow, &sniffed(&seen));
            // A refusal may get a better reason, and never turns into anything else.
            match (early, late) {
                (Step::Refuse(_), late) => prop_assert!(matches!(late, Step::Refuse(_))),
                (early, late) => prop_assert_eq!(early, late),
            }
        }
    }

    #[test]
    fn a_flow_that_is_swept_is_where_a_new_one_would_be(old in any_policy(), new in any_policy(), destination in any_destination(), seen in any_seen(), asked in any_request()) {
        let (old, new) = (alone(tenant(&old)), alone(tenant(&new)));
        let target = destination.to_string();
        let Ok(admission) = connect(&old, &target, &sniffed(&seen)) else { return Ok(()) };
        let facts = hutch_policy::FlowFacts {
            flow: super::support::to(&target),
            seen: Some(seen.clone()),
            admission: admission.clone(),
            dialled: None,
            exchanges: vec![],
        };
        prop_assert_eq!(sweep(&old, &facts), Sweep::Keep);
        match sweep(&new, &facts) {
            Sweep::Cut(_) => {}
            kept => {
                let fresh = connect(&new, &target, &sniffed(&seen)).unwrap();
                prop_assert_eq!(&fresh.dial, &admission.dial);
                prop_assert_eq!(fresh.handling, admission.handling);
                if kept == Sweep::Keep {
                    prop_assert_eq!(&fresh, &admission);
                }
                passes(&new, &fresh, &asked);
            }
        }
    }
}

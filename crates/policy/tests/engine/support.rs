//! Short ways to say what a test is about, and generators of policies.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hutch_policy::{
    Admission, Compiled, Context, CredentialState, EffectivePolicy, Facts, Flow, HardDeny, Judgement, Placeholder,
    Policy, PolicyError, Reason, Request, Role, Sniffed, Step, compile,
};
use proptest::prelude::*;
use serde_json::{Value, json};

pub(crate) const KEY: &str = "CANARY-7f3a9c51d2e84b60a1f7c3d9";

pub(crate) fn try_compile(policy: &Value, role: Role, previous: Option<&Policy>) -> Result<Compiled, PolicyError> {
    let hard_deny = HardDeny::default();
    compile(
        policy.to_string().as_bytes(),
        &Context {
            hard_deny: &hard_deny,
            previous,
            role,
        },
    )
}

pub(crate) fn tenant(policy: &Value) -> Arc<Policy> {
    try_compile(policy, Role::Tenant, None)
        .unwrap_or_else(|error| panic!("{error}: {policy}"))
        .policy
}

pub(crate) fn bounds(policy: &Value) -> Arc<Policy> {
    try_compile(policy, Role::Bounds, None)
        .unwrap_or_else(|error| panic!("{error}: {policy}"))
        .policy
}

pub(crate) fn refused(policy: &Value) -> PolicyError {
    try_compile(policy, Role::Tenant, None)
        .map(|compiled| compiled.policy.read_back())
        .expect_err(&policy.to_string())
}

pub(crate) fn warned(policy: &Value) -> Vec<(String, &'static str)> {
    let compiled = try_compile(policy, Role::Tenant, None).unwrap();
    compiled
        .warnings
        .into_iter()
        .map(|warning| (warning.pointer, warning.code))
        .collect()
}

pub(crate) fn effective(policy: &Value) -> EffectivePolicy {
    within(&[], policy)
}

pub(crate) fn within(limits: &[Value], policy: &Value) -> EffectivePolicy {
    let limits: Vec<_> = limits.iter().map(bounds).collect();
    EffectivePolicy::intersect(Arc::new(HardDeny::default()), &limits, tenant(policy))
}

pub(crate) fn to(destination: &str) -> Flow {
    Flow {
        destination: destination.parse::<SocketAddr>().unwrap(),
        virtual_name: None,
    }
}

pub(crate) fn tls(name: &str) -> Sniffed<'_> {
    Sniffed::Tls {
        server_name: Some(name.as_bytes()),
    }
}

pub(crate) const SOMEWHERE: &str = "198.51.100.7:443";

/// The whole procedure, for a flow whose client would send these bytes.
pub(crate) fn connect(policy: &EffectivePolicy, destination: &str, sniffed: &Sniffed) -> Result<Admission, Reason> {
    let flow = to(destination);
    let step = match policy.accept(&flow) {
        Step::NeedBytes => policy.decide(&flow, sniffed),
        step => step,
    };
    match step {
        Step::Admit(admission) => Ok(admission),
        Step::Refuse(reason) => Err(reason),
        Step::NeedBytes => panic!("bytes were there"),
    }
}

pub(crate) fn open(policy: &EffectivePolicy, name: &str) -> Admission {
    connect(policy, SOMEWHERE, &tls(name)).unwrap()
}

pub(crate) fn present(_: &str) -> CredentialState {
    CredentialState::Present
}

pub(crate) struct Asked<'a> {
    pub(crate) method: &'a str,
    pub(crate) target: &'a str,
    pub(crate) headers: Vec<(&'a str, &'a str)>,
    pub(crate) placeholders: Vec<Placeholder>,
    pub(crate) credential: fn(&str) -> CredentialState,
}

pub(crate) fn get(target: &str) -> Asked<'_> {
    ask("GET", target)
}

pub(crate) fn ask<'a>(method: &'a str, target: &'a str) -> Asked<'a> {
    Asked {
        method,
        target,
        headers: vec![("host", "api.test")],
        placeholders: Vec::new(),
        credential: present,
    }
}

impl<'a> Asked<'a> {
    pub(crate) fn with(mut self, name: &'a str, value: &'a str) -> Self {
        self.headers.push((name, value));
        self
    }

    pub(crate) fn host(mut self, host: &'a str) -> Self {
        self.headers[0].1 = host;
        self
    }

    pub(crate) fn of(self, policy: &EffectivePolicy) -> Judgement {
        let admission = open(policy, "api.test");
        self.on(policy, &admission)
    }

    pub(crate) fn on(&self, policy: &EffectivePolicy, admission: &Admission) -> Judgement {
        let headers: Vec<(&[u8], &[u8])> = self
            .headers
            .iter()
            .map(|(name, value)| (name.as_bytes(), value.as_bytes()))
            .collect();
        let request = Request {
            method: self.method.as_bytes(),
            target: self.target.as_bytes(),
            authority: None,
            headers: &headers,
        };
        let facts = Facts {
            placeholders: &self.placeholders,
            credential: &self.credential,
        };
        policy.judge(admission, &request, &facts)
    }
}

pub(crate) fn injecting() -> Value {
    json!({"transform": [{"headers": {"authorization": format!("Bearer {KEY}")}}]})
}

pub(crate) fn addresses(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

// Generators. Few labels and values, so that patterns, names and rules meet.

pub(crate) fn any_label() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["a", "b", "c", "api"]).prop_map(str::to_owned)
}

pub(crate) fn any_name() -> impl Strategy<Value = String> {
    prop::collection::vec(any_label(), 1..5).prop_map(|labels| format!("{}.test", labels.join(".")))
}

pub(crate) fn any_pattern() -> impl Strategy<Value = String> {
    let label = prop_oneof![3 => any_label(), 1 => Just("*".to_owned())];
    prop_oneof![
        1 => Just("*".to_owned()),
        9 => prop::collection::vec(label, 1..5).prop_map(|labels| format!("{}.test", labels.join("."))),
    ]
}

pub(crate) fn any_range() -> impl Strategy<Value = String> {
    prop::sample::select(vec![
        "0.0.0.0/0",
        "198.51.100.0/24",
        "198.51.100.0/28",
        "203.0.113.0/24",
        "8.0.0.0/6",
        "2001:db8::/32",
        "::/0",
    ])
    .prop_map(str::to_owned)
}

pub(crate) fn any_address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        prop::sample::select(addresses(&[
            "198.51.100.7",
            "198.51.100.200",
            "203.0.113.5",
            "10.9.9.9",
            "169.254.169.254",
            "127.0.0.1",
            "8.8.8.8",
            "2001:db8::7",
            "::1",
            "64:ff9b::a9fe:a9fe",
        ])),
        any::<u32>().prop_map(|bits| IpAddr::V4(bits.into())),
        any::<u128>().prop_map(|bits| IpAddr::V6(bits.into())),
    ]
}

fn any_test() -> impl Strategy<Value = Value> {
    let text = prop::sample::select(vec!["/", "/a", "/a/", "x", "GET", "a.*c", "^/v1/"]);
    (prop::sample::select(vec!["exact", "startsWith", "regex"]), text).prop_map(|(how, text)| json!({ how: text }))
}

fn any_match() -> impl Strategy<Value = Value> {
    let pair = (prop::option::of(any_test()), prop::option::of(any_test()))
        .prop_map(|(key, value)| json!({"key": key, "value": value}))
        .boxed();
    let methods = prop::collection::vec(prop::sample::select(vec!["GET", "POST", "get"]), 1..3);
    (
        prop::option::of(any_test()),
        prop::option::of(methods),
        prop::collection::vec(pair.clone(), 0..2),
        prop::collection::vec(pair, 0..2),
    )
        .prop_map(|(path, method, query, headers)| {
            json!({"path": path, "method": method, "queryString": query, "headers": headers})
        })
}

fn any_action() -> impl Strategy<Value = (&'static str, Value)> {
    let value = prop_oneof![
        "[ -~]{0,30}"
            .prop_map(Value::String)
            .prop_filter("reserved", |value| *value != "<redacted>"),
        Just(json!({"credential": "KEY", "format": "Bearer {}"})),
        Just(json!({"credential": "OTHER", "placeholder": "TOKEN"})),
    ];
    let name = prop::sample::select(vec!["authorization", "X-Api-Key", "x-team"]);
    let headers = prop::collection::hash_map(name, value.clone(), 0..3);
    let query = prop::collection::hash_map("[a-c]", value, 0..2);
    prop_oneof![
        3 => (headers, query).prop_map(|(headers, query)| ("transform", json!([{"headers": headers, "queryString": query}]))),
        1 => Just(("forwardURL", json!("https://proxy.test/in"))),
        1 => Just(("response", json!({"statusCode": 403, "body": "no", "contentType": "text/plain"}))),
    ]
}

pub(crate) fn any_rule() -> impl Strategy<Value = Value> {
    let extras = (
        prop::option::of(0_u64..1000),
        prop::option::of(Just(false)),
        any::<bool>(),
    );
    (prop::option::of(any_match()), any_action(), extras).prop_map(
        |(matcher, (name, action), (limit, scrub, slash))| {
            json!({
                "match": matcher, name: action, "acknowledgeBroad": true, "scrub": scrub, "allowEncodedSlash": slash,
                "limits": {"upBytes": limit},
            })
        },
    )
}

/// A rule that a policy of bounds may have.
fn any_plain_rule() -> impl Strategy<Value = Value> {
    (prop::option::of(any_match()), any::<bool>()).prop_map(|(matcher, blocks)| {
        if blocks {
            json!({"match": matcher, "response": {"statusCode": 403}})
        } else {
            json!({"match": matcher, "transform": []})
        }
    })
}

fn any_custom(rule: BoxedStrategy<Value>) -> impl Strategy<Value = Value> {
    let ranges = || prop::collection::vec(any_range(), 0..3);
    let defaults = (
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
        prop::option::of(Just(vec![443, 80])),
    );
    let allow = prop::collection::hash_map(any_pattern(), prop::collection::vec(rule, 0..3), 0..5);
    (allow, ranges(), ranges(), defaults, prop::option::of(any::<bool>())).prop_map(
        |(allow, open, closed, (inspect, unmatched, plaintext, ports), dns)| {
            json!({
                "allow": allow,
                "subnets": {"allow": open, "deny": closed},
                "defaults": {
                    "inspect": if inspect { "all" } else { "rules" },
                    "unmatched": if unmatched { "deny" } else { "pass" },
                    "plaintextHttp": plaintext,
                    "ports": ports,
                },
                "dns": {"open": dns},
            })
        },
    )
}

pub(crate) fn any_policy() -> impl Strategy<Value = Value> {
    prop_oneof![1 => Just(json!("allow-all")), 1 => Just(json!({"mode": "deny-all"})), 18 => any_custom(any_rule().boxed())]
}

pub(crate) fn any_bounds() -> impl Strategy<Value = Value> {
    let custom = (
        any_custom(any_plain_rule().boxed()),
        prop::collection::vec(any_pattern(), 0..2),
    );
    prop_oneof![
        2 => Just(json!("allow-all")),
        1 => Just(json!("deny-all")),
        12 => custom.prop_map(|(mut policy, block)| {
            policy["block"] = json!(block);
            policy
        }),
    ]
}

/// Everything that is JSON, with the words of the grammar in it.
pub(crate) fn any_json() -> impl Strategy<Value = Value> {
    let word = prop::sample::select(vec![
        "mode",
        "allow",
        "subnets",
        "deny",
        "custom",
        "allow-all",
        "api.test",
        "*",
        "match",
        "path",
        "regex",
        "(a+",
        "exact",
        "transform",
        "headers",
        "authorization",
        "response",
        "statusCode",
        "forwardURL",
        "https://x.test",
        "defaults",
        "dns",
        "hutch",
        "policy",
        "10.0.0.0/8",
        "injectionRules",
        "domain",
        "credential",
        "<redacted>",
        "allowedDomains",
        "limits",
    ]);
    let word = prop_oneof![4 => word.prop_map(str::to_owned), 1 => "\\PC{0,12}"];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        word.clone().prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::hash_map(word.clone(), inner, 0..5)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

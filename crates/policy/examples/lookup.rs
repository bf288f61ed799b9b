//! How long decisions take, by the number of patterns: `cargo run --release -p hutch-policy --example lookup`.

use std::fmt::Write as _;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use hutch_policy::{
    Context, CredentialState, EffectivePolicy, Facts, Flow, FlowFacts, HardDeny, Name, Policy, Request, Role,
    SeenBytes, Sniffed, Step, Sweep, compile, sweep,
};

const ROUNDS: u32 = 200_000;

fn policy(patterns: usize) -> Arc<Policy> {
    let rule = r#"[{"match": {"path": {"startsWith": "/v1/"}}, "transform": [{"headers": {"authorization": "Bearer 0123456789abcdef"}}]}]"#;
    let mut text = format!("{{\"allow\": {{\"api.example.com\": {rule}");
    for index in 1..patterns {
        let wildcard = if index % 2 == 0 { "*." } else { "" };
        write!(text, ", \"{wildcard}name{index}.zone{}.example.com\": []", index % 7)
            .expect("a string takes everything");
    }
    text.push_str("}}");
    let hard_deny = HardDeny::default();
    let context = Context {
        hard_deny: &hard_deny,
        previous: None,
        role: Role::Tenant,
    };
    compile(text.as_bytes(), &context).expect("a valid policy").policy
}

/// The best of five, in nanoseconds each.
fn measure(mut work: impl FnMut()) -> f64 {
    let round = |work: &mut dyn FnMut()| {
        let begin = Instant::now();
        (0..ROUNDS).for_each(|_| work());
        begin.elapsed().as_secs_f64() * 1e9 / f64::from(ROUNDS)
    };
    (0..5).map(|_| round(&mut work)).fold(f64::INFINITY, f64::min)
}

fn main() {
    println!("patterns  compile_us  name_ns  flow_ns  request_ns  sweep_of_10000_ms");
    for patterns in [1, 10, 100, 1000] {
        let begin = Instant::now();
        let compiled = policy(patterns);
        let compile_us = begin.elapsed().as_secs_f64() * 1e6;
        let effective = EffectivePolicy::intersect(Arc::new(HardDeny::default()), &[], Arc::clone(&compiled));
        let name = Name::host(b"api.example.com").expect("a name");
        let name_ns = measure(|| {
            black_box(compiled.pattern_of(black_box(&name)));
        });
        let flow = Flow {
            destination: "198.51.100.7:443".parse().expect("an address"),
            virtual_name: None,
        };
        let sniffed = Sniffed::Tls {
            server_name: Some(b"api.example.com"),
        };
        let flow_ns = measure(|| {
            black_box(effective.decide(black_box(&flow), &sniffed));
        });
        let Step::Admit(admission) = effective.decide(&flow, &sniffed) else {
            panic!("the flow is allowed")
        };
        let headers: [(&[u8], &[u8]); 4] = [
            (b"host", b"api.example.com"),
            (b"accept", b"*/*"),
            (b"user-agent", b"curl"),
            (b"content-length", b"5"),
        ];
        let request = Request {
            method: b"POST",
            target: b"/v1/chat?x=1",
            authority: None,
            headers: &headers,
        };
        let facts = Facts {
            placeholders: &[],
            credential: &|_| CredentialState::Present,
        };
        let request_ns = measure(|| {
            black_box(effective.judge(&admission, black_box(&request), &facts));
        });
        let open = FlowFacts {
            flow: flow.clone(),
            seen: Some(SeenBytes::Tls(Some(b"api.example.com".to_vec()))),
            dialled: Some(flow.destination.ip()),
            admission,
            exchanges: Vec::new(),
        };
        let begin = Instant::now();
        let kept = (0..10_000)
            .filter(|_| sweep(&effective, black_box(&open)) == Sweep::Keep)
            .count();
        let sweep_ms = begin.elapsed().as_secs_f64() * 1e3;
        assert_eq!(kept, 10_000);
        println!("{patterns:8}  {compile_us:10.0}  {name_ns:7.0}  {flow_ns:7.0}  {request_ns:10.0}  {sweep_ms:17.1}");
    }
}

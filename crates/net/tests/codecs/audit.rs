//! Audit records: canonical, chained, and harmless whatever is in them.

use hutch_net::audit::{Chain, Decision, Kind, Record};
use proptest::prelude::*;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::support::check;

const ZEROS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

fn record() -> Record {
    Record::new(Kind::Http, Decision::Inject, "inject")
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).expect("text")
}

fn parsed(record: Record) -> Value {
    serde_json::from_slice(&Chain::default().seal(record, 0)).expect("JSON")
}

fn path(target: &[u8]) -> String {
    let value = parsed(record().path(target));
    value["path"].as_str().expect("text").to_owned()
}

fn hash(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

fn hex(hash: [u8; 32]) -> String {
    hash.map(|byte| format!("{byte:02x}")).concat()
}

#[test]
fn a_record_has_what_was_said_and_nothing_else() {
    let record = Record::new(Kind::Dns, Decision::Deny, "domain_deny").name("evil.test");
    let mut chain = Chain::default();
    let first = text(chain.seal(record, 5));
    assert_eq!(
        first,
        format!(
            r#"{{"decision":"deny","kind":"dns","name":"evil.test","prev":"{ZEROS}","reason":"domain_deny","seq":1,"ts":5}}"#
        )
    );
    assert_eq!(chain.seq(), 1);
    // By `sha256sum`.
    assert_eq!(
        hex(chain.previous()),
        "d02d1ebc40cc2444fef4856a3dde62789fce8f7ddf5691524b6f7c23f228600b"
    );
}

#[test]
fn every_field_is_written_in_canonical_form() {
    let all = record()
        .tls_version("1.3")
        .sandbox("sbx")
        .lifecycle("run-1")
        .generation(3)
        .policy_hash(&"ab".into())
        .rule("0011")
        .pattern("*.test")
        .name("api.test")
        .dst("203.0.113.5:443".parse().expect("an address"))
        .dst_original("[2001:db8::1]:443".parse().expect("an address"))
        .dst_mismatch()
        .mode("mitm")
        .alpn("h2")
        .sni_raw("API.test")
        .method("POST")
        .path("/v1/\"q\"\\?key=hidden&n")
        .status(200)
        .injected(["authorization", "?key"])
        .reflected(1)
        .bytes(u64::MAX, 2)
        .dur_ms(12)
        .error("upstream_tls")
        .count(4);
    let expected = [
        r#"{"alpn":"h2","count":4,"decision":"inject","down":2,"dst":"203.0.113.5:443","dstMismatch":true,"durMs":12,"#,
        r#""error":"upstream_tls","generation":3,"injected":["authorization","?key"],"kind":"http","lifecycle":"run-1","#,
        r#""method":"POST","mode":"mitm","name":"api.test","origDst":"[2001:db8::1]:443","#,
        r#""path":"/v1/\"q\"\\?key&n","pattern":"*.test","policyHash":"ab","prev":""#,
        ZEROS,
        r#"","reason":"inject","reflected":1,"rule":"0011","sandbox":"sbx","seq":1,"sniRaw":"API.test","status":200,"#,
        r#""tlsVersion":"1.3","ts":1764110000123,"up":9007199254740991}"#,
    ];
    assert_eq!(text(Chain::default().seal(all, 1_764_110_000_123)), expected.concat());
}

#[test]
fn a_record_can_be_refused_after_all_and_compared_with_others() {
    let passed = record().name("api.test");
    assert!(!passed.is_denial());
    assert_eq!(
        passed.like(),
        (Kind::Http, Decision::Inject, "inject".to_owned(), "api.test".to_owned())
    );
    let denied = passed.denied("unscannable");
    assert!(denied.is_denial());
    assert_eq!(
        denied.like(),
        (
            Kind::Http,
            Decision::Deny,
            "unscannable".to_owned(),
            "api.test".to_owned()
        )
    );
    let value = parsed(denied);
    assert_eq!(
        (&value["decision"], &value["reason"]),
        (&"deny".into(), &"unscannable".into())
    );
    assert!(Record::new(Kind::Revoke, Decision::Revoked, "revoked").is_denial());
    assert_eq!(record().like().3, "");
}

#[test]
fn codes_are_the_ones_of_the_contract() {
    let kinds: Vec<_> = Kind::ALL.iter().map(|kind| kind.as_str()).collect();
    assert_eq!(
        kinds,
        ["dns", "tcp", "tls", "http", "udp", "revoke", "policy", "limit", "mint"]
    );
    let decisions: Vec<_> = Decision::ALL.iter().map(|decision| decision.as_str()).collect();
    assert_eq!(
        decisions,
        [
            "allow",
            "deny",
            "pass_unmatched",
            "inject",
            "forward",
            "respond",
            "revoked"
        ]
    );
}

#[test]
fn a_chain_shows_what_is_missing_or_changed() {
    let mut chain = Chain::default();
    let mut lines: Vec<Vec<u8>> = (0..20u64)
        .map(|index| chain.seal(record().count(index), 1000 + index))
        .collect();
    // A gateway that was started anew goes on where the chain was.
    let mut again = Chain::resume(chain.seq(), chain.previous());
    assert_eq!(again, chain);
    lines.extend((20..30u64).map(|index| again.seal(record().count(index), index)));

    let holds = |lines: &[Vec<u8>]| {
        let mut previous = [0; 32];
        lines.iter().zip(1u64..).all(|(line, seq)| {
            let value: Value = serde_json::from_slice(line).expect("JSON");
            let follows = value["prev"] == hex(previous) && value["seq"] == seq;
            previous = hash(line);
            follows
        })
    };
    assert!(holds(&lines));
    let mut missing = lines.clone();
    missing.remove(7);
    assert!(!holds(&missing));
    let mut changed = lines.clone();
    changed[7] = text(changed[7].clone())
        .replace("\"count\":7", "\"count\":8")
        .into_bytes();
    assert!(!holds(&changed));
    lines.swap(3, 4);
    assert!(!holds(&lines));
}

#[test]
fn t95_hostile_text_stays_inside_of_its_field() {
    let hostile = b"/a\r\n{\"decision\":\"allow\"}\x1b[2J\0\x7f\xff\xc3\xa4\xe2\x80\xa8";
    let shown = r#"/a\x0d\x0a{"decision":"allow"}\x1b[2J\x00\x7f\xff\xc3\xa4\xe2\x80\xa8"#;
    let value = parsed(
        record()
            .path(hostile)
            .method(hostile)
            .sni_raw(hostile)
            .name("\u{2028}\n"),
    );
    for field in ["path", "method", "sniRaw"] {
        assert_eq!(value[field], shown, "{field}");
    }
    assert_eq!(value["name"], r"\xe2\x80\xa8\x0a");
    assert_eq!(value["decision"], "inject");
    assert_eq!(value["clipped"], Value::Null);
}

#[test]
fn t95_long_text_is_clipped_and_the_record_says_so() {
    let long = "a".repeat(1 << 20);
    let length = |value: &Value, field: &str| value[field].as_str().expect("text").len();
    for (record, field, limit) in [
        (record().path(&long), "path", 1024),
        (record().error(&long), "error", 1024),
        (record().sni_raw(&long), "sniRaw", 255),
        (record().method(&long), "method", 255),
        (record().name(&long), "name", 255),
        (record().alpn(&long), "alpn", 255),
    ] {
        let value = parsed(record);
        assert_eq!(length(&value, field), limit, "{field}");
        assert_eq!(value["clipped"], true, "{field}");
    }
    // What is written is what is bounded, and an escape is not cut.
    let value = parsed(record().sni_raw([&[b'a'; 252][..], &[0; 3]].concat()));
    assert_eq!(value["sniRaw"], "a".repeat(252));
    let value = parsed(record().sni_raw([&[b'a'; 251][..], &[0]].concat()));
    assert_eq!(value["sniRaw"], format!("{}\\x00", "a".repeat(251)));
    assert_eq!(value["clipped"], Value::Null);

    let value = parsed(record().injected(vec![long; 200]));
    let names = value["injected"].as_array().expect("a list");
    assert_eq!(names.len(), 128);
    assert!(
        names
            .iter()
            .all(|name| name.as_str().is_some_and(|name| name.len() == 255))
    );
    assert_eq!(value["clipped"], true);
}

#[test]
fn t96_values_of_parameters_are_never_written() {
    for (target, shown) in [
        ("/p?a=1&b=2", "/p?a&b"),
        ("/p?a=1&b", "/p?a&b"),
        ("/p", "/p"),
        ("/p?", "/p?"),
        ("/p?=hidden", "/p?"),
        ("/p?a=hid=den", "/p?a"),
        ("/p?a=hid?den&&c=", "/p?a&&c"),
        ("/p?a=hid;b=den", "/p?a"),
        ("/p#hidden", "/p#"),
        ("/p?a=b#hidden=x", "/p?a"),
        ("/p#?hidden", "/p#"),
        ("https://user:hidden@api.test/p?a=b", "/p?a"),
        ("https://user:hidden@api.test", "/"),
        ("https://api.test?a=hidden", "?a"),
        ("/p?next=https://user:hidden@x/", "/p?next"),
        ("/p/https://x/y", "/p/https://x/y"),
        ("user:hidden@api.test:443", "api.test:443"),
        ("*", "*"),
        ("", ""),
    ] {
        assert_eq!(path(target.as_bytes()), shown, "{target}");
    }
}

#[test]
fn every_record_is_one_object_on_one_line_in_canonical_form() {
    let bytes = || prop::collection::vec(any::<u8>(), 0..300);
    let case = (
        bytes(),
        bytes(),
        bytes(),
        "\\PC{0,60}",
        any::<u64>(),
        prop::collection::vec(bytes(), 0..4),
    );
    check(500, &case, |(path, sni, method, name, number, injected)| {
        let mut chain = Chain::resume(number, [7; 32]);
        let all = record()
            .path(&path)
            .sni_raw(&sni)
            .method(&method)
            .name(&name)
            .error(&name)
            .bytes(number, number / 2)
            .injected(&injected);
        let line = chain.seal(all, number);
        prop_assert!(line.iter().all(|byte| (b' '..=b'~').contains(byte)));
        let value: Value = serde_json::from_slice(&line).expect("one value");
        // The keys are ASCII, so that the library's order of them is that of RFC 8785; so is the rest.
        prop_assert_eq!(serde_json::to_vec(&value).expect("JSON"), line.clone());
        prop_assert!(value.is_object());
        prop_assert_eq!(chain.previous(), hash(&line));
        prop_assert_eq!(&value["prev"], &Value::from("07".repeat(32)));
        prop_assert_eq!(&value["up"], &Value::from(number.min((1 << 53) - 1)));
        prop_assert_eq!(&value["decision"], "inject");
        prop_assert!(line.len() < 20_000);
        Ok(())
    });
}

#[test]
fn no_value_of_a_parameter_is_in_a_record_whatever_the_target() {
    let target = prop::collection::vec(
        prop::sample::select(vec![
            "/", "?", "&", "=hidden", "=hidden&", "a", "b=hidden", "%3f", ";", "#hidden",
        ]),
        0..12,
    );
    check(2000, &target, |parts| {
        let target = format!("/{}", parts.concat());
        let shown = path(target.as_bytes());
        // Before the query, an equals sign means nothing.
        let query = shown.split_once('?').map_or("", |(_, query)| query);
        prop_assert!(!query.contains("hidden"), "{} of {}", shown, target);
        prop_assert!(!shown.contains("#h"));
        Ok(())
    });
}

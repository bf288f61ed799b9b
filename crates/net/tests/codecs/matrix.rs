//! The parser matrix (`egress.md`, appendix A): payloads that other proxies send on, against the codec and the policy
//! engine together. Each row says what the gateway answers; nothing that is refused reaches the server.

use std::sync::Arc;

use hutch_net::http1::{BodyDecoder, BodyKind, Decoded, HeadLimits, read_head};
use hutch_policy::{
    Context, CredentialState, EffectivePolicy, Facts, Flow, HardDeny, HeadPlan, Outcome, Request, Role, Sniffed, Step,
    compile,
};

#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// Refused with this status.
    Refused(u16),
    /// Sent on, with this target and these header lines of the client.
    SentOn(String, Vec<String>),
    /// Refused when its body is read, by which time its head may have been sent on.
    BadBody,
}

fn policy() -> EffectivePolicy {
    let hard_deny = HardDeny::default();
    let context = Context {
        hard_deny: &hard_deny,
        previous: None,
        role: Role::Tenant,
    };
    let text = br#"{"allow": {"origin.test": [{"transform": [{"headers": {"x-api-key": "0123456789abcdef"}}]}]}}"#;
    let compiled = compile(text, &context).expect("a valid policy");
    EffectivePolicy::intersect(Arc::new(HardDeny::default()), &[], compiled.policy)
}

/// What becomes of the first request in `bytes`, on a connection with the server name `origin.test`.
fn answer(bytes: &[u8]) -> Answer {
    let Ok(found) = read_head(bytes, &HeadLimits::default()) else {
        return Answer::Refused(400);
    };
    let (head, length) = found.expect("a complete head");
    let flow = Flow {
        destination: "203.0.113.5:443".parse().expect("an address"),
        virtual_name: None,
    };
    let policy = policy();
    let sniffed = Sniffed::Tls {
        server_name: Some(b"origin.test"),
    };
    let Step::Admit(admission) = policy.decide(&flow, &sniffed) else {
        panic!("the name is allowed");
    };
    let headers: Vec<_> = head.headers().collect();
    let request = Request {
        method: head.method(),
        target: head.target(),
        authority: None,
        headers: &headers,
    };
    let facts = Facts {
        placeholders: &[],
        credential: &|_| CredentialState::Present,
    };
    let judgement = policy.judge(&admission, &request, &facts);
    let mut body = BodyDecoder::from(head.body);
    let mut rest = bytes[length..].into();
    loop {
        match body.decode(&mut rest) {
            Ok(Decoded::Data(_)) => {}
            Ok(_) => break,
            Err(_) => return Answer::BadBody,
        }
    }
    match judgement.outcome {
        Outcome::Refuse { status, .. } => Answer::Refused(status),
        Outcome::Pass(HeadPlan { target, host, keep, .. }) => {
            assert_eq!(host, "origin.test");
            let line = |index: &usize| {
                let (name, value) = headers[*index];
                String::from_utf8_lossy(&[name, b": ", value].concat()).into_owned()
            };
            Answer::SentOn(
                String::from_utf8(target).expect("text"),
                keep.iter().map(line).collect(),
            )
        }
        other => panic!("{other:?}"),
    }
}

/// A request with these lines after `Host`.
fn lines(lines: &str) -> Vec<u8> {
    format!("POST /p HTTP/1.1\r\nHost: origin.test\r\n{lines}\r\n\r\nhi").into_bytes()
}

/// A request for this target.
fn target(target: &str) -> Vec<u8> {
    format!("GET {target} HTTP/1.1\r\nHost: origin.test\r\n\r\n").into_bytes()
}

/// A request with this `Host`.
fn host(host: &str) -> Vec<u8> {
    format!("GET /p HTTP/1.1\r\nHost: {host}\r\n\r\n").into_bytes()
}

fn sent_on(target: &str, kept: &[&str]) -> Answer {
    Answer::SentOn(target.to_owned(), kept.iter().map(|line| (*line).to_owned()).collect())
}

fn check(rows: Vec<(&str, Vec<u8>, Answer)>) {
    for (what, bytes, expected) in rows {
        assert_eq!(answer(&bytes), expected, "{what}");
    }
}

#[test]
fn t51_t52_names_in_targets_and_hosts_have_one_reading() {
    let refused = Answer::Refused;
    check(vec![
        ("a plain request", target("/p"), sent_on("/p", &[])),
        ("second Host", lines("Host: evil.test"), refused(400)),
        ("second Host, equal", lines("Host: origin.test"), refused(400)),
        ("no Host", b"GET /p HTTP/1.1\r\n\r\n".to_vec(), refused(400)),
        (
            "absolute-form evil + Host api",
            target("https://evil.test/x"),
            refused(421),
        ),
        (
            "absolute-form of the name itself",
            target("https://origin.test/x"),
            sent_on("/x", &[]),
        ),
        (
            "absolute-form, userinfo",
            target("https://origin.test@evil.test/x"),
            refused(400),
        ),
        (
            "absolute-form, other scheme",
            target("http://origin.test/x"),
            refused(421),
        ),
        ("Host with userinfo", host("origin.test@evil.test"), refused(400)),
        ("Host of another name", host("evil.test"), refused(421)),
        ("Host with a trailing dot", host("origin.test."), sent_on("/p", &[])),
        ("Host in upper case", host("ORIGIN.test"), sent_on("/p", &[])),
        ("Host with the port", host("origin.test:443"), sent_on("/p", &[])),
        ("Host with another port", host("origin.test:80"), refused(421)),
        ("Host with a path", host("origin.test/x"), refused(400)),
        ("Host with a list", host("origin.test, evil.test"), refused(400)),
        ("Host with a tab", host("origin.test\tevil.test"), refused(400)),
        ("Host in brackets", host("[origin.test]"), refused(400)),
        ("Host with percent", host("origin%2etest"), refused(400)),
        ("NUL in Host", host("origin.test\0evil"), refused(400)),
    ]);
}

#[test]
fn t54_t55_framing_and_lines_have_one_reading() {
    let refused = Answer::Refused;
    check(vec![
        (
            "CL + TE",
            lines("Content-Length: 2\r\nTransfer-Encoding: chunked"),
            refused(400),
        ),
        (
            "CL,CL differ",
            lines("Content-Length: 2\r\nContent-Length: 3"),
            refused(400),
        ),
        ("CL +2", lines("Content-Length: +2"), refused(400)),
        ("CL 2, 2", lines("Content-Length: 2, 2"), refused(400)),
        ("TE xchunked", lines("Transfer-Encoding: xchunked"), refused(400)),
        (
            "TE chunked, identity",
            lines("Transfer-Encoding: chunked, identity"),
            refused(400),
        ),
        ("TE \\x0bchunked", lines("Transfer-Encoding: \x0bchunked"), refused(400)),
        ("TE before a blank", lines("Transfer-Encoding : chunked"), refused(400)),
        ("a name with a blank", lines("X A: b"), refused(400)),
        ("obs-fold", lines("A: b\r\n c"), refused(400)),
        (
            "bare LF lines",
            b"GET /p HTTP/1.1\nHost: origin.test\n\n".to_vec(),
            refused(400),
        ),
        ("bare CR in a value", lines("A: b\rC: d"), refused(400)),
        ("HTTP/0.9", b"GET /p\r\n".to_vec(), refused(400)),
        (
            "HTTP/1.0 + TE",
            b"POST /p HTTP/1.0\r\nHost: origin.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_vec(),
            refused(400),
        ),
        (
            "chunk size 0x2",
            b"POST /p HTTP/1.1\r\nHost: origin.test\r\nTransfer-Encoding: chunked\r\n\r\n0x2\r\nhi\r\n0\r\n\r\n"
                .to_vec(),
            Answer::BadBody,
        ),
        (
            "chunk with LF only",
            b"POST /p HTTP/1.1\r\nHost: origin.test\r\nTransfer-Encoding: chunked\r\n\r\n2\nhi\n0\n\n".to_vec(),
            Answer::BadBody,
        ),
    ]);
}

#[test]
fn t60_t70_methods_paths_and_options_have_one_reading() {
    let refused = Answer::Refused;
    check(vec![
        (
            "lower-case get",
            b"get /p HTTP/1.1\r\nHost: origin.test\r\n\r\n".to_vec(),
            sent_on("/p", &[]),
        ),
        // No rule looks at the path, so it is sent on byte by byte.
        ("dots in the path", target("/a/../b"), sent_on("/a/../b", &[])),
        ("%2e%2e in the path", target("/a/%2e%2e/b"), sent_on("/a/%2e%2e/b", &[])),
        ("// in the path", target("/a//b"), sent_on("/a//b", &[])),
        ("..; in the path", target("/a/..;/b"), sent_on("/a/..;/b", &[])),
        ("\\ in the path", target("/a\\b"), sent_on("/a\\b", &[])),
        ("%00 in the path", target("/a%00"), sent_on("/a%00", &[])),
        ("#frag", target("/a#b"), sent_on("/a#b", &[])),
        ("raw UTF-8 in the path", target("/\u{e4}"), refused(400)),
        (
            "TRACE",
            b"TRACE /p HTTP/1.1\r\nHost: origin.test\r\n\r\n".to_vec(),
            refused(405),
        ),
        (
            "CONNECT",
            b"CONNECT evil.test:443 HTTP/1.1\r\nHost: origin.test\r\n\r\n".to_vec(),
            refused(405),
        ),
        (
            "Upgrade: h2c",
            lines("Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AA"),
            sent_on("/p", &[]),
        ),
        (
            "Connection nominates",
            lines("Connection: close, Authorization\r\nAuthorization: x"),
            sent_on("/p", &[]),
        ),
        (
            "an injected name with underscores",
            lines("X_Api_Key: mine\r\nA: b"),
            sent_on("/p", &["A: b"]),
        ),
        (
            "an injected name, twice",
            lines("X-API-KEY: mine\r\nx-api-key: mine"),
            sent_on("/p", &[]),
        ),
    ]);
}

#[test]
fn t59_a_request_behind_an_upgrade_is_a_request_of_its_own() {
    let bytes = b"GET /p HTTP/1.1\r\nHost: origin.test\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\nGET /admin HTTP/1.1\r\nHost: evil.test\r\n\r\n";
    let (head, length) = read_head(bytes, &HeadLimits::default())
        .expect("fine")
        .expect("complete");
    assert_eq!(head.body, BodyKind::None);
    assert_eq!(answer(&bytes[length..]), Answer::Refused(421));
}

#[test]
fn t58_a_request_behind_a_body_is_a_request_of_its_own() {
    let bytes = lines("Content-Length: 2");
    let next = target("/p");
    let all = [&bytes[..], &next].concat();
    let (head, length) = read_head(&all, &HeadLimits::default())
        .expect("fine")
        .expect("complete");
    let mut rest = all[length..].into();
    let mut body = BodyDecoder::from(head.body);
    assert_eq!(body.decode(&mut rest), Ok(Decoded::Data(b"hi"[..].into())));
    assert_eq!(body.decode(&mut rest), Ok(Decoded::End(Vec::new())));
    assert_eq!(&rest[..], &next);
}

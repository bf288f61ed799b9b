//! Decisions on HTTP requests.

use hutch_policy::{
    CredentialState, EffectivePolicy, Facts, HeadPlan, Judgement, Outcome, Place, Placeholder, Reason, Request,
    Value as Set, inspect_path,
};
use serde_json::{Value, json};

use super::support::{Asked, KEY, ask, connect, effective, get, injecting, open, present, tls, within};

fn api(rules: &Value) -> EffectivePolicy {
    effective(&json!({"allow": {"api.test": rules}}))
}

fn plan(judgement: &Judgement) -> &HeadPlan {
    match &judgement.outcome {
        Outcome::Pass(plan) | Outcome::Forward(_, plan) => plan,
        other => panic!("{other:?} {:?}", judgement.reason),
    }
}

fn status(judgement: &Judgement) -> u16 {
    match &judgement.outcome {
        Outcome::Refuse { status, .. } => *status,
        Outcome::Respond(response) => response.status,
        _ => 0,
    }
}

fn value(set: &Set) -> String {
    match set {
        Set::Literal(secret) => secret.expose().to_owned(),
        Set::Credential(used) => format!("credential {}", used.name),
    }
}

/// The names of the client's headers that go on.
fn kept<'a>(asked: &Asked<'a>, judgement: &Judgement) -> Vec<&'a str> {
    plan(judgement)
        .keep
        .iter()
        .map(|&index| asked.headers[index].0)
        .collect()
}

fn judge(policy: &EffectivePolicy, asked: &Asked) -> Judgement {
    asked.on(policy, &open(policy, "api.test"))
}

const BLOCK: &str = r#"{"response": {"statusCode": 403}}"#;

fn block() -> Value {
    serde_json::from_str(BLOCK).unwrap()
}

fn scoped(path: &Value) -> EffectivePolicy {
    api(&json!([{"match": {"path": path}, "transform": injecting()["transform"]}, block()]))
}

#[test]
fn the_first_rule_that_matches_decides() {
    let policy = api(&json!([
        {"match": {"method": ["DELETE"]}, "response": {"statusCode": 405}},
        {"match": {"path": {"startsWith": "/v1/"}}, "transform": injecting()["transform"]},
    ]));
    assert_eq!(status(&ask("DELETE", "/v1/x").of(&policy)), 405);
    let injected = get("/v1/x").of(&policy);
    assert_eq!(
        (injected.reason, injected.rule.as_ref().unwrap().index),
        (Reason::Inject, 1)
    );
    assert_eq!(value(&plan(&injected).set[0].value), format!("Bearer {KEY}"));
    let passed = get("/other").of(&policy);
    assert_eq!((passed.reason, passed.rule.clone()), (Reason::PassUnmatched, None));
    assert!(!plan(&passed).injects());
    let strict = effective(&json!({
        "allow": {"api.test": [{"match": {"path": {"startsWith": "/v1/"}}, "transform": []}]},
        "defaults": {"unmatched": "deny"},
    }));
    assert_eq!(get("/other").of(&strict).reason, Reason::Unmatched);
    assert_eq!(get("/v1/x").of(&strict).reason, Reason::Domain);
}

#[test]
fn t37_t51_t52_the_host_is_the_name_of_the_flow() {
    let policy = api(&json!([injecting()]));
    for (host, expected) in [
        ("api.test", 0),
        ("API.TEST.", 0),
        ("api.test:443", 0),
        ("evil.test", 421),
        ("api.test:80", 421),
        ("198.51.100.7", 421),
        ("[::1]", 421),
        ("a@api.test", 400),
        ("api.test@evil.test", 400),
        ("api.test/", 400),
        ("api.test,evil.test", 400),
        ("", 400),
        ("api%2etest", 400),
        ("api.test\t", 400),
        ("api_x.test", 400),
    ] {
        assert_eq!(status(&get("/").host(host).of(&policy)), expected, "{host:?}");
    }
    assert_eq!(status(&get("/").with("Host", "api.test").of(&policy)), 400, "two hosts");
    assert_eq!(
        status(
            &Asked {
                headers: vec![],
                ..get("/")
            }
            .of(&policy)
        ),
        400,
        "no host"
    );
    for (target, expected) in [
        ("https://api.test/x", 0),
        ("https://API.test:443/x", 0),
        ("https://api.test", 0),
        ("https://evil.test/x", 421),
        ("http://api.test/x", 421),
        ("https://api.test@evil.test/", 400),
        ("//evil.test/x", 0),
        ("evil", 400),
        ("", 400),
        ("https://api.test?x", 400),
        ("/a b", 400),
    ] {
        assert_eq!(status(&get(target).of(&policy)), expected, "{target:?}");
    }
    let judgement = get("https://api.test/x?y=1").of(&policy);
    assert_eq!(plan(&judgement).target, b"/x?y=1");
    assert_eq!(plan(&judgement).host, "api.test");
}

#[test]
fn t53_authority_and_host_agree_and_nothing_breaks_a_line() {
    let policy = api(&json!([injecting()]));
    let admission = open(&policy, "api.test");
    let facts = Facts {
        placeholders: &[],
        credential: &present,
    };
    let ask = |authority: &[u8], target: &[u8], headers: &[(&[u8], &[u8])]| {
        let request = Request {
            method: b"GET",
            target,
            authority: Some(authority),
            headers,
        };
        status(&policy.judge(&admission, &request, &facts))
    };
    assert_eq!(ask(b"api.test", b"/", &[]), 0);
    assert_eq!(ask(b"api.test", b"/", &[(b"host", b"api.test")]), 0);
    assert_eq!(ask(b"api.test", b"/", &[(b"host", b"evil.test")]), 421);
    assert_eq!(ask(b"evil.test", b"/", &[]), 421);
    assert_eq!(ask(b"api.test", b"/a HTTP/1.1\r\nHost: evil", &[]), 400);
    assert_eq!(ask(b"api.test", b"/", &[(b"x", b"a\r\nb")]), 400);
    assert_eq!(ask(b"api.test", b"/", &[(b"x:y", b"a")]), 400);
    assert_eq!(ask(b"api.test", b"/", &[(b"", b"a")]), 400);
    assert_eq!(ask(b"api.test", b"/", &[(b"x", b"a\0")]), 400);
}

#[test]
fn t57_every_request_is_judged_alone() {
    let policy = api(&json!([{"match": {"path": {"exact": "/ok"}}, "transform": []}, block()]));
    let admission = open(&policy, "api.test");
    assert_eq!(status(&get("/ok").on(&policy, &admission)), 0);
    assert_eq!(status(&get("/denied").on(&policy, &admission)), 403);
    assert_eq!(status(&get("/ok").on(&policy, &admission)), 0);
}

#[test]
fn t60_t61_t62_methods_that_tunnel_or_echo_are_refused() {
    let policy = api(&json!([injecting()]));
    for method in ["CONNECT", "TRACE", "TRACK", "connect", "Trace"] {
        for target in ["/", "evil.test:443"] {
            assert_eq!(status(&ask(method, target).of(&policy)), 405, "{method}");
        }
    }
    assert_eq!(status(&ask("GE T", "/").of(&policy)), 400);
    assert_eq!(status(&ask("", "/").of(&policy)), 400);
    assert_eq!(status(&ask("OPTIONS", "*").of(&policy)), 0);
    assert_eq!(status(&ask("GET", "*").of(&policy)), 400);
    let asked = get("/")
        .with("connection", "Upgrade, HTTP2-Settings")
        .with("upgrade", "h2c")
        .with("http2-settings", "x");
    let judgement = judge(&policy, &asked);
    assert!(kept(&asked, &judgement).is_empty() && !plan(&judgement).websocket);
    let asked = get("/")
        .with("connection", "Upgrade")
        .with("upgrade", "websocket")
        .with("sec-websocket-extensions", "permessage-deflate");
    let judgement = judge(&policy, &asked);
    assert!(plan(&judgement).websocket && kept(&asked, &judgement).is_empty());
}

#[test]
fn t63_methods_are_compared_exactly_and_overrides_dropped() {
    let policy = api(&json!([{"match": {"method": ["GET"]}, "transform": injecting()["transform"]}, block()]));
    assert_eq!(status(&ask("get", "/").of(&policy)), 403);
    let asked = get("/")
        .with("X-HTTP-Method-Override", "DELETE")
        .with("x_http_method", "DELETE")
        .with("accept", "*/*");
    assert_eq!(kept(&asked, &judge(&policy, &asked)), ["accept"]);
}

#[test]
fn t64_ambiguous_paths_are_refused_where_a_rule_looks_at_paths() {
    let ambiguous = [
        "/a/../b",
        "/a/%2e%2e/b",
        "/a/..%2fb",
        "/a//b",
        "/a/./b",
        "/a/..;/b",
        "/a/..;x=1/b",
        "/a\\..\\b",
        "/a/%5cb",
        "/a/%00",
        "/a/%252e",
        "/a/%c0%ae/",
        "/a/%c0%af",
        "/a/%e0%80%af",
        "/a/%2F",
        "/a/%",
        "/a/%zz",
        "/a/%4",
        "/a/b#c",
        "*",
        "/a/%0d%0a",
        "/a/.",
        "/a/..",
        "/a/%2e",
        "/a/.%2e",
        "/a/%25%32%65",
        "/a/%255c",
        "/a/%ff",
        "/a/\u{e9}",
        "//a/",
        "/a/%2e;x/b",
        "/a/%7f",
        "/a/%252f",
    ];
    for matcher in [
        json!({"exact": "/a/"}),
        json!({"startsWith": "/a/"}),
        json!({"regex": "^/a/"}),
    ] {
        let policy = scoped(&matcher);
        for path in ambiguous {
            let judgement = ask("OPTIONS", path).of(&policy);
            assert_eq!(
                (judgement.reason, status(&judgement)),
                (Reason::AmbiguousPath, 400),
                "{path}"
            );
        }
        assert_eq!(get("/a/").of(&policy).reason, Reason::Inject);
        assert_eq!(
            get("/%61/").of(&policy).reason,
            Reason::Inject,
            "an unreserved escape is what it stands for"
        );
        assert_eq!(status(&get("/A/").of(&policy)), 403);
        assert_eq!(status(&get("/b").of(&policy)), 403);
    }
    let policy = scoped(&json!({"exact": "/a"}));
    assert_eq!(get("/a?x=/../b").of(&policy).reason, Reason::Inject);
    assert_eq!(status(&get("/a%3fx").of(&policy)), 403);
    assert_eq!(status(&get("/a;x").of(&policy)), 403);
    assert_eq!(status(&get("/a%20").of(&policy)), 403);
    // Without a rule about paths the bytes pass as they came.
    let free = api(&json!([injecting()]));
    assert_eq!(plan(&get("/a/%2e%2e/b//%2F").of(&free)).target, b"/a/%2e%2e/b//%2F");
    assert!(!inspect_path(b"/a;x/b%20c/").is_ambiguous());
}

#[test]
fn t64_rules_may_allow_encoded_slashes_and_nothing_else_with_them() {
    let rules = json!([
        {"match": {"path": {"startsWith": "/admin"}}, "response": {"statusCode": 403}},
        {"match": {"path": {"startsWith": "/files/"}}, "transform": injecting()["transform"], "allowEncodedSlash": true, "allowEmptySegments": true},
    ]);
    let policy = api(&rules);
    let judgement = get("/files/a%2fb//c").of(&policy);
    assert_eq!(
        (judgement.reason, plan(&judgement).target.as_slice()),
        (Reason::Inject, &b"/files/a%2fb//c"[..])
    );
    for path in [
        "/files/..%2fadmin",
        "/files/%2e%2e%2fadmin",
        "/%2fadmin",
        "/files/%252fadmin",
        "/admin%2fx",
        "//files/a",
    ] {
        assert_eq!(get(path).of(&policy).reason, Reason::AmbiguousPath, "{path}");
    }
}

#[test]
fn t67_query_parameters_are_decoded_and_repeats_do_not_help() {
    let rules = json!([{"match": {"queryString": [{"key": {"exact": "team id"}, "value": {"exact": "7&8"}}]}, "transform": injecting()["transform"]}]);
    let policy = api(&rules);
    for (target, reason) in [
        ("/?team+id=7%268", Reason::Inject),
        ("/?x=1&team%20id=7%268", Reason::Inject),
        ("/?team+id=7&team+id=8", Reason::PassUnmatched),
        ("/?TEAM+ID=7%268", Reason::PassUnmatched),
        ("/?team+id=7", Reason::PassUnmatched),
        ("/?7%268=team+id", Reason::PassUnmatched),
        ("/", Reason::PassUnmatched),
    ] {
        assert_eq!(get(target).of(&policy).reason, reason, "{target}");
    }
    let twice = get("/?team+id=1&team+id=7%268").of(&policy);
    assert!(
        twice.duplicates && twice.reason == Reason::Inject,
        "any value may match"
    );
    let mut strict = json!({"allow": {"api.test": rules}, "defaults": {"unmatched": "deny"}});
    let twice = get("/?team+id=1&team+id=7%268").of(&effective(&strict));
    assert!(twice.duplicates && twice.reason == Reason::Unmatched);
    // A rule that blocks is not evaded by saying it twice.
    strict["allow"]["api.test"] = json!([{"match": {"queryString": [{"key": {"exact": "x"}, "value": {"exact": "1"}}]}, "response": {"statusCode": 451}}, {"transform": []}]);
    assert_eq!(status(&get("/?x=1&x=2").of(&effective(&strict))), 451);
}

#[test]
fn t68_key_and_value_hold_for_one_header() {
    let policy = api(
        &json!([{"match": {"headers": [{"key": {"exact": "X-Team"}, "value": {"exact": "blue"}}]}, "transform": injecting()["transform"]}]),
    );
    let reason = |headers: &[(&'static str, &'static str)]| {
        let mut asked = get("/");
        asked.headers.extend(headers);
        judge(&policy, &asked).reason
    };
    assert_eq!(reason(&[("x-team", "red")]), Reason::PassUnmatched);
    assert_eq!(reason(&[("x-other", "blue")]), Reason::PassUnmatched);
    assert_eq!(reason(&[("x-team", "red"), ("x-other", "blue")]), Reason::PassUnmatched);
    assert_eq!(reason(&[("x-team", "red, blue")]), Reason::PassUnmatched);
    assert_eq!(reason(&[("X-TEAM", "blue")]), Reason::Inject);
    assert_eq!(reason(&[("x-team", "Blue")]), Reason::PassUnmatched);
}

#[test]
fn t69_every_spelling_of_an_injected_header_is_replaced() {
    let policy = api(&json!([{"transform": [{"headers": {"X-Api-Key": KEY}}]}]));
    let asked = get("/")
        .with("x-api-key", "1")
        .with("X-API-KEY", "2")
        .with("X_Api_Key", "3")
        .with("x-api_key", "4")
        .with("x-api-key2", "5");
    let judgement = judge(&policy, &asked);
    assert_eq!(kept(&asked, &judgement), ["x-api-key2"]);
    assert_eq!(plan(&judgement).set.len(), 1);
}

#[test]
fn t70_nominated_headers_go_before_injection() {
    let policy = api(&json!([injecting()]));
    let asked = get("/")
        .with("connection", "close, Authorization, x-secret")
        .with("authorization", "mine")
        .with("x_secret", "y")
        .with("accept", "*/*");
    let judgement = judge(&policy, &asked);
    assert_eq!(kept(&asked, &judgement), ["accept"]);
    assert_eq!(plan(&judgement).set[0].name, "authorization");
}

#[test]
fn t71_headers_of_the_path_and_of_identity_are_stripped() {
    let policy = api(
        &json!([{"match": {"headers": [{"key": {"startsWith": "vercel-"}}]}, "response": {"statusCode": 451}}, {"forwardURL": "https://proxy.test/in/"}]),
    );
    let mut asked = ask("POST", "/a?b=1");
    for name in [
        "Forwarded",
        "X-Forwarded-For",
        "x-forwarded-host",
        "Via",
        "Proxy-Authorization",
        "TE",
        "Max-Forwards",
        "vercel-forwarded-host",
        "Vercel_Sandbox_Oidc_Token",
        "x-egress-forwarded-path",
        "x-hutch-reason",
        "Keep-Alive",
        "Transfer-Encoding",
        "content-length",
    ] {
        asked = asked.with(name, "evil");
    }
    let asked = asked.with("content-type", "text/plain");
    let judgement = judge(&policy, &asked);
    assert_eq!(kept(&asked, &judgement), ["content-type"]);
    let Outcome::Forward(forward, _) = &judgement.outcome else {
        panic!("{judgement:?}")
    };
    assert_eq!(forward.target, b"/in/a?b=1");
    assert_eq!(forward.host(), "proxy.test");
    let said = |name: &str| {
        forward
            .identity
            .iter()
            .find(|(other, _)| *other == name)
            .unwrap()
            .1
            .as_str()
    };
    for family in ["vercel", "x-egress"] {
        assert_eq!(said(&format!("{family}-forwarded-host")), "api.test");
        assert_eq!(said(&format!("{family}-forwarded-scheme")), "https");
        assert_eq!(said(&format!("{family}-forwarded-port")), "443");
        assert_eq!(said(&format!("{family}-forwarded-path")), "/a?b=1");
    }
}

#[test]
fn t77_responses_to_injected_requests_can_be_searched() {
    let asked = get("/")
        .with("Accept-Encoding", "gzip, br")
        .with("Range", "bytes=10-14")
        .with("If-Range", "x")
        .with("accept", "*/*");
    let policy = api(&json!([injecting()]));
    let judgement = judge(&policy, &asked);
    assert!(plan(&judgement).scrub);
    assert_eq!(kept(&asked, &judgement), ["accept"]);
    let mut off = injecting();
    off["scrub"] = json!(false);
    for rules in [
        json!([off]),
        json!([{"match": {"path": {"exact": "/other"}}, "transform": injecting()["transform"]}]),
    ] {
        let judgement = judge(&api(&rules), &asked);
        assert!(!plan(&judgement).scrub);
        assert_eq!(kept(&asked, &judgement).len(), 4);
    }
}

#[test]
fn t80_the_match_scopes_the_credential() {
    let policy = scoped(&json!({"startsWith": "/v1/chat/"}));
    assert_eq!(get("/v1/chat/x").of(&policy).reason, Reason::Inject);
    assert_eq!(status(&ask("POST", "/v1/keys").of(&policy)), 403);
    let open_ended =
        api(&json!([{"match": {"path": {"startsWith": "/v1/chat/"}}, "transform": injecting()["transform"]}]));
    assert!(!plan(&ask("POST", "/v1/keys").of(&open_ended)).injects());
}

fn placeholder() -> Vec<Placeholder> {
    vec![Placeholder {
        text: "hutch-ph-5d1f".into(),
        variable: "TOKEN".into(),
        credential: "KEY".into(),
    }]
}

fn with_placeholder() -> Value {
    json!([{"match": {"path": {"startsWith": "/v1/"}}, "transform": [{"headers": {"authorization": {"credential": "KEY", "format": "Bearer {}", "placeholder": "TOKEN"}}}]}])
}

#[test]
fn t82_without_the_placeholder_nothing_is_added() {
    let policy = api(&with_placeholder());
    let asked = Asked {
        placeholders: placeholder(),
        ..get("/v1/x")
    }
    .with("authorization", "Bearer guess");
    let judgement = judge(&policy, &asked);
    assert!(!plan(&judgement).injects() && plan(&judgement).set.is_empty());
    let asked = Asked {
        placeholders: placeholder(),
        ..get("/v1/x?a=hutch-ph-5d1f")
    }
    .with("authorization", "Bearer hutch-ph-5d1f");
    let judgement = judge(&policy, &asked);
    let places: Vec<Place> = plan(&judgement)
        .replace
        .iter()
        .map(|replacement| replacement.place)
        .collect();
    assert_eq!(places, [Place::Header(1), Place::Query]);
    assert_eq!(judgement.reason, Reason::Inject);
    // "user:hutch-ph-5d1f"
    let asked = Asked {
        placeholders: placeholder(),
        ..get("/v1/x")
    }
    .with("authorization", "Basic dXNlcjpodXRjaC1waC01ZDFm");
    assert_eq!(plan(&judge(&policy, &asked)).replace[0].place, Place::Basic(1));
}

#[test]
fn t83_placeholders_elsewhere_are_refused() {
    let policy = effective(&json!({"allow": {"api.test": with_placeholder(), "other.test": [{"transform": []}]}}));
    let misuse = |asked: Asked| {
        judge(
            &policy,
            &Asked {
                placeholders: placeholder(),
                ..asked
            },
        )
        .reason
    };
    assert_eq!(
        misuse(get("/other").with("authorization", "Bearer hutch-ph-5d1f")),
        Reason::PlaceholderMisuse
    );
    assert_eq!(misuse(get("/v1/hutch-ph-5d1f")), Reason::PlaceholderMisuse);
    assert_eq!(misuse(get("/other?x=hutch-ph-5d1f")), Reason::PlaceholderMisuse);
    assert_eq!(
        misuse(get("/v1/").with("hutch-ph-5d1f", "x")),
        Reason::PlaceholderMisuse
    );
    let other = open(&policy, "other.test");
    for (name, value) in [
        ("authorization", "Bearer hutch-ph-5d1f"),
        ("authorization", "Basic dXNlcjpodXRjaC1waC01ZDFm"),
        ("cookie", "a=hutch-ph-5d1f"),
        ("connection", "hutch-ph-5d1f"),
    ] {
        let asked = Asked {
            placeholders: placeholder(),
            ..get("/")
        }
        .host("other.test")
        .with(name, value);
        assert_eq!(asked.on(&policy, &other).reason, Reason::PlaceholderMisuse, "{name}");
    }
}

#[test]
fn credentials_fail_closed() {
    let policy = api(
        &json!([{"transform": [{"headers": {"authorization": {"credential": "KEY", "format": "Basic {base64}"}}}]}]),
    );
    let with = |credential| judge(&policy, &Asked { credential, ..get("/") });
    assert_eq!(value(&plan(&with(present)).set[0].value), "credential KEY");
    let missing = with(|_| CredentialState::Missing);
    assert_eq!((missing.reason, status(&missing)), (Reason::CredentialMissing, 503));
    let reflected = with(|_| CredentialState::Reflected);
    assert_eq!(
        (reflected.reason, status(&reflected)),
        (Reason::CredentialReflected, 403)
    );
}

#[test]
fn parameters_are_set_once_and_the_rest_of_the_query_stays() {
    let policy = api(&json!([{"transform": [{"queryString": {"key": {"credential": "KEY"}}}]}]));
    let judgement = get("/x?a=%7e&k%65y=mine&b=+").of(&policy);
    assert_eq!(plan(&judgement).target, b"/x?a=%7e&b=+");
    assert_eq!(plan(&judgement).query[0].name, "key");
}

#[test]
fn a_pinned_host_replaces_the_name() {
    let policy = effective(&json!({"allow": {"*.api.test": [{"transform": [{"headers": {"Host": "eu.api.test"}}]}]}}));
    let admission = open(&policy, "us.api.test");
    let judgement = get("/").host("us.api.test").on(&policy, &admission);
    assert_eq!(plan(&judgement).host, "eu.api.test");
    assert!(plan(&judgement).set.is_empty());
}

#[test]
fn bounds_judge_requests_before_the_tenant_does() {
    let limits = json!({
        "allow": {"api.test": [{"match": {"method": ["GET"]}, "transform": []}]},
        "defaults": {"unmatched": "deny"},
    });
    let policy = within(
        &[limits],
        &json!({"allow": {"api.test": [injecting()], "proxy.test": []}}),
    );
    assert_eq!(get("/").of(&policy).reason, Reason::Inject);
    assert_eq!(ask("POST", "/").of(&policy).reason, Reason::Unmatched);
    let policy = within(
        &[json!({"allow": ["api.test"]})],
        &json!({"allow": {"api.test": [{"forwardURL": "https://proxy.test"}]}}),
    );
    assert_eq!(
        get("/").of(&policy).reason,
        Reason::DomainDeny,
        "a forwardURL is no way out of the bounds"
    );
    // What the tenant admits as raw bytes is still judged by bounds that have rules.
    let limits = json!({"allow": {"api.test": [block()]}, "subnets": {}});
    let policy = within(&[limits], &json!("allow-all"));
    let admission = connect(&policy, "198.51.100.7:443", &tls("api.test")).unwrap();
    assert_eq!(status(&get("/").on(&policy, &admission)), 403);
}

#[test]
fn plaintext_requests_are_judged_without_injection() {
    let policy = effective(
        &json!({"allow": {"api.test": [{"match": {"path": {"startsWith": "/debian/"}}, "transform": []}, block()]}, "defaults": {"plaintextHttp": true}}),
    );
    let admission = connect(
        &policy,
        "198.51.100.7:80",
        &hutch_policy::Sniffed::Http {
            host: Some(b"api.test"),
        },
    )
    .unwrap();
    let judgement = get("/debian/x").on(&policy, &admission);
    assert_eq!(plan(&judgement).host, "api.test");
    assert_eq!(status(&get("/other").on(&policy, &admission)), 403);
    assert_eq!(status(&get("/debian/x").host("evil.test").on(&policy, &admission)), 421);
}

#[test]
fn limits_of_rules_are_reported() {
    let policy = api(&json!([{"transform": [], "limits": {"upBytes": 10, "downBytes": 20}}]));
    let limits = get("/").of(&policy).limits;
    assert_eq!((limits.up_bytes, limits.down_bytes), (Some(10), Some(20)));
}

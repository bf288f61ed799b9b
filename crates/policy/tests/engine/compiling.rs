//! Every form of a policy, and everything that is refused.

use hutch_policy::{Action, Context, HardDeny, Mode, Policy, Role, compile};
use serde_json::{Value, json};

use super::support::{KEY, effective, injecting, refused, tenant, try_compile, warned};

fn rule(rule: &Value) -> Value {
    json!({"allow": {"api.test": [rule]}})
}

#[test]
fn all_request_forms_are_understood() {
    let forms = [
        (json!("allow-all"), Mode::AllowAll),
        (json!("deny-all"), Mode::DenyAll),
        (json!({"mode": "allow-all"}), Mode::AllowAll),
        (json!({"mode": "deny-all"}), Mode::DenyAll),
        (json!({"mode": "allow-all", "limits": {"upBytes": 5}}), Mode::AllowAll),
        (json!({"allow": ["api.test"]}), Mode::Custom),
        (json!({"allow": {"api.test": [], "*.cdn.test": null}}), Mode::Custom),
        (
            json!({"subnets": {"allow": ["203.0.113.0/24"], "deny": ["203.0.113.9/32"]}}),
            Mode::Custom,
        ),
        (
            json!({"mode": "custom", "allowedDomains": ["api.test"], "allowedCIDRs": [], "deniedCIDRs": null}),
            Mode::Custom,
        ),
        (
            json!({"mode": "default-deny", "allowedDomains": ["api.test"]}),
            Mode::Custom,
        ),
        (
            json!({"mode": "default-allow", "deniedCIDRs": ["203.0.113.0/24"]}),
            Mode::Custom,
        ),
        (json!({"allow": null, "subnets": null}), Mode::Custom),
    ];
    for (form, mode) in forms {
        assert_eq!(tenant(&form).mode(), mode, "{form}");
    }
    assert_eq!(
        tenant(&json!({"allow": ["api.test"]})).hash(),
        tenant(&json!({"allow": {"API.test.": []}})).hash()
    );
    assert_eq!(
        tenant(&json!({"mode": "default-allow"})).hash(),
        tenant(&json!({"allow": ["*"]})).hash()
    );
    assert_eq!(
        tenant(&json!({"mode": "custom", "injectionRules": [{"domain": "api.test", "headers": {"x-key": KEY}}]}))
            .hash(),
        tenant(&json!({"allow": {"api.test": [{"transform": [{"headers": {"x-key": KEY}}]}]}})).hash(),
    );
    assert_eq!(*tenant(&json!("deny-all")).read_back(), *Policy::deny_all().read_back());
}

#[test]
fn a_refusal_is_one_line_whatever_a_name_has_in_it() {
    let error = refused(&json!({"subnets": {"al\nlow\u{1b}[2J": []}}));
    assert_eq!(error.pointer, "/subnets/al\nlow\u{1b}[2J");
    assert!(error.to_string().starts_with(r"/subnets/al\nlow\u{1b}[2J "), "{error}");
}

#[test]
fn t92_empty_policies_are_closed() {
    for form in [
        json!({}),
        json!({"allow": {}}),
        json!({"allow": []}),
        json!({"subnets": {}}),
        json!({"subnets": {"deny": ["203.0.113.0/24"]}}),
        json!({"mode": "custom"}),
        json!({"mode": "default-deny", "allowedDomains": []}),
        json!({"allow": null}),
        json!({"dns": {"open": true}}),
    ] {
        assert!(tenant(&form).is_empty(), "{form}");
        let step = effective(&form).accept(&super::support::to("198.51.100.7:443"));
        assert_eq!(
            step,
            hutch_policy::Step::Refuse(hutch_policy::Reason::DenyAll),
            "{form}"
        );
    }
}

fn assert_refused(table: &[(Value, &str)]) {
    for (policy, pointer) in table {
        let error = refused(policy);
        // The test's own JSON library orders names, so that of two names the one refused is the later in that order.
        assert_eq!(
            (error.pointer.as_str(), error.code),
            (*pointer, "invalid_network_policy"),
            "{policy}: {error}"
        );
        assert!(!error.message.is_empty() && !error.message.ends_with('.'), "{error}");
    }
}

#[test]
fn t91_every_refusal_names_its_place() {
    let table = [
        (json!(7), ""),
        (json!("open"), ""),
        (json!([]), ""),
        (json!({"mode": "open"}), "/mode"),
        (json!({"mode": "allow-all", "allow": []}), "/allow"),
        (json!({"alow": []}), "/alow"),
        (json!({"allow": 7}), "/allow"),
        (json!({"allow": ["api.test", 7]}), "/allow/1"),
        (json!({"allow": ["127.0.0.1"]}), "/allow/0"),
        (json!({"allow": {"api*.test": []}}), "/allow/api*.test"),
        (json!({"allow": {"api.test": [], "API.test": []}}), "/allow/api.test"),
        (json!({"allow": {"a/b~c": []}}), "/allow/a~1b~0c"),
        (
            json!({"subnets": {"allow": ["203.0.113.0/24", "203.0.113.1/24"]}}),
            "/subnets/allow/1",
        ),
        (json!({"subnets": {"deny": ["nonsense"]}}), "/subnets/deny/0"),
        (json!({"subnets": {"allow": ["10.0.0.0/8"]}}), "/subnets/allow/0"),
        (json!({"defaults": {"ports": [443, 0]}}), "/defaults/ports/1"),
        (json!({"defaults": {"ports": [25]}}), "/defaults/ports/0"),
        (json!({"defaults": {"inspect": "some"}}), "/defaults/inspect"),
        (
            json!({"dns": {"mode": "virtual"}, "subnets": {"allow": ["203.0.113.0/24"]}}),
            "/dns",
        ),
        (json!({"limits": {"upBytes": -1}}), "/limits/upBytes"),
        (json!({"block": ["a.test"]}), "/block"),
    ];
    assert_refused(&table);
}

#[test]
fn t91_every_refusal_of_a_rule_names_its_place() {
    let with = |name: &str, value: &str| rule(&json!({"transform": [{"headers": {name: value}}]}));
    let table = [
        (rule(&json!({})), "/allow/api.test/0"),
        (rule(&json!({"match": {}})), "/allow/api.test/0"),
        (
            rule(&json!({"transform": [], "forwardURL": "https://p.test"})),
            "/allow/api.test/0",
        ),
        (
            rule(&json!({"transform": [], "surprise": 1})),
            "/allow/api.test/0/surprise",
        ),
        (
            rule(&json!({"transform": [], "match": {"path": {}}})),
            "/allow/api.test/0/match/path",
        ),
        (
            rule(&json!({"transform": [], "match": {"path": {"exact": "/", "regex": "x"}}})),
            "/allow/api.test/0/match/path",
        ),
        (
            rule(&json!({"transform": [], "match": {"method": []}})),
            "/allow/api.test/0/match/method",
        ),
        (
            rule(&json!({"transform": [], "match": {"method": ["G T"]}})),
            "/allow/api.test/0/match/method/0",
        ),
        (
            rule(&json!({"transform": [], "match": {"headers": [{"key": {"regex": "("}}]}})),
            "/allow/api.test/0/match/headers/0/key/regex",
        ),
        (with("connection", "x"), "/allow/api.test/0"),
        (with("Transfer-Encoding", "chunked"), "/allow/api.test/0"),
        (with("content_length", "5"), "/allow/api.test/0"),
        (with("proxy-authorization", KEY), "/allow/api.test/0"),
        (with("vercel-forwarded-host", "api.test"), "/allow/api.test/0"),
        (with("X_Hutch_Reason", "x"), "/allow/api.test/0"),
        (with("host", "evil.test"), "/allow/api.test/0"),
        (with("bad name", "x"), "/allow/api.test/0/transform/0/headers/bad name"),
        (with("x-key", "a\r\nb"), "/allow/api.test/0/transform/0/headers/x-key"),
        (
            rule(&json!({"transform": [{"headers": {"X-Key": "1", "x-key": "2"}}]})),
            "/allow/api.test/0/transform/0/headers/x-key",
        ),
        (
            rule(&json!({"transform": [{"headers": {"x": {"credential": "K", "format": "none"}}}]})),
            "/allow/api.test/0/transform/0/headers/x/format",
        ),
        (
            rule(&json!({"transform": [{"headers": {"x": {"credential": "a b"}}}]})),
            "/allow/api.test/0/transform/0/headers/x/credential",
        ),
        (
            rule(&json!({"transform": [{"headers": {"x": {"credential": "K", "placeholder": "1A"}}}]})),
            "/allow/api.test/0/transform/0/headers/x/placeholder",
        ),
        (
            rule(&json!({"forwardURL": "http://p.test"})),
            "/allow/api.test/0/forwardURL",
        ),
        (
            rule(&json!({"forwardURL": "https://p.test/x?y"})),
            "/allow/api.test/0/forwardURL",
        ),
        (
            rule(&json!({"forwardURL": "https://u:p@p.test/"})),
            "/allow/api.test/0/forwardURL",
        ),
        (
            rule(&json!({"forwardURL": "https://p.test/#f"})),
            "/allow/api.test/0/forwardURL",
        ),
        (
            rule(&json!({"forwardURL": "https://p.test/a/../b"})),
            "/allow/api.test/0/forwardURL",
        ),
    ];
    assert_refused(&table);
}

#[test]
fn t91_every_refusal_of_a_response_or_pattern_names_its_place() {
    let response = |response: &Value| rule(&json!({"response": response}));
    let table = [
        (
            response(&json!({"statusCode": 199})),
            "/allow/api.test/0/response/statusCode",
        ),
        (
            response(&json!({"statusCode": 200.5})),
            "/allow/api.test/0/response/statusCode",
        ),
        (
            response(&json!({"statusCode": 200, "body": "x"})),
            "/allow/api.test/0/response/body",
        ),
        (
            response(&json!({"statusCode": 204, "body": "x", "contentType": "text/plain"})),
            "/allow/api.test/0/response/body",
        ),
        (
            response(&json!({"statusCode": 200, "headers": {"Content-Length": "1"}})),
            "/allow/api.test/0/response/headers/Content-Length",
        ),
        (
            response(&json!({"statusCode": 200, "headers": {"x-a": "1", "X-A": "2"}})),
            "/allow/api.test/0/response/headers/x-a",
        ),
        (json!({"allow": {"*": [injecting()]}}), "/allow/*/0"),
        (json!({"allow": {"*.co.uk": [injecting()]}}), "/allow/*.co.uk/0"),
        (
            json!({"allow": {"api.test": [injecting()]}, "defaults": {"ports": [80, 5432]}}),
            "/allow/api.test/0",
        ),
        (
            json!({"mode": "custom", "injectionRules": [{"headers": {}}]}),
            "/injectionRules/0",
        ),
        (
            json!({"mode": "custom", "injectionRules": [{"domain": "api.test", "headerNames": ["x"]}]}),
            "/injectionRules/0/headerNames",
        ),
    ];
    assert_refused(&table);
}

#[test]
fn repeated_members_are_refused() {
    let hard_deny = HardDeny::default();
    let context = Context {
        hard_deny: &hard_deny,
        previous: None,
        role: Role::Tenant,
    };
    let error = compile(br#"{"allow": ["a.test"], "allow": ["b.test"]}"#, &context).unwrap_err();
    assert_eq!(error.pointer, "/allow");
    let error = compile(br#"{"allow": {"a.test": [], "a.test": []}}"#, &context).unwrap_err();
    assert_eq!(error.pointer, "/allow/a.test");
    for broken in [&b""[..], b"{", b"{\"allow\": [\xff]}", b"[[[[", b"nul", b"{} x"] {
        assert!(compile(broken, &context).is_err());
    }
    assert!(compile("[".repeat(100_000).as_bytes(), &context).is_err());
}

#[test]
fn sizes_are_bounded() {
    let domains: Vec<String> = (0..1001).map(|index| format!("a{index}.test")).collect();
    assert_eq!(refused(&json!({"allow": domains})).pointer, "/allow");
    tenant(&json!({"allow": domains[..1000]}));
    let rules = vec![json!({"transform": []}); 65];
    assert_eq!(
        refused(&json!({"allow": {"api.test": rules}})).pointer,
        "/allow/api.test"
    );
    let ranges: Vec<String> = (0..257)
        .map(|index| format!("203.0.{}.{}/32", 113 + index / 256, index % 256))
        .collect();
    assert_eq!(
        refused(&json!({"subnets": {"allow": ranges}})).pointer,
        "/subnets/allow"
    );
    assert_eq!(
        refused(&rule(
            &json!({"response": {"statusCode": 200, "contentType": "x", "body": "x".repeat(1 << 20)}})
        ))
        .pointer,
        ""
    );
    let regex = |text: &str| rule(&json!({"transform": [], "match": {"path": {"regex": text}}}));
    assert!(refused(&regex(&"a".repeat(1025))).message.contains("1024"));
    assert!(refused(&regex("(x{1000}){1000}")).pointer.ends_with("regex"));
    let many: serde_json::Map<String, Value> = (0..100)
        .map(|index| {
            (
                format!("a{index}.test"),
                json!(vec![
                    json!({"transform": [], "match": {"path": {"regex": format!("^[a-z]{{300}}{index}")}}});
                    1
                ]),
            )
        })
        .collect();
    assert!(try_compile(&json!({"allow": many}), Role::Tenant, None).is_ok());
    let heavy: serde_json::Map<String, Value> = (0..900)
        .map(|index| {
            (
                format!("a{index}.test"),
                json!([{"transform": [], "match": {"path": {"regex": format!("^[^/]{{900}}[a-z]{{900}}{index}")}}}]),
            )
        })
        .collect();
    assert!(refused(&json!({"allow": heavy})).message.contains("together"));
}

#[test]
fn t65_prefixes_without_a_slash_are_warned_about() {
    let starts = |prefix: &str| rule(&json!({"match": {"path": {"startsWith": prefix}}, "transform": []}));
    assert_eq!(
        warned(&starts("/v1")),
        [("/allow/api.test/0/match/path".to_owned(), "prefix_without_slash")]
    );
    assert_eq!(warned(&starts("/v1/")), []);
}

#[test]
fn t66_expressions_are_those_of_re2_and_take_linear_time() {
    let regex = |text: &str| rule(&json!({"match": {"headers": [{"value": {"regex": text}}]}, "transform": []}));
    for bad in [
        r"(a)\1",
        "(?=a)",
        "(?<!a)b",
        "(?>a)",
        "a++b(",
        "[a-z&&[^b]]",
        "[[a]]",
        "(?x)a b",
        "(?R)a",
        r"\b{start}a",
        r"\<a",
        r"\p{Greek}",
        "a{1001}",
        "a{,3}",
        "[a--b]",
        "[a~~b]",
    ] {
        assert!(try_compile(&regex(bad), Role::Tenant, None).is_err(), "{bad}");
    }
    for good in [
        r"^/v1/[^/]+$",
        r"(?i)bearer\s+\S+",
        "(?P<name>a|b)*?",
        r"a{2,5}",
        r"[[:alpha:]]x",
        r"\d\w\s\b",
        "a++",
    ] {
        assert!(try_compile(&regex(good), Role::Tenant, None).is_ok(), "{good}");
    }
    let policy = effective(&regex("(a+)+$"));
    let long = "a".repeat(64 << 10) + "!";
    let begin = std::time::Instant::now();
    super::support::get("/").with("x-long", &long).of(&policy);
    // Backtracking would take longer than the universe has been there; the bound leaves room for a slow machine.
    assert!(begin.elapsed().as_millis() < 1000, "{:?}", begin.elapsed());
}

#[test]
fn t78_short_values_are_not_scrubbed_and_say_so() {
    let with = |scrub: Value| rule(&json!({"transform": [{"headers": {"x-env": "prod"}}], "scrub": scrub}));
    assert_eq!(
        warned(&with(json!(null))),
        [("/allow/api.test/0".to_owned(), "value_too_short_to_scrub")]
    );
    assert_eq!(warned(&with(json!(false))), []);
    assert_eq!(refused(&with(json!(true))).pointer, "/allow/api.test/0");
}

#[test]
fn t81_names_that_strangers_share_are_warned_about() {
    for domain in [
        "api.github.com",
        "*.blob.core.windows.net",
        "bucket.s3.amazonaws.com",
        "huggingface.co",
    ] {
        let policy = json!({"allow": {domain: [{"transform": injecting()["transform"], "acknowledgeBroad": true}]}});
        assert_eq!(
            warned(&policy),
            [(format!("/allow/{domain}/0"), "multi_tenant")],
            "{domain}"
        );
    }
    let scoped = json!({"allow": {"api.github.com": [{"match": {"path": {"startsWith": "/repos/me/"}}, "transform": injecting()["transform"]}]}});
    assert_eq!(warned(&scoped), []);
}

#[test]
fn t84_values_cannot_end_a_header() {
    for value in ["a\r\nb", "a\nb", "a\0b", "a\u{7f}b"] {
        refused(&rule(&json!({"transform": [{"headers": {"x-key": value}}]})));
        refused(&rule(
            &json!({"transform": [{"headers": {"x-key": {"credential": "K", "format": format!("{value}{{}}")}}}]}),
        ));
        refused(&rule(
            &json!({"response": {"statusCode": 200, "headers": {"x-key": value}}}),
        ));
        refused(&rule(&json!({"response": {"statusCode": 200, "contentType": value}})));
    }
}

#[test]
fn other_warnings_name_their_place() {
    let shadowed = json!({"allow": {"api.test": [{"transform": []}, {"response": {"statusCode": 403}}]}});
    assert_eq!(warned(&shadowed), [("/allow/api.test/1".to_owned(), "shadowed_rule")]);
    assert_eq!(
        warned(&json!({"allow": ["localhost"]})),
        [("/allow/0".to_owned(), "never_resolves")]
    );
    let added = json!({"mode": "custom", "injectionRules": [{"domain": "api.test", "headers": {"x-key": KEY}}]});
    assert_eq!(
        warned(&added),
        [("/injectionRules/0/domain".to_owned(), "rule_adds_domain")]
    );
}

#[test]
fn acknowledged_broad_patterns_and_pinned_hosts_are_accepted() {
    tenant(&json!({"allow": {"*": [{"transform": injecting()["transform"], "acknowledgeBroad": true}]}}));
    tenant(&json!({"allow": {"*.api.test": [{"transform": [{"headers": {"Host": "eu.api.test:443"}}]}]}}));
    tenant(&json!({"allow": {"*": [{"response": {"statusCode": 403}}]}}));
    let policy = tenant(&rule(
        &json!({"transform": [{"headers": {"a": "1"}}, {"headers": {"A": "2"}}]}),
    ));
    let Action::Transform(transform) = &policy.patterns().next().unwrap().1[0].action else {
        panic!()
    };
    assert_eq!(transform.headers.len(), 1);
}

#[test]
fn bounds_may_block_and_must_not_inject() {
    assert!(try_compile(&json!({"block": ["evil.test"], "allow": ["*"]}), Role::Bounds, None).is_ok());
    assert!(try_compile(&rule(&injecting()), Role::Bounds, None).is_err());
    assert!(try_compile(&rule(&json!({"forwardURL": "https://p.test"})), Role::Bounds, None).is_err());
}

#[test]
fn credentials_and_placeholders_are_listed() {
    let header = |name: &str, variable: &str| json!({"transform": [{"headers": {"authorization": {"credential": name, "placeholder": variable}}}]});
    let policy = tenant(
        &json!({"allow": {"a.test": [header("ONE", "A")], "b.test": [header("TWO", "B")], "c.test": [header("ONE", "A")]}}),
    );
    assert_eq!(policy.credentials(), ["ONE", "TWO"]);
    assert_eq!(policy.placeholders(), [("A", "ONE"), ("B", "TWO")]);
    refused(&json!({"allow": {"a.test": [header("ONE", "A")], "b.test": [header("TWO", "A")]}}));
}

//! What clients read, and that they may send it again.

use std::sync::Arc;

use hutch_policy::{Change, EffectivePolicy, HardDeny, Role, diff};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::support::{KEY, any_policy, injecting, tenant, try_compile};

fn read(policy: &Value) -> Value {
    serde_json::from_str(&tenant(policy).read_back()).unwrap()
}

#[test]
fn the_read_form_is_the_vendors() {
    assert_eq!(read(&json!("allow-all")), json!({"mode": "allow-all"}));
    assert_eq!(read(&json!({})), json!({"mode": "custom"}));
    assert_eq!(
        read(
            &json!({"allow": ["example.com", "api.github.com"], "subnets": {"allow": ["203.0.113.0/24"], "deny": ["10.0.0.0/8"]}})
        ),
        json!({"mode": "custom", "allowedDomains": ["example.com", "api.github.com"], "allowedCIDRs": ["203.0.113.0/24"], "deniedCIDRs": ["10.0.0.0/8"]}),
    );
    let form = read(&json!({"allow": {"a.test": [
        {"match": {"method": ["GET"]}, "forwardURL": "https://p.test/x"},
        {"match": {"path": {"startsWith": "/v1/"}}, "transform": [{"headers": {"X-Key": KEY}}]},
        {"response": {"statusCode": 403}},
    ]}}));
    assert_eq!(
        form["forwardRules"],
        json!([{"domain": "a.test", "forwardURL": "https://p.test/x", "match": {"method": ["GET"]}}])
    );
    assert_eq!(
        form["injectionRules"],
        json!([{"domain": "a.test", "headerNames": ["X-Key"], "match": {"path": {"startsWith": "/v1/"}}}])
    );
    assert_eq!(form["responseRules"], json!([{"domain": "a.test", "statusCode": 403}]));
}

#[test]
fn domains_keep_their_order_also_in_a_record() {
    let text = r#"{"allow": {"z.test": [], "a.test": [{"transform": []}], "m.test": []}}"#;
    let hard_deny = HardDeny::default();
    let context = hutch_policy::Context {
        hard_deny: &hard_deny,
        previous: None,
        role: Role::Tenant,
    };
    let policy = hutch_policy::compile(text.as_bytes(), &context).unwrap().policy;
    let form: Value = serde_json::from_str(&policy.read_back()).unwrap();
    assert_eq!(form["allowedDomains"], json!(["z.test", "a.test", "m.test"]));
}

#[test]
fn t96_no_value_is_ever_shown() {
    let policy = tenant(&json!({"allow": {"api.test": [injecting(), {"transform": [{"queryString": {"key": KEY}}]}]}}));
    for text in [policy.read_back(), format!("{policy:?}"), policy.hash().to_string()] {
        assert!(!text.contains(KEY), "{text}");
    }
    let other = tenant(
        &json!({"allow": {"api.test": [{"transform": [{"headers": {"authorization": "something else"}}]}, {"transform": [{"queryString": {"key": "another"}}]}]}}),
    );
    // The hash is in audit records, where it must not let anybody try out values.
    assert_eq!(policy.hash(), other.hash());
}

#[test]
fn redacted_values_come_back_only_for_the_same_rule() {
    let old = tenant(&json!({"allow": {"api.test": [injecting()]}}));
    let redacted = |domain: &str, matcher: Value| json!({"allow": {domain: [{"match": matcher, "transform": [{"headers": {"authorization": "<redacted>"}}]}]}});
    let again = try_compile(&redacted("api.test", json!(null)), Role::Tenant, Some(&old))
        .unwrap()
        .policy;
    assert_eq!(again.hash(), old.hash());
    let evil = try_compile(&redacted("evil.test", json!(null)), Role::Tenant, Some(&old)).unwrap_err();
    assert_eq!(evil.pointer, "/allow/evil.test/0");
    assert!(
        try_compile(
            &redacted("api.test", json!({"method": ["GET"]})),
            Role::Tenant,
            Some(&old)
        )
        .is_err()
    );
    assert!(try_compile(&redacted("api.test", json!(null)), Role::Tenant, None).is_err());
}

#[test]
fn an_edit_beside_the_exact_form_is_not_ignored() {
    let old = tenant(&json!({"allow": {"api.test": [injecting()], "cdn.test": []}}));
    let mut form: Value = serde_json::from_str(&old.read_back()).unwrap();
    form["hutch"]["generation"] = json!(3);
    form["hutch"]["bounded"] = json!(true);
    assert_eq!(
        try_compile(&form, Role::Tenant, Some(&old)).unwrap().policy.hash(),
        old.hash()
    );
    form["allowedDomains"] = json!(["api.test"]);
    assert_eq!(
        try_compile(&form, Role::Tenant, Some(&old)).unwrap_err().pointer,
        "/hutch/policy"
    );
}

proptest! {
    #[test]
    fn what_is_read_back_compiles_to_the_same_policy(policy in any_policy()) {
        let first = tenant(&policy);
        let form: Value = serde_json::from_str(&first.read_back()).unwrap();
        let second = try_compile(&form, Role::Tenant, Some(&first)).unwrap().policy;
        prop_assert_eq!(first.hash(), second.hash());
        prop_assert_eq!(second.read_back(), first.read_back());
        // Values as well: not even their fingerprints differ.
        let hard_deny = Arc::new(HardDeny::default());
        let whole = |policy| EffectivePolicy::intersect(Arc::clone(&hard_deny), &[], policy);
        prop_assert_eq!(diff(&whole(Arc::clone(&first)), &whole(second)), Change::Nothing);
        // What is stored is the policy, too.
        let stored = first.request_text();
        let third = tenant(&serde_json::from_str(&stored).unwrap());
        prop_assert_eq!(third.request_text(), stored);
        prop_assert_eq!(third.read_back(), first.read_back());
        prop_assert_eq!(diff(&whole(first), &whole(third)), Change::Nothing);
    }
}

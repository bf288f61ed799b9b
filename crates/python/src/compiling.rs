//! A policy → what the control plane stores and shows.

use hutch_policy::{Context, Mode, Outside, Pattern, Policy, Role, Warning, compile, outside};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};

use crate::request::{Refusal, Settings, widest_hard_deny};

pub(crate) fn compile_policy(
    policy: &[u8],
    previous: Option<&[u8]>,
    role: &str,
    settings: &[u8],
) -> Result<Vec<u8>, Refusal> {
    let role = match role {
        "tenant" => Role::Tenant,
        "bounds" => Role::Bounds,
        _ => return Err(Refusal::new("", "should have the role \"tenant\" or \"bounds\"")),
    };
    let settings = Settings::read(settings)?;
    let previous = previous.map(|json| compile_stored(json, role)).transpose()?;
    let context = Context {
        hard_deny: &settings.hard_deny,
        previous: previous.as_ref().map(|compiled| &*compiled.policy),
        role,
    };
    let compiled = compile(policy, &context)?;
    let policy = &compiled.policy;
    let mut beyond = Vec::new();
    for bound in &settings.bounds {
        let bound = compile_stored(bound.get().as_bytes(), Role::Bounds)?;
        beyond.extend(outside(&bound.policy, policy).iter().map(outside_to_json));
    }
    let rest = json!({
        "hash": policy.hash().to_string(),
        "mode": mode(policy),
        "warnings": compiled.warnings.iter().map(warning_to_json).collect::<Vec<_>>(),
        "credentials": policy.credentials(),
        "placeholders": policy.placeholders(),
        "intercepted": policy.intercepted().map(Pattern::as_str).collect::<Vec<_>>(),
        "empty": policy.is_empty(),
        "outside": beyond,
        "text": policy.request_text().as_str(),
    });
    // The members of the read form keep their order, which a `Value` would lose.
    let read_back = RawValue::from_string(policy.read_back()).expect("the read form is JSON");
    let rest = to_raw_value(&rest).expect("a value is JSON");
    let rest = rest.get().strip_prefix('{').expect("an object");
    Ok([b"{\"read_back\":", read_back.get().as_bytes(), b",", rest.as_bytes()].concat())
}

/// Compile a policy that was compiled before.
fn compile_stored(json: &[u8], role: Role) -> Result<hutch_policy::Compiled, Refusal> {
    let context = Context {
        hard_deny: &widest_hard_deny(),
        previous: None,
        role,
    };
    Ok(compile(json, &context)?)
}

pub(crate) fn mode(policy: &Policy) -> &'static str {
    match policy.mode() {
        Mode::AllowAll => "allow-all",
        Mode::DenyAll => "deny-all",
        Mode::Custom => "custom",
    }
}

fn warning_to_json(warning: &Warning) -> Value {
    json!({"pointer": warning.pointer, "code": warning.code, "message": warning.message})
}

fn outside_to_json(outside: &Outside) -> Value {
    match outside {
        Outside::Pattern(pattern) => json!({"pattern": pattern.as_str()}),
        Outside::Range(range) => json!({"range": range.to_string()}),
        Outside::AllowAll => json!({"mode": "allow-all"}),
    }
}

//! Whatever comes is a policy, or one sentence with a pointer; a policy is the same when it is written and read again.

#![no_main]

use hutch_policy::{Context, HardDeny, Role, compile};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let hard_deny = HardDeny::default();
    for role in [Role::Tenant, Role::Bounds] {
        let context = Context {
            hard_deny: &hard_deny,
            previous: None,
            role,
        };
        let compiled = match compile(data, &context) {
            Ok(compiled) => compiled,
            Err(error) => {
                let text = error.to_string();
                assert!(!text.is_empty() && !text.contains(char::is_control), "{text:?}");
                continue;
            }
        };
        let policy = &compiled.policy;
        let written = policy.request_text();
        let again = compile(written.as_bytes(), &context).expect("a policy that was written is one");
        assert_eq!(
            policy.hash(),
            again.policy.hash(),
            "another policy: {}",
            written.as_str()
        );
        assert_eq!(policy.read_back(), again.policy.read_back());
        let shown = policy.read_back();
        serde_json::from_str::<serde_json::Value>(&shown).expect("what is shown is JSON");
        let context = Context {
            previous: Some(policy),
            ..context
        };
        let kept = compile(shown.as_bytes(), &context).expect("what is shown can be sent back");
        assert_eq!(
            policy.hash(),
            kept.policy.hash(),
            "another policy after it was shown: {shown}"
        );
    }
});

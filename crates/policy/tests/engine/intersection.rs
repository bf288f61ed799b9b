//! Bounds and tenants.

use hutch_policy::{Cidr, Outside, Pattern, outside};
use serde_json::json;

use super::support::{bounds, tenant};

#[test]
fn what_a_tenant_names_beyond_its_bounds_is_listed() {
    let limits = bounds(&json!({
        "allow": ["*.api.test", "cdn.test"],
        "subnets": {"allow": ["203.0.113.0/24"], "deny": ["203.0.113.9/32"]},
        "block": ["bad.api.test"],
    }));
    let policy = tenant(&json!({
        "allow": ["eu.api.test", "*.eu.api.test", "api.test", "cdn.test", "*.test", "bad.api.test"],
        "subnets": {"allow": ["203.0.113.0/28", "203.0.113.16/28", "198.51.100.0/24"]},
    }));
    let pattern = |text| Outside::Pattern(Pattern::parse(text).unwrap());
    let range = |text| Outside::Range(Cidr::parse(text).unwrap());
    assert_eq!(
        outside(&limits, &policy),
        [
            pattern("api.test"),
            pattern("*.test"),
            pattern("bad.api.test"),
            range("203.0.113.0/28"),
            range("198.51.100.0/24")
        ],
    );
    assert_eq!(outside(&limits, &tenant(&json!("allow-all"))), [Outside::AllowAll]);
    assert_eq!(outside(&limits, &tenant(&json!("deny-all"))), []);
    assert_eq!(outside(&bounds(&json!("allow-all")), &policy), []);
}

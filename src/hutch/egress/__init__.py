"""What sandboxes may reach: network policies, as the rest of the control plane sees them.

    policy.py         check a policy, ask what would happen to a request: the typed face of the engine
    hutch_native      the engine itself (`crates/policy`), built by setup; nobody but `policy.py` imports it

A policy has three forms. The *request form* is what callers send: "allow-all", "deny-all", or an object with `allow`,
`subnets` and Hutch's extensions. The *read form* is what they get back: the vendor's, without secret values, with the
object `hutch` beside it where the vendor's fields can't say everything. The *compiled* form decides, and lives in the
gateway alone. The engine makes each from the one before, so that no two places have their own opinion about a policy:

    bytes ──check──▶ CheckedPolicy ─┬─ text       request form, values included: sealed in the database, sent to the host
                                    ├─ read_back  read form: shown
                                    └─ hash …     what records, hosts and warnings need

Values that were redacted (`<redacted>`) are restored from the policy that is replaced, and only for the same rule.
The host and the gateway enforce; here nothing is enforced.
"""

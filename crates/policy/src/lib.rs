//! Hutch's network policies (`docs/policy-engine.md`): values in, decisions out. No I/O, no clock, no threads.
//!
//! * `names`: canonical host names; every comparison of names in the product goes through [`Name`]
//! * `pattern`: domain patterns, and the lookup of the most specific one
//! * `addresses`, `hard_deny`: ranges, and the addresses that no tenant reaches
//! * `json`, `grammar`, `rule_grammar`, `rules`, `regexes`, `checks`, `compile`: bytes of JSON → an immutable [`Policy`], or what is wrong with them
//! * `readback`: a policy → the form that clients read, without secret values
//! * `intersect`: operator ∩ organisation ∩ tenant as one [`EffectivePolicy`]
//! * `decide`: questions put to an [`EffectivePolicy`]: DNS question, connection, datagram, HTTP request
//! * `sweep`: what happens to an open flow when the policy changes
//! * `defence`: what tests of the tests can switch off
//! * `reasons`: the closed list of reason codes
//! * `base64`: as it is written, and as it is found
//!
//! The gateway owns sockets, time, budgets and secrets; it brings facts and carries out what comes back. Three rules hold
//! everywhere: what is unknown is refused, an intercepted name is never spliced because something failed, and a
//! decision names its [`Reason`].

#![forbid(unsafe_code)]

mod addresses;
pub mod base64;
mod checks;
mod compile;
mod decide;
pub mod defence;
mod grammar;
mod hard_deny;
mod intersect;
mod json;
mod names;
mod pattern;
mod policy;
mod readback;
mod reasons;
mod regexes;
mod rule_grammar;
mod rules;
mod sweep;

pub use addresses::{Cidr, CidrError, PrefixMap, canonical_address, subtract};
pub use compile::{Compiled, Context, PolicyError, Role, Warning, compile};
pub use decide::connection::{Admission, Dial, Flow, Grant, Handling, Sniffed, Step, VIRTUAL_RANGES};
pub use decide::dns::{DnsDecision, Question, RecordType, ResponseCode};
pub use decide::http::{
    CredentialState, Facts, ForwardTo, HeadPlan, Judgement, Outcome, Place, Placeholder, Replacement, Request, RuleRef,
    Stamp,
};
pub use decide::path::{Ambiguity, inspect_path};
pub use defence::Defence;
pub use hard_deny::{DenyClass, HardDeny, HardDenySettings};
pub use intersect::{EffectivePolicy, Outside, outside};
pub use names::{Host, Name, NameError, parse_authority, parse_host};
pub use pattern::{Pattern, PatternError, PatternMap};
pub use policy::{Defaults, DnsMode, Inspect, Limits, Mode, Policy, PolicyHash, Unmatched};
pub use reasons::Reason;
pub use rules::{
    Action, CredentialUse, ForwardUrl, HeaderEdit, Match, Matcher, Pair, QueryEdit, Response, Rule, RuleId, Secret,
    Test, Transform, Value,
};
pub use sweep::{Change, Exchange, FlowFacts, SeenBytes, Sweep, diff, sweep};

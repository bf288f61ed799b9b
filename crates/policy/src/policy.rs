//! The compiled policy.

use std::fmt;

use crate::addresses::{Cidr, PrefixMap};
use crate::names::Name;
use crate::pattern::{Pattern, PatternMap};
use crate::rules::{Action, CredentialUse, Rule, RuleId, Transform};

/// What a policy is as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Everything but the hard-deny set.
    AllowAll,
    /// Nothing.
    DenyAll,
    /// What patterns and ranges allow.
    Custom,
}

/// Which allowed names are intercepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inspect {
    /// Those whose pattern has rules.
    Rules,
    /// All.
    All,
}

/// What happens to a request of an intercepted name that no rule matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unmatched {
    /// It passes unchanged.
    Pass,
    /// It is refused.
    Deny,
}

/// How DNS questions are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DnsMode {
    /// With the addresses of the name.
    Real,
    /// With an address that stands for the name, without asking anybody.
    Virtual,
}

/// The extension `defaults`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Defaults {
    /// Which names are intercepted.
    pub inspect: Inspect,
    /// Requests without a rule.
    pub unmatched: Unmatched,
    /// Whether plain HTTP is judged by its `Host`.
    pub plaintext_http: bool,
    /// The ports that names are allowed on; `None`: any that carries TLS.
    pub ports: Option<Vec<u16>>,
}

impl Default for Defaults {
    fn default() -> Self {
        Self {
            inspect: Inspect::Rules,
            unmatched: Unmatched::Pass,
            plaintext_http: false,
            ports: None,
        }
    }
}

impl Defaults {
    /// Whether flows that show nothing to judge are refused even under `*`.
    pub fn is_strict(&self) -> bool {
        self.inspect == Inspect::All || self.unmatched == Unmatched::Deny
    }
}

/// Byte limits of a policy or a rule; `None` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Bytes from the sandbox.
    pub up_bytes: Option<u64>,
    /// Bytes to the sandbox.
    pub down_bytes: Option<u64>,
}

impl Limits {
    /// The smaller of both limits each way.
    #[must_use]
    pub fn narrow(self, other: Self) -> Self {
        let least = |one: Option<u64>, two: Option<u64>| one.into_iter().chain(two).min();
        Self {
            up_bytes: least(self.up_bytes, other.up_bytes),
            down_bytes: least(self.down_bytes, other.down_bytes),
        }
    }
}

/// A pattern and what is done with requests to the names it covers.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) pattern: Pattern,
    pub(crate) rules: Vec<Rule>,
    /// What admits an exchange: at *n* the rules up to and with rule *n*, at the end all of them and the default. An
    /// exchange goes on under a new policy if what admitted it is the same. Covers secret values, so it stays in memory.
    pub(crate) admissions: Vec<[u8; 32]>,
}

impl Entry {
    pub(crate) fn injects(&self) -> bool {
        self.rules.iter().any(Rule::injects)
    }

    pub(crate) fn needs_path(&self) -> bool {
        self.rules.iter().any(|rule| rule.matcher.path.is_some())
    }

    pub(crate) fn needs_method(&self) -> bool {
        self.rules.iter().any(|rule| rule.matcher.methods.is_some())
    }
}

/// SHA-256 over a policy without its secret values: the `policyHash` of audit records.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PolicyHash(pub [u8; 32]);

impl fmt::Display for PolicyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for PolicyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A policy as compiled. Immutable; share it in an `Arc`. Its `Debug` shows no secrets.
#[derive(Debug)]
pub struct Policy {
    pub(crate) mode: Mode,
    pub(crate) entries: Vec<Entry>,
    pub(crate) lookup: PatternMap<usize>,
    /// The tenant's ranges as given, for reading back.
    pub(crate) allow_ranges: Vec<Cidr>,
    pub(crate) deny_ranges: Vec<Cidr>,
    /// The allowed ranges without the hard-deny set; values are indexes into `allow_ranges`.
    pub(crate) allow: PrefixMap<usize>,
    pub(crate) deny: PrefixMap<usize>,
    pub(crate) defaults: Defaults,
    pub(crate) limits: Limits,
    pub(crate) dns_mode: DnsMode,
    pub(crate) dns_open: Option<bool>,
    pub(crate) blocked: Vec<Pattern>,
    pub(crate) blocked_lookup: PatternMap<()>,
    pub(crate) hash: PolicyHash,
    /// Like the hash, with secret values: equal exactly if nothing at all changed. Stays in memory.
    pub(crate) fingerprint: [u8; 32],
}

impl Policy {
    /// What the policy is as a whole.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The hash for audit records.
    pub fn hash(&self) -> PolicyHash {
        self.hash
    }

    /// The extension `defaults`.
    pub fn defaults(&self) -> &Defaults {
        &self.defaults
    }

    /// The extension `limits`.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// The extension `dns.mode`.
    pub fn dns_mode(&self) -> DnsMode {
        self.dns_mode
    }

    /// The patterns in the order of the request, each with its rules.
    pub fn patterns(&self) -> impl Iterator<Item = (&Pattern, &[Rule])> {
        self.entries
            .iter()
            .map(|entry| (&entry.pattern, entry.rules.as_slice()))
    }

    /// The allowed and the denied ranges as given.
    pub fn ranges(&self) -> (&[Cidr], &[Cidr]) {
        (&self.allow_ranges, &self.deny_ranges)
    }

    /// The patterns whose names are intercepted, so that an image can be tested against the sandbox's CA.
    pub fn intercepted(&self) -> impl Iterator<Item = &Pattern> {
        let all = self.defaults.inspect == Inspect::All;
        self.entries
            .iter()
            .filter(move |entry| all || !entry.rules.is_empty())
            .map(|entry| &entry.pattern)
    }

    /// The names of all stored credentials that rules use, sorted.
    pub fn credentials(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.uses().map(|used| used.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Environment variables that get a placeholder, with the credential that each stands for.
    pub fn placeholders(&self) -> Vec<(&str, &str)> {
        let mut pairs: Vec<(&str, &str)> = self
            .uses()
            .filter_map(|used| Some((used.placeholder.as_deref()?, used.name.as_str())))
            .collect();
        pairs.sort_unstable();
        pairs.dedup();
        pairs
    }

    /// The rule with this id.
    pub fn rule(&self, id: RuleId) -> Option<(&Pattern, &Rule)> {
        self.entries
            .iter()
            .find_map(|entry| Some((&entry.pattern, entry.rules.iter().find(|rule| rule.id == id)?)))
    }

    /// Whether some pattern covers the name, or everything is allowed.
    pub fn covers(&self, name: &Name) -> bool {
        self.mode == Mode::AllowAll || self.entry_of(name).is_some()
    }

    /// The pattern that decides on `name`.
    pub fn pattern_of(&self, name: &Name) -> Option<&Pattern> {
        self.entry_of(name).map(|(_, entry)| &entry.pattern)
    }

    pub(crate) fn entry_of(&self, name: &Name) -> Option<(usize, &Entry)> {
        self.lookup.get(name).map(|&index| (index, &self.entries[index]))
    }

    /// Whether nothing at all is allowed.
    pub(crate) fn is_closed(&self) -> bool {
        match self.mode {
            Mode::AllowAll => false,
            Mode::DenyAll => true,
            Mode::Custom => self.entries.is_empty() && self.allow.is_empty(),
        }
    }

    fn uses(&self) -> impl Iterator<Item = &CredentialUse> {
        let rules = self.entries.iter().flat_map(|entry| &entry.rules);
        let transforms = rules.filter_map(|rule| match &rule.action {
            Action::Transform(transform) => Some(transform),
            _ => None,
        });
        transforms.flat_map(Transform::credentials)
    }
}

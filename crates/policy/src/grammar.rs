//! JSON → a draft: every form in which a policy may be written, brought to one.

use crate::compile::{PolicyError, Role};
use crate::json::{Fields, Json, Node};
use crate::policy::{Defaults, DnsMode, Inspect, Limits, Mode, Unmatched};
use crate::rule_grammar;

pub(crate) const MAX_PATTERNS: usize = 1000;
pub(crate) const MAX_RULES: usize = 64;
pub(crate) const MAX_RANGES: usize = 256;
const MAX_PORTS: usize = 64;

/// A policy whose structure is right; names, ranges and rules are still JSON.
pub(crate) struct Draft<'a> {
    pub(crate) mode: Mode,
    pub(crate) patterns: Vec<PatternDraft<'a>>,
    pub(crate) allow: Vec<Node<'a>>,
    pub(crate) deny: Vec<Node<'a>>,
    pub(crate) blocked: Vec<Node<'a>>,
    pub(crate) defaults: Defaults,
    pub(crate) limits: Limits,
    pub(crate) dns_mode: DnsMode,
    pub(crate) dns_open: Option<bool>,
}

pub(crate) struct PatternDraft<'a> {
    /// Where the pattern stands.
    pub(crate) at: Node<'a>,
    pub(crate) text: &'a str,
    pub(crate) rules: Vec<RuleDraft<'a>>,
    pub(crate) origin: Origin,
}

pub(crate) enum RuleDraft<'a> {
    Vendor(Node<'a>),
    Injection(Node<'a>),
}

/// What a second occurrence of a pattern means.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// An item of a list: the same thing said twice.
    Item,
    /// A member of the record: two lists of rules, of which nobody knows the order.
    Member,
    /// The domain of an entry in `injectionRules`: its rule follows the others of the domain.
    Rule,
}

impl<'a> Draft<'a> {
    fn empty(mode: Mode) -> Self {
        Self {
            mode,
            patterns: Vec::new(),
            allow: Vec::new(),
            deny: Vec::new(),
            blocked: Vec::new(),
            defaults: Defaults::default(),
            limits: Limits::default(),
            dns_mode: DnsMode::Real,
            dns_open: None,
        }
    }

    /// Read a policy in any form.
    pub(crate) fn read(node: &Node<'a>, role: Role) -> Result<Self, PolicyError> {
        let modes = [("allow-all", Mode::AllowAll), ("deny-all", Mode::DenyAll)];
        match node.value {
            Json::String(_) => return Ok(Self::empty(node.word(&modes)?)),
            Json::Object(_) => {}
            _ => return Err(node.error("should be an object, \"allow-all\" or \"deny-all\"")),
        }
        let mode = node
            .members()?
            .into_iter()
            .find(|(name, _)| *name == "mode")
            .map(|(_, mode)| mode);
        let Some(mode) = mode.filter(|mode| *mode.value != Json::Null) else {
            return Self::read_custom(node, role);
        };
        let forms = [
            ("allow-all", Some(Mode::AllowAll)),
            ("deny-all", Some(Mode::DenyAll)),
            ("custom", None),
            ("default-allow", None),
            ("default-deny", None),
        ];
        match mode.word(&forms)? {
            Some(whole) => {
                let known: &[&str] = match role {
                    Role::Tenant => &["mode", "limits", "hutch"],
                    Role::Bounds => &["mode", "limits", "hutch", "block"],
                };
                let fields = node.fields(known)?;
                let blocked = fields.items("block", MAX_PATTERNS)?;
                Ok(Self {
                    limits: rule_grammar::limits(&fields)?,
                    blocked,
                    ..Self::empty(whole)
                })
            }
            None => Self::read_legacy(node),
        }
    }

    fn read_custom(node: &Node<'a>, role: Role) -> Result<Self, PolicyError> {
        let known: &[&str] = match role {
            Role::Tenant => &["mode", "allow", "subnets", "defaults", "limits", "dns", "hutch"],
            Role::Bounds => &[
                "mode", "allow", "subnets", "defaults", "limits", "dns", "hutch", "block",
            ],
        };
        let fields = node.fields(known)?;
        let mut draft = Self {
            limits: rule_grammar::limits(&fields)?,
            ..Self::empty(Mode::Custom)
        };
        draft.blocked = fields.items("block", MAX_PATTERNS)?;
        if let Some(allow) = fields.get("allow") {
            draft.patterns = match allow.value {
                Json::Array(_) => list(allow)?,
                Json::Object(_) => record(allow)?,
                _ => return Err(allow.error("should be an array or an object")),
            };
        }
        if let Some(subnets) = fields.get("subnets") {
            let subnets = subnets.fields(&["allow", "deny"])?;
            draft.allow = subnets.items("allow", MAX_RANGES)?;
            draft.deny = subnets.items("deny", MAX_RANGES)?;
        }
        if let Some(node) = fields.get("defaults") {
            draft.defaults = defaults(node)?;
        }
        if let Some(node) = fields.get("dns") {
            let fields = node.fields(&["mode", "open"])?;
            let modes = [("real", DnsMode::Real), ("virtual", DnsMode::Virtual)];
            draft.dns_mode = fields.get("mode").map_or(Ok(DnsMode::Real), |node| node.word(&modes))?;
            draft.dns_open = fields.boolean("open")?;
            if draft.dns_mode == DnsMode::Virtual && (!draft.allow.is_empty() || draft.dns_open == Some(true)) {
                return Err(node.error("should NOT have the mode \"virtual\" together with `subnets.allow` or `open`"));
            }
        }
        Ok(draft)
    }

    fn read_legacy(node: &Node<'a>) -> Result<Self, PolicyError> {
        let fields = node.fields(&[
            "mode",
            "allowedDomains",
            "allowedCIDRs",
            "deniedCIDRs",
            "injectionRules",
            "hutch",
        ])?;
        let mut draft = Self::empty(Mode::Custom);
        if let Some(domains) = fields.get("allowedDomains") {
            draft.patterns = list(domains)?;
        }
        let mode = fields.need("mode")?;
        if mode.string()? == "default-allow" {
            let at = mode.clone();
            draft.patterns.push(PatternDraft {
                at,
                text: "*",
                rules: Vec::new(),
                origin: Origin::Item,
            });
        }
        for rule in fields.items("injectionRules", MAX_PATTERNS)? {
            // The rule's own fields are read with the rule.
            let domain = rule.members()?.into_iter().find(|(name, _)| *name == "domain");
            let (_, at) = domain.ok_or_else(|| rule.error("should have `domain`"))?;
            let text = at.string()?;
            let rules = vec![RuleDraft::Injection(rule)];
            draft.patterns.push(PatternDraft {
                at,
                text,
                rules,
                origin: Origin::Rule,
            });
        }
        draft.allow = fields.items("allowedCIDRs", MAX_RANGES)?;
        draft.deny = fields.items("deniedCIDRs", MAX_RANGES)?;
        Ok(draft)
    }
}

fn list<'a>(node: &Node<'a>) -> Result<Vec<PatternDraft<'a>>, PolicyError> {
    let item = |at: Node<'a>| {
        let text = at.string()?;
        Ok(PatternDraft {
            at,
            text,
            rules: Vec::new(),
            origin: Origin::Item,
        })
    };
    node.items(MAX_PATTERNS)?.into_iter().map(item).collect()
}

fn record<'a>(node: &Node<'a>) -> Result<Vec<PatternDraft<'a>>, PolicyError> {
    let members = node.members()?;
    if members.len() > MAX_PATTERNS {
        return Err(node.error(format!("should NOT have more than {MAX_PATTERNS} domains")));
    }
    let member = |(text, at): (&'a str, Node<'a>)| {
        let rules = if *at.value == Json::Null {
            Vec::new()
        } else {
            at.items(MAX_RULES)?
        };
        let rules = rules.into_iter().map(RuleDraft::Vendor).collect();
        Ok(PatternDraft {
            at,
            text,
            rules,
            origin: Origin::Member,
        })
    };
    members.into_iter().map(member).collect()
}

fn defaults(node: &Node) -> Result<Defaults, PolicyError> {
    let fields: Fields = node.fields(&["inspect", "unmatched", "plaintextHttp", "ports"])?;
    let mut defaults = Defaults::default();
    if let Some(node) = fields.get("inspect") {
        defaults.inspect = node.word(&[("rules", Inspect::Rules), ("all", Inspect::All)])?;
    }
    if let Some(node) = fields.get("unmatched") {
        defaults.unmatched = node.word(&[("pass", Unmatched::Pass), ("deny", Unmatched::Deny)])?;
    }
    defaults.plaintext_http = fields.boolean("plaintextHttp")?.unwrap_or(false);
    if let Some(node) = fields.get("ports") {
        let mut ports = Vec::new();
        for port in node.items(MAX_PORTS)? {
            let number = port.integer(1, 65_535)? as u16;
            if number == 25 {
                return Err(port.error("should NOT be 25: mail is closed under every policy"));
            }
            ports.push(number);
        }
        ports.sort_unstable();
        ports.dedup();
        defaults.ports = Some(ports);
    }
    Ok(defaults)
}

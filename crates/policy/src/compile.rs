//! Bytes of JSON → a policy, or the first thing that is wrong with them.

use std::fmt::{self, Write as _};
use std::sync::Arc;

use crate::addresses::{Cidr, PrefixMap};
use crate::checks::check_placeholders;
use crate::grammar::{Draft, MAX_PATTERNS, MAX_RULES, Origin, PatternDraft, RuleDraft};
use crate::hard_deny::HardDeny;
use crate::json::{Json, Node};
use crate::pattern::{Pattern, PatternMap};
use crate::policy::{Entry, Mode, Policy, PolicyHash, Unmatched};
use crate::regexes::Regexes;
use crate::rules::{Action, REDACTED, Rule, RuleId, Value, digest};

/// Bytes of a policy as sent.
const MAX_POLICY_BYTES: usize = 1 << 20;

/// Why a policy is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyError {
    /// The JSON pointer of what is wrong.
    pub pointer: String,
    /// The stable code of the error.
    pub code: &'static str,
    /// What is wrong, as the end of a sentence about what the pointer names.
    pub message: String,
}

impl PolicyError {
    pub(crate) fn new(pointer: String, message: impl Into<String>) -> Self {
        Self {
            pointer,
            code: "invalid_network_policy",
            message: message.into(),
        }
    }
}

/// One line, whatever the names in the pointer are: it goes into logs.
impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = if self.pointer.is_empty() {
            "the policy"
        } else {
            &self.pointer
        };
        for char in [place, " ", &self.message].into_iter().flat_map(str::chars) {
            if char.is_control() {
                write!(f, "{}", char.escape_default())?;
            } else {
                f.write_char(char)?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for PolicyError {}

/// Something valid that its author may not have meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// The JSON pointer of what it is about.
    pub pointer: String,
    /// The stable code of the warning.
    pub code: &'static str,
    /// As the end of a sentence about what the pointer names.
    pub message: String,
}

/// Whose policy it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A sandbox's own.
    Tenant,
    /// The operator's or an organisation's: it may block names and has no rules that put something into requests or send
    /// them elsewhere.
    Bounds,
}

/// What a policy is compiled against.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// The host's hard-deny set.
    pub hard_deny: &'a HardDeny,
    /// The policy that is replaced; redacted values of rules that it has too are taken from it.
    pub previous: Option<&'a Policy>,
    /// Whose policy it is.
    pub role: Role,
}

/// A policy, and what its author should know.
#[derive(Debug, Clone)]
pub struct Compiled {
    /// The policy.
    pub policy: Arc<Policy>,
    /// In the order of their occurrence.
    pub warnings: Vec<Warning>,
}

/// Compile a policy in any of its forms.
pub fn compile(json: &[u8], context: &Context) -> Result<Compiled, PolicyError> {
    if json.len() > MAX_POLICY_BYTES {
        return Err(PolicyError::new(
            String::new(),
            format!("should NOT have more than {MAX_POLICY_BYTES} bytes"),
        ));
    }
    let document: Json = serde_json::from_slice(json)
        .map_err(|error| PolicyError::new(String::new(), format!("should be JSON: {error}")))?;
    let root = Node::root(&document);
    let Some(exact) = exact_form(&root)? else {
        return compile_form(&root, context);
    };
    let compiled = compile_form(&exact, context)?;
    // Somebody who edits what was read back and leaves the exact form as it was must not get the old policy.
    let Json::Object(members) = &document else {
        return Ok(compiled);
    };
    let beside = members.iter().filter(|(name, _)| name != "hutch").cloned().collect();
    if Json::Object(beside).sorted() != compiled.policy.summary().sorted() {
        return Err(exact.error("should agree with the fields beside `hutch`; leave one of both out"));
    }
    Ok(compiled)
}

/// The member `hutch.policy`, which a policy that is read back has if the vendor's form cannot say all of it.
fn exact_form<'a>(root: &Node<'a>) -> Result<Option<Node<'a>>, PolicyError> {
    if !matches!(root.value, Json::Object(_)) {
        return Ok(None);
    }
    let hutch = root.members()?.into_iter().find(|(name, _)| *name == "hutch");
    let Some((_, hutch)) = hutch.filter(|(_, hutch)| *hutch.value != Json::Null) else {
        return Ok(None);
    };
    let fields = hutch.fields(&[
        "generation",
        "bounded",
        "closedFlows",
        "keptFlows",
        "warnings",
        "policy",
    ])?;
    Ok(fields.get("policy").cloned())
}

fn compile_form(root: &Node, context: &Context) -> Result<Compiled, PolicyError> {
    let draft = Draft::read(root, context.role)?;
    let mut compiler = Compiler {
        context,
        regexes: Regexes::default(),
        warnings: Vec::new(),
    };
    let policy = compiler.policy(draft)?;
    Ok(Compiled {
        policy: Arc::new(policy),
        warnings: compiler.warnings,
    })
}

/// The work on one policy.
pub(crate) struct Compiler<'a> {
    pub(crate) context: &'a Context<'a>,
    pub(crate) regexes: Regexes,
    warnings: Vec<Warning>,
}

impl Compiler<'_> {
    pub(crate) fn warn(&mut self, node: &Node, code: &'static str, message: impl Into<String>) {
        self.warnings.push(Warning {
            pointer: node.pointer.clone(),
            code,
            message: message.into(),
        });
    }

    fn policy(&mut self, draft: Draft) -> Result<Policy, PolicyError> {
        let mut policy = Policy {
            mode: draft.mode,
            entries: Vec::new(),
            lookup: PatternMap::default(),
            allow_ranges: Vec::new(),
            deny_ranges: Vec::new(),
            allow: PrefixMap::default(),
            deny: PrefixMap::default(),
            defaults: draft.defaults,
            limits: draft.limits,
            dns_mode: draft.dns_mode,
            dns_open: draft.dns_open,
            blocked: Vec::new(),
            blocked_lookup: PatternMap::default(),
            hash: PolicyHash([0; 32]),
            fingerprint: [0; 32],
        };
        self.ranges(&mut policy, &draft.allow, &draft.deny)?;
        for node in &draft.blocked {
            let pattern = Pattern::parse(node.string()?).map_err(|error| node.error(error.to_string()))?;
            if policy.blocked_lookup.insert(&pattern, ()).is_none() {
                policy.blocked.push(pattern);
            }
        }
        for pattern in &draft.patterns {
            self.pattern(&mut policy, pattern)?;
        }
        if policy.entries.len() > MAX_PATTERNS {
            return Err(PolicyError::new(
                String::new(),
                format!("should NOT have more than {MAX_PATTERNS} domains"),
            ));
        }
        for entry in &mut policy.entries {
            finish_entry(entry, policy.defaults.unmatched);
        }
        check_placeholders(&policy)?;
        policy.hash = PolicyHash(digest(&[policy.request_form(false).sorted().to_text().as_bytes()]));
        policy.fingerprint = digest(&[policy.request_form(true).sorted().to_text().as_bytes()]);
        Ok(policy)
    }

    fn ranges(&mut self, policy: &mut Policy, allow: &[Node], deny: &[Node]) -> Result<(), PolicyError> {
        let read = |node: &Node| Cidr::parse(node.string()?).map_err(|error| node.error(error.to_string()));
        for node in deny {
            let range = read(node)?;
            if !policy.deny_ranges.contains(&range) {
                policy.deny_ranges.push(range);
            }
        }
        policy.deny = policy.deny_ranges.iter().copied().zip(0..).collect();
        let mut parts = Vec::new();
        for node in allow {
            let range = read(node)?;
            let left = self.context.hard_deny.cut(range);
            if left.is_empty() {
                return Err(node.error("should NOT lie wholly in addresses that are closed to every sandbox"));
            }
            if range.prefix_length() == 0 {
                self.warn(
                    node,
                    "open_range",
                    "opens every public address, whatever the domains say",
                );
            } else if left != [range] {
                self.warn(
                    node,
                    "range_cut",
                    "contains addresses that stay closed to every sandbox",
                );
            }
            if policy.allow_ranges.contains(&range) {
                continue;
            }
            parts.extend(left.into_iter().map(|part| (part, policy.allow_ranges.len())));
            policy.allow_ranges.push(range);
        }
        policy.allow = parts.into_iter().collect();
        Ok(())
    }

    fn pattern(&mut self, policy: &mut Policy, draft: &PatternDraft) -> Result<(), PolicyError> {
        let pattern = Pattern::parse(draft.text).map_err(|error| draft.at.error(error.to_string()))?;
        let known = policy.entries.iter().position(|entry| entry.pattern == pattern);
        let index = match (known, draft.origin) {
            (Some(_), Origin::Member) => {
                return Err(draft
                    .at
                    .error(format!("should NOT name {pattern} again in another spelling")));
            }
            (Some(index), _) => index,
            (None, origin) => {
                if origin == Origin::Rule {
                    self.warn(&draft.at, "rule_adds_domain", "is allowed because a rule names it");
                }
                if pattern.exact().is_some_and(|name| name.is_special()) {
                    self.warn(&draft.at, "never_resolves", "is a name that no sandbox can reach");
                }
                let index = policy.entries.len();
                policy.lookup.insert(&pattern, index);
                policy.entries.push(Entry {
                    pattern: pattern.clone(),
                    rules: Vec::new(),
                    admissions: Vec::new(),
                });
                index
            }
        };
        for draft in &draft.rules {
            let (mut rule, node) = match draft {
                RuleDraft::Vendor(node) => (self.rule(node)?, node),
                RuleDraft::Injection(node) => (self.injection_rule(node)?, node),
            };
            let entry = &policy.entries[index];
            if entry.rules.len() >= MAX_RULES {
                return Err(node.error(format!("should be one of at most {MAX_RULES} rules of its domain")));
            }
            if entry.rules.iter().any(|earlier| earlier.matcher.is_always()) {
                self.warn(
                    node,
                    "shadowed_rule",
                    "never applies: an earlier rule of the domain matches everything",
                );
            }
            rule.id = rule_id(&pattern, &rule, &entry.rules);
            self.restore_values(&mut rule, node)?;
            self.check_rule(policy, &pattern, &rule, node)?;
            policy.entries[index].rules.push(rule);
        }
        Ok(())
    }

    /// Put back the values that a policy that was read does not show. Only the very same rule of the previous policy gives
    /// them: under another name or match they would be a credential that its author cannot read, sent where they like.
    fn restore_values(&self, rule: &mut Rule, node: &Node) -> Result<(), PolicyError> {
        let Action::Transform(transform) = &mut rule.action else {
            return Ok(());
        };
        let redacted = |value: &Value| matches!(value, Value::Literal(secret) if secret.expose() == REDACTED);
        if !transform.values().any(redacted) {
            return Ok(());
        }
        let previous = self.context.previous.and_then(|policy| policy.rule(rule.id));
        let Some((
            _,
            Rule {
                action: Action::Transform(source),
                ..
            },
        )) = previous
        else {
            return Err(node.error("should have its values again: no rule like it is there to take them from"));
        };
        for edit in transform.headers.iter_mut().filter(|edit| redacted(&edit.value)) {
            let known = source.headers.iter().find(|known| known.name == edit.name);
            edit.value = known
                .ok_or_else(|| node.error("should have its values again"))?
                .value
                .clone();
        }
        for edit in transform.query.iter_mut().filter(|edit| redacted(&edit.value)) {
            let known = source.query.iter().find(|known| known.name == edit.name);
            edit.value = known
                .ok_or_else(|| node.error("should have its values again"))?
                .value
                .clone();
        }
        Ok(())
    }
}

fn rule_id(pattern: &Pattern, rule: &Rule, earlier: &[Rule]) -> RuleId {
    let text = rule.to_json(false).sorted().to_text();
    // Rules that differ only in secret values are told apart by their order.
    let twins = earlier
        .iter()
        .filter(|other| other.to_json(false).sorted().to_text() == text)
        .count() as u64;
    let hash = digest(&[pattern.as_str().as_bytes(), text.as_bytes(), &twins.to_le_bytes()]);
    RuleId(*hash.first_chunk().expect("a hash is longer than an id"))
}

fn finish_entry(entry: &mut Entry, unmatched: Unmatched) {
    // The default also decides on ambiguous paths and repeated keys, so it is part of every admission.
    let mut state = digest(&[if unmatched == Unmatched::Deny { b"deny" } else { b"pass" }]);
    for rule in &entry.rules {
        state = digest(&[&state, rule.to_json(true).sorted().to_text().as_bytes()]);
        entry.admissions.push(state);
    }
    entry.admissions.push(digest(&[&state, b"unmatched"]));
}

impl Policy {
    /// Deny everything: what holds where there is no policy.
    pub fn deny_all() -> Arc<Self> {
        Self::whole("\"deny-all\"")
    }

    /// Allow everything but the hard-deny set.
    pub fn allow_all() -> Arc<Self> {
        Self::whole("\"allow-all\"")
    }

    fn whole(text: &str) -> Arc<Self> {
        let context = Context {
            hard_deny: &HardDeny::default(),
            previous: None,
            role: Role::Tenant,
        };
        compile(text.as_bytes(), &context).expect("a constant policy").policy
    }

    /// Whether nothing is allowed although the policy is not called deny-all.
    pub fn is_empty(&self) -> bool {
        self.mode == Mode::Custom && self.is_closed()
    }
}

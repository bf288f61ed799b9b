//! HTTP requests of intercepted flows.
//!
//! Every request is judged alone: is it for the flow's name, has its path one reading, which rule is the first to match,
//! and what must the request that goes upstream look like. The answer is data; the gateway rebuilds the head from it and
//! never copies the client's.

use std::fmt;

use crate::decide::connection::{Admission, Grant, Handling};
use crate::decide::path::{Ambiguity, comparable_path, inspect_path};
use crate::decide::query;
use crate::defence::Defence;
use crate::intersect::EffectivePolicy;
use crate::names::{Host, Name, NameError, parse_authority};
use crate::pattern::Pattern;
use crate::policy::{Entry, Limits, Policy, Unmatched};
use crate::reasons::Reason;
use crate::rule_grammar::is_token;
use crate::rules::{Action, Pair, Response, Rule, RuleId, Secret, Transform, Value};

mod plan;

pub(crate) use plan::is_identity_header;
pub use plan::{ForwardTo, HeadPlan, Place, Replacement};

/// A request head as parsed, with nothing repaired.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The method.
    pub method: &'a [u8],
    /// The target as sent: `/path?query`, `*`, or an absolute URL; under HTTP/2 the `:path`.
    pub target: &'a [u8],
    /// HTTP/2's `:authority`.
    pub authority: Option<&'a [u8]>,
    /// Header lines in order, without pseudo-headers.
    pub headers: &'a [(&'a [u8], &'a [u8])],
}

/// Whether a stored credential can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CredentialState {
    /// Yes.
    Present,
    /// There is none of this name.
    Missing,
    /// It came back in responses too often.
    Reflected,
}

/// A placeholder that a sandbox holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placeholder {
    /// The random text.
    pub text: String,
    /// The environment variable that has it.
    pub variable: String,
    /// The credential that it stands for.
    pub credential: String,
}

/// What the gateway knows and a policy does not.
#[derive(Clone, Copy)]
pub struct Facts<'a> {
    /// The sandbox's placeholders.
    pub placeholders: &'a [Placeholder],
    /// The state of a stored credential.
    pub credential: &'a dyn Fn(&str) -> CredentialState,
}

/// What admitted an exchange in each layer that judges it. It depends on secret values and is shown to nobody.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Stamp(Vec<[u8; 32]>);

impl fmt::Debug for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stamp({} layers)", self.0.len())
    }
}

/// A rule in an audit record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleRef {
    /// Which policy: 0 is the first of the bounds, the last one is the tenant's.
    pub layer: usize,
    /// Under which pattern.
    pub pattern: Pattern,
    /// Its place there.
    pub index: usize,
    /// Its stable id.
    pub id: RuleId,
}

/// What happens to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The gateway answers with this status and the reason.
    Refuse {
        /// 400, 403, 405, 421 or 503.
        status: u16,
        /// Whether the connection is closed, because what follows cannot be trusted.
        close: bool,
    },
    /// The gateway answers as the rule says.
    Respond(Response),
    /// To the flow's name.
    Pass(HeadPlan),
    /// To a `forwardURL`, with the gateway's signed token.
    Forward(ForwardTo, HeadPlan),
}

/// The answer to a question about a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    /// What happens.
    pub outcome: Outcome,
    /// Why.
    pub reason: Reason,
    /// The rule that decided.
    pub rule: Option<RuleRef>,
    /// A header or parameter that a rule looks at came more than once.
    pub duplicates: bool,
    /// The byte limits of the rules that apply.
    pub limits: Limits,
    /// What admits the exchange, for [`crate::sweep`].
    pub stamp: Stamp,
}

/// Why there is no request to send on.
struct Refusal {
    status: u16,
    close: bool,
    reason: Reason,
}

impl From<Refusal> for Judgement {
    fn from(refusal: Refusal) -> Self {
        Self::refuse(refusal.status, refusal.close, refusal.reason)
    }
}

impl Judgement {
    fn refuse(status: u16, close: bool, reason: Reason) -> Self {
        Self {
            outcome: Outcome::Refuse { status, close },
            reason,
            rule: None,
            duplicates: false,
            limits: Limits::default(),
            stamp: Stamp::default(),
        }
    }
}

/// A request with what was found out about it.
struct Exchange<'a> {
    request: &'a Request<'a>,
    /// The flow's own name and port.
    name: &'a Name,
    port: u16,
    plaintext: bool,
    method: &'a str,
    path: &'a [u8],
    query: Option<&'a [u8]>,
    ambiguity: Ambiguity,
    parameters: Vec<(Vec<u8>, Vec<u8>)>,
    /// Whether matching may look at the header of the same index.
    visible: Vec<bool>,
}

/// The first rule of a layer that matches.
struct Found<'a> {
    layer: usize,
    entry: &'a Entry,
    index: Option<usize>,
}

impl<'a> Found<'a> {
    fn stamp(&self) -> [u8; 32] {
        self.entry.admissions[self.index.unwrap_or(self.entry.rules.len())]
    }

    fn rule(&self) -> Option<&'a Rule> {
        self.index.map(|index| &self.entry.rules[index])
    }

    fn reference(&self) -> Option<RuleRef> {
        let index = self.index?;
        let (layer, pattern, id) = (self.layer, self.entry.pattern.clone(), self.entry.rules[index].id);
        Some(RuleRef {
            layer,
            pattern,
            index,
            id,
        })
    }
}

impl EffectivePolicy {
    /// Judge one request of an intercepted flow.
    pub fn judge(&self, admission: &Admission, request: &Request, facts: &Facts) -> Judgement {
        let bad = |reason| Judgement::refuse(400, true, reason);
        let Some(name) = admission.name().filter(|_| admission.handling.is_intercepted()) else {
            return bad(Reason::Internal);
        };
        if admission.grants.len() != self.layers.len() {
            return bad(Reason::Internal);
        }
        let plaintext = admission.handling == Handling::InterceptPlaintext;
        let exchange = match Exchange::new(request, name, admission.port(), plaintext) {
            Ok(exchange) => exchange,
            Err(refusal) => return refusal.into(),
        };
        let mut found = Vec::with_capacity(self.layers.len());
        let mut duplicates = false;
        for (index, (layer, grant)) in self.layers.iter().zip(&admission.grants).enumerate() {
            // A layer that admits the flow as raw bytes has nothing to say about requests.
            let Grant::Name(_) = grant else { continue };
            let Some((_, entry)) = layer.entry_of(name) else {
                return Judgement::refuse(403, true, Reason::DomainDeny);
            };
            match exchange.find(layer, entry, &mut duplicates) {
                Ok(rule) => found.push(Found {
                    layer: index,
                    entry,
                    index: rule,
                }),
                Err(refusal) => return refusal.into(),
            }
        }
        let mut judgement = self.act(&exchange, &found, facts);
        judgement.duplicates = duplicates;
        judgement.limits = found
            .iter()
            .filter_map(Found::rule)
            .fold(Limits::default(), |limits, rule| limits.narrow(rule.limits));
        judgement.stamp = Stamp(found.iter().map(Found::stamp).collect());
        judgement
    }

    /// Whether the rules that admitted an exchange are what would admit it now.
    pub(crate) fn still_admits(&self, name: &Name, admission: &Admission, stamp: &Stamp) -> bool {
        let named = self
            .layers
            .iter()
            .zip(&admission.grants)
            .filter(|(_, grant)| matches!(grant, Grant::Name(_)));
        let mut stamps = stamp.0.iter();
        let known = |(layer, _): (&std::sync::Arc<Policy>, _)| {
            let stamp = stamps.next();
            let entry = layer.entry_of(name).map(|(_, entry)| entry);
            stamp
                .zip(entry)
                .is_some_and(|(stamp, entry)| entry.admissions.contains(stamp))
        };
        let mut named = named.map(known);
        named.all(|known| known) && stamps.next().is_none()
    }

    fn act(&self, exchange: &Exchange, found: &[Found], facts: &Facts) -> Judgement {
        let tenant = self.layers.len() - 1;
        let mut chosen = None;
        for found in found {
            let with = |outcome, reason| Judgement {
                outcome,
                rule: found.reference(),
                ..Judgement::refuse(403, false, reason)
            };
            match found.rule().map(|rule| &rule.action) {
                None if !found.entry.rules.is_empty()
                    && self.layers[found.layer].defaults.unmatched == Unmatched::Deny
                    && Defence::Unmatched.holds() =>
                {
                    return Judgement::refuse(403, false, Reason::Unmatched);
                }
                Some(Action::Respond(response)) => {
                    return with(Outcome::Respond(response.clone()), Reason::Respond);
                }
                _ if found.layer == tenant => chosen = Some(found),
                _ => {}
            }
        }
        let empty = Transform::default();
        let action = chosen.and_then(Found::rule).map(|rule| &rule.action);
        let transform = match action {
            Some(Action::Transform(transform)) => transform,
            _ => &empty,
        };
        let scrub = chosen
            .and_then(Found::rule)
            .is_some_and(|rule| rule.scrubs() && rule.injects());
        let reference = chosen.and_then(Found::reference);
        let refuse = |status, reason| Judgement {
            rule: reference.clone(),
            ..Judgement::refuse(status, false, reason)
        };
        // A rule that sets nothing still matches; one that sets something never does so in the clear.
        if exchange.plaintext && transform.values().next().is_some() && Defence::NoPlaintextSecrets.holds() {
            return refuse(403, Reason::PlaintextCredential);
        }
        for used in transform.credentials() {
            match (facts.credential)(&used.name) {
                CredentialState::Present => {}
                CredentialState::Missing => return refuse(503, Reason::CredentialMissing),
                CredentialState::Reflected => return refuse(403, Reason::CredentialReflected),
            }
        }
        let forward = match action {
            Some(Action::Forward(url)) if !self.admits_forward(&url.host, url.port) => {
                return refuse(403, Reason::DomainDeny);
            }
            Some(Action::Forward(url)) => Some(url),
            _ => None,
        };
        let drops_overrides = found.iter().any(|found| found.entry.needs_method());
        let plan = match plan::build(exchange, transform, facts.placeholders, drops_overrides, scrub) {
            Ok(plan) => plan,
            Err(reason) => return refuse(403, reason),
        };
        let matched = action.is_some();
        let reason = match (&forward, matched) {
            (Some(_), _) => Reason::Forward,
            (None, true) if plan.injects() => Reason::Inject,
            (None, true) => Reason::Domain,
            (None, false) if chosen.is_some_and(|found| !found.entry.rules.is_empty()) => Reason::PassUnmatched,
            (None, false) => Reason::Domain,
        };
        let outcome = match forward {
            Some(url) => Outcome::Forward(plan::forward_to(exchange, url), plan),
            None => Outcome::Pass(plan),
        };
        Judgement {
            outcome,
            rule: reference,
            ..Judgement::refuse(200, false, reason)
        }
    }
}

impl<'a> Exchange<'a> {
    fn new(request: &'a Request<'a>, name: &'a Name, port: u16, plaintext: bool) -> Result<Self, Refusal> {
        let bad = |reason| Refusal {
            status: 400,
            close: true,
            reason,
        };
        let mismatch = || Refusal {
            status: 421,
            close: true,
            reason: Reason::NameMismatch,
        };
        let method = std::str::from_utf8(request.method)
            .ok()
            .filter(|method| is_token(method))
            .ok_or_else(|| bad(Reason::ProtocolViolation))?;
        if ["CONNECT", "TRACE", "TRACK"]
            .iter()
            .any(|other| method.eq_ignore_ascii_case(other) && Defence::Methods.holds())
        {
            return Err(Refusal {
                status: 405,
                close: true,
                reason: Reason::MethodDeny,
            });
        }
        let broken = |&(name, value): &(&[u8], &[u8])| {
            !std::str::from_utf8(name).is_ok_and(is_token) || value.iter().any(|byte| matches!(byte, 0 | b'\r' | b'\n'))
        };
        if request.headers.iter().any(broken) || request.target.iter().any(|&byte| byte <= b' ' || byte == 0x7f) {
            return Err(bad(Reason::ProtocolViolation));
        }
        let mut hosts: Vec<&[u8]> = request.authority.into_iter().collect();
        let given = request
            .headers
            .iter()
            .filter(|(name, _)| name.eq_ignore_ascii_case(b"host"));
        hosts.extend(given.map(|(_, value)| *value));
        // One `Host`, or one `:authority` and at most one `Host` beside it.
        let most = 1 + usize::from(request.authority.is_some());
        if (hosts.is_empty() || hosts.len() > most) && Defence::OneHost.holds() {
            return Err(bad(Reason::ProtocolViolation));
        }
        if request.target == b"*" && method != "OPTIONS" {
            return Err(bad(Reason::ProtocolViolation));
        }
        let (absolute, target) = split_target(request.target).ok_or_else(|| bad(Reason::ProtocolViolation))?;
        let scheme = if plaintext { "http" } else { "https" };
        if Defence::HostIsName.holds()
            && absolute.is_some_and(|(given, _)| !given.eq_ignore_ascii_case(scheme.as_bytes()))
        {
            return Err(mismatch());
        }
        hosts.extend(absolute.map(|(_, authority)| authority));
        for host in hosts {
            if !Defence::HostIsName.holds() {
                break;
            }
            match parse_authority(host) {
                Ok((Host::Name(other), given)) if other == *name && given.is_none_or(|given| given == port) => {}
                Ok(_) | Err(NameError::Address) => return Err(mismatch()),
                Err(_) => return Err(bad(Reason::NameInvalid)),
            }
        }
        let (path, query) = match target.iter().position(|&byte| byte == b'?') {
            Some(at) => (&target[..at], Some(&target[at + 1..])),
            None => (target, None),
        };
        let ambiguity = inspect_path(path);
        let parameters = query.map(query::parameters).unwrap_or_default();
        let visible = plan::visible_headers(request);
        Ok(Self {
            request,
            name,
            port,
            plaintext,
            method,
            path,
            query,
            ambiguity,
            parameters,
            visible,
        })
    }

    /// The first rule that matches, or why there cannot be one.
    fn find(&self, layer: &Policy, entry: &Entry, duplicates: &mut bool) -> Result<Option<usize>, Refusal> {
        let strict = layer.defaults.unmatched == Unmatched::Deny;
        let path = comparable_path(self.path);
        let found = entry
            .rules
            .iter()
            .position(|rule| self.matches(rule, &path, strict, duplicates));
        let paths_matter = entry.needs_path() || (strict && !entry.rules.is_empty());
        if paths_matter && self.ambiguity.is_ambiguous() && Defence::OnePath.holds() {
            let rule = found.map(|index| &entry.rules[index]);
            let may_pass = rule.is_some_and(|rule| {
                !self.ambiguity.other
                    && (rule.allow_encoded_slash || !self.ambiguity.encoded_slash)
                    && (rule.allow_empty_segments || !self.ambiguity.empty_segment)
            });
            if !may_pass {
                return Err(Refusal {
                    status: 400,
                    close: true,
                    reason: Reason::AmbiguousPath,
                });
            }
        }
        Ok(found)
    }

    fn matches(&self, rule: &Rule, path: &[u8], strict: bool, duplicates: &mut bool) -> bool {
        let matcher = &rule.matcher;
        if !Defence::Matchers.holds() {
            return true;
        }
        if matcher
            .methods
            .as_ref()
            .is_some_and(|methods| !methods.iter().any(|method| method == self.method))
        {
            return false;
        }
        if matcher.path.as_ref().is_some_and(|test| !test.holds(path)) {
            return false;
        }
        // Repeating a key must not help: where that is strict, it makes a rule that lets something through not apply.
        // A rule that answers in place of the server applies all the same.
        let refuses_twice = strict && !matches!(rule.action, Action::Respond(_)) && Defence::OnceOnly.holds();
        let mut all = |pairs: &[Pair], items: &[(&[u8], &[u8])]| {
            pairs.iter().all(|pair| {
                let twice = pair.key.is_some() && repeats(pair, items);
                *duplicates |= twice;
                if !Defence::WholePairs.holds() {
                    return items.iter().any(|(key, _)| pair.holds_for_key(key))
                        && items
                            .iter()
                            .any(|(_, value)| items.iter().any(|(key, _)| pair.holds(key, value)));
                }
                items.iter().any(|(key, value)| pair.holds(key, value)) && !(twice && refuses_twice)
            })
        };
        let parameters: Vec<(&[u8], &[u8])> = self
            .parameters
            .iter()
            .map(|(key, value)| (key.as_slice(), value.as_slice()))
            .collect();
        if !all(&matcher.query, &parameters) {
            return false;
        }
        let visible = self.request.headers.iter().zip(&self.visible);
        let headers: Vec<(&[u8], &[u8])> = visible
            .filter(|(_, visible)| **visible)
            .map(|(line, _)| *line)
            .collect();
        all(&matcher.headers, &headers)
    }
}

fn repeats(pair: &Pair, items: &[(&[u8], &[u8])]) -> bool {
    let keys: Vec<&[u8]> = items
        .iter()
        .map(|(key, _)| *key)
        .filter(|key| pair.holds_for_key(key))
        .collect();
    (1..keys.len()).any(|at| keys[..at].iter().any(|key| key.eq_ignore_ascii_case(keys[at])))
}

type Absolute<'a> = (&'a [u8], &'a [u8]);

/// Scheme and authority of an absolute target, and the part that goes upstream. `None`: neither form.
fn split_target(target: &[u8]) -> Option<(Option<Absolute<'_>>, &[u8])> {
    if target.first() == Some(&b'/') || target == b"*" {
        return Some((None, target));
    }
    let at = memchr::memmem::find(target, b"://")?;
    let rest = &target[at + 3..];
    let end = rest
        .iter()
        .position(|byte| matches!(byte, b'/' | b'?' | b'#'))
        .unwrap_or(rest.len());
    // An absolute URL without a path asks for the root.
    let origin = if rest.get(end) == Some(&b'/') {
        &rest[end..]
    } else if end == rest.len() {
        b"/"
    } else {
        return None;
    };
    Some((Some((&target[..at], &rest[..end])), origin))
}

pub(crate) fn literal(value: &Value) -> Option<&Secret> {
    match value {
        Value::Literal(secret) => Some(secret),
        Value::Credential(_) => None,
    }
}

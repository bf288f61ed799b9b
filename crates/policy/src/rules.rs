//! Rules: what they match and what they do.

use std::fmt;
use std::sync::Arc;

use regex::bytes::Regex;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::base64;
use crate::json::Json;
use crate::names::Host;
use crate::policy::Limits;

/// What stands for a secret value in everything that leaves this crate.
pub(crate) const REDACTED: &str = "<redacted>";
/// Shorter secrets occur in responses by chance; they are never looked for (`egress.md`, T78).
pub(crate) const MIN_SCRUBBED_BYTES: usize = 12;

/// A value that is shown to nobody and wiped from memory when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// A copy of `text` that is a secret.
    pub fn new(text: &str) -> Self {
        Self(Zeroizing::new(text.to_owned()))
    }

    /// The value, to be sent or scrubbed and nothing else.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

/// The stable id of a rule: the same while its pattern and everything but its secret values are the same.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleId(pub [u8; 8]);

impl RuleId {
    /// What `Display` writes, read again.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let number = u64::from_str_radix(text, 16).ok()?;
        Some(Self(number.to_be_bytes())).filter(|rule| rule.to_string() == text)
    }
}

impl fmt::Display for RuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for RuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// How text is compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Matcher {
    /// All of it.
    Exact(String),
    /// Its first bytes.
    StartsWith(String),
    /// Any part of it.
    Regex(String),
}

/// A comparison, ready to run.
#[derive(Debug, Clone)]
pub struct Test {
    /// What was asked for.
    pub matcher: Matcher,
    /// There if the matcher is a regular expression.
    pub(crate) regex: Option<Arc<Regex>>,
    /// ASCII letters are equal to those of the other case: names of headers.
    pub(crate) ignore_case: bool,
}

impl Test {
    /// Whether `bytes` pass.
    pub fn holds(&self, bytes: &[u8]) -> bool {
        let equal = |wanted: &str, bytes: &[u8]| {
            if self.ignore_case {
                bytes.eq_ignore_ascii_case(wanted.as_bytes())
            } else {
                bytes == wanted.as_bytes()
            }
        };
        match &self.matcher {
            Matcher::Exact(wanted) => equal(wanted, bytes),
            Matcher::StartsWith(wanted) => bytes.get(..wanted.len()).is_some_and(|start| equal(wanted, start)),
            Matcher::Regex(_) => self.regex.as_ref().is_some_and(|regex| regex.is_match(bytes)),
        }
    }

    fn to_json(&self) -> Json {
        Json::object([Some(match &self.matcher {
            Matcher::Exact(text) => ("exact", Json::text(text)),
            Matcher::StartsWith(text) => ("startsWith", Json::text(text)),
            Matcher::Regex(text) => ("regex", Json::text(text)),
        })])
    }
}

/// A condition on one header or query parameter: key and value must hold for the same one.
#[derive(Debug, Clone)]
pub struct Pair {
    /// On its name.
    pub key: Option<Test>,
    /// On its value.
    pub value: Option<Test>,
}

impl Pair {
    pub(crate) fn holds(&self, key: &[u8], value: &[u8]) -> bool {
        self.holds_for_key(key) && self.value.as_ref().is_none_or(|test| test.holds(value))
    }

    pub(crate) fn holds_for_key(&self, key: &[u8]) -> bool {
        self.key.as_ref().is_none_or(|test| test.holds(key))
    }

    fn to_json(&self) -> Json {
        Json::object([
            self.key.as_ref().map(|test| ("key", test.to_json())),
            self.value.as_ref().map(|test| ("value", test.to_json())),
        ])
    }
}

/// When a rule applies: everything that is given must hold.
#[derive(Debug, Clone, Default)]
pub struct Match {
    /// On the path, without the query.
    pub path: Option<Test>,
    /// One of these methods.
    pub methods: Option<Vec<String>>,
    /// Each holds for some parameter.
    pub query: Vec<Pair>,
    /// Each holds for some header.
    pub headers: Vec<Pair>,
}

impl Match {
    /// Whether every request matches.
    pub fn is_always(&self) -> bool {
        self.path.is_none() && self.methods.is_none() && self.query.is_empty() && self.headers.is_empty()
    }

    pub(crate) fn to_json(&self) -> Json {
        let pairs = |pairs: &[Pair]| Json::Array(pairs.iter().map(Pair::to_json).collect());
        Json::object([
            self.path.as_ref().map(|test| ("path", test.to_json())),
            self.methods.as_ref().map(|methods| ("method", Json::texts(methods))),
            (!self.query.is_empty()).then(|| ("queryString", pairs(&self.query))),
            (!self.headers.is_empty()).then(|| ("headers", pairs(&self.headers))),
        ])
    }
}

/// A stored credential in a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CredentialUse {
    /// Its name.
    pub name: String,
    /// The text around it; `{}` is the value, `{base64}` the value in Base64.
    pub format: String,
    /// The environment variable of the placeholder that it replaces, if it is not simply added.
    pub placeholder: Option<String>,
}

impl CredentialUse {
    /// The text to send for the credential's value.
    pub fn render(&self, value: &Secret) -> Secret {
        let encoded = || Zeroizing::new(base64::encode(value.expose().as_bytes()));
        match self.format.split_once("{base64}") {
            Some((before, after)) => Secret(Zeroizing::new([before, &encoded(), after].concat())),
            None => Secret(Zeroizing::new(self.format.replacen("{}", value.expose(), 1))),
        }
    }
}

/// What a rule puts into a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// The text of the policy itself.
    Literal(Secret),
    /// A stored credential.
    Credential(CredentialUse),
}

impl Value {
    /// The stored credential that this is.
    pub fn credential(&self) -> Option<&CredentialUse> {
        match self {
            Self::Credential(used) => Some(used),
            Self::Literal(_) => None,
        }
    }

    fn to_json(&self, reveal: bool) -> Json {
        match self {
            Self::Literal(secret) => Json::text(if reveal { secret.expose() } else { REDACTED }),
            Self::Credential(used) => Json::object([
                Some(("credential", Json::text(&used.name))),
                Some(("format", Json::text(&used.format))),
                used.placeholder
                    .as_ref()
                    .map(|variable| ("placeholder", Json::text(variable))),
            ]),
        }
    }
}

/// A header that a rule sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderEdit {
    /// In lower case.
    pub name: String,
    /// As in the policy, for reading back.
    pub spelling: String,
    /// What it is set to.
    pub value: Value,
}

/// A query parameter that a rule sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueryEdit {
    /// Its name, decoded.
    pub name: String,
    /// What it is set to, before encoding.
    pub value: Value,
}

/// What a `transform` does. Several of one rule are one: the last value of a header counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Transform {
    /// Headers, each name once.
    pub headers: Vec<HeaderEdit>,
    /// Query parameters, each name once.
    pub query: Vec<QueryEdit>,
}

impl Transform {
    /// Every value that the transform sets.
    pub fn values(&self) -> impl Iterator<Item = &Value> {
        self.headers
            .iter()
            .map(|edit| &edit.value)
            .chain(self.query.iter().map(|edit| &edit.value))
    }

    /// The stored credentials among them.
    pub fn credentials(&self) -> impl Iterator<Item = &CredentialUse> {
        self.values().filter_map(Value::credential)
    }

    fn to_json(&self, reveal: bool) -> Json {
        let headers = self
            .headers
            .iter()
            .map(|edit| (edit.spelling.clone(), edit.value.to_json(reveal)))
            .collect();
        let query = self
            .query
            .iter()
            .map(|edit| (edit.name.clone(), edit.value.to_json(reveal)))
            .collect();
        Json::Array(vec![Json::object([
            (!self.headers.is_empty()).then_some(("headers", Json::Object(headers))),
            (!self.query.is_empty()).then_some(("queryString", Json::Object(query))),
        ])])
    }
}

/// Where a rule sends requests: an `https` URL without user, query and fragment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardUrl {
    /// As in the policy.
    pub text: String,
    /// Who receives the request.
    pub host: Host,
    /// 443 unless given.
    pub port: u16,
    /// The path without a slash at the end; the request's own path follows.
    pub path: String,
}

/// An answer in place of the server's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// 200 to 599.
    pub status: u16,
    /// Without framing headers.
    pub headers: Vec<(String, String)>,
    /// Only with a content type.
    pub body: Option<String>,
    /// The `Content-Type`.
    pub content_type: Option<String>,
}

/// What a rule does.
#[derive(Debug, Clone)]
pub enum Action {
    /// Change the request.
    Transform(Transform),
    /// Send it elsewhere.
    Forward(ForwardUrl),
    /// Answer it.
    Respond(Response),
}

/// One rule.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Stable over updates that do not concern it.
    pub id: RuleId,
    /// When it applies.
    pub matcher: Match,
    /// What it does.
    pub action: Action,
    /// Byte limits.
    pub limits: Limits,
    /// Whether responses are searched for what was injected; `None`: if there is anything to search for.
    pub scrub: Option<bool>,
    /// Whether paths with `%2f` may match.
    pub allow_encoded_slash: bool,
    /// Whether paths with `//` may match.
    pub allow_empty_segments: bool,
    /// The author knows that the pattern covers names of strangers.
    pub acknowledge_broad: bool,
}

impl Rule {
    /// Whether the rule puts anything into requests.
    pub fn injects(&self) -> bool {
        matches!(&self.action, Action::Transform(transform) if transform.values().next().is_some())
    }

    /// Whether responses are searched for what the rule injects.
    pub fn scrubs(&self) -> bool {
        self.scrub.unwrap_or_else(|| self.injects())
    }

    pub(crate) fn to_json(&self, reveal: bool) -> Json {
        let action = match &self.action {
            Action::Transform(transform) => ("transform", transform.to_json(reveal)),
            Action::Forward(url) => ("forwardURL", Json::text(&url.text)),
            Action::Respond(response) => ("response", response.to_json()),
        };
        let flag = |name, value: bool| value.then_some((name, Json::Bool(true)));
        Json::object([
            (!self.matcher.is_always()).then(|| ("match", self.matcher.to_json())),
            Some(action),
            limits_to_json(self.limits),
            self.scrub.map(|scrub| ("scrub", Json::Bool(scrub))),
            flag("allowEncodedSlash", self.allow_encoded_slash),
            flag("allowEmptySegments", self.allow_empty_segments),
            flag("acknowledgeBroad", self.acknowledge_broad),
        ])
    }
}

impl Response {
    fn to_json(&self) -> Json {
        let headers = self
            .headers
            .iter()
            .map(|(name, value)| (name.clone(), Json::text(value)))
            .collect();
        Json::object([
            Some(("statusCode", Json::number(self.status.into()))),
            (!self.headers.is_empty()).then_some(("headers", Json::Object(headers))),
            self.body.as_ref().map(|body| ("body", Json::text(body))),
            self.content_type.as_ref().map(|kind| ("contentType", Json::text(kind))),
        ])
    }
}

pub(crate) fn limits_to_json(limits: Limits) -> Option<(&'static str, Json)> {
    (limits != Limits::default()).then(|| {
        let members = [
            limits.up_bytes.map(|bytes| ("upBytes", Json::number(bytes))),
            limits.down_bytes.map(|bytes| ("downBytes", Json::number(bytes))),
        ];
        ("limits", Json::object(members))
    })
}

pub(crate) fn digest(parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for part in parts {
        // Lengths keep ("ab", "c") and ("a", "bc") apart.
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize().into()
}

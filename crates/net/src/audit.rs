//! Audit records: what was decided, in a form whose loss shows.
//!
//! A [`Record`] says what the gateway decided about one question, connection or request, and why. A sandbox's [`Chain`]
//! seals it into one line of JSON in canonical form (RFC 8785), which has the SHA-256 of the line before it: whoever
//! holds the lines can tell that none is missing or changed.
//!
//! Much of a record was chosen by whoever runs in the sandbox. `text` makes all of it visible ASCII of bounded length, so
//! that no name or path can begin a new line, look like another field or drive a terminal. Values of headers and of
//! query parameters, bodies and secrets are never in a record.

mod text;

use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Serialize, Serializer};
use sha2::{Digest, Sha256};

/// Beyond this, readers that take numbers for `double` would read another one.
const MAX_NUMBER: u64 = (1 << 53) - 1;
/// No record has many more.
const USUAL_FIELDS: usize = 24;
/// Of a text, as written.
const MAX_TEXT_BYTES: usize = 255;
/// Of a path or a message, as written.
const MAX_LONG_TEXT_BYTES: usize = 1024;
/// Names of what was added to a request.
const MAX_INJECTED: usize = 128;

macro_rules! codes {
    ($(#[doc = $about:literal])+ $kind:ident { $($(#[doc = $doc:literal])+ $name:ident = $code:literal,)+ }) => {
        $(#[doc = $about])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $kind {
            $($(#[doc = $doc])+ $name,)+
        }

        impl $kind {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// As in records.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $code,)+
                }
            }
        }
    };
}

codes! {
    /// What a record is about.
    Kind {
        /// A DNS question.
        Dns = "dns",
        /// A connection that was not looked into.
        Tcp = "tcp",
        /// A connection with a `ClientHello`.
        Tls = "tls",
        /// A request.
        Http = "http",
        /// Datagrams.
        Udp = "udp",
        /// A flow that a new policy ended.
        Revoke = "revoke",
        /// A new policy.
        Policy = "policy",
        /// A limit that was reached.
        Limit = "limit",
        /// A token that was made.
        Mint = "mint",
    }
}

codes! {
    /// What was decided.
    Decision {
        /// It passes.
        Allow = "allow",
        /// It does not.
        Deny = "deny",
        /// It passes since no rule says otherwise.
        PassUnmatched = "pass_unmatched",
        /// It passes with something added.
        Inject = "inject",
        /// It goes to a rule's `forwardURL`.
        Forward = "forward",
        /// A rule answers it.
        Respond = "respond",
        /// It passed until the policy changed.
        Revoked = "revoked",
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
enum Value {
    Text(String),
    Code(&'static str),
    Shared(#[serde(serialize_with = "text::shared")] Arc<str>),
    Number(u64),
    Flag(bool),
    List(Vec<String>),
}

/// A record that is being put together. Only what is said is written; what is said twice is replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    kind: Kind,
    decision: Decision,
    fields: Vec<(&'static str, Value)>,
}

impl Record {
    /// A record about something that was decided for a reason, by its code.
    pub fn new(kind: Kind, decision: Decision, reason: &'static str) -> Self {
        let record = Self {
            kind,
            decision,
            fields: Vec::with_capacity(USUAL_FIELDS),
        };
        record
            .put("kind", Value::Code(kind.as_str()))
            .put("decision", Value::Code(decision.as_str()))
            .put("reason", Value::Code(reason))
    }

    /// Whether something was refused or ended.
    pub fn is_denial(&self) -> bool {
        matches!(self.decision, Decision::Deny | Decision::Revoked)
    }

    /// What records have in common that may be counted as one: kind, decision, reason and name.
    pub fn like(&self) -> (Kind, Decision, String, String) {
        let text = |wanted| match self.fields.iter().find(|(name, _)| *name == wanted) {
            Some((_, Value::Text(text))) => text.clone(),
            Some((_, Value::Code(text))) => (*text).to_owned(),
            _ => String::new(),
        };
        (self.kind, self.decision, text("reason"), text("name"))
    }

    /// It was refused after all.
    #[must_use]
    pub fn denied(self, reason: &'static str) -> Self {
        self.decided(Decision::Deny, reason)
    }

    /// It passed until the policy changed.
    #[must_use]
    pub fn revoked(self, reason: &'static str) -> Self {
        self.decided(Decision::Revoked, reason)
    }

    /// The sandbox.
    #[must_use]
    pub fn sandbox(self, id: &str) -> Self {
        self.text("sandbox", id)
    }

    /// Which run of the sandbox.
    #[must_use]
    pub fn lifecycle(self, id: &str) -> Self {
        self.text("lifecycle", id)
    }

    /// The generation of the policy.
    #[must_use]
    pub fn generation(self, generation: u64) -> Self {
        self.number("generation", generation)
    }

    /// The hash of the policy.
    #[must_use]
    pub fn policy_hash(self, hash: &Arc<str>) -> Self {
        self.put("policyHash", Value::Shared(Arc::clone(hash)))
    }

    /// The rule that decided.
    #[must_use]
    pub fn rule(self, id: &str) -> Self {
        self.text("rule", id)
    }

    /// The pattern under which it was decided.
    #[must_use]
    pub fn pattern(self, pattern: &str) -> Self {
        self.text("pattern", pattern)
    }

    /// The name that it is about.
    #[must_use]
    pub fn name(self, name: &str) -> Self {
        self.text("name", name)
    }

    /// The address that was dialled.
    #[must_use]
    pub fn dst(self, address: SocketAddr) -> Self {
        self.text("dst", address.to_string())
    }

    /// The address that the guest dialled.
    #[must_use]
    pub fn dst_original(self, address: SocketAddr) -> Self {
        self.text("origDst", address.to_string())
    }

    /// The guest dialled an address that is not one of the name's.
    #[must_use]
    pub fn dst_mismatch(self) -> Self {
        self.put("dstMismatch", Value::Flag(true))
    }

    /// What was done with the bytes: `splice`, `mitm` or `plain`.
    #[must_use]
    pub fn mode(self, mode: &'static str) -> Self {
        self.put("mode", Value::Code(mode))
    }

    /// The application protocol.
    #[must_use]
    pub fn alpn(self, protocol: impl AsRef<[u8]>) -> Self {
        self.text("alpn", protocol)
    }

    /// The version of TLS.
    #[must_use]
    pub fn tls_version(self, version: &str) -> Self {
        self.text("tlsVersion", version)
    }

    /// The server name as it was sent.
    #[must_use]
    pub fn sni_raw(self, name: impl AsRef<[u8]>) -> Self {
        self.text("sniRaw", name)
    }

    /// The method as it was sent.
    #[must_use]
    pub fn method(self, method: impl AsRef<[u8]>) -> Self {
        self.text("method", method)
    }

    /// The target as it was sent. Its path is written, and the names of its parameters.
    #[must_use]
    pub fn path(self, target: impl AsRef<[u8]>) -> Self {
        self.long_text("path", text::without_values(target.as_ref()))
    }

    /// The status of the response.
    #[must_use]
    pub fn status(self, status: u16) -> Self {
        self.number("status", u64::from(status))
    }

    /// The names of what was added to the request: headers and parameters, credentials.
    #[must_use]
    pub fn injected(mut self, names: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Self {
        let mut list = Vec::new();
        for name in names {
            let (name, is_clipped) = text::visible(name.as_ref(), MAX_TEXT_BYTES);
            if is_clipped || list.len() == MAX_INJECTED {
                self = self.clipped();
            }
            if list.len() < MAX_INJECTED {
                list.push(name);
            }
        }
        self.put("injected", Value::List(list))
    }

    /// How often secrets came back.
    #[must_use]
    pub fn reflected(self, times: u64) -> Self {
        self.number("reflected", times)
    }

    /// Bytes of payload from and to the guest.
    #[must_use]
    pub fn bytes(self, up: u64, down: u64) -> Self {
        self.number("up", up).number("down", down)
    }

    /// How long it took.
    #[must_use]
    pub fn dur_ms(self, duration_ms: u64) -> Self {
        self.number("durMs", duration_ms)
    }

    /// What went wrong.
    #[must_use]
    pub fn error(self, error: &str) -> Self {
        self.long_text("error", error)
    }

    /// For how many the record stands.
    #[must_use]
    pub fn count(self, count: u64) -> Self {
        self.number("count", count)
    }

    fn text(self, field: &'static str, bytes: impl AsRef<[u8]>) -> Self {
        self.clip(field, bytes.as_ref(), MAX_TEXT_BYTES)
    }

    fn long_text(self, field: &'static str, bytes: impl AsRef<[u8]>) -> Self {
        self.clip(field, bytes.as_ref(), MAX_LONG_TEXT_BYTES)
    }

    fn clip(mut self, field: &'static str, bytes: &[u8], limit: usize) -> Self {
        let (text, is_clipped) = text::visible(bytes, limit);
        if is_clipped {
            self = self.clipped();
        }
        self.put(field, Value::Text(text))
    }

    fn clipped(self) -> Self {
        self.put("clipped", Value::Flag(true))
    }

    fn number(self, field: &'static str, number: u64) -> Self {
        self.put(field, Value::Number(number.min(MAX_NUMBER)))
    }

    fn put(mut self, field: &'static str, value: Value) -> Self {
        match self.fields.iter_mut().find(|(name, _)| *name == field) {
            Some((_, known)) => *known = value,
            None => self.fields.push((field, value)),
        }
        self
    }

    fn decided(mut self, decision: Decision, reason: &'static str) -> Self {
        self.decision = decision;
        self.put("decision", Value::Code(decision.as_str()))
            .put("reason", Value::Code(reason))
    }

    /// One line of JSON without its end.
    fn line(mut self) -> Vec<u8> {
        // By their names, which are ASCII: by bytes is then by UTF-16, as RFC 8785 wants it.
        self.fields.sort_unstable_by_key(|(name, _)| *name);
        let mut line = Vec::new();
        serde_json::Serializer::new(&mut line)
            .collect_map(self.fields)
            .expect("text, numbers and lists are JSON");
        line
    }
}

/// The records of one sandbox, in order. The default one has none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Chain {
    seq: u64,
    previous: [u8; 32],
}

impl Chain {
    /// The chain whose last record had this number and this SHA-256. Without records they are zero.
    pub fn resume(seq: u64, previous: [u8; 32]) -> Self {
        Self { seq, previous }
    }

    /// The number of the last record. The first one is 1.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// The SHA-256 of the last record.
    pub fn previous(&self) -> [u8; 32] {
        self.previous
    }

    /// Add a record that was made `now_ms` milliseconds after 1970. The answer is one line of JSON without its end.
    pub fn seal(&mut self, record: Record, now_ms: u64) -> Vec<u8> {
        self.seq = self.seq.saturating_add(1);
        let record = record
            .number("seq", self.seq)
            .number("ts", now_ms)
            .put("prev", Value::Text(text::hex(&self.previous)));
        let bytes = record.line();
        self.previous = Sha256::digest(&bytes).into();
        bytes
    }
}

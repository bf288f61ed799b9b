//! One request of an intercepted flow, whatever version of HTTP it came by.
//!
//! Judge → put it on the table of exchanges → build the upstream head → send → pass the response on, scrubbed of what was
//! put into the request. Every request is judged alone, on the policy that holds when it arrives.

mod bodies;
mod sending;

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{
    ALT_SVC, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue,
    SEC_WEBSOCKET_EXTENSIONS, TRANSFER_ENCODING,
};
use http::{HeaderMap, StatusCode};
use http_body::Body as _;
use http_body_util::BodyExt;
use hutch_policy::{
    Action, Defence, Exchange, Facts, ForwardTo, HeadPlan, Judgement, Outcome, Reason, Request, RuleRef, Value, base64,
};
use hyper::body::Incoming;
use tokio::sync::oneshot;
use tokio::time::Instant;

use self::bodies::{Guarded, Kills, Returning, searched};
use crate::audit::{Decision, Kind, Record};
use crate::body::{self, Body, BodyError, Counted, Upload, scrub_headers};
use crate::clock;
use crate::decode::{self, Decoded, Encoding};
use crate::flow::{Kill, Ongoing};
use crate::gateway::Gateway;
use crate::head::{self, Head, Parts, Unbuildable};
use crate::locks::lock;
use crate::relay::{Meter, Way};
use crate::report;
use crate::sandbox::{Current, MAX_REFLECTIONS, Sandbox, Tally};
use crate::scrub::{Needles, SecretForms};

const HOP_BY_HOP: [&str; 8] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];
const TOKEN_HEADER: HeaderName = HeaderName::from_static("vercel-sandbox-oidc-token");
const REASON_HEADER: HeaderName = HeaderName::from_static("x-hutch-reason");
/// Rules that one flow remembers to be a connection of.
const MAX_USED_RULES: usize = 1024;

/// What an intercepted flow knows.
#[derive(Clone)]
pub struct Served {
    /// The gateway.
    pub gateway: Arc<Gateway>,
    /// The sandbox.
    pub sandbox: Arc<Sandbox>,
    /// The flow.
    pub flow: Arc<crate::flow::Flow>,
    /// Where the guest sent it.
    pub destination: SocketAddr,
    /// What its requests were admitted by.
    pub rules: Arc<std::sync::Mutex<HashSet<Option<hutch_policy::RuleId>>>>,
}

impl Served {
    /// A request is admitted by a rule, or without one: its flow is a connection of that.
    fn used(&self, rule: Option<hutch_policy::RuleId>) {
        let mut rules = lock(&self.rules);
        if rules.len() >= MAX_USED_RULES {
            // Policies came and went below a flow that stayed.
            rules.clear();
        }
        if rules.insert(rule) {
            self.sandbox.counters.tally_under(rule, |tally| tally.connections += 1);
        }
    }

    /// Write the record of what cannot be read as a request.
    pub fn unreadable(&self, reason: Reason, status: u16) {
        let mut record = report::record(&self.sandbox.current(), Kind::Http, Decision::Deny, reason)
            .dst_original(self.destination)
            .status(status);
        if let Some(name) = self.flow.admission().name() {
            record = record.name(name.as_str());
        }
        self.sandbox.report(record);
        self.sandbox.counters.tally(&name_of(self), |tally| tally.denied += 1);
    }
}

/// A request as it came.
pub struct Asked {
    /// The method.
    pub method: Bytes,
    /// The target, as on the wire.
    pub target: Bytes,
    /// HTTP/2's `:authority`.
    pub authority: Option<Bytes>,
    /// Headers in order.
    pub headers: Vec<(Bytes, Bytes)>,
    /// The body, which nobody reads before the request is admitted.
    pub body: Body,
    /// Told when the request is admitted and its body may be read.
    pub admitted: Option<oneshot::Sender<Admitted>>,
    /// Whether it came by HTTP/2.
    pub http2: bool,
}

/// What whoever reads the client has to know of an admitted request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Admitted {
    /// The client waits for `100 Continue`.
    pub expects_continue: bool,
}

/// What is answered.
pub enum Answer {
    /// A response.
    Response {
        /// Its status.
        status: StatusCode,
        /// Its headers, without those of the connection.
        headers: HeaderMap,
        /// Its body.
        body: Body,
        /// Whether the connection must not go on.
        close: bool,
        /// Ends the exchange: a client that does not read must not keep it alive.
        kill: Option<Arc<Kill>>,
    },
    /// A WebSocket: after this head bytes go both ways.
    Tunnel {
        /// The headers of the 101.
        headers: HeaderMap,
        /// The server's end.
        upgraded: hyper::upgrade::Upgraded,
        /// What responses are searched for.
        needles: Option<Arc<Needles>>,
        /// Counts the bytes, within the limits of the rule.
        meter: Meter,
        /// Alive as long as the tunnel.
        ongoing: Ongoing,
        /// Written at its end.
        log: Box<Log>,
    },
    /// The connection is to be reset.
    Reset,
}

/// Writes the record of an exchange when it is over.
pub struct Log {
    sandbox: Arc<Sandbox>,
    current: Arc<Current>,
    record: Option<Record>,
    key: String,
    rule: Option<hutch_policy::RuleId>,
    began: Instant,
    meter: Meter,
    reflected: u64,
    injects: bool,
    kill: Arc<Kill>,
    dialled: Option<SocketAddr>,
}

impl Log {
    /// Secrets came back. Too many disable the rule.
    pub fn reflected(&mut self, hits: u64) {
        if hits == 0 {
            return;
        }
        self.reflected += hits;
        let Some(rule) = self.rule else { return };
        let before = self.current.is_reflected(rule);
        if self.current.reflected(rule, hits) >= MAX_REFLECTIONS && !before {
            let record = report::record(&self.current, Kind::Limit, Decision::Deny, Reason::CredentialReflected);
            self.sandbox.report(record.rule(&rule.to_string()));
        }
    }

    fn denied(&mut self, reason: Reason) {
        self.record = self.record.take().map(|record| record.denied(reason.as_str()));
    }

    /// It ended before its end.
    pub fn failed(&mut self, reason: Reason) {
        self.record = self.record.take().map(|record| record.error(reason.as_str()));
    }

    fn status(&mut self, status: StatusCode) {
        self.record = self.record.take().map(|record| record.status(status.as_u16()));
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let Some(mut record) = self.record.take() else { return };
        if let Some(address) = self.dialled {
            record = record.dst(address);
        }
        let (up, down) = self.meter.read();
        if self.reflected > 0 {
            record = record.reflected(self.reflected);
        }
        if let Some(reason) = self.kill.reason() {
            record = record.revoked(reason.as_str());
        } else if let Some(reason) = self.meter.exceeded() {
            record = record.denied(reason.as_str());
            let mut limit = report::record(&self.current, Kind::Limit, Decision::Deny, reason);
            if let Some(rule) = self.rule {
                limit = limit.rule(&rule.to_string());
            }
            self.sandbox.report(limit.name(&self.key));
        }
        let spent = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(0);
        self.sandbox.report(record.bytes(up, down).dur_ms(spent));
        let injects = u64::from(self.injects);
        let add = |tally: &mut Tally| {
            tally.requests += 1;
            tally.injected += injects;
        };
        self.sandbox.counters.tally(&self.key, add);
        self.sandbox.counters.tally_under(self.rule, add);
    }
}

/// Answer one request.
pub async fn exchange(served: &Served, asked: Asked) -> Answer {
    let began = Instant::now();
    loop {
        let current = served.sandbox.current();
        let judgement = judge(served, &current, &asked);
        let record = about(served, &current, &asked, &judgement);
        let (plan, forward) = match judgement.outcome {
            Outcome::Refuse { status, close } => {
                served.sandbox.report(record.status(status));
                served
                    .sandbox
                    .counters
                    .tally(&name_of(served), |tally| tally.denied += 1);
                return refusal(status, judgement.reason, close);
            }
            Outcome::Respond(response) => {
                served.sandbox.report(record.status(response.status));
                let rule = judgement.rule.as_ref().map(|rule| rule.id);
                let counters = &served.sandbox.counters;
                counters.tally(&name_of(served), |tally| tally.requests += 1);
                counters.tally_under(rule, |tally| tally.requests += 1);
                served.used(rule);
                return local(&response);
            }
            Outcome::Pass(plan) => (plan, None),
            Outcome::Forward(to, plan) => (plan, Some(to)),
        };
        let exchange = Exchange {
            stamp: judgement.stamp.clone(),
            forward: forward.as_ref().map(|forward| forward.url.clone()),
            dialled: None,
        };
        let credentials = credentials_of(&current, judgement.rule.as_ref());
        let begun = served
            .sandbox
            .flows
            .begin(&served.flow, exchange, credentials, current.version);
        let Ok(ongoing) = begun else {
            // The policy changed while we looked at the request.
            continue;
        };
        let rule = judgement.rule.as_ref().map(|rule| rule.id);
        served.used(rule);
        let key = name_of(served);
        let meter = Meter::new(
            Arc::clone(&served.sandbox),
            Arc::clone(&served.flow),
            &key,
            judgement.limits,
            rule,
        );
        let injects = plan.injects();
        let log = Log {
            sandbox: Arc::clone(&served.sandbox),
            current: Arc::clone(&current),
            record: Some(record),
            key,
            rule,
            began,
            meter: meter.clone(),
            reflected: 0,
            injects,
            kill: Arc::clone(&ongoing.kill),
            dialled: None,
        };
        let kill = Arc::clone(&ongoing.kill);
        let work = Work {
            served,
            current,
            plan,
            forward,
            rule: judgement.rule,
            meter,
            ongoing,
            log,
        };
        return tokio::select! {
            biased;
            _ = served.flow.kill.wait() => Answer::Reset,
            _ = kill.wait() => Answer::Reset,
            answer = work.carry_out(asked) => answer,
        };
    }
}

fn judge(served: &Served, current: &Current, asked: &Asked) -> Judgement {
    let lines: Vec<(&[u8], &[u8])> = asked
        .headers
        .iter()
        .map(|(name, value)| (&name[..], &value[..]))
        .collect();
    let request = Request {
        method: &asked.method,
        target: &asked.target,
        authority: asked.authority.as_deref(),
        headers: &lines,
    };
    let state = |name: &str| current.credential_state(name);
    let facts = Facts {
        placeholders: &current.placeholders,
        credential: &state,
    };
    let mut judgement = current.policy.judge(&served.flow.admission(), &request, &facts);
    let disabled = judgement
        .rule
        .as_ref()
        .is_some_and(|rule| current.is_reflected(rule.id));
    let carries_secret = match &judgement.outcome {
        Outcome::Pass(plan) => plan.injects(),
        Outcome::Forward(..) => true,
        Outcome::Refuse { .. } | Outcome::Respond(_) => false,
    };
    if disabled && carries_secret {
        judgement.outcome = Outcome::Refuse {
            status: 403,
            close: false,
        };
        judgement.reason = Reason::CredentialReflected;
    }
    // A target that our own client would not send as it is, or that HTTP/1 does not have.
    let is_odd = asked.target.contains(&b'#') || !asked.target.is_ascii();
    if matches!(judgement.outcome, Outcome::Pass(_) | Outcome::Forward(..)) && is_odd {
        judgement.outcome = Outcome::Refuse {
            status: 400,
            close: true,
        };
        judgement.reason = Reason::ProtocolViolation;
    }
    judgement
}

fn about(served: &Served, current: &Current, asked: &Asked, judgement: &Judgement) -> Record {
    let decision = match (&judgement.outcome, judgement.reason) {
        (Outcome::Refuse { .. }, _) => Decision::Deny,
        (Outcome::Respond(_), _) => Decision::Respond,
        (Outcome::Forward(..), _) => Decision::Forward,
        (_, Reason::Inject) => Decision::Inject,
        (_, Reason::PassUnmatched) => Decision::PassUnmatched,
        _ => Decision::Allow,
    };
    let admission = served.flow.admission();
    let mode = if admission.handling == hutch_policy::Handling::InterceptPlaintext {
        "plain"
    } else {
        "mitm"
    };
    let mut record = report::record(current, Kind::Http, decision, judgement.reason)
        .dst_original(served.destination)
        .mode(mode)
        .alpn(if asked.http2 { "h2" } else { "http/1.1" })
        .method(&asked.method)
        .path(&asked.target);
    if let Some(name) = admission.name() {
        record = record.name(name.as_str());
        if let Some(pattern) = current.policy.tenant().pattern_of(name) {
            record = record.pattern(pattern.as_str());
        }
    }
    if let Some(rule) = &judgement.rule {
        record = record.rule(&rule.id.to_string());
    }
    record
}

fn name_of(served: &Served) -> String {
    served
        .flow
        .admission()
        .name()
        .map_or_else(String::new, ToString::to_string)
}

/// The gateway's own answer to what it refuses.
pub fn refusal(status: u16, reason: Reason, close: bool) -> Answer {
    let text = serde_json::json!({"error": {"code": reason.as_str(), "message": reason.description()}}).to_string();
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(REASON_HEADER, HeaderValue::from_static(reason.as_str()));
    Answer::Response {
        status: StatusCode::from_u16(status).unwrap_or(StatusCode::FORBIDDEN),
        headers,
        body: body::full(text),
        close,
        kill: None,
    }
}

fn local(response: &hutch_policy::Response) -> Answer {
    let mut headers = HeaderMap::new();
    for (name, value) in &response.headers {
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value)) {
            headers.append(name, value);
        }
    }
    if let Some(value) = response
        .content_type
        .as_ref()
        .and_then(|kind| HeaderValue::from_str(kind).ok())
    {
        headers.insert(CONTENT_TYPE, value);
    }
    Answer::Response {
        status: StatusCode::from_u16(response.status).unwrap_or(StatusCode::FORBIDDEN),
        headers,
        body: response
            .body
            .as_ref()
            .map_or_else(body::empty, |text| body::full(text.clone())),
        close: false,
        kill: None,
    }
}

/// The names of stored credentials that a rule puts into requests.
fn credentials_of(current: &Current, rule: Option<&RuleRef>) -> Vec<String> {
    let action = rule
        .and_then(|rule| current.policy.tenant().rule(rule.id))
        .map(|(_, rule)| &rule.action);
    let Some(Action::Transform(transform)) = action else {
        return Vec::new();
    };
    transform
        .values()
        .filter_map(|value| match value {
            Value::Credential(used) => Some(used.name.clone()),
            Value::Literal(_) => None,
        })
        .collect()
}

/// An admitted exchange.
struct Work<'a> {
    served: &'a Served,
    current: Arc<Current>,
    plan: HeadPlan,
    forward: Option<ForwardTo>,
    rule: Option<RuleRef>,
    meter: Meter,
    ongoing: Ongoing,
    log: Log,
}

impl Work<'_> {
    async fn carry_out(mut self, asked: Asked) -> Answer {
        let parts = Parts {
            method: &asked.method,
            headers: &asked.headers,
        };
        let mut head = match head::build(&parts, &self.plan, self.forward.as_ref(), &self.current) {
            Ok(head) => head,
            Err(Unbuildable::Credential) => return self.fail(503, Reason::CredentialMissing),
            Err(Unbuildable::Request) => return self.fail(400, Reason::ProtocolViolation),
        };
        let needles = match self.identify(&mut head) {
            Ok(needles) => needles,
            Err(reason) => return self.fail(503, reason),
        };
        if !head.injected.is_empty() {
            self.log.record = self.log.record.take().map(|record| record.injected(&head.injected));
        }
        if Defence::HeadBytes.holds() && !self.meter.charge(Way::Up, request_bytes(&asked)) {
            return self.fail(403, Reason::ByteLimit);
        }
        if asked.body.size_hint().lower() > self.served.gateway.settings().max_upload_bytes {
            self.meter.exceed(Reason::Limit);
            return self.fail(413, Reason::Limit);
        }
        let method = head.method.clone();
        let websocket_key = head.headers.get("sec-websocket-key").cloned();
        let upload = Arc::new(Upload::new(asked.body.is_end_stream()));
        let may_upgrade = self.plan.websocket && asked.body.is_end_stream();
        let request = match self.request(head, asked.body, asked.http2, &upload) {
            Ok(request) => request,
            Err(reason) => return self.fail(400, reason),
        };
        if let Some(admitted) = asked.admitted {
            let _ = admitted.send(Admitted {
                expects_continue: self.plan.expects_continue,
            });
        }
        let (response, connection) = match self.send(request, asked.http2, &upload).await {
            Ok(sent) => sent,
            Err(reason) => {
                let reason = self.meter.exceeded().unwrap_or(reason);
                let status = match reason {
                    Reason::ByteLimit => 403,
                    Reason::Limit => 413,
                    Reason::UpstreamTimeout => 504,
                    _ => 502,
                };
                return self.fail(status, reason);
            }
        };
        self.log.status(response.status());
        if !self.meter.charge(Way::Down, response_bytes(response.headers())) {
            return self.fail(403, Reason::ByteLimit);
        }
        // Two lengths, of which our client believes one: whoever reads the other sees another response (RFC 9112 §6.3).
        // And a coding beneath the chunks stays on the body that the guest gets, where nobody searches it.
        if Defence::ResponseFraming.holds()
            && response.headers().contains_key(TRANSFER_ENCODING)
            && (response.headers().contains_key(CONTENT_LENGTH) || !is_chunked(response.headers()))
        {
            return self.fail(502, Reason::UpstreamProtocol);
        }
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let key = websocket_key.as_ref().filter(|_| may_upgrade);
            return self.tunnel(response, needles, key).await;
        }
        self.answer(response, connection, needles, upload, method == http::Method::HEAD)
            .await
    }

    /// The server agreed to a WebSocket.
    async fn tunnel(
        mut self,
        mut response: http::Response<Incoming>,
        needles: Option<Arc<Needles>>,
        websocket_key: Option<&HeaderValue>,
    ) -> Answer {
        if !accepts(&response, websocket_key) {
            return self.fail(502, Reason::UpstreamProtocol);
        }
        let offers = response.headers().contains_key(SEC_WEBSOCKET_EXTENSIONS);
        if needles.is_some() && offers && Defence::OfferedExtensions.holds() {
            // Nobody asked for any, and compressed frames cannot be searched.
            return self.fail(502, Reason::Unscannable);
        }
        let Ok(upgraded) = hyper::upgrade::on(&mut response).await else {
            return self.fail(502, Reason::UpstreamProtocol);
        };
        Answer::Tunnel {
            headers: cleaned(response.headers(), needles.as_ref(), &mut self.log),
            upgraded,
            needles,
            meter: self.meter,
            ongoing: self.ongoing,
            log: Box::new(self.log),
        }
    }

    /// The server answered.
    async fn answer(
        mut self,
        response: http::Response<Incoming>,
        connection: Option<Returning>,
        needles: Option<Arc<Needles>>,
        upload: Arc<Upload>,
        is_head: bool,
    ) -> Answer {
        let has_body = !is_head && !response.body().is_end_stream();
        let mut encoding = Encoding::Identity;
        if needles.is_some() && has_body && Defence::Encodings.holds() {
            match decode::declared(response.headers()) {
                Some(declared) => encoding = declared,
                None => return self.fail(502, Reason::Unscannable),
            }
        }
        let mut headers = cleaned(response.headers(), needles.as_ref(), &mut self.log);
        let (status, length) = (response.status(), response.headers().get(CONTENT_LENGTH).cloned());
        if is_head && let Some(length) = length {
            headers.insert(CONTENT_LENGTH, length);
        }
        if encoding != Encoding::Identity {
            headers.remove(CONTENT_ENCODING);
        }
        let kill = Some(Arc::clone(&self.ongoing.kill));
        let log = Arc::new(std::sync::Mutex::new(self.log));
        let incoming = response.into_body();
        let is_over = incoming.is_end_stream();
        let mut guarded = Guarded {
            inner: Counted::new(incoming, self.meter.clone(), Way::Down),
            kills: Kills::new(Arc::clone(&self.served.flow), Arc::clone(&self.ongoing.kill)),
            connection,
            upload,
            _ongoing: self.ongoing,
            _log: Arc::clone(&log),
        };
        if is_over {
            // Nobody need ask for a body that is not there.
            guarded.finished();
        }
        // A search would not know that nothing comes, and the client would get an empty frame of data: gRPC takes none where
        // the status came with the head.
        let body = match (needles.filter(|_| !is_over), encoding) {
            (None, _) => guarded.boxed_unsync(),
            (Some(needles), Encoding::Identity) => searched(guarded, &needles, log),
            (Some(needles), encoding) => {
                let Ok(decoded) = Decoded::begin(guarded, encoding).await else {
                    let mut log = lock(&log);
                    log.status(StatusCode::BAD_GATEWAY);
                    log.denied(Reason::Unscannable);
                    return refusal(502, Reason::Unscannable, false);
                };
                let told = Arc::clone(&log);
                let noted = decoded.map_err(move |error| {
                    if matches!(error, BodyError::Ended(Reason::Unscannable)) {
                        lock(&told).denied(Reason::Unscannable);
                    }
                    error
                });
                searched(noted, &needles, log)
            }
        };
        Answer::Response {
            status,
            headers,
            body,
            close: false,
            kill,
        }
    }

    fn fail(mut self, status: u16, reason: Reason) -> Answer {
        let decided = matches!(
            reason,
            Reason::CredentialMissing
                | Reason::ProtocolViolation
                | Reason::Unscannable
                | Reason::DomainDeny
                | Reason::HardDeny
                | Reason::SelfAddress
                | Reason::AddressClass
                | Reason::SubnetDeny
                | Reason::ByteLimit
                | Reason::Limit
        );
        self.log.record = self.log.record.take().map(|record| {
            let record = record.status(status);
            if decided {
                record.denied(reason.as_str())
            } else {
                record.error(reason.as_str())
            }
        });
        refusal(status, reason, reason == Reason::ProtocolViolation)
    }

    /// Add what only the gateway may say to a forwarded request; what its response is searched for.
    fn identify(&self, head: &mut Head) -> Result<Option<Arc<Needles>>, Reason> {
        let Some(forward) = &self.forward else {
            return Ok(self.plan.scrub.then(|| self.needles()).flatten());
        };
        let settings = self.served.gateway.settings();
        let signer = settings.signer.as_ref().ok_or(Reason::Internal)?;
        let identity = self.served.sandbox.identity();
        let audience = audience(forward);
        let token = signer
            .token(&audience, &identity, clock::now_ms() / 1000)
            .ok_or(Reason::Internal)?;
        for (name, value) in &forward.identity {
            let value = HeaderValue::from_str(value).map_err(|_| Reason::ProtocolViolation)?;
            head.headers.insert(HeaderName::from_static(name), value);
        }
        let mut value = HeaderValue::from_str(&token.text).map_err(|_| Reason::Internal)?;
        value.set_sensitive(true);
        head.headers.insert(TOKEN_HEADER, value);
        Ok(Some(token.needles))
    }

    /// What the responses of this rule are searched for.
    fn needles(&self) -> Option<Arc<Needles>> {
        let rule = self.rule.as_ref()?;
        if let Some(known) = lock(&self.current.needles).get(&rule.id) {
            return Some(Arc::clone(known));
        }
        let (_, definition) = self.current.policy.tenant().rule(rule.id)?;
        let Action::Transform(transform) = &definition.action else {
            return None;
        };
        let mut secrets = Vec::new();
        for value in transform.values() {
            let rendered = head::rendered(value, &self.current).ok()?;
            let bare = match value {
                Value::Literal(secret) => bare_of(secret.expose()).to_owned(),
                Value::Credential(used) => self.current.credentials.get(&used.name)?.to_string(),
            };
            secrets.push((zeroize::Zeroizing::new(bare), rendered));
        }
        let forms: Vec<SecretForms<'_>> = secrets
            .iter()
            .enumerate()
            .filter(|(_, (bare, _))| bare.len() >= 12)
            .map(|(id, (bare, rendered))| SecretForms {
                id,
                value: bare,
                rendered: Some(rendered.expose()),
                basic: is_basic(rendered.expose()),
            })
            .collect();
        let needles = Arc::new(Needles::new(&forms));
        lock(&self.current.needles).insert(rule.id, Arc::clone(&needles));
        Some(needles)
    }
}

/// The bytes of a request's head: an endless number of heads is as good as a body for carrying something out.
fn request_bytes(asked: &Asked) -> usize {
    let lines = asked.headers.iter().map(|(name, value)| name.len() + value.len() + 4);
    asked.method.len() + asked.target.len() + lines.sum::<usize>()
}

/// The bytes of a response's head.
fn response_bytes(headers: &HeaderMap) -> usize {
    let lines = headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + 4);
    lines.sum()
}

/// The text without the scheme of an `Authorization` header, which is no secret.
fn bare_of(text: &str) -> &str {
    match text.split_once(' ') {
        Some((scheme, rest))
            if scheme.len() <= 10 && scheme.bytes().all(|byte| byte.is_ascii_alphabetic()) && rest.len() >= 12 =>
        {
            rest
        }
        _ => text,
    }
}

/// Whether a header's value is that of the Basic scheme.
fn is_basic(text: &str) -> bool {
    text.get(..6)
        .is_some_and(|scheme| scheme.eq_ignore_ascii_case("basic "))
}

/// Origin and path of the URL without a slash at the end, as `new URL(…)` of its verifiers spells them.
fn audience(forward: &ForwardTo) -> String {
    format!("https://{}{}", forward.host(), forward.url.path)
}

/// Whether a body comes in chunks and nothing else.
fn is_chunked(headers: &HeaderMap) -> bool {
    let mut encodings = headers.get_all(TRANSFER_ENCODING).iter();
    encodings
        .next()
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"chunked"))
        && encodings.next().is_none()
}

/// A response's headers without those of the connection, scrubbed.
fn cleaned(headers: &HeaderMap, needles: Option<&Arc<Needles>>, log: &mut Log) -> HeaderMap {
    let nominated: Vec<String> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(','))
        .map(|token| token.trim().to_ascii_lowercase())
        .collect();
    let mut clean = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers {
        let dropped = HOP_BY_HOP.contains(&name.as_str())
            || nominated.iter().any(|token| token == name.as_str())
            || [CONTENT_LENGTH, TRANSFER_ENCODING].contains(name)
            || (name == ALT_SVC && Defence::QuicHints.holds());
        if !dropped {
            clean.append(name.clone(), value.clone());
        }
    }
    let Some(needles) = needles.filter(|_| Defence::ScrubHeads.holds()) else {
        return clean;
    };
    let mut scrubber = needles.scrubber();
    let clean = scrub_headers(clean, &mut scrubber);
    log.reflected(scrubber.total());
    clean
}

/// Whether a 101 is the answer to our own request for a WebSocket.
fn accepts(response: &http::Response<Incoming>, key: Option<&HeaderValue>) -> bool {
    const SUFFIX: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    if !Defence::AgreedUpgrades.holds() {
        return true;
    }
    let Some(key) = key else { return false };
    let digest = ring::digest::digest(
        &ring::digest::SHA1_FOR_LEGACY_USE_ONLY,
        &[key.as_bytes(), SUFFIX].concat(),
    );
    let headers = response.headers();
    let upgrade = headers
        .get(http::header::UPGRADE)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"));
    let accept = headers
        .get("sec-websocket-accept")
        .is_some_and(|value| value.as_bytes() == base64::encode(digest.as_ref()).as_bytes());
    upgrade && accept
}

//! What would happen to one request: the same questions that the gateway asks, in the same order.
//!
//! Nothing is resolved. Without `address` the name is taken to have one that no range of the policies names, and the
//! answer says so.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hutch_policy::{
    Admission, Context, CredentialState, DnsDecision, DnsMode, EffectivePolicy, Facts, Flow, Grant, Handling, Host,
    Judgement, Mode, Name, Outcome, Placeholder, Policy, Question, Reason, RecordType, Request, Role, Sniffed, Step,
    compile, parse_authority,
};
use serde_json::{Value, json};

use crate::request::{Fields, Refusal, Settings};

/// What a name resolves to if nobody says: the first of these that no range of the policies contains.
const ASSUMED_ADDRESSES: [&str; 4] = ["203.0.113.1", "198.51.100.1", "192.0.2.1", "11.11.11.11"];
/// What a name gets under `dns.mode` "virtual".
const VIRTUAL_ADDRESS: &str = "198.18.0.1";

pub(crate) fn explain(request: &[u8]) -> Result<Vec<u8>, Refusal> {
    let fields = Fields::read(request)?;
    let settings = Settings::read(fields.raw("settings").unwrap_or("{}").as_bytes())?;
    let asked = Asked::read(&fields)?;
    let effective = effective(&fields, settings)?;
    let answer = Answer::to(&asked, &effective);
    Ok(serde_json::to_vec(&answer.to_json(&effective)).expect("a value is JSON"))
}

fn effective(fields: &Fields, settings: Settings) -> Result<EffectivePolicy, Refusal> {
    let mut policies: Vec<Arc<Policy>> = Vec::new();
    let texts = fields.items("policies")?;
    for (index, text) in texts.iter().enumerate() {
        let context = Context {
            hard_deny: &settings.hard_deny,
            previous: None,
            role: if index + 1 == texts.len() {
                Role::Tenant
            } else {
                Role::Bounds
            },
        };
        policies.push(compile(text.get().as_bytes(), &context)?.policy);
    }
    let tenant = policies
        .pop()
        .ok_or_else(|| Refusal::new("/policies", "should have at least the tenant's policy"))?;
    Ok(EffectivePolicy::intersect(
        Arc::new(settings.hard_deny),
        &policies,
        tenant,
    ))
}

/// How a client speaks, as its URL says.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scheme {
    Https,
    Http,
    Postgres,
    /// A protocol that shows no name.
    Raw,
}

struct Asked {
    scheme: Scheme,
    /// Host and port as written.
    authority: String,
    host: Host,
    port: u16,
    target: String,
    method: String,
    headers: Vec<(String, String)>,
    address: Option<IpAddr>,
    credentials: std::collections::HashMap<String, bool>,
}

impl Asked {
    fn read(fields: &Fields) -> Result<Self, Refusal> {
        let bad = |message: &str| Refusal::new("/url", message);
        let url = fields.text("url")?.ok_or_else(|| bad("should be there"))?;
        let (scheme, rest) = url
            .split_once("://")
            .ok_or_else(|| bad("should be a URL such as https://example.com/path"))?;
        let (scheme, default_port) = match scheme.to_ascii_lowercase().as_str() {
            "https" | "wss" => (Scheme::Https, Some(443)),
            "http" | "ws" => (Scheme::Http, Some(80)),
            "postgres" | "postgresql" => (Scheme::Postgres, Some(5432)),
            "ssh" => (Scheme::Raw, Some(22)),
            "tcp" => (Scheme::Raw, None),
            _ => return Err(bad("should have the scheme https, http, postgresql, ssh or tcp")),
        };
        let rest = rest.split('#').next().unwrap_or_default();
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, target) = rest.split_at(end);
        if authority.contains('@') {
            return Err(bad("should NOT have a user or password"));
        }
        let (host, port) = parse_authority(authority.as_bytes())
            .map_err(|error| bad(&format!("should have a valid host; this one {error}")))?;
        let address = match fields.text("address")? {
            None => None,
            Some(text) => Some(
                text.parse()
                    .map_err(|_| Refusal::new("/address", "should be an IP address"))?,
            ),
        };
        Ok(Self {
            scheme,
            authority: authority.to_owned(),
            host,
            port: port.or(default_port).ok_or_else(|| bad("should have a port"))?,
            target: if target.starts_with('/') {
                target.to_owned()
            } else {
                format!("/{target}")
            },
            method: fields.text("method")?.unwrap_or_else(|| "GET".to_owned()),
            headers: fields.pairs("headers")?,
            address,
            credentials: fields.flags("credentials")?,
        })
    }

    fn name(&self) -> Option<&Name> {
        match &self.host {
            Host::Name(name) => Some(name),
            Host::Address(_) => None,
        }
    }

    fn sniffed(&self) -> Sniffed<'_> {
        // Clients send no address as a server name.
        let server_name = self.name().map(|name| name.as_str().as_bytes());
        match self.scheme {
            Scheme::Https => Sniffed::Tls { server_name },
            Scheme::Postgres => Sniffed::Postgres { server_name },
            Scheme::Http => Sniffed::Http {
                host: Some(self.authority.as_bytes()),
            },
            Scheme::Raw => Sniffed::Other,
        }
    }
}

/// Where it was decided.
#[derive(Clone, Copy)]
enum Stage {
    Dns,
    Connection,
    Request,
}

struct Answer {
    stage: Stage,
    decision: &'static str,
    reason: Reason,
    dns: Option<(&'static str, Option<Reason>)>,
    /// The address that the answer is about, and whether it is only taken to be one.
    address: Option<(IpAddr, bool)>,
    admission: Option<Admission>,
    judgement: Option<Judgement>,
}

impl Answer {
    fn to(asked: &Asked, policy: &EffectivePolicy) -> Self {
        let mut answer = Self {
            stage: Stage::Dns,
            decision: "deny",
            reason: Reason::Internal,
            dns: None,
            address: None,
            admission: None,
            judgement: None,
        };
        if let Some(name) = asked.name() {
            let (decision, refusal) = ask_dns(name, policy);
            answer.dns = Some((decision, refusal));
            // Whoever dials an address has not asked for it here.
            if let (Some(reason), None) = (refusal, asked.address) {
                answer.reason = reason;
                return answer;
            }
        }
        answer.stage = Stage::Connection;
        let (flow, assumed) = flow(asked, policy);
        answer.address = Some((flow.destination.ip(), assumed));
        let step = match policy.accept(&flow) {
            Step::NeedBytes => policy.decide(&flow, &asked.sniffed()),
            step => step,
        };
        let admission = match step {
            Step::Admit(admission) => admission,
            Step::Refuse(reason) => {
                answer.reason = reason;
                return answer;
            }
            Step::NeedBytes => return answer,
        };
        // What a name resolves to is only judged where it is known.
        if flow.virtual_name.is_none()
            && !(assumed && admission.name().is_some())
            && let Err(reason) = policy.vet(&admission, flow.destination.ip())
        {
            answer.reason = reason;
            return answer;
        }
        answer.decision = "allow";
        answer.reason = admission.reason;
        if admission.handling.is_intercepted() {
            answer.stage = Stage::Request;
            let judgement = judge(asked, policy, &admission);
            answer.reason = judgement.reason;
            answer.decision = match (&judgement.outcome, judgement.reason) {
                (Outcome::Refuse { .. }, _) => "deny",
                (Outcome::Respond(_), _) => "respond",
                (Outcome::Forward(..), _) => "forward",
                (Outcome::Pass(_), Reason::Inject) => "inject",
                (Outcome::Pass(_), Reason::PassUnmatched) => "pass_unmatched",
                (Outcome::Pass(_), _) => "allow",
            };
            answer.judgement = Some(judgement);
        }
        answer.admission = Some(admission);
        answer
    }

    fn to_json(&self, policy: &EffectivePolicy) -> Value {
        let judgement = self.judgement.as_ref();
        let rule = judgement.and_then(|judgement| judgement.rule.as_ref());
        let pattern = rule
            .map(|rule| rule.pattern.to_string())
            .or_else(|| self.admission.as_ref().and_then(pattern_of));
        let status = judgement.and_then(|judgement| match &judgement.outcome {
            Outcome::Refuse { status, .. } => Some(*status),
            Outcome::Respond(response) => Some(response.status),
            _ => None,
        });
        let (injected, credentials) = judgement.map(injected).unwrap_or_default();
        json!({
            "decision": self.decision,
            "reason": self.reason.as_str(),
            "message": self.reason.description(),
            "stage": match self.stage {
                Stage::Dns => "dns",
                Stage::Connection => "connection",
                Stage::Request => "request",
            },
            "dns": self.dns.map(|(decision, reason)| json!({
                "decision": decision,
                "reason": reason.map(Reason::as_str),
            })),
            "mode": self.admission.as_ref().map(mode_of),
            "pattern": pattern,
            "rule": rule.map(|rule| json!({
                "index": rule.index,
                "id": rule.id.to_string(),
                "of": if rule.layer == policy.bounds().len() { "tenant" } else { "bounds" },
            })),
            "injected": injected,
            "credentials": credentials,
            "status": status,
            "address": self.address.map(|(address, assumed)| json!({
                "ip": address.to_string(),
                "assumed": assumed,
            })),
        })
    }
}

fn ask_dns(name: &Name, policy: &EffectivePolicy) -> (&'static str, Option<Reason>) {
    let question = Question {
        name: name.as_str().as_bytes(),
        kind: RecordType::A,
        well_formed: true,
        ipv6: false,
    };
    match policy.dns(&question) {
        DnsDecision::Resolve { .. } => ("resolve", None),
        DnsDecision::Virtual { .. } => ("virtual", None),
        DnsDecision::NoData(reason) => ("no_data", Some(reason)),
        DnsDecision::Refuse(_, reason) => ("refuse", Some(reason)),
    }
}

/// The flow that a client makes, and whether its address is only assumed.
fn flow(asked: &Asked, policy: &EffectivePolicy) -> (Flow, bool) {
    let tenant = policy.tenant();
    let is_virtual = tenant.mode() == Mode::Custom && tenant.dns_mode() == DnsMode::Virtual;
    let constant = |text: &str| text.parse::<IpAddr>().expect("a constant address");
    let (ip, assumed, virtual_name) = match (&asked.host, asked.address) {
        (_, Some(address)) => (address, false, None),
        (Host::Address(address), None) => (*address, false, None),
        (Host::Name(name), None) if is_virtual => (constant(VIRTUAL_ADDRESS), false, Some(name.clone())),
        (Host::Name(_), None) => (assumed_address(policy), true, None),
    };
    let destination = SocketAddr::new(ip, asked.port);
    (
        Flow {
            destination,
            virtual_name,
        },
        assumed,
    )
}

fn assumed_address(policy: &EffectivePolicy) -> IpAddr {
    let addresses = ASSUMED_ADDRESSES.map(|text| text.parse::<IpAddr>().expect("a constant address"));
    let layers = || policy.bounds().iter().chain([policy.tenant()]);
    let named = |address: IpAddr| {
        layers().any(|layer| {
            let (allowed, denied) = layer.ranges();
            allowed.iter().chain(denied).any(|range| range.contains(address))
        })
    };
    addresses
        .into_iter()
        .find(|address| !named(*address))
        .unwrap_or(addresses[0])
}

fn judge(asked: &Asked, policy: &EffectivePolicy, admission: &Admission) -> Judgement {
    // A header such as `authorization: Bearer $TOKEN` carries the placeholder of the variable TOKEN.
    let placeholders: Vec<Placeholder> = policy
        .tenant()
        .placeholders()
        .into_iter()
        .map(|(variable, credential)| Placeholder {
            text: format!("${variable}"),
            variable: variable.to_owned(),
            credential: credential.to_owned(),
        })
        .collect();
    let credential = |name: &str| match asked.credentials.get(name) {
        Some(false) => CredentialState::Missing,
        _ => CredentialState::Present,
    };
    let mut headers: Vec<(&[u8], &[u8])> = asked
        .headers
        .iter()
        .map(|(name, value)| (name.as_bytes(), value.as_bytes()))
        .collect();
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case(b"host")) {
        headers.insert(0, (b"host", asked.authority.as_bytes()));
    }
    let request = Request {
        method: asked.method.as_bytes(),
        target: asked.target.as_bytes(),
        authority: None,
        headers: &headers,
    };
    let facts = Facts {
        placeholders: &placeholders,
        credential: &credential,
    };
    policy.judge(admission, &request, &facts)
}

fn mode_of(admission: &Admission) -> &'static str {
    match admission.handling {
        Handling::Splice if admission.name().is_none() => "raw",
        Handling::Splice | Handling::SplicePostgres => "splice",
        Handling::Intercept => "intercept",
        Handling::InterceptPlaintext => "plain",
    }
}

fn pattern_of(admission: &Admission) -> Option<String> {
    match admission.grants.last() {
        Some(Grant::Name(pattern)) => Some(pattern.to_string()),
        _ => None,
    }
}

/// Names of what is put into the request, and of the stored credentials among it. Parameters have a `?` in front.
fn injected(judgement: &Judgement) -> (Vec<String>, Vec<String>) {
    let (Outcome::Pass(plan) | Outcome::Forward(_, plan)) = &judgement.outcome else {
        return Default::default();
    };
    let names = plan
        .set
        .iter()
        .map(|edit| edit.spelling.clone())
        .chain(plan.query.iter().map(|edit| format!("?{}", edit.name)))
        .collect();
    let values = plan
        .set
        .iter()
        .map(|edit| &edit.value)
        .chain(plan.query.iter().map(|edit| &edit.value));
    let mut credentials: Vec<String> = values
        .filter_map(|value| value.credential().map(|used| used.name.clone()))
        .chain(plan.replace.iter().map(|replacement| replacement.credential.clone()))
        .collect();
    credentials.sort_unstable();
    credentials.dedup();
    (names, credentials)
}

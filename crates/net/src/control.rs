//! The gateway's one door: the host, on a private socket.
//!
//! How requests come: `requests`. Secrets come in here and nowhere else, and none ever goes out.
//!
//! | method | body | answer |
//! | --- | --- | --- |
//! | `configure` | [`Configuration`] | `{}` |
//! | `open` | | `{}`; from now on connections are taken |
//! | `sandbox.add` | [`Add`] | `{}`; the sandbox may do nothing yet |
//! | `sandbox.policy` | [`SetPolicy`] | `{generation, closed_flows, kept_flows}`, when it is enforced |
//! | `sandbox.remove` | [`Which`] | `{}` |
//! | `sandbox.list` | | `{sandboxes: [{address, lifecycle, generation}]}` |
//! | `counters` | [`Which`] | `{flows, up_bytes, down_bytes, tallies, rules, unruled, cpu_us}`, see [`Counted`] |
//! | `audit` | | events `{number, sandbox_id, seq, record}` for ever |
//! | `audit.stored` | `{number}` | `{}`: records up to it need not be sent again |

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use hutch_policy::{Defence, Mode, Placeholder, Reason};
use hutch_wire::{ErrorMessage, encode};
use serde::{Deserialize, Serialize};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use zeroize::Zeroizing;

use crate::audit::Chain;
use crate::audit::{Decision, Kind};
use crate::gateway::{Configuration, Gateway};
use crate::report;
use crate::requests::{self, NOTHING, Outcome, Request, bad, read};
use crate::sandbox::{Counted, Counters, Identity, Sandbox, Tally};
use crate::tls::{Authority, Verifiers};

const MAX_BODY_BYTES: usize = 16 << 20;
/// Records that are put on the channel at once.
const AUDIT_BATCH_BYTES: usize = 256 * 1024;

/// A sandbox that is to be known. Bytes are base64, standard alphabet.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Add {
    /// The address that the kernel has bound to its link.
    pub address: Ipv4Addr,
    /// The host's end of the link.
    pub gateway: Ipv4Addr,
    /// The common name of its certificate authority.
    pub ca_name: String,
    /// Its key, PKCS #8, in hexadecimal digits.
    pub ca_key: String,
    /// Its subject key identifier, in hexadecimal digits.
    pub ca_key_id: String,
    /// What a gateway before this one counted for it.
    #[serde(default)]
    pub counted: Counted,
}

/// What holds for a sandbox from now on.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetPolicy {
    /// Which.
    pub address: Ipv4Addr,
    /// Who it is.
    pub sandbox_id: String,
    /// Its name.
    pub sandbox_name: String,
    /// Its team.
    pub team_id: String,
    /// Its project.
    pub project_id: String,
    /// The session.
    pub lifecycle: String,
    /// The generation of the policy.
    pub generation: u64,
    /// The policy in the request form; `None` allows everything.
    pub policy: Option<String>,
    /// Policies of the operator, the team and the project.
    #[serde(default)]
    pub bounds: Vec<String>,
    /// Values of stored credentials.
    #[serde(default)]
    pub credentials: HashMap<String, String>,
    /// Placeholders that the guest has.
    #[serde(default)]
    pub placeholders: Vec<PlaceholderMessage>,
    /// Where the sandbox's audit goes on: the number and the hash of its last record.
    #[serde(default)]
    pub audit_seq: u64,
    /// In hexadecimal digits; empty for none.
    #[serde(default)]
    pub audit_previous: String,
}

/// A placeholder.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlaceholderMessage {
    /// The random text.
    pub text: String,
    /// The variable that has it.
    pub variable: String,
    /// The credential that it stands for.
    pub credential: String,
}

/// One sandbox.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Which {
    /// Its address.
    pub address: Ipv4Addr,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    number: u64,
}

#[derive(Serialize)]
struct Applied {
    generation: u64,
    closed_flows: u64,
    kept_flows: u64,
}

#[derive(Serialize)]
struct Listed {
    address: String,
    lifecycle: String,
    generation: u64,
}

#[derive(Serialize)]
struct List {
    sandboxes: Vec<Listed>,
}

#[derive(Serialize)]
struct CountersMessage {
    flows: u64,
    up_bytes: u64,
    down_bytes: u64,
    tallies: BTreeMap<String, Tally>,
    rules: BTreeMap<String, (u64, u64)>,
    unruled: Tally,
    cpu_us: u64,
}

#[derive(Serialize)]
struct AuditEvent {
    number: u64,
    sandbox_id: String,
    seq: u64,
    record: String,
}

/// Serve the host, for ever. A new connection takes over from an old one.
pub async fn serve(gateway: Arc<Gateway>, listener: UnixListener) {
    while let Ok((stream, _)) = listener.accept().await {
        let (gateway, cpu) = (Arc::clone(&gateway), gateway.cpu.clone());
        cpu.spawn(async move {
            let mut connection = Connection::new(gateway, stream);
            // A host that goes away comes back; what it said stays.
            let _ = connection.run().await;
        });
    }
}

struct Connection {
    gateway: Arc<Gateway>,
    host: requests::Connection,
    done: mpsc::UnboundedSender<(u32, Outcome)>,
    outcomes: mpsc::UnboundedReceiver<(u32, Outcome)>,
    sent: u64,
}

impl Connection {
    fn new(gateway: Arc<Gateway>, stream: UnixStream) -> Self {
        let (done, outcomes) = mpsc::unbounded_channel();
        Self {
            gateway,
            host: requests::Connection::new(stream, MAX_BODY_BYTES),
            done,
            outcomes,
            sent: 0,
        }
    }

    async fn run(&mut self) -> std::io::Result<()> {
        let reports = Arc::clone(&self.gateway.reports);
        loop {
            self.load_audit();
            if self.host.flush().await? {
                continue;
            }
            let followed = self.host.is_followed();
            tokio::select! {
                requests = self.host.requests() => {
                    let Some(requests) = requests? else { return Ok(()) };
                    for request in requests {
                        self.begin(request);
                    }
                }
                Some((stream, outcome)) = self.outcomes.recv() => self.host.answer(stream, outcome),
                () = reports.arrived.notified(), if followed => {}
            }
        }
    }

    fn begin(&mut self, request: Request) {
        let Request { stream, method, body } = request;
        if method == "audit" {
            self.host.follow(stream);
            self.host.clear_events();
            self.sent = 0;
            return;
        }
        let (gateway, done) = (Arc::clone(&self.gateway), self.done.clone());
        self.gateway.cpu.spawn(async move {
            let outcome = answer(&gateway, &method, &body).await;
            let _ = done.send((stream, outcome));
        });
    }

    /// Take more records when all that were taken are on the channel.
    fn load_audit(&mut self) {
        if !self.host.is_followed() || self.host.has_events() {
            return;
        }
        for sealed in self.gateway.reports.after(self.sent, AUDIT_BATCH_BYTES) {
            self.sent = sealed.number;
            self.host.push(encode(&AuditEvent {
                number: sealed.number,
                sandbox_id: sealed.sandbox_id,
                seq: sealed.seq,
                record: String::from_utf8_lossy(&sealed.bytes).into_owned(),
            }));
        }
    }
}

async fn answer(gateway: &Arc<Gateway>, method: &str, body: &[u8]) -> Outcome {
    match method {
        "configure" => {
            let configuration: Configuration = read(body)?;
            gateway.configure(&configuration).map_err(bad)?;
            Ok(NOTHING.to_vec())
        }
        "open" => {
            gateway.open();
            Ok(NOTHING.to_vec())
        }
        "sandbox.add" => add(gateway, read(body)?).await,
        "sandbox.policy" => set_policy(gateway, read(body)?).await,
        "sandbox.remove" => {
            let which: Which = read(body)?;
            if let Some(sandbox) = gateway.remove(which.address.into()) {
                sandbox.close(gateway.closed()).await;
                gateway.ended(&sandbox);
            }
            Ok(NOTHING.to_vec())
        }
        "sandbox.list" => {
            let sandboxes = gateway
                .sandboxes()
                .iter()
                .map(|sandbox| Listed {
                    address: sandbox.address.to_string(),
                    lifecycle: sandbox.identity().lifecycle.clone(),
                    generation: sandbox.current().generation,
                })
                .collect();
            Ok(encode(&List { sandboxes }))
        }
        "counters" => {
            let which: Which = read(body)?;
            let sandbox = find(gateway, which.address)?;
            let counted = sandbox.counters.counted();
            Ok(encode(&CountersMessage {
                flows: sandbox.flows.len() as u64,
                up_bytes: counted.up_bytes,
                down_bytes: counted.down_bytes,
                tallies: counted.tallies,
                rules: counted.rules,
                unruled: counted.unruled,
                cpu_us: counted.cpu_us,
            }))
        }
        "audit.stored" => {
            let stored: Stored = read(body)?;
            gateway.reports.stored(stored.number);
            Ok(NOTHING.to_vec())
        }
        _ => Err(ErrorMessage::new(
            404,
            "unknown_method",
            format!("The gateway has no method '{method}'."),
        )),
    }
}

fn find(gateway: &Gateway, address: Ipv4Addr) -> Result<Arc<Sandbox>, ErrorMessage> {
    gateway.sandbox(address.into()).ok_or_else(|| {
        ErrorMessage::new(
            404,
            "unknown_sandbox",
            format!("The gateway has no sandbox with the address {address}."),
        )
    })
}

async fn add(gateway: &Arc<Gateway>, add: Add) -> Outcome {
    let key = Zeroizing::new(unhex(&add.ca_key)?);
    let authority = Authority::new(&add.ca_name, &key, &unhex(&add.ca_key_id)?).map_err(bad)?;
    let mut sandbox = Sandbox::new(
        add.address,
        add.gateway,
        authority,
        Verifiers::new(&gateway.settings().roots),
        gateway.closed(),
        gateway.settings().flows,
        Arc::clone(&gateway.reports),
    );
    sandbox.counters = Counters::resume(add.counted);
    if let Some(former) = gateway.add(Arc::new(sandbox)) {
        former.close(gateway.closed()).await;
        gateway.ended(&former);
    }
    Ok(NOTHING.to_vec())
}

async fn set_policy(gateway: &Arc<Gateway>, set: SetPolicy) -> Outcome {
    let sandbox = find(gateway, set.address)?;
    let policy = gateway.compile(set.policy.as_deref(), &set.bounds).map_err(bad)?;
    if !Defence::OrderedUpdates.holds() {
        // As if each were compiled beside the others.
        tokio::time::sleep(Duration::from_micros(set.policy.map_or(0, |text| text.len() as u64))).await;
    }
    let identity = Identity {
        sandbox_id: set.sandbox_id,
        sandbox_name: set.sandbox_name,
        team_id: set.team_id,
        project_id: set.project_id,
        lifecycle: set.lifecycle,
    };
    let previous = if set.audit_previous.is_empty() {
        [0; 32]
    } else {
        unhex(&set.audit_previous)?
            .try_into()
            .map_err(|_| bad("Invalid request: `audit_previous` is not 64 hexadecimal digits"))?
    };
    let chain = gateway.resume(&identity.sandbox_id, Chain::resume(set.audit_seq, previous));
    sandbox.identify(identity, chain);
    let credentials = set
        .credentials
        .into_iter()
        .map(|(name, value)| (name, Zeroizing::new(value)))
        .collect();
    let placeholders = set
        .placeholders
        .into_iter()
        .map(|placeholder| Placeholder {
            text: placeholder.text,
            variable: placeholder.variable,
            credential: placeholder.credential,
        })
        .collect();
    let before = sandbox.current().generation;
    let swept = sandbox.update(set.generation, policy, credentials, placeholders).await;
    swept.closed().await;
    if before != set.generation {
        let current = sandbox.current();
        let reason = match current.policy.tenant().mode() {
            Mode::AllowAll => Reason::AllowAll,
            Mode::DenyAll => Reason::DenyAll,
            Mode::Custom => Reason::Domain,
        };
        sandbox.report(report::record(&current, Kind::Policy, Decision::Allow, reason));
    }
    Ok(encode(&Applied {
        generation: set.generation,
        closed_flows: swept.cut.len() as u64,
        kept_flows: swept.kept as u64,
    }))
}

fn unhex(text: &str) -> Result<Vec<u8>, ErrorMessage> {
    let digit = |byte: u8| (byte as char).to_digit(16);
    let pairs = text.as_bytes().chunks(2).map(|pair| match pair {
        [high, low] => Some((digit(*high)? << 4 | digit(*low)?) as u8),
        _ => None,
    });
    pairs
        .collect::<Option<_>>()
        .ok_or_else(|| bad("Invalid request: not pairs of hexadecimal digits"))
}

//! The gateway as a whole: its sandboxes, and what the host has configured.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use hutch_policy::{Cidr, Context, Defence, EffectivePolicy, HardDeny, HardDenySettings, Policy, Role, compile};
use rustls::RootCertStore;
use serde::Deserialize;

use crate::audit::Chain;
use crate::cpu::CpuTime;
use crate::dns::resolver::Resolver;
use crate::identity::Signer;
use crate::locks::{lock, read, write};
use crate::report::Reports;
use crate::sandbox::{FlowLimits, Sandbox};
use crate::tls;

/// How often what was only counted is written.
const FLUSH_EVERY: Duration = Duration::from_secs(1);
/// Ended sandboxes whose audit's end is remembered.
const MAX_ENDS: usize = 4096;

/// What the host says about itself and its operator's settings.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Configuration {
    /// Name servers, `ADDRESS:PORT`.
    pub dns_upstreams: Vec<SocketAddr>,
    /// The host's trust store and the operator's additions, in PEM.
    pub roots_pem: String,
    /// Addresses of this host.
    pub own: Vec<IpAddr>,
    /// Ranges that sandboxes get addresses from.
    pub sandbox_pools: Vec<String>,
    /// Private ranges that the operator opens.
    pub allow_private: Vec<String>,
    /// Whether only refusals are recorded.
    pub only_denials: bool,
    /// Connections of one sandbox at once.
    pub max_flows: usize,
    /// New connections of one sandbox per second.
    pub flows_per_second: u32,
    /// The largest body of a request.
    pub max_upload_bytes: u64,
    /// The issuer of identity tokens.
    pub issuer: String,
    /// The key that signs them (PKCS #8 in PEM), with its id.
    pub signing_key_pem: Option<String>,
    /// The id of that key.
    pub signing_key_id: String,
}

/// What follows from a configuration.
pub struct Settings {
    /// Addresses that no policy opens.
    pub hard_deny: Arc<HardDeny>,
    /// Whom servers must be vouched for by.
    pub roots: Arc<RootCertStore>,
    /// Name servers.
    pub resolver: Resolver,
    /// Bounds of each sandbox's connections.
    pub flows: FlowLimits,
    /// The largest body of a request.
    pub max_upload_bytes: u64,
    /// Signs identity tokens; `None` until there is a key.
    pub signer: Option<Arc<Signer>>,
}

/// The gateway.
pub struct Gateway {
    settings: RwLock<Arc<Settings>>,
    sandboxes: RwLock<HashMap<IpAddr, Arc<Sandbox>>>,
    /// Audit records on their way.
    pub reports: Arc<Reports>,
    /// What is spent on no sandbox in particular.
    pub cpu: CpuTime,
    /// Where the audit of sandboxes that are gone ended, by their ids.
    ends: Mutex<HashMap<String, Chain>>,
    open: tokio::sync::watch::Sender<bool>,
}

impl Default for Gateway {
    fn default() -> Self {
        let settings = Settings {
            hard_deny: Arc::new(HardDeny::default()),
            roots: Arc::new(RootCertStore::empty()),
            resolver: Resolver::new(Vec::new()),
            flows: FlowLimits::default(),
            max_upload_bytes: u64::MAX,
            signer: None,
        };
        Self {
            settings: RwLock::new(Arc::new(settings)),
            sandboxes: RwLock::default(),
            reports: Arc::default(),
            cpu: CpuTime::default(),
            ends: Mutex::default(),
            open: tokio::sync::watch::Sender::new(false),
        }
    }
}

impl Gateway {
    /// Take a configuration. The text says what is wrong with it, and the old one stays.
    pub fn configure(&self, configuration: &Configuration) -> Result<(), String> {
        let ranges = |texts: &[String]| -> Result<Vec<Cidr>, String> {
            texts
                .iter()
                .map(|text| Cidr::parse(text).map_err(|error| format!("{text} {error}")))
                .collect()
        };
        let hard_deny = HardDeny::new(&HardDenySettings {
            allow_private: ranges(&configuration.allow_private)?,
            own: configuration.own.clone(),
            sandbox_pools: ranges(&configuration.sandbox_pools)?,
        })
        .map_err(|range| format!("egress.allow_private: {range} can never be opened"))?;
        let (roots, _) = tls::roots(configuration.roots_pem.as_bytes());
        if roots.is_empty() {
            return Err("the trust store holds no usable certificate".to_owned());
        }
        let signer = configuration
            .signing_key_pem
            .as_ref()
            .map(|pem| Signer::new(&configuration.issuer, &configuration.signing_key_id, pem))
            .transpose()?;
        self.reports.only_denials(configuration.only_denials);
        *write(&self.settings) = Arc::new(Settings {
            hard_deny: Arc::new(hard_deny),
            roots: Arc::new(roots),
            resolver: Resolver::new(configuration.dns_upstreams.clone()),
            flows: FlowLimits {
                at_once: configuration.max_flows,
                per_second: configuration.flows_per_second,
            },
            max_upload_bytes: if Defence::BodySize.holds() {
                configuration.max_upload_bytes
            } else {
                u64::MAX
            },
            signer: signer.map(Arc::new),
        });
        Ok(())
    }

    /// The host has said who its sandboxes are: take what they send.
    pub fn open(&self) {
        self.open.send_replace(true);
    }

    /// Wait until it has.
    pub async fn opened(&self) {
        // The sender lives as long as we do.
        let _ = self.open.subscribe().wait_for(|open| *open).await;
    }

    /// What is configured.
    pub fn settings(&self) -> Arc<Settings> {
        Arc::clone(&read(&self.settings))
    }

    /// Asks name servers.
    pub fn resolver(&self) -> Resolver {
        read(&self.settings).resolver.clone()
    }

    /// The sandbox that has this address.
    pub fn sandbox(&self, address: IpAddr) -> Option<Arc<Sandbox>> {
        read(&self.sandboxes).get(&address).cloned()
    }

    /// Every sandbox.
    pub fn sandboxes(&self) -> Vec<Arc<Sandbox>> {
        read(&self.sandboxes).values().cloned().collect()
    }

    /// Add a sandbox, or put it in the place of one that had its address.
    pub fn add(&self, sandbox: Arc<Sandbox>) -> Option<Arc<Sandbox>> {
        write(&self.sandboxes).insert(IpAddr::V4(sandbox.address), sandbox)
    }

    /// Forget a sandbox.
    pub fn remove(&self, address: IpAddr) -> Option<Arc<Sandbox>> {
        write(&self.sandboxes).remove(&address)
    }

    /// A sandbox has ended: its audit goes on here when it starts again, also where the host has not stored the last records
    /// yet.
    pub fn ended(&self, sandbox: &Sandbox) {
        let mut ends = lock(&self.ends);
        if ends.len() >= MAX_ENDS {
            // The host has stored those by now.
            ends.clear();
        }
        ends.insert(sandbox.identity().sandbox_id.clone(), sandbox.chain());
    }

    /// Where a sandbox's audit goes on, when the host has stored it up to `stored`.
    pub fn resume(&self, sandbox_id: &str, stored: Chain) -> Chain {
        match lock(&self.ends).remove(sandbox_id) {
            Some(end) if end.seq() > stored.seq() => end,
            _ => stored,
        }
    }

    /// A policy within its bounds. The text says what is wrong: the control plane lets no invalid policy through.
    pub fn compile(&self, tenant: Option<&str>, bounds: &[String]) -> Result<EffectivePolicy, String> {
        let settings = self.settings();
        // What was valid when it was accepted stays valid: addresses that are closed since are refused one by one.
        let open = HardDeny::new(&HardDenySettings {
            allow_private: vec![
                Cidr::parse("0.0.0.0/0").map_err(|error| error.to_string())?,
                Cidr::parse("::/0").map_err(|error| error.to_string())?,
            ],
            ..HardDenySettings::default()
        })
        .map_err(|range| range.to_string())?;
        let context = |role| Context {
            hard_deny: &open,
            previous: None,
            role,
        };
        let tenant = match tenant {
            None => Policy::allow_all(),
            Some(text) => {
                compile(text.as_bytes(), &context(Role::Tenant))
                    .map_err(|error| error.to_string())?
                    .policy
            }
        };
        let bounds = bounds
            .iter()
            .map(|text| compile(text.as_bytes(), &context(Role::Bounds)).map(|compiled| compiled.policy))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| error.to_string())?;
        Ok(EffectivePolicy::intersect(
            Arc::clone(&settings.hard_deny),
            &bounds,
            tenant,
        ))
    }

    /// What holds before there is a policy.
    pub fn closed(&self) -> EffectivePolicy {
        EffectivePolicy::intersect(Arc::clone(&self.settings().hard_deny), &[], Policy::deny_all())
    }

    /// Write what was only counted and close what nobody uses, for ever.
    pub async fn flush_for_ever(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(FLUSH_EVERY);
        loop {
            ticks.tick().await;
            for sandbox in self.sandboxes() {
                sandbox.cpu().during(|| {
                    sandbox.flush_reports();
                    sandbox.pool.expire();
                });
            }
        }
    }
}

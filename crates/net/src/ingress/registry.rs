//! What is known: routes, which sandbox runs where, and what is being waked.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use ring::signature::ED25519_PUBLIC_KEY_LEN;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::Deserialize;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use zeroize::Zeroizing;

use super::counts::{Counts, Full, Waked};
use super::token::{KEY_BYTES, unhex};
use crate::locks::lock;

const _: () = assert!(KEY_BYTES == ED25519_PUBLIC_KEY_LEN);

/// What the host says once, and again when it changes.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Configuration {
    domain: String,
    https: bool,
    header_timeout_ms: u64,
    idle_timeout_ms: u64,
    connect_timeout_ms: u64,
    wake_timeout_ms: u64,
    listen_timeout_ms: u64,
    max_connections: usize,
    max_connections_per_client: usize,
    max_requests_per_sandbox: usize,
    max_waiting: usize,
    max_header_bytes: usize,
    max_body_bytes: u64,
    /// Where the server has its webhooks, on the loopback interface; 0 for nowhere.
    #[serde(default)]
    webhooks_port: u16,
    /// PEM; empty for none.
    #[serde(default)]
    certificate: String,
    /// PEM.
    #[serde(default)]
    key: String,
}

/// What holds for every connection from now on.
pub struct Settings {
    /// Names are one label below it.
    pub domain: String,
    /// Whether clients speak TLS to us, or to what stands in front of us.
    pub https: bool,
    /// For the greeting of TLS, and for the head of each request.
    pub header_timeout: Duration,
    /// Of a connection on which nothing moves.
    pub idle_timeout: Duration,
    /// For a connection to a guest.
    pub connect_timeout: Duration,
    /// For a sandbox that a request resumes.
    pub wake_timeout: Duration,
    /// For the program of a sandbox that a request resumed.
    pub listen_timeout: Duration,
    /// Of clients, at once.
    pub max_connections: usize,
    /// Of one address; 0 for any number.
    pub max_connections_per_client: usize,
    /// At once.
    pub max_requests_per_sandbox: usize,
    /// Requests that wait for one sandbox to be resumed.
    pub max_waiting: usize,
    /// Of a request's head.
    pub max_header_bytes: usize,
    /// Of a request; 0 for any size.
    pub max_body_bytes: u64,
    /// The server, where it has its webhooks, and its port.
    pub webhooks: Option<(Arc<Target>, u16)>,
    /// With a certificate.
    pub tls: Option<TlsAcceptor>,
}

impl Settings {
    fn new(said: Configuration) -> Result<Self, String> {
        let key = Zeroizing::new(said.key);
        let tls = if said.certificate.is_empty() {
            None
        } else {
            Some(acceptor(&said.certificate, &key).map_err(|error| format!("The certificate can't be used: {error}"))?)
        };
        Ok(Self {
            https: said.https || tls.is_some(),
            domain: said.domain.to_ascii_lowercase(),
            header_timeout: Duration::from_millis(said.header_timeout_ms),
            idle_timeout: Duration::from_millis(said.idle_timeout_ms),
            connect_timeout: Duration::from_millis(said.connect_timeout_ms),
            wake_timeout: Duration::from_millis(said.wake_timeout_ms),
            listen_timeout: Duration::from_millis(said.listen_timeout_ms),
            max_connections: said.max_connections,
            max_connections_per_client: said.max_connections_per_client,
            max_requests_per_sandbox: said.max_requests_per_sandbox,
            max_waiting: said.max_waiting,
            max_header_bytes: said.max_header_bytes,
            max_body_bytes: said.max_body_bytes,
            webhooks: (said.webhooks_port != 0).then(|| (Arc::new(Target::server()), said.webhooks_port)),
            tls,
        })
    }
}

fn acceptor(certificate: &str, key: &str) -> Result<TlsAcceptor, String> {
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(certificate.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| error.to_string())?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|error| error.to_string())?;
    let mut config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| error.to_string())?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// What a name stands for.
#[derive(Debug, Clone)]
pub struct Route {
    /// The sandbox's id.
    pub sandbox: Arc<str>,
    /// The port of its program.
    pub port: u16,
    /// Only with a token.
    pub private: bool,
    /// A request resumes it.
    pub wake: bool,
    /// Tokens of another epoch are revoked.
    pub epoch: u64,
}

/// All routes of one sandbox.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SandboxRoutes {
    sandbox: String,
    routes: Vec<(String, u16)>,
    #[serde(default)]
    private: bool,
    #[serde(default)]
    wake: bool,
    #[serde(default)]
    epoch: u64,
}

/// A sandbox that runs.
pub struct Target {
    /// Its session.
    pub session: String,
    /// The address that the kernel has bound to its link.
    pub address: Ipv4Addr,
    /// Requests that it has.
    pub requests: AtomicUsize,
    ended: watch::Sender<bool>,
}

impl Target {
    /// A sandbox that runs at this address.
    pub fn new(session: String, address: Ipv4Addr) -> Self {
        Self {
            session,
            address,
            requests: AtomicUsize::new(0),
            ended: watch::Sender::new(false),
        }
    }

    /// The server on this machine, which no session ends.
    pub fn server() -> Self {
        Self::new(String::new(), Ipv4Addr::LOCALHOST)
    }

    /// Returns when its session has ended.
    pub async fn ended(&self) {
        let mut ended = self.ended.subscribe();
        // The sender lives as long as `self`.
        let _ = ended.wait_for(|ended| *ended).await;
    }

    fn end(&self) {
        self.ended.send_replace(true);
    }
}

/// One of the requests that a sandbox may have at once.
pub struct Place(Arc<Target>);

impl Place {
    /// `None` when all are taken.
    pub fn take(target: &Arc<Target>, most: usize) -> Option<Self> {
        if target.requests.fetch_add(1, Ordering::AcqRel) >= most {
            target.requests.fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        Some(Self(Arc::clone(target)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.requests.fetch_sub(1, Ordering::AcqRel);
    }
}

/// One of the connections of clients.
pub struct Admission {
    ingress: Arc<Ingress>,
    peer: IpAddr,
}

impl Drop for Admission {
    fn drop(&mut self) {
        let mut clients = lock(&self.ingress.clients);
        clients.total -= 1;
        if let Some(count) = clients.by_address.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                clients.by_address.remove(&self.peer);
            }
        }
    }
}

#[derive(Default)]
struct Clients {
    total: usize,
    by_address: HashMap<IpAddr, usize>,
}

struct Waking {
    asked: Instant,
    waiting: usize,
    failed: watch::Sender<bool>,
}

/// One that waits for a sandbox, until it is dropped.
struct Waiter<'a> {
    ingress: &'a Ingress,
    sandbox: &'a str,
    failed: watch::Receiver<bool>,
}

impl Waiter<'_> {
    /// What it waits for, unless that is decided or was asked for anew.
    fn waking<'b>(&self, waking: &'b mut HashMap<String, Waking>) -> Option<&'b mut Waking> {
        let found = waking.get_mut(self.sandbox)?;
        found.failed.subscribe().same_channel(&self.failed).then_some(found)
    }

    /// Give it up for all who wait.
    fn give_up(&self) {
        let mut waking = lock(&self.ingress.waking);
        if self.waking(&mut waking).is_some() {
            waking.remove(self.sandbox);
            self.ingress.counts.waked(Waked::Failed);
        }
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        if let Some(waking) = self.waking(&mut lock(&self.ingress.waking)) {
            waking.waiting -= 1;
        }
    }
}

/// Why no sandbox woke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asleep {
    /// As many requests wait as may.
    Crowded,
    /// It could not be resumed, or not in time.
    Failed,
}

/// What the whole process shares.
pub struct Ingress {
    settings: RwLock<Option<Arc<Settings>>>,
    verification_key: RwLock<Vec<u8>>,
    routes: RwLock<HashMap<String, Route>>,
    complete: watch::Sender<bool>,
    opened: watch::Sender<bool>,
    targets: RwLock<HashMap<String, Arc<Target>>>,
    changed: watch::Sender<u64>,
    clients: Mutex<Clients>,
    waking: Mutex<HashMap<String, Waking>>,
    wakes: mpsc::UnboundedSender<String>,
    to_wake: Mutex<Option<mpsc::UnboundedReceiver<String>>>,
    /// What is counted.
    pub counts: Arc<Counts>,
}

impl Default for Ingress {
    fn default() -> Self {
        let (wakes, to_wake) = mpsc::unbounded_channel();
        Self {
            settings: RwLock::default(),
            verification_key: RwLock::default(),
            routes: RwLock::default(),
            complete: watch::Sender::new(false),
            opened: watch::Sender::new(false),
            targets: RwLock::default(),
            changed: watch::Sender::new(0),
            clients: Mutex::default(),
            waking: Mutex::default(),
            wakes,
            to_wake: Mutex::new(Some(to_wake)),
            counts: Arc::default(),
        }
    }
}

fn read<T>(of: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    of.read().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn write<T>(of: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    of.write().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Ingress {
    /// Set what holds from now on. The error is one line.
    pub fn configure(&self, said: Configuration) -> Result<(), String> {
        let settings = Settings::new(said)?;
        *write(&self.settings) = Some(Arc::new(settings));
        Ok(())
    }

    /// Set what tokens are verified with.
    pub fn verify_with(&self, key: &str) -> Result<(), String> {
        let key = unhex(key)
            .filter(|key| key.len() == KEY_BYTES)
            .ok_or("The verification key is none.")?;
        *write(&self.verification_key) = key;
        Ok(())
    }

    /// What holds. Not before `opened`.
    pub fn settings(&self) -> Option<Arc<Settings>> {
        read(&self.settings).clone()
    }

    /// What tokens are verified with.
    pub fn verification_key(&self) -> Vec<u8> {
        read(&self.verification_key).clone()
    }

    /// Take connections from now on.
    pub fn open(&self) {
        self.opened.send_replace(true);
    }

    /// Returns when connections are taken.
    pub async fn opened(&self) {
        let _ = self.opened.subscribe().wait_for(|opened| *opened).await;
    }

    // -- routes ---------------------------------------------------------------------------------

    /// Replace the routes of these sandboxes; of all, if these are all that there are.
    pub fn put_routes(&self, sandboxes: Vec<SandboxRoutes>, complete: bool) {
        let named: std::collections::HashSet<&str> = sandboxes.iter().map(|sandbox| sandbox.sandbox.as_str()).collect();
        let mut routes = write(&self.routes);
        if complete {
            routes.clear();
        } else {
            routes.retain(|_, route| !named.contains(&*route.sandbox));
        }
        for sandbox in sandboxes {
            let id: Arc<str> = sandbox.sandbox.into();
            for (subdomain, port) in sandbox.routes {
                let route = Route {
                    sandbox: Arc::clone(&id),
                    port,
                    private: sandbox.private,
                    wake: sandbox.wake,
                    epoch: sandbox.epoch,
                };
                routes.insert(subdomain, route);
            }
        }
        drop(routes);
        if complete {
            self.complete.send_replace(true);
        }
    }

    /// What a name stands for.
    pub fn route(&self, subdomain: &str) -> Option<Route> {
        read(&self.routes).get(subdomain).cloned()
    }

    /// Whether all routes are known.
    pub fn complete(&self) -> bool {
        *self.complete.borrow()
    }

    /// How many there are.
    pub fn route_count(&self) -> usize {
        read(&self.routes).len()
    }

    // -- targets --------------------------------------------------------------------------------

    /// A sandbox runs. Connections with a former session of it end.
    pub fn put_target(&self, sandbox: &str, target: Target) {
        let former = {
            let mut targets = write(&self.targets);
            if targets
                .get(sandbox)
                .is_some_and(|known| known.session == target.session && known.address == target.address)
            {
                return;
            }
            targets.insert(sandbox.to_owned(), Arc::new(target))
        };
        if let Some(former) = former {
            former.end();
        }
        if lock(&self.waking).remove(sandbox).is_some() {
            self.counts.waked(Waked::Resumed);
        }
        self.changed.send_modify(|version| *version += 1);
    }

    /// A session ended; so do its connections.
    pub fn remove_target(&self, sandbox: &str, session: &str) {
        let mut targets = write(&self.targets);
        if targets.get(sandbox).is_some_and(|target| target.session == session)
            && let Some(target) = targets.remove(sandbox)
        {
            target.end();
        }
    }

    /// Remove what is not among these sandboxes and sessions.
    pub fn keep_targets(&self, kept: &HashMap<String, String>) {
        write(&self.targets).retain(|sandbox, target| {
            let keep = kept.get(sandbox) == Some(&target.session);
            if !keep {
                target.end();
            }
            keep
        });
    }

    /// Where a sandbox runs.
    pub fn target(&self, sandbox: &str) -> Option<Arc<Target>> {
        read(&self.targets).get(sandbox).cloned()
    }

    // -- clients --------------------------------------------------------------------------------

    /// A place for a connection; `None` when all are taken, or all of this address.
    pub fn admit(self: &Arc<Self>, peer: IpAddr, settings: &Settings) -> Option<Admission> {
        let mut clients = lock(&self.clients);
        let most = settings.max_connections_per_client;
        let of_peer = clients.by_address.get(&peer).copied().unwrap_or(0);
        if clients.total >= settings.max_connections {
            self.counts.closed(Full::All);
            return None;
        }
        if most != 0 && of_peer >= most {
            self.counts.closed(Full::Client);
            return None;
        }
        clients.total += 1;
        clients.by_address.insert(peer, of_peer + 1);
        Some(Admission {
            ingress: Arc::clone(self),
            peer,
        })
    }

    /// How many there are.
    pub fn connections(&self) -> usize {
        lock(&self.clients).total
    }

    // -- waking ---------------------------------------------------------------------------------

    /// Have a sandbox resumed, and wait for it. Of many who ask, one is passed on.
    pub async fn wake(&self, sandbox: &str, settings: &Settings) -> Result<Arc<Target>, Asleep> {
        let mut changed = self.changed.subscribe();
        if let Some(target) = self.target(sandbox) {
            return Ok(target);
        }
        let waiter = {
            let mut waking = lock(&self.waking);
            // Lost, though nobody had the patience to see it.
            if waking
                .get(sandbox)
                .is_some_and(|known| known.asked.elapsed() >= settings.wake_timeout)
            {
                waking.remove(sandbox);
                self.counts.waked(Waked::Failed);
            }
            let entry = waking.entry(sandbox.to_owned()).or_insert_with(|| {
                let _ = self.wakes.send(sandbox.to_owned());
                Waking {
                    asked: Instant::now(),
                    waiting: 0,
                    failed: watch::Sender::new(false),
                }
            });
            if entry.waiting >= settings.max_waiting {
                return Err(Asleep::Crowded);
            }
            entry.waiting += 1;
            Waiter {
                ingress: self,
                sandbox,
                failed: entry.failed.subscribe(),
            }
        };
        let mut failed = waiter.failed.clone();
        let deadline = Instant::now() + settings.wake_timeout;
        loop {
            if let Some(target) = self.target(sandbox) {
                return Ok(target);
            }
            tokio::select! {
                _ = changed.changed() => {}
                said = failed.wait_for(|failed| *failed) => {
                    // Without a sender it woke, and may be gone again.
                    if said.is_ok() {
                        return Err(Asleep::Failed);
                    }
                    return self.target(sandbox).ok_or(Asleep::Failed);
                }
                () = tokio::time::sleep_until(deadline) => {
                    // The next one asks anew.
                    waiter.give_up();
                    return Err(Asleep::Failed);
                }
            }
        }
    }

    /// A sandbox could not be resumed.
    pub fn not_waked(&self, sandbox: &str) {
        if let Some(waking) = lock(&self.waking).remove(sandbox) {
            self.counts.waked(Waked::Failed);
            waking.failed.send_replace(true);
        }
    }

    /// What to wake. A later caller takes over from a former one once that has given it back.
    pub fn take_wakes(&self) -> Option<mpsc::UnboundedReceiver<String>> {
        lock(&self.to_wake).take()
    }

    /// Give back what was taken.
    pub fn give_wakes(&self, wakes: mpsc::UnboundedReceiver<String>) {
        *lock(&self.to_wake) = Some(wakes);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_millis(10);

    fn settings() -> Settings {
        let said = serde_json::json!({
            "domain": "localhost", "https": false, "header_timeout_ms": 1000, "idle_timeout_ms": 1000,
            "connect_timeout_ms": 1000, "wake_timeout_ms": 1000, "listen_timeout_ms": 1000, "max_connections": 1,
            "max_connections_per_client": 1, "max_requests_per_sandbox": 1, "max_waiting": 2, "max_header_bytes": 1024,
            "max_body_bytes": 0,
        });
        Settings::new(serde_json::from_value(said).unwrap()).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn clients_that_go_away_leave_their_places_to_others() {
        let (ingress, settings) = (Ingress::default(), settings());
        for _ in 0..10 {
            assert!(timeout(SOON, ingress.wake("one", &settings)).await.is_err());
        }
        let waiting = async { tokio::join!(ingress.wake("one", &settings), ingress.wake("one", &settings)) };
        let waking = async {
            assert_eq!(ingress.wake("one", &settings).await.err(), Some(Asleep::Crowded));
            ingress.put_target("one", Target::new("session".to_owned(), Ipv4Addr::LOCALHOST));
        };
        let ((first, second), ()) = tokio::join!(waiting, waking);
        assert!(first.is_ok() && second.is_ok());
        let mut wakes = ingress.take_wakes().unwrap();
        assert_eq!(wakes.try_recv().unwrap(), "one");
        assert!(wakes.try_recv().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_wake_is_asked_for_anew_without_anybody_who_waited_for_all_of_it() {
        let (ingress, settings) = (Ingress::default(), settings());
        let mut wakes = ingress.take_wakes().unwrap();
        // One after the other, so that somebody always waits.
        for _ in 0..2 {
            let half = settings.wake_timeout * 6 / 10;
            assert!(timeout(half, ingress.wake("one", &settings)).await.is_err());
        }
        assert!(timeout(SOON, ingress.wake("one", &settings)).await.is_err());
        assert_eq!(
            (wakes.try_recv().unwrap(), wakes.try_recv().unwrap()),
            ("one".to_owned(), "one".to_owned())
        );
        assert!(wakes.try_recv().is_err());
    }
}

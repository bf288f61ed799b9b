//! Open flows: what is remembered of each, so that a policy update can judge it again, and the handle to end it.
//!
//! A flow is registered before anything is sent for it, under the version of the policy that admitted it. If the policy
//! changed in between, registering fails and the flow is decided anew; so there is no flow that an update does not see.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use hutch_policy::{Admission, Defence, EffectivePolicy, Exchange, FlowFacts, Reason, Sweep, sweep};
use tokio::sync::Notify;

use crate::locks::lock;
use crate::relay::Way;

/// Payload bytes as they pass the gateway's sockets.
#[derive(Debug, Default)]
pub struct Bytes {
    /// From the sandbox.
    pub up: AtomicU64,
    /// To the sandbox.
    pub down: AtomicU64,
}

impl Bytes {
    /// The counter of one way.
    pub fn side(&self, way: Way) -> &AtomicU64 {
        match way {
            Way::Up => &self.up,
            Way::Down => &self.down,
        }
    }

    /// Both, now.
    pub fn read(&self) -> (u64, u64) {
        (self.up.load(Ordering::Relaxed), self.down.load(Ordering::Relaxed))
    }
}

/// Ends something from outside, once, with a reason.
#[derive(Debug, Default)]
pub struct Kill {
    reason: OnceLock<Reason>,
    notify: Notify,
}

impl Kill {
    /// End it. The first reason counts.
    pub fn now(&self, reason: Reason) {
        let _ = self.reason.set(reason);
        self.notify.notify_waiters();
    }

    /// Why it was ended, if it was.
    pub fn reason(&self) -> Option<Reason> {
        self.reason.get().copied()
    }

    /// Wait until it is ended.
    pub async fn wait(&self) -> Reason {
        loop {
            let notified = self.notify.notified();
            tokio::pin!(notified);
            // Listening begins before the check, so that nothing falls between the two.
            notified.as_mut().enable();
            if let Some(reason) = self.reason() {
                return reason;
            }
            notified.await;
        }
    }
}

/// An exchange of an intercepted flow that is under way.
#[derive(Debug)]
struct OpenExchange {
    id: u64,
    exchange: Exchange,
    /// Names of the stored credentials that its rule puts into it.
    credentials: Vec<String>,
    kill: Arc<Kill>,
}

#[derive(Debug)]
struct State {
    facts: FlowFacts,
    /// That of `facts`, for whoever asks.
    admission: Arc<Admission>,
    exchanges: Vec<OpenExchange>,
}

impl State {
    fn restamp(&mut self, admission: Admission) {
        self.admission = Arc::new(admission.clone());
        self.facts.admission = admission;
    }
}

/// Exchanges that are to end, with why.
type Ending = Vec<(Arc<Kill>, Reason)>;

/// One flow of a sandbox.
#[derive(Debug)]
pub struct Flow {
    /// Unique in its sandbox.
    pub id: u64,
    /// Ends it.
    pub kill: Kill,
    /// What passed.
    pub bytes: Bytes,
    /// Done once the flow's sockets are closed.
    closed: Notify,
    is_closed: OnceLock<()>,
    state: Mutex<State>,
}

impl Flow {
    /// How it is admitted now.
    pub fn admission(&self) -> Arc<Admission> {
        Arc::clone(&lock(&self.state).admission)
    }

    /// Judge it under another policy. The error is why it is to end; otherwise, what is to end in it.
    fn judge(&self, policy: &EffectivePolicy) -> Result<Ending, Reason> {
        let mut state = lock(&self.state);
        state.facts.exchanges = state.exchanges.iter().map(|open| open.exchange.clone()).collect();
        let (admission, gone) = match sweep(policy, &state.facts) {
            Sweep::Cut(reason) => return Err(reason),
            Sweep::Keep => return Ok(Ending::new()),
            Sweep::Restamp(admission) => (admission, Vec::new()),
            Sweep::CutExchanges(admission, gone) => (admission, gone),
        };
        state.restamp(admission);
        let kill_of = |index: usize| Arc::clone(&state.exchanges[index].kill);
        Ok(gone
            .into_iter()
            .map(|(index, reason)| (kill_of(index), reason))
            .collect())
    }

    /// Exchanges that use one of these credentials.
    fn using(&self, credentials: &[String]) -> Ending {
        let uses = |open: &&OpenExchange| open.credentials.iter().any(|name| credentials.contains(name));
        lock(&self.state)
            .exchanges
            .iter()
            .filter(uses)
            .map(|open| (Arc::clone(&open.kill), Reason::RuleChanged))
            .collect()
    }

    async fn wait_closed(&self) {
        loop {
            let notified = self.closed.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            if self.is_closed.get().is_some() {
                return;
            }
            notified.await;
        }
    }
}

/// The policy changed since the decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stale;

#[derive(Debug, Default)]
struct Table {
    version: u64,
    next: u64,
    open: HashMap<u64, Arc<Flow>>,
}

/// The flows of one sandbox.
#[derive(Debug, Default)]
pub struct Flows {
    table: Mutex<Table>,
}

/// A registered flow; leaving the scope takes it off the table.
#[derive(Debug)]
pub struct Registered {
    flows: Arc<Flows>,
    /// The flow.
    pub flow: Arc<Flow>,
}

impl Drop for Registered {
    fn drop(&mut self) {
        lock(&self.flows.table).open.remove(&self.flow.id);
        let _ = self.flow.is_closed.set(());
        self.flow.closed.notify_waiters();
    }
}

/// What an update did to open flows.
#[derive(Debug, Default)]
pub struct Swept {
    /// Flows that the new policy ended, with why. They may still be closing.
    pub cut: Vec<(Arc<Flow>, Reason)>,
    /// Flows that go on.
    pub kept: usize,
}

impl Swept {
    fn judge(&mut self, table: &Table, policy: &EffectivePolicy, ending: &mut Ending) {
        for flow in table.open.values() {
            match flow.judge(policy) {
                Ok(gone) => {
                    ending.extend(gone);
                    self.kept += 1;
                }
                Err(reason) => self.cut.push((Arc::clone(flow), reason)),
            }
        }
    }

    /// Wait until every cut flow has let go of its sockets.
    pub async fn closed(&self) {
        for (flow, _) in &self.cut {
            flow.wait_closed().await;
        }
    }
}

impl Flows {
    /// How many are open.
    pub fn len(&self) -> usize {
        lock(&self.table).open.len()
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Remember a flow that the policy of `version` admitted.
    pub fn register(self: &Arc<Self>, facts: FlowFacts, version: u64) -> Result<Registered, Stale> {
        let mut table = lock(&self.table);
        if table.version != version {
            return Err(Stale);
        }
        table.next += 1;
        let flow = Arc::new(Flow {
            id: table.next,
            kill: Kill::default(),
            bytes: Bytes::default(),
            closed: Notify::new(),
            is_closed: OnceLock::new(),
            state: Mutex::new(State {
                admission: Arc::new(facts.admission.clone()),
                facts,
                exchanges: Vec::new(),
            }),
        });
        table.open.insert(flow.id, Arc::clone(&flow));
        drop(table);
        Ok(Registered {
            flows: Arc::clone(self),
            flow,
        })
    }

    /// Note which address was dialled. `Stale` when the address was vetted under another policy.
    pub fn dialled(&self, flow: &Flow, address: IpAddr, version: u64) -> Result<(), Stale> {
        let table = lock(&self.table);
        if table.version != version {
            return Err(Stale);
        }
        lock(&flow.state).facts.dialled = Some(address);
        Ok(())
    }

    /// Note which address an exchange is sent to. `Stale` when the address was vetted under another policy.
    pub fn sent(&self, ongoing: &Ongoing, address: IpAddr, version: u64) -> Result<(), Stale> {
        let table = lock(&self.table);
        if table.version != version {
            return Err(Stale);
        }
        let mut state = lock(&ongoing.flow.state);
        if let Some(open) = state.exchanges.iter_mut().find(|open| open.id == ongoing.id) {
            open.exchange.dialled = Some(address);
        }
        Ok(())
    }

    /// Note that an exchange begins, judged under `version`.
    pub fn begin(
        &self,
        flow: &Arc<Flow>,
        exchange: Exchange,
        credentials: Vec<String>,
        version: u64,
    ) -> Result<Ongoing, Stale> {
        let mut table = lock(&self.table);
        if table.version != version {
            return Err(Stale);
        }
        table.next += 1;
        let (id, kill) = (table.next, Arc::new(Kill::default()));
        lock(&flow.state).exchanges.push(OpenExchange {
            id,
            exchange,
            credentials,
            kill: Arc::clone(&kill),
        });
        Ok(Ongoing {
            flow: Arc::clone(flow),
            id,
            kill,
        })
    }

    /// Judge every flow under a new policy, and end the exchanges that use a credential that is `rotated`: one that has
    /// not been sent yet would still carry the old value. `install` puts the policy in place while no flow can be
    /// registered.
    pub fn sweep(
        &self,
        version: u64,
        policy: &EffectivePolicy,
        unchanged: bool,
        rotated: &[String],
        install: impl FnOnce(),
    ) -> Swept {
        let mut table = lock(&self.table);
        table.version = version;
        let mut ending = Ending::new();
        if !rotated.is_empty() && Defence::RotatedExchanges.holds() {
            ending.extend(table.open.values().flat_map(|flow| flow.using(rotated)));
        }
        let mut swept = Swept::default();
        if unchanged || !Defence::Sweep.holds() {
            swept.kept = table.open.len();
        } else {
            swept.judge(&table, policy, &mut ending);
        }
        // After flows are stamped anew, or a request would be judged under this policy as admitted by the one before; and
        // before anything ends, or its record would have the generation of the one before.
        install();
        for (kill, reason) in ending {
            kill.now(reason);
        }
        for (flow, reason) in &swept.cut {
            flow.kill.now(*reason);
        }
        swept
    }

    /// End every flow, and let none begin.
    pub fn kill_all(&self, reason: Reason) -> Swept {
        let mut table = lock(&self.table);
        table.version = u64::MAX;
        let cut: Vec<_> = table.open.values().map(|flow| (Arc::clone(flow), reason)).collect();
        for (flow, reason) in &cut {
            flow.kill.now(*reason);
        }
        Swept { cut, kept: 0 }
    }
}

/// An exchange under way; leaving the scope ends it.
#[derive(Debug)]
pub struct Ongoing {
    flow: Arc<Flow>,
    id: u64,
    /// Ends it from outside.
    pub kill: Arc<Kill>,
}

impl Drop for Ongoing {
    fn drop(&mut self) {
        lock(&self.flow.state).exchanges.retain(|open| open.id != self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use hutch_policy::{Context, CredentialState, Facts, HardDeny, Request, Role, SeenBytes, Sniffed, Step, compile};

    use super::*;

    const NAME: &str = "api.test";
    const ANYWHERE: &str = "198.51.100.7:443";
    const DENIED: &str = "203.0.113.5";
    const RULES: &str = r#"[{"match": {"method": ["GET"]}, "transform": []}]"#;

    fn policy(text: &str) -> EffectivePolicy {
        let hard_deny = Arc::new(HardDeny::default());
        let context = Context {
            hard_deny: &hard_deny,
            previous: None,
            role: Role::Tenant,
        };
        let tenant = compile(text.as_bytes(), &context).unwrap().policy;
        EffectivePolicy::intersect(Arc::clone(&hard_deny), &[], tenant)
    }

    /// An intercepted flow in which one exchange is under way.
    fn opened(flows: &Arc<Flows>, policy: &EffectivePolicy) -> (Registered, Ongoing) {
        let flow = hutch_policy::Flow {
            destination: ANYWHERE.parse::<SocketAddr>().unwrap(),
            virtual_name: None,
        };
        let server_name = Some(NAME.as_bytes());
        let Step::Admit(admission) = policy.decide(&flow, &Sniffed::Tls { server_name }) else {
            panic!("refused");
        };
        let request = Request {
            method: b"GET",
            target: b"/",
            authority: None,
            headers: &[(b"host", NAME.as_bytes())],
        };
        let facts = Facts {
            placeholders: &[],
            credential: &|_| CredentialState::Missing,
        };
        let exchange = Exchange {
            stamp: policy.judge(&admission, &request, &facts).stamp,
            forward: None,
            dialled: None,
        };
        let facts = FlowFacts {
            flow,
            seen: Some(SeenBytes::Tls(server_name.map(<[u8]>::to_vec))),
            admission,
            dialled: None,
            exchanges: Vec::new(),
        };
        let registered = flows.register(facts, 0).unwrap();
        let ongoing = flows.begin(&registered.flow, exchange, Vec::new(), 0).unwrap();
        (registered, ongoing)
    }

    fn allowing(pattern: &str, deny: &str) -> EffectivePolicy {
        policy(&format!(
            r#"{{"allow": {{"{pattern}": {RULES}}}, "subnets": {{"deny": ["{deny}/32"]}}}}"#
        ))
    }

    #[test]
    fn an_exchange_whose_address_is_denied_ends_and_its_flow_goes_on() {
        let flows = Arc::<Flows>::default();
        let (registered, ongoing) = opened(&flows, &allowing(NAME, "192.0.2.1"));
        flows.sent(&ongoing, DENIED.parse().unwrap(), 0).unwrap();
        let swept = flows.sweep(1, &allowing(NAME, DENIED), false, &[], || ());
        assert_eq!((swept.cut.len(), swept.kept), (0, 1));
        assert_eq!(ongoing.kill.reason(), Some(Reason::SubnetDeny));
        assert_eq!(registered.flow.kill.reason(), None);
    }

    #[test]
    fn what_was_vetted_under_another_policy_is_vetted_again() {
        let flows = Arc::<Flows>::default();
        let (_registered, ongoing) = opened(&flows, &allowing(NAME, "192.0.2.1"));
        flows.sweep(1, &allowing(NAME, DENIED), false, &[], || ());
        assert_eq!(ongoing.kill.reason(), None);
        assert_eq!(flows.sent(&ongoing, DENIED.parse().unwrap(), 0), Err(Stale));
    }

    #[test]
    fn a_policy_is_in_place_once_flows_are_stamped_by_it_and_before_any_ends() {
        let flows = Arc::<Flows>::default();
        let (registered, ongoing) = opened(&flows, &allowing(NAME, "192.0.2.1"));
        flows.sent(&ongoing, DENIED.parse().unwrap(), 0).unwrap();
        let before = registered.flow.admission();
        let mut looked = None;
        flows.sweep(1, &allowing("*.test", DENIED), false, &[], || {
            looked = Some((registered.flow.admission(), ongoing.kill.reason()));
        });
        let (admission, ended) = looked.unwrap();
        assert_ne!(admission.grants, before.grants);
        assert_eq!(ended, None);
        assert_eq!(ongoing.kill.reason(), Some(Reason::SubnetDeny));
    }
}

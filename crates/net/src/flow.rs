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
        install();
        let mut swept = Swept::default();
        if !rotated.is_empty() && Defence::RotatedExchanges.holds() {
            for flow in table.open.values() {
                let state = lock(&flow.state);
                let uses = |open: &&OpenExchange| open.credentials.iter().any(|name| rotated.contains(name));
                for open in state.exchanges.iter().filter(uses) {
                    open.kill.now(Reason::RuleChanged);
                }
            }
        }
        if unchanged || !Defence::Sweep.holds() {
            swept.kept = table.open.len();
            return swept;
        }
        for flow in table.open.values() {
            let mut state = lock(&flow.state);
            state.facts.exchanges = state.exchanges.iter().map(|open| open.exchange.clone()).collect();
            match sweep(policy, &state.facts) {
                Sweep::Keep => swept.kept += 1,
                Sweep::Restamp(admission) => {
                    state.restamp(admission);
                    swept.kept += 1;
                }
                Sweep::CutExchanges(admission, gone) => {
                    state.restamp(admission);
                    for index in gone {
                        state.exchanges[index].kill.now(Reason::RuleChanged);
                    }
                    swept.kept += 1;
                }
                Sweep::Cut(reason) => {
                    flow.kill.now(reason);
                    swept.cut.push((Arc::clone(flow), reason));
                }
            }
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

//! Bytes between two sockets, unseen.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hutch_policy::{Defence, Limits, Reason, RuleId};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;

use crate::flow::{Bytes, Flow, Kill};
use crate::sandbox::{Sandbox, add_within};

const BUFFER_BYTES: usize = 64 * 1024;
/// What an idle direction keeps: buffers grow when there is something to move.
const SMALL_BUFFER_BYTES: usize = 2 * 1024;
/// A tunnel in which nothing moves, and the longest that one lives (`egress.md` §3.13).
pub const IDLE: Duration = Duration::from_secs(600);
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the sandbox.
    Up,
    /// To the sandbox.
    Down,
}

/// What may pass, and what counts it: for the sandbox, the flow, this use of the flow, the name, and the rule.
#[derive(Clone)]
pub struct Meter {
    sandbox: Arc<Sandbox>,
    flow: Arc<Flow>,
    own: Arc<Bytes>,
    rule: Option<Arc<Bytes>>,
    tallied: [Arc<Bytes>; 2],
    limits: Limits,
    exceeded: Arc<OnceLock<Reason>>,
}

impl Meter {
    /// A meter of a flow or of one exchange in it, for `name`. The limits are those of `rule`, over all that it ever admitted.
    pub fn new(sandbox: Arc<Sandbox>, flow: Arc<Flow>, name: &str, limits: Limits, rule: Option<RuleId>) -> Self {
        let counters = &sandbox.counters;
        let tallied = [counters.passing(name), counters.passing_under(rule)];
        let rule = rule.map(|rule| counters.of_rule(rule));
        Self {
            sandbox,
            flow,
            own: Arc::default(),
            rule,
            tallied,
            limits,
            exceeded: Arc::default(),
        }
    }

    /// Why something did not pass, if it was more than may pass.
    pub fn exceeded(&self) -> Option<Reason> {
        self.exceeded.get().copied()
    }

    /// Something did not pass because it was more than may pass; the first reason counts.
    pub fn exceed(&self, reason: Reason) {
        let _ = self.exceeded.set(reason);
    }

    /// What this meter counted: bytes from and to the sandbox.
    pub fn read(&self) -> (u64, u64) {
        self.own.read()
    }

    /// Count bytes of payload that are about to pass. False where a limit does not admit them: they must not pass then, and
    /// are not counted, so that counters are what the other end got.
    pub fn count(&self, way: Way, bytes: usize) -> bool {
        let fits = self.charge(way, bytes);
        if fits {
            for counter in [&*self.own, &self.flow.bytes]
                .into_iter()
                .chain(self.tallied.iter().map(|counter| &**counter))
            {
                counter.side(way).fetch_add(bytes as u64, Ordering::Relaxed);
            }
        }
        fits
    }

    /// Count bytes that are no payload but carry as much, such as heads, towards the limits of rule and sandbox.
    pub fn charge(&self, way: Way, bytes: usize) -> bool {
        let bytes = bytes as u64;
        let (up, down, most) = match way {
            Way::Up => (bytes, 0, self.limits.up_bytes),
            Way::Down => (0, bytes, self.limits.down_bytes),
        };
        let rule = self.rule.as_deref().map(|rule| rule.side(way));
        let most = most.filter(|_| Defence::RuleLimits.holds());
        let fits = rule.is_none_or(|counter| add_within(counter, bytes, most));
        if !fits || !self.sandbox.count(up, down) {
            if let Some(counter) = rule.filter(|_| fits) {
                counter.fetch_sub(bytes, Ordering::Relaxed);
            }
            self.exceed(Reason::ByteLimit);
            return false;
        }
        true
    }
}

/// Move bytes both ways until both ends are done, one fails, the flow is ended or nothing moved for too long.
/// The error is why it ended early.
pub async fn relay<A, B>(guest: &mut A, server: &mut B, meter: &Meter, kill: &Kill) -> Result<(), Reason>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let (mut guest_read, mut guest_write) = tokio::io::split(guest);
    let (mut server_read, mut server_write) = tokio::io::split(server);
    let up = one_way(&mut guest_read, &mut server_write, meter, Way::Up);
    let down = one_way(&mut server_read, &mut guest_write, meter, Way::Down);
    let both = async {
        // Each direction ends for itself: a half-closed connection goes on in the other.
        tokio::try_join!(up, down).map(|_| ())
    };
    tokio::select! {
        biased;
        reason = kill.wait() => Err(reason),
        outcome = both => outcome,
        reason = watch(meter) => Err(reason),
    }
}

/// Notices that nothing moved for too long.
async fn watch(meter: &Meter) -> Reason {
    let began = Instant::now();
    let mut before = meter.read();
    loop {
        tokio::time::sleep(IDLE).await;
        let now = meter.read();
        if now == before || began.elapsed() > LONGEST {
            return Reason::ClientTimeout;
        }
        before = now;
    }
}

async fn one_way<R, W>(from: &mut R, to: &mut W, meter: &Meter, way: Way) -> Result<(), Reason>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut buffer = vec![0; SMALL_BUFFER_BYTES];
    loop {
        let count = match from.read(&mut buffer).await {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) => return Err(broken(&error)),
        };
        if !meter.count(way, count) {
            return Err(Reason::ByteLimit);
        }
        if let Err(error) = to.write_all(&buffer[..count]).await {
            return Err(broken(&error));
        }
        if count == buffer.len() && buffer.len() < BUFFER_BYTES {
            buffer.resize(BUFFER_BYTES, 0);
        }
    }
    // The other end may be gone already.
    let _ = to.shutdown().await;
    Ok(())
}

fn broken(_: &io::Error) -> Reason {
    Reason::UpstreamConnect
}

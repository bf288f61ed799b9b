//! CPU time of the gateway, by sandbox.
//!
//! A thread's clock is read when it turns to somebody else, and what passed on it since it was read last is theirs whom it
//! worked for: so no time is counted twice, and the runtime's own, between two pieces of work, goes to those who had it work.
//! Work within work (a datagram of a sandbox, taken by a task of everybody's) is taken out of it.
//!
//! Reading takes as long as a hundredth of a request, so a thread that works on for the same one reads after every
//! [`READ_EVERY`]th piece only: by so much a counter may be behind.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hyper::rt::Executor;
use rustix::time::{ClockId, clock_gettime};
use tokio::task::JoinHandle;

const NS_PER_US: u64 = 1000;
const READ_EVERY: u32 = 8;

/// What a thread is doing.
#[derive(Default)]
struct Turn {
    /// For whom; nobody at first.
    owner: RefCell<Option<CpuTime>>,
    /// Its clock, as it was read last, in nanoseconds.
    read_ns: Cell<u64>,
    /// Pieces of work since then.
    unread: Cell<u32>,
    /// Pieces of work that are under way, each within the one before.
    depth: Cell<u32>,
}

impl Turn {
    /// Read the clock, for whom the work was done.
    fn read(&self) {
        let now_ns = thread_ns();
        let passed = now_ns.saturating_sub(self.read_ns.replace(now_ns));
        if let Some(owner) = &*self.owner.borrow() {
            owner.0.fetch_add(passed, Ordering::Relaxed);
        }
        self.unread.set(0);
    }

    /// From now on it works for `owner`; for whom it did before.
    fn give(&self, owner: &CpuTime) -> Option<CpuTime> {
        if self
            .owner
            .borrow()
            .as_ref()
            .is_some_and(|now| Arc::ptr_eq(&now.0, &owner.0))
        {
            return None;
        }
        self.read();
        self.owner.replace(Some(owner.clone()))
    }

    fn done(&self) {
        self.unread.set(self.unread.get() + 1);
        if self.unread.get() >= READ_EVERY {
            self.read();
        }
    }
}

thread_local! {
    static TURN: Turn = Turn::default();
}

/// What threads of this process spent on somebody; clones count together.
#[derive(Debug, Clone, Default)]
pub struct CpuTime(Arc<AtomicU64>);

impl CpuTime {
    /// Goes on from what another process counted, in microseconds.
    pub fn resume(spent_us: u64) -> Self {
        Self(Arc::new(spent_us.saturating_mul(NS_PER_US).into()))
    }

    /// What was spent, in microseconds.
    pub fn us(&self) -> u64 {
        self.0.load(Ordering::Relaxed) / NS_PER_US
    }

    /// Work that takes no time to wait.
    pub fn during<T>(&self, work: impl FnOnce() -> T) -> T {
        let (before, depth) = TURN.with(|turn| (turn.give(self), turn.depth.replace(turn.depth.get() + 1)));
        let done = work();
        TURN.with(|turn| {
            turn.depth.set(depth);
            turn.done();
            if let Some(before) = before.filter(|_| depth > 0) {
                turn.give(&before);
            }
        });
        done
    }

    /// A future whose time is counted. It is on the heap: within another future it would take its place twice.
    pub fn metered<F: Future>(&self, future: F) -> impl Future<Output = F::Output> + use<F> {
        let (cpu, mut future) = (self.clone(), Box::pin(future));
        poll_fn(move |context| cpu.during(|| future.as_mut().poll(context)))
    }

    /// A task of its own, whose time is counted.
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        tokio::spawn(self.metered(future))
    }
}

/// What a library starts for somebody.
impl<F> Executor<F> for CpuTime
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        self.spawn(future);
    }
}

fn thread_ns() -> u64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    // Neither is ever negative.
    let (seconds, rest) = (now.tv_sec.cast_unsigned(), now.tv_nsec.cast_unsigned());
    seconds.saturating_mul(1_000_000_000).saturating_add(rest)
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;
    use std::time::Duration;

    use tokio::task::yield_now;

    use super::*;

    const MS_NS: u64 = 1_000_000;

    /// Keep this thread busy for so long by its own clock; how long it was.
    fn busy(ms: u64) -> u64 {
        let began = thread_ns();
        while thread_ns() - began < ms * MS_NS {
            black_box(0);
        }
        (thread_ns() - began) / NS_PER_US
    }

    #[tokio::test]
    async fn tasks_that_take_turns_are_each_counted_what_they_did() {
        let all = CpuTime::default();
        all.during(|| ());
        let (one, two) = (CpuTime::default(), CpuTime::default());
        let work = |cpu: &CpuTime, ms| {
            cpu.spawn(async move {
                let mut spent = 0;
                for _ in 0..20 {
                    spent += busy(ms);
                    yield_now().await;
                }
                spent
            })
        };
        let (first, second) = (work(&one, 1), work(&two, 3));
        let (first, second) = (first.await.unwrap(), second.await.unwrap());
        all.during(|| ());
        for (cpu, did) in [(&one, first), (&two, second)] {
            // Besides, only what the runtime needed.
            assert!((did..did + 5000).contains(&cpu.us()), "{} of {did}", cpu.us());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_costs_nothing() {
        let cpu = CpuTime::default();
        cpu.during(|| ());
        let before = cpu.us();
        cpu.spawn(tokio::time::sleep(Duration::from_secs(60))).await.unwrap();
        CpuTime::default().during(|| ());
        assert!(cpu.us() - before < 5000, "{}", cpu.us() - before);
    }

    #[test]
    fn work_within_work_is_counted_once() {
        let (outer, inner) = (CpuTime::default(), CpuTime::default());
        outer.during(|| ());
        inner.during(|| ());
        let before = outer.us();
        let mut did = (0, 0);
        outer.during(|| {
            did.0 = inner.during(|| busy(20));
            did.1 = busy(10);
        });
        inner.during(|| ());
        assert!(
            (did.0..did.0 + 2000).contains(&inner.us()),
            "{} of {}",
            inner.us(),
            did.0
        );
        let outside = outer.us() - before;
        assert!((did.1 - 1..did.1 + 2000).contains(&outside), "{outside} of {}", did.1);
    }

    #[test]
    fn what_was_counted_before_goes_on() {
        let cpu = CpuTime::resume(7);
        assert_eq!(cpu.us(), 7);
        cpu.clone().during(|| busy(1));
        CpuTime::default().during(|| ());
        assert!(cpu.us() >= 1007);
        assert_eq!(CpuTime::resume(u64::MAX).us(), u64::MAX / NS_PER_US);
    }

    #[test]
    fn a_counter_is_behind_by_so_many_pieces_of_work_and_no_more() {
        let cpu = CpuTime::default();
        cpu.during(|| ());
        let mut spent = 0;
        for piece in 1..=4 * READ_EVERY {
            spent += cpu.during(|| busy(1));
            let behind = spent.saturating_sub(cpu.us());
            assert!(behind < u64::from(READ_EVERY) * 2000, "{behind} after {piece}");
        }
        CpuTime::default().during(|| ());
        assert!(cpu.us() >= spent);
    }

    #[test]
    fn work_that_panics_is_not_in_the_way_of_the_next() {
        let (one, two) = (CpuTime::default(), CpuTime::default());
        let panicked = std::panic::catch_unwind(|| one.during(|| panic!("within")));
        assert!(panicked.is_err());
        let did = two.during(|| busy(5));
        one.during(|| ());
        assert!(two.us() >= did);
    }
}

//! What is to be done at a certain time.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// What a timer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    Connect,
    CommandTimeout(u64),
    StdinDeadline(u64),
    Shutdown,
    Grants,
}

/// The timers that are set. One that has lost its reason is cleared: an hour's limit on each of a million short commands
/// must not be a million timers.
#[derive(Debug, Default)]
pub(super) struct Timers {
    by_time: BTreeSet<(Instant, Timer)>,
    by_timer: BTreeSet<(Timer, Instant)>,
}

impl Timers {
    /// Set `timer`, which may be set for other times too.
    pub(super) fn set(&mut self, at: Instant, timer: Timer) {
        self.by_time.insert((at, timer));
        self.by_timer.insert((timer, at));
    }

    /// Whether `timer` is set at all.
    pub(super) fn is_set(&self, timer: Timer) -> bool {
        self.first(timer).is_some()
    }

    fn first(&self, timer: Timer) -> Option<Instant> {
        let (found, at) = self.by_timer.range((timer, self.by_time.first()?.0)..).next()?;
        (*found == timer).then_some(*at)
    }

    /// Clear `timer`, whenever it is set for.
    pub(super) fn clear(&mut self, timer: Timer) {
        while let Some(at) = self.first(timer) {
            self.by_time.remove(&(at, timer));
            self.by_timer.remove(&(timer, at));
        }
    }

    /// How long until the first one.
    pub(super) fn wait(&self) -> Option<Duration> {
        let (at, _) = self.by_time.first()?;
        Some(at.saturating_duration_since(Instant::now()))
    }

    /// Take out the first one that is due.
    pub(super) fn next_due(&mut self, now: Instant) -> Option<Timer> {
        let (at, timer) = self.by_time.first().copied().filter(|(at, _)| *at <= now)?;
        self.by_time.remove(&(at, timer));
        self.by_timer.remove(&(timer, at));
        Some(timer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_come_in_order_and_cleared_ones_not_at_all() {
        let (mut timers, now) = (Timers::default(), Instant::now());
        let at = |seconds| now + Duration::from_secs(seconds);
        assert_eq!(timers.wait(), None);
        timers.set(at(3), Timer::Shutdown);
        for serial in 0..100 {
            timers.set(at(2), Timer::CommandTimeout(serial));
            timers.set(at(1), Timer::StdinDeadline(serial));
            timers.set(at(4), Timer::StdinDeadline(serial));
        }
        for serial in 1..100 {
            timers.clear(Timer::StdinDeadline(serial));
            timers.clear(Timer::CommandTimeout(serial));
        }
        assert!(timers.is_set(Timer::StdinDeadline(0)) && !timers.is_set(Timer::StdinDeadline(1)));
        assert_eq!((timers.by_time.len(), timers.by_timer.len()), (4, 4));
        assert_eq!(timers.next_due(now), None);
        let due: Vec<_> = std::iter::from_fn(|| timers.next_due(at(3))).collect();
        assert_eq!(
            due,
            [Timer::StdinDeadline(0), Timer::CommandTimeout(0), Timer::Shutdown]
        );
        assert!(timers.wait() > Some(Duration::from_secs(3)));
    }
}

//! `shutdown`: everything ends, first when it likes and then at once.

use std::time::{Duration, Instant};

use hutch_wire::ErrorMessage;
use rustix::io::Errno;

use super::timers::Timer;
use super::{Agent, MAX_TIME_MS};
use crate::requests::{Shutdown, UserName, nothing};
use crate::sys_unsafe::{self, SIGCONT, SIGKILL, SIGTERM};
use crate::system;
use crate::work::{Address, Input, Operation, Progress, Wants};

/// After SIGKILL, how long processes may take to go.
const KILL_WAIT: Duration = Duration::from_secs(2);

/// A `shutdown` in progress, and whom to tell.
pub(super) struct ShuttingDown {
    requests: Vec<Address>,
    kill_at: Instant,
    killed: bool,
}

impl Agent {
    pub(super) fn shut_down(&mut self, stream: u32, request: &Shutdown) {
        let kill_at = Instant::now() + Duration::from_millis(request.grace_ms.min(MAX_TIME_MS));
        let address = Address {
            connection: self.channel.number(),
            stream,
        };
        if let Some(state) = &mut self.shutting_down {
            state.requests.push(address);
            state.kill_at = state.kill_at.min(kill_at);
        } else {
            self.shutting_down = Some(ShuttingDown {
                requests: vec![address],
                kill_at,
                killed: false,
            });
            self.signal_all(SIGTERM);
            self.signal_all(SIGCONT);
        }
        self.timers.set(kill_at, Timer::Shutdown);
        self.advance_shutdown();
    }

    fn signal_all(&self, signal: i32) {
        if system::is_init() {
            let _ = sys_unsafe::kill(-1, signal);
            return;
        }
        for pid in self.processes.keys() {
            let _ = sys_unsafe::kill(-pid, signal);
        }
    }

    fn all_gone(&self) -> bool {
        if system::is_init() {
            return matches!(
                rustix::process::waitid(
                    rustix::process::WaitId::All,
                    rustix::process::WaitIdOptions::EXITED
                        | rustix::process::WaitIdOptions::NOHANG
                        | rustix::process::WaitIdOptions::NOWAIT,
                ),
                Err(Errno::CHILD)
            );
        }
        self.processes.is_empty()
    }

    pub(super) fn advance_shutdown(&mut self) {
        let now = Instant::now();
        let gone = self.all_gone();
        let Some(state) = &mut self.shutting_down else { return };
        if !gone && now >= state.kill_at && !state.killed {
            state.killed = true;
            self.signal_all(SIGKILL);
            self.timers.set(now + KILL_WAIT, Timer::Shutdown);
            return;
        }
        let given_up = state.killed && now >= state.kill_at + KILL_WAIT;
        if !gone && !given_up {
            return;
        }
        let requests = std::mem::take(&mut state.requests);
        self.shutting_down = None;
        for request in requests {
            if request.connection == self.channel.number() && self.channel.mux().is_some() {
                self.work(request.stream, UserName::Root, Box::new(SyncDisks));
            }
        }
    }
}

/// `sync`, and the end of `shutdown`: what was written reaches the disk.
pub(super) struct SyncDisks;

impl Operation for SyncDisks {
    fn wants(&self) -> Wants {
        Wants::Input
    }

    fn step(&mut self, _input: Input) -> Result<Progress, ErrorMessage> {
        rustix::fs::sync();
        Ok(Progress::reply(nothing()))
    }
}

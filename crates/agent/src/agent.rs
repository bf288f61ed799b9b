//! The main thread: one loop over the channel, the commands and the timers. Nothing in it waits but the loop itself.
//!
//! * `streams`: what the host's frames mean for whom, and what is sent when
//! * `methods`: which method does what
//! * `commands`, `file_work`, `shutdown`: the methods that take time
//! * `timers`

mod commands;
mod file_work;
mod methods;
mod shutdown;
mod streams;
mod timers;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use self::file_work::Work;
use self::shutdown::ShuttingDown;
use self::timers::{Timer, Timers};
use crate::channel::{Channel, Place};
use crate::command::Command;
use crate::freezer::Freezer;
use crate::identity::Identity;
use crate::output::Buffers;
use crate::poller::{Interest, Poller, Token};
use crate::sys_unsafe::{self, Credentials, SIGKILL, Spawner, take_over_signals};
use crate::system;
use crate::vm::Machine;
use crate::work::Workers;

/// What we take on each stream before we grant credit.
const WINDOW_BYTES: u32 = 1024 * 1024;
/// The window of a host that has not said HELLO yet.
const DEFAULT_WINDOW_BYTES: usize = 256 * 1024;
/// Output is queued for the transport up to this; the rest stays with its command.
const OUTGOING_BYTES: usize = 512 * 1024;
/// The longest time that a request may ask for; beyond it, arithmetic on time could overflow.
const MAX_TIME_MS: u64 = 10 * 365 * 24 * 3600 * 1000;

/// Who a stream belongs to.
enum Use {
    Command(u64),
    Stdin { serial: u64, close: bool },
    Work(Box<Work>),
}

/// Somebody who may have output to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sender {
    Command(u64),
    Work(u32),
}

/// The agent's whole state.
pub(crate) struct Agent {
    poller: Poller,
    children: OwnedFd,
    workers: Workers,
    channel: Channel,
    /// The virtual machine that this is process 1 of, if it is one.
    machine: Option<Machine>,
    /// What stops its programs, once a host has asked for that, and whether it does when this channel ends.
    freezer: Option<Freezer>,
    freezes: bool,
    boot: String,
    identity: Identity,
    credentials: HashMap<u8, Arc<Credentials>>,
    spawner: Spawner,
    buffers: Buffers,
    /// The host's window: as much output of each command is kept.
    window: usize,
    streams: HashMap<u32, Use>,
    /// Commands by their serial numbers, which are never used twice.
    commands: HashMap<u64, Command>,
    serials: HashMap<String, u64>,
    processes: HashMap<i32, u64>,
    /// Commands that have ended, the oldest first.
    finished: VecDeque<u64>,
    /// Output that commands left since the bound on all of it was last looked at.
    unchecked_bytes: usize,
    drains: HashMap<u64, OwnedFd>,
    next_serial: u64,
    senders: VecDeque<Sender>,
    grants: BTreeMap<u32, u32>,
    grant_second: Instant,
    grant_frames: u64,
    timers: Timers,
    shutting_down: Option<ShuttingDown>,
}

impl Agent {
    pub(crate) fn new(place: Place, machine: Option<Machine>) -> std::io::Result<Self> {
        system::prepare_process();
        let children = take_over_signals()?;
        let poller = Poller::new()?;
        let workers = Workers::new()?;
        poller.add(&children, Token::Children, Interest::READ)?;
        poller.add(workers.descriptor(), Token::Workers, Interest::READ)?;
        Ok(Self {
            poller,
            children,
            workers,
            channel: Channel::new(place),
            machine,
            freezer: None,
            freezes: false,
            boot: system::boot_id(),
            identity: Identity::unclaimed(),
            credentials: HashMap::new(),
            spawner: Spawner::new(),
            buffers: Buffers::default(),
            window: DEFAULT_WINDOW_BYTES,
            streams: HashMap::new(),
            commands: HashMap::new(),
            serials: HashMap::new(),
            processes: HashMap::new(),
            finished: VecDeque::new(),
            unchecked_bytes: 0,
            drains: HashMap::new(),
            next_serial: 1,
            senders: VecDeque::new(),
            grants: BTreeMap::new(),
            grant_second: Instant::now(),
            grant_frames: 0,
            timers: Timers::default(),
            shutting_down: None,
        })
    }

    /// Work until the guest ends.
    pub(crate) fn run(mut self) {
        let mut ready = Vec::new();
        self.connect();
        loop {
            if let Err(broken) = self.send() {
                self.disconnect(&broken);
            }
            self.poller.wait(self.timers.wait(), &mut ready);
            for (token, readable, _) in &ready {
                self.handle(*token, *readable);
            }
            self.run_timers();
        }
    }

    fn handle(&mut self, token: Token, readable: bool) {
        match token {
            Token::Channel => {
                if readable && let Err(broken) = self.receive() {
                    self.disconnect(&broken);
                }
            }
            Token::Children => self.reap(),
            Token::Workers => {
                for outcome in self.workers.outcomes() {
                    self.step_done(outcome);
                }
            }
            Token::Output(serial, index) => {
                self.with_command(serial, |command, around| command.read(index, around));
                self.senders_push(Sender::Command(serial));
            }
            Token::Stdin(serial) => self.advance_stdin(serial),
            Token::Drain(number) => self.drain(number),
        }
    }

    fn run_timers(&mut self) {
        let now = Instant::now();
        while let Some(timer) = self.timers.next_due(now) {
            match timer {
                Timer::Connect => {
                    if self.channel.mux().is_none() {
                        self.connect();
                    }
                }
                Timer::CommandTimeout(serial) => {
                    if let Some(command) = self.commands.get(&serial).filter(|command| command.exit.is_none()) {
                        let _ = sys_unsafe::kill(-command.pid, SIGKILL);
                    }
                }
                Timer::StdinDeadline(serial) => self.advance_stdin(serial),
                Timer::Shutdown => self.advance_shutdown(),
                Timer::Grants => {}
            }
        }
    }
}

//! The main thread: one loop over the channel, the commands and the timers. Nothing in it waits but the loop itself.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hutch_wire::{ErrorMessage, Event, Hello, MAX_PAYLOAD_BYTES, VERSION, encode};
use rustix::io::Errno;
use rustix::process::WaitOptions;

use crate::archive::WriteArchive;
use crate::channel::{Broken, Channel};
use crate::command::{Command, Surroundings};
use crate::errors::{bad_request, not_running, system_failure};
use crate::files::{MakeDirectory, ReadFile, Stat, WriteFile};
use crate::identity::Identity;
use crate::output::{Buffers, READ_BYTES};
use crate::poller::{Interest, Poller, Token};
use crate::requests::{
    ArchiveWrite, Attached, Claim, ClockSet, CommandAttach, CommandForget, CommandInfo, CommandInput, CommandList,
    CommandSignal, CommandStart, CommandStdin, EntropyAdd, FileMkdir, FilePath, FileWrite, Name, Shutdown, Sink,
    Started, StdinTaken, UserName, nothing, parse,
};
use crate::stdin::Notice;
use crate::sys_unsafe::{self, Credentials, Spawner, read_into, take_over_signals};
use crate::system;
use crate::work::{Address, Input, Operation, Outcome, Progress, Wants, Workers};

/// What we take on each stream before we grant credit.
const WINDOW_BYTES: u32 = 1024 * 1024;
const MAX_STREAMS: u32 = 1024;
/// The window of a host that has not said HELLO yet.
const DEFAULT_WINDOW_BYTES: usize = 256 * 1024;
/// Output is queued for the transport up to this; the rest stays with its command.
const OUTGOING_BYTES: usize = 512 * 1024;
/// Output of `file.read` that may wait for credit before the next step.
const READ_AHEAD_BYTES: usize = 256 * 1024;
const MAX_FINISHED: usize = 10_000;
/// Output that finished commands may keep, all together.
const MAX_FINISHED_BYTES: usize = 128 * 1024 * 1024;
const MAX_ID_BYTES: usize = 128;
/// The longest time that a request may ask for; beyond it, arithmetic on time could overflow.
const MAX_TIME_MS: u64 = 10 * 365 * 24 * 3600 * 1000;
/// The host closes a channel that sends 20,000 control frames in a second; CREDIT is what could come to that.
const CONTROL_FRAMES_PER_SECOND: u64 = 5_000;
/// Credit that is granted whatever the rate is: at most some thousands of frames in a gigabyte.
const LARGE_GRANT_BYTES: u32 = WINDOW_BYTES / 4;
/// After SIGKILL, how long processes may take to go.
const KILL_WAIT: Duration = Duration::from_secs(2);
/// A reply must fit into one frame.
const MAX_LIST_BYTES: usize = MAX_PAYLOAD_BYTES - 1024;

const SIGTERM: i32 = 15;
const SIGKILL: i32 = 9;
const SIGCONT: i32 = 18;

/// Who a stream belongs to.
enum Use {
    Command(u64),
    Stdin { serial: u64, close: bool },
    Work(Box<Work>),
}

/// A file request between its steps.
struct Work {
    credentials: Arc<Credentials>,
    /// `None` while a step is being done.
    operation: Option<Box<dyn Operation>>,
    wants: Wants,
    input: Input,
    end_given: bool,
    output: VecDeque<(Arc<Vec<u8>>, usize)>,
    output_bytes: usize,
    done: bool,
}

/// Somebody who may have output to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sender {
    Command(u64),
    Work(u32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Connect,
    CommandTimeout(u64),
    StdinDeadline(u64),
    Shutdown,
    Grants,
}

/// A `shutdown` in progress, and whom to tell.
struct ShuttingDown {
    requests: Vec<Address>,
    kill_at: Instant,
    killed: bool,
}

/// The agent's whole state.
pub(crate) struct Agent {
    poller: Poller,
    children: OwnedFd,
    workers: Workers,
    channel: Channel,
    boot: String,
    identity: Identity,
    credentials: HashMap<u8, Arc<Credentials>>,
    spawner: Spawner,
    buffers: Buffers,
    window: usize,
    streams: HashMap<u32, Use>,
    commands: HashMap<u64, Command>,
    serials: HashMap<String, u64>,
    processes: HashMap<i32, u64>,
    finished: VecDeque<u64>,
    drains: HashMap<u64, OwnedFd>,
    next_serial: u64,
    senders: VecDeque<Sender>,
    grants: BTreeMap<u32, u32>,
    grant_second: Instant,
    grant_frames: u64,
    timers: BinaryHeap<Reverse<(Instant, Timer)>>,
    shutting_down: Option<ShuttingDown>,
}

impl Agent {
    pub(crate) fn new(path: Vec<u8>) -> std::io::Result<Self> {
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
            channel: Channel::new(path),
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
            drains: HashMap::new(),
            next_serial: 1,
            senders: VecDeque::new(),
            grants: BTreeMap::new(),
            grant_second: Instant::now(),
            grant_frames: 0,
            timers: BinaryHeap::new(),
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
            let timeout = self
                .timers
                .peek()
                .map(|Reverse((at, _))| at.saturating_duration_since(Instant::now()));
            self.poller.wait(timeout, &mut ready);
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

    // -- the channel ---------------------------------------------------------------------------------------------

    fn connect(&mut self) {
        let hello = Hello {
            version: VERSION,
            role: "agent".to_owned(),
            window: WINDOW_BYTES,
            max_streams: MAX_STREAMS,
            boot: self.boot.clone(),
            token: self.identity.token.clone(),
            agent: env!("CARGO_PKG_VERSION").to_owned(),
        };
        if let Err(pause) = self.channel.connect(&self.poller, hello) {
            self.set_timer(Instant::now() + pause, Timer::Connect);
        }
    }

    /// The channel broke: commands go on, requests are forgotten.
    fn disconnect(&mut self, broken: &Broken) {
        if let Broken::Violation(violation) = broken {
            eprintln!("hutch-agent: the host broke the protocol: {violation}");
        }
        let pause = self.channel.close();
        self.set_timer(Instant::now() + pause, Timer::Connect);
        for (_, used) in std::mem::take(&mut self.streams) {
            match used {
                Use::Command(serial) => {
                    if let Some(command) = self.commands.get_mut(&serial) {
                        command.stream = None;
                        command.stdin.cancel_all();
                    }
                }
                Use::Stdin { serial, .. } => {
                    if let Some(command) = self.commands.get_mut(&serial) {
                        command.stdin.cancel_all();
                    }
                }
                Use::Work(_) => {}
            }
        }
        self.senders.clear();
        self.grants.clear();
        self.release_memory();
    }

    fn receive(&mut self) -> Result<(), Broken> {
        if !self.channel.receive()? {
            return Ok(());
        }
        while let Some(mux) = self.channel.mux() {
            match mux.next_event().map_err(Broken::Violation)? {
                None => break,
                Some(event) => self.handle_event(event),
            }
        }
        if self.streams.is_empty() {
            self.channel.release();
        }
        Ok(())
    }

    fn handle_event(&mut self, event: Event) {
        match event {
            Event::Hello(hello) => self.window = hello.window as usize,
            Event::Open { stream, method, params } => {
                if let Err(error) = self.open(stream, &method, &params) {
                    self.fail(stream, &error);
                }
            }
            Event::Data { stream, data, channel } => self.take_data(stream, channel, data),
            Event::Event { stream, payload } => self.take_command_input(stream, &payload),
            Event::Credit { stream, bytes } => match self.streams.get(&stream) {
                Some(Use::Command(serial)) => {
                    let serial = *serial;
                    self.with_command(serial, |command, around| command.acknowledge(bytes, around));
                    self.senders_push(Sender::Command(serial));
                }
                Some(Use::Work(_)) => self.senders_push(Sender::Work(stream)),
                _ => {}
            },
            Event::End { stream } => self.take_end(stream),
            Event::Cancel { stream } => self.take_cancel(stream),
            Event::Pong(_) | Event::Reply { .. } | Event::Error { .. } => {}
        }
    }

    fn take_data(&mut self, stream: u32, channel: u8, data: Vec<u8>) {
        match self.streams.get_mut(&stream) {
            Some(Use::Command(serial) | Use::Stdin { serial, .. }) if channel == 0 => {
                let serial = *serial;
                match self.commands.get_mut(&serial).filter(|command| command.stdin.is_open()) {
                    Some(command) => {
                        command.stdin.push(stream, data);
                        self.advance_stdin(serial);
                    }
                    None => self.take_data_for_closed_stdin(serial, stream, data),
                }
            }
            Some(Use::Work(work)) if channel == 0 && work.wants == Wants::Input => {
                work.input.chunks.push(data);
                self.step(stream);
            }
            _ => self.grant(stream, data.len()),
        }
    }

    /// A request is told in its turn that nothing was taken; a command's own stream is not told anything.
    fn take_data_for_closed_stdin(&mut self, serial: u64, stream: u32, data: Vec<u8>) {
        match (self.streams.get(&stream), self.commands.get_mut(&serial)) {
            (Some(Use::Stdin { .. }), Some(command)) => {
                command.stdin.push(stream, data);
                self.advance_stdin(serial);
            }
            _ => self.grant(stream, data.len()),
        }
    }

    fn take_end(&mut self, stream: u32) {
        match self.streams.get_mut(&stream) {
            Some(Use::Command(serial)) => {
                let serial = *serial;
                self.detach(serial, stream);
                if let Some(mux) = self.channel.mux() {
                    mux.end(stream);
                }
            }
            Some(Use::Stdin { serial, close }) => {
                let (serial, close) = (*serial, *close);
                if let Some(command) = self.commands.get_mut(&serial) {
                    command.stdin.end(stream, close);
                }
                self.advance_stdin(serial);
            }
            Some(Use::Work(work)) => {
                work.input.ended = true;
                self.step(stream);
            }
            None => {}
        }
    }

    fn take_cancel(&mut self, stream: u32) {
        self.grants.remove(&stream);
        match self.streams.get(&stream) {
            Some(Use::Command(serial)) => self.detach(*serial, stream),
            Some(Use::Stdin { serial, .. }) => {
                let serial = *serial;
                if let Some(command) = self.commands.get_mut(&serial) {
                    command.stdin.cancel(stream);
                }
                self.streams.remove(&stream);
                self.advance_stdin(serial);
            }
            Some(Use::Work(_)) => {
                self.streams.remove(&stream);
            }
            None => {}
        }
    }

    fn detach(&mut self, serial: u64, stream: u32) {
        self.streams.remove(&stream);
        if let Some(command) = self.commands.get_mut(&serial)
            && command.stream == Some(stream)
        {
            command.stream = None;
        }
    }

    /// Send what there is until the transport or credit stops it.
    fn send(&mut self) -> Result<(), Broken> {
        self.send_grants();
        loop {
            while let Some(mux) = self.channel.mux() {
                if mux.outgoing.len() >= OUTGOING_BYTES {
                    break;
                }
                let Some(sender) = self.senders.pop_front() else { break };
                match sender {
                    Sender::Command(serial) => {
                        let Some(command) = self.commands.get_mut(&serial) else {
                            continue;
                        };
                        command.send(mux, OUTGOING_BYTES);
                        if command.is_pending() && mux.outgoing.len() >= OUTGOING_BYTES {
                            self.senders.push_back(sender);
                        }
                    }
                    Sender::Work(stream) => self.send_work(stream),
                }
            }
            let blocked = self.channel.flush(&self.poller)?;
            if blocked || self.senders.is_empty() || self.channel.mux().is_none() {
                return Ok(());
            }
        }
    }

    fn senders_push(&mut self, sender: Sender) {
        if !self.senders.contains(&sender) {
            self.senders.push_back(sender);
        }
    }

    /// Allow the host `bytes` more on `stream`, at the end of this turn.
    fn grant(&mut self, stream: u32, bytes: usize) {
        if bytes > 0 {
            *self.grants.entry(stream).or_default() += bytes as u32;
        }
    }

    fn send_grants(&mut self) {
        if self.grants.is_empty() {
            return;
        }
        let Some(mux) = self.channel.mux() else {
            self.grants.clear();
            return;
        };
        let now = Instant::now();
        if now.duration_since(self.grant_second) >= Duration::from_secs(1) {
            (self.grant_second, self.grant_frames) = (now, mux.control_frames);
        }
        let mut sent = mux.control_frames.saturating_sub(self.grant_frames);
        self.grants.retain(|stream, bytes| {
            let wait = sent >= CONTROL_FRAMES_PER_SECOND && *bytes < LARGE_GRANT_BYTES;
            if !wait {
                mux.grant(*stream, *bytes);
                sent += 1;
            }
            wait
        });
        if !self.grants.is_empty() {
            self.set_timer(self.grant_second + Duration::from_secs(1), Timer::Grants);
        }
    }

    fn reply(&mut self, stream: u32, payload: &[u8]) {
        if let Some(mux) = self.channel.mux() {
            mux.reply(stream, payload);
        }
    }

    /// Answer a request that has no more to say.
    fn finish(&mut self, stream: u32, payload: &[u8]) {
        self.reply(stream, payload);
        if let Some(mux) = self.channel.mux() {
            mux.end(stream);
        }
        self.streams.remove(&stream);
    }

    fn fail(&mut self, stream: u32, error: &ErrorMessage) {
        if let Some(mux) = self.channel.mux() {
            mux.error(stream, error);
        }
        self.streams.remove(&stream);
        self.grants.remove(&stream);
    }

    // -- timers --------------------------------------------------------------------------------------------------

    fn set_timer(&mut self, at: Instant, timer: Timer) {
        if !matches!(timer, Timer::Grants) || !self.timers.iter().any(|Reverse((_, set))| *set == timer) {
            self.timers.push(Reverse((at, timer)));
        }
    }

    fn run_timers(&mut self) {
        let now = Instant::now();
        while let Some(Reverse((at, timer))) = self.timers.peek().copied() {
            if at > now {
                return;
            }
            self.timers.pop();
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

    // -- requests ------------------------------------------------------------------------------------------------

    fn open(&mut self, stream: u32, method: &str, params: &[u8]) -> Result<(), ErrorMessage> {
        match method {
            "ping" => self.finish(stream, &nothing()),
            "claim" => self.claim(stream, &parse(params)?)?,
            "command.start" => self.start(stream, &parse(params)?)?,
            "command.attach" => self.attach(stream, &parse(params)?)?,
            "command.signal" => self.signal(stream, &parse(params)?)?,
            "command.stdin" => self.stdin(stream, &parse(params)?)?,
            "command.forget" => self.forget(stream, &parse(params)?)?,
            "command.list" => self.list(stream),
            "file.read" => {
                let request: FilePath = parse(params)?;
                let path = self.path(request.cwd.as_ref(), &request.path)?;
                self.work(
                    stream,
                    request.user,
                    Box::new(ReadFile {
                        path,
                        file: None,
                        position: 0,
                    }),
                );
            }
            "file.write" => {
                let request: FileWrite = parse(params)?;
                let path = self.path(request.cwd.as_ref(), &request.path)?;
                let operation = WriteFile {
                    path,
                    mode: request.mode,
                    target: None,
                    size: 0,
                };
                self.work(stream, request.user, Box::new(operation));
            }
            "file.mkdir" => {
                let request: FileMkdir = parse(params)?;
                let path = self.path(request.cwd.as_ref(), &request.path)?;
                self.work(
                    stream,
                    request.user,
                    Box::new(MakeDirectory {
                        path,
                        recursive: request.recursive,
                    }),
                );
            }
            "file.stat" => {
                let request: FilePath = parse(params)?;
                let path = self.path(request.cwd.as_ref(), &request.path)?;
                self.work(stream, request.user, Box::new(Stat { path }));
            }
            "archive.write" => {
                let request: ArchiveWrite = parse(params)?;
                let cwd = self.identity.resolve(Some(&request.cwd.0), b"");
                let operation = WriteArchive::new(cwd, request.gzip, request.max_bytes, request.max_files);
                self.work(stream, request.user, Box::new(operation));
            }
            "clock.set" => {
                let request: ClockSet = parse(params)?;
                if system::is_init() {
                    system::set_clock(request.time_ns)
                        .map_err(|error| system_failure("The clock cannot be set", error))?;
                }
                self.finish(stream, &nothing());
            }
            "entropy.add" => {
                let request: EntropyAdd = parse(params)?;
                if request.data.0.len() > 4096 {
                    return Err(bad_request("Invalid request: more than 4096 bytes of entropy"));
                }
                system::add_entropy(&request.data.0);
                self.finish(stream, &nothing());
            }
            "shutdown" => self.shut_down(stream, &parse(params)?),
            _ => return Err(bad_request(format!("Invalid request: unknown method {method:?}"))),
        }
        Ok(())
    }

    fn claim(&mut self, stream: u32, claim: &Claim) -> Result<(), ErrorMessage> {
        system::check_hostname(&claim.hostname)?;
        let identity = Identity::claimed(claim)?;
        if system::is_init() {
            system::set_hostname(&claim.hostname)?;
            system::add_entropy(&claim.entropy.0);
            if claim.time_ns != 0 {
                // A guest that shares the host's clock refuses this, and needs it the least.
                let _ = system::set_clock(claim.time_ns);
            }
        }
        self.identity = identity;
        self.credentials.clear();
        self.finish(stream, &nothing());
        Ok(())
    }

    fn path(&self, cwd: Option<&Name>, path: &Name) -> Result<Vec<u8>, ErrorMessage> {
        if path.0.is_empty() {
            return Err(bad_request("Invalid request: the path is empty"));
        }
        Ok(self.identity.resolve(cwd.map(|cwd| cwd.0.as_slice()), &path.0))
    }

    // -- commands ------------------------------------------------------------------------------------------------

    fn with_command<T>(
        &mut self,
        serial: u64,
        act: impl FnOnce(&mut Command, &mut Surroundings<'_>) -> T,
    ) -> Option<T> {
        let command = self.commands.get_mut(&serial)?;
        let mut drains = Vec::new();
        let mut around = Surroundings {
            poller: &self.poller,
            buffers: &mut self.buffers,
            drains: &mut drains,
            window: self.window,
        };
        let outcome = act(command, &mut around);
        for descriptor in drains {
            let number = self.next_serial;
            self.next_serial += 1;
            if self
                .poller
                .add(&descriptor, Token::Drain(number), Interest::READ)
                .is_ok()
            {
                self.drains.insert(number, descriptor);
            }
        }
        Some(outcome)
    }

    fn start(&mut self, stream: u32, request: &CommandStart) -> Result<(), ErrorMessage> {
        if request.id.is_empty() || request.id.len() > MAX_ID_BYTES {
            return Err(bad_request(format!(
                "Invalid request: id must have 1 to {MAX_ID_BYTES} bytes"
            )));
        }
        if self.serials.contains_key(&request.id) {
            let message = format!("There is a command {} already.", request.id);
            return Err(ErrorMessage::new(409, "command_exists", message));
        }
        if self.shutting_down.is_some() {
            return Err(ErrorMessage::new(503, "shutting_down", "The guest is shutting down."));
        }
        let serial = self.next_serial;
        let command = Command::start(request, serial, &self.identity, &mut self.spawner, &self.poller)?;
        self.next_serial += 1;
        let pid = command.pid;
        self.serials.insert(request.id.clone(), serial);
        self.processes.insert(pid, serial);
        self.commands.insert(serial, command);
        if let Some(timeout_ms) = request.timeout_ms {
            let at = Instant::now() + Duration::from_millis(timeout_ms.min(MAX_TIME_MS));
            self.set_timer(at, Timer::CommandTimeout(serial));
        }
        self.reply(stream, &encode(&Started { pid }));
        self.streams.insert(stream, Use::Command(serial));
        self.with_command(serial, |command, around| command.attach(stream, None, around));
        Ok(())
    }

    fn attach(&mut self, stream: u32, request: &CommandAttach) -> Result<(), ErrorMessage> {
        let Some(serial) = self.serials.get(&request.id).copied() else {
            let message = format!("The command {} was not found.", request.id);
            return Err(ErrorMessage::new(404, "command_not_found", message));
        };
        let offset = u64::try_from(request.offset).ok();
        if offset.is_none() && request.offset != -1 {
            return Err(bad_request("Invalid request: offset is negative"));
        }
        let before = self.commands.get(&serial).and_then(|command| command.stream);
        let attached = self.with_command(serial, |command, around| {
            let offset = command.attach(stream, offset, around)?;
            Some(Attached {
                pid: command.pid,
                offset,
                running: command.exit.is_none(),
            })
        });
        let Some(attached) = attached.flatten() else {
            return Err(bad_request("Invalid request: offset is beyond the output"));
        };
        if let Some(before) = before {
            self.streams.remove(&before);
            if let Some(mux) = self.channel.mux() {
                mux.end(before);
            }
        }
        self.reply(stream, &encode(&attached));
        self.streams.insert(stream, Use::Command(serial));
        self.senders_push(Sender::Command(serial));
        Ok(())
    }

    fn running(&mut self, id: &str) -> Result<&mut Command, ErrorMessage> {
        let serial = self.serials.get(id);
        let command = serial.and_then(|serial| self.commands.get_mut(serial));
        command
            .filter(|command| command.exit.is_none())
            .ok_or_else(|| not_running(id))
    }

    fn signal(&mut self, stream: u32, request: &CommandSignal) -> Result<(), ErrorMessage> {
        if !(1..=64).contains(&request.signal) {
            return Err(bad_request(format!(
                "Invalid request: there is no signal {}",
                request.signal
            )));
        }
        let pid = self.running(&request.id)?.pid;
        match sys_unsafe::kill(if request.group { -pid } else { pid }, request.signal) {
            Ok(()) => {}
            Err(Errno::SRCH) => return Err(not_running(&request.id)),
            Err(error) => return Err(system_failure("The signal cannot be sent", error)),
        }
        self.finish(stream, &nothing());
        Ok(())
    }

    fn stdin(&mut self, stream: u32, request: &CommandStdin) -> Result<(), ErrorMessage> {
        let deadline = Instant::now() + Duration::from_millis(request.timeout_ms.min(MAX_TIME_MS));
        let command = self.running(&request.id)?;
        let serial = command.serial;
        command.stdin.request(stream, request.offset, request.close, deadline);
        self.streams.insert(
            stream,
            Use::Stdin {
                serial,
                close: request.close,
            },
        );
        self.set_timer(deadline, Timer::StdinDeadline(serial));
        self.advance_stdin(serial);
        Ok(())
    }

    fn advance_stdin(&mut self, serial: u64) {
        let mut notices = Vec::new();
        if let Some(command) = self.commands.get_mut(&serial) {
            command
                .stdin
                .advance(Instant::now(), &self.poller, Token::Stdin(serial), &mut notices);
        }
        self.tell(&notices);
    }

    fn tell(&mut self, notices: &[Notice]) {
        for notice in notices {
            match *notice {
                Notice::Credit { stream, bytes } => self.grant(stream, bytes),
                Notice::Done {
                    stream,
                    written,
                    stalled,
                } => {
                    if self.streams.contains_key(&stream) {
                        self.finish(stream, &encode(&StdinTaken { written, stalled }));
                    }
                }
                Notice::Gap { stream, written } => {
                    let message = format!("Invalid request: offset is beyond the {written} bytes that were taken");
                    self.fail(stream, &bad_request(message));
                }
                Notice::Closed { stream } => {
                    self.fail(stream, &bad_request("The command's standard input is closed."));
                }
            }
        }
    }

    fn take_command_input(&mut self, stream: u32, payload: &[u8]) {
        self.grant(stream, payload.len());
        let Some(Use::Command(serial)) = self.streams.get(&stream) else {
            return;
        };
        let serial = *serial;
        let input: CommandInput = match parse(payload) {
            Ok(input) => input,
            Err(error) => {
                self.detach(serial, stream);
                self.fail(stream, &error);
                return;
            }
        };
        if input.eof == Some(true) {
            if let Some(command) = self.commands.get_mut(&serial) {
                command.stdin.end(stream, true);
            }
            self.advance_stdin(serial);
        }
        if let Some((cols, rows)) = input.resize {
            self.with_command(serial, |command, _| command.resize(cols, rows));
        }
        if let Some(sink) = input.sink {
            self.with_command(serial, |command, around| {
                command.set_discard(sink == Sink::Discard, around)
            });
            self.senders_push(Sender::Command(serial));
        }
    }

    fn forget(&mut self, stream: u32, request: &CommandForget) -> Result<(), ErrorMessage> {
        if let Some(serial) = self.serials.get(&request.id).copied() {
            if self.commands.get(&serial).is_some_and(|command| command.exit.is_none()) {
                return Err(bad_request(format!("The command {} is still running.", request.id)));
            }
            self.remove_command(serial);
            self.finished.retain(|finished| *finished != serial);
        }
        self.finish(stream, &nothing());
        self.release_memory();
        Ok(())
    }

    fn remove_command(&mut self, serial: u64) {
        let retired = self.with_command(serial, |command, around| {
            command.abandon(around);
            command.stream
        });
        if let Some(Some(stream)) = retired {
            self.streams.remove(&stream);
            if let Some(mux) = self.channel.mux() {
                mux.end(stream);
            }
        }
        if let Some(command) = self.commands.remove(&serial) {
            self.serials.remove(&command.id);
        }
    }

    fn list(&mut self, stream: u32) {
        let mut commands: Vec<&Command> = self.commands.values().collect();
        // Running ones first, then the latest: what does not fit into a frame is the oldest that has finished.
        commands.sort_by_key(|command| (command.exit.is_some(), Reverse(command.serial)));
        let mut size = 0;
        let commands = commands
            .into_iter()
            .map(|command| CommandInfo {
                id: &command.id,
                pid: command.pid,
                running: command.exit.is_none(),
                exit_code: command.exit.map(|exit| exit.exit_code),
                duration_us: command.exit.map(|exit| exit.duration_us),
                start: command.output.start(),
                end: command.output.end(),
            })
            .take_while(|info| {
                size += 110 + info.id.len();
                size <= MAX_LIST_BYTES
            })
            .collect();
        let payload = encode(&CommandList { commands });
        self.finish(stream, &payload);
    }

    /// Take the statuses of all processes that have ended: commands and orphans.
    fn reap(&mut self) {
        let mut information = [0; 128 * 16];
        let _ = rustix::io::read(&self.children, &mut information);
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            let Some(serial) = self.processes.remove(&pid.as_raw_nonzero().get()) else {
                continue;
            };
            let signal = status.terminating_signal().map(|signal| 128 + signal);
            let exit_code = status.exit_status().or(signal).unwrap_or(255);
            let mut notices = Vec::new();
            let poller = &self.poller;
            if let Some(command) = self.commands.get_mut(&serial) {
                command.stdin.shut(poller, &mut notices);
            }
            self.with_command(serial, |command, around| command.ended(exit_code, around));
            self.tell(&notices);
            self.senders_push(Sender::Command(serial));
            self.finished.push_back(serial);
            self.bound_finished(serial);
        }
        if self.shutting_down.is_some() {
            self.advance_shutdown();
        }
    }

    fn bound_finished(&mut self, latest: u64) {
        if self.finished.len() > MAX_FINISHED
            && let Some(oldest) = self.finished.pop_front()
        {
            self.remove_command(oldest);
        }
        if !latest.is_multiple_of(64) {
            return;
        }
        let mut total = 0;
        for serial in self.finished.iter().rev() {
            let Some(command) = self.commands.get_mut(serial) else {
                continue;
            };
            total += command.output.retained();
            if total > MAX_FINISHED_BYTES && command.stream.is_none() {
                total -= command.output.retained();
                command.output.drop_all();
            }
        }
    }

    fn drain(&mut self, number: u64) {
        let Some(descriptor) = self.drains.get(&number) else {
            return;
        };
        let scratch = self.buffers.scratch();
        match read_into(std::os::fd::AsFd::as_fd(descriptor), scratch, READ_BYTES) {
            Ok(1..) | Err(Errno::AGAIN | Errno::INTR) => {}
            _ => {
                self.drains.remove(&number);
            }
        }
    }

    fn release_memory(&mut self) {
        if self.processes.is_empty() && self.drains.is_empty() {
            self.buffers.release();
            sys_unsafe::trim_memory();
        }
    }

    // -- file work -----------------------------------------------------------------------------------------------

    fn work(&mut self, stream: u32, user: UserName, operation: Box<dyn Operation>) {
        let identity = &self.identity;
        let credentials = self
            .credentials
            .entry(user as u8)
            .or_insert_with(|| Arc::new(identity.credentials(user).clone()));
        let work = Work {
            credentials: Arc::clone(credentials),
            wants: operation.wants(),
            operation: Some(operation),
            input: Input::default(),
            end_given: false,
            output: VecDeque::new(),
            output_bytes: 0,
            done: false,
        };
        self.streams.insert(stream, Use::Work(Box::new(work)));
        self.submit(stream);
    }

    /// Have the next step done, if there is something to do in it.
    fn step(&mut self, stream: u32) {
        let Some(Use::Work(work)) = self.streams.get(&stream) else {
            return;
        };
        let useful = match work.wants {
            Wants::Input => !work.input.chunks.is_empty() || (work.input.ended && !work.end_given),
            Wants::Output => work.output_bytes < READ_AHEAD_BYTES,
        };
        if useful && !work.done {
            self.submit(stream);
        }
    }

    fn submit(&mut self, stream: u32) {
        let address = Address {
            connection: self.channel.number(),
            stream,
        };
        let Some(Use::Work(work)) = self.streams.get_mut(&stream) else {
            return;
        };
        let Some(operation) = work.operation.take() else { return };
        let input = Input {
            chunks: std::mem::take(&mut work.input.chunks),
            ended: work.input.ended,
        };
        work.end_given |= input.ended;
        self.workers
            .submit(address, Arc::clone(&work.credentials), operation, input);
    }

    fn step_done(&mut self, outcome: Outcome) {
        let Address { connection, stream } = outcome.address;
        if connection != self.channel.number() || self.channel.mux().is_none() {
            return;
        }
        let Some(Use::Work(work)) = self.streams.get_mut(&stream) else {
            return;
        };
        let progress: Progress = match outcome.progress {
            Ok(progress) => progress,
            Err(error) => {
                self.fail(stream, &error);
                return;
            }
        };
        work.operation = Some(outcome.operation);
        work.done = progress.done;
        for piece in progress.output {
            work.output_bytes += piece.len();
            work.output.push_back((Arc::new(piece), 0));
        }
        if progress.done {
            work.operation = None;
        }
        if let Some(reply) = progress.reply {
            self.reply(stream, &reply);
        }
        self.grant(stream, outcome.taken);
        self.send_work(stream);
        self.step(stream);
    }

    /// Send output of `file.read`, and END after the last of it.
    fn send_work(&mut self, stream: u32) {
        let Some(mux) = self.channel.mux() else { return };
        let Some(Use::Work(work)) = self.streams.get_mut(&stream) else {
            return;
        };
        while let Some((piece, start)) = work.output.front_mut() {
            let credit = mux.send_credit(stream);
            if credit == 0 {
                break;
            }
            if mux.outgoing.len() >= OUTGOING_BYTES {
                self.senders_push(Sender::Work(stream));
                break;
            }
            let length = (piece.len() - *start).min(credit).min(MAX_PAYLOAD_BYTES);
            mux.data(stream, 1, piece, *start, length);
            *start += length;
            work.output_bytes -= length;
            if *start == piece.len() {
                work.output.pop_front();
            }
        }
        let Some(Use::Work(work)) = self.streams.get_mut(&stream) else {
            return;
        };
        if work.done && work.output.is_empty() {
            if let Some(mux) = self.channel.mux() {
                mux.end(stream);
            }
            self.streams.remove(&stream);
        } else if work.wants == Wants::Output && work.operation.is_some() {
            self.step(stream);
        }
    }

    // -- shutdown ------------------------------------------------------------------------------------------------

    fn shut_down(&mut self, stream: u32, request: &Shutdown) {
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
        self.set_timer(kill_at, Timer::Shutdown);
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

    fn advance_shutdown(&mut self) {
        let now = Instant::now();
        let gone = self.all_gone();
        let Some(state) = &mut self.shutting_down else { return };
        if !gone && now >= state.kill_at && !state.killed {
            state.killed = true;
            self.signal_all(SIGKILL);
            self.set_timer(now + KILL_WAIT, Timer::Shutdown);
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

/// The end of `shutdown`: what was written reaches the disk.
struct SyncDisks;

impl Operation for SyncDisks {
    fn wants(&self) -> Wants {
        Wants::Input
    }

    fn step(&mut self, _input: Input) -> Result<Progress, ErrorMessage> {
        rustix::fs::sync();
        Ok(Progress::reply(nothing()))
    }
}

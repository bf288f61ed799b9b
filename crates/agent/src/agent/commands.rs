//! The `command` methods, and what becomes of commands.

use std::cmp::Reverse;
use std::time::{Duration, Instant};

use hutch_wire::{ErrorMessage, MAX_PAYLOAD_BYTES, encode};
use rustix::io::Errno;
use rustix::process::WaitOptions;

use super::timers::Timer;
use super::{Agent, MAX_TIME_MS, Sender, Use};
use crate::command::{Command, Surroundings};
use crate::errors::{bad_request, no_stdin, not_running, system_failure};
use crate::output::READ_BYTES;
use crate::poller::{Interest, Token};
use crate::requests::{
    Attached, CommandAttach, CommandForget, CommandInfo, CommandInput, CommandList, CommandSignal, CommandStart,
    CommandStdin, Sink, Started, StdinTaken, nothing, parse,
};
use crate::stdin::Notice;
use crate::sys_unsafe::{self, read_into};

const MAX_FINISHED: usize = 10_000;
/// Output that finished commands may keep, all together.
const MAX_FINISHED_BYTES: usize = 128 * 1024 * 1024;
/// That bound is looked at whenever as much more may have been kept.
const CHECKED_BYTES: usize = 8 * 1024 * 1024;
const MAX_ID_BYTES: usize = 128;
/// A reply must fit into one frame.
const MAX_LIST_BYTES: usize = MAX_PAYLOAD_BYTES - 1024;

impl Agent {
    pub(super) fn with_command<T>(
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

    pub(super) fn start(&mut self, stream: u32, request: &CommandStart) -> Result<(), ErrorMessage> {
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
            self.timers.set(at, Timer::CommandTimeout(serial));
        }
        self.reply(stream, &encode(&Started { pid }));
        self.streams.insert(stream, Use::Command(serial));
        self.with_command(serial, |command, around| command.attach(stream, None, around));
        Ok(())
    }

    pub(super) fn attach(&mut self, stream: u32, request: &CommandAttach) -> Result<(), ErrorMessage> {
        let offset = u64::try_from(request.offset).ok();
        if offset.is_none() && request.offset != -1 {
            return Err(bad_request("Invalid request: offset is negative"));
        }
        let Some(serial) = self.serials.get(&request.id).copied() else {
            let message = format!("The command {} was not found.", request.id);
            return Err(ErrorMessage::new(404, "command_not_found", message));
        };
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

    pub(super) fn signal(&mut self, stream: u32, request: &CommandSignal) -> Result<(), ErrorMessage> {
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

    pub(super) fn stdin(&mut self, stream: u32, request: &CommandStdin) -> Result<(), ErrorMessage> {
        let deadline = Instant::now() + Duration::from_millis(request.timeout_ms.min(MAX_TIME_MS));
        let command = self.running(&request.id)?;
        if !command.stdin.was_given() {
            // Also for a request without bytes: that is how clients ask whether there is one.
            return Err(no_stdin());
        }
        let serial = command.serial;
        command.stdin.request(stream, request.offset, request.close, deadline);
        self.streams.insert(
            stream,
            Use::Stdin {
                serial,
                close: request.close,
            },
        );
        self.timers.set(deadline, Timer::StdinDeadline(serial));
        self.advance_stdin(serial);
        Ok(())
    }

    pub(super) fn advance_stdin(&mut self, serial: u64) {
        let mut notices = Vec::new();
        if let Some(command) = self.commands.get_mut(&serial) {
            command
                .stdin
                .advance(Instant::now(), &self.poller, Token::Stdin(serial), &mut notices);
        }
        if self
            .commands
            .get(&serial)
            .is_none_or(|command| !command.stdin.has_requests())
        {
            self.timers.clear(Timer::StdinDeadline(serial));
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
                Notice::Closed { stream } => self.fail(stream, &no_stdin()),
            }
        }
    }

    pub(super) fn take_command_input(&mut self, stream: u32, payload: &[u8]) {
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
                command.set_discard(sink == Sink::Discard, around);
            });
            self.senders_push(Sender::Command(serial));
        }
    }

    pub(super) fn forget(&mut self, stream: u32, request: &CommandForget) -> Result<(), ErrorMessage> {
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

    pub(super) fn list(&mut self, stream: u32) {
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
    pub(super) fn reap(&mut self) {
        let mut information = [0; 128 * 16];
        let _ = rustix::io::read(&self.children, &mut information);
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            let Some(serial) = self.processes.remove(&pid.as_raw_nonzero().get()) else {
                continue;
            };
            let signal = status.terminating_signal().map(|signal| 128 + signal);
            let exit_code = status.exit_status().or(signal).unwrap_or(255);
            self.timers.clear(Timer::CommandTimeout(serial));
            self.timers.clear(Timer::StdinDeadline(serial));
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

    /// Forget the oldest commands that nobody is attached to, and output, when there is too much of them.
    fn bound_finished(&mut self, latest: u64) {
        if self.finished.len() > MAX_FINISHED {
            let is_free = |serial: &u64| self.commands.get(serial).is_none_or(|command| command.stream.is_none());
            let oldest = self.finished.iter().position(is_free).unwrap_or(0);
            if let Some(oldest) = self.finished.remove(oldest) {
                self.remove_command(oldest);
            }
        }
        self.unchecked_bytes += self.commands.get(&latest).map_or(0, Command::most_retained);
        if self.unchecked_bytes < CHECKED_BYTES {
            return;
        }
        self.unchecked_bytes = 0;
        let mut total = 0;
        for serial in self.finished.iter().rev() {
            let Some(command) = self.commands.get_mut(serial) else {
                continue;
            };
            let kept = command.output.retained();
            if total + kept > MAX_FINISHED_BYTES && command.stream.is_none() {
                command.output.drop_all();
            } else {
                total += kept;
            }
        }
    }

    pub(super) fn drain(&mut self, number: u64) {
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

    pub(super) fn release_memory(&mut self) {
        if self.processes.is_empty() && self.drains.is_empty() {
            self.buffers.release();
            sys_unsafe::trim_memory();
        }
    }
}

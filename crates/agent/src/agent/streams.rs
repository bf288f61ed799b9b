//! The channel's side of the agent: what the host's frames mean for whom, and what is sent when.

use std::time::{Duration, Instant};

use hutch_wire::{ErrorMessage, Event, Hello, VERSION};

use super::timers::Timer;
use super::{Agent, OUTGOING_BYTES, Sender, Use, WINDOW_BYTES};
use crate::channel::Broken;
use crate::system;
use crate::work::Wants;

const MAX_STREAMS: u32 = 1024;
/// The host closes a channel that sends 20,000 control frames in a second; CREDIT is what could come to that.
const CONTROL_FRAMES_PER_SECOND: u64 = 5_000;
/// Credit that is granted whatever the rate is: at most some thousands of frames in a gigabyte.
const LARGE_GRANT_BYTES: u32 = WINDOW_BYTES / 4;

impl Agent {
    pub(super) fn connect(&mut self) {
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
            self.timers.set(Instant::now() + pause, Timer::Connect);
        }
    }

    /// The channel broke: commands go on, requests are forgotten.
    pub(super) fn disconnect(&mut self, broken: &Broken) {
        if let Broken::Violation(violation) = broken {
            system::complain(&format!("the host broke the protocol: {violation}"));
        }
        self.freeze();
        let pause = self.channel.close(broken);
        self.timers.set(Instant::now() + pause, Timer::Connect);
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

    pub(super) fn receive(&mut self) -> Result<(), Broken> {
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
                self.channel.asked();
                self.freezes = false;
                if let Err(error) = self.open(stream, &method, &params) {
                    self.fail(stream, &error);
                }
                self.thaw(&method);
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

    pub(super) fn detach(&mut self, serial: u64, stream: u32) {
        self.streams.remove(&stream);
        if let Some(command) = self.commands.get_mut(&serial)
            && command.stream == Some(stream)
        {
            command.stream = None;
        }
    }

    /// Send what there is until the transport or credit stops it.
    pub(super) fn send(&mut self) -> Result<(), Broken> {
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

    pub(super) fn senders_push(&mut self, sender: Sender) {
        if !self.senders.contains(&sender) {
            self.senders.push_back(sender);
        }
    }

    /// Allow the host `bytes` more on `stream`, at the end of this turn.
    pub(super) fn grant(&mut self, stream: u32, bytes: usize) {
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
        if !self.grants.is_empty() && !self.timers.is_set(Timer::Grants) {
            self.timers
                .set(self.grant_second + Duration::from_secs(1), Timer::Grants);
        }
    }

    pub(super) fn reply(&mut self, stream: u32, payload: &[u8]) {
        if let Some(mux) = self.channel.mux() {
            mux.reply(stream, payload);
        }
    }

    /// Answer a request that has no more to say.
    pub(super) fn finish(&mut self, stream: u32, payload: &[u8]) {
        self.reply(stream, payload);
        if let Some(mux) = self.channel.mux() {
            mux.end(stream);
        }
        self.streams.remove(&stream);
    }

    pub(super) fn fail(&mut self, stream: u32, error: &ErrorMessage) {
        if let Some(mux) = self.channel.mux() {
            mux.error(stream, error);
        }
        self.streams.remove(&stream);
        self.grants.remove(&stream);
    }
}

//! File requests between their steps, which threads do.

use std::collections::VecDeque;
use std::sync::Arc;

use hutch_wire::MAX_PAYLOAD_BYTES;

use super::{Agent, OUTGOING_BYTES, Sender, Use};
use crate::requests::UserName;
use crate::sys_unsafe::Credentials;
use crate::work::{Address, Input, Operation, Outcome, Progress, Wants};

/// Output of `file.read` that may wait for credit before the next step.
const READ_AHEAD_BYTES: usize = 256 * 1024;

/// A file request between its steps.
pub(super) struct Work {
    pub(super) credentials: Arc<Credentials>,
    /// `None` while a step is being done.
    pub(super) operation: Option<Box<dyn Operation>>,
    pub(super) wants: Wants,
    pub(super) input: Input,
    pub(super) end_given: bool,
    pub(super) output: VecDeque<(Arc<Vec<u8>>, usize)>,
    pub(super) output_bytes: usize,
    pub(super) done: bool,
}

impl Agent {
    pub(super) fn work(&mut self, stream: u32, user: UserName, operation: Box<dyn Operation>) {
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
    pub(super) fn step(&mut self, stream: u32) {
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

    pub(super) fn step_done(&mut self, outcome: Outcome) {
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
    pub(super) fn send_work(&mut self, stream: u32) {
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
}

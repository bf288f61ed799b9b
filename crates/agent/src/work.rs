//! File work off the main thread: a few threads that exist only while there is something to do.
//!
//! An [`Operation`] is a request with a body. It is moved to a thread for one *step* at a time, with the input that has
//! arrived, and comes back with its output, so that a client that stalls holds up no thread.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hutch_wire::ErrorMessage;
use rustix::event::EventfdFlags;
use rustix::io::Errno;

use crate::errors::system_failure;
use crate::sys_unsafe::{Credentials, become_user};

const MAX_THREADS: usize = 8;
const THREAD_STACK_BYTES: usize = 256 * 1024;
const IDLE_THREAD: Duration = Duration::from_secs(5);

/// What has arrived for an operation since its last step.
#[derive(Debug, Default)]
pub(crate) struct Input {
    pub(crate) chunks: Vec<Vec<u8>>,
    pub(crate) ended: bool,
}

/// What a step came to.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// Sent as REPLY, before any output.
    pub(crate) reply: Option<Vec<u8>>,
    /// Sent as DATA on channel 1.
    pub(crate) output: Vec<Vec<u8>>,
    /// END follows; the operation is over.
    pub(crate) done: bool,
}

impl Progress {
    /// The only answer to a request.
    pub(crate) fn reply(reply: Vec<u8>) -> Self {
        Self {
            reply: Some(reply),
            output: Vec::new(),
            done: true,
        }
    }
}

/// When an operation wants its next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wants {
    /// When input has arrived, or its end.
    Input,
    /// When its output has been sent.
    Output,
}

/// A request that works on files, with the rights of its user.
pub(crate) trait Operation: Send {
    fn wants(&self) -> Wants;
    fn step(&mut self, input: Input) -> Result<Progress, ErrorMessage>;
}

/// Which stream of which connection a step belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) connection: u64,
    pub(crate) stream: u32,
}

struct Job {
    address: Address,
    credentials: Arc<Credentials>,
    operation: Box<dyn Operation>,
    input: Input,
}

/// A step that was done.
pub(crate) struct Outcome {
    pub(crate) address: Address,
    pub(crate) operation: Box<dyn Operation>,
    pub(crate) progress: Result<Progress, ErrorMessage>,
    /// Bytes of input that the step took.
    pub(crate) taken: usize,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    outcomes: Vec<Outcome>,
    threads: usize,
    idle: usize,
}

struct Shared {
    queue: Mutex<Queue>,
    arrived: Condvar,
    finished: OwnedFd,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The threads.
pub(crate) struct Workers {
    shared: Arc<Shared>,
}

impl Workers {
    pub(crate) fn new() -> Result<Self, Errno> {
        let finished = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let shared = Shared {
            queue: Mutex::default(),
            arrived: Condvar::new(),
            finished,
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// Readable when there are outcomes.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.shared.finished.as_fd()
    }

    /// Have the next step of `operation` done with these rights.
    pub(crate) fn submit(
        &self,
        address: Address,
        credentials: Arc<Credentials>,
        operation: Box<dyn Operation>,
        input: Input,
    ) {
        let mut queue = self.shared.lock();
        queue.jobs.push_back(Job {
            address,
            credentials,
            operation,
            input,
        });
        if queue.idle >= queue.jobs.len() || queue.threads >= MAX_THREADS {
            drop(queue);
            self.shared.arrived.notify_one();
            return;
        }
        queue.threads += 1;
        drop(queue);
        let shared = Arc::clone(&self.shared);
        let builder = std::thread::Builder::new()
            .name("files".to_owned())
            .stack_size(THREAD_STACK_BYTES);
        if let Err(error) = builder.spawn(move || work(&shared)) {
            let mut queue = self.shared.lock();
            queue.threads -= 1;
            if queue.threads == 0 {
                let error = Errno::from_io_error(&error).unwrap_or(Errno::AGAIN);
                let failure = system_failure("The guest has no thread for the request", error);
                for job in std::mem::take(&mut queue.jobs) {
                    let (address, operation) = (job.address, job.operation);
                    queue.outcomes.push(Outcome {
                        address,
                        operation,
                        progress: Err(failure.clone()),
                        taken: 0,
                    });
                }
                let _ = rustix::io::write(&self.shared.finished, &1_u64.to_ne_bytes());
            }
        }
    }

    /// The steps that were done since the last call.
    pub(crate) fn outcomes(&self) -> Vec<Outcome> {
        let mut counter = [0; 8];
        let _ = rustix::io::read(&self.shared.finished, &mut counter);
        std::mem::take(&mut self.shared.lock().outcomes)
    }
}

fn work(shared: &Shared) {
    let mut rights: Option<Arc<Credentials>> = None;
    let mut queue = shared.lock();
    loop {
        if let Some(job) = queue.jobs.pop_front() {
            drop(queue);
            let outcome = run(job, &mut rights);
            queue = shared.lock();
            queue.outcomes.push(outcome);
            let _ = rustix::io::write(&shared.finished, &1_u64.to_ne_bytes());
            continue;
        }
        queue.idle += 1;
        let (woken, timeout) = shared
            .arrived
            .wait_timeout(queue, IDLE_THREAD)
            .unwrap_or_else(PoisonError::into_inner);
        queue = woken;
        queue.idle -= 1;
        if timeout.timed_out() && queue.jobs.is_empty() {
            queue.threads -= 1;
            return;
        }
    }
}

fn run(mut job: Job, rights: &mut Option<Arc<Credentials>>) -> Outcome {
    let taken = job.input.chunks.iter().map(Vec::len).sum();
    let known = rights.as_ref().is_some_and(|rights| **rights == *job.credentials);
    let changed = if known { Ok(()) } else { become_user(&job.credentials) };
    let progress = match changed {
        Ok(()) => {
            *rights = Some(job.credentials);
            job.operation.step(job.input)
        }
        Err(error) => {
            *rights = None;
            Err(system_failure("The user's rights cannot be taken on", error))
        }
    };
    Outcome {
        address: job.address,
        operation: job.operation,
        progress,
        taken,
    }
}

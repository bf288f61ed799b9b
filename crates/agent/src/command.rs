//! One command: its process, its output and its input.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use hutch_wire::{ErrorMessage, Mux, encode};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::termios::Winsize;

use crate::errors::{bad_request, system_failure, text};
use crate::identity::{Identity, join};
use crate::output::{Buffers, Output, READ_BYTES};
use crate::poller::{Interest, Poller, Token};
use crate::requests::{CommandStart, ExitDetails, Exited, TerminalSize};
use crate::stdin::Stdin;
use crate::sys_unsafe::{Program, Spawner, Stage, read_into};

const PIPE_BYTES: usize = 64 * 1024;
const LARGE_PIPE_BYTES: usize = 1024 * 1024;

/// A pipe or a terminal that the command writes to.
#[derive(Debug)]
struct OutputSource {
    descriptor: OwnedFd,
    /// A terminal's other end, kept open while the command runs, so that its terminal stays alive when nobody has it open.
    other_end: Option<OwnedFd>,
    is_terminal: bool,
    watched: bool,
    large: bool,
    /// Once the process has ended: how many bytes are still to be delivered.
    left: Option<usize>,
}

/// What reading a source came to.
enum Reading {
    Some,
    /// There is no room for more.
    Full,
    Nothing,
    End,
}

/// A command, running or finished.
#[derive(Debug)]
pub(crate) struct Command {
    pub(crate) id: String,
    pub(crate) serial: u64,
    pub(crate) pid: i32,
    pub(crate) exit: Option<ExitDetails>,
    pub(crate) output: Output,
    pub(crate) stdin: Stdin,
    /// The stream that gets the output.
    pub(crate) stream: Option<u32>,
    started: Instant,
    sources: [Option<OutputSource>; 2],
    discard: bool,
    exit_sent: bool,
}

/// What all commands share.
pub(crate) struct Surroundings<'a> {
    pub(crate) poller: &'a Poller,
    pub(crate) buffers: &'a mut Buffers,
    /// Pipes of ended commands that something still has open.
    pub(crate) drains: &'a mut Vec<OwnedFd>,
    pub(crate) window: usize,
}

/// The ends of the descriptors that a program gets, and ours.
struct Plumbing {
    theirs: [OwnedFd; 3],
    sources: [Option<OutputSource>; 2],
    stdin: Stdin,
}

impl Command {
    /// Start a program.
    pub(crate) fn start(
        request: &CommandStart,
        serial: u64,
        identity: &Identity,
        spawner: &mut Spawner,
        poller: &Poller,
    ) -> Result<Self, ErrorMessage> {
        let credentials = identity.credentials(request.user);
        let (environment, path) = identity.environment(request.user, &request.env)?;
        let Some(program) = request.argv.first().filter(|name| !name.0.is_empty()) else {
            return Err(bad_request("Invalid request: argv is empty"));
        };
        let argv: Vec<CString> = request.argv.iter().map(|argument| terminated(&argument.0)).collect();
        let directory = identity.resolve(request.cwd.as_ref().map(|cwd| cwd.0.as_slice()), b"");
        let plumbing = plumb(request, credentials.uid, credentials.gid)
            .map_err(|error| system_failure("The guest has no pipe or terminal for the command", error))?;
        let candidates = candidates(&program.0, &path);
        let started = Instant::now();
        let pid = spawner
            .start(&Program {
                candidates: &candidates,
                argv: &argv,
                environment: &environment,
                directory: &terminated(&directory),
                credentials,
                stdin: plumbing.theirs[0].as_fd(),
                stdout: plumbing.theirs[1].as_fd(),
                stderr: plumbing.theirs[2].as_fd(),
                terminal: request.pty.is_some(),
            })
            .map_err(|failure| start_failure(failure, &program.0, &directory))?;
        let mut command = Self {
            id: request.id.clone(),
            serial,
            pid,
            exit: None,
            output: Output::default(),
            stdin: plumbing.stdin,
            stream: None,
            started,
            sources: plumbing.sources,
            discard: false,
            exit_sent: false,
        };
        command.watch_sources(poller, usize::MAX);
        Ok(command)
    }

    /// Whether nothing will ever be read from it any more.
    pub(crate) fn is_finished(&self) -> bool {
        self.exit.is_some() && self.sources.iter().all(Option::is_none)
    }

    /// The most that it may still keep when it has ended.
    pub(crate) fn most_retained(&self) -> usize {
        let left = self.sources.iter().flatten().filter_map(|source| source.left);
        self.output.retained() + left.sum::<usize>()
    }

    /// Read what an output source has.
    pub(crate) fn read(&mut self, index: usize, around: &mut Surroundings<'_>) {
        loop {
            let reading = self.read_once(index, around);
            let source = self.sources[index].as_ref();
            let left = source.and_then(|source| source.left);
            match reading {
                Reading::Some if left == Some(0) => self.retire(index, around),
                // Nothing announces that an ended command's terminal is empty, so it is read until it says so.
                Reading::Some if left.is_some() && source.is_some_and(|source| source.is_terminal) => continue,
                Reading::Nothing if left.is_some() => self.retire(index, around),
                Reading::Some | Reading::Full | Reading::Nothing => {}
                Reading::End => self.close(index, around.poller),
            }
            break;
        }
        self.watch_sources(around.poller, around.window);
    }

    /// There is room again: what an ended command still holds may be less than was announced, and no event would come.
    fn read_rest(&mut self, around: &mut Surroundings<'_>) {
        if self.exit.is_some() {
            for index in 0..self.sources.len() {
                self.read(index, around);
            }
        }
        self.watch_sources(around.poller, around.window);
    }

    fn read_once(&mut self, index: usize, around: &mut Surroundings<'_>) -> Reading {
        let Some(source) = &mut self.sources[index] else {
            return Reading::End;
        };
        let room = if self.discard {
            usize::MAX
        } else {
            self.output.room(around.window)
        };
        let wanted = if source.large { READ_BYTES } else { PIPE_BYTES };
        let limit = wanted.min(room).min(source.left.unwrap_or(usize::MAX));
        if limit == 0 {
            return Reading::Full;
        }
        match read_into(source.descriptor.as_fd(), around.buffers.scratch(), limit) {
            Ok(0) => Reading::End,
            Ok(count) => {
                source.left = source.left.map(|left| left - count);
                if count == PIPE_BYTES && !source.large && !source.is_terminal {
                    // It writes much: fewer and larger reads. Where that is not permitted, it stays as it is.
                    source.large = true;
                    let _ = rustix::pipe::fcntl_setpipe_size(&source.descriptor, LARGE_PIPE_BYTES);
                }
                if self.discard {
                    self.output.skip(count);
                } else {
                    self.output.keep(1 + index as u8, around.buffers);
                }
                Reading::Some
            }
            Err(Errno::AGAIN | Errno::INTR) => Reading::Nothing,
            Err(_) => Reading::End,
        }
    }

    /// Watch the sources for which there is room, and only those.
    pub(crate) fn watch_sources(&mut self, poller: &Poller, window: usize) {
        let enough = self.discard || self.output.room(window) > 0;
        for (index, source) in self.sources.iter_mut().enumerate() {
            let Some(source) = source else { continue };
            if enough && !source.watched {
                let token = Token::Output(self.serial, index);
                source.watched = poller.add(&source.descriptor, token, Interest::READ).is_ok();
            } else if !enough && source.watched {
                poller.remove(&source.descriptor);
                source.watched = false;
            }
        }
    }

    /// The process has ended.
    pub(crate) fn ended(&mut self, exit_code: i32, around: &mut Surroundings<'_>) {
        let duration_us = self.started.elapsed().as_micros() as u64;
        self.exit = Some(ExitDetails { exit_code, duration_us });
        for index in 0..self.sources.len() {
            if let Some(source) = &mut self.sources[index] {
                // A terminal says nothing reliable about what it holds; it is read until it is empty.
                let held = rustix::io::ioctl_fionread(&source.descriptor).unwrap_or(0) as usize;
                source.left = Some(if source.is_terminal { LARGE_PIPE_BYTES } else { held });
                source.other_end = None;
                if source.left == Some(0) {
                    self.retire(index, around);
                } else {
                    self.read(index, around);
                }
            }
        }
    }

    /// Everything that the source held when the process ended was read. Whatever else comes is dropped.
    fn retire(&mut self, index: usize, around: &mut Surroundings<'_>) {
        if self.sources[index].as_ref().is_none_or(|source| source.is_terminal) {
            self.close(index, around.poller);
            return;
        }
        let Some(source) = self.sources[index].take() else {
            return;
        };
        let scratch = around.buffers.scratch();
        if read_into(source.descriptor.as_fd(), scratch, READ_BYTES) != Ok(0) {
            if source.watched {
                around.poller.remove(&source.descriptor);
            }
            around.drains.push(source.descriptor);
        }
    }

    /// It is forgotten. What still writes to its pipes must not block.
    pub(crate) fn abandon(&mut self, around: &mut Surroundings<'_>) {
        for index in 0..self.sources.len() {
            self.retire(index, around);
        }
    }

    /// Nothing more is read from this source. A terminal is shared with standard input, so closing alone would leave
    /// it watched.
    fn close(&mut self, index: usize, poller: &Poller) {
        if let Some(source) = self.sources[index].take()
            && source.watched
        {
            poller.remove(&source.descriptor);
        }
    }

    /// Send what credit and the transport's queue allow.
    pub(crate) fn send(&mut self, mux: &mut Mux, limit: usize) {
        let Some(stream) = self.stream else { return };
        if self.exit_sent || !self.output.send(mux, stream, limit, self.is_finished()) || !self.is_finished() {
            return;
        }
        if let Some(exit) = self.exit
            && self.output.send_event(mux, stream, &encode(&Exited { exit }))
        {
            mux.end(stream);
            self.exit_sent = true;
        }
    }

    /// Whether `send` would have something to do if it could.
    pub(crate) fn is_pending(&self) -> bool {
        self.stream.is_some() && !self.exit_sent && (self.output.is_pending() || self.is_finished())
    }

    /// Let `stream` have the output from `offset`. The offset at which it starts; nothing when that was never written.
    pub(crate) fn attach(&mut self, stream: u32, offset: Option<u64>, around: &mut Surroundings<'_>) -> Option<u64> {
        let start = self.output.attach(offset, around.buffers)?;
        self.stream = Some(stream);
        self.exit_sent = false;
        self.discard = false;
        self.read_rest(around);
        Some(start)
    }

    /// The host has dealt with `bytes`.
    pub(crate) fn acknowledge(&mut self, bytes: u32, around: &mut Surroundings<'_>) {
        self.output.acknowledge(bytes, around.buffers);
        self.read_rest(around);
    }

    /// Drop output, or stop doing so.
    pub(crate) fn set_discard(&mut self, discard: bool, around: &mut Surroundings<'_>) {
        self.discard = discard;
        if discard {
            self.output.drop_unsent(around.buffers);
        }
        self.read_rest(around);
    }

    /// Tell the terminal its size, if there is one.
    pub(crate) fn resize(&self, cols: u16, rows: u16) {
        if let Some(source) = self.sources[0].as_ref().filter(|source| source.is_terminal) {
            let _ = rustix::termios::tcsetwinsize(&source.descriptor, window_size(TerminalSize { cols, rows }));
        }
    }
}

fn window_size(size: TerminalSize) -> Winsize {
    Winsize {
        ws_row: size.rows,
        ws_col: size.cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

/// The caller has refused NUL bytes already.
fn terminated(bytes: &[u8]) -> CString {
    CString::new(bytes).unwrap_or_default()
}

/// Where a program of this name may be.
fn candidates(name: &[u8], path: &[u8]) -> Vec<CString> {
    if name.contains(&b'/') {
        return vec![terminated(name)];
    }
    path.split(|byte| *byte == b':')
        .map(|directory| terminated(&join(if directory.is_empty() { b"." } else { directory }, name)))
        .collect()
}

fn start_failure((stage, error): (Stage, Errno), program: &[u8], directory: &[u8]) -> ErrorMessage {
    let program = String::from_utf8_lossy(program);
    match stage {
        Stage::Directory => {
            let directory = String::from_utf8_lossy(directory);
            bad_request(format!(
                "The working directory {directory} cannot be used: {}",
                text(error)
            ))
        }
        Stage::Execute if error == Errno::NOENT || (error == Errno::ACCESS && !program.contains('/')) => {
            let message = format!("[invalid_argument] executable file not found in $PATH: {program}");
            ErrorMessage::new(400, "executable_not_found", message)
        }
        Stage::Execute if error == Errno::NOMEM => system_failure("The program cannot be started", error),
        Stage::Execute => bad_request(format!("{program} cannot be executed: {}", text(error))),
        Stage::Fork | Stage::Prepare => system_failure("The program cannot be started", error),
    }
}

fn plumb(request: &CommandStart, uid: u32, gid: u32) -> Result<Plumbing, Errno> {
    match request.pty {
        Some(size) => plumb_terminal(size, uid),
        None => plumb_pipes(request.stdin, uid, gid),
    }
}

fn plumb_pipes(stdin: bool, uid: u32, gid: u32) -> Result<Plumbing, Errno> {
    let (stdin, their_stdin) = if stdin {
        let (theirs, ours) = pipe(uid, gid)?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        (Some(ours), theirs)
    } else {
        (
            None,
            rustix::fs::open(c"/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?,
        )
    };
    let (stdout, their_stdout) = pipe(uid, gid)?;
    let (stderr, their_stderr) = pipe(uid, gid)?;
    Ok(Plumbing {
        theirs: [their_stdin, their_stdout, their_stderr],
        sources: [Some(source(stdout, None)?), Some(source(stderr, None)?)],
        stdin: Stdin::new(stdin, false),
    })
}

/// A pipe that its user may open again through `/dev/stdout` and the like.
fn pipe(uid: u32, gid: u32) -> Result<(OwnedFd, OwnedFd), Errno> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    if uid != 0 {
        let (owner, group) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
        let _ = rustix::fs::fchown(&write, Some(owner), Some(group));
    }
    Ok((read, write))
}

/// Never block on a source: a program of the guest may take from its pipe what it was announced to hold.
fn source(descriptor: OwnedFd, other_end: Option<OwnedFd>) -> Result<OutputSource, Errno> {
    rustix::io::ioctl_fionbio(&descriptor, true)?;
    let is_terminal = other_end.is_some();
    Ok(OutputSource {
        descriptor,
        other_end,
        is_terminal,
        watched: false,
        large: false,
        left: None,
    })
}

fn plumb_terminal(size: TerminalSize, uid: u32) -> Result<Plumbing, Errno> {
    use rustix::pty::{OpenptFlags, openpt, ptsname, unlockpt};
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    unlockpt(&ours)?;
    let name = ptsname(&ours, Vec::new())?;
    let theirs = rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?;
    let _ = rustix::fs::fchown(&theirs, Some(rustix::fs::Uid::from_raw(uid)), None);
    let _ = rustix::termios::tcsetwinsize(&ours, window_size(size));
    let stdin = Stdin::new(Some(rustix::io::fcntl_dupfd_cloexec(&ours, 3)?), true);
    let copies = [
        rustix::io::fcntl_dupfd_cloexec(&theirs, 3)?,
        rustix::io::fcntl_dupfd_cloexec(&theirs, 3)?,
    ];
    let kept = rustix::io::fcntl_dupfd_cloexec(&theirs, 3)?;
    let [stdout, stderr] = copies;
    Ok(Plumbing {
        theirs: [theirs, stdout, stderr],
        sources: [Some(source(ours, Some(kept))?), None],
        stdin,
    })
}

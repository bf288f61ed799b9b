//! The system calls that safe libraries do not offer. This is the one file with `unsafe` code, because:
//!
//! * starting a program with `CLONE_VM | CLONE_VFORK` runs a few calls of the child in our memory, which is what makes
//!   a start cost hardly more than the `execve` itself, and lets the child report its error without a pipe;
//! * credentials of one thread can only be changed by raw system calls (the C library changes all threads);
//! * addresses of vsock have none either;
//! * `signalfd`, signal masks, `RNDADDENTROPY` and `kill` of any signal number have no safe wrapper here.

#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int, c_long, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

use rustix::io::Errno;

pub(crate) const SIGTERM: i32 = libc::SIGTERM;
pub(crate) const SIGKILL: i32 = libc::SIGKILL;
pub(crate) const SIGCONT: i32 = libc::SIGCONT;

/// Whose rights a program or a thread has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Credentials {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
}

impl Credentials {
    pub(crate) fn root() -> Self {
        Self {
            uid: 0,
            gid: 0,
            groups: vec![0],
        }
    }
}

/// A program to start.
pub(crate) struct Program<'a> {
    /// Paths to try in this order.
    pub(crate) candidates: &'a [CString],
    pub(crate) argv: &'a [CString],
    pub(crate) environment: &'a [CString],
    pub(crate) directory: &'a CStr,
    pub(crate) credentials: &'a Credentials,
    pub(crate) stdin: BorrowedFd<'a>,
    pub(crate) stdout: BorrowedFd<'a>,
    pub(crate) stderr: BorrowedFd<'a>,
    /// Make standard input the controlling terminal.
    pub(crate) terminal: bool,
}

/// What a program's start was doing when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Fork,
    Prepare,
    Directory,
    Execute,
}

/// What the child needs, prepared so that it does not allocate.
struct ChildTask {
    candidates: Vec<*const c_char>,
    argv: Vec<*const c_char>,
    environment: Vec<*const c_char>,
    directory: *const c_char,
    uid: u32,
    gid: u32,
    groups: *const u32,
    group_count: usize,
    descriptors: [c_int; 3],
    terminal: bool,
    failure: Option<(Stage, c_int)>,
}

const CHILD_STACK_BYTES: usize = 64 * 1024;

/// Starts programs; owns the stack on which children run until they execute.
#[derive(Debug)]
pub(crate) struct Spawner {
    stack: Vec<u128>,
}

impl Spawner {
    pub(crate) fn new() -> Self {
        Self {
            stack: vec![0; CHILD_STACK_BYTES / size_of::<u128>()],
        }
    }

    /// Start `program` in a session of its own; its process id once it executes.
    pub(crate) fn start(&mut self, program: &Program<'_>) -> Result<i32, (Stage, Errno)> {
        fn pointers(strings: &[CString]) -> Vec<*const c_char> {
            strings
                .iter()
                .map(|string| string.as_ptr())
                .chain([ptr::null()])
                .collect()
        }
        let mut task = ChildTask {
            candidates: pointers(program.candidates),
            argv: pointers(program.argv),
            environment: pointers(program.environment),
            directory: program.directory.as_ptr(),
            uid: program.credentials.uid,
            gid: program.credentials.gid,
            groups: program.credentials.groups.as_ptr(),
            group_count: program.credentials.groups.len(),
            descriptors: [
                program.stdin.as_raw_fd(),
                program.stdout.as_raw_fd(),
                program.stderr.as_raw_fd(),
            ],
            terminal: program.terminal,
            failure: None,
        };
        let top = self.stack.as_mut_ptr_range().end.cast::<c_void>();
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        // SAFETY: CLONE_VFORK suspends this thread until the child has executed or ended, so `task` and the stack
        // outlive its use of them and are not shared at the same time. `child` neither allocates, locks nor unwinds.
        let pid = unsafe { libc::clone(child, top, flags, (&raw mut task).cast::<c_void>()) };
        if pid < 0 {
            return Err((Stage::Fork, last_error()));
        }
        // SAFETY: `task` is alive; the child wrote it through a pointer, which the compiler must not assume away.
        match unsafe { ptr::read_volatile(&raw const task.failure) } {
            None => Ok(pid),
            Some((stage, error)) => {
                // SAFETY: the child has ended; no other code of this thread could have reaped it.
                unsafe { libc::waitpid(pid, ptr::null_mut(), 0) };
                Err((stage, Errno::from_raw_os_error(error)))
            }
        }
    }
}

/// Runs in the child, in the parent's memory, with all signals blocked.
extern "C" fn child(argument: *mut c_void) -> c_int {
    // SAFETY: `argument` is the `ChildTask` of `Spawner::start`, whose thread is suspended meanwhile.
    unsafe {
        let task = &mut *argument.cast::<ChildTask>();
        let failure = prepare_and_execute(task);
        ptr::write_volatile(&raw mut task.failure, Some(failure));
        libc::_exit(127)
    }
}

/// Returns only when something failed.
unsafe fn prepare_and_execute(task: &ChildTask) -> (Stage, c_int) {
    // SAFETY: only async-signal-safe calls on memory that `ChildTask` keeps alive.
    unsafe {
        let failed = |stage: Stage| (stage, *libc::__errno_location());
        if libc::syscall(libc::SYS_setsid) < 0 {
            return failed(Stage::Prepare);
        }
        for (target, source) in task.descriptors.iter().enumerate() {
            if libc::dup2(*source, target as c_int) < 0 {
                return failed(Stage::Prepare);
            }
        }
        if task.terminal && libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
            return failed(Stage::Prepare);
        }
        let score = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if score >= 0 {
            libc::write(score, c"500".as_ptr().cast(), 3);
            libc::close(score);
        }
        if libc::syscall(libc::SYS_setgroups, task.group_count, task.groups) < 0
            || libc::syscall(libc::SYS_setresgid, task.gid, task.gid, task.gid) < 0
            || libc::syscall(libc::SYS_setresuid, task.uid, task.uid, task.uid) < 0
        {
            return failed(Stage::Prepare);
        }
        if libc::chdir(task.directory) < 0 {
            return failed(Stage::Directory);
        }
        let no_signals: u64 = 0;
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const no_signals,
            ptr::null::<u64>(),
            8,
        );
        let mut denied = false;
        for candidate in &task.candidates {
            if candidate.is_null() {
                break;
            }
            libc::execve(*candidate, task.argv.as_ptr(), task.environment.as_ptr());
            match *libc::__errno_location() {
                libc::ENOENT | libc::ENOTDIR => {}
                libc::EACCES => denied = true,
                error => return (Stage::Execute, error),
            }
        }
        (Stage::Execute, if denied { libc::EACCES } else { libc::ENOENT })
    }
}

fn last_error() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}

fn check(outcome: c_long) -> Result<(), Errno> {
    if outcome < 0 { Err(last_error()) } else { Ok(()) }
}

/// Give this thread, and only this one, the effective rights of `wanted`. It must have started as root, and its real
/// and saved ids stay root's, so that no guest user may signal or trace it and it can change back.
pub(crate) fn become_user(wanted: &Credentials) -> Result<(), Errno> {
    const KEEP: u32 = u32::MAX;
    // SAFETY: plain system calls on values and a live slice; raw, since the C library would change all threads.
    unsafe {
        check(libc::syscall(libc::SYS_setresuid, KEEP, 0, KEEP))?;
        check(libc::syscall(
            libc::SYS_setgroups,
            wanted.groups.len(),
            wanted.groups.as_ptr(),
        ))?;
        check(libc::syscall(libc::SYS_setresgid, KEEP, wanted.gid, KEEP))?;
        check(libc::syscall(libc::SYS_setresuid, KEEP, wanted.uid, KEEP))
    }
}

/// Block every signal in this thread and those it will start, give all of them their default action (so that programs
/// start with it) and return a descriptor that is readable when a child has ended.
pub(crate) fn take_over_signals() -> io::Result<OwnedFd> {
    // SAFETY: plain calls on local values. With every signal blocked, no default action can hit this process.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, ptr::null_mut());
        // Raw, since the C library does not let anybody touch the two signals that it keeps for itself; a program
        // would inherit it if they were ignored. All zero is the default action without flags.
        let default_action = [0_u64; 4];
        for signal in (1..=64).filter(|signal| !matches!(*signal, libc::SIGSEGV | libc::SIGBUS)) {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default_action.as_ptr(),
                ptr::null::<u64>(),
                8,
            );
        }
        let mut children: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut children);
        libc::sigaddset(&raw mut children, libc::SIGCHLD);
        let descriptor = libc::signalfd(-1, &raw const children, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(descriptor))
    }
}

/// `kill(2)`: negative targets are process groups.
pub(crate) fn kill(target: i32, signal: i32) -> Result<(), Errno> {
    // SAFETY: a plain system call.
    check(c_long::from(unsafe { libc::kill(target, signal) }))
}

/// Mix `data` into the kernel's random numbers, counting all of it as entropy, and make the kernel use it at once.
pub(crate) fn add_entropy(random: BorrowedFd<'_>, data: &[u8]) {
    const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
    const RNDRESEEDCRNG: libc::c_ulong = 0x5207;
    let mut request = Vec::with_capacity(8 + data.len());
    request.extend_from_slice(&(data.len() as u32 * 8).to_ne_bytes());
    request.extend_from_slice(&(data.len() as u32).to_ne_bytes());
    request.extend_from_slice(data);
    // SAFETY: `request` is a `rand_pool_info` of the length that it says.
    unsafe {
        libc::ioctl(random.as_raw_fd(), RNDADDENTROPY, request.as_ptr());
        libc::ioctl(random.as_raw_fd(), RNDRESEEDCRNG, 0);
    }
}

/// Close every descriptor but the standard ones: whatever started us may have left some open.
pub(crate) fn close_inherited_descriptors() {
    // SAFETY: called first of all, when nothing in this process owns a descriptor yet.
    unsafe {
        libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, 0_u32);
    }
}

/// Keep the allocator from reserving an arena for each thread, and have it return large blocks soon.
pub(crate) fn use_little_memory() {
    // SAFETY: plain calls, made before any other thread exists.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Return what the allocator holds but nobody uses.
pub(crate) fn trim_memory() {
    // SAFETY: a plain call.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Append at most `limit` bytes of `descriptor` to `buffer`, within the capacity that it has; how many were read.
pub(crate) fn read_into(descriptor: BorrowedFd<'_>, buffer: &mut Vec<u8>, limit: usize) -> Result<usize, Errno> {
    let space = buffer.spare_capacity_mut();
    let limit = limit.min(space.len());
    // SAFETY: the kernel writes at most `limit` bytes to memory that `buffer` owns, and says how many it wrote.
    unsafe {
        let count = libc::read(descriptor.as_raw_fd(), space.as_mut_ptr().cast(), limit);
        check(count as c_long)?;
        buffer.set_len(buffer.len() + count as usize);
        Ok(count as usize)
    }
}

/// A connection to a vsock port of the machine `context`, made within the call and not blocking afterwards.
pub(crate) fn connect_vsock(context: u32, port: u32) -> Result<OwnedFd, Errno> {
    // SAFETY: plain system calls; the address is a whole `sockaddr_vm`, and the descriptor is ours alone.
    unsafe {
        let descriptor = libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
        check(c_long::from(descriptor))?;
        let socket = OwnedFd::from_raw_fd(descriptor);
        let mut address: libc::sockaddr_vm = std::mem::zeroed();
        address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
        address.svm_cid = context;
        address.svm_port = port;
        let length = size_of::<libc::sockaddr_vm>() as libc::socklen_t;
        check(c_long::from(libc::connect(
            descriptor,
            (&raw const address).cast(),
            length,
        )))?;
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok(socket)
    }
}

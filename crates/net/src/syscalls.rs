//! The system calls that the gateway keeps.
//!
//! It is parsers of hostile bytes around sockets that are there or are made, and needs little else. Whatever is not on the list
//! is answered as by a kernel that does not have it, so that libraries fall back as they do on old ones. What no fall-back of
//! any library is, and only an attacker wants of this process, ends it: another program, the memory of other processes, the
//! machine's mounts, namespaces and modules.

use std::collections::BTreeMap;
use std::io;

use hutch_policy::Defence;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter_all_threads,
};

/// With any arguments.
const KEPT: &[i64] = &[
    // Sockets.
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    // Descriptors.
    libc::SYS_close,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    // Waiting.
    libc::SYS_clock_gettime,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_futex,
    libc::SYS_restart_syscall,
    libc::SYS_sched_yield,
    // Memory. The allocator asks for the number of processors.
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_sched_getaffinity,
    // Random numbers.
    libc::SYS_getrandom,
    // The end, also by a signal: handlers of Rust's own take a stack that is full for what it is.
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
];

/// What newer architectures have under another name only.
#[cfg(target_arch = "x86_64")]
const KEPT_OF_OLD: &[i64] = &[libc::SYS_epoll_wait];
#[cfg(not(target_arch = "x86_64"))]
const KEPT_OF_OLD: &[i64] = &[];

/// The end of the process.
const FATAL: &[i64] = &[
    libc::SYS_bpf,
    libc::SYS_delete_module,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_finit_module,
    libc::SYS_init_module,
    libc::SYS_kexec_load,
    libc::SYS_mount,
    libc::SYS_move_mount,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_pidfd_getfd,
    libc::SYS_pivot_root,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_setns,
    libc::SYS_umount2,
    libc::SYS_unshare,
];

const SOCKET_KIND: u64 = 0xf;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Keep what is listed, in every thread of the process. Later threads can't be started.
pub fn restrict() -> io::Result<()> {
    if !Defence::SystemCalls.holds() {
        return Ok(());
    }
    let programs = [fatal(), kept()].map(|program| program.map_err(io::Error::other));
    for program in programs {
        apply_filter_all_threads(&program?).map_err(io::Error::other)?;
    }
    Ok(())
}

fn fatal() -> Result<BpfProgram, BackendError> {
    let rules = FATAL.iter().map(|&number| (number, Vec::new())).collect();
    filter(rules, SeccompAction::Allow, SeccompAction::KillProcess)
}

fn kept() -> Result<BpfProgram, BackendError> {
    let mut rules: Rules = KEPT
        .iter()
        .chain(KEPT_OF_OLD)
        .map(|&number| (number, Vec::new()))
        .collect();
    rules.extend(conditional()?);
    filter(rules, SeccompAction::Errno(libc::ENOSYS as u32), SeccompAction::Allow)
}

/// What is kept for some arguments only.
fn conditional() -> Result<Rules, BackendError> {
    let no_code = || rule(&[(2, SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64), 0)]);
    let socket = |family: i32, kind: i32| {
        rule(&[
            (0, SeccompCmpOp::Eq, family as u64),
            (1, SeccompCmpOp::MaskedEq(SOCKET_KIND), kind as u64),
        ])
    };
    let option =
        |level: i32, name: i32| rule(&[(1, SeccompCmpOp::Eq, level as u64), (2, SeccompCmpOp::Eq, name as u64)]);
    let command = |name: u64| rule(&[(1, SeccompCmpOp::Eq, name)]);
    Ok(BTreeMap::from([
        (libc::SYS_mmap, vec![no_code()?]),
        (libc::SYS_mprotect, vec![no_code()?]),
        (
            libc::SYS_socket,
            vec![
                socket(libc::AF_INET, libc::SOCK_STREAM)?,
                socket(libc::AF_INET, libc::SOCK_DGRAM)?,
                socket(libc::AF_INET6, libc::SOCK_STREAM)?,
                socket(libc::AF_INET6, libc::SOCK_DGRAM)?,
            ],
        ),
        (
            libc::SYS_setsockopt,
            vec![
                option(libc::IPPROTO_TCP, libc::TCP_NODELAY)?,
                option(libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT)?,
                option(libc::IPPROTO_TCP, libc::TCP_KEEPIDLE)?,
                option(libc::IPPROTO_TCP, libc::TCP_KEEPINTVL)?,
                option(libc::SOL_SOCKET, libc::SO_KEEPALIVE)?,
                option(libc::SOL_SOCKET, libc::SO_LINGER)?,
            ],
        ),
        (
            libc::SYS_fcntl,
            vec![
                command(libc::F_DUPFD_CLOEXEC as u64)?,
                command(libc::F_GETFD as u64)?,
                command(libc::F_GETFL as u64)?,
            ],
        ),
        (libc::SYS_ioctl, vec![command(libc::FIONBIO)?]),
        // To itself: how `abort` ends.
        (
            libc::SYS_tgkill,
            vec![rule(&[(0, SeccompCmpOp::Eq, u64::from(std::process::id()))])?],
        ),
    ]))
}

/// All of these: the argument at an index, how it is compared, and with what.
fn rule(conditions: &[(u8, SeccompCmpOp, u64)]) -> Result<SeccompRule, BackendError> {
    let conditions = conditions
        .iter()
        .map(|(index, compared, value)| {
            SeccompCondition::new(*index, SeccompCmpArgLen::Dword, compared.clone(), *value)
        })
        .collect::<Result<_, _>>()?;
    SeccompRule::new(conditions)
}

fn filter(rules: Rules, otherwise: SeccompAction, listed: SeccompAction) -> Result<BpfProgram, BackendError> {
    let architecture = TargetArch::try_from(std::env::consts::ARCH)?;
    SeccompFilter::new(rules, otherwise, listed, architecture)?.try_into()
}

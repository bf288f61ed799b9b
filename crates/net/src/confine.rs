//! What the process gives up before it reads a byte from anybody.
//!
//! It is started as root with three sockets and needs nothing else of the machine: no file, no other user's processes, no
//! memory image on disk, neither as a core dump nor in swap. It keeps `CAP_NET_RAW` until it has the sockets for datagrams that
//! seem to come from the address that a guest asked, and for ICMP errors; and `CAP_IPC_LOCK`, so that no limit holds for memory
//! that must not be swapped.

use std::io;
use std::path::Path;

use hutch_policy::Defence;
use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{DumpableBehavior, Resource, Rlimit, chdir, chroot, getrlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, Gid, Uid, capabilities, set_capabilities, set_keep_capabilities, set_no_new_privs,
    set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

const MAX_FILES: u64 = 1 << 20;

/// Give up everything but what the sockets of [`crate::datagram::Speaker`] need. `root` is an empty directory. Before any
/// thread is started.
pub fn confine(root: &Path, user: u32) -> io::Result<()> {
    if !Defence::Confined.holds() {
        return Ok(());
    }
    become_nobody(root, user)?;
    keep(CapabilitySet::NET_RAW | CapabilitySet::IPC_LOCK)?;
    if Defence::NoSwap.holds()
        && let Err(error) = stay_in_memory()
    {
        eprintln!("hutch-net: memory may be written to swap: {error}");
    }
    finish()
}

/// Give up everything: what the ingress does, which needs sockets and nothing else. Before any thread is started.
pub fn confine_ingress(root: &Path, user: u32) -> io::Result<()> {
    become_nobody(root, user)?;
    keep(CapabilitySet::empty())?;
    finish()
}

fn become_nobody(root: &Path, user: u32) -> io::Result<()> {
    let most = |files| Rlimit {
        current: files,
        maximum: files,
    };
    // Two for each connection. Where root may not have so many, as many as it may.
    setrlimit(Resource::Nofile, most(Some(MAX_FILES)))
        .or_else(|_| setrlimit(Resource::Nofile, most(getrlimit(Resource::Nofile).maximum)))?;
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none)?;
    chroot(root)?;
    chdir("/")?;
    let (user, group) = (Uid::from_raw(user), Gid::from_raw(user));
    set_keep_capabilities(true)?;
    set_thread_groups(&[])?;
    set_thread_res_gid(group, group, group)?;
    Ok(set_thread_res_uid(user, user, user)?)
}

fn finish() -> io::Result<()> {
    set_no_new_privs(true)?;
    // Last: a change of user makes a process dumpable or not by itself.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}

/// Give up the capability for those sockets. Before any thread is started.
pub fn renounce() -> io::Result<()> {
    keep(CapabilitySet::IPC_LOCK)
}

/// Keep those of these capabilities that there are.
fn keep(wanted: CapabilitySet) -> io::Result<()> {
    let kept = capabilities(None)?.permitted & wanted;
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    Ok(set_capabilities(None, sets)?)
}

/// Keep pages out of swap, those that come later as well, from when they are used.
fn stay_in_memory() -> io::Result<()> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    // So that this fails where a limit holds for us: under one, memory that can't be locked could not be allocated.
    setrlimit(Resource::Memlock, none)?;
    Ok(mlockall(
        MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT,
    )?)
}

//! What the process gives up before it reads a byte from anybody.
//!
//! It is started as root with three sockets and needs nothing else of the machine: no file, no other user's processes, no
//! memory image on disk. It keeps one capability, `CAP_NET_RAW`, for datagrams that seem to come from the address that a guest
//! asked, and for ICMP errors.

use std::io;
use std::path::Path;

use hutch_policy::Defence;
use rustix::process::{DumpableBehavior, Resource, Rlimit, chdir, chroot, getrlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, Gid, Uid, set_capabilities, set_keep_capabilities, set_no_new_privs,
    set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

const MAX_FILES: u64 = 1 << 20;

/// Give up everything but what redirection needs. `root` is an empty directory. Before any thread is started.
pub fn confine(root: &Path, user: u32) -> io::Result<()> {
    if !Defence::Confined.holds() {
        return Ok(());
    }
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
    set_thread_res_uid(user, user, user)?;
    let kept = CapabilitySet::NET_RAW;
    set_capabilities(
        None,
        CapabilitySets {
            effective: kept,
            permitted: kept,
            inheritable: CapabilitySet::empty(),
        },
    )?;
    set_no_new_privs(true)?;
    // Last: a change of user makes a process dumpable or not by itself.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}

//! Has the programs of a virtual machine stand still while its memory is saved.
//!
//! All that goes on from that memory has the same random numbers, clock and address until the host has told it its own. Programs
//! that stand still until then draw and see none of it. The kernel does that for a cgroup: its processes end what they ask of
//! the kernel and come back from that when it is thawed.
//!
//! Programs begin in the root's cgroup, like this process. They are moved only when a memory is saved for the first time, so
//! that no others pay for it; what they start afterwards is in their cgroup.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::fs::{Dir, FileType, Mode, OFlags, mkdirat, openat};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

/// Where those are that began in the root's.
const PROGRAMS: &str = "hutch";
const FREEZE: &str = "cgroup.freeze";
const MEMBERS: &str = "cgroup.procs";
const EVENTS: &str = "cgroup.events";
/// Programs that start others meanwhile are looked for again so often.
const PASSES: usize = 20;
/// How long a program may take to come back from the kernel. One that takes longer does nothing of its own after that either.
const STILL: Duration = Duration::from_millis(20);
const STILL_PAUSE: Duration = Duration::from_millis(1);
/// The inode of the first namespace of processes, in every kernel since 3.8.
const FIRST_NAMESPACE: &str = "pid:[4026531836]";

/// The cgroups of this kernel, and which of them stand still because of us.
#[derive(Debug)]
pub(crate) struct Freezer {
    root: OwnedFd,
    frozen: Vec<String>,
}

impl Freezer {
    /// Raises an error where the kernel has no cgroups of version 2, or is not this machine's own.
    pub(crate) fn new() -> io::Result<Self> {
        if fs::read_link("/proc/self/ns/pid")?.as_os_str() != FIRST_NAMESPACE {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let context = fsopen("cgroup2", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_create(&context)?;
        let attributes =
            MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        // Mounted nowhere: a guest's root may mount it where it likes.
        let root = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
        match mkdirat(&root, PROGRAMS, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(Self {
            root,
            frozen: Vec::new(),
        })
    }

    /// Have all programs be in a cgroup that can be frozen. They run on.
    pub(crate) fn gather(&self) -> io::Result<()> {
        let mut known = HashSet::from([1]);
        for _ in 0..PASSES {
            let mut moved = false;
            for process in read(&self.root, MEMBERS)?.lines().filter_map(|line| line.parse().ok()) {
                if known.contains(&process) {
                    continue;
                }
                if is_of_kernel(process) {
                    known.insert(process);
                    continue;
                }
                // One that has ended meanwhile is nowhere.
                moved |= write(
                    &self.root,
                    &format!("{PROGRAMS}/{MEMBERS}"),
                    process.to_string().as_bytes(),
                )
                .is_ok();
            }
            if !moved {
                break;
            }
        }
        Ok(())
    }

    /// Have all that is gathered, and what a guest's root has put into cgroups of its own, stand still.
    pub(crate) fn freeze(&mut self) -> io::Result<()> {
        for name in self.cgroups()? {
            let file = format!("{name}/{FREEZE}");
            // What stands still already does so for somebody else.
            if read(&self.root, &file).is_ok_and(|text| text.trim_end() == "0")
                && write(&self.root, &file, b"1").is_ok()
            {
                self.frozen.push(name);
            }
        }
        let begin = Instant::now();
        while begin.elapsed() < STILL && !self.frozen.iter().all(|name| self.stands_still(name)) {
            std::thread::sleep(STILL_PAUSE);
        }
        Ok(())
    }

    /// Have everything go on that `freeze` stopped.
    pub(crate) fn thaw(&mut self) {
        for name in self.frozen.drain(..) {
            let _ = write(&self.root, &format!("{name}/{FREEZE}"), b"0");
        }
    }

    fn stands_still(&self, name: &str) -> bool {
        // A cgroup that is gone has nobody who runs.
        read(&self.root, &format!("{name}/{EVENTS}")).map_or(true, |text| text.lines().any(|line| line == "frozen 1"))
    }

    /// The cgroups right below the root.
    fn cgroups(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        for entry in Dir::new(openat(&self.root, ".", flags, Mode::empty())?)? {
            let entry = entry?;
            if entry.file_type() == FileType::Directory
                && let Ok(name) = entry.file_name().to_str()
                && !matches!(name, "." | "..")
            {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }
}

fn read(root: &OwnedFd, path: &str) -> io::Result<String> {
    io::read_to_string(fs::File::from(openat(
        root,
        path,
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?))
}

fn write(root: &OwnedFd, path: &str, data: &[u8]) -> io::Result<()> {
    let file = openat(root, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::retry_on_intr(|| rustix::io::write(&file, data))?;
    Ok(())
}

/// Whether a process is the kernel's, which runs no file, or has ended.
fn is_of_kernel(process: u32) -> bool {
    fs::read_link(format!("/proc/{process}/exe")).is_err()
}

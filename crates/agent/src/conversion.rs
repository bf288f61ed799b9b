//! The files of a sandbox on their way out of a virtual machine's disk and into one. No host mounts a file system that a guest
//! has written, so it starts a machine for this alone, whose agent stays in the initramfs and is told to run
//!
//! * `--send-disk`: mount the disk, write what a sandbox wrote to standard output (`sending`);
//! * `--receive-disk`: the same backwards, from standard input (`receiving`).
//!
//! What is sent is a *layer*: the upper directory of an overlay, whiteouts and opaque directories included, of attributes no more
//! than `user.`. `stream` has its form. `--send-tree` and `--receive-tree` do the same with a directory.

mod receiving;
mod sending;
mod stream;

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags};

use crate::vm;

const DISK: &str = "/disk";
/// The directory that `vm` takes as the overlay's upper one.
const UPPER: &str = "/disk/u";
const OPAQUE: &str = "trusted.overlay.opaque";
const BUFFER_BYTES: usize = 256 * 1024;

/// Why it was not done; a sentence for the host.
type Failure = String;

/// Do what the arguments ask for; `None` when they ask for nothing of this.
pub(crate) fn run(arguments: &[OsString]) -> Option<ExitCode> {
    let done = match arguments {
        [option] if option == "--send-disk" => on_disk(MountFlags::RDONLY, || send(OsStr::new(UPPER))),
        [option] if option == "--receive-disk" => on_disk(MountFlags::empty(), || receive(OsStr::new(UPPER))),
        [option, directory] if option == "--send-tree" => send(directory),
        [option, directory] if option == "--receive-tree" => receive(directory),
        _ => return None,
    };
    Some(match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("hutch-agent: {failure}");
            ExitCode::FAILURE
        }
    })
}

fn on_disk(flags: MountFlags, work: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
    vm::mount_disk(DISK, flags)?;
    work()?;
    // Writes everything, and says so if that fails.
    let root = open_directory(OsStr::new(DISK)).map_err(|error| format!("{DISK}: {error}"))?;
    rustix::fs::syncfs(&root).map_err(|error| format!("the disk can't be written: {error}"))?;
    drop(root);
    rustix::mount::unmount(DISK, UnmountFlags::empty()).map_err(|error| format!("{DISK} can't be unmounted: {error}"))
}

fn send(directory: &OsStr) -> Result<(), Failure> {
    let root = open_directory(directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    let mut output = stream::Writer::new(io::BufWriter::with_capacity(BUFFER_BYTES, io::stdout().lock()));
    sending::send(root, &mut output)?;
    output
        .finish()?
        .flush()
        .map_err(|error| format!("standard output: {error}"))
}

fn receive(directory: &OsStr) -> Result<(), Failure> {
    let input = io::BufReader::with_capacity(BUFFER_BYTES, io::stdin().lock());
    receiving::receive(stream::Reader::new(input), directory.as_bytes())
}

fn open_directory(path: &OsStr) -> Result<std::os::fd::OwnedFd, rustix::io::Errno> {
    rustix::fs::openat(CWD, path, DIRECTORY, Mode::empty())
}

/// How directories are opened: nothing is followed.
const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// A name as a message shows it.
fn shown(name: &[u8]) -> String {
    name.escape_ascii().to_string()
}

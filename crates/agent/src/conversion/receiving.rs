//! A stream becomes a tree. Every entry is made anew in a directory that nobody else uses.

use std::ffi::CString;
use std::io::Read;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::stream::{
    BLOCK_DEVICE, CHARACTER_DEVICE, DIRECTORY, Entry, FIFO, FILE, LINK, Reader, SOCKET, SYMLINK, UP, WHITEOUT,
};
use super::{BUFFER_BYTES, Failure, OPAQUE, shown};

/// Beside the tree while it is made: things with several names, each under its number.
const LINKS: &[u8] = b".links";

/// Make `directory`, which is not there yet.
pub(super) fn receive<R: Read>(mut from: Reader<R>, directory: &[u8]) -> Result<(), Failure> {
    let failed = |error: Errno| format!("{}: {error}", shown(directory));
    let links = [directory, LINKS].concat();
    let private = Mode::from_raw_mode(0o700);
    rustix::fs::mkdirat(CWD, links.as_slice(), private).map_err(failed)?;
    let opened = rustix::fs::openat(CWD, links.as_slice(), super::DIRECTORY, Mode::empty()).map_err(failed)?;
    let mut receiver = Receiver {
        links: opened,
        left: Vec::new(),
        buffer: vec![0; BUFFER_BYTES],
    };
    let root = from.entry()?.ok_or("there is no tree")?;
    if root.kind != DIRECTORY || !root.name.0.is_empty() {
        return Err("the tree does not begin with its root".to_owned());
    }
    rustix::fs::mkdirat(CWD, directory, private).map_err(failed)?;
    let mut here = rustix::fs::openat(CWD, directory, super::DIRECTORY, Mode::empty()).map_err(failed)?;
    let mut above = vec![root];
    while let Some(entry) = from.entry()? {
        if above.is_empty() {
            return Err("there is something behind the end of the tree".to_owned());
        }
        let about = |error: Errno| format!("{} can't be made: {error}", shown(&entry.name.0));
        if entry.kind == UP {
            // Now, because what was made in it has changed its time.
            if let Some(done) = above.pop() {
                let failed = |error: Errno| format!("{} can't be made: {error}", shown(&done.name.0));
                if done.opaque {
                    rustix::fs::fsetxattr(&here, OPAQUE, b"y", XattrFlags::empty()).map_err(failed)?;
                }
                own(&here, &done).map_err(failed)?;
            }
            if !above.is_empty() {
                here = rustix::fs::openat(&here, c"..", super::DIRECTORY, Mode::empty()).map_err(about)?;
            }
            continue;
        }
        let name = CString::new(entry.name.0.clone()).map_err(|_| "a name has a NUL byte".to_owned())?;
        if name.is_empty() {
            return Err("an entry has no name".to_owned());
        }
        if entry.kind == DIRECTORY {
            rustix::fs::mkdirat(&here, &name, private).map_err(about)?;
            here = rustix::fs::openat(&here, &name, super::DIRECTORY, Mode::empty()).map_err(about)?;
            above.push(entry);
        } else if entry.kind == FILE {
            receiver.file(&here, &name, &entry, &mut from)?;
        } else {
            receiver.other(&here, &name, &entry).map_err(about)?;
        }
    }
    if !above.is_empty() {
        return Err("the tree has no end".to_owned());
    }
    receiver.finish(&links).map_err(failed)
}

struct Receiver {
    links: OwnedFd,
    /// How many more names each thing has.
    left: Vec<u64>,
    buffer: Vec<u8>,
}

impl Receiver {
    fn file<R: Read>(
        &mut self,
        here: &OwnedFd,
        name: &CString,
        entry: &Entry,
        from: &mut Reader<R>,
    ) -> Result<(), Failure> {
        let about = |error: Errno| format!("{} can't be written: {error}", shown(&entry.name.0));
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(here, name, flags, Mode::from_raw_mode(0o600)).map_err(about)?;
        for (offset, length) in entry.data()? {
            let (mut at, end) = (offset, offset + length);
            while at < end {
                let size = self.buffer.len().min((end - at) as usize);
                from.data(&mut self.buffer[..size])?;
                let mut written = 0;
                while written < size {
                    let count = rustix::io::pwrite(&file, &self.buffer[written..size], at).map_err(about)?;
                    written += count;
                    at += count as u64;
                }
            }
        }
        rustix::fs::ftruncate(&file, entry.size).map_err(about)?;
        own(&file, entry).map_err(about)?;
        self.remember(here, name, entry).map_err(about)
    }

    fn other(&mut self, here: &OwnedFd, name: &CString, entry: &Entry) -> Result<(), Errno> {
        let special = match entry.kind {
            WHITEOUT => return rustix::fs::mknodat(here, name, FileType::CharacterDevice, Mode::empty(), 0),
            LINK => return self.link(here, name, entry.of),
            SYMLINK => {
                rustix::fs::symlinkat(entry.target.0.as_slice(), here, name)?;
                None
            }
            FIFO => Some(FileType::Fifo),
            SOCKET => Some(FileType::Socket),
            CHARACTER_DEVICE => Some(FileType::CharacterDevice),
            BLOCK_DEVICE => Some(FileType::BlockDevice),
            _ => return Err(Errno::INVAL),
        };
        if let Some(kind) = special {
            rustix::fs::mknodat(here, name, kind, Mode::from_raw_mode(0o600), entry.device)?;
        }
        let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
        rustix::fs::chownat(here, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        if special.is_some() {
            rustix::fs::chmodat(here, name, Mode::from_raw_mode(entry.mode), AtFlags::empty())?;
        }
        rustix::fs::utimensat(here, name, &times(entry), AtFlags::SYMLINK_NOFOLLOW)?;
        self.remember(here, name, entry)
    }

    fn remember(&mut self, here: &OwnedFd, name: &CString, entry: &Entry) -> Result<(), Errno> {
        if entry.names > 1 {
            let number = self.left.len().to_string();
            self.left.push(entry.names - 1);
            rustix::fs::linkat(here, name, &self.links, number, AtFlags::empty())?;
        }
        Ok(())
    }

    fn link(&mut self, here: &OwnedFd, name: &CString, of: u64) -> Result<(), Errno> {
        let left = usize::try_from(of).ok().and_then(|of| self.left.get_mut(of));
        let left = left.filter(|left| **left > 0).ok_or(Errno::NOENT)?;
        *left -= 1;
        let number = of.to_string();
        rustix::fs::linkat(&self.links, &number, here, name, AtFlags::empty())?;
        if *left == 0 {
            rustix::fs::unlinkat(&self.links, &number, AtFlags::empty())?;
        }
        Ok(())
    }

    /// A file may have had more names than are in the tree.
    fn finish(self, path: &[u8]) -> Result<(), Errno> {
        for (number, left) in self.left.iter().enumerate() {
            if *left > 0 {
                rustix::fs::unlinkat(&self.links, number.to_string(), AtFlags::empty())?;
            }
        }
        rustix::fs::unlinkat(CWD, path, AtFlags::REMOVEDIR)
    }
}

/// Owner, mode, attributes and time of what is open. The owner first: changing it takes set-user-id away.
fn own(opened: &OwnedFd, entry: &Entry) -> Result<(), Errno> {
    rustix::fs::fchown(opened, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))?;
    rustix::fs::fchmod(opened, Mode::from_raw_mode(entry.mode))?;
    for (name, value) in &entry.xattrs {
        if !name.0.starts_with(b"user.") {
            return Err(Errno::INVAL);
        }
        rustix::fs::fsetxattr(opened, name.0.as_slice(), &value.0, XattrFlags::empty())?;
    }
    rustix::fs::futimens(opened, &times(entry))
}

fn times(entry: &Entry) -> Timestamps {
    let time = Timespec {
        tv_sec: entry.mtime_ns.div_euclid(1_000_000_000),
        tv_nsec: entry.mtime_ns.rem_euclid(1_000_000_000),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

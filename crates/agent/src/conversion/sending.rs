//! A tree becomes a stream. Whoever wrote it may have meant harm: nothing is followed, everything is opened relative to its
//! directory, and however deep it is, few descriptors are open.

use std::collections::HashMap;
use std::ffi::CString;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};

use hutch_wire::Bin;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, SeekFrom, Stat};
use rustix::io::Errno;

use super::stream::{
    BLOCK_DEVICE, CHARACTER_DEVICE, DIRECTORY, Entry, FIFO, FILE, LINK, MAX_EXTENTS, SOCKET, SYMLINK, UP, WHITEOUT,
    Writer,
};
use super::{BUFFER_BYTES, Failure, OPAQUE, shown};

/// In one directory, because they are sorted.
const MAX_NAMES: usize = 2_000_000;
const BLOCK_BYTES: u64 = 4096;
/// A layer with these says things of the image below by name. Hutch mounts without what makes them.
const REFUSED: [&[u8]; 2] = [b"trusted.overlay.redirect", b"trusted.overlay.metacopy"];
const MAX_ATTRIBUTE_BYTES: usize = 64 * 1024;

type Inode = (u64, u64);

/// A directory on the way down: its inode, and the names in it that are still to come.
struct Level {
    inode: Inode,
    names: std::vec::IntoIter<CString>,
}

/// Send a directory and what is in it.
pub(super) fn send<W: Write>(root: OwnedFd, to: &mut Writer<W>) -> Result<(), Failure> {
    let mut sender = Sender {
        to,
        linked: HashMap::new(),
        buffer: vec![0; BUFFER_BYTES],
    };
    let mut levels = vec![sender.directory(&root, b"")?];
    let mut here = root;
    while let Some(level) = levels.last_mut() {
        let Some(name) = level.names.next() else {
            levels.pop();
            sender.to.entry(&Entry {
                kind: UP,
                names: 1,
                ..Entry::default()
            })?;
            if let Some(above) = levels.last() {
                here = parent(&here, above.inode)?;
            }
            continue;
        };
        let failed = |error: Errno| format!("{} can't be read: {error}", shown(name.as_bytes()));
        let found = rustix::fs::statat(&here, &name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        match FileType::from_raw_mode(found.st_mode) {
            FileType::Directory => {
                here = rustix::fs::openat(&here, &name, super::DIRECTORY, Mode::empty()).map_err(failed)?;
                levels.push(sender.directory(&here, name.as_bytes())?);
            }
            FileType::RegularFile if !sender.linked.contains_key(&inode(&found)) => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let file = rustix::fs::openat(&here, &name, flags, Mode::empty()).map_err(failed)?;
                sender
                    .file(&file, name.as_bytes())
                    .map_err(|error| error.of(name.as_bytes()))?;
            }
            kind => {
                let entry = sender
                    .other(&here, &name, &found, kind)
                    .map_err(|error| error.of(name.as_bytes()))?;
                sender.to.entry(&entry)?;
            }
        }
    }
    Ok(())
}

/// Why something was not sent: what the kernel said, or a sentence.
enum Unsent {
    Kernel(Errno),
    Said(Failure),
}

impl From<Errno> for Unsent {
    fn from(error: Errno) -> Self {
        Self::Kernel(error)
    }
}

impl From<Failure> for Unsent {
    fn from(failure: Failure) -> Self {
        Self::Said(failure)
    }
}

impl Unsent {
    fn of(self, name: &[u8]) -> Failure {
        match self {
            Self::Kernel(error) => format!("{} can't be read: {error}", shown(name)),
            Self::Said(failure) => failure,
        }
    }
}

/// Go up. Nobody moves directories of a disk that only we have; a file system that does so by itself is broken.
fn parent(here: &OwnedFd, expected: Inode) -> Result<OwnedFd, Failure> {
    let open = || {
        let above = rustix::fs::openat(here, c"..", super::DIRECTORY, Mode::empty())?;
        let found = rustix::fs::fstat(&above)?;
        Ok::<_, Errno>((above, inode(&found)))
    };
    match open() {
        Ok((above, found)) if found == expected => Ok(above),
        Ok(_) => Err("a directory is in another one than it was found in".to_owned()),
        Err(error) => Err(format!("the way up can't be opened: {error}")),
    }
}

fn inode(found: &Stat) -> Inode {
    (found.st_dev, found.st_ino)
}

struct Sender<'a, W> {
    to: &'a mut Writer<W>,
    linked: HashMap<Inode, u64>,
    buffer: Vec<u8>,
}

impl<W: Write> Sender<'_, W> {
    fn directory(&mut self, directory: &OwnedFd, name: &[u8]) -> Result<Level, Failure> {
        let failed = |error: Errno| format!("the directory {} can't be read: {error}", shown(name));
        let found = rustix::fs::fstat(directory).map_err(failed)?;
        let (xattrs, opaque) = attributes(directory, name).map_err(|error| error.of(name))?;
        let mut names = Vec::new();
        for entry in Dir::read_from(directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            if !matches!(name.to_bytes(), b"." | b"..") {
                names.push(name.to_owned());
            }
            if names.len() > MAX_NAMES {
                return Err(format!("a directory has more than {MAX_NAMES} names"));
            }
        }
        names.sort();
        let entry = Entry {
            kind: DIRECTORY,
            xattrs,
            opaque,
            ..common(&found, name)
        };
        self.to.entry(&entry)?;
        Ok(Level {
            inode: inode(&found),
            names: names.into_iter(),
        })
    }

    fn file(&mut self, file: &OwnedFd, name: &[u8]) -> Result<(), Unsent> {
        let found = rustix::fs::fstat(file)?;
        self.number(&found);
        let (xattrs, _) = attributes(file, name)?;
        let mut entry = Entry {
            kind: FILE,
            xattrs,
            size: found.st_size as u64,
            ..common(&found, name)
        };
        if let Some(extents) = extents(file, &found, name)? {
            entry.set_data(&extents);
        }
        self.to.entry(&entry)?;
        for (offset, length) in entry.data()? {
            let (mut at, end) = (offset, offset + length);
            while at < end {
                let wanted = self.buffer.len().min((end - at) as usize);
                match rustix::io::pread(file, &mut self.buffer[..wanted], at)? {
                    0 => return Err(Unsent::Said(format!("{} is shorter than it says", shown(name)))),
                    count => {
                        self.to.data(&self.buffer[..count])?;
                        at += count as u64;
                    }
                }
            }
        }
        Ok(())
    }

    fn other(&mut self, here: &OwnedFd, name: &CString, found: &Stat, kind: FileType) -> Result<Entry, Unsent> {
        let raw = name.as_bytes();
        if kind == FileType::CharacterDevice && found.st_rdev == 0 {
            return Ok(Entry {
                kind: WHITEOUT,
                name: Bin(raw.to_vec()),
                names: 1,
                ..Entry::default()
            });
        }
        if let Some(of) = self.number(found) {
            return Ok(Entry {
                kind: LINK,
                name: Bin(raw.to_vec()),
                of,
                names: 1,
                ..Entry::default()
            });
        }
        let kind = match kind {
            FileType::Symlink => SYMLINK,
            FileType::Fifo => FIFO,
            FileType::Socket => SOCKET,
            FileType::CharacterDevice => CHARACTER_DEVICE,
            FileType::BlockDevice => BLOCK_DEVICE,
            _ => return Err(Unsent::Said(format!("{} is of a kind that is not known", shown(raw)))),
        };
        let target = match kind {
            SYMLINK => rustix::fs::readlinkat(here, name, Vec::new())?.into_bytes(),
            _ => Vec::new(),
        };
        Ok(Entry {
            kind,
            target: Bin(target),
            device: found.st_rdev,
            ..common(found, raw)
        })
    }

    /// The number of a thing that came by before under another name; `None` the first time.
    fn number(&mut self, found: &Stat) -> Option<u64> {
        if found.st_nlink <= 1 {
            return None;
        }
        let next = self.linked.len() as u64;
        match self.linked.entry(inode(found)) {
            std::collections::hash_map::Entry::Occupied(known) => Some(*known.get()),
            std::collections::hash_map::Entry::Vacant(free) => {
                free.insert(next);
                None
            }
        }
    }
}

#[allow(
    clippy::useless_conversion,
    reason = "numbers of names have 32 bits on other processors"
)]
fn common(found: &Stat, name: &[u8]) -> Entry {
    let directory = FileType::from_raw_mode(found.st_mode) == FileType::Directory;
    Entry {
        name: Bin(name.to_vec()),
        mode: found.st_mode & 0o7777,
        uid: found.st_uid,
        gid: found.st_gid,
        mtime_ns: found
            .st_mtime
            .saturating_mul(1_000_000_000)
            .saturating_add_unsigned(found.st_mtime_nsec),
        names: if directory { 1 } else { u64::from(found.st_nlink).max(1) },
        ..Entry::default()
    }
}

type Attributes = (Vec<(Bin, Bin)>, bool);

/// The attributes of something that users can set, and whether it hides what is below it.
fn attributes(of: &OwnedFd, name: &[u8]) -> Result<Attributes, Unsent> {
    let mut listed = vec![0; MAX_ATTRIBUTE_BYTES];
    let length = match rustix::fs::flistxattr(of, &mut listed) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => 0,
        Err(error) => return Err(error.into()),
    };
    let mut names: Vec<&[u8]> = listed[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .collect();
    names.sort_unstable();
    if names.iter().any(|attribute| REFUSED.contains(attribute)) {
        return Err(Unsent::Said(format!("{} has its contents in the image", shown(name))));
    }
    let mut found = Vec::new();
    for attribute in names.iter().filter(|attribute| attribute.starts_with(b"user.")) {
        found.push((Bin(attribute.to_vec()), Bin(value(of, attribute)?)));
    }
    let opaque = names.contains(&OPAQUE.as_bytes()) && value(of, OPAQUE.as_bytes())? == b"y";
    Ok((found, opaque))
}

fn value(of: &OwnedFd, attribute: &[u8]) -> Result<Vec<u8>, Errno> {
    let mut value = vec![0; MAX_ATTRIBUTE_BYTES];
    let length = rustix::fs::fgetxattr(of, attribute, &mut value)?;
    value.truncate(length);
    Ok(value)
}

/// Where the data of a file with holes lies; `None` when it has none.
fn extents(file: &OwnedFd, found: &Stat, name: &[u8]) -> Result<Option<Vec<(u64, u64)>>, Unsent> {
    let size = found.st_size as u64;
    if size == 0 || (found.st_blocks as u64).saturating_mul(512) >= size {
        return Ok(None);
    }
    let mut extents: Vec<(u64, u64)> = Vec::new();
    let mut at = 0;
    while at < size {
        let data = match rustix::fs::seek(file.as_fd(), SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let hole = rustix::fs::seek(file.as_fd(), SeekFrom::Hole(data))?;
        // In whole blocks, so that another file system, whose blocks are smaller, has the same ones.
        let mut start = data - data % BLOCK_BYTES;
        at = hole.next_multiple_of(BLOCK_BYTES).min(size);
        if at <= start {
            return Err(Unsent::Said(format!("{} has impossible holes", shown(name))));
        }
        if let Some((last, length)) = extents.last().copied()
            && last + length >= start
        {
            start = last;
            extents.pop();
        }
        extents.push((start, at - start));
        if extents.len() > MAX_EXTENTS {
            return Err(Unsent::Said(format!(
                "{} has more than {MAX_EXTENTS} holes",
                shown(name)
            )));
        }
    }
    Ok((extents != [(0, size)]).then_some(extents))
}

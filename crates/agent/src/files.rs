//! The file methods. Every step runs in a thread that has the rights of the request's user.

use std::ffi::{CString, OsStr};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::sync::Arc;

use hutch_wire::{ErrorMessage, encode};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawMode};
use rustix::io::Errno;

use crate::errors::{Access, file_failure, text};
use crate::requests::{FileSize, FileStat, nothing};
use crate::work::{Input, Operation, Progress, Wants};

const READ_BYTES: usize = 256 * 1024;

pub(crate) fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

/// `file.mkdir`.
pub(crate) struct MakeDirectory {
    pub(crate) path: Vec<u8>,
    pub(crate) recursive: bool,
}

impl Operation for MakeDirectory {
    fn wants(&self) -> Wants {
        Wants::Input
    }

    fn step(&mut self, _input: Input) -> Result<Progress, ErrorMessage> {
        let outcome = if self.recursive {
            make_directories(&self.path)
        } else {
            rustix::fs::mkdir(self.path.as_slice(), Mode::from_raw_mode(0o777))
        };
        match outcome {
            Ok(()) => Ok(Progress::reply(nothing())),
            Err(Errno::NOENT) => {
                let message = "error creating directory: No such file or directory";
                Err(ErrorMessage::new(400, "file_error", message))
            }
            Err(error) => {
                let subject = format!("error creating directory: {}: ", String::from_utf8_lossy(&self.path));
                Err(file_failure(error, Access::Write, &subject))
            }
        }
    }
}

/// Make a directory and those above it; one that is there is fine.
pub(crate) fn make_directories(path: &[u8]) -> Result<(), Errno> {
    match rustix::fs::mkdir(path, Mode::from_raw_mode(0o777)) {
        Ok(()) => return Ok(()),
        Err(Errno::EXIST) => {
            let kind = FileType::from_raw_mode(rustix::fs::stat(path)?.st_mode);
            return if kind.is_dir() { Ok(()) } else { Err(Errno::EXIST) };
        }
        Err(Errno::NOENT) => {}
        Err(error) => return Err(error),
    }
    // Iterative from the top: the depth of a path is the caller's choice, that of our stack is not.
    let mut end = 0;
    while end < path.len() {
        end = path[end + 1..]
            .iter()
            .position(|byte| *byte == b'/')
            .map_or(path.len(), |found| end + 1 + found);
        match rustix::fs::mkdir(&path[..end], Mode::from_raw_mode(0o777)) {
            Ok(()) | Err(Errno::EXIST) => {}
            // Above a directory that is there already, another user's rights or a read-only file system are no matter.
            Err(_) if rustix::fs::stat(&path[..end]).is_ok() => {}
            Err(error) => return Err(error),
        }
    }
    let kind = FileType::from_raw_mode(rustix::fs::stat(path)?.st_mode);
    if kind.is_dir() { Ok(()) } else { Err(Errno::NOTDIR) }
}

/// `file.stat`.
pub(crate) struct Stat {
    pub(crate) path: Vec<u8>,
}

impl Operation for Stat {
    fn wants(&self) -> Wants {
        Wants::Input
    }

    fn step(&mut self, _input: Input) -> Result<Progress, ErrorMessage> {
        let stat = rustix::fs::lstat(self.path.as_slice()).map_err(|error| file_failure(error, Access::Read, ""))?;
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => "file",
            FileType::Directory => "dir",
            FileType::Symlink => "symlink",
            _ => "other",
        };
        Ok(Progress::reply(encode(&FileStat {
            kind,
            size: stat.st_size.try_into().unwrap_or(0),
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime_ns: stat
                .st_mtime
                .saturating_mul(1_000_000_000)
                .saturating_add(stat.st_mtime_nsec as i64),
        })))
    }
}

/// `file.read`.
pub(crate) struct ReadFile {
    pub(crate) path: Vec<u8>,
    pub(crate) file: Option<(std::fs::File, u64)>,
    pub(crate) position: u64,
}

impl Operation for ReadFile {
    fn wants(&self) -> Wants {
        Wants::Output
    }

    fn step(&mut self, _input: Input) -> Result<Progress, ErrorMessage> {
        let mut progress = Progress::default();
        if self.file.is_none() {
            let (file, size) = open_regular(&self.path)?;
            progress.reply = Some(encode(&FileSize { size }));
            self.file = Some((file, size));
        }
        let Some((file, size)) = &mut self.file else {
            return Err(file_failure(Errno::BADF, Access::Read, ""));
        };
        // Two buffers a step: one travels while the next is read.
        for _ in 0..2 {
            let expected = size.saturating_sub(self.position).min(READ_BYTES as u64 - 1) as usize + 1;
            let mut buffer = Vec::with_capacity(if *size == 0 { 16 * 1024 } else { expected });
            let wanted = buffer.capacity() as u64;
            let count = Read::by_ref(file)
                .take(wanted)
                .read_to_end(&mut buffer)
                .map_err(|error| file_failure(errno(&error), Access::Read, ""))?;
            self.position += count as u64;
            progress.done = (count as u64) < wanted;
            if count > 0 {
                progress.output.push(buffer);
            }
            if progress.done {
                break;
            }
        }
        Ok(progress)
    }
}

fn open_regular(path: &[u8]) -> Result<(std::fs::File, u64), ErrorMessage> {
    let failed = |error| file_failure(error, Access::Read, "");
    // Without O_NONBLOCK a FIFO would hold this thread until somebody writes to it.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = rustix::fs::open(path, flags, Mode::empty()).map_err(failed)?;
    let stat = rustix::fs::fstat(&file).map_err(failed)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok((std::fs::File::from(file), stat.st_size.try_into().unwrap_or(0))),
        FileType::Directory => Err(failed(Errno::ISDIR)),
        _ => Err(ErrorMessage::new(400, "file_error", "Not a regular file")),
    }
}

/// `file.write`.
pub(crate) struct WriteFile {
    pub(crate) path: Vec<u8>,
    pub(crate) mode: u32,
    pub(crate) target: Option<NewFile>,
    pub(crate) size: u64,
}

impl Operation for WriteFile {
    fn wants(&self) -> Wants {
        Wants::Input
    }

    fn step(&mut self, input: Input) -> Result<Progress, ErrorMessage> {
        let failed = |error| file_failure(error, Access::Write, "");
        if self.target.is_none() {
            self.target = Some(NewFile::beside(&self.path, self.mode).map_err(failed)?);
        }
        let Some(target) = &mut self.target else {
            return Err(failed(Errno::BADF));
        };
        for chunk in input.chunks {
            target.file.write_all(&chunk).map_err(|error| failed(errno(&error)))?;
            self.size += chunk.len() as u64;
        }
        if !input.ended {
            return Ok(Progress::default());
        }
        if let Some(target) = self.target.take() {
            target.finish().map_err(failed)?;
        }
        Ok(Progress::reply(encode(&FileSize { size: self.size })))
    }
}

/// A file under a hidden name in the directory of its final one. Dropped unfinished, it is removed.
pub(crate) struct NewFile {
    pub(crate) file: std::fs::File,
    directory: Arc<OwnedFd>,
    hidden: Option<CString>,
    name: CString,
    mode: RawMode,
}

impl NewFile {
    /// The new content of `path`, whose final symlinks are followed.
    pub(crate) fn beside(path: &[u8], mode: u32) -> Result<Self, Errno> {
        let mut path = path.to_vec();
        match rustix::fs::lstat(path.as_slice()) {
            Ok(stat) => match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => return Err(Errno::ISDIR),
                FileType::Symlink => path = follow(&path)?,
                _ => {}
            },
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
        let (directory, name) = split(&path)?;
        let directory = open_directory(rustix::fs::CWD, directory)?;
        Self::create(&Arc::new(directory), name, mode)
    }

    /// The new content of `name` in `directory`.
    pub(crate) fn create(directory: &Arc<OwnedFd>, name: CString, mode: u32) -> Result<Self, Errno> {
        let mode = mode & 0o777;
        let mut random = [0; 8];
        let _ = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty());
        let hidden = format!(".hutch-{:016x}", u64::from_ne_bytes(random));
        let hidden = CString::new(hidden).map_err(|_| Errno::INVAL)?;
        let file = create_new(directory.as_fd(), &hidden, 0o600)?;
        Ok(Self {
            file,
            directory: Arc::clone(directory),
            hidden: Some(hidden),
            name,
            mode,
        })
    }

    /// Give the file its mode and its name, replacing what has it.
    pub(crate) fn finish(self) -> Result<(), Errno> {
        let (directory, name) = (Arc::clone(&self.directory), self.name.clone());
        self.finish_as(&directory, &name)
    }

    /// Give the file its mode and a name in another directory of the same file system.
    pub(crate) fn finish_as(mut self, directory: &OwnedFd, name: &CString) -> Result<(), Errno> {
        rustix::fs::fchmod(&self.file, Mode::from_raw_mode(self.mode))?;
        if let Some(hidden) = &self.hidden {
            rustix::fs::renameat(&self.directory, hidden, directory, name)?;
        }
        self.hidden = None;
        Ok(())
    }

    pub(crate) fn set_mode(&mut self, mode: u32) {
        self.mode = mode & 0o777;
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some(hidden) = &self.hidden {
            let _ = rustix::fs::unlinkat(&self.directory, hidden, AtFlags::empty());
        }
    }
}

/// Create a file that must not exist.
pub(crate) fn create_new(directory: impl AsFd, name: &CString, mode: RawMode) -> Result<std::fs::File, Errno> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(std::fs::File::from(rustix::fs::openat(
        directory,
        name,
        flags,
        Mode::from_raw_mode(mode),
    )?))
}

/// A directory to work in.
pub(crate) fn open_directory(base: impl AsFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(base, path, flags, Mode::empty())
}

/// Where the symlink `path` leads. One that leads nowhere is replaced itself.
pub(crate) fn follow(path: &[u8]) -> Result<Vec<u8>, Errno> {
    match std::fs::canonicalize(Path::new(OsStr::from_bytes(path))) {
        Ok(target) => {
            let target = target.into_os_string().into_vec();
            let kind = FileType::from_raw_mode(rustix::fs::stat(target.as_slice())?.st_mode);
            if kind.is_dir() { Err(Errno::ISDIR) } else { Ok(target) }
        }
        Err(error) if errno(&error) == Errno::NOENT => Ok(path.to_vec()),
        Err(error) => Err(errno(&error)),
    }
}

/// Directory and name of `path`.
pub(crate) fn split(path: &[u8]) -> Result<(&[u8], CString), Errno> {
    let (directory, name) = match path.iter().rposition(|byte| *byte == b'/') {
        Some(0) => (&path[..1], &path[1..]),
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b".".as_slice(), path),
    };
    match name {
        b"" | b"." | b".." => Err(Errno::ISDIR),
        name => Ok((directory, CString::new(name).map_err(|_| Errno::INVAL)?)),
    }
}

/// The text of an error about one entry.
pub(crate) fn about(name: &[u8], error: Errno) -> ErrorMessage {
    let mut failure = file_failure(error, Access::Write, "");
    failure.message = format!("{}: {}", String::from_utf8_lossy(name), text(error));
    failure
}

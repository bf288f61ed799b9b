//! `archive.write`: check the whole archive while it is spooled, then write it.
//!
//! Small archives are spooled in memory, larger ones in a file that has no name. A large regular file goes straight to
//! a hidden file beside its destination and is renamed there when everything was checked.

use std::collections::HashMap;
use std::ffi::CString;
use std::io::{BufReader, BufWriter, Cursor, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use flate2::{Decompress, FlushDecompress, Status};
use hutch_wire::{ErrorMessage, encode};
use rustix::fs::{AtFlags, FileType, Mode};
use rustix::io::Errno;

use crate::errors::{Access, file_failure, invalid_archive};
use crate::files::{NewFile, about, create_new, errno, follow, make_directories, open_directory, split};
use crate::identity::join;
use crate::requests::ArchiveWritten;
use crate::tar::{Entry, Invalid, Sink, TarReader};
use crate::work::{Input, Operation, Progress, Wants};

const SPOOL_MEMORY_BYTES: usize = 4 * 1024 * 1024;
const LARGE_FILE_BYTES: u64 = 1024 * 1024;
/// Each holds a descriptor; the files beyond go through the spool.
const MAX_LARGE_FILES: usize = 64;
const COPY_BYTES: usize = 128 * 1024;
/// What an entry may need beside its content: header, extended headers, padding. A bomb of headers has more.
const MAX_HEADER_BYTES: u64 = 16 * 1024;
/// What may follow the last entry.
const MAX_EMPTY_BYTES: u64 = 17 * 1024 * 1024;
/// Directories whose descriptors are kept while writing.
const OPEN_DIRECTORIES: usize = 64;
/// The spool's mark for a file that has its own hidden file.
const LARGE: u8 = 2;

impl From<Invalid> for ErrorMessage {
    fn from(invalid: Invalid) -> Self {
        invalid_archive(format!("The archive is refused: {}", invalid.0))
    }
}

/// The request.
pub(crate) struct WriteArchive {
    checker: Checker,
    reader: TarReader,
    unpacker: Option<Unpacker>,
}

impl WriteArchive {
    pub(crate) fn new(directory: Vec<u8>, gzip: bool, max_bytes: u64, max_files: u64) -> Self {
        Self {
            checker: Checker::new(directory, max_bytes, max_files),
            reader: TarReader::new(),
            unpacker: gzip.then(|| Unpacker::new(max_bytes, max_files)),
        }
    }
}

impl Operation for WriteArchive {
    fn wants(&self) -> Wants {
        Wants::Input
    }

    fn step(&mut self, input: Input) -> Result<Progress, ErrorMessage> {
        for chunk in input.chunks {
            match &mut self.unpacker {
                Some(unpacker) => unpacker.feed(&chunk, &mut self.reader, &mut self.checker)?,
                None => self.reader.feed(&chunk, &mut self.checker)?,
            }
        }
        if !input.ended {
            return Ok(Progress::default());
        }
        if let Some(unpacker) = &self.unpacker {
            unpacker.finish()?;
        }
        self.reader.finish()?;
        let (files, bytes) = (self.checker.files, self.checker.bytes);
        self.checker.write()?;
        Ok(Progress::reply(encode(&ArchiveWritten { files, bytes })))
    }
}

/// A gzip stream, of any number of members.
struct Unpacker {
    inflate: Decompress,
    output: Vec<u8>,
    /// Whether a member is being read, and whether there was one at all.
    inside: bool,
    any: bool,
    /// How many more bytes an archive within its limits can have.
    left: u64,
}

impl Unpacker {
    fn new(max_bytes: u64, max_files: u64) -> Self {
        let headers = max_files
            .saturating_mul(MAX_HEADER_BYTES)
            .saturating_add(MAX_EMPTY_BYTES);
        Self {
            left: max_bytes.saturating_add(headers),
            inflate: Decompress::new_gzip(15),
            output: vec![0; COPY_BYTES],
            inside: false,
            any: false,
        }
    }

    fn feed(&mut self, mut input: &[u8], reader: &mut TarReader, sink: &mut Checker) -> Result<(), ErrorMessage> {
        loop {
            if input.is_empty() && !self.inside {
                return Ok(());
            }
            if !self.inside {
                self.inflate = Decompress::new_gzip(15);
                (self.inside, self.any) = (true, true);
            }
            let (read, written) = (self.inflate.total_in(), self.inflate.total_out());
            let status = self.inflate.decompress(input, &mut self.output, FlushDecompress::None);
            let status = status.map_err(|_| invalid_archive("The archive is refused: a broken gzip stream"))?;
            let taken = (self.inflate.total_in() - read) as usize;
            let given = (self.inflate.total_out() - written) as usize;
            input = &input[taken..];
            self.left = self.left.checked_sub(given as u64).ok_or_else(|| {
                invalid_archive("The archive is refused: its headers unpack to more than its entries can need")
            })?;
            reader.feed(&self.output[..given], sink)?;
            match status {
                Status::StreamEnd => self.inside = false,
                _ if taken == 0 && given == 0 => return Ok(()),
                _ => {}
            }
        }
    }

    fn finish(&self) -> Result<(), ErrorMessage> {
        if self.any && !self.inside {
            return Ok(());
        }
        Err(invalid_archive("The archive is refused: the gzip stream ends early"))
    }
}

/// Where entries wait until all of them were checked.
enum Spool {
    Memory(Vec<u8>),
    File(BufWriter<std::fs::File>),
}

impl Spool {
    fn write(&mut self, bytes: &[u8], directory: &[u8]) -> Result<(), ErrorMessage> {
        if let Self::Memory(memory) = self {
            if memory.len() + bytes.len() <= SPOOL_MEMORY_BYTES {
                memory.extend_from_slice(bytes);
                return Ok(());
            }
            let mut file = BufWriter::with_capacity(COPY_BYTES, nameless_file(directory)?);
            file.write_all(memory).map_err(|error| spool_failure(errno(&error)))?;
            *self = Self::File(file);
        }
        match self {
            Self::File(file) => file.write_all(bytes).map_err(|error| spool_failure(errno(&error))),
            Self::Memory(_) => Ok(()),
        }
    }

    fn into_reader(self) -> Result<Box<dyn Read>, ErrorMessage> {
        match self {
            Self::Memory(memory) => Ok(Box::new(Cursor::new(memory))),
            Self::File(file) => {
                let mut file = file.into_inner().map_err(|error| spool_failure(errno(error.error())))?;
                file.seek(SeekFrom::Start(0))
                    .map_err(|error| spool_failure(errno(&error)))?;
                Ok(Box::new(BufReader::with_capacity(COPY_BYTES, file)))
            }
        }
    }
}

fn spool_failure(error: Errno) -> ErrorMessage {
    file_failure(error, Access::Write, "The archive cannot be kept while it is checked: ")
}

/// A file that is gone when it is closed, in the first directory where the user may write.
fn nameless_file(directory: &[u8]) -> Result<std::fs::File, ErrorMessage> {
    let mut failure = Errno::NOENT;
    for place in [b"/tmp".as_slice(), b"/var/tmp", directory] {
        let file = open_directory(rustix::fs::CWD, place).and_then(|place| {
            let mut random = [0; 8];
            let _ = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty());
            let name = CString::new(format!(".hutch-{:016x}", u64::from_ne_bytes(random))).unwrap_or_default();
            let file = create_new(&place, &name, 0o600)?;
            rustix::fs::unlinkat(&place, &name, AtFlags::empty())?;
            Ok(file)
        });
        match file {
            Ok(file) => return Ok(file),
            Err(error) => failure = error,
        }
    }
    Err(spool_failure(failure))
}

/// The first pass: limits, and the spool.
struct Checker {
    directory: Vec<u8>,
    max_bytes: u64,
    max_files: u64,
    files: u64,
    bytes: u64,
    spool: Spool,
    large: Vec<Option<NewFile>>,
    /// Whether the current entry's data goes to the last of `large`.
    into_large: bool,
}

impl Checker {
    fn new(directory: Vec<u8>, max_bytes: u64, max_files: u64) -> Self {
        Self {
            directory,
            max_bytes,
            max_files,
            files: 0,
            bytes: 0,
            spool: Spool::Memory(Vec::new()),
            large: Vec::new(),
            into_large: false,
        }
    }

    /// A hidden file in the nearest directory above `name` that is there, if the user may write to it.
    fn hidden_file(&self, name: &[u8]) -> Option<NewFile> {
        let path = join(&self.directory, name);
        let mut end = path.len();
        while let Some(slash) = path[..end].iter().rposition(|byte| *byte == b'/') {
            end = slash;
            match open_directory(rustix::fs::CWD, if end == 0 { b"/" } else { &path[..end] }) {
                Ok(directory) => return NewFile::create(&Arc::new(directory), c"".to_owned(), 0o600).ok(),
                Err(Errno::NOENT) => {}
                Err(_) => return None,
            }
        }
        None
    }

    /// The second pass.
    fn write(&mut self) -> Result<(), ErrorMessage> {
        let mut spool = std::mem::replace(&mut self.spool, Spool::Memory(Vec::new())).into_reader()?;
        let directory = &self.directory;
        make_directories(directory).map_err(|error| about(directory, error))?;
        let mut writer = Writer {
            root: Arc::new(open_directory(rustix::fs::CWD, directory).map_err(|error| about(directory, error))?),
            directory,
            open: HashMap::new(),
            late_modes: Vec::new(),
            copy: vec![0; COPY_BYTES],
        };
        while let Some((kind, entry)) = read_record(&mut spool).map_err(|error| spool_failure(errno(&error)))? {
            if entry.is_directory {
                writer.directory(&entry)?;
            } else if kind == LARGE {
                let hidden = self.large.get_mut(entry.size as usize).and_then(Option::take);
                let hidden = hidden.ok_or_else(|| about(&entry.name, Errno::IO))?;
                writer.large_file(&entry, hidden)?;
            } else {
                writer.file(&entry, &mut spool)?;
            }
        }
        writer.finish()
    }
}

impl Sink for Checker {
    type Error = ErrorMessage;

    fn entry(&mut self, entry: Entry) -> Result<(), ErrorMessage> {
        self.files += 1;
        if self.files > self.max_files {
            return Err(invalid_archive(format!(
                "The archive has more than {} entries",
                self.max_files
            )));
        }
        self.bytes = self.bytes.saturating_add(entry.size);
        if self.bytes > self.max_bytes {
            return Err(invalid_archive(format!(
                "The archive unpacks to more than {} bytes",
                self.max_bytes
            )));
        }
        self.into_large = false;
        let mut kind = u8::from(entry.is_directory);
        let mut size = entry.size;
        if entry.size >= LARGE_FILE_BYTES
            && self.large.len() < MAX_LARGE_FILES
            && let Some(hidden) = self.hidden_file(&entry.name)
        {
            kind = LARGE;
            size = self.large.len() as u64;
            self.large.push(Some(hidden));
            self.into_large = true;
        }
        let mut record = Vec::with_capacity(13 + entry.name.len());
        record.push(kind);
        record.extend_from_slice(&(entry.mode as u16).to_ne_bytes());
        record.extend_from_slice(&size.to_ne_bytes());
        record.extend_from_slice(&(entry.name.len() as u16).to_ne_bytes());
        record.extend_from_slice(&entry.name);
        self.spool.write(&record, &self.directory)
    }

    fn data(&mut self, data: &[u8]) -> Result<(), ErrorMessage> {
        if self.into_large
            && let Some(Some(hidden)) = self.large.last_mut()
        {
            return hidden
                .file
                .write_all(data)
                .map_err(|error| spool_failure(errno(&error)));
        }
        self.spool.write(data, &self.directory)
    }
}

/// The next entry of the spool and its kind. For a large file `size` is its number.
fn read_record(spool: &mut dyn Read) -> std::io::Result<Option<(u8, Entry)>> {
    let mut head = [0; 13];
    if spool.read(&mut head[..1])? == 0 {
        return Ok(None);
    }
    spool.read_exact(&mut head[1..])?;
    let [kind, mode0, mode1, size @ .., name0, name1] = head;
    let mut name = vec![0; usize::from(u16::from_ne_bytes([name0, name1]))];
    spool.read_exact(&mut name)?;
    let mode = u32::from(u16::from_ne_bytes([mode0, mode1]));
    Ok(Some((
        kind,
        Entry {
            name,
            is_directory: kind == 1,
            mode,
            size: u64::from_ne_bytes(size),
        },
    )))
}

/// The second pass.
struct Writer<'a> {
    root: Arc<OwnedFd>,
    directory: &'a [u8],
    open: HashMap<Vec<u8>, Arc<OwnedFd>>,
    /// Modes that would keep us from writing into the directory, set at the end.
    late_modes: Vec<(Vec<u8>, u32)>,
    copy: Vec<u8>,
}

impl Writer<'_> {
    fn directory(&mut self, entry: &Entry) -> Result<(), ErrorMessage> {
        let failed = |error| about(&entry.name, error);
        if entry.name.is_empty() {
            return Ok(());
        }
        let (parent, name) = self.parent(&entry.name).map_err(failed)?;
        let writable = entry.mode | 0o700;
        match rustix::fs::mkdirat(&*parent, &name, Mode::from_raw_mode(writable)) {
            Ok(()) if entry.mode != writable => self.late_modes.push((entry.name.clone(), entry.mode)),
            // The umask took these away.
            Ok(()) if writable & 0o022 != 0 => {
                let mode = Mode::from_raw_mode(writable);
                rustix::fs::chmodat(&*parent, &name, mode, AtFlags::empty()).map_err(failed)?;
            }
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let stat = rustix::fs::statat(&*parent, &name, AtFlags::empty()).map_err(failed)?;
                if !FileType::from_raw_mode(stat.st_mode).is_dir() {
                    return Err(failed(Errno::EXIST));
                }
            }
            Err(error) => return Err(failed(error)),
        }
        Ok(())
    }

    fn file(&mut self, entry: &Entry, spool: &mut dyn Read) -> Result<(), ErrorMessage> {
        let failed = |error| about(&entry.name, error);
        let (parent, name) = self.parent(&entry.name).map_err(failed)?;
        match create_new(&*parent, &name, entry.mode) {
            Ok(mut file) => {
                self.copy_to(&mut file, entry, spool)?;
                if entry.mode & 0o022 != 0 {
                    rustix::fs::fchmod(&file, Mode::from_raw_mode(entry.mode)).map_err(failed)?;
                }
                Ok(())
            }
            Err(Errno::EXIST) => {
                let mut file = self.replacement(&parent, name, entry).map_err(failed)?;
                self.copy_to(&mut file.file, entry, spool)?;
                file.finish().map_err(failed)
            }
            Err(error) => Err(failed(error)),
        }
    }

    fn large_file(&mut self, entry: &Entry, mut hidden: NewFile) -> Result<(), ErrorMessage> {
        let failed = |error| about(&entry.name, error);
        let (mut parent, mut name) = self.parent(&entry.name).map_err(failed)?;
        match rustix::fs::statat(&*parent, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => return Err(failed(Errno::ISDIR)),
                FileType::Symlink => (parent, name) = self.linked(&entry.name).map_err(failed)?,
                _ => {}
            },
            Err(Errno::NOENT) => {}
            Err(error) => return Err(failed(error)),
        }
        hidden.set_mode(entry.mode);
        let mut content = hidden.file.try_clone().map_err(|error| failed(errno(&error)))?;
        match hidden.finish_as(&parent, &name) {
            Err(Errno::XDEV) => {
                let mut file = NewFile::create(&parent, name, entry.mode).map_err(failed)?;
                content
                    .seek(SeekFrom::Start(0))
                    .map_err(|error| failed(errno(&error)))?;
                std::io::copy(&mut content, &mut file.file).map_err(|error| failed(errno(&error)))?;
                file.finish().map_err(failed)
            }
            outcome => outcome.map_err(failed),
        }
    }

    /// A new file in place of one that is there.
    fn replacement(&self, parent: &Arc<OwnedFd>, name: CString, entry: &Entry) -> Result<NewFile, Errno> {
        let stat = rustix::fs::statat(&**parent, &name, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Err(Errno::ISDIR),
            FileType::Symlink => {
                let (parent, name) = self.linked(&entry.name)?;
                NewFile::create(&parent, name, entry.mode)
            }
            _ => NewFile::create(parent, name, entry.mode),
        }
    }

    /// Where the symlink at `name` leads.
    fn linked(&self, name: &[u8]) -> Result<(Arc<OwnedFd>, CString), Errno> {
        let target = follow(&join(self.directory, name))?;
        let (directory, name) = split(&target)?;
        Ok((Arc::new(open_directory(rustix::fs::CWD, directory)?), name))
    }

    fn copy_to(&mut self, file: &mut std::fs::File, entry: &Entry, spool: &mut dyn Read) -> Result<(), ErrorMessage> {
        let mut left = entry.size;
        while left > 0 {
            let part = self.copy.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            spool
                .read_exact(&mut self.copy[..part])
                .map_err(|error| spool_failure(errno(&error)))?;
            file.write_all(&self.copy[..part])
                .map_err(|error| about(&entry.name, errno(&error)))?;
            left -= part as u64;
        }
        Ok(())
    }

    /// The directory of `name`, made where it is missing, and the last part of the name.
    fn parent(&mut self, name: &[u8]) -> Result<(Arc<OwnedFd>, CString), Errno> {
        let (directory, last) = split(name)?;
        if directory == b"." {
            return Ok((Arc::clone(&self.root), last));
        }
        if let Some(open) = self.open.get(directory) {
            return Ok((Arc::clone(open), last));
        }
        let open = match open_directory(&*self.root, directory) {
            Err(Errno::NOENT) => {
                make_directories(&join(self.directory, directory))?;
                open_directory(&*self.root, directory)?
            }
            outcome => outcome?,
        };
        if self.open.len() >= OPEN_DIRECTORIES {
            self.open.clear();
        }
        let open = Arc::new(open);
        self.open.insert(directory.to_vec(), Arc::clone(&open));
        Ok((open, last))
    }

    fn finish(self) -> Result<(), ErrorMessage> {
        for (name, mode) in self.late_modes.iter().rev() {
            let mode = Mode::from_raw_mode(*mode);
            rustix::fs::chmodat(&*self.root, name.as_slice(), mode, AtFlags::empty())
                .map_err(|error| about(name, error))?;
        }
        Ok(())
    }
}

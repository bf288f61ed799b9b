//! A layer as a stream of bytes, the same as `hutch.blobs.stream` on the host reads and writes:
//!
//! ```text
//! entry    length u32, MessagePack array (`Entry`); the root first, an UP at the end of each directory
//! data     after the entry of a file: what it has without its holes
//! end      after the root's UP: a length of 0, how many entries u64, how many bytes of data u64,
//!          CRC-32 u32 of all before that length
//! ```
//!
//! All numbers are big-endian.

use std::io::{Read, Write};

use flate2::Crc;
use hutch_wire::Bin;
use serde::{Deserialize, Serialize};

use super::Failure;

pub(super) const DIRECTORY: u8 = 1;
pub(super) const FILE: u8 = 2;
pub(super) const SYMLINK: u8 = 3;
pub(super) const FIFO: u8 = 4;
pub(super) const SOCKET: u8 = 5;
pub(super) const CHARACTER_DEVICE: u8 = 6;
pub(super) const BLOCK_DEVICE: u8 = 7;
pub(super) const WHITEOUT: u8 = 8;
pub(super) const LINK: u8 = 9;
pub(super) const UP: u8 = 10;

const MAX_RECORD_BYTES: usize = 32 * 1024 * 1024;
pub(super) const MAX_EXTENTS: usize = 1_000_000;
const EXTENT_BYTES: usize = 16;

/// One name. The fields and their order are those of `hutch.blobs.manifest.Entry`, which says what they mean.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) kind: u8,
    pub(super) name: Bin,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime_ns: i64,
    pub(super) xattrs: Vec<(Bin, Bin)>,
    pub(super) target: Bin,
    pub(super) size: u64,
    pub(super) extents: Option<Bin>,
    pub(super) names: u64,
    pub(super) of: u64,
    pub(super) opaque: bool,
    pub(super) device: u64,
}

impl Entry {
    /// Where a file's data lies: offset and length, in order.
    pub(super) fn data(&self) -> Result<Vec<(u64, u64)>, Failure> {
        let Some(packed) = &self.extents else {
            return Ok(if self.size > 0 {
                vec![(0, self.size)]
            } else {
                Vec::new()
            });
        };
        let impossible = || format!("{} has impossible holes", super::shown(&self.name.0));
        if packed.0.len() % EXTENT_BYTES != 0 || packed.0.len() > MAX_EXTENTS * EXTENT_BYTES {
            return Err(impossible());
        }
        let mut end = 0;
        let mut found = Vec::with_capacity(packed.0.len() / EXTENT_BYTES);
        for pair in packed.0.chunks_exact(EXTENT_BYTES) {
            let (offset, length) = (number(&pair[..8]), number(&pair[8..]));
            let next = offset.checked_add(length).ok_or_else(impossible)?;
            if offset < end || length == 0 || next > self.size {
                return Err(impossible());
            }
            end = next;
            found.push((offset, length));
        }
        Ok(found)
    }

    pub(super) fn set_data(&mut self, extents: &[(u64, u64)]) {
        let mut packed = Vec::with_capacity(extents.len() * EXTENT_BYTES);
        for (offset, length) in extents {
            packed.extend_from_slice(&offset.to_be_bytes());
            packed.extend_from_slice(&length.to_be_bytes());
        }
        self.extents = Some(Bin(packed));
    }
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// Counts what passes.
#[derive(Default)]
struct Passed {
    entries: u64,
    bytes: u64,
    crc: Crc,
}

impl Passed {
    fn end(&self) -> [u8; 20] {
        let mut end = [0; 20];
        end[..8].copy_from_slice(&self.entries.to_be_bytes());
        end[8..16].copy_from_slice(&self.bytes.to_be_bytes());
        end[16..].copy_from_slice(&self.crc.sum().to_be_bytes());
        end
    }
}

pub(super) struct Writer<W> {
    to: W,
    passed: Passed,
}

impl<W: Write> Writer<W> {
    pub(super) fn new(to: W) -> Self {
        Self {
            to,
            passed: Passed::default(),
        }
    }

    pub(super) fn entry(&mut self, entry: &Entry) -> Result<(), Failure> {
        let record = rmp_serde::to_vec(entry).map_err(|error| format!("an entry can't be written: {error}"))?;
        if record.len() > MAX_RECORD_BYTES {
            return Err(format!("{} has more to it than fits", super::shown(&entry.name.0)));
        }
        self.passed.entries += 1;
        self.write(&(record.len() as u32).to_be_bytes())?;
        self.write(&record)
    }

    pub(super) fn data(&mut self, data: &[u8]) -> Result<(), Failure> {
        self.passed.bytes += data.len() as u64;
        self.write(data)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.passed.crc.update(bytes);
        self.put(bytes)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.to
            .write_all(bytes)
            .map_err(|error| format!("standard output: {error}"))
    }

    pub(super) fn finish(mut self) -> Result<W, Failure> {
        let end = self.passed.end();
        self.put(&[0; 4])?;
        self.put(&end)?;
        Ok(self.to)
    }
}

pub(super) struct Reader<R> {
    from: R,
    passed: Passed,
}

impl<R: Read> Reader<R> {
    pub(super) fn new(from: R) -> Self {
        Self {
            from,
            passed: Passed::default(),
        }
    }

    /// The next entry; `None` at the end, when that is what it should be.
    pub(super) fn entry(&mut self) -> Result<Option<Entry>, Failure> {
        let mut length = [0; 4];
        self.read(&mut length)?;
        let size = u32::from_be_bytes(length) as usize;
        if size == 0 {
            let expected = self.passed.end();
            let mut end = [0; 20];
            self.read(&mut end)?;
            if end != expected || self.from.read(&mut [0]).map_err(|error| unreadable(&error))? != 0 {
                return Err("what arrived is not what was sent".to_owned());
            }
            return Ok(None);
        }
        if size > MAX_RECORD_BYTES {
            return Err("an entry is larger than any can be".to_owned());
        }
        let mut record = vec![0; size];
        self.read(&mut record)?;
        self.passed.crc.update(&length);
        self.passed.crc.update(&record);
        self.passed.entries += 1;
        let entry: Entry =
            rmp_serde::from_slice(&record).map_err(|error| format!("an entry can't be read: {error}"))?;
        let name = &entry.name.0;
        if matches!(name.as_slice(), b"." | b"..") || name.iter().any(|byte| matches!(byte, 0 | b'/')) {
            return Err(format!("{} is no name", super::shown(name)));
        }
        Ok(Some(entry))
    }

    /// Fill `data` with what comes next of a file.
    pub(super) fn data(&mut self, data: &mut [u8]) -> Result<(), Failure> {
        self.read(data)?;
        self.passed.crc.update(data);
        self.passed.bytes += data.len() as u64;
        Ok(())
    }

    fn read(&mut self, into: &mut [u8]) -> Result<(), Failure> {
        self.from.read_exact(into).map_err(|error| unreadable(&error))
    }
}

fn unreadable(error: &std::io::Error) -> Failure {
    format!("standard input: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent() -> Vec<u8> {
        let mut writer = Writer::new(Vec::new());
        let mut file = Entry {
            kind: FILE,
            name: Bin(b"a\xff".to_vec()),
            size: 100,
            names: 1,
            ..Entry::default()
        };
        file.set_data(&[(10, 3)]);
        writer.entry(&file).unwrap();
        writer.data(b"abc").unwrap();
        writer.finish().unwrap()
    }

    #[test]
    fn what_was_written_is_read() {
        let bytes = sent();
        let mut reader = Reader::new(bytes.as_slice());
        let entry = reader.entry().unwrap().unwrap();
        assert_eq!(entry.data(), Ok(vec![(10, 3)]));
        let mut data = [0; 3];
        reader.data(&mut data).unwrap();
        assert_eq!(&data, b"abc");
        assert_eq!(reader.entry(), Ok(None));
    }

    #[test]
    fn what_is_cut_or_changed_is_noticed() {
        let whole = sent();
        let read = |bytes: &[u8]| {
            let mut reader = Reader::new(bytes);
            reader.entry()?;
            reader.data(&mut [0; 3])?;
            reader.entry()
        };
        assert_eq!(read(&whole), Ok(None));
        for end in 0..whole.len() {
            assert!(read(&whole[..end]).is_err(), "{end}");
            let mut changed = whole.clone();
            changed[end] ^= 1;
            assert!(read(&changed).is_err(), "{end}");
        }
        assert!(read(&[whole, vec![0]].concat()).is_err());
    }

    #[test]
    fn impossible_entries_are_refused() {
        for extents in [vec![(0, 101)], vec![(5, 5), (8, 1)], vec![(5, 0)], vec![(u64::MAX, 2)]] {
            let mut entry = Entry {
                size: 100,
                ..Entry::default()
            };
            entry.set_data(&extents);
            assert!(entry.data().unwrap_err().contains("impossible holes"), "{extents:?}");
        }
        for name in [&b".."[..], b".", b"a/b", b"a\0"] {
            let mut writer = Writer::new(Vec::new());
            let entry = Entry {
                name: Bin(name.to_vec()),
                ..Entry::default()
            };
            writer.entry(&entry).unwrap();
            let bytes = writer.finish().unwrap();
            assert!(
                Reader::new(bytes.as_slice())
                    .entry()
                    .unwrap_err()
                    .contains("is no name")
            );
        }
    }
}

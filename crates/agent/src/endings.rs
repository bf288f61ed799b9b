//! Files that a template has without their end, which differs from machine to machine: what comes last in them is
//! written when a machine begins.

use rustix::fd::OwnedFd;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::requests::Ending;

/// Write each ending, if each file is there and exactly as long as is said; otherwise nothing. Whether they are written.
pub(crate) fn write(endings: &[Ending]) -> Result<bool, Errno> {
    let mut files = Vec::with_capacity(endings.len());
    for ending in endings {
        match open(ending) {
            Ok(Some(file)) => files.push(file),
            Ok(None) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::ISDIR | Errno::NXIO) => {
                return Ok(false);
            }
            Err(error) => return Err(error),
        }
    }
    for (file, ending) in files.iter().zip(endings) {
        let mut left = ending.data.0.as_slice();
        while !left.is_empty() {
            let written = rustix::io::write(file, left)?;
            left = left.get(written..).unwrap_or_default();
        }
    }
    Ok(true)
}

fn open(ending: &Ending) -> Result<Option<OwnedFd>, Errno> {
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::open(ending.path.0.as_slice(), flags, Mode::empty())?;
    let found = rustix::fs::fstat(&file)?;
    let fits = FileType::from_raw_mode(found.st_mode) == FileType::RegularFile
        && u64::try_from(found.st_size).is_ok_and(|size| size == ending.size);
    Ok(fits.then_some(file))
}

#[cfg(test)]
mod tests {
    use hutch_wire::Bin;

    use super::write;
    use crate::requests::{Ending, Name};

    fn ending(path: &str, size: u64, data: &[u8]) -> Ending {
        Ending {
            path: Name(path.as_bytes().to_vec()),
            size,
            data: Bin(data.to_vec()),
        }
    }

    #[test]
    fn all_are_written_or_none() {
        let directory = std::env::temp_dir().join(format!("hutch-endings-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let path = |name: &str| directory.join(name).to_str().unwrap().to_owned();
        std::fs::write(path("a"), "roots").unwrap();
        std::fs::write(path("b"), "").unwrap();
        std::os::unix::fs::symlink(path("a"), path("link")).unwrap();
        let a = || ending(&path("a"), 5, b" mine");
        for other in [
            ending(&path("b"), 1, b"x"),
            ending(&path("none"), 0, b"x"),
            ending(&path("link"), 5, b"x"),
            ending(&path("a/below"), 5, b"x"),
            ending(directory.to_str().unwrap(), 0, b"x"),
        ] {
            assert_eq!(write(&[a(), other]), Ok(false));
            assert_eq!(std::fs::read_to_string(path("a")).unwrap(), "roots");
        }
        assert_eq!(write(&[a(), ending(&path("b"), 0, b"new")]), Ok(true));
        assert_eq!(std::fs::read_to_string(path("a")).unwrap(), "roots mine");
        assert_eq!(std::fs::read_to_string(path("b")).unwrap(), "new");
        assert_eq!(write(&[a()]), Ok(false));
        std::fs::remove_dir_all(&directory).unwrap();
    }
}

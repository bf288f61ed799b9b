//! Drives of a virtual machine. Each is a disk with a file system of its own, made by the host and written to by guests of one
//! project; what is mounted for programs is its directory `u`, as the root's upper directory is.
//!
//! The file systems are mounted in the initramfs, which no program of the sandbox has a path to. From there `u` is bound to where
//! the host says: a place below the sandbox's root, in whose files a former session may have left anything. No link is followed
//! on the way there, and nothing that is not a directory is mounted over.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use hutch_wire::ErrorMessage;
use rustix::fs::{CWD, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use crate::errors::bad_request;
use crate::requests::{DriveMount, nothing};
use crate::vm::{self, Disks};
use crate::work::{Input, Operation, Progress, Wants};

/// The directory of the initramfs.
pub(crate) const HIDDEN: &str = "/drives";
/// More than a host asks for.
pub(crate) const MOST: usize = 16;
const CONTENTS: &str = "u";
const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Where drives are: the directory of the initramfs, and how their disks are found, the first at this place among all.
#[derive(Debug)]
pub(crate) struct Drives {
    pub(crate) hidden: OwnedFd,
    pub(crate) disks: Disks,
    pub(crate) first: usize,
}

/// `drives.mount`, in a thread of its own: what a file system has to do first, after a guest that did not end well, takes time.
pub(crate) struct MountDrives {
    pub(crate) drives: Drives,
    pub(crate) mounts: Vec<DriveMount>,
}

impl Operation for MountDrives {
    fn wants(&self) -> Wants {
        Wants::Input
    }

    fn step(&mut self, _input: Input) -> Result<Progress, ErrorMessage> {
        for (number, mount) in self.mounts.iter().enumerate() {
            self.drives.mount(number, mount)?;
        }
        Ok(Progress::reply(nothing()))
    }
}

impl Drives {
    fn mount(&self, number: usize, wanted: &DriveMount) -> Result<(), ErrorMessage> {
        let name = format!("drive{number}");
        let failed = |failure: String| {
            let message = format!("The drive of {} can't be mounted: {failure}", shown(&wanted.path.0));
            ErrorMessage::new(500, "agent_error", &message)
        };
        let root = rustix::fs::openat(CWD, "/", DIRECTORY, Mode::empty()).map_err(|error| failed(error.to_string()))?;
        let point = mount_point(root, &wanted.path.0)?;
        let disk = vm::find_disk(self.disks, &name, self.first + number).map_err(&failed)?;
        let contents = self
            .contents(&name, &disk.to_string_lossy(), wanted)
            .map_err(|(what, error)| failed(format!("{what}: {error}")))?;
        bind(&contents, &point).map_err(|error| failed(error.to_string()))
    }

    /// Mount a drive's file system out of sight; the directory that programs see.
    fn contents(&self, name: &str, disk: &str, wanted: &DriveMount) -> Result<OwnedFd, (&'static str, Errno)> {
        let of = |what: &'static str| move |error: Errno| (what, error);
        let context = fsopen("ext4", FsOpenFlags::FSOPEN_CLOEXEC).map_err(of("ext4"))?;
        let mut attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
        fsconfig_set_string(context.as_fd(), "source", disk).map_err(of("its disk"))?;
        if wanted.read_only {
            // What a journal holds is written all the same: the disk is this machine's own copy.
            fsconfig_set_flag(context.as_fd(), "ro").map_err(of("ro"))?;
            attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
        } else {
            for option in ["discard", "noinit_itable"] {
                fsconfig_set_flag(context.as_fd(), option).map_err(of("its options"))?;
            }
        }
        fsconfig_create(context.as_fd()).map_err(of("its file system"))?;
        let mounted =
            fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(of("its file system"))?;
        // Once: a second time there is one already.
        rustix::fs::mkdirat(&self.hidden, name, Mode::from_raw_mode(0o700)).map_err(of("its place"))?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(mounted.as_fd(), "", self.hidden.as_fd(), name, flags).map_err(of("its place"))?;
        let top = rustix::fs::openat(&self.hidden, name, DIRECTORY, Mode::empty()).map_err(of("its file system"))?;
        if !wanted.read_only {
            make_contents(top.as_fd(), wanted.owner).map_err(of("its directory"))?;
        }
        rustix::fs::openat(&top, CONTENTS, DIRECTORY, Mode::empty()).map_err(of("its directory"))
    }
}

/// Have a file system have the directory, which belongs to `owner` where one is given.
fn make_contents(top: BorrowedFd<'_>, owner: Option<(u32, u32)>) -> Result<(), Errno> {
    let mode = Mode::from_raw_mode(0o755);
    let made = match rustix::fs::mkdirat(top, CONTENTS, mode) {
        Ok(()) => true,
        Err(Errno::EXIST) => false,
        Err(error) => return Err(error),
    };
    let contents = rustix::fs::openat(top, CONTENTS, DIRECTORY, Mode::empty())?;
    if let Some((uid, gid)) = owner {
        rustix::fs::fchown(&contents, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    }
    if made || owner.is_some() {
        rustix::fs::fchmod(&contents, mode)?;
        // Whoever reads a copy of it finds it.
        rustix::fs::syncfs(top)?;
    }
    Ok(())
}

fn bind(contents: &OwnedFd, point: &OwnedFd) -> Result<(), Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(contents.as_fd(), "", flags)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(tree.as_fd(), "", point.as_fd(), "", flags)
}

/// The directory `path` below `root`, made where it is missing, with those above it. No link is followed, not even one that stays
/// inside.
fn mount_point(root: OwnedFd, path: &[u8]) -> Result<OwnedFd, ErrorMessage> {
    let mut here = root;
    for part in parts(path)? {
        let mode = Mode::from_raw_mode(0o755);
        match rustix::fs::mkdirat(&here, part, mode) {
            // Whatever our umask is.
            Ok(()) => rustix::fs::chmodat(&here, part, mode, rustix::fs::AtFlags::empty()),
            Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(error),
        }
        .map_err(|error| {
            let message = format!(
                "Nothing can be mounted at {}: {} can't be made: {error}",
                shown(path),
                shown(part)
            );
            ErrorMessage::new(500, "agent_error", &message)
        })?;
        here = rustix::fs::openat(&here, part, DIRECTORY, Mode::empty()).map_err(|_| {
            let message = format!(
                "Nothing can be mounted at '{}': '{}' is no directory in the sandbox's files, and links are not followed.",
                shown(path),
                shown(part)
            );
            ErrorMessage::new(400, "invalid_mount_path", &message)
        })?;
    }
    Ok(here)
}

/// The names in an absolute path that leads down.
fn parts(path: &[u8]) -> Result<Vec<&[u8]>, ErrorMessage> {
    let parts: Vec<&[u8]> = path
        .split(|byte| *byte == b'/')
        .filter(|part| !part.is_empty())
        .collect();
    if !path.starts_with(b"/") || parts.is_empty() || parts.iter().any(|part| [&b"."[..], b".."].contains(part)) {
        return Err(bad_request(format!(
            "Invalid request: nothing can be mounted at {}",
            shown(path)
        )));
    }
    Ok(parts)
}

fn shown(name: &[u8]) -> String {
    name.escape_ascii().to_string()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::OwnedFd;
    use std::os::unix::fs::symlink;
    use std::path::{Path, PathBuf};

    use rustix::fs::{CWD, Mode};

    use super::{DIRECTORY, mount_point, parts};

    /// A directory that is gone afterwards.
    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("hutch-drives-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn root(&self) -> OwnedFd {
            rustix::fs::openat(CWD, &self.0, DIRECTORY, Mode::empty()).unwrap()
        }

        fn below(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn is_same(found: &OwnedFd, path: &Path) -> bool {
        use std::os::unix::fs::MetadataExt;
        let (found, there) = (rustix::fs::fstat(found).unwrap(), fs::metadata(path).unwrap());
        (found.st_dev, found.st_ino) == (there.dev(), there.ino())
    }

    #[test]
    fn a_path_leads_down_from_the_root() {
        assert_eq!(parts(b"/srv//data/").unwrap(), [&b"srv"[..], b"data"]);
        for path in [&b""[..], b"/", b"//", b"srv", b"/srv/../etc", b"/./srv", b".."] {
            let refused = parts(path).unwrap_err();
            assert_eq!((refused.status, refused.code.as_str()), (400, "bad_request"));
        }
    }

    #[test]
    fn a_mount_point_is_made_or_is_there() {
        let place = Place::new("made");
        for _ in 0..2 {
            let found = mount_point(place.root(), b"/srv/deep/data").unwrap();
            assert!(is_same(&found, &place.below("srv/deep/data")));
        }
    }

    #[test]
    fn what_a_former_session_left_leads_nowhere() {
        let place = Place::new("hostile");
        fs::create_dir(place.below("there")).unwrap();
        fs::write(place.below("file"), b"x").unwrap();
        symlink("there", place.below("inside")).unwrap();
        symlink(std::env::temp_dir(), place.below("outside")).unwrap();
        symlink("loop", place.below("loop")).unwrap();
        symlink("missing", place.below("dangling")).unwrap();
        for path in [
            "/inside",
            "/inside/data",
            "/outside",
            "/outside/data",
            "/file",
            "/file/data",
            "/loop",
            "/dangling",
            "/dangling/a",
        ] {
            let refused = mount_point(place.root(), path.as_bytes()).unwrap_err();
            let code = refused.code.as_str();
            assert_eq!((refused.status, code), (400, "invalid_mount_path"), "{path}");
            assert!(refused.message.contains("links are not followed"), "{path}");
        }
        assert_eq!(fs::read_dir(place.below("there")).unwrap().count(), 0);
        assert!(!place.below("missing").exists());
    }
}

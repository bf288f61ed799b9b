//! A root without places to mount on. The smallest root of a virtual machine is an image whose only file is the agent, and
//! nobody can make a directory in an image that is read-only. So a file system in memory takes the root's place, with
//! everything that the image has bound into it.

use std::fs;
use std::io;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create, fsmount, fsopen,
    move_mount, open_tree,
};

/// What every kernel can hold in memory; the second where it was built without the first.
const IN_MEMORY: [&str; 2] = ["tmpfs", "ramfs"];
/// Device nodes that programs and the agent itself take for granted: name, major and minor number.
const NODES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
    ("console", 5, 1),
];

/// Have directories of these names in the root, whatever it is.
pub(crate) fn ensure_places(names: &[&str]) -> Result<(), String> {
    if places(names).is_ok() {
        return Ok(());
    }
    replace_root().map_err(|error| format!("the root has no places to mount on, and can't be replaced: {error}"))?;
    places(names).map_err(|error| format!("the root has no places to mount on: {error}"))
}

fn places(names: &[&str]) -> io::Result<()> {
    names
        .iter()
        .try_for_each(|name| fs::create_dir_all(Path::new("/").join(name)))
}

fn replace_root() -> io::Result<()> {
    // Read before anything lies on top; the names still mean the old root, as long as this process stands in it.
    let entries: Vec<_> = fs::read_dir("/")?.collect::<io::Result<_>>()?;
    let old = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut made = Err(Errno::NODEV);
    for kind in IN_MEMORY {
        made = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC);
        if made.is_ok() {
            break;
        }
    }
    let made = made?;
    fsconfig_create(&made)?;
    let root = fsmount(&made, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    move_mount(&root, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    for entry in entries {
        let name = entry.file_name();
        if entry.file_type()?.is_symlink() {
            rustix::fs::symlinkat(fs::read_link(entry.path())?, &root, &name)?;
            continue;
        }
        if entry.file_type()?.is_dir() {
            rustix::fs::mkdirat(&root, &name, Mode::from_raw_mode(0o755))?;
        } else {
            let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
            rustix::fs::openat(&root, &name, flags, Mode::from_raw_mode(0o644))?;
        }
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
        let tree = open_tree(&old, &name, flags)?;
        move_mount(&tree, "", &root, &name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    }
    rustix::process::fchdir(&root)?;
    rustix::process::chroot(".")?;
    rustix::process::chdir("/")?;
    Ok(())
}

/// Have the usual device nodes in `/dev`, for a kernel that does not make them by itself.
pub(crate) fn ensure_devices() -> Result<(), String> {
    if Path::new("/dev/null").exists() {
        return Ok(());
    }
    for (name, major, minor) in NODES {
        let device = rustix::fs::makedev(major, minor);
        let mode = Mode::from_raw_mode(0o666);
        match rustix::fs::mknodat(CWD, format!("/dev/{name}"), FileType::CharacterDevice, mode, device) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(format!("/dev/{name} can't be made: {error}")),
        }
    }
    Ok(())
}

"""Where drives lie: file systems of their own, each bounded, beside the writable layers and in the same kind of store.

A drive is in one of two forms: a *tree*, a directory of the host, or a *disk*, a file with an ext4 file system that the host
formats while it is empty and never mounts, since guests write to it themselves. Stores know each form under a name of its own
(`name_of`). A *view* is a copy of a drive as of one moment that nobody else writes to, made for one machine and named after it,
so that it goes when the machine goes.

* `BtrfsDrives`: a subvolume each, with a quota. Copies share data with what they were made of and take milliseconds, also
  while a guest writes.
* `Ext4Drives`: a sparse image each, that of a tree mounted while somebody uses it. Copies are copies, and of a drive in use there
  are none.

A drive appears under its name at once and whole: it is made under another one first, which `open` sweeps away.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from hutch.errors import ConflictError
from hutch.host import kernel
from hutch.host.storage import MIN_LAYER_BYTES, BtrfsLayers, Ext4Layers, WritableLayers, check_room, copy_image, format_ext4
from hutch.isolation.qemu_disk import DISK, disk_size, make_disk

MIN_DRIVE_BYTES = 1024 * 1024
"""Less would not hold what a file system needs for itself."""
UNFINISHED = ".new-"
AS_DISK = ".disk"
HALF_OF_WHAT_IS_LEFT = 2
IMAGE = ".ext4"
LARGE_BLOCKS = ("-b", "4096")
"""In smaller ones, which small disks have by themselves, not every link and attribute has room."""
LOST_AND_FOUND_INODE = 11
LOST_AND_FOUND_INODE = 11
"""The first that ext4 does not keep for itself."""


def name_of(drive_id: str, *, disk: bool) -> str:
    """What a drive, or a view, is called in one of its forms."""
    return drive_id + AS_DISK if disk else drive_id


def is_disk(name: str) -> bool:
    """Whether what is called so is a disk."""
    return name.endswith(AS_DISK)


def drive_of(name: str) -> str:
    """Whose name it is."""
    return name.removesuffix(AS_DISK)


class DriveStore(Protocol):
    """Makes, shows and removes drives, by names that say their form. What it shows is a tree's directory, or a disk's file in a
    directory of its own. All methods block; all but `copy`, `view`, `blank` and `become` are idempotent."""

    copies_in_use: bool
    """Whether a drive can be copied, and seen, while a guest writes to it."""

    def open(self) -> None:
        """Make ready, also after a crash; the layers' store is open."""

    def create(self, name: str, size_bytes: int) -> None:
        """A new, empty drive; nothing happens when it is there. Raises `UnavailableError` (`disk_full`)."""

    def copy(self, source: str, name: str, size_bytes: int) -> int:
        """A new drive with what another one of the same form holds; the bytes that it has from there. Raises `ConflictError`
        (`drive_attached`) when that is in use and can't be copied."""

    def attach(self, name: str, size_bytes: int, inherited: int) -> Path:
        """A drive for the one who writes to it, bounded by its size."""

    def detach(self, name: str) -> None:
        """Nobody uses the drive any more."""

    def view(self, name: str, view: str) -> Path:
        """A new copy for reading, of the same form. That of a disk may be written to: who mounts it has a journal to replay.
        Raises `ConflictError` (`drive_attached`) as `copy` does."""

    def blank(self, view: str, size_bytes: int) -> Path:
        """A new view with nothing in it, of at most so many bytes. Raises `UnavailableError` (`disk_full`)."""

    def become(self, view: str, name: str) -> None:
        """Make a view that nobody uses a drive, which survives a power cut; of one that is there already it takes the place."""

    def remove_view(self, view: str) -> None:
        """Remove one view that nobody uses."""

    def remove_views(self, machine_id: str) -> None:
        """Remove what a machine saw."""

    def viewers(self) -> set[str]:
        """Machines that there are views of."""

    def used(self, name: str, inherited: int) -> int:
        """Bytes that a drive holds; they may lag behind by some seconds."""

    def names(self) -> set[str]:
        """Every drive there is."""

    def remove(self, name: str) -> None:
        """Remove a drive that nobody uses."""

    def close(self) -> None:
        """Let go of everything; nothing may be in use."""


def beside(layers: WritableLayers) -> DriveStore:
    """The store of drives that belongs to one of layers."""
    if isinstance(layers, BtrfsLayers):
        return BtrfsDrives(layers)
    assert isinstance(layers, Ext4Layers)
    return Ext4Drives(layers.directory.parent / "ext4-drives")


class BtrfsDrives:
    copies_in_use = True

    def __init__(self, layers: BtrfsLayers) -> None:
        self._layers = layers
        self._drives = layers.directory_for("drives")
        self._views = layers.directory_for("views")

    def open(self) -> None:
        for directory in (self._drives, self._views):
            directory.mkdir(exist_ok=True, mode=0o700)
        for entry in self._drives.glob(f"{UNFINISHED}*"):
            kernel.btrfs_delete_subvolume(self._drives, entry.name)

    def create(self, name: str, size_bytes: int) -> None:
        if (self._drives / name).exists():
            return
        check_room(self._layers.directory)
        unfinished = UNFINISHED + name
        kernel.btrfs_create_subvolume(self._drives, unfinished)
        try:
            self._begin(self._drives / unfinished, size_bytes)
        except BaseException:
            kernel.btrfs_delete_subvolume(self._drives, unfinished)
            raise
        self._finish(name, size_bytes, 0)

    def _begin(self, subvolume: Path, size_bytes: int) -> None:
        subvolume.chmod(0o755)
        if is_disk(subvolume.name):
            # What its guest is promised it finds: one that fails to write loses more than one that is told to be full.
            make_disk(subvolume / DISK, disk_size(min(size_bytes, self._free() // HALF_OF_WHAT_IS_LEFT)), *LARGE_BLOCKS)

    def copy(self, source: str, name: str, size_bytes: int) -> int:
        check_room(self._layers.directory)
        kernel.btrfs_snapshot(self._drives / source, self._drives, UNFINISHED + name)
        held = 0 if is_disk(source) else kernel.btrfs_referenced(self._drives / source)
        self._finish(name, size_bytes, held)
        return held

    def _finish(self, name: str, size_bytes: int, inherited: int) -> None:
        unfinished = self._drives / (UNFINISHED + name)
        try:
            self._limit(unfinished, size_bytes, inherited)
            self._layers.join(unfinished)
            unfinished.rename(self._drives / name)
        except BaseException:
            kernel.btrfs_delete_subvolume(self._drives, unfinished.name)
            raise

    def _limit(self, path: Path, size_bytes: int, inherited: int) -> None:
        if is_disk(path.name):
            # Its file bounds it. What a copy of it still has is counted once more when it is written again.
            size_bytes, inherited = self._room(path), 0
        kernel.btrfs_limit(path, max(MIN_DRIVE_BYTES, size_bytes - self._layers.apart(inherited)))

    def _free(self) -> int:
        free = os.statvfs(self._drives)
        return free.f_bavail * free.f_frsize

    def _room(self, path: Path) -> int:
        """What a drive may come to hold. As with layers: one guest may take half of what is left, never all of it."""
        return kernel.btrfs_referenced(path) + self._free() // HALF_OF_WHAT_IS_LEFT

    def attach(self, name: str, size_bytes: int, inherited: int) -> Path:
        path = self._drives / name
        self._limit(path, min(size_bytes, self._room(path) + self._layers.apart(inherited)), inherited)
        return _shown(path)

    def detach(self, name: str) -> None:
        pass

    def view(self, name: str, view: str) -> Path:
        kernel.btrfs_snapshot(self._drives / name, self._views, view, read_only=not is_disk(name))
        if is_disk(view):
            self._bound(self._views / view, 0)
        return _shown(self._views / view)

    def blank(self, view: str, size_bytes: int) -> Path:
        check_room(self._layers.directory)
        kernel.btrfs_create_subvolume(self._views, view)
        self._begin(self._views / view, size_bytes)
        self._bound(self._views / view, size_bytes)
        return _shown(self._views / view)

    def _bound(self, path: Path, size_bytes: int) -> None:
        self._limit(path, min(size_bytes, self._room(path)), 0)
        self._layers.join(path)

    def become(self, view: str, name: str) -> None:
        self._layers.sync()
        self.remove(name)
        (self._views / view).rename(self._drives / name)
        kernel.sync_directory(self._drives)

    def remove_view(self, view: str) -> None:
        if (self._views / view).exists():
            kernel.btrfs_delete_subvolume(self._views, view)

    def remove_views(self, machine_id: str) -> None:
        for entry in self._views.glob(f"{machine_id}-*"):
            kernel.btrfs_delete_subvolume(self._views, entry.name)

    def viewers(self) -> set[str]:
        return {machine_of(entry.name) for entry in self._views.iterdir()}

    def used(self, name: str, inherited: int) -> int:
        if is_disk(name):
            return _blocks(self._drives / name)
        return self._layers.apart(inherited) + kernel.btrfs_referenced(self._drives / name)

    def names(self) -> set[str]:
        return {entry.name for entry in self._drives.iterdir() if not entry.name.startswith(UNFINISHED)}

    def remove(self, name: str) -> None:
        if (self._drives / name).exists():
            kernel.btrfs_delete_subvolume(self._drives, name)

    def close(self) -> None:
        pass


class Ext4Drives:
    copies_in_use = False

    def __init__(self, directory: Path) -> None:
        self._drives = directory / "drives"
        self._views = directory / "views"
        self._lock = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._disks_in_use: set[str] = set()

    @contextlib.contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """Nobody mounts a drive while it is copied, and nobody copies it while it is mounted."""
        with self._lock:
            lock = self._locks.setdefault(name, threading.Lock())
        with lock:
            yield

    def _copy(self, name: str, image: Path) -> None:
        with self._alone(name):
            if name in self._disks_in_use or kernel.is_mounted(self._drives / name):
                raise ConflictError("drive_attached", "The drive is in use, and this host's store can't copy it meanwhile.")
            copy_image(_image(self._drives / name), image)

    def open(self) -> None:
        for directory in (self._drives, self._views):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for entry in self._drives.glob(f"{UNFINISHED}*"):
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def create(self, name: str, size_bytes: int) -> None:
        if _image(self._drives / name).exists():
            return
        check_room(self._drives)
        with self._unfinished(name) as unfinished:
            self._format(unfinished, size_bytes)

    @contextlib.contextmanager
    def _unfinished(self, name: str) -> Iterator[Path]:
        """What becomes a drive of this name, when nothing fails."""
        unfinished = self._drives / f"{UNFINISHED}{name}"
        _removed(unfinished)
        try:
            if is_disk(name):
                unfinished.mkdir(mode=0o700)
            yield unfinished
            _place(unfinished).rename(_place(self._drives / name))
        except BaseException:
            _removed(unfinished)
            raise

    def _format(self, path: Path, size_bytes: int) -> None:
        room = shutil.disk_usage(self._drives).free
        size = max(MIN_LAYER_BYTES, min(size_bytes, room // HALF_OF_WHAT_IS_LEFT)) // 4096 * 4096
        if is_disk(path.name):
            make_disk(_image(path), disk_size(size), *LARGE_BLOCKS)
        else:
            format_ext4(_image(path), size)

    def copy(self, source: str, name: str, size_bytes: int) -> int:
        check_room(self._drives)
        with self._unfinished(name) as unfinished:
            self._copy(source, _image(unfinished))
        return 0

    def attach(self, name: str, size_bytes: int, inherited: int) -> Path:
        with self._alone(name):
            if is_disk(name):
                self._disks_in_use.add(name)
                return _shown(self._drives / name)
            return self._mounted(self._drives / name)

    @staticmethod
    def _mounted(path: Path) -> Path:
        path.mkdir(exist_ok=True, mode=0o700)
        if not kernel.is_mounted(path):
            kernel.run(["mount", "-t", "ext4", "-o", "loop,noatime,nodev,nosuid", str(_image(path)), str(path)])
        lost_and_found = path / "lost+found"
        with contextlib.suppress(OSError):
            # What mkfs made, and not what a guest made of that name.
            if lost_and_found.lstat().st_ino == LOST_AND_FOUND_INODE:
                lost_and_found.rmdir()
        return path

    def detach(self, name: str) -> None:
        if is_disk(name):
            self._disks_in_use.discard(name)
        else:
            _unmounted(self._drives / name)

    def view(self, name: str, view: str) -> Path:
        path = self._views / view
        if is_disk(view):
            path.mkdir(mode=0o700)
        self._copy(name, _image(path))
        # Not mounted for reading only: the kernel replays what a death left in its journal.
        return _shown(path) if is_disk(view) else self._mounted(path)

    def blank(self, view: str, size_bytes: int) -> Path:
        check_room(self._drives)
        path = self._views / view
        if is_disk(view):
            path.mkdir(mode=0o700)
        self._format(path, size_bytes)
        return _shown(path) if is_disk(view) else self._mounted(path)

    def become(self, view: str, name: str) -> None:
        path = self._views / view
        if not is_disk(view):
            _unmounted(path)
        kernel.sync_file_system(self._views)
        self.remove(name)
        _place(path).rename(_place(self._drives / name))
        kernel.sync_directory(self._drives)

    def remove_view(self, view: str) -> None:
        _removed(self._views / view)

    def remove_views(self, machine_id: str) -> None:
        for name in {entry.name.removesuffix(IMAGE) for entry in self._views.glob(f"{machine_id}-*")}:
            self.remove_view(name)

    def viewers(self) -> set[str]:
        return {machine_of(entry.name) for entry in self._views.iterdir()}

    def used(self, name: str, inherited: int) -> int:
        return _image(self._drives / name).stat().st_blocks * 512

    def names(self) -> set[str]:
        found = {entry.stem for entry in self._drives.glob(f"*{IMAGE}")} | {
            entry.name for entry in self._drives.glob(f"*{AS_DISK}")
        }
        return {name for name in found if not name.startswith(UNFINISHED)}

    def remove(self, name: str) -> None:
        self.detach(name)
        _removed(self._drives / name)
        self._locks.pop(name, None)

    def close(self) -> None:
        if not self._drives.is_dir():
            return
        for directory in (self._drives, self._views):
            for path in directory.iterdir():
                with contextlib.suppress(OSError):
                    if path.is_dir() and not is_disk(path.name):
                        _unmounted(path)


def machine_of(view: str) -> str:
    """The machine that a view was made for."""
    return view.rpartition("-")[0]


def _shown(path: Path) -> Path:
    """What a drive of this place is to whoever uses it."""
    return path / DISK if is_disk(path.name) else path


def _blocks(path: Path) -> int:
    return _shown(path).stat().st_blocks * 512


def _image(path: Path) -> Path:
    """The file that has the file system of a drive, or view, in `Ext4Drives`."""
    return path / DISK if is_disk(path.name) else path.with_name(path.name + IMAGE)


def _place(path: Path) -> Path:
    """What is there of one: a disk's directory, or a tree's image."""
    return path if is_disk(path.name) else _image(path)


def _removed(path: Path) -> None:
    if is_disk(path.name):
        shutil.rmtree(path, ignore_errors=True)
    else:
        _unmounted(path)
        _image(path).unlink(missing_ok=True)


def _unmounted(path: Path) -> None:
    if path.exists():
        kernel.unmount(path)
        path.rmdir()

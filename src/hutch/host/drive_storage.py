"""Where drives lie: file systems of their own, each bounded, beside the writable layers and in the same kind of store.

A drive is a directory that one guest may write to. A *view* is a copy of it as of one moment that nobody writes to, made for one
machine and named after it, so that it goes when the machine goes.

* `BtrfsDrives`: a subvolume each, with a quota. Copies share data with what they were made of and take milliseconds, also
  while a guest writes.
* `Ext4Drives`: a sparse image each, mounted while somebody uses it. Copies are copies, and of a drive in use there are none.

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

MIN_DRIVE_BYTES = 1024 * 1024
"""Less would not hold what a file system needs for itself."""
UNFINISHED = ".new-"
HALF_OF_WHAT_IS_LEFT = 2
LOST_AND_FOUND_INODE = 11
"""The first that ext4 does not keep for itself."""


class DriveStore(Protocol):
    """Makes, shows and removes drives. All methods block; all but `create`, `copy` and `view` are idempotent."""

    copies_in_use: bool
    """Whether a drive can be copied, and seen, while a guest writes to it."""

    def open(self) -> None:
        """Make ready, also after a crash; the layers' store is open."""

    def create(self, name: str, size_bytes: int) -> None:
        """A new, empty drive; nothing happens when it is there. Raises `UnavailableError` (`disk_full`)."""

    def copy(self, source: str, name: str, size_bytes: int) -> int:
        """A new drive with what another one holds; the bytes that it has from there. Raises `ConflictError` (`drive_attached`)
        when that is in use and can't be copied."""

    def attach(self, name: str, size_bytes: int, inherited: int) -> Path:
        """The directory of a drive for the one who writes to it, bounded by its size."""

    def detach(self, name: str) -> None:
        """Nobody uses the drive any more."""

    def view(self, name: str, view: str) -> Path:
        """The directory of a new copy for reading. Raises `ConflictError` (`drive_attached`) as `copy` does."""

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
        (self._drives / unfinished).chmod(0o755)
        self._finish(name, size_bytes, 0)

    def copy(self, source: str, name: str, size_bytes: int) -> int:
        check_room(self._layers.directory)
        kernel.btrfs_snapshot(self._drives / source, self._drives, UNFINISHED + name)
        held = kernel.btrfs_referenced(self._drives / source)
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
        kernel.btrfs_limit(path, max(MIN_DRIVE_BYTES, size_bytes - self._layers.apart(inherited)))

    def attach(self, name: str, size_bytes: int, inherited: int) -> Path:
        path = self._drives / name
        # As with layers: one guest may take half of what is left, never all of it.
        free = os.statvfs(path)
        room = kernel.btrfs_referenced(path) + free.f_bavail * free.f_frsize // HALF_OF_WHAT_IS_LEFT
        self._limit(path, min(size_bytes, room + self._layers.apart(inherited)), inherited)
        return path

    def detach(self, name: str) -> None:
        pass

    def view(self, name: str, view: str) -> Path:
        kernel.btrfs_snapshot(self._drives / name, self._views, view, read_only=True)
        return self._views / view

    def remove_views(self, machine_id: str) -> None:
        for entry in self._views.glob(f"{machine_id}-*"):
            kernel.btrfs_delete_subvolume(self._views, entry.name)

    def viewers(self) -> set[str]:
        return {machine_of(entry.name) for entry in self._views.iterdir()}

    def used(self, name: str, inherited: int) -> int:
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

    @contextlib.contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """Nobody mounts a drive while it is copied, and nobody copies it while it is mounted."""
        with self._lock:
            lock = self._locks.setdefault(name, threading.Lock())
        with lock:
            yield

    def _copy(self, name: str, image: Path) -> None:
        with self._alone(name):
            if kernel.is_mounted(self._drives / name):
                raise ConflictError("drive_attached", "The drive is in use, and this host's store can't copy it meanwhile.")
            copy_image(self._image(name), image)

    def open(self) -> None:
        for directory in (self._drives, self._views):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for entry in self._drives.glob(f"{UNFINISHED}*"):
            entry.unlink()

    def create(self, name: str, size_bytes: int) -> None:
        image = self._image(name)
        if image.exists():
            return
        check_room(self._drives)
        room = shutil.disk_usage(self._drives).free
        unfinished = self._drives / f"{UNFINISHED}{name}"
        unfinished.unlink(missing_ok=True)
        try:
            format_ext4(unfinished, max(MIN_LAYER_BYTES, min(size_bytes, room // HALF_OF_WHAT_IS_LEFT)) // 4096 * 4096)
            unfinished.rename(image)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise

    def copy(self, source: str, name: str, size_bytes: int) -> int:
        check_room(self._drives)
        unfinished = self._drives / f"{UNFINISHED}{name}"
        try:
            self._copy(source, unfinished)
            unfinished.rename(self._image(name))
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        return 0

    def attach(self, name: str, size_bytes: int, inherited: int) -> Path:
        with self._alone(name):
            return self._mounted(self._image(name), self._drives / name)

    @staticmethod
    def _mounted(image: Path, path: Path) -> Path:
        path.mkdir(exist_ok=True, mode=0o700)
        if not kernel.is_mounted(path):
            kernel.run(["mount", "-t", "ext4", "-o", "loop,noatime,nodev,nosuid", str(image), str(path)])
        lost_and_found = path / "lost+found"
        with contextlib.suppress(OSError):
            # What mkfs made, and not what a guest made of that name.
            if lost_and_found.lstat().st_ino == LOST_AND_FOUND_INODE:
                lost_and_found.rmdir()
        return path

    def detach(self, name: str) -> None:
        _unmounted(self._drives / name)

    def view(self, name: str, view: str) -> Path:
        image = self._views / f"{view}.ext4"
        self._copy(name, image)
        # Not mounted for reading only: the kernel replays what a death left in its journal.
        return self._mounted(image, self._views / view)

    def remove_views(self, machine_id: str) -> None:
        for image in self._views.glob(f"{machine_id}-*.ext4"):
            _unmounted(image.with_suffix(""))
            image.unlink()

    def viewers(self) -> set[str]:
        return {machine_of(entry.name) for entry in self._views.iterdir()}

    def used(self, name: str, inherited: int) -> int:
        return self._image(name).stat().st_blocks * 512

    def _image(self, name: str) -> Path:
        return self._drives / f"{name}.ext4"

    def names(self) -> set[str]:
        return {entry.stem for entry in self._drives.glob("*.ext4")}

    def remove(self, name: str) -> None:
        self.detach(name)
        self._image(name).unlink(missing_ok=True)
        self._locks.pop(name, None)

    def close(self) -> None:
        if not self._drives.is_dir():
            return
        for directory in (self._drives, self._views):
            for path in directory.iterdir():
                with contextlib.suppress(OSError):
                    if path.is_dir():
                        _unmounted(path)


def machine_of(view: str) -> str:
    """The machine that a view was made for."""
    return view.partition("-")[0]


def _unmounted(path: Path) -> None:
    if path.exists():
        kernel.unmount(path)
        path.rmdir()

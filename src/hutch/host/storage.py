"""Writable layers: where a sandbox's own bytes lie, each bounded, none able to fill the host.

A layer is a directory with `u` (the overlay's upper directory) and `w` (its work directory). Two stores make them:

* `BtrfsLayers`, used where the kernel has btrfs: one file system in a sparse image below the data directory, a subvolume
  with a quota per layer. Making one costs milliseconds, and live snapshots are possible.
* `Ext4Layers`: a sparse ext4 image per layer.

Beyond its bound a guest's write fails with EDQUOT or ENOSPC. The images are sparse, so a store also refuses new layers
while the data directory's file system is nearly full.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Protocol

from hutch.errors import UnavailableError
from hutch.host import kernel

MIN_FREE_BYTES = 512 * 1024 * 1024
MIN_LAYER_BYTES = 16 * 1024 * 1024
# btrfs itself refuses to be smaller.
MIN_STORE_BYTES = 256 * 1024 * 1024
STORE_SHARE = 0.85


class WritableLayers(Protocol):
    """Makes and removes writable layers. All methods block."""

    kind: str

    def open(self) -> None:
        """Make ready; idempotent, also after a crash."""

    def create(self, name: str, size_bytes: int) -> Path:
        """A new layer of at most `size_bytes`. Raises `UnavailableError` (`disk_full`)."""

    def path(self, name: str) -> Path:
        """The directory of a layer."""

    def remove(self, name: str) -> None:
        """Remove a layer; nothing happens when there is none."""

    def names(self) -> set[str]:
        """Every layer there is."""

    def close(self) -> None:
        """Unmount; layers must not be in use."""


def choose(directory: Path) -> WritableLayers:
    """The best store that this machine can run: the one that is there already, else btrfs, else ext4."""
    btrfs, ext4 = BtrfsLayers(directory / "btrfs"), Ext4Layers(directory / "ext4")
    if ext4.directory.exists() and not btrfs.directory.exists():
        return ext4
    kernel_has = "btrfs" in Path("/proc/filesystems").read_text().split() or shutil.which("modprobe") is not None
    if kernel_has and shutil.which("mkfs.btrfs") is not None:
        try:
            btrfs.open()
        except OSError:
            if btrfs.image.exists() and btrfs.complete:
                raise
            btrfs.discard()
        else:
            return btrfs
    return ext4


class BtrfsLayers:
    kind = "btrfs"

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.image = directory / "layers.btrfs"
        self._ready_mark = directory / "ready"
        self._mount = directory / "mnt"
        self._opened = False

    @property
    def complete(self) -> bool:
        return self._ready_mark.exists()

    def open(self) -> None:
        if self._opened:
            return
        self._mount.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not kernel.is_mounted(self._mount):
            if not self.complete:
                self._format()
            kernel.run(["mount", "-t", "btrfs", "-o", "loop,noatime,discard=async", str(self.image), str(self._mount)])
        if not self.complete:
            kernel.btrfs_enable_quota(self._mount)
            self._ready_mark.touch()
        self._opened = True

    def _format(self) -> None:
        room = shutil.disk_usage(self.directory).free
        size = int(room * STORE_SHARE) // 4096 * 4096
        if size < MIN_STORE_BYTES:
            raise OSError(f"{self.directory} has {room} bytes free; at least {MIN_STORE_BYTES} are needed for writable layers.")
        self.image.unlink(missing_ok=True)
        with self.image.open("xb") as file:
            file.truncate(size)
        # Metadata is not doubled: the layers live as long as their sandboxes.
        kernel.run(["mkfs.btrfs", "-q", "-m", "single", "-d", "single", "--nodiscard", str(self.image)])

    def discard(self) -> None:
        """Remove a store that could not be made."""
        kernel.unmount(self._mount)
        shutil.rmtree(self.directory, ignore_errors=True)

    def create(self, name: str, size_bytes: int) -> Path:
        check_room(self.directory)
        free = os.statvfs(self._mount)
        room = free.f_bavail * free.f_frsize
        kernel.btrfs_create_subvolume(self._mount, name)
        path = self._mount / name
        try:
            # One sandbox may take half of what is left, never all of it.
            kernel.btrfs_limit(path, max(MIN_LAYER_BYTES, min(size_bytes, room // 2)))
            make_directories(path)
        except BaseException:
            self.remove(name)
            raise
        return path

    def path(self, name: str) -> Path:
        return self._mount / name

    def remove(self, name: str) -> None:
        if (self._mount / name).exists():
            kernel.btrfs_delete_subvolume(self._mount, name)

    def names(self) -> set[str]:
        return {entry.name for entry in self._mount.iterdir() if entry.is_dir()}

    def close(self) -> None:
        kernel.unmount(self._mount)
        self._opened = False


class Ext4Layers:
    kind = "ext4"

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def open(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    def create(self, name: str, size_bytes: int) -> Path:
        check_room(self.directory)
        room = shutil.disk_usage(self.directory).free
        image, path = self._image(name), self.path(name)
        try:
            with image.open("xb") as file:
                file.truncate(max(MIN_LAYER_BYTES, min(size_bytes, room // 2)) // 4096 * 4096)
            # No journal: a layer does not outlive a crash of the machine. Lazy tables: formatting writes almost nothing.
            options = "lazy_itable_init=1,nodiscard,root_owner=0:0"
            kernel.run(["mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-m", "0", "-i", "16384", "-E", options, str(image)])
            path.mkdir(mode=0o700)
            kernel.run(["mount", "-t", "ext4", "-o", "loop,noatime", str(image), str(path)])
            make_directories(path)
        except BaseException:
            self.remove(name)
            raise
        return path

    def path(self, name: str) -> Path:
        return self.directory / name

    def remove(self, name: str) -> None:
        path = self.path(name)
        if path.exists():
            kernel.unmount(path)
            path.rmdir()
        self._image(name).unlink(missing_ok=True)

    def _image(self, name: str) -> Path:
        return self.directory / f"{name}.ext4"

    def names(self) -> set[str]:
        return {entry.name.removesuffix(".ext4") for entry in self.directory.iterdir()}

    def close(self) -> None:
        for name in self.names():
            with contextlib.suppress(OSError):
                self.remove(name)


def check_room(directory: Path) -> None:
    """Raises `UnavailableError` when the data directory's file system is nearly full."""
    free = shutil.disk_usage(directory).free
    if free < MIN_FREE_BYTES:
        raise UnavailableError(
            "disk_full", f"The host has {free} bytes of disk left; new sandboxes need {MIN_FREE_BYTES}.", retry_after_s=30
        )


def make_directories(layer: Path) -> None:
    """`u` and a fresh `w`: the kernel refuses a work directory that was mounted `volatile` before."""
    work = layer / "w"
    shutil.rmtree(work, ignore_errors=True)
    upper = layer / "u"
    if not upper.exists():
        upper.mkdir()
        # The guest's root directory has the mode of this one, whatever our umask is.
        upper.chmod(0o755)
    work.mkdir(mode=0o700)

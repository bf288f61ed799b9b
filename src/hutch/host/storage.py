"""Writable layers: where a sandbox's own bytes lie, each bounded, none able to fill the host; and the snapshots made of them.

A layer is a directory with `u` (the overlay's upper directory) and `w` (its work directory). Two stores make them:

* `BtrfsLayers`, used where the kernel has btrfs: one file system in a sparse image below the data directory, a subvolume
  with a quota per layer. Making one costs milliseconds, also from a snapshot, and live snapshots are possible.
* `Ext4Layers`: a sparse ext4 image per layer, which a layer from a snapshot begins as a copy of.

A snapshot is a layer that nobody writes to any more, under a name of its own. Sealing renames: it takes the same time for a byte
and for a terabyte. A layer that begins with a snapshot begins with all that was ever written over the image, so that
layers do not pile up, and a snapshot can go without regard to those that came from it.

Beyond its bound a guest's write fails with EDQUOT or ENOSPC. The images are sparse, and a file system whose image finds no room
is lost, so a store refuses new layers while the data directory's file system is nearly full, and all layers together are
bounded by what is free there (`bound`; enforced by the kernel, so that a fast writer can't outrun us).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hutch.errors import UnavailableError
from hutch.host import kernel

MIN_FREE_BYTES = 512 * 1024 * 1024
MIN_LAYER_BYTES = 16 * 1024 * 1024
# btrfs itself refuses to be smaller.
MIN_STORE_BYTES = 256 * 1024 * 1024
STORE_SHARE = 0.85
BOUND_STEP_BYTES = 16 * 1024 * 1024
COPY_TIMEOUT_S = SCRUB_TIMEOUT_S = 600.0
TMP_MARK = ".hutch"
NO_LAYERS = frozenset({"sealed", "drives", "views"})
"""What lies beside the layers in their file system."""
UPPER = "u"
"""The directory of a layer that holds what a sandbox wrote."""


@dataclass(frozen=True, slots=True)
class Source:
    """A snapshot that a layer begins with, and its size."""

    snapshot: str
    size_bytes: int


class WritableLayers(Protocol):
    """Makes and removes writable layers. All methods block."""

    kind: str
    seals_in_use: bool
    """Whether a layer can be sealed while it is still mounted, by nobody who writes."""
    copies_in_use: bool
    """Whether `copy` works."""

    def open(self) -> None:
        """Make ready; idempotent, also after a crash."""

    def create(self, name: str, size_bytes: int, source: Source | None = None) -> Path:
        """A new layer of at most `size_bytes`, empty or with what a snapshot holds. Raises `UnavailableError` (`disk_full`) and
        `FileNotFoundError` when there is no such snapshot."""

    def path(self, name: str) -> Path:
        """The directory of a layer."""

    def remove(self, name: str) -> None:
        """Remove a layer; nothing happens when there is none."""

    def names(self) -> set[str]:
        """Every layer there is."""

    def seal(self, name: str, snapshot: str) -> None:
        """Make a layer that nobody uses a snapshot. Idempotent. Raises `FileNotFoundError` when there is neither."""

    def copy(self, name: str, snapshot: str, inherited: int) -> int:
        """Make a snapshot of what a layer in use holds now, whose source had `inherited` bytes; its size. Raises
        `NotImplementedError` where that can't be done."""

    def size(self, snapshot: str, inherited: int) -> int:
        """Bytes of a sealed layer, whose source had `inherited` bytes; they may lag behind until `sync`."""

    def blocks(self, snapshot: str) -> int:
        """Bytes that the files of a sealed layer which is a disk hold, whoever wrote them: its guest writes blocks again, which
        `size` would count twice."""

    def held(self, name: str) -> int:
        """Bytes of a layer in use, as of its file system's last commit; 0 when there is none. Cheap enough to be asked for every
        few seconds."""

    def room(self, name: str) -> int:
        """Bytes that may be written to a new layer: a disk in it is not to find out by failing."""

    def bound(self) -> None:
        """Bound what all layers may grow by as free space is now; to be called every few seconds."""

    def sync(self) -> None:
        """Have everything survive a power cut."""

    def snapshots(self) -> set[str]:
        """Every snapshot there is."""

    def holds(self, snapshot: str) -> bool:
        """Whether there is such a snapshot."""

    def reading(self, snapshot: str) -> AbstractContextManager[Path]:
        """A snapshot's tree, to be read and not changed. Raises `FileNotFoundError` when there is none."""

    def remove_snapshot(self, snapshot: str) -> None:
        """Remove a snapshot; nothing happens when there is none."""

    def scrub(self) -> None:
        """Have the store's files hold nothing of layers, snapshots and drives that were removed. May take minutes."""

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
    seals_in_use = copies_in_use = True

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.image = directory / "layers.btrfs"
        self._ready_mark = directory / "ready"
        self._mount = directory / "mnt"
        self._sealed = self.directory_for("sealed")
        self._opened = self._simple_quotas = False
        self._bound = 0
        self._groups = Path()
        self._held: dict[str, Path] = {}

    def directory_for(self, purpose: str) -> Path:
        """A directory for subvolumes that are no layers."""
        assert purpose in NO_LAYERS
        return self._mount / purpose

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
        self._sealed.mkdir(exist_ok=True, mode=0o700)
        self._groups = kernel.btrfs_groups(self._mount)
        self._simple_quotas = kernel.btrfs_has_simple_quotas(self._groups)
        if self._simple_quotas:
            kernel.btrfs_make_group(self._mount)
            # Those of releases that had no such group.
            for name in sorted(NO_LAYERS):
                (self._mount / name).mkdir(exist_ok=True, mode=0o700)
            for directory in (self._mount, *(self._mount / name for name in NO_LAYERS)):
                for entry in directory.iterdir():
                    if entry.name not in NO_LAYERS:
                        kernel.btrfs_join(entry)
            self.bound()
        self._opened = True

    def _format(self) -> None:
        room = shutil.disk_usage(self.directory).free
        size = int(room * STORE_SHARE) // 4096 * 4096
        if size < MIN_STORE_BYTES:
            raise OSError(f"{self.directory} has {room} bytes free; at least {MIN_STORE_BYTES} are needed for writable layers.")
        self.image.unlink(missing_ok=True)
        with self.image.open("xb") as file:
            file.truncate(size)
        # Metadata is not doubled: both copies would lie in the same image.
        kernel.run(["mkfs.btrfs", "-q", "-m", "single", "-d", "single", "--nodiscard", str(self.image)])

    def discard(self) -> None:
        """Remove a store that could not be made."""
        kernel.unmount(self._mount)
        shutil.rmtree(self.directory, ignore_errors=True)

    def create(self, name: str, size_bytes: int, source: Source | None = None) -> Path:
        try:
            check_room(self.directory)
        except UnavailableError:
            # Others filled the disk since the bound was set: those that run must not find out by writing.
            self.bound()
            raise
        free = os.statvfs(self._mount)
        room = free.f_bavail * free.f_frsize
        path, inherited = self._mount / name, 0
        if source is None:
            kernel.btrfs_create_subvolume(self._mount, name)
        else:
            kernel.btrfs_snapshot(self._sealed / source.snapshot, self._mount, name)
            inherited = source.size_bytes
        try:
            # One sandbox may take half of what is left, never all of it.
            limit = min(size_bytes - self.apart(inherited), room // 2)
            kernel.btrfs_limit(path, max(MIN_LAYER_BYTES, limit))
            self.join(path)
            make_directories(path)
        except BaseException:
            self.remove(name)
            raise
        return path

    def join(self, subvolume: Path) -> None:
        """Have what is written to a subvolume count towards the bound of all."""
        if self._simple_quotas:
            kernel.btrfs_join(subvolume)

    def path(self, name: str) -> Path:
        return self._mount / name

    def remove(self, name: str) -> None:
        self._held.pop(name, None)
        if (self._mount / name).exists():
            kernel.btrfs_delete_subvolume(self._mount, name)

    def names(self) -> set[str]:
        return {entry.name for entry in self._mount.iterdir() if entry.is_dir()} - NO_LAYERS

    def seal(self, name: str, snapshot: str) -> None:
        self._held.pop(name, None)
        if not (self._sealed / snapshot).exists():
            (self._mount / name).rename(self._sealed / snapshot)

    def copy(self, name: str, snapshot: str, inherited: int) -> int:
        # Which commits, so that the layer's own size is that of the moment.
        kernel.btrfs_snapshot(self._mount / name, self._sealed, snapshot, read_only=True)
        return self.apart(inherited) + kernel.btrfs_referenced(self._mount / name)

    def size(self, snapshot: str, inherited: int) -> int:
        return self.apart(inherited) + kernel.btrfs_referenced(self._sealed / snapshot)

    def blocks(self, snapshot: str) -> int:
        return sum(file.stat().st_blocks * 512 for file in (self._sealed / snapshot).iterdir() if file.is_file())

    def held(self, name: str) -> int:
        # Its own: what it shares with the snapshot that it began with is held by that.
        own = "referenced" if self._simple_quotas else "exclusive"
        try:
            if name not in self._held:
                self._held[name] = self._groups / f"0_{kernel.btrfs_identifier(self._mount / name)}" / own
            return max(0, int(self._held[name].read_text()))
        except OSError:
            return 0

    def room(self, name: str) -> int:
        group = self._groups / f"0_{kernel.btrfs_identifier(self._mount / name)}"
        return int((group / "max_referenced").read_text()) - int((group / "referenced").read_text())

    def apart(self, inherited: int) -> int:
        """What of it a layer's own size does not have: simple quotas count a byte where it was first written."""
        return inherited if self._simple_quotas else 0

    def bound(self) -> None:
        if not self._simple_quotas:
            return
        used = os.statvfs(self._mount)
        held = (used.f_blocks - used.f_bfree) * used.f_frsize
        allocated = self.image.stat().st_blocks * 512
        # Blocks of the image that are free inside it are room too.
        room = max(0, shutil.disk_usage(self.directory).free - MIN_FREE_BYTES)
        limit = max(held, allocated) + room
        if abs(limit - self._bound) > BOUND_STEP_BYTES or limit < self._bound:
            kernel.btrfs_limit_all(self._mount, limit)
            self._bound = limit

    def sync(self) -> None:
        kernel.sync_file_system(self._mount)

    def snapshots(self) -> set[str]:
        return {entry.name for entry in self._sealed.iterdir()}

    def holds(self, snapshot: str) -> bool:
        return (self._sealed / snapshot).exists()

    @contextlib.contextmanager
    def reading(self, snapshot: str) -> Iterator[Path]:
        if not self.holds(snapshot):
            raise FileNotFoundError(f"there is no snapshot {snapshot}")
        yield self._sealed / snapshot / UPPER

    def remove_snapshot(self, snapshot: str) -> None:
        if (self._sealed / snapshot).exists():
            kernel.btrfs_delete_subvolume(self._sealed, snapshot)

    def scrub(self) -> None:
        # A removed subvolume is taken apart behind the call, and its blocks are free only in the transaction after that.
        # This wakes up who does that; it looks for itself only every half minute.
        kernel.run(["btrfs", "filesystem", "sync", str(self._mount)])
        kernel.run(["btrfs", "subvolume", "sync", str(self._mount)], timeout_s=SCRUB_TIMEOUT_S)
        kernel.sync_file_system(self._mount)
        kernel.run(["fstrim", str(self._mount)], timeout_s=SCRUB_TIMEOUT_S)

    def close(self) -> None:
        kernel.unmount(self._mount)
        self._opened = False


class Ext4Layers:
    kind = "ext4"
    seals_in_use = copies_in_use = False

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._sealed = directory / "sealed"
        self._reading = directory.with_name(f"{directory.name}-reading")

    def open(self) -> None:
        self._sealed.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._end_reading()
        self._reading.mkdir(mode=0o700)

    def create(self, name: str, size_bytes: int, source: Source | None = None) -> Path:
        check_room(self.directory)
        room = shutil.disk_usage(self.directory).free
        image, path = self._image(name), self.path(name)
        try:
            if source is None:
                format_ext4(image, max(MIN_LAYER_BYTES, min(size_bytes, room // 2)) // 4096 * 4096)
            else:
                self._copy(self._sealed / source.snapshot, image)
            path.mkdir(mode=0o700)
            kernel.run(["mount", "-t", "ext4", "-o", "loop,noatime", str(image), str(path)])
            make_directories(path)
        except BaseException:
            self.remove(name)
            raise
        return path

    @staticmethod
    def _copy(snapshot: Path, image: Path) -> None:
        if not snapshot.exists():
            raise FileNotFoundError(f"there is no snapshot {snapshot.name}")
        copy_image(snapshot, image)

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
        return {entry.name.removesuffix(".ext4") for entry in self.directory.iterdir()} - {self._sealed.name}

    def seal(self, name: str, snapshot: str) -> None:
        sealed, path = self._sealed / snapshot, self.path(name)
        if path.exists():
            kernel.unmount(path)
            path.rmdir()
        if not sealed.exists():
            self._image(name).rename(sealed)

    def copy(self, name: str, snapshot: str, inherited: int) -> int:
        raise NotImplementedError(f"{name} can't be copied to {snapshot} while it is in use")

    def size(self, snapshot: str, inherited: int) -> int:
        return self.blocks(snapshot)

    def blocks(self, snapshot: str) -> int:
        return (self._sealed / snapshot).stat().st_blocks * 512

    def held(self, name: str) -> int:
        path = self.path(name)
        try:
            if not os.path.ismount(path):
                return 0
            used = os.statvfs(path)
        except OSError:
            return 0
        return (used.f_blocks - used.f_bfree) * used.f_frsize

    def room(self, name: str) -> int:
        used = os.statvfs(self.path(name))
        return used.f_bavail * used.f_frsize

    def bound(self) -> None:
        """Each image has a size of its own, of which one sandbox was given at most half of what was free."""

    def sync(self) -> None:
        kernel.sync_file_system(self._sealed)

    def snapshots(self) -> set[str]:
        return {entry.name for entry in self._sealed.iterdir()}

    def holds(self, snapshot: str) -> bool:
        return (self._sealed / snapshot).exists()

    @contextlib.contextmanager
    def reading(self, snapshot: str) -> Iterator[Path]:
        if not self.holds(snapshot):
            raise FileNotFoundError(f"there is no snapshot {snapshot}")
        # Readers may be several at once.
        point = Path(tempfile.mkdtemp(dir=self._reading))
        try:
            # Without `noload`: where a power cut left something to replay, an error is better than what was before that.
            kernel.run(["mount", "-t", "ext4", "-o", "loop,ro,noatime", str(self._sealed / snapshot), str(point)])
            yield point / UPPER
        finally:
            kernel.unmount(point)
            point.rmdir()

    def remove_snapshot(self, snapshot: str) -> None:
        (self._sealed / snapshot).unlink(missing_ok=True)

    def scrub(self) -> None:
        """What was removed was a file of its own."""

    def close(self) -> None:
        self._end_reading()
        for name in self.names():
            with contextlib.suppress(OSError):
                self.remove(name)

    def _end_reading(self) -> None:
        """What a reader left that died."""
        for point in kernel.mounts_below(self._reading):
            kernel.unmount(point)
        shutil.rmtree(self._reading, ignore_errors=True)


def format_ext4(image: Path, size_bytes: int) -> None:
    """A new image with an empty file system."""
    with image.open("xb") as file:
        file.truncate(size_bytes)
    # Lazy tables: formatting writes almost nothing.
    options = "lazy_itable_init=1,nodiscard,root_owner=0:0"
    kernel.run(["mkfs.ext4", "-q", "-F", "-m", "0", "-i", "16384", "-J", "size=4", "-E", options, str(image)])


def copy_image(source: Path, image: Path) -> None:
    """A copy of an image that nobody writes to, with its holes."""
    kernel.run(["cp", "--sparse=always", "--reflink=auto", str(source), str(image)], timeout_s=COPY_TIMEOUT_S)


def check_room(directory: Path, more_bytes: int = 0) -> None:
    """Raises `UnavailableError` when the data directory's file system is nearly full, or would be with so much more in it."""
    free = shutil.disk_usage(directory).free
    if free < MIN_FREE_BYTES + more_bytes:
        raise UnavailableError(
            "disk_full", f"The host has {free} bytes of disk left; this needs {MIN_FREE_BYTES + more_bytes}.", retry_after_s=30
        )


def make_directories(layer: Path) -> None:
    """`u` and a fresh `w`: the kernel refuses a work directory that was mounted `volatile` before."""
    work = layer / "w"
    shutil.rmtree(work, ignore_errors=True)
    upper = layer / UPPER
    if not upper.exists():
        upper.mkdir()
        # The guest's root directory has the mode of this one, whatever our umask is.
        upper.chmod(0o755)
    work.mkdir(mode=0o700)
    _keep_tmp(upper)


def _keep_tmp(upper: Path) -> None:
    """Have something in the guest's `/tmp`: over an empty one runsc mounts memory of its own, which no snapshot has and no quota
    bounds. A guest may have made anything of that name; only a directory is touched, and nothing is followed."""
    root = os.open(upper, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir("tmp", dir_fd=root)
            os.chmod("tmp", 0o1777, dir_fd=root)  # noqa: S103 - as every /tmp
        try:
            tmp = os.open("tmp", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root)
        except OSError:
            return
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with contextlib.suppress(FileExistsError):
                os.close(os.open(TMP_MARK, flags, 0o444, dir_fd=tmp))
        finally:
            os.close(tmp)
    finally:
        os.close(root)

"""The directory that one Firecracker sees as its root, and the command that shuts it in there: Firecracker's own jailer.

    <machine>/jail/<program>/<machine id>/root      with a jailer, as it wants it
    <machine>/root                                  without one: only for `hutch debug`, with the rights of whoever calls

Files are put there by mounts: an image is shared by all machines, whatever file system it is on. What Firecracker writes, it may
also replace by links, so nothing in there is opened by a path that follows them. Sockets are in the channel's directory, which is
mounted as `v`: it is the host's and sticky, so Firecracker can add names to it and not change those of others.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from hutch.host import kernel
from hutch.host.cgroups import Cgroups
from hutch.host.channel import SOCKET_NAME
from hutch.isolation.firecracker_binary import NotUsable
from hutch.isolation.firecracker_config import API, CHANNEL, PORT, VSOCK

FIRST_UID = 0x5000_0000
"""Users that no system has; a machine's is this and 28 bits of its id."""
COPY_TIMEOUT_S = 600.0
OPEN_FILES = 1024
FILE_SLACK_BYTES = 64 * 1024 * 1024
_MS_REMOUNT = 32
_READ_BY_OTHERS, _WRITTEN_BY_OTHERS, _STICKY = 0o004, 0o022, 0o1000


@dataclass(frozen=True, slots=True)
class Placed:
    """A file of the host that a machine has, by its name there. Firecracker may only write to it when it is `writable`."""

    name: str
    source: Path
    writable: bool = False


@dataclass(frozen=True, slots=True)
class Jail:
    """Where one machine's Firecracker lives. `directory` is the machine's own, which only root may enter."""

    directory: Path
    machine_id: str
    binary: Path
    jailer: Path | None

    @property
    def uid(self) -> int:
        """The machine's own user, and group."""
        if self.jailer is None:
            return os.geteuid()
        return FIRST_UID + int(hashlib.sha256(self.machine_id.encode()).hexdigest()[:7], 16)

    @property
    def base(self) -> Path:
        return self.directory / "jail"

    @property
    def root(self) -> Path:
        """What Firecracker sees as `/`, or, without a jailer, works in."""
        return self.directory / "root" if self.jailer is None else self.base / self.binary.name / self.machine_id / "root"

    @property
    def pid_file(self) -> Path:
        """Where the jailer writes Firecracker's process id."""
        return self.root / f"{self.binary.name}.pid"

    def prepare(self, channel: Path, files: tuple[Placed, ...]) -> None:
        """Make the directory, with everything that Firecracker needs from the host. Raises `OSError`."""
        if self.jailer is not None:
            require_safe(self.directory)
        self.root.mkdir(parents=True, mode=0o700)
        link = f"{Path(VSOCK).name}_{PORT}"
        for name in (link, Path(VSOCK).name, Path(API).name):
            # A predecessor's: Firecracker takes no path that exists.
            (channel / name).unlink(missing_ok=True)
        (channel / link).symlink_to(SOCKET_NAME)
        if self.jailer is None:
            (self.root / CHANNEL).symlink_to(channel.resolve())
        else:
            channel.chmod(0o1777)
            (self.root / CHANNEL).mkdir()
            kernel.mount(str(channel), self.root / CHANNEL, "none", kernel.MS_BIND)
        for file in files:
            self._place(file)

    def _place(self, file: Placed) -> None:
        source, place = file.source.resolve(strict=True), self.root / file.name
        if not stat.S_ISREG(source.stat().st_mode):
            raise OSError(f"{file.source} is no file")
        if self.jailer is None:
            place.symlink_to(source)
            return
        if file.writable:
            os.chown(source, self.uid, self.uid)
            source.chmod(0o600)
        elif not source.stat().st_mode & _READ_BY_OTHERS:
            # Its owner does not want others to read it; this machine has to, and no other.
            kernel.run(["cp", "--sparse=always", "--reflink=auto", "--", str(source), str(place)], timeout_s=COPY_TIMEOUT_S)
            os.chown(place, 0, self.uid)
            place.chmod(0o440)
            return
        place.touch(mode=0o600)
        kernel.mount(str(source), place, "none", kernel.MS_BIND)
        flags = kernel.MS_BIND | _MS_REMOUNT | kernel.MS_NOSUID | kernel.MS_NODEV
        kernel.mount("none", place, "none", flags | (0 if file.writable else kernel.MS_RDONLY))

    def command(self, cgroups: Cgroups | None, cgroup: str, namespace: Path | None, largest_file_bytes: int) -> list[str]:
        """Firecracker and its arguments, through the jailer where there is one. No filter of system calls is named: it has
        its own, which is on unless it is switched off."""
        arguments = ["--api-sock", API]
        if self.jailer is None:
            return [str(self.binary), "--id", self.machine_id, *arguments]
        words = [str(self.jailer), "--id", self.machine_id, "--exec-file", str(self.binary)]
        words += ["--uid", str(self.uid), "--gid", str(self.uid), "--chroot-base-dir", str(self.base), "--new-pid-ns"]
        words += ["--resource-limit", f"no-file={OPEN_FILES}"]
        words += ["--resource-limit", f"fsize={largest_file_bytes + FILE_SLACK_BYTES}"]
        if cgroups is not None:
            words += ["--cgroup-version", str(cgroups.version)]
            if cgroups.version == 2 and cgroup:
                # It is there already and has its bounds: so the jailer only moves itself into it, and nowhere else.
                words += ["--parent-cgroup", cgroup.lstrip("/")]
        if namespace is not None:
            words += ["--netns", str(namespace)]
        return [*words, "--", *arguments]

    def drop(self, name: str) -> None:
        """Remove what Firecracker wrote in its root, if anything. Raises `OSError`."""
        with contextlib.suppress(FileNotFoundError):
            root = os.open(self.root, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                os.unlink(name, dir_fd=root)
            finally:
                os.close(root)

    def take(self, name: str, destination: Path) -> None:
        """Move a file that Firecracker wrote in its root to where only the host writes; nobody has it open for that any more.
        Raises `OSError`."""
        root = os.open(self.root, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=root)
            try:
                found = os.fstat(descriptor)
                if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
                    raise OSError(f"Firecracker left something else than a file as {name}")
                moved = self._renamed(root, name, destination, found)
                if not moved:
                    command = ["cp", "--sparse=always", "--reflink=auto", "--", f"/proc/self/fd/{descriptor}", str(destination)]
                    kernel.run(command, timeout_s=COPY_TIMEOUT_S, keep_open=(descriptor,))
                    os.unlink(name, dir_fd=root)
            finally:
                os.close(descriptor)
        finally:
            os.close(root)
        if self.jailer is not None:
            os.chown(destination, 0, 0)
        # Other machines' users read it, in directories that only root enters.
        destination.chmod(0o444)
        if self.jailer is not None:
            self._require_no_writer(name, destination)

    @staticmethod
    def _require_no_writer(name: str, destination: Path) -> None:
        """Machines that go on from it would see what is written later. A lease is given where nobody can write."""
        with destination.open("rb") as file:
            try:
                fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
            except OSError as error:
                if error.errno != errno.EAGAIN:
                    raise
                destination.unlink()
                raise OSError(f"Firecracker keeps {name} open") from error
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)

    @staticmethod
    def _renamed(root: int, name: str, destination: Path, found: os.stat_result) -> bool:
        try:
            os.rename(name, destination, src_dir_fd=root)
        except OSError:
            # Another file system.
            return False
        there = destination.lstat()
        if (there.st_dev, there.st_ino) != (found.st_dev, found.st_ino):
            destination.unlink()
            raise OSError(f"Firecracker replaced {name} while it was taken")
        return True

    def clear(self) -> None:
        """Undo `prepare`; Firecracker must be gone. Raises `OSError`, and deletes nothing, where something is still mounted."""
        # As the kernel's table names it.
        directory = self.directory.resolve()
        for point in kernel.mounts_below(directory):
            kernel.unmount(point)
        if left := kernel.mounts_below(directory):
            raise OSError(f"{left[0]} can't be unmounted")
        for place in (self.base, self.directory / "root"):
            shutil.rmtree(place, ignore_errors=True)


def require_safe(directory: Path) -> None:
    """Raises `NotUsable` where others could replace the directory or one above it, or where it can't hold devices or programs."""
    place = directory.resolve(strict=True)
    for above in (place, *place.parents):
        found = above.stat()
        if found.st_uid != 0:
            raise NotUsable(f"The jail can't be below {above}, which belongs to user {found.st_uid}: it has to be root's")
        if found.st_mode & _WRITTEN_BY_OTHERS and not found.st_mode & _STICKY:
            raise NotUsable(f"The jail can't be below {above}, to which others than root may write")
    flags = os.statvfs(place).f_flag
    if flags & (os.ST_NODEV | os.ST_NOEXEC):
        raise NotUsable(f"The jail can't be in {place}: its file system is mounted without devices or without programs")

"""System calls that Python's library does not have, and the few commands that stand in for netlink.

Everything here blocks; callers on the event loop go through a thread. A failed call raises `OSError` with the kernel's
reason, a failed command `CommandFailed` with what it printed.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import platform
import select
import signal
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE, MS_SHARED = 1, 2, 4, 4096, 1 << 14, 1 << 18, 1 << 20
MS_REMOUNT, MS_NOEXEC = 32, 8
MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8
CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWPID, CLONE_NEWNET = 0x20000, 0x08000000, 0x20000000, 0x40000000
_TUNSETIFF, _IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x400454CA, 2, 0x1000, 0x4000
_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_CPUCLOCK_SCHED = 2
_PR_SET_CHILD_SUBREAPER = 36

_libc = ctypes.CDLL(None, use_errno=True)


class CommandFailed(OSError):
    """A command of the operating system failed."""

    def __init__(self, command: Sequence[str], code: int, output: str) -> None:
        super().__init__(f"`{' '.join(command)}` ended with {code}: {output.strip()[-2000:] or 'no output'}")


def run(
    command: Sequence[str],
    stdin: str | None = None,
    timeout_s: float = 60.0,
    environment: Mapping[str, str] | None = None,
    keep_open: Sequence[int] = (),
) -> str:
    """Run a command to its end; what it printed. `environment` is added to what every command gets, `keep_open` are descriptors
    that it inherits. Raises `CommandFailed`."""
    merged = command_environment() | dict(environment or {})
    try:
        done = subprocess.run(
            command,
            input=stdin,
            text=True,
            capture_output=True,
            timeout=timeout_s,
            check=False,
            env=merged,
            pass_fds=keep_open,
        )
    except FileNotFoundError as error:
        raise CommandFailed(command, 127, "it is not installed; run `make setup`") from error
    except subprocess.TimeoutExpired as error:
        raise CommandFailed(command, 124, f"no end after {timeout_s:.0f} s") from error
    if done.returncode != 0:
        raise CommandFailed(command, done.returncode, done.stdout + done.stderr)
    return done.stdout


def command_environment() -> dict[str, str]:
    """What commands get: nothing of ours, so that no secret of the server reaches them."""
    return {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/"}


# -- mounts -----------------------------------------------------------------------------------------


def mount(source: str, target: Path, kind: str, flags: int = 0, options: str = "") -> None:
    if _libc.mount(source.encode(), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), options.encode()) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"mount {kind} on {target}: {os.strerror(number)}")


def unmount(target: Path) -> None:
    """Unmount, or detach what is busy; nothing happens where there is no mount."""
    path = os.fsencode(target)
    # Not detached at once: only a plain unmount has let go of a loop device when it returns.
    if _libc.umount2(path, UMOUNT_NOFOLLOW) != 0 and _libc.umount2(path, MNT_DETACH | UMOUNT_NOFOLLOW) != 0:
        number = ctypes.get_errno()
        if number not in (errno.ENOENT, errno.EINVAL):
            raise OSError(number, f"umount {target}: {os.strerror(number)}")


def share_mounts(directory: Path) -> None:
    """Have what is mounted below `directory` seen by all who share it, as `ip netns` does before it mounts its first.

    It does so by mounting the directory over itself: what we mounted there earlier would lie below, out of reach.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with _directory(directory) as descriptor:
        # Against `ip netns` at the same moment, which takes this lock too.
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            mount("", directory, "none", MS_SHARED | MS_REC)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            mount(os.fspath(directory), directory, "none", MS_BIND | MS_REC)
            mount("", directory, "none", MS_SHARED | MS_REC)


def mounts_below(directory: Path) -> list[Path]:
    """Mount points at or below `directory`, innermost first."""
    prefix, found = os.fspath(directory), []
    with open("/proc/self/mountinfo", "rb") as table:
        for line in table:
            point = line.split()[4].decode("unicode_escape").encode("latin-1")
            name = os.fsdecode(point)
            if name == prefix or name.startswith(prefix + "/"):
                found.append(Path(name))
    return found[::-1]


def is_mounted(point: Path) -> bool:
    return point in mounts_below(point)


# -- processes --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Process:
    """A process that can't be confused with a later one of the same id."""

    pid: int
    start_ticks: int

    def alive(self) -> bool:
        return start_ticks(self.pid) == self.start_ticks

    def cpu_us(self) -> int:
        """CPU time that all its threads ever used, in microseconds; 0 when it is gone.

        Its clock and not `/proc/PID/stat`, which some kernels fill by sampling at each tick (clock_getcpuclockid(3)).
        """
        try:
            spent_ns = time.clock_gettime_ns(~self.pid << 3 | _CPUCLOCK_SCHED)
        except OSError:
            return 0
        return spent_ns // 1000 if self.alive() else 0

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Signal it; nothing happens when it is gone or its id belongs to another."""
        with contextlib.suppress(ProcessLookupError), open_pidfd(self) as descriptor:
            signal.pidfd_send_signal(descriptor.fd, number)

    def wait_gone(self, timeout_s: float) -> bool:
        """Whether it ended within the time."""
        try:
            with open_pidfd(self) as descriptor:
                poller = select.poll()
                poller.register(descriptor.fd, select.POLLIN)
                return bool(poller.poll(timeout_s * 1000))
        except ProcessLookupError:
            return True


class PidDescriptor:
    """An open pidfd."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __enter__(self) -> PidDescriptor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def open_pidfd(process: Process) -> PidDescriptor:
    """A pidfd of exactly this process. Raises `ProcessLookupError`."""
    descriptor = PidDescriptor(os.pidfd_open(process.pid))
    # Checked after opening: from here on the descriptor can't move to another process.
    if start_ticks(process.pid) != process.start_ticks:
        descriptor.close()
        raise ProcessLookupError(f"process {process.pid} is another one now")
    return descriptor


@contextlib.contextmanager
def orphans_adopted() -> Iterator[None]:
    """Have what our children leave behind become our children meanwhile, to be waited for. Raises `OSError`."""
    _adopt(1)
    try:
        yield
    finally:
        _adopt(0)


def _adopt(wanted: int) -> None:
    if _libc.prctl(_PR_SET_CHILD_SUBREAPER, wanted, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl: {os.strerror(number)}")


def start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None when it is gone or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat[stat.rindex(b")") + 2 :].split()
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def threads(pid: int) -> dict[int, int]:
    """The threads of a process, by our numbers, with what each is called in its own namespace. Raises `OSError`."""
    found = {}
    for entry in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for line in (entry / "status").read_text(errors="replace").splitlines():
                if line.startswith("NSpid:"):
                    found[int(entry.name)] = int(line.split()[-1])
    return found


def process(pid: int) -> Process:
    """The process that has this id now. Raises `ProcessLookupError`."""
    ticks = start_ticks(pid)
    if ticks is None:
        raise ProcessLookupError(f"process {pid} is gone")
    return Process(pid, ticks)


# -- namespaces -------------------------------------------------------------------------------------


def apart(function: Callable[[], T]) -> T:
    """Call a function in a thread that ends with it: what it does to its namespaces, root and directory is its own, and that
    of the processes which it starts."""
    done: list[T] = []
    failed: list[BaseException] = []

    def call() -> None:
        try:
            done.append(function())
        except BaseException as error:  # noqa: BLE001 - raised where it was called
            failed.append(error)

    thread = threading.Thread(target=call, name="apart")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return done[0]


def unshare(flags: int) -> None:
    """Give the calling thread namespaces of its own; one for processes holds those that it starts."""
    if _libc.unshare(flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"unshare: {os.strerror(number)}")


def pivot_root(root: Path) -> None:
    """Make a mount point the calling thread's root, and let go of everything that was mounted outside of it."""
    os.chdir(root)
    if _libc.syscall(_SYS_PIVOT_ROOT[platform.machine()], b".", b".") != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"pivot_root {root}: {os.strerror(number)}")
    # The old root lies over the new one.
    if _libc.umount2(b".", MNT_DETACH) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"umount of the old root: {os.strerror(number)}")
    os.chdir("/")


def make_network_namespace(path: Path) -> None:
    """A new network namespace, without IPv6, kept by a mount on `path`."""

    def make() -> None:
        unshare(CLONE_NEWNET)
        for scope in ("all", "default"):
            setting = Path(f"/proc/sys/net/ipv6/conf/{scope}/disable_ipv6")
            if setting.exists():
                setting.write_text("1")
        path.touch(mode=0o600)
        mount("/proc/thread-self/ns/net", path, "none", MS_BIND)

    apart(make)


def open_tap(namespace: Path, name: str) -> int:
    """A descriptor of a new tap in a network namespace; the tap goes with it. Frames begin with virtio's header."""

    def make() -> int:
        with open(namespace, "rb") as there:
            if _libc.setns(there.fileno(), CLONE_NEWNET) != 0:
                number = ctypes.get_errno()
                raise OSError(number, f"setns {namespace}: {os.strerror(number)}")
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR))
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    return apart(make)


# -- btrfs ------------------------------------------------------------------------------------------

_GETFLAGS, _SETFLAGS, _NOCOW = 0x80086601, 0x40086602, 0x800000
_SUBVOL_CREATE, _SNAP_DESTROY, _SNAP_CREATE_V2 = 0x5000940E, 0x5000940F, 0x50009417
_QUOTA_CTL, _QGROUP_LIMIT, _INO_LOOKUP, _QGROUP_CREATE = 0xC0109428, 0x8030942B, 0xD0009412, 0x4010942A
_QUOTA_ENABLE, _QUOTA_ENABLE_SIMPLE = 1, 4
_QGROUP_ASSIGN = 0x40189429
_LIMIT_REFERENCED = 1
_ALL = 1 << 48 | 1
"""The group that all subvolumes are in: number 1 of level 1."""
_FIRST_FREE_OBJECT = 256


def btrfs_enable_quota(root: Path) -> str:
    """Turn quotas on; `simple` where the kernel has them, else `full`."""
    with _directory(root) as descriptor:
        for name, command in (("simple", _QUOTA_ENABLE_SIMPLE), ("full", _QUOTA_ENABLE)):
            try:
                fcntl.ioctl(descriptor, _QUOTA_CTL, bytearray(struct.pack("QQ", command, 0)))
            except OSError as error:
                if error.errno == errno.EEXIST:
                    return "on"
                if name == "full":
                    raise
            else:
                return name
    raise AssertionError("unreachable")


def btrfs_create_subvolume(parent: Path, name: str) -> None:
    with _directory(parent) as descriptor:
        fcntl.ioctl(descriptor, _SUBVOL_CREATE, bytearray(struct.pack("q4088s", 0, name.encode())))


def btrfs_delete_subvolume(parent: Path, name: str) -> None:
    with _directory(parent) as descriptor:
        fcntl.ioctl(descriptor, _SNAP_DESTROY, bytearray(struct.pack("q4088s", 0, name.encode())))


def btrfs_snapshot(source: Path, parent: Path, name: str, *, read_only: bool = False) -> None:
    """A copy of a subvolume as of now, which shares all data with it."""
    with _directory(source) as subvolume, _directory(parent) as descriptor:
        flags = 2 if read_only else 0
        fcntl.ioctl(descriptor, _SNAP_CREATE_V2, bytearray(struct.pack("qQQ32x4040s", subvolume, 0, flags, name.encode())))


def btrfs_referenced(subvolume: Path) -> int:
    """Bytes that count towards a subvolume's limit, as of the last commit."""
    shown = run(["btrfs", "qgroup", "show", "--raw", "-f", os.fspath(subvolume)])
    last = shown.strip().splitlines()[-1].split()
    return int(last[1])


def btrfs_groups(root: Path) -> Path:
    """Where the kernel shows what each subvolume holds: `0_ID/referenced` and `0_ID/exclusive`, bytes as of the last commit."""
    shown = run(["btrfs", "filesystem", "show", "--mounted", os.fspath(root)])
    uuid = shown.partition("uuid: ")[2].split()[0]
    return Path("/sys/fs/btrfs") / uuid / "qgroups"


def btrfs_has_simple_quotas(groups: Path) -> bool:
    """Whether quotas count a byte only where it was written first."""
    mode = groups / "mode"
    return mode.exists() and mode.read_text().strip() == "squota"


def btrfs_identifier(subvolume: Path) -> int:
    """The number of a subvolume. Raises `OSError`."""
    with _directory(subvolume) as descriptor:
        return _identifier(descriptor)


def write_in_place(descriptor: int) -> None:
    """Have an empty file's blocks be overwritten, on a file system that would write others in their place (`chattr +C`)."""
    flags = bytearray(struct.pack("l", 0))
    with contextlib.suppress(OSError):
        fcntl.ioctl(descriptor, _GETFLAGS, flags)
        fcntl.ioctl(descriptor, _SETFLAGS, struct.pack("l", struct.unpack("l", flags)[0] | _NOCOW))


def sync_file_system(directory: Path) -> None:
    """Write everything of the file system that has `directory` to its device."""
    with _directory(directory) as descriptor:
        if _libc.syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"syncfs {directory}: {os.strerror(number)}")


def sync_directory(directory: Path) -> None:
    """Have the names in a directory survive a power cut."""
    with _directory(directory) as descriptor:
        os.fsync(descriptor)


def btrfs_limit(subvolume: Path, size_bytes: int) -> None:
    """Bound what a subvolume may hold; beyond it writes fail with EDQUOT."""
    with _directory(subvolume) as descriptor:
        _limit(descriptor, _identifier(descriptor), size_bytes)


def btrfs_limit_all(root: Path, size_bytes: int) -> None:
    """Bound what all subvolumes that were joined may hold together."""
    with _directory(root) as descriptor:
        _limit(descriptor, _ALL, size_bytes)


def btrfs_make_group(root: Path) -> None:
    """Make the group that `btrfs_join` means; nothing happens when it is there."""
    with _directory(root) as descriptor, contextlib.suppress(FileExistsError):
        fcntl.ioctl(descriptor, _QGROUP_CREATE, bytearray(struct.pack("QQ", 1, _ALL)))


def btrfs_join(subvolume: Path) -> None:
    """Have a subvolume count towards the bound of all; nothing happens when it does."""
    with _directory(subvolume) as descriptor, contextlib.suppress(FileExistsError):
        fcntl.ioctl(descriptor, _QGROUP_ASSIGN, bytearray(struct.pack("QQQ", 1, _identifier(descriptor), _ALL)))


def _identifier(descriptor: int) -> int:
    lookup = bytearray(struct.pack("QQ4080s", 0, _FIRST_FREE_OBJECT, b""))
    fcntl.ioctl(descriptor, _INO_LOOKUP, lookup)
    return int(struct.unpack_from("Q", lookup)[0])


def _limit(descriptor: int, identifier: int, size_bytes: int) -> None:
    limit = struct.pack("QQQQQQ", identifier, _LIMIT_REFERENCED, size_bytes, 0, 0, 0)
    fcntl.ioctl(descriptor, _QGROUP_LIMIT, bytearray(limit))


@contextlib.contextmanager
def _directory(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)

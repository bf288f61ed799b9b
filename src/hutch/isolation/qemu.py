"""QEMU: every sandbox is a virtual machine with a Linux kernel of its own.

The root file system is the guest's own overlay: EROFS images below, shared read-only by all machines, and an ext4 disk on top
that the host formats while it is empty and never mounts afterwards. The agent is process 1 and speaks over a virtio-serial port.

QEMU runs as a user of its own without capabilities, with an empty network of its own, under its own seccomp filter, in the
machine's cgroup from before its first instruction, and with nothing but descriptors that were opened for it. Whether a machine
lives is told by QEMU's process; what its kernel last said is in `console.log`, which has a bound.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from hutch.host import kernel
from hutch.host.cgroups import Cgroups
from hutch.host.channel import SOCKET_NAME
from hutch.host.kernel import Process
from hutch.isolation import tsc
from hutch.isolation.kvm import DEVICE
from hutch.isolation.protocol import BootFailed, MachinePlan
from hutch.isolation.qemu_command import MIB, Accelerator, VirtualMachine, command
from hutch.isolation.qmp import Monitor, MonitorFailed
from hutch.wire.sockets import address, bind_unix

BINARY = "qemu-system-x86_64"
KERNEL, INITRAMFS, PROBE_ROOT = "vmlinuz", "initramfs", "probe.erofs"
DISK = "disk.ext4"
MONITOR = "qmp.sock"
CONSOLE_LOG = "console.log"
MAX_CONSOLE_BYTES = 256 * 1024
"""What a guest says after that is read and dropped: its console must not fill the host's disk."""
LAST_WORDS_BYTES = 1500
DISK_BYTES = 8 * 1024 * MIB
START_TIMEOUT_S = 20.0
MONITOR_TIMEOUT_S = 10.0
CHANNEL_WAIT_S, CHANNEL_PAUSE_S = 5.0, 0.01
DEATH_TIMEOUT_S = 10.0
OVERHEAD_BYTES = 256 * MIB
"""QEMU beside the guest's memory: its own, and the translation cache under TCG."""
MAX_THREADS = 128
FIRST_UID = 0x6000_0000
"""Users that no system has; a machine's is this and 28 bits of its id."""
# Joins the cgroups that are named before `--`, then becomes what is named after it.
_JOIN = 'while [ "$1" != -- ]; do echo $$ >"$1" || exit 125; shift; done; shift; exec "$@"'


class NotInThisRelease(BootFailed):
    """A plan has something that this backend does not do yet."""


@dataclass(frozen=True, slots=True)
class Guest:
    """What every machine boots: the directory that setup's step `guest-kernel` makes."""

    directory: Path

    @property
    def kernel(self) -> Path:
        return self.directory / KERNEL

    @property
    def initramfs(self) -> Path:
        return self.directory / INITRAMFS

    @property
    def probe_root(self) -> Path:
        """An image with nothing but mount points: the agent needs no more."""
        return self.directory / PROBE_ROOT

    def require(self) -> None:
        """Raises `FileNotFoundError` naming what is missing."""
        for file in (self.kernel, self.initramfs, self.probe_root):
            if not file.is_file():
                raise FileNotFoundError(f"The guest's kernel is not complete: there is no {file}. Run `make setup`.")


class Qemu:
    """The backend. `directory` has a record of each machine; root only. `disk_bytes` bounds what a sandbox may write."""

    name = "qemu"

    def __init__(
        self,
        guest: Guest,
        directory: Path,
        cgroups: Cgroups,
        accelerator: Accelerator,
        binary: str = BINARY,
        disk_bytes: int = DISK_BYTES,
    ) -> None:
        self.guest = guest
        self.cgroups = cgroups
        self.accelerator = accelerator
        self.binary = binary
        self.directory = directory
        self._disk_bytes = disk_bytes
        self._records = directory / "qemu"

    def using(self, accelerator: Accelerator) -> Qemu:
        """The same with another accelerator."""
        return Qemu(self.guest, self.directory, self.cgroups, accelerator, self.binary, self._disk_bytes)

    def probe(self) -> None:
        """Boot the guest's kernel until the agent answers. Raises `OSError` with the reason why that did not happen."""
        # Imported late: it drives this class.
        from hutch.isolation.qemu_probe import boots

        boots(self)

    # -- boot --------------------------------------------------------------------------------------

    def boot(self, plan: MachinePlan, kernel_line: str | None = None) -> Process:
        """Start QEMU. Its agent connects to the channel, on which somebody must listen, when the guest has come that far.

        `kernel_line` replaces the kernel's command line: for those who ask what a broken one does.
        """
        for present, what in ((plan.memory, "memory that was saved"), (plan.mounts, "drives")):
            if present:
                raise NotInThisRelease(f"Virtual machines have no {what} in this release.")
        try:
            self.guest.require()
            make_disk(plan.layer / DISK, self._disk_bytes)
            return self._start(plan, kernel_line)
        except (OSError, ValueError) as error:
            raise BootFailed(f"The virtual machine did not start: {error}{last_words(plan.directory)}") from error

    def _start(self, plan: MachinePlan, kernel_line: str | None) -> Process:
        binary = shutil.which(self.binary, path=kernel.command_environment()["PATH"])
        if binary is None:
            raise FileNotFoundError(f"{self.binary} is not installed. Run `make setup`.")
        with contextlib.ExitStack() as opened:

            def descriptor(path: Path, flags: int = os.O_RDONLY) -> int:
                number = os.open(path, flags | os.O_CLOEXEC)
                opened.callback(os.close, number)
                return number

            monitor = opened.enter_context(bind_unix(plan.directory / MONITOR))
            monitor.listen(1)
            machine = VirtualMachine(
                accelerator=self.accelerator,
                vcpus=plan.vcpus,
                memory_bytes=plan.memory_bytes,
                kernel=descriptor(self.guest.kernel),
                initramfs=descriptor(self.guest.initramfs),
                layers=tuple(descriptor(image) for image in plan.lowers),
                disk=descriptor(plan.layer / DISK, os.O_RDWR),
                channel=opened.enter_context(_connected(plan.channel_dir / SOCKET_NAME)).fileno(),
                monitor=monitor.fileno(),
                tsc_khz=tsc.frequency_khz() if self.accelerator is Accelerator.TCG else None,
            )
            words = [*self._confined(plan), *command(binary, machine, kernel_line)]
            child = subprocess.Popen(
                words,
                cwd="/",
                env=kernel.command_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=machine.descriptors,
                # Out of the server's session: a terminal's Ctrl-C must not reach sandboxes.
                start_new_session=True,
            )
        assert child.stdout is not None
        reader = threading.Thread(
            target=_keep_console, args=(child, child.stdout, plan.directory / CONSOLE_LOG), name=f"console-{plan.machine_id}"
        )
        reader.daemon = True
        reader.start()
        try:
            process = kernel.process(child.pid)
            self._record(plan.machine_id, process)
            with Monitor(plan.directory / MONITOR, START_TIMEOUT_S) as asked:
                asked.status()
        except OSError:
            child.kill()
            # So that what it said is in the log.
            reader.join(DEATH_TIMEOUT_S)
            raise
        return process

    def _confined(self, plan: MachinePlan) -> list[str]:
        """What QEMU is started through. Each becomes the next, so that the process stays the same."""
        uid = FIRST_UID + int(hashlib.sha256(plan.machine_id.encode()).hexdigest()[:7], 16)
        words = []
        if plan.cgroup:
            files = [str(directory / "cgroup.procs") for directory in self._limit(plan)]
            words = ["sh", "-c", _JOIN, "sh", *files, "--"]
        # Of its own and empty: machines have no network yet.
        words += ["unshare", "--net", "--ipc", "--"]
        words += ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"]
        return [*words, *self._groups(), "--"]

    def _groups(self) -> list[str]:
        if self.accelerator is Accelerator.KVM:
            with contextlib.suppress(OSError):
                # Never root's group, which owns more than that device.
                if group := Path(DEVICE).stat().st_gid:
                    return [f"--groups={group}"]
        return ["--clear-groups"]

    def _limit(self, plan: MachinePlan) -> list[Path]:
        """The machine's cgroup, made and bounded; its directories."""
        memory = plan.memory_bytes + OVERHEAD_BYTES
        relative = plan.cgroup.lstrip("/")
        if self.cgroups.version == 1:
            bounds = [
                ("memory", "memory.limit_in_bytes", str(memory)),
                ("cpu", "cpu.cfs_quota_us", str(plan.vcpus * 100_000)),
                ("pids", "pids.max", str(MAX_THREADS)),
            ]
        else:
            bounds = [
                ("memory", "memory.max", str(memory)),
                ("cpu", "cpu.max", f"{plan.vcpus * 100_000} 100000"),
                ("pids", "pids.max", str(MAX_THREADS)),
            ]
            above = self.cgroups.roots["memory"]
            for name in Path(relative).parts:
                (above / "cgroup.subtree_control").write_text("+cpu +memory +pids")
                above = above / name
                above.mkdir(exist_ok=True)
        directories = self.cgroups.directories(plan.cgroup)
        for directory in directories:
            # A controller without a use here (cpuset of version 1) would want settings before anybody may join.
            if directory not in {root / relative for root in self.cgroups.others}:
                directory.mkdir(parents=True, exist_ok=True)
        for controller, name, value in bounds:
            (self.cgroups.roots[controller] / relative / name).write_text(value)
        return list(dict.fromkeys(root / relative for root in self.cgroups.roots.values()))

    def _record(self, machine_id: str, process: Process) -> None:
        self._records.mkdir(parents=True, exist_ok=True, mode=0o700)
        (self._records / machine_id).write_text(json.dumps({"pid": process.pid, "start_ticks": process.start_ticks}))

    # -- standing still ----------------------------------------------------------------------------

    def suspend(self, machine_id: str) -> None:
        raise OSError(f"{machine_id} can't be suspended: virtual machines save no memory in this release")

    def resume(self, machine_id: str) -> None:
        raise OSError(f"{machine_id} can't go on: virtual machines save no memory in this release")

    def checkpoint(self, machine_id: str, image: Path) -> None:
        raise OSError(f"{machine_id} can't be saved into {image}: virtual machines save no memory in this release")

    @functools.cache  # noqa: B019 - there is one for as long as the process lives
    def fingerprint(self) -> str:
        binary = shutil.which(self.binary, path=kernel.command_environment()["PATH"])
        found = hashlib.sha256(self.accelerator.encode())
        for file in (Path(binary) if binary else None, self.guest.kernel, self.guest.initramfs):
            found.update(hashlib.sha256(file.read_bytes() if file else b"").digest())
        return found.hexdigest()

    # -- end ---------------------------------------------------------------------------------------

    def kill(self, process: Process) -> None:
        process.kill()
        process.wait_gone(DEATH_TIMEOUT_S)

    def remove(self, machine_id: str, directory: Path, process: Process | None) -> None:
        if process is None:
            process = self.recorded(machine_id)
        if process is not None:
            self.kill(process)
        (directory / MONITOR).unlink(missing_ok=True)
        (self._records / machine_id).unlink(missing_ok=True)

    def recorded(self, machine_id: str) -> Process | None:
        """The process of a machine, if one was started; it may be dead."""
        try:
            entry = json.loads((self._records / machine_id).read_text())
            return Process(int(entry["pid"]), int(entry["start_ticks"]))
        except (OSError, ValueError, KeyError, TypeError):
            # Not written to its end: the host died in between, and QEMU is found by its cgroup.
            return None

    def machines(self) -> set[str]:
        return {entry.name for entry in self._records.iterdir()} if self._records.is_dir() else set()

    def forget_image(self, image: Path) -> None:
        """Nothing is kept of images: each machine opens them for itself."""

    def close(self) -> None:
        shutil.rmtree(self._records, ignore_errors=True)


def make_disk(file: Path, size_bytes: int) -> None:
    """An empty ext4 image; nothing happens where there is one. It is complete or not there."""
    if file.exists():
        return
    part = file.with_name(f".{file.name}.part")
    part.unlink(missing_ok=True)
    try:
        with part.open("xb") as made:
            made.truncate(size_bytes)
        part.chmod(0o600)
        # Tables are zero already in a sparse file. The guest's kernel writes them when it wants to.
        options = ["-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", "-m", "0", "-I", "256"]
        kernel.run(["mkfs.ext4", "-q", "-F", *options, str(part)])
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def last_words(directory: Path) -> str:
    """What a machine's console and QEMU said last, for the end of a message; empty where they said nothing."""
    with contextlib.suppress(OSError):
        if text := (directory / CONSOLE_LOG).read_text(errors="replace").strip():
            return f"; its console ended with: {text[-LAST_WORDS_BYTES:]}"
    return ""


def monitor(directory: Path) -> Monitor:
    """A connection to the monitor of the machine of `directory`. Raises `MonitorFailed`."""
    return Monitor(directory / MONITOR, MONITOR_TIMEOUT_S)


def _connected(path: Path) -> socket.socket:
    """A connection to the host's end of the channel, which may be about to listen. Raises `OSError`."""
    deadline = time.monotonic() + CHANNEL_WAIT_S
    while True:
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            with address(path) as short:
                channel.connect(short)
        except OSError as error:
            channel.close()
            if error.errno not in (errno.ENOENT, errno.ECONNREFUSED) or time.monotonic() > deadline:
                raise OSError(f"nobody listens for its agent at {path}: {error.strerror}") from error
            time.sleep(CHANNEL_PAUSE_S)
        else:
            return channel


def _keep_console(child: subprocess.Popen[bytes], source: IO[bytes], file: Path) -> None:
    """Read what a machine's console says until it ends, keep as much as there is room for, and reap QEMU."""
    with source:
        room = MAX_CONSOLE_BYTES
        sink: IO[bytes] | None = None
        with contextlib.suppress(OSError):
            sink = file.open("wb", buffering=0)
        while block := os.read(source.fileno(), 16 * 1024):
            if sink is not None and room > 0:
                # A full disk of the host, or a directory that is being removed, ends the log and not the machine.
                with contextlib.suppress(OSError):
                    sink.write(block[:room])
                room -= len(block)
        if sink is not None:
            sink.close()
    child.wait()


__all__ = ["BootFailed", "Guest", "MonitorFailed", "NotInThisRelease", "Qemu", "last_words", "make_disk", "monitor"]

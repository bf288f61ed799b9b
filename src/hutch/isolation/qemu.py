"""QEMU: every sandbox is a virtual machine with a Linux kernel of its own.

The root file system is the guest's own overlay: EROFS images below, shared read-only by all machines, and an ext4 disk on top
that the host formats while it is empty and never mounts afterwards. The agent is process 1 and speaks over a virtio-serial port.

QEMU runs as a user of its own without capabilities, in a jail (`jail.py`) without the host's files, processes and network, under
its own seccomp filter, in the machine's cgroup from before its first instruction, and with nothing but descriptors that were
opened for it, the network card's among them (`tap.py`). Threads that run the guest are counted apart. Whether a machine lives is
told by QEMU's process; what its kernel last said is in `console.log`, which has a bound.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path

from hutch.host import kernel
from hutch.host.cgroups import Cgroups
from hutch.host.channel import MONITOR_SOCKET_NAME
from hutch.host.kernel import Process
from hutch.isolation import console_log, jail, tap, tsc
from hutch.isolation.kvm import DEVICE
from hutch.isolation.protocol import BootFailed, MachinePlan, Traits
from hutch.isolation.qemu_command import MIB, Accelerator, Card, VirtualMachine, command
from hutch.isolation.qmp import Monitor, MonitorFailed
from hutch.wire.sockets import bind_unix

BINARY = "qemu-system-x86_64"
KERNEL, INITRAMFS, PROBE_ROOT = "vmlinuz", "initramfs", "probe.erofs"
DISK = "disk.ext4"
MONITOR = "qmp.sock"
CONSOLE_LOG = "console.log"
LAST_WORDS_BYTES = 1500
DISK_BYTES = 8 * 1024 * MIB
MIN_DISK_BYTES = 15 * MIB
START_TIMEOUT_S = 20.0
MONITOR_TIMEOUT_S = 10.0
DEATH_TIMEOUT_S = 10.0
OVERHEAD_BYTES = 256 * MIB
"""QEMU beside the guest's memory: its own, and the translation cache under TCG."""
MAX_THREADS = 128
FIRST_UID = 0x6000_0000
"""Users that no system has; a machine's is this and 28 bits of its id."""
GUEST_CGROUP = "guest"
JAIL = "jail"
PING_TIMEOUT_S, EMULATED_PING_TIMEOUT_S = 4.0, 30.0
"""Of a hundred programs that begin at once, each takes as long as ten to thirty do elsewhere; so does the agent in between."""
BOOT_TIMEOUT_S, EMULATED_BOOT_TIMEOUT_S, ADOPT_TIMEOUT_S = 30.0, 120.0, 20.0


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
        self.traits = Traits(
            listens=True,
            boot_timeout_s=EMULATED_BOOT_TIMEOUT_S if accelerator is Accelerator.TCG else BOOT_TIMEOUT_S,
            adopt_timeout_s=ADOPT_TIMEOUT_S,
            ping_timeout_s=EMULATED_PING_TIMEOUT_S if accelerator is Accelerator.TCG else PING_TIMEOUT_S,
            guest_cgroup=GUEST_CGROUP,
            writes_late=True,
            memory=False,
            live_copies=False,
            drives=False,
            trees=False,
        )
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
        """Start QEMU, who listens for the host in the channel's directory. The agent speaks there when the guest has booted.

        `kernel_line` replaces the kernel's command line: for those who ask what a broken one does.
        """
        for present, what in ((plan.memory, "memory that was saved"), (plan.mounts, "drives")):
            if present:
                raise NotInThisRelease(f"Virtual machines have no {what} in this release.")
        try:
            self.guest.require()
            make_disk(plan.layer / DISK, disk_size(plan.disk_bytes) if plan.disk_bytes else self._disk_bytes)
            return self._start(plan, kernel_line)
        except (OSError, ValueError) as error:
            raise BootFailed(f"The virtual machine did not start: {error}{last_words(plan.directory)}") from error

    def _start(self, plan: MachinePlan, kernel_line: str | None) -> Process:
        binary = shutil.which(self.binary, path=kernel.command_environment()["PATH"])
        if binary is None:
            raise FileNotFoundError(f"{self.binary} is not installed. Run `make setup`.")
        binary = os.path.realpath(binary)
        with contextlib.ExitStack() as opened:

            def descriptor(path: Path, flags: int = os.O_RDONLY) -> int:
                number = os.open(path, flags | os.O_CLOEXEC)
                opened.callback(os.close, number)
                return number

            monitor = opened.enter_context(bind_unix(plan.directory / MONITOR))
            monitor.listen(1)
            agent = opened.enter_context(bind_unix(plan.channel_dir / MONITOR_SOCKET_NAME))
            agent.listen(1)
            machine = VirtualMachine(
                accelerator=self.accelerator,
                vcpus=plan.vcpus,
                memory_bytes=plan.memory_bytes,
                kernel=descriptor(self.guest.kernel),
                initramfs=descriptor(self.guest.initramfs),
                layers=tuple(descriptor(image) for image in plan.lowers),
                disk=descriptor(plan.layer / DISK, os.O_RDWR),
                channel=agent.fileno(),
                monitor=monitor.fileno(),
                tsc_khz=tsc.frequency_khz() if self.accelerator is Accelerator.TCG else None,
                card=_card(plan, opened),
            )
            root = plan.directory / JAIL
            root.mkdir(mode=0o700)
            # The last opened: if nothing starts, nobody reads it.
            output, said = os.pipe2(os.O_CLOEXEC)
            opened.callback(os.close, said)
            console = open(output, "rb", buffering=0)  # noqa: SIM115 - who reads it closes it
            try:
                child = jail.start(
                    root,
                    [*self._unprivileged(plan), *command(binary, machine, kernel_line)],
                    cgroups=self._limit(plan) if plan.cgroup else (),
                    files=[Path(file) for file in self._files(binary)],
                    descriptors=machine.descriptors,
                    output=said,
                )
            except BaseException:
                console.close()
                raise
        reader = threading.Thread(
            target=console_log.keep, args=(child, console, plan.directory / CONSOLE_LOG), name=f"console-{plan.machine_id}"
        )
        reader.daemon = True
        reader.start()
        try:
            process = kernel.process(child.pid)
            self._record(plan.machine_id, process)
            with Monitor(plan.directory / MONITOR, START_TIMEOUT_S) as asked:
                if plan.cgroup:
                    self.cgroups.set_apart(plan.cgroup, GUEST_CGROUP, _guest_threads(process, asked))
                else:
                    asked.status()
        except OSError:
            child.kill()
            # So that what it said is in the log.
            reader.join(DEATH_TIMEOUT_S)
            raise
        return process

    def _unprivileged(self, plan: MachinePlan) -> list[str]:
        """What becomes QEMU, so that the process stays the same."""
        uid = FIRST_UID + int(hashlib.sha256(plan.machine_id.encode()).hexdigest()[:7], 16)
        words = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"]
        return [*words, *self._groups(), "--"]

    def _files(self, binary: str) -> list[str]:
        """What QEMU needs beside the system's programs and libraries."""
        files = [] if binary.startswith("/usr/") else [binary]
        return [*files, DEVICE] if self.accelerator is Accelerator.KVM else files

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

    def last_words(self, directory: Path) -> str:
        return console_log.reason(directory / CONSOLE_LOG)

    def kill(self, process: Process) -> None:
        process.kill()
        process.wait_gone(DEATH_TIMEOUT_S)

    def remove(self, machine_id: str, directory: Path, process: Process | None) -> None:
        if process is None:
            process = self.recorded(machine_id)
        if process is not None:
            self.kill(process)
        for socket in (directory / MONITOR, directory / "channel" / MONITOR_SOCKET_NAME):
            socket.unlink(missing_ok=True)
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


def disk_size(room_bytes: int) -> int:
    """The size of a disk whose file may hold so much: what its own file system needs for that is room too."""
    return max(MIN_DISK_BYTES, (room_bytes - room_bytes // 64) // MIB * MIB)


def make_disk(file: Path, size_bytes: int) -> None:
    """An empty ext4 image; nothing happens where there is one. It is complete or not there."""
    if file.exists():
        return
    part = file.with_name(f".{file.name}.part")
    part.unlink(missing_ok=True)
    try:
        with part.open("xb") as made:
            # Or what a guest writes again and again would be held many times.
            kernel.write_in_place(made.fileno())
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


def _card(plan: MachinePlan, opened: contextlib.ExitStack) -> Card | None:
    """The network card of a machine, if it has one."""
    if not plan.address:
        return None
    descriptor = tap.attach(plan.namespace, plan.address, plan.nameserver)
    opened.callback(os.close, descriptor)
    return Card(descriptor, tap.hardware_address(plan.address), plan.address, plan.nameserver)


def _guest_threads(process: Process, asked: Monitor) -> list[int]:
    """The threads of QEMU that run the guest, by our numbers for them. It tells those of its own namespace; only threads that it
    has are believed."""
    told = asked.ask("query-cpus-fast")
    found = {processor.get("thread-id") for processor in told if isinstance(processor, dict)} if isinstance(told, list) else set()
    threads = [ours for ours, inner in kernel.threads(process.pid).items() if inner in found]
    if not threads or len(threads) != len(found):
        raise MonitorFailed("QEMU's monitor told threads that it does not have")
    return threads


__all__ = ["BootFailed", "Guest", "MonitorFailed", "NotInThisRelease", "Qemu", "last_words", "make_disk", "monitor"]

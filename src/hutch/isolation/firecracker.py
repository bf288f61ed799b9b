"""Firecracker: every sandbox is a virtual machine with a Linux kernel of its own, on a monitor with about five devices.

The guest is that of the `qemu` backend: setup's kernel and initramfs, EROFS images below and an ext4 disk on top that the host
formats while it is empty and never mounts afterwards. The agent is process 1 and connects to the host over vsock, which
Firecracker makes a Unix socket of.

Firecracker is started by its jailer: as a user of its own, in a root directory of its own, with process table, network and mounts
of its own, under its own filter of system calls, and in the machine's cgroup from before its first instruction.

    firecracker_config.py     what a machine is made of, and the API's calls, as values
    firecracker_api.py        the client
    firecracker_binary.py     are the programs there, and of a release that is known?
    firecracker_kernel.py     the kernel in the form that Firecracker takes
    firecracker_jail.py       the directory that it sees, and the jailer's command line
    firecracker_process.py    one process
    firecracker_snapshot.py   a saved machine as a directory
    firecracker_machine.py    one machine from its start to its end
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from hutch.host.binaries import guest_path
from hutch.host.cgroups import Cgroups
from hutch.host.kernel import Process
from hutch.isolation import console_log, firecracker_process, firecracker_snapshot, processor, tap
from hutch.isolation.firecracker_api import FirecrackerFailed
from hutch.isolation.firecracker_binary import NotUsable
from hutch.isolation.firecracker_config import (
    DISK,
    INITRAMFS,
    KERNEL,
    MEMORY,
    MIB,
    SINCE_FREE_PAGES,
    STATE,
    Drive,
    Interface,
    Loading,
    SnapshotKind,
    VirtualMachine,
    kernel_line,
)
from hutch.isolation.firecracker_jail import Jail, Placed
from hutch.isolation.firecracker_kernel import loadable
from hutch.isolation.firecracker_machine import TO_EVERYBODY, Limits, Plan, Programs, Running, with_machine
from hutch.isolation.firecracker_process import CONSOLE_LOG, Launch, Monitor, last_words, start
from hutch.isolation.kvm import DEVICE
from hutch.isolation.protocol import LINK_PREFIX, BootFailed, MachinePlan, Traits
from hutch.isolation.qemu import ADOPT_TIMEOUT_S, DISK_BYTES, GUEST_CGROUP, Guest, disk_size, make_disk
from hutch.isolation.qemu import DISK as DISK_FILE
from hutch.settings import Settings

PROBE_MEMORY_BYTES = 256 * MIB
SAVE_TIMEOUT_S = 240.0
"""For a machine's whole memory to be written; the host waits for longer."""
RUNNING = "Running"


@dataclass(frozen=True, slots=True)
class Files:
    """What every machine boots. `arguments` None: the default command line."""

    kernel: Path
    initramfs: Path
    arguments: str | None = None


class Firecracker:
    """The backend. `directory` has a record of each machine; root only. `disk_bytes` bounds what a sandbox may write."""

    name = "firecracker"

    def __init__(
        self,
        programs: Programs,
        files: Files,
        directory: Path,
        cgroups: Cgroups,
        limits: Limits,
        disk_bytes: int = DISK_BYTES,
    ) -> None:
        if programs.jailer is None:
            raise NotUsable("Sandboxes are not started without Firecracker's jailer: set isolation.firecracker.jailer")
        self.programs = programs
        self.cgroups = cgroups
        self._files = files
        self._limits = limits
        self._directory = directory
        self._disk_bytes = disk_bytes
        self.traits = Traits(
            # Firecracker connects to it as the machine's user, by way of directories that only root enters.
            channel_mode=TO_EVERYBODY,
            boot_timeout_s=limits.agent_s,
            adopt_timeout_s=ADOPT_TIMEOUT_S,
            guest_cgroup=GUEST_CGROUP,
            writes_late=True,
            begins=True,
            trees=False,
            whole_memory=True,
        )
        self._records = directory / "firecracker"

    @classmethod
    def configured(cls, settings: Settings, directory: Path, cgroups: Cgroups) -> Firecracker:
        """The backend that the settings name. Raises `OSError` with what is missing."""
        wanted = settings.isolation.firecracker
        if wanted.binary is None:
            raise NotUsable("isolation.firecracker.binary names no program")
        if wanted.jailer is None:
            raise NotUsable("isolation.firecracker.jailer names no program")
        programs = Programs.checked(wanted.binary, wanted.jailer)
        guest = Guest(guest_path())
        guest.require()
        files = Files(wanted.kernel or guest.kernel, guest.initramfs, wanted.kernel_args)
        if not files.kernel.is_file():
            raise NotUsable(f"isolation.firecracker.kernel: there is no file {files.kernel}")
        return cls(programs, files, directory, cgroups, Limits(wanted.boot_timeout_s, wanted.api_timeout_s))

    def probe(self) -> None:
        """Boot the guest's kernel until the agent answers. Raises `OSError` with the reason why that did not happen."""
        if not Path(DEVICE).exists():
            raise NotUsable(f"{DEVICE} does not exist: no hardware virtualization, or it is not passed on to this machine")
        machine = VirtualMachine(1, PROBE_MEMORY_BYTES, kernel_line(self._files.arguments, 0), initramfs=True)
        plan = Plan(self._boot_files(), machine, machine.vcpus, machine.memory_bytes)

        async def filtered(running: Running) -> bool:
            return running.monitor.is_filtered()

        # In a thread of its own: the caller may be in an event loop.
        booting = with_machine(self.programs, plan, filtered, self._limits, self._place())
        with ThreadPoolExecutor(1, thread_name_prefix="firecracker-probe") as thread:
            if not thread.submit(asyncio.run, booting).result():
                raise NotUsable(_NO_FILTER)

    def _place(self) -> Path:
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        return self._directory

    def _boot_files(self) -> tuple[Placed, ...]:
        kernel = loadable(self._files.kernel.resolve(), self._directory / "kernels")
        return (Placed(KERNEL, kernel), Placed(INITRAMFS, self._files.initramfs))

    # -- boot --------------------------------------------------------------------------------------

    def boot(self, plan: MachinePlan) -> Process:
        """Start Firecracker. Its agent connects to the channel, whose socket must have the trait `channel_mode`, when the guest
        has come that far, and again whenever the channel breaks."""
        jail = self._jail(plan.machine_id, plan.directory)
        monitor: Monitor | None = None
        try:
            make_disk(plan.layer / DISK_FILE, disk_size(plan.disk_bytes) if plan.disk_bytes else self._disk_bytes)
            disk = Placed(DISK, plan.layer / DISK_FILE, writable=True)
            drives = tuple(Placed(f"drive{number}", mount.source, writable=True) for number, mount in enumerate(plan.mounts))
            images = tuple(Placed(f"layer{number}", image) for number, image in enumerate(plan.lowers))
            files = self._boot_files() if plan.memory is None else firecracker_snapshot.saved(plan.memory, plan.memory_bytes)
            if plan.address:
                tap.give(plan.namespace, plan.address, plan.nameserver, jail.uid)
            launch = Launch(
                jail,
                plan.channel_dir,
                (*files, *images, disk, *drives),
                plan.vcpus,
                plan.memory_bytes,
                self.cgroups,
                plan.cgroup,
                plan.namespace if plan.address else None,
            )
            monitor = start(launch, self._limits.api_s)
            self._record(plan, monitor.process)
            if plan.memory is None:
                monitor.boot(self._machine(plan))
            else:
                monitor.load(Loading(), self.programs.version)
            if plan.cgroup:
                self.cgroups.set_apart(plan.cgroup, GUEST_CGROUP, monitor.guest_threads(plan.vcpus))
            if not monitor.is_filtered():
                raise NotUsable(_NO_FILTER)
            return monitor.process
        except (OSError, ValueError) as error:
            if monitor is not None:
                monitor.end()
            raise BootFailed(f"The Firecracker machine did not start: {error}{last_words(plan.directory)}") from error

    def _machine(self, plan: MachinePlan) -> VirtualMachine:
        layers = [Drive(f"layer{number}", f"layer{number}", read_only=True) for number in range(len(plan.lowers))]
        # Behind the disk: the agent counts.
        mounted = [Drive(f"drive{number}", f"drive{number}", read_only=False) for number in range(len(plan.mounts))]
        cards: tuple[Interface, ...] = ()
        if plan.address:
            cards = (Interface(tap.LINK, tap.NAME, tap.HARDWARE),)
        address = f"{plan.address}/{LINK_PREFIX}" if plan.address else ""
        return VirtualMachine(
            vcpus=plan.vcpus,
            memory_bytes=plan.memory_bytes,
            kernel_line=kernel_line(self._files.arguments, len(plan.lowers), address=address, gateway=plan.nameserver),
            initramfs=True,
            drives=(*layers, Drive(DISK, DISK, read_only=False), *mounted),
            interfaces=cards,
            gives_back=self.programs.version >= SINCE_FREE_PAGES,
        )

    def _jail(self, machine_id: str, directory: Path) -> Jail:
        return Jail(directory, machine_id, self.programs.binary, self.programs.jailer)

    def _record(self, plan: MachinePlan, process: Process) -> None:
        self._records.mkdir(parents=True, exist_ok=True, mode=0o700)
        entry = {
            "pid": process.pid,
            "start_ticks": process.start_ticks,
            "directory": os.fspath(plan.directory),
            "channel": os.fspath(plan.channel_dir),
        }
        (self._records / plan.machine_id).write_text(json.dumps(entry))

    # -- standing still ----------------------------------------------------------------------------

    def suspend(self, machine_id: str) -> None:
        self._monitor(machine_id).pause()

    def resume(self, machine_id: str) -> None:
        monitor = self._monitor(machine_id)
        if monitor.api.state() != RUNNING:
            monitor.resume()

    def before_checkpoint(self, machine_id: str, image: Path) -> None:
        """Nothing is written before. What a dead host was saving is in the way."""
        self._drop_saved(self._monitor(machine_id).jail)

    def checkpoint(self, machine_id: str, image: Path) -> None:
        """Firecracker writes all of the memory, its pages of zeros too, which are holes afterwards. The disk of the same moment
        is the caller's to copy, before `resume`."""
        monitor = self._monitor(machine_id)
        try:
            # Names that a machine which itself went on from a snapshot has not.
            monitor.snapshot(SnapshotKind.FULL, _SAVED[STATE], _SAVED[MEMORY], SAVE_TIMEOUT_S)
            for name, saved in _SAVED.items():
                monitor.jail.take(saved, image / name)
            firecracker_snapshot.settle(image)
        finally:
            self._drop_saved(monitor.jail)

    @staticmethod
    def _drop_saved(jail: Jail) -> None:
        for saved in _SAVED.values():
            jail.drop(saved)

    def _monitor(self, machine_id: str) -> Monitor:
        try:
            entry = json.loads((self._records / machine_id).read_text())
            process = Process(int(entry["pid"]), int(entry["start_ticks"]))
            directory, channel = Path(entry["directory"]), Path(entry["channel"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FirecrackerFailed(f"There is no machine {machine_id}") from error
        return Monitor(self._jail(machine_id, directory), channel, process, self._limits.api_s)

    def fingerprint(self) -> str:
        found = hashlib.sha256(str(self.programs.version).encode())
        for file in (self.programs.binary, self._files.kernel, self._files.initramfs):
            found.update(processor.digest(file))
        found.update(kernel_line(self._files.arguments, 0).encode())
        found.update(processor.model(also=frozenset({"stepping"})))
        return found.hexdigest()

    # -- end ---------------------------------------------------------------------------------------

    def kill(self, process: Process) -> None:
        firecracker_process.kill(process)

    def remove(self, machine_id: str, directory: Path, process: Process | None) -> None:
        if process is None:
            process = self.recorded(machine_id)
        if process is not None:
            self.kill(process)
        self._jail(machine_id, directory).clear()
        (self._records / machine_id).unlink(missing_ok=True)

    def last_words(self, directory: Path) -> str:
        return console_log.reason(directory / CONSOLE_LOG)

    def recorded(self, machine_id: str) -> Process | None:
        """The process of a machine, if one was started; it may be dead."""
        try:
            return self._monitor(machine_id).process
        except FirecrackerFailed:
            # Not written to its end: the host died in between, and Firecracker is found by its cgroup.
            return None

    def machines(self) -> set[str]:
        return {entry.name for entry in self._records.iterdir()} if self._records.is_dir() else set()

    def forget_image(self, image: Path) -> None:
        """Nothing is kept of images: each machine mounts them for itself, as it does saved memory, which so stays as long as it
        is used, whatever becomes of its name."""

    def leave(self) -> None:
        """Nothing is held that a successor does not use."""

    def close(self) -> None:
        for name in ("firecracker", "kernels"):
            place = self._directory / name
            for file in place.iterdir() if place.is_dir() else ():
                file.unlink(missing_ok=True)
            if place.is_dir():
                place.rmdir()


_SAVED = {STATE: f"saved.{STATE}", MEMORY: f"saved.{MEMORY}"}
_NO_FILTER = "Firecracker runs without a filter of system calls: use a release's build, which has one"

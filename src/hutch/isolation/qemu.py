"""QEMU: every sandbox is a virtual machine with a Linux kernel of its own.

The root file system is the guest's own overlay: EROFS images below, shared read-only by all machines, and an ext4 disk on top
that the host formats while it is empty and never mounts afterwards. The agent is process 1 and speaks over a virtio-serial port.

QEMU runs as a user of its own without capabilities, in a jail (`jail.py`) without the host's files, processes and network, under
its own seccomp filter, in the machine's cgroup from before its first instruction, and with nothing but descriptors that were
opened for it, the network card's among them (`tap.py`). Threads that run the guest are counted apart. Whether a machine lives is
told by QEMU's process; what its kernel last said is in `console.log`, which has a bound.

A machine boots, or begins with a template (`qemu_template.py`), or goes on from what was saved of another (`qemu_memory.py`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from hutch.host import kernel
from hutch.host.binaries import preload_path
from hutch.host.cgroups import Cgroups
from hutch.host.channel import MONITOR_SOCKET_NAME
from hutch.host.kernel import Process
from hutch.isolation import console_log, jail, limits, processor, qemu_memory, tap, tsc
from hutch.isolation.kvm import DEVICE
from hutch.isolation.protocol import BootFailed, MachinePlan, Traits
from hutch.isolation.qemu_command import BALLOON, MIB, Accelerator, Card, VirtualMachine, command
from hutch.isolation.qemu_disk import DISK, copy_disk, disk_size, make_disk
from hutch.isolation.qemu_making import Maker
from hutch.isolation.qemu_pages import FileId, Mapping, mapping
from hutch.isolation.qemu_template import Kind, Origin, Template, Templates
from hutch.isolation.qmp import Monitor, MonitorFailed
from hutch.wire.sockets import bind_unix

log = logging.getLogger(__name__)

BINARY = "qemu-system-x86_64"
KERNEL, INITRAMFS, PROBE_ROOT = "vmlinuz", "initramfs", "probe.erofs"
MONITOR = "qmp.sock"
CONSOLE_LOG = "console.log"
LAST_WORDS_BYTES = 1500
DISK_BYTES = 8 * 1024 * MIB
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


@dataclass(frozen=True, slots=True)
class _Record:
    """What is known of a machine beside its process. `file`: its memory is in one that was saved."""

    directory: Path
    memory_bytes: int
    file: FileId | None


class Qemu:
    """The backend. `directory` has a record of each machine; root only. `disk_bytes` bounds what a sandbox may write.

    `templates`: machines begin with one, and wait for `machine.begin`; else each boots by itself.
    """

    name = "qemu"

    def __init__(
        self,
        guest: Guest,
        directory: Path,
        cgroups: Cgroups,
        accelerator: Accelerator,
        binary: str = BINARY,
        disk_bytes: int = DISK_BYTES,
        templates: Templates | None = None,
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
            begins=True,
            trees=False,
        )
        self._disk_bytes = disk_bytes
        self._records = directory / "qemu"
        self._making = directory / "qemu-templates"
        self.templates = templates
        self._attentive: dict[str, Monitor] = {}
        """Connections, of machines that are about to stand still, that hear how their agents notice it."""

    def using(self, accelerator: Accelerator) -> Qemu:
        """The same with another accelerator."""
        return Qemu(self.guest, self.directory, self.cgroups, accelerator, self.binary, self._disk_bytes, self.templates)

    def require(self) -> None:
        """Raises `OSError` with what is missing here, without starting anything."""
        self.guest.require()
        self._program()
        preload_path()

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
        try:
            self.require()
            if plan.memory is not None:
                self._make_disk(plan)
                return self._restored(plan, plan.memory)
            process = self._begun(plan, self.templates) if self.templates is not None and kernel_line is None else None
            if process is not None:
                return process
            self._make_disk(plan)
            return self._start(plan, Origin(kernel_line))
        except (OSError, ValueError) as error:
            raise BootFailed(f"The virtual machine did not start: {error}{last_words(plan.directory)}") from error

    def _make_disk(self, plan: MachinePlan) -> None:
        make_disk(plan.layer / DISK, self._disk_size(plan))

    def _disk_size(self, plan: MachinePlan) -> int:
        return disk_size(plan.disk_bytes) if plan.disk_bytes else self._disk_bytes

    def _restored(self, plan: MachinePlan, image: Path) -> Process:
        if (image / qemu_memory.MEMORY).exists():
            with qemu_memory.kept(image, plan.memory_bytes) as (memory, devices):
                return self._start(plan, Origin(memory=memory, saved=True, state=devices))
        file = image / qemu_memory.STATE
        state = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            if (size := os.fstat(state).st_size) > qemu_memory.most_bytes(plan.memory_bytes):
                raise OSError(f"{file} has {size} bytes, more than such a machine's memory")
            return self._start(plan, Origin(state=state))
        finally:
            os.close(state)

    # -- templates ---------------------------------------------------------------------------------

    def _begun(self, plan: MachinePlan, templates: Templates) -> Process | None:
        """A machine that begins with a template; None when it has to boot."""
        maker = self._maker()
        waits = self._kind(plan)

        def wait() -> Template:
            return maker.waiting(plan)

        def mount() -> Template:
            with templates.using(waits, wait) as base:
                if base is None:
                    raise OSError("there is none that waits, which it goes on from")
                return maker.mounted(plan, base, self._disk_size(plan))

        # A disk keeps the size that its driver found, so one with drives mounts its own disk too.
        if not plan.mounts and not (plan.layer / DISK).exists():
            mounted = self._kind(plan, self._disk_size(plan))
            # Most images that are new are used once.
            if templates.wanted_again(mounted) and (process := self._cloned(plan, templates, mounted, mount)) is not None:
                return process
        return self._cloned(plan, templates, waits, wait)

    def _cloned(self, plan: MachinePlan, templates: Templates, kind: Kind, make: Callable[[], Template]) -> Process | None:
        disk = plan.layer / DISK
        with templates.using(kind, make) as template:
            if template is None:
                return None
            try:
                if template.disk is not None:
                    copy_disk(template.disk, disk)
                else:
                    self._make_disk(plan)
                state = template.reading()
                try:
                    return self._start(plan, Origin(memory=template.memory, sealed=True, state=state))
                finally:
                    os.close(state)
            except OSError as error:
                log.warning("a template did not work, and is made again: %s%s", error, last_words(plan.directory))
                if template.disk is not None:
                    # Whoever wrote to it had it mounted, and nobody else may.
                    disk.unlink(missing_ok=True)
        templates.throw_away(kind)
        return None

    def _kind(self, plan: MachinePlan, disk_bytes: int = 0) -> Kind:
        def told(file: Path) -> tuple[int, ...]:
            found = file.stat()
            return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)

        files = [Path(self._program()), self.guest.kernel, self.guest.initramfs, *(plan.lowers if disk_bytes else ())]
        return Kind(
            files=tuple(told(file) for file in files),
            vcpus=plan.vcpus,
            memory_bytes=plan.memory_bytes,
            layers=len(plan.lowers),
            card=bool(plan.address),
            disk_bytes=disk_bytes,
            drives=len(plan.mounts),
        )

    def _maker(self) -> Maker:
        return Maker(
            directory=self._making,
            cgroups=self.cgroups,
            probe_root=self.guest.probe_root,
            boot_timeout_s=self.traits.boot_timeout_s,
            start=self._start,
            monitor=monitor,
            end=self._end_of_template,
        )

    def _end_of_template(self, machine_id: str, directory: Path, process: Process | None) -> str:
        self.remove(machine_id, directory, process)
        return last_words(directory)

    # -- start -------------------------------------------------------------------------------------

    def _program(self) -> str:
        binary = shutil.which(self.binary, path=kernel.command_environment()["PATH"])
        if binary is None:
            raise FileNotFoundError(f"{self.binary} is not installed. Run `make setup`.")
        return os.path.realpath(binary)

    def _start(self, plan: MachinePlan, origin: Origin) -> Process:
        with ThreadPoolExecutor(2, thread_name_prefix=f"start-{plan.machine_id}") as beside:
            return self._started(plan, origin, beside)

    def _started(self, plan: MachinePlan, origin: Origin, beside: ThreadPoolExecutor) -> Process:
        """Start a machine. What takes the kernel long is done `beside`, while QEMU starts."""
        binary = self._program()
        with contextlib.ExitStack() as opened:

            def descriptor(path: Path, flags: int = os.O_RDONLY) -> int:
                number = os.open(path, flags | os.O_CLOEXEC)
                opened.callback(os.close, number)
                return number

            monitor = opened.enter_context(bind_unix(plan.directory / MONITOR))
            monitor.listen(1)
            agent = opened.enter_context(bind_unix(plan.channel_dir / MONITOR_SOCKET_NAME))
            agent.listen(1)
            card, joined = _card(plan, opened, beside, alone=origin.waits)
            machine = VirtualMachine(
                accelerator=self.accelerator,
                vcpus=plan.vcpus,
                memory_bytes=plan.memory_bytes,
                kernel=descriptor(self.guest.kernel),
                initramfs=descriptor(self.guest.initramfs),
                layers=tuple(descriptor(image) for image in plan.lowers),
                disk=descriptor(plan.layer / DISK, os.O_RDWR),
                drives=tuple(descriptor(mount.source, os.O_RDWR | os.O_NOFOLLOW) for mount in plan.mounts),
                channel=agent.fileno(),
                monitor=monitor.fileno(),
                tsc_khz=tsc.frequency_khz() if self.accelerator is Accelerator.TCG else None,
                card=card,
                waits=origin.waits,
                comes_in=origin.state is not None,
                memory=origin.memory,
                maps_privately=origin.sealed or origin.saved,
                preload=descriptor(preload_path()),
            )
            root = plan.directory / JAIL
            root.mkdir(mode=0o700, exist_ok=True)
            # The last opened: if nothing starts, nobody reads it.
            output, said = os.pipe2(os.O_CLOEXEC)
            opened.callback(os.close, said)
            console = open(output, "rb", buffering=0)  # noqa: SIM115 - who reads it closes it
            try:
                child = jail.start(
                    root,
                    [*self._unprivileged(plan), *command(binary, machine, origin.line)],
                    cgroups=self._limit(plan, origin) if plan.cgroup else (),
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
            self._record(plan, process, origin)
            with Monitor(plan.directory / MONITOR, START_TIMEOUT_S) as asked:
                moved = None
                if plan.cgroup:
                    # The kernel takes about as long to move them as QEMU to read.
                    threads = _guest_threads(process, asked)
                    moved = beside.submit(self.cgroups.set_apart, plan.cgroup, GUEST_CGROUP, threads)
                else:
                    asked.status()
                if origin.state is not None:
                    qemu_memory.read(asked, origin.state, without_memory=origin.memory is not None and not origin.saved)
                if joined is not None:
                    joined.result()
                if origin.state is not None:
                    # What it does before it is where it is counted is nobody's yet.
                    asked.ask("cont")
                if moved is not None:
                    moved.result()
        except BaseException:
            child.kill()
            # So that what it said is in the log, and its descriptors are closed.
            reader.join(DEATH_TIMEOUT_S)
            raise
        return process

    def _unprivileged(self, plan: MachinePlan) -> list[str]:
        """What becomes QEMU, so that the process stays the same."""
        # A disk's file is as large as the disk from the beginning. What a template's devices are written to is less than memory.
        sizes = (file.stat().st_size for file in (plan.layer / DISK, *(mount.source for mount in plan.mounts)))
        bounded = ["prlimit", f"--fsize={max(plan.memory_bytes, *sizes)}", "--core=0", "--"]
        uid = FIRST_UID + int(hashlib.sha256(plan.machine_id.encode()).hexdigest()[:7], 16)
        words = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"]
        return [*bounded, *words, *self._groups(), "--"]

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

    def _limit(self, plan: MachinePlan, origin: Origin) -> list[Path]:
        """The machine's cgroup, made and bounded; its directories."""
        memory = plan.memory_bytes + OVERHEAD_BYTES
        if origin.sealed:
            # A page that is written where the template has none is there twice: in the template's file too, where it counts for
            # whoever came to it first.
            memory += plan.memory_bytes
        return limits.bounded(self.cgroups, plan.cgroup, memory_bytes=memory, vcpus=plan.vcpus, threads=MAX_THREADS)

    def _record(self, plan: MachinePlan, process: Process, origin: Origin) -> None:
        self._records.mkdir(parents=True, exist_ok=True, mode=0o700)
        record: dict[str, object] = {"pid": process.pid, "start_ticks": process.start_ticks, "directory": str(plan.directory)}
        if origin.saved and origin.memory is not None:
            record["file"] = asdict(FileId.of(origin.memory))
        (self._records / plan.machine_id).write_text(json.dumps(record | {"memory_bytes": plan.memory_bytes}))

    # -- standing still ----------------------------------------------------------------------------

    def suspend(self, machine_id: str) -> None:
        with self._attentive.pop(machine_id, None) or self._monitor_of(machine_id) as asked:
            qemu_memory.stand_still(asked)

    def resume(self, machine_id: str) -> None:
        self._hang_up(machine_id)
        with self._monitor_of(machine_id) as asked:
            qemu_memory.go_on(asked)

    def before_checkpoint(self, machine_id: str, image: Path) -> None:
        if (mapped := self._mapping(machine_id)) is not None:
            qemu_memory.begin(image / qemu_memory.BEGUN, mapped)
        self._hang_up(machine_id)
        self._attentive[machine_id] = self._monitor_of(machine_id)

    def _hang_up(self, machine_id: str) -> None:
        """A monitor speaks with one at a time."""
        if (asked := self._attentive.pop(machine_id, None)) is not None:
            asked.close()

    def checkpoint(self, machine_id: str, image: Path) -> None:
        memory_bytes = self._told(machine_id).memory_bytes
        with self._monitor_of(machine_id) as asked:
            if (image / qemu_memory.BEGUN).exists() and (mapped := self._mapping(machine_id)) is not None:
                qemu_memory.finish(asked, image, mapped, memory_bytes)
            else:
                qemu_memory.save(asked, image / qemu_memory.STATE, memory_bytes)

    def _mapping(self, machine_id: str) -> Mapping | None:
        """Where a machine has the file of its memory that others have too; None for one that booted."""
        process, told = self.recorded(machine_id), self._told(machine_id)
        return mapping(process.pid, told.memory_bytes, told.file) if process is not None else None

    def _monitor_of(self, machine_id: str) -> Monitor:
        return monitor(self._told(machine_id).directory)

    def _told(self, machine_id: str) -> _Record:
        try:
            told = json.loads((self._records / machine_id).read_text())
            file = FileId(int(told["file"]["device"]), int(told["file"]["inode"])) if "file" in told else None
            return _Record(Path(told["directory"]), int(told["memory_bytes"]), file)
        except (ValueError, KeyError, TypeError) as error:
            raise OSError(f"the record of {machine_id} is none, or of an older release") from error

    def fingerprint(self) -> str:
        binary = shutil.which(self.binary, path=kernel.command_environment()["PATH"])
        found = hashlib.sha256(self.accelerator.encode() + processor.model())
        found.update(BALLOON.encode())
        for file in (Path(binary) if binary else None, self.guest.kernel, self.guest.initramfs):
            found.update(processor.digest(file) if file else hashlib.sha256().digest())
        return found.hexdigest()

    # -- end ---------------------------------------------------------------------------------------

    def last_words(self, directory: Path) -> str:
        return console_log.reason(directory / CONSOLE_LOG)

    def kill(self, process: Process) -> None:
        process.kill()
        process.wait_gone(DEATH_TIMEOUT_S)

    def remove(self, machine_id: str, directory: Path, process: Process | None) -> None:
        self._hang_up(machine_id)
        if process is None:
            process = self.recorded(machine_id)
        if process is not None:
            self.kill(process)
        for socket in (directory / MONITOR, directory / "channel" / MONITOR_SOCKET_NAME):
            socket.unlink(missing_ok=True)
        (self._records / machine_id).unlink(missing_ok=True)
        # Of a template that a dead host was making.
        shutil.rmtree(self._making / machine_id, ignore_errors=True)

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

    def leave(self) -> None:
        if self.templates is not None:
            self.templates.close()

    def close(self) -> None:
        self.leave()
        for directory in (self._records, self._making):
            shutil.rmtree(directory, ignore_errors=True)


def last_words(directory: Path) -> str:
    """What a machine's console and QEMU said last, for the end of a message; empty where they said nothing."""
    with contextlib.suppress(OSError):
        if text := (directory / CONSOLE_LOG).read_text(errors="replace").strip():
            return f"; its console ended with: {text[-LAST_WORDS_BYTES:]}"
    return ""


def monitor(directory: Path) -> Monitor:
    """A connection to the monitor of the machine of `directory`. Raises `MonitorFailed`."""
    return Monitor(directory / MONITOR, MONITOR_TIMEOUT_S)


def _card(
    plan: MachinePlan, opened: contextlib.ExitStack, beside: ThreadPoolExecutor, *, alone: bool
) -> tuple[Card | None, Future[None] | None]:
    """The network card of a machine, if it has one, and what joins it with its link `beside`; `alone`: on one that leads
    nowhere."""
    if not plan.address:
        return None, None
    descriptor = tap.alone() if alone else tap.attach(plan.namespace)
    opened.callback(os.close, descriptor)
    card = Card(descriptor, tap.HARDWARE, plan.address, plan.nameserver)
    if alone:
        return card, None
    return card, beside.submit(tap.join, plan.namespace, plan.address, plan.nameserver)


def _guest_threads(process: Process, asked: Monitor) -> list[int]:
    """The threads of QEMU that run the guest, by our numbers for them. It tells those of its own namespace; only threads that it
    has are believed."""
    told = asked.ask("query-cpus-fast")
    found = {processor.get("thread-id") for processor in told if isinstance(processor, dict)} if isinstance(told, list) else set()
    threads = [ours for ours, inner in kernel.threads(process.pid).items() if inner in found]
    if not threads or len(threads) != len(found):
        raise MonitorFailed("QEMU's monitor told threads that it does not have")
    return threads


__all__ = [
    "DISK",
    "BootFailed",
    "Guest",
    "MonitorFailed",
    "Qemu",
    "disk_size",
    "last_words",
    "make_disk",
    "monitor",
]

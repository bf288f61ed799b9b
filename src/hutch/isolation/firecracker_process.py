"""One Firecracker process: started in its jail, asked through its API, ended.

Whether a machine lives is told by its process and its agent, never by an exit code: Firecracker ends with 0 when its guest
restarts, and may when its guest crashes. What it and the guest's kernel last said is in `console.log`, which has a bound.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from hutch.host import kernel
from hutch.host.cgroups import Cgroups
from hutch.host.kernel import Process
from hutch.isolation import console_log, limits
from hutch.isolation.firecracker_api import Api, FirecrackerFailed
from hutch.isolation.firecracker_config import (
    API,
    MEMORY,
    MIB,
    STATE,
    Loading,
    Request,
    SnapshotKind,
    Version,
    VirtualMachine,
    create_snapshot,
    pause,
    resume,
)
from hutch.isolation.firecracker_jail import Jail, Placed

CONSOLE_LOG = "console.log"
LAST_WORDS_BYTES = 1500
LOOK_S = 0.01
DEATH_TIMEOUT_S = 10.0
OVERHEAD_BYTES = 128 * MIB
"""Firecracker beside the guest's memory."""
MAX_THREADS = 64
_FILTERED = "2"
"""How `/proc/PID/status` names a filter of system calls."""
_RUNS_THE_GUEST = re.compile(r"fc_vcpu \d+")
"""What Firecracker calls a thread that runs a processor of its guest."""
_HINTS = (
    (
        "Unable to mount root fs",
        "the kernel found no root: it has no driver for the disk or its file system, or no initramfs support",
    ),
    ("Requested init", "the root has no agent at the path that `init=` names"),
    ("No working init found", "the root has no agent where a kernel looks for one; name it by `init=`"),
    ("has no vsock", "the kernel was built without vsock, which is the only way to the agent"),
    ("can't be reached over vsock: No such device", "the kernel was built without virtio's vsock"),
    ("invalid elf", "Firecracker takes an uncompressed kernel: a `vmlinux`"),
    ("Error creating KVM object", "Firecracker's user may not use /dev/kvm, or there is none"),
)


@dataclass(frozen=True, slots=True)
class Launch:
    """What one process is started with. `memory_bytes` is the guest's; `channel` is the directory in which the host listens.

    Without `cgroup` nothing bounds the process: only for `hutch debug`. `headroom_bytes` is for what it saves on a file system
    in memory, which counts to the bound of its cgroup.
    """

    jail: Jail
    channel: Path
    files: tuple[Placed, ...]
    vcpus: int
    memory_bytes: int
    cgroups: Cgroups | None = None
    cgroup: str = ""
    namespace: Path | None = None
    headroom_bytes: int = 0


class Monitor:
    """A Firecracker that runs, with or without a machine in it. All methods block, and raise `FirecrackerFailed` or `OSError`."""

    def __init__(
        self, jail: Jail, channel: Path, process: Process, api_timeout_s: float, reader: threading.Thread | None = None
    ) -> None:
        self.jail = jail
        self.process = process
        self._reader = reader
        self.api = Api(channel / Path(API).name, api_timeout_s, process.alive)

    def boot(self, machine: VirtualMachine) -> None:
        """Make the machine and start it."""
        for request in machine.requests():
            self.api.do(request)

    def load(self, loading: Loading, version: Version) -> None:
        """Have the machine of the snapshot in the jail go on."""
        try:
            request = loading.request(version)
        except ValueError as error:
            raise FirecrackerFailed(str(error)) from error
        self.api.do(request)

    def pause(self) -> None:
        self.api.do(pause())

    def resume(self) -> None:
        self.api.do(resume())

    def snapshot(self, kind: SnapshotKind, state: str = STATE, memory: str = MEMORY, at_least_s: float = 0.0) -> None:
        """Of a machine that is paused, into files of the jail, which must not exist. `Jail.take` gets them out. It may take
        `at_least_s` seconds, however short other answers' deadline is."""
        for name in (state, memory):
            if os.path.lexists(self.jail.root / name):
                raise FirecrackerFailed(f"There is a {name} already in the machine's directory")
        api = Api(self.api.path, max(self.api.timeout_s, at_least_s), self.process.alive)
        api.do(create_snapshot(kind, state, memory))

    def ask(self, path: str) -> dict[str, object]:
        return self.api.do(Request("GET", path))

    def is_filtered(self) -> bool:
        """Whether every thread of it is under a filter of system calls, as a release's build is once a machine runs."""
        modes = []
        try:
            for task in Path(f"/proc/{self.process.pid}/task").iterdir():
                # A thread may end while it is looked at.
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    modes.append(_status(task / "status").get("Seccomp"))
        except OSError as error:
            raise FirecrackerFailed(f"Firecracker ended: {error}") from error
        return bool(modes) and all(mode == _FILTERED for mode in modes)

    def guest_threads(self, vcpus: int) -> list[int]:
        """The threads that run the guest, of a machine that was just started. Raises `FirecrackerFailed` where there are not as
        many as it has processors."""
        found = []
        for task in Path(f"/proc/{self.process.pid}/task").glob("*"):
            with contextlib.suppress(OSError):
                if _RUNS_THE_GUEST.fullmatch((task / "comm").read_text(errors="replace").strip()):
                    found.append(int(task.name))
        if len(found) != vcpus:
            raise FirecrackerFailed(f"Firecracker runs {vcpus} processors in {len(found)} threads: another release's names?")
        return found

    def end(self) -> None:
        """Kill it, and wait until it is gone and what it said is in its log."""
        kill(self.process)
        if self._reader is not None:
            self._reader.join(DEATH_TIMEOUT_S)


def kill(process: Process) -> None:
    """End a Firecracker at once. Idempotent."""
    process.kill()
    process.wait_gone(DEATH_TIMEOUT_S)
    # The jailer's child is ours to bury where we take over orphans.
    with contextlib.suppress(ChildProcessError):
        os.waitpid(process.pid, os.WNOHANG)


def start(launch: Launch, api_timeout_s: float) -> Monitor:
    """Start Firecracker and wait until its API answers. Raises `OSError`; what was made until then is for `Jail.clear`."""
    jail = launch.jail
    jail.prepare(launch.channel, launch.files)
    words = _confined(launch)
    # Its own session: a terminal's Ctrl-C must not reach sandboxes.
    child = subprocess.Popen(
        words,
        cwd="/" if jail.jailer is not None else jail.root,
        env=kernel.command_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert child.stdout is not None
    log = jail.directory / CONSOLE_LOG
    reader = threading.Thread(target=console_log.keep, args=(child, child.stdout, log), name=f"console-{jail.machine_id}")
    reader.daemon = True
    reader.start()
    process: Process | None = None
    try:
        process = _jailed(child, jail, api_timeout_s) if jail.jailer is not None else kernel.process(child.pid)
        monitor = Monitor(jail, launch.channel, process, api_timeout_s, reader)
        monitor.ask("/version")
    except OSError:
        child.kill()
        if process is not None:
            kill(process)
        # So that what it said is in the log.
        reader.join(DEATH_TIMEOUT_S)
        raise
    return monitor


def _confined(launch: Launch) -> list[str]:
    """The command, through what it is started by. Each becomes the next."""
    largest = max([launch.memory_bytes, *(file.source.stat().st_size for file in launch.files if file.writable)])
    words = launch.jail.command(launch.cgroups, launch.cgroup, launch.namespace, largest)
    if launch.jail.jailer is not None:
        # A network of its own: empty, unless the jailer then enters a namespace with the machine's tap.
        words = ["unshare", "--net", "--ipc", "--", *words]
    if launch.cgroups is not None and launch.cgroup:
        memory = launch.memory_bytes + OVERHEAD_BYTES + launch.headroom_bytes
        directories = limits.bounded(launch.cgroups, launch.cgroup, memory_bytes=memory, vcpus=launch.vcpus, threads=MAX_THREADS)
        words = [*limits.joining(directories), *words]
    return words


def _jailed(child: subprocess.Popen[bytes], jail: Jail, timeout_s: float) -> Process:
    """The process that the jailer started, as the machine's user, in a process table of its own."""
    try:
        code = child.wait(timeout_s)
    except subprocess.TimeoutExpired as error:
        raise FirecrackerFailed(f"Firecracker's jailer did not end within {timeout_s:g} s") from error
    pid = _pid(jail)
    if code != 0 or pid is None:
        raise FirecrackerFailed(f"Firecracker's jailer ended with {code} and started nothing")
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            process = kernel.process(pid)
            users = set(_status(Path(f"/proc/{pid}/status"))["Uid"].split())
        except (OSError, KeyError) as error:
            raise FirecrackerFailed("Firecracker ended before its API answered") from error
        if users == {str(jail.uid)}:
            return process
        # It becomes that user just before it becomes Firecracker.
        if time.monotonic() > deadline:
            process.kill()
            raise FirecrackerFailed(f"Firecracker does not run as its machine's user {jail.uid}")
        # The jailer becomes Firecracker without a word.
        time.sleep(LOOK_S)


def _pid(jail: Jail) -> int | None:
    try:
        descriptor = os.open(jail.pid_file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        said = file.read(16).strip() if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""
    return int(said) if said.isdigit() and int(said) > 1 else None


def _status(file: Path) -> dict[str, str]:
    lines = (line.partition(":") for line in file.read_text().splitlines())
    return {name: value.strip() for name, _, value in lines}


def last_words(directory: Path) -> str:
    """What a machine's console and Firecracker said last, for the end of a message; empty where they said nothing."""
    with contextlib.suppress(OSError):
        if text := (directory / CONSOLE_LOG).read_text(errors="replace").strip():
            hints = [hint for sign, hint in _HINTS if sign.lower() in text.lower()]
            meaning = f" (probably {'; '.join(hints)})" if hints else ""
            return f"{meaning}; it and its console ended with: {text[-LAST_WORDS_BYTES:]}"
    return "; it said nothing"

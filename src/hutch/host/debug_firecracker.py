"""`hutch debug firecracker`: one Firecracker machine with nothing else, for those who work on that backend.

    hutch debug firecracker --binary firecracker --jailer jailer --kernel vmlinux --root agent.img boot
    … exec -- PROGRAM …            boot, and run a program as root
    … snapshot DIR [-- PROGRAM …]  boot, run a program where one is named, save the machine into DIR
    … restore DIR [-- PROGRAM …]   have that machine go on in a process of its own, and run a program

A machine lives as long as the call. It starts from an initramfs, from a root disk whose only file may be the agent, or from an
initramfs over images and a disk. It needs no server and no set-up directory, only what is named.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hutch.errors import HutchError
from hutch.host import kernel
from hutch.host.binaries import guest_path
from hutch.host.cgroups import Cgroups
from hutch.host.debug_qemu import ended_by_signals
from hutch.isolation import firecracker_snapshot, limits
from hutch.isolation.firecracker_config import (
    DISK,
    INITRAMFS,
    KERNEL,
    MEMORY,
    MIB,
    STATE,
    VSOCK,
    Drive,
    Interface,
    Loading,
    RateLimiter,
    SnapshotKind,
    TokenBucket,
    VirtualMachine,
    kernel_line,
)
from hutch.isolation.firecracker_jail import Placed
from hutch.isolation.firecracker_kernel import loadable
from hutch.isolation.firecracker_machine import Limits, Plan, Programs, Running, with_machine
from hutch.isolation.firecracker_process import MAX_THREADS, OVERHEAD_BYTES
from hutch.isolation.firecracker_snapshot import BadSnapshot, ReadOnlyFile, Snapshot
from hutch.isolation.qemu import INITRAMFS as GUEST_INITRAMFS
from hutch.isolation.qemu import KERNEL as GUEST_KERNEL
from hutch.isolation.qemu import make_disk
from hutch.settings import Settings, load
from hutch.wire import Connection
from hutch.wire.connection import Data

DEADLINE_S = 600.0
MEMORY_MB, DISK_MB = 128, 64
STATE_DIR = Path("/var/lib/hutch-debug/firecracker")
NETWORK = "eth0"
CHANGED_STATE, CHANGED_MEMORY = "state.diff", "memory.diff"
COPY_TIMEOUT_S = 600.0
MAX_COLLECTED_BYTES = 16 * MIB


def main(argv: Sequence[str]) -> int:
    """Run one call; the exit code, with a program its own."""
    words, program = _split(argv)
    parser = _parser()
    options = parser.parse_args(words)
    program = [*getattr(options, "words", ()), *program]
    if options.call == "exec" and not program:
        parser.error("name a program to run, for example: hutch debug firecracker … exec -- /init --version")
    if options.call == "boot" and program:
        parser.error("`boot` runs no program; `exec` does")
    try:
        return _call(options, program)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except (HutchError, OSError, ValueError) as error:
        message = error.message if isinstance(error, HutchError) else str(error)
        if options.json:
            print(json.dumps({"error": {"message": message}}))
        print(f"hutch debug: {message}", file=sys.stderr)
        return 1


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """What is ours, and the program behind `--`."""
    words = list(argv)
    at = words.index("--") if "--" in words else len(words)
    return words[:at], words[at + 1 :]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hutch debug firecracker",
        description="Drive one Firecracker machine with nothing else. Options may stand before or after the call's name.",
    )
    _add_options(parser, default=None)
    calls = parser.add_subparsers(dest="call", required=True)
    for name, does in (
        ("boot", "boot a machine, say what took how long, end it"),
        ("exec", "boot a machine and run a program in it as root"),
        ("snapshot", "boot a machine, run a program where one is named, and save it"),
        ("restore", "have a saved machine go on in a new process, and run a program where one is named"),
    ):
        call = calls.add_parser(name, help=does)
        _add_options(call, default=argparse.SUPPRESS)
        if name in ("snapshot", "restore"):
            call.add_argument("directory", type=Path, metavar="DIR")
        if name == "snapshot":
            call.add_argument(
                "--diff",
                action="store_true",
                help="save it twice: all of it, then only what changed since, which is merged into the first",
            )
        if name == "exec":
            call.add_argument("words", nargs="*", metavar="PROGRAM", help="the program and its arguments, behind `--`")
    return parser


def _add_options(parser: argparse.ArgumentParser, default: object) -> None:
    def add(*names: str, **more: Any) -> None:
        group.add_argument(*names, default=default if more.get("action") != "append" or default is not None else None, **more)

    group = parser.add_argument_group("programs")
    add("--binary", help="Firecracker's program (default: isolation.firecracker.binary)")
    add("--jailer", help="its jailer (default: isolation.firecracker.jailer)")
    add("--no-jailer", action="store_const", const=True, help="start it without one, with the caller's rights")
    add("--config", type=Path, help="configuration file")
    group = parser.add_argument_group("what the machine starts from")
    add("--kernel", type=Path, help="vmlinux, or a bzImage that holds one (default: isolation.firecracker.kernel, then setup's)")
    add("--kernel-args", help="the kernel's command line, to which the words for the agent are added")
    add("--initrd", type=Path, help="initramfs with the agent as /init (default without --root: setup's)")
    add("--root", type=Path, help="disk image as root, read-only; its only file may be the agent")
    add("--init", help="the agent's path in the root disk (default /init)")
    add("--layer", type=Path, action="append", help="EROFS image, the lowest first, below a writable disk; may be repeated")
    add("--disk-mb", type=int, help=f"size of the disk above the layers, in MiB (default {DISK_MB})")
    group = parser.add_argument_group("the machine")
    add("--vcpus", type=int, help="processors (default 1)")
    add("--memory-mb", type=int, help=f"memory in MiB (default {MEMORY_MB})")
    add("--disk-rate", type=int, help="bytes a second that each disk may move")
    add("--tap", help="tap device to give it as eth0")
    add("--net-rate", type=int, help="bytes a second that it may receive, and send")
    add("--netns", type=Path, help="network namespace that has the tap (with a jailer)")
    group = parser.add_argument_group("this call")
    add("--deadline", type=float, help=f"seconds until the agent must have answered (default {DEADLINE_S:g})")
    add("--api-deadline", type=float, help="seconds for each answer of Firecracker's API (default: as --deadline)")
    add("--state-dir", type=Path, help=f"where the machine's directory is made (default {STATE_DIR} for root)")
    add("--json", action="store_const", const=True, help="one JSON document on standard output")


@dataclass(frozen=True, slots=True)
class _Around:
    """What every call needs: programs, deadlines, and where the machine's directory is made."""

    programs: Programs
    limits: Limits
    state_dir: Path
    cgroups: Cgroups | None
    cgroup: str
    no_cgroup: str | None


def _call(options: argparse.Namespace, program: list[str]) -> int:
    settings = load(options.config)
    around = _around(options, settings)
    # The jailer leaves Firecracker to whoever takes orphans.
    with kernel.orphans_adopted(), tempfile.TemporaryDirectory(prefix="call-", dir=around.state_dir) as scratch:
        if options.call == "restore":
            snapshot = firecracker_snapshot.read(options.directory)
            plan = _restored(options, around, snapshot, Path(scratch))
        else:
            plan = _booted(options, settings, around, Path(scratch))
        if options.call == "snapshot":
            _require_empty(options.directory)

        async def use(running: Running) -> int:
            return await _used(options, around, plan, running, program)

        return asyncio.run(ended_by_signals(lambda: with_machine(around.programs, plan, use, around.limits, around.state_dir)))


def _around(options: argparse.Namespace, settings: Settings) -> _Around:
    configured = settings.isolation.firecracker
    binary = options.binary or configured.binary
    if binary is None:
        raise FileNotFoundError("Name Firecracker's program: --binary, or isolation.firecracker.binary.")
    if options.jailer and options.no_jailer:
        raise ValueError("--jailer and --no-jailer can't be used together.")
    jailer = None if options.no_jailer else options.jailer or configured.jailer
    if jailer is None and not options.no_jailer:
        told = "no jailer is named (--jailer, isolation.firecracker.jailer): Firecracker runs with your rights"
        print(f"hutch debug firecracker: {told}", file=sys.stderr)
    programs = Programs.checked(binary, jailer)
    deadline_s = options.deadline if options.deadline is not None else DEADLINE_S
    api_s = options.api_deadline if options.api_deadline is not None else deadline_s
    if deadline_s <= 0 or api_s <= 0:
        raise ValueError("A deadline is a number of seconds above 0.")
    state_dir = options.state_dir or (STATE_DIR if os.geteuid() == 0 else Path(tempfile.gettempdir()))
    state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    cgroups, cgroup, why = _cgroup(options)
    return _Around(programs, Limits(deadline_s, api_s), state_dir.resolve(), cgroups, cgroup, why)


def _cgroup(options: argparse.Namespace) -> tuple[Cgroups | None, str, str | None]:
    """The machine's cgroup, or why it has none: a machine to look at is worth having without bounds, too."""
    if os.geteuid() != 0:
        return None, "", "only root makes cgroups"
    cgroup = f"/hutch-debug-firecracker-{secrets.token_hex(6)}"
    memory_bytes = (options.memory_mb or MEMORY_MB) * MIB + OVERHEAD_BYTES
    try:
        cgroups = Cgroups.detect()
    except OSError as error:
        return None, "", str(error)
    try:
        limits.bounded(cgroups, cgroup, memory_bytes=memory_bytes, vcpus=options.vcpus or 1, threads=MAX_THREADS)
    except OSError as error:
        cgroups.remove(cgroup)
        return None, "", str(error)
    cgroups.remove(cgroup)
    return cgroups, cgroup, None


def _booted(options: argparse.Namespace, settings: Settings, around: _Around, scratch: Path) -> Plan:
    configured = settings.isolation.firecracker
    kernel_file = options.kernel or configured.kernel or guest_path() / GUEST_KERNEL
    arguments = options.kernel_args if options.kernel_args is not None else configured.kernel_args
    initrd = options.initrd or (None if options.root else guest_path() / GUEST_INITRAMFS)
    for file in filter(None, (kernel_file, initrd, options.root, *(options.layer or ()))):
        if not file.is_file():
            raise FileNotFoundError(f"There is no file {file}.")
    layers: list[Path] = options.layer or []
    if layers and (options.root or not initrd):
        raise ValueError("--layer needs an initramfs that puts the images on top of each other, and no --root.")
    limiter = _rate(options.disk_rate)
    files = [Placed(KERNEL, loadable(kernel_file.resolve(), scratch))]
    drives = []
    if initrd is not None:
        files.append(Placed(INITRAMFS, initrd))
    if options.root is not None:
        files.append(Placed("root", options.root))
        drives.append(Drive("root", "root", read_only=True, root=True, limiter=limiter))
    for number, layer in enumerate(layers):
        files.append(Placed(f"layer{number}", layer))
        drives.append(Drive(f"layer{number}", f"layer{number}", read_only=True, limiter=limiter))
    if layers:
        disk = scratch / DISK
        make_disk(disk, (options.disk_mb or DISK_MB) * MIB)
        files.append(Placed(DISK, disk, writable=True))
        drives.append(Drive(DISK, DISK, read_only=False, limiter=limiter))
    interfaces: tuple[Interface, ...] = ()
    if options.tap is not None:
        rate = _rate(options.net_rate)
        interfaces = (Interface(NETWORK, options.tap, received=rate, sent=rate),)
    machine = VirtualMachine(
        vcpus=1 if options.vcpus is None else options.vcpus,
        memory_bytes=(MEMORY_MB if options.memory_mb is None else options.memory_mb) * MIB,
        kernel_line=kernel_line(arguments, len(layers), init=None if options.root is None else options.init or "/init"),
        initramfs=initrd is not None,
        drives=tuple(drives),
        interfaces=interfaces,
        track_dirty_pages=options.call == "snapshot" and options.diff,
    )
    # Up to two copies of its memory, where the machine's directory is in memory.
    headroom = 2 * machine.memory_bytes if options.call == "snapshot" else 0
    return Plan(
        tuple(files), machine, machine.vcpus, machine.memory_bytes, around.cgroups, around.cgroup, options.netns, headroom
    )


def _restored(options: argparse.Namespace, around: _Around, snapshot: Snapshot, scratch: Path) -> Plan:
    directory = options.directory
    files = [Placed(STATE, directory / STATE), Placed(MEMORY, directory / MEMORY)]
    files += [Placed(image.name, Path(image.source)) for image in snapshot.images]
    if snapshot.has_disk:
        # Each machine that goes on has its own.
        _copy(directory / DISK, scratch / DISK)
        files.append(Placed(DISK, scratch / DISK, writable=True))
    if options.tap is not None and not snapshot.interfaces:
        raise ValueError("The saved machine has no network card: --tap has to be there when it is saved.")
    networks = ((snapshot.interfaces[0], options.tap),) if options.tap is not None else ()
    loading = Loading(networks=networks, vsock=None if snapshot.vsock == VSOCK else VSOCK)
    return Plan(tuple(files), loading, snapshot.vcpus, snapshot.memory_bytes, around.cgroups, around.cgroup, options.netns)


def _rate(bytes_per_s: int | None) -> RateLimiter | None:
    return None if bytes_per_s is None else RateLimiter(bandwidth=TokenBucket(bytes_per_s, 1000))


async def _used(options: argparse.Namespace, around: _Around, plan: Plan, running: Running, program: list[str]) -> int:
    """What the call wants of its machine; the exit code."""
    told: dict[str, Any] = {
        "firecracker": str(around.programs.version),
        "jailed": around.programs.jailer is not None,
        "seccomp": await asyncio.to_thread(running.monitor.is_filtered),
        "cgroup": around.no_cgroup is None,
        "api_answered_ms": running.started_ms,
        ("restored_ms" if options.call == "restore" else "started_ms"): running.running_ms,
        "agent_answered_ms": running.answered_ms,
    }
    if options.call == "restore":
        began = time.monotonic()
        await running.freshen()
        told["freshened_ms"] = _ms_since(began)
    code = 0
    said: dict[str, str] = {}
    if program:
        began = time.monotonic()
        code, said = await execute(running.connection, program, forward=not options.json)
        told["command_ms"] = _ms_since(began)
        told["exit_code"] = code
    if options.call == "snapshot":
        told |= await _saved(options, around, plan, running)
    if options.json:
        print(json.dumps(told | said))
    else:
        # Standard output is the program's.
        print(_lines(told), file=sys.stderr if program else sys.stdout)
    return code


def _ms_since(began: float) -> int:
    return round((time.monotonic() - began) * 1000)


def _lines(told: dict[str, Any]) -> str:
    width = max(len(name) for name in told)
    shown = {True: "yes", False: "no"}
    return "\n".join(
        f"{name:<{width}}  {shown.get(value, value) if isinstance(value, bool) else value}" for name, value in told.items()
    )


async def _saved(options: argparse.Namespace, around: _Around, plan: Plan, running: Running) -> dict[str, Any]:
    """Save the machine into its directory; what took how long. Afterwards the machine stands still, for ever."""
    directory: Path = options.directory
    told: dict[str, Any] = {}
    jail = running.monitor.jail
    if options.diff:
        began = time.monotonic()
        async with running.still():
            told["full_ms"] = await _timed(running, SnapshotKind.FULL, STATE, MEMORY)
            told["full_pause_ms"] = _ms_since(began)
        told["agent_back_ms"] = _ms_since(began)
    began = time.monotonic()
    await asyncio.to_thread(running.monitor.pause)
    if options.diff:
        told["diff_ms"] = await _timed(running, SnapshotKind.DIFF, CHANGED_STATE, CHANGED_MEMORY)
    else:
        told["full_ms"] = await _timed(running, SnapshotKind.FULL, STATE, MEMORY)
    disks = [file for file in plan.files if file.writable]
    for disk in disks:
        await asyncio.to_thread(_copy, disk.source, directory / disk.name)
    told["pause_ms"] = _ms_since(began)

    def take() -> None:
        jail.take(MEMORY, directory / MEMORY)
        jail.take(CHANGED_STATE if options.diff else STATE, directory / STATE)
        if options.diff:
            jail.take(CHANGED_MEMORY, directory / CHANGED_MEMORY)
            told["diff_bytes"] = firecracker_snapshot.merge(directory / MEMORY, directory / CHANGED_MEMORY)
            (directory / CHANGED_MEMORY).unlink()

    await asyncio.to_thread(take)
    state = (directory / STATE).read_bytes()
    told |= {"state_bytes": len(state), "memory_bytes": (directory / MEMORY).stat().st_size}
    placed = {file.name: file.source.resolve() for file in plan.files if not file.writable}
    assert isinstance(plan.source, VirtualMachine)
    images = [placed[drive.path] for drive in plan.source.drives if drive.read_only]
    names = [drive.path for drive in plan.source.drives if drive.read_only]
    Snapshot(
        firecracker=str(around.programs.version),
        vcpus=plan.vcpus,
        memory_bytes=plan.memory_bytes,
        memory_file_bytes=told["memory_bytes"],
        vsock=VSOCK,
        interfaces=tuple(interface.name for interface in plan.source.interfaces),
        images=tuple(ReadOnlyFile(name, str(image), image.stat().st_size) for name, image in zip(names, images, strict=True)),
        has_disk=bool(disks),
        state_sha256=hashlib.sha256(state).hexdigest(),
    ).write(directory)
    return told


async def _timed(running: Running, kind: SnapshotKind, state: str, memory: str) -> int:
    began = time.monotonic()
    await running.snapshot(kind, state, memory)
    return _ms_since(began)


def _copy(source: Path, destination: Path) -> None:
    """A copy that shares its blocks where the file system can, and has the same holes."""
    command = ["cp", "--sparse=always", "--reflink=auto", "--", str(source), str(destination)]
    kernel.run(command, timeout_s=COPY_TIMEOUT_S)
    destination.chmod(0o600)


def _require_empty(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    if any(directory.iterdir()):
        raise BadSnapshot(f"{directory} is not empty")
    # It holds all that the guest had in memory.
    directory.chmod(0o700)


async def execute(connection: Connection, program: Sequence[str], *, forward: bool) -> tuple[int, dict[str, str]]:
    """Run a program as root to its end; its exit code, and its output unless that is `forward`ed to ours. Raises `HutchError`."""
    params = {"id": "debug", "argv": [os.fsencode(word) for word in program], "env": {}, "user": "root", "stdin": False}
    stream = connection.open("command.start", params)
    # Not ended: that would detach us from the command.
    await stream.reply()
    collected = {1: b"", 2: b""}
    code = 1
    while (item := await stream.next()) is not None:
        if isinstance(item, Data):
            if forward:
                sink = sys.stdout if item.channel == 1 else sys.stderr
                with contextlib.suppress(BrokenPipeError):
                    sink.buffer.write(item.data)
                    sink.buffer.flush()
            elif len(collected[item.channel]) < MAX_COLLECTED_BYTES:
                collected[item.channel] += item.data
        elif isinstance(ended := item.decode(dict[str, dict[str, int]]).get("exit"), dict):
            code = int(ended.get("exit_code", 1))
    if forward:
        return code, {}
    return code, {"stdout": collected[1].decode(errors="replace"), "stderr": collected[2].decode(errors="replace")}

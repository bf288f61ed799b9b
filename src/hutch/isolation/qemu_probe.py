"""Whether virtual machines start here, found out by starting one: the guest's kernel, up to the agent's first answer.

`/dev/kvm` may open, answer every question and still run no kernel (`hutch.isolation.kvm`), so only such a start counts. What
was found is kept for as long as the host's boot, QEMU and the guest's kernel are the same.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from hutch.host import channel
from hutch.host.kernel import Process
from hutch.host.names import machine_id
from hutch.isolation.kvm import DEVICE, Verdict
from hutch.isolation.protocol import BootFailed, MachinePlan, PlannedMount
from hutch.isolation.qemu import Qemu, last_words
from hutch.isolation.qemu_command import MIB, Accelerator
from hutch.wire import Connection
from hutch.wire.connection import ConnectionClosed

T = TypeVar("T")
KVM_DEADLINE_S = 5.0
REFUSAL_KEPT_S = 600.0
TCG_DEADLINE_S = 60.0
"""Measured: 3 s on an idle machine. Emulation takes as long as others use the processors."""
ANSWER_TIMEOUT_S = 10.0
LOOK_S = 0.05
MEMORY_BYTES = 256 * MIB
DISK_BYTES = 64 * MIB
VERDICTS = Path("/run/hutch")
"""What was found out in this boot of the host, for all instances of Hutch."""


@dataclass(frozen=True, slots=True)
class Booted:
    """A machine whose agent has answered. Times are since its start was asked for, in milliseconds."""

    plan: MachinePlan
    process: Process
    connection: Connection
    started_ms: int
    answered_ms: int


async def with_machine(
    qemu: Qemu,
    lowers: tuple[Path, ...],
    use: Callable[[Booted], Awaitable[T]],
    *,
    deadline_s: float,
    parent: Path | None = None,
    memory_bytes: int = MEMORY_BYTES,
    vcpus: int = 1,
    cgroup: str = "",
    kernel_line: str | None = None,
    layer: Path | None = None,
    mounts: tuple[PlannedMount, ...] = (),
) -> T:
    """Boot one machine, `use` it, and leave nothing of it; its disk is that of `layer`, or none that is kept, and it has those of
    `mounts`. Raises `BootFailed` with what its console said."""
    directory = Path(tempfile.mkdtemp(prefix="hutch-vm-", dir=parent))
    plan = MachinePlan(
        machine_id=machine_id(),
        directory=directory,
        lowers=lowers,
        layer=layer or directory,
        channel_dir=directory,
        agent=qemu.guest.initramfs,
        namespace=directory,
        nameserver="",
        cgroup=cgroup,
        vcpus=vcpus,
        memory_bytes=memory_bytes,
        mounts=mounts,
    )
    process: Process | None = None
    try:
        began = time.monotonic()

        def elapsed_ms() -> int:
            return round((time.monotonic() - began) * 1000)

        agent = asyncio.ensure_future(channel.reach_agent(directory, "", deadline_s))
        try:
            process = await asyncio.shield(boot := asyncio.ensure_future(asyncio.to_thread(qemu.boot, plan, kernel_line)))
            started_ms = elapsed_ms()
            connection = await _answered(agent, process, directory, deadline_s)
        except asyncio.CancelledError:
            with suppress(OSError):
                process = await boot
            raise
        finally:
            agent.cancel()
            with suppress(asyncio.CancelledError, OSError):
                await agent
        try:
            return await use(Booted(plan, process, connection, started_ms, elapsed_ms()))
        finally:
            connection.close("the machine is not needed any more")
    finally:
        await asyncio.to_thread(_clear, qemu, plan, process)


async def _answered(agent: asyncio.Future[Connection], process: Process, directory: Path, deadline_s: float) -> Connection:
    # Whether it has died is looked at, because a machine that can't start ends long before the deadline.
    while not agent.done() and process.alive():
        await asyncio.wait([agent], timeout=LOOK_S)
    if not agent.done():
        # Its console's last words are read by a thread that ends with it.
        await asyncio.sleep(LOOK_S)
        raise BootFailed(f"The virtual machine ended before its agent answered{last_words(directory)}")
    try:
        connection = agent.result()
        await connection.ping(ANSWER_TIMEOUT_S)
    except (OSError, ConnectionClosed) as error:
        raise BootFailed(f"No agent answered within {deadline_s:g} s: {error}{last_words(directory)}") from error
    return connection


def _clear(qemu: Qemu, plan: MachinePlan, process: Process | None) -> None:
    qemu.remove(plan.machine_id, plan.directory, process)
    if plan.cgroup:
        qemu.cgroups.kill_all(plan.cgroup, ANSWER_TIMEOUT_S)
        qemu.cgroups.remove(plan.cgroup, ANSWER_TIMEOUT_S)
    shutil.rmtree(plan.directory, ignore_errors=True)


def boots(qemu: Qemu, deadline_s: float | None = None) -> None:
    """Boot the guest's kernel over an empty image until its agent answers. Blocks. Raises `OSError`."""
    if deadline_s is None:
        deadline_s = KVM_DEADLINE_S if qemu.accelerator is Accelerator.KVM else TCG_DEADLINE_S
    small = Qemu(qemu.guest, qemu.directory, qemu.cgroups, qemu.accelerator, qemu.binary, DISK_BYTES)

    async def nothing(_: Booted) -> None:
        pass

    booting = with_machine(small, (qemu.guest.probe_root,), nothing, deadline_s=deadline_s)
    # In a thread of its own: the caller may be in an event loop.
    with ThreadPoolExecutor(1, thread_name_prefix="qemu-probe") as thread:
        thread.submit(asyncio.run, booting).result()


def kvm_verdict(qemu: Qemu, directory: Path = VERDICTS) -> Verdict:
    """Whether the guest's kernel boots under KVM here: as it was found in this boot of the host, else by trying. Blocks."""
    if missing := _missing():
        return Verdict(False, missing)
    return verdict(qemu.using(Accelerator.KVM), directory)


def verdict(qemu: Qemu, directory: Path = VERDICTS) -> Verdict:
    """The same of a backend's accelerator, whichever it is. That KVM does not boot is kept for a while,
    since a machine that just starts may have been too busy; that emulation fails is not."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text()
    key = hashlib.sha256(f"{boot_id}{qemu.fingerprint()}".encode()).hexdigest()
    file = directory / f"verdict-{qemu.accelerator}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(file.read_text())
        if kept["key"] == key and (kept["usable"] or 0 <= time.time() - kept["at"] < REFUSAL_KEPT_S):
            return Verdict(bool(kept["usable"]), str(kept["reason"]))
    found = _tried(qemu)
    if found.usable or qemu.accelerator is Accelerator.KVM:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Of one of those who try at the same time.
        descriptor, part = tempfile.mkstemp(dir=directory, prefix=".verdict-")
        with open(descriptor, "w") as written:
            written.write(json.dumps({"key": key, "at": time.time(), **asdict(found)}))
        Path(part).replace(file)
    return found


def _missing() -> str:
    """Why KVM can't be tried; empty when it can."""
    try:
        device = Path(DEVICE).stat()
    except OSError:
        return f"{DEVICE} does not exist: no hardware virtualization, or it is not passed on to this machine"
    everybody, group = device.st_mode & 0o006 == 0o006, device.st_gid != 0 and device.st_mode & 0o060 == 0o060
    return (
        "" if everybody or group else f"{DEVICE} belongs to root alone, which QEMU is not: give it to a group (`kvm`, mode 0660)"
    )


def _tried(qemu: Qemu) -> Verdict:
    try:
        boots(qemu)
    except OSError as error:
        with_it = f"{DEVICE} exists, but " if qemu.accelerator is Accelerator.KVM else ""
        return Verdict(False, f"{with_it}the guest's kernel does not boot: {error}")
    return Verdict(True, "the guest's kernel booted and its agent answered")

"""Whether virtual machines start here, found out by starting one: the guest's kernel, up to the agent's first answer.

`/dev/kvm` may open, answer every question and still run no kernel (`hutch.isolation.kvm`), so only such a start counts. KVM's
verdict is kept for as long as the host's boot, QEMU and the guest's kernel are the same.
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
from hutch.isolation.protocol import BootFailed, MachinePlan
from hutch.isolation.qemu import Qemu, last_words
from hutch.isolation.qemu_command import MIB, Accelerator
from hutch.wire import Connection

T = TypeVar("T")
KVM_DEADLINE_S = 5.0
TCG_DEADLINE_S = 60.0
"""Measured: 3 s on an idle machine. Emulation takes as long as others use the processors."""
ANSWER_TIMEOUT_S = 10.0
LOOK_S = 0.05
MEMORY_BYTES = 256 * MIB
DISK_BYTES = 64 * MIB
VERDICT = "kvm-verdict.json"


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
) -> T:
    """Boot one machine, `use` it, and leave nothing of it. Raises `BootFailed` with what its console said."""
    directory = Path(tempfile.mkdtemp(prefix="hutch-vm-", dir=parent))
    plan = MachinePlan(
        machine_id=machine_id(),
        directory=directory,
        lowers=lowers,
        layer=directory,
        channel_dir=directory,
        agent=qemu.guest.initramfs,
        namespace=directory,
        nameserver="",
        cgroup=cgroup,
        vcpus=vcpus,
        memory_bytes=memory_bytes,
    )
    process: Process | None = None
    try:
        began = time.monotonic()

        def elapsed_ms() -> int:
            return round((time.monotonic() - began) * 1000)

        agent = asyncio.ensure_future(channel.accept_agent(directory, "", deadline_s, deadline_s))
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
    except OSError as error:
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


def kvm_verdict(qemu: Qemu, directory: Path) -> Verdict:
    """Whether the guest's kernel boots under KVM here: as it was found in this boot of the host, else by trying. Blocks."""
    with_kvm = qemu.using(Accelerator.KVM)
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text()
    key = hashlib.sha256(f"{boot_id}{with_kvm.fingerprint()}".encode()).hexdigest()
    file = directory / VERDICT
    with suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(file.read_text())
        if kept["key"] == key:
            return Verdict(bool(kept["usable"]), str(kept["reason"]))
    verdict = _tried(with_kvm)
    directory.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.part")
    part.write_text(json.dumps({"key": key, **asdict(verdict)}))
    part.replace(file)
    return verdict


def _tried(qemu: Qemu) -> Verdict:
    if not Path(DEVICE).exists():
        return Verdict(False, f"{DEVICE} does not exist: no hardware virtualization, or it is not passed on to this machine")
    try:
        boots(qemu)
    except OSError as error:
        return Verdict(False, f"{DEVICE} exists, but the guest's kernel does not boot with it: {error}")
    return Verdict(True, "the guest's kernel booted and its agent answered")

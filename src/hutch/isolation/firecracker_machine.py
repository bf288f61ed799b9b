"""One Firecracker machine from its start, or from a snapshot, to its end; nothing of it is left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from hutch.errors import HutchError
from hutch.host import channel
from hutch.host.cgroups import Cgroups
from hutch.host.names import machine_id
from hutch.isolation import firecracker_binary
from hutch.isolation.firecracker_config import Loading, SnapshotKind, Version, VirtualMachine
from hutch.isolation.firecracker_jail import Jail, Placed
from hutch.isolation.firecracker_process import Launch, Monitor, last_words, start
from hutch.isolation.protocol import BootFailed
from hutch.wire import Connection

T = TypeVar("T")
LOOK_S = 0.05
CGROUP_TIMEOUT_S = 10.0
ENTROPY_BYTES = 64
CHANNEL_DIRECTORY = "channel"
TO_EVERYBODY, TO_US = 0o666, 0o600
"""Modes of the host's socket. With a jailer Firecracker's user connects to it; the directories around are root's alone."""


@dataclass(frozen=True, slots=True)
class Programs:
    """Firecracker, its jailer (None: only for `hutch debug`), and the version of both."""

    binary: Path
    jailer: Path | None
    version: Version

    @classmethod
    def checked(cls, binary: str | Path, jailer: str | Path | None) -> Programs:
        """The programs of these names, after all checks that need no machine. Raises `NotUsable`."""
        found = firecracker_binary.find(binary)
        shut_in = firecracker_binary.find(jailer) if jailer is not None else None
        if shut_in is not None:
            firecracker_binary.require_root()
        return cls(found, shut_in, firecracker_binary.checked(found, shut_in))


@dataclass(frozen=True, slots=True)
class Plan:
    """One machine: what it boots from, or how it goes on from the snapshot that is among its files."""

    files: tuple[Placed, ...]
    source: VirtualMachine | Loading
    vcpus: int
    memory_bytes: int
    cgroups: Cgroups | None = None
    cgroup: str = ""
    namespace: Path | None = None
    headroom_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """Deadlines in seconds: for the agent's first answer, and for each answer of Firecracker's API."""

    agent_s: float
    api_s: float


@dataclass(slots=True)
class Running:
    """A machine whose agent has answered. Times are since its start was asked for, in milliseconds: until Firecracker's API
    answered, until the machine ran, and until its agent answered."""

    directory: Path
    monitor: Monitor
    connection: Connection
    limits: Limits
    started_ms: int
    running_ms: int
    answered_ms: int

    @contextlib.asynccontextmanager
    async def still(self) -> AsyncIterator[None]:
        """Have the machine stand still meanwhile. A snapshot taken then breaks the agent's channel: the agent comes back."""
        await asyncio.to_thread(self.monitor.pause)
        agent = asyncio.ensure_future(_listen(self.directory, self.monitor.jail, self.limits.agent_s))
        try:
            yield
            self.connection.close("the machine stood still")
            await asyncio.to_thread(self.monitor.resume)
            self.connection = await _answered(agent, self.monitor, self.directory, self.limits)
        finally:
            agent.cancel()
            with suppress(asyncio.CancelledError, OSError):
                await agent

    async def snapshot(self, kind: SnapshotKind, state: str, memory: str) -> None:
        """Of a machine that stands still, into files of its directory."""
        await asyncio.to_thread(self.monitor.snapshot, kind, state, memory)

    async def freshen(self) -> None:
        """Make a machine that went on from a snapshot its own: random numbers that no other has, and the time of now. Before
        any program runs in it. Raises `HutchError`."""
        await self.connection.call("entropy.add", {"data": os.urandom(ENTROPY_BYTES)})
        await self.connection.call("clock.set", {"time_ns": time.time_ns()})


async def with_machine(
    programs: Programs,
    plan: Plan,
    use: Callable[[Running], Awaitable[T]],
    limits: Limits,
    parent: Path | None = None,
) -> T:
    """Start one machine, `use` it, and leave nothing of it. Raises `BootFailed` with what it and its console said."""
    directory = Path(tempfile.mkdtemp(prefix="hutch-fc-", dir=parent))
    jail = Jail(directory, machine_id(), programs.binary, programs.jailer)
    monitor: Monitor | None = None
    try:
        where = directory / CHANNEL_DIRECTORY
        where.mkdir(mode=0o700)
        launch = Launch(
            jail,
            where,
            plan.files,
            plan.vcpus,
            plan.memory_bytes,
            plan.cgroups,
            plan.cgroup,
            plan.namespace,
            plan.headroom_bytes,
        )
        began = time.monotonic()

        def elapsed_ms() -> int:
            return round((time.monotonic() - began) * 1000)

        agent = asyncio.ensure_future(_listen(directory, jail, limits.agent_s))
        try:
            # Shielded: what has begun to start has to be known to be ended.
            starting = asyncio.ensure_future(asyncio.to_thread(start, launch, limits.api_s))
            try:
                monitor = await asyncio.shield(starting)
            except asyncio.CancelledError:
                with suppress(OSError):
                    monitor = await starting
                raise
            started_ms = elapsed_ms()
            if isinstance(plan.source, Loading):
                await asyncio.to_thread(monitor.load, plan.source, programs.version)
            else:
                await asyncio.to_thread(monitor.boot, plan.source)
            running_ms = elapsed_ms()
            connection = await _answered(agent, monitor, directory, limits)
        except BootFailed:
            raise
        except (OSError, ValueError) as error:
            if monitor is not None:
                await asyncio.to_thread(monitor.end)
            raise BootFailed(f"The Firecracker machine did not start: {error}{last_words(directory)}") from error
        finally:
            agent.cancel()
            with suppress(asyncio.CancelledError, OSError):
                await agent
        running = Running(directory, monitor, connection, limits, started_ms, running_ms, elapsed_ms())
        try:
            return await use(running)
        finally:
            running.connection.close("the machine is not needed any more")
    finally:
        await asyncio.shield(asyncio.to_thread(_clear, jail, monitor, plan))


async def _listen(directory: Path, jail: Jail, deadline_s: float) -> Connection:
    mode = TO_US if jail.jailer is None else TO_EVERYBODY
    return await channel.accept_agent(directory / CHANNEL_DIRECTORY, "", deadline_s, deadline_s, mode)


async def _answered(agent: asyncio.Future[Connection], monitor: Monitor, directory: Path, limits: Limits) -> Connection:
    # Whether it has died is looked at, because a machine that can't start ends long before the deadline.
    while not agent.done() and monitor.process.alive():
        await asyncio.wait([agent], timeout=LOOK_S)
    if not agent.done():
        # Its last words are read by a thread that ends with it.
        await asyncio.to_thread(monitor.end)
        raise BootFailed(f"The Firecracker machine ended before its agent answered{last_words(directory)}")
    try:
        connection = agent.result()
        await connection.ping(limits.agent_s)
    except (OSError, HutchError) as error:
        raise BootFailed(f"No agent answered within {limits.agent_s:g} s: {error}{last_words(directory)}") from error
    return connection


def _clear(jail: Jail, monitor: Monitor | None, plan: Plan) -> None:
    if monitor is not None:
        monitor.end()
    if plan.cgroups is not None and plan.cgroup:
        plan.cgroups.kill_all(plan.cgroup, CGROUP_TIMEOUT_S)
        plan.cgroups.remove(plan.cgroup, CGROUP_TIMEOUT_S)
    jail.clear()
    shutil.rmtree(jail.directory, ignore_errors=True)

"""A real host in this process, and a short way to run things in its sandboxes."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hutch import ids
from hutch.host.commands import Command, Commands
from hutch.host.main import running
from hutch.host.protocol import CommandStart, SessionRecord, SessionSpec, SessionStatus
from hutch.host.service import Service
from hutch.host.sessions import Session
from hutch.host.supervisor import Supervisor
from hutch.settings import Settings, load

END_S = 30.0


@dataclass(frozen=True, slots=True)
class Ran:
    exit_code: int
    stdout: bytes
    stderr: bytes


class Guest:
    """One session of a host in this process."""

    def __init__(self, supervisor: Supervisor, session_id: str) -> None:
        self.supervisor = supervisor
        self.session_id = session_id

    @property
    def session(self) -> Session:
        return self.supervisor.get(self.session_id)

    @property
    def record(self) -> SessionRecord:
        return self.session.record

    @property
    def commands(self) -> Commands:
        return self.supervisor.running(self.session_id)[1]

    async def start(
        self, *argv: str | bytes, sudo: bool = False, env: dict[str, str] | None = None, timeout_ms: int | None = None
    ) -> Command:
        words = [word if isinstance(word, bytes) else word.encode() for word in argv]
        request = CommandStart(
            session_id=self.session_id,
            command_id=ids.command_id(),
            argv=words,
            sudo=sudo,
            env=env or {},
            timeout_ms=timeout_ms,
        )
        return await self.commands.start(request)

    async def run(self, *argv: str | bytes, sudo: bool = False, env: dict[str, str] | None = None) -> Ran:
        return await finished(await self.start(*argv, sudo=sudo, env=env))

    async def shell(self, script: str, *, sudo: bool = False) -> Ran:
        return await self.run("sh", "-c", script, sudo=sudo)

    async def stop(self) -> SessionRecord:
        return await self.supervisor.end(self.session, SessionStatus.STOPPED, "stop")


async def over(box: Guest) -> SessionRecord:
    """A session's record once it has ended, which it is about to."""
    async with asyncio.timeout(END_S):
        while box.session.live:
            await asyncio.sleep(0.02)
    return box.record


async def finished(command: Command) -> Ran:
    """All output of a command and its exit code."""
    output: dict[int, list[bytes]] = {1: [], 2: []}
    reader = command.output.reader()
    try:
        while (piece := await reader.next()) is not None:
            output[piece[0]].append(piece[1])
    finally:
        reader.close()
    record = await command.finished
    assert record.exit_code is not None
    return Ran(record.exit_code, b"".join(output[1]), b"".join(output[2]))


def cpu_us(box: Guest) -> int:
    """What the kernel has counted for the guest so far: on a virtual machine for the threads that run it."""
    machine = box.session.machine
    assert machine is not None
    counted = box.supervisor._machines.cgroups.cpu_us(str(Path(machine.cgroup) / machine.isolation.traits.guest_cgroup))
    assert counted is not None
    return counted


def host_settings(data_dir: Path, **flags: object) -> Settings:
    """Settings of a host without a pool, unless `section__key` says otherwise; under the backend that `HUTCH_ISOLATION` names,
    without it gVisor on every machine."""
    backend = os.environ.get("HUTCH_ISOLATION", "gvisor")
    given = {"server.data_dir": data_dir, "pool.size": 0, "isolation.backend": backend} | {
        name.replace("__", "."): value for name, value in flags.items()
    }
    return load(None, environment={}, flags=given)


ON_MACHINES = os.environ.get("HUTCH_ISOLATION") == "qemu"
"""Whether the tests of all backends are run on virtual machines."""


def differs(reason: str) -> pytest.MarkDecorator:
    """For tests of what is not the same on virtual machines (docs/isolation.md), where all others are run on them."""
    return pytest.mark.skipif(ON_MACHINES, reason=f"differs on virtual machines: {reason}")


@contextlib.asynccontextmanager
async def real_host(data_dir: Path, *, end_all: bool = True, **flags: object) -> AsyncIterator[Service]:
    # A host sets that of its process, which is the test's here.
    mask = os.umask(0o022)
    try:
        async with running(host_settings(data_dir, **flags), end_all=end_all) as service:
            yield service
    finally:
        os.umask(mask)


def spec(**changes: object) -> SessionSpec:
    values: dict[str, object] = {
        "session_id": ids.session_id(),
        "sandbox_name": "test",
        "project_id": "prj",
        "image": "vercel/sandbox/universal:latest",
        "vcpus": 1,
        "memory_mb": 2048,
        "timeout_ms": 300_000,
        "hostname": "box",
    }
    return SessionSpec(**(values | changes))  # type: ignore[arg-type]


async def guest(service: Service, **changes: object) -> Guest:
    """A new session."""
    record = await service.supervisor.create(spec(**changes))
    return Guest(service.supervisor, record.session_id)

"""How templates are made: by machines that are jailed like any other and belong to nobody.

    waiting   boot ─▶ the agent waits ─▶ memory is kept
    mounted   a copy of one that waits ─▶ images and a new disk are mounted, files that all sandboxes get are written ─▶ memory
              and disk are kept

No program of an image runs in one, and what it is told of itself, random numbers and an id, is no sandbox's. It has no address.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from hutch.errors import HutchError
from hutch.host import channel
from hutch.host.cgroups import Cgroups
from hutch.host.kernel import Process
from hutch.host.names import machine_id
from hutch.isolation import qemu_memory, qemu_template, sparse
from hutch.isolation.beginning import METHOD, beginning
from hutch.isolation.protocol import MachinePlan
from hutch.isolation.qemu_disk import DISK, MIN_DISK_BYTES, make_disk
from hutch.isolation.qemu_template import Origin, Template
from hutch.isolation.qmp import Monitor
from hutch.wire import Connection
from hutch.wire.connection import ConnectionClosed

ANSWER_TIMEOUT_S, HANG_UP_TIMEOUT_S, EMPTY_TIMEOUT_S = 30.0, 2.0, 2.0
LOOK_S = 0.1


@dataclass(frozen=True, slots=True)
class Maker:
    """Makes templates in directories below `directory`. `start` begins a machine, `monitor` speaks with it, `end` ends it and
    tells what it said last; `boot_timeout_s` is how long its agent may take."""

    directory: Path
    cgroups: Cgroups
    probe_root: Path
    boot_timeout_s: float
    start: Callable[[MachinePlan, Origin], Process]
    monitor: Callable[[Path], Monitor]
    end: Callable[[str, Path, Process | None], str]

    def waiting(self, plan: MachinePlan) -> Template:
        """Of a machine like that of `plan`, before anything was mounted. Raises `OSError`."""
        with contextlib.ExitStack() as undo:
            memory = _file(undo, "hutch-template", plan.memory_bytes)
            own = undo.enter_context(self._own(plan, lowers=(self.probe_root,) * len(plan.lowers)))
            # Nobody looks at what is in them before they are others.
            for file in (own.layer / DISK, *(mount.source for mount in own.mounts)):
                with file.open("xb") as disk:
                    disk.truncate(MIN_DISK_BYTES)
            devices = _file(undo, "hutch-devices")
            self._run(own, Origin(memory=memory, waits=True), devices, _until_it_answers)
            return _kept(undo, memory, devices)

    def mounted(self, plan: MachinePlan, base: Template, disk_bytes: int) -> Template:
        """The same with the images of `plan` and a new disk. `base` is one of such machines that waits. Raises `OSError`."""
        with contextlib.ExitStack() as undo:
            memory = _file(undo, "hutch-template")
            sparse.copy(base.memory, memory)
            own = undo.enter_context(self._own(plan, lowers=plan.lowers))
            make_disk(own.layer / DISK, disk_bytes)
            # Opened first: its directory ends with the machine.
            written = undo.enter_context((own.layer / DISK).open("rb"))
            devices = _file(undo, "hutch-devices")
            state = base.reading()
            undo.callback(os.close, state)

            async def install(connection: Connection) -> None:
                await connection.call(METHOD, beginning())
                if plan.prepare is not None:
                    await plan.prepare(connection)

            self._run(own, Origin(memory=memory, state=state, waits=True), devices, install)
            disk = _file(undo, "hutch-disk")
            sparse.copy(written.fileno(), disk)
            return _kept(undo, memory, devices, disk)

    @contextlib.contextmanager
    def _own(self, plan: MachinePlan, lowers: tuple[Path, ...]) -> Iterator[MachinePlan]:
        """The plan of a machine of our own like another one, with a directory that goes."""
        identifier = machine_id()
        directory = self.directory / identifier
        directory.mkdir(parents=True, mode=0o700)
        try:
            yield replace(
                plan,
                machine_id=identifier,
                directory=directory,
                lowers=lowers,
                layer=directory,
                channel_dir=directory,
                mounts=tuple(replace(mount, source=directory / f"drive{number}") for number, mount in enumerate(plan.mounts)),
                cgroup=str(Path(plan.cgroup).with_name(identifier)) if plan.cgroup else "",
            )
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def _run(self, own: MachinePlan, origin: Origin, devices: int, ask: Callable[[Connection], Awaitable[None]]) -> None:
        """Have a machine run until its agent did what it was asked, and its devices are written. Raises `OSError`."""
        process: Process | None = None
        try:
            process = self.start(own, origin)
            asyncio.run(self._ask(own.directory, process, ask))
            with self.monitor(own.directory) as asked:
                qemu_memory.stand_still(asked)
                qemu_memory.write(asked, devices, without_memory=True)
        except OSError as error:
            words, process = self.end(own.machine_id, own.directory, process), None
            raise OSError(f"{error}{words}") from error
        finally:
            self.end(own.machine_id, own.directory, process)
            if own.cgroup:
                self.cgroups.kill_all(own.cgroup, EMPTY_TIMEOUT_S)
                self.cgroups.remove(own.cgroup, EMPTY_TIMEOUT_S)

    async def _ask(self, directory: Path, process: Process, ask: Callable[[Connection], Awaitable[None]]) -> None:
        connection = await self._reached(directory, process)
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                await ask(connection)
            await connection.hang_up(HANG_UP_TIMEOUT_S)
        except TimeoutError as error:
            raise OSError("the agent of a template does not answer") from error
        except (HutchError, ConnectionClosed) as error:
            raise OSError(f"the agent of a template did not do what it was asked: {error}") from error
        finally:
            connection.close("the template is made")

    async def _reached(self, directory: Path, process: Process) -> Connection:
        agent = asyncio.ensure_future(channel.reach_agent(directory, "", self.boot_timeout_s))
        try:
            # One that can't start ends long before the deadline, and threads of the host wait.
            while not agent.done() and process.alive():
                await asyncio.wait([agent], timeout=LOOK_S)
            if not agent.done():
                raise OSError("the machine of a template ended before its agent answered")
            return await agent
        finally:
            agent.cancel()


async def _until_it_answers(connection: Connection) -> None:
    await connection.ping(ANSWER_TIMEOUT_S)


def _file(undo: contextlib.ExitStack, name: str, size_bytes: int = 0) -> int:
    descriptor = qemu_template.file(name, size_bytes)
    undo.callback(os.close, descriptor)
    return descriptor


def _kept(undo: contextlib.ExitStack, *descriptors: int) -> Template:
    """A template of files that nobody writes to any more. What is in `undo` ends, these descriptors of them too."""
    for descriptor in descriptors:
        qemu_template.seal(descriptor)
    with undo:
        return Template(*descriptors).copy()

"""Virtual machines beside plain QEMU with the same template: `vm`."""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.machine import MIB, pss_bytes
from bench.measure import Result, Series, Target, at_most
from hutch import ids
from hutch.host import authority, channel
from hutch.host.binaries import preload_path
from hutch.host.channel import MONITOR_SOCKET_NAME
from hutch.host.main import running
from hutch.host.protocol import CommandStart, SessionSpec, SessionStatus, SnapshotRequest
from hutch.host.service import Service
from hutch.isolation import qemu_memory, tap, tsc
from hutch.isolation.beginning import METHOD, Ending, beginning
from hutch.isolation.qemu import Qemu
from hutch.isolation.qemu_command import Accelerator, Card, VirtualMachine, command
from hutch.isolation.qemu_disk import DISK, copy_disk
from hutch.isolation.qemu_template import Template
from hutch.isolation.qmp import Monitor
from hutch.settings import load
from hutch.wire import Connection
from hutch.wire.sockets import bind_unix

CLONES, STARTS, SAVES = 20, 20, 5
MEMORY_MB = 512
ANSWER_S = 60.0
SETTLE_S = 5.0
"""Until machines that have just begun do nothing any more."""


async def vm(quick: bool) -> list[Result]:
    """From nothing to the end of a first command, what an idle machine holds, and how long one stands still to be saved."""
    count, starts, saves = (3, 3, 2) if quick else (CLONES, STARTS, SAVES)
    with tempfile.TemporaryDirectory(prefix="hutch-bench-") as name:
        flags = {"server.data_dir": Path(name) / "data", "pool.size": 0, "isolation.backend": "qemu"}
        async with running(load(None, environment={}, flags=flags)) as host:
            qemu = host.supervisor._machines.backends.default
            assert isinstance(qemu, Qemu)
            assert qemu.templates is not None
            # The second one has the template made that has its image mounted.
            sessions = [await _session(host), await _session(host)]
            ours: list[float] = []
            for _ in range(count):
                began = time.monotonic()
                sessions.append(await _session(host))
                await _run(host, sessions[-1])
                ours.append((time.monotonic() - began) * 1000)
            await asyncio.sleep(SETTLE_S)
            each = pss_bytes({_pid(host, session) for session in sessions[2:]}) / count / MIB
            failures = 0
            for session in sessions:
                failures += await _run(host, session) != 0
            pauses = await _pauses(host, qemu, sessions[-1], saves)
            for session in sessions:
                await host.supervisor.end(host.supervisor.get(session), SessionStatus.STOPPED, "stop")
            # One for each size of disks, which becomes smaller with the room that the host has left.
            [*_, template] = [
                place.template for kind, place in qemu.templates._places.items() if kind.disk_bytes and place.template is not None
            ]
            layers = host.supervisor.images.exact("vercel/sandbox/universal:latest").layers
            bare = Bare(
                qemu, template, tuple(layer.path for layer in layers), host.supervisor._machines._trust.endings, Path(name)
            )
            peers, commands, pss = await bare.measure(starts)
    facts = {
        "memory_mib": MEMORY_MB,
        "accelerator": str(qemu.accelerator),
        "machines": count + 2,
        "plain_first_command_p50_ms": Series.of(commands).p50,
    }
    return [
        Result(
            "vm.restore",
            "a create on the host, and its first command",
            Series.of(ours),
            Series.of(peers),
            "plain QEMU with the same template, until its agent greets",
            [at_most("× of plain QEMU's first output", Series.of(ours).p50 / Series.of(peers).p50, 1.5)],
            facts,
        ),
        Result(
            "vm.memory",
            f"{count} idle machines of one template",
            Series.of([each], "MiB", failures),
            Series.of([pss], "MiB"),
            f"{starts} × plain QEMU with the same template, told and having run the same",
            [
                at_most("× of plain QEMU's", each / pss, 1.0),
                Target(f"{count + 2} alive", count + 2 - failures, failures == 0),
            ],
            facts,
        ),
        Result(
            "vm.pause",
            "how long a machine stands still while its memory is saved",
            Series.of(pauses),
            targets=[at_most("p50 ms", Series.of(pauses).p50, 50)],
            facts=facts,
        ),
    ]


async def _session(host: Service) -> str:
    identifier = ids.session_id()
    spec = SessionSpec(
        session_id=identifier,
        sandbox_name="bench",
        project_id="prj",
        image="vercel/sandbox/universal:latest",
        vcpus=1,
        memory_mb=MEMORY_MB,
        timeout_ms=1_800_000,
    )
    await host.supervisor.create(spec)
    return identifier


async def _run(host: Service, session: str) -> int | None:
    request = CommandStart(session_id=session, command_id=ids.command_id(), argv=[b"/bin/true"])
    started = await host.supervisor.running(session)[1].start(request)
    return (await started.finished).exit_code


def _pid(host: Service, session: str) -> int:
    machine = host.supervisor.get(session).machine
    assert machine is not None
    return machine.process.pid


async def _pauses(host: Service, qemu: Qemu, session: str, count: int) -> list[float]:
    """Between a machine's stop and its going on, as the backend does both. The first save of all reads what nobody had read."""
    moments: dict[str, float] = {}

    def noted(name: str, call: Callable[..., None]) -> Callable[..., None]:
        def timed(*arguments: Any) -> None:
            call(*arguments)
            moments[name] = time.monotonic()

        return timed

    pauses = []
    suspend, resume = qemu.suspend, qemu.resume
    qemu.suspend, qemu.resume = noted("stopped", suspend), noted("going", resume)  # type: ignore[method-assign]
    try:
        for _ in range(count + 1):
            await host.supervisor.snapshot(SnapshotRequest(session_id=session, keep_running=True, memory=True))
            pauses.append((moments["going"] - moments["stopped"]) * 1000)
    finally:
        qemu.suspend, qemu.resume = suspend, resume  # type: ignore[method-assign]
    return pauses[1:]


async def _belongs(connection: Connection, number: int, endings: Sequence[Ending]) -> None:
    """Tell an agent what a host tells one that becomes a sandbox's."""
    await connection.call(METHOD, beginning(f"192.0.2.{number * 4 + 2}", f"192.0.2.{number * 4 + 1}", endings))
    user = {"name": "ubuntu", "uid": 1000, "gid": 1000, "groups": [], "home": b"/home/ubuntu"}
    claim = {"hostname": "bench", "env": {}, "user": user, "cwd": b"/", "token": secrets.token_hex(16), "entropy": os.urandom(64)}
    await connection.call("claim", claim | {"time_ns": 0})


async def _ended(connection: Connection) -> None:
    """Have an agent run a program to its end."""
    stream = connection.open(
        "command.start",
        {
            "id": ids.command_id(),
            "argv": [b"/bin/true"],
            "cwd": b"/",
            "env": {},
            "user": "root",
            "stdin": False,
            "pty": None,
            "timeout_ms": None,
        },
    )
    await stream.reply()
    async for _ in stream:
        pass


@dataclass(frozen=True, slots=True)
class Bare:
    """QEMU alone: the same program, arguments, template and images; no jail, no cgroup, no user of its own, no host."""

    qemu: Qemu
    template: Template
    layers: tuple[Path, ...]
    endings: Callable[[authority.Authority], Sequence[Ending]]
    scratch: Path

    async def measure(self, count: int) -> tuple[list[float], list[float], float]:
        """Milliseconds until each agent greets, and until a command that it was told at once has ended; MiB that each holds."""
        times: list[float] = []
        commands: list[float] = []
        with ExitStack() as ends:
            pids = set()
            for number in range(count):
                directory = self.scratch / f"bare-{number}"
                directory.mkdir(mode=0o700)
                began = time.monotonic()
                assert self.template.disk is not None
                copy_disk(self.template.disk, directory / DISK)
                pids.add(self._start(directory, ends).pid)
                connection = await channel.reach_agent(directory, "", ANSWER_S)
                times.append((time.monotonic() - began) * 1000)
                await _ended(connection)
                commands.append((time.monotonic() - began) * 1000)
                # The same guest as ours from now on: what it was told is in its memory too.
                await _belongs(connection, number, self.endings(authority.derive(b"bench", f"bare-{number}")))
                ends.callback(connection.close, "it was measured")
            await asyncio.sleep(SETTLE_S)
            return times, commands, pss_bytes(pids) / count / MIB

    def _start(self, directory: Path, ends: ExitStack) -> subprocess.Popen[bytes]:
        with ExitStack() as opened:

            def descriptor(path: Path, flags: int = os.O_RDONLY) -> int:
                number = os.open(path, flags | os.O_CLOEXEC)
                opened.callback(os.close, number)
                return number

            monitor = opened.enter_context(bind_unix(directory / "qmp.sock"))
            agent = opened.enter_context(bind_unix(directory / MONITOR_SOCKET_NAME))
            for listener in (monitor, agent):
                listener.listen(1)
            card = tap.alone()
            opened.callback(os.close, card)
            machine = VirtualMachine(
                accelerator=self.qemu.accelerator,
                vcpus=1,
                memory_bytes=MEMORY_MB * MIB,
                kernel=descriptor(self.qemu.guest.kernel),
                initramfs=descriptor(self.qemu.guest.initramfs),
                layers=tuple(descriptor(layer) for layer in self.layers),
                disk=descriptor(directory / DISK, os.O_RDWR),
                channel=agent.fileno(),
                monitor=monitor.fileno(),
                preload=descriptor(preload_path()),
                tsc_khz=tsc.frequency_khz() if self.qemu.accelerator is Accelerator.TCG else None,
                card=Card(card, tap.HARDWARE, "", ""),
                comes_in=True,
                memory=self.template.memory,
                maps_privately=True,
            )
            process = subprocess.Popen(
                command(self.qemu._program(), machine),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=machine.descriptors,
            )
        ends.callback(process.wait)
        ends.callback(process.kill)
        state = self.template.reading()
        try:
            with Monitor(directory / "qmp.sock", ANSWER_S) as asked:
                qemu_memory.read(asked, state, without_memory=True)
                asked.ask("cont")
        finally:
            os.close(state)
        return process

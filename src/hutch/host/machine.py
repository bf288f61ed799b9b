"""One machine: a booted guest, its agent's channel, and what it holds on the host.

    boot → ready (in the pool) → claimed by a session → removed

`Machines` makes and removes them; it owns the order of steps, in which every failure leaves nothing behind. A `Machine`
calls its agent: each call is bounded in time, and an agent that neither answers nor returns a ping is taken for dead.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from hutch.errors import ConflictError, GoneError, HutchError, UnavailableError
from hutch.host import authority, channel, kernel, preparing
from hutch.host.authority import Authority, TrustStore
from hutch.host.cgroups import Cgroups
from hutch.host.drives import Attachment, Drives
from hutch.host.gateway import Gateway
from hutch.host.journal import MachineEntry
from hutch.host.kernel import Process
from hutch.host.memory import Memory
from hutch.host.names import Names, machine_id
from hutch.host.network import Network, Networks
from hutch.host.protocol import DriveMode
from hutch.host.storage import Source, WritableLayers
from hutch.images import Image
from hutch.isolation.backends import Backends
from hutch.isolation.beginning import METHOD, Ending, beginning
from hutch.isolation.protocol import BootFailed, Isolation, MachinePlan, PlannedMount, Traits
from hutch.wire import Connection, Stream
from hutch.wire.connection import ConnectionClosed

log = logging.getLogger(__name__)

T = TypeVar("T")
Admit = Callable[[Network], Awaitable[None]]

STANDING_STILL_TIMEOUT_S = 300.0
HANG_UP_TIMEOUT_S = 2.0
CALL_TIMEOUT_S = 30.0
PING_AFTER_S = 4.0
QUIET_TIMEOUT_S = 5.0
QUIET_POLL_S = 0.01
PROCESS_DIED = "its sandbox process died"
SUSPENDED_MARK = "suspended"
EMPTY_TIMEOUT_S = 2.0
WRITTEN_TIMEOUT_S = 60.0
MOUNTED_TIMEOUT_S = 60.0
"""A file system that was not unmounted has a journal to replay."""
LAST_WORDS_S = 0.2
"""What a machine said last is read by a thread of its own."""


@dataclass(frozen=True, slots=True)
class MachineKind:
    """What makes two machines interchangeable."""

    image: Image
    vcpus: int
    memory_bytes: int
    disk_bytes: int
    isolation: str

    @property
    def key(self) -> tuple[str, int, int, int, str]:
        return (self.image.digest, self.vcpus, self.memory_bytes, self.disk_bytes, self.isolation)


@dataclass(frozen=True, slots=True)
class Contents:
    """What a machine begins with beside its image: files of a snapshot, memory over them, drives."""

    source: Source | None = None
    memory: Memory | None = None
    attachments: tuple[Attachment, ...] = ()


@dataclass(frozen=True, slots=True)
class Counters:
    """What a machine used since its claim, and holds now."""

    active_cpu_us: int
    memory_bytes: int
    disk_bytes: int


@dataclass(slots=True)
class Usage:
    """Final counters of a machine since its claim."""

    active_cpu_us: int
    oom_kills: int


@dataclass(slots=True, eq=False)
class Machine:
    """A running guest. `died` is set, with a reason, when its process or its channel is gone."""

    machine_id: str
    isolation: Isolation
    directory: Path
    cgroup: str
    network: Network
    process: Process
    connection: Connection
    token: str = ""
    cpu_zero_us: int = 0
    image_bytes: int = 0
    fingerprint: str = ""
    inherited_bytes: int = 0
    ping_timeout_s: float = 4.0
    died: asyncio.Future[str] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    steady: asyncio.Event = field(default_factory=asyncio.Event)
    """Whether its agent can be asked. What is asked while it can't be waits."""
    _pidfd: kernel.PidDescriptor | None = None

    def watch(self) -> None:
        """Notice the machine's death. Raises `ProcessLookupError` when it is dead already."""
        loop = asyncio.get_running_loop()
        self._pidfd = kernel.open_pidfd(self.process)
        loop.add_reader(self._pidfd.fd, self._process_ended)
        self.connected(self.connection)

    def connected(self, connection: Connection) -> None:
        """This is its agent's channel from now on."""
        self.connection = connection
        connection.closed.add_done_callback(lambda closed: self._disconnected(connection, closed.result()))
        self.steady.set()

    def _disconnected(self, connection: Connection, reason: str) -> None:
        if connection is self.connection and self.steady.is_set():
            self.dead(f"the agent's channel broke: {reason}")

    def _process_ended(self) -> None:
        self.unwatch()
        self.dead(PROCESS_DIED)

    def unwatch(self) -> None:
        if self._pidfd is not None:
            with contextlib.suppress(RuntimeError):
                asyncio.get_running_loop().remove_reader(self._pidfd.fd)
            self._pidfd.close()
            self._pidfd = None

    def let_go(self) -> None:
        """Stop watching and talking; the machine runs on."""
        self.unwatch()
        self.connection.close("the host goes")

    def dead(self, reason: str) -> None:
        if not self.died.done():
            self.died.set_result(reason)
        self.steady.set()

    def entry(self) -> MachineEntry:
        """What the journal keeps."""
        return MachineEntry(
            machine_id=self.machine_id,
            pid=self.process.pid,
            start_ticks=self.process.start_ticks,
            network=self.network.number,
            token=self.token,
            cpu_zero_us=self.cpu_zero_us,
            layer=self.machine_id,
            image_bytes=self.image_bytes,
            fingerprint=self.fingerprint,
            inherited_bytes=self.inherited_bytes,
        )

    # -- the agent ---------------------------------------------------------------------------------

    async def open(self, method: str, params: object) -> Stream:
        """A request whose stream the caller drives. Raises `GoneError` when the machine is dead."""
        await self.steady.wait()
        with gone_when_closed():
            return self.connection.open(method, params)

    async def quiet(self, let_go: Callable[[], Awaitable[None]]) -> None:
        """Wait until nothing is being asked of its agent; new requests wait from now on. `let_go` ends those that can be made
        again. Raises `ConflictError` (`sandbox_busy`) when it takes long, and everything goes on."""
        self.steady.clear()
        try:
            async with asyncio.timeout(QUIET_TIMEOUT_S):
                await let_go()
                while not self.connection.is_idle and not self.died.done():
                    await asyncio.sleep(QUIET_POLL_S)
                    await let_go()
        except TimeoutError as error:
            self.steady.set()
            raise ConflictError(
                "sandbox_busy",
                "Files are on their way into or out of the sandbox, or a terminal is open. Its memory can be saved when that is "
                "over.",
            ) from error

    async def call(
        self,
        method: str,
        params: object,
        kind: type[T] = dict[str, Any],  # type: ignore[assignment]
        timeout_s: float = CALL_TIMEOUT_S,
        *,
        at_once: bool = False,
    ) -> T:
        """A request without a body, and its reply. `at_once`: for whoever has all others wait."""
        if not at_once:
            await self.steady.wait()
        with gone_when_closed():
            stream = self.connection.open(method, params)
        stream.send_end()
        try:
            return await self.answer(stream.reply(kind), timeout_s)
        finally:
            stream.cancel()

    async def answer(self, waiting: Awaitable[T], timeout_s: float = CALL_TIMEOUT_S) -> T:
        """Wait for something that the agent does at once; when it takes long, find out whether the agent lives.

        Raises `GoneError` when the machine died, `UnavailableError` (`guest_busy`) after `timeout_s`.
        """
        task = asyncio.ensure_future(waiting)
        try:
            with gone_when_closed():
                done, _ = await asyncio.wait({task}, timeout=PING_AFTER_S)
                if not done:
                    await self._check()
                    done, _ = await asyncio.wait({task}, timeout=timeout_s - PING_AFTER_S)
                if not done:
                    raise UnavailableError(
                        "guest_busy", f"The sandbox did not answer within {timeout_s:.0f} s. Try again.", retry_after_s=1
                    )
                return task.result()
        finally:
            task.cancel()

    async def _check(self) -> None:
        try:
            await self.connection.ping(self.ping_timeout_s)
        except TimeoutError as error:
            self.dead("its agent does not answer")
            raise gone() from error


def gone() -> GoneError:
    return GoneError("sandbox_stopped", "Sandbox has stopped execution and is no longer available")


@contextlib.contextmanager
def gone_when_closed() -> Iterator[None]:
    """A broken channel means a dead machine to the caller."""
    try:
        yield
    except ConnectionClosed as error:
        raise gone() from error


class Machines:
    """Makes, finds again and removes machines."""

    def __init__(
        self,
        directory: Path,
        names: Names,
        backends: Backends,
        layers: WritableLayers,
        drives: Drives,
        networks: Networks,
        agent: Path,
        executor: Executor,
        gateway: Gateway,
        trust: TrustStore,
        secret: bytes,
    ) -> None:
        self._directory = directory
        self._names = names
        self.backends = backends
        self._layers = layers
        self._drives = drives
        self._networks = networks
        self._agent = agent
        self._executor = executor
        self._gateway = gateway
        self._trust = trust
        self._secret = secret

    def traits(self, isolation: str) -> Traits:
        """What a backend does its own way."""
        return self.backends[isolation].traits

    @property
    def cgroups(self) -> Cgroups:
        return self.backends.cgroups

    async def _blocking(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)

    async def boot(self, kind: MachineKind, contents: Contents, admit: Admit | None = None) -> Machine:
        """Start a machine and wait for its agent. `admit` is called with its network before anything in it runs. Raises
        `HutchError` or `OSError`; nothing is left then."""
        identifier, source, memory, isolation = machine_id(), contents.source, contents.memory, self.backends[kind.isolation]
        traits = isolation.traits
        async with contextlib.AsyncExitStack() as undo:
            network = await self._networks.take()
            undo.push_async_callback(self._networks.give_back, network)
            own = await self._blocking(authority.derive, self._secret, identifier)
            # Known before there is a guest, and closed until it has a policy.
            undo.push_async_callback(self._gateway.remove, network)
            await self._gateway.add(network, own)
            undo.push_async_callback(self._blocking, self._remove_files, identifier)
            # What a disk begins with may all be written again, and then it is the layer's own.
            begins = source if source is None or traits.trees else Source(source.snapshot, 0)
            layer = await self._blocking(self._layers.create, identifier, kind.disk_bytes, begins)
            directory = self._directory / identifier
            await self._blocking(self._make_directory, directory)
            mounts = await self._mounts(identifier, contents.attachments, kind.image, disk=not traits.trees)
            plan = MachinePlan(
                machine_id=identifier,
                directory=directory,
                lowers=tuple(layer.path for layer in kind.image.layers),
                layer=layer,
                channel_dir=directory / "channel",
                agent=self._agent,
                namespace=network.namespace_path,
                nameserver=network.host_address,
                cgroup=self._names.cgroup(identifier),
                vcpus=kind.vcpus,
                memory_bytes=kind.memory_bytes,
                memory=memory.image if memory is not None else None,
                mounts=mounts,
                address=network.guest_address,
                disk_bytes=0 if traits.trees else await self._blocking(self._layers.room, identifier),
                prepare=self._prepare,
            )
            if admit is not None:
                await admit(network)
            undo.push_async_callback(self._blocking, isolation.remove, identifier, directory, None)
            token = memory.record.token if memory is not None else ""
            connecting = self._connect(traits, plan.channel_dir, token, traits.boot_timeout_s, boots=memory is None)
            agent = asyncio.ensure_future(connecting)
            undo.callback(agent.cancel)
            # Of what runs it: what is installed may be another release when its memory is saved.
            fingerprint = await self._blocking(isolation.fingerprint)
            process = await self._boot_process(isolation, plan)
            undo.push_async_callback(self._blocking, isolation.kill, process)
            connection = await self._unless_dead(isolation, agent, process, directory)
            machine = Machine(identifier, isolation, directory, plan.cgroup, network, process, connection)
            machine.ping_timeout_s = traits.ping_timeout_s
            machine.image_bytes = sum(layer.path.stat().st_size for layer in kind.image.layers)
            machine.inherited_bytes = source.size_bytes if source is not None else 0
            machine.fingerprint = fingerprint
            undo.callback(machine.unwatch)
            machine.watch()
            # Its files may be those of a template.
            new = source is None and memory is None
            ended = traits.begins and await self._begin(machine, self._trust.endings(own) if new else ())
            if mounts and not traits.trees:
                await self._mount_drives(machine, mounts)
            if not ended:
                await self._install_trust(machine, own)
            undo.pop_all()
            return machine

    async def _mounts(
        self, identifier: str, attachments: tuple[Attachment, ...], image: Image, *, disk: bool
    ) -> tuple[PlannedMount, ...]:
        """Make a machine's drives ready. A new one belongs to the user that commands run as."""
        planned = []
        for number, attachment in enumerate(attachments):
            mount, owner = attachment.mount, None
            read_only = mount.mode is DriveMode.SNAPSHOT
            if read_only:
                path = await self._drives.view(attachment, f"{identifier}-{number}", disk=disk)
            else:
                path = await self._drives.attach(attachment, disk=disk)
            if attachment.is_new:
                owner = (image.config.uid, image.config.gid)
                if not disk:
                    await self._blocking(_give_to, path, owner)
            planned.append(PlannedMount(mount.path, path, read_only, owner))
        return tuple(planned)

    async def _mount_drives(self, machine: Machine, mounts: tuple[PlannedMount, ...]) -> None:
        """Have a machine's agent mount the disks of its drives. Raises `BadRequestError` (`invalid_mount_path`) where the guest's
        files have no place for one, else `BootFailed`."""
        params = {
            "mounts": [{"path": os.fsencode(mount.path), "read_only": mount.read_only, "owner": mount.owner} for mount in mounts]
        }
        try:
            await machine.call("drives.mount", params, timeout_s=MOUNTED_TIMEOUT_S)
        except HutchError as error:
            if error.code == "invalid_mount_path":
                raise
            raise BootFailed(f"The sandbox's drives could not be mounted: {await self._why(machine, error)}") from error

    async def _why(self, machine: Machine, error: HutchError) -> str:
        """What a machine did not do what it was told for; it may have died of it."""
        return await self.reason_of_death(machine, machine.died.result()) if machine.died.done() else error.message

    async def _begin(self, machine: Machine, endings: Sequence[Ending]) -> bool:
        """Have a machine be nobody else, whose memory may be that of others until now, and say whether its files were such that
        all endings are written. Raises `BootFailed`."""
        params = beginning(machine.network.guest_address, machine.network.host_address, endings)
        try:
            return (await machine.call(METHOD, params)).get("ended") is True
        except HutchError as error:
            raise BootFailed(f"The sandbox did not begin: {await self._why(machine, error)}") from error

    async def _install_trust(self, machine: Machine, own: Authority) -> None:
        """Have the guest trust this host's roots and its own authority. A guest's file system may be older than its authority,
        so this is done at every boot."""
        archive = await self._blocking(self._trust.archive, own)
        stream = await machine.open(*preparing.writing(archive))
        with gone_when_closed():
            await preparing.written(stream, archive, machine.answer)

    async def _prepare(self, connection: Connection) -> None:
        """The same for what others begin with, who have an authority each."""
        await preparing.prepare(connection, self._trust.archive(None))

    @staticmethod
    async def _connect(traits: Traits, directory: Path, token: str, timeout_s: float, *, boots: bool = False) -> Connection:
        """A connection to the agent whose channel is in `directory`. Raises `AgentMissing`."""
        if traits.listens:
            return await channel.reach_agent(directory, token, timeout_s, None if boots else channel.SILENCE_S)
        # A virtual machine's connection is there as soon as its agent is, which then may have little of a processor.
        greeting_s = max(channel.GREETING_TIMEOUT_S, traits.ping_timeout_s)
        return await channel.accept_agent(directory, token, timeout_s, greeting_s, traits.channel_mode)

    async def _unless_dead(
        self, isolation: Isolation, agent: asyncio.Future[Connection], process: Process, directory: Path
    ) -> Connection:
        """The connection, once there is one. Raises `BootFailed` when the process ends first."""
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        try:
            pidfd = kernel.open_pidfd(process)
        except ProcessLookupError:
            raise await self._ended_early(isolation, directory) from None
        loop.add_reader(pidfd.fd, ended.set)
        waiting = asyncio.ensure_future(ended.wait())
        try:
            await asyncio.wait((agent, waiting), return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
            loop.remove_reader(pidfd.fd)
            pidfd.close()
        if not agent.done():
            raise await self._ended_early(isolation, directory)
        return agent.result()

    async def _ended_early(self, isolation: Isolation, directory: Path) -> BootFailed:
        reason = await self._last_words(isolation, directory)
        return BootFailed(f"The sandbox ended before its agent answered{f': {reason}' if reason else ''}")

    async def _last_words(self, isolation: Isolation, directory: Path) -> str:
        reason = await self._blocking(isolation.last_words, directory)
        if not reason and not isolation.traits.trees:
            await asyncio.sleep(LAST_WORDS_S)
            reason = await self._blocking(isolation.last_words, directory)
        return reason

    async def reason_of_death(self, machine: Machine, reason: str) -> str:
        """A machine's reason to be dead, or what it said of it itself."""
        words = await self._last_words(machine.isolation, machine.directory)
        # Its channel breaks with it, and either may be noticed first.
        return words or (PROCESS_DIED if not machine.process.alive() else reason)

    async def _boot_process(self, isolation: Isolation, plan: MachinePlan) -> Process:
        # Not abandoned on cancellation: what the thread starts must be known before it is removed.
        boot = asyncio.ensure_future(self._blocking(isolation.boot, plan))
        try:
            return await asyncio.shield(boot)
        except asyncio.CancelledError:
            with contextlib.suppress(OSError):
                await self._blocking(isolation.kill, await boot)
            raise

    @staticmethod
    def _make_directory(directory: Path) -> None:
        directory.mkdir(mode=0o700)
        (directory / "channel").mkdir()
        # Seen by the guest, whatever our umask is.
        (directory / "channel").chmod(0o755)

    async def adopt(self, entry: MachineEntry, isolation: Isolation) -> Machine:
        """Find a machine again that a predecessor started. Raises `OSError` with the reason why it can't be."""
        process = Process(entry.pid, entry.start_ticks)
        if not process.alive():
            raise ProcessLookupError("its sandbox process died while the host was down")
        directory = self._directory / entry.machine_id
        mark = directory / SUSPENDED_MARK
        stood_still = mark.exists()
        if stood_still:
            # The host died while it saved the machine's memory.
            await self._blocking(isolation.resume, entry.machine_id)
        traits = isolation.traits
        connection = await self._connect(traits, directory / "channel", entry.token, traits.adopt_timeout_s)
        network = self._networks.network(entry.network)
        own = await self._blocking(authority.derive, self._secret, entry.machine_id)
        await self._gateway.add(network, own, announce=False)
        cgroup = self._names.cgroup(entry.machine_id)
        machine = Machine(entry.machine_id, isolation, directory, cgroup, network, process, connection)
        machine.token, machine.cpu_zero_us = entry.token, entry.cpu_zero_us
        machine.ping_timeout_s = traits.ping_timeout_s
        machine.image_bytes, machine.inherited_bytes = entry.image_bytes, entry.inherited_bytes
        machine.fingerprint = entry.fingerprint
        machine.watch()
        if stood_still:
            if traits.begins:
                await self._set_clock(machine)
            mark.unlink()
        return machine

    async def claim(self, machine: Machine, image: Image, hostname: str, env: dict[str, str]) -> None:
        """Make a machine a session's. From here on its CPU time counts. Raises `HutchError`."""
        user = image.config
        machine.token = secrets.token_hex(16)
        params = {
            "hostname": hostname,
            "env": {**user.env, **authority.variables(), **env},
            "user": {
                "name": user.user,
                "uid": user.uid,
                "gid": user.gid,
                "groups": list(user.groups),
                "home": user.home.encode(),
            },
            "cwd": user.cwd.encode(),
            "token": machine.token,
            "entropy": os.urandom(64),
            "time_ns": 0,
        }
        machine.cpu_zero_us = self.cgroups.cpu_us(_guest_cgroup(machine.isolation, machine.cgroup)) or 0
        await machine.call("claim", params)

    # -- memory ------------------------------------------------------------------------------------

    def fingerprint(self, isolation: str) -> str:
        """What memory that is saved under a backend needs in order to go on. Blocks."""
        return self.backends[isolation].fingerprint()

    @contextlib.asynccontextmanager
    async def standing_still(self, machine: Machine, image: Path) -> AsyncIterator[None]:
        """Stop a machine whose requests are `quiet`, and write its memory into the empty directory `image`; it goes on
        afterwards, with another channel, unless it was ended meanwhile. Raises `OSError`. One that does not go on is dead; what
        was made of it while it stood still is whole all the same."""
        await self._blocking(machine.isolation.before_checkpoint, machine.machine_id, image)
        mark, made = machine.directory / SUSPENDED_MARK, False
        await self._blocking(mark.touch)
        try:
            if machine.isolation.traits.begins:
                await self._freeze(machine)
            # A saved end of the channel would never learn that it has no other one.
            await machine.connection.hang_up(HANG_UP_TIMEOUT_S)
            try:
                await self._blocking(machine.isolation.suspend, machine.machine_id)
                await self._blocking(machine.isolation.checkpoint, machine.machine_id, image)
                yield
                made = True
            finally:
                if not machine.died.done():
                    await self._go_on(machine)
                    await self._blocking(mark.unlink)
        except OSError as error:
            if not machine.steady.is_set():
                machine.dead(f"it did not go on after its memory was saved: {error}")
            if not made:
                raise

    async def _go_on(self, machine: Machine) -> None:
        # There is no telling how long it stands still; its agent's time begins when it goes on.
        traits = machine.isolation.traits
        waiting = self._connect(traits, machine.directory / "channel", machine.token, STANDING_STILL_TIMEOUT_S)
        agent = asyncio.ensure_future(waiting)
        try:
            await self._blocking(machine.isolation.resume, machine.machine_id)
            # One that is ended meanwhile is not waited for.
            either: set[asyncio.Future[Any]] = {agent, machine.died}
            done, _ = await asyncio.wait(either, timeout=traits.adopt_timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if agent not in done:
                raise OSError(machine.died.result() if done else "its agent did not come back")
            machine.connected(agent.result())
            if traits.begins:
                await self._set_clock(machine)
        finally:
            agent.cancel()

    @staticmethod
    async def _freeze(machine: Machine) -> None:
        """Have a machine's programs stand still from when its channel is hung up: in what goes on from its memory until that is
        another machine, in this one until it is told the time."""
        try:
            await machine.call("machine.freeze", {}, at_once=True)
        except HutchError as error:
            log.warning("programs of machine %s run on while its memory is saved: %s", machine.machine_id, error.message)

    @staticmethod
    async def _set_clock(machine: Machine) -> None:
        """Tell a machine what it did not count while it stood still."""
        try:
            await machine.call("clock.set", {"time_ns": time.time_ns()})
        except HutchError as error:
            log.warning("machine %s was not told the time: %s", machine.machine_id, error.message)

    # -- removal -----------------------------------------------------------------------------------

    async def write_down(self, machine: Machine) -> None:
        """Have everything that a guest wrote be with the host, before its files are kept. A guest that can't do so leaves what
        its file system has. Its processes end."""
        await self._told_to_write(machine, "shutdown", {"grace_ms": 0})

    async def write_so_far(self, machine: Machine) -> None:
        """The same of a guest that runs on: what it wrote before this is with the host."""
        await self._told_to_write(machine, "sync", {})

    async def _told_to_write(self, machine: Machine, method: str, params: object) -> None:
        # Of one that stands still, what is in memory is kept too.
        if not machine.isolation.traits.writes_late or machine.died.done() or not machine.steady.is_set():
            return
        try:
            async with asyncio.timeout(WRITTEN_TIMEOUT_S):
                await machine.call(method, params)
        except (HutchError, OSError) as error:
            log.warning("machine %s did not write down what it has in memory: %s", machine.machine_id, reason_of(error))

    async def end(self, machine: Machine) -> Usage:
        """Kill a machine; its final counters. What it holds is still there: `remove` it."""
        machine.unwatch()
        machine.dead("it was stopped")
        usage = await self._blocking(self._end, machine)
        machine.connection.close("the machine was stopped")
        return usage

    def _end(self, machine: Machine) -> Usage:
        machine.isolation.kill(machine.process)
        # Stubs of the dead sentry still count for a moment; the last reading comes when all are gone.
        self.cgroups.kill_all(machine.cgroup, EMPTY_TIMEOUT_S)
        cpu = self.cgroups.final_cpu_us(_guest_cgroup(machine.isolation, machine.cgroup))
        return Usage(
            active_cpu_us=max(0, cpu - machine.cpu_zero_us) if cpu is not None else 0,
            oom_kills=self.cgroups.oom_kills(machine.cgroup),
        )

    def cpu_of(self, entry: MachineEntry, isolation: str) -> int:
        """Active CPU of a machine that may be gone, in microseconds; 0 when its counters are, or its backend is not used here."""
        if isolation not in self.backends:
            return 0
        cpu = self.cgroups.cpu_us(_guest_cgroup(self.backends[isolation], self._names.cgroup(entry.machine_id)))
        return max(0, cpu - entry.cpu_zero_us) if cpu is not None else 0

    async def counters(self, machines: list[Machine]) -> list[Counters | None]:
        """What each used and holds now; None where a machine's cgroup is gone."""
        return await self._blocking(lambda: [self._counters(machine) for machine in machines]) if machines else []

    def counters_now(self, machine: Machine) -> Counters | None:
        """The same of one machine. Blocks, for less than a way to a thread and back takes."""
        return self._counters(machine)

    def _counters(self, machine: Machine) -> Counters | None:
        cpu, memory = (
            self.cgroups.cpu_us(_guest_cgroup(machine.isolation, machine.cgroup)),
            self.cgroups.held_bytes(machine.cgroup),
        )
        if cpu is None or memory is None:
            return None
        return Counters(max(0, cpu - machine.cpu_zero_us), memory, self._layers.held(machine.machine_id))

    async def disk_bytes(self, identifier: str) -> int:
        """What the layer of a machine holds, also of one that is dead; 0 when it is gone."""
        return await self._blocking(self._layers.held, identifier)

    def memory_of(self, machine: Machine) -> int:
        """Bytes of memory that a machine holds, at most. Blocks."""
        return self.cgroups.memory_bytes(machine.cgroup) or 0

    async def seal(self, identifier: str, snapshot: str) -> None:
        """Make the files of an ended machine a snapshot. Idempotent. Raises `OSError`."""
        await self._blocking(self._seal, identifier, snapshot)

    def _seal(self, identifier: str, snapshot: str) -> None:
        self.cgroups.kill_all(self._names.cgroup(identifier), EMPTY_TIMEOUT_S)
        if not self._layers.seals_in_use:
            self.backends.remove(identifier, self._directory / identifier)
        self._layers.seal(identifier, snapshot)

    async def remove(self, machine: Machine) -> None:
        """Remove what an ended machine holds."""
        await self._gateway.remove(machine.network)
        await self._blocking(machine.isolation.remove, machine.machine_id, machine.directory, machine.process)
        await self._blocking(self._remove_files, machine.machine_id)
        await self._networks.give_back(machine.network)

    def remove_by_id(self, identifier: str) -> None:
        """Remove whatever there is of a machine that nobody uses; idempotent. Blocks."""
        cgroup = self._names.cgroup(identifier)
        self.cgroups.kill_all(cgroup, EMPTY_TIMEOUT_S)
        self.backends.remove(identifier, self._directory / identifier)
        self._remove_files(identifier)

    def _remove_files(self, identifier: str) -> None:
        cgroup = self._names.cgroup(identifier)
        self.cgroups.kill_all(cgroup, EMPTY_TIMEOUT_S)
        self.cgroups.remove(cgroup, EMPTY_TIMEOUT_S)
        directory = self._directory / identifier
        for point in kernel.mounts_below(directory):
            kernel.unmount(point)
        shutil.rmtree(directory, ignore_errors=True)
        self._drives.remove_views(identifier)
        self._layers.remove(identifier)

    async def scrub(self) -> None:
        """Have the files below layers and drives hold nothing of those that were removed. Raises `OSError`."""
        await asyncio.to_thread(self._layers.scrub)

    def left_behind(self) -> set[str]:
        """Ids of every machine of which something is left. Blocks."""
        found = {entry.name for entry in self._directory.iterdir()} if self._directory.is_dir() else set()
        found |= self.backends.machines() | self._layers.names() | self._drives.viewers()
        return found | self.cgroups.children(self._names.cgroup_parent)


def _give_to(directory: Path, owner: tuple[int, int]) -> None:
    os.chown(directory, *owner)
    directory.chmod(0o755)


def _guest_cgroup(isolation: Isolation, cgroup: str) -> str:
    """The cgroup that has the guest's own CPU time."""
    return str(Path(cgroup) / isolation.traits.guest_cgroup)


def reason_of(error: BaseException) -> str:
    """An error as the reason in a record."""
    return error.message if isinstance(error, HutchError) else str(error)

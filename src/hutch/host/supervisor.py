"""Sessions of this machine: created, found again, timed out, stopped, and swept up after.

    create ─▶ claim a pooled machine, or boot one ─▶ journal ─▶ running ─▶ stopping ─▶ stopped
                                                                  └─ machine died ─▶ failed

A session is acknowledged once it is in the journal. After the death of this process, sandboxes run on; its successor adopts
the journal's live sessions, ends with a reason those whose machine is gone, and removes everything else of this instance.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import shutil
import sqlite3
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from hutch.clock import now_ms
from hutch.errors import BadRequestError, ConflictError, HutchError, NotFoundError, NotReadyError, UnavailableError
from hutch.host import egress, snapshots
from hutch.host.audit import AuditStore
from hutch.host.commands import Commands
from hutch.host.drives import Attachment, Drives
from hutch.host.egress import Egress
from hutch.host.gateway import Gateway
from hutch.host.images import Images
from hutch.host.journal import Journal, MachineEntry
from hutch.host.machine import Admit, Contents, Machine, MachineKind, Machines, gone, reason_of
from hutch.host.memory import Memory, MemoryRecord
from hutch.host.network import Network, Networks
from hutch.host.pool import Pool, Recipe
from hutch.host.prefetch import Prefetch
from hutch.host.protocol import (
    LIVE,
    CommandRecord,
    CredentialChange,
    ForwardingKey,
    ImageBuild,
    ImageRecord,
    NetworkApplied,
    NetworkUpdate,
    SessionEvent,
    SessionRecord,
    SessionSpec,
    SessionStatus,
    SnapshotImport,
    SnapshotMethod,
    SnapshotRecord,
    SnapshotRequest,
    SnapshotTaken,
    Traffic,
)
from hutch.host.snapshots import Snapshots
from hutch.host.storage import Source
from hutch.host.traffic import FLUSH_EVERY_S, TrafficMeter
from hutch.images import Image
from hutch.settings import Settings

log = logging.getLogger(__name__)

MIB = 1024 * 1024
KEEP_RECORDS_MS = 24 * 3600 * 1000
KEEP_LOGS_MS = 3600 * 1000
TIDY_EVERY_S = 300.0
BOUND_EVERY_S = 2.0
SEAL_AGAIN_S = 0.2
SEAL_AGAIN_MAX_S = 30.0
ADOPT_WAIT_S = 10.0
ADOPT_AT_ONCE = 32


@dataclass(slots=True)
class Session:
    """A session and, while it lives, its machine. `ended` is done with the final record."""

    record: SessionRecord
    seq: int
    entry: MachineEntry | None = None
    machine: Machine | None = None
    commands: Commands | None = None
    timer: asyncio.TimerHandle | None = None
    ending: asyncio.Task[SessionRecord] | None = None
    saving: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def live(self) -> bool:
        return self.record.status in LIVE


class Supervisor:
    """Owner of every sandbox of one instance on this machine."""

    def __init__(
        self,
        settings: Settings,
        journal: Journal,
        machines: Machines,
        networks: Networks,
        images: Images,
        isolation_name: str,
        gateway: Gateway,
        egress: Egress,
        audit: AuditStore,
        meter: TrafficMeter,
        snapshots: Snapshots,
        drives: Drives,
    ) -> None:
        self._settings = settings
        self._journal = journal
        self._machines = machines
        self._networks = networks
        self.images = images
        self._isolation_name = isolation_name
        self._gateway = gateway
        self.egress = egress
        self.audit = audit
        self.snapshots = snapshots
        self.drives = drives
        self._meter = meter
        self._logs = settings.host_dir / "logs"
        self._sessions: dict[str, Session] = {}
        self._creating: dict[str, asyncio.Task[SessionRecord]] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._removals: set[asyncio.Task[None]] = set()
        self._saves: set[asyncio.Task[SnapshotTaken]] = set()
        self._prefetch = Prefetch(settings.host_dir / "prefetch")
        self._read: set[Path] = set()
        self._changed = asyncio.Event()
        self.pool = Pool(
            self._kinds_to_pool(), self._boot_for_pool, self._discard, settings.pool.refill_concurrency, settings.pool.max_size
        )
        self.draining = self._left = False
        self.ready_reason = "starting"

    # -- start and end -----------------------------------------------------------------------------

    async def start(self, block: int) -> None:
        """Adopt, sweep, then fill the pool. `block` is the address block that was taken."""
        self._journal.start()
        self.images.start(self._needing, self.pool.forget_image)
        await self._journal.put_meta("address_block", str(block))
        self._logs.mkdir(parents=True, exist_ok=True, mode=0o700)
        await self.snapshots.recover(self._planned_by_journal())
        await self._gateway.start()
        await self._recover()
        await self._gateway.open()
        self._spawn(self._networks.refill())
        self._spawn(self._tidy_for_ever())
        for record in self.snapshots.records():
            self._settle(record)
        self._spawn(self.snapshots.keep_copies(self._settled))
        self._spawn(self._meter_for_ever())
        self._spawn(self._bound_for_ever())
        self._spawn(self._read_ahead())
        self.pool.start()
        self.ready_reason = ""

    @staticmethod
    def machines_to_keep(journal: Journal) -> dict[str, MachineEntry]:
        """The machines of live sessions in a journal that was not started yet."""
        return {entry.machine_id: entry for _, record, entry in journal.sessions() if record.status in LIVE}

    def _planned_by_journal(self) -> set[str]:
        return {record.snapshot.snapshot_id for _, record, _ in self._journal.sessions() if record.snapshot is not None}

    async def _recover(self) -> None:
        commands: dict[str, list[CommandRecord]] = {}
        for command in self._journal.commands():
            commands.setdefault(command.session_id, []).append(command)
        live = []
        for seq, record, entry in self._journal.sessions():
            session = Session(record, seq, entry)
            self._sessions[record.session_id] = session
            if session.live:
                live.append(session)
        keep = {session.entry.machine_id for session in live if session.entry is not None}
        left = await asyncio.to_thread(self._machines.left_behind)
        for identifier in sorted(left - keep):
            log.info("removing %s, which no session uses", identifier)
            await asyncio.to_thread(self._machines.remove_by_id, identifier)
        await self.drives.recover({session.record.session_id: session.record.mounts for session in live})
        for name in {entry.name for entry in self._logs.iterdir()} - self._sessions.keys():
            shutil.rmtree(self._logs / name, ignore_errors=True)
        gate = asyncio.Semaphore(ADOPT_AT_ONCE)

        async def adopt(session: Session) -> None:
            async with gate:
                await self._adopt(session, commands.get(session.record.session_id, []))

        await asyncio.gather(*(adopt(session) for session in live))
        await self.egress.keep_only({session_id for session_id, session in self._sessions.items() if session.live})

    async def _adopt(self, session: Session, commands: list[CommandRecord]) -> None:
        assert session.entry is not None
        try:
            if session.record.status is not SessionStatus.RUNNING:
                raise InterruptedError(session.record.stop_reason or "stop")
            machine = await self._machines.adopt(session.entry)
        except InterruptedError as interrupted:
            # Its end had begun; it is carried through.
            await self._carry_through(session, SessionStatus.STOPPED, str(interrupted))
            return
        except OSError as error:
            reason = f"The sandbox could not be adopted: {reason_of(error)}."
            await self._carry_through(session, SessionStatus.FAILED, reason)
            return
        await self._meter.resume(session.record.session_id, machine.network)
        await self.egress.resume(session.record.session_id, machine.network)
        self._attach(session, machine)
        assert session.commands is not None
        try:
            await session.commands.adopt(commands)
        except HutchError as error:
            await self.end(session, SessionStatus.FAILED, f"The sandbox could not be adopted: {error.message}")
            return
        log.info("adopted session %s with %d commands", session.record.session_id, len(commands))

    async def _carry_through(self, session: Session, status: SessionStatus, reason: str) -> None:
        """Write the end of a session whose machine is gone; what can't be done at once does not hold up the others."""
        ending = asyncio.get_running_loop().create_task(self._after_death(session, status, reason))
        self._removals.add(ending)
        ending.add_done_callback(self._removals.discard)
        ending.add_done_callback(_log_failure)
        await asyncio.wait({ending}, timeout=ADOPT_WAIT_S)
        if ending.done():
            ending.result()

    async def _after_death(self, session: Session, status: SessionStatus, reason: str) -> None:
        """Write the end of a session whose machine is gone or unreachable, and remove what is left of it."""
        assert session.entry is not None
        entry = session.entry
        cpu = self._machines.cpu_of(entry)
        passed = await self._meter.end(session.record.session_id, self._networks.network(entry.network))
        snapshot = await self._sealed(session)
        await asyncio.to_thread(self._machines.remove_by_id, entry.machine_id)
        await self._gateway.remove(self._networks.network(entry.network))
        await self._networks.give_back(self._networks.network(entry.network))
        await self.egress.forget(session.record.session_id)
        await self.drives.release(session.record.session_id)
        now = now_ms()
        await self._change(
            session,
            status=status,
            stop_reason=reason,
            requested_stop_at=session.record.requested_stop_at or now,
            stopped_at=now,
            active_cpu_us=cpu,
            ingress_bytes=passed.ingress_bytes,
            egress_bytes=passed.egress_bytes,
            snapshot=snapshot,
        )
        self._settle(snapshot)

    async def drain(self) -> None:
        """End everything: a clean stop of the host."""
        self.draining, self.ready_reason = True, "stopping"
        await asyncio.gather(*self._creating.values(), *self._saves, return_exceptions=True)
        ending = [session for session in self._sessions.values() if session.live and session.machine is not None]
        ended = await asyncio.gather(
            *(self.end(session, SessionStatus.STOPPED, "host_shutdown") for session in ending), return_exceptions=True
        )
        for session, result in zip(ending, ended, strict=True):
            if isinstance(result, BaseException):
                log.error("the end of session %s is left to the next start: %s", session.record.session_id, result)
        await self.leave()

    async def leave(self) -> None:
        """Stop working; live sessions run on and are adopted by the next start."""
        self.draining, self.ready_reason, self._left = True, "stopping", True
        await asyncio.gather(*self._saves, return_exceptions=True)
        await self.pool.close()
        await self.images.close()
        await asyncio.to_thread(self._prefetch.remember, sorted(self._read))
        for session in self._sessions.values():
            if session.timer is not None:
                session.timer.cancel()
            if session.machine is not None and session.commands is not None and session.ending is None:
                session.machine.let_go()
                await session.commands.close()
        await asyncio.gather(*self._removals, return_exceptions=True)
        for task in list(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self.snapshots.close()

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a background task failed: %s", error, exc_info=error)

    # -- create ------------------------------------------------------------------------------------

    async def create(self, spec: SessionSpec) -> SessionRecord:
        """A running session; the same one when it was asked for before. Raises `HutchError`."""
        session = self._sessions.get(spec.session_id)
        if session is not None:
            return session.record
        task = self._creating.get(spec.session_id)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._create(spec))
            self._creating[spec.session_id] = task
            task.add_done_callback(lambda _: self._creating.pop(spec.session_id, None))
        # The caller may go away: what it asked for is made all the same, and it is told when it asks again.
        return await asyncio.shield(task)

    async def _create(self, spec: SessionSpec) -> SessionRecord:
        requested = now_ms()
        if self.draining:
            raise UnavailableError("host_stopping", "The host is stopping; it takes no new sandboxes.", retry_after_s=5)
        alive = sum(session.live for session in self._sessions.values()) + len(self._creating)
        if alive > self._settings.host.max_sessions:
            raise UnavailableError(
                "host_full", f"The host runs {self._settings.host.max_sessions} sandboxes, the most it may.", retry_after_s=5
            )
        image = self.images.exact(spec.image)
        kind = self._kind(image, spec.vcpus, spec.memory_mb, spec.disk_bytes)
        self._read |= {layer.path for layer in image.layers}
        memory = await self._memory(spec)
        attachments = self.drives.claim(spec.session_id, spec.mounts)
        try:
            with self.images.held(image.digest):
                if memory is None:
                    machine = await self._claimed(kind, spec, attachments)
                else:
                    machine = await self._restored(kind, spec, memory)
                record = await self._run(spec, requested, image, machine)
        except BaseException:
            await self.drives.release(spec.session_id)
            raise
        if memory is not None:
            await self._inherit(self._sessions[spec.session_id], memory)
        return record

    async def _run(self, spec: SessionSpec, requested: int, image: Image, machine: Machine) -> SessionRecord:
        """Make a claimed machine a running session."""
        record = SessionRecord(
            session_id=spec.session_id,
            sandbox_name=spec.sandbox_name,
            project_id=spec.project_id,
            status=SessionStatus.RUNNING,
            # By digest, so that what is made of it later says the same, whatever its name is given to.
            image=spec.image if spec.image.endswith(image.digest) else image.pinned,
            cwd=image.config.cwd,
            vcpus=spec.vcpus,
            memory_mb=spec.memory_mb,
            timeout_ms=spec.timeout_ms,
            requested_at=requested,
            started_at=now_ms(),
            cgroup=machine.cgroup,
            isolation=self._isolation_name,
            source_snapshot=spec.source_snapshot,
            persistent=spec.persistent,
            mounts=spec.mounts,
        )
        session = Session(record, 0, machine.entry())
        try:
            await self.drives.begin(spec.session_id)
            await self._put(session, record)
        except BaseException:
            await self.egress.forget(spec.session_id)
            await self._discard(machine)
            raise
        self._sessions[spec.session_id] = session
        self._meter.begin(spec.session_id)
        self._attach(session, machine)
        self._announce()
        return record

    async def _claimed(self, kind: MachineKind, spec: SessionSpec, attachments: tuple[Attachment, ...]) -> Machine:
        """A machine that is this session's. A pooled one that fails is replaced by a fresh one, once."""
        source = await self.snapshots.source(spec.source_snapshot) if spec.source_snapshot is not None else None
        # What is mounted in a machine is mounted as it boots.
        pooled = await self.pool.take(Recipe(kind, source)) if not attachments else None
        if pooled is not None:
            try:
                await self._claim(pooled, kind, spec)
            except HutchError as error:
                log.warning("pooled machine %s could not be claimed: %s", pooled.machine_id, error)
                await self._discard(pooled)
            else:
                return pooled
        machine = await self._boot(kind, Contents(source, attachments=attachments))
        try:
            await self._claim(machine, kind, spec)
        except BaseException:
            await self._discard(machine)
            raise
        return machine

    async def _claim(self, machine: Machine, kind: MachineKind, spec: SessionSpec) -> None:
        """The network first: what the guest's first instruction sends is judged by the session's policy."""
        await self._admit(spec, machine.network, [])
        await self._name(machine, kind, spec)

    async def _admit(self, spec: SessionSpec, network: Network, known: list[egress.Placeholder]) -> None:
        state = egress.State(
            sandbox_id=spec.sandbox_id or spec.session_id,
            sandbox_name=spec.sandbox_name,
            team_id=spec.team_id,
            project_id=spec.project_id,
            network=spec.network,
        )
        await self.egress.begin(spec.session_id, network, state, known)

    async def _name(self, machine: Machine, kind: MachineKind, spec: SessionSpec) -> None:
        env = self.egress.env(spec.session_id)
        await self._machines.claim(machine, kind.image, spec.hostname, {**env, **spec.env})

    async def _boot_for_pool(self, kind: MachineKind, source: Source | None) -> Machine:
        return await self._boot(kind, Contents(source))

    async def _boot(self, kind: MachineKind, contents: Contents, admit: Admit | None = None) -> Machine:
        try:
            machine = await self._machines.boot(kind, contents, admit)
        except OSError as error:
            log.error("a sandbox did not start: %s", error)
            raise _not_started(error) from error
        self._spawn(self._networks.refill())
        return machine

    # -- memory ------------------------------------------------------------------------------------

    async def _memory(self, spec: SessionSpec) -> Memory | None:
        """What a session goes on from. Raises `ConflictError` (`snapshot_incompatible`) for what can't go on here."""
        if spec.source_snapshot is None or not spec.with_memory:
            return None
        memory = await asyncio.to_thread(self.snapshots.memory.load, spec.source_snapshot)
        if memory is None:
            return None
        record = memory.record
        if spec.mounts:
            raise ConflictError("snapshot_incompatible", "A sandbox that goes on from saved memory can't mount drives.")
        if record.fingerprint != await asyncio.to_thread(self._machines.fingerprint):
            raise ConflictError(
                "snapshot_incompatible",
                f"The memory of snapshot '{spec.source_snapshot}' was saved on another model of processor or by another release "
                "of the sandbox's kernel. Use its files alone, without `memory`.",
            )
        if (record.vcpus, record.memory_mb) != (spec.vcpus, spec.memory_mb):
            raise ConflictError(
                "snapshot_incompatible",
                f"The memory of snapshot '{spec.source_snapshot}' is that of a sandbox with {record.vcpus} vCPUs and "
                f"{record.memory_mb} MB; {spec.vcpus} and {spec.memory_mb} MB were asked for.",
            )
        return memory

    async def _restored(self, kind: MachineKind, spec: SessionSpec, memory: Memory) -> Machine:
        """A machine that goes on from saved memory as this session's."""
        assert spec.source_snapshot is not None
        source = await self.snapshots.source(spec.source_snapshot)

        async def admit(network: Network) -> None:
            # Its processes run before anybody can say to whom they belong now.
            await self._admit(spec, network, memory.record.placeholders)

        machine, logs = None, self._logs / spec.session_id
        try:
            # First: what has begun to go on needs nothing of its snapshot any more, which may be removed then.
            await asyncio.to_thread(shutil.copytree, memory.logs, logs, dirs_exist_ok=True)
            machine = await self._boot(kind, Contents(source, memory), admit)
            await self._name(machine, kind, spec)
        except BaseException as error:
            await asyncio.to_thread(shutil.rmtree, logs, ignore_errors=True)
            await self.egress.forget(spec.session_id)
            if machine is not None:
                await self._discard(machine)
            if isinstance(error, FileNotFoundError):
                raise snapshots.unknown(spec.source_snapshot) from error
            if isinstance(error, OSError):
                raise _not_started(error) from error
            raise
        return machine

    async def _inherit(self, session: Session, memory: Memory) -> None:
        """Take over the commands that run in saved memory; their output is here already. Raises `HutchError`; the session failed
        then."""
        session_id = session.record.session_id
        records = [msgspec.structs.replace(record, session_id=session_id) for record in memory.record.commands]
        # It may end meanwhile.
        commands = session.commands
        assert commands is not None
        try:
            await asyncio.gather(*(self._journal.put_command(record) for record in records))
            await commands.adopt(records)
        except HutchError as error:
            await self.end(session, SessionStatus.FAILED, f"Its commands could not be taken over: {error.message}")
            raise

    @contextlib.asynccontextmanager
    async def _standing_still(self, session: Session, planned: SnapshotRecord) -> AsyncIterator[SnapshotRecord]:
        """Save the memory of a session for a snapshot that is made while this lasts. Raises `HutchError`."""
        machine, commands, memory = session.machine, session.commands, self.snapshots.memory
        assert machine is not None
        assert commands is not None
        fingerprint = await asyncio.to_thread(self._machines.fingerprint)
        # What is written already is not written while everything stands still.
        await asyncio.to_thread(self.snapshots.sync)
        try:
            await machine.quiet(commands.let_go)
            try:
                held = await asyncio.to_thread(self._machines.memory_of, machine)
                part = await asyncio.to_thread(memory.begin, planned.snapshot_id, held)
                running = await asyncio.to_thread(commands.copy, part.logs)
                state = self.egress.state(session.record.session_id)
                record = MemoryRecord(
                    fingerprint=fingerprint,
                    token=machine.token,
                    vcpus=session.record.vcpus,
                    memory_mb=session.record.memory_mb,
                    commands=running,
                    placeholders=state.placeholders if state is not None else [],
                )
                async with self._machines.standing_still(machine, part.image):
                    size = await asyncio.to_thread(memory.finish, planned.snapshot_id, record)
                    yield msgspec.structs.replace(planned, memory_bytes=size)
            finally:
                machine.steady.set()
        except BaseException as error:
            await asyncio.to_thread(memory.remove, planned.snapshot_id)
            if isinstance(error, OSError):
                raise ConflictError("memory_snapshot_failed", f"The memory of the sandbox could not be saved: {error}") from error
            raise
        finally:
            if not machine.died.done():
                await commands.take_up()

    async def _discard(self, machine: Machine) -> None:
        await self._machines.end(machine)
        await self._machines.remove(machine)

    def _kind(self, image: Image, vcpus: int, memory_mb: int, disk_bytes: int | None) -> MachineKind:
        return MachineKind(image, vcpus, memory_mb * MIB, disk_bytes or self._settings.sandbox.disk_bytes)

    def _kinds_to_pool(self) -> list[tuple[MachineKind, int]]:
        size, vcpus = self._settings.pool.size, self._settings.sandbox.default_vcpus
        if size == 0:
            return []
        return [
            (self._kind(self.images.resolve(name, ""), vcpus, vcpus * 2048, None), size) for name in self._settings.pool_images()
        ]

    def _attach(self, session: Session, machine: Machine) -> None:
        """Connect a running session with its machine: commands, deadline, death."""
        record = session.record
        directory = self._logs / record.session_id
        directory.mkdir(exist_ok=True, mode=0o700)
        session.machine = machine
        session.commands = Commands(
            record.session_id,
            machine,
            self._journal,
            directory,
            record.cwd,
            self._settings.sandbox.log_bytes,
            functools.partial(self.egress.env, record.session_id),
        )
        self._arm(session)
        machine.died.add_done_callback(lambda died: self._on_death(session, died.result()))

    def _on_death(self, session: Session, reason: str) -> None:
        if session.ending is None and not self._left:
            self._spawn(self._fail(session, reason))

    async def _fail(self, session: Session, reason: str) -> None:
        await self.end(session, SessionStatus.FAILED, f"The sandbox failed: {reason}.")

    def _needing(self, digest: str) -> list[str]:
        """What would be lost with an image: live sessions and snapshots by id, and the pool."""
        images = {session.record.session_id: session.record.image for session in self._sessions.values() if session.live}
        images |= {record.snapshot_id: record.image for record in self.snapshots.records()}
        users = [name for name, image in images.items() if image.endswith(f"@{digest}")]
        return [*users, "the pool"] if self.pool.needs(digest) else users

    # -- deadline ----------------------------------------------------------------------------------

    def _arm(self, session: Session) -> None:
        if session.timer is not None:
            session.timer.cancel()
        assert session.record.started_at is not None
        left_s = max(0.0, (session.record.started_at + session.record.timeout_ms - now_ms()) / 1000)
        session.timer = asyncio.get_running_loop().call_later(left_s, self._expire, session)

    def _expire(self, session: Session) -> None:
        assert session.record.started_at is not None
        if session.record.started_at + session.record.timeout_ms > now_ms():
            # The wall clock went back, or the loop's clock ran ahead.
            self._arm(session)
        elif session.live and session.ending is None:
            self._spawn(self._time_out(session))

    async def _time_out(self, session: Session) -> None:
        await self.end(session, SessionStatus.STOPPED, "timeout")

    async def extend(self, session_id: str, duration_ms: int, max_timeout_ms: int) -> SessionRecord:
        """Move a session's deadline. Raises `BadRequestError` (`sandbox_timeout_invalid`) beyond the bound."""
        session, _ = self.running(session_id)
        timeout = session.record.timeout_ms + duration_ms
        limit = min(max_timeout_ms, self._settings.sandbox.max_timeout_ms)
        if timeout > limit:
            raise BadRequestError(
                "sandbox_timeout_invalid", f"The timeout would be {timeout} ms in total; the maximum is {limit} ms."
            )
        await self._change(session, timeout_ms=timeout)
        self._arm(session)
        return session.record

    async def set_persistent(self, session_id: str, *, persistent: bool) -> SessionRecord:
        """Say whether the end of a session is to leave a snapshot."""
        session, _ = self.running(session_id)
        await self._change(session, persistent=persistent)
        return session.record

    # -- network -----------------------------------------------------------------------------------

    async def set_network(self, update: NetworkUpdate) -> NetworkApplied:
        """Replace a running session's policy; it is enforced when this returns. Raises `HutchError`, and the old one stays."""
        session, _ = self.running(update.session_id)
        assert session.machine is not None
        applied = await self.egress.update(update.session_id, session.machine.network, update.network)
        return NetworkApplied(generation=applied.generation, closed_flows=applied.closed_flows, kept_flows=applied.kept_flows)

    async def traffic(self, session_id: str) -> Traffic:
        """What passed for a session until now, or until its end. Raises `HutchError`."""
        session = self.get(session_id)
        if session.machine is not None and session.ending is None:
            return await self._meter.read(session_id, session.machine.network)
        totals = await self._meter.last(session_id)
        if totals is None:
            raise gone()
        return totals.traffic()

    async def _meter_for_ever(self) -> None:
        while True:
            running = [
                (session_id, session.machine.network)
                for session_id, session in self._sessions.items()
                if session.machine is not None and session.ending is None
            ]
            await self._meter.flush(running)
            await asyncio.sleep(FLUSH_EVERY_S)

    async def _read_ahead(self) -> None:
        """Have what sandboxes will read of their images in memory before they do."""
        images = [self.images.resolve(name, "") for name in self._settings.pool_images()] if self._settings.pool.size else []
        files = {layer.path for image in images for layer in image.layers}
        await asyncio.to_thread(self._prefetch.read_ahead, sorted(files))

    async def _bound_for_ever(self) -> None:
        while True:
            try:
                await asyncio.to_thread(self.snapshots.bound)
            except OSError as error:
                # As on a store that is full itself: it is bounded anew when it takes that again.
                log.error("what sandboxes may write could not be bounded: %s", error)
            await asyncio.sleep(BOUND_EVERY_S)

    async def change_credential(self, change: CredentialChange) -> None:
        """Have every live session of a project that names a stored credential use another value of it."""
        for session_id, session in list(self._sessions.items()):
            if session.live and session.machine is not None and session.record.project_id == change.project_id:
                await self.egress.change_credential(session_id, session.machine.network, change.name, change.value)

    async def set_forwarding(self, key: ForwardingKey) -> None:
        """Have the gateway sign with this key."""
        await self._gateway.identify(key.issuer, key.key_pem, key.key_id)

    # -- end ---------------------------------------------------------------------------------------

    async def end(
        self,
        session: Session,
        status: SessionStatus,
        reason: str,
        method: SnapshotMethod | None = None,
        planned: SnapshotRecord | None = None,
    ) -> SessionRecord:
        """End a session; its final record once its machine is dead and, where its files are kept (it is persistent, or a `method`
        is given), these are a snapshot, the `planned` one if there is any. The first caller's arguments count."""
        if not session.live:
            return session.record
        if session.ending is None or (session.ending.done() and not self._left):
            # The first, or one after an end that failed on its way and has to be carried through.
            if session.machine is None:
                # A former host began to end it, and its files are still being kept.
                raise NotReadyError("sandbox_stopping", "Sandbox is stopping and no longer accepts commands.")
            if method is None and session.record.persistent:
                method = SnapshotMethod.AUTOMATIC
            if session.record.snapshot is not None:
                planned = session.record.snapshot
            elif planned is None and method is not None:
                planned = self._planned(session, method)
            session.ending = asyncio.get_running_loop().create_task(self._end(session, status, reason, planned))
        return await asyncio.shield(session.ending)

    async def remove_snapshot(self, snapshot_id: str) -> None:
        """Remove a snapshot; nothing happens when there is none. Acknowledged: it goes, whatever happens now."""
        self.pool.forget(snapshot_id)
        await self.snapshots.remove(snapshot_id)

    async def snapshot(self, request: SnapshotRequest) -> SnapshotTaken:
        """Make a snapshot of a running session. Raises `HutchError`."""
        session, _ = self.running(request.session_id)
        assert session.machine is not None
        planned = msgspec.structs.replace(self._planned(session, SnapshotMethod.MANUAL), for_forks=request.for_forks)
        if request.memory and session.record.mounts:
            raise ConflictError("memory_snapshot_failed", "The memory of a sandbox that has drives mounted can't be saved.")
        if request.keep_running:
            self.snapshots.require_copies()
        if request.memory:
            # A caller that goes away leaves no machine that stands still.
            saving = asyncio.get_running_loop().create_task(self._save(session, planned, keep_running=request.keep_running))
            self._saves.add(saving)
            saving.add_done_callback(self._saves.discard)
            return await asyncio.shield(saving)
        return await self._take(session, planned, keep_running=request.keep_running)

    async def _save(self, session: Session, planned: SnapshotRecord, *, keep_running: bool) -> SnapshotTaken:
        async with session.saving:
            self.running(session.record.session_id)
            async with self._standing_still(session, planned) as with_memory:
                taken = await self._take(session, with_memory, keep_running=keep_running)
                if taken.snapshot.snapshot_id != planned.snapshot_id:
                    # Something else ended it first, and kept its files alone.
                    raise gone()
                return taken

    async def _take(self, session: Session, planned: SnapshotRecord, *, keep_running: bool) -> SnapshotTaken:
        if keep_running:
            assert session.machine is not None
            made = await self.snapshots.copy(session.machine.machine_id, planned)
            self._settle(made)
            return SnapshotTaken(snapshot=made, session=session.record)
        record = await self.end(session, SessionStatus.STOPPED, "snapshot", SnapshotMethod.MANUAL, planned)
        if record.snapshot is None:
            raise UnavailableError("snapshot_failed", f"The snapshot could not be made: {record.stop_reason}", retry_after_s=5)
        return SnapshotTaken(snapshot=record.snapshot, session=record)

    def _planned(self, session: Session, method: SnapshotMethod) -> SnapshotRecord:
        assert session.entry is not None
        return self.snapshots.plan(session.record, session.entry, method)

    async def _sealed(self, session: Session) -> SnapshotRecord | None:
        """The snapshot that the end of a session leaves; None when it leaves none, or its files are not there any more."""
        record = session.record
        if record.snapshot is None:
            if not record.persistent:
                return None
            planned = self._planned(session, SnapshotMethod.AUTOMATIC)
            await self._change(session, status=SessionStatus.SNAPSHOTTING, snapshot=planned)
            record = session.record
        assert record.snapshot is not None
        assert session.entry is not None
        try:
            await self._seal(session.entry.machine_id, record.snapshot.snapshot_id)
        except FileNotFoundError as error:
            log.error("the files of session %s are gone: %s", record.session_id, error)
            return None
        self.snapshots.made(record.snapshot)
        return record.snapshot

    async def _seal(self, machine_id: str, snapshot_id: str) -> None:
        """Seal a layer, however long it takes: until it is, the session is not over, and nothing of it is removed. Raises
        `FileNotFoundError` when there is no layer, and `OSError` when this host is to stop: its next start tries again."""
        pause = SEAL_AGAIN_S
        while True:
            try:
                await self._machines.seal(machine_id, snapshot_id)
            except FileNotFoundError:
                raise
            except OSError as error:
                log.error("the files of machine %s can't be kept yet: %s", machine_id, error)
                if self.draining:
                    raise
                await asyncio.sleep(pause)
                pause = min(pause * 2, SEAL_AGAIN_MAX_S)
            else:
                return

    async def load_snapshot(self, request: SnapshotImport, given: AsyncIterable[bytes]) -> SnapshotRecord:
        """A new snapshot out of a tar. Raises `HutchError`."""
        image = self.images.exact(request.image)
        return await self.snapshots.load(request, given, sum(layer.path.stat().st_size for layer in image.layers))

    async def build_image(self, request: ImageBuild) -> ImageRecord:
        """An image with one more layer, out of a snapshot. Raises `HutchError`."""
        snapshot = self.snapshots.record(request.snapshot_id)
        base = self.images.exact(snapshot.image)
        return await self.images.build(request, base, snapshot.size_bytes, self.snapshots.reading(snapshot.snapshot_id))

    def _settle(self, record: SnapshotRecord | None) -> None:
        """Behind everybody's back, have a snapshot survive a power cut."""
        if record is not None and record.durable_at is None:
            self._spawn(self.snapshots.settle(record.snapshot_id, self._settled))

    async def _settled(self, record: SnapshotRecord) -> None:
        session = self._sessions.get(record.session_id)
        left = session.record.snapshot if session is not None and not session.live else None
        if session is not None and left is not None and left.snapshot_id == record.snapshot_id:
            await self._change(session, snapshot=record)

    async def _end(self, session: Session, status: SessionStatus, reason: str, planned: SnapshotRecord | None) -> SessionRecord:
        if session.timer is not None:
            session.timer.cancel()
        machine, commands = session.machine, session.commands
        assert machine is not None
        assert commands is not None
        if status is SessionStatus.STOPPED:
            await self._write_end(session, status=SessionStatus.STOPPING, requested_stop_at=now_ms(), stop_reason=reason)
        if planned is not None:
            await self._write_end(session, status=SessionStatus.SNAPSHOTTING, snapshot=planned)
        usage = await self._machines.end(machine)
        passed = await self._meter.end(session.record.session_id, machine.network)
        if status is SessionStatus.FAILED and usage.oom_kills:
            reason += f" The kernel ended {usage.oom_kills} of its processes because its memory limit was reached."
        await commands.close()
        snapshot = await self._sealed(session)
        # Before anybody hears that it ended, and could ask for its drives.
        await self.drives.release(session.record.session_id)
        now = now_ms()
        await self._write_end(
            session,
            status=status,
            stop_reason=reason,
            stopped_at=now,
            requested_stop_at=session.record.requested_stop_at or now,
            active_cpu_us=usage.active_cpu_us,
            ingress_bytes=passed.ingress_bytes,
            egress_bytes=passed.egress_bytes,
            snapshot=snapshot,
        )
        self._settle(snapshot)
        session.machine = session.commands = None
        removal = asyncio.get_running_loop().create_task(self._remove(session.record.session_id, machine))
        self._removals.add(removal)
        removal.add_done_callback(self._removals.discard)
        removal.add_done_callback(_log_failure)
        return session.record

    async def _remove(self, session_id: str, machine: Machine) -> None:
        await self.egress.forget(session_id)
        await self._machines.remove(machine)

    # -- looking up --------------------------------------------------------------------------------

    def get(self, session_id: str) -> Session:
        """Raises `NotFoundError`."""
        session = self._sessions.get(session_id)
        if session is None:
            raise NotFoundError("session_not_found", f"The host has no session '{session_id}'.")
        return session

    def running(self, session_id: str) -> tuple[Session, Commands]:
        """A session that takes requests. Raises `GoneError` when it ended, `NotReadyError` while it ends."""
        session = self.get(session_id)
        if session.machine is not None and session.commands is not None and session.ending is None:
            if session.machine.died.done():
                raise gone()
            return session, session.commands
        if session.record.status is SessionStatus.STOPPING:
            raise NotReadyError("sandbox_stopping", "Sandbox is stopping and no longer accepts commands.")
        raise gone()

    def records(self) -> list[SessionRecord]:
        return [session.record for session in self._sessions.values()]

    @property
    def live_sessions(self) -> int:
        return sum(session.live for session in self._sessions.values())

    async def events(self, after: int, send: Callable[[SessionEvent], Awaitable[None]]) -> None:
        """Send every change with a number above `after`, for ever; only the newest of each session."""
        while True:
            changed = sorted((s for s in self._sessions.values() if s.seq > after), key=lambda s: s.seq)
            for session in changed:
                after = max(after, session.seq)
                await send(SessionEvent(session.seq, session.record))
            if not any(session.seq > after for session in self._sessions.values()):
                waiting = self._changed
                await waiting.wait()

    # -- the journal -------------------------------------------------------------------------------

    async def _change(self, session: Session, **fields: object) -> None:
        """Write a change, then make it known."""
        await self._put(session, msgspec.structs.replace(session.record, **fields))
        self._announce()

    async def _write_end(self, session: Session, **fields: object) -> None:
        """Like `_change`, but a journal that can't be written (a full disk) does not keep a sandbox alive."""
        try:
            await self._change(session, **fields)
        except sqlite3.Error as error:
            log.error("the end of session %s could not be written: %s", session.record.session_id, error)

    async def _put(self, session: Session, record: SessionRecord) -> None:
        assert session.entry is not None
        seq = self._journal.next_seq()
        session.record = record
        await self._journal.put_session(seq, record, session.entry)
        session.seq = seq

    def _announce(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _tidy_for_ever(self) -> None:
        while True:
            try:
                await self.tidy(now_ms())
            except (sqlite3.Error, OSError) as error:
                # A disk that is full now will not be for ever.
                log.error("what ended long ago could not be forgotten: %s", error)
            await asyncio.sleep(TIDY_EVERY_S)

    async def tidy(self, now: int) -> None:
        """Forget what ended long ago: output after an hour, records after a day, audits after a week."""
        await asyncio.to_thread(self.audit.tidy)
        await asyncio.to_thread(self._prefetch.remember, sorted(self._read))
        await self.images.collect()
        for session_id, session in list(self._sessions.items()):
            if session.live or session.record.stopped_at is None:
                continue
            age = now - session.record.stopped_at
            if age > KEEP_LOGS_MS:
                await asyncio.to_thread(shutil.rmtree, self._logs / session_id, ignore_errors=True)
            if age > KEEP_RECORDS_MS:
                del self._sessions[session_id]
                await self._journal.delete_session(session_id)


def _not_started(error: OSError) -> UnavailableError:
    return UnavailableError("sandbox_start_failed", f"The sandbox could not be started: {error}", retry_after_s=1)


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("a machine could not be removed completely: %s", error, exc_info=error)

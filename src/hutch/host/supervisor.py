"""Sessions of this machine: created, found again, timed out, stopped, and swept up after.

    create ─▶ claim a pooled machine, or boot one ─▶ journal ─▶ running ─▶ stopping ─▶ stopped
                                                                  └─ machine died ─▶ failed

A session is acknowledged once it is in the journal. After the death of this process, sandboxes run on; its successor adopts
the journal's live sessions, ends with a reason those whose machine is gone, and removes everything else of this instance.

How a session gets its machine is in `claims.py`, how it ends in `ends.py`, how it is saved while it runs in `saving.py`, and what
is known of it in `sessions.py`.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import re
import shutil
import sqlite3
import time
from collections.abc import AsyncIterable, Awaitable, Callable
from pathlib import Path

import msgspec

from hutch.clock import now_ms
from hutch.errors import BadRequestError, ConflictError, HutchError, UnavailableError
from hutch.host.audit import AuditStore
from hutch.host.background import Background, going_on
from hutch.host.claims import Claims, not_started
from hutch.host.commands import Commands
from hutch.host.conversion import names_of
from hutch.host.drives import Attachment, Drives
from hutch.host.egress import Egress
from hutch.host.ends import Ends
from hutch.host.gateway import Gateway
from hutch.host.images import POOL, Images
from hutch.host.ingress import Ingress
from hutch.host.journal import Journal, MachineEntry
from hutch.host.machine import Machine, Machines, gone, reason_of
from hutch.host.metered import Metered
from hutch.host.network import Networks
from hutch.host.prefetch import Prefetch
from hutch.host.protocol import (
    LIVE,
    CommandRecord,
    CredentialChange,
    Forget,
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
    SnapshotRecord,
    SnapshotRequest,
    SnapshotTaken,
    Traffic,
)
from hutch.host.saving import Saving
from hutch.host.sessions import Session, Sessions
from hutch.host.snapshots import Snapshots
from hutch.host.traffic import FLUSH_EVERY_S, TrafficMeter
from hutch.host.usage import Usage
from hutch.images import Image
from hutch.metering.budgets import sandbox_key
from hutch.settings import Settings

log = logging.getLogger(__name__)

KEEP_RECORDS_MS = 24 * 3600 * 1000
KEEP_LOGS_MS = 3600 * 1000
TIDY_EVERY_S = 300.0
BOUND_EVERY_S = 2.0
ADOPT_AT_ONCE = 32


class Supervisor:
    """Owner of every sandbox of one instance on this machine."""

    def __init__(
        self,
        settings: Settings,
        journal: Journal,
        machines: Machines,
        networks: Networks,
        images: Images,
        gateway: Gateway,
        egress: Egress,
        audit: AuditStore,
        meter: TrafficMeter,
        usage: Usage,
        snapshots: Snapshots,
        drives: Drives,
        ingress: Ingress,
    ) -> None:
        self._settings = settings
        self._journal = journal
        self._machines = machines
        self._networks = networks
        self.images = images
        self._gateway = gateway
        self.egress = egress
        self.audit = audit
        self.snapshots = snapshots
        self.drives = drives
        drives.write_so_far = self._write_so_far
        self.ingress = ingress
        self._meter = meter
        self._logs = settings.host_dir / "logs"
        self._sessions = Sessions(journal)
        self._creating: dict[str, asyncio.Task[SessionRecord]] = {}
        self._background = Background()
        self._prefetch = Prefetch(settings.host_dir / "prefetch")
        self._read: set[Path] = set()
        self.claims = Claims(settings, machines, networks, images, egress, snapshots, self._background, self._logs)
        self.pool = self.claims.pool
        self.metered = Metered(self._sessions, machines, meter, usage, journal, self._background)
        self.ends = Ends(
            self._sessions,
            machines,
            networks,
            gateway,
            egress,
            ingress,
            meter,
            self.metered,
            snapshots,
            drives,
            self._background,
        )
        self._saving = Saving(self._sessions, journal, machines, egress, snapshots, self.ends)
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
        await self.ingress.start()
        await self._recover()
        await self._gateway.open()
        await self.ingress.open()
        self._background.spawn(self._networks.refill())
        self._background.spawn(self._tidy_for_ever())
        for record in self.snapshots.records():
            self.ends.settle(record)
        self._background.spawn(self.snapshots.keep_copies(self.ends.settled))
        self._background.spawn(self._meter_for_ever())
        self.metered.start(lambda session: self.end(session, SessionStatus.STOPPED, "budget_exceeded"))
        self._background.spawn(self._bound_for_ever())
        self._background.spawn(self._read_ahead())
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
        self._sessions.recall()
        self.metered.recall()
        live = self._sessions.live
        keep = {session.entry.machine_id for session in live if session.entry is not None}
        left = await asyncio.to_thread(self._machines.left_behind)
        for identifier in sorted(left - keep):
            log.info("removing %s, which no session uses", identifier)
            await asyncio.to_thread(self._machines.remove_by_id, identifier)
        await self.drives.recover({session.record.session_id: session.record.mounts for session in live})
        for name in [entry.name for entry in self._logs.iterdir() if entry.name not in self._sessions]:
            shutil.rmtree(self._logs / name, ignore_errors=True)
        gate = asyncio.Semaphore(ADOPT_AT_ONCE)

        async def adopt(session: Session) -> None:
            async with gate:
                await self._adopt(session, commands.get(session.record.session_id, []))

        await asyncio.gather(*(adopt(session) for session in live))
        await self.egress.keep_only({session.record.session_id for session in self._sessions.live})

    async def _adopt(self, session: Session, commands: list[CommandRecord]) -> None:
        assert session.entry is not None
        try:
            if session.record.status is not SessionStatus.RUNNING:
                raise InterruptedError(session.record.stop_reason or "stop")
            backends, wanted = self._machines.backends, session.record.isolation
            if wanted not in backends:
                raise OSError(f"it runs under {wanted}, this host under {' and '.join(backends.names)}")
            machine = await self._machines.adopt(session.entry, backends[wanted])
        except InterruptedError as interrupted:
            # Its end had begun; it is carried through.
            await self.ends.carry_through(session, SessionStatus.STOPPED, str(interrupted))
            return
        except Exception as error:
            # Whatever it is: one sandbox must not keep the host from all others.
            if not isinstance(error, OSError):
                log.exception("session %s could not be adopted", session.record.session_id)
            reason = f"The sandbox could not be adopted: {reason_of(error) if isinstance(error, OSError) else error}."
            await self.ends.carry_through(session, SessionStatus.FAILED, reason)
            return
        await self._meter.resume(session.record.session_id, machine.network)
        self.metered.begin(session, await self.metered.memory_bytes(machine))
        await self.egress.resume(session.record.session_id, machine.network)
        self._attach(session, machine)
        await self._expose(session, machine, announce=False)
        assert session.commands is not None
        try:
            await session.commands.adopt(commands)
        except HutchError as error:
            await self.end(session, SessionStatus.FAILED, f"The sandbox could not be adopted: {error.message}")
            return
        log.info("adopted session %s with %d commands", session.record.session_id, len(commands))

    async def drain(self) -> None:
        """End everything: a clean stop of the host."""
        self.ends.draining, self.ready_reason = True, "stopping"
        await asyncio.gather(*self._creating.values(), *self._saving.saves, return_exceptions=True)
        ending = [session for session in self._sessions.live if session.machine is not None]
        ended = await asyncio.gather(
            *(self.end(session, SessionStatus.STOPPED, "host_shutdown") for session in ending), return_exceptions=True
        )
        for session, result in zip(ending, ended, strict=True):
            if isinstance(result, BaseException):
                log.error("the end of session %s is left to the next start: %s", session.record.session_id, result)
        await self.leave()

    async def leave(self) -> None:
        """Stop working; live sessions run on and are adopted by the next start."""
        self.ends.draining, self.ready_reason, self.ends.left = True, "stopping", True
        await asyncio.gather(*self._saving.saves, return_exceptions=True)
        await self.pool.close()
        await self.images.close()
        await asyncio.to_thread(self._prefetch.remember, sorted(self._read))
        for session in self._sessions:
            if session.timer is not None:
                session.timer.cancel()
            if session.machine is not None and session.commands is not None and session.ending is None:
                session.machine.let_go()
                await session.commands.close()
        await asyncio.gather(*self.ends.removals, return_exceptions=True)
        await self._background.close()
        await self.snapshots.close()

    # -- create ------------------------------------------------------------------------------------

    async def create(self, spec: SessionSpec) -> SessionRecord:
        """A running session; the same one when it was asked for before. Raises `HutchError`."""
        session = self._sessions.find(spec.session_id)
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
        if self.ends.draining:
            raise UnavailableError("host_stopping", "The host is stopping; it takes no new sandboxes.", retry_after_s=5)
        alive = len(self._sessions.live) + len(self._creating)
        if alive > self._settings.host.max_sessions:
            raise UnavailableError(
                "host_full", f"The host runs {self._settings.host.max_sessions} sandboxes, the most it may.", retry_after_s=5
            )
        if spec.source_snapshot is not None:
            self.snapshots.record(spec.source_snapshot)
        isolation = self._machines.backends.named(spec.isolation)
        await self.metered.admit(spec)
        try:
            return await self._admitted(msgspec.structs.replace(spec, isolation=isolation.name), requested)
        finally:
            self.metered.give_back(spec.session_id)

    async def _admitted(self, spec: SessionSpec, requested: int) -> SessionRecord:
        image = self.images.exact(spec.image)
        kind = self.claims.kind(image, spec.vcpus, spec.memory_mb, spec.disk_bytes, spec.isolation)
        self._read |= {layer.path for layer in image.layers}
        memory = await self._saving.memory(spec)
        attachments = self.drives.claim(spec.session_id, spec.mounts)
        try:
            with self.images.held(image.digest):
                disk = not self._machines.traits(spec.isolation).trees
                attachments = await self._in_form(attachments, disk=disk)
                if memory is None:
                    machine = await self.claims.claimed(kind, spec, attachments)
                else:
                    machine = await self.claims.restored(kind, spec, memory)
                record = await self._run(spec, requested, image, machine)
        except BaseException:
            await self.drives.release(spec.session_id)
            raise
        if memory is not None:
            await self._saving.inherit(self._sessions.get(spec.session_id), memory)
        return record

    async def _in_form(self, attachments: tuple[Attachment, ...], *, disk: bool) -> tuple[Attachment, ...]:
        try:
            return await self.drives.in_form(attachments, disk=disk)
        except OSError as error:
            raise not_started(error) from error

    async def _write_so_far(self, session_id: str) -> None:
        """Have the files of a session be with the host, if it runs."""
        session = self._sessions.find(session_id)
        if session is not None and session.machine is not None:
            await self._machines.write_so_far(session.machine)

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
            isolation=spec.isolation,
            source_snapshot=spec.source_snapshot,
            persistent=spec.persistent,
            mounts=spec.mounts,
            sandbox_id=spec.sandbox_id or spec.session_id,
            team_id=spec.team_id,
        )
        session = Session(record, 0, machine.entry())
        try:
            await self.drives.begin(spec.session_id)
            _, held = await asyncio.gather(self._sessions.put(session, record), self.metered.memory_bytes(machine))
        except BaseException:
            await self.egress.forget(spec.session_id)
            await self.claims.discard(machine)
            raise
        self._sessions.add(session)
        self._meter.begin(spec.session_id)
        self.metered.begin(session, held)
        self._attach(session, machine)
        await self._expose(session, machine)
        self._sessions.announce()
        return record

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
            functools.partial(self.metered.used, record.session_id),
        )
        self._arm(session)
        machine.died.add_done_callback(lambda died: self._on_death(session, machine, died.result()))

    async def _expose(self, session: Session, machine: Machine, *, announce: bool = True) -> None:
        """Have requests from outside reach a session."""
        state = self.egress.state(session.record.session_id)
        if state is not None:
            await self.ingress.began(
                state.sandbox_id,
                session.record.session_id,
                machine.network,
                lambda: session.live and session.ending is None,
                announce=announce,
            )

    def _on_death(self, session: Session, machine: Machine, reason: str) -> None:
        if session.ending is None and not self.ends.left:
            self._background.spawn(self._fail(session, machine, reason))

    async def _fail(self, session: Session, machine: Machine, reason: str) -> None:
        reason = await self._machines.reason_of_death(machine, reason)
        await self.end(session, SessionStatus.FAILED, f"The sandbox failed: {reason}.")

    def _needing(self, digest: str) -> list[str]:
        """What would be lost with an image: live sessions and snapshots by id, and the pool."""
        images = {session.record.session_id: session.record.image for session in self._sessions.live}
        images |= {record.snapshot_id: record.image for record in self.snapshots.records()}
        users = [name for name, image in images.items() if image.endswith(f"@{digest}")]
        return [*users, POOL] if self.pool.needs(digest) else users

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
            self._background.spawn(self._time_out(session))

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
        await self._sessions.change(session, timeout_ms=timeout)
        self._arm(session)
        return session.record

    async def set_persistent(self, session_id: str, *, persistent: bool) -> SessionRecord:
        """Say whether the end of a session is to leave a snapshot."""
        session, _ = self.running(session_id)
        await self._sessions.change(session, persistent=persistent)
        return session.record

    # -- network -----------------------------------------------------------------------------------

    @property
    def platform_cpu_us(self) -> dict[str, int]:
        """CPU time of this process, the gateway and the ingress since each started."""
        own = time.process_time_ns() // 1000
        return {"host": own, "gateway": self._gateway.cpu_us, "ingress": self.ingress.cpu_us}

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
                (session.record.session_id, session.machine.network)
                for session in self._sessions
                if session.machine is not None and session.ending is None
            ]
            with going_on("what passed could not be read"):
                await self._meter.flush(running)
            await asyncio.sleep(FLUSH_EVERY_S)

    async def _read_ahead(self) -> None:
        """Have what sandboxes will read of their images in memory before they do."""
        images = [self.images.resolve(name, "") for name in self._settings.pool_images()] if self._settings.pool.size else []
        files = {layer.path for image in images for layer in image.layers}
        await asyncio.to_thread(self._prefetch.read_ahead, sorted(files))

    async def _bound_for_ever(self) -> None:
        while True:
            # As on a store that is full itself: it is bounded anew when it takes that again.
            with going_on("what sandboxes may write could not be bounded"):
                await asyncio.to_thread(self.snapshots.bound)
            await asyncio.sleep(BOUND_EVERY_S)

    async def change_credential(self, change: CredentialChange) -> None:
        """Have every live session of a project that names a stored credential use another value of it."""
        for session in self._sessions.live:
            if session.machine is not None and session.record.project_id == change.project_id:
                await self.egress.change_credential(session.record.session_id, session.machine.network, change.name, change.value)

    async def set_forwarding(self, key: ForwardingKey) -> None:
        """Have the gateway sign with this key."""
        await self._gateway.identify(key.issuer, key.key_pem, key.key_id)

    # -- end, snapshots ----------------------------------------------------------------------------

    async def end(self, session: Session, status: SessionStatus, reason: str) -> SessionRecord:
        """End a session, as `Ends.end` does."""
        return await self.ends.end(session, status, reason)

    async def snapshot(self, request: SnapshotRequest) -> SnapshotTaken:
        """Make a snapshot of a running session. Raises `HutchError`."""
        return await self._saving.take(request)

    async def remove_snapshot(self, snapshot_id: str) -> None:
        """Remove a snapshot; nothing happens when there is none. Acknowledged: it goes, whatever happens now."""
        for name in names_of(snapshot_id):
            self.pool.forget(name)
        await self.snapshots.remove(snapshot_id)

    async def load_snapshot(self, request: SnapshotImport, given: AsyncIterable[bytes]) -> SnapshotRecord:
        """A new snapshot out of a tar. Raises `HutchError`."""
        image = self.images.exact(request.image)
        return await self.snapshots.load(request, given, sum(layer.path.stat().st_size for layer in image.layers))

    async def build_image(self, request: ImageBuild) -> ImageRecord:
        """An image with one more layer, out of a snapshot. Raises `HutchError`."""
        snapshot = self.snapshots.record(request.snapshot_id)
        base = self.images.exact(snapshot.image)
        return await self.images.build(request, base, self.snapshots.reading(snapshot.snapshot_id))

    # -- looking up --------------------------------------------------------------------------------

    def get(self, session_id: str) -> Session:
        """Raises `NotFoundError`."""
        return self._sessions.get(session_id)

    def running(self, session_id: str) -> tuple[Session, Commands]:
        """A session that takes requests. Raises `GoneError` when it ended, `NotReadyError` while it ends."""
        return self._sessions.running(session_id)

    def records(self) -> list[SessionRecord]:
        return [session.record for session in self._sessions]

    @property
    def live_sessions(self) -> int:
        return len(self._sessions.live)

    async def events(self, after: int, send: Callable[[SessionEvent], Awaitable[None]]) -> None:
        """Send every change with a number above `after`, for ever; only the newest of each session."""
        await self._sessions.events(after, send)

    # -- forgetting --------------------------------------------------------------------------------

    async def _tidy_for_ever(self) -> None:
        while True:
            # A disk that is full now will not be for ever.
            with going_on("what ended long ago could not be forgotten"):
                await self.tidy(now_ms())
            await asyncio.sleep(TIDY_EVERY_S)

    async def tidy(self, now: int) -> None:
        """Forget what ended long ago: output after an hour, records after a day, audits after a week."""
        await asyncio.to_thread(self.audit.tidy)
        await asyncio.to_thread(self._prefetch.remember, sorted(self._read))
        await self.images.collect()
        for session in self._sessions:
            session_id = session.record.session_id
            if session.live or session.record.stopped_at is None:
                continue
            age = now - session.record.stopped_at
            if age > KEEP_LOGS_MS:
                await asyncio.to_thread(shutil.rmtree, self._logs / session_id, ignore_errors=True)
            if age > KEEP_RECORDS_MS:
                await self._sessions.forget(session_id)
                self.metered.usage.forget(session_id)

    async def forget(self, request: Forget) -> None:
        """Forget sessions with their output, commands and traffic, audits of sandboxes, and usage, now and not when `tidy` would.
        What is not here is forgotten already. Raises `ConflictError` for a session that is not over."""
        for session_id in request.session_ids:
            session = self._sessions.find(session_id)
            if session is not None and (session.live or session.record.stopped_at is None):
                raise ConflictError("session_live", f"Session '{session_id}' is not over yet.")
        await self.metered.usage.forget_owners([*map(sandbox_key, request.sandbox_ids), *request.owners])
        for session_id in request.session_ids:
            if _SESSION_ID.fullmatch(session_id) is None:
                continue
            await asyncio.to_thread(shutil.rmtree, self._logs / session_id, ignore_errors=True)
            await self._sessions.forget(session_id)
            self.metered.usage.forget(session_id)
        for sandbox_id in request.sandbox_ids:
            await asyncio.to_thread(self.audit.forget, sandbox_id)

    async def scrub(self) -> None:
        """Have the files hold nothing of what was forgotten. Raises `UnavailableError` when that has to be tried again."""
        # Machines go behind the end of their sessions.
        await asyncio.gather(*self.ends.removals, return_exceptions=True)
        if self.ends.unremoved:
            raise UnavailableError("not_scrubbed", "The files of a sandbox that ended can't be removed now.", retry_after_s=1)
        await self.images.collect()
        try:
            await self._machines.scrub()
            await self._journal.scrub()
        except (sqlite3.Error, OSError) as error:
            raise UnavailableError(
                "not_scrubbed", f"The host's files can't be rewritten now: {error}.", retry_after_s=1
            ) from error


_SESSION_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")

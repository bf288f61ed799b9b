"""Snapshots of running sessions, with their memory or without, and sessions that go on from saved memory.

    memory: requests wait ─▶ the channel is hung up ─▶ the machine stands still ─▶ memory and files are written ─▶ it goes on

Without memory a snapshot of a session that runs on is a copy of its files; one of a session that does not is its end.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import msgspec

from hutch.errors import ConflictError, HutchError, UnavailableError
from hutch.host import abilities
from hutch.host.egress import Egress
from hutch.host.ends import Ends
from hutch.host.journal import Journal
from hutch.host.machine import Machines, gone
from hutch.host.memory import Memory, MemoryRecord
from hutch.host.protocol import SessionSpec, SessionStatus, SnapshotMethod, SnapshotRecord, SnapshotRequest, SnapshotTaken
from hutch.host.sessions import Session, Sessions
from hutch.host.snapshots import Snapshots
from hutch.metering.quantities import Quantities

MIB = 1024 * 1024


class Saving:
    """Takes snapshots of sessions. `saves` are those with memory that are being made."""

    def __init__(
        self, sessions: Sessions, journal: Journal, machines: Machines, egress: Egress, snapshots: Snapshots, ends: Ends
    ) -> None:
        self._sessions = sessions
        self._journal = journal
        self._machines = machines
        self._egress = egress
        self._snapshots = snapshots
        self._ends = ends
        self.saves: set[asyncio.Task[SnapshotTaken]] = set()

    async def take(self, request: SnapshotRequest) -> SnapshotTaken:
        """Make a snapshot of a running session. Raises `HutchError`."""
        session, _ = self._sessions.running(request.session_id)
        isolation = session.record.isolation
        abilities.check_snapshot(self._machines.traits(isolation), isolation, request)
        assert session.entry is not None
        planned = msgspec.structs.replace(
            self._snapshots.plan(session.record, session.entry, SnapshotMethod.MANUAL), for_forks=request.for_forks
        )
        if request.memory and session.record.mounts:
            raise ConflictError("memory_snapshot_failed", "The memory of a sandbox that has drives mounted can't be saved.")
        if request.keep_running:
            self._snapshots.require_copies()
        if request.memory:
            # A caller that goes away leaves no machine that stands still.
            saving = asyncio.get_running_loop().create_task(self._save(session, planned, keep_running=request.keep_running))
            self.saves.add(saving)
            saving.add_done_callback(self.saves.discard)
            return await asyncio.shield(saving)
        if request.keep_running and session.machine is not None:
            await self._machines.write_so_far(session.machine)
        return await self._take(session, planned, keep_running=request.keep_running)

    async def _save(self, session: Session, planned: SnapshotRecord, *, keep_running: bool) -> SnapshotTaken:
        async with session.saving:
            self._sessions.running(session.record.session_id)
            async with self._standing_still(session, planned) as with_memory:
                taken = await self._take(session, with_memory, keep_running=keep_running)
                if taken.snapshot.snapshot_id != planned.snapshot_id:
                    # Something else ended it first, and kept its files alone.
                    raise gone()
                return taken

    async def _take(self, session: Session, planned: SnapshotRecord, *, keep_running: bool) -> SnapshotTaken:
        if keep_running:
            assert session.machine is not None
            made = await self._snapshots.copy(session.machine.machine_id, planned)
            self._ends.settle(made)
            return SnapshotTaken(snapshot=made, session=session.record)
        record = await self._ends.end(session, SessionStatus.STOPPED, "snapshot", SnapshotMethod.MANUAL, planned)
        if record.snapshot is None:
            raise UnavailableError("snapshot_failed", f"The snapshot could not be made: {record.stop_reason}", retry_after_s=5)
        return SnapshotTaken(snapshot=record.snapshot, session=record)

    # -- memory ------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _standing_still(self, session: Session, planned: SnapshotRecord) -> AsyncIterator[SnapshotRecord]:
        """Save the memory of a session for a snapshot that is made while this lasts. Raises `HutchError`."""
        machine, commands, memory = session.machine, session.commands, self._snapshots.memory
        assert machine is not None
        assert commands is not None
        fingerprint = machine.fingerprint or await asyncio.to_thread(self._machines.fingerprint, session.record.isolation)
        # What is written already is not written while everything stands still, and the files alone have it too.
        await self._machines.write_so_far(machine)
        await asyncio.to_thread(self._snapshots.sync)
        try:
            await machine.quiet(commands.let_go)
            try:
                held = await asyncio.to_thread(self._machines.memory_of, machine)
                if machine.isolation.traits.whole_memory:
                    held = max(held, session.record.memory_mb * MIB)
                part = await asyncio.to_thread(memory.begin, planned.snapshot_id, held)
                running = await asyncio.to_thread(commands.copy, part.logs)
                state = self._egress.state(session.record.session_id)
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

    async def memory(self, spec: SessionSpec) -> Memory | None:
        """What a session goes on from. Raises `ConflictError` (`snapshot_incompatible`) for what can't go on here."""
        if spec.source_snapshot is None or not spec.with_memory:
            return None
        memory = await asyncio.to_thread(self._snapshots.memory.load, spec.source_snapshot)
        if memory is None:
            return None
        record = memory.record
        if spec.mounts:
            raise ConflictError("snapshot_incompatible", "A sandbox that goes on from saved memory can't mount drives.")
        if record.fingerprint != await asyncio.to_thread(self._machines.fingerprint, spec.isolation):
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

    async def inherit(self, session: Session, memory: Memory) -> None:
        """Take over the commands that run in saved memory; their output is here already. Raises `HutchError`; the session failed
        then."""
        session_id = session.record.session_id
        # What their first session used is not this one's.
        records = [
            msgspec.structs.replace(record, session_id=session_id, before=Quantities()) for record in memory.record.commands
        ]
        # It may end meanwhile.
        commands = session.commands
        assert commands is not None
        try:
            await asyncio.gather(*(self._journal.put_command(record) for record in records))
            await commands.adopt(records)
        except HutchError as error:
            await self._ends.end(session, SessionStatus.FAILED, f"Its commands could not be taken over: {error.message}")
            raise

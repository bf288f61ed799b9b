"""Snapshots of this machine: files that sessions left, and that others begin with.

    session ends ─▶ journal: being made ─▶ layer sealed ─▶ journal: made, with the session's end
    removal ─▶ journal: being removed ─▶ files removed ─▶ forgotten

Each step is done again after a death of this process, so that a snapshot that was acknowledged is there whole, and one whose
removal was acknowledged goes. What is made or removed may be in use: a session has a copy of its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import msgspec

from hutch import ids
from hutch.clock import now_ms
from hutch.errors import ConflictError, GoneError
from hutch.host.journal import Journal, MachineEntry
from hutch.host.memory import MemoryImages
from hutch.host.protocol import SessionRecord, SnapshotMethod, SnapshotRecord
from hutch.host.storage import Source, WritableLayers

log = logging.getLogger(__name__)

Changed = Callable[[SnapshotRecord], Awaitable[None]]


class Snapshots:
    """Owner of every snapshot of one instance on this machine."""

    def __init__(self, journal: Journal, layers: WritableLayers, memory: MemoryImages) -> None:
        self._journal = journal
        self._layers = layers
        self.memory = memory
        self._records: dict[str, SnapshotRecord] = {}

    async def recover(self, planned: set[str]) -> None:
        """Read what there is, carry removals through, and remove what nobody was told of; `planned` are being made."""
        removed = []
        for snapshot_id, (record, is_removed) in self._journal.snapshots().items():
            if is_removed:
                removed.append(record)
            else:
                self._records[snapshot_id] = record
        for record in removed:
            await self._remove(record)
        there = await asyncio.to_thread(self._layers.snapshots)
        for snapshot_id in self._records.keys() - there:
            log.error("snapshot %s is in the journal and not in the store", snapshot_id)
        known = self._records.keys() | planned
        for snapshot_id in there - known:
            log.info("removing snapshot %s, which was not finished", snapshot_id)
            await asyncio.to_thread(self._layers.remove_snapshot, snapshot_id)
        await asyncio.to_thread(self.memory.recover, known)

    def records(self) -> list[SnapshotRecord]:
        return list(self._records.values())

    def source(self, snapshot_id: str) -> Source:
        """What a layer begins with. Raises `GoneError` (`snapshot_not_found`)."""
        record = self._records.get(snapshot_id)
        if record is None:
            raise unknown(snapshot_id)
        return Source(snapshot_id, record.size_bytes)

    @staticmethod
    def plan(session: SessionRecord, entry: MachineEntry, method: SnapshotMethod) -> SnapshotRecord:
        """A snapshot that is about to be made of a session."""
        return SnapshotRecord(
            snapshot_id=ids.snapshot_id(),
            session_id=session.session_id,
            image=session.image,
            size_bytes=entry.inherited_bytes,
            inherited_bytes=entry.inherited_bytes,
            image_bytes=entry.image_bytes,
            created_at=now_ms(),
            method=method,
            parent_id=session.source_snapshot,
        )

    def made(self, record: SnapshotRecord) -> None:
        """A layer was sealed under this name. Acknowledged with the end of its session; `settle` finds out its size."""
        self._records[record.snapshot_id] = record

    def require_copies(self) -> None:
        """Raises `ConflictError` where the store can't make snapshots of machines that run on."""
        if not self._layers.copies_in_use:
            raise ConflictError(
                "live_snapshot_unsupported",
                f"This host keeps files on {self._layers.kind}, which can't make snapshots of running sandboxes. "
                "Make one without `keepRunning`.",
            )

    def bound(self) -> None:
        """Bound what all layers may grow by as free space is now. Blocks."""
        self._layers.bound()

    def sync(self) -> None:
        """Write what is written so far. Blocks."""
        self._layers.sync()

    async def copy(self, machine_id: str, record: SnapshotRecord) -> SnapshotRecord:
        """A snapshot of a machine that runs on."""
        size = await asyncio.to_thread(self._layers.copy, machine_id, record.snapshot_id, record.inherited_bytes)
        record = msgspec.structs.replace(record, size_bytes=size)
        await self._journal.put_snapshot(record)
        self._records[record.snapshot_id] = record
        return record

    async def settle(self, snapshot_id: str, changed: Changed) -> None:
        """Have a snapshot survive a power cut; `changed` is told what is then known of it."""
        await asyncio.to_thread(self._layers.sync)
        await asyncio.to_thread(self.memory.sync)
        record = self._records.get(snapshot_id)
        if record is None:
            return
        size = await asyncio.to_thread(self._layers.size, snapshot_id, record.inherited_bytes)
        record = msgspec.structs.replace(record, size_bytes=size, durable_at=now_ms())
        if snapshot_id in self._records:
            self._records[snapshot_id] = record
            await self._journal.put_snapshot(record)
        # Not when it was removed meanwhile: its session's record would write it down again.
        if snapshot_id in self._records:
            await changed(record)

    async def remove(self, snapshot_id: str) -> None:
        """Remove a snapshot; nothing happens when there is none. Acknowledged: it goes, whatever happens now."""
        record = self._records.pop(snapshot_id, None)
        if record is not None:
            await self._journal.put_snapshot(record, deleted=True)
            await self._remove(record)

    async def _remove(self, record: SnapshotRecord) -> None:
        await asyncio.to_thread(self._layers.remove_snapshot, record.snapshot_id)
        await asyncio.to_thread(self.memory.remove, record.snapshot_id)
        await self._journal.delete_snapshot(record.snapshot_id)


def unknown(snapshot_id: str) -> GoneError:
    return GoneError("snapshot_not_found", f"Snapshot '{snapshot_id[:128]}' does not exist any more.")

"""Snapshots of this machine: files that sessions left, and that others begin with.

    session ends ─▶ journal: being made ─▶ layer sealed ─▶ journal: made, with the session's end
    behind that: durable ─▶ journal: being packed ─▶ in the blob store ─▶ journal: stored
    removal ─▶ journal: being removed ─▶ files removed ─▶ out of the blob store ─▶ forgotten

Each step is done again after a death of this process, so that a snapshot that was acknowledged is there whole, and one whose
removal was acknowledged goes. What is made or removed may be in use: a session has a copy of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec

from hutch import ids
from hutch.blobs.jobs import Collected, Reached, Verified, nothing
from hutch.clock import now_ms
from hutch.errors import ConflictError, GoneError, HutchError
from hutch.host import abilities
from hutch.host.conversion import Conversions, name_of, names_of, snapshot_of
from hutch.host.copies import Copies
from hutch.host.journal import Journal, MachineEntry
from hutch.host.memory import MemoryImages
from hutch.host.packing import Send
from hutch.host.protocol import CopyState, SessionRecord, SnapshotExport, SnapshotImport, SnapshotMethod, SnapshotRecord
from hutch.host.storage import Source, WritableLayers

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 5.0
LONGEST_PAUSE_S = 900.0
COLLECT_EVERY_S = 3600.0
HOPELESS = frozenset({"snapshot_unpackable", "isolation_unsupported"})
"""Errors of a copy that the next try would have too."""

Changed = Callable[[SnapshotRecord], Awaitable[None]]


class Snapshots:
    """Owner of every snapshot of one instance on this machine."""

    def __init__(
        self,
        journal: Journal,
        layers: WritableLayers,
        memory: MemoryImages,
        copies: Copies,
        conversions: Conversions,
        reached: Reached = nothing,
    ) -> None:
        self._journal = journal
        self._layers = layers
        self.memory = memory
        self._copies = copies
        self._conversions = conversions
        self._reached = reached
        self._records: dict[str, SnapshotRecord] = {}
        self._leaving: dict[str, SnapshotRecord] = {}
        """Removed, and maybe still in the blob store."""
        self._fetches: dict[str, asyncio.Task[None]] = {}
        """What is being brought back or converted, by the name that it gets."""
        self._uploading: tuple[str, asyncio.Task[None]] | None = None
        self._hopeless: set[str] = set()
        """What can't be packed, and needs not be tried again."""
        self._due = asyncio.Event()

    async def recover(self, planned: set[str]) -> None:
        """Read what there is, carry removals through, and remove what nobody was told of; `planned` are being made."""
        await asyncio.to_thread(self._copies.sweep)
        await asyncio.to_thread(self._conversions.sweep)
        removed = []
        for snapshot_id, (record, is_removed) in self._journal.snapshots().items():
            if is_removed:
                removed.append(record)
            else:
                self._records[snapshot_id] = record
        for record in removed:
            await self._remove(record)
        there = {snapshot_of(name) for name in await asyncio.to_thread(self._layers.snapshots)}
        for snapshot_id in self._records.keys() - there:
            if self._records[snapshot_id].copy is not CopyState.STORED:
                log.error("snapshot %s is in the journal and not in the store", snapshot_id)
        known = self._records.keys() | planned
        for snapshot_id in there - known:
            log.info("removing snapshot %s, which was not finished", snapshot_id)
            await self._remove_files(snapshot_id)
        await asyncio.to_thread(self.memory.recover, known)

    def records(self) -> list[SnapshotRecord]:
        return list(self._records.values())

    def record(self, snapshot_id: str) -> SnapshotRecord:
        """Raises `GoneError` (`snapshot_not_found`)."""
        record = self._records.get(snapshot_id)
        if record is None:
            raise unknown(snapshot_id)
        return record

    async def source(self, snapshot_id: str, *, disk: bool) -> Source:
        """What a layer begins with, a disk or a tree; brought back from the blob store when it is not here, converted when it is
        here in the other form. Raises `HutchError`."""
        await self._fetched(snapshot_id, disk=disk)
        record = self.record(snapshot_id)
        name = name_of(record, disk=disk)
        if record.disk is disk:
            return Source(name, record.size_bytes)
        return Source(name, 0 if disk else await asyncio.to_thread(self._layers.size, name, 0))

    async def _fetched(self, snapshot_id: str, *, disk: bool) -> None:
        """Have a snapshot be here in one of its forms. Raises `HutchError`."""
        record = self.record(snapshot_id)
        name, other = name_of(record, disk=disk), name_of(record, disk=not disk)
        if await asyncio.to_thread(self._layers.holds, name):
            return
        if disk or await asyncio.to_thread(self._layers.holds, other):
            await self._once(name, lambda: self._convert(record, name, disk=disk))
        else:
            await self._once(name, lambda: self._restore(record, name))

    async def _once(self, name: str, fetch: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Make a layer, once for all who wait for it."""
        task = self._fetches.get(name)
        if task is None:
            task = self._fetches[name] = asyncio.get_running_loop().create_task(fetch())
            task.add_done_callback(lambda _: self._fetches.pop(name, None))
        await asyncio.shield(task)

    async def _convert(self, record: SnapshotRecord, name: str, *, disk: bool) -> None:
        await self._fetched(record.snapshot_id, disk=not disk)
        try:
            await self._conversions.convert(self.record(record.snapshot_id), disk=disk)
        except FileNotFoundError as error:
            raise unknown(record.snapshot_id) from error
        self._reached("converted")
        if record.snapshot_id not in self._records:
            await asyncio.to_thread(self._layers.remove_snapshot, name)
            raise unknown(record.snapshot_id)

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
            disk=session.isolation in abilities.DISKS,
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
        if record.disk:
            size = await asyncio.to_thread(self._layers.blocks, snapshot_id)
        else:
            size = await asyncio.to_thread(self._layers.size, snapshot_id, record.inherited_bytes)
        await self._change(snapshot_id, changed, size_bytes=size, durable_at=now_ms())
        self._due.set()

    async def _change(self, snapshot_id: str, changed: Changed, **fields: object) -> bool:
        """Write what is new about a snapshot, then tell of it. False when it was removed meanwhile."""
        record = self._records.get(snapshot_id)
        if record is None:
            return False
        record = self._records[snapshot_id] = msgspec.structs.replace(record, **fields)
        await self._journal.put_snapshot(record)
        # Not when it was removed meanwhile: its session's record would write it down again.
        if snapshot_id not in self._records:
            return False
        await changed(record)
        return True

    @contextlib.asynccontextmanager
    async def reading(self, snapshot_id: str) -> AsyncIterator[Path]:
        """The tree of a snapshot, brought back from the blob store when it is not here, converted when it is a disk. Raises
        `HutchError`; `GoneError` at the end if it was removed meanwhile, and what was read may not be all of it."""
        await self._fetched(snapshot_id, disk=False)
        reading = self._layers.reading(name_of(self.record(snapshot_id), disk=False))
        try:
            tree = await asyncio.to_thread(reading.__enter__)
        except FileNotFoundError as error:
            raise unknown(snapshot_id) from error
        try:
            yield tree
            self.record(snapshot_id)
        finally:
            await asyncio.shield(asyncio.to_thread(reading.__exit__, None, None, None))

    # -- removal -----------------------------------------------------------------------------------

    async def remove(self, snapshot_id: str) -> None:
        """Remove a snapshot; nothing happens when there is none. Acknowledged: it goes, whatever happens now."""
        record = self._records.pop(snapshot_id, None)
        if record is None:
            return
        try:
            await self._journal.put_snapshot(record, deleted=True)
        except BaseException:
            # Whoever asks again must not hear that it is gone.
            self._records[snapshot_id] = record
            raise
        self._reached("removing")
        if self._uploading is not None and self._uploading[0] == snapshot_id:
            self._uploading[1].cancel()
            await asyncio.gather(self._uploading[1], return_exceptions=True)
        await self._remove(record)

    async def _remove(self, record: SnapshotRecord) -> None:
        await self._remove_files(record.snapshot_id)
        await asyncio.to_thread(self.memory.remove, record.snapshot_id)
        self._reached("removed")
        if record.copy is CopyState.NONE:
            await self._journal.delete_snapshot(record.snapshot_id)
        else:
            self._leaving[record.snapshot_id] = record
            self._due.set()

    async def _remove_files(self, snapshot_id: str) -> None:
        for name in names_of(snapshot_id):
            await asyncio.to_thread(self._layers.remove_snapshot, name)

    # -- the blob store ----------------------------------------------------------------------------

    async def keep_copies(self, changed: Changed) -> None:
        """For ever: copy what is durable, take what was removed out of the store, collect what nobody needs."""
        if self._copies.spec is None:
            return
        pause, collected = FIRST_PAUSE_S, float("-inf")
        while True:
            self._due.clear()
            complete = False
            try:
                complete = await self.copy_due(changed)
                now = asyncio.get_running_loop().time()
                if now - collected >= COLLECT_EVERY_S:
                    collected = now
                    await self.collect()
            except Exception as error:
                # Nobody else would keep copies. What nobody thought of is told whole.
                expected = isinstance(error, (sqlite3.Error, HutchError, OSError))
                log.warning("the blob store is behind: %s", error, exc_info=not expected)
            pause = FIRST_PAUSE_S if complete else min(pause * 2, LONGEST_PAUSE_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(COLLECT_EVERY_S if complete else pause):
                    await self._due.wait()

    async def copy_due(self, changed: Changed) -> bool:
        """Once everything that is due; False when something is to be tried again."""
        complete = True
        for snapshot_id in list(self._leaving):
            complete &= await self._take_out(snapshot_id)
        for snapshot_id, record in list(self._records.items()):
            if record.durable_at is None or record.copy is CopyState.STORED or snapshot_id in self._hopeless:
                continue
            await self._upload_alone(snapshot_id, changed)
            now = self._records.get(snapshot_id)
            complete &= now is None or now.copy is CopyState.STORED or snapshot_id in self._hopeless
        return complete

    async def _upload_alone(self, snapshot_id: str, changed: Changed) -> None:
        """As a task of its own, which a removal can end."""
        upload = asyncio.ensure_future(self._upload(snapshot_id, changed))
        self._uploading = (snapshot_id, upload)
        try:
            await asyncio.wait({upload})
            if not upload.cancelled():
                upload.result()
        finally:
            self._uploading = None
            upload.cancel()
            await asyncio.gather(upload, return_exceptions=True)

    async def _upload(self, snapshot_id: str, changed: Changed) -> None:
        if not await self._change(snapshot_id, changed, copy=CopyState.PACKING):
            return
        self._reached("packing")
        try:
            await self._fetched(snapshot_id, disk=False)
            record = self.record(snapshot_id)
            stored = await self._copies.upload(record, name_of(record, disk=False))
        except (HutchError, OSError) as error:
            reason = error.message if isinstance(error, HutchError) else str(error)
            log.warning("snapshot %s could not be copied to the blob store: %s", snapshot_id, reason)
            if isinstance(error, HutchError) and error.code in HOPELESS:
                self._hopeless.add(snapshot_id)
            await self._change(snapshot_id, changed, store_error=reason)
            return
        self._reached("packed")
        done = {"copy": CopyState.STORED, "manifest": stored.manifest, "stored_at": now_ms(), "store_error": None}
        await self._change(snapshot_id, changed, **done)
        self._reached("stored")
        log.info("snapshot %s is in the blob store: %d of %d chunks were new", snapshot_id, stored.written, stored.chunks)

    async def _take_out(self, snapshot_id: str) -> bool:
        try:
            await self._copies.forget(snapshot_id)
        except HutchError as error:
            log.warning("snapshot %s is still in the blob store: %s", snapshot_id, error.message)
            return False
        self._reached("taken out")
        await self._journal.delete_snapshot(snapshot_id)
        self._leaving.pop(snapshot_id, None)
        return True

    async def collect(self) -> Collected:
        """Remove what nobody needs from the store. Raises `HutchError`."""
        collected = await self._copies.collect()
        self._reached("collected")
        if collected.chunks or collected.manifests:
            log.info("collected %d chunks and %d manifests", collected.chunks, collected.manifests)
        return collected

    async def _restore(self, record: SnapshotRecord, name: str) -> None:
        size = await self._copies.restore(record, name)
        self._reached("restored")
        if record.snapshot_id not in self._records:
            await asyncio.to_thread(self._layers.remove_snapshot, name)
            raise unknown(record.snapshot_id)
        if not record.disk:
            # It shares nothing with others any more.
            await self._change(record.snapshot_id, _nobody, size_bytes=size, inherited_bytes=0)
        log.info("snapshot %s was restored from the blob store", record.snapshot_id)

    async def verify(self, snapshot_id: str) -> Verified:
        """Check a snapshot's copy. Raises `HutchError`."""
        record = self.record(snapshot_id)
        return await self._copies.verify(record, name_of(record, disk=False))

    async def close(self) -> None:
        """End what is being restored or converted."""
        fetches = list(self._fetches.values())
        for task in fetches:
            task.cancel()
        await asyncio.gather(*fetches, return_exceptions=True)

    # -- archives ----------------------------------------------------------------------------------

    async def export(self, request: SnapshotExport, send: Send) -> None:
        """A snapshot as a tar. Raises `HutchError`."""
        await self._fetched(request.snapshot_id, disk=False)
        record = self.record(request.snapshot_id)
        await self._copies.export(record, name_of(record, disk=False), request, send)

    async def load(self, request: SnapshotImport, given: AsyncIterable[bytes], image_bytes: int) -> SnapshotRecord:
        """A new snapshot out of a tar. Raises `HutchError`, and nothing is left then."""
        record = SnapshotRecord(
            snapshot_id=request.snapshot_id,
            session_id="",
            image=request.image,
            size_bytes=0,
            image_bytes=image_bytes,
            created_at=now_ms(),
            method=SnapshotMethod.MANUAL,
        )
        # Until it is whole, what is written down is that it goes.
        await self._journal.put_snapshot(record, deleted=True)
        self._reached("loading")
        try:
            size = await self._copies.load(request.snapshot_id, given, request.max_bytes, request.max_files)
        except BaseException:
            await asyncio.shield(self._remove(record))
            raise
        self._reached("loaded")
        record = msgspec.structs.replace(record, size_bytes=size, durable_at=now_ms())
        await self._journal.put_snapshot(record)
        self._records[record.snapshot_id] = record
        self._due.set()
        return record


async def _nobody(_: SnapshotRecord) -> None:
    """Where there is nobody to tell: what is new is only ours."""


def unknown(snapshot_id: str) -> GoneError:
    return GoneError("snapshot_not_found", f"Snapshot '{snapshot_id[:128]}' does not exist any more.")

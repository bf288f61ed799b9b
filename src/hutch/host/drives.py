"""Drives of this machine: what there is, and who has it.

    create, copy ─▶ files made whole ─▶ journal
    removal ─▶ journal: being removed ─▶ files removed ─▶ forgotten

Whoever writes to a drive has it alone; whoever reads sees a copy as of the session's start. Who has a drive is not written down
beside: it is what the records of live sessions say, so that no claim outlives its session, and none is lost with this process.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from hutch.clock import now_ms
from hutch.errors import ConflictError, NotFoundError
from hutch.host.drive_storage import DriveStore
from hutch.host.journal import Journal
from hutch.host.protocol import DriveMode, DriveMount, DriveRecord, DriveSpec, DriveUsage

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Attachment:
    """A drive that a session has claimed, and what its store must know to show it."""

    mount: DriveMount
    size_bytes: int
    inherited_bytes: int
    is_new: bool


class Drives:
    """Owner of every drive of one instance on this machine."""

    def __init__(self, journal: Journal, store: DriveStore) -> None:
        self._journal = journal
        self._store = store
        self._records: dict[str, DriveRecord] = {}
        self._claims: dict[str, tuple[DriveMount, ...]] = {}
        self._making: dict[str, asyncio.Lock] = {}

    async def recover(self, live: dict[str, Sequence[DriveMount]]) -> None:
        """Read what there is, carry removals through, and give live sessions back what they had."""
        removed = []
        for drive_id, (record, is_removed) in self._journal.drives().items():
            if is_removed:
                removed.append(record)
            else:
                self._records[drive_id] = record
        for record in removed:
            await self._remove(record)
        there = await asyncio.to_thread(self._store.names)
        for drive_id in self._records.keys() - there:
            log.error("drive %s is in the journal and not in the store", drive_id)
        self._claims = {session_id: tuple(mounts) for session_id, mounts in live.items() if mounts}
        for drive_id in there - {mount.drive_id for mounts in self._claims.values() for mount in mounts}:
            await asyncio.to_thread(self._store.detach, drive_id)

    # -- what there is -----------------------------------------------------------------------------

    async def create(self, spec: DriveSpec) -> DriveRecord:
        """Make a drive, empty or as a copy; the same one when it is there. Raises `HutchError`."""
        lock = self._making.setdefault(spec.drive_id, asyncio.Lock())
        async with lock:
            try:
                return self._records.get(spec.drive_id) or await self._create(spec)
            finally:
                self._making.pop(spec.drive_id, None)

    async def _create(self, spec: DriveSpec) -> DriveRecord:
        inherited, written = 0, False
        if spec.source_id is None:
            await asyncio.to_thread(self._store.create, spec.drive_id, spec.size_bytes)
        else:
            self._readable(spec.source_id)
            written = True
            if spec.drive_id not in await asyncio.to_thread(self._store.names):
                inherited = await asyncio.to_thread(self._store.copy, spec.source_id, spec.drive_id, spec.size_bytes)
        record = DriveRecord(
            drive_id=spec.drive_id,
            size_bytes=spec.size_bytes,
            created_at=now_ms(),
            inherited_bytes=inherited,
            written=written,
        )
        await self._journal.put_drive(record)
        self._records[spec.drive_id] = record
        return record

    async def usage(self, drive_id: str) -> DriveUsage:
        """What a drive holds. Raises `NotFoundError`."""
        record = self._known(drive_id)
        return DriveUsage(used_bytes=await asyncio.to_thread(self._store.used, drive_id, record.inherited_bytes))

    async def remove(self, drive_id: str) -> None:
        """Remove a drive; nothing happens when there is none. Raises `ConflictError` while a session has it."""
        record = self._records.get(drive_id)
        if record is None:
            return
        holders = [one for one, mounts in self._claims.items() if any(mount.drive_id == drive_id for mount in mounts)]
        if holders:
            raise ConflictError("drive_attached", f"The drive is mounted in session '{holders[0]}'. Stop that first.")
        del self._records[drive_id]
        await self._journal.put_drive(record, deleted=True)
        await self._remove(record)

    async def _remove(self, record: DriveRecord) -> None:
        await asyncio.to_thread(self._store.remove, record.drive_id)
        await self._journal.delete_drive(record.drive_id)

    def _known(self, drive_id: str) -> DriveRecord:
        record = self._records.get(drive_id)
        if record is None:
            raise NotFoundError("not_found", f"Drive '{drive_id[:128]}' does not exist any more.")
        return record

    def _readable(self, drive_id: str) -> DriveRecord:
        """A drive that can be copied now. Raises `HutchError`."""
        record = self._known(drive_id)
        if not record.written:
            raise ConflictError("drive_not_initialized", "The drive was never written to. Mount it read-write first.")
        if not self._store.copies_in_use and (writer := self._writer(drive_id)) is not None:
            raise ConflictError(
                "drive_attached",
                f"Session '{writer}' has the drive read-write, and this host's store can't copy it meanwhile. Stop that first.",
            )
        return record

    def _writer(self, drive_id: str) -> str | None:
        for session_id, mounts in self._claims.items():
            if any(mount.drive_id == drive_id and mount.mode is DriveMode.READ_WRITE for mount in mounts):
                return session_id
        return None

    # -- who has it --------------------------------------------------------------------------------

    def claim(self, session_id: str, mounts: Sequence[DriveMount]) -> tuple[Attachment, ...]:
        """Have drives for a session, all or none. Raises `HutchError`."""
        found = []
        for mount in mounts:
            if mount.mode is DriveMode.SNAPSHOT:
                record = self._readable(mount.drive_id)
            else:
                record = self._known(mount.drive_id)
                writer = self._writer(mount.drive_id)
                if writer is not None:
                    raise ConflictError(
                        "drive_attached",
                        f"The drive of '{mount.path}' is attached read-write to session '{writer}'. Stop that first, or mount it "
                        "with mode `snapshot`.",
                    )
            found.append(Attachment(mount, record.size_bytes, record.inherited_bytes, not record.written))
        if mounts:
            self._claims[session_id] = tuple(mounts)
        return tuple(found)

    async def begin(self, session_id: str) -> None:
        """A session is about to run, and may write to what it claimed."""
        for mount in self._claims.get(session_id, ()):
            record = self._records.get(mount.drive_id)
            if mount.mode is DriveMode.READ_WRITE and record is not None and not record.written:
                record = self._records[mount.drive_id] = msgspec.structs.replace(record, written=True)
                await self._journal.put_drive(record)

    async def release(self, session_id: str) -> None:
        """A session ended, and nothing of it runs any more."""
        for mount in self._claims.get(session_id, ()):
            if mount.mode is DriveMode.READ_WRITE:
                await asyncio.to_thread(self._store.detach, mount.drive_id)
        self._claims.pop(session_id, None)

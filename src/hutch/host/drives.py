"""Drives of this machine: what there is, and who has it.

    create, copy ─▶ files made whole ─▶ journal
    removal ─▶ journal: being removed ─▶ files removed ─▶ forgotten
    written to in the other form ─▶ files made in that form ─▶ journal ─▶ the first form removed

Whoever writes to a drive has it alone; whoever reads sees a copy as of the session's start. Who has a drive is not written down
beside: it is what the records of live sessions say, so that no claim outlives its session, and none is lost with this process.

A drive is in the form of whoever wrote to it last: a tree, or a virtual machine's disk. Whoever writes next and takes the other
one has it become that; whoever reads has a copy in the form that it takes. The journal says which one counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from hutch.clock import now_ms
from hutch.errors import ConflictError, NotFoundError
from hutch.host.drive_forms import DriveForms
from hutch.host.drive_storage import DriveStore, drive_of, name_of
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


async def _nothing(_: str) -> None:
    """Where no guest keeps anything to itself."""


class Drives:
    """Owner of every drive of one instance on this machine. `write_so_far` has the guest of a session write down what it has
    written, before it is copied."""

    def __init__(self, journal: Journal, store: DriveStore, forms: DriveForms) -> None:
        self._journal = journal
        self._store = store
        self._forms = forms
        self._records: dict[str, DriveRecord] = {}
        self._claims: dict[str, tuple[DriveMount, ...]] = {}
        self._making: dict[str, asyncio.Lock] = {}
        self._copying: dict[str, asyncio.Lock] = {}
        self.write_so_far: Callable[[str], Awaitable[None]] = _nothing

    async def recover(self, live: dict[str, Sequence[DriveMount]]) -> None:
        """Read what there is, carry removals and changes of form through, and give live sessions back what they had."""
        removed = []
        for drive_id, (record, is_removed) in self._journal.drives().items():
            if is_removed:
                removed.append(record)
            else:
                self._records[drive_id] = record
        for record in removed:
            await self._remove(record)
        there = await asyncio.to_thread(self._store.names)
        for record in list(self._records.values()):
            await self._settle_form(record, there)
        self._claims = {session_id: tuple(mounts) for session_id, mounts in live.items() if mounts}
        claimed = {mount.drive_id for mounts in self._claims.values() for mount in mounts}
        for name in await asyncio.to_thread(self._store.names):
            if drive_of(name) not in claimed:
                await asyncio.to_thread(self._store.detach, name)

    async def _settle_form(self, record: DriveRecord, there: set[str]) -> None:
        """Have a drive be there in one form. It is in two where a host died between them."""
        kept, other = (name_of(record.drive_id, disk=disk) for disk in (record.disk, not record.disk))
        if kept in there:
            if other in there:
                await asyncio.to_thread(self._store.remove, other)
        elif other in there:
            # The first form goes last: what the journal said of it was lost in a power cut.
            await self._put(msgspec.structs.replace(record, disk=not record.disk, inherited_bytes=0))
        else:
            log.error("drive %s is in the journal and not in the store", record.drive_id)

    async def _put(self, record: DriveRecord) -> DriveRecord:
        await self._journal.put_drive(record)
        self._records[record.drive_id] = record
        return record

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
        inherited, disk = 0, False
        if spec.source_id is None:
            await asyncio.to_thread(self._store.create, spec.drive_id, spec.size_bytes)
        else:
            async with self._still(spec.source_id) as source:
                disk = source.disk
                name = name_of(spec.drive_id, disk=disk)
                if name not in await asyncio.to_thread(self._store.names):
                    of = name_of(spec.source_id, disk=disk)
                    inherited = await asyncio.to_thread(self._store.copy, of, name, spec.size_bytes)
        record = DriveRecord(
            drive_id=spec.drive_id,
            size_bytes=spec.size_bytes,
            created_at=now_ms(),
            inherited_bytes=inherited,
            written=spec.source_id is not None,
            disk=disk,
        )
        return await self._put(record)

    @contextlib.asynccontextmanager
    async def _still(self, drive_id: str) -> AsyncIterator[DriveRecord]:
        """Have a drive keep its form while it is copied, and have its guest's writes in it. Raises `HutchError`."""
        self._readable(drive_id)
        if (writer := self._writer(drive_id)) is not None:
            await self.write_so_far(writer)
        async with self._copying.setdefault(drive_id, asyncio.Lock()):
            yield self._readable(drive_id)

    async def usage(self, drive_id: str) -> DriveUsage:
        """What a drive holds. Raises `NotFoundError`."""
        record = self._known(drive_id)
        name = name_of(drive_id, disk=record.disk)
        return DriveUsage(used_bytes=await asyncio.to_thread(self._store.used, name, record.inherited_bytes))

    async def remove(self, drive_id: str) -> None:
        """Remove a drive; nothing happens when there is none. Raises `ConflictError` while a session has it."""
        record = self._records.get(drive_id)
        if record is None:
            return
        holders = [one for one, mounts in self._claims.items() if any(mount.drive_id == drive_id for mount in mounts)]
        if holders:
            raise ConflictError("drive_attached", f"The drive is mounted in session '{holders[0]}'. Stop that first.")
        del self._records[drive_id]
        try:
            await self._journal.put_drive(record, deleted=True)
        except BaseException:
            # Whoever asks again must not hear that it is gone.
            self._records[drive_id] = record
            raise
        await self._remove(record)

    async def _remove(self, record: DriveRecord) -> None:
        for disk in (False, True):
            await asyncio.to_thread(self._store.remove, name_of(record.drive_id, disk=disk))
        self._copying.pop(record.drive_id, None)
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

    async def in_form(self, attachments: tuple[Attachment, ...], *, disk: bool) -> tuple[Attachment, ...]:
        """Have drives that a session claimed to write to be disks, or trees. Raises `HutchError`, and `OSError`."""
        return tuple([await self._in_form(attachment, disk=disk) for attachment in attachments])

    async def _in_form(self, attachment: Attachment, *, disk: bool) -> Attachment:
        drive_id = attachment.mount.drive_id
        record = self._known(drive_id)
        if attachment.mount.mode is DriveMode.SNAPSHOT or record.disk is disk:
            return attachment
        if record.written:
            await self._forms.convert(record)
        else:
            await asyncio.to_thread(self._store.create, name_of(drive_id, disk=disk), record.size_bytes)
        async with self._copying.setdefault(drive_id, asyncio.Lock()):
            await self._put(msgspec.structs.replace(record, disk=disk, inherited_bytes=0))
            await asyncio.to_thread(self._store.remove, name_of(drive_id, disk=not disk))
        return replace(attachment, inherited_bytes=0)

    async def attach(self, attachment: Attachment, *, disk: bool) -> Path:
        """A drive for the one who claimed it to write to, and has it in this form."""
        name = name_of(attachment.mount.drive_id, disk=disk)
        return await asyncio.to_thread(self._store.attach, name, attachment.size_bytes, attachment.inherited_bytes)

    async def view(self, attachment: Attachment, view: str, *, disk: bool) -> Path:
        """A copy of a claimed drive as it is now, for reading, as a disk or a tree. Raises `HutchError`, and `OSError`."""
        drive_id = attachment.mount.drive_id
        async with self._still(drive_id) as record:
            source = name_of(view if record.disk is disk else f"{view}from", disk=record.disk)
            path = await asyncio.to_thread(self._store.view, name_of(drive_id, disk=record.disk), source)
        if record.disk is disk:
            return path
        try:
            return await self._forms.view(record, path, name_of(view, disk=disk))
        finally:
            await asyncio.shield(asyncio.to_thread(self._store.remove_view, source))

    def remove_views(self, machine_id: str) -> None:
        """Remove what a machine saw. Blocks."""
        self._store.remove_views(machine_id)

    def viewers(self) -> set[str]:
        """Machines that there are copies for. Blocks."""
        return self._store.viewers()

    async def begin(self, session_id: str) -> None:
        """A session is about to run, and may write to what it claimed."""
        for mount in self._claims.get(session_id, ()):
            record = self._records.get(mount.drive_id)
            if mount.mode is DriveMode.READ_WRITE and record is not None and not record.written:
                await self._put(msgspec.structs.replace(record, written=True))

    async def release(self, session_id: str) -> None:
        """A session ended, and nothing of it runs any more."""
        for mount in self._claims.get(session_id, ()):
            record = self._records.get(mount.drive_id)
            if mount.mode is DriveMode.READ_WRITE and record is not None:
                await asyncio.to_thread(self._store.detach, name_of(mount.drive_id, disk=record.disk))
        self._claims.pop(session_id, None)

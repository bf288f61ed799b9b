"""The files of a drive in the other form (`hutch.host.drive_storage`): a tree becomes a disk, or a disk a tree, by a machine that
is started for that alone (`hutch.isolation.convert`).

    copy of the drive as of now ─▶ another view, with the same files ─▶ what a machine reads, or the drive itself
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import stat
from pathlib import Path

from hutch.host.conversion import CONVERTING, Converter
from hutch.host.drive_storage import DriveStore, is_disk, name_of
from hutch.host.protocol import DriveRecord

log = logging.getLogger(__name__)

SLACK_BYTES = 16 * 1024 * 1024
TABLES = 8
"""What a file system needs for itself is less than this part of what its files have, beside the slack."""
USER_ATTRIBUTES = "user."


class DriveForms:
    """Makes drives, and what is seen of them, in the other form."""

    def __init__(self, converter: Converter, store: DriveStore) -> None:
        self._converter = converter
        self._store = store

    async def convert(self, record: DriveRecord) -> None:
        """Have a drive that nobody uses be there in the other form too. Raises `HutchError`, and `OSError`; nothing is left
        then."""
        machine = _machine_name()
        source = name_of(f"{machine}-from", disk=record.disk)
        made = name_of(f"{machine}-made", disk=not record.disk)
        try:
            path = await asyncio.to_thread(self._store.view, name_of(record.drive_id, disk=record.disk), source)
            await self._make(record, path, made, machine)
            await asyncio.to_thread(self._store.become, made, name_of(record.drive_id, disk=not record.disk))
        finally:
            await asyncio.shield(asyncio.to_thread(self._store.remove_views, machine))

    async def view(self, record: DriveRecord, source: Path, view: str) -> Path:
        """A view with the files of another one, `source`, which is in the form of the drive. Raises `HutchError`, and
        `OSError`."""
        return await self._make(record, source, view, _machine_name())

    async def _make(self, record: DriveRecord, source: Path, view: str, machine: str) -> Path:
        about = f"The files of drive '{record.drive_id}' can't be converted"
        async with self._converter.machine(about, "drive_unpackable") as qemu:
            log.info("drive %s becomes a %s", record.drive_id, "disk" if is_disk(view) else "tree")
            name = name_of(record.drive_id, disk=record.disk)
            held = await asyncio.to_thread(self._store.used, name, record.inherited_bytes)
            # One that is nearly full has to have room for what the other form needs beside its files.
            enough = max(record.size_bytes, held + held // TABLES + SLACK_BYTES)
            made = await asyncio.to_thread(self._store.blank, view, enough)
            if is_disk(view):
                await self._converter.put_in(qemu, machine, source, made.parent, held)
            else:
                # Of a name that the files can't have foreseen.
                inner = made / f".{secrets.token_hex(16)}"
                await self._converter.take_out(qemu, machine, source.parent, inner)
                await asyncio.to_thread(_moved_up, inner)
            return made


def _machine_name() -> str:
    return f"{CONVERTING}{secrets.token_hex(10)}"


def _moved_up(inner: Path) -> None:
    """Have what is in a directory be in the one above, which is to be the same to whoever looks at it."""
    with contextlib.ExitStack() as opened:
        inside, outside = (os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW) for path in (inner, inner.parent))
        for descriptor in (inside, outside):
            opened.callback(os.close, descriptor)
        found = os.fstat(inside)
        for name in os.listdir(inside):  # noqa: PTH208 - of what was opened
            os.rename(name, name, src_dir_fd=inside, dst_dir_fd=outside)
        inner.rmdir()
        os.fchown(outside, found.st_uid, found.st_gid)
        os.fchmod(outside, stat.S_IMODE(found.st_mode))
        for attribute in os.listxattr(inside):
            if attribute.startswith(USER_ATTRIBUTES):
                os.setxattr(outside, attribute, os.getxattr(inside, attribute))
        os.utime(outside, ns=(found.st_atime_ns, found.st_mtime_ns))

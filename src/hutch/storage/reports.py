"""What a host reports of a session → rows of the session, its sandbox and its snapshot, in one transaction."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncConnection

from hutch.control.lifecycle import is_live, merge
from hutch.control.records import SessionRow
from hutch.host.protocol import SessionRecord
from hutch.storage import sessions, snapshots
from hutch.storage.sealing import Sealer


async def apply(
    connection: AsyncConnection, report: SessionRecord, sealer: Sealer, now: int, *, expiration_ms: int | None = None
) -> SessionRow | None:
    """Write a report; the session as it is then, None when it is not known. Idempotent. `expiration_ms` is that of its snapshot,
    when the caller of this has one of its own."""
    session = await sessions.change(connection, report.session_id, sealer, lambda row: merge(row, report, now))
    if session is not None and report.snapshot is not None and not is_live(report.status):
        await snapshots.reported(connection, session, report.snapshot, now, expiration_ms=expiration_ms)
    return session

"""Snapshots: what hosts report of them, who uses them, and when they go."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from hutch.control.cursor import Position
from hutch.control.records import Scope, SessionRow, Snapshot, SnapshotStatus
from hutch.host.protocol import SnapshotRecord
from hutch.storage.models import SandboxModel, SnapshotModel
from hutch.storage.paging import by_column
from hutch.storage.scoping import within

DEFAULT_EXPIRATION_MS = 30 * 24 * 3600 * 1000
FOR_FORKS_MS = 24 * 3600 * 1000
_TABLE = SnapshotModel.__table__
_PLAIN = tuple(name for name in Snapshot.__slots__ if name not in ("number", "status"))


def _snapshot(row: Row[Any]) -> Snapshot:
    values = row._mapping
    plain = {name: values[name] for name in _PLAIN}
    return Snapshot(status=SnapshotStatus(values["status"]), number=values["number"], **plain)


def _expires(used_at: int, expiration_ms: int) -> int | None:
    return used_at + expiration_ms if expiration_ms else None


async def find(connection: AsyncConnection, scope: Scope, snapshot_id: str, *, lock: bool = False) -> Snapshot | None:
    """A snapshot, deleted ones too; with `lock` nobody else changes it until the transaction ends."""
    query = select(_TABLE).where(*within(scope, SnapshotModel), SnapshotModel.id == snapshot_id)
    row = (await connection.execute(query.with_for_update() if lock else query)).first()
    return _snapshot(row) if row is not None else None


async def of_session(connection: AsyncConnection, session_id: str) -> Snapshot | None:
    """What a session left last."""
    query = select(_TABLE).where(SnapshotModel.session_id == session_id).order_by(SnapshotModel.number.desc()).limit(1)
    row = (await connection.execute(query)).first()
    return _snapshot(row) if row is not None else None


async def page(
    connection: AsyncConnection, scope: Scope, *, sandbox_name: str | None, descending: bool, after: Position | None, limit: int
) -> tuple[list[Snapshot], Position | None]:
    """One page by time of creation, and where the next begins."""
    behind, order = by_column(SnapshotModel.created_at, SnapshotModel.number, descending=descending, after=after)
    conditions = [*within(scope, SnapshotModel), *behind]
    if sandbox_name is not None:
        conditions.append(SnapshotModel.sandbox_name == sandbox_name)
    rows = (await connection.execute(select(_TABLE).where(*conditions).order_by(*order).limit(limit + 1))).all()
    found = [_snapshot(row) for row in rows[:limit]]
    return found, Position(found[-1].created_at, found[-1].number) if len(rows) > limit else None


async def children(connection: AsyncConnection, scope: Scope, parent_id: str | None, limit: int) -> list[Snapshot]:
    """Snapshots that came from another one (None: from an image), newest first."""
    query = select(_TABLE).where(*within(scope, SnapshotModel), SnapshotModel.parent_id == parent_id)
    rows = await connection.execute(query.order_by(SnapshotModel.created_at.desc(), SnapshotModel.number.desc()).limit(limit))
    return [_snapshot(row) for row in rows]


# -- making and using -------------------------------------------------------------------------------


async def reported(
    connection: AsyncConnection,
    session: SessionRow,
    report: SnapshotRecord,
    now: int,
    *,
    expiration_ms: int | None = None,
) -> None:
    """Write what a host says about a snapshot. The first time it becomes what its sandbox goes on from, and what the sandbox
    keeps no longer is deleted, unless it was made for forks. Idempotent."""
    if await told(connection, report):
        if expiration_ms is not None:
            # The host's own report of the session's end, which knows nothing of it, came first.
            await _expire_after(connection, report.snapshot_id, expiration_ms)
        return
    columns = (SandboxModel.snapshot_expiration_ms, SandboxModel.keep_last_snapshots, SandboxModel.current_session_id)
    sandbox = (await connection.execute(select(*columns).where(SandboxModel.id == session.sandbox_id))).first()
    own = sandbox.snapshot_expiration_ms if sandbox is not None else None
    kept_for = own if own is not None else DEFAULT_EXPIRATION_MS
    if expiration_ms is not None:
        kept_for = expiration_ms
    if report.for_forks:
        # It is deleted as soon as they run; this is for a server that does not live to do that.
        kept_for = FOR_FORKS_MS
    scope = Scope(session.team_id, session.project_id)
    source: dict[str, str | int] = {
        "sandbox_id": session.sandbox_id,
        "sandbox_name": session.sandbox_name,
        "session_id": session.id,
    }
    place: dict[str, str | int] = {"runtime": session.runtime, "region": session.region, "vcpus": session.vcpus}
    await _insert(connection, scope, report, now, kept_for, **source, **place)
    if sandbox is None or report.for_forks:
        return
    if sandbox.current_session_id == session.id:
        current = update(SandboxModel).where(SandboxModel.id == session.sandbox_id)
        await connection.execute(current.values(current_snapshot_id=report.snapshot_id))
    if sandbox.keep_last_snapshots is not None:
        asked = report.snapshot_id if expiration_ms is not None else None
        await _evict(connection, session.sandbox_id, sandbox.keep_last_snapshots, own, now, asked=asked)


async def _expire_after(connection: AsyncConnection, snapshot_id: str, expiration_ms: int) -> None:
    expires_at = SnapshotModel.last_used_at + expiration_ms if expiration_ms else None
    values = {"expiration_ms": expiration_ms, "expires_at": expires_at}
    live = (SnapshotModel.id == snapshot_id, SnapshotModel.status == str(SnapshotStatus.CREATED))
    await connection.execute(update(SnapshotModel).where(*live).values(**values))


async def imported(
    connection: AsyncConnection, scope: Scope, report: SnapshotRecord, now: int, *, runtime: str, region: str
) -> None:
    """Write a snapshot that no session left."""
    source: dict[str, str | int] = {"sandbox_id": "", "sandbox_name": "", "session_id": ""}
    await _insert(connection, scope, report, now, DEFAULT_EXPIRATION_MS, **source, runtime=runtime, region=region)


async def _insert(
    connection: AsyncConnection, scope: Scope, report: SnapshotRecord, now: int, expiration_ms: int, **source: str | int
) -> None:
    values = {
        "id": report.snapshot_id,
        "team_id": scope.team_id,
        "project_id": scope.project_id,
        "parent_id": report.parent_id,
        "status": str(SnapshotStatus.CREATED),
        "method": str(report.method),
        "image": report.image,
        "expiration_ms": expiration_ms,
        "created_at": report.created_at,
        "updated_at": now,
        "last_used_at": report.created_at,
        "expires_at": _expires(report.created_at, expiration_ms),
    }
    await connection.execute(insert(SnapshotModel).values(**values, **_news(report), **source))


def _news(report: SnapshotRecord) -> dict[str, Any]:
    """What changes of a snapshot after it was made."""
    return {
        "size_bytes": report.size_bytes + report.image_bytes + report.memory_bytes,
        "layer_bytes": report.size_bytes + report.memory_bytes,
        "memory_bytes": report.memory_bytes,
        "durable_at": report.durable_at,
        "stored_at": report.stored_at,
        "store_error": report.store_error,
    }


async def told(connection: AsyncConnection, report: SnapshotRecord) -> bool:
    """Write what is new about a snapshot; False when it is not known. What was reported before it was durable may come later
    than what was after, and is no news then."""
    mine = SnapshotModel.id == report.snapshot_id
    row = (await connection.execute(select(SnapshotModel.durable_at, SnapshotModel.stored_at).where(mine))).first()
    if row is None:
        return False
    later = (row.durable_at is None or report.durable_at is not None) and (row.stored_at is None or report.stored_at is not None)
    if later:
        await connection.execute(update(SnapshotModel).where(mine).values(**_news(report)))
    return True


HELD = func.sum(func.coalesce(SnapshotModel.layer_bytes, SnapshotModel.size_bytes))


async def held_bytes(connection: AsyncConnection, project_id: str) -> int:
    """What a project's snapshots hold, without their images."""
    live = (SnapshotModel.project_id == project_id, SnapshotModel.status == str(SnapshotStatus.CREATED))
    return int((await connection.execute(select(HELD).where(*live))).scalar() or 0)


async def holding_more(connection: AsyncConnection, most: int) -> dict[str, int]:
    """The projects whose snapshots hold more than `most` bytes, and how many."""
    query = select(SnapshotModel.project_id, HELD).where(SnapshotModel.status == str(SnapshotStatus.CREATED))
    rows = await connection.execute(query.group_by(SnapshotModel.project_id).having(most < HELD))
    return {project_id: int(held) for project_id, held in rows}


async def _evict(
    connection: AsyncConnection, sandbox_id: str, keep: dict[str, Any], expiration_ms: int | None, now: int, *, asked: str | None
) -> None:
    """Apply `keepLastSnapshots` to a sandbox, whose own `snapshotExpiration` is the one that is given. How long the snapshot
    `asked` is kept was said by whoever asked for it."""
    mine = (SnapshotModel.sandbox_id == sandbox_id, SnapshotModel.status == str(SnapshotStatus.CREATED))
    query = select(_TABLE).where(*mine).order_by(SnapshotModel.created_at.desc(), SnapshotModel.number.desc())
    found = [_snapshot(row) for row in await connection.execute(query)]
    kept_for = keep.get("expiration", expiration_ms)
    for snapshot in found[: keep["count"]]:
        if kept_for is None or snapshot.id == asked:
            continue
        values = {"expiration_ms": kept_for, "expires_at": _expires(snapshot.last_used_at, kept_for)}
        await connection.execute(update(SnapshotModel).where(SnapshotModel.id == snapshot.id).values(**values))
    if keep.get("deleteEvicted", True):
        for snapshot in found[keep["count"] :]:
            await mark_deleted(connection, snapshot.id, now)


async def used(connection: AsyncConnection, snapshot: Snapshot, now: int) -> None:
    """A session begins with it: its life is counted from now."""
    values = {"last_used_at": now, "updated_at": now, "expires_at": _expires(now, snapshot.expiration_ms)}
    await connection.execute(update(SnapshotModel).where(SnapshotModel.id == snapshot.id).values(**values))


# -- the end ----------------------------------------------------------------------------------------


async def mark_deleted(connection: AsyncConnection, snapshot_id: str, now: int) -> bool:
    """It can't be used any more; its files go when the host is told. False when it was deleted before."""
    live = (SnapshotModel.id == snapshot_id, SnapshotModel.status == str(SnapshotStatus.CREATED))
    values = {"status": str(SnapshotStatus.DELETED), "updated_at": now, "expires_at": None}
    return (await connection.execute(update(SnapshotModel).where(*live).values(**values))).rowcount > 0


async def expire(connection: AsyncConnection, now: int) -> int:
    """Delete what has expired; how many."""
    due = (SnapshotModel.status == str(SnapshotStatus.CREATED), SnapshotModel.expires_at <= now)
    values = {"status": str(SnapshotStatus.DELETED), "updated_at": now, "expires_at": None}
    return (await connection.execute(update(SnapshotModel).where(*due).values(**values))).rowcount


async def delete_orphans(connection: AsyncConnection, sandbox_id: str, now: int) -> None:
    """Delete the snapshots of a sandbox that no other sandbox would go on from."""
    needed = select(SandboxModel.current_snapshot_id).where(
        SandboxModel.current_snapshot_id.is_not(None), SandboxModel.id != sandbox_id
    )
    mine = (SnapshotModel.sandbox_id == sandbox_id, SnapshotModel.status == str(SnapshotStatus.CREATED))
    values = {"status": str(SnapshotStatus.DELETED), "updated_at": now, "expires_at": None}
    await connection.execute(update(SnapshotModel).where(*mine, SnapshotModel.id.not_in(needed)).values(**values))


async def to_purge(connection: AsyncConnection, limit: int = 100) -> list[str]:
    """Deleted snapshots whose files may still be there."""
    query = select(SnapshotModel.id).where(SnapshotModel.status == str(SnapshotStatus.DELETED), SnapshotModel.purged_at.is_(None))
    return list((await connection.execute(query.limit(limit))).scalars())


async def purged(connection: AsyncConnection, snapshot_id: str, now: int) -> None:
    """Its files are gone."""
    await connection.execute(update(SnapshotModel).where(SnapshotModel.id == snapshot_id).values(purged_at=now))


async def known(connection: AsyncConnection, snapshot_ids: list[str]) -> dict[str, tuple[int | None, int | None, str | None]]:
    """Those that there are, of whatever team, with since when they are durable and stored, or why not: for comparing with a
    host, never for a caller."""
    columns = (SnapshotModel.id, SnapshotModel.durable_at, SnapshotModel.stored_at, SnapshotModel.store_error)
    rows = await connection.execute(select(*columns).where(SnapshotModel.id.in_(snapshot_ids)))
    return {row.id: (row.durable_at, row.stored_at, row.store_error) for row in rows}

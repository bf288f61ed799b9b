"""Syncs of workers: their states, who runs them, and how far pacers were used.

A sync is taken (`take`) for a time, which its taker prolongs (`prolong`). Each taking raises its `fence`; what a taker writes
(`put` with its fence) counts as long as nobody took it since. Of several processes on PostgreSQL each takes others, without
waiting; on SQLite one writes at a time.

Locks are taken in the order sync, worker, rows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, and_, delete, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from hutch.control.records import Scope
from hutch.storage.models import WorkerModel, WorkerPacerModel, WorkerSyncModel
from hutch.storage.scoping import within
from hutch.storage.sealing import Sealer
from hutch.workers.sync import SyncState, tick


@dataclass(frozen=True, slots=True)
class Sync:
    """A sync as it is stored. `warnings` are those of its last run that was applied."""

    worker_id: str
    key: str
    team_id: str
    project_id: str
    declared: bool
    state: SyncState
    warnings: tuple[str, ...]
    leased_until: int | None
    fence: int

    @property
    def scope(self) -> Scope:
        return Scope(self.team_id, self.project_id)


class _Sealed(msgspec.Struct, frozen=True):
    state: SyncState
    warnings: tuple[str, ...] = ()


_COLUMNS = tuple(
    getattr(WorkerSyncModel, name)
    for name in ("worker_id", "key", "team_id", "project_id", "declared", "state", "leased_until", "fence")
)


def due_at(state: SyncState) -> int | None:
    """When somebody should take a sync that nobody has: at once if its next run is decided."""
    if state.running is not None:
        return 0
    forced = state.triggered or bool(state.cycle and state.cycle.forced)
    return state.due_ms if forced or not state.paused else None


def _read(row: Any, sealer: Sealer) -> Sync:
    sealed = msgspec.convert(sealer.open(row.state, f"{row.worker_id}/sync/{row.key}"), _Sealed)
    return Sync(
        row.worker_id,
        row.key,
        row.team_id,
        row.project_id,
        row.declared,
        sealed.state,
        sealed.warnings,
        row.leased_until,
        row.fence,
    )


def _seal(worker_id: str, key: str, state: SyncState, warnings: Collection[str], sealer: Sealer) -> bytes:
    return sealer.seal(msgspec.to_builtins(_Sealed(state, tuple(warnings))), f"{worker_id}/sync/{key}")


async def of_worker(
    connection: AsyncConnection, scope: Scope, worker_id: str, sealer: Sealer, *, lock: bool = False
) -> dict[str, Sync]:
    """All of a worker's, also those that it does not declare any more, by key."""
    query = select(*_COLUMNS).where(*within(scope, WorkerSyncModel), WorkerSyncModel.worker_id == worker_id)
    query = query.order_by(WorkerSyncModel.key)
    found = await connection.execute(query.with_for_update() if lock else query)
    return {row.key: _read(row, sealer) for row in found}


async def find(
    connection: AsyncConnection, scope: Scope, worker_id: str, key: str, sealer: Sealer, *, lock: bool = False
) -> Sync | None:
    """One that is declared."""
    query = select(*_COLUMNS).where(
        *within(scope, WorkerSyncModel),
        WorkerSyncModel.worker_id == worker_id,
        WorkerSyncModel.key == key,
        WorkerSyncModel.declared.is_(True),
    )
    row = (await connection.execute(query.with_for_update() if lock else query)).first()
    return _read(row, sealer) if row is not None else None


async def add(connection: AsyncConnection, scope: Scope, worker_id: str, key: str, state: SyncState, sealer: Sealer) -> None:
    owner = {"team_id": scope.team_id, "project_id": scope.project_id, "worker_id": worker_id, "key": key}
    sealed = _seal(worker_id, key, state, (), sealer)
    values = {"declared": True, "state": sealed, "due_at": due_at(state), "leased_until": None, "fence": 0}
    await connection.execute(insert(WorkerSyncModel).values(**owner, **values))


async def put(
    connection: AsyncConnection, sync: Sync, state: SyncState, sealer: Sealer, *, warnings: Collection[str] | None = None
) -> None:
    """Store a state; whoever has the sync keeps it. The sync was found with `lock`."""
    await _put(connection, sync, state, sealer, warnings, due_at=None if sync.leased_until is not None else due_at(state))


async def release(
    connection: AsyncConnection, sync: Sync, state: SyncState, sealer: Sealer, *, warnings: Collection[str] | None = None
) -> None:
    """Store a state, and let the next one take the sync."""
    await _put(connection, sync, state, sealer, warnings, due_at=due_at(state), leased_until=None)


async def retire(connection: AsyncConnection, sync: Sync) -> None:
    """It is not declared any more: nobody runs it, and what comes of a run of before is not written. Its state is kept."""
    statement = update(WorkerSyncModel).where(*_is(sync))
    await connection.execute(statement.values(declared=False, due_at=None, leased_until=None, fence=sync.fence + 1))


async def revive(connection: AsyncConnection, sync: Sync) -> None:
    """It is declared again."""
    await connection.execute(update(WorkerSyncModel).where(*_is(sync)).values(declared=True))


async def _put(
    connection: AsyncConnection, sync: Sync, state: SyncState, sealer: Sealer, warnings: Collection[str] | None, **more: Any
) -> None:
    sealed = _seal(sync.worker_id, sync.key, state, sync.warnings if warnings is None else warnings, sealer)
    await connection.execute(update(WorkerSyncModel).where(*_is(sync)).values(state=sealed, **more))


def _is(sync: Sync) -> tuple[ColumnElement[bool], ...]:
    return (*within(sync.scope, WorkerSyncModel), WorkerSyncModel.worker_id == sync.worker_id, WorkerSyncModel.key == sync.key)


# -- taking ------------------------------------------------------------------------------------------


def _free(now: int) -> ColumnElement[bool]:
    """Syncs that somebody should take: due ones, and those whose taker is silent."""
    return and_(
        WorkerSyncModel.declared.is_(True),
        or_(
            and_(WorkerSyncModel.leased_until.is_(None), WorkerSyncModel.due_at <= now),
            WorkerSyncModel.leased_until < now,
        ),
    )


async def waiting(connection: AsyncConnection, now: int) -> dict[str, int]:
    """Projects with syncs that should be taken, and since when the first waits."""
    query = select(WorkerSyncModel.project_id, func.min(func.coalesce(WorkerSyncModel.due_at, WorkerSyncModel.leased_until)))
    rows = await connection.execute(query.where(_free(now)).group_by(WorkerSyncModel.project_id))
    return {row[0]: row[1] for row in rows}


@dataclass(frozen=True, slots=True)
class Upcoming:
    """A sync that somebody will take at `due_at`."""

    scope: Scope
    worker_id: str
    due_at: int


async def upcoming(connection: AsyncConnection, before: int, most: int) -> list[Upcoming]:
    """Syncs that nobody has and that are due before a time, the first ones first."""
    query = select(WorkerSyncModel.team_id, WorkerSyncModel.project_id, WorkerSyncModel.worker_id, WorkerSyncModel.due_at).where(
        WorkerSyncModel.declared.is_(True), WorkerSyncModel.leased_until.is_(None), WorkerSyncModel.due_at < before
    )
    rows = await connection.execute(query.order_by(WorkerSyncModel.due_at).limit(most))
    return [Upcoming(Scope(row[0], row[1]), row[2], int(row[3] or 0)) for row in rows]


async def take(connection: AsyncConnection, project_id: str, now: int, until: int, sealer: Sealer) -> Sync | None:
    """The sync of a project that waits longest, for the caller until then; None when others were faster."""
    query = (
        select(*_COLUMNS)
        .where(WorkerSyncModel.project_id == project_id, _free(now))
        .order_by(func.coalesce(WorkerSyncModel.due_at, WorkerSyncModel.leased_until), WorkerSyncModel.worker_id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    row = (await connection.execute(query)).first()
    if row is None:
        return None
    found = _read(row, sealer)
    statement = update(WorkerSyncModel).where(*_is(found))
    await connection.execute(statement.values(leased_until=until, due_at=None, fence=found.fence + 1))
    return replace(found, leased_until=until, fence=found.fence + 1)


async def prolong(connection: AsyncConnection, sync: Sync, until: int) -> bool:
    """Keep a sync until then; False when somebody else has it."""
    statement = update(WorkerSyncModel).where(*_is(sync), WorkerSyncModel.fence == sync.fence)
    return (await connection.execute(statement.values(leased_until=until))).rowcount > 0


async def held(connection: AsyncConnection, sync: Sync, sealer: Sealer) -> Sync | None:
    """The sync as it is now, if its taker still has it; locked, so that this stays so."""
    query = select(*_COLUMNS).where(*_is(sync), WorkerSyncModel.fence == sync.fence).with_for_update()
    row = (await connection.execute(query)).first()
    return _read(row, sealer) if row is not None else None


async def executing(connection: AsyncConnection, scope: Scope, worker_id: str, now: int) -> int:
    """How many syncs of a worker somebody has."""
    query = select(func.count()).where(
        *within(scope, WorkerSyncModel), WorkerSyncModel.worker_id == worker_id, WorkerSyncModel.leased_until >= now
    )
    return int((await connection.execute(query)).scalar_one())


# -- marks and pacers --------------------------------------------------------------------------------


async def next_mark(connection: AsyncConnection, scope: Scope, worker_id: str, now: int) -> int | None:
    """A worker's next mark, which is used from now on; None when the worker is gone. Locks the worker."""
    own = (*within(scope, WorkerModel), WorkerModel.id == worker_id)
    query = select(WorkerModel.mark).where(*own).with_for_update(key_share=True)
    last = (await connection.execute(query)).scalar_one_or_none()
    if last is None:
        return None
    mark = tick(last, now)
    await connection.execute(update(WorkerModel).where(*own).values(mark=mark))
    return mark


async def pacers(connection: AsyncConnection, scope: Scope, worker_id: str) -> dict[str, float]:
    """When each pacer was used last."""
    query = select(WorkerPacerModel.key, WorkerPacerModel.last_ms).where(
        *within(scope, WorkerPacerModel), WorkerPacerModel.worker_id == worker_id
    )
    return {row[0]: row[1] for row in await connection.execute(query)}


async def put_pacers(connection: AsyncConnection, scope: Scope, worker_id: str, last_ms: Mapping[str, float]) -> None:
    """These and no others. The worker is locked (`next_mark`)."""
    own = (*within(scope, WorkerPacerModel), WorkerPacerModel.worker_id == worker_id)
    await connection.execute(delete(WorkerPacerModel).where(*own))
    owner = {"worker_id": worker_id, "team_id": scope.team_id, "project_id": scope.project_id}
    if last_ms:
        values = [{**owner, "key": key, "last_ms": last} for key, last in last_ms.items()]
        await connection.execute(insert(WorkerPacerModel), values)

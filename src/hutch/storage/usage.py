"""Usage windows.

Windows of a host may come twice, and after a power cut another one of the same number: the one that came last counts, so that
telling again changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Integer, case, cast, delete, func, insert, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from hutch.control.records import Scope
from hutch.host.protocol import NumberedWindow, RuleTraffic
from hutch.metering.quantities import PEAKS, Quantities
from hutch.storage.models import (
    ProjectModel,
    SandboxTagModel,
    SessionModel,
    SnapshotModel,
    TeamModel,
    UsageNetworkModel,
    UsageWindowModel,
)
from hutch.storage.scoping import within

DAY_MS = 86_400_000
HALF = 2**31
"""Sums are made of two halves: those of all byte-seconds of a busy year don't fit into 64 bits."""
SUMMED = (
    "active_cpu_us",
    "startup_cpu_us",
    "wall_us",
    "memory_byte_seconds",
    "ingress_bytes",
    "egress_bytes",
    "creations",
    "gateway_cpu_us",
    "disk_byte_seconds",
)
_TABLE = UsageWindowModel.__table__


@dataclass(frozen=True, slots=True)
class Group:
    """Usage by one key: a day in UTC (`2026-11-26`), or the name of a sandbox with its id."""

    key: str
    sandbox_id: str | None
    quantities: Quantities


@dataclass(frozen=True, slots=True)
class Stored:
    """A snapshot that held so many bytes from one time to another, or until now (None)."""

    sandbox_id: str
    sandbox_name: str
    size_bytes: int
    from_ms: int
    to_ms: int | None

    def byte_seconds(self, from_ms: int, to_ms: int) -> int:
        """What it held within a time."""
        end = to_ms if self.to_ms is None else min(self.to_ms, to_ms)
        return self.size_bytes * max(0, end - max(self.from_ms, from_ms)) // 1000


async def apply(connection: AsyncConnection, windows: Sequence[NumberedWindow]) -> None:
    """Write windows, those of deleted teams and projects excepted. Idempotent."""
    newest = {(told.window.session_id, told.window.number): told for told in windows}
    live = (
        select(ProjectModel.team_id, ProjectModel.id)
        .join(TeamModel, TeamModel.id == ProjectModel.team_id)
        .where(
            ProjectModel.id.in_({told.owner.project_id for told in newest.values()}),
            ProjectModel.deleting_at.is_(None),
            TeamModel.deleting_at.is_(None),
        )
    )
    known = {(row[0], row[1]) for row in await connection.execute(live)}
    kept = {place: told for place, told in newest.items() if (told.owner.team_id, told.owner.project_id) in known}
    if not kept:
        return
    named = select(SessionModel.id, SessionModel.sandbox_name, SessionModel.worker_id)
    found = await connection.execute(named.where(SessionModel.id.in_({place[0] for place in kept})))
    names: dict[str, tuple[str, str | None]] = {row[0]: (row[1], row[2]) for row in found}
    place = tuple_(UsageWindowModel.session_id, UsageWindowModel.number)
    await connection.execute(delete(UsageWindowModel).where(place.in_(list(kept))))
    await connection.execute(insert(UsageWindowModel), [_values(told, names) for told in kept.values()])
    await _apply_network(connection, [told for told in kept.values() if told.window.final])


async def _apply_network(connection: AsyncConnection, last: Sequence[NumberedWindow]) -> None:
    sessions = [told.window.session_id for told in last]
    await connection.execute(delete(UsageNetworkModel).where(UsageNetworkModel.session_id.in_(sessions)))
    values = [
        {"session_id": told.window.session_id, "rule": rule, **msgspec.to_builtins(told.owner), **msgspec.to_builtins(traffic)}
        for told in last
        for rule, traffic in told.network.items()
    ]
    if values:
        await connection.execute(insert(UsageNetworkModel), values)


def _values(told: NumberedWindow, names: dict[str, tuple[str, str | None]]) -> dict[str, Any]:
    window, owner = told.window, told.owner
    name, worker_id = names.get(window.session_id, (owner.sandbox_id, None))
    return {
        "session_id": window.session_id,
        "number": window.number,
        "team_id": owner.team_id,
        "project_id": owner.project_id,
        "sandbox_id": owner.sandbox_id,
        "sandbox_name": name,
        "worker_id": worker_id,
        "from_ms": window.from_ms,
        "to_ms": window.to_ms,
        "final": window.final,
    } | {name: getattr(window.quantities, name) for name in (*SUMMED, *PEAKS)}


def _sums() -> list[ColumnElement[Any]]:
    columns: list[ColumnElement[Any]] = []
    for name in SUMMED:
        column = _TABLE.c[name]
        # The upper half of what is left without the lower one, so that nothing is divided with a remainder.
        columns += [func.sum((column - column % HALF) // HALF), func.sum(column % HALF)]
    return [*columns, *(func.max(_TABLE.c[name]) for name in PEAKS)]


def _quantities(values: Sequence[Any]) -> Quantities:
    """A row of `_sums`; nothing where there were no windows."""
    numbers = [int(value or 0) for value in values]
    sums = {name: numbers[2 * at] * HALF + numbers[2 * at + 1] for at, name in enumerate(SUMMED)}
    return Quantities(**sums, **dict(zip(PEAKS, numbers[2 * len(SUMMED) :], strict=True)))


async def of_sandbox(connection: AsyncConnection, scope: Scope, sandbox_id: str, *, without: Iterable[str] = ()) -> Quantities:
    """The sum of a sandbox's windows, but for those of some sessions."""
    query = select(*_sums()).where(*within(scope, UsageWindowModel), UsageWindowModel.sandbox_id == sandbox_id)
    excluded = list(without)
    if excluded:
        query = query.where(UsageWindowModel.session_id.not_in(excluded))
    return _quantities(tuple((await connection.execute(query)).one()))


async def network_of_sandbox(
    connection: AsyncConnection, scope: Scope, sandbox_id: str, *, without: Iterable[str] = ()
) -> dict[str, RuleTraffic]:
    """What passed by rule in the sessions of a sandbox that are over, but for some."""
    sums = [func.sum(UsageNetworkModel.__table__.c[name]) for name in RuleTraffic.__struct_fields__]
    query = select(UsageNetworkModel.rule, *sums).where(
        *within(scope, UsageNetworkModel), UsageNetworkModel.sandbox_id == sandbox_id
    )
    if excluded := list(without):
        query = query.where(UsageNetworkModel.session_id.not_in(excluded))
    rows = await connection.execute(query.group_by(UsageNetworkModel.rule))
    return {row[0]: RuleTraffic(**dict(zip(RuleTraffic.__struct_fields__, map(int, row[1:]), strict=True))) for row in rows}


async def of_session(connection: AsyncConnection, scope: Scope, session_id: str) -> tuple[Quantities, bool]:
    """The sum of a session's windows, and whether it is final."""
    query = select(*_sums(), func.max(cast(UsageWindowModel.final, Integer)))
    row = (
        await connection.execute(query.where(*within(scope, UsageWindowModel), UsageWindowModel.session_id == session_id))
    ).one()
    return _quantities(tuple(row)[:-1]), bool(row[-1])


async def unfinished(connection: AsyncConnection, scope: Scope, sandbox_id: str) -> list[str]:
    """Sessions of a sandbox whose last window has not come."""
    final = select(UsageWindowModel.session_id).where(UsageWindowModel.sandbox_id == sandbox_id, UsageWindowModel.final)
    query = select(SessionModel.id).where(
        *within(scope, SessionModel),
        SessionModel.sandbox_id == sandbox_id,
        SessionModel.started_at.is_not(None),
        SessionModel.id.not_in(final),
    )
    return list((await connection.execute(query)).scalars())


async def by_day(connection: AsyncConnection, scope: Scope, from_ms: int, to_ms: int) -> dict[int, Quantities]:
    """Sums by day, as days since the epoch. A window belongs to the day on which it began."""
    day = (UsageWindowModel.from_ms - UsageWindowModel.from_ms % DAY_MS).label("day")
    query = select(day, *_sums()).where(*within(scope, UsageWindowModel), *_between(from_ms, to_ms)).group_by(day)
    return {int(row[0]) // DAY_MS: _quantities(tuple(row)[1:]) for row in await connection.execute(query)}


async def by_sandbox(connection: AsyncConnection, scope: Scope, from_ms: int, to_ms: int) -> dict[str, tuple[str, Quantities]]:
    """Sums by the id of a sandbox, with its name."""
    name = func.max(UsageWindowModel.sandbox_name)
    query = select(UsageWindowModel.sandbox_id, name, *_sums()).where(*within(scope, UsageWindowModel), *_between(from_ms, to_ms))
    rows = await connection.execute(query.group_by(UsageWindowModel.sandbox_id))
    return {row[0]: (row[1], _quantities(tuple(row)[2:])) for row in rows}


async def by_worker(connection: AsyncConnection, scope: Scope, from_ms: int, to_ms: int) -> dict[str, Quantities]:
    """Sums of the sandboxes of workers, by the id of a worker."""
    worker = UsageWindowModel.worker_id
    query = select(worker, *_sums()).where(*within(scope, UsageWindowModel), *_between(from_ms, to_ms), worker.is_not(None))
    return {str(row[0]): _quantities(tuple(row)[1:]) for row in await connection.execute(query.group_by(worker))}


def _between(from_ms: int, to_ms: int) -> list[ColumnElement[bool]]:
    return [UsageWindowModel.from_ms >= from_ms, UsageWindowModel.from_ms < to_ms]


async def tag_values(connection: AsyncConnection, sandbox_ids: Iterable[str], key: str) -> dict[str, str]:
    """The value of a tag by sandbox, for those that there still are and have it."""
    query = select(SandboxTagModel.sandbox_id, SandboxTagModel.value).where(
        SandboxTagModel.key == key, SandboxTagModel.sandbox_id.in_(list(sandbox_ids))
    )
    return {row[0]: row[1] for row in await connection.execute(query)}


async def stored(
    connection: AsyncConnection, scope: Scope, from_ms: int, to_ms: int, sandbox_id: str | None = None
) -> list[Stored]:
    """Snapshots that held something within a time."""
    ended = case((SnapshotModel.status == "deleted", SnapshotModel.updated_at), else_=None)
    query = select(
        SnapshotModel.sandbox_id,
        SnapshotModel.sandbox_name,
        func.coalesce(SnapshotModel.layer_bytes, 0) + SnapshotModel.memory_bytes,
        SnapshotModel.created_at,
        ended,
    ).where(*within(scope, SnapshotModel), SnapshotModel.created_at < to_ms)
    if sandbox_id is not None:
        query = query.where(SnapshotModel.sandbox_id == sandbox_id)
    rows = [Stored(*row) for row in await connection.execute(query)]
    return [row for row in rows if row.to_ms is None or row.to_ms > from_ms]

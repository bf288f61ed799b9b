"""Events of budgets: one for each thing that there is to tell, and how far its delivery is."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from sqlalchemy import ColumnElement, Row, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from hutch.control.records import BudgetEvent, Scope
from hutch.metering.notices import Notice
from hutch.storage.models import BudgetEventModel, BudgetModel, ProjectModel, SandboxModel, SessionModel, TeamModel
from hutch.storage.scoping import within

_TABLE = BudgetEventModel.__table__


def _event(row: Row[Any]) -> BudgetEvent:
    values = row._mapping
    return BudgetEvent(**{name: values[name] for name in BudgetEvent.__slots__})


def _data(notice: Notice) -> dict[str, Any]:
    threshold = notice.threshold
    kind, _, own = notice.key.partition(":")
    return {
        "type": threshold.kind.value,
        "budget": {"of": kind, "id": own, "period": notice.span.period.value, "span": notice.span.text},
        "limit": threshold.limit,
        "bound": threshold.bound,
        "percent": threshold.percent,
        "used": notice.used,
        "session_ids": notice.session_ids,
    }


async def apply(connection: AsyncConnection, notices: Iterable[Notice]) -> int:
    """Write events, those excepted that there are, and those of deleted teams and projects; how many were new. Idempotent."""
    wanted = {notice.id: notice for notice in notices}
    known = await connection.execute(select(BudgetEventModel.id).where(BudgetEventModel.id.in_(wanted)))
    for notice_id in known.scalars():
        del wanted[notice_id]
    owners = await _owners(connection, {notice.key for notice in wanted.values()})
    hooked = await _hooked(connection, owners)
    rows: list[dict[str, Any]] = []
    for notice in wanted.values():
        if notice.key in owners:
            team_id, project_id = owners[notice.key]
            period = notice.span.period.value
            due_at = notice.at_ms if (notice.key, period) in hooked else None
            own = {"id": notice.id, "team_id": team_id, "project_id": project_id, "key": notice.key, "period": period}
            rows.append(own | {"at": notice.at_ms, "data": _data(notice), "due_at": due_at})
    # Numbers of one team become visible in their order.
    teams = sorted({row["team_id"] for row in rows})
    await connection.execute(select(TeamModel.id).where(TeamModel.id.in_(teams)).order_by(TeamModel.id).with_for_update())
    if rows:
        await connection.execute(insert(BudgetEventModel), rows)
    return len(rows)


async def _owners(connection: AsyncConnection, keys: Collection[str]) -> dict[str, tuple[str, str | None]]:
    """Team and project of each key whose team and project are there."""
    named: dict[str, list[str]] = {"team": [], "project": [], "sandbox": []}
    for key in keys:
        kind, _, own = key.partition(":")
        named[kind].append(own)
    found: dict[str, tuple[str, str | None]] = {}
    teams = select(TeamModel.id).where(TeamModel.deleting_at.is_(None), TeamModel.id.in_(named["team"]))
    for team_id in (await connection.execute(teams)).scalars():
        found[f"team:{team_id}"] = (team_id, None)
    live = (ProjectModel.deleting_at.is_(None), TeamModel.deleting_at.is_(None))
    projects = select(ProjectModel.id, ProjectModel.team_id).join(TeamModel, TeamModel.id == ProjectModel.team_id).where(*live)
    for project_id, team_id in await connection.execute(projects.where(ProjectModel.id.in_(named["project"]))):
        found[f"project:{project_id}"] = (team_id, project_id)
    # A session's row outlives its sandbox's.
    for column, of in ((SessionModel.sandbox_id, SessionModel.project_id), (SandboxModel.id, SandboxModel.project_id)):
        boxes = (
            select(column, ProjectModel.id, ProjectModel.team_id)
            .join(ProjectModel, ProjectModel.id == of)
            .join(TeamModel, TeamModel.id == ProjectModel.team_id)
            .where(*live, column.in_(named["sandbox"]))
            .distinct()
        )
        for sandbox_id, project_id, team_id in await connection.execute(boxes):
            found[f"sandbox:{sandbox_id}"] = (team_id, project_id)
    return found


async def _hooked(connection: AsyncConnection, keys: Collection[str]) -> set[tuple[str, str]]:
    query = select(BudgetModel.key, BudgetModel.period).where(BudgetModel.key.in_(keys), BudgetModel.webhook.is_not(None))
    return {(row[0], row[1]) for row in await connection.execute(query)}


async def page(connection: AsyncConnection, scope: Scope, *, after: int, limit: int) -> list[BudgetEvent]:
    """Events with numbers above one, oldest first: of a project, or of a team with all its projects."""
    query = select(_TABLE).where(*within(scope, BudgetEventModel), BudgetEventModel.seq > after)
    return [_event(row) for row in await connection.execute(query.order_by(BudgetEventModel.seq).limit(limit))]


# -- delivery ----------------------------------------------------------------------------------------


async def take_due(
    connection: AsyncConnection, now: int, *, until: int, limit: int, of_team: int, without: Collection[str]
) -> list[BudgetEvent]:
    """Events that are to be sent now: at most `limit`, and `of_team` of each team, of some teams none. They are due again at
    `until`: whoever took them may die."""
    place = func.row_number().over(
        partition_by=BudgetEventModel.team_id, order_by=(BudgetEventModel.due_at, BudgetEventModel.seq)
    )
    ranked = select(BudgetEventModel.seq, place.label("place")).where(*_due(now, without)).subquery()
    chosen = BudgetEventModel.seq.in_(select(ranked.c.seq).where(ranked.c.place <= of_team))
    query = select(_TABLE).where(chosen).order_by(BudgetEventModel.due_at, BudgetEventModel.seq).limit(limit)
    events = [_event(row) for row in await connection.execute(query.with_for_update(skip_locked=True))]
    for event in events:
        values = {"attempts": event.attempts + 1, "due_at": until, "first_sent_at": event.first_sent_at or now}
        await connection.execute(update(BudgetEventModel).where(BudgetEventModel.seq == event.seq).values(values))
    return events


def _due(now: int | None, without: Collection[str]) -> list[ColumnElement[bool]]:
    due = BudgetEventModel.due_at.is_not(None) if now is None else BudgetEventModel.due_at <= now
    return [due, BudgetEventModel.team_id.not_in(without)]


async def next_due(connection: AsyncConnection, without: Collection[str]) -> int | None:
    """When something is to be sent next, of other teams than these."""
    due: int | None = await connection.scalar(select(func.min(BudgetEventModel.due_at)).where(*_due(None, without)))
    return due


async def delivered(connection: AsyncConnection, seq: int, now: int) -> None:
    """The webhook took it."""
    values = {"delivered_at": now, "due_at": None, "failure": None}
    await connection.execute(update(BudgetEventModel).where(BudgetEventModel.seq == seq).values(values))


async def failed(connection: AsyncConnection, seq: int, failure: str, due_at: int | None) -> None:
    """The webhook did not take it, for which reason, and when it is sent again: never for None."""
    values = {"failure": failure[:200], "due_at": due_at}
    await connection.execute(update(BudgetEventModel).where(BudgetEventModel.seq == seq).values(values))

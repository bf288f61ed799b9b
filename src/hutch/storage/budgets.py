"""Budgets of teams and projects, and those that sandboxes have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Row, delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from hutch.control.records import SnapshotStatus
from hutch.metering.budgets import Budget, Limits, Period, sandbox_key
from hutch.storage.models import BudgetModel, ProjectModel, SandboxModel, SnapshotModel, TeamModel
from hutch.storage.snapshots import HELD

_COLUMNS = (BudgetModel.key, BudgetModel.period, BudgetModel.limits, BudgetModel.notify_at, BudgetModel.soft, BudgetModel.set_at)


@dataclass(frozen=True, slots=True)
class Stored:
    """A budget, whose it is, and where its events go: sealed, with the row id `webhook_row`."""

    budget: Budget
    team_id: str
    webhook: bytes | None


def webhook_row(key: str, period: Period) -> str:
    """What a webhook is sealed for."""
    return f"{key} {period.value}"


def _budget(row: Row[Any]) -> Budget:
    values = row._mapping
    return Budget(
        key=values["key"],
        period=Period(values["period"]),
        limits=msgspec.convert(values["limits"], Limits),
        notify_at=values["notify_at"],
        soft=msgspec.convert(values["soft"], Limits),
        set_at=values["set_at"],
    )


async def put(connection: AsyncConnection, team_id: str, budget: Budget, webhook: bytes | None) -> None:
    """Set the budget of a key and period; one that says nothing is removed, with its webhook."""
    place = (BudgetModel.key == budget.key, BudgetModel.period == budget.period.value, BudgetModel.team_id == team_id)
    await connection.execute(delete(BudgetModel).where(*place))
    if budget.any:
        values = {
            "key": budget.key,
            "period": budget.period.value,
            "team_id": team_id,
            "limits": msgspec.to_builtins(budget.limits),
            "notify_at": budget.notify_at,
            "soft": msgspec.to_builtins(budget.soft),
            "set_at": budget.set_at,
            "webhook": webhook,
        }
        await connection.execute(insert(BudgetModel).values(values))


async def of_key(connection: AsyncConnection, key: str) -> dict[Period, Stored]:
    """The budgets of a team or project by their period."""
    query = select(*_COLUMNS, BudgetModel.team_id, BudgetModel.webhook).where(BudgetModel.key == key)
    rows = await connection.execute(query.order_by(BudgetModel.period))
    found = [Stored(_budget(row), row.team_id, row.webhook) for row in rows]
    return {stored.budget.period: stored for stored in found}


async def of_sandbox(connection: AsyncConnection, sandbox_id: str) -> Limits:
    """What a sandbox may use now; nothing is said of one that there is not."""
    found = (await connection.execute(select(SandboxModel.budget).where(SandboxModel.id == sandbox_id))).scalar()
    return msgspec.convert(found or {}, Limits)


async def every(connection: AsyncConnection) -> list[Budget]:
    """Those of teams and projects that are not being removed, and of all sandboxes."""
    gone = await _gone(connection)
    own = select(SandboxModel.id, SandboxModel.budget).where(SandboxModel.budget.is_not(None))
    rows = await connection.execute(own)
    return [
        *(stored.budget for stored in await of_all(connection) if not gone & {stored.team_id, _id(stored.budget)}),
        *(Budget(key=sandbox_key(row[0]), limits=msgspec.convert(row[1], Limits)) for row in rows),
    ]


def _id(budget: Budget) -> str:
    return budget.key.partition(":")[2]


async def of_all(connection: AsyncConnection) -> list[Stored]:
    """Those of all teams and projects."""
    query = select(*_COLUMNS, BudgetModel.team_id, BudgetModel.webhook).order_by(BudgetModel.key, BudgetModel.period)
    return [Stored(_budget(row), row.team_id, row.webhook) for row in await connection.execute(query)]


async def _gone(connection: AsyncConnection) -> set[str]:
    teams = await connection.execute(select(TeamModel.id).where(TeamModel.deleting_at.is_not(None)))
    projects = await connection.execute(select(ProjectModel.id).where(ProjectModel.deleting_at.is_not(None)))
    return {*teams.scalars(), *projects.scalars()}


async def is_there(connection: AsyncConnection, team_id: str, key: str, *, hold: bool = False) -> bool:
    """Whether a team, or the project of it that the key names, is there and not being removed. `hold` keeps it so until the
    transaction ends."""
    kind, _, own = key.partition(":")
    query = select(TeamModel.id).where(TeamModel.id == team_id, TeamModel.deleting_at.is_(None))
    if hold:
        query = query.with_for_update()
    found = (await connection.execute(query)).first() is not None
    if kind == "project" and found:
        query = select(ProjectModel.id).where(ProjectModel.id == own, ProjectModel.deleting_at.is_(None))
        found = (await connection.execute(query.with_for_update() if hold else query)).first() is not None
    return found


async def snapshot_bytes(connection: AsyncConnection, key: str) -> int:
    """What the snapshots of a team or project hold, without their images."""
    kind, _, own = key.partition(":")
    column = SnapshotModel.team_id if kind == "team" else SnapshotModel.project_id
    held = select(HELD).where(column == own, SnapshotModel.status == str(SnapshotStatus.CREATED))
    return int((await connection.execute(held)).scalar() or 0)

"""Removing a team or a project with all its rows.

What is removed is found in the schema: every table with a column `team_id` or `project_id`. A table that a later version adds is
removed with it, without being named here; one that holds a tenant's data in another way has to cascade from one that is
(`tests/storage/test_removals.py`).
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, Table, delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from hutch.control.records import Scope
from hutch.metering.budgets import project_key
from hutch.storage.models import (
    Base,
    BudgetModel,
    CredentialModel,
    DriveModel,
    MemberModel,
    ProjectModel,
    SandboxModel,
    SessionModel,
    SnapshotModel,
    TeamModel,
    TokenModel,
)
from hutch.storage.scoping import within

BATCH = 500


async def begin(connection: AsyncConnection, scope: Scope, now: int) -> None:
    """From now on it is there for nobody: nothing finds it, its slug is free, and no token or secret of it is left."""
    gone = {"deleting_at": now, "network_policy": None}
    projects: list[ColumnElement[bool]] = [ProjectModel.team_id == scope.team_id, ProjectModel.deleting_at.is_(None)]
    if scope.project_id is None:
        of_team = TeamModel.id == scope.team_id, TeamModel.deleting_at.is_(None)
        await connection.execute(update(TeamModel).where(*of_team).values(slug=TeamModel.id, **gone))
        await connection.execute(delete(MemberModel).where(MemberModel.team_id == scope.team_id))
    else:
        projects.append(ProjectModel.id == scope.project_id)
    ids = select(ProjectModel.id).where(*projects).scalar_subquery()
    await connection.execute(delete(CredentialModel).where(CredentialModel.project_id.in_(ids)))
    await connection.execute(delete(TokenModel).where(*within(scope, TokenModel)))
    await connection.execute(update(ProjectModel).where(*projects).values(slug=ProjectModel.id, **gone))


async def due(connection: AsyncConnection) -> list[Scope]:
    """What is being removed: teams, and projects of teams that stay."""
    teams = select(TeamModel.id).where(TeamModel.deleting_at.is_not(None))
    found = [Scope(team_id) for team_id in (await connection.execute(teams)).scalars()]
    projects = select(ProjectModel.team_id, ProjectModel.id).where(
        ProjectModel.deleting_at.is_not(None), ProjectModel.team_id.not_in(teams)
    )
    return found + [Scope(*row) for row in await connection.execute(projects)]


# -- what there is still ----------------------------------------------------------------------------


async def projects(connection: AsyncConnection, scope: Scope) -> list[str]:
    if scope.project_id is not None:
        return [scope.project_id]
    return list((await connection.execute(select(ProjectModel.id).where(ProjectModel.team_id == scope.team_id))).scalars())


async def sandboxes(connection: AsyncConnection, scope: Scope) -> list[tuple[str, str]]:
    """Some of its sandboxes: project and name."""
    query = select(SandboxModel.project_id, SandboxModel.name).where(*within(scope, SandboxModel))
    return [(row[0], row[1]) for row in await connection.execute(query.limit(BATCH))]


async def snapshots(connection: AsyncConnection, scope: Scope) -> list[str]:
    """Its snapshots whose files may still be there."""
    own = within(scope, SnapshotModel)
    query = select(SnapshotModel.id).where(*own, SnapshotModel.purged_at.is_(None))
    return list((await connection.execute(query)).scalars())


async def drives(connection: AsyncConnection, scope: Scope) -> list[str]:
    own = within(scope, DriveModel)
    return list((await connection.execute(select(DriveModel.id).where(*own))).scalars())


async def sessions(connection: AsyncConnection, scope: Scope, after: int) -> list[tuple[int, str, str]]:
    """Some of its sessions behind a number, of all times: number, session, sandbox."""
    own = within(scope, SessionModel)
    query = select(SessionModel.number, SessionModel.id, SessionModel.sandbox_id).where(*own, SessionModel.number > after)
    return [(row[0], row[1], row[2]) for row in await connection.execute(query.order_by(SessionModel.number).limit(BATCH))]


# -- the end ----------------------------------------------------------------------------------------


def tables() -> list[Table]:
    """Tables whose rows belong to a team or project, those first that others need least."""
    return [table for table in reversed(Base.metadata.sorted_tables) if {"team_id", "project_id"} & set(table.columns.keys())]


async def remove_rows(connection: AsyncConnection, scope: Scope) -> None:
    """Remove everything but the row that says that it is being removed."""
    for table in tables():
        if scope.project_id is None or "project_id" in table.columns:
            await connection.execute(delete(table).where(*within(scope, table)))
    await _remove_budgets(connection, scope)


async def _remove_budgets(connection: AsyncConnection, scope: Scope) -> None:
    """A project's budgets: they are found by their key, and a team's by its id."""
    if scope.project_id is not None:
        await connection.execute(delete(BudgetModel).where(BudgetModel.key == project_key(scope.project_id)))


async def finish(connection: AsyncConnection, scope: Scope) -> None:
    """Remove that too. Raises `IntegrityError` when something was added meanwhile."""
    if scope.project_id is None:
        await connection.execute(delete(TeamModel).where(TeamModel.id == scope.team_id))
    else:
        await _remove_budgets(connection, scope)
        await connection.execute(delete(ProjectModel).where(ProjectModel.id == scope.project_id))

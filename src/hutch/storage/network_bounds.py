"""Network policies of teams and projects, in request form. They hold no secrets, because they inject nothing; what they mean is
the engine's to say (`hutch.egress`)."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from hutch.control.records import Scope
from hutch.storage.models import ProjectModel, TeamModel


@dataclass(frozen=True, slots=True)
class Bounded:
    """Which projects of a team are bounded: all, or these."""

    all: bool
    projects: frozenset[str] = frozenset()

    def __contains__(self, project_id: str) -> bool:
        return self.all or project_id in self.projects


async def put(connection: AsyncConnection, scope: Scope, policy: str | None) -> None:
    """Set the policy of a team, or of the project where `scope` has one; None removes it."""
    if scope.project_id is None:
        await connection.execute(update(TeamModel).where(TeamModel.id == scope.team_id).values(network_policy=policy))
        return
    own = ProjectModel.team_id == scope.team_id, ProjectModel.id == scope.project_id
    await connection.execute(update(ProjectModel).where(*own).values(network_policy=policy))


async def find(connection: AsyncConnection, scope: Scope) -> tuple[str | None, str | None]:
    """The policies of the team and of the project (None where `scope` has no project)."""
    if scope.project_id is None:
        team = await connection.execute(select(TeamModel.network_policy).where(TeamModel.id == scope.team_id))
        return team.scalar_one_or_none(), None
    policies = select(TeamModel.network_policy, ProjectModel.network_policy)
    joined = policies.join(ProjectModel, ProjectModel.team_id == TeamModel.id)
    own = TeamModel.id == scope.team_id, ProjectModel.id == scope.project_id
    row = (await connection.execute(joined.where(*own))).first()
    return (row[0], row[1]) if row is not None else (None, None)


async def bounded(connection: AsyncConnection, team_id: str) -> Bounded:
    """Which of a team's projects have bounds, their own or the team's."""
    has_policy = select(TeamModel.id).where(TeamModel.id == team_id, TeamModel.network_policy.is_not(None))
    if (await connection.execute(has_policy)).first() is not None:
        return Bounded(all=True)
    query = select(ProjectModel.id).where(ProjectModel.team_id == team_id, ProjectModel.network_policy.is_not(None))
    return Bounded(all=False, projects=frozenset((await connection.execute(query)).scalars()))

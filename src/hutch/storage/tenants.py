"""Teams and projects. Both are found by id or slug."""

from __future__ import annotations

from sqlalchemy import insert, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from hutch import ids
from hutch.control.records import Project, Team
from hutch.storage.models import ProjectModel, TeamModel

_TEAM = select(TeamModel.id, TeamModel.slug, TeamModel.created_at)
_PROJECT = select(ProjectModel.id, ProjectModel.team_id, ProjectModel.slug, ProjectModel.created_at)


async def find_team(connection: AsyncConnection, id_or_slug: str) -> Team | None:
    query = _TEAM.where(or_(TeamModel.id == id_or_slug, TeamModel.slug == id_or_slug))
    row = (await connection.execute(query)).first()
    return Team(*row) if row is not None else None


async def find_project(connection: AsyncConnection, team_id: str, id_or_slug: str) -> Project | None:
    """A project of that team."""
    matches = or_(ProjectModel.id == id_or_slug, ProjectModel.slug == id_or_slug)
    row = (await connection.execute(_PROJECT.where(ProjectModel.team_id == team_id, matches))).first()
    return Project(*row) if row is not None else None


async def find_project_of_any_team(connection: AsyncConnection, project_id: str) -> Project | None:
    """A project by its id, whose team the caller has not named: for administrators only."""
    row = (await connection.execute(_PROJECT.where(ProjectModel.id == project_id))).first()
    return Project(*row) if row is not None else None


async def list_projects(connection: AsyncConnection, team_id: str) -> list[Project]:
    query = _PROJECT.where(ProjectModel.team_id == team_id).order_by(ProjectModel.created_at, ProjectModel.id)
    return [Project(*row) for row in await connection.execute(query)]


async def ensure_team(connection: AsyncConnection, slug: str, now: int) -> Team:
    """The team with that slug, made if there is none; a second caller at the same moment gets the same one."""
    found = await find_team(connection, slug)
    if found is not None:
        return found
    team = Team(ids.team_id(), slug, now)
    try:
        async with connection.begin_nested():
            await connection.execute(insert(TeamModel).values(id=team.id, slug=team.slug, created_at=team.created_at))
    except IntegrityError:
        found = await find_team(connection, slug)
        assert found is not None
        return found
    return team


async def ensure_project(connection: AsyncConnection, team_id: str, slug: str, now: int) -> Project:
    """The team's project with that slug, made if there is none."""
    found = await find_project(connection, team_id, slug)
    if found is not None:
        return found
    project = Project(ids.project_id(), team_id, slug, now)
    try:
        async with connection.begin_nested():
            values = {"id": project.id, "team_id": team_id, "slug": slug, "created_at": now}
            await connection.execute(insert(ProjectModel).values(**values))
    except IntegrityError:
        found = await find_project(connection, team_id, slug)
        assert found is not None
        return found
    return project

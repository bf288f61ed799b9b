"""Teams and projects. Both are found by id or slug."""

from __future__ import annotations

from sqlalchemy import Update, insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from hutch import ids
from hutch.control.records import Project, Scope, Team
from hutch.errors import ConflictError
from hutch.storage.models import ProjectModel, TeamModel
from hutch.storage.scoping import within

_TEAM = select(TeamModel.id, TeamModel.slug, TeamModel.created_at).where(TeamModel.deleting_at.is_(None))
_PROJECT = select(ProjectModel.id, ProjectModel.team_id, ProjectModel.slug, ProjectModel.created_at).where(
    ProjectModel.deleting_at.is_(None)
)


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


async def page_of_teams(connection: AsyncConnection, *, after: str, limit: int) -> list[Team]:
    """All teams behind an id, in the order of their ids: for administrators only."""
    query = _TEAM.where(TeamModel.id > after).order_by(TeamModel.id).limit(limit)
    return [Team(*row) for row in await connection.execute(query)]


async def page_of_projects(connection: AsyncConnection, scope: Scope, *, after: str, limit: int) -> list[Project]:
    """Projects of a scope behind an id, in the order of their ids."""
    query = _PROJECT.where(*within(Scope(scope.team_id), ProjectModel), ProjectModel.id > after)
    if scope.project_id is not None:
        query = query.where(ProjectModel.id == scope.project_id)
    return [Project(*row) for row in await connection.execute(query.order_by(ProjectModel.id).limit(limit))]


async def rename_team(connection: AsyncConnection, team_id: str, slug: str) -> Team | None:
    """The renamed team; None when there is none. Raises `ConflictError`."""
    live = TeamModel.id == team_id, TeamModel.deleting_at.is_(None)
    await _rename(connection, update(TeamModel).where(*live).values(slug=slug), "team", slug)
    return await find_team(connection, team_id)


async def rename_project(connection: AsyncConnection, team_id: str, project_id: str, slug: str) -> Project | None:
    """The renamed project; None when the team has none such. Raises `ConflictError`."""
    live = ProjectModel.team_id == team_id, ProjectModel.id == project_id, ProjectModel.deleting_at.is_(None)
    await _rename(connection, update(ProjectModel).where(*live).values(slug=slug), "project", slug)
    return await find_project(connection, team_id, project_id)


async def _rename(connection: AsyncConnection, renaming: Update, kind: str, slug: str) -> None:
    try:
        async with connection.begin_nested():
            await connection.execute(renaming)
    except IntegrityError as error:
        raise taken(kind, slug) from error


def taken(kind: str, slug: str) -> ConflictError:
    return ConflictError("conflict", f"There is a {kind} '{slug}' already. Choose another slug.")


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

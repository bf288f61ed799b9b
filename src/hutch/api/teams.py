"""Hutch's own: teams and their projects."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from hutch.api import paging
from hutch.api.body import read
from hutch.api.responses import JsonResponse
from hutch.api.routing import Parameters, PlainRoute, documented
from hutch.api.services import services_of
from hutch.control import answers, shapes
from hutch.control.names import check_slug
from hutch.control.permissions import Permission
from hutch.control.records import Scope
from hutch.control.requests import NameTeam
from hutch.errors import ConflictError, NotFoundError
from hutch.storage import audit_log, removals, tenants

router = APIRouter(route_class=PlainRoute, tags=["teams"])

PAGE: Parameters = {"after": ("`next` of the page before", {"type": "string"}), "limit": "1 to 100, default 20"}
_TEAM = {"teamId": "Id or slug of the project's team; default: the token's"}


@router.post(
    "/hutch/v1/teams",
    status_code=201,
    openapi_extra=documented(
        NameTeam, status=201, answer=answers.Team, errors=(409,), example={"slug": "acme"}, needs=Permission.TEAM_CREATE
    ),
)
async def create_team(request: Request) -> Response:
    """Make a team."""
    services = services_of(request)
    body = await read(request, NameTeam)
    slug = check_slug("slug", body.slug)
    async with services.database.write() as connection:
        if await tenants.find_team(connection, slug) is not None:
            raise tenants.taken("team", slug)
        team = await tenants.ensure_team(connection, slug, services.clock())
        actor = await services.auth.actor(request)
        await audit_log.append(connection, team.id, actor, "team.created", team.id, services.clock(), slug=slug)
    return JsonResponse(shapes.team(team), 201)


@router.get("/hutch/v1/teams", openapi_extra=documented(query=PAGE, answer=answers.TeamPage, needs=Permission.TEAM_READ))
async def list_teams(request: Request) -> Response:
    """The token's team; all teams for administrators."""
    services = services_of(request)
    principal = await services.auth.principal(request)
    after, limit = paging.text(request, "after", 64) or "", paging.limit(request)
    async with services.database.read() as connection:
        if principal.is_admin and not {"teamId", "slug"} & set(request.query_params):
            found = await tenants.page_of_teams(connection, after=after, limit=limit)
        else:
            found = [await services.auth.team(request, principal)]
    end = found[-1].id if len(found) == limit and principal.is_admin else None
    return JsonResponse(shapes.named_page("teams", [shapes.team(team) for team in found], end))


@router.get("/hutch/v1/teams/{team}", openapi_extra=documented(answer=answers.Team, needs=Permission.TEAM_READ))
async def get_team(request: Request, team: str) -> Response:
    """A team, by id or slug."""
    services = services_of(request)
    found = await services.auth.named_team(request, await services.auth.principal(request), team)
    return JsonResponse(shapes.team(found))


@router.patch(
    "/hutch/v1/teams/{team}",
    openapi_extra=documented(NameTeam, answer=answers.Team, errors=(409,), example={"slug": "acme"}, needs=Permission.TEAM_WRITE),
)
async def rename_team(request: Request, team: str) -> Response:
    """Give a team another slug. Its id stays."""
    services = services_of(request)
    found = await services.auth.named_team(request, await services.auth.principal(request), team)
    body = await read(request, NameTeam)
    slug = check_slug("slug", body.slug)
    async with services.database.write() as connection:
        renamed = await tenants.rename_team(connection, found.id, slug)
        if renamed is None:
            raise NotFoundError("not_found", f"Team '{team[:64]}' not found.")
        actor = await services.auth.actor(request)
        await audit_log.append(
            connection, found.id, actor, "team.renamed", found.id, services.clock(), slug=slug, before=found.slug
        )
    services.auth.forget_team(found.id)
    return JsonResponse(shapes.team(renamed))


@router.delete(
    "/hutch/v1/teams/{team}", status_code=204, openapi_extra=documented(status=204, errors=(409,), needs=Permission.TEAM_WRITE)
)
async def delete_team(request: Request, team: str) -> Response:
    """Delete a team and everything that it has. From the answer on it is there for nobody, and its tokens are refused; its
    sandboxes, snapshots, drives, images, logs and rows are removed behind that, until nothing of them is left."""
    services = services_of(request)
    found = await services.auth.named_team(request, await services.auth.principal(request), team)
    if found.id == services.default_team_id:
        raise ConflictError("conflict", "The server's own team can't be deleted.")
    actor, now = await services.auth.actor(request), services.clock()
    async with services.database.write() as connection:
        await removals.begin(connection, Scope(found.id), now)
        # Its own log goes with it.
        await audit_log.append(connection, services.default_team_id, actor, "team.deleted", found.id, now)
    services.auth.forget_team(found.id)
    services.deletions_due.set()
    return Response(status_code=204)


# -- projects ---------------------------------------------------------------------------------------


@router.post(
    "/hutch/v1/projects",
    status_code=201,
    openapi_extra=documented(
        NameTeam,
        query=_TEAM,
        status=201,
        answer=answers.TenantProject,
        errors=(409,),
        example={"slug": "web"},
        needs=Permission.PROJECT_WRITE,
    ),
)
async def create_project(request: Request) -> Response:
    """Make a project in a team."""
    services = services_of(request)
    team = await services.auth.team(request, await services.auth.principal(request))
    body = await read(request, NameTeam)
    slug = check_slug("slug", body.slug)
    async with services.database.write() as connection:
        if await tenants.find_project(connection, team.id, slug) is not None:
            raise tenants.taken("project", slug)
        project = await tenants.ensure_project(connection, team.id, slug, services.clock())
        actor = await services.auth.actor(request)
        await audit_log.append(connection, team.id, actor, "project.created", project.id, services.clock(), slug=slug)
    return JsonResponse(shapes.project(project), 201)


@router.get(
    "/hutch/v1/projects",
    openapi_extra=documented(query={**_TEAM, **PAGE}, answer=answers.ProjectPage, needs=Permission.TEAM_READ),
)
async def list_projects(request: Request) -> Response:
    """The projects of a team; to a token that is bound to one, only that."""
    services = services_of(request)
    principal = await services.auth.principal(request)
    team = await services.auth.team(request, principal)
    scope = Scope(team.id, None if principal.is_admin else principal.project_id)
    after, limit = paging.text(request, "after", 64) or "", paging.limit(request)
    async with services.database.read() as connection:
        found = await tenants.page_of_projects(connection, scope, after=after, limit=limit)
    end = found[-1].id if len(found) == limit else None
    return JsonResponse(shapes.named_page("projects", [shapes.project(project) for project in found], end))


@router.get(
    "/hutch/v1/projects/{project}",
    openapi_extra=documented(query=_TEAM, answer=answers.TenantProject, needs=Permission.TEAM_READ),
)
async def read_project(request: Request, project: str) -> Response:
    """A project, by id or slug."""
    services = services_of(request)
    found = await services.auth.named_project(request, await services.auth.principal(request), project)
    return JsonResponse(shapes.project(found))


@router.patch(
    "/hutch/v1/projects/{project}",
    openapi_extra=documented(
        NameTeam,
        query=_TEAM,
        answer=answers.TenantProject,
        errors=(409,),
        example={"slug": "web"},
        needs=Permission.PROJECT_WRITE,
    ),
)
async def rename_project(request: Request, project: str) -> Response:
    """Give a project another slug. Its id stays."""
    services = services_of(request)
    found = await services.auth.named_project(request, await services.auth.principal(request), project)
    body = await read(request, NameTeam)
    slug = check_slug("slug", body.slug)
    async with services.database.write() as connection:
        renamed = await tenants.rename_project(connection, found.team_id, found.id, slug)
        if renamed is None:
            raise NotFoundError("not_found", f"Project '{project[:64]}' not found in this team.")
        actor = await services.auth.actor(request)
        await audit_log.append(
            connection, found.team_id, actor, "project.renamed", found.id, services.clock(), slug=slug, before=found.slug
        )
    services.auth.forget_team(found.team_id)
    return JsonResponse(shapes.project(renamed))


@router.delete(
    "/hutch/v1/projects/{project}",
    status_code=204,
    openapi_extra=documented(query=_TEAM, status=204, errors=(409,), needs=Permission.PROJECT_WRITE),
)
async def remove_project(request: Request, project: str) -> Response:
    """Delete a project and everything that it has, as a team is deleted."""
    services = services_of(request)
    found = await services.auth.named_project(request, await services.auth.principal(request), project)
    if found.id == services.default_project_id:
        raise ConflictError("conflict", "The server's own project can't be deleted.")
    actor, now = await services.auth.actor(request), services.clock()
    async with services.database.write() as connection:
        await removals.begin(connection, Scope(found.team_id, found.id), now)
        await audit_log.append(connection, found.team_id, actor, "project.deleted", found.id, now)
    services.auth.forget_team(found.team_id)
    services.deletions_due.set()
    return Response(status_code=204)

"""Hutch's own: tokens. Owners manage those of their team, administrators everybody's."""

from __future__ import annotations

from fastapi import APIRouter
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.requests import Request
from starlette.responses import Response

from hutch.api.auth import Principal, forbidden, new_token
from hutch.api.body import read
from hutch.api.responses import JsonResponse
from hutch.api.routing import PlainRoute, documented
from hutch.api.services import Services, services_of
from hutch.control import shapes
from hutch.control.names import check_slug
from hutch.control.records import TokenRecord, TokenRole
from hutch.control.requests import CreateToken
from hutch.errors import BadRequestError, ForbiddenError, NotFoundError
from hutch.storage import tenants, tokens

router = APIRouter(route_class=PlainRoute, tags=["tokens"])


@router.post("/hutch/v1/tokens", openapi_extra=documented(CreateToken))
async def create_token(request: Request) -> Response:
    """Make a token. It is shown in this answer only."""
    services = services_of(request)
    principal = await _manager(request, services)
    body = await read(request, CreateToken)
    role = TokenRole(body.role)
    if role is TokenRole.ADMIN and not principal.is_admin:
        raise ForbiddenError("forbidden", "Only an administrator may make an administrator's token.")
    limits = services.settings.tokens
    ttl_s = body.ttl_s if body.ttl_s is not None else limits.default_ttl_s
    if ttl_s > limits.max_ttl_s:
        raise BadRequestError("bad_request", f"Invalid request: `ttl_s` should be <= {limits.max_ttl_s}.")
    async with services.database.write() as connection:
        team_id, project_id = await _tenant(connection, services, principal, body)
    now = services.clock()
    record = new_token(team_id, project_id, role, now=now, ttl_ms=ttl_s * 1000, name=body.name)
    token = await services.auth.issue(record)
    return JsonResponse({"token": token, **shapes.token(record)}, 201)


@router.get("/hutch/v1/tokens", openapi_extra=documented(query={"teamId": "Id or slug; administrators see all teams without it"}))
async def list_tokens(request: Request) -> Response:
    """Tokens that were issued, newest first, revoked ones included. The tokens themselves are not kept."""
    services = services_of(request)
    principal = await _manager(request, services)
    named = "teamId" in request.query_params or "slug" in request.query_params
    team_id = (await services.auth.team(request, principal)).id if named or not principal.is_admin else None
    async with services.database.read() as connection:
        records = await tokens.list_for_team(connection, team_id)
    visible = [record for record in records if _manages(principal, record)]
    return JsonResponse({"tokens": [shapes.token(record) for record in visible]})


@router.delete("/hutch/v1/tokens/{token_id}", openapi_extra=documented())
async def revoke_token(request: Request, token_id: str) -> Response:
    """Revoke a token: it is refused from now on. Idempotent. Everybody may revoke the token they use."""
    services = services_of(request)
    principal = await services.auth.principal(request)
    unknown = NotFoundError("not_found", f"Token '{token_id[:128]}' not found.")
    if "\0" in token_id or len(token_id) > 64:
        raise unknown
    async with services.database.read() as connection:
        record = await tokens.find(connection, token_id)
    if record is None or not (_manages(principal, record) or record.id == principal.token_id):
        raise unknown
    revoked = await services.auth.revoke(token_id, record.team_id)
    return JsonResponse(shapes.token(revoked or record))


async def _manager(request: Request, services: Services) -> Principal:
    """Who asks, if they may manage tokens."""
    principal = await services.auth.principal(request)
    if principal.role is TokenRole.MEMBER:
        raise ForbiddenError("forbidden", "This token may not manage tokens; that takes an owner's or an administrator's.")
    return principal


def _manages(principal: Principal, record: TokenRecord) -> bool:
    if principal.is_admin:
        return True
    if principal.role is not TokenRole.OWNER or record.team_id != principal.team_id or record.role is TokenRole.ADMIN:
        return False
    return principal.project_id in (None, record.project_id)


async def _tenant(
    connection: AsyncConnection, services: Services, principal: Principal, body: CreateToken
) -> tuple[str, str | None]:
    """Team and project of the new token. An administrator's request makes a team that is missing, an owner's a project.

    Without `team` and `project` they are the caller's; with a team alone the token is for all its projects.
    """
    now = services.clock()
    if body.team is None:
        team_id = principal.team_id
    else:
        team = await tenants.find_team(connection, body.team)
        if team is None and principal.is_admin:
            team = await tenants.ensure_team(connection, check_slug("team", body.team), now)
        if team is None or (team.id != principal.team_id and not principal.is_admin):
            raise forbidden("team", body.team)
        team_id = team.id
    if body.project is None:
        inherited = principal.project_id if team_id == principal.team_id else None
        return team_id, inherited if body.team is None or not principal.is_admin else None
    project = await tenants.find_project(connection, team_id, body.project)
    if project is None and (principal.is_admin or principal.project_id is None):
        project = await tenants.ensure_project(connection, team_id, check_slug("project", body.project), now)
    if project is None or (principal.project_id not in (None, project.id) and not principal.is_admin):
        raise forbidden("project", body.project)
    return team_id, project.id

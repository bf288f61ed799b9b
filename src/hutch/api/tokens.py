"""Hutch's own: tokens. Owners manage those of their team, administrators everybody's. Nobody makes one that may do more than the
token that asks."""

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
from hutch.control import answers, shapes
from hutch.control.audit_log import Actor
from hutch.control.names import check_slug
from hutch.control.permissions import Permission, TokenRole, granted
from hutch.control.records import TokenRecord
from hutch.control.requests import CreateToken
from hutch.errors import BadRequestError, ConflictError, ForbiddenError, NotFoundError
from hutch.storage import audit_log, members, tenants, tokens

router = APIRouter(route_class=PlainRoute, tags=["tokens"])


@router.post(
    "/hutch/v1/tokens",
    openapi_extra=documented(CreateToken, answer=answers.NewToken, status=201, errors=(404, 409), needs=Permission.TOKEN_WRITE),
)
async def create_token(request: Request) -> Response:
    """Make a token. It is shown in this answer only. `scopes` are those of its role's permissions that it has, all by default;
    with `member` it is a member's, and goes with them."""
    services = services_of(request)
    principal = await services.auth.principal(request)
    body = await read(request, CreateToken)
    if body.role == "admin" and not principal.is_admin:
        raise ForbiddenError("forbidden", "Only an administrator may make an administrator's token.")
    scopes = _scopes(body)
    limits = services.settings.tokens
    ttl_s = body.ttl_s if body.ttl_s is not None else limits.default_ttl_s
    if ttl_s > limits.max_ttl_s:
        raise BadRequestError("bad_request", f"Invalid request: `ttl_s` should be <= {limits.max_ttl_s}.")
    async with services.database.write() as connection:
        team_id, project_id = await _tenant(connection, services, principal, body, await services.auth.actor(request))
        member = await members.find(connection, team_id, body.member) if body.member is not None else None
        if body.member is not None and member is None:
            raise NotFoundError("not_found", f"Member '{body.member}' not found in this team.")
        if member is not None and member.disabled_at is not None:
            raise ConflictError("member_disabled", f"Member '{member.id}' is disabled and gets no tokens. Enable them first.")
        role = TokenRole(body.role) if body.role is not None else member.role if member is not None else TokenRole.MEMBER
        asked = granted(role, scopes, one_project=project_id is not None)
        if scopes is not None and not {*scopes} <= {*asked}:
            lacking = ", ".join(sorted({*scopes} - {*asked}))
            raise BadRequestError(
                "bad_request", f"Invalid request: `scopes` has what the role '{role}' does not have: {lacking}."
            )
        if not asked <= principal.permissions:
            raise ForbiddenError("forbidden", f"This token may not make one of the role '{role}', which may do more than itself.")
    now = services.clock()
    member_id = member.id if member is not None else None
    record = new_token(
        team_id, project_id, role, now=now, ttl_ms=ttl_s * 1000, name=body.name, member_id=member_id, scopes=scopes
    )
    token = await services.auth.issue(record, await services.auth.actor(request))
    return JsonResponse({"token": token, **shapes.token(record)}, 201)


def _scopes(body: CreateToken) -> tuple[str, ...] | None:
    if body.scopes is None:
        return None
    unknown = [scope for scope in body.scopes if scope not in set(Permission)]
    if unknown:
        known = ", ".join(Permission)
        raise BadRequestError("bad_request", f"Invalid request: there is no scope {unknown[0][:64]!r}. There are: {known}.")
    return tuple(sorted(set(body.scopes)))


@router.get(
    "/hutch/v1/tokens",
    openapi_extra=documented(
        query={"teamId": "Id or slug; administrators see all teams without it"},
        answer=answers.TokenList,
        needs=Permission.TOKEN_READ,
    ),
)
async def list_tokens(request: Request) -> Response:
    """Tokens that were issued, newest first, revoked ones included. The tokens themselves are not kept."""
    services = services_of(request)
    principal = await services.auth.principal(request)
    named = "teamId" in request.query_params or "slug" in request.query_params
    team_id = (await services.auth.team(request, principal)).id if named or not principal.is_admin else None
    async with services.database.read() as connection:
        records = await tokens.list_for_team(connection, team_id)
    visible = [record for record in records if manages(principal, record)]
    return JsonResponse({"tokens": [shapes.token(services.auth.uses.shown(record)) for record in visible]})


@router.delete("/hutch/v1/tokens/{token_id}", openapi_extra=documented(answer=answers.Token, needs=Permission.SELF))
async def revoke_token(request: Request, token_id: str) -> Response:
    """Revoke a token: it is refused from now on. Idempotent. Everybody may revoke the token they use."""
    services = services_of(request)
    principal = await services.auth.principal(request)
    unknown = NotFoundError("not_found", f"Token '{token_id[:128]}' not found.")
    if "\0" in token_id or len(token_id) > 64:
        raise unknown
    async with services.database.read() as connection:
        record = await tokens.find(connection, token_id)
    if record is None or not (manages(principal, record) or record.id == principal.token_id):
        raise unknown
    revoked = await services.auth.revoke(token_id, record.team_id, await services.auth.actor(request))
    return JsonResponse(shapes.token(revoked or record))


def manages(principal: Principal, record: TokenRecord) -> bool:
    """Whether a caller sees and revokes a token."""
    if principal.is_admin:
        return True
    if not principal.may(Permission.TOKEN_WRITE) or record.team_id != principal.team_id or record.role is TokenRole.ADMIN:
        return False
    return principal.project_id in (None, record.project_id)


async def _tenant(
    connection: AsyncConnection, services: Services, principal: Principal, body: CreateToken, actor: Actor
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
            await audit_log.append(connection, team.id, actor, "team.created", team.id, now, slug=team.slug)
        if team is None or (team.id != principal.team_id and not principal.is_admin):
            raise forbidden("team", body.team)
        team_id = team.id
    if body.project is None:
        inherited = principal.project_id if team_id == principal.team_id else None
        return team_id, inherited if body.team is None or not principal.is_admin else None
    project = await tenants.find_project(connection, team_id, body.project)
    if project is None and (principal.is_admin or principal.project_id is None):
        project = await tenants.ensure_project(connection, team_id, check_slug("project", body.project), now)
        await audit_log.append(connection, team_id, actor, "project.created", project.id, now, slug=project.slug)
    if project is None or (principal.project_id not in (None, project.id) and not principal.is_admin):
        raise forbidden("project", body.project)
    return team_id, project.id

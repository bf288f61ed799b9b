"""Hutch's own: members of a team, and the tokens that are theirs.

A member's token (`POST /hutch/v1/tokens` with `member`) may do what its role and scopes allow, as far as the member's role does
too; a change of that holds from the next request on, and with the member their tokens go.
"""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from hutch import ids
from hutch.api import paging
from hutch.api.body import read
from hutch.api.responses import JsonResponse
from hutch.api.routing import PlainRoute, documented
from hutch.api.services import services_of
from hutch.api.teams import PAGE
from hutch.control import answers, shapes
from hutch.control.permissions import Permission, TokenRole
from hutch.control.records import Member, Team
from hutch.control.requests import AddMember, ChangeMember
from hutch.errors import NotFoundError
from hutch.storage import audit_log
from hutch.storage import members as rows

router = APIRouter(route_class=PlainRoute, tags=["teams"])


@router.post(
    "/hutch/v1/teams/{team}/members",
    status_code=201,
    openapi_extra=documented(
        AddMember,
        status=201,
        answer=answers.Member,
        errors=(409,),
        example={"identity": "ada@example.com", "role": "developer"},
        needs=Permission.MEMBER_WRITE,
    ),
)
async def add_member(request: Request, team: str) -> Response:
    """Add a member to a team. `identity` is an address, or the subject of a provider."""
    services = services_of(request)
    found = await _team(request, team)
    body = await read(request, AddMember)
    now = services.clock()
    member = Member(ids.member_id(), found.id, body.identity, body.name, TokenRole(body.role), now)
    async with services.database.write() as connection:
        await rows.add(connection, member)
        actor = await services.auth.actor(request)
        await audit_log.append(
            connection, found.id, actor, "member.added", member.id, now, identity=member.identity, role=str(member.role)
        )
    return JsonResponse(shapes.member(member), 201)


@router.get(
    "/hutch/v1/teams/{team}/members",
    openapi_extra=documented(query=PAGE, answer=answers.MemberPage, needs=Permission.MEMBER_READ),
)
async def list_members(request: Request, team: str) -> Response:
    """The members of a team."""
    services = services_of(request)
    found = await _team(request, team)
    after, limit = paging.text(request, "after", 64) or "", paging.limit(request)
    async with services.database.read() as connection:
        members = await rows.page(connection, found.id, after=after, limit=limit)
    end = members[-1].id if len(members) == limit else None
    return JsonResponse(shapes.named_page("members", [shapes.member(member) for member in members], end))


@router.get(
    "/hutch/v1/teams/{team}/members/{member_id}",
    openapi_extra=documented(answer=answers.Member, needs=Permission.MEMBER_READ),
)
async def get_member(request: Request, team: str, member_id: str) -> Response:
    """One member of a team."""
    services = services_of(request)
    found = await _team(request, team)
    async with services.database.read() as connection:
        member = await rows.find(connection, found.id, _id(member_id))
    if member is None:
        raise _unknown(member_id)
    return JsonResponse(shapes.member(member))


@router.patch(
    "/hutch/v1/teams/{team}/members/{member_id}",
    openapi_extra=documented(
        ChangeMember, answer=answers.Member, errors=(409,), example={"role": "viewer"}, needs=Permission.MEMBER_WRITE
    ),
)
async def change_member(request: Request, team: str, member_id: str) -> Response:
    """Change a member's role or name, or disable them; their tokens follow at once. The last owner stays one. A disabled member's
    tokens are revoked for good, and they can't log in. What a provider's claims say of a role holds from the next login on."""
    services = services_of(request)
    found = await _team(request, team)
    body = await read(request, ChangeMember)
    role = TokenRole(body.role) if body.role is not None else None
    async with services.database.write() as connection:
        member = await rows.change(
            connection, found.id, _id(member_id), now=services.clock(), role=role, name=body.name, disabled=body.disabled
        )
        if member is None:
            raise _unknown(member_id)
        actor = await services.auth.actor(request)
        await audit_log.append(
            connection,
            found.id,
            actor,
            "member.changed",
            member.id,
            services.clock(),
            role=body.role,
            name=body.name,
            disabled=body.disabled,
        )
    services.auth.forget_member(member.id)
    return JsonResponse(shapes.member(member))


@router.delete(
    "/hutch/v1/teams/{team}/members/{member_id}",
    status_code=204,
    openapi_extra=documented(status=204, errors=(409,), needs=Permission.MEMBER_WRITE),
)
async def remove_member(request: Request, team: str, member_id: str) -> Response:
    """Remove a member and revoke their tokens. The last owner stays."""
    services = services_of(request)
    found = await _team(request, team)
    async with services.database.write() as connection:
        member = await rows.remove(connection, found.id, _id(member_id), services.clock())
        if member is None:
            raise _unknown(member_id)
        actor = await services.auth.actor(request)
        await audit_log.append(
            connection, found.id, actor, "member.removed", member.id, services.clock(), identity=member.identity
        )
    services.auth.forget_member(member.id)
    return Response(status_code=204)


async def _team(request: Request, reference: str) -> Team:
    auth = services_of(request).auth
    return await auth.named_team(request, await auth.principal(request), reference)


def _id(member_id: str) -> str:
    if "\0" in member_id or len(member_id) > 64:
        raise _unknown(member_id)
    return member_id


def _unknown(member_id: str) -> NotFoundError:
    return NotFoundError("not_found", f"Member '{member_id[:64]}' not found in this team.")

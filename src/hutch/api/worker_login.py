"""Logins of `ntn` (device flow): it shows a code, and asks until somebody has confirmed that code in a browser.

    ntn ─ init ─▶ code ─▶ page ─┬─ a token that may make tokens ───────────────────▶ confirmed
                                └─ the organisation's provider (`hutch.api.login`) ─▶ confirmed
    ntn ─ redeem, again and again ─▶ pending … ─▶ a token for one project's workers, once

Nobody who asks here is known yet, so every step counts for its address, as with other logins. The token that comes of it may do
no more than whoever confirmed it, and is made when `ntn` fetches it: what is not fetched in time never was.
"""

from __future__ import annotations

from urllib.parse import urlencode, urlsplit

from fastapi import APIRouter
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.requests import Request
from starlette.responses import Response

from hutch import ids
from hutch.api import login as people
from hutch.api import login_pages as pages
from hutch.api.auth import Principal, address_of, new_token, permissions_of
from hutch.api.body import read
from hutch.api.responses import JsonResponse
from hutch.api.routing import FORM, PlainRoute, WorkerRoute, documented
from hutch.api.services import Services, services_of
from hutch.api.worker_tokens import OF_WORKERS
from hutch.control import worker_wire as wire
from hutch.control.audit_log import Actor
from hutch.control.permissions import Permission, TokenRole, granted
from hutch.control.records import Login, Project, Team, TokenRecord
from hutch.errors import BadRequestError, ForbiddenError, UnauthorizedError
from hutch.login import secrets
from hutch.storage import logins, members, tenants, tokens

router = APIRouter(route_class=WorkerRoute, tags=["workers"])
page_router = APIRouter(route_class=PlainRoute, tags=["logins"])

PATH = "/hutch/v1/worker-login"
TOKEN_NAME = "ntn login"  # noqa: S105 - a name, not a secret


# -- for ntn -----------------------------------------------------------------------------------------


@router.post(
    "/v3/workersCliLoginInit",
    openapi_extra=documented(wire.Nothing, answer=wire.LoginBegun, errors=(400, 429), public=True),
)
async def workers_cli_login_init(request: Request) -> Response:
    """Begin a login of `ntn`. It shows `verificationCode` and opens `browserUrl`; the login is over after ten minutes."""
    services = services_of(request)
    services.auth.count_login(request)
    await read(request, wire.Nothing)
    now, session = services.clock(), secrets.new_secret()
    login = Login(
        id=ids.login_id(),
        created_at=now,
        expires_at=now + people.LIFE_MS,
        challenge="",
        address=address_of(request)[:64],
        user_code=secrets.new_user_code(),
        code_hash=secrets.digest(session),
    )
    async with services.database.write() as connection:
        await logins.begin(connection, login)
    shown = secrets.shown_code(login.user_code or "")
    url = f"{services.issuer}/api{PATH}?{urlencode({'user_code': shown})}"
    return JsonResponse({"sessionId": session, "verificationCode": shown, "browserUrl": url})


@router.post(
    "/v3/workersCliLoginRedeem",
    openapi_extra=documented(wire.RedeemLogin, answer=wire.LoginState, errors=(400, 403, 429), public=True),
)
async def workers_cli_login_redeem(request: Request) -> Response:
    """What became of a login: `pending`, `confirmed` with a token, which is given once, or `expired`, also for one that never
    was."""
    services = services_of(request)
    services.auth.count_unauthorized(request)
    body = await read(request, wire.RedeemLogin)
    now = services.clock()
    made: tuple[TokenRecord, Team, Project] | None = None
    async with services.database.write() as connection:
        login = await logins.of_code(connection, now, secrets.digest(body.sessionId))
        if login is None or not people.is_of_ntn(login):
            return JsonResponse({"status": "expired"})
        if login.decided_at is None:
            return JsonResponse({"status": "pending"})
        if not await logins.end(connection, login.id) or (login.member_id is None and login.token_id is None):
            # The login is gone with that, so this transaction has to be written.
            made = None
        else:
            made = await _granted(connection, services, login, now)
            if made is not None:
                actor = Actor(login.token_id or made[0].id, made[0].member_id or "", address_of(request))
                await services.auth.add(connection, made[0], actor)
    if made is None:
        return JsonResponse({"status": "expired"})
    record, team, project = made
    named = {"spaceId": project.id, "spaceName": f"{team.slug}/{project.slug}"}
    return JsonResponse({"status": "confirmed", "token": services.auth.sign(record), **named})


async def _granted(
    connection: AsyncConnection, services: Services, login: Login, now: int
) -> tuple[TokenRecord, Team, Project] | None:
    """The token of a login that was confirmed; None where who confirmed it, or the project, is not there any more."""
    limits = services.settings.tokens
    if login.token_id is not None:
        giver = await tokens.find(connection, login.token_id)
        if giver is None or giver.revoked_at is not None or giver.expires_at <= now:
            return None
        team_id, member_id, role, allowed = giver.team_id, giver.member_id, TokenRole.DEVELOPER, permissions_of(giver)
        ends = min(giver.expires_at, now + limits.default_ttl_s * 1000)
    else:
        found = [one for one in await members.of_identity(connection, login.identity or "") if one.id == login.member_id]
        if not found or found[0].disabled_at is not None:
            return None
        team_id, member_id, role = found[0].team_id, found[0].id, found[0].role
        allowed = granted(role, one_project=True)
        ends = now + min(services.settings.sso.session_ttl_s, limits.max_ttl_s) * 1000
    team = await tenants.find_team(connection, team_id)
    project = await tenants.find_project(connection, team_id, login.project or "")
    if team is None or project is None:
        return None
    scopes = tuple(sorted(granted(role, OF_WORKERS, one_project=True) & OF_WORKERS & allowed))
    record = new_token(team.id, project.id, role, now=now, ttl_ms=ends - now, name=TOKEN_NAME, member_id=member_id, scopes=scopes)
    return record, team, project


# -- for browsers ------------------------------------------------------------------------------------


@page_router.get(PATH, openapi_extra=people.for_browsers(query={"user_code": "The code that `ntn` shows"}))
@people.with_pages
async def open_worker_login(request: Request) -> Response:
    """The page where a login of `ntn` is confirmed. Nothing is until its form is sent."""
    services = services_of(request)
    services.auth.count_login(request)
    code = secrets.typed_code(people.single(request, "user_code"))
    shown = secrets.shown_code(code) if code is not None else ""
    elsewhere = None
    if services.provider is not None and code is not None:
        elsewhere = f"{urlsplit(services.issuer).path}/api{people.PATH}?{urlencode({'user_code': shown})}"
    return pages.confirm_ntn(_action(services), shown, elsewhere)


@page_router.post(PATH, openapi_extra=people.for_browsers(upload=FORM))
@people.with_pages
async def confirm_worker_login(request: Request) -> Response:
    """Somebody says yes or no with a token that may make tokens."""
    services = services_of(request)
    services.auth.count_login(request)
    origin = request.headers.get("origin")
    if origin is not None and origin != people.origin_of(services):
        raise ForbiddenError("login_refused", "This came from another site.")
    form = await people.form_of(request)
    code = secrets.typed_code(form.get("user_code", ""))
    if code is None:
        raise BadRequestError("login_not_valid", "That is no code of a login: they have eight letters. Look at your terminal.")
    yes = form.get("answer") == "yes"
    principal = await _who(services, form.get("token", ""))
    async with services.database.write() as connection:
        project = await _project(connection, principal, form.get("project", "").strip())
        token_id = principal.token_id if yes else None
        named = project.id if yes else None
        done = await logins.decided_with_token(connection, services.clock(), code, token_id=token_id, project=named)
    if done is None:
        raise BadRequestError("login_not_valid", "No login waits with this code: it is over, or was used. Begin again.")
    return pages.done() if yes else pages.cancelled()


async def _who(services: Services, token: str) -> Principal:
    """Whose token that is. Raises `ForbiddenError` for one that is none, or may make none."""
    try:
        principal = await services.auth.verify(token.strip())
    except UnauthorizedError as error:
        raise ForbiddenError("login_refused", "This token is not valid: unknown, expired or revoked.") from error
    if not principal.may(Permission.TOKEN_WRITE):
        raise ForbiddenError(
            "login_refused", f"This token may make no other: it lacks the permission '{Permission.TOKEN_WRITE}'."
        )
    return principal


async def _project(connection: AsyncConnection, principal: Principal, named: str) -> Project:
    """The project that somebody named, or their token's, or where to begin. Raises `ForbiddenError`."""
    team = await tenants.find_team(connection, principal.team_id)
    wanted = named or principal.project_id
    if team is None or "\0" in named:
        raise ForbiddenError("forbidden", "There is no such project.")
    project, _ = await people.project_of(connection, team, wanted)
    if project is None:
        raise ForbiddenError("forbidden", f"The team '{team.slug}' has several projects. Say which one.")
    if principal.project_id not in (None, project.id):
        raise ForbiddenError("forbidden", f"This token is for another project than '{named[:64]}'.")
    return project


def _action(services: Services) -> str:
    return f"{urlsplit(services.issuer).path}/api{PATH}"

"""Hutch's own: logins of people by an OpenID provider (`hutch.login`), for command lines.

Nobody who asks here is known yet, so every step counts for its address (`limits.logins_per_minute`) and holds once. What a
browser asks for is answered with pages, also where it is refused; what a command line asks for is answered as everything else.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from fastapi import APIRouter
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.requests import Request
from starlette.responses import Response

from hutch import ids
from hutch.api import login_pages as pages
from hutch.api.auth import address_of, new_token
from hutch.api.body import read, read_body
from hutch.api.login_pages import HTML, Choice
from hutch.api.responses import JsonResponse
from hutch.api.routing import FORM, JSON, Answer, Documented, PlainRoute, documented
from hutch.api.services import Services, services_of
from hutch.control import answers, shapes
from hutch.control.audit_log import REFUSED, SERVER, Actor
from hutch.control.permissions import TokenRole
from hutch.control.records import Login, Member, Project, Team
from hutch.control.requests import BeginLogin, EndLogin
from hutch.errors import BadRequestError, ConflictError, ForbiddenError, HutchError, NotFoundError
from hutch.login import secrets
from hutch.login.provider import MAX_CODE_LENGTH, Provider
from hutch.login.roles import Person
from hutch.login.secrets import BrowserSecrets
from hutch.storage import audit_log, logins, members, tenants

router = APIRouter(route_class=PlainRoute, tags=["logins"])
log = logging.getLogger(__name__)

PATH = "/hutch/v1/login"
LIFE_MS = 10 * 60_000
INTERVAL_S = 3
MAX_FORM_BYTES = 8192
MOST_PROJECTS = 200
"""Of a team, in a page that asks for one."""
TOKEN_NAME = "hutch login"  # noqa: S105 - a name, not a secret
_REFUSALS = (400, 403, 404, 429, 503)

Endpoint = Callable[[Request], Awaitable[Response]]


# -- for command lines ------------------------------------------------------------------------------


@router.post(
    PATH,
    status_code=201,
    openapi_extra=documented(
        BeginLogin,
        status=201,
        answer=answers.BegunLogin,
        errors=(400, 404, 429),
        example={"challenge": "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"},
        public=True,
    ),
)
async def begin_login(request: Request) -> Response:
    """Begin a login. A browser goes to `url`. With `port` and `state` it is sent to that port of its own machine in the end, with
    `code` and `state`; without, the answer has a code to ask with, and one to read."""
    services = services_of(request)
    services.auth.count_login(request)
    body = await read(request, BeginLogin)
    _provider(services)
    now = services.clock()
    code = secrets.new_secret() if body.port is None else None
    login = Login(
        id=ids.login_id(),
        created_at=now,
        expires_at=now + LIFE_MS,
        challenge=body.challenge,
        address=address_of(request)[:64],
        port=body.port,
        client_state=body.state,
        team=body.team,
        project=body.project,
        user_code=secrets.new_user_code() if code is not None else None,
        code_hash=secrets.digest(code) if code is not None else None,
    )
    async with services.database.write() as connection:
        await logins.begin(connection, login)
    place = _place(services)
    if code is None or login.user_code is None:
        return JsonResponse({"url": f"{place}?{urlencode({'login': login.id})}", "expires_at": login.expires_at}, 201)
    shown = secrets.shown_code(login.user_code)
    answer = {"url": place, "expires_at": login.expires_at, "user_code": shown, "code": code, "interval_s": INTERVAL_S}
    return JsonResponse(answer, 201)


@router.post(
    f"{PATH}/token",
    openapi_extra=documented(
        EndLogin,
        answer=answers.EndedLogin,
        more=[Answer(202, JSON, answers.PendingLogin)],
        errors=(400, 403, 404, 429),
        public=True,
    ),
)
async def end_login(request: Request) -> Response:
    """The token of a login: for the code that its browser brought, or that it was begun with, and the verifier of its challenge.
    202 while nobody has decided. A code holds once, also with a verifier that does not fit."""
    services = services_of(request)
    services.auth.count_unauthorized(request)
    body = await read(request, EndLogin)
    provider = _provider(services)
    now = services.clock()
    refused: HutchError | None = None
    async with services.database.write() as connection:
        login = await logins.of_code(connection, now, secrets.digest(body.code))
        if login is None:
            raise _over()
        fits = secrets.fits(body.verifier, login.challenge)
        if fits and login.decided_at is None:
            return JsonResponse({"status": "pending", "interval_s": INTERVAL_S}, 202)
        if not await logins.end(connection, login.id) or not fits:
            # The login is gone with that, so this transaction has to be written.
            refused = _over()
        elif login.member_id is None:
            refused = ForbiddenError("login_denied", "The login was cancelled in the browser.")
        else:
            try:
                ended = await _token(connection, services, provider, login, now, address_of(request))
            except HutchError as error:
                refused = error
    if refused is not None:
        raise refused
    record, shape = ended
    return JsonResponse({"token": services.auth.sign(record), **shape})


async def _token(
    connection: AsyncConnection, services: Services, provider: Provider, login: Login, now: int, address: str
) -> tuple[Any, dict[str, Any]]:
    """The record of a login's token, and what is answered besides it. Raises `ForbiddenError`."""
    found = [one for one in await members.of_identity(connection, login.identity or "") if one.id == login.member_id]
    team = await tenants.find_team(connection, found[0].team_id) if found else None
    if team is None or found[0].disabled_at is not None:
        raise ForbiddenError("login_refused", "You are no member of that team any more, or were disabled.")
    member = found[0]
    project, bound = await project_of(connection, team, login.project)
    record = new_token(
        team.id,
        project.id if project is not None and bound else None,
        member.role,
        now=now,
        ttl_ms=min(provider.settings.session_ttl_s, services.settings.tokens.max_ttl_s) * 1000,
        name=TOKEN_NAME,
        member_id=member.id,
    )
    actor = Actor(record.id, member.id, address)
    await services.auth.add(connection, record, actor)
    await audit_log.append(
        connection, team.id, actor, "member.logged_in", member.id, now, token=record.id, identity=member.identity
    )
    shape: dict[str, Any] = {**shapes.token(record), "team": {"id": team.id, "slug": team.slug}, "identity": member.identity}
    if project is not None:
        shape["project"] = {"id": project.id, "slug": project.slug}
    if member.email:
        shape["email"] = member.email
    shape["ingress_url"] = services.settings.ingress_url()
    return record, shape


async def project_of(connection: AsyncConnection, team: Team, named: str | None) -> tuple[Project | None, bool]:
    """The project of a login, and whether its token is for that one only. Without a name it is where to begin: the team's only
    one, or the one called `default`."""
    if named is not None:
        project = await tenants.find_project(connection, team.id, named)
        if project is None:
            raise ForbiddenError("forbidden", f"There is no project '{named}' in the team '{team.slug}'.")
        return project, True
    there = await tenants.list_projects(connection, team.id)
    if len(there) == 1:
        return there[0], False
    return next((project for project in there if project.slug == "default"), None), False


# -- for browsers -----------------------------------------------------------------------------------


def for_browsers(**told: Any) -> Documented:
    """What answers with pages."""
    more = [Answer(status, HTML, None) for status in (303, *_REFUSALS)]
    return documented(content=HTML, more=more, public=True, **told)


def with_pages(endpoint: Endpoint) -> Endpoint:
    """An endpoint whose errors are pages, too."""

    @functools.wraps(endpoint)
    async def answering(request: Request) -> Response:
        try:
            return await endpoint(request)
        except HutchError as error:
            if error.status not in _REFUSALS:
                raise
            return pages.failed(error)

    return answering


@router.get(
    PATH,
    openapi_extra=for_browsers(query={"login": "A login's id, as its `url` has it", "user_code": "The code that is to be read"}),
)
@with_pages
async def open_login(request: Request) -> Response:
    """A browser begins its part of a login: on to the provider. Without a login it is asked for a code."""
    services = services_of(request)
    provider = _provider(services)
    services.auth.count_login(request)
    login_id, typed = single(request, "login"), single(request, "user_code")
    if not login_id and not typed:
        return pages.ask_for_code(_path(services))
    user_code = secrets.typed_code(typed) or ""
    if not login_id and not user_code:
        raise BadRequestError("login_not_valid", "That is no code of a login: they have eight letters. Look at your terminal.")
    secret = secrets.new_secret()
    own = BrowserSecrets.of(secret)
    # Asked first: a login is not used up where the provider is away.
    there = await provider.address(own, _redirect_uri(services))
    async with services.database.write() as connection:
        login = await logins.opened(connection, services.clock(), own.digest, id=login_id, user_code=user_code)
    if login is None:
        raise _over()
    response = _redirect(there) if login_id else pages.onward(there)
    _set_cookie(services, response, secret)
    return response


@router.get(
    f"{PATH}/callback",
    openapi_extra=for_browsers(
        query={
            "code": "The provider's code",
            "state": "What it was sent",
            "iss": "The provider (RFC 9207)",
            "error": "Why there is no code",
        }
    ),
)
@with_pages
async def login_callback(request: Request) -> Response:
    """The provider sends a browser back: who came is known then, and their roles follow what it says of them."""
    services = services_of(request)
    provider = _provider(services)
    services.auth.count_login(request)
    own = _own(services, request)
    state, code = single(request, "state"), single(request, "code")
    if not state or not secrets.same(state, own.state):
        raise BadRequestError("login_not_valid", "This page belongs to another login than yours. Begin again.")
    async with services.database.write() as connection:
        login = await logins.returned(connection, services.clock(), own.digest)
    if login is None:
        raise _over()
    await provider.check_sender(single(request, "iss") or None)
    if not code or len(code) > MAX_CODE_LENGTH:
        log.warning("the provider sent a browser back without a code: %.100r", single(request, "error"))
        raise ForbiddenError("login_denied", "The provider did not log you in. Begin again.")
    person = await provider.person(code, own, _redirect_uri(services))
    known = await _admitted(services, person, address_of(request))
    choices = await _choices(services, known, login.team, by_project=is_of_ntn(login))
    async with services.database.write() as connection:
        if await logins.identified(connection, services.clock(), own.digest, person.identity) is None:
            raise _over()
    code_shown = secrets.shown_code(login.user_code) if login.user_code is not None else None
    to = () if login.port is None else (f"http://127.0.0.1:{login.port}",)
    named = " · ".join(dict.fromkeys(text for text in (person.name, person.email) if text)) or person.subject
    return pages.confirm(f"{_path(services)}/confirm", own.form, named, choices, code=code_shown, address=login.address, to=to)


@router.post(f"{PATH}/confirm", openapi_extra=for_browsers(upload=FORM))
@with_pages
async def confirm_login(request: Request) -> Response:
    """Somebody who is known says yes or no. Back to the port where the command line waits, with a code; or to nowhere."""
    services = services_of(request)
    _provider(services)
    services.auth.count_login(request)
    own = _own(services, request)
    origin = request.headers.get("origin")
    if origin is not None and origin != origin_of(services):
        raise ForbiddenError("login_refused", "This came from another site.")
    form = await form_of(request)
    if not secrets.same(form.get("form", ""), own.form):
        raise ForbiddenError("login_refused", "This did not come from the page of this login. Begin again.")
    now, yes = services.clock(), form.get("answer") == "yes"
    code = secrets.new_secret()
    async with services.database.write() as connection:
        login = await logins.of_browser(connection, now, own.digest)
        if login is None or login.identity is None:
            raise _over()
        member_id, project = await _chosen(connection, login, form.get("member", "")) if yes else (None, None)
        made = secrets.digest(code) if login.port is not None else None
        decided = await logins.decided(connection, now, own.digest, member_id=member_id, code_hash=made, project=project)
        if decided is None:
            raise _over()
        if not yes and login.port is not None:
            await logins.end(connection, login.id)
    if login.port is not None:
        result = {"code": code} if yes else {"error": "login_denied"}
        query = urlencode({**result, "state": login.client_state or ""})
        response = _redirect(f"http://127.0.0.1:{login.port}/?{query}")
    else:
        response = pages.done() if yes else pages.cancelled()
    _set_cookie(services, response, None)
    return response


async def _chosen(connection: AsyncConnection, login: Login, text: str) -> tuple[str, str | None]:
    """The member of a choice and, for `ntn`, the project. Raises `ForbiddenError` for what is not theirs."""
    named, _, project_id = text.partition(" ")
    member = next((one for one in await members.of_identity(connection, login.identity or "") if one.id == named), None)
    if member is None or (project_id and not is_of_ntn(login)):
        raise ForbiddenError("login_refused", "You are no member of that team.")
    if not is_of_ntn(login):
        return member.id, None
    project = await tenants.find_project(connection, member.team_id, project_id)
    if project is None:
        raise ForbiddenError("login_refused", "That project is not there any more.")
    return member.id, project.id


@router.get(f"{PATH}/done", openapi_extra=for_browsers(query={"failed": "Anything, where a command line could not go on"}))
@with_pages
async def login_done(request: Request) -> Response:
    """Where a command line sends the browser when it has its token."""
    return pages.not_taken() if single(request, "failed") else pages.done()


# -- who came ---------------------------------------------------------------------------------------


async def _admitted(services: Services, person: Person, address: str) -> list[Member]:
    """Make the memberships of a person what the provider's claims say; those that they have now, also disabled ones."""
    try:
        changed, found = await _synchronise(services, person, address)
    except ConflictError:
        # They logged in twice at once, and the other one was first.
        changed, found = await _synchronise(services, person, address)
    for member_id in changed:
        services.auth.forget_member(member_id)
    return found


async def _synchronise(services: Services, person: Person, address: str) -> tuple[list[str], list[Member]]:
    now, changed = services.clock(), []
    async with services.database.write() as connection:
        wanted: dict[str, TokenRole] = {}
        for reference, role in person.roles.items():
            team = await tenants.find_team(connection, reference)
            if team is None:
                log.warning("sso.roles names the team %r, which does not exist", reference)
            else:
                wanted.setdefault(team.id, role)
        known = {member.team_id: member for member in await members.of_identity(connection, person.identity)}
        for team_id, role in wanted.items():
            if team_id not in known:
                made = Member(ids.member_id(), team_id, person.identity, person.name, role, now, person.email, True, now)
                await members.add(connection, made)
                await _note(connection, made, "member.added", now, address, role=str(role))
        for member in known.values():
            role = wanted.get(member.team_id, member.role)
            if member.by_provider and member.team_id not in wanted:
                await members.dismissed(connection, member, now)
                await _note(connection, member, "member.removed", now, address)
                changed.append(member.id)
                continue
            by_provider = member.team_id in wanted
            values = {"role": str(role), "by_provider": by_provider, "email": person.email, "last_login_at": now}
            if person.name and (by_provider or not member.name):
                values["name"] = person.name
            await members.logged_in(connection, member, values)
            if role is not member.role:
                await _note(connection, member, "member.changed", now, address, role=str(role))
                changed.append(member.id)
            if member.disabled_at is not None:
                await _note(connection, member, "member.logged_in", now, address, outcome=REFUSED)
        found = await members.of_identity(connection, person.identity)
    # In the order of the rules, so that whoever writes them says which team is proposed.
    place = {team_id: number for number, team_id in enumerate(wanted)}
    return changed, sorted(found, key=lambda member: place.get(member.team_id, len(place)))


async def _note(connection: AsyncConnection, member: Member, action: str, now: int, address: str, **detail: Any) -> None:
    actor = Actor(SERVER, member.id, address)
    await audit_log.append(
        connection, member.team_id, actor, action, member.id, now, identity=member.identity, by="provider", **detail
    )


async def _choices(services: Services, known: list[Member], asked: str | None, *, by_project: bool) -> list[Choice]:
    """The teams that somebody can log in to, of which the login may have named one, or their projects. Raises `ForbiddenError`
    without one."""
    choices: list[Choice] = []
    async with services.database.read() as connection:
        for member in known:
            team = await tenants.find_team(connection, member.team_id)
            if team is None or member.disabled_at is not None or asked not in (None, team.id, team.slug):
                continue
            if not by_project:
                choices.append(Choice(member.id, team.slug, str(member.role)))
                continue
            projects = (await tenants.list_projects(connection, team.id))[:MOST_PROJECTS]
            choices.extend(
                Choice(f"{member.id} {project.id}", f"{team.slug}/{project.slug}", str(member.role)) for project in projects
            )
    if choices:
        return choices
    if any(member.disabled_at is not None for member in known):
        why = "You were disabled here. Ask an owner of your team."
    elif known:
        why = f"You are no member of the team '{asked}'."
    else:
        why = "The provider knows you, but you are a member of no team here. Ask whoever runs this server."
    log.warning("a login was refused: %s", why)
    raise ForbiddenError("login_refused", why)


# -- small parts ------------------------------------------------------------------------------------


def _provider(services: Services) -> Provider:
    if services.provider is None:
        raise NotFoundError("sso_not_configured", "Nobody can log in here: this server has no provider (`sso.issuer`).")
    return services.provider


def is_of_ntn(login: Login) -> bool:
    """Whether `hutch.api.worker_login` began it."""
    return not login.challenge


def _over() -> BadRequestError:
    return BadRequestError("login_not_valid", "This login is over, was used, or is another browser's. Begin again.")


def _place(services: Services) -> str:
    """Where browsers log in. It is made of the server's own URL and of nothing that a request says."""
    return f"{services.issuer}/api{PATH}"


def _path(services: Services) -> str:
    return urlsplit(_place(services)).path


def origin_of(services: Services) -> str:
    parts = urlsplit(services.issuer)
    return f"{parts.scheme}://{parts.netloc}"


def _redirect_uri(services: Services) -> str:
    return f"{_place(services)}/callback"


def single(request: Request, name: str) -> str:
    """A query parameter; empty where there is none. Raises `BadRequestError` for one that is there twice."""
    given = request.query_params.getlist(name)
    if len(given) > 1:
        raise BadRequestError("login_not_valid", f"`{name}` is there more than once.")
    return given[0] if given else ""


def _redirect(url: str) -> Response:
    return Response(status_code=303, headers={"location": url, **pages.PROTECTED}, media_type=HTML)


def _cookie(services: Services) -> tuple[str, str]:
    """Name and attributes. `__Host-`: no other site, also none below the same domain, can set it."""
    if services.issuer.startswith("https:"):
        return "__Host-hutch-login", "Path=/; HttpOnly; SameSite=Lax; Secure"
    return "hutch-login", f"Path={_path(services)}; HttpOnly; SameSite=Lax"


def _set_cookie(services: Services, response: Response, secret: str | None) -> None:
    name, attributes = _cookie(services)
    age = LIFE_MS // 1000 if secret is not None else 0
    response.headers["set-cookie"] = f"{name}={secret or ''}; Max-Age={age}; {attributes}"


def _own(services: Services, request: Request) -> BrowserSecrets:
    """What this browser has of its login. Raises `BadRequestError`."""
    secret = request.cookies.get(_cookie(services)[0], "")
    if secrets.SECRET.fullmatch(secret) is None:
        raise BadRequestError(
            "login_not_valid", "This browser has begun no login here, or under another address of this server. Begin again."
        )
    return BrowserSecrets.of(secret)


async def form_of(request: Request) -> dict[str, str]:
    """The fields of a form. Raises `BadRequestError`, `PayloadTooLargeError`."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != FORM:
        raise BadRequestError("login_not_valid", "This is no form of this server's.")
    raw = await read_body(request, MAX_FORM_BYTES)
    try:
        fields = parse_qs(raw.decode(), keep_blank_values=True, strict_parsing=True, max_num_fields=8) if raw else {}
    except ValueError as error:
        raise BadRequestError("login_not_valid", "This is no form of this server's.") from error
    return {name: values[0] for name, values in fields.items() if len(values) == 1}

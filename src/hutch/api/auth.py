"""Tokens, and what their bearer may touch.

A token is a JWT signed with Ed25519; its claims `owner_id` (team), `project_id`, `scope` (role), `jti`, `iat` and `exp` are what
the vendor's clients look for in theirs. A token counts when its signature, expiry and row in the database agree; verified
tokens are remembered for a minute, and a revocation forgets them at once.

Answers are 401 for a token that does not verify, whatever is wrong with it; 403 for what its role or scopes do not allow
(`hutch.control.permissions`), and for a team or project that it may not name; 404 for ids of things that belong to somebody else.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.requests import HTTPConnection, Request

from hutch import ids
from hutch.api.rates import RequestRates
from hutch.api.token_uses import TokenUses
from hutch.clock import Clock, now_ms
from hutch.control.audit_log import REFUSED, Actor
from hutch.control.permissions import ADMINISTRATION, Permission, TokenRole, granted, refusal
from hutch.control.records import Project, Scope, Team, TokenRecord
from hutch.errors import BadRequestError, ForbiddenError, InternalError, NotFoundError, UnauthorizedError
from hutch.storage import audit_log, sessions, tenants, tokens
from hutch.storage.database import Database
from hutch.storage.sealing import read_or_create

ISSUER = "hutch"
ALGORITHM = "EdDSA"
MAX_TOKEN_LENGTH = 4096
RECHECK_MS = 60_000
CACHE_ENTRIES = 8192
_ADMITTED = "hutch.principal"

_SESSION_ID = re.compile(r"sbx_[A-Za-z0-9]{1,64}")
_REFERENCE = re.compile(r"[A-Za-z0-9_-]{1,64}")

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Recent(Generic[K, V]):
    """A map that forgets what was used longest ago."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._items: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K) -> V | None:
        item = self._items.get(key)
        if item is not None:
            self._items.move_to_end(key)
        return item

    def put(self, key: K, value: V) -> None:
        self._items[key] = value
        self._items.move_to_end(key)
        if len(self._items) > self._limit:
            self._items.popitem(last=False)

    def drop(self, predicate: Any) -> None:
        for key in [key for key, value in self._items.items() if predicate(value)]:
            del self._items[key]


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks. `project_id` None: every project of the team."""

    token_id: str
    team_id: str
    project_id: str | None
    role: TokenRole
    permissions: frozenset[Permission]
    member_id: str | None = None

    @property
    def is_admin(self) -> bool:
        return self.role is TokenRole.ADMIN

    def may(self, permission: Permission) -> bool:
        return permission in self.permissions

    def require(self, permission: Permission) -> None:
        """Raises `ForbiddenError`."""
        if permission not in self.permissions:
            raise ForbiddenError("forbidden", refusal(permission, self.role, one_project=self.project_id is not None))


@dataclass(frozen=True, slots=True)
class SessionOwner:
    """Where a session belongs; this never changes."""

    session_id: str
    team_id: str
    project_id: str

    @property
    def scope(self) -> Scope:
        return Scope(self.team_id, self.project_id)


@dataclass(slots=True)
class _Verified:
    principal: Principal
    expires_ms: int
    checked_ms: int


class TokenSigner:
    """Makes and checks signatures with the key in a file (PEM, mode 0600), which is made on first use."""

    def __init__(self, key_file: Path) -> None:
        key = load_pem_private_key(read_or_create(key_file, _new_key), password=None)
        if not isinstance(key, Ed25519PrivateKey):
            raise InternalError("signing_key_unusable", f"The file {key_file.name} does not hold an Ed25519 key.")
        self._private, self._public = key, key.public_key()

    def sign(self, record: TokenRecord) -> str:
        claims = {
            "iss": ISSUER,
            "jti": record.id,
            "owner_id": record.team_id,
            "scope": str(record.role),
            "iat": record.created_at // 1000,
            "exp": record.expires_at // 1000,
        }
        if record.project_id is not None:
            claims["project_id"] = record.project_id
        return jwt.encode(claims, self._private, algorithm=ALGORITHM)

    def verify(self, token: str) -> dict[str, Any] | None:
        """The claims, or None when anything is wrong with the token."""
        try:
            return jwt.decode(
                token,
                self._public,
                algorithms=[ALGORITHM],
                issuer=ISSUER,
                options={"require": ["exp", "iat", "jti", "owner_id", "scope"]},
            )
        except (jwt.InvalidTokenError, ValueError, TypeError, RecursionError):
            return None


def _new_key() -> bytes:
    return Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


class Authenticator:
    """Answers who asks, and whether a team, project or session is theirs."""

    def __init__(self, database: Database, signer: TokenSigner, rates: RequestRates, clock: Clock = now_ms) -> None:
        self._database = database
        self._signer = signer
        self._rates = rates
        self._clock = clock
        self._verified: Recent[str, _Verified] = Recent(CACHE_ENTRIES)
        self._owners: Recent[str, SessionOwner] = Recent(CACHE_ENTRIES)
        self._teams: Recent[str, Team] = Recent(CACHE_ENTRIES)
        self._projects: Recent[tuple[str, str], Project] = Recent(CACHE_ENTRIES)
        self._refused: Recent[tuple[str, Permission], int] = Recent(CACHE_ENTRIES)
        self._changes = 0
        """How often something was forgotten: what was read before that is not remembered."""
        self.uses = TokenUses()

    # -- tokens -------------------------------------------------------------------------------------

    async def issue(self, record: TokenRecord, actor: Actor = Actor()) -> str:  # noqa: B008 - it is frozen
        """Remember and sign a token."""
        async with self._database.write() as connection:
            await self.add(connection, record, actor)
        return self._signer.sign(record)

    async def add(self, connection: AsyncConnection, record: TokenRecord, actor: Actor) -> None:
        """Remember a token within the caller's transaction; `sign` it when that is done."""
        await tokens.add(connection, record)
        await audit_log.append(
            connection,
            record.team_id,
            actor,
            "token.created",
            record.id,
            self._clock(),
            role=str(record.role),
            project=record.project_id,
            member=record.member_id,
            scopes=list(record.scopes) if record.scopes is not None else None,
            expires=record.expires_at,
        )

    def sign(self, record: TokenRecord) -> str:
        """The token of a record that was issued before; signing is deterministic, so it is the same token."""
        return self._signer.sign(record)

    async def revoke(self, token_id: str, team_id: str, actor: Actor) -> TokenRecord | None:
        """Revoke a token of a team; it is refused from now on."""
        now = self._clock()
        async with self._database.write() as connection:
            known = await tokens.find(connection, token_id)
            record = await tokens.revoke(connection, token_id, team_id, now)
            if record is not None and known is not None and known.revoked_at is None:
                await audit_log.append(connection, team_id, actor, "token.revoked", token_id, now)
        self._changes += 1
        self._verified.drop(lambda verified: verified.principal.token_id == token_id)
        return record

    def forget_member(self, member_id: str) -> None:
        """A member was changed or removed: what their tokens may do is asked again."""
        self._changes += 1
        self._verified.drop(lambda verified: verified.principal.member_id == member_id)

    def forget_team(self, team_id: str) -> None:
        """A team or one of its projects was renamed or deleted: everything about it is asked again."""
        self._changes += 1
        self._verified.drop(lambda verified: verified.principal.team_id == team_id)
        self._teams.drop(lambda team: team.id == team_id)
        self._projects.drop(lambda project: project.team_id == team_id)
        self._owners.drop(lambda owner: owner.team_id == team_id)

    async def actor(self, request: Request) -> Actor:
        """Who asks, for the audit log."""
        principal = await self.principal(request)
        return Actor(principal.token_id, principal.member_id or "", address_of(request))

    async def admit(self, request: Request, permission: Permission) -> None:
        """Let a request through to its endpoint, for which `principal` says then who asks. Raises `UnauthorizedError`,
        `RateLimitedError`, and `ForbiddenError` for callers without the permission."""
        principal = await self.principal(request)
        if not principal.may(permission):
            await self._note_refusal(request, principal, permission)
        principal.require(permission)
        request.scope[_ADMITTED] = principal

    async def _note_refusal(self, request: Request, principal: Principal, permission: Permission) -> None:
        """Write down that somebody tried to manage the team without being allowed to, at most once a minute for each token."""
        now, key = self._clock(), (principal.token_id, permission)
        last = self._refused.get(key)
        if permission not in ADMINISTRATION or (last is not None and now - last < RECHECK_MS):
            return
        self._refused.put(key, now)
        actor = Actor(principal.token_id, principal.member_id or "", address_of(request))
        path = request.scope["route"].path
        async with self._database.write() as connection:
            await audit_log.append(connection, principal.team_id, actor, permission, path, now, outcome=REFUSED)

    async def principal(self, request: Request) -> Principal:
        """Who asks; the request counts as theirs. Raises `UnauthorizedError`, `RateLimitedError`."""
        admitted: Principal | None = request.scope.get(_ADMITTED)
        if admitted is not None:
            return admitted
        header = request.headers.get("authorization", "")
        scheme, _, token = header.partition(" ")
        try:
            if scheme.lower() != "bearer" or not token:
                raise UnauthorizedError("unauthorized", "The request has no bearer token. Send `Authorization: Bearer TOKEN`.")
            principal = await self.verify(token.strip())
        except UnauthorizedError:
            self.count_unauthorized(request)
            raise
        self.uses.count(principal.token_id, self._clock(), address_of(request))
        self._rates.count(request.scope, principal.team_id, principal.project_id, self._clock())
        return principal

    def count_unauthorized(self, request: HTTPConnection) -> None:
        """What came without a valid token counts for its address. Raises `RateLimitedError`."""
        self._rates.count_unauthorized(request.scope, self._clock())

    def count_login(self, request: HTTPConnection) -> None:
        """A step of a login counts for its address. Raises `RateLimitedError`."""
        self._rates.count_login(request.scope, self._clock())

    def count_more_creates(self, request: Request, principal: Principal, more: int) -> None:
        """A request for so many sandboxes besides the first, which counted as it came. Raises `RateLimitedError`."""
        self._rates.count_more_creates(request.scope, principal.team_id, principal.project_id, more, self._clock())

    async def verify(self, token: str) -> Principal:
        """Whose token this is. Raises `UnauthorizedError`, the same for every reason."""
        now = self._clock()
        verified = self._verified.get(token)
        if verified is not None and now < verified.expires_ms and now - verified.checked_ms < RECHECK_MS:
            return verified.principal
        claims = self._signer.verify(token) if len(token) <= MAX_TOKEN_LENGTH else None
        if claims is not None and isinstance(claims["jti"], str):
            changes = self._changes
            async with self._database.read() as connection:
                record = await tokens.find(connection, claims["jti"])
            if record is not None and record.revoked_at is None and now < record.expires_at:
                permissions = permissions_of(record)
                principal = Principal(record.id, record.team_id, record.project_id, record.role, permissions, record.member_id)
                if self._changes == changes:
                    self._verified.put(token, _Verified(principal, record.expires_at, now))
                return principal
        raise UnauthorizedError(
            "unauthorized", "The token is not valid: unknown, expired or revoked. Make a new one with `hutch token create`."
        )

    # -- scopes -------------------------------------------------------------------------------------

    async def team(self, request: Request, principal: Principal) -> Team:
        """The team that the query names, or the token's. Raises `ForbiddenError`."""
        named = request.query_params.get("teamId") or request.query_params.get("slug")
        team = await self._team(named or principal.team_id)
        if team is None or (team.id != principal.team_id and not principal.is_admin):
            raise forbidden("team", named or "")
        return team

    async def scope(self, request: Request, principal: Principal, project: str | None, *, one: bool = True) -> Scope:
        """The team and project that a request is about. `project` is what its body or query names.

        With `one` a project must result, named or from the token. Raises `ForbiddenError` for somebody else's.
        """
        team = await self.team(request, principal)
        own = principal.project_id if team.id == principal.team_id else None
        if project:
            found = await self._project(team.id, project)
            if found is None or (principal.project_id not in (None, found.id) and not principal.is_admin):
                raise forbidden("project", project)
            return Scope(team.id, found.id)
        if own is None and one:
            raise BadRequestError(
                "bad_request", "Invalid request: `projectId` is needed, because the token is not bound to a project."
            )
        return Scope(team.id, own)

    async def named_team(self, request: Request, principal: Principal, reference: str) -> Team:
        """The team that a path names. Raises `NotFoundError`, also for somebody else's."""
        await self.team(request, principal)
        team = await self._team(reference)
        if team is None or (team.id != principal.team_id and not principal.is_admin):
            raise NotFoundError("not_found", f"Team '{reference[:64]}' not found.")
        return team

    async def named_project(self, request: Request, principal: Principal, reference: str) -> Project:
        """The project that a path names, in the team that the query names or in the token's; administrators may name one of
        another team by its id alone. Raises `NotFoundError`, also for somebody else's."""
        team = await self.team(request, principal)
        project = await self._project(team.id, reference)
        named = "teamId" in request.query_params or "slug" in request.query_params
        if project is None and principal.is_admin and not named and _REFERENCE.fullmatch(reference):
            async with self._database.read() as connection:
                project = await tenants.find_project_of_any_team(connection, reference)
        if project is None or (principal.project_id not in (None, project.id) and not principal.is_admin):
            raise NotFoundError("not_found", f"Project '{reference[:64]}' not found in this team.")
        return project

    async def session(self, request: Request, session_id: str) -> SessionOwner:
        """The session of the path, if it is the caller's. Raises `NotFoundError`, also for somebody else's."""
        principal = await self.principal(request)
        team_id = principal.team_id
        if request.scope["query_string"]:
            team_id = (await self.team(request, principal)).id
        owner = self._owners.get(session_id) or await self._load_owner(session_id)
        if owner is not None:
            if owner.team_id == team_id and (principal.project_id in (None, owner.project_id) or principal.is_admin):
                return owner
            if principal.is_admin and not ("teamId" in request.query_params or "slug" in request.query_params):
                return owner
        raise NotFoundError("not_found", f"Session '{session_id[:128]}' not found.")

    async def _load_owner(self, session_id: str) -> SessionOwner | None:
        if _SESSION_ID.fullmatch(session_id) is None:
            return None
        async with self._database.read() as connection:
            found = await sessions.owner(connection, session_id)
        if found is None:
            return None
        owner = SessionOwner(session_id, *found)
        self._owners.put(session_id, owner)
        return owner

    async def _team(self, reference: str) -> Team | None:
        team = self._teams.get(reference)
        if team is None and _REFERENCE.fullmatch(reference):
            changes = self._changes
            async with self._database.read() as connection:
                team = await tenants.find_team(connection, reference)
            if team is not None and self._changes == changes:
                self._teams.put(reference, team)
        return team

    async def _project(self, team_id: str, reference: str) -> Project | None:
        project = self._projects.get((team_id, reference))
        if project is None and _REFERENCE.fullmatch(reference):
            changes = self._changes
            async with self._database.read() as connection:
                project = await tenants.find_project(connection, team_id, reference)
            if project is not None and self._changes == changes:
                self._projects.put((team_id, reference), project)
        return project


def new_token(
    team_id: str,
    project_id: str | None,
    role: TokenRole,
    *,
    now: int,
    ttl_ms: int,
    name: str = "",
    member_id: str | None = None,
    scopes: tuple[str, ...] | None = None,
) -> TokenRecord:
    """A record for a token that is about to be issued."""
    return TokenRecord(ids.token_id(), team_id, project_id, role, name, now, now + ttl_ms, member_id=member_id, scopes=scopes)


def permissions_of(record: TokenRecord) -> frozenset[Permission]:
    """What a token may do: a member's no more than the member, and nothing when the member is gone."""
    one_project = record.project_id is not None
    permissions = granted(record.role, record.scopes, one_project=one_project)
    if record.member_id is None:
        return permissions
    return permissions & granted(record.member_role, one_project=one_project) if record.member_role is not None else frozenset()


def address_of(request: Request) -> str:
    """The address that a request came from."""
    return request.client.host if request.client is not None else ""


def forbidden(kind: str, named: str) -> ForbiddenError:
    return ForbiddenError("forbidden", f"The token has no access to the {kind} '{named[:64]}'.")

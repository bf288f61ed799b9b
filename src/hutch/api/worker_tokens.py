"""Tokens as `ntn workers tokens` makes them: for one project, good for workers and nothing else. They are tokens like any other,
seen and revoked by `hutch token`, too."""

from __future__ import annotations

import re
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from hutch.api.auth import Principal, new_token
from hutch.api.body import read
from hutch.api.responses import JsonResponse
from hutch.api.routing import WorkerRoute, documented
from hutch.api.tokens import manages
from hutch.api.worker_tools import scope_of
from hutch.api.workers import moment
from hutch.control import worker_wire as wire
from hutch.control.permissions import Permission, TokenRole, granted
from hutch.control.records import TokenRecord
from hutch.errors import BadRequestError, NotFoundError
from hutch.storage import tokens

router = APIRouter(route_class=WorkerRoute, tags=["workers"])

OF_WORKERS = frozenset(permission for permission in Permission if permission.startswith("worker."))
_LIFE = re.compile(r"([0-9]{1,6}) *(second|minute|hour|day|week|month|year|s|m|h|d|w|y)s?", re.IGNORECASE)
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400, "y": 366 * 86_400, "month": 31 * 86_400}


@router.post(
    "/v3/workersCreateToken",
    openapi_extra=documented(wire.CreateWorkersToken, answer=wire.TokenMade, needs=Permission.TOKEN_WRITE),
)
async def workers_create_token(request: Request) -> Response:
    """Make a token for the workers of a project. It is shown in this answer only."""
    services, scope = await scope_of(request)
    principal = await services.auth.principal(request)
    body = await read(request, wire.CreateWorkersToken)
    limits = services.settings.tokens
    life_s = _seconds(body.expiresIn) if body.expiresIn else limits.default_ttl_s
    if not 60 <= life_s <= limits.max_ttl_s:
        raise BadRequestError("bad_request", f"Invalid request: `expiresIn` should be 60 to {limits.max_ttl_s} seconds.")
    allowed = granted(TokenRole.DEVELOPER, OF_WORKERS, one_project=True) & OF_WORKERS & principal.permissions
    record = new_token(
        scope.team_id,
        scope.project_id,
        TokenRole.DEVELOPER,
        now=services.clock(),
        ttl_ms=life_s * 1000,
        name=body.name,
        scopes=tuple(sorted(allowed)),
    )
    return JsonResponse({"token": await services.auth.issue(record, await services.auth.actor(request))})


@router.post(
    "/v3/workersListTokens",
    openapi_extra=documented(wire.Nothing, answer=wire.TokensListed, needs=Permission.TOKEN_READ),
)
async def workers_list_tokens(request: Request) -> Response:
    """Tokens of the project that are good for workers and nothing else, newest first."""
    services, scope = await scope_of(request)
    principal = await services.auth.principal(request)
    await read(request, wire.Nothing)
    async with services.database.read() as connection:
        records = await tokens.list_for_team(connection, scope.team_id)
    mine = [record for record in records if record.project_id == scope.project_id and _seen(principal, record)]
    return JsonResponse({"tokens": [_shown(record) for record in mine]})


@router.post(
    "/v3/workersRevokeToken",
    openapi_extra=documented(wire.RevokeWorkersToken, answer=wire.Done, errors=(404,), needs=Permission.TOKEN_WRITE),
)
async def workers_revoke_token(request: Request) -> Response:
    """Revoke one of them; it is refused from now on. Idempotent."""
    services, scope = await scope_of(request)
    principal = await services.auth.principal(request)
    body = await read(request, wire.RevokeWorkersToken)
    async with services.database.read() as connection:
        record = await tokens.find(connection, body.tokenId)
    if record is None or (record.team_id, record.project_id) != (scope.team_id, scope.project_id) or not _seen(principal, record):
        raise NotFoundError("not_found", f"Token '{body.tokenId[:64]}' not found.")
    await services.auth.revoke(record.id, record.team_id, await services.auth.actor(request))
    return JsonResponse({})


def _seen(principal: Principal, record: TokenRecord) -> bool:
    return record.scopes is not None and {*record.scopes} <= OF_WORKERS and manages(principal, record)


def _seconds(text: str) -> int:
    """`30 days`, `12h`, `1 year`. Raises `BadRequestError`."""
    match = _LIFE.fullmatch(text.strip())
    if match is None:
        raise BadRequestError("bad_request", "Invalid request: `expiresIn` should be a time such as `30 days` or `12h`.")
    unit = match[2].lower()
    return int(match[1]) * (_UNIT_S["month"] if unit == "month" else _UNIT_S[unit[0]])


def _shown(record: TokenRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "name": record.name,
        "issuedAt": moment(record.created_at),
        "expiresAt": moment(record.expires_at),
        "revokedAt": moment(record.revoked_at) if record.revoked_at is not None else None,
    }

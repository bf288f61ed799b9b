"""Stored credentials of a project: what rules of network policies add to requests. Their values are never shown.

A new value is written first, and then told to the host, which gives it to every live session that names it. The host may
have been told by two requests in the other order, so after telling, the database is asked again whether that was its last word.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from fastapi import APIRouter
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.requests import Request
from starlette.responses import Response

from hutch.api.body import read
from hutch.api.responses import JsonResponse
from hutch.api.routing import PlainRoute, documented
from hutch.api.services import Services, services_of
from hutch.control import answers, shapes
from hutch.control.permissions import Permission
from hutch.control.records import Scope
from hutch.control.requests import PutCredential
from hutch.errors import BadRequestError, NotFoundError, UnavailableError
from hutch.host.protocol import CredentialChange
from hutch.storage import audit_log
from hutch.storage import credentials as rows

router = APIRouter(route_class=PlainRoute, tags=["credentials"])

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
RESERVED = "worker-oauth-"
"""Begins the names by which policies of workers' runs know OAuth tokens."""
_PROJECT = {"projectId": "Id or slug"}


@router.put(
    "/hutch/v1/credentials/{name}",
    status_code=204,
    openapi_extra=documented(PutCredential, query=_PROJECT, status=204, needs=Permission.CREDENTIAL_WRITE),
)
async def put_credential(request: Request, name: str) -> Response:
    """Store a credential; requests that are sent from now on carry the new value."""
    services = services_of(request)
    scope = await _scope(request, services)
    if NAME.fullmatch(name) is None:
        raise BadRequestError("bad_request", f'Invalid request: the name should match pattern "^{NAME.pattern}$".')
    if name.startswith(RESERVED):
        raise BadRequestError(
            "bad_request", f"Invalid request: names that begin with {RESERVED} are those of workers' own tokens."
        )
    body = await read(request, PutCredential)
    async with services.database.write() as connection:
        await rows.put(connection, scope, name, body.value, services.sealer, services.clock())
        await logged(connection, services, request, scope, "credential.stored", name)
    await _announce(services, scope, name)
    return Response(status_code=204)


@router.get(
    "/hutch/v1/credentials",
    openapi_extra=documented(query=_PROJECT, answer=answers.CredentialList, needs=Permission.CREDENTIAL_READ),
)
async def list_credentials(request: Request) -> Response:
    """Names and times of the project's credentials."""
    services = services_of(request)
    scope = await _scope(request, services)
    async with services.database.read() as connection:
        records = await rows.list_names(connection, scope)
    return JsonResponse({"credentials": [shapes.credential(record) for record in records]})


@router.delete(
    "/hutch/v1/credentials/{name}",
    status_code=204,
    openapi_extra=documented(query=_PROJECT, status=204, needs=Permission.CREDENTIAL_WRITE),
)
async def delete_credential(request: Request, name: str) -> Response:
    """Delete a credential; rules that name it are closed from now on."""
    services = services_of(request)
    scope = await _scope(request, services)
    unknown = NotFoundError("not_found", f"Credential '{name[:128]}' not found in this project.")
    if NAME.fullmatch(name) is None:
        raise unknown
    async with services.database.write() as connection:
        if not await rows.remove(connection, scope, name):
            raise unknown
        await logged(connection, services, request, scope, "credential.deleted", name)
    await _announce(services, scope, name)
    return Response(status_code=204)


async def _scope(request: Request, services: Services) -> Scope:
    principal = await services.auth.principal(request)
    project = request.query_params.get("projectId") or request.query_params.get("project")
    return await services.auth.scope(request, principal, project)


async def logged(connection: AsyncConnection, services: Services, request: Request, scope: Scope, action: str, name: str) -> None:
    """Write down who stored or deleted something that is secret."""
    actor, now = await services.auth.actor(request), services.clock()
    await audit_log.append(connection, scope.team_id, actor, action, name, now, project=scope.project_id)


# -- telling the host -------------------------------------------------------------------------------


async def values(services: Services, scope: Scope, names: Sequence[str]) -> dict[str, str]:
    """The values of those of `names` that the project has."""
    if not names:
        return {}
    async with services.database.read() as connection:
        return await rows.values(connection, scope, names, services.sealer)


async def push(services: Services, scope: Scope, name: str) -> None:
    """Tell the host what a credential is now."""
    assert scope.project_id is not None
    value = (await values(services, scope, [name])).get(name)
    while True:
        change = CredentialChange(project_id=scope.project_id, name=name, value=value)
        await services.host.call("credentials.change", change)
        latest = (await values(services, scope, [name])).get(name)
        if latest == value:
            return
        value = latest


async def _announce(services: Services, scope: Scope, name: str) -> None:
    try:
        await push(services, scope, name)
    except UnavailableError as error:
        # It is kept, and told when the host answers again; but until then the caller's old value is in use.
        raise UnavailableError(
            "credential_not_announced",
            f"The change of '{name}' is stored, but running sandboxes go on with what they have until the host answers again: "
            f"{error.message}",
            retry_after_s=1,
        ) from error

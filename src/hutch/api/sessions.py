"""Sessions: the runs of a sandbox."""

from __future__ import annotations

from dataclasses import replace

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from hutch.api import paging
from hutch.api.auth import SessionOwner
from hutch.api.body import read, read_body
from hutch.api.commands import call
from hutch.api.responses import JsonResponse
from hutch.api.routing import LIVE, PlainRoute, documented
from hutch.api.services import Services, services_of, stopped
from hutch.control import answers, shapes
from hutch.control.lifecycle import Merged, is_live
from hutch.control.permissions import Permission
from hutch.control.records import SandboxRecord, SessionRow
from hutch.control.requests import Body, ExtendTimeout, parse
from hutch.errors import BadRequestError, GoneError, NotFoundError
from hutch.host.protocol import ExtendRequest, SessionRecord, StopRequest
from hutch.storage import sandboxes as sandbox_rows
from hutch.storage import sessions as session_rows
from hutch.storage import snapshots as snapshot_rows

router = APIRouter(route_class=PlainRoute, tags=["sessions"])


@router.get(
    "/v2/sandboxes/sessions",
    openapi_extra=documented(
        query={"project": "Id or slug", "name": "Sandbox", "limit": "", "cursor": "", "sortOrder": "desc or asc"},
        answer=answers.SessionPage,
        needs=Permission.SANDBOX_READ,
    ),
)
async def list_sessions(request: Request) -> Response:
    """Sessions of a project, or of one sandbox, newest first."""
    services = services_of(request)
    principal = await services.auth.principal(request)
    project = request.query_params.get("project") or request.query_params.get("projectId")
    scope = await services.auth.scope(request, principal, project, one=False)
    order = paging.choice(request, "sortOrder", "desc", ("asc", "desc"))
    name = paging.text(request, "name")
    query = f"sessions {scope.team_id} {scope.project_id} {name} {order}"
    async with services.database.read() as connection:
        rows, end = await session_rows.page(
            connection,
            scope,
            services.sealer,
            sandbox_name=name,
            descending=order == "desc",
            after=paging.position(request, query),
            limit=paging.limit(request),
        )
    bounded = await services.bounded(scope.team_id)
    items = [shapes.session(row, bounded=row.project_id in bounded) for row in rows]
    return JsonResponse(shapes.page("sessions", items, paging.next_cursor(end, query)))


@router.get(
    "/v2/sandboxes/sessions/{session_id}", openapi_extra=documented(answer=answers.SessionRead, needs=Permission.SANDBOX_READ)
)
async def get_session(request: Request, session_id: str) -> Response:
    """One session, and the routes of its sandbox."""
    services = services_of(request)
    owner = await services.auth.session(request, session_id)
    row, sandbox = await load(services, owner)
    bounded = owner.project_id in await services.bounded(owner.team_id)
    return JsonResponse({"session": shapes.session(row, bounded=bounded), "routes": routes(services, sandbox)})


@router.post(
    "/v2/sandboxes/sessions/{session_id}/stop",
    openapi_extra=documented(answer=answers.SessionStopped, errors=LIVE, needs=Permission.SANDBOX_WRITE),
)
async def stop_session(request: Request, session_id: str) -> Response:
    """Stop a session; answers when it is down and, if its sandbox is persistent, its snapshot is made. Idempotent."""
    services = services_of(request)
    owner = await services.auth.session(request, session_id)
    parse(Body, await read_body(request, services.settings.server.max_body_bytes))
    row, sandbox = await load(services, owner)
    row = await stop(services, row)
    if sandbox is not None:
        _, sandbox = await load(services, owner)
    async with services.database.read() as connection:
        snapshot = await snapshot_rows.of_session(connection, row.id)
    bounded = owner.project_id in await services.bounded(owner.team_id)
    answer = {"session": shapes.session(row, bounded=bounded)}
    if sandbox is not None:
        current = row if sandbox.current_session_id == row.id else None
        answer = {"sandbox": shapes.sandbox(sandbox, current, bounded=bounded), **answer}
    if snapshot is not None:
        answer["snapshot"] = shapes.snapshot(snapshot)
    return JsonResponse(answer)


@router.post(
    "/v2/sandboxes/sessions/{session_id}/extend-timeout",
    openapi_extra=documented(
        ExtendTimeout, answer=answers.SessionExtended, errors=LIVE, example={"duration": 60000}, needs=Permission.SANDBOX_WRITE
    ),
)
async def extend_timeout(request: Request, session_id: str) -> Response:
    """Let a session live `duration` milliseconds longer."""
    services = services_of(request)
    owner = await services.auth.session(request, session_id)
    body = await read(request, ExtendTimeout)
    limit = services.settings.sandbox.max_timeout_ms
    row, _ = await load(services, owner)
    if not is_live(row.status):
        raise stopped()
    if row.timeout_ms + body.duration > limit:
        raise BadRequestError(
            "sandbox_timeout_invalid",
            f"The timeout of {row.timeout_ms} ms can't be extended by {body.duration} ms: a session lives at most {limit} ms.",
        )
    report = await call(services, "session.extend", ExtendRequest(session_id, body.duration, limit), SessionRecord)
    updated = await services.apply(report)
    bounded = owner.project_id in await services.bounded(owner.team_id)
    return JsonResponse({"session": shapes.session(updated or row, bounded=bounded)})


# -- shared with sandboxes.py and network_policy.py -----------------------------------------------------------------------


async def load(services: Services, owner: SessionOwner) -> tuple[SessionRow, SandboxRecord | None]:
    """A session and its sandbox (None when the sandbox's record was deleted). Raises `NotFoundError`."""
    async with services.database.read() as connection:
        row = await session_rows.find(connection, owner.scope, owner.session_id, services.sealer)
        if row is None:
            raise NotFoundError("not_found", f"Session '{owner.session_id}' not found.")
        sandbox = await sandbox_rows.find(connection, owner.scope, row.sandbox_name, services.sealer)
    return row, sandbox if sandbox is not None and sandbox.id == row.sandbox_id else None


async def stop(services: Services, row: SessionRow, reason: str = "stop") -> SessionRow:
    """Stop a session if it is alive; the session as it is then. A session that the host forgot is over as well."""
    now = services.clock()
    if is_live(row.status):
        try:
            report = await call(services, "session.stop", StopRequest(row.id, reason), SessionRecord)
            return await services.apply(report) or row
        except GoneError:
            row = await services.mark_lost(row.id) or row
    async with services.database.write() as connection:
        again = await session_rows.change(
            connection, row.id, services.sealer, lambda found: Merged(replace(found, requested_stop_at=now), True, False)
        )
    return again or row


def routes(services: Services, sandbox: SandboxRecord | None) -> list[shapes.Json]:
    return [shapes.route(route, services.settings.ingress_netloc()) for route in sandbox.routes] if sandbox is not None else []

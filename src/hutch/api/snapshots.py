"""Snapshots. None can exist yet (`docs/compatibility.md`), so lists are empty and every id is unknown."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from hutch.api import paging
from hutch.api.body import read
from hutch.api.responses import JsonResponse
from hutch.api.routing import PlainRoute, documented
from hutch.api.services import services_of
from hutch.control import shapes
from hutch.control.requests import TakeSnapshot
from hutch.errors import BadRequestError, NotFoundError

router = APIRouter(route_class=PlainRoute, tags=["snapshots"])


@router.post("/v2/sandboxes/sessions/{session_id}/snapshot", openapi_extra=documented(TakeSnapshot))
async def take_snapshot(request: Request, session_id: str) -> Response:
    """Save the file system of a session. Refused for now."""
    await services_of(request).auth.session(request, session_id)
    await read(request, TakeSnapshot)
    raise BadRequestError("not_supported", "Snapshots are not supported by this server yet.")


@router.get(
    "/v2/sandboxes/snapshots",
    openapi_extra=documented(query={"project": "Id or slug", "name": "Sandbox", "limit": "", "cursor": ""}),
)
async def list_snapshots(request: Request) -> Response:
    """Snapshots of a project."""
    await _authorize(request, "project")
    paging.limit(request)
    paging.choice(request, "sortOrder", "desc", ("asc", "desc"))
    paging.position(request, "snapshots")
    return JsonResponse(shapes.page("snapshots", [], None))


@router.get(
    "/v2/sandboxes/snapshots/tree", openapi_extra=documented(query={"project": "Id or slug", "snapshotId": "Where to start"})
)
async def snapshot_tree(request: Request) -> Response:
    """Ancestors or descendants of a snapshot."""
    await _authorize(request, "project")
    snapshot_id = paging.text(request, "snapshotId")
    if snapshot_id is not None:
        raise unknown_snapshot(snapshot_id)
    return JsonResponse(shapes.page("snapshots", [], None))


@router.get("/v2/sandboxes/snapshots/{snapshot_id}", openapi_extra=documented())
async def get_snapshot(request: Request, snapshot_id: str) -> Response:
    """One snapshot."""
    await _authorize(request, None)
    raise unknown_snapshot(snapshot_id)


@router.delete("/v2/sandboxes/snapshots/{snapshot_id}", openapi_extra=documented())
async def delete_snapshot(request: Request, snapshot_id: str) -> Response:
    """Delete a snapshot."""
    await _authorize(request, None)
    raise unknown_snapshot(snapshot_id)


async def _authorize(request: Request, parameter: str | None) -> None:
    auth = services_of(request).auth
    principal = await auth.principal(request)
    project = request.query_params.get(parameter) if parameter is not None else None
    await auth.scope(request, principal, project, one=False)


def unknown_snapshot(snapshot_id: str) -> NotFoundError:
    return NotFoundError("not_found", f"Snapshot '{snapshot_id[:128]}' not found.")

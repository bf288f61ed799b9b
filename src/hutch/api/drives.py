"""Drives. None can exist yet (`docs/compatibility.md`), so the list is empty and every name is unknown."""

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
from hutch.control.requests import DriveSpec
from hutch.errors import BadRequestError, NotFoundError

router = APIRouter(route_class=PlainRoute, tags=["drives"])


@router.get("/v2/sandboxes/drives", openapi_extra=documented(query={"projectId": "Id or slug", "limit": "", "cursor": ""}))
async def list_drives(request: Request) -> Response:
    """Drives of a project."""
    await _authorize(request, request.query_params.get("projectId") or request.query_params.get("project"))
    paging.limit(request)
    paging.choice(request, "sortBy", "createdAt", ("createdAt", "updatedAt", "name"))
    paging.choice(request, "sortOrder", "desc", ("asc", "desc"))
    paging.position(request, "drives")
    return JsonResponse(shapes.page("drives", [], None))


@router.get("/v2/sandboxes/drives/{drive}", openapi_extra=documented())
async def get_drive(request: Request, drive: str) -> Response:
    """One drive, by name or id."""
    await _authorize(request, request.query_params.get("projectId"))
    raise _unknown(drive)


@router.post("/v2/sandboxes/drives/{drive}", openapi_extra=documented(DriveSpec))
async def create_drive(request: Request, drive: str) -> Response:
    """Get or create a drive. Refused for now."""
    auth = services_of(request).auth
    principal = await auth.principal(request)
    body = await read(request, DriveSpec)
    await auth.scope(request, principal, body.projectId or request.query_params.get("projectId"), one=False)
    raise BadRequestError("not_supported", "Drives are not supported by this server yet.")


@router.delete("/v2/sandboxes/drives/{drive}", openapi_extra=documented())
async def delete_drive(request: Request, drive: str) -> Response:
    """Delete a drive."""
    await _authorize(request, request.query_params.get("projectId"))
    raise _unknown(drive)


@router.post("/v2/sandboxes/drives/{drive}/fork", openapi_extra=documented())
async def fork_drive(request: Request, drive: str) -> Response:
    """Copy a drive."""
    await _authorize(request, request.query_params.get("projectId"))
    raise _unknown(drive)


async def _authorize(request: Request, project: str | None) -> None:
    auth = services_of(request).auth
    principal = await auth.principal(request)
    await auth.scope(request, principal, project, one=False)


def _unknown(drive: str) -> NotFoundError:
    return NotFoundError("not_found", f"Drive '{drive[:128]}' not found for this project.")

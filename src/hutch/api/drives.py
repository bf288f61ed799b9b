"""Drives: named file systems of a project that sandboxes mount.

A drive is taken down here first, then made on the host; removing begins here too, so that nothing new is mounted meanwhile. What
an interruption leaves between is finished by the next get-or-create, or when the host is there again (`settle`). Whether a drive
is in use is the host's to say.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from hutch import ids
from hutch.api import paging, storage_budgets
from hutch.api.body import read
from hutch.api.responses import JsonResponse
from hutch.api.routing import JSON, Answer, PlainRoute, documented
from hutch.api.services import Services, services_of
from hutch.control import answers, shapes
from hutch.control.names import MAX_DRIVE_NAME_LENGTH, NAME_PATTERN, check_region, is_name
from hutch.control.permissions import Permission
from hutch.control.records import Drive, SandboxConfig, Scope
from hutch.control.requests import ForkDrive, GetOrCreateDrive
from hutch.errors import BadRequestError, ConflictError, HutchError, NotFoundError, NotReadyError
from hutch.host.protocol import DriveMode, DriveMount, DriveRecord, DriveRef, DriveSpec, DriveUsage
from hutch.storage import drives as rows
from hutch.storage.drives import SORT_COLUMNS, DriveQuery
from hutch.wire.connection import ConnectionClosed

router = APIRouter(route_class=PlainRoute, tags=["drives"])

log = logging.getLogger(__name__)

DEFAULT_SIZE_BYTES = 1024**4
PROJECT = {"projectId": "Id or slug"}


@router.get(
    "/v2/sandboxes/drives",
    openapi_extra=documented(
        query={
            **PROJECT,
            "limit": "1 to 100, default 20",
            "cursor": "`pagination.next` of the page before",
            "sortBy": ("Default: createdAt", {"enum": list(SORT_COLUMNS)}),
            "sortOrder": "desc or asc",
            "namePrefix": "only with sortBy=name",
        },
        answer=answers.DrivePage,
        needs=Permission.DRIVE_READ,
    ),
)
async def list_drives(request: Request) -> Response:
    """Drives of a project, newest first."""
    services = services_of(request)
    scope = await _scope(request, one=False)
    sort_by = paging.choice(request, "sortBy", "createdAt", tuple(SORT_COLUMNS))
    order = paging.choice(request, "sortOrder", "desc", ("asc", "desc"))
    prefix = paging.name_prefix(request, sort_by)
    described = f"drives {scope.team_id} {scope.project_id} {sort_by} {order} {prefix}"
    query = DriveQuery(
        sort_by=sort_by,
        descending=order == "desc",
        name_prefix=prefix,
        after=paging.position(request, described, str if sort_by == "name" else int),
        limit=paging.limit(request),
    )
    async with services.database.read() as connection:
        found, end = await rows.page(connection, scope, query)
        holders = await rows.holders(connection, found)
    items = [shapes.drive(drive, holders.get(drive.id)) for drive in found]
    return JsonResponse(shapes.page("drives", items, paging.next_cursor(end, described)))


@router.get(
    "/v2/sandboxes/drives/{drive}", openapi_extra=documented(query=PROJECT, answer=answers.DriveRead, needs=Permission.DRIVE_READ)
)
async def get_drive(request: Request, drive: str) -> Response:
    """One drive, by name or id, and how much it holds."""
    services = services_of(request)
    scope = await _scope(request)
    found = await _existing(services, scope, drive, by_id=True)
    used = None
    try:
        if found.made_at is not None:
            used = (await services.host.call("drive.usage", DriveRef(found.id), DriveUsage)).used_bytes
    except HutchError as error:
        log.info("the host does not say how much drive %s holds: %s", found.id, error.message)
    return JsonResponse(await _shown(services, found, used))


@router.post(
    "/v2/sandboxes/drives/{drive}",
    openapi_extra=documented(
        GetOrCreateDrive,
        answer=answers.DriveRead,
        status=201,
        more=(Answer(200, JSON, answers.DriveRead),),
        errors=(402, 409),
        needs=Permission.DRIVE_WRITE,
    ),
)
async def create_drive(request: Request, drive: str) -> Response:
    """Get or create a drive: 201 when it is new."""
    services = services_of(request)
    principal = await services.auth.principal(request)
    body = await read(request, GetOrCreateDrive)
    scope = await services.auth.scope(request, principal, body.projectId or request.query_params.get("projectId"))
    _checked_name(drive)
    if body.region is not None:
        check_region("region", body.region, services.settings.sandbox.known_regions())
    async with services.database.read() as connection:
        found = await rows.find(connection, scope, drive)
    if found is None:
        try:
            return await _created(services, await _added(services, _new(services, scope, drive, body)))
        except ConflictError:
            # Somebody else did just now.
            async with services.database.read() as connection:
                found = await rows.find(connection, scope, drive)
            if found is None:
                raise
    if found.deleting_at is not None:
        raise ConflictError("conflict", f"The drive '{drive}' is being deleted. Try again.")
    if body.region not in (None, found.region):
        raise ConflictError("conflict", f"The drive '{drive}' exists in region '{found.region}', not '{body.region}'.")
    if body.maxSizeBytes not in (None, found.max_size_bytes):
        raise ConflictError(
            "conflict",
            f"The drive '{drive}' exists with {found.max_size_bytes} bytes, not {body.maxSizeBytes}, and is not resized.",
        )
    if found.made_at is None:
        await _make(services, found)
    return JsonResponse(await _shown(services, found))


@router.delete(
    "/v2/sandboxes/drives/{drive}",
    openapi_extra=documented(query=PROJECT, answer=answers.DriveRead, errors=(409,), needs=Permission.DRIVE_WRITE),
)
async def delete_drive(request: Request, drive: str) -> Response:
    """Delete a drive and what it holds. Refused while a session has it."""
    services = services_of(request)
    scope = await _scope(request)
    found = await _existing(services, scope, drive, also_deleting=True)
    answer = await _shown(services, found)
    async with services.database.write() as connection:
        await rows.set_deleting(connection, found.id, services.clock())
    await finish_deleting(services, found.id)
    return JsonResponse(answer)


@router.post(
    "/v2/sandboxes/drives/{drive}/fork",
    openapi_extra=documented(ForkDrive, query=PROJECT, answer=answers.DriveRead, errors=(402, 409), needs=Permission.DRIVE_WRITE),
)
async def fork_drive(request: Request, drive: str) -> Response:
    """A new drive with what another one holds now; each then goes its own way."""
    services = services_of(request)
    scope = await _scope(request)
    body = await read(request, ForkDrive)
    source = await _existing(services, scope, drive)
    now = services.clock()
    fork = replace(
        source,
        id=ids.drive_id(),
        name=body.name,
        parent_drive_id=source.id,
        root_drive_id=source.root_drive_id or source.id,
        created_at=now,
        updated_at=now,
        made_at=None,
    )
    try:
        return await _created(services, await _added(services, fork), status=200)
    except ConflictError as error:
        if error.code != "conflict":
            raise
        async with services.database.read() as connection:
            found = await rows.find(connection, scope, body.name)
        if found is None or found.made_at is not None or found.parent_drive_id != source.id:
            raise
    # The same was asked for before, and the host's answer was lost.
    return await _created(services, found, status=200)


async def _scope(request: Request, *, one: bool = True) -> Scope:
    auth = services_of(request).auth
    principal = await auth.principal(request)
    project = request.query_params.get("projectId") or request.query_params.get("project")
    return await auth.scope(request, principal, project, one=one)


def _checked_name(name: str) -> None:
    if not is_name(name) or len(name) > MAX_DRIVE_NAME_LENGTH:
        raise BadRequestError(
            "bad_request",
            f'Invalid request: `name` should match pattern "{NAME_PATTERN.pattern}" and NOT be longer than '
            f"{MAX_DRIVE_NAME_LENGTH} characters.",
        )


async def _existing(services: Services, scope: Scope, name: str, *, by_id: bool = False, also_deleting: bool = False) -> Drive:
    """Raises `NotFoundError`."""
    found = None
    if is_name(name):
        async with services.database.read() as connection:
            found = await rows.find(connection, scope, name, by_id=by_id)
    if found is None or (found.deleting_at is not None and not also_deleting):
        raise _unknown(name)
    return found


def _unknown(name: str) -> NotFoundError:
    return NotFoundError("not_found", f"Drive '{name[:128]}' not found for this project.")


async def _shown(services: Services, drive: Drive, used_bytes: int | None = None) -> shapes.Json:
    async with services.database.read() as connection:
        holders = await rows.holders(connection, [drive])
    return {"drive": shapes.drive(drive, holders.get(drive.id), used_bytes)}


# -- making and removing ----------------------------------------------------------------------------


def _new(services: Services, scope: Scope, name: str, body: GetOrCreateDrive) -> Drive:
    assert scope.project_id is not None
    now = services.clock()
    return Drive(
        id=ids.drive_id(),
        team_id=scope.team_id,
        project_id=scope.project_id,
        name=name,
        region=body.region or services.settings.sandbox.region,
        max_size_bytes=body.maxSizeBytes or DEFAULT_SIZE_BYTES,
        created_at=now,
        updated_at=now,
    )


async def _added(services: Services, drive: Drive) -> Drive:
    await storage_budgets.require(services, Scope(drive.team_id, drive.project_id))
    async with services.database.write() as connection:
        await rows.add(connection, drive)
    return drive


async def _created(services: Services, drive: Drive, *, status: int = 201) -> Response:
    """Have the host make a drive that was just taken down. What the host refuses is taken back."""
    try:
        await _make(services, drive)
    except ConnectionClosed:
        # It may have been made. The name stays, and the next one who asks for it has it made.
        raise
    except HutchError:
        async with services.database.write() as connection:
            await rows.remove(connection, drive.id)
        raise
    return JsonResponse(await _shown(services, drive), status=status)


async def _make(services: Services, drive: Drive) -> None:
    spec = DriveSpec(drive_id=drive.id, size_bytes=drive.max_size_bytes, source_id=drive.parent_drive_id)
    await services.host.call("drive.create", spec, DriveRecord)
    async with services.database.write() as connection:
        is_there = await rows.made(connection, drive.id, services.clock())
    if not is_there:
        # Its removal overtook us: the host did not know it yet.
        await services.host.call("drive.delete", DriveRef(drive.id))
        raise _unknown(drive.name)


async def finish_deleting(services: Services, drive_id: str) -> None:
    """Have the host remove a drive. Raises `ConflictError` when a session has it; it is there again then."""
    try:
        await services.host.call("drive.delete", DriveRef(drive_id))
    except ConflictError:
        async with services.database.write() as connection:
            await rows.set_deleting(connection, drive_id, None)
        raise
    async with services.database.write() as connection:
        await rows.remove(connection, drive_id)


async def settle(services: Services) -> None:
    """Carry removals through that were interrupted."""
    async with services.database.read() as connection:
        due = await rows.deleting(connection)
    for drive_id in due:
        try:
            await finish_deleting(services, drive_id)
        except HutchError as error:
            log.warning("drive %s is not deleted: %s", drive_id, error.message)


# -- shared with sandboxes.py -----------------------------------------------------------------------


async def resolved(services: Services, scope: Scope, config: SandboxConfig) -> list[DriveMount]:
    """What a sandbox mounts, by the ids of its drives, which are there and made. Raises `HutchError`."""
    found = []
    for path, mount in (config.mounts or {}).items():
        drive = await _existing(services, scope, mount["drive"])
        if drive.region != config.region:
            raise NotReadyError(
                "drive_region_mismatch",
                f"The drive '{drive.name}' is in region '{drive.region}', and the sandbox in '{config.region}'.",
            )
        if drive.made_at is None:
            await _make(services, drive)
        found.append(DriveMount(path=path, drive_id=drive.id, mode=DriveMode(mount["mode"])))
    return found

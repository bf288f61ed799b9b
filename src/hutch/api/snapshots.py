"""Snapshots: files that sessions left, and that sandboxes go on from.

A host makes them and reports them with the end of a session (`storage.reports`). Deleting is written first; the host is told
behind that, again and again until it has heard it (`keep_tidy`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import replace

from fastapi import APIRouter
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.requests import Request
from starlette.responses import Response

from hutch.api import paging, storage_budgets
from hutch.api.body import read
from hutch.api.commands import call
from hutch.api.responses import JsonResponse
from hutch.api.routing import LIVE, PlainRoute, api_version, documented
from hutch.api.services import Services, services_of, stopped
from hutch.control import answers, shapes
from hutch.control.lifecycle import is_live
from hutch.control.permissions import Permission
from hutch.control.records import Scope, SessionRow, Snapshot, SnapshotStatus
from hutch.control.requests import DAY_MS, TakeSnapshot
from hutch.errors import GoneError, HutchError, NotFoundError, NotReadyError, PaymentRequiredError
from hutch.host.protocol import SessionStatus, SnapshotRecord, SnapshotRef, SnapshotRequest, SnapshotTaken
from hutch.storage import sandboxes as sandbox_rows
from hutch.storage import sessions as session_rows
from hutch.storage import snapshots as rows

router = APIRouter(route_class=PlainRoute, tags=["snapshots"])

log = logging.getLogger(__name__)

TIDY_EVERY_S = 60.0
RETRY_S = 2.0
TREE_LIMIT = 10
LATER_EXPIRATION_MS = 7 * DAY_MS
"""Where neither a request nor its sandbox says anything: in versions of the API after those that clients use today."""
NO_SNAPSHOT = "Cannot resume sandbox: no snapshot available."
"""What the vendor answers to a resume, whether there never was a snapshot (400) or it is gone (410)."""


@router.post(
    "/v2/sandboxes/sessions/{session_id}/snapshot",
    status_code=201,
    openapi_extra=documented(
        TakeSnapshot, status=201, answer=answers.SnapshotTaken, errors=(402, *LIVE), needs=Permission.SNAPSHOT_WRITE
    ),
)
async def take_snapshot(request: Request, session_id: str) -> Response:
    """Save the files of a session, which ends with that. With `keepRunning` it goes on, and the snapshot has the files of one
    moment, as after a power cut. With `memory` it has the processes too, which go on where they were."""
    services = services_of(request)
    owner = await services.auth.session(request, session_id)
    body = await read(request, TakeSnapshot)
    async with services.database.read() as connection:
        session = await session_rows.find(connection, owner.scope, session_id, services.sealer)
    if session is None:
        raise NotFoundError("not_found", f"Session '{session_id[:128]}' not found.")
    if not is_live(session.status):
        raise stopped()
    await check_quota(services, owner.scope)
    expiration_ms = body.expiration
    if expiration_ms is None and api_version(request) > 2:
        expiration_ms = await _later_default(services, owner.scope, session)
    wanted = SnapshotRequest(session_id=session_id, keep_running=body.keepRunning, memory=body.memory)
    taken = await call(services, "session.snapshot", wanted, SnapshotTaken)
    session = await services.apply(taken.session, expiration_ms=expiration_ms) or session
    if body.keepRunning:
        async with services.database.write() as connection:
            await session_rows.find(connection, owner.scope, session_id, services.sealer, lock=True)
            await rows.reported(connection, session, taken.snapshot, services.clock(), expiration_ms=expiration_ms)
    else:
        # What the vendor answers, although it is down already.
        session = replace(session, status=SessionStatus.SNAPSHOTTING, stopped_at=None)
    services.snapshots_due.set()
    async with services.database.read() as connection:
        snapshot = await rows.find(connection, owner.scope, taken.snapshot.snapshot_id)
    if snapshot is None:
        raise unknown_snapshot(taken.snapshot.snapshot_id)
    bounded = owner.project_id in await services.bounded(owner.team_id)
    answer = {"snapshot": shapes.snapshot(snapshot), "session": shapes.session(session, bounded=bounded)}
    return JsonResponse(answer, status=201)


async def _later_default(services: Services, scope: Scope, session: SessionRow) -> int | None:
    """How long a snapshot is kept that was asked for by a later version of the API; None: as its sandbox says."""
    async with services.database.read() as connection:
        sandbox = await sandbox_rows.find(connection, scope, session.sandbox_name, services.sealer)
    if sandbox is None or sandbox.id != session.sandbox_id:
        return LATER_EXPIRATION_MS
    kept = sandbox.config.keep_last_snapshots or {}
    says_nothing = sandbox.config.snapshot_expiration_ms is None and "expiration" not in kept
    return LATER_EXPIRATION_MS if says_nothing else None


@router.get(
    "/v2/sandboxes/snapshots",
    openapi_extra=documented(
        query={"project": "Id or slug", "name": "Sandbox", "limit": "", "cursor": "", "sortOrder": ""},
        answer=answers.SnapshotPage,
        needs=Permission.SNAPSHOT_READ,
    ),
)
async def list_snapshots(request: Request) -> Response:
    """Snapshots of a project or of one sandbox, newest first; deleted ones stay listed."""
    services = services_of(request)
    scope = await _scope(request, "project")
    order = paging.choice(request, "sortOrder", "desc", ("asc", "desc"))
    name = paging.text(request, "name")
    query = f"snapshots {scope.team_id} {scope.project_id} {name} {order}"
    async with services.database.read() as connection:
        found, end = await rows.page(
            connection,
            scope,
            sandbox_name=name,
            descending=order == "desc",
            after=paging.position(request, query),
            limit=paging.limit(request),
        )
    return JsonResponse(shapes.page("snapshots", [shapes.snapshot(one) for one in found], paging.next_cursor(end, query)))


@router.get(
    "/v2/sandboxes/snapshots/tree",
    openapi_extra=documented(
        query={
            "project": "Id or slug",
            "snapshotId": "Where to start",
            "limit": "1 to 10",
            "sortOrder": "desc: what it came from; asc: what came from it",
        },
        answer=answers.SnapshotTree,
        errors=(404,),
        needs=Permission.SNAPSHOT_READ,
    ),
)
async def snapshot_tree(request: Request) -> Response:
    """Ancestors or descendants of a snapshot, nearest first, each with those that came from the same one."""
    services = services_of(request)
    scope = await _scope(request, "project")
    snapshot_id = paging.text(request, "snapshotId")
    order = paging.choice(request, "sortOrder", "desc", ("asc", "desc"))
    limit = min(paging.number(request, "limit", TREE_LIMIT, least=1), TREE_LIMIT)
    async with services.database.read() as connection:
        anchor = await rows.find(connection, scope, snapshot_id) if snapshot_id is not None else None
        if snapshot_id is not None and anchor is None:
            raise unknown_snapshot(snapshot_id)
        line = [one async for one in _line(connection, scope, anchor, order, limit + 1)]
        nodes = [await _node(connection, scope, one) for one in line[:limit]]
        anchored = {"anchor": await _node(connection, scope, anchor)} if anchor is not None else {}
    # The next page is asked for with the last one of this as its `snapshotId`.
    following = line[limit - 1].id if len(line) > limit else None
    return JsonResponse(shapes.page("snapshots", nodes, following, **anchored))


async def _line(
    connection: AsyncConnection, scope: Scope, anchor: Snapshot | None, order: str, limit: int
) -> AsyncIterator[Snapshot]:
    """Snapshots one behind the other: parents, or of each the newest that came from it."""
    at = anchor
    for _ in range(limit):
        if order == "desc" and at is not None:
            at = await rows.find(connection, scope, at.parent_id) if at.parent_id is not None else None
        else:
            newest = await rows.children(connection, scope, at.id if at is not None else None, 1)
            at = newest[0] if newest else None
        if at is None:
            return
        yield at


async def _node(connection: AsyncConnection, scope: Scope, snapshot: Snapshot) -> shapes.Json:
    beside = await rows.children(connection, scope, snapshot.parent_id, TREE_LIMIT + 1)
    siblings = [shapes.snapshot(one) for one in beside if one.id != snapshot.id][:TREE_LIMIT]
    count = f"{TREE_LIMIT}+" if len(beside) > TREE_LIMIT else str(len(beside))
    return {"snapshot": shapes.snapshot(snapshot), "siblings": siblings, "count": count}


@router.get(
    "/v2/sandboxes/snapshots/{snapshot_id}", openapi_extra=documented(answer=answers.SnapshotRead, needs=Permission.SNAPSHOT_READ)
)
async def get_snapshot(request: Request, snapshot_id: str) -> Response:
    """One snapshot."""
    services = services_of(request)
    scope = await _scope(request, None)
    async with services.database.read() as connection:
        return JsonResponse({"snapshot": shapes.snapshot(await existing(connection, scope, snapshot_id))})


@router.delete(
    "/v2/sandboxes/snapshots/{snapshot_id}",
    openapi_extra=documented(answer=answers.SnapshotRead, needs=Permission.SNAPSHOT_WRITE),
)
async def delete_snapshot(request: Request, snapshot_id: str) -> Response:
    """Delete a snapshot. Sandboxes that would go on from it can't be resumed any more; those that run are not touched."""
    services = services_of(request)
    scope = await _scope(request, None)
    async with services.database.write() as connection:
        await existing(connection, scope, snapshot_id)
        await rows.mark_deleted(connection, snapshot_id, services.clock())
        snapshot = await existing(connection, scope, snapshot_id)
    services.snapshots_due.set()
    return JsonResponse({"snapshot": shapes.snapshot(snapshot)})


async def _scope(request: Request, parameter: str | None) -> Scope:
    auth = services_of(request).auth
    principal = await auth.principal(request)
    project = request.query_params.get(parameter) if parameter is not None else None
    return await auth.scope(request, principal, project, one=False)


# -- shared with sandboxes.py -----------------------------------------------------------------------


async def existing(connection: AsyncConnection, scope: Scope, snapshot_id: str) -> Snapshot:
    """A snapshot, deleted ones too. Raises `NotFoundError`."""
    found = await rows.find(connection, scope, snapshot_id) if "\0" not in snapshot_id else None
    if found is None:
        raise unknown_snapshot(snapshot_id)
    return found


async def usable(connection: AsyncConnection, scope: Scope, snapshot_id: str, now: int, *, to_resume: bool = False) -> Snapshot:
    """A snapshot that a session can begin with. Raises `NotFoundError`, and `GoneError` for one that was deleted or expired; who
    wants `to_resume` is told that in the vendor's words."""
    found = await existing(connection, scope, snapshot_id)
    if found.status is not SnapshotStatus.CREATED or (found.expires_at is not None and found.expires_at <= now):
        gone = f"Snapshot '{snapshot_id}' was deleted or has expired."
        raise GoneError("snapshot_not_found", NO_SNAPSHOT if to_resume else gone)
    return found


def require_region(snapshot: Snapshot, region: str | None) -> None:
    """Raises `NotReadyError` for a snapshot that is asked to begin a sandbox in another region (None: in its own)."""
    if region not in (None, snapshot.region):
        raise NotReadyError(
            "snapshot_region_mismatch",
            f"The snapshot '{snapshot.id}' is in region '{snapshot.region}', and the sandbox would be in '{region}'.",
        )


def unknown_snapshot(snapshot_id: str) -> NotFoundError:
    return NotFoundError("not_found", f"Snapshot '{snapshot_id[:128]}' not found.")


async def check_quota(services: Services, scope: Scope, more_bytes: int = 0) -> None:
    """Raises `PaymentRequiredError` when a project's snapshots, with `more_bytes`, hold as much as they may."""
    await storage_budgets.require(services, scope, more_bytes)
    project_id = scope.project_id
    assert project_id is not None
    most = services.settings.limits.snapshot_bytes_per_project
    if not most:
        return
    async with services.database.read() as connection:
        held = await rows.held_bytes(connection, project_id) + more_bytes
    if held >= most:
        raise PaymentRequiredError(
            "quota_exceeded", f"The project's snapshots hold {held} bytes; {most} are allowed. Delete some, then try again."
        )


async def note_quotas(services: Services) -> None:
    """Say once which projects hold more than they may: what stops leave is kept all the same."""
    most = services.settings.limits.snapshot_bytes_per_project
    if not most:
        return
    async with services.database.read() as connection:
        over = await rows.holding_more(connection, most)
    for project_id in over.keys() - services.over_quota:
        log.warning("the snapshots of project %s hold %d bytes; %d are allowed", project_id, over[project_id], most)
    services.over_quota = set(over)


# -- behind the requests ----------------------------------------------------------------------------


async def keep_tidy(services: Services) -> None:
    """For ever: delete what has expired, and have the host remove what was deleted."""
    while True:
        services.snapshots_due.clear()
        pause = TIDY_EVERY_S
        try:
            await tidy(services)
            await note_quotas(services)
            await storage_budgets.note(services)
            if services.settings.blobs.url:
                # Copies are made when everybody has gone, and no session tells of it.
                await reconcile(services)
        except HutchError as error:
            log.warning("deleted snapshots are still on the host: %s", error.message)
            pause = RETRY_S
        try:
            async with asyncio.timeout(pause):
                await services.snapshots_due.wait()
        except TimeoutError:
            continue


async def tidy(services: Services) -> None:
    """Once. Raises `HutchError` when the host can't be told."""
    async with services.database.write() as connection:
        await rows.expire(connection, services.clock())
    while True:
        async with services.database.read() as connection:
            due = await rows.to_purge(connection)
        if not due:
            return
        for snapshot_id in due:
            await services.host.call("snapshot.delete", SnapshotRef(snapshot_id))
            async with services.database.write() as connection:
                await rows.purged(connection, snapshot_id, services.clock())


async def _give_up(services: Services, report: SnapshotRecord) -> None:
    """An import whose answer was lost belongs to nobody."""
    if report.snapshot_id not in services.importing:
        log.warning("snapshot %s was imported and never written down; it is removed", report.snapshot_id)
        await services.host.call("snapshot.delete", SnapshotRef(report.snapshot_id))


async def reconcile(services: Services) -> None:
    """Write what is new about a host's snapshots, and those that we were never told of: the answer to who asked was lost."""
    reports = await services.host.collect("snapshot.list", {}, SnapshotRecord)
    async with services.database.read() as connection:
        known = await rows.known(connection, [report.snapshot_id for report in reports])
    for report in reports:
        if report.snapshot_id in known:
            if known[report.snapshot_id] != (report.durable_at, report.stored_at, report.store_error):
                async with services.database.write() as connection:
                    await rows.told(connection, report)
            continue
        if not report.session_id:
            await _give_up(services, report)
            continue
        async with services.database.write() as connection:
            session = await session_rows.find_any(connection, report.session_id, services.sealer)
            if session is None:
                log.warning("snapshot %s is of a session that this database does not know", report.snapshot_id)
            else:
                await rows.reported(connection, session, report, services.clock())

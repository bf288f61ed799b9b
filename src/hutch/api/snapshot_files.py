"""Snapshots' files: their copy in the blob store checked, the files as a tar, and a snapshot from one.

Nothing is kept here: archives stream through with the host's back-pressure.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from fastapi import APIRouter
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from hutch import ids
from hutch.api import images, paging
from hutch.api.body import drain
from hutch.api.files import COMPRESSION_SLACK_BYTES, disposition, send_body
from hutch.api.responses import JsonResponse, StreamResponse
from hutch.api.routing import PlainRoute, documented
from hutch.api.sandboxes import DEFAULT_RUNTIME
from hutch.api.services import Services, services_of
from hutch.api.snapshots import check_quota, existing, usable
from hutch.blobs.jobs import Verified
from hutch.control import answers, shapes
from hutch.control.permissions import Permission
from hutch.control.records import Scope
from hutch.errors import HutchError
from hutch.host.protocol import SnapshotExport, SnapshotImport, SnapshotRecord, SnapshotRef
from hutch.storage import snapshots as rows
from hutch.wire import Stream
from hutch.wire.connection import Data

router = APIRouter(route_class=PlainRoute, tags=["snapshots"])

TAR = b"application/x-tar"
FORMATS = ("tar", "oci")


@router.post(
    "/hutch/v1/snapshots/{snapshot_id}/verify",
    openapi_extra=documented(answer=answers.SnapshotVerified, errors=(409, 410), needs=Permission.SNAPSHOT_READ),
)
async def verify_snapshot(request: Request, snapshot_id: str) -> Response:
    """Read the copy that a snapshot has in the blob store, and compare it with the files on the machine where they are there."""
    services = services_of(request)
    await _usable(request, services, snapshot_id)
    verified = await services.host.call("snapshot.verify", SnapshotRef(snapshot_id), Verified)
    answer = {"manifest": verified.manifest, "files": verified.files, "bytes": verified.bytes, "compared": verified.compared}
    return JsonResponse({"snapshotId": snapshot_id, **answer})


@router.get(
    "/hutch/v1/snapshots/{snapshot_id}/export",
    openapi_extra=documented(
        query={"format": ("tar: the layer alone; oci: in an OCI image layout", {"enum": list(FORMATS)})},
        content="application/x-tar",
        errors=(409, 410),
        needs=Permission.FILE_READ,
    ),
)
async def export_snapshot(request: Request, snapshot_id: str) -> Response:
    """What was written over the image, as a tar laid out as the layers of OCI images are."""
    services = services_of(request)
    form = paging.choice(request, "format", "tar", FORMATS)
    await _usable(request, services, snapshot_id)
    most = _whole(services.settings.sandbox.max_archive_bytes)
    params = SnapshotExport(snapshot_id=snapshot_id, max_bytes=most, oci=form == "oci")
    stream = await services.host.open("snapshot.export", params)
    try:
        stream.send_end()
        await stream.reply()
    except BaseException:
        stream.cancel()
        raise
    return StreamResponse(_contents(stream), TAR, [(b"content-disposition", disposition(f"{snapshot_id}.tar"))])


async def _contents(stream: Stream) -> AsyncIterator[bytes]:
    stream.manual_credit = True
    try:
        async for item in stream:
            if isinstance(item, Data):
                yield item.data
                stream.grant(len(item.data))
    finally:
        stream.cancel()


@router.post(
    "/hutch/v1/snapshots",
    status_code=201,
    openapi_extra=documented(
        query={"projectId": "Id or slug", "image": "What it lies over; by default what sandboxes begin with"},
        status=201,
        answer=answers.SnapshotRead,
        upload=TAR.decode(),
        errors=(402, 404, 409),
        needs=Permission.SNAPSHOT_WRITE,
    ),
)
async def import_snapshot(request: Request) -> Response:
    """A new snapshot of the project, from a tar as the export makes it. Anything else than files, directories, links and pipes
    below its root is refused, and nothing is left."""
    services = services_of(request)
    principal = await services.auth.principal(request)
    scope = await services.auth.scope(request, principal, request.query_params.get("projectId"))
    assert scope.project_id is not None
    await check_quota(services, scope)
    reference = paging.text(request, "image") or services.settings.sandbox.default_image
    image = await images.resolve(services, principal, scope, reference, None)
    limits = services.settings.sandbox
    asked = SnapshotImport(
        snapshot_id=ids.snapshot_id(), image=image.pinned, max_bytes=limits.max_archive_bytes, max_files=limits.max_archive_files
    )
    services.importing.add(asked.snapshot_id)
    try:
        report = await _send(request, services, asked)
        snapshot = await _write(services, scope, report)
    except ClientDisconnect:
        return JsonResponse({}, 499)
    except HutchError:
        await drain(request)
        raise
    finally:
        services.importing.discard(asked.snapshot_id)
    return JsonResponse({"snapshot": snapshot}, status=201)


async def _send(request: Request, services: Services, asked: SnapshotImport) -> SnapshotRecord:
    """Have the host make it of the body."""
    most = _whole(asked.max_bytes)
    stream = await services.host.open("snapshot.import", asked)
    try:
        await send_body(request.stream(), stream, most, most)
        return await stream.reply(SnapshotRecord)
    finally:
        stream.cancel()


def _whole(contents: int) -> int:
    """What a tar of so many bytes of contents has at most, with its headers."""
    return contents + contents // 8 + COMPRESSION_SLACK_BYTES


async def _write(services: Services, scope: Scope, report: SnapshotRecord) -> shapes.Json:
    region = services.settings.sandbox.region
    async with services.database.write() as connection:
        await rows.imported(connection, scope, report, services.clock(), runtime=DEFAULT_RUNTIME, region=region)
        return shapes.snapshot(await existing(connection, scope, report.snapshot_id))


async def _usable(request: Request, services: Services, snapshot_id: str) -> None:
    """Raises `NotFoundError` and `GoneError`."""
    scope = await services.auth.scope(request, await services.auth.principal(request), None, one=False)
    async with services.database.read() as connection:
        await usable(connection, scope, snapshot_id, services.clock())

"""Files: archives in, bytes out, directories. Nothing is kept here: bodies stream through with the host's back-pressure."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from urllib.parse import quote

from fastapi import APIRouter
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from hutch.api.body import drain, read
from hutch.api.commands import call, host_errors, open_stream
from hutch.api.responses import JsonResponse, StreamResponse
from hutch.api.routing import LIVE, PlainRoute, documented
from hutch.api.services import Services, services_of
from hutch.control import answers
from hutch.control.permissions import Permission
from hutch.control.requests import MAX_PATH_BYTES, MakeDirectory, ReadFile
from hutch.errors import BadRequestError, HutchError, NotFoundError, PayloadTooLargeError
from hutch.host.protocol import ArchiveWrite, FileMkdir, FileRead, SessionRecord, SessionRef
from hutch.wire import Stream
from hutch.wire.connection import Data

router = APIRouter(route_class=PlainRoute, tags=["files"])

GZIP_MAGIC = b"\x1f\x8b"
COMPRESSION_SLACK_BYTES = 64 * 1024 * 1024
"""What an archive may be larger than its contents: headers, and what gzip adds to noise."""


@router.post(
    "/v2/sandboxes/sessions/{session_id}/fs/write",
    openapi_extra=documented(
        answer=answers.Nothing,
        upload="application/gzip",
        headers={
            "x-cwd": ("Absolute path of the directory; default: the session's", {"type": "string", "pattern": "^/"}),
            "x-hutch-sudo": "`true`: as root",
        },
        errors=LIVE,
        needs=Permission.FILE_WRITE,
    ),
)
async def write_files(request: Request, session_id: str) -> Response:
    """Unpack a tar archive, gzipped or not, below the directory of the `x-cwd` header (default: the session's). With
    `x-hutch-sudo: true` as root."""
    services = services_of(request)
    await services.auth.session(request, session_id)
    limits = services.settings.sandbox
    most = limits.max_archive_bytes + COMPRESSION_SLACK_BYTES
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > most:
        raise too_large(most)
    cwd = await _target(request, services, session_id)
    chunks = request.stream()
    head = await _first_bytes(chunks)
    gzip = head.startswith(GZIP_MAGIC) or "gzip" in request.headers.get("content-type", "")
    sudo = request.headers.get("x-hutch-sudo") == "true"
    params = ArchiveWrite(session_id, cwd, gzip, limits.max_archive_bytes, limits.max_archive_files, sudo)
    stream = await open_stream(services, "archive.write", params)
    try:
        with host_errors():
            await stream.send_data(head, channel=0)
            await send_body(chunks, stream, most - len(head), most)
            await stream.reply()
    except ClientDisconnect:
        # The archive is incomplete; cancelling makes the guest drop it.
        return JsonResponse({}, 499)
    except HutchError:
        await drain(request)
        raise
    finally:
        stream.cancel()
    return JsonResponse({})


@router.post(
    "/v2/sandboxes/sessions/{session_id}/fs/read",
    openapi_extra=documented(
        ReadFile, content="application/octet-stream", errors=LIVE, example={"path": "/etc/hostname"}, needs=Permission.FILE_READ
    ),
)
async def read_file(request: Request, session_id: str) -> Response:
    """The bytes of a file."""
    services = services_of(request)
    await services.auth.session(request, session_id)
    body = await read(request, ReadFile)
    params = FileRead(session_id, body.path.encode(), body.cwd.encode() if body.cwd is not None else None)
    stream = await open_stream(services, "file.read", params)
    try:
        with host_errors():
            await stream.reply()
    except NotFoundError as error:
        raise NotFoundError("not_found", "File not found.") from error
    except BaseException:
        stream.cancel()
        raise
    return StreamResponse(_contents(stream), b"application/octet-stream", [(b"content-disposition", disposition(body.path))])


@router.post(
    "/v2/sandboxes/sessions/{session_id}/fs/mkdir",
    openapi_extra=documented(MakeDirectory, answer=answers.Nothing, errors=LIVE, needs=Permission.FILE_WRITE),
)
async def make_directory(request: Request, session_id: str) -> Response:
    """Make a directory; with `recursive` its parents too."""
    services = services_of(request)
    await services.auth.session(request, session_id)
    body = await read(request, MakeDirectory)
    cwd = body.cwd.encode() if body.cwd is not None else None
    await call(
        services, "file.mkdir", FileMkdir(session_id, body.path.encode(), cwd, body.recursive, body.sudo), dict[str, object]
    )
    return JsonResponse({})


async def send_body(chunks: AsyncIterator[bytes], stream: Stream, left: int, most: int) -> None:
    """Send what is left of a body on to its end. Raises `PayloadTooLargeError` beyond `left` bytes of `most`."""
    async for chunk in chunks:
        left -= len(chunk)
        if left < 0:
            raise too_large(most)
        if chunk:
            await stream.send_data(chunk, channel=0)
    stream.send_end()


async def _contents(stream: Stream) -> AsyncIterator[bytes]:
    """The file's bytes. An error in the middle breaks the answer off, so that a part is never taken for the whole."""
    try:
        async for item in stream:
            if isinstance(item, Data):
                yield item.data
    finally:
        stream.cancel()


async def _target(request: Request, services: Services, session_id: str) -> bytes:
    """Where to unpack: the bytes of `x-cwd`, or the session's working directory."""
    for name, value in request.headers.raw:
        if name == b"x-cwd":
            if not value.startswith(b"/") or len(value) > MAX_PATH_BYTES:
                raise BadRequestError(
                    "bad_request",
                    f"Invalid request: the header `x-cwd` should be an absolute path of at most {MAX_PATH_BYTES} bytes.",
                )
            return value
    session = await call(services, "session.get", SessionRef(session_id), SessionRecord)
    return session.cwd.encode()


async def _first_bytes(chunks: AsyncIterator[bytes]) -> bytes:
    """Enough of the body to tell gzip from tar."""
    head = b""
    async for chunk in chunks:
        head += chunk
        if len(head) >= len(GZIP_MAGIC):
            break
    return head


def too_large(most: int) -> PayloadTooLargeError:
    return PayloadTooLargeError("payload_too_large", f"The archive is larger than {most} bytes, the most that is taken.")


def disposition(path: str) -> bytes:
    """`content-disposition` with the file's name, in both spellings of RFC 6266 where the name needs it."""
    name = path.rstrip("/").rpartition("/")[2] or "file"
    plain = re.sub(r'[^\x20-\x7e]|["\\]', "_", name)[:255]
    header = f'attachment; filename="{plain}"'
    if plain != name:
        header += f"; filename*=UTF-8''{quote(name[:255], safe='')}"
    return header.encode("ascii")

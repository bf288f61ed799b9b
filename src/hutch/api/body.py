"""Reading request bodies within bounds."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request

from hutch.control.requests import Body, parse
from hutch.errors import PayloadTooLargeError

B = TypeVar("B", bound=Body)

MAX_STDIN_BODY_BYTES = 1024 * 1024
"""The vendor's bound; its clients send 512 KiB at once, in base64."""
DRAIN_BYTES = 64 * 1024 * 1024
DRAIN_TIMEOUT_S = 10.0


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body. Raises `PayloadTooLargeError` as soon as it is known to be above `limit` bytes."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise _too_large(limit)
    if declared == "0":
        return b""
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise _too_large(limit)
        chunks.append(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def read(request: Request, model: type[B], *, limit: int | None = None) -> B:
    """The body as `model`. Raises `BadRequestError` or `PayloadTooLargeError`."""
    if limit is None:
        limit = request.app.state.services.settings.server.max_body_bytes
    return parse(model, await read_body(request, limit))


async def drain(request: Request) -> None:
    """Read and drop what the client still sends, within bounds, so that it sees the answer instead of a broken connection."""
    dropped = 0
    try:
        async with asyncio.timeout(DRAIN_TIMEOUT_S):
            async for chunk in request.stream():
                dropped += len(chunk)
                if dropped > DRAIN_BYTES:
                    return
    except (TimeoutError, ClientDisconnect, RuntimeError):
        return


def _too_large(limit: int) -> PayloadTooLargeError:
    return PayloadTooLargeError(
        "payload_too_large", f"The request body is larger than {limit} bytes, the most that is taken here."
    )

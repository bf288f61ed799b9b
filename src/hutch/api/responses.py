"""Answers: JSON objects, NDJSON records and byte streams."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

JSON_TYPE = b"application/json; charset=utf-8"
NDJSON_TYPE = b"application/x-ndjson"
"""Clients compare the NDJSON type for equality, so nothing may follow it."""

Headers = list[tuple[bytes, bytes]]

encode = msgspec.json.encode


def line(content: Any) -> bytes:
    """One NDJSON record, in ASCII: a client may decode what it read piece by piece, so a character of several bytes would
    fall between two pieces; and some readers of lines split at more than the line feed."""
    encoded = encode(content)
    if not encoded.isascii():
        encoded = json.dumps(msgspec.json.decode(encoded), separators=(",", ":")).encode("ascii")
    return encoded + b"\n"


class JsonResponse(Response):
    """A JSON object; the encoder is msgspec's, which also refuses what JSON can't say."""

    def __init__(self, content: Any, status: int = 200, headers: Headers | None = None) -> None:
        self.status_code = status
        self.background = None
        self.body = encode(content)
        self.raw_headers = [
            (b"content-type", JSON_TYPE),
            (b"content-length", str(len(self.body)).encode()),
            (b"cache-control", b"private, max-age=0, must-revalidate"),
            *(headers or ()),
        ]


class StreamResponse(Response):
    """Chunks as they come. The head is sent before the first chunk is asked for, so that a client that waits long knows that it
    was heard. When the client goes away the iterator is closed, which cancels what it waits for."""

    def __init__(self, chunks: AsyncIterator[bytes], content_type: bytes, headers: Headers | None = None) -> None:
        self.status_code = 200
        self.background = None
        self.chunks = chunks
        self.raw_headers = [(b"content-type", content_type), (b"cache-control", b"no-store"), *(headers or ())]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sender = asyncio.ensure_future(self._send_all(send))
        listener = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait((sender, listener), return_when=asyncio.FIRST_COMPLETED)
            if not sender.done():
                sender.cancel()
                await asyncio.gather(sender, return_exceptions=True)
            else:
                sender.result()
        finally:
            listener.cancel()
            if not sender.done():
                sender.cancel()
                await asyncio.gather(sender, return_exceptions=True)
            await asyncio.gather(listener, return_exceptions=True)

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async for chunk in self.chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        finally:
            close = getattr(self.chunks, "aclose", None)
            if close is not None:
                await close()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def ndjson(chunks: AsyncIterator[bytes]) -> StreamResponse:
    return StreamResponse(chunks, NDJSON_TYPE)


def late_json(chunks: AsyncIterator[bytes]) -> StreamResponse:
    """A JSON object that takes a while: head at once, body when it is known."""
    return StreamResponse(chunks, JSON_TYPE)

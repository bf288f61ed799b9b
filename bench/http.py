"""A lean HTTP/1.1 client over one connection at a time: a benchmark of a server must not measure its client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httptools

READ_BYTES = 512 * 1024


class HttpError(Exception):
    """An answer that is not 2xx, or none."""


@dataclass(slots=True)
class _Answer:
    """What the parser calls back. `keep_alive` whether the connection can be used again."""

    status: int = 0
    chunks: list[bytes] = field(default_factory=list)
    done: bool = False
    parser: httptools.HttpResponseParser | None = None
    keep_alive: bool = True

    def on_headers_complete(self) -> None:
        assert self.parser is not None
        self.status = self.parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self.chunks.append(body)

    def on_message_complete(self) -> None:
        assert self.parser is not None
        self.done, self.keep_alive = True, self.parser.should_keep_alive()


class Http:
    """Requests with a token. Idle connections are used again."""

    def __init__(self, url: str, token: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self._host, self._port = parts.hostname, parts.port or 80
        self._head = f"Host: {parts.netloc}\r\nAuthorization: Bearer {token}\r\nConnection: keep-alive\r\n"
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def request(self, method: str, path: str, body: bytes = b"", *, content_type: str = "application/json") -> bytes:
        """A request and its whole answer. Raises `HttpError`."""
        return b"".join([chunk async for chunk in self.stream(method, path, body, content_type=content_type)])

    async def stream(
        self,
        method: str,
        path: str,
        body: bytes | AsyncIterable[bytes] = b"",
        *,
        content_type: str = "application/json",
        extra: str = "",
    ) -> AsyncIterator[bytes]:
        """A request and its answer as it arrives. Raises `HttpError`."""
        reader, writer = (
            self._idle.pop() if self._idle else await asyncio.open_connection(self._host, self._port, limit=READ_BYTES)
        )
        length = f"Content-Length: {len(body)}" if isinstance(body, bytes) else "Transfer-Encoding: chunked"
        head = f"{method} {path} HTTP/1.1\r\n{self._head}Content-Type: {content_type}\r\n{extra}{length}\r\n\r\n"
        writer.write(head.encode())
        if isinstance(body, bytes):
            writer.write(body)
        else:
            async for chunk in body:
                writer.write(b"%x\r\n" % len(chunk) + chunk + b"\r\n")
                await writer.drain()
            writer.write(b"0\r\n\r\n")
        answer = _Answer()
        answer.parser = httptools.HttpResponseParser(answer)
        while not answer.done:
            data = await reader.read(READ_BYTES)
            if not data:
                raise HttpError(f"{method} {path}: the connection ended in the middle of the answer")
            answer.parser.feed_data(data)
            if answer.status < 400:
                for chunk in answer.chunks:
                    yield chunk
                answer.chunks.clear()
        if answer.keep_alive:
            self._idle.append((reader, writer))
        else:
            writer.close()
        if answer.status >= 400:
            raise HttpError(f"{method} {path}: {answer.status} {b''.join(answer.chunks)[:300].decode('utf-8', 'replace')}")

    async def close(self) -> None:
        for _, writer in self._idle:
            writer.close()
        self._idle.clear()

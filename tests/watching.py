"""Stands between real clients and a real server, and looks at every answer that passes.

`Watching` passes bytes both ways as they come, so that nothing changes but a port: streams, WebSockets, ends and aborts are
those of client and server. What passes is read along by parsers of its own, and each answer is compared with what its endpoint
documents (`tests.answers`) and, a second opinion, with the reference's own table (`tests.reference`). What is wrong is in
`violations`.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from urllib.parse import unquote, urlsplit

import httptools

from tests.answers import Record, find_route, is_first_version, problems_of
from tests.reference import compare_all

CHUNK_BYTES = 64 * 1024
SHOWN_BYTES = 2000


class Watching:
    """A port of this machine behind which `url` is. Use as a context manager; it runs in a thread of its own."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._server = (parts.hostname, parts.port)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="watching")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended: asyncio.Event | None = None
        self.url = ""
        self.violations: list[str] = []
        self.answers = 0
        """How many were looked at."""
        self.compared = 0
        """How many of their objects the reference has."""

    def __enter__(self) -> Watching:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *error: object) -> None:
        assert self._loop is not None
        assert self._ended is not None
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()

    async def _run(self) -> None:
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        connections: set[asyncio.Task[None]] = set()

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.ensure_future(self._connection(reader, writer))
            connections.add(task)
            task.add_done_callback(connections.discard)

        listening = await asyncio.start_server(connected, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        self._ready.set()
        await self._ended.wait()
        listening.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _connection(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        exchange = Exchange()
        looking: list[asyncio.Task[None]] = []

        def answered(data: bytes) -> None:
            exchange.said(data)
            looking.extend(asyncio.ensure_future(self._look(*each)) for each in exchange.taken())

        to_server = None
        try:
            from_server, to_server = await asyncio.open_connection(*self._server)
            async with asyncio.TaskGroup() as both:
                both.create_task(_pass(from_client, to_server, exchange.asked))
                both.create_task(_pass(from_server, to_client, answered))
        except* OSError:
            # One end is gone; the other one must not see an orderly end.
            for writer in (to_client, to_server):
                if writer is not None:
                    writer.transport.abort()
        finally:
            looking.extend(asyncio.ensure_future(self._look(*each)) for each in exchange.broken_off())
            for writer in (to_client, to_server):
                if writer is not None:
                    writer.close()
                    with suppress(OSError):
                        await writer.wait_closed()
            await asyncio.gather(*looking)

    async def _look(self, method: str, target: str, record: Record) -> None:
        path = unquote(urlsplit(target).path)
        scope = {"type": "http", "method": method, "path": path}
        problems = problems_of(await find_route(scope), record, first_version=is_first_version(scope))
        self.answers += 1
        if record.whole and not problems and not is_first_version(scope):
            with suppress(ValueError):
                for line in bytes(record.body).splitlines():
                    try:
                        self.compared += compare_all(json.loads(line))
                    except AssertionError as error:
                        problems.append(f"the reference: {error}")
        self.violations += [
            f"{method} {path[:200]} → {record.status}: {problem}\n    {bytes(record.body[:SHOWN_BYTES])!r}"
            for problem in problems
        ]


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seen: Callable[[bytes], None]) -> None:
    """Bytes from one end to the other, at the pace of the slower one, and then its end."""
    while data := await reader.read(CHUNK_BYTES):
        writer.write(data)
        seen(data)
        await writer.drain()
    writer.write_eof()


class Exchange:
    """What is said on one connection. A parser that finds something else than HTTP listens no more."""

    def __init__(self) -> None:
        self._requests = _Requests()
        self._responses = _Responses(self._requests)
        self._asking: httptools.HttpRequestParser | None = httptools.HttpRequestParser(self._requests)
        self._answering: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self._responses)
        self._requests.parser, self._responses.parser = self._asking, self._answering

    def asked(self, data: bytes) -> None:
        if self._asking is not None:
            try:
                self._asking.feed_data(data)
            except (httptools.HttpParserError, httptools.HttpParserUpgrade):
                self._asking = None

    def said(self, data: bytes) -> None:
        if self._answering is not None:
            try:
                self._answering.feed_data(data)
            except (httptools.HttpParserError, httptools.HttpParserUpgrade):
                self._answering = None

    def broken_off(self) -> list[tuple[str, str, Record]]:
        """The connection is over, maybe in the middle of an answer."""
        self._responses.give()
        return self.taken()

    def taken(self) -> list[tuple[str, str, Record]]:
        """Answers since the last call, with what was asked."""
        found, self._responses.done = self._responses.done, []
        return found


class _Requests:
    def __init__(self) -> None:
        self.parser: httptools.HttpRequestParser | None = None
        self.waiting: deque[tuple[str, str]] = deque()
        self._target = b""

    def on_message_begin(self) -> None:
        self._target = b""

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_headers_complete(self) -> None:
        assert self.parser is not None
        self.waiting.append((self.parser.get_method().decode(), self._target.decode("latin-1")))


class _Responses:
    def __init__(self, requests: _Requests) -> None:
        self.parser: httptools.HttpResponseParser | None = None
        self.done: list[tuple[str, str, Record]] = []
        self._requests = requests
        self._headers: list[tuple[bytes, bytes]] = []
        self._record: Record | None = None

    def on_message_begin(self) -> None:
        self._headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        assert self.parser is not None
        status = self.parser.get_status_code()
        if status >= 200 and self._requests.waiting:
            self._record = Record()
            self._record.add({"type": "http.response.start", "status": status, "headers": self._headers})

    def on_body(self, body: bytes) -> None:
        if self._record is not None:
            self._record.add({"type": "http.response.body", "body": body, "more_body": True})

    def on_message_complete(self) -> None:
        if self._record is not None:
            self._record.add({"type": "http.response.body", "body": b"", "more_body": False})
            self.give()

    def give(self) -> None:
        if self._record is not None:
            self.done.append((*self._requests.waiting.popleft(), self._record))
            self._record = None

"""What stands between the real clients and the server in tests changes nothing and misses nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from tests.reference import REQUIRED
from tests.watching import Watching

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Before = Callable[[Handler], Awaitable["Between"]]
JSON = b"content-type: application/json; charset=utf-8\r\n"


class Between:
    """A scripted server with `Watching` before it."""

    def __init__(self, watching: Watching) -> None:
        self.watching = watching
        self._ended = False

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", int(self.watching.url.rpartition(":")[2]))

    async def ask(self, request: bytes) -> bytes:
        reader, writer = await self.connect()
        writer.write(request)
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        return answer

    async def ended(self) -> list[str]:
        """What was found, once all that passed was looked at."""
        if not self._ended:
            self._ended = True
            await asyncio.to_thread(self.watching.__exit__)
        return self.watching.violations


@pytest.fixture
async def before() -> AsyncIterator[Before]:
    servers: list[asyncio.Server] = []
    betweens: list[Between] = []

    async def made(handler: Handler) -> Between:
        servers.append(await asyncio.start_server(handler, "127.0.0.1", 0))
        watching = Watching(f"http://127.0.0.1:{servers[0].sockets[0].getsockname()[1]}")
        betweens.append(Between(watching.__enter__()))
        return betweens[0]

    yield made
    for between in betweens:
        await between.ended()
    for server in servers:
        server.close()


def answering(*answers: bytes) -> Handler:
    """One answer per connection, head by head."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
        await writer.drain()
        writer.close()

    return handler


def whole(body: bytes, status: bytes = b"200 OK", head: bytes = JSON) -> bytes:
    return b"HTTP/1.1 %s\r\n%scontent-length: %d\r\n\r\n%s" % (status, head, len(body), body)


GET = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
ALIVE = whole(b'{"status":"ok"}')
COMMANDS = b"GET /api/v2/sandboxes/sessions/sbx_1/cmd HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.mark.parametrize(
    ("request_", "answer", "found"),
    [
        (GET, whole(b'{"status":"ok","new":1}'), "new: Extra inputs are not permitted"),
        (GET, whole(b"{}"), "status: Field required"),
        (GET, whole(b'{"status":"ok"}', b"201 Created"), "the status is not one of"),
        (GET, whole(b'{"status":"ok"}', head=b"content-type: text/plain\r\n"), "the content type is"),
        (b"GET /api/v1/sandboxes HTTP/1.1\r\n\r\n", whole(b'{"sessions":[]}'), "sandboxes: Field required"),
        (b"PUT /healthz HTTP/1.1\r\n\r\n", whole(b'{"error":{"code":"x","message":"x"}}', b"405 No"), "405 without `Allow`"),
    ],
    ids=["more", "less", "status", "content type", "first version", "no Allow"],
)
async def test_what_is_not_documented_is_found(before: Before, request_: bytes, answer: bytes, found: str) -> None:
    between = await before(answering(answer))
    assert await between.ask(request_) == answer
    assert any(found in violation for violation in await between.ended())


async def test_answers_of_one_connection_are_told_apart(before: Before) -> None:
    wrong = whole(b'{"status":"no"}')
    informed = b"HTTP/1.1 100 Continue\r\n\r\n" + ALIVE
    between = await before(answering(ALIVE, informed, wrong, ALIVE))
    assert await between.ask(GET + GET + COMMANDS.replace(b"/api/v2/sandboxes/sessions/sbx_1/cmd", b"/readyz") + GET) == (
        ALIVE + informed + wrong + ALIVE
    )
    violations = await between.ended()
    assert all(violation.startswith("GET /readyz → 200") for violation in violations)
    assert violations
    assert between.watching.answers == 4


async def test_the_reference_has_its_own_say(before: Before, monkeypatch: pytest.MonkeyPatch) -> None:
    command: dict[str, object] = {"id": "cmd_1", "name": "x", "args": [], "cwd": "/", "sessionId": "sbx_1", "exitCode": 0}
    command["startedAt"] = 1_790_987_499_616
    monkeypatch.setitem(REQUIRED, "command", "id ofTheReference")
    between = await before(answering(whole(json.dumps({"commands": [command]}).encode())))
    await between.ask(COMMANDS)
    [violation] = await between.ended()
    assert "the reference: command lacks ['ofTheReference']" in violation


async def test_a_stream_passes_as_it_comes_and_its_records_are_looked_at(before: Before) -> None:
    heard = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n")
        for record in (b'{"stream":"stdout","data":"a"}\n', b'{"stream":"nothing","data":"b"}\n'):
            writer.write(b"%x\r\n%s\r\n" % (len(record), record))
            await asyncio.wait_for(heard.wait(), 10)
        # Without the last chunk: the answer breaks off.
        writer.close()

    between = await before(handler)
    reader, writer = await between.connect()
    writer.write(COMMANDS.replace(b"/cmd ", b"/cmd/cmd_1/logs "))
    assert b'"data":"a"' in await asyncio.wait_for(reader.readuntil(b"}\n"), 10)
    heard.set()
    assert b'"data":"b"' in await asyncio.wait_for(reader.read(), 10)
    writer.close()
    assert any("→ 200: StreamError.stream" in violation or "stream" in violation for violation in await between.ended())


async def test_what_is_no_http_any_more_passes_both_ways(before: Before) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n\x81\x02hi")
        assert await reader.readexactly(3) == b"\x00\xff\x7f"
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        writer.write_eof()
        await reader.read()
        writer.close()

    between = await before(handler)
    reader, writer = await between.connect()
    writer.write(b"GET /v2/sandboxes/terminal HTTP/1.1\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n")
    await asyncio.wait_for(reader.readuntil(b"\x81\x02hi"), 10)
    writer.write(b"\x00\xff\x7f")
    assert await asyncio.wait_for(reader.read(), 10) == b"HTTP/1.1 200 OK\r\n\r\n"
    writer.close()
    assert await between.ended() == []


async def test_a_client_that_goes_is_gone_for_the_server_too(before: Before) -> None:
    gone: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        try:
            gone.set_result(await reader.read())
        except ConnectionResetError:
            gone.set_result(b"")
        writer.close()

    between = await before(handler)
    _, writer = await between.connect()
    writer.write(GET)
    await writer.drain()
    writer.transport.abort()
    assert await asyncio.wait_for(gone, 10) == b""
    assert await between.ended() == []

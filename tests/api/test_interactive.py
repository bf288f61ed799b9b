"""Terminals over WebSockets."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import quote

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from hutch.api.tickets import MAX_TICKETS, TICKET_LIFE_S, Tickets
from tests.api.conftest import Api

pytestmark = pytest.mark.section("10")

START = {"type": "start", "command": "sh", "args": [], "env": ["TERM=xterm"], "cols": 100, "rows": 30}


async def opened(api: Api) -> dict[str, str]:
    session_id = (await api.create())["session"]["id"]
    response = await api.http.post(f"/api/v2/sandboxes/sessions/{session_id}/interactive", json={})
    return dict(response.json())


def terminal(where: dict[str, str]) -> connect:
    return connect(f"{where['url']}?token={where['token']}", proxy=None)


async def text(socket: ClientConnection) -> Any:
    async with asyncio.timeout(10):
        return await socket.recv()


async def test_the_answer_says_where_to_connect(api: Api) -> None:
    where = await opened(api)
    assert where["url"].startswith(api.url.replace("http://", "ws://"))
    assert "?" not in where["url"]
    assert where["token"]


async def test_a_program_is_typed_to_resized_and_its_exit_code_told(api: Api) -> None:
    async with terminal(await opened(api)) as socket:
        await socket.send(json.dumps(START))
        assert await text(socket) == b"$ "
        await socket.send(b"ls\n")
        assert await text(socket) == b"ls\n"
        await socket.send(json.dumps({"type": "resize", "cols": 120, "rows": 40}))
        assert await text(socket) == b"resized\r\n"
        await socket.send(b"exit 7")
        assert json.loads(await text(socket)) == {"type": "exit", "code": 7}
        await socket.wait_closed()
        assert socket.close_code == 1000
    assert api.host.sizes == [[100, 30], [120, 40]]


async def test_a_client_without_a_terminal_gets_the_usual_size(api: Api) -> None:
    async with terminal(await opened(api)) as socket:
        await socket.send(json.dumps(START | {"cols": 0, "rows": 0}))
        await text(socket)
    assert api.host.sizes == [[80, 24]]


@pytest.mark.section("10.2")
@pytest.mark.parametrize("more", [{}, {"cols": None, "rows": None}, {"cols": -1, "rows": 0}], ids=["missing", "null", "negative"])
async def test_only_the_command_is_needed(api: Api, more: dict[str, Any]) -> None:
    async with terminal(await opened(api)) as socket:
        await socket.send(json.dumps({"type": "start", "command": "sh", **more}))
        await text(socket)
    assert api.host.sizes == [[80, 24]]
    [asked] = api.host.ptys
    assert (asked.argv, asked.cwd, asked.env) == ([b"sh"], None, {})


@pytest.mark.section("10.2")
async def test_the_start_says_words_directory_and_variables(api: Api) -> None:
    start = {"args": ["-c", "x y"], "cwd": "/tmp", "env": ["TERM=xterm", "A=b=c", "EMPTY=", "nothing"]}
    async with terminal(await opened(api)) as socket:
        await socket.send(json.dumps(START | start))
        await text(socket)
    [asked] = api.host.ptys
    assert (asked.argv, asked.cwd) == ([b"sh", b"-c", b"x y"], b"/tmp")
    assert asked.env == {"TERM": "xterm", "A": "b=c", "EMPTY": ""}


@pytest.mark.section("10.2")
async def test_only_the_first_start_counts(api: Api) -> None:
    async with terminal(await opened(api)) as socket:
        await socket.send(json.dumps(START))
        assert await text(socket) == b"$ "
        await socket.send(json.dumps(START | {"cols": 11}))
        await socket.send(b"the same")
        assert await text(socket) == b"the same"
    assert len(api.host.ptys) == len(api.host.sizes) == 1


@pytest.mark.section("10.1")
@pytest.mark.parametrize("compression", ["deflate", None])
async def test_a_socket_needs_the_token_and_nothing_else(api: Api, compression: str | None) -> None:
    where = await opened(api)
    async with connect(f"{where['url']}?token={quote(where['token'], safe='')}", proxy=None, compression=compression) as socket:
        assert socket.response is not None
        assert "sec-websocket-protocol" not in socket.response.headers
        await socket.send(json.dumps(START))
        assert await text(socket) == b"$ "


@pytest.mark.section("10.1", "7.6")
async def test_the_request_for_a_terminal_needs_no_body(api: Api) -> None:
    session_id = (await api.create())["session"]["id"]
    tokens = set()
    for body in (b"", b"{}", b'{"unknown": 1}'):
        response = await api.http.post(f"/v2/sandboxes/sessions/{session_id}/interactive", content=body)
        assert (response.status_code, set(response.json())) == (200, {"url", "token"})
        tokens.add(response.json()["token"])
    assert len(tokens) == 3


async def test_closing_the_socket_hangs_up(api: Api) -> None:
    async with terminal(await opened(api)) as socket:
        await socket.send(json.dumps(START))
        await text(socket)
    async with asyncio.timeout(10):
        await api.host.pty_closed.wait()


async def test_a_program_that_does_not_exist_says_so_in_the_terminal(api: Api) -> None:
    async with terminal(await opened(api)) as socket:
        await socket.send(json.dumps(START | {"command": "nosuch"}))
        assert "executable file not found" in await text(socket)
        assert json.loads(await text(socket)) == {"type": "exit", "code": 127}


@pytest.mark.parametrize("first", ["x", "[]", "{}", '{"type":"start"}', '{"type":"start","command":5}', b"bytes", "[" * 100_000])
async def test_a_bad_first_message_ends_the_terminal(api: Api, first: str | bytes) -> None:
    async with terminal(await opened(api)) as socket:
        await socket.send(first)
        assert str(await text(socket)).startswith("hutch: ")
        assert json.loads(await text(socket))["type"] == "exit"


async def test_nonsense_in_the_middle_is_ignored(api: Api) -> None:
    async with terminal(await opened(api)) as socket:
        await socket.send(json.dumps(START))
        await text(socket)
        for nonsense in ("x", "[]", '{"type":"resize","cols":"a"}', '{"type":"resize","cols":1e99,"rows":true}', "[" * 100_000):
            await socket.send(nonsense)
        await socket.send(b"still here")
        assert await text(socket) == b"still here"


async def test_a_token_opens_one_terminal(api: Api) -> None:
    where = await opened(api)
    async with terminal(where):
        pass
    for token in (where["token"], "", "x" * 5000):
        with pytest.raises(InvalidStatus) as refused:
            async with terminal(where | {"token": token}):
                pass
        assert refused.value.response.status_code == 401
        assert json.loads(refused.value.response.body)["error"]["code"] == "unauthorized"


async def test_a_message_beyond_the_limit_closes_the_terminal(api: Api) -> None:
    async with terminal(await opened(api)) as socket:
        await socket.send(json.dumps(START))
        await text(socket)
        await socket.send(b"x" * (1024 * 1024 + 1))
        await socket.wait_closed()
        assert socket.close_code == 1009


def test_tickets_expire_and_are_bounded() -> None:
    now = 0.0
    tickets = Tickets(lambda: now)
    old = tickets.issue("sbx_1")
    now = TICKET_LIFE_S
    assert tickets.redeem(old) is None
    first = tickets.issue("sbx_2")
    for _ in range(MAX_TICKETS):
        tickets.issue("sbx_3")
    assert tickets.redeem(first) is None


@pytest.mark.section("10.4")
async def test_a_session_has_an_interactive_port(api: Api) -> None:
    made = await api.create(name="one", __interactive=True)
    read = (await api.http.get("/v2/sandboxes/one", params={"__includeSystemRoutes": "true"})).json()
    for session in (made["session"], read["session"]):
        assert type(session["interactivePort"]) is int
        assert session["interactivePort"] == 26661

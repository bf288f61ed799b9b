"""Requests and answers, with the network replaced."""

from __future__ import annotations

import json

import httpx
import pytest

from hutch.client import AsyncClient, Finished, Output, Server, Started
from hutch.errors import (
    BadRequestError,
    ForbiddenError,
    GoneError,
    HutchError,
    InternalError,
    NotFoundError,
    UnavailableError,
)

SERVER = Server("http://127.0.0.1:1", "secret", "team_1", "prj_1")
SESSION = "sbx_" + "a" * 28
COMMAND = {"id": "cmd_1", "name": "true", "args": [], "cwd": "/", "sessionId": SESSION, "startedAt": 1, "exitCode": None}


def client(handler: object) -> AsyncClient:
    assert callable(handler)
    return AsyncClient(SERVER, transport=httpx.MockTransport(handler))


def stream(*records: object, tail: str = "\n") -> httpx.Response:
    body = "\n".join(record if isinstance(record, str) else json.dumps(record) for record in records) + tail
    return httpx.Response(200, headers={"content-type": "application/x-ndjson"}, content=body.encode())


async def test_requests_carry_token_team_and_project() -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(404, json={"error": {"code": "not_found", "message": "No."}})

    async with client(answer) as made:
        with pytest.raises(NotFoundError, match="No"):
            await made.sandboxes.get("name")
    assert seen[0].headers["authorization"] == "Bearer secret"
    assert seen[0].url.path == "/api/v2/sandboxes/name"
    assert dict(seen[0].url.params) == {"teamId": "team_1", "projectId": "prj_1"}


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a?b=c", "a#b", "a b", "ä", "a\n", "../sessions", "%2e%2e"])
async def test_a_name_that_none_can_have_never_becomes_a_url(name: str) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise AssertionError(f"asked for {request.url}")

    async with client(answer) as made:
        with pytest.raises(NotFoundError):
            await made.sandboxes.get(name)
        with pytest.raises(NotFoundError):
            await made.sandboxes.delete(name)
        with pytest.raises(NotFoundError):
            await made.audit.traffic(name)


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, BadRequestError), (403, ForbiddenError), (410, GoneError), (503, UnavailableError), (599, InternalError)],
)
async def test_errors_become_the_same_class_again(status: int, kind: type[HutchError]) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(status, json={"error": {"code": "some_code", "message": "Why.", "extra": 1}})

    async with client(answer) as made:
        with pytest.raises(kind) as error:
            await made.sandboxes.create()
    assert (error.value.code, error.value.message, error.value.details) == ("some_code", "Why.", {"extra": 1})


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b'{"error": 1}',
        b'{"error": {"code": 1, "message": "x"}}',
        b"[" * 100_000,
        b"\xff\xfe",
        b"x" * 10_000_000,
    ],
)
async def test_an_error_that_is_not_ours_is_still_an_error(body: bytes) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(502, content=body)

    async with client(answer) as made:
        with pytest.raises(HutchError) as error:
            await made.sandboxes.create()
    assert error.value.code == "unexpected_answer"
    assert "502" in error.value.message


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b"{}", b'{"sandbox": {}}', b"\xff", b"[" * 100_000])
async def test_an_answer_that_is_not_understood_is_an_error(body: bytes) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=body)

    async with client(answer) as made:
        with pytest.raises(InternalError, match="not understood"):
            await made.sandboxes.create()


TRAFFIC = {
    "sessionId": SESSION,
    "payload": {"up": 3, "down": 4},
    "interface": {"egress": 5, "ingress": 6},
    "flows": 1,
    "names": [{"name": "a.test", "connections": 1, "requests": 2, "denied": 0, "injected": 0, "up": 3, "down": 4}],
    "rules": [],
}


async def test_traffic_of_a_sandbox() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/api/hutch/v1/sandboxes/one/traffic"
        assert dict(request.url.params) == {"teamId": "team_1", "projectId": "prj_1"}
        return httpx.Response(200, json=TRAFFIC)

    async with client(answer) as made:
        found = await made.audit.traffic("one")
    assert (found.payload.up, found.payload.down) == (3, 4)
    assert (found.interface.egress, found.interface.ingress) == (5, 6)
    assert [(entry.name, entry.up) for entry in found.names] == [("a.test", 3)]


@pytest.mark.parametrize("wrong", [{"names": [{"name": "a.test"}]}, {"names": {}}, {"payload": {"up": "3", "down": 4}}])
async def test_traffic_that_is_not_understood_is_an_error(wrong: dict[str, object]) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=TRAFFIC | wrong)

    async with client(answer) as made:
        with pytest.raises(InternalError, match="not understood"):
            await made.audit.traffic("one")


async def test_a_server_that_is_down_is_reported_with_its_address() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    async with client(answer) as made:
        with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1"):
            await made.sandboxes.create()


async def test_a_followed_command_yields_its_start_output_and_end() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        assert json.loads(request.content)["wait"] is True
        end = COMMAND | {"exitCode": 3, "durationMs": 5}
        return stream(
            {"command": COMMAND}, {"stream": "stdout", "data": "a\n"}, {"stream": "stderr", "data": "b"}, {"command": end}
        )

    async with client(answer) as made:
        events = [event async for event in made.commands.follow(SESSION, ["true"])]
    assert isinstance(events[0], Started)
    assert events[1:3] == [Output("stdout", "a\n"), Output("stderr", "b")]
    assert isinstance(events[3], Finished)
    assert events[3].command.exit_code == 3


@pytest.mark.parametrize(
    ("records", "code"),
    [
        ([{"command": COMMAND}], "stream_ended_early"),
        ([], "stream_ended_early"),
        ([{"command": COMMAND}, {"stream": "error", "data": {"code": "sandbox_stopped", "message": "Over."}}], "sandbox_stopped"),
        ([{"command": COMMAND}, {"stream": "elsewhere", "data": "x"}], "unexpected_answer"),
        ([{"command": COMMAND}, "{not json"], "unexpected_answer"),
        ([{"command": {"id": 1}}], "unexpected_answer"),
    ],
)
async def test_a_stream_that_breaks_is_an_error_not_an_end(records: list[object], code: str) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return stream(*records)

    async with client(answer) as made:
        with pytest.raises(HutchError) as error:
            await made.commands.run(SESSION, ["true"])
    assert error.value.code == code


async def test_lists_follow_their_cursor() -> None:
    item = {"name": "a", "currentSessionId": SESSION, "status": "running", "persistent": False, "createdAt": 1, "updatedAt": 1}

    def answer(request: httpx.Request) -> httpx.Response:
        first = "cursor" not in request.url.params
        name = "a" if first else "b"
        return httpx.Response(
            200, json={"sandboxes": [item | {"name": name}], "pagination": {"count": 1, "next": "c" if first else None}}
        )

    async with client(answer) as made:
        assert [sandbox.name async for sandbox in made.sandboxes.all()] == ["a", "b"]

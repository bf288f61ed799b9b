"""Streams are read as they are wanted, and closed whatever ends the reading."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from hutch.client import AsyncClient, Client, Output
from hutch.errors import UnavailableError
from tests.client.flavours import COMMAND, SESSION, Flavour, both, created, now, scripted

LINE = json.dumps({"stream": "stdout", "data": "x" * 1000}).encode() + b"\n"


class Endless(httpx.AsyncByteStream, httpx.SyncByteStream):
    """Lines without end; `then` is raised, or waited for, after so many."""

    def __init__(self, after: int = 2**30, then: BaseException | None = None) -> None:
        self.sent = 0
        self.closed = False
        self._after, self._then = after, then

    def __iter__(self) -> Iterator[bytes]:
        while self.sent < self._after:
            self.sent += 1
            yield LINE
        assert self._then is not None
        raise self._then

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while self.sent < self._after:
            self.sent += 1
            yield LINE
        await asyncio.Event().wait()

    def close(self) -> None:
        self.closed = True

    async def aclose(self) -> None:
        self.closed = True


def reading(flavour: Any, stream: Endless) -> Any:
    client = scripted(flavour, lambda request: httpx.Response(200, stream=stream))
    return client.commands.logs(SESSION, "cmd_1")


async def test_what_is_not_read_is_not_taken_from_the_connection() -> None:
    stream = Endless()
    log = reading(AsyncClient, stream)
    assert (await anext(log)).text == "x" * 1000
    assert stream.sent < 5
    await log.aclose()
    assert stream.closed


def test_what_is_not_read_is_not_taken_by_the_blocking_client_either() -> None:
    stream = Endless()
    for piece in reading(Client, stream):
        assert isinstance(piece, Output)
        break
    assert stream.sent < 5
    assert stream.closed


async def test_cancelling_closes_the_connection() -> None:
    stream = Endless(after=3)
    seen = asyncio.Event()

    async def read() -> None:
        async for _ in reading(AsyncClient, stream):
            seen.set()

    task = asyncio.create_task(read())
    await seen.wait()
    assert not stream.closed
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert stream.closed


def test_an_interrupt_closes_the_connection() -> None:
    stream = Endless(after=3, then=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        list(reading(Client, stream))
    assert stream.closed


async def test_a_callers_error_closes_the_connection() -> None:
    stream = Endless()

    def fail(piece: Output) -> None:
        raise ValueError(piece.text[:1])

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=created()) if request.method == "GET" else httpx.Response(200, stream=stream)

    sandbox = await scripted(AsyncClient, answer).get_sandbox("box")
    with pytest.raises(ValueError, match="x"):
        await sandbox.run_command("yes", on_output=fail)
    assert stream.closed


class Breaking(httpx.AsyncByteStream, httpx.SyncByteStream):
    """A command's stream whose connection breaks."""

    def __iter__(self) -> Iterator[bytes]:
        yield json.dumps({"command": COMMAND}).encode() + b"\n"
        yield b'{"stream": "stdout", "data": "one\\n"}\n'
        raise httpx.ReadError("reset")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for line in self:
            yield line


def breaking(log: str, asked: list[str]) -> Any:
    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.method)
        if request.method == "POST":
            return httpx.Response(200, stream=Breaking())
        if request.url.path.endswith("/logs"):
            return httpx.Response(200, content=json.dumps({"stream": "stdout", "data": log}).encode() + b"\n")
        if request.url.path.endswith("/cmd/cmd_1"):
            return httpx.Response(200, json={"command": COMMAND | {"exitCode": 0}})
        return httpx.Response(200, json=created())

    return answer


@both
async def test_a_command_whose_connection_breaks_is_not_run_again_and_nothing_of_it_is_missed(flavour: Flavour) -> None:
    asked: list[str] = []
    seen: list[str] = []
    sandbox = await now(scripted(flavour, breaking("one\ntwo\n", asked)).get_sandbox("box"))
    done = await now(sandbox.run_command("count", on_output=lambda piece: seen.append(piece.text)))
    assert (done.stdout, done.returncode) == ("one\ntwo\n", 0)
    assert seen == ["one\n", "two\n"]
    assert asked.count("POST") == 1


@both
async def test_a_log_that_does_not_go_on_from_what_was_seen_is_not_put_behind_it(flavour: Flavour) -> None:
    sandbox = await now(scripted(flavour, breaking("[dropped]\n", [])).get_sandbox("box"))
    with pytest.raises(UnavailableError, match="reset"):
        await now(sandbox.run_command("count"))

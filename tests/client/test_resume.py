"""A sandbox whose session is over goes on in a new one: once, together, and not where that would run something twice."""

from __future__ import annotations

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from hutch.client import AsyncClient, AsyncSandbox, Client, Sandbox
from hutch.errors import GoneError, HutchError, NotReadyError
from tests.client.flavours import COMMAND, OTHER, SESSION, Flavour, both, created, failure, now, scripted

ENDED = COMMAND | {"exitCode": 0}


class World:
    """A server whose first session is over, in the way that `over` says."""

    def __init__(self, over: httpx.Response, resumed: httpx.Response | None = None) -> None:
        self.over = over
        self.answer = resumed
        self.resumes = 0
        self.runs: list[str] = []
        self._lock = threading.Lock()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        if path.endswith("/v2/sandboxes/box"):
            if request.url.params.get("resume") != "true":
                return httpx.Response(200, json=created())
            with self._lock:
                self.resumes += 1
            return self.answer or httpx.Response(200, json=created(OTHER, resumed=True))
        session = path.split("/")[5]
        with self._lock:
            self.runs.append(session)
        if session == SESSION:
            return httpx.Response(self.over.status_code, headers=self.over.headers, content=self.over.content)
        lines = [{"command": COMMAND}, {"stream": "stdout", "data": "hello\n"}, {"command": ENDED}]
        return httpx.Response(200, content="".join(json.dumps(line) + "\n" for line in lines).encode())


@both
@pytest.mark.parametrize(
    "over", [failure(410, "sandbox_stopped"), failure(422, "sandbox_stopping"), failure(422, "sandbox_snapshotting")]
)
async def test_it_is_resumed_once_and_the_call_done_again(flavour: Flavour, over: httpx.Response) -> None:
    world = World(over)
    heard: list[Any] = []
    sandbox = await now(scripted(flavour, world).get_sandbox("box", on_resume=heard.append))
    done = await now(sandbox.run_command("true"))
    assert (done.stdout, done.returncode) == ("hello\n", 0)
    assert (world.resumes, world.runs, heard) == (1, [SESSION, OTHER], [sandbox])
    assert sandbox.session_id == OTHER


async def test_a_hook_that_is_a_coroutine_is_waited_for_and_may_run_commands() -> None:
    async def hook(sandbox: AsyncSandbox) -> None:
        said.append((await sandbox.run_command("true")).stdout)

    said: list[str] = []
    sandbox = await scripted(AsyncClient, World(failure(410, "x"))).get_sandbox("box", on_resume=hook)
    await sandbox.run_command("true")
    assert said == ["hello\n"]


@both
@pytest.mark.parametrize("over", [failure(422, "something_else"), failure(404, "command_not_found"), failure(400, "bad_request")])
async def test_other_errors_resume_nothing(flavour: Flavour, over: httpx.Response) -> None:
    world = World(over)
    sandbox = await now(scripted(flavour, world).get_sandbox("box"))
    with pytest.raises(HutchError):
        await now(sandbox.run_command("true"))
    assert (world.resumes, world.runs) == (0, [SESSION])


@both
async def test_a_session_that_is_over_again_is_the_callers_affair(flavour: Flavour) -> None:
    world = World(failure(422, "sandbox_stopping"), httpx.Response(200, json=created(SESSION)))
    sandbox = await now(scripted(flavour, world).get_sandbox("box"))
    with pytest.raises(NotReadyError):
        await now(sandbox.run_command("true"))
    assert (world.resumes, world.runs) == (1, [SESSION, SESSION])


@both
async def test_where_there_is_nothing_to_go_on_from_the_first_error_is_raised(flavour: Flavour) -> None:
    world = World(failure(410, "sandbox_stopped"), failure(400, "snapshot_not_found"))
    sandbox = await now(scripted(flavour, world).get_sandbox("box"))
    with pytest.raises(GoneError) as raised:
        await now(sandbox.run_command("true"))
    assert raised.value.code == "sandbox_stopped"


@both
async def test_nothing_runs_twice_that_has_started(flavour: Flavour) -> None:
    lines = [{"command": COMMAND}, {"stream": "error", "data": {"code": "sandbox_stopped", "message": "Over."}}]
    world = World(httpx.Response(200, content="".join(json.dumps(line) + "\n" for line in lines).encode()))
    sandbox = await now(scripted(flavour, world).get_sandbox("box"))
    with pytest.raises(GoneError):
        await now(sandbox.run_command("true"))
    assert (world.resumes, world.runs) == (0, [SESSION])


@both
async def test_sessions_resume_nothing(flavour: Flavour) -> None:
    world = World(failure(410, "sandbox_stopped"))
    sandbox = await now(scripted(flavour, world).get_sandbox("box"))
    with pytest.raises(GoneError):
        await now(sandbox.session.run_command("true"))
    assert world.resumes == 0


async def test_calls_that_notice_it_together_resume_together() -> None:
    world = World(failure(410, "sandbox_stopped"))
    sandbox: AsyncSandbox = await scripted(AsyncClient, world).get_sandbox("box")
    done = await asyncio.gather(*(sandbox.run_command("true") for _ in range(20)))
    assert [one.stdout for one in done] == ["hello\n"] * 20
    assert world.resumes == 1


def test_threads_that_notice_it_together_resume_together() -> None:
    world = World(failure(410, "sandbox_stopped"))
    sandbox: Sandbox = scripted(Client, world).get_sandbox("box")
    barrier = threading.Barrier(8)

    def run(_: int) -> str:
        barrier.wait()
        return sandbox.run_command("true").stdout

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(run, range(8))) == ["hello\n"] * 8
    assert world.resumes == 1


@both
@pytest.mark.parametrize("gone", [failure(410, "snapshot_not_found"), failure(404, "not_found")])
async def test_one_that_is_not_there_is_made(flavour: Flavour, gone: httpx.Response) -> None:
    asked: list[tuple[str, str]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append((request.method, request.url.path.removeprefix("/api")))
        if request.method == "POST":
            return httpx.Response(200, json=created())
        if (request.method == "GET" and "resume" in request.url.params) or gone.status_code == 404:
            return httpx.Response(gone.status_code, content=gone.content)
        return httpx.Response(200, json=created())

    sandbox, made = await now(scripted(flavour, answer).get_or_create_sandbox("box"))
    assert (sandbox.name, made) == ("box", True)
    assert ("DELETE", "/v2/sandboxes/box") in asked or gone.status_code == 404
    assert asked[-1] == ("POST", "/v3/sandboxes")


@both
async def test_of_two_that_make_one_the_second_gets_it(flavour: Flavour) -> None:
    answers: list[Any] = [failure(404, "not_found"), failure(409, "conflict"), httpx.Response(200, json=created())]
    sandbox, made = await now(scripted(flavour, lambda request: answers.pop(0)).get_or_create_sandbox("box"))
    assert (sandbox.name, made, answers) == ("box", False, [])

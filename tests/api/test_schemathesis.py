"""Requests made of `/openapi.json` (`tests.generated`), all kinds of them.

The server is a real one over the fake host, in a thread of its own, for all tests of this file. Each operation is asked about
things that exist (`Things`), so that more than its 404 is seen, and, where a request breaks them, about new ones next time.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Collection, Iterator
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import Case
from schemathesis.core.parameters import ParameterLocation

from hutch.api import openapi
from tests.api.conftest import Api, fake_host, served
from tests.generated import MODES, OPERATIONS, TIMEOUT_S, Asking, at_the_edges

UNLIMITED = {
    f"HUTCH_LIMITS__{name}": "0"
    for name in ("REQUESTS_PER_MINUTE", "CREATES_PER_MINUTE", "DELETES_PER_SECOND", "CONCURRENT_SANDBOXES")
}
FULL = os.environ.get("HUTCH_CAMPAIGN") == "full"
ASKED = sorted(one for one in OPERATIONS if FULL or not one.startswith(openapi.FIRST) or one == "v1_list_commands")
"""Those of the vendor's first API are the same endpoints; all of them are for `make test-all`."""
FEW, MANY = 3, 200
"""Random requests per operation and mode."""
EDGES = 40
"""How many of the requests that are not random are sent per operation and mode, unless all are."""

BREAKING = ("delete", "stop", "take_snapshot", "revoke", "kill", "write_stdin", "remove", "log_out")
"""Beginnings of the names of operations after which what they were about is not there, or not as it was."""
OF_OTHERS = ("delete_team", "rename_team", "remove_project", "rename_project")
"""Operations that the server's own team and project are not for."""
ANY_BYTES = ("call_webhook", "press_button")
"""Operations with a body of any bytes and nothing else that could be wrong."""
WAITING = ("kill_command", "write_stdin")
"""Operations about a command that runs; about one that is over, all others end."""


class Things:
    """What paths are about."""

    def __init__(self, api: Api) -> None:
        self._http = httpx.Client(base_url=api.url, headers={"authorization": f"Bearer {api.own.token}"}, timeout=TIMEOUT_S)
        self._own = api.own
        self._made = 0

    def close(self) -> None:
        self._http.close()

    def new_for(self, operation: str, parameters: Collection[str]) -> dict[str, str]:
        """A value for each parameter of an operation's path."""
        found = self.new(parameters, runs=operation in WAITING)
        for parameter in {"team", "project"} & set(parameters) if operation in OF_OTHERS else ():
            found[parameter] = self._post(f"/hutch/v1/{parameter}s", {"slug": f"made-{self._made}"})["id"]
        return found

    def new(self, parameters: Collection[str], *, runs: bool) -> dict[str, str]:
        """A value for each of these parameters of a path. `runs`: a command that does not end."""
        self._made += 1
        name = f"box-{self._made}"
        found = {
            "name": name,
            "drive": name,
            "registry": "registry.test",
            "run_id": "none",
            "job_id": "none",
            "button_id": "none",
            "button": "none",
            "project_id": self._own.project_id,
            "address": "none",
            "webhook": "none",
            "key": "none",
            "sync": "none",
            "database": "none",
            "view": "none",
            "team": self._own.team_id,
            "project": self._own.project_id,
        }
        if {"name", "session_id", "snapshot_id"} & set(parameters):
            found["session_id"] = self._post("/v3/sandboxes", {"name": name, "ports": [3000]})["session"]["id"]
        if "name" in parameters:
            self._http.put(f"/hutch/v1/credentials/{name}", json={"value": "secret"}).raise_for_status()
        if "command_id" in parameters:
            program = {"command": "wait", "attachStdin": True} if runs else {"command": "echo"}
            found["command_id"] = self._post(f"/v2/sandboxes/sessions/{found['session_id']}/cmd", program)["command"]["id"]
        if "snapshot_id" in parameters:
            found["snapshot_id"] = self._post(f"/v2/sandboxes/sessions/{found['session_id']}/snapshot", {})["snapshot"]["id"]
        if "drive" in parameters:
            self._post(f"/v2/sandboxes/drives/{name}", {})
        if "token_id" in parameters:
            found["token_id"] = self._post("/hutch/v1/tokens", {"team": "others", "project": "main"})["id"]
        if "upload" in parameters:
            found["upload"] = self._post("/v3/workersCreateWorker", {"name": name})["url"].rpartition("/")[2]
        if "worker_id" in parameters:
            found["worker_id"] = self._post("/v3/workersCreateWorker", {"name": name})["worker"]["workerId"]
            found["tool"] = "none"
        if "member_id" in parameters:
            member = {"identity": f"{name}@example.com", "role": "viewer"}
            found["member_id"] = self._post(f"/hutch/v1/teams/{self._own.team_id}/members", member)["id"]
        return {parameter: found[parameter] for parameter in parameters}

    def clear(self) -> None:
        """Delete every sandbox: the more there are, the longer takes a change of what bounds them all."""
        while found := self._http.get("/v2/sandboxes", params={"limit": 100}).raise_for_status().json()["sandboxes"]:
            for sandbox in found:
                self._http.delete(f"/v2/sandboxes/{sandbox['name']}").raise_for_status()

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        return self._http.post(path, json=body).raise_for_status().json()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, installed: Path) -> Iterator[Api]:
    """The API in a thread."""
    data_dir = tmp_path_factory.mktemp("schemathesis")
    ready = threading.Event()
    given_out: list[tuple[Api, asyncio.AbstractEventLoop, asyncio.Event]] = []
    failures: list[BaseException] = []

    async def main() -> None:
        async with fake_host(data_dir) as host, served(data_dir, host, UNLIMITED, installed) as api:
            ended = asyncio.Event()
            given_out.append((api, asyncio.get_running_loop(), ended))
            ready.set()
            await ended.wait()

    def run() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:  # noqa: BLE001 - raised again where pytest sees it
            failures.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    ready.wait()
    if given_out:
        api, loop, ended = given_out[0]
        yield api
        loop.call_soon_threadsafe(ended.set)
    thread.join()
    if failures:
        raise failures[0]


@pytest.fixture(scope="module")
def things(running: Api) -> Iterator[Things]:
    made = Things(running)
    yield made
    made.close()


@pytest.fixture(scope="module")
def ask(running: Api) -> Iterator[Asking]:
    made = Asking(running.url, running.own.token)
    yield made
    made.close()
    if made.operations == set(ASKED):
        # Most of what was allowed was done, and what was not was refused.
        assert sum(made.statuses[status] for status in (200, 201, 204)) > 200, made.statuses
        assert made.statuses[400] > 200, made.statuses
        assert made.statuses[405] > 50, made.statuses


@pytest.mark.campaign
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("operation_id", ASKED)
def test_answers_to_generated_requests_are_as_documented(operation_id: str, things: Things, ask: Asking) -> None:
    operation, name = OPERATIONS[operation_id], operation_id.removeprefix(openapi.FIRST)
    parameters = [found.name for found in operation.path_parameters]
    existing = things.new_for(name, parameters)

    def send(case: Case[Any], *, about_things: bool) -> None:
        if about_things:
            case.path_parameters = dict(existing)
        if ask(case) and parameters and name.startswith(BREAKING):
            existing.update(things.new_for(name, parameters))

    for mode in MODES:
        edges = list(at_the_edges(operation, mode))
        if not FULL and len(edges) > EDGES:
            edges = Random(operation_id).sample(edges, EDGES)
        for case in edges:
            send(case, about_things=case.meta is None or not case.meta.is_negative_at(ParameterLocation.PATH))
        if not (operation.body or operation.query or operation.headers) or (mode.is_negative and name in ANY_BYTES):
            # There is nothing to be random about.
            continue

        @seed(1)
        @settings(
            max_examples=MANY if FULL else FEW,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(operation.as_strategy(mode, path_parameters=dict(existing) or None))
        def random(case: Case[Any]) -> None:
            send(case, about_things=True)

        random()
    things.clear()

"""Sandboxes that wait for what they run, over a fake host: a tool's after a call, a sync's before it is due."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import pytest

from hutch.control.records import Scope
from hutch.host.protocol import SessionStatus
from hutch.storage import worker_syncs
from hutch.workers import ahead, manifest, reconcile
from tests.api.conftest import Api
from tests.api.deployed import deploy, deployed
from tests.workers.declared import SCHEMA

SYNC = {"databaseKey": "rows", "primaryKeyProperty": "Id"}
OUTPUT: dict[str, Any] = {"changes": [], "hasMore": False, "nextPacerStates": {}}
TOOL = {"_tag": "tool", "key": "ask", "config": {"title": "Ask", "description": "Asks.", "schema": SCHEMA}}


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def ask(api: Api, worker: str, arguments: Any) -> Any:
    answer = await api.http.post("/v3/workersRunCapability", json={"workerId": worker, "capabilityKey": "ask", "args": arguments})
    assert answer.status_code == 200, answer.text
    return answer.json()["result"]


def waits(api: Api) -> str:
    """The session that waits for a tool's next call."""
    warm = api.services.warm
    assert warm is not None
    [ready] = warm._ready.values()
    return ready.box.session_id


async def last_session(api: Api, worker: str) -> str:
    runs = (await api.http.get(f"/hutch/v1/workers/{worker}/runs")).json()["runs"]
    return str(runs[0]["session_id"])


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("how", ["session", "program"])
async def test_a_call_goes_on_in_a_fresh_sandbox_when_the_one_that_waited_died(api: Api, how: str, large: bool) -> None:
    worker = await deployed(api, lambda job: job["context"])
    await ask(api, worker, {"n": 1})
    await until(lambda: len(api.services.warm or ()) == 1)
    dead = waits(api)
    if how == "session":
        await api.host.end(dead, SessionStatus.FAILED, "out of memory")
    else:
        for command in api.host.commands[dead].values():
            await command.finish(137)
    jobs = len(api.host.worker_jobs)
    given = {"n": 2, "text": "x" * (100_000 if large else 1)}
    assert await ask(api, worker, given) == given
    assert len(api.host.worker_jobs) == jobs + 1
    assert await last_session(api, worker) != dead


async def test_one_that_lives_is_used_and_gets_its_input_whole(api: Api) -> None:
    worker = await deployed(api, lambda job: job["context"])
    await ask(api, worker, {"n": 1})
    for size in (1, 16 * 1024, 100_000):
        await until(lambda: len(api.services.warm or ()) == 1)
        waiting = waits(api)
        given = {"text": "ü" * size}
        assert await ask(api, worker, given) == given
        assert await last_session(api, worker) == waiting


def syncs(*keys: str) -> list[dict[str, Any]]:
    schedule = {"schedule": {"type": "interval", "intervalMs": 60_000}}
    return [TOOL, *({"_tag": "sync", "key": key, "config": SYNC | schedule} for key in keys)]


async def reconciled(api: Api, worker: str, capabilities: list[dict[str, Any]]) -> None:
    """Have its syncs be known, as a deployment has."""
    scope, services = Scope(api.own.team_id, api.own.project_id), api.services
    parsed = manifest.parse(json.dumps({"capabilities": capabilities}).encode())
    async with services.database.write() as connection:
        await reconcile.apply(connection, scope, worker, parsed, services.sealer, services.clock())
    services.syncs_due.set()


async def due_in(api: Api, worker: str, ms: int) -> None:
    """Have the syncs of a worker be due then, for whoever looks for what comes."""
    scope, services = Scope(api.own.team_id, api.own.project_id), api.services
    while True:
        async with services.database.read() as connection:
            known = await worker_syncs.of_worker(connection, scope, worker, services.sealer)
        if all(one.leased_until is None for one in known.values()):
            break
        await asyncio.sleep(0.01)
    async with services.database.write() as connection:
        for one in known.values():
            state = msgspec.structs.replace(one.state, due_ms=services.clock() + ms)
            await worker_syncs.put(connection, one, state, services.sealer)


async def test_syncs_find_sandboxes_that_wait_and_a_newer_deployment_does_not(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = await deployed(api, lambda job: OUTPUT, syncs("a", "b"))
    await reconciled(api, worker, syncs("a", "b"))
    waiting = api.services.ahead
    assert waiting is not None
    # Both ran once, at once, and are due in a minute.
    await until(lambda: len(api.host.worker_jobs) == 2)
    assert len(waiting) == 0
    await due_in(api, worker, 3_000)
    await until(lambda: len(waiting) == 2)
    made = {one.ready.box.session_id for ones in waiting._waiting.values() for one in ones}
    await until(lambda: len(api.host.worker_jobs) == 4)
    runs = (await api.http.get(f"/hutch/v1/workers/{worker}/runs")).json()["runs"]
    assert {run["session_id"] for run in runs if run["name"].startswith("sync:")} >= made
    monkeypatch.setattr(ahead, "KEPT_MS", 0)
    await due_in(api, worker, 3_000)
    await until(lambda: len(waiting) == 2)
    old = {one.ready.box.session_id for ones in waiting._waiting.values() for one in ones}
    await deploy(api, worker, syncs("a", "b"))
    await until(lambda: len(api.host.worker_jobs) == 6)
    runs = (await api.http.get(f"/hutch/v1/workers/{worker}/runs")).json()["runs"]
    assert not old & {run["session_id"] for run in runs}
    await until(lambda: old.isdisjoint(live(api)))


def live(api: Api) -> set[str]:
    return {session for session, record in api.host.sessions.items() if record.status is SessionStatus.RUNNING}

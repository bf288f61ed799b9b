"""Layers of dependencies, and runs that are forgotten, in the database of a server."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from hutch.control.records import Scope
from hutch.storage import worker_layers
from hutch.workers import layers, retention
from hutch.workers.layers import Inputs
from tests.api.conftest import Api
from tests.api.deployed import deployed

LOCKED = Inputs({"package.json": b"{}", "package-lock.json": b"{}"})
UNLOCKED = Inputs({"package.json": b"{}"})
DAY_MS = 86_400_000


@pytest.fixture
def environment() -> dict[str, str]:
    return {"HUTCH_WORKERS__WARM_S": "0", "HUTCH_WORKERS__KEEP_RUNS_S": "86400", "HUTCH_WORKERS__KEEP_LAYERS_S": "86400"}


@pytest.fixture
def later(api: Api, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Has the server's clock be so many milliseconds later from now on."""
    clock = api.services.clock

    def move(ms: int) -> None:
        monkeypatch.setattr(api.services, "clock", lambda: clock() + ms)

    return move


async def snapshot(api: Api, http: Any = None) -> str:
    http = http or api.http
    box = (await http.post("/v3/sandboxes", json={})).json()["session"]["id"]
    return str((await http.post(f"/v2/sandboxes/sessions/{box}/snapshot", json={})).json()["snapshot"]["id"])


async def test_a_project_finds_its_layer_and_nobody_elses(api: Api) -> None:
    services, own = api.services, Scope(api.own.team_id, api.own.project_id)
    other = await api.tenant("others", "apps")
    theirs = Scope(other.team_id, other.project_id)
    made = await snapshot(api)
    assert await layers.find(services, own, LOCKED, "key") is None
    await layers.keep(services, own, "key", made)
    assert await layers.find(services, own, LOCKED, "key") == made
    assert await layers.find(services, own, LOCKED, "other key") is None
    assert await layers.find(services, theirs, LOCKED, "key") is None
    # Not even one that names another's snapshot.
    await layers.keep(services, theirs, "key", made)
    assert await layers.find(services, theirs, LOCKED, "key") is None
    assert await layers.find(services, own, LOCKED, "key") == made


async def test_a_layer_is_replaced_and_the_ones_used_least_go(api: Api, monkeypatch: pytest.MonkeyPatch, later: Any) -> None:
    services, own = api.services, Scope(api.own.team_id, api.own.project_id)
    monkeypatch.setattr(layers, "MOST", 2)
    made = [await snapshot(api) for _ in range(4)]
    await layers.keep(services, own, "a", made[0])
    await layers.keep(services, own, "a", made[1])
    assert await layers.find(services, own, LOCKED, "a") == made[1]
    later(1)
    await layers.keep(services, own, "b", made[2])
    later(2)
    assert await layers.find(services, own, LOCKED, "a") == made[1]
    later(3)
    await layers.keep(services, own, "c", made[3])
    assert [await layers.find(services, own, LOCKED, key) for key in "abc"] == [made[1], None, made[3]]
    statuses = [(await api.http.get(f"/v2/sandboxes/snapshots/{one}")).json() for one in made]
    assert [one["snapshot"]["status"] for one in statuses] == ["deleted", "created", "deleted", "created"]


async def test_layers_end_when_nobody_uses_them(api: Api, later: Any) -> None:
    services, own = api.services, Scope(api.own.team_id, api.own.project_id)
    await layers.keep(services, own, "locked", await snapshot(api))
    await layers.keep(services, own, "unlocked", await snapshot(api))
    later(layers.UNLOCKED_MS + 1)
    assert await layers.find(services, own, UNLOCKED, "unlocked") is None, "there may be newer versions"
    assert await layers.find(services, own, LOCKED, "locked") is not None
    later(DAY_MS + 10_000)
    await layers.collect(services)
    async with services.database.read() as connection:
        assert await worker_layers.find(connection, own, "unlocked") is None
        assert await worker_layers.find(connection, own, "locked") is not None


async def test_a_layer_whose_snapshot_is_gone_is_not_found(api: Api) -> None:
    services, own = api.services, Scope(api.own.team_id, api.own.project_id)
    made = await snapshot(api)
    await layers.keep(services, own, "key", made)
    await api.http.delete(f"/v2/sandboxes/snapshots/{made}")
    assert await layers.find(services, own, LOCKED, "key") is None


async def runs_of(api: Api, worker: str) -> list[dict[str, Any]]:
    return list((await api.http.get(f"/hutch/v1/workers/{worker}/runs")).json()["runs"])


async def test_old_runs_are_forgotten_and_never_what_is_still_to_be_done(api: Api, later: Any) -> None:
    gate, began = asyncio.Event(), asyncio.Event()

    async def program(job: dict[str, Any]) -> Any:
        if job["key"] == "press":
            began.set()
            await gate.wait()
        return {"status": "success"}

    worker = await deployed(api, program)
    body = {"workerId": worker, "capabilityKey": "ask", "args": {}}
    assert (await api.http.post("/v3/workersRunCapability", json=body)).status_code == 200
    await api.http.post(f"/hutch/v1/workers/{worker}/automations/press/trigger", json={})
    await began.wait()
    assert len(await runs_of(api, worker)) == 2
    assert await retention.forget(api.services) == 0
    later(DAY_MS + 1000)
    assert await retention.forget(api.services) == 1
    [left] = await runs_of(api, worker)
    assert left["name"] == "automation:press"
    gate.set()
    async with asyncio.timeout(20):
        while (await runs_of(api, worker))[0].get("ended_at") is None:
            await asyncio.sleep(0.01)
    later(3 * DAY_MS)
    async with asyncio.timeout(20):
        while await runs_of(api, worker):
            await retention.forget(api.services)
            await asyncio.sleep(0.01)

"""How often workers of a project are run and built, over a fake host; other projects never wait for it."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from hutch.control.records import Scope
from hutch.workers import manifest, reconcile
from tests.api.conftest import Api
from tests.api.deployed import deployed
from tests.api.serving import deployed as deployed_for
from tests.api.serving import tool


@pytest.fixture
def environment() -> dict[str, str]:
    return {
        "HUTCH_WORKERS__LIMIT_TOOLS": "true",
        "HUTCH_WORKERS__QUEUED_RUNS_PER_MINUTE": "2",
        "HUTCH_WORKERS__SYNC_RUNS_PER_MINUTE": "2",
        "HUTCH_WORKERS__ROW_CHANGES_PER_MINUTE": "10",
        "HUTCH_WORKERS__BUILD_BURST": "2",
        "HUTCH_WORKERS__WARM_S": "0",
    }


async def ask(http: httpx.AsyncClient, worker: str, key: str = "ask") -> httpx.Response:
    return await http.post("/v3/workersRunCapability", json={"workerId": worker, "capabilityKey": key, "args": {"throw": None}})


async def test_tools_beyond_the_limit_are_refused_and_recorded(api: Api) -> None:
    worker = await deployed(api, lambda job: "done")
    for _ in range(2):
        assert (await ask(api.http, worker)).status_code == 200
    refused = await ask(api.http, worker)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limited")
    seconds = int(refused.headers["retry-after"])
    assert 0 < seconds <= 30
    runs = (await api.http.get(f"/hutch/v1/workers/{worker}/runs")).json()["runs"]
    assert [run["exit_code"] for run in runs] == [1, 0, 0]
    full = (await api.http.get(f"/hutch/v1/workers/{worker}/runs/{runs[0]['id']}")).json()["run"]
    assert full["output"] == {"_tag": "rate_limit_error", "retryAfterSeconds": seconds}
    assert len(api.host.worker_jobs) == 2


async def test_another_project_does_not_wait_for_it(api: Api) -> None:
    worker = await deployed(api, lambda job: "done")
    other = await api.tenant("others", "apps")
    theirs = await deployed_for(api, tool("ask"), http=other.http)
    while (await ask(api.http, worker)).status_code == 200:
        pass
    assert (await ask(other.http, theirs)).status_code == 200


async def test_queued_events_share_the_limit_with_tools(api: Api) -> None:
    worker = await deployed(api, lambda job: {"status": "success"})
    for _ in range(2):
        assert (await ask(api.http, worker)).status_code == 200
    pressed = await api.http.post(f"/hutch/v1/workers/{worker}/automations/press/trigger", json={})
    assert pressed.status_code in (200, 202), pressed.text
    assert len(api.host.worker_jobs) == 2
    assert (await api.http.get(f"/hutch/v1/workers/{worker}/deliveries")).status_code == 200


async def test_builds_beyond_the_limit_are_refused_before_they_begin(api: Api) -> None:
    worker = (await api.http.post("/v3/workersCreateWorker", json={"name": "w"})).json()["worker"]["workerId"]
    for _ in range(2):
        answer = await api.http.post("/v3/workersBuildWorker", json={"workerId": worker, "stream": True})
        assert answer.status_code == 200
    refused = await api.http.post("/v3/workersBuildWorker", json={"workerId": worker, "stream": True})
    assert refused.status_code == 429
    assert 0 < int(refused.headers["retry-after"]) <= 150
    other = await api.tenant("others", "apps")
    theirs = (await other.http.post("/v3/workersCreateWorker", json={"name": "w"})).json()["worker"]["workerId"]
    assert (await other.http.post("/v3/workersBuildWorker", json={"workerId": theirs})).status_code == 200


async def test_syncs_beyond_the_limit_wait(api: Api) -> None:
    config = {"databaseKey": "rows", "primaryKeyProperty": "Id"}
    capabilities: list[dict[str, Any]] = [{"_tag": "sync", "key": f"s{number}", "config": config} for number in range(4)]
    worker = await deployed(api, lambda job: {"changes": [], "hasMore": False, "nextPacerStates": {}}, capabilities)
    parsed = manifest.parse(json.dumps({"capabilities": capabilities}).encode())
    scope, services = Scope(api.own.team_id, api.own.project_id), api.services
    async with services.database.write() as connection:
        await reconcile.apply(connection, scope, worker, parsed, services.sealer, services.clock())
    services.syncs_due.set()
    before: list[str] = []
    while len(before) < 2:
        before = [job["key"] for job in api.host.worker_jobs]
        listed = (await api.http.get(f"/hutch/v1/workers/{worker}")).json()["worker"]["syncs"]
    services.syncs_due.set()
    listed = (await api.http.get(f"/hutch/v1/workers/{worker}")).json()["worker"]["syncs"]
    assert len(listed) == 4
    assert len({job["key"] for job in api.host.worker_jobs}) == 2


async def test_rows_are_written_whole_and_the_next_runs_wait(api: Api) -> None:
    config = {"databaseKey": "rows", "primaryKeyProperty": "Id"}
    capabilities: list[dict[str, Any]] = [{"_tag": "sync", "key": "s", "config": config}]
    databases = [
        {"key": "rows", "primaryKeyProperty": "Id", "schema": {"properties": {"Id": {"type": "title"}}}, "initialTitle": "Rows"}
    ]
    changes = [{"type": "upsert", "key": str(number), "properties": {"Id": [[str(number)]]}} for number in range(25)]
    returned = {"changes": changes, "hasMore": False, "nextPacerStates": {}}
    worker = await deployed(api, lambda job: returned, capabilities)
    parsed = manifest.parse(json.dumps({"capabilities": capabilities, "databases": databases}).encode())
    scope, services = Scope(api.own.team_id, api.own.project_id), api.services
    async with services.database.write() as connection:
        await reconcile.apply(connection, scope, worker, parsed, services.sealer, services.clock())
    rates = services.worker_rates
    assert rates is not None
    answer = await api.http.post(f"/hutch/v1/workers/{worker}/syncs/s/trigger", json={"wait": True})
    assert answer.json()["sync"]["stats"]["total_upserts"] == 25, answer.text
    assert api.own.project_id is not None
    now = services.clock()
    # Fifteen too many, of ten a minute.
    assert 60_000 < rates.sync(api.own.project_id, now) <= 90_000
    assert rates.sync(api.own.project_id, now + 90_000) == 0
    assert rates.sync("prj_another", now) == 0

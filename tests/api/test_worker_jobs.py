"""What the queue makes of processes that are gone, and of what is not the worker's doing, over a fake host."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import update

from hutch import ids
from hutch.clock import now_ms
from hutch.control.records import Scope
from hutch.errors import UnavailableError
from hutch.storage import worker_jobs as rows
from hutch.storage import workers
from hutch.storage.models import JobModel
from hutch.storage.worker_jobs import Job
from hutch.storage.workers import Run
from hutch.workers import jobs
from tests.api.conftest import Api
from tests.api.deployed import deployed
from tests.api.test_webhooks import later

OK = {"status": "success"}


async def left(api: Api, worker: str, kind: str, *, began: bool) -> tuple[Job, str]:
    """A job that a process had claimed which is gone, with the sandbox of its run; and that sandbox's session."""
    scope, services = Scope(api.own.team_id, api.own.project_id), api.services
    now = now_ms()
    session: str = (await api.http.post("/v3/sandboxes", json={})).json()["session"]["id"]
    content: Any = jobs.kept("POST", [("X-A", "b")], b"{}") if kind == jobs.WEBHOOK else {"actionType": "x"}
    key = "plain" if kind == jobs.WEBHOOK else "press"
    run = Run(
        ids.worker_id(), worker, scope.team_id, api.own.project_id, ids.worker_id(), session, f"{kind}:{key}", None, now, None
    )
    async with services.database.write() as connection:
        job = await rows.add(
            connection,
            scope,
            services.sealer,
            now,
            job_id=ids.worker_id(),
            worker_id=worker,
            kind=kind,
            key=key,
            content=content,
            input_hash="",
            retries=3 if kind == jobs.WEBHOOK else 0,
        )
        claimed = await rows.claim(connection, api.own.project_id, "gone", now)
        assert job is not None
        assert claimed is not None
        assert claimed.id == job.id
        if began:
            await workers.add_run(connection, run)
            assert await rows.begin(connection, claimed, run.id, now)
    return claimed, session


async def settled(api: Api, job: Job, *statuses: str) -> Job:
    async with asyncio.timeout(15):
        while True:
            async with api.services.database.read() as connection:
                found = await rows.find(connection, job.scope, job.worker_id, job.id)
            assert found is not None
            if found.status in statuses:
                return found
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("kind", [jobs.WEBHOOK, jobs.AUTOMATION])
async def test_what_had_not_begun_is_run_as_if_nothing_had_been(api: Api, kind: str) -> None:
    worker = await deployed(api, lambda job: OK)
    job, _ = await left(api, worker, kind, began=False)
    await asyncio.sleep(0.2)
    assert api.host.worker_jobs == [], "its lease is not over"
    later(api, rows.LEASE_MS)
    done = await settled(api, job, "done")
    assert (done.attempts, done.fence, len(api.host.worker_jobs)) == (1, 2, 1)


async def test_a_trigger_that_had_begun_is_not_repeated_and_its_sandbox_is_ended(api: Api) -> None:
    worker = await deployed(api, lambda job: OK)
    job, session = await left(api, worker, jobs.AUTOMATION, began=True)
    later(api, rows.LEASE_MS)
    dead = await settled(api, job, "dead")
    assert (dead.attempts, api.host.worker_jobs) == (1, [])
    assert api.host.sessions[session].status == "stopped"
    run = (await api.http.get(f"/hutch/v1/workers/{worker}/runs/{dead.run_id}")).json()["run"]
    assert (run["exit_code"], run["output"]["error"]["name"]) == (1, "RunLostError")


async def test_a_delivery_that_had_begun_is_repeated_with_the_same_id(api: Api) -> None:
    worker = await deployed(api, lambda job: OK)
    job, session = await left(api, worker, jobs.WEBHOOK, began=True)
    later(api, rows.LEASE_MS)
    await settled(api, job, "queued")
    assert api.host.sessions[session].status == "stopped"
    later(api, 10_000)
    done = await settled(api, job, "done")
    assert done.attempts == 2
    assert [found["context"][0]["deliveryId"] for found in api.host.worker_jobs] == [job.id]


async def test_what_is_not_the_workers_doing_is_no_attempt(api: Api) -> None:
    worker = await deployed(api, lambda job: OK)
    api.host.refuse_create = UnavailableError("host_full", "There is no room.", retry_after_s=1)
    answer = await api.http.post(f"/hutch/v1/workers/{worker}/automations/press/trigger", json={})
    trigger = answer.json()["job"]["id"]

    async def read() -> dict[str, Any]:
        return dict((await api.http.get(f"/hutch/v1/workers/{worker}/triggers/{trigger}")).json()["job"])

    async with asyncio.timeout(10):
        while not (await read()).get("not_before", 0) > api.services.clock():
            await asyncio.sleep(0.02)
    assert (await read())["attempts"] == 0
    api.host.refuse_create = None
    later(api, 5000)
    async with asyncio.timeout(10):
        while (await read())["status"] != "done":
            await asyncio.sleep(0.02)
    assert (await read())["attempts"] == 1


async def changed(api: Api, **values: int) -> None:
    """Have all jobs be as if much had happened."""
    async with api.services.database.write() as connection:
        await connection.execute(update(JobModel).values(**values))


async def test_leases_that_were_lost_are_no_waits(api: Api) -> None:
    worker = await deployed(api, lambda job: OK)
    job, _ = await left(api, worker, jobs.WEBHOOK, began=False)
    api.host.refuse_create = UnavailableError("host_full", "There is no room.", retry_after_s=1)
    await changed(api, fence=100)
    later(api, rows.LEASE_MS)
    found = await settled(api, job, "queued", "dead")
    assert (found.status, found.waits) == ("queued", 1)


async def test_what_waited_too_often_is_dead_and_can_be_delivered_again(api: Api) -> None:
    worker = await deployed(api, lambda job: OK)
    job, _ = await left(api, worker, jobs.WEBHOOK, began=False)
    api.host.refuse_create = UnavailableError("host_full", "There is no room.", retry_after_s=1)
    await changed(api, waits=jobs.MAX_WAITS)
    later(api, rows.LEASE_MS)
    await settled(api, job, "dead")
    assert (await api.http.post(f"/hutch/v1/workers/{worker}/deliveries/{job.id}/redeliver")).status_code == 202
    async with asyncio.timeout(10):
        while (found := await settled(api, job, "queued", "dead")).waits == 0:
            await asyncio.sleep(0.02)
    assert (found.status, found.waits) == ("queued", 1)


async def test_a_process_that_lost_its_lease_ends_its_program(api: Api) -> None:
    ended = asyncio.Event()
    started = asyncio.Event()

    async def slow(job: dict[str, Any]) -> Any:
        started.set()
        await ended.wait()
        return OK

    worker = await deployed(api, slow)
    answer = await api.http.post(f"/hutch/v1/workers/{worker}/automations/press/trigger", json={})
    scope = Scope(api.own.team_id, api.own.project_id)
    async with asyncio.timeout(10):
        await started.wait()
    async with api.services.database.write() as connection:
        stolen = await rows.claim(connection, api.own.project_id, "another", api.services.clock() + 2 * rows.LEASE_MS)
        assert stolen is not None
        assert await rows.finish(connection, stolen, "dead", api.services.sealer.seal({}, f"{stolen.id}/result"), now_ms())
    ended.set()
    async with asyncio.timeout(10):
        assert api.services.jobs is not None
        while api.services.jobs._tasks:
            await asyncio.sleep(0.02)
    async with api.services.database.read() as connection:
        found = await rows.find(connection, scope, worker, answer.json()["job"]["id"])
    assert found is not None
    assert found.status == "dead", "what another process wrote stays"

"""Two API processes on one PostgreSQL database: this one, and another that is started, told to end, and killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from hutch.host.protocol import SessionStatus
from hutch.workers import jobs, processes
from tests.api.conftest import Api
from tests.api.deployed import deployed
from tests.storage.postgres import cluster

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    with cluster() as url:
        yield url


@pytest.fixture
def environment(database: str) -> dict[str, str]:
    return {"HUTCH_DATABASE__URL": database, "HUTCH_WORKERS__WARM_S": "0"}


@dataclass
class Other:
    process: asyncio.subprocess.Process
    http: httpx.AsyncClient
    id: str

    async def ended(self) -> int:
        async with asyncio.timeout(30):
            return await self.process.wait()


@contextlib.asynccontextmanager
async def another(api: Api, grace_s: int = 1) -> AsyncIterator[Other]:
    """Another process over the same database, host and keys."""
    settings = api.services.settings
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("HUTCH_")},
        "HUTCH_DATABASE__URL": settings.database_url(),
        "HUTCH_WORKERS__WARM_S": "0",
        "HUTCH_SERVER__SHUTDOWN_GRACE_S": str(grace_s),
    }
    command = (sys.executable, "-m", "tests.api.one_process", str(settings.server.data_dir))
    root = Path(__file__).resolve().parents[2]
    process = await asyncio.create_subprocess_exec(*command, env=environment, cwd=root, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        async with asyncio.timeout(60):
            line = await process.stdout.readline()
        assert line, "the other process ended"
        said = json.loads(line)
        headers = {"authorization": f"Bearer {api.own.token}"}
        async with httpx.AsyncClient(base_url=said["url"], headers=headers, timeout=60) as http:
            yield Other(process, http, said["process"])
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


class Gate:
    """A worker's program that waits until it is opened."""

    def __init__(self) -> None:
        self.began = asyncio.Semaphore(0)
        self.open = asyncio.Event()

    async def __call__(self, job: dict[str, Any]) -> Any:
        self.began.release()
        await self.open.wait()
        return {"status": "success"}

    async def begun(self) -> None:
        async with asyncio.timeout(30):
            await self.began.acquire()


def ask(http: httpx.AsyncClient, worker: str) -> asyncio.Task[httpx.Response]:
    body = {"workerId": worker, "capabilityKey": "ask", "args": {"throw": None}}
    return asyncio.create_task(http.post("/api/v3/workersRunCapability", json=body))


async def only_run(api: Api, worker: str) -> dict[str, Any]:
    [run] = (await api.http.get(f"/hutch/v1/workers/{worker}/runs")).json()["runs"]
    return dict(run)


async def the_job(api: Api, worker: str, job: str) -> dict[str, Any]:
    return dict((await api.http.get(f"/hutch/v1/workers/{worker}/triggers/{job}")).json()["job"])


async def over(api: Api, worker: str, job: str) -> dict[str, Any]:
    async with asyncio.timeout(40):
        while True:
            found = await the_job(api, worker, job)
            if found["status"] in ("done", "refused", "dead"):
                return found
            await asyncio.sleep(0.1)


async def test_one_that_starts_leaves_alone_what_the_other_runs(api: Api) -> None:
    gate = Gate()
    worker = await deployed(api, gate)
    asked = ask(api.client(api.own.token), worker)
    await gate.begun()
    async with another(api) as other:
        # It has given up what dead processes left before it said that it serves.
        run = await only_run(api, worker)
        assert run.get("ended_at") is None
        assert api.host.sessions[run["session_id"]].status is SessionStatus.RUNNING
        gate.open.set()
        assert (await asked).status_code == 200
        assert (await only_run(api, worker))["exit_code"] == 0
        other.process.send_signal(signal.SIGTERM)
        assert await other.ended() == 0


async def test_what_a_killed_one_ran_is_over_and_its_sandbox_is_ended(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "BEAT_S", 0.2)
    gate = Gate()
    worker = await deployed(api, gate)
    async with another(api) as other:
        asked = ask(other.http, worker)
        await gate.begun()
        run = await only_run(api, worker)
        assert run.get("ended_at") is None
        other.process.kill()
        with pytest.raises(httpx.HTTPError):
            await asked
        async with asyncio.timeout(30):
            while (await only_run(api, worker)).get("ended_at") is None:
                await asyncio.sleep(0.1)
            while (found := api.host.sessions.get(run["session_id"])) and found.status is SessionStatus.RUNNING:
                await asyncio.sleep(0.1)
        assert (await only_run(api, worker))["exit_code"] == 1


async def test_one_that_is_told_to_end_finishes_what_it_runs(api: Api) -> None:
    gate = Gate()
    worker = await deployed(api, gate)
    async with another(api, grace_s=20) as other:
        job = await run_by(other, api, worker, gate)
        other.process.send_signal(signal.SIGTERM)
        await until_draining(other)
        gate.open.set()
        assert await other.ended() == 0
        found = await over(api, worker, job)
        assert (found["status"], found["attempts"]) == ("done", 1)
        assert len(api.host.worker_jobs) == 1


async def test_what_it_can_not_finish_is_taken_over_at_once_and_counts_once(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs.webhooks, "RETRY_DELAYS_MS", (0, 0, 0))
    gate = Gate()
    worker = await deployed(api, gate)
    hook = next(
        one for one in (await api.http.get(f"/hutch/v1/workers/{worker}/webhooks")).json()["webhooks"] if one["key"] == "plain"
    )
    path = httpx.URL(hook["url"]).path
    async with another(api, grace_s=1) as other:
        api.services.draining = True
        sent = await other.http.post(path, json={"n": 1})
        assert sent.status_code == 202, sent.text
        await gate.begun()
        other.process.send_signal(signal.SIGTERM)
        assert await other.ended() == 0
        api.services.draining = False
        gate.open.set()
        async with asyncio.timeout(40):
            while True:
                listed = (await api.http.get(f"/hutch/v1/workers/{worker}/deliveries")).json()["deliveries"]
                if listed[0]["status"] == "done":
                    break
                await asyncio.sleep(0.1)
        # It had begun there, so it is repeated, with the same id, and was handled to its end once.
        assert [one["attempts"] for one in listed] == [2]
        first, second = api.host.worker_jobs
        assert first == second


async def run_by(other: Other, api: Api, worker: str, gate: Gate) -> str:
    """A trigger that the other process runs; the job's id."""
    api.services.draining = True
    answer = await other.http.post(f"/api/hutch/v1/workers/{worker}/automations/press/trigger", json={})
    await gate.begun()
    api.services.draining = False
    return str(answer.json()["job"]["id"])


async def until_draining(other: Other) -> None:
    async with asyncio.timeout(20):
        with contextlib.suppress(httpx.HTTPError):
            while (await other.http.get("/api/v2/nothing")).status_code != 503:
                await asyncio.sleep(0.02)

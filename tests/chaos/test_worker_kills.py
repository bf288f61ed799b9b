"""kill -9 of a worker's sandboxes, the API, the host and the gateway, while workers run: syncs, webhooks, automations and tools.

The other side is an API that fails, throttles, hangs and reorders (`tests/chaos/unreliable.py`). Afterwards each database is what
that API truly has; an event that was accepted had its effect at least once and no more often than it was tried; an automation
was run at most once, and one idempotency key is one job; every run has ended, and has a receipt if it had a sandbox.
"""

from __future__ import annotations

import contextlib
import os
import queue
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from hutch.client import Client, Server
from hutch.host.cgroups import Cgroups
from hutch.host.names import Names
from hutch.metering import receipts
from tests import leaks
from tests.chaos.test_server_kills import children, gateway, gone
from tests.chaos.test_usage_kills import host_of, named
from tests.chaos.unreliable import Unreliable, unreliable
from tests.conftest import start_server, stop_server, wait_until
from tests.workers.deploying import Deployer, packed

pytestmark = [pytest.mark.root, pytest.mark.sandbox, pytest.mark.campaign]

WORKER = Path(__file__).parent / "worker"
OVER = ("done", "refused", "dead")
MOST_ATTEMPTS = 4
SEED = 20261127
SETTINGS = {
    "POOL__SIZE": "1",
    "WORKERS__RUN_CONCURRENCY": "3",
    "WORKERS__SYNC_CONCURRENCY": "2",
    "WORKERS__WARM_S": "5",
    "WORKERS__RUN_TIMEOUT_S": "60",
    **{
        f"WORKERS__{name}": "0"
        for name in (
            "WEBHOOK_REQUESTS_PER_MINUTE",
            "PROJECT_WEBHOOK_REQUESTS_PER_MINUTE",
            "DELIVERIES_PER_MINUTE",
            "DELIVERIES_PER_HOUR",
            "QUEUED_RUNS_PER_MINUTE",
            "QUEUED_RUNS_PER_HOUR",
        )
    },
}


@dataclass(frozen=True, slots=True)
class Size:
    """`jobs`: webhooks, automations and tools together; `cycles` of syncs, before each of which so many `changes` are made
    outside; seconds between kills, and at most between jobs."""

    jobs: int
    cycles: int
    changes: int
    pause_s: tuple[float, float]
    kills: int | None
    jobs_every_s: float


SMALL, FULL = Size(10, 2, 16, (1.5, 3.0), 4, 0.5), Size(500, 100, 4, (6.0, 14.0), None, 8.0)


@dataclass
class Asked:
    """What was asked of the worker, and what is known of it. By number of the event."""

    accepted: dict[str, int] = field(default_factory=dict)
    """Deliveries that were answered 202."""
    doubtful: set[int] = field(default_factory=set)
    """Events of which a request got no answer: they may be there without our knowing, and again."""
    triggered: dict[int, str] = field(default_factory=dict)
    """Jobs of automations."""
    tools: Counter[str] = field(default_factory=Counter)
    answered: set[int] = field(default_factory=set)
    """Tools that returned."""


class Campaign:
    def __init__(self, server: tuple[subprocess.Popen[bytes], Server], data_dir: Path, api: Unreliable, size: Size) -> None:
        self.process, self.where = server
        self.data_dir, self.api, self.size = data_dir, api, size
        self.random = random.Random(SEED)
        self.kills: Counter[str] = Counter()
        self.cycles: Counter[str] = Counter()
        self.asked = Asked()
        self.final: dict[str, str] = {}
        """What became of each delivery."""
        self.over = threading.Event()
        self.http = httpx.Client(base_url=self.where.url, headers={"authorization": f"Bearer {self.where.token}"}, timeout=150)
        self.worker = Deployer.create(self.http, "chaotic")
        self.worker.secret(API=api.url)
        self.worker.deployed(packed({path.name: path.read_text() for path in WORKER.iterdir()}))
        self.url = next(str(one["url"]) for one in self.worker.get("/webhooks")["webhooks"])

    # -- what is asked -----------------------------------------------------------------------------

    def job(self, number: int) -> None:
        """One of three kinds, in turn."""
        (self._webhook, self._automation, self._tool)[number % 3](number)

    def _webhook(self, number: int) -> None:
        answer = self._until_answered("POST", self.url, number, json={"number": number})
        assert answer.status_code == 202, answer.text
        self.asked.accepted[answer.json()["eventId"]] = number

    def _automation(self, number: int) -> None:
        path = f"/api/hutch/v1/workers/{self.worker.worker}/automations/press/trigger"
        key = {"idempotency-key": f"press-{number}"}
        answer = self._until_answered("POST", path, number, json={"event": {"number": number}}, headers=key)
        assert answer.status_code in (200, 202), answer.text
        self.asked.triggered[number] = answer.json()["job"]["id"]

    def _tool(self, number: int) -> None:
        """Nobody asks twice: what it does it would do twice."""
        path = f"/api/hutch/v1/workers/{self.worker.worker}/tools/tell/call"
        try:
            answer = self.http.post(path, json={"arguments": {"number": number}})
        except httpx.HTTPError:
            self.asked.tools["no answer"] += 1
            return
        if answer.is_success:
            assert answer.json() == {"result": number * 2}
            self.asked.answered.add(number)
        self.asked.tools["answered" if answer.is_success else str(answer.json()["error"]["code"])] += 1

    def _until_answered(self, method: str, url: str, number: int, **more: Any) -> httpx.Response:
        """As a sender does that tries again while nobody answers, or the server says that it can't now."""
        end = time.monotonic() + 120
        while True:
            try:
                answer = self.http.request(method, url, **more)
            except httpx.HTTPError:
                self.asked.doubtful.add(number)
            else:
                if answer.status_code < 500:
                    return answer
                self.asked.doubtful.add(number)
            assert time.monotonic() < end, f"no answer from {url}"
            time.sleep(0.2)

    # -- syncs -------------------------------------------------------------------------------------

    def sync(self, key: str) -> dict[str, Any]:
        found: dict[str, Any] = next(one for one in self.worker.get()["worker"]["syncs"] if one["key"] == key)
        return found

    def cycle(self, key: str, truth: dict[str, str]) -> None:
        """Have a cycle begin and be complete, whatever it takes; then the database is what the API has."""
        path = f"/api/hutch/v1/workers/{self.worker.worker}/syncs/{key}/trigger"
        before = None
        end = time.monotonic() + 600
        while before is None or self.seen(key) <= before:
            assert time.monotonic() < end, f"cycle {before} of {key} is not over: {self.sync(key)}; kills {dict(self.kills)}"
            with contextlib.suppress(httpx.HTTPError):
                if before is None:
                    before = self.sync(key)["stats"]["cycles"]
                self.http.post(path, json={"wait": True})
            time.sleep(0.2)
        assert self.rows(key) == truth, f"after cycle {before} of {key}"
        self.cycles[key] += 1

    def seen(self, key: str) -> int:
        with contextlib.suppress(httpx.HTTPError):
            return int(self.sync(key)["stats"]["cycles"])
        return -1

    def rows(self, database: str) -> dict[str, str]:
        """Names by id, read page by page."""
        while True:
            found: dict[str, str] = {}
            cursor = ""
            try:
                while True:
                    page = self.worker.get(f"/databases/{database}_rows/rows", limit=100, cursor=cursor)
                    found |= {row["key"]: row["properties"]["Name"] for row in page["rows"]}
                    if page.get("next") is None:
                        return found
                    cursor = page["next"]
            except httpx.HTTPError:
                time.sleep(0.2)

    def cycles_of_all(self) -> None:
        for number in range(self.size.cycles):
            truth = self.api.change(self.size.changes)
            self.cycle(("full", "delta")[number % 2], truth)

    # -- kills -------------------------------------------------------------------------------------

    def killing(self) -> None:
        """In rounds, each of which kills everything once in an order of its own."""
        victims = {"api": self.kill_api, "host": self.kill_host, "sandbox": self.kill_sandbox, "gateway": self.kill_gateway}
        while True:
            for name in self.random.sample(sorted(victims), len(victims)):
                if self.over.wait(self.random.uniform(*self.size.pause_s)) or self.kills.total() == self.size.kills:
                    return
                if victims[name]():
                    self.kills[name] += 1

    def _kill(self, pid: int | None) -> bool:
        if pid is None:
            return False
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: gone(pid), 30, f"process {pid} to be gone")
        return True

    def kill_api(self) -> bool:
        killed = self._kill(next((pid for pid in children(self.process.pid) if named(pid, "hutch.api") and not gone(pid)), None))
        wait_until(self.answers, 60, "an API that answers")
        return killed

    def kill_host(self) -> bool:
        killed = self._kill(host_of(self.process))
        wait_until(lambda: host_of(self.process) is not None, 30, "a new host")
        return killed

    def kill_gateway(self) -> bool:
        with contextlib.suppress(OSError, ValueError, IndexError):
            return self._kill(gateway(self.data_dir))
        return False

    def kill_sandbox(self) -> bool:
        """One at random, those that wait included."""
        machines = sorted(leaks.machines(self.data_dir))
        if not machines:
            return False
        path = f"{Names.of(self.data_dir).cgroup_parent}/{self.random.choice(machines)}"
        with contextlib.suppress(OSError):
            Cgroups.detect().kill_all(path, 10)
            return True
        return False

    def answers(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return self.http.get("/api/hutch/v1/workers", timeout=5).is_success
        return False

    # -- all of it ---------------------------------------------------------------------------------

    def run(self) -> None:
        numbers: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number in range(self.size.jobs):
            numbers.put(number)

        def ask() -> None:
            chance = random.Random(SEED)
            with contextlib.suppress(queue.Empty):
                while True:
                    self.job(numbers.get_nowait())
                    time.sleep(chance.uniform(0, self.size.jobs_every_s))

        with ThreadPoolExecutor(4) as threads:
            killing = threads.submit(self.killing)
            work: list[Future[None]] = [threads.submit(ask), threads.submit(ask), threads.submit(self.cycles_of_all)]
            try:
                for each in work:
                    each.result()
                if self.size.kills is not None:
                    killing.result()
            finally:
                self.over.set()
            killing.result()

    # -- what must hold ----------------------------------------------------------------------------

    def deliveries(self) -> dict[str, dict[str, Any]]:
        return {one["id"]: one for one in self._all("/deliveries", "deliveries")}

    def _all(self, path: str, name: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        cursor = ""
        while True:
            page = self.worker.get(path, limit=100, cursor=cursor)
            found += page[name]
            if page.get("next") is None:
                return found
            cursor = page["next"]

    def check_jobs(self) -> Counter[str]:
        wait_until(
            lambda: all(one["status"] in OVER for one in self.deliveries().values()),
            800,
            lambda: str([one for one in self.deliveries().values() if one["status"] not in OVER]),
        )
        automations = {number: self.until_over(job) for number, job in self.asked.triggered.items()}
        # What is over has no effects any more.
        deliveries, effects = self.deliveries(), self.api.effects()
        self.final = {name: one["status"] for name, one in deliveries.items()}
        came: Counter[tuple[str, str]] = Counter((effect["kind"], effect["id"]) for effect in effects)
        counted: Counter[tuple[str, str]] = Counter((effect["kind"], effect["id"]) for effect in effects if effect["counts"])
        assert self.asked.accepted.keys() <= deliveries.keys(), "an event that was accepted is gone"
        unknown = deliveries.keys() - self.asked.accepted.keys()
        assert len(unknown) <= len(self.asked.doubtful) * 3, unknown
        for name, delivery in deliveries.items():
            assert came["webhook", name] <= delivery["attempts"] <= MOST_ATTEMPTS, delivery
            if delivery["status"] == "done":
                assert counted["webhook", name] >= 1, f"{delivery} had no effect"
            else:
                assert (delivery["status"], delivery["attempts"]) == ("dead", MOST_ATTEMPTS), delivery
        numbers = {number for number in range(self.size.jobs) if number % 3 == 1}
        assert self.asked.triggered.keys() == numbers
        assert len(set(self.asked.triggered.values())) == len(numbers)
        found: Counter[str] = Counter()
        for number, ended in automations.items():
            assert ended["attempts"] <= 1, ended
            assert came["automation", str(number)] <= ended["attempts"], ended
            if ended["status"] == "done":
                assert came["automation", str(number)] == 1, ended
            found[ended["status"]] += 1
        for number in range(self.size.jobs):
            assert came["tool", str(number)] <= 1
        assert all(came["tool", str(number)] == 1 for number in self.asked.answered)
        return found

    def until_over(self, job: str) -> dict[str, Any]:
        wait_until(lambda: self.trigger(job)["status"] in OVER, 120, lambda: str(self.trigger(job)))
        return self.trigger(job)

    def trigger(self, job: str) -> dict[str, Any]:
        found: dict[str, Any] = self.worker.get(f"/triggers/{job}")["job"]
        return found

    def check_runs(self) -> tuple[int, int]:
        """How many runs there are, and how many receipts."""
        wait_until(
            lambda: all("ended_at" in run for run in self.runs()),
            60,
            lambda: str([run for run in self.runs() if "ended_at" not in run]),
        )
        runs = self.runs()
        with Client(self.where) as client:
            keys = client.usage.receipt_keys()
            count = 0
            for run in runs:
                output = self.worker.get(f"/runs/{run['id']}")["run"]["output"]
                assert output["_tag"] == ("success" if run["exit_code"] == 0 else "error"), (run, output)
                if "session_id" not in run:
                    assert run["exit_code"] != 0, run
                    continue
                self.until_final(run["id"])
                receipt = self.http.get(f"/api/hutch/v1/sessions/{run['session_id']}/receipt").raise_for_status().json()
                receipts.verify(receipt, keys)
                count += 1
        return len(runs), count

    def until_final(self, run: str) -> None:
        wait_until(lambda: self.worker.get(f"/runs/{run}")["run"]["cost"]["final"], 60, f"the cost of run {run}")

    def runs(self) -> list[dict[str, Any]]:
        return self._all("/runs", "runs")


@pytest.mark.timeout(7200)
def test_workers_lose_and_double_nothing_whatever_is_killed(
    no_leaks: Path, full_campaign: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    no_leaks.mkdir()
    log = no_leaks.parent / "serve.log"
    begun = time.monotonic()
    with unreliable(SEED) as api:
        environment = {f"HUTCH_{name}": value for name, value in SETTINGS.items()}
        process, where = start_server(no_leaks, log, environment=environment)
        try:
            campaign = Campaign((process, where), no_leaks, api, FULL if full_campaign else SMALL)
            campaign.run()
            automations = campaign.check_jobs()
            truth = api.change(0)
            for key in ("full", "delta"):
                campaign.cycle(key, truth)
            assert campaign.sync("full")["stats"]["cycle_upserts"] == len(truth), "every page counted once"
            runs, receipts_found = campaign.check_runs()
            campaign.http.close()
        except BaseException:
            stop_server(process, log, check=False)
            raise
        stop_server(process, log)
        failed = sum(api.failed().values())
    deliveries = Counter(campaign.final.values())
    kills = ", ".join(f"{count} {name}" for name, count in sorted(campaign.kills.items()))
    tools = campaign.asked.tools
    with capsys.disabled():
        print(
            f"\n{campaign.kills.total()} kills ({kills}; seed {SEED}) in {time.monotonic() - begun:.0f} s: "
            f"{runs} runs ended, {receipts_found} receipts; "
            f"{campaign.cycles.total()} sync cycles equal the API, which failed {failed} times; "
            f"{deliveries['done']} webhooks done, {deliveries['dead']} dead; "
            f"{automations['done']} automations done, {automations['dead']} lost; "
            f"{tools['answered']} tools answered, {tools.total() - tools['answered']} not"
        )

"""Webhooks and automations of a worker that the real `ntn` deployed, in real sandboxes; and a server whose API is killed."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import leaks
from tests.clients.test_ntn import ODD, Ntn, project
from tests.conftest import RunningServer, start_server, stop_server, wait_until
from tests.host.guest import differs

pytestmark = [pytest.mark.root, pytest.mark.sandbox, pytest.mark.timeout(900)]

OVER = ("done", "refused", "dead")


@dataclass(frozen=True, slots=True)
class Deployed:
    """A worker of a server of its own, which runs one job at a time."""

    server: RunningServer
    ntn: Ntn
    http: httpx.Client
    worker: str

    def get(self, rest: str, **query: Any) -> Any:
        return self.http.get(f"/api/hutch/v1/workers/{self.worker}/{rest}", params=query).raise_for_status().json()

    def post(self, rest: str, **body: Any) -> Any:
        return self.http.post(f"/api/hutch/v1/workers/{self.worker}/{rest}", json=body).raise_for_status().json()

    def url(self, key: str) -> str:
        return str(next(one["url"] for one in self.get("webhooks")["webhooks"] if one["key"] == key))

    def send(self, key: str, body: object, **headers: str) -> str:
        """The id of a new delivery."""
        answer = httpx.post(self.url(key), content=json.dumps(body), headers=headers, timeout=30)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["eventId"])

    def delivery(self, delivery: str) -> dict[str, Any]:
        return dict(next(one for one in self.get("deliveries", limit=100)["deliveries"] if one["id"] == delivery))

    def over(self, delivery: str, deadline_s: float = 60) -> dict[str, Any]:
        wait_until(lambda: self.delivery(delivery)["status"] in OVER, deadline_s, lambda: str(self.delivery(delivery)))
        return self.delivery(delivery)

    def runs_of(self, delivery: str) -> list[dict[str, Any]]:
        found = [one for one in self.get("runs", limit=100)["runs"] if one.get("job_id") == delivery]
        return [self.get(f"runs/{one['id']}")["run"] for one in reversed(found)]


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    base = tmp_path_factory.mktemp("jobs")
    data_dir, log = base / "data", base / "serve.log"
    data_dir.mkdir()
    before = leaks.snapshot(data_dir)
    environment = {"HUTCH_POOL__SIZE": "0", "HUTCH_WORKERS__RUN_CONCURRENCY": "1", "HUTCH_WORKERS__WARM_S": "60"}
    process, where = start_server(data_dir, log, environment=environment)
    try:
        server = RunningServer(process, data_dir, log, where, before)
        ntn = project(ODD, server, base)
        ntn.done("create", "--name", "odd")
        ntn.done("env", "set", "WORD=first")
        ntn.done("deploy")
        headers = {"authorization": f"Bearer {where.token}"}
        with httpx.Client(base_url=where.url, headers=headers, timeout=60) as http:
            yield Deployed(server, ntn, http, ntn.worker_id())
    finally:
        stop_server(process, log)
    left = leaks.new(before, leaks.snapshot(data_dir))
    assert not left, "the server left behind:\n" + "\n".join(left)


def test_an_event_reaches_the_handler_as_it_came(deployed: Deployed) -> None:
    delivery = deployed.send("hook", {"a": [1, "ü"]}, **{"X-Mark": "m"})
    done = deployed.over(delivery)
    assert (done["status"], done["attempts"]) == ("done", 1)
    [run] = deployed.runs_of(delivery)
    said = json.loads(run["logs"].split("event ", 1)[1].split("\n", 1)[0])
    assert said == [delivery, json.dumps({"a": [1, "ü"]}), {"a": [1, "ü"]}, "m"]
    assert run["exit_code"] == 0
    assert set(run["phases"]) == {"queued_ms", "sandbox_ms", "program_ms"}
    wait_until(lambda: deployed.get(f"runs/{run['id']}")["run"]["cost"]["final"], 30, "its cost is final")
    assert deployed.get(f"runs/{run['id']}")["run"]["cost"]["amount_nano"] > 0
    listed = {one["key"]: one for one in deployed.ntn.json("capabilities", "list")}
    assert {"hook", "signed"} <= set(listed)
    replayed = deployed.post(f"runs/{run['id']}/replay", network="deny-all")["run"]
    assert (replayed["input"], replayed["exit_code"]) == (run["input"], 0)
    assert delivery in replayed["logs"]


@differs("an emulated Node starts later than a webhook's sender waits")
def test_signatures_are_verified_before_the_sender_is_answered(deployed: Deployed) -> None:
    url, body = deployed.url("signed"), b'{"n": 1}'
    good = {"x-signature": hmac.new(b"key", body, hashlib.sha256).hexdigest()}
    asked = httpx.get(f"{url}?challenge=abc", timeout=30)
    assert (asked.status_code, asked.text) == (200, "abc"), asked.text
    accepted = httpx.post(url, content=body, headers=good, timeout=30)
    assert (accepted.status_code, accepted.json()) == (200, {"ok": True})
    refused = httpx.post(url, content=body, headers={"x-signature": "bad"}, timeout=30)
    assert (refused.status_code, refused.text) == (401, "who are you?")
    late = httpx.post(url, content=body, headers=good | {"x-slow": "1"}, timeout=30)
    assert (late.status_code, late.headers["retry-after"]) == (503, "5")
    assert late.elapsed.total_seconds() < 7
    listed = deployed.get("deliveries", webhook="signed")["deliveries"]
    assert len(listed) == 1, "only what is verified is delivered"
    assert deployed.over(listed[0]["id"])["status"] == "done"


def test_failures_are_tried_again_and_forgeries_are_not(deployed: Deployed) -> None:
    forged = deployed.over(deployed.send("hook", {"forged": True}))
    assert (forged["status"], forged["attempts"], forged["error"]["name"]) == ("refused", 1, "WebhookVerificationError")
    failing = deployed.send("hook", {"fails": True})
    wait_until(lambda: deployed.delivery(failing)["attempts"] == 2, 60, "a second attempt")
    wait_until(lambda: deployed.delivery(failing)["status"] == "queued", 30, "it waits for the third")
    first, second = deployed.runs_of(failing)
    assert first["input"] == second["input"]
    assert second["started_at"] - first["ended_at"] >= 10_000


def test_an_automation_is_triggered_and_answers(deployed: Deployed) -> None:
    answer = deployed.post("automations/press/trigger", wait=True, event={"actionType": "by hand"})
    assert answer["job"]["status"] == "done"
    assert "pressed by hand" in deployed.get(f"runs/{answer['job']['run_id']}")["run"]["logs"]


def api_of(server: RunningServer) -> int:
    """The pid of a server's API process."""
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    commands = {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children}
    [found] = [pid for pid, command in commands.items() if b"hutch.api" in command]
    return found


def test_an_api_that_is_killed_loses_no_event_and_repeats_none_that_had_not_begun(deployed: Deployed) -> None:
    slow = deployed.send("hook", {"slow": 30_000})
    wait_until(lambda: deployed.delivery(slow)["attempts"] == 1, 30, "the slow one runs")
    [lost] = deployed.runs_of(slow)
    waiting = [deployed.send("hook", {"number": number}) for number in range(3)]
    former = api_of(deployed.server)
    os.kill(former, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{former}").exists(), 30, "the API process is gone")
    for delivery in waiting:
        done = deployed.over(delivery)
        assert (done["status"], done["attempts"]) == ("done", 1)
        assert [run["logs"].count(delivery) for run in deployed.runs_of(delivery)] == [1]
    wait_until(lambda: deployed.delivery(slow)["attempts"] == 2, 120, lambda: str(deployed.delivery(slow)))
    again = deployed.runs_of(slow)
    assert [run["input"] for run in again] == [lost["input"]] * 2
    assert again[0]["exit_code"] == 1
    wait_until(lambda: deployed.get(f"runs/{lost['id']}")["run"]["cost"]["final"], 30, "the sandbox that was left is ended")
    assert deployed.over(slow, 90)["status"] == "done"

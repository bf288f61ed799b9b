"""Syncs of a worker that the real `ntn` deployed: rows come by schedule and by hand, survive failures, and a killed server."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.clients.test_ntn import Ntn, project
from tests.conftest import CHECKOUT, RunningServer, wait_until

pytestmark = [pytest.mark.root, pytest.mark.sandbox, pytest.mark.timeout(900)]

CRM = CHECKOUT / "examples" / "workers" / "crm"
COMPANIES = [{"id": name, "name": name.title(), "stage": "lead"} for name in ("acme", "bolt", "corn", "dent", "edge")]


def person(name: str, company: str, changed: int, **more: Any) -> dict[str, Any]:
    return {
        "id": name,
        "name": name.title(),
        "email": f"{name}@{company}.example",
        "company": company,
        "changed": changed,
        **more,
    }


@dataclass(frozen=True, slots=True)
class Crm:
    """The deployed worker, and what the other side of it has."""

    ntn: Ntn
    http: httpx.Client
    worker_id: str

    def has(self, **records: Any) -> None:
        self.ntn.done("env", "set", f"CRM_SAMPLE={json.dumps(records)}")

    def sync(self, key: str) -> dict[str, Any]:
        worker = self.http.get(f"/hutch/v1/workers/{self.worker_id}").raise_for_status().json()["worker"]
        return next(item for item in worker["syncs"] if item["key"] == key)

    def trigger(self, key: str, **body: Any) -> dict[str, Any]:
        path = f"/hutch/v1/workers/{self.worker_id}/syncs/{key}/trigger"
        found: dict[str, Any] = self.http.post(path, json={"wait": True, **body}).raise_for_status().json()
        return found

    def rows(self, database: str) -> dict[str, dict[str, Any]]:
        answer = self.http.get(f"/hutch/v1/workers/{self.worker_id}/databases/{database}/rows").raise_for_status().json()
        return {row["key"]: row["properties"] for row in answer["rows"]}


@pytest.fixture(scope="module")
def crm(watched: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crm]:
    ntn = project(CRM, watched, tmp_path_factory.mktemp("crm"))
    ntn.done("create", "--name", "crm")
    headers = {"authorization": f"Bearer {watched.where.token}"}
    worker_id = json.loads((ntn.directory / "workers.json").read_text())["workerId"]
    with httpx.Client(base_url=f"{watched.where.url}/api", headers=headers, timeout=120) as http:
        found = Crm(ntn, http, worker_id)
        found.has(companies=COMPANIES, people=[person("ada", "acme", 1), person("bob", "bolt", 2)])
        ntn.done("deploy")
        yield found
        ntn.done("delete", "--yes")


def test_what_is_deployed_runs_by_its_schedule(crm: Crm) -> None:
    wait_until(lambda: crm.sync("all_companies")["stats"]["cycles"] > 0, 60, "the first cycle of the companies")
    wait_until(lambda: crm.sync("changed_people")["stats"]["cycles"] > 0, 60, "the first cycle of the people")
    assert set(crm.rows("companies")) == {"acme", "bolt", "corn", "dent", "edge"}
    assert crm.rows("companies")["acme"] == {"Id": "acme", "Name": "Acme", "Stage": "lead", "People": ["ada"]}
    assert crm.rows("people")["bob"] == {"Id": "bob", "Name": "Bob", "Email": "bob@bolt.example", "Company": ["bolt"]}
    assert crm.sync("all_people")["label"] == "INITIALIZING", "nobody asked for it"
    names = [run["name"] for run in crm.ntn.json("runs", "list")]
    assert names.count("sync:all_companies") == 3, "five companies are three pages of two"
    assert crm.sync("all_companies")["next_run_at"] is not None


def test_changes_come_alone_and_what_is_gone_is_swept(crm: Crm) -> None:
    people = [person("ada", "corn", 3), person("bob", "bolt", 4, deleted=True), person("cyd", "none", 5)]
    crm.has(companies=COMPANIES[1:], people=people)
    before = crm.sync("changed_people")["stats"]["total_upserts"]
    crm.trigger("changed_people")
    assert crm.sync("changed_people")["stats"]["total_upserts"] - before == 2
    assert set(crm.rows("people")) == {"ada", "cyd"}
    assert crm.rows("people")["cyd"]["Company"] == [], "there is no such company yet"
    assert crm.trigger("all_companies")["sync"]["label"] == "HEALTHY"
    assert set(crm.rows("companies")) == {"bolt", "corn", "dent", "edge"}
    assert crm.rows("companies")["corn"]["People"] == ["ada"]
    shown = crm.trigger("all_people", preview=True)["preview"]
    assert ([change["key"] for change in shown["changes"]], shown["has_more"]) == (["ada", "cyd"], False)
    assert crm.sync("all_people")["stats"]["cycles"] == 0


def test_what_fails_is_labelled_and_changes_nothing(crm: Crm) -> None:
    crm.has(companies=COMPANIES, people=[], down=True)
    rows = crm.rows("companies")
    labels = [crm.trigger("all_companies")["sync"]["label"] for _ in range(3)]
    assert labels == ["WARNING", "WARNING", "ERROR"]
    assert crm.sync("all_companies")["last_error"].endswith("the CRM answered 503")
    assert crm.rows("companies") == rows
    crm.has(companies=COMPANIES, people=[])
    assert crm.trigger("all_companies")["sync"]["label"] == "HEALTHY"
    assert set(crm.rows("companies")) == {"acme", "bolt", "corn", "dent", "edge"}


def test_ntn_switches_syncs(crm: Crm) -> None:
    crm.ntn.done("capabilities", "disable", "changed_people")
    assert crm.sync("changed_people")["label"] == "DISABLED"
    answer = crm.http.post("/v3/workersListCapabilities", json={"workerId": crm.worker_id}).raise_for_status().json()
    listed = {one["key"]: one.get("disabled") for one in answer["capabilities"]}
    assert (listed["changed_people"], listed["all_companies"]) == (True, False)
    crm.ntn.done("capabilities", "enable", "changed_people")
    assert crm.sync("changed_people")["paused"] is False


def test_a_deployment_says_what_it_deletes_and_keeps_the_state(crm: Crm) -> None:
    source = crm.ntn.directory / "src" / "index.ts"
    before = crm.sync("changed_people")["stats"]
    text = source.read_text()
    source.write_text(
        text.replace("      Email: Schema.email(),\n", "").replace("      Email: Builder.email(person.email),\n", "")
    )
    crm.ntn.done("deploy")
    runs = [run for run in crm.ntn.json("runs", "list") if run["name"] == "fetchAndSaveCapabilities"]
    log = crm.ntn.done("runs", "logs", runs[0]["runId"]).out
    assert 'database "people": The property "Email" and its values are deleted.' in log
    assert all("Email" not in row for row in crm.rows("people").values())
    assert crm.sync("changed_people")["stats"]["cycles"] >= before["cycles"] > 0
    source.write_text(text)
    crm.ntn.done("deploy")


def test_a_server_that_is_killed_in_a_cycle_goes_on_with_it(crm: Crm, watched: RunningServer) -> None:
    many = [{"id": f"c{number:02}", "name": "x", "stage": "lead"} for number in range(8)]
    crm.has(companies=many, people=[], delayMs=1500)
    cycles = crm.sync("all_companies")["stats"]["cycles"]
    crm.trigger("all_companies", wait=False)
    wait_until(lambda: crm.sync("all_companies")["stats"]["cycle_upserts"] >= 2, 60, "the first page")
    os.kill(api_process(watched), signal.SIGKILL)

    def done() -> bool:
        try:
            return bool(crm.sync("all_companies")["stats"]["cycles"] > cycles)
        except httpx.HTTPError:
            return False

    wait_until(done, 120, "the rest of the cycle")
    assert set(crm.rows("companies")) == {company["id"] for company in many}
    assert crm.sync("all_companies")["stats"]["cycle_upserts"] == len(many), "every page counted once"


def api_process(server: RunningServer) -> int:
    """The process that serves the API: a child of the server's."""
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    found = [int(pid) for pid in children if b"hutch.api" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(found) == 1, [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children]
    return found[0]

"""The workers that the product is for, as they stand in `examples/workers`, deployed by the real clients against services that
want a token, answer in pages, throttle and fail."""

from __future__ import annotations

import hashlib
import hmac
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import leaks
from tests.clients.outside import RETRY_AFTER_S, Outside, outside, token
from tests.clients.test_ntn import Ntn, project
from tests.conftest import CHECKOUT, RunningServer, start_server, stop_server, wait_until
from tests.host.guest import differs

pytestmark = [pytest.mark.root, pytest.mark.sandbox, pytest.mark.timeout(600)]

WORKERS = CHECKOUT / "examples" / "workers"
SETTLE_S = 20.0
ALARM_SECRET = "known to the error tracker and the worker"
URLS = {
    "CRM_URL": "crm.test",
    "ERRORS_URL": "errors.test",
    "ISSUES_URL": "issues.test",
    "CHAT_URL": "chat.test",
    "PAGES_URL": "pages.test",
}
LOOKS_AROUND = """
import { execSync } from "node:child_process";
import { j as schemas } from "@notionhq/workers";
worker.tool("look_around", {
  title: "Look around",
  description: "All that a program finds of its surroundings.",
  schema: schemas.object({}),
  execute: () => execSync("env; cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null; true").toString(),
});
"""
LOOKS_AROUND_IN_PYTHON = """

@worker.tool()
def look_around() -> str:
    \"\"\"All that a program finds of its surroundings.\"\"\"
    import subprocess

    script = "env; cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null; true"
    return subprocess.check_output(["sh", "-c", script]).decode(errors="replace")
"""
"""What a curious author adds to a worker."""


@dataclass(frozen=True, slots=True)
class Place:
    """A server whose sandboxes see the services."""

    server: RunningServer
    http: httpx.Client
    outside: Outside
    directory: Path


@dataclass(frozen=True, slots=True)
class Worker:
    """A deployed example."""

    place: Place
    worker_id: str

    @property
    def outside(self) -> Outside:
        return self.place.outside

    def get(self, rest: str, **query: Any) -> Any:
        return self.place.http.get(f"/hutch/v1/workers/{self.worker_id}{rest}", params=query).raise_for_status().json()

    def post(self, rest: str, **body: Any) -> Any:
        return self.place.http.post(f"/hutch/v1/workers/{self.worker_id}{rest}", json=body).raise_for_status().json()

    def sync(self, key: str) -> dict[str, Any]:
        """Have a cycle now, and what is known of the sync afterwards."""
        found: dict[str, Any] = self.post(f"/syncs/{key}/trigger", wait=True)["sync"]
        return found

    def error_of(self, key: str) -> str | None:
        """Have a cycle now; the error it ended with."""
        return self.sync(key).get("last_error")

    def rows(self, database: str) -> dict[str, dict[str, Any]]:
        return {row["key"]: row["properties"] for row in self.get(f"/databases/{database}/rows")["rows"]}

    def call(self, tool: str, **arguments: Any) -> httpx.Response:
        return self.place.http.post(f"/hutch/v1/workers/{self.worker_id}/tools/{tool}/call", json={"arguments": arguments})

    def press(self, automation: str, **event: Any) -> dict[str, Any]:
        found: dict[str, Any] = self.post(f"/automations/{automation}/trigger", wait=True, event=event)["job"]
        return found

    def pause(self) -> None:
        """Only what a test triggers runs, and it begins from nothing."""
        for sync in self.get("")["worker"]["syncs"]:
            self.post(f"/syncs/{sync['key']}/pause")
        # What had begun by its schedule is finished.
        wait_until(lambda: not any(sync["executing"] for sync in self.get("")["worker"]["syncs"]), 60, "no sync runs")
        for sync in self.get("")["worker"]["syncs"]:
            self.post(f"/syncs/{sync['key']}/reset")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    base = tmp_path_factory.mktemp("examples")
    data_dir, log = base / "data", base / "serve.log"
    data_dir.mkdir()
    before = leaks.snapshot(data_dir)
    with outside(base / "outside") as services:
        process, where = start_server(data_dir, log, environment={**services.environment, "HUTCH_POOL__SIZE": "0"})
        try:
            headers = {"authorization": f"Bearer {where.token}"}
            with httpx.Client(base_url=f"{where.url}/api", headers=headers, timeout=120) as http:
                yield Place(RunningServer(process, data_dir, log, where, before), http, services, base)
        finally:
            stop_server(process, log)
    wait_until(
        lambda: not leaks.new(before, leaks.snapshot(data_dir)),
        SETTLE_S,
        lambda: f"left behind: {leaks.new(before, leaks.snapshot(data_dir))}",
    )


def secrets(*urls: str) -> list[str]:
    """What the README of an example has set: where each service is, and its token."""
    found = [f"{url}=https://{URLS[url]}/" for url in urls]
    return found + [f"{url.removesuffix('_URL')}_TOKEN={token(URLS[url])}" for url in urls]


def by_ntn(place: Place, name: str, *given: str, more: str = "") -> Worker:
    """An example in TypeScript, deployed by the vendor's `ntn` after `env set`."""
    directory = place.directory / "typescript"
    directory.mkdir(exist_ok=True)
    ntn: Ntn = project(WORKERS / name, place.server, directory)
    if more:
        source = ntn.directory / "src" / "index.ts"
        source.write_text(source.read_text() + more)
    ntn.done("create", "--name", name)
    ntn.done("env", "set", *given)
    ntn.done("deploy")
    return Worker(place, json.loads((ntn.directory / "workers.json").read_text())["workerId"])


def by_hutch(place: Place, name: str, *given: str, more: str = "") -> Worker:
    """The same in Python, deployed by `hutch worker`: the first deploy makes the worker and says what is missing."""
    project = place.directory / "python" / f"{name}-python"
    shutil.copytree(WORKERS / project.name, project, ignore=shutil.ignore_patterns("__pycache__"))
    if more:
        source = project / "worker.py"
        source.write_text(source.read_text() + more)

    def hutch(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "hutch", "worker", *arguments]
        environment = place.server.environment | {"PYTHONPATH": str(CHECKOUT / "src")}
        return subprocess.run(
            command, cwd=project, env=environment, input=stdin, capture_output=True, text=True, timeout=300, check=False
        )

    first = hutch("deploy")
    assert first.returncode != 0
    assert f"{given[0].partition('=')[0]} is not set" in first.stderr
    for secret in given:
        key, _, value = secret.partition("=")
        stored = hutch("env", "set", project.name, key, stdin=value)
        assert stored.returncode == 0, stored.stderr
    deployed = hutch("deploy")
    assert deployed.returncode == 0, deployed.stderr
    return Worker(place, json.loads((project / "workers.json").read_text())["workerId"])


LANGUAGES = {"typescript": (by_ntn, LOOKS_AROUND), "python": (by_hutch, LOOKS_AROUND_IN_PYTHON)}


# -- records of a CRM ------------------------------------------------------------------------------

COMPANIES = [{"id": name, "name": name.title(), "stage": "lead"} for name in ("acme", "bolt", "corn")]


def person(name: str, company: str, changed: int, **more: Any) -> dict[str, Any]:
    about = {"name": name.title(), "email": f"{name}@{company}.example", "company": company}
    return {"id": name, **about, "changed": changed, **more}


PEOPLE = [person("ada", "acme", 1), person("bob", "bolt", 2), person("cyd", "acme", 3)]


@pytest.fixture(scope="module", params=list(LANGUAGES))
def crm(request: pytest.FixtureRequest, place: Place) -> Worker:
    place.outside.know("crm.test", companies=COMPANIES, people=PEOPLE)
    deploy, more = LANGUAGES[request.param]
    made = deploy(place, "crm", *secrets("CRM_URL"), more=more)
    made.pause()
    return made


def test_records_of_a_crm_come_page_by_page_and_are_related(crm: Worker) -> None:
    crm.outside.know("crm.test", companies=COMPANIES, people=PEOPLE)
    crm.outside.forget()
    assert [crm.error_of(key) for key in ("all_companies", "all_people", "changed_people")] == [None] * 3
    assert crm.rows("companies")["acme"] == {"Id": "acme", "Name": "Acme", "Stage": "lead", "People": ["ada", "cyd"]}
    assert crm.rows("people")["bob"] == {"Id": "bob", "Name": "Bob", "Email": "bob@bolt.example", "Company": ["bolt"]}
    asked = crm.outside.asked("crm.test")
    assert [one["status"] for one in asked] == [200] * 6, "three records are two pages"
    changed = person("ada", "corn", 4), person("bob", "bolt", 5, deleted=True), person("dan", "corn", 6)
    crm.outside.know("crm.test", companies=COMPANIES[1:], people=[*changed, PEOPLE[2]])
    crm.outside.forget()
    assert crm.error_of("changed_people") is None
    assert [one["path"] for one in crm.outside.asked("crm.test")] == ["/people?since=3", "/people?since=3&after=2"]
    assert set(crm.rows("people")) == {"ada", "cyd", "dan"}
    crm.sync("all_companies")
    assert {key: row["People"] for key, row in crm.rows("companies").items()} == {"bolt": [], "corn": ["ada", "dan"]}


def test_a_crm_that_throttles_or_fails_is_asked_again_later_and_loses_nothing(crm: Worker) -> None:
    crm.outside.know("crm.test", companies=COMPANIES, people=PEOPLE)
    crm.sync("all_companies")
    crm.outside.know("crm.test", companies=COMPANIES[:1], people=PEOPLE)
    crm.outside.fail("crm.test", 429)
    throttled = crm.sync("all_companies")
    assert "Rate limited" in throttled["last_error"]
    assert throttled["next_run_at"] - throttled["stats"]["last_failed_at"] >= RETRY_AFTER_S * 1000
    assert set(crm.rows("companies")) == {"acme", "bolt", "corn"}
    crm.outside.fail("crm.test", 503)
    assert str(crm.error_of("all_companies")).endswith("the CRM answered 503")
    assert set(crm.rows("companies")) == {"acme", "bolt", "corn"}
    assert crm.error_of("all_companies") is None
    assert set(crm.rows("companies")) == {"acme"}


def test_the_crms_token_is_nowhere_in_the_sandbox(crm: Worker) -> None:
    crm.outside.know("crm.test", companies=COMPANIES, people=PEOPLE)
    seen = crm.call("look_around").text
    assert "CRM_URL=https://crm.test/" in seen
    assert token("crm.test") not in seen
    crm.outside.forget()
    crm.sync("all_companies")
    assert all(one["authorized"] for one in crm.outside.asked("crm.test"))


# -- an issue for a spike of errors ----------------------------------------------------------------


def rate(service: str, per_minute: int, since: str = "2026-11-27T12:00:00Z") -> dict[str, Any]:
    return {"service": service, "perMinute": per_minute, "since": since}


@pytest.fixture(scope="module", params=list(LANGUAGES))
def spikes(request: pytest.FixtureRequest, place: Place) -> Worker:
    given = (*secrets("ERRORS_URL", "ISSUES_URL"), f"ALARM_SECRET={ALARM_SECRET}")
    place.outside.know("errors.test", rates=[])
    place.outside.know("issues.test")
    made = LANGUAGES[request.param][0](place, "spikes", *given)
    made.pause()
    return made


def states(worker: Worker) -> list[tuple[str, str]]:
    """Title and state of the tracker's issues, in the order in which they were opened."""
    return [(one["title"], one["state"]) for one in worker.outside.known("issues.test").get("issues", [])]


def test_an_issue_is_opened_once_for_each_spike_and_closed_after_it(spikes: Worker) -> None:
    calm = [rate("billing", 3), rate("search", 0)]
    spikes.outside.know("issues.test")
    spikes.outside.know("errors.test", rates=[*calm, rate("checkout", 7)])
    assert spikes.error_of("error_rates") is None
    assert states(spikes) == []
    assert spikes.rows("services")["checkout"] == {
        "Service": "checkout",
        "Errors per minute": 7,
        "State": "calm",
        "Issue": None,
    }
    spikes.outside.know("errors.test", rates=[*calm, rate("checkout", 80)])
    for _ in range(2):
        assert spikes.error_of("error_rates") is None
        assert states(spikes) == [("checkout: 80 errors per minute", "open")]
    assert spikes.rows("services")["checkout"]["State"] == "spike"
    assert spikes.rows("services")["checkout"]["Issue"] == "https://issues.test/issues/1"
    spikes.outside.know("errors.test", rates=[*calm, rate("checkout", 40)])
    spikes.sync("error_rates")
    assert states(spikes) == [("checkout: 80 errors per minute", "open")], "below the limit, and not over yet"
    spikes.outside.know("errors.test", rates=[*calm, rate("checkout", 9)])
    assert spikes.press("check")["status"] == "done"
    assert states(spikes) == [("checkout: 80 errors per minute", "closed")]
    assert spikes.outside.known("issues.test")["issues"][0]["comments"] == ["It is over: 9 errors per minute."]
    spikes.outside.know("errors.test", rates=[*calm, rate("checkout", 60, since="2026-11-28T08:00:00Z")])
    assert spikes.press("check")["status"] == "done"
    assert states(spikes)[1:] == [("checkout: 60 errors per minute", "open")], "another spike, another issue"
    assert {one["authorized"] for name in ("errors.test", "issues.test") for one in spikes.outside.asked(name)} == {True}


def test_a_tracker_that_fails_in_the_middle_still_gets_one_issue(spikes: Worker) -> None:
    spikes.outside.know("issues.test")
    spikes.outside.know("errors.test", rates=[rate("mail", 90), rate("print", 70)])
    # The list is throttled; an issue is opened, and the tracker says that it failed; the second issue is refused.
    for answers, opened in (((429,), 0), ((0, -503), 1), ((0, 503), 1)):
        spikes.outside.fail("issues.test", *answers)
        assert spikes.error_of("error_rates") is not None
        assert len(states(spikes)) == opened
    for _ in range(2):
        assert spikes.error_of("error_rates") is None
    assert sorted(states(spikes)) == [("mail: 90 errors per minute", "open"), ("print: 70 errors per minute", "open")]


@differs("an emulated Node starts later than a webhook's sender waits")
def test_an_error_tracker_that_calls_is_believed_if_it_signs(spikes: Worker) -> None:
    spikes.outside.know("issues.test")
    url = next(one["url"] for one in spikes.get("/webhooks")["webhooks"] if one["key"] == "alarm")
    body = json.dumps(rate("login", 500)).encode()
    signature = hmac.new(ALARM_SECRET.encode(), body, hashlib.sha256).hexdigest()
    refused = httpx.post(url, content=body, headers={"x-signature": "0" * 64}, timeout=60)
    assert (refused.status_code, refused.text) == (401, "this is not signed by us")
    for _ in range(2):
        assert httpx.post(url, content=body, headers={"x-signature": signature}, timeout=60).status_code == 202

    def done() -> bool:
        found = spikes.get("/deliveries", webhook="alarm")["deliveries"]
        return len(found) == 2 and all(one["status"] == "done" for one in found)

    wait_until(done, 60, lambda: str(spikes.get("/deliveries", webhook="alarm")))
    assert states(spikes) == [("login: 500 errors per minute", "open")]


# -- a page of a chat thread -----------------------------------------------------------------------

THREAD = [
    {"author": "u1", "at": "2026-11-20T09:12:00Z", "text": "Which *queue* do we take?\n# not a heading"},
    {"author": "u2", "at": "2026-11-20T09:15:30Z", "text": "<@u1> the one in <https://wiki.test/a_b|the wiki>, see `a_b`"},
    {"author": "u1", "at": "2026-11-20T10:02:00Z", "text": "We take SQL.", "reactions": ["white_check_mark"]},
    {"author": "u2", "at": "2026-11-21T08:00:00Z", "text": "TODO: measure <script>it</script>\n```\nx = [1]\n```"},
]
USERS = [{"id": "u1", "name": "Ada"}, {"id": "u2", "name": "Bob B."}]
PAGE = r"""# Which \*queue\* do we take?

*Ada, Bob B.; 2026-11-20 09:12 to 2026-11-21 08:00*

## Decisions

- We take SQL. (Ada)

## To do

- [ ] measure \<script\>it\</script\> (Bob B.)

## Thread

**Ada**, 2026-11-20 09:12

Which \*queue\* do we take?
\# not a heading

**Bob B.**, 2026-11-20 09:15

**@Ada** the one in [the wiki](<https://wiki.test/a_b>), see `a_b`

**Ada**, 2026-11-20 10:02

We take SQL.

**Bob B.**, 2026-11-21 08:00

TODO: measure \<script\>it\</script\>
```
x = [1]
```
"""


@pytest.fixture(scope="module", params=list(LANGUAGES))
def minutes(request: pytest.FixtureRequest, place: Place) -> Worker:
    return LANGUAGES[request.param][0](place, "minutes", *secrets("CHAT_URL", "PAGES_URL"))


def test_a_chat_thread_becomes_a_page(minutes: Worker) -> None:
    minutes.outside.know("chat.test", threads={"general/17": THREAD}, users=USERS)
    minutes.outside.know("pages.test")
    minutes.outside.forget()
    read = minutes.call("read_thread", channel="general", thread="17").json()
    assert read["result"] == {"title": "Which *queue* do we take?", "markdown": PAGE}
    assert [one["path"] for one in minutes.outside.asked("chat.test")][-2:] == [
        "/channels/general/threads/17/messages?after=2",
        "/users?ids=u1,u2",
    ]
    assert minutes.outside.known("pages.test") == {}, "reading changes nothing"
    published = minutes.call("publish_thread", channel="general", thread="17").json()
    assert published["result"] == {"title": "Which *queue* do we take?", "url": "https://pages.test/pages/general-17"}
    assert minutes.outside.known("pages.test")["pages"] == {"general-17": read["result"]}


def test_a_button_publishes_the_thread_that_its_page_names(minutes: Worker) -> None:
    minutes.outside.know("chat.test", threads={"general/17": THREAD}, users=USERS)
    minutes.outside.know("pages.test")
    thread = {"type": "url", "url": "https://chat.test/channels/general/threads/17"}
    done = minutes.press("publish", actionType="button", pageData={"properties": {"Thread": thread}})
    assert done["status"] == "done"
    assert minutes.outside.known("pages.test")["pages"]["general-17"]["markdown"] == PAGE
    unclear = minutes.press("publish", actionType="button", pageData={"properties": {}})
    assert unclear["status"] == "dead"
    assert "no address of a thread" in unclear["error"]["message"]


def test_a_chat_that_throttles_is_told_to_the_agent(minutes: Worker) -> None:
    minutes.outside.know("chat.test", threads={"general/17": THREAD}, users=USERS)
    minutes.outside.fail("chat.test", 429)
    told = minutes.call("read_thread", channel="general", thread="17")
    assert told.status_code == 422
    assert "Rate limited" in told.text
    missing = minutes.call("read_thread", channel="general", thread="18")
    assert "GET chat.test/channels/general/threads/18/messages: 404" in missing.text

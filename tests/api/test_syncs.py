"""Syncs and databases of workers over a fake host: who sees and changes what. Their runs answer what the test says."""

from __future__ import annotations

import asyncio
import copy
import csv
import io
import json
from collections.abc import Callable
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import pytest

from hutch import ids
from hutch.api import databases
from hutch.control.records import Scope
from hutch.errors import UnavailableError
from hutch.storage import workers
from hutch.storage.workers import Deployment
from hutch.workers import manifest, reconcile, runs
from hutch.workers.changes import batch
from hutch.workers.outcome import Failure, Outcome, Success
from tests.api.conftest import Api, Tenant

PROPERTIES = {
    "Id": {"type": "title"},
    "n": {"type": "number"},
    "state": {"type": "select", "options": [{"name": "open"}]},
    "=cmd": {"type": "text"},
}
MANUAL = {"type": "manual"}


def declared(**schedules: dict[str, Any]) -> dict[str, Any]:
    config = {"databaseKey": "crm/people", "primaryKeyProperty": "Id"}
    syncs = [{"_tag": "sync", "key": key, "config": config | {"schedule": value}} for key, value in schedules.items()]
    tool = {"_tag": "tool", "key": "tool", "config": {"schema": {}}}
    database = {"initialTitle": "People", "primaryKeyProperty": "Id", "schema": {"properties": PROPERTIES}}
    return {"capabilities": [*syncs, tool], "databases": [{"key": "crm/people", "config": database}]}


async def deployed(api: Api, content: dict[str, Any], of: Tenant | None = None) -> str:
    """A worker that serves, as a deployment with this manifest leaves it."""
    http = of.http if of is not None else api.http
    answer = (await http.post("/v3/workersCreateWorker", json={"name": "w"})).json()
    worker_id: str = answer["worker"]["workerId"]
    services, own = api.services, of if of is not None else api.own
    scope, now = Scope(own.team_id, own.project_id), services.clock()
    deployment = Deployment(ids.worker_id(), worker_id, own.team_id, own.project_id, "ready", ids.secret(), None, None, now)
    parsed = manifest.parse(json.dumps(content).encode())
    async with services.database.write() as connection:
        await reconcile.apply(connection, scope, worker_id, parsed, services.sealer, now)
        await workers.add_deployment(connection, deployment)
        sealed = services.sealer.seal(content, deployment.id)
        await workers.change_deployment(connection, scope, deployment.id, now, status="ready", before=("ready",), manifest=sealed)
        await workers.touch(connection, scope, worker_id, now, deployment_id=deployment.id)
    services.syncs_due.set()
    return worker_id


def rows(*values: tuple[str, int], more: bool = False, state: Any = None) -> dict[str, Any]:
    changes = [
        {"type": "upsert", "key": key, "properties": {"Id": key, "n": n, "state": "new", "=cmd": "=1+1"}} for key, n in values
    ]
    return {"changes": changes, "hasMore": more, "nextUserContext": state}


Answers = Callable[[str, Any], dict[str, Any]]


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[Answers]:
    """What runs of syncs return: the last function says it, from the key and the state."""
    given: list[Answers] = [lambda key, state: rows()]

    async def outcome(*arguments: Any) -> Outcome:
        capability, context = arguments[-2:]
        value = given[-1](capability.key, context.get("state"))
        if "error" in value:
            return Failure(name="E", message=value["error"])
        return Success(batch(value, "sync"))

    async def run(services: Any, scope: Any, worker: Any, key: str, context: Any) -> Any:
        return given[-1](key, context.get("state"))

    monkeypatch.setattr(runs, "outcome", outcome)
    monkeypatch.setattr(runs, "run", run)
    return given


async def sync_of(api: Api, worker_id: str, key: str = "s", http: httpx.AsyncClient | None = None) -> dict[str, Any]:
    worker = (await (http or api.http).get(f"/hutch/v1/workers/{worker_id}")).json()["worker"]
    return next(item for item in worker["syncs"] if item["key"] == key)


async def trigger(api: Api, worker_id: str, **body: Any) -> dict[str, Any]:
    answer = await api.http.post(f"/hutch/v1/workers/{worker_id}/syncs/s/trigger", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def keys_of(api: Api, worker_id: str, **query: Any) -> list[str]:
    answer = await api.http.get(f"/hutch/v1/workers/{worker_id}/databases/crm%2Fpeople/rows", params=query)
    assert answer.status_code == 200, answer.text
    return [row["key"] for row in answer.json()["rows"]]


async def test_a_triggered_cycle_goes_to_its_end_and_its_rows_are_read(api: Api, answers: list[Answers]) -> None:
    worker = await deployed(api, declared(s=MANUAL))
    assert [one["id"] for one in (await api.http.get("/hutch/v1/workers")).json()["workers"]] == [worker]
    before = await sync_of(api, worker)
    assert (before["label"], before.get("next_run_at"), before["schedule"]) == ("INITIALIZING", None, MANUAL)

    def pages(key: str, state: Any) -> dict[str, Any]:
        at = state or 0
        return rows((f"k{at}", at), (f"x{at}", -at), more=at < 3, state=at + 1 if at < 3 else None)

    answers.append(pages)
    done = (await trigger(api, worker, wait=True))["sync"]
    assert (done["label"], done["stats"]["total_upserts"], done["stats"]["cycles"], done["paused"]) == ("HEALTHY", 8, 1, False)
    assert await keys_of(api, worker) == ["k0", "x0", "k1", "x1", "k2", "x2", "k3", "x3"]
    assert await keys_of(api, worker, sort="-n", limit=2) == ["k3", "k2"]
    assert await keys_of(api, worker, sort="-n", limit=2, after=2) == ["k1", "k0"]
    assert await keys_of(api, worker, filter="n=-2") == ["x2"]
    details = (await api.http.get(f"/hutch/v1/workers/{worker}")).json()["worker"]
    assert details["databases"][0]["rows"] == 8
    assert details["databases"][0]["added_options"] == {"state": ["new"]}
    answers.append(lambda key, state: rows(("k1", 7)))
    await trigger(api, worker, wait=True)
    listed = (await api.http.get(f"/hutch/v1/workers/{worker}/databases/crm%2Fpeople/rows")).json()
    assert [(row["key"], row["properties"]) for row in listed["rows"]] == [
        ("k1", {"Id": "k1", "n": 7, "state": "new", "=cmd": "=1+1"})
    ], "what a complete cycle did not have is gone"
    assert listed["next"] is None


async def test_pages_follow_each_other_and_exports_have_all(api: Api, answers: list[Answers]) -> None:
    worker = await deployed(api, declared(s=MANUAL))
    answers.append(lambda key, state: rows(*((f"k{number}", number) for number in range(1203))))
    await trigger(api, worker, wait=True)
    path = f"/hutch/v1/workers/{worker}/databases/crm%2Fpeople"
    found: list[str] = []
    after: str | None = "0"
    while after is not None:
        page = (await api.http.get(f"{path}/rows", params={"after": after, "limit": 500})).json()
        found += [row["key"] for row in page["rows"]]
        after = page["next"]
    assert found == [f"k{number}" for number in range(1203)]
    whole = (await api.http.get(f"{path}/export")).json()["rows"]
    assert [row["key"] for row in whole] == found
    exported = await api.http.get(f"{path}/export", params={"format": "csv"})
    lines = list(csv.reader(io.StringIO(exported.text)))
    assert lines[0] == ["key", "Id", "n", "state", "'=cmd", "updated_at"]
    assert lines[1][:5] == ["k0", "k0", "0", "new", "'=1+1"]
    assert len(lines) == 1204


@pytest.mark.parametrize(
    "query",
    [
        "filter=none=1",
        "filter=n",
        "filter=n=much",
        "filter=n=nan",
        "filter=%3D",
        "sort=none",
        "sort=--n",
        "after=-1",
        "after=x",
        "limit=0",
        "filter=state=a%00",
    ],
)
async def test_queries_that_mean_nothing_are_refused(api: Api, answers: list[Answers], query: str) -> None:
    worker = await deployed(api, declared(s=MANUAL))
    refused = await api.http.get(f"/hutch/v1/workers/{worker}/databases/crm%2Fpeople/rows?{query}")
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "bad_request")


async def test_what_fails_is_labelled_and_shown_to_those_who_may_see_logs(api: Api, answers: list[Answers]) -> None:
    worker = await deployed(api, declared(s=MANUAL))
    answers.append(lambda key, state: {"error": "the password is tulip"})
    labels = [(await trigger(api, worker, wait=True))["sync"]["label"] for _ in range(2)]
    assert labels == ["WARNING", "WARNING"]
    assert (await sync_of(api, worker))["last_error"] == "E: the password is tulip"
    viewer = api.client(await viewer_of(api))
    assert "last_error" not in await sync_of(api, worker, http=viewer)
    for path in ("rows", "export"):
        refused = await viewer.get(f"/hutch/v1/workers/{worker}/databases/crm%2Fpeople/{path}")
        assert refused.status_code == 403
    answers.append(lambda key, state: rows(("a", 1)))
    assert (await trigger(api, worker, wait=True))["sync"]["label"] == "HEALTHY"


async def viewer_of(api: Api) -> str:
    made = await api.http.post("/hutch/v1/tokens", json={"role": "viewer", "project": api.own.project_id})
    assert made.status_code == 201, made.text
    token: str = made.json()["token"]
    return token


async def test_a_schedule_runs_and_is_paused_by_both_apis(api: Api, answers: list[Answers]) -> None:
    seen: list[Any] = []

    def count(key: str, state: Any) -> dict[str, Any]:
        seen.append(state)
        return rows(("a", len(seen)), state=len(seen))

    answers.append(count)
    worker = await deployed(api, declared(s={"type": "continuous"}))
    async with asyncio.timeout(10):
        while len(seen) < 3:
            await asyncio.sleep(0.05)
    assert seen[:3] == [None, 1, 2]
    switch = {"workerId": worker, "capabilityKey": "s", "disabled": True}
    paused = (await api.http.post("/v3/workersUpdateSyncCapabilityDisabled", json=switch)).json()
    assert paused == {"capability": {"_tag": "sync", "key": "s", "disabled": True}}
    listed = (await api.http.post("/v3/workersListCapabilities", json={"workerId": worker})).json()["capabilities"]
    assert [(one["key"], one.get("disabled")) for one in listed] == [("s", True), ("tool", None)]
    now = await sync_of(api, worker)
    assert (now["label"], now["paused"], now.get("next_run_at")) == ("DISABLED", True, None)
    ran = len(seen)
    await trigger(api, worker, wait=True)
    assert len(seen) in {ran + 1, ran + 2}, "a trigger runs it nevertheless, once"
    reset = (await api.http.post(f"/hutch/v1/workers/{worker}/syncs/s/reset")).json()["sync"]
    assert (reset["stats"]["cycles"], reset["paused"]) == (0, True)
    del seen[:]
    resumed = (await api.http.post(f"/hutch/v1/workers/{worker}/syncs/s/resume")).json()["sync"]
    assert resumed["paused"] is False
    async with asyncio.timeout(10):
        while not seen:
            await asyncio.sleep(0.05)
    assert seen[0] is None
    nobody = await api.http.post("/v3/workersUpdateSyncCapabilityDisabled", json=switch | {"capabilityKey": "tool"})
    assert nobody.status_code == 404
    actions = [entry["action"] for entry in await audit_of(api)]
    assert {"worker.sync_paused", "worker.sync_resumed", "worker.sync_reset"} <= set(actions)


async def audit_of(api: Api) -> list[dict[str, Any]]:
    answer = await api.http.get(f"/hutch/v1/teams/{api.own.team_id}/audit-log", params={"limit": 100})
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["entries"]
    return found


async def test_a_preview_writes_nothing(api: Api, answers: list[Answers]) -> None:
    worker = await deployed(api, declared(s=MANUAL))
    answers.append(lambda key, state: rows(("a", 1), more=True, state={"after": state}))
    shown = (await trigger(api, worker, preview=True))["preview"]
    assert (len(shown["changes"]), shown["has_more"], shown["next_context"]) == (1, True, {"after": None})
    further = (await trigger(api, worker, preview=True, context={"page": 7}))["preview"]
    assert further["next_context"] == {"after": {"page": 7}}
    assert await keys_of(api, worker) == []
    assert (await sync_of(api, worker))["stats"].get("last_succeeded_at") is None
    refused = await api.http.post(f"/hutch/v1/workers/{worker}/syncs/s/trigger", json={"context": 1})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "bad_request")


async def test_projects_take_turns_and_so_many_run_at_once(api: Api, answers: list[Answers]) -> None:
    """One with a long backfill does not hold up others."""
    order: list[str] = []

    def endless(key: str, state: Any) -> dict[str, Any]:
        order.append(key)
        return rows(state=len(order), more=key == "s" and len(order) < 60)

    answers.append(endless)
    await deployed(api, declared(s={"type": "interval", "intervalMs": 3_600_000}))
    other = await api.tenant("others")
    worker = await deployed(api, declared(small={"type": "interval", "intervalMs": 3_600_000}), other)
    async with asyncio.timeout(20):
        while (await sync_of(api, worker, "small", other.http))["stats"]["cycles"] < 1:
            await asyncio.sleep(0.05)
    assert order.index("small") < 30


async def test_what_is_away_is_tried_again_and_nothing_is_lost(
    api: Api, answers: list[Answers], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await deployed(api, declared(s=MANUAL))
    plain = runs.outcome

    async def away(*arguments: Any) -> Any:
        raise UnavailableError("host_unavailable", "The host does not answer.", retry_after_s=1)

    monkeypatch.setattr(runs, "outcome", away)
    failed = (await trigger(api, worker, wait=True))["sync"]
    assert (failed["label"], failed["last_error"]) == ("WARNING", "host_unavailable: The host does not answer.")
    assert failed["next_run_at"] is not None
    monkeypatch.setattr(runs, "outcome", plain)
    answers.append(lambda key, state: rows(("a", 1)))
    assert (await trigger(api, worker, wait=True))["sync"]["label"] == "HEALTHY"
    assert await keys_of(api, worker) == ["a"]


async def test_keys_of_all_kinds_are_in_paths(api: Api, answers: list[Answers]) -> None:
    worker = await deployed(api, declared(**{"a/pause": MANUAL, "ü ?#": MANUAL}))
    for key in ("a%2Fpause", "a/pause", "%C3%BC%20%3F%23"):
        assert (await api.http.post(f"/hutch/v1/workers/{worker}/syncs/{key}/pause")).status_code == 200, key
    for key in ("none", "..", "%00", "a" * 3000):
        assert (await api.http.post(f"/hutch/v1/workers/{worker}/syncs/{key}/pause")).status_code in {400, 404, 405, 413, 414}, (
            key
        )


async def test_a_schedule_is_another_than_the_program_s_until_it_is_taken_back(api: Api, answers: list[Answers]) -> None:
    worker = await deployed(api, declared(s=MANUAL))
    weekdays = {"type": "cron", "expression": "0 6 * * 1-5", "time_zone": "Europe/Berlin"}
    path = f"/hutch/v1/workers/{worker}/syncs/s/schedule"
    changed = (await api.http.put(path, json={"schedule": weekdays})).json()["sync"]
    assert (changed["schedule"], changed["schedule_from"]) == (weekdays, "request")
    due = datetime.fromtimestamp(changed["next_run_at"] / 1000, ZoneInfo("Europe/Berlin"))
    assert (due.hour, due.minute, due.weekday() < 5) == (6, 0, True)
    assert changed["next_run_at"] > api.services.clock()
    answers.append(lambda key, state: rows(("a", 1)))
    sooner = await api.http.put(path, json={"schedule": {"type": "continuous"}})
    assert sooner.status_code == 200
    async with asyncio.timeout(10):
        while (await sync_of(api, worker))["stats"]["cycles"] < 2:
            await asyncio.sleep(0.05)
    back = (await api.http.put(path, json={"schedule": None})).json()["sync"]
    assert (back["schedule"], back["schedule_from"]) == (MANUAL, "deployment")
    assert "worker.sync_scheduled" in [entry["action"] for entry in await audit_of(api)]


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        ({"type": "interval"}, "1 minute to 7 days"),
        ({"type": "interval", "interval_ms": 1}, "1 minute to 7 days"),
        ({"type": "interval", "interval_ms": 60_000, "time_zone": "Europe/Berlin"}, "cron"),
        ({"type": "manual", "interval_ms": 60_000}, "interval"),
        ({"type": "cron"}, "five fields"),
        ({"type": "cron", "expression": "61 * * * *"}, "can't be read"),
        ({"type": "cron", "expression": "0 0 32 1 *"}, "can't be read"),
        ({"type": "cron", "expression": "* * * * *" * 100}, "expression"),
        ({"type": "cron", "expression": "0 6 * * *", "time_zone": "Mars/Olympus"}, "Mars/Olympus"),
        ({"type": "cron", "expression": "0 6 * * *", "time_zone": "../../etc/passwd"}, "time zone"),
        ({"type": "weekly"}, "schedule.type"),
    ],
)
async def test_schedules_that_are_none_are_refused(api: Api, schedule: dict[str, Any], said: str) -> None:
    worker = await deployed(api, declared(s=MANUAL))
    answer = await api.http.put(f"/hutch/v1/workers/{worker}/syncs/s/schedule", json={"schedule": schedule})
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]
    assert (await sync_of(api, worker))["schedule"] == MANUAL


VIEWS = "databases/crm/people/views"


async def test_rows_are_listed_and_exported_by_a_view(api: Api, answers: list[Answers]) -> None:
    worker = await deployed(api, declared(s=MANUAL))
    answers.append(lambda key, state: rows(("a", 1), ("b", 3), ("c", 2)))
    await trigger(api, worker, wait=True)
    at = f"/hutch/v1/workers/{worker}"
    wanted = {"filter": {"=cmd": "=1+1"}, "sort": "-n", "properties": ["n", "Id", "n"]}
    saved = await api.http.put(f"{at}/{VIEWS}/largest", json=wanted)
    assert saved.status_code == 200, saved.text
    view = saved.json()["view"]
    assert {name: view[name] for name in ("name", "filter", "sort", "properties")} == {
        "name": "largest", "filter": {"=cmd": "=1+1"}, "sort": "-n", "properties": ["n", "Id"]
    }  # fmt: skip
    assert (await api.http.get(f"{at}/{VIEWS}")).json() == {"views": [view]}
    page = (await api.http.get(f"{at}/databases/crm/people/rows", params={"view": "largest", "limit": 2})).json()
    assert [row["properties"] for row in page["rows"]] == [{"n": 3, "Id": "b"}, {"n": 2, "Id": "c"}]
    further = {"view": "largest", "limit": 2, "after": page["next"]}
    rest = (await api.http.get(f"{at}/databases/crm/people/rows", params=further)).json()
    assert ([row["key"] for row in rest["rows"]], rest["next"]) == (["a"], None)
    narrow = {"view": "largest", "filter": "n=1", "sort": "Id"}
    assert [row["key"] for row in (await api.http.get(f"{at}/databases/crm/people/rows", params=narrow)).json()["rows"]] == ["a"]
    exported = await api.http.get(f"{at}/databases/crm/people/export", params={"view": "largest", "format": "csv"})
    table = list(csv.reader(io.StringIO(exported.text)))
    assert [row[:3] for row in table] == [["key", "n", "Id"], ["b", "3", "b"], ["c", "2", "c"], ["a", "1", "a"]]
    gone = await api.http.delete(f"{at}/{VIEWS}/largest")
    assert (gone.status_code, (await api.http.delete(f"{at}/{VIEWS}/largest")).status_code) == (204, 404)
    assert (await api.http.get(f"{at}/databases/crm/people/rows", params={"view": "largest"})).status_code == 404
    assert {"worker.view_saved", "worker.view_deleted"} <= {entry["action"] for entry in await audit_of(api)}


async def test_a_view_of_what_a_deployment_took_away_says_so(api: Api, answers: list[Answers]) -> None:
    content = copy.deepcopy(declared(s=MANUAL))
    worker = await deployed(api, content)
    at = f"/hutch/v1/workers/{worker}"
    assert (await api.http.put(f"{at}/{VIEWS}/by-n", json={"sort": "n"})).status_code == 200
    scope, now = Scope(api.own.team_id, api.own.project_id), api.services.clock()
    del content["databases"][0]["config"]["schema"]["properties"]["n"]
    async with api.services.database.write() as connection:
        parsed = manifest.parse(json.dumps(content).encode())
        await reconcile.apply(connection, scope, worker, parsed, api.services.sealer, now)
    refused = await api.http.get(f"{at}/databases/crm/people/rows", params={"view": "by-n"})
    assert (refused.status_code, "`sort`" in refused.json()["error"]["message"]) == (400, True)
    assert [view["name"] for view in (await api.http.get(f"{at}/{VIEWS}")).json()["views"]] == ["by-n"]


@pytest.mark.parametrize(
    ("name", "view"),
    [
        ("x", {"filter": {"none": "a"}}),
        ("x", {"filter": {"n": "one"}}),
        ("x", {"filter": {"Id": "a\0b"}}),
        ("x", {"filter": {f"p{n}": "a" for n in range(11)}}),
        ("x", {"sort": "none"}),
        ("x", {"sort": "s" * 600}),
        ("x", {"properties": ["none"]}),
        ("x", {"properties": ["Id"] * 501}),
        ("x", {"filter": []}),
        ("-x", {}),
        ("x" * 65, {}),
        ("%00", {}),
    ],
)
async def test_views_that_are_none_are_refused(api: Api, name: str, view: dict[str, Any]) -> None:
    worker = await deployed(api, declared(s=MANUAL))
    answer = await api.http.put(f"/hutch/v1/workers/{worker}/{VIEWS}/{name}", json=view)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_request")
    assert (await api.http.get(f"/hutch/v1/workers/{worker}/{VIEWS}")).json() == {"views": []}


async def test_a_database_has_so_many_views_and_no_more(api: Api) -> None:
    worker = await deployed(api, declared(s=MANUAL))
    at = f"/hutch/v1/workers/{worker}/{VIEWS}"
    saved = await asyncio.gather(*(api.http.put(f"{at}/v{number}", json={}) for number in range(databases.MAX_VIEWS)))
    assert {answer.status_code for answer in saved} == {200}
    assert (await api.http.put(f"{at}/more", json={})).status_code == 400
    assert (await api.http.put(f"{at}/v0", json={"sort": "n"})).status_code == 200

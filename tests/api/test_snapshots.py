"""Snapshots: made at the end of sessions and on request, what sandboxes go on from, deleted and expired."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from hutch.api import snapshots
from hutch.api.services import Services
from hutch.api.starts import Start
from hutch.control.records import Scope
from hutch.errors import ConflictError, UnavailableError
from tests.api.conftest import DAY_MS, Api

pytestmark = pytest.mark.section("11")

RESUME = {"resume": "true"}


async def stop(api: Api, session_id: str) -> dict[str, Any]:
    response = await api.http.post(f"/v2/sandboxes/sessions/{session_id}/stop")
    assert response.status_code == 200, response.text
    return dict(response.json())


async def get(api: Api, name: str, **query: str) -> dict[str, Any]:
    response = await api.http.get(f"/v2/sandboxes/{name}", params=query)
    assert response.status_code == 200, response.text
    return dict(response.json())


async def take(api: Api, session_id: str, **body: Any) -> dict[str, Any]:
    response = await api.http.post(f"/v2/sandboxes/sessions/{session_id}/snapshot", json=body)
    assert response.status_code == 201, response.text
    return dict(response.json())


async def shown(api: Api, snapshot_id: str) -> dict[str, Any]:
    return dict((await api.http.get(f"/v2/sandboxes/snapshots/{snapshot_id}")).json()["snapshot"])


async def refused(api: Api, method: str, path: str, **arguments: Any) -> tuple[int, str]:
    response = await api.http.request(method, path, **arguments)
    return response.status_code, response.json()["error"]["code"]


async def purged(api: Api, snapshot_id: str) -> None:
    """Wait until the host removed its files."""
    async with asyncio.timeout(10):
        while snapshot_id in api.host.snapshots:
            await asyncio.sleep(0.01)


async def stopped(api: Api, name: str = "one", **body: Any) -> tuple[str, str]:
    """A sandbox that was stopped: its session and its snapshot."""
    session_id = (await api.create(name=name, **body))["session"]["id"]
    return session_id, (await stop(api, session_id))["snapshot"]["id"]


# -- making ------------------------------------------------------------------------------------------


@pytest.mark.section("6.1", "13.4")
async def test_the_stop_of_a_persistent_sandbox_makes_one(api: Api) -> None:
    session_id = (await api.create(name="one"))["session"]["id"]
    answer = await stop(api, session_id)
    snapshot = answer["snapshot"]
    assert snapshot["id"].startswith("snap_")
    assert answer["sandbox"]["currentSnapshotId"] == snapshot["id"]
    assert snapshot["expiresAt"] == snapshot["createdAt"] + 30 * DAY_MS
    times = ("createdAt", "updatedAt", "lastUsedAt", "expiresAt")
    assert {key: value for key, value in snapshot.items() if key not in times} == {
        "id": snapshot["id"],
        "sourceSessionId": session_id,
        "sourceSandboxName": "one",
        "region": "iad1",
        "regions": ["iad1"],
        "status": "created",
        "sizeBytes": 1234,
        "creationMethod": "automatic",
        "architecture": "amd64",
    }
    assert (await stop(api, session_id))["snapshot"] == snapshot
    assert await shown(api, snapshot["id"]) == snapshot


@pytest.mark.section("13.4")
async def test_what_is_not_persistent_leaves_one_only_when_asked(api: Api) -> None:
    session_id = (await api.create(name="one", persistent=False))["session"]["id"]
    answer = await stop(api, session_id)
    assert "snapshot" not in answer
    assert "currentSnapshotId" not in answer["sandbox"]
    assert await refused(api, "GET", "/v2/sandboxes/one", params=RESUME) == (400, "snapshot_not_found")
    session_id = (await api.create(name="two", persistent=False))["session"]["id"]
    taken = await take(api, session_id)
    assert (taken["session"]["status"], taken["snapshot"]["creationMethod"]) == ("snapshotting", "manual")
    assert taken["session"]["snapshottedAt"] == taken["snapshot"]["createdAt"]
    after = await get(api, "two")
    assert (after["session"]["status"], after["sandbox"]["currentSnapshotId"]) == ("stopped", taken["snapshot"]["id"])
    assert (await get(api, "two", **RESUME))["resumed"]


async def test_one_of_a_session_that_runs_on(api: Api) -> None:
    session_id = (await api.create(name="one"))["session"]["id"]
    taken = await take(api, session_id, keepRunning=True)
    assert taken["session"]["status"] == "running"
    assert (await get(api, "one"))["sandbox"]["currentSnapshotId"] == taken["snapshot"]["id"]
    assert (await stop(api, session_id))["snapshot"]["id"] != taken["snapshot"]["id"]


@pytest.mark.section("13.4")
async def test_an_end_that_nobody_here_asked_for_makes_one_too(api: Api) -> None:
    session_id = (await api.create(name="one"))["session"]["id"]
    await api.host.end(session_id)
    async with asyncio.timeout(10):
        while "currentSnapshotId" not in (await get(api, "one"))["sandbox"]:
            await asyncio.sleep(0.01)
    assert (await get(api, "one", **RESUME))["resumed"]


@pytest.mark.section("6.4")
async def test_a_patch_of_persistent_counts_for_the_session_that_runs(api: Api) -> None:
    session_id = (await api.create(name="one"))["session"]["id"]
    await api.http.patch("/v2/sandboxes/one", json={"persistent": False})
    assert "snapshot" not in await stop(api, session_id)
    session_id = (await api.create(name="two", persistent=False))["session"]["id"]
    await api.http.patch("/v2/sandboxes/two", json={"persistent": True})
    assert "snapshot" in await stop(api, session_id)


async def test_one_whose_answer_was_lost_is_known(api: Api) -> None:
    session_id = (await api.create(name="one"))["session"]["id"]
    api.host.lose_snapshot_answer = True
    assert (await refused(api, "POST", f"/v2/sandboxes/sessions/{session_id}/snapshot", json={"keepRunning": True}))[0] == 503
    async with asyncio.timeout(10):
        while not (found := (await api.http.get("/v2/sandboxes/snapshots")).json()["snapshots"]):
            await asyncio.sleep(0.01)
    assert [one["id"] for one in found] == list(api.host.snapshots)
    assert (await get(api, "one"))["sandbox"]["currentSnapshotId"] == found[0]["id"]


@pytest.mark.parametrize(
    ("body", "code"),
    [({"expiration": 1}, "bad_request"), ({"expiration": "x"}, "bad_request"), ({"memory": "yes"}, "bad_request")],
)
async def test_bad_requests_make_none(api: Api, body: dict[str, Any], code: str) -> None:
    session_id = (await api.create(name="one"))["session"]["id"]
    assert await refused(api, "POST", f"/v2/sandboxes/sessions/{session_id}/snapshot", json=body) == (400, code)
    assert api.host.snapshots == {}
    assert (await get(api, "one"))["session"]["status"] == "running"


@pytest.mark.section("7.5")
async def test_what_has_ended_or_is_unknown_makes_none(api: Api) -> None:
    session_id, _ = await stopped(api)
    path = "/v2/sandboxes/sessions/{}/snapshot"
    assert await refused(api, "POST", path.format(session_id)) == (410, "sandbox_stopped")
    assert await refused(api, "POST", path.format("sbx_none")) == (404, "not_found")


# -- going on ----------------------------------------------------------------------------------------


@pytest.mark.section("13.4")
async def test_a_resume_begins_a_session_with_it(api: Api) -> None:
    first, snapshot_id = await stopped(
        api, env={"A": "1"}, tags={"t": "x"}, ports=[3000], networkPolicy={"allow": ["a.test"]}, disk_bytes=1 << 30
    )
    before = await shown(api, snapshot_id)
    answer = await get(api, "one", **RESUME)
    assert answer["resumed"]
    session = answer["session"]
    assert session["id"] != first
    assert (session["status"], session["sourceSnapshotId"]) == ("running", snapshot_id)
    assert answer["sandbox"]["currentSessionId"] == session["id"]
    assert answer["sandbox"]["status"] == "running"
    assert answer["routes"][0]["port"] == 3000
    spec, former = api.host.specs[session["id"]], api.host.specs[first]
    assert (spec.source_snapshot, spec.env, spec.disk_bytes) == (snapshot_id, {"A": "1"}, 1 << 30)
    assert spec.network.policy == former.network.policy
    assert spec.network.generation > former.network.generation
    again = await get(api, "one", **RESUME)
    assert (again["resumed"], again["session"]["id"]) == (False, session["id"])
    sessions = (await api.http.get("/v2/sandboxes/sessions", params={"name": "one"})).json()["sessions"]
    assert [one["id"] for one in sessions] == [session["id"], first]
    after = await shown(api, snapshot_id)
    assert after["lastUsedAt"] >= before["lastUsedAt"]
    assert after["expiresAt"] - after["lastUsedAt"] == 30 * DAY_MS
    # What it leaves came from the first one.
    assert (await stop(api, session["id"]))["snapshot"]["parentId"] == snapshot_id


@pytest.mark.section("6.2", "13.3")
async def test_resumes_at_once_are_one(api: Api) -> None:
    first, _ = await stopped(api)
    api.host.create_gate.clear()
    asking = [asyncio.create_task(get(api, "one", **RESUME)) for _ in range(8)]
    async with asyncio.timeout(10):
        while (await get(api, "one"))["sandbox"]["currentSessionId"] == first:
            await asyncio.sleep(0.01)
    api.host.create_gate.set()
    answers = await asyncio.gather(*asking)
    assert sorted(answer["resumed"] for answer in answers) == [False] * 7 + [True]
    assert len({answer["session"]["id"] for answer in answers}) == 1
    assert {answer["session"]["status"] for answer in answers} == {"running"}
    assert len(api.host.specs) == 2


async def test_a_resume_that_the_host_refuses_can_be_tried_again(api: Api) -> None:
    _, snapshot_id = await stopped(api)
    api.host.refuse_create = UnavailableError("host_full", "no room", retry_after_s=1)
    assert await refused(api, "GET", "/v2/sandboxes/one", params=RESUME) == (503, "host_full")
    assert (await get(api, "one"))["sandbox"]["status"] == "stopped"
    api.host.refuse_create = None
    answer = await get(api, "one", **RESUME)
    assert (answer["resumed"], answer["session"]["sourceSnapshotId"]) == (True, snapshot_id)


@pytest.mark.section("6.4", "13.4")
async def test_a_patch_can_resume_and_go_back(api: Api) -> None:
    _, oldest = await stopped(api)
    second = (await get(api, "one", **RESUME))["session"]["id"]
    newest = (await stop(api, second))["snapshot"]["id"]
    answer = (await api.http.patch("/v2/sandboxes/one", params=RESUME, json={"currentSnapshotId": oldest})).json()
    assert answer["resumed"]
    assert answer["session"]["sourceSnapshotId"] == oldest
    assert answer["sandbox"]["currentSnapshotId"] == oldest
    for wrong in ("snap_none", "", "\0", "x" * 600):
        status, _ = await refused(api, "PATCH", "/v2/sandboxes/one", json={"currentSnapshotId": wrong})
        assert status in (400, 404), wrong
    await api.http.delete(f"/v2/sandboxes/snapshots/{newest}")
    assert await refused(api, "PATCH", "/v2/sandboxes/one", json={"currentSnapshotId": newest}) == (410, "snapshot_not_found")


@pytest.mark.section("6.1")
async def test_a_create_and_a_fork_begin_with_it(api: Api) -> None:
    _, snapshot_id = await stopped(api, env={"A": "1"})
    made = await api.create(name="two", source={"type": "snapshot", "snapshotId": snapshot_id})
    assert made["session"]["sourceSnapshotId"] == made["sandbox"]["currentSnapshotId"] == snapshot_id
    fork = (await api.http.post("/v2/sandboxes/one/fork", json={"name": "three"})).json()
    assert fork["session"]["sourceSnapshotId"] == fork["sandbox"]["currentSnapshotId"] == snapshot_id
    assert api.host.specs[fork["session"]["id"]].env == {"A": "1"}
    plain = (await api.http.post("/v2/sandboxes/one/fork", json={"image": "vercel/sandbox/universal"})).json()
    assert "sourceSnapshotId" not in plain["session"]
    await api.create(name="never")
    image = (await api.http.post("/v2/sandboxes/never/fork", json={})).json()
    assert "sourceSnapshotId" not in image["session"]


@pytest.mark.section("6.4")
async def test_another_teams_is_unknown(api: Api) -> None:
    _, snapshot_id = await stopped(api)
    stranger = (await api.tenant("strangers")).http
    source = {"source": {"type": "snapshot", "snapshotId": snapshot_id}}
    for method, path, body in (
        ("GET", f"/v2/sandboxes/snapshots/{snapshot_id}", None),
        ("DELETE", f"/v2/sandboxes/snapshots/{snapshot_id}", None),
        ("GET", f"/v2/sandboxes/snapshots/tree?snapshotId={snapshot_id}", None),
        ("POST", "/v3/sandboxes", source),
    ):
        assert (await stranger.request(method, path, json=body)).status_code == 404
    assert (await stranger.get("/v2/sandboxes/snapshots")).json()["snapshots"] == []
    await stranger.post("/v3/sandboxes", json={"name": "own"})
    patched = await stranger.patch("/v2/sandboxes/own", json={"currentSnapshotId": snapshot_id})
    assert patched.status_code == 404
    assert (await shown(api, snapshot_id))["status"] == "created"


# -- the end -----------------------------------------------------------------------------------------


@pytest.mark.section("4.6", "5.3", "6.1", "6.4")
async def test_a_deleted_one_stays_listed_and_begins_nothing(api: Api) -> None:
    _, snapshot_id = await stopped(api)
    path = f"/v2/sandboxes/snapshots/{snapshot_id}"
    for _ in range(2):
        deleted = (await api.http.delete(path)).json()["snapshot"]
        assert deleted["status"] == "deleted"
        assert "expiresAt" not in deleted
    await purged(api, snapshot_id)
    assert [one["status"] for one in (await api.http.get("/v2/sandboxes/snapshots")).json()["snapshots"]] == ["deleted"]
    gone = (410, "snapshot_not_found")
    assert await refused(api, "GET", "/v2/sandboxes/one", params=RESUME) == gone
    assert await refused(api, "POST", "/v2/sandboxes/one/fork", json={}) == gone
    source = {"source": {"type": "snapshot", "snapshotId": snapshot_id}}
    assert await refused(api, "POST", "/v3/sandboxes", json=source) == gone


async def test_a_host_that_can_not_be_told_is_told_later(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "RETRY_S", 0.01)
    _, snapshot_id = await stopped(api)
    api.host.refuse_delete = UnavailableError("host_busy", "later", retry_after_s=1)
    assert (await api.http.delete(f"/v2/sandboxes/snapshots/{snapshot_id}")).status_code == 200
    with pytest.raises(UnavailableError):
        await snapshots.tidy(api.services)
    assert snapshot_id in api.host.snapshots
    api.host.refuse_delete = None
    await purged(api, snapshot_id)


@pytest.mark.section("6.2")
async def test_they_expire_after_their_last_use(api: Api) -> None:
    session_id = (await api.create(name="one", snapshotExpiration=2 * DAY_MS))["session"]["id"]
    own = (await take(api, session_id, expiration=DAY_MS))["snapshot"]
    assert own["expiresAt"] == own["createdAt"] + DAY_MS
    _, for_ever = await stopped(api, "two", snapshotExpiration=0)
    _, sandboxs = await stopped(api, "three", snapshotExpiration=2 * DAY_MS)
    assert "expiresAt" not in await shown(api, for_ever)
    clock = api.services.clock
    api.services.clock = lambda: clock() + DAY_MS + 1000
    # Before anybody tidied up, too.
    assert await refused(api, "GET", "/v2/sandboxes/one", params=RESUME) == (410, "snapshot_not_found")
    await snapshots.tidy(api.services)
    states = {one: (await shown(api, one))["status"] for one in (own["id"], for_ever, sandboxs)}
    assert states == {own["id"]: "deleted", for_ever: "created", sandboxs: "created"}
    assert own["id"] not in api.host.snapshots


@pytest.mark.parametrize("evicted", [True, False])
async def test_only_the_last_ones_are_kept(api: Api, *, evicted: bool) -> None:
    keep = {"count": 2, "expiration": 3 * DAY_MS, "deleteEvicted": evicted}
    _, first = await stopped(api, keepLastSnapshots=keep)
    made = [first]
    for _ in range(2):
        session_id = (await get(api, "one", **RESUME))["session"]["id"]
        made.append((await stop(api, session_id))["snapshot"]["id"])
    found = [await shown(api, one) for one in made]
    assert [one["status"] for one in found] == ["deleted" if evicted else "created", "created", "created"]
    assert [one["expiresAt"] - one["lastUsedAt"] for one in found[1:]] == [3 * DAY_MS] * 2
    if evicted:
        api.services.snapshots_due.set()
        await purged(api, first)


async def lives(api: Api, snapshot_ids: list[str]) -> list[int | None]:
    """How many days each is kept after its last use; None: for ever."""
    found = [await shown(api, one) for one in snapshot_ids]
    return [(one["expiresAt"] - one["lastUsedAt"]) // DAY_MS if "expiresAt" in one else None for one in found]


async def line_of(api: Api, count: int, **body: Any) -> list[str]:
    """The snapshots of so many sessions of a sandbox, the oldest first."""
    made = [(await stopped(api, **body))[1]]
    for _ in range(count - 1):
        session_id = (await get(api, "one", **RESUME))["session"]["id"]
        made.append((await stop(api, session_id))["snapshot"]["id"])
    return made


async def test_what_is_said_in_the_call_comes_first_then_what_the_sandbox_says(api: Api) -> None:
    session_id = (await api.create(name="one", snapshotExpiration=2 * DAY_MS))["session"]["id"]
    made = [
        (await take(api, session_id, keepRunning=True, **body))["snapshot"]["id"]
        for body in ({}, {"expiration": 5 * DAY_MS}, {"expiration": 0})
    ]
    # The session's own end is a report of the host's alone, and one that was asked for is a report too.
    made.append((await take(api, session_id, expiration=3 * DAY_MS))["snapshot"]["id"])
    assert await lives(api, made) == [2, 5, None, 3]


async def test_one_is_kept_for_30_days_unless_something_else_is_said(api: Api) -> None:
    session_id = (await api.create(name="one", persistent=False))["session"]["id"]
    assert await lives(api, [(await take(api, session_id))["snapshot"]["id"]]) == [30]


@pytest.mark.parametrize(
    ("own", "keep", "wanted"),
    [
        ({"snapshotExpiration": 2 * DAY_MS}, {"count": 3, "expiration": 4 * DAY_MS}, [4, 4, 4]),
        ({}, {"count": 3, "expiration": 0}, [None, None, None]),
        ({"snapshotExpiration": 2 * DAY_MS}, {"count": 3}, [2, 2, 2]),
        ({}, {"count": 3}, [30, 30, 30]),
        ({}, {"count": 2, "expiration": 4 * DAY_MS, "deleteEvicted": False}, [4, 4, 4]),
    ],
    ids=["its own", "for ever", "the sandbox's", "the default", "evicted"],
)
async def test_kept_ones_live_as_long_as_is_said_for_them(
    api: Api, own: dict[str, Any], keep: dict[str, Any], wanted: list[int | None]
) -> None:
    made = await line_of(api, 3, keepLastSnapshots=keep, **own)
    assert await lives(api, made) == wanted


async def test_what_is_said_of_one_snapshot_is_not_said_of_those_before(api: Api) -> None:
    first, second = await line_of(api, 2, keepLastSnapshots={"count": 3})
    session_id = (await get(api, "one", **RESUME))["session"]["id"]
    third = (await take(api, session_id, expiration=DAY_MS))["snapshot"]["id"]
    assert await lives(api, [first, second, third]) == [30, 30, 1]


@pytest.mark.section("11", "19")
async def test_later_versions_keep_them_for_7_days(api: Api) -> None:
    plain = (await api.create(name="one"))["session"]["id"]
    said = (await api.create(name="two", snapshotExpiration=2 * DAY_MS))["session"]["id"]
    kept = (await api.create(name="three", keepLastSnapshots={"count": 2, "expiration": 4 * DAY_MS}))["session"]["id"]
    made = []
    for prefix, session_id, body in (
        ("/v2", plain, {}),
        ("/v3", plain, {}),
        ("/api/v3", plain, {"expiration": 5 * DAY_MS}),
        ("/v3", said, {}),
        ("/v3", kept, {}),
    ):
        path = f"{prefix}/sandboxes/sessions/{session_id}/snapshot"
        taken = await api.http.post(path, json={"keepRunning": True, **body})
        assert taken.status_code == 201, taken.text
        made.append(taken.json()["snapshot"]["id"])
    assert await lives(api, made) == [30, 7, 5, 2, 4]
    forks = [
        (await api.http.post(f"{prefix}/sandboxes/{name}/fork", json={"name": f"{prefix[1:]}-{name}"})).json()["sandbox"]
        for prefix in ("/v2", "/v3")
        for name in ("one", "two")
    ]
    assert [one.get("snapshotExpiration") for one in forks] == [None, 2 * DAY_MS, 7 * DAY_MS, 2 * DAY_MS]


async def test_one_begins_sandboxes_in_its_region(api: Api) -> None:
    session_id = (await api.create(name="one", region="sfo1"))["session"]["id"]
    snapshot = (await stop(api, session_id))["snapshot"]
    assert (snapshot["region"], snapshot["regions"]) == ("sfo1", ["sfo1"])
    source: dict[str, Any] = {"source": {"type": "snapshot", "snapshotId": snapshot["id"]}}
    mismatch = (422, "snapshot_region_mismatch")
    assert await refused(api, "POST", "/v3/sandboxes", json={"name": "two", "region": "iad1", **source}) == mismatch
    assert await refused(api, "POST", "/v2/sandboxes/one/fork", json={"name": "two", "region": "iad1"}) == mismatch
    assert await refused(api, "GET", "/v2/sandboxes/two") == (404, "not_found")
    assert (await api.create(region="sfo1", **source))["session"]["region"] == "sfo1"
    assert (await api.create(**source))["sandbox"]["region"] == "sfo1"
    assert (await api.http.post("/v2/sandboxes/one/fork", json={})).json()["session"]["region"] == "sfo1"


async def test_the_end_of_a_deleted_sandbox_makes_none(api: Api) -> None:
    await api.create(name="one")
    await api.http.delete("/v2/sandboxes/one")
    assert api.host.snapshots == {}


@pytest.mark.section("6.5")
async def test_a_deleted_sandboxs_stay_unless_nobody_needs_them(api: Api) -> None:
    _, kept = await stopped(api, "kept")
    await api.http.delete("/v2/sandboxes/kept")
    assert (await shown(api, kept))["status"] == "created"
    _, needed = await stopped(api, "one")
    session_id = (await get(api, "one", **RESUME))["session"]["id"]
    orphan = (await stop(api, session_id))["snapshot"]["id"]
    await api.create(name="two", source={"type": "snapshot", "snapshotId": needed})
    await api.http.delete("/v2/sandboxes/one", params={"deleteOrphanSnapshots": "true"})
    assert [(await shown(api, one))["status"] for one in (needed, orphan)] == ["created", "deleted"]


# -- lists -------------------------------------------------------------------------------------------


async def test_lists_are_paged_and_by_sandbox(api: Api) -> None:
    made = [(await stopped(api, name))[1] for name in ("a", "b", "c")]
    path = "/v2/sandboxes/snapshots"
    page = (await api.http.get(path, params={"limit": "2"})).json()
    rest = (await api.http.get(path, params={"limit": "2", "cursor": page["pagination"]["next"]})).json()
    assert [one["id"] for one in page["snapshots"] + rest["snapshots"]] == made[::-1]
    assert rest["pagination"]["next"] is None
    assert [one["id"] for one in (await api.http.get(path, params={"sortOrder": "asc"})).json()["snapshots"]] == made
    assert [one["id"] for one in (await api.http.get(path, params={"name": "b"})).json()["snapshots"]] == [made[1]]
    for wrong in ({"limit": "0"}, {"cursor": "x"}, {"sortOrder": "up"}, {"cursor": page["pagination"]["next"], "name": "b"}):
        assert (await api.http.get(path, params=wrong)).status_code == 400, wrong


@pytest.mark.section("5.3")
async def test_the_tree_goes_both_ways(api: Api) -> None:
    _, root = await stopped(api)
    session_id = (await get(api, "one", **RESUME))["session"]["id"]
    child = (await stop(api, session_id))["snapshot"]["id"]
    fork = await api.create(name="two", source={"type": "snapshot", "snapshotId": root})
    sibling = (await stop(api, fork["session"]["id"]))["snapshot"]["id"]

    async def tree(**query: str) -> dict[str, Any]:
        return dict((await api.http.get("/v2/sandboxes/snapshots/tree", params=query)).json())

    up = await tree(snapshotId=child)
    assert (up["anchor"]["snapshot"]["id"], [one["id"] for one in up["anchor"]["siblings"]]) == (child, [sibling])
    assert [(node["snapshot"]["id"], node["count"]) for node in up["snapshots"]] == [(root, "1")]
    down = await tree(snapshotId=root, sortOrder="asc")
    [node] = down["snapshots"]
    assert (node["snapshot"]["id"], [one["id"] for one in node["siblings"]], node["count"]) == (sibling, [child], "2")
    assert [node["snapshot"]["id"] for node in (await tree())["snapshots"]] == [root]
    assert (await tree(snapshotId=root))["snapshots"] == []
    for wrong, status in (({"snapshotId": "snap_none"}, 404), ({"limit": "0"}, 400), ({"sortOrder": "up"}, 400)):
        assert (await api.http.get("/v2/sandboxes/snapshots/tree", params=wrong)).status_code == status


@pytest.mark.section("11.2")
async def test_a_page_has_20_the_newest_first(api: Api) -> None:
    session_id = (await api.create(name="one"))["session"]["id"]
    made = [(await take(api, session_id, keepRunning=True))["snapshot"]["id"] for _ in range(21)]
    query = {"project": api.own.project_id, "name": "one"}
    page = (await api.http.get("/v2/sandboxes/snapshots", params=query)).json()
    assert [one["id"] for one in page["snapshots"]] == made[:0:-1]
    assert page["pagination"]["count"] == 20
    rest = (await api.http.get("/v2/sandboxes/snapshots", params={**query, "cursor": page["pagination"]["next"]})).json()
    assert ([one["id"] for one in rest["snapshots"]], rest["pagination"]) == ([made[0]], {"count": 1, "next": None})
    other = await api.tenant("strangers")
    assert (await api.http.get("/v2/sandboxes/snapshots", params={"project": other.project_id})).status_code == 403


@pytest.mark.section("5.3", "11.5")
async def test_many_that_came_from_one_are_counted_as_10_and_more(api: Api) -> None:
    _, root = await stopped(api)
    source: dict[str, Any] = {"source": {"type": "snapshot", "snapshotId": root}}
    made = []
    for _ in range(11):
        session_id = (await api.create(**source))["session"]["id"]
        made.append((await stop(api, session_id))["snapshot"]["id"])
    query = {"project": api.own.project_id, "snapshotId": root, "sortOrder": "asc"}
    [node] = (await api.http.get("/v2/sandboxes/snapshots/tree", params=query)).json()["snapshots"]
    assert (node["snapshot"]["id"], node["count"]) == (made[-1], "10+")
    assert [one["id"] for one in node["siblings"]] == made[-2::-1]
    for snapshot_id in made[:2]:
        await api.http.delete(f"/v2/sandboxes/snapshots/{snapshot_id}")
    [node] = (await api.http.get("/v2/sandboxes/snapshots/tree", params=query)).json()["snapshots"]
    assert {one["status"] for one in node["siblings"]} == {"created", "deleted"}


@pytest.mark.section("11.5", "18.3")
async def test_a_page_of_a_tree_has_at_most_10(api: Api) -> None:
    line = await line_of(api, 12)
    for limit in ({}, {"limit": "10"}, {"limit": "100"}):
        query = {"snapshotId": line[-1], **limit}
        page = (await api.http.get("/v2/sandboxes/snapshots/tree", params=query)).json()
        assert [node["snapshot"]["id"] for node in page["snapshots"]] == line[-2:0:-1]
        assert page["pagination"] == {"count": 10, "next": line[1]}
    one = (await api.http.get("/v2/sandboxes/snapshots/tree", params={"snapshotId": line[-1], "limit": "1"})).json()
    assert [node["snapshot"]["id"] for node in one["snapshots"]] == [line[-2]]
    for wrong in ("0", "-1", "x", "1.5"):
        assert await refused(api, "GET", "/v2/sandboxes/snapshots/tree", params={"limit": wrong}) == (400, "bad_request")


@pytest.mark.section("4.7", "11.5")
async def test_a_tree_goes_on_from_the_last_snapshot_of_a_page(api: Api) -> None:
    _, snapshot_id = await stopped(api)
    line = [snapshot_id]
    for _ in range(3):
        session_id = (await get(api, "one", **RESUME))["session"]["id"]
        line.append((await stop(api, session_id))["snapshot"]["id"])
    for start, order, wanted in ((line[-1], "desc", line[-2::-1]), (line[0], "asc", line[1:])):
        found: list[str] = []
        pages = 0
        at: str | None = start
        while at is not None:
            query = {"snapshotId": at, "sortOrder": order, "limit": "2"}
            answer = (await api.http.get("/v2/sandboxes/snapshots/tree", params=query)).json()
            found += [node["snapshot"]["id"] for node in answer["snapshots"]]
            assert answer["pagination"]["count"] == len(answer["snapshots"])
            at, pages = answer["pagination"]["next"], pages + 1
        assert (found, pages) == (wanted, 2)


@pytest.mark.section("4.5", "4.6", "6.2")
async def test_a_resume_from_a_deleted_snapshot_is_410_in_the_vendors_words(api: Api) -> None:
    _, snapshot_id = await stopped(api)
    await api.http.delete(f"/v2/sandboxes/snapshots/{snapshot_id}")
    response = await api.http.get("/v2/sandboxes/one", params=RESUME)
    error = {"code": "snapshot_not_found", "message": "Cannot resume sandbox: no snapshot available."}
    assert (response.status_code, response.json()) == (410, {"error": error})


@pytest.mark.parametrize("snapshot_id", ["snap_x", "%00", "a%2Fb", "%F0%9F%92%A9", "x" * 5000])
async def test_ids_that_are_none_are_unknown(api: Api, snapshot_id: str) -> None:
    for method in ("GET", "DELETE"):
        assert (await api.http.request(method, f"/v2/sandboxes/snapshots/{snapshot_id}")).status_code in (404, 405)


# -- memory ------------------------------------------------------------------------------------------


async def fork(api: Api, **body: Any) -> dict[str, Any]:
    response = await api.http.post("/v2/sandboxes/one/fork", json=body)
    assert response.status_code == 200, response.text
    return dict(response.json())


async def test_a_snapshot_with_memory_is_gone_on_from_by_a_sandbox_of_its_size(api: Api) -> None:
    session_id = (await api.create(name="one", resources={"vcpus": 4}))["session"]["id"]
    taken = (await take(api, session_id, memory=True))["snapshot"]
    assert taken["memoryBytes"] == 5678
    assert taken["sizeBytes"] == 1234 + 5678
    source = {"type": "snapshot", "snapshotId": taken["id"]}
    going_on = (await api.create(name="two", source=source))["session"]
    assert going_on["vcpus"] == 4
    assert api.host.specs[going_on["id"]].with_memory
    files = (await api.create(name="three", source=source | {"memory": False}))["session"]
    assert files["vcpus"] == 2
    assert not api.host.specs[files["id"]].with_memory
    resumed = await get(api, "one", **RESUME)
    assert api.host.specs[resumed["session"]["id"]].with_memory


async def test_a_fork_of_memory_makes_as_many_as_asked_for_and_leaves_the_parent_as_it_is(api: Api) -> None:
    parent = await api.create(name="one", resources={"vcpus": 4}, env={"A": "1"}, keepLastSnapshots={"count": 1})
    forked = await fork(api, memory=True, count=3, name="child", env={"A": "2"})
    assert [one["sandbox"]["name"] for one in forked["forks"]] == ["child-1", "child-2", "child-3"]
    assert {key: forked[key] for key in ("sandbox", "session", "routes")} == forked["forks"][0]
    specs = [api.host.specs[one["session"]["id"]] for one in forked["forks"]]
    assert {(spec.vcpus, spec.with_memory, spec.env["A"]) for spec in specs} == {(4, True, "2")}
    assert len({spec.source_snapshot for spec in specs}) == 1
    now = await get(api, "one")
    assert now["session"]["id"] == parent["session"]["id"]
    assert now["session"]["status"] == "running"
    assert "currentSnapshotId" not in now["sandbox"]
    assert not any("currentSnapshotId" in one["sandbox"] for one in forked["forks"])
    # What they went on from is theirs alone, and goes.
    assert specs[0].source_snapshot is not None
    await purged(api, specs[0].source_snapshot)
    assert (await shown(api, specs[0].source_snapshot))["status"] == "deleted"


async def test_several_forks_of_files(api: Api) -> None:
    _, snapshot_id = await stopped(api)
    forked = await fork(api, count=2)
    assert {one["sandbox"]["currentSnapshotId"] for one in forked["forks"]} == {snapshot_id}
    assert len({one["sandbox"]["name"] for one in forked["forks"]}) == 2


async def test_of_forks_that_can_not_all_be_made_none_is(api: Api) -> None:
    await api.create(name="one")
    await api.create(name="child-2")
    assert await refused(api, "POST", "/v2/sandboxes/one/fork", json={"memory": True, "count": 3, "name": "child"}) == (
        409,
        "conflict",
    )
    names = [one["name"] for one in (await api.http.get("/v2/sandboxes")).json()["sandboxes"]]
    assert sorted(names) == ["child-2", "one"]
    async with asyncio.timeout(10):
        while api.host.snapshots:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "body",
    [
        {"memory": "x"},
        {"count": 0},
        {"count": 101},
        {"count": "2"},
        {"memory": True, "image": "vercel/sandbox/universal:latest"},
        {"memory": True, "resources": {"vcpus": 2}},
        {"name": "x" * 128, "count": 10},
    ],
)
async def test_bad_forks_make_nothing(api: Api, body: dict[str, Any]) -> None:
    await api.create(name="one")
    assert await refused(api, "POST", "/v2/sandboxes/one/fork", json=body) == (400, "bad_request")
    assert api.host.snapshots == {}
    assert len((await api.http.get("/v2/sandboxes")).json()["sandboxes"]) == 1


async def test_what_does_not_run_has_no_memory_to_fork(api: Api) -> None:
    await stopped(api)
    assert (await refused(api, "POST", "/v2/sandboxes/one/fork", json={"memory": True}))[0] == 410


async def test_what_was_made_for_forks_is_nothing_else_when_they_never_heard_of_it(api: Api) -> None:
    _, kept = await stopped(api, keepLastSnapshots={"count": 1})
    await get(api, "one", **RESUME)
    api.host.lose_snapshot_answer = True
    assert (await refused(api, "POST", "/v2/sandboxes/one/fork", json={"memory": True}))[0] == 503
    async with asyncio.timeout(10):
        while len(found := (await api.http.get("/v2/sandboxes/snapshots")).json()["snapshots"]) < 2:
            await asyncio.sleep(0.01)
    [made] = [one for one in found if one["id"] != kept]
    assert made["expiresAt"] - made["createdAt"] == 86_400_000
    assert (await shown(api, kept))["status"] == "created"
    assert (await get(api, "one"))["sandbox"]["currentSnapshotId"] == kept


async def test_a_resume_takes_the_files_where_the_memory_can_not_go_on(api: Api) -> None:
    session_id = (await api.create(name="one"))["session"]["id"]
    taken = (await take(api, session_id, memory=True))["snapshot"]
    api.host.refuse_memory = ConflictError("snapshot_incompatible", "Another processor.")
    response = await api.http.patch("/v2/sandboxes/one", json={"resources": {"vcpus": 4}})
    assert response.status_code == 200, response.text
    resumed = await get(api, "one", **RESUME)
    spec = api.host.specs[resumed["session"]["id"]]
    assert (spec.source_snapshot, spec.with_memory, spec.vcpus) == (taken["id"], False, 4)
    # Who can say what to begin with is told.
    source = {"type": "snapshot", "snapshotId": taken["id"]}
    assert await refused(api, "POST", "/v2/sandboxes", json={"source": source}) == (409, "snapshot_incompatible")


async def test_forks_go_when_one_of_them_can_not_be_made_and_another_is_gone_already(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    await api.create(name="one")
    await api.create(name="child-3")
    start = Start.start

    async def start_and_lose(self: Start, services: Services, scope: Scope) -> Any:
        started = await start(self, services, scope)
        if self.record.name == "child-1":
            assert (await api.http.delete("/v2/sandboxes/child-1")).status_code == 200
        return started

    monkeypatch.setattr(Start, "start", start_and_lose)
    body = {"memory": True, "count": 3, "name": "child"}
    assert await refused(api, "POST", "/v2/sandboxes/one/fork", json=body) == (409, "conflict")
    names = [one["name"] for one in (await api.http.get("/v2/sandboxes")).json()["sandboxes"]]
    assert sorted(names) == ["child-3", "one"]

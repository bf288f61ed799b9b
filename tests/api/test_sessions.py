"""Sessions: get, list, stop, extend, and what the host's events change."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from sqlalchemy import text

from hutch.api.host_events import reconcile
from hutch.host.protocol import SessionStatus
from hutch.storage import hosts
from tests.api.conftest import Api

pytestmark = pytest.mark.section("7")


async def settled(api: Api) -> None:
    """Every event of the host has been applied."""
    async with asyncio.timeout(10):
        while True:
            async with api.services.database.read() as connection:
                if await hosts.cursor(connection, api.host.host_id) >= len(api.host.events):
                    return
            await asyncio.sleep(0.005)


async def test_get_answers_session_and_routes(api: Api) -> None:
    created = await api.create(name="one", ports=[3000])
    session_id = created["session"]["id"]
    body = (await api.http.get(f"/v2/sandboxes/sessions/{session_id}", params={"__includeSystemRoutes": "true"})).json()
    assert body == {"session": created["session"], "routes": created["routes"]}


@pytest.mark.parametrize("session_id", ["sbx_unknown", "nope", "sbx_" + "a" * 28, "%00", "sbx_" + "x" * 4000])
async def test_an_unknown_session_is_404_and_never_410(api: Api, session_id: str) -> None:
    for method, path in (
        ("GET", ""),
        ("POST", "/stop"),
        ("POST", "/cmd"),
        ("GET", "/cmd"),
        ("GET", "/cmd/cmd_00/logs"),
        ("POST", "/fs/read"),
        ("POST", "/fs/write"),
        ("POST", "/extend-timeout"),
        ("POST", "/network-policy"),
        ("POST", "/interactive"),
        ("POST", "/snapshot"),
    ):
        response = await api.http.request(
            method, f"/v2/sandboxes/sessions/{session_id}{path}", json={} if method == "POST" else None
        )
        assert response.status_code == 404, (method, path, response.text)
        assert response.json()["error"]["code"] == "not_found"


@pytest.mark.section("5.2")
async def test_stop_answers_when_it_is_down_with_its_usage(api: Api) -> None:
    session_id = (await api.create(name="one"))["session"]["id"]
    response = await api.http.post(f"/v2/sandboxes/sessions/{session_id}/stop", headers={"content-type": "application/json"})
    body = response.json()
    session = body["session"]
    assert response.status_code == 200
    assert session["status"] == "stopped"
    assert session["duration"] == session["stoppedAt"] - session["startedAt"]
    assert session["activeCpuDurationMs"] == 2
    assert session["networkTransfer"] == {"ingress": 10, "egress": 20}
    assert body["sandbox"]["status"] == "stopped"
    assert body["sandbox"]["totalActiveCpuDurationMs"] == 2
    assert "expiresAt" not in body["sandbox"]


async def test_stop_again_answers_the_same_with_a_new_request_time(api: Api) -> None:
    session_id = (await api.create(name="one"))["session"]["id"]
    first = (await api.http.post(f"/v2/sandboxes/sessions/{session_id}/stop", json={})).json()
    second = (await api.http.post(f"/v2/sandboxes/sessions/{session_id}/stop", json={})).json()
    assert second["session"]["requestedStopAt"] >= first["session"]["requestedStopAt"]
    for body in (first, second):
        body["session"].pop("requestedStopAt")
    assert first["session"] == second["session"]
    assert second["sandbox"]["totalIngressBytes"] == 10


async def test_concurrent_stops_count_the_usage_once(api: Api) -> None:
    session_id = (await api.create(name="one"))["session"]["id"]
    await asyncio.gather(*(api.http.post(f"/v2/sandboxes/sessions/{session_id}/stop") for _ in range(8)))
    await settled(api)
    assert (await api.http.get("/v2/sandboxes/one")).json()["sandbox"]["totalEgressBytes"] == 20


@pytest.mark.section("4.5", "4.6", "8.2")
async def test_every_call_to_a_dead_session_is_410(api: Api) -> None:
    session_id = (await api.create(name="one"))["session"]["id"]
    await api.http.post(f"/v2/sandboxes/sessions/{session_id}/stop")
    for method, path, body in (
        ("POST", "/cmd", {"command": "echo", "wait": True, "logs": True}),
        ("POST", "/cmd", {"command": "echo"}),
        ("GET", "/cmd", None),
        ("GET", "/cmd/cmd_" + "0" * 28, None),
        ("GET", "/cmd/cmd_" + "0" * 28 + "/logs", None),
        ("POST", "/cmd/cmd_" + "0" * 28 + "/kill", {"signal": 9}),
        ("POST", "/fs/read", {"path": "/x"}),
        ("POST", "/fs/mkdir", {"path": "/x"}),
        ("POST", "/extend-timeout", {"duration": 1000}),
        ("POST", "/network-policy", {"mode": "deny-all"}),
        ("POST", "/interactive", {}),
    ):
        response = await api.http.request(method, f"/v2/sandboxes/sessions/{session_id}{path}", json=body)
        assert response.status_code == 410, (path, response.text)
        assert response.json()["error"] == {
            "code": "sandbox_stopped",
            "message": "Sandbox has stopped execution and is no longer available",
        }
    written = await api.http.post(f"/v2/sandboxes/sessions/{session_id}/fs/write", content=b"x" * 100_000, headers={"x-cwd": "/"})
    assert written.status_code == 410


async def test_a_session_that_the_host_forgot_is_410(api: Api) -> None:
    session_id = (await api.create(name="one"))["session"]["id"]
    api.host.forget(session_id)
    response = await api.http.post(f"/v2/sandboxes/sessions/{session_id}/cmd", json={"command": "echo"})
    assert (response.status_code, response.json()["error"]["code"]) == (410, "sandbox_stopped")
    stopped = (await api.http.post(f"/v2/sandboxes/sessions/{session_id}/stop")).json()
    assert stopped["session"]["status"] == "aborted"


async def test_extending_adds_exactly_the_duration_to_the_session_only(api: Api) -> None:
    created = await api.create(name="one")
    session_id = created["session"]["id"]
    session = (await api.http.post(f"/v2/sandboxes/sessions/{session_id}/extend-timeout", json={"duration": 60_000})).json()[
        "session"
    ]
    assert session["timeout"] == 360_000
    assert session["updatedAt"] == created["session"]["updatedAt"]
    assert (await api.http.get("/v2/sandboxes/one")).json()["sandbox"]["timeout"] == 300_000


async def test_extending_beyond_the_limit_is_400(api: Api) -> None:
    session_id = (await api.create())["session"]["id"]
    five_days = {"duration": 5 * 86_400_000}
    response = await api.http.post(f"/v2/sandboxes/sessions/{session_id}/extend-timeout", json=five_days)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "sandbox_timeout_invalid")
    bodies: list[object] = [{"duration": 999}, {}, {"duration": "1"}, {"duration": 1e9}, {"duration": 10**400}, []]
    for bad in bodies:
        response = await api.http.post(f"/v2/sandboxes/sessions/{session_id}/extend-timeout", json=bad)
        assert response.status_code == 400, bad


async def test_list_shows_the_sessions_of_one_sandbox_newest_first(api: Api) -> None:
    first = (await api.create(name="one"))["session"]["id"]
    second = (await api.create(name="two"))["session"]["id"]
    every = (await api.http.get("/v2/sandboxes/sessions", params={"project": "default"})).json()
    assert [session["id"] for session in every["sessions"]] == [second, first]
    assert every["pagination"] == {"count": 2, "next": None}
    one = (await api.http.get("/v2/sandboxes/sessions", params={"name": "one"})).json()
    assert [session["id"] for session in one["sessions"]] == [first]
    page = (await api.http.get("/v2/sandboxes/sessions", params={"limit": "1"})).json()
    rest = (await api.http.get("/v2/sandboxes/sessions", params={"limit": "1", "cursor": page["pagination"]["next"]})).json()
    assert [session["id"] for session in rest["sessions"]] == [first]


async def test_lists_of_what_there_is_not_are_empty(api: Api) -> None:
    empty = {"pagination": {"count": 0, "next": None}}
    assert (await api.http.get("/v2/sandboxes/snapshots")).json() == {"snapshots": []} | empty
    assert (await api.http.get("/v2/sandboxes/drives")).json() == {"drives": []} | empty
    assert (await api.http.get("/v2/sandboxes/snapshots/tree")).json() == {"snapshots": []} | empty
    for method, path in (
        ("GET", "snapshots/snap_x"),
        ("DELETE", "snapshots/snap_x"),
        ("GET", "drives/d"),
        ("DELETE", "drives/d"),
    ):
        assert (await api.http.request(method, f"/v2/sandboxes/{path}")).status_code == 404


# -- events of the host ------------------------------------------------------------------------------


async def test_a_timeout_on_the_host_shows_in_the_database(api: Api) -> None:
    session_id = (await api.create(name="one"))["session"]["id"]
    await api.host.end(session_id)
    await settled(api)
    body = (await api.http.get("/v2/sandboxes/one")).json()
    assert (body["sandbox"]["status"], body["session"]["status"], body["session"]["stopReason"]) == (
        "stopped",
        "stopped",
        "timeout",
    )


async def test_a_crash_is_shown_as_failed_with_its_reason(api: Api) -> None:
    session_id = (await api.create(name="one"))["session"]["id"]
    await api.host.end(session_id, SessionStatus.FAILED, "the guest died")
    await settled(api)
    session = (await api.http.get(f"/v2/sandboxes/sessions/{session_id}")).json()["session"]
    assert (session["status"], session["stopReason"]) == ("failed", "the guest died")


async def test_events_missed_while_the_host_was_away_are_applied_afterwards(api: Api) -> None:
    first = (await api.create(name="one"))["session"]["id"]
    second = (await api.create(name="two"))["session"]["id"]
    await settled(api)
    await api.host.stop()
    await api.host.end(first)
    api.host.forget(second)
    await api.host.start()
    await settled(api)
    async with asyncio.timeout(10):
        while (await api.http.get("/v2/sandboxes/two")).json()["session"]["status"] == "running":
            await asyncio.sleep(0.01)
    assert (await api.http.get("/v2/sandboxes/one")).json()["session"]["status"] == "stopped"
    lost = (await api.http.get("/v2/sandboxes/two")).json()["session"]
    assert (lost["status"], lost["stopReason"]) == ("aborted", "The host does not know this session any more.")


async def test_a_new_host_with_no_sessions_ends_them_all(api: Api) -> None:
    await api.create(name="one")
    await settled(api)
    await api.host.stop()
    api.host.host_id, api.host.sessions, api.host.events = "host_new", {}, []
    await api.host.start()
    async with asyncio.timeout(10):
        while (await api.http.get("/v2/sandboxes/one")).json()["sandbox"]["status"] != "stopped":
            await asyncio.sleep(0.01)


async def test_a_reconnect_during_a_create_does_not_end_it(api: Api) -> None:
    await settled(api)
    api.host.create_gate.clear()
    request = asyncio.create_task(api.http.post("/v3/sandboxes", json={"name": "slow"}))
    await api.host.creating.wait()
    await reconcile(api.services)
    api.host.create_gate.set()
    assert (await request).status_code == 200
    assert (await api.http.get("/v2/sandboxes/slow")).json()["session"]["status"] == "running"


async def test_a_create_that_died_before_it_reached_the_host_frees_its_name(api: Api) -> None:
    session_id = (await api.create(name="half"))["session"]["id"]
    await settled(api)
    # As if the API process had been killed between taking the name and asking the host.
    api.host.forget(session_id)
    async with api.services.database.write() as connection:
        await connection.execute(text("UPDATE sessions SET status = 'pending', started_at = NULL"))
    await reconcile(api.services)
    assert (await api.http.get("/v2/sandboxes/half")).status_code == 404
    await api.create(name="half")


async def test_a_session_that_runs_although_it_was_given_up_is_stopped(api: Api) -> None:
    session_id = (await api.create(name="one"))["session"]["id"]
    await settled(api)
    await api.services.mark_lost(session_id)
    await reconcile(api.services)
    assert api.host.sessions[session_id].status is SessionStatus.STOPPED


async def test_a_session_that_this_database_does_not_know_is_left_alone(api: Api) -> None:
    session_id = (await api.create(name="one"))["session"]["id"]
    await settled(api)
    async with api.services.database.write() as connection:
        await connection.execute(text("DELETE FROM sessions"))
    await reconcile(api.services)
    assert api.host.sessions[session_id].status is SessionStatus.RUNNING


async def test_an_end_that_the_listing_missed_is_asked_for(api: Api) -> None:
    session_id = (await api.create(name="one"))["session"]["id"]
    await settled(api)
    record = api.host.sessions[session_id]
    stopped_at = record.requested_at + 5
    api.host.sessions[session_id] = msgspec.structs.replace(record, status=SessionStatus.STOPPED, stopped_at=stopped_at)
    await reconcile(api.services)
    assert (await api.http.get("/v2/sandboxes/one")).json()["session"]["stoppedAt"] == stopped_at


# -- as the vendor says ------------------------------------------------------------------------------


async def test_sessions_of_one_sandbox_are_listed_with_their_next(api: Api) -> None:
    first = (await api.create(name="one"))["session"]["id"]
    await api.create(name="two")
    await api.http.post(f"/v2/sandboxes/sessions/{first}/stop")
    second = (await api.http.get("/v2/sandboxes/one", params={"resume": "true"})).json()["session"]["id"]
    for order, wanted in (("desc", [second, first]), ("asc", [first, second])):
        query = {"name": "one", "project": api.own.project_id, "sortOrder": order}
        page = (await api.http.get("/v2/sandboxes/sessions", params=query)).json()
        assert set(page) == {"sessions", "pagination"}
        assert [(one["id"], one["status"]) for one in page["sessions"]] == [
            (one, "stopped" if one == first else "running") for one in wanted
        ]
    assert (await api.http.get("/v2/sandboxes/sessions", params={"name": "three"})).json()["sessions"] == []


@pytest.mark.section("4.1", "5.1", "5.3")
@pytest.mark.parametrize("persistent", [True, False])
async def test_a_stop_answers_sandbox_session_and_what_was_saved(api: Api, *, persistent: bool) -> None:
    made = await api.create(name="one", persistent=persistent)
    path = f"/v2/sandboxes/sessions/{made['session']['id']}/stop"
    bodies: list[Any] = [None, {}, {"reason": 1}]
    answers = [(await api.http.post(path, json=body)).json() for body in bodies]
    for answer in answers:
        assert set(answer) == {"sandbox", "session"} | ({"snapshot"} if persistent else set())
        assert (answer["session"]["id"], answer["session"]["status"]) == (made["session"]["id"], "stopped")
        assert answer["sandbox"].get("currentSnapshotId") == (answer["snapshot"]["id"] if persistent else None)
        del answer["session"]["requestedStopAt"]
    assert answers[0] == answers[1] == answers[2]
    got = (await api.http.get("/v2/sandboxes/one")).json()
    assert (got["session"]["id"], got["sandbox"]["status"]) == (made["session"]["id"], "stopped")


async def test_a_second_stop_says_when_it_was_asked_for(api: Api) -> None:
    path = f"/v2/sandboxes/sessions/{(await api.create())['session']['id']}/stop"
    first = (await api.http.post(path)).json()["session"]["requestedStopAt"]
    api.services.clock = lambda: first + 12_345
    assert (await api.http.post(path)).json()["session"]["requestedStopAt"] == first + 12_345


@pytest.mark.section("4.6")
async def test_extensions_have_a_least_and_a_greatest(api: Api) -> None:
    made = await api.create(name="one")
    path = f"/v2/sandboxes/sessions/{made['session']['id']}/extend-timeout"
    refused = await api.http.post(path, json={"duration": 999})
    assert refused.json()["error"] == {"code": "bad_request", "message": "Invalid request: `duration` should be >= 1000."}
    missing = await api.http.post(path, json={})
    assert missing.json()["error"]["message"] == "Invalid request: should have required property 'duration'."
    extended = await api.http.post(path, json={"duration": 1000})
    assert (extended.status_code, set(extended.json())) == (200, {"session"})
    assert extended.json()["session"] == made["session"] | {"timeout": 301_000}
    left = 86_400_000 - 301_000
    beyond = await api.http.post(path, json={"duration": left + 1})
    assert (beyond.status_code, beyond.json()["error"]["code"]) == (400, "sandbox_timeout_invalid")
    assert (await api.http.post(path, json={"duration": left})).json()["session"]["timeout"] == 86_400_000
    await api.http.post(f"/v2/sandboxes/sessions/{made['session']['id']}/stop")
    resumed = (await api.http.get("/v2/sandboxes/one", params={"resume": "true"})).json()
    assert resumed["session"]["timeout"] == 300_000


@pytest.mark.section("5.2")
async def test_a_policy_of_a_session_replaces_the_one_before_whole(api: Api) -> None:
    made = await api.create(name="one", networkPolicy={"allow": ["a.example.com"]})
    path = f"/v2/sandboxes/sessions/{made['session']['id']}/network-policy"
    answer = await api.http.post(path, json={"allow": ["b.example.com"], "subnets": {"deny": ["198.51.100.0/24"]}})
    assert answer.status_code == 200
    session = answer.json()["session"]
    policy = {name: value for name, value in session["networkPolicy"].items() if name != "hutch"}
    assert policy == {"mode": "custom", "allowedDomains": ["b.example.com"], "deniedCIDRs": ["198.51.100.0/24"]}
    assert session["id"] == made["session"]["id"]
    record = (await api.http.get("/v2/sandboxes/one")).json()
    assert record["session"]["networkPolicy"]["allowedDomains"] == ["b.example.com"]
    assert record["sandbox"]["networkPolicy"]["allowedDomains"] == ["a.example.com"]


@pytest.mark.section("4.1", "4.6", "5.2", "7.5")
async def test_a_snapshot_ends_its_session_and_is_what_comes_next(api: Api) -> None:
    made = await api.create(name="one", persistent=False)
    path = f"/v2/sandboxes/sessions/{made['session']['id']}/snapshot"
    for expiration in (1, 86_399_999, -1):
        refused = await api.http.post(path, json={"expiration": expiration})
        assert refused.status_code == 400
        assert refused.json()["error"] == {
            "code": "bad_request",
            "message": "`expiration` must be 0 (no expiration) or >= 86400000 ms (1 day).",
        }
    taken = await api.http.post(path, headers={"content-type": "application/json", "content-length": "0"})
    assert (taken.status_code, set(taken.json())) == (201, {"snapshot", "session"})
    session, snapshot = taken.json()["session"], taken.json()["snapshot"]
    assert (session["status"], session["id"]) == ("snapshotting", made["session"]["id"])
    assert type(session["snapshottedAt"]) is int
    assert not {"stoppedAt", "duration", "activeCpuDurationMs", "networkTransfer"} & set(session)
    got = (await api.http.get("/v2/sandboxes/one")).json()
    assert (got["session"]["status"], got["sandbox"]["status"]) == ("stopped", "stopped")
    assert got["sandbox"]["currentSnapshotId"] == snapshot["id"]
    again = await api.http.post(path)
    assert (again.status_code, again.json()["error"]["code"]) == (410, "sandbox_stopped")
    resumed = (await api.http.get("/v2/sandboxes/one", params={"resume": "true"})).json()
    second = await api.http.post(f"/v2/sandboxes/sessions/{resumed['session']['id']}/snapshot", json={"expiration": 0})
    assert second.status_code == 201
    assert "expiresAt" not in second.json()["snapshot"]
    assert second.json()["snapshot"]["parentId"] == snapshot["id"]


async def test_a_terminal_is_an_address_and_a_token(api: Api) -> None:
    made = await api.create()
    for content in (b"", b"{}"):
        opened = await api.http.post(f"/v2/sandboxes/sessions/{made['session']['id']}/interactive", content=content)
        assert (opened.status_code, set(opened.json())) == (200, {"url", "token"})
        assert opened.json()["url"].startswith("ws://")
        assert "?" not in opened.json()["url"]
        assert opened.json()["token"]

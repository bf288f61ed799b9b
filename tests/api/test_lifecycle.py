"""What sessions and sandboxes go through: states, time, what resumes and what does not."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from hutch.host.protocol import SessionStatus
from tests.api.conftest import DAY_MS, Api
from tests.api.test_snapshots import get, refused, stop, take

pytestmark = pytest.mark.section("13")

RESUME = {"resume": "true"}


async def reaches(api: Api, status: str) -> dict[str, Any]:
    """The sandbox when its session has a status that the host has just told of."""
    async with asyncio.timeout(10):
        while (found := await get(api, "one"))["session"]["status"] != status:
            await asyncio.sleep(0.01)
    return found


@pytest.mark.section("13.1", "5.1")
@pytest.mark.parametrize("asked", [{}, {"persistent": False}], ids=["persistent", "not persistent"])
async def test_a_session_stops_and_saves_and_its_sandbox_shows_that_it_stops(api: Api, asked: dict[str, Any]) -> None:
    session_id = (await api.create(name="one", **asked))["session"]["id"]
    seen = [(await get(api, "one"))["sandbox"]["status"]]
    for status in (SessionStatus.STOPPING, SessionStatus.SNAPSHOTTING)[: 1 if asked else 2]:
        await api.host._set(msgspec.structs.replace(api.host.sessions[session_id], status=status))
        found = await reaches(api, str(status))
        seen.append(found["sandbox"]["status"])
        assert "expiresAt" not in found["sandbox"]
        listed = (await api.http.get("/v2/sandboxes", params={"status": "stopping"})).json()["sandboxes"]
        assert [one["name"] for one in listed] == ["one"]
    await api.host.end(session_id)
    seen.append((await reaches(api, "stopped"))["sandbox"]["status"])
    assert list(dict.fromkeys(seen)) == ["running", "stopping", "stopped"]


@pytest.mark.section("13.1")
@pytest.mark.parametrize("status", [SessionStatus.FAILED, SessionStatus.ABORTED])
async def test_what_fails_or_is_aborted_is_a_stopped_sandbox(api: Api, status: SessionStatus) -> None:
    session_id = (await api.create(name="one", persistent=False))["session"]["id"]
    await api.host.end(session_id, status, "its machine died")
    found = await reaches(api, str(status))
    assert found["sandbox"]["status"] == "stopped"
    assert ("abortedAt" in found["session"]) == (status is SessionStatus.ABORTED)
    assert await refused(api, "POST", f"/v2/sandboxes/sessions/{session_id}/cmd", json={"command": "true"}) == (
        410,
        "sandbox_stopped",
    )


@pytest.mark.section("13.1", "6.1")
async def test_a_session_is_pending_until_it_runs_and_only_then_is_a_create_answered(api: Api) -> None:
    api.host.create_gate.clear()
    creating = asyncio.create_task(api.create(name="one"))
    await api.host.creating.wait()
    found = await get(api, "one")
    assert (found["session"]["status"], found["sandbox"]["status"]) == ("pending", "running")
    assert "startedAt" not in found["session"]
    listed = (await api.http.get("/v2/sandboxes", params={"status": "running"})).json()["sandboxes"]
    assert [one["name"] for one in listed] == ["one"]
    assert not creating.done()
    api.host.create_gate.set()
    made = await creating
    assert (made["session"]["status"], made["sandbox"]["status"]) == ("running", "running")
    assert made["sandbox"]["statusUpdatedAt"] == (await get(api, "one"))["sandbox"]["statusUpdatedAt"]


@pytest.mark.section("13.1", "7.5")
async def test_a_session_that_is_snapshotted_ends_with_it(api: Api) -> None:
    session_id = (await api.create(name="one", persistent=False))["session"]["id"]
    assert (await take(api, session_id))["session"]["status"] == "snapshotting"
    found = await get(api, "one")
    assert (found["session"]["status"], found["sandbox"]["status"]) == ("stopped", "stopped")


@pytest.mark.section("13.2")
async def test_an_extension_is_the_sessions_and_a_resume_begins_anew(api: Api) -> None:
    session_id = (await api.create(name="one", timeout=60_000))["session"]["id"]
    path = f"/v2/sandboxes/sessions/{session_id}/extend-timeout"
    for total in (65_000, 70_000):
        extended = (await api.http.post(path, json={"duration": 5_000})).json()["session"]
        assert extended["timeout"] == total
    found = await get(api, "one")
    assert found["sandbox"]["timeout"] == 60_000
    assert found["sandbox"]["expiresAt"] == found["session"]["startedAt"] + 70_000
    await stop(api, session_id)
    again = await get(api, "one", **RESUME)
    assert again["session"]["timeout"] == 60_000
    assert api.host.specs[again["session"]["id"]].timeout_ms == 60_000


@pytest.mark.section("13.2", "18.3")
async def test_a_session_lives_at_most_a_day(api: Api) -> None:
    assert await refused(api, "POST", "/v3/sandboxes", json={"timeout": DAY_MS + 1}) == (400, "bad_request")
    session_id = (await api.create(name="one", timeout=DAY_MS - 5_000))["session"]["id"]
    path = f"/v2/sandboxes/sessions/{session_id}/extend-timeout"
    assert await refused(api, "POST", path, json={"duration": 5_001}) == (400, "sandbox_timeout_invalid")
    assert (await api.http.post(path, json={"duration": 5_000})).json()["session"]["timeout"] == DAY_MS
    assert await refused(api, "PATCH", "/v2/sandboxes/one", json={"timeout": DAY_MS + 1}) == (400, "bad_request")


@pytest.mark.section("13.3")
async def test_only_a_get_that_asks_for_it_resumes(api: Api) -> None:
    session_id = (await api.create(name="one"))["session"]["id"]
    await stop(api, session_id)
    for method, path, body in (
        ("GET", "/v2/sandboxes/one", None),
        ("GET", "/v2/sandboxes/one?resume=false", None),
        ("GET", "/v2/sandboxes", None),
        ("GET", f"/v2/sandboxes/sessions/{session_id}", None),
        ("GET", "/v2/sandboxes/sessions?name=one", None),
        ("PATCH", "/v2/sandboxes/one", {"tags": {"a": "b"}, "ports": [4000], "timeout": 7_000}),
        ("POST", f"/v2/sandboxes/sessions/{session_id}/stop", {}),
    ):
        response = await api.http.request(method, path, json=body)
        assert response.status_code == 200, (path, response.text)
    found = await get(api, "one")
    assert (found["resumed"], found["session"]["id"], found["session"]["status"]) == (False, session_id, "stopped")
    assert len(api.host.specs) == 1


@pytest.mark.section("13.4")
async def test_what_a_sandbox_is_stays_when_its_session_ends(api: Api) -> None:
    body: dict[str, Any] = {
        "env": {"A": "1"},
        "tags": {"t": "x"},
        "ports": [3000, 4000],
        "timeout": 9_000,
        "resources": {"vcpus": 4},
        "networkPolicy": {"allow": ["a.test"]},
        "snapshotExpiration": DAY_MS,
        "keepLastSnapshots": {"count": 2, "deleteEvicted": False},
    }
    for persistent in (True, False):
        name = f"kept-{persistent}".lower()
        made = await api.create(name=name, persistent=persistent, **body)
        await stop(api, made["session"]["id"])
        after = await get(api, name)
        fields = ("name", "persistent", "timeout", "vcpus", "memory", "tags", "snapshotExpiration", "keepLastSnapshots", "image")
        assert {field: after["sandbox"][field] for field in fields} == {field: made["sandbox"][field] for field in fields}
        assert after["routes"] == made["routes"]
        assert after["sandbox"]["networkPolicy"]["allowedDomains"] == ["a.test"]


@pytest.mark.section("13.4")
async def test_a_name_is_not_free_while_its_sandbox_is_stopped(api: Api) -> None:
    session_id = (await api.create(name="one", persistent=False))["session"]["id"]
    await stop(api, session_id)
    # Records that can't be resumed stay too, until somebody deletes them.
    assert await refused(api, "POST", "/v3/sandboxes", json={"name": "one"}) == (409, "conflict")
    assert await refused(api, "GET", "/v2/sandboxes/one", params=RESUME) == (400, "snapshot_not_found")
    assert (await api.http.delete("/v2/sandboxes/one")).status_code == 200
    await api.create(name="one")

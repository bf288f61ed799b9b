"""Sandboxes, sessions and the rest as objects: which fields they have when, and what is in them."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from hutch.host.protocol import SessionStatus
from tests.api.conftest import DAY_MS, Api

SANDBOX = {
    *("name", "currentSessionId", "status", "statusUpdatedAt", "persistent", "createdAt", "updatedAt", "region"),
    *("failoverRegions", "vcpus", "memory", "runtime", "image", "timeout", "cwd", "architecture"),
}
TOTALS = {"totalEgressBytes", "totalIngressBytes", "totalActiveCpuDurationMs", "totalDurationMs"}
SESSION = {
    *("id", "status", "memory", "vcpus", "region", "timeout", "cwd", "requestedAt", "createdAt", "updatedAt", "startedAt"),
    *("runtime", "interactivePort", "sourceSandboxName", "projectId", "architecture"),
}
OVER = {"requestedStopAt", "stoppedAt", "duration", "activeCpuDurationMs", "networkTransfer"}
OURS = {"stopReason"}


def session_path(made: dict[str, Any], rest: str = "") -> str:
    return f"/v2/sandboxes/sessions/{made['session']['id']}{rest}"


@pytest.mark.section("5.1", "5.2", "6.1", "6.2", "7.2", "18.1")
async def test_fields_come_and_go_with_the_session(api: Api) -> None:
    tenant = await api.tenant("acme")
    made = await api.create(tenant.http, name="box", persistent=False)
    assert set(made) == {"sandbox", "session", "routes"}
    assert set(made["sandbox"]) == SANDBOX
    assert set(made["session"]) == SESSION

    got = (await tenant.http.get("/v2/sandboxes/box")).json()
    assert set(got) == {"sandbox", "session", "routes", "resumed"}
    assert set(got["sandbox"]) == SANDBOX | TOTALS | {"expiresAt"}
    assert {got["sandbox"][name] for name in TOTALS} == {0}
    assert got["sandbox"]["expiresAt"] == got["session"]["startedAt"] + got["session"]["timeout"]
    assert got["session"] == made["session"]

    extended = (await tenant.http.post(session_path(made, "/extend-timeout"), json={"duration": 5000})).json()["session"]
    later = (await tenant.http.get("/v2/sandboxes/box")).json()
    assert (extended["timeout"], later["sandbox"]["timeout"]) == (305_000, 300_000)
    assert later["sandbox"]["expiresAt"] == got["sandbox"]["expiresAt"] + 5000

    stopped = (await tenant.http.post(session_path(made, "/stop"))).json()
    assert set(stopped["sandbox"]) == SANDBOX | TOTALS
    assert set(stopped["session"]) == SESSION | OVER | OURS
    assert stopped["session"]["networkTransfer"] == {"ingress": 10, "egress": 20}
    totals = {name: stopped["sandbox"][name] for name in TOTALS}
    assert totals == {
        "totalEgressBytes": 20,
        "totalIngressBytes": 10,
        "totalActiveCpuDurationMs": stopped["session"]["activeCpuDurationMs"],
        "totalDurationMs": stopped["session"]["duration"],
    }
    over = (await tenant.http.get("/v2/sandboxes/box")).json()
    assert (over["sandbox"]["status"], over["sandbox"]["currentSessionId"]) == ("stopped", made["session"]["id"])
    assert over["session"] == stopped["session"]


@pytest.mark.section("2.2", "4.2", "5.1", "5.2", "6.1")
async def test_what_is_not_said_has_the_documented_value(api: Api) -> None:
    made = await api.create()
    sandbox, session = made["sandbox"], made["session"]
    for one in (sandbox, session):
        assert (one["vcpus"], one["memory"], one["timeout"]) == (2, 4096, 300_000)
        assert (one["region"], one["runtime"], one["cwd"], one["architecture"]) == ("iad1", "node22", "/vercel", "amd64")
    assert (sandbox["persistent"], sandbox["failoverRegions"]) == (True, [])
    assert re.fullmatch(r"vercel/sandbox/universal@sha256:[0-9a-f]{64}", sandbox["image"])
    assert re.fullmatch(r"[a-zA-Z0-9_-]{1,128}", sandbox["name"])
    assert sandbox["createdAt"] == sandbox["updatedAt"] == session["createdAt"] == session["requestedAt"]
    assert session["interactivePort"] == 26661
    assert (session["sourceSandboxName"], session["projectId"]) == (sandbox["name"], api.own.project_id)
    assert made["routes"] == []


@pytest.mark.section("5.1", "6.1")
async def test_what_is_said_is_shown_as_it_was_said(api: Api) -> None:
    said: dict[str, Any] = {
        "name": "A_name-1",
        "persistent": False,
        "timeout": 61_234,
        "tags": {"k": "v", "empty": ""},
        "region": "sfo1",
        "failoverRegions": ["iad1", "cle1"],
        "snapshotExpiration": 2 * DAY_MS,
        "keepLastSnapshots": {"count": 3, "expiration": DAY_MS, "deleteEvicted": False},
    }
    made = await api.create(resources={"vcpus": 4}, env={"A": "secret"}, **said)
    got = (await api.http.get("/v2/sandboxes/A_name-1")).json()
    for sandbox in (made["sandbox"], got["sandbox"]):
        assert {name: sandbox[name] for name in said} == said
        assert (sandbox["vcpus"], sandbox["memory"]) == (4, 8192)
        assert "secret" not in str(sandbox)
    assert (made["session"]["region"], made["session"]["vcpus"], made["session"]["timeout"]) == ("sfo1", 4, 61_234)
    short = await api.create(keepLastSnapshots={"count": 1}, snapshotExpiration=0, tags={})
    assert short["sandbox"]["keepLastSnapshots"] == {"count": 1, "deleteEvicted": True}
    assert short["sandbox"]["snapshotExpiration"] == 0
    assert "tags" not in short["sandbox"]


@pytest.mark.section("5.1", "5.2")
async def test_a_session_says_how_it_ended(api: Api) -> None:
    ended = {}
    for status in (SessionStatus.STOPPED, SessionStatus.FAILED, SessionStatus.ABORTED):
        made = await api.create(name=str(status), persistent=False)
        await api.host.end(made["session"]["id"], status)
        async with asyncio.timeout(10):
            while (got := (await api.http.get(session_path(made))).json()["session"])["status"] == "running":
                await asyncio.sleep(0.005)
        ended[got["status"]] = got
        shown = (await api.http.get(f"/v2/sandboxes/{status}")).json()["sandbox"]
        assert shown["status"] == "stopped"
        assert got["duration"] == got["stoppedAt"] - got["startedAt"]
    assert set(ended) == {"stopped", "failed", "aborted"}
    assert [status for status, one in ended.items() if "abortedAt" in one] == ["aborted"]


@pytest.mark.section("5.3", "15")
async def test_a_route_is_an_address_for_a_port(api: Api) -> None:
    made = await api.create(ports=[3000, 65535])
    assert [route["port"] for route in made["routes"]] == [3000, 65535]
    for route in made["routes"]:
        assert set(route) == {"url", "subdomain", "port"}
        assert re.fullmatch(r"sb-[a-z0-9]{12}", route["subdomain"])
        assert re.match(rf"https?://{route['subdomain']}\.", route["url"])
    assert made["routes"][0]["subdomain"] != made["routes"][1]["subdomain"]


@pytest.mark.section("5.3", "8.1", "8.2")
async def test_a_command_has_its_fields_and_its_length_when_it_is_over(api: Api) -> None:
    made = await api.create()
    running = (await api.http.post(session_path(made, "/cmd"), json={"command": "wait", "args": ["a", ""]})).json()["command"]
    fields = {"id", "name", "args", "cwd", "sessionId", "exitCode", "startedAt"}
    assert set(running) == fields
    assert re.fullmatch(r"cmd_[0-9a-f]{28}", running["id"])
    assert (running["name"], running["args"], running["cwd"]) == ("wait", ["a", ""], "/vercel")
    assert (running["sessionId"], running["exitCode"]) == (made["session"]["id"], None)
    killed = await api.http.post(session_path(made, f"/cmd/{running['id']}/kill"), json={"signal": 9})
    assert (killed.status_code, killed.json()["command"]) == (200, running)
    over = (await api.http.get(session_path(made, f"/cmd/{running['id']}"), params={"wait": "true"})).json()["command"]
    assert set(over) == fields | {"durationMs"}
    assert over["exitCode"] == 137


@pytest.mark.section("5.1", "5.2", "5.3", "7.5", "11")
async def test_a_snapshot_has_its_fields(api: Api) -> None:
    made = await api.create(persistent=False)
    taken = (await api.http.post(session_path(made, "/snapshot"), json={"expiration": 0})).json()
    snapshot = taken["snapshot"]
    required = {"id", "sourceSessionId", "region", "status", "sizeBytes", "createdAt", "updatedAt"}
    assert set(snapshot) == required | {"regions", "lastUsedAt", "creationMethod", "architecture", "sourceSandboxName"}
    assert re.fullmatch(r"snap_[A-Za-z0-9]{28}", snapshot["id"])
    assert (snapshot["sourceSessionId"], snapshot["status"]) == (made["session"]["id"], "created")
    assert (snapshot["region"], snapshot["regions"], snapshot["architecture"]) == ("iad1", ["iad1"], "amd64")
    assert snapshot["creationMethod"] == "manual"
    assert type(snapshot["sizeBytes"]) is int
    source = {"type": "snapshot", "snapshotId": snapshot["id"]}
    child = await api.create(source=source)
    assert child["sandbox"]["currentSnapshotId"] == child["session"]["sourceSnapshotId"] == snapshot["id"]
    automatic = (await api.http.post(session_path(child, "/stop"))).json()["snapshot"]
    assert (automatic["creationMethod"], automatic["parentId"]) == ("automatic", snapshot["id"])
    assert automatic["expiresAt"] == automatic["lastUsedAt"] + 30 * DAY_MS

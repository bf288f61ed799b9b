"""Sandboxes by name: create, get, list, update, delete, fork."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest

from hutch.errors import BadRequestError
from tests.api.conftest import Api
from tests.api.fake_host import HOST_FULL

pytestmark = pytest.mark.section("6")

SANDBOX_REQUIRED = {"name", "currentSessionId", "status", "persistent", "createdAt", "updatedAt"}
SESSION_REQUIRED = {"id", "status", "memory", "vcpus", "region", "timeout", "cwd", "requestedAt", "createdAt", "updatedAt"}


@pytest.mark.section("5.2")
async def test_create_answers_with_a_running_session_and_the_documented_shape(api: Api) -> None:
    response = await api.http.post(
        "/api/v3/sandboxes", json={"projectId": api.own.project_id, "ports": [3000, 8080], "__interactive": True}
    )
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json; charset=utf-8"
    body = response.json()
    sandbox, session = body["sandbox"], body["session"]
    assert sandbox.keys() >= SANDBOX_REQUIRED
    assert session.keys() >= SESSION_REQUIRED
    assert sandbox["currentSessionId"] == session["id"]
    assert re.fullmatch(r"sbx_[A-Za-z0-9]{28}", session["id"])
    assert (sandbox["status"], session["status"]) == ("running", "running")
    assert (sandbox["timeout"], sandbox["vcpus"], sandbox["memory"]) == (300_000, 2, 4096)
    assert sandbox["persistent"] is True
    assert sandbox["runtime"] == "node22"
    assert sandbox["image"].startswith("vercel/sandbox/universal@sha256:")
    assert session["interactivePort"] == 26661
    assert session["projectId"] == api.own.project_id
    assert session["sourceSandboxName"] == sandbox["name"]
    assert [route["port"] for route in body["routes"]] == [3000, 8080]
    assert all(re.fullmatch(r"sb-[a-z0-9]{12}", route["subdomain"]) for route in body["routes"])
    # Hosted leaves these out of the answer to a create, and nothing optional is ever null.
    assert not {"expiresAt", "totalDurationMs", "tags", "networkPolicy"} & sandbox.keys()
    assert None not in [*sandbox.values(), *session.values()]


@pytest.mark.section("2", "6.1")
@pytest.mark.parametrize("prefix", ["", "/api"])
@pytest.mark.parametrize("version", ["v2", "v3", "v4"])
async def test_every_version_and_prefix_creates(api: Api, prefix: str, version: str) -> None:
    body = (await api.http.post(f"{prefix}/{version}/sandboxes", json={"name": "x"})).json()
    assert body["sandbox"]["name"] == "x"
    expected = {"count": 1, "deleteEvicted": True} if version == "v4" else None
    assert body["sandbox"].get("keepLastSnapshots") == expected


async def test_the_host_gets_what_the_caller_asked_for(api: Api) -> None:
    body = await api.create(
        name="My_Box", timeout=60_000, resources={"vcpus": 4, "memory": 8192}, env={"A": "b"}, persistent=False, disk_bytes=2**30
    )
    spec = api.host.specs[body["session"]["id"]]
    assert (spec.vcpus, spec.memory_mb, spec.timeout_ms, spec.env) == (4, 8192, 60_000, {"A": "b"})
    assert (spec.hostname, spec.persistent, spec.disk_bytes) == ("my-box", False, 2**30)
    assert spec.project_id == api.own.project_id


async def test_a_sandbox_keeps_the_backend_that_it_was_created_with(api: Api) -> None:
    body = await api.create(name="kernel", isolation="qemu")
    assert api.host.specs[body["session"]["id"]].isolation == "qemu"
    assert body["sandbox"]["isolation"] == "qemu"
    forked = (await api.http.post("/v2/sandboxes/kernel/fork", json={"name": "copy"})).json()
    assert api.host.specs[forked["session"]["id"]].isolation == "qemu"
    # It is the operator's default, and nothing that the sandbox keeps, otherwise.
    body = await api.create(name="any")
    assert api.host.specs[body["session"]["id"]].isolation == ""


async def test_a_runtime_of_old_chooses_its_image(api: Api) -> None:
    body = (await api.http.post("/v2/sandboxes", json={"runtime": "python3.13"})).json()
    assert body["sandbox"]["runtime"] == "python3.13"
    assert body["sandbox"]["image"].startswith("python3.13@")


async def test_get_shows_the_session_and_when_it_expires(api: Api) -> None:
    created = await api.create(name="one", tags={"team": "a"}, networkPolicy={"mode": "allow-all"})
    body = (await api.http.get("/v2/sandboxes/one", params={"teamId": api.own.team_id, "projectId": api.own.project_id})).json()
    assert body["resumed"] is False
    assert body["session"]["id"] == created["session"]["id"]
    sandbox = body["sandbox"]
    assert sandbox["expiresAt"] == body["session"]["startedAt"] + 300_000
    assert sandbox["tags"] == {"team": "a"}
    assert sandbox["networkPolicy"] == {"mode": "allow-all", "hutch": {"generation": 1, "warnings": []}}
    assert sandbox["totalDurationMs"] == 0


async def test_administrators_see_the_cgroup_and_others_do_not(api: Api) -> None:
    await api.create(name="one")
    assert (await api.http.get("/v2/sandboxes/one")).json()["sandbox"]["cgroup"] == "/hutch/x"
    other = await api.tenant("acme")
    await api.create(other.http, name="one")
    assert "cgroup" not in (await other.http.get("/v2/sandboxes/one")).json()["sandbox"]


@pytest.mark.section("4.5", "4.6")
async def test_an_unknown_name_is_404_with_the_known_message(api: Api) -> None:
    response = await api.http.get("/v2/sandboxes/nope")
    assert response.status_code == 404
    assert response.json() == {"error": {"code": "not_found", "message": "Named sandbox 'nope' not found for this project."}}


@pytest.mark.section("4.5", "4.6")
async def test_a_taken_name_is_409_and_a_deleted_one_is_free(api: Api) -> None:
    await api.create(name="dup")
    taken = await api.http.post("/v3/sandboxes", json={"name": "dup"})
    assert (taken.status_code, taken.json()["error"]["code"]) == (409, "conflict")
    deleted = await api.http.delete("/v2/sandboxes/dup")
    assert deleted.json()["sandbox"]["status"] == "running"  # as it was
    assert (await api.http.get("/v2/sandboxes/dup")).status_code == 404
    await api.create(name="dup")


@pytest.mark.section("4.5")
async def test_of_many_creates_of_one_name_one_wins(api: Api) -> None:
    answers = await asyncio.gather(*(api.http.post("/v3/sandboxes", json={"name": "race"}) for _ in range(12)))
    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 11
    assert len(api.host.sessions) == 1


@pytest.mark.section("4.6")
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"ports": list(range(3000, 3016))}, "Invalid request: `ports` should NOT have more than 15 items."),
        ({"ports": [80]}, "Invalid request: `ports[0]` should be >= 1024."),
        ({"ports": [3000, 3000]}, "Invalid request: `ports` should NOT have duplicate items."),
        ({"ports": ["3000"]}, "Invalid request: `ports[0]` should be integer."),
        ({"name": ""}, "Invalid request: `name` should NOT be shorter than 1 characters."),
        ({"name": "a" * 129}, "Invalid request: `name` should NOT be longer than 128 characters."),
        ({"name": "../etc"}, 'Invalid request: `name` should match pattern "^[a-zA-Z0-9_-]+$".'),
        ({"name": "a\n"}, 'Invalid request: `name` should match pattern "^[a-zA-Z0-9_-]+$".'),
        ({"name": "sessions"}, "Invalid request: `name` should NOT be a reserved name: drives, sessions, snapshots."),
        ({"name": 7}, "Invalid request: `name` should be string."),
        ({"timeout": 999}, "Invalid request: `timeout` should be >= 1000."),
        ({"timeout": 86_400_001}, "Invalid request: `timeout` should be <= 86400000."),
        ({"timeout": 1e400}, None),
        ({"timeout": "5m"}, "Invalid request: `timeout` should be integer."),
        ({"resources": {"vcpus": 3}}, "Invalid request: `resources` should have `vcpus` of 1 or an even number."),
        ({"resources": {"vcpus": 2, "memory": 1}}, "Invalid request: `resources` should have `memory` of 2048 MB per vCPU."),
        ({"resources": {"vcpus": 64}}, "Invalid request: `resources.vcpus` should be <= 32."),
        ({"image": "a", "runtime": "node22"}, "Invalid request: `image` and `runtime` can't be used together."),
        ({"runtime": "cobol"}, None),
        ({"env": {"A": 1}}, "Invalid request: `env.A` should be string."),
        ({"env": {"A=B": "x"}}, "Invalid request: `env` has a name that is empty or contains `=` or NUL."),
        ({"env": {"A": "\0"}}, "Invalid request: `env` has a value that contains NUL."),
        ({"tags": {str(n): "x" for n in range(6)}}, "Invalid request: `tags` should NOT have more than 5 properties."),
        ({"snapshotExpiration": 5}, "`snapshotExpiration` must be 0 (no expiration) or >= 86400000 ms (1 day)."),
        ({"keepLastSnapshots": {"count": 11}}, "Invalid request: `keepLastSnapshots.count` should be <= 10."),
        ({"disk_bytes": 2**80}, None),
        ({"isolation": "chroot"}, None),
        ({"isolation": ["qemu"]}, None),
        ({"region": "x" * 33}, None),
        ({"failoverRegions": ["iad1"]}, "Invalid request: `failoverRegions` should NOT contain `region`."),
        ({"source": {"type": "svn"}}, None),
        ({"source": {"type": "snapshot"}}, "Invalid request: `source` should have required property 'snapshotId'."),
        ({"persistent": "yes"}, "Invalid request: `persistent` should be boolean."),
    ],
)
async def test_bad_creates_are_400_and_start_nothing(api: Api, body: dict[str, object], message: str | None) -> None:
    response = await api.http.post("/v3/sandboxes", content=json.dumps(body))
    assert response.status_code == 400, response.text
    assert response.json()["error"]["code"] == "bad_request"
    if message is not None:
        assert response.json()["error"]["message"] == message
    assert api.host.sessions == {}
    assert (await api.http.get("/v2/sandboxes")).json()["sandboxes"] == []


@pytest.mark.section("4.6", "5.1")
async def test_what_is_not_there_yet_is_refused_and_not_ignored(api: Api) -> None:
    response = await api.http.post("/v3/sandboxes", json={"networkId": "n"})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "not_supported")
    snapshot = await api.http.post("/v3/sandboxes", json={"source": {"type": "snapshot", "snapshotId": "snap_x"}})
    assert (snapshot.status_code, snapshot.json()["error"]["code"]) == (404, "not_found")
    image = await api.http.post("/v3/sandboxes", json={"image": "nobody/knows"})
    assert (image.status_code, image.json()["error"]["code"]) == (404, "not_found")


async def test_a_host_that_refuses_leaves_no_sandbox_behind(api: Api) -> None:
    api.host.refuse_create = HOST_FULL
    refused = await api.http.post("/v3/sandboxes", json={"name": "full"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "host_full")
    assert int(refused.headers["retry-after"]) >= 1
    api.host.refuse_create = None
    await api.create(name="full")


@pytest.mark.section("4.4")
async def test_a_deterministic_refusal_of_the_host_keeps_its_status(api: Api) -> None:
    api.host.refuse_create = BadRequestError("bad_request", "no")
    assert (await api.http.post("/v3/sandboxes", json={})).status_code == 400


async def test_a_create_whose_host_breaks_off_stops_what_it_may_have_started(api: Api) -> None:
    api.host.break_create = True
    broken = await api.http.post("/v3/sandboxes", json={"name": "lost"})
    assert (broken.status_code, broken.json()["error"]["code"]) == (503, "peer_unreachable")
    assert [str(record.status) for record in api.host.sessions.values()] == ["stopped"]
    await api.create(name="lost")


async def test_a_client_that_goes_away_during_a_create_leaves_a_working_sandbox_or_none(api: Api) -> None:
    api.host.create_gate.clear()
    request = asyncio.create_task(api.http.post("/v3/sandboxes", json={"name": "gone"}))
    await api.host.creating.wait()
    request.cancel()
    await asyncio.gather(request, return_exceptions=True)
    api.host.create_gate.set()
    status = 0
    while status != 200:
        status = (await api.http.get("/v2/sandboxes/gone")).status_code
        assert status in (200, 404)
        if status == 404:
            break


async def test_while_the_host_is_away_creates_are_503_and_gets_go_on(api: Api) -> None:
    await api.create(name="before")
    await api.host.stop()
    refused = await api.http.post("/v3/sandboxes", json={"name": "during"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "host_unreachable")
    assert refused.headers["retry-after"] == "1"
    assert (await api.http.get("/v2/sandboxes/before")).status_code == 200
    assert (await api.http.get("/readyz")).status_code == 503
    assert (await api.http.get("/healthz")).status_code == 200
    await api.host.start()
    await api.create(name="during")


async def test_resume_of_a_running_sandbox_is_a_plain_get(api: Api) -> None:
    created = await api.create(name="one")
    body = (await api.http.get("/v2/sandboxes/one", params={"resume": "true"})).json()
    assert (body["resumed"], body["session"]["id"]) == (False, created["session"]["id"])


@pytest.mark.section("4.6")
async def test_resume_without_a_snapshot_is_400_with_the_known_message(api: Api) -> None:
    session_id = (await api.create(name="one", persistent=False))["session"]["id"]
    await api.http.post(f"/v2/sandboxes/sessions/{session_id}/stop")
    response = await api.http.get("/v2/sandboxes/one", params={"resume": "true"})
    assert response.status_code == 400
    assert response.json()["error"] == {"code": "snapshot_not_found", "message": "Cannot resume sandbox: no snapshot available."}


async def test_resume_asks_the_host_and_not_only_the_database(api: Api) -> None:
    session_id = (await api.create(name="one"))["session"]["id"]
    api.host.forget(session_id)
    assert (await api.http.get("/v2/sandboxes/one", params={"resume": "true"})).json()["error"]["code"] == "snapshot_not_found"
    session = (await api.http.get("/v2/sandboxes/one")).json()["session"]
    assert session["status"] == "aborted"
    assert session["abortedAt"] == session["stoppedAt"]


# -- list --------------------------------------------------------------------------------------------


@pytest.mark.section("4.7")
async def test_lists_are_paged_newest_first_and_end_with_null(api: Api) -> None:
    names = [f"box-{number}" for number in range(7)]
    for name in names:
        await api.create(name=name)
    seen, cursor = [], None
    for _ in range(10):
        params = {"limit": "3", "project": api.own.project_id} | ({"cursor": cursor} if cursor else {})
        body = (await api.http.get("/v2/sandboxes", params=params)).json()
        assert body["pagination"]["count"] == len(body["sandboxes"])
        seen += [sandbox["name"] for sandbox in body["sandboxes"]]
        cursor = body["pagination"]["next"]
        if cursor is None:
            break
    assert seen == names[::-1]


async def test_lists_sort_and_filter(api: Api) -> None:
    for name, tags in (("b-1", {"k": "v"}), ("a-1", {}), ("a_2", {"k": "v"}), ("A-3", {"k": "w"})):
        await api.create(name=name, tags=tags)

    async def names(**params: str) -> list[str]:
        return [sandbox["name"] for sandbox in (await api.http.get("/v2/sandboxes", params=params)).json()["sandboxes"]]

    assert await names(sortBy="name", sortOrder="asc") == ["A-3", "a-1", "a_2", "b-1"]
    assert await names(sortBy="name", sortOrder="asc", namePrefix="a") == ["a-1", "a_2"]
    assert await names(tags="k:v") == ["a_2", "b-1"]
    assert await names(status="stopped") == []
    assert len(await names(status="running")) == 4
    assert len(await names(sortBy="statusUpdatedAt")) == 4
    assert len(await names(sortBy="currentSnapshotId")) == 4


@pytest.mark.section("4.6")
@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"namePrefix": "a"}, "Invalid request: `namePrefix` is only valid when `sortBy` is `name`."),
        ({"limit": "0"}, "Invalid request: `limit` should be an integer >= 1."),
        ({"limit": "²"}, None),
        ({"limit": "9" * 30}, None),
        ({"limit": "-1"}, None),
        ({"sortBy": "evil"}, None),
        ({"sortOrder": "up"}, None),
        ({"cursor": "x"}, None),
        ({"cursor": "A" * 5000}, None),
        ({"tags": "novalue"}, "Invalid request: `tags` should be one `key:value` pair."),
        ({"tags": "a:\0"}, None),
        ({"sortBy": "name", "namePrefix": "a%"}, None),
        ({"status": "running", "sortBy": "name"}, "Invalid request: `status` is only valid when `sortBy` is `createdAt`."),
        ({"status": "odd"}, None),
    ],
)
async def test_bad_list_queries_are_400(api: Api, params: dict[str, str], message: str | None) -> None:
    response = await api.http.get("/v2/sandboxes", params=params)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["code"] == "bad_request"
    if message is not None:
        assert response.json()["error"]["message"] == message


@pytest.mark.section("4.7")
async def test_a_cursor_counts_only_for_its_own_list(api: Api) -> None:
    for number in range(3):
        await api.create(name=f"x-{number}")
    cursor = (await api.http.get("/v2/sandboxes", params={"limit": "1"})).json()["pagination"]["next"]
    assert (await api.http.get("/v2/sandboxes", params={"limit": "1", "cursor": cursor})).status_code == 200
    assert (await api.http.get("/v2/sandboxes", params={"cursor": cursor, "sortOrder": "asc"})).status_code == 400


# -- update ------------------------------------------------------------------------------------------


async def test_update_changes_what_is_given_and_keeps_the_rest(api: Api) -> None:
    created = await api.create(name="one", ports=[3000], tags={"a": "b"}, env={"X": "1"})
    response = await api.http.patch(
        "/v2/sandboxes/one", json={"ports": [3000, 4000], "timeout": 60_000, "tags": {}, "networkPolicy": {"mode": "deny-all"}}
    )
    body = response.json()
    assert response.status_code == 200
    assert body["routes"][0] == created["routes"][0]
    assert [route["port"] for route in body["routes"]] == [3000, 4000]
    assert body["sandbox"]["timeout"] == 60_000
    assert "tags" not in body["sandbox"]
    assert body["sandbox"]["networkPolicy"] == {"mode": "deny-all", "hutch": {"generation": 2, "warnings": []}}
    session = (await api.http.get(f"/v2/sandboxes/sessions/{created['session']['id']}")).json()["session"]
    assert session["timeout"] == 300_000
    full = (await api.http.patch("/v2/sandboxes/one", params={"resume": "true"}, json={})).json()
    assert full["session"]["id"] == created["session"]["id"]


@pytest.mark.section("5.1")
async def test_keep_last_snapshots_can_be_set_and_cleared(api: Api) -> None:
    await api.create(name="one")
    answer = (await api.http.patch("/v2/sandboxes/one", json={"keepLastSnapshots": {"count": 3}})).json()
    assert answer["sandbox"]["keepLastSnapshots"] == {"count": 3, "deleteEvicted": True}
    answer = (await api.http.patch("/v2/sandboxes/one", json={"timeout": 5000})).json()
    assert answer["sandbox"]["keepLastSnapshots"]["count"] == 3
    answer = (await api.http.patch("/v2/sandboxes/one", json={"keepLastSnapshots": None})).json()
    assert "keepLastSnapshots" not in answer["sandbox"]


@pytest.mark.parametrize("name", ["nope", "%00", "a%2Fb", "%F0%9F%92%A3", "x" * 5000, "..%2f..%2fetc"])
@pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE"])
async def test_strange_names_are_404_for_every_method(api: Api, name: str, method: str) -> None:
    response = await api.http.request(method, f"/v2/sandboxes/{name}", json={})
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "not_found"


async def test_a_fork_copies_the_configuration(api: Api) -> None:
    await api.create(name="src", ports=[3000], env={"A": "1"}, tags={"t": "1"}, timeout=70_000, resources={"vcpus": 4})
    body = (await api.http.post("/v2/sandboxes/src/fork", json={"name": "dst", "env": {"B": "2"}})).json()
    assert body["sandbox"]["name"] == "dst"
    assert (body["sandbox"]["timeout"], body["sandbox"]["vcpus"], body["sandbox"]["tags"]) == (70_000, 4, {"t": "1"})
    assert body["routes"][0]["port"] == 3000
    assert api.host.specs[body["session"]["id"]].env == {"B": "2"}
    assert (await api.http.post("/v2/sandboxes/nope/fork", json={})).status_code == 404


# -- bounds ------------------------------------------------------------------------------------------


async def test_the_edges_of_every_bound_are_taken(api: Api) -> None:
    bodies: tuple[dict[str, Any], ...] = (
        {"name": "a"},
        {"name": "Z" * 128},
        {"ports": []},
        {"ports": [1024, 65535, *range(2000, 2013)]},
        {"timeout": 1000},
        {"timeout": 86_400_000},
        {"resources": {"vcpus": 1}},
        {"resources": {"vcpus": 32, "memory": 65_536}},
        {"tags": {str(number): "x" * 256 for number in range(5)}},
        {"snapshotExpiration": 0},
        {"snapshotExpiration": 86_400_000},
        {"snapshotExpiration": 20 * 365 * 86_400_000},
        {"keepLastSnapshots": {"count": 1}},
        {"keepLastSnapshots": {"count": 10, "expiration": 0}},
        {"keepLastSnapshots": {"count": 10, "expiration": 86_400_000}},
        {"env": {"A": "", "b.c": "=x\n"}},
        {"failoverRegions": []},
    )
    for body in bodies:
        made = await api.create(persistent=False, **body)
        sandbox = made["sandbox"]
        assert [route["port"] for route in made["routes"]] == body.get("ports", [])
        assert sandbox["timeout"] == body.get("timeout", 300_000)
        assert sandbox["vcpus"] == body.get("resources", {"vcpus": 2})["vcpus"]
        assert sandbox.get("snapshotExpiration") == body.get("snapshotExpiration")
        assert api.host.specs[made["session"]["id"]].env == body.get("env", {})


@pytest.mark.section("4.6", "6.1", "6.4", "6.6", "18.3")
async def test_what_is_beyond_a_bound_is_refused_by_create_fork_and_update_alike(api: Api) -> None:
    made = await api.create(name="box")
    common: tuple[tuple[dict[str, Any], str | None], ...] = (
        ({"ports": list(range(2000, 2016))}, "`ports` should NOT have more than 15 items."),
        ({"ports": [1023]}, "`ports[0]` should be >= 1024."),
        ({"ports": [3000, 65_536]}, "`ports[1]` should be <= 65535."),
        ({"timeout": 999}, "`timeout` should be >= 1000."),
        ({"timeout": 86_400_001}, "`timeout` should be <= 86400000."),
        ({"timeout": 1500.5}, "`timeout` should be integer."),
        ({"resources": {"vcpus": 0}}, "`resources.vcpus` should be >= 1."),
        ({"resources": {"vcpus": 3}}, "`resources` should have `vcpus` of 1 or an even number."),
        ({"resources": {"vcpus": 34}}, "`resources.vcpus` should be <= 32."),
        ({"resources": {"memory": 4096}}, "`resources` should have required property 'vcpus'."),
        ({"resources": {"vcpus": 2, "memory": 4095}}, "`resources` should have `memory` of 2048 MB per vCPU."),
        ({"tags": {str(number): "" for number in range(6)}}, "`tags` should NOT have more than 5 properties."),
        ({"tags": {"a": "x" * 257}}, None),
        ({"tags": {"a": 1}}, "`tags.a` should be string."),
        ({"snapshotExpiration": 86_399_999}, None),
        ({"snapshotExpiration": -1}, None),
        ({"keepLastSnapshots": {"count": 0}}, "`keepLastSnapshots.count` should be >= 1."),
        ({"keepLastSnapshots": {"count": 11}}, "`keepLastSnapshots.count` should be <= 10."),
        ({"keepLastSnapshots": {}}, "`keepLastSnapshots` should have required property 'count'."),
        ({"keepLastSnapshots": {"count": 1, "expiration": 5}}, None),
        ({"persistent": 1}, "`persistent` should be boolean."),
        ({"env": {"A": 1}}, "`env.A` should be string."),
        ({"region": "mars1"}, None),
        ({"failoverRegions": ["mars1"]}, None),
        ({"failoverRegions": ["iad1"]}, "`failoverRegions` should NOT contain `region`."),
        (
            {"mounts": {str(f"/d{number}"): {"drive": "d"} for number in range(5)}},
            "`mounts` should NOT have more than 4 properties.",
        ),
        (
            {"mounts": {"/d": {"drive": "d"}}, "failoverRegions": ["sfo1"]},
            "`failoverRegions` can't be used together with `mounts`.",
        ),
    )
    only_new: tuple[tuple[dict[str, Any], str | None], ...] = (
        ({"name": "x" * 129}, "`name` should NOT be longer than 128 characters."),
        ({"name": "a b"}, '`name` should match pattern "^[a-zA-Z0-9_-]+$".'),
        ({"image": "x" * 256}, "`image` should NOT be longer than 255 characters."),
        ({"image": ""}, "`image` should NOT be shorter than 1 characters."),
    )
    for method, path, bodies in (
        ("POST", "/v3/sandboxes", common + only_new),
        ("POST", "/v2/sandboxes/box/fork", common + only_new),
        ("PATCH", "/v2/sandboxes/box", common),
    ):
        for body, message in bodies:
            response = await api.http.request(method, path, json=body)
            assert response.status_code == 400, (method, body, response.text)
            error = response.json()["error"]
            assert error["code"] == "bad_request"
            if message is not None:
                assert error["message"] == f"Invalid request: {message}"
    got = (await api.http.get("/v2/sandboxes/box")).json()
    assert got["session"] == made["session"]
    assert len((await api.http.get("/v2/sandboxes")).json()["sandboxes"]) == 1


@pytest.mark.section("4.6", "18.3")
async def test_an_unknown_region_is_refused_with_those_that_there_are(api: Api) -> None:
    refused = await api.http.post("/v3/sandboxes", json={"region": "mars1"})
    assert refused.status_code == 400
    message = refused.json()["error"]["message"]
    assert message.startswith('Invalid request: `region` should be equal to one of the allowed values "arn1", "bom1", ')
    drive = await api.http.post("/v2/sandboxes/drives/d", json={"region": "mars1"})
    assert (drive.status_code, drive.json()["error"]["message"]) == (400, message)
    for region in ("iad1", "sfo1", "cle1", "cdg1"):
        assert (await api.create(region=region))["sandbox"]["region"] == region


@pytest.mark.section("4.6", "6.1", "6.6", "11")
async def test_a_snapshot_begins_sandboxes_of_its_region(api: Api) -> None:
    made = await api.create(name="far", region="sfo1", persistent=False)
    taken = await api.http.post(f"/v2/sandboxes/sessions/{made['session']['id']}/snapshot")
    snapshot = taken.json()["snapshot"]
    assert (snapshot["region"], snapshot["regions"]) == ("sfo1", ["sfo1"])
    source = {"source": {"type": "snapshot", "snapshotId": snapshot["id"]}}
    for path, body in (("/v3/sandboxes", source), ("/v2/sandboxes/far/fork", {})):
        refused = await api.http.post(path, json=body | {"region": "iad1"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "snapshot_region_mismatch")
        for region in ({}, {"region": "sfo1"}):
            child = await api.http.post(path, json=body | region)
            assert (child.status_code, child.json()["sandbox"]["region"]) == (200, "sfo1")


async def test_sources_say_what_they_need(api: Api) -> None:
    for source, problem in (
        ({"type": "git"}, "`source` should have required property 'url'."),
        ({"type": "tarball"}, "`source` should have required property 'url'."),
        ({"type": "snapshot"}, "`source` should have required property 'snapshotId'."),
        ({"type": "git", "url": "https://example.com/a", "depth": 0}, "`source.depth` should be >= 1."),
    ):
        refused = await api.http.post("/v3/sandboxes", json={"source": source})
        assert (refused.status_code, refused.json()["error"]["message"]) == (400, f"Invalid request: {problem}")
    snapshot = {"type": "snapshot", "snapshotId": "snap_x"}
    for other in ({"image": "vercel/sandbox/universal"}, {"runtime": "node24"}):
        refused = await api.http.post("/v2/sandboxes", json={"source": snapshot, **other})
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "bad_request")


async def test_version_four_keeps_snapshots_for_a_week_and_one_of_them(api: Api) -> None:
    async def made(version: int, **body: object) -> tuple[object, object]:
        sandbox = (await api.http.post(f"/v{version}/sandboxes", json=body)).json()["sandbox"]
        return sandbox.get("snapshotExpiration"), sandbox.get("keepLastSnapshots")

    week, one = 7 * 86_400_000, {"count": 1, "deleteEvicted": True}
    assert await made(4) == (week, one)
    assert await made(4, persistent=True) == (week, one)
    assert await made(4, persistent=False) == (week, None)
    assert await made(4, keepLastSnapshots=None) == (week, None)
    assert await made(4, keepLastSnapshots={"count": 2}, snapshotExpiration=0) == (0, {"count": 2, "deleteEvicted": True})
    for version in (2, 3):
        assert await made(version) == (None, None)


# -- get, resume, list ---------------------------------------------------------------------------------


@pytest.mark.section("5.3")
async def test_resume_is_true_or_false_and_false_when_absent(api: Api) -> None:
    session_id = (await api.create(name="one"))["session"]["id"]
    await api.http.post(f"/v2/sandboxes/sessions/{session_id}/stop")
    for query in ({}, {"resume": "false"}):
        body = (await api.http.get("/v2/sandboxes/one", params=query)).json()
        assert (body["resumed"], body["session"]["id"], body["session"]["status"]) == (False, session_id, "stopped")
    assert (await api.http.get("/v2/sandboxes/one", params={"resume": "perhaps"})).status_code == 400
    resumed = (await api.http.get("/v2/sandboxes/one", params={"resume": "true"})).json()
    assert (resumed["resumed"], resumed["session"]["status"], resumed["sandbox"]["status"]) == (True, "running", "running")
    assert resumed["sandbox"]["currentSessionId"] == resumed["session"]["id"] != session_id
    again = (await api.http.get("/v2/sandboxes/one", params={"resume": "true"})).json()
    assert (again["resumed"], again["session"]["id"]) == (False, resumed["session"]["id"])


async def test_twenty_are_listed_unless_more_are_asked_for(api: Api) -> None:
    for number in range(22):
        await api.create(name=f"box-{number:02}", persistent=False)
    for query, count in (({}, 20), ({"limit": "50"}, 22), ({"limit": "1"}, 1)):
        page = (await api.http.get("/v2/sandboxes", params=query)).json()
        assert page["pagination"]["count"] == len(page["sandboxes"]) == count
        assert page["sandboxes"][0]["name"] == "box-21"
        assert (page["pagination"]["next"] is None) == (count == 22)


async def test_stopped_ones_are_listed_and_found_by_their_status(api: Api) -> None:
    stopped = await api.create(name="a", tags={"k": "v:w"}, persistent=True)
    await api.create(name="b", tags={"k": "v"})
    await api.http.post(f"/v2/sandboxes/sessions/{stopped['session']['id']}/stop")

    async def names(**query: str) -> list[str]:
        return [sandbox["name"] for sandbox in (await api.http.get("/v2/sandboxes", params=query)).json()["sandboxes"]]

    assert await names() == ["b", "a"]
    assert await names(status="stopped") == ["a"]
    assert await names(status="running", sortBy="createdAt", sortOrder="asc") == ["b"]
    assert await names(status="stopping") == []
    assert await names(tags="k:v:w") == ["a"]
    assert await names(sortBy="statusUpdatedAt") == ["a", "b"]
    assert await names(sortBy="statusUpdatedAt", sortOrder="asc") == ["b", "a"]
    assert await names(sortBy="currentSnapshotId") == ["a", "b"]
    assert await names(sortBy="name") == ["b", "a"]


# -- update, delete, fork ------------------------------------------------------------------------------


async def test_updates_are_for_the_record_and_the_next_session(api: Api) -> None:
    made = await api.create(name="one", env={"A": "1", "B": "1"}, ports=[3000])
    said = {
        "timeout": 70_000,
        "resources": {"vcpus": 4, "memory": 8192},
        "env": {"B": "2"},
        "region": "sfo1",
        "failoverRegions": ["iad1"],
        "snapshotExpiration": 0,
        "persistent": True,
        "networkPolicy": {"mode": "deny-all"},
        "ports": [8080, 3000],
    }
    answer = (await api.http.patch("/v2/sandboxes/one", json=said)).json()
    assert set(answer) == {"sandbox", "routes"}
    sandbox = answer["sandbox"]
    assert (sandbox["timeout"], sandbox["vcpus"], sandbox["memory"], sandbox["region"]) == (70_000, 4, 8192, "sfo1")
    assert (sandbox["failoverRegions"], sandbox["snapshotExpiration"]) == (["iad1"], 0)
    assert [route["port"] for route in answer["routes"]] == [8080, 3000]
    assert answer["routes"][1] == made["routes"][0]
    session = (await api.http.get(f"/v2/sandboxes/sessions/{made['session']['id']}")).json()
    assert session == {"session": made["session"], "routes": answer["routes"]}

    same = (await api.http.patch("/v2/sandboxes/one", json={})).json()
    assert same["sandbox"] == sandbox | {"updatedAt": same["sandbox"]["updatedAt"]}
    cleared = (await api.http.patch("/v2/sandboxes/one", json={"failoverRegions": [], "ports": [], "networkId": None})).json()
    assert (cleared["sandbox"]["failoverRegions"], cleared["routes"]) == ([], [])

    await api.http.post(f"/v2/sandboxes/sessions/{made['session']['id']}/stop")
    idle = (await api.http.patch("/v2/sandboxes/one", json={"timeout": 80_000})).json()
    assert (idle["sandbox"]["status"], set(idle)) == ("stopped", {"sandbox", "routes"})
    full = (await api.http.patch("/v2/sandboxes/one", params={"resume": "true"}, json={"tags": {"a": "b"}})).json()
    assert set(full) == {"sandbox", "session", "routes", "resumed"}
    assert (full["resumed"], full["sandbox"]["tags"]) == (True, {"a": "b"})
    session = full["session"]
    assert (session["timeout"], session["vcpus"], session["memory"], session["region"]) == (80_000, 4, 8192, "sfo1")
    assert session["networkPolicy"]["mode"] == "deny-all"
    spec = api.host.specs[session["id"]]
    assert (spec.env, spec.vcpus, spec.timeout_ms) == ({"B": "2"}, 4, 80_000)


@pytest.mark.section("4.5")
async def test_a_running_one_is_stopped_and_deleted_and_answered_as_it_was(api: Api) -> None:
    made = await api.create(name="one", tags={"a": "b"})
    before = (await api.http.get("/v2/sandboxes/one")).json()["sandbox"]
    deleted = await api.http.delete("/v2/sandboxes/one")
    assert (deleted.status_code, set(deleted.json())) == (200, {"sandbox"})
    assert deleted.json()["sandbox"].items() <= before.items()
    assert str(api.host.sessions[made["session"]["id"]].status) == "stopped"
    for method in ("GET", "PATCH", "DELETE"):
        gone = await api.http.request(method, "/v2/sandboxes/one", json={})
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "not_found")


async def test_a_fork_has_everything_of_its_source_but_what_it_says_itself(api: Api) -> None:
    settings: dict[str, Any] = {
        "timeout": 70_000,
        "tags": {"a": "1", "b": "1"},
        "persistent": False,
        "snapshotExpiration": 2 * 86_400_000,
        "keepLastSnapshots": {"count": 2, "deleteEvicted": True},
        "region": "sfo1",
        "failoverRegions": ["cle1"],
    }
    made = await api.create(
        name="src", env={"A": "1", "B": "1"}, ports=[3000], resources={"vcpus": 4}, networkPolicy={"mode": "deny-all"}, **settings
    )
    response = await api.http.post("/v2/sandboxes/src/fork", params={"projectId": api.own.project_id}, json={})
    assert response.status_code == 200
    fork = response.json()
    assert set(fork) == {"sandbox", "session", "routes"}
    assert "expiresAt" not in fork["sandbox"]
    assert fork["sandbox"]["name"] != "src"
    assert {name: fork["sandbox"][name] for name in settings} == settings
    assert (fork["sandbox"]["vcpus"], fork["sandbox"]["networkPolicy"]["mode"]) == (4, "deny-all")
    assert fork["sandbox"]["image"] == made["sandbox"]["image"]
    assert [route["port"] for route in fork["routes"]] == [3000]
    assert api.host.specs[fork["session"]["id"]].env == {"A": "1", "B": "1"}

    other = {
        "name": "dst",
        "tags": {"c": "2"},
        "env": {"C": "2"},
        "ports": [],
        "persistent": True,
        "resources": {"vcpus": 1},
        "timeout": 1000,
        "networkPolicy": {"mode": "allow-all"},
        "snapshotExpiration": 0,
        "keepLastSnapshots": None,
        "region": "iad1",
        "failoverRegions": [],
        "source": {"type": "none of it"},
        "runtime": "nor this",
    }
    fork = (await api.http.post("/v2/sandboxes/src/fork", json=other)).json()
    sandbox = fork["sandbox"]
    for name in ("name", "tags", "persistent", "timeout", "snapshotExpiration", "region", "failoverRegions"):
        assert sandbox[name] == other[name], name
    assert (sandbox["vcpus"], sandbox["networkPolicy"]["mode"], fork["routes"]) == (1, "allow-all", [])
    assert "keepLastSnapshots" not in sandbox
    assert api.host.specs[fork["session"]["id"]].env == {"C": "2"}
    taken = await api.http.post("/v2/sandboxes/src/fork", json={"name": "dst"})
    assert (taken.status_code, taken.json()["error"]["code"]) == (409, "conflict")


@pytest.mark.section("6.6")
async def test_a_fork_begins_where_its_source_was_saved_last(api: Api) -> None:
    made = await api.create(name="src")
    first = (await api.http.post("/v2/sandboxes/src/fork", json={})).json()
    assert "sourceSnapshotId" not in first["session"]
    stopped = (await api.http.post(f"/v2/sandboxes/sessions/{made['session']['id']}/stop")).json()
    saved = stopped["sandbox"]["currentSnapshotId"]
    await api.http.get("/v2/sandboxes/src", params={"resume": "true"})
    fork = (await api.http.post("/v2/sandboxes/src/fork", json={})).json()
    assert fork["session"]["sourceSnapshotId"] == fork["sandbox"]["currentSnapshotId"] == saved

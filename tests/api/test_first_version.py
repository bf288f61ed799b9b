"""`/v1/sandboxes`: the first API over the endpoints of the second, with the field names that its clients check."""

from __future__ import annotations

import json

import pytest

from tests.api.conftest import Api

BASE = "/v1/sandboxes"


async def created(api: Api) -> str:
    answer = await api.http.post(BASE, json={"projectId": api.own.project_id, "ports": [3000], "timeout": 60_000})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert set(body) >= {"sandbox", "routes"}
    assert "session" not in body
    assert body["sandbox"]["status"] == "running"
    assert {"id", "memory", "vcpus", "region", "runtime", "timeout", "requestedAt", "createdAt", "cwd", "updatedAt"} <= set(
        body["sandbox"]
    )
    assert [route["port"] for route in body["routes"]] == [3000]
    return str(body["sandbox"]["id"])


async def test_a_sandbox_is_a_session_that_keeps_nothing(api: Api) -> None:
    session_id = await created(api)
    assert session_id.startswith("sbx_")
    got = (await api.http.get(f"/api{BASE}/{session_id}")).json()
    assert got["sandbox"]["id"] == session_id
    (record,) = (await api.http.get("/v2/sandboxes", params={"project": api.own.project_id})).json()["sandboxes"]
    assert record["persistent"] is False
    assert (await api.http.post(BASE)).json()["sandbox"]["id"] != session_id
    listed = (await api.http.get("/v2/sandboxes", params={"project": api.own.project_id})).json()["sandboxes"]
    assert [sandbox["persistent"] for sandbox in listed] == [False, False]
    stopped = (await api.http.post(f"{BASE}/{session_id}/stop")).json()
    assert stopped["sandbox"]["status"] == "stopped"


async def test_lists_are_one_page_without_cursors(api: Api) -> None:
    session_id = await created(api)
    listed = (await api.http.get(BASE, params={"project": api.own.project_id, "limit": "1"})).json()
    assert [sandbox["id"] for sandbox in listed["sandboxes"]] == [session_id]
    assert listed["pagination"] == {"count": 1, "next": None, "prev": None}
    assert (await api.http.get(f"{BASE}/snapshots", params={"project": api.own.project_id})).json()["snapshots"] == []


async def test_commands_name_their_sandbox_waited_and_not(api: Api) -> None:
    session_id = await created(api)
    for wait in (True, False):
        answer = await api.http.post(f"{BASE}/{session_id}/cmd", json={"command": "echo", "args": ["x"], "wait": wait})
        first = json.loads(answer.text.splitlines()[0])["command"]
        assert first["sandboxId"] == session_id
        assert "sessionId" not in first
        assert answer.headers["content-type"].split(";")[0] == ("application/x-ndjson" if wait else "application/json")
    found = await api.http.get(f"{BASE}/{session_id}/cmd/{first['id']}")
    assert found.json()["command"]["sandboxId"] == session_id
    assert int(found.headers["content-length"]) == len(found.content)


async def test_lists_of_commands_and_trees_of_snapshots_have_its_names_too(api: Api) -> None:
    session_id = await created(api)
    started = (await api.http.post(f"{BASE}/{session_id}/cmd", json={"command": "echo"})).json()["command"]
    listed = (await api.http.get(f"{BASE}/{session_id}/cmd")).json()["commands"]
    assert [(one["id"], one["sandboxId"]) for one in listed] == [(started["id"], session_id)]
    taken = (await api.http.post(f"{BASE}/{session_id}/snapshot")).json()["snapshot"]
    assert taken["sourceSandboxId"] == session_id
    tree = (await api.http.get(f"{BASE}/snapshots/tree", params={"snapshotId": taken["id"]})).json()
    assert tree["anchor"]["snapshot"]["sourceSandboxId"] == session_id
    assert "sourceSandboxId" not in tree["anchor"]


async def test_405_names_the_methods_of_both_paths(api: Api) -> None:
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS"):
        answer = await api.http.request(method, BASE)
        assert (answer.status_code, answer.headers["allow"]) == (405, "GET, POST")
    assert (await api.http.put(f"{BASE}/sbx_1")).headers["allow"] == "GET"


async def test_output_passes_as_it_is(api: Api) -> None:
    session_id = await created(api)
    text = '{"command":{"sessionId":"mine"}}'
    answer = await api.http.post(f"{BASE}/{session_id}/cmd", json={"command": "echo", "args": [text], "wait": True, "logs": True})
    records = [json.loads(line) for line in answer.text.splitlines()]
    assert "".join(record["data"] for record in records if "data" in record).strip() == text
    assert [record["command"]["sandboxId"] for record in records if "command" in record] == [session_id] * 2


async def test_the_head_of_a_long_wait_is_sent_at_once(api: Api) -> None:
    session_id = await created(api)
    started = (await api.http.post(f"{BASE}/{session_id}/cmd", json={"command": "wait"})).json()["command"]
    async with api.http.stream("GET", f"{BASE}/{session_id}/cmd/{started['id']}", params={"wait": "true"}) as response:
        assert response.status_code == 200
        await api.http.post(f"{BASE}/{session_id}/cmd/{started['id']}/kill", json={"signal": 15})
        ended = json.loads(await response.aread())["command"]
    assert (ended["sandboxId"], ended["exitCode"]) == (session_id, 143)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"not json", 400),
        (b"[]", 400),
        (b'{"timeout": "long"}', 400),
        (b'{"a":' * 100_000, 400),
        (b'{"ports": [NaN]}', 400),
        (b'{"name": "\\ud800"}', 400),
        (b'{"x": "' + b"y" * (8 << 20) + b'"}', 413),
    ],
    ids=["text", "list", "type", "deep", "nan", "surrogate", "long"],
)
async def test_a_create_that_can_not_be_meant(api: Api, body: bytes, status: int) -> None:
    answer = await api.http.post(BASE, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"]
    listed = await api.http.get("/v2/sandboxes", params={"project": api.own.project_id})
    assert listed.json()["sandboxes"] == []


@pytest.mark.parametrize(
    "path", ["/sbx_unknown", "/../../tokens", "/%2e%2e/x", "/sbx_unknown/cmd/cmd_0", "/snapshots/snap_unknown", "x", "/"]
)
async def test_what_is_unknown_is_404(api: Api, path: str) -> None:
    answer = await api.http.get(f"{BASE}{path}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


async def test_others_have_no_part_in_it(api: Api) -> None:
    session_id = await created(api)
    other = await api.tenant("strangers", "theirs")
    async with api.client(other.token) as http:
        assert (await http.get(f"{BASE}/{session_id}")).status_code in (403, 404)
        assert (await http.post(f"{BASE}/{session_id}/stop")).status_code in (403, 404)
    async with api.client("nothing") as http:
        assert (await http.post(BASE, json={})).status_code == 401

"""What holds for every endpoint: how clients ask, what answers look like, how errors and pages do."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.api.conftest import Api

JSON = "application/json; charset=utf-8"


def session_path(made: dict[str, Any], rest: str = "") -> str:
    return f"/v2/sandboxes/sessions/{made['session']['id']}{rest}"


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a JSON document that has no parts, and where it stands; items of arrays have no place of their own."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for item in value:
            yield from leaves(item, path)
    else:
        yield path, value


async def answers_of_a_life(api: Api) -> list[Any]:
    """What the endpoints of sandboxes, sessions, commands and snapshots answer about one sandbox, from its create on."""
    made = await api.create(name="life", ports=[3000], tags={"a": "b"}, keepLastSnapshots={"count": 2})
    found: list[Any] = [made]
    started = (await api.http.post(session_path(made, "/cmd"), json={"command": "wait"})).json()
    command = started["command"]["id"]
    waited = await api.http.post(session_path(made, "/cmd"), json={"command": "both", "wait": True, "logs": True})
    found += [started, *(json.loads(line) for line in waited.text.splitlines())]
    for method, path, body in (
        ("GET", "/v2/sandboxes/life", None),
        ("GET", "/v2/sandboxes", None),
        ("GET", "/v2/sandboxes?limit=1", None),
        ("PATCH", "/v2/sandboxes/life", {"tags": {}}),
        ("GET", session_path(made), None),
        ("GET", "/v2/sandboxes/sessions", None),
        ("GET", session_path(made, f"/cmd/{command}"), None),
        ("GET", session_path(made, "/cmd"), None),
        ("POST", session_path(made, f"/cmd/{command}/kill"), {"signal": 9}),
        ("POST", session_path(made, "/extend-timeout"), {"duration": 1000}),
        ("POST", session_path(made, "/network-policy"), {"mode": "deny-all"}),
        ("POST", session_path(made, "/interactive"), {}),
        ("POST", session_path(made, "/stop"), None),
        ("GET", "/v2/sandboxes/life?resume=true", None),
        ("GET", "/v2/sandboxes/snapshots", None),
        ("DELETE", "/v2/sandboxes/life", None),
    ):
        response = await api.http.request(method, path, json=body)
        assert response.status_code == 200, (path, response.text)
        found.append(response.json())
    return found


@pytest.mark.section("3.1", "6.1")
async def test_team_and_project_are_named_by_id_or_slug_where_each_call_names_them(api: Api) -> None:
    tenant = await api.tenant("acme", "web")
    for number, (team, project) in enumerate(
        (({"teamId": tenant.team_id}, tenant.project_id), ({"slug": "acme"}, "web"), ({}, "web"))
    ):
        name = f"box-{number}"
        made = await tenant.http.post("/v3/sandboxes", params=team, json={"projectId": project, "name": name})
        assert made.status_code == 200, made.text
        assert made.json()["session"]["projectId"] == tenant.project_id
        # Calls to sessions name no project at all.
        assert (await tenant.http.get(session_path(made.json()), params=team)).status_code == 200
        # Whoever may name any team has named this one.
        asked = await api.http.get(f"/v2/sandboxes/{name}", params={**team, "projectId": project})
        assert asked.status_code == (200 if team else 403)
        for method, path in (("GET", ""), ("PATCH", ""), ("POST", "/fork"), ("DELETE", "")):
            query = {**team, "projectId": project}
            response = await tenant.http.request(method, f"/v2/sandboxes/{name}{path}", params=query, json={})
            assert response.status_code == 200, (method, response.text)
        for path in ("", "/sessions", "/snapshots", "/snapshots/tree"):
            response = await tenant.http.get(f"/v2/sandboxes{path}", params={**team, "project": project})
            assert response.status_code == 200, (path, response.text)


@pytest.mark.section("3.1", "3.3")
async def test_ids_resolve_their_project_themselves_and_only_for_the_tokens_team(api: Api) -> None:
    mine, theirs = await api.tenant("mine", None), await api.tenant("theirs")
    made = await api.create(theirs.http)
    snapshot = (await theirs.http.post(session_path(made, "/snapshot"))).json()["snapshot"]["id"]
    for path in (session_path(made), f"/v2/sandboxes/snapshots/{snapshot}"):
        assert (await theirs.http.get(path, params={"teamId": theirs.team_id})).status_code == 200
        assert (await theirs.http.get(path, params={"teamId": mine.team_id})).status_code == 403
        assert (await mine.http.get(path, params={"teamId": mine.team_id})).status_code == 404


@pytest.mark.section("4.1")
async def test_requests_are_taken_with_the_headers_of_any_client(api: Api) -> None:
    javascript = {
        "content-type": "application/json",
        "user-agent": "vercel/sandbox/3.5.0 agent/test (Node.js/v24.0.0; linux/x64)",
        "accept-encoding": "gzip, deflate",
    }
    python = {
        "user-agent": "vercel-sandbox/0.10.0 (Python/3.13.0; Linux/x86_64)",
        "accept-encoding": "gzip, deflate, zstd",
        "connection": "close",
    }
    for headers in (javascript, python, {"content-type": "text/plain"}, {"content-type": "nonsense"}):
        made = await api.http.post("/v3/sandboxes", content=b'{"name": "box", "persistent": false}', headers=headers)
        assert made.status_code == 200, made.text
        assert (await api.http.get("/v2/sandboxes/box", headers=headers)).status_code == 200
        body = b'{"command": "echo", "wait": true, "logs": true}'
        ran = await api.http.post(session_path(made.json(), "/cmd"), content=body, headers=headers)
        assert ran.text.count("\n") == 2 + ran.text.count("stdout")
        stopped = await api.http.post(session_path(made.json(), "/stop"), headers=headers | {"content-length": "0"})
        assert stopped.status_code == 200, stopped.text
        assert (await api.http.delete("/v2/sandboxes/box", headers=headers)).status_code == 200


@pytest.mark.section("4.2")
async def test_content_types_are_exactly_those_that_clients_compare(api: Api) -> None:
    made = await api.create(name="box")
    for response in (
        await api.http.get("/v2/sandboxes/box"),
        await api.http.get("/v2/sandboxes/nope"),
        await api.http.post(session_path(made, "/cmd"), json={"command": "echo"}),
        await api.http.post(session_path(made, "/cmd"), json={"command": "nosuch", "wait": True, "logs": True}),
        await api.http.post(session_path(made, "/fs/mkdir"), json={"path": "x"}),
    ):
        assert response.headers["content-type"] == JSON
        assert response.headers["cache-control"] == "private, max-age=0, must-revalidate"
        assert {"x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"} <= set(response.headers)
        assert abs(int(response.headers["x-ratelimit-reset"]) - time.time()) < 120
    command = (await api.http.post(session_path(made, "/cmd"), json={"command": "echo"})).json()["command"]["id"]
    for logs in (True, False):
        ran = await api.http.post(session_path(made, "/cmd"), json={"command": "echo", "wait": True, "logs": logs})
        assert ran.headers["content-type"] == "application/x-ndjson"
    logged = await api.http.get(session_path(made, f"/cmd/{command}/logs"))
    assert logged.headers["content-type"] == "application/x-ndjson"


@pytest.mark.section("4.2", "5")
async def test_nothing_is_null_but_the_next_page_and_an_exit_code_to_come(api: Api) -> None:
    nulls = {
        path.rpartition(".")[2] for answer in await answers_of_a_life(api) for path, value in leaves(answer) if value is None
    }
    assert nulls == {"next", "exitCode"}


@pytest.mark.section("4.2", "5")
async def test_numbers_are_integers_and_times_milliseconds(api: Api) -> None:
    numbers = [
        (path, value)
        for answer in await answers_of_a_life(api)
        for path, value in leaves(answer)
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    ]
    assert {type(value) for _, value in numbers} == {int}
    now = time.time() * 1000
    times = [(path, value) for path, value in numbers if path.endswith("At")]
    assert {path.rpartition(".")[2] for path, _ in times} >= {
        *("createdAt", "updatedAt", "statusUpdatedAt", "requestedAt", "startedAt", "requestedStopAt", "stoppedAt"),
        *("expiresAt", "lastUsedAt", "snapshottedAt"),
    }
    for path, value in times:
        latest = now + 31 * 86_400_000 if path.endswith("expiresAt") else now + 1000
        assert now - 60_000 < value < latest, path


@pytest.mark.section("4.3", "3.3")
async def test_errors_are_a_code_and_a_sentence(api: Api) -> None:
    made = await api.create(name="box", persistent=False)
    await api.http.post(session_path(made, "/stop"))
    tenant = await api.tenant("acme")
    for response, status in (
        (await api.http.post("/v3/sandboxes", json={"timeout": 1}), 400),
        (await api.client("").get("/v2/sandboxes"), 401),
        (await api.client("x").get("/v2/sandboxes"), 401),
        (await tenant.http.get("/v2/sandboxes", params={"teamId": api.own.team_id}), 403),
        (await api.http.get("/v2/sandboxes/nope"), 404),
        (await api.http.get("/v2/nothing/here"), 404),
        (await api.http.post("/v3/sandboxes", json={"name": "box"}), 409),
        (await api.http.post(session_path(made, "/cmd"), json={"command": "echo"}), 410),
    ):
        assert response.status_code == status
        assert set(response.json()) == {"error"}
        error = response.json()["error"]
        assert set(error) == {"code", "message"}
        assert error["code"].replace("_", "").islower()
        assert error["message"]


@pytest.mark.section("4.7", "5.3", "6.3", "7.1")
async def test_every_list_has_pages_of_what_is_left(api: Api) -> None:
    for number in range(3):
        made = await api.create(name=f"box-{number}")
        await api.http.post(session_path(made, "/stop"))
    for path, key in (("", "sandboxes"), ("/sessions", "sessions"), ("/snapshots", "snapshots")):
        whole = (await api.http.get(f"/v2/sandboxes{path}")).json()
        assert whole["pagination"] == {"count": 3, "next": None}
        query: dict[str, Any] = {"limit": "2"}
        seen = []
        for wanted in (2, 1):
            page = (await api.http.get(f"/v2/sandboxes{path}", params=query)).json()
            assert page["pagination"]["count"] == len(page[key]) == wanted
            seen += page[key]
            query["cursor"] = page["pagination"]["next"]
        assert query["cursor"] is None
        assert seen == whole[key]
        backwards = (await api.http.get(f"/v2/sandboxes{path}", params={"sortOrder": "asc"})).json()
        assert backwards[key] == whole[key][::-1]


@pytest.mark.section("4.7")
async def test_a_page_that_ends_with_the_last_item_says_so(api: Api) -> None:
    for number in range(2):
        await api.create(name=f"box-{number}")
    page = (await api.http.get("/v2/sandboxes", params={"limit": "2"})).json()
    assert page["pagination"] == {"count": 2, "next": None}


@pytest.mark.section("2.2", "4.8", "6.1", "6.2")
async def test_private_options_are_taken_wherever_clients_send_them(api: Api) -> None:
    private: dict[str, Any] = {"__interactive": True, "__region": "iad1", "__new": {"deep": [1, None]}}
    made = await api.create(name="box", ports=[3000], **private)
    fork = await api.http.post("/v2/sandboxes/box/fork", json=private)
    assert fork.status_code == 200, fork.text
    for path in ("/v2/sandboxes/box", session_path(made)):
        plain = (await api.http.get(path)).json()
        asked = await api.http.get(path, params={"__includeSystemRoutes": "true", "__new": "1"})
        assert (asked.status_code, asked.json()) == (200, plain)


@pytest.mark.section("4.2")
async def test_no_page_of_another_origin_is_let_in(api: Api) -> None:
    origin = {"origin": "https://example.com", "access-control-request-method": "POST"}
    for response in (
        await api.http.get("/v2/sandboxes", headers=origin),
        await api.http.options("/v3/sandboxes", headers=origin),
    ):
        assert not [name for name in response.headers if name.startswith("access-control-")]

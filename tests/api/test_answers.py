"""What answers look like, said a second time: from the reference of the vendor's API, not from `hutch.control.answers`."""

from __future__ import annotations

import typing
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError
from typing_extensions import is_typeddict

from hutch.api import openapi
from hutch.api.routing import JSON, PlainRoute
from hutch.control import answers, requests
from tests.answers import ROUTES, Checked, Record, find_route, problems_of
from tests.api.conftest import Api
from tests.reference import OPTIONAL, OWN, REQUIRED, SESSION_STATES, compare_all


async def test_what_is_answered_is_what_the_reference_requires(api: Api) -> None:
    policy = {"allow": {"a.test": [{"transform": [{"headers": {"x-a": "b"}}]}]}}
    wanted: dict[str, Any] = {"tags": {"a": "b"}, "ports": [3000], "networkPolicy": policy, "keepLastSnapshots": {"count": 2}}
    created = await api.create(name="one", snapshotExpiration=86_400_000, **wanted)
    session = f"/v2/sandboxes/sessions/{created['session']['id']}"
    seen = [created]

    async def send(method: str, path: str, **body: Any) -> Any:
        response = await api.http.request(method, path, json=body or None)
        assert response.is_success, response.text
        seen.append(response.json())
        return seen[-1]

    await send("GET", "/v2/sandboxes/one")
    await send("GET", "/v2/sandboxes")
    await send("PATCH", "/v2/sandboxes/one", tags={})
    await send("GET", session)
    await send("GET", "/v2/sandboxes/sessions")
    command = (await send("POST", f"{session}/cmd", command="echo"))["command"]["id"]
    await send("GET", f"{session}/cmd")
    await send("GET", f"{session}/cmd/{command}")
    await send("POST", f"{session}/extend-timeout", duration=1000)
    await send("POST", f"{session}/network-policy", mode="deny-all")
    await send("POST", "/v2/sandboxes/drives/d")
    await send("GET", "/v2/sandboxes/drives")
    await send("POST", f"{session}/stop")
    snapshots = await send("GET", "/v2/sandboxes/snapshots")
    await send("GET", f"/v2/sandboxes/snapshots/tree?snapshotId={snapshots['snapshots'][0]['id']}")
    await send("POST", "/v2/sandboxes/one/fork")
    await send("DELETE", "/v2/sandboxes/one")
    assert all(compare_all(answer) for answer in seen)


async def test_optional_fields_are_there_when_they_mean_something(api: Api) -> None:
    created = await api.create(name="one", ports=[3000])
    assert (
        not {"tags", "mounts", "networkPolicy", "keepLastSnapshots", "totalEgressBytes", "expiresAt"} & created["sandbox"].keys()
    )
    running = (await api.http.get("/v2/sandboxes/one")).json()
    assert running["sandbox"]["expiresAt"] == running["session"]["startedAt"] + running["session"]["timeout"]
    stopped = (await api.http.post(f"/v2/sandboxes/sessions/{created['session']['id']}/stop")).json()
    assert {"stoppedAt", "requestedStopAt", "duration", "activeCpuDurationMs", "networkTransfer"} <= stopped["session"].keys()
    assert stopped["snapshot"]["id"] == stopped["sandbox"]["currentSnapshotId"]
    assert "expiresAt" not in stopped["sandbox"]


def test_the_source_of_answers_agrees_with_the_reference() -> None:
    for kind, required in REQUIRED.items():
        declared: Any = getattr(answers, kind.capitalize())
        assert set(required.split()) <= declared.__required_keys__, kind
        known = {*required.split(), *OPTIONAL[kind].split(), *OWN.get(kind, "").split()}
        assert declared.__annotations__.keys() <= known, kind
    states = typing.get_args(answers.SessionState)
    assert set(states) == SESSION_STATES


def test_null_is_declared_in_the_two_places_where_clients_take_it_and_in_a_few_of_ours() -> None:
    nullable = set()
    for name, kind in vars(answers).items():
        if is_typeddict(kind) and kind.__module__ == answers.__name__:
            properties = TypeAdapter(kind).json_schema().get("properties", {})
            nullable |= {(name, field) for field, schema in properties.items() if {"type": "null"} in schema.get("anyOf", ())}
    first = {("FirstCommand", "exitCode")}
    ours = {("BoundsRead", "networkPolicy"), ("UsageGroup", "key"), ("RuleUsage", "rule"), ("RowPage", "next")}
    ours |= {("DatabaseView", "properties"), ("DatabaseView", "sort")}
    assert nullable == {("Command", "exitCode"), ("Pagination", "next"), *ours, *first}


@pytest.mark.parametrize(
    ("status", "content", "body"),
    [
        (200, "application/json; charset=utf-8", b'{"status":"ok","more":1}'),
        (200, "application/json; charset=utf-8", b'{"status":null}'),
        (200, "application/json; charset=utf-8", b"{}"),
        (200, "application/json", b'{"status":"ok"}'),
        (201, "application/json; charset=utf-8", b'{"status":"ok"}'),
        (404, "application/json; charset=utf-8", b'{"error":{"code":"not_found","message":"x"}}'),
        (503, "application/json; charset=utf-8", b'{"error":{"code":"not_found","message":"x"}}'),
        (500, "application/json; charset=utf-8", b'{"error":{"code":"Not Found","message":"x"}}'),
        (500, "text/plain", b"Internal Server Error"),
    ],
)
async def test_the_check_of_answers_finds_what_is_wrong(status: int, content: str, body: bytes) -> None:
    record = Record()
    headers = [(b"content-type", content.encode())]
    record.add({"type": "http.response.start", "status": status, "headers": headers})
    record.add({"type": "http.response.body", "body": body})
    route = await find_route({"type": "http", "method": "GET", "path": "/healthz"})
    assert isinstance(route, PlainRoute)
    assert problems_of(route, record)


async def test_the_check_of_answers_knows_versions_prefixes_and_what_is_not_there() -> None:
    async def found(method: str, path: str) -> object:
        route = await find_route({"type": "http", "method": method, "path": path})
        return route.name if isinstance(route, PlainRoute) else route

    assert await found("POST", "/api/v3/sandboxes") == "create_sandbox"
    assert await found("GET", "/v2/sandboxes/drives") == "list_drives"
    assert await found("POST", "/api/v1/sandboxes") == "create_sandbox"
    assert await found("GET", "/v1/sandboxes") == "list_sessions"
    assert await found("GET", "/v1/sandboxes/snapshots") == "list_snapshots"
    assert await found("GET", "/v1/sandboxes/sbx_1/cmd/cmd_1") == "get_command"
    assert await found("PUT", "/v2/sandboxes") == 405
    assert await found("GET", "/api/api/v2/sandboxes") == 404


def test_answers_of_the_first_version_are_others() -> None:
    record = Record()
    record.add({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json; charset=utf-8")]})
    record.add({"type": "http.response.body", "body": b'{"sandboxes":[],"pagination":{"count":0,"next":null,"prev":null}}'})
    route = next(route for route in ROUTES if route.name == "list_sessions")
    assert not problems_of(route, record, first_version=True)
    assert problems_of(route, record)


def test_a_stream_of_records_has_to_be_in_order() -> None:
    first = (
        b'{"command":{"id":"cmd_1","name":"x","args":[],"cwd":"/","sessionId":"sbx_1","exitCode":%s,"startedAt":1790987499616}}\n'
    )
    output = b'{"data":"x","stream":"stdout"}\n'
    route = next(route for route in ROUTES if route.name == "start_command")
    for body, good in (
        (first % b"null" + output + first % b"0", True),
        (first % b"null" + output + b'{"stream":"error","data":{"code":"x","message":"x"}}\n', True),
        (first % b"null" + output, False),
        (first % b"null" + first % b"null", False),
        (output + first % b"0", False),
        (first % b"null" + first % b"0" + output, False),
        ((first % b"null" + first % b"0").rstrip(), False),
    ):
        record = Record()
        headers = [(b"content-type", b"application/x-ndjson")]
        record.add({"type": "http.response.start", "status": 200, "headers": headers})
        record.add({"type": "http.response.body", "body": body})
        assert (problems_of(route, record) == []) is good, body


# -- the document -----------------------------------------------------------------------------------


def document() -> dict[str, Any]:
    return openapi.document(ROUTES)


def test_every_endpoint_says_what_it_answers() -> None:
    for route in ROUTES:
        for success in route.documentation.successes:
            bare = success.status == 204 or success.content != JSON
            assert bare or success.kind is not None, f"{route.name} does not say what it answers"
        assert route.endpoint.__doc__, route.name
        assert route.tags, route.name


def test_operations_have_ids_descriptions_and_every_error() -> None:
    operations = [operation for path in document()["paths"].values() for operation in path.values()]
    ids = [operation["operationId"] for operation in operations]
    assert len(set(ids)) == len(ids)
    assert {name for name in ids if not name.startswith(openapi.FIRST)} == {route.name for route in ROUTES}
    for operation in operations:
        assert operation["description"]
        assert operation["tags"]
        if operation["security"]:
            assert {"400", "401", "403", "500", "503"} <= operation["responses"].keys(), operation["operationId"]


def test_every_reference_of_the_document_leads_somewhere() -> None:
    whole = document()

    def references(part: Any) -> typing.Iterator[str]:
        if isinstance(part, dict):
            yield from (value for key, value in part.items() if key == "$ref" and isinstance(value, str))
            part = list(part.values())
        if isinstance(part, list):
            for item in part:
                yield from references(item)

    found = set(references(whole))
    assert len(found) > 50
    for reference in found:
        place = whole
        for step in reference.removeprefix("#/").split("/"):
            place = place[step]


def test_examples_are_bodies_that_are_taken() -> None:
    examples = 0
    for route in ROUTES:
        body, example = route.documentation.body, route.documentation.example
        if body is not None and example is not None and body is not requests.PolicyBody:
            TypeAdapter(body).validate_python(example)
            examples += 1
    assert examples >= 5


async def test_an_undeclared_field_fails_the_test_that_sees_it() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"application/json; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b'{"status":"ok","new":1}'})

    async def send(message: Any) -> None:
        pass

    checked = Checked(app)
    await checked({"type": "http", "method": "GET", "path": "/api/healthz"}, send, send)  # type: ignore[arg-type]
    assert len(checked.violations) == 1
    assert "new: Extra inputs are not permitted" in checked.violations[0]
    with pytest.raises(ValidationError):
        TypeAdapter(answers.Alive).validate_python({"status": "ok", "new": 1})

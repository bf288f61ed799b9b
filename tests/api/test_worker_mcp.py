"""Tools of workers over MCP: a client of the official SDK, and messages that no client sends."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import httpx2
import mcp_types as types
import pytest
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError

from hutch.api.auth import new_token
from hutch.clock import now_ms
from hutch.control.permissions import TokenRole
from tests.api.conftest import DAY_MS, Api
from tests.api.serving import ANY, deployed, tool

MODES = ("legacy", "auto")
NEWEST = "2026-07-28"


@contextlib.asynccontextmanager
async def connected(api: Api, path: str, token: str | None = None, **options: Any) -> AsyncIterator[Client]:
    """The SDK's client, which knows the address and a token."""
    headers = {"authorization": f"Bearer {token or api.own.token}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=20) as http,
        Client(streamable_http_client(f"{api.url}/api{path}", http_client=http), **options) as client,
    ):
        yield client


async def send(http: httpx.AsyncClient, path: str, message: Any, **headers: str) -> httpx.Response:
    return await http.post(path, json=message, headers=headers)


def texts(result: types.CallToolResult) -> str:
    return "".join(part.text for part in result.content if isinstance(part, types.TextContent))


@pytest.mark.parametrize("mode", MODES)
async def test_a_client_lists_tools_and_calls_them(api: Api, mode: Any) -> None:
    output = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    worker = await deployed(
        api,
        tool("greet", hints={"readOnlyHint": True}, outputSchema=output),
        tool("say hello"),
        tool("count", {"type": "array", "items": {"type": "number"}}),
    )
    async with connected(api, f"/mcp/workers/{worker}", mode=mode) as client:
        assert client.server_info is not None
        assert client.server_info.name == "one"
        listed = {one.name: one for one in (await client.list_tools()).tools}
        hello = next(name for name in listed if name.startswith("say_hello_"))
        assert set(listed) == {"greet", hello, "count"}
        assert listed["greet"].annotations is not None
        assert listed["greet"].annotations.read_only_hint is True
        assert listed["greet"].title == "Greet"
        # What may be null and is left out comes to the worker as null.
        done = await client.call_tool("greet", {"name": "you"})
        assert (done.is_error, done.structured_content) == (False, {"name": "you", "note": None})
        assert json.loads(texts(done)) == {"name": "you", "note": None}
        # What is no object travels in one.
        assert texts(await client.call_tool("count", {"input": [1, 2]})) == "[1, 2]"
    runs = (await api.http.post("/v3/workersListRunsForWorker", json={"workerId": worker})).json()["runs"]
    assert [run["name"] for run in runs] == ["tool:count", "tool:greet"]


@pytest.mark.parametrize("mode", MODES)
async def test_errors_of_tools_are_results_with_their_name_and_without_a_trace(api: Api, mode: Any) -> None:
    worker = await deployed(api, tool("fail", ANY))
    thrown = {"name": "LimitError", "message": "no more", "trace": "at secret.ts:1"}
    async with connected(api, f"/hutch/v1/workers/{worker}/mcp", mode=mode) as client:
        done = await client.call_tool("fail", {"throw": thrown})
        assert (done.is_error, texts(done)) == (True, "LimitError: no more")
        with pytest.raises(MCPError, match="There is no tool 'other'"):
            await client.call_tool("other", {})


async def test_one_address_has_the_tools_of_all_workers(api: Api) -> None:
    first = await deployed(api, tool("greet"), name="one")
    await deployed(api, tool("greet"), name="two")
    await deployed(api, tool("greet"), name="two")
    await api.http.post("/v3/workersCreateWorker", json={"name": "empty"})
    stranger = await api.tenant("strangers")
    await deployed(api, tool("hidden"), name="theirs", http=stranger.http)
    async with connected(api, "/hutch/v1/mcp") as client:
        listed = sorted(one.name for one in (await client.list_tools()).tools)
        assert listed[0] == "one_greet"
        assert len(listed) == 3
        assert all(name.startswith("two_") and name.endswith("_greet") for name in listed[1:])
        assert json.loads(texts(await client.call_tool("one_greet", {"name": "x"}))) == {"name": "x", "note": None}
    runs = (await api.http.post("/v3/workersListRunsForWorker", json={"workerId": first})).json()["runs"]
    assert len(runs) == 1


async def test_a_tool_that_is_switched_off_is_there_for_no_agent(api: Api) -> None:
    worker = await deployed(api, tool("greet"), tool("a/b c"))
    tools = f"/hutch/v1/workers/{worker}/tools"
    other = next(one["name"] for one in (await api.http.get(tools)).json()["tools"] if one["key"] == "a/b c")
    changed = await api.http.patch(f"{tools}/{other}", json={"enabled": False})
    assert (changed.status_code, changed.json()["enabled"], changed.json()["confirm"]) == (200, False, False)
    async with connected(api, f"/hutch/v1/workers/{worker}/mcp") as client:
        assert [one.name for one in (await client.list_tools()).tools] == ["greet"]
        with pytest.raises(MCPError, match="switched off"):
            await client.call_tool(other, {"name": "x"})
    refused = await api.http.post(f"{tools}/{other}/call", json={"arguments": {"name": "x"}})
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "tool_disabled")
    assert [one["name"] for one in (await api.http.get(tools, params={"format": "mcp"})).json()["tools"]] == ["greet"]
    assert (await api.http.patch(f"{tools}/{other}", json={"enabled": True})).json()["enabled"] is True
    called = await api.http.post(f"{tools}/{other}/call", json={"arguments": {"name": "x"}})
    assert called.json() == {"result": {"name": "x", "note": None}}
    assert (await api.http.patch(f"{tools}/none", json={"enabled": True})).status_code == 404
    assert (await api.http.post("/v3/workersDeleteWorker", json={"workerId": worker})).status_code == 200


@pytest.mark.parametrize(("action", "agreed", "runs"), [("accept", True, 1), ("accept", False, 0), ("decline", None, 0)])
async def test_a_person_agrees_to_a_call_or_it_is_none(api: Api, action: Any, agreed: bool | None, runs: int) -> None:
    worker = await deployed(api, tool("write"))
    await api.http.patch(f"/hutch/v1/workers/{worker}/tools/write", json={"confirm": True})
    asked: list[str] = []

    async def person(_: Any, params: Any) -> types.ElicitResult:
        asked.append(params.message)
        return types.ElicitResult(action=action, content={"agreed": agreed} if agreed is not None else None)

    async with connected(api, f"/hutch/v1/workers/{worker}/mcp", elicitation_callback=person) as client:
        done = await client.call_tool("write", {"name": "x"})
    assert asked == ['May write of the worker one be called with {"name": "x"}?']
    assert done.is_error is not agreed if agreed else "ConfirmationDeclined" in texts(done)
    found = (await api.http.post("/v3/workersListRunsForWorker", json={"workerId": worker})).json()["runs"]
    assert len(found) == runs


@pytest.mark.parametrize("mode", MODES)
async def test_a_client_that_can_ask_nobody_is_refused_what_a_person_has_to_agree_to(api: Api, mode: Any) -> None:
    worker = await deployed(api, tool("write"))
    await api.http.patch(f"/hutch/v1/workers/{worker}/tools/write", json={"confirm": True})
    async with connected(api, f"/hutch/v1/workers/{worker}/mcp", mode=mode) as client:
        done = await client.call_tool("write", {"name": "x"})
    assert done.is_error
    assert texts(done).startswith("ConfirmationRequired: A person has to agree")


async def test_a_token_for_running_workers_is_enough_and_no_other_is(api: Api) -> None:
    worker = await deployed(api, tool("greet"))
    own = api.own

    async def token(*scopes: str) -> str:
        record = new_token(own.team_id, own.project_id, TokenRole.DEVELOPER, now=now_ms(), ttl_ms=DAY_MS, scopes=scopes)
        return await api.services.auth.issue(record)

    async with connected(api, f"/hutch/v1/workers/{worker}/mcp", await token("worker.run")) as client:
        assert not (await client.call_tool("greet", {"name": "x"})).is_error
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    for other in (await token("worker.read"), (await api.tenant("acme", role=TokenRole.VIEWER)).token):
        assert (await send(api.client(other), f"/hutch/v1/workers/{worker}/mcp", message)).status_code == 403
    stranger = await api.tenant("strangers")
    assert (await send(stranger.http, f"/hutch/v1/workers/{worker}/mcp", message)).status_code == 404
    refused = await send(api.client(""), "/hutch/v1/mcp", message)
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")


HOSTILE = [
    b"",
    b"{",
    b"null",
    b"[]",
    b'[{"jsonrpc":"2.0","id":1,"method":"tools/list"}]',
    b'{"jsonrpc":"1.0","id":1,"method":"tools/list"}',
    b'{"jsonrpc":"2.0","id":1}',
    b'{"jsonrpc":"2.0","id":1,"result":{}}',
    b'{"jsonrpc":"2.0","id":{},"method":"tools/list"}',
    b'{"jsonrpc":"2.0","id":true,"method":"tools/list"}',
    b'{"jsonrpc":"2.0","id":1.5,"method":"tools/list"}',
    b'{"jsonrpc":"2.0","id":99999999999999999999,"method":"tools/list"}',
    b'{"jsonrpc":"2.0","id":1,"method":7}',
    b'{"jsonrpc":"2.0","id":1,"method":"tools/list","params":[]}',
    b'{"jsonrpc":"2.0","id":1,"id":2,"method":"tools/list"}',
    b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"x":' + b"[" * 50_000 + b"]" * 50_000 + b"}}",
    b'{"jsonrpc":"2.0","id":"\\ud800","method":"tools/list"}',
    b"\xff\xfe",
    b'{"jsonrpc":"2.0","id":NaN,"method":"ping"}',
]


@pytest.mark.parametrize("raw", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("version", [None, "2025-06-18", NEWEST, "1999-01-01"])
async def test_what_is_no_message_is_refused_as_the_protocol_says(api: Api, raw: bytes, version: str | None) -> None:
    headers = {"mcp-protocol-version": version} if version else {}
    refused = await api.http.post("/hutch/v1/mcp", content=raw, headers=headers)
    assert refused.status_code == 400
    assert refused.json()["jsonrpc"] == "2.0"
    assert refused.json()["id"] is None
    assert refused.json()["error"]["code"] == types.INVALID_REQUEST


async def test_methods_and_revisions_that_do_not_exist_have_errors_of_the_protocol(api: Api) -> None:
    path = f"/hutch/v1/workers/{await deployed(api, tool('greet'))}/mcp"
    unknown = await send(api.http, path, {"jsonrpc": "2.0", "id": "a", "method": "resources/list"})
    assert (unknown.status_code, unknown.json()["id"]) == (200, "a")
    assert unknown.json()["error"]["code"] == types.METHOD_NOT_FOUND
    for params in ({}, {"name": 7}, {"name": "greet", "arguments": []}, {"name": "greet", "arguments": "x"}):
        wrong = await send(api.http, path, {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params})
        assert (wrong.status_code, wrong.json()["error"]["code"]) == (200, types.INVALID_PARAMS), params
    later = await send(
        api.http, path, {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}, **{"mcp-protocol-version": "2099-01-01"}
    )
    assert (later.status_code, "error" in later.json()) == (400, True)
    heard = await send(api.http, path, {"jsonrpc": "2.0", "method": "notifications/initialized"})
    assert (heard.status_code, heard.content) == (202, b"")
    session = await send(api.http, path, {"jsonrpc": "2.0", "id": 1, "method": "ping"}, **{"mcp-session-id": "of-somebody"})
    assert session.json() == {"jsonrpc": "2.0", "id": 1, "result": {}}
    assert "mcp-session-id" not in session.headers
    for method in ("GET", "DELETE", "PUT"):
        other = await api.http.request(method, path)
        assert (other.status_code, other.headers["allow"]) == (405, "POST")
    large = await api.http.post(path, content=b" " * (9 * 1024 * 1024))
    assert large.status_code == 413


async def test_what_is_listed_is_what_models_take(api: Api) -> None:
    worker = await deployed(api, tool("greet", hints={"readOnlyHint": True}))
    tools = f"/hutch/v1/workers/{worker}/tools"
    shown = (await api.http.get(tools)).json()["tools"][0]
    assert (shown["key"], shown["name"], shown["readOnly"], shown["enabled"], shown["confirm"]) == (
        "greet",
        "greet",
        True,
        True,
        False,
    )
    schema = shown["inputSchema"]

    async def of(form: str) -> Any:
        return (await api.http.get(tools, params={"format": form})).json()["tools"][0]

    fields = {"name": "greet", "description": "Does greet", "parameters": schema, "strict": True}
    assert await of("openai") == {"type": "function", **fields}
    assert await of("openai-chat") == {"type": "function", "function": fields}
    assert await of("anthropic") == {"name": "greet", "description": "Does greet", "input_schema": schema}
    assert (await of("mcp"))["annotations"]["readOnlyHint"] is True
    assert (await api.http.get(tools, params={"format": "cobol"})).status_code == 400
    failed = await api.http.post(f"{tools}/greet/call", json={"arguments": {"name": 1, "throw": {"name": "E", "message": "m"}}})
    assert (failed.status_code, failed.json()["error"]["message"]) == (422, "m")


async def test_calls_at_once_do_not_see_each_other(api: Api) -> None:
    worker = await deployed(api, tool("greet"))
    async with connected(api, f"/hutch/v1/workers/{worker}/mcp") as client:
        done = await asyncio.gather(*(client.call_tool("greet", {"name": f"n{number}"}) for number in range(8)))
    assert [json.loads(texts(one))["name"] for one in done] == [f"n{number}" for number in range(8)]

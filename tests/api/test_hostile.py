"""Input that means harm, over bare connections and clients."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator

import pytest

from tests.answers import ROUTES
from tests.api.conftest import Api
from tests.api.deployed import deployed

pytestmark = pytest.mark.section("4")

HEAD = "POST /v3/sandboxes HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"


def code(answer: bytes) -> tuple[int, str]:
    """Status and error code of a raw answer."""
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), str(json.loads(body)["error"]["code"])


@pytest.fixture
def environment() -> dict[str, str]:
    return {
        "HUTCH_SERVER__MAX_HEADER_BYTES": "8192",
        "HUTCH_SERVER__MAX_CONNECTIONS": "32",
        "HUTCH_SERVER__HEADER_TIMEOUT_S": "2",
    }


async def test_oversized_heads_are_431_however_they_come(api: Api) -> None:
    big = b"a" * 9000
    heads = [
        b"GET /" + big + b" HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nx-big: " + big + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\n" + b"x-n: 1234567890\r\n" * 1000 + b"\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\n" + big + b": x\r\n\r\n",
    ]
    for head in heads:
        assert code(await api.raw(head)) == (431, "header_too_large")


async def test_a_header_without_an_end_is_431_before_it_fills_memory(api: Api) -> None:
    reader, writer = await asyncio.open_connection(*api.url.removeprefix("http://").split(":"))
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\nx-endless: ")
    sent = 0
    try:
        while not reader.at_eof() and sent < 64 * 1024 * 1024:
            writer.write(b"a" * 65_536)
            sent += 65_536
            await writer.drain()
            await asyncio.sleep(0)
    except ConnectionError:
        pass
    assert sent < 16 * 1024 * 1024
    writer.close()


async def test_a_head_within_the_limit_passes_also_in_single_bytes(api: Api) -> None:
    request = b"GET /healthz HTTP/1.1\r\nhost: x\r\nx-pad: " + b"p" * 2000 + b"\r\nconnection: close\r\n\r\n"
    reader, writer = await asyncio.open_connection(*api.url.removeprefix("http://").split(":"))
    for position in range(0, len(request), 7):
        writer.write(request[position : position + 7])
        await writer.drain()
    assert (await reader.read()).startswith(b"HTTP/1.1 200")
    writer.close()


async def test_a_large_body_does_not_count_as_head_on_a_kept_connection(api: Api) -> None:
    body = json.dumps({"name": "x", "pad": "y" * 100_000})
    for _ in range(3):
        assert (await api.http.post("/v3/sandboxes", content=body)).status_code in (200, 409)


async def test_a_head_that_does_not_come_is_closed(api: Api) -> None:
    assert await api.raw(b"") == b""
    assert await api.raw(b"GET / HTTP/1.1\r\nhost: x\r\n") == b""


@pytest.mark.parametrize(
    "junk",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 200,
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
    ],
)
async def test_what_is_not_http_is_400(api: Api, junk: bytes) -> None:
    answer = await api.raw(junk)
    assert code(answer) == (400, "bad_request"), answer


async def test_connections_above_the_limit_are_503_and_go_on_when_others_leave(api: Api) -> None:
    held = [await asyncio.open_connection(*api.url.removeprefix("http://").split(":")) for _ in range(40)]
    answer = await api.raw(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
    assert code(answer) == (503, "too_many_connections")
    assert b"retry-after: 1" in answer
    for _, writer in held:
        writer.close()
        await writer.wait_closed()
    async with asyncio.timeout(10):
        while not (await api.raw(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")).startswith(b"HTTP/1.1 200"):
            pass


async def test_oversized_bodies_are_413_by_their_length_and_by_their_bytes(api: Api) -> None:
    limit = api.services.settings.server.max_body_bytes
    auth = f"authorization: Bearer {api.own.token}\r\n"
    declared = await api.raw((HEAD + auth + f"content-length: {limit + 1}\r\n\r\n").encode())
    assert code(declared) == (413, "payload_too_large")
    huge = await api.raw((HEAD + auth + "content-length: 99999999999999999999\r\n\r\n").encode())
    assert huge.startswith((b"HTTP/1.1 400", b"HTTP/1.1 413"))

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(limit // 65_536 + 2):
            yield b" " * 65_536

    response = await api.http.post("/v3/sandboxes", content=chunks())
    assert (response.status_code, response.json()["error"]["code"]) == (413, "payload_too_large")


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"nul",
        b"[]",
        b"1",
        b'"x"',
        b"\xff\xfe",
        b'{"name": "\xff"}',
        b'{"name": "\\ud800"}',
        b'{"name": "a\\u0000"}',
        b"[" * 500_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b'{"networkPolicy":' + b'{"allow":' * 5_000 + b"1" + b"}" * 5_001,
        b'{"name": 1e999}',
        b"{}{}",
        b'{"tags": {"' + b"k" * 300 + b'": "v"}}',
        b'{"env": [1]}',
        b"NaN",
        b"\x00",
    ],
)
async def test_bodies_that_are_no_objects_are_400(api: Api, body: bytes) -> None:
    response = await api.http.post("/v3/sandboxes", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400, response.text[:500]
    assert response.json()["error"]["code"] == "bad_request"
    assert len(response.json()["error"]["message"]) < 1000
    assert api.host.sessions == {}


AMBIGUOUS = {
    "a name twice": b'{"x": 1, "x": 1}',
    "a name twice, once escaped": b'{"x": 1, "\\u0078": 1}',
    "a name twice below": b'{"x": [{"y": {"z": 1, "z": 2}}]}',
    "NaN": b'{"x": NaN}',
    "Infinity": b'{"x": [-Infinity]}',
    "a number that no double holds": b'{"x": 1e400}',
    "a negative one": b'{"x": -1.0e+999}',
    "an integer of more than 64 bits": b'{"x": 9223372036854775808}',
    "a negative one of more than 64 bits": b'{"x": -9223372036854775809}',
    "an integer of many digits": b'{"x": ' + b"9" * 50_000 + b"}",
    "half of a surrogate pair": b'{"x": "\\ud800"}',
    "half of one as a name": b'{"\\uDC00": 1}',
    "halves in the wrong order": b'{"x": "\\udc00\\ud800"}',
    "half of one in UTF-8": b'{"x": "\xed\xa0\x80"}',
    "nested objects": b'{"x":' * 5_000 + b"1" + b"}" * 5_000,
    "nested arrays": b'{"x":' + b"[" * 5_000 + b"]" * 5_000 + b"}",
    "two values": b"{} {}",
    "a byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": '{"x": 1}'.encode("utf-16"),
    "a comment": b'{"x": 1 /* */}',
    "a comma too many": b'{"x": 1,}',
}
"""Objects that one parser takes and another one does not, or takes for something else. No endpoint knows `x`."""


REFUSALS = ("bad_request", "invalid_network_policy", -32600)
"""The last one is that of JSON-RPC."""


async def test_no_endpoint_takes_json_that_parsers_differ_about(api: Api) -> None:
    created = await api.create(name="one")
    session = created["session"]["id"]
    command = (await api.http.post(f"/v2/sandboxes/sessions/{session}/cmd", json={"command": "cat", "attachStdin": True})).json()
    invited = {"identity": "ada@example.com", "role": "viewer"}
    member = (await api.http.post(f"/hutch/v1/teams/{api.own.team_id}/members", json=invited)).json()
    values = {
        "name": "one",
        "session_id": session,
        "command_id": command["command"]["id"],
        "drive": "disk",
        "registry": "registry.test",
        "team": api.own.team_id,
        "project": api.own.project_id,
        "member_id": member["id"],
        "worker_id": await deployed(api, lambda job: {"status": "success"}),
        "key": "press",
        "webhook": "plain",
        "sync": "none",
        "database": "none",
        "view": "none",
        "tool": "ask",
        "run_id": "none",
        "job_id": "none",
        "button": "none",
    }
    assert (await api.http.post("/v2/sandboxes/drives/disk")).status_code == 201
    bodies = [route for route in ROUTES if route.documentation.body is not None or route.name == "stop_session"]
    asked = [(method, route.path_format.format(**values)) for route in bodies for method in route.methods or ()]
    # The vendor's first API reads a create's body before all others do.
    asked += [("POST", "/v1/sandboxes"), ("POST", f"/v1/sandboxes/{session}/cmd")]
    assert len(asked) > 25
    # Everything where bodies are read in ways of their own, something everywhere.
    some = [one for one in asked if one[1] in ("/v1/sandboxes", "/v2/sandboxes", f"/v2/sandboxes/sessions/{session}/cmd")]
    some += [("POST", f"/v2/sandboxes/sessions/{session}/network-policy")]
    before = len(api.host.sessions)
    everywhere = [(name, AMBIGUOUS[name]) for name in ("a name twice", "NaN")]
    wrong = []
    for (name, body), (method, path) in (*itertools.product(everywhere, asked), *itertools.product(AMBIGUOUS.items(), some)):
        answer = await api.http.request(method, path, content=body, headers={"content-type": "application/json"})
        code = answer.json().get("error", {}).get("code")
        if answer.status_code != 400 or code not in REFUSALS or len(answer.text) > 1000:
            wrong.append(f"{name}: {method} {path}: {answer.status_code} {answer.text[:300]}")
    assert not wrong, "\n".join(wrong)
    assert len(api.host.sessions) == before


async def test_what_is_wrong_with_json_is_said(api: Api) -> None:
    said = {}
    for name in ("a name twice", "NaN", "a number that no double holds", "an integer of more than 64 bits"):
        said[name] = (await api.http.post("/v3/sandboxes", content=AMBIGUOUS[name])).json()["error"]["message"]
    assert said == {
        "a name twice": "Invalid request: the body has the name 'x' more than once in an object.",
        "NaN": "Invalid request: the body has NaN, which is no JSON.",
        "a number that no double holds": "Invalid request: the body has the number 1e400, which is too large.",
        "an integer of more than 64 bits": "Invalid request: the body has the integer 9223372036854775808, "
        "which 64 bits don't hold.",
    }


async def test_json_that_is_unusual_but_clear_is_taken(api: Api) -> None:
    for body in (
        b' {"name":"a", "x": [9223372036854775807, -9223372036854775808, 1.7976931348623157e308, 1e-400, -0.0, -0]}\n',
        b'{"n\\u0061me":"b","x":"\\ud83d\\ude00", "y": {"name": {"name": 1}}, "": {"": 1}}',
        b'{"name":"c","x":' + b"[" * 100 + b"]" * 100 + b"}",
        b'{"name":"d","timeout":60000.0,"ports":[3e3]}',
    ):
        answer = await api.http.post("/v3/sandboxes", content=body)
        assert answer.status_code == 200, answer.text


async def test_a_number_that_is_no_integer_is_none(api: Api) -> None:
    for timeout in (b"60000.5", b"1e300", b'"60000"', b"true"):
        answer = await api.http.post("/v3/sandboxes", content=b'{"timeout":' + timeout + b"}")
        assert answer.json()["error"]["message"] == "Invalid request: `timeout` should be integer.", timeout


async def test_405_names_every_method_of_the_path(api: Api) -> None:
    for path, allowed in (
        ("/v2/sandboxes/one", "DELETE, GET, PATCH"),
        ("/api/v3/sandboxes", "GET, POST"),
        ("/v2/sandboxes/drives", "GET"),
        ("/hutch/v1/credentials/one", "DELETE, PUT"),
    ):
        answer = await api.http.options(path)
        assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
    for collection in ("drives", "sessions", "snapshots"):
        assert (await api.http.delete(f"/v2/sandboxes/{collection}")).status_code == 405


async def test_unknown_and_private_fields_are_ignored(api: Api) -> None:
    body = {"__interactive": True, "newThing": {"a": [1]}, "name": "ok", "source": None, "tags": None}
    assert (await api.http.post("/v3/sandboxes", json=body)).status_code == 200


async def test_a_body_needs_no_json_content_type_and_may_be_gone(api: Api) -> None:
    assert (
        await api.http.post("/v3/sandboxes", content=b'{"name":"a"}', headers={"content-type": "text/plain"})
    ).status_code == 200
    assert (await api.http.post("/v3/sandboxes", headers={"content-type": "application/json"})).status_code == 200


async def test_repeated_and_strange_query_parameters_do_not_confuse_the_scope(api: Api) -> None:
    mine, theirs = await api.tenant("mine"), await api.tenant("theirs")
    await api.create(theirs.http, name="box")
    for query in (
        f"teamId={mine.team_id}&teamId={theirs.team_id}",
        f"teamId={theirs.team_id}&teamId={mine.team_id}",
        f"slug=theirs&teamId={mine.team_id}",
        f"projectId={theirs.project_id}",
        f"project={theirs.project_id}",
        "teamId=%ff%fe",
        "&&&=&=x",
    ):
        response = await mine.http.get(f"/v2/sandboxes/box?{query}")
        assert response.status_code in (403, 404), (query, response.text)


async def test_a_flood_of_bad_requests_leaves_the_server_answering(api: Api) -> None:
    few = asyncio.Semaphore(16)

    async def one(number: int) -> int:
        async with few:
            response = await api.http.post(f"/v2/sandboxes/sessions/sbx_{number}/cmd", content=b"[" * 1000)
        return response.status_code

    statuses = await asyncio.gather(*(one(number) for number in range(300)))
    assert set(statuses) == {404}
    assert (await api.http.get("/healthz")).status_code == 200

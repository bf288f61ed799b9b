"""Input that means harm, over bare connections and clients."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from hutch.api import http_protocol
from tests.api.conftest import Api

HEAD = "POST /v3/sandboxes HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"


def code(answer: bytes) -> tuple[int, str]:
    """Status and error code of a raw answer."""
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), str(json.loads(body)["error"]["code"])


@pytest.fixture
def environment() -> dict[str, str]:
    return {"HUTCH_SERVER__MAX_HEADER_BYTES": "8192", "HUTCH_SERVER__MAX_CONNECTIONS": "32"}


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


async def test_a_head_that_does_not_come_is_closed(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_TIMEOUT_S", 0.05)
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

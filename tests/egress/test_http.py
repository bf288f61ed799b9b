"""HTTP inside intercepted flows: what is a request, whose is it, and what goes upstream (`egress.md` T51-T74).

Every case says four things: what the client saw, what the origin saw, what the audit says, and that the canary was nowhere
but at the origin (the fixture `sealed`). Payloads are bytes; no client would send most of them.
"""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import pytest

from hutch.errors import HutchError
from tests.egress.world import API, CANARY, EVIL, SHARED, Guest, World

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("sealed")]

INJECT = {"transform": [{"headers": {"authorization": f"Bearer {CANARY}"}}]}
REFUSE = {"response": {"statusCode": 403}}
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
HOST = b"Host: api.test\r\n"


async def ask(guest: Guest, *payloads: bytes, address: str = API, name: str = "api.test") -> list[dict[str, Any]]:
    """The first response to each payload, each sent on a connection of its own, one after the other."""
    sent = json.dumps([base64.b64encode(payload).decode() for payload in payloads])
    ran = await guest.python("say(each(sys.argv[1], sys.argv[2], json.loads(sys.argv[3])))", address, name, sent)
    answers: list[dict[str, Any]] = ran.json()
    return answers


def values(request: dict[str, Any], name: str) -> list[str]:
    """The values of a header of a request that an origin noted."""
    return [value for key, value in request["headers"] if key == name]


def get(target: str = "/", *lines: str, method: str = "GET", version: str = "HTTP/1.1") -> bytes:
    text = "".join(f"{line}\r\n" for line in ("Host: api.test", *lines))
    return f"{method} {target} {version}\r\n{text}\r\n".encode("latin-1")


# -- every parser's mistakes -------------------------------------------------------------------------------------------

BAD, MISMATCH, INVALID, METHOD = (
    (400, "protocol_violation"),
    (421, "name_mismatch"),
    (400, "name_invalid"),
    (405, "method_deny"),
)
POST = b"POST /p HTTP/1.1\r\n" + HOST

REFUSED: dict[str, tuple[bytes, tuple[int, str]]] = {
    # Whose request is it (T51)?
    "absolute, other host": (b"GET https://evil.test/x HTTP/1.1\r\n" + HOST, MISMATCH),
    "absolute, other scheme": (b"GET http://api.test/x HTTP/1.1\r\n" + HOST, MISMATCH),
    "absolute, other port": (b"GET https://api.test:8443/x HTTP/1.1\r\n" + HOST, MISMATCH),
    "absolute, user": (b"GET https://api.test@evil.test/x HTTP/1.1\r\n" + HOST, INVALID),
    "absolute, own user": (b"GET https://evil.test@api.test/x HTTP/1.1\r\n" + HOST, INVALID),
    "absolute, host of another": (b"GET https://api.test/x HTTP/1.1\r\nHost: evil.test\r\n", MISMATCH),
    "absolute, backslash": (b"GET https://api.test\\@evil.test/x HTTP/1.1\r\n" + HOST, INVALID),
    "authority form": (b"GET evil.test:443 HTTP/1.1\r\n" + HOST, BAD),
    "relative target": (b"GET x HTTP/1.1\r\n" + HOST, BAD),
    # Hosts (T52).
    "second host": (b"GET / HTTP/1.1\r\n" + HOST + b"Host: evil.test\r\n", BAD),
    "same host twice": (b"GET / HTTP/1.1\r\n" + HOST + HOST, BAD),
    "no host": (b"GET / HTTP/1.1\r\n", BAD),
    "empty host": (b"GET / HTTP/1.1\r\nHost:\r\n", INVALID),
    "list of hosts": (b"GET / HTTP/1.1\r\nHost: api.test, evil.test\r\n", INVALID),
    "host with user": (b"GET / HTTP/1.1\r\nHost: api.test@evil.test\r\n", INVALID),
    "host with port": (b"GET / HTTP/1.1\r\nHost: api.test:80\r\n", MISMATCH),
    "host with empty port": (b"GET / HTTP/1.1\r\nHost: api.test:\r\n", INVALID),
    "host with path": (b"GET / HTTP/1.1\r\nHost: api.test/x\r\n", INVALID),
    "host with tab": (b"GET / HTTP/1.1\r\nHost: api.test\tevil.test\r\n", INVALID),
    "host with NUL": (b"GET / HTTP/1.1\r\nHost: api.test\0.evil.test\r\n", BAD),
    "host in brackets": (b"GET / HTTP/1.1\r\nHost: [api.test]\r\n", INVALID),
    "host percent encoded": (b"GET / HTTP/1.1\r\nHost: %61pi.test\r\n", INVALID),
    "host with two dots": (b"GET / HTTP/1.1\r\nHost: api.test..\r\n", INVALID),
    "host of another": (b"GET / HTTP/1.1\r\nHost: evil.test\r\n", MISMATCH),
    "host below": (b"GET / HTTP/1.1\r\nHost: x.api.test\r\n", MISMATCH),
    "host is the address": (b"GET / HTTP/1.1\r\nHost: 198.51.100.8\r\n", MISMATCH),
    "host is not ASCII": (b"GET / HTTP/1.1\r\nHost: \xd0\xb0pi.test\r\n", INVALID),
    # Framing (T54).
    "CL and TE": (POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", BAD),
    "TE and CL": (POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", BAD),
    "CL twice": (POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nabc", BAD),
    "CL twice the same": (POST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nab", BAD),
    "CL list": (POST + b"Content-Length: 2, 2\r\n\r\nab", BAD),
    "CL plus": (POST + b"Content-Length: +2\r\n\r\nab", BAD),
    "CL hexadecimal": (POST + b"Content-Length: 0x2\r\n\r\nab", BAD),
    "CL negative": (POST + b"Content-Length: -2\r\n\r\nab", BAD),
    "CL octal": (POST + b"Content-Length: 02\r\n\r\nab", BAD),
    "CL blank": (POST + b"Content-Length: 2 2\r\n\r\nab", BAD),
    "CL beyond": (POST + b"Content-Length: 18446744073709551617\r\n\r\na", BAD),
    "CL empty": (POST + b"Content-Length:\r\n\r\n", BAD),
    "TE other": (POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", BAD),
    "TE list": (POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", BAD),
    "TE gzip": (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", BAD),
    "TE vertical tab": (POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", BAD),
    "TE twice": (POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", BAD),
    "TE identity": (POST + b"Transfer-Encoding: identity\r\n\r\n", BAD),
    "TE blank before colon": (POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", BAD),
    "TE quoted": (POST + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n', BAD),
    "TE in HTTP/1.0": (POST.replace(b"/1.1", b"/1.0") + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", BAD),
    # Lines (T55).
    "obs-fold": (b"GET / HTTP/1.1\r\n" + HOST + b"X-A: 1\r\n 2\r\n", BAD),
    "obs-fold host": (b"GET / HTTP/1.1\r\nHost: api.test\r\n evil.test\r\n", BAD),
    "bare LF": (b"GET / HTTP/1.1\nHost: api.test\n\n", BAD),
    "one bare LF": (b"GET / HTTP/1.1\r\n" + HOST + b"X-A: 1\nX-B: 2\r\n", BAD),
    "bare CR": (b"GET / HTTP/1.1\r\n" + HOST + b"X-A: 1\rAuthorization: x\r\n", BAD),
    "leading CRLF": (b"\r\nGET / HTTP/1.1\r\n" + HOST, BAD),
    "blank before colon": (b"GET / HTTP/1.1\r\n" + HOST + b"X-A : 1\r\n", BAD),
    "blank before the first": (b"GET / HTTP/1.1\r\n " + HOST, BAD),
    "NUL in value": (b"GET / HTTP/1.1\r\n" + HOST + b"X-A: a\0b\r\n", BAD),
    "NUL in name": (b"GET / HTTP/1.1\r\n" + HOST + b"Authorization\0: a\r\n", BAD),
    "name not ASCII": (b"GET / HTTP/1.1\r\n" + HOST + b"X-\xe9: a\r\n", BAD),
    "no colon": (b"GET / HTTP/1.1\r\n" + HOST + b"X-A\r\n", BAD),
    "no name": (b"GET / HTTP/1.1\r\n" + HOST + b": x\r\n", BAD),
    "control in target": (b"GET /\x01 HTTP/1.1\r\n" + HOST, BAD),
    "two blanks": (b"GET  / HTTP/1.1\r\n" + HOST, BAD),
    "tab for blank": (b"GET\t/ HTTP/1.1\r\n" + HOST, BAD),
    "too many fields": (b"GET / HTTP/1.1\r\n" + HOST + b"X: 1\r\n" * 128, BAD),
    "long field": (b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 16400 + b"\r\n", BAD),
    "long target": (b"GET /" + b"a" * 16400 + b" HTTP/1.1\r\n" + HOST, BAD),
    # Versions.
    "HTTP/0.9": (b"GET /\r\n", BAD),
    "HTTP/1.2": (b"GET / HTTP/1.2\r\n" + HOST, BAD),
    "HTTP/2.0": (b"GET / HTTP/2.0\r\n" + HOST, BAD),
    "lower-case version": (b"GET / http/1.1\r\n" + HOST, BAD),
    "preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", BAD),
    # Methods (T61, T62).
    "CONNECT": (b"CONNECT evil.test:443 HTTP/1.1\r\nHost: evil.test:443\r\n", METHOD),
    "CONNECT own": (b"CONNECT api.test:443 HTTP/1.1\r\nHost: api.test:443\r\n", METHOD),
    "connect": (b"connect api.test:443 HTTP/1.1\r\n" + HOST, METHOD),
    "TRACE": (b"TRACE / HTTP/1.1\r\n" + HOST + b"Max-Forwards: 0\r\n", METHOD),
    "Track": (b"Track / HTTP/1.1\r\n" + HOST, METHOD),
    "GET *": (b"GET * HTTP/1.1\r\n" + HOST, BAD),
    # paths that no server reads as we do
    "path not ASCII": ("GET /ä HTTP/1.1\r\n".encode() + HOST, BAD),
    "fragment": (b"GET /#frag HTTP/1.1\r\n" + HOST, BAD),
}


def whole(payload: bytes) -> bytes:
    return payload if b"\r\n\r\n" in payload or b"\n\n" in payload else payload + b"\r\n"


@pytest.mark.defence("one-length")
@pytest.mark.defence("methods")
@pytest.mark.defence("one-host")
async def test_appendix_a_what_is_refused_reaches_nobody(outside: World) -> None:
    guest = await outside.guest({"allow": {"api.test": [INJECT]}})
    outside.origins.script("api.test", OK, whole=True)
    answers = await ask(guest, *(whole(payload) for payload, _ in REFUSED.values()))
    said = {name: (answer["status"], answer["reason"]) for name, answer in zip(REFUSED, answers, strict=True)}
    assert said == {name: expected for name, (_, expected) in REFUSED.items()}
    assert {answer["end"] for answer in answers} == {"closed"}, "what follows such a head cannot be trusted"
    assert outside.origins.seen().is_silent
    assert outside.origins.seen().questions == []
    await guest.audited(kind="http", decision="deny", path="/")
    records = await guest.audit(kind="http")
    assert [record["reason"] for record in records] == [reason for _, (_, reason) in REFUSED.values()]
    assert {(record["decision"], record["generation"], record["name"]) for record in records} == {("deny", 1, "api.test")}


FORWARDED: dict[str, tuple[bytes, str]] = {
    "absolute": (b"GET https://api.test/abs?q=1 HTTP/1.1\r\n" + HOST, "GET /abs?q=1"),
    "absolute without path": (b"GET https://api.test HTTP/1.1\r\n" + HOST, "GET /"),
    "absolute, upper case": (b"GET HTTPS://API.TEST:443/u HTTP/1.1\r\n" + HOST, "GET /u"),
    "host with dot": (b"GET /dot HTTP/1.1\r\nHost: api.test.\r\n", "GET /dot"),
    "host in upper case": (b"GET /case HTTP/1.1\r\nhOST: API.Test:443\r\n", "GET /case"),
    "own credentials": (b"GET / HTTP/1.1\r\n" + HOST + b"AUTHORIZATION: a\r\nauthorization: b\r\n", "GET /"),
    "nominated": (b"GET / HTTP/1.1\r\n" + HOST + b"Connection: keep-alive, Authorization, Host\r\n", "GET /"),
    "lower-case method": (b"get / HTTP/1.1\r\n" + HOST, "get /"),
    "own method": (b"M-SEARCH /m HTTP/1.1\r\n" + HOST, "M-SEARCH /m"),
    "OPTIONS *": (b"OPTIONS * HTTP/1.1\r\n" + HOST, "OPTIONS *"),
    "HTTP/1.0": (b"GET /old HTTP/1.0\r\n" + HOST, "GET /old"),
    "dots": (b"GET /a/../b HTTP/1.1\r\n" + HOST, "GET /a/../b"),
    "encoded dots": (b"GET /a/%2e%2E/b HTTP/1.1\r\n" + HOST, "GET /a/%2e%2E/b"),
    "slashes": (b"GET //evil.test//x HTTP/1.1\r\n" + HOST, "GET //evil.test//x"),
    "dots and semicolon": (b"GET /a/..;/b HTTP/1.1\r\n" + HOST, "GET /a/..;/b"),
    "backslash": (b"GET /a\\..\\b HTTP/1.1\r\n" + HOST, "GET /a\\..\\b"),
    "encoded NUL": (b"GET /%00 HTTP/1.1\r\n" + HOST, "GET /%00"),
    "URL in query": (b"GET /?u=https://evil.test/ HTTP/1.1\r\n" + HOST, "GET /?u=https://evil.test/"),
    "h2c": (
        b"GET / HTTP/1.1\r\n" + HOST + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
        "GET /",
    ),
    "hop by hop": (
        b"GET / HTTP/1.1\r\n" + HOST + b"Keep-Alive: 5\r\nProxy-Connection: close\r\nProxy-Authorization: x\r\nTE: gzip\r\n"
        b"Trailer: X\r\nVia: 1.1 x\r\nForwarded: for=1\r\nX-Forwarded-For: 1\r\nX_Forwarded_Host: evil\r\nMax-Forwards: 0\r\n"
        b"Vercel-Sandbox-Oidc-Token: x\r\nVercel-Forwarded-Host: x\r\nX-Hutch-Reason: x\r\nExpect: nothing\r\n",
        "GET /",
    ),
    "body": (POST + b"Content-Length: 4\r\n\r\nbody", "POST /p"),
    "empty body": (POST + b"Content-Length: 0\r\n\r\n", "POST /p"),
    "chunks": (
        POST + b"Transfer-Encoding: Chunked\r\n\r\n2;ext=1\r\nbo\r\n0002\r\ndy\r\n0\r\nAuthorization: x\r\nX-T: 1\r\n\r\n",
        "POST /p",
    ),
}
KNOWN = {"host", "authorization", "accept-encoding", "x-case", "content-length", "transfer-encoding"}


async def test_appendix_a_what_is_forwarded_is_built_anew(outside: World) -> None:
    guest = await outside.guest({"allow": {"api.test": [INJECT]}})
    outside.origins.script("api.test", OK, whole=True)
    tagged = [
        whole(payload).replace(b" HTTP/1.1\r\n", f" HTTP/1.1\r\nX-Case: {number}\r\n".encode(), 1)
        for number, (payload, _) in enumerate(FORWARDED.values())
    ]
    answers = await ask(guest, *tagged)
    seen = outside.origins.seen()
    assert [(answer["status"], answer["body"]) for answer in answers] == [(200, "ok")] * len(FORWARDED), answers
    assert [request["line"] for request in seen.requests] == [f"{line} HTTP/1.1" for _, line in FORWARDED.values()]
    for name, request in zip(FORWARDED, seen.requests, strict=True):
        assert values(request, "host") == ["api.test"], name
        assert values(request, "authorization") == [f"Bearer {CANARY}"], name
        assert values(request, "accept-encoding") == ["identity"], name
        assert {key for key, _ in request["headers"]} <= KNOWN, name
        assert request["length"] == (4 if name in ("body", "chunks") else 0), name
    assert seen.data.count(CANARY.encode()) == len(FORWARDED)
    records = [record for record in await guest.audit(kind="http") if record["decision"] == "inject"]
    assert {(record["reason"], record["generation"], record["status"]) for record in records} == {("inject", 1, 200)}
    assert {tuple(record["injected"]) for record in records} == {("authorization",)}


@pytest.mark.defence("whole-bodies")
async def test_t56_a_broken_chunk_is_no_end_of_a_request(outside: World) -> None:
    guest = await outside.guest({"allow": {"api.test": [INJECT]}})
    outside.origins.script("api.test", OK, whole=True)
    head = POST + b"Transfer-Encoding: chunked\r\n\r\n"
    bodies = [
        b"0x2\r\nab\r\n0\r\n\r\n",
        b"2\nab\r\n0\r\n\r\n",
        b"2\r\nab\n0\n\n",
        b"2\r\nabc\r\n0\r\n\r\n",
        b"00000000000000002\r\nab\r\n0\r\n\r\n",
        b"ffffffffffffffff\r\nab\r\n0\r\n\r\n",
        b"-2\r\nab\r\n0\r\n\r\n",
        b"2 \r\nab\r\n0\r\n\r\n",
        b"2;" + b"x" * 300 + b"\r\nab\r\n0\r\n\r\n",
        b"2\r\nab\r\n0\r\nContent-Length: 3\r\n\r\n",
        b"2\r\nab\r\n0\r\nX : 3\r\n\r\n",
        b"2\r\nab\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n",
    ]
    answers = await ask(guest, *(head + body for body in bodies))
    assert [(answer["status"], answer["end"]) for answer in answers] == [(None, "torn")] * len(bodies)
    assert outside.origins.seen().requests == [], "a request is complete only if its body is"
    assert not b"".join(outside.origins.seen().data.split(b"0\r\n\r\n")[1:])


# -- one connection, many requests -------------------------------------------------------------------------------------


@pytest.mark.defence("matchers")
async def test_t57_every_request_is_judged_alone(outside: World) -> None:
    rules = [{"match": {"path": {"exact": "/ok"}}, **INJECT}, REFUSE]
    guest = await outside.guest({"allow": {"api.test": rules}})
    outside.origins.script("api.test", OK, whole=True)
    program = """
    with tls(sys.argv[1], "api.test", alpn=["http/1.1"]) as stream:
        wire = Wire(stream)
        requests = [request("/ok"), request("/denied"), request("/ok", "Content-Length: 4", method="POST", body=b"body")]
        wire.send(b"".join((*requests, request("/ok"), request("/ok", host="evil.test"), request("/ok"))))
        answers = [wire.answer() for _ in range(6)]
        say([[answer["status"], answer["reason"], answer["end"]] for answer in answers])
    """
    ran = await guest.python(program, API)
    assert ran.json() == [
        [200, None, "open"],
        [403, None, "open"],
        [200, None, "open"],
        [200, None, "open"],
        [421, "name_mismatch", "closed"],
        [None, None, "closed"],
    ]
    assert [request["line"] for request in outside.origins.seen().requests] == [
        "GET /ok HTTP/1.1",
        "POST /ok HTTP/1.1",
        "GET /ok HTTP/1.1",
    ]
    records = await guest.audit(kind="http")
    assert [record["decision"] for record in records] == ["inject", "respond", "inject", "inject", "deny"]


async def test_t57_a_thousand_requests_on_one_connection(outside: World) -> None:
    guest = await outside.guest({"allow": {"api.test": [INJECT]}})
    outside.origins.script("api.test", OK, whole=True)
    program = """
    with tls(sys.argv[1], "api.test", alpn=["http/1.1"]) as stream:
        wire = Wire(stream)
        statuses = []
        for number in range(1000):
            wire.send(f"GET /{number} HTTP/1.1\\r\\nHost: api.test\\r\\n\\r\\n".encode())
            statuses.append(wire.answer()["status"])
        say(statuses == [200] * 1000)
    """
    assert (await guest.python(program, API)).json() is True
    seen = outside.origins.seen()
    assert sorted(request["line"] for request in seen.requests) == sorted(f"GET /{number} HTTP/1.1" for number in range(1000))
    assert len(seen.connections) <= 3, "a connection whose exchange is over is used again"


async def test_t58_a_body_that_is_cut_off_is_no_request(outside: World) -> None:
    guest = await outside.guest({"allow": {"api.test": [INJECT]}})
    outside.origins.script("api.test", OK, whole=True)
    program = """
    for framing, start in (("Content-Length: 100", b"0123456789"), ("Transfer-Encoding: chunked", b"a\\r\\n0123456789\\r\\n")):
        with tls(sys.argv[1], "api.test", alpn=["http/1.1"]) as stream:
            stream.sendall(f"POST /cut HTTP/1.1\\r\\nHost: api.test\\r\\n{framing}\\r\\n\\r\\n".encode() + start)
    with tls(sys.argv[1], "api.test", alpn=["http/1.1"]) as stream:
        wire = Wire(stream)
        wire.send(b"GET /next HTTP/1.1\\r\\nHost: api.test\\r\\n\\r\\n")
        say(wire.answer()["body"])
    """
    assert (await guest.python(program, API)).json() == "ok"
    assert [request["line"] for request in outside.origins.seen().requests] == ["GET /next HTTP/1.1"]


@pytest.mark.defence("whole-bodies")
async def test_t58_a_chunked_body_that_an_update_cuts_is_no_request(outside: World) -> None:
    """Also when the answer has begun, so that nobody waits for one any more."""
    guest = await outside.guest({"allow": {"api.test": [INJECT]}})
    program = """
    with tls(sys.argv[1], "api.test", alpn=["http/1.1"]) as stream:
        wire = Wire(stream)
        wire.send(request("/cut", "Transfer-Encoding: chunked", method="POST"))
        if sys.argv[2] == "answered":
            wire.until(b"early")
        wire.send(b"4\\r\\nhalf\\r\\n")
        while wire.more():
            pass
        say(wire.end)
    """
    early = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nearly\r\n"
    for number, state in enumerate(["waiting", "answered"] * 4, 1):
        outside.origins.script("api.test", early if state == "answered" else b"")
        running = asyncio.ensure_future(guest.python(program, API, state))
        await outside.origins.wait(lambda seen, count=number: seen.data.count(b"half") == count, "it did not arrive")  # type: ignore[misc]
        await guest.policy("deny-all")
        assert (await running).json() == "torn"
        await guest.policy({"allow": {"api.test": [INJECT]}})
    await outside.origins.wait(lambda seen: all(connection["ended"] for connection in seen.connections), "not all ended")
    assert b"0\r\n\r\n" not in outside.origins.seen().data, "half a request must not look like a whole one"


@pytest.mark.defence("early-answers")
async def test_t58_an_early_answer_is_read_before_the_end(outside: World) -> None:
    rules = [{"match": {"path": {"exact": "/denied"}}, **REFUSE}, INJECT]
    guest = await outside.guest({"allow": {"api.test": rules}})
    large = b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 5\r\nconnection: close\r\n\r\nlarge"
    # An origin that closed with our bytes unread would lose its own answer.
    outside.origins.script("api.test", large)
    program = """
    out = []
    for path in ("/up", "/denied"):
        with tls(sys.argv[1], "api.test", alpn=["http/1.1"]) as stream:
            wire = Wire(stream)
            wire.send(request(path, "Content-Length: 20000000", method="POST", body=bytes(8_000_000)))
            answer = wire.answer()
            out.append([answer["status"], answer["body"], answer["end"]])
    with tls(sys.argv[1], "api.test", alpn=["http/1.1"]) as stream:
        wire = Wire(stream)
        wire.send(b"GET /next HTTP/1.1\\r\\nHost: api.test\\r\\n\\r\\n")
        out.append(wire.answer()["status"])
    say(out)
    """
    assert (await guest.python(program, API)).json() == [[413, "large", "closed"], [403, "", "closed"], 413]
    connections = outside.origins.seen().connections
    assert len(connections) == 2, "a connection with half a body on it is not used again"
    assert b"/denied" not in outside.origins.seen().data
    assert connections[1]["data"].startswith(b"GET /next HTTP/1.1\r\n")


WEBSOCKET = (
    b"GET /ws HTTP/1.1\r\nHost: api.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
SWITCH = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %ACCEPT%\r\n\r\n"
)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (OK, 200),
        (b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n", 400),
        (SWITCH.replace(b"%ACCEPT%", b"wrong"), 502),
        (SWITCH.replace(b"Upgrade: websocket", b"Upgrade: other"), 502),
        (SWITCH.replace(b"Sec-WebSocket-Accept: %ACCEPT%\r\n", b""), 502),
    ],
    ids=["200", "400", "wrong accept", "other protocol", "no accept"],
)
@pytest.mark.defence("agreed-upgrades")
async def test_t59_nothing_follows_an_upgrade_that_was_not_agreed(outside: World, reply: bytes, expected: int) -> None:
    rules = [{"match": {"path": {"exact": "/ws"}}, **INJECT}, REFUSE]
    guest = await outside.guest({"allow": {"api.test": rules}})
    outside.origins.script("api.test", reply)
    program = """
    import base64
    with tls(sys.argv[1], "api.test", alpn=["http/1.1"]) as stream:
        wire = Wire(stream)
        wire.send(base64.b64decode(sys.argv[2]) + b"GET /admin HTTP/1.1\\r\\nHost: api.test\\r\\n\\r\\n")
        say([wire.answer()["status"], wire.answer()["status"]])
    """
    ran = await guest.python(program, API, base64.b64encode(WEBSOCKET).decode())
    assert ran.json() == [expected, 403], "the held bytes are a request of their own"
    data = outside.origins.seen().data
    assert b"/admin" not in data
    assert data.count(CANARY.encode()) == 1
    records = await guest.audit(kind="http")
    assert [(record["path"], record["decision"]) for record in records] == [("/ws", "inject"), ("/admin", "respond")]
    assert records[0].get("error") == ("upstream_protocol" if expected == 502 else None)


@pytest.mark.defence("websocket-only")
async def test_t59_only_a_websocket_is_upgraded(outside: World) -> None:
    guest = await outside.guest({"allow": {"api.test": [INJECT]}})
    outside.origins.script("api.test", SWITCH, then_echo=True)
    plain = get("/ws", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
    other = WEBSOCKET.replace(b"Upgrade: websocket", b"Upgrade: tls/1.0")
    posted = WEBSOCKET.replace(b"GET", b"POST")
    with_body = WEBSOCKET.replace(b"\r\n\r\n", b"\r\nContent-Length: 100\r\n\r\nhalf")
    unnominated = WEBSOCKET.replace(b"Connection: Upgrade\r\n", b"")
    answers = await ask(guest, plain, other, posted, with_body, unnominated)
    assert [(answer["status"], answer["reason"]) for answer in answers] == [(502, "upstream_protocol")] * 5
    # The first, second, third and last were not even asked as upgrades.
    assert outside.origins.seen().data.lower().count(b"upgrade: ") == 1


async def test_t59_a_websocket_echoes_also_what_came_right_behind(outside: World) -> None:
    guest = await outside.guest({"allow": {"api.test": [INJECT]}})
    outside.origins.script("api.test", SWITCH, then_echo=True)
    program = """
    import base64
    with tls(sys.argv[1], "api.test", alpn=["http/1.1"]) as stream:
        wire = Wire(stream)
        wire.send(base64.b64decode(sys.argv[2]) + b"\\x81\\x05early")
        head = wire.answer()
        early = wire.exactly(7)
        wire.send(b"\\x81\\x05later" * 1000)
        later = wire.exactly(7000)
        say([head["status"], dict(head["headers"]).get("upgrade"), early.decode("latin-1"), later == b"\\x81\\x05later" * 1000])
    """
    ran = await guest.python(program, API, base64.b64encode(WEBSOCKET).decode())
    assert ran.json() == [101, "websocket", "\x81\x05early", True]
    record = await guest.audited(kind="http", status=101)
    assert (record["decision"], record["up"], record["down"]) == ("inject", 7007, 7007)
    heads = outside.origins.seen().data.partition(b"\r\n\r\n")[0].lower()
    assert heads.count(b"upgrade: websocket") == heads.count(b"connection: upgrade") == heads.count(b"sec-websocket-key:") == 1


@pytest.mark.defence("cleartext-http2", "unnamed-flows")
async def test_t60_http2_in_the_clear_is_refused(outside: World) -> None:
    policy = {"allow": ["api.test"], "defaults": {"plaintextHttp": True}}
    guest = await outside.guest(policy)
    outside.origins.script(f"{API}:80", OK)
    preface = await guest.python("say(outcome(sys.argv[1], 80, b'PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n' + bytes(9)))", API)
    assert preface.json()["end"] == "ECONNRESET"
    upgrade = get("/", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk").decode()
    asked = await guest.python(f"say(outcome(sys.argv[1], 80, {upgrade!r}.encode()))", API)
    assert asked.json()["data"].startswith("HTTP/1.1 200 OK\r\n")
    data = outside.origins.seen().data.lower()
    assert data.startswith(b"get / http/1.1\r\n")
    assert b"upgrade" not in data
    assert b"http2-settings" not in data
    await guest.audited(kind="tcp", reason="protocol_violation")
    await guest.audited(kind="http", mode="plain", decision="allow")


@pytest.mark.defence("method-overrides")
async def test_t63_methods_are_what_they_are(outside: World) -> None:
    rules = [{"match": {"method": ["GET"]}, **INJECT}, REFUSE]
    guest = await outside.guest({"allow": {"api.test": rules}})
    outside.origins.script("api.test", OK, whole=True)
    overrides = ("X-HTTP-Method-Override: DELETE", "x_http_method: DELETE", "X-Method-Override: DELETE")
    answers = await ask(guest, get("/", *overrides), get(method="get"), get(method="Get"), get(method="GET\0"))
    assert [answer["status"] for answer in answers] == [200, 403, 403, 400]
    [request] = outside.origins.seen().requests
    assert {key for key, _ in request["headers"]} == {"host", "authorization", "accept-encoding"}


# T64: path, and which of the three rules match it; None: ambiguous, so refused whatever the rule.
EXACT, PREFIX, REGEX = "exact", "startsWith", "regex"
ALL = {EXACT, PREFIX, REGEX}
MATCHERS = {EXACT: "/public/x", PREFIX: "/public/", REGEX: "^/public/[a-z]+$"}
PATHS: dict[str, set[str] | None] = {
    "/public/x": ALL,
    "/public/%78": ALL,
    "/p%75blic/x": ALL,
    "/public/x?y": ALL,
    "/public/x?../../admin": ALL,
    "/public/": {PREFIX},
    "/public/X": {PREFIX},
    "/public/x/": {PREFIX},
    "/public/x.": {PREFIX},
    "/public/x%20": {PREFIX},
    "/public/x%3fy": {PREFIX},
    "/public/x%23y": {PREFIX},
    "/public/x;y": {PREFIX},
    "/public/...": {PREFIX},
    "/public/%c3%a9": {PREFIX},
    "/public": set(),
    "/PUBLIC/x": set(),
    "/public;a/x": set(),
    "/publicx": set(),
    "/": set(),
    "/public/../x": None,
    "/public/%2e%2e/x": None,
    "/public/.%2E/x": None,
    "/public/..%2fx": None,
    "/public/./x": None,
    "/public/%2e/x": None,
    "/public//x": None,
    "//public/x": None,
    "/public/..;/x": None,
    "/public/..;a=b/x": None,
    "/public/.;/x": None,
    "/public\\x": None,
    "/public/..\\x": None,
    "/public/%5cx": None,
    "/public/x%00": None,
    "/public/%252e%252e/x": None,
    "/public/%252fx": None,
    "/public/%25%32%65/x": None,
    "/public/%c0%ae%c0%ae/x": None,
    "/public/%e0%80%ae/x": None,
    "/public/%ff": None,
    "/public/x#y": None,
    "/public/x%": None,
    "/public/x%zz": None,
    "/public/%u002e/x": None,
    "/public%2fx": None,
    "/public/x%0d%0aHost:%20evil.test": None,
    "/public/x%7f": None,
    "/public/x/..": None,
    "/public/x/%2e%2e": None,
    "/%2e%2e/public/x": None,
}


@pytest.mark.parametrize("kind", [EXACT, PREFIX, REGEX])
@pytest.mark.defence("one-path")
async def test_t64_a_path_has_one_reading_or_none(outside: World, kind: str) -> None:
    rules = [{"match": {"path": {kind: MATCHERS[kind]}}, **INJECT}, REFUSE]
    guest = await outside.guest({"allow": {"api.test": rules}})
    outside.origins.script("api.test", OK, whole=True)
    answers = await ask(guest, *(get(path) for path in PATHS), get("*", method="OPTIONS"))
    expected = [400 if fits is None else 200 if kind in fits else 403 for fits in PATHS.values()] + [400]
    assert dict(zip(PATHS, [answer["status"] for answer in answers], strict=False)) == dict(zip(PATHS, expected, strict=False))
    assert answers[-1]["status"] == 400
    assert {answer["reason"] for answer in answers if answer["status"] == 400} == {"ambiguous_path"}
    # The bytes on the wire are those of the client.
    passed = [path for path, fits in PATHS.items() if fits is not None and kind in fits]
    assert [request["line"] for request in outside.origins.seen().requests] == [f"GET {path} HTTP/1.1" for path in passed]
    reasons = [record["reason"] for record in await guest.audit(kind="http")]
    assert reasons == [{400: "ambiguous_path", 200: "inject", 403: "respond"}[status] for status in expected]


@pytest.mark.defence("one-path")
async def test_t64_one_ambiguity_can_be_allowed(outside: World) -> None:
    rules = [
        {"match": {"path": {"startsWith": "/bucket/"}}, "allowEncodedSlash": True, **INJECT},
        {"match": {"path": {"startsWith": "/empty/"}}, "allowEmptySegments": True, **INJECT},
        REFUSE,
    ]
    guest = await outside.guest({"allow": {"api.test": rules}})
    outside.origins.script("api.test", OK, whole=True)
    targets = ("/bucket/a%2fb", "/bucket/a//b", "/bucket/..%2fb", "/empty/a//b", "/empty/a%2fb", "/empty//../b")
    answers = await ask(guest, *(get(target) for target in targets))
    assert [answer["status"] for answer in answers] == [200, 400, 400, 200, 400, 400]
    lines = [request["line"] for request in outside.origins.seen().requests]
    assert lines == ["GET /bucket/a%2fb HTTP/1.1", "GET /empty/a//b HTTP/1.1"]


async def test_t65_a_prefix_is_bytes(outside: World) -> None:
    rules = [{"match": {"path": {"startsWith": "/v1"}}, **INJECT}, REFUSE]
    guest = await outside.guest({"allow": {"api.test": rules}})
    outside.origins.script("api.test", OK, whole=True)
    answers = await ask(guest, *(get(target) for target in ("/v1", "/v1/x", "/v10", "/v1-admin", "/V1")))
    assert [answer["status"] for answer in answers] == [200, 200, 200, 200, 403]


async def test_t66_regular_expressions_take_linear_time(outside: World) -> None:
    rules = [{"match": {"headers": [{"key": {"exact": "x-a"}, "value": {"regex": "(a+)+$"}}]}, **INJECT}, REFUSE]
    guest = await outside.guest({"allow": {"api.test": rules}})
    outside.origins.script("api.test", OK, whole=True)
    long = "a" * 16000
    program = """
    began = time.monotonic()
    with tls(sys.argv[1], "api.test", alpn=["http/1.1"]) as stream:
        wire = Wire(stream)
        for end in "!", "":
            wire.send(f"GET / HTTP/1.1\\r\\nHost: api.test\\r\\nX-A: {'a' * 16000}{end}\\r\\n\\r\\n".encode())
            print(wire.answer()["status"])
    print(time.monotonic() - began < 1)
    """
    assert (await guest.python(program, API)).out.split() == ["403", "200", "True"]
    assert values(outside.origins.seen().requests[0], "x-a") == [long]
    for unsupported in (r"(a)\1", "(?=a)", "a{100000}", "(?<n"):
        with pytest.raises(HutchError):
            await guest.policy({"allow": {"api.test": [{"match": {"path": {"regex": unsupported}}, **INJECT}]}})
    assert (await ask(guest, get("/", "X-A: a")))[0]["status"] == 200, "the old policy stays"


QUERIES: dict[str, tuple[bool, bool]] = {
    # Whether a rule matches, and whether it does where repeating is not allowed.
    "/?k=yes": (True, True),
    "/?%6b=%79es": (True, True),
    "/?a=1&k=yes": (True, True),
    "/?k=yes&b": (True, True),
    "/?&&k=yes": (True, True),
    "/?k=no&k=yes": (True, False),
    "/?k=yes&k=no": (True, False),
    "/?k=yes&%6B=no": (True, False),
    "/?K=yes": (False, False),
    "/?k=YES": (False, False),
    "/?k=yes;a=1": (False, False),
    "/?a=1;k=yes": (False, False),
    "/?k=+yes": (False, False),
    "/?k[]=yes": (False, False),
    "/?a=1%26k=yes": (False, False),
    "/?k": (False, False),
    "/?=yes": (False, False),
    "/?k=yes%00": (False, False),
    "/?" + "&".join(["a=1"] * 4000): (False, False),
}


@pytest.mark.parametrize("strict", [False, True], ids=["pass", "deny"])
@pytest.mark.defence("once-only")
async def test_t67_queries_are_read_once_and_sent_as_they_were(outside: World, strict: bool) -> None:
    rules = [{"match": {"queryString": [{"key": {"exact": "k"}, "value": {"exact": "yes"}}]}, **INJECT}]
    policy: dict[str, Any] = {"allow": {"api.test": rules}}
    if strict:
        policy["defaults"] = {"unmatched": "deny"}
    guest = await outside.guest(policy)
    outside.origins.script("api.test", OK, whole=True)
    answers = await ask(guest, *(get(target) for target in QUERIES))
    seen = outside.origins.seen().requests
    injected = {request["line"].split(" ")[1] for request in seen if values(request, "authorization")}
    assert injected == {target for target, fits in QUERIES.items() if fits[strict]}
    assert [answer["status"] for answer in answers] == [403 if strict and not fits[1] else 200 for fits in QUERIES.values()]
    passed = [target for target, fits in QUERIES.items() if fits[1] or not strict]
    assert [request["line"] for request in seen] == [f"GET {target} HTTP/1.1" for target in passed]
    reasons = {record["reason"] for record in await guest.audit(kind="http")}
    assert reasons == {"inject", "unmatched" if strict else "pass_unmatched"}


@pytest.mark.defence("whole-pairs")
async def test_t68_key_and_value_are_those_of_one_header(outside: World) -> None:
    rules = [{"match": {"headers": [{"key": {"exact": "X-Mode"}, "value": {"exact": "write"}}]}, **INJECT}, REFUSE]
    guest = await outside.guest({"allow": {"api.test": rules}})
    outside.origins.script("api.test", OK, whole=True)
    cases = {
        ("x-mode: write",): 200,
        ("X-MODE:  write ",): 200,
        ("X-Mode: read", "X-Mode: write"): 200,
        ("X-Mode: read",): 403,
        ("X-Other: write",): 403,
        ("X-Mode: read", "X-Other: write"): 403,
        ("X-Mode: read, write",): 403,
        ("X-Mode: Write",): 403,
        # What does not go on is not looked at.
        ("X-Mode: write", "Connection: X-Mode"): 403,
    }
    answers = await ask(guest, *(get("/", *lines) for lines in cases))
    assert [answer["status"] for answer in answers] == list(cases.values())
    assert len(outside.origins.seen().requests) == 3


@pytest.mark.defence("spellings")
@pytest.mark.section("14.2")
async def test_t69_every_spelling_of_an_injected_name_is_replaced(outside: World) -> None:
    guest = await outside.guest({"allow": {"api.test": [{"transform": [{"headers": {"X-Api-Key": CANARY}}]}]}})
    outside.origins.script("api.test", OK, whole=True)
    spellings = ("x-api-key", "X-API-KEY", "X_Api_Key", "x-api_KEY")
    lines = [f"{name}: mine" for name in spellings]
    await ask(guest, *(get("/", line) for line in lines), get("/", *lines), get("/", "X-Api-Key2: mine"))
    requests = outside.origins.seen().requests
    assert len(requests) == 6
    for request in requests:
        assert values(request, "x-api-key") == [CANARY]
        assert values(request, "x_api_key") == values(request, "x-api_key") == []
    assert b"mine" in outside.origins.seen().data, "another name is another header"
    assert outside.origins.seen().data.count(b"mine") == 1


@pytest.mark.parametrize(
    "nominated", ["Authorization", "authorization , x-hop", "close, Authorization", "Host", "X_Api_Key", "X-Hop"]
)
@pytest.mark.defence("nominated")
async def test_t70_nobody_nominates_what_is_injected(outside: World, nominated: str) -> None:
    headers = {"authorization": f"Bearer {CANARY}", "x-api-key": CANARY}
    guest = await outside.guest({"allow": {"api.test": [{"transform": [{"headers": headers}]}]}})
    outside.origins.script("api.test", OK, whole=True)
    answers = await ask(guest, get("/", f"Connection: {nominated}", "Authorization: mine", "X-Hop: 1"))
    assert answers[0]["status"] == 200
    [request] = outside.origins.seen().requests
    found = (values(request, "authorization"), values(request, "x-api-key"), values(request, "host"))
    assert found == ([f"Bearer {CANARY}"], [CANARY], ["api.test"])
    assert values(request, "connection") == []
    assert values(request, "x-hop") == ([] if "x-hop" in nominated.lower() else ["1"])


@pytest.mark.defence("host-is-name")
async def test_t71_interim_responses_and_expectations(outside: World) -> None:
    guest = await outside.guest({"allow": {"api.test": [INJECT]}})
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: %HEAD%\r\n\r\n".replace(b"%HEAD%", b"</a>")
    outside.origins.script("api.test", interim * 2 + OK, whole=True)
    program = """
    with tls(sys.argv[1], "api.test", alpn=["http/1.1"]) as stream:
        wire = Wire(stream)
        wire.send(b"POST / HTTP/1.1\\r\\nHost: api.test\\r\\nExpect: 100-continue\\r\\nContent-Length: 4\\r\\n\\r\\n")
        first = wire.answer()
        wire.send(b"body")
        final = wire.answer()
        print(first["status"], final["status"], final["body"])
        # Refused: the body is not asked for.
        wire = Wire(tls(sys.argv[1], "api.test", alpn=["http/1.1"]))
        wire.send(b"POST / HTTP/1.1\\r\\nHost: evil.test\\r\\nExpect: 100-continue\\r\\nContent-Length: 4\\r\\n\\r\\n")
        print(wire.answer()["status"])
    """
    assert (await guest.python(program, API)).out.split() == ["100", "200", "ok", "421"]
    [request] = outside.origins.seen().requests
    assert values(request, "expect") == []
    assert request["length"] == 4


# -- responses ---------------------------------------------------------------------------------------------------------

HUGE = b"x" * 300_000
BODY = b"upgrade: h2c\r\ntrailer: x\r\ncontent-length: 2\r\n\r\nok"
RESPONSES: dict[str, tuple[bytes, int | None, str]] = {
    "header splits the response": (b"HTTP/1.1 200 OK\r\nx-a: 1\rset-cookie: x\r\ncontent-length: 0\r\n\r\n", 502, ""),
    "folded": (b"HTTP/1.1 200 OK\r\nx-a: 1\r\n 2\r\ncontent-length: 0\r\n\r\n", 502, ""),
    "head too long": (b"HTTP/1.1 200 OK\r\nx-a: " + HUGE + b"\r\ncontent-length: 0\r\n\r\n", 502, ""),
    "too many fields": (b"HTTP/1.1 200 OK\r\n" + b"x-a: 1\r\n" * 200 + b"content-length: 0\r\n\r\n", 502, ""),
    "no status": (b"HTTP/1.1 OK\r\ncontent-length: 0\r\n\r\n", 502, ""),
    "status of four digits": (b"HTTP/1.1 2000 OK\r\ncontent-length: 0\r\n\r\n", 502, ""),
    "not HTTP": (b"SSH-2.0-OpenSSH_9.2p1\r\n\r\n", 502, ""),
    "two lengths": (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok!", 502, ""),
    "length is no number": (b"HTTP/1.1 200 OK\r\ncontent-length: +2\r\n\r\nok", 502, ""),
    "length and chunks": (
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        502,
        "",
    ),
    "chunks in chunks": (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        502,
        "",
    ),
    "other encoding": (b"HTTP/1.1 200 OK\r\ntransfer-encoding: identity\r\n\r\nok", 502, ""),
    "name with a blank": (b"HTTP/1.1 200 OK\r\nx a: 1\r\ncontent-length: 0\r\n\r\n", 502, ""),
    "plain": (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", 200, "ok"),
    "own reason": (b"HTTP/1.1 299 My own\r\ncontent-length: 2\r\n\r\nok", 299, "ok"),
    "chunks": (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\no\r\n1;x\r\nk\r\n0\r\nx-t: 1\r\n\r\n", 200, "ok"),
    "hop by hop": (
        b"HTTP/1.1 200 OK\r\nconnection: x-b\r\nx-b: 1\r\nkeep-alive: 1\r\nproxy-authenticate: x\r\nalt-svc: h3=:443\r\n" + BODY,
        200,
        "ok",
    ),
    "204": (b"HTTP/1.1 204 No Content\r\n\r\n", 204, ""),
    "304 with a length": (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 20\r\netag: x\r\n\r\n", 304, ""),
}


@pytest.mark.parametrize(
    ("how", "again"),
    [("GET", 1), ("HEAD", 1), ("DELETE", 0), ("POST", 0), ("GET with a body", 0)],
)
async def test_a_kept_connection_that_ends_unanswered_is_replaced_once(outside: World, how: str, again: int) -> None:
    guest = await outside.guest({"allow": {"api.test": [INJECT]}})
    method = how.split(maxsplit=1)[0]
    with_body = ["Content-Length: 5"] if how.endswith("body") else []
    second = get("/again", *with_body, method=method) + b"hello" * len(with_body)
    program = """
    import base64
    with tls(sys.argv[1], "api.test", alpn=["http/1.1"]) as stream:
        wire, answers = Wire(stream), []
        for request in sys.argv[2:]:
            request = base64.b64decode(request)
            wire.send(request)
            answers.append(wire.answer(request.split()[0].decode())["status"])
        say(answers)
    """
    arguments = [base64.b64encode(request).decode() for request in (get(), second)]
    outside.origins.script("api.test", answers=1)
    assert (await guest.python(program, API, *arguments)).json() == [200, 200 if again else 502]
    assert len(outside.origins.seen().to("api.test")) == 1 + again
    assert outside.origins.seen().data.count(b"/again ") == 1 + again
    # A connection of its own that ends so is an answer.
    outside.origins.script("api.test", answers=0)
    assert (await guest.python(program, API, arguments[1])).json() == [502]


@pytest.mark.defence("response-framing")
async def test_t72_a_response_has_one_reading_or_is_none(outside: World) -> None:
    guest = await outside.guest({"allow": {"api.test": [INJECT]}})
    outside.origins.script("api.test", *(reply for reply, _, _ in RESPONSES.values()), close=True)
    # Each connection is closed after one reply, so that each reply has a script of its own.
    answers = []
    for reply, _, _ in RESPONSES.values():
        outside.origins.script("api.test", reply, close=True)
        answers += await ask(guest, get())
    said = {
        name: (answer["status"], answer["body"] if answer["status"] != 502 else "")
        for name, answer in zip(RESPONSES, answers, strict=True)
    }
    assert said == {name: (status, body) for name, (_, status, body) in RESPONSES.items()}
    assert {answer["reason"] for answer in answers if answer["status"] == 502} == {"upstream_protocol"}
    names = {key for answer in answers for key, _ in answer["headers"]}
    assert names <= {"content-length", "content-type", "transfer-encoding", "connection", "etag", "x-hutch-reason"}
    failed = [record for record in await guest.audit(kind="http") if record["status"] == 502]
    assert {record["error"] for record in failed} == {"upstream_protocol"}
    assert len(failed) == 13


async def test_t72_bytes_that_nobody_asked_for_answer_nobody(outside: World) -> None:
    guest = await outside.guest({"allow": {"api.test": [INJECT]}})
    forged = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged"
    program = """
    with tls(sys.argv[1], "api.test", alpn=["http/1.1"]) as stream:
        wire = Wire(stream)
        for method in sys.argv[2:]:
            wire.send(f"{method} / HTTP/1.1\\r\\nHost: api.test\\r\\n\\r\\n".encode())
            print(wire.answer(method)["body"])
    """
    outside.origins.script("api.test", OK + forged, OK, whole=True)
    # The script counts replies by connection: with a connection used again, the second answer would be the forged one.
    assert (await guest.python(program, API, "GET", "GET")).out.split() == ["ok", "ok"]
    outside.origins.script("api.test", forged, whole=True)
    assert (await guest.python(program, API, "HEAD", "GET")).out.split() == ["forged"]
    assert len(outside.origins.seen().connections) == 4, "none of these connections is used again"


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
@pytest.mark.defence("whole-answers")
async def test_t72_a_truncated_response_does_not_look_complete(outside: World, version: str) -> None:
    guest = await outside.guest({"allow": {"api.test": [INJECT]}})
    for reply in (
        b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    ):
        outside.origins.script("api.test", reply, close=True)
        ran = await guest.curl(version, "-o", "/dev/null", "https://api.test/")
        assert ran.code != 0, ran


async def test_bodies_and_what_has_none(outside: World) -> None:
    guest = await outside.guest({"allow": {"api.test": [INJECT]}})
    outside.origins.script("api.test", b"HTTP/1.1 200 OK\r\ncontent-length: 1234\r\n\r\n", OK, whole=True)
    program = """
    with tls(sys.argv[1], "api.test", alpn=["http/1.1"]) as stream:
        wire = Wire(stream)
        wire.send(b"HEAD / HTTP/1.1\\r\\nHost: api.test\\r\\n\\r\\n")
        head = wire.answer("HEAD")
        wire.send(b"GET / HTTP/1.1\\r\\nHost: api.test\\r\\n\\r\\n")
        say([dict(head["headers"])["content-length"], wire.answer()["body"]])
    """
    assert (await guest.python(program, API)).json() == ["1234", "ok"]
    assert len(outside.origins.seen().connections) == 1
    chunks = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + b"3\r\nabc\r\n" * 50 + b"0\r\n\r\n"
    outside.origins.script("api.test", chunks, whole=True)
    await guest.policy({"allow": {"api.test": [INJECT, REFUSE]}})
    old, new = await ask(guest, get(version="HTTP/1.0"), get())
    assert new["body"] == "abc" * 50
    assert dict(new["headers"])["transfer-encoding"] == "chunked"
    # HTTP/1.0 has no chunks: the end of the connection is the end of the body.
    assert "transfer-encoding" not in dict(old["headers"])
    assert (old["end"], old["rest"]) == ("closed", "abc" * 50)
    uploaded = await guest.curl("-H", "transfer-encoding: chunked", "-T", str(Path(__file__)), "https://api.test/up")
    assert uploaded.out.endswith("\n200"), uploaded
    assert outside.origins.seen().requests[-1]["length"] == Path(__file__).stat().st_size


def rss_mib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) // 1024


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
async def test_large_bodies_take_no_memory(outside: World, version: str) -> None:
    guest = await outside.guest({"allow": {"api.test": [INJECT]}})
    size = 100 << 20
    head = f"HTTP/1.1 200 OK\r\ncontent-length: {size}\r\n\r\n".encode()
    # The origin reads nothing for a while: whoever has more than a few pieces of the body then keeps too much.
    outside.origins.script("api.test", head, whole=True, download=size, stall_s=0.5)
    before = rss_mib(outside.gateway_pid)
    highest = before

    async def watch() -> None:
        nonlocal highest
        while True:
            highest = max(highest, rss_mib(outside.gateway_pid))
            await asyncio.sleep(0.02)

    watching = asyncio.ensure_future(watch())
    curl = f"curl -sS {version} -T - -H expect: -o /dev/null -w '%{{size_download}}' https://api.test/up"
    send = f"head -c {size} /dev/zero | {curl}"
    ran = await guest.run("sh", "-c", send, timeout_s=60)
    watching.cancel()
    assert ran.out == str(size), ran
    [request] = outside.origins.seen().requests
    assert request["length"] == size
    assert highest - before < 24, f"{before} MiB, then {highest}"
    record = await guest.audited(kind="http")
    assert (record["up"], record["down"]) == (size, size)


async def test_a_stream_of_events_is_not_held_back(outside: World) -> None:
    guest = await outside.guest({"allow": {"api.test": [INJECT]}})
    start = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: first\n\n"
    outside.origins.script("api.test", start, held=b"data: second\n\n", close=True)
    program = """
    with tls(sys.argv[1], "api.test", alpn=["http/1.1"]) as stream:
        wire = Wire(stream)
        wire.send(b"GET /events HTTP/1.1\\r\\nHost: api.test\\r\\n\\r\\n")
        wire.until(b"data: first\\n\\n")
        print("first")
        other = tls(sys.argv[1], "api.test", alpn=["http/1.1"])
        other.sendall(request("/seen"))
        while b"second" not in wire.buffer and wire.more():
            pass
        print("second" if b"second" in wire.buffer else wire.end)
    """
    running = asyncio.ensure_future(guest.python(program, API))
    # The second event is not sent before the guest says that it has the first.
    await outside.origins.wait(lambda seen: b"GET /seen" in seen.data, "the first event is held back")
    outside.origins.release()
    assert (await running).out.split() == ["first", "second"]


# -- who shares what ---------------------------------------------------------------------------------------------------


@pytest.mark.defence("own-pool")
async def test_t58_connections_are_shared_only_within_sandbox_name_and_rule(outside: World) -> None:
    other = {"transform": [{"headers": {"authorization": f"Basic {CANARY}"}}]}
    rules = [{"match": {"path": {"exact": "/b"}}, **other}, INJECT]
    policy = {"allow": {"api.test": rules, "cdn.test": [INJECT], "other.test": [INJECT]}}
    first, second = await outside.guest(policy), await outside.guest(policy)
    for name in ("api.test", "cdn.test", "other.test"):
        outside.origins.script(name, OK, whole=True)

    program = """
    for at, name, paths in ((1, "api.test", "aabb"), (2, "cdn.test", "aa"), (2, "other.test", "aa")):
        with tls(sys.argv[at], name, alpn=["http/1.1"]) as stream:
            wire = Wire(stream)
            for path in paths:
                wire.send(request(f"/{path}", host=name))
                print(wire.answer()["status"])
    """
    for guest in (first, second):
        assert (await guest.python(program, API, SHARED)).out.split() == ["200"] * 8
    lines = [[request["line"] for request in connection["requests"]] for connection in outside.origins.seen().connections]
    a, b = ["GET /a HTTP/1.1"] * 2, ["GET /b HTTP/1.1"] * 2
    assert lines == [a, b, a, a] * 2
    await first.policy({**policy, "defaults": {"inspect": "all"}})
    await ask(first, get("/a"))
    assert len(outside.origins.seen().connections) == 9, "another policy, another connection"


@pytest.mark.defence("sweep")
async def test_t73_a_websocket_ends_with_its_rule(outside: World) -> None:
    guest = await outside.guest({"allow": {"api.test": [INJECT]}})
    outside.origins.script("api.test", SWITCH, then_echo=True)
    program = """
    import base64
    with tls(sys.argv[1], "api.test", alpn=["http/1.1"]) as stream:
        wire = Wire(stream)
        wire.send(base64.b64decode(sys.argv[2]))
        status = wire.answer()["status"]
        wire.send(b"x")
        wire.exactly(1)
        wire.more()
        say([status, wire.end])
    """
    compressed = WEBSOCKET.replace(b"\r\n\r\n", b"\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n")
    running = asyncio.ensure_future(guest.python(program, API, base64.b64encode(compressed).decode()))
    await outside.origins.wait(lambda seen: seen.data.endswith(b"\r\n\r\nx"), "the socket did not open")
    await guest.policy({"allow": {"api.test": [REFUSE, INJECT]}})
    assert (await running).json() == [101, "torn"]
    await outside.origins.wait(lambda seen: bool(seen.connections[0]["ended"]), "the origin's end stayed open")
    # What is compressed cannot be searched for the secret.
    assert b"permessage-deflate" not in outside.origins.seen().data


@pytest.mark.defence("rule-limits")
async def test_t73_the_limits_of_a_rule_hold_in_a_websocket(outside: World) -> None:
    guest = await outside.guest({"allow": {"api.test": [{**INJECT, "limits": {"upBytes": 1000}}]}})
    outside.origins.script("api.test", SWITCH, then_echo=True)
    program = """
    import base64
    with tls(sys.argv[1], "api.test", alpn=["http/1.1"]) as stream:
        wire = Wire(stream)
        wire.send(base64.b64decode(sys.argv[2]))
        status = wire.answer()["status"]
        for _ in range(100):
            wire.send(b"x" * 100)
            if wire.end != "open" or not wire.exactly(100):
                break
        say([status, wire.end != "open"])
    """
    assert (await guest.python(program, API, base64.b64encode(WEBSOCKET).decode())).json() == [101, True]
    # The head of the request has its share.
    assert 7 <= outside.origins.seen().data.count(b"x" * 100) < 10
    record = await guest.audited(kind="http", status=101)
    assert (record["decision"], record["reason"]) == ("deny", "byte_limit")


# -- HTTP/2 ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
async def test_a_refused_upload_is_told_why(outside: World, version: str) -> None:
    rule = {**INJECT, "match": {"path": {"exact": "/here"}}}
    guest = await outside.guest({"allow": {"api.test": [rule]}, "defaults": {"unmatched": "deny"}})
    large = guest.directory / "large"
    large.write_bytes(b"x" * 5_000_000)
    ran = await guest.curl(version, "--data-binary", f"@{large}", "https://api.test/elsewhere")
    assert (ran.code, json.loads(ran.out.splitlines()[0])["error"]["code"]) == (0, "unmatched")
    assert ran.out.endswith("403")
    assert outside.origins.seen().is_silent


async def h2(guest: Guest, program: str, *arguments: str, name: str = "api.test", address: str = API) -> Any:
    """Run a program in which `peer` is a client of HTTP/2 on a connection to a name."""
    first = f"""
from tests.egress.http2 import *
peer = Peer(tls({address!r}, {name!r}, alpn=["h2"]))
"""
    ran = await guest.python(first + program, *arguments)
    return ran.json()


def fields(
    *more: tuple[str, str], path: str | None = "/", name: str = "api.test", **replaced: str | None
) -> list[tuple[str, str]]:
    usual: dict[str, str | None] = {":method": "GET", ":scheme": "https", ":authority": name, ":path": path}
    usual |= {f":{key}": value for key, value in replaced.items()}
    return [(key, value) for key, value in usual.items() if value is not None] + list(more)


# `RST`: the stream is reset or the connection is ended, as the code reads it; else a status and a reason.
RST = "PROTOCOL_ERROR"
H2_REFUSED: dict[str, tuple[list[tuple[str, str]], str]] = {
    "authority of another": (fields(authority="evil.test"), "421"),
    "host of another": (fields(("host", "evil.test")), "421"),
    "only host, of another": (fields(("host", "evil.test"), authority=None), "421"),
    "no authority": (fields(authority=None), "400"),
    "authority with user": (fields(authority="api.test@evil.test"), "400"),
    "authority with path": (fields(authority="api.test/x"), RST),
    "two hosts": (fields(("host", "api.test"), ("host", "evil.test")), "400"),
    "scheme": (fields(scheme="http"), "400"),
    "CONNECT": (fields(method="CONNECT", scheme=None, path=None), "405"),
    "extended CONNECT": (fields((":protocol", "websocket"), method="CONNECT"), RST),
    "TRACE": (fields(method="TRACE"), "405"),
    "two paths": ([*fields(), (":path", "/x")], RST),
    "two methods": ([*fields(), (":method", "GET")], RST),
    "no path": (fields(path=None), RST),
    "empty path": (fields(path=""), RST),
    "no method": (fields(method=None), RST),
    "no scheme": (fields(scheme=None), RST),
    "unknown pseudo": (fields((":x", "1")), RST),
    "pseudo after regular": ([("x-a", "1"), *fields()], RST),
    "upper-case name": (fields(("X-A", "1")), RST),
    "name with colon": (fields(("x:a", "1")), RST),
    "name with blank": (fields(("x a", "1")), RST),
    "name with CRLF": (fields(("x\r\na", "1")), RST),
    "value with CRLF": (fields(("x-a", "1\r\nhost: evil.test")), RST),
    "value with NUL": (fields(("x-a", "1\0")), RST),
    "connection": (fields(("connection", "authorization")), RST),
    "transfer-encoding": (fields(("transfer-encoding", "chunked")), RST),
    "upgrade": (fields(("upgrade", "websocket")), RST),
    "keep-alive": (fields(("keep-alive", "1")), RST),
    "proxy-connection": (fields(("proxy-connection", "x")), RST),
    "te": (fields(("te", "gzip")), RST),
    "path that smuggles": (fields(path="/a HTTP/1.1\r\nhost: evil.test\r\n\r\nGET /b"), RST),
    "path with a blank": (fields(path="/a b"), RST),
    "path that is a URL": (fields(path="https://evil.test/x"), RST),
    "path not ASCII": (fields(path="/\xc3\xa4"), "400"),
    "relative path": (fields(path="x"), RST),
    "method that smuggles": (fields(method="GET / HTTP/1.1\r\nx:"), RST),
    "two lengths": (fields(("content-length", "1"), ("content-length", "2")), RST),
    "length without a body": (fields(("content-length", "4")), RST),
}


@pytest.mark.parametrize("origin", ["h1", "h2"])
@pytest.mark.defence("host-is-name")
async def test_t53_http2_has_the_same_rules(outside: World, origin: str) -> None:
    guest = await outside.guest({"allow": {"api.test": [INJECT]}})
    outside.origins.script("api.test", OK, whole=True, h2=origin == "h2")
    program = """
out = []
for fields in json.loads(sys.argv[1]):
    # A connection of its own: what is wrong with one stream may end all of them.
    peer = Peer(tls(sys.argv[2], "api.test", alpn=["h2"]))
    [answer] = peer.until(peer.ask(fields))
    out.append([status(answer), dict(answer["headers"]).get("x-hutch-reason")])
say(out)
"""
    answers = await h2(guest, program, json.dumps([sent for sent, _ in H2_REFUSED.values()]), API)
    said = {name: answer[0] for name, answer in zip(H2_REFUSED, answers, strict=True)}
    assert said == {name: expected for name, (_, expected) in H2_REFUSED.items()}
    assert outside.origins.seen().is_silent
    reasons = [record["reason"] for record in await guest.audit(kind="http", decision="deny")]
    assert reasons == [reason for _, reason in answers if reason is not None]


@pytest.mark.parametrize("origin", ["h1", "h2"])
async def test_t53_http2_goes_on_as_what_the_server_speaks(outside: World, origin: str) -> None:
    guest = await outside.guest({"allow": {"api.test": [INJECT]}})
    outside.origins.script("api.test", OK, whole=True, h2=origin == "h2")
    program = """
numbers = [
    peer.ask(get("/a?b=c", ("authorization", "mine"), ("cookie", "a=1"), ("cookie", "b=2"), ("host", "api.test"))),
    peer.ask([(":method", "POST"), *get("/up")[1:], ("content-length", "4")], b"body"),
    peer.ask([(":method", "POST"), *get("/up")[1:]], b"more"),
    peer.ask([(":method", "HEAD"), *get("/head")[1:]]),
    peer.ask([(":method", "OPTIONS"), *get("*")[1:]]),
]
say([[status(answer), answer["body"], answer["end"]] for answer in peer.until(*numbers)])
"""
    answers = await h2(guest, program)
    assert answers[:3] == [["200", "ok", "end"]] * 3
    assert answers[3][0] == answers[4][0] == "200"
    seen = outside.origins.seen()
    requests = seen.requests
    assert {connection["alpn"] for connection in seen.connections} == {"h2" if origin == "h2" else "http/1.1"}
    assert len(requests) == 5
    for request in requests:
        assert values(request, "authorization") == [f"Bearer {CANARY}"]
        expected = ([], ["api.test"]) if origin == "h2" else (["api.test"], [])
        assert (values(request, "host"), values(request, ":authority")) == expected
    paths = sorted(values(request, ":path")[0] if origin == "h2" else request["line"].split(" ")[1] for request in requests)
    assert paths == ["*", "/a?b=c", "/head", "/up", "/up"]
    assert [values(request, "cookie") for request in requests if values(request, "cookie")] == [["a=1; b=2"]]
    assert sorted(request["length"] for request in requests) == [0, 0, 0, 4, 4]
    assert seen.data.count(CANARY.encode()) == 5
    records = await guest.audit(least=5, kind="http")
    assert {(record["alpn"], record["decision"], record["status"]) for record in records} == {("h2", "inject", 200)}


@pytest.mark.defence("trailers")
async def test_t56_trailers_of_a_request_end_here(outside: World) -> None:
    guest = await outside.guest({"allow": {"api.test": [INJECT]}})
    outside.origins.script("api.test", OK, h2=True)
    program = """
number = peer.ask([(":method", "POST"), *get("/up")[1:], ("te", "trailers")], b"body", end=False)
peer.trailers(number, [(b"authorization", b"mine"), (b"x-late", b"1")])
say(status(peer.until(number)[0]))
"""
    assert await h2(guest, program) == "200"
    [request] = outside.origins.seen().requests
    assert request["trailers"] == []
    assert request["length"] == 4
    assert b"mine" not in outside.origins.seen().data


@pytest.mark.defence("scrub-trailers")
async def test_t56_a_grpc_call_gets_its_trailers(outside: World) -> None:
    guest = await outside.guest({"allow": {"api.test": [INJECT]}})
    reply = b"HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\n\r\n\0\0\0\0\x05hello"
    trailers = [["grpc-status", "0"], ["grpc-message", CANARY]]
    outside.origins.script("api.test", reply, h2=True, trailers=trailers)
    program = """
more = ("te", "trailers"), ("content-type", "application/grpc")
number = peer.ask([(":method", "POST"), *get("/pkg.Service/Method", *more)[1:]], b"\\0\\0\\0\\0\\x02hi")
[answer] = peer.until(number)
say([status(answer), answer["body"], answer["trailers"]])
"""
    said, body, got = await h2(guest, program)
    assert (said, body) == ("200", "\0\0\0\0\x05hello")
    assert got == [["grpc-status", "0"], ["grpc-message", "*" * len(CANARY)]]
    [request] = outside.origins.seen().requests
    assert (values(request, "te"), request["length"]) == (["trailers"], 7)


@pytest.mark.defence("sweep")
async def test_t74_one_stream_is_cut_and_the_others_stay(outside: World) -> None:
    slow, stays = ({"match": {"path": {"exact": path}}, **INJECT} for path in ("/slow", "/stays"))
    guest = await outside.guest({"allow": {"api.test": [stays, slow]}})
    outside.origins.script("api.test", OK, whole=True)
    program = """
slow = peer.ask([(":method", "POST"), *get("/slow")[1:]], b"half", end=False)
stays = peer.ask([(":method", "POST"), *get("/stays")[1:]], b"half", end=False)
[cut] = peer.until(slow, wait_s=10)
peer.data(stays, b"rest")
[kept] = peer.until(stays)
after = peer.until(peer.ask(get("/slow")))[0]
say([cut["end"], status(kept), kept["body"], status(after)])
"""
    running = asyncio.ensure_future(h2(guest, program))
    await outside.origins.wait(lambda seen: len(seen.connections) == 2, "the streams did not arrive")
    await guest.policy({"allow": {"api.test": [stays, {"match": {"path": {"exact": "/slow"}}, **REFUSE}]}})
    assert await running == ["INTERNAL_ERROR", "200", "ok", "403"]
    lines = [request["line"] for request in outside.origins.seen().requests]
    assert lines == ["POST /stays HTTP/1.1"], "a request that was cut is not complete"


# -- clients -----------------------------------------------------------------------------------------------------------


async def test_ordinary_clients_are_content(outside: World) -> None:
    guest = await outside.guest({"allow": {"api.test": [INJECT]}})
    outside.origins.script("api.test", OK, whole=True)
    for version in ("--http1.1", "--http2"):
        ran = await guest.curl(version, "-d", "x=1", "https://api.test/curl")
        assert ran.out == "ok\n200", ran
    node = "fetch('https://api.test/node', {method: 'POST', body: 'x=1'}).then(r => r.text()).then(console.log)"
    ran = await guest.run("node", "-e", node)
    assert ran.out == "ok\n", ran
    node = """
    const session = require('http2').connect('https://api.test'), stream = session.request({':path': '/node2'});
    stream.on('data', data => console.log('' + data)).on('end', () => session.close()).end();
    """
    ran = await guest.run("node", "-e", node)
    assert ran.out == "ok\n", ran
    python = "import urllib.request; print(urllib.request.urlopen('https://api.test/python', b'x=1').read().decode())"
    ran = await guest.python(python)
    assert ran.out == "ok\n", ran
    lines = sorted(request["line"].split(" ")[1] for request in outside.origins.seen().requests)
    assert lines == ["/curl", "/curl", "/node", "/node2", "/python"]
    assert outside.origins.seen().data.count(CANARY.encode()) == 5
    assert EVIL not in str(outside.origins.seen().connections)

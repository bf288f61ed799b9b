"""Clients of the API that mean harm, against a real server: at, below and above HTTP.

Each test ends with `Target.settle`: the server answers an ordinary request, holds no connection, request, descriptor or thread
more than before, has not grown, and has nothing about a fault in its log.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import socket
import subprocess
import sys
import tarfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from hutch.client import Client
from tests import leaks
from tests.conftest import start_server, stop_server, wait_until
from tests.security.hostile_client import (
    BINARY,
    CLOSE,
    KEY,
    MIB,
    PING,
    PONG,
    TEXT,
    Connection,
    Target,
    bounded_memory,
    close_code,
    descriptors,
    frame,
    frames,
    memory_of,
    read_frame,
)

pytestmark = [pytest.mark.root, pytest.mark.sandbox]

HEADER_S, BODY_S, BODY_BYTES, STALL_S, KEEP_ALIVE_S = 2, 2, 1024, 2, 2
MOST_CONNECTIONS, MOST_OF_ONE = 1000, 700
STOP_S = 30.0
SOON_S = 20.0
"""What has a limit of two seconds ends within this on any machine."""


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    base = tmp_path_factory.mktemp("hostile")
    data_dir, log = base / "data", base / "log"
    data_dir.mkdir()
    before = leaks.snapshot(data_dir)
    settings = {
        "SERVER__HEADER_TIMEOUT_S": HEADER_S,
        "SERVER__BODY_TIMEOUT_S": BODY_S,
        "SERVER__BODY_MIN_BYTES": BODY_BYTES,
        "SERVER__STALL_TIMEOUT_S": STALL_S,
        "SERVER__KEEP_ALIVE_S": KEEP_ALIVE_S,
        "SERVER__MAX_CONNECTIONS": MOST_CONNECTIONS,
        "SERVER__MAX_CONNECTIONS_PER_CLIENT": MOST_OF_ONE,
        "SERVER__SHUTDOWN_GRACE_S": 2,
        "INGRESS__HEADER_TIMEOUT_S": HEADER_S,
        "POOL__SIZE": 0,
        "POOL__MAX_SIZE": 0,
        "LIMITS__UNAUTHORIZED_PER_MINUTE": 0,
    }
    environment = {f"HUTCH_{key}": str(value) for key, value in settings.items()}
    process, where = start_server(data_dir, log, environment=environment)
    made = Target(process, data_dir, log, where)
    try:
        with Client(where) as client:
            created = client.sandboxes.create(name="target", persistent=False, timeout=3_600_000)
            made.session_id = created.session.id
        made.run("true")
        # What is opened on first use is open from now on.
        ordinary(made)
        made.idle = made.held()
        yield made
        busy(made)
    finally:
        # Nobody who holds on to it keeps a server from ending.
        began = time.monotonic()
        stop_server(process, log)
        for connection in made.open:
            connection.socket.close()
        assert time.monotonic() - began < STOP_S
    left = leaks.new(before, leaks.snapshot(data_dir))
    assert not left, "the server left behind:\n" + "\n".join(left)


def busy(made: Target) -> None:
    """A client of every kind that does not go on."""
    made.connect()
    made.say(LINE)
    made.say(made.head("POST", made.in_session("fs/write"), "content-length: 100000"), bytes(512))
    made.say(made.start("sleep", "1000", wait=True, logs=True)).head()
    made.connect(receive_bytes=4096).send(made.start("sh", "-c", "yes", wait=True, logs=True))
    opened(made)
    terminal(made)


def ordinary(made: Target) -> None:
    """Twenty ordinary requests at once."""
    threads = [threading.Thread(target=made.answers) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.fixture
def target(serving: Target) -> Iterator[Target]:
    yield serving
    serving.settle()


# -- heads -------------------------------------------------------------------------------------------

LINE = b"GET /healthz HTTP/1.1\r\n"
HOST = b"host: x\r\n"
END = b"\r\n"
POST = b"POST /v3/sandboxes HTTP/1.1\r\n" + HOST
WEBSOCKET = b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: " + KEY.encode() + END

NOT_HTTP = {
    "http-0.9": b"GET /healthz\r\n\r\n",
    "http-0.9-version": b"GET /healthz HTTP/0.9\r\n\r\n",
    "http-2-line": b"GET /healthz HTTP/2.0\r\n" + HOST + END,
    "http-2-preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
    "proxy-1": b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n" + LINE + HOST + END,
    "proxy-2": b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + bytes(12) + LINE + HOST + END,
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),
    "ssh": b"SSH-2.0-OpenSSH_9.6\r\n",
    "redis": b"*1\r\n$4\r\nPING\r\n",
    "unknown-method": b"FOO /healthz HTTP/1.1\r\n" + HOST + END,
    "small-method": b"get /healthz HTTP/1.1\r\n" + HOST + END,
    "connect": b"CONNECT x:80 HTTP/1.1\r\nhost: x:80\r\n\r\n",
    "connect-path": b"CONNECT /healthz HTTP/1.1\r\n" + HOST + END,
    "no-host": LINE + END,
    "two-hosts": LINE + b"host: a\r\nhost: b\r\n\r\n",
    "two-tokens": LINE + HOST + b"authorization: Bearer a\r\nauthorization: Bearer b\r\n\r\n",
    "other-target": b"GET http://other/healthz HTTP/1.1\r\n" + HOST + END,
    "target-without-slash": b"GET healthz HTTP/1.1\r\n" + HOST + END,
    "folded": LINE + HOST + b"x-a: b\r\n c\r\n\r\n",
    "folded-first": LINE + b" x\r\n" + HOST + END,
    "space-in-name": LINE + HOST + b"x a: b\r\n\r\n",
    "space-before-colon": LINE + b"host : x\r\n\r\n",
    "no-name": LINE + HOST + b": x\r\n\r\n",
    "no-colon": LINE + HOST + b"x\r\n\r\n",
    "nul-in-name": LINE + HOST + b"x\0: y\r\n\r\n",
    "nul-in-value": LINE + HOST + b"x: y\0z\r\n\r\n",
    "bare-cr": LINE + HOST + b"x: y\rz: w\r\n\r\n",
    "bare-lf": b"GET /healthz HTTP/1.1\nhost: x\n\n",
    "bare-lf-between": LINE + HOST + b"x: y\nz: w\r\n\r\n",
    "bare-lf-end": LINE + HOST + b"\n",
    "name-not-ascii": LINE + HOST + b"\xffx: y\r\n\r\n",
    "path-not-utf-8": b"GET /healthz\xff HTTP/1.1\r\n" + HOST + END,
    "space-in-path": b"GET /health z HTTP/1.1\r\n" + HOST + END,
    "nul-in-path": b"GET /health\0z HTTP/1.1\r\n" + HOST + END,
    "length-negative": POST + b"content-length: -1\r\n\r\n",
    "length-plus": POST + b"content-length: +2\r\n\r\n{}",
    "length-hex": POST + b"content-length: 0x2\r\n\r\n{}",
    "length-empty": POST + b"content-length: \r\n\r\n{}",
    "length-list": POST + b"content-length: 2, 2\r\n\r\n{}",
    "length-spaced": POST + b"content-length: 2 2\r\n\r\n{}",
    "length-beyond-64-bits": POST + b"content-length: 18446744073709551617\r\n\r\n{}",
    "lengths-alike": POST + b"content-length: 2\r\ncontent-length: 2\r\n\r\n{}",
    "lengths-differ": POST + b"content-length: 2\r\ncontent-length: 40\r\n\r\n{}",
    "length-and-chunked": POST + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked-and-length": POST + b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n",
    "coding-identity": POST + b"transfer-encoding: identity\r\n\r\n",
    "coding-gzip": POST + b"transfer-encoding: gzip\r\n\r\n",
    "coding-gzip-chunked": POST + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "coding-chunked-gzip": POST + b"transfer-encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "coding-xchunked": POST + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    "coding-twice": POST + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "coding-hidden": POST + b"transfer-encoding: identity\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "coding-in-1.0": POST.replace(b"1.1", b"1.0") + b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "websocket-post": b"POST /v2/sandboxes/terminal HTTP/1.1\r\n" + HOST + WEBSOCKET + END,
    "websocket-body": LINE + HOST + WEBSOCKET + b"content-length: 5\r\n\r\nhello",
    "websocket-chunked": LINE + HOST + WEBSOCKET + b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "websocket-many-headers": LINE + HOST + WEBSOCKET + b"x: y\r\n" * 200 + END,
    "websocket-long-header": LINE + HOST + WEBSOCKET + b"x: " + b"y" * 9000 + b"\r\n\r\n",
    "websocket-no-key": LINE + HOST + b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\r\n",
    "websocket-short-key": LINE + HOST + WEBSOCKET.replace(KEY.encode(), b"AAAA") + END,
    "websocket-two-keys": LINE + HOST + WEBSOCKET + b"sec-websocket-key: " + KEY.encode() + b"\r\n\r\n",
    "websocket-version": LINE + HOST + WEBSOCKET.replace(b"13", b"7") + END,
    "websocket-extension": LINE + HOST + WEBSOCKET + b"sec-websocket-extensions: ;=;\r\n\r\n",
    "websocket-subprotocol": LINE + HOST + WEBSOCKET + b"sec-websocket-protocol: {}\r\n\r\n",
}


@pytest.mark.parametrize("said", NOT_HTTP.values(), ids=NOT_HTTP)
def test_what_is_no_request_or_could_be_two_is_400_and_the_end(serving: Target, said: bytes) -> None:
    connection = serving.say(said, LINE + HOST + END)
    answer = connection.answer()
    assert (answer.status, answer.code, answer.headers["connection"]) == (400, "bad_request", "close")
    # What stands behind it is not taken for another request.
    assert connection.rest() == b""
    connection.socket.close()


def test_nothing_is_left_of_requests_that_were_none(target: Target) -> None:
    for _ in range(5):
        for said in NOT_HTTP.values():
            target.say(said).reset()


LARGE = {
    "line": b"GET /" + b"a" * MIB + b" HTTP/1.1\r\n" + HOST + END,
    "query": b"GET /healthz?" + b"a" * MIB + b" HTTP/1.1\r\n" + HOST + END,
    "value": LINE + HOST + b"x: " + b"y" * MIB + b"\r\n\r\n",
    "name": LINE + HOST + b"x" * MIB + b": y\r\n\r\n",
    "many": LINE + HOST + b"x: y\r\n" * 100_000 + END,
    "cookie": LINE + HOST + b"cookie: " + b"a=b; " * 100_000 + b"\r\n\r\n",
    "websocket": LINE + HOST + WEBSOCKET + b"x: y\r\n" * 100_000 + END,
}


@pytest.mark.parametrize("said", LARGE.values(), ids=LARGE)
def test_heads_beyond_the_limit_are_431(target: Target, said: bytes) -> None:
    answer = target.ask(said)
    assert (answer.status, answer.code) == (431, "header_too_large")


def test_a_head_that_trickles_is_closed(target: Target) -> None:
    began = time.monotonic()
    waiting = [(begin, target.say(begin)) for begin in (b"", b"G", LINE, LINE + HOST + b"x: ")]
    for _, connection in waiting:
        connection.socket.settimeout(0.1)
    while waiting:
        assert time.monotonic() - began < SOON_S
        waiting = [(begin, connection) for begin, connection in waiting if not connection.is_closed]
        for begin, connection in waiting:
            connection.try_send(b"a" if begin else b"")


def test_what_is_allowed_is_answered(target: Target) -> None:
    for said in (
        LINE + HOST + END,
        b"\r\n\r\n" + LINE + HOST + END,
        b"GET /healthz HTTP/1.0\r\n\r\n",
        b"GET http://x/healthz HTTP/1.1\r\n" + HOST + END,
        LINE + HOST + b"connection: upgrade\r\nupgrade: h2c\r\nhttp2-settings: AAA\r\n\r\n",
        LINE + HOST + b"te: trailers\r\nexpect: x\r\nx-empty:\r\nx: \xc3\xa4\r\n\r\n",
    ):
        answer = target.ask(said)
        assert (answer.status, answer.body) == (200, b'{"status":"ok"}'), said


def test_methods_and_targets_that_nothing_is_at_have_the_shape_of_errors(target: Target) -> None:
    for line, status in (
        (b"TRACE /healthz", 405),
        (b"OPTIONS /healthz", 405),
        (b"OPTIONS *", 404),
        (b"GET *", 404),
        (b"DELETE /v2/sandboxes", 405),
        (b"GET //healthz", 404),
        (b"GET /healthz/", 404),
        (b"GET /healthz/../healthz", 404),
        (b"GET /%2e%2e/healthz", 404),
        (b"GET /api/api/healthz", 404),
        (b"GET /api%2Fv2%2Fsandboxes", 401),
        (b"GET /healthz%00", 404),
        (b"GET /%ff%fe", 404),
    ):
        answer = target.ask(line + b" HTTP/1.1\r\n" + HOST + b"x-secret: s3cret\r\n\r\n")
        assert answer.status == status, (line, answer)
        assert answer.code
        assert b"s3cret" not in answer.body
    head = target.say(b"HEAD /nothing HTTP/1.1\r\n" + HOST + b"connection: close\r\n\r\n")
    assert head.head()[0] == 404
    assert head.rest() == b""


@pytest.mark.parametrize(
    "name", ["a%2Fb", "..", "%2e%2e", "..%2fother", "%00", "a%00b", "%ff", "%", "%zz", "a;b", "a%0d%0ax: y", "%5c"]
)
def test_names_that_are_none_are_found_nowhere(target: Target, name: str) -> None:
    for path in (f"/v2/sandboxes/{name}", f"/v2/sandboxes/sessions/{name}", f"/hutch/v1/credentials/{name}"):
        for method in ("GET", "DELETE"):
            answer = target.ask(target.head(method, path))
            assert answer.status in (400, 404, 405), (path, answer)
            assert answer.code in ("bad_request", "not_found", "method_not_allowed")


@pytest.mark.parametrize("query", ["limit=%ff", "limit=" + "9" * 5000, "cursor=%00", "limit=1&limit=2", "&&&=%zz", "sortBy=\xff"])
def test_queries_that_can_not_be_meant_are_no_fault(target: Target, query: str) -> None:
    assert target.ask(target.head("GET", f"/v2/sandboxes?{query}")).status in (200, 400)


# -- requests in a row -------------------------------------------------------------------------------


def test_requests_in_a_row_are_answered_in_order(target: Target) -> None:
    paths = [f"/v2/sandboxes/none-{number}" for number in range(60)]
    connection = target.say(*(target.head("GET", path) for path in paths))
    for path in paths:
        assert path.rpartition("/")[2] in connection.answer().body.decode()


def test_more_requests_in_a_row_than_wait_are_refused_behind_those(target: Target) -> None:
    connection = target.say((LINE + HOST + END) * 5000)
    answers = []
    while (answer := connection.answer()).status == 200:
        answers.append(answer)
    assert 60 <= len(answers) <= 70
    assert answer.code == "bad_request"
    assert connection.rest() == b""


def test_a_command_is_waited_for_before_what_was_asked_after_it(target: Target) -> None:
    connection = target.say(target.start("sh", "-c", "sleep 1; echo late", wait=True, logs=True), LINE + HOST + END)
    assert b"late" in connection.answer().body
    assert connection.answer().body == b'{"status":"ok"}'


@pytest.mark.parametrize(
    "garbage", [b"\0\1\2\r\n\r\n", b"GET / HTTP/3\r\n\r\n", POST + b"content-length: -5\r\n\r\n", LINE + END]
)
def test_garbage_in_a_row_costs_no_answer_that_is_due(target: Target, garbage: bytes) -> None:
    connection = target.say(LINE + HOST + END, target.head("GET", "/v2/sandboxes"), garbage, LINE + HOST + END)
    assert connection.answer().body == b'{"status":"ok"}'
    assert connection.answer().status == 200
    refused = connection.answer()
    assert (refused.status, refused.code) == (400, "bad_request")
    assert connection.rest() == b""


def test_a_body_that_breaks_in_a_row_is_not_acted_on(target: Target) -> None:
    broken = target.head("POST", "/v3/sandboxes", "transfer-encoding: chunked") + b"2\r\n{}\r\nzz\r\n"
    connection = target.say(LINE + HOST + END, broken)
    assert connection.answer().status == 200
    assert connection.answer().code == "bad_request"
    assert connection.rest() == b""
    assert len(json.loads(target.ask(target.head("GET", "/v2/sandboxes")).body)["sandboxes"]) == 1


def test_garbage_after_a_stream_ends_it(target: Target) -> None:
    command = target.detached("sleep", "1000")
    connection = target.say(target.head("GET", target.in_session(f"cmd/{command}/logs")))
    assert connection.head()[0] == 200
    connection.send(b"\0garbage\r\n\r\n")
    assert connection.rest() == b""
    target.kill(command)


def test_a_client_that_asks_on_behind_a_stream_and_goes_is_noticed(target: Target) -> None:
    """Nothing is read while requests wait, so nobody would hear of its end."""
    command = target.detached("sleep", "1000")
    for end in (Connection.reset, Connection.stop_writing):
        connection = target.say(target.head("GET", target.in_session(f"cmd/{command}/logs")))
        assert connection.head()[0] == 200
        connection.send((LINE + HOST + END) * 20)
        end(connection)
        wait_until(lambda: target.held().connections == 0, SOON_S, "the connection is held")
    target.kill(command)


def test_a_thousand_requests_in_a_row_whose_answers_nobody_takes_are_bounded(target: Target) -> None:
    api = target.child("hutch.api.main")
    with bounded_memory(api):
        connection = target.connect(receive_bytes=4096)
        connection.socket.settimeout(0.5)
        request = b"GET /openapi.json HTTP/1.1\r\n" + HOST + END
        while connection.try_send(request * 100):
            pass
        wait_until(lambda: target.held().connections == 0, SOON_S, "a client that reads nothing is still connected")


SMUGGLED = b"GET /v2/sandboxes/smuggled HTTP/1.1\r\nhost: x\r\n\r\n"


def test_nothing_is_smuggled_in_a_body(target: Target) -> None:
    """A body that looks like a request is one answer, however its length is said."""
    for length in (f"content-length: {len(SMUGGLED)}", "transfer-encoding: chunked"):
        chunked = length.startswith("transfer")
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED) if chunked else SMUGGLED
        connection = target.say(target.head("POST", "/v3/sandboxes", length), body, LINE + HOST + END)
        assert connection.answer().status == 400
        assert connection.answer().body == b'{"status":"ok"}'
        connection.stop_writing()
        assert connection.rest() == b""


def test_a_refused_body_is_not_taken_for_requests(target: Target) -> None:
    """It is answered before it was read; what comes of it afterwards is still a body."""
    connection = target.say(target.head("POST", "/v3/sandboxes", f"content-length: {len(SMUGGLED)}", token=False))
    assert connection.answer().status == 401
    connection.send(SMUGGLED, LINE + HOST + END)
    assert connection.answer().body == b'{"status":"ok"}'


# -- bodies ------------------------------------------------------------------------------------------

CHUNKED = "transfer-encoding: chunked"
BAD_CHUNKS = {
    "no-size": b"zz\r\n",
    "negative": b"-1\r\n",
    "plus": b"+2\r\n{}\r\n0\r\n\r\n",
    "prefix": b"0x2\r\n{}\r\n0\r\n\r\n",
    "too-large": b"10000000000000000\r\n",
    "space": b"2 \r\n{}\r\n0\r\n\r\n",
    "empty": b"\r\n{}\r\n0\r\n\r\n",
    "longer-than-said": b"1\r\n{}\r\n0\r\n\r\n",
    "bare-lf": b"2\n{}\n0\n\n",
    "bare-cr-in-extension": b"2;a\rb\r\n{}\r\n0\r\n\r\n",
    "nul-in-extension": b"2;a=\0\r\n{}\r\n0\r\n\r\n",
    "trailer-without-name": b"2\r\n{}\r\n0\r\n: x\r\n\r\n",
    "trailer-nul": b"2\r\n{}\r\n0\r\nx: \0\r\n\r\n",
}


@pytest.mark.parametrize("chunks", BAD_CHUNKS.values(), ids=BAD_CHUNKS)
def test_chunks_that_are_none_are_400_and_the_end(target: Target, chunks: bytes) -> None:
    connection = target.say(target.head("POST", target.in_session("cmd"), CHUNKED), chunks)
    answer = connection.answer()
    assert (answer.status, answer.code) == (400, "bad_request")
    assert connection.rest() == b""


def test_a_trailer_is_no_header(target: Target) -> None:
    """Whoever stands in front has not seen it."""
    trailers = f"authorization: Bearer {target.where.token}\r\nx-hutch-sudo: true\r\n\r\n".encode()
    answer = target.ask(target.head("POST", target.in_session("cmd"), CHUNKED, token=False), b"0\r\n", trailers)
    assert answer.status == 401
    body = b'{"command":"true"}'
    chunks = b"%x;a=b\r\n%s\r\n0\r\nx-checksum: 1\r\n\r\n" % (len(body), body)
    connection = target.say(target.head("POST", target.in_session("cmd"), CHUNKED), chunks, LINE + HOST + END)
    assert connection.answer().status == 200
    assert connection.answer().body == b'{"status":"ok"}'


@pytest.mark.parametrize("token", [True, False])
@pytest.mark.parametrize("begin", [b"2;", b"0\r\nx: ", b"0\r\n"], ids=["extension", "trailer", "trailers"])
def test_what_stands_around_chunks_without_end_is_431(target: Target, begin: bytes, token: bool) -> None:
    connection = target.say(target.head("POST", target.in_session("cmd"), CHUNKED, token=token), begin)
    connection.socket.settimeout(10)
    piece = b"x: y\r\n" * 1000 if begin.endswith(b"\n") else b"a" * 6000
    with bounded_memory(target.child("hutch.api.main")):
        sent = 0
        while sent < 256 * MIB and connection.try_send(piece):
            sent += len(piece)
    assert sent < 64 * MIB
    answered = connection.rest()
    assert b"431" in answered or b"401" in answered or not answered


JSON_BODIES = {
    "deep-list": b"[" * 100_000,
    "deep-object": b'{"a":' * 100_000,
    "deep-closed": b'{"env":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "long-name": b'{"name": "' + b"a" * 900_000 + b'"}',
    "not-json": b'{"name": nul}',
    "not-utf-8": b'{"name": "\xff"}',
    "surrogate": b'{"name": "\\ud800"}',
    "nul": b'{"name": "a\\u0000"}',
    "utf-16": '{"name": "a"}'.encode("utf-16"),
    "bom": b'\xef\xbb\xbf{"name": []}',
    "two": b"{}{}",
    "list": b"[]",
    "gzip": gzip.compress(b"{}"),
}


@pytest.mark.parametrize("body", JSON_BODIES.values(), ids=JSON_BODIES)
def test_bodies_that_can_not_be_meant_are_400_wherever_one_is_taken(target: Target, body: bytes) -> None:
    for path in ("/v3/sandboxes", target.in_session("extend-timeout"), "/hutch/v1/tokens", target.in_session("fs/read")):
        answer = target.ask(target.post(path, body))
        assert (answer.status, answer.code) == (400, "bad_request"), (path, answer)


@pytest.mark.parametrize("number", ["1e400", "-1e400", "NaN", "Infinity", "18446744073709551616", "9" * 100_000, "0.1", "1e-400"])
def test_numbers_that_are_none_for_a_field_are_400(target: Target, number: str) -> None:
    for path, field in (
        ("/v3/sandboxes", "timeout"),
        ("/v3/sandboxes", "disk_bytes"),
        (target.in_session("extend-timeout"), "duration"),
        (target.in_session("cmd"), "timeout"),
    ):
        answer = target.ask(target.post(path, f'{{"command":"true","{field}":{number}}}'.encode()))
        assert answer.status == 400, (path, field, answer)
        assert answer.code in ("bad_request", "sandbox_timeout_invalid")


@pytest.mark.parametrize(
    "kind",
    [
        "text/html",
        "application/xml",
        "multipart/form-data; boundary=x",
        "x/y; charset=utf-7",
        "\xff",
        ";" * 1000,
        "application/json, x",
    ],
)
def test_content_types_decide_nothing_and_break_nothing(target: Target, kind: str) -> None:
    """Bodies are read as what their endpoint takes."""
    lines = (f"content-type: {kind}",)
    for path, body, statuses in (
        (target.in_session("cmd"), b'{"command":"true"}', (200,)),
        ("/v3/sandboxes", b"--x\r\n", (400,)),
        (target.in_session("fs/write"), b'{"a":1}', (400,)),
        (target.in_session("fs/read"), b"<a/>", (400,)),
        ("/hutch/v1/snapshots", b"{}", (400,)),
        (target.in_session("interactive"), b"x=y", (400,)),
    ):
        answer = target.ask(target.post(path, body, *lines))
        assert answer.status in statuses, (path, answer)


@pytest.mark.parametrize("coding", ["gzip", "br", "deflate, gzip", "GZIP", "zstd", "x"])
def test_bodies_that_are_compressed_on_their_way_are_415(target: Target, coding: str) -> None:
    bomb = gzip.compress(bytes(64 * MIB), 9)
    with bounded_memory(target.child("hutch.api.main")):
        for path in ("/v3/sandboxes", target.in_session("cmd"), target.in_session("fs/write")):
            answer = target.ask(target.post(path, bomb, f"content-encoding: {coding}"))
            assert (answer.status, answer.code) == (415, "unsupported_encoding")
    assert target.ask(target.post(target.in_session("cmd"), b'{"command":"true"}', "content-encoding: identity")).status == 200


def test_a_body_is_asked_for_only_where_it_is_wanted(target: Target) -> None:
    expect = ("content-length: 18", "expect: 100-continue")
    refused = target.say(target.head("POST", target.in_session("cmd"), *expect, token=False))
    assert refused.until(b"\r\n").startswith(b"HTTP/1.1 401")
    wanted = target.say(target.head("POST", target.in_session("cmd"), *expect))
    assert wanted.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    wanted.send(b'{"command":"true"}')
    assert wanted.answer().status == 200


def test_a_body_longer_than_said_is_the_next_request(target: Target) -> None:
    connection = target.say(target.post(target.in_session("cmd"), b'{"command":"true"}'), b"}}}}\r\n\r\n")
    assert connection.answer().status == 200
    assert connection.answer().code == "bad_request"
    assert connection.rest() == b""


@pytest.mark.parametrize("path", ["cmd", "fs/write", "fs/mkdir", "interactive"])
@pytest.mark.parametrize("end", [Connection.reset, Connection.stop_writing], ids=["reset", "half-closed"])
def test_a_body_shorter_than_said_is_not_acted_on(target: Target, path: str, end: Callable[[Connection], None]) -> None:
    connection = target.say(target.head("POST", target.in_session(path), "content-length: 100"), b'{"command":"touch",')
    end(connection)


TRICKLES = {
    "json": ("cmd", "content-length: 1000"),
    "chunked": ("cmd", CHUNKED),
    "stdin": ("cmd/cmd_1/stdin", "content-length: 1000"),
    "tar": ("fs/write", "content-length: 100000"),
    "tar-chunked": ("fs/write", CHUNKED),
}


def test_a_body_that_does_not_get_on_is_408(target: Target) -> None:
    """Whether it stands or trickles, whatever it is for."""
    began = time.monotonic()
    waiting = []
    for path, length in TRICKLES.values():
        for trickle in (b"", b"1\r\n{\r\n" if length is CHUNKED else b"{"):
            connection = target.say(target.head("POST", target.in_session(path), length))
            connection.socket.settimeout(0.05)
            waiting.append((path, connection, trickle))
    while waiting:
        assert time.monotonic() - began < SOON_S, waiting
        for one in list(waiting):
            path, connection, trickle = one
            connection.try_send(trickle)
            with contextlib.suppress(TimeoutError):
                answer = connection.answer()
                assert (answer.status, answer.code, answer.headers["connection"]) == (408, "request_too_slow", "close"), path
                assert time.monotonic() - began > BODY_S * 0.7
                waiting.remove(one)


def test_the_rest_of_a_body_that_nobody_wants_holds_nothing(target: Target) -> None:
    """Neither what trickles in after the answer nor a connection that then stays."""
    held = []
    for status, *lines in (
        (401, "content-length: 1000"),
        (413, "content-length: 99999999999"),
        (415, "content-length: 1000", "content-encoding: x"),
    ):
        connection = target.say(target.head("POST", "/v3/sandboxes", *lines, token=status != 401))
        assert connection.answer().status == status
        connection.socket.settimeout(0.2)
        held.append(connection)
    began = time.monotonic()
    while held:
        held = [connection for connection in held if not connection.is_closed]
        for connection in held:
            connection.try_send(b"{")
        assert time.monotonic() - began < SOON_S


def test_a_connection_that_was_left_idle_is_closed_whatever_came_after_its_request(target: Target) -> None:
    whole = target.head("POST", "/v3/sandboxes", "content-length: 10", token=False)
    held = [target.say(whole, b"{}"), target.say(LINE + HOST + END), target.say(LINE + HOST + END)]
    for connection in held:
        connection.answer()
    held[0].send(b" " * 8)
    held[1].send(b"\r\n")
    for connection in held:
        assert connection.is_closed


def tar_of(entries: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in entries.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def upload(target: Target, directory: str, length: int) -> bytes:
    return target.head("POST", target.in_session("fs/write"), f"content-length: {length}", f"x-cwd: {directory}")


def test_an_upload_that_is_slow_and_gets_on_is_written(target: Target) -> None:
    """At twice the least rate, which takes longer than the limit."""
    content = gzip.compress(tar_of({"slow.bin": os.urandom(10 * BODY_BYTES)}))
    connection = target.say(upload(target, "/tmp/slow", len(content)))
    began = time.monotonic()
    for begin in range(0, len(content), BODY_BYTES):
        connection.send(content[begin : begin + BODY_BYTES])
        time.sleep(BODY_S / 4)  # The rate is what is tested.
    assert connection.answer().status == 200
    assert time.monotonic() - began > BODY_S
    assert target.run("stat", "-c", "%s", "/tmp/slow/slow.bin") == f"{10 * BODY_BYTES}\n"


def test_an_upload_that_ends_early_is_not_there_in_part(target: Target, full_campaign: bool) -> None:
    entries = {f"part-{number}": os.urandom(20_000) for number in range(20)}
    whole = tar_of(entries)
    places = 60 if full_campaign else 12
    before = target.run("sh", "-c", "ls -A /tmp /vercel /var/tmp | sort")
    free = target.run("sh", "-c", "df --output=used / | tail -1")
    for number in range(places):
        for content in (whole, gzip.compress(whole)):
            for end in (Connection.reset, Connection.stop_writing):
                cut = len(content) * number // places
                connection = target.say(upload(target, "/tmp/early", len(content)), content[:cut])
                end(connection)
                # Closed, or reset: in any case nobody says that it was written.
                assert b" 200 " not in (connection.rest() if end is Connection.stop_writing else b"")
    wait_until(lambda: target.held().requests == 0, SOON_S, "an upload goes on without its client")
    assert target.run("sh", "-c", "find /tmp/early -type f 2>/dev/null | wc -l") == "0\n"
    assert target.run("sh", "-c", "rmdir /tmp/early 2>/dev/null; ls -A /tmp /vercel /var/tmp | sort") == before
    used = int(target.run("sh", "-c", "df --output=used / | tail -1"))
    assert used - int(free) < 4096
    connection = target.say(upload(target, "/tmp/early", len(whole)), whole)
    assert connection.answer().status == 200
    assert target.run("sh", "-c", "ls /tmp/early | wc -l") == "20\n"
    target.run("rm", "-rf", "/tmp/early")


def test_an_upload_whose_chunks_break_is_400_and_nothing_is_written(target: Target) -> None:
    whole = tar_of({"broken": os.urandom(100_000)})
    head = target.head("POST", target.in_session("fs/write"), CHUNKED, "x-cwd: /tmp/broken")
    connection = target.say(head, b"%x\r\n%s\r\n" % (len(whole), whole), b"zz\r\n")
    answer = connection.answer()
    assert (answer.status, answer.code) == (400, "bad_request")
    assert target.run("sh", "-c", "find /tmp/broken -type f 2>/dev/null | wc -l") == "0\n"


# -- answers that nobody takes -----------------------------------------------------------------------


@pytest.mark.parametrize("what", ["logs", "waited", "wait"])
@pytest.mark.parametrize("end", [Connection.stop_writing, Connection.reset], ids=["half-closed", "reset"])
def test_who_ends_its_sending_side_is_gone(target: Target, what: str, end: Callable[[Connection], None]) -> None:
    if what == "waited":
        connection = target.say(target.start("sleep", "1000", wait=True, logs=True))
        command = json.loads(connection.head() and connection.until(b"\n") and connection.until(b"\n"))["command"]["id"]
    else:
        command = target.detached("sleep", "1000")
        path = f"cmd/{command}/logs" if what == "logs" else f"cmd/{command}?wait=true"
        connection = target.say(target.head("GET", target.in_session(path)))
        assert connection.head()[0] == 200
    end(connection)
    if end is Connection.stop_writing:
        # The answer breaks off: its last chunk does not come.
        assert b"0\r\n\r\n" not in connection.rest()
    wait_until(lambda: target.held().connections == 0, SOON_S, "the connection is held")
    target.kill(command)


def test_output_that_nobody_reads_waits_in_bounded_memory_and_others_go_on(target: Target) -> None:
    api, host = target.child("hutch.api.main"), target.child("host")
    connections = []
    with bounded_memory(api), bounded_memory(host, 96 * MIB):
        for _ in range(5):
            connection = target.connect(receive_bytes=4096)
            connection.send(target.start("sh", "-c", "head -c 200000000 /dev/zero | tr '\\0' x", wait=True, logs=True))
            connections.append(connection)
        for _ in range(20):
            target.answers()
            assert target.run("echo", "here") == "here\n"
        # Nobody has read any of it, so all of it ends.
        wait_until(lambda: target.held().connections == 0, SOON_S, "clients that read nothing are still connected")
    target.run("pkill", "-x", "head") if target.run("sh", "-c", "pgrep -x head || true") else None


def test_a_file_that_nobody_reads_waits_in_bounded_memory_and_its_connection_ends(target: Target) -> None:
    target.run("sh", "-c", "head -c 100000000 /dev/zero > /tmp/large")
    api, host = target.child("hutch.api.main"), target.child("host")
    with bounded_memory(api), bounded_memory(host, 96 * MIB):
        for _ in range(5):
            target.connect(receive_bytes=4096).send(target.post(target.in_session("fs/read"), b'{"path":"/tmp/large"}'))
        target.answers()
        wait_until(lambda: target.held().connections == 0, SOON_S, "clients that read nothing are still connected")


def test_a_file_that_is_read_slowly_arrives_whole(target: Target) -> None:
    """Longer than the limit for who takes nothing."""
    target.run("sh", "-c", "head -c 30000000 /dev/urandom > /tmp/slowly; sha256sum /tmp/slowly > /tmp/sum")
    connection = target.connect(receive_bytes=16_384)
    connection.send(target.post(target.in_session("fs/read"), b'{"path":"/tmp/slowly"}', "connection: close"))
    began, size = time.monotonic(), 0
    assert connection.head()[0] == 200
    while more := connection.read():
        size += len(more)
        if time.monotonic() - began < 2 * STALL_S:
            time.sleep(0.05)  # The rate is what is tested.
    assert size > 30_000_000
    assert time.monotonic() - began > STALL_S


# -- connections -------------------------------------------------------------------------------------


def test_hundreds_of_idle_connections_hold_nobody_up(target: Target, full_campaign: bool) -> None:
    for _ in range(10 if full_campaign else 1):
        idle = [target.connect() for _ in range(500)]
        assert target.held().connections >= 500
        for _ in range(20):
            target.answers()
        wait_until(lambda: target.held().connections < 10, SOON_S, "idle connections are still open")
        assert all(connection.is_closed for connection in idle)


def test_connections_of_one_address_beyond_the_limit_are_503(target: Target) -> None:
    kept = [target.say(LINE + HOST + END) for _ in range(MOST_OF_ONE)]
    answer = target.ask(LINE + HOST + END)
    assert (answer.status, answer.code, answer.headers["retry-after"]) == (503, "too_many_connections", "1")
    # Another address of this machine is another client.
    other = socket.create_connection(target.address, source_address=("127.0.0.2", 0), timeout=SOON_S)
    target.open.append(Connection(other))
    target.open[-1].send(LINE + HOST + END)
    assert target.open[-1].answer().status == 200
    # Far beyond, nobody is told.
    more = [target.connect() for _ in range(200)]
    assert any(connection.is_closed for connection in more[-20:])
    for connection in (*kept, *more):
        connection.socket.close()
    wait_until(lambda: target.ask(LINE + HOST + b"connection: close\r\n\r\n").status == 200, SOON_S, "nobody gets in any more")


def test_a_storm_of_resets_leaves_nothing(target: Target, full_campaign: bool) -> None:
    command = target.detached("sleep", "1000")
    beginnings = [
        b"",
        LINE,
        LINE + HOST + END,
        target.head("POST", target.in_session("cmd"), "content-length: 100") + b"{",
        target.head("GET", target.in_session(f"cmd/{command}/logs")),
        target.start("true", wait=True, logs=True),
        upload(target, "/tmp/storm", 10_000) + bytes(512),
        LINE + HOST + WEBSOCKET + END,
    ]
    for number in range(8000 if full_campaign else 400):
        target.say(beginnings[number % len(beginnings)]).reset()
        target.open.pop()
    target.kill(command)


# -- terminals ---------------------------------------------------------------------------------------

START = json.dumps({"type": "start", "command": "cat", "args": [], "env": [], "cols": 80, "rows": 24}).encode()


def ticket(target: Target) -> str:
    return str(json.loads(target.ask(target.post(target.in_session("interactive"), b"{}")).body)["token"])


def handshake(target: Target, token: str, *lines: bytes) -> Connection:
    head = f"GET /v2/sandboxes/terminal?token={token} HTTP/1.1\r\n".encode() + HOST + WEBSOCKET
    return target.say(head, *lines, END)


def opened(target: Target, *lines: bytes) -> Connection:
    connection = handshake(target, ticket(target), *lines)
    assert connection.head()[0] == 101
    return connection


def terminal(target: Target, *lines: bytes) -> Connection:
    """A terminal whose program echoes."""
    connection = opened(target, *lines)
    connection.send(frame(TEXT, START), frame(BINARY, b"hello\n"))
    shown = b""
    while shown.count(b"hello") < 2:
        shown += read_frame(connection)[1]
    return connection


@pytest.mark.parametrize("token", ["", "x", "x" * 5000, "%00", "%ff", "../x", "pty_" + "0" * 64])
def test_a_wrong_ticket_is_401_and_no_websocket(target: Target, token: str) -> None:
    answer = handshake(target, token).answer()
    assert (answer.status, answer.code) == (401, "unauthorized")


def test_a_ticket_is_good_once_also_at_once(target: Target) -> None:
    token = ticket(target)
    statuses = sorted(connection.head()[0] for connection in [handshake(target, token) for _ in range(10)])
    assert statuses == [101] + [401] * 9


@pytest.mark.parametrize(
    ("path", "host", "status"),
    [("/healthz", "x", 404), ("/v2/sandboxes", "x", 404), ("/v2/sandboxes/terminal", "a.localhost", 421)],
)
def test_websockets_elsewhere_are_refused_in_the_one_shape(target: Target, path: str, host: str, status: int) -> None:
    answer = target.ask(f"GET {path} HTTP/1.1\r\nhost: {host}\r\n".encode() + WEBSOCKET + END)
    assert answer.status == status
    assert answer.code


def test_a_websocket_behind_a_request_is_refused(target: Target) -> None:
    connection = target.say(LINE + HOST + END, b"GET /v2/sandboxes/terminal HTTP/1.1\r\n" + HOST + WEBSOCKET + END)
    assert connection.answer().status == 200
    assert connection.answer().code == "bad_request"


BAD_FRAMES = {
    "unmasked": (frame(BINARY, b"x", masked=False), 1002),
    "reserved-bits": (frame(BINARY, b"x", reserved=7), 1002),
    "opcode-3": (frame(3, b"x"), 1002),
    "opcode-11": (frame(11, b"x"), 1002),
    "long-ping": (frame(PING, bytes(126)), 1002),
    "ping-in-pieces": (frame(PING, b"x", fin=False), 1002),
    "close-in-pieces": (frame(CLOSE, b"\x03\xe8", fin=False), 1002),
    "close-of-one-byte": (frame(CLOSE, b"x"), 1002),
    "close-with-bad-code": (frame(CLOSE, b"\x00\x01"), 1002),
    "close-with-bad-text": (frame(CLOSE, b"\x03\xe8\xff"), 1007),
    "piece-of-nothing": (frame(0, b"x"), 1002),
    "message-in-message": (frame(TEXT, b"x", fin=False) + frame(TEXT, b"y"), 1002),
    "oversize": (frame(BINARY, size=2 * MIB), 1009),
    "oversize-64-bits": (frame(BINARY, size=2**62), 1009),
    "oversize-in-pieces": (frame(BINARY, bytes(MIB), fin=False) + frame(0, b"x"), 1009),
    "length-with-high-bit": (frame(BINARY, size=2**63), 1009),
    "not-utf-8": (frame(TEXT, b"\xff\xfe"), 1007),
    "not-utf-8-in-pieces": (frame(TEXT, b"\xe2\x82", fin=False) + frame(0, b"x"), 1007),
    "compressed-without-agreement": (frame(BINARY, b"x", reserved=4), 1002),
    "endless-pieces": (frame(TEXT, b"", fin=False) + frame(0, b"", fin=False) * 5000, 1008),
    "flood-of-pings": (frame(PING, b"x") * 5000, 1008),
}


@pytest.mark.parametrize(("said", "code"), BAD_FRAMES.values(), ids=BAD_FRAMES)
@pytest.mark.parametrize("started", [True, False], ids=["started", "fresh"])
def test_frames_that_break_the_protocol_close_the_terminal(target: Target, said: bytes, code: int, started: bool) -> None:
    connection = terminal(target) if started else opened(target)
    connection.try_send(said)
    assert close_code(connection) == code


def test_a_compressed_bomb_closes_the_terminal(target: Target) -> None:
    connection = opened(target, b"sec-websocket-extensions: permessage-deflate\r\n")
    packer = zlib.compressobj(9, zlib.DEFLATED, -12)
    bomb = packer.compress(bytes(256 * MIB)) + packer.flush(zlib.Z_SYNC_FLUSH)
    with bounded_memory(target.child("hutch.api.main")):
        connection.try_send(frame(TEXT, bomb[:-4][: MIB - 1], reserved=4))
        assert close_code(connection) == 1009


@pytest.mark.parametrize(
    "first", [frame(BINARY, b"\xff"), frame(TEXT, b"[" * 100_000), frame(TEXT, b'{"type":"start"}'), frame(TEXT, b"")]
)
def test_a_first_message_that_starts_nothing_ends_the_terminal(target: Target, first: bytes) -> None:
    connection = opened(target)
    connection.send(first)
    last = b""
    for opcode, data in frames(connection):
        if opcode == CLOSE:
            break
        last = data
    assert json.loads(last) == {"type": "exit", "code": 127}


@pytest.mark.parametrize("end", ["close", "half", "reset", "close-and-stay"])
def test_a_terminal_whose_client_goes_is_hung_up(target: Target, end: str) -> None:
    connection = terminal(target)
    if end == "half":
        connection.stop_writing()
    elif end == "reset":
        connection.reset()
    elif end == "close":
        connection.socket.close()
    else:
        connection.send(frame(CLOSE, b"\x03\xe8"))
        assert close_code(connection) == 1000
    wait_until(lambda: target.held().connections == 0, SOON_S, "the connection is held")
    wait_until(lambda: target.run("sh", "-c", "pgrep -xc cat || true") == "0\n", SOON_S, "the program goes on")


def test_pings_whose_answers_nobody_takes_are_bounded(target: Target) -> None:
    connection = target.connect(receive_bytes=4096)
    connection.send(f"GET /v2/sandboxes/terminal?token={ticket(target)} HTTP/1.1\r\n".encode() + HOST + WEBSOCKET + END)
    assert connection.head()[0] == 101
    connection.socket.settimeout(0.5)
    with bounded_memory(target.child("hutch.api.main")):
        while connection.try_send(frame(PING, bytes(125)) * 90):
            pass
        wait_until(lambda: target.held().connections == 0, SOON_S, "the connection is held")


def test_a_terminal_that_nobody_reads_is_closed(target: Target) -> None:
    connection = target.connect(receive_bytes=4096)
    connection.send(f"GET /v2/sandboxes/terminal?token={ticket(target)} HTTP/1.1\r\n".encode() + HOST + WEBSOCKET + END)
    assert connection.head()[0] == 101
    start = json.dumps({"type": "start", "command": "yes", "args": [], "env": [], "cols": 80, "rows": 24}).encode()
    with bounded_memory(target.child("hutch.api.main")):
        connection.send(frame(TEXT, start))
        wait_until(lambda: target.held().connections == 0, SOON_S, "the connection is held")


def test_limits_of_requests_are_none_of_terminals(target: Target) -> None:
    """One that nothing happens on stays, also beyond all limits of time."""
    connection = terminal(target)
    connection.socket.settimeout(2 * max(HEADER_S, BODY_S, STALL_S, KEEP_ALIVE_S))
    with pytest.raises(TimeoutError):
        # A shell that starts slowly shows its prompt first.
        while read_frame(connection)[0] >= 0:
            pass
    connection.socket.settimeout(SOON_S)
    connection.send(frame(BINARY, b"still\n"))
    list_until(connection, b"still")


def test_unasked_pongs_and_nonsense_between_are_ignored(target: Target) -> None:
    connection = terminal(target)
    connection.send(
        frame(PONG, b"x") * 50, frame(TEXT, b"x", fin=False), frame(PING, b"p"), frame(0, b"y"), frame(BINARY, b"still\n")
    )
    shown = list_until(connection, b"still")
    assert (PONG, b"p") in shown
    connection.send(frame(CLOSE, b"\x03\xe8"))
    assert close_code(connection) == 1000


def list_until(connection: Connection, mark: bytes) -> list[tuple[int, bytes]]:
    found: list[tuple[int, bytes]] = []
    while not any(mark in data for _, data in found):
        found.append(read_frame(connection))
        assert found[-1][0] >= 0
    return found


# -- other doors -------------------------------------------------------------------------------------


DNS_QUESTION = b"\x12\x34\x01\0\0\1\0\0\0\0\0\0\1a\4test\0\0\1\0\1"


def test_only_the_api_and_the_ingress_talk_to_clients(target: Target) -> None:
    """Of all that any process of the server listens on. The gateway's sockets are for what the kernel hands it of sandboxes; who
    comes to them straight from this machine is told nothing. Where the ingress passes on webhooks there are webhooks only."""
    own = {name for pid in family(target.process.pid) for name in sockets_of(pid)}
    webhooks = next(port for pid in family(target.process.pid) if (port := webhooks_port(pid)))
    known = {("tcp", target.address[1]), ("tcp", target.ingress[1]), ("tcp", webhooks)}
    found = {}
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for row in (line.split() for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]):
            if row[3] in ("0A", "07") and f"socket:[{row[9]}]" in own:
                address, _, number = row[1].partition(":")
                assert address == "0100007F", "something listens on more than the loopback address"
                found[table, int(number, 16)] = row[9]
    assert known <= found.keys()
    gateway = {where: inode for where, inode in found.items() if where not in known}
    assert sorted(table for table, _ in gateway) == ["tcp", "udp"]
    (net,) = (pid for pid in family(target.process.pid) if {f"socket:[{inode}]" for inode in gateway.values()} & sockets_of(pid))
    before = len(sockets_of(net))
    for table, port in gateway:
        for said in (LINE + HOST + END, NOT_HTTP["tls"], DNS_QUESTION, bytes(1000)):
            probe = socket.socket(type=socket.SOCK_STREAM if table == "tcp" else socket.SOCK_DGRAM)
            # What the gateway sends to this machine the kernel drops, an end as well.
            probe.settimeout(0.3)
            probe.connect(("127.0.0.1", port))
            connection = Connection(probe)
            target.open.append(connection)
            connection.try_send(said)
            with contextlib.suppress(TimeoutError):
                assert connection.rest() == b""
    wait_until(lambda: len(sockets_of(net)) <= before, SOON_S, "the gateway holds connections of nobody")
    token = {"authorization": f"Bearer {target.where.token}"}
    for path, status in (("/healthz", 421), ("/api/hutch/v1/whoami", 421), ("/webhooks/worker/p/w/a/k", 404)):
        assert httpx.get(f"http://127.0.0.1:{webhooks}{path}", headers=token).status_code == status


def webhooks_port(pid: int) -> int:
    """Which a host was told; 0 for other processes."""
    words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    return int(words[words.index("--webhooks-port") + 1]) if "--webhooks-port" in words else 0


def family(root: int) -> Iterator[int]:
    yield root
    for task in Path(f"/proc/{root}/task").iterdir():
        for pid in (task / "children").read_text().split():
            yield from family(int(pid))


def sockets_of(pid: int) -> set[str]:
    return {name for name in descriptors(pid) if name.startswith("socket:")}


def test_sockets_of_the_machine_are_closed_to_its_other_users(target: Target) -> None:
    found = [path for path in target.data_dir.rglob("*") if path.is_socket()]
    assert any(path.name == "host.sock" for path in found)
    script = (
        "import os, socket, sys\nos.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "for path in sys.argv[1:]:\n"
        " probe = socket.socket(socket.AF_UNIX)\n"
        " try: probe.connect(path); print('connected', path)\n"
        " except PermissionError: pass\n"
    )
    # Sockets' paths may be longer than an address: they are reached from their directory.
    for path in found:
        ran = subprocess.run(
            [sys.executable, "-c", script, path.name], cwd=path.parent, capture_output=True, text=True, check=False
        )
        assert "connected" not in ran.stdout, ran


@pytest.mark.parametrize(
    "said",
    [b"\0" * 64, b"\xff" * 4096, LINE + HOST + END, b"\x00\x00\x00\x05hello" * 1000, b""],
    ids=["zeros", "ones", "http", "frames", "nothing"],
)
def test_the_host_hangs_up_on_who_speaks_something_else(target: Target, said: bytes) -> None:
    """By root alone, but what comes is not believed for that."""
    probe = socket.socket(socket.AF_UNIX)
    probe.settimeout(SOON_S)
    directory = os.open(target.data_dir / "run", os.O_PATH)
    probe.connect(f"/proc/self/fd/{directory}/host.sock")
    os.close(directory)
    connection = Connection(probe)
    target.open.append(connection)
    connection.try_send(said)
    if said:
        connection.rest()
    assert target.run("echo", "here") == "here\n"


INGRESS_SAYS = {
    "garbage": b"\0\1\2\r\n\r\n",
    "tls": NOT_HTTP["tls"],
    "two-hosts": NOT_HTTP["two-hosts"],
    "no-host": NOT_HTTP["no-host"],
    "lengths-differ": NOT_HTTP["lengths-differ"],
    "length-and-chunked": NOT_HTTP["length-and-chunked"],
    "large": LARGE["many"],
    "proxy": NOT_HTTP["proxy-1"],
}


def test_the_ingress_refuses_the_same(target: Target) -> None:
    asked = {name: target.connect(target.ingress) for name in INGRESS_SAYS}
    for name, connection in asked.items():
        connection.try_send(INGRESS_SAYS[name])
    for name, connection in asked.items():
        found = connection.rest()
        assert not found or found.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4")), (name, found[:200])


def test_a_slow_head_at_the_ingress_is_closed(target: Target) -> None:
    connections = [target.connect(target.ingress) for _ in range(100)]
    for connection in connections:
        connection.send(LINE)
    for connection in connections:
        assert not connection.rest().startswith(b"HTTP/1.1 2")


def test_memory_does_not_grow_with_what_is_refused(target: Target, full_campaign: bool) -> None:
    """The same again and again: what is kept once is not kept a hundred times."""
    api = target.child("hutch.api.main")
    said = [*NOT_HTTP.values(), *LARGE.values(), target.post("/v3/sandboxes", JSON_BODIES["deep-closed"])]

    def round_of_all() -> None:
        for request in said:
            target.say(request).rest() if b"-closed" in request else target.say(request).reset()
            target.open.pop()

    for _ in range(3):
        round_of_all()
    before = memory_of(api)
    for _ in range(60 if full_campaign else 6):
        round_of_all()
    assert memory_of(api) - before < 16 * MIB

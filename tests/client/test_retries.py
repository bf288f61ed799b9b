"""Which requests are sent again, and which never."""

from __future__ import annotations

import email.utils
import time
from collections.abc import Iterator
from typing import Any, ClassVar

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.client import AsyncClient, AsyncCommand, Command
from hutch.client.retries import Retry, retry_after_s
from hutch.errors import HutchError, NotFoundError, RateLimitedError, UnavailableError
from tests.client.flavours import AT_ONCE, COMMAND, SERVER, SESSION, Flavour, both, chunks, created, failure, now, scripted

BUSY = failure(503, "host_full")


class Script:
    """Answers, one after another; an exception is raised."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self._left: Iterator[httpx.Response | Exception] = iter(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = next(self._left)
        if isinstance(answer, Exception):
            raise answer
        # A response is read once.
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)


def ok(value: Any) -> httpx.Response:
    return httpx.Response(200, json=value)


@both
@pytest.mark.parametrize(
    "first", [BUSY, failure(502, "x"), failure(429, "rate_limited"), httpx.ReadError("reset"), httpx.ConnectError("refused")]
)
async def test_a_read_is_sent_again(flavour: Flavour, first: Any) -> None:
    script = Script(first, ok(created()))
    sandbox = await now(scripted(flavour, script).get_sandbox("box"))
    assert (sandbox.name, len(script.requests)) == ("box", 2)


@both
@pytest.mark.parametrize("first", [BUSY, failure(500, "x"), httpx.ReadError("reset"), httpx.ReadTimeout("slow")])
async def test_a_create_that_may_have_arrived_is_not_sent_again(flavour: Flavour, first: Any) -> None:
    script = Script(first)
    with pytest.raises(HutchError):
        await now(scripted(flavour, script).create_sandbox(name="box"))
    assert len(script.requests) == 1


@both
@pytest.mark.parametrize("first", [failure(429, "rate_limited"), httpx.ConnectError("refused"), httpx.ConnectTimeout("slow")])
async def test_a_create_that_did_nothing_is_sent_again(flavour: Flavour, first: Any) -> None:
    script = Script(first, ok(created()))
    await now(scripted(flavour, script).create_sandbox(name="box"))
    assert script.requests[0].content == script.requests[1].content


@both
@pytest.mark.parametrize("first", [failure(400, "x"), failure(404, "x"), failure(409, "x"), failure(418, "x")])
async def test_a_refusal_is_final(flavour: Flavour, first: httpx.Response) -> None:
    script = Script(first)
    with pytest.raises(HutchError):
        await now(scripted(flavour, script).get_sandbox("box"))
    assert len(script.requests) == 1


@both
async def test_the_last_error_is_raised_when_all_attempts_failed(flavour: Flavour) -> None:
    script = Script(BUSY, BUSY, BUSY)
    with pytest.raises(UnavailableError, match="host_full"):
        await now(scripted(flavour, script).get_sandbox("box"))
    assert len(script.requests) == 3


@both
async def test_nothing_is_sent_again_where_that_is_not_wanted(flavour: Flavour) -> None:
    script = Script(BUSY)
    with pytest.raises(UnavailableError):
        await now(scripted(flavour, script, retry=Retry(attempts=1)).get_sandbox("box"))
    assert len(script.requests) == 1


@both
async def test_the_servers_pause_is_kept(flavour: Flavour) -> None:
    script = Script(failure(429, "rate_limited", **{"retry-after": "1"}), ok(created()))
    before = time.monotonic()
    await now(scripted(flavour, script).create_sandbox())
    assert time.monotonic() - before >= 1


@both
async def test_a_pause_that_is_too_long_is_the_callers_affair(flavour: Flavour) -> None:
    script = Script(failure(429, "rate_limited", **{"retry-after": "3600"}))
    with pytest.raises(RateLimitedError) as raised:
        await now(scripted(flavour, script).create_sandbox())
    assert (raised.value.retry_after_s, len(script.requests)) == (3600, 1)


@both
async def test_a_delete_that_arrived_before_its_answer_was_lost_is_done(flavour: Flavour) -> None:
    script = Script(httpx.ReadError("reset"), failure(404, "not_found"))
    await now(scripted(flavour, script).drives.delete("one"))
    assert len(script.requests) == 2


@both
@pytest.mark.parametrize("first", [httpx.ConnectError("refused"), httpx.ConnectTimeout("slow"), failure(429, "rate_limited")])
async def test_what_never_was_there_is_not_taken_for_deleted(flavour: Flavour, first: Any) -> None:
    with pytest.raises(NotFoundError):
        await now(scripted(flavour, Script(first, failure(404, "not_found"))).drives.delete("one"))


async def test_a_stream_of_which_nothing_was_sent_is_sent_whole() -> None:
    class Refusing(httpx.AsyncBaseTransport):
        bodies: ClassVar[list[bytes]] = []
        asked = 0

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            self.asked += 1
            if self.asked == 1:
                raise httpx.ConnectError("refused")
            self.bodies.append(await request.aread())
            return httpx.Response(200, json={})

    transport = Refusing()
    async with AsyncClient(SERVER, transport=transport, retry=AT_ONCE) as client:
        await client.files.write_archive(SESSION, chunks(AsyncClient, b"a", b"b"))
    assert (transport.asked, transport.bodies) == (2, [b"ab"])


@both
async def test_a_stream_that_was_sent_is_not_sent_again(flavour: Flavour) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        return failure(429, "rate_limited")

    sent: list[httpx.Request] = []
    with pytest.raises(RateLimitedError):
        await now(scripted(flavour, answer).files.write_archive(SESSION, chunks(flavour, b"a", b"b")))
    assert len(sent) == 1


@both
async def test_waiting_for_a_command_outlives_connections(flavour: Flavour) -> None:
    broken = httpx.ReadError("reset")
    script = Script(ok({"command": COMMAND}), broken, broken, broken, ok({"command": COMMAND | {"exitCode": 7}}))
    client = scripted(flavour, script)
    record = await now(client.commands.get(SESSION, "cmd_1"))
    command = (AsyncCommand if flavour is AsyncClient else Command)(client, record)
    assert await now(command.wait()) == 7


@pytest.mark.parametrize(
    ("header", "seconds"),
    [(None, None), ("", None), ("3", 3), (" 0 ", 0), ("-1", None), ("1.5", None), ("9" * 50, None), ("x", None)],
)
def test_what_retry_after_says(header: str | None, seconds: int | None) -> None:
    assert retry_after_s(header) == seconds


def test_a_moment_is_so_many_seconds_from_now() -> None:
    found = retry_after_s(email.utils.formatdate(time.time() + 100, usegmt=True))
    assert found is not None
    assert 97 <= found <= 101


@given(st.text(max_size=60))
def test_any_header_is_none_or_seconds(header: str) -> None:
    found = retry_after_s(header)
    assert found is None or found >= 0


@given(st.integers(0, 20), st.sampled_from([400, 404, 410, 429, 500, 503]), st.none() | st.floats(0, 1e6), st.booleans())
def test_pauses_are_bounded(attempt: int, status: int, wanted: float | None, safe: bool) -> None:
    policy = Retry(attempts=5, longest_pause_s=3)
    pause = policy.after_answer(attempt, status, wanted, safe=safe, replayable=True)
    assert pause is None or (0 <= pause <= 3 and attempt < 4 and (status == 429 or (status >= 500 and safe)))
    assert policy.after_answer(attempt, status, wanted, safe=safe, replayable=False) is None

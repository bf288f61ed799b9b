"""Answers that nobody should send."""

from __future__ import annotations

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.client import wire
from hutch.client.results import entries, status
from hutch.client.wire import Lines, error_of, output_of
from hutch.errors import HutchError, InternalError
from tests.client.flavours import SESSION, Flavour, both, created, each, now, scripted


@both
async def test_a_redirect_is_not_followed_because_the_token_would_go_along(flavour: Flavour) -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url.host))
        return httpx.Response(307, headers={"location": "http://elsewhere.test/"})

    with pytest.raises(InternalError, match="not followed"):
        await now(scripted(flavour, answer).get_sandbox("box"))
    assert asked == ["127.0.0.1"]


@both
async def test_an_answer_without_end_is_broken_off(flavour: Flavour, monkeypatch: pytest.MonkeyPatch) -> None:
    module = "_async" if "Async" in getattr(flavour, "__name__", "") else "_sync"
    monkeypatch.setattr(f"hutch.client.{module}.transport.MAX_ANSWER_BYTES", 1000)
    with pytest.raises(InternalError, match="more than 1000 bytes"):
        await now(scripted(flavour, lambda request: httpx.Response(200, content=b" " * 2000)).get_sandbox("box"))


@both
async def test_a_line_without_end_is_broken_off(flavour: Flavour, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_RECORD_BYTES", 1000)
    with pytest.raises(InternalError, match="line of more than"):
        answer = httpx.Response(200, content=b"x" * 5000)
        await each(scripted(flavour, lambda request: answer).commands.logs(SESSION, "cmd_1"))


@both
@pytest.mark.parametrize("ending", [b'{"stream": "stdout", "data": "ha', b'{"stream": "stdout", "data": "half"}'])
async def test_a_stream_that_is_cut_is_an_error(flavour: Flavour, ending: bytes) -> None:
    whole = b'{"stream": "stdout", "data": "one\\n"}\n'
    with pytest.raises(InternalError) as raised:
        answer = httpx.Response(200, content=whole + ending)
        await each(scripted(flavour, lambda request: answer).commands.logs(SESSION, "cmd_1"))
    assert raised.value.code == "stream_ended_early"


@both
async def test_a_list_that_leads_back_to_itself_ends_with_an_error(flavour: Flavour) -> None:
    page = {"sandboxes": [created()["sandbox"]], "pagination": {"count": 1, "next": "again"}}
    with pytest.raises(InternalError, match="followed by itself"):
        await each(scripted(flavour, lambda request: httpx.Response(200, json=page)).query_sandboxes())


@given(st.binary(max_size=300), st.integers(1, 50))
def test_any_bytes_are_records_or_an_error_wherever_they_are_cut(raw: bytes, size: int) -> None:
    def read(pieces: list[bytes]) -> list[str]:
        lines, found = Lines(), []
        try:
            for piece in pieces:
                found += [repr(output_of(record)) for record in lines.feed(piece) if record.command is None]
            lines.end()
        except HutchError as error:
            found.append(error.code)
        return found

    assert read([raw]) == read([raw[start : start + size] for start in range(0, len(raw), size)])


@given(st.integers(300, 599), st.binary(max_size=200))
def test_any_error_answer_is_an_error_of_ours(code: int, raw: bytes) -> None:
    assert isinstance(error_of(code, "", raw), HutchError)


@given(st.text(max_size=100))
def test_what_a_guest_says_of_its_files_is_a_value_or_an_error(text: str) -> None:
    for read in (lambda: entries("/a", text), lambda: status(text)):
        try:
            read()
        except InternalError as error:
            assert error.code == "unexpected_answer"


@pytest.mark.parametrize("text", ["file\0../../etc/passwd\0", "file\0", "gone\0a\0", "file\0\0", "file\0..\0", "file\0a"])
def test_names_that_lead_elsewhere_are_no_entries(text: str) -> None:
    with pytest.raises(InternalError):
        entries("/a", text)

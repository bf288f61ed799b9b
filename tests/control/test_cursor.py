"""Cursors: what was encoded decodes for the same query, and nothing else does."""

from __future__ import annotations

import base64

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.control.cursor import Position, decode, encode
from hutch.errors import BadRequestError

INT64 = st.integers(-(2**63), 2**63 - 1)
POSITIONS = st.builds(Position, INT64, INT64) | st.builds(
    Position, st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=128), INT64
)


@given(POSITIONS, st.text())
def test_a_cursor_decodes_to_its_position(position: Position, query: str) -> None:
    assert decode(encode(position, query=query), query=query, kind=type(position.value)) == position


@given(POSITIONS, st.text(), st.text())
def test_a_cursor_of_another_query_is_refused(position: Position, query: str, other: str) -> None:
    if query != other:
        with pytest.raises(BadRequestError):
            decode(encode(position, query=query), query=other, kind=type(position.value))


@given(st.text(max_size=2000) | st.binary(max_size=200).map(lambda raw: base64.urlsafe_b64encode(raw).decode()))
def test_junk_is_refused_and_never_crashes(junk: str) -> None:
    with pytest.raises(BadRequestError):
        decode(junk, query="q")


@given(POSITIONS, st.integers(0, 200), st.integers(1, 255))
def test_a_changed_cursor_is_refused_or_still_a_position(position: Position, at: int, change: int) -> None:
    raw = bytearray(encode(position, query="q").encode())
    raw[at % len(raw)] ^= change
    try:
        found = decode(raw.decode("latin-1"), query="q", kind=type(position.value))
    except BadRequestError:
        return
    assert isinstance(found.value, type(position.value))


@pytest.mark.parametrize(
    "payload", [[b"x", 2**70, 1], [b"x", True, 1], [b"x", None, 1], [b"x", 1.5, 1], {"a": 1}, [[[[]]]], [b"x", 1]]
)
def test_payloads_of_other_shapes_are_refused(payload: object) -> None:
    try:
        raw = msgspec.msgpack.encode(payload)
    except OverflowError:
        raw = b"\x93"
    with pytest.raises(BadRequestError):
        decode(base64.urlsafe_b64encode(raw).decode().rstrip("="), query="q")


def test_a_cursor_of_text_is_not_one_of_numbers() -> None:
    with pytest.raises(BadRequestError):
        decode(encode(Position("a", 1), query="q"), query="q", kind=int)

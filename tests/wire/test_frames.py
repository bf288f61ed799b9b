"""Frames: any split of any bytes decodes the same, and whatever is no frame is a violation and nothing else."""

from __future__ import annotations

import time
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.wire.frames import (
    FIXED_BYTES,
    HEADER,
    MAX_PAYLOAD_BYTES,
    STREAMLESS,
    Frame,
    FrameDecoder,
    Kind,
    WireViolation,
    encode_frame,
)
from tests.wire.campaign import campaign


@st.composite
def frames(draw: st.DrawFn) -> Frame:
    """A frame that may be sent."""
    kind = draw(st.sampled_from(Kind))
    fixed = FIXED_BYTES.get(kind)
    size = {"min_size": 1, "max_size": 300} if fixed is None else {"min_size": fixed, "max_size": fixed}
    return Frame(
        kind,
        0 if kind in STREAMLESS else draw(st.integers(1, 2**32 - 1)),
        draw(st.integers(0, 2)) if kind is Kind.DATA else 0,
        draw(st.binary(**size)),
    )


@st.composite
def splits(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """`data` in pieces."""
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=12)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def encode(frame: Frame) -> bytes:
    return encode_frame(frame.kind, frame.stream, frame.payload, frame.channel)


def decode(chunks: list[Any], limit: int | None = None) -> tuple[list[Frame], bool]:
    """The frames before the first violation, and whether there was one."""
    decoder = FrameDecoder()
    found: list[Frame] = []
    try:
        for chunk in chunks:
            decoder.feed(chunk)
            found += decoder.frames(limit)
            while decoder.stopped:
                found += decoder.frames(limit)
    except WireViolation:
        return found, True
    return found, False


@campaign(200)
@given(st.data(), st.lists(frames(), max_size=8), st.sampled_from([bytes, bytearray, memoryview]))
def test_encoded_frames_decode_to_themselves_however_they_are_split(data: st.DataObject, sent: list[Frame], kind: Any) -> None:
    chunks = data.draw(splits(b"".join(map(encode, sent))))
    assert decode([kind(chunk) for chunk in chunks]) == (sent, False)


@campaign(200)
@given(st.data(), st.lists(frames(), max_size=4), st.binary(max_size=80))
def test_any_split_of_any_bytes_decodes_the_same(data: st.DataObject, sent: list[Frame], rest: bytes) -> None:
    stream = b"".join(map(encode, sent)) + rest
    whole, violated = decode([stream])
    # What a violation ends may differ in how many frames were handed out before, not in what they are.
    split, split_violated = decode(data.draw(splits(stream)))
    assert violated == split_violated
    assert whole == split[: len(whole)] or split == whole[: len(split)]
    assert whole[: len(sent)] == sent or violated


@campaign(100)
@given(st.lists(frames(), min_size=1, max_size=20), st.integers(1, 5))
def test_a_limit_holds_frames_back_and_loses_none(sent: list[Frame], limit: int) -> None:
    decoder = FrameDecoder()
    decoder.feed(b"".join(map(encode, sent)))
    found = list(decoder.frames(limit))
    assert found == sent[:limit]
    assert decoder.stopped == (len(sent) > limit)
    assert found + list(decoder.frames()) == sent


@campaign(100)
@given(st.lists(frames(), min_size=2, max_size=20), st.integers(1, 3))
def test_bytes_that_come_while_frames_are_held_back_follow_them(sent: list[Frame], limit: int) -> None:
    decoder = FrameDecoder()
    decoder.feed(b"".join(map(encode, sent)))
    found = list(decoder.frames(limit))
    decoder.feed(encode(sent[0]))
    assert found + list(decoder.frames()) == [*sent, sent[0]]


@campaign(300)
@given(st.binary(min_size=12, max_size=12))
def test_a_header_is_taken_only_with_every_field_in_its_bounds(header: bytes) -> None:
    length, kind, channel, zero, stream = HEADER.unpack(header)
    allowed = (
        length <= MAX_PAYLOAD_BYTES
        and kind in list(Kind)
        and zero == 0
        and (channel == 0 or (kind == Kind.DATA and channel <= 2))
        and (stream == 0) == (kind in STREAMLESS)
        and (length == FIXED_BYTES[Kind(kind)] if kind in FIXED_BYTES else length > 0)
    )
    assert decode([header])[1] == (not allowed)


@campaign(200)
@given(st.lists(frames(), min_size=1, max_size=6), st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), min_size=1))
def test_mutated_frames_are_frames_or_violations(sent: list[Frame], changes: list[tuple[int, int]]) -> None:
    stream = bytearray(b"".join(map(encode, sent)))
    for position, value in changes:
        stream[position % len(stream)] = value
    for frame in decode([bytes(stream)])[0]:
        assert decode([encode(frame)]) == ([frame], False)


def test_a_payload_that_is_too_large_is_not_encoded() -> None:
    with pytest.raises(ValueError, match="at most 262144"):
        encode_frame(Kind.DATA, 1, bytes(MAX_PAYLOAD_BYTES + 1))
    assert decode([encode_frame(Kind.DATA, 1, bytes(MAX_PAYLOAD_BYTES))])[0][0].payload == bytes(MAX_PAYLOAD_BYTES)


def test_a_frame_that_arrives_byte_by_byte_costs_no_more_than_its_bytes() -> None:
    encoded = encode_frame(Kind.DATA, 1, bytes(MAX_PAYLOAD_BYTES))
    began = time.process_time()
    found, violated = decode([encoded[i : i + 1] for i in range(len(encoded))])
    assert (len(found), violated) == (1, False)
    assert time.process_time() - began < 5, "a partial frame is copied again and again"


def test_memory_is_bounded_by_one_frame_and_one_chunk() -> None:
    encoded = encode_frame(Kind.DATA, 1, bytes(MAX_PAYLOAD_BYTES)) * 3
    decoder = FrameDecoder()
    tracemalloc.start()
    try:
        for _ in range(30):
            for position in range(0, len(encoded), 10_000):
                decoder.feed(encoded[position : position + 10_000])
                for _frame in decoder.frames():
                    pass
        assert tracemalloc.get_traced_memory()[1] < 4 * MAX_PAYLOAD_BYTES
    finally:
        tracemalloc.stop()


def test_a_chunk_that_its_owner_uses_again_is_not_looked_at_later() -> None:
    encoded = encode_frame(Kind.PING, 0, b"12345678") + encode_frame(Kind.DATA, 7, b"abc")
    chunk = bytearray(encoded[:25])
    decoder = FrameDecoder()
    decoder.feed(chunk)
    assert len(list(decoder.frames())) == 1
    chunk[:] = b"\xff" * 25
    decoder.feed(encoded[25:])
    assert list(decoder.frames()) == [Frame(Kind.DATA, 7, 0, b"abc")]

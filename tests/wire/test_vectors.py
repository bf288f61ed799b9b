"""Both codecs make the same of the same bytes; `crates/wire/tests/vectors.rs` is the other half of this file."""

from __future__ import annotations

from typing import Any

import pytest

from hutch.wire.frames import FrameDecoder, WireViolation
from hutch.wire.mux import Hello, Mux, Role
from tests.wire.vectors import FRAMES, SESSIONS, Item, described, encoded


def named(vectors: list[dict[str, Any]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("vector", vectors, ids=[vector["name"] for vector in vectors])


def decode(data: bytes, size: int) -> list[Item]:
    decoder, frames = FrameDecoder(), []
    for position in range(0, len(data), size):
        decoder.feed(data[position : position + size])
        frames += [[f.kind.name, f.stream, f.payload.hex(), f.channel] for f in decoder.frames()]
    return frames


@named(FRAMES)
@pytest.mark.parametrize("size", [1, 7, 1_000_000])
def test_frames(vector: dict[str, Any], size: int) -> None:
    data = bytes.fromhex(vector["bytes"])
    if vector.get("violation"):
        with pytest.raises(WireViolation):
            decode(data, size)
    else:
        assert decode(data, size) == [[*frame, *[0] * (4 - len(frame))] for frame in vector["frames"]]


def run(session: dict[str, Any], size: int) -> tuple[list[Item], bytes]:
    """What a session says and sends."""
    hello = Hello(version=1, role=Role.HOST, window=64, max_streams=4)
    mux = Mux(client=session["side"] == "client", hello=hello)
    mux.take_outgoing()
    events: list[Item] = []
    for step in session["steps"]:
        match next(iter(step.items())):
            case "receive", frames:
                data = b"".join(map(encoded, frames))
                for position in range(0, len(data), size):
                    events += map(described, mux.receive(data[position : position + size]))
            case "open", method:
                mux.send_open(method, {})
            case "reply", stream:
                mux.send_reply(stream, {})
            case "end", stream:
                mux.send_end(stream)
            case "error", stream:
                mux.send_error(stream, 404, "not_found", "No.")
            case "cancel", stream:
                mux.send_cancel(stream)
            case "grant", [stream, count]:
                mux.grant(stream, count)
            case other:
                raise AssertionError(other)
    return events, b"".join(mux.take_outgoing())


@named(SESSIONS)
@pytest.mark.parametrize("size", [1, 1_000_000])
def test_sessions(vector: dict[str, Any], size: int) -> None:
    if vector.get("violation"):
        with pytest.raises(WireViolation):
            run(vector, size)
    else:
        events, sent = run(vector, size)
        assert events == vector["events"]
        assert sent == b"".join(map(encoded, vector["sent"]))

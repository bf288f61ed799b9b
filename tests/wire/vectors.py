"""The vectors of `vectors.json`, which the Rust crate is tested with too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hutch.wire.frames import Kind, encode_frame
from hutch.wire.mux import (
    Cancelled,
    CreditReceived,
    DataReceived,
    EndReceived,
    ErrorReceived,
    Event,
    EventReceived,
    HelloReceived,
    Opened,
    PongReceived,
    ReplyReceived,
)

Item = list[Any]

VECTORS = json.loads((Path(__file__).parent / "vectors.json").read_text())
FRAMES: list[dict[str, Any]] = VECTORS["frames"]
SESSIONS: list[dict[str, Any]] = VECTORS["sessions"]


def encoded(frame: Item) -> bytes:
    """The bytes of `[kind, stream, payload, channel]`."""
    kind, stream, payload, *channel = frame
    return encode_frame(Kind[kind], stream, bytes.fromhex(payload), channel[0] if channel else 0)


def described(event: Event) -> Item:
    """An event as the vectors write it."""
    match event:
        case HelloReceived(hello):
            return ["hello", str(hello.role), hello.window, hello.max_streams]
        case Opened(stream, method, params):
            return ["open", stream, method, params.hex()]
        case ReplyReceived(stream, payload):
            return ["reply", stream, payload.hex()]
        case EventReceived(stream, payload):
            return ["event", stream, payload.hex()]
        case DataReceived(stream, channel, data):
            return ["data", stream, channel, data.hex()]
        case CreditReceived(stream):
            return ["credit", stream]
        case EndReceived(stream):
            return ["end", stream]
        case ErrorReceived(stream, error):
            return ["error", stream, error.s, error.c, error.m]
        case Cancelled(stream):
            return ["cancel", stream]
        case PongReceived(payload):
            return ["pong", payload.hex()]


def received_bytes(session: dict[str, Any]) -> bytes:
    """Everything that a session receives, in one piece."""
    return b"".join(encoded(frame) for step in session["steps"] for frame in step.get("receive", []))

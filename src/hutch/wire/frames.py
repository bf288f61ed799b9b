"""Frames: a 12-byte header and a payload. Pure functions and one decoder that holds a partial frame."""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from dataclasses import dataclass

MAX_PAYLOAD_BYTES = 262_144
HEADER = struct.Struct("<IBBHI")


class WireViolation(Exception):
    """The peer broke the protocol; the only answer is to close the connection."""


class Kind(enum.IntEnum):
    HELLO = 1
    OPEN = 2
    REPLY = 3
    EVENT = 4
    DATA = 5
    CREDIT = 6
    END = 7
    ERROR = 8
    CANCEL = 9
    PING = 10
    PONG = 11


KIND_VALUES = {int(kind): kind for kind in Kind}
STREAMLESS = frozenset({Kind.HELLO, Kind.PING, Kind.PONG})
EMPTY = frozenset({Kind.END, Kind.CANCEL})
EIGHT_BYTES = frozenset({Kind.PING, Kind.PONG})
U32 = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame as received. `payload` is a copy that the receiver owns."""

    kind: Kind
    stream: int
    channel: int
    payload: bytes


def encode_frame(kind: Kind, stream: int, payload: bytes = b"", channel: int = 0) -> bytes:
    """The bytes of one frame. Raises `ValueError` for a payload beyond `MAX_PAYLOAD_BYTES`."""
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise ValueError(f"a frame carries at most {MAX_PAYLOAD_BYTES} bytes, not {len(payload)}")
    return HEADER.pack(len(payload), kind, channel, 0, stream) + payload


class FrameDecoder:
    """Turns chunks of any size into frames; memory is bounded by one frame and one chunk."""

    def __init__(self) -> None:
        self._partial = bytearray()

    def feed(self, chunk: bytes | bytearray | memoryview) -> Iterator[Frame]:
        """Yield the frames that `chunk` completes. Raises `WireViolation`; the decoder is unusable afterwards."""
        if self._partial:
            self._partial += chunk
            buffer: bytes | bytearray | memoryview = self._partial
        else:
            buffer = chunk
        position, available = 0, len(buffer)
        view = memoryview(buffer)
        try:
            while available - position >= HEADER.size:
                length, kind_value, channel, zero, stream = HEADER.unpack_from(view, position)
                kind = check_header(length, kind_value, channel, zero, stream)
                end = position + HEADER.size + length
                if end > available:
                    break
                payload = bytes(view[position + HEADER.size : end])
                position = end
                yield Frame(kind, stream, channel, payload)
            rest = bytes(view[position:])
        finally:
            view.release()
        self._partial = bytearray(rest)


def check_header(length: int, kind_value: int, channel: int, zero: int, stream: int) -> Kind:
    """The kind of a header whose fields are all within their bounds; raises `WireViolation` otherwise."""
    kind = KIND_VALUES.get(kind_value)
    if kind is None:
        raise WireViolation(f"unknown frame kind {kind_value}")
    if length > MAX_PAYLOAD_BYTES:
        raise WireViolation(f"frame of {length} bytes, at most {MAX_PAYLOAD_BYTES} are allowed")
    if zero != 0:
        raise WireViolation(f"reserved header field is {zero}, not 0")
    if channel != 0 and (kind is not Kind.DATA or channel > 2):
        raise WireViolation(f"channel {channel} on {kind.name}")
    if (stream == 0) != (kind in STREAMLESS):
        raise WireViolation(f"{kind.name} on stream {stream}")
    if kind in EMPTY and length != 0:
        raise WireViolation(f"{kind.name} with a payload of {length} bytes")
    if kind in EIGHT_BYTES and length != 8:
        raise WireViolation(f"{kind.name} of {length} bytes, not 8")
    if kind is Kind.CREDIT and length != 4:
        raise WireViolation(f"CREDIT of {length} bytes, not 4")
    return kind

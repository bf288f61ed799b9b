"""Frames: a 12-byte header and a payload. Pure functions and one decoder that holds what is not a whole frame yet."""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator

import msgspec

MAX_PAYLOAD_BYTES = 262_144
HEADER = struct.Struct("<IBBHI")
HEADER_BYTES = HEADER.size
U32 = struct.Struct("<I")
Bytes = bytes | bytearray | memoryview


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
FIXED_BYTES = {Kind.END: 0, Kind.CANCEL: 0, Kind.CREDIT: 4, Kind.PING: 8, Kind.PONG: 8}
"""Payload sizes of the kinds that have just one; all others carry at least one byte."""


class Frame(msgspec.Struct, frozen=True, gc=False):
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
    """Turns chunks of any size into frames: `feed` bytes, then take `frames`.

    Memory is bounded by one frame and one chunk, and work by the bytes received, however small the chunks are: a
    partial frame is looked at again only when all of it has arrived. Unusable after a `WireViolation`.
    """

    def __init__(self) -> None:
        self._buffer: Bytes = b""
        self._position = 0
        self._needed = HEADER_BYTES
        self.stopped = False
        """Whether the last `frames` ended at its limit, with frames left."""

    def feed(self, chunk: Bytes) -> None:
        """Add bytes."""
        if not chunk:
            return
        if self._position == len(self._buffer):
            self._buffer, self._position = chunk, 0
            return
        if self._position or not isinstance(self._buffer, bytearray):
            self._buffer, self._position = bytearray(memoryview(self._buffer)[self._position :]), 0
        self._buffer += chunk

    def frames(self, limit: int | None = None) -> Iterator[Frame]:
        """Yield the frames that are complete, at most `limit`. Raises `WireViolation`."""
        buffer, self.stopped = self._buffer, False
        available = len(buffer)
        if available - self._position < self._needed:
            self._keep()
            return
        with memoryview(buffer) as view:
            while available - self._position >= HEADER_BYTES:
                begin = self._position + HEADER_BYTES
                length, kind_value, channel, zero, stream = HEADER.unpack_from(view, self._position)
                kind = check_header(length, kind_value, channel, zero, stream)
                end = begin + length
                if end > available:
                    self._needed = HEADER_BYTES + length
                    break
                if limit is not None:
                    if limit == 0:
                        self._needed, self.stopped = HEADER_BYTES, True
                        break
                    limit -= 1
                self._position = end
                yield Frame(kind, stream, channel, bytes(view[begin:end]))
            else:
                self._needed = HEADER_BYTES
        self._keep()

    def _keep(self) -> None:
        """Own the rest: a chunk that was fed belongs to the caller, and a whole one must not be kept for its end."""
        if self._position == len(self._buffer):
            self._buffer, self._position = b"", 0
        elif self._position or not isinstance(self._buffer, bytearray):
            self._buffer, self._position = bytearray(memoryview(self._buffer)[self._position :]), 0


def check_header(length: int, kind_value: int, channel: int, zero: int, stream: int) -> Kind:
    """The kind of a header whose fields are all within their bounds; raises `WireViolation` otherwise."""
    kind = KIND_VALUES.get(kind_value)
    if kind is Kind.DATA and 0 < length <= MAX_PAYLOAD_BYTES and channel <= 2 and zero == 0 and stream:
        return kind  # What bulk data consists of, checked in one go.
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
    fixed = FIXED_BYTES.get(kind)
    if (length != fixed) if fixed is not None else (length == 0):
        raise WireViolation(f"{kind.name} with a payload of {length} bytes")
    return kind

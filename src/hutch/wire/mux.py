"""Streams over frames, without I/O: the state of each stream, credit, and the rules of who may send what.

`receive` takes bytes and returns what happened as values; the `send_*` methods queue bytes, which the owner takes with
`take_outgoing` and writes to its transport. Nothing here waits: a caller that has no credit is told so by `send_credit`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from hutch.wire.frames import HEADER, MAX_PAYLOAD_BYTES, U32, Bytes, FrameDecoder, Kind, WireViolation, encode_frame

T = TypeVar("T")

VERSION = 1
MAX_OUTSTANDING_CREDIT = 16 * 1024 * 1024
MIN_WINDOW_BYTES = 16 * 1024
MAX_WINDOW_BYTES = 4 * 1024 * 1024
MAX_STREAM = 2**32 - 1
MAX_ERROR_MESSAGE = 8192
MAP_MARKERS = frozenset({*range(0x80, 0x90), 0xDE, 0xDF})
"""First bytes of MessagePack maps."""


class Role(enum.StrEnum):
    HOST = "host"
    AGENT = "agent"
    CONTROL = "control"


class Hello(msgspec.Struct, frozen=True):
    """The first frame of each side. `window` in bytes per stream; `boot` and `token` come from agents only."""

    version: int
    role: Role
    window: int
    max_streams: int
    boot: str = ""
    token: str = ""
    agent: str = ""


class OpenMessage(msgspec.Struct, frozen=True):
    """The payload of OPEN: method and parameters."""

    m: str
    p: msgspec.Raw


class ErrorMessage(msgspec.Struct, frozen=True, omit_defaults=True):
    """The payload of ERROR: HTTP status, code, message, and further fields for the caller."""

    s: int
    c: str
    m: str
    d: dict[str, Any] = msgspec.field(default_factory=dict)


class HelloReceived(msgspec.Struct, frozen=True, gc=False):
    hello: Hello


class Opened(msgspec.Struct, frozen=True, gc=False):
    stream: int
    method: str
    params: bytes


class ReplyReceived(msgspec.Struct, frozen=True, gc=False):
    stream: int
    payload: bytes


class EventReceived(msgspec.Struct, frozen=True, gc=False):
    stream: int
    payload: bytes


class DataReceived(msgspec.Struct, frozen=True, gc=False):
    stream: int
    channel: int
    data: bytes


class CreditReceived(msgspec.Struct, frozen=True, gc=False):
    stream: int


class EndReceived(msgspec.Struct, frozen=True, gc=False):
    stream: int


class ErrorReceived(msgspec.Struct, frozen=True):
    stream: int
    error: ErrorMessage


class Cancelled(msgspec.Struct, frozen=True, gc=False):
    stream: int


class PongReceived(msgspec.Struct, frozen=True, gc=False):
    payload: bytes


StreamEvent = ReplyReceived | EventReceived | DataReceived | CreditReceived | EndReceived | ErrorReceived | Cancelled
"""What happens on a stream that is open."""
Event = HelloReceived | PongReceived | Opened | StreamEvent


@dataclass(slots=True)
class StreamState:
    """One stream: credit in both directions and which ends are closed."""

    send_credit: int
    receive_credit: int
    replied: bool = False
    sent_end: bool = False
    received_end: bool = False


@dataclass(slots=True)
class Mux:
    """One end of a channel. `client` says whether this end opens streams.

    Errors: `WireViolation` from `receive` when the peer breaks a rule; `RuntimeError` when the owner does, and
    `ValueError` for a message that does not fit into a frame.
    """

    client: bool
    hello: Hello
    outgoing_bytes: int = 0
    """Bytes that are queued."""
    peer: Hello | None = None
    streams: dict[int, StreamState] = field(default_factory=dict)
    data_frames: int = 0
    control_frames: int = 0
    """Frames received, DATA and all others, until somebody sets these to 0."""
    _outgoing: list[Bytes] = field(default_factory=list)
    _decoder: FrameDecoder = field(default_factory=FrameDecoder)
    _next_stream: int = 1
    _last_opened: int = 0

    def __post_init__(self) -> None:
        self._push(Kind.HELLO, 0, msgspec.msgpack.encode(self.hello))

    # -- receiving ---------------------------------------------------------------------------------

    def receive(self, chunk: Bytes = b"", limit: int | None = None) -> list[Event]:
        """What the bytes say. With a `limit`, at most that many frames are looked at; while `has_more` is true, call
        again (with no bytes) for the rest. Raises `WireViolation`; the channel must then be closed."""
        events: list[Event] = []
        self._decoder.feed(chunk)
        for frame in self._decoder.frames(limit):
            kind = frame.kind
            if kind is Kind.DATA:
                self.data_frames += 1
                if self._spend(frame.stream, len(frame.payload), kind):
                    events.append(DataReceived(frame.stream, frame.channel, frame.payload))
                continue
            self.control_frames += 1
            self._receive_control(kind, frame.stream, frame.payload, events)
        return events

    @property
    def has_more(self) -> bool:
        """Whether `receive` stopped at its limit."""
        return self._decoder.stopped

    def _receive_control(self, kind: Kind, stream: int, payload: bytes, events: list[Event]) -> None:
        if self.peer is None and kind is not Kind.HELLO:
            raise WireViolation(f"{kind.name} before HELLO")
        if kind in MESSAGES:
            check_message(payload)
        if (event := RECEIVERS[kind](self, stream, payload)) is not None:
            events.append(event)

    def _receive_hello(self, _stream: int, payload: bytes) -> Event:
        if self.peer is not None:
            raise WireViolation("second HELLO")
        peer = decode(payload, Hello)
        if peer.version != VERSION:
            raise WireViolation(f"the peer speaks version {peer.version}, this end {VERSION}")
        if not MIN_WINDOW_BYTES <= peer.window <= MAX_WINDOW_BYTES:
            raise WireViolation(f"window of {peer.window} bytes")
        if not 0 <= peer.max_streams <= MAX_STREAM:
            raise WireViolation(f"{peer.max_streams} streams at once")
        if len(peer.boot.encode()) > 64 or len(peer.token.encode()) > 256 or len(peer.agent.encode()) > 64:
            raise WireViolation("oversized field in HELLO")
        self.peer = peer
        return HelloReceived(peer)

    def _receive_open(self, stream: int, payload: bytes) -> Event | None:
        if self.client:
            raise WireViolation("OPEN from a server")
        if stream <= self._last_opened:
            raise WireViolation(f"stream {stream} opened after {self._last_opened}")
        if len(self.streams) >= self.hello.max_streams:
            raise WireViolation(f"more than {self.hello.max_streams} streams")
        self._last_opened = stream
        self._add_stream(stream)
        try:
            message = msgspec.msgpack.decode(payload, type=OpenMessage)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            self.send_error(stream, 400, "bad_request", "Invalid request: OPEN needs a method and parameters")
            return None
        return Opened(stream, message.m, bytes(message.p))

    def _receive_reply(self, stream: int, payload: bytes) -> Event | None:
        state = self._answered(stream, Kind.REPLY)
        if state is None:
            return None
        if state.replied:
            raise WireViolation(f"second REPLY on stream {stream}")
        state.replied = True
        return ReplyReceived(stream, payload)

    def _receive_event(self, stream: int, payload: bytes) -> Event | None:
        return EventReceived(stream, payload) if self._spend(stream, len(payload), Kind.EVENT) else None

    def _receive_credit(self, stream: int, payload: bytes) -> Event | None:
        state = self._live(stream, Kind.CREDIT)
        if state is None:
            return None
        credit = state.send_credit + U32.unpack(payload)[0]
        if credit > MAX_OUTSTANDING_CREDIT:
            raise WireViolation(f"stream {stream} was given more than {MAX_OUTSTANDING_CREDIT} bytes of credit")
        state.send_credit = credit
        return CreditReceived(stream)

    def _receive_end(self, stream: int, _payload: bytes) -> Event | None:
        state = self._live(stream, Kind.END)
        if state is None:
            return None
        if self.client and not state.replied:
            raise WireViolation(f"END before the reply on stream {stream}")
        if state.received_end:
            raise WireViolation(f"second END on stream {stream}")
        state.received_end = True
        self._drop_if_over(stream, state)
        return EndReceived(stream)

    def _receive_error(self, stream: int, payload: bytes) -> Event | None:
        if self._answered(stream, Kind.ERROR) is None:
            return None
        error = decode(payload, ErrorMessage)
        if not 0 <= error.s < 2**16:
            raise WireViolation(f"status {error.s} in ERROR")
        del self.streams[stream]
        return ErrorReceived(stream, error)

    def _receive_cancel(self, stream: int, _payload: bytes) -> Event | None:
        if self.client:
            raise WireViolation("CANCEL from a server")
        if self._live(stream, Kind.CANCEL) is None:
            return None
        del self.streams[stream]
        return Cancelled(stream)

    def _receive_ping(self, _stream: int, payload: bytes) -> None:
        self._push(Kind.PONG, 0, payload)

    def _receive_pong(self, _stream: int, payload: bytes) -> Event:
        return PongReceived(payload)

    def _live(self, stream: int, kind: Kind) -> StreamState | None:
        """The state of an open stream; None for one that is over; a violation for one that never was."""
        state = self.streams.get(stream)
        if state is None:
            known = stream < self._next_stream if self.client else stream <= self._last_opened
            if not known:
                raise WireViolation(f"{kind.name} on stream {stream}, which was never opened")
        return state

    def _answered(self, stream: int, kind: Kind) -> StreamState | None:
        if not self.client:
            raise WireViolation(f"{kind.name} from a client")
        return self._live(stream, kind)

    def _spend(self, stream: int, size: int, kind: Kind) -> bool:
        """Charge received EVENT or DATA; false when the stream is over and the frame is to be ignored."""
        state = self._live(stream, kind)
        if state is None:
            return False
        if state.received_end:
            raise WireViolation(f"{kind.name} after END on stream {stream}")
        if self.client and not state.replied:
            raise WireViolation(f"{kind.name} before the reply on stream {stream}")
        if size > state.receive_credit:
            raise WireViolation(f"stream {stream} sent {size} bytes with {state.receive_credit} bytes of credit")
        state.receive_credit -= size
        return True

    # -- sending -----------------------------------------------------------------------------------

    def take_outgoing(self) -> list[Bytes]:
        """What is queued, in order, for the transport."""
        taken, self._outgoing, self.outgoing_bytes = self._outgoing, [], 0
        return taken

    def send_open(self, method: str, params: object) -> int:
        """Open a stream; its id. Raises `RuntimeError` before the peer's HELLO or beyond its `max_streams`."""
        if self.peer is None:
            raise RuntimeError("no HELLO from the peer yet")
        if len(self.streams) >= self.peer.max_streams:
            raise RuntimeError(f"the peer takes {self.peer.max_streams} streams at once")
        if self.is_used_up:
            raise RuntimeError("all stream ids are used up")
        stream = self._next_stream
        self._push(Kind.OPEN, stream, msgspec.msgpack.encode({"m": method, "p": params}))
        self._next_stream += 1
        self._add_stream(stream)
        return stream

    @property
    def is_used_up(self) -> bool:
        """Whether no stream can be opened any more: ids are not used twice."""
        return self._next_stream > MAX_STREAM

    def send_reply(self, stream: int, message: object) -> None:
        state = self.streams.get(stream)
        if state is None:
            return
        if state.replied:
            raise RuntimeError(f"second reply on stream {stream}")
        self._push(Kind.REPLY, stream, msgspec.msgpack.encode(message))
        state.replied = True

    def send_event(self, stream: int, payload: bytes) -> None:
        """Send an encoded message; the caller has asked `send_credit` first."""
        self._charge(stream, len(payload))
        self._push(Kind.EVENT, stream, payload)

    def send_data(self, stream: int, data: bytes | memoryview, channel: int) -> None:
        """Send 1 to `MAX_PAYLOAD_BYTES` bytes, which must not change any more; the caller has asked `send_credit` first."""
        size = len(data)
        if not 0 < size <= MAX_PAYLOAD_BYTES:
            raise ValueError(f"DATA carries 1 to {MAX_PAYLOAD_BYTES} bytes, not {size}")
        self._charge(stream, size)
        self._outgoing.append(HEADER.pack(size, Kind.DATA, channel, 0, stream))
        self._outgoing.append(data)
        self.outgoing_bytes += HEADER.size + size

    def send_credit(self, stream: int) -> int:
        """Bytes that may be sent on `stream` now; 0 when it is over."""
        state = self.streams.get(stream)
        return state.send_credit if state is not None else 0

    def _charge(self, stream: int, size: int) -> None:
        state = self.streams.get(stream)
        if state is None or state.sent_end:
            raise RuntimeError(f"stream {stream} is over")
        if size > state.send_credit:
            raise RuntimeError(f"no credit for {size} bytes on stream {stream}")
        state.send_credit -= size

    def grant(self, stream: int, size: int) -> None:
        """Allow the peer `size` more bytes. Ignored when the stream is over."""
        state = self.streams.get(stream)
        if state is not None and size > 0 and not state.received_end:
            state.receive_credit += size
            self._push(Kind.CREDIT, stream, U32.pack(size))

    def send_end(self, stream: int) -> None:
        state = self.streams.get(stream)
        if state is not None and not state.sent_end:
            if not self.client and not state.replied:
                raise RuntimeError(f"end before the reply on stream {stream}")
            state.sent_end = True
            self._push(Kind.END, stream)
            self._drop_if_over(stream, state)

    def send_error(self, stream: int, status: int, code: str, message: str, details: dict[str, Any] | None = None) -> None:
        """End a stream with an error. Details that are no JSON-like values, or too many for a frame, are left out."""
        if self.streams.pop(stream, None) is None:
            return
        error = ErrorMessage(status, code, message[:MAX_ERROR_MESSAGE], details or {})
        try:
            payload = msgspec.msgpack.encode(error)
        except (TypeError, ValueError, OverflowError, RecursionError):
            payload = b""
        if not 0 < len(payload) <= MAX_PAYLOAD_BYTES:
            payload = msgspec.msgpack.encode(ErrorMessage(status, code, message[:MAX_ERROR_MESSAGE]))
        self._push(Kind.ERROR, stream, payload)

    def send_cancel(self, stream: int) -> None:
        if self.streams.pop(stream, None) is not None:
            self._push(Kind.CANCEL, stream)

    def send_ping(self, payload: bytes) -> None:
        self._push(Kind.PING, 0, payload)

    def _push(self, kind: Kind, stream: int, payload: bytes = b"") -> None:
        frame = encode_frame(kind, stream, payload)
        self._outgoing.append(frame)
        self.outgoing_bytes += len(frame)

    def _add_stream(self, stream: int) -> None:
        assert self.peer is not None
        self.streams[stream] = StreamState(send_credit=self.peer.window, receive_credit=self.hello.window)

    def _drop_if_over(self, stream: int, state: StreamState) -> None:
        if state.sent_end and state.received_end:
            self.streams.pop(stream, None)


MESSAGES = frozenset({Kind.HELLO, Kind.OPEN, Kind.REPLY, Kind.EVENT, Kind.ERROR})
"""Kinds whose payload is a MessagePack map."""
RECEIVERS: dict[Kind, Callable[[Mux, int, bytes], Event | None]] = {
    Kind.HELLO: Mux._receive_hello,
    Kind.OPEN: Mux._receive_open,
    Kind.REPLY: Mux._receive_reply,
    Kind.EVENT: Mux._receive_event,
    Kind.CREDIT: Mux._receive_credit,
    Kind.END: Mux._receive_end,
    Kind.ERROR: Mux._receive_error,
    Kind.CANCEL: Mux._receive_cancel,
    Kind.PING: Mux._receive_ping,
    Kind.PONG: Mux._receive_pong,
}


def check_message(payload: bytes) -> None:
    """Raise `WireViolation` unless `payload` is exactly one MessagePack map. What is in it is looked at by who decodes it."""
    if not payload or payload[0] not in MAP_MARKERS:
        raise WireViolation("a message that is not a MessagePack map")
    decode(payload, msgspec.Raw)


def decode(payload: bytes, kind: type[T]) -> T:
    """A payload as a value of `kind`; a `WireViolation` when it is not one."""
    try:
        return msgspec.msgpack.decode(payload, type=kind)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise WireViolation(f"malformed {getattr(kind, '__name__', 'message')}: {error}") from error

"""Streams over frames, without I/O: the state of each stream, credit, and the rules of who may send what.

`receive` takes bytes and returns what happened as values; the `send_*` methods put bytes into `outgoing`, which the owner
writes to its transport. Nothing here waits: a caller that has no credit is told so by `send_credit`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from hutch.wire.frames import U32, FrameDecoder, Kind, WireViolation, encode_frame

T = TypeVar("T")

VERSION = 1
MAX_OUTSTANDING_CREDIT = 16 * 1024 * 1024
MIN_WINDOW_BYTES = 16 * 1024
MAX_WINDOW_BYTES = 4 * 1024 * 1024


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
    m: str
    p: msgspec.Raw


class ErrorMessage(msgspec.Struct, frozen=True):
    s: int
    c: str
    m: str
    d: dict[str, Any] = msgspec.field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HelloReceived:
    hello: Hello


@dataclass(frozen=True, slots=True)
class Opened:
    stream: int
    method: str
    params: bytes


@dataclass(frozen=True, slots=True)
class ReplyReceived:
    stream: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class EventReceived:
    stream: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class DataReceived:
    stream: int
    channel: int
    data: bytes


@dataclass(frozen=True, slots=True)
class CreditReceived:
    stream: int


@dataclass(frozen=True, slots=True)
class EndReceived:
    stream: int


@dataclass(frozen=True, slots=True)
class ErrorReceived:
    stream: int
    error: ErrorMessage


@dataclass(frozen=True, slots=True)
class Cancelled:
    stream: int


@dataclass(frozen=True, slots=True)
class PongReceived:
    payload: bytes


Event = (
    HelloReceived
    | Opened
    | ReplyReceived
    | EventReceived
    | DataReceived
    | CreditReceived
    | EndReceived
    | ErrorReceived
    | Cancelled
    | PongReceived
)


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

    Errors: `WireViolation` from `receive` when the peer breaks a rule; `RuntimeError` when the owner does.
    """

    client: bool
    hello: Hello
    outgoing: list[bytes] = field(default_factory=list)
    peer: Hello | None = None
    streams: dict[int, StreamState] = field(default_factory=dict)
    _decoder: FrameDecoder = field(default_factory=FrameDecoder)
    _next_stream: int = 1
    _last_opened: int = 0
    control_frames: int = 0

    def __post_init__(self) -> None:
        self.outgoing.append(encode_frame(Kind.HELLO, 0, msgspec.msgpack.encode(self.hello)))

    # -- receiving ---------------------------------------------------------------------------------

    def receive(self, chunk: bytes | bytearray | memoryview) -> list[Event]:
        """What the bytes say. Raises `WireViolation`; the channel must then be closed."""
        events: list[Event] = []
        for frame in self._decoder.feed(chunk):
            kind = frame.kind
            if self.peer is None and kind is not Kind.HELLO:
                raise WireViolation(f"{kind.name} before HELLO")
            if kind is Kind.DATA:
                if self._spend(frame.stream, len(frame.payload), kind):
                    events.append(DataReceived(frame.stream, frame.channel, frame.payload))
                continue
            self.control_frames += 1
            self._receive_control(kind, frame.stream, frame.payload, events)
        return events

    def _receive_control(self, kind: Kind, stream: int, payload: bytes, events: list[Event]) -> None:
        if kind is Kind.HELLO:
            events.append(self._receive_hello(payload))
        elif kind is Kind.PING:
            self.outgoing.append(encode_frame(Kind.PONG, 0, payload))
        elif kind is Kind.PONG:
            events.append(PongReceived(payload))
        elif kind is Kind.OPEN:
            events.append(self._receive_open(stream, payload))
        elif kind is Kind.EVENT:
            if self._spend(stream, len(payload), kind):
                events.append(EventReceived(stream, payload))
        elif kind is Kind.CREDIT:
            if (state := self._live(stream, kind)) is not None:
                state.send_credit += U32.unpack(payload)[0]
                if state.send_credit > MAX_OUTSTANDING_CREDIT:
                    raise WireViolation(f"stream {stream} was given more than {MAX_OUTSTANDING_CREDIT} bytes of credit")
                events.append(CreditReceived(stream))
        elif kind is Kind.END:
            if (state := self._live(stream, kind)) is not None:
                if state.received_end:
                    raise WireViolation(f"second END on stream {stream}")
                if self.client and not state.replied:
                    raise WireViolation(f"END before the reply on stream {stream}")
                state.received_end = True
                events.append(EndReceived(stream))
                self._drop_if_over(stream, state)
        elif kind is Kind.REPLY:
            if (state := self._answered(stream, kind)) is not None:
                if state.replied:
                    raise WireViolation(f"second REPLY on stream {stream}")
                state.replied = True
                events.append(ReplyReceived(stream, payload))
        elif kind is Kind.ERROR:
            if self._answered(stream, kind) is not None:
                del self.streams[stream]
                events.append(ErrorReceived(stream, decode(payload, ErrorMessage)))
        elif kind is Kind.CANCEL:
            if self.client:
                raise WireViolation("CANCEL from a server")
            if self._live(stream, kind) is not None:
                del self.streams[stream]
                events.append(Cancelled(stream))

    def _receive_hello(self, payload: bytes) -> HelloReceived:
        if self.peer is not None:
            raise WireViolation("second HELLO")
        peer = decode(payload, Hello)
        if peer.version != VERSION:
            raise WireViolation(f"the peer speaks version {peer.version}, this end {VERSION}")
        if not MIN_WINDOW_BYTES <= peer.window <= MAX_WINDOW_BYTES:
            raise WireViolation(f"window of {peer.window} bytes")
        if len(peer.boot) > 64 or len(peer.token) > 256 or len(peer.agent) > 64:
            raise WireViolation("oversized field in HELLO")
        self.peer = peer
        return HelloReceived(peer)

    def _receive_open(self, stream: int, payload: bytes) -> Opened:
        if self.client:
            raise WireViolation("OPEN from a server")
        if stream <= self._last_opened:
            raise WireViolation(f"stream {stream} opened after {self._last_opened}")
        if len(self.streams) >= self.hello.max_streams:
            raise WireViolation(f"more than {self.hello.max_streams} streams")
        self._last_opened = stream
        message = decode(payload, OpenMessage)
        assert self.peer is not None
        self.streams[stream] = StreamState(send_credit=self.peer.window, receive_credit=self.hello.window)
        return Opened(stream, message.m, bytes(message.p))

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

    def send_open(self, method: str, params: object) -> int:
        """Open a stream; its id. Raises `RuntimeError` before the peer's HELLO or beyond its `max_streams`."""
        if self.peer is None:
            raise RuntimeError("no HELLO from the peer yet")
        if len(self.streams) >= self.peer.max_streams:
            raise RuntimeError(f"the peer takes {self.peer.max_streams} streams at once")
        payload = msgspec.msgpack.encode({"m": method, "p": params})
        stream = self._next_stream
        self.outgoing.append(encode_frame(Kind.OPEN, stream, payload))
        self._next_stream += 1
        self.streams[stream] = StreamState(send_credit=self.peer.window, receive_credit=self.hello.window)
        return stream

    def send_reply(self, stream: int, message: object) -> None:
        state = self.streams.get(stream)
        if state is None:
            return
        if state.replied:
            raise RuntimeError(f"second reply on stream {stream}")
        state.replied = True
        self.outgoing.append(encode_frame(Kind.REPLY, stream, msgspec.msgpack.encode(message)))

    def send_event(self, stream: int, payload: bytes) -> None:
        """Send an encoded message; the caller has asked `send_credit` first."""
        self._charge(stream, len(payload))
        self.outgoing.append(encode_frame(Kind.EVENT, stream, payload))

    def send_data(self, stream: int, data: bytes, channel: int) -> None:
        """Send bytes; the caller has asked `send_credit` first."""
        self._charge(stream, len(data))
        self.outgoing.append(encode_frame(Kind.DATA, stream, data, channel))

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
            self.outgoing.append(encode_frame(Kind.CREDIT, stream, U32.pack(size)))

    def send_end(self, stream: int) -> None:
        state = self.streams.get(stream)
        if state is not None and not state.sent_end:
            state.sent_end = True
            self.outgoing.append(encode_frame(Kind.END, stream))
            self._drop_if_over(stream, state)

    def send_error(self, stream: int, status: int, code: str, message: str, details: dict[str, Any] | None = None) -> None:
        if self.streams.pop(stream, None) is not None:
            error = ErrorMessage(status, code, message[:8192], details or {})
            self.outgoing.append(encode_frame(Kind.ERROR, stream, msgspec.msgpack.encode(error)))

    def send_cancel(self, stream: int) -> None:
        if self.streams.pop(stream, None) is not None:
            self.outgoing.append(encode_frame(Kind.CANCEL, stream))

    def send_ping(self, payload: bytes) -> None:
        self.outgoing.append(encode_frame(Kind.PING, 0, payload))

    def _drop_if_over(self, stream: int, state: StreamState) -> None:
        if state.sent_end and state.received_end:
            self.streams.pop(stream, None)


def decode(payload: bytes, kind: type[T]) -> T:
    """A payload as a value of `kind`; a `WireViolation` when it is not one."""
    try:
        return msgspec.msgpack.decode(payload, type=kind)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise WireViolation(f"malformed {kind.__name__}: {error}") from error

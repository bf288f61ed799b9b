"""asyncio streams over one channel: the only file of the protocol that touches sockets.

A `Connection` owns a transport and a `Mux`. Its client end calls `open` and gets a `Stream`; its server end is given a
handler that is called with each new `Stream`, in a task of its own that dies with the connection. Receiving grants credit
as items are taken from a stream (`manual_credit` leaves that to the owner, who then calls `grant`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar, cast, overload

import msgspec

from hutch.errors import HutchError, InternalError, PayloadTooLargeError, UnavailableError, from_wire
from hutch.wire import mux as m
from hutch.wire.frames import MAX_PAYLOAD_BYTES, WireViolation
from hutch.wire.sockets import address, bind_unix

T = TypeVar("T")
Handler = Callable[["Stream"], Awaitable[None]]

log = logging.getLogger(__name__)

WRITE_HIGH_BYTES = 1024 * 1024
"""Data waits for the transport while this much is queued already."""
COALESCE_ITEMS = 16
COALESCE_BYTES = 1024
"""When more than `COALESCE_ITEMS` wait on a stream, pieces of data below `COALESCE_BYTES` are joined."""

# What a peer that is not trusted (`limit_control`) may cost.
CONTROL_FRAMES_PER_SECOND = 20_000
CONTROL_FRAMES_PER_REQUEST = 4
"""What each request adds to that: an agent must not be blamed for answering many of them."""
DATA_FRAMES_PER_SECOND = 20_000
"""Reading pauses for a peer that sends more: its data then comes in larger pieces."""
FRAMES_PER_TURN = 2_000
"""Frames that are looked at before other connections have their turn."""
MAX_WAITING_ITEMS = 16_384
"""An honest agent has at most 4,096 pieces of output on their way."""
MAX_BACKLOG_BYTES = 8 * 1024 * 1024
"""What may wait for a peer that does not read; data stops at `WRITE_HIGH_BYTES`."""
GUEST_STATUSES = frozenset({400, 404, 409, 503})
"""What a guest's agent may answer; any other status is for the host to say, and becomes 500."""
_NOTHING = msgspec.msgpack.encode(None)
_OPEN_BYTES = 256
"""What an OPEN has beside its parameters is shorter than this."""


class ConnectionClosed(UnavailableError):
    """The channel to a peer process broke; what was asked may or may not have been done."""

    def __init__(self, reason: str) -> None:
        super().__init__("peer_unreachable", f"The connection to a part of the server broke: {reason}. Try again.")


class Data(msgspec.Struct, frozen=True, gc=False):
    """Bytes on a channel (0 input, 1 output, 2 standard error)."""

    channel: int
    data: bytes


class Message(msgspec.Struct, frozen=True, eq=False):
    """An EVENT, still encoded; `decode` gives the value."""

    payload: bytes
    stream: Stream | None = None

    def decode(self, kind: type[T]) -> T:
        """The value. Raises `ConnectionClosed` for one that a server should not have sent (its connection is closed),
        a 400 `bad_request` for a client's."""
        return decode_from(self.stream, self.payload, kind)


class Signal:
    """Wakes everybody who waits for it; nothing is remembered."""

    __slots__ = ("_waiters",)

    def __init__(self) -> None:
        self._waiters: list[asyncio.Future[None]] = []

    async def wait(self) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(future)
        try:
            await future
        finally:
            if future.cancelled():
                with contextlib.suppress(ValueError):
                    self._waiters.remove(future)

    def wake(self) -> None:
        waiters = self._waiters
        if waiters:
            self._waiters = []
            for future in waiters:
                if not future.done():
                    future.set_result(None)


class Stream:
    """One request and its answer, from either side."""

    def __init__(self, connection: Connection, identifier: int, method: str = "", params: bytes = b"") -> None:
        self.connection = connection
        self.identifier = identifier
        self.method = method
        self._params = params
        self._reply: bytes | None = None
        self._items: deque[Data | Message] = deque()
        self._error: HutchError | None = None
        self._ended = False
        self._arrived = Signal()
        self._credited = Signal()
        self.manual_credit = False
        self.handler: asyncio.Task[None] | None = None

    # -- taking ------------------------------------------------------------------------------------

    def params(self, kind: type[T]) -> T:
        """The request's parameters as a value (server side). Raises 400 `bad_request`."""
        return decode_from(self, self._params, kind)

    async def value(self, kind: type[T], limit: int) -> T:
        """The parameters of a request that may be larger than a frame (server side), as `Connection.call_large` sends them.
        Raises 400 `bad_request`, or 413 `message_too_large` beyond `limit` bytes."""
        if self._params != _NOTHING:
            return self.params(kind)
        raw = bytearray()
        while (item := await self.next()) is not None:
            raw += item.data if isinstance(item, Data) else b""
            if len(raw) > limit:
                raise PayloadTooLargeError("message_too_large", f"The request is too large: more than {limit} bytes.")
        return decode_from(self, bytes(raw), kind)

    @overload
    async def reply(self) -> dict[str, Any]: ...
    @overload
    async def reply(self, kind: type[T]) -> T: ...
    async def reply(self, kind: Any = dict[str, Any]) -> Any:
        """The one reply (client side), as a `kind`. Raises the peer's error or `ConnectionClosed`."""
        while self._reply is None:
            await self._wait()
        return decode_from(self, self._reply, kind)

    async def next(self) -> Data | Message | None:
        """The next item, or None after the peer's END. Raises the peer's error or `ConnectionClosed`, but only after
        everything that came before it was taken."""
        while not self._items:
            if self._ended and self._error is None:
                return None
            await self._wait()
        item = self._items.popleft()
        if not self.manual_credit:
            self.grant(len(item.data) if isinstance(item, Data) else len(item.payload))
        return item

    @property
    def waiting(self) -> int:
        """Items that `next` gives at once."""
        return len(self._items)

    async def __aiter__(self) -> AsyncIterator[Data | Message]:
        while (item := await self.next()) is not None:
            yield item

    def grant(self, size: int) -> None:
        """Allow the peer `size` more bytes."""
        self.connection.grant_soon(self.identifier, size)

    async def _wait(self) -> None:
        if self._error is not None:
            raise self._error
        await self._arrived.wait()

    # -- giving ------------------------------------------------------------------------------------

    def send_reply(self, message: object) -> None:
        """The one answer (server side). Raises `RuntimeError` for a second one, `ValueError` for one beyond a frame."""
        self.connection.mux.send_reply(self.identifier, message)
        self.connection.flush_soon()

    async def send_event(self, message: object) -> None:
        """Send a message, waiting for credit and for the transport. Raises `ConnectionClosed`, the peer's error, or
        413 `message_too_large` for one that would wait for ever."""
        payload = msgspec.msgpack.encode(message)
        peer = self.connection.mux.peer
        if len(payload) > min(MAX_PAYLOAD_BYTES, peer.window if peer is not None else 0):
            raise PayloadTooLargeError("message_too_large", f"A message of {len(payload)} bytes is too large.")
        await self._wait_until_sendable(len(payload))
        self.connection.mux.send_event(self.identifier, payload)
        self.connection.flush_soon()

    async def send_data(self, data: bytes | memoryview, channel: int = 1) -> None:
        """Send bytes of any length, waiting for credit and for the transport. Raises `ConnectionClosed` or the peer's
        error. The bytes are not copied before they are written: they must not change until this returns."""
        view, position = memoryview(data), 0
        if not isinstance(view.obj, bytes):
            view = memoryview(bytes(view))  # What is queued outlives this call.
        while position < len(view):
            await self._wait_until_sendable(1)
            size = min(self.connection.mux.send_credit(self.identifier), MAX_PAYLOAD_BYTES, len(view) - position)
            self.connection.mux.send_data(self.identifier, view[position : position + size], channel)
            position += size
            self.connection.flush_soon()

    async def _wait_until_sendable(self, size: int) -> None:
        connection = self.connection
        while True:
            if connection.is_congested:
                await connection.drain()
            elif connection.mux.send_credit(self.identifier) >= size:
                return
            elif self._error is not None:
                raise self._error
            elif self.identifier not in connection.mux.streams:
                raise ConnectionClosed("the stream is over")
            else:
                await self._credited.wait()

    def send_end(self) -> None:
        self.connection.mux.send_end(self.identifier)
        self.connection.flush_soon()

    def send_error(self, error: HutchError) -> None:
        details = cast("dict[str, Any]", error.details)
        self.connection.mux.send_error(self.identifier, error.status, error.code, error.message, details)
        self.connection.flush_soon()

    def cancel(self) -> None:
        """Abandon the request (client side); whoever still waits on it gets `ConnectionClosed`. Idempotent; safe after
        the stream is over."""
        self.connection.mux.send_cancel(self.identifier)
        self.connection.forget(self.identifier)
        self.connection.flush_soon()
        if not self._ended:
            self.set_error(ConnectionClosed("the request was cancelled"))

    # -- called by the connection ------------------------------------------------------------------

    def push(self, item: Data | Message) -> None:
        items = self._items
        if len(items) > COALESCE_ITEMS and isinstance(item, Data):
            last = items[-1]
            if isinstance(last, Data) and last.channel == item.channel and len(last.data) + len(item.data) <= COALESCE_BYTES:
                items[-1] = Data(item.channel, last.data + item.data)
                return
        items.append(item)
        self._arrived.wake()

    def set_reply(self, payload: bytes) -> None:
        self._reply = payload
        self._arrived.wake()

    def set_ended(self) -> None:
        self._ended = True
        self._arrived.wake()

    def set_error(self, error: HutchError) -> None:
        if self._error is None:
            self._error = error
        self._ended = True
        self._arrived.wake()
        self._credited.wake()

    def credit_arrived(self) -> None:
        self._credited.wake()

    def drop_items(self) -> int:
        """Forget what waits; how many bytes it was."""
        size = sum(len(item.data) if isinstance(item, Data) else len(item.payload) for item in self._items)
        self._items.clear()
        return size

    @property
    def has_replied(self) -> bool:
        """Whether the reply was sent (server side); true when the stream is over."""
        state = self.connection.mux.streams.get(self.identifier)
        return state is None or state.replied

    @property
    def waiting_items(self) -> int:
        """Items that `next` has without waiting."""
        return len(self._items)


class Connection(asyncio.Protocol):
    """One end of a channel; a `Protocol` for `loop.create_unix_connection` and friends.

    `limit_control` is for a peer that is not trusted, the agent of a guest: floods end the connection or are slowed
    down, and errors are reduced to what a guest may say.
    """

    def __init__(self, hello: m.Hello, *, client: bool, handler: Handler | None = None, limit_control: bool = False) -> None:
        self.mux = m.Mux(client=client, hello=hello)
        self._handler = handler
        self._handlers: set[asyncio.Task[None]] = set()
        self._limit_control = limit_control
        self._streams: dict[int, Stream] = {}
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._second_began = self._loop.time()
        self._second_control = self._second_data = self._second_requests = 0
        self._flush_scheduled = False
        self._grants: dict[int, int] = {}
        self._writable = Signal()
        self._greeted: asyncio.Future[m.Hello] = self._loop.create_future()
        self.closed: asyncio.Future[str] = self._loop.create_future()
        self._pongs: dict[bytes, asyncio.Future[None]] = {}

    # -- client ------------------------------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        """Whether no request is under way."""
        return not self._streams

    async def hang_up(self, timeout_s: float) -> None:
        """Close, and wait for the peer to do so too, but not longer than that."""
        if self._transport is not None and not self.closed.done():
            self._flush()
            self._transport.write_eof()
        await asyncio.wait({self.closed}, timeout=timeout_s)
        self.close("hung up")

    async def greeted(self) -> m.Hello:
        """The peer's HELLO. Raises `ConnectionClosed`."""
        return await asyncio.shield(self._greeted)

    def open(self, method: str, params: object) -> Stream:
        """Send a request. Raises `ConnectionClosed`, 503 `too_many_streams` or 413 `message_too_large`."""
        if self.mux.is_used_up:
            self.close("its stream numbers are used up")
        if self.closed.done():
            raise ConnectionClosed(self.closed.result())
        try:
            identifier = self.mux.send_open(method, params)
        except RuntimeError as error:
            raise UnavailableError("too_many_streams", f"Too many requests at once: {error}.", retry_after_s=1) from error
        except ValueError as error:
            raise PayloadTooLargeError("message_too_large", f"The request is too large: {error}.") from error
        stream = Stream(self, identifier, method)
        self._streams[identifier] = stream
        self._second_requests += 1
        self.flush_soon()
        return stream

    @overload
    async def call(self, method: str, params: object) -> dict[str, Any]: ...
    @overload
    async def call(self, method: str, params: object, kind: type[T]) -> T: ...
    async def call(self, method: str, params: object, kind: Any = dict[str, Any]) -> Any:
        """A request without a body, and its reply. Errors are those of `open` and `Stream.reply`."""
        stream = self.open(method, params)
        stream.send_end()
        try:
            return await stream.reply(kind)
        finally:
            stream.cancel()

    async def call_large(self, method: str, params: object, kind: type[T]) -> T:
        """`call` with parameters that may be larger than a frame: they are then sent as data. The method must take them with
        `Stream.value`."""
        raw = msgspec.msgpack.encode(params)
        if len(raw) <= MAX_PAYLOAD_BYTES - _OPEN_BYTES:
            return await self.call(method, msgspec.Raw(raw), kind)
        stream = self.open(method, None)
        try:
            await stream.send_data(raw, 0)
            stream.send_end()
            return await stream.reply(kind)
        finally:
            stream.cancel()

    async def ping(self, timeout_s: float) -> None:
        """Raises `TimeoutError` when the peer does not answer in time, and `ConnectionClosed`."""
        if self.closed.done():
            raise ConnectionClosed(self.closed.result())
        payload = os.urandom(8)
        future: asyncio.Future[None] = self._loop.create_future()
        self._pongs[payload] = future
        try:
            self.mux.send_ping(payload)
            self.flush_soon()
            await asyncio.wait_for(future, timeout_s)
        finally:
            self._pongs.pop(payload, None)

    # -- receiving ---------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if self.closed.done():
            # Given up before it had a transport; the peer must hear of it.
            self._transport.abort()
            return
        self._transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        self.flush_soon()

    def data_received(self, data: bytes) -> None:
        self._take(data, FRAMES_PER_TURN if self._limit_control else None)

    def _take(self, data: bytes, limit: int | None) -> None:
        if self.closed.done():
            return
        try:
            events = self.mux.receive(data, limit)
            pause_s = self._check_rates() if limit is not None else 0.0
            for event in events:
                self._dispatch(event)
        except WireViolation as violation:
            self.close(f"protocol violation: {violation}")
            return
        if self.mux.outgoing_bytes:
            self.flush_soon()
        if limit is not None and (pause_s > 0 or self.mux.has_more) and self._transport is not None:
            self._transport.pause_reading()
            self._loop.call_later(pause_s, self._go_on, limit)

    def _go_on(self, limit: int) -> None:
        """Read again, what is held first."""
        if self.closed.done() or self._transport is None or self._transport.is_closing():
            return
        self._transport.resume_reading()
        self._take(b"", limit)

    def _check_rates(self) -> float:
        """Seconds for which to pause. Raises `WireViolation`."""
        backlog = self.mux.outgoing_bytes
        if self._transport is not None:
            backlog += self._transport.get_write_buffer_size()
        if backlog > MAX_BACKLOG_BYTES:
            raise WireViolation(f"{backlog} bytes wait for it, and it does not read")
        now, mux = self._loop.time(), self.mux
        if now - self._second_began > 1.0:
            self._second_began, self._second_control, self._second_data, self._second_requests = now, 0, 0, 0
        self._second_control += mux.control_frames
        self._second_data += mux.data_frames
        mux.control_frames = mux.data_frames = 0
        allowed = CONTROL_FRAMES_PER_SECOND + CONTROL_FRAMES_PER_REQUEST * self._second_requests
        if self._second_control > allowed:
            raise WireViolation(f"more than {allowed} control frames in a second")
        if self._second_data <= DATA_FRAMES_PER_SECOND // 10:
            return 0.0  # A short burst passes.
        return max(0.0, self._second_data / DATA_FRAMES_PER_SECOND - (now - self._second_began))

    def _dispatch(self, event: m.Event) -> None:
        match event:
            case m.HelloReceived(hello):
                if not self._greeted.done():
                    self._greeted.set_result(hello)
            case m.PongReceived(payload):
                future = self._pongs.get(payload)
                if future is not None and not future.done():
                    future.set_result(None)
            case m.Opened():
                self._serve(event)
            case _:
                stream = self._streams.get(event.stream)
                if stream is not None:
                    self._deliver(stream, event)
                # Nobody takes it any more; a sender that waited for credit would wait for ever.
                elif isinstance(event, m.DataReceived):
                    self.grant_soon(event.stream, len(event.data))
                elif isinstance(event, m.EventReceived):
                    self.grant_soon(event.stream, len(event.payload))

    def _deliver(self, stream: Stream, event: m.StreamEvent) -> None:
        match event:
            case m.DataReceived(_, channel, data):
                stream.push(Data(channel, data))
            case m.EventReceived(_, payload):
                stream.push(Message(payload, stream))
            case m.CreditReceived():
                stream.credit_arrived()
            case m.ReplyReceived(_, payload):
                stream.set_reply(payload)
            case m.EndReceived(identifier):
                stream.set_ended()
                if identifier not in self.mux.streams:
                    self.forget(identifier)
            case m.ErrorReceived(identifier, error):
                self.forget(identifier)
                stream.set_error(self._reported(error))
            case m.Cancelled(identifier):
                self.forget(identifier)
                stream.set_error(ConnectionClosed("the client went away"))
                if stream.handler is not None:
                    stream.handler.cancel()
        if self._limit_control and stream.waiting_items > MAX_WAITING_ITEMS:
            raise WireViolation(f"more than {MAX_WAITING_ITEMS} small pieces on stream {stream.identifier}")

    def _reported(self, error: m.ErrorMessage) -> HutchError:
        if not self._limit_control:
            return from_wire(error.s, error.c, error.m, error.d)
        status = error.s if error.s in GUEST_STATUSES else 500
        return from_wire(status, error.c[:64], error.m[: m.MAX_ERROR_MESSAGE])

    # -- serving -----------------------------------------------------------------------------------

    def _serve(self, event: m.Opened) -> None:
        stream = Stream(self, event.stream, event.method, event.params)
        self._streams[event.stream] = stream
        stream.handler = self._loop.create_task(self._run_handler(stream))
        self._handlers.add(stream.handler)
        stream.handler.add_done_callback(self._handlers.discard)

    async def _run_handler(self, stream: Stream) -> None:
        try:
            if self._handler is None:
                raise InternalError("internal_error", "This end of the connection takes no requests.")
            await self._handler(stream)
            if not stream.has_replied:
                raise InternalError("internal_error", f"The request {stream.method} was not answered.")
            stream.send_end()
        except HutchError as error:
            stream.send_error(error)
        except asyncio.CancelledError:
            stream.send_error(ConnectionClosed("the request was cancelled"))
            raise
        except Exception:
            log.exception("the request %s failed", stream.method)
            stream.send_error(InternalError("internal_error", f"The request {stream.method} failed; the server's log says why."))
        finally:
            self.forget(stream.identifier)

    def forget(self, identifier: int) -> None:
        """Deliver nothing more to this stream. What waits on it is credited, so that a peer that sends on is not stuck."""
        stream = self._streams.pop(identifier, None)
        if stream is not None and identifier in self.mux.streams:
            self.grant_soon(identifier, stream.drop_items())

    # -- sending -----------------------------------------------------------------------------------

    def grant_soon(self, identifier: int, size: int) -> None:
        """Allow the peer `size` more bytes on a stream, in one frame with what else is granted in this turn of the loop."""
        if size > 0:
            self._grants[identifier] = self._grants.get(identifier, 0) + size
            self.flush_soon()

    def flush_soon(self) -> None:
        """Write what is queued at the end of this turn of the loop, in one call."""
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        if self._transport is None or self._transport.is_closing():
            return
        if self._grants:
            grants, self._grants = self._grants, {}
            for identifier, size in grants.items():
                self.mux.grant(identifier, size)
        if not self.mux.outgoing_bytes:
            return
        chunks = self.mux.take_outgoing()
        # Joined by us: `writelines` of some releases of Python does not tell when its buffer is full.
        self._transport.write(chunks[0] if len(chunks) == 1 else b"".join(chunks))
        if not self.is_congested:
            self._writable.wake()

    @property
    def is_congested(self) -> bool:
        """Whether data must wait for the transport."""
        queued = self.mux.outgoing_bytes
        if self._transport is not None:
            queued += self._transport.get_write_buffer_size()
        return queued > WRITE_HIGH_BYTES

    async def drain(self) -> None:
        """Wait while too much is queued for the transport. Raises `ConnectionClosed`."""
        while not self.closed.done() and self.is_congested:
            await self._writable.wait()
        if self.closed.done():
            raise ConnectionClosed(self.closed.result())

    def resume_writing(self) -> None:
        self._writable.wake()

    # -- the end -----------------------------------------------------------------------------------

    def close(self, reason: str) -> None:
        """Close at once; every stream fails with `reason`."""
        self._finish(reason)
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._finish(str(exc) if exc else "the peer closed it")

    def _finish(self, reason: str) -> None:
        if self.closed.done():
            return
        self.closed.set_result(reason)
        error = ConnectionClosed(reason)
        self._writable.wake()
        waiting: list[asyncio.Future[Any]] = [self._greeted, *self._pongs.values()]
        for future in waiting:
            if not future.done():
                future.set_exception(error)
                future.exception()  # Whoever still waits is told; nobody has to be.
        for stream in list(self._streams.values()):
            stream.set_error(error)
        self._streams.clear()
        for task in self._handlers:
            task.cancel()


def decode_from(stream: Stream | None, payload: bytes, kind: type[T]) -> T:
    """A value that the peer sent on `stream`. One of the wrong form is a client's 400, or the end of a server's channel."""
    try:
        return m.decode(payload, kind)
    except WireViolation as violation:
        if stream is None or not stream.connection.mux.client:
            raise from_wire(400, "bad_request", f"Invalid request: {violation.__cause__}") from violation
        stream.connection.close(f"protocol violation: {violation}")
        raise ConnectionClosed(f"protocol violation: {violation}") from violation


async def connect_unix(path: Path, hello: m.Hello, *, timeout_s: float = 5.0) -> Connection:
    """A client connection to a Unix socket, greeted. Raises `OSError`, `TimeoutError` or `ConnectionClosed`."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(timeout_s):
        with address(path) as short:
            _, connection = await loop.create_unix_connection(lambda: Connection(hello, client=True), short)
        try:
            await connection.greeted()
        except BaseException:
            connection.close("no greeting")
            raise
        return connection


async def serve_unix(path: Path, hello: m.Hello, handler: Handler, *, mode: int = 0o600) -> asyncio.AbstractServer:
    """Serve the protocol on a Unix socket (mode `mode`), replacing a left-over one."""
    listener = bind_unix(path, mode)
    loop = asyncio.get_running_loop()
    return await loop.create_unix_server(lambda: Connection(hello, client=False, handler=handler), sock=listener)

"""asyncio streams over one channel: the only file of the protocol that touches sockets.

A `Connection` owns a transport and a `Mux`. Its client end calls `open` and gets a `Stream`; its server end is given a
handler that is called with each new `Stream`, in a task of its own that dies with the connection. Receiving grants credit
as items are taken from a stream (`manual_credit` leaves that to the owner, who then calls `grant`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec

from hutch.errors import HutchError, UnavailableError, from_wire
from hutch.wire import mux as m
from hutch.wire.frames import MAX_PAYLOAD_BYTES, WireViolation

T = TypeVar("T")
Handler = Callable[["Stream"], Awaitable[None]]

CONTROL_FRAMES_PER_SECOND = 20_000
WRITE_HIGH_BYTES = 1024 * 1024


class ConnectionClosed(UnavailableError):
    """The channel to a peer process broke; what was asked may or may not have been done."""

    def __init__(self, reason: str) -> None:
        super().__init__("peer_unreachable", f"The connection to a part of the server broke: {reason}. Try again.")


@dataclass(frozen=True, slots=True)
class Data:
    """Bytes on a channel (0 input, 1 output, 2 standard error)."""

    channel: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Message:
    """An EVENT, still encoded; `decode` gives the value."""

    payload: bytes

    def decode(self, kind: type[T]) -> T:
        return m.decode(self.payload, kind)


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
        self._wake = asyncio.Event()
        self._credit = asyncio.Event()
        self.manual_credit = False
        self.handler: asyncio.Task[None] | None = None

    # -- taking ------------------------------------------------------------------------------------

    def params(self, kind: type[T]) -> T:
        """The request's parameters as a value (server side). Raises `BadRequestError`-shaped errors."""
        try:
            return msgspec.msgpack.decode(self._params, type=kind)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise from_wire(400, "bad_request", f"Invalid request: {error}") from error

    async def reply(self, kind: type[T] = dict[str, Any]) -> T:  # type: ignore[assignment]
        """The one reply (client side). Raises the peer's error or `ConnectionClosed`."""
        while self._reply is None:
            await self._wait()
        return m.decode(self._reply, kind)

    async def next(self) -> Data | Message | None:
        """The next item, or None after the peer's END. Raises the peer's error or `ConnectionClosed`."""
        while not self._items:
            if self._ended and self._error is None:
                return None
            await self._wait()
        item = self._items.popleft()
        if not self.manual_credit:
            self.grant(len(item.data) if isinstance(item, Data) else len(item.payload))
        return item

    async def __aiter__(self) -> AsyncIterator[Data | Message]:
        while (item := await self.next()) is not None:
            yield item

    def grant(self, size: int) -> None:
        """Allow the peer `size` more bytes."""
        self.connection.mux.grant(self.identifier, size)
        self.connection.flush_soon()

    async def _wait(self) -> None:
        if self._error is not None:
            raise self._error
        self._wake.clear()
        await self._wake.wait()

    # -- giving ------------------------------------------------------------------------------------

    def send_reply(self, message: object) -> None:
        self.connection.mux.send_reply(self.identifier, message)
        self.connection.flush_soon()

    async def send_event(self, message: object) -> None:
        """Send a message, waiting for credit. Raises `ConnectionClosed` or the peer's error."""
        payload = msgspec.msgpack.encode(message)
        await self._wait_for_credit(len(payload))
        self.connection.mux.send_event(self.identifier, payload)
        self.connection.flush_soon()

    async def send_data(self, data: bytes | memoryview, channel: int = 1) -> None:
        """Send bytes of any length, waiting for credit and for the transport."""
        view, position = memoryview(data), 0
        while position < len(view):
            await self._wait_for_credit(1)
            size = min(self.connection.mux.send_credit(self.identifier), MAX_PAYLOAD_BYTES, len(view) - position)
            self.connection.mux.send_data(self.identifier, bytes(view[position : position + size]), channel)
            position += size
            self.connection.flush_soon()
            await self.connection.drain()

    async def _wait_for_credit(self, size: int) -> None:
        while self.connection.mux.send_credit(self.identifier) < size:
            if self._error is not None:
                raise self._error
            if self.identifier not in self.connection.mux.streams:
                raise ConnectionClosed("the stream is over")
            self._credit.clear()
            await self._credit.wait()

    def send_end(self) -> None:
        self.connection.mux.send_end(self.identifier)
        self.connection.flush_soon()

    def send_error(self, error: HutchError) -> None:
        details = cast("dict[str, Any]", error.details)
        self.connection.mux.send_error(self.identifier, error.status, error.code, error.message, details)
        self.connection.flush_soon()

    def cancel(self) -> None:
        """Abandon the request (client side). Idempotent; safe after the stream is over."""
        self.connection.mux.send_cancel(self.identifier)
        self.connection.forget(self.identifier)
        self.connection.flush_soon()

    # -- called by the connection ------------------------------------------------------------------

    def push(self, item: Data | Message) -> None:
        self._items.append(item)
        self._wake.set()

    def set_reply(self, payload: bytes) -> None:
        self._reply = payload
        self._wake.set()

    def set_ended(self) -> None:
        self._ended = True
        self._wake.set()

    def set_error(self, error: HutchError) -> None:
        if self._error is None:
            self._error = error
        self._ended = True
        self._wake.set()
        self._credit.set()

    def credit_arrived(self) -> None:
        self._credit.set()

    @property
    def waiting_items(self) -> int:
        return len(self._items)


class Connection(asyncio.Protocol):
    """One end of a channel; a `Protocol` for `loop.create_unix_connection` and friends."""

    def __init__(self, hello: m.Hello, *, client: bool, handler: Handler | None = None, limit_control: bool = False) -> None:
        self.mux = m.Mux(client=client, hello=hello)
        self._handler = handler
        self._limit_control = limit_control
        self._window_start, self._window_frames = time.monotonic(), 0
        self._streams: dict[int, Stream] = {}
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._flush_scheduled = False
        self._writable = asyncio.Event()
        self._writable.set()
        self._greeted: asyncio.Future[m.Hello] = self._loop.create_future()
        self.closed: asyncio.Future[str] = self._loop.create_future()
        self._pongs: dict[bytes, asyncio.Future[None]] = {}

    # -- client ------------------------------------------------------------------------------------

    async def greeted(self) -> m.Hello:
        """The peer's HELLO. Raises `ConnectionClosed`."""
        return await asyncio.shield(self._greeted)

    def open(self, method: str, params: object) -> Stream:
        """Send a request. Raises `ConnectionClosed`."""
        if self.closed.done():
            raise ConnectionClosed(self.closed.result())
        try:
            identifier = self.mux.send_open(method, params)
        except RuntimeError as error:
            raise UnavailableError("too_many_streams", f"Too many requests at once: {error}.", retry_after_s=1) from error
        stream = Stream(self, identifier, method)
        self._streams[identifier] = stream
        self.flush_soon()
        return stream

    async def call(self, method: str, params: object, kind: type[T] = dict[str, Any]) -> T:  # type: ignore[assignment]
        """A request without a body, and its reply."""
        stream = self.open(method, params)
        stream.send_end()
        try:
            return await stream.reply(kind)
        finally:
            stream.cancel()

    async def ping(self, timeout_s: float) -> None:
        """Raises `TimeoutError` when the peer does not answer in time."""
        payload = os.urandom(8)
        future: asyncio.Future[None] = self._loop.create_future()
        self._pongs[payload] = future
        try:
            self.mux.send_ping(payload)
            self.flush_soon()
            await asyncio.wait_for(future, timeout_s)
        finally:
            self._pongs.pop(payload, None)

    # -- transport ---------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        self.flush_soon()

    def data_received(self, data: bytes) -> None:
        try:
            events = self.mux.receive(data)
            if self._limit_control:
                self._check_control_rate()
        except WireViolation as violation:
            self.close(f"protocol violation: {violation}")
            return
        for event in events:
            self._dispatch(event)
        if self.mux.outgoing:
            self.flush_soon()

    def _check_control_rate(self) -> None:
        frames, self.mux.control_frames = self.mux.control_frames, 0
        now = time.monotonic()
        if now - self._window_start > 1.0:
            self._window_start, self._window_frames = now, 0
        self._window_frames += frames
        if self._window_frames > CONTROL_FRAMES_PER_SECOND:
            raise WireViolation(f"more than {CONTROL_FRAMES_PER_SECOND} control frames in a second")

    def _dispatch(self, event: m.Event) -> None:
        if isinstance(event, m.HelloReceived):
            if not self._greeted.done():
                self._greeted.set_result(event.hello)
            return
        if isinstance(event, m.PongReceived):
            future = self._pongs.get(event.payload)
            if future is not None and not future.done():
                future.set_result(None)
            return
        if isinstance(event, m.Opened):
            self._serve(event)
            return
        stream = self._streams.get(event.stream)
        if stream is None:
            return
        if isinstance(event, m.DataReceived):
            stream.push(Data(event.channel, event.data))
        elif isinstance(event, m.CreditReceived):
            stream.credit_arrived()
        elif isinstance(event, m.EventReceived):
            stream.push(Message(event.payload))
        elif isinstance(event, m.ReplyReceived):
            stream.set_reply(event.payload)
        elif isinstance(event, m.EndReceived):
            stream.set_ended()
            if event.stream not in self.mux.streams:
                self.forget(event.stream)
        elif isinstance(event, m.ErrorReceived):
            error = event.error
            self.forget(event.stream)
            stream.set_error(from_wire(error.s, error.c, error.m, error.d))
        else:
            self.forget(event.stream)
            stream.set_error(ConnectionClosed("the client went away"))
            if stream.handler is not None:
                stream.handler.cancel()

    def _serve(self, event: m.Opened) -> None:
        stream = Stream(self, event.stream, event.method, event.params)
        self._streams[event.stream] = stream
        stream.handler = self._loop.create_task(self._run_handler(stream))

    async def _run_handler(self, stream: Stream) -> None:
        assert self._handler is not None
        try:
            await self._handler(stream)
            stream.send_end()
            if stream.identifier in self.mux.streams:
                # The client has not ended its side; nobody reads it any more.
                stream.manual_credit = True
        except HutchError as error:
            stream.send_error(error)
        except asyncio.CancelledError:
            stream.send_error(ConnectionClosed("the request was cancelled"))
            raise
        finally:
            self.forget(stream.identifier)

    def forget(self, identifier: int) -> None:
        self._streams.pop(identifier, None)

    def flush_soon(self) -> None:
        """Write what is queued at the end of this turn of the loop, in one call."""
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        if self._transport is None or self._transport.is_closing() or not self.mux.outgoing:
            return
        chunks, self.mux.outgoing = self.mux.outgoing, []
        self._transport.writelines(chunks)

    async def drain(self) -> None:
        """Wait while the transport's buffer is above its high-water mark."""
        if not self._writable.is_set():
            await self._writable.wait()
        if self.closed.done():
            raise ConnectionClosed(self.closed.result())

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

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
        self._writable.set()
        if not self._greeted.done():
            self._greeted.set_exception(ConnectionClosed(reason))
            self._greeted.exception()
        for stream in list(self._streams.values()):
            stream.set_error(ConnectionClosed(reason))
            if stream.handler is not None:
                stream.handler.cancel()
        self._streams.clear()


async def connect_unix(path: Path, hello: m.Hello, *, timeout_s: float = 5.0) -> Connection:
    """A client connection to a Unix socket, greeted. Raises `OSError`, `TimeoutError` or `ConnectionClosed`."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(timeout_s):
        _, connection = await loop.create_unix_connection(lambda: Connection(hello, client=True), str(path))
        try:
            await connection.greeted()
        except BaseException:
            connection.close("no greeting")
            raise
        return connection


async def serve_unix(path: Path, hello: m.Hello, handler: Handler, *, mode: int = 0o600) -> asyncio.AbstractServer:
    """Serve the protocol on a Unix socket (mode `mode`), replacing a left-over one."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    path.chmod(mode)
    loop = asyncio.get_running_loop()
    return await loop.create_unix_server(lambda: Connection(hello, client=False, handler=handler), sock=listener)

"""Connections over real sockets: requests, back-pressure, ends, and peers that flood, stall or lie."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hutch.errors import BadRequestError, HutchError, InternalError, NotFoundError, PayloadTooLargeError, UnavailableError
from hutch.wire import Connection, Hello, Role, Stream, connect_unix, serve_unix
from hutch.wire import connection as c
from hutch.wire.connection import ConnectionClosed, Data, Message
from hutch.wire.frames import MAX_PAYLOAD_BYTES, FrameDecoder, Kind, encode_frame

WINDOW = 64 * 1024
Serve = Callable[[Callable[[Stream], Awaitable[None]]], Awaitable[Connection]]


def hello(role: Role = Role.HOST, max_streams: int = 64) -> Hello:
    return Hello(version=1, role=role, window=WINDOW, max_streams=max_streams)


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[Serve]:
    """`await serve(handler)` is a client's connection to a server with that handler."""
    opened: list[Connection] = []
    async with contextlib.AsyncExitStack() as stack:

        async def start(handler: Callable[[Stream], Awaitable[None]]) -> Connection:
            path = tmp_path / f"{len(opened)}.sock"
            server = await serve_unix(path, hello(), handler)
            stack.callback(server.close)
            opened.append(await connect_unix(path, hello(Role.CONTROL)))
            return opened[-1]

        yield start
        for connection in opened:
            connection.close("the test is over")


class Peer:
    """The other end of a connection, byte by byte: what a hostile agent can do."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.decoder = FrameDecoder()

    async def send(self, kind: Kind, stream: int, payload: bytes = b"", channel: int = 0, times: int = 1) -> None:
        self.writer.write(encode_frame(kind, stream, payload, channel) * times)
        with contextlib.suppress(ConnectionError):
            await self.writer.drain()

    async def frames(self) -> list[tuple[Kind, int, bytes]]:
        """What arrived, at least one frame."""
        found: list[tuple[Kind, int, bytes]] = []
        while not found:
            chunk = await self.reader.read(1 << 20)
            assert chunk, "the connection was closed"
            self.decoder.feed(chunk)
            found = [(f.kind, f.stream, f.payload) for f in self.decoder.frames()]
        return found


@pytest.fixture
async def guest(tmp_path: Path) -> AsyncIterator[tuple[Connection, Peer]]:
    """A host's connection to an agent that is not trusted, greeted, and the agent."""
    arrived: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()

    def accept() -> Connection:
        arrived.set_result(Connection(hello(), client=True, limit_control=True))
        return arrived.result()

    path = tmp_path / "agent.sock"
    server = await asyncio.get_running_loop().create_unix_server(accept, path)
    peer = Peer(*await asyncio.open_unix_connection(path))
    connection = await arrived
    await peer.send(Kind.HELLO, 0, msgspec.msgpack.encode(hello(Role.AGENT)))
    await connection.greeted()
    assert (await peer.frames())[0][0] is Kind.HELLO
    yield connection, peer
    connection.close("the test is over")
    peer.writer.close()
    server.close()


async def started(guest: tuple[Connection, Peer]) -> Stream:
    """A request that was replied to."""
    connection, peer = guest
    stream = connection.open("command.start", {})
    await peer.send(Kind.REPLY, stream.identifier, b"\x80")
    await stream.reply()
    return stream


# -- requests ---------------------------------------------------------------------------------------


class Sum(msgspec.Struct):
    a: int
    b: int


async def add(stream: Stream) -> None:
    numbers = stream.params(Sum)
    stream.send_reply({"sum": numbers.a + numbers.b})


async def test_a_call_is_answered(serve: Serve) -> None:
    connection = await serve(add)
    assert await connection.call("add", {"a": 2, "b": 3}) == {"sum": 5}
    answers = await asyncio.gather(*(connection.call("add", {"a": i, "b": i}) for i in range(50)))
    assert [answer["sum"] for answer in answers] == [2 * i for i in range(50)]
    assert not connection.mux.streams
    assert not connection._streams


@pytest.mark.parametrize("params", [{"a": "2", "b": 3}, {"a": 2}, [1], None])
async def test_parameters_of_the_wrong_form_are_the_clients_mistake(serve: Serve, params: object) -> None:
    connection = await serve(add)
    with pytest.raises(BadRequestError) as error:
        await connection.call("add", params)
    assert error.value.code == "bad_request"
    assert await connection.call("add", {"a": 2, "b": 3}) == {"sum": 5}


async def test_errors_arrive_as_what_they_are(serve: Serve) -> None:
    async def handler(stream: Stream) -> None:
        raise NotFoundError("sandbox_not_found", "There is none.", details={"name": "x"})

    with pytest.raises(NotFoundError) as error:
        await (await serve(handler)).call("get", {})
    assert (error.value.code, error.value.message, error.value.details) == ("sandbox_not_found", "There is none.", {"name": "x"})


async def broken(stream: Stream) -> None:
    raise ZeroDivisionError


async def silent(stream: Stream) -> None:
    pass


async def twice(stream: Stream) -> None:
    stream.send_reply({})
    stream.send_reply({})


async def oversized(stream: Stream) -> None:
    stream.send_reply({"x": bytes(MAX_PAYLOAD_BYTES)})


@pytest.mark.parametrize("handler", [broken, silent, oversized])
async def test_a_handler_that_fails_is_an_internal_error_and_ends_only_its_request(serve: Serve, handler: Any) -> None:
    connection = await serve(handler)
    for _ in range(2):
        with pytest.raises(InternalError):
            await connection.call("x", {})
    assert not connection.closed.done()


async def test_an_error_after_the_reply_ends_the_stream(serve: Serve) -> None:
    stream = (await serve(twice)).open("x", {})
    assert await stream.reply() == {}
    with pytest.raises(InternalError):
        await stream.next()


async def test_a_request_that_does_not_fit_is_refused_here(serve: Serve) -> None:
    connection = await serve(add)
    with pytest.raises(PayloadTooLargeError):
        connection.open("x", {"a": bytes(MAX_PAYLOAD_BYTES)})
    assert await connection.call("add", {"a": 2, "b": 3}) == {"sum": 5}


@pytest.mark.parametrize("size", [0, 1000, MAX_PAYLOAD_BYTES - 300, MAX_PAYLOAD_BYTES, MAX_PAYLOAD_BYTES + 1, 3_000_000])
async def test_large_parameters_arrive_whole_however_large(serve: Serve, size: int) -> None:
    async def handler(stream: Stream) -> None:
        value = await stream.value(dict[str, str], 4_000_000)
        stream.send_reply({"a": len(value["text"]), "b": len(set(value["text"]))})

    connection = await serve(handler)
    answer = await connection.call_large("m", {"text": "x" * size}, Sum)
    assert (answer.a, answer.b) == (size, min(size, 1))
    assert not connection.mux.streams


async def test_large_parameters_have_a_bound_and_a_form(serve: Serve) -> None:
    async def handler(stream: Stream) -> None:
        stream.send_reply(await stream.value(Sum, 1_000_000))

    connection = await serve(handler)
    with pytest.raises(PayloadTooLargeError) as refused:
        await connection.call_large("m", {"text": "x" * 1_500_000}, Sum)
    assert refused.value.code == "message_too_large"
    for size in (1, 900_000):
        with pytest.raises(BadRequestError):
            await connection.call_large("m", {"text": "x" * size}, Sum)
    assert await connection.call_large("m", {"a": 1, "b": 2}, Sum) == Sum(1, 2)


async def test_too_many_requests_at_once_are_told_to_try_again(serve: Serve) -> None:
    gate = asyncio.Event()

    async def handler(stream: Stream) -> None:
        await gate.wait()
        stream.send_reply({})

    connection = await serve(handler)
    calls = [asyncio.create_task(connection.call("x", {})) for _ in range(64)]
    await asyncio.sleep(0)
    with pytest.raises(UnavailableError) as error:
        connection.open("x", {})
    assert error.value.code == "too_many_streams"
    gate.set()
    await asyncio.gather(*calls)
    await connection.call("x", {})


async def test_stream_ids_that_are_used_up_end_the_connection(serve: Serve) -> None:
    connection = await serve(add)
    connection.mux._next_stream = 2**32 - 1
    assert await connection.call("add", {"a": 1, "b": 1}) == {"sum": 2}
    with pytest.raises(ConnectionClosed):
        connection.open("add", {})


# -- bytes and back-pressure --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
async def test_bytes_arrive_whole_in_both_directions(serve: Serve, kind: Any) -> None:
    async def echo(stream: Stream) -> None:
        stream.send_reply({})
        async for item in stream:
            assert isinstance(item, Data)
            await stream.send_data(item.data, channel=2)

    body = bytes(range(256)) * 4096
    stream = (await serve(echo)).open("x", {})

    async def upload() -> None:
        source: Any = bytearray(body) if kind is bytearray else kind(body)
        await stream.send_data(source, channel=0)
        if isinstance(source, bytearray):
            source[:] = bytes(len(source))  # The caller's buffer is the caller's again.
        stream.send_end()

    async with asyncio.TaskGroup() as group:
        group.create_task(upload())
        received = b"".join([item.data async for item in stream if isinstance(item, Data) and item.channel == 2])
    assert received == body


async def test_a_sender_waits_for_a_reader_and_memory_stays_bounded(serve: Serve) -> None:
    sent = 0
    stalled = asyncio.Event()

    async def pour(stream: Stream) -> None:
        nonlocal sent
        stream.send_reply({})
        for _ in range(100):
            waiting = asyncio.ensure_future(stream.send_data(bytes(16 * 1024)))
            done, _ = await asyncio.wait({waiting}, timeout=0.05)
            if not done:
                stalled.set()
            await waiting
            sent += 1

    stream = (await serve(pour)).open("x", {})
    await stalled.wait()
    assert sent * 16 * 1024 == WINDOW
    assert stream.waiting_items == 4
    assert sum([len(item.data) async for item in stream if isinstance(item, Data)]) == 100 * 16 * 1024


async def test_manual_credit_is_granted_by_the_owner_alone(serve: Serve) -> None:
    async def pour(stream: Stream) -> None:
        stream.send_reply({})
        await stream.send_data(bytes(2 * WINDOW))

    connection = await serve(pour)
    stream = connection.open("x", {})
    stream.manual_credit = True
    await stream.reply()
    received = 0
    while received < WINDOW:
        item = await stream.next()
        assert isinstance(item, Data)
        received += len(item.data)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(stream.next(), 0.05)
    stream.grant(WINDOW)
    while (item := await stream.next()) is not None:
        assert isinstance(item, Data)
        received += len(item.data)
    assert received == 2 * WINDOW


async def test_many_streams_to_a_peer_that_does_not_read_queue_little(guest: tuple[Connection, Peer]) -> None:
    connection, peer = guest
    streams = [connection.open("file.write", {}) for _ in range(40)]
    for stream in streams:
        await peer.send(Kind.CREDIT, stream.identifier, (4 * 1024 * 1024).to_bytes(4, "little"))
    await peer.send(Kind.PING, 0, b"12345678")
    uploads = [asyncio.create_task(stream.send_data(bytes(4 * 1024 * 1024), 0)) for stream in streams]
    await asyncio.wait(uploads, timeout=0.2)
    assert connection._transport is not None
    queued = connection.mux.outgoing_bytes + connection._transport.get_write_buffer_size()
    assert queued <= c.WRITE_HIGH_BYTES + 2 * MAX_PAYLOAD_BYTES
    for upload in uploads:
        upload.cancel()
    await asyncio.gather(*uploads, return_exceptions=True)


async def test_events_and_data_keep_their_order(serve: Serve) -> None:
    async def handler(stream: Stream) -> None:
        stream.send_reply({})
        for number in range(100):
            await stream.send_data(bytes([number]), channel=1 + number % 2)
            await stream.send_event({"number": number})

    stream = (await serve(handler)).open("x", {})
    seen = [item async for item in stream]
    assert [item.data[0] for item in seen[::2] if isinstance(item, Data)] == list(range(100))
    assert [item.decode(dict[str, int])["number"] for item in seen[1::2] if isinstance(item, Message)] == list(range(100))


async def test_a_message_that_no_window_has_room_for_is_refused(serve: Serve) -> None:
    async def handler(stream: Stream) -> None:
        stream.send_reply({})
        await stream.send_event({"text": "x" * WINDOW})

    stream = (await serve(handler)).open("x", {})
    with pytest.raises(PayloadTooLargeError):
        await stream.next()


async def test_small_pieces_that_wait_are_joined(serve: Serve) -> None:
    async def drip(stream: Stream) -> None:
        stream.send_reply({})
        for _ in range(5000):
            await stream.send_data(b"x", channel=1)
        await stream.send_event({})

    connection = await serve(drip)
    stream = connection.open("x", {})
    while not (stream._items and isinstance(stream._items[-1], Message)):
        await connection.ping(5)
    assert stream.waiting_items < 40
    assert sum([len(item.data) async for item in stream if isinstance(item, Data)]) == 5000


# -- ends -----------------------------------------------------------------------------------------------


async def test_what_was_sent_before_an_error_is_delivered_before_it(serve: Serve) -> None:
    async def handler(stream: Stream) -> None:
        stream.send_reply({})
        await stream.send_data(b"first")
        raise NotFoundError("gone", "x")

    stream = (await serve(handler)).open("x", {})
    assert await stream.next() == Data(1, b"first")
    with pytest.raises(NotFoundError):
        await stream.next()
    with pytest.raises(NotFoundError):
        await stream.next()


async def test_an_upload_to_a_request_that_failed_ends_with_its_error(serve: Serve) -> None:
    async def handler(stream: Stream) -> None:
        await stream.next()
        raise BadRequestError("invalid_archive", "x")

    stream = (await serve(handler)).open("x", {})
    with pytest.raises(BadRequestError):
        await stream.send_data(bytes(10 * WINDOW), 0)


async def test_an_upload_goes_on_when_the_server_has_answered_early(serve: Serve) -> None:
    async def handler(stream: Stream) -> None:
        await asyncio.sleep(0)
        stream.send_reply({"done": True})

    connection = await serve(handler)
    stream = connection.open("x", {})
    await asyncio.wait_for(stream.send_data(bytes(20 * WINDOW), 0), 10)
    stream.send_end()
    assert await stream.reply() == {"done": True}
    assert await stream.next() is None
    assert not connection.mux.streams


async def test_a_cancelled_request_cancels_its_handler(serve: Serve) -> None:
    running, stopped = asyncio.Event(), asyncio.Event()

    async def handler(stream: Stream) -> None:
        running.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    connection = await serve(handler)
    stream = connection.open("x", {})
    waiting = [asyncio.create_task(stream.reply()), asyncio.create_task(stream.next())]
    await running.wait()
    stream.cancel()
    stream.cancel()
    await asyncio.wait_for(stopped.wait(), 5)
    for result in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(result, ConnectionClosed)
    assert not connection.mux.streams


async def test_cancelling_a_waiting_task_leaves_the_stream_usable(serve: Serve) -> None:
    async def handler(stream: Stream) -> None:
        await stream.next()
        stream.send_reply({})

    stream = (await serve(handler)).open("x", {})
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(stream.reply(), 0.01)
    await stream.send_event({})
    assert await stream.reply() == {}


@pytest.mark.parametrize("end", ["client", "server"])
async def test_a_broken_connection_ends_everything_on_both_sides(serve: Serve, end: str) -> None:
    handled: asyncio.Future[tuple[Stream, asyncio.Task[None]]] = asyncio.get_running_loop().create_future()

    async def handler(stream: Stream) -> None:
        stream.send_reply({})
        assert stream.handler is not None
        handled.set_result((stream, stream.handler))
        await stream.send_data(bytes(10 * WINDOW))

    connection = await serve(handler)
    stream = connection.open("x", {})
    remote, task = await handled
    waiting = asyncio.create_task(connection.open("y", {}).reply())
    (connection if end == "client" else remote.connection).close("broken on purpose")
    await asyncio.wait({task}, timeout=5)
    assert task.cancelled()
    with pytest.raises(ConnectionClosed):
        await asyncio.wait_for(waiting, 5)
    with pytest.raises(ConnectionClosed):
        [item async for item in stream]
    with pytest.raises(ConnectionClosed):
        connection.open("z", {})
    with pytest.raises(ConnectionClosed):
        await connection.ping(5)


async def test_a_ping_that_is_not_answered_ends_when_the_connection_does(guest: tuple[Connection, Peer]) -> None:
    connection, peer = guest
    with pytest.raises(TimeoutError):
        await connection.ping(0.02)
    pinging = asyncio.create_task(connection.ping(60))
    while (await peer.frames())[-1][0] is not Kind.PING:
        pass
    peer.writer.close()
    with pytest.raises(ConnectionClosed):
        await asyncio.wait_for(pinging, 5)


async def test_a_server_that_does_not_greet_is_given_up(tmp_path: Path) -> None:
    path = tmp_path / "mute.sock"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with listener:
        listener.bind(str(path))
        listener.listen()
        with pytest.raises(TimeoutError):
            await connect_unix(path, hello(Role.CONTROL), timeout_s=0.05)


async def test_a_left_over_socket_is_replaced_and_only_its_owner_may_connect(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    first = await serve_unix(path, hello(), add)
    first.close()
    second = await serve_unix(path, hello(), add)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    connection = await connect_unix(path, hello(Role.CONTROL))
    assert await connection.call("add", {"a": 1, "b": 2}) == {"sum": 3}
    connection.close("done")
    second.close()


# -- peers that are not honest --------------------------------------------------------------------------


async def closed(connection: Connection) -> str:
    return await asyncio.wait_for(asyncio.shield(connection.closed), 10)


async def test_a_violation_ends_every_request(guest: tuple[Connection, Peer]) -> None:
    connection, peer = guest
    stream = await started(guest)
    peer.writer.write(b"GET / HTTP/1.1\r\n\r\n")
    assert "protocol violation" in await closed(connection)
    with pytest.raises(ConnectionClosed):
        await stream.next()


async def test_a_flood_of_control_frames_is_a_violation(guest: tuple[Connection, Peer]) -> None:
    connection, peer = guest
    await peer.send(Kind.PONG, 0, b"12345678", times=c.CONTROL_FRAMES_PER_SECOND + 10)
    assert "control frames in a second" in await closed(connection)


async def test_answers_to_many_requests_are_not_a_flood(guest: tuple[Connection, Peer], monkeypatch: Any) -> None:
    connection, peer = guest
    monkeypatch.setattr(c, "CONTROL_FRAMES_PER_SECOND", 200)
    for _ in range(20):
        streams = [connection.open("ping", {}) for _ in range(50)]
        for stream in streams:
            await peer.send(Kind.REPLY, stream.identifier, b"\x80")
            await peer.send(Kind.END, stream.identifier)
            stream.send_end()
        assert [await stream.reply() for stream in streams] == [{}] * 50
    await peer.send(Kind.PONG, 0, b"12345678", times=201 + 4 * 1000)
    assert "control frames" in await closed(connection)


async def test_control_frames_of_many_seconds_are_not_a_flood(guest: tuple[Connection, Peer], monkeypatch: Any) -> None:
    connection, peer = guest
    time = 1000.0
    monkeypatch.setattr(connection._loop, "time", lambda: time)
    for _ in range(4):
        connection.data_received(encode_frame(Kind.PONG, 0, b"12345678") * 1500)
        time += 2.0
        connection.data_received(encode_frame(Kind.PONG, 0, b"12345678") * 1500)
    monkeypatch.undo()
    assert not connection.closed.done()
    await peer.send(Kind.PING, 0, b"12345678")


async def test_pings_of_a_peer_that_does_not_read_pile_up_only_so_far(guest: tuple[Connection, Peer], monkeypatch: Any) -> None:
    connection, peer = guest
    monkeypatch.setattr(c, "MAX_BACKLOG_BYTES", 300_000)
    monkeypatch.setattr(c, "CONTROL_FRAMES_PER_SECOND", 10**9)
    sending = asyncio.create_task(peer.send(Kind.PING, 0, b"12345678", times=100_000))
    assert "does not read" in await closed(connection)
    await sending


async def test_a_flood_of_tiny_data_is_slowed_down_and_holds_up_nobody_else(
    guest: tuple[Connection, Peer], monkeypatch: Any
) -> None:
    connection, peer = guest
    monkeypatch.setattr(c, "DATA_FRAMES_PER_SECOND", 5000)
    monkeypatch.setattr(c, "FRAMES_PER_TURN", 100)
    stream = await started(guest)
    loop, turns = asyncio.get_running_loop(), 0

    def count() -> None:
        nonlocal turns
        turns += 1
        loop.call_soon(count)

    count()
    began, received = loop.time(), 0
    await peer.send(Kind.DATA, stream.identifier, b"x", 1, times=4000)
    while received < 4000:
        item = await stream.next()
        assert isinstance(item, Data)
        received += len(item.data)
    assert loop.time() - began > 0.5, "it was not slowed down"
    assert turns > 40, "it was looked at in one go"
    assert not connection.closed.done()


async def test_tiny_pieces_that_nobody_takes_are_bounded(guest: tuple[Connection, Peer], monkeypatch: Any) -> None:
    connection, peer = guest
    monkeypatch.setattr(c, "MAX_WAITING_ITEMS", 500)
    stream = await started(guest)
    both = encode_frame(Kind.DATA, stream.identifier, b"x", 1) + encode_frame(Kind.DATA, stream.identifier, b"y", 2)
    peer.writer.write(both * 400)
    assert "small pieces" in await closed(connection)
    assert stream.waiting_items <= 501


async def test_events_that_nobody_takes_are_bounded(guest: tuple[Connection, Peer], monkeypatch: Any) -> None:
    connection, peer = guest
    monkeypatch.setattr(c, "MAX_WAITING_ITEMS", 500)
    stream = await started(guest)
    await peer.send(Kind.EVENT, stream.identifier, b"\x80", times=600)
    assert "small pieces" in await closed(connection)


async def test_a_reply_of_another_form_ends_the_connection(guest: tuple[Connection, Peer]) -> None:
    connection, peer = guest
    stream = connection.open("command.start", {})
    await peer.send(Kind.REPLY, stream.identifier, b"\x81\xa3pid\xa3one")
    with pytest.raises(ConnectionClosed):
        await stream.reply(dict[str, int])
    assert "protocol violation" in await closed(connection)


async def test_an_event_of_another_form_ends_the_connection(guest: tuple[Connection, Peer]) -> None:
    connection, peer = guest
    stream = await started(guest)
    await peer.send(Kind.EVENT, stream.identifier, b"\x81\xa4exit\xa3one")
    item = await stream.next()
    assert isinstance(item, Message)
    with pytest.raises(ConnectionClosed):
        item.decode(dict[str, dict[str, int]])
    assert "protocol violation" in await closed(connection)


@pytest.mark.parametrize(("status", "expected"), [(400, 400), (404, 404), (503, 503), (401, 500), (410, 500), (0, 500)])
async def test_a_guest_may_not_speak_for_the_host(guest: tuple[Connection, Peer], status: int, expected: int) -> None:
    connection, peer = guest
    stream = connection.open("file.read", {})
    lies = {"s": status, "c": "x" * 1000, "m": "m" * 20_000, "d": {"code": "budget_exceeded", "message": "other"}}
    await peer.send(Kind.ERROR, stream.identifier, msgspec.msgpack.encode(lies))
    with pytest.raises(HutchError) as error:
        await stream.reply()
    assert error.value.status == expected
    assert error.value.details == {}
    assert len(error.value.code) == 64
    assert len(error.value.message) == 8192


async def test_an_agent_cannot_open_streams(guest: tuple[Connection, Peer]) -> None:
    connection, peer = guest
    await peer.send(Kind.OPEN, 1, b"\x82\xa1m\xa1x\xa1p\x80")
    assert "OPEN from a server" in await closed(connection)

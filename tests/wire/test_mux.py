"""The rules of streams: a client and a server that keep them understand each other, and nobody else is listened to."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hutch.wire.frames import HEADER, MAX_PAYLOAD_BYTES, FrameDecoder, Kind, WireViolation, encode_frame
from hutch.wire.mux import (
    MAX_STREAM,
    Cancelled,
    DataReceived,
    EndReceived,
    ErrorReceived,
    Event,
    EventReceived,
    Hello,
    Mux,
    Opened,
    ReplyReceived,
    Role,
)
from tests.wire.campaign import campaign, examples
from tests.wire.vectors import SESSIONS, encoded, received_bytes

WINDOW = 16 * 1024


def hello(role: Role = Role.HOST, window: int = WINDOW, max_streams: int = 4) -> Hello:
    return Hello(version=1, role=role, window=window, max_streams=max_streams)


def taken(mux: Mux) -> bytes:
    return b"".join(mux.take_outgoing())


def pair() -> tuple[Mux, Mux]:
    """A client and a server that have greeted each other."""
    client, server = Mux(client=True, hello=hello()), Mux(client=False, hello=hello(Role.AGENT))
    client.receive(taken(server))
    server.receive(taken(client))
    return client, server


def opened() -> tuple[Mux, Mux, int]:
    """A pair with one stream."""
    client, server = pair()
    stream = client.send_open("m", {})
    server.receive(taken(client))
    return client, server, stream


# -- what the owner may do --------------------------------------------------------------------------


def test_nothing_can_be_opened_before_the_peers_hello() -> None:
    with pytest.raises(RuntimeError, match="no HELLO"):
        Mux(client=True, hello=hello()).send_open("m", {})


def test_no_more_streams_are_opened_than_the_peer_takes() -> None:
    client, _server = pair()
    for _ in range(4):
        client.send_open("m", {})
    with pytest.raises(RuntimeError, match="4 streams at once"):
        client.send_open("m", {})


def test_a_stream_id_is_never_used_twice() -> None:
    client, server = pair()
    client._next_stream = MAX_STREAM
    assert client.send_open("m", {}) == MAX_STREAM
    assert isinstance(server.receive(taken(client))[0], Opened)
    assert client.is_used_up
    with pytest.raises(RuntimeError, match="used up"):
        client.send_open("m", {})


def test_a_request_that_is_too_large_leaves_nothing_behind() -> None:
    client, server = pair()
    with pytest.raises(ValueError, match="at most"):
        client.send_open("m", {"a": bytes(MAX_PAYLOAD_BYTES)})
    assert not client.streams
    assert not client.outgoing_bytes
    client.send_open("m", {})
    assert isinstance(server.receive(taken(client))[0], Opened)


def test_a_reply_that_is_too_large_can_still_become_an_error() -> None:
    client, server, stream = opened()
    with pytest.raises(ValueError, match="at most"):
        server.send_reply(stream, {"a": bytes(MAX_PAYLOAD_BYTES)})
    server.send_error(stream, 500, "internal_error", "x")
    assert isinstance(client.receive(taken(server))[0], ErrorReceived)


def test_an_error_always_fits_into_a_frame() -> None:
    client, server, stream = opened()
    server.send_error(stream, 400, "c", "é" * 100_000, {"a": "x" * MAX_PAYLOAD_BYTES})
    (event,) = client.receive(taken(server))
    assert isinstance(event, ErrorReceived)
    assert (event.error.m, event.error.d) == ("é" * 8192, {})


def test_details_that_cannot_be_encoded_are_left_out_of_an_error() -> None:
    client, server, stream = opened()
    server.send_error(stream, 400, "c", "m", {"a": object(), "b": 2**70})
    (event,) = client.receive(taken(server))
    assert isinstance(event, ErrorReceived)
    assert event.error.d == {}


def end_first(server: Mux, stream: int) -> None:
    server.streams[stream].replied = False
    server.send_end(stream)


def send_after_end(server: Mux, stream: int) -> None:
    server.send_end(stream)
    server.send_data(stream, b"x", 1)


def send_too_much_at_once(server: Mux, stream: int) -> None:
    server.streams[stream].send_credit = 2 * MAX_PAYLOAD_BYTES
    server.send_data(stream, bytes(MAX_PAYLOAD_BYTES + 1), 1)


@pytest.mark.parametrize(
    "act",
    [
        end_first,
        send_after_end,
        send_too_much_at_once,
        lambda server, stream: server.send_reply(stream, {}),
        lambda server, stream: server.send_data(stream, bytes(WINDOW + 1), 1),
        lambda server, stream: server.send_data(stream, b"", 1),
        lambda server, stream: server.send_event(stream, bytes(WINDOW + 1)),
    ],
)
def test_the_owner_is_told_of_its_own_mistakes(act: Callable[[Mux, int], None]) -> None:
    _client, server, stream = opened()
    server.send_reply(stream, {})
    with pytest.raises((RuntimeError, ValueError)):
        act(server, stream)
    assert server.streams[stream].send_credit >= WINDOW, "a refused send costs no credit"


def test_what_is_sent_on_a_stream_that_is_over_is_dropped() -> None:
    client, server, stream = opened()
    client.send_cancel(stream)
    server.receive(taken(client))
    taken(server)
    server.send_reply(stream, {})
    server.send_end(stream)
    server.send_error(stream, 500, "x", "x")
    server.grant(stream, 5)
    client.send_cancel(stream)
    client.send_end(stream)
    assert (taken(server), taken(client)) == (b"", b"")


def test_a_stream_is_over_when_both_sides_have_ended_it() -> None:
    client, server, stream = opened()
    client.send_end(stream)
    server.receive(taken(client))
    server.send_reply(stream, {})
    assert server.streams
    server.send_end(stream)
    assert not server.streams
    assert client.streams
    client.receive(taken(server))
    assert not client.streams


# -- two honest ends --------------------------------------------------------------------------------


class Honest(RuleBasedStateMachine):
    """A client and a server do whatever they may, their bytes arrive in any pieces; neither may see a violation, and
    what one says is what the other hears."""

    def __init__(self) -> None:
        super().__init__()
        self.client, self.server = pair()
        self.wires: dict[bool, bytes] = {True: b"", False: b""}
        self.said: dict[tuple[bool, int], list[Any]] = defaultdict(list)
        self.heard: dict[tuple[bool, int], list[Any]] = defaultdict(list)
        self.cut: set[int] = set()
        self.owed: dict[tuple[bool, int], int] = defaultdict(int)

    def end(self, client: bool) -> Mux:
        return self.client if client else self.server

    @initialize()
    def start(self) -> None:
        self.client.send_open("m", {})

    def collect(self) -> None:
        for client in (True, False):
            self.wires[client] += taken(self.end(client))

    @rule(client=st.booleans(), size=st.integers(1, 40_000))
    def deliver(self, client: bool, size: int) -> None:
        """Some of what `client`'s end sent arrives."""
        self.collect()
        data, self.wires[client] = self.wires[client][:size], self.wires[client][size:]
        for event in self.end(not client).receive(data):
            self.hear(client, event)

    def hear(self, client: bool, event: Event) -> None:
        match event:
            case DataReceived(stream, channel, data):
                self.heard[client, stream].append((channel, data))
                self.owed[client, stream] += len(data)
            case EventReceived(stream, payload):
                self.heard[client, stream].append(payload)
                self.owed[client, stream] += len(payload)
            case EndReceived(stream) | ReplyReceived(stream, _):
                self.heard[client, stream].append(type(event).__name__)
            case ErrorReceived(stream, _) | Cancelled(stream):
                self.cut.add(stream)

    @precondition(lambda self: len(self.client.streams) < 4)
    @rule()
    def open(self) -> None:
        self.client.send_open("m", {"a": 1})

    def pick(self, data: st.DataObject, mux: Mux) -> int | None:
        return data.draw(st.sampled_from(sorted(mux.streams))) if mux.streams else None

    @rule(data=st.data())
    def reply(self, data: st.DataObject) -> None:
        stream = self.pick(data, self.server)
        if stream is not None and not self.server.streams[stream].replied:
            self.server.send_reply(stream, {})
            self.said[False, stream].append("ReplyReceived")

    @rule(data=st.data(), client=st.booleans(), size=st.integers(1, WINDOW), channel=st.integers(0, 2))
    def send(self, data: st.DataObject, client: bool, size: int, channel: int) -> None:
        mux = self.end(client)
        stream = self.pick(data, mux)
        if stream is None or mux.streams[stream].sent_end or not (client or mux.streams[stream].replied):
            return
        size = min(size, mux.send_credit(stream))
        if size:
            payload = bytes([size & 255]) * size
            mux.send_data(stream, payload, channel)
            self.said[client, stream].append((channel, payload))

    @rule(data=st.data(), client=st.booleans(), text=st.text(max_size=20))
    def send_event(self, data: st.DataObject, client: bool, text: str) -> None:
        mux = self.end(client)
        stream = self.pick(data, mux)
        payload = msgspec.msgpack.encode({"t": text})
        if stream is None or mux.streams[stream].sent_end or not (client or mux.streams[stream].replied):
            return
        if mux.send_credit(stream) >= len(payload):
            mux.send_event(stream, payload)
            self.said[client, stream].append(payload)

    @rule(data=st.data(), client=st.booleans())
    def grant(self, data: st.DataObject, client: bool) -> None:
        """`client`'s end has dealt with what it heard."""
        mux = self.end(client)
        stream = self.pick(data, mux)
        if stream is not None:
            mux.grant(stream, self.owed.pop((not client, stream), 0))

    @rule(data=st.data(), client=st.booleans())
    def finish(self, data: st.DataObject, client: bool) -> None:
        mux = self.end(client)
        stream = self.pick(data, mux)
        if stream is not None and not mux.streams[stream].sent_end and (client or mux.streams[stream].replied):
            mux.send_end(stream)
            self.said[client, stream].append("EndReceived")

    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        stream = self.pick(data, self.server)
        if stream is not None:
            self.server.send_error(stream, 404, "x", "x")
            self.cut.add(stream)

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        stream = self.pick(data, self.client)
        if stream is not None:
            self.client.send_cancel(stream)
            self.cut.add(stream)

    @invariant()
    def what_is_heard_was_said(self) -> None:
        for key, items in self.heard.items():
            assert items == self.said[key][: len(items)]

    @invariant()
    def credit_is_bounded(self) -> None:
        for mux in (self.client, self.server):
            for state in mux.streams.values():
                assert 0 <= state.receive_credit <= WINDOW
                assert 0 <= state.send_credit <= WINDOW

    def teardown(self) -> None:
        self.collect()
        for client in (True, False):
            for event in self.end(not client).receive(self.wires[client]):
                self.hear(client, event)
        for key, items in self.said.items():
            if key[1] not in self.cut:
                assert self.heard[key] == items


TestHonest = Honest.TestCase
TestHonest.settings = campaign(60, steps=60)


# -- a peer that is not honest ------------------------------------------------------------------------


def prepared(client: bool) -> Mux:
    """An end with some streams in different states, and its peer's HELLO."""
    mux = Mux(client=client, hello=hello(max_streams=16))
    mux.receive(encode_frame(Kind.HELLO, 0, msgspec.msgpack.encode(hello(Role.AGENT, max_streams=16))))
    for _ in range(3):
        if client:
            mux.send_open("m", {})
    if client:
        mux.receive(encode_frame(Kind.REPLY, 1, b"\x80") + encode_frame(Kind.REPLY, 2, b"\x80"))
        mux.send_end(1)
        mux.send_cancel(3)
    else:
        opens = [encode_frame(Kind.OPEN, i, msgspec.msgpack.encode({"m": "m", "p": {}})) for i in (1, 2, 3)]
        mux.receive(b"".join(opens))
        mux.send_reply(1, {})
        mux.send_end(1)
        mux.send_error(3, 400, "c", "m")
    return mux


def survive(mux: Mux, data: bytes, sizes: random.Random) -> None:
    """Feed hostile bytes: only a violation may stop it, and what it holds stays within its bounds."""
    position = 0
    taken(mux)
    try:
        while position < len(data):
            size = sizes.choice([1, 13, 300, 70_000])
            for event in mux.receive(data[position : position + size]):
                if isinstance(event, DataReceived):
                    assert 0 < len(event.data) <= MAX_PAYLOAD_BYTES
            position += size
    except WireViolation:
        pass
    assert len(mux.streams) <= 16
    assert mux.outgoing_bytes <= 100 + 4 * len(data)
    for state in mux.streams.values():
        assert state.receive_credit >= 0
        assert state.send_credit <= 16 * 1024 * 1024


@campaign(150)
@given(st.booleans(), st.binary(max_size=400), st.integers())
def test_random_bytes_are_violations_at_worst(client: bool, data: bytes, seed: int) -> None:
    survive(prepared(client), data, random.Random(seed))


def hostile(rng: random.Random) -> bytes:
    """Frames with good headers and anything in them."""
    out = []
    for _ in range(rng.randrange(1, 30)):
        kind = rng.choice(list(Kind))
        payload = rng.choice(
            [
                b"\x80",
                b"\x81\xa1m\xa1x",
                b"\x82\xa1m\xa1x\xa1p\x80",
                rng.randbytes(rng.randrange(1, 60)),
                b"\x83\xa1s\xcd\x01\x90\xa1c\xa1c\xa1m\xa1m",
                b"\x81\xa1a" + b"\x91" * rng.randrange(1, 3000),
                b"\xdf\xff\xff\xff\xff",
                rng.randbytes(rng.randrange(1, 20_000)),
            ]
        )
        if kind in (Kind.PING, Kind.PONG):
            payload = payload.ljust(8)[:8]
        elif kind in (Kind.END, Kind.CANCEL):
            payload = b""
        elif kind is Kind.CREDIT:
            payload = rng.choice([b"\1\0\0\0", b"\xff\xff\xff\xff", rng.randbytes(4)])
        stream = 0 if kind in (Kind.HELLO, Kind.PING, Kind.PONG) else rng.choice([1, 2, 3, 4, rng.randrange(1, 2**32)])
        out.append(encode_frame(kind, stream, payload, rng.randrange(3) if kind is Kind.DATA else 0))
    return b"".join(out)


def mutated(rng: random.Random) -> bytes:
    """A valid session with some bytes changed, dropped, doubled or moved."""
    data = bytearray(received_bytes(rng.choice(SESSIONS)) or b"\0")
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(data))
        match rng.randrange(4):
            case 0:
                data[at] = rng.randrange(256)
            case 1:
                data[at] ^= 1 << rng.randrange(8)
            case 2:
                del data[at : at + rng.randrange(1, 20)]
            case _:
                data[at:at] = data[at : at + rng.randrange(1, 200)]
        if not data:
            data = bytearray(b"\0")
    return bytes(data)


@pytest.mark.parametrize("make", [hostile, mutated])
def test_hostile_streams_are_violations_at_worst(make: Any) -> None:
    for seed in range(examples(400)):
        rng = random.Random(seed)
        client = rng.random() < 0.5
        mux = prepared(client) if make is hostile else Mux(client=client, hello=hello(max_streams=16))
        survive(mux, make(rng), rng)


def test_every_vector_is_cut_off_everywhere() -> None:
    for session in SESSIONS:
        data = b"".join(encoded(frame) for step in session["steps"] for frame in step.get("receive", []))
        for end in range(0, len(data), 3):
            mux = Mux(client=session["side"] == "client", hello=hello())
            survive(mux, data[:end], random.Random(end))


def test_pings_are_answered_one_by_one() -> None:
    mux = prepared(client=True)
    taken(mux)
    mux.receive(b"".join(encode_frame(Kind.PING, 0, i.to_bytes(8, "little")) for i in range(50)))
    decoder = FrameDecoder()
    decoder.feed(taken(mux))
    answers = list(decoder.frames())
    assert [(f.kind, int.from_bytes(f.payload, "little")) for f in answers] == [(Kind.PONG, i) for i in range(50)]
    assert mux.control_frames == 50 + 3


def test_queued_bytes_are_counted() -> None:
    client, _server, stream = opened()
    client.send_data(stream, b"x" * 100, 0)
    client.send_end(stream)
    assert client.outgoing_bytes == 2 * HEADER.size + 100 == len(taken(client))
    assert client.outgoing_bytes == 0

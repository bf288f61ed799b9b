"""Agents that lie: what a guest that has taken over its channel can say to the host, and what comes of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from hutch import ids
from hutch.errors import GoneError, HutchError
from hutch.host import channel, kernel
from hutch.host.cgroups import Cgroups
from hutch.host.commands import Commands
from hutch.host.journal import Journal
from hutch.host.machine import Machine
from hutch.host.network import Network
from hutch.host.protocol import CommandStart
from hutch.isolation.gvisor import Gvisor
from hutch.wire import Connection, Hello, Role, Stream
from hutch.wire.sockets import address, bind_unix

HELLO = Hello(version=1, role=Role.AGENT, window=1024 * 1024, max_streams=64, boot="0" * 32, token="", agent="0.1.0")
Behaviour = Callable[[Stream], Awaitable[None]]


class Rig:
    """A machine whose agent is a behaviour of the test."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.journal = Journal(directory / "journal.db")
        self.journal.open()
        self.journal.start()
        (directory / "channel").mkdir()
        self.agents: list[Connection] = []

    async def machine(self, behaviour: Behaviour, hello: Hello = HELLO) -> Machine:
        accepting = asyncio.ensure_future(channel.accept_agent(self.directory / "channel", hello.token, 5))
        await self.connect(behaviour, hello)
        machine = Machine(
            "m" + "0" * 20,
            Gvisor(Path("none"), self.directory, Cgroups.detect()),
            self.directory,
            "/none",
            Network(1, 0, "none", "none"),
            kernel.process(os.getpid()),
            await accepting,
        )
        machine.watch()
        return machine

    async def connect(self, behaviour: Behaviour, hello: Hello = HELLO) -> Connection:
        path = self.directory / "channel" / channel.SOCKET_NAME
        loop = asyncio.get_running_loop()
        while not path.exists():
            await asyncio.sleep(0.005)
        with address(path) as short:
            _, agent = await loop.create_unix_connection(lambda: Connection(hello, client=False, handler=behaviour), short)
        self.agents.append(agent)
        return agent

    def commands(self, machine: Machine) -> Commands:
        return Commands("sbx_test", machine, self.journal, self.directory, "/", 1 << 20)

    async def close(self) -> None:
        for agent in self.agents:
            agent.close("the test is over")
        await asyncio.sleep(0)
        self.journal.close()


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    made = Rig(tmp_path)
    yield made
    await made.close()


def start() -> CommandStart:
    return CommandStart(session_id="sbx_test", command_id=ids.command_id(), argv=[b"true"])


def answering(events: list[dict[str, Any]], reply: dict[str, Any] | None = None) -> Behaviour:
    """An agent that answers every start with `reply` and these events."""

    async def behave(stream: Stream) -> None:
        stream.send_reply(reply if reply is not None else {"pid": 1})
        if stream.method == "command.start":
            for event in events:
                await stream.send_event(event)

    return behave


@pytest.mark.parametrize(
    ("claimed", "code"),
    [(0, 0), (255, 255), (256, 0), (-1, 255), (2**62, 0), (-(2**62), 0)],
)
async def test_exit_codes_stay_in_their_range(rig: Rig, claimed: int, code: int) -> None:
    machine = await rig.machine(answering([{"exit": {"exit_code": claimed, "duration_us": 2**62}}]))
    command = await rig.commands(machine).start(start())
    record = await asyncio.wait_for(command.finished, 5)
    assert record.exit_code == code
    assert record.duration_ms is not None
    assert 0 <= record.duration_ms < 5000
    machine.let_go()


@pytest.mark.parametrize(
    "reply",
    [{"pid": "text"}, {}, {"pid": None}, {"pid": [[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]}],
)
async def test_a_malformed_reply_ends_the_machine_or_only_the_request(rig: Rig, reply: dict[str, Any]) -> None:
    machine = await rig.machine(answering([], reply))
    with pytest.raises((HutchError, Exception)) as refused:
        await rig.commands(machine).start(start())
    assert not isinstance(refused.value, (TypeError, KeyError, AttributeError, RecursionError))
    machine.let_go()


@pytest.mark.parametrize("pid", [0, 1, -1, 4711, 2**64 - 1])
async def test_a_pid_that_lies_harms_nobody(rig: Rig, pid: int) -> None:
    machine = await rig.machine(answering([{"exit": {"exit_code": 3, "duration_us": 1}}], {"pid": pid}))
    commands = rig.commands(machine)
    command = await commands.start(start())
    await commands.kill(command, 9)
    assert (await asyncio.wait_for(command.finished, 5)).exit_code == 3
    machine.let_go()


@pytest.mark.parametrize(
    "event", [{"exit": "now"}, {"exit": {}}, {"skipped": "many"}, {"exit": {"exit_code": 0.5, "duration_us": 1}}]
)
async def test_a_malformed_event_is_a_dead_machine(rig: Rig, event: dict[str, Any]) -> None:
    machine = await rig.machine(answering([event]))
    command = await rig.commands(machine).start(start())
    with pytest.raises(GoneError):
        await asyncio.wait_for(command.finished, 5)
    await asyncio.wait_for(machine.died, 5)
    machine.let_go()


async def test_a_stream_that_ends_without_an_exit_is_a_dead_command(rig: Rig) -> None:
    machine = await rig.machine(answering([]))
    command = await rig.commands(machine).start(start())
    with pytest.raises(GoneError):
        await asyncio.wait_for(command.finished, 5)
    machine.let_go()


async def test_a_skip_that_goes_back_is_a_dead_machine(rig: Rig) -> None:
    machine = await rig.machine(answering([{"skipped": -5}, {"exit": {"exit_code": 0, "duration_us": 1}}]))
    command = await rig.commands(machine).start(start())
    with pytest.raises(GoneError):
        await asyncio.wait_for(command.finished, 5)
    assert command.output.end == 0
    machine.let_go()


@pytest.mark.parametrize(
    "garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 4096, b"\x00" * 12, b"\x05\x00\x00\x00\x05\x01\x00\x00\x01\x00\x00\x00hello"]
)
async def test_garbage_breaks_the_channel_and_nothing_else(rig: Rig, garbage: bytes) -> None:
    machine = await rig.machine(answering([]))
    transport = rig.agents[0]._transport
    assert transport is not None
    transport.write(garbage)
    assert "violation" in await asyncio.wait_for(machine.died, 5)
    with pytest.raises(GoneError):
        await machine.call("ping", {})


async def test_a_flood_of_control_frames_is_a_violation(rig: Rig) -> None:
    machine = await rig.machine(answering([]))
    agent = rig.agents[0]
    while not machine.died.done():
        with contextlib.suppress(RuntimeError):
            for number in range(2000):
                agent.mux.send_ping(number.to_bytes(8, "little"))
        agent.flush_soon()
        await asyncio.sleep(0)
    assert "control frames" in machine.died.result()


async def test_an_agent_that_stalls_is_dead_after_the_ping(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hutch.host.machine.PING_AFTER_S", 0.1)
    forever = asyncio.Event()

    async def stall(_stream: Stream) -> None:
        await forever.wait()

    machine = await rig.machine(stall)
    machine.ping_timeout_s = 0.1
    transport = rig.agents[0]._transport
    assert transport is not None
    transport.pause_reading()
    with pytest.raises(GoneError):
        await machine.call("ping", {})
    assert machine.died.result() == "its agent does not answer"
    machine.let_go()


@pytest.mark.parametrize(
    "hello",
    [
        Hello(version=1, role=Role.CONTROL, window=65536, max_streams=1),
        Hello(version=1, role=Role.AGENT, window=65536, max_streams=1, token="guessed"),
        Hello(version=1, role=Role.AGENT, window=65536, max_streams=1, token="é"),
        Hello(version=2, role=Role.AGENT, window=65536, max_streams=1),
        Hello(version=1, role=Role.AGENT, window=1, max_streams=1),
    ],
)
async def test_a_stranger_is_turned_away_and_the_agent_still_comes(rig: Rig, hello: Hello) -> None:
    accepting = asyncio.ensure_future(channel.accept_agent(rig.directory / "channel", "secret", 5))
    stranger = await rig.connect(answering([]), hello)
    await asyncio.wait_for(asyncio.shield(stranger.closed), 5)
    real = await rig.connect(answering([]), Hello(1, Role.AGENT, 65536, 64, token="secret"))
    connection = await accepting
    assert not real.closed.done()
    connection.close("done")


async def test_who_answers_for_an_agent_with_another_token_is_not_it(rig: Rig) -> None:
    tokens = iter(["é", "", "guessed", "secret"])

    def answer() -> Connection:
        hello = Hello(version=1, role=Role.AGENT, window=65536, max_streams=1, token=next(tokens))
        rig.agents.append(Connection(hello, client=False))
        return rig.agents[-1]

    listener = bind_unix(rig.directory / "channel" / channel.MONITOR_SOCKET_NAME)
    server = await asyncio.get_running_loop().create_unix_server(answer, sock=listener)
    connection = await channel.reach_agent(rig.directory / "channel", "secret", 10)
    assert next(tokens, None) is None
    connection.close("done")
    server.close()


async def test_strangers_that_say_nothing_do_not_keep_the_agent_out(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "GREETING_TIMEOUT_S", 0.2)
    accepting = asyncio.ensure_future(channel.accept_agent(rig.directory / "channel", "", 10))
    await asyncio.sleep(0)
    with contextlib.ExitStack() as stack:
        for _ in range(50):
            silent = stack.enter_context(socket.socket(socket.AF_UNIX))
            with address(rig.directory / "channel" / channel.SOCKET_NAME) as short:
                silent.connect(short)
        while not accepting.done():
            agent = await rig.connect(answering([]))
            either: set[asyncio.Future[Any]] = {accepting, agent.closed}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    accepting.result().close("done")


async def test_nothing_listens_once_the_agent_is_there(rig: Rig) -> None:
    machine = await rig.machine(answering([]))
    assert not (rig.directory / "channel" / channel.SOCKET_NAME).exists()
    machine.let_go()


async def test_no_agent_at_all_is_an_error(rig: Rig) -> None:
    with pytest.raises(channel.AgentMissing):
        await channel.accept_agent(rig.directory / "channel", "", 0.05)

"""kill -9 of the host at random moments, again and again, while sandboxes are made, used and stopped.

What was acknowledged must hold after every restart: a session runs on with its commands, or has ended with a reason; a
command's output is whole and its exit code is its own; a session that was stopped stays stopped. At the end nothing is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hutch import ids
from hutch.errors import HutchError
from hutch.host.client import HostClient
from hutch.host.protocol import (
    LIVE,
    CommandGet,
    CommandRecord,
    CommandRef,
    CommandStart,
    SessionRecord,
    SessionRef,
    SessionStatus,
    StopRequest,
)
from hutch.wire.connection import Data, Message
from tests.host.guest import spec
from tests.host.process import HostProcess

pytestmark = [pytest.mark.root, pytest.mark.sandbox, pytest.mark.campaign]

LONGEST_ROUND_S = 1.2
MOST_LIVE = 5


@dataclass(slots=True)
class Tracked:
    """An acknowledged session. `stop_asked`: its end may or may not have begun."""

    session_id: str
    stop_asked: bool = False
    stopped: bool = False
    commands: dict[str, tuple[int, int]] = field(default_factory=dict)
    checked: set[str] = field(default_factory=set)


class Campaign:
    def __init__(self, host: HostProcess, seed: int) -> None:
        self.host = host
        self.random = random.Random(seed)
        self.sessions: dict[str, Tracked] = {}
        self.created = self.commands_checked = self.stopped = 0

    @property
    def client(self) -> HostClient:
        return self.host.client

    def usable(self) -> list[Tracked]:
        return [session for session in self.sessions.values() if not session.stop_asked]

    # -- what goes on while the host is killed -----------------------------------------------------

    async def create(self) -> None:
        wanted = spec()
        record = await self.client.call("session.create", wanted, SessionRecord)
        self.sessions[record.session_id] = Tracked(record.session_id)
        self.created += 1

    async def command(self) -> None:
        if not self.usable():
            return
        session = self.random.choice(self.usable())
        lines, code = self.random.randint(1, 300), self.random.randint(0, 100)
        script = (
            f"n=1; while [ $n -le {lines} ]; do echo line $n; n=$((n+1)); [ $((n % 50)) = 0 ] && sleep 0.1; done; exit {code}"
        )
        start = CommandStart(session_id=session.session_id, command_id=ids.command_id(), argv=[b"sh", b"-c", script.encode()])
        record = await self.client.call("command.start", start, CommandRecord)
        session.commands[record.command_id] = (lines, code)

    async def stop(self) -> None:
        if len(self.usable()) < 2:
            return
        session = self.random.choice(self.usable())
        session.stop_asked = True
        record = await self.client.call("session.stop", StopRequest(session.session_id), SessionRecord)
        assert record.status is SessionStatus.STOPPED
        session.stopped = True
        self.stopped += 1

    async def activity(self) -> None:
        while True:
            actions = [self.command] * 5 + ([self.create] * 2 if len(self.usable()) < MOST_LIVE else [self.stop] * 2)
            await self.random.choice(actions)()

    async def round(self) -> None:
        """Activity until the host is killed at a random moment."""

        async def until_killed() -> None:
            # Everything fails once the host is dead; what was acknowledged before that is on record.
            with contextlib.suppress(HutchError):
                await self.activity()

        active = [asyncio.ensure_future(until_killed()) for _ in range(3)]
        await asyncio.sleep(self.random.uniform(0.0, LONGEST_ROUND_S))
        await self.host.kill()
        done, late = await asyncio.wait(active, timeout=10)
        assert not late
        for task in done:
            task.result()

    # -- what must hold afterwards -----------------------------------------------------------------

    async def check(self, *, everything: bool) -> None:
        records = {record.session_id: record for record in await self.client.collect("session.list", {}, SessionRecord)}
        for session in list(self.sessions.values()):
            record = records[session.session_id]
            if session.stopped:
                assert record.status is SessionStatus.STOPPED
            elif record.status is not SessionStatus.RUNNING:
                assert session.stop_asked, record
                assert record.stop_reason, record
                session.stopped = True
            else:
                session.stop_asked = False
            if session.stopped:
                del self.sessions[session.session_id]
        for record in records.values():
            if record.status in LIVE and record.session_id not in self.sessions:
                # Made, but the answer was lost: the control plane would ask and stop it.
                await self.client.call("session.stop", StopRequest(record.session_id, "abandoned"), SessionRecord)
        for session in self.sessions.values():
            due = [name for name in session.commands if name not in session.checked]
            for command_id in due if everything else due[:2]:
                await self.check_command(session, command_id)

    async def check_command(self, session: Tracked, command_id: str) -> None:
        lines, code = session.commands[command_id]
        stream = await self.client.open("command.get", CommandGet(session.session_id, command_id, wait=True))
        record = await stream.reply(CommandRecord)
        async for item in stream:
            assert isinstance(item, Message)
            record = item.decode(CommandRecord)
        stream.cancel()
        assert record.exit_code == code, record
        logs = await self.client.open("command.logs", CommandRef(session.session_id, command_id))
        logs.send_end()
        await logs.reply()
        text = b"".join([item.data async for item in logs if isinstance(item, Data)])
        logs.cancel()
        assert text == b"".join(b"line %d\n" % number for number in range(1, lines + 1))
        session.checked.add(command_id)
        self.commands_checked += 1


@pytest.mark.timeout(3600)
async def test_nothing_acknowledged_is_lost(no_leaks: Path, full_campaign: bool, capsys: pytest.CaptureFixture[str]) -> None:
    no_leaks.mkdir()
    host = HostProcess(no_leaks, pool__size="1", sandbox__default_vcpus="1")
    rounds, seed = (200, 1) if full_campaign else (10, 20261125)
    campaign = Campaign(host, seed)
    await host.start()
    await campaign.create()
    for _ in range(rounds):
        await campaign.round()
        await host.start()
        await campaign.check(everything=False)
    await campaign.check(everything=True)
    ended = [
        record
        for record in await host.client.collect("session.list", {}, SessionRecord)
        if record.session_id in campaign.sessions
    ]
    assert all(record.status is SessionStatus.RUNNING for record in ended)
    reference = SessionRef(next(iter(campaign.sessions)))
    assert (await host.client.call("session.get", reference, SessionRecord)).status is SessionStatus.RUNNING
    await host.stop()
    with capsys.disabled():
        print(
            f"\n{rounds} kills (seed {seed}): {campaign.created} sessions made, {campaign.stopped} stopped, "
            f"{campaign.commands_checked} commands with whole output and their own exit code"
        )

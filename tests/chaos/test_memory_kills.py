"""kill -9 of the host while it saves the memory of a sandbox: the sandbox goes on, and there is a whole snapshot or none."""

from __future__ import annotations

import asyncio
import contextlib
import random
from pathlib import Path

import pytest

from hutch import ids
from hutch.errors import HutchError
from hutch.host.protocol import (
    CommandRecord,
    CommandStart,
    SessionRecord,
    SessionRef,
    SessionStatus,
    SnapshotRecord,
    SnapshotRef,
    SnapshotRequest,
    SnapshotTaken,
    StopRequest,
)
from hutch.wire.connection import Data
from tests.host.guest import spec
from tests.host.process import HostProcess

pytestmark = [pytest.mark.root, pytest.mark.sandbox, pytest.mark.campaign]

SEED = 5
LONGEST_S = 0.6
COUNTER = "n=0; while true; do n=$((n+1)); echo $n > new; mv new count; echo $n; sleep 0.01; done"


async def create(host: HostProcess, **changes: object) -> SessionRecord:
    return await host.client.call("session.create", spec(**changes), SessionRecord)


async def count(host: HostProcess, session_id: str) -> int:
    script = b"until [ -s count ]; do sleep 0.01; done; cat count"
    start = CommandStart(session_id=session_id, command_id=ids.command_id(), argv=[b"sh", b"-c", script], follow=True)
    stream = await host.client.open("command.start", start)
    stream.send_end()
    await stream.reply(CommandRecord)
    return int(b"".join([item.data async for item in stream if isinstance(item, Data)]))


async def moves(host: HostProcess, session_id: str) -> None:
    """The counter of a session counts."""
    before = await count(host, session_id)
    async with asyncio.timeout(10):
        while await count(host, session_id) <= before:
            await asyncio.sleep(0.02)


async def test_a_host_that_dies_while_it_saves_memory(no_leaks: Path, full_campaign: bool) -> None:
    rounds, dice = 40 if full_campaign else 6, random.Random(SEED)
    host = HostProcess(no_leaks, pool__size="0")
    whole = 0
    await host.start()
    try:
        session_id = (await create(host)).session_id
        start = CommandStart(session_id=session_id, command_id=ids.command_id(), argv=[b"sh", b"-c", COUNTER.encode()])
        counter = await host.client.call("command.start", start, CommandRecord)
        for number in range(rounds):
            request = SnapshotRequest(session_id=session_id, keep_running=True, memory=True)
            saving = asyncio.ensure_future(host.client.call("session.snapshot", request, SnapshotTaken))
            # From before anything was done to after all of it.
            await asyncio.sleep(LONGEST_S * (number + dice.random()) / rounds)
            await host.kill()
            with contextlib.suppress(HutchError):
                await saving
            await host.start()
            record = await host.client.call("session.get", SessionRef(session_id), SessionRecord)
            assert record.status is SessionStatus.RUNNING, record.stop_reason
            await moves(host, session_id)
            snapshots = await host.client.collect("snapshot.list", {}, SnapshotRecord)
            assert sorted(entry.name for entry in (no_leaks / "host" / "memory").iterdir()) == [
                snapshot.snapshot_id for snapshot in snapshots
            ]
            for snapshot in snapshots:
                whole += 1
                child = await create(host, source_snapshot=snapshot.snapshot_id)
                commands = await host.client.collect("command.list", SessionRef(child.session_id), CommandRecord)
                assert [command.command_id for command in commands] == [counter.command_id]
                await moves(host, child.session_id)
                await host.client.call("session.stop", StopRequest(child.session_id), SessionRecord)
                await host.client.call("snapshot.delete", SnapshotRef(snapshot.snapshot_id))
        print(f"{rounds} kills (seed {SEED}): {whole} whole snapshots, {rounds - whole} of which nothing was left")
    finally:
        await host.stop()

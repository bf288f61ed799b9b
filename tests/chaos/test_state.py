"""Files of a persistent sandbox, over many sessions that end in every way there is: docs/testing.md#state.

Random operations are done in the guest and, by the same program with the same seed, in a directory of this machine. After each
end of a session, or death of a process, the two trees must be equal: names, contents, modes, owners, attributes, links and times.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from hutch.client import AsyncClient, Server
from hutch.client.models import Created
from hutch.errors import HutchError
from tests.chaos.test_server_kills import children, gone
from tests.conftest import start_server, stop_server, wait_until

pytestmark = [pytest.mark.root, pytest.mark.sandbox, pytest.mark.campaign]

PROGRAM = Path(__file__).with_name("file_operations.py")
ROOT = "/usr/share/perl5"
"""Of the image, with directories: what is done to files of the image is part of it."""
OPERATIONS = 60
SHORT_MS = 20_000
LONG_MS = 600_000
SETTLE_S = 60.0


class Campaign:
    """One sandbox in its sessions, and a directory that must be as its files are."""

    def __init__(self, client: AsyncClient, server: int, data_dir: Path, model: Path, seed: int) -> None:
        self.client = client
        self.server = server
        self.data_dir = data_dir
        self.model = model
        self.random = random.Random(seed)
        self.seed = seed
        self.done = self.compared = 0
        self.name = self.session = ""
        self.steps: list[str] = []
        self.ends_seen: Counter[str] = Counter()

    @property
    def ends(self) -> tuple[Callable[[], Awaitable[None]], ...]:
        return (self.stop, self.time_out, self.fork, self.fork_memory, self.kill_sandbox, self.kill_host, self.kill_both)

    async def begin(self) -> None:
        self._now(await self.client.sandboxes.create(persistent=True, timeout=LONG_MS))
        [image] = (self.data_dir / "host" / "images").glob(f"*/{ROOT.lstrip('/')}")
        subprocess.run(["cp", "-a", str(image), str(self.model)], check=True)

    def _now(self, found: Created) -> None:
        self.name, self.session = found.sandbox.name, found.session.id

    async def cycle(self, end: Callable[[], Awaitable[None]]) -> None:
        await self.change()
        self.steps.append(end.__name__)
        self.ends_seen[end.__name__] += 1
        await end()

    async def change(self) -> None:
        """The same operations on both sides."""
        seed = str(self.random.getrandbits(32))
        self.steps.append(f"apply {seed}")
        there = await self._in_guest("apply", ROOT, seed, str(OPERATIONS))
        here = _here("apply", str(self.model), seed, str(OPERATIONS))
        assert there == here, self._what_happened()
        self.done += OPERATIONS

    async def check(self, *, is_new: bool) -> None:
        """Both trees are equal. A session that ran on (not `is_new`) may show a count of links that is too high: gVisor keeps it,
        and forgets to lower it when another file is renamed over a link."""
        there: dict[str, Any] = json.loads(await self._in_guest("list", ROOT))
        here: dict[str, Any] = json.loads(_here("list", str(self.model)))
        if not is_new:
            for entry in (*there.values(), *here.values()):
                entry.pop("links", None)
        different = {
            name: (there.get(name), here.get(name)) for name in there.keys() | here.keys() if there.get(name) != here.get(name)
        }
        assert not different, f"{self._what_happened()}\nin the guest, and as it should be: {dict(sorted(different.items())[:5])}"
        self.compared += len(there)

    def _what_happened(self) -> str:
        return f"campaign {self.seed}: {', '.join(self.steps)}"

    async def _in_guest(self, *arguments: str) -> str:
        code, output, problems = await self.client.commands.run(
            self.session, ["python3", "-c", PROGRAM.read_text(), *arguments], sudo=True
        )
        assert code == 0, f"{self._what_happened()}\n{problems}"
        return output

    # -- ends --------------------------------------------------------------------------------------

    async def stop(self) -> None:
        await self.client.sandboxes.stop(self.session)
        await self._resume()

    async def time_out(self) -> None:
        path = f"/v2/sandboxes/{self.name}"
        await self.client.http.call("PATCH", path, dict[str, Any], body={"timeout": SHORT_MS})
        await self.stop()
        await self.change()
        await self.client.http.call("PATCH", path, dict[str, Any], body={"timeout": LONG_MS})
        assert await self._ended() == ("stopped", "timeout")
        await self._resume()

    async def fork(self) -> None:
        """A snapshot of the session as it runs, which then is as before. What is made of it is the same, and goes on instead."""
        await self.client.snapshots.take(self.session, keep_running=True)
        await self.check(is_new=False)
        parent = self.name
        path = f"/v2/sandboxes/{parent}/fork"
        self._now(await self.client.http.call("POST", path, Created, body={}, timeout_s=120.0))
        await self.client.sandboxes.delete(parent)
        await self.check(is_new=True)

    async def fork_memory(self) -> None:
        """A fork that goes on with the session's memory, and so with what its kernel knows of files."""
        parent = self.name
        [made] = await self.client.sandboxes.fork(parent, memory=True)
        await self.check(is_new=False)
        self._now(made)
        await self.client.sandboxes.delete(parent)
        await self.check(is_new=False)

    async def kill_sandbox(self) -> None:
        await self._kill_guest()
        assert (await self._ended())[0] == "failed"
        await self._resume()

    async def kill_host(self) -> None:
        self._kill_host()
        await self._host_answers()
        await self.check(is_new=False)

    async def kill_both(self) -> None:
        found = await self._sandbox_processes()
        self._kill_host()
        _kill(found)
        await self._host_answers(alive=False)
        assert (await self._ended())[0] == "failed"
        await self._resume()

    async def _resume(self) -> None:
        before = self.session
        self._now(await self.client.sandboxes.resume(self.name))
        assert self.session != before
        await self.check(is_new=True)

    async def _ended(self) -> tuple[str, str | None]:
        """Status and reason of the session, once it ended."""
        async with asyncio.timeout(SETTLE_S):
            while True:
                session = await self.client.sandboxes.session(self.session)
                if session.status in ("stopped", "failed", "aborted"):
                    return session.status, session.stop_reason
                await asyncio.sleep(0.05)

    def _kill_host(self) -> None:
        [host] = [pid for pid in children(self.server) if b"\0host\0" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        _kill([host])

    async def _host_answers(self, *, alive: bool = True) -> None:
        async with asyncio.timeout(SETTLE_S):
            while True:
                with contextlib.suppress(HutchError):
                    await self.client.commands.run(self.session, ["true"])
                    return
                if not alive and (await self.client.sandboxes.session(self.session)).status == "failed":
                    return
                await asyncio.sleep(0.05)

    async def _sandbox_processes(self) -> list[int]:
        found = await self.client.http.call("GET", f"/v2/sandboxes/{self.name}", dict[str, Any])
        cgroup = found["sandbox"]["cgroup"]
        processes = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdecimal() and cgroup in (entry / "cgroup").read_text():
                    processes.append(int(entry.name))
        assert processes
        return processes

    async def _kill_guest(self) -> None:
        _kill(await self._sandbox_processes())


def _kill(processes: list[int]) -> None:
    for pid in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: all(gone(pid) for pid in processes), 10, "what was killed to be gone")


def _here(*arguments: str) -> str:
    done = subprocess.run([sys.executable, str(PROGRAM), *arguments], capture_output=True, check=True)
    return done.stdout.decode("utf-8", "replace")


@pytest.mark.timeout(3600)
async def test_files_are_what_they_would_be_without_any_end(
    no_leaks: Path, full_campaign: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    no_leaks.mkdir()
    log, model = no_leaks.parent / "serve.log", no_leaks.parent / "model"
    cycles, seed = (50, 1) if full_campaign else (7, 20261126)
    process, where = start_server(no_leaks, log)
    try:
        campaign = await _campaign(where, process.pid, no_leaks, model, seed, cycles)
    finally:
        stop_server(process, log)
    with capsys.disabled():
        print(
            f"\n{cycles} cycles (seed {seed}): {campaign.done} operations, {campaign.compared} entries compared and equal after "
            + ", ".join(f"{count} {name}" for name, count in sorted(campaign.ends_seen.items()))
        )


async def _campaign(where: Server, server: int, data_dir: Path, model: Path, seed: int, cycles: int) -> Campaign:
    async with AsyncClient(where) as client:
        campaign = Campaign(client, server, data_dir, model, seed)
        await campaign.begin()
        await campaign.check(is_new=True)
        ends = [campaign.ends[number % len(campaign.ends)] for number in range(cycles)]
        campaign.random.shuffle(ends)
        for end in ends:
            await campaign.cycle(end)
        await campaign.client.sandboxes.delete(campaign.name)
        return campaign

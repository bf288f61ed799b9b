"""The real agent and a host for it, made of `hutch.wire`: what the interoperability tests drive.

As an ordinary process the agent leaves hostname, clock and `/etc/hosts` alone. `as_init` makes it process 1 of namespaces
of its own, with a hosts file of its own and without the right to set the clock, which no namespace has for itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hutch.wire import Connection, Hello, Role, Stream
from hutch.wire.connection import Data, Message

UID = 61_235
"""The user of the claim; it has no entry in any password file."""
ROOT = Path(__file__).parents[2]
PATIENCE_S = 20.0


def agent_binary() -> Path:
    """`.hutch/bin/hutch-agent`, which `make setup` keeps up to date, or one that is built now."""
    linked = ROOT / ".hutch/bin/hutch-agent"
    if linked.exists():
        return linked
    cargo = shutil.which("cargo")
    assert cargo, "neither .hutch/bin/hutch-agent nor cargo to build it: run `make setup`"
    cache = Path(os.environ.get("HUTCH_CACHE_DIR", Path.home() / ".cache/hutch"))
    target = cache / "target"
    subprocess.run(
        [cargo, "build", "--release", "--quiet", "-p", "hutch-agent"],
        cwd=ROOT,
        env={**os.environ, "CARGO_TARGET_DIR": str(target)},
        check=True,
    )
    return target / "release/hutch-agent"


@dataclass
class Finished:
    """What a command said."""

    stdout: bytes = b""
    stderr: bytes = b""
    exit_code: int | None = None
    skipped: int = 0


@dataclass
class Guest:
    """A running agent and its latest connection."""

    process: asyncio.subprocess.Process
    home: Path
    accepted: asyncio.Queue[Connection]
    connection: Connection
    started: int = 0
    streams: list[Stream] = field(default_factory=list)

    async def reconnected(self) -> Connection:
        """Break the channel and take the agent's next connection."""
        self.connection.close("broken on purpose")
        return await self.next_connection()

    async def next_connection(self) -> Connection:
        """The next connection that the agent makes."""
        async with asyncio.timeout(PATIENCE_S):
            self.connection = await self.accepted.get()
            await self.connection.greeted()
        return self.connection

    async def claim(self, **changed: Any) -> dict[str, Any]:
        """Claim the guest for `UID`."""
        user = {"name": "tester", "uid": UID, "gid": UID, "groups": [UID, 27], "home": str(self.home)}
        claim = {
            "hostname": "sandbox",
            "env": {"PATH": "/usr/local/bin:/usr/bin:/bin", "CLAIMED": "yes"},
            "user": user,
            "cwd": bytes(self.home),
            "token": "token-1",
            "entropy": os.urandom(64),
            "time_ns": 0,
        }
        return await self.connection.call("claim", claim | changed)

    def start(self, *argv: str, **changed: Any) -> Stream:
        """Start a command; its stream."""
        self.started += 1
        params: dict[str, Any] = {
            "id": f"cmd_{self.started}",
            "argv": [argument.encode() for argument in argv],
            "env": {},
            "user": "default",
            "stdin": False,
        }
        return self.connection.open("command.start", params | changed)

    async def run(self, *argv: str, **changed: Any) -> Finished:
        """Run a command to its end."""
        stream = self.start(*argv, **changed)
        await stream.reply()
        return await finish(stream)

    async def shell(self, script: str, **changed: Any) -> Finished:
        """Run a shell script to its end."""
        return await self.run("sh", "-c", script, **changed)


async def finish(stream: Stream) -> Finished:
    """Take a command's stream until its end, then end it from here."""
    finished = Finished()
    async with asyncio.timeout(PATIENCE_S):
        async for item in stream:
            match item:
                case Data(1, data):
                    finished.stdout += data
                case Data(_, data):
                    finished.stderr += data
                case Message():
                    event = item.decode(dict[str, Any])
                    finished.skipped += event.get("skipped", 0)
                    if "exit" in event:
                        finished.exit_code = event["exit"]["exit_code"]
    stream.send_end()
    return finished


async def expect(stream: Stream, text: bytes) -> bytes:
    """Take output until it contains `text`."""
    seen = b""
    async with asyncio.timeout(PATIENCE_S):
        while text not in seen:
            item = await stream.next()
            assert isinstance(item, Data), f"{item} before {text!r}, after {seen!r}"
            seen += item.data
    return seen


@contextlib.asynccontextmanager
async def guest(directory: Path, *, as_init: bool = False) -> AsyncIterator[Guest]:
    """An agent that is connected and not claimed; it and all that it started are gone afterwards."""
    home, socket = directory / "home", directory / "h.sock"
    home.mkdir()
    os.chown(home, UID, UID)
    accepted: asyncio.Queue[Connection] = asyncio.Queue()
    connections: list[Connection] = []

    def accept() -> Connection:
        hello = Hello(version=1, role=Role.HOST, window=256 * 1024, max_streams=1024)
        connections.append(Connection(hello, client=True, limit_control=True))
        accepted.put_nowait(connections[-1])
        return connections[-1]

    server = await asyncio.get_running_loop().create_unix_server(accept, socket)
    command = [str(agent_binary()), "--connect", str(socket)]
    if as_init:
        hosts = directory / "hosts"
        hosts.write_text("")
        script = f"mount --bind {hosts} /etc/hosts && exec setpriv --bounding-set -sys_time {' '.join(command)}"
        command = ["unshare", "--pid", "--fork", "--uts", "--mount", "--mount-proc", "--kill-child", "sh", "-c", script]
    process = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.DEVNULL)
    try:
        async with asyncio.timeout(PATIENCE_S):
            connection = await accepted.get()
            await connection.greeted()
        running = Guest(process, home, accepted, connection)
        yield running
        if not as_init:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(5):
                    await running.connection.call("shutdown", {"grace_ms": 0})
    finally:
        process.kill()
        await process.wait()
        for connection in connections:
            connection.close("the test is over")
        server.close()

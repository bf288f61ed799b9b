"""The vendor's JavaScript SDK itself, from npm, in a Node process of its own."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from hutch.cli.env import variables
from hutch.client import Server

CHECKOUT = Path(__file__).resolve().parents[1]
PACKAGES = CHECKOUT / "examples" / "demo"
"""Its lock file pins the SDK; the demo uses the same installation."""
PATH = os.pathsep.join([str(CHECKOUT / ".hutch" / "node" / "bin"), os.environ["PATH"]])


@dataclass(frozen=True, slots=True)
class Answered:
    """From before the create until the command had answered; None if anything failed."""

    ms: float | None
    stdout: str


class JavaScript:
    """One Node process; a sandbox at a time."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def first_command(self, argv: Sequence[str]) -> Answered:
        """Create a sandbox, have a command answer, delete the sandbox."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"argv": list(argv)}).encode() + b"\n")
        line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the Node process ended with {await self._process.wait()}")
        answer = json.loads(line)
        return Answered(answer.get("ms"), answer.get("stdout", answer.get("error", "")))


@asynccontextmanager
async def javascript(server: Server) -> AsyncIterator[JavaScript]:
    """A process that uses `server` as `hutch env` has it."""
    _install()
    environment = {**os.environ, "PATH": PATH, "NODE_DISABLE_COMPILE_CACHE": "1", **variables(server, os.environ)}
    # Below the packages, where Node looks for what the program imports; the program itself is read from here.
    program = (CHECKOUT / "bench" / "sdk.mjs").read_text()
    process = await asyncio.create_subprocess_exec(
        "node",
        "--input-type=module",
        "--eval",
        program,
        cwd=PACKAGES,
        env=environment,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield JavaScript(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()


def _install() -> None:
    """What `examples/demo/run` does, with its stamp."""
    lock = PACKAGES / "package-lock.json"
    wanted = f"{hashlib.sha256(lock.read_bytes()).hexdigest()}  {lock}\n"
    stamp = PACKAGES / "node_modules" / ".hutch-lock"
    if not stamp.exists() or stamp.read_text() != wanted:
        command = ["npm", "ci", "--no-audit", "--no-fund", "--loglevel=error"]
        subprocess.run(command, cwd=PACKAGES, env={**os.environ, "PATH": PATH}, check=True)
        stamp.write_text(wanted)

"""The vendor's command line, `sandbox` 4.5.0 of npm, as a process of its own with the environment that `hutch env` makes."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest

from hutch.client import AsyncClient, Server
from tests.clients.cli.terminal import Terminal
from tests.clients.conftest import installed_from_npm, node_tool, tool_path
from tests.conftest import RunningServer

TIMEOUT_S = 60
PACKAGE = Path(__file__).parent


Variables = Mapping[str, str | None]


@dataclass(frozen=True, slots=True)
class Ran:
    code: int
    out: str
    err: str


@dataclass(frozen=True, slots=True)
class CommandLine:
    """Runs `sandbox …`. `home` is its home and working directory, without a login, a linked project or `.env` files."""

    program: Path
    environment: dict[str, str]
    home: Path
    server: Server

    def _started_with(self, environment: Variables | None) -> dict[str, str]:
        merged: dict[str, str | None] = {**self.environment, **(environment or {})}
        return {name: value for name, value in merged.items() if value is not None}

    def __call__(self, *arguments: str, stdin: bytes = b"", environment: Variables | None = None) -> Ran:
        """Run it to its end without a terminal; a variable that is None is taken away."""
        done = subprocess.run(
            [node_tool("node"), self.program, *arguments],
            cwd=self.home,
            env=self._started_with(environment),
            input=stdin,
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        return Ran(done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace"))

    def good(self, *arguments: str, stdin: bytes = b"") -> str:
        """Run it, expect exit code 0, give its output."""
        done = self(*arguments, stdin=stdin)
        assert done.code == 0, f"sandbox {' '.join(arguments)}: {done.code}\n{done.out}\n{done.err}"
        return done.out

    def terminal(
        self, *arguments: str, rows: int = 30, cols: int = 100, environment: Variables | None = None
    ) -> AbstractContextManager[Terminal]:
        """Start it on a terminal of that size."""
        command = [node_tool("node"), str(self.program), *arguments]
        return Terminal.start(command, self.home, self._started_with(environment), rows=rows, cols=cols)


@pytest.fixture(scope="session")
def command_line(
    client_environment: dict[str, str], server: RunningServer, tmp_path_factory: pytest.TempPathFactory
) -> CommandLine:
    installed_from_npm(PACKAGE)
    home = tmp_path_factory.mktemp("home")
    own = client_environment | {"PATH": tool_path(), "HOME": str(home), "TMPDIR": str(home), "NO_COLOR": "1"}
    return CommandLine(PACKAGE / "node_modules" / "sandbox" / "bin" / "sandbox.mjs", own, home, server.where)


async def _emptied(server: Server) -> None:
    async with AsyncClient(server) as client:
        async for sandbox in client.sandboxes.all():
            await client.sandboxes.delete(sandbox.name)
        async for drive in client.drives.all():
            await client.drives.delete(drive.name)


@pytest.fixture
def cli(command_line: CommandLine, leak_check: None) -> Iterator[CommandLine]:
    """The command line; whatever sandboxes and drives the test leaves are removed."""
    yield command_line
    asyncio.run(_emptied(command_line.server))


@pytest.fixture
def box(cli: CommandLine) -> str:
    """The name of a running sandbox that keeps nothing."""
    cli.good("create", "--silent", "--non-persistent", "--name", "box")
    return "box"

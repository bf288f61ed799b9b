"""The command line as a user starts it: a process of its own."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest

from tests.api.conftest import Api, api, environment, host, installed
from tests.conftest import CHECKOUT, RunningServer

__all__ = ["api", "environment", "host", "installed"]
TIMEOUT_S = 60


@dataclass(frozen=True, slots=True)
class Ran:
    code: int
    out: str
    err: str


Hutch = Callable[..., Ran]
AsyncHutch = Callable[..., Awaitable[Ran]]


def run_hutch(*arguments: str, environment: dict[str, str], stdin: bytes = b"") -> Ran:
    done = subprocess.run(
        [sys.executable, "-m", "hutch", *arguments],
        cwd=CHECKOUT,
        env=environment,
        input=stdin,
        capture_output=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    return Ran(done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace"))


@pytest.fixture
def hutch(server: RunningServer, leak_check: None) -> Hutch:
    """Runs `hutch …` against the real server."""

    def run(*arguments: str, stdin: bytes = b"") -> Ran:
        return run_hutch(*arguments, environment=server.environment, stdin=stdin)

    return run


@pytest.fixture
def ask(api: Api) -> AsyncHutch:
    """Runs `hutch …` against the real API over a fake host."""
    own = {"PATH": os.environ["PATH"], "HUTCH_URL": api.url, "HUTCH_TOKEN": api.own.token}

    async def run(*arguments: str, stdin: bytes = b"") -> Ran:
        return await asyncio.to_thread(run_hutch, *arguments, environment=own, stdin=stdin)

    return run

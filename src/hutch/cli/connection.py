"""The client and the event loop behind a command.

A signal that asks us to leave cancels the command's coroutine, so that its clean-up runs; the exit code is then 128 plus the
signal's number, as a shell would say.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from hutch.cli import errors
from hutch.client import AsyncClient, find_server
from hutch.errors import HutchError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Work = Callable[[AsyncClient], Awaitable[int | None]]


def with_client(work: Work, *, data_dir: Path | None, as_json: bool, runs_program: bool = False) -> int:
    """Run `work` with a client of the server that is meant; the exit code. Errors are reported here."""
    try:
        server = find_server(data_dir)
        return asyncio.run(_interruptible(lambda: _connected(work, AsyncClient(server))))
    except HutchError as error:
        errors.report(error, as_json=as_json)
        return errors.exit_code(error, runs_program=runs_program)
    except BrokenPipeError:
        # Whoever read our output has left, as `head` does.
        return 128 + signal.SIGPIPE


def interruptible(work: Callable[[], Awaitable[int]], *, as_json: bool) -> int:
    """Run what needs no client; the exit code. Errors are reported here."""
    try:
        return asyncio.run(_interruptible(work))
    except HutchError as error:
        errors.report(error, as_json=as_json)
        return errors.exit_code(error, runs_program=False)
    except BrokenPipeError:
        return 128 + signal.SIGPIPE


async def _connected(work: Work, client: AsyncClient) -> int:
    async with client:
        return await work(client) or 0


async def _interruptible(work: Callable[[], Awaitable[int]]) -> int:
    loop = asyncio.get_running_loop()
    task: asyncio.Future[Any] = asyncio.ensure_future(work())
    received: list[int] = []

    def leave(number: int) -> None:
        # Only the first one: clean-up that a second Ctrl-C broke would leave a sandbox behind.
        if not received:
            received.append(number)
            task.cancel()

    for number in SIGNALS:
        loop.add_signal_handler(number, leave, number)
    try:
        return int(await task)
    except asyncio.CancelledError:
        if received:
            return 128 + received[0]
        raise

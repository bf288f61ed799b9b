"""This terminal, joined to a program's terminal in a sandbox."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator, Sequence

from hutch.cli import stdio
from hutch.client import AsyncClient, AsyncInteractiveSession
from hutch.errors import HutchError

READ_BYTES = 64 * 1024
EXTEND_MS = 300_000
EXTEND_BEFORE_S = 60.0


async def run_in_terminal(
    client: AsyncClient, session_id: str, argv: Sequence[str], cwd: str | None, env: dict[str, str], sudo: bool
) -> int:
    """Run `argv` with a terminal of this one's size until it ends; its exit code.

    The session is extended for as long as somebody sits there.
    """
    columns, rows = _size()
    variables = {"TERM": os.environ.get("TERM", "xterm-256color"), **env}
    running = await client.get_session(session_id)
    async with running.open_interactive(argv[0], argv[1:], cwd=cwd, env=variables, sudo=sudo, cols=columns, rows=rows) as session:
        with _raw(sys.stdin.fileno()):
            loop = asyncio.get_running_loop()
            resized = asyncio.Event()
            loop.add_signal_handler(signal.SIGWINCH, resized.set)
            try:
                async with asyncio.TaskGroup() as tasks:
                    jobs = (_type(session), _follow_size(session, resized), _keep_alive(client, session_id))
                    helpers = [tasks.create_task(job) for job in jobs]
                    async for chunk in session.output():
                        await stdio.write_all(sys.stdout.fileno(), chunk)
                    for helper in helpers:
                        helper.cancel()
            except* HutchError as group:
                raise group.exceptions[0] from None
            finally:
                loop.remove_signal_handler(signal.SIGWINCH)
    return session.returncode or 0


def _size() -> tuple[int, int]:
    # Not `shutil`'s: it believes COLUMNS and LINES, which stay as they are when the window changes.
    with contextlib.suppress(OSError):
        columns, rows = os.get_terminal_size(sys.stdout.fileno())
        if columns and rows:
            return columns, rows
    return 80, 24


@contextlib.contextmanager
def _raw(descriptor: int) -> Iterator[None]:
    """Every key goes to the program, Ctrl-C included; afterwards the terminal is as it was."""
    before = termios.tcgetattr(descriptor)
    # Draining, not flushing: what was typed ahead belongs to the program.
    tty.setraw(descriptor, termios.TCSADRAIN)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


async def _type(session: AsyncInteractiveSession) -> None:
    async for typed in stdio.chunks(sys.stdin.fileno(), READ_BYTES):
        await session.send(typed)


async def _follow_size(session: AsyncInteractiveSession, resized: asyncio.Event) -> None:
    while True:
        await resized.wait()
        resized.clear()
        await session.resize(*_size())


async def _keep_alive(client: AsyncClient, session_id: str) -> None:
    """Extend the session before it ends, up to what the server allows."""
    while True:
        session = await client.sandboxes.session(session_id)
        ends_s = ((session.started_at or session.requested_at) + session.timeout) / 1000
        await asyncio.sleep(max(1.0, ends_s - time.time() - EXTEND_BEFORE_S))
        try:
            await client.sandboxes.extend(session_id, EXTEND_MS)
        except HutchError:
            return

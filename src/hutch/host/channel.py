"""The byte channel to one guest's agent: a Unix socket in a directory of its own, of which the guest sees only that.

Which listener accepted tells which machine speaks; nothing that the peer says does. The first connection that greets as an
agent and knows the machine's token wins. It is made before any user code runs, and afterwards nothing listens any more,
so a guest's own processes find a closed door. After a restart of the host the agent finds a new listener and
proves itself with the token of the last claim.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
from pathlib import Path

from hutch.wire import Connection, Hello, Role
from hutch.wire.connection import ConnectionClosed
from hutch.wire.sockets import bind_unix

HELLO = Hello(version=1, role=Role.HOST, window=1024 * 1024, max_streams=1)
SOCKET_NAME = "host.sock"
GREETING_TIMEOUT_S = 5.0
MAX_STRANGERS = 8


class AgentMissing(OSError):
    """No agent connected in time."""


async def accept_agent(
    directory: Path, token: str, timeout_s: float, greeting_timeout_s: float = GREETING_TIMEOUT_S, mode: int = 0o600
) -> Connection:
    """Listen in `directory` until the machine's agent has connected. Raises `AgentMissing`.

    `token` is what the agent got at its last claim, empty for a machine that was never claimed.
    `greeting_timeout_s` is how long a connection may say nothing: a virtual machine's is there before its kernel starts.
    `mode` is the socket's: where the machine's monitor connects by itself, as a user of its own, it has to be able to.
    """
    loop = asyncio.get_running_loop()
    found: asyncio.Future[Connection] = loop.create_future()
    greetings: set[asyncio.Task[None]] = set()
    strangers: list[Connection] = []

    def accepted() -> Connection:
        connection = Connection(HELLO, client=True, limit_control=True)
        strangers.append(connection)
        if len(greetings) >= MAX_STRANGERS or found.done():
            loop.call_soon(connection.close, "too many connections")
            return connection
        task = loop.create_task(greet(connection))
        greetings.add(task)
        task.add_done_callback(greetings.discard)
        return connection

    async def greet(connection: Connection) -> None:
        with contextlib.suppress(TimeoutError, ConnectionClosed):
            async with asyncio.timeout(greeting_timeout_s):
                hello = await connection.greeted()
            if hello.role is Role.AGENT and hmac.compare_digest(hello.token, token) and not found.done():
                found.set_result(connection)
                return
        connection.close("not the machine's agent")

    server = await loop.create_unix_server(accepted, sock=bind_unix(directory / SOCKET_NAME, mode))
    try:
        async with asyncio.timeout(timeout_s):
            return await found
    except TimeoutError as error:
        raise AgentMissing(f"No agent connected within {timeout_s:.0f} s.") from error
    finally:
        server.close()
        for task in list(greetings):
            task.cancel()
        for connection in strangers:
            if not (found.done() and not found.cancelled() and found.result() is connection):
                connection.close("another connection is the agent's")
        with contextlib.suppress(FileNotFoundError):
            (directory / SOCKET_NAME).unlink()

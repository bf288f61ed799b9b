"""The byte channel to one guest's agent: a Unix socket in a directory of its own, of which the guest sees only that.

Which listener accepted tells which machine speaks; nothing that the peer says does. The first connection that greets as an
agent and knows the machine's token wins. It is made before any user code runs, and afterwards nothing listens any more,
so a guest's own processes find a closed door. After a restart of the host the agent finds a new listener and
proves itself with the token of the last claim.

A virtual machine's agent speaks to a port, at whose other end the machine's monitor listens (`reach_agent`): it takes one
connection at a time, and the guest is told when that begins and ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import socket
from pathlib import Path

from hutch.wire import Connection, Hello, Role
from hutch.wire.connection import ConnectionClosed
from hutch.wire.sockets import address, bind_unix

HELLO = Hello(version=1, role=Role.HOST, window=1024 * 1024, max_streams=1)
SOCKET_NAME = "host.sock"
GREETING_TIMEOUT_S = 5.0
MAX_STRANGERS = 8
MONITOR_SOCKET_NAME = "agent.sock"
SILENCE_S, AGAIN_S, LISTENS_S = 4.0, 0.3, 0.02
"""How long an agent that had another host may say nothing, then how long it gets to notice that this connection ended too: its
guest is told of both ends at once where the second comes at once. And how often to look whether anybody listens."""


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
            if _is_agent(hello, token) and not found.done():
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


async def reach_agent(directory: Path, token: str, timeout_s: float, silence_s: float | None = None) -> Connection:
    """Connect to the machine's agent by way of whoever listens for us in `directory`. Raises `AgentMissing`.

    `silence_s` is how long a connection may say nothing before another one is tried; None: all of `timeout_s`, for a machine that
    boots meanwhile.
    """
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                connection = await _connected(directory / MONITOR_SOCKET_NAME)
                try:
                    async with asyncio.timeout(silence_s):
                        hello = await connection.greeted()
                except (TimeoutError, ConnectionClosed):
                    connection.close("it is not the agent, or does not know that we are new")
                except BaseException:
                    connection.close("nobody waits for the agent any more")
                    raise
                else:
                    if _is_agent(hello, token):
                        return connection
                    connection.close("not the machine's agent")
                await asyncio.sleep(AGAIN_S)
    except TimeoutError as error:
        raise AgentMissing(f"No agent answered within {timeout_s:.0f} s.") from error


def _is_agent(hello: Hello, token: str) -> bool:
    # As bytes: of other text than ASCII there is no comparison, but an error, and a guest says what it likes.
    return hello.role is Role.AGENT and hmac.compare_digest(hello.token.encode(), token.encode())


async def _connected(path: Path) -> Connection:
    while True:
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            with address(path) as short:
                # Done or refused at once.
                channel.connect(short)
        except (FileNotFoundError, ConnectionRefusedError, BlockingIOError):
            channel.close()
            await asyncio.sleep(LISTENS_S)
        except BaseException:
            channel.close()
            raise
        else:
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_unix_connection(
                lambda: Connection(HELLO, client=True, limit_control=True), sock=channel
            )
            return connection

"""A terminal in a sandbox, over a WebSocket: text frames are control, binary frames what is typed and shown."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from hutch.client.models import Terminal
from hutch.errors import InternalError, UnavailableError

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

MAX_FRAME_BYTES = 1024 * 1024


class AsyncInteractiveSession:
    """One program with a terminal. Read `output` to its end, then look at `returncode`."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self.returncode: int | None = None

    async def send(self, data: bytes) -> None:
        """What is typed."""
        await self._send(data)

    async def resize(self, cols: int, rows: int) -> None:
        """Another size, in characters."""
        await self._send(json.dumps({"type": "resize", "cols": cols, "rows": rows}))

    async def wait(self) -> int:
        """Read to the end of the program without looking; its exit code."""
        if self.returncode is None:
            async for _ in self.output():
                pass
        return self.returncode or 0

    async def _send(self, frame: bytes | str) -> None:
        from websockets.exceptions import ConnectionClosed

        try:
            await self._socket.send(frame)
        except ConnectionClosed:
            # The reader finds out why it is closed; what was typed after the end has nowhere to go.
            pass

    async def output(self) -> AsyncGenerator[bytes, None]:
        """What the program shows, until it ends. Raises `InternalError` when the connection breaks before that."""
        from websockets.exceptions import ConnectionClosed

        try:
            async for frame in self._socket:
                if isinstance(frame, bytes):
                    yield frame
                    continue
                message = _control(frame)
                if message is None:
                    yield frame.encode()
                elif message.get("type") == "exit":
                    code = message.get("code", 0)
                    self.returncode = code if isinstance(code, int) else 0
                    return
        except ConnectionClosed as error:
            raise InternalError("terminal_closed", f"The terminal's connection broke: {error}.") from error
        raise InternalError("terminal_closed", "The server closed the terminal before its program ended.")


@asynccontextmanager
async def open_terminal(
    where: Terminal,
    argv: Sequence[str],
    *,
    cols: int,
    rows: int,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
) -> AsyncIterator[AsyncInteractiveSession]:
    """Start `argv` with a terminal of that size. Raises `UnavailableError` when the server does not take the connection."""
    start: dict[str, Any] = {
        "type": "start",
        "command": argv[0],
        "args": list(argv[1:]),
        "env": [f"{key}={value}" for key, value in (env or {}).items()],
        "cols": cols,
        "rows": rows,
    }
    if cwd is not None:
        start["cwd"] = cwd
    # Most programs open no terminal, and this takes a while to import.
    from websockets.asyncio.client import connect
    from websockets.exceptions import WebSocketException

    try:
        socket = await connect(
            f"{where.url}?token={quote(where.token, safe='')}", max_size=MAX_FRAME_BYTES, proxy=None, compression=None
        )
    except (OSError, WebSocketException, TimeoutError) as error:
        raise UnavailableError("terminal_unreachable", f"The terminal at {where.url} can't be reached: {error}.") from error
    async with socket:
        session = AsyncInteractiveSession(socket)
        await session._send(json.dumps(start))
        yield session


def _control(frame: str) -> dict[str, Any] | None:
    try:
        message = json.loads(frame)
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) else None

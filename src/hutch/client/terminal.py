"""A terminal in a sandbox, over a WebSocket: text frames are control, binary frames what is typed and shown."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, WebSocketException

from hutch.client.models import Terminal
from hutch.errors import InternalError, UnavailableError

MAX_FRAME_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Size:
    cols: int
    rows: int


class TerminalSession:
    """One program with a terminal. Iterate `output`, then look at `exit_code`."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self.exit_code: int | None = None

    async def write(self, data: bytes) -> None:
        await self._send(data)

    async def resize(self, size: Size) -> None:
        await self._send(json.dumps({"type": "resize", "cols": size.cols, "rows": size.rows}))

    async def _send(self, frame: bytes | str) -> None:
        try:
            await self._socket.send(frame)
        except ConnectionClosed:
            # The reader finds out why it is closed; what was typed after the end has nowhere to go.
            pass

    async def output(self) -> AsyncIterator[bytes]:
        """What the program shows, until it ends. Raises `InternalError` when the connection breaks before that."""
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
                    self.exit_code = code if isinstance(code, int) else 0
                    return
        except ConnectionClosed as error:
            raise InternalError("terminal_closed", f"The terminal's connection broke: {error}.") from error
        raise InternalError("terminal_closed", "The server closed the terminal before its program ended.")


@asynccontextmanager
async def open_terminal(
    where: Terminal,
    argv: Sequence[str],
    size: Size,
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
) -> AsyncIterator[TerminalSession]:
    """Start `argv` with a terminal of that size. Raises `UnavailableError` when the server does not take the connection."""
    start: dict[str, Any] = {
        "type": "start",
        "command": argv[0],
        "args": list(argv[1:]),
        "env": [f"{key}={value}" for key, value in (env or {}).items()],
        "cols": size.cols,
        "rows": size.rows,
    }
    if cwd is not None:
        start["cwd"] = cwd
    try:
        socket = await connect(
            f"{where.url}?token={quote(where.token, safe='')}", max_size=MAX_FRAME_BYTES, proxy=None, compression=None
        )
    except (OSError, WebSocketException, TimeoutError) as error:
        raise UnavailableError("terminal_unreachable", f"The terminal at {where.url} can't be reached: {error}.") from error
    async with socket:
        session = TerminalSession(socket)
        await session._send(json.dumps(start))
        yield session


def _control(frame: str) -> dict[str, Any] | None:
    try:
        message = json.loads(frame)
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) else None

"""The control plane's end of the host protocol: one connection, made again when it breaks."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, TypeVar

from hutch.errors import UnavailableError
from hutch.wire import Connection, Hello, Role, Stream, connect_unix
from hutch.wire.connection import ConnectionClosed, Message

T = TypeVar("T")
HELLO = Hello(version=1, role=Role.CONTROL, window=1024 * 1024, max_streams=1)


class HostClient:
    """Requests to one host. Errors are those of `hutch.errors`; a host that is down is `UnavailableError` (503)."""

    def __init__(self, socket_path: Path) -> None:
        self._path = socket_path
        self._connection: Connection | None = None
        self._lock = asyncio.Lock()

    async def _connected(self) -> Connection:
        connection = self._connection
        if connection is not None and not connection.closed.done():
            return connection
        async with self._lock:
            if self._connection is None or self._connection.closed.done():
                try:
                    self._connection = await connect_unix(self._path, HELLO)
                except (OSError, TimeoutError, ConnectionClosed) as error:
                    raise UnavailableError(
                        "host_unreachable",
                        "The host process does not answer; it is restarted automatically. Try again.",
                        retry_after_s=1,
                    ) from error
            return self._connection

    async def open(self, method: str, params: object) -> Stream:
        """A request whose stream the caller drives; the caller must `cancel` or exhaust it."""
        return (await self._connected()).open(method, params)

    async def call(self, method: str, params: object, kind: type[T] = dict[str, Any]) -> T:  # type: ignore[assignment]
        """A request and its reply."""
        return await (await self._connected()).call(method, params, kind)

    async def call_large(self, method: str, params: object, kind: type[T]) -> T:
        """The same where parameters may be larger than a frame: what holds a network policy within its bounds."""
        return await (await self._connected()).call_large(method, params, kind)

    async def collect(self, method: str, params: object, kind: type[T]) -> list[T]:
        """A request that is answered with a list: one event per entry, because a frame is bounded and a list is not."""
        stream = await self.open(method, params)
        stream.send_end()
        try:
            await stream.reply()
            return [item.decode(kind) async for item in stream if isinstance(item, Message)]
        finally:
            stream.cancel()

    async def close(self) -> None:
        if self._connection is not None:
            self._connection.close("closing")

"""Output of programs, as lines and as a log with a bound."""

from __future__ import annotations

import codecs
from collections.abc import Awaitable, Callable

MAX_LINE_BYTES = 64 * 1024
STREAMS = {1: "stdout", 2: "stderr"}


class Lines:
    """Cuts what a program writes into lines; longer ones than `MAX_LINE_BYTES` come in parts."""

    def __init__(self, say: Callable[[str, str], Awaitable[None]]) -> None:
        self._say = say
        self._held: dict[int, bytes] = {1: b"", 2: b""}

    async def feed(self, channel: int, data: bytes) -> None:
        *lines, rest = (self._held[channel] + data).split(b"\n")
        while len(rest) > MAX_LINE_BYTES:
            lines.append(rest[:MAX_LINE_BYTES])
            rest = rest[MAX_LINE_BYTES:]
        self._held[channel] = rest
        for line in lines:
            await self._tell(channel, line)

    async def finish(self) -> None:
        """What had no line feed at its end."""
        for channel, rest in self._held.items():
            if rest:
                await self._tell(channel, rest)
                self._held[channel] = b""

    async def _tell(self, channel: int, line: bytes) -> None:
        text = line.rstrip(b"\r").decode("utf-8", "replace")
        # What comes is already cut at line feeds; these would be lines of their own to some readers.
        await self._say(STREAMS[channel], text.replace("\0", "�"))


class Log:
    """Both streams in the order in which they came, the first half and the last half of what is more than `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self._half = limit // 2
        self._head = bytearray()
        self._tail = bytearray()
        self._dropped = 0

    async def feed(self, channel: int, data: bytes) -> None:
        room = self._half - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        self._tail += data
        if len(self._tail) > 2 * self._half:
            self._shorten()

    def _shorten(self) -> None:
        over = len(self._tail) - self._half
        if over > 0:
            self._dropped += over
            del self._tail[:over]

    def text(self) -> str:
        self._shorten()
        left_out = f"\n[… {self._dropped} bytes left out …]\n".encode() if self._dropped else b""
        return codecs.decode(bytes(self._head) + left_out + bytes(self._tail), "utf-8", "replace")

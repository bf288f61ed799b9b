"""What is written into a guest before anything of a sandbox runs in it, and what a template has of that already."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

from hutch.errors import HutchError
from hutch.wire import Connection, Stream
from hutch.wire.connection import Data

READ_FIRST = (
    "/bin/sh",
    "/bin/bash",
    "/bin/true",
    "/bin/cat",
    "/usr/bin/env",
    "/lib64/ld-linux-x86-64.so.2",
    "/lib/x86_64-linux-gnu/libc.so.6",
    "/lib/x86_64-linux-gnu/libtinfo.so.6",
    "/lib/ld-musl-x86_64.so.1",
    "/etc/ld.so.cache",
    "/etc/nsswitch.conf",
    "/etc/passwd",
    "/etc/group",
)
"""What almost every first command needs, on the systems that images are made of. Where an image has none of a name, nothing
happens: others are read when they are wanted."""

MOST_READ_BYTES = 4 * 1024 * 1024
"""Of each. An image may have anything by these names."""


def writing(archive: bytes) -> tuple[str, dict[str, object]]:
    """The request that takes an archive of the host's own, and its parameters."""
    return "archive.write", {"cwd": b"/", "user": "root", "gzip": False, "max_bytes": len(archive) * 2, "max_files": 64}


async def written(stream: Stream, archive: bytes, answer: Callable[[Awaitable[Any]], Awaitable[Any]]) -> None:
    """Send an archive as that request's, and have `answer` wait for the reply."""
    try:
        await stream.send_data(archive, 0)
        stream.send_end()
        await answer(stream.reply())
    finally:
        stream.cancel()


async def prepare(connection: Connection, archive: bytes) -> None:
    """Have a template's guest hold what an archive has, and in memory what is read first. Raises `HutchError`, and
    `ConnectionClosed`."""

    async def as_it_is(waiting: Awaitable[Any]) -> Any:
        return await waiting

    await written(connection.open(*writing(archive)), archive, as_it_is)
    for path in READ_FIRST:
        stream = connection.open("file.read", {"path": path.encode(), "cwd": None, "user": "root"})
        stream.send_end()
        left = MOST_READ_BYTES
        try:
            with contextlib.suppress(HutchError):
                await stream.reply()
                while left > 0 and isinstance(piece := await stream.next(), Data):
                    left -= len(piece.data)
        finally:
            stream.cancel()

"""This process's own input and output without ever blocking the event loop: a reader that stalls must not stop Ctrl-C.

The descriptors are shared with other processes (the shell), so they must not be made non-blocking; instead nothing is read or
written before the kernel says that it would not block.
"""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import AsyncIterator
from typing import IO

FILE_CHUNK_BYTES = 256 * 1024
STEP_BYTES = select.PIPE_BUF
"""What a pipe that polls writable takes without blocking."""


async def write_all(descriptor: int, data: bytes) -> None:
    """Write `data`; waits while the reader is slow. Raises `BrokenPipeError`."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    view = memoryview(data)
    while view:
        if not poll.poll(0):
            await _ready(descriptor, reading=False)
        view = view[os.write(descriptor, view[:STEP_BYTES]) :]


async def chunks(descriptor: int, size: int) -> AsyncIterator[bytes]:
    """What arrives at `descriptor`, at most `size` bytes at once, until it ends."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    while True:
        # A regular file can't be watched by epoll, but it always polls ready.
        if not poll.poll(0):
            await _ready(descriptor, reading=True)
        chunk = os.read(descriptor, size)
        if not chunk:
            return
        yield chunk


async def chunks_of(file: IO[bytes]) -> AsyncIterator[bytes]:
    """What a local file holds."""
    while chunk := await asyncio.to_thread(file.read, FILE_CHUNK_BYTES):
        yield chunk


async def _ready(descriptor: int, *, reading: bool) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    if reading:
        loop.add_reader(descriptor, ready.set)
    else:
        loop.add_writer(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        if reading:
            loop.remove_reader(descriptor)
        else:
            loop.remove_writer(descriptor)

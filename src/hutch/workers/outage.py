"""What has to be written though the database is away for a while: nobody else knows it, and it can't be found out again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from hutch.errors import UnavailableError

FIRST_PAUSE_S = 0.25
MAX_PAUSE_S = 30.0


async def written(write: Callable[[], Awaitable[None]]) -> None:
    """Call `write` until the database answers."""
    pause_s = FIRST_PAUSE_S
    while True:
        try:
            await write()
        except UnavailableError:
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, MAX_PAUSE_S)
        else:
            return

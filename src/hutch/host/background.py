"""Work that nobody waits for. What fails is logged, and what still runs ends with its owner."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterator

log = logging.getLogger(__name__)

AGAIN_S = 5.0
"""Between tries of what failed on its way, as where the host's disk is full or it has no descriptor left."""


class Background:
    """The tasks of one host."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    async def insist(self, what: str, work: Callable[[], Awaitable[None]]) -> None:
        """Have it done: what fails is tried again, behind everybody's back, until it does not."""
        try:
            await work()
        except Exception as error:
            log.error("%s, and is tried again: %s", what, error, exc_info=error)
            self.spawn(self._again(what, work))

    async def _again(self, what: str, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(AGAIN_S)
            with going_on(what):
                await work()
                break

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a background task failed: %s", error, exc_info=error)

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@contextlib.contextmanager
def going_on(what: str) -> Iterator[None]:
    """Whatever goes wrong once, nobody would do what a loop does any more if it ended with it."""
    try:
        yield
    except Exception:
        log.exception("%s", what)

"""Sandboxes for syncs that are due soon: begun in time, so that a hundred that are due together only have to be told to go.

    due times ─▶ when each has to begin (`starts`) ─▶ sandbox with the worker loaded, waiting ─▶ the run takes it, or it is ended

As with a tool's (`hutch.workers.warm`), each was never used, is used once, and is of no use when what a run depends on has
changed. The later a sandbox is begun, the shorter it waits: the last of a hundred a few seconds before it is due, the first of
them as much earlier as the others take. What nobody knows ahead, such as triggers and cycles that go on, is not prepared.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter, defaultdict, deque
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from hutch.api.services import Services
from hutch.control.records import Scope
from hutch.errors import HutchError
from hutch.storage import worker_syncs
from hutch.storage import workers as rows
from hutch.storage.worker_syncs import Upcoming
from hutch.workers import memory, runs
from hutch.workers.serving import serving
from hutch.workers.warm import Begin, Ready, end

log = logging.getLogger(__name__)

POLL_S = 1.0
HORIZON_MS = 180_000
"""How far ahead it is looked."""
SPARE_MS = 2_000
"""How much earlier than needed a sandbox is begun."""
KEPT_MS = 30_000
"""How long after its sync was due a sandbox still waits."""
STARTS_AT_ONCE = 8
"""Sandboxes of syncs that are begun at once, ahead or not: more would only be slower."""
AHEAD_AT_ONCE = 3
"""Those of them that nobody waits for yet."""
LEAST_MS = 1000.0
"""What a start is taken to last at least: the first ones come from the pool, and say nothing about those that follow."""
SAFETY = 2.0
"""How much longer than lately a start is taken to last: others use this machine too."""
WEIGHT = 0.2
"""Of the last start in the mean of them."""


def starts(due_ms: Sequence[int], each_ms: float, spare_ms: int = SPARE_MS) -> list[float]:
    """When work that takes `each_ms`, one after another, has to begin at the latest so that each is done before it is due. The
    times are in ascending order."""
    found: list[float] = []
    next_ms = float("inf")
    for due in reversed(due_ms):
        next_ms = min(due - spare_ms, next_ms) - each_ms
        found.append(next_ms)
    return found[::-1]


@dataclass(frozen=True, slots=True)
class _Waiting:
    ready: Ready
    until_ms: int


class Ahead:
    """Those of one process."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._most = services.settings.workers.max_ahead
        self._waiting: dict[str, deque[_Waiting]] = defaultdict(deque)
        """By what they depend on (`warm.digest`)."""
        self._beginning: Counter[str] = Counter()
        self._each_ms = LEAST_MS
        self._tasks: set[asyncio.Task[None]] = set()
        self._places = asyncio.Semaphore(STARTS_AT_ONCE)
        self._ahead = asyncio.Semaphore(AHEAD_AT_ONCE)

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def take(self, key: str) -> Ready | None:
        """One that waits, which is the caller's from now on."""
        waiting = self._waiting.get(key)
        if not waiting:
            return None
        found = waiting.popleft()
        if not waiting:
            del self._waiting[key]
        return found.ready

    async def begin(self, begin: Begin) -> Ready:
        """Begin one for a run that waits for it. Raises `HutchError`."""
        async with self._places:
            return await begin()

    async def follow(self) -> None:
        """Prepare what is due soon, for ever. At its end all that wait are ended."""
        try:
            while True:
                try:
                    await self._look()
                except HutchError as error:
                    log.info("syncs are not prepared: %s", error.message)
                except Exception:
                    log.exception("syncs could not be prepared")
                await asyncio.sleep(POLL_S)
        finally:
            await self._close()

    async def _look(self) -> None:
        now = self._services.clock()
        self._expire(now)
        if not self._most or self._services.draining:
            return
        async with self._services.database.read() as connection:
            upcoming = await worker_syncs.upcoming(connection, now + HORIZON_MS, self._most)
        begin_at = starts([one.due_at for one in upcoming], SAFETY * max(self._each_ms, LEAST_MS) / AHEAD_AT_ONCE)
        wanted: dict[tuple[Scope, str], list[Upcoming]] = defaultdict(list)
        for one, at in zip(upcoming, begin_at, strict=True):
            # Those that are due already wait for their turn and take what waits, but nothing is begun for them here.
            if at <= now + POLL_S * 1000:
                wanted[one.scope, one.worker_id].append(one)
        for (scope, worker_id), found in wanted.items():
            await self._prepare(scope, worker_id, found, now)

    async def _prepare(self, scope: Scope, worker_id: str, found: list[Upcoming], now: int) -> None:
        services = self._services
        ahead = [one for one in found if one.due_at > now]
        if not ahead:
            return
        async with services.database.read() as connection:
            worker = await rows.find(connection, scope, worker_id)
        served = await serving(services, scope, worker) if worker is not None else None
        if worker is None or served is None:
            return
        try:
            key, begin = await runs.preparation(services, scope, worker, *served)
        except HutchError as error:
            # The run says what is wrong.
            log.info("syncs of worker %s are not prepared: %s", worker_id, error.message)
            return
        missing = len(found) - len(self._waiting.get(key, ())) - self._beginning[key]
        for one in ahead[max(0, len(ahead) - missing) :] if missing > 0 else ():
            if len(self) + self._beginning.total() >= self._most or not memory.is_plenty():
                return
            self._beginning[key] += 1
            self._spawn(self._begin(key, begin, one.due_at))

    async def _begin(self, key: str, begin: Begin, due_at: int) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with self._ahead, self._places:
                if self._services.clock() >= due_at:
                    return
                began = loop.time()
                ready = await begin()
        except HutchError as error:
            log.info("no sandbox waits for a sync: %s", error.message)
            return
        finally:
            self._beginning[key] -= 1
            if not self._beginning[key]:
                del self._beginning[key]
        self._each_ms += WEIGHT * ((loop.time() - began) * 1000 - self._each_ms)
        self._waiting[key].append(_Waiting(ready, due_at + KEPT_MS))

    def _expire(self, now: int) -> None:
        for key, waiting in list(self._waiting.items()):
            for one in [one for one in waiting if one.until_ms <= now]:
                waiting.remove(one)
                self._spawn(end(one.ready))
            if not waiting:
                del self._waiting[key]

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        left = [one.ready for waiting in self._waiting.values() for one in waiting]
        self._waiting.clear()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*(end(ready) for ready in left), return_exceptions=True)

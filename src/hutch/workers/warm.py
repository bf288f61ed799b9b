"""Runs that have begun before somebody asks for them: a sandbox that was never used, with the worker loaded, waiting for its job.

    run of a tool ─▶ take one that waits, or begin one ─▶ … ─▶ begin the next, for whoever asks within `workers.warm_s`

Each is used once. It is of no use any more, and ended, when the deployment, the environment or the policy of its worker is
another one, or when nobody asked for it in time.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import msgspec

from hutch.api.services import Services
from hutch.errors import HutchError
from hutch.workers.sandbox import OwnSandbox, Program

log = logging.getLogger(__name__)

ENDS_AT_ONCE = 4
PATIENCE_S = 5.0
"""How long a result waits at most while others begin."""
END_PATIENCE_S = 15.0
"""How long what was used is left as it is at most while others begin."""


@dataclass(frozen=True, slots=True)
class Ready:
    """A sandbox with its program started. Whoever has it closes `rest`."""

    box: OwnSandbox
    program: Program
    rest: contextlib.AsyncExitStack


Begin = Callable[[], Awaitable[Ready]]


def digest(deployment_id: str, environment: dict[str, str], policy: object) -> str:
    """What a run depends on, but for its input."""
    encoded = msgspec.json.encode([deployment_id, sorted(environment.items()), policy])
    return hashlib.sha256(encoded).hexdigest()


class WarmRuns:
    """Those of one process."""

    def __init__(self, services: Services) -> None:
        self._settings = services.settings.workers
        self._ready: dict[str, Ready] = {}
        """By `digest`."""
        self._of_worker: dict[str, str] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._beginning: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._left: set[asyncio.Task[None]] = set()
        """Ends of sandboxes that the host did not answer about."""
        self._ends = asyncio.Semaphore(ENDS_AT_ONCE)
        self.calm = asyncio.Event()
        """Set while no sync that is due waits for its turn."""
        self.calm.set()
        self.taken = asyncio.Event()
        """Set while none is being taken: none is due, or there is no room for more."""
        self.taken.set()

    def __len__(self) -> int:
        return len(self._ready)

    def take(self, key: str) -> Ready | None:
        """One that waits, which is the caller's from now on."""
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
        return self._ready.pop(key, None)

    def want(self, worker_id: str, key: str, begin: Begin) -> None:
        """Have one wait for the next run of a worker, instead of any of before that depends on something else."""
        former = self._of_worker.get(worker_id)
        if former is not None and former != key:
            self._discard(former)
        full = len(self._ready) + len(self._beginning) >= self._settings.max_warm
        if not self._settings.warm_s or full or key in self._ready or key in self._beginning:
            return
        self._of_worker[worker_id] = key
        self._beginning.add(key)
        self._spawn(self._begin(key, begin))

    def later(self, ready: Ready, then: Callable[[], Awaitable[None]] | None = None) -> None:
        """End what was used, while its result is on its way, and after syncs that are due have begun; `then` is done after it."""
        self._spawn(self._end(ready, then))

    async def others_first(self) -> None:
        """Wait, but not for long, until all syncs that are due and have room were begun: what a run of one came to can be written
        after that, and whoever waits for it waits less than those would."""
        await _at_most(self.taken, PATIENCE_S)

    async def _end(self, ready: Ready, then: Callable[[], Awaitable[None]] | None) -> None:
        await _at_most(self.calm, END_PATIENCE_S)
        async with self._ends:
            await end(ready)
        if then is not None:
            await then()

    def try_again(self, work: Coroutine[Any, Any, None]) -> None:
        """End what could not be ended, for as long as this process lives; the next one ends what it finds."""
        task = asyncio.create_task(work)
        self._left.add(task)
        task.add_done_callback(self._left.discard)

    def forget(self, worker_id: str) -> None:
        """The worker is gone."""
        key = self._of_worker.pop(worker_id, None)
        if key is not None:
            self._discard(key)

    async def close(self) -> None:
        """End all that wait, and what is being begun or ended."""
        self.calm.set()
        self.taken.set()
        while self._tasks or self._ready:
            for key in list(self._ready):
                self._discard(key)
            await asyncio.gather(*self._tasks, return_exceptions=True)
        for task in self._left:
            task.cancel()
        await asyncio.gather(*self._left, return_exceptions=True)

    async def _begin(self, key: str, begin: Begin) -> None:
        try:
            ready = await begin()
        except HutchError as error:
            log.info("no run of a worker waits for the next: %s", error.message)
            return
        finally:
            self._beginning.discard(key)
        if key not in self._of_worker.values():
            await end(ready)
            return
        self._ready[key] = ready
        self._timers[key] = asyncio.get_running_loop().call_later(self._settings.warm_s, self._discard, key)

    def _discard(self, key: str) -> None:
        for worker_id in [worker_id for worker_id, found in self._of_worker.items() if found == key]:
            del self._of_worker[worker_id]
        ready = self.take(key)
        if ready is not None:
            self.later(ready)

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _at_most(event: asyncio.Event, wait_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(wait_s):
            await event.wait()


async def end(ready: Ready) -> None:
    """End a sandbox with all that it has."""
    try:
        await ready.rest.aclose()
    except HutchError as error:
        log.warning("the sandbox %s of a worker could not be ended: %s", ready.box.name, error.message)

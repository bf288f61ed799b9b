"""Machines started ahead of time, so that a create only claims one.

What is kept ready: a number of each configured kind, and as many of any kind as are asked for while one starts (`demand`), also
with the files of a snapshot that is used again and again. A taken or dead one is replaced in the background, few at once, so
that refilling leaves the processors to those who wait. What nobody asks for any more is removed. No machine is handed out twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from hutch.errors import HutchError
from hutch.host.demand import Demand
from hutch.host.machine import Machine, MachineKind
from hutch.host.storage import Source

log = logging.getLogger(__name__)

RETRY_S = 5.0
TRIM_EVERY_S = 5.0
KEEP_S = 60.0
"""What was asked for a moment ago is not removed yet: the next burst is likely to be like the last one."""
MAX_SHELVES = 256
FORGET_POLL_S = 0.02

Key = tuple[str, int, int, int, str, str]


@dataclass(frozen=True, slots=True)
class Recipe:
    """What makes two pooled machines interchangeable: their kind, and the snapshot whose files they begin with."""

    kind: MachineKind
    source: Source | None = None

    @property
    def key(self) -> Key:
        return (*self.kind.key, self.source.snapshot if self.source is not None else "")


@dataclass(slots=True)
class Shelf:
    """The machines of one recipe: those that are ready, since when others are being started, and who waits for these."""

    recipe: Recipe
    floor: int = 0
    demand: Demand = field(default_factory=Demand)
    ready: deque[Machine] = field(default_factory=deque)
    starting: list[float] = field(default_factory=list)
    waiters: deque[asyncio.Future[Machine | None]] = field(default_factory=deque)
    start_s: float = 0.0
    rests: bool = False
    """Its last start failed a moment ago."""

    @property
    def size(self) -> int:
        return len(self.ready) + len(self.starting)


class Pool:
    """`kinds` are kept ready in the given numbers, and `most` machines in all; none with 0."""

    def __init__(
        self,
        kinds: list[tuple[MachineKind, int]],
        boot: Callable[[MachineKind, Source | None], Awaitable[Machine]],
        discard: Callable[[Machine], Awaitable[None]],
        refill_concurrency: int,
        most: int,
    ) -> None:
        self._shelves = {recipe.key: Shelf(recipe, size) for recipe, size in ((Recipe(kind), size) for kind, size in kinds)}
        self._most = max(most, sum(size for _, size in kinds)) if kinds else 0
        self._boot = boot
        self._discard = discard
        self._wake = asyncio.Event()
        self._refill_concurrency = refill_concurrency
        self._workers: list[asyncio.Task[None]] = []
        self._discards: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return sum(len(shelf.ready) for shelf in self._shelves.values())

    def ready(self, recipe: Recipe) -> int:
        """How many of a recipe are ready."""
        shelf = self._shelves.get(recipe.key)
        return len(shelf.ready) if shelf is not None else 0

    def needs(self, digest: str) -> bool:
        """Whether an image is one of those that are kept ready in any case."""
        return any(shelf.floor and shelf.recipe.kind.image.digest == digest for shelf in self._shelves.values())

    def start(self) -> None:
        if self._most:
            loop = asyncio.get_running_loop()
            self._wake.set()
            self._workers = [loop.create_task(self._refill()) for _ in range(self._refill_concurrency)]
            self._workers.append(loop.create_task(self._trim_for_ever()))

    # -- taking ------------------------------------------------------------------------------------

    async def take(self, recipe: Recipe) -> Machine | None:
        """A ready machine, or one that will be sooner than one of the caller's own; None when the caller has to boot one."""
        if not self._most:
            return None
        now = asyncio.get_running_loop().time()
        shelf = self._shelves.get(recipe.key) or self._new_shelf(recipe)
        shelf.demand.arrived(now)
        self._wake.set()
        machine = self._take_ready(shelf)
        if machine is not None:
            return machine
        # Half done is worth waiting for; before that, a second boot beside it serves both this caller and the next.
        waiting = len(shelf.waiters)
        if waiting >= len(shelf.starting) or now - shelf.starting[waiting] < shelf.start_s / 2:
            return None
        waiter: asyncio.Future[Machine | None] = asyncio.get_running_loop().create_future()
        shelf.waiters.append(waiter)
        return await waiter

    def _new_shelf(self, recipe: Recipe) -> Shelf:
        if len(self._shelves) >= MAX_SHELVES:
            unused = [shelf for shelf in self._shelves.values() if shelf.floor == shelf.size == 0]
            if unused:
                del self._shelves[min(unused, key=lambda shelf: shelf.demand.last).recipe.key]
        shelf = Shelf(recipe)
        if len(self._shelves) < MAX_SHELVES:
            self._shelves[recipe.key] = shelf
        return shelf

    def _take_ready(self, shelf: Shelf) -> Machine | None:
        while shelf.ready:
            machine = shelf.ready.popleft()
            if not machine.died.done():
                return machine
            self._discard_soon(machine)
        return None

    def forget(self, snapshot_id: str) -> None:
        """A snapshot is gone: nothing with its files is kept ready any more."""
        for key, shelf in list(self._shelves.items()):
            if shelf.recipe.source is not None and shelf.recipe.source.snapshot == snapshot_id:
                del self._shelves[key]
                for machine in shelf.ready:
                    self._discard_soon(machine)

    async def forget_image(self, digest: str) -> None:
        """An image is about to be removed; nothing of it is ready, or being started, when this returns."""
        gone = [shelf for shelf in self._shelves.values() if not shelf.floor and shelf.recipe.kind.image.digest == digest]
        for shelf in gone:
            del self._shelves[shelf.recipe.key]
            for machine in shelf.ready:
                self._discard_soon(machine)
        while any(shelf.starting for shelf in gone):  # noqa: ASYNC110 - their starters tell nobody
            await asyncio.sleep(FORGET_POLL_S)
        if gone:
            await asyncio.gather(*self._discards, return_exceptions=True)

    # -- refilling ---------------------------------------------------------------------------------

    async def _refill(self) -> None:
        while True:
            shelf = self._short()
            if shelf is None:
                self._wake.clear()
                await self._wake.wait()
                continue
            await self._add_one(shelf)

    def _short(self) -> Shelf | None:
        """Where a machine is missing most."""
        now = asyncio.get_running_loop().time()
        room = self._most - sum(shelf.size for shelf in self._shelves.values())
        missing = [
            (max(0, shelf.floor - shelf.size), wanted - shelf.size, shelf)
            for shelf in self._shelves.values()
            if not shelf.rests and (wanted := self._wanted(shelf, now)) > shelf.size
        ]
        if room <= 0 or not missing:
            return None
        return max(missing, key=lambda entry: entry[:2])[2]

    def _wanted(self, shelf: Shelf, now: float) -> int:
        return shelf.demand.wanted(now, shelf.start_s, shelf.floor, self._most)

    async def _add_one(self, shelf: Shelf) -> None:
        began = asyncio.get_running_loop().time()
        shelf.starting.append(began)
        try:
            machine = await self._boot(shelf.recipe.kind, shelf.recipe.source)
        except Exception as error:
            # Whatever it was: the next one may start, and nobody waits for this one for ever.
            self._hand_over(shelf, None)
            log.warning("the pool could not be refilled: %s", error, exc_info=not isinstance(error, HutchError))
            self._rest(shelf)
            return
        finally:
            shelf.starting.remove(began)
        shelf.start_s = asyncio.get_running_loop().time() - began
        if self._hand_over(shelf, machine):
            return
        if self._shelves.get(shelf.recipe.key) is not shelf:
            self._discard_soon(machine)
            return
        shelf.ready.append(machine)
        machine.died.add_done_callback(lambda _: self._lost(shelf, machine))

    def _rest(self, shelf: Shelf) -> None:
        """Leave a shelf alone for a while; the others are filled meanwhile."""
        shelf.rests = True

        def go_on() -> None:
            shelf.rests = False
            self._wake.set()

        asyncio.get_running_loop().call_later(RETRY_S, go_on)

    @staticmethod
    def _hand_over(shelf: Shelf, machine: Machine | None) -> bool:
        """Give a machine, or the news that there is none, to whoever waits longest; whether anybody did."""
        while shelf.waiters:
            waiter = shelf.waiters.popleft()
            if not waiter.done():
                waiter.set_result(machine)
                return True
        return False

    def _lost(self, shelf: Shelf, machine: Machine) -> None:
        """A machine that died while it waited is removed and replaced."""
        if machine in shelf.ready:
            shelf.ready.remove(machine)
            self._discard_soon(machine)
            self._wake.set()

    # -- removing ----------------------------------------------------------------------------------

    async def _trim_for_ever(self) -> None:
        while True:
            await asyncio.sleep(TRIM_EVERY_S)
            self.trim()

    def trim(self) -> None:
        """Remove what is not wanted any more, and look again for what is missing."""
        now = asyncio.get_running_loop().time()
        for shelf in self._shelves.values():
            while now - shelf.demand.last > KEEP_S and len(shelf.ready) > self._wanted(shelf, now):
                self._discard_soon(shelf.ready.pop())
        self._wake.set()

    def _discard_soon(self, machine: Machine) -> None:
        task = asyncio.ensure_future(self._discard(machine))
        self._discards.add(task)
        task.add_done_callback(self._discards.discard)

    async def close(self) -> None:
        """Stop refilling and remove what is ready."""
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        for shelf in self._shelves.values():
            for waiter in shelf.waiters:
                if not waiter.done():
                    waiter.set_result(None)
        machines = [machine for shelf in self._shelves.values() for machine in shelf.ready]
        self._shelves.clear()
        self._most = 0
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*(self._discard(machine) for machine in machines), *self._discards, return_exceptions=True)

"""Machines started ahead of time, so that a create only claims one.

For each kind a number is kept ready. A taken or dead one is replaced in the background, few at once, so that refilling
leaves the processors to those who wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable

from hutch.errors import HutchError
from hutch.host.machine import Machine, MachineKind

log = logging.getLogger(__name__)

RETRY_S = 5.0


class Pool:
    def __init__(
        self,
        kinds: list[tuple[MachineKind, int]],
        boot: Callable[[MachineKind], Awaitable[Machine]],
        discard: Callable[[Machine], Awaitable[None]],
        refill_concurrency: int,
    ) -> None:
        self._targets = {kind.key: (kind, size) for kind, size in kinds}
        self._ready: dict[tuple[str, int, int, int], deque[Machine]] = {kind.key: deque() for kind, _ in kinds}
        self._boot = boot
        self._discard = discard
        self._wake = asyncio.Event()
        self._workers_wanted = refill_concurrency
        self._starting: dict[tuple[str, int, int, int], list[float]] = {kind.key: [] for kind, _ in kinds}
        self._boot_s = 0.0
        self._waiters: dict[tuple[str, int, int, int], deque[asyncio.Future[Machine | None]]] = {
            kind.key: deque() for kind, _ in kinds
        }
        self._workers: list[asyncio.Task[None]] = []
        self._discards: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return sum(len(ready) for ready in self._ready.values())

    def kinds(self) -> list[tuple[MachineKind, int]]:
        """What is kept ready, and how many of each."""
        return list(self._targets.values())

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._wake.set()
        self._workers = [loop.create_task(self._refill()) for _ in range(self._workers_wanted if self._targets else 0)]

    async def take(self, kind: MachineKind) -> Machine | None:
        """A ready machine, or one that will be sooner than one of the caller's own; None when the caller has to boot one."""
        machine = self._take_ready(kind)
        if machine is not None:
            return machine
        waiters = self._waiters.get(kind.key)
        if waiters is None:
            return None
        loop = asyncio.get_running_loop()
        begun = self._starting[kind.key]
        # Half done is worth waiting for; before that, a second boot beside it serves both this caller and the next.
        if len(waiters) >= len(begun) or loop.time() - begun[len(waiters)] < self._boot_s / 2:
            return None
        waiter: asyncio.Future[Machine | None] = loop.create_future()
        waiters.append(waiter)
        return await waiter

    def _take_ready(self, kind: MachineKind) -> Machine | None:
        ready = self._ready.get(kind.key)
        while ready:
            machine = ready.popleft()
            self._wake.set()
            if not machine.died.done():
                return machine
            self._discard_soon(machine)
        return None

    async def _refill(self) -> None:
        while True:
            kind = self._short()
            if kind is None:
                self._wake.clear()
                await self._wake.wait()
                continue
            began = asyncio.get_running_loop().time()
            self._starting[kind.key].append(began)
            try:
                machine = await self._boot(kind)
            except HutchError as error:
                self._hand_over(kind, None)
                log.warning("the pool could not be refilled: %s", error)
                await asyncio.sleep(RETRY_S)
                continue
            finally:
                self._starting[kind.key].remove(began)
            self._boot_s = asyncio.get_running_loop().time() - began
            if self._hand_over(kind, machine):
                continue
            self._ready[kind.key].append(machine)
            machine.died.add_done_callback(lambda _, machine=machine: self._lost(machine))  # type: ignore[misc]

    def _hand_over(self, kind: MachineKind, machine: Machine | None) -> bool:
        """Give a machine, or the news that there is none, to whoever waits longest; whether anybody did."""
        waiters = self._waiters[kind.key]
        while waiters:
            waiter = waiters.popleft()
            if not waiter.done():
                waiter.set_result(machine)
                return True
        return False

    def _short(self) -> MachineKind | None:
        for key, (kind, size) in self._targets.items():
            if len(self._ready[key]) + len(self._starting[key]) < size:
                return kind
        return None

    def _lost(self, machine: Machine) -> None:
        """A machine that died while it waited is removed and replaced."""
        for ready in self._ready.values():
            if machine in ready:
                ready.remove(machine)
                self._discard_soon(machine)
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
        for waiters in self._waiters.values():
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)
        machines = [machine for ready in self._ready.values() for machine in ready]
        for ready in self._ready.values():
            ready.clear()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*(self._discard(machine) for machine in machines), *self._discards, return_exceptions=True)

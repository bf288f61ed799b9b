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
        self._starting: dict[tuple[str, int, int, int], int] = dict.fromkeys(self._ready, 0)
        self._workers: list[asyncio.Task[None]] = []
        self._discards: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return sum(len(ready) for ready in self._ready.values())

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._wake.set()
        self._workers = [loop.create_task(self._refill()) for _ in range(self._workers_wanted if self._targets else 0)]

    def take(self, kind: MachineKind) -> Machine | None:
        """A ready machine, or None."""
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
            self._starting[kind.key] += 1
            try:
                machine = await self._boot(kind)
            except HutchError as error:
                log.warning("the pool could not be refilled: %s", error)
                await asyncio.sleep(RETRY_S)
                continue
            finally:
                self._starting[kind.key] -= 1
            self._ready[kind.key].append(machine)
            machine.died.add_done_callback(lambda _, machine=machine: self._lost(machine))  # type: ignore[misc]

    def _short(self) -> MachineKind | None:
        for key, (kind, size) in self._targets.items():
            if len(self._ready[key]) + self._starting[key] < size:
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
        machines = [machine for ready in self._ready.values() for machine in ready]
        for ready in self._ready.values():
            ready.clear()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*(self._discard(machine) for machine in machines), *self._discards, return_exceptions=True)

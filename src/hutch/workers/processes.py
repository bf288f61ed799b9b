"""Which API processes live. Several may share a PostgreSQL database: what one of them builds or runs is its own until it dies.

    a lock on `control/processes/ID` for as long as it lives ─▶ others of this machine see at once that it is over
    `seen_at` in the database, every few seconds            ─▶ others elsewhere see it after `DEAD_MS`

Whoever sees it gives up what the dead one was at: builds have failed, runs are over, and their sandboxes are ended. Jobs and
syncs have leases of their own, and are taken over with them.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from hutch.api.services import Services
from hutch.control.records import Scope
from hutch.errors import HutchError
from hutch.storage import processes as rows
from hutch.workers import builds

log = logging.getLogger(__name__)

BEAT_S = 5.0
DEAD_MS = 30_000
"""How long a process may be silent. Clocks of machines that share a database differ by less."""


class Presence:
    """That of this process."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._directory = services.settings.control_dir / "processes"
        self._directory.mkdir(mode=0o700, exist_ok=True)
        self._path = self._directory / services.process_id
        # Nobody sees it before it is locked.
        unlocked = self._path.with_name(f".{services.process_id}")
        self._lock = os.open(unlocked, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        unlocked.rename(self._path)
        self._alive: set[str] = set()
        self._left: set[tuple[Scope, str]] = set()

    async def begin(self) -> None:
        """Be known to live, and give up what dead ones were at."""
        await self._look()

    async def keep(self) -> None:
        """Go on with that for ever."""
        while True:
            await asyncio.sleep(BEAT_S)
            try:
                await self._look()
            except HutchError as error:
                log.warning("processes can't be looked for: %s", error.message)

    async def end(self) -> None:
        """This one is over: nothing of it has to be waited for."""
        try:
            async with self._services.database.write() as connection:
                await rows.gone(connection, [self._services.process_id])
        except HutchError as error:
            log.info("nobody is told that this process ends: %s", error.message)
        self._path.unlink(missing_ok=True)
        os.close(self._lock)

    async def _look(self) -> None:
        services, now = self._services, self._services.clock()
        others = [path for path in self._directory.iterdir() if path != self._path and not path.name.startswith(".")]
        dead = [path for path in others if _is_free(path)]
        async with services.database.write() as connection:
            await rows.seen(connection, services.process_id, now)
            await rows.gone(connection, [path.name for path in dead])
            alive = await rows.alive(connection, now - DEAD_MS)
        if alive == self._alive and not dead:
            return
        left = await builds.give_up(services, alive)
        self._alive = alive
        for path in dead:
            path.unlink(missing_ok=True)
        for scope, name in set(left) - self._left:
            self._left.add((scope, name))
            self._spawn(self._end(scope, name))

    async def _end(self, scope: Scope, name: str) -> None:
        try:
            await builds.end_leftovers(self._services, [(scope, name)])
        finally:
            self._left.discard((scope, name))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._services.ending.add(task)
        task.add_done_callback(self._services.ending.discard)


def _is_free(path: Path) -> bool:
    """Whether nobody holds its lock."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True

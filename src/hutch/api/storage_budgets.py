"""Budgets of storage: what snapshots and drives hold now, which the control plane knows and no single host.

What would add to it is refused: snapshots, memory forks, imports, drives, and sessions that would leave a snapshot. The first
four are counted anew each time; sessions go by what was found last, so that a create counts nothing. What runs goes on, and what
it leaves is kept.
"""

from __future__ import annotations

import asyncio
import logging

from hutch.api.services import Services
from hutch.control.records import Scope
from hutch.errors import HutchError
from hutch.host.protocol import DriveRef, DriveUsage
from hutch.metering.budgets import STORAGE, Budget, Span, full, project_key, team_key
from hutch.metering.notices import Notice, notice_id, thresholds
from hutch.storage import budget_events
from hutch.storage import budgets as rows
from hutch.storage import drives as drive_rows

log = logging.getLogger(__name__)

DRIVES_AT_ONCE = 16


async def held(services: Services, key: str) -> int:
    """Bytes that snapshots and drives of a team or project hold now. Raises `HutchError` where the host does not say."""
    async with services.database.read() as connection:
        total = await rows.snapshot_bytes(connection, key)
        drives = await drive_rows.there(connection, key)
    places = asyncio.Semaphore(DRIVES_AT_ONCE)

    async def used(drive_id: str) -> int:
        async with places:
            return (await services.host.call("drive.usage", DriveRef(drive_id), DriveUsage)).used_bytes

    return total + sum(await asyncio.gather(*(used(drive_id) for drive_id in drives)))


async def require(services: Services, scope: Scope, more_bytes: int = 0) -> None:
    """Raises `PaymentRequiredError` (`budget_exceeded`) where a project or its team holds, with `more_bytes`, all that it may."""
    for key in _keys(scope):
        async with services.database.read() as connection:
            found = await rows.of_key(connection, key)
        limits = [most for stored in found.values() if (most := stored.budget.limits.storage_bytes) is not None]
        if limits and (used := await held(services, key) + more_bytes) >= min(limits):
            raise full(key, STORAGE, min(limits), used)


def require_lately(services: Services, scope: Scope) -> None:
    """The same by what was found last. Nothing is asked."""
    for key in _keys(scope):
        if key in services.storage_full:
            raise full(key, STORAGE, *services.storage_full[key])


def _keys(scope: Scope) -> list[str]:
    return [team_key(scope.team_id), *([project_key(scope.project_id)] if scope.project_id is not None else [])]


async def note(services: Services) -> None:
    """Find out who holds as much as they may, and have them told."""
    async with services.database.read() as connection:
        stored = await rows.of_all(connection)
    wanted = [
        one.budget for one in stored if one.budget.limits.storage_bytes is not None or one.budget.soft.storage_bytes is not None
    ]
    full_now: dict[str, tuple[int, int]] = {}
    notices: list[Notice] = []
    for key in {budget.key for budget in wanted}:
        try:
            used = await held(services, key)
        except HutchError as error:
            log.info("what %s holds is not known: %s", key, error.message)
            if key in services.storage_full:
                full_now[key] = services.storage_full[key]
            continue
        for budget in wanted:
            if budget.key == key:
                notices += _reached(budget, used, services.clock())
                most = budget.limits.storage_bytes
                if most is not None and used >= most:
                    full_now[key] = (min(most, full_now.get(key, (most, used))[0]), used)
    services.storage_full = full_now
    if notices:
        async with services.database.write() as connection:
            made = await budget_events.apply(connection, notices)
        if made:
            services.webhooks_due.set()


def _reached(budget: Budget, used: int, now: int) -> list[Notice]:
    span = Span.of(budget.period, now)
    return [
        Notice(id=notice_id(budget.key, span, threshold), key=budget.key, span=span, threshold=threshold, used=used, at_ms=now)
        for threshold in thresholds(budget)
        if threshold.limit == STORAGE and used >= threshold.value
    ]

"""What is not kept for ever: runs with what they were given, returned and wrote, jobs that are over, layers that nobody uses, and
archives that nobody built.

A run that goes on, or whose job is still to be done, is never forgotten.
"""

from __future__ import annotations

import asyncio
import logging

from hutch.api.services import Services
from hutch.errors import HutchError
from hutch.storage import worker_jobs
from hutch.storage import workers as rows
from hutch.workers import builds, layers

log = logging.getLogger(__name__)

EVERY_S = 3600.0
BATCH = 500
"""Runs that are deleted in one transaction: others write meanwhile."""


async def follow(services: Services) -> None:
    """For ever."""
    while True:
        try:
            await forget(services)
            await layers.collect(services)
            await builds.drop_archives(services)
        except HutchError as error:
            log.warning("old runs can't be forgotten: %s", error.message)
        except Exception:
            log.exception("old runs could not be forgotten")
        await asyncio.sleep(EVERY_S)


async def forget(services: Services) -> int:
    """Delete what ended more than `workers.keep_runs_s` ago, once; how many runs."""
    kept_s, count = services.settings.workers.keep_runs_s, 0
    if not kept_s:
        return 0
    before = services.clock() - kept_s * 1000
    async with services.database.write() as connection:
        await worker_jobs.forget(connection, before)
    while True:
        async with services.database.write() as connection:
            deleted = await rows.forget_runs(connection, before, BATCH)
        count += deleted
        if deleted < BATCH:
            return count

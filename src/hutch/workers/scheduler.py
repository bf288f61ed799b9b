"""Has syncs run when they are due.

    due ─▶ take it (lease, fence), decide its run ─▶ sandbox ─▶ one transaction: rows, sweep, state, pacers, lease given back

What to do is decided in `hutch.workers.sync`; here it is done. Each run waits for its turn anew, also that of a cycle which has
more: projects take turns, and one with a long backfill does not hold up others. Several processes share the work by leases. A
process that dies is silent, its lease ends, and another one runs the sync again from the last state that was stored; whatever the
dead one still writes is refused by its fence. So a run may happen twice, and what it returns counts once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import Counter
from dataclasses import dataclass
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from hutch.api.services import Services
from hutch.control.records import Scope
from hutch.errors import BadRequestError, ConflictError, HutchError, NotFoundError, UnavailableError
from hutch.storage import tenants, worker_rows, worker_syncs
from hutch.storage import workers as workers_table
from hutch.storage.worker_syncs import Sync
from hutch.storage.workers import Deployment, Worker
from hutch.workers import pacers, runs, sync, tables
from hutch.workers import serving as deployments
from hutch.workers.changes import Batch
from hutch.workers.manifest import Capability, Manifest
from hutch.workers.merge import merged
from hutch.workers.outcome import Failure, Outcome, Success
from hutch.workers.rows import MAX_WARNINGS
from hutch.workers.sync import Apply, Due, Finished, Restart, Run, advance

log = logging.getLogger(__name__)

LEASE_MS = 15_000
HEARTBEAT_S = 4.0
POLL_S = 1.0
"""How often it is looked for what is due; what somebody asks for in this process is looked for at once."""
AVOIDED_MS = 60_000
TRIES = 5
"""How often a result is written to a database that does not answer."""
WATCH_S = 0.1


@dataclass(frozen=True, slots=True)
class Job:
    """A run that was decided, and all that it needs."""

    sync: Sync
    run: Run
    worker: Worker
    deployment: Deployment
    manifest: Manifest
    capability: Capability
    context: dict[str, Any]


async def keep_syncing(services: Services) -> None:
    """Run what is due for ever. When this ends, what runs is handed back."""
    if not services.settings.workers.sync_concurrency:
        return
    async with asyncio.TaskGroup() as group:
        group.create_task(Scheduler(services).work())
        if services.ahead is not None:
            group.create_task(services.ahead.follow())


class Scheduler:
    """That of one process."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._tasks: dict[asyncio.Task[None], str] = {}
        """What runs, and for which project."""
        self._turns: dict[str, int] = {}
        """When each project had its last turn."""
        self._turn = 0
        self._avoided: dict[str, int] = {}
        """Projects of which a sync could not be taken, and until when they are left alone, so that they don't hold up others."""

    async def work(self) -> None:
        due = self._services.syncs_due
        try:
            while True:
                due.clear()
                try:
                    waits = True
                    while waits and self._may_take():
                        waits = await self._take()
                        self._say(waiting=waits, taking=waits)
                except UnavailableError as error:
                    log.info("syncs wait: %s", error)
                except Exception:
                    log.exception("syncs could not be taken")
                self._say(taking=False)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(POLL_S):
                        await due.wait()
        finally:
            self._say(waiting=False, taking=False)
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _say(self, *, taking: bool, waiting: bool | None = None) -> None:
        """Whether syncs are being taken, and whether any that are due wait for their turn, where that is known."""
        warm = self._services.warm
        if warm is not None:
            (warm.taken.clear if taking else warm.taken.set)()
            if waiting is not None:
                (warm.calm.clear if waiting else warm.calm.set)()

    def _may_take(self) -> bool:
        """Whether there is room for one more. A server that drains begins nothing."""
        return not self._services.draining and len(self._tasks) < self._services.settings.workers.sync_concurrency

    async def _take(self) -> bool:
        """Take one sync, and have it run; False when none is due."""
        services = self._services
        now = services.clock()
        async with services.database.read() as connection:
            waiting = await worker_syncs.waiting(connection, now)
        busy = Counter(self._tasks.values())
        self._avoided = {project: until for project, until in self._avoided.items() if until > now}
        open_to = [project for project in waiting if project not in self._avoided]
        for project in sorted(open_to, key=lambda one: (busy[one], self._turns.get(one, 0), waiting[one])):
            if services.worker_rates is not None and (wait_ms := services.worker_rates.sync(project, now)):
                self._avoided[project] = now + wait_ms
                continue
            try:
                async with services.database.write() as connection:
                    taken = await worker_syncs.take(connection, project, now, now + LEASE_MS, services.sealer)
                    job = await begin(services, connection, taken, now) if taken is not None else None
            except UnavailableError:
                raise
            except Exception:
                log.exception("syncs of project %s could not be taken", project)
                self._avoided[project] = now + AVOIDED_MS
                continue
            if taken is None:
                continue
            self._turn += 1
            self._turns[project] = self._turn
            if job is not None:
                task = asyncio.create_task(execute(services, job))
                self._tasks[task] = project
                services.working.add(task)
                task.add_done_callback(self._ended)
            return True
        return False

    def _ended(self, task: asyncio.Task[None]) -> None:
        project = self._tasks.pop(task)
        self._services.working.discard(task)
        if project not in self._tasks.values() and len(self._turns) > 10_000:
            self._turns.pop(project, None)
        self._services.syncs_due.set()


# -- one run -----------------------------------------------------------------------------------------


async def begin(services: Services, connection: AsyncConnection, taken: Sync, now: int) -> Job | None:
    """Decide the run of a sync that was taken; None when there is nothing to run, and it was given back."""
    scope, sealer = taken.scope, services.sealer
    state = taken.state
    if state.running is not None:
        # Decided, and nobody is at it: either it waited for this turn, or whoever was is gone.
        state, _ = advance(state, Restart(now_ms=now))
    mark = await worker_syncs.next_mark(connection, scope, taken.worker_id, now)
    found = await _serving(services, connection, scope, taken) if mark is not None else None
    if found is None or mark is None:
        await worker_syncs.retire(connection, taken)
        return None
    worker, deployment, manifest, capability = found
    state, decisions = advance(state, Due(now_ms=now, mark=mark))
    if not decisions:
        await worker_syncs.release(connection, taken, state, sealer)
        return None
    run = decisions[0]
    assert isinstance(run, Run)
    last = await worker_syncs.pacers(connection, scope, taken.worker_id)
    running = await worker_syncs.executing(connection, scope, taken.worker_id, now)
    sent = pacers.start(manifest.pacers, last, running, now)
    await worker_syncs.put(connection, taken, state, sealer)
    return Job(taken, run, worker, deployment, manifest, capability, context(run.cursor, sent))


def context(cursor: Any, sent: dict[str, Any]) -> dict[str, Any]:
    """What a run of a sync is given. A cursor of None is none."""
    return {"pacers": sent} if cursor is None else {"state": cursor, "pacers": sent}


async def _serving(
    services: Services, connection: AsyncConnection, scope: Scope, taken: Sync
) -> tuple[Worker, Deployment, Manifest, Capability] | None:
    worker = await workers_table.find(connection, scope, taken.worker_id)
    if worker is None or worker.deployment_id is None:
        return None
    if await tenants.find_project(connection, taken.team_id, taken.project_id) is None:
        # It is being deleted.
        return None
    deployment = await workers_table.deployment(connection, scope, worker.deployment_id, services.sealer)
    if deployment is None or deployment.manifest is None:
        return None
    try:
        manifest = deployments.manifest_of(deployment)
    except BadRequestError as error:
        log.warning("syncs of worker %s rest until it is deployed again: %s", worker.id, error)
        return None
    capability = manifest.capability(taken.key, "sync") or manifest.capability(taken.key, "ai_connector")
    return (worker, deployment, manifest, capability) if capability is not None else None


async def execute(services: Services, job: Job) -> None:
    """Run, and write what came of it. When this is canceled the sync is given back, to be run again."""
    running = asyncio.create_task(_outcome(services, job))
    keeping = asyncio.create_task(_keep(services, job))
    try:
        await asyncio.wait({running, keeping}, return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            log.warning("sync %s of worker %s was taken by another process", job.sync.key, job.worker.id)
            return
        await finish(services, job, running.result())
    except asyncio.CancelledError:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        with contextlib.suppress(HutchError):
            await give_back(services, job)
        raise
    except HutchError as error:
        # Its lease ends, and it is run again.
        log.warning("the result of sync %s of worker %s could not be written: %s", job.sync.key, job.worker.id, error)
    finally:
        for task in (running, keeping):
            task.cancel()
        await asyncio.gather(running, keeping, return_exceptions=True)


async def _keep(services: Services, job: Job) -> None:
    """Keep the lease; ends when it is lost."""
    while True:
        await asyncio.sleep(HEARTBEAT_S)
        with contextlib.suppress(UnavailableError):
            async with services.database.write() as connection:
                if not await worker_syncs.prolong(connection, job.sync, services.clock() + LEASE_MS):
                    return


async def _outcome(services: Services, job: Job) -> Outcome:
    try:
        scope, worker = job.sync.scope, job.worker
        found = await runs.outcome(services, scope, worker, job.deployment, job.manifest, job.capability, job.context)
        return tables.converted(job.manifest, job.capability, found)
    except HutchError as error:
        after = error.retry_after_s * 1000 if error.retry_after_s is not None else None
        return Failure(name=error.code, message=error.message, retry_after_ms=after, made_here=True)
    except Exception:
        log.exception("a run of sync %s of worker %s failed", job.sync.key, job.worker.id)
        return Failure(name="InternalError", message="The server failed to run it. Its log says why.", made_here=True)


async def finish(services: Services, job: Job, outcome: Outcome) -> None:
    """Write what came of a run. Raises `UnavailableError` when the database does not answer for long."""
    for number in range(TRIES):
        try:
            await finish_once(services, job, outcome)
        except UnavailableError:
            if number == TRIES - 1:
                raise
            await asyncio.sleep(number + 1)
        except Exception:
            if isinstance(outcome, Failure):
                raise
            log.exception("what sync %s of worker %s returned could not be written", job.sync.key, job.worker.id)
            message = "What it returned could not be written. The server's log says why."
            outcome = Failure(name="WriteError", message=message, made_here=True)
        else:
            return


async def finish_once(services: Services, job: Job, outcome: Outcome) -> None:
    """The same in one attempt. What comes of a run that somebody else has taken meanwhile is dropped."""
    scope, worker_id, sealer = job.sync.scope, job.worker.id, services.sealer
    now = services.clock()
    async with services.database.write() as connection:
        held = await worker_syncs.held(connection, job.sync, sealer)
        mark = await worker_syncs.next_mark(connection, scope, worker_id, now) if held is not None else None
        if held is None or mark is None:
            return
        jitter = random.random()  # noqa: S311 - it spreads retries
        event = Finished(run=job.run.run, outcome=outcome, now_ms=now, mark=mark, jitter=jitter)
        state, decisions = advance(held.state, event)
        warnings = list(held.warnings)
        changed = 0
        for decision in decisions:
            if isinstance(decision, Apply):
                warnings = await _apply(connection, scope, worker_id, decision, now)
                changed += len(decision.changes)
        last = await worker_syncs.pacers(connection, scope, worker_id)
        if isinstance(outcome, Success) and isinstance(outcome.value, Batch):
            last = pacers.succeeded(job.manifest.pacers, last, outcome.value.pacers, now)
        else:
            last = pacers.failed(job.manifest.pacers, last, now)
        await worker_syncs.put_pacers(connection, scope, worker_id, last)
        await worker_syncs.release(connection, held, state, sealer, warnings=warnings)
    if services.worker_rates is not None and scope.project_id is not None:
        services.worker_rates.changed(scope.project_id, changed, now)


async def _apply(connection: AsyncConnection, scope: Scope, worker_id: str, decision: Apply, now: int) -> list[str]:
    known = await worker_rows.databases(connection, scope, worker_id)
    declared = {key for key, item in known.items() if item.declared}
    writes, warnings = merged(decision.changes, decision.database or "", declared)
    written = await worker_rows.write(connection, scope, worker_id, known, writes, mark=decision.mark, now=now)
    if decision.sweep_before is not None and decision.database in declared:
        assert decision.database is not None
        await worker_rows.sweep(connection, scope, worker_id, known, decision.database, decision.sweep_before)
    warnings += written.warnings
    more = len(warnings) - MAX_WARNINGS
    return warnings if more <= 0 else [*warnings[:MAX_WARNINGS], f"{more} more."]


async def give_back(services: Services, job: Job) -> None:
    """Have somebody else run it."""
    async with services.database.write() as connection:
        held = await worker_syncs.held(connection, job.sync, services.sealer)
        if held is not None:
            state, _ = advance(held.state, Restart(now_ms=services.clock()))
            await worker_syncs.release(connection, held, state, services.sealer)


# -- what people ask for -----------------------------------------------------------------------------


async def find(services: Services, scope: Scope, worker_id: str, key: str) -> Sync:
    """Raises `NotFoundError`."""
    async with services.database.read() as connection:
        found = await worker_syncs.find(connection, scope, worker_id, key, services.sealer)
    if found is None:
        raise _unknown(key)
    return found


def _unknown(key: str) -> NotFoundError:
    return NotFoundError("not_found", f"The worker has no sync '{key[:64]}'.")


async def tell(
    services: Services, connection: AsyncConnection, scope: Scope, worker_id: str, key: str, event: sync.Event
) -> Sync:
    """Have an event happen to a sync. Raises `NotFoundError`. Set `services.syncs_due` when the transaction is over."""
    found = await worker_syncs.find(connection, scope, worker_id, key, services.sealer, lock=True)
    if found is None:
        raise _unknown(key)
    state, decisions = advance(found.state, event)
    assert not decisions, "events from outside decide nothing"
    await worker_syncs.put(connection, found, state, services.sealer)
    return found


async def settled(services: Services, scope: Scope, before: Sync, most_s: float) -> Sync:
    """The sync once a cycle was completed since `before`, or failed and waits; or after `most_s` as it is then."""
    end = asyncio.get_running_loop().time() + most_s
    stats = before.state.stats
    while True:
        found = await find(services, scope, before.worker_id, before.key)
        state = found.state
        fresh = state.stats.cycles > stats.cycles or state.stats.last_failed_ms != stats.last_failed_ms
        idle = state.running is None and not state.triggered
        if (fresh and idle and (state.cycle is None or state.failures)) or asyncio.get_running_loop().time() > end:
            return found
        await asyncio.sleep(WATCH_S)


async def preview(services: Services, scope: Scope, worker: Worker, key: str, cursor: Any) -> dict[str, Any]:
    """Run a sync once from a cursor, None for the one where it is, and write nothing: what it returned. Raises `RunFailedError`,
    `HutchError`."""
    found = await find(services, scope, worker.id, key)
    serving = await deployments.serving(services, scope, worker)
    if serving is None:
        raise ConflictError("worker_not_deployed", "The worker has no deployment that serves. Deploy it.")
    async with services.database.read() as connection:
        last = await worker_syncs.pacers(connection, scope, worker.id)
        running = await worker_syncs.executing(connection, scope, worker.id, services.clock())
    sent = pacers.start(serving[1].pacers, last, running + 1, services.clock())
    given = context(found.state.cursor if cursor is None else cursor, sent)
    value: dict[str, Any] = await runs.run(services, scope, worker, key, given)
    return value

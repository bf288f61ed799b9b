"""What workers are to do, done: jobs of the queue are claimed, run in sandboxes, and settled.

    enqueue ─▶ storage.worker_jobs ─▶ claim, within `workers.run_concurrency`, the project first of which the fewest run
                    ▲                    │ renewed while it goes on
                    │                    ▼
                    └── again later ◀── run ──▶ done, refused, dead: with the webhook's count in one transaction

An attempt counts once its program is about to start. What fails before is ours (no host, no room, a limit) and is tried again
without counting, up to `MAX_WAITS` times in a row. A lease that is over means that its process is gone: the sandbox it left is
ended, and if the program had started, that was an attempt that was lost. So a delivery is handled at least once, always with the
same id, and a trigger without retries at most once.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import logging
from typing import Any

import msgspec

from hutch import ids
from hutch.api.sandboxes import delete, find_with_session
from hutch.api.services import Services
from hutch.control.records import Scope
from hutch.errors import ConflictError, HutchError, RateLimitedError
from hutch.storage import sessions
from hutch.storage import webhooks as webhook_rows
from hutch.storage import worker_jobs as rows
from hutch.storage import workers as worker_rows
from hutch.storage.worker_jobs import DEAD, DONE, LEASE_MS, REFUSED, Job
from hutch.storage.workers import Run
from hutch.workers import runs, webhooks
from hutch.workers.outcome import Failure, Outcome, Success
from hutch.workers.runs import How

log = logging.getLogger(__name__)

WEBHOOK, AUTOMATION = "webhook", "automation"
PRIORITIES = {WEBHOOK: 0, AUTOMATION: 1}
"""Somebody waits for what an automation does."""
POLL_S = 1.0
"""How long it takes at most until jobs are seen that another process queued."""
RENEW_S = LEASE_MS / 3000
MAX_WAITS = 16
FIRST_WAIT_MS, LONGEST_WAIT_MS = 1000, 300_000
LOST = Failure(name="RunLostError", message="The server that ran it ended before there was a result.", made_here=True)


class LeaseLost(ConflictError):
    """Somebody else has the job."""

    def __init__(self) -> None:
        super().__init__("lease_lost", "Another process has taken over what is done here.")


async def enqueue(
    services: Services,
    scope: Scope,
    worker_id: str,
    kind: str,
    key: str,
    content: Any,
    *,
    idempotency_key: str | None = None,
    retries: int = 0,
) -> tuple[Job, bool]:
    """A job, and whether it is a new one: it isn't when the worker has one of the same idempotency key and input. Raises
    `ConflictError` for the same key with another input, and `RateLimitedError` when too much is queued."""
    now = services.clock()
    digest = hashlib.sha256(msgspec.json.encode([kind, key, content], order="sorted")).hexdigest()
    async with services.database.write() as connection:
        most = services.settings.workers.max_queued
        if most and await rows.waiting(connection, scope) >= most:
            raise RateLimitedError(
                "rate_limited", f"The project has {most} jobs in its queue (workers.max_queued).", retry_after_s=60
            )
        job = await rows.add(
            connection,
            scope,
            services.sealer,
            now,
            job_id=ids.worker_id(),
            worker_id=worker_id,
            kind=kind,
            key=key,
            content=content,
            input_hash=digest,
            idempotency_key=idempotency_key,
            priority=PRIORITIES[kind],
            retries=retries,
        )
        found = job
        if found is None:
            assert idempotency_key is not None
            found = await rows.of_key(connection, scope, worker_id, idempotency_key)
    assert found is not None
    if found.input_hash != digest:
        raise ConflictError("idempotency_key_reused", "This idempotency key came with another event before. Use a new one.")
    if services.jobs is not None:
        services.jobs.due.set()
    return found, job is not None


class Jobs:
    """Those that this process runs."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._owner = services.process_id
        self._tasks: set[asyncio.Task[None]] = set()
        self.due = asyncio.Event()
        """Set when there is something new."""

    async def follow(self) -> None:
        """Run what is due, for ever."""
        try:
            while True:
                self.due.clear()
                try:
                    await self._claim()
                    wait_s = await self._wait_s()
                except HutchError as error:
                    log.warning("the queue of workers can't be read: %s", error.message)
                    wait_s = POLL_S
                with contextlib.suppress(TimeoutError):
                    # Not `wait_for`: in Python 3.11 it forgets a cancellation that comes together with the event.
                    async with asyncio.timeout(wait_s):
                        await self.due.wait()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _claim(self) -> None:
        """As many as there is room for, one of each project in turn."""
        services, limited = self._services, set[str]()
        most = services.settings.workers.run_concurrency
        while len(self._tasks) < most and not services.draining:
            async with services.database.read() as connection:
                projects = [one for one in await rows.due_projects(connection, services.clock()) if one not in limited]
            if not projects:
                return
            for project_id in projects:
                if len(self._tasks) >= most:
                    return
                now = services.clock()
                if services.worker_rates is not None and services.worker_rates.run(project_id, now):
                    limited.add(project_id)
                    continue
                async with services.database.write() as connection:
                    job = await rows.claim(connection, project_id, self._owner, now)
                if job is None:
                    limited.add(project_id)
                    continue
                self._begin(job)

    def _begin(self, job: Job) -> None:
        task = asyncio.create_task(self._whole(job))
        self._tasks.add(task)
        self._services.working.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._services.working.discard(task)
            self.due.set()

        task.add_done_callback(ended)

    async def _wait_s(self) -> float:
        async with self._services.database.read() as connection:
            now = self._services.clock()
            later = await rows.next_due(connection, now)
        return POLL_S if later is None else min(POLL_S, max(0.01, (later - now) / 1000))

    # -- one job -----------------------------------------------------------------------------------

    async def _whole(self, job: Job) -> None:
        work = asyncio.create_task(_Attempt(self._services, job).run())
        try:
            while not (await asyncio.wait((work,), timeout=RENEW_S))[0]:
                if not await self._renew(job):
                    log.warning("job %s of worker %s was taken over by another process", job.id, job.worker_id)
                    return
            work.result()
        except asyncio.CancelledError:
            # The server ends: whoever comes next need not wait until the lease is over.
            await self._end(work)
            with contextlib.suppress(HutchError):
                async with self._services.database.write() as connection:
                    await rows.renew(connection, job, self._services.clock() - LEASE_MS)
            raise
        except LeaseLost as error:
            log.warning("job %s of worker %s: %s", job.id, job.worker_id, error.message)
        except Exception:
            # The lease runs out, and the job is claimed again.
            log.exception("job %s of worker %s can't be settled", job.id, job.worker_id)
        finally:
            await self._end(work)

    @staticmethod
    async def _end(work: asyncio.Task[None]) -> None:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)

    async def _renew(self, job: Job) -> bool:
        try:
            async with self._services.database.write() as connection:
                return await rows.renew(connection, job, self._services.clock())
        except HutchError as error:
            log.warning("the lease of job %s can't be renewed: %s", job.id, error.message)
            return True


class _Attempt:
    """One claim of a job, from what the one before left to what came of it."""

    def __init__(self, services: Services, job: Job) -> None:
        self._services = services
        self._job = job
        self._attempt = job.attempts
        self._began = False

    async def run(self) -> None:
        job, services = self._job, self._services
        if job.run_id is not None:
            await self._tidy(job.run_id)
        if job.began:
            await self._settle(LOST)
            return
        async with services.database.read() as connection:
            worker = await worker_rows.find(connection, job.scope, job.worker_id)
            content, _ = await rows.content(connection, job.scope, job.id, services.sealer)
        if worker is None:
            return
        how = How(job_id=job.id, queued_at=job.created_at, begins=self._begins)
        try:
            done = await runs.execute(services, job.scope, worker, job.key, context_of(job, content), how=how)
        except LeaseLost:
            raise
        except HutchError as error:
            if self._began:
                await self._settle(msgspec.structs.replace(LOST, message=error.message))
            else:
                await self._wait(error)
            return
        await self._settle(done.outcome)

    async def _begins(self, run: Run) -> None:
        now = self._services.clock()
        async with self._services.database.write() as connection:
            if not await rows.begin(connection, self._job, run.id, now):
                raise LeaseLost
        self._began, self._attempt = True, self._job.attempts + 1

    async def _tidy(self, run_id: str) -> None:
        """End what the process of the lease before left: its sandbox runs on, and its run is not closed."""
        services, job = self._services, self._job
        async with services.database.read() as connection:
            found = await worker_rows.find_run(connection, job.scope, job.worker_id, run_id, services.sealer)
        if found is None:
            return
        run, _, result = found
        if run.session_id is not None and result is None:
            await end_sandbox(services, job.scope, run.session_id)
        if result is None:
            sealer = services.sealer
            error = {"_tag": "error", "error": msgspec.to_builtins(LOST)}
            async with services.database.write() as connection:
                await worker_rows.end_run(
                    connection,
                    job.scope,
                    run,
                    services.clock(),
                    exit_code=runs.FAILED,
                    result=sealer.seal(error, f"{run.id}/result"),
                    logs=sealer.seal(f"\nhutch: {LOST.message}\n", run.id),
                )

    async def _wait(self, error: HutchError) -> None:
        """There was no attempt."""
        job, waits = self._job, self._job.waits + 1
        if waits > MAX_WAITS:
            await self._write(DEAD, Failure(name=error.code, message=error.message, made_here=True))
            return
        wait_ms = max(min(FIRST_WAIT_MS * 2**waits, LONGEST_WAIT_MS), (error.retry_after_s or 0) * 1000)
        async with self._services.database.write() as connection:
            await rows.put_back(connection, job, self._services.clock() + wait_ms, waited=True)

    async def _settle(self, outcome: Outcome) -> None:
        if self._job.kind == WEBHOOK:
            await self._settle_delivery(outcome)
        elif isinstance(outcome, Success):
            await self._write(DONE, outcome)
        elif outcome.retryable and self._attempt <= self._job.retries:
            delay_ms = max(webhooks.RETRY_DELAYS_MS[self._attempt - 1], outcome.retry_after_ms or 0)
            await self._write(rows.QUEUED, outcome, delay_ms=delay_ms)
        else:
            await self._write(DEAD, outcome)

    async def _settle_delivery(self, outcome: Outcome) -> None:
        job = self._job
        async with self._services.database.write() as connection:
            webhook = await webhook_rows.find(connection, job.scope, job.worker_id, job.key, changing=True)
            state = webhook.state if webhook is not None else webhooks.WebhookState()
            found = webhooks.executed(state, outcome, self._attempt)
            status = _STATUSES[found.next]
            if await self._written(connection, status, outcome, found.delay_ms) and found.state != state:
                await webhook_rows.save(connection, job.scope, job.worker_id, job.key, found.state)

    async def _write(self, status: str, outcome: Outcome, *, delay_ms: int = 0) -> None:
        async with self._services.database.write() as connection:
            await self._written(connection, status, outcome, delay_ms)

    async def _written(self, connection: Any, status: str, outcome: Outcome, delay_ms: int) -> bool:
        job, now = self._job, self._services.clock()
        result = self._services.sealer.seal(shown(outcome), f"{job.id}/result")
        if status == rows.QUEUED:
            return await rows.put_back(connection, job, now + delay_ms, result)
        return await rows.finish(connection, job, status, result, now)


_STATUSES = {
    webhooks.Next.DONE: DONE,
    webhooks.Next.RETRY: rows.QUEUED,
    webhooks.Next.REFUSED: REFUSED,
    webhooks.Next.DEAD: DEAD,
}


def shown(outcome: Outcome) -> dict[str, Any]:
    """An outcome as it is kept: `{"status": "success"}`, or the error with its name and message."""
    if isinstance(outcome, Success):
        return {"status": "success"}
    return {"status": "error", "error": {"name": outcome.name, "message": outcome.message}}


def context_of(job: Job, content: Any) -> Any:
    """What a capability is called with. Of a delivery the bytes of the request are kept, of a trigger its event."""
    if job.kind != WEBHOOK:
        return content
    raw = base64.b64decode(content["raw"])
    return [webhooks.event(job.id, content["method"], content["headers"].items(), raw)]


def kept(method: str, headers: list[tuple[str, str]], raw: bytes) -> dict[str, Any]:
    """A request as it is kept until it is delivered."""
    return {"method": method, "headers": webhooks.header_map(headers), "raw": base64.b64encode(raw).decode()}


async def end_sandbox(services: Services, scope: Scope, session_id: str) -> None:
    """End the sandbox of a run that nobody follows any more."""
    async with services.database.read() as connection:
        found = await sessions.find_many(connection, scope, [session_id], services.sealer)
    if session_id not in found:
        return
    try:
        record, session = await find_with_session(services, scope, found[session_id].sandbox_name)
        await delete(services, scope, record, session)
    except HutchError as error:
        log.warning("the sandbox of a lost run could not be ended: %s", error.message)


async def follow(services: Services) -> None:
    """Run the queue of this process."""
    assert services.jobs is not None
    await services.jobs.follow()

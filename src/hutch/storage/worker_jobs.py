"""The queue of what workers are to do: deliveries of webhooks and triggers of automations.

    add ─▶ queued ──claim──▶ running ──finish──▶ done, refused, dead
             ▲                  │
             └── put_back ──────┤ to be tried again, or not now
             └── a lease that is over is claimed by the next

Whoever claims a job has it until `lease_until`, and renews that. Every claim counts `fence` up, and each later change names the
fence that it was claimed with: a process that was stopped for longer than its lease changes nothing any more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import ColumnElement, and_, delete, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from hutch.control.records import Scope
from hutch.storage.models import JobModel
from hutch.storage.scoping import within
from hutch.storage.sealing import Sealer

QUEUED, RUNNING = "queued", "running"
DONE, REFUSED, DEAD = "done", "refused", "dead"
ENDED = (DONE, REFUSED, DEAD)
LEASE_MS = 30_000


@dataclass(frozen=True, slots=True)
class Job:
    """`retries`: how often it is tried again at most; `attempts`: how often its program was started; `waits`: how often in
    a row it was put back since, without that. `fence` is that of the claim it was read with."""

    number: int
    id: str
    worker_id: str
    team_id: str
    project_id: str
    kind: str
    key: str
    status: str
    priority: int
    idempotency_key: str | None
    input_hash: str
    attempts: int
    waits: int
    retries: int
    not_before: int
    lease_owner: str | None
    lease_until: int | None
    fence: int
    began: bool
    run_id: str | None
    created_at: int
    ended_at: int | None

    @property
    def scope(self) -> Scope:
        return Scope(self.team_id, self.project_id)


_JOB = tuple(getattr(JobModel, name) for name in Job.__slots__)


async def add(
    connection: AsyncConnection,
    scope: Scope,
    sealer: Sealer,
    now: int,
    *,
    job_id: str,
    worker_id: str,
    kind: str,
    key: str,
    content: Any,
    input_hash: str,
    idempotency_key: str | None = None,
    priority: int = 0,
    retries: int = 0,
) -> Job | None:
    """A new job; None when the worker has one of that idempotency key already."""
    values: dict[str, Any] = {
        "id": job_id,
        "worker_id": worker_id,
        "team_id": scope.team_id,
        "project_id": scope.project_id,
        "kind": kind,
        "key": key,
        "status": QUEUED,
        "priority": priority,
        "idempotency_key": idempotency_key,
        "input": sealer.seal(content, f"{job_id}/input"),
        "input_hash": input_hash,
        "attempts": 0,
        "waits": 0,
        "retries": retries,
        "not_before": now,
        "fence": 0,
        "began": False,
        "created_at": now,
    }
    try:
        async with connection.begin_nested():
            await connection.execute(insert(JobModel).values(**values))
    except IntegrityError:
        if idempotency_key is None or await of_key(connection, scope, worker_id, idempotency_key) is None:
            raise
        return None
    return await find(connection, scope, worker_id, job_id)


async def find(connection: AsyncConnection, scope: Scope, worker_id: str, job_id: str) -> Job | None:
    query = select(*_JOB).where(*within(scope, JobModel), JobModel.worker_id == worker_id, JobModel.id == job_id)
    row = (await connection.execute(query)).first()
    return Job(*row) if row is not None else None


async def of_key(connection: AsyncConnection, scope: Scope, worker_id: str, idempotency_key: str) -> Job | None:
    """The job that a worker has of an idempotency key."""
    query = select(*_JOB).where(
        *within(scope, JobModel), JobModel.worker_id == worker_id, JobModel.idempotency_key == idempotency_key
    )
    row = (await connection.execute(query)).first()
    return Job(*row) if row is not None else None


async def content(connection: AsyncConnection, scope: Scope, job_id: str, sealer: Sealer) -> tuple[Any, Any]:
    """A job's input and its result; None for what there is not."""
    query = select(JobModel.input, JobModel.result).where(*within(scope, JobModel), JobModel.id == job_id)
    row = (await connection.execute(query)).first()
    if row is None:
        return None, None
    result = sealer.open(row[1], f"{job_id}/result") if row[1] is not None else None
    return sealer.open(row[0], f"{job_id}/input"), result


async def page(
    connection: AsyncConnection,
    scope: Scope,
    worker_id: str,
    *,
    kind: str,
    key: str | None,
    status: str | None,
    before: int | None,
    limit: int,
) -> list[Job]:
    """Newest first; those whose number is below `before`."""
    conditions = [*within(scope, JobModel), JobModel.worker_id == worker_id, JobModel.kind == kind]
    if key is not None:
        conditions.append(JobModel.key == key)
    if status is not None:
        conditions.append(JobModel.status == status)
    if before is not None:
        conditions.append(JobModel.number < before)
    query = select(*_JOB).where(*conditions).order_by(JobModel.number.desc()).limit(limit)
    return [Job(*row) for row in await connection.execute(query)]


async def waiting(connection: AsyncConnection, scope: Scope) -> int:
    """How many of a project are queued."""
    query = select(func.count()).select_from(JobModel).where(*within(scope, JobModel), JobModel.status == QUEUED)
    return int((await connection.execute(query)).scalar_one())


async def again(connection: AsyncConnection, scope: Scope, worker_id: str, job_id: str, now: int) -> bool:
    """Queue a job that is over once more, with all its attempts; False when it isn't over."""
    statement = update(JobModel).where(
        *within(scope, JobModel), JobModel.worker_id == worker_id, JobModel.id == job_id, JobModel.status.in_(ENDED)
    )
    fresh = {"status": QUEUED, "attempts": 0, "waits": 0, "not_before": now, "ended_at": None, "result": None, "began": False}
    return (await connection.execute(statement.values(**fresh))).rowcount > 0


# -- claims ------------------------------------------------------------------------------------------


def _due(now: int) -> ColumnElement[bool]:
    waits = and_(JobModel.status == QUEUED, JobModel.not_before <= now)
    return or_(waits, and_(JobModel.status == RUNNING, JobModel.lease_until <= now))


async def due_projects(connection: AsyncConnection, now: int) -> list[str]:
    """Projects with jobs that are due, those first of which the fewest run."""
    running = (
        select(JobModel.project_id, func.count().label("count"))
        .where(JobModel.status == RUNNING, JobModel.lease_until > now)
        .group_by(JobModel.project_id)
        .subquery()
    )
    oldest = func.min(JobModel.number)
    query = (
        select(JobModel.project_id)
        .outerjoin(running, running.c.project_id == JobModel.project_id)
        .where(_due(now))
        .group_by(JobModel.project_id, running.c.count)
        .order_by(func.coalesce(running.c.count, 0), oldest)
    )
    return list((await connection.execute(query)).scalars())


async def claim(connection: AsyncConnection, project_id: str, owner: str, now: int) -> Job | None:
    """The next job of a project, which is `owner`'s from now on. None when there is none that somebody else has not taken.
    `began` and `run_id` of what is returned are those of the lease before."""
    query = select(*_JOB).where(JobModel.project_id == project_id, _due(now))
    query = query.order_by(JobModel.priority.desc(), JobModel.number).limit(1).with_for_update(skip_locked=True)
    row = (await connection.execute(query)).first()
    if row is None:
        return None
    job = Job(*row)
    taken = replace(job, status=RUNNING, lease_owner=owner, lease_until=now + LEASE_MS, fence=job.fence + 1)
    changed = {name: getattr(taken, name) for name in ("status", "lease_owner", "lease_until", "fence")}
    statement = update(JobModel).where(JobModel.number == job.number, JobModel.fence == job.fence, _due(now))
    if (await connection.execute(statement.values(**changed, began=False))).rowcount == 0:
        return None
    return taken


def _mine(job: Job) -> tuple[ColumnElement[bool], ...]:
    return JobModel.id == job.id, JobModel.status == RUNNING, JobModel.fence == job.fence


async def renew(connection: AsyncConnection, job: Job, now: int) -> bool:
    """False when somebody else has it, or it is gone."""
    statement = update(JobModel).where(*_mine(job)).values(lease_until=now + LEASE_MS)
    return (await connection.execute(statement)).rowcount > 0


async def begin(connection: AsyncConnection, job: Job, run_id: str, now: int) -> bool:
    """Its program is about to start: that is an attempt. False when somebody else has it."""
    values = {"began": True, "attempts": job.attempts + 1, "waits": 0, "run_id": run_id, "lease_until": now + LEASE_MS}
    return (await connection.execute(update(JobModel).where(*_mine(job)).values(**values))).rowcount > 0


async def put_back(
    connection: AsyncConnection, job: Job, not_before: int, result: bytes | None = None, *, waited: bool = False
) -> bool:
    """To be claimed again, not before a time; `waited` when its program was not started. False when somebody else has it."""
    values: dict[str, Any] = {
        "status": QUEUED,
        "not_before": not_before,
        "lease_owner": None,
        "lease_until": None,
        "began": False,
    }
    if result is not None:
        values["result"] = result
    if waited:
        values["waits"] = job.waits + 1
    return (await connection.execute(update(JobModel).where(*_mine(job)).values(**values))).rowcount > 0


async def finish(connection: AsyncConnection, job: Job, status: str, result: bytes, now: int) -> bool:
    """It is over. False when somebody else has it: then nothing is written."""
    values = {"status": status, "result": result, "ended_at": now, "lease_owner": None, "lease_until": None}
    return (await connection.execute(update(JobModel).where(*_mine(job)).values(**values))).rowcount > 0


async def next_due(connection: AsyncConnection, now: int) -> int | None:
    """When the next job is due that is not yet."""
    later = select(func.min(JobModel.not_before)).where(JobModel.status == QUEUED, JobModel.not_before > now)
    expires = select(func.min(JobModel.lease_until)).where(JobModel.status == RUNNING, JobModel.lease_until > now)
    found = [(await connection.execute(query)).scalar() for query in (later, expires)]
    return min((value for value in found if value is not None), default=None)


async def forget(connection: AsyncConnection, before: int) -> int:
    """Delete jobs that ended before a time; how many."""
    return (await connection.execute(delete(JobModel).where(JobModel.ended_at < before))).rowcount

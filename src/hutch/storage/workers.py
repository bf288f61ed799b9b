"""Workers with their secrets, deployments and runs. What may hold secrets is sealed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Row, delete, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import InstrumentedAttribute

from hutch.control.records import Scope
from hutch.errors import BadRequestError
from hutch.storage.models import (
    ButtonModel,
    DeploymentModel,
    JobModel,
    OauthLoginModel,
    OauthTokenModel,
    ProjectModel,
    RunModel,
    WebhookModel,
    WorkerDatabaseModel,
    WorkerModel,
    WorkerPacerModel,
    WorkerPairModel,
    WorkerRowModel,
    WorkerSecretModel,
    WorkerSyncModel,
    WorkerToolModel,
)
from hutch.storage.scoping import within
from hutch.storage.sealing import Sealer

MAX_ID = 64
MAX_SECRETS = 500
RUNS_LISTED = 200
WAITING = ("uploading", "uploaded")
UNFINISHED = (*WAITING, "building", "built")


@dataclass(frozen=True, slots=True)
class Worker:
    id: str
    team_id: str
    project_id: str
    name: str
    deployment_id: str | None
    created_at: int
    updated_at: int
    network: str | None = None
    """What was said about its destinations, as JSON (`hutch.workers.network`)."""


@dataclass(frozen=True, slots=True)
class Deployment:
    id: str
    worker_id: str
    team_id: str
    project_id: str
    status: str
    upload_hash: str
    snapshot_id: str | None
    manifest: dict[str, Any] | None
    created_at: int
    language: str = "node"
    """What it is written in (`hutch.workers.languages`)."""
    network: str | None = None
    """What its project declares about destinations, as JSON."""
    network_confirmed: bool = False


@dataclass(frozen=True, slots=True)
class Run:
    """`exit_code` and `ended_at` None while it goes on."""

    id: str
    worker_id: str
    team_id: str
    project_id: str
    deployment_id: str
    session_id: str | None
    name: str
    exit_code: int | None
    started_at: int
    ended_at: int | None
    job_id: str | None = None
    """What of the queue it is an attempt at."""
    queued_at: int | None = None
    program_at: int | None = None
    """When its sandbox was ready."""
    owner: str | None = None
    """The API process that follows it."""


_WORKER = tuple(getattr(WorkerModel, name) for name in Worker.__slots__)
_DEPLOYMENT = tuple(getattr(DeploymentModel, name) for name in Deployment.__slots__)
_RUN = tuple(getattr(RunModel, name) for name in Run.__slots__)


async def add(connection: AsyncConnection, worker: Worker) -> None:
    await connection.execute(insert(WorkerModel).values(**{name: getattr(worker, name) for name in Worker.__slots__}))


async def find(connection: AsyncConnection, scope: Scope, worker_id: str) -> Worker | None:
    row = (await connection.execute(select(*_WORKER).where(*within(scope, WorkerModel), WorkerModel.id == worker_id))).first()
    return Worker(*row) if row is not None else None


async def all_of(connection: AsyncConnection, scope: Scope) -> list[Worker]:
    """Newest first."""
    query = select(*_WORKER).where(*within(scope, WorkerModel)).order_by(WorkerModel.number.desc())
    return [Worker(*row) for row in await connection.execute(query)]


async def touch(connection: AsyncConnection, scope: Scope, worker_id: str, now: int, **changes: Any) -> None:
    statement = update(WorkerModel).where(*within(scope, WorkerModel), WorkerModel.id == worker_id)
    await connection.execute(statement.values(updated_at=now, **changes))


async def remove(connection: AsyncConnection, scope: Scope, worker_id: str) -> bool:
    """With all that it has; False when there was none. Syncs first: whoever writes for one locks it before the worker."""
    syncing = (WorkerSyncModel, WorkerPacerModel, WorkerRowModel, WorkerPairModel, WorkerDatabaseModel)
    for model in (
        *syncing,
        WorkerSecretModel,
        DeploymentModel,
        RunModel,
        JobModel,
        WebhookModel,
        ButtonModel,
        WorkerToolModel,
        OauthLoginModel,
        OauthTokenModel,
    ):
        await connection.execute(delete(model).where(*within(scope, model), model.worker_id == worker_id))
    statement = delete(WorkerModel).where(*within(scope, WorkerModel), WorkerModel.id == worker_id)
    return (await connection.execute(statement)).rowcount > 0


# -- secrets -----------------------------------------------------------------------------------------


async def put_secrets(
    connection: AsyncConnection, scope: Scope, worker_id: str, secrets: dict[str, str], sealer: Sealer, now: int
) -> None:
    """Store secrets over those of the same keys. Raises `BadRequestError` for too many."""
    mine = (*within(scope, WorkerSecretModel), WorkerSecretModel.worker_id == worker_id)
    await connection.execute(delete(WorkerSecretModel).where(*mine, WorkerSecretModel.key.in_(list(secrets))))
    count = (await connection.execute(select(func.count()).select_from(WorkerSecretModel).where(*mine))).scalar_one()
    if count + len(secrets) > MAX_SECRETS:
        raise BadRequestError("too_many_secrets", f"A worker has at most {MAX_SECRETS} secrets.")
    rows = [
        {
            "worker_id": worker_id,
            "key": key,
            "team_id": scope.team_id,
            "project_id": scope.project_id,
            "value": sealer.seal(value, f"{worker_id}/{key}"),
            "created_at": now,
        }
        for key, value in secrets.items()
    ]
    if rows:
        await connection.execute(insert(WorkerSecretModel), rows)


async def secret_names(connection: AsyncConnection, scope: Scope, worker_id: str) -> list[tuple[str, int]]:
    """Keys with the time of their value."""
    query = select(WorkerSecretModel.key, WorkerSecretModel.created_at).where(
        *within(scope, WorkerSecretModel), WorkerSecretModel.worker_id == worker_id
    )
    return [(row[0], row[1]) for row in await connection.execute(query.order_by(WorkerSecretModel.key))]


async def secrets(connection: AsyncConnection, scope: Scope, worker_id: str, sealer: Sealer) -> dict[str, str]:
    query = select(WorkerSecretModel.key, WorkerSecretModel.value).where(
        *within(scope, WorkerSecretModel), WorkerSecretModel.worker_id == worker_id
    )
    rows = await connection.execute(query.order_by(WorkerSecretModel.key))
    return {key: sealer.open(value, f"{worker_id}/{key}") for key, value in rows}


async def remove_secret(connection: AsyncConnection, scope: Scope, worker_id: str, key: str) -> None:
    mine = (*within(scope, WorkerSecretModel), WorkerSecretModel.worker_id == worker_id)
    await connection.execute(delete(WorkerSecretModel).where(*mine, WorkerSecretModel.key == key))


# -- deployments -------------------------------------------------------------------------------------


def _deployment(row: Row[Any], sealer: Sealer) -> Deployment:
    values = dict(zip(Deployment.__slots__, row, strict=True))
    sealed = values["manifest"]
    values["manifest"] = sealer.open(sealed, values["id"]) if sealed is not None else None
    return Deployment(**values)


async def add_deployment(connection: AsyncConnection, deployment: Deployment) -> None:
    values = {name: getattr(deployment, name) for name in Deployment.__slots__}
    await connection.execute(insert(DeploymentModel).values(**values, updated_at=deployment.created_at))


async def deployment(connection: AsyncConnection, scope: Scope, deployment_id: str, sealer: Sealer) -> Deployment | None:
    query = select(*_DEPLOYMENT).where(*within(scope, DeploymentModel), DeploymentModel.id == deployment_id)
    row = (await connection.execute(query)).first()
    return _deployment(row, sealer) if row is not None else None


async def latest(
    connection: AsyncConnection, scope: Scope, worker_id: str, statuses: tuple[str, ...], sealer: Sealer
) -> Deployment | None:
    """A worker's newest deployment in one of these states."""
    query = select(*_DEPLOYMENT).where(
        *within(scope, DeploymentModel), DeploymentModel.worker_id == worker_id, DeploymentModel.status.in_(statuses)
    )
    row = (await connection.execute(query.order_by(DeploymentModel.number.desc()).limit(1))).first()
    return _deployment(row, sealer) if row is not None else None


async def uploading(connection: AsyncConnection, upload_hash: str, since: int) -> tuple[Scope, str] | None:
    """Whose upload a secret is for that was made after `since`, and the deployment's id. None once something was uploaded."""
    query = select(DeploymentModel.team_id, DeploymentModel.project_id, DeploymentModel.id).where(
        DeploymentModel.upload_hash == upload_hash, DeploymentModel.status == "uploading", DeploymentModel.created_at > since
    )
    row = (await connection.execute(query)).first()
    return (Scope(row[0], row[1]), row[2]) if row is not None else None


async def forget_waiting(connection: AsyncConnection, scope: Scope, worker_id: str, most: int) -> list[str]:
    """Delete a worker's deployments that wait to be uploaded or built, but for the `most` newest; their ids."""
    own = (*within(scope, DeploymentModel), DeploymentModel.worker_id == worker_id, DeploymentModel.status.in_(WAITING))
    newest = select(DeploymentModel.number).where(*own).order_by(DeploymentModel.number.desc()).limit(most)
    statement = delete(DeploymentModel).where(*own, DeploymentModel.number.not_in(newest)).returning(DeploymentModel.id)
    return list((await connection.execute(statement)).scalars())


async def change_deployment(
    connection: AsyncConnection,
    scope: Scope,
    deployment_id: str,
    now: int,
    *,
    status: str,
    before: tuple[str, ...],
    snapshot_id: str | None = None,
    manifest: bytes | None = None,
    owner: str | None = None,
    network: str | None = None,
    language: str | None = None,
) -> bool:
    """Move a deployment on from one of the states `before`; False when it was in none of them."""
    values: dict[str, Any] = {"status": status, "updated_at": now}
    if snapshot_id is not None:
        values["snapshot_id"] = snapshot_id
    if manifest is not None:
        values["manifest"] = manifest
    if owner is not None:
        values["owner"] = owner
    if network is not None:
        values["network"] = network
    if language is not None:
        values["language"] = language
    own = within(scope, DeploymentModel)
    statement = update(DeploymentModel).where(*own, DeploymentModel.id == deployment_id, DeploymentModel.status.in_(before))
    return (await connection.execute(statement.values(**values))).rowcount > 0


async def confirm_network(connection: AsyncConnection, scope: Scope, worker_id: str, deployment_id: str) -> bool:
    """Note that somebody agreed to what a deployment may reach; False when there is none that waits for it."""
    own = (*within(scope, DeploymentModel), DeploymentModel.worker_id == worker_id, DeploymentModel.id == deployment_id)
    statement = update(DeploymentModel).where(*own, DeploymentModel.status.in_(("built", "ready")))
    return (await connection.execute(statement.values(network_confirmed=True))).rowcount > 0


async def reviews(connection: AsyncConnection, scope: Scope) -> bool:
    """Whether deployments of the scope's project that reach more than before wait for somebody to agree."""
    own = ProjectModel.team_id == scope.team_id, ProjectModel.id == scope.project_id
    return bool((await connection.execute(select(ProjectModel.review_workers).where(*own))).scalar_one_or_none())


async def set_reviews(connection: AsyncConnection, scope: Scope, *, review: bool) -> None:
    own = ProjectModel.team_id == scope.team_id, ProjectModel.id == scope.project_id
    await connection.execute(update(ProjectModel).where(*own).values(review_workers=review))


async def snapshots(connection: AsyncConnection, scope: Scope, worker_id: str) -> list[str]:
    """Those that a worker's deployments were built as."""
    own = (*within(scope, DeploymentModel), DeploymentModel.worker_id == worker_id, DeploymentModel.snapshot_id.is_not(None))
    return [str(found) for found in (await connection.execute(select(DeploymentModel.snapshot_id).where(*own))).scalars()]


async def give_up(connection: AsyncConnection, now: int, alive: Collection[str]) -> None:
    """What processes were at that are gone: builds and runs that nobody will finish."""
    building = update(DeploymentModel).where(DeploymentModel.status == "building", _gone(DeploymentModel.owner, alive))
    await connection.execute(building.values(status="failed", updated_at=now))
    running = update(RunModel).where(RunModel.ended_at.is_(None), _gone(RunModel.owner, alive))
    await connection.execute(running.values(ended_at=now, exit_code=1))


def _gone(owner: InstrumentedAttribute[str | None], alive: Collection[str]) -> ColumnElement[bool]:
    return or_(owner.is_(None), owner.not_in(alive))


async def awaited_uploads(connection: AsyncConnection) -> set[str]:
    """Deployments whose archive is still needed."""
    return set((await connection.execute(select(DeploymentModel.id).where(DeploymentModel.status.in_(UNFINISHED)))).scalars())


# -- runs --------------------------------------------------------------------------------------------


async def add_run(connection: AsyncConnection, run: Run, given: bytes | None = None) -> None:
    """`given` is its sealed input."""
    await connection.execute(insert(RunModel).values(**{name: getattr(run, name) for name in Run.__slots__}, input=given))


async def run_began(connection: AsyncConnection, scope: Scope, run: Run) -> None:
    """Its sandbox is ready: write down which that is."""
    statement = update(RunModel).where(*within(scope, RunModel), RunModel.id == run.id)
    await connection.execute(statement.values(session_id=run.session_id, program_at=run.program_at))


async def end_run(
    connection: AsyncConnection, scope: Scope, run: Run, now: int, *, exit_code: int, result: bytes, logs: bytes
) -> None:
    statement = update(RunModel).where(*within(scope, RunModel), RunModel.id == run.id)
    await connection.execute(
        statement.values(ended_at=now, exit_code=exit_code, result=result, logs=logs, session_id=run.session_id)
    )


async def forget_runs(connection: AsyncConnection, before: int, most: int) -> int:
    """Delete runs that ended before a time, at most so many, and none of a job that is not over; how many."""
    open_jobs = select(JobModel.id).where(JobModel.ended_at.is_(None))
    old = select(RunModel.number).where(
        RunModel.ended_at < before, or_(RunModel.job_id.is_(None), RunModel.job_id.not_in(open_jobs))
    )
    numbers = list((await connection.execute(old.order_by(RunModel.ended_at).limit(most))).scalars())
    await connection.execute(delete(RunModel).where(RunModel.number.in_(numbers)))
    return len(numbers)


async def runs(connection: AsyncConnection, scope: Scope, worker_id: str) -> list[Run]:
    """The last ones, newest first."""
    query = select(*_RUN).where(*within(scope, RunModel), RunModel.worker_id == worker_id)
    return [Run(*row) for row in await connection.execute(query.order_by(RunModel.number.desc()).limit(RUNS_LISTED))]


async def page_of_runs(
    connection: AsyncConnection, scope: Scope, worker_id: str, *, name: str | None, before: int | None, limit: int
) -> list[tuple[int, Run]]:
    """Numbers and runs, newest first: those whose number is below `before`."""
    conditions = [*within(scope, RunModel), RunModel.worker_id == worker_id]
    if name is not None:
        conditions.append(RunModel.name == name)
    if before is not None:
        conditions.append(RunModel.number < before)
    query = select(RunModel.number, *_RUN).where(*conditions).order_by(RunModel.number.desc()).limit(limit)
    return [(row[0], Run(*row[1:])) for row in await connection.execute(query)]


async def find_run(
    connection: AsyncConnection, scope: Scope, worker_id: str, run_id: str, sealer: Sealer
) -> tuple[Run, Any, Any] | None:
    """A run, its input as `{"context": …}`, and its result; None for those that there are not."""
    query = select(*_RUN, RunModel.input, RunModel.result).where(
        *within(scope, RunModel), RunModel.worker_id == worker_id, RunModel.id == run_id
    )
    row = (await connection.execute(query)).first()
    if row is None:
        return None
    *fields, given, result = row
    opened = sealer.open(given, f"{run_id}/input") if given is not None else None
    return Run(*fields), opened, sealer.open(result, f"{run_id}/result") if result is not None else None


async def put_run_network(connection: AsyncConnection, scope: Scope, run_id: str, sealed: bytes) -> None:
    """What a run did with the network; written once it is over."""
    statement = update(RunModel).where(*within(scope, RunModel), RunModel.id == run_id)
    await connection.execute(statement.values(network=sealed))


async def run_network(connection: AsyncConnection, scope: Scope, run_id: str, sealer: Sealer) -> dict[str, Any] | None:
    """None where nobody wrote it."""
    query = select(RunModel.network).where(*within(scope, RunModel), RunModel.id == run_id)
    sealed = (await connection.execute(query)).scalar_one_or_none()
    return sealer.open(sealed, f"{run_id}/network") if sealed is not None else None


async def networks(
    connection: AsyncConnection, scope: Scope, worker_id: str, since: int, limit: int, sealer: Sealer
) -> list[dict[str, Any]]:
    """What the last runs did with the network that began at `since` or later, newest first."""
    query = select(RunModel.id, RunModel.network).where(
        *within(scope, RunModel),
        RunModel.worker_id == worker_id,
        RunModel.started_at >= since,
        RunModel.network.is_not(None),
    )
    found = await connection.execute(query.order_by(RunModel.number.desc()).limit(limit))
    return [sealer.open(sealed, f"{run_id}/network") for run_id, sealed in found if sealed is not None]


async def run_logs(connection: AsyncConnection, scope: Scope, worker_id: str, run_id: str, sealer: Sealer) -> str | None:
    """What a run wrote; empty while it goes on, None when there is no such run."""
    query = select(RunModel.logs).where(*within(scope, RunModel), RunModel.worker_id == worker_id, RunModel.id == run_id)
    row = (await connection.execute(query)).first()
    if row is None:
        return None
    return str(sealer.open(row[0], run_id)) if row[0] is not None else ""

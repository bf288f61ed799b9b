"""Runs of workers: what they were given, what came of it, where the time went, what it cost; and the same once more."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from hutch.api import paging, usage
from hutch.api.body import read
from hutch.api.commands import call
from hutch.api.responses import JsonResponse
from hutch.api.routing import PlainRoute, documented
from hutch.api.services import Services
from hutch.api.worker_network import seen_shape
from hutch.api.worker_paths import PAGE, PROJECT, before, next_of, worker_of
from hutch.control import worker_own as own
from hutch.control.permissions import Permission
from hutch.control.records import Scope
from hutch.errors import ConflictError, GoneError, NotFoundError
from hutch.host.protocol import SessionRecord, StopRequest
from hutch.storage import audit_log
from hutch.storage import workers as rows
from hutch.storage.workers import Run, Worker
from hutch.workers import jobs, network, runs
from hutch.workers import serving as deployments
from hutch.workers.runs import VERIFY, How

router = APIRouter(route_class=PlainRoute, tags=["workers"])


@router.get(
    "/hutch/v1/workers/{worker_id}/runs",
    openapi_extra=documented(
        query=PROJECT | PAGE | {"name": "KIND:KEY, such as `tool:greet`"}, answer=own.RunPage, needs=Permission.WORKER_READ
    ),
)
async def list_worker_runs(request: Request, worker_id: str) -> Response:
    """A worker's runs, newest first."""
    services, scope, worker = await worker_of(request, worker_id)
    name, limit = paging.text(request, "name", 300), paging.limit(request)
    query = f"runs {worker.id} {name}"
    async with services.database.read() as connection:
        found = await rows.page_of_runs(connection, scope, worker.id, name=name, before=before(request, query), limit=limit)
    numbers = [number for number, _ in found]
    return JsonResponse({"runs": [_entry(run) for _, run in found], "next": next_of(numbers, limit, query)})


@router.get(
    "/hutch/v1/workers/{worker_id}/runs/{run_id}",
    openapi_extra=documented(query=PROJECT, answer=own.RunRead, needs=Permission.WORKER_LOGS),
)
async def read_worker_run(request: Request, worker_id: str, run_id: str) -> Response:
    """One run with its input, output, log and cost."""
    services, scope, worker = await worker_of(request, worker_id)
    return JsonResponse({"run": await _full(services, scope, worker, run_id)})


@router.post(
    "/hutch/v1/workers/{worker_id}/runs/{run_id}/replay",
    openapi_extra=documented(
        own.Replay,
        query=PROJECT,
        answer=own.RunRead,
        errors=(402, 409, 410, 422),
        example={"network": "deny-all"},
        needs=Permission.WORKER_RUN,
    ),
)
async def replay_worker_run(request: Request, worker_id: str, run_id: str) -> Response:
    """Run a capability once more with the input of a run, and answer the new run. What it returns is not applied; with
    `"network": "deny-all"` it reaches nothing."""
    services, scope, worker = await worker_of(request, worker_id)
    body = await read(request, own.Replay)
    run, given, _ = await _find(services, scope, worker, run_id)
    tag, _, key = run.name.partition(":")
    if given is None or not key:
        raise ConflictError("run_not_replayable", "The run has no recorded input: only runs of capabilities can be repeated.")
    if body.deployment is not None and await deployments.serving(services, scope, worker, body.deployment) is None:
        raise NotFoundError("not_found", f"The worker has no deployment '{body.deployment[:64]}' that can run.")
    how = How(verify=tag.endswith(f"-{VERIFY}"), deployment_id=body.deployment, network=body.network)
    done = await runs.execute(services, scope, worker, key, given["context"], how=how)
    return JsonResponse({"run": await _full(services, scope, worker, done.run.id)})


@router.post(
    "/hutch/v1/workers/{worker_id}/runs/{run_id}/cancel",
    openapi_extra=documented(query=PROJECT, answer=own.RunCanceled, errors=(404, 409), needs=Permission.WORKER_RUN),
)
async def cancel_worker_run(request: Request, worker_id: str, run_id: str) -> Response:
    """End a run that goes on, with its sandbox: it fails with `RunCanceledError`. A trigger or delivery is not repeated; a sync
    goes on after its interval, from the state before the run."""
    services, scope, worker = await worker_of(request, worker_id)
    run, _, _ = await _find(services, scope, worker, run_id)
    if run.ended_at is not None or run.session_id is None:
        why = "is over" if run.ended_at is not None else "has no sandbox yet; ask again in a moment"
        raise ConflictError("run_not_cancelable", f"The run {why}.")
    actor, now = await services.auth.actor(request), services.clock()
    async with services.database.write() as connection:
        await audit_log.append(
            connection, scope.team_id, actor, "worker.run_canceled", worker.id, now, project=scope.project_id, run=run.id
        )
    try:
        await services.apply(await call(services, "session.stop", StopRequest(run.session_id, runs.CANCELED), SessionRecord))
    except GoneError as error:
        raise ConflictError("run_not_cancelable", "The run is over.") from error
    return JsonResponse({"run": _entry(run)})


async def _find(services: Services, scope: Scope, worker: Worker, run_id: str) -> tuple[Run, Any, Any]:
    """Raises `NotFoundError`."""
    async with services.database.read() as connection:
        found = await rows.find_run(connection, scope, worker.id, run_id, services.sealer) if "\0" not in run_id else None
    if found is None:
        raise NotFoundError("not_found", f"Run '{run_id[:64]}' not found.")
    return found


async def _full(services: Services, scope: Scope, worker: Worker, run_id: str) -> dict[str, Any]:
    run, given, result = await _find(services, scope, worker, run_id)
    async with services.database.read() as connection:
        logs = await rows.run_logs(connection, scope, worker.id, run_id, services.sealer)
    shown = _entry(run) | {"phases": _phases(run), "logs": logs or ""}
    if given is not None:
        shown["input"] = given["context"]
    if result is not None:
        shown["output"] = result
    elif run.ended_at is not None:
        shown["output"] = {"_tag": "error", "error": msgspec.to_builtins(jobs.LOST)}
    seen = await network.of_run(services, scope, run)
    if seen is not None:
        shown["network"] = seen_shape(seen)
    if run.session_id is not None:
        used = await usage.of_session(services, scope, run.session_id)
        shown["cost"] = {
            "amount_nano": services.prices.amount_nano(used.quantities),
            "currency": services.prices.currency,
            "final": used.final,
            "receipt": f"/api/hutch/v1/sessions/{run.session_id}/receipt",
        }
    return shown


def _entry(run: Run) -> dict[str, Any]:
    optional = {"ended_at": run.ended_at, "exit_code": run.exit_code, "job_id": run.job_id, "session_id": run.session_id}
    return {
        "id": run.id,
        "name": run.name,
        "deployment_id": run.deployment_id,
        "started_at": run.started_at,
        **{name: value for name, value in optional.items() if value is not None},
    }


def _phases(run: Run) -> dict[str, int]:
    marks = {
        "queued_ms": (run.queued_at, run.started_at),
        "sandbox_ms": (run.started_at, run.program_at),
        "program_ms": (run.program_at, run.ended_at),
    }
    return {name: max(0, end - begin) for name, (begin, end) in marks.items() if begin is not None and end is not None}

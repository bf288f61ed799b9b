"""Workers as Hutch's own API shows them, and their syncs, which it schedules, starts, pauses and resets."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from hutch.api import body as bodies
from hutch.api.responses import JsonResponse
from hutch.api.routing import PlainRoute, documented
from hutch.api.services import Services, services_of
from hutch.control import answers
from hutch.control.permissions import Permission
from hutch.control.records import Scope
from hutch.control.requests import ScheduleSync, TriggerSync
from hutch.control.worker_own import ChangeWorker
from hutch.errors import BadRequestError, NotFoundError
from hutch.storage import audit_log, worker_rows, worker_syncs
from hutch.storage import workers as workers_table
from hutch.storage.worker_rows import Stored
from hutch.storage.worker_syncs import Sync
from hutch.storage.workers import Worker
from hutch.workers import scheduler
from hutch.workers import serving as deployments
from hutch.workers.checks import wrong_schedule
from hutch.workers.manifest import Schedule, public
from hutch.workers.sync import Ask, Event, Pause, Reschedule, Reset, Resume

router = APIRouter(route_class=PlainRoute, tags=["workers"])

MAX_WAIT_S = 600
PROJECT: dict[str, Any] = {"projectId": "Id or slug of the project; default: the token's"}


# -- workers -----------------------------------------------------------------------------------------


@router.get(
    "/hutch/v1/workers", openapi_extra=documented(query=PROJECT, answer=answers.WorkerRecords, needs=Permission.WORKER_READ)
)
async def list_workers(request: Request) -> Response:
    """The project's workers, newest first."""
    services = services_of(request)
    principal = await services.auth.principal(request)
    scope = await services.auth.scope(request, principal, request.query_params.get("projectId"))
    async with services.database.read() as connection:
        found = await workers_table.all_of(connection, scope)
    return JsonResponse({"workers": [_worker(worker) for worker in found]})


@router.get(
    "/hutch/v1/workers/{worker_id}",
    openapi_extra=documented(query=PROJECT, answer=answers.WorkerDetailsRead, errors=(404,), needs=Permission.WORKER_READ),
)
async def get_worker(request: Request, worker_id: str) -> Response:
    """A worker: what it can do, how its syncs do, and its databases."""
    services, scope, worker = await worker_of(request, worker_id)
    serving = await deployments.serving(services, scope, worker)
    async with services.database.read() as connection:
        syncs = await worker_syncs.of_worker(connection, scope, worker.id, services.sealer)
        known = await worker_rows.databases(connection, scope, worker.id)
        counts = await worker_rows.count(connection, scope, worker.id)
    shown = [await _sync(request, services, item) for item in syncs.values() if item.declared]
    answer = {
        **_worker(worker),
        "capabilities": public(serving[1])["capabilities"] if serving is not None else [],
        "syncs": shown,
        "databases": [_database(item, counts.get(item.key, 0)) for item in known.values()],
    }
    return JsonResponse({"worker": answer})


@router.patch(
    "/hutch/v1/workers/{worker_id}",
    openapi_extra=documented(
        ChangeWorker,
        query=PROJECT,
        answer=answers.WorkerRecordRead,
        errors=(404,),
        example={"name": "crm"},
        needs=Permission.WORKER_WRITE,
    ),
)
async def change_worker(request: Request, worker_id: str) -> Response:
    """Give a worker another name. Its id and the addresses of its webhooks stay."""
    services, scope, worker = await worker_of(request, worker_id)
    body = await bodies.read(request, ChangeWorker)
    actor, now = await services.auth.actor(request), services.clock()
    async with services.database.write() as connection:
        await workers_table.touch(connection, scope, worker.id, now, name=body.name)
        await audit_log.append(
            connection, scope.team_id, actor, "worker.renamed", worker.id, now, project=scope.project_id, name=body.name
        )
        found = await workers_table.find(connection, scope, worker.id)
    if found is None:
        raise NotFoundError("not_found", f"Worker '{worker_id[:64]}' not found in this project.")
    return JsonResponse({"worker": _worker(found)})


# -- syncs -------------------------------------------------------------------------------------------


@router.post(
    "/hutch/v1/workers/{worker_id}/syncs/{sync:path}/trigger",
    openapi_extra=documented(
        TriggerSync,
        query=PROJECT,
        answer=answers.SyncTriggered,
        errors=(402, 404, 409, 410, 422),
        example={"wait": True},
        needs=Permission.WORKER_RUN,
    ),
)
async def trigger_sync(request: Request, worker_id: str, sync: str) -> Response:
    """Begin a cycle now, whatever the schedule says, also of a paused sync; with `wait`, answer when it is complete or failed.
    With `preview`, run the sync once, from its state or `context`, and answer what it returned; nothing is written."""
    services, scope, worker = await worker_of(request, worker_id)
    body = await bodies.read(request, TriggerSync)
    if body.preview:
        value = await scheduler.preview(services, scope, worker, sync, body.context)
        more, after = bool(value.get("hasMore")), value.get("nextUserContext")
        return JsonResponse({"preview": {"changes": value["changes"], "has_more": more, "next_context": after}})
    before = await scheduler.find(services, scope, worker.id, sync)
    if body.context is not None:
        raise BadRequestError("bad_request", "Invalid request: `context` is for previews: send `preview` with it.")
    async with services.database.write() as connection:
        await scheduler.tell(services, connection, scope, worker.id, sync, Ask(now_ms=services.clock()))
    services.syncs_due.set()
    found = await scheduler.settled(services, scope, before, MAX_WAIT_S if body.wait else 0)
    return JsonResponse({"sync": await _sync(request, services, found)})


@router.post(
    "/hutch/v1/workers/{worker_id}/syncs/{sync:path}/pause",
    openapi_extra=documented(query=PROJECT, answer=answers.SyncRead, errors=(404,), needs=Permission.WORKER_WRITE),
)
async def pause_sync(request: Request, worker_id: str, sync: str) -> Response:
    """Begin no cycle by schedule any more. A run that goes on is finished."""
    return await _told(request, worker_id, sync, Pause(now_ms=services_of(request).clock()), "worker.sync_paused")


@router.post(
    "/hutch/v1/workers/{worker_id}/syncs/{sync:path}/resume",
    openapi_extra=documented(query=PROJECT, answer=answers.SyncRead, errors=(404,), needs=Permission.WORKER_WRITE),
)
async def resume_sync(request: Request, worker_id: str, sync: str) -> Response:
    """Go on by schedule; a time that was missed meanwhile is due now."""
    return await _told(request, worker_id, sync, Resume(now_ms=services_of(request).clock()), "worker.sync_resumed")


@router.post(
    "/hutch/v1/workers/{worker_id}/syncs/{sync:path}/reset",
    openapi_extra=documented(query=PROJECT, answer=answers.SyncRead, errors=(404,), needs=Permission.WORKER_WRITE),
)
async def reset_sync(request: Request, worker_id: str, sync: str) -> Response:
    """Forget its state and statistics; rows stay. The next cycle begins from nothing."""
    return await _told(request, worker_id, sync, Reset(now_ms=services_of(request).clock()), "worker.sync_reset")


@router.put(
    "/hutch/v1/workers/{worker_id}/syncs/{sync:path}/schedule",
    openapi_extra=documented(
        ScheduleSync,
        query=PROJECT,
        answer=answers.SyncRead,
        errors=(404,),
        example={"schedule": {"type": "cron", "expression": "0 6 * * 1-5", "time_zone": "Europe/Berlin"}},
        needs=Permission.WORKER_WRITE,
    ),
)
async def schedule_sync(request: Request, worker_id: str, sync: str) -> Response:
    """Have a sync run at other times than its program says, whatever is deployed; null is the program's schedule again. What is
    under way, or tried again, goes on."""
    body = await bodies.read(request, ScheduleSync)
    wanted = None
    if body.schedule is not None:
        wanted = Schedule(**body.schedule.model_dump())
        for wrong in wrong_schedule(wanted):
            raise BadRequestError("schedule_invalid", f"Invalid request: `schedule`: {wrong}")
    event = Reschedule(now_ms=services_of(request).clock(), schedule=wanted)
    return await _told(request, worker_id, sync, event, "worker.sync_scheduled")


async def _told(request: Request, worker_id: str, key: str, event: Event, action: str) -> Response:
    services, scope, worker = await worker_of(request, worker_id)
    await tell(request, services, scope, worker, key, event, action)
    return JsonResponse({"sync": await _sync(request, services, await scheduler.find(services, scope, worker.id, key))})


async def tell(request: Request, services: Services, scope: Scope, worker: Worker, key: str, event: Event, action: str) -> None:
    """Have an event happen to a sync, and the audit log know who wanted that. Raises `NotFoundError`."""
    actor, now = await services.auth.actor(request), services.clock()
    async with services.database.write() as connection:
        await scheduler.tell(services, connection, scope, worker.id, key, event)
        await audit_log.append(connection, scope.team_id, actor, action, worker.id, now, project=scope.project_id, sync=key)
    services.syncs_due.set()


# -- common ------------------------------------------------------------------------------------------


async def worker_of(request: Request, worker_id: str) -> tuple[Services, Scope, Worker]:
    """The worker and its project. Its id says which that is to a token for a whole team. Raises `NotFoundError`."""
    services = services_of(request)
    principal = await services.auth.principal(request)
    scope = await services.auth.scope(request, principal, request.query_params.get("projectId"), one=False)
    async with services.database.read() as connection:
        found = await workers_table.find(connection, scope, worker_id)
    if found is None:
        raise NotFoundError("not_found", f"Worker '{worker_id[:64]}' not found in this project.")
    return services, Scope(found.team_id, found.project_id), found


def _worker(worker: Worker) -> dict[str, Any]:
    return present(
        {
            "id": worker.id,
            "name": worker.name,
            "project_id": worker.project_id,
            "deployment_id": worker.deployment_id,
            "created_at": worker.created_at,
            "updated_at": worker.updated_at,
        }
    )


def present(fields: dict[str, Any]) -> dict[str, Any]:
    """Without those that are None: what there is not is absent."""
    return {name: value for name, value in fields.items() if value is not None}


async def _sync(request: Request, services: Services, found: Sync) -> dict[str, Any]:
    """What is said about a sync. Errors and warnings quote what runs wrote, which takes a permission of its own."""
    principal = await services.auth.principal(request)
    quotes = principal.may(Permission.WORKER_LOGS)
    state, stats = found.state, found.state.stats
    executing = found.leased_until is not None and found.leased_until >= services.clock()
    due = worker_syncs.due_at(state)
    fields = {
        "key": found.key,
        "label": str(state.label),
        "executing": executing,
        "paused": state.paused,
        "database": state.config.database,
        "mode": "replace" if state.config.replaces else "incremental",
        "schedule": _schedule(state.schedule),
        "schedule_from": "deployment" if state.override is None else "request",
        "next_run_at": None if executing or due is None else max(due, services.clock()),
        "failures": state.failures,
        "last_error": state.last_error if quotes else None,
        "warnings": list(found.warnings) if quotes else [],
        "stats": present(
            {
                "last_succeeded_at": stats.last_succeeded_ms,
                "last_completed_at": stats.last_completed_ms,
                "last_failed_at": stats.last_failed_ms,
                "recent_run_durations_ms": list(stats.recent_run_durations_ms),
                "total_upserts": stats.total_upserts,
                "total_deletes": stats.total_deletes,
                "cycle_upserts": stats.cycle_upserts,
                "cycle_deletes": stats.cycle_deletes,
                "cycles": stats.cycles,
            }
        ),
    }
    return present(fields)


def _schedule(schedule: Any) -> dict[str, Any]:
    return present(
        {
            "type": schedule.type,
            "interval_ms": schedule.interval_ms,
            "expression": schedule.expression,
            "time_zone": schedule.time_zone,
        }
    )


def _database(stored: Stored, count: int) -> dict[str, Any]:
    definition = stored.definition
    properties = msgspec.to_builtins(definition.schema.properties)
    return {
        "key": stored.key,
        "title": stored.title,
        "declared": stored.declared,
        "primary_key": definition.primary_key_property,
        "properties": properties,
        "added_options": stored.options,
        "rows": count,
    }

"""Workers as Hutch's own API shows them: their syncs, which it starts, pauses and resets, and the databases that they write."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from hutch.api import body as bodies
from hutch.api import paging
from hutch.api.responses import JSON_TYPE, JsonResponse, StreamResponse
from hutch.api.routing import Answer, PlainRoute, documented
from hutch.api.services import Services, services_of
from hutch.control import answers
from hutch.control.permissions import Permission
from hutch.control.records import Scope
from hutch.control.requests import TriggerSync
from hutch.errors import BadRequestError, NotFoundError
from hutch.storage import audit_log, worker_rows, worker_syncs
from hutch.storage import workers as workers_table
from hutch.storage.worker_rows import Order, Row, Stored
from hutch.storage.worker_syncs import Sync
from hutch.storage.workers import Worker
from hutch.workers import scheduler, values
from hutch.workers import serving as deployments
from hutch.workers.manifest import DEFAULT_SCHEDULE, Property, public
from hutch.workers.sync import Ask, Event, Pause, Reset, Resume

router = APIRouter(route_class=PlainRoute, tags=["workers"])

DEFAULT_ROWS = 100
MAX_ROWS = 1000
EXPORTED = 500
"""Rows that an export reads at once."""
MAX_FILTERS = 10
MAX_WAIT_S = 600
CSV = "text/csv; charset=utf-8"
PROJECT: dict[str, Any] = {"projectId": "Id or slug of the project; default: the token's"}
_ROWS = PROJECT | {
    "after": "`next` of the page before, with the same `filter` and `sort`",
    "limit": ("At most 1000; 100 by default", {"type": "integer", "minimum": 1, "maximum": 999_999_999}),
    "filter": "`PROPERTY=TEXT`: rows where it is so; several with `&filter=`",
    "sort": "A property, with `-` before it from the largest on; otherwise rows are in the order of their creation",
}


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
    services, scope, worker = await _found(request, worker_id)
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
    services, scope, worker = await _found(request, worker_id)
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


async def _told(request: Request, worker_id: str, key: str, event: Event, action: str) -> Response:
    services, scope, worker = await _found(request, worker_id)
    await tell(request, services, scope, worker, key, event, action)
    return JsonResponse({"sync": await _sync(request, services, await scheduler.find(services, scope, worker.id, key))})


async def tell(request: Request, services: Services, scope: Scope, worker: Worker, key: str, event: Event, action: str) -> None:
    """Have an event happen to a sync, and the audit log know who wanted that. Raises `NotFoundError`."""
    actor, now = await services.auth.actor(request), services.clock()
    async with services.database.write() as connection:
        await scheduler.tell(services, connection, scope, worker.id, key, event)
        await audit_log.append(connection, scope.team_id, actor, action, worker.id, now, project=scope.project_id, sync=key)
    services.syncs_due.set()


# -- databases ---------------------------------------------------------------------------------------


@router.get(
    "/hutch/v1/workers/{worker_id}/databases/{database:path}/rows",
    openapi_extra=documented(query=_ROWS, answer=answers.RowPage, errors=(404,), needs=Permission.WORKER_LOGS),
)
async def list_rows(request: Request, worker_id: str, database: str) -> Response:
    """Rows of a database, with plain values. `next` is the `after` of the next page, null on the last one."""
    services, scope, worker = await _found(request, worker_id)
    limit = min(paging.number(request, "limit", DEFAULT_ROWS, least=1), MAX_ROWS)
    after = paging.number(request, "after", 0, least=0, digits=18)
    known, properties = await _known(services, scope, worker, database)
    filters, order = _filters(request, properties), _order(request, properties)
    place = {"offset": after} if order is not None else {"after": after}
    async with services.database.read() as connection:
        found, more = await worker_rows.page(
            connection, scope, worker.id, known, database, limit=limit, filters=filters, order=order, **place
        )
    end = after + limit if order is not None else found[-1].number if found else 0
    return JsonResponse({"rows": [_row(row) for row in found], "next": str(end) if more else None})


@router.get(
    "/hutch/v1/workers/{worker_id}/databases/{database:path}/export",
    openapi_extra=documented(
        query=PROJECT | {"format": "json (default) or csv"},
        answer=answers.RowExport,
        more=(Answer(200, "text/csv", None),),
        errors=(404,),
        needs=Permission.WORKER_LOGS,
    ),
)
async def export_rows(request: Request, worker_id: str, database: str) -> Response:
    """All rows of a database, as they are read one after another. Texts that a spreadsheet would compute are made harmless in
    CSV."""
    services, scope, worker = await _found(request, worker_id)
    kind = paging.choice(request, "format", "json", ("json", "csv"))
    known, properties = await _known(services, scope, worker, database)
    chunks = _chunks(services, scope, worker, known, database)
    disposition = (b"content-disposition", f'attachment; filename="rows.{kind}"'.encode())
    if kind == "csv":
        return StreamResponse(_csv(chunks, properties), CSV.encode(), [disposition])
    return StreamResponse(_json(chunks), JSON_TYPE, [disposition])


async def _chunks(
    services: Services, scope: Scope, worker: Worker, known: Mapping[str, Stored], database: str
) -> AsyncIterator[list[Row]]:
    after, more = 0, True
    while more:
        async with services.database.read() as connection:
            found, more = await worker_rows.page(connection, scope, worker.id, known, database, limit=EXPORTED, after=after)
        if found:
            after = found[-1].number
            yield found


async def _json(chunks: AsyncIterator[list[Row]]) -> AsyncIterator[bytes]:
    yield b'{"rows":['
    first = True
    async for chunk in chunks:
        yield (b"" if first else b",") + b",".join(msgspec.json.encode(_row(row)) for row in chunk)
        first = False
    yield b"]}"


async def _csv(chunks: AsyncIterator[list[Row]], properties: Mapping[str, Property]) -> AsyncIterator[bytes]:
    yield _line(["key", *(values.csv_text("text", name) for name in properties), "updated_at"])
    async for chunk in chunks:
        for row in chunk:
            cells = [values.csv_text(item.type, row.properties[name]) for name, item in properties.items()]
            yield _line([values.csv_text("text", row.key), *cells, str(row.updated_at)])


def _line(cells: list[str]) -> bytes:
    out = io.StringIO()
    csv.writer(out, lineterminator="\r\n").writerow(cells)
    return out.getvalue().encode()


async def _known(
    services: Services, scope: Scope, worker: Worker, database: str
) -> tuple[dict[str, Stored], dict[str, Property]]:
    """The worker's databases, and the properties of one. Raises `NotFoundError`."""
    async with services.database.read() as connection:
        known = await worker_rows.databases(connection, scope, worker.id)
    if database not in known:
        raise NotFoundError("not_found", f"The worker has no database '{database[:64]}'.")
    return known, worker_rows.properties(known, database)


def _filters(request: Request, properties: Mapping[str, Property]) -> dict[str, str]:
    found: dict[str, str] = {}
    for sent in request.query_params.getlist("filter"):
        if not sent:
            continue
        name, mark, text = sent.partition("=")
        item = properties.get(name)
        if not mark or item is None or "\0" in sent or len(found) == MAX_FILTERS:
            raise BadRequestError(
                "bad_request",
                f"Invalid request: `filter` should be PROPERTY=TEXT, at most {MAX_FILTERS} times, of a property of it.",
            )
        if item.type not in _FILTERED or (item.type == "checkbox" and text not in {"true", "false"}):
            raise BadRequestError("bad_request", f"Invalid request: `filter` can't compare this with a {item.type}.")
        if item.type == "number" and values.decode("number", text).cell.value is None:
            raise BadRequestError("bad_request", "Invalid request: `filter` should compare a number with a number.")
        found[name] = text
    return found


_FILTERED = frozenset({"title", "text", "url", "email", "phone_number", "select", "status", "number", "checkbox"})


def _order(request: Request, properties: Mapping[str, Property]) -> Order | None:
    sent = request.query_params.get("sort")
    if not sent:
        return None
    descending = sent not in properties and sent.startswith("-")
    name = sent[1:] if descending else sent
    if name not in properties or properties[name].type not in _FILTERED | {"date"}:
        raise BadRequestError("bad_request", "Invalid request: `sort` should be a property of the database with a single value.")
    return Order(name, properties[name].type, descending)


# -- common ------------------------------------------------------------------------------------------


async def _found(request: Request, worker_id: str) -> tuple[Services, Scope, Worker]:
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
    return _present(
        {
            "id": worker.id,
            "name": worker.name,
            "project_id": worker.project_id,
            "deployment_id": worker.deployment_id,
            "created_at": worker.created_at,
            "updated_at": worker.updated_at,
        }
    )


def _present(fields: dict[str, Any]) -> dict[str, Any]:
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
        "schedule": _schedule(state.config.schedule or DEFAULT_SCHEDULE),
        "next_run_at": None if executing or due is None else max(due, services.clock()),
        "failures": state.failures,
        "last_error": state.last_error if quotes else None,
        "warnings": list(found.warnings) if quotes else [],
        "stats": _present(
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
    return _present(fields)


def _schedule(schedule: Any) -> dict[str, Any]:
    return _present(
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


def _row(row: Row) -> dict[str, Any]:
    found = {"key": row.key, "properties": row.properties, "updated_at": row.updated_at}
    return found | _present({"icon": row.icon, "cover": row.cover, "markdown": row.markdown})

"""Databases of workers, which their syncs write: rows, exports, and views, by which both are looked at."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from hutch.api import body as bodies
from hutch.api import paging
from hutch.api.responses import JSON_TYPE, JsonResponse, StreamResponse
from hutch.api.routing import Answer, PlainRoute, documented
from hutch.api.services import Services
from hutch.api.syncs import PROJECT, present, worker_of
from hutch.control import answers
from hutch.control.permissions import Permission
from hutch.control.records import Scope
from hutch.control.requests import PutView
from hutch.errors import BadRequestError, NotFoundError
from hutch.storage import audit_log, worker_rows, worker_views
from hutch.storage.worker_rows import Order, Row, Stored
from hutch.storage.worker_views import Definition, View
from hutch.storage.workers import Worker
from hutch.workers import values
from hutch.workers.manifest import Property

router = APIRouter(route_class=PlainRoute, tags=["workers"])

DEFAULT_ROWS = 100
MAX_ROWS = 1000
EXPORTED = 500
"""Rows that an export reads at once."""
MAX_FILTERS = 10
MAX_VIEWS = 100
"""Of a database."""
VIEW_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
CSV = "text/csv; charset=utf-8"
_LOOK = PROJECT | {
    "view": "A view of the database: its filter, its order and its properties",
    "filter": "`PROPERTY=TEXT`: rows where it is so; several with `&filter=`. They go before the view's of the same property",
    "sort": "A property, with `-` before it from the largest on; otherwise the view's, or the order of creation",
}
_ROWS = _LOOK | {
    "after": "`next` of the page before, with the same `view`, `filter` and `sort`",
    "limit": ("At most 1000; 100 by default", {"type": "integer", "minimum": 1, "maximum": 999_999_999}),
}


@dataclass(frozen=True, slots=True)
class Look:
    """How somebody looks at a database. `properties` are those that are shown."""

    known: dict[str, Stored]
    filters: dict[str, str]
    order: Order | None
    properties: dict[str, Property]


# -- rows --------------------------------------------------------------------------------------------


@router.get(
    "/hutch/v1/workers/{worker_id}/databases/{database:path}/rows",
    openapi_extra=documented(query=_ROWS, answer=answers.RowPage, errors=(404,), needs=Permission.WORKER_LOGS),
)
async def list_rows(request: Request, worker_id: str, database: str) -> Response:
    """Rows of a database, with plain values. `next` is the `after` of the next page, null on the last one."""
    services, scope, worker = await worker_of(request, worker_id)
    limit = min(paging.number(request, "limit", DEFAULT_ROWS, least=1), MAX_ROWS)
    after = paging.number(request, "after", 0, least=0, digits=18)
    look = await _look(request, services, scope, worker, database)
    found, following = await _page(services, scope, worker, database, look, after, limit)
    rows = [_row(row, look.properties) for row in found]
    return JsonResponse({"rows": rows, "next": None if following is None else str(following)})


@router.get(
    "/hutch/v1/workers/{worker_id}/databases/{database:path}/export",
    openapi_extra=documented(
        query=_LOOK | {"format": "json (default) or csv"},
        answer=answers.RowExport,
        more=(Answer(200, "text/csv", None),),
        errors=(404,),
        needs=Permission.WORKER_LOGS,
    ),
)
async def export_rows(request: Request, worker_id: str, database: str) -> Response:
    """All rows of a database, as they are read one after another. Texts that a spreadsheet would compute are made harmless in
    CSV."""
    services, scope, worker = await worker_of(request, worker_id)
    kind = paging.choice(request, "format", "json", ("json", "csv"))
    look = await _look(request, services, scope, worker, database)
    chunks = _chunks(services, scope, worker, database, look)
    disposition = (b"content-disposition", f'attachment; filename="rows.{kind}"'.encode())
    if kind == "csv":
        return StreamResponse(_csv(chunks, look.properties), CSV.encode(), [disposition])
    return StreamResponse(_json(chunks, look.properties), JSON_TYPE, [disposition])


async def _page(
    services: Services, scope: Scope, worker: Worker, database: str, look: Look, after: int, limit: int
) -> tuple[list[Row], int | None]:
    """Rows, and what the next page comes after: a number of rows where they are ordered, else the number of the last one."""
    ordered = look.order is not None
    place = {"offset": after} if ordered else {"after": after}
    async with services.database.read() as connection:
        found, more = await worker_rows.page(
            connection, scope, worker.id, look.known, database, limit=limit, filters=look.filters, order=look.order, **place
        )
    if not more:
        return found, None
    return found, after + limit if ordered else found[-1].number


async def _chunks(services: Services, scope: Scope, worker: Worker, database: str, look: Look) -> AsyncIterator[list[Row]]:
    after: int | None = 0
    while after is not None:
        found, after = await _page(services, scope, worker, database, look, after, EXPORTED)
        if found:
            yield found


async def _json(chunks: AsyncIterator[list[Row]], properties: Mapping[str, Property]) -> AsyncIterator[bytes]:
    yield b'{"rows":['
    first = True
    async for chunk in chunks:
        yield (b"" if first else b",") + b",".join(msgspec.json.encode(_row(row, properties)) for row in chunk)
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


async def database_of(
    services: Services, scope: Scope, worker: Worker, database: str
) -> tuple[dict[str, Stored], dict[str, Property]]:
    """The worker's databases, and the properties of one. Raises `NotFoundError`."""
    async with services.database.read() as connection:
        known = await worker_rows.databases(connection, scope, worker.id)
    if database not in known:
        raise NotFoundError("not_found", f"The worker has no database '{database[:64]}'.")
    return known, worker_rows.properties(known, database)


async def _look(request: Request, services: Services, scope: Scope, worker: Worker, database: str) -> Look:
    """Raises `BadRequestError`, also where a view asks for what its database does not have any more."""
    known, properties = await database_of(services, scope, worker, database)
    filters = _filters(_pairs(request), properties)
    order = _order(request.query_params.get("sort"), properties)
    name = request.query_params.get("view")
    if not name:
        return Look(known, filters, order, properties)
    async with services.database.read() as connection:
        view = await worker_views.find(connection, scope, worker.id, database, name)
    if view is None:
        raise _no_view(name)
    seen = _seen(view.definition, known, properties)
    return Look(known, seen.filters | filters, order or seen.order, seen.properties)


def _seen(definition: Definition, known: dict[str, Stored], properties: Mapping[str, Property]) -> Look:
    """What a view shows. Raises `BadRequestError`."""
    filters = _filters(list(definition.filter.items()), properties)
    order = _order(definition.sort, properties)
    shown = list(properties) if definition.properties is None else definition.properties
    for name in shown:
        if name not in properties:
            raise BadRequestError("bad_request", f"Invalid request: the database has no property '{name[:64]}' to show.")
    return Look(known, filters, order, {name: properties[name] for name in shown})


def _pairs(request: Request) -> list[tuple[str, str]]:
    """What `filter` says. Raises `BadRequestError`."""
    found = []
    for sent in request.query_params.getlist("filter"):
        name, mark, text = sent.partition("=")
        if sent and not mark:
            raise _wrong_filter()
        if sent:
            found.append((name, text))
    return found


def _filters(given: Sequence[tuple[str, str]], properties: Mapping[str, Property]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, text in given:
        item = properties.get(name)
        if item is None or "\0" in text or len(found) == MAX_FILTERS:
            raise _wrong_filter()
        if item.type not in _FILTERED or (item.type == "checkbox" and text not in {"true", "false"}):
            raise BadRequestError("bad_request", f"Invalid request: `filter` can't compare this with a {item.type}.")
        if item.type == "number" and values.decode("number", text).cell.value is None:
            raise BadRequestError("bad_request", "Invalid request: `filter` should compare a number with a number.")
        found[name] = text
    return found


def _wrong_filter() -> BadRequestError:
    return BadRequestError(
        "bad_request", f"Invalid request: `filter` should be PROPERTY=TEXT, at most {MAX_FILTERS} times, of a property of it."
    )


_FILTERED = frozenset({"title", "text", "url", "email", "phone_number", "select", "status", "number", "checkbox"})


def _order(sent: str | None, properties: Mapping[str, Property]) -> Order | None:
    if not sent:
        return None
    descending = sent not in properties and sent.startswith("-")
    name = sent[1:] if descending else sent
    if name not in properties or properties[name].type not in _FILTERED | {"date"}:
        raise BadRequestError("bad_request", "Invalid request: `sort` should be a property of the database with a single value.")
    return Order(name, properties[name].type, descending)


def _row(row: Row, properties: Mapping[str, Property]) -> dict[str, Any]:
    shown = {name: row.properties[name] for name in properties}
    found = {"key": row.key, "properties": shown, "updated_at": row.updated_at}
    return found | present({"icon": row.icon, "cover": row.cover, "markdown": row.markdown})


# -- views -------------------------------------------------------------------------------------------


@router.get(
    "/hutch/v1/workers/{worker_id}/databases/{database:path}/views",
    openapi_extra=documented(query=PROJECT, answer=answers.ViewRecords, errors=(404,), needs=Permission.WORKER_LOGS),
)
async def list_views(request: Request, worker_id: str, database: str) -> Response:
    """The views of a database, by name."""
    services, scope, worker = await worker_of(request, worker_id)
    await database_of(services, scope, worker, database)
    async with services.database.read() as connection:
        found = await worker_views.of_database(connection, scope, worker.id, database)
    return JsonResponse({"views": [_view(view) for view in found]})


@router.put(
    "/hutch/v1/workers/{worker_id}/databases/{database:path}/views/{view}",
    openapi_extra=documented(
        PutView,
        query=PROJECT,
        answer=answers.ViewRead,
        errors=(404,),
        example={"filter": {}, "sort": None},
        needs=Permission.WORKER_WRITE,
    ),
)
async def put_view(request: Request, worker_id: str, database: str, view: str) -> Response:
    """Save a view, over the one of this name. `GET …/rows?view=NAME` lists rows by it."""
    services, scope, worker = await worker_of(request, worker_id)
    body = await bodies.read(request, PutView)
    if VIEW_NAME.fullmatch(view) is None:
        raise BadRequestError("bad_request", f'Invalid request: a view\'s name should match pattern "^{VIEW_NAME.pattern}$".')
    known, properties = await database_of(services, scope, worker, database)
    shown = None if body.properties is None else tuple(dict.fromkeys(body.properties))
    actor, now = await services.auth.actor(request), services.clock()
    saved = View(view, Definition(filter=body.filter, sort=body.sort, properties=shown), now)
    _seen(saved.definition, known, properties)
    async with services.database.write() as connection:
        if not await worker_views.put(connection, scope, worker.id, database, saved, MAX_VIEWS):
            raise BadRequestError("bad_request", f"Invalid request: a database has at most {MAX_VIEWS} views.")
        await audit_log.append(
            connection, scope.team_id, actor, "worker.view_saved", worker.id, now, project=scope.project_id, view=view
        )
    return JsonResponse({"view": _view(saved)})


@router.delete(
    "/hutch/v1/workers/{worker_id}/databases/{database:path}/views/{view}",
    status_code=204,
    openapi_extra=documented(query=PROJECT, status=204, errors=(404,), needs=Permission.WORKER_WRITE),
)
async def delete_view(request: Request, worker_id: str, database: str, view: str) -> Response:
    """Delete a view; rows stay."""
    services, scope, worker = await worker_of(request, worker_id)
    actor, now = await services.auth.actor(request), services.clock()
    async with services.database.write() as connection:
        if not await worker_views.delete_one(connection, scope, worker.id, database, view):
            raise _no_view(view)
        await audit_log.append(
            connection, scope.team_id, actor, "worker.view_deleted", worker.id, now, project=scope.project_id, view=view
        )
    return Response(status_code=204)


def _no_view(name: str) -> NotFoundError:
    return NotFoundError("not_found", f"The database has no view '{name[:64]}'.")


def _view(view: View) -> dict[str, Any]:
    return {"name": view.name, **msgspec.to_builtins(view.definition), "updated_at": view.updated_at}

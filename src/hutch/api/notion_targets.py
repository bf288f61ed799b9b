"""Databases of workers that are mirrored into Notion: where to, how far, and that no more."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from hutch.api import body as bodies
from hutch.api.databases import database_of
from hutch.api.responses import JsonResponse
from hutch.api.routing import PlainRoute, documented
from hutch.api.services import Services
from hutch.api.syncs import PROJECT, present, worker_of
from hutch.control import answers
from hutch.control.permissions import Permission
from hutch.control.records import Scope
from hutch.control.requests import PutNotion
from hutch.errors import BadRequestError, ForbiddenError, NotFoundError, UnavailableError
from hutch.storage import audit_log
from hutch.storage import worker_mirrors as table
from hutch.storage.worker_mirrors import Mirror
from hutch.storage.worker_rows import Stored
from hutch.storage.workers import Worker
from hutch.workers import mirrors, notion, notion_api
from hutch.workers.manifest import Property
from hutch.workers.notion_api import AddressRefused, Notion, Refused, Unreachable

router = APIRouter(route_class=PlainRoute, tags=["workers"])

MAX_TITLE = 200
PATH = "/hutch/v1/workers/{worker_id}/databases/{database:path}/notion"
_EXAMPLE = {"token": "ntn_0123456789", "parent": {"page_id": "0123456789abcdef0123456789abcdef"}}


@router.get(
    PATH, openapi_extra=documented(query=PROJECT, answer=answers.NotionTargetRead, errors=(404,), needs=Permission.WORKER_READ)
)
async def get_notion(request: Request, worker_id: str, database: str) -> Response:
    """Where a database is mirrored to in Notion, and how far."""
    services, scope, worker = await worker_of(request, worker_id)
    return JsonResponse({"notion": await _shown(request, services, scope, worker, database)})


@router.put(
    PATH,
    openapi_extra=documented(
        PutNotion,
        query=PROJECT,
        answer=answers.NotionTargetRead,
        errors=(404,),
        example=_EXAMPLE,
        needs=Permission.WORKER_WRITE,
    ),
)
async def put_notion(request: Request, worker_id: str, database: str) -> Response:
    """Mirror the rows of a database into Notion from now on. The same place as before goes on with its pages, as with another
    token; another place begins anew."""
    services, scope, worker = await worker_of(request, worker_id)
    body = await bodies.read(request, PutNotion)
    base_url = notion_api.base(body.base_url)
    known, properties = await database_of(services, scope, worker, database)
    parent = {name: value.replace("-", "").lower() for name, value in body.parent.model_dump().items() if value is not None}
    async with services.database.read() as connection:
        there = await table.of_worker(connection, scope, worker.id)
    before = there.get(database)
    same = before is not None and (before.parent, before.base_url) == (parent, base_url)
    related = {key: other.data_source_id for key, other in there.items() if other.base_url == base_url}
    api = Notion(services, base_url, body.token)
    try:
        if before is not None and same:
            database_id, source_id = before.database_id, before.data_source_id
        elif "page_id" in parent:
            database_id, source_id = await _made(api, parent["page_id"], known[database], properties)
        else:
            database_id, source_id = None, parent["data_source_id"]
        await mirrors.prepared(api, source_id, properties, related, attempts=1)
    except Refused as error:
        raise BadRequestError("notion_refused", str(error)) from error
    except AddressRefused as error:
        raise ForbiddenError("notion_not_allowed", str(error)) from error
    except Unreachable as error:
        raise UnavailableError("notion_unreachable", str(error), retry_after_s=5) from error
    sealed = services.sealer.seal(body.token, mirrors.sealed_as(worker.id, database))
    mirror = Mirror(worker.id, database, worker.team_id, worker.project_id, sealed, base_url, parent, database_id, source_id)
    actor, now = await services.auth.actor(request), services.clock()
    async with services.database.write() as connection:
        await table.put(connection, mirror, pages=same)
        await audit_log.append(
            connection, scope.team_id, actor, "worker.notion_set", worker.id, now, project=scope.project_id, database=database
        )
    return JsonResponse({"notion": await _shown(request, services, scope, worker, database)})


@router.delete(
    PATH, status_code=204, openapi_extra=documented(query=PROJECT, status=204, errors=(404,), needs=Permission.WORKER_WRITE)
)
async def delete_notion(request: Request, worker_id: str, database: str) -> Response:
    """Mirror a database no more. Pages in Notion stay, and it is forgotten which they are."""
    services, scope, worker = await worker_of(request, worker_id)
    actor, now = await services.auth.actor(request), services.clock()
    async with services.database.write() as connection:
        if not await table.remove(connection, scope, worker.id, database):
            raise _not_mirrored(database)
        await audit_log.append(
            connection, scope.team_id, actor, "worker.notion_removed", worker.id, now, project=scope.project_id, database=database
        )
    return Response(status_code=204)


async def _made(api: Notion, page_id: str, stored: Stored, properties: dict[str, Property]) -> tuple[str, str]:
    """A new database below a page: its id, and its data source's. Relations come when there is a data source to lead from."""
    made = notion.fit({name: item for name, item in properties.items() if item.type != "relation"}, {}, {}).missing
    title = notion.pieces(notion.cut(stored.title or stored.key, MAX_TITLE))
    answer = await api.call(
        "POST",
        "/v1/databases",
        {
            "parent": {"type": "page_id", "page_id": page_id},
            "title": title,
            "initial_data_source": {"properties": made},
        },
        attempts=1,
    )
    sources = answer.get("data_sources")
    first = sources[0].get("id") if isinstance(sources, list) and sources and isinstance(sources[0], dict) else None
    database_id = answer.get("id")
    if not notion.is_id(database_id) or not notion.is_id(first):
        raise Unreachable("Notion's answer has no data source.", unsure=True)
    return str(database_id), str(first)


async def _shown(request: Request, services: Services, scope: Scope, worker: Worker, database: str) -> dict[str, Any]:
    """What a row's key or Notion's message about it says is for whoever may see rows. Raises `NotFoundError`."""
    principal = await services.auth.principal(request)
    async with services.database.read() as connection:
        mirror = (await table.of_worker(connection, scope, worker.id)).get(database)
        if mirror is None:
            raise _not_mirrored(database)
        counts = await table.counts(connection, scope, worker.id, database)
    quotes = principal.may(Permission.WORKER_LOGS)
    return present(
        {
            "parent": mirror.parent,
            "base_url": mirror.base_url,
            "database_id": mirror.database_id,
            "data_source_id": mirror.data_source_id,
            "stopped": mirror.stopped,
            "mirrored": counts.mirrored,
            "waiting": counts.waiting,
            "failed": counts.failed,
            "last_success_at": mirror.last_success_at,
            "last_error": mirror.last_error,
            "warnings": list(mirror.warnings) if quotes else [],
        }
    )


def _not_mirrored(database: str) -> NotFoundError:
    return NotFoundError("not_found", f"The worker has no database '{database[:64]}' that is mirrored into Notion.")

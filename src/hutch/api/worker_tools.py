"""Hutch's own: the tools of workers, as models' vendors take them too; which of them agents have; calls without MCP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from hutch.api.body import read
from hutch.api.responses import JsonResponse
from hutch.api.routing import PlainRoute, documented
from hutch.api.services import Services, services_of
from hutch.control import tool_wire as wire
from hutch.control.permissions import Permission
from hutch.control.records import Scope
from hutch.errors import BadRequestError, ForbiddenError, NotFoundError
from hutch.storage import audit_log, worker_tools
from hutch.storage import workers as rows
from hutch.storage.worker_tools import ToolSetting
from hutch.storage.workers import Worker
from hutch.workers import toolbox
from hutch.workers.toolbox import Offer
from hutch.workers.tools import Function

router = APIRouter(route_class=PlainRoute, tags=["workers"])

PROJECT = {"projectId": "Id or slug"}
MAX_BODY_BYTES = 8 * 1024 * 1024


def _anthropic(function: Function) -> dict[str, Any]:
    return {"name": function.name, "description": function.description, "input_schema": function.input_schema}


FORMATS: dict[str, Callable[[Function], dict[str, Any]]] = {
    "openai": Function.function,
    "openai-chat": lambda function: function.function(nested=True),
    "anthropic": _anthropic,
    "mcp": Function.mcp,
}


@router.get(
    "/hutch/v1/workers/{worker_id}/tools",
    openapi_extra=documented(
        query={
            **PROJECT,
            "format": ("As a vendor's API takes them; without those that are switched off", {"enum": list(FORMATS)}),
        },
        answer=wire.ToolList,
        errors=(404,),
        needs=Permission.WORKER_READ,
    ),
)
async def list_tools(request: Request, worker_id: str) -> Response:
    """A worker's tools; none before it is deployed."""
    services, scope, worker = await asked(request, worker_id)
    form = request.query_params.get("format")
    if form and form not in FORMATS:
        raise BadRequestError("bad_request", f"Invalid request: `format` should be one of {', '.join(FORMATS)}.")
    offers = (await toolbox.of_worker(services, scope, worker)).values()
    if form:
        return JsonResponse({"tools": [FORMATS[form](offer.function) for offer in offers if offer.setting.enabled]})
    return JsonResponse({"tools": [_shown(offer) for offer in offers]})


@router.patch(
    "/hutch/v1/workers/{worker_id}/tools/{tool}",
    openapi_extra=documented(wire.ChangeTool, query=PROJECT, answer=wire.ToolShape, errors=(404,), needs=Permission.WORKER_WRITE),
)
async def change_tool(request: Request, worker_id: str, tool: str) -> Response:
    """Give a tool to agents or take it from them; ask a person before each call. By name or key. It holds across deployments."""
    services, scope, worker = await asked(request, worker_id)
    body = await read(request, wire.ChangeTool)
    offer = await _find(services, scope, worker, tool)
    before = offer.setting
    setting = ToolSetting(
        before.enabled if body.enabled is None else body.enabled, before.confirm if body.confirm is None else body.confirm
    )
    now = services.clock()
    async with services.database.write() as connection:
        await worker_tools.put(connection, scope, worker.id, offer.key, setting, now)
        actor = await services.auth.actor(request)
        await audit_log.append(
            connection,
            scope.team_id,
            actor,
            "worker.tool_changed",
            worker.id,
            now,
            project=scope.project_id,
            tool=offer.key,
            enabled=setting.enabled,
            confirm=setting.confirm,
        )
    return JsonResponse(_shown(Offer(worker, offer.key, offer.tool, offer.function, setting)))


@router.post(
    "/hutch/v1/workers/{worker_id}/tools/{tool}/call",
    openapi_extra=documented(
        wire.CallTool,
        query=PROJECT,
        answer=wire.ToolResult,
        errors=(402, 404, 409, 410, 422),
        needs=Permission.WORKER_RUN,
    ),
)
async def call_tool(request: Request, worker_id: str, tool: str) -> Response:
    """Call a tool, by name or key, for a model that made the arguments. Who calls has asked whoever is to be asked."""
    services, scope, worker = await asked(request, worker_id)
    body = await read(request, wire.CallTool, limit=max(services.settings.server.max_body_bytes, MAX_BODY_BYTES))
    offer = await _find(services, scope, worker, tool)
    if not offer.setting.enabled:
        raise ForbiddenError("tool_disabled", f"The tool '{offer.key[:64]}' is switched off.")
    return JsonResponse({"result": await toolbox.call(services, scope, offer, body.arguments)})


async def scope_of(request: Request, *, one: bool = True) -> tuple[Services, Scope]:
    """The project that the token or the query names; with `one` false it may be the whole team."""
    services = services_of(request)
    principal = await services.auth.principal(request)
    return services, await services.auth.scope(request, principal, request.query_params.get("projectId"), one=one)


async def asked(request: Request, worker_id: str) -> tuple[Services, Scope, Worker]:
    """The worker of the path, and its project. Raises `NotFoundError`, also for somebody else's."""
    services, scope = await scope_of(request, one=False)
    if len(worker_id) <= rows.MAX_ID and "\0" not in worker_id:
        async with services.database.read() as connection:
            found = await rows.find(connection, scope, worker_id)
        if found is not None:
            return services, Scope(found.team_id, found.project_id), found
    raise NotFoundError("not_found", f"Worker '{worker_id[:64]}' not found.")


async def _find(services: Services, scope: Scope, worker: Worker, named: str) -> Offer:
    offers = await toolbox.of_worker(services, scope, worker)
    found = offers.get(named) or next((offer for offer in offers.values() if offer.key == named), None)
    if found is None:
        raise NotFoundError("not_found", f"The worker has no tool '{named[:64]}'.")
    return found


def _shown(offer: Offer) -> dict[str, Any]:
    function = offer.function
    return {
        "key": offer.key,
        "name": function.name,
        "title": function.title,
        "description": function.description,
        "readOnly": function.read_only,
        "enabled": offer.setting.enabled,
        "confirm": offer.setting.confirm,
        "inputSchema": function.input_schema,
        "outputSchema": function.output_schema,
    }

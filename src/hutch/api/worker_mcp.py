"""Workers' tools over MCP: streamable HTTP, one JSON answer for each message, no sessions.

    message ─▶ bearer token, size, one meaning ─▶ the SDK's server, made for this message ─▶ a run in a fresh sandbox ─▶ answer

The protocol is the official SDK's, in all its revisions. What the SDK would do with the schemas that strangers wrote (patterns,
references) it is not asked to: arguments are checked in the sandbox. A server lives as long as its message, so nothing of one
caller can reach another.

The SDK is imported at the first message: it takes as long as all the rest of this server.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from hutch.api.body import read_body
from hutch.api.responses import JsonResponse
from hutch.api.routing import JSON, Answer, Documented, PlainRoute, documented
from hutch.api.services import Services
from hutch.api.worker_tools import MAX_BODY_BYTES, PROJECT, asked, scope_of
from hutch.control import tool_wire as wire
from hutch.control.permissions import Permission
from hutch.control.records import Scope
from hutch.control.requests import parse
from hutch.errors import BadRequestError
from hutch.workers import toolbox
from hutch.workers.toolbox import Offer

router = APIRouter(route_class=PlainRoute, tags=["workers"])

_INVALID_REQUEST = -32600
"""JSON-RPC 2.0, § 5.1."""
_ACCEPTED = Answer(202, "", None)
"""A notification was heard; there is no body."""
_REFUSALS = tuple(Answer(status, JSON, wire.Refusal) for status in (400, 404))


def _documented(**more: Any) -> Documented:
    return documented(
        wire.Message,
        query=PROJECT,
        answer=wire.Reply,
        more=(_ACCEPTED, *_REFUSALS),
        needs=Permission.WORKER_RUN,
        **more,
    )


@router.post("/hutch/v1/workers/{worker_id}/mcp", openapi_extra=_documented())
async def worker_mcp(request: Request, worker_id: str) -> Response:
    """A worker's tools over MCP: the address for a client that speaks streamable HTTP."""
    services, scope, worker = await asked(request, worker_id)
    return await _served(request, services, scope, worker.name, functools.partial(toolbox.of_worker, services, scope, worker))


@router.post("/mcp/workers/{worker_id}", openapi_extra=_documented())
async def worker_mcp_address(request: Request, worker_id: str) -> Response:
    """The same, at a shorter address."""
    return await worker_mcp(request, worker_id)


@router.post("/hutch/v1/mcp", openapi_extra=_documented())
async def project_mcp(request: Request) -> Response:
    """The tools of all workers of a project over MCP."""
    services, scope = await scope_of(request)
    return await _served(request, services, scope, "hutch", functools.partial(toolbox.of_project, services, scope))


async def _served(
    request: Request, services: Services, scope: Scope, name: str, load: Callable[[], Awaitable[dict[str, Offer]]]
) -> Response:
    """The answer to a message. Raises `PayloadTooLargeError`, and what `load` does."""
    raw = await read_body(request, max(services.settings.server.max_body_bytes, MAX_BODY_BYTES))
    try:
        message = parse(wire.Message, raw)
    except BadRequestError as error:
        fault = {"code": _INVALID_REQUEST, "message": error.message}
        return JsonResponse({"jsonrpc": "2.0", "id": None, "error": fault}, 400)
    offers = await load() if message.method.startswith("tools/") else {}
    served = {name: offer for name, offer in offers.items() if offer.setting.enabled}
    await asyncio.to_thread(importlib.import_module, "hutch.api.mcp_messages")
    from hutch.api import mcp_messages

    return await mcp_messages.exchange(request, raw, mcp_messages.server(services, scope, name, served))

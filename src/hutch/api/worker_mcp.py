"""Workers' tools over MCP: streamable HTTP, one JSON answer for each message, no sessions.

    message ─▶ bearer token, size, one meaning ─▶ the SDK's server, made for this message ─▶ a run in a fresh sandbox ─▶ answer

The protocol is the official SDK's, in all its revisions. What the SDK would do with the schemas that strangers wrote (patterns,
references) it is not asked to: arguments are checked in the sandbox. A server lives as long as its message, so nothing of one
caller can reach another.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any

import mcp_types as types
from fastapi import APIRouter
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.shared.exceptions import MCPError
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message as Sent

from hutch import __version__
from hutch.api.body import read_body
from hutch.api.responses import JSON_TYPE, JsonResponse
from hutch.api.routing import JSON, Answer, Documented, PlainRoute, documented
from hutch.api.services import Services
from hutch.api.worker_tools import MAX_BODY_BYTES, PROJECT, asked, scope_of
from hutch.control import tool_wire as wire
from hutch.control.permissions import Permission
from hutch.control.records import Scope
from hutch.control.requests import parse
from hutch.errors import BadRequestError
from hutch.workers import toolbox, tools
from hutch.workers.outcome import Failure
from hutch.workers.toolbox import Offer

router = APIRouter(route_class=PlainRoute, tags=["workers"])

ANSWER = "agreed"
"""The question to a person, among those of a call."""
MAX_SHOWN = 2000
"""Characters of the arguments that a person is shown."""
_REPLACED = frozenset({b"accept", b"content-type", b"content-length", b"transfer-encoding"})
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
        fault = {"code": types.INVALID_REQUEST, "message": error.message}
        return JsonResponse({"jsonrpc": "2.0", "id": None, "error": fault}, 400)
    offers = await load() if message.method.startswith("tools/") else {}
    served = {name: offer for name, offer in offers.items() if offer.setting.enabled}
    return await _exchange(request, raw, _server(services, scope, name, served))


# -- the server --------------------------------------------------------------------------------------


def _server(services: Services, scope: Scope, name: str, offers: Mapping[str, Offer]) -> Server[Any]:
    """An MCP server of these tools."""

    async def listed(_: ServerRequestContext[Any], __: types.PaginatedRequestParams | None) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[types.Tool.model_validate(offer.function.mcp()) for offer in offers.values()])

    async def called(
        context: ServerRequestContext[Any], params: types.CallToolRequestParams
    ) -> types.CallToolResult | types.InputRequiredResult:
        offer = offers.get(params.name)
        if offer is None:
            raise MCPError(types.INVALID_PARAMS, f"There is no tool '{params.name[:64]}', or it is switched off.")
        if offer.setting.confirm:
            question = _question(context, params, offer)
            if question is not None:
                return question
        outcome = await toolbox.outcome(services, scope, offer, params.arguments or {})
        return types.CallToolResult.model_validate(tools.result(offer.tool, outcome))

    def schema(named: str) -> dict[str, Any] | None:
        offer = offers.get(named)
        return offer.function.input_schema if offer is not None else None

    return Server(name, version=__version__, get_tool_input_schema=schema, on_list_tools=listed, on_call_tool=called)


def _question(
    context: ServerRequestContext[Any], params: types.CallToolRequestParams, offer: Offer
) -> types.InputRequiredResult | types.CallToolResult | None:
    """What stands before a call that a person has to agree to; None when one did. It is the client that asks: one of before
    2026-07-28, or one that can't ask, is refused."""
    said = (params.input_responses or {}).get(ANSWER)
    if isinstance(said, types.ElicitResult):
        if said.action == "accept" and (said.content or {}).get(ANSWER) is True:
            return None
        return _refused(offer, "ConfirmationDeclined", "The person who was asked did not agree to this call.")
    capabilities = context.session.client_capabilities
    asks = capabilities is not None and capabilities.elicitation is not None
    if context.protocol_version not in MODERN_PROTOCOL_VERSIONS or not asks:
        return _refused(
            offer,
            "ConfirmationRequired",
            "A person has to agree to each call of this tool, and this client can't ask one (MCP 2026-07-28 with elicitation). "
            "Whoever may deploy the worker can lift that.",
        )
    arguments = json.dumps(params.arguments or {}, ensure_ascii=False)
    shown = arguments if len(arguments) <= MAX_SHOWN else f"{arguments[:MAX_SHOWN]} … ({len(arguments)} characters)"
    form = types.ElicitRequestFormParams(
        message=f"May {offer.function.name} of the worker {offer.worker.name} be called with {shown}?",
        requested_schema={
            "type": "object",
            "properties": {ANSWER: {"type": "boolean", "title": "Call it"}},
            "required": [ANSWER],
        },
    )
    return types.InputRequiredResult(input_requests={ANSWER: types.ElicitRequest(params=form)})


def _refused(offer: Offer, name: str, message: str) -> types.CallToolResult:
    return types.CallToolResult.model_validate(tools.result(offer.tool, Failure(name=name, message=message, made_here=True)))


async def _exchange(request: Request, raw: bytes, server: Server[Any]) -> Response:
    """One message through the SDK's server."""
    waiting, status, content = [raw], 500, b""

    async def receive() -> Sent:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await request.receive()

    async def send(sent: Sent) -> None:
        nonlocal status, content
        if sent["type"] == "http.response.start":
            status = sent["status"]
        else:
            content += sent.get("body", b"")

    # What is answered is JSON, whatever a client says that it takes.
    headers = [(name, value) for name, value in request.scope["headers"] if name not in _REPLACED]
    headers += [(b"accept", b"application/json"), (b"content-type", b"application/json")]
    manager = StreamableHTTPSessionManager(server, json_response=True, stateless=True, max_request_body_size=len(raw) + 1)
    async with manager.run():
        await manager.handle_request({**request.scope, "headers": headers}, receive, send)
    answer = Response(content if status != HTTPStatus.ACCEPTED else b"", status)
    kind = [(b"content-type", JSON_TYPE)] if answer.body else []
    answer.raw_headers = [*kind, (b"content-length", str(len(answer.body)).encode())]
    return answer

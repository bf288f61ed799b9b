"""One message of MCP through the official SDK."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.shared.exceptions import MCPError
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message as Sent

from hutch import __version__
from hutch.api.responses import JSON_TYPE
from hutch.api.services import Services
from hutch.control.records import Scope
from hutch.workers import toolbox, tools
from hutch.workers.outcome import Failure
from hutch.workers.toolbox import Offer

ANSWER = "agreed"
"""The question to a person, among those of a call."""
MAX_SHOWN = 2000
"""Characters of the arguments that a person is shown."""
_REPLACED = frozenset({b"accept", b"content-type", b"content-length", b"transfer-encoding"})


def server(services: Services, scope: Scope, name: str, offers: Mapping[str, Offer]) -> Server[Any]:
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


async def exchange(request: Request, raw: bytes, server: Server[Any]) -> Response:
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

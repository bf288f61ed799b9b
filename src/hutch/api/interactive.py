"""Terminals. A request opens one and is told where its WebSocket is; the socket's first message starts the program.

Text frames are control messages in JSON, binary frames are what is typed and shown. A text frame that is not JSON is shown by
clients as output, which is how a program that can't be started says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import json

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from hutch.api.body import read
from hutch.api.commands import call, open_stream
from hutch.api.errors import error_response
from hutch.api.responses import JsonResponse
from hutch.api.routing import LIVE, PlainRoute, documented
from hutch.api.services import Services, services_of, stopped
from hutch.control import answers, strict_json
from hutch.control.permissions import Permission
from hutch.control.requests import OpenInteractive, PtyStart, clamp_size, parse
from hutch.errors import HutchError, InternalError, NotReadyError, RateLimitedError, UnauthorizedError
from hutch.host.protocol import PtyOpen, SessionRecord, SessionRef, SessionStatus
from hutch.wire import Stream
from hutch.wire.connection import Data

router = APIRouter(route_class=PlainRoute, tags=["terminals"])

TERMINAL_PATH = "/v2/sandboxes/terminal"
START_TIMEOUT_S = 30.0
MAX_MESSAGE_BYTES = 1024 * 1024
EXIT_WITHOUT_START = 127
"""Exit code of a terminal whose program never ran, as shells report a command that does not exist."""


@router.post(
    "/v2/sandboxes/sessions/{session_id}/interactive",
    openapi_extra=documented(OpenInteractive, answer=answers.Terminal, errors=LIVE, needs=Permission.COMMAND_RUN),
)
async def open_interactive(request: Request, session_id: str) -> Response:
    """Where to connect a terminal: `{url, token}`. The token is good for one connection within a minute."""
    services = services_of(request)
    await services.auth.session(request, session_id)
    await read(request, OpenInteractive)
    session = await call(services, "session.get", SessionRef(session_id), SessionRecord)
    if session.status is SessionStatus.SNAPSHOTTING:
        raise NotReadyError("sandbox_snapshotting", "Sandbox is saving its files and no longer accepts commands.")
    if session.status is SessionStatus.STOPPING:
        raise NotReadyError("sandbox_stopping", "Sandbox is stopping and no longer accepts commands.")
    if session.status is not SessionStatus.RUNNING:
        raise stopped()
    return JsonResponse({"url": _socket_base(request, services) + TERMINAL_PATH, "token": services.tickets.issue(session_id)})


def _socket_base(request: Request, services: Services) -> str:
    """The base URL for WebSockets: the public one where one is configured, else the one this request came in by."""
    base = services.settings.server.public_url or str(request.base_url).rstrip("/")
    return "ws" + base.removeprefix("http")


async def terminal(socket: WebSocket) -> None:
    """The WebSocket itself."""
    services: Services = socket.app.state.services
    session_id = services.tickets.redeem(socket.query_params.get("token", ""))
    if session_id is None:
        refusal: HutchError = UnauthorizedError("unauthorized", "The terminal's token is unknown, used or expired. Open another.")
        try:
            services.auth.count_unauthorized(socket)
        except RateLimitedError as limited:
            refusal = limited
        await _refuse(socket, refusal)
        return
    await socket.accept()
    try:
        stream, error = None, None
        try:
            stream = await _start(socket, services, session_id)
        except HutchError as refused:
            error = refused
        if stream is None:
            await _close(socket, error)
            return
        try:
            await _join(socket, stream)
        finally:
            stream.cancel()
    except (WebSocketDisconnect, RuntimeError):
        # The client went away, maybe in the middle of a send; cancelling the stream hangs up the program.
        return


route = WebSocketRoute(TERMINAL_PATH, terminal)


async def _start(socket: WebSocket, services: Services, session_id: str) -> Stream:
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            first = await socket.receive_text()
    except (KeyError, TimeoutError) as error:
        raise InternalError("terminal_start_missing", "The first message of a terminal should be a `start` in text.") from error
    start = parse(PtyStart, first.encode("utf-8", "surrogatepass"))
    params = PtyOpen(
        session_id=session_id,
        argv=[start.command.encode(), *(argument.encode() for argument in start.args)],
        cwd=start.cwd.encode() if start.cwd is not None else None,
        env=start.environment(),
        cols=clamp_size(start.cols, 80),
        rows=clamp_size(start.rows, 24),
    )
    stream = await open_stream(services, "pty.open", params)
    try:
        await stream.reply()
    except BaseException:
        stream.cancel()
        raise
    return stream


async def _join(socket: WebSocket, stream: Stream) -> None:
    """Pass bytes both ways until the program ends or the client goes."""
    shown = asyncio.ensure_future(_show(socket, stream))
    typed = asyncio.ensure_future(_type(socket, stream))
    try:
        await asyncio.wait((shown, typed), return_when=asyncio.FIRST_COMPLETED)
        if shown.done():
            shown.result()
    finally:
        for task in (shown, typed):
            task.cancel()
        await asyncio.gather(shown, typed, return_exceptions=True)


async def _show(socket: WebSocket, stream: Stream) -> None:
    """Output to the client, then the exit code."""
    code: int | None = None
    error: HutchError | None = None
    try:
        async for item in stream:
            if isinstance(item, Data):
                await socket.send_bytes(item.data)
            else:
                code = item.decode(dict[str, int]).get("exit_code")
    except HutchError as broken:
        error = broken
    if code is None:
        await _close(socket, error or InternalError("terminal_closed", "The terminal ended without an exit code."))
        return
    await socket.send_text(json.dumps({"type": "exit", "code": code}))
    await socket.close(1000)


async def _type(socket: WebSocket, stream: Stream) -> None:
    """Input and sizes to the program. What is neither is ignored: newer clients may say more."""
    while True:
        message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            return
        with contextlib.suppress(HutchError):
            if message.get("bytes"):
                await stream.send_data(message["bytes"], channel=0)
            elif message.get("text") and (size := _resize(message["text"])) is not None:
                await stream.send_event({"resize": list(size)})


def _resize(text: str) -> tuple[int, int] | None:
    try:
        message = strict_json.load(text.encode())
    except (ValueError, RecursionError):
        return None
    if not isinstance(message, dict) or message.get("type") != "resize":
        return None
    cols, rows = message.get("cols"), message.get("rows")
    if type(cols) is not int or type(rows) is not int:
        return None
    return clamp_size(cols, 80), clamp_size(rows, 24)


async def _close(socket: WebSocket, error: HutchError | None) -> None:
    """Tell a client why there is no terminal (any more)."""
    if error is not None:
        await socket.send_text(f"hutch: {error.message}\r\n")
    await socket.send_text(json.dumps({"type": "exit", "code": EXIT_WITHOUT_START}))
    await socket.close(1000)


async def _refuse(socket: WebSocket, error: HutchError) -> None:
    if "websocket.http.response" in socket.scope.get("extensions", {}):
        await socket.send_denial_response(error_response(error))
    elif socket.client_state is WebSocketState.CONNECTING:
        await socket.close(1008)

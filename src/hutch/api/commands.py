"""Commands: processes started in a session.

The waited start is the hot path of the whole product. It authenticates from memory, hands the request to the host, and turns
the host's bytes into NDJSON records as they come: one connection hop, no database.
"""

from __future__ import annotations

import codecs
import contextlib
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any, TypeVar

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from hutch import ids
from hutch.api.body import MAX_STDIN_BODY_BYTES, read
from hutch.api.paging import flag
from hutch.api.responses import JsonResponse, encode, late_json, line, ndjson
from hutch.api.routing import LIVE, NDJSON, Answer, PlainRoute, documented
from hutch.api.services import Services, services_of, session_error
from hutch.control import answers, shapes
from hutch.control.permissions import Permission
from hutch.control.requests import KillCommand, StartCommand, WriteStdin
from hutch.errors import BadRequestError, HutchError, NotFoundError, StalledError
from hutch.host.protocol import (
    CommandGet,
    CommandKill,
    CommandRecord,
    CommandRef,
    CommandStart,
    CommandStdin,
    SessionRef,
)
from hutch.wire import Stream
from hutch.wire.connection import ConnectionClosed, Data, Message

router = APIRouter(route_class=PlainRoute, tags=["commands"])

RECORD_BYTES = 256 * 1024
STDIN_TIMEOUT_MS = 20_000
_STREAM_NAMES = {1: "stdout", 2: "stderr"}
_COMMAND_ID = re.compile(r"cmd_[0-9a-f]{1,64}")
T = TypeVar("T")


@router.post(
    "/v2/sandboxes/sessions/{session_id}/cmd",
    openapi_extra=documented(
        StartCommand,
        answer=answers.CommandRead,
        more=(Answer(200, NDJSON, answers.CommandRecord),),
        errors=LIVE,
        example={"command": "echo", "args": ["hello"], "wait": True},
        needs=Permission.COMMAND_RUN,
    ),
)
async def start_command(request: Request, session_id: str) -> Response:
    """Start a command; with `wait` the answer is a stream of its output (with `logs`) that ends with its exit code."""
    services = services_of(request)
    await services.auth.session(request, session_id)
    body = await read(request, StartCommand)
    if not body.command:
        raise BadRequestError("executable_not_found", "[invalid_argument] executable file not found in $PATH: ")
    start = CommandStart(
        session_id=session_id,
        command_id=ids.command_id(),
        argv=[body.command.encode(), *(argument.encode() for argument in body.args)],
        cwd=body.cwd.encode() if body.cwd is not None else None,
        env=body.env,
        sudo=body.sudo,
        timeout_ms=body.timeout,
        stdin=body.attachStdin,
        follow=body.wait and body.logs,
    )
    started = None
    if not start.follow:
        started = await call(services, "command.start", start, CommandRecord)
        if not body.wait:
            return JsonResponse({"command": shapes.command(started)})
        stream = await open_stream(services, "command.get", CommandGet(session_id, start.command_id, wait=True))
    else:
        stream = await open_stream(services, "command.start", start)
    try:
        with host_errors():
            now = await stream.reply(CommandRecord)
    except BaseException:
        stream.cancel()
        raise
    return ndjson(_waited(stream, started or now, now if now.exit_code is not None else None))


@router.get(
    "/v2/sandboxes/sessions/{session_id}/cmd",
    openapi_extra=documented(answer=answers.CommandList, errors=LIVE, needs=Permission.COMMAND_READ),
)
async def list_commands(request: Request, session_id: str) -> Response:
    """The commands of a session, newest first."""
    services = services_of(request)
    await services.auth.session(request, session_id)
    with host_errors():
        records = await services.host.collect("command.list", SessionRef(session_id), CommandRecord)
    return JsonResponse({"commands": [shapes.command(record) for record in records]})


@router.get(
    "/v2/sandboxes/sessions/{session_id}/cmd/{command_id}",
    openapi_extra=documented(
        query={"wait": "`true` waits for the exit"}, answer=answers.CommandRead, errors=LIVE, needs=Permission.COMMAND_READ
    ),
)
async def get_command(request: Request, session_id: str, command_id: str) -> Response:
    """A command; with `wait=true` once it has exited. The head of a waiting answer is sent at once."""
    services = services_of(request)
    await services.auth.session(request, session_id)
    reference = known_command(command_id)
    if not flag(request, "wait"):
        return JsonResponse(
            {"command": shapes.command(await call(services, "command.get", CommandGet(session_id, reference), CommandRecord))}
        )
    stream = await open_stream(services, "command.get", CommandGet(session_id, reference, wait=True))
    try:
        with host_errors():
            record = await stream.reply(CommandRecord)
    except BaseException:
        stream.cancel()
        raise
    if record.exit_code is not None:
        stream.cancel()
        return JsonResponse({"command": shapes.command(record)})
    return late_json(_finished(stream))


@router.get(
    "/v2/sandboxes/sessions/{session_id}/cmd/{command_id}/logs",
    openapi_extra=documented(
        content="application/x-ndjson", answer=answers.LogRecord, errors=LIVE, needs=Permission.COMMAND_READ
    ),
)
async def follow_logs(request: Request, session_id: str, command_id: str) -> Response:
    """The output of a command from its start, then as it comes, until it exits."""
    services = services_of(request)
    await services.auth.session(request, session_id)
    stream = await open_stream(services, "command.logs", CommandRef(session_id, known_command(command_id)))
    try:
        with host_errors():
            await stream.reply()
    except BaseException:
        stream.cancel()
        raise
    return ndjson(_logs(stream))


@router.post(
    "/v2/sandboxes/sessions/{session_id}/cmd/{command_id}/kill",
    openapi_extra=documented(
        KillCommand, answer=answers.CommandRead, errors=LIVE, example={"signal": 15}, needs=Permission.COMMAND_RUN
    ),
)
async def kill_command(request: Request, session_id: str, command_id: str) -> Response:
    """Send a signal to a command's process."""
    services = services_of(request)
    await services.auth.session(request, session_id)
    body = await read(request, KillCommand)
    record = await call(services, "command.kill", CommandKill(session_id, known_command(command_id), body.signal), CommandRecord)
    return JsonResponse({"command": shapes.command(record)})


@router.post(
    "/v2/sandboxes/sessions/{session_id}/cmd/{command_id}/stdin",
    openapi_extra=documented(WriteStdin, answer=answers.StdinWritten, errors=(504, *LIVE), needs=Permission.COMMAND_RUN),
)
async def write_stdin(request: Request, session_id: str, command_id: str) -> Response:
    """Write to a command's standard input. Resending bytes with their `offset` is harmless."""
    services = services_of(request)
    await services.auth.session(request, session_id)
    body = await read(request, WriteStdin, limit=MAX_STDIN_BODY_BYTES)
    data = body.decoded()
    try:
        params = CommandStdin(session_id, known_command(command_id), body.offset, STDIN_TIMEOUT_MS, body.close)
        stream = await open_stream(services, "command.stdin", params)
        try:
            with host_errors():
                await stream.send_data(data, channel=0)
                stream.send_end()
                answer: dict[str, Any] = await stream.reply()
        finally:
            stream.cancel()
    except NotFoundError as error:
        # One code for both, as the vendor has it.
        raise NotFoundError("command_not_found_or_exited", error.message) from error
    written = answer.get("written", 0)
    if answer.get("stalled"):
        raise StalledError(
            "command_stdin_stalled",
            "The process does not read its standard input. Try again later.",
            details={"bytesWritten": written},
        )
    return JsonResponse({"bytesWritten": written})


# -- the host ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def host_errors() -> Iterator[None]:
    """Errors of the host as the caller should see them."""
    try:
        yield
    except HutchError as error:
        translated = session_error(error)
        if translated is error:
            raise
        raise translated from error


async def call(services: Services, method: str, params: object, kind: type[T]) -> T:
    """A request to the host about a session that the control plane knows."""
    with host_errors():
        return await services.host.call(method, params, kind)


async def open_stream(services: Services, method: str, params: object) -> Stream:
    with host_errors():
        return await services.host.open(method, params)


def known_command(command_id: str) -> str:
    """A command id that could exist. Raises `NotFoundError`."""
    if _COMMAND_ID.fullmatch(command_id) is None:
        raise NotFoundError("not_found", f"Command '{command_id[:128]}' not found.")
    return command_id


# -- records ----------------------------------------------------------------------------------------


class LogRecords:
    """Output bytes → NDJSON records. A character that arrives in two pieces is held back until it is whole."""

    def __init__(self) -> None:
        make = codecs.getincrementaldecoder("utf-8")
        self._decoders = {channel: make("replace") for channel in _STREAM_NAMES}

    def feed(self, channel: int, data: bytes) -> bytes:
        decoder = self._decoders.get(channel)
        text = decoder.decode(data) if decoder is not None else ""
        return record(text, channel) if text else b""

    def finish(self) -> bytes:
        """What was held back and never became whole."""
        rest = [(channel, decoder.decode(b"", final=True)) for channel, decoder in self._decoders.items()]
        return b"".join(record(text, channel) for channel, text in rest if text)


def record(text: str, channel: int) -> bytes:
    return line({"data": text, "stream": _STREAM_NAMES[channel]})


def error_record(error: HutchError) -> bytes:
    return line({"stream": "error", "data": {"code": error.code, "message": error.message}})


def _in_band(error: HutchError) -> HutchError:
    """An error in the middle of a stream, with the code on which clients follow the command again."""
    if isinstance(error, ConnectionClosed):
        return BadRequestError("sandbox_stream_closed", "Sandbox stream was closed and is not accepting commands.")
    return session_error(error)


async def _merged(stream: Stream) -> AsyncIterator[Data | Message]:
    """The items of a stream, with neighbouring output of one channel put together: a chatty process costs fewer records."""
    pending: Data | Message | None = None
    while True:
        item = pending if pending is not None else await stream.next()
        pending = None
        if item is None:
            return
        if isinstance(item, Data) and stream.waiting_items:
            parts, size = [item.data], len(item.data)
            while stream.waiting_items and size < RECORD_BYTES:
                following = await stream.next()
                if not isinstance(following, Data) or following.channel != item.channel:
                    pending = following
                    break
                parts.append(following.data)
                size += len(following.data)
            if len(parts) > 1:
                item = Data(item.channel, b"".join(parts))
        yield item


async def _waited(stream: Stream, first: CommandRecord, final: CommandRecord | None) -> AsyncIterator[bytes]:
    """The stream of a waited command: its record as it was when it started, its output, its record again with the exit code,
    which is `final` if that is known already."""
    records = LogRecords()
    try:
        yield line({"command": shapes.command(first)})
        try:
            async for item in _merged(stream):
                if isinstance(item, Message):
                    final = item.decode(CommandRecord)
                elif chunk := records.feed(item.channel, item.data):
                    yield chunk
        except HutchError as error:
            if final is None:
                yield records.finish() + error_record(_in_band(error))
                return
        rest = records.finish()
        if final is None:
            lost = BadRequestError("sandbox_stream_closed", "Sandbox stream was closed and is not accepting commands.")
            yield rest + error_record(lost)
        else:
            yield rest + line({"command": shapes.command(final)})
    finally:
        stream.cancel()


async def _logs(stream: Stream) -> AsyncIterator[bytes]:
    records = LogRecords()
    try:
        try:
            async for item in _merged(stream):
                if isinstance(item, Data) and (chunk := records.feed(item.channel, item.data)):
                    yield chunk
        except HutchError as error:
            yield records.finish() + error_record(_in_band(error))
            return
        if rest := records.finish():
            yield rest
    finally:
        stream.cancel()


async def _finished(stream: Stream) -> AsyncIterator[bytes]:
    """The final record of a command. When the session ends first, the answer breaks off: its status was sent already, and a
    client that asks again is told 410."""
    try:
        async for item in stream:
            if isinstance(item, Message):
                yield encode({"command": shapes.command(item.decode(CommandRecord))})
                return
        raise ConnectionClosed("the host ended the wait")
    finally:
        stream.cancel()

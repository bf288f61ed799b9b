"""Checks that every answer of the API is one that `hutch.control.answers` and the endpoint's documentation allow.

`Checked` stands in front of the application in the servers of tests. It changes nothing; what is wrong is in `violations`, which
the fixture that made it looks at in the end. A field that is not declared is wrong, and so is a null where none is allowed, a
status or content type that the endpoint does not document, and an error of another shape.
"""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from typing import Any

from pydantic import TypeAdapter, ValidationError
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hutch.api.app import ROUTERS
from hutch.api.first_version import current_path
from hutch.api.openapi import statuses
from hutch.api.responses import JSON_TYPE
from hutch.api.routing import JSON, NDJSON, Answer, PlainRoute, VersionedPaths
from hutch.control import answers

ROUTES = [route for router in ROUTERS for route in router.routes if isinstance(route, PlainRoute)]
CLIENT_GONE = 499
MOST_BYTES = 16 * 1024 * 1024
"""Of an answer that is kept until its end, to be checked."""


@functools.cache
def adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def is_first_version(scope: Scope) -> bool:
    """Whether a request is one of the vendor's first API, whose answers have other names (`answers.FIRST_VERSION`)."""
    return current_path(scope["method"], scope["path"].removeprefix("/api")) is not None


async def find_route(scope: Scope) -> PlainRoute | int:
    """The route that a request reaches; else the status that it has to be answered with."""
    found: dict[str, Any] = dict(scope)

    async def routed(rewritten: Scope, receive: Any, send: Any) -> None:
        found.update(rewritten)

    await VersionedPaths(routed)(dict(scope), None, None)  # type: ignore[arg-type]
    found["path"] = current_path(found["method"], found["path"]) or found["path"]
    status = 404
    for route in ROUTES:
        match, _ = route.matches(found)
        if match is Match.FULL:
            return route
        if match is Match.PARTIAL:
            status = 405
    return status


class Checked:
    """The application with every answer looked at."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.violations: list[str] = []
        self.seen: set[tuple[str, int]] = set()
        """Names of endpoints and statuses that were answered."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # The application rewrites the path in its scope.
        asked = dict(scope)
        record = Record()

        async def sending(message: Message) -> None:
            record.add(message)
            await send(message)

        try:
            await self._app(scope, receive, sending)
        finally:
            if record.status:
                await self._check(asked, record)

    async def _check(self, scope: Scope, record: Record) -> None:
        route = await find_route(scope)
        problems = problems_of(route, record, first_version=is_first_version(scope))
        self.violations += [
            f"{scope['method']} {scope['path'][:200]} → {record.status}: {problem}\n    {bytes(record.body[:2000])!r}"
            for problem in problems
        ]
        self.seen.add((route.name if isinstance(route, PlainRoute) else "", record.status))


class Record:
    """What was answered, as far as it is to be checked."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = bytearray()
        self.size = 0
        self.ended = False

    def add(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in message["headers"]}
            return
        chunk = message.get("body", b"")
        self.size += len(chunk)
        if self.content in (JSON_TYPE.decode(), NDJSON) and self.size <= MOST_BYTES:
            self.body += chunk
        self.ended = self.ended or not message.get("more_body", False)

    @property
    def content(self) -> str:
        return self.headers.get("content-type", "")

    @property
    def whole(self) -> bool:
        return self.ended and self.size <= MOST_BYTES


def problems_of(route: PlainRoute | int, record: Record, *, first_version: bool = False) -> list[str]:
    """What is wrong with an answer."""
    if record.status == CLIENT_GONE:
        return []
    successes = [] if isinstance(route, int) else [one for one in route.documentation.successes if one.status == record.status]
    if successes:
        if first_version:
            successes = [replace(one, kind=answers.FIRST_VERSION.get(one.kind, one.kind)) for one in successes]
        return _success(successes, record)
    if isinstance(route, int):
        # Refused before anybody looks at the path, or by the router.
        allowed = {route, 421, 503}
        problems = [] if record.status != 405 or record.headers.get("allow") else ["405 without `Allow`"]
    else:
        # 421 is answered before anybody looks at the path, too.
        allowed, problems = {*statuses(route), 421}, []
    if record.status not in allowed:
        problems.append(f"the status is not one of {sorted(allowed)}")
    return problems + _error(record)


def _success(possible: list[Answer], record: Record) -> list[str]:
    if record.status == 204 or (record.status == 202 and all(answer.kind is None for answer in possible)):
        return [f"{record.status} with a body"] if record.size else []
    by_content = {(JSON_TYPE.decode() if answer.content == JSON else answer.content): answer for answer in possible}
    answer = by_content.get(record.content) or next(
        (one for content, one in by_content.items() if content.startswith("text/") and record.content.startswith(content)), None
    )
    if answer is None:
        return [f"the content type is {record.content!r}, not one of {sorted(by_content)}"]
    if answer.kind is None or answer.kind is Any:
        return []
    if answer.content == NDJSON:
        return _records(answer.kind, record)
    return _object(answer.kind, bytes(record.body)) if record.whole else []


def _records(kind: Any, record: Record) -> list[str]:
    *lines, rest = bytes(record.body).split(b"\n")
    if kind not in (answers.CommandRecord, answers.FirstCommandRecord):
        # Streams of builds have empty lines while nothing is said.
        lines = [line for line in lines if line]
    problems = [problem for line in lines for problem in _object(kind, line)]
    if not record.whole or problems:
        return problems
    if rest:
        problems.append("the last record does not end its line")
    if kind in (answers.CommandRecord, answers.FirstCommandRecord):
        problems += _order([json.loads(line) for line in lines])
    return problems


def _order(records: list[dict[str, Any]]) -> list[str]:
    """A command, what it wrote, and the command again when it is over; or an error as the last."""
    shape = "".join("c" if "command" in one else "e" if one["stream"] == "error" else "o" for one in records)
    if shape.replace("o", "") not in ("cc", "ce") or shape[0] != "c" or shape[-1] == "o":
        return [f"the records come as {shape!r}"]
    first, last = records[0], records[-1]
    if shape[-1] == "c" and (first["command"]["id"] != last["command"]["id"] or last["command"]["exitCode"] is None):
        return ["the last record is not that of the command, over"]
    return []


def _error(record: Record) -> list[str]:
    problems = []
    if record.content != JSON_TYPE.decode():
        problems.append(f"an error with the content type {record.content!r}")
    elif record.whole:
        problems += _object(answers.Error, bytes(record.body))
    if record.status in (429, 503) and not record.headers.get("retry-after", "").isdecimal():
        problems.append("no `Retry-After`")
    if record.status == 401 and record.headers.get("www-authenticate") != "Bearer":
        problems.append("no `WWW-Authenticate`")
    return problems


def _object(kind: Any, body: bytes) -> list[str]:
    try:
        adapter(kind).validate_json(body)
    except ValidationError as error:
        return [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors(include_url=False)]
    return []

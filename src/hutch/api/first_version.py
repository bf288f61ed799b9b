"""The vendor's first API, `/v1/sandboxes`, as it is still spoken by `@vercel/sandbox` 1.x and what is pinned to it.

It knew no named sandboxes: what it calls a sandbox is a session here. So it is the same endpoints under other names, and this
is all that stands between: paths and a create's default on the way in, names of fields on the way out.

    POST /v1/sandboxes                 a sandbox that keeps nothing, with a name of ours; answered with its session
    GET  /v1/sandboxes                 sessions, one page: its cursors were times, and are not given
    …    /v1/sandboxes/snapshots…      snapshots
    …    /v1/sandboxes/{id}…           the session

What that makes of each answer is said in `hutch.control.answers` (`FIRST_VERSION`).
"""

from __future__ import annotations

import json
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hutch.control import strict_json

_PREFIX = "/v1/sandboxes"
_SESSIONS = "/v2/sandboxes/sessions"
_NDJSON = "application/x-ndjson"
# What a create's body may be long at the most is checked where it is read; this only keeps a flood out of memory before that.
MAX_CREATE_BYTES = 2 * 1024 * 1024


def current_path(method: str, path: str) -> str | None:
    """What a path (without `/api`) of the first API is in the current one; None for one that is none."""
    if path != _PREFIX and not path.startswith(f"{_PREFIX}/"):
        return None
    rest = path.removeprefix(_PREFIX)
    if rest == "" and method != "GET":
        # Sandboxes take what sessions take, and creates.
        return "/v2/sandboxes"
    return f"/v2/sandboxes{rest}" if rest.split("/")[1:2] == ["snapshots"] else _SESSIONS + rest


def former_path(method: str, path: str) -> str | None:
    """The other way round: where the first API had an endpoint; None for one that it did not have."""
    if path.startswith(_SESSIONS):
        return _PREFIX + path.removeprefix(_SESSIONS)
    found = _PREFIX + path.removeprefix("/v2/sandboxes")
    return found if current_path(method, found) == path else None


class FirstVersion:
    """Stands before the routes; `path` has no `/api` any more."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked: str = scope.get("path", "")
        path = current_path(scope["method"], asked) if scope["type"] == "http" else None
        if path is None:
            await self._app(scope, receive, send)
            return
        scope["path"] = path
        if path == "/v2/sandboxes" and scope["method"] == "POST":
            scope, receive = await _not_persistent(scope, receive)
        await self._app(scope, receive, _Renaming(send))


async def _not_persistent(scope: Scope, receive: Receive) -> tuple[Scope, Receive]:
    """The same request with `persistent: false` in its body. What is no JSON object is refused further on, as it is."""
    body, more = b"", True
    while more and len(body) <= MAX_CREATE_BYTES:
        message = await receive()
        if message["type"] != "http.request":
            return scope, _again(message, receive)
        body += message.get("body", b"")
        more = message.get("more_body", False)
    whole = None
    try:
        value = strict_json.load(body or b"{}")
        if isinstance(value, dict) and not more:
            whole = json.dumps({"persistent": False} | value).encode()
    except (ValueError, RecursionError):
        pass
    if whole is not None:
        body = whole
        headers = [(name, content) for name, content in scope["headers"] if name not in (b"content-length", b"transfer-encoding")]
        scope = {**scope, "headers": [*headers, (b"content-length", str(len(body)).encode())]}
    return scope, _again({"type": "http.request", "body": body, "more_body": more}, receive)


def _again(first: Message, receive: Receive) -> Receive:
    waiting = [first]

    async def receiving() -> Message:
        return waiting.pop() if waiting else await receive()

    return receiving


class _Renaming:
    """Renames fields in answers that are JSON or lines of JSON; everything else passes as it comes."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None
        self._kind = ""
        self._left = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = Headers(raw=message["headers"])
            self._kind = headers.get("content-type", "").split(";")[0]
            if self._kind == "application/json" and "content-length" in headers:
                # Its length is known when its body is. One without a length is a long wait, whose head goes out at once.
                self._start = message
            else:
                await self._send(message)
        elif message["type"] == "http.response.body" and self._kind == "application/json":
            await self._whole(message)
        elif message["type"] == "http.response.body" and self._kind == _NDJSON:
            *lines, self._left = (self._left + message.get("body", b"")).split(b"\n")
            body = b"".join(_line(line) + b"\n" for line in lines)
            await self._send({**message, "body": body})
        else:
            await self._send(message)

    async def _whole(self, message: Message) -> None:
        self._left += message.get("body", b"")
        if message.get("more_body"):
            return
        body = json.dumps(_renamed(json.loads(self._left)), separators=(",", ":")).encode() if self._left.strip() else self._left
        if self._start is not None:
            MutableHeaders(raw=self._start["headers"])["content-length"] = str(len(body))
            await self._send(self._start)
        await self._send({"type": "http.response.body", "body": body})


def _line(line: bytes) -> bytes:
    # Output is most of it, and has nothing to rename.
    return json.dumps(_renamed(json.loads(line)), separators=(",", ":")).encode() if line.startswith(b'{"command"') else line


def _renamed(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if "session" in value:
        value["sandbox"] = value.pop("session")
    if "sessions" in value:
        value["sandboxes"] = value.pop("sessions")
    for command in (value.get("command"), *value.get("commands", ())):
        if command is not None:
            command["sandboxId"] = command.pop("sessionId")
    nodes = [value, *(node for node in (value.get("anchor"), *value.get("snapshots", ())) if node and "siblings" in node)]
    snapshots = [one for node in nodes for one in (node.get("snapshot"), *node.get("siblings", ()))]
    for snapshot in (*snapshots, *value.get("snapshots", ())):
        if snapshot is not None and "sourceSessionId" in snapshot:
            snapshot["sourceSandboxId"] = snapshot.pop("sourceSessionId")
    if "pagination" in value:
        value["pagination"] = {"count": value["pagination"]["count"], "next": None, "prev": None}
    return value

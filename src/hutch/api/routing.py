"""How a path reaches an endpoint.

`VersionedPaths` lets one set of routes serve `/api/...` and `/...`, and versions 2 to 4 of the sandbox API, which differ only
in defaults. `PlainRoute` is a FastAPI route without its dependency machinery: the endpoint gets the request and its path
parameters, and returns a response. That keeps a command start lean. What it takes and answers is said beside it, with
`documented`: from that come the OpenAPI document (`hutch.api.openapi`) and the check of every answer in the tests. So is the
permission that it needs: a route without one can't be made, and no endpoint is called before its caller was found to have it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Receive, Scope, Send

from hutch.api.errors import error_response, fault
from hutch.api.services import services_of
from hutch.control.names import RESERVED_NAMES
from hutch.control.permissions import Permission
from hutch.errors import HutchError

log = logging.getLogger(__name__)

VERSION_KEY = "hutch.api_version"
_SANDBOX = "/v2/sandboxes/{name}"


class VersionedPaths:
    """`/api/v3/sandboxes` and `/v3/sandboxes` → `/v2/sandboxes`, with the version kept in the scope."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            path: str = scope["path"]
            if path.startswith("/api/"):
                path = scope["path"] = path[4:]
            if path.startswith(("/v3/sandboxes", "/v4/sandboxes")):
                scope[VERSION_KEY] = int(path[2])
                scope["path"] = "/v2" + path[3:]
        await self._app(scope, receive, send)


def api_version(request: Request) -> int:
    version: int = request.scope.get(VERSION_KEY, 2)
    return version


class PlainRoute(APIRoute):
    """A route whose endpoint is called directly: `endpoint(request, **path_parameters) -> Response`. `documentation` says what it
    takes and answers, and who may call it. Raises `TypeError` where that is not said."""

    documentation: Documented

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        given = self.openapi_extra
        if not isinstance(given, Documented):
            raise TypeError(f"{path} has no `documented(...)`")
        self.documentation = given
        needs = given.needs

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            request = Request(scope, receive, send)
            try:
                if needs is not None:
                    await services_of(request).auth.admit(request, needs)
                response = await endpoint(request, **scope["path_params"])
            except HutchError as error:
                response = self.refusal(error)
            except ClientDisconnect:
                return
            except Exception as error:  # noqa: BLE001 - the one place where faults become answers
                response = self.refusal(fault(error))
            try:
                await response(scope, receive, send)
            except HutchError as error:
                # The head is out already, so the only way to say that the rest is missing is to end here: uvicorn then closes
                # the connection, and the client sees an answer that broke off.
                log.info("an answer broke off: %s", error)

        self.app = app

    @staticmethod
    def refusal(error: HutchError) -> Response:
        """How an error is answered."""
        return error_response(error)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, found = super().matches(scope)
        if self.path == _SANDBOX and match is not Match.NONE and found["path_params"]["name"] in RESERVED_NAMES:
            # A method that, say, the list of snapshots does not take is none of a sandbox of that name, which can't be.
            return Match.NONE, {}
        return match, found


class WorkerRoute(PlainRoute):
    """A route of the Workers door: errors have the vendor's fields as well."""

    @staticmethod
    def refusal(error: HutchError) -> Response:
        return error_response(error, named=True)


# -- documentation ----------------------------------------------------------------------------------

JSON = "application/json"
NDJSON = "application/x-ndjson"
FORM = "application/x-www-form-urlencoded"
ALWAYS = (400, 401, 403, 421, 429, 500, 503)
"""What anything that needs a token may be answered: a query that can't be meant, a token that is none or not for this, a name of
a sandbox's port, too many requests, a fault of ours, a part that is away."""
LIVE = (409, 410, 422)
"""What is answered besides about a session that is over, going down, or busy."""

Parameters = Mapping[str, str | tuple[str, dict[str, Any]]]
"""Names of parameters → what they are for, with a JSON schema where they are not any text."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A success. `kind` is a type of `hutch.control.answers`: of the whole answer or, for NDJSON, of each record. None: bytes, or
    nothing at all with 204."""

    status: int
    content: str
    kind: Any


class Documented(dict[str, Any]):
    """What an endpoint takes and answers. A dict, because FastAPI wants one; there is nothing in it."""

    __slots__ = ("body", "content", "errors", "example", "headers", "needs", "public", "query", "successes")

    def __init__(
        self,
        body: type[BaseModel] | None,
        content: str,
        example: object,
        query: Parameters,
        headers: Parameters,
        successes: tuple[Answer, ...],
        errors: frozenset[int],
        *,
        needs: Permission | None,
        public: bool,
    ) -> None:
        super().__init__()
        self.body = body
        self.content = content
        self.example = example
        self.query = query
        self.headers = headers
        self.successes = successes
        self.errors = errors
        self.needs = needs
        self.public = public


def documented(
    body: type[BaseModel] | None = None,
    *,
    answer: Any = None,
    query: Parameters | None = None,
    headers: Parameters | None = None,
    content: str = JSON,
    status: int = 200,
    more: Sequence[Answer] = (),
    errors: Sequence[int] = (),
    upload: str = JSON,
    example: object = None,
    needs: Permission | None = None,
    public: bool = False,
) -> Documented:
    """The `openapi_extra` of an endpoint.

    It takes a JSON `body`, or bytes of the content type `upload`; `query` parameters and `headers` besides those that all take.
    It answers `status` with the object `answer` (of `hutch.control.answers`), or one of `more`; or one of the statuses `errors`,
    or of those that every endpoint has. Its caller `needs` a permission, unless it is `public`: one of the two has to be said.
    """
    if (needs is None) is not public:
        raise TypeError("an endpoint needs a permission or is public")
    statuses = {500, 503, *errors} if public else {*ALWAYS, *errors}
    if body is not None or upload != JSON:
        statuses |= {408, 413, 415}
    return Documented(
        body,
        upload,
        example,
        query or {},
        headers or {},
        (Answer(status, content, answer), *more),
        frozenset(statuses),
        needs=needs,
        public=public,
    )

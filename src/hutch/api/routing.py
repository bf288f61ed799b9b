"""How a path reaches an endpoint.

`VersionedPaths` lets one set of routes serve `/api/...` and `/...`, and versions 2 to 4 of the sandbox API, which differ only
in defaults. `PlainRoute` is a FastAPI route without its dependency machinery: the endpoint gets the request and its path
parameters, and returns a response; FastAPI only documents it. That keeps a command start lean.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Receive, Scope, Send

from hutch import __version__
from hutch.api.errors import error_response, fault_response
from hutch.errors import HutchError

log = logging.getLogger(__name__)

VERSION_KEY = "hutch.api_version"


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
    """A route whose endpoint is called directly: `endpoint(request, **path_parameters) -> Response`."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint, **options)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                response = await endpoint(Request(scope, receive, send), **scope["path_params"])
            except HutchError as error:
                response = error_response(error)
            except ClientDisconnect:
                return
            except Exception as error:  # noqa: BLE001 - the one place where faults become answers
                response = fault_response(error)
            try:
                await response(scope, receive, send)
            except HutchError as error:
                # The head is out already, so the only way to say that the rest is missing is to end here: uvicorn then closes
                # the connection, and the client sees an answer that broke off.
                log.info("an answer broke off: %s", error)

        self.app = app


# -- documentation ----------------------------------------------------------------------------------


def documented(
    body: type[BaseModel] | None = None,
    *,
    query: dict[str, str] | None = None,
    headers: dict[str, str] | None = None,
    content: str = "application/json",
    status: int = 200,
    public: bool = False,
) -> dict[str, Any]:
    """The `openapi_extra` of an endpoint: its body, its query parameters and headers (name → description), what it answers."""
    extra: dict[str, Any] = {}
    parameters = [
        {"name": name, "in": place, "required": False, "description": text, "schema": {"type": "string"}}
        for place, named in (("query", query), ("header", headers))
        for name, text in (named or {}).items()
    ]
    if parameters:
        extra["parameters"] = parameters
    if body is not None:
        schema = body.model_json_schema(ref_template="#/components/schemas/{model}")
        extra["requestBody"] = {"content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{body.__name__}"}}}}
        extra["x-hutch-schemas"] = schema.pop("$defs", {}) | {body.__name__: schema}
    extra["responses"] = {str(status): {"description": "Success"} | ({"content": {content: {}}} if status != 204 else {})}
    if not public:
        extra["responses"]["default"] = {"$ref": "#/components/responses/Error"}
        extra["security"] = [{"token": []}]
    return extra


_ERROR = {
    "description": "What was wrong, with a stable code.",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["error"],
                "properties": {
                    "error": {
                        "type": "object",
                        "required": ["code", "message"],
                        "properties": {"code": {"type": "string"}, "message": {"type": "string"}},
                    }
                },
            }
        }
    },
}


def openapi(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, made once."""
    if app.openapi_schema is None:
        document = get_openapi(
            title="Hutch",
            version=__version__,
            description="Sandboxes for code that nobody trusts. Every path is served below `/api` and at the root; "
            "versions 2, 3 and 4 of the sandbox API differ only in defaults.",
            routes=app.routes,
            servers=[{"url": "/api"}],
        )
        components = document.setdefault("components", {})
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}}
        components["responses"] = {"Error": _ERROR}
        schemas = components.setdefault("schemas", {})
        for path in document["paths"].values():
            for operation in path.values():
                schemas.update(operation.pop("x-hutch-schemas", {}))
        app.openapi_schema = json.loads(json.dumps(document))
    assert app.openapi_schema is not None
    return app.openapi_schema

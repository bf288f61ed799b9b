"""The error tree → HTTP, the only place that does it."""

from __future__ import annotations

import logging

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route

from hutch.api.responses import Headers, JsonResponse
from hutch.errors import HutchError, InternalError, UnauthorizedError

log = logging.getLogger(__name__)

DEFAULT_RETRY_AFTER_S = 1
_CODES = {404: "not_found", 405: "method_not_allowed", 413: "payload_too_large"}


def error_response(error: HutchError, *, named: bool = False) -> JsonResponse:
    """An error as an answer; `named` adds `name` and `message`, which the vendor's client of workers reads."""
    headers: Headers = []
    retry_after_s = error.retry_after_s
    if retry_after_s is None and error.retryable:
        # Errors that came from the host have lost theirs on the way.
        retry_after_s = DEFAULT_RETRY_AFTER_S
    if retry_after_s is not None:
        headers.append((b"retry-after", str(retry_after_s).encode()))
    if isinstance(error, UnauthorizedError):
        headers.append((b"www-authenticate", b"Bearer"))
    body = error.body()
    if named:
        body |= {"name": getattr(error, "name", type(error).__name__), "message": error.message}
    return JsonResponse(body, error.status, headers)


def fault(error: BaseException) -> HutchError:
    """An error that nobody raised on purpose, as callers see it. Its text stays in the log."""
    log.error("unexpected error", exc_info=error)
    return InternalError("internal_error", "The server failed to handle the request. Its log says why.")


def _allowed(request: Request) -> list[str]:
    """Every method that the path takes. The router only says what the first of its routes does."""
    routes = [route for route in request.app.routes if isinstance(route, Route)]
    # What is first also matches a name below it, such as `{name}`, which is another resource.
    path = next(route.path for route in routes if route.matches(request.scope)[0] is not Match.NONE)
    return sorted({method for route in routes if route.path == path for method in route.methods or ()})


def install(app: FastAPI) -> None:
    """Answer what the router itself refuses in the one error shape."""

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = _CODES.get(error.status_code, "bad_request")
        message = (
            f"There is no endpoint {request.method} {request.url.path[:256]}." if error.status_code == 404 else str(error.detail)
        )
        headers = [(key.lower().encode(), value.encode()) for key, value in (error.headers or {}).items()]
        if error.status_code == 405:
            message = f"{request.url.path[:256]} does not take {request.method[:16]}."
            headers = [(b"allow", ", ".join(_allowed(request)).encode())]
        return JsonResponse({"error": {"code": code, "message": message}}, error.status_code, headers)

    app.add_exception_handler(HTTPException, http_error)

"""The error tree → HTTP, the only place that does it."""

from __future__ import annotations

import logging

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from hutch.api.responses import Headers, JsonResponse
from hutch.errors import HutchError, InternalError, UnauthorizedError

log = logging.getLogger(__name__)

DEFAULT_RETRY_AFTER_S = 1
_CODES = {404: "not_found", 405: "method_not_allowed", 413: "payload_too_large"}


def error_response(error: HutchError) -> JsonResponse:
    headers: Headers = []
    retry_after_s = error.retry_after_s
    if retry_after_s is None and error.retryable:
        # Errors that came from the host have lost theirs on the way.
        retry_after_s = DEFAULT_RETRY_AFTER_S
    if retry_after_s is not None:
        headers.append((b"retry-after", str(retry_after_s).encode()))
    if isinstance(error, UnauthorizedError):
        headers.append((b"www-authenticate", b"Bearer"))
    return JsonResponse(error.body(), error.status, headers)


def fault_response(error: BaseException) -> JsonResponse:
    """An error that nobody raised on purpose. Its text stays in the log."""
    log.error("unexpected error", exc_info=error)
    return error_response(InternalError("internal_error", "The server failed to handle the request. Its log says why."))


def install(app: FastAPI) -> None:
    """Answer what the router itself refuses in the one error shape."""

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = _CODES.get(error.status_code, "bad_request")
        message = (
            f"There is no endpoint {request.method} {request.url.path[:256]}." if error.status_code == 404 else str(error.detail)
        )
        if error.status_code == 405:
            message = f"{request.url.path[:256]} does not take {request.method[:16]}."
        headers = [(key.lower().encode(), value.encode()) for key, value in (error.headers or {}).items()]
        return JsonResponse({"error": {"code": code, "message": message}}, error.status_code, headers)

    app.add_exception_handler(HTTPException, http_error)

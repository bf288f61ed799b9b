"""The application: which routers, and what stands in front of them."""

from __future__ import annotations

import time

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hutch import __version__
from hutch.api import (
    audit,
    commands,
    credentials,
    drives,
    errors,
    files,
    forwarding,
    images,
    interactive,
    network_bounds,
    network_policy,
    sandboxes,
    sessions,
    snapshot_files,
    snapshots,
    system,
    tokens,
    traffic,
)
from hutch.api.errors import error_response
from hutch.api.routing import VersionedPaths
from hutch.api.services import Services
from hutch.errors import UnavailableError

ROUTERS = (
    # Starlette tries routes in order: what is called most comes first, and fixed paths before `{name}`.
    commands.router,
    files.router,
    sessions.router,
    network_policy.router,
    interactive.router,
    snapshots.router,
    snapshot_files.router,
    drives.router,
    sandboxes.router,
    tokens.router,
    credentials.router,
    images.router,
    network_bounds.router,
    audit.router,
    traffic.router,
    forwarding.router,
    system.router,
)
ALWAYS_ANSWERED = frozenset({"/healthz", "/readyz", "/metrics", "/health"})


def create_app(services: Services) -> ASGIApp:
    """The whole ASGI application over started services."""
    app = FastAPI(title="Hutch", version=__version__, openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.services = services
    for router in ROUTERS:
        # Not `include_router`: it wraps each route in FastAPI's own machinery again, which `PlainRoute` exists to avoid.
        app.router.routes.extend(router.routes)
    app.router.routes.append(interactive.route)
    errors.install(app)
    return VersionedPaths(Front(app, services))


class Front:
    """Counts requests, and refuses work while draining."""

    def __init__(self, app: ASGIApp, services: Services) -> None:
        self._app = app
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        metrics = self._services.metrics
        began, status = time.perf_counter(), 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        metrics.running.inc()
        try:
            if self._services.draining and scope["path"] not in ALWAYS_ANSWERED:
                refusal = UnavailableError("shutting_down", "The server is shutting down. Try again.", retry_after_s=2)
                await error_response(refusal)(scope, receive, sending)
            else:
                await self._app(scope, receive, sending)
        finally:
            metrics.running.dec()
            route = getattr(scope.get("route"), "path", "unmatched")
            metrics.requests.labels(scope["method"] if route != "unmatched" else "other", route, str(status or 499)).inc()
            metrics.seconds.labels(route).observe(time.perf_counter() - began)

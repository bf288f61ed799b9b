"""The application: which routers, and what stands in front of them."""

from __future__ import annotations

import time
from urllib.parse import urlsplit

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hutch import __version__
from hutch.api import (
    audit,
    audit_log,
    automations,
    budgets,
    commands,
    credentials,
    databases,
    drives,
    errors,
    events,
    files,
    forwarding,
    images,
    ingress,
    interactive,
    login,
    members,
    network_bounds,
    network_policy,
    notion_targets,
    rates,
    sandboxes,
    sessions,
    snapshot_files,
    snapshots,
    syncs,
    system,
    teams,
    tokens,
    traffic,
    usage,
    worker_login,
    worker_mcp,
    worker_network,
    worker_runs,
    worker_tokens,
    worker_tools,
    worker_webhooks,
    workers,
)
from hutch.api.errors import error_response
from hutch.api.first_version import FirstVersion
from hutch.api.routing import PlainRoute, VersionedPaths
from hutch.api.services import Services
from hutch.errors import HutchError, MisdirectedError, NotFoundError, UnavailableError, UnsupportedMediaError
from hutch.settings import Settings, split_listen

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
    teams.router,
    members.router,
    login.router,
    audit_log.router,
    credentials.router,
    images.router,
    network_bounds.router,
    usage.router,
    budgets.router,
    events.router,
    ingress.router,
    audit.router,
    traffic.router,
    forwarding.router,
    syncs.router,
    notion_targets.router,
    databases.router,
    workers.router,
    worker_webhooks.router,
    automations.router,
    worker_runs.router,
    worker_tools.router,
    worker_network.router,
    worker_mcp.router,
    worker_tokens.router,
    worker_login.router,
    worker_login.page_router,
    system.router,
)
WEBHOOKS = "/webhooks/worker/"
ALWAYS_ANSWERED = frozenset({"/healthz", "/readyz", "/metrics", "/health"})


def create_app(services: Services) -> ASGIApp:
    """The whole ASGI application over started services."""
    app = FastAPI(title="Hutch", version=__version__, openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.services = services
    for router in ROUTERS:
        # Not `include_router`: it wraps each route in FastAPI's own machinery again, which `PlainRoute` exists to avoid.
        # And only `PlainRoute` asks for the permission of the caller.
        if not all(isinstance(route, PlainRoute) for route in router.routes):
            raise TypeError("a router has a route that is no PlainRoute")
        app.router.routes.extend(router.routes)
    app.router.routes.append(interactive.route)
    errors.install(app)
    return VersionedPaths(FirstVersion(Front(app, services)))


async def misdirected(scope: Scope, receive: Receive, send: Send, why: str) -> None:
    """Nothing of the API is at a name of a sandbox, or of webhooks: their pages must not have the API's origin."""
    await error_response(MisdirectedError("misdirected_request", why))(scope, receive, send)


def webhook_name(settings: Settings, host: str) -> bool:
    """Whether a `Host` is the one that webhooks have for themselves."""
    parts = urlsplit(settings.workers.webhook_url or "")
    if parts.hostname is None or parts.hostname == urlsplit(settings.server.public_url or "").hostname:
        return False
    try:
        name, _ = split_listen(host)
    except ValueError:
        name = host
    return name.lower().rstrip(".") == parts.hostname


def coded(scope: Scope) -> UnsupportedMediaError | None:
    """The refusal of a body that is compressed for its way: none has to be, and none is unpacked here."""
    for name, value in scope["headers"]:
        if name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
            return UnsupportedMediaError(
                "unsupported_encoding",
                "The body has a `content-encoding`, which is not taken. Send it as it is; archives may be gzipped files.",
            )
    return None


def _shutting_down() -> UnavailableError:
    return UnavailableError("shutting_down", "The server is shutting down. Try again.", retry_after_s=2)


def passed_on(scope: Scope) -> Scope:
    """A request that the ingress passes on, as its client has sent it: headers of the ingress's own say where it came from."""
    headers = dict(scope["headers"])
    client = headers.get(b"x-forwarded-for", b"").decode("latin-1")
    scheme = headers.get(b"x-forwarded-proto", b"http").decode("latin-1")
    return {**scope, "client": (client, 0) if client else None, "scheme": scheme}


class Front:
    """Counts requests, and refuses work while draining."""

    def __init__(self, app: ASGIApp, services: Services) -> None:
        self._app = app
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        host = next((value for name, value in scope["headers"] if name == b"host"), b"").decode("latin-1")
        port = self._services.webhooks_port
        at_ingress = port is not None and (scope.get("server") or (None, None))[1] == port
        if at_ingress:
            scope = passed_on(scope)
        if at_ingress or webhook_name(self._services.settings, host):
            if not scope["path"].startswith(WEBHOOKS):
                await misdirected(scope, receive, send, "This name is that of webhooks. There is nothing else.")
                return
        elif ingress.is_below_domain(self._services.settings, host):
            await misdirected(
                scope, receive, send, "This name is a sandbox's. Its port is served by the ingress (`ingress_url`)."
            )
            return
        if scope["type"] == "websocket":
            await self._socket(scope, receive, send)
            return
        metrics = self._services.metrics
        began, status = time.perf_counter(), 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *rates.headers(scope)]
            await send(message)

        metrics.running.inc()
        try:
            if self._services.draining and scope["path"] not in ALWAYS_ANSWERED:
                await error_response(_shutting_down())(scope, receive, sending)
            elif (refusal := coded(scope)) is not None:
                await error_response(refusal)(scope, receive, sending)
            else:
                await self._app(scope, receive, sending)
        finally:
            metrics.running.dec()
            route = getattr(scope.get("route"), "path", "unmatched")
            metrics.requests.labels(scope["method"] if route != "unmatched" else "other", route, str(status or 499)).inc()
            metrics.seconds.labels(route).observe(time.perf_counter() - began)

    async def _socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A WebSocket: there is one place that has some."""
        refusal: HutchError | None = None
        if scope["path"] != interactive.TERMINAL_PATH:
            refusal = NotFoundError("not_found", f"There is no WebSocket at {scope['path'][:256]}.")
        elif self._services.draining:
            refusal = _shutting_down()
        if refusal is not None:
            await error_response(refusal)(scope, receive, send)
            return
        await self._app(scope, receive, send)

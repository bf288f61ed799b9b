"""Exposed ports: telling the host which names there are, links to private ones, and resuming what a request asks for.

    create, PATCH, fork, delete, project's default ─▶ written ─▶ announce ─▶ host ─▶ ingress
    a connection to the host begins ─▶ everything is announced

Announcing reads the database when it is its turn, so that what the host heard last is what was written last. It happens in one
task: what is asked for meanwhile goes with the next message. While the host is away nothing is lost: all is announced when it is
back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from hutch.api import sandboxes
from hutch.api.body import read
from hutch.api.responses import JsonResponse
from hutch.api.routing import PlainRoute, documented
from hutch.api.services import Services, services_of
from hutch.control import answers, shapes
from hutch.control.permissions import Permission
from hutch.control.requests import LinkBody, ProjectIngress
from hutch.errors import BadRequestError, HutchError, InternalError, NotFoundError, UnavailableError
from hutch.host.protocol import IngressKey, IngressRoutes, IngressUpdate, IngressWake
from hutch.settings import Settings, split_listen
from hutch.storage import audit_log
from hutch.storage import ingress as rows
from hutch.storage.sealing import read_or_create
from hutch.wire.connection import ConnectionClosed, Message

router = APIRouter(route_class=PlainRoute, tags=["ingress"])
log = logging.getLogger(__name__)

DEFAULT_TTL_S = 3600
RETRY_S = 1.0
RESUMES_AT_ONCE = 8
_TEAM = {"teamId": "Id or slug of the project's team; default: the token's"}
_PROJECT = {"projectId": "Id or slug"}


class LinkSigner:
    """Signs what opens a private port, with a key in a private file, made on first use. Raises `InternalError`."""

    def __init__(self, path: Path) -> None:
        key = load_pem_private_key(read_or_create(path, _new_key), None)
        if not isinstance(key, Ed25519PrivateKey):
            raise InternalError("ingress_key_unreadable", f"{path} is not an Ed25519 key. Remove it to have another one made.")
        self._key = key

    @property
    def public_hex(self) -> str:
        return self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()

    def token(self, subdomain: str, expires_s: int, epoch: int) -> str:
        """As `crates/net/src/ingress/token.rs` reads it."""
        text = f"v1.{subdomain}.{expires_s}.{epoch}"
        return f"{text}.{self._key.sign(f'hutch-ingress:{text}'.encode()).hex()}"


def _new_key() -> bytes:
    return Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


# -- telling the host -------------------------------------------------------------------------------


class Announcer:
    """What the host is still to be told. `announce` waits until it was."""

    def __init__(self) -> None:
        self._due: dict[str, list[asyncio.Future[None]]] = {}
        self._wanted = asyncio.Event()
        self._everything = False

    def everything(self) -> None:
        """The host may know nothing."""
        self._everything = True
        self._wanted.set()

    async def sandbox(self, *sandbox_ids: str) -> None:
        """Have the host know the names of these as they are now. Raises `UnavailableError`; they are announced again then."""
        loop = asyncio.get_running_loop()
        waiting: list[asyncio.Future[None]] = []
        for sandbox_id in sandbox_ids:
            future = loop.create_future()
            self._due.setdefault(sandbox_id, []).append(future)
            waiting.append(future)
        self._wanted.set()
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, HutchError):
                raise UnavailableError(
                    "ingress_not_announced",
                    "The change is stored, but requests to exposed ports go on as before until the host takes it; it is told "
                    f"again and again: {outcome.message}",
                    retry_after_s=1,
                ) from outcome
            if isinstance(outcome, BaseException):
                raise outcome

    async def later(self, sandbox_id: str) -> None:
        """The same, for what is there or gone whether the host heard of it or not."""
        with contextlib.suppress(UnavailableError):
            await self.sandbox(sandbox_id)

    async def work(self, services: Services) -> None:
        """Tell, for ever."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            due, self._due = self._due, {}
            complete, self._everything = self._everything, False
            error: Exception | None = None
            try:
                await _tell(services, None if complete else list(due))
            except HutchError as refused:
                error = refused
            except Exception as failed:
                log.exception("the routes could not be announced")
                error = InternalError("ingress_not_announced", str(failed))
            for future in (future for futures in due.values() for future in futures):
                if not future.done():
                    future.set_exception(error) if error is not None else future.set_result(None)
            if error is not None:
                # Whatever the host missed, it gets with everything. A host that is away asks for it when it is back.
                if not isinstance(error, ConnectionClosed):
                    log.warning("the host can't be told of routes: %s", error)
                await asyncio.sleep(RETRY_S)
                self.everything()


async def _tell(services: Services, sandbox_ids: list[str] | None) -> None:
    async with services.database.read() as connection:
        found = await rows.routes(connection, sandbox_ids)
    if sandbox_ids is None:
        if services.links is not None:
            await services.host.call("ingress.key", IngressKey(services.links.public_hex))
        await services.host.call_large("ingress.routes", IngressUpdate(sandboxes=found, complete=True), dict)
        return
    gone = [IngressRoutes(sandbox_id=one) for one in set(sandbox_ids) - {known.sandbox_id for known in found}]
    await services.host.call_large("ingress.routes", IngressUpdate(sandboxes=found + gone), dict)


async def announce(services: Services) -> None:
    """Tell all the names for ever, as they change."""
    await services.announcer.work(services)


# -- resuming ---------------------------------------------------------------------------------------


async def follow_wakes(services: Services) -> None:
    """Resume what requests ask for, for ever."""
    running: set[asyncio.Task[None]] = set()
    places = asyncio.Semaphore(RESUMES_AT_ONCE)
    while True:
        try:
            stream = await services.host.open("ingress.wakes", {})
            try:
                stream.send_end()
                await stream.reply()
                while (item := await stream.next()) is not None:
                    if isinstance(item, Message):
                        task = asyncio.create_task(_wake(services, item.decode(IngressWake).sandbox_id, places))
                        running.add(task)
                        task.add_done_callback(running.discard)
            finally:
                stream.cancel()
        except HutchError as error:
            log.debug("the host's wakes can't be followed: %s", error.message)
        await asyncio.sleep(RETRY_S)


async def _wake(services: Services, sandbox_id: str, places: asyncio.Semaphore) -> None:
    try:
        async with places:
            await sandboxes.wake(services, sandbox_id)
        # It may have run all along, and the request came just as the host learned of it.
        return
    except HutchError as error:
        log.warning("sandbox %s could not be resumed for a request: %s", sandbox_id, error.message)
    except Exception:
        log.exception("sandbox %s could not be resumed for a request", sandbox_id)
    with contextlib.suppress(HutchError):
        await services.host.call("ingress.failed", IngressWake(sandbox_id))


# -- links and defaults -----------------------------------------------------------------------------


@router.post(
    "/hutch/v1/sandboxes/{name}/links",
    openapi_extra=documented(LinkBody, query=_PROJECT, answer=answers.Link, needs=Permission.INGRESS_WRITE),
)
async def create_link(request: Request, name: str) -> Response:
    """A link that opens a private port until it expires."""
    services = services_of(request)
    scope = await sandboxes.scope_of(request, services)
    body = await read(request, LinkBody)
    record = await sandboxes.find(services, scope, name)
    route = next((route for route in record.routes if route.port == body.port), None)
    if route is None:
        raise NotFoundError("port_not_exposed", f"Sandbox '{name}' does not expose port {body.port}. Update its `ports` first.")
    longest = services.settings.ingress.max_link_ttl_s
    if body.ttl_s is not None and body.ttl_s > longest:
        raise BadRequestError("bad_request", f"Invalid request: `ttl_s` should be <= {longest}.")
    expires_s = services.clock() // 1000 + (body.ttl_s if body.ttl_s is not None else min(DEFAULT_TTL_S, longest))
    assert services.links is not None
    token = services.links.token(route.subdomain, expires_s, record.link_epoch)
    url = shapes.route_url(route, services.settings.ingress_netloc())
    return JsonResponse({"url": f"{url}/?hutch_token={token}", "token": token, "expiresAt": expires_s * 1000})


@router.delete(
    "/hutch/v1/sandboxes/{name}/links",
    status_code=204,
    openapi_extra=documented(query=_PROJECT, status=204, needs=Permission.INGRESS_WRITE),
)
async def revoke_links(request: Request, name: str) -> Response:
    """Have no link to a sandbox's private ports open anything any more."""
    services = services_of(request)
    scope = await sandboxes.scope_of(request, services)
    record = await sandboxes.find(services, scope, name)
    async with services.database.write() as connection:
        await rows.revoke_links(connection, record.id)
    await services.announcer.sandbox(record.id)
    return Response(status_code=204)


@router.put(
    "/hutch/v1/projects/{project}/ingress",
    openapi_extra=documented(ProjectIngress, query=_TEAM, answer=answers.ProjectIngress, needs=Permission.INGRESS_WRITE),
)
async def put_project(request: Request, project: str) -> Response:
    """Say whether ports of a project's sandboxes are private, unless these say otherwise. Links made before open nothing more."""
    body = await read(request, ProjectIngress)
    return await _set_project(request, project, private=body.private)


@router.get(
    "/hutch/v1/projects/{project}/ingress",
    openapi_extra=documented(query=_TEAM, answer=answers.ProjectIngress, needs=Permission.SANDBOX_READ),
)
async def get_project(request: Request, project: str) -> Response:
    """Whether ports of a project's sandboxes are private, unless these say otherwise."""
    services = services_of(request)
    principal = await services.auth.principal(request)
    found = await services.auth.named_project(request, principal, project)
    async with services.database.read() as connection:
        return JsonResponse({"private": await rows.project_is_private(connection, found.id)})


@router.delete(
    "/hutch/v1/projects/{project}/ingress",
    status_code=204,
    openapi_extra=documented(query=_TEAM, status=204, needs=Permission.INGRESS_WRITE),
)
async def delete_project(request: Request, project: str) -> Response:
    """Ports of a project's sandboxes are public, unless these say otherwise. Idempotent."""
    await _set_project(request, project, private=False)
    return Response(status_code=204)


async def _set_project(request: Request, reference: str, *, private: bool) -> Response:
    services = services_of(request)
    principal = await services.auth.principal(request)
    project = await services.auth.named_project(request, principal, reference)
    async with services.database.write() as connection:
        if await rows.project_is_private(connection, project.id) != private:
            await rows.set_project(connection, project.id, private=private)
            actor, now = await services.auth.actor(request), services.clock()
            await audit_log.append(connection, project.team_id, actor, "ingress.changed", project.id, now, private=private)
        concerned = await rows.sandboxes_of(connection, project.id)
    await services.announcer.sandbox(*concerned)
    return JsonResponse({"private": private})


# -- whose host names these are ---------------------------------------------------------------------


def is_below_domain(settings: Settings, host: str) -> bool:
    """Whether a `Host` is one of a sandbox's, where the API answers nothing: pages of guests would share its origin."""
    try:
        name, _ = split_listen(host)
    except ValueError:
        name = host
    name = name.lower().rstrip(".")
    own = urlsplit(settings.server.public_url or "").hostname
    return name.endswith(f".{settings.ingress.domain}") and name != own

"""What Hutch's own endpoints about a worker begin with: whose it is, and which."""

from __future__ import annotations

import msgspec
from starlette.requests import Request

from hutch.api import paging
from hutch.api.services import Services, services_of
from hutch.control.cursor import Position
from hutch.control.records import Scope
from hutch.errors import NotFoundError
from hutch.storage import workers as rows
from hutch.storage.workers import Worker
from hutch.workers import serving as deployments
from hutch.workers.manifest import Capability

PROJECT = {"projectId": "Id or slug"}
PAGE = {"limit": "1 to 100, default 20", "cursor": "`next` of the page before"}


async def worker_of(request: Request, worker_id: str) -> tuple[Services, Scope, Worker]:
    """The worker of a path. Raises `NotFoundError`."""
    services = services_of(request)
    principal = await services.auth.principal(request)
    scope = await services.auth.scope(request, principal, request.query_params.get("projectId"), one=False)
    async with services.database.read() as connection:
        found = await rows.find(connection, scope, worker_id) if "\0" not in worker_id else None
    if found is None:
        raise NotFoundError("not_found", f"Worker '{worker_id[:64]}' not found in this project.")
    return services, Scope(found.team_id, found.project_id), found


async def capability_of(services: Services, scope: Scope, worker: Worker, tag: str, key: str) -> Capability:
    """A capability that the deployment which serves has. Raises `NotFoundError`."""
    found = await deployments.serving(services, scope, worker)
    capability = found[1].capability(key) if found is not None else None
    if capability is None or capability.tag != tag:
        raise NotFoundError("not_found", f"The worker has no {tag} '{key[:64]}'.")
    return capability


def before(request: Request, query: str) -> int | None:
    """The number of the last row of the page before."""
    position = paging.position(request, query)
    return position.number if position is not None else None


def next_of(numbers: list[int], limit: int, query: str) -> str | None:
    """The cursor of the next page; a page that is not full is the last."""
    return paging.next_cursor(Position(0, numbers[-1]), query) if len(numbers) == limit else None


def declares_verify(capability: Capability) -> bool:
    """Whether a webhook verifies its requests."""
    return bool(msgspec.to_builtins(capability.config).get("hasVerify"))

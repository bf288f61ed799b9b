"""Where a worker may connect to: what holds, what its runs did, and who agrees to more.

Whoever deploys a worker says what it may reach, in its project's files or here. In a project that reviews its workers, what
reaches more than before takes the permission that network policies of projects take: a deployment waits, and a change here is
refused.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from hutch.api.body import read
from hutch.api.responses import JsonResponse
from hutch.api.routing import PlainRoute, documented
from hutch.api.services import Services, services_of
from hutch.api.worker_paths import PROJECT, worker_of
from hutch.control import worker_own as own
from hutch.control.permissions import Permission
from hutch.control.records import Scope
from hutch.errors import BadRequestError, ConflictError, ForbiddenError, NotFoundError
from hutch.storage import audit_log
from hutch.storage import workers as rows
from hutch.storage.workers import Worker
from hutch.workers import destinations, network, runs
from hutch.workers.destinations import Destinations, Difference
from hutch.workers.network import Setting
from hutch.workers.serving import serving

router = APIRouter(route_class=PlainRoute, tags=["workers"])

_TEAM = {"teamId": "Id or slug of the project's team; default: the token's"}


@router.get(
    "/hutch/v1/workers/{worker_id}/network",
    openapi_extra=documented(query=PROJECT, answer=own.NetworkRead, needs=Permission.WORKER_LOGS),
)
async def read_worker_network(request: Request, worker_id: str) -> Response:
    """What a worker may reach, what its runs used and were refused, and what waits for somebody to agree."""
    services, scope, worker = await worker_of(request, worker_id)
    return JsonResponse({"network": await _shown(services, scope, worker)})


@router.put(
    "/hutch/v1/workers/{worker_id}/network",
    openapi_extra=documented(
        own.PutNetwork,
        query=PROJECT,
        answer=own.NetworkRead,
        errors=(403,),
        example={"mode": "set", "allow": ["api.example.com"]},
        needs=Permission.WORKER_WRITE,
    ),
)
async def put_worker_network(request: Request, worker_id: str) -> Response:
    """Say what a worker may reach in place of its files (`set`), allow and note any destination (`learn`), or go by its files
    again (`declared`). Runs that begin from now on are held to it."""
    services, scope, worker = await worker_of(request, worker_id)
    body = await read(request, own.PutNetwork)
    setting = _setting(services, body)
    serves = await serving(services, scope, worker)
    declared = network.declared_of(serves[0] if serves is not None else None)
    await network.check(services, scope, setting, declared, serves[1] if serves is not None else None)
    before, after = network.allowed(network.setting_of(worker), declared), network.allowed(setting, declared)
    changed = await asyncio.to_thread(destinations.compare, before, after, services.boundaries)
    async with services.database.read() as connection:
        reviewed = await rows.reviews(connection, scope)
    # Without a deployment nothing runs yet, and a set that any later one is held to is looked at as one that widens.
    if reviewed and (changed.added or serves is None):
        principal = await services.auth.principal(request)
        if not principal.may(Permission.POLICY_WRITE):
            raise ForbiddenError(
                "network_review_needed",
                "This lets the worker reach more, and its project reviews that: it takes the permission policy.write.",
            )
    now = services.clock()
    text = msgspec.json.encode(setting).decode() if setting.mode != "declared" else None
    async with services.database.write() as connection:
        await rows.touch(connection, scope, worker.id, now, network=text)
        actor = await services.auth.actor(request)
        await audit_log.append(
            connection,
            scope.team_id,
            actor,
            "worker.network_changed",
            worker.id,
            now,
            project=scope.project_id,
            mode=setting.mode,
            added=" ".join(changed.added),
            removed=" ".join(changed.removed),
        )
        found = await rows.find(connection, scope, worker.id)
    if found is None:
        raise NotFoundError("not_found", f"Worker '{worker.id}' not found in this project.")
    return JsonResponse({"network": await _shown(services, scope, found)})


def _setting(services: Services, body: own.PutNetwork) -> Setting:
    """Raises `BadRequestError`."""
    if body.mode != "set":
        if body.allow is not None or body.subnets is not None or body.plaintextHttp:
            raise _invalid('destinations belong to the mode "set".')
        return Setting(mode=body.mode, since_ms=services.clock() if body.mode == "learn" else 0)
    wanted = {"allow": body.allow or [], "subnets": body.subnets or [], "plaintextHttp": body.plaintextHttp}
    try:
        return Setting(mode="set", network=destinations.parse(wanted, services.boundaries))
    except ValueError as error:
        raise _invalid(str(error)) from error


def _invalid(reason: str) -> BadRequestError:
    return BadRequestError("invalid_network_policy", f"Invalid request: {reason}", details={"pointer": ""})


@router.post(
    "/hutch/v1/workers/{worker_id}/network/confirm",
    openapi_extra=documented(
        own.ConfirmNetwork, query=PROJECT, answer=own.Confirmed, errors=(402, 409, 410, 422), needs=Permission.POLICY_WRITE
    ),
)
async def confirm_worker_network(request: Request, worker_id: str) -> Response:
    """Agree to what the newest deployment of a worker reaches, and have it serve."""
    services, scope, worker = await worker_of(request, worker_id)
    body = await read(request, own.ConfirmNetwork)
    now = services.clock()
    async with services.database.write() as connection:
        newest = await rows.latest(connection, scope, worker.id, ("built", "ready"), services.sealer)
        if newest is None or newest.id != body.deployment:
            raise ConflictError(
                "deployment_replaced",
                f"'{body.deployment[:64]}' is not the newest deployment of the worker that is built. Look at the newest one.",
            )
        await rows.confirm_network(connection, scope, worker.id, newest.id)
        actor = await services.auth.actor(request)
        await audit_log.append(
            connection,
            scope.team_id,
            actor,
            "worker.network_confirmed",
            worker.id,
            now,
            project=scope.project_id,
            deployment=newest.id,
        )
    _, changed = await runs.fetch_manifest(services, scope, worker)
    return JsonResponse({"deployment": body.deployment, **_told(changed)})


# -- projects ----------------------------------------------------------------------------------------


@router.put(
    "/hutch/v1/projects/{project}/worker-review",
    openapi_extra=documented(own.ProjectReview, query=_TEAM, answer=own.ReviewShape, needs=Permission.POLICY_WRITE),
)
async def put_worker_review(request: Request, project: str) -> Response:
    """Say whether deployments of a project's workers that reach more than before wait until somebody agrees."""
    services, scope = await _project(request, project)
    body = await read(request, own.ProjectReview)
    async with services.database.write() as connection:
        await rows.set_reviews(connection, scope, review=body.review)
        actor, now = await services.auth.actor(request), services.clock()
        assert scope.project_id is not None
        await audit_log.append(
            connection, scope.team_id, actor, "worker.review_changed", scope.project_id, now, review=body.review
        )
    return JsonResponse({"review": body.review})


@router.get(
    "/hutch/v1/projects/{project}/worker-review",
    openapi_extra=documented(query=_TEAM, answer=own.ReviewShape, needs=Permission.POLICY_READ),
)
async def read_worker_review(request: Request, project: str) -> Response:
    """Whether deployments that reach more than before wait until somebody agrees."""
    services, scope = await _project(request, project)
    async with services.database.read() as connection:
        return JsonResponse({"review": await rows.reviews(connection, scope)})


async def _project(request: Request, reference: str) -> tuple[Services, Scope]:
    services = services_of(request)
    principal = await services.auth.principal(request)
    project = await services.auth.named_project(request, principal, reference)
    return services, Scope(project.team_id, project.id)


# -- showing -----------------------------------------------------------------------------------------


async def _shown(services: Services, scope: Scope, worker: Worker) -> dict[str, Any]:
    setting = network.setting_of(worker)
    serves = await serving(services, scope, worker)
    declared = network.declared_of(serves[0] if serves is not None else None)
    allowed = network.allowed(setting, declared)
    seen = await network.seen_of(services, scope, worker)
    async with services.database.read() as connection:
        reviewed = await rows.reviews(connection, scope)
    waits = await network.waiting(services, scope, worker)
    shown: dict[str, Any] = {
        "mode": setting.mode,
        "allowed": _set(allowed),
        "outside": await network.beyond_bounds(services, scope, allowed),
        "used": _set(destinations.together(one.used for one in seen)),
        "refused": [_refused(item) for item in destinations.refusals(seen)],
        "runs": len(seen),
        "review": reviewed,
    }
    if declared.network is not None:
        shown["declared"] = _set(declared.network)
    if setting.mode == "learn":
        lately = await network.seen_of(services, scope, worker, setting.since_ms)
        shown["learned"] = {
            "since": setting.since_ms,
            "runs": len(lately),
            "network": _set(destinations.together(one.used for one in lately)),
        }
    if waits is not None:
        shown["waiting"] = {"deployment": waits[0].id, **_told(waits[1])}
    return shown


def _set(found: Destinations) -> dict[str, Any]:
    return {"allow": list(found.allow), "subnets": list(found.subnets), "plaintextHttp": found.plaintext_http}


def _refused(item: destinations.Refused) -> dict[str, Any]:
    return {"name": item.name, "reason": item.reason, "count": item.count}


def _told(changed: Difference) -> dict[str, list[str]]:
    return {"added": list(changed.added), "removed": list(changed.removed)}


def seen_shape(found: destinations.Seen) -> dict[str, Any]:
    """What a run did with the network, in its record."""
    return {"used": _set(found.used), "refused": [_refused(item) for item in found.refused], "partial": found.partial}

"""Network policies of the operator, of teams and of projects: the bounds within which those of sandboxes hold.

Whoever has a token of a project sets its sandboxes' policies as they like; here its team says what they may say at most. Bounds
block, allow and limit; they inject nothing. Nothing is merged: the gateway asks every policy, and the strictest answer counts.

    operator     a file that the settings name, read when this process starts
    team         PUT …/teams/{team}/network-policy       owners of the team, administrators
    project      PUT …/projects/{project}/network-policy  the same: not those whom it bounds

A change is written first, and then told for every live session that it concerns, whose policies hold within the new bounds when
the request is answered. What could not be told is told again, on the next connection to the host (`settle`) and while there is
one (`keep_told`). A session that starts meanwhile compares when it is there (`sandboxes.boot`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec
from fastapi import APIRouter
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.requests import Request
from starlette.responses import Response

from hutch.api import network_policy
from hutch.api.body import read_body
from hutch.api.responses import JsonResponse
from hutch.api.routing import PlainRoute, documented
from hutch.api.services import Services, services_of
from hutch.control import answers
from hutch.control.permissions import Permission
from hutch.control.records import Scope, SessionRow
from hutch.control.requests import PolicyBody
from hutch.egress.policy import PolicyWarning, within
from hutch.errors import HutchError, UnavailableError
from hutch.host.protocol import NetworkApplied
from hutch.storage import audit_log
from hutch.storage import network_bounds as rows
from hutch.storage import sessions as session_rows
from hutch.wire.connection import ConnectionClosed

router = APIRouter(route_class=PlainRoute, tags=["network policies"])
log = logging.getLogger(__name__)

AT_ONCE = 16
"""Sessions that the host is told about at the same time."""
RETRY_S = 1.0
ALLOWS_NOTHING = PolicyWarning(
    "", "allows_nothing", 'allows nothing, whatever it blocks: to block names and allow all others, add "mode": "allow-all"'
)
_TEAM = {"teamId": "Id or slug of the project's team; default: the token's"}


@dataclass(frozen=True, slots=True)
class Place:
    """The team or project of a path. `outer` is what bounds its policy."""

    scope: Scope
    words: str
    outer: tuple[str, ...]


@router.put(
    "/hutch/v1/teams/{team}/network-policy",
    openapi_extra=documented(PolicyBody, answer=answers.BoundsWritten, needs=Permission.POLICY_WRITE),
)
async def put_team_policy(request: Request, team: str) -> Response:
    """Bound the network policies of a team's sandboxes; answers when that is enforced."""
    return await _put(request, await _team(request, team))


@router.get(
    "/hutch/v1/teams/{team}/network-policy", openapi_extra=documented(answer=answers.BoundsRead, needs=Permission.POLICY_READ)
)
async def get_team_policy(request: Request, team: str) -> Response:
    """What bounds a team's sandboxes; null: nothing."""
    return await _get(request, await _team(request, team))


@router.delete(
    "/hutch/v1/teams/{team}/network-policy", status_code=204, openapi_extra=documented(status=204, needs=Permission.POLICY_WRITE)
)
async def delete_team_policy(request: Request, team: str) -> Response:
    """Bound a team's sandboxes no more. Idempotent."""
    return await _delete(request, await _team(request, team))


@router.put(
    "/hutch/v1/projects/{project}/network-policy",
    openapi_extra=documented(PolicyBody, query=_TEAM, answer=answers.BoundsWritten, needs=Permission.POLICY_WRITE),
)
async def put_project_policy(request: Request, project: str) -> Response:
    """Bound the network policies of a project's sandboxes; answers when that is enforced."""
    return await _put(request, await _project(request, project))


@router.get(
    "/hutch/v1/projects/{project}/network-policy",
    openapi_extra=documented(query=_TEAM, answer=answers.BoundsRead, needs=Permission.POLICY_READ),
)
async def get_project_policy(request: Request, project: str) -> Response:
    """What bounds a project's sandboxes besides its team's policy; null: nothing."""
    return await _get(request, await _project(request, project))


@router.delete(
    "/hutch/v1/projects/{project}/network-policy",
    status_code=204,
    openapi_extra=documented(query=_TEAM, status=204, needs=Permission.POLICY_WRITE),
)
async def delete_project_policy(request: Request, project: str) -> Response:
    """Bound a project's sandboxes no more than its team's. Idempotent."""
    return await _delete(request, await _project(request, project))


async def _team(request: Request, reference: str) -> Place:
    services = services_of(request)
    principal = await services.auth.principal(request)
    team = await services.auth.named_team(request, principal, reference)
    outer = [services.operator_policy] if services.operator_policy is not None else []
    return Place(Scope(team.id), f"the team '{team.slug}'", tuple(outer))


async def _project(request: Request, reference: str) -> Place:
    services = services_of(request)
    principal = await services.auth.principal(request)
    project = await services.auth.named_project(request, principal, reference)
    outer = await services.bounds(Scope(project.team_id))
    return Place(Scope(project.team_id, project.id), f"the project '{project.slug}'", tuple(outer.texts()))


async def _put(request: Request, place: Place) -> Response:
    services = services_of(request)
    raw = await read_body(request, services.settings.server.max_body_bytes)
    policy = await network_policy.compiled(raw, None, "bounds", within(services.boundaries, place.outer))
    async with services.database.write() as connection:
        await rows.put(connection, place.scope, policy.text)
        await _logged(connection, services, request, place, "policy.changed")
    applied = await _announce(services, place)
    warnings = [*policy.warnings, ALLOWS_NOTHING] if policy.empty else policy.warnings
    own = {
        "warnings": msgspec.to_builtins(warnings),
        "sessions": len(applied),
        "closedFlows": sum(one.closed_flows for one in applied),
        "keptFlows": sum(one.kept_flows for one in applied),
    }
    return JsonResponse({"networkPolicy": msgspec.Raw(policy.text.encode()), "hutch": own})


async def _get(request: Request, place: Place) -> Response:
    async with services_of(request).database.read() as connection:
        team, project = await rows.find(connection, place.scope)
    text = team if place.scope.project_id is None else project
    return JsonResponse({"networkPolicy": msgspec.Raw(text.encode()) if text is not None else None})


async def _delete(request: Request, place: Place) -> Response:
    services = services_of(request)
    async with services.database.write() as connection:
        await rows.put(connection, place.scope, None)
        await _logged(connection, services, request, place, "policy.removed")
    await _announce(services, place)
    return Response(status_code=204)


async def _logged(connection: AsyncConnection, services: Services, request: Request, place: Place, action: str) -> None:
    subject = place.scope.project_id or place.scope.team_id
    await audit_log.append(connection, place.scope.team_id, await services.auth.actor(request), action, subject, services.clock())


# -- telling the host -------------------------------------------------------------------------------


async def _announce(services: Services, place: Place) -> list[NetworkApplied]:
    """Have every live session that is concerned held to the new bounds."""
    async with services.database.read() as connection:
        live = await session_rows.live(connection, services.sealer, place.scope)
    applied, failed = await _renewed(services, [row.id for row in live])
    if failed:
        services.bounds_due.set()
        raise UnavailableError(
            "bounds_not_announced",
            f"The network policy of {place.words} is stored, but {len(failed)} of {len(live)} running sandboxes go on with what "
            f"they have until the host takes it; it is told again and again: {failed[0].message}",
            retry_after_s=1,
        ) from failed[0]
    return applied


async def _renewed(services: Services, session_ids: Sequence[str]) -> tuple[list[NetworkApplied], list[HutchError]]:
    """Renew the policies of sessions, some at once; what came of it, without those that are over."""
    turnstile = asyncio.Semaphore(AT_ONCE)

    async def one(session_id: str) -> NetworkApplied | HutchError | None:
        async with turnstile:
            try:
                return await network_policy.renew(services, session_id)
            except HutchError as error:
                return error

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(session_id)) for session_id in session_ids]
    outcomes = [task.result() for task in tasks]
    applied = [outcome for outcome in outcomes if isinstance(outcome, NetworkApplied)]
    return applied, [outcome for outcome in outcomes if isinstance(outcome, HutchError)]


async def settle(services: Services, live: Iterable[SessionRow]) -> None:
    """Tell the host of bounds that it may not have: they changed while it was away, or this process has just started, and with it
    the operator's may have changed. Raises `ConnectionClosed`; anything else is tried again later."""
    wanted: dict[Scope, bytes] = {}
    stale = []
    for row in live:
        scope = Scope(row.team_id, row.project_id)
        if scope not in wanted:
            wanted[scope] = network_policy.digest((await services.bounds(scope)).texts())
        if services.bounds_told.get(row.id) != wanted[scope]:
            stale.append(row.id)
    _, failed = await _renewed(services, stale)
    if not failed:
        return
    services.bounds_due.set()
    log.warning("the host does not know the bounds of %d sessions yet: %s", len(failed), failed[0].message)
    for error in failed:
        if isinstance(error, ConnectionClosed):
            raise error


async def keep_told(services: Services) -> None:
    """Try again, for ever, whenever the host could not be told of bounds."""
    while True:
        await services.bounds_due.wait()
        await asyncio.sleep(RETRY_S)
        services.bounds_due.clear()
        try:
            async with services.database.read() as connection:
                live = await session_rows.live(connection, services.sealer)
            await settle(services, [row for row in live if row.id not in services.starting])
        except HutchError as error:
            log.warning("the host can't be told of bounds: %s", error.message)
            services.bounds_due.set()

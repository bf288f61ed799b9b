"""Budgets of teams, projects and sandboxes. The host enforces them; here they are written down, and told.

A change is written first and then told; the request is answered when the host has it. What could not be told is told on the next
connection to the host (`settle`), as all of them are.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from hutch.api import body as bodies
from hutch.api import storage_budgets
from hutch.api.auth import Principal
from hutch.api.responses import JsonResponse
from hutch.api.routing import PlainRoute, documented
from hutch.api.services import Services, services_of
from hutch.control import answers, webhooks
from hutch.control.permissions import Permission
from hutch.control.requests import PutBudget
from hutch.control.webhooks import new_secret
from hutch.errors import BadRequestError, NotFoundError
from hutch.host.protocol import Budgets, BudgetState, BudgetStates
from hutch.metering.budgets import COUNTS, STORAGE, Budget, Limits, Period, project_key, sandbox_key, team_key
from hutch.oci.addresses import Addresses
from hutch.storage import audit_log
from hutch.storage import budgets as rows

router = APIRouter(route_class=PlainRoute, tags=["usage"])

_TEAM = {"teamId": "Id or slug of the project's team; default: the token's"}
_EXAMPLE = {"active_cpu_us": 3_600_000_000, "period": "day"}


@router.put(
    "/hutch/v1/teams/{team}/budget",
    openapi_extra=documented(PutBudget, answer=answers.Budgets, example=_EXAMPLE, needs=Permission.BUDGET_WRITE),
)
async def put_team_budget(request: Request, team: str) -> Response:
    """Limit what a team may use in a day, a month, or in all; without limits there is none. Answers when it holds."""
    return await _put(request, *await _team(request, team))


@router.get("/hutch/v1/teams/{team}/budget", openapi_extra=documented(answer=answers.Budgets, needs=Permission.BUDGET_READ))
async def get_team_budget(request: Request, team: str) -> Response:
    """A team's budgets, and what is spent of them."""
    return await _get(request, (await _team(request, team))[1])


@router.put(
    "/hutch/v1/projects/{project}/budget",
    openapi_extra=documented(PutBudget, query=_TEAM, answer=answers.Budgets, example=_EXAMPLE, needs=Permission.BUDGET_WRITE),
)
async def put_project_budget(request: Request, project: str) -> Response:
    """Limit what a project may use in a day, a month, or in all; without limits there is none. Answers when it holds."""
    return await _put(request, *await _project(request, project))


@router.get(
    "/hutch/v1/projects/{project}/budget",
    openapi_extra=documented(query=_TEAM, answer=answers.Budgets, needs=Permission.BUDGET_READ),
)
async def get_project_budget(request: Request, project: str) -> Response:
    """A project's budgets, and what is spent of them."""
    return await _get(request, (await _project(request, project))[1])


async def _team(request: Request, reference: str) -> tuple[str, str]:
    """Id of the team, and key of the budget."""
    services = services_of(request)
    principal = await services.auth.principal(request)
    team = await services.auth.named_team(request, principal, reference)
    return team.id, team_key(team.id)


async def _project(request: Request, reference: str) -> tuple[str, str]:
    services = services_of(request)
    principal = await services.auth.principal(request)
    project = await services.auth.named_project(request, principal, reference)
    return project.team_id, project_key(project.id)


async def _put(request: Request, team_id: str, key: str) -> Response:
    services = services_of(request)
    body = await bodies.read(request, PutBudget)
    now, period = services.clock(), Period(body.period)
    limits = msgspec.convert(body.stored() or {}, Limits)
    soft = msgspec.convert((body.soft.stored() if body.soft is not None else None) or {}, Limits)
    budget = Budget(key=key, limits=limits, period=period, notify_at=body.notify_at, soft=soft, set_at=now)
    if body.webhook is not None:
        require_webhook(services, body.webhook)
    actor = await services.auth.actor(request)
    secret = None
    async with services.database.write() as connection:
        if not await rows.is_there(connection, team_id, key, hold=True):
            # It was deleted since it was looked up.
            raise NotFoundError("not_found", f"The {key.partition(':')[0]} of this budget is deleted.")
        before = (await rows.of_key(connection, key)).get(period)
        webhook = before.webhook if before is not None else None
        if "webhook" in body.model_fields_set:
            known = _opened(services, before)
            if body.webhook is None:
                webhook = None
            elif known is None or known["url"] != body.webhook:
                secret = new_secret()
                webhook = services.sealer.seal({"url": body.webhook, "secret": secret}, rows.webhook_row(key, period))
        await rows.put(connection, team_id, budget, webhook)
        action = "budget.changed" if budget.any else "budget.removed"
        detail: dict[str, Any] = {"period": period.value, "limits": msgspec.to_builtins(limits)}
        if soft.any:
            detail["soft"] = msgspec.to_builtins(soft)
        if budget.notify_at:
            detail["notify_at"] = budget.notify_at
        if "webhook" in body.model_fields_set:
            detail["webhook"] = _origin(services, body.webhook) if body.webhook is not None else ""
        await audit_log.append(connection, team_id, actor, action, key.partition(":")[2], now, **detail)
    await _tell(services, team_id, key, period)
    if STORAGE in (body.stored() or {}) or soft.storage_bytes is not None or key in services.storage_full:
        await storage_budgets.note(services)
    shown = await _read(services, key)
    if secret is not None and budget.any:
        for one in shown["budgets"]:
            if one["period"] == period.value:
                one["webhook"]["secret"] = secret
    return JsonResponse(shown)


def require_webhook(services: Services, url: str) -> None:
    """Raises `BadRequestError` (`webhook_invalid`) for what nothing is ever sent to. A name is looked up when something is."""
    private = services.settings.webhooks.private_hosts
    target = webhooks.target(url, private)
    try:
        allowed = Addresses.of(frozenset(private)).may_connect(target.authority, target.host.strip("[]"))
    except ValueError:
        return
    if not allowed:
        raise BadRequestError("webhook_invalid", f"The webhook's URL can't be used: {target.host} is a private address.")


def _opened(services: Services, stored: rows.Stored | None) -> dict[str, str] | None:
    if stored is None or stored.webhook is None:
        return None
    found: dict[str, str] = services.sealer.open(stored.webhook, rows.webhook_row(stored.budget.key, stored.budget.period))
    return found


def _origin(services: Services, url: str) -> str:
    return webhooks.target(url, {urlsplit(url).netloc.lower()}).origin


async def _tell(services: Services, team_id: str, key: str, period: Period) -> None:
    """Have the host hold what is written down now. Asked again afterwards: a change that came in between may have been told
    before, and a team or project that is removed meanwhile would leave it there."""
    told: Budget | None = None
    while True:
        async with services.database.read() as connection:
            stored = (await rows.of_key(connection, key)).get(period)
            if stored is not None and not await rows.is_there(connection, team_id, key):
                stored = None
        wanted = stored.budget if stored is not None else Budget(key=key, limits=Limits(), period=period)
        if wanted == told:
            return
        await services.host.call("budget.set", wanted)
        told = wanted


async def _get(request: Request, key: str) -> Response:
    return JsonResponse(await _read(services_of(request), key))


async def _read(services: Services, key: str) -> dict[str, Any]:
    """What the host holds, with where events go. The host may be told of a change in a moment."""
    found = await services.host.call("budget.read", {"key": key}, BudgetStates)
    async with services.database.read() as connection:
        written = await rows.of_key(connection, key)
    stored_bytes = None
    if any(STORAGE in (*_names(state.budget.limits), *_names(state.budget.soft)) for state in found.states):
        stored_bytes = await storage_budgets.held(services, key)
    return {"budgets": [_shape(services, state, written.get(state.budget.period), stored_bytes) for state in found.states]}


def _names(limits: Limits) -> list[str]:
    return list(msgspec.to_builtins(limits))


def _shape(services: Services, state: BudgetState, stored: rows.Stored | None, stored_bytes: int | None) -> dict[str, Any]:
    counts = {name: state.counts.get(name, 0) for name in COUNTS} | ({STORAGE: stored_bytes} if stored_bytes is not None else {})
    shape = {
        "period": state.budget.period.value,
        "limits": msgspec.to_builtins(state.budget.limits),
        "spent": msgspec.to_builtins(state.spent),
        "spent_money_nano": services.prices.amount_nano(state.spent),
        "counts": counts,
        "notify_at": state.budget.notify_at,
        "soft": msgspec.to_builtins(state.budget.soft),
    }
    hook = _opened(services, stored)
    return shape | ({"webhook": {"origin": _origin(services, hook["url"])}} if hook is not None else {})


# -- of sandboxes ------------------------------------------------------------------------------------


def require_tighter(principal: Principal, before: dict[str, int] | None, after: dict[str, int] | None) -> None:
    """Who works with sandboxes may set their budgets and lower them; to raise or remove one takes what those of teams and
    projects take. Raises `ForbiddenError`."""
    if any(after is None or name not in after or after[name] > most for name, most in (before or {}).items()):
        principal.require(Permission.BUDGET_WRITE)


async def announce(services: Services, sandbox_id: str) -> None:
    """Have the host hold a sandbox to its budget as it is now: asked again afterwards, as another change may have come."""
    told: Limits | None = None
    while True:
        async with services.database.read() as connection:
            limits = await rows.of_sandbox(connection, sandbox_id)
        if limits == told:
            return
        await services.host.call("budget.set", Budget(key=sandbox_key(sandbox_id), limits=limits))
        told = limits


async def settle(services: Services) -> None:
    """Tell the host all budgets that there are. Asked again afterwards: one that was told meanwhile would be gone with those
    that there are not."""
    told: list[Budget] | None = None
    while True:
        async with services.database.read() as connection:
            wanted = sorted(await rows.every(connection), key=lambda budget: (budget.key, budget.period))
        if wanted == told:
            return
        await services.host.call_large("budget.keep", Budgets(wanted), dict[str, Any])
        told = wanted

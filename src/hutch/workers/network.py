"""What a worker may reach, decided: what its files declare, what was said in their place, and the bounds of its project.

    files of the project ─▶ deployment ─┐
    `PUT …/network`: a set, or learning ─┴▶ what is allowed ─▶ looked at when it is deployed ─▶ policy of its runs
    a run is over ─▶ audit of its sandbox ─▶ what it used and what was refused, in its record

What is declared has to lie within the bounds of operator, team and project, and declared credentials within what is declared: a
deployment that says otherwise is refused. The gateway holds runs to the bounds as they are, whatever was deployed before.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from hutch.api.services import Services
from hutch.control.records import Scope
from hutch.errors import BadRequestError, ConflictError, HutchError
from hutch.host.protocol import AuditPage, AuditRead
from hutch.storage import sessions
from hutch.storage import workers as rows
from hutch.storage.workers import Deployment, Run, Worker
from hutch.workers import credentials, destinations
from hutch.workers.destinations import EVERYTHING, NOTHING, Declared, Destinations, Difference, Seen
from hutch.workers.manifest import Manifest
from hutch.workers.serving import serving

log = logging.getLogger(__name__)

RUNS_LOOKED_AT = 1000
"""The last runs that say what a worker uses."""
AUDIT_PAGE = 1000
MAX_RECORDS = 20_000
"""Records of one run that are looked at."""
SETTLE_S = 0.5
"""After its end, how long the audit of a sandbox may be on its way."""
NAMED = 5


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """What holds for a worker's destinations. `declared`: what its files say; `set`: `network`, whatever they say; `learn`:
    anything, and what its runs since `since_ms` used is proposed."""

    mode: Literal["declared", "set", "learn"] = "declared"
    network: Destinations | None = None
    since_ms: int = 0


def setting_of(worker: Worker) -> Setting:
    return msgspec.json.decode(worker.network, type=Setting) if worker.network is not None else Setting()


def declared_of(deployment: Deployment | None) -> Declared:
    """What the files of a deployment declare."""
    if deployment is None or deployment.network is None:
        return Declared()
    return msgspec.json.decode(deployment.network, type=Declared)


def allowed(setting: Setting, declared: Declared) -> Destinations:
    """What runs may reach, within their bounds."""
    if setting.mode == "learn":
        return EVERYTHING
    found = setting.network if setting.mode == "set" else declared.network
    return EVERYTHING if found is None else found


async def allowed_for(services: Services, scope: Scope, worker: Worker, deployment: Deployment) -> Destinations:
    """What runs of a deployment may reach. One that does not serve (any more) reaches nothing that the one which does may not."""
    setting = setting_of(worker)
    own = allowed(setting, declared_of(deployment))
    if deployment.id == worker.deployment_id or worker.deployment_id is None:
        return own
    serves = await serving(services, scope, worker)
    now = allowed(setting, declared_of(serves[0])) if serves is not None else NOTHING
    return own if now == EVERYTHING else await asyncio.to_thread(destinations.meet, own, now, services.boundaries)


# -- looked at ---------------------------------------------------------------------------------------


async def beyond_bounds(services: Services, scope: Scope, wanted: Destinations) -> list[str]:
    """What of a set lies outside the bounds of its project."""
    bounds = (await services.bounds(scope)).texts()
    return await asyncio.to_thread(destinations.outside, wanted, bounds, services.boundaries) if bounds else []


async def check(services: Services, scope: Scope, setting: Setting, declared: Declared, manifest: Manifest | None) -> None:
    """Raises `BadRequestError` (`network_outside_bounds`, `network_not_declared`) for destinations and credentials that may not
    be."""
    wanted = allowed(setting, declared)
    by_domain = _domains(manifest)
    if wanted != EVERYTHING:
        outside = await beyond_bounds(services, scope, wanted)
        if outside:
            raise _outside(f"The worker declares {_listed(outside)}", outside)
        left_out = sorted(set(by_domain) - await asyncio.to_thread(destinations.inside, list(by_domain), wanted))
        if left_out:
            raise BadRequestError(
                "network_not_declared",
                f"The credential {by_domain[left_out[0]]} is for {_listed(left_out)}, which the worker does not declare as a "
                "destination. Add it to `network.allow`, or leave the credential's rule out.",
                details={"destinations": left_out},
            )
    if by_domain:
        outside = await beyond_bounds(services, scope, Destinations(allow=tuple(by_domain)))
        if outside:
            raise _outside(f"The credential {by_domain.get(outside[0], '')} is for {_listed(outside)}", outside)


def _domains(manifest: Manifest | None) -> dict[str, str]:
    """The domains of declared credentials, and whose they are."""
    declared = manifest.credentials if manifest is not None else ()
    return {credentials.normalised(rule.domain): item.key for item in declared for rule in item.network}


def _outside(subject: str, items: list[str]) -> BadRequestError:
    return BadRequestError(
        "network_outside_bounds",
        f"{subject}, which is not wholly within the network policies of the operator, the team and the project. Declare less, or "
        "have the one who set them allow it.",
        details={"destinations": items},
    )


def _listed(items: list[str]) -> str:
    more = f" and {len(items) - NAMED} more" if len(items) > NAMED else ""
    return f"{', '.join(items[:NAMED])}{more}"


async def difference(services: Services, scope: Scope, worker: Worker, deployment: Deployment) -> Difference:
    """What changes about what a worker may reach once a deployment serves. Before the first, it reaches nothing."""
    setting = setting_of(worker)
    serves = await serving(services, scope, worker)
    before = allowed(setting, declared_of(serves[0])) if serves is not None else NOTHING
    after = allowed(setting, declared_of(deployment))
    return await asyncio.to_thread(destinations.compare, before, after, services.boundaries)


async def review(services: Services, scope: Scope, worker: Worker, deployment: Deployment, manifest: Manifest) -> Difference:
    """Look at a deployment that is about to serve. Raises `BadRequestError` as `check` does, and `ConflictError`
    (`network_review_needed`) where somebody has to agree first."""
    await check(services, scope, setting_of(worker), declared_of(deployment), manifest)
    found = await difference(services, scope, worker, deployment)
    async with services.database.read() as connection:
        reviewed = await rows.reviews(connection, scope)
    if reviewed and found.added and not deployment.network_confirmed:
        raise ConflictError(
            "network_review_needed",
            f"The deployment reaches more than the one that serves: {_listed(list(found.added))}. In this project somebody with "
            f"the permission policy.write agrees first: hutch worker network {worker.id} --confirm {deployment.id}",
            details={"deployment": deployment.id, "added": list(found.added), "removed": list(found.removed)},
        )
    return found


async def waiting(services: Services, scope: Scope, worker: Worker) -> tuple[Deployment, Difference] | None:
    """The newest deployment, if it is built and waits for somebody to agree to what it reaches."""
    async with services.database.read() as connection:
        reviewed = await rows.reviews(connection, scope)
        found = await rows.latest(connection, scope, worker.id, ("built", "ready"), services.sealer)
    if not reviewed or found is None or found.id == worker.deployment_id or found.network_confirmed:
        return None
    changed = await difference(services, scope, worker, found)
    return (found, changed) if changed.added else None


# -- what runs did -----------------------------------------------------------------------------------


async def of_run(services: Services, scope: Scope, run: Run) -> Seen | None:
    """What a run did with the network; None while it goes on, and where nobody knows any more."""
    async with services.database.read() as connection:
        kept = await rows.run_network(connection, scope, run.id, services.sealer)
    if kept is not None:
        return msgspec.convert(kept, Seen)
    if run.session_id is None or run.ended_at is None:
        return None
    settled = services.clock() - run.ended_at > SETTLE_S * 1000
    return await record(services, scope, run.id, run.session_id, keep=settled)


async def record_later(services: Services, scope: Scope, run_id: str, session_id: str) -> None:
    """Write down what a run did whose sandbox has just ended."""
    await asyncio.sleep(SETTLE_S)
    await record(services, scope, run_id, session_id)


async def record(services: Services, scope: Scope, run_id: str, session_id: str, *, keep: bool = True) -> Seen | None:
    """Find out what a run that is over did with the network, and `keep` it. Says in the log what it can't."""
    try:
        async with services.database.read() as connection:
            session = await sessions.find_any(connection, session_id, services.sealer)
        if session is None:
            return None
        found = destinations.seen(await _records(services, session.sandbox_id))
        if keep:
            sealed = services.sealer.seal(msgspec.to_builtins(found), f"{run_id}/network")
            async with services.database.write() as connection:
                await rows.put_run_network(connection, scope, run_id, sealed)
    except HutchError as error:
        log.info("what run %s did with the network is not known: %s", run_id, error.message)
        return None
    return found


async def _records(services: Services, sandbox_id: str) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = []
    after = 0
    while len(found) < MAX_RECORDS:
        page = await services.host.call("audit.read", AuditRead(sandbox_id=sandbox_id, after=after, limit=AUDIT_PAGE), AuditPage)
        for text in page.records:
            record = msgspec.json.decode(text)
            if isinstance(record, dict):
                found.append(record)
        if len(page.records) < AUDIT_PAGE:
            break
        after = page.next
    return found


async def seen_of(services: Services, scope: Scope, worker: Worker, since_ms: int = 0) -> list[Seen]:
    """What the last runs of a worker did with the network, newest first."""
    async with services.database.read() as connection:
        kept = await rows.networks(connection, scope, worker.id, since_ms, RUNS_LOOKED_AT, services.sealer)
    return [msgspec.convert(one, Seen) for one in kept]

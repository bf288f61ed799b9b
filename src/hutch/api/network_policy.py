"""Network policies of sandboxes and sessions.

A sandbox's record has the policy that its next session starts with; a running session has its own. Replacing a session's takes
four steps, so that a kill between any two of them leaves one of both policies and never a belief that is wrong for long:

    checked      by the engine, with the old one at hand for values that were redacted
    written      as unconfirmed, with the old one in it
    enforced     by the host, which answers when flows that the new one does not allow are closed
    confirmed    in the database; or, where the host refused, the old one is written back

Whatever is found unconfirmed when the connection to the host is made again is sent again (`settle`); the host takes a
policy whose generation it has for what it is. `hutch.egress` says what a policy is.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

import msgspec
from fastapi import APIRouter
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.requests import Request
from starlette.responses import Response

from hutch.api import credentials
from hutch.api.auth import SessionOwner
from hutch.api.body import read_body
from hutch.api.commands import host_errors
from hutch.api.responses import JsonResponse
from hutch.api.routing import LIVE, PlainRoute, documented
from hutch.api.services import Services, services_of, stopped
from hutch.api.sessions import load
from hutch.control import answers, shapes
from hutch.control.lifecycle import Merged, is_live
from hutch.control.permissions import Permission
from hutch.control.records import NetworkPolicy, Scope, SessionRow, Unconfirmed, generation_of
from hutch.control.requests import PolicyBody, SandboxFields, parse, raw_policy
from hutch.egress.policy import Boundaries, CheckedPolicy, Role, check, outside_warnings, within
from hutch.errors import GoneError, HutchError, PreconditionFailedError
from hutch.host.protocol import NetworkApplied, NetworkSpec, NetworkUpdate
from hutch.storage import sandboxes as sandbox_rows
from hutch.storage import sessions as session_rows
from hutch.wire.connection import ConnectionClosed

router = APIRouter(route_class=PlainRoute, tags=["sessions"])
log = logging.getLogger(__name__)

QUICK_BYTES = 64
"""A policy of this size is checked faster than a thread is found for it: `allow-all`, which the CLI always sends. None so small
has a regular expression, which may take long however short it is."""
IF_MATCH = {"If-Match": "The generation that the policy is replaced at; with any other one the answer is 412"}
B = TypeVar("B", bound=SandboxFields)


@router.post(
    "/v2/sandboxes/sessions/{session_id}/network-policy",
    openapi_extra=documented(
        PolicyBody,
        headers=IF_MATCH,
        answer=answers.SessionPolicy,
        errors=(412, *LIVE),
        example={"allow": ["example.com"]},
        needs=Permission.SANDBOX_WRITE,
    ),
)
async def set_network_policy(request: Request, session_id: str) -> Response:
    """Replace the network policy of a running session; answers when the new one is enforced."""
    services = services_of(request)
    owner = await services.auth.session(request, session_id)
    raw = await read_body(request, services.settings.server.max_body_bytes)
    row, applied = await replaced(services, owner, raw, request)
    bounded = owner.project_id in await services.bounded(owner.team_id)
    session = shapes.session(row, applied, bounded=bounded)
    return JsonResponse({"session": session, "hutch": session["networkPolicy"]["hutch"]})


async def replaced(
    services: Services, owner: SessionOwner, raw: bytes, request: Request | None = None
) -> tuple[SessionRow, NetworkApplied]:
    """Replace the policy of a running session. Returns when the new one is enforced. Raises `HutchError`."""
    async with services.turn(owner.session_id):
        row = await _replace(services, owner, raw, request)
        return row, await _enforce(services, row)


async def read_with_policy(request: Request, model: type[B]) -> tuple[B, bytes | None]:
    """A body, and the bytes of its `networkPolicy`. Raises `BadRequestError` or `PayloadTooLargeError`."""
    raw = await read_body(request, services_of(request).settings.server.max_body_bytes)
    return parse(model, raw), raw_policy(raw)


# -- deciding ---------------------------------------------------------------------------------------


async def checked(services: Services, scope: Scope, raw: bytes, previous: NetworkPolicy | None = None) -> CheckedPolicy:
    """A policy that a caller sent. Redacted values come from `previous`; what lies outside the bounds of `scope` is among the
    warnings. Raises `BadRequestError`."""
    old = previous.policy if previous is not None else None
    bounds = (await services.bounds(scope)).texts()
    return await compiled(raw, old, "tenant", within(services.boundaries, bounds))


async def compiled(raw: bytes, old: str | None, role: Role, settings: Boundaries) -> CheckedPolicy:
    """`check`, with warnings about what lies outside the bounds."""
    if len(raw) <= QUICK_BYTES and not settings.bounds:
        return check(raw, old, role, settings)

    def whole() -> CheckedPolicy:
        found = check(raw, old, role, settings)
        return msgspec.structs.replace(found, warnings=found.warnings + outside_warnings(raw, found))

    # Compiling may take a second, and all others wait for this thread.
    return await asyncio.to_thread(whole)


def kept(policy: CheckedPolicy, generation: int, unconfirmed: Unconfirmed | None = None) -> NetworkPolicy:
    """A checked policy as the database keeps it."""
    warnings = tuple(msgspec.to_builtins(policy.warnings))
    return NetworkPolicy(policy.text, policy.read_back, generation, warnings, policy.credentials, unconfirmed)


def require_generation(request: Request, policy: NetworkPolicy | None) -> None:
    """Compare `If-Match`, if there is one, with the policy that is about to be replaced. Raises `PreconditionFailedError`."""
    header = request.headers.get("if-match")
    if header is None:
        return
    wanted = {item.strip().removeprefix("W/").strip('"') for item in header.split(",")}
    generation = generation_of(policy)
    if not wanted & {"*", str(generation)}:
        raise PreconditionFailedError(
            "generation_mismatch",
            f"The network policy is at generation {generation}, not at {header[:64]}. Read it again and change that one.",
            details={"generation": generation},
        )


# -- a session's policy ------------------------------------------------------------------------------


async def spec(services: Services, scope: Scope, policy: NetworkPolicy | None) -> NetworkSpec:
    """What the host has to know of a policy, its bounds and values of stored credentials included."""
    bounds = (await services.bounds(scope)).texts()
    if policy is None:
        return NetworkSpec(bounds=bounds)
    values = await credentials.values(services, scope, policy.credentials) | policy.values
    return NetworkSpec(policy=policy.policy, bounds=bounds, credentials=values, generation=policy.generation)


def digest(bounds: Sequence[str]) -> bytes:
    """What is remembered of bounds that the host has."""
    return hashlib.sha256(msgspec.json.encode(bounds)).digest()


async def send_what_changed(services: Services, scope: Scope, policy: NetworkPolicy | None, sent: NetworkSpec) -> None:
    """After the host has taken `sent`: credentials that were changed while it was on its way. The change itself reached the host
    before the session did, and found nobody to tell."""
    if policy is None or not policy.credentials:
        return
    now = await credentials.values(services, scope, policy.credentials)
    for name in policy.credentials:
        if name not in policy.values and now.get(name) != sent.credentials.get(name):
            # A connection that breaks here is made again, and then everything is sent again.
            with contextlib.suppress(ConnectionClosed):
                await _push(services, scope, name)


async def _push(services: Services, scope: Scope, name: str) -> None:
    """Tell the host what a credential is now. That it refuses is its fault and nobody's here. Raises `ConnectionClosed`."""
    try:
        await credentials.push(services, scope, name)
    except ConnectionClosed:
        raise
    except HutchError as error:
        log.warning("the host did not take the credential %s of project %s: %s", name, scope.project_id, error.message)


async def _replace(services: Services, owner: SessionOwner, raw: bytes, request: Request | None) -> SessionRow:
    """Check a policy and write it beside the one that it replaces; the session as it is then."""
    while True:
        seen, _ = await load(services, owner)
        if not is_live(seen.status):
            raise stopped()
        if request is not None:
            require_generation(request, seen.network_policy)
        policy = await checked(services, owner.scope, raw, seen.network_policy)
        async with services.database.write() as connection:
            row = await session_rows.find(connection, owner.scope, owner.session_id, services.sealer, lock=True)
            if row is None or not is_live(row.status):
                raise stopped()
            if row.network_policy != seen.network_policy:
                # Another process was faster: what was redacted, and `If-Match`, are about its policy now.
                continue
            generation = await sandbox_rows.next_generation(connection, row.sandbox_id)
            new = kept(policy, generation, Unconfirmed(_replaced(row.network_policy)))
            changed = await _write(services, connection, row.id, new, replaces=row.network_policy)
            assert changed is not None
            return changed


def _replaced(policy: NetworkPolicy | None) -> NetworkPolicy | None:
    """A policy as the next one remembers it. If it is unconfirmed itself, it remembers only what was confirmed last: otherwise
    they would pile up for as long as the host does not answer."""
    confirmed = policy
    while confirmed is not None and confirmed.unconfirmed is not None:
        confirmed = confirmed.unconfirmed.replaces
    return policy if policy is None or policy is confirmed else replace(policy, unconfirmed=Unconfirmed(confirmed))


async def _write(
    services: Services,
    connection: AsyncConnection,
    session_id: str,
    policy: NetworkPolicy | None,
    *,
    replaces: NetworkPolicy | None,
) -> SessionRow | None:
    """Write a session's policy if it still has the one that this replaces."""

    def decide(found: SessionRow) -> Merged:
        if generation_of(found.network_policy) != generation_of(replaces):
            return Merged(found, changed=False, ended=False)
        return Merged(replace(found, network_policy=policy), changed=True, ended=False)

    return await session_rows.change(connection, session_id, services.sealer, decide)


async def _enforce(services: Services, row: SessionRow) -> NetworkApplied:
    """Have the host enforce a session's unconfirmed policy, and write what came of it."""
    policy, scope = row.network_policy, Scope(row.team_id, row.project_id)
    assert policy is not None
    assert policy.unconfirmed is not None
    try:
        network, applied = await _tell(services, row)
    except ConnectionClosed:
        # It may or may not have heard us. It will be asked again.
        raise
    except HutchError:
        async with services.database.write() as connection:
            await _write(services, connection, row.id, policy.unconfirmed.replaces, replaces=policy)
        raise
    async with services.database.write() as connection:
        await _write(services, connection, row.id, replace(policy, unconfirmed=None), replaces=policy)
    await send_what_changed(services, scope, policy, network)
    return applied


async def _tell(services: Services, row: SessionRow) -> tuple[NetworkSpec, NetworkApplied]:
    """Have the host enforce a session's policy within the bounds as they are now."""
    network = await spec(services, Scope(row.team_id, row.project_id), row.network_policy)
    update = NetworkUpdate(session_id=row.id, network=network)
    with host_errors():
        applied = await services.host.call_large("session.network", update, NetworkApplied)
    services.bounds_told.put(row.id, digest(network.bounds))
    return network, applied


async def renew(services: Services, session_id: str) -> NetworkApplied | None:
    """Have the host enforce a session's policy again, because its bounds changed; None for a session that is over. A policy that
    is unconfirmed is settled on the way. Raises `HutchError` when it is not known what holds."""
    async with services.turn(session_id):
        while True:
            async with services.database.read() as connection:
                row = await session_rows.find_any(connection, session_id, services.sealer)
            if row is None or not is_live(row.status):
                return None
            policy = row.network_policy
            try:
                if policy is not None and policy.unconfirmed is not None:
                    return await _enforce(services, row)
                network, applied = await _tell(services, row)
            except GoneError:
                return None
            except ConnectionClosed:
                raise
            except HutchError as error:
                if policy is None or policy.unconfirmed is None:
                    raise
                # The one that it replaced holds again, and its bounds are still the old ones.
                log.warning("the network policy %d of session %s was refused: %s", policy.generation, row.id, error.message)
                continue
            await send_what_changed(services, Scope(row.team_id, row.project_id), policy, network)
            return applied


async def settle(services: Services, rows: Iterable[SessionRow]) -> None:
    """After the connection to the host was lost: what it may have missed about these sessions."""
    live = list(rows)
    for row in live:
        if row.network_policy is not None and row.network_policy.unconfirmed is not None:
            async with services.turn(row.id):
                await _settle(services, row)
    for scope, name in sorted(_named(live), key=repr):
        await _push(services, scope, name)


async def _settle(services: Services, row: SessionRow) -> None:
    async with services.database.read() as connection:
        now = await session_rows.find_any(connection, row.id, services.sealer)
    if now is None or now.network_policy is None or now.network_policy.unconfirmed is None:
        return
    try:
        await _enforce(services, now)
    except ConnectionClosed:
        raise
    except HutchError as error:
        log.warning("the network policy %d of session %s was refused: %s", now.network_policy.generation, row.id, error.message)


def _named(rows: Sequence[SessionRow]) -> set[tuple[Scope, str]]:
    """Every stored credential that a policy of these sessions names."""
    return {
        (Scope(row.team_id, row.project_id), name)
        for row in rows
        if row.network_policy is not None
        for name in row.network_policy.credentials
        if name not in row.network_policy.values
    }

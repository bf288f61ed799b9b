"""From settings to running services, in two steps: what needs the right to read the installation, and the rest."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

from hutch.api import events, ingress, network_bounds, snapshots, sources, teardown, telemetry, token_uses, webhooks, windows
from hutch.api.auth import Authenticator, TokenSigner, new_token
from hutch.api.forwarding import ForwardingSigner
from hutch.api.host_events import follow_host
from hutch.api.rates import RequestRates
from hutch.api.services import Images, Services
from hutch.api.usage import ReceiptSigner
from hutch.clock import Clock, now_ms
from hutch.control.permissions import TokenRole
from hutch.control.records import Project, Team, TokenRecord
from hutch.egress.policy import Boundaries, operator_policy
from hutch.errors import HutchError
from hutch.host.client import HostClient
from hutch.login.provider import Provider
from hutch.metering.prices import DEFAULT, PriceTable
from hutch.metering.prices import load as load_table
from hutch.settings import Settings
from hutch.storage import tenants, tokens
from hutch.storage.database import Database
from hutch.storage.migrate import Migrations, migrations
from hutch.storage.sealing import KeyFile, Sealer
from hutch.trust import system_trust
from hutch.workers import jobs, mirrors, processes, retention, scheduler
from hutch.workers.ahead import Ahead
from hutch.workers.rates import WorkerRates
from hutch.workers.warm import WarmRuns

log = logging.getLogger(__name__)

AGAIN_S = 1.0
DEFAULT_TEAM = "default"
DEFAULT_PROJECT = "default"
SERVER_TOKEN_NAME = "hutch serve"  # noqa: S105 - a name, not a secret
"""The administrator's token that a server writes to its ready file; the same one as long as it is young enough."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What is read from the installation before the process gives up the right to read it."""

    migrations: Migrations
    operator_policy: str | None = None
    """The network policy that bounds all others, checked."""
    prices: PriceTable = DEFAULT
    trust: ssl.SSLContext = field(default_factory=system_trust)
    """The certificates of this machine."""
    exporter: telemetry.Exporting | None = None
    """What sends metrics to a collector; None: there is none, and nothing of what sends is imported."""


def load(settings: Settings) -> Loaded:
    """Read the installation. Raises `SettingsError` for a policy that is none, `BadRequestError` for such prices."""
    exporter = None
    if settings.telemetry.otlp_endpoint is not None:
        exporter = importlib.import_module("hutch.api.otlp").Exporter(settings.telemetry)
    return Loaded(migrations(), operator_policy(settings), load_table(settings.billing.prices), exporter=exporter)


@dataclass(frozen=True, slots=True)
class Identity:
    """What the ready file says about the server's own token."""

    token: str
    team_id: str
    project_id: str


@contextlib.asynccontextmanager
async def started(settings: Settings, loaded: Loaded, images: Images, clock: Clock = now_ms) -> AsyncIterator[Services]:
    """Services over an up-to-date database, following the host. Everything is closed at the end."""
    settings.control_dir.mkdir(mode=0o700, exist_ok=True)
    database = Database(settings.database_url())
    host = HostClient(settings.host_socket)
    tasks: list[asyncio.Task[None]] = []
    uses: token_uses.TokenUses | None = None
    warm: WarmRuns | None = None
    provider: Provider | None = None
    presence: processes.Presence | None = None
    services: Services | None = None
    try:
        await database.open(loaded.migrations)
        signer = TokenSigner(settings.control_dir / "token.key")
        services = Services(
            settings=settings,
            database=database,
            sealer=Sealer(KeyFile(settings.control_dir / "secrets.key")),
            host=host,
            auth=Authenticator(database, signer, RequestRates(settings.limits), clock),
            images=images,
            clock=clock,
            boundaries=Boundaries.of(settings),
            operator_policy=loaded.operator_policy,
            issuer=settings.server.public_url or f"http://{settings.server.listen}",
            forwarding=ForwardingSigner(settings.control_dir / "forwarding.key"),
            links=ingress.LinkSigner(settings.control_dir / "ingress.key"),
            prices=loaded.prices,
            trust=loaded.trust,
            receipts=ReceiptSigner(settings.control_dir / "receipts.key"),
            provider=Provider(settings.sso, loaded.trust, clock) if settings.sso.enabled else None,
        )
        services.warm, services.ahead = WarmRuns(services), Ahead(services)
        services.jobs, services.worker_rates = jobs.Jobs(services), WorkerRates(settings.workers)
        uses, warm, provider = services.auth.uses, services.warm, services.provider
        team, project = await _default_tenant(services)
        services.default_team_id, services.default_project_id = team.id, project.id
        await sources.give_up(services)
        presence = processes.Presence(services)
        await presence.begin()
        endless = (
            follow_host,
            windows.follow,
            events.follow,
            webhooks.keep_sending,
            network_bounds.keep_told,
            snapshots.keep_tidy,
            teardown.keep_removing,
            ingress.announce,
            ingress.follow_wakes,
            jobs.follow,
            retention.follow,
            scheduler.keep_syncing,
            mirrors.keep_mirroring,
        )
        loops: list[Callable[[], Awaitable[None]]] = [partial(work, services) for work in endless]
        loops += [presence.keep, partial(token_uses.keep_written, services.auth.uses, database)]
        if loaded.exporter is not None:
            loops.append(partial(telemetry.keep_sending, services, loaded.exporter))
        tasks = [asyncio.create_task(for_ever(loop)) for loop in loops]
        yield services
        services.draining = True
        if services.working:
            # What is not over by then is handed back, for whoever comes next.
            await asyncio.wait(services.working, timeout=settings.server.shutdown_grace_s)
    finally:
        if services is not None:
            tasks += services.ending
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if warm is not None:
            await warm.close()
        if presence is not None:
            await presence.end()
        if uses is not None:
            with contextlib.suppress(HutchError):
                await uses.write(database)
        if provider is not None:
            await provider.aclose()
        await host.close()
        await database.close()


async def for_ever(loop: Callable[[], Awaitable[None]]) -> None:
    """Run a loop that has no end. What it did not expect is logged, and it begins again: nobody else would do what it does."""
    while True:
        try:
            return await loop()
        except Exception:
            log.exception("what goes on for ever failed; it begins again in %.0f s", AGAIN_S)
        await asyncio.sleep(AGAIN_S)


async def _default_tenant(services: Services) -> tuple[Team, Project]:
    now = services.clock()
    async with services.database.write() as connection:
        team = await tenants.ensure_team(connection, DEFAULT_TEAM, now)
        return team, await tenants.ensure_project(connection, team.id, DEFAULT_PROJECT, now)


async def identity(services: Services) -> Identity:
    """The server's own administrator's token: the last one if less than half of its life is over, else a new one."""
    now = services.clock()
    life = services.settings.tokens.max_ttl_s * 1000
    async with services.database.read() as connection:
        known = await tokens.list_for_team(connection, services.default_team_id)
    for record in known:
        if _reusable(record, services.default_project_id, now):
            return Identity(services.auth.sign(record), record.team_id, services.default_project_id)
    record = new_token(
        services.default_team_id, services.default_project_id, TokenRole.ADMIN, now=now, ttl_ms=life, name=SERVER_TOKEN_NAME
    )
    return Identity(await services.auth.issue(record), record.team_id, services.default_project_id)


def _reusable(record: TokenRecord, project_id: str, now: int) -> bool:
    return (
        record.name == SERVER_TOKEN_NAME
        and record.role is TokenRole.ADMIN
        and record.project_id == project_id
        and record.scopes is None
        and record.member_id is None
        and record.revoked_at is None
        and now < (record.created_at + record.expires_at) // 2
    )

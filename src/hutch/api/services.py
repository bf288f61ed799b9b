"""What endpoints need, made once at start and found at `request.app.state.services`."""

from __future__ import annotations

import asyncio
import importlib
import secrets
import ssl
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from starlette.requests import Request

from hutch.api.auth import Authenticator, Recent
from hutch.api.metrics import Metrics
from hutch.api.tickets import Tickets
from hutch.clock import Clock, now_ms
from hutch.control.lifecycle import lost
from hutch.control.records import NetworkBounds, Scope, SessionRow
from hutch.egress.policy import Boundaries
from hutch.errors import GoneError, HutchError, NotFoundError
from hutch.host.client import HostClient
from hutch.host.protocol import HostInfo, IngressState, SessionRecord
from hutch.metering.prices import DEFAULT, PriceTable
from hutch.settings import Settings
from hutch.storage import network_bounds, reports, sessions
from hutch.storage.database import Database
from hutch.storage.network_bounds import Bounded
from hutch.storage.sealing import Sealer
from hutch.trust import system_trust

if TYPE_CHECKING:
    from hutch.api.forwarding import ForwardingSigner
    from hutch.api.ingress import Announcer, LinkSigner
    from hutch.api.usage import ReceiptSigner
    from hutch.login.provider import Provider
    from hutch.workers.ahead import Ahead
    from hutch.workers.jobs import Jobs
    from hutch.workers.rates import WorkerRates
    from hutch.workers.warm import WarmRuns

IMAGE_CACHE_S = 5.0
BOUNDS_TOLD_ENTRIES = 65_536


@dataclass(frozen=True, slots=True)
class ResolvedImage:
    """An image that a reference means now. `pinned` names it by digest; `cwd` is where sessions start."""

    pinned: str
    cwd: str


class Images:
    """The image store, with what it answered a moment ago."""

    def __init__(self, settings: Settings) -> None:
        self.store: Any = importlib.import_module("hutch.images").ImageStore(settings.image_dir())
        self._recent: Recent[tuple[str, str], tuple[float, ResolvedImage]] = Recent(256)

    def resolve(self, reference: str, runtime: str | None) -> ResolvedImage:
        """What `reference` (or a legacy `runtime`) means. Raises `NotFoundError`."""
        key = (reference, runtime or "")
        recent = self._recent.get(key)
        if recent is not None and time.monotonic() - recent[0] < IMAGE_CACHE_S:
            return recent[1]
        image = self.store.resolve(runtime or reference)
        resolved = ResolvedImage(f"{image.name.removesuffix(':latest')}@{image.digest}", image.config.cwd)
        self._recent.put(key, (time.monotonic(), resolved))
        return resolved

    def list(self) -> list[Any]:
        """Every image."""
        images: list[Any] = self.store.list()
        return images


@dataclass(slots=True)
class Services:
    settings: Settings
    database: Database
    sealer: Sealer
    host: HostClient
    auth: Authenticator
    images: Any
    clock: Clock = now_ms
    issuer: str = ""
    """This server's base URL, as tokens of forwarded requests name it."""
    webhooks_port: int | None = None
    """Where the ingress passes on requests to webhooks, on the loopback interface; None: there is no ingress."""
    forwarding: ForwardingSigner | None = None
    links: LinkSigner | None = None
    receipts: ReceiptSigner | None = None
    provider: Provider | None = None
    """Who knows the people that log in; None: nobody does."""
    prices: PriceTable = DEFAULT
    announcer: Announcer = field(default_factory=lambda: importlib.import_module("hutch.api.ingress").Announcer())
    """Tells the host which names the ingress serves."""
    default_team_id: str = ""
    default_project_id: str = ""
    draining: bool = False
    starting: set[str] = field(default_factory=set)
    """Sessions whose create has not been answered: the host need not know them yet."""
    importing: set[str] = field(default_factory=set)
    """Snapshots that are being imported: the host has some of them before they are written down."""
    storage_full: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Keys of teams and projects that are known to hold as much as their budgets allow: how much that is, and what they hold."""
    over_quota: set[str] = field(default_factory=set)
    """Projects whose snapshots are known to hold more than they may."""
    boundaries: Boundaries = field(default_factory=Boundaries)
    """What network policies are checked against."""
    operator_policy: str | None = None
    """The operator's network policy, which bounds all others."""
    bounds_told: Recent[str, bytes] = field(default_factory=lambda: Recent(BOUNDS_TOLD_ENTRIES))
    """Digests of the bounds that the host last confirmed for each session. What is missing is told again."""
    bounds_due: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the host could not be told of bounds (`api.network_bounds`)."""
    snapshots_due: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when snapshots were deleted whose files the host should remove (`api.snapshots`)."""
    webhooks_due: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when there are events that may have a webhook (`api.webhooks`)."""
    deletions_due: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a team or project is to be removed with all that it has (`api.teardown`)."""
    syncs_due: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a sync of a worker may be due (`hutch.workers.scheduler`)."""
    turns: WeakValueDictionary[str, asyncio.Lock] = field(default_factory=WeakValueDictionary)
    tickets: Tickets = field(default_factory=Tickets)
    trust: ssl.SSLContext = field(default_factory=system_trust)
    """Whom certificates of strangers' servers have to be of."""
    warm: WarmRuns | None = None
    """Runs of workers that wait for their input."""
    ahead: Ahead | None = None
    """Sandboxes of syncs that are due soon."""
    jobs: Jobs | None = None
    """What workers are to do."""
    worker_rates: WorkerRates | None = None
    process_id: str = field(default_factory=lambda: secrets.token_hex(8))
    """This API process, among others that share the database."""
    working: set[asyncio.Task[Any]] = field(default_factory=set)
    """Jobs and syncs that run, and ends of runs that are written: they are waited for when the server ends."""
    ending: set[asyncio.Task[None]] = field(default_factory=set)
    """Sandboxes of processes that died, being ended, and ends of runs that are written late: canceled when the server ends."""
    verifications: dict[asyncio.Task[Any], str] = field(default_factory=dict)
    """Requests of webhooks that a worker looks at now, with its project."""
    metrics: Metrics = field(default_factory=Metrics)

    async def apply(self, report: SessionRecord, *, expiration_ms: int | None = None) -> SessionRow | None:
        """Write what the host says about a session. Idempotent; None when the session is not known."""
        async with self.database.write() as connection:
            return await reports.apply(connection, report, self.sealer, self.clock(), expiration_ms=expiration_ms)

    async def mark_lost(self, session_id: str) -> SessionRow | None:
        """Write that the host does not know a session any more."""
        now = self.clock()
        async with self.database.write() as connection:
            return await sessions.change(connection, session_id, self.sealer, lambda row: lost(row, now))

    def turn(self, session_id: str) -> asyncio.Lock:
        """Held while a session's network policy is replaced, so that the host hears of policies in their order."""
        return self.turns.setdefault(session_id, asyncio.Lock())

    async def bounds(self, scope: Scope) -> NetworkBounds:
        """The policies within which those of a team's or a project's sandboxes hold now."""
        async with self.database.read() as connection:
            team, project = await network_bounds.find(connection, scope)
        return NetworkBounds(self.operator_policy, team, project)

    async def bounded(self, team_id: str) -> Bounded:
        """Which of a team's projects have bounds."""
        if self.operator_policy is not None:
            return Bounded(all=True)
        async with self.database.read() as connection:
            return await network_bounds.bounded(connection, team_id)

    async def host_info(self) -> HostInfo:
        return await self.host.call("host.info", {}, HostInfo)

    async def ingress_state(self) -> IngressState:
        return await self.host.call("ingress.state", {}, IngressState)

    async def refresh_metrics(self) -> None:
        """Have the metrics say what the host and the ingress say now."""
        try:
            self.metrics.set_host(await self.host_info())
        except HutchError:
            self.metrics.set_host(None)
        try:
            self.metrics.ingress.state = await self.ingress_state()
        except HutchError:
            self.metrics.ingress.state = None


def services_of(request: Request) -> Services:
    found: Services = request.app.state.services
    return found


def session_error(error: HutchError) -> HutchError:
    """A host's error about a session that the control plane knows: what the host forgot has ended, and clients resume on 410."""
    if isinstance(error, NotFoundError) and error.code == "session_not_found":
        return stopped()
    return error


def stopped() -> GoneError:
    return GoneError("sandbox_stopped", "Sandbox has stopped execution and is no longer available")

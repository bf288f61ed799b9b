"""Sessions that are written and then started: the first one of a new sandbox, and those that sandboxes are resumed with.

Written first, so that of several that ask for one name exactly one goes on; then the host is asked for a machine; and what it
refuses is undone.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from hutch import ids
from hutch.api import drives, network_policy, sources, storage_budgets
from hutch.api.services import ResolvedImage, Services, stopped
from hutch.api.sessions import routes
from hutch.control import shapes
from hutch.control.lifecycle import fetched, is_live, sandbox_status
from hutch.control.names import generate_name
from hutch.control.records import Route, SandboxConfig, SandboxRecord, Scope, SessionRow, Snapshot
from hutch.control.sources import Source
from hutch.errors import HutchError, RateLimitedError
from hutch.host.protocol import (
    DriveMode,
    DriveMount,
    NetworkApplied,
    NetworkSpec,
    NetworkUpdate,
    PersistRequest,
    SessionRecord,
    SessionSpec,
    SessionStatus,
    StopRequest,
)
from hutch.metering.budgets import Limits
from hutch.storage import drives as drive_rows
from hutch.storage import sandboxes as rows
from hutch.storage import sessions as session_rows
from hutch.storage import snapshots as snapshot_rows
from hutch.wire.connection import ConnectionClosed

CONCURRENCY_RETRY_S = 5
"""Nobody knows when a sandbox will stop; the vendor's clients wait for at most 20 s."""


def assigned_routes(ports: list[int], known: tuple[Route, ...] = ()) -> tuple[Route, ...]:
    """One route per port; a port that had one keeps it."""
    by_port = {route.port: route for route in known}
    return tuple(by_port.get(port) or Route(port, ids.subdomain()) for port in ports)


@dataclass(frozen=True, slots=True)
class Start:
    """A session that is written and not started yet; its id is in `services.starting`. Without its `is_first` session there is no
    sandbox."""

    record: SandboxRecord
    session: SessionRow
    snapshot: Snapshot | None
    mounts: list[DriveMount]
    is_first: bool
    with_memory: bool = True
    source: Source | None = None

    def spec(self, network: NetworkSpec) -> SessionSpec:
        config = self.record.config
        return SessionSpec(
            session_id=self.session.id,
            sandbox_name=self.record.name,
            project_id=self.record.project_id,
            image=config.image,
            vcpus=config.vcpus,
            memory_mb=config.memory_mb,
            timeout_ms=config.timeout_ms,
            env=config.env,
            hostname=_hostname(self.record.name),
            disk_bytes=config.disk_bytes,
            # With its source it becomes persistent: nobody is to go on from a part of that, however it ends before.
            persistent=config.persistent and self.source is None,
            sandbox_id=self.record.id,
            team_id=self.record.team_id,
            network=network,
            source_snapshot=self.snapshot.id if self.snapshot is not None else None,
            with_memory=self.with_memory,
            mounts=self.mounts,
            budget=msgspec.convert(config.budget, Limits) if config.budget is not None else None,
            isolation=config.isolation or "",
        )

    async def start(self, services: Services, scope: Scope) -> tuple[SandboxRecord, SessionRow]:
        """Have the host start it; the records as they are then. Raises the host's errors; the session has failed then."""
        policy = self.record.config.network_policy
        report: SessionRecord | None = None
        try:
            network = await network_policy.spec(services, scope, policy)
            if self.source is None:
                report = await services.host.call_large("session.create", self.spec(network), SessionRecord)
            else:
                at_first = sources.network(self.source, network.bounds)
                report = await services.host.call_large("session.create", self.spec(at_first), SessionRecord)
                await sources.fetch(services, self.session, self.source)
                network = await network_policy.spec(services, scope, policy)
                update = NetworkUpdate(session_id=self.session.id, network=network)
                await services.host.call_large("session.network", update, NetworkApplied)
                async with services.database.read() as connection:
                    record = await rows.find(connection, scope, self.record.name, services.sealer)
                if record is not None and record.config.persistent:
                    await services.host.call("session.persist", PersistRequest(self.session.id, persistent=True), SessionRecord)
            # Bounds that changed meanwhile were told to a host that did not know the session.
            if (await services.bounds(scope)).texts() != network.bounds:
                await network_policy.renew(services, self.session.id)
            else:
                services.bounds_told.put(self.session.id, network_policy.digest(network.bounds))
        except BaseException as error:
            await asyncio.shield(self._fail(services, scope, error if report is None else None))
            raise
        finally:
            services.starting.discard(self.session.id)
        await network_policy.send_what_changed(services, scope, policy, network)
        if self.source is None:
            started = await services.apply(report) or self.session
        else:
            started = await self._fetched(services, report)
        begun = replace(
            self.record,
            status=sandbox_status(started.status),
            config=replace(self.record.config, cwd=started.cwd),
        )
        if not is_live(started.status):
            raise stopped()
        return begun, started

    async def _fetched(self, services: Services, report: SessionRecord) -> SessionRow:
        now = services.clock()
        async with services.database.write() as connection:
            found = await session_rows.change(connection, self.session.id, services.sealer, lambda row: fetched(row, report, now))
        return found or self.session

    async def _fail(self, services: Services, scope: Scope, error: BaseException | None) -> None:
        """Free the name of a sandbox that is new. Unless it was the host that refused with this error, it may have started the
        session, and is told to stop it."""
        if not isinstance(error, HutchError) or isinstance(error, ConnectionClosed):
            with contextlib.suppress(HutchError):
                await services.host.call("session.stop", StopRequest(self.session.id, "create failed"), SessionRecord)
        await services.mark_lost(self.session.id)
        if self.is_first:
            async with services.database.write() as connection:
                await rows.remove(connection, scope, self.record.id, services.clock())


def pending(
    record: SandboxRecord,
    session_id: str,
    snapshot: Snapshot | None,
    mounts: list[DriveMount],
    now: int,
    *,
    fetching: bool = False,
) -> SessionRow:
    """A new session of a sandbox, as it is now."""
    config = record.config
    return SessionRow(
        id=session_id,
        sandbox_id=record.id,
        team_id=record.team_id,
        project_id=record.project_id,
        sandbox_name=record.name,
        status=SessionStatus.PENDING,
        image=config.image,
        runtime=config.runtime,
        region=config.region,
        cwd=config.cwd,
        vcpus=config.vcpus,
        memory_mb=config.memory_mb,
        timeout_ms=config.timeout_ms,
        requested_at=now,
        created_at=now,
        updated_at=now,
        source_snapshot_id=snapshot.id if snapshot is not None else None,
        network_policy=config.network_policy,
        mounts=[{"path": mount.path, "drive_id": mount.drive_id, "mode": str(mount.mode)} for mount in mounts] or None,
        fetching=fetching,
        worker_id=record.worker_id,
    )


async def used(connection: AsyncConnection, mounts: list[DriveMount], now: int) -> None:
    """A session begins with these drives."""
    written = [mount.drive_id for mount in mounts if mount.mode is DriveMode.READ_WRITE]
    if written:
        await drive_rows.used(connection, written, now)


async def check_concurrency(services: Services, connection: AsyncConnection, scope: Scope) -> None:
    """Raises `RateLimitedError` where a project has as many sandboxes running as it may. Within the transaction that adds one."""
    most = services.settings.limits.concurrent_sandboxes
    if most and await session_rows.count_live(connection, scope) >= most:
        raise RateLimitedError(
            "rate_limited",
            f"The project has {most} sandboxes running, which is as many as it may. Stop one, and try again.",
            retry_after_s=CONCURRENCY_RETRY_S,
        )


async def boot(
    services: Services,
    scope: Scope,
    name: str | None,
    config: SandboxConfig,
    ports: list[int],
    *,
    image: ResolvedImage,
    snapshot: Snapshot | None,
    with_memory: bool = True,
    snapshot_stays: bool = True,
    source: Source | None = None,
    worker_id: str | None = None,
) -> dict[str, Any]:
    """Take the name and start a session; the answer. Raises `ConflictError` for a taken name, and the host's errors."""
    assert scope.project_id is not None
    if config.persistent:
        storage_budgets.require_lately(services, scope)
    config = replace(config, image=image.pinned, cwd=image.cwd)
    if snapshot is not None:
        config = replace(config, image=snapshot.image, runtime=snapshot.runtime)
    mounts = await drives.resolved(services, scope, config)
    now = services.clock()
    session_id, sandbox_name = ids.session_id(), name or generate_name()
    record = SandboxRecord(
        id=ids.sandbox_id(),
        team_id=scope.team_id,
        project_id=scope.project_id,
        name=sandbox_name,
        config=config,
        routes=assigned_routes(ports),
        status="running",
        status_updated_at=now,
        created_at=now,
        updated_at=now,
        current_session_id=session_id,
        current_snapshot_id=snapshot.id if snapshot is not None and snapshot_stays else None,
        worker_id=worker_id,
    )
    session = pending(record, session_id, snapshot, mounts, now, fetching=source is not None)
    start = Start(record, session, snapshot, mounts, is_first=True, with_memory=with_memory, source=source)
    services.starting.add(session_id)
    try:
        async with services.database.write() as connection:
            await check_concurrency(services, connection, scope)
            await rows.add(connection, record, services.sealer)
            await session_rows.add(connection, start.session, services.sealer)
            if snapshot is not None:
                await snapshot_rows.used(connection, snapshot, now)
            await used(connection, mounts, now)
    except BaseException:
        services.starting.discard(session_id)
        raise
    record, started = await start.start(services, scope)
    if record.routes:
        await services.announcer.later(record.id)
    bounded = record.project_id in await services.bounded(record.team_id)
    answer = {
        "sandbox": shapes.sandbox(record, started, bounded=bounded, created=True),
        "session": shapes.session(started, bounded=bounded),
    }
    return answer | {"routes": routes(services, record)}


def _hostname(name: str) -> str:
    """A sandbox's name as a host name: letters, digits and hyphens, at most 63."""
    return name.lower().replace("_", "-").strip("-")[:63].rstrip("-") or "sandbox"

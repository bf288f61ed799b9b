"""Sandboxes: named records, each with at most one live session.

Creating takes the name in the database first, so that of several creates of one name exactly one goes on; then asks the host for
a machine; and frees the name again when the host refuses.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass, replace
from typing import Any

from fastapi import APIRouter
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.requests import Request
from starlette.responses import Response

from hutch import ids
from hutch.api import drives, images, network_policy, paging
from hutch.api.auth import Principal
from hutch.api.network_policy import IF_MATCH, checked, kept, read_with_policy, require_generation
from hutch.api.responses import JsonResponse
from hutch.api.routing import PlainRoute, api_version, documented
from hutch.api.services import ResolvedImage, Services, services_of, stopped
from hutch.api.sessions import routes, stop
from hutch.api.snapshots import check_quota, usable
from hutch.control import shapes
from hutch.control.lifecycle import is_live, sandbox_status
from hutch.control.names import generate_name, is_name
from hutch.control.records import FIRST_GENERATION, Route, SandboxConfig, SandboxRecord, Scope, SessionRow, Snapshot
from hutch.control.requests import (
    DAY_MS,
    MEMORY_MB_PER_VCPU,
    CreateSandbox,
    ForkSandbox,
    SandboxFields,
    UpdateSandbox,
)
from hutch.errors import BadRequestError, ConflictError, GoneError, HutchError, NotFoundError, NotReadyError
from hutch.host.protocol import (
    DriveMode,
    DriveMount,
    NetworkSpec,
    PersistRequest,
    SessionRecord,
    SessionRef,
    SessionSpec,
    SessionStatus,
    SnapshotRequest,
    SnapshotTaken,
    StopRequest,
)
from hutch.storage import drives as drive_rows
from hutch.storage import sandboxes as rows
from hutch.storage import sessions as session_rows
from hutch.storage import snapshots as snapshot_rows
from hutch.storage.sandboxes import SORT_COLUMNS, SandboxQuery
from hutch.wire.connection import ConnectionClosed

router = APIRouter(route_class=PlainRoute, tags=["sandboxes"])

log = logging.getLogger(__name__)

DEFAULT_RUNTIME = "node22"
"""What hosted sandboxes report even for the default image."""
DEFAULT_EXPIRATION_MS = {2: 30 * DAY_MS, 3: 30 * DAY_MS, 4: 7 * DAY_MS}
FORKS_AT_ONCE = 4
RESUME_WAIT_S = 60.0
RESUME_POLL_S = 0.05


@router.post("/v2/sandboxes", openapi_extra=documented(CreateSandbox))
async def create_sandbox(request: Request) -> Response:
    """Create a sandbox and start its first session; answers when a command would succeed."""
    services = services_of(request)
    principal = await services.auth.principal(request)
    body, policy = await read_with_policy(request, CreateSandbox)
    scope = await services.auth.scope(request, principal, body.projectId or request.query_params.get("projectId"))
    snapshot = None
    if body.source is not None:
        if body.source.type != "snapshot":
            raise BadRequestError(
                "not_supported",
                f"A `source` of type {body.source.type} is not supported by this server yet. Run `git clone` or `curl` in the "
                "sandbox instead.",
            )
        async with services.database.read() as connection:
            snapshot = await usable(connection, scope, body.source.snapshotId or "", services.clock())
    limits = services.settings.sandbox
    vcpus = limits.default_vcpus
    with_memory = body.source is not None and body.source.memory
    if snapshot is not None and snapshot.memory_bytes and with_memory:
        vcpus = snapshot.vcpus
    version = api_version(request)
    keep = body.keepLastSnapshots.stored() if body.keepLastSnapshots is not None else None
    persistent = body.persistent if body.persistent is not None else True
    if version == 4 and persistent and "keepLastSnapshots" not in body.model_fields_set:
        keep = {"count": 1, "deleteEvicted": True}
    base = SandboxConfig(
        image=body.image or limits.default_image,
        timeout_ms=limits.default_timeout_ms,
        vcpus=vcpus,
        memory_mb=vcpus * MEMORY_MB_PER_VCPU,
        persistent=True,
        runtime=body.runtime or DEFAULT_RUNTIME,
        region=limits.region,
        cwd="",
        snapshot_expiration_ms=DEFAULT_EXPIRATION_MS[version] if version == 4 else None,
        disk_bytes=body.disk_bytes,
    )
    config = replace(configured(services, base, body), keep_last_snapshots=keep)
    if policy is not None:
        config = replace(config, network_policy=kept(await checked(services, scope, policy), FIRST_GENERATION))
    if snapshot is None:
        image = await images.resolve(services, principal, scope, config.image, body.runtime)
    else:
        image = await images.resolve_exact(services, snapshot.image)
    ports = body.ports or []
    made = await boot(services, scope, body.name, config, ports, image=image, snapshot=snapshot, with_memory=with_memory)
    return JsonResponse(made)


@router.post("/v2/sandboxes/{name}/fork", openapi_extra=documented(ForkSandbox, query={"projectId": "Id or slug"}))
async def fork_sandbox(request: Request, name: str) -> Response:
    """A new sandbox with another's configuration, from its current snapshot; each field that is given replaces the copied one.
    With `memory` it goes on where the running session is, with all its processes. With `memory` or `count` the answer has all
    of them in `forks`, and the first one as if it were the only one."""
    services = services_of(request)
    principal, scope = await _caller(request, services)
    body, policy = await read_with_policy(request, ForkSandbox)
    source = await find(services, scope, name)
    # What the source has mounted it still has.
    config = configured(services, replace(source.config, mounts=None), body)
    copied = source.config.network_policy
    if policy is not None:
        config = replace(config, network_policy=kept(await checked(services, scope, policy, copied), FIRST_GENERATION))
    elif copied is not None:
        config = replace(config, network_policy=replace(copied, generation=FIRST_GENERATION))
    if body.disk_bytes is not None:
        config = replace(config, disk_bytes=body.disk_bytes)
    ports = body.ports if body.ports is not None else [route.port for route in source.routes]
    snapshot = None
    try:
        if body.image is not None:
            image = await images.resolve(services, principal, scope, body.image, None)
        else:
            if body.memory:
                snapshot = await _memory_of(services, scope, source)
                config = replace(config, vcpus=snapshot.vcpus, memory_mb=snapshot.vcpus * MEMORY_MB_PER_VCPU)
            elif source.current_snapshot_id is not None:
                async with services.database.read() as connection:
                    snapshot = await usable(connection, scope, source.current_snapshot_id, services.clock())
            image = await images.resolve_exact(services, snapshot.image if snapshot is not None else config.image)
        forks = await _fork(services, scope, body.names(), config, ports, image, snapshot, with_memory=body.memory)
    finally:
        if body.memory and snapshot is not None:
            await _discard(services, snapshot)
    if body.memory or body.count is not None:
        return JsonResponse(forks[0] | {"forks": forks})
    return JsonResponse(forks[0])


async def _memory_of(services: Services, scope: Scope, source: SandboxRecord) -> Snapshot:
    """A snapshot of the running session of a sandbox, for forks only. Raises `HutchError`."""
    await check_quota(services, source.project_id)
    async with services.database.read() as connection:
        session = await session_rows.find(connection, scope, source.current_session_id, services.sealer)
    if session is None or not is_live(session.status):
        raise stopped()
    wanted = SnapshotRequest(session_id=session.id, keep_running=True, memory=True, for_forks=True)
    taken = await services.host.call("session.snapshot", wanted, SnapshotTaken)
    now = services.clock()
    async with services.database.write() as connection:
        await snapshot_rows.reported(connection, session, taken.snapshot, now)
        return await usable(connection, scope, taken.snapshot.snapshot_id, now)


async def _discard(services: Services, snapshot: Snapshot) -> None:
    async with services.database.write() as connection:
        await snapshot_rows.mark_deleted(connection, snapshot.id, services.clock())
    services.snapshots_due.set()


async def _fork(
    services: Services,
    scope: Scope,
    names: list[str | None],
    config: SandboxConfig,
    ports: list[int],
    image: ResolvedImage,
    snapshot: Snapshot | None,
    *,
    with_memory: bool,
) -> list[dict[str, Any]]:
    """Sandboxes from one snapshot, or none of them. Raises the first's error."""
    places = asyncio.Semaphore(FORKS_AT_ONCE)

    async def one(name: str | None) -> dict[str, Any]:
        async with places:
            return await boot(
                services,
                scope,
                name,
                config,
                ports,
                image=image,
                snapshot=snapshot,
                with_memory=with_memory,
                snapshot_stays=not with_memory,
            )

    made = await asyncio.gather(*(one(name) for name in names), return_exceptions=True)
    failed = [fork for fork in made if isinstance(fork, BaseException)]
    forks = [fork for fork in made if not isinstance(fork, BaseException)]
    if failed:
        for fork in forks:
            try:
                record, session = await find_with_session(services, scope, fork["sandbox"]["name"])
                await _delete(services, scope, record, session)
            except HutchError as error:
                # Somebody else deleted it, or the host is away; the others go all the same.
                log.warning("fork %s could not be deleted: %s", fork["sandbox"]["name"], error.message)
        raise failed[0]
    return forks


@router.get(
    "/v2/sandboxes",
    openapi_extra=documented(
        query={
            "project": "Id or slug",
            "limit": "1 to 100, default 20",
            "cursor": "`pagination.next` of the page before",
            "sortBy": "createdAt, name, statusUpdatedAt or currentSnapshotId",
            "sortOrder": "desc or asc",
            "namePrefix": "only with sortBy=name",
            "tags": "key:value",
            "status": "running, stopping or stopped; only with sortBy=createdAt",
        }
    ),
)
async def list_sandboxes(request: Request) -> Response:
    """Sandboxes of a project, newest first."""
    services = services_of(request)
    principal = await services.auth.principal(request)
    project = request.query_params.get("project") or request.query_params.get("projectId")
    scope = await services.auth.scope(request, principal, project, one=False)
    sort_by = paging.choice(request, "sortBy", "createdAt", tuple(SORT_COLUMNS))
    order = paging.choice(request, "sortOrder", "desc", ("asc", "desc"))
    prefix, tag = paging.name_prefix(request, sort_by), paging.text(request, "tags", 1024)
    status = None
    if request.query_params.get("status"):
        status = paging.choice(request, "status", "", ("running", "stopping", "stopped"))
        if sort_by != "createdAt":
            raise BadRequestError("bad_request", "Invalid request: `status` is only valid when `sortBy` is `createdAt`.")
    key, separator, value = (tag or "").partition(":")
    if tag is not None and (not separator or not key):
        raise BadRequestError("bad_request", "Invalid request: `tags` should be one `key:value` pair.")
    described = f"sandboxes {scope.team_id} {scope.project_id} {sort_by} {order} {prefix} {tag} {status}"
    query = SandboxQuery(
        sort_by=sort_by,
        descending=order == "desc",
        name_prefix=prefix,
        tag=(key, value) if tag is not None else None,
        status=status,
        after=paging.position(request, described, int if sort_by in ("createdAt", "statusUpdatedAt") else str),
        limit=paging.limit(request),
    )
    async with services.database.read() as connection:
        records, end = await rows.page(connection, scope, query, services.sealer)
        current = await session_rows.find_many(
            connection, scope, [record.current_session_id for record in records], services.sealer
        )
    bounded = await services.bounded(scope.team_id)
    items = [
        shapes.sandbox(record, current.get(record.current_session_id), bounded=record.project_id in bounded) for record in records
    ]
    return JsonResponse(shapes.page("sandboxes", items, paging.next_cursor(end, described)))


@router.get(
    "/v2/sandboxes/{name}",
    openapi_extra=documented(query={"projectId": "Id or slug", "resume": "`true` starts a new session if none is alive"}),
)
async def get_sandbox(request: Request, name: str) -> Response:
    """A sandbox, its current session and its routes."""
    services = services_of(request)
    principal, scope = await _caller(request, services)
    resume = paging.flag(request, "resume")
    record, session = await find_with_session(services, scope, name)
    resumed = False
    if resume:
        record, session, resumed = await _resumed(services, scope, record, session)
    answer = await _full(services, record, session) | {"resumed": resumed}
    if principal.is_admin and session is not None:
        answer["sandbox"] |= {"cgroup": session.cgroup, "isolation": session.isolation}
    return JsonResponse(answer)


@router.patch(
    "/v2/sandboxes/{name}",
    openapi_extra=documented(UpdateSandbox, query={"projectId": "Id or slug", "resume": "as in get"}, headers=IF_MATCH),
)
async def update_sandbox(request: Request, name: str) -> Response:
    """Change a sandbox's configuration. Ports and tags change at once, the rest with the next session."""
    services = services_of(request)
    scope = await scope_of(request, services)
    resume = paging.flag(request, "resume")
    body, raw = await read_with_policy(request, UpdateSandbox)
    session: SessionRow | None
    while True:
        known = (await find(services, scope, name)).config
        seen = known.network_policy
        require_generation(request, seen)
        # Before the transaction: nobody else writes while one is open.
        policy = await checked(services, scope, raw, seen) if raw is not None else None
        if body.mounts:
            await drives.resolved(services, scope, configured(services, known, body))
        async with services.database.write() as connection:
            record = await rows.find(connection, scope, name, services.sealer, lock=True)
            if record is None:
                raise unknown(name)
            if record.config.network_policy != seen:
                continue
            config = configured(services, record.config, body)
            if policy is not None:
                config = replace(config, network_policy=kept(policy, await rows.next_generation(connection, record.id)))
            record = _updated(record, config, body, services.clock())
            if body.currentSnapshotId is not None:
                snapshot = await usable(connection, scope, body.currentSnapshotId, services.clock())
                record = replace(record, current_snapshot_id=snapshot.id)
            await rows.save(connection, record, services.sealer)
            session = await session_rows.find(connection, scope, record.current_session_id, services.sealer)
        break
    if body.persistent is not None and session is not None and is_live(session.status):
        await _tell_persistence(services, session.id, persistent=body.persistent)
    if resume:
        record, session, resumed = await _resumed(services, scope, record, session)
        return JsonResponse(await _full(services, record, session) | {"resumed": resumed})
    bounded = record.project_id in await services.bounded(record.team_id)
    return JsonResponse({"sandbox": shapes.sandbox(record, session, bounded=bounded), "routes": routes(services, record)})


@router.delete(
    "/v2/sandboxes/{name}", openapi_extra=documented(query={"projectId": "Id or slug", "deleteOrphanSnapshots": "true or false"})
)
async def delete_sandbox(request: Request, name: str) -> Response:
    """Stop a sandbox's session if it is alive, and delete the record."""
    services = services_of(request)
    scope = await scope_of(request, services)
    orphans_too = paging.flag(request, "deleteOrphanSnapshots")
    record, session = await find_with_session(services, scope, name)
    bounded = record.project_id in await services.bounded(record.team_id)
    answer = {"sandbox": shapes.sandbox(record, session, bounded=bounded)}
    await _delete(services, scope, record, session, orphans_too=orphans_too)
    return JsonResponse(answer)


async def _delete(
    services: Services, scope: Scope, record: SandboxRecord, session: SessionRow | None, *, orphans_too: bool = False
) -> None:
    if session is not None and is_live(session.status):
        # Nobody could go on from what it would leave.
        await _tell_persistence(services, session.id, persistent=False)
        await stop(services, session, "delete")
    async with services.database.write() as connection:
        if not await rows.remove(connection, scope, record.id, services.clock()):
            raise unknown(record.name)
        if orphans_too:
            await snapshot_rows.delete_orphans(connection, record.id, services.clock())
    services.snapshots_due.set()


async def _tell_persistence(services: Services, session_id: str, *, persistent: bool) -> None:
    """Have the host keep the files of a session at its end, or not. What has ended, or is ending, did so as it was."""
    with contextlib.suppress(GoneError, NotFoundError, NotReadyError):
        await services.host.call("session.persist", PersistRequest(session_id, persistent), SessionRecord)


# -- finding ----------------------------------------------------------------------------------------


async def _caller(request: Request, services: Services) -> tuple[Principal, Scope]:
    principal = await services.auth.principal(request)
    project = request.query_params.get("projectId") or request.query_params.get("project")
    return principal, await services.auth.scope(request, principal, project)


async def scope_of(request: Request, services: Services) -> Scope:
    """The project that a request about a sandbox is about."""
    return (await _caller(request, services))[1]


async def find(services: Services, scope: Scope, name: str) -> SandboxRecord:
    """A sandbox. Raises `NotFoundError`."""
    return (await find_with_session(services, scope, name))[0]


async def find_with_session(services: Services, scope: Scope, name: str) -> tuple[SandboxRecord, SessionRow | None]:
    if not is_name(name):
        raise unknown(name)
    async with services.database.read() as connection:
        record = await rows.find(connection, scope, name, services.sealer)
        if record is None:
            raise unknown(name)
        return record, await session_rows.find(connection, scope, record.current_session_id, services.sealer)


def unknown(name: str) -> NotFoundError:
    return NotFoundError("not_found", f"Named sandbox '{name[:256]}' not found for this project.")


async def _full(services: Services, record: SandboxRecord, session: SessionRow | None) -> dict[str, Any]:
    if session is None:
        raise NotFoundError("not_found", f"Named sandbox '{record.name}' not found for this project.")
    bounded = record.project_id in await services.bounded(record.team_id)
    return {
        "sandbox": shapes.sandbox(record, session, bounded=bounded),
        "session": shapes.session(session, bounded=bounded),
        "routes": routes(services, record),
    }


async def _resumed(
    services: Services, scope: Scope, record: SandboxRecord, session: SessionRow | None
) -> tuple[SandboxRecord, SessionRow, bool]:
    """The sandbox and its session: the one that is alive, or a new one from the current snapshot, and whether it is new. One that
    is going down is waited for; of several who ask at once, one starts it and the others wait. Raises `HutchError`."""
    deadline, with_memory = time.monotonic() + RESUME_WAIT_S, True
    while True:
        if session is not None and is_live(session.status) and session.id not in services.starting:
            session = await _confirmed(services, session)
            if is_live(session.status) and sandbox_status(session.status) == "running":
                return record, session, False
        if session is None or not is_live(session.status):
            begun = await _begin(services, scope, record.name, with_memory=with_memory)
            if begun is not None:
                try:
                    record, started = await begun.start(services, scope)
                except ConflictError as error:
                    if error.code != "snapshot_incompatible" or not with_memory:
                        raise
                    # Who resumes can't say what else to begin with, and the files are there all the same.
                    with_memory = False
                else:
                    return record, started, True
        if time.monotonic() > deadline:
            raise NotReadyError("sandbox_stopping", "Sandbox is stopping. Try again when it has stopped.", retry_after_s=5)
        await asyncio.sleep(RESUME_POLL_S)
        record, session = await find_with_session(services, scope, record.name)


async def _begin(services: Services, scope: Scope, name: str, *, with_memory: bool) -> Start | None:
    """Make a new session a sandbox's current one, from its snapshot. None when somebody else just did."""
    now = services.clock()
    seen = (await find(services, scope, name)).config
    # Before the transaction: the host may have to make one.
    mounts = await drives.resolved(services, scope, seen)
    async with services.database.write() as connection:
        record = await rows.find(connection, scope, name, services.sealer, lock=True)
        if record is None:
            raise unknown(name)
        if record.config.mounts != seen.mounts:
            return None
        former = await session_rows.find(connection, scope, record.current_session_id, services.sealer)
        if former is not None and is_live(former.status):
            return None
        if record.current_snapshot_id is None:
            raise BadRequestError("snapshot_not_found", "Cannot resume sandbox: no snapshot available.")
        snapshot = await usable(connection, scope, record.current_snapshot_id, now)
        policy = record.config.network_policy
        if policy is not None:
            # What the former session was told last may have been another one.
            policy = replace(policy, generation=await rows.next_generation(connection, record.id))
        record = replace(record, config=replace(record.config, image=snapshot.image, network_policy=policy), updated_at=now)
        session = _pending(record, ids.session_id(), snapshot, mounts, now)
        record = replace(record, current_session_id=session.id, status="pending", status_updated_at=now)
        services.starting.add(session.id)
        try:
            await session_rows.add(connection, session, services.sealer)
            await rows.save(connection, record, services.sealer)
            await rows.set_session(connection, record)
            await snapshot_rows.used(connection, snapshot, now)
            await _used(connection, mounts, now)
        except BaseException:
            services.starting.discard(session.id)
            raise
    return Start(record, session, snapshot, mounts, is_first=False, with_memory=with_memory)


async def _confirmed(services: Services, session: SessionRow) -> SessionRow:
    """A session as its host knows it now: the database may lag behind by an event."""
    try:
        report = await services.host.call("session.get", SessionRef(session.id), SessionRecord)
    except (NotFoundError, GoneError):
        return await services.mark_lost(session.id) or session
    return await services.apply(report) or session


# -- deciding ---------------------------------------------------------------------------------------


def configured(services: Services, base: SandboxConfig, body: SandboxFields) -> SandboxConfig:
    """`base` with what `body` says. Raises `BadRequestError` beyond this server's limits."""
    limits = services.settings.sandbox
    if body.networkId is not None:
        raise BadRequestError("not_supported", "`networkId` is not supported by this server.")
    if body.timeout is not None and body.timeout > limits.max_timeout_ms:
        raise BadRequestError("bad_request", f"Invalid request: `timeout` should be <= {limits.max_timeout_ms}.")
    if body.resources is not None and body.resources.vcpus > limits.max_vcpus:
        raise BadRequestError("bad_request", f"Invalid request: `resources.vcpus` should be <= {limits.max_vcpus}.")
    region = body.region if body.region is not None else base.region
    failover = tuple(body.failoverRegions) if body.failoverRegions is not None else base.failover_regions
    if region in failover:
        raise BadRequestError("bad_request", "Invalid request: `failoverRegions` should NOT contain `region`.")
    mounts = {path: mount.stored() for path, mount in body.mounts.items()} if body.mounts is not None else base.mounts
    if mounts and failover:
        raise BadRequestError("bad_request", "Invalid request: `failoverRegions` can't be used together with `mounts`.")
    vcpus = body.resources.vcpus if body.resources is not None else base.vcpus
    return replace(
        base,
        timeout_ms=body.timeout if body.timeout is not None else base.timeout_ms,
        vcpus=vcpus,
        memory_mb=vcpus * MEMORY_MB_PER_VCPU,
        persistent=body.persistent if body.persistent is not None else base.persistent,
        region=region,
        failover_regions=failover,
        mounts=mounts or None,
        env=body.env if body.env is not None else base.env,
        tags=body.tags if body.tags is not None else base.tags,
        snapshot_expiration_ms=body.snapshotExpiration if body.snapshotExpiration is not None else base.snapshot_expiration_ms,
        keep_last_snapshots=body.keepLastSnapshots.stored() if body.keepLastSnapshots is not None else base.keep_last_snapshots,
    )


def _updated(record: SandboxRecord, config: SandboxConfig, body: UpdateSandbox, now: int) -> SandboxRecord:
    """`record` with a new configuration and what only an update can say."""
    if "keepLastSnapshots" in body.model_fields_set:
        config = replace(config, keep_last_snapshots=body.keepLastSnapshots.stored() if body.keepLastSnapshots else None)
    if body.runtime is not None:
        config = replace(config, runtime=body.runtime)
    changed_routes = _routes(body.ports, record.routes) if body.ports is not None else record.routes
    return replace(record, config=config, routes=changed_routes, updated_at=now)


def _routes(ports: list[int], known: tuple[Route, ...] = ()) -> tuple[Route, ...]:
    """One route per port; a port that had one keeps it."""
    by_port = {route.port: route for route in known}
    return tuple(by_port.get(port) or Route(port, ids.subdomain()) for port in ports)


# -- starting ---------------------------------------------------------------------------------------


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
            persistent=config.persistent,
            sandbox_id=self.record.id,
            team_id=self.record.team_id,
            network=network,
            source_snapshot=self.snapshot.id if self.snapshot is not None else None,
            with_memory=self.with_memory,
            mounts=self.mounts,
        )

    async def start(self, services: Services, scope: Scope) -> tuple[SandboxRecord, SessionRow]:
        """Have the host start it; the records as they are then. Raises the host's errors; the session has failed then."""
        policy = self.record.config.network_policy
        report: SessionRecord | None = None
        try:
            network = await network_policy.spec(services, scope, policy)
            report = await services.host.call_large("session.create", self.spec(network), SessionRecord)
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
        started = await services.apply(report) or self.session
        record = replace(
            self.record,
            status=sandbox_status(started.status),
            status_updated_at=started.updated_at,
            config=replace(self.record.config, cwd=started.cwd),
        )
        if not is_live(started.status):
            raise stopped()
        return record, started

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


def _pending(record: SandboxRecord, session_id: str, snapshot: Snapshot | None, mounts: list[DriveMount], now: int) -> SessionRow:
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
    )


async def _used(connection: AsyncConnection, mounts: list[DriveMount], now: int) -> None:
    """A session begins with these drives."""
    written = [mount.drive_id for mount in mounts if mount.mode is DriveMode.READ_WRITE]
    if written:
        await drive_rows.used(connection, written, now)


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
) -> dict[str, Any]:
    """Take the name and start a session; the answer. Raises `ConflictError` for a taken name, and the host's errors."""
    assert scope.project_id is not None
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
        routes=_routes(ports),
        status="pending",
        status_updated_at=now,
        created_at=now,
        updated_at=now,
        current_session_id=session_id,
        current_snapshot_id=snapshot.id if snapshot is not None and snapshot_stays else None,
    )
    start = Start(
        record, _pending(record, session_id, snapshot, mounts, now), snapshot, mounts, is_first=True, with_memory=with_memory
    )
    services.starting.add(session_id)
    try:
        async with services.database.write() as connection:
            await rows.add(connection, record, services.sealer)
            await session_rows.add(connection, start.session, services.sealer)
            if snapshot is not None:
                await snapshot_rows.used(connection, snapshot, now)
            await _used(connection, mounts, now)
    except BaseException:
        services.starting.discard(session_id)
        raise
    record, started = await start.start(services, scope)
    bounded = record.project_id in await services.bounded(record.team_id)
    answer = {
        "sandbox": shapes.sandbox(record, started, bounded=bounded, created=True),
        "session": shapes.session(started, bounded=bounded),
    }
    return answer | {"routes": routes(services, record)}


def _hostname(name: str) -> str:
    """A sandbox's name as a host name: letters, digits and hyphens, at most 63."""
    return name.lower().replace("_", "-").strip("-")[:63].rstrip("-") or "sandbox"

"""Sandboxes: named records, each with at most one live session (`starts` begins them)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import replace
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from hutch import ids
from hutch.api import budgets, drives, images, paging, sources, storage_budgets
from hutch.api.auth import Principal
from hutch.api.network_policy import IF_MATCH, checked, kept, read_with_policy, require_generation
from hutch.api.responses import JsonResponse
from hutch.api.routing import LIVE, PlainRoute, api_version, documented
from hutch.api.services import ResolvedImage, Services, services_of, stopped
from hutch.api.sessions import routes, stop
from hutch.api.snapshots import LATER_EXPIRATION_MS, NO_SNAPSHOT, check_quota, require_region, usable
from hutch.api.starts import Start, assigned_routes, boot, check_concurrency, pending, used
from hutch.control import answers, shapes
from hutch.control.lifecycle import is_live
from hutch.control.names import check_region, is_name
from hutch.control.permissions import Permission
from hutch.control.records import FIRST_GENERATION, SandboxConfig, SandboxRecord, Scope, SessionRow, Snapshot
from hutch.control.requests import (
    MEMORY_MB_PER_VCPU,
    CreateSandbox,
    ForkSandbox,
    SandboxFields,
    UpdateSandbox,
)
from hutch.control.sources import read as read_source
from hutch.errors import BadRequestError, ConflictError, GoneError, HutchError, NotFoundError, NotReadyError
from hutch.host.protocol import (
    PersistRequest,
    SessionRecord,
    SessionRef,
    SessionStatus,
    SnapshotRequest,
    SnapshotTaken,
)
from hutch.storage import ingress as ingress_rows
from hutch.storage import sandboxes as rows
from hutch.storage import sessions as session_rows
from hutch.storage import snapshots as snapshot_rows
from hutch.storage.sandboxes import SORT_COLUMNS, SandboxQuery

router = APIRouter(route_class=PlainRoute, tags=["sandboxes"])

log = logging.getLogger(__name__)

DEFAULT_RUNTIME = "node22"
"""What hosted sandboxes report even for the default image."""
FORKS_AT_ONCE = 4
STATUSES = ("running", "stopping", "stopped")
RESUME_WAIT_S = 60.0
RESUME_POLL_S = 0.05


@router.post(
    "/v2/sandboxes",
    openapi_extra=documented(
        CreateSandbox,
        answer=answers.SandboxStarted,
        query={"projectId": "Id or slug; the body's comes first"},
        errors=(402, 404, *LIVE),
        example={"ports": [3000], "timeout": 300000},
        needs=Permission.SANDBOX_WRITE,
    ),
)
async def create_sandbox(request: Request) -> Response:
    """Create a sandbox and start its first session; answers when a command would succeed."""
    services = services_of(request)
    principal = await services.auth.principal(request)
    body, policy = await read_with_policy(request, CreateSandbox)
    scope = await services.auth.scope(request, principal, body.projectId or request.query_params.get("projectId"))
    snapshot = source = None
    if body.source is not None and body.source.type != "snapshot":
        source = read_source(body.source)
        await sources.require_allowed(services, source, (await services.bounds(scope)).texts())
    elif body.source is not None:
        async with services.database.read() as connection:
            snapshot = await usable(connection, scope, body.source.snapshotId or "", services.clock())
        require_region(snapshot, body.region)
    limits = services.settings.sandbox
    vcpus = limits.default_vcpus
    with_memory = body.source is not None and body.source.memory
    if snapshot is not None and snapshot.memory_bytes and with_memory:
        vcpus = snapshot.vcpus
    version = api_version(request)
    base = SandboxConfig(
        image=body.image or limits.default_image,
        timeout_ms=limits.default_timeout_ms,
        vcpus=vcpus,
        memory_mb=vcpus * MEMORY_MB_PER_VCPU,
        persistent=True,
        runtime=body.runtime or DEFAULT_RUNTIME,
        region=snapshot.region if snapshot is not None else limits.region,
        cwd="",
        snapshot_expiration_ms=LATER_EXPIRATION_MS if version == 4 else None,
        keep_last_snapshots={"count": 1, "deleteEvicted": True} if version == 4 and body.persistent is not False else None,
        disk_bytes=body.disk_bytes,
        isolation=body.isolation,
    )
    config = configured(services, base, body)
    if policy is not None:
        config = replace(config, network_policy=kept(await checked(services, scope, policy), FIRST_GENERATION))
    if snapshot is None:
        image = await images.resolve(services, principal, scope, config.image, body.runtime)
    else:
        image = await images.resolve_exact(services, snapshot.image)
    ports = body.ports or []
    made = await boot(
        services, scope, body.name, config, ports, image=image, snapshot=snapshot, with_memory=with_memory, source=source
    )
    return JsonResponse(made)


@router.post(
    "/v2/sandboxes/{name}/fork",
    openapi_extra=documented(
        ForkSandbox,
        query={"projectId": "Id or slug"},
        answer=answers.SandboxForked,
        errors=(402, *LIVE),
        example={},
        needs=Permission.SANDBOX_WRITE,
    ),
)
async def fork_sandbox(request: Request, name: str) -> Response:
    """A new sandbox with another's configuration, from its current snapshot; each field that is given replaces the copied one.
    With `memory` it goes on where the running session is, with all its processes. With `memory` or `count` the answer has all
    of them in `forks`, and the first one as if it were the only one."""
    services = services_of(request)
    principal, scope = await _caller(request, services)
    body, policy = await read_with_policy(request, ForkSandbox)
    services.auth.count_more_creates(request, principal, len(body.names()) - 1)
    source = await find(services, scope, name)
    # What the source has mounted it still has.
    config = configured(services, replace(source.config, mounts=None), body)
    if api_version(request) > 2 and config.snapshot_expiration_ms is None:
        config = replace(config, snapshot_expiration_ms=LATER_EXPIRATION_MS)
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
            if snapshot is not None:
                require_region(snapshot, body.region)
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
    await check_quota(services, Scope(source.team_id, source.project_id))
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
                await delete(services, scope, record, session)
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
            "sortBy": ("Default: createdAt", {"enum": list(SORT_COLUMNS)}),
            "sortOrder": "desc or asc",
            "namePrefix": "only with sortBy=name",
            "tags": ("key:value", {"type": "string", "pattern": "^[^:]+:", "maxLength": 1024}),
            "status": ("Only with sortBy=createdAt", {"enum": list(STATUSES)}),
        },
        answer=answers.SandboxPage,
        needs=Permission.SANDBOX_READ,
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
        status = paging.choice(request, "status", "", STATUSES)
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
    openapi_extra=documented(
        query={"projectId": "Id or slug", "resume": "`true` starts a new session if none is alive"},
        answer=answers.SandboxRead,
        errors=(402, *LIVE),
        needs=Permission.SANDBOX_READ,
    ),
)
async def get_sandbox(request: Request, name: str) -> Response:
    """A sandbox, its current session and its routes."""
    services = services_of(request)
    principal, scope = await _caller(request, services)
    resume = paging.flag(request, "resume")
    if resume:
        principal.require(Permission.SANDBOX_WRITE)
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
    openapi_extra=documented(
        UpdateSandbox,
        query={"projectId": "Id or slug", "resume": "as in get"},
        headers=IF_MATCH,
        answer=answers.SandboxUpdated,
        errors=(402, 412, *LIVE),
        example={"tags": {"stage": "test"}},
        needs=Permission.SANDBOX_WRITE,
    ),
)
async def update_sandbox(request: Request, name: str) -> Response:
    """Change a sandbox's configuration. Ports and tags change at once, the rest with the next session."""
    services = services_of(request)
    principal, scope = await _caller(request, services)
    resume = paging.flag(request, "resume")
    body, raw = await read_with_policy(request, UpdateSandbox)
    record: SandboxRecord | None
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
            budgets.require_tighter(principal, record.config.budget, config.budget)
            if policy is not None:
                config = replace(config, network_policy=kept(policy, await rows.next_generation(connection, record.id)))
            record = _updated(record, config, body, services.clock())
            if body.currentSnapshotId is not None:
                snapshot = await usable(connection, scope, body.currentSnapshotId, services.clock())
                record = replace(record, current_snapshot_id=snapshot.id)
            await rows.save(connection, record, services.sealer)
            session = await session_rows.find(connection, scope, record.current_session_id, services.sealer)
        break
    if {"ports", "portsPrivate", "wakeOnRequest"} & body.model_fields_set:
        await services.announcer.sandbox(record.id)
    if "budget" in body.model_fields_set:
        await budgets.announce(services, record.id)
    if body.persistent is not None and session is not None and is_live(session.status) and not session.fetching:
        await _tell_persistence(services, session.id, persistent=body.persistent)
    if resume:
        record, session, resumed = await _resumed(services, scope, record, session)
        return JsonResponse(await _full(services, record, session) | {"resumed": resumed})
    bounded = record.project_id in await services.bounded(record.team_id)
    return JsonResponse({"sandbox": shapes.sandbox(record, session, bounded=bounded), "routes": routes(services, record)})


@router.delete(
    "/v2/sandboxes/{name}",
    openapi_extra=documented(
        query={"projectId": "Id or slug", "deleteOrphanSnapshots": "true or false"},
        answer=answers.SandboxDeleted,
        errors=LIVE,
        needs=Permission.SANDBOX_WRITE,
    ),
)
async def delete_sandbox(request: Request, name: str) -> Response:
    """Stop a sandbox's session if it is alive, and delete the record."""
    services = services_of(request)
    scope = await scope_of(request, services)
    orphans_too = paging.flag(request, "deleteOrphanSnapshots")
    record, session = await find_with_session(services, scope, name)
    bounded = record.project_id in await services.bounded(record.team_id)
    answer = {"sandbox": shapes.sandbox(record, session, bounded=bounded)}
    await delete(services, scope, record, session, orphans_too=orphans_too)
    return JsonResponse(answer)


async def delete(
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
    if record.routes:
        await services.announcer.later(record.id)


async def wake(services: Services, sandbox_id: str) -> None:
    """Resume a sandbox for a request to one of its ports, unless it runs. Raises `HutchError`."""
    async with services.database.read() as connection:
        found = await ingress_rows.named(connection, sandbox_id)
    if found is None:
        raise NotFoundError("not_found", "The sandbox is deleted.")
    scope, name = found
    record, session = await find_with_session(services, scope, name)
    if record.config.wake_on_request:
        await _resumed(services, scope, record, session)


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
            if session.status is SessionStatus.RUNNING:
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
    if seen.persistent:
        storage_budgets.require_lately(services, scope)
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
            raise BadRequestError("snapshot_not_found", NO_SNAPSHOT)
        snapshot = await usable(connection, scope, record.current_snapshot_id, now, to_resume=True)
        await check_concurrency(services, connection, scope)
        policy = record.config.network_policy
        if policy is not None:
            # What the former session was told last may have been another one.
            policy = replace(policy, generation=await rows.next_generation(connection, record.id))
        record = replace(record, config=replace(record.config, image=snapshot.image, network_policy=policy), updated_at=now)
        session = pending(record, ids.session_id(), snapshot, mounts, now)
        record = replace(record, current_session_id=session.id, status="running", status_updated_at=now)
        services.starting.add(session.id)
        try:
            await session_rows.add(connection, session, services.sealer)
            await rows.save(connection, record, services.sealer)
            await rows.set_session(connection, record)
            await snapshot_rows.used(connection, snapshot, now)
            await used(connection, mounts, now)
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
    known = limits.known_regions()
    if body.region is not None:
        check_region("region", body.region, known)
    for index, name in enumerate(body.failoverRegions or ()):
        check_region(f"failoverRegions[{index}]", name, known)
    region = body.region if body.region is not None else base.region
    failover = tuple(body.failoverRegions) if body.failoverRegions is not None else base.failover_regions
    if region in failover:
        raise BadRequestError("bad_request", "Invalid request: `failoverRegions` should NOT contain `region`.")
    mounts = {path: mount.stored() for path, mount in body.mounts.items()} if body.mounts is not None else base.mounts
    if mounts and failover:
        raise BadRequestError("bad_request", "Invalid request: `failoverRegions` can't be used together with `mounts`.")
    vcpus = body.resources.vcpus if body.resources is not None else base.vcpus
    keep = base.keep_last_snapshots
    if "keepLastSnapshots" in body.model_fields_set:
        keep = body.keepLastSnapshots.stored() if body.keepLastSnapshots is not None else None
    return replace(
        base,
        timeout_ms=body.timeout if body.timeout is not None else base.timeout_ms,
        vcpus=vcpus,
        memory_mb=vcpus * MEMORY_MB_PER_VCPU,
        persistent=body.persistent if body.persistent is not None else base.persistent,
        region=region,
        failover_regions=failover,
        mounts=mounts or None,
        ports_private=body.portsPrivate if "portsPrivate" in body.model_fields_set else base.ports_private,
        wake_on_request=body.wakeOnRequest if body.wakeOnRequest is not None else base.wake_on_request,
        budget=(body.budget.stored() if body.budget else None) if "budget" in body.model_fields_set else base.budget,
        env=body.env if body.env is not None else base.env,
        tags=body.tags if body.tags is not None else base.tags,
        snapshot_expiration_ms=body.snapshotExpiration if body.snapshotExpiration is not None else base.snapshot_expiration_ms,
        keep_last_snapshots=keep,
    )


def _updated(record: SandboxRecord, config: SandboxConfig, body: UpdateSandbox, now: int) -> SandboxRecord:
    """`record` with a new configuration and what only an update can say."""
    if body.runtime is not None:
        config = replace(config, runtime=body.runtime)
    changed_routes = assigned_routes(body.ports, record.routes) if body.ports is not None else record.routes
    # Whoever says anew who may, says it for those with a link as well.
    epoch = record.link_epoch + ("portsPrivate" in body.model_fields_set)
    return replace(record, config=config, routes=changed_routes, link_epoch=epoch, updated_at=now)

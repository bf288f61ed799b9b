"""Records → the JSON objects of the API. Optional fields are left out, never null; the two nullable ones are
`pagination.next` and `command.exitCode`."""

from __future__ import annotations

from typing import Any

from hutch.control.audit_log import Entry
from hutch.control.lifecycle import duration_ms, is_live, sandbox_status
from hutch.control.records import (
    BudgetEvent,
    CredentialRecord,
    Drive,
    DriveHolder,
    Member,
    NetworkPolicy,
    Project,
    Route,
    SandboxRecord,
    SessionRow,
    Snapshot,
    Team,
    TokenRecord,
    generation_of,
)
from hutch.host.protocol import CommandRecord, ImageRecord, NetworkApplied, SessionStatus
from hutch.images import Image

Json = dict[str, Any]

INTERACTIVE_PORT = 26661
"""A leftover of an older terminal design: the CLI refuses a session without it, and nobody connects to it."""
ARCHITECTURE = "amd64"


def sandbox(record: SandboxRecord, session: SessionRow | None, *, bounded: bool, created: bool = False) -> Json:
    """A sandbox. `session` is its current one; `bounded` says whether its network policy holds within others; `created` leaves
    out what the answer to a create does not have."""
    config = record.config
    shape: Json = {
        "name": record.name,
        "currentSessionId": record.current_session_id,
        "status": sandbox_status(session.status) if session is not None else record.status,
        "statusUpdatedAt": record.status_updated_at,
        "persistent": config.persistent,
        "createdAt": record.created_at,
        "updatedAt": record.updated_at,
        "region": config.region,
        "failoverRegions": list(config.failover_regions),
        "vcpus": config.vcpus,
        "memory": config.memory_mb,
        "runtime": config.runtime,
        "image": config.image,
        "timeout": config.timeout_ms,
        "cwd": config.cwd,
        "architecture": ARCHITECTURE,
    }
    if record.current_snapshot_id is not None:
        shape["currentSnapshotId"] = record.current_snapshot_id
    if config.network_policy is not None or bounded:
        shape["networkPolicy"] = network_policy(config.network_policy, bounded=bounded)
    if config.tags:
        shape["tags"] = config.tags
    if config.snapshot_expiration_ms is not None:
        shape["snapshotExpiration"] = config.snapshot_expiration_ms
    if config.keep_last_snapshots is not None:
        shape["keepLastSnapshots"] = config.keep_last_snapshots
    if config.mounts:
        shape["mounts"] = config.mounts
    if config.ports_private is not None:
        shape["portsPrivate"] = config.ports_private
    if config.wake_on_request:
        shape["wakeOnRequest"] = True
    if config.budget is not None:
        shape["budget"] = config.budget
    if config.isolation is not None:
        shape["isolation"] = config.isolation
    if not created:
        shape["totalEgressBytes"] = record.total_egress_bytes
        shape["totalIngressBytes"] = record.total_ingress_bytes
        shape["totalActiveCpuDurationMs"] = _milliseconds(record.total_active_cpu_us)
        shape["totalDurationMs"] = record.total_duration_ms
        if session is not None and session.status is SessionStatus.RUNNING and session.started_at is not None:
            shape["expiresAt"] = session.started_at + session.timeout_ms
    return shape


def session(row: SessionRow, applied: NetworkApplied | None = None, *, bounded: bool) -> Json:
    """A session. `applied` is what an update of its network policy did, for the answer to that."""
    shape: Json = {
        "id": row.id,
        "status": str(row.status),
        "memory": row.memory_mb,
        "vcpus": row.vcpus,
        "region": row.region,
        "timeout": row.timeout_ms,
        "cwd": row.cwd,
        "requestedAt": row.requested_at,
        "createdAt": row.created_at,
        "updatedAt": row.updated_at,
        "runtime": row.runtime,
        "interactivePort": INTERACTIVE_PORT,
        "sourceSandboxName": row.sandbox_name,
        "projectId": row.project_id,
        "architecture": ARCHITECTURE,
    }
    optional = {
        "startedAt": row.started_at,
        "requestedStopAt": row.requested_stop_at,
        "stoppedAt": row.stopped_at,
        "abortedAt": row.aborted_at,
        "snapshottedAt": row.snapshotted_at,
        "sourceSnapshotId": row.source_snapshot_id,
        "stopReason": row.stop_reason,
        "duration": duration_ms(row),
    }
    shape.update((key, value) for key, value in optional.items() if value is not None)
    if row.network_policy is not None or bounded:
        shape["networkPolicy"] = network_policy(row.network_policy, applied, bounded=bounded)
    if not is_live(row.status):
        if row.active_cpu_us is not None:
            shape["activeCpuDurationMs"] = _milliseconds(row.active_cpu_us)
        if row.ingress_bytes is not None and row.egress_bytes is not None:
            shape["networkTransfer"] = {"ingress": row.ingress_bytes, "egress": row.egress_bytes}
    return shape


def snapshot(value: Snapshot) -> Json:
    shape: Json = {
        "id": value.id,
        "sourceSessionId": value.session_id,
        "sourceSandboxName": value.sandbox_name,
        "region": value.region,
        "regions": [value.region],
        "status": str(value.status),
        "sizeBytes": value.size_bytes,
        "createdAt": value.created_at,
        "updatedAt": value.updated_at,
        "lastUsedAt": value.last_used_at,
        "creationMethod": value.method,
        "architecture": ARCHITECTURE,
    }
    optional = {
        "expiresAt": value.expires_at,
        "parentId": value.parent_id,
        "durableAt": value.durable_at,
        "memoryBytes": value.memory_bytes or None,
        "storedAt": value.stored_at,
        "storeError": value.store_error,
    }
    return shape | {key: given for key, given in optional.items() if given is not None}


def drive(value: Drive, holder: DriveHolder | None, used_bytes: int | None = None) -> Json:
    shape: Json = {
        "id": value.id,
        "name": value.name,
        "projectId": value.project_id,
        "region": value.region,
        "maxSizeBytes": value.max_size_bytes,
        "createdAt": value.created_at,
        "updatedAt": value.updated_at,
    }
    if holder is not None:
        shape |= {"currentSessionId": holder.session_id, "currentSandboxName": holder.sandbox_name}
    optional = {"parentDriveId": value.parent_drive_id, "rootDriveId": value.root_drive_id, "usedBytes": used_bytes}
    return shape | {key: given for key, given in optional.items() if given is not None}


def network_policy(policy: NetworkPolicy | None, applied: NetworkApplied | None = None, *, bounded: bool) -> Json:
    """The vendor's read form, and `hutch`: what it has no place for. No policy is allow-all, and is only shown where others bound
    it: then it is not what it says."""
    read: Json = policy.read if policy is not None else {"mode": "allow-all"}
    own: Json = {"generation": generation_of(policy), "warnings": list(policy.warnings) if policy is not None else []}
    if bounded:
        own["bounded"] = True
    if applied is not None:
        own |= {"closedFlows": applied.closed_flows, "keptFlows": applied.kept_flows}
    return read | {"hutch": own | read.get("hutch", {})}


def command(record: CommandRecord) -> Json:
    argv = [text(argument) for argument in record.argv]
    shape: Json = {
        "id": record.command_id,
        "name": argv[0] if argv else "",
        "args": argv[1:],
        "cwd": text(record.cwd),
        "sessionId": record.session_id,
        "exitCode": record.exit_code,
        "startedAt": record.started_at,
    }
    if record.duration_ms is not None:
        shape["durationMs"] = record.duration_ms
    return shape


def route_url(value: Route, netloc: tuple[str, str]) -> str:
    """Where a port is reached. `netloc` is the scheme, and what follows the subdomain, such as `localhost:7071`."""
    return f"{netloc[0]}://{value.subdomain}.{netloc[1]}"


def route(value: Route, netloc: tuple[str, str]) -> Json:
    return {"url": route_url(value, netloc), "subdomain": value.subdomain, "port": value.port}


def page(key: str, items: list[Json], next_cursor: str | None, **more: object) -> Json:
    return {key: items, **more, "pagination": {"count": len(items), "next": next_cursor}}


def token(record: TokenRecord) -> Json:
    shape: Json = {
        "id": record.id,
        "team_id": record.team_id,
        "role": str(record.role),
        "name": record.name,
        "created_at": record.created_at,
        "expires_at": record.expires_at,
        "revoked": record.revoked_at is not None,
        "use_count": record.use_count,
    }
    optional = {
        "member_id": record.member_id,
        "scopes": list(record.scopes) if record.scopes is not None else None,
        "last_used_at": record.last_used_at,
        "last_used_address": record.last_used_address,
    }
    shape |= {name: value for name, value in optional.items() if value is not None}
    if record.project_id is not None:
        shape["project_id"] = record.project_id
    if record.revoked_at is not None:
        shape["revoked_at"] = record.revoked_at
    return shape


def named_page(key: str, items: list[Json], after: str | None) -> Json:
    """A page of what is in the order of its ids."""
    return {key: items} | ({"next": after} if after is not None else {})


def team(record: Team) -> Json:
    return {"id": record.id, "slug": record.slug, "created_at": record.created_at}


def project(record: Project) -> Json:
    return {"id": record.id, "team_id": record.team_id, "slug": record.slug, "created_at": record.created_at}


def member(record: Member) -> Json:
    shape = {
        name: getattr(record, name) for name in Member.__slots__ if getattr(record, name) not in (None, "") or name == "name"
    }
    return shape | {"role": str(record.role), "by_provider": record.by_provider, "disabled": record.disabled_at is not None}


def log_entry(entry: Entry, digest: str) -> Json:
    return {name: getattr(entry, name) for name in Entry.__slots__} | {"hash": digest}


def budget_event(event: BudgetEvent) -> Json:
    project = {"project_id": event.project_id} if event.project_id is not None else {}
    delivery: Json = {"state": event.delivery, "attempts": event.attempts}
    if event.failure is not None:
        delivery["failure"] = event.failure
    shape: Json = {"seq": event.seq, "id": event.id, "at": event.at, "team_id": event.team_id, **project, **event.data}
    return shape | {"delivery": delivery}


def credential(record: CredentialRecord) -> Json:
    return {"name": record.name, "created_at": record.created_at, "updated_at": record.updated_at}


def built_image(image: Image) -> Json:
    config = image.config
    return {
        "name": image.name,
        "aliases": list(image.aliases),
        "digest": image.digest,
        "size_bytes": sum(layer.size for layer in image.layers),
        "layers": [{"digest": layer.digest, "size_bytes": layer.size} for layer in image.layers],
        "user": config.user,
        "home": config.home,
        "cwd": config.cwd,
    }


def pulled_image(record: ImageRecord) -> Json:
    """An image of a registry under one of its names; also what it says and nobody runs."""
    return {
        "name": record.name,
        "aliases": [],
        "digest": record.digest,
        "size_bytes": record.size_bytes,
        "layers": [{"digest": digest, "size_bytes": size} for digest, size in record.layers],
        "user": record.user,
        "home": record.home,
        "cwd": record.cwd,
        "source": record.source,
        "shared": record.shared,
        "pulled_at": record.pulled_at,
        "env": record.env,
        "labels": record.labels,
        "cmd": record.cmd,
        "entrypoint": record.entrypoint,
    }


def text(value: bytes) -> str:
    """Bytes of the guest as text; what is not UTF-8 is replaced."""
    return value.decode("utf-8", "replace")


def _milliseconds(microseconds: int) -> int:
    return (microseconds + 999) // 1000

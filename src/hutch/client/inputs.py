"""What callers say, and the bodies that it becomes. Durations are seconds or `timedelta`, sizes bytes. Names are the vendor's
where it has the same thing."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Literal

import msgspec

from hutch.errors import BadRequestError

Duration = float | timedelta
"""Seconds, or a `timedelta`."""
NetworkPolicy = Literal["allow-all", "deny-all"] | Mapping[str, Any] | msgspec.Raw
"""A policy in the grammar of docs/network.md; `msgspec.Raw` is JSON that goes out as it is."""
SortOrder = Literal["asc", "desc"]


class SandboxResources(msgspec.Struct, frozen=True):
    """1 vCPU or an even number of them; memory is 2048 MB for each."""

    vcpus: int


class SnapshotRetention(msgspec.Struct, frozen=True, kw_only=True):
    """How many snapshots of a sandbox are kept, and for how long after their last use."""

    count: int
    expiration: Duration | None = None
    delete_evicted: bool = True


class GitSource(msgspec.Struct, frozen=True, kw_only=True):
    """A repository that is cloned into the sandbox."""

    url: str
    depth: int | None = None
    revision: str | None = None
    username: str | None = None
    password: str | None = None


class TarballSource(msgspec.Struct, frozen=True, kw_only=True):
    """An archive that is unpacked in the sandbox."""

    url: str


class SnapshotSource(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot to begin with; with its memory, if it has one, unless `memory` is False."""

    snapshot_id: str
    memory: bool = True


class DriveMount(msgspec.Struct, frozen=True):
    """A drive at a path: for the one sandbox that writes, or as it is now for one that reads."""

    drive: str
    mode: Literal["read-write", "snapshot"] = "read-write"


Source = GitSource | TarballSource | SnapshotSource
Mounts = Mapping[str, DriveMount | str]


def milliseconds(duration: Duration | None) -> int | None:
    """Raises `BadRequestError` for what no duration is."""
    if duration is None:
        return None
    seconds = duration.total_seconds() if isinstance(duration, timedelta) else duration
    if not 0 <= seconds < 2**43:
        raise BadRequestError("bad_request", f"{duration!r} is no duration: seconds, or a timedelta, from 0 on.")
    return round(seconds * 1000)


def sandbox_fields(
    *,
    execution_time_limit: Duration | None = None,
    resources: SandboxResources | None = None,
    network_policy: NetworkPolicy | None = None,
    snapshot_expiration: Duration | None = None,
    snapshot_retention: SnapshotRetention | None = None,
    mounts: Mounts | None = None,
    source: Source | None = None,
    **same: Any,
) -> dict[str, Any]:
    """Fields of a create, fork or update as the API has them; None is left out. `same` are those that need no change."""
    fields = {
        **same,
        "timeout": milliseconds(execution_time_limit),
        "resources": {"vcpus": resources.vcpus} if resources is not None else None,
        "networkPolicy": network_policy,
        "snapshotExpiration": milliseconds(snapshot_expiration),
        "keepLastSnapshots": _retention(snapshot_retention) if snapshot_retention is not None else None,
        "mounts": {path: _mount(mount) for path, mount in mounts.items()} if mounts is not None else None,
        "source": _source(source) if source is not None else None,
    }
    return {key: value for key, value in fields.items() if value is not None}


def _retention(given: SnapshotRetention) -> dict[str, Any]:
    fields: dict[str, Any] = {"count": given.count, "deleteEvicted": given.delete_evicted}
    if given.expiration is not None:
        fields["expiration"] = milliseconds(given.expiration)
    return fields


def _mount(given: DriveMount | str) -> dict[str, str]:
    mount = DriveMount(given) if isinstance(given, str) else given
    return {"drive": mount.drive, "mode": mount.mode}


def _source(given: Source) -> dict[str, Any]:
    if isinstance(given, SnapshotSource):
        return {"type": "snapshot", "snapshotId": given.snapshot_id, "memory": given.memory}
    fields = {key: value for key, value in msgspec.structs.asdict(given).items() if value is not None}
    return {"type": "git" if isinstance(given, GitSource) else "tarball", **fields}

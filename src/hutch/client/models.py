"""What the API answers. Times are integer milliseconds since the epoch, sizes bytes; unknown fields are ignored."""

from __future__ import annotations

from typing import Any

import msgspec

Json = dict[str, Any]


class Sandbox(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A named sandbox. Totals sum over its finished sessions."""

    name: str
    current_session_id: str
    status: str
    persistent: bool
    current_snapshot_id: str | None = None
    created_at: int
    updated_at: int
    image: str = ""
    runtime: str = ""
    cwd: str = ""
    vcpus: int = 0
    memory: int = 0
    timeout: int = 0
    expires_at: int | None = None
    tags: dict[str, str] = {}
    network_policy: Json | None = None
    mounts: dict[str, dict[str, str]] = {}
    total_active_cpu_duration_ms: int | None = None
    total_duration_ms: int | None = None


class Session(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One run of a sandbox. Usage is there once it ended."""

    id: str
    status: str
    cwd: str
    timeout: int
    memory: int
    vcpus: int
    requested_at: int
    source_sandbox_name: str = ""
    started_at: int | None = None
    stopped_at: int | None = None
    stop_reason: str | None = None
    network_policy: Json | None = None
    duration: int | None = None
    active_cpu_duration_ms: int | None = None
    network_transfer: dict[str, int] | None = None


class Route(msgspec.Struct, frozen=True):
    url: str
    subdomain: str
    port: int


class Created(msgspec.Struct, frozen=True, kw_only=True):
    """A sandbox, its current session and its routes: the answer to create and get."""

    sandbox: Sandbox
    session: Session
    routes: list[Route] = []


class Forked(msgspec.Struct, frozen=True, kw_only=True):
    forks: list[Created]


class Stopped(msgspec.Struct, frozen=True, kw_only=True):
    session: Session
    sandbox: Sandbox | None = None


class Snapshot(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Files that a session left, and its memory if it has `memory_bytes`. `expires_at` None: never; `durable_at`: since when it
    survives a power cut; `stored_at`: since when a copy is in the blob store, `store_error`: why it is not there yet."""

    id: str
    source_session_id: str
    source_sandbox_name: str
    status: str
    size_bytes: int
    created_at: int
    updated_at: int
    last_used_at: int
    creation_method: str
    parent_id: str | None = None
    expires_at: int | None = None
    durable_at: int | None = None
    memory_bytes: int = 0
    stored_at: int | None = None
    store_error: str | None = None


class SnapshotVerified(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A snapshot's copy in the blob store is whole, and, where `compared`, the same as the files on the machine."""

    snapshot_id: str
    manifest: str
    files: int
    bytes: int
    compared: bool


class SnapshotOnly(msgspec.Struct, frozen=True):
    snapshot: Snapshot


class SnapshotTaken(msgspec.Struct, frozen=True, kw_only=True):
    snapshot: Snapshot
    session: Session


class SnapshotPage(msgspec.Struct, frozen=True, kw_only=True):
    """One page of a list; `next` is the cursor of the following one."""

    snapshots: list[Snapshot]
    pagination: Pagination


class SnapshotNode(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot among those that came from the same one; `count` of them all, cut at 10 (`10+`)."""

    snapshot: Snapshot
    siblings: list[Snapshot]
    count: str


class SnapshotTree(msgspec.Struct, frozen=True, kw_only=True):
    """Snapshots one behind the other, the nearest to `anchor` first."""

    snapshots: list[SnapshotNode]
    anchor: SnapshotNode | None = None


class Drive(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A named file system of a project, and the session that has it read-write. `used_bytes` is only in the answer to a get."""

    id: str
    name: str
    project_id: str
    region: str
    max_size_bytes: int
    created_at: int
    updated_at: int
    used_bytes: int | None = None
    current_session_id: str | None = None
    current_sandbox_name: str | None = None
    parent_drive_id: str | None = None
    root_drive_id: str | None = None


class OneDrive(msgspec.Struct, frozen=True, kw_only=True):
    drive: Drive


class DrivePage(msgspec.Struct, frozen=True, kw_only=True):
    """One page of a list; `next` is the cursor of the following one."""

    drives: list[Drive]
    pagination: Pagination


class Command(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A process that was started. `exit_code` None while it runs."""

    id: str
    name: str
    args: list[str]
    cwd: str
    session_id: str
    started_at: int
    exit_code: int | None = None
    duration_ms: int | None = None


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """One page of a list; `next` is the cursor of the following one."""

    sandboxes: list[Sandbox]
    pagination: Pagination


class Pagination(msgspec.Struct, frozen=True):
    count: int
    next: str | None


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """A token as it is listed; `token` itself is only in the answer to its creation."""

    id: str
    team_id: str
    role: str
    created_at: int
    expires_at: int
    project_id: str | None = None
    name: str = ""
    revoked: bool = False
    token: str | None = None


class Credential(msgspec.Struct, frozen=True, kw_only=True):
    """A stored credential as it is listed: without its value."""

    name: str
    created_at: int
    updated_at: int


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """What a sandbox can start from. `source` is where it came from; "" for the server's own."""

    name: str
    aliases: list[str]
    digest: str
    size_bytes: int
    user: str
    home: str
    cwd: str
    layers: list[Json] = []
    source: str = ""
    shared: bool = True
    pulled_at: int | None = None
    env: dict[str, str] = {}
    labels: dict[str, str] = {}
    cmd: list[str] = []
    entrypoint: list[str] = []


class BoundsSet(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A policy of a team or project that was set; `hutch` has `warnings`, and what came of it for running sandboxes."""

    network_policy: Json
    hutch: Json


class AuditRecords(msgspec.Struct, frozen=True, kw_only=True):
    """Records of a sandbox's audit, oldest first; `next` is where to read on."""

    records: list[Json]
    next: int


class Bytes(msgspec.Struct, frozen=True, kw_only=True):
    """Payload from the sandbox and to it, as its gateway counts it."""

    up: int
    down: int


class InterfaceBytes(msgspec.Struct, frozen=True, kw_only=True):
    """What the sandbox's interface carried from it and to it, as the kernel counts it: with headers and refused packets."""

    egress: int
    ingress: int


class Tally(msgspec.Struct, frozen=True, kw_only=True):
    """Counters of one name or rule."""

    connections: int
    requests: int
    denied: int
    injected: int
    up: int
    down: int


class NameTally(Tally, frozen=True, kw_only=True):
    """Counters of a name or address; `*` for all that have no line of their own."""

    name: str


class RuleTally(Tally, frozen=True, kw_only=True):
    """Counters of a rule by its id; `*` for all that have no line of their own."""

    rule: str


class Traffic(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What passed for a session; names and rules with the most bytes first."""

    session_id: str
    payload: Bytes
    interface: InterfaceBytes
    flows: int
    names: list[NameTally]
    rules: list[RuleTally]


class Terminal(msgspec.Struct, frozen=True):
    """Where a terminal's WebSocket is; the token is good for one connection."""

    url: str
    token: str

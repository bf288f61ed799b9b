"""What the database holds, as frozen values. Times are integer milliseconds since the epoch, sizes bytes."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any

from hutch.control.permissions import TokenRole
from hutch.host.protocol import SessionStatus


@dataclass(frozen=True, slots=True)
class Team:
    id: str
    slug: str
    created_at: int


@dataclass(frozen=True, slots=True)
class Project:
    id: str
    team_id: str
    slug: str
    created_at: int


@dataclass(frozen=True, slots=True)
class Member:
    """Who belongs to a team. `identity` is what is known of them outside: an address, or issuer and subject of a provider.
    `by_provider`: the claims of their last login say what their role is. `disabled_at`: they have no tokens and get none."""

    id: str
    team_id: str
    identity: str
    name: str
    role: TokenRole
    created_at: int
    email: str = ""
    by_provider: bool = False
    last_login_at: int | None = None
    disabled_at: int | None = None


@dataclass(frozen=True, slots=True)
class Login:
    """A login that goes on (`hutch.login`). `port`: a command line waits there; without one it asks again and again, and
    `user_code` tells a browser which login is meant. `challenge`: empty for `ntn`, which has none. `token_id`: the token that
    somebody said yes with."""

    id: str
    created_at: int
    expires_at: int
    challenge: str
    address: str = ""
    port: int | None = None
    client_state: str | None = None
    team: str | None = None
    project: str | None = None
    user_code: str | None = None
    code_hash: str | None = None
    browser_hash: str | None = None
    returned_at: int | None = None
    identity: str | None = None
    decided_at: int | None = None
    member_id: str | None = None
    token_id: str | None = None


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """A token that was issued; the token itself is not kept. `project_id` None: all projects of the team. `scopes` None: all
    permissions of its role. What a member's token may do ends where `member_role` does."""

    id: str
    team_id: str
    project_id: str | None
    role: TokenRole
    name: str
    created_at: int
    expires_at: int
    revoked_at: int | None = None
    member_id: str | None = None
    scopes: tuple[str, ...] | None = None
    last_used_at: int | None = None
    last_used_address: str | None = None
    use_count: int = 0
    member_role: TokenRole | None = None


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose rows a query may see: one team, and one project of it unless `project_id` is None."""

    team_id: str
    project_id: str | None = None


@dataclass(frozen=True, slots=True)
class Route:
    port: int
    subdomain: str


@dataclass(frozen=True, slots=True)
class NetworkPolicy:
    """A network policy as it is kept. `policy` is the request form as JSON text, secret values included; `read` what clients
    read; `warnings` and `credentials` (names) what the engine said about it (`hutch.egress`).

    `generation` grows with every policy of a sandbox and its sessions and never repeats. A policy is `unconfirmed` while
    nobody knows whether the host of its session enforces it yet. `values` are those of credentials that are this policy's own,
    and stored nowhere else.
    """

    policy: str
    read: dict[str, Any]
    generation: int
    warnings: tuple[dict[str, str], ...] = ()
    credentials: tuple[str, ...] = ()
    unconfirmed: Unconfirmed | None = None
    values: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NetworkBounds:
    """The policies within which those of a project's sandboxes hold, as JSON text in request form; None: there is none."""

    operator: str | None = None
    team: str | None = None
    project: str | None = None

    def texts(self) -> list[str]:
        """Those that there are, widest first."""
        return [text for text in (self.operator, self.team, self.project) if text is not None]


@dataclass(frozen=True, slots=True)
class Unconfirmed:
    """What holds again if the host refuses the policy."""

    replaces: NetworkPolicy | None


FIRST_GENERATION = 1
"""The generation of a new sandbox's policy, also of none."""


def generation_of(policy: NetworkPolicy | None) -> int:
    return policy.generation if policy is not None else FIRST_GENERATION


@dataclass(frozen=True, slots=True)
class CredentialRecord:
    """A stored credential without its value."""

    name: str
    created_at: int
    updated_at: int


@dataclass(frozen=True, slots=True)
class SandboxConfig:
    """What a caller decides about a sandbox; a fork copies it whole."""

    image: str
    timeout_ms: int
    vcpus: int
    memory_mb: int
    persistent: bool
    runtime: str
    region: str
    cwd: str
    env: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    failover_regions: tuple[str, ...] = ()
    network_policy: NetworkPolicy | None = None
    snapshot_expiration_ms: int | None = None
    keep_last_snapshots: dict[str, Any] | None = None
    disk_bytes: int | None = None
    mounts: dict[str, dict[str, str]] | None = None
    """Path → `{"drive": name, "mode": …}`."""
    ports_private: bool | None = None
    """Whether its ports take a token; None: as the project says."""
    wake_on_request: bool = False
    """A request to a port resumes it."""
    budget: dict[str, int] | None = None
    """What it may use in all, by limit (`hutch.metering.budgets.Limits`)."""
    isolation: str | None = None
    """The backend that its sessions run under; None: the host's default one."""


@dataclass(frozen=True, slots=True)
class SandboxRecord:
    """A named sandbox. `total_*` sum over finished sessions; `number` is given by the database and orders rows made in the
    same millisecond."""

    id: str
    team_id: str
    project_id: str
    name: str
    config: SandboxConfig
    routes: tuple[Route, ...]
    status: str
    status_updated_at: int
    created_at: int
    updated_at: int
    current_session_id: str
    current_snapshot_id: str | None = None
    total_active_cpu_us: int = 0
    total_duration_ms: int = 0
    total_ingress_bytes: int = 0
    total_egress_bytes: int = 0
    network_generation: int = FIRST_GENERATION
    link_epoch: int = 0
    worker_id: str | None = None
    """The worker that it was made for: then it is in no list."""
    number: int = 0


class SnapshotStatus(enum.StrEnum):
    CREATED = "created"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Files that a session left. `expiration_ms` counts from its last use, 0: never; `expires_at` is what follows. `durable_at`:
    since when it survives a power cut; `stored_at`: since when a copy of it is in the blob store, `store_error`: why not yet.
    `memory_bytes`: the size of its memory, if that was saved too; only a session with as many `vcpus` goes on from it."""

    id: str
    team_id: str
    project_id: str
    sandbox_id: str
    sandbox_name: str
    session_id: str
    parent_id: str | None
    status: SnapshotStatus
    method: str
    image: str
    runtime: str
    region: str
    size_bytes: int
    expiration_ms: int
    created_at: int
    updated_at: int
    last_used_at: int
    expires_at: int | None
    durable_at: int | None = None
    memory_bytes: int = 0
    vcpus: int = 0
    stored_at: int | None = None
    store_error: str | None = None
    number: int = 0


@dataclass(frozen=True, slots=True)
class Drive:
    """A named drive of a project. `made_at`: since when its host has it. `deleting_at`: since when it is being removed."""

    id: str
    team_id: str
    project_id: str
    name: str
    region: str
    max_size_bytes: int
    created_at: int
    updated_at: int
    parent_drive_id: str | None = None
    root_drive_id: str | None = None
    made_at: int | None = None
    deleting_at: int | None = None
    number: int = 0


@dataclass(frozen=True, slots=True)
class DriveHolder:
    """The live session that has a drive read-write."""

    session_id: str
    sandbox_name: str


@dataclass(frozen=True, slots=True)
class SessionRow:
    """One run of a sandbox, as the control plane last heard of it. Usage fields are set once it ended."""

    id: str
    sandbox_id: str
    team_id: str
    project_id: str
    sandbox_name: str
    status: SessionStatus
    image: str
    runtime: str
    region: str
    cwd: str
    vcpus: int
    memory_mb: int
    timeout_ms: int
    requested_at: int
    created_at: int
    updated_at: int
    started_at: int | None = None
    requested_stop_at: int | None = None
    stopped_at: int | None = None
    aborted_at: int | None = None
    snapshotted_at: int | None = None
    source_snapshot_id: str | None = None
    network_policy: NetworkPolicy | None = None
    active_cpu_us: int | None = None
    ingress_bytes: int | None = None
    egress_bytes: int | None = None
    stop_reason: str | None = None
    cgroup: str = ""
    isolation: str = ""
    mounts: list[dict[str, str]] | None = None
    """What it had mounted: `{"path", "drive_id", "mode"}` each."""
    fetching: bool = False
    """Its source is not there yet: whatever its machine does, it is pending."""
    worker_id: str | None = None
    number: int = 0


@dataclass(frozen=True, slots=True)
class BudgetEvent:
    """What the owner of a budget is told. `data` is what the other fields don't say; the last five are how far delivery is."""

    seq: int
    id: str
    team_id: str
    project_id: str | None
    key: str
    period: str
    at: int
    data: dict[str, Any]
    due_at: int | None
    first_sent_at: int | None
    attempts: int
    delivered_at: int | None
    failure: str | None

    @property
    def delivery(self) -> str:
        """`none` (it has no webhook), `pending`, `delivered` or `given_up`."""
        if self.delivered_at is not None:
            return "delivered"
        if self.due_at is not None:
            return "pending"
        return "given_up" if self.attempts else "none"

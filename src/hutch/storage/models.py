"""Tables. Times are milliseconds since the epoch, sizes bytes, durations in the unit of the name.

`number` columns count rows as they are inserted; they break ties between rows of the same millisecond.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    false,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeEngine

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}

Number = BigInteger().with_variant(Integer, "sqlite")
"""SQLite only numbers rows by itself in an INTEGER PRIMARY KEY."""


def _bytewise(length: int) -> TypeEngine[str]:
    """Text that sorts by bytes on both databases, whatever the locale of the PostgreSQL cluster."""
    return String(length).with_variant(String(length, collation="C"), "postgresql")


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention=NAMING)


class TeamModel(Base):
    """`network_policy` bounds those of the team's sandboxes; a project's does so for its own. `audit_seq` and `audit_hash` are
    the last entry of its audit log. `deleting_at`: all that it has is being removed, and it is there for nobody any more."""

    __tablename__ = "teams"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    slug: Mapped[str] = mapped_column(String(64), unique=True)
    created_at: Mapped[int] = mapped_column(BigInteger)
    network_policy: Mapped[str | None] = mapped_column(Text)
    audit_seq: Mapped[int] = mapped_column(BigInteger, server_default="0")
    audit_hash: Mapped[str] = mapped_column(String(64), server_default="")
    deleting_at: Mapped[int | None] = mapped_column(BigInteger)


class ProjectModel(Base):
    __tablename__ = "projects"
    __table_args__ = (UniqueConstraint("team_id", "slug"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    team_id: Mapped[str] = mapped_column(ForeignKey("teams.id", ondelete="CASCADE"))
    slug: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[int] = mapped_column(BigInteger)
    network_policy: Mapped[str | None] = mapped_column(Text)
    ports_private: Mapped[bool] = mapped_column(Boolean, server_default=false())
    deleting_at: Mapped[int | None] = mapped_column(BigInteger)
    review_workers: Mapped[bool] = mapped_column(Boolean, server_default=false())


class MemberModel(Base):
    """Who belongs to a team. `identity` is what is known of them outside: an address, or issuer and subject of a provider.
    `by_provider`: the provider's claims say what their role is. `disabled_at`: they have no tokens and get none."""

    __tablename__ = "members"
    __table_args__ = (UniqueConstraint("team_id", "identity"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    team_id: Mapped[str] = mapped_column(ForeignKey("teams.id", ondelete="CASCADE"))
    identity: Mapped[str] = mapped_column(String(320))
    name: Mapped[str] = mapped_column(String(128))
    role: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[int] = mapped_column(BigInteger)
    email: Mapped[str] = mapped_column(String(320), server_default="")
    by_provider: Mapped[bool] = mapped_column(Boolean, server_default=false())
    last_login_at: Mapped[int | None] = mapped_column(BigInteger)
    disabled_at: Mapped[int | None] = mapped_column(BigInteger)


class LoginModel(Base):
    """A login that goes on, for some minutes. Of secrets there are only hashes: `code_hash` is of the code that becomes a token,
    `browser_hash` of what one browser has. `returned_at`: the provider sent that browser back, which holds once; `identity`: as
    whom; `decided_at`: they said yes, as `member_id` or with the token `token_id`, or no."""

    __tablename__ = "logins"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    created_at: Mapped[int] = mapped_column(BigInteger)
    expires_at: Mapped[int] = mapped_column(BigInteger, index=True)
    challenge: Mapped[str] = mapped_column(String(64))
    address: Mapped[str] = mapped_column(String(64))
    port: Mapped[int | None] = mapped_column(Integer)
    client_state: Mapped[str | None] = mapped_column(String(128))
    team: Mapped[str | None] = mapped_column(String(64))
    project: Mapped[str | None] = mapped_column(String(64))
    user_code: Mapped[str | None] = mapped_column(String(16), unique=True)
    code_hash: Mapped[str | None] = mapped_column(String(64), unique=True)
    browser_hash: Mapped[str | None] = mapped_column(String(64), unique=True)
    returned_at: Mapped[int | None] = mapped_column(BigInteger)
    identity: Mapped[str | None] = mapped_column(String(320))
    decided_at: Mapped[int | None] = mapped_column(BigInteger)
    member_id: Mapped[str | None] = mapped_column(ForeignKey("members.id", ondelete="CASCADE"))
    token_id: Mapped[str | None] = mapped_column(String(64))


class AuditLogModel(Base):
    """Who changed what in a team, in order. Rows are only ever added, and go with the team; each has the hash of the one before
    (`control.audit_log`)."""

    __tablename__ = "audit_log"

    team_id: Mapped[str] = mapped_column(ForeignKey("teams.id", ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    at: Mapped[int] = mapped_column(BigInteger)
    token_id: Mapped[str] = mapped_column(String(64))
    member_id: Mapped[str] = mapped_column(String(64))
    address: Mapped[str] = mapped_column(String(64))
    action: Mapped[str] = mapped_column(String(64))
    subject: Mapped[str] = mapped_column(String(128))
    outcome: Mapped[str] = mapped_column(String(16))
    detail: Mapped[dict[str, Any]] = mapped_column(JSON)
    previous: Mapped[str] = mapped_column(String(64))
    hash: Mapped[str] = mapped_column(String(64))


class TokenModel(Base):
    """`member_id`: whose it is, where it is a member's. `scopes`: those of its role's permissions that it has; none: all."""

    __tablename__ = "tokens"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    team_id: Mapped[str] = mapped_column(ForeignKey("teams.id", ondelete="CASCADE"), index=True)
    project_id: Mapped[str | None] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    role: Mapped[str] = mapped_column(String(16))
    name: Mapped[str] = mapped_column(String(128))
    created_at: Mapped[int] = mapped_column(BigInteger)
    expires_at: Mapped[int] = mapped_column(BigInteger)
    revoked_at: Mapped[int | None] = mapped_column(BigInteger)
    member_id: Mapped[str | None] = mapped_column(String(64), index=True)
    scopes: Mapped[list[Any] | None] = mapped_column(JSON(none_as_null=True))
    last_used_at: Mapped[int | None] = mapped_column(BigInteger)
    last_used_address: Mapped[str | None] = mapped_column(String(64))
    use_count: Mapped[int] = mapped_column(BigInteger, server_default="0")


class SandboxModel(Base):
    """`env` and `network_policy` are sealed: both may hold credentials. `network_generation` is the newest one of the sandbox and
    its sessions; it never goes back. `link_epoch` grows when links to private ports are revoked. One with a `worker_id` was made
    for that worker."""

    __tablename__ = "sandboxes"
    __table_args__ = (
        UniqueConstraint("project_id", "name"),
        Index("ix_sandboxes_created", "project_id", "created_at", "number"),
        Index("ix_sandboxes_status", "project_id", "status_updated_at", "number"),
    )

    number: Mapped[int] = mapped_column(Number, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)
    team_id: Mapped[str] = mapped_column(ForeignKey("teams.id"), index=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str] = mapped_column(_bytewise(128))
    status: Mapped[str] = mapped_column(String(16))
    status_updated_at: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[int] = mapped_column(BigInteger)
    updated_at: Mapped[int] = mapped_column(BigInteger)
    current_session_id: Mapped[str] = mapped_column(String(64), index=True)
    current_snapshot_id: Mapped[str | None] = mapped_column(_bytewise(64))
    image: Mapped[str] = mapped_column(String(512))
    runtime: Mapped[str] = mapped_column(String(32))
    region: Mapped[str] = mapped_column(String(32))
    failover_regions: Mapped[list[Any]] = mapped_column(JSON)
    cwd: Mapped[str] = mapped_column(Text)
    timeout_ms: Mapped[int] = mapped_column(BigInteger)
    vcpus: Mapped[int] = mapped_column(Integer)
    memory_mb: Mapped[int] = mapped_column(Integer)
    disk_bytes: Mapped[int | None] = mapped_column(BigInteger)
    persistent: Mapped[bool] = mapped_column(Boolean)
    env: Mapped[bytes] = mapped_column(LargeBinary)
    tags: Mapped[dict[str, Any]] = mapped_column(JSON)
    routes: Mapped[list[Any]] = mapped_column(JSON)
    network_policy: Mapped[bytes | None] = mapped_column(LargeBinary)
    network_generation: Mapped[int] = mapped_column(BigInteger, server_default="1")
    snapshot_expiration_ms: Mapped[int | None] = mapped_column(BigInteger)
    keep_last_snapshots: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    total_active_cpu_us: Mapped[int] = mapped_column(BigInteger)
    total_duration_ms: Mapped[int] = mapped_column(BigInteger)
    total_ingress_bytes: Mapped[int] = mapped_column(BigInteger)
    total_egress_bytes: Mapped[int] = mapped_column(BigInteger)
    mounts: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    ports_private: Mapped[bool | None] = mapped_column(Boolean)
    wake_on_request: Mapped[bool] = mapped_column(Boolean, server_default=false())
    link_epoch: Mapped[int] = mapped_column(BigInteger, server_default="0")
    budget: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    isolation: Mapped[str | None] = mapped_column(String(16))
    worker_id: Mapped[str | None] = mapped_column(String(36), index=True)


class SandboxTagModel(Base):
    """The tags of a sandbox again, so that a list can be filtered by one."""

    __tablename__ = "sandbox_tags"
    __table_args__ = (Index("ix_sandbox_tags_pair", "key", "value"),)

    sandbox_id: Mapped[str] = mapped_column(ForeignKey("sandboxes.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(String(256), primary_key=True)
    value: Mapped[str] = mapped_column(String(256))


class SessionModel(Base):
    """A session outlives its sandbox's record (`deleted_at`), because what it used must still be accounted for."""

    __tablename__ = "sessions"
    __table_args__ = (Index("ix_sessions_created", "project_id", "created_at", "number"),)

    number: Mapped[int] = mapped_column(Number, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)
    sandbox_id: Mapped[str] = mapped_column(String(64), index=True)
    team_id: Mapped[str] = mapped_column(ForeignKey("teams.id"))
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    sandbox_name: Mapped[str] = mapped_column(String(128))
    status: Mapped[str] = mapped_column(String(16), index=True)
    image: Mapped[str] = mapped_column(String(512))
    runtime: Mapped[str] = mapped_column(String(32))
    region: Mapped[str] = mapped_column(String(32))
    cwd: Mapped[str] = mapped_column(Text)
    vcpus: Mapped[int] = mapped_column(Integer)
    memory_mb: Mapped[int] = mapped_column(Integer)
    timeout_ms: Mapped[int] = mapped_column(BigInteger)
    requested_at: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[int] = mapped_column(BigInteger)
    updated_at: Mapped[int] = mapped_column(BigInteger)
    started_at: Mapped[int | None] = mapped_column(BigInteger)
    requested_stop_at: Mapped[int | None] = mapped_column(BigInteger)
    stopped_at: Mapped[int | None] = mapped_column(BigInteger)
    aborted_at: Mapped[int | None] = mapped_column(BigInteger)
    snapshotted_at: Mapped[int | None] = mapped_column(BigInteger)
    deleted_at: Mapped[int | None] = mapped_column(BigInteger)
    source_snapshot_id: Mapped[str | None] = mapped_column(String(64))
    network_policy: Mapped[bytes | None] = mapped_column(LargeBinary)
    active_cpu_us: Mapped[int | None] = mapped_column(BigInteger)
    ingress_bytes: Mapped[int | None] = mapped_column(BigInteger)
    egress_bytes: Mapped[int | None] = mapped_column(BigInteger)
    stop_reason: Mapped[str | None] = mapped_column(Text)
    cgroup: Mapped[str] = mapped_column(Text)
    isolation: Mapped[str] = mapped_column(String(32))
    mounts: Mapped[list[Any] | None] = mapped_column(JSON(none_as_null=True))
    fetching: Mapped[bool] = mapped_column(Boolean, server_default=false())
    worker_id: Mapped[str | None] = mapped_column(String(36))


class SnapshotModel(Base):
    """Files that a session left, or that were imported: then `session_id` is empty. A deleted one stays listed; it is purged when
    its host has removed the files. `layer_bytes` is its size without its image; none where its host has not said it yet."""

    __tablename__ = "snapshots"
    __table_args__ = (Index("ix_snapshots_created", "project_id", "created_at", "number"),)

    number: Mapped[int] = mapped_column(Number, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)
    team_id: Mapped[str] = mapped_column(ForeignKey("teams.id"))
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    sandbox_id: Mapped[str] = mapped_column(String(64), index=True)
    sandbox_name: Mapped[str] = mapped_column(String(128))
    session_id: Mapped[str] = mapped_column(String(64), index=True)
    parent_id: Mapped[str | None] = mapped_column(String(64), index=True)
    status: Mapped[str] = mapped_column(String(16))
    method: Mapped[str] = mapped_column(String(16))
    image: Mapped[str] = mapped_column(String(512))
    runtime: Mapped[str] = mapped_column(String(32))
    region: Mapped[str] = mapped_column(String(32))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    memory_bytes: Mapped[int] = mapped_column(BigInteger, server_default="0")
    vcpus: Mapped[int] = mapped_column(server_default="0")
    expiration_ms: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[int] = mapped_column(BigInteger)
    updated_at: Mapped[int] = mapped_column(BigInteger)
    last_used_at: Mapped[int] = mapped_column(BigInteger)
    expires_at: Mapped[int | None] = mapped_column(BigInteger, index=True)
    durable_at: Mapped[int | None] = mapped_column(BigInteger)
    layer_bytes: Mapped[int | None] = mapped_column(BigInteger)
    stored_at: Mapped[int | None] = mapped_column(BigInteger)
    store_error: Mapped[str | None] = mapped_column(Text)
    purged_at: Mapped[int | None] = mapped_column(BigInteger)


class DriveModel(Base):
    """A drive of a project. `made_at`: its host has it. `deleting_at`: it is not there for anybody any more, and keeps its name
    until its host has removed it. Who has it is told by the `mounts` of live sessions."""

    __tablename__ = "drives"
    __table_args__ = (
        UniqueConstraint("project_id", "name"),
        Index("ix_drives_created", "project_id", "created_at", "number"),
    )

    number: Mapped[int] = mapped_column(Number, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)
    team_id: Mapped[str] = mapped_column(ForeignKey("teams.id"), index=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str] = mapped_column(_bytewise(64))
    region: Mapped[str] = mapped_column(String(32))
    max_size_bytes: Mapped[int] = mapped_column(BigInteger)
    parent_drive_id: Mapped[str | None] = mapped_column(String(64))
    root_drive_id: Mapped[str | None] = mapped_column(String(64))
    created_at: Mapped[int] = mapped_column(BigInteger)
    updated_at: Mapped[int] = mapped_column(BigInteger)
    made_at: Mapped[int | None] = mapped_column(BigInteger)
    deleting_at: Mapped[int | None] = mapped_column(BigInteger)


class CredentialModel(Base):
    """A stored credential of a project. `value` is sealed."""

    __tablename__ = "credentials"

    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(_bytewise(64), primary_key=True)
    value: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[int] = mapped_column(BigInteger)
    updated_at: Mapped[int] = mapped_column(BigInteger)


class UsageWindowModel(Base):
    """A closed window of a session (`hutch.metering`), as its host told it. It outlives the sandbox and the session."""

    __tablename__ = "usage_windows"
    __table_args__ = (Index("ix_usage_windows_time", "team_id", "project_id", "from_ms"),)

    session_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    number: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    team_id: Mapped[str] = mapped_column(String(64))
    project_id: Mapped[str] = mapped_column(String(64))
    sandbox_id: Mapped[str] = mapped_column(String(64), index=True)
    sandbox_name: Mapped[str] = mapped_column(String(128))
    worker_id: Mapped[str | None] = mapped_column(String(36))
    from_ms: Mapped[int] = mapped_column(BigInteger)
    to_ms: Mapped[int] = mapped_column(BigInteger)
    final: Mapped[bool] = mapped_column(Boolean)
    active_cpu_us: Mapped[int] = mapped_column(BigInteger)
    startup_cpu_us: Mapped[int] = mapped_column(BigInteger)
    wall_us: Mapped[int] = mapped_column(BigInteger)
    memory_byte_seconds: Mapped[int] = mapped_column(BigInteger)
    memory_peak_bytes: Mapped[int] = mapped_column(BigInteger)
    ingress_bytes: Mapped[int] = mapped_column(BigInteger)
    egress_bytes: Mapped[int] = mapped_column(BigInteger)
    creations: Mapped[int] = mapped_column(BigInteger)
    gateway_cpu_us: Mapped[int] = mapped_column(BigInteger, server_default="0")
    disk_byte_seconds: Mapped[int] = mapped_column(BigInteger, server_default="0")
    disk_peak_bytes: Mapped[int] = mapped_column(BigInteger, server_default="0")


class UsageNetworkModel(Base):
    """What passed in a session that is over under one rule: its id, `` for what had none, `*` for those that were too many."""

    __tablename__ = "usage_network"

    session_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    rule: Mapped[str] = mapped_column(String(32), primary_key=True)
    team_id: Mapped[str] = mapped_column(String(64))
    project_id: Mapped[str] = mapped_column(String(64))
    sandbox_id: Mapped[str] = mapped_column(String(64), index=True)
    sent_bytes: Mapped[int] = mapped_column(BigInteger)
    received_bytes: Mapped[int] = mapped_column(BigInteger)
    connections: Mapped[int] = mapped_column(BigInteger)
    requests: Mapped[int] = mapped_column(BigInteger)


class BudgetModel(Base):
    """What a team or project may use in a period; `key` is that of `hutch.metering.budgets`. `webhook` is sealed: the URL that
    its events are sent to, with the secret that signs them."""

    __tablename__ = "budgets"

    key: Mapped[str] = mapped_column(String(80), primary_key=True)
    period: Mapped[str] = mapped_column(String(8), primary_key=True)
    team_id: Mapped[str] = mapped_column(ForeignKey("teams.id", ondelete="CASCADE"), index=True)
    limits: Mapped[dict[str, Any]] = mapped_column(JSON)
    notify_at: Mapped[list[Any]] = mapped_column(JSON, server_default="[]")
    soft: Mapped[dict[str, Any]] = mapped_column(JSON, server_default="{}")
    set_at: Mapped[int] = mapped_column(BigInteger, server_default="0")
    webhook: Mapped[bytes | None] = mapped_column(LargeBinary)


class BudgetEventModel(Base):
    """What the owner of a budget is told. `id` is what it is about, so that there is one of each; `seq` only grows. It is sent to
    a webhook from `due_at` on, until it was taken (`delivered_at`) or given up."""

    __tablename__ = "budget_events"
    __table_args__ = (Index("ix_budget_events_owner", "team_id", "project_id", "seq"), {"sqlite_autoincrement": True})

    seq: Mapped[int] = mapped_column(Number, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)
    team_id: Mapped[str] = mapped_column(String(64))
    project_id: Mapped[str | None] = mapped_column(String(64))
    key: Mapped[str] = mapped_column(String(80))
    period: Mapped[str] = mapped_column(String(8))
    at: Mapped[int] = mapped_column(BigInteger)
    data: Mapped[dict[str, Any]] = mapped_column(JSON)
    due_at: Mapped[int | None] = mapped_column(BigInteger, index=True)
    first_sent_at: Mapped[int | None] = mapped_column(BigInteger)
    attempts: Mapped[int] = mapped_column(Integer, server_default="0")
    delivered_at: Mapped[int | None] = mapped_column(BigInteger)
    failure: Mapped[str | None] = mapped_column(String(200))


class WorkerModel(Base):
    """A worker of a project. `deployment_id` is the deployment that serves, `mark` the last one that its rows got, `network` what
    was said about its destinations beside its project's files."""

    __tablename__ = "workers"
    __table_args__ = (Index("ix_workers_project", "team_id", "project_id", "number"),)

    number: Mapped[int] = mapped_column(Number, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(36), unique=True)
    team_id: Mapped[str] = mapped_column(ForeignKey("teams.id"))
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str] = mapped_column(String(128))
    deployment_id: Mapped[str | None] = mapped_column(String(36))
    mark: Mapped[int] = mapped_column(BigInteger, server_default="0")
    created_at: Mapped[int] = mapped_column(BigInteger)
    updated_at: Mapped[int] = mapped_column(BigInteger)
    network: Mapped[str | None] = mapped_column(Text)


class WorkerSecretModel(Base):
    """A secret of a worker's environment. `value` is sealed."""

    __tablename__ = "worker_secrets"

    worker_id: Mapped[str] = mapped_column(ForeignKey("workers.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(_bytewise(256), primary_key=True)
    team_id: Mapped[str] = mapped_column(String(64))
    project_id: Mapped[str] = mapped_column(String(64))
    value: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[int] = mapped_column(BigInteger)


class WorkerToolModel(Base):
    """What was said about a worker's tool: whether agents have it, and whether a person agrees to each call."""

    __tablename__ = "worker_tools"

    worker_id: Mapped[str] = mapped_column(ForeignKey("workers.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(_bytewise(256), primary_key=True)
    team_id: Mapped[str] = mapped_column(String(64))
    project_id: Mapped[str] = mapped_column(String(64))
    enabled: Mapped[bool] = mapped_column(Boolean)
    confirm: Mapped[bool] = mapped_column(Boolean)
    updated_at: Mapped[int] = mapped_column(BigInteger)


class OauthLoginModel(Base):
    """A login of a worker with another service that a person was sent to. `verifier` is sealed."""

    __tablename__ = "worker_oauth_logins"

    state_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    worker_id: Mapped[str] = mapped_column(ForeignKey("workers.id", ondelete="CASCADE"), index=True)
    team_id: Mapped[str] = mapped_column(String(64))
    project_id: Mapped[str] = mapped_column(String(64))
    key: Mapped[str] = mapped_column(_bytewise(256))
    verifier: Mapped[bytes] = mapped_column(LargeBinary)
    made_at: Mapped[int] = mapped_column(BigInteger)


class OauthTokenModel(Base):
    """The tokens of a worker's login, by the name of its OAuth. `token` is sealed."""

    __tablename__ = "worker_oauth_tokens"

    worker_id: Mapped[str] = mapped_column(ForeignKey("workers.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(_bytewise(256), primary_key=True)
    team_id: Mapped[str] = mapped_column(String(64))
    project_id: Mapped[str] = mapped_column(String(64))
    token: Mapped[bytes] = mapped_column(LargeBinary)
    updated_at: Mapped[int] = mapped_column(BigInteger)


class DeploymentModel(Base):
    """A worker's source on its way to a snapshot that runs start from: `uploading`, `uploaded`, `building`, `built`, `ready`,
    `failed`. `upload_hash` is the digest of the secret in its upload URL; `manifest` is sealed, as it may hold secrets.
    `network`: what its files declare about destinations; `network_confirmed`: somebody looked at that."""

    __tablename__ = "worker_deployments"

    number: Mapped[int] = mapped_column(Number, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(36), unique=True)
    worker_id: Mapped[str] = mapped_column(ForeignKey("workers.id", ondelete="CASCADE"), index=True)
    team_id: Mapped[str] = mapped_column(String(64))
    project_id: Mapped[str] = mapped_column(String(64))
    status: Mapped[str] = mapped_column(String(16))
    upload_hash: Mapped[str] = mapped_column(String(64))
    snapshot_id: Mapped[str | None] = mapped_column(String(64))
    manifest: Mapped[bytes | None] = mapped_column(LargeBinary)
    created_at: Mapped[int] = mapped_column(BigInteger)
    language: Mapped[str] = mapped_column(String(16), server_default="node")
    updated_at: Mapped[int] = mapped_column(BigInteger)
    network: Mapped[str | None] = mapped_column(Text)
    network_confirmed: Mapped[bool] = mapped_column(Boolean, server_default=false())
    owner: Mapped[str | None] = mapped_column(String(64))
    """The API process that builds it."""


class LayerModel(Base):
    """Dependencies that were installed once: the snapshot that a project has of what they depend on."""

    __tablename__ = "worker_layers"

    project_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    team_id: Mapped[str] = mapped_column(String(64))
    snapshot_id: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[int] = mapped_column(BigInteger)
    used_at: Mapped[int] = mapped_column(BigInteger)


class ProcessModel(Base):
    """An API process that lived at `seen_at`."""

    __tablename__ = "api_processes"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    seen_at: Mapped[int] = mapped_column(BigInteger)


class RunModel(Base):
    """One execution of a worker in a sandbox of its own. `result`, `logs` and `network` (destinations) are sealed."""

    __tablename__ = "worker_runs"
    __table_args__ = (Index("ix_worker_runs_worker", "worker_id", "number"), Index("ix_worker_runs_ended", "ended_at"))

    number: Mapped[int] = mapped_column(Number, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(36), unique=True)
    worker_id: Mapped[str] = mapped_column(ForeignKey("workers.id", ondelete="CASCADE"))
    team_id: Mapped[str] = mapped_column(String(64))
    project_id: Mapped[str] = mapped_column(String(64))
    deployment_id: Mapped[str] = mapped_column(String(36))
    session_id: Mapped[str | None] = mapped_column(String(64))
    name: Mapped[str] = mapped_column(String(300))
    exit_code: Mapped[int | None] = mapped_column(Integer)
    result: Mapped[bytes | None] = mapped_column(LargeBinary)
    logs: Mapped[bytes | None] = mapped_column(LargeBinary)
    started_at: Mapped[int] = mapped_column(BigInteger)
    ended_at: Mapped[int | None] = mapped_column(BigInteger)
    job_id: Mapped[str | None] = mapped_column(String(36))
    input: Mapped[bytes | None] = mapped_column(LargeBinary)
    queued_at: Mapped[int | None] = mapped_column(BigInteger)
    program_at: Mapped[int | None] = mapped_column(BigInteger)
    owner: Mapped[str | None] = mapped_column(String(64))
    """The API process that follows it."""
    network: Mapped[bytes | None] = mapped_column(LargeBinary)


class JobModel(Base):
    """Something that a worker is to do: `queued`, `running`, then `done`, `refused` or `dead`. `input` and `result` are sealed.
    Whoever runs it has a lease; `fence` counts leases, and only the last one may end it. `began` when the program of the lease
    has started, from which on it may have had an effect. `waits` counts how often in a row it was put back before that."""

    __tablename__ = "worker_jobs"
    __table_args__ = (
        UniqueConstraint("worker_id", "idempotency_key"),
        Index("ix_worker_jobs_due", "status", "project_id", "not_before"),
        Index("ix_worker_jobs_worker", "worker_id", "number"),
    )

    number: Mapped[int] = mapped_column(Number, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(36), unique=True)
    worker_id: Mapped[str] = mapped_column(ForeignKey("workers.id", ondelete="CASCADE"))
    team_id: Mapped[str] = mapped_column(String(64))
    project_id: Mapped[str] = mapped_column(String(64))
    kind: Mapped[str] = mapped_column(String(16))
    key: Mapped[str] = mapped_column(_bytewise(256))
    status: Mapped[str] = mapped_column(String(16))
    priority: Mapped[int] = mapped_column(Integer)
    idempotency_key: Mapped[str | None] = mapped_column(_bytewise(128))
    input: Mapped[bytes] = mapped_column(LargeBinary)
    input_hash: Mapped[str] = mapped_column(String(64))
    result: Mapped[bytes | None] = mapped_column(LargeBinary)
    attempts: Mapped[int] = mapped_column(Integer)
    waits: Mapped[int] = mapped_column(Integer, server_default="0")
    retries: Mapped[int] = mapped_column(Integer)
    not_before: Mapped[int] = mapped_column(BigInteger)
    lease_owner: Mapped[str | None] = mapped_column(String(64))
    lease_until: Mapped[int | None] = mapped_column(BigInteger)
    fence: Mapped[int] = mapped_column(Integer)
    began: Mapped[bool] = mapped_column(Boolean)
    run_id: Mapped[str | None] = mapped_column(String(36))
    created_at: Mapped[int] = mapped_column(BigInteger)
    ended_at: Mapped[int | None] = mapped_column(BigInteger)


class WebhookModel(Base):
    """A webhook's address, which stays for as long as its worker does, its switch, and how often it failed in a row."""

    __tablename__ = "worker_webhooks"

    worker_id: Mapped[str] = mapped_column(ForeignKey("workers.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(_bytewise(256), primary_key=True)
    team_id: Mapped[str] = mapped_column(String(64))
    project_id: Mapped[str] = mapped_column(String(64))
    address: Mapped[str] = mapped_column(String(32))
    failures: Mapped[int] = mapped_column(Integer)
    verifies: Mapped[bool] = mapped_column(Boolean)
    created_at: Mapped[int] = mapped_column(BigInteger)


class ButtonModel(Base):
    """A page with a button that triggers an automation, for whoever has its address. `secret_hash` is of that."""

    __tablename__ = "worker_buttons"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    worker_id: Mapped[str] = mapped_column(ForeignKey("workers.id", ondelete="CASCADE"), index=True)
    team_id: Mapped[str] = mapped_column(String(64))
    project_id: Mapped[str] = mapped_column(String(64))
    key: Mapped[str] = mapped_column(_bytewise(256))
    secret_hash: Mapped[str] = mapped_column(String(64), unique=True)
    created_at: Mapped[int] = mapped_column(BigInteger)
    expires_at: Mapped[int] = mapped_column(BigInteger)


class WorkerDatabaseModel(Base):
    """A database that a worker's syncs write to. `definition` is what the last deployment that declared it said, and `options`
    what rows added to selects, by property. One that is not declared any more stays with its rows."""

    __tablename__ = "worker_databases"

    worker_id: Mapped[str] = mapped_column(ForeignKey("workers.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(_bytewise(256), primary_key=True)
    team_id: Mapped[str] = mapped_column(String(64))
    project_id: Mapped[str] = mapped_column(String(64))
    title: Mapped[str] = mapped_column(Text)
    declared: Mapped[bool] = mapped_column(Boolean)
    definition: Mapped[dict[str, Any]] = mapped_column(JSON)
    options: Mapped[dict[str, Any]] = mapped_column(JSON)
    created_at: Mapped[int] = mapped_column(BigInteger)
    updated_at: Mapped[int] = mapped_column(BigInteger)


class WorkerViewModel(Base):
    """A view of a worker's database (`hutch.storage.worker_views`)."""

    __tablename__ = "worker_views"

    worker_id: Mapped[str] = mapped_column(ForeignKey("workers.id", ondelete="CASCADE"), primary_key=True)
    database: Mapped[str] = mapped_column(_bytewise(256), primary_key=True)
    name: Mapped[str] = mapped_column(_bytewise(256), primary_key=True)
    team_id: Mapped[str] = mapped_column(String(64))
    project_id: Mapped[str] = mapped_column(String(64))
    definition: Mapped[dict[str, Any]] = mapped_column(JSON)
    updated_at: Mapped[int] = mapped_column(BigInteger)


class WorkerMirrorModel(Base):
    """A worker's database that is mirrored into Notion (`hutch.storage.worker_mirrors`). `token` is sealed."""

    __tablename__ = "worker_mirrors"

    worker_id: Mapped[str] = mapped_column(ForeignKey("workers.id", ondelete="CASCADE"), primary_key=True)
    database: Mapped[str] = mapped_column(_bytewise(256), primary_key=True)
    team_id: Mapped[str] = mapped_column(String(64))
    project_id: Mapped[str] = mapped_column(String(64))
    token: Mapped[bytes] = mapped_column(LargeBinary)
    base_url: Mapped[str] = mapped_column(Text)
    parent: Mapped[dict[str, Any]] = mapped_column(JSON)
    database_id: Mapped[str | None] = mapped_column(String(64))
    data_source_id: Mapped[str] = mapped_column(String(64))
    seen: Mapped[str] = mapped_column(Text)
    warnings: Mapped[list[str]] = mapped_column(JSON)
    failures: Mapped[int] = mapped_column(Integer)
    stopped: Mapped[bool] = mapped_column(Boolean)
    last_success_at: Mapped[int | None] = mapped_column(BigInteger)
    last_error: Mapped[str | None] = mapped_column(Text)
    due_at: Mapped[int] = mapped_column(BigInteger)
    leased_until: Mapped[int] = mapped_column(BigInteger)
    fence: Mapped[int] = mapped_column(BigInteger)


class WorkerMirrorPageModel(Base):
    """The page of a row, by the digest of its key. Without `page_id` its creation was begun; `digest` is that of what it was last
    given, `row_at` the row's `updated_at` then; `error` says why Notion did not take it."""

    __tablename__ = "worker_mirror_pages"

    worker_id: Mapped[str] = mapped_column(ForeignKey("workers.id", ondelete="CASCADE"), primary_key=True)
    database: Mapped[str] = mapped_column(_bytewise(256), primary_key=True)
    key_digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    team_id: Mapped[str] = mapped_column(String(64))
    project_id: Mapped[str] = mapped_column(String(64))
    page_id: Mapped[str | None] = mapped_column(String(64))
    digest: Mapped[str | None] = mapped_column(String(64))
    row_at: Mapped[int | None] = mapped_column(BigInteger)
    error: Mapped[str | None] = mapped_column(Text)


class WorkerRowModel(Base):
    """A row of a worker's database. `key_digest` is that of its key, which is longer than what indexes take; `cells` has its
    values by property (`hutch.workers.values.Cell`); `seen` is the mark of the sync that wrote or confirmed it last."""

    __tablename__ = "worker_rows"
    __table_args__ = (
        UniqueConstraint("worker_id", "database", "key_digest"),
        Index("ix_worker_rows_page", "worker_id", "database", "number"),
    )

    number: Mapped[int] = mapped_column(Number, primary_key=True, autoincrement=True)
    worker_id: Mapped[str] = mapped_column(ForeignKey("workers.id", ondelete="CASCADE"))
    database: Mapped[str] = mapped_column(_bytewise(256))
    key_digest: Mapped[str] = mapped_column(String(64))
    key: Mapped[str] = mapped_column(Text)
    team_id: Mapped[str] = mapped_column(String(64))
    project_id: Mapped[str] = mapped_column(String(64))
    cells: Mapped[dict[str, Any]] = mapped_column(JSON)
    icon: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    cover: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    markdown: Mapped[str | None] = mapped_column(Text)
    upstream_ms: Mapped[int | None] = mapped_column(BigInteger)
    seen: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[int] = mapped_column(BigInteger)
    updated_at: Mapped[int] = mapped_column(BigInteger)


class WorkerPairModel(Base):
    """One pair of a relation between rows (`hutch.workers.relations`), kept at the property that declares the relation."""

    __tablename__ = "worker_pairs"
    __table_args__ = (
        UniqueConstraint("worker_id", "database", "property", "from_digest", "to_digest", name="uq_worker_pairs_ends"),
        Index("ix_worker_pairs_back", "worker_id", "database", "property", "to_digest"),
    )

    number: Mapped[int] = mapped_column(Number, primary_key=True, autoincrement=True)
    worker_id: Mapped[str] = mapped_column(ForeignKey("workers.id", ondelete="CASCADE"))
    database: Mapped[str] = mapped_column(_bytewise(256))
    property: Mapped[str] = mapped_column(_bytewise(256))
    from_digest: Mapped[str] = mapped_column(String(64))
    to_digest: Mapped[str] = mapped_column(String(64))
    from_key: Mapped[str] = mapped_column(Text)
    to_key: Mapped[str] = mapped_column(Text)
    team_id: Mapped[str] = mapped_column(String(64))
    project_id: Mapped[str] = mapped_column(String(64))


class WorkerSyncModel(Base):
    """A sync. `state` is sealed, as its cursor may be anything; `due_at` is when somebody should take it, None for never.

    Whoever runs it has it until `leased_until`, and may write what comes of it as long as `fence` is as it was then.
    """

    __tablename__ = "worker_syncs"
    __table_args__ = (Index("ix_worker_syncs_due", "due_at"),)

    worker_id: Mapped[str] = mapped_column(ForeignKey("workers.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(_bytewise(256), primary_key=True)
    team_id: Mapped[str] = mapped_column(String(64))
    project_id: Mapped[str] = mapped_column(String(64))
    declared: Mapped[bool] = mapped_column(Boolean)
    state: Mapped[bytes] = mapped_column(LargeBinary)
    due_at: Mapped[int | None] = mapped_column(BigInteger)
    leased_until: Mapped[int | None] = mapped_column(BigInteger)
    fence: Mapped[int] = mapped_column(BigInteger)


class WorkerPacerModel(Base):
    """When a worker's pacer was used last, in milliseconds since the epoch."""

    __tablename__ = "worker_pacers"

    worker_id: Mapped[str] = mapped_column(ForeignKey("workers.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(_bytewise(256), primary_key=True)
    team_id: Mapped[str] = mapped_column(String(64))
    project_id: Mapped[str] = mapped_column(String(64))
    last_ms: Mapped[float] = mapped_column(Double)


class HostCursorModel(Base):
    """The last event of each host that was applied."""

    __tablename__ = "host_cursors"

    host_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger)

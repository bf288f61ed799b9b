"""Tables. Times are milliseconds since the epoch, sizes bytes, durations in the unit of the name.

`number` columns count rows as they are inserted; they break ties between rows of the same millisecond.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Text,
    UniqueConstraint,
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
    """`network_policy` bounds those of the team's sandboxes; a project's does so for its own."""

    __tablename__ = "teams"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    slug: Mapped[str] = mapped_column(String(64), unique=True)
    created_at: Mapped[int] = mapped_column(BigInteger)
    network_policy: Mapped[str | None] = mapped_column(Text)


class ProjectModel(Base):
    __tablename__ = "projects"
    __table_args__ = (UniqueConstraint("team_id", "slug"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    team_id: Mapped[str] = mapped_column(ForeignKey("teams.id", ondelete="CASCADE"))
    slug: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[int] = mapped_column(BigInteger)
    network_policy: Mapped[str | None] = mapped_column(Text)


class TokenModel(Base):
    __tablename__ = "tokens"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    team_id: Mapped[str] = mapped_column(ForeignKey("teams.id", ondelete="CASCADE"), index=True)
    project_id: Mapped[str | None] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    role: Mapped[str] = mapped_column(String(16))
    name: Mapped[str] = mapped_column(String(128))
    created_at: Mapped[int] = mapped_column(BigInteger)
    expires_at: Mapped[int] = mapped_column(BigInteger)
    revoked_at: Mapped[int | None] = mapped_column(BigInteger)


class SandboxModel(Base):
    """`env` and `network_policy` are sealed: both may hold credentials. `network_generation` is the newest one of the sandbox and
    its sessions; it never goes back."""

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


class HostCursorModel(Base):
    """The last event of each host that was applied."""

    __tablename__ = "host_cursors"

    host_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger)

"""Tenants, tokens, sandboxes, sessions, and the cursor of host events."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision: str | None = None
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.create_table(
        "host_cursors",
        sa.Column("host_id", sa.String(length=64), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("host_id", name=op.f("pk_host_cursors")),
    )
    op.create_table(
        "teams",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("slug", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_teams")),
        sa.UniqueConstraint("slug", name=op.f("uq_teams_slug")),
    )
    op.create_table(
        "projects",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("team_id", sa.String(length=64), nullable=False),
        sa.Column("slug", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["team_id"], ["teams.id"], name=op.f("fk_projects_team_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_projects")),
        sa.UniqueConstraint("team_id", "slug", name=op.f("uq_projects_team_id_slug")),
    )
    op.create_table(
        "sandboxes",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("team_id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=128).with_variant(sa.String(length=128, collation="C"), "postgresql"), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("status_updated_at", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("current_session_id", sa.String(length=64), nullable=False),
        sa.Column(
            "current_snapshot_id",
            sa.String(length=64).with_variant(sa.String(length=64, collation="C"), "postgresql"),
            nullable=True,
        ),
        sa.Column("image", sa.String(length=512), nullable=False),
        sa.Column("runtime", sa.String(length=32), nullable=False),
        sa.Column("region", sa.String(length=32), nullable=False),
        sa.Column("failover_regions", sa.JSON(), nullable=False),
        sa.Column("cwd", sa.Text(), nullable=False),
        sa.Column("timeout_ms", sa.BigInteger(), nullable=False),
        sa.Column("vcpus", sa.Integer(), nullable=False),
        sa.Column("memory_mb", sa.Integer(), nullable=False),
        sa.Column("disk_bytes", sa.BigInteger(), nullable=True),
        sa.Column("persistent", sa.Boolean(), nullable=False),
        sa.Column("env", sa.LargeBinary(), nullable=False),
        sa.Column("tags", sa.JSON(), nullable=False),
        sa.Column("routes", sa.JSON(), nullable=False),
        sa.Column("network_policy", sa.LargeBinary(), nullable=True),
        sa.Column("snapshot_expiration_ms", sa.BigInteger(), nullable=True),
        sa.Column("keep_last_snapshots", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("total_active_cpu_us", sa.BigInteger(), nullable=False),
        sa.Column("total_duration_ms", sa.BigInteger(), nullable=False),
        sa.Column("total_ingress_bytes", sa.BigInteger(), nullable=False),
        sa.Column("total_egress_bytes", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_sandboxes_project_id")),
        sa.ForeignKeyConstraint(["team_id"], ["teams.id"], name=op.f("fk_sandboxes_team_id")),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_sandboxes")),
        sa.UniqueConstraint("id", name=op.f("uq_sandboxes_id")),
        sa.UniqueConstraint("project_id", "name", name=op.f("uq_sandboxes_project_id_name")),
    )
    op.create_index("ix_sandboxes_created", "sandboxes", ["project_id", "created_at", "number"], unique=False)
    op.create_index(op.f("ix_sandboxes_current_session_id"), "sandboxes", ["current_session_id"], unique=False)
    op.create_index("ix_sandboxes_status", "sandboxes", ["project_id", "status_updated_at", "number"], unique=False)
    op.create_index(op.f("ix_sandboxes_team_id"), "sandboxes", ["team_id"], unique=False)
    op.create_table(
        "sessions",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("sandbox_id", sa.String(length=64), nullable=False),
        sa.Column("team_id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("sandbox_name", sa.String(length=128), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("image", sa.String(length=512), nullable=False),
        sa.Column("runtime", sa.String(length=32), nullable=False),
        sa.Column("region", sa.String(length=32), nullable=False),
        sa.Column("cwd", sa.Text(), nullable=False),
        sa.Column("vcpus", sa.Integer(), nullable=False),
        sa.Column("memory_mb", sa.Integer(), nullable=False),
        sa.Column("timeout_ms", sa.BigInteger(), nullable=False),
        sa.Column("requested_at", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=True),
        sa.Column("requested_stop_at", sa.BigInteger(), nullable=True),
        sa.Column("stopped_at", sa.BigInteger(), nullable=True),
        sa.Column("aborted_at", sa.BigInteger(), nullable=True),
        sa.Column("snapshotted_at", sa.BigInteger(), nullable=True),
        sa.Column("deleted_at", sa.BigInteger(), nullable=True),
        sa.Column("source_snapshot_id", sa.String(length=64), nullable=True),
        sa.Column("network_policy", sa.LargeBinary(), nullable=True),
        sa.Column("active_cpu_us", sa.BigInteger(), nullable=True),
        sa.Column("ingress_bytes", sa.BigInteger(), nullable=True),
        sa.Column("egress_bytes", sa.BigInteger(), nullable=True),
        sa.Column("stop_reason", sa.Text(), nullable=True),
        sa.Column("cgroup", sa.Text(), nullable=False),
        sa.Column("isolation", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_sessions_project_id")),
        sa.ForeignKeyConstraint(["team_id"], ["teams.id"], name=op.f("fk_sessions_team_id")),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_sessions")),
        sa.UniqueConstraint("id", name=op.f("uq_sessions_id")),
    )
    op.create_index("ix_sessions_created", "sessions", ["project_id", "created_at", "number"], unique=False)
    op.create_index(op.f("ix_sessions_sandbox_id"), "sessions", ["sandbox_id"], unique=False)
    op.create_index(op.f("ix_sessions_status"), "sessions", ["status"], unique=False)
    op.create_table(
        "tokens",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("team_id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=True),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_tokens_project_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["team_id"], ["teams.id"], name=op.f("fk_tokens_team_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tokens")),
    )
    op.create_index(op.f("ix_tokens_team_id"), "tokens", ["team_id"], unique=False)
    op.create_table(
        "sandbox_tags",
        sa.Column("sandbox_id", sa.String(length=64), nullable=False),
        sa.Column("key", sa.String(length=256), nullable=False),
        sa.Column("value", sa.String(length=256), nullable=False),
        sa.ForeignKeyConstraint(["sandbox_id"], ["sandboxes.id"], name=op.f("fk_sandbox_tags_sandbox_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("sandbox_id", "key", name=op.f("pk_sandbox_tags")),
    )
    op.create_index("ix_sandbox_tags_pair", "sandbox_tags", ["key", "value"], unique=False)


def downgrade() -> None:
    op.drop_index("ix_sandbox_tags_pair", table_name="sandbox_tags")
    op.drop_table("sandbox_tags")
    op.drop_index(op.f("ix_tokens_team_id"), table_name="tokens")
    op.drop_table("tokens")
    op.drop_index(op.f("ix_sessions_status"), table_name="sessions")
    op.drop_index(op.f("ix_sessions_sandbox_id"), table_name="sessions")
    op.drop_index("ix_sessions_created", table_name="sessions")
    op.drop_table("sessions")
    op.drop_index(op.f("ix_sandboxes_team_id"), table_name="sandboxes")
    op.drop_index("ix_sandboxes_status", table_name="sandboxes")
    op.drop_index(op.f("ix_sandboxes_current_session_id"), table_name="sandboxes")
    op.drop_index("ix_sandboxes_created", table_name="sandboxes")
    op.drop_table("sandboxes")
    op.drop_table("projects")
    op.drop_table("teams")
    op.drop_table("host_cursors")

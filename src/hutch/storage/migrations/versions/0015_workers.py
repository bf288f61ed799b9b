"""Workers: their secrets, deployments and runs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision: str | None = "0014"
branch_labels: str | None = None
depends_on: str | None = None

NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _owner() -> list[sa.Column[str]]:
    return [sa.Column(name, sa.String(64), nullable=False) for name in ("team_id", "project_id")]


def _of_worker(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(["worker_id"], ["workers.id"], name=f"fk_{table}_worker_id_workers", ondelete="CASCADE")


def upgrade() -> None:
    for table in ("sandboxes", "sessions", "usage_windows"):
        op.add_column(table, sa.Column("worker_id", sa.String(36), nullable=True))
    op.create_index("ix_sandboxes_worker_id", "sandboxes", ["worker_id"])
    op.create_table(
        "workers",
        sa.Column("number", NUMBER, nullable=False, autoincrement=True),
        sa.Column("id", sa.String(36), nullable=False),
        *_owner(),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("deployment_id", sa.String(36), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_workers"),
        sa.UniqueConstraint("id", name="uq_workers_id"),
        sa.ForeignKeyConstraint(["team_id"], ["teams.id"], name="fk_workers_team_id_teams"),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_workers_project_id_projects"),
    )
    op.create_index("ix_workers_project", "workers", ["team_id", "project_id", "number"])
    op.create_table(
        "worker_secrets",
        sa.Column("worker_id", sa.String(36), nullable=False),
        sa.Column("key", sa.String(256).with_variant(sa.String(256, collation="C"), "postgresql"), nullable=False),
        *_owner(),
        sa.Column("value", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("worker_id", "key", name="pk_worker_secrets"),
        _of_worker("worker_secrets"),
    )
    op.create_table(
        "worker_deployments",
        sa.Column("number", NUMBER, nullable=False, autoincrement=True),
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("worker_id", sa.String(36), nullable=False),
        *_owner(),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("upload_hash", sa.String(64), nullable=False),
        sa.Column("snapshot_id", sa.String(64), nullable=True),
        sa.Column("manifest", sa.LargeBinary(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_worker_deployments"),
        sa.UniqueConstraint("id", name="uq_worker_deployments_id"),
        _of_worker("worker_deployments"),
    )
    op.create_index("ix_worker_deployments_worker_id", "worker_deployments", ["worker_id"])
    op.create_table(
        "worker_runs",
        sa.Column("number", NUMBER, nullable=False, autoincrement=True),
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("worker_id", sa.String(36), nullable=False),
        *_owner(),
        sa.Column("deployment_id", sa.String(36), nullable=False),
        sa.Column("session_id", sa.String(64), nullable=True),
        sa.Column("name", sa.String(300), nullable=False),
        sa.Column("exit_code", sa.Integer(), nullable=True),
        sa.Column("result", sa.LargeBinary(), nullable=True),
        sa.Column("logs", sa.LargeBinary(), nullable=True),
        sa.Column("started_at", sa.BigInteger(), nullable=False),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("number", name="pk_worker_runs"),
        sa.UniqueConstraint("id", name="uq_worker_runs_id"),
        _of_worker("worker_runs"),
    )
    op.create_index("ix_worker_runs_worker", "worker_runs", ["worker_id", "number"])


def downgrade() -> None:
    for table in ("worker_runs", "worker_deployments", "worker_secrets", "workers"):
        op.drop_table(table)
    op.drop_index("ix_sandboxes_worker_id", "sandboxes")
    for table in ("sandboxes", "sessions", "usage_windows"):
        op.drop_column(table, "worker_id")

"""Layers of installed dependencies; who builds and runs what; runs that are forgotten."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision: str | None = "0018"
branch_labels: str | None = None
depends_on: str | None = None

OWNED = ("worker_deployments", "worker_runs")


def upgrade() -> None:
    op.create_table(
        "worker_layers",
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("team_id", sa.String(64), nullable=False),
        sa.Column("snapshot_id", sa.String(64), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("used_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("project_id", "key", name="pk_worker_layers"),
    )
    op.create_table(
        "api_processes",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("seen_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_api_processes"),
    )
    for table in OWNED:
        op.add_column(table, sa.Column("owner", sa.String(64), nullable=True))
    op.create_index("ix_worker_runs_ended", "worker_runs", ["ended_at"])


def downgrade() -> None:
    op.drop_index("ix_worker_runs_ended", "worker_runs")
    for table in OWNED:
        op.drop_column(table, "owner")
    op.drop_table("api_processes")
    op.drop_table("worker_layers")

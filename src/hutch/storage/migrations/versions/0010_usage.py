"""Usage windows of hosts, and budgets."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision: str | None = "0009"
branch_labels: str | None = None
depends_on: str | None = None

QUANTITIES = (
    "active_cpu_us",
    "startup_cpu_us",
    "wall_us",
    "memory_byte_seconds",
    "memory_peak_bytes",
    "ingress_bytes",
    "egress_bytes",
    "creations",
)


def upgrade() -> None:
    op.create_table(
        "usage_windows",
        sa.Column("session_id", sa.String(64), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("team_id", sa.String(64), nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("sandbox_id", sa.String(64), nullable=False),
        sa.Column("sandbox_name", sa.String(128), nullable=False),
        sa.Column("from_ms", sa.BigInteger(), nullable=False),
        sa.Column("to_ms", sa.BigInteger(), nullable=False),
        sa.Column("final", sa.Boolean(), nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in QUANTITIES),
        sa.PrimaryKeyConstraint("session_id", "number", name="pk_usage_windows"),
    )
    op.create_index("ix_usage_windows_sandbox_id", "usage_windows", ["sandbox_id"])
    op.create_index("ix_usage_windows_time", "usage_windows", ["team_id", "project_id", "from_ms"])
    op.create_table(
        "budgets",
        sa.Column("key", sa.String(80), nullable=False),
        sa.Column("period", sa.String(8), nullable=False),
        sa.Column("team_id", sa.String(64), nullable=False),
        sa.Column("limits", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["team_id"], ["teams.id"], name="fk_budgets_team_id_teams", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("key", "period", name="pk_budgets"),
    )
    op.create_index("ix_budgets_team_id", "budgets", ["team_id"])
    op.add_column("sandboxes", sa.Column("budget", sa.JSON(none_as_null=True), nullable=True))


def downgrade() -> None:
    op.drop_column("sandboxes", "budget")
    op.drop_table("budgets")
    op.drop_table("usage_windows")

"""Thresholds and webhooks of budgets, and the events that tell of them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision: str | None = "0012"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column("budgets", sa.Column("notify_at", sa.JSON(), nullable=False, server_default="[]"))
    op.add_column("budgets", sa.Column("soft", sa.JSON(), nullable=False, server_default="{}"))
    op.add_column("budgets", sa.Column("set_at", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("budgets", sa.Column("webhook", sa.LargeBinary(), nullable=True))
    op.create_table(
        "budget_events",
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("team_id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=True),
        sa.Column("key", sa.String(length=80), nullable=False),
        sa.Column("period", sa.String(length=8), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.Column("due_at", sa.BigInteger(), nullable=True),
        sa.Column("first_sent_at", sa.BigInteger(), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("delivered_at", sa.BigInteger(), nullable=True),
        sa.Column("failure", sa.String(length=200), nullable=True),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_budget_events")),
        sa.UniqueConstraint("id", name=op.f("uq_budget_events_id")),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_budget_events_owner", "budget_events", ["team_id", "project_id", "seq"])
    op.create_index(op.f("ix_budget_events_due_at"), "budget_events", ["due_at"])


def downgrade() -> None:
    op.drop_table("budget_events")
    for column in ("webhook", "set_at", "soft", "notify_at"):
        op.drop_column("budgets", column)

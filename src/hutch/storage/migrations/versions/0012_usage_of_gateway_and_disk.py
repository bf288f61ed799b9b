"""What the gateway spent on sandboxes, what their disks held, and what passed under each rule."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision: str | None = "0011"
branch_labels: str | None = None
depends_on: str | None = None

QUANTITIES = ("gateway_cpu_us", "disk_byte_seconds", "disk_peak_bytes")


def upgrade() -> None:
    for name in QUANTITIES:
        op.add_column("usage_windows", sa.Column(name, sa.BigInteger(), nullable=False, server_default="0"))
    op.create_table(
        "usage_network",
        sa.Column("session_id", sa.String(64), nullable=False),
        sa.Column("rule", sa.String(32), nullable=False),
        sa.Column("team_id", sa.String(64), nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("sandbox_id", sa.String(64), nullable=False),
        sa.Column("sent_bytes", sa.BigInteger(), nullable=False),
        sa.Column("received_bytes", sa.BigInteger(), nullable=False),
        sa.Column("connections", sa.BigInteger(), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("session_id", "rule", name="pk_usage_network"),
    )
    op.create_index("ix_usage_network_sandbox_id", "usage_network", ["sandbox_id"])


def downgrade() -> None:
    op.drop_table("usage_network")
    for name in QUANTITIES:
        op.drop_column("usage_windows", name)

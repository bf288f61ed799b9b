"""Snapshots with memory."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision: str | None = "0004"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column("snapshots", sa.Column("memory_bytes", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("snapshots", sa.Column("vcpus", sa.Integer(), nullable=False, server_default="0"))


def downgrade() -> None:
    op.drop_column("snapshots", "vcpus")
    op.drop_column("snapshots", "memory_bytes")

"""Copies of snapshots in a blob store, and what a snapshot holds without its image."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision: str | None = "0006"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column("snapshots", sa.Column("layer_bytes", sa.BigInteger(), nullable=True))
    op.add_column("snapshots", sa.Column("stored_at", sa.BigInteger(), nullable=True))
    op.add_column("snapshots", sa.Column("store_error", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("snapshots", "store_error")
    op.drop_column("snapshots", "stored_at")
    op.drop_column("snapshots", "layer_bytes")

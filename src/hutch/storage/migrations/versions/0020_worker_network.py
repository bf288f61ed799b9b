"""Where workers may connect to, and where their runs did."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision: str | None = "0019"
branch_labels: str | None = None
depends_on: str | None = None

COLUMNS = (
    ("workers", "network"),
    ("worker_deployments", "network"),
    ("worker_deployments", "network_confirmed"),
    ("worker_runs", "network"),
    ("projects", "review_workers"),
)


def upgrade() -> None:
    op.add_column("workers", sa.Column("network", sa.Text(), nullable=True))
    op.add_column("worker_deployments", sa.Column("network", sa.Text(), nullable=True))
    op.add_column("worker_deployments", sa.Column("network_confirmed", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("worker_runs", sa.Column("network", sa.LargeBinary(), nullable=True))
    op.add_column("projects", sa.Column("review_workers", sa.Boolean(), nullable=False, server_default=sa.false()))


def downgrade() -> None:
    for table, column in COLUMNS:
        op.drop_column(table, column)

"""What deployments of workers are written in."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0023"
down_revision: str | None = "0022"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column("worker_deployments", sa.Column("language", sa.String(16), nullable=False, server_default="node"))


def downgrade() -> None:
    op.drop_column("worker_deployments", "language")

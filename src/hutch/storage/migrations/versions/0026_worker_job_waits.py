"""How often a job of a worker was put back since its last attempt. `fence` grows for other reasons too."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0026"
down_revision: str | None = "0025"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column("worker_jobs", sa.Column("waits", sa.Integer(), nullable=False, server_default="0"))


def downgrade() -> None:
    op.drop_column("worker_jobs", "waits")

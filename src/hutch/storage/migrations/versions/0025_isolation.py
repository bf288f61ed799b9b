"""The backend that a sandbox asked for."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0025"
down_revision: str | None = "0024"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column("sandboxes", sa.Column("isolation", sa.String(16), nullable=True))


def downgrade() -> None:
    op.drop_column("sandboxes", "isolation")

"""Logins of `ntn`, which somebody with a token may confirm."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision: str | None = "0023"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column("logins", sa.Column("token_id", sa.String(length=64), nullable=True))


def downgrade() -> None:
    op.drop_column("logins", "token_id")

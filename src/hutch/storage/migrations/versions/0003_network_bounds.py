"""Network policies of teams and projects, which bound those of their sandboxes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision: str | None = "0002"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column("teams", sa.Column("network_policy", sa.Text(), nullable=True))
    op.add_column("projects", sa.Column("network_policy", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("projects", "network_policy")
    op.drop_column("teams", "network_policy")

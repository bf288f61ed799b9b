"""Private ports, and sandboxes that a request resumes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision: str | None = "0007"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column("projects", sa.Column("ports_private", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("sandboxes", sa.Column("ports_private", sa.Boolean(), nullable=True))
    op.add_column("sandboxes", sa.Column("wake_on_request", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("sandboxes", sa.Column("link_epoch", sa.BigInteger(), nullable=False, server_default="0"))


def downgrade() -> None:
    op.drop_column("sandboxes", "link_epoch")
    op.drop_column("sandboxes", "wake_on_request")
    op.drop_column("sandboxes", "ports_private")
    op.drop_column("projects", "ports_private")

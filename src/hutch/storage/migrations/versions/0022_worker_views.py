"""Views of workers' databases."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision: str | None = "0019"
branch_labels: str | None = None
depends_on: str | None = None

KEY = sa.String(256).with_variant(sa.String(256, collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "worker_views",
        sa.Column("worker_id", sa.String(36), nullable=False),
        sa.Column("database", KEY, nullable=False),
        sa.Column("name", KEY, nullable=False),
        sa.Column("team_id", sa.String(64), nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("definition", sa.JSON(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("worker_id", "database", "name", name="pk_worker_views"),
        sa.ForeignKeyConstraint(["worker_id"], ["workers.id"], name="fk_worker_views_worker_id_workers", ondelete="CASCADE"),
    )


def downgrade() -> None:
    op.drop_table("worker_views")

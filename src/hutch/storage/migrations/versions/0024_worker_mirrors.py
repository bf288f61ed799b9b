"""Databases of workers that are mirrored into Notion, and the pages of their rows."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0024"
down_revision: str | None = "0023"
branch_labels: str | None = None
depends_on: str | None = None

KEY = sa.String(256).with_variant(sa.String(256, collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "worker_mirrors",
        sa.Column("worker_id", sa.String(36), nullable=False),
        sa.Column("database", KEY, nullable=False),
        sa.Column("team_id", sa.String(64), nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("token", sa.LargeBinary(), nullable=False),
        sa.Column("base_url", sa.Text(), nullable=False),
        sa.Column("parent", sa.JSON(), nullable=False),
        sa.Column("database_id", sa.String(64), nullable=True),
        sa.Column("data_source_id", sa.String(64), nullable=False),
        sa.Column("seen", sa.Text(), nullable=False),
        sa.Column("warnings", sa.JSON(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("stopped", sa.Boolean(), nullable=False),
        sa.Column("last_success_at", sa.BigInteger(), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("due_at", sa.BigInteger(), nullable=False),
        sa.Column("leased_until", sa.BigInteger(), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("worker_id", "database", name="pk_worker_mirrors"),
        sa.ForeignKeyConstraint(["worker_id"], ["workers.id"], name="fk_worker_mirrors_worker_id_workers", ondelete="CASCADE"),
    )
    op.create_table(
        "worker_mirror_pages",
        sa.Column("worker_id", sa.String(36), nullable=False),
        sa.Column("database", KEY, nullable=False),
        sa.Column("key_digest", sa.String(64), nullable=False),
        sa.Column("team_id", sa.String(64), nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("page_id", sa.String(64), nullable=True),
        sa.Column("digest", sa.String(64), nullable=True),
        sa.Column("row_at", sa.BigInteger(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("worker_id", "database", "key_digest", name="pk_worker_mirror_pages"),
        sa.ForeignKeyConstraint(
            ["worker_id"], ["workers.id"], name="fk_worker_mirror_pages_worker_id_workers", ondelete="CASCADE"
        ),
    )


def downgrade() -> None:
    op.drop_table("worker_mirror_pages")
    op.drop_table("worker_mirrors")

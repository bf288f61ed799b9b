"""Workers' tools that are switched off, or ask a person first; their logins with others."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision: str | None = "0017"
branch_labels: str | None = None
depends_on: str | None = None

TABLES = ("worker_tools", "worker_oauth_logins", "worker_oauth_tokens")
KEY = sa.String(256).with_variant(sa.String(256, collation="C"), "postgresql")


def _of_worker(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(["worker_id"], ["workers.id"], name=f"fk_{table}_worker_id_workers", ondelete="CASCADE")


def upgrade() -> None:
    op.create_table(
        "worker_tools",
        sa.Column("worker_id", sa.String(36), nullable=False),
        sa.Column("key", KEY, nullable=False),
        sa.Column("team_id", sa.String(64), nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("confirm", sa.Boolean(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("worker_id", "key", name="pk_worker_tools"),
        _of_worker("worker_tools"),
    )
    op.create_table(
        "worker_oauth_logins",
        sa.Column("state_hash", sa.String(64), nullable=False),
        sa.Column("worker_id", sa.String(36), nullable=False),
        sa.Column("team_id", sa.String(64), nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("key", KEY, nullable=False),
        sa.Column("verifier", sa.LargeBinary(), nullable=False),
        sa.Column("made_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("state_hash", name="pk_worker_oauth_logins"),
        _of_worker("worker_oauth_logins"),
    )
    op.create_index("ix_worker_oauth_logins_worker_id", "worker_oauth_logins", ["worker_id"])
    op.create_table(
        "worker_oauth_tokens",
        sa.Column("worker_id", sa.String(36), nullable=False),
        sa.Column("name", KEY, nullable=False),
        sa.Column("team_id", sa.String(64), nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("token", sa.LargeBinary(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("worker_id", "name", name="pk_worker_oauth_tokens"),
        _of_worker("worker_oauth_tokens"),
    )


def downgrade() -> None:
    for table in TABLES:
        op.drop_table(table)

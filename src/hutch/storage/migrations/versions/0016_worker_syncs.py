"""Syncs of workers: their state, the databases that they write to, and pacers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision: str | None = "0015"
branch_labels: str | None = None
depends_on: str | None = None

NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _bytewise() -> sa.types.TypeEngine[str]:
    return sa.String(256).with_variant(sa.String(256, collation="C"), "postgresql")


def _owner() -> list[sa.Column[str]]:
    return [sa.Column(name, sa.String(64), nullable=False) for name in ("team_id", "project_id")]


def _worker() -> sa.Column[str]:
    return sa.Column("worker_id", sa.String(36), nullable=False)


def _of_worker(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(["worker_id"], ["workers.id"], name=f"fk_{table}_worker_id_workers", ondelete="CASCADE")


def upgrade() -> None:
    op.add_column("workers", sa.Column("mark", sa.BigInteger(), nullable=False, server_default="0"))
    op.create_table(
        "worker_databases",
        _worker(),
        sa.Column("key", _bytewise(), nullable=False),
        *_owner(),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("declared", sa.Boolean(), nullable=False),
        sa.Column("definition", sa.JSON(), nullable=False),
        sa.Column("options", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("worker_id", "key", name="pk_worker_databases"),
        _of_worker("worker_databases"),
    )
    op.create_table(
        "worker_rows",
        sa.Column("number", NUMBER, nullable=False, autoincrement=True),
        _worker(),
        sa.Column("database", _bytewise(), nullable=False),
        sa.Column("key_digest", sa.String(64), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        *_owner(),
        sa.Column("cells", sa.JSON(), nullable=False),
        sa.Column("icon", sa.JSON(), nullable=True),
        sa.Column("cover", sa.JSON(), nullable=True),
        sa.Column("markdown", sa.Text(), nullable=True),
        sa.Column("upstream_ms", sa.BigInteger(), nullable=True),
        sa.Column("seen", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_worker_rows"),
        sa.UniqueConstraint("worker_id", "database", "key_digest", name="uq_worker_rows_worker_id_database_key_digest"),
        _of_worker("worker_rows"),
    )
    op.create_index("ix_worker_rows_page", "worker_rows", ["worker_id", "database", "number"])
    op.create_table(
        "worker_pairs",
        sa.Column("number", NUMBER, nullable=False, autoincrement=True),
        _worker(),
        sa.Column("database", _bytewise(), nullable=False),
        sa.Column("property", _bytewise(), nullable=False),
        sa.Column("from_digest", sa.String(64), nullable=False),
        sa.Column("to_digest", sa.String(64), nullable=False),
        sa.Column("from_key", sa.Text(), nullable=False),
        sa.Column("to_key", sa.Text(), nullable=False),
        *_owner(),
        sa.PrimaryKeyConstraint("number", name="pk_worker_pairs"),
        sa.UniqueConstraint("worker_id", "database", "property", "from_digest", "to_digest", name="uq_worker_pairs_ends"),
        _of_worker("worker_pairs"),
    )
    op.create_index("ix_worker_pairs_back", "worker_pairs", ["worker_id", "database", "property", "to_digest"])
    op.create_table(
        "worker_syncs",
        _worker(),
        sa.Column("key", _bytewise(), nullable=False),
        *_owner(),
        sa.Column("declared", sa.Boolean(), nullable=False),
        sa.Column("state", sa.LargeBinary(), nullable=False),
        sa.Column("due_at", sa.BigInteger(), nullable=True),
        sa.Column("leased_until", sa.BigInteger(), nullable=True),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("worker_id", "key", name="pk_worker_syncs"),
        _of_worker("worker_syncs"),
    )
    op.create_index("ix_worker_syncs_due", "worker_syncs", ["due_at"])
    op.create_table(
        "worker_pacers",
        _worker(),
        sa.Column("key", _bytewise(), nullable=False),
        *_owner(),
        sa.Column("last_ms", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("worker_id", "key", name="pk_worker_pacers"),
        _of_worker("worker_pacers"),
    )


def downgrade() -> None:
    for table in ("worker_pacers", "worker_syncs", "worker_pairs", "worker_rows", "worker_databases"):
        op.drop_table(table)
    op.drop_column("workers", "mark")

"""Workers: a queue of deliveries and triggers, webhooks with their addresses, buttons, and more about runs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision: str | None = "0016"
branch_labels: str | None = None
depends_on: str | None = None

NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
OF_RUNS = ("job_id", "input", "queued_at", "program_at")


def _text(length: int) -> sa.types.TypeEngine[str]:
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")


def _of_worker(table: str) -> tuple[sa.Column[str], sa.Column[str], sa.Column[str], sa.ForeignKeyConstraint]:
    return (
        sa.Column("worker_id", sa.String(36), nullable=False),
        sa.Column("team_id", sa.String(64), nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.ForeignKeyConstraint(["worker_id"], ["workers.id"], name=f"fk_{table}_worker_id_workers", ondelete="CASCADE"),
    )


def upgrade() -> None:
    op.create_table(
        "worker_jobs",
        sa.Column("number", NUMBER, nullable=False, autoincrement=True),
        sa.Column("id", sa.String(36), nullable=False),
        *_of_worker("worker_jobs"),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("key", _text(256), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("idempotency_key", _text(128), nullable=True),
        sa.Column("input", sa.LargeBinary(), nullable=False),
        sa.Column("input_hash", sa.String(64), nullable=False),
        sa.Column("result", sa.LargeBinary(), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("retries", sa.Integer(), nullable=False),
        sa.Column("not_before", sa.BigInteger(), nullable=False),
        sa.Column("lease_owner", sa.String(64), nullable=True),
        sa.Column("lease_until", sa.BigInteger(), nullable=True),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("began", sa.Boolean(), nullable=False),
        sa.Column("run_id", sa.String(36), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("number", name="pk_worker_jobs"),
        sa.UniqueConstraint("id", name="uq_worker_jobs_id"),
        sa.UniqueConstraint("worker_id", "idempotency_key", name="uq_worker_jobs_worker_id_idempotency_key"),
    )
    op.create_index("ix_worker_jobs_due", "worker_jobs", ["status", "project_id", "not_before"])
    op.create_index("ix_worker_jobs_worker", "worker_jobs", ["worker_id", "number"])
    op.create_table(
        "worker_webhooks",
        *_of_worker("worker_webhooks"),
        sa.Column("key", _text(256), nullable=False),
        sa.Column("address", sa.String(32), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("verifies", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("worker_id", "key", name="pk_worker_webhooks"),
    )
    op.create_table(
        "worker_buttons",
        sa.Column("id", sa.String(36), nullable=False),
        *_of_worker("worker_buttons"),
        sa.Column("key", _text(256), nullable=False),
        sa.Column("secret_hash", sa.String(64), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_worker_buttons"),
        sa.UniqueConstraint("secret_hash", name="uq_worker_buttons_secret_hash"),
    )
    op.create_index("ix_worker_buttons_worker_id", "worker_buttons", ["worker_id"])
    with op.batch_alter_table("worker_runs") as runs:
        runs.add_column(sa.Column("job_id", sa.String(36), nullable=True))
        runs.add_column(sa.Column("input", sa.LargeBinary(), nullable=True))
        runs.add_column(sa.Column("queued_at", sa.BigInteger(), nullable=True))
        runs.add_column(sa.Column("program_at", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("worker_runs") as runs:
        for name in OF_RUNS:
            runs.drop_column(name)
    for table in ("worker_buttons", "worker_webhooks", "worker_jobs"):
        op.drop_table(table)

"""Logins by a provider, and what they say of members."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision: str | None = "0013"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column("members", sa.Column("email", sa.String(length=320), nullable=False, server_default=""))
    op.add_column("members", sa.Column("by_provider", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("members", sa.Column("last_login_at", sa.BigInteger(), nullable=True))
    op.add_column("members", sa.Column("disabled_at", sa.BigInteger(), nullable=True))
    op.create_table(
        "logins",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("challenge", sa.String(length=64), nullable=False),
        sa.Column("address", sa.String(length=64), nullable=False),
        sa.Column("port", sa.Integer(), nullable=True),
        sa.Column("client_state", sa.String(length=128), nullable=True),
        sa.Column("team", sa.String(length=64), nullable=True),
        sa.Column("project", sa.String(length=64), nullable=True),
        sa.Column("user_code", sa.String(length=16), nullable=True),
        sa.Column("code_hash", sa.String(length=64), nullable=True),
        sa.Column("browser_hash", sa.String(length=64), nullable=True),
        sa.Column("returned_at", sa.BigInteger(), nullable=True),
        sa.Column("identity", sa.String(length=320), nullable=True),
        sa.Column("decided_at", sa.BigInteger(), nullable=True),
        sa.Column("member_id", sa.String(length=64), nullable=True),
        sa.ForeignKeyConstraint(["member_id"], ["members.id"], name=op.f("fk_logins_member_id_members"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_logins")),
        sa.UniqueConstraint("user_code", name=op.f("uq_logins_user_code")),
        sa.UniqueConstraint("code_hash", name=op.f("uq_logins_code_hash")),
        sa.UniqueConstraint("browser_hash", name=op.f("uq_logins_browser_hash")),
    )
    op.create_index(op.f("ix_logins_expires_at"), "logins", ["expires_at"])


def downgrade() -> None:
    op.drop_table("logins")
    for column in ("disabled_at", "last_login_at", "by_provider", "email"):
        op.drop_column("members", column)

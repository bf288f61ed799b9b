"""Members, what tokens may do and were used for, and the audit log of teams."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision: str | None = "0010"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column("teams", sa.Column("audit_seq", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("teams", sa.Column("audit_hash", sa.String(length=64), nullable=False, server_default=""))
    op.add_column("teams", sa.Column("deleting_at", sa.BigInteger(), nullable=True))
    op.add_column("projects", sa.Column("deleting_at", sa.BigInteger(), nullable=True))
    op.add_column("tokens", sa.Column("member_id", sa.String(length=64), nullable=True))
    op.add_column("tokens", sa.Column("scopes", sa.JSON(none_as_null=True), nullable=True))
    op.add_column("tokens", sa.Column("last_used_at", sa.BigInteger(), nullable=True))
    op.add_column("tokens", sa.Column("last_used_address", sa.String(length=64), nullable=True))
    op.add_column("tokens", sa.Column("use_count", sa.BigInteger(), nullable=False, server_default="0"))
    op.create_index(op.f("ix_tokens_member_id"), "tokens", ["member_id"])
    op.create_table(
        "members",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("team_id", sa.String(length=64), nullable=False),
        sa.Column("identity", sa.String(length=320), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["team_id"], ["teams.id"], name=op.f("fk_members_team_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_members")),
        sa.UniqueConstraint("team_id", "identity", name=op.f("uq_members_team_id_identity")),
    )
    op.create_table(
        "audit_log",
        sa.Column("team_id", sa.String(length=64), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("token_id", sa.String(length=64), nullable=False),
        sa.Column("member_id", sa.String(length=64), nullable=False),
        sa.Column("address", sa.String(length=64), nullable=False),
        sa.Column("action", sa.String(length=64), nullable=False),
        sa.Column("subject", sa.String(length=128), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.Column("previous", sa.String(length=64), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(["team_id"], ["teams.id"], name=op.f("fk_audit_log_team_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("team_id", "seq", name=op.f("pk_audit_log")),
    )


def downgrade() -> None:
    op.drop_table("audit_log")
    op.drop_table("members")
    op.drop_index(op.f("ix_tokens_member_id"), "tokens")
    for column in ("use_count", "last_used_address", "last_used_at", "scopes", "member_id"):
        op.drop_column("tokens", column)
    op.drop_column("projects", "deleting_at")
    for column in ("deleting_at", "audit_hash", "audit_seq"):
        op.drop_column("teams", column)

"""Drives, and what is mounted in sandboxes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision: str | None = "0005"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    bytewise = sa.String(length=64).with_variant(sa.String(length=64, collation="C"), "postgresql")
    op.create_table(
        "drives",
        sa.Column("number", number, nullable=False),
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("team_id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("name", bytewise, nullable=False),
        sa.Column("region", sa.String(length=32), nullable=False),
        sa.Column("max_size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("parent_drive_id", sa.String(length=64), nullable=True),
        sa.Column("root_drive_id", sa.String(length=64), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("made_at", sa.BigInteger(), nullable=True),
        sa.Column("deleting_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["team_id"], ["teams.id"], name=op.f("fk_drives_team_id")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_drives_project_id")),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_drives")),
        sa.UniqueConstraint("id", name=op.f("uq_drives_id")),
        sa.UniqueConstraint("project_id", "name", name=op.f("uq_drives_project_id_name")),
    )
    op.create_index("ix_drives_created", "drives", ["project_id", "created_at", "number"])
    op.create_index(op.f("ix_drives_team_id"), "drives", ["team_id"])
    op.add_column("sandboxes", sa.Column("mounts", sa.JSON(none_as_null=True), nullable=True))
    op.add_column("sessions", sa.Column("mounts", sa.JSON(none_as_null=True), nullable=True))


def downgrade() -> None:
    op.drop_column("sessions", "mounts")
    op.drop_column("sandboxes", "mounts")
    op.drop_table("drives")

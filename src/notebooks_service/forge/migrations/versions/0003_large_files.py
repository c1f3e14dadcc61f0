"""Large files (Git LFS): objects, links to projects, locks"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "lfs_objects",
        sa.Column("oid", sa.String(), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("touched_at", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("oid", name=op.f("pk_lfs_objects")),
    )
    with op.batch_alter_table("lfs_objects", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_lfs_objects_touched_at"), ["touched_at"], unique=False)
    op.create_table(
        "lfs_links",
        sa.Column("project_id", sa.Integer(), nullable=False),
        sa.Column("oid", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["project_id"],
            ["projects.id"],
            name=op.f("fk_lfs_links_project_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(["oid"], ["lfs_objects.oid"], name=op.f("fk_lfs_links_oid")),
        sa.PrimaryKeyConstraint("project_id", "oid", name=op.f("pk_lfs_links")),
    )
    with op.batch_alter_table("lfs_links", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_lfs_links_oid"), ["oid"], unique=False)
    op.create_table(
        "lfs_locks",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("project_id", sa.Integer(), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("path", sa.String(), nullable=False),
        sa.Column("locked_at", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["project_id"],
            ["projects.id"],
            name=op.f("fk_lfs_locks_project_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_lfs_locks_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_lfs_locks")),
        sa.UniqueConstraint("project_id", "path", name=op.f("uq_lfs_locks_project_id")),
        sqlite_autoincrement=True,
    )

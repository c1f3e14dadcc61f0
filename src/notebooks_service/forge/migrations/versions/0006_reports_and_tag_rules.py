"""Variables that jobs report, rules for tags of images"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("ci_jobs", sa.Column("dotenv", sa.JSON(), nullable=False, server_default="{}"))
    op.create_table(
        "registry_tag_rules",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("project_id", sa.Integer(), nullable=False),
        sa.Column("pattern", sa.String(), nullable=False),
        sa.Column("push_level", sa.String(), nullable=False),
        sa.Column("delete_level", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["project_id"],
            ["projects.id"],
            name=op.f("fk_registry_tag_rules_project_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_registry_tag_rules")),
        sa.UniqueConstraint("project_id", "pattern", name=op.f("uq_registry_tag_rules_project_id")),
        sqlite_autoincrement=True,
    )

"""Protected refs, earlier paths, deploy tokens, job tokens' access, group variables, artifacts"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "protected_refs",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("project_id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("push_level", sa.Integer(), nullable=False),
        sa.Column("merge_level", sa.Integer(), nullable=False),
        sa.Column("allow_force_push", sa.Boolean(), nullable=False),
        sa.CheckConstraint("kind IN ('heads', 'tags')", name=op.f("ck_protected_refs_kind")),
        sa.ForeignKeyConstraint(
            ["project_id"],
            ["projects.id"],
            name=op.f("fk_protected_refs_project_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_protected_refs")),
        sa.UniqueConstraint(
            "project_id", "kind", "name", name=op.f("uq_protected_refs_project_id")
        ),
        sqlite_autoincrement=True,
    )
    # Until now every default branch was protected without a row that said so.
    op.execute(
        "INSERT INTO protected_refs "
        "(project_id, kind, name, push_level, merge_level, allow_force_push) "
        "SELECT id, 'heads', default_branch, 40, 40, 0 FROM projects"
    )
    op.create_table(
        "project_redirects",
        sa.Column("path", sa.String(collation="NOCASE"), nullable=False),
        sa.Column("project_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["project_id"],
            ["projects.id"],
            name=op.f("fk_project_redirects_project_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("path", name=op.f("pk_project_redirects")),
    )
    op.create_index(op.f("ix_project_redirects_project_id"), "project_redirects", ["project_id"])
    op.create_table(
        "deploy_tokens",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("project_id", sa.Integer(), nullable=True),
        sa.Column("namespace_id", sa.Integer(), nullable=True),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("username", sa.String(), nullable=False),
        sa.Column("token_hash", sa.String(), nullable=False),
        sa.Column("scopes", sa.String(), nullable=False),
        sa.Column("expires_at", sa.DateTime(), nullable=True),
        sa.Column("revoked", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.CheckConstraint(
            "(namespace_id IS NULL) <> (project_id IS NULL)",
            name=op.f("ck_deploy_tokens_one_source"),
        ),
        sa.ForeignKeyConstraint(
            ["namespace_id"],
            ["namespaces.id"],
            name=op.f("fk_deploy_tokens_namespace_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["project_id"],
            ["projects.id"],
            name=op.f("fk_deploy_tokens_project_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deploy_tokens")),
        sa.UniqueConstraint("token_hash", name=op.f("uq_deploy_tokens_token_hash")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_deploy_tokens_project_id"), "deploy_tokens", ["project_id"])
    op.create_index(op.f("ix_deploy_tokens_namespace_id"), "deploy_tokens", ["namespace_id"])
    op.create_table(
        "ci_job_token_access",
        sa.Column("project_id", sa.Integer(), nullable=False),
        sa.Column("source_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["project_id"],
            ["projects.id"],
            name=op.f("fk_ci_job_token_access_project_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["source_id"],
            ["projects.id"],
            name=op.f("fk_ci_job_token_access_source_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("project_id", "source_id", name=op.f("pk_ci_job_token_access")),
    )
    op.create_index(op.f("ix_ci_job_token_access_source_id"), "ci_job_token_access", ["source_id"])
    for name in ("keep_latest_artifact", "job_token_scope_enabled"):
        op.add_column(
            "projects", sa.Column(name, sa.Boolean(), nullable=False, server_default=sa.true())
        )
    _variables()
    _artifacts()


def _variables() -> None:
    with op.batch_alter_table(
        "ci_variables", table_kwargs={"sqlite_autoincrement": True}
    ) as batch_op:
        batch_op.add_column(
            sa.Column("hidden", sa.Boolean(), nullable=False, server_default=sa.false())
        )
        batch_op.add_column(
            sa.Column("environment_scope", sa.String(), nullable=False, server_default="*")
        )
        batch_op.drop_constraint("uq_ci_variables_project_id", type_="unique")
        batch_op.create_unique_constraint(
            "uq_ci_variables_project_id", ["project_id", "key", "environment_scope"]
        )
    op.create_table(
        "ci_group_variables",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("namespace_id", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("value", sa.String(), nullable=False),
        sa.Column("variable_type", sa.String(), nullable=False),
        sa.Column("protected", sa.Boolean(), nullable=False),
        sa.Column("masked", sa.Boolean(), nullable=False),
        sa.Column("raw", sa.Boolean(), nullable=False),
        sa.Column("description", sa.String(), nullable=True),
        sa.Column("hidden", sa.Boolean(), nullable=False),
        sa.Column("environment_scope", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["namespace_id"],
            ["namespaces.id"],
            name=op.f("fk_ci_group_variables_namespace_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ci_group_variables")),
        sa.UniqueConstraint(
            "namespace_id",
            "key",
            "environment_scope",
            name=op.f("uq_ci_group_variables_namespace_id"),
        ),
        sqlite_autoincrement=True,
    )


def _artifacts() -> None:
    op.create_table(
        "ci_artifacts",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("job_id", sa.Integer(), nullable=False),
        sa.Column("project_id", sa.Integer(), nullable=False),
        sa.Column("file_type", sa.String(), nullable=False),
        sa.Column("file_format", sa.String(), nullable=False),
        sa.Column("filename", sa.String(), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("expires_at", sa.DateTime(), nullable=True),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"], ["ci_jobs.id"], name=op.f("fk_ci_artifacts_job_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["project_id"],
            ["projects.id"],
            name=op.f("fk_ci_artifacts_project_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ci_artifacts")),
        sa.UniqueConstraint("job_id", "file_type", name=op.f("uq_ci_artifacts_job_id")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_ci_artifacts_project_id"), "ci_artifacts", ["project_id"])
    op.create_index(op.f("ix_ci_artifacts_expires_at"), "ci_artifacts", ["expires_at"])

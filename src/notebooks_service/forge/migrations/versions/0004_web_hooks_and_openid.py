"""Webhooks, their queue and their log; what an ID token says of a sign-in"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "web_hooks",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("project_id", sa.Integer(), nullable=True),
        sa.Column("namespace_id", sa.Integer(), nullable=True),
        sa.Column("url", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=True),
        sa.Column("description", sa.String(), nullable=True),
        sa.Column("token", sa.String(), nullable=True),
        sa.Column("events", sa.JSON(), nullable=False),
        sa.Column("branch_filter", sa.String(), nullable=False),
        sa.Column("branch_filter_strategy", sa.String(), nullable=False),
        sa.Column("enable_ssl_verification", sa.Boolean(), nullable=False),
        sa.Column("recent_failures", sa.Integer(), nullable=False),
        sa.Column("disabled_until", sa.DateTime(), nullable=True),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.CheckConstraint(
            "(namespace_id IS NULL) <> (project_id IS NULL)", name=op.f("ck_web_hooks_one_source")
        ),
        sa.ForeignKeyConstraint(
            ["namespace_id"],
            ["namespaces.id"],
            name=op.f("fk_web_hooks_namespace_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["project_id"],
            ["projects.id"],
            name=op.f("fk_web_hooks_project_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_web_hooks")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_web_hooks_project_id"), "web_hooks", ["project_id"])
    op.create_index(op.f("ix_web_hooks_namespace_id"), "web_hooks", ["namespace_id"])
    op.create_table(
        "web_hook_queue",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("hook_id", sa.Integer(), nullable=False),
        sa.Column("project_id", sa.Integer(), nullable=False),
        sa.Column("trigger", sa.String(), nullable=False),
        sa.Column("payload", sa.JSON(), nullable=False),
        sa.Column("commit", sa.String(), nullable=True),
        sa.Column("idempotency_key", sa.String(), nullable=False),
        sa.Column("event_uuid", sa.String(), nullable=False),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("due_at", sa.DateTime(), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["hook_id"],
            ["web_hooks.id"],
            name=op.f("fk_web_hook_queue_hook_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_web_hook_queue")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_web_hook_queue_hook_id"), "web_hook_queue", ["hook_id"])
    op.create_index(op.f("ix_web_hook_queue_due_at"), "web_hook_queue", ["due_at"])
    op.create_table(
        "web_hook_logs",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("hook_id", sa.Integer(), nullable=False),
        sa.Column("trigger", sa.String(), nullable=False),
        sa.Column("url", sa.String(), nullable=False),
        sa.Column("request_headers", sa.JSON(), nullable=False),
        sa.Column("request_data", sa.JSON(), nullable=False),
        sa.Column("response_status", sa.String(), nullable=False),
        sa.Column("response_headers", sa.JSON(), nullable=False),
        sa.Column("response_body", sa.String(), nullable=False),
        sa.Column("error", sa.String(), nullable=True),
        sa.Column("milliseconds", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["hook_id"],
            ["web_hooks.id"],
            name=op.f("fk_web_hook_logs_hook_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_web_hook_logs")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_web_hook_logs_hook_id"), "web_hook_logs", ["hook_id", "created_at"])
    op.add_column("oauth_grants", sa.Column("nonce", sa.String(), nullable=True))
    op.add_column("oauth_grants", sa.Column("signed_in_at", sa.DateTime(), nullable=True))

"""The forge's tables of webhooks: the hooks, the deliveries that wait, the log of those that were tried.

Written by ``routes_web_hooks``, ``web_hooks`` (events) and ``web_hook_delivery``.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, CheckConstraint, ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from notebooks_service.forge.database import Base, UtcDateTime, now


class WebHook(Base):
    """A webhook of a project, or of a group and all that lies in it.

    ``events`` are the names that are switched on, such as ``push_events``. The secret ``token`` is
    sent with every delivery, so it is kept as it is; no answer ever shows it.
    """

    __tablename__ = "web_hooks"
    __table_args__ = (
        CheckConstraint("(namespace_id IS NULL) <> (project_id IS NULL)", name="one_source"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    project_id: Mapped[int | None] = mapped_column(
        ForeignKey("projects.id", ondelete="CASCADE"), index=True
    )
    namespace_id: Mapped[int | None] = mapped_column(
        ForeignKey("namespaces.id", ondelete="CASCADE"), index=True
    )
    url: Mapped[str]
    name: Mapped[str | None]
    description: Mapped[str | None]
    token: Mapped[str | None]
    events: Mapped[list[str]] = mapped_column(JSON, default=list)
    branch_filter: Mapped[str] = mapped_column(default="")
    branch_filter_strategy: Mapped[str] = mapped_column(default="wildcard")
    enable_ssl_verification: Mapped[bool] = mapped_column(default=True)
    recent_failures: Mapped[int] = mapped_column(default=0)
    disabled_until: Mapped[datetime | None] = mapped_column(UtcDateTime)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)


class WaitingDelivery(Base):
    """An event that one hook has yet to be told; gone once it was, or was given up.

    ``commit`` is the sha whose facts are added to the payload when it is sent: reading git is not
    for a transaction. ``tries`` counts requests that were made.
    """

    __tablename__ = "web_hook_queue"
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = mapped_column(primary_key=True)
    hook_id: Mapped[int] = mapped_column(ForeignKey("web_hooks.id", ondelete="CASCADE"), index=True)
    project_id: Mapped[int]
    trigger: Mapped[str]
    payload: Mapped[dict[str, Any]] = mapped_column(JSON)
    commit: Mapped[str | None]
    idempotency_key: Mapped[str]
    event_uuid: Mapped[str]
    tries: Mapped[int] = mapped_column(default=0)
    due_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now, index=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)


class DeliveryLog(Base):
    """One request that was made, or tried, for a hook."""

    __tablename__ = "web_hook_logs"
    __table_args__ = (
        Index("ix_web_hook_logs_hook_id", "hook_id", "created_at"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    hook_id: Mapped[int] = mapped_column(ForeignKey("web_hooks.id", ondelete="CASCADE"))
    trigger: Mapped[str]
    url: Mapped[str]
    request_headers: Mapped[dict[str, str]] = mapped_column(JSON)
    request_data: Mapped[dict[str, Any]] = mapped_column(JSON)
    response_status: Mapped[str]
    response_headers: Mapped[dict[str, str]] = mapped_column(JSON, default=dict)
    response_body: Mapped[str] = mapped_column(default="")
    error: Mapped[str | None]
    milliseconds: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)

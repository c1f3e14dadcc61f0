"""The forge's tables of what a project has besides its repository: protected refs, earlier paths,
deploy tokens, rules for tags of images, and the projects whose jobs may come in.

Written by ``protection``, ``namespaces``, ``deploy_tokens``, ``routes_tag_rules`` and
``routes_deploy_tokens``.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from notebooks_service.forge.database import Base, UtcDateTime, now
from notebooks_service.forge.models import NO_CASE


class ProtectedRef(Base):
    """A protected branch (``heads``) or tag (``tags``); ``name`` may hold ``*``.

    ``push_level`` is who pushes to the branch, or creates the tag; ``merge_level`` is a branch's.
    0 stands for nobody. https://docs.gitlab.com/api/protected_branches/
    """

    __tablename__ = "protected_refs"
    __table_args__ = (
        UniqueConstraint("project_id", "kind", "name"),
        CheckConstraint("kind IN ('heads', 'tags')", name="kind"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    kind: Mapped[str]
    name: Mapped[str]
    push_level: Mapped[int]
    merge_level: Mapped[int]
    allow_force_push: Mapped[bool] = mapped_column(default=False)


class ProjectRedirect(Base):
    """A path that a project had. It leads to the project until another one takes the path."""

    __tablename__ = "project_redirects"

    path: Mapped[str] = mapped_column(NO_CASE, primary_key=True)
    project_id: Mapped[int] = mapped_column(
        ForeignKey("projects.id", ondelete="CASCADE"), index=True
    )


class DeployToken(Base):
    """A token of a project, or of a group and all in it; only its hash is kept.

    The one that jobs are given (``deploy_tokens.FOR_JOBS``) is kept too, ``sealed`` with a key in
    ``secrets/``.
    https://docs.gitlab.com/user/project/deploy_tokens/
    """

    __tablename__ = "deploy_tokens"
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
    name: Mapped[str]
    username: Mapped[str]
    token_hash: Mapped[str] = mapped_column(unique=True)
    sealed: Mapped[str | None]
    scopes: Mapped[str]
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    revoked: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)


class TagRule(Base):
    """Which tags of the project's images only some may push, or delete; ``pattern`` is RE2.

    The levels are ``maintainer``, ``owner`` or ``admin``.
    https://docs.gitlab.com/user/packages/container_registry/protected_container_tags/
    """

    __tablename__ = "registry_tag_rules"
    __table_args__ = (
        UniqueConstraint("project_id", "pattern"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    pattern: Mapped[str]
    push_level: Mapped[str]
    delete_level: Mapped[str]


class JobTokenAccess(Base):
    """Jobs of ``source_id`` may come into ``project_id``.

    https://docs.gitlab.com/ci/jobs/ci_job_token/#control-job-token-access-to-your-project
    """

    __tablename__ = "ci_job_token_access"

    project_id: Mapped[int] = mapped_column(
        ForeignKey("projects.id", ondelete="CASCADE"), primary_key=True
    )
    source_id: Mapped[int] = mapped_column(
        ForeignKey("projects.id", ondelete="CASCADE"), primary_key=True, index=True
    )

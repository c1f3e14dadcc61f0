"""The forge's tables of continuous integration: runners, pipelines, jobs, artifacts, variables.

Written by ``ci_pipelines`` and ``routes_runner``. A job's log is a file (``ci_traces``), and of every
token only the hash is kept.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column, relationship

from notebooks_service.forge.database import Base, UtcDateTime, now
from notebooks_service.forge.models import Project, User


class Runner(Base):
    """A registered runner. ``takes_all`` is our own runner's: it looks at no tags."""

    __tablename__ = "ci_runners"
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = mapped_column(primary_key=True)
    token_hash: Mapped[str] = mapped_column(unique=True)
    description: Mapped[str] = mapped_column(default="")
    paused: Mapped[bool] = mapped_column(default=False)
    locked: Mapped[bool] = mapped_column(default=False)
    run_untagged: Mapped[bool] = mapped_column(default=True)
    takes_all: Mapped[bool] = mapped_column(default=False)
    tags: Mapped[list[str]] = mapped_column(JSON, default=list)
    maximum_timeout: Mapped[int | None]
    info: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    contacted_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)


class Pipeline(Base):
    """One pipeline. ``duration`` is in seconds; ``stages`` are the names in their order.

    ``parent_job_id`` is the trigger job of a child pipeline.
    """

    __tablename__ = "ci_pipelines"
    __table_args__ = (
        UniqueConstraint("project_id", "iid"),
        Index("ix_ci_pipelines_project_id_sha", "project_id", "sha"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    iid: Mapped[int]
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    user_id: Mapped[int | None] = mapped_column(ForeignKey("users.id", ondelete="SET NULL"))
    parent_job_id: Mapped[int | None] = mapped_column(index=True)
    sha: Mapped[str]
    before_sha: Mapped[str]
    ref: Mapped[str]
    tag: Mapped[bool] = mapped_column(default=False)
    source: Mapped[str]
    status: Mapped[str] = mapped_column(default="created")
    name: Mapped[str | None]
    yaml_errors: Mapped[str | None]
    failure_reason: Mapped[str | None]
    stages: Mapped[list[str]] = mapped_column(JSON, default=list)
    variables: Mapped[list[dict[str, Any]]] = mapped_column(JSON, default=list)
    yaml_variables: Mapped[dict[str, str]] = mapped_column(JSON, default=dict)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    duration: Mapped[int | None]

    project: Mapped[Project] = relationship(lazy="joined")
    user: Mapped[User | None] = relationship(lazy="joined")


class Job(Base):
    """One try of a job (``build``) or of a trigger job (``bridge``).

    ``options`` is what a runner needs: script, after_script, image, services, timeout, retry …
    ``needs`` is None for a job that waits for the stages before it. ``heard_at`` is when its runner
    last said something. ``dotenv`` is what the job left for later ones. The token is good only while the job runs.
    """

    __tablename__ = "ci_jobs"
    __table_args__ = (
        Index("ix_ci_jobs_project_id_id", "project_id", "id"),
        Index("ix_ci_jobs_status", "status"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    pipeline_id: Mapped[int] = mapped_column(
        ForeignKey("ci_pipelines.id", ondelete="CASCADE"), index=True
    )
    user_id: Mapped[int | None] = mapped_column(ForeignKey("users.id", ondelete="SET NULL"))
    runner_id: Mapped[int | None] = mapped_column(ForeignKey("ci_runners.id", ondelete="SET NULL"))
    child_pipeline_id: Mapped[int | None]
    kind: Mapped[str] = mapped_column(default="build")
    name: Mapped[str]
    stage: Mapped[str]
    stage_index: Mapped[int]
    status: Mapped[str] = mapped_column(default="created")
    when: Mapped[str] = mapped_column("run_when", default="on_success")
    allow_failure: Mapped[bool] = mapped_column(default=False)
    retried: Mapped[bool] = mapped_column(default=False)
    tries: Mapped[int] = mapped_column(default=0)
    needs: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    tags: Mapped[list[str]] = mapped_column(JSON, default=list)
    variables: Mapped[dict[str, str]] = mapped_column(JSON, default=dict)
    options: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    dotenv: Mapped[dict[str, str]] = mapped_column(JSON, default=dict)
    timeout: Mapped[int]
    token_hash: Mapped[str | None] = mapped_column(unique=True)
    failure_reason: Mapped[str | None]
    exit_code: Mapped[int | None]
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    queued_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    scheduled_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    heard_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    erased_at: Mapped[datetime | None] = mapped_column(UtcDateTime)

    pipeline: Mapped[Pipeline] = relationship(lazy="joined")
    user: Mapped[User | None] = relationship(lazy="joined")
    runner: Mapped[Runner | None] = relationship(lazy="joined")
    artifacts: Mapped[list[Artifact]] = relationship(lazy="selectin", passive_deletes=True)


class _VariableColumns:
    """What a variable of a project and one of a group have in common. A ``hidden`` one's value is
    never shown again; ``environment_scope`` may hold ``*``."""

    id: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str]
    value: Mapped[str]
    variable_type: Mapped[str] = mapped_column(default="env_var")
    protected: Mapped[bool] = mapped_column(default=False)
    masked: Mapped[bool] = mapped_column(default=False)
    raw: Mapped[bool] = mapped_column(default=False)
    description: Mapped[str | None]
    hidden: Mapped[bool] = mapped_column(default=False)
    environment_scope: Mapped[str] = mapped_column(default="*")


class Variable(_VariableColumns, Base):
    """A project's own variable: https://docs.gitlab.com/api/project_level_variables/"""

    __tablename__ = "ci_variables"
    __table_args__ = (
        UniqueConstraint("project_id", "key", "environment_scope"),
        {"sqlite_autoincrement": True},
    )

    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))


class GroupVariable(_VariableColumns, Base):
    """A group's variable, for all that lies in it: https://docs.gitlab.com/api/group_level_variables/"""

    __tablename__ = "ci_group_variables"
    __table_args__ = (
        UniqueConstraint("namespace_id", "key", "environment_scope"),
        {"sqlite_autoincrement": True},
    )

    namespace_id: Mapped[int] = mapped_column(ForeignKey("namespaces.id", ondelete="CASCADE"))


class Artifact(Base):
    """A file that a job left (``ci_artifacts`` keeps the bytes). ``size`` is in bytes; no
    ``expires_at`` means for ever. ``file_type`` is GitLab's: ``archive``, ``junit`` …"""

    __tablename__ = "ci_artifacts"
    __table_args__ = (UniqueConstraint("job_id", "file_type"), {"sqlite_autoincrement": True})

    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("ci_jobs.id", ondelete="CASCADE"))
    project_id: Mapped[int] = mapped_column(
        ForeignKey("projects.id", ondelete="CASCADE"), index=True
    )
    file_type: Mapped[str]
    file_format: Mapped[str]
    filename: Mapped[str]
    size: Mapped[int]
    sha256: Mapped[str]
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime, index=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)

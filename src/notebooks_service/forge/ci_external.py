"""Statuses that other systems report for a commit: jobs of a pipeline which no runner runs.

Follows ``app/services/ci/create_commit_status_service.rb`` of GitLab. A write session is one at a time,
so two reports never make two pipelines.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from notebooks_service.forge import ci_processing, errors
from notebooks_service.forge.ci_models import Job, Pipeline
from notebooks_service.forge.database import now
from notebooks_service.forge.models import Project, User

STATES = ("pending", "running", "success", "failed", "canceled", "skipped")
STAGE = "external"
STAGE_INDEX = 1_000_000
MOST_JOBS = 1000

_EVENTS = {
    "pending": "enqueue",
    "running": "run",
    "success": "success",
    "failed": "drop",
    "canceled": "cancel",
    "skipped": "skip",
}


@dataclass(frozen=True)
class Report:
    """What a system says of a commit. ``ref`` None leaves it to the pipeline or the branches."""

    sha: str
    ref: str
    tag: bool
    state: str
    name: str
    target_url: str | None = None
    description: str | None = None
    coverage: float | None = None


def find_pipeline(
    session: Session, project: Project, sha: str, ref: str | None, pipeline_id: int | None
) -> Pipeline | None:
    """The newest pipeline of the commit that a report belongs to."""
    query = select(Pipeline).where(Pipeline.project_id == project.id, Pipeline.sha == sha)
    if ref is not None:
        query = query.where(Pipeline.ref == ref)
    if pipeline_id is not None:
        query = query.where(Pipeline.id == pipeline_id)
    else:
        query = query.where(Pipeline.source != "parent_pipeline")
    return session.scalar(query.order_by(Pipeline.id.desc()).limit(1))


def report(
    session: Session, project: Project, user: User, said: Report, pipeline: Pipeline | None
) -> Job:
    """The job that now says it. Raises GitLab's 400 for a state that cannot follow the last one."""
    if pipeline is None:
        pipeline = Pipeline(
            iid=ci_processing.next_iid(session, project.id),
            project_id=project.id,
            user_id=user.id,
            sha=said.sha,
            before_sha="0" * 40,
            ref=said.ref,
            tag=said.tag,
            source="external",
        )
        session.add(pipeline)
        session.flush()
        session.refresh(pipeline)
    known = session.scalar(
        select(Job).where(
            Job.pipeline_id == pipeline.id,
            Job.kind == "status",
            Job.name == said.name,
            Job.user_id == user.id,
            Job.retried.is_(False),
            Job.status.in_(("pending", "running")),
        )
    )
    job = known or _new(session, project, user, pipeline, said.name)
    _values(job, said)
    _enter(job, said.state, new=known is None)
    session.flush()
    ci_processing.process(session, pipeline)
    session.flush()
    return job


def _new(session: Session, project: Project, user: User, pipeline: Pipeline, name: str) -> Job:
    count = len(session.scalars(select(Job.id).where(Job.pipeline_id == pipeline.id)).all())
    if count >= MOST_JOBS:
        raise errors.unprocessable("The number of jobs has exceeded the limit")
    # A later report of the same name stands for the earlier one.
    session.execute(
        update(Job)
        .where(Job.pipeline_id == pipeline.id, Job.kind == "status", Job.name == name)
        .values(retried=True)
    )
    job = Job(
        project_id=project.id,
        pipeline_id=pipeline.id,
        user_id=user.id,
        kind="status",
        name=name,
        stage=STAGE,
        stage_index=STAGE_INDEX,
        status="created",
        timeout=0,
    )
    session.add(job)
    session.flush()
    session.refresh(job)
    return job


def _values(job: Job, said: Report) -> None:
    given: dict[str, Any] = {
        "target_url": said.target_url,
        "description": said.description,
        "coverage": said.coverage,
    }
    job.options = {**job.options, **{key: one for key, one in given.items() if one is not None}}


def _enter(job: Job, state: str, *, new: bool) -> None:
    """GitLab's words for a state that comes twice, which clients know and look for."""
    if not new and (state == "pending" or (state == "running" and job.status == "running")):
        event = _EVENTS[state]
        raise errors.bad_request(
            f"Cannot transition status via :{event} from :{job.status} "
            f'(Reason(s): Status cannot transition via "{event}")'
        )
    moment = now()
    job.status = state
    if state == "pending":
        job.queued_at = moment
    elif state == "running":
        job.queued_at = job.queued_at or moment
        job.started_at = moment
    else:
        job.finished_at = moment
        job.failure_reason = "api_failure" if state == "failed" else None

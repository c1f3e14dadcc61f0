"""Moves jobs and pipelines from state to state; every change of a status goes through here.

Called by ``ci_pipelines`` (new ones), ``routes_ci*`` (cancel, retry, play), ``routes_runner`` (what
runners say) and ``ci_watch`` (time). The rules are ``ci_status``. All of it needs a write session,
which SQLite gives to one at a time: no two callers move the same job.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from notebooks_service.forge import ci_status
from notebooks_service.forge.ci_models import Job, Pipeline
from notebooks_service.forge.ci_queue import QUEUE
from notebooks_service.forge.database import now
from notebooks_service.forge.models import User

TERMINAL = frozenset({"success", "failed", "canceled", "skipped"})


def latest_jobs(session: Session, pipeline: Pipeline) -> Sequence[Job]:
    """The newest try of every job, in the order of stages."""
    return session.scalars(
        select(Job)
        .where(Job.pipeline_id == pipeline.id, Job.retried.is_(False))
        .order_by(Job.stage_index, Job.id)
    ).all()


def process(session: Session, pipeline: Pipeline) -> None:
    """Starts, skips or holds the jobs whose turn has come, then sums up the pipeline.

    Work is done until nothing changes: a skipped job can free the next one.
    """
    jobs = latest_jobs(session, pipeline)
    by_name = {job.name: job for job in jobs}
    changed = True
    while changed:
        changed = False
        stages: dict[int, str | None] = {}
        held = False
        for job in jobs:
            if job.status != "created":
                continue
            dag = job.needs is not None
            if job.needs is not None:
                prior = _sum((by_name[n] for n in job.needs if n in by_name), dag=True)
            elif held:
                # A stage waits, so all behind it do: a thousand need not be added up each.
                continue
            else:
                # Jobs come stage by stage, so what lies before a stage is settled for this round.
                if job.stage_index not in stages:
                    before = (other for other in jobs if other.stage_index < job.stage_index)
                    stages[job.stage_index] = _sum(before)
                prior = stages[job.stage_index]
                held = prior is not None and prior not in ci_status.COMPLETED
            status = ci_status.next_status(job.when, prior, dag=dag, delayed=job.when == "delayed")
            if status is not None:
                _enter(session, job, status)
                changed = True
    summarise(session, pipeline, jobs)


def _sum(jobs: Iterable[Job], *, dag: bool = False) -> str | None:
    return ci_status.composite(((job.status, job.allow_failure) for job in jobs), dag=dag)


def _enter(session: Session, job: Job, status: str) -> None:
    moment = now()
    job.status = status
    if status == "pending":
        job.queued_at = moment
        QUEUE.changed_on_commit(session)
    elif status == "scheduled":
        job.scheduled_at = moment + timedelta(seconds=job.options.get("start_in") or 0)


def summarise(session: Session, pipeline: Pipeline, jobs: Sequence[Job] | None = None) -> None:
    """Sets the pipeline's status and times from its newest jobs."""
    jobs = latest_jobs(session, pipeline) if jobs is None else jobs
    status = _sum(jobs)
    if status is None or pipeline.yaml_errors is not None:
        return
    moment = now()
    pipeline.updated_at = moment
    if status in ("running", "success", "failed") and pipeline.started_at is None:
        started = [job.started_at for job in jobs if job.started_at]
        pipeline.started_at = min(started, default=None)
    if status in TERMINAL:
        if pipeline.status not in TERMINAL or pipeline.finished_at is None:
            pipeline.finished_at = moment
        pipeline.duration = running_seconds(
            [
                (job.started_at.timestamp(), job.finished_at.timestamp())
                for job in jobs
                if job.started_at and job.finished_at
            ]
        )
    else:
        pipeline.finished_at = None
    ended = status in TERMINAL and pipeline.status != status
    pipeline.status = status
    if ended and pipeline.parent_job_id is not None:
        _child_ended(session, pipeline)


def _child_ended(session: Session, pipeline: Pipeline) -> None:
    bridge = session.get(Job, pipeline.parent_job_id)
    if bridge is None or not bridge.options.get("depend"):
        return
    if bridge.status not in ("running", "pending") and bridge.status == pipeline.status:
        return
    reason = "downstream_pipeline_failed" if pipeline.status == "failed" else None
    finish(session, bridge, pipeline.status, reason=reason)


def running_seconds(spans: Sequence[tuple[float, float]]) -> int | None:
    """How long at least one of ``spans`` (start, end in unix seconds) was under way; None for none.

    ``lib/gitlab/ci/pipeline/duration.rb``
    """
    if not spans:
        return None
    total = 0.0
    end = float("-inf")
    for start, stop in sorted(spans):
        total += max(stop - max(start, end), 0.0)
        end = max(end, stop)
    return int(total)


def take(session: Session, job: Job, runner_id: int, token_hash: str) -> None:
    """A runner has the job now: running, with a token that is good until it ends."""
    moment = now()
    job.status = "running"
    job.runner_id = runner_id
    job.token_hash = token_hash
    job.started_at = job.heard_at = moment
    session.flush()
    summarise(session, job.pipeline)


def give_back(session: Session, job: Job) -> None:
    """The runner that took the job never got it: it waits for one again."""
    job.status = "pending"
    job.runner_id = job.token_hash = job.started_at = job.heard_at = None
    session.flush()
    summarise(session, job.pipeline)
    QUEUE.changed_on_commit(session)


def finish(
    session: Session,
    job: Job,
    status: str,
    *,
    reason: str | None = None,
    exit_code: int | None = None,
) -> None:
    """The job ended. A failed one is tried again if its ``retry`` says so."""
    job.status = status
    job.finished_at = now()
    job.failure_reason = reason if status == "failed" else None
    job.exit_code = exit_code
    if status == "failed":
        codes = job.options.get("allow_failure_codes") or []
        if exit_code is not None and exit_code in codes:
            job.allow_failure = True
        if _tries_again(job):
            clone(session, job, job.user)
    session.flush()
    process(session, job.pipeline)


def _tries_again(job: Job) -> bool:
    if job.kind != "build" or job.tries >= int(job.options.get("retry") or 0):
        return False
    reasons = job.options.get("retry_when") or ["always"]
    return "always" in reasons or job.failure_reason in reasons


def clone(session: Session, job: Job, user: User | None) -> Job:
    """A new try of ``job`` with an id of its own; the old one is kept, marked as retried."""
    job.retried = True
    again = Job(
        project_id=job.project_id,
        pipeline_id=job.pipeline_id,
        user_id=user.id if user else job.user_id,
        kind=job.kind,
        name=job.name,
        stage=job.stage,
        stage_index=job.stage_index,
        when=job.when,
        allow_failure=job.allow_failure and not job.options.get("allow_failure_codes"),
        tries=job.tries + 1,
        needs=job.needs,
        tags=job.tags,
        variables=job.variables,
        options=job.options,
        timeout=job.timeout,
        status="created",
    )
    session.add(again)
    session.flush()
    session.refresh(again)
    return again


def cancel(session: Session, job: Job) -> bool:
    """Whether the job could be cancelled. A running one's runner learns it from its next answer."""
    if job.status not in ci_status.CANCELABLE:
        return False
    job.status = "canceled"
    job.finished_at = now()
    if job.child_pipeline_id is not None:
        child = session.get(Pipeline, job.child_pipeline_id)
        if child is not None:
            cancel_pipeline(session, child)
    session.flush()
    process(session, job.pipeline)
    return True


def cancel_pipeline(session: Session, pipeline: Pipeline) -> None:
    """Cancels every job that has not ended, those of child pipelines too."""
    for job in latest_jobs(session, pipeline):
        child = session.get(Pipeline, job.child_pipeline_id) if job.child_pipeline_id else None
        if child is not None:
            cancel_pipeline(session, child)
        if job.status in ci_status.CANCELABLE:
            job.status = "canceled"
            job.finished_at = now()
    session.flush()
    summarise(session, pipeline)


def retry(session: Session, job: Job, user: User | None) -> Job | None:
    """A new try, at once; jobs that were skipped because of the old one wait again.

    None if the job cannot be retried: it has not ended, or was retried already.
    """
    if job.status not in ci_status.RETRYABLE or job.retried:
        return None
    again = clone(session, job, user)
    _reopen(session, job.pipeline, after=again)
    _enter(session, again, "pending")
    session.flush()
    process(session, job.pipeline)
    return again


def retry_pipeline(session: Session, pipeline: Pipeline, user: User | None) -> int:
    """New tries of every job that failed or was cancelled; how many there are."""
    ended = [
        job
        for job in latest_jobs(session, pipeline)
        if job.status in ("failed", "canceled") and job.kind in ("build", "bridge")
    ]
    for job in ended:
        clone(session, job, user)
    if ended:
        for job in latest_jobs(session, pipeline):
            if job.status == "skipped":
                job.status = "created"
                job.finished_at = None
    session.flush()
    process(session, pipeline)
    return len(ended)


def _reopen(session: Session, pipeline: Pipeline, *, after: Job) -> None:
    for job in latest_jobs(session, pipeline):
        behind = job.stage_index > after.stage_index
        if job.needs is not None:
            behind = after.name in job.needs or behind
        if job.status == "skipped" and behind:
            job.status = "created"


def play(session: Session, job: Job, user: User | None, variables: dict[str, str]) -> bool:
    """Whether a manual or delayed job could be started now."""
    if job.status not in ci_status.PLAYABLE:
        return False
    job.user_id = user.id if user else job.user_id
    job.variables = {**job.variables, **variables}
    job.scheduled_at = None
    _enter(session, job, "pending")
    session.flush()
    _reopen(session, job.pipeline, after=job)
    process(session, job.pipeline)
    return True


def start_scheduled(session: Session) -> None:
    """Starts the delayed jobs whose time has come."""
    due = session.scalars(
        select(Job).where(Job.status == "scheduled", Job.scheduled_at <= now())
    ).all()
    for job in due:
        _enter(session, job, "pending")
        session.flush()
        summarise(session, job.pipeline)


def next_iid(session: Session, project_id: int) -> int:
    highest = session.scalar(
        select(func.max(Pipeline.iid)).where(Pipeline.project_id == project_id)
    )
    return (highest or 0) + 1

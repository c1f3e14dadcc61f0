"""What happens to jobs by time alone: delayed starts, dead runners, time-outs, trigger jobs.

Runs as long as the forge does; started with the routes of runners.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import select

from notebooks_service.errors import NotebooksError
from notebooks_service.forge import ci_pipelines, ci_processing, ci_traces
from notebooks_service.forge.ci_models import Job, Pipeline, Runner
from notebooks_service.forge.ci_queue import QUEUE
from notebooks_service.forge.ci_rules import NoPipeline
from notebooks_service.forge.ci_runners import matches
from notebooks_service.forge.ci_values import TIMEOUT_LIMIT
from notebooks_service.forge.config import ForgeConfig
from notebooks_service.forge.database import Database, now

log = logging.getLogger(__name__)

LATE = timedelta(seconds=60)
"""How long after its time-out a job's runner has to end it, before the forge does."""

UNWANTED = timedelta(hours=1)
"""How long a job waits for a runner that could take it."""

CHILD_DEPTH = 2
"""Child pipelines may have children, not more: https://docs.gitlab.com/ci/pipelines/downstream_pipelines/"""


class Watch:
    """One round a second; looks again at once when jobs are made."""

    def __init__(self, config: ForgeConfig, database: Database) -> None:
        self.config = config
        self.database = database
        # Runners could not reach us while we were away: count their silence from now.
        self.began = now()

    async def run(self, seconds: float = 1.0) -> None:
        while True:
            known = QUEUE.value
            try:
                await asyncio.to_thread(self.round)
            except Exception:
                log.exception("a look at the jobs failed")
            await QUEUE.wait(known, seconds)
            if QUEUE.value != known:
                # Many changes at once are one round.
                await asyncio.sleep(0.02)

    def round(self) -> None:
        """Looks without the write lock first: mostly there is nothing to do."""
        moment = now()
        with self.database.read() as session:
            found = session.scalars(
                select(Job).where(
                    Job.status.in_(("pending", "running", "scheduled")),
                    # What other systems report, only they can end.
                    Job.kind != "status",
                )
            ).all()
            runners = session.scalars(select(Runner)).all()
        due = any(
            job.status == "scheduled" and job.scheduled_at and job.scheduled_at <= moment
            for job in found
        )
        if due:
            with self.database.write() as session:
                ci_processing.start_scheduled(session)
        for job in found:
            if job.kind == "bridge":
                if job.status == "pending":
                    self.start_child(job.id)
                continue
            reason = self.verdict(job, moment)
            if (
                job.status == "pending"
                and moment - (job.queued_at or job.created_at) > UNWANTED
                and not any(matches(runner, job.tags) for runner in runners)
            ):
                reason = "stuck_or_timeout_failure", "No runner takes a job with these tags."
            if reason is not None:
                self.drop(job, *reason)

    def verdict(self, job: Job, moment: datetime) -> tuple[str, str] | None:
        """Why a running job has to end now: (failure reason, sentence); None if it may go on."""
        if job.status != "running" or job.started_at is None:
            return None
        heard = max(job.heard_at or job.started_at, self.began)
        if (moment - heard).total_seconds() > self.config.job_silence:
            return (
                "stuck_or_timeout_failure",
                "ERROR: Job failed: its runner has said nothing for too long.",
            )
        allowed = timedelta(seconds=min(job.timeout, TIMEOUT_LIMIT)) + LATE
        if moment - max(job.started_at, self.began) > allowed:
            return "job_execution_timeout", "ERROR: Job failed: execution took longer than allowed."
        return None

    def drop(self, job: Job, reason: str, sentence: str) -> None:
        with self.database.write() as session:
            current = session.get(Job, job.id)
            # Its runner may have spoken since we looked.
            if current is None or (current.status, current.heard_at) != (job.status, job.heard_at):
                return
            ci_processing.finish(session, current, "failed", reason=reason)
        log.warning("job %d dropped: %s", job.id, reason)
        with contextlib.suppress(OSError):
            ci_traces.write_note(self.config, job.project_id, job.id, sentence)

    def start_child(self, job_id: int) -> None:
        """Makes the pipeline of a trigger job."""
        try:
            with self.database.read() as session:
                job = session.get_one(Job, job_id)
                parent = job.pipeline
                if self._depth(session, parent) >= CHILD_DEPTH:
                    raise NoPipeline("Child pipelines are nested too deeply")
                prepared = ci_pipelines.prepare(
                    session,
                    self.config,
                    ci_pipelines.Request(
                        project=parent.project,
                        user=job.user,
                        ref=parent.ref,
                        tag=parent.tag,
                        sha=parent.sha,
                        before_sha=parent.before_sha,
                        source="parent_pipeline",
                        variables=tuple(
                            {"key": key, "value": value} for key, value in job.variables.items()
                        ),
                        config_file=job.options["child_files"][0],
                        parent_job_id=job.id,
                    ),
                )
        except NotebooksError as error:
            log.info("trigger job %d starts no pipeline: %s", job_id, error.message)
            self._end_bridge(job_id, None)
            return
        self._end_bridge(job_id, prepared)

    def _end_bridge(self, job_id: int, prepared: ci_pipelines.Prepared | None) -> None:
        with self.database.write() as session:
            job = session.get(Job, job_id)
            if job is None or job.status != "pending":
                return
            job.started_at = now()
            if prepared is None:
                reason = "downstream_pipeline_creation_failed"
                ci_processing.finish(session, job, "failed", reason=reason)
                return
            job.status = "running"
            child = ci_pipelines.store(session, prepared)
            job.child_pipeline_id = child.id
            if child.yaml_errors is not None:
                reason = "downstream_pipeline_creation_failed"
                ci_processing.finish(session, job, "failed", reason=reason)
            elif not job.options.get("depend"):
                ci_processing.finish(session, job, "success")
            else:
                ci_processing.summarise(session, job.pipeline)

    def _depth(self, session: Any, pipeline: Pipeline) -> int:
        depth = 0
        while pipeline.parent_job_id is not None and depth <= CHILD_DEPTH:
            depth += 1
            above = session.get(Job, pipeline.parent_job_id)
            if above is None:
                break
            pipeline = above.pipeline
        return depth


@asynccontextmanager
async def watching(app: Any) -> AsyncIterator[None]:
    """The lifespan of the runner's routes: watches while the forge runs."""
    task = asyncio.create_task(Watch(app.state.config, app.state.database).run())
    yield
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task

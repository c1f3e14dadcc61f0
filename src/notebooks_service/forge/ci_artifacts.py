"""Files that jobs leave: their bytes on disk, who gets them, when they go.

Written by ``routes_runner_artifacts``, read by ``routes_artifacts`` and ``ci_job_request``.
https://docs.gitlab.com/ci/jobs/job_artifacts/
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO

from sqlalchemy import ColumnElement, exists, select
from sqlalchemy.orm import Session, aliased

from notebooks_service.forge import ci_reports, repositories
from notebooks_service.forge.ci_jobs import duration
from notebooks_service.forge.ci_models import Artifact, Job, Pipeline
from notebooks_service.forge.config import ForgeConfig
from notebooks_service.forge.database import Database, now
from notebooks_service.forge.models import Project

KEPT = timedelta(days=30)
"""How long they stay unless their job says otherwise, as in GitLab."""
CHILD_DEPTH = 2
CHUNK = 1 << 20
AT_ONCE = 200


def path(config: ForgeConfig, project_id: int, job_id: int, file_type: str) -> Path:
    return config.artifacts / str(project_id) / str(job_id) / file_type


def write(
    config: ForgeConfig, project_id: int, job_id: int, file_type: str, source: BinaryIO
) -> tuple[Path, int, str]:
    """Puts the bytes beside their place: (file, size, sha256). ``keep`` makes them the artifact."""
    place = path(config, project_id, job_id, file_type)
    place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    half = place.with_name(f".{file_type}.{os.urandom(6).hex()}")
    digest = hashlib.sha256()
    size = 0
    try:
        with open(half, "xb", opener=_private) as target:
            while chunk := source.read(CHUNK):
                digest.update(chunk)
                size += len(chunk)
                target.write(chunk)
    except BaseException:
        half.unlink(missing_ok=True)
        raise
    return half, size, digest.hexdigest()


def _private(name: str, flags: int) -> int:
    return os.open(name, flags, 0o600)


def expiry(text: str | None) -> datetime | None:
    """When a file that should be kept for ``text`` (``3 days``, ``never``) goes; None for never."""
    if text is None or not text.strip():
        return now() + KEPT
    if text.strip().lower() == "never":
        return None
    seconds = duration(text)
    try:
        return now() + timedelta(seconds=seconds) if seconds else None
    except OverflowError:
        return None


def archive(job: Job) -> Artifact | None:
    return next((one for one in job.artifacts if one.file_type == "archive"), None)


def available(session: Session, job: Job) -> Artifact | None:
    """The job's archive, unless it is gone or its time is over."""
    found = archive(job)
    if found is None or (found.expires_at is not None and found.expires_at <= now()):
        return found if found is not None and is_locked(session, job) else None
    return found


def _superseded(pipeline: type[Pipeline]) -> ColumnElement[bool]:
    """Whether the ref has a newer pipeline that succeeded."""
    newer = aliased(Pipeline)
    return exists().where(
        newer.project_id == pipeline.project_id,
        newer.ref == pipeline.ref,
        newer.tag == pipeline.tag,
        newer.source != "parent_pipeline",
        newer.status == "success",
        newer.id > pipeline.id,
    )


def is_locked(session: Session, job: Job) -> bool:
    """Artifacts of a ref's newest success, and of what came after it, outlive their time.

    https://docs.gitlab.com/ci/jobs/job_artifacts/#keep-artifacts-from-most-recent-successful-jobs
    """
    if not job.pipeline.project.keep_latest_artifact:
        return False
    return not session.scalar(select(_superseded(Pipeline)).where(Pipeline.id == job.pipeline_id))


def wanted(job: Job) -> list[dict[str, Any]] | None:
    """What the runner is to keep of this job, in the runner protocol's words."""
    entry = dict(job.options.get("artifacts") or {})
    reports = entry.pop("reports", {})
    found = []
    if entry.get("paths") or entry.get("untracked"):
        found.append({**entry, "artifact_type": "archive", "artifact_format": "zip"})
    for kind, paths in reports.items():
        found.append(ci_reports.wanted(kind, paths, entry.get("expire_in")))
    return found or None


def dependencies(session: Session, job: Job) -> list[tuple[Job, Artifact]]:
    """The jobs whose archives this one is given, in their order.

    Those of earlier stages, or those that it needs; ``dependencies`` chooses among them.
    """
    found = [(one, available(session, one)) for one in _sources(session, job)]
    return [(one, file) for one, file in found if file is not None]


def reported(session: Session, job: Job) -> dict[str, str]:
    """The variables of the dotenv reports that this job is given, a later job's over an earlier's."""
    found: dict[str, str] = {}
    for one in _sources(session, job):
        found |= one.dotenv
    return found


def _sources(session: Session, job: Job) -> list[Job]:
    chosen: list[str] | None = job.options.get("dependencies")
    if chosen is not None and not chosen:
        return []
    query = select(Job).where(
        Job.pipeline_id == job.pipeline_id, Job.kind == "build", Job.retried.is_(False)
    )
    if job.needs is None:
        query = query.where(Job.stage_index < job.stage_index)
    else:
        without = set(job.options.get("needs_without_artifacts") or ())
        query = query.where(Job.name.in_(set(job.needs) - without))
    rows = session.scalars(query.order_by(Job.stage_index, Job.id)).all()
    if chosen is None:
        return list(rows)
    return [one for one in rows if {one.name, one.options.get("parallel_name")} & set(chosen)]


def missing_dependency(session: Session, job: Job) -> Job | None:
    """A job whose archive this one has to have, and which has lost it."""
    for one in _sources(session, job):
        kept = one.options.get("artifacts") or {}
        lost = one.erased_at is not None and bool(kept.get("paths") or kept.get("untracked"))
        if lost or (archive(one) is not None and available(session, one) is None):
            return one
    return None


def latest(session: Session, project: Project, ref: str, name: str) -> Job | None:
    """The job of this name in the newest successful pipeline of a branch or tag, children included."""
    top = session.scalar(
        select(Pipeline)
        .where(
            Pipeline.project_id == project.id,
            Pipeline.ref == ref,
            Pipeline.status == "success",
            Pipeline.source != "parent_pipeline",
        )
        .order_by(Pipeline.id.desc())
        .limit(1)
    )
    level = [top.id] if top is not None else []
    for _ in range(CHILD_DEPTH + 1):
        jobs = session.scalars(
            select(Job)
            .where(Job.pipeline_id.in_(level), Job.retried.is_(False))
            .order_by(Job.id.desc())
        ).all()
        for job in jobs:
            if job.name == name and job.status == "success" and available(session, job):
                return job
        level = [job.child_pipeline_id for job in jobs if job.child_pipeline_id is not None]
    return None


def remove(session: Session, config: ForgeConfig, job: Job) -> None:
    """All files of a job."""
    for one in list(job.artifacts):
        session.delete(one)
    session.flush()
    session.expire(job, ["artifacts"])
    remove_files(config, job.project_id, job.id)


def remove_files(config: ForgeConfig, project_id: int, job_id: int) -> None:
    shutil.rmtree(config.artifacts / str(project_id) / str(job_id), ignore_errors=True)


def remove_project(config: ForgeConfig, project_id: int) -> None:
    """All files of a project that is no more."""
    shutil.rmtree(config.artifacts / str(project_id), ignore_errors=True)


def expire_all(session: Session, project: Project) -> None:
    """The time of everything that is not locked is over now. The files go with the next sweep."""
    for one in session.scalars(select(Artifact).where(Artifact.project_id == project.id)).all():
        one.expires_at = now()


def remove_expired(database: Database, config: ForgeConfig) -> int:
    """Removes the files whose time is over; how many jobs lost theirs."""
    over = (
        select(Job)
        .join(Artifact, Artifact.job_id == Job.id)
        .join(Pipeline, Pipeline.id == Job.pipeline_id)
        .join(Project, Project.id == Job.project_id)
        .where(Artifact.expires_at <= now())
        .distinct()
        .order_by(Job.id)
    )
    free = over.where(Project.keep_latest_artifact.is_(False) | _superseded(Pipeline))
    with database.read() as session:
        gone = {job.id for job in session.scalars(free.limit(AT_ONCE)).all()}
        gone |= {job.id for job in _without_ref(config, session.scalars(over.limit(AT_ONCE)).all())}
    if not gone:
        return 0
    with database.write() as session:
        for job in session.scalars(select(Job).where(Job.id.in_(gone))).all():
            remove(session, config, job)
    return len(gone)


def _without_ref(config: ForgeConfig, jobs: Sequence[Job]) -> list[Job]:
    """Those whose branch or tag is gone: nothing keeps their files."""
    refs: dict[tuple[int, bool, str], bool] = {}
    found = []
    for job in jobs:
        pipeline = job.pipeline
        key = (job.project_id, pipeline.tag, pipeline.ref)
        if key not in refs:
            kind = "tags" if pipeline.tag else "heads"
            repository = config.repository(job.project_id)
            refs[key] = repositories.one_ref(repository, kind, pipeline.ref) is not None  # type: ignore[arg-type]
        if not refs[key]:
            found.append(job)
    return found

"""GitLab's JSON of pipelines, jobs and runners; called by ``routes_ci*`` and ``routes_registry``.

https://docs.gitlab.com/api/pipelines/ and https://docs.gitlab.com/api/jobs/
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from notebooks_service.forge import ci_git, ci_runners
from notebooks_service.forge.ci_git import CommitFacts
from notebooks_service.forge.ci_models import Job, Pipeline, Runner
from notebooks_service.forge.config import ForgeConfig
from notebooks_service.forge.database import iso, now
from notebooks_service.forge.models import Project, User

_LABELS = {"success": "passed", "manual": "manual action", "scheduled": "delayed"}


def user_body(config: ForgeConfig, user: User | None) -> dict[str, Any] | None:
    """A person in few words."""
    if user is None:
        return None
    return {
        "id": user.id,
        "username": user.username,
        "name": user.name,
        "state": user.state,
        "locked": False,
        "avatar_url": None,
        "web_url": f"{config.url}/{user.username}",
    }


def runner_body(runner: Runner | None) -> dict[str, Any] | None:
    if runner is None:
        return None
    return {
        "id": runner.id,
        "description": runner.description,
        "ip_address": runner.info.get("ip_address"),
        "active": not runner.paused,
        "paused": runner.paused,
        "is_shared": True,
        "runner_type": "instance_type",
        "name": runner.info.get("name"),
        "online": ci_runners.contact(runner) == "online",
        "status": "paused" if runner.paused else ci_runners.contact(runner),
    }


def pipeline_basic(config: ForgeConfig, pipeline: Pipeline) -> dict[str, Any]:
    """A pipeline as in lists and inside jobs."""
    project = pipeline.project
    return {
        "id": pipeline.id,
        "iid": pipeline.iid,
        "project_id": pipeline.project_id,
        "sha": pipeline.sha,
        "ref": pipeline.ref,
        "status": pipeline.status,
        "source": pipeline.source,
        "created_at": iso(pipeline.created_at),
        "updated_at": iso(pipeline.updated_at),
        "web_url": f"{config.url}/{project.full_path}/-/pipelines/{pipeline.id}",
        "name": pipeline.name,
    }


def pipeline_body(config: ForgeConfig, pipeline: Pipeline) -> dict[str, Any]:
    """A pipeline on its own."""
    queued = None
    if pipeline.started_at is not None:
        queued = int((pipeline.started_at - pipeline.created_at).total_seconds())
    label = _LABELS.get(pipeline.status, pipeline.status)
    path = f"/{pipeline.project.full_path}/-/pipelines/{pipeline.id}"
    return {
        **pipeline_basic(config, pipeline),
        "before_sha": pipeline.before_sha,
        "tag": pipeline.tag,
        "yaml_errors": pipeline.yaml_errors,
        "failure_reason": pipeline.failure_reason,
        "user": user_body(config, pipeline.user),
        "started_at": iso(pipeline.started_at),
        "finished_at": iso(pipeline.finished_at),
        "committed_at": None,
        "duration": pipeline.duration,
        "queued_duration": queued,
        "coverage": None,
        "archived": False,
        "detailed_status": {
            "icon": f"status_{pipeline.status}",
            "text": label.capitalize(),
            "label": label,
            "group": pipeline.status,
            "tooltip": label,
            "has_details": True,
            "details_path": path,
            "illustration": None,
            "favicon": None,
        },
    }


def _seconds(start: datetime | None, end: datetime | None) -> float | None:
    if start is None:
        return None
    return round(max(((end or now()) - start).total_seconds(), 0.0), 6)


def job_bodies(config: ForgeConfig, project: Project, jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """Jobs with their commits, which are read in one go."""
    known = ci_git.commits(config, project.id, {job.pipeline.sha for job in jobs})
    return [_job(config, project, job, known.get(job.pipeline.sha)) for job in jobs]


def job_body(config: ForgeConfig, job: Job) -> dict[str, Any]:
    return job_bodies(config, job.pipeline.project, [job])[0]


def _job(
    config: ForgeConfig, project: Project, job: Job, commit: CommitFacts | None
) -> dict[str, Any]:
    pipeline = job.pipeline
    url = f"{config.url}/{project.full_path}"
    queue_end = job.started_at or job.finished_at
    body: dict[str, Any] = {
        "id": job.id,
        "status": job.status,
        "stage": job.stage,
        "name": job.name,
        "ref": pipeline.ref,
        "tag": pipeline.tag,
        "coverage": None,
        "allow_failure": job.allow_failure,
        "created_at": iso(job.created_at),
        "started_at": iso(job.started_at),
        "finished_at": iso(job.finished_at),
        "erased_at": iso(job.erased_at),
        "duration": _seconds(job.started_at, job.finished_at),
        "queued_duration": _seconds(job.queued_at, queue_end),
        "user": user_body(config, job.user),
        "commit": commit.body(url) if commit else None,
        "pipeline": pipeline_basic(config, pipeline),
        "web_url": f"{url}/-/jobs/{job.id}",
        "project": {"ci_job_token_scope_enabled": False},
        "archived": False,
    }
    if job.status == "failed":
        body["failure_reason"] = job.failure_reason or "unknown_failure"
    if job.kind != "bridge":
        body |= {
            **_artifacts(job),
            "runner": runner_body(job.runner),
            "runner_manager": None,
            "tag_list": sorted(job.tags),
        }
    return body


def _artifacts(job: Job) -> dict[str, Any]:
    """https://docs.gitlab.com/api/jobs/"""
    archive = next((one for one in job.artifacts if one.file_type == "archive"), None)
    body: dict[str, Any] = {
        "artifacts": [
            {
                "file_type": one.file_type,
                "size": one.size,
                "filename": one.filename,
                "file_format": one.file_format,
            }
            for one in job.artifacts
        ],
        "artifacts_expire_at": iso(archive.expires_at) if archive else None,
    }
    if archive is not None:
        body["artifacts_file"] = {"filename": archive.filename, "size": archive.size}
    return body


def bridge_bodies(
    config: ForgeConfig,
    project: Project,
    jobs: Sequence[Job],
    children: dict[int, Pipeline],
) -> list[dict[str, Any]]:
    """Trigger jobs, each with the pipeline that it started."""
    bodies = job_bodies(config, project, jobs)
    for body, job in zip(bodies, jobs, strict=True):
        child = children.get(job.child_pipeline_id or 0)
        body["downstream_pipeline"] = pipeline_basic(config, child) if child else None
    return bodies

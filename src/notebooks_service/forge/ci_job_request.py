"""What a runner is given with a job: GitLab's answer to ``POST /jobs/request``.

https://docs.gitlab.com/development/cicd/ and ``lib/api/entities/ci/job_request`` of GitLab.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from sqlalchemy.orm import Session

from notebooks_service.forge import (
    ci_artifacts,
    ci_git,
    ci_variables,
    deploy_tokens,
    own_variables,
    protection,
)
from notebooks_service.forge.ci_models import Job, Runner
from notebooks_service.forge.config import ForgeConfig
from notebooks_service.forge.database import now

GIT_DEPTH = 20


def payload(
    session: Session, config: ForgeConfig, job: Job, runner: Runner, token: str
) -> dict[str, Any]:
    """The whole job for ``runner``; ``token`` is the job's, known only here and to the runner."""
    pipeline, project = job.pipeline, job.pipeline.project
    commit = ci_git.commits(config, project.id, [pipeline.sha]).get(pipeline.sha)
    protected = protection.is_protected(session, project, pipeline.ref, pipeline.tag)
    environment = str(job.options.get("environment") or "")
    own = own_variables.for_project(session, project, protected=protected, environment=environment)
    variables = ci_variables.for_job(
        config,
        job,
        runner,
        token,
        commit,
        own,
        pipeline.yaml_variables,
        protected,
        ci_artifacts.reported(session, job),
        deploy_tokens.for_jobs(session, config.secrets, project),
    )
    address = urlsplit(f"{config.url}/{project.full_path}.git")
    timeout = min(job.timeout, runner.maximum_timeout or job.timeout)
    kind = "tags" if pipeline.tag else "heads"
    there = "tags" if pipeline.tag else "remotes/origin"
    image = job.options.get("image")
    queued = (job.started_at or now()) - (job.queued_at or job.created_at)
    return {
        "id": job.id,
        "token": token,
        "allow_git_fetch": True,
        "job_info": {
            "id": job.id,
            "name": job.name,
            "stage": job.stage,
            "pipeline_id": pipeline.id,
            "project_id": project.id,
            "project_name": project.path,
            "project_full_path": project.full_path,
            "namespace_id": project.namespace_id,
            "user_id": job.user_id,
            "time_in_queue_seconds": max(int(queued.total_seconds()), 0),
            "project_jobs_running_on_instance_runners_count": "0",
        },
        "git_info": {
            "repo_url": address._replace(
                netloc=f"gitlab-ci-token:{token}@{address.netloc}"
            ).geturl(),
            "ref": pipeline.ref,
            "sha": pipeline.sha,
            "before_sha": pipeline.before_sha,
            "ref_type": "tag" if pipeline.tag else "branch",
            # GitLab has a ref of its own for each pipeline (refs/pipelines/<id>); here the commit
            # itself may be fetched, so a branch that moved or went away does not matter.
            "refspecs": [
                f"+{pipeline.sha}:refs/pipelines/{pipeline.id}",
                f"+refs/{kind}/{pipeline.ref}:refs/{there}/{pipeline.ref}",
            ],
            "depth": GIT_DEPTH,
            "repo_object_format": "sha1",
            "protected": protected,
        },
        "runner_info": {"timeout": timeout, "runner_session_url": None},
        "variables": [variable.body() for variable in variables],
        "steps": _steps(job, timeout),
        "image": {**image, "pull_policy": None, "ports": []} if image else None,
        "services": job.options.get("services") or [],
        "artifacts": ci_artifacts.wanted(job),
        "cache": [],
        "credentials": [
            {
                "type": "registry",
                "url": config.registry_host,
                "username": "gitlab-ci-token",
                "password": token,
            }
        ],
        "features": {
            "trace_sections": True,
            "failure_reasons": [
                "unknown_failure",
                "script_failure",
                "runner_system_failure",
                "job_execution_timeout",
            ],
        },
        "dependencies": [
            {
                "id": one.id,
                "name": one.name,
                # As in GitLab: the running job's token opens them, each job's own is not told.
                "token": token,
                "artifacts_file": {"filename": archive.filename, "size": archive.size},
            }
            for one, archive in ci_artifacts.dependencies(session, job)
        ],
        "hooks": [],
    }


def _steps(job: Job, timeout: int) -> list[dict[str, Any]]:
    steps = [
        {
            "name": "script",
            "script": job.options.get("script") or [],
            "timeout": timeout,
            "when": "on_success",
            "allow_failure": False,
        }
    ]
    if job.options.get("after_script"):
        steps.append(
            {
                "name": "after_script",
                "script": job.options["after_script"],
                "timeout": timeout,
                "when": "always",
                "allow_failure": True,
            }
        )
    return steps

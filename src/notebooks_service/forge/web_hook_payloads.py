"""What a webhook is told: GitLab's payloads of pushes, tags, jobs and pipelines.

https://docs.gitlab.com/user/project/integrations/webhook_events/
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import select
from sqlalchemy.orm import Session

from notebooks_service.forge import access, history, protection, repositories
from notebooks_service.forge.ci_git import NO_SHA, CommitFacts
from notebooks_service.forge.ci_models import Artifact, Job, Pipeline, Runner
from notebooks_service.forge.config import ForgeConfig
from notebooks_service.forge.database import iso
from notebooks_service.forge.git_process import GitFailed, git
from notebooks_service.forge.models import Project, User

MOST_COMMITS = 20
"""Commits in one push's payload, as on GitLab; ``total_commits_count`` has the whole number."""
MOST_PATHS = 1000
"""Changed paths of one commit that a payload names."""
_LEVELS = {"private": 0, "internal": 10, "public": 20}
_REDACTED = "[REDACTED]"
_LABELS = {"success": "passed", "manual": "manual action", "scheduled": "delayed"}


def label(status: str) -> str:
    """A status in GitLab's words."""
    return _LABELS.get(status, status)


def project_body(config: ForgeConfig, project: Project) -> dict[str, Any]:
    web_url = f"{config.url}/{project.full_path}"
    host = urlsplit(config.url).hostname
    ssh = f"git@{host}:{project.full_path}.git"
    return {
        "id": project.id,
        "name": project.name,
        "description": project.description,
        "web_url": web_url,
        "avatar_url": None,
        "git_ssh_url": ssh,
        "git_http_url": f"{web_url}.git",
        "namespace": project.namespace.name,
        "visibility_level": _LEVELS[project.visibility],
        "path_with_namespace": project.full_path,
        "default_branch": project.default_branch,
        "ci_config_path": None,
    }


def _with_old_names(body: dict[str, Any]) -> dict[str, Any]:
    """The keys that GitLab keeps in pushes for old receivers."""
    return {
        **body,
        "homepage": body["web_url"],
        "url": body["git_ssh_url"],
        "ssh_url": body["git_ssh_url"],
        "http_url": body["git_http_url"],
    }


def _repository_body(body: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": body["name"],
        "url": body["git_ssh_url"],
        "description": body["description"],
        "homepage": body["web_url"],
        "git_http_url": body["git_http_url"],
        "git_ssh_url": body["git_ssh_url"],
        "visibility_level": body["visibility_level"],
    }


def user_body(user: User | None) -> dict[str, Any] | None:
    """A person. Nobody has a public e-mail address here, so it is redacted, as GitLab does then."""
    if user is None:
        return None
    return {
        "id": user.id,
        "name": user.name,
        "username": user.username,
        "avatar_url": None,
        "email": _REDACTED,
    }


def commit_body(config: ForgeConfig, project: Project, facts: CommitFacts) -> dict[str, Any]:
    return {
        "id": facts.sha,
        "message": facts.message,
        "title": facts.title,
        "timestamp": facts.authored_at,
        "url": f"{config.url}/{project.full_path}/-/commit/{facts.sha}",
        "author": {"name": facts.author_name, "email": facts.author_email},
    }


def _changed(repository: Path, facts: CommitFacts) -> dict[str, list[str]]:
    """Paths that a commit added, modified and removed, against its first parent."""
    base = facts.parents[0] if facts.parents else history.EMPTY_TREE
    out = git(
        repository, "diff-tree", "-r", "-z", "--name-status", "--no-renames", base, facts.sha, "--"
    )
    found: dict[str, list[str]] = {"added": [], "modified": [], "removed": []}
    kinds = {"A": "added", "D": "removed"}
    fields = out.decode("utf-8", "replace").split("\0")
    for status, path in zip(fields[::2], fields[1::2], strict=False):
        paths = found[kinds.get(status, "modified")]
        if len(paths) < MOST_PATHS:
            paths.append(path)
    return found


@dataclass(frozen=True)
class Pushed:
    """One ref that was changed; 40 zeros for "was not there" and "is gone"."""

    ref: str
    before: str
    after: str
    options: Sequence[str] = ()

    @property
    def is_tag(self) -> bool:
        return self.ref.startswith("refs/tags/")

    @property
    def name(self) -> str:
        return self.ref.split("/", 2)[-1]


def push_body(
    session: Session, config: ForgeConfig, project: Project, user: User, push: Pushed
) -> dict[str, Any]:
    """The payload of a push or a tag. Reads the repository."""
    repository = config.repository(project.id)
    kind = "tag_push" if push.is_tag else "push"
    new, total, message, checkout = _new_commits(repository, project, push)
    body = project_body(config, project)
    return {
        "object_kind": kind,
        "event_name": kind,
        "before": push.before,
        "after": push.after,
        "ref": push.ref,
        "ref_protected": protection.is_protected(session, project, push.name, push.is_tag),
        "checkout_sha": checkout,
        "message": message,
        "user_id": user.id,
        "user_name": user.name,
        "user_username": user.username,
        "user_email": None,
        "user_avatar": None,
        "project_id": project.id,
        "project": _with_old_names(body),
        "commits": [
            {**commit_body(config, project, facts), **_changed(repository, facts)} for facts in new
        ],
        "total_commits_count": total,
        "push_options": _options(push.options),
        "repository": _repository_body(body),
    }


def _options(options: Sequence[str]) -> dict[str, Any]:
    """``ci.skip`` becomes ``{"ci": {"skip": true}}``, as GitLab shows push options."""
    found: dict[str, Any] = {}
    for option in options:
        name, equals, value = option.partition("=")
        group, dot, key = name.partition(".")
        if not dot or key == "variable":  # a variable's value may be a secret
            continue
        inner = found.setdefault(group, {})
        inner[key] = value if equals else True
    return found


def _new_commits(
    repository: Path, project: Project, push: Pushed
) -> tuple[list[CommitFacts], int, str | None, str | None]:
    """The newest commits, oldest first; how many there are; a tag's message; what to check out."""
    if push.after == NO_SHA:
        return [], 0, None, None
    if push.is_tag:
        tag = repositories.one_ref(repository, "tags", push.name)
        if tag is None:
            return [], 0, None, repositories.resolve(repository, push.after)
        return [], 0, tag.message or None, tag.commit
    checkout = repositories.resolve(repository, push.after)
    if checkout is None:
        return [], 0, None, None
    leave = [f"^{push.before}"]
    if push.before == NO_SHA:
        default = repositories.one_ref(repository, "heads", project.default_branch)
        # A new branch brings what the default branch has not; the first one brings everything.
        leave = [f"^{default.commit}"] if default and push.name != project.default_branch else []
    try:
        newest = history.log(repository, [checkout, *leave], count=MOST_COMMITS)
        total = len(newest)
        if total == MOST_COMMITS:
            out = git(repository, "rev-list", "--count", "--end-of-options", checkout, *leave)
            total = int(out)
    except GitFailed:
        # What was there before may be gone after a forced push.
        newest, total = history.log(repository, [checkout], count=1), 1
    return list(reversed(newest)), total, None, checkout


def sample_push(
    session: Session, config: ForgeConfig, project: Project, user: User, *, tag: bool
) -> dict[str, Any]:
    """What the test of a hook sends: the newest commits of the default branch, or its newest tag."""
    repository = config.repository(project.id)
    tip = repositories.one_ref(repository, "heads", project.default_branch)
    sha = tip.commit if tip else NO_SHA
    if tag:
        return push_body(session, config, project, user, Pushed("refs/tags/v1.0.0", NO_SHA, sha))
    recent = history.log(repository, [sha], count=3) if tip else []
    before = recent[-1].sha if recent else NO_SHA
    return push_body(
        session, config, project, user, Pushed(f"refs/heads/{project.default_branch}", before, sha)
    )


# Continuous integration -----------------------------------------------------------------------


def _runner_body(runner: Runner | None) -> dict[str, Any] | None:
    if runner is None:
        return None
    return {
        "id": runner.id,
        "description": runner.description,
        "runner_type": "instance_type",
        "active": not runner.paused,
        "is_shared": True,
        "tags": list(runner.tags),
    }


def _seconds(start: datetime | None, end: datetime | None) -> float | None:
    if start is None or end is None:
        return None
    return round(max((end - start).total_seconds(), 0.0), 6)


def job_body(session: Session, config: ForgeConfig, job: Job) -> dict[str, Any]:
    """The payload of a job as it is now; ``commit`` lacks what only git knows."""
    pipeline, project = job.pipeline, job.pipeline.project
    runner = session.get(Runner, job.runner_id) if job.runner_id else None
    body = project_body(config, project)
    return {
        "object_kind": "build",
        "ref": pipeline.ref,
        "tag": pipeline.tag,
        "before_sha": pipeline.before_sha,
        "sha": pipeline.sha,
        "build_id": job.id,
        "build_name": job.name,
        "build_stage": job.stage,
        "build_status": job.status,
        "build_created_at": iso(job.created_at),
        "build_started_at": iso(job.started_at),
        "build_finished_at": iso(job.finished_at),
        "build_duration": _seconds(job.started_at, job.finished_at),
        "build_queued_duration": _seconds(job.queued_at, job.started_at),
        "build_allow_failure": job.allow_failure,
        "build_failure_reason": job.failure_reason or "unknown_failure",
        "retries_count": job.tries,
        "pipeline_id": pipeline.id,
        "runner": _runner_body(runner),
        "project_id": project.id,
        "project_name": f"{_full_name(session, project)} / {project.name}",
        "user": user_body(_user(session, job.user_id)),
        "commit": {
            "id": pipeline.id,
            "name": pipeline.name,
            "sha": pipeline.sha,
            "status": pipeline.status,
            "duration": pipeline.duration,
            "started_at": iso(pipeline.started_at),
            "finished_at": iso(pipeline.finished_at),
        },
        "repository": _repository_body(body),
        "project": body,
        "environment": None,
        **_source(config, session, pipeline),
    }


def _full_name(session: Session, project: Project) -> str:
    return " / ".join(reversed([one.name for one in access.ancestors(session, project.namespace)]))


def _user(session: Session, user_id: int | None) -> User | None:
    return session.get(User, user_id) if user_id else None


def _source(config: ForgeConfig, session: Session, pipeline: Pipeline) -> dict[str, Any]:
    above = session.get(Job, pipeline.parent_job_id) if pipeline.parent_job_id else None
    if above is None:
        return {}
    project = pipeline.project
    return {
        "source_pipeline": {
            "project": {
                "id": project.id,
                "web_url": f"{config.url}/{project.full_path}",
                "path_with_namespace": project.full_path,
            },
            "pipeline_id": above.pipeline_id,
            "job_id": above.id,
        }
    }


def pipeline_body(
    session: Session, config: ForgeConfig, pipeline: Pipeline, jobs: Sequence[Job]
) -> dict[str, Any]:
    """The payload of a pipeline as it is now; ``commit`` is added when it is sent."""
    project = pipeline.project
    queued = _seconds(pipeline.created_at, pipeline.started_at)
    query = select(Artifact).where(
        Artifact.job_id.in_([job.id for job in jobs]), Artifact.file_type == "archive"
    )
    archives = {
        one.job_id: {"filename": one.filename, "size": one.size} for one in session.scalars(query)
    }
    return {
        "object_kind": "pipeline",
        "object_attributes": {
            "id": pipeline.id,
            "iid": pipeline.iid,
            "name": pipeline.name,
            "ref": pipeline.ref,
            "tag": pipeline.tag,
            "sha": pipeline.sha,
            "before_sha": pipeline.before_sha,
            "source": pipeline.source,
            "status": pipeline.status,
            "detailed_status": label(pipeline.status),
            # Those that have jobs.
            "stages": list(dict.fromkeys(job.stage for job in jobs)),
            "created_at": iso(pipeline.created_at),
            "finished_at": iso(pipeline.finished_at),
            "duration": pipeline.duration,
            "queued_duration": None if queued is None else int(queued),
            "protected_ref": protection.is_protected(session, project, pipeline.ref, pipeline.tag),
            # Their values are for jobs, not for a receiver; GitLab leaves secret ones out as well.
            "variables": [],
            "url": f"{config.url}/{project.full_path}/-/pipelines/{pipeline.id}",
        },
        "merge_request": None,
        "user": user_body(_user(session, pipeline.user_id)),
        "project": project_body(config, project),
        "commit": None,
        **_source(config, session, pipeline),
        "builds": [
            {
                "id": job.id,
                "stage": job.stage,
                "name": job.name,
                "status": job.status,
                "created_at": iso(job.created_at),
                "started_at": iso(job.started_at),
                "finished_at": iso(job.finished_at),
                "duration": _seconds(job.started_at, job.finished_at),
                "queued_duration": _seconds(job.queued_at, job.started_at),
                "failure_reason": job.failure_reason if job.status == "failed" else None,
                "when": job.when,
                "manual": job.when == "manual",
                "allow_failure": job.allow_failure,
                "user": user_body(_user(session, job.user_id)),
                "runner": _runner_body(
                    session.get(Runner, job.runner_id) if job.runner_id else None
                ),
                "artifacts_file": archives.get(job.id, {"filename": None, "size": None}),
                "environment": None,
            }
            for job in jobs
        ],
    }


def add_commit(
    config: ForgeConfig, project: Project, payload: dict[str, Any], sha: str
) -> dict[str, Any]:
    """``payload`` of a job or pipeline with what git knows of its commit."""
    try:
        facts = history.commit(config.repository(project.id), sha)
    except GitFailed:
        facts = None
    if facts is None:
        return payload
    if payload["object_kind"] == "pipeline":
        return {**payload, "commit": commit_body(config, project, facts)}
    commit = {
        **payload["commit"],
        "message": facts.message,
        "author_name": facts.author_name,
        "author_email": facts.author_email,
        "author_url": f"mailto:{facts.author_email}",
    }
    return {**payload, "commit": commit}

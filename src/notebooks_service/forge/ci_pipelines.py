"""Makes pipelines: for pushes, for calls of the API, for trigger jobs.

First ``prepare`` (reads the repository, decides, changes nothing), then ``store`` (writes the rows).
``pushed`` is what the git routes call after a push.
https://docs.gitlab.com/ci/pipelines/
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from notebooks_service.errors import NotebooksError
from notebooks_service.forge import (
    access,
    ci_git,
    ci_processing,
    ci_variables,
    own_variables,
    protection,
    repositories,
)
from notebooks_service.forge.authentication import JOB_TOKENS, Asker
from notebooks_service.forge.ci_config import parse
from notebooks_service.forge.ci_jobs import CiJob
from notebooks_service.forge.ci_models import Job, Pipeline
from notebooks_service.forge.ci_queue import QUEUE
from notebooks_service.forge.ci_rules import NoPipeline, Occasion, Plan, plan
from notebooks_service.forge.ci_yaml import TEXT_LIMIT, CiConfigInvalid
from notebooks_service.forge.config import ForgeConfig
from notebooks_service.forge.credentials import token_hash
from notebooks_service.forge.database import Database
from notebooks_service.forge.models import Project, User
from notebooks_service.forge.permissions import Can

log = logging.getLogger(__name__)

DEFAULT_TIMEOUT = 3600
"""Seconds that a job may run if it says nothing else, as in GitLab's projects."""

PUSHED_REFS = 4
"""A push of many refs makes pipelines for the first four (GitLab: ``git_push_create_all_pipelines``)."""

_SKIP = re.compile(r"\[(ci[ -]skip|skip[ -]ci)\]", re.IGNORECASE)


@dataclass(frozen=True)
class Request:
    """What a pipeline is asked for. ``variables`` are bodies with ``key`` and ``value``.

    ``config_file`` names a child pipeline's file; ``skip`` is the push option ``ci.skip``.
    """

    project: Project
    user: User | None
    ref: str
    tag: bool
    sha: str
    source: str
    before_sha: str = ci_git.NO_SHA
    variables: tuple[Mapping[str, Any], ...] = ()
    config_file: str | None = None
    parent_job_id: int | None = None
    skip: bool = False


@dataclass(frozen=True)
class Prepared:
    """A pipeline that is decided and not yet written: a plan, or the sentence that refuses it."""

    request: Request
    plan: Plan | None
    error: CiConfigInvalid | None = None
    skipped: bool = False
    raw_variables: frozenset[str] = frozenset()


@dataclass(frozen=True)
class RefChange:
    """One ref that a push changed; 40 zeros stand for "did not exist" and "is gone"."""

    ref: str
    old: str
    new: str


def may_run(config: ForgeConfig, user: User | None) -> bool:
    """Whether this forge runs pipelines of this person at all (``--pipelines-of``)."""
    return not config.pipelines_of or (
        user is not None and user.username.lower() == config.pipelines_of.lower()
    )


def prepare(session: Session, config: ForgeConfig, request: Request) -> Prepared:
    """Reads the configuration of the commit and decides about it.

    Raises ``NoPipeline`` if its rules want none.
    """
    project = request.project
    commit = ci_git.commits(config, project.id, [request.sha]).get(request.sha)
    if commit is None:
        raise NoPipeline("Commit not found")
    wanted_anyway = request.source not in ("push",)
    if not wanted_anyway and (request.skip or _SKIP.search(commit.message)):
        return Prepared(request, None, skipped=True)
    protected = protection.is_protected(session, project, request.ref, request.tag)
    own = own_variables.for_project(session, project, protected=protected)
    variables = {
        **ci_variables.of_project(config, project),
        **ci_variables.of_commit(
            request.ref,
            request.tag,
            protected,
            request.sha,
            request.before_sha,
            request.source,
            commit,
        ),
        **ci_variables.of_user(request.user),
        **{variable.key: variable.value for variable in own},
        **{item["key"]: str(item["value"]) for item in request.variables},
    }
    occasion = Occasion(
        ref=request.ref,
        tag=request.tag,
        source=request.source,
        variables=variables,
        project_path=project.full_path,
        # Once for all rules: each asking is a process.
        changed=functools.cache(lambda: _changed(config, request)),
        files=functools.cache(lambda: ci_git.paths_at(config, project.id, request.sha)),
    )
    try:
        parsed = parse(_configuration(config, request))
        return Prepared(request, plan(parsed, occasion), raw_variables=parsed.raw_variables)
    except CiConfigInvalid as error:
        return Prepared(request, None, error)


def _changed(config: ForgeConfig, request: Request) -> frozenset[str] | None:
    if request.source != "push" or request.tag:
        return None
    return ci_git.changed_paths(config, request.project.id, request.before_sha, request.sha)


def _configuration(config: ForgeConfig, request: Request) -> str:
    path = request.config_file or ci_git.CONFIG_FILE
    found = ci_git.file_at(config, request.project.id, request.sha, path, TEXT_LIMIT)
    if found is not None:
        return found.decode("utf-8", "replace")
    if request.config_file:
        raise CiConfigInvalid(f"Local file `{path}` does not exist!")
    return files("notebooks_service.forge").joinpath("default_ci.yml").read_text()


def store(session: Session, prepared: Prepared) -> Pipeline:
    """Writes the pipeline with its jobs and starts the first of them."""
    request, planned = prepared.request, prepared.plan
    pipeline = Pipeline(
        iid=ci_processing.next_iid(session, request.project.id),
        project_id=request.project.id,
        user_id=request.user.id if request.user else None,
        parent_job_id=request.parent_job_id,
        sha=request.sha,
        before_sha=request.before_sha,
        ref=request.ref,
        tag=request.tag,
        source=request.source,
        variables=[
            {
                "key": str(item["key"]),
                "value": str(item["value"]),
                "variable_type": str(item.get("variable_type") or "env_var"),
            }
            for item in request.variables
        ],
    )
    session.add(pipeline)
    if planned is None:
        pipeline.status = "skipped" if prepared.skipped else "failed"
        if prepared.error is not None:
            pipeline.yaml_errors = prepared.error.message
            pipeline.failure_reason = "config_error"
        session.flush()
        session.refresh(pipeline)
        return pipeline
    pipeline.name = planned.name
    pipeline.stages = list(planned.stages)
    pipeline.yaml_variables = dict(planned.variables)
    session.flush()
    order = {stage: index for index, stage in enumerate(planned.stages)}
    for job in planned.jobs:
        session.add(_row(pipeline, job, order[job.stage], prepared.raw_variables))
    session.flush()
    session.refresh(pipeline)
    ci_processing.process(session, pipeline)
    session.flush()
    return pipeline


def _row(pipeline: Pipeline, job: CiJob, stage_index: int, raw: frozenset[str]) -> Job:
    options: dict[str, Any] = {
        "script": list(job.script),
        "after_script": list(job.after_script),
        "image": dict(job.image) if job.image else None,
        "services": [dict(service) for service in job.services],
        "start_in": job.start_in,
        "retry": job.retry,
        "retry_when": list(job.retry_when),
        "allow_failure_codes": list(job.allow_failure_codes),
        "raw_variables": sorted(raw | job.raw_variables),
        "artifacts": dict(job.artifacts) if job.artifacts else None,
        "dependencies": None if job.dependencies is None else list(job.dependencies),
        "needs_without_artifacts": [one.job for one in job.needs or () if not one.artifacts],
        "parallel_name": job.parallel_name,
        "environment": job.environment,
    }
    if job.trigger is not None:
        options["child_files"] = list(job.trigger.files)
        options["depend"] = job.trigger.depend
    return Job(
        project_id=pipeline.project_id,
        pipeline_id=pipeline.id,
        user_id=pipeline.user_id,
        kind="bridge" if job.trigger else "build",
        name=job.name,
        stage=job.stage,
        stage_index=stage_index,
        when=job.when,
        allow_failure=job.allow_failure,
        needs=None if job.needs is None else [need.job for need in job.needs],
        tags=list(job.tags),
        variables=dict(job.variables),
        options=options,
        timeout=job.timeout or DEFAULT_TIMEOUT,
    )


def pushed(
    database: Database,
    config: ForgeConfig,
    project_id: int,
    user_id: int,
    changes: Iterable[RefChange],
    push_options: Sequence[str] = (),
) -> list[int]:
    """Makes the pipelines of a push that was accepted; their ids.

    One for the tip of each pushed branch and tag. The push stands whatever happens here: errors
    are logged, and a wrong configuration gives a failed pipeline.
    """
    skip, variables = read_push_options(push_options)
    made: list[int] = []
    wanted = [
        change
        for change in changes
        if change.ref.startswith(("refs/heads/", "refs/tags/")) and change.new != ci_git.NO_SHA
    ]
    for change in wanted[:PUSHED_REFS]:
        try:
            pipeline_id = _for_change(
                database, config, project_id, user_id, change, skip, variables
            )
        except NotebooksError as error:
            log.warning("no pipeline for a push to project %d: %s", project_id, error.message)
        except Exception:
            log.exception("no pipeline for a push to project %d", project_id)
        else:
            if pipeline_id is not None:
                made.append(pipeline_id)
    if made:
        QUEUE.changed()
    return made


def _for_change(
    database: Database,
    config: ForgeConfig,
    project_id: int,
    user_id: int,
    change: RefChange,
    skip: bool,
    variables: tuple[Mapping[str, Any], ...],
) -> int | None:
    tag = change.ref.startswith("refs/tags/")
    sha = repositories.resolve(config.repository(project_id), change.ref if tag else change.new)
    with database.read() as session:
        project, user = session.get(Project, project_id), session.get(User, user_id)
        if project is None or user is None or sha is None or not may_run(config, user):
            return None
        asker = Asker(user, frozenset(), "oauth")
        if Can.RUN_PIPELINES not in access.project_access(session, asker, project).can:
            return None
        request = Request(
            project=project,
            user=user,
            ref=change.ref.removeprefix("refs/tags/" if tag else "refs/heads/"),
            tag=tag,
            sha=sha,
            source="push",
            before_sha=change.old,
            variables=variables,
            skip=skip,
        )
        try:
            prepared = prepare(session, config, request)
        except NoPipeline:
            return None
    with database.write() as session:
        return store(session, prepared).id


def read_push_options(options: Iterable[str]) -> tuple[bool, tuple[Mapping[str, Any], ...]]:
    """Whether to skip, and the variables: https://docs.gitlab.com/topics/git/commit/#push-options"""
    skip = False
    variables: list[Mapping[str, Any]] = []
    for option in options:
        name, _, value = option.partition("=")
        if name == "ci.skip":
            skip = True
        elif name == "ci.variable":
            key, equals, text = value.partition("=")
            if equals and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,254}", key):
                variables.append({"key": key, "value": text})
    return skip, tuple(variables)


def project_of_job_token(session: Session, token: str) -> int | None:
    """The project that a job's token may read: its own, while the job runs. Otherwise None."""
    asker = asker_of_job_token(session, token)
    return asker.project_id if asker else None


def asker_of_job_token(session: Session, token: str) -> Asker | None:
    """Who a running job's token speaks for: the person whose job it is, in that project only."""
    job = session.scalar(
        select(Job).where(Job.token_hash == token_hash(token), Job.status == "running")
    )
    if job is None:
        return None
    user = job.user or job.pipeline.user
    return Asker(user, frozenset({"read_repository"}), "job", job.id, job.project_id)


JOB_TOKENS.append(asker_of_job_token)

"""Statuses of a commit: what its jobs came to, and what other systems report.

https://docs.gitlab.com/api/commits/#commit-status
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from sqlalchemy import select

from notebooks_service.forge import ci_external, errors, protection, repositories
from notebooks_service.forge.access import find_project
from notebooks_service.forge.authentication import Asks
from notebooks_service.forge.ci_bodies import user_body
from notebooks_service.forge.ci_external import Report
from notebooks_service.forge.ci_models import Job, Pipeline
from notebooks_service.forge.ci_parameters import Parameters, flag, number, text
from notebooks_service.forge.config import ForgeConfig
from notebooks_service.forge.database import SessionDep, iso
from notebooks_service.forge.pagination import PagingDep
from notebooks_service.forge.permissions import Can
from notebooks_service.forge.routes_commits import find_commit
from notebooks_service.forge.routes_repository import repository_of

router = APIRouter(prefix="/api/v4/projects/{project_id:segment}")

TEXT_LIMIT = 255


def _body(config: ForgeConfig, job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "sha": job.pipeline.sha,
        "ref": job.pipeline.ref,
        "status": job.status,
        "name": job.name,
        "target_url": job.options.get("target_url"),
        "description": job.options.get("description"),
        "created_at": iso(job.created_at),
        "started_at": iso(job.started_at),
        "finished_at": iso(job.finished_at),
        "allow_failure": job.allow_failure,
        "coverage": job.options.get("coverage"),
        "pipeline_id": job.pipeline_id,
        "author": user_body(config, job.user),
    }


@router.get("/repository/commits/{sha:segment}/statuses")
def list_statuses(
    project_id: str,
    sha: str,
    asker: Asks,
    session: SessionDep,
    paging: PagingDep,
    parameters: Parameters,
    request: Request,
) -> list[dict[str, Any]]:
    """https://docs.gitlab.com/api/commits/#list-commit-statuses — jobs of pipelines are among them."""
    found = find_project(session, asker, project_id, Can.READ_PIPELINES)
    found.need(Can.READ_CODE)
    facts = find_commit(request, found, sha)
    query = (
        select(Job)
        .join(Pipeline, Pipeline.id == Job.pipeline_id)
        .where(Pipeline.project_id == found.project.id, Pipeline.sha == facts.sha)
    )
    if not flag(parameters, "all"):
        query = query.where(Job.retried.is_(False))
    for name, column in (("ref", Pipeline.ref), ("stage", Job.stage), ("name", Job.name)):
        value = text(parameters, name)
        if value is not None:
            query = query.where(column == value)
    pipeline_id = number(parameters, "pipeline_id")
    if pipeline_id is not None:
        query = query.where(Pipeline.id == pipeline_id)
    orders = {"id": (Job.id,), "pipeline_id": (Pipeline.id, Job.id)}
    columns = orders.get(text(parameters, "order_by") or "id")
    sort = text(parameters, "sort") or "asc"
    if columns is None or sort not in ("asc", "desc"):
        wrong = "order_by" if columns is None else "sort"
        raise errors.ForgeError(400, {"error": f"{wrong} does not have a valid value"})
    query = query.order_by(*(one.desc() if sort == "desc" else one.asc() for one in columns))
    config: ForgeConfig = request.app.state.config
    return [_body(config, job) for job in paging.rows(session, query)]


@router.post("/statuses/{sha:segment}", status_code=201)
def set_status(
    project_id: str,
    sha: str,
    asker: Asks,
    session: SessionDep,
    parameters: Parameters,
    request: Request,
) -> dict[str, Any]:
    """https://docs.gitlab.com/api/commits/#set-commit-pipeline-status

    Without a pipeline of the commit one is made, of source ``external``.
    """
    user = asker.need_user()
    found = find_project(session, asker, project_id)
    found.need(Can.RUN_PIPELINES)
    state = text(parameters, "state")
    if state is None:
        raise errors.ForgeError(400, {"error": "state is missing"})
    if state not in ci_external.STATES:
        raise errors.ForgeError(400, {"error": "state does not have a valid value"})
    repository = repository_of(request, found)
    commit = find_commit(request, found, sha).sha
    asked = text(parameters, "ref", limit=TEXT_LIMIT) or None
    if asked is not None and not repositories.is_ref_name(asked):
        raise errors.ForgeError(400, {"error": "ref is invalid"})
    pipeline_id = number(parameters, "pipeline_id")
    pipeline = ci_external.find_pipeline(session, found.project, commit, asked, pipeline_id)
    if pipeline is None and pipeline_id is not None:
        raise errors.not_found("Pipeline for pipeline_id, sha and ref")
    ref = asked or (pipeline.ref if pipeline else None)
    if ref is None:
        branches = repositories.refs_containing(repository, commit, ("heads",))
        if not branches:
            raise errors.not_found("References for commit")
        ref = branches[0][1]
    tag = pipeline.tag if pipeline else repositories.one_ref(repository, "heads", ref) is None
    if not protection.may_run_on(session, found, ref, tag):
        raise errors.forbidden()
    target_url = text(parameters, "target_url", limit=TEXT_LIMIT)
    if target_url and not target_url.startswith(("http://", "https://")):
        raise errors.invalid("target_url", "is blocked: Only allowed schemes are http, https")
    job = ci_external.report(
        session,
        found.project,
        user,
        Report(
            sha=commit,
            ref=ref,
            tag=tag,
            state=state,
            name=text(parameters, "name", limit=TEXT_LIMIT)
            or text(parameters, "context", limit=TEXT_LIMIT)
            or "default",
            target_url=target_url or None,
            description=text(parameters, "description", limit=TEXT_LIMIT),
            coverage=_coverage(text(parameters, "coverage")),
        ),
        pipeline,
    )
    return _body(request.app.state.config, job)


def _coverage(value: str | None) -> float | None:
    if not value:
        return None
    try:
        found = float(value)
    except ValueError:
        found = -1.0
    if not 0 <= found <= 100:
        raise errors.ForgeError(400, {"error": "coverage is invalid"})
    return found

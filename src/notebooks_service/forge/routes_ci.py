"""Pipelines of the forge's API. https://docs.gitlab.com/api/pipelines/"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from notebooks_service.forge import (
    ci_artifacts,
    ci_pipelines,
    ci_processing,
    ci_status,
    ci_traces,
    errors,
    protection,
    repositories,
)
from notebooks_service.forge.access import ProjectAccess, find_project
from notebooks_service.forge.authentication import Asker, Asks
from notebooks_service.forge.ci_bodies import (
    bridge_bodies,
    job_bodies,
    pipeline_basic,
    pipeline_body,
)
from notebooks_service.forge.ci_models import Job, Pipeline
from notebooks_service.forge.ci_parameters import Parameters, flag, text, words
from notebooks_service.forge.ci_rules import NoPipeline
from notebooks_service.forge.config import ForgeConfig
from notebooks_service.forge.database import SessionDep
from notebooks_service.forge.models import User
from notebooks_service.forge.pagination import PagingDep
from notebooks_service.forge.permissions import Can
from notebooks_service.forge.routes_variables import KEY, variable_type

router = APIRouter(prefix="/api/v4/projects/{project_id:segment}")

PipelineId = Annotated[int, Path(ge=1, lt=2**63)]

_SCOPES: Mapping[str, tuple[str, ...]] = {
    "running": ("running",),
    "pending": ("pending",),
    "finished": ("success", "failed", "canceled"),
}
_ORDERS = {
    "id": Pipeline.id,
    "status": Pipeline.status,
    "ref": Pipeline.ref,
    "updated_at": Pipeline.updated_at,
    "user_id": Pipeline.user_id,
}


def config_of(request: Request) -> ForgeConfig:
    config: ForgeConfig = request.app.state.config
    return config


def may_write(
    session: Session, asker: Asker, project_id: str, config: ForgeConfig
) -> ProjectAccess:
    """The project, for somebody who may run pipelines there. 401, 403, 404 as GitLab."""
    asker.need_user()
    found = find_project(session, asker, project_id, Can.RUN_PIPELINES)
    if not ci_pipelines.may_run(config, asker.user):
        raise errors.forbidden("Pipelines of this forge run for the owner of the machine only")
    return found


def may_change(session: Session, found: ProjectAccess, pipeline: Pipeline) -> None:
    """Raises GitLab's 403 for who may neither push nor merge to the pipeline's protected ref.

    https://docs.gitlab.com/ci/pipelines/#pipeline-security-on-protected-branches
    """
    if not protection.may_run_on(session, found, pipeline.ref, pipeline.tag):
        raise errors.forbidden()


def find_pipeline(session: Session, found: ProjectAccess, pipeline_id: int) -> Pipeline:
    pipeline = session.get(Pipeline, pipeline_id)
    if pipeline is None or pipeline.project_id != found.project.id:
        raise errors.not_found()
    return pipeline


def _moment(parameters: dict[str, Any], name: str) -> datetime | None:
    value = text(parameters, name)
    if value is None:
        return None
    try:
        return datetime.fromisoformat(value).astimezone()
    except (ValueError, OverflowError):
        raise errors.ForgeError(400, {"error": f"{name} is invalid"}) from None


def _one_of(parameters: dict[str, Any], name: str, known: Any, default: str | None) -> str | None:
    value = text(parameters, name)
    if value is None:
        return default
    if value not in known:
        raise errors.ForgeError(400, {"error": f"{name} does not have a valid value"})
    return value


@router.get("/pipelines")
def list_pipelines(
    project_id: str,
    request: Request,
    parameters: Parameters,
    asker: Asks,
    session: SessionDep,
    paging: PagingDep,
) -> list[dict[str, Any]]:
    """https://docs.gitlab.com/api/pipelines/#list-project-pipelines"""
    found = find_project(session, asker, project_id, Can.READ_PIPELINES)
    query = select(Pipeline).where(Pipeline.project_id == found.project.id)
    source = text(parameters, "source")
    # Child pipelines are listed only if asked for.
    query = query.where(
        Pipeline.source == source if source else Pipeline.source != "parent_pipeline"
    )
    status = _one_of(parameters, "status", ci_status.STATUSES, None)
    scope = _one_of(parameters, "scope", (*_SCOPES, "branches", "tags"), None)
    if status:
        query = query.where(Pipeline.status == status)
    if scope is not None and scope in _SCOPES:
        query = query.where(Pipeline.status.in_(_SCOPES[scope]))
    elif scope is not None:
        query = query.where(Pipeline.tag.is_(scope == "tags"))
    for name, column in (("sha", Pipeline.sha), ("ref", Pipeline.ref), ("name", Pipeline.name)):
        value = text(parameters, name)
        if value is not None:
            query = query.where(column == value)
    username = text(parameters, "username")
    if username is not None:
        query = query.where(Pipeline.user_id.in_(select(User.id).where(User.username == username)))
    broken = flag(parameters, "yaml_errors", None)
    if broken is not None:
        query = query.where(
            Pipeline.yaml_errors.is_not(None) if broken else Pipeline.yaml_errors.is_(None)
        )
    for name, column_of_time in (
        ("updated", Pipeline.updated_at),
        ("created", Pipeline.created_at),
    ):
        before, after = (_moment(parameters, f"{name}_{side}") for side in ("before", "after"))
        if before:
            query = query.where(column_of_time < before)
        if after:
            query = query.where(column_of_time > after)
    order = _ORDERS[_one_of(parameters, "order_by", _ORDERS, "id") or "id"]
    descending = _one_of(parameters, "sort", ("asc", "desc"), "desc") == "desc"
    ordered = (order, Pipeline.id)
    query = query.order_by(*(c.desc() if descending else c.asc() for c in ordered))
    config = config_of(request)
    return [pipeline_basic(config, one) for one in paging.rows(session, query)]


@router.get("/pipelines/latest")
def latest_pipeline(
    project_id: str, request: Request, asker: Asks, session: SessionDep, ref: str | None = None
) -> dict[str, Any]:
    """https://docs.gitlab.com/api/pipelines/#get-the-latest-pipeline"""
    found = find_project(session, asker, project_id, Can.READ_PIPELINES)
    config = config_of(request)
    name = ref or found.project.default_branch
    sha = repositories.resolve(config.repository(found.project.id), name)
    pipeline = session.scalar(
        select(Pipeline)
        .where(
            Pipeline.project_id == found.project.id,
            Pipeline.ref == name,
            Pipeline.sha == sha,
            Pipeline.source != "parent_pipeline",
        )
        .order_by(Pipeline.id.desc())
        .limit(1)
    )
    if pipeline is None:
        raise errors.not_found()
    return pipeline_body(config, pipeline)


@router.post("/pipeline", status_code=201)
def create_pipeline(
    project_id: str, request: Request, parameters: Parameters, asker: Asks, session: SessionDep
) -> dict[str, Any]:
    """https://docs.gitlab.com/api/pipelines/#create-a-new-pipeline"""
    config = config_of(request)
    found = may_write(session, asker, project_id, config)
    name = text(parameters, "ref")
    if name is None:
        raise errors.ForgeError(400, {"error": "ref is missing"})
    repository = config.repository(found.project.id)
    short = name.removeprefix("refs/heads/").removeprefix("refs/tags/")
    branch = (
        None if name.startswith("refs/tags/") else repositories.one_ref(repository, "heads", short)
    )
    tag = None if branch else repositories.one_ref(repository, "tags", short)
    row = branch or tag
    if row is None:
        raise errors.invalid("base", "Reference not found")
    if not protection.may_run_on(session, found, short, branch is None):
        raise errors.invalid(
            "base",
            f"You do not have sufficient permission to run a pipeline on '{short}'. Please select a "
            "different branch or contact your administrator for assistance.",
        )
    try:
        prepared = ci_pipelines.prepare(
            session,
            config,
            ci_pipelines.Request(
                project=found.project,
                user=asker.need_user(),
                ref=short,
                tag=branch is None,
                sha=row.commit,
                source="api",
                variables=_variables(parameters.get("variables")),
            ),
        )
    except NoPipeline as error:
        raise errors.invalid("base", error.message) from None
    if prepared.error is not None:
        raise errors.ForgeError(400, {"message": {"base": list(prepared.error.sentences)}})
    return pipeline_body(config, ci_pipelines.store(session, prepared))


def _variables(sent: Any) -> tuple[dict[str, str], ...]:
    if sent is None:
        return ()
    if not isinstance(sent, list) or not all(isinstance(item, dict) for item in sent):
        raise errors.ForgeError(400, {"error": "variables is invalid"})
    found: list[dict[str, str]] = []
    for item in sent:
        key, value = text(item, "key"), text(item, "value")
        if key is None or value is None or not KEY.fullmatch(key):
            raise errors.ForgeError(400, {"error": "variables[key] is invalid"})
        found.append({"key": key, "value": value, "variable_type": variable_type(item)})
    return tuple(found)


@router.get("/pipelines/{pipeline_id}")
def get_pipeline(
    project_id: str, pipeline_id: PipelineId, request: Request, asker: Asks, session: SessionDep
) -> dict[str, Any]:
    """https://docs.gitlab.com/api/pipelines/#get-a-single-pipeline"""
    found = find_project(session, asker, project_id, Can.READ_PIPELINES)
    return pipeline_body(config_of(request), find_pipeline(session, found, pipeline_id))


@router.get("/pipelines/{pipeline_id}/variables")
def pipeline_variables(
    project_id: str, pipeline_id: PipelineId, asker: Asks, session: SessionDep
) -> list[dict[str, Any]]:
    """https://docs.gitlab.com/api/pipelines/#get-variables-of-a-pipeline (its own person or Maintainer)"""
    found = find_project(session, asker, project_id, Can.RUN_PIPELINES)
    pipeline = find_pipeline(session, found, pipeline_id)
    own = asker.user is not None and pipeline.user_id == asker.user.id
    if not own:
        found.need(Can.EDIT_PROJECT)
    return [dict(item) for item in pipeline.variables]


@router.post("/pipelines/{pipeline_id}/cancel")
def cancel_pipeline(
    project_id: str, pipeline_id: PipelineId, request: Request, asker: Asks, session: SessionDep
) -> dict[str, Any]:
    """https://docs.gitlab.com/api/pipelines/#cancel-all-jobs-for-a-pipeline"""
    config = config_of(request)
    found = may_write(session, asker, project_id, config)
    pipeline = find_pipeline(session, found, pipeline_id)
    may_change(session, found, pipeline)
    ci_processing.cancel_pipeline(session, pipeline)
    return pipeline_body(config, pipeline)


@router.post("/pipelines/{pipeline_id}/retry", status_code=201)
def retry_pipeline(
    project_id: str, pipeline_id: PipelineId, request: Request, asker: Asks, session: SessionDep
) -> dict[str, Any]:
    """https://docs.gitlab.com/api/pipelines/#retry-jobs-in-a-pipeline"""
    config = config_of(request)
    found = may_write(session, asker, project_id, config)
    pipeline = find_pipeline(session, found, pipeline_id)
    may_change(session, found, pipeline)
    ci_processing.retry_pipeline(session, pipeline, asker.user)
    return pipeline_body(config, pipeline)


@router.delete("/pipelines/{pipeline_id}", status_code=204)
def delete_pipeline(
    project_id: str, pipeline_id: PipelineId, request: Request, asker: Asks, session: SessionDep
) -> Response:
    """https://docs.gitlab.com/api/pipelines/#delete-a-pipeline (Owner)"""
    asker.need_user()
    config = config_of(request)
    found = find_project(session, asker, project_id, Can.DELETE_PROJECT)
    pipeline = find_pipeline(session, found, pipeline_id)
    ci_processing.cancel_pipeline(session, pipeline)
    for job_id in session.scalars(select(Job.id).where(Job.pipeline_id == pipeline.id)).all():
        ci_traces.remove(config, found.project.id, job_id)
        ci_artifacts.remove_files(config, found.project.id, job_id)
    session.delete(pipeline)
    return Response(status_code=204)


@router.get("/pipelines/{pipeline_id}/jobs")
def pipeline_jobs(
    project_id: str,
    pipeline_id: PipelineId,
    request: Request,
    parameters: Parameters,
    asker: Asks,
    session: SessionDep,
    paging: PagingDep,
) -> list[dict[str, Any]]:
    """https://docs.gitlab.com/api/jobs/#list-all-jobs-for-a-pipeline"""
    found = find_project(session, asker, project_id, Can.READ_PIPELINES)
    pipeline = find_pipeline(session, found, pipeline_id)
    query = select(Job).where(Job.pipeline_id == pipeline.id, Job.kind == "build")
    if not flag(parameters, "include_retried"):
        query = query.where(Job.retried.is_(False))
    query = in_scope(query, parameters).order_by(Job.id.desc())
    return job_bodies(config_of(request), found.project, paging.rows(session, query))


@router.get("/pipelines/{pipeline_id}/bridges")
def pipeline_bridges(
    project_id: str,
    pipeline_id: PipelineId,
    request: Request,
    parameters: Parameters,
    asker: Asks,
    session: SessionDep,
    paging: PagingDep,
) -> list[dict[str, Any]]:
    """https://docs.gitlab.com/api/jobs/#list-all-trigger-jobs-for-a-pipeline"""
    found = find_project(session, asker, project_id, Can.READ_PIPELINES)
    pipeline = find_pipeline(session, found, pipeline_id)
    query = select(Job).where(
        Job.pipeline_id == pipeline.id, Job.kind == "bridge", Job.retried.is_(False)
    )
    bridges = paging.rows(session, in_scope(query, parameters).order_by(Job.id.desc()))
    ids = [job.child_pipeline_id for job in bridges if job.child_pipeline_id is not None]
    children = {
        one.id: one for one in session.scalars(select(Pipeline).where(Pipeline.id.in_(ids))).all()
    }
    return bridge_bodies(config_of(request), found.project, bridges, children)


def in_scope(query: Any, parameters: dict[str, Any]) -> Any:
    """``query`` of jobs with only the statuses in ``scope``."""
    scope = words(parameters, "scope")
    if not scope:
        return query
    if not set(scope) <= set(ci_status.STATUSES):
        raise errors.ForgeError(400, {"message": "Scope contains invalid value(s)"})
    return query.where(Job.status.in_(scope))

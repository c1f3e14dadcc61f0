"""Jobs of the forge's API: lists, one job, its log, cancel, retry, play, erase.

https://docs.gitlab.com/api/jobs/
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from notebooks_service.forge import ci_artifacts, ci_processing, ci_traces, errors, protection
from notebooks_service.forge.access import ProjectAccess, find_project
from notebooks_service.forge.authentication import Asker, Asks
from notebooks_service.forge.ci_bodies import job_bodies, job_body
from notebooks_service.forge.ci_models import Job
from notebooks_service.forge.ci_parameters import Parameters, number
from notebooks_service.forge.config import ForgeConfig
from notebooks_service.forge.database import SessionDep, now
from notebooks_service.forge.pagination import PagingDep
from notebooks_service.forge.permissions import Can
from notebooks_service.forge.routes_ci import config_of, in_scope, may_change, may_write

router = APIRouter(prefix="/api/v4")
BASE = "/projects/{project_id:segment}/jobs"

JobId = Annotated[int, Path(ge=1, lt=2**63)]


def find_job(session: Session, found: ProjectAccess, job_id: int) -> Job:
    job = session.get(Job, job_id)
    if job is None or job.project_id != found.project.id:
        raise errors.not_found()
    return job


def changeable_job(
    session: Session, asker: Asker, project_id: str, job_id: int, config: ForgeConfig
) -> tuple[ProjectAccess, Job]:
    """The job, for somebody who may change it: on a protected ref, who may change that ref."""
    found = may_write(session, asker, project_id, config)
    job = find_job(session, found, job_id)
    may_change(session, found, job.pipeline)
    return found, job


@router.get(BASE)
def list_jobs(
    project_id: str,
    request: Request,
    parameters: Parameters,
    asker: Asks,
    session: SessionDep,
    paging: PagingDep,
) -> list[dict[str, Any]]:
    """https://docs.gitlab.com/api/jobs/#list-project-jobs (no totals, newest first)"""
    found = find_project(session, asker, project_id, Can.READ_PIPELINES)
    query = select(Job).where(Job.project_id == found.project.id, Job.kind == "build")
    query = in_scope(query, parameters).order_by(Job.id.desc())
    if paging.keyset({("id", "desc")}):
        cursor = number(parameters, "cursor")
        if cursor is not None:
            query = query.where(Job.id < cursor)
        rows = session.scalars(query.limit(paging.per_page + 1)).all()
        page = paging.by_key(rows, lambda one: {"cursor": str(one.id)})
        return job_bodies(config_of(request), found.project, page)
    rows = session.scalars(query.offset(paging.skip).limit(paging.per_page + 1)).all()
    return job_bodies(config_of(request), found.project, paging.some(rows))


@router.get("/job")
def current_job(request: Request, asker: Asks, session: SessionDep) -> dict[str, Any]:
    """https://docs.gitlab.com/api/jobs/#get-job-tokens-job"""
    if asker.kind != "job" or asker.token_id is None:
        raise errors.unauthorized() if not asker.signed_in else errors.not_found("Job")
    return job_body(config_of(request), session.get_one(Job, asker.token_id))


@router.get(BASE + "/{job_id}")
def get_job(
    project_id: str, job_id: JobId, request: Request, asker: Asks, session: SessionDep
) -> dict[str, Any]:
    """https://docs.gitlab.com/api/jobs/#get-a-single-job"""
    found = find_project(session, asker, project_id, Can.READ_PIPELINES)
    return job_body(config_of(request), find_job(session, found, job_id))


@router.get(BASE + "/{job_id}/trace")
def get_trace(
    project_id: str, job_id: JobId, request: Request, asker: Asks, session: SessionDep
) -> Response:
    """https://docs.gitlab.com/api/jobs/#get-a-log-file

    ``Range: bytes=N-`` gives the log from byte N on; 416 if there is nothing there yet.
    """
    found = find_project(session, asker, project_id, Can.READ_PIPELINES)
    job = find_job(session, found, job_id)
    config = config_of(request)
    headers = {
        "Content-Disposition": f'infile; filename="{job.id}.log"',
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "default-src 'none'; sandbox",
        "Cache-Control": "no-store",
        "Accept-Ranges": "bytes",
    }
    asked = re.fullmatch(r"bytes=(\d{1,15})-", request.headers.get("range", ""))
    start = int(asked[1]) if asked else 0
    data = ci_traces.read(config, job.project_id, job.id, start)
    media_type = "text/plain; charset=utf-8"
    if asked is None:
        return Response(data, media_type=media_type, headers=headers)
    if not data:
        size = ci_traces.size(config, job.project_id, job.id)
        return Response(status_code=416, headers={**headers, "Content-Range": f"bytes */{size}"})
    end = start + len(data)
    headers["Content-Range"] = f"bytes {start}-{end - 1}/{end}"
    return Response(data, 206, media_type=media_type, headers=headers)


@router.post(BASE + "/{job_id}/cancel", status_code=201)
def cancel_job(
    project_id: str, job_id: JobId, request: Request, asker: Asks, session: SessionDep
) -> dict[str, Any]:
    """https://docs.gitlab.com/api/jobs/#cancel-a-job"""
    config = config_of(request)
    _, job = changeable_job(session, asker, project_id, job_id, config)
    ci_processing.cancel(session, job)
    return job_body(config, job)


@router.post(BASE + "/{job_id}/retry", status_code=201)
def retry_job(
    project_id: str, job_id: JobId, request: Request, asker: Asks, session: SessionDep
) -> dict[str, Any]:
    """https://docs.gitlab.com/api/jobs/#retry-a-job — the answer is the new try, with its own id."""
    config = config_of(request)
    _, job = changeable_job(session, asker, project_id, job_id, config)
    again = ci_processing.retry(session, job, asker.user)
    if again is None:
        raise errors.forbidden("Job is not retryable")
    return job_body(config, again)


@router.post(BASE + "/{job_id}/play")
def play_job(
    project_id: str,
    job_id: JobId,
    request: Request,
    parameters: Parameters,
    asker: Asks,
    session: SessionDep,
) -> dict[str, Any]:
    """https://docs.gitlab.com/api/jobs/#run-a-job"""
    config = config_of(request)
    _, job = changeable_job(session, asker, project_id, job_id, config)
    sent = parameters.get("job_variables_attributes") or []
    if not isinstance(sent, list) or not all(isinstance(item, dict) for item in sent):
        raise errors.ForgeError(400, {"error": "job_variables_attributes is invalid"})
    variables = {str(item.get("key", "")): str(item.get("value", "")) for item in sent}
    if not all(re.fullmatch(r"[A-Za-z0-9_]{1,255}", key) for key in variables):
        raise errors.ForgeError(400, {"error": "job_variables_attributes[key] is invalid"})
    if not ci_processing.play(session, job, asker.user, variables):
        raise errors.bad_request("400 Bad request - Unplayable Job")
    return job_body(config, job)


@router.post(BASE + "/{job_id}/erase", status_code=201)
def erase_job(
    project_id: str, job_id: JobId, request: Request, asker: Asks, session: SessionDep
) -> dict[str, Any]:
    """https://docs.gitlab.com/api/jobs/#erase-a-job (Maintainer; on unprotected refs its own person)"""
    config = config_of(request)
    found, job = changeable_job(session, asker, project_id, job_id, config)
    own = asker.user is not None and job.user_id == asker.user.id
    pipeline = job.pipeline
    if not own or protection.is_protected(session, found.project, pipeline.ref, pipeline.tag):
        found.need(Can.EDIT_PROJECT)
    if job.status not in ("success", "failed", "canceled") or job.erased_at is not None:
        raise errors.forbidden("Job is not erasable!")
    ci_traces.remove(config, job.project_id, job.id)
    ci_artifacts.remove(session, config, job)
    job.erased_at = now()
    return job_body(config, job)

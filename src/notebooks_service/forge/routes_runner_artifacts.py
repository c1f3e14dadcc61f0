"""Artifacts in the runner's protocol: runners bring what a job left, and take what it depends on.

Follows ``lib/api/ci/runner.rb`` of GitLab.
https://docs.gitlab.com/ci/jobs/job_artifacts/
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from notebooks_service.errors import NoSpace
from notebooks_service.forge import ci_artifacts, ci_reports, errors
from notebooks_service.forge.ci_models import Artifact, Job
from notebooks_service.forge.ci_parameters import Parameters, number, text
from notebooks_service.forge.config import ForgeConfig
from notebooks_service.forge.credentials import token_hash
from notebooks_service.forge.database import Database, SessionDep
from notebooks_service.forge.routes_artifacts import archive_response
from notebooks_service.forge.routes_runner import running_job

log = logging.getLogger(__name__)
router = APIRouter(prefix="/api/v4/jobs")

JobId = Annotated[int, Path(ge=1, lt=2**63)]

MOST_FORM = 1 << 20
"""Bytes of a form besides the file itself."""
FORMATS = ("zip", "gzip", "raw")
TYPES = frozenset(
    [
        "archive", "metadata", "trace", "junit", "codequality", "sast", "dependency_scanning",
        "container_scanning", "dast", "license_scanning", "performance", "metrics", "accessibility",
        "network_referee", "lsif", "dotenv", "cobertura", "jacoco", "terraform", "cluster_applications",
        "secret_detection", "requirements", "coverage_fuzzing", "browser_performance",
        "load_performance", "api_fuzzing", "cluster_image_scanning", "cyclonedx",
        "requirements_v2", "annotations", "repository_xray",
    ]
)  # fmt: skip


def _token(request: Request, values: Any) -> str | None:
    found = request.headers.get("job-token") or values.get("token")
    return found if isinstance(found, str) else None


@router.post("/{job_id}/artifacts/authorize")
def authorize(
    job_id: JobId, request: Request, parameters: Parameters, session: SessionDep
) -> dict[str, Any]:
    """Whether the job may bring a file of this size. https://docs.gitlab.com/ci/jobs/job_artifacts/"""
    running_job(session, job_id, _token(request, parameters))
    config: ForgeConfig = request.app.state.config
    if (number(parameters, "filesize") or 0) > config.artifacts_largest:
        raise _too_large()
    return {"MaximumSize": config.artifacts_largest}


@router.post("/{job_id}/artifacts", status_code=201)
async def upload(job_id: JobId, request: Request) -> Response:
    """A file that the job left. 413 over the limit, 400 if the job has one of this kind already.

    https://docs.gitlab.com/ci/jobs/job_artifacts/
    """
    config: ForgeConfig = request.app.state.config
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > config.artifacts_largest + MOST_FORM:
        raise _too_large()
    database: Database = request.app.state.database
    early = _token(request, request.query_params)
    if early is not None:
        # Before anything of the body is kept.
        await run_in_threadpool(_check, database, job_id, early)
    try:
        form = await MultiPartParser(
            request.headers, _limited(request, config.artifacts_largest + MOST_FORM), max_files=2
        ).parse()
    except (MultiPartException, KeyError):
        raise errors.bad_request("400 Bad request") from None
    try:
        values = {**form, **request.query_params}
        await run_in_threadpool(_store, database, config, job_id, _token(request, values), values)
    finally:
        await form.close()
    return Response("201", 201, media_type="text/plain")


def _check(database: Database, job_id: int, token: str) -> None:
    with database.read() as session:
        running_job(session, job_id, token)


async def _limited(request: Request, limit: int) -> AsyncGenerator[bytes, None]:
    seen = 0
    async for part in request.stream():
        seen += len(part)
        if seen > limit:
            raise _too_large()
        yield part


def _too_large() -> errors.ForgeError:
    return errors.ForgeError(413, {"message": "413 Request Entity Too Large"})


def _store(
    database: Database,
    config: ForgeConfig,
    job_id: int,
    token: str | None,
    values: dict[str, Any] | FormData,
) -> None:
    file = values.get("file")
    kind = str(values.get("artifact_type") or "archive")
    form = str(values.get("artifact_format") or "zip")
    if not isinstance(file, UploadFile):
        raise errors.ForgeError(400, {"error": "file is missing"})
    if kind not in TYPES or form not in FORMATS:
        wrong = "artifact_format" if kind in TYPES else "artifact_type"
        raise errors.ForgeError(400, {"error": f"{wrong} does not have a valid value"})
    if ci_reports.format_of(kind) not in (None, form):
        raise errors.bad_request("Invalid file format with specified file type")
    if (file.size or 0) > config.artifacts_largest:
        raise _too_large()
    with database.read() as session:
        project_id = running_job(session, job_id, token).project_id
    try:
        half, size, sha256 = ci_artifacts.write(config, project_id, job_id, kind, file.file)
    except OSError as error:
        log.error("the artifacts of job %d cannot be written: %s", job_id, error.strerror)
        raise NoSpace() from None
    try:
        variables = ci_reports.dotenv(half) if kind == "dotenv" else None
        with database.write() as session:
            job = running_job(session, job_id, token)
            known = next((one for one in job.artifacts if one.file_type == kind), None)
            if known is not None:
                if known.sha256 == sha256:
                    return
                raise errors.bad_request("another artifact of the same type already exists")
            session.add(
                Artifact(
                    job_id=job.id,
                    project_id=job.project_id,
                    file_type=kind,
                    file_format=form,
                    filename=_filename(file.filename),
                    size=size,
                    sha256=sha256,
                    expires_at=ci_artifacts.expiry(text(dict(values), "expire_in")),
                )
            )
            if variables is not None:
                job.dotenv = variables
            session.flush()
            half.rename(ci_artifacts.path(config, project_id, job_id, kind))
    finally:
        half.unlink(missing_ok=True)


def _filename(sent: str | None) -> str:
    name = (sent or "").replace("\\", "/").rsplit("/", 1)[-1][:255]
    return name if name.strip(". ") and name.isprintable() else "artifacts.zip"


@router.get("/{job_id}/artifacts")
def download(job_id: JobId, request: Request, session: SessionDep) -> Response:
    """The archive of a job, for that job's own token or for a running job of the same project.

    https://docs.gitlab.com/ci/jobs/job_artifacts/
    """
    token = _token(request, request.query_params)
    job = session.get(Job, job_id)
    asking = _asking(session, token)
    if asking is None or job is None or asking.project_id != job.project_id:
        raise errors.forbidden()
    return archive_response(session, request.app.state.config, job)


def _asking(session: Session, token: str | None) -> Job | None:
    if not token:
        return None
    return session.scalar(
        select(Job).where(Job.token_hash == token_hash(token), Job.status == "running")
    )

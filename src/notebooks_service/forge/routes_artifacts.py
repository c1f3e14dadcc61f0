"""Files that jobs left: download whole or one of them, keep, delete; and what ends them in time.

https://docs.gitlab.com/api/job_artifacts/
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import zipfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path as File
from typing import Annotated, Any
from urllib.parse import quote, unquote

from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import FileResponse, StreamingResponse
from sqlalchemy.orm import Session

from notebooks_service.forge import ci_artifacts, errors
from notebooks_service.forge.access import ProjectAccess, find_project
from notebooks_service.forge.authentication import Asker, Asks
from notebooks_service.forge.ci_bodies import job_body
from notebooks_service.forge.ci_models import Job
from notebooks_service.forge.config import ForgeConfig
from notebooks_service.forge.database import SessionDep
from notebooks_service.forge.permissions import Can
from notebooks_service.forge.repositories import CHUNK
from notebooks_service.forge.routes_ci import may_change
from notebooks_service.forge.routes_ci_jobs import find_job

log = logging.getLogger(__name__)

SWEEP = 10.0
"""Seconds between two looks for files whose time is over."""


@asynccontextmanager
async def sweeping(app: Any) -> AsyncIterator[None]:
    """Removes what has expired, as long as the forge runs."""

    async def sweep() -> None:
        while True:
            try:
                await asyncio.to_thread(
                    ci_artifacts.remove_expired, app.state.database, app.state.config
                )
            except Exception:
                log.exception("expired artifacts could not be removed")
            await asyncio.sleep(SWEEP)

    task = asyncio.create_task(sweep())
    yield
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


router = APIRouter(prefix="/api/v4/projects/{project_id:segment}", lifespan=sweeping)

JobId = Annotated[int, Path(ge=1, lt=2**63)]


def _readable(session: Session, asker: Asker, project_id: str) -> ProjectAccess:
    return find_project(session, asker, project_id, Can.READ_PIPELINES)


def archive_response(session: Session, config: ForgeConfig, job: Job) -> FileResponse:
    """The whole archive of a job. GitLab's 404 if it has none, or has it no more."""
    found = ci_artifacts.available(session, job)
    place = ci_artifacts.path(config, job.project_id, job.id, "archive")
    if found is None or not place.is_file():
        raise errors.not_found()
    name = quote(found.filename)
    return FileResponse(
        place,
        media_type="application/zip" if found.file_format == "zip" else "application/octet-stream",
        headers={
            "Content-Disposition": f"attachment; filename*=UTF-8''{name}; filename=\"{name}\"",
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "private, no-store",
        },
    )


def _entry_response(session: Session, config: ForgeConfig, job: Job, raw_path: str) -> Response:
    """One file of the archive, unpacked on the way."""
    name = unquote(raw_path)
    if not name or name.startswith("/") or name.endswith("/") or "\0" in name:
        raise errors.bad_request("400 Bad request")
    if {"", ".", ".."} & set(name.split("/")):
        raise errors.bad_request("400 Bad request")
    place = ci_artifacts.path(config, job.project_id, job.id, "archive")
    if ci_artifacts.available(session, job) is None or not place.is_file():
        raise errors.not_found()
    try:
        with zipfile.ZipFile(place) as archive:
            size = archive.getinfo(name).file_size
            archive.open(name).close()
    except (KeyError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError):
        raise errors.not_found() from None
    return StreamingResponse(
        _unpacked(place, name, size),
        media_type="application/octet-stream",
        headers={
            "Content-Disposition": f"attachment; filename*=UTF-8''{quote(name.rsplit('/', 1)[-1])}",
            "X-Content-Type-Options": "nosniff",
            "Content-Security-Policy": "default-src 'none'; sandbox",
            "Cache-Control": "private, no-store",
        },
    )


def _unpacked(place: File, name: str, size: int) -> Iterator[bytes]:
    """Never more than the archive says that the file has: it may lie."""
    with zipfile.ZipFile(place) as archive, archive.open(name) as file:
        while size > 0 and (chunk := file.read(min(CHUNK, size))):
            size -= len(chunk)
            yield chunk


def _latest(session: Session, asker: Asker, project_id: str, ref: str, job: str | None) -> Job:
    if not job:
        raise errors.ForgeError(400, {"error": "job is missing"})
    found = _readable(session, asker, project_id)
    newest = ci_artifacts.latest(session, found.project, unquote(ref), job)
    if newest is None:
        raise errors.not_found()
    return newest


@router.get("/jobs/artifacts/{ref:path}/download")
def latest_archive(
    project_id: str,
    ref: str,
    request: Request,
    asker: Asks,
    session: SessionDep,
    job: str | None = None,
) -> Response:
    """https://docs.gitlab.com/api/job_artifacts/#download-the-artifacts-archive"""
    newest = _latest(session, asker, project_id, ref, job)
    return archive_response(session, request.app.state.config, newest)


@router.get("/jobs/artifacts/{ref:path}/raw/{artifact_path:path}")
def latest_file(
    project_id: str,
    ref: str,
    artifact_path: str,
    request: Request,
    asker: Asks,
    session: SessionDep,
    job: str | None = None,
) -> Response:
    """https://docs.gitlab.com/api/job_artifacts/#download-a-single-artifact-file-from-specific-tag-or-branch"""
    newest = _latest(session, asker, project_id, ref, job)
    return _entry_response(session, request.app.state.config, newest, artifact_path)


@router.get("/jobs/{job_id}/artifacts")
def get_archive(
    project_id: str, job_id: JobId, request: Request, asker: Asks, session: SessionDep
) -> Response:
    """https://docs.gitlab.com/api/job_artifacts/#get-job-artifacts"""
    job = find_job(session, _readable(session, asker, project_id), job_id)
    return archive_response(session, request.app.state.config, job)


@router.get("/jobs/{job_id}/artifacts/{artifact_path:path}")
def get_file(
    project_id: str,
    job_id: JobId,
    artifact_path: str,
    request: Request,
    asker: Asks,
    session: SessionDep,
) -> Response:
    """https://docs.gitlab.com/api/job_artifacts/#download-a-single-artifact-file-by-job-id"""
    job = find_job(session, _readable(session, asker, project_id), job_id)
    return _entry_response(session, request.app.state.config, job, artifact_path)


@router.post("/jobs/{job_id}/artifacts/keep")
def keep(
    project_id: str, job_id: JobId, request: Request, asker: Asks, session: SessionDep
) -> dict[str, Any]:
    """https://docs.gitlab.com/api/job_artifacts/#keep-artifacts (Developer)"""
    asker.need_user()
    found = find_project(session, asker, project_id, Can.RUN_PIPELINES)
    job = find_job(session, found, job_id)
    may_change(session, found, job.pipeline)
    if ci_artifacts.available(session, job) is None:
        raise errors.not_found()
    for one in job.artifacts:
        one.expires_at = None
    return job_body(request.app.state.config, job)


@router.delete("/jobs/{job_id}/artifacts", status_code=204)
def delete(
    project_id: str, job_id: JobId, request: Request, asker: Asks, session: SessionDep
) -> Response:
    """https://docs.gitlab.com/api/job_artifacts/#delete-job-artifacts (Maintainer)"""
    asker.need_user()
    found = find_project(session, asker, project_id, Can.EDIT_PROJECT)
    ci_artifacts.remove(session, request.app.state.config, find_job(session, found, job_id))
    return Response(status_code=204)


@router.delete("/artifacts", status_code=202)
def delete_all(project_id: str, asker: Asks, session: SessionDep) -> dict[str, str]:
    """https://docs.gitlab.com/api/job_artifacts/#delete-all-job-artifacts-in-a-project (Maintainer)

    Those of each ref's newest success stay.
    """
    asker.need_user()
    found = find_project(session, asker, project_id, Can.EDIT_PROJECT)
    ci_artifacts.expire_all(session, found.project)
    return {"message": "202 Accepted"}

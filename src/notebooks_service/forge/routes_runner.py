"""The runner's side of the API: registering, asking for jobs, their logs and their ends.

Follows ``lib/api/ci/runner.rb`` of GitLab, so that runners which we did not write work too.
https://docs.gitlab.com/api/runners/
"""

from __future__ import annotations

import hmac
import logging
import re
from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import JSONResponse
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from notebooks_service.errors import NoSpace
from notebooks_service.forge import (
    ci_artifacts,
    ci_job_request,
    ci_processing,
    ci_runners,
    ci_traces,
    errors,
)
from notebooks_service.forge.authentication import Asks
from notebooks_service.forge.ci_models import Job, Runner
from notebooks_service.forge.ci_parameters import Parameters, flag, number, read_body, text, words
from notebooks_service.forge.ci_queue import QUEUE
from notebooks_service.forge.ci_status import FAILURE_REASONS
from notebooks_service.forge.ci_watch import watching
from notebooks_service.forge.config import ForgeConfig
from notebooks_service.forge.credentials import new_token, token_hash
from notebooks_service.forge.database import Database, SessionDep, now

log = logging.getLogger(__name__)
router = APIRouter(prefix="/api/v4", lifespan=watching)

JobId = Annotated[int, Path(ge=1, lt=2**63)]

LONG_POLL = 2.0
"""Seconds that a runner which knows the queue waits for news. Short, because a stop of the forge
waits for it; a runner asks again at once."""

HEARD_EVERY = timedelta(seconds=10)
UPDATE_INTERVAL = "1"
"""Seconds between two parts of a log: people watch it live."""


# Runners --------------------------------------------------------------------------------------


@router.post("/runners", status_code=201)
def register(request: Request, parameters: Parameters, session: SessionDep) -> dict[str, Any]:
    """https://docs.gitlab.com/api/runners/#create-a-runner-with-a-registration-token"""
    sent = text(parameters, "token")
    if sent is None:
        raise errors.ForgeError(400, {"error": "token is missing"})
    expected = ci_runners.registration_token(request.app.state.config.secrets)
    if not hmac.compare_digest(sent.encode(), expected.encode()):
        raise errors.ForgeError(403, {"message": "403 Forbidden - invalid token supplied"})
    runner, token = ci_runners.create_runner(session, **_values(request, parameters))
    return _registered(runner, token)


@router.post("/user/runners", status_code=201)
def create(
    request: Request, parameters: Parameters, asker: Asks, session: SessionDep
) -> dict[str, Any]:
    """https://docs.gitlab.com/api/users/#create-a-runner-linked-to-a-user (instance runners, administrators)"""
    asker.need_user()
    if not asker.admin:
        raise errors.forbidden()
    if text(parameters, "runner_type") != "instance_type":
        raise errors.ForgeError(400, {"error": "runner_type does not have a valid value"})
    runner, token = ci_runners.create_runner(session, **_values(request, parameters))
    return _registered(runner, token)


def _registered(runner: Runner, token: str) -> dict[str, Any]:
    return {"id": runner.id, "token": token, "token_expires_at": None}


def _values(request: Request, parameters: dict[str, Any]) -> dict[str, Any]:
    active = flag(parameters, "active", True)
    return {
        "description": text(parameters, "description", limit=1024) or "",
        "paused": bool(flag(parameters, "paused", not active)),
        "locked": bool(flag(parameters, "locked")),
        "run_untagged": bool(flag(parameters, "run_untagged", True)),
        "tags": words(parameters, "tag_list")[:50],
        "maximum_timeout": number(parameters, "maximum_timeout"),
        "info": _info(request, parameters),
    }


def _info(request: Request, parameters: dict[str, Any]) -> dict[str, Any]:
    sent = parameters.get("info")
    info = sent if isinstance(sent, dict) else {}
    names = ("name", "version", "revision", "platform", "architecture", "executor")
    found: dict[str, Any] = {n: str(info[n])[:255] for n in names if info.get(n)}
    found["ip_address"] = request.client.host if request.client else None
    return found


def _runner(session: Session, parameters: dict[str, Any]) -> Runner:
    token = text(parameters, "token")
    runner = ci_runners.find_runner(session, token) if token else None
    if runner is None:
        raise errors.forbidden()
    return runner


@router.post("/runners/verify")
def verify(request: Request, parameters: Parameters, session: SessionDep) -> dict[str, Any]:
    """https://docs.gitlab.com/api/runners/#verify-authentication-for-a-registered-runner"""
    runner = _runner(session, parameters)
    runner.contacted_at = now()
    return _registered(runner, str(parameters["token"]))


@router.delete("/runners", status_code=204)
def unregister(parameters: Parameters, session: SessionDep) -> Response:
    """https://docs.gitlab.com/api/runners/#delete-a-runner-by-authentication-token"""
    runner = _runner(session, parameters)
    running = select(Job).where(Job.runner_id == runner.id, Job.status == "running")
    for job in session.scalars(running).all():
        ci_processing.finish(session, job, "failed", reason="runner_system_failure")
    session.delete(runner)
    return Response(status_code=204)


# Asking for a job -----------------------------------------------------------------------------


@router.post("/jobs/request", status_code=201)
async def request_job(request: Request, parameters: Parameters) -> Response:
    """A job for the runner (201), or none (204). Two runners never get the same one.

    A runner that sends back the ``X-GitLab-Last-Update`` of its last answer waits a moment for news.
    """
    database: Database = request.app.state.database
    config: ForgeConfig = request.app.state.config
    known = text(parameters, "last_update")
    info = _info(request, parameters)
    active = await run_in_threadpool(_greet, database, parameters, info)
    if not active:
        return _nothing(QUEUE.value)
    if known is not None and known == QUEUE.value:
        await QUEUE.wait(known, LONG_POLL)
        if known == QUEUE.value:
            return _nothing(known)
    # Read before the search: what comes during it is news for the next time.
    value = QUEUE.value
    # A runner that died while it waited would hold the job until its time is over.
    if await request.is_disconnected():
        return _nothing(value)
    body = await run_in_threadpool(_claim, database, config, str(parameters["token"]))
    if body is None:
        return _nothing(value)
    if await request.is_disconnected():
        await run_in_threadpool(_give_back, database, body["id"], body["token"])
        return _nothing(value)
    return JSONResponse(body, 201)


def _nothing(value: str) -> Response:
    return Response(status_code=204, headers={"X-GitLab-Last-Update": value})


def _greet(database: Database, parameters: dict[str, Any], info: dict[str, Any]) -> bool:
    """Whether this runner may have jobs; notes from time to time that it was here."""
    with database.read() as session:
        runner = _runner(session, parameters)
    seen = runner.contacted_at
    if seen is None or now() - seen > HEARD_EVERY or runner.info != info:
        with database.write() as session:
            current = _runner(session, parameters)
            current.contacted_at = now()
            current.info = info
    return not runner.paused


def _claim(database: Database, config: ForgeConfig, runner_token: str) -> dict[str, Any] | None:
    waiting = select(Job).where(Job.status == "pending", Job.kind == "build").order_by(Job.id)
    with database.read() as session:
        if session.scalar(waiting.limit(1)) is None:
            return None
    token = new_token("glcbt-")
    with database.write() as session:
        # One writer at a time: what is pending here is nobody's yet.
        runner = _runner(session, {"token": runner_token})
        job = next(
            (one for one in session.scalars(waiting) if ci_runners.matches(runner, one.tags)), None
        )
        if job is None:
            return None
        lost = ci_artifacts.missing_dependency(session, job)
        if lost is not None:
            ci_processing.finish(session, job, "failed", reason="missing_dependency_failure")
            session.commit()
            return None
        ci_processing.take(session, job, runner.id, token_hash(token))
        job_id = job.id
    try:
        with database.read() as session:
            job = session.get_one(Job, job_id)
            return ci_job_request.payload(
                session, config, job, session.get_one(Runner, runner.id), token
            )
    except Exception:
        log.exception("job %d cannot be given to a runner", job_id)
        with database.write() as session:
            job = session.get_one(Job, job_id)
            ci_processing.finish(session, job, "failed", reason="data_integrity_failure")
        raise errors.conflict("409 Conflict") from None


def _give_back(database: Database, job_id: int, token: str) -> None:
    with database.write() as session:
        job = session.get(Job, job_id)
        if job is not None and job.status == "running" and job.token_hash == token_hash(token):
            ci_processing.give_back(session, job)
    log.info("job %d waits for another runner: the one that asked is gone", job_id)


# A running job --------------------------------------------------------------------------------


def running_job(session: Session, job_id: int, token: str | None) -> Job:
    """The running job that this token is for. 403 for everything else: it tells a runner to stop.

    ``Job-Status`` says why, as runners expect it of a job that was cancelled.
    """
    job = session.get(Job, job_id)
    known = job.token_hash if job is not None else None
    if job is None or known is None or not token:
        raise errors.forbidden()
    if not hmac.compare_digest(known, token_hash(token)):
        raise errors.forbidden()
    if job.status != "running":
        raise errors.ForgeError(
            403, {"message": "403 Forbidden - Job is not running"}, {"Job-Status": job.status}
        )
    return job


@router.put("/jobs/{job_id}")
def update_job(
    job_id: JobId, request: Request, parameters: Parameters, session: SessionDep
) -> Response:
    """A runner says that its job still runs, or how it ended."""
    token = text(parameters, "token") or request.headers.get("job-token")
    job = running_job(session, job_id, token)
    state = text(parameters, "state") or "running"
    if state == "running":
        job.heard_at = now()
    elif state == "success":
        ci_processing.finish(session, job, "success", exit_code=0)
    elif state == "failed":
        reason = text(parameters, "failure_reason") or "unknown_failure"
        ci_processing.finish(
            session,
            job,
            "failed",
            reason=reason if reason in FAILURE_REASONS else "unknown_failure",
            exit_code=number(parameters, "exit_code"),
        )
    else:
        raise errors.ForgeError(400, {"message": "400 Bad request"})
    headers = {"Job-Status": job.status, "X-GitLab-Trace-Update-Interval": UPDATE_INTERVAL}
    return Response("200", media_type="text/plain", headers=headers)


@router.patch("/jobs/{job_id}/trace")
async def append_trace(job_id: JobId, request: Request) -> Response:
    """Adds to the log: ``Content-Range: <first byte>-<…>`` must be where the log ends now.

    202 with the new ``Range``; 416 with the real one, so that the runner sends again from there.
    """
    token = request.headers.get("job-token") or request.query_params.get("token")
    database: Database = request.app.state.database
    config: ForgeConfig = request.app.state.config
    job = await run_in_threadpool(_hear, database, config, job_id, token)
    asked = re.match(r"\s*(?:bytes )?(\d{1,15})-", request.headers.get("content-range", ""))
    if asked is None:
        raise errors.ForgeError(400, {"message": "400 Missing header Content-Range"})
    start = int(asked[1])
    data = await read_body(request, ci_traces.TRACE_LIMIT)
    if start + len(data) > ci_traces.TRACE_LIMIT:
        await run_in_threadpool(_drop, database, job_id, "trace_size_exceeded")
        raise errors.ForgeError(403, {"message": "403 Forbidden"}, {"Job-Status": "failed"})
    # GitLab does this too (hide_secrets), for runners that forget it. The length stays.
    secret = (token or "").encode()
    data = data.replace(secret, b"x" * len(secret)) if secret else data
    try:
        size, added = await run_in_threadpool(
            ci_traces.append, config, job.project_id, job.id, data, start
        )
    except OSError as error:
        log.error("the log of job %d cannot be written: %s", job_id, error.strerror)
        raise NoSpace() from None
    if not added:
        raise errors.ForgeError(
            416, {"message": "416 Range Not Satisfiable"}, {"Range": f"0-{size}"}
        )
    headers = {
        "Job-Status": job.status,
        "Range": f"0-{size}",
        "X-GitLab-Trace-Update-Interval": UPDATE_INTERVAL,
    }
    return Response(status_code=202, headers=headers)


def _hear(database: Database, config: ForgeConfig, job_id: int, token: str | None) -> Job:
    with database.read() as session:
        job = running_job(session, job_id, token)
    often = min(HEARD_EVERY, timedelta(seconds=config.job_silence / 4))
    if job.heard_at is None or now() - job.heard_at > often:
        with database.write() as session:
            running_job(session, job_id, token).heard_at = now()
    return job


def _drop(database: Database, job_id: int, reason: str) -> None:
    with database.write() as session:
        job = session.get(Job, job_id)
        if job is not None and job.status == "running":
            ci_processing.finish(session, job, "failed", reason=reason)

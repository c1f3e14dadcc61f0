"""git over HTTP: ``/<project>.git/{info/refs,git-upload-pack,git-receive-pack}``, as GitLab has it.

Smart HTTP only. Large files (LFS) are in ``routes_lfs``.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse, RedirectResponse
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import State

from notebooks_service.errors import NoSpace
from notebooks_service.forge import git_access, pushes
from notebooks_service.forge.config import ForgeConfig
from notebooks_service.forge.database import Database
from notebooks_service.forge.git_access import GitRefused, Permit, Service
from notebooks_service.forge.git_backend import GitBackend
from notebooks_service.forge.git_hooks import read_report

log = logging.getLogger(__name__)
router = APIRouter()


@router.get("/{path:path}.git/info/refs")
async def info_refs(path: str, request: Request, service: str = "") -> Response:
    """The start of every fetch and push. https://git-scm.com/docs/http-protocol"""
    if service == "git-upload-pack":
        return await _serve(request, path, "git-upload-pack", "info/refs")
    if service == "git-receive-pack":
        return await _serve(request, path, "git-receive-pack", "info/refs")
    return PlainTextResponse("Only git's smart HTTP protocol is served here.\n", 403)


@router.post("/{path:path}.git/git-upload-pack")
async def upload_pack(path: str, request: Request) -> Response:
    """A fetch."""
    return await _serve(request, path, "git-upload-pack", "git-upload-pack")


@router.post("/{path:path}.git/git-receive-pack")
async def receive_pack(path: str, request: Request) -> Response:
    """A push. What it changed is acted on before git's client is told that it is done."""
    return await _serve(request, path, "git-receive-pack", "git-receive-pack")


@router.get("/{path:path}/info/refs")
async def without_suffix(path: str, request: Request) -> Response:
    """GitLab sends an address without ``.git`` on to the one with it."""
    config: ForgeConfig = request.app.state.config
    raw: str = request.scope["raw_path"].decode("ascii", "replace").removesuffix("/info/refs")
    query = f"?{request.url.query}" if request.url.query else ""
    return RedirectResponse(f"{config.url}{raw}.git/info/refs{query}", 301)


async def _serve(request: Request, path: str, service: Service, rest: str) -> Response:
    state = request.app.state
    try:
        permit = await run_in_threadpool(
            _permit,
            state,
            path.strip("/"),
            service,
            request.headers.get("authorization", ""),
            request.client.host if request.client else "",
        )
    except GitRefused as refused:
        return PlainTextResponse(refused.text + "\n", refused.status, headers=refused.headers)
    environment = _environment(request, state.config, permit, rest)
    if service != "git-receive-pack":
        return GitBackend(environment)
    try:
        report = await run_in_threadpool(_files_of_push, state.config, permit)
    except NoSpace as full:
        return PlainTextResponse(full.message + "\n", full.status)
    if rest != "git-receive-pack":
        # git shows its person what is answered here, and nothing of what is answered to the push itself.
        await run_in_threadpool(_remove_files_of_push, report)
        return GitBackend(environment)
    environment["FORGE_PUSH_REPORT"] = str(report)
    environment["FORGE_PUSH_RULES"] = str(_rules_beside(report))
    environment["FORGE_PUSH_MESSAGE"] = permit.moved
    return GitBackend(environment, _after_push(state, permit, report))


def _permit(state: State, path: str, service: Service, authorization: str, address: str) -> Permit:
    database: Database = state.database
    with database.read() as session:
        return git_access.permit(
            session,
            state.config,
            state.throttle,
            path,
            service,
            authorization,
            address,
        )


def _files_of_push(config: ForgeConfig, permit: Permit) -> Path:
    """The file that the hooks report to; the rules that they read lie beside it. Raises ``NoSpace``."""
    config.pushes.mkdir(parents=True, exist_ok=True, mode=0o700)
    report = config.pushes / f"tmp{secrets.token_hex(8)}"
    try:
        report.touch(mode=0o600)
        # No environment variable: a project may have many protected branches with long names.
        _rules_beside(report).write_text(json.dumps(permit.rules))
    except OSError as error:
        _remove_files_of_push(report)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace() from None
        raise
    return report


def _remove_files_of_push(report: Path) -> None:
    report.unlink(missing_ok=True)
    _rules_beside(report).unlink(missing_ok=True)


def _rules_beside(report: Path) -> Path:
    return report.with_suffix(".rules")


def _environment(
    request: Request, config: ForgeConfig, permit: Permit, rest: str
) -> dict[str, str]:
    """CGI variables and the configuration of git for this request; no token is among them."""
    headers = request.headers
    git_config = {
        "core.hooksPath": str(config.hooks),
        "http.receivepack": "true",
        "safe.directory": "*",
    }
    environment = {
        "GIT_PROJECT_ROOT": str(config.repositories),
        "GIT_HTTP_EXPORT_ALL": "1",
        "PATH_INFO": f"/{permit.project_id}.git/{rest}",
        "REQUEST_METHOD": request.method,
        "QUERY_STRING": request.url.query if rest == "info/refs" else "",
        "CONTENT_TYPE": headers.get("content-type", ""),
        "REMOTE_USER": permit.username,
        "REMOTE_ADDR": request.client.host if request.client else "",
        "GIT_CONFIG_COUNT": str(len(git_config)),
        "FORGE_LARGE_FILES": json.dumps(
            {
                "database": str(config.database),
                "project": permit.project_id,
                "user": permit.user_id,
            }
        ),
    }
    for number, (key, value) in enumerate(git_config.items()):
        environment[f"GIT_CONFIG_KEY_{number}"] = key
        environment[f"GIT_CONFIG_VALUE_{number}"] = value
    for name, variable in (
        ("content-length", "CONTENT_LENGTH"),
        ("content-encoding", "HTTP_CONTENT_ENCODING"),
        ("git-protocol", "HTTP_GIT_PROTOCOL"),
    ):
        if name in headers:
            environment[variable] = headers[name]
    return environment


def _after_push(state: State, permit: Permit, report: Path) -> Callable[[], Awaitable[None]]:
    async def finished() -> None:
        try:
            push = read_report(report)
            if push.updates:
                await asyncio.shield(run_in_threadpool(pushes.accepted, state, permit, push))
                state.maintenance.pushed(permit.project_id)
        except Exception:
            # The push itself has happened; its author is not told otherwise.
            log.exception("after a push to project %d", permit.project_id)
        finally:
            await run_in_threadpool(_remove_files_of_push, report)

    return finished

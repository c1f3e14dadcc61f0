"""Git LFS over HTTP, at GitLab's addresses below ``/<project>.git/``; bytes stream in both directions.

https://docs.gitlab.com/topics/git/lfs/ · https://github.com/git-lfs/git-lfs/tree/main/docs/api
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import re
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from notebooks_service.errors import NotebooksError
from notebooks_service.forge import lfs, lfs_locks
from notebooks_service.forge.config import ForgeConfig
from notebooks_service.forge.database import Database
from notebooks_service.forge.lfs import LfsPermit, LfsRefused
from notebooks_service.forge.lfs_store import PIECE, LfsStore, Receiver, is_oid

log = logging.getLogger(__name__)
router = APIRouter()

LFS_TYPE = "application/vnd.git-lfs+json"
HELP = "https://docs.gitlab.com/topics/git/lfs/"
MOST_JSON = 4 << 20
T = TypeVar("T")


class LfsAnswer(JSONResponse):
    media_type = LFS_TYPE


def _refused(status: int, message: str, **more: Any) -> Response:
    """https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md#response-errors"""
    headers = {}
    if status == 401:
        headers["LFS-Authenticate"] = headers["WWW-Authenticate"] = 'Basic realm="GitLab"'
    body = {"message": message, "documentation_url": HELP, **more}
    return LfsAnswer(body, status, headers)


Route = Callable[..., Any]


def _in_lfs_words(route: Route) -> Route:
    """Turns every refusal of a route into the JSON that git-lfs shows to a person."""

    @functools.wraps(route)
    async def answered(*arguments: Any, **named: Any) -> Response:
        try:
            answer: Response = await route(*arguments, **named)
            return answer
        except lfs_locks.AlreadyLocked as refused:
            return _refused(409, refused.message, lock=refused.lock)
        except LfsRefused as refused:
            return _refused(refused.status, refused.message)
        except NotebooksError as error:
            if error.status >= 500 and error.code == "internal":
                log.error("large files: %s", error.message)
                return _refused(500, "The forge has failed; its log says more.")
            return _refused(error.status, error.message)
        except ClientDisconnect:
            raise
        except Exception as error:
            log.exception("large files: %s", type(error).__name__)
            return _refused(500, "The store of large files has failed; the forge's log says more.")

    return answered


@router.post("/{path:path}.git/info/lfs/objects/batch")
@_in_lfs_words
async def batch(path: str, request: Request) -> Response:
    """Where objects are to be read or sent. https://docs.gitlab.com/topics/git/lfs/ ·
    https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md"""
    body = await _json(request)
    asked = lfs.read_batch(body)
    config: ForgeConfig = request.app.state.config
    store: LfsStore = request.app.state.lfs_store
    authorization = request.headers.get("authorization", "")

    def answer(session: Session, permit: LfsPermit) -> dict[str, Any]:
        oids = [one.oid for one in asked.objects]
        return lfs.answer_batch(
            asked,
            lfs.known_objects(session, permit.project_id, oids),
            lfs.repository_url(config, permit.path),
            authorization,
            largest=config.lfs.largest,
            free=store.free() if asked.operation == "upload" else None,
        )

    return LfsAnswer(await _asked(request, path, answer, upload=asked.operation == "upload"))


@router.api_route("/{path:path}.git/info/lfs/objects", methods=["GET", "POST"])
@_in_lfs_words
async def legacy(path: str) -> Response:
    """The API before batches. https://docs.gitlab.com/topics/git/lfs/"""
    sentence = (
        "Server supports batch API only, please update your Git LFS client to version 1.0.1 and up."
    )
    return _refused(501, sentence)


@router.post("/{path:path}.git/info/lfs/objects/verify")
@_in_lfs_words
async def verify(path: str, request: Request) -> Response:
    """Whether the project has an object now. https://docs.gitlab.com/topics/git/lfs/ ·
    https://github.com/git-lfs/git-lfs/blob/main/docs/api/basic-transfers.md#verification"""
    body = await _json(request)
    oid, size = (body.get("oid"), body.get("size")) if isinstance(body, dict) else (None, None)
    if not isinstance(oid, str) or not is_oid(oid) or not isinstance(size, int):
        raise LfsRefused(422, "A verification names an oid and a size.")

    def known(session: Session, permit: LfsPermit) -> int | None:
        return lfs.known_objects(session, permit.project_id, [oid]).get(oid)

    there = await _asked(request, path, known, upload=True)
    if there is None or there != size:
        raise LfsRefused(404, lfs.NO_OBJECT)
    return LfsAnswer({})


@router.api_route("/{path:path}.git/gitlab-lfs/objects/{oid}", methods=["GET", "HEAD"])
@_in_lfs_words
async def download(path: str, oid: str, request: Request) -> Response:
    """An object's bytes, or a range of them. https://docs.gitlab.com/topics/git/lfs/ ·
    https://github.com/git-lfs/git-lfs/blob/main/docs/api/basic-transfers.md#downloads"""
    store: LfsStore = request.app.state.lfs_store

    def known(session: Session, permit: LfsPermit) -> int | None:
        return lfs.known_objects(session, permit.project_id, [oid]).get(oid)

    size = await _asked(request, path, known, upload=False)
    if size is None or await run_in_threadpool(store.size, oid) != size:
        if size is not None:
            log.error("the store has lost the object %s of %s", oid, path)
        raise LfsRefused(404, lfs.NO_OBJECT)
    headers = {
        "Accept-Ranges": "bytes",
        "ETag": f'"{oid}"',
        "X-Content-Type-Options": "nosniff",
        "Content-Disposition": "attachment",
        "Cache-Control": "private",
    }
    status, start, end = 200, 0, size
    asked = request.headers.get("range")
    if asked is not None and request.headers.get("if-range", f'"{oid}"') == f'"{oid}"':
        part = read_range(asked, size)
        if part is not None:
            status, (start, end) = 206, part
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
            if start >= end:
                return Response(None, 416, {"Content-Range": f"bytes */{size}"})
    headers["Content-Length"] = str(end - start)
    kind = "application/octet-stream"
    if request.method == "HEAD":
        return Response(None, status, headers, kind)
    return StreamingResponse(store.read(oid, start, end - start), status, headers, kind)


def read_range(header: str, size: int) -> tuple[int, int] | None:
    """First byte and the one after the last; empty for one that cannot be satisfied, None for
    anything that may be answered with the whole. https://www.rfc-editor.org/rfc/rfc9110#name-range"""
    found = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", header.strip(), re.ASCII)
    if found is None or not any(found.groups()):
        return None
    first, last = found.groups()
    if not first:
        return (max(size - int(last), 0), size) if int(last) else (0, 0)
    start, end = int(first), min(int(last) + 1 if last else size, size)
    if last and int(last) < start:
        return None
    return (start, end) if start < size else (0, 0)


@router.put("/{path:path}.git/gitlab-lfs/objects/{oid}/{size}")
@_in_lfs_words
async def upload(path: str, oid: str, size: str, request: Request) -> Response:
    """An object's bytes, plain or chunked; kept only if they have this size and SHA-256.
    https://docs.gitlab.com/topics/git/lfs/ ·
    https://github.com/git-lfs/git-lfs/blob/main/docs/api/basic-transfers.md#uploads"""
    if not is_oid(oid) or not re.fullmatch(r"[0-9]{1,18}", size):
        raise LfsRefused(404, lfs.NOT_FOUND)
    config: ForgeConfig = request.app.state.config
    database: Database = request.app.state.database
    store: LfsStore = request.app.state.lfs_store
    permit = await _asked(request, path, lambda session, permit: permit, upload=True)
    announced = request.headers.get("content-length")
    if int(size) > config.lfs.largest:
        raise LfsRefused(413, lfs.too_large(config.lfs.largest))
    if announced is not None and announced != size:
        raise LfsRefused(422, f"{announced} bytes were announced for an object of {size}.")
    await run_in_threadpool(lfs.touch, database, oid)
    receiver = await run_in_threadpool(Receiver, store, oid, int(size))
    try:
        waiting = bytearray()
        async for chunk in request.stream():
            waiting += chunk
            if len(waiting) >= PIECE:
                await run_in_threadpool(receiver.write, bytes(waiting))
                waiting.clear()
        await run_in_threadpool(receiver.write, bytes(waiting))
        await run_in_threadpool(receiver.finish)
    finally:
        await asyncio.shield(run_in_threadpool(receiver.give_up))
    await run_in_threadpool(lfs.link, database, permit.project_id, oid, int(size))
    log.info(
        "%s sent object %s (%s bytes) to project %d", permit.user_name, oid, size, permit.project_id
    )
    return Response(None, 200, media_type=LFS_TYPE)


@router.post("/{path:path}.git/info/lfs/locks")
@_in_lfs_words
async def create_lock(path: str, request: Request) -> Response:
    """https://docs.gitlab.com/user/project/file_lock/ ·
    https://github.com/git-lfs/git-lfs/blob/main/docs/api/locking.md#create-lock"""
    body = await _json(request)
    act = partial(_locked, body=body)
    return LfsAnswer({"lock": await _asked(request, path, act, upload=True, write=True)}, 201)


def _locked(session: Session, permit: LfsPermit, body: object) -> dict[str, Any]:
    return lfs_locks.create(session, permit, body)


@router.get("/{path:path}.git/info/lfs/locks")
@_in_lfs_words
async def list_locks(path: str, request: Request) -> Response:
    """https://docs.gitlab.com/user/project/file_lock/ ·
    https://github.com/git-lfs/git-lfs/blob/main/docs/api/locking.md#list-locks"""
    asked = dict(request.query_params)

    def answer(session: Session, permit: LfsPermit) -> dict[str, Any]:
        return lfs_locks.listed(session, permit, asked)

    return LfsAnswer(await _asked(request, path, answer, upload=False))


@router.post("/{path:path}.git/info/lfs/locks/verify")
@_in_lfs_words
async def verify_locks(path: str, request: Request) -> Response:
    """https://docs.gitlab.com/user/project/file_lock/ ·
    https://github.com/git-lfs/git-lfs/blob/main/docs/api/locking.md#list-locks-for-verification"""
    body = await _json(request)

    def answer(session: Session, permit: LfsPermit) -> dict[str, Any]:
        return lfs_locks.verified(session, permit, body)

    return LfsAnswer(await _asked(request, path, answer, upload=True))


@router.post("/{path:path}.git/info/lfs/locks/{number}/unlock")
@_in_lfs_words
async def unlock(path: str, number: str, request: Request) -> Response:
    """https://docs.gitlab.com/user/project/file_lock/ ·
    https://github.com/git-lfs/git-lfs/blob/main/docs/api/locking.md#delete-lock"""
    body = await _json(request)

    def answer(session: Session, permit: LfsPermit) -> dict[str, Any]:
        return lfs_locks.unlock(session, permit, number, body)

    return LfsAnswer({"lock": await _asked(request, path, answer, upload=True, write=True)})


@router.api_route(
    "/{path:path}.git/info/lfs/{rest:path}", methods=["GET", "POST", "PUT", "DELETE", "HEAD"]
)
async def others(path: str, rest: str) -> Response:
    """Anything else of LFS. https://docs.gitlab.com/topics/git/lfs/"""
    return _refused(501, "The embedded forge has no such endpoint of Git LFS.")


async def _asked(
    request: Request,
    path: str,
    act: Callable[[Session, LfsPermit], T],
    *,
    upload: bool,
    write: bool = False,
) -> T:
    """``act`` in a thread, with a session and a permit. Raises ``LfsRefused``."""
    database: Database = request.app.state.database
    authorization = request.headers.get("authorization", "")

    def acted() -> T:
        with database.write() if write else database.read() as session:
            permit = lfs.permit(
                session,
                request.app.state.throttle,
                path.strip("/"),
                authorization,
                upload=upload,
                address=request.client.host if request.client else "",
            )
            return act(session, permit)

    return await run_in_threadpool(acted)


async def _json(request: Request) -> object:
    """The request's body as JSON, at most 4 MiB of it. Raises ``LfsRefused``."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_JSON:
            raise LfsRefused(413, f"The request is longer than {MOST_JSON} bytes.")
    try:
        parsed: object = json.loads(body)
    except (ValueError, RecursionError):
        raise LfsRefused(422, "The request is no JSON.") from None
    return parsed

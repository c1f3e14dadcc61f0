"""Git LFS between a server and the forge; called by ``gateway/app.py``.

A server asks us where its files are; we ask the forge, with the person's token, and answer with
addresses of our own (``lfs_seal``). Behind each of them we fetch or send the bytes ourselves, in
constant memory, so that no credential and no host of the forge gets to a server.
https://github.com/git-lfs/git-lfs/tree/main/docs/api
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol
from urllib.parse import parse_qsl, quote, urlencode

import httpx
from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response

from notebooks_service.errors import (
    ForgeUnavailable,
    InvalidRequest,
    NotebooksError,
    NotFound,
    NotSignedIn,
    SignInExpired,
)
from notebooks_service.gateway.access import Admission
from notebooks_service.gateway.lfs_messages import (
    NOT_LFS,
    Action,
    lock_answer,
    lock_request,
    read_batch,
    rewrite_batch,
)
from notebooks_service.gateway.lfs_seal import Tickets
from notebooks_service.gateway.lfs_storage import Place, Storage
from notebooks_service.gateway.request import LfsRequest
from notebooks_service.gateway.upstream import Answer, ForgeSays
from notebooks_service.settings import Settings

LFS_TYPE = "application/vnd.git-lfs+json"
TRANSFER = "objects/transfer"
MOST_ASKED = 4 << 20
MOST_ANSWERED = 8 << 20
JSON_SECONDS = 60.0

SENTENCES: Mapping[int, str] = {
    403: "The forge does not let you do this with large files of this project.",
    404: "The forge does not have this, or you may not see it.",
    409: "Somebody has locked this file already.",
    410: "This file was removed from the forge.",
    413: "This is more than the forge takes.",
    422: "The forge did not accept this: it is not the file that it was said to be, or was damaged on the way. Push again.",
    429: "The forge is asked too much at the moment. Wait a minute and try again.",
    501: "The forge has no Git LFS for this project.",
    507: "The forge's disk has no room for this file.",
}

Readmit = Callable[[], Awaitable[Admission]]
PresentPath = Callable[[Admission], Awaitable[str]]


class Exchange(Protocol):
    """What ``app`` gives: one request and the ways to answer it."""

    method: str
    query: str
    headers: Headers

    def body(self) -> AsyncIterator[bytes]: ...
    def nothing_more_to_read(self) -> None: ...
    async def send_stream(self, answer: Answer) -> None: ...
    async def send_all(self, response: Response) -> None: ...


def lfs_refusal(error: NotebooksError, status: int) -> Response:
    """A refusal in git-lfs's own form: it shows ``message`` to the person.
    https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md#response-errors"""
    headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
    if status == 401 and isinstance(error, NotSignedIn):
        challenge = 'Basic realm="Notebooks", charset="UTF-8"'
        headers |= {"LFS-Authenticate": challenge, "WWW-Authenticate": challenge}
    if isinstance(error, ForgeSays) and error.retry_after:
        headers["Retry-After"] = error.retry_after
    return JSONResponse({"message": error.message}, status, headers, LFS_TYPE)


class LargeFiles:
    """Answers every request of Git LFS. ``present_path`` says what the forge calls a project now."""

    def __init__(
        self,
        settings: Settings,
        key: bytes,
        present_path: PresentPath,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._tickets = Tickets(key)
        self._storage = Storage(settings, transport)
        self._gateway_url = settings.gateway_url
        self._present_path = present_path

    async def aclose(self) -> None:
        await self._storage.aclose()

    async def answer(
        self, exchange: Exchange, request: LfsRequest, admission: Admission, readmit: Readmit
    ) -> None:
        """Answer one request. ``readmit`` asks the hub anew who it is, for a sign-in that the forge
        no longer takes. Raises ``NotebooksError``."""
        work = self._work(exchange, request)
        try:
            path = await self._present_path(admission)
        except SignInExpired:
            admission = await self._fresh(admission, readmit)
            path = await self._present_path(admission)
        await work(exchange, request, admission, path)

    async def _fresh(self, admission: Admission, readmit: Readmit) -> Admission:
        again = await readmit()
        if again.forge_token == admission.forge_token:
            raise SignInExpired
        return again

    def _work(self, exchange: Exchange, request: LfsRequest) -> Callable[..., Awaitable[None]]:
        endpoint, method = request.endpoint, exchange.method
        if endpoint == "objects/batch" and method == "POST":
            return self._batch
        if endpoint == TRANSFER:
            return self._transfer
        if endpoint == "locks" and method in ("GET", "POST"):
            return self._locks
        if method == "POST" and re.fullmatch(r"locks/(verify|\d{1,19}/unlock)", endpoint, re.A):
            return self._locks
        raise NotFound

    # Where files are

    async def _batch(
        self, exchange: Exchange, request: LfsRequest, admission: Admission, path: str
    ) -> None:
        asked = read_batch(await _read_json(exchange))
        if asked.operation == "upload":
            admission.need_write()
        place = self._storage.repository(path, "objects/batch")
        answer = await self._ask("POST", place, admission, asked.body)
        root = f"{self._gateway_url}{quote(request.project, safe='/')}.git/info/lfs/{TRANSFER}"

        def seal(action: Action, good_for: float | None) -> str:
            self._storage.place(action.href, path)
            return f"{root}?ticket={self._tickets.seal(action, admission, good_for)}"

        # The server's own credentials for our own addresses: git-lfs need not look for them again.
        header = {"Authorization": exchange.headers["authorization"]}
        rewritten = rewrite_batch(asked, answer, seal, header)
        await exchange.send_all(_json(rewritten))

    # Files

    async def _transfer(
        self, exchange: Exchange, request: LfsRequest, admission: Admission, path: str
    ) -> None:
        ticket = dict(parse_qsl(exchange.query, max_num_fields=4)).get("ticket", "")
        action = self._tickets.open(ticket, admission)
        methods = {"download": ("GET", "HEAD"), "upload": ("PUT",), "verify": ("POST",)}
        if exchange.method not in methods[action.kind]:
            raise NotFound
        place = self._storage.place(action.href, path)
        if action.kind == "download":
            await self._download(exchange, action, place, admission, path)
        elif action.kind == "upload":
            await self._upload(exchange, action, place, admission)
        else:
            await _read_json(exchange)
            body = {"oid": action.oid, "size": action.size}
            await self._ask("POST", place, admission, body, dict(action.headers), empty=True)
            await exchange.send_all(_json({}))

    async def _download(
        self, exchange: Exchange, action: Action, place: Place, admission: Admission, path: str
    ) -> None:
        headers = dict(action.headers)
        if "range" in exchange.headers:
            headers["range"] = exchange.headers["range"]
        response = await self._storage.send(
            exchange.method, place, admission, headers, project=path
        )
        try:
            answer = _file(action, response, head=exchange.method == "HEAD")
            if answer is None:
                _refuse(response)
            exchange.nothing_more_to_read()
            await exchange.send_stream(answer)
        finally:
            await response.aclose()

    async def _upload(
        self, exchange: Exchange, action: Action, place: Place, admission: Admission
    ) -> None:
        announced = exchange.headers.get("content-length")
        if announced is not None and announced != str(action.size):
            raise InvalidRequest(f"{announced} bytes were announced for a file of {action.size}.")
        headers = {
            "content-type": "application/octet-stream",
            **dict(action.headers),
            # Known from the ticket, however the server sends it: storage that takes only plain
            # uploads takes these, and a forge sees at once when one breaks off.
            "content-length": str(action.size),
        }
        content = _exactly(action.size, exchange.body())
        response = await self._storage.send("PUT", place, admission, headers, content)
        try:
            if response.status_code not in (200, 201, 204):
                _refuse(response)
        finally:
            await response.aclose()
        exchange.nothing_more_to_read()
        await exchange.send_all(Response(None, 200, media_type=LFS_TYPE))

    # Locks

    async def _locks(
        self, exchange: Exchange, request: LfsRequest, admission: Admission, path: str
    ) -> None:
        endpoint, body = request.endpoint, None
        if exchange.method == "GET":
            given: dict[str, Any] = dict(parse_qsl(exchange.query, max_num_fields=20))
            asked = lock_request(given, "path", "id", "cursor", "limit", "refspec")
            endpoint += f"?{urlencode(asked)}" if asked else ""
        else:
            admission.need_write()
            given_body = await _read_json(exchange)
            keys = ("path", "ref") if endpoint == "locks" else ("force", "ref", "cursor", "limit")
            body = lock_request(given_body, *keys)
        place = self._storage.repository(path, endpoint)
        created = endpoint == "locks" and exchange.method == "POST"
        answer = await self._ask(exchange.method, place, admission, body, also=(201, 409))
        kept = lock_answer(answer.get("body"))
        if answer["status"] == 409:
            await exchange.send_all(_json({**kept, "message": SENTENCES[409]}, 409))
        else:
            await exchange.send_all(_json(kept, 201 if created else 200))

    # The forge's API of Git LFS

    async def _ask(
        self,
        method: str,
        place: Place,
        admission: Admission,
        body: object,
        headers: Mapping[str, str] | None = None,
        *,
        empty: bool = False,
        also: tuple[int, ...] = (),
    ) -> Any:
        """The forge's JSON; with ``also``, its status too. ``empty``: nothing but yes is asked for."""
        sent = {**(headers or {}), "accept": LFS_TYPE}
        content = None
        if body is not None:
            content = json.dumps(body).encode()
            sent |= {"content-type": LFS_TYPE, "content-length": str(len(content))}
        try:
            async with asyncio.timeout(JSON_SECONDS):
                response = await self._storage.send(method, place, admission, sent, content)
                try:
                    if response.status_code not in (200, *also):
                        _refuse(response)
                    if empty:
                        return None
                    parsed = await _answered_json(response)
                finally:
                    await response.aclose()
        except TimeoutError as error:
            raise ForgeUnavailable from error
        return {"status": response.status_code, "body": parsed} if also else parsed


@dataclass
class _File(Answer):
    """A file on its way to a server: not a byte more than its own."""

    length: int = 0
    head: bool = False

    async def body(self) -> AsyncIterator[bytes]:
        left = self.length
        if self.head:
            return
        async for piece in super().body():
            left -= len(piece)
            if left < 0:
                raise httpx.RemoteProtocolError("more than the announced length")
            yield piece
        if left:
            raise httpx.RemoteProtocolError("less than the announced length")


def _file(action: Action, response: httpx.Response, *, head: bool) -> _File | None:
    """The answer for the server, if the storage's answer is this file or a part of it.

    Raises ``ForgeUnavailable`` for a file of another size, or one that was packed on the way.
    """
    status, given = response.status_code, response.headers
    headers = [
        ("content-type", "application/octet-stream"),
        ("accept-ranges", "bytes"),
        ("cache-control", "no-store"),
    ]
    if status == 416:
        headers += [("content-range", f"bytes */{action.size}"), ("content-length", "0")]
        return _File(416, headers, response, length=0, head=True)
    if status not in (200, 206):
        return None
    length = action.size
    if status == 206:
        part = re.fullmatch(
            r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", given.get("content-range", "")
        )
        first, last, size = map(int, part.groups()) if part else (0, -1, -1)
        if size != action.size or not first <= last < size:
            raise ForgeUnavailable("The forge offers another file than the one asked for.")
        length = last - first + 1
        headers.append(("content-range", f"bytes {first}-{last}/{size}"))
    announced = given.get("content-length", str(length))
    if announced != str(length) or given.get("content-encoding", "identity") != "identity":
        raise ForgeUnavailable("The forge offers another file than the one asked for.")
    return _File(status, [*headers, ("content-length", str(length))], response, length, head)


async def _exactly(size: int, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """``body``, if it has ``size`` bytes. Raises ``InvalidRequest`` when it turns out that it has not."""
    left = size
    async for piece in body:
        left -= len(piece)
        if left < 0:
            raise InvalidRequest(f"More than the announced {size} bytes came. Nothing was stored.")
        yield piece
    if left:
        raise InvalidRequest(f"{size - left} bytes came instead of {size}. Nothing was stored.")


def _refuse(response: httpx.Response) -> NoReturn:
    """Raise what a status other than success means: in our words, for the forge's may hold anything."""
    status = response.status_code
    if status == 401:
        raise SignInExpired
    if status == 404:
        raise NotFound(SENTENCES[404])
    if status in (400, 406, 415):
        status = 422
    if status not in SENTENCES:
        raise ForgeUnavailable(NOT_LFS if status < 500 else None)
    after = response.headers.get("retry-after", "")
    raise ForgeSays(status, SENTENCES[status], after if re.fullmatch(r"\d{1,6}", after) else None)


async def _answered_json(response: httpx.Response) -> Any:
    body = bytearray()
    try:
        async for piece in response.aiter_raw():
            body += piece
            if len(body) > MOST_ANSWERED:
                raise ForgeUnavailable("The forge's answer about large files is too long.")
        return json.loads(body)
    except (httpx.HTTPError, ValueError, RecursionError) as error:
        raise ForgeUnavailable(NOT_LFS) from error


async def _read_json(exchange: Exchange) -> object:
    body = bytearray()
    async for piece in exchange.body():
        body += piece
        if len(body) > MOST_ASKED:
            exchange.nothing_more_to_read()
            raise ForgeSays(413, f"The request is longer than {MOST_ASKED} bytes.")
    try:
        parsed: object = json.loads(body)
    except (ValueError, RecursionError):
        raise InvalidRequest("The request is no JSON.") from None
    return parsed


def _json(body: object, status: int = 200) -> Response:
    headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    return JSONResponse(body, status, headers, LFS_TYPE)

"""The gateway's ASGI application: ``web`` mounts ``gateway_routes`` at ``<service>/git/``.

A server's git sends its hub token; the request goes on to the forge with the person's token. Packs
stream through in constant memory; whichever side goes away first ends the other.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import httpx
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import Message, Receive, Scope, Send

from notebooks_service.errors import NotebooksError, NotSignedIn, SignInExpired
from notebooks_service.gateway import secret_files
from notebooks_service.gateway.access import Access, Admission
from notebooks_service.gateway.hub import HubClient
from notebooks_service.gateway.lfs import LargeFiles, lfs_refusal
from notebooks_service.gateway.request import (
    RECEIVE_PACK,
    GitRequest,
    LfsRequest,
    read_request,
    read_token,
)
from notebooks_service.gateway.secret_files import Granted
from notebooks_service.gateway.upstream import Answer, ForgeSays, Upstream
from notebooks_service.settings import Settings

log = logging.getLogger(__name__)


def gateway_routes(
    hub: HubClient,
    settings: Settings,
    transport: httpx.AsyncBaseTransport | None = None,
    *,
    granted: Granted,
) -> list[BaseRoute]:
    """The routes below the gateway's URL. ``transport`` is the way to the forge, for tests;
    ``granted`` says which secrets a server gets."""
    upstream = Upstream(settings, transport)
    key = hub.derived_key(b"addresses of large files")
    large_files = LargeFiles(settings, key, upstream.present_path, transport)
    access = Access(hub)
    return [
        Route(secret_files.PATH, secret_files.SecretFiles(access, granted).answer, methods=["GET"]),
        Route("/{path:path}", Gateway(access, upstream, large_files)),
    ]


class Gateway:
    """Answers every request below the gateway's URL; the path is in the route's ``path``."""

    def __init__(self, access: Access, upstream: Upstream, large_files: LargeFiles) -> None:
        self._access = access
        self._upstream = upstream
        self._large_files = large_files

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = _Exchange(scope, receive, send)
        try:
            await _until_client_leaves(self._answer(exchange), exchange)
        except NotebooksError as error:
            await exchange.refuse(error)
        except ClientDisconnect:
            exchange.ending = "client left"
        finally:
            exchange.write_log()

    async def _answer(self, exchange: _Exchange) -> None:
        request = read_request(exchange.method, exchange.path, exchange.query)
        exchange.request = request
        token = read_token(exchange.headers.get("authorization"))
        admission = await self._access.admit(token, request.project)
        exchange.admission = admission
        if isinstance(request, LfsRequest):
            await self._large_files.answer(
                exchange,
                request,
                admission,
                lambda: self._access.admit(token, request.project, fresh=True),
            )
            return
        if request.service == RECEIVE_PACK:
            admission.need_write()
        body = None if request.refs else exchange.body()
        try:
            answer = await self._upstream.send(request, admission, exchange.headers, body)
        except SignInExpired:
            if exchange.began_to_read:
                raise
            # The token may have been replaced between the hub's answer and the forge's.
            again = await self._access.admit(token, request.project, fresh=True)
            if again.forge_token == admission.forge_token:
                raise
            body = None if request.refs else exchange.body()
            answer = await self._upstream.send(request, again, exchange.headers, body)
        try:
            exchange.nothing_more_to_read()
            await exchange.send_stream(answer)
        finally:
            await answer.aclose()


class _Exchange:
    """One request: what it asks, what has gone through so far, how it ended."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path_params"]["path"]
        self.query = scope["query_string"].decode("latin-1")
        self.headers = Headers(scope=scope)
        self.request: GitRequest | LfsRequest | None = None
        self.admission: Admission | None = None
        self.ending = "done"
        self.began_to_read = False
        self._scope, self._receive, self._send = scope, receive, send
        self._began = time.monotonic()
        self._read_all = asyncio.Event()
        self._status = 0
        self._bytes_in = self._bytes_out = 0
        if self.method not in ("POST", "PUT"):
            self.nothing_more_to_read()

    async def body(self) -> AsyncIterator[bytes]:
        """The request's body, piece by piece; raises ``ClientDisconnect`` if it breaks off."""
        self.began_to_read = True
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            piece = message.get("body", b"")
            more = message.get("more_body", False)
            self._bytes_in += len(piece)
            if piece:
                yield piece
        self.nothing_more_to_read()

    def nothing_more_to_read(self) -> None:
        """Nobody reads the body any more: what is still received can only say that the client left."""
        self._read_all.set()

    async def client_left(self) -> None:
        """Returns when the client has gone away."""
        await self._read_all.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def send_stream(self, answer: Answer) -> None:
        """Pass on the forge's answer.

        One that breaks off is ended in good order if it can be: configurable-http-proxy would let
        the client of a broken answer wait for ever, while git sees for itself that the last packet
        of its protocol is missing. One of a known length has to stay unfinished.
        """
        await self._start(answer.status, answer.headers)
        try:
            async for piece in answer.body():
                await self._body(piece, more=True)
        except httpx.HTTPError:
            self.ending = "forge broke off"
            if any(name == "content-length" for name, _ in answer.headers):
                return
        await self._body(b"", more=False)

    async def refuse(self, error: NotebooksError) -> None:
        """Answer with the error's sentence as plain text: git shows that as ``remote: …``.

        git-lfs is answered in its own form. An expired sign-in is 403, not 401: no password that git could ask for would help.
        """
        if self._status:
            self.ending = error.code
            return
        status = 403 if isinstance(error, SignInExpired) else error.status
        if isinstance(self.request, LfsRequest):
            self.ending = error.code
            await self.send_all(lfs_refusal(error, status))
            return
        headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
        if status == 401 and isinstance(error, NotSignedIn):
            headers["WWW-Authenticate"] = 'Basic realm="Notebooks", charset="UTF-8"'
        if isinstance(error, ForgeSays) and error.retry_after:
            headers["Retry-After"] = error.retry_after
        self.ending = error.code
        await self.send_all(PlainTextResponse(f"{error.message}\n", status, headers))

    async def send_all(self, response: Response) -> None:
        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._status = message["status"]
            else:
                self._bytes_out += len(message.get("body", b""))
            await self._send(message)

        await response(self._scope, self._receive, send)

    def write_log(self) -> None:
        """One line, without headers: what was asked, by which server, how it went."""
        kind = ""
        if isinstance(self.request, GitRequest):
            kind = self.request.service + (" refs" if self.request.refs else "")
        elif isinstance(self.request, LfsRequest):
            kind = "lfs"
        who = f"{self.admission.user}/{self.admission.server}" if self.admission else "-"
        log.info(
            "git method=%s project=%r service=%r server=%s status=%d in=%d out=%d seconds=%.3f end=%r",
            self.method,
            self.request.project if self.request else self.path[:200],
            kind,
            who,
            self._status,
            self._bytes_in,
            self._bytes_out,
            time.monotonic() - self._began,
            self.ending,
        )

    async def _start(self, status: int, headers: list[tuple[str, str]]) -> None:
        self._status = status
        pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        pairs.append((b"x-content-type-options", b"nosniff"))
        await self._send({"type": "http.response.start", "status": status, "headers": pairs})

    async def _body(self, piece: bytes, *, more: bool) -> None:
        self._bytes_out += len(piece)
        await self._send({"type": "http.response.body", "body": piece, "more_body": more})


async def _until_client_leaves(work: Coroutine[Any, Any, None], exchange: _Exchange) -> None:
    """Do ``work``, but give it up as soon as the client has gone (raises ``ClientDisconnect``)."""
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(exchange.client_left())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)

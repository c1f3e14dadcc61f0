"""The outermost layer of the service: reads each path once, adds the headers that every answer has.

Called by uvicorn through ``app``; hands FastAPI either one of our own routes or an address of a
project (``urls``), which no router could tell apart.
"""

from __future__ import annotations

import asyncio
import secrets
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from notebooks_service.errors import NotFound
from notebooks_service.web.urls import CommitAddress, OwnRoute, RefAddress, parse

ADDRESS = "notebooks.address"
COMMIT_ROUTE = "/-/at/commit"
REF_ROUTE = "/-/at/ref"
NO_ROUTE = "/-/at/none"
OPEN = frozenset({"/health", "/metrics", "/version", "/openapi.json", "/-/reach", "/-/stream"})
"""What monitors and programs ask without a token: about nobody."""

# No `form-action`: a form's answer may redirect through the hub to the forge's sign-in.
POLICY = "default-src 'self'; base-uri 'none'; object-src 'none'; frame-ancestors 'none'"
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Front:
    """Wraps the FastAPI application; ``prefix`` is the path that the hub routes to us.

    ``own`` is the service's origin where it has a host of its own: from any other, such as the hub's, a
    browser is led there. Programs with a token are answered at all.
    """

    def __init__(self, app: ASGIApp, prefix: str, *, own: str = "") -> None:
        self._app = app
        self._prefix = prefix
        self._own = own
        self._own_host = urlsplit(own).netloc.lower().encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        raw = scope.get("raw_path") or scope["path"].encode()
        scope = dict(scope)
        scope["notebooks.request_id"] = secrets.token_hex(6)
        scope["notebooks.raw_path"] = raw
        send = _with_headers(send, scope["notebooks.request_id"])
        if raw == self._prefix.rstrip("/").encode():
            await RedirectResponse(self._prefix, status_code=302)(scope, receive, send)
            return
        self._read_path(scope, raw)
        if self._is_for_our_host(scope):
            asked = raw.decode("latin-1") + ("?" if scope["query_string"] else "")
            url = f"{self._own}{asked}{scope['query_string'].decode('latin-1')}"
            # A form that is sent here comes from no page of ours: asked for again, it is not sent.
            await RedirectResponse(url, status_code=303)(scope, receive, send)
            return
        if scope["method"] == "HEAD":
            await self._head(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _is_for_our_host(self, scope: Scope) -> bool:
        headers = dict(scope["headers"])
        if not self._own or headers.get(b"host", b"").lower() == self._own_host:
            return False
        # git says who it is only after a 401; the others are about nobody.
        open_ = scope["path"].startswith("/git/") or scope["path"] in OPEN
        return b"authorization" not in headers and not open_

    def _read_path(self, scope: Scope, raw: bytes) -> None:
        """Give FastAPI the path of a route of its own, below no prefix."""
        scope["root_path"] = ""
        try:
            meant = parse(raw, self._prefix)
        except NotFound:
            scope["path"] = NO_ROUTE
            return
        if isinstance(meant, OwnRoute):
            outside = not meant.path.startswith("/-/at/")
            scope["path"] = meant.path if outside else NO_ROUTE
            return
        scope[ADDRESS] = meant
        scope["path"] = COMMIT_ROUTE if isinstance(meant, CommitAddress) else REF_ROUTE

    async def _head(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer HEAD as GET without the body; what would stream is left at its headers."""
        started = asyncio.Event()

        async def headers_only(message: Message) -> None:
            if message["type"] == "http.response.start" and not started.is_set():
                await send(message)
                await send({"type": "http.response.body", "body": b""})
                started.set()

        scope["method"] = "GET"
        working = asyncio.create_task(_run(self._app, scope, receive, headers_only))
        waiting = asyncio.create_task(started.wait())
        try:
            await asyncio.wait({working, waiting}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
        finally:
            for task in (working, waiting):
                task.cancel()
            await asyncio.gather(working, waiting, return_exceptions=True)


async def _run(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    await app(scope, receive, send)


def _with_headers(send: Send, request_id: str) -> Send:
    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
            headers.setdefault("Cache-Control", "no-store")
            headers["X-Request-ID"] = request_id
        await send(message)

    return wrapped


def commit_address(scope: Scope) -> CommitAddress:
    """The address that ``Front`` read; raises ``NotFound`` if it was none."""
    found = scope.get(ADDRESS)
    if not isinstance(found, CommitAddress):
        raise NotFound
    return found


def ref_address(scope: Scope) -> RefAddress:
    """The address that ``Front`` read; raises ``NotFound`` if it was none."""
    found = scope.get(ADDRESS)
    if not isinstance(found, RefAddress):
        raise NotFound
    return found

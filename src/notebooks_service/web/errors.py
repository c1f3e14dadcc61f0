"""The one place where errors become HTTP: JSON for programs, a page for browsers.

Called by the application's exception handlers and by ``routing`` for addresses that are none.
"""

from __future__ import annotations

import logging
import shutil
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException

from notebooks_service.errors import (
    InvalidRequest,
    NoSpace,
    NotebooksError,
    NotFound,
    NotSignedIn,
)
from notebooks_service.gateway.hub import HubFailed
from notebooks_service.settings import Settings
from notebooks_service.web import pages
from notebooks_service.web.parts import parts_of
from notebooks_service.web.routing import ADDRESS
from notebooks_service.web.urls import RefAddress

log = logging.getLogger(__name__)

LEAST_FREE = 1024 * 1024
"""Bytes below which a database's disk counts as full."""


class MethodNotAllowed(NotebooksError):
    code = "method_not_allowed"
    status = 405
    message = "This address does not take that method; `docs` lists what it takes."


NOT_OF_A_REF = (
    "What a branch, tag or short id means can change: use the address with the full commit id of"
    " 40 hex digits. A GET of this address redirects there."
)


def respond(request: Request, error: NotebooksError) -> Response:
    """The answer for ``error``. Hidden and missing give the same bytes but for the request's id."""
    if type(error) is NotFound:
        error = NotFound()
    # A hub without room on its disk knows no token: it notes when each was used.
    by_the_hub = isinstance(error, HubFailed) or error.code == NotSignedIn.code
    if by_the_hub and _is_full(parts_of(request).settings):
        error = NoSpace()
    if error.status >= 500:
        log.warning("request %s: %s (%s)", pages.request_id(request), error.code, error.message)
    if pages.wants_html(request):
        if isinstance(error, NotSignedIn) and error.code == "not_signed_in" and _is_read(request):
            return parts_of(request).sign_in.redirect_to_hub(request, pages.here(request))
        response = _page(request, error)
    else:
        detail = {**error.detail, "request_id": pages.request_id(request)}
        body = {"error": {"code": error.code, "message": error.message, "detail": detail}}
        response = JSONResponse(body, status_code=error.status)
    if error.status == HTTPStatus.UNAUTHORIZED and not pages.wants_html(request):
        response.headers["WWW-Authenticate"] = 'Bearer realm="notebooks"'
    if error.status == HTTPStatus.SERVICE_UNAVAILABLE:
        response.headers["Retry-After"] = str(error.detail.get("retry_after", 5))
    return response


def _page(request: Request, error: NotebooksError) -> Response:
    title = {
        401: "Sign in again",
        403: "Not allowed",
        404: "Not found",
        503: "Not available just now",
    }.get(error.status, "Something went wrong" if error.status >= 500 else "That did not work")
    return pages.render(
        request,
        "error.html",
        status=error.status,
        title=title,
        error=error,
        here=pages.here(request) if _is_read(request) else None,
    )


def install(app: FastAPI) -> None:
    """Let the application turn every exception into one of our answers."""

    async def ours(request: Request, error: Exception) -> Response:
        assert isinstance(error, NotebooksError)
        return respond(request, error)

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == HTTPStatus.NOT_FOUND:
            return respond(request, NotFound())
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            if isinstance(request.scope.get(ADDRESS), RefAddress):
                return respond(request, MethodNotAllowed(NOT_OF_A_REF))
            return respond(request, MethodNotAllowed())
        known = InvalidRequest(str(error.detail))
        known.status = error.status_code
        return respond(request, known)

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return respond(request, InvalidRequest(_sentence(error.errors())))

    async def database(request: Request, error: Exception) -> Response:
        if "disk is full" in str(error):
            return respond(request, NoSpace())
        return await unknown(request, error)

    async def unknown(request: Request, error: Exception) -> Response:
        log.error("request %s failed", pages.request_id(request), exc_info=error)
        return respond(request, NotebooksError("Something went wrong in the notebooks service."))

    app.add_exception_handler(NotebooksError, ours)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(OperationalError, database)
    app.add_exception_handler(Exception, unknown)


def _is_full(settings: Settings) -> bool:
    """Whether the hub's database has no room on this machine, which the hub does not say."""
    try:
        free = shutil.disk_usage(settings.data / "hub").free
    except OSError:
        return False
    return free < LEAST_FREE


def _is_read(request: Request) -> bool:
    return request.method in ("GET", "HEAD")


def _sentence(errors: Any) -> str:
    """Which parameter is wrong and why, from pydantic's list; never its value."""
    if not errors:
        return InvalidRequest.message
    first = errors[0]
    where = ".".join(str(part) for part in first["loc"] if part not in ("query", "path", "body"))
    return f"`{where}`: {first['msg']}." if where else f"{first['msg']}."

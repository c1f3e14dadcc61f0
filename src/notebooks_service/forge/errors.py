"""The forge's errors and the one place that turns them into GitLab's bodies and codes.

GitLab answers ``{"message": "404 Project Not Found"}`` from its API and
``{"error": …, "error_description": …}`` for anything about tokens.
https://docs.gitlab.com/api/rest/troubleshooting/
"""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException

from notebooks_service.errors import NoSpace, NotebooksError, RegistryUnavailable

log = logging.getLogger(__name__)


class ForgeError(NotebooksError):
    """An answer of the forge's API that is no success; ``body`` is sent as JSON."""

    code = "forge"

    def __init__(
        self, status: int, body: dict[str, Any], headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(str(body.get("message") or body.get("error") or status))
        self.status = status
        self.body = body
        self.headers = headers or {}


class ProjectMoved(ForgeError):
    """Somebody asked for a path that project ``project_id`` had before.

    https://docs.gitlab.com/api/rest/#redirects
    """

    def __init__(self, project_id: int) -> None:
        why = "405 Method Not Allowed - Non GET methods are not allowed for moved projects"
        super().__init__(405, {"message": why})
        self.project_id = project_id


def not_found(what: str = "") -> ForgeError:
    """``not_found("Project")`` is GitLab's ``404 Project Not Found``, for hidden and missing alike."""
    words = f"404 {what} Not Found" if what else "404 Not found"
    return ForgeError(404, {"message": words})


def unauthorized() -> ForgeError:
    return ForgeError(401, {"message": "401 Unauthorized"})


def invalid_token(description: str) -> ForgeError:
    """A token that was known once: expired or revoked."""
    challenge = f'Bearer realm="Protected by OAuth 2.0", error="invalid_token", error_description="{description}"'
    return ForgeError(
        401,
        {"error": "invalid_token", "error_description": description},
        {"WWW-Authenticate": challenge},
    )


def insufficient_scope(scopes: list[str]) -> ForgeError:
    return ForgeError(
        403,
        {
            "error": "insufficient_scope",
            "error_description": "The request requires higher privileges than provided by the access token.",
            "scope": " ".join(scopes),
        },
    )


def forbidden(why: str = "") -> ForgeError:
    return ForgeError(403, {"message": f"403 Forbidden - {why}" if why else "403 Forbidden"})


def bad_request(why: str) -> ForgeError:
    return ForgeError(400, {"message": why})


def invalid(field: str, why: str) -> ForgeError:
    """A value that GitLab's models would refuse: ``{"message": {"path": ["has already been taken"]}}``."""
    return ForgeError(400, {"message": {field: [why]}})


def conflict(why: str) -> ForgeError:
    return ForgeError(409, {"message": why})


def unprocessable(why: str) -> ForgeError:
    return ForgeError(422, {"message": why})


def not_implemented(what: str) -> ForgeError:
    return ForgeError(
        501,
        {
            "message": f"501 Not Implemented: the embedded forge has no {what}; "
            "it is the part of GitLab that the notebooks service needs. Connect a GitLab for the rest."
        },
    )


def is_api(request: Request) -> bool:
    return request.url.path.startswith(("/api/", "/oauth/token", "/oauth/revoke"))


def install(app: FastAPI) -> None:
    """Register the handlers that answer with GitLab's bodies."""

    @app.exception_handler(ProjectMoved)
    async def moved(request: Request, error: ProjectMoved) -> Response:
        if request.method not in ("GET", "HEAD"):
            return JSONResponse(error.body, error.status)
        path: str = request.scope["raw_path"].decode("ascii", "replace")
        start, projects, rest = path.partition("/projects/")
        _, slash, behind = rest.partition("/")
        query = f"?{request.url.query}" if request.url.query else ""
        base = f"{request.app.state.config.url}{start}{projects}"
        location = f"{base}{error.project_id}{slash}{behind}{query}"
        return PlainTextResponse(
            f"This resource has been moved permanently to {location}",
            301,
            headers={"Location": location},
        )

    @app.exception_handler(ForgeError)
    async def forge_error(request: Request, error: ForgeError) -> Response:
        return JSONResponse(error.body, error.status, headers=error.headers)

    @app.exception_handler(NotebooksError)
    async def other_error(request: Request, error: NotebooksError) -> Response:
        if error.status == 500:
            # What git says may name directories of this machine.
            log.error("%s: %s", request.method, error.message)
            return JSONResponse({"message": "500 Internal Server Error"}, 500)
        return JSONResponse({"message": error.message}, error.status)

    @app.exception_handler(RegistryUnavailable)
    async def registry_error(request: Request, error: RegistryUnavailable) -> Response:
        log.warning("%s: %s %s", request.method, error.message, error.detail)
        return JSONResponse({"message": "503 Service Unavailable"}, 503)

    @app.exception_handler(OperationalError)
    async def database_error(request: Request, error: OperationalError) -> Response:
        if "disk is full" in str(error.orig):
            return JSONResponse({"message": NoSpace.message}, NoSpace.status)
        log.error("%s: %s", request.method, error.orig)
        busy = "locked" in str(error.orig)
        return JSONResponse({"message": "503 Service Unavailable"}, 503 if busy else 500)

    @app.exception_handler(OverflowError)
    async def no_such_number(request: Request, error: OverflowError) -> Response:
        # A number that SQLite cannot hold is the id of nothing.
        missing = not_found()
        return JSONResponse(missing.body, missing.status)

    @app.exception_handler(RequestValidationError)
    async def invalid_input(request: Request, error: RequestValidationError) -> Response:
        parts = []
        for item in error.errors():
            name = str(item["loc"][-1]) if item["loc"] else "body"
            missing = item["type"] == "missing"
            parts.append(f"{name} is missing" if missing else f"{name} is invalid")
        return JSONResponse({"error": ", ".join(parts)}, 400)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        if request.url.path.startswith("/api/") and error.status_code in (404, 405):
            refused = not_implemented(f"{request.method} endpoint at this address")
            return JSONResponse(refused.body, refused.status)
        if is_api(request):
            return JSONResponse({"error": f"{error.status_code} {error.detail}"}, error.status_code)
        from notebooks_service.forge.pages import error_page

        return error_page(request, error.status_code, str(error.detail))

    @app.exception_handler(Exception)
    async def crash(request: Request, error: Exception) -> Response:
        log.exception("request failed: %s", request.method, exc_info=error)
        return JSONResponse({"message": "500 Internal Server Error"}, 500)

"""Gives a server that starts the secrets that its person granted to its project: ``GET -/secrets``.

Asked by ``singleuser/secret_files.py`` before Jupyter starts, by the way that git goes. The server's own
token says which server it is; the hub's record of its launch says of which project.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from notebooks_service.errors import NotebooksError
from notebooks_service.gateway.access import Access
from notebooks_service.gateway.request import read_token

log = logging.getLogger(__name__)

PATH = "/-/secrets"
"""No project's path: none begins with a dash."""

Granted = Callable[[str, int], Awaitable[Mapping[str, bytes]]]
"""The secrets, by name, that a person's servers of a project get: called with both."""


class SecretFiles:
    """Answers with names and values, once the server's token was looked at; to nobody else."""

    def __init__(self, access: Access, granted: Granted) -> None:
        self._access = access
        self._granted = granted

    async def answer(self, request: Request) -> Response:
        headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
        try:
            token = read_token(request.headers.get("authorization"))
            server = await self._access.starting(token)
            found = await self._granted(server.user, server.project_id)
        except NotebooksError as error:
            log.info("secrets status=%d end=%r", error.status, error.code)
            body = {"error": {"code": error.code, "message": error.message}}
            return JSONResponse(body, error.status, headers)
        log.info(
            "secrets server=%s/%s project=%d given=%s",
            server.user,
            server.server,
            server.project_id,
            ",".join(found) or "none",
        )
        secrets = [
            {"name": name, "value": base64.b64encode(value).decode()}
            for name, value in found.items()
        ]
        return JSONResponse({"secrets": secrets}, headers=headers)

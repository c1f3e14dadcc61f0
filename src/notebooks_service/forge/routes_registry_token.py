"""``/jwt/auth``: tokens for a container registry.

https://docs.gitlab.com/administration/packages/container_registry/ ·
https://distribution.github.io/distribution/spec/auth/token/
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from notebooks_service.forge import git_access, registry_tokens
from notebooks_service.forge.authentication import Asker
from notebooks_service.forge.database import Database
from notebooks_service.forge.git_access import GitRefused

router = APIRouter()

NOT_KEPT = {"Cache-Control": "no-store"}


def _refused(status: int, code: str, message: str) -> Response:
    return JSONResponse({"errors": [{"code": code, "message": message}]}, status, headers=NOT_KEPT)


@router.get("/jwt/auth")
def registry_token(
    request: Request,
    service: str = "",
    scope: Annotated[list[str] | None, Query()] = None,
) -> Response:
    """https://docs.gitlab.com/administration/packages/container_registry/#container-registry-architecture

    Logins as for git: an OAuth or personal token, a deploy token, a CI job's token, a password. What
    the login may not do is left out of the token; ``account`` and ``offline_token`` change nothing.
    """
    if service != registry_tokens.SERVICE:
        return Response(status_code=404)
    state = request.app.state
    address = request.client.host if request.client else ""
    database: Database = state.database
    with database.read() as session:
        try:
            asker: Asker = git_access.login_of(
                session, state.throttle, request.headers.get("authorization", ""), address
            )
        except GitRefused as refused:
            code = "TOOMANYREQUESTS" if refused.status == 429 else "UNAUTHORIZED"
            return _refused(refused.status, code, refused.text)
        if not registry_tokens.may_log_in(asker) or (asker.kind == "nobody" and not scope):
            return _refused(403, "DENIED", "access forbidden")
        found = registry_tokens.granted(session, asker, scope or ())
        answer = registry_tokens.token(state.config, asker, service, found)
    return JSONResponse(answer, headers=NOT_KEPT)

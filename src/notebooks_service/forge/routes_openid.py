"""OpenID Connect's addresses. https://docs.gitlab.com/integration/openid_connect_provider/"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool

from notebooks_service.forge import errors, openid
from notebooks_service.forge.authentication import API_SCOPES, from_token, sent_token
from notebooks_service.forge.ci_parameters import Parameters, text
from notebooks_service.forge.database import Database

router = APIRouter()


@router.get("/.well-known/openid-configuration")
def configuration(request: Request) -> dict[str, Any]:
    """https://docs.gitlab.com/integration/openid_connect_provider/#settings-discovery"""
    return openid.discovery(request.app.state.config, (*API_SCOPES, *openid.SCOPES))


@router.get("/oauth/discovery/keys")
def keys(request: Request) -> dict[str, Any]:
    """The public keys of ID tokens. https://docs.gitlab.com/integration/openid_connect_provider/"""
    found = openid.signing_keys(request.app.state.config).all()
    return {"keys": [key.jwk for key in reversed(found)]}


@router.get("/oauth/userinfo")
def user_info(request: Request) -> dict[str, Any]:
    """https://docs.gitlab.com/integration/openid_connect_provider/#shared-information"""
    return _user_info(request, sent_token(request))


@router.post("/oauth/userinfo")
async def user_info_by_form(request: Request, parameters: Parameters) -> dict[str, Any]:
    """https://docs.gitlab.com/integration/openid_connect_provider/#shared-information"""
    token = sent_token(request) or text(parameters, "access_token")
    return await run_in_threadpool(_user_info, request, token)


def _user_info(request: Request, token: str | None) -> dict[str, Any]:
    if token is None:
        raise errors.invalid_token("The access token is invalid")
    database: Database = request.app.state.database
    with database.read() as session:
        try:
            asker = from_token(session, token)
        except errors.ForgeError as error:
            if error.status != 401 or "error" in error.body:
                raise
            raise errors.invalid_token("The access token is invalid") from None
        if asker.kind != "oauth":
            raise errors.invalid_token("The access token is invalid")
        if not asker.has_scope("openid"):
            raise errors.insufficient_scope(["openid"])
        return openid.user_info(
            session, request.app.state.config, asker.need_user(), set(asker.scopes)
        )

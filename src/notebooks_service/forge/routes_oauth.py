"""``/oauth/…``: authorize, token, revoke, token/info. https://docs.gitlab.com/api/oauth2/"""

from __future__ import annotations

import json
import logging
from typing import Annotated, Any
from urllib.parse import parse_qsl, quote, urlencode

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse
from oauthlib.oauth2 import AccessDeniedError, FatalClientError, OAuth2Error
from sqlalchemy import select
from sqlalchemy.orm import Session

from notebooks_service.forge import errors, oauth, pages, sign_in
from notebooks_service.forge.authentication import from_token, sent_token
from notebooks_service.forge.config import ForgeConfig
from notebooks_service.forge.database import Database, SessionDep, now
from notebooks_service.forge.models import OAuthToken
from notebooks_service.forge.sign_in import Browser, BrowserDep

log = logging.getLogger(__name__)
router = APIRouter()

MOST_BODY = 1 << 16
NOT_KEPT = {"Cache-Control": "no-store", "Pragma": "no-cache"}

SCOPE_WORDS = {
    "api": "read and change everything that you may",
    "read_api": "read everything that you may",
    "read_user": "read your name and e-mail address",
    "read_repository": "read the code of your projects",
    "write_repository": "read and push the code of your projects",
    "read_registry": "read the images of your projects",
    "write_registry": "push images to your projects",
    "openid": "know who you are",
    "profile": "know your name",
    "email": "know your e-mail address",
}


async def _body(request: Request) -> bytes:
    kept = b""
    async for chunk in request.stream():
        kept += chunk
        if len(kept) > MOST_BODY:
            raise errors.ForgeError(413, {"error": "invalid_request"})
    return kept


Body = Annotated[bytes, Depends(_body)]


def _provider(request: Request, session: Session) -> oauth.Provider:
    config: ForgeConfig = request.app.state.config
    return oauth.Provider(session, config)


def _uri(request: Request) -> str:
    """The request's address for oauthlib, which only reads its query."""
    config: ForgeConfig = request.app.state.config
    query = parse_qsl(request.url.query, keep_blank_values=True)
    return f"{config.url}{request.url.path}" + (f"?{urlencode(query)}" if query else "")


@router.get("/oauth/authorize")
def ask(request: Request, session: SessionDep, browser: BrowserDep) -> Response:
    """https://docs.gitlab.com/api/oauth2/#authorization-code-flow"""
    try:
        scopes, values = _provider(request, session).validate_authorization_request(_uri(request))
    except FatalClientError as error:
        return _fatal(request, error)
    except OAuth2Error as error:
        return RedirectResponse(error.in_uri(error.redirect_uri), 302, headers=NOT_KEPT)
    silent = request.query_params.get("prompt") == "none"
    if browser.user is None or (not silent and _asks_again(request, browser)):
        if silent:
            return _cannot_ask(values, "login_required")
        target = quote(f"/oauth/authorize?{_without_prompt(request)}", safe="")
        response = RedirectResponse(f"/users/sign_in?next={target}", 302, headers=NOT_KEPT)
        if browser.user is not None:
            _sign_out(request, response, browser)
        return response
    application = values["request"].client
    if oauth.consented(session, browser.user, application, scopes):
        return _grant(request, browser)
    if silent:
        return _cannot_ask(values, "consent_required")
    return pages.page(
        "consent.html",
        person=browser.user,
        csrf=browser.csrf,
        application=application.name,
        target=values["redirect_uri"],
        scopes=[SCOPE_WORDS.get(scope, scope) for scope in scopes],
        action=f"/oauth/authorize?{request.url.query}",
    )


def _asks_again(request: Request, browser: Browser) -> bool:
    """Whether the application wants the person to sign in although they are.

    https://openid.net/specs/openid-connect-core-1_0.html#AuthRequest
    """
    query = request.query_params
    if "login" in query.get("prompt", "").split():
        return True
    age = query.get("max_age", "")
    if not age.isascii() or not age.isdigit() or len(age) > 9 or browser.signed_in_at is None:
        return False
    return (now() - browser.signed_in_at).total_seconds() > int(age)


def _without_prompt(request: Request) -> str:
    """The query for after the sign-in, which is what it asked for."""
    query = parse_qsl(request.url.query, keep_blank_values=True)
    return urlencode([(key, value) for key, value in query if key not in ("prompt", "max_age")])


def _sign_out(request: Request, response: Response, browser: Browser) -> None:
    config: ForgeConfig = request.app.state.config
    database: Database = request.app.state.database
    with database.write() as session:
        sign_in.sign_out(session, browser.cookie)
    response.delete_cookie(config.cookie_name, path="/")


def _cannot_ask(values: dict[str, Any], code: str) -> Response:
    """``prompt=none`` forbids every page: https://openid.net/specs/openid-connect-core-1_0.html#AuthError"""
    error = OAuth2Error(state=values["state"])
    error.error = code
    return RedirectResponse(error.in_uri(values["redirect_uri"]), 302, headers=NOT_KEPT)


@router.post("/oauth/authorize")
def decide(request: Request, session: SessionDep, browser: BrowserDep, body: Body) -> Response:
    """The answer of the consent page."""
    form = dict(parse_qsl(body.decode("utf-8", "replace")))
    if browser.user is None or not sign_in.form_is_ours(
        request, browser, form.get("authenticity_token", "")
    ):
        return pages.error_page(request, 422)
    if form.get("decision") != "authorize":
        try:
            _, values = _provider(request, session).validate_authorization_request(_uri(request))
        except FatalClientError as error:
            return _fatal(request, error)
        except OAuth2Error as error:
            return RedirectResponse(error.in_uri(error.redirect_uri), 303, headers=NOT_KEPT)
        denied = AccessDeniedError(
            description="The resource owner or authorization server denied the request.",
            state=values["state"],
        )
        return RedirectResponse(denied.in_uri(values["redirect_uri"]), 303, headers=NOT_KEPT)
    # A code is written in a transaction of its own; end ours, which holds the write lock.
    session.commit()
    return _grant(request, browser)


def _grant(request: Request, browser: Browser) -> Response:
    database: Database = request.app.state.database
    with database.write() as session:
        try:
            headers, _, status = _provider(request, session).create_authorization_response(
                _uri(request),
                credentials={"user": browser.user, "signed_in_at": browser.signed_in_at},
            )
        except FatalClientError as error:
            return _fatal(request, error)
    return Response(status_code=status, headers={**headers, **NOT_KEPT})


def _fatal(request: Request, error: FatalClientError) -> Response:
    """Never sent to a redirect address that is not known to be the application's."""
    log.warning("authorization refused: %s", error.error)
    sentence = (
        f"The application's request is wrong: {error.description or error.error} "
        "Its administrator has to compare its id and redirect address with what is registered here."
    )
    return pages.error_page(request, error.status_code, sentence)


@router.post("/oauth/token")
def token(request: Request, session: SessionDep, body: Body) -> Response:
    """https://docs.gitlab.com/api/oauth2/#authorization-code-flow"""
    headers, text, status = _provider(request, session).create_token_response(
        _uri(request), "POST", _form(request, body), dict(request.headers)
    )
    return _json(headers, text, status)


@router.post("/oauth/revoke")
def revoke(request: Request, session: SessionDep, body: Body) -> Response:
    """https://docs.gitlab.com/api/oauth2/#revoke-a-token"""
    headers, text, status = _provider(request, session).create_revocation_response(
        _uri(request), "POST", _form(request, body), dict(request.headers)
    )
    return _json(headers, text or "{}", status)


def _json(headers: dict[str, str], text: str, status: int) -> Response:
    values = json.loads(text)
    if "error" in values:
        values.pop("state", None)
        values["error_description"] = oauth.DESCRIPTIONS.get(
            values["error"], values.get("error_description", "")
        )
    kept = {name: value for name, value in headers.items() if name.lower() == "www-authenticate"}
    return JSONResponse(values, status, headers={**kept, **NOT_KEPT})


def _form(request: Request, body: bytes) -> str:
    """The body as a form; GitLab takes JSON as well."""
    text = body.decode("utf-8", "replace")
    if request.headers.get("content-type", "").startswith("application/json"):
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            values = {}
        if isinstance(values, dict):
            return urlencode({key: str(value) for key, value in values.items()}, errors="replace")
    return urlencode(parse_qsl(text, keep_blank_values=True))


@router.get("/oauth/token/info")
def token_info(request: Request, session: SessionDep) -> dict[str, Any]:
    """https://docs.gitlab.com/api/oauth2/#retrieve-the-token-information"""
    sent = sent_token(request)
    if sent is None:
        raise errors.invalid_token("The access token is invalid")
    asker = from_token(session, sent)
    if asker.kind != "oauth":
        raise errors.invalid_token("The access token is invalid")
    found = session.scalars(select(OAuthToken).where(OAuthToken.id == asker.token_id)).one()
    scopes = found.scopes.split()
    left = int((found.expires_at - now()).total_seconds())
    return {
        "resource_owner_id": found.user_id,
        "scope": scopes,
        "scopes": scopes,
        "expires_in": left,
        "expires_in_seconds": left,
        "application": {"uid": found.application.client_id},
        "created_at": int(found.created_at.timestamp()),
    }

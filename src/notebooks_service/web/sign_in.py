"""Who is asking: a browser's session after OAuth with the hub, or a hub token in a header.

Called by every route that is about a person. Nothing is kept here: the session is an encrypted
cookie (key derived from the service's own hub secret), so a restart keeps people signed in.
The OAuth steps are HubOAuth's; its tornado half (cookies, handlers) is done here for ASGI.
https://jupyterhub.readthedocs.io/en/stable/howto/configuration/services.html
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import re
import secrets
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from fastapi import Request
from fastapi.responses import RedirectResponse, Response
from jupyterhub.services.auth import HubOAuth, check_scopes
from tornado.web import HTTPError as HubHTTPError

from notebooks_service.errors import Forbidden, HubUnavailable, NotebooksError, NotSignedIn
from notebooks_service.gateway.hub import HubClient
from notebooks_service.origins import origin
from notebooks_service.web import csrf
from notebooks_service.web.bodies import form
from notebooks_service.web.urls import safe_next

SESSION_SECONDS = 14 * 24 * 3600
STATE_SECONDS = 600
STATES_KEPT = 8
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

_BEARER = re.compile(r"(?:token|bearer)\s+(\S+)\s*\Z", re.IGNORECASE)

log = logging.getLogger(__name__)


class SignInFailed(NotebooksError):
    code = "sign_in_failed"
    status = 403
    message = (
        "The sign-in could not be completed: it took too long, or the browser keeps no cookies."
        " Open the page again to sign in."
    )


@dataclass(frozen=True)
class Person:
    """Somebody signed in. ``hub_token`` is their own, with which they act at the hub.

    ``csrf_token`` is there for browsers only; a call with a bearer token has none and needs none.
    ``admin``: of the hub.
    """

    name: str
    hub_token: str
    csrf_token: str | None = None
    admin: bool = False

    @property
    def by_bearer(self) -> bool:
        return self.csrf_token is None

    def __repr__(self) -> str:
        return f"Person({self.name!r})"


class SignIn:
    """OAuth with the hub, the session cookie, and the check of every request."""

    def __init__(
        self,
        *,
        hub: HubClient,
        hub_url: str,
        own_url: str | None,
        api_url: str,
        api_token: str,
        base_url: str,
        prefix: str,
        client_id: str,
        service_name: str,
        former_token: str | None = None,
    ) -> None:
        self._hub = hub
        self._page_url = own_url or hub_url
        self._prefix = prefix
        self._secure = hub_url.startswith("https:")
        self._access = {f"access:services!service={service_name}"}
        # A cookie on our own path goes to no server of the hub. `__Host-` needs the path `/`, which is ours
        # alone on a host of our own; a page of another host below the hub's can set no such cookie.
        at_root = self._secure and own_url is not None
        before = "__Host-" if at_root else "__Secure-" if self._secure else ""
        self._cookie_path = "/" if at_root else prefix
        self.session_cookie = f"{before}{client_id}-session"
        self._state_cookie = f"{before}{client_id}-state-"
        tokens = [api_token, *([former_token] if former_token else [])]
        cookie_keys = [_derived(token, b"session cookie") for token in tokens]
        self._fernet = MultiFernet([Fernet(base64.urlsafe_b64encode(key)) for key in cookie_keys])
        self._csrf_keys = [_derived(token, b"csrf token") for token in tokens]
        self._oauth = HubOAuth(
            api_url=api_url,
            api_token=api_token,
            base_url=prefix,
            hub_prefix=f"{base_url}hub/",
            oauth_client_id=client_id,
            oauth_redirect_uri=f"{origin(own_url) if own_url else ''}{prefix}oauth_callback",
            **({"hub_host": origin(hub_url)} if own_url else {}),
        )
        self.logout_url = f"{self._oauth.hub_host}{base_url}hub/logout"

    async def aclose(self) -> None:
        """Close HubOAuth's own HTTP session (JupyterHub 6 has one per event loop)."""
        try:
            from jupyterhub.httpclient import JupyterHubHTTPClient
        except ImportError:
            return
        await JupyterHubHTTPClient.loop_instance().close()

    async def person(self, request: Request) -> Person:
        """Who makes this request. Asks the hub, which refreshes the forge token if it is due.

        Raises ``NotSignedIn``; ``Forbidden`` for a token that has no access to this service (that of
        a server, for one); ``csrf.CrossSite`` for a write that our own pages did not make.
        """
        if (header := request.headers.get("authorization")) is not None:
            found = _BEARER.match(header)
            if not found:
                raise NotSignedIn
            return await self._identified(found.group(1), None)
        session = self._session(request)
        if session is None:
            raise NotSignedIn
        csrf_tokens = [csrf.token_for(key, session["id"]) for key in self._csrf_keys]
        if request.method not in SAFE_METHODS:
            await self._check_own_page(request, csrf_tokens)
        return await self._identified(session["token"], csrf_tokens[0])

    def signed_in_name(self, request: Request) -> str | None:
        """The name in the session cookie, for the head of a page; not checked with the hub."""
        session = self._session(request)
        return session["name"] if session else None

    def csrf_token(self, request: Request) -> str | None:
        """The session's CSRF token, for forms in the head of a page."""
        session = self._session(request)
        return csrf.token_for(self._csrf_keys[0], session["id"]) if session else None

    def redirect_to_hub(self, request: Request, next_url: str) -> Response:
        """Send a browser to the hub to sign in; it comes back to ``next_url``.

        What must be remembered meanwhile is in an encrypted cookie, one per sign-in, so that
        several tabs can sign in at once and any process of ours can finish it.
        """
        state = secrets.token_urlsafe(16)
        verifier = secrets.token_urlsafe(32)
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest())
        query = {
            "client_id": self._oauth.oauth_client_id,
            "redirect_uri": self._oauth.oauth_redirect_uri,
            "response_type": "code",
            "state": state,
        }
        kept = {"state": state, "next": safe_next(self._prefix, next_url)}
        if self._has_pkce:
            query |= {
                "code_challenge": challenge.decode().rstrip("="),
                "code_challenge_method": "S256",
            }
            kept["verifier"] = verifier
        response = RedirectResponse(
            f"{self._oauth.oauth_authorization_url}?{urlencode(query)}", status_code=302
        )
        old = [name for name in request.cookies if name.startswith(self._state_cookie)]
        if len(old) >= STATES_KEPT:
            for name in old:
                self._delete(response, name)
        self._set(response, self._state_cookie + state[:8], kept, STATE_SECONDS)
        return response

    async def finish(self, request: Request) -> Response:
        """Answer the hub's redirect to ``oauth_callback``: check the state, take the token, go on."""
        state = request.query_params.get("state", "")
        code = request.query_params.get("code", "")
        name = self._state_cookie + state[:8]
        kept = self._opened(request.cookies.get(name), STATE_SECONDS)
        if kept is None or not state or not _same(state, kept.get("state")):
            if self._session(request) is not None:
                return RedirectResponse(self._prefix, status_code=302)
            raise SignInFailed
        if not code:
            raise SignInFailed(
                "The hub did not sign you in. Open the page again, or ask whoever runs the hub."
            )
        token = await self._token_for(code, kept.get("verifier"))
        identity = await self._hub.identify(token)
        response = RedirectResponse(safe_next(self._prefix, kept["next"]), status_code=302)
        session = {"id": secrets.token_urlsafe(16), "token": token, "name": identity.name}
        self._set(response, self.session_cookie, session, SESSION_SECONDS)
        self._delete(response, name)
        log.info("%s signed in", identity.name)
        return response

    def end_session(self, request: Request, response: Response) -> Response:
        """Take the session cookie and unfinished sign-ins from the browser."""
        for name in request.cookies:
            if name == self.session_cookie or name.startswith(self._state_cookie):
                self._delete(response, name)
        return response

    @property
    def _has_pkce(self) -> bool:
        return bool(getattr(self._oauth, "pkce_enabled", False))

    async def _token_for(self, code: str, verifier: str | None) -> str:
        known = {"code_verifier": verifier} if verifier and self._has_pkce else {}
        try:
            return str(await self._oauth.token_for_code(code, sync=False, **known))
        except HubHTTPError as error:
            # A used or expired code is the browser's business, anything else the hub's.
            if "invalid_grant" in str(error) or "Failed to check authorization" in str(error):
                raise SignInFailed from None
            raise HubUnavailable from None

    async def _identified(self, token: str, csrf_token: str | None) -> Person:
        identity = await self._hub.identify(token)
        if identity.kind != "user" or not check_scopes(self._access, set(identity.scopes)):
            raise Forbidden("This account or token has no access to the notebooks service.")
        return Person(identity.name, token, csrf_token, identity.admin)

    async def _check_own_page(self, request: Request, expected: list[str]) -> None:
        headers = request.headers
        if not csrf.is_own_origin(
            origin=headers.get("origin"),
            fetch_site=headers.get("sec-fetch-site"),
            host=headers.get("host"),
            page_url=self._page_url,
        ):
            raise csrf.CrossSite
        given = headers.get(csrf.HEADER)
        if given is None:
            given = (await form(request)).get(csrf.FIELD)
        csrf.check(expected, given)

    def _session(self, request: Request) -> dict[str, Any] | None:
        session = self._opened(request.cookies.get(self.session_cookie), SESSION_SECONDS)
        return session if session and {"id", "token", "name"} <= session.keys() else None

    def _opened(self, cookie: str | None, seconds: int) -> dict[str, Any] | None:
        if not cookie:
            return None
        try:
            value = json.loads(self._fernet.decrypt(cookie.encode(), ttl=seconds))
        except (InvalidToken, ValueError):
            return None
        return value if isinstance(value, dict) else None

    def _set(self, response: Response, name: str, value: dict[str, Any], seconds: int) -> None:
        response.set_cookie(
            name,
            self._fernet.encrypt(json.dumps(value).encode()).decode(),
            max_age=seconds,
            path=self._cookie_path,
            secure=self._secure,
            httponly=True,
            samesite="lax",
        )

    def _delete(self, response: Response, name: str) -> None:
        response.delete_cookie(
            name, path=self._cookie_path, secure=self._secure, httponly=True, samesite="lax"
        )


def _derived(secret: str, purpose: bytes) -> bytes:
    """A key of 32 bytes for one purpose (RFC 5869)."""
    info = b"notebooks-service " + purpose
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(secret.encode())


def _same(a: str, b: object) -> bool:
    return isinstance(b, str) and hmac.compare_digest(a.encode(), b.encode())

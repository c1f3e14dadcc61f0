"""Keeps a person's forge token fresh: JupyterHub's ``refresh_user_hook`` and the launch call it.

GitLab's OAuth tokens live two hours and a refresh kills the old pair, so at most one refresh per
person runs at a time, and everybody who waited finds its result saved.
https://docs.gitlab.com/api/oauth2/  https://datatracker.ietf.org/doc/html/rfc6749#section-6
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import ssl
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import httpx

from notebooks_service.errors import SignInExpired
from notebooks_service.gateway.upstream import is_loopback

log = logging.getLogger(__name__)

MARGIN = 15 * 60.0
"""Nothing is fetched while a token has more than this many seconds left."""


class HubUser(Protocol):
    """What we need of ``jupyterhub.user.User``."""

    name: str

    async def get_auth_state(self) -> dict[str, Any] | None: ...
    async def save_auth_state(self, auth_state: dict[str, Any] | None) -> None: ...


class Authenticator(Protocol):
    """What we need of ``oauthenticator.gitlab.GitLabOAuthenticator``."""

    token_url: str
    client_id: str
    client_secret: str


def expires_at(auth_state: Mapping[str, Any]) -> float | None:
    """When the access token ends, in unix seconds; None if it does not or does not say."""
    if isinstance(known := auth_state.get("expires_at"), int | float):
        return float(known)
    response = auth_state.get("token_response")
    if not isinstance(response, Mapping):
        return None
    created, lasts = response.get("created_at"), response.get("expires_in")
    if isinstance(created, int | float) and isinstance(lasts, int | float):
        return float(created) + float(lasts)
    return None


def renewed(auth_state: Mapping[str, Any], answer: Mapping[str, Any], now: float) -> dict[str, Any]:
    """The auth_state after a refresh; parts that the answer leaves out stay as they were."""
    state = dict(auth_state)
    response = {"created_at": int(now), **answer}
    response.setdefault("refresh_token", auth_state.get("refresh_token"))
    state["access_token"] = response["access_token"]
    state["refresh_token"] = response["refresh_token"]
    state["token_response"] = response
    if isinstance(scope := response.get("scope"), str):
        state["scope"] = scope.split(" ")
    state.pop("expires_at", None)
    if (until := expires_at(state)) is not None:
        state["expires_at"] = until
    return state


class TokenRefresher:
    """One per hub process. ``transport`` and ``clock`` are there for tests."""

    def __init__(
        self,
        *,
        timeout: float = 20.0,
        ca_file: Path | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._timeout = timeout
        self._ca_file = ca_file
        self._transport = transport
        self._clock = clock
        self._locks: dict[str, asyncio.Lock] = {}
        self._refused: dict[str, str] = {}

    async def hook(
        self, authenticator: Authenticator, user: HubUser, auth_state: object = None
    ) -> bool:
        """``refresh_user_hook``: True to go on, False if the person must sign in again.

        The auth_state handed in may be stale by the time the lock is ours, so it is read again.
        What was fetched is saved here; returning True keeps JupyterHub from saving it once more.
        """
        async with self._locks.setdefault(user.name, asyncio.Lock()):
            state = await user.get_auth_state()
            if not state or not state.get("access_token"):
                return False
            until = expires_at(state)
            if until is None or until - self._clock() > MARGIN:
                return True
            refresh_token = state.get("refresh_token")
            if not refresh_token:
                return until > self._clock()
            mark = hashlib.sha256(str(refresh_token).encode()).hexdigest()
            if self._refused.get(user.name) == mark:
                return False
            answer = await self._fetch(authenticator, user.name, str(refresh_token))
            if answer is None:
                return True
            if "access_token" not in answer:
                self._refused[user.name] = mark
                return False
            await user.save_auth_state(renewed(state, answer, self._clock()))
            self._refused.pop(user.name, None)
            log.info("The forge token of %s was refreshed", user.name)
            return True

    async def token(self, authenticator: Authenticator, user: HubUser) -> str:
        """The person's access token, fresh. Raises ``SignInExpired`` if there is none."""
        if not await self.hook(authenticator, user):
            raise SignInExpired()
        state = await user.get_auth_state()
        token = state.get("access_token") if state else None
        if not isinstance(token, str) or not token:
            raise SignInExpired()
        return token

    async def _fetch(
        self, authenticator: Authenticator, name: str, refresh_token: str
    ) -> dict[str, Any] | None:
        """The forge's answer; ``{}`` if it refuses this grant; None if nobody can tell now."""
        form = {
            "grant_type": "refresh_token",
            "refresh_token": refresh_token,
            "client_id": authenticator.client_id,
            "client_secret": authenticator.client_secret,
        }
        verify = ssl.create_default_context(cafile=self._ca_file) if self._ca_file else True
        try:
            async with httpx.AsyncClient(
                timeout=self._timeout,
                transport=self._transport,
                verify=verify,
                # A GitLab elsewhere may be behind the machine's proxy, as for every other question
                # to it; our own machine is not.
                trust_env=not is_loopback(authenticator.token_url),
            ) as client:
                response = await client.post(
                    authenticator.token_url, data=form, headers={"Accept": "application/json"}
                )
        except httpx.HTTPError as error:
            log.warning(
                "The forge could not be reached to refresh %s: %s", name, type(error).__name__
            )
            return None
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            answer = {}
        if response.status_code == 200 and isinstance(answer.get("access_token"), str):
            return answer
        code = str(answer.get("error", ""))[:40]
        if response.status_code in (400, 401) and code == "invalid_grant":
            log.info("The forge no longer refreshes %s; they have to sign in again", name)
            return {}
        log.warning(
            "The forge answered %d %r to the refresh of %s", response.status_code, code, name
        )
        return None

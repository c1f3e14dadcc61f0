"""Keeps a person's forge token fresh: JupyterHub's ``refresh_user_hook`` and the launch call it.

GitLab's OAuth tokens live two hours and a refresh kills the old pair, so at most one refresh per
person runs at a time, in a task that no caller's end takes along: the forge may have made the new
pair already. Everybody who waited finds its result saved.
https://docs.gitlab.com/api/oauth2/  https://datatracker.ietf.org/doc/html/rfc6749#section-6
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
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

PATIENCE = 3.0
"""Seconds that a request waits for a refresh while its token is good for another ``ENOUGH``."""

ENOUGH = 60.0

BACK_OFF = 5.0
"""Seconds for which a forge that did not answer is not asked again, while the token is good."""


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
    """The auth_state after a refresh; parts that the answer leaves out stay as they were.

    ``now`` is our clock's: the forge's may differ from it, and parts of a wrong type are none.
    """
    state = dict(auth_state)
    response = {**answer}
    if not isinstance(response.get("created_at"), int | float):
        response["created_at"] = int(now)
    if not isinstance(response.get("refresh_token"), str):
        response["refresh_token"] = auth_state.get("refresh_token")
    state["access_token"] = response["access_token"]
    state["refresh_token"] = response["refresh_token"]
    state["token_response"] = response
    if isinstance(scope := response.get("scope"), str):
        state["scope"] = scope.split(" ")
    state.pop("expires_at", None)
    if (lasts := _seconds(response.get("expires_in"))) is not None:
        response["expires_in"] = lasts
        state["expires_at"] = now + lasts
    return state


def _seconds(value: object) -> float | None:
    """A duration as an answer gives it, also written as text."""
    if isinstance(value, str) and value.isdigit():
        value = int(value)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


class TokenRefresher:
    """One per hub process. ``transport`` and the clocks are there for tests.

    How long a token has left is measured by both clocks: the wall's, which a restart of the hub
    leaves alone, and ``steady``, which nobody sets back.
    """

    def __init__(
        self,
        *,
        timeout: float = 20.0,
        ca_file: Path | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
        patience: float = PATIENCE,
    ) -> None:
        self._timeout = timeout
        self._ca_file = ca_file
        self._transport = transport
        self._clock = clock
        self._steady = steady
        self._patience = patience
        self._renewals: dict[str, asyncio.Task[bool]] = {}
        self._ends: dict[str, tuple[str, float]] = {}
        self._away_until: dict[str, float] = {}
        self._refused: dict[str, str] = {}

    async def hook(
        self, authenticator: Authenticator, user: HubUser, auth_state: object = None
    ) -> bool:
        """``refresh_user_hook``: True to go on, False if the person must sign in again.

        The auth_state handed in may be stale, so it is read again. What was fetched is saved here;
        returning True keeps JupyterHub from saving it once more. A forge that is slow to answer
        holds up nobody whose token is still good.
        """
        return await self._fresh(authenticator, user, None)

    async def token(
        self, authenticator: Authenticator, user: HubUser, refused: str | None = None
    ) -> str:
        """The person's access token, fresh. Raises ``SignInExpired`` if there is none.

        ``refused``: a token that the forge has just refused; if the hub still has that one, it is
        renewed whatever the clocks say.
        """
        if not await self._fresh(authenticator, user, refused):
            raise SignInExpired()
        state = await user.get_auth_state()
        token = state.get("access_token") if state else None
        if not isinstance(token, str) or not token or token == refused:
            raise SignInExpired()
        return token

    async def _fresh(
        self, authenticator: Authenticator, user: HubUser, refused: str | None
    ) -> bool:
        state = await user.get_auth_state()
        if not state or not state.get("access_token"):
            return False
        left = self._left(user.name, state, refused)
        if left > MARGIN:
            return True
        if not state.get("refresh_token"):
            return left > 0
        renewal = self._renewals.get(user.name)
        if renewal is None:
            renewal = asyncio.create_task(
                self._renew(authenticator, user, refused), name=f"refresh of {user.name}"
            )
            self._renewals[user.name] = renewal
            renewal.add_done_callback(lambda done: self._renewals.pop(user.name, None))
        await asyncio.wait([renewal], timeout=self._patience if left > ENOUGH else None)
        return renewal.result() if renewal.done() else True

    async def _renew(
        self, authenticator: Authenticator, user: HubUser, refused: str | None
    ) -> bool:
        state = await user.get_auth_state()
        if not state or not state.get("access_token"):
            return False
        left = self._left(user.name, state, refused)
        if left > MARGIN:
            return True
        if left > 0 and self._steady() < self._away_until.get(user.name, 0.0):
            return True
        refresh_token = str(state.get("refresh_token"))
        mark = _mark(refresh_token)
        if self._refused.get(user.name) == mark:
            return False
        answer = await self._fetch(authenticator, user.name, refresh_token)
        if answer is None:
            self._away_until[user.name] = self._steady() + BACK_OFF
            return True
        if "access_token" not in answer:
            self._refused[user.name] = mark
            return False
        await user.save_auth_state(renewed(state, answer, self._clock()))
        self._refused.pop(user.name, None)
        self._away_until.pop(user.name, None)
        log.info("The forge token of %s was refreshed", user.name)
        return True

    def _left(self, name: str, state: Mapping[str, Any], refused: str | None) -> float:
        """Seconds that the access token has left, by whichever clock says less."""
        if refused is not None and state["access_token"] == refused:
            return 0.0
        until = expires_at(state)
        if until is None:
            return math.inf
        left = until - self._clock()
        mark = _mark(str(state["access_token"]))
        known, end = self._ends.get(name, ("", 0.0))
        if known != mark:
            response = state.get("token_response")
            whole = _seconds(response.get("expires_in")) if isinstance(response, Mapping) else None
            end = self._steady() + (left if whole is None else min(left, whole))
            self._ends[name] = (mark, end)
        return min(left, end - self._steady())

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


def _mark(token: str) -> str:
    """What stands for a token where the token itself must not be."""
    return hashlib.sha256(token.encode()).hexdigest()

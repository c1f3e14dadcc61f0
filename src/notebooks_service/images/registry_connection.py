"""Requests to one container registry with the credentials that it asks for; used by ``images/registry.py``.

A password goes to the configured registry (Basic) or to a configured realm (Bearer), and nowhere
else: what a response names as realm is only compared. Blocking.
https://distribution.github.io/distribution/spec/auth/token/
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit
from urllib.request import parse_http_list, parse_keqv_list

import httpx

from notebooks_service.errors import Forbidden, RegistryUnavailable

LARGEST_ANSWER = 256 * 2**10
TRIES = 3
LONGEST_ANSWER = 120.0
"""Seconds until an answer, none of which is large, is there as a whole."""
LONGEST_PAUSE = 10.0
"""Seconds between two tries; a registry that asks for a longer pause is not waited for."""


@dataclass(frozen=True)
class Login:
    """What a registry or its token service is told; never shown."""

    user: str
    password: str = field(repr=False)


class RegistryConnection:
    """One registry, asked as one login (or as nobody)."""

    def __init__(
        self,
        url: str,
        realms: Iterable[str],
        login: Login | None,
        http: httpx.Client | None,
        sign: Callable[[str], tuple[str, float]] | None,
        longest: float,
        tries: int,
    ) -> None:
        """As ``RegistryClient`` takes them."""
        self.url = url.rstrip("/")
        self._realms = {_plain(realm) for realm in realms}
        self._login = login
        self._http = http or httpx.Client(timeout=30, follow_redirects=False)
        self._sign = sign
        self._longest = longest
        self._tries = tries
        self._challenge: tuple[str, str] | None = None
        self._basic = False
        self._tokens: dict[str, tuple[str, float]] = {}

    def close(self) -> None:
        self._http.close()

    def ask(self, method: str, url: str, scope: str, **options: Any) -> httpx.Response:
        """A request with the credentials that the registry asks for, if they may be given."""
        answer = self.send(method, url, auth=self._authorization(scope), **options)
        if self._sign is not None and answer.status_code in (401, 403):
            self._tokens.pop(scope, None)
            raise RegistryUnavailable(
                "The registry does not believe the tokens that are signed for it.", reason="token"
            )
        if answer.status_code != 401 or not self._learn(answer):
            return answer
        self._tokens.pop(scope, None)
        return self.send(method, url, auth=self._authorization(scope), **options)

    def _learn(self, answer: httpx.Response) -> bool:
        """Reads what a 401 asks for; whether that may be given."""
        for value in answer.headers.get_list("www-authenticate"):
            kind, _, rest = value.strip().partition(" ")
            if kind.lower() == "bearer":
                try:
                    said = parse_keqv_list(parse_http_list(rest))
                except ValueError:
                    continue
                realm = said.get("realm", "")
                if _plain(realm) not in self._realms and not self._may_ask_itself(realm):
                    host = urlsplit(realm).hostname or "nowhere"
                    raise RegistryUnavailable(
                        f"The registry wants its logins checked at {host[:100]}, which is not the "
                        "token service that it was set up with, so no password was sent there.",
                        reason="realm",
                    )
                self._challenge = (realm, said.get("service", ""))
                return True
            if kind.lower() == "basic" and self._login is not None:
                asked_before, self._basic = self._basic, True
                return not asked_before
        return False

    def _may_ask_itself(self, realm: str) -> bool:
        """Who sends no password may ask the registry itself for a token, wherever it says."""
        return self._login is None and origin(realm) == origin(self.url)

    def _authorization(self, scope: str) -> httpx.Auth | str | None:
        if self._challenge is not None or self._sign is not None:
            return self._token(scope)
        if self._basic and self._login is not None:
            return httpx.BasicAuth(self._login.user, self._login.password)
        return None

    def _token(self, scope: str) -> str:
        known, until = self._tokens.get(scope, ("", 0.0))
        if known and time.monotonic() < until:
            return known
        if self._sign is not None:
            known, until = self._sign(scope)
            self._tokens[scope] = (known, time.monotonic() + until * 0.8)
            return known
        assert self._challenge is not None
        realm, service = self._challenge
        auth = httpx.BasicAuth(self._login.user, self._login.password) if self._login else None
        answer = self.send("GET", realm, params={"service": service, "scope": scope}, auth=auth)
        if answer.status_code in (401, 403):
            if self._login is None:
                return ""
            raise Forbidden(
                "The registry's login was refused: user name, password or token are wrong, too old, "
                "or not for registries."
            )
        self.expect(answer, 200)
        data = read_json(answer)
        token = data.get("token") or data.get("access_token")
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise RegistryUnavailable(reason="token")
        lives = data.get("expires_in")
        seconds = lives if isinstance(lives, int) and 0 < lives < 86_400 else 60
        self._tokens[scope] = (token, time.monotonic() + seconds * 0.8)
        return token

    def send(
        self,
        method: str,
        url: str,
        *,
        auth: httpx.Auth | str | None = None,
        headers: Mapping[str, str] | None = None,
        limit: int = LARGEST_ANSWER,
        **options: Any,
    ) -> httpx.Response:
        """One request, tried again while the registry is too busy; never redirected."""
        sent = dict(headers or {})
        if isinstance(auth, str):
            if auth:
                sent["Authorization"] = f"Bearer {auth}"
            auth = None
        for attempt in range(self._tries):
            last = attempt == self._tries - 1
            try:
                with (
                    _network(),
                    self._http.stream(
                        method, url, headers=sent, auth=auth, follow_redirects=False, **options
                    ) as answer,
                ):
                    if answer.status_code not in (429, 502, 503, 504) or last:
                        return _read(answer, limit, time.monotonic() + self._longest)
                    pause = _pause(answer, attempt)
            except RegistryUnavailable as error:
                if last or error.detail.get("reason") != "network":
                    raise
                pause = 0.2 * 2**attempt
            if pause > LONGEST_PAUSE:
                raise RegistryUnavailable(reason="busy")
            time.sleep(pause)
        raise AssertionError("the last try returns or raises")

    @staticmethod
    def expect(answer: httpx.Response, *statuses: int) -> None:
        if answer.status_code not in statuses:
            raise RegistryUnavailable(
                f"The registry answered with status {answer.status_code}. Nothing is lost; try again.",
                reason=f"HTTP {answer.status_code}",
            )


def _plain(url: str) -> str:
    """A realm as it is compared: scheme, host, port and path."""
    scheme, host, port = origin(url)
    return f"{scheme}://{host}:{port}{urlsplit(url).path.rstrip('/')}"


def origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.username is not None:
        return parts.scheme, None, None
    return parts.scheme, parts.hostname, port or {"http": 80, "https": 443}.get(parts.scheme)


def _read(answer: httpx.Response, limit: int, until: float) -> httpx.Response:
    """The answer with its body, which may have ``limit`` bytes and come ``until`` then."""
    body = bytearray()
    for chunk in answer.iter_bytes():
        body += chunk
        if len(body) > limit:
            raise RegistryUnavailable("The registry's answer is too large.", reason="size")
        if time.monotonic() > until:
            raise RegistryUnavailable(reason="slow")
    headers = [
        (name, value)
        for name, value in answer.headers.multi_items()
        if name.lower() not in ("content-encoding", "content-length", "transfer-encoding")
    ]
    return httpx.Response(
        answer.status_code, headers=headers, content=bytes(body), request=answer.request
    )


def read_json(answer: httpx.Response) -> dict[str, Any]:
    try:
        data = json.loads(answer.content)
    except ValueError:
        data = None
    if not isinstance(data, dict):
        raise RegistryUnavailable(reason="an answer that is no object")
    return data


def _pause(answer: httpx.Response, attempt: int) -> float:
    said = answer.headers.get("retry-after", "")
    return float(said) if re.fullmatch(r"\d{1,6}", said) else 0.2 * 2**attempt


@contextmanager
def _network() -> Any:
    try:
        yield
    except httpx.HTTPError as error:
        raise RegistryUnavailable(reason="network", error=type(error).__name__) from None
    except httpx.InvalidURL:
        raise RegistryUnavailable(reason="address") from None

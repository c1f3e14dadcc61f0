"""One person's requests to the forge through python-gitlab, with our errors; used by ``gitlab/forge.py``.

The token goes to the configured origin and nowhere else: redirects are followed by hand and only
within it, and of a ``Link`` only the query is used.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urljoin, urlsplit

import gitlab
import requests
from gitlab._backends.requests_backend import RequestsBackend, RequestsResponse
from gitlab.exceptions import GitlabError

from notebooks_service.errors import (
    Forbidden,
    ForgeUnavailable,
    InvalidRequest,
    NotebooksError,
    NotFound,
    SignInExpired,
)
from notebooks_service.gitlab.answers import Page
from notebooks_service.gitlab.receive_pack import CONTENT_TYPE

PER_PAGE = 100
MOST_PAGES = 100
MOST_REDIRECTS = 5
MOST_TRACE_BYTES = 16 * 1024 * 1024


def quoted(text: str) -> str:
    """``text`` as one segment of a path: ``group/project`` becomes ``group%2Fproject``."""
    return quote(text, safe="")


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    default = {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, parts.hostname, parts.port or default


class AccountRefused(Forbidden):
    """It is the person whom the forge lets do nothing, whatever they ask for."""

    message = (
        "The forge does not let your account do anything at the moment: it is blocked, deactivated or"
        " waits for something. Sign in at the forge itself, or ask its administrator."
    )


def refuses_account(body: bytes) -> bool:
    """Whether a 403 is about the person and not about what they ask for.

    https://docs.gitlab.com/administration/moderate_users/
    """
    return re.search(rb"(?i)your account (has been|is)\b|terms of service", body[:2000]) is not None


def error_for(response: requests.Response) -> NotebooksError:
    """The error that stands for a status that is no success. Nothing of the body gets into it."""
    status = response.status_code
    if status == 401:
        return SignInExpired()
    if status == 403 and b"insufficient_scope" in response.content[:2000]:
        return SignInExpired(
            "Your sign-in at the forge does not reach this. Sign out of the hub and in again; if that "
            "does not help, the forge's application lacks a scope that `forge_scopes` names."
        )
    if status == 403 and refuses_account(response.content):
        return AccountRefused()
    if status in (400, 403, 404, 410, 414):
        return NotFound()
    wait = _retry_after(response)
    if status == 429:
        return ForgeUnavailable(
            "The forge asks for fewer requests. Nothing is lost; try again in a minute.",
            reason="HTTP 429",
            retry_after=60 if wait is None else wait,
        )
    if wait is None:
        return ForgeUnavailable(reason=f"HTTP {status}")
    return ForgeUnavailable(reason=f"HTTP {status}", retry_after=wait)


def _retry_after(response: requests.Response) -> int | None:
    """The pause that an answer asks for, in seconds or until a date.

    https://www.rfc-editor.org/rfc/rfc9110#name-retry-after
    """
    said = response.headers.get("Retry-After", "")
    if re.fullmatch(r"[0-9]{1,6}", said):
        return int(said)
    try:
        until = parsedate_to_datetime(said)
        return max(0, min(math.ceil((until - datetime.now(UTC)).total_seconds()), 10**6))
    except (TypeError, ValueError):
        return None


@contextmanager
def _network() -> Iterator[None]:
    """Whatever goes wrong on the way is one thing for a person: the forge does not answer."""
    try:
        yield
    except requests.Timeout:
        raise ForgeUnavailable(reason="no answer in time") from None
    except (requests.RequestException, OSError) as error:
        raise ForgeUnavailable(reason=f"network: {type(error).__name__}") from None
    except GitlabError as error:
        raise ForgeUnavailable(reason=type(error).__name__) from None


class SameOriginBackend(RequestsBackend):
    """python-gitlab's own backend, but it never leaves the forge's origin, and raises our errors."""

    def http_request(self, method: str, url: str, **kwargs: Any) -> RequestsResponse:  # type: ignore[override]
        with _network():
            for _ in range(MOST_REDIRECTS):
                answer = self.client.request(method, url, allow_redirects=False, **kwargs)
                if not answer.is_redirect:
                    break
                target = urljoin(answer.url, answer.headers["location"])
                answer.close()
                if _origin(target) != _origin(url):
                    raise ForgeUnavailable(
                        "The forge sends us to another address, which we do not follow; "
                        "let `forge_url` name the final one.",
                        reason=f"redirect to {urlsplit(target).hostname}",
                    )
                url = target
                kwargs["params"] = None
            else:
                raise ForgeUnavailable(reason="too many redirects")
            if answer.status_code >= 300:
                raise error_for(answer)
            return RequestsResponse(answer)


class Transport:
    """The requests of one token. Blocking; a ``requests.Session`` may be shared by threads like this."""

    def __init__(
        self,
        url: str,
        token: str,
        *,
        timeout: float,
        ca_file: Path | None,
        session: requests.Session | None,
    ) -> None:
        session = session or requests.Session()
        # A session cookie of the forge would be a second identity beside the token.
        session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))
        self._connect = partial(
            gitlab.Gitlab,
            url,
            timeout=timeout,
            ssl_verify=str(ca_file) if ca_file else True,
            keep_base_url=True,
            user_agent="notebooks-service",
            backend=SameOriginBackend,
            session=session,
        )
        self.use(token)

    def use(self, token: str) -> None:
        """Ask with this token from now on."""
        self._gitlab = self._connect(oauth_token=token)

    def close(self) -> None:
        self._gitlab.session.close()

    def _send(
        self, verb: str, path: str, params: Mapping[str, Any], **options: Any
    ) -> requests.Response:
        with _network():
            return self._gitlab.http_request(
                verb, path, query_data=dict(params), obey_rate_limit=False, **options
            )

    def get(self, path: str, params: Mapping[str, Any] | None = None) -> Any:
        """The JSON at ``path`` (below ``/api/v4``, already quoted)."""
        return self._json(self._send("get", path, params or {}))

    def head(self, path: str, params: Mapping[str, Any] | None = None) -> Mapping[str, str] | None:
        """The headers that a HEAD request of ``path`` gets; None if there is nothing."""
        try:
            return self._send("head", path, params or {}).headers
        except NotFound:
            return None

    def page(
        self, path: str, page: int, per_page: int, params: Mapping[str, Any] | None = None
    ) -> Page[dict[str, Any]]:
        """One page of a list. https://docs.gitlab.com/api/rest/#pagination"""
        per_page = min(max(per_page, 1), PER_PAGE)
        try:
            answer = self._send("get", path, {**(params or {}), "page": page, "per_page": per_page})
        except ForgeUnavailable as error:
            if error.detail.get("reason") != "HTTP 405":
                raise
            # https://docs.gitlab.com/administration/instance_limits/#max-offset-allowed-by-the-rest-api-for-offset-based-pagination
            raise InvalidRequest(
                "The forge lists no pages that far back; search for what you want instead."
            ) from None
        total = answer.headers.get("X-Total", "")
        following = answer.headers.get("X-Next-Page", "") or self._next(answer).get("page", "")
        return Page(
            items=tuple(self._list(answer)),
            page=page,
            next_page=int(following) if following.isdigit() else None,
            total=int(total) if total.isdigit() else None,
        )

    def every(
        self, path: str, params: Mapping[str, Any] | None = None, *, pages: int = MOST_PAGES
    ) -> list[dict[str, Any]]:
        """A whole list, page by page (by number or by keyset); at most ``pages`` of 100 rows."""
        rows: list[dict[str, Any]] = []
        query: dict[str, Any] = {**(params or {}), "per_page": PER_PAGE}
        for _ in range(pages):
            answer = self._send("get", path, query)
            rows += self._list(answer)
            following = answer.headers.get("X-Next-Page", "")
            if following.isdigit():
                query = {**query, "page": int(following)}
            elif link := self._next(answer):
                query = {**query, **link}
            else:
                break
        return rows

    def tail(self, path: str, offset: int) -> bytes:
        """The bytes of a growing text from ``offset`` on, at most 16 MiB of them."""
        headers = {"Accept-Encoding": "identity"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
        try:
            answer = self._send("get", path, {}, streamed=True, extra_headers=headers)
        except ForgeUnavailable as error:
            if error.detail.get("reason") == "HTTP 416":
                return b""
            raise
        skip = 0 if answer.status_code == 206 else offset
        found = bytearray()
        with answer, _network():
            for chunk in answer.iter_content(65536):
                found += chunk[skip:]
                skip = max(0, skip - len(chunk))
                if len(found) >= MOST_TRACE_BYTES:
                    break
        return bytes(found[:MOST_TRACE_BYTES])

    def beginning(self, path: str, params: Mapping[str, Any], limit: int) -> bytes:
        """The first ``limit`` bytes of a text; the rest is not read."""
        answer = self._send("get", path, params, streamed=True)
        found = bytearray()
        with answer, _network():
            for chunk in answer.iter_content(65536):
                found += chunk
                if len(found) >= limit:
                    break
        return bytes(found[:limit])

    def push(self, path: str, body: bytes) -> bytes:
        """POST ``body`` to the repository at ``path`` (quoted, below the forge's root); the answer.

        https://docs.gitlab.com/user/profile/personal_access_tokens/#clone-repository-using-personal-access-token
        """
        path = f"{path}.git/git-receive-pack"
        return self._beside_api(
            "post", path, data=body, headers={"Content-Type": CONTENT_TYPE}
        ).content

    def registry_token(self, service: str, scope: str, login: tuple[str, str] | None = None) -> Any:
        """What the forge's token service for registries answers to this person, or to another ``login``.

        https://docs.gitlab.com/administration/packages/container_registry/
        """
        params = {"service": service, "scope": scope}
        return self._json(self._beside_api("get", "jwt/auth", login, params=params))

    def _beside_api(
        self, verb: str, path: str, login: tuple[str, str] | None = None, **options: Any
    ) -> requests.Response:
        """A request to what is not below ``/api/v4``, where the token is the password of ``oauth2``."""
        with _network():
            answer = self._gitlab.session.request(
                verb,
                f"{self._gitlab.url}/{path}",
                auth=login or ("oauth2", self._gitlab.oauth_token or ""),
                timeout=self._gitlab.timeout,
                verify=self._gitlab.ssl_verify,
                allow_redirects=False,
                **options,
            )
        if answer.status_code >= 300:
            raise error_for(answer)
        return answer

    @staticmethod
    def _json(answer: requests.Response) -> Any:
        try:
            return answer.json()
        except ValueError:
            raise ForgeUnavailable(reason="an answer that is no JSON") from None

    @classmethod
    def _list(cls, answer: requests.Response) -> list[dict[str, Any]]:
        rows = cls._json(answer)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise ForgeUnavailable(reason="an answer that is no list")
        return rows

    @staticmethod
    def _next(answer: requests.Response) -> dict[str, str]:
        """The query of ``Link: rel="next"``; its host is not looked at (proxies get it wrong)."""
        url = answer.links.get("next", {}).get("url", "")
        return dict(parse_qsl(urlsplit(url).query))

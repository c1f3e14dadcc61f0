"""The forge's end of a git request: sends it with the person's token, reads what the answer means.

Called by ``gateway/app.py``. Bodies stream both ways as they are, compressed or not. Of headers
only those named here pass, in either direction: no cookie, no realm, nothing hop-by-hop.
"""

from __future__ import annotations

import base64
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from ipaddress import ip_address
from typing import NoReturn
from urllib.parse import urlsplit

import httpx
from starlette.datastructures import Headers

from notebooks_service.errors import (
    ForgeUnavailable,
    NotebooksError,
    NotFound,
    SignInExpired,
)
from notebooks_service.gateway.access import Admission
from notebooks_service.gateway.request import GitRequest, project_path
from notebooks_service.gitlab.transport import AccountRefused, refuses_account
from notebooks_service.settings import Settings

REQUEST_HEADERS = (
    "accept",
    "accept-encoding",
    "accept-language",
    "content-encoding",
    "content-length",
    "content-type",
    "git-protocol",
    "user-agent",
)
ANSWER_HEADERS = (
    "cache-control",
    "content-encoding",
    "content-length",
    "content-type",
    "expires",
    "pragma",
    "retry-after",
)
SENTENCE_BYTES = 16_384
BUSY = "The forge is asked too much at the moment. Wait a minute and try again."


class ForgeSays(NotebooksError):
    """The forge's own refusal, passed on with its status and its words."""

    code = "forge_refused"

    def __init__(self, status: int, message: str, retry_after: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


@dataclass
class Answer:
    """A good answer of the forge, its body not read yet. Close it."""

    status: int
    headers: list[tuple[str, str]]
    _response: httpx.Response

    async def body(self) -> AsyncIterator[bytes]:
        """The body as it came over the wire, in small pieces."""
        async for piece in self._response.aiter_raw():
            yield piece

    async def aclose(self) -> None:
        await self._response.aclose()


class Upstream:
    """A pool of connections to the forge, without any limit on how long a pack may take."""

    def __init__(
        self, settings: Settings, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self._url = settings.forge_url
        ca_file = settings.forge_ca_file
        self._client = httpx.AsyncClient(
            timeout=httpx.Timeout(None, connect=10.0),
            # Servers close idle connections after 5 seconds or more: ours go first, so that no
            # request is sent into one that is just being closed.
            limits=httpx.Limits(max_connections=None, keepalive_expiry=2.0),
            verify=ssl.create_default_context(cafile=ca_file) if ca_file else True,
            transport=transport,
            trust_env=not is_loopback(self._url),
        )
        self._api_timeout = settings.forge_timeout

    async def aclose(self) -> None:
        await self._client.aclose()

    async def send(
        self,
        request: GitRequest,
        admission: Admission,
        headers: Headers,
        body: AsyncIterator[bytes] | None,
    ) -> Answer:
        """The forge's answer. Raises ``SignInExpired``, ``ForgeUnavailable``, ``ForgeSays``."""
        target = request.target(await self.present_path(admission))
        response = await self._exchange(request.method, target, admission, headers, body)
        kind = response.headers.get("content-type", "")
        if response.status_code == 200 and kind.startswith("application/x-git-"):
            passed = [
                (name, value) for name, value in response.headers.items() if name in ANSWER_HEADERS
            ]
            return Answer(200, passed, response)
        try:
            await self._refuse(response, admission)
        finally:
            await response.aclose()

    async def _exchange(
        self,
        method: str,
        target: str,
        admission: Admission,
        headers: Headers,
        body: AsyncIterator[bytes] | None,
    ) -> httpx.Response:
        passed = {name: headers[name] for name in REQUEST_HEADERS if name in headers}
        if body is None:
            passed.pop("content-length", None)
        login = base64.b64encode(f"oauth2:{admission.forge_token}".encode()).decode()
        passed["authorization"] = f"Basic {login}"
        request = httpx.Request(
            method,
            self._url + target,
            headers=passed,
            content=body,
            extensions={"timeout": self._client.timeout.as_dict()},
        )
        try:
            return await self._client.send(request, stream=True)
        except httpx.HTTPError as error:
            raise ForgeUnavailable from error

    async def present_path(self, admission: Admission) -> str:
        """What the forge calls the launched project now, as this person may see it.

        A server belongs to a project by its id. Projects are renamed, and others are made under
        their old paths, so the path of the launch says nothing about who is there today; nothing is
        remembered between two requests for the same reason.

        Raises ``NotFound`` if the person may not see the project any more, ``SignInExpired``,
        ``ForgeUnavailable``, ``ForgeSays``. https://docs.gitlab.com/api/projects/
        """
        try:
            answer = await self._client.get(
                f"{self._url}/api/v4/projects/{admission.project_id}",
                headers={"Authorization": f"Bearer {admission.forge_token}"},
                timeout=self._api_timeout,
            )
            if answer.status_code == 200:
                return project_path(answer.json()["path_with_namespace"])
        except (httpx.HTTPError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ForgeUnavailable from error
        if answer.status_code == 401:
            raise SignInExpired
        if answer.status_code == 429:
            raise ForgeSays(429, BUSY, answer.headers.get("retry-after"))
        if answer.status_code == 403 and refuses_account(answer.content):
            raise AccountRefused
        if answer.status_code in (403, 404):
            raise NotFound
        raise ForgeUnavailable

    async def _refuse(self, response: httpx.Response, admission: Admission) -> NoReturn:
        """Raise what an answer that is not git's means."""
        status = response.status_code
        if status == 401:
            raise SignInExpired
        if status < 400:
            raise ForgeUnavailable("The forge answered with something that is not git.")
        words = await _words(response)
        if words is None and status >= 500:
            raise ForgeUnavailable
        if words is None and status == 429:
            raise ForgeSays(429, BUSY, response.headers.get("retry-after"))
        if words is None and status == 404:
            raise NotFound
        words = words or f"The forge refused this with status {status} and without a reason."
        raise ForgeSays(
            status,
            words.replace(admission.forge_token, "[removed]"),
            response.headers.get("retry-after"),
        )


async def _words(response: httpx.Response) -> str | None:
    """The text for people in a refusal, at most 16 KB of it; pages and programs' data are none."""
    if not response.headers.get("content-type", "").startswith("text/plain"):
        return None
    if response.headers.get("content-encoding", "identity") not in ("identity", "gzip", "deflate"):
        return None
    text = b""
    try:
        async for piece in response.aiter_bytes():
            text += piece
            if len(text) >= SENTENCE_BYTES:
                break
    except httpx.HTTPError:
        return None
    return text[:SENTENCE_BYTES].decode("utf-8", "replace").strip() or None


def is_loopback(url: str) -> bool:
    """Whether an address is this machine's own, which no proxy for the internet can reach."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False

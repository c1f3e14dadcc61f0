"""The doctor's requests: bounded in time and size, to one origin, and every failure is an answer too.

Used by the gatherers of facts. A credential goes to the origin that the requester was made for and
nowhere else: redirects are followed by hand and only within it, and never with a body.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from typing import Any, Literal
from urllib.parse import SplitResult, urljoin, urlsplit

import httpx

from notebooks_service.platform.loopback import AsyncLoopbackNames, is_loopback_name

MOST_BYTES = 1 << 20
MOST_REDIRECTS = 3

Trouble = Literal["", "address", "refused", "time", "tls", "large", "broken", "proxy"]


@dataclass(frozen=True)
class Answer:
    """One answer, or in ``trouble`` why there is none.

    ``elsewhere``: the origin of a redirect that was not followed. ``landed``: the path that
    answered. ``tls_code``: OpenSSL's code of a refused certificate. ``expires``: when the
    certificate ends. ``clock``: our time when the answer came. All times in seconds since 1970.
    """

    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    trouble: Trouble = ""
    elsewhere: str = ""
    landed: str = ""
    tls_code: int = 0
    expires: float | None = None
    clock: float = 0

    def json(self) -> Any:
        """The JSON of the body; None if it is none."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None

    def mapping(self) -> dict[str, Any]:
        found = self.json()
        return found if isinstance(found, dict) else {}

    def rows(self) -> list[dict[str, Any]] | None:
        """The JSON list of objects; None if it is none."""
        found = self.json()
        if not isinstance(found, list):
            return None
        return [row for row in found if isinstance(row, dict)]


NO_ANSWER = Answer()
"""What was not asked."""


def origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port, in a form that can be compared; ("", "", 0) for what is no address."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
    except ValueError:
        return "", "", 0
    return parts.scheme.lower(), (parts.hostname or "").lower(), port


def shown(url: str) -> str:
    """An address for people: without user name, password, query and fragment."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        host = f"[{host}]" if ":" in host else host
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "an address that cannot be read"
    return f"{parts.scheme}://{host}{port}{parts.path}"


def is_address(url: str) -> bool:
    """Whether ``url`` is an http or https address with a host, and a port if it names one."""
    scheme, host, port = origin(url)
    return (
        scheme in ("http", "https") and bool(host) and port > 0 and url.isascii() and " " not in url
    )


def location(answer: Answer, base: str) -> SplitResult:
    """Where a redirect leads from ``base``; empty if it leads nowhere that can be read."""
    try:
        found = urlsplit(urljoin(base, answer.headers.get("location", "")))
        _ = found.port
    except ValueError:
        return urlsplit("")
    return found


def is_loopback(host: str) -> bool:
    return host == "localhost" or host.startswith("127.") or host == "::1"


def trusting(ca_file: Path | None) -> ssl.SSLContext | None:
    """Which certificates count: those of ``ca_file``, or the list that comes with httpx.

    None if the file cannot be read or holds no certificate.
    """
    if ca_file is None:
        return httpx.create_ssl_context(trust_env=False)
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError):
        return None


class Requester:
    """Requests to one origin. ``timeout``: seconds for one whole answer.

    ``transport`` replaces the network; ``direct``: never through a proxy of the environment.
    """

    def __init__(
        self,
        url: str,
        *,
        verify: ssl.SSLContext | None = None,
        timeout: float = 10,
        token: str = "",
        direct: bool = False,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self._origin = origin(url)
        self._timeout = timeout
        self._token = token
        self._client = httpx.AsyncClient(
            verify=verify if verify is not None else True,
            timeout=httpx.Timeout(timeout),
            follow_redirects=False,
            trust_env=not direct and not is_loopback(self._origin[1]),
            transport=transport or (AsyncLoopbackNames() if is_loopback_name(url) else None),
        )
        # A cookie of the forge would be a second identity beside the token.
        self._client.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=()))

    async def aclose(self) -> None:
        await self._client.aclose()

    async def __aenter__(self) -> Requester:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.aclose()

    async def get(
        self,
        path: str,
        params: Mapping[str, str] | None = None,
        *,
        token: bool = False,
        basic: bool = False,
        headers: Mapping[str, str] | None = None,
        follow: bool = True,
    ) -> Answer:
        """GET ``path`` (below the address, already quoted).

        ``token``: with the token that we were made with; ``basic``: as a password, as git sends it.
        """
        sent = {"Accept": "application/json", **(headers or {})}
        auth = None
        if token and self._token:
            sent["Authorization"] = f"Bearer {self._token}"
        elif basic and self._token:
            auth = httpx.BasicAuth("oauth2", self._token)
        url = f"{self.url}{path}"
        for _ in range(MOST_REDIRECTS):
            answer = await self._send("GET", url, sent, params=params, auth=auth)
            if not follow or answer.status not in (301, 302, 303, 307, 308):
                return answer
            target = location(answer, url).geturl()
            if origin(target) != self._origin:
                return replace(answer, elsewhere=shown(target))
            url, params = target, None
        return replace(answer, trouble="broken")

    async def post_form(self, path: str, form: Mapping[str, str]) -> Answer:
        headers = {"Accept": "application/json"}
        answer = await self._send("POST", f"{self.url}{path}", headers, data=form)
        target = location(answer, self.url).geturl()
        if 300 <= answer.status < 400 and origin(target) != self._origin:
            return replace(answer, elsewhere=shown(target))
        return answer

    async def arrivals(self, path: str) -> list[float]:
        """When each piece of an event stream came, in seconds since the first asking; at most 20."""
        times: list[float] = []
        began = time.monotonic()
        try:
            async with (
                asyncio.timeout(self._timeout),
                self._client.stream(
                    "GET", f"{self.url}{path}", headers={"Accept-Encoding": "identity"}
                ) as response,
            ):
                if response.status_code != 200:
                    return []
                async for _ in response.aiter_raw():
                    times.append(time.monotonic() - began)
                    if len(times) == 20:
                        break
        except (TimeoutError, httpx.HTTPError, OSError):
            return []
        return times

    async def _send(
        self, method: str, url: str, headers: Mapping[str, str], **options: Any
    ) -> Answer:
        if origin(url) != self._origin:
            raise ValueError("a request to another origin")  # no caller does
        # Compressed, a small answer could be a huge one.
        headers = {**headers, "Accept-Encoding": "identity", "User-Agent": "notebooks-doctor"}
        try:
            async with asyncio.timeout(self._timeout):
                auth = options.pop("auth", None)
                request = self._client.build_request(method, url, headers=headers, **options)
                response = await self._client.send(request, auth=auth, stream=True)
                try:
                    return await self._read(response)
                finally:
                    await response.aclose()
        except (TimeoutError, httpx.TimeoutException):
            return Answer(trouble="time", clock=time.time())
        except httpx.ProxyError:
            return Answer(trouble="proxy", clock=time.time())
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            return _failed(error)

    @staticmethod
    async def _read(response: httpx.Response) -> Answer:
        clock = time.time()
        body = b""
        trouble: Trouble = ""
        if response.headers.get("content-encoding", "identity") != "identity":
            trouble = "broken"
        else:
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > MOST_BYTES:
                    body, trouble = b"", "large"
                    break
        return Answer(
            status=response.status_code,
            headers={name.lower(): value for name, value in response.headers.items()},
            body=body,
            trouble=trouble,
            landed=response.url.path,
            expires=_expiry(response),
            clock=clock,
        )


def _expiry(response: httpx.Response) -> float | None:
    stream = response.extensions.get("network_stream")
    tls = stream.get_extra_info("ssl_object") if stream is not None else None
    certificate = tls.getpeercert() if tls is not None else None
    if not certificate or "notAfter" not in certificate:
        return None
    return float(ssl.cert_time_to_seconds(certificate["notAfter"]))


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _failed(error: Exception) -> Answer:
    clock = time.time()
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return Answer(trouble="tls", tls_code=cause.verify_code, clock=clock)
        if isinstance(cause, ssl.SSLError):
            return Answer(trouble="tls", clock=clock)
        if isinstance(cause, socket.gaierror):
            return Answer(trouble="address", clock=clock)
    if isinstance(error, httpx.ConnectError):
        return Answer(trouble="refused", clock=clock)
    return Answer(trouble="broken", clock=clock)

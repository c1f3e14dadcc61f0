"""Where the bytes of large files come from and go to: the forge, or a host that it may keep them on.

The only place that follows an address out of a forge's answer. The person's token goes to the forge's
own origin and nowhere else; other hosts must be named in the settings, and their addresses are
looked up once, checked, and connected to. Called by ``lfs.py``.
"""

from __future__ import annotations

import asyncio
import base64
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import SplitResult, quote, unquote, urlsplit

import httpx

from notebooks_service.errors import ForgeUnavailable
from notebooks_service.gateway.access import Admission
from notebooks_service.gateway.lfs_messages import LONGEST_ADDRESS, is_address
from notebooks_service.settings import Settings

MOST_REDIRECTS = 3
ELSEWHERE = "The forge keeps this file on a host that the setting `lfs_hosts` does not name."
DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Place:
    """One address to speak to; ``own`` is the forge's own origin."""

    parts: SplitResult
    own: bool

    @property
    def url(self) -> str:
        return self.parts.geturl()


class Storage:
    """Connections to the forge and to the hosts of its large files."""

    def __init__(
        self, settings: Settings, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self._forge = urlsplit(settings.forge_url)
        self._hosts = frozenset(host.lower() for host in settings.lfs_hosts)
        ca_file = settings.forge_ca_file
        timeout = httpx.Timeout(None, connect=10.0)
        limits = httpx.Limits(max_connections=None, keepalive_expiry=2.0)
        verify = ssl.create_default_context(cafile=ca_file) if ca_file else True
        self._own = httpx.AsyncClient(
            timeout=timeout,
            limits=limits,
            verify=verify,
            transport=transport,
            trust_env=not _is_loopback(self._forge.hostname or ""),
        )
        # Directly, at the address that was checked: a proxy would look the name up again.
        self._others = httpx.AsyncClient(
            timeout=timeout, limits=limits, transport=transport, trust_env=False
        )

    async def aclose(self) -> None:
        await self._own.aclose()
        await self._others.aclose()

    def place(self, href: str, project: str) -> Place:
        """Where ``href`` leads. Raises ``ForgeUnavailable`` if nothing of ``project`` can be there.

        At the forge only addresses below the project's own repository are followed, elsewhere only
        those of hosts that the settings name.
        """
        if not is_address(href):
            raise ForgeUnavailable(ELSEWHERE)
        parts = urlsplit(href)
        if _origin(parts) == _origin(self._forge):
            root = f"{unquote(self._forge.path)}/{project}.git/"
            if not unquote(parts.path).startswith(root):
                raise ForgeUnavailable("The forge sent us to another project for this file.")
            return Place(parts, own=True)
        host = (parts.hostname or "").lower()
        host = f"[{host}]" if ":" in host else host
        port = parts.port or DEFAULT_PORTS[parts.scheme]
        named = f"{host}:{port}" in self._hosts
        named = named or (port == DEFAULT_PORTS[parts.scheme] and host in self._hosts)
        if not named or (parts.scheme == "http" and self._forge.scheme == "https"):
            raise ForgeUnavailable(ELSEWHERE)
        return Place(parts, own=False)

    def repository(self, project: str, endpoint: str) -> Place:
        """An endpoint of Git LFS itself, below ``project``'s repository at the forge."""
        address = f"{self._forge.geturl()}/{quote(project, safe='/')}.git/info/lfs/{endpoint}"
        return Place(urlsplit(address), own=True)

    async def send(
        self,
        method: str,
        place: Place,
        admission: Admission,
        headers: Mapping[str, str],
        content: bytes | AsyncIterator[bytes] | None = None,
        *,
        project: str = "",
    ) -> httpx.Response:
        """The answer, its body not read yet. Redirects are followed for reading only, and each is
        checked like the first address. Raises ``ForgeUnavailable``.

        What an action says of ``Authorization`` is for hosts that are not the forge: there the
        person's own token is used.
        """
        reads = method in ("GET", "HEAD")
        for _ in range(MOST_REDIRECTS + 1):
            response = await self._exchange(method, place, admission, headers, content)
            if not (reads and response.has_redirect_location):
                return response
            await response.aclose()
            location = response.headers["location"]
            if len(location) > LONGEST_ADDRESS:
                break
            there = str(httpx.URL(place.url).join(location))
            follows = self.place(there, project)
            if _origin(follows.parts) != _origin(place.parts):
                # A signed address needs nothing more, and nobody else is shown these.
                headers = {name: value for name, value in headers.items() if name == "range"}
            place = follows
        raise ForgeUnavailable("The forge sends us round in circles for this file.")

    async def _exchange(
        self,
        method: str,
        place: Place,
        admission: Admission,
        headers: Mapping[str, str],
        content: bytes | AsyncIterator[bytes] | None,
    ) -> httpx.Response:
        sent = {"accept-encoding": "identity", "user-agent": "notebooks-service", **headers}
        client, url = self._others, place.url
        extensions: dict[str, object] = {}
        try:
            if place.own:
                client = self._own
                login = base64.b64encode(f"oauth2:{admission.forge_token}".encode()).decode()
                sent["authorization"] = f"Basic {login}"
            else:
                address = await _checked_address(place.parts)
                name = place.parts.hostname or ""
                sent["host"] = place.parts.netloc
                extensions["sni_hostname"] = name
                shown = f"[{address}]" if address.version == 6 else str(address)
                port = place.parts.port or DEFAULT_PORTS[place.parts.scheme]
                url = place.parts._replace(netloc=f"{shown}:{port}").geturl()
            extensions["timeout"] = client.timeout.as_dict()
            request = httpx.Request(
                method, url, headers=sent, content=content, extensions=extensions
            )
            return await client.send(request, stream=True, follow_redirects=False)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ForgeUnavailable from error


async def _checked_address(parts: SplitResult) -> IPv4Address | IPv6Address:
    """The address of a host that the settings name. Raises ``ForgeUnavailable`` for one where no
    storage is: a cloud's metadata service, or this machine unless it was named as such."""
    host = parts.hostname or ""
    port = parts.port or DEFAULT_PORTS[parts.scheme]
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ForgeUnavailable("The host of this large file has no address.") from error
    address = ip_address(str(found[0][4][0]).partition("%")[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    wrong = address.is_link_local or address.is_multicast or address.is_unspecified
    if wrong or (address.is_loopback and not _is_loopback(host)):
        raise ForgeUnavailable("The host of this large file has an address that is not allowed.")
    return address


def _origin(parts: SplitResult) -> tuple[str, str, int]:
    return parts.scheme, (parts.hostname or "").lower(), parts.port or DEFAULT_PORTS[parts.scheme]


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False

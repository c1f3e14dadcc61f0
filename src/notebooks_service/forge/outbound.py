"""Where the forge's webhooks may go: addresses are resolved once, checked, and then connected to.

A person chooses a hook's URL and reads the answer, so a hook must not reach what only this machine
or its network can. Loopback, private, link-local (cloud metadata), multicast and unspecified
addresses are refused, however they are written, unless the configuration allows them.
https://docs.gitlab.com/security/webhooks/
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import SplitResult, unquote, urlsplit

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MOST_URL = 2048
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_COMPATIBLE = ipaddress.IPv6Network("::/96")


class NotAllowed(Exception):
    """A URL that webhooks may not have, or that leads where they may not go; says why."""


@dataclass(frozen=True)
class Allowed:
    """One entry of the allowlist: a host name or a network, with a port or for every port."""

    host: str
    network: Network | None
    port: int | None

    def admits(self, host: str, address: Address, port: int) -> bool:
        if self.port is not None and self.port != port:
            return False
        if self.network is None:
            return self.host == host
        return address.version == self.network.version and address in self.network


@dataclass(frozen=True)
class Target:
    """Where one delivery goes: ``address`` was checked; ``host`` is for TLS and the Host header."""

    url: SplitResult
    host: str
    port: int
    address: Address
    username: str
    password: str

    @property
    def connect_url(self) -> str:
        """The URL with the checked address in place of the name, and without credentials."""
        address = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        path = self.url.path or "/"
        query = f"?{self.url.query}" if self.url.query else ""
        return f"{self.url.scheme}://{address}:{self.port}{path}{query}"

    @property
    def host_header(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        default = 443 if self.url.scheme == "https" else 80
        return host if self.port == default else f"{host}:{self.port}"


def read_allowed(entries: Iterable[str]) -> tuple[Allowed, ...]:
    """``name``, ``name:port``, ``10.0.0.0/8``, ``127.0.0.1:8000``, ``[::1]:80``. Raises ``ValueError``."""
    found = []
    for entry in entries:
        text, port = entry.strip().lower(), None
        if text.startswith("["):
            host, _, rest = text[1:].partition("]")
            tail = rest.removeprefix(":")
        elif text.count(":") == 1:
            host, _, tail = text.partition(":")
        else:
            host, tail = text, ""
        if tail:
            port = int(tail)
        if not host or (port is not None and not 0 < port < 65536):
            raise ValueError(f"{entry!r} is no address that webhooks could be allowed to reach")
        try:
            network: Network | None = ipaddress.ip_network(host, strict=False)
        except ValueError:
            if "/" in host:
                raise
            network = None
        found.append(Allowed(host, network, port))
    return tuple(found)


def is_public(address: Address) -> bool:
    """Whether anybody on the internet could reach it, so that reaching it from here tells nothing.

    An IPv6 address that carries an IPv4 one (mapped, compatible, 6to4, NAT64, Teredo) is as public
    as that one.
    """
    if isinstance(address, ipaddress.IPv6Address):
        inner: list[ipaddress.IPv4Address] = []
        if address.ipv4_mapped is not None:
            inner.append(address.ipv4_mapped)
        elif address in _NAT64 or address in _COMPATIBLE:
            inner.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        elif address.sixtofour is not None:
            inner.append(address.sixtofour)
        elif address.teredo is not None:
            inner.extend(address.teredo)
        if inner:
            return all(is_public(one) for one in inner)
    return (
        address.is_global
        and not address.is_multicast
        and not address.is_reserved
        and not address.is_unspecified
    )


def parse(url: str) -> tuple[SplitResult, str, int]:
    """The parts, the host in lower case, the port. Raises ``NotAllowed`` for no http(s) URL."""
    if len(url) > MOST_URL or any(ord(mark) <= 32 or ord(mark) == 127 for mark in url):
        raise NotAllowed("The URL is too long or holds blanks")
    if "\\" in url:
        raise NotAllowed("The URL holds a backslash, which programs read in different ways")
    try:
        parts = urlsplit(url)
        port = parts.port
        host = (parts.hostname or "").rstrip(".")
        host.encode("idna")
    except (ValueError, UnicodeError):
        raise NotAllowed("The URL cannot be read") from None
    if parts.scheme not in ("http", "https"):
        raise NotAllowed("Only http and https are allowed")
    if not host or "%" in host or port == 0:
        raise NotAllowed("The URL names no host")
    return parts, host, port or (443 if parts.scheme == "https" else 80)


def resolve(url: str, allowed: Sequence[Allowed] = ()) -> Target:
    """Where a delivery to ``url`` goes. Blocks while it asks DNS, once; call it in a thread.

    Raises ``NotAllowed`` if *any* address of the name is one that webhooks may not reach.
    """
    parts, host, port = parse(url)
    try:
        # Numbers in any notation (0x7f.1, 2130706433, 0177.0.0.1) are read here as a connection
        # would read them, and checked as what they are.
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise NotAllowed("The host of the URL cannot be resolved") from None
    addresses = [ipaddress.ip_address(str(info[4][0]).partition("%")[0]) for info in found]
    for address in addresses:
        if any(entry.admits(host, address, port) for entry in allowed):
            continue
        if not is_public(address):
            raise NotAllowed("The URL leads to an address that webhooks may not reach")
    if not addresses:
        raise NotAllowed("The host of the URL cannot be resolved")
    username, password = unquote(parts.username or ""), unquote(parts.password or "")
    return Target(parts, host, port, addresses[0], username, password)


HIDDEN = "*****"


def without_password(url: str) -> str:
    """``url`` as it may be shown: a password in it is replaced."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url
    if not parts.password:
        return url
    user, _, host = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"{user.partition(':')[0]}:{HIDDEN}@{host}").geturl()

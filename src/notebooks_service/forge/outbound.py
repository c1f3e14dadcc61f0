"""Where the forge's webhooks may go: addresses are resolved once, checked, and then connected to.

A person chooses a hook's URL and reads the answer, so a hook must not reach what only this machine
or its network can. Loopback, private, link-local (cloud metadata), multicast and unspecified
addresses are refused, however they are written, unless the configuration allows them.
https://docs.gitlab.com/security/webhooks/
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import SplitResult, unquote, urlsplit

from notebooks_service.addresses import Address, Allowed, is_public, read_allowed

MOST_URL = 2048


class NotAllowed(Exception):
    """A URL that webhooks may not have, or that leads where they may not go; says why."""


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


__all__ = ["Allowed", "is_public", "read_allowed"]

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

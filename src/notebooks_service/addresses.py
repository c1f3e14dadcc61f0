"""Which addresses are public ones, and lists of those that are allowed all the same; pure.

For whatever connects to where a person or a repository says: the forge's webhooks, jobs' downloads.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_COMPATIBLE = ipaddress.IPv6Network("::/96")


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
            raise ValueError(f"{entry!r} is no address that could be allowed")
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

"""An HTTP proxy that reaches what a setting names and nothing else: for jobs (``runner/gates.py``) and for
servers (``__main__.py``) in containers, which have no other way out.

A name is resolved here, once, and every address that it has must be a public one or allowed.
https://www.rfc-editor.org/rfc/rfc9110#name-connect
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections.abc import Callable, Collection, Sequence
from urllib.parse import urlsplit

import psutil

from notebooks_service.addresses import Address, Allowed, Network, is_public, read_allowed
from notebooks_service.errors import SettingsInvalid
from notebooks_service.settings import Settings

log = logging.getLogger(__name__)

LONGEST_HEAD = 64 * 1024
LONGEST_HOST = 253
CONNECT_WAIT = 20.0
NEXT_WAIT = 4.0
"""For an address while the host has others: one of two families often leads nowhere."""
MOST_ADDRESSES = 8
PORTS = frozenset({80, 443})
"""Where packages come from; an allowed address may name another."""
HOP = frozenset(
    {b"proxy-connection", b"connection", b"keep-alive", b"proxy-authorization", b"host"}
)
ANYWHERE = "*"
METADATA: tuple[Network, ...] = tuple(
    ipaddress.ip_network(each)
    for each in ("169.254.0.0/16", "fe80::/10", "fd00:ec2::/32", "100.100.100.200/32")
)
"""Where clouds tell a machine its own secrets; no entry allows them."""


def own_addresses() -> frozenset[Address]:
    """Those of this machine's interfaces."""
    found = set()
    for addresses in psutil.net_if_addrs().values():
        for each in addresses:
            if each.family in (socket.AF_INET, socket.AF_INET6):
                found.add(ipaddress.ip_address(each.address.partition("%")[0]))
    return frozenset(found)


class Egress:
    """``hosts``: names that may be reached (``*`` for every public address, ``*.example.org``), and
    addresses (``allowed``) that may be reached although they are not public ones.

    ``never``: networks that no entry allows. An address of this machine (``own``) is reached only where
    an entry names it alone, with its port. ``setting`` and ``who`` are for sentences.
    """

    def __init__(
        self,
        hosts: Sequence[str],
        allowed: Sequence[Allowed],
        *,
        setting: str = "job_egress",
        who: str = "jobs",
        never: Sequence[Network] = (),
        own: Callable[[], Collection[Address]] = own_addresses,
    ) -> None:
        self._hosts = tuple(host.lower() for host in hosts)
        self._allowed = tuple(allowed)
        self._never = (*METADATA, *never)
        self._own = own
        self._setting = setting
        self._who = who

    @classmethod
    def from_setting(
        cls,
        entries: Sequence[str],
        *,
        setting: str = "job_egress",
        who: str = "jobs",
        never: Sequence[Network] = (),
        own: Callable[[], Collection[Address]] = own_addresses,
    ) -> Egress:
        """``*``, ``pypi.org``, ``*.debian.org``; an address, a network or what names a port is allowed
        although it is not public. Raises ``SettingsInvalid``.
        """
        hosts = [each for each in entries if not _is_address(each)]
        try:
            allowed = read_allowed([each for each in entries if _is_address(each)])
        except ValueError as error:
            raise SettingsInvalid(f"The setting `{setting}` is wrong: {error}.") from None
        return cls(hosts, allowed, setting=setting, who=who, never=never, own=own)

    def names(self, host: str) -> bool:
        """Whether this name is one of those that may be reached."""
        for entry in self._hosts:
            if entry in (ANYWHERE, host) or (entry.startswith("*.") and host.endswith(entry[1:])):
                return True
        return False

    def admits(self, host: str, address: Address, port: int, own: Collection[Address] = ()) -> bool:
        """Whether a connection for ``host`` may go to this one of its addresses."""
        inner = getattr(address, "ipv4_mapped", None) or address
        if any(inner.version == each.version and inner in each for each in self._never):
            return False
        matching = [each for each in self._allowed if each.admits(host, address, port)]
        if inner in own or inner.is_loopback or inner.is_unspecified:
            # A network or a name may turn out to be this machine; one address with its port is meant.
            return any(
                each.port is not None
                and each.network is not None
                and each.network.num_addresses == 1
                for each in matching
            )
        return bool(matching) or (self.names(host) and port in PORTS and is_public(address))

    async def addresses(self, host: str, port: int) -> list[Address]:
        """Where a connection to ``host`` may go, in the order to try; none if one of them is not allowed."""
        host = host.rstrip(".").lower()
        if not host or len(host) > LONGEST_HOST:
            return []
        try:
            found = await asyncio.get_running_loop().getaddrinfo(
                host, port, type=socket.SOCK_STREAM
            )
        except (OSError, UnicodeError):
            return []
        every = [ipaddress.ip_address(str(each[4][0]).partition("%")[0]) for each in found]
        addresses = list(dict.fromkeys(every))
        own = self._own()
        if not all(self.admits(host, each, port, own) for each in addresses):
            return []
        return addresses[:MOST_ADDRESSES]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection of a job's or a server's: one tunnel, or one request."""
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), CONNECT_WAIT)
            method, target, version = head.split(b"\r\n", 1)[0].split(b" ")
            tunnel = method == b"CONNECT"
            text = target.decode("ascii")
            parts = urlsplit(f"//{text}" if tunnel else text)
            host, port = parts.hostname or "", parts.port or (443 if tunnel else 80)
            if not host or not (tunnel or parts.scheme == "http"):
                raise ValueError(text)
        except (
            ValueError,
            UnicodeError,
            TimeoutError,
            OSError,
            EOFError,
            asyncio.LimitOverrunError,
        ):
            await _refuse(writer, 400, "That is no request to a proxy.")
            return
        addresses = await self.addresses(host, port)
        if not addresses:
            # Never the path and the query: these are where people have secrets.
            log.info("%s asked for %r, port %d, which they may not reach", self._who, host, port)
            sentence = (
                f"{self._who.capitalize()} may not reach {host}:{port} (setting `{self._setting}`)."
            )
            await _refuse(writer, 403, sentence)
            return
        upstream = await connect(addresses, port)
        if upstream is None:
            await _refuse(writer, 502, f"{host}:{port} does not answer.")
            return
        if tunnel:
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:
            path = parts.path or "/"
            path += f"?{parts.query}" if parts.query else ""
            name = parts.netloc.rpartition("@")[2].encode("ascii")
            upstream[1].write(_rewritten(head, method, path.encode("ascii"), version, name))
        await join((reader, writer), upstream)


def for_servers(settings: Settings) -> Egress:
    """What servers in containers reach. Raises ``SettingsInvalid``."""
    entries, never = settings.allowed_egress, [ipaddress.ip_network(settings.docker_networks)]
    return Egress.from_setting(entries, setting="allowed_egress", who="servers", never=never)


def for_jobs(settings: Settings) -> Egress:
    """What CI jobs in containers reach. Raises ``SettingsInvalid``."""
    never = [ipaddress.ip_network(settings.docker_networks)]
    return Egress.from_setting(settings.job_egress, never=never)


def _is_address(entry: str) -> bool:
    if ":" in entry or "/" in entry:
        return True
    try:
        ipaddress.ip_address(entry)
    except ValueError:
        return False
    return True


def _rewritten(head: bytes, method: bytes, path: bytes, version: bytes, host: bytes) -> bytes:
    """The request as the server wants it, for one answer: who connects here is asked anew each time.

    ``Host`` is what was checked, not what the request says beside it.
    https://www.rfc-editor.org/rfc/rfc9112#section-3.2.2
    """
    lines = head.split(b"\r\n")[1:-2]
    kept = [line for line in lines if line.partition(b":")[0].strip().lower() not in HOP]
    first = [b" ".join([method, path, version]), b"Host: " + host]
    return b"\r\n".join([*first, *kept, b"Connection: close", b"", b""])


async def _refuse(writer: asyncio.StreamWriter, status: int, sentence: str) -> None:
    body = f"{sentence}\n".encode()
    head = f"HTTP/1.1 {status} Refused\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    with contextlib.suppress(OSError):
        writer.write(head.encode() + body)
        await writer.drain()
    writer.close()


Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def connect(addresses: Sequence[Address], port: int) -> Ends | None:
    """A connection to the first of these that answers; None if none does."""
    for at, address in enumerate(addresses):
        wait = CONNECT_WAIT if at == len(addresses) - 1 else NEXT_WAIT
        with contextlib.suppress(OSError, TimeoutError):
            return await asyncio.wait_for(asyncio.open_connection(str(address), port), wait)
    return None


async def join(one: Ends, other: Ends) -> None:
    """Hand on what comes from either side until both have ended."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()
        except OSError:
            # Nobody is there any more: the other direction must not wait for what will not come.
            writer.close()

    try:
        await asyncio.gather(pump(one[0], other[1]), pump(other[0], one[1]))
    finally:
        for _, writer in (one, other):
            writer.close()

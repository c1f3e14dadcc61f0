"""What lets jobs in containers download packages, and reach nothing else: an HTTP proxy of the runner's.

A job has no network; its gate (``gates.py``) hands its connections to this. A name is resolved here, once,
and every address that it has must be a public one or allowed.
https://www.rfc-editor.org/rfc/rfc9110#name-connect
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections.abc import Sequence
from urllib.parse import urlsplit

from notebooks_service.addresses import Address, Allowed, is_public, read_allowed
from notebooks_service.errors import SettingsInvalid

log = logging.getLogger(__name__)

LONGEST_HEAD = 64 * 1024
CONNECT_WAIT = 20.0
PORTS = frozenset({80, 443})
"""Where packages come from; an allowed address may name another."""
HOP = frozenset({b"proxy-connection", b"connection", b"keep-alive", b"proxy-authorization"})
ANYWHERE = "*"


class Egress:
    """``hosts``: names that may be reached (``*`` for every public address, ``*.example.org``), and
    addresses (``allowed``) that may be reached although they are not public ones.
    """

    def __init__(self, hosts: Sequence[str], allowed: Sequence[Allowed]) -> None:
        self._hosts = tuple(host.lower() for host in hosts)
        self._allowed = tuple(allowed)

    @classmethod
    def from_setting(cls, entries: Sequence[str]) -> Egress:
        """``*``, ``pypi.org``, ``*.debian.org``; an address, a network or what names a port is allowed
        although it is not public. Raises ``SettingsInvalid``.
        """
        hosts = [each for each in entries if not _is_address(each)]
        try:
            return cls(hosts, read_allowed([each for each in entries if _is_address(each)]))
        except ValueError as error:
            raise SettingsInvalid(f"The setting `job_egress` is wrong: {error}.") from None

    def names(self, host: str) -> bool:
        """Whether this name is one of those that may be reached."""
        for entry in self._hosts:
            if entry in (ANYWHERE, host) or (entry.startswith("*.") and host.endswith(entry[1:])):
                return True
        return False

    async def address(self, host: str, port: int) -> Address | None:
        """Where a connection to ``host`` may go; None if nowhere."""
        host = host.rstrip(".").lower()
        try:
            found = await asyncio.get_running_loop().getaddrinfo(
                host, port, type=socket.SOCK_STREAM
            )
        except (OSError, UnicodeError):
            return None
        addresses = [ipaddress.ip_address(str(each[4][0]).partition("%")[0]) for each in found]
        public = self.names(host) and port in PORTS
        for address in addresses:
            listed = any(entry.admits(host, address, port) for entry in self._allowed)
            if not listed and not (public and is_public(address)):
                return None
        return addresses[0] if addresses else None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection of a job's: one tunnel, or one request."""
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
        address = await self.address(host, port)
        if address is None:
            log.info("a job asked for %s:%d, which it may not reach", host, port)
            await _refuse(writer, 403, f"Jobs may not reach {host}:{port} (setting `job_egress`).")
            return
        try:
            upstream = await asyncio.wait_for(
                asyncio.open_connection(str(address), port), CONNECT_WAIT
            )
        except (OSError, TimeoutError):
            await _refuse(writer, 502, f"{host}:{port} does not answer.")
            return
        if tunnel:
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:
            path = parts.path or "/"
            path += f"?{parts.query}" if parts.query else ""
            upstream[1].write(_rewritten(head, method, path.encode("ascii"), version))
        await join((reader, writer), upstream)


def _is_address(entry: str) -> bool:
    if ":" in entry or "/" in entry:
        return True
    try:
        ipaddress.ip_address(entry)
    except ValueError:
        return False
    return True


def _rewritten(head: bytes, method: bytes, path: bytes, version: bytes) -> bytes:
    """The request as the server wants it, for one answer: who connects here is asked anew each time."""
    lines = head.split(b"\r\n")[1:-2]
    kept = [line for line in lines if line.partition(b":")[0].strip().lower() not in HOP]
    return b"\r\n".join([b" ".join([method, path, version]), *kept, b"Connection: close", b"", b""])


async def _refuse(writer: asyncio.StreamWriter, status: int, sentence: str) -> None:
    body = f"{sentence}\n".encode()
    head = f"HTTP/1.1 {status} Refused\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    with contextlib.suppress(OSError):
        writer.write(head.encode() + body)
        await writer.drain()
    writer.close()


Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def join(one: Ends, other: Ends) -> None:
    """Hand on what comes from either side until both have ended."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()

    try:
        await asyncio.gather(pump(one[0], other[1]), pump(other[0], one[1]))
    finally:
        for _, writer in (one, other):
            writer.close()

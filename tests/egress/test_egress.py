"""What jobs and servers in containers may reach: names and addresses as tables, and the proxy with real connections."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from notebooks_service.egress.__main__ import Door
from notebooks_service.egress.proxy import Egress, connect
from notebooks_service.errors import SettingsInvalid
from notebooks_service.runner.gates import Gates


@pytest.mark.parametrize(
    ("entries", "host", "named"),
    [
        (["*"], "pypi.org", True),
        (["pypi.org"], "pypi.org", True),
        (["pypi.org"], "evil.pypi.org", False),
        (["*.debian.org"], "deb.debian.org", True),
        (["*.debian.org"], "debian.org", False),
        (["*.debian.org"], "evildebian.org", False),
        ([], "pypi.org", False),
    ],
)
def test_names(entries: list[str], host: str, named: bool) -> None:
    assert Egress.from_setting(entries).names(host) is named


@pytest.mark.parametrize(
    ("entries", "host", "port", "reached"),
    [
        (["*"], "127.0.0.1", 80, None),
        (["*"], "localhost", 443, None),
        (["*"], "2130706433", 80, None),
        (["*"], "0x7f.1", 80, None),
        (["*"], "169.254.169.254", 80, None),
        (["*"], "10.203.0.1", 80, None),
        (["*"], "::1", 443, None),
        (["*"], "::ffff:127.0.0.1", 443, None),
        (["*"], "1.1.1.1", 443, "1.1.1.1"),
        (["*"], "1.1.1.1", 22, None),
        ([], "1.1.1.1", 443, None),
        (["127.0.0.1:3141"], "127.0.0.1", 3141, "127.0.0.1"),
        (["127.0.0.1:3141"], "127.0.0.1", 80, None),
        (["10.0.0.0/8"], "10.1.2.3", 8080, "10.1.2.3"),
        (["10.0.0.0/8"], "192.168.0.1", 80, None),
    ],
)
async def test_addresses(entries: list[str], host: str, port: int, reached: str | None) -> None:
    found = await Egress.from_setting(entries).addresses(host, port)
    assert [str(each) for each in found] == ([] if reached is None else [reached])


OWN = {ipaddress.ip_address(each) for each in ("192.168.7.1", "8.8.4.4")}
SERVERS = [ipaddress.ip_network("10.203.0.0/16")]


@pytest.mark.parametrize(
    ("entries", "host", "address", "port", "admitted"),
    [
        # Clouds' metadata, whatever an entry says.
        (["169.254.169.254:80"], "169.254.169.254", "169.254.169.254", 80, False),
        (["0.0.0.0/0"], "169.254.169.254", "169.254.169.254", 80, False),
        (["::/0"], "x", "::ffff:169.254.169.254", 80, False),
        (["evil.example.org:80"], "evil.example.org", "169.254.169.254", 80, False),
        (["::/0"], "x", "fd00:ec2::254", 80, False),
        # The networks of servers, of the hub and of its proxy.
        (["10.0.0.0/8"], "10.203.0.1", "10.203.0.1", 700, False),
        (["10.203.0.1:700"], "10.203.0.1", "10.203.0.1", 700, False),
        (["10.0.0.0/8"], "10.204.0.1", "10.204.0.1", 700, True),
        # This machine: by one address with its port, by nothing else.
        (["*"], "dns.google", "8.8.4.4", 443, False),
        (["dns.google"], "dns.google", "8.8.4.4", 443, False),
        (["192.168.0.0/16"], "192.168.7.1", "192.168.7.1", 22, False),
        (["192.168.0.0/16"], "192.168.7.2", "192.168.7.2", 22, True),
        (["192.168.7.1"], "192.168.7.1", "192.168.7.1", 22, False),
        (["192.168.7.1:3141"], "192.168.7.1", "192.168.7.1", 3141, True),
        (["192.168.7.1:3141"], "some.name", "192.168.7.1", 3141, True),
        (["evil.example.org:22"], "evil.example.org", "192.168.7.1", 22, False),
        (["evil.example.org:22"], "evil.example.org", "127.0.0.1", 22, False),
        (["127.0.0.0/8"], "127.0.0.1", "127.0.0.1", 80, False),
        (["0.0.0.0/0"], "0.0.0.0", "0.0.0.0", 80, False),
        (["devpi.example.org:3141"], "devpi.example.org", "192.168.9.9", 3141, True),
    ],
)
def test_what_is_never_reached(
    entries: list[str], host: str, address: str, port: int, admitted: bool
) -> None:
    egress = Egress.from_setting(entries, never=SERVERS)
    assert egress.admits(host, ipaddress.ip_address(address), port, OWN) is admitted


async def test_every_address_of_a_host_is_tried() -> None:
    async with upstream() as (port, _):
        addresses = [ipaddress.ip_address(each) for each in ("::1", "127.0.0.2", "127.0.0.1")]
        ends = await connect(addresses, port)
        assert ends is not None
        assert ends[1].get_extra_info("peername")[0] == "127.0.0.1"
        ends[1].close()
        assert await connect(addresses[:2], port) is None


async def test_a_door_answers_one_peer_and_so_many_connections() -> None:
    async with upstream() as (port, _):
        egress = Egress.from_setting([f"127.0.0.1:{port}"])
        request = b"GET http://127.0.0.1:%d/ HTTP/1.1\r\n\r\n" % port
        assert (await ask(Door(egress, "127.0.0.1"), request)).endswith(b"pong")
        assert await ask(Door(egress, "10.203.0.3"), request) == b""
        assert await ask(Door(egress, "127.0.0.1", 0), request) == b""


async def test_nothing_secret_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    egress = Egress.from_setting([], setting="allowed_egress", who="servers")
    said = await ask(egress, b"GET http://me:canary1@10.9.8.7/canary2?t=canary3 HTTP/1.1\r\n\r\n")
    assert b"Servers may not reach 10.9.8.7:80 (setting `allowed_egress`)." in said
    assert "servers asked for '10.9.8.7', port 80" in caplog.text
    assert "canary" not in caplog.text + said.decode()


def test_a_setting_that_is_none_is_refused() -> None:
    with pytest.raises(SettingsInvalid, match="job_egress"):
        Egress.from_setting(["10.0.0.0/99"])


@contextlib.asynccontextmanager
async def upstream() -> AsyncIterator[tuple[int, list[bytes]]]:
    """A server that notes what it is asked and answers ``pong``."""
    seen: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\npong")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], seen


async def ask(egress: Egress | Door, request: bytes, more: bytes = b"") -> bytes:
    server = await asyncio.start_server(egress.serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        said = b""
        if more:
            said = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
            writer.write(more)
        with contextlib.suppress(ConnectionResetError):  # closed before it was read
            said += await asyncio.wait_for(reader.read(), 20)
        writer.close()
        return said


async def test_a_request_and_a_tunnel() -> None:
    async with upstream() as (port, seen):
        egress = Egress.from_setting([f"127.0.0.1:{port}"])
        head = b"Host: elsewhere.example.org\r\nProxy-Authorization: Basic secret\r\nConnection: keep-alive\r\nX: y\r\n\r\n"
        said = await ask(egress, b"GET http://127.0.0.1:%d/a?b=c HTTP/1.1\r\n" % port + head)
        assert said.endswith(b"pong")
        assert seen[0].startswith(b"GET /a?b=c HTTP/1.1\r\n")
        assert b"secret" not in seen[0]
        # What was checked is what is asked.
        assert b"Host: 127.0.0.1:%d\r\n" % port in seen[0]
        assert b"elsewhere" not in seen[0]
        assert b"X: y" in seen[0]
        assert seen[0].count(b"Connection:") == 1
        target = b"127.0.0.1:%d" % port
        tunnel = await ask(
            egress, b"CONNECT " + target + b" HTTP/1.1\r\n\r\n", b"GET /in HTTP/1.1\r\n\r\n"
        )
        assert tunnel.startswith(b"HTTP/1.1 200")
        assert tunnel.endswith(b"pong")
        assert seen[1].startswith(b"GET /in")


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"GET http://127.0.0.1:1/ HTTP/1.1", b"403"),
        (b"CONNECT 169.254.169.254:80 HTTP/1.1", b"403"),
        (b"CONNECT no-such-host.invalid:443 HTTP/1.1", b"403"),
        (b"GET / HTTP/1.1", b"400"),
        (b"GET ftp://example.org/ HTTP/1.1", b"400"),
        (b"CONNECT :443 HTTP/1.1", b"400"),
        (b"CONNECT a:99999999 HTTP/1.1", b"400"),
        (b"nonsense", b"400"),
    ],
)
async def test_what_is_refused(request_line: bytes, status: bytes) -> None:
    said = await ask(Egress.from_setting(["*"]), request_line + b"\r\n\r\n")
    assert said.split(b" ")[1] == status


async def test_the_ways_of_a_gate() -> None:
    async with upstream() as (port, seen):
        gates = Gates({"forge": f"http://127.0.0.1:{port}"}, Egress.from_setting([]))
        try:
            gates.start()
            assert gates.inside == [f"{port}=forge.sock", "3128=egress.sock"]
            reader, writer = await asyncio.open_unix_connection(str(gates.directory / "forge.sock"))
            writer.write(b"GET /x HTTP/1.1\r\n\r\n")
            assert (await asyncio.wait_for(reader.read(), 20)).endswith(b"pong")
            writer.close()
            assert seen == [b"GET /x HTTP/1.1\r\n\r\n"]
        finally:
            gates.close()
        assert not Path(gates.directory).exists()

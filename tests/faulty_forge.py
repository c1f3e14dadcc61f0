"""A forge that misbehaves by rule: a proxy between the service and a real embedded forge.

Everything goes through as it is, but what a rule names: that gets a fault in place of the forge's
answer, or one made of it. The forge's public address is the proxy's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import struct
import threading
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import psutil

HTML = b"<!doctype html><title>GitLab</title><h1>Whoops, something went wrong on our end.</h1>"
FAULTS = ("500", "429", "html", "half", "slow", "types", "gone")


@dataclass(frozen=True)
class Rule:
    """``fault`` for what ``pattern`` finds in ``METHOD path``, of one caller if ``caller`` names it."""

    pattern: str
    fault: str
    caller: str = ""


@dataclass(frozen=True)
class Seen:
    request: str
    caller: str
    fault: str


class FaultyForge:
    """Listens on ``port`` in a thread of its own; ``upstream`` is the real forge's port."""

    def __init__(self, upstream: int) -> None:
        self.upstream = upstream
        self.rules: tuple[Rule, ...] = ()
        self.seen: list[Seen] = []
        self.requests: list[str] = []
        self.callers: Callable[[str], int] = lambda name: 0
        """The process id of the part of that name; rules with a caller need it."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._server: asyncio.Server | None = None
        self._lock = threading.Lock()
        self._thread.start()
        self.port = 0
        self.come_back()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def add(self, *rules: Rule) -> None:
        with self._lock:
            self.rules = (*self.rules, *rules)

    def remove(self, *rules: Rule) -> None:
        """What `hold` holds back goes on to the forge now; what `slow` does, never."""
        with self._lock:
            self.rules = tuple(rule for rule in self.rules if rule not in rules)

    def go_away(self) -> None:
        """Nobody listens any more, as when a host is down."""
        self._do(self._close())

    def come_back(self) -> None:
        self._do(self._listen())

    def close(self) -> None:
        self.go_away()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def _fault(self, request: str, port: int) -> str:
        caller = ""
        for rule in self.rules:
            if not re.search(rule.pattern, request):
                continue
            if rule.caller:
                caller = caller or self._caller(port, {rule.caller for rule in self.rules} - {""})
                if rule.caller != caller:
                    continue
            self.seen.append(Seen(request, caller, rule.fault))
            return rule.fault
        return ""

    def _caller(self, port: int, names: set[str]) -> str:
        """Which part of the platform has the other end of a connection of ours."""
        for name in names:
            with contextlib.suppress(psutil.Error):
                ends = psutil.Process(self.callers(name)).net_connections("tcp4")
                if any(end.laddr and end.laddr[1] == port for end in ends):
                    return name
        return "?"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            lines = head.decode("latin-1").split("\r\n")[:-2]
            method, target = lines[0].split(" ")[:2]
            port = writer.get_extra_info("peername")[1]
            request = f"{method} {target.partition('?')[0]}"
            fault = await asyncio.to_thread(self._fault, request, port)
            self.requests.append(request)
            if fault == "hold":
                while any(re.search(r.pattern, request) for r in self.rules if r.fault == "hold"):
                    await asyncio.sleep(0.02)
                fault = ""
            if fault == "gone":
                _reset(writer)
                return
            body = await _body(reader, _headers(lines[1:]))
            if fault == "slow":
                await reader.read(1)  # until the client gives up
                return
            if fault in ("500", "429", "html"):
                writer.write(_canned(fault))
                await writer.drain()
                return
            await self._forward(lines, body, writer, fault)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            with contextlib.suppress(OSError):
                writer.close()

    async def _forward(
        self, lines: Sequence[str], body: bytes, writer: asyncio.StreamWriter, fault: str
    ) -> None:
        dropped = {"connection", "accept-encoding", "transfer-encoding", "content-length", "expect"}
        kept = [line for line in lines[1:] if line.partition(":")[0].lower() not in dropped]
        head = [lines[0].replace("HTTP/1.0", "HTTP/1.1"), *kept, "Connection: close"]
        if body or lines[0].startswith(("POST", "PUT", "PATCH")):
            head.append(f"Content-Length: {len(body)}")
        above, sending = await asyncio.open_connection("127.0.0.1", self.upstream)
        try:
            sending.write("\r\n".join([*head, "", ""]).encode("latin-1") + body)
            await sending.drain()
            if not fault:
                while piece := await above.read(65536):
                    writer.write(piece)
                    await writer.drain()
                return
            answer = await above.read(-1)
        finally:
            sending.close()
        top, _, content = answer.partition(b"\r\n\r\n")
        if fault == "half":
            # Broken off within the JSON, the pack or the list of refs.
            writer.write(top + b"\r\n\r\n" + content[: max(len(content) // 2, 1)])
            await writer.drain()
            _reset(writer)
        else:
            writer.write(_json_answer(_twisted(content)))
            await writer.drain()


def _headers(lines: Sequence[str]) -> dict[str, str]:
    pairs = (line.partition(":") for line in lines)
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if "chunked" in headers.get("transfer-encoding", ""):
        body = b""
        while size := int((await reader.readline()).split(b";")[0], 16):
            body += await reader.readexactly(size)
            await reader.readline()
        await reader.readline()
        return body
    return await reader.readexactly(int(headers.get("content-length") or 0))


def _canned(fault: str) -> bytes:
    status = {
        "500": "500 Internal Server Error",
        "429": "429 Too Many Requests",
        "html": "200 OK",
    }[fault]
    more = "Retry-After: 1\r\n" if fault == "429" else ""
    return (
        f"HTTP/1.1 {status}\r\nContent-Type: text/html\r\n{more}Connection: close\r\n"
        f"Content-Length: {len(HTML)}\r\n\r\n"
    ).encode() + HTML


def _json_answer(content: bytes) -> bytes:
    return (
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    ).encode() + content


def _twisted(content: bytes) -> bytes:
    """The same JSON with other types; for what is none, JSON that has nothing to do with it."""
    try:
        data = json.loads(content)
    except ValueError:
        return b'{"message": 17}'
    return json.dumps(_twist(data)).encode()


def _twist(data: Any) -> Any:
    if isinstance(data, dict):
        return {name: _twist(value) for name, value in data.items()}
    if isinstance(data, list):
        return {"rows": len(data)}
    if isinstance(data, str):
        return 17
    return ["something else"]


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection as a host does that has lost its memory of it: RST, not FIN."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()

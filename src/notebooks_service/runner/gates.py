"""The ways out of a job in a container: to the forge, to its registry, and to packages; nothing else.

A job has no network of its own, only a loopback that it shares with its gate: a container whose one program
(``gate_inside.py``) hands connections to sockets in a directory that only the gate has. At the other end of
these sockets is the runner, which knows where each one leads. ``containers.py`` uses it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import tempfile
import threading
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from notebooks_service.egress.proxy import Egress, join

log = logging.getLogger(__name__)

EGRESS = "egress"
FORGE, REGISTRY = "forge", "registry"
EGRESS_PORT = 3128
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def port_of(url: str) -> int:
    parts = urlsplit(url)
    return parts.port or (443 if parts.scheme == "https" else 80)


class Gates:
    """The runner's ends of the sockets, on a loop in a thread of their own, for all jobs."""

    def __init__(self, services: Mapping[str, str], egress: Egress) -> None:
        """``services``: names to URLs on the runner's own machine."""
        # A path of a socket may have 107 bytes: not below the data directory.
        self.directory = Path(tempfile.mkdtemp(prefix="nb-gates-"))
        self.directory.chmod(0o711)
        self._services = {
            name: (urlsplit(url).hostname or "", port_of(url)) for name, url in services.items()
        }
        self._registry = services.get(REGISTRY, "")
        self._egress = egress
        self._servers: list[asyncio.Server] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="gates", daemon=True)

    @property
    def plain_registry(self) -> str:
        """``host:port`` of a registry that speaks plain HTTP, as names of images have it."""
        parts = urlsplit(self._registry)
        return parts.netloc if parts.scheme == "http" else ""

    @property
    def inside(self) -> list[str]:
        """What the gate's program is told: ``port=socket`` for each way."""
        ways = {port: f"{name}.sock" for name, (_, port) in self._services.items()}
        ways[EGRESS_PORT] = f"{EGRESS}.sock"
        return [f"{port}={name}" for port, name in ways.items()]

    def start(self) -> None:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(30)

    def close(self) -> None:
        with contextlib.suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        if not self._thread.is_alive():
            self._loop.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    async def _listen(self) -> None:
        for name, (host, port) in self._services.items():
            await self._open(name, self._forward(host, port))
        await self._open(EGRESS, self._egress.serve)

    async def _end(self) -> None:
        for server in self._servers:
            server.close()
        own = asyncio.current_task()
        tasks = [task for task in asyncio.all_tasks() if task is not own]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _open(self, name: str, serve: Serve) -> None:
        path = self.directory / f"{name}.sock"
        self._servers.append(await asyncio.start_unix_server(serve, path, limit=65_536))
        path.chmod(0o666)

    @staticmethod
    def _forward(host: str, port: int) -> Serve:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                upstream = await asyncio.open_connection(host, port)
            except OSError:
                writer.close()
                return
            with contextlib.suppress(OSError):
                await join((reader, writer), upstream)

        return serve

"""Keeps what a server's containers write in the files that ``logs/<name>`` shows, also after they are gone.

Called by ``docker.py``. The files are those of the ``local`` runtime: ``server.log`` and ``clone.log``.
"""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import Any

from notebooks_service.errors import EngineUnavailable, NotebooksError
from notebooks_service.spawner.cloning import said
from notebooks_service.spawner.directories import ServerDirectory, limit_log
from notebooks_service.spawner.engine import AGAIN, STDERR, Engine
from notebooks_service.spawner.runtime import ServerKey

log = logging.getLogger(__name__)

LONGEST_LOG = 20 * 1024 * 1024
LOOK_EVERY = 1024 * 1024
LONGEST_LINE = 64 * 1024


class Lines:
    """Cuts the bytes that come into lines; one that is too long is none of our programs'."""

    def __init__(self) -> None:
        self._rest = b""

    def cut(self, data: bytes) -> list[bytes]:
        *whole, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LONGEST_LINE:
            self._rest = b""
        return whole


class ProgramOutput:
    """The output of a program of ours: objects from stdout, the rest into a file."""

    def __init__(self, hear: Any, errors: int) -> None:
        self._hear = hear
        self._errors = errors
        self._lines = Lines()
        self._left = LONGEST_LOG

    def __call__(self, stream: int, data: bytes) -> None:
        if stream == STDERR:
            if kept := data[: self._left]:
                self._left -= len(kept)
                os.write(self._errors, kept)
            return
        for line in self._lines.cut(data):
            if (found := said(line)) is not None:
                self._hear(found)


class ServerLogs:
    """The logs of the servers that run now: one task for each container."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._tasks: dict[ServerKey, tuple[str, asyncio.Task[None]]] = {}

    def begin(self, key: ServerKey, container: str, directory: ServerDirectory) -> None:
        """Follow this container from its first line on, into a fresh log; no second time."""
        known = self._tasks.get(key)
        if known is not None and known[0] == container and not known[1].done():
            return
        if known is not None:
            known[1].cancel()
        task = asyncio.create_task(self._follow(container, directory), name=f"log of {key}")
        self._tasks[key] = (container, task)

    async def finish(self, key: ServerKey, wait: float = 2.0) -> None:
        """The container has ended: what it wrote last is in the file when this returns."""
        known = self._tasks.pop(key, None)
        if known is not None:
            await asyncio.wait([known[1]], timeout=wait)
            known[1].cancel()

    async def _follow(self, container: str, directory: ServerDirectory) -> None:
        while True:
            try:
                # An engine that was away has kept what was written meanwhile: all of it once more.
                descriptor = directory.open_log(directory.server_log)
                try:
                    await self._engine.follow(container, _Writer(descriptor, directory.server_log))
                finally:
                    os.close(descriptor)
                found = await self._engine.inspect(container)
                if found is None or not found["State"].get("Running"):
                    return
            except EngineUnavailable:
                await asyncio.sleep(AGAIN)
            except (NotebooksError, OSError) as error:
                log.warning("The log of %s is not kept any more: %s", container, error)
                return


class _Writer:
    def __init__(self, descriptor: int, path: Path) -> None:
        self._descriptor = descriptor
        self._path = path
        self._since = 0

    def __call__(self, stream: int, data: bytes) -> None:
        os.write(self._descriptor, data)
        self._since += len(data)
        if self._since > LOOK_EVERY:
            self._since = 0
            limit_log(self._path, LONGEST_LOG)

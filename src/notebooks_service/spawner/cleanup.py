"""Cleaning up after launches that ended early, in tracked tasks with a journal on disk.

JupyterHub needs a cancelled ``start()`` to return at once, so the cleaning goes on behind it. The
next launch of the same server waits for it. What failed, because an engine was away, and what a hub
did not live to do, is tried again: before that launch, and from time to time. Never after it, when
the server that runs would be what is cleaned up. Called by the launch mixin and by ``configure``.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from notebooks_service.spawner.runtime import Runtime, ServerKey

log = logging.getLogger(__name__)

PURGE_EVERY = 24 * 3600.0
AGAIN_EVERY = 300.0
"""Seconds after which what could not be cleaned up is tried again."""


@dataclass(frozen=True)
class Leftover:
    """What one launch left: ``runtime`` as in its record; ``files`` if nothing is worth keeping."""

    key: ServerKey
    launch: str
    runtime: Mapping[str, Any]
    files: bool


class Cleanups:
    """The cleanups under way in this hub, at most one chain per server, and those that are left to do."""

    def __init__(self, journal: Path, runtime: Runtime) -> None:
        self._journal = journal
        self._runtime = runtime
        self._tasks: dict[ServerKey, asyncio.Task[None]] = {}
        self._left: dict[ServerKey, list[Leftover]] = {}
        self._background: set[asyncio.Task[None]] = set()

    def begin(self, leftover: Leftover) -> asyncio.Task[None]:
        """Note the leftover on disk, then clean it up in a task; returns at once."""
        path = self._write(leftover)
        task = asyncio.get_running_loop().create_task(
            self._clean(leftover, path, self._tasks.get(leftover.key)),
            name=f"cleanup of {leftover.key}",
        )
        self._tasks[leftover.key] = task
        task.add_done_callback(lambda done: self._forget(leftover.key, done))
        return task

    async def wait(self, key: ServerKey) -> None:
        """Wait until nothing of this server is being cleaned up. A waiter's cancel stops no cleanup.

        What was left is tried once more and then forgotten: whoever waits makes the server anew, or
        removes it, and either clears away what is in the way.
        """
        for leftover in self._left.pop(key, []):
            self.begin(leftover)
        while (task := self._tasks.get(key)) is not None:
            await asyncio.wait([task])
        for leftover in self._left.pop(key, []):
            log.warning("launch %s: what it left is the next one's", leftover.launch)
            await asyncio.to_thread(self._path(leftover).unlink, missing_ok=True)

    def busy(self, key: ServerKey) -> bool:
        """Whether something of this server is being cleaned up, or is still to be."""
        return key in self._tasks or key in self._left

    def start(self) -> None:
        """At the hub's start: finish what its predecessor left, then empty the trash, daily."""
        # Before anybody launches: what is read later could be of a launch before that one.
        self._read()
        task = asyncio.get_running_loop().create_task(self._housekeeping(), name="housekeeping")
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def again(self) -> None:
        """Try what is left to do, one after another."""
        for key in list(self._left):
            for leftover in self._left.pop(key, []):
                log.info("launch %s: cleaning up what is left", leftover.launch)
                await asyncio.wait([self.begin(leftover)])

    def _read(self) -> None:
        """Take over what the journal says that a hub before this one did not finish."""
        for path in sorted(self._journal.glob("*.json")):
            try:
                data = json.loads(path.read_text())
                leftover = Leftover(
                    ServerKey(data["user"], data["server"]),
                    data["launch"],
                    data["runtime"],
                    data["files"],
                )
            except (OSError, ValueError, KeyError, TypeError) as error:
                log.error("The cleanup journal's entry %s cannot be read: %r", path.name, error)
                continue
            self._left.setdefault(leftover.key, []).append(leftover)

    async def _housekeeping(self) -> None:
        purged = -PURGE_EVERY
        while True:
            await self.again()
            if time.monotonic() - purged >= PURGE_EVERY:
                purged = time.monotonic()
                try:
                    await self._runtime.purge()
                except OSError as error:
                    log.warning("The trash could not be emptied: %s", error)
            await asyncio.sleep(AGAIN_EVERY)

    async def _clean(
        self, leftover: Leftover, path: Path, before: asyncio.Task[None] | None
    ) -> None:
        if before is not None:
            await asyncio.wait([before])
        try:
            await self._runtime.clean(leftover.key, leftover.runtime, files=leftover.files)
        except Exception:
            log.exception("launch %s: the cleanup failed", leftover.launch)
            self._left.setdefault(leftover.key, []).append(leftover)
            return
        await asyncio.to_thread(path.unlink, missing_ok=True)
        log.info("launch %s: cleaned up", leftover.launch)

    def _write(self, leftover: Leftover) -> Path:
        path = self._path(leftover)
        data = {
            "user": leftover.key.user,
            "server": leftover.key.server,
            "launch": leftover.launch,
            "runtime": dict(leftover.runtime),
            "files": leftover.files,
        }
        try:
            self._journal.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.write_text(json.dumps(data))
        except OSError as error:  # a full disk must not keep processes alive
            log.warning("launch %s: the cleanup is not journaled: %s", leftover.launch, error)
        return path

    def _path(self, leftover: Leftover) -> Path:
        return self._journal / f"{leftover.launch}.json"

    def _forget(self, key: ServerKey, task: asyncio.Task[None]) -> None:
        if self._tasks.get(key) is task:
            del self._tasks[key]

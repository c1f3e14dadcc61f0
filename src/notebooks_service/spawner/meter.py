"""Keeps the ledger of usage, in the hub: which servers run, and how much is kept of each.

The launch says when a server runs and when it has ended; nothing here holds it up. What runs is written
down every minute, so that a hub that is killed loses no more than that.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import psutil

from notebooks_service.domain import LaunchRecord, LaunchStep
from notebooks_service.errors import LaunchRefused, NotebooksError
from notebooks_service.quotas import Spent
from notebooks_service.resources import NOTHING_CHOSEN, for_whom, granted
from notebooks_service.settings import Settings
from notebooks_service.spawner.options import read_options
from notebooks_service.spawner.runtime import Runtime, ServerKey
from notebooks_service.usage.ledger import Ledger
from notebooks_service.usage.records import Run, Size
from notebooks_service.usage.report import Period, by_server, month_of

log = logging.getLogger(__name__)

EVERY = 60.0
"""Seconds between two writings of what runs, and at least between two looks at sizes."""
ALL_SIZES = 3600.0
PATIENCE = 20
"""A look at sizes that took a second is not followed by another one for so many."""
FORGET = 24 * 3600.0
DAY = 24 * 3600.0


class Meter:
    """One per hub process. ``clock``: seconds since the epoch."""

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        runtime: Runtime,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._runtime = runtime
        self._clock = clock
        self._running: dict[ServerKey, Run] = {}
        self._ended: dict[str, Run] = {}
        self._lost: set[str] = set()
        self._due: set[ServerKey] = set()
        self._news = asyncio.Event()
        self._writing = asyncio.Lock()
        self._spent: tuple[float, list[Spent]] | None = None
        self._tasks: list[asyncio.Task[None]] = []

    # -- what the launches say -----------------------------------------------------------------

    def runs(self, key: ServerKey, record: LaunchRecord, user_options: Any) -> None:
        """This server runs now, by the launch of this record. To be said as often as one likes."""
        known = self._running.get(key)
        if known is not None and known.launch == record.id:
            return
        if known is not None:
            self.ended(key, known.launch)
        try:
            chosen = read_options(user_options).resources
        except LaunchRefused:
            chosen = NOTHING_CHOSEN
        given = granted(for_whom(self._settings, key.user, record.project_path), chosen)
        limited = self._settings.runtime == "docker"
        now = self._clock()
        run = Run(
            record.id, key.user, key.server, record.project_id, record.project_path,
            runtime=self._settings.runtime,
            # Without a limit a server may use all that there is.
            cpu=given.cpu if limited and given.cpu else float(os.cpu_count() or 1),
            memory=given.memory if limited and given.memory else psutil.virtual_memory().total,
            gpus=given.gpu if limited else 0,
            began=min(_when(record.started_steps.get(LaunchStep.READY.value)) or now, now),
            seen=now,
        )  # fmt: skip
        self._running[key] = run
        self._due.add(key)
        self._news.set()

    def ended(self, key: ServerKey, launch: str) -> None:
        """That launch's server does not run any more. One that this hub never saw running ended when
        the hub before it last saw it."""
        run = self._running.get(key)
        if run is not None and run.launch == launch:
            del self._running[key]
            self._ended[launch] = replace(run, seen=self._clock(), ended=True)
        else:
            self._lost.add(launch)
        self._due.add(key)
        self._news.set()

    def removed(self, key: ServerKey) -> None:
        """What was kept of this server is in the trash."""
        self._due.add(key)
        self._news.set()

    async def spent(self) -> Sequence[Spent]:
        """What every server has used since the month began, as of a minute ago. For the quotas.

        A ledger that cannot be read keeps nobody from working.
        """
        now = self._clock()
        month = month_of(now)[0].timestamp()
        known = self._spent
        if known is None or not max(month, now - EVERY) < known[0] <= now:
            await self.write()

            def read() -> list[Spent]:
                period = Period(month, now)
                return [
                    Spent(
                        each.user, each.project,
                        cpu=each.hours.cpu_hours,
                        gpu=each.hours.gpu_hours,
                        storage=each.hours.storage_gib_hours,
                    )
                    for each in by_server(*self._ledger.read(period), period)
                ]  # fmt: skip

            try:
                known = self._spent = (now, await asyncio.to_thread(read))
            except (sqlite3.Error, OSError, NotebooksError) as error:
                log.error("What was used cannot be read, so no quota of hours holds: %s", error)
                return []
        return known[1]

    # -- the ledger ----------------------------------------------------------------------------

    def start(self) -> None:
        """Write and look at sizes from now on, on the running loop."""
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(self._keep_writing(), name="usage: runs"),
            loop.create_task(self._keep_looking(), name="usage: sizes"),
        ]

    async def write(self) -> None:
        """Write down what runs and what has ended; what cannot be written is tried again with the next."""
        async with self._writing:
            now = self._clock()
            self._running = {key: replace(run, seen=now) for key, run in self._running.items()}
            ended, self._ended = self._ended, {}
            lost, self._lost = self._lost, set()
            runs = [*self._running.values(), *ended.values()]
            if not runs and not lost:
                return
            try:
                await asyncio.to_thread(self._ledger.write, runs, lost)
            except (sqlite3.Error, OSError, NotebooksError) as error:
                log.warning("Usage is not written down for now: %s", error)
                self._ended = ended | self._ended
                self._lost |= lost

    async def look(self, *, everywhere: bool) -> None:
        """Write down the sizes of what is kept: of servers that began or ended since, or of all."""
        due, self._due = self._due, set()
        await self.write()  # it says of which project a server is
        try:
            last = {
                ServerKey(each.user, each.server): each
                for each in await asyncio.to_thread(self._ledger.kept)
                if everywhere or ServerKey(each.user, each.server) in due
            }
            found = await self._runtime.sizes(list(last))
            now = self._clock()
            fresh = [
                Size(key.user, key.server, last[key].project_id, last[key].project, now, size)
                for key, size in found.items()
                if last[key].bytes != size
            ]
            await asyncio.to_thread(self._ledger.write, [], [], fresh)
        except (sqlite3.Error, OSError, NotebooksError) as error:
            log.warning("What servers keep could not be looked at: %s", error)
            self._due |= due
        except Exception:
            # Whatever an engine answers: the next look may go well.
            log.exception("What servers keep could not be looked at")

    async def _keep_writing(self) -> None:
        forget = 0.0
        while True:
            try:
                async with asyncio.timeout(EVERY):
                    await self._news.wait()
            except TimeoutError:
                pass
            self._news.clear()
            await self.write()
            if time.monotonic() >= forget:
                forget = time.monotonic() + FORGET
                await self._forget()

    async def _forget(self) -> None:
        before = self._clock() - self._settings.usage_days * DAY
        try:
            await asyncio.to_thread(self._ledger.forget, before)
        except (sqlite3.Error, OSError, NotebooksError) as error:
            log.warning("Old usage stays for now: %s", error)

    async def _keep_looking(self) -> None:
        pause, everywhere = EVERY, 0.0
        while True:
            await asyncio.sleep(pause)
            began = time.monotonic()
            if everywhere <= began:
                everywhere = began + ALL_SIZES
                await self.look(everywhere=True)
            elif self._due:
                await self.look(everywhere=False)
            pause = max(EVERY, PATIENCE * (time.monotonic() - began))


def _when(text: str | None) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp() if text else None
    except ValueError:
        return None

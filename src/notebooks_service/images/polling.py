"""Polls for builds that are waited for, once however many wait; used by ``images/watch.py``.

One of those who wait is asked with at a time, with their own token; what is seen is told to all. A
webhook of the forge may end a pause (``forge_says``); what that says is not believed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from notebooks_service.domain import Project
from notebooks_service.errors import ForgeUnavailable, NotebooksError, NotFound, SignInExpired
from notebooks_service.gitlab.forge import Forge
from notebooks_service.images.facts import FactReader, Progress, Subject
from notebooks_service.images.known import newest_tries

log = logging.getLogger(__name__)

T = TypeVar("T")
Renew = Callable[[], Awaitable[Forge]]
Sleep = Callable[[float], Coroutine[Any, Any, None]]

SLOWEST = 10  # times the least pause
SLOWEST_WITH_WEBHOOK = 60
LONGEST_SLEEP = 300.0
"""Within a longer pause, those who wait look that often whether their own time is over."""
LOG_LOOK = 60.0


class Thread(Protocol):
    """Runs a blocking call elsewhere."""

    async def __call__(self, function: Callable[..., T], *arguments: Any) -> T: ...


@dataclass(eq=False)
class Waiter:
    """One launch that waits. ``problem`` ends its wait."""

    forge: Forge
    renew: Renew | None
    refusals: int = 0
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    problem: NotebooksError | None = None
    told: tuple[int, str] | None = None


@dataclass(eq=False)
class Watch:
    """What all who wait for one build share. ``progress`` is of the last look that succeeded."""

    project: Project
    subject: Subject
    progress: Progress
    changed_at: float
    nudge: asyncio.Event = field(default_factory=asyncio.Event)
    waiters: list[Waiter] = field(default_factory=list)
    task: asyncio.Task[None] | None = None
    success_seen_at: float | None = None
    running: int | None = None
    log_bytes: int = 0
    log_grew_at: float | None = None
    log_read_at: float = 0.0

    def take(self, progress: Progress, now: float) -> None:
        """Remembers a look, and since when things are as they are."""
        if _state(progress) != _state(self.progress):
            self.changed_at = now
        self.progress = progress
        tries = newest_tries(progress.jobs or ())
        if self.success_seen_at is None and any(job.status == "success" for job in tries):
            self.success_seen_at = now
        running = next((job.id for job in tries if job.status == "running"), None)
        if running != self.running:
            self.running, self.log_bytes = running, 0
            self.log_grew_at = self.log_read_at = now


def _state(progress: Progress) -> tuple[Any, ...]:
    return progress.tag, tuple((job.id, job.status) for job in progress.jobs or ())


class Polls:
    """The builds that somebody waits for at present, each with one task that looks at it."""

    def __init__(
        self,
        reader: FactReader,
        thread: Thread,
        clock: Callable[[], float],
        sleep: Sleep,
        *,
        least: float,
        silence: float,
        webhook: bool,
    ) -> None:
        """``least``: seconds between two looks, which grow; ``silence``: of a log before it counts;
        ``webhook``: the forge tells us, so we look by ourselves only in case that it does not."""
        self._reader = reader
        self._thread = thread
        self._clock = clock
        self._sleep = sleep
        self._least = least
        self._silence = silence
        self._slowest = SLOWEST_WITH_WEBHOOK if webhook else SLOWEST
        self._watches: dict[tuple[int, str], Watch] = {}

    def join(
        self, waiter: Waiter, project: Project, subject: Subject, seen: Callable[[], Progress]
    ) -> Watch:
        """Wait for ``subject`` together with all who do; ``seen``: what this one knows already."""
        key = (project.id, subject.sha)
        watch = self._watches.get(key)
        if watch is None:
            now, first = self._clock(), seen()
            watch = Watch(project, subject, first, changed_at=now)
            watch.take(first, now)
            self._watches[key] = watch
            watch.task = asyncio.create_task(self._watch(watch), name=f"images {subject.sha[:8]}")
        watch.waiters.append(waiter)
        return watch

    def leave(self, waiter: Waiter, watch: Watch) -> None:
        """Wait no longer; the last one ends the polling."""
        watch.waiters.remove(waiter)
        if not watch.waiters:
            del self._watches[(watch.project.id, watch.subject.sha)]
            if watch.task is not None:
                watch.task.cancel()

    def forge_says(self, project_id: int) -> int:
        """Something happened in a project's CI: look now, not at the next poll. How many looks."""
        found = [watch for key, watch in self._watches.items() if key[0] == project_id]
        for watch in found:
            watch.nudge.set()
        return len(found)

    def close(self) -> None:
        """Ends all polling."""
        for watch in self._watches.values():
            if watch.task is not None:
                watch.task.cancel()

    async def _watch(self, watch: Watch) -> None:
        """Polls until nobody waits any more."""
        try:
            await self._poll(watch)
        except Exception:
            log.exception("watching the build of %s failed", watch.subject.sha)
            for waiter in watch.waiters:
                waiter.problem = NotebooksError()
                waiter.wake.set()

    async def _poll(self, watch: Watch) -> None:
        pause, asked_for = self._pause_for(watch), False
        while True:
            await self._rest(watch, pause, asked_for=asked_for)
            pause, asked_for = self._pause_for(watch), False
            waiter = next((one for one in watch.waiters if one.problem is None), None)
            if waiter is None:
                continue
            try:
                await self._poll_once(watch, waiter)
            except ForgeUnavailable as error:
                pause, asked_for = pause_after(error, pause), True
            except NotebooksError as error:
                # Not this one's token: another's, at once.
                waiter.problem = error
                waiter.wake.set()
                pause = 0
                continue
            for one in watch.waiters:
                one.wake.set()

    async def _poll_once(self, watch: Watch, waiter: Waiter) -> None:
        try:
            seen = await self._thread(
                self._reader.progress, waiter.forge, watch.project, watch.subject
            )
            waiter.refusals = 0
            watch.take(seen, self._clock())
            await self._listen(watch, waiter.forge)
        except SignInExpired:
            await renewed(waiter)

    async def _listen(self, watch: Watch, forge: Forge) -> None:
        """Notices, about once a minute, whether the running build's log has grown."""
        now = self._clock()
        if watch.running is None or now - watch.log_read_at < min(LOG_LOOK, self._silence / 4):
            return
        watch.log_read_at = now
        try:
            grown = await self._thread(
                self._reader.log_growth, forge, watch.project, watch.running, watch.log_bytes
            )
        except NotFound:
            watch.log_grew_at = None  # a log that is hidden from us is not a silent one
            return
        if grown:
            watch.log_bytes += grown
            watch.log_grew_at = now

    async def _rest(self, watch: Watch, seconds: float, *, asked_for: bool) -> None:
        """A pause, which a webhook may end: but not one that the forge has ``asked_for``, and a flood
        of what it says gives no flood of looks."""
        while asked_for and seconds > LONGEST_SLEEP:
            await self._sleep(LONGEST_SLEEP)
            seconds -= LONGEST_SLEEP
            for one in watch.waiters:
                one.wake.set()
        least = seconds if asked_for or self._slowest == SLOWEST else self._least
        await self._sleep(min(least, seconds))
        if seconds > least:
            rest = asyncio.create_task(self._sleep(seconds - least))
            nudge = asyncio.create_task(watch.nudge.wait())
            try:
                await asyncio.wait({rest, nudge}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                rest.cancel()
                nudge.cancel()
        watch.nudge.clear()

    def _pause_for(self, watch: Watch) -> float:
        """A tenth of the time since anything changed: a long build is noticed 10 % late at most."""
        since = self._clock() - watch.changed_at
        if self._slowest > SLOWEST:
            since *= SLOWEST_WITH_WEBHOOK / SLOWEST
        return min(max(since / 10, self._least), self._slowest * self._least)


async def renewed(waiter: Waiter) -> None:
    """Gives the waiter a forge with a fresh token, or raises ``SignInExpired``.

    A token that is refused although it is fresh is not renewed once more.
    """
    waiter.refusals += 1
    if waiter.renew is None or waiter.refusals > 1:
        raise SignInExpired
    fresh = await waiter.renew()
    if fresh is waiter.forge:
        raise SignInExpired
    waiter.forge = fresh


def pause_after(error: ForgeUnavailable, pause: float) -> float:
    """The pause that a forge asks for by ``Retry-After``, but not less than ``pause``."""
    return max(pause, float(error.detail.get("retry_after", 0)))

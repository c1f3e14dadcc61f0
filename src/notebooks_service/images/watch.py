"""The one watcher per project and commit in the hub: finds a commit's image, or waits for its build.

Called by the spawner. Everybody looks with their own token before they wait and again at the end,
so nobody gets an image that is hidden from them; in between one of them polls for all.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from notebooks_service.domain import Commit, Image, Job, Project
from notebooks_service.errors import (
    ForgeUnavailable,
    ImageUnavailable,
    NotebooksError,
    NotFound,
    SignInExpired,
)
from notebooks_service.gitlab.forge import Forge
from notebooks_service.images.environments import EnvironmentStore
from notebooks_service.images.facts import FactReader
from notebooks_service.images.known import ImageFacts, newest_tries
from notebooks_service.images.on_demand import have_it_built
from notebooks_service.images.resolve import (
    BuildOnDemand,
    Decision,
    ImageLimits,
    RefuseImage,
    UseImage,
    WaitForJob,
    decide,
)
from notebooks_service.settings import Settings

log = logging.getLogger(__name__)

T = TypeVar("T")
Renew = Callable[[], Awaitable[Forge]]
Sleep = Callable[[float], Coroutine[Any, Any, None]]

SLOWEST = 10  # times `image_poll`
LONGEST_PAUSE = 300.0
FIRST_ANSWER = 300.0
LOG_LOOK = 60.0
THREADS = 16


@dataclass(eq=False)
class _Waiter:
    """One launch that waits. ``problem`` ends its wait."""

    forge: Forge
    renew: Renew | None
    refusals: int = 0
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    problem: NotebooksError | None = None
    told: tuple[int, str] | None = None


@dataclass(eq=False)
class _Watch:
    """What all who wait for one commit share. ``facts`` are of the last look that succeeded."""

    project: Project
    commit: Commit
    facts: ImageFacts
    changed_at: float
    waiters: list[_Waiter] = field(default_factory=list)
    task: asyncio.Task[None] | None = None
    success_seen_at: float | None = None
    running: int | None = None
    log_bytes: int = 0
    log_grew_at: float | None = None
    log_read_at: float = 0.0

    def take(self, facts: ImageFacts, now: float) -> None:
        """Remembers a look, and since when things are as they are."""
        if _state(facts) != _state(self.facts):
            self.changed_at = now
        self.facts = facts
        tries = newest_tries(facts.jobs or ())
        if self.success_seen_at is None and any(job.status == "success" for job in tries):
            self.success_seen_at = now
        running = next((job.id for job in tries if job.status == "running"), None)
        if running != self.running:
            self.running, self.log_bytes = running, 0
            self.log_grew_at = self.log_read_at = now


def _view(watch: _Watch | None, facts: ImageFacts, started: float, asked: bool) -> ImageFacts:
    """``facts`` with what only time has shown, for somebody who waits since ``started``."""
    facts = replace(facts, waiting_since=started, asked_to_build=asked)
    if watch is None:
        return facts
    return replace(facts, log_grew_at=watch.log_grew_at, success_seen_at=watch.success_seen_at)


def _state(facts: ImageFacts) -> tuple[Any, ...]:
    return facts.tag, tuple((job.id, job.status) for job in facts.jobs or ())


class ImageWatcher:
    """Answers ``resolve`` for every launch of one hub, on its event loop."""

    def __init__(
        self,
        settings: Settings,
        index: EnvironmentStore | None,
        *,
        clock: Callable[[], float] | None = None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        """``index``: the store of local environments, for the `local` runtime.

        There an image is an environment of this machine: a registry's tag counts if the store has
        its digest, and a tag of the store counts if the registry (of a GitLab elsewhere) has none.
        ``clock`` (seconds since the epoch, which nobody sets back) and ``sleep`` are for tests.
        """
        self._poll_seconds = settings.image_poll
        self._limits = ImageLimits(wait=settings.image_wait, silence=settings.image_silence)
        self._reader = FactReader(settings.image_job, index, on_demand=settings.build_on_demand)
        self._builds: dict[tuple[int, str], asyncio.Task[None]] = {}
        self._clock = clock or steady_clock()
        self._sleep = sleep
        self._watches: dict[tuple[int, str], _Watch] = {}
        # The hub's default pool is small, and a forge that hangs would fill it.
        self._threads = ThreadPoolExecutor(THREADS, "images")

    async def resolve(
        self,
        forge: Forge,
        project: Project,
        commit: Commit,
        on_wait: Callable[[Job], None],
        renew: Renew | None = None,
    ) -> Image:
        """The image of ``commit`` as the owner of ``forge``'s token may see it.

        ``on_wait`` is told the job that is waited for whenever that job or its status changes.
        ``renew`` gives a forge with a fresh token when the old one is refused; without it that ends
        the wait with ``SignInExpired``. A forge that is away is asked again until the limit of the
        wait (five minutes if it has not answered once), then ``ForgeUnavailable``.
        """
        started = self._clock()
        waiter = _Waiter(forge, renew)
        watch: _Watch | None = None
        asked = False
        facts = await self._look(
            waiter, project, commit, started + min(FIRST_ANSWER, self._limits.wait)
        )
        try:
            while True:
                decision = self._decide(_view(watch, facts, started, asked))
                if isinstance(decision, UseImage):
                    return await self._explained(waiter.forge, project, decision.image)
                if isinstance(decision, RefuseImage):
                    raise ImageUnavailable(decision.reason)
                if isinstance(decision, BuildOnDemand):
                    asked = True
                    await self._build(waiter.forge, project, commit)
                else:
                    watch = watch or self._join(waiter, facts, project, commit)
                    await self._wait(watch, waiter, decision, started, asked, on_wait)
                facts = await self._look(waiter, project, commit, started + self._limits.wait)
        finally:
            if watch is not None:
                self._leave(waiter, watch)

    async def _wait(
        self,
        watch: _Watch,
        waiter: _Waiter,
        decision: Decision,
        started: float,
        asked: bool,
        on_wait: Callable[[Job], None],
    ) -> None:
        """Returns when what is polled for all looks like the end of the wait."""
        while isinstance(decision, WaitForJob):
            news = (decision.job.id, decision.job.status)
            if waiter.told != news:
                waiter.told = news
                on_wait(decision.job)
            await waiter.wake.wait()
            waiter.wake.clear()
            if waiter.problem is not None:
                raise waiter.problem
            decision = self._decide(_view(watch, watch.facts, started, asked))

    async def _build(self, forge: Forge, project: Project, commit: Commit) -> None:
        """Have the commit built, once however many ask; the end of one who asked ends it not."""
        key = (project.id, commit.sha)
        task = self._builds.get(key)
        if task is None:
            task = asyncio.create_task(
                have_it_built(self._thread, self._sleep, self._clock, forge, project, commit.sha),
                name=f"build {commit.sha[:8]}",
            )
            self._builds[key] = task
            task.add_done_callback(lambda done: self._builds.pop(key, None))
        await asyncio.shield(task)

    def close(self) -> None:
        """Ends all polling; for the end of the hub."""
        for watch in self._watches.values():
            if watch.task is not None:
                watch.task.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _decide(self, facts: ImageFacts) -> Decision:
        return decide(facts, self._limits, self._clock())

    async def _thread(self, function: Callable[..., T], *arguments: Any) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, function, *arguments)

    async def _look(
        self, waiter: _Waiter, project: Project, commit: Commit, until: float
    ) -> ImageFacts:
        """This person's own facts; patient, ``until`` a time, with a forge that is away."""
        pause = self._poll_seconds
        while True:
            try:
                try:
                    facts = await self._thread(self._reader.read, waiter.forge, project, commit)
                    waiter.refusals = 0
                    return facts
                except SignInExpired:
                    await _renewed(waiter)
            except ForgeUnavailable as error:
                if self._clock() + _pause(error, 0) >= until:
                    raise
                await self._sleep(_pause(error, pause))
                pause = min(pause * 2, SLOWEST * self._poll_seconds)

    async def _explained(self, forge: Forge, project: Project, image: Image) -> Image:
        """``image``, with the telling line of the log if its build has failed."""
        if image.evidence.get("cause") != "failed":
            return image
        job = image.evidence["job"]
        line = await self._thread(self._reader.failure_line, forge, project, job)
        return replace(image, evidence={**image.evidence, "log_line": line}) if line else image

    def _join(self, waiter: _Waiter, facts: ImageFacts, project: Project, commit: Commit) -> _Watch:
        key = (project.id, commit.sha)
        watch = self._watches.get(key)
        if watch is None:
            now = self._clock()
            watch = _Watch(project, commit, facts, changed_at=now)
            watch.take(facts, now)
            self._watches[key] = watch
            watch.task = asyncio.create_task(self._watch(watch), name=f"images {commit.sha[:8]}")
        watch.waiters.append(waiter)
        return watch

    def _leave(self, waiter: _Waiter, watch: _Watch) -> None:
        watch.waiters.remove(waiter)
        if not watch.waiters:
            del self._watches[(watch.project.id, watch.commit.sha)]
            if watch.task is not None:
                watch.task.cancel()

    async def _watch(self, watch: _Watch) -> None:
        """Polls until nobody waits any more."""
        try:
            await self._poll(watch)
        except Exception:
            log.exception("watching for the image of %s failed", watch.commit.sha)
            for waiter in watch.waiters:
                waiter.problem = NotebooksError()
                waiter.wake.set()

    async def _poll(self, watch: _Watch) -> None:
        pause = self._pause_for(watch)
        while True:
            await self._sleep(pause)
            pause = self._pause_for(watch)
            waiter = next((one for one in watch.waiters if one.problem is None), None)
            if waiter is None:
                continue
            try:
                await self._poll_once(watch, waiter)
            except ForgeUnavailable as error:
                pause = _pause(error, pause)
            except NotebooksError as error:
                # Not this one's token: another's, at once.
                waiter.problem = error
                waiter.wake.set()
                pause = 0
                continue
            for one in watch.waiters:
                one.wake.set()

    async def _poll_once(self, watch: _Watch, waiter: _Waiter) -> None:
        try:
            facts = await self._thread(self._reader.read, waiter.forge, watch.project, watch.commit)
            waiter.refusals = 0
            watch.take(facts, self._clock())
            await self._listen(watch, waiter.forge)
        except SignInExpired:
            await _renewed(waiter)

    async def _listen(self, watch: _Watch, forge: Forge) -> None:
        """Notices, about once a minute, whether the running build's log has grown."""
        now = self._clock()
        if watch.running is None or now - watch.log_read_at < min(
            LOG_LOOK, self._limits.silence / 4
        ):
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

    def _pause_for(self, watch: _Watch) -> float:
        """A tenth of the time since anything changed: a long build is noticed 10 % late at most."""
        since = self._clock() - watch.changed_at
        return min(max(since / 10, self._poll_seconds), SLOWEST * self._poll_seconds)


def steady_clock() -> Callable[[], float]:
    """Seconds since the epoch, as it was when this was made: a clock that is set moves no deadline."""
    offset = time.time() - time.monotonic()
    return lambda: offset + time.monotonic()


async def _renewed(waiter: _Waiter) -> None:
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


def _pause(error: ForgeUnavailable, pause: float) -> float:
    """The pause that a forge asks for by ``Retry-After``, five minutes at most."""
    return max(pause, min(float(error.detail.get("retry_after", 0)), LONGEST_PAUSE))

"""The one watcher in the hub: finds a commit's image, or waits for its build or its environment's.

Called by the spawner. Everybody looks with their own token before they wait and again at the end,
so nobody gets an image that is hidden from them; in between one of them polls for all who wait for
the same build. A webhook of the forge may wake it (``forge_says``); what that says is not believed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from notebooks_service.domain import Commit, Image, ImageOrigin, Job, Project
from notebooks_service.errors import (
    ForgeUnavailable,
    ImageUnavailable,
    NotebooksError,
    NotFound,
    SignInExpired,
)
from notebooks_service.gitlab.forge import Forge
from notebooks_service.images.environments import EnvironmentStore
from notebooks_service.images.facts import NO_WISH, FactReader, Progress, Subject, subject_of
from notebooks_service.images.fallback import explained
from notebooks_service.images.kept_names import KeptNames
from notebooks_service.images.known import ImageFacts, Wish, newest_tries
from notebooks_service.images.naming import LocalNamer, Namer, Names
from notebooks_service.images.on_demand import Turns, have_it_built
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
SLOWEST_WITH_WEBHOOK = 60
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
    """What all who wait for one build share. ``progress`` is of the last look that succeeded."""

    project: Project
    subject: Subject
    progress: Progress
    changed_at: float
    nudge: asyncio.Event = field(default_factory=asyncio.Event)
    waiters: list[_Waiter] = field(default_factory=list)
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


@dataclass
class _Search:
    """One launch's search: since when, what it has asked for, what it waits for."""

    project: Project
    commit: Commit
    wish: Wish
    waiter: _Waiter
    started: float
    asked: bool = False
    problem: str = ""
    watch: _Watch | None = None

    def view(self, facts: ImageFacts) -> ImageFacts:
        """``facts`` with what only time has shown."""
        facts = replace(
            facts,
            waiting_since=self.started,
            asked_to_build=self.asked,
            build_problem=self.problem,
        )
        if self.watch is None:
            return facts
        return replace(
            facts,
            log_grew_at=self.watch.log_grew_at,
            success_seen_at=self.watch.success_seen_at,
        )


def _state(progress: Progress) -> tuple[Any, ...]:
    return progress.tag, tuple((job.id, job.status) for job in progress.jobs or ())


class ImageWatcher:
    """Answers ``resolve`` for every launch of one hub, on its event loop."""

    def __init__(
        self,
        settings: Settings,
        index: EnvironmentStore | None,
        *,
        namer: Namer | None = None,
        clock: Callable[[], float] | None = None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        """``index``: the store of local environments, for the `local` runtime.

        There an image is an environment of this machine: a registry's tag counts if the store has
        its digest, and a tag of the store counts if the registry (of a GitLab elsewhere) has none.
        ``namer`` names environments; by default those of the store.
        ``clock`` (seconds since the epoch, which nobody sets back) and ``sleep`` are for tests.
        """
        self._poll_seconds = settings.image_poll
        self._limits = ImageLimits(wait=settings.image_wait, silence=settings.image_silence)
        if namer is None and index is not None:
            namer = LocalNamer(index)
        self._index = index
        self._kept = KeptNames(settings.data / "hub" / "environments.sqlite" if namer else None)
        ci = settings.on_demand_ci_file.read_text() if settings.on_demand_ci_file else ""
        self._reader = FactReader(
            settings.image_job,
            index,
            Names(namer, self._kept),
            on_demand=settings.build_on_demand,
            ci=ci,
        )
        self._turns = Turns(settings.builds_per_project)
        self._builds: dict[tuple[int, str], asyncio.Task[str]] = {}
        self._tagging: set[asyncio.Task[None]] = set()
        self._slowest = (
            SLOWEST_WITH_WEBHOOK if settings.webhook_secret.get_secret_value() else SLOWEST
        )
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
        *,
        wish: Wish = NO_WISH,
        tell: Callable[[str], None] = lambda sentence: None,
    ) -> Image:
        """The image of ``commit`` as the owner of ``forge``'s token may see it.

        ``on_wait`` is told the job that is waited for whenever that job or its status changes;
        ``tell`` whatever else takes its time. ``renew`` gives a forge with a fresh token when the old
        one is refused; without it that ends the wait with ``SignInExpired``. A forge that is away is
        asked again until the limit of the wait (five minutes if it has not answered once), then
        ``ForgeUnavailable``. ``ImageUnavailable`` if what was pinned cannot be had.
        """
        search = _Search(project, commit, wish, _Waiter(forge, renew), self._clock())
        facts = await self._look(search, min(FIRST_ANSWER, self._limits.wait))
        try:
            with self._turns.holding() as take:
                while True:
                    decision = self._decide(search.view(facts))
                    if isinstance(decision, UseImage):
                        image = await self._explained(search.waiter.forge, project, decision.image)
                        self._tag_later(search, image)
                        return image
                    if isinstance(decision, RefuseImage):
                        raise ImageUnavailable(decision.reason)
                    shared = not isinstance(decision, WaitForJob) or decision.of_environment
                    if shared and facts.environment is not None:
                        turn = take((project.id, facts.environment.fingerprint))
                        if isinstance(decision, BuildOnDemand):
                            if turn.acquiring.done():
                                await self._build(search, facts)
                            else:
                                tell("Waiting until other builds of this project have ended.")
                                await asyncio.shield(turn.acquiring)
                    if isinstance(decision, WaitForJob):
                        self._join(search, facts, subject_of(commit, facts, shared=shared))
                        await self._wait(search, facts, decision, on_wait)
                    facts = await self._look(search, self._limits.wait)
        finally:
            self._leave(search)

    async def _wait(
        self,
        search: _Search,
        facts: ImageFacts,
        decision: Decision,
        on_wait: Callable[[Job], None],
    ) -> None:
        """Returns when what is polled for all looks like the end of the wait."""
        watch, waiter = search.watch, search.waiter
        assert watch is not None
        while isinstance(decision, WaitForJob):
            news = (decision.job.id, decision.job.status)
            if waiter.told != news:
                waiter.told = news
                on_wait(decision.job)
            await waiter.wake.wait()
            waiter.wake.clear()
            if waiter.problem is not None:
                raise waiter.problem
            decision = self._decide(search.view(watch.progress.of(watch.subject, facts)))

    async def _build(self, search: _Search, facts: ImageFacts) -> None:
        """Have the environment built, once however many ask; the end of one who asked ends it not."""
        environment = facts.environment
        assert environment is not None and environment.build is not None
        search.asked = True
        key = (search.project.id, environment.fingerprint)
        task = self._builds.get(key)
        if task is None:
            task = asyncio.create_task(
                have_it_built(
                    self._thread,
                    self._sleep,
                    self._clock,
                    search.waiter.forge,
                    search.project,
                    environment.build,
                ),
                name=f"build {environment.fingerprint[:8]}",
            )
            self._builds[key] = task
            task.add_done_callback(lambda done: self._builds.pop(key, None))
        search.problem = await asyncio.shield(task)

    def _tag_later(self, search: _Search, image: Image) -> None:
        """The commit gets its own tag where this person may push; nobody waits for that."""
        fingerprint = image.evidence.get("fingerprint")
        if self._index is None or not fingerprint or image.digest is None:
            return
        if image.origin not in (ImageOrigin.ENVIRONMENT, ImageOrigin.BUILT_ON_DEMAND):
            return
        task = asyncio.create_task(
            self._tag(self._index, search, fingerprint), name=f"tag {search.commit.sha[:8]}"
        )
        self._tagging.add(task)
        task.add_done_callback(self._tagging.discard)

    async def _tag(self, index: EnvironmentStore, search: _Search, fingerprint: str) -> None:
        try:
            if await self._thread(self._reader.may_tag, search.waiter.forge, search.project):
                await self._thread(index.tag, search.project.id, search.commit.sha, fingerprint)
        except (NotebooksError, OSError, RuntimeError) as error:
            log.warning("%s is not tagged: %s", search.commit.sha, type(error).__name__)

    def forge_says(self, project_id: int) -> int:
        """Something happened in a project's CI: look now, not at the next poll. How many looks."""
        found = [watch for key, watch in self._watches.items() if key[0] == project_id]
        for watch in found:
            watch.nudge.set()
        return len(found)

    def close(self) -> None:
        """Ends all polling; for the end of the hub."""
        for watch in self._watches.values():
            if watch.task is not None:
                watch.task.cancel()
        for task in self._tagging:
            task.cancel()
        self._kept.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _decide(self, facts: ImageFacts) -> Decision:
        return decide(facts, self._limits, self._clock())

    async def _thread(self, function: Callable[..., T], *arguments: Any) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, function, *arguments)

    async def _look(self, search: _Search, patience: float) -> ImageFacts:
        """This person's own facts; patient with a forge that is away, so long since they began."""
        pause = self._poll_seconds
        waiter, until = search.waiter, search.started + patience
        while True:
            try:
                try:
                    facts = await self._thread(
                        self._reader.read, waiter.forge, search.project, search.commit, search.wish
                    )
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
        return explained(image, line)

    def _join(self, search: _Search, facts: ImageFacts, subject: Subject) -> None:
        """Wait together with all who wait for the same build."""
        if search.watch is not None and search.watch.subject == subject:
            return
        self._leave(search)
        key = (search.project.id, subject.sha)
        watch = self._watches.get(key)
        if watch is None:
            now = self._clock()
            jobs, tag = facts.jobs, facts.tag
            if subject.fingerprint and facts.environment is not None:
                jobs, tag = facts.environment.jobs, facts.environment.tag
            seen = Progress(tag, jobs)
            watch = _Watch(search.project, subject, seen, changed_at=now)
            watch.take(seen, now)
            self._watches[key] = watch
            watch.task = asyncio.create_task(self._watch(watch), name=f"images {subject.sha[:8]}")
        watch.waiters.append(search.waiter)
        search.watch = watch

    def _leave(self, search: _Search) -> None:
        watch, search.watch = search.watch, None
        if watch is None:
            return
        watch.waiters.remove(search.waiter)
        if not watch.waiters:
            del self._watches[(watch.project.id, watch.subject.sha)]
            if watch.task is not None:
                watch.task.cancel()

    async def _watch(self, watch: _Watch) -> None:
        """Polls until nobody waits any more."""
        try:
            await self._poll(watch)
        except Exception:
            log.exception("watching the build of %s failed", watch.subject.sha)
            for waiter in watch.waiters:
                waiter.problem = NotebooksError()
                waiter.wake.set()

    async def _poll(self, watch: _Watch) -> None:
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
                pause, asked_for = _pause(error, pause), True
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
            seen = await self._thread(
                self._reader.progress, waiter.forge, watch.project, watch.subject
            )
            waiter.refusals = 0
            watch.take(seen, self._clock())
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

    async def _rest(self, watch: _Watch, seconds: float, *, asked_for: bool) -> None:
        """A pause, which a webhook may end: but not one that the forge has ``asked_for``, and a flood
        of what it says gives no flood of looks."""
        least = seconds if asked_for or self._slowest == SLOWEST else self._poll_seconds
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

    def _pause_for(self, watch: _Watch) -> float:
        """A tenth of the time since anything changed: a long build is noticed 10 % late at most.

        Where the forge tells us, we look by ourselves only in case that it does not.
        """
        since = self._clock() - watch.changed_at
        if self._slowest > SLOWEST:
            since *= SLOWEST_WITH_WEBHOOK / SLOWEST
        return min(max(since / 10, self._poll_seconds), self._slowest * self._poll_seconds)


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

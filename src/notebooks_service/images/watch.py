"""The one watcher in the hub: finds a commit's image, or waits for its build or its environment's.

Called by the spawner. Everybody looks with their own token before they wait and again at the end,
so nobody gets an image that is hidden from them; in between one of them polls for all who wait for
the same build (``images/polling.py``).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from notebooks_service.domain import Commit, Image, ImageOrigin, Job, Project
from notebooks_service.errors import (
    BuildsWait,
    ForgeUnavailable,
    ImageUnavailable,
    NotebooksError,
    SignInExpired,
)
from notebooks_service.gitlab.forge import Forge
from notebooks_service.high_water import Gauge, Marks
from notebooks_service.images.base_digests import BaseDigests
from notebooks_service.images.container_naming import ContainerNamer
from notebooks_service.images.environments import EnvironmentStore
from notebooks_service.images.facts import NO_WISH, FactReader, Progress, Subject, subject_of
from notebooks_service.images.fallback import explained
from notebooks_service.images.kept_names import KeptNames
from notebooks_service.images.known import ImageFacts, Wish
from notebooks_service.images.naming import LocalNamer, Namer, Names
from notebooks_service.images.on_demand import Key, Turns, have_it_built
from notebooks_service.images.polling import (
    SLOWEST,
    Polls,
    Renew,
    Sleep,
    Waiter,
    Watch,
    pause_after,
    renewed,
)
from notebooks_service.images.resolve import (
    BuildOnDemand,
    Decision,
    ImageLimits,
    RefuseImage,
    UseImage,
    WaitForJob,
    decide,
)
from notebooks_service.images.sha_tag import SCOPES, tag_commit
from notebooks_service.quotas import Building, BuildQuotas
from notebooks_service.settings import Settings

log = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_ANSWER = 300.0
MOST_ATTEMPTS = 3
"""To have something built by a forge that does not answer; then there is the default image."""
MOST_ASKED = 1000
"""Of the builds that were asked for, how many are remembered."""
THREADS = 16
WAIT_FOR_ROOM = 5.0
"""Seconds between two looks whether a build may begin."""
NARROW_SIGN_IN = (
    "it does not take your sign-in for a push. Sign out of the hub and in again; if that does not help, "
    "the setting `forge_scopes` lacks `write_repository`"
)


@dataclass
class _Search:
    """One launch's search: since when, what it has asked for, what it waits for."""

    project: Project
    commit: Commit
    wish: Wish
    waiter: Waiter
    started: float
    looked: int = 0
    asked: bool = False
    attempts: int = 0
    turned_away: int = 0
    problem: str = ""
    watch: Watch | None = None

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
        gauge: Gauge | None = None,
    ) -> None:
        """``index``: the store of local environments, for the `local` runtime; None where images are
        containers.

        With a store an image is an environment of this machine: a registry's tag counts if the store
        has its digest, and a tag of the store counts if the registry (of a GitLab elsewhere) has none.
        ``namer`` names environments; by default those of the store, or container images.
        ``clock`` (seconds since the epoch, which nobody sets back), ``sleep`` and ``gauge`` are for tests.
        """
        self._poll_seconds = settings.image_poll
        self._limits = ImageLimits(wait=settings.image_wait, silence=settings.image_silence)
        ci = settings.on_demand_ci_file.read_text() if settings.on_demand_ci_file else ""
        self._digests: BaseDigests | None = None
        if namer is None and index is not None:
            namer = LocalNamer(index)
        elif namer is None:
            self._digests = BaseDigests(settings.base_registries, settings.forge_url)
            namer = ContainerNamer(
                settings.image_job,
                self._digests,
                rebuild_after=settings.rebuild_after,
                base=settings.base_image,
                ci=ci,
            )
        self._index = index
        self._may_push_images = not SCOPES.isdisjoint(settings.forge_scopes)
        self._kept = KeptNames(settings.data / "hub" / "environments.sqlite")
        self._reader = FactReader(
            settings.image_job,
            index,
            Names(namer, self._kept),
            on_demand=settings.build_on_demand,
            ci=ci,
        )
        self._turns = Turns(
            BuildQuotas(settings.quotas, settings.builds_per_person, settings.builds_per_project)
        )
        self._gauge = gauge or Gauge(Marks.of(settings))
        self._data = settings.data
        self._builds: dict[Key, asyncio.Task[str]] = {}
        self._asked: dict[Key, int] = {}
        """Which in number a build was that was asked for; who began to look before that has not seen it."""
        self._count = 0
        self._tagging: set[asyncio.Task[None]] = set()
        self._clock = clock or steady_clock()
        self._sleep = sleep
        # The hub's default pool is small, and a forge that hangs would fill it.
        self._threads = ThreadPoolExecutor(THREADS, "images")
        self._polls = Polls(
            self._reader,
            self._thread,
            self._clock,
            sleep,
            least=settings.image_poll,
            silence=settings.image_silence,
            webhook=bool(settings.webhook_secret.get_secret_value()),
        )

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
        person: str = "",
    ) -> Image:
        """The image of ``commit`` as the owner of ``forge``'s token may see it; ``person`` is the hub's name
        for them, by which builds are counted.

        ``on_wait`` is told the job that is waited for whenever that job or its status changes;
        ``tell`` whatever else takes its time. ``renew`` gives a forge with a fresh token when the old
        one is refused; without it that ends the wait with ``SignInExpired``. A forge that is away is
        asked again until the limit of the wait (five minutes if it has not answered once), then
        ``ForgeUnavailable``. ``ImageUnavailable`` if what was pinned cannot be had; ``BuildsWait`` if no
        build could begin in that time.
        """
        search = _Search(project, commit, wish, Waiter(forge, renew), self._clock())
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
                        key = (project.id, facts.environment.fingerprint)
                        turn = take(key, Building(person, project.path))
                        if isinstance(decision, BuildOnDemand):
                            if turn.begun.is_set():
                                await self._wait_for_room(search, tell)
                                await self._build(search, facts)
                            else:
                                tell(f"Waiting until other builds of {turn.held_up} have ended.")
                                await turn.begun.wait()
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

    async def _wait_for_room(self, search: _Search, tell: Callable[[str], None]) -> None:
        """Wait while disk or memory is beyond its mark; ``BuildsWait`` after the longest wait."""
        told = False
        while why := self._gauge.waits(self._data):
            if not told:
                tell(f"{why} This build waits.")
            told = True
            if self._clock() + WAIT_FOR_ROOM >= search.started + self._limits.wait:
                raise BuildsWait(f"This commit's image was not built: {why} Try again then.")
            await self._sleep(WAIT_FOR_ROOM)

    async def _build(self, search: _Search, facts: ImageFacts) -> None:
        """Have the environment built, once however many ask; the end of one who asked ends it not."""
        environment = facts.environment
        assert environment is not None and environment.build is not None
        key = (search.project.id, environment.fingerprint)
        task = self._builds.get(key)
        if task is None and self._asked.get(key, 0) > search.looked:
            return  # it came and went while this one was looking
        search.asked = True
        mine = task is None
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
            task.add_done_callback(lambda done: self._was_asked_for(key))
        try:
            search.problem = await asyncio.shield(task)
        except SignInExpired:
            # The next look renews a sign-in that has ended, or ends the launch. One that is taken
            # there and again not here is too narrow. Who only waited for the build tries it themselves.
            search.turned_away += mine
            search.asked = mine and search.turned_away > 1
            if search.asked:
                search.problem = NARROW_SIGN_IN
        except ForgeUnavailable as error:
            # Away for a moment, or it asks for fewer requests: that is no refusal.
            search.attempts += 1
            pause = pause_after(error, self._poll_seconds)
            late = self._clock() + pause >= search.started + self._limits.wait
            if search.attempts >= MOST_ATTEMPTS or late:
                search.problem = str(error.detail.get("reason") or "it did not answer")
                return
            search.asked = False
            await self._sleep(pause)

    def _was_asked_for(self, key: Key) -> None:
        """Whatever has come of it: who begins to look now will see it."""
        del self._builds[key]
        self._count += 1
        self._asked = {
            each: number
            for each, number in self._asked.items()
            if number > self._count - MOST_ASKED
        }
        self._asked[key] = self._count

    def _tag_later(self, search: _Search, image: Image) -> None:
        """The commit gets its own tag where this person may push; nobody waits for that."""
        fingerprint = image.evidence.get("fingerprint")
        if not fingerprint or image.digest is None or "commit" in image.evidence:
            return
        if image.origin not in (ImageOrigin.ENVIRONMENT, ImageOrigin.BUILT_ON_DEMAND):
            return
        if "moved_to" in image.evidence:
            return  # somebody has moved the tag: theirs stays
        if self._index is None and not self._may_push_images:
            return
        task = asyncio.create_task(
            self._tag(search, image, fingerprint), name=f"tag {search.commit.sha[:8]}"
        )
        self._tagging.add(task)
        task.add_done_callback(self._tagging.discard)

    async def _tag(self, search: _Search, image: Image, fingerprint: str) -> None:
        forge, project, sha = search.waiter.forge, search.project, search.commit.sha
        try:
            if not await self._thread(self._reader.may_tag, forge, project):
                return
            if self._index is not None:
                await self._thread(self._index.tag, project.id, sha, fingerprint)
            else:
                await self._thread(tag_commit, forge, project, sha, image)
        except (NotebooksError, OSError, RuntimeError) as error:
            log.warning("%s is not tagged: %s", sha, type(error).__name__)

    def forge_says(self, project_id: int) -> int:
        """Something happened in a project's CI: look now, not at the next poll. How many looks."""
        return self._polls.forge_says(project_id)

    def close(self) -> None:
        """Ends all polling; for the end of the hub."""
        self._polls.close()
        for task in self._tagging:
            task.cancel()
        self._kept.close()
        if self._digests is not None:
            self._digests.close()
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
                    search.looked = self._count
                    facts = await self._thread(
                        self._reader.read, waiter.forge, search.project, search.commit, search.wish
                    )
                    waiter.refusals = 0
                    return facts
                except SignInExpired:
                    await renewed(waiter)
            except ForgeUnavailable as error:
                if self._clock() + pause_after(error, 0) >= until:
                    raise
                await self._sleep(pause_after(error, pause))
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

        def seen() -> Progress:
            environment = facts.environment
            if subject.fingerprint and environment is not None:
                return Progress(environment.tag, environment.jobs)
            return Progress(facts.tag, facts.jobs)

        search.watch = self._polls.join(search.waiter, search.project, subject, seen)

    def _leave(self, search: _Search) -> None:
        watch, search.watch = search.watch, None
        if watch is not None:
            self._polls.leave(search.waiter, watch)


def steady_clock() -> Callable[[], float]:
    """Seconds since the epoch, as it was when this was made: a clock that is set moves no deadline."""
    offset = time.time() - time.monotonic()
    return lambda: offset + time.monotonic()

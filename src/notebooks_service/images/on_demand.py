"""Has a project's CI build an environment that nobody has built; called by ``images/watch.py``.

A pipeline needs a ref, so a branch is made with the person's own right, at a commit that holds the
environment's files and a CI file (``images/synthetic.py``), and removed as soon as the forge has made
its pipeline of it. GitLab keeps a pipeline's commits by a ref of its own.
https://docs.gitlab.com/ci/pipelines/  https://docs.gitlab.com/ci/troubleshooting/
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from notebooks_service.domain import Project
from notebooks_service.errors import ForgeUnavailable, NotebooksError, NotFound, SignInExpired
from notebooks_service.gitlab.forge import Forge
from notebooks_service.images.synthetic import Synthetic
from notebooks_service.queues import Rounds
from notebooks_service.quotas import Building, BuildQuotas

log = logging.getLogger(__name__)

PATIENCE = 15.0
"""Seconds that a forge may take from a push to its pipeline."""

LOOK = 0.25

Thread = Callable[..., Awaitable[Any]]
Key = tuple[int, str]
"""A project's id and an environment's fingerprint."""


async def have_it_built(
    thread: Thread,
    sleep: Callable[[float], Awaitable[Any]],
    clock: Callable[[], float],
    forge: Forge,
    project: Project,
    build: Synthetic,
) -> str:
    """Return when the build has a new pipeline, or could not get one: then with what the forge said.

    An earlier pipeline of it may have made an image that is gone. ``thread`` runs a blocking call. Whoever
    asked looks again; the decision that follows says what has become of it. Raises ``ForgeUnavailable`` if
    the forge did not say whether it takes the branch, ``SignInExpired`` if it did not take the token.
    """
    try:
        before = await thread(forge.ci.newest_pipeline, project, build.sha)
        await _push(thread, forge, project, build)
    except ForgeUnavailable:
        with suppress(NotebooksError):  # it may have taken it all the same
            await thread(forge.delete_branch, project, build.branch, build.sha)
        raise
    except SignInExpired:
        raise  # says nothing of what this person may do
    except NotebooksError as error:
        log.warning("No build of %s in %s: %s", build.branch, project.path, error.code)
        return str(error.detail.get("reason") or "you may not push there")
    log.info("Building %s in %s on demand", build.branch, project.path)
    try:
        until = clock() + PATIENCE
        newest = forge.ci.newest_pipeline
        while await thread(newest, project, build.sha) <= before and clock() < until:
            await sleep(LOOK)
    except NotebooksError as error:
        log.warning("No news of %s in %s: %s", build.branch, project.path, error.code)
    finally:
        try:
            await thread(forge.delete_branch, project, build.branch, build.sha)
        except NotebooksError as error:
            log.warning(
                "The branch %s of %s is left behind: %s", build.branch, project.path, error.code
            )
    return ""


async def _push(thread: Thread, forge: Forge, project: Project, build: Synthetic) -> None:
    """Make the branch; one that a hub which was killed has left there is made anew."""
    try:
        await thread(forge.create_branch, project, build.branch, build.sha, build.pack)
    except NotFound:
        try:
            await thread(forge.delete_branch, project, build.branch, build.sha)
        except NotebooksError:
            pass
        else:
            await thread(forge.create_branch, project, build.branch, build.sha, build.pack)
            return
        raise


@dataclass(eq=False)
class _Turn:
    """One environment's place among the builds, shared by all who wait for it."""

    build: Building
    since: int
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    waiting: int = 0
    held_up: str = ""
    """Whose builds have to end first."""


class Turns:
    """Builds on demand under way and waiting, each environment once; as many at once as quotas let."""

    def __init__(self, quotas: BuildQuotas) -> None:
        self._quotas = quotas
        self._rounds = Rounds()
        self._turns: dict[Key, _Turn] = {}

    @contextmanager
    def holding(self) -> Iterator[Callable[[Key, Building], _Turn]]:
        """Gives a function that takes a place for a key; it is kept until the ``with`` is left."""
        held: list[Key] = []

        def take(key: Key, build: Building) -> _Turn:
            turn = self._turns.setdefault(key, _Turn(build, self._rounds.now))
            if key not in held:
                held.append(key)
                turn.waiting += 1
            self._advance()
            return turn

        try:
            yield take
        finally:
            for key in held:
                self._leave(key)

    def _leave(self, key: Key) -> None:
        turn = self._turns[key]
        turn.waiting -= 1
        if not turn.waiting:
            del self._turns[key]
            self._advance()

    def _advance(self) -> None:
        """Let begin what may, in fair order; what is held up lets others pass."""
        under_way = [each.build for each in self._turns.values() if each.begun.is_set()]
        waiting = [each for each in self._turns.values() if not each.begun.is_set()]
        order = self._rounds.order(waiting, lambda each: each.build.person, lambda each: each.since)
        for number, turn in order:
            turn.held_up = self._quotas.held_up(under_way, turn.build)
            if not turn.held_up:
                turn.begun.set()
                self._rounds.serve(turn.build.person, number)
                under_way.append(turn.build)

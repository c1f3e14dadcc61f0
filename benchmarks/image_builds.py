"""What a running service builds when every commit of a repository is opened once; used by ``images.py``.

``notebooks up`` serves the repository: forge and runner are real processes. The hub's own resolver
(``images/watch.py``) runs here, over HTTP, with a person's token of the scopes that the hub asks for. It
starts no servers: what is counted are pipelines, jobs, environments and requests.

Installing is left out: the CI file of the builds on demand has a job that makes an environment without
packages where ``notebooks image build`` makes the real one. The runner works out the name and takes it
over as always, so a job that made another environment than its commit's would count as failed.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gitlab
import requests
from launch import notebooks_up, only_project

from notebooks_service.domain import Project
from notebooks_service.forge.administration import Administration
from notebooks_service.gitlab.forge import Forge
from notebooks_service.images.environments import EnvironmentStore
from notebooks_service.images.watch import ImageWatcher
from notebooks_service.platform.directory import DataDirectory
from notebooks_service.settings import Settings

CI_FILE = """\
image_build:
  variables:
    GIT_LFS_SKIP_SMUDGE: "1"
  script:
    - |
      place="$NOTEBOOKS_ENVIRONMENTS/$CI_PROJECT_ID"
      name="${CI_COMMIT_REF_NAME#notebooks/env-}"
      mkdir -p "$place/$name/bin"
      ln -s "$(readlink -f "$(command -v python)")" "$place/$name/bin/python"
      printf '{"kernel": "added"}' >"$place/$name/image.json"
      printf %s "$name" >"$place/.tags/$CI_COMMIT_SHA"
"""
SEED = 4


@dataclass(frozen=True)
class Opened:
    """One commit, resolved. ``requests``: those of its launch to the forge until the image was known,
    but for the two by which every launch asks whether the person may see project and commit.
    ``there``: its environment was, before it was opened."""

    sha: str
    origin: str
    cause: str
    digest: str | None
    there: bool
    requests: int
    seconds: float


class Opening:
    """A person who opens commits of one project, several at once."""

    def __init__(
        self, url: str, token: str, project: str, watcher: ImageWatcher, store: EnvironmentStore
    ) -> None:
        self._url, self._token = url, token
        self._watcher, self._store = watcher, store
        self._asking = Forge(url, token)
        self.project: Project = self._asking.project(project)

    async def every(self, shas: Sequence[str], at_once: int) -> list[Opened]:
        waiting = list(reversed(shas))
        opened: list[Opened] = []

        async def one_after_the_other() -> None:
            while waiting:
                opened.append(await self._open(waiting.pop()))

        await asyncio.gather(*(one_after_the_other() for _ in range(at_once)))
        return opened

    async def _open(self, sha: str) -> Opened:
        commit = await asyncio.to_thread(self._asking.commit, self.project, sha)
        asked = 0

        def count(answer: requests.Response, **more: Any) -> None:
            nonlocal asked
            asked += 1

        session = requests.Session()
        session.hooks["response"] = [count]
        forge = Forge(self._url, self._token, session=session)
        opened, began = time.time(), time.perf_counter()
        image = await self._watcher.resolve(forge, self.project, commit, lambda job: None)
        # At once: the watcher goes on to tag the commit, for which nobody waits.
        spent, needed = time.perf_counter() - began, asked
        fingerprint = str(image.evidence.get("fingerprint", ""))
        environment = self._store.get(self.project.id, fingerprint)
        # Its directory is closed as soon as it is in its place.
        there = environment is not None and environment.path.stat().st_ctime < opened
        cause = str(image.evidence.get("cause", ""))
        return Opened(sha, image.origin.value, cause, image.digest, there, needed, spent)


@dataclass(frozen=True)
class Made:
    """What the forge has of a project's CI and registry."""

    pipelines: int
    jobs: Counter[str]
    environments: int

    @classmethod
    def ask(cls, url: str, token: str, project: int) -> Made:
        api = gitlab.Gitlab(url, oauth_token=token).projects.get(project)
        repositories = api.repositories.list(get_all=True)
        tags = [tag.name for each in repositories for tag in each.tags.list(get_all=True)]
        return cls(
            pipelines=len(api.pipelines.list(get_all=True)),
            jobs=Counter(job.status for job in api.jobs.list(get_all=True)),
            environments=len([name for name in tags if name.startswith("env-")]),
        )


def open_all(repository: Path, shas: Sequence[str], folder: Path, at_once: int) -> dict[str, Any]:
    """Open every commit, then every commit again in another order; the figures."""
    data, ci = folder / "data", folder / "ci.yml"
    ci.write_text(CI_FILE)
    settings = Settings(data=folder / "hub", image_poll=0.25, image_wait=600, on_demand_ci_file=ci)
    with notebooks_up(data, repository) as (hub, hub_token):
        path = only_project(hub, hub_token)
        directory = DataDirectory(data)
        running = directory.running()
        assert running is not None
        administration = Administration(data)
        try:
            owner = directory.owner("").username
            token = administration.personal_token(owner, "benchmark", settings.forge_scopes)
        finally:
            administration.close()
        store = EnvironmentStore(data / "environments")
        return asyncio.run(
            _open_twice(settings, store, running.forge_url, token, path, shas, at_once)
        )


async def _open_twice(
    settings: Settings,
    store: EnvironmentStore,
    url: str,
    token: str,
    project: str,
    shas: Sequence[str],
    at_once: int,
) -> dict[str, Any]:
    watcher = ImageWatcher(settings, store)
    try:
        opening = Opening(url, token, project, watcher, store)
        began = time.perf_counter()
        first = await opening.every(shas, at_once)
        spent = time.perf_counter() - began
        made = await asyncio.to_thread(Made.ask, url, token, opening.project.id)
        again = list(shas)
        random.Random(SEED).shuffle(again)
        second = await opening.every(again, at_once)
        after = await asyncio.to_thread(Made.ask, url, token, opening.project.id)
    finally:
        watcher.close()
    return figures(first, made, second, after) | {"seconds": round(spent, 1)}


def figures(
    first: Sequence[Opened], made: Made, second: Sequence[Opened], after: Made
) -> dict[str, Any]:
    there = [each for each in first if each.there]
    return {
        "opened": len(first),
        "environments": made.environments,
        "pipelines": made.pipelines,
        "jobs": dict(made.jobs),
        "origins": dict(Counter(each.origin for each in first)),
        "origins_there": dict(Counter(each.origin for each in there)),
        "refused": dict(Counter(each.cause for each in first if each.cause)),
        "environment_there": requests_of(there),
        "opened_again": {
            "pipelines": after.pipelines - made.pipelines,
            "jobs": after.jobs.total() - made.jobs.total(),
            "origins": dict(Counter(each.origin for each in second)),
            **requests_of([each for each in second if each.digest is not None]),
        },
    }


def requests_of(opened: Sequence[Opened]) -> dict[str, float]:
    if not opened:
        return {"commits": 0}
    numbers = [each.requests for each in opened]
    return {
        "commits": len(opened),
        "requests_median": statistics.median(numbers),
        "requests_most": max(numbers),
        "milliseconds_median": round(statistics.median(each.seconds for each in opened) * 1000, 1),
    }

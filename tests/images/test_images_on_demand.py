"""A commit that nobody has built: real forge, real runner protocol, once with a real build."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import gitlab
import pytest
import requests
from requests.adapters import HTTPAdapter

from forge_fixtures import ForgeProcess, StartForge, make_repository
from notebooks_service.domain import Commit, Image, ImageOrigin, Job, Project
from notebooks_service.errors import BuildsWait, SignInExpired
from notebooks_service.gitlab.forge import Forge
from notebooks_service.high_water import Gauge, Level
from notebooks_service.images.build import remove_tree
from notebooks_service.images.environments import EnvironmentStore
from notebooks_service.images.polling import Renew
from notebooks_service.images.watch import ImageWatcher
from notebooks_service.settings import Settings
from runner_fixtures import RawRunner, StartRunner

GIB = 2**30


class Place:
    """An imported project (an import runs nothing) and the hub's one watcher."""

    def __init__(self, forge: ForgeProcess, root: Path, *, on_demand: bool = True) -> None:
        self.forge = forge
        self.way: HTTPAdapter | None = None
        self.shas = make_repository(
            root / "thing", {"requirements.txt": "iniconfig==2.0.0\n"}, {"a.txt": "a"}
        )
        self.owner = forge.user()
        self.path = f"{self.owner}/thing"
        forge.project(root / "thing", self.path, self.owner)
        self.store = EnvironmentStore(forge.data / "environments")
        settings = Settings(
            data=root / "data", image_poll=0.1, image_wait=300, build_on_demand=on_demand
        )
        self.watcher = ImageWatcher(settings, self.store)

    def as_person(self, name: str) -> Forge:
        session = requests.Session()
        if self.way is not None:
            session.mount("http://", self.way)
        return Forge(self.forge.url, self.forge.token(name), session=session)

    def member(self, level: str) -> Forge:
        name = self.forge.user()
        self.forge.administration.add_member(self.path, name, level)
        return self.as_person(name)

    async def facts(self, forge: Forge, ref: str = "main") -> tuple[Project, Commit]:
        project = await asyncio.to_thread(forge.project, self.path)
        return project, await asyncio.to_thread(forge.commit, project, ref)

    async def resolve(
        self,
        forge: Forge,
        told: list[Job] | None = None,
        ref: str = "main",
        renew: Renew | None = None,
    ) -> Image:
        project, commit = await self.facts(forge, ref)
        told = [] if told is None else told
        return await self.watcher.resolve(forge, project, commit, told.append, renew)

    async def pipelines(self) -> int:
        """How many pipelines there are in the project, of whatever commit."""
        owner = self.as_person(self.owner)
        found = await asyncio.to_thread(
            lambda: (
                gitlab.Gitlab(self.forge.url, oauth_token=self.forge.token(self.owner))
                .projects.get(self.path)
                .pipelines.list(get_all=True)
            )
        )
        owner.close()
        return len(found)

    async def branches(self) -> list[str]:
        owner = self.as_person(self.owner)
        project, _ = await self.facts(owner)
        return [ref.name for ref in await asyncio.to_thread(owner.branches, project)]


class Refusing(HTTPAdapter):
    """Has a forge take no push the first ``times``: it wants fewer requests, or another token.

    ``ends``: after the first push it takes nothing else either.
    """

    def __init__(self, status: int, times: int, *, ends: bool = False) -> None:
        super().__init__()
        self.ends = ends
        self.status = status
        self.times = times
        self.refused = 0

    def send(self, request: requests.PreparedRequest, *args: Any, **more: Any) -> requests.Response:
        push = str(request.url).endswith("/git-receive-pack")
        if self.refused >= self.times or not (push or (self.ends and self.refused)):
            return super().send(request, *args, **more)
        self.refused += 1
        answer = requests.Response()
        answer.status_code, answer.url, answer.request = self.status, str(request.url), request
        answer.headers["Retry-After"] = "1"
        answer.raw = io.BytesIO()
        return answer


@pytest.fixture
async def place(start_forge: StartForge, tmp_path: Path) -> AsyncIterator[Place]:
    made = Place(start_forge(), tmp_path)
    yield made
    made.watcher.close()


async def test_it_is_built_and_the_next_one_finds_it(
    place: Place, start_runner: StartRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_COMPILE_BYTECODE", "0")  # for the runner's builds
    start_runner(place.forge, "--environments", str(place.store.root))
    told: list[Job] = []
    image = await asyncio.wait_for(place.resolve(place.as_person(place.owner), told), 240)
    assert image.origin is ImageOrigin.BUILT_ON_DEMAND, image
    assert told and told[0].name == "image_build"
    project, commit = await place.facts(place.as_person(place.owner))
    environment = place.store.find(project.id, image.digest or "")
    assert environment is not None
    assert image.evidence["fingerprint"] == environment.fingerprint
    assert image.evidence["inputs"] == ["requirements.txt"]
    assert await place.branches() == ["main"]
    async with asyncio.timeout(20):  # tagged behind the launch
        while place.store.tagged(project.id, commit.sha) != environment:
            await asyncio.sleep(0.02)
    again = await place.resolve(place.member("reporter"))
    assert (again.origin, again.digest) == (ImageOrigin.COMMIT, image.digest)
    # An older commit with the same requirements: no build, no pipeline, no clone, six requests.
    asked: list[str] = []
    session = requests.Session()
    session.hooks["response"] = [lambda answer, **more: asked.append(answer.url)]
    reporter = Forge(place.forge.url, place.forge.token(place.owner), session=session)
    older = await place.resolve(reporter, ref=place.shas[0])
    assert (older.origin, older.digest) == (ImageOrigin.ENVIRONMENT, image.digest)
    # `facts` has asked for the project and the commit; the commit's tag comes behind.
    assert len([url for url in asked[2:] if "/members/" not in url and "/user" not in url]) <= 6
    assert await place.pipelines() == 1
    first = await place.resolve(place.as_person(place.owner), ref=place.shas[0])
    assert first.digest == image.digest
    # Somebody removes all of it: it is built once more, although its job has succeeded before.
    remove_tree(place.store.root / str(project.id))
    anew = await asyncio.wait_for(place.resolve(place.as_person(place.owner)), 240)
    assert anew.origin is ImageOrigin.BUILT_ON_DEMAND, anew
    assert (await place.pipelines(), await place.branches()) == (2, ["main"])


async def test_beyond_a_high_water_mark_no_build_is_asked_for(place: Place) -> None:
    used = [Level(GIB, 20 * GIB), Level(GIB, 20 * GIB), Level(10 * GIB, 20 * GIB)]
    looks: list[float] = []

    async def sleep(seconds: float) -> None:
        if seconds > 1:  # a look at a build is not so long after the last
            looks.append(seconds)
            assert await place.pipelines() == 0
        await asyncio.sleep(0.02)

    def memory() -> Level:
        return used.pop(0) if len(used) > 1 else used[0]

    settings = Settings(data=place.forge.data / "hub", image_poll=0.1, image_wait=300)
    watcher = ImageWatcher(settings, place.store, sleep=sleep, gauge=Gauge(memory=memory))
    owner = place.as_person(place.owner)
    project, commit = await place.facts(owner)
    said: list[str] = []
    try:
        launch = asyncio.create_task(
            watcher.resolve(owner, project, commit, lambda job: None, tell=said.append)
        )
        job = await asyncio.to_thread(RawRunner(place.forge).take)
        assert looks and len(said) == 1
        assert said[0].startswith(
            "The memory of the machine that builds is 95 % full; builds begin"
        )
        await asyncio.to_thread(
            RawRunner(place.forge).put, job, "failed", failure_reason="script_failure"
        )
        assert (await asyncio.wait_for(launch, 60)).origin is ImageOrigin.DEFAULT
    finally:
        watcher.close()


async def test_a_build_that_can_never_begin_ends_the_launch(place: Place) -> None:
    settings = Settings(data=place.forge.data / "hub", image_poll=0.1, image_wait=1)
    full = Gauge(disk=lambda at: Level(1, 100), memory=lambda: None)
    watcher = ImageWatcher(settings, place.store, gauge=full)
    owner = place.as_person(place.owner)
    try:
        with pytest.raises(BuildsWait) as caught:
            await watcher.resolve(owner, *await place.facts(owner), lambda job: None)
    finally:
        watcher.close()
    assert "The disk of the machine that builds is 99 % full" in caught.value.message
    assert await place.pipelines() == 0


async def test_all_who_open_commits_of_one_environment_have_it_built_once(place: Place) -> None:
    place.way = busy = Refusing(429, 1)
    people = [place.as_person(place.owner), place.member("developer"), place.member("maintainer")]
    # Two commits of one environment.
    waiting = [
        asyncio.create_task(place.resolve(one, ref=place.shas[number % 2]))
        for number, one in enumerate(people)
    ]
    job = await asyncio.to_thread(RawRunner(place.forge).take)
    assert await place.pipelines() == 1
    assert busy.refused == 1  # which is no refusal to build
    log = b"resolving\nERROR: no such package\n"
    runner = RawRunner(place.forge)
    await asyncio.to_thread(runner.patch, job, log, 0)
    await asyncio.to_thread(runner.put, job, "failed", failure_reason="script_failure")
    images = await asyncio.wait_for(asyncio.gather(*waiting), 60)
    assert {image.origin for image in images} == {ImageOrigin.DEFAULT}
    assert {image.evidence["cause"] for image in images} == {"failed"}
    assert {image.evidence["log_line"] for image in images} == {"ERROR: no such package"}
    assert await place.pipelines() == 1
    assert await place.branches() == ["main"]
    # It is not tried again by itself, and the reason says what to do: retry the job. That works
    # although its branch is gone, for whoever may push, and the next launch waits for it.
    reporter = place.member("reporter")
    again = await asyncio.wait_for(place.resolve(reporter), 60)
    assert again.reason == images[0].reason and "retry this job at the forge" in again.reason
    name = place.forge.user()
    place.forge.administration.add_member(place.path, name, "developer")
    api = gitlab.Gitlab(place.forge.url, private_token=place.forge.token(name))
    failed = api.projects.get(place.path, lazy=False).jobs.get(again.evidence["job"])
    await asyncio.to_thread(failed.retry)
    told: list[Job] = []
    launch = asyncio.create_task(place.resolve(reporter, told))
    retried = await asyncio.to_thread(runner.take)
    async with asyncio.timeout(60):
        while not any(one.status == "running" for one in told):
            await asyncio.sleep(0.02)
    assert told[-1].id > again.evidence["job"]
    await asyncio.to_thread(runner.put, retried, "failed", failure_reason="script_failure")
    last = await asyncio.wait_for(launch, 60)
    assert last.evidence["job"] == told[-1].id
    assert await place.pipelines() == 1


async def test_a_sign_in_that_ends_before_the_push_is_no_refusal(place: Place) -> None:
    """It ends the launch of who has no other."""

    def person(*, ends: bool) -> Forge:
        place.way = Refusing(401, 1000, ends=ends)
        try:
            return place.as_person(place.owner)
        finally:
            place.way = None

    async def renew() -> Forge:
        return place.as_person(place.owner)

    with pytest.raises(SignInExpired):
        await asyncio.wait_for(place.resolve(person(ends=True)), 60)
    # One that may do all but push says so.
    narrow = await asyncio.wait_for(place.resolve(person(ends=False), renew=renew), 60)
    assert narrow.evidence["cause"] == "build refused"
    assert "take your sign-in for a push" in narrow.reason and "may not" not in narrow.reason
    assert await place.pipelines() == 0
    renewing = asyncio.create_task(place.resolve(person(ends=True), renew=renew))
    runner = RawRunner(place.forge)
    job = await asyncio.to_thread(runner.take)
    await asyncio.to_thread(runner.put, job, "failed", failure_reason="script_failure")
    assert (await asyncio.wait_for(renewing, 60)).evidence["cause"] == "failed"
    assert await place.pipelines() == 1


async def test_who_may_not_push_starts_nothing(place: Place) -> None:
    image = await asyncio.wait_for(place.resolve(place.member("reporter")), 60)
    assert image.evidence["cause"] == "no job"
    assert "may push" in image.reason
    assert await place.pipelines() == 0
    # A commit that no branch holds, as one of a fork: it is there by its sha, and whoever made it
    # may have been anybody. The owner's right does not go to it.
    api = gitlab.Gitlab(place.forge.url, private_token=place.forge.token(place.owner))
    project = api.projects.get(place.path)
    file = {"action": "create", "file_path": "apt.txt", "content": "tree"}
    made = project.commits.create(
        {"branch": "x", "start_branch": "main", "commit_message": "x [skip ci]", "actions": [file]}
    )
    project.branches.delete("x")
    before = await place.pipelines()
    image = await asyncio.wait_for(place.resolve(place.as_person(place.owner), ref=made.id), 60)
    assert image.evidence["cause"] == "no job"
    assert "No branch or tag of this project contains it" in image.reason
    assert await place.pipelines() == before and await place.branches() == ["main"]


async def test_a_configuration_that_cannot_be_read_is_the_reason(place: Place) -> None:
    """For whoever may not build; a build of the environment does without the project's own file."""
    api = gitlab.Gitlab(place.forge.url, private_token=place.forge.token(place.owner))
    api.projects.get(place.path).files.create(
        {
            "file_path": ".gitlab-ci.yml",
            "branch": "main",
            "content": "job: {script: x, needs: [job]}\n",
            "commit_message": "Break it",
        }
    )
    image = await asyncio.wait_for(place.resolve(place.member("reporter")), 60)
    assert image.evidence["cause"] == "config error"
    assert "circular dependencies" in image.reason and "\n" not in image.reason
    assert await place.pipelines() == 1  # the push's own, of a configuration that is none
    assert await place.branches() == ["main"]
    waiting = asyncio.create_task(place.resolve(place.as_person(place.owner)))
    runner = RawRunner(place.forge)
    job = await asyncio.to_thread(runner.take)
    await asyncio.to_thread(runner.put, job, "failed", failure_reason="script_failure")
    assert (await asyncio.wait_for(waiting, 60)).evidence["cause"] == "failed"
    assert await place.pipelines() == 2


async def test_the_setting_turns_it_off(start_forge: StartForge, tmp_path: Path) -> None:
    place = Place(start_forge(), tmp_path, on_demand=False)
    image = await asyncio.wait_for(place.resolve(place.as_person(place.owner)), 60)
    assert image.evidence["cause"] == "no job"
    assert await place.pipelines() == 0
    place.watcher.close()


async def test_a_launch_that_is_cancelled_leaves_no_branch(place: Place) -> None:
    task = asyncio.create_task(place.resolve(place.as_person(place.owner)))
    async with asyncio.timeout(60):
        while await place.pipelines() == 0:
            await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(60):
        while await place.branches() != ["main"]:
            await asyncio.sleep(0.05)
    image = asyncio.create_task(place.resolve(place.as_person(place.owner)))
    runner = RawRunner(place.forge)
    job = await asyncio.to_thread(runner.take)
    await asyncio.to_thread(runner.put, job, "failed", failure_reason="script_failure")
    assert (await asyncio.wait_for(image, 60)).evidence["cause"] == "failed"
    assert await place.pipelines() == 1

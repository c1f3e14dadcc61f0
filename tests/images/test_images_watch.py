"""The one watcher per commit, against a scripted GitLab and a clock that is wound by the tests."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from notebooks_service.domain import Commit, Image, ImageOrigin, Job, Project
from notebooks_service.errors import ForgeUnavailable, NotebooksError, SignInExpired
from notebooks_service.gitlab.forge import Forge
from notebooks_service.images.watch import ImageWatcher, steady_clock
from notebooks_service.settings import Settings
from scripted_gitlab import Answer, Asked, ScriptedGitLab

SHA = "1" * 40
PROJECT = Project(5, "g/p", "p", "main", "private", "")
COMMIT = Commit(SHA, "t", "m", "a", "a@b", "")
API = "/api/v4/projects/5"


class Clock:
    """Time goes on only by sleeping; each sleep lets everything else run."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0
        self.slept: list[float] = []
        self.tick = 0.0
        self.runs = asyncio.Event()
        self.runs.set()

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        await self.runs.wait()
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(self.tick)


class Stage:
    """One commit of one project at a forge, whose state a test changes as time goes by."""

    def __init__(self, gitlab: ScriptedGitLab, data: Path) -> None:
        self.gitlab = gitlab
        self.data = data
        self.clock = Clock()
        self.jobs: list[dict[str, Any]] = []
        self.tagged = False
        self.log = b""
        self.away: Answer | None = None
        self.once: tuple[Answer, Callable[[], None]] | None = None
        self.asked_at: list[float] = []
        self.refusals: list[int] = []
        self.refused: set[str] = set()
        self.blind: set[str] = set()
        self.plan: list[tuple[int, Callable[[], None]]] = []
        self.reads = 0
        self.tokens: list[str] = []
        settings = Settings(data=data, image_poll=1, image_wait=600, image_silence=300)
        self.watcher = ImageWatcher(settings, None, clock=self.clock, sleep=self.clock.sleep)
        gitlab.answers[f"GET {API}/registry/repositories"] = self.ask(
            lambda token: [] if token in self.blind else [{"id": 2, "path": "g/p"}]
        )
        gitlab.answers[f"GET {API}/registry/repositories/2/tags/{SHA}"] = self.ask(self.tag)
        gitlab.answers[f"GET {API}/pipelines"] = self.ask(
            lambda token: None if token in self.blind else [{"id": 1}], counts=True
        )
        gitlab.answers[f"GET {API}/pipelines/1/jobs"] = self.ask(lambda token: self.jobs)

    def tag(self, token: str) -> Any:
        visible = self.tagged and token not in self.blind
        return {"location": f"r/g/p:{SHA}", "digest": "sha256:1"} if visible else None

    def ask(self, body: Callable[[str], Any], *, counts: bool = False) -> Callable[[Asked], Answer]:
        def answer(asked: Asked) -> Answer:
            token = asked.headers["Authorization"].removeprefix("Bearer ")
            self.asked_at.append(self.clock.now)
            if counts:
                self.reads += 1
                self.tokens.append(token)
                while self.plan and self.plan[0][0] <= self.reads:
                    self.plan.pop(0)[1]()
            if self.away is not None or self.once is not None:
                self.refusals.append(len(self.asked_at))
            if self.once is not None:
                (refusal, change), self.once = self.once, None
                change()
                return refusal
            if self.away is not None:
                return self.away
            headers = {"Content-Type": "application/json"}
            if token in self.refused:
                return 401, headers, b'{"error":"invalid_token"}'
            found = body(token)
            if found is None:
                return 404, headers, b'{"message":"404 Not found"}'
            return 200, headers, json.dumps(found).encode()

        return answer

    def job(self, status: str, number: int = 1, **more: Any) -> None:
        row = {"id": number, "name": "image_build", "status": status, "pipeline": {"id": 1}, **more}
        self.jobs = [row, *(one for one in self.jobs if one["id"] != number)]

    def after(self, reads: int, *changes: Callable[[], None]) -> None:
        """``changes`` happen just before the forge is looked at for the ``reads``-th time."""
        self.plan += [(reads, change) for change in changes]

    def forge(self, token: str = "ada") -> Forge:
        return Forge(self.gitlab.url, token, timeout=5)

    def resolve(self, token: str = "ada", **more: Any) -> asyncio.Task[Image]:
        told = more.pop("told", [])
        call = self.watcher.resolve(self.forge(token), PROJECT, COMMIT, told.append, **more)
        return asyncio.create_task(call)


@pytest.fixture
async def stage(gitlab: ScriptedGitLab, tmp_path: Path) -> AsyncIterator[Stage]:
    made = Stage(gitlab, tmp_path)
    yield made
    made.watcher.close()


async def ends(task: asyncio.Task[Image]) -> Image:
    return await asyncio.wait_for(task, 60)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_tag_that_is_there_needs_no_look_at_the_jobs(stage: Stage) -> None:
    stage.tagged = True
    image = await ends(stage.resolve())
    assert (image.origin, image.digest) == (ImageOrigin.COMMIT, "sha256:1")
    assert stage.reads == 0
    assert len(stage.gitlab.asked) == 3  # its files (for a pin), the registry, the tag


async def test_waits_for_a_build_and_tells_each_change_once(stage: Stage) -> None:
    stage.job("pending")
    stage.after(3, lambda: stage.job("running"))
    stage.after(6, lambda: setattr(stage, "tagged", True), lambda: stage.job("success"))
    told: list[Job] = []
    image = await ends(stage.resolve(told=told))
    assert image.origin is ImageOrigin.COMMIT
    assert [(job.id, job.status) for job in told] == [(1, "pending"), (1, "running")]


async def test_a_retried_job_is_followed_by_its_new_id(stage: Stage) -> None:
    stage.job("running")
    stage.after(3, lambda: (stage.job("failed"), stage.job("pending", 2)))  # type: ignore[arg-type, return-value]
    stage.after(5, lambda: setattr(stage, "tagged", True), lambda: stage.job("success", 2))
    told: list[Job] = []
    assert (await ends(stage.resolve(told=told))).origin is ImageOrigin.COMMIT
    assert [(job.id, job.status) for job in told] == [(1, "running"), (2, "pending")]


async def test_a_failed_build_gives_the_default_with_the_telling_line(stage: Stage) -> None:
    stage.job("running")
    stage.after(3, lambda: stage.job("failed", failure_reason="script_failure"))
    stage.gitlab.raw(
        f"GET {API}/jobs/1/trace",
        200,
        b"section_start:1:x\r\x1b[0KResolving\n\x1b[31m[ 1.2 s] ERROR: no version of six\x1b[0m\n"
        b"ERROR: Job failed: exit code 1\n",
    )
    image = await ends(stage.resolve())
    assert image.origin is ImageOrigin.DEFAULT
    assert image.evidence["log_line"] == "ERROR: no version of six"
    assert image.reason.endswith(
        "failed: its script ended with an error. Its log says: no version of six."
    )


async def test_a_success_whose_tag_comes_a_little_later(stage: Stage) -> None:
    stage.job("running")
    stage.after(3, lambda: stage.job("success"))
    stage.after(5, lambda: setattr(stage, "tagged", True))
    assert (await ends(stage.resolve())).origin is ImageOrigin.COMMIT


async def test_a_success_whose_tag_never_comes(stage: Stage) -> None:
    stage.job("running")
    stage.after(3, lambda: stage.job("success"))
    image = await ends(stage.resolve())
    assert image.evidence["cause"] == "image gone"
    assert sum(stage.clock.slept) < 30


async def test_many_who_wait_share_one_poll(stage: Stage) -> None:
    stage.job("running")
    stage.after(60, lambda: setattr(stage, "tagged", True), lambda: stage.job("success"))
    stage.clock.runs.clear()
    tasks = [stage.resolve(f"person{number}") for number in range(30)]
    await until(lambda: stage.reads == 30)
    stage.clock.runs.set()
    images = await asyncio.wait_for(asyncio.gather(*tasks), 30)
    assert {image.digest for image in images} == {"sha256:1"}
    # Each looks once for themselves; all further looks are one person's.
    assert len(set(stage.tokens)) == 30
    assert len(stage.tokens) == 60


async def test_one_who_leaves_stops_nobody_and_leaves_at_once(stage: Stage) -> None:
    stage.job("running")
    release = asyncio.Event()
    leaving, staying = stage.resolve("ada"), stage.resolve("bob")
    await until(lambda: {"ada", "bob"} <= set(stage.tokens) and stage.reads > 3)
    before = asyncio.get_running_loop().time()
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert asyncio.get_running_loop().time() - before < 0.2
    release.set()
    stage.tagged = True
    assert (await ends(staying)).origin is ImageOrigin.COMMIT


async def test_one_who_leaves_while_the_forge_hangs_leaves_at_once(stage: Stage) -> None:
    release = threading.Event()
    asked = threading.Event()

    def hang(request: Asked) -> Answer:
        asked.set()
        release.wait(10)
        return 200, {"Content-Type": "application/json"}, b"[]"

    stage.gitlab.answers[f"GET {API}/registry/repositories"] = hang
    task = stage.resolve()
    try:
        await until(asked.is_set)
        before = asyncio.get_running_loop().time()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.get_running_loop().time() - before < 0.2
    finally:
        release.set()


async def test_nobody_waits_nobody_polls(stage: Stage) -> None:
    stage.job("running")
    task = stage.resolve()
    await until(lambda: stage.reads > 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    stage.clock.runs.clear()
    await asyncio.sleep(0.1)
    names = {one.get_name() for one in asyncio.all_tasks()}
    assert not any(name.startswith("images ") for name in names)


async def test_another_token_polls_when_one_is_refused(stage: Stage) -> None:
    stage.job("running")
    # The clock of this test runs through the whole wait in an instant: it stands until both wait.
    stage.clock.runs.clear()
    told: list[Job] = []
    first = stage.resolve("ada", told=told)
    await until(lambda: len(told) == 1)
    second = stage.resolve("bob", told=told)
    await until(lambda: len(told) == 2)
    first.add_done_callback(lambda _: setattr(stage, "tagged", True))
    stage.refused = {"ada"}
    stage.clock.runs.set()
    with pytest.raises(SignInExpired):
        await ends(first)
    assert (await ends(second)).origin is ImageOrigin.COMMIT


async def test_a_token_is_renewed_in_the_middle_of_a_wait(stage: Stage) -> None:
    stage.job("running")
    asked: list[str] = []

    async def renew() -> Forge:
        asked.append("renew")
        return stage.forge("ada-2")

    task = stage.resolve("ada", renew=renew)
    await until(lambda: stage.reads > 2)
    stage.refused = {"ada"}
    await until(lambda: "ada-2" in stage.tokens)
    stage.tagged = True
    assert (await ends(task)).origin is ImageOrigin.COMMIT
    assert asked == ["renew"]


async def test_a_token_that_renewing_does_not_help(stage: Stage) -> None:
    stage.refused = {"ada"}

    async def renew() -> Forge:
        raise SignInExpired

    with pytest.raises(SignInExpired):
        await ends(stage.resolve("ada", renew=renew))


async def test_a_forge_that_is_away_for_a_while_fails_nobody(stage: Stage) -> None:
    stage.job("running")
    told: list[Job] = []
    task = stage.resolve(told=told)
    await until(lambda: stage.reads > 2)
    stage.away = (503, {}, b"")
    gone = stage.clock.now
    await until(lambda: stage.clock.now > gone + 60)
    assert not task.done()
    stage.away, stage.tagged = None, True
    assert (await ends(task)).origin is ImageOrigin.COMMIT
    assert len(told) == 1


async def test_a_forge_that_is_away_from_the_beginning(stage: Stage) -> None:
    stage.away = (502, {}, b"")
    stage.after(1, lambda: None)
    task = stage.resolve()
    with pytest.raises(ForgeUnavailable):
        await ends(task)
    assert 250 < sum(stage.clock.slept) < 400


async def test_a_forge_that_stays_away_ends_the_wait_at_its_limit(stage: Stage) -> None:
    stage.job("running")
    task = stage.resolve()
    await until(lambda: stage.reads > 2)
    stage.away = (503, {}, b"")
    with pytest.raises(ForgeUnavailable):
        await ends(task)
    assert 580 < sum(stage.clock.slept) < 640


@pytest.mark.parametrize("pause", [45, 450])
async def test_retry_after_is_respected(stage: Stage, pause: int) -> None:
    """Also one that is longer than we let a sleep be."""
    stage.job("running")
    task = stage.resolve()
    await until(lambda: stage.reads > 2)
    stage.once = (429, {"Retry-After": str(pause)}, b"{}"), lambda: setattr(stage, "tagged", True)
    assert (await ends(task)).origin is ImageOrigin.COMMIT
    (refused,) = stage.refusals
    assert stage.asked_at[refused] - stage.asked_at[refused - 1] >= pause


async def test_a_long_pause_that_a_forge_asks_for_ends_no_later_than_the_wait(stage: Stage) -> None:
    stage.job("pending")
    task = stage.resolve()
    await until(lambda: stage.reads > 2)
    stage.clock.tick = 0.002  # it runs on while the forge is asked at the end: seconds to spare
    stage.away = 429, {"Retry-After": "999999"}, b"{}"
    with pytest.raises(ForgeUnavailable):
        await ends(task)
    assert max(stage.clock.slept) <= 300
    first, second = stage.refusals  # the second at the end
    assert 580 < stage.asked_at[second - 1] - stage.asked_at[first - 1] < 900_000


async def test_the_wait_has_a_limit(stage: Stage) -> None:
    stage.job("pending")
    stage.clock.tick = 0.02  # it runs on while the forge is asked at the end
    image = await ends(stage.resolve())
    assert image.evidence["cause"] == "timed out"
    assert 600 <= sum(stage.clock.slept) <= 700


async def test_polling_grows_to_ten_times_its_pause_and_no_further(stage: Stage) -> None:
    stage.job("pending")
    await ends(stage.resolve())
    assert stage.clock.slept[0] == 1
    assert max(stage.clock.slept) == 10
    assert stage.reads < 120


async def test_a_silent_log_is_noticed_and_a_talking_one_is_not(stage: Stage) -> None:
    stage.job("running")
    lines = {"until": stage.clock.now + 150}

    def trace(asked: Asked) -> Answer:
        talking = min(stage.clock.now, lines["until"])
        return 200, {}, b"." * int(talking - 1_799_999_999)

    stage.gitlab.answers[f"GET {API}/jobs/1/trace"] = trace
    image = await ends(stage.resolve())
    assert image.evidence["cause"] == "silent"
    waited = sum(stage.clock.slept)
    assert 150 + 240 < waited < 150 + 300 + 80


async def test_somebody_who_may_not_see_the_image_never_learns_of_it(stage: Stage) -> None:
    stage.job("running")
    stage.blind = {"eve"}
    told: list[Job] = []
    waiting = stage.resolve("ada")
    await until(lambda: stage.reads > 1)
    image = await ends(stage.resolve("eve", told=told))
    assert image.evidence == {"cause": "hidden"}
    assert told == []
    stage.tagged = True
    assert (await ends(waiting)).origin is ImageOrigin.COMMIT


async def test_somebody_who_loses_the_right_while_they_wait_is_not_given_the_image(
    stage: Stage,
) -> None:
    stage.job("running")
    first, second = stage.resolve("ada"), stage.resolve("eve")
    await until(lambda: {"ada", "eve"} <= set(stage.tokens))
    stage.blind, stage.tagged = {"eve"}, True
    assert (await ends(first)).origin is ImageOrigin.COMMIT
    assert (await ends(second)).origin is ImageOrigin.DEFAULT


async def test_an_error_of_whom_is_told_ends_only_their_wait(stage: Stage) -> None:
    stage.job("running")

    def explode(job: Job) -> None:
        raise NotebooksError("told")

    bad = asyncio.create_task(stage.watcher.resolve(stage.forge(), PROJECT, COMMIT, explode))
    good = stage.resolve("bob")
    with pytest.raises(NotebooksError, match="told"):
        await ends(bad)
    stage.tagged = True
    assert (await ends(good)).origin is ImageOrigin.COMMIT


async def test_a_token_that_is_refused_again_ends_the_wait(stage: Stage) -> None:
    """Revoked at the forge while the hub's clock says that it is good: no asking for ever."""
    stage.refused = {"ada", "fresh"}
    asked = 0

    async def renew() -> Forge:
        nonlocal asked
        asked += 1
        return stage.forge("fresh")

    with pytest.raises(SignInExpired):
        await ends(stage.resolve(renew=renew))
    assert asked == 1
    stage.refused = {"ada"}
    stage.job("pending")
    stage.after(4, lambda: stage.refused.add("fresh"))
    asked = 0
    with pytest.raises(SignInExpired):
        await ends(stage.resolve(renew=renew))
    assert asked in (1, 2)


async def test_no_pause_that_a_forge_asks_for_outlasts_the_wait(stage: Stage) -> None:
    stage.away = 429, {"Retry-After": "3000"}, b"{}"
    with pytest.raises(ForgeUnavailable):
        await ends(stage.resolve())
    assert sum(stage.clock.slept) <= 300


async def test_a_clock_that_is_set_moves_no_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    now = steady_clock()
    before = now()
    real = time.time
    for hours in (-5, 5):
        monkeypatch.setattr(time, "time", lambda: real() + hours * 3600)  # noqa: B023
        assert 0 <= now() - before < 30


async def test_a_webhook_saves_the_waiting_for_the_next_look_and_is_not_believed(
    stage: Stage,
) -> None:
    """Between two looks it sleeps for good here: only what the forge says ends that."""
    never = asyncio.Event()

    async def sleep(seconds: float) -> None:
        if seconds > 1:
            await never.wait()
        stage.clock.now += seconds
        await asyncio.sleep(0)

    settings = Settings(data=stage.data, image_poll=1, image_wait=600, webhook_secret="s")
    stage.watcher = ImageWatcher(settings, None, clock=stage.clock, sleep=sleep)
    stage.job("pending")
    task = stage.resolve()
    stage.clock.now += 100
    await until(lambda: stage.watcher.forge_says(5) == 1)
    before = stage.reads
    for _ in range(50):  # replayed: nothing has happened
        assert stage.watcher.forge_says(5) == 1
        assert stage.watcher.forge_says(6) == 0
    await until(lambda: stage.reads > before)
    assert stage.reads <= before + 3 and not task.done()
    stage.tagged = True
    async with asyncio.timeout(20):
        while not task.done():
            stage.watcher.forge_says(5)
            await asyncio.sleep(0.01)
    assert task.result().origin is ImageOrigin.COMMIT


async def test_no_webhook_cuts_a_pause_short_that_the_forge_asks_for(stage: Stage) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        stage.clock.now += seconds
        stage.watcher.forge_says(5)
        await asyncio.sleep(0)

    settings = Settings(data=stage.data, image_poll=1, image_wait=600, webhook_secret="s")
    stage.watcher = ImageWatcher(settings, None, clock=stage.clock, sleep=sleep)
    stage.job("pending")
    task = stage.resolve()
    await until(lambda: stage.reads > 2)
    stage.away = (429, {"Retry-After": "45"}, b"{}")
    await until(lambda: 45.0 in slept)
    stage.away, stage.tagged = None, True
    assert (await ends(task)).origin is ImageOrigin.COMMIT


async def test_a_registry_of_a_base_that_is_away_is_waited_for(stage: Stage) -> None:
    """Not counted as one that does not tell: that would be another name, and another image."""
    host = stage.gitlab.url.removeprefix("http://")
    dockerfile = f"FROM {host}/lib/base:1\n".encode()
    digest = "sha256:" + "d" * 64
    row = {"path": "Dockerfile", "name": "Dockerfile", "mode": "100644", "id": "a" * 40}
    stage.gitlab.json(f"GET {API}/repository/tree", [{**row, "type": "blob"}])
    stage.gitlab.raw(f"GET {API}/repository/blobs/{'a' * 40}/raw", 200, dockerfile)
    settings = Settings(
        data=stage.data, image_poll=1, base_registries=(host,), build_on_demand=False
    )
    stage.watcher = ImageWatcher(settings, None, clock=stage.clock, sleep=stage.clock.sleep)
    base = "HEAD /v2/lib/base/manifests/1"
    stage.gitlab.raw(base, 500, b"")
    with pytest.raises(ForgeUnavailable, match=f"The registry {host} does not say"):
        await ends(stage.resolve())
    assert sum(stage.clock.slept) >= 200
    before = len(stage.clock.slept)
    task = stage.resolve()
    await until(lambda: len(stage.clock.slept) > before)
    stage.gitlab.raw(base, 200, b"", Docker_Content_Digest=digest)
    image = await ends(task)
    assert image.evidence["bases"] == [f"{host}/lib/base:1@{digest}"]

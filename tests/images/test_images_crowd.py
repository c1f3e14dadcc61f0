"""A hundred people open a hundred commits of one environment: GitLab's API without a network."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import requests
from images_files import PROJECT, SHA, MemoryGitLab

from notebooks_service.domain import Commit, Image, ImageOrigin
from notebooks_service.gitlab.forge import Forge
from notebooks_service.images.environments import EnvironmentStore
from notebooks_service.images.watch import ImageWatcher
from notebooks_service.settings import Settings

CROWD = 100
SLOW = "f" * 40
API = "/api/v4/projects/1"
JOB = {"id": 7, "name": "image_build", "pipeline": {"id": 1}}


class BusyGitLab(MemoryGitLab):
    """One project whose commits have the same files; the second push to it makes the one pipeline.

    What is asked is counted by the token that it is asked with.
    """

    def __init__(self) -> None:
        super().__init__({"requirements.txt": b"six\n"})
        self.pushes: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()
        self.built = ""
        self.status = "running"
        self._lock = threading.Lock()
        self.slow = ""
        """Whose answers on pipelines of other commits than their own arrive late: when ``arrive`` is set."""
        self.late, self.arrive = threading.Event(), threading.Event()

    def send(self, request: requests.PreparedRequest, **more: Any) -> requests.Response:
        parts = urlsplit(str(request.url))
        path, query = parts.path.removeprefix(API), parse_qs(parts.query)
        with self._lock:
            if path.endswith("/git-receive-pack"):
                self.pushes["asked"] += 1
                if self.pushes["asked"] == 1:
                    return answered(request, b"", 401)  # the first one's sign-in has just ended
                return answered(request, self._push(bytes(request.body or b"")))
            token = str(request.headers["Authorization"]).removeprefix("Bearer ")
            self.asked[token] += 1
            if path == "/repository/tree":
                request.url = str(request.url).replace(query["ref"][0], SHA)
            body = self._body(path, query, token)
        if token == self.slow and path == "/pipelines" and query["sha"] != [SLOW]:
            self.late.set()
            assert self.arrive.wait(60)
        return super().send(request, **more) if body is None else answered(request, body)

    def _body(self, path: str, query: dict[str, list[str]], token: str) -> bytes | None:
        built = self.built and query.get("sha") == [self.built]
        found: Any = {
            "/pipelines": [{"id": 1}] if built else [],
            "/pipelines/1/jobs": [{**JOB, "status": self.status}],
            "/pipelines/1/bridges": [],
            "/registry/repositories": [],
            "/api/v4/user": {"id": 1, "username": token},
            "/members/all/1": {"access_level": 30},
        }.get(path)
        if path.endswith("/refs"):
            found = [{"type": "branch", "name": "main"}]
        if path == "/jobs/7/trace":
            return b"ERROR: no such package\n"
        return None if found is None else json.dumps(found).encode()

    def _push(self, body: bytes) -> bytes:
        _, new, ref = body[4:].partition(b"\0")[0].decode().split(" ")
        removed = new == "0" * 40
        self.pushes["removed" if removed else "made"] += 1
        if not removed:
            self.built = new
        line = f"ok {ref}\n".encode()
        return b"000eunpack ok\n" + f"{len(line) + 4:04x}".encode() + line + b"0000"

    def forge(self, name: str) -> Forge:
        session = requests.Session()
        session.mount("https://", self)
        return Forge("https://gitlab.example.org", name, session=session)


def answered(
    request: requests.PreparedRequest, body: bytes, status: int = 200
) -> requests.Response:
    answer = requests.Response()
    answer.status_code, answer.url, answer.request = status, str(request.url), request
    answer.raw = io.BytesIO(body)
    return answer


async def test_a_hundred_people_and_a_hundred_commits_are_one_build(tmp_path: Path) -> None:
    gitlab = BusyGitLab()
    settings = Settings(data=tmp_path, image_poll=0.05, image_wait=300)
    watcher = ImageWatcher(settings, EnvironmentStore(tmp_path / "environments"))
    told: set[int] = set()

    async def launch(number: int) -> Image:
        commit = Commit(f"{number:040x}", "x", "x", "a", "a@b", "")
        forge = gitlab.forge(f"person{number}")
        return await watcher.resolve(forge, PROJECT, commit, lambda job: told.add(number))

    launches = [asyncio.create_task(launch(number)) for number in range(1, CROWD + 1)]
    async with asyncio.timeout(60):
        while len(told) < CROWD:
            assert not any(one.done() for one in launches)
            await asyncio.sleep(0.01)
    gitlab.status = "failed"
    images = await asyncio.wait_for(asyncio.gather(*launches), 60)
    watcher.close()
    assert gitlab.pushes == {"asked": 3, "made": 1, "removed": 1}
    assert {image.origin for image in images} == {ImageOrigin.DEFAULT}
    assert {image.evidence["log_line"] for image in images} == {"ERROR: no such package"}
    assert set(gitlab.asked) == {f"person{number}" for number in range(1, CROWD + 1)}


async def test_who_looked_before_a_build_began_asks_for_no_second(tmp_path: Path) -> None:
    gitlab = BusyGitLab()
    gitlab.slow = "late"
    settings = Settings(data=tmp_path, image_poll=0.05, image_wait=300)
    watcher = ImageWatcher(settings, EnvironmentStore(tmp_path / "environments"))
    told = {"early": asyncio.Event(), "late": asyncio.Event()}

    def launch(name: str, sha: str) -> asyncio.Task[Image]:
        commit = Commit(sha, "x", "x", "a", "a@b", "")
        loop = asyncio.get_running_loop()
        tell = told[name].set
        resolving = watcher.resolve(
            gitlab.forge(name), PROJECT, commit, lambda job: loop.call_soon_threadsafe(tell)
        )
        return asyncio.create_task(resolving)

    late = launch("late", SLOW)
    await asyncio.to_thread(gitlab.late.wait, 60)
    early = launch("early", "1" * 40)
    await asyncio.wait_for(told["early"].wait(), 60)
    gitlab.arrive.set()
    await asyncio.wait_for(told["late"].wait(), 60)
    gitlab.status = "failed"
    images = await asyncio.wait_for(asyncio.gather(early, late), 60)
    watcher.close()
    assert gitlab.pushes["made"] == 1
    assert {image.origin for image in images} == {ImageOrigin.DEFAULT}

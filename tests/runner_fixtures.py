"""Real runner processes against a real forge, and the API of that forge through python-gitlab."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import gitlab
import httpx
import pytest

from forge_fixtures import ForgeProcess, make_repository, run_git

T = TypeVar("T")
UNDER_WAY = ("created", "pending", "running")


def until(look: Callable[[], T | None], what: str, seconds: float = 90) -> T:
    """What ``look`` gives as soon as it gives something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = look()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"{what} did not happen within {seconds} seconds")


class RunnerProcess:
    """A runner with a data directory of its own (its builds are there)."""

    def __init__(self, forge: ForgeProcess, data: Path, *arguments: str, token: str = "") -> None:
        self.data = data
        self.forge = forge
        data.mkdir(parents=True, exist_ok=True)
        self.token_file = data / "token"
        self.token_file.write_text(token or forge.administration.runner_token())
        self.arguments = arguments
        self.log = data / "runner.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "notebooks_service.runner", "--url", self.forge.url]
        command += ["--token-file", str(self.token_file), "--data", str(self.data)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *self.arguments], stdout=log, stderr=log, start_new_session=True
            )

    def stop(self, number: int = signal.SIGTERM) -> int | None:
        if self.process is None:
            return None
        if self.process.poll() is None:
            self.process.send_signal(number)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        code, self.process = self.process.returncode, None
        return code

    @property
    def builds(self) -> list[Path]:
        return list((self.data / "runner" / "builds").glob("*"))


class RawRunner:
    """A runner made of bare requests, to look at the protocol itself."""

    def __init__(self, forge: ForgeProcess, token: str | None = None) -> None:
        self.token = token or forge.administration.runner_token()
        self.http = httpx.Client(base_url=f"{forge.url}/api/v4", timeout=30, trust_env=False)

    def request(self, **more: Any) -> httpx.Response:
        return self.http.post("/jobs/request", json={"token": self.token, **more})

    def take(self) -> dict[str, Any]:
        """The next job; there has to be one."""

        def look() -> dict[str, Any] | None:
            response = self.request()
            assert response.status_code in (201, 204), response.text
            return response.json() if response.status_code == 201 else None

        return until(look, "a job for the runner")

    def patch(self, job: dict[str, Any], data: bytes, start: int) -> httpx.Response:
        headers = {"JOB-TOKEN": job["token"], "Content-Range": f"{start}-{start + len(data)}"}
        return self.http.patch(f"/jobs/{job['id']}/trace", content=data, headers=headers)

    def put(self, job: dict[str, Any], state: str, **more: Any) -> httpx.Response:
        body = {"token": job["token"], "state": state, **more}
        return self.http.put(f"/jobs/{job['id']}", json=body)


StartRunner = Callable[..., RunnerProcess]


@pytest.fixture
def start_runner(tmp_path: Path) -> Iterator[StartRunner]:
    started: list[RunnerProcess] = []

    def start(forge: ForgeProcess, *arguments: str, token: str = "") -> RunnerProcess:
        runner = RunnerProcess(forge, tmp_path / f"runner{len(started)}", *arguments, token=token)
        started.append(runner)
        runner.start()
        return runner

    yield start
    for runner in started:
        runner.stop()


class Workspace:
    """A project with a clone to push from; ``api`` is its owner's python-gitlab project."""

    def __init__(self, forge: ForgeProcess, root: Path, path: str = "") -> None:
        self.forge = forge
        self.username = forge.user()
        self.token = forge.token(self.username)
        self.path = path or f"{self.username}/thing"
        root.mkdir(parents=True, exist_ok=True)
        self.clone = root / self.username
        source = root / f"{self.username}-source"
        make_repository(source, {"README.md": "# Thing\n"})
        self.id = forge.project(source, self.path, self.username)
        run_git(
            "clone", "--quiet", forge.git_url(self.path, self.username, self.token), str(self.clone)
        )
        self.gitlab = gitlab.Gitlab(forge.url, private_token=self.token)
        self.api = self.gitlab.projects.get(self.id)

    def push(
        self,
        ci: str | None = None,
        *,
        branch: str = "main",
        message: str = "Change",
        options: tuple[str, ...] = (),
        files: dict[str, str] | None = None,
    ) -> str:
        """Commits (a ``.gitlab-ci.yml`` if given) and pushes; the tip's sha."""
        files = dict(files or {})
        if ci is not None:
            files[".gitlab-ci.yml"] = ci
        files.setdefault("counter", str(time.monotonic_ns()))
        run_git("checkout", "--quiet", "-B", branch, cwd=self.clone)
        for name, content in files.items():
            (self.clone / name).parent.mkdir(parents=True, exist_ok=True)
            (self.clone / name).write_text(content)
        run_git("add", "--all", cwd=self.clone)
        run_git("commit", "--quiet", "-m", message, cwd=self.clone)
        flags = [f"--push-option={option}" for option in options]
        run_git("push", "--quiet", *flags, "origin", branch, cwd=self.clone)
        return run_git("rev-parse", "HEAD", cwd=self.clone).strip()

    def pipelines(self, **filters: Any) -> list[Any]:
        return list(self.api.pipelines.list(get_all=True, **filters))

    def pipeline(self, sha: str) -> Any:
        found = self.pipelines(sha=sha)
        assert len(found) == 1, found
        return self.api.pipelines.get(found[0].id)

    def job(self, sha: str, name: str = "job") -> Any:
        """The newest try of a job."""
        jobs = self.pipeline(sha).jobs.list(get_all=True)
        found = [job for job in jobs if job.name == name]
        assert len(found) == 1, jobs
        return self.api.jobs.get(found[0].id)

    def ended(self, sha: str, name: str = "job", seconds: float = 90) -> Any:
        """The job once it is neither waiting nor running."""

        job = self.job(sha, name)

        def look() -> Any:
            nonlocal job
            if self.api.jobs.get(job.id).status in UNDER_WAY:
                return None
            # A failure may have led to another try.
            job = self.job(sha, name)
            return None if job.status in UNDER_WAY else job

        return until(look, f"the end of job {name}", seconds)

    def reached(self, job_id: int, *statuses: str, seconds: float = 90) -> Any:
        def look() -> Any:
            job = self.api.jobs.get(job_id)
            return job if job.status in statuses else None

        return until(look, f"status {statuses} of job {job_id}", seconds)

    def trace(self, job_id: int) -> str:
        return bytes(self.api.jobs.get(job_id, lazy=True).trace()).decode()


@pytest.fixture(scope="module")
def ci_forge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForgeProcess]:
    """A forge for one module: no other module's jobs wait there."""
    started = ForgeProcess(tmp_path_factory.mktemp("ci-forge"))
    try:
        started.start()
        yield started
    finally:
        started.stop()
        started.administration.close()


@pytest.fixture
def workspace(ci_forge: ForgeProcess, tmp_path: Path) -> Workspace:
    return Workspace(ci_forge, tmp_path)

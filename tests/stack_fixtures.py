"""The whole stack for tests: a real ``notebooks up`` on data of its own, and ways to talk to it.

The fixture ``stack`` is one running platform for the whole session; ``new_stack`` starts further
ones for tests that break theirs. Other rooms' whole-stack tests use both.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
import pytest

from notebooks_service import origins
from notebooks_service.forge.administration import Administration
from notebooks_service.platform.directory import PARTS, DataDirectory, RunningPlatform
from notebooks_service.platform.processes import ProcessId
from notebooks_service.platform.signin import hub_token, signed_in
from ports import free_port

START_SECONDS = 240
SERVICE = "services/notebooks/"
BROWSER = {"Accept": "text/html,*/*;q=0.8"}
"""What tells the service that a browser asks: it is sent to sign in, a script gets a 401."""
UNCOMPILED = {"UV_COMPILE_BYTECODE": "0"}
"""Most of what a build costs, and a kernel of a few lines needs little of it. Compiled environments
have tests of their own, in ``tests/images``."""
T = TypeVar("T")


def wait_for(condition: Callable[[], T], seconds: float = 90, every: float = 0.1) -> T:
    """What ``condition`` answers, as soon as that is true; fails after ``seconds``."""
    deadline = time.monotonic() + seconds
    while True:
        answer = condition()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"waited {seconds} s in vain, last: {answer!r}"
        time.sleep(every)


def free_ports() -> int:
    """A port that is free and whose successor, the forge's, is free too."""
    return free_port(2)


@dataclass
class Stack:
    """One platform: its process, its addresses, its people."""

    data: Path
    port: int = field(default_factory=free_ports)
    arguments: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[str] | None = None
    ready_url: str = ""
    _clients: dict[str, httpx.Client] = field(default_factory=dict)
    _tokens: dict[str, str] = field(default_factory=dict)

    @property
    def hub_url(self) -> str:
        """The public base URL, ending with a slash."""
        return f"http://127.0.0.1:{self.port}/"

    @property
    def service_url(self) -> str:
        return f"{self.hub_url}{SERVICE}"

    def server_url(self, name: str, user: str | None = None) -> str:
        """Where a browser opens somebody's (the owner's) server; ends with a slash."""
        running = self.running
        return origins.server_url(
            running.hub_url, user or self.owner, name, subdomains=running.subdomains
        )

    @property
    def forge_url(self) -> str:
        return f"http://127.0.0.1:{self.port + 1}"

    @property
    def directory(self) -> DataDirectory:
        return DataDirectory(self.data.resolve())

    @property
    def owner(self) -> str:
        return self.directory.owner("").username

    @property
    def running(self) -> RunningPlatform:
        running = self.directory.running()
        assert running is not None, "the platform does not run"
        return running

    def start(self, *repositories: str | Path) -> Stack:
        """Start `notebooks up` and wait for its `Ready:` line."""
        command = [sys.executable, "-m", "notebooks_service", "up", *map(str, repositories)]
        command += ["--no-browser", "--port", str(self.port), "--data", str(self.data)]
        self.data.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *self.arguments],
                env={**os.environ, **UNCOMPILED, **self.environment},
                stdout=subprocess.PIPE,
                stderr=log,
                stdin=subprocess.DEVNULL,
                text=True,
                # Ctrl-C in the terminal is for pytest; it stops us in good order.
                start_new_session=True,
            )
        guard = threading.Timer(START_SECONDS, self.process.kill)
        guard.start()
        try:
            assert self.process.stdout is not None
            line = self.process.stdout.readline()
        finally:
            guard.cancel()
        assert line.startswith("Ready: "), f"no Ready line but {line!r}; it said:\n{self.said()}"
        self.ready_url = line.removeprefix("Ready: ").strip()
        return self

    def stop(self, number: signal.Signals = signal.SIGINT, seconds: float = 90) -> int:
        """Send a signal and wait for the end; the exit code."""
        for client in self._clients.values():
            client.close()
        self._clients.clear()
        self._tokens.clear()
        if self.process is None:
            return 0
        self.process.send_signal(number)
        try:
            return self.process.wait(seconds)
        finally:
            self.process.kill()
            if self.process.stdout:
                self.process.stdout.close()
            self.process = None

    @property
    def log(self) -> Path:
        return self.data.parent / f"{self.data.name}.stderr"

    def said(self) -> str:
        """What `notebooks up` said on stderr, and the ends of its parts' logs."""
        said = [self.log.read_text()]
        for path in sorted((self.data / "logs").glob("*.log")):
            lines = path.read_text(errors="replace").splitlines()[-15:]
            said.append("\n".join([f"-- {path.name}", *lines]))
        return "\n".join(said)

    def part(self, name: str) -> psutil.Process:
        """The process of one part: proxy, forge, service, hub or runner."""
        known = ProcessId.read(self.data / "run" / f"{name}.json")
        process = known.find() if known else None
        assert process is not None, f"{name} does not run"
        return process

    def parts(self) -> list[psutil.Process]:
        found = []
        for name in PARTS:
            known = ProcessId.read(self.data / "run" / f"{name}.json")
            process = known.find() if known else None
            if process:
                found.append(process)
        return found

    def processes(self) -> list[psutil.Process]:
        """Every living process that names our data in its command line, environment or directory."""
        mark = str(self.data.resolve())
        found = []
        for process in psutil.process_iter():
            try:
                if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                facts = [*process.cmdline(), *process.environ().values(), process.cwd()]
            except (psutil.Error, OSError):
                continue
            if any(fact == mark or f"{mark}/" in fact for fact in facts):
                found.append(process)
        return found

    def server_process(self, name: str, server: str) -> psutil.Process:
        """The process of somebody's JupyterLab itself, behind its wall."""
        return next(
            process
            for process in self.processes()
            if "singleuser" in " ".join(process.cmdline())
            and "launcher.py" not in " ".join(process.cmdline())
            and f"/servers/{name}/{server}" in process.environ().get("HOME", "")
        )

    def inside(
        self, name: str, server: str, *command: str, seconds: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as a terminal of that server does: behind its wall, with its environment."""
        process = self.server_process(name, server)
        work = next((self.data / "servers" / name / server / "work").iterdir())
        start: list[str] = []
        if os.getuid() == 0:
            numbers = [str(process.uids().real), str(process.gids().real)]
            start = ["nsenter", "--target", str(process.pid), "--mount", "--pid", "--ipc", "--"]
            if process.uids().real != 0:
                start += ["setpriv", "--reuid", numbers[0], "--regid", numbers[1]]
                start += ["--clear-groups", "--no-new-privs", "--bounding-set=-all"]
            start += ["env", "-C", str(work)]
        return subprocess.run(
            [*start, *command],
            cwd=None if start else work,
            env=process.environ(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
        )

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run another `notebooks` command on this data."""
        command = [sys.executable, "-m", "notebooks_service", *arguments, "--data", str(self.data)]
        return subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, **self.environment}
        )

    def administration(self) -> Administration:
        """The forge's administration; close it."""
        return Administration(self.data)

    def add_user(self, name: str) -> str:
        """A person at the forge; returns their name."""
        administration = self.administration()
        try:
            administration.add_user(name)
        finally:
            administration.close()
        return name

    def client(self, name: str | None = None) -> httpx.Client:
        """A browser without a screen: signed in at forge, hub and service as ``name`` (the owner)."""
        name = name or self.owner
        if name not in self._clients:
            administration = self.administration()
            try:
                self._clients[name] = signed_in(administration, self.running, name)
            finally:
                administration.close()
        return self._clients[name]

    def token(self, name: str | None = None) -> str:
        """A hub token for scripts of ``name`` (the owner), as `notebooks token` makes it."""
        name = name or self.owner
        if name not in self._tokens:
            self._tokens[name] = hub_token(self.directory, self.running, name)
        return self._tokens[name]

    def api(self, method: str, path: str, name: str | None = None, **more: Any) -> httpx.Response:
        """Call the service's API at ``path`` (relative) with the token of ``name`` (the owner)."""
        headers = {"Authorization": f"Bearer {self.token(name)}", **more.pop("headers", {})}
        return httpx.request(
            method,
            f"{self.service_url}{path}",
            headers=headers,
            timeout=more.pop("timeout", 60),
            trust_env=False,
            **more,
        )

    def hub_api(
        self, method: str, path: str, name: str | None = None, **more: Any
    ) -> httpx.Response:
        """Call the hub's own API at ``path`` (relative to ``hub/api/``) with the token of ``name``."""
        return httpx.request(
            method,
            f"{self.hub_url}hub/api/{path}",
            headers={"Authorization": f"token {self.token(name)}"},
            timeout=60,
            trust_env=False,
            **more,
        )

    def commits(self, project: str | None = None) -> list[str]:
        """The commit ids of a project (the sample) on its default branch, newest first."""
        name = project or f"{self.owner}/nile"
        administration = self.administration()
        try:
            token = administration.personal_token(self.owner, "tests", ["api"])
        finally:
            administration.close()
        answer = httpx.get(
            f"{self.forge_url}/api/v4/projects/{name.replace('/', '%2F')}/repository/commits",
            params={"per_page": 100},
            headers={"PRIVATE-TOKEN": token},
            trust_env=False,
        )
        answer.raise_for_status()
        return [commit["id"] for commit in answer.json()]


NewStack = Callable[..., Stack]


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One running platform for the whole session, with the sample project. Leave it usable."""
    made = Stack(tmp_path_factory.mktemp("stack") / "data")
    try:
        yield made.start()
    finally:
        made.stop()


@pytest.fixture
def new_stack(tmp_path: Path) -> Iterator[NewStack]:
    """Makes stacks (not started) whose processes all end with the test."""
    made: list[Stack] = []

    def make(name: str = "data", **more: Any) -> Stack:
        made.append(Stack(tmp_path / name, **more))
        return made[-1]

    yield make
    for one in made:
        one.stop()
        for process in one.processes():
            process.kill()

"""A real embedded forge as a process, for every room's tests: the fixtures ``forge`` and ``start_forge``."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import psutil
import pytest

from notebooks_service.errors import Conflict
from notebooks_service.forge.administration import Administration
from ports import free_port

_numbers = itertools.count(1)


def run_git(
    *arguments: str, cwd: Path | None = None, check: bool = True, stdin: Path | None = None
) -> str:
    """git with no configuration of this machine; a fixed author; returns what it prints."""
    done = subprocess.run(
        ["git", *arguments],
        cwd=cwd,
        input=stdin.read_text() if stdin else None,
        capture_output=True,
        text=True,
        timeout=120,
        env={
            "PATH": os.environ["PATH"],
            "HOME": os.devnull,
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_AUTHOR_NAME": "Ada",
            "GIT_AUTHOR_EMAIL": "ada@example.org",
            "GIT_COMMITTER_NAME": "Ada",
            "GIT_COMMITTER_EMAIL": "ada@example.org",
        },
    )
    if check and done.returncode:
        raise AssertionError(f"git {arguments[0]} failed: {done.stderr}")
    return done.stdout + ("" if check else done.stderr)


def make_repository(path: Path, *commits: dict[str, str], branch: str = "main") -> list[str]:
    """A repository with one commit for each ``{file: content}``; returns their full shas, oldest first."""
    if not (path / ".git").exists():
        path.mkdir(parents=True, exist_ok=True)
        run_git("init", "--quiet", f"--initial-branch={branch}", str(path))
    shas = []
    for number, files in enumerate(commits or ({"README.md": "# Test\n"},), 1):
        for name, content in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_text(content)
        run_git("add", "--all", cwd=path)
        run_git("commit", "--quiet", "--allow-empty", "-m", f"Commit {number}", cwd=path)
        shas.append(run_git("rev-parse", "HEAD", cwd=path).strip())
    return shas


def living(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those that have not ended; between two looks at one it may be gone altogether."""
    found = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


class ForgeProcess:
    """The forge of one test: ``url``, ``data`` (the service's data directory), ``administration``."""

    def __init__(
        self, data: Path, *, token_lifetime: int | None = None, arguments: Sequence[str] = ()
    ) -> None:
        self.data = data
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.token_lifetime = token_lifetime
        self.arguments = arguments
        self.administration = Administration(data)
        self.log = data / "logs" / "forge.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *, deadline: float = 90) -> None:
        """Start it (again) on the same port and wait until it answers."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "notebooks_service.forge", "--data", str(self.data)]
        command += ["--port", str(self.port), "--url", self.url]
        if self.token_lifetime is not None:
            command += ["--oauth-token-lifetime", str(self.token_lifetime)]
        command += self.arguments
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        end = time.monotonic() + deadline
        while time.monotonic() < end:
            if self.process.poll() is not None:
                break
            try:
                with urlopen(f"{self.url}/-/health", timeout=2):
                    return
            except (URLError, OSError):
                time.sleep(0.05)
        raise AssertionError(f"The forge did not start:\n{self.log.read_text()}")

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(number)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process = None

    # What tests need of people and projects.

    def user(self, username: str | None = None, *, admin: bool = False) -> str:
        """A person, new unless there is one of this name; returns the name (a fresh one if none is given)."""
        username = username or f"person{next(_numbers)}"
        with suppress(Conflict):
            self.administration.add_user(username, username.title(), f"{username}@example.org")
        if admin:
            self.administration.ensure_owner(username, username, f"{username}@example.org")
        return username

    def token(self, username: str, *scopes: str) -> str:
        """A personal token of this person, ``api`` and ``write_repository`` unless said otherwise."""
        return self.administration.personal_token(
            username, "test", scopes or ("api", "write_repository")
        )

    def project(
        self,
        source: Path,
        path: str,
        owner: str,
        *,
        visibility: str = "private",
    ) -> int:
        """Import a local repository as ``path`` (``owner/name`` or ``group/sub/name``); returns its id."""
        result = self.administration.import_repository(source, path, visibility, owner)
        return result.project_id

    def git_url(self, path: str, username: str, token: str) -> str:
        """The address of a project with credentials in it, for git in tests."""
        return f"http://{username}:{token}@127.0.0.1:{self.port}/{path}.git"


StartForge = Callable[..., ForgeProcess]


@pytest.fixture
def start_forge(tmp_path: Path) -> Iterator[StartForge]:
    """``start_forge(token_lifetime=…)`` starts a forge of one's own, to stop and start at will."""
    started: list[ForgeProcess] = []

    def start(
        *,
        token_lifetime: int | None = None,
        data: Path | None = None,
        arguments: Sequence[str] = (),
    ) -> ForgeProcess:
        forge = ForgeProcess(
            data or tmp_path / f"forge{len(started)}",
            token_lifetime=token_lifetime,
            arguments=arguments,
        )
        started.append(forge)
        forge.start()
        return forge

    yield start
    for forge in started:
        forge.stop()
        forge.administration.close()


@pytest.fixture(scope="session")
def forge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForgeProcess]:
    """One running forge for the whole run: make people and projects of your own names in it."""
    started = ForgeProcess(tmp_path_factory.mktemp("forge"))
    try:
        started.start()
        yield started
    finally:
        started.stop()
        started.administration.close()

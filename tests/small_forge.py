"""A small git server for tests, with rules that change while it runs, and git to act on it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ports import free_port

PROGRAM = Path(__file__).with_name("small_forge_program.py")


def wait_until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """The first true value of ``condition``; fails the test after ``seconds``."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            pytest.fail(f"still not true after {seconds} s: {condition}")
        time.sleep(0.02)


@contextmanager
def running(
    program: Path, port: int, log: Path, *arguments: str, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A Python program as a process that listens on ``port``."""
    command = [sys.executable, str(program), *arguments]
    with running_command(command, port, log, **environment) as process:
        yield process


@contextmanager
def running_command(
    command: list[str], port: int, log: Path, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Any command as a process that listens on ``port``."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
        )

    def listens() -> bool:
        assert process.poll() is None, f"{command} ended:\n{log.read_text()[-3000:]}"
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_until(listens)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def running_small_forge(directory: Path) -> Iterator[SmallForgeProcess]:
    port = free_port()
    small = SmallForgeProcess(directory, port)
    with running(PROGRAM, port, directory / "forge.log", str(directory), str(port)):
        yield small


class SmallForgeProcess:
    """The rules and the notes of a ``gateway_small_forge.py``."""

    def __init__(self, directory: Path, port: int) -> None:
        self.directory = directory
        self.url = f"http://127.0.0.1:{port}"
        self.rules: dict[str, Any] = {"tokens": {}}
        self.save()

    def save(self, **changes: Any) -> None:
        """Change rules; a rule of None goes."""
        self.rules.update(changes)
        fresh = self.directory / "rules.new"
        fresh.write_text(json.dumps({k: v for k, v in self.rules.items() if v is not None}))
        fresh.rename(self.directory / "rules.json")

    def allow(self, token: str, project: str, right: str = "write") -> None:
        self.save(tokens={**self.rules["tokens"], token: {project: right}})

    def requests(self) -> list[dict[str, Any]]:
        file = self.directory / "requests.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def repository(self, project: str) -> Path:
        """A bare repository that accepts pushes."""
        path = self.directory / f"{project}.git"
        git("init", "-q", "--bare", "--initial-branch=main", str(path))
        git("config", "http.receivepack", "true", cwd=path)
        return path


def git_environment(home: Path | None = None, **more: str) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home or "/nonexistent"),
        "LC_ALL": "C.UTF-8",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_AUTHOR_NAME": "Ada",
        "GIT_AUTHOR_EMAIL": "ada@example.org",
        "GIT_COMMITTER_NAME": "Ada",
        "GIT_COMMITTER_EMAIL": "ada@example.org",
        **more,
    }


def try_git(
    *arguments: str, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["git", *arguments],
        cwd=cwd,
        env=git_environment(**environment),
        capture_output=True,
        text=True,
        timeout=120,
    )


def git(*arguments: str, cwd: Path | None = None, **environment: str) -> str:
    done = try_git(*arguments, cwd=cwd, **environment)
    assert done.returncode == 0, f"git {arguments}: {done.stdout}{done.stderr}"
    return done.stdout.strip()

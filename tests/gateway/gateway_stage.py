"""What the gateway's tests act on: a project at a forge, a server at a hub, the gateway between."""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway_real_hub import CLIENT, HERE, RealHub, free_port, wait_until

from notebooks_service.domain import LaunchRecord
from notebooks_service.gateway.hub import HubClient

_numbers = itertools.count(1)


@contextmanager
def running(
    name: str, port: int, log: Path, *arguments: str, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """One of this directory's programs as a process that listens on ``port``."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, str(HERE / name), *arguments],
            env={**os.environ, **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
        )

    def listens() -> bool:
        assert process.poll() is None, f"{name} ended:\n{log.read_text()[-3000:]}"
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_until(listens, 30)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def running_gateway(hub: RealHub, forge_url: str, log: Path) -> Iterator[GatewayProcess]:
    port = free_port()
    with running(
        "gateway_process.py",
        port,
        log,
        str(port),
        JUPYTERHUB_API_URL=hub.api_url,
        JUPYTERHUB_API_TOKEN=hub.service_token,
        NOTEBOOKS_FORGE_URL=forge_url,
    ) as process:
        yield GatewayProcess(f"http://127.0.0.1:{port}/services/notebooks/git", process.pid, log)


@dataclass
class GatewayProcess:
    url: str
    pid: int
    log: Path

    def log_lines(self) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if "gateway.app:git " in line]


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


async def launch(
    hub: RealHub, user: str, forge_token: str, project: str, project_id: int = 7
) -> tuple[str, str]:
    """Start a server of this project; returns its name and its hub token."""
    server = f"s{next(_numbers)}"
    record = LaunchRecord(
        id="0123456789ab",
        project_id=project_id,
        project_path=project,
        commit="a" * 40,
        branch="main",
        requested_at="2026-01-01T00:00:00Z",
    )
    token = hub.user(user, forge_token)
    client = HubClient(hub.api_url, hub.service_token)
    try:
        await client.start_server(token, user, server, server, {"record": record.to_dict()})
    finally:
        await client.aclose()
    return server, hub.server_token(user, server)


async def stop(hub: RealHub, user: str, forge_token: str, server: str) -> None:
    """Stop a server, and wait until the hub has done so."""
    client = HubClient(hub.api_url, hub.service_token)
    try:
        await client.stop_server(hub.user(user, forge_token), user, server)
    finally:
        await client.aclose()

    def stopped() -> bool:
        answer = CLIENT.get(
            f"{hub.api_url}/users/{user}",
            headers={"Authorization": f"token {hub.service_token}"},
        )
        return server not in answer.json()["servers"]

    wait_until(stopped)

"""The whole way of git, without the rest: clone.py → gateway → the embedded forge, with a real hub."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from gateway_real_hub import RealHub
from gateway_stage import GatewayProcess, launch, running_gateway

import notebooks_service
from forge_fixtures import ForgeProcess, StartForge, make_repository
from small_forge import git

PROGRAMS = Path(notebooks_service.__file__).parent / "singleuser"
PROJECT = "gateway/sub/thing"


@pytest.fixture(scope="module")
def project(forge: ForgeProcess, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, list[str]]:
    """The id and the shas of a private project's commits: carol owns it, bob may only report."""
    source = tmp_path_factory.mktemp("source") / "thing"
    shas = make_repository(source, {"a.txt": "1\n"}, {"a.txt": "2\n"})
    for name in ("carol", "bob", "ada"):
        forge.user(name)
    project_id = forge.project(source, PROJECT, "carol")
    forge.administration.add_member(PROJECT, "bob", "reporter")
    return project_id, shas


@pytest.fixture(scope="module")
def gateway(
    real_hub: RealHub, forge: ForgeProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    log = tmp_path_factory.mktemp("gateway") / "gateway.log"
    with running_gateway(real_hub, forge.url, log) as process:
        yield process


def server_environment(
    directory: Path, forge_url: str, gateway: GatewayProcess, token: str, sha: str
) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(directory),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": str(directory / "gitconfig"),
        "GIT_TERMINAL_PROMPT": "0",
        "NOTEBOOKS_WORK_DIR": str(directory / "work"),
        "NOTEBOOKS_FORGE_URL": forge_url,
        "NOTEBOOKS_GATEWAY_URL": f"{gateway.url}/",
        "NOTEBOOKS_PROJECT": PROJECT,
        "NOTEBOOKS_PROJECT_ID": "1",
        "NOTEBOOKS_COMMIT": sha,
        "NOTEBOOKS_BRANCH": "main",
        "NOTEBOOKS_AUTHOR_NAME": "Carol",
        "NOTEBOOKS_AUTHOR_EMAIL": "carol@example.org",
        "JUPYTERHUB_USER": "carol",
        "JUPYTERHUB_API_TOKEN": token,
    }


def clone(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", str(PROGRAMS / "clone.py")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def act(
    environment: dict[str, str], *arguments: str, check: bool = True
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        ["git", *arguments],
        cwd=Path(environment["NOTEBOOKS_WORK_DIR"]) / "thing",
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert not check or done.returncode == 0, done.stderr
    return done


async def test_a_member_clones_and_pushes(
    real_hub: RealHub,
    forge: ForgeProcess,
    gateway: GatewayProcess,
    project: tuple[int, list[str]],
    tmp_path: Path,
) -> None:
    forge_token = forge.token("carol")
    _, token = await launch(real_hub, "carol", forge_token, PROJECT, project[0])
    environment = server_environment(tmp_path, forge.url, gateway, token, project[1][-1])
    cloned = clone(environment)
    assert cloned.returncode == 0, cloned.stderr
    assert act(environment, "remote", "get-url", "--push", "origin").stdout.startswith(gateway.url)
    act(environment, "commit", "-q", "--allow-empty", "-m", "From a server")
    act(environment, "push", "-q")
    head = act(environment, "rev-parse", "HEAD").stdout.strip()
    address = forge.git_url(PROJECT, "carol", forge_token)
    assert git("ls-remote", address, "refs/heads/main").split()[0] == head
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or forge_token.encode() not in path.read_bytes(), path
    log = gateway.log.read_text()
    assert forge_token not in log
    assert token not in log


async def test_a_reporter_clones_and_reads_why_not_to_push(
    real_hub: RealHub,
    forge: ForgeProcess,
    gateway: GatewayProcess,
    project: tuple[int, list[str]],
    tmp_path: Path,
) -> None:
    _, token = await launch(real_hub, "bob", forge.token("bob"), PROJECT, project[0])
    environment = server_environment(tmp_path, forge.url, gateway, token, project[1][0])
    assert clone(environment).returncode == 0
    act(environment, "commit", "-q", "--allow-empty", "-m", "Mine")
    refused = act(environment, "push", check=False)
    assert refused.returncode != 0
    assert "remote: You are not allowed to push code" in refused.stderr


async def test_somebody_who_may_not_see_it(
    real_hub: RealHub,
    forge: ForgeProcess,
    gateway: GatewayProcess,
    project: tuple[int, list[str]],
    tmp_path: Path,
) -> None:
    _, token = await launch(real_hub, "ada", forge.token("ada"), PROJECT, project[0])
    done = clone(server_environment(tmp_path, forge.url, gateway, token, project[1][0]))
    assert done.returncode == 13
    assert '"error": "not_found"' in done.stdout


async def test_a_forge_that_is_away_and_comes_back(
    real_hub: RealHub, start_forge: StartForge, tmp_path: Path
) -> None:
    own = start_forge()
    shas = make_repository(tmp_path / "source", {"a.txt": "1\n"})
    own.user("carol")
    project_id = own.project(tmp_path / "source", PROJECT, "carol")
    _, token = await launch(real_hub, "carol", own.token("carol"), PROJECT, project_id)
    with running_gateway(real_hub, own.url, tmp_path / "gateway.log") as gateway:
        environment = server_environment(tmp_path, own.url, gateway, token, shas[0])
        assert clone(environment).returncode == 0
        own.stop()
        away = act(environment, "fetch", check=False)
        assert "remote: The forge does not answer at the moment." in away.stderr
        own.start()
        act(environment, "fetch")

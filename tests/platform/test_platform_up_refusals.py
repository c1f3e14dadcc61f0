"""What stops `notebooks up` before it starts anything: one sentence, exit code 1, nothing left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from notebooks_service.platform.checks import LEAST_SPACE


def up(data: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "notebooks_service", "up", "--no-browser", "--data", str(data)]
    return subprocess.run(
        [*command, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith(".\n")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr.strip()


def test_no_git(tmp_path: Path) -> None:
    said = refusal(up(tmp_path / "data", PATH=str(tmp_path)))
    assert said.startswith("git was not found; install it")


def test_old_git(tmp_path: Path) -> None:
    git = tmp_path / "git"
    git.write_text("#!/bin/sh\necho git version 2.20.1\n")
    git.chmod(0o755)
    said = refusal(up(tmp_path / "data", PATH=f"{tmp_path}:/bin:/usr/bin"))
    assert (
        said
        == "git 2.28 or newer is needed, and this is git version 2.20.1; update it, then start again."
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small file system")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("this sandbox lets nobody mount a file system")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_full_disk(small_disk: Path) -> None:
    said = refusal(up(small_disk / "data"))
    assert said == (
        f"The disk of {small_disk / 'data'} is full: 2 MB are free and {LEAST_SPACE // 1_000_000} MB are needed. "
        "Free some space, or choose another place with --data."
    )


def test_data_of_a_newer_version(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "version.json").write_text(json.dumps({"layout": 99, "version": "7.0.0"}))
    said = refusal(up(data))
    assert said.startswith(f"The data in {data} was written by a newer version (7.0.0); this is ")
    assert json.loads((data / "version.json").read_text())["layout"] == 99


def test_data_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    said = refusal(up(tmp_path / "file" / "data"))
    assert "cannot be written" in said


def test_runtime_that_is_not_there_yet(tmp_path: Path) -> None:
    said = refusal(up(tmp_path / "data", "--runtime", "kubernetes"))
    assert said == (
        "The runtime kubernetes is not part of this version yet; start with --runtime local or docker."
    )
    assert not (tmp_path / "data").exists()


def test_without_an_engine_it_is_said_what_to_do(tmp_path: Path) -> None:
    """The end of its address says that nobody answers there."""
    nobody = f"unix://{tmp_path}/no.sock"
    said = refusal(up(tmp_path / "data", "--runtime", "docker", DOCKER_HOST=nobody))
    # A registry's program is looked for first.
    assert (
        said.startswith(f"No Docker engine answers at {nobody}; install one")
        or "docker-registry" in said
    )


def test_wrong_setting_is_named(tmp_path: Path) -> None:
    said = refusal(up(tmp_path / "data", NOTEBOOKS_START_WAIT="soon"))
    assert "NOTEBOOKS_START_WAIT" in said


def test_external_forge_without_client(tmp_path: Path) -> None:
    said = refusal(up(tmp_path / "data", "--forge", "https://gitlab.example.org"))
    assert "forge_client_id" in said
    assert "http://127.0.0.1:8000/hub/oauth_callback" in said


def test_external_forge_without_address(tmp_path: Path) -> None:
    assert "--forge gitlab is no address" in refusal(up(tmp_path / "data", "--forge", "gitlab"))


def test_repositories_and_external_forge(tmp_path: Path) -> None:
    said = refusal(up(tmp_path / "data", "--forge", "https://gitlab.example.org", str(tmp_path)))
    assert "embedded forge only" in said


def test_repository_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = up(tmp_path / "data", str(tmp_path / "empty"), "--port", "28471")
    assert (done.returncode, done.stdout) == (1, "")
    assert "Traceback" not in done.stderr
    assert str(tmp_path / "empty") in done.stderr


def test_owner_that_is_another(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "owner.json").write_text(json.dumps({"username": "ada", "name": "Ada", "email": "a@b"}))
    said = refusal(up(data, NOTEBOOKS_OWNER="grace"))
    assert "belongs to ada" in said


@pytest.mark.parametrize("port", ["0", "65535", "70000", "eight"])
def test_no_port(tmp_path: Path, port: str) -> None:
    done = up(tmp_path / "data", "--port", port)
    assert done.returncode == 2
    assert f"{port} is no port" in done.stderr

"""Large files at the forge, with Debian's git-lfs as the client: it knows nothing of us."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forge_fixtures import ForgeProcess, StartForge, make_repository, run_git
from notebooks_service.forge.lfs import LfsRefused, answer_batch, read_batch
from notebooks_service.forge.lfs_store import DirectoryStore, Receiver, WrongContent
from notebooks_service.forge.routes_lfs import read_range

CLIENT = httpx.Client(timeout=30, trust_env=False)
LFS_TYPE = "application/vnd.git-lfs+json"


@dataclass
class Repository:
    """A project of ``owner`` and ways to talk to its LFS server."""

    forge: ForgeProcess
    id: int
    path: str
    owner: str
    token: str

    @property
    def url(self) -> str:
        return f"{self.forge.url}/{self.path}.git"

    def auth(self, token: str | None = None) -> tuple[str, str]:
        return ("oauth2", token or self.token)

    def batch(self, operation: str, *objects: tuple[str, int], token: str | None = "") -> Any:
        answer = CLIENT.post(
            f"{self.url}/info/lfs/objects/batch",
            json={
                "operation": operation,
                "transfers": ["basic"],
                "ref": {"name": "refs/heads/main"},
                "hash_algo": "sha256",
                "objects": [{"oid": oid, "size": size} for oid, size in objects],
            },
            headers={"Accept": LFS_TYPE, "Content-Type": LFS_TYPE},
            auth=None if token is None else self.auth(token),
        )
        assert answer.headers["content-type"] == LFS_TYPE
        return answer

    def put(self, content: Any, oid: str, size: int, token: str = "") -> httpx.Response:
        address = f"{self.url}/gitlab-lfs/objects/{oid}/{size}"
        return CLIENT.put(address, content=content, auth=self.auth(token))

    def store(self, content: bytes) -> str:
        oid = oid_of(content)
        assert self.put(content, oid, len(content)).status_code == 200
        return oid

    def get(self, oid: str, token: str = "", **headers: str) -> httpx.Response:
        address = f"{self.url}/gitlab-lfs/objects/{oid}"
        return CLIENT.get(address, auth=self.auth(token), headers=headers)

    def member(self, level: str) -> str:
        """A token of a new member."""
        name = self.forge.user()
        self.forge.administration.add_member(self.path, name, level)
        return self.forge.token(name)


def oid_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def made(forge: ForgeProcess, directory: Path, visibility: str = "private") -> Repository:
    owner = forge.user()
    path = f"group-of-{owner}/sub/thing"
    make_repository(directory / "source")
    number = forge.project(directory / "source", path, owner, visibility=visibility)
    return Repository(forge, number, path, owner, forge.token(owner))


@pytest.fixture
def project(forge: ForgeProcess, tmp_path: Path) -> Repository:
    return made(forge, tmp_path)


def lfs_git(*arguments: str, cwd: Path, check: bool = True) -> str:
    """git with git-lfs installed for it, and a home of its own."""
    home = cwd.parent / "home"
    home.mkdir(exist_ok=True)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "LC_ALL": "C.UTF-8",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_AUTHOR_NAME": "Ada",
        "GIT_AUTHOR_EMAIL": "ada@example.org",
        "GIT_COMMITTER_NAME": "Ada",
        "GIT_COMMITTER_EMAIL": "ada@example.org",
    }
    if not (home / ".gitconfig").exists():
        subprocess.run(
            ["git", "lfs", "install", "--skip-repo"], env=environment, check=True, stdout=-3
        )
    done = subprocess.run(
        ["git", *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )
    assert not check or done.returncode == 0, f"git {arguments}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def clone(project: Repository, directory: Path, token: str = "") -> Path:
    directory.parent.mkdir(parents=True, exist_ok=True)
    address = project.forge.git_url(project.path, "oauth2", token or project.token)
    lfs_git("clone", "--quiet", address, str(directory), cwd=directory.parent)
    return directory


def test_git_lfs_pushes_and_another_clone_has_the_files(
    project: Repository, tmp_path: Path
) -> None:
    work = clone(project, tmp_path / "one" / "work")
    lfs_git("lfs", "track", "*.bin", cwd=work)
    contents = {f"data {number} é.bin": os.urandom(40_000 * number) for number in range(1, 5)}
    for name, content in contents.items():
        (work / name).write_bytes(content)
    (work / "empty.bin").write_bytes(b"")
    lfs_git("add", "--all", cwd=work)
    lfs_git("commit", "--quiet", "-m", "Large", cwd=work)
    lfs_git("push", "origin", "HEAD", cwd=work)
    other = clone(project, tmp_path / "two" / "work")
    for name, content in contents.items():
        assert (other / name).read_bytes() == content
    assert lfs_git("lfs", "fsck", cwd=other).strip().endswith("OK")
    plain = run_git("show", "HEAD:data 1 é.bin", cwd=other)
    assert plain.startswith("version https://git-lfs.github.com/spec/v1")

"""Fixtures of the tests of what runs inside a server."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from singleuser_server import TOKEN, Server

from small_forge import SmallForgeProcess, git, running_small_forge

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def small_forge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallForgeProcess]:
    """A git server in the gateway's place: what a server's git sees is the same."""
    with running_small_forge(tmp_path_factory.mktemp("gateway")) as forge:
        yield forge


@dataclass
class Project:
    """A project with three commits on ``main``; ``shas`` are theirs, oldest first."""

    path: str
    bare: Path
    seed: Path
    shas: list[str] = field(default_factory=list)

    def commit(self, branch: str = "main", **files: str) -> str:
        """One more commit on that branch of the forge."""
        if branch not in git("branch", "--format=%(refname:short)", cwd=self.seed).split():
            git("branch", branch, "main", cwd=self.seed)
        git("checkout", "-q", branch, cwd=self.seed)
        for name, text in files.items():
            (self.seed / f"{name}.txt").write_text(text)
        git("add", ".", cwd=self.seed)
        git("commit", "-q", "--allow-empty", "-m", f"On {branch}: {len(files)}", cwd=self.seed)
        git("push", "-q", str(self.bare), branch, cwd=self.seed)
        return git("rev-parse", "HEAD", cwd=self.seed)


@pytest.fixture
def project(small_forge: SmallForgeProcess, tmp_path: Path) -> Project:
    path = f"group/sub/analysis-{next(_numbers)}"
    bare = small_forge.repository(path)
    seed = tmp_path / "seed"
    git("init", "-q", "--initial-branch=main", str(seed))
    git("commit", "-q", "--allow-empty", "-m", "Root", cwd=seed)
    made = Project(path, bare, seed)
    made.shas = [made.commit(data=f"{number}\n") for number in range(3)]
    small_forge.save(answer=None, stall=None, cut=None, logins=["server"], tokens={})
    small_forge.allow(TOKEN, path)
    return made


@pytest.fixture
def server(small_forge: SmallForgeProcess, project: Project, tmp_path: Path) -> Server:
    """A server of that project, launched at the tip of ``main``."""
    return Server(
        tmp_path / "server",
        {
            "NOTEBOOKS_FORGE_URL": "http://forge.invalid/gitlab",
            "NOTEBOOKS_GATEWAY_URL": f"{small_forge.url}/",
            "NOTEBOOKS_PROJECT": project.path,
            "NOTEBOOKS_PROJECT_ID": "42",
            "NOTEBOOKS_COMMIT": project.shas[-1],
            "NOTEBOOKS_BRANCH": "main",
            "NOTEBOOKS_AUTHOR_NAME": 'Ada "Countess" Lovelace\nof \\ Ümlaut #1',
            "NOTEBOOKS_AUTHOR_EMAIL": "ada@example.org",
            "JUPYTERHUB_USER": "ada",
            "JUPYTERHUB_API_TOKEN": TOKEN,
        },
    )

"""``notebooks image build``, as the built-in CI job runs it."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from images_repository import commit

from notebooks_service.images.command import build_from_ci
from notebooks_service.images.environments import EnvironmentStore


def variables(store: Path, repository: Path, sha: str) -> dict[str, str]:
    return {
        **os.environ,
        "CI_PROJECT_ID": "7",
        "CI_PROJECT_DIR": str(repository),
        "CI_COMMIT_SHA": sha,
        "NOTEBOOKS_ENVIRONMENTS": str(store),
    }


def run(environ: dict[str, str]) -> tuple[int, str]:
    log = io.StringIO()
    return build_from_ci(environ, log), log.getvalue()


def test_builds_then_only_tags(tmp_path: Path) -> None:
    repository, store = tmp_path / "repository", tmp_path / "data" / "environments"
    first = commit(repository, {"requirements.txt": "six==1.16.0\n"})
    code, log = run(variables(store, repository, first))
    assert code == 0, log
    second = commit(repository, {"README.md": "a changed line"})
    code, log = run(variables(store, repository, second))
    assert code == 0, log
    assert f"Tagged {second}" in log and "built already" in log
    tags = EnvironmentStore(store).tags(7)
    assert set(tags) == {first, second}
    assert tags[first] == tags[second]
    assert tags[first].digest in log.splitlines()[-1]


def test_a_failure_is_one_sentence_and_exit_code_one(tmp_path: Path) -> None:
    repository, store = tmp_path / "repository", tmp_path / "data" / "environments"
    sha = commit(repository, {"runtime.txt": "python-3.5"})
    code, log = run(variables(store, repository, sha))
    assert code == 1
    last = log.strip().splitlines()[-1]
    assert "ERROR: runtime.txt asks for Python 3.5" in last
    assert EnvironmentStore(store).tags(7) == {}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"CI_PROJECT_ID": ""}, "CI_PROJECT_ID"),
        ({"NOTEBOOKS_ENVIRONMENTS": ""}, "NOTEBOOKS_ENVIRONMENTS"),
        ({"CI_PROJECT_ID": "../7"}, "CI_PROJECT_ID"),
        ({"CI_COMMIT_SHA": "main"}, "CI_COMMIT_SHA"),
        ({"CI_COMMIT_SHA": "9" * 40}, "cannot be read"),
        ({"CI_PROJECT_DIR": "/nonexistent"}, "No such file"),
    ],
)
def test_wrong_variables(tmp_path: Path, change: dict[str, str], word: str) -> None:
    repository = tmp_path / "repository"
    sha = commit(repository, {"requirements.txt": "six\n"})
    code, log = run({**variables(tmp_path / "store", repository, sha), **change})
    assert code == 1
    assert "ERROR" in log and word in log


def test_the_command_starts_fast() -> None:
    """Nothing of the hub, the web or the API clients is imported to tag a commit."""
    code = (
        "import sys, notebooks_service.images.command;"
        "print([m for m in ('fastapi', 'jupyterhub', 'gitlab', 'requests', 'sqlalchemy', 'pydantic',"
        " 'yaml', 'tornado', 'jupyter_client') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

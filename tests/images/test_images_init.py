"""``notebooks init``, its templates, and the commands around images as a person types them."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from images_repository import commit, git

from forge_fixtures import ForgeProcess
from notebooks_service.errors import Conflict, InvalidRequest
from notebooks_service.images.container_command import Wishes, plan
from notebooks_service.images.starting_files import STARTING_FILES, init
from runner_fixtures import RawRunner, Workspace


def notebooks(*words: str, cwd: Path, **more: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "notebooks_service", *words]
    environ = {key: text for key, text in os.environ.items() if not key.startswith("CI")}
    options = {"stdin": subprocess.DEVNULL, "env": environ, **more}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, **options)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    made = tmp_path / "r"
    made.mkdir()
    git(made, "init", "-q", "-b", "main")
    return made


def test_three_files_into_a_repository(repository: Path) -> None:
    done = notebooks("init", cwd=repository)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in repository.iterdir() if path.name != ".git") == sorted(
        STARTING_FILES.values()
    )
    # A second time there is nothing to do, also without a terminal.
    again = notebooks("init", "--json", cwd=repository)
    assert again.returncode == 0 and again.stdout.count("there already") == 3
    # They are an environment, and its CI file is what the service reads.
    sha = commit(repository, {})
    planned = plan(Wishes(repository), sha, {}, 0)
    assert planned.dockerfile == "Dockerfile"
    assert '"requirements.txt"' in planned.text and '".gitlab-ci.yml"' not in planned.text


def test_nothing_is_overwritten_unasked(repository: Path) -> None:
    mine = repository / "Dockerfile"
    mine.write_text("FROM mine\n")
    refused = notebooks("init", cwd=repository)
    assert refused.returncode == 1 and "Dockerfile would be overwritten" in refused.stderr
    assert sorted(path.name for path in repository.iterdir()) == [".git", "Dockerfile"]
    for answer, left in ((b"n\n", "FROM mine\n"), (b"y\n", None)):
        ours, theirs = pty.openpty()
        os.write(ours, answer)
        done = notebooks("init", cwd=repository, stdin=theirs)
        os.close(ours)
        os.close(theirs)
        assert done.returncode == 0 and "Overwrite Dockerfile? [y/N]" in done.stderr
        assert (mine.read_text() == left) is (left is not None)
        assert (repository / "requirements.txt").exists()
    mine.write_text("FROM mine\n")
    assert notebooks("init", "--yes", cwd=repository).returncode == 0
    assert mine.read_text() != "FROM mine\n"


def test_a_link_is_replaced_and_not_followed(repository: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("precious")
    (repository / "Dockerfile").symlink_to(outside)
    (repository / "requirements.txt").symlink_to(tmp_path / "nowhere")
    with pytest.raises(Conflict):
        init(repository, ask=None, yes=False)
    init(repository, ask=None, yes=True)
    assert outside.read_text() == "precious" and not (repository / "Dockerfile").is_symlink()
    assert not (tmp_path / "nowhere").exists()


def test_only_into_a_repository(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="git init"):
        init(tmp_path, ask=None, yes=True)
    assert list(tmp_path.iterdir()) == []


def test_the_ci_file_is_one_that_a_forge_takes(
    ci_forge: ForgeProcess, tmp_path: Path, repository: Path
) -> None:
    init(repository, ask=None, yes=False)
    space = Workspace(ci_forge, tmp_path)
    text = (repository / ".gitlab-ci.yml").read_text()
    assert set(yaml.safe_load(text)) == {"image_build"}
    space.push(text)
    job = RawRunner(ci_forge).take()
    assert job["job_info"]["name"] == "image_build"
    assert job["steps"][0]["script"][-1] == "notebooks image build --builder buildah"


def test_what_the_commands_say_without_a_registry(repository: Path) -> None:
    commit(repository, {"requirements.txt": "six\n"})
    for words in (["build"], ["tag"], ["list"], ["prune"]):
        done = notebooks("image", *words, cwd=repository)
        assert done.returncode == 1
        assert "--image" in done.stdout + done.stderr, words
    wrong = notebooks(
        "image", "tag", "--image", "r.example.org/a", "--build-arg", "x", cwd=repository
    )
    assert wrong.returncode == 1 and "NAME=VALUE" in wrong.stderr
    plain = notebooks("image", "build", "--image", "127.0.0.1:1/a/b", cwd=repository)
    assert plain.returncode == 1 and "`notebooks init`" in plain.stdout

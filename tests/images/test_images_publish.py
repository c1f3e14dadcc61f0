"""What a job has built, honest or not, on its way into the store of environments."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from images_repository import commit

from notebooks_service.errors import BuildFailed
from notebooks_service.images.build import content_digest
from notebooks_service.images.environments import EnvironmentStore
from notebooks_service.images.publish import Expected, Staging, clear, expect

PROJECT = 7
ENVIRON = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "UV_COMPILE_BYTECODE": "0"}


@pytest.fixture
def built(tmp_path: Path) -> tuple[EnvironmentStore, Expected, Staging]:
    """A staging place as a job leaves it, without the minute that a real build takes."""
    repository = tmp_path / "repository"
    sha = commit(repository, {"requirements.txt": "iniconfig==2.0.0\n"})
    store = EnvironmentStore(tmp_path / "environments", environ=ENVIRON)
    expected = expect(store, PROJECT, repository, sha)
    staging = Staging(store, expected)
    staging.make()
    tree = staging.directory / expected.fingerprint
    library = tree / "lib" / "python3.11" / "site-packages"
    (library / "iniconfig-2.0.0.dist-info").mkdir(parents=True)
    (library / "iniconfig-2.0.0.dist-info" / "RECORD").write_text("iniconfig.py,sha256=x,1\n")
    (tree / "bin").mkdir()
    (tree / "bin" / "python").symlink_to(expected.interpreter.path)
    (tree / "pyvenv.cfg").write_text(f"home = {Path(expected.interpreter.path).parent}\n")
    (tree / "image.json").write_text(json.dumps({"version": 1, "kernel": "added"}))
    (staging.directory / ".tags" / expected.sha).write_text(expected.fingerprint)
    return store, expected, staging


def test_what_an_honest_job_has_built_is_taken_and_found(
    built: tuple[EnvironmentStore, Expected, Staging],
) -> None:
    store, expected, staging = built
    taken = staging.take()
    assert taken is not None
    assert store.tagged(PROJECT, expected.sha) == taken
    assert store.find(PROJECT, taken.digest) == taken
    assert taken.python.resolve() == Path(expected.interpreter.path).resolve()
    assert taken.path.stat().st_mode & 0o7777 == 0o555
    # The next job of the same files finds it, and takes nothing else for it.
    again = Staging(store, expected)
    again.make()
    assert {mount.kind for mount in again.mounts(Path("/cache")) if "environments" in mount.at} == {
        "read",
        "write",
    }
    assert again.take() is None
    (again.directory / ".tags" / expected.sha).write_text(expected.fingerprint)
    assert again.take() == taken
    again.remove()
    clear(store.root)
    assert [*(store.root / str(PROJECT) / ".staging").iterdir()] == []


def plant_link(staging: Staging, tree: Path) -> None:
    (tree / "pyvenv.cfg").unlink()
    (tree / "pyvenv.cfg").symlink_to("/etc/shadow")


def plant_interpreter(staging: Staging, tree: Path) -> None:
    (tree / "bin" / "python").unlink()
    (tree / "bin" / "python").write_text("#!/bin/sh\n")


def plant_name(staging: Staging, tree: Path) -> None:
    (tag,) = (staging.directory / ".tags").iterdir()
    other = "f" * 64
    tree.rename(tree.with_name(other))
    tag.write_text(other)


def plant_tag(staging: Staging, tree: Path) -> None:
    (tag,) = (staging.directory / ".tags").iterdir()
    tag.write_text("f" * 64)


def plant_record(staging: Staging, tree: Path) -> None:
    (tree / "image.json").unlink()
    (tree / "image.json").symlink_to("/etc/passwd")


def plant_kernel(staging: Staging, tree: Path) -> None:
    (tree / "image.json").write_text(json.dumps({"kernel": "/bin/sh"}))


def plant_root(staging: Staging, tree: Path) -> None:
    elsewhere = staging.directory.parent / "elsewhere"
    tree.rename(elsewhere)
    tree.symlink_to(elsewhere)


def plant_nothing(staging: Staging, tree: Path) -> None:
    (tree / "image.json").unlink()


@pytest.mark.parametrize(
    "plant",
    [
        plant_link, plant_interpreter, plant_name, plant_tag, plant_record, plant_kernel,
        plant_root, plant_nothing,
    ],
)  # fmt: skip
def test_what_a_hostile_job_has_built_is_not_taken(
    built: tuple[EnvironmentStore, Expected, Staging], plant: Callable[[Staging, Path], None]
) -> None:
    store, expected, staging = built
    plant(staging, staging.directory / expected.fingerprint)
    with pytest.raises(BuildFailed, match="was not taken"):
        staging.take()
    assert store.tags(PROJECT) == {}
    assert store.get(PROJECT, expected.fingerprint) is None
    staging.remove()
    assert not staging.directory.exists()
    elsewhere = staging.directory.parent / "elsewhere"
    assert plant is not plant_root or (elsewhere / "pyvenv.cfg").is_file()
    assert Path("/etc/passwd").exists()


def test_a_tag_that_is_a_link_is_none(built: tuple[EnvironmentStore, Expected, Staging]) -> None:
    store, expected, staging = built
    tag = staging.directory / ".tags" / expected.sha
    secret = staging.directory.parent / "secret"
    secret.write_text(expected.fingerprint)
    tag.unlink()
    tag.symlink_to(secret)
    assert staging.take() is None
    tag.unlink()
    os.mkfifo(tag)
    assert staging.take() is None
    assert store.tags(PROJECT) == {}


def test_a_record_that_lies_is_not_believed(
    built: tuple[EnvironmentStore, Expected, Staging],
) -> None:
    store, expected, staging = built
    tree = staging.directory / expected.fingerprint
    lies = {
        "version": 1, "kernel": "added", "digest": "sha256:" + "0" * 64, "path": "/etc",
        "python": "/etc/shadow", "kernel_argv": ["/bin/sh", "-c", "evil"], "fingerprint": "0" * 64,
        "kernel_env": {"LD_PRELOAD": "/evil.so"}, "notes": ["<script>"], "display_name": "evil",
    }  # fmt: skip
    (tree / "image.json").write_text(json.dumps(lies))
    taken = staging.take()
    assert taken is not None
    assert taken == store.get(PROJECT, expected.fingerprint)
    final = store.root / str(PROJECT) / expected.fingerprint
    assert (taken.path, taken.python) == (final, final / "bin" / "python")
    assert taken.kernel_argv[:3] == (str(taken.python), "-m", "ipykernel_launcher")
    assert taken.kernel_env == {"VIRTUAL_ENV": str(final)}
    assert taken.notes == () and taken.display_name.startswith("Python 3")
    # The very same content under another name is another digest.
    other = content_digest(final, expected.interpreter, "e" * 64)
    assert other != taken.digest == content_digest(final, expected.interpreter, taken.fingerprint)


def test_a_commit_without_an_environment_has_no_place_to_build(tmp_path: Path) -> None:
    sha = commit(tmp_path / "repository", {".python-version": "2.2\n"})
    store = EnvironmentStore(tmp_path / "environments", environ=ENVIRON)
    with pytest.raises(BuildFailed, match="not on this host"):
        expect(store, PROJECT, tmp_path / "repository", sha)

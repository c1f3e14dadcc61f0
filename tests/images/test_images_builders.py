"""What a build's log says when an image's packages cannot be listed: a buildah that answers as told."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from notebooks_service.errors import BuildFailed
from notebooks_service.images.builders import Buildah
from notebooks_service.images.log import BuildLog
from notebooks_service.images.private_login import LoginFiles
from runner_fixtures import until


def buildah(directory: Path, script: str, *, patience: float = 60) -> Buildah:
    """One whose program is ``script``; its first argument is the subcommand."""
    program = directory / "bin" / "buildah"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    environ = {"PATH": f"{program.parent}:{os.environ['PATH']}", "HOME": str(directory)}
    files = LoginFiles(directory / "docker", directory / "auth.json")
    return Buildah(environ, files, patience=patience)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("test $1 != from || { echo 'Error: x: image not known' >&2; exit 125; }", "not known"),
        ("test $1 != run || { echo 'Error: no python3: No such file or directory' >&2; exit 1; }",
         "No such file or directory"),
        ("test $1 != run || exit 137", "exit code 137"),
        ("true", "it names none"),
    ],
)  # fmt: skip
def test_why_no_packages_are_listed(tmp_path: Path, script: str, said: str) -> None:
    with pytest.raises(BuildFailed, match=said):
        buildah(tmp_path, script).installed("x")


def test_a_look_that_hangs_ends_with_what_it_has_started(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    script = f"test $1 != run || {{ sleep 600 & echo $! > {pid}.new; mv {pid}.new {pid}; wait; }}"
    with pytest.raises(BuildFailed, match="no answer in 2 seconds"):
        buildah(tmp_path, script, patience=2).installed("x")
    status = Path("/proc", pid.read_text().strip(), "status")
    until(lambda: not status.exists() or "State:\tZ" in status.read_text(), "its end")


def test_a_label_that_cannot_be_written_says_why(tmp_path: Path) -> None:
    log = io.StringIO()
    broken = buildah(tmp_path, "echo 'Error: the layer is not known' >&2; exit 1")
    assert not broken.label("x", {"a": "b"}, BuildLog(log))
    assert "not written down" in log.getvalue() and "the layer is not known" in log.getvalue()

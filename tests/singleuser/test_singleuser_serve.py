"""What starts in an image that we did not build, as far as no container is needed to see it.

Whole servers of several images are in ``tests/images/test_images_serve.py``.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from singleuser_server import PYTHON

from notebooks_service.singleuser import serve


def program(path: Path, first: str, rest: str = "") -> str:
    path.write_text(f"{first}\n{rest}")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        ("#!/opt/conda/bin/python", "/opt/conda/bin/python"),
        ("#!/opt/venv/bin/python3.12 -s", "/opt/venv/bin/python3.12"),
        ("#! /usr/bin/python3", "/usr/bin/python3"),
        # Paths that are too long for the kernel are run by a shell.
        ("#!/bin/sh", ""),
        ("\x7fELF", ""),
        ("", ""),
        ("#!", ""),
    ],
)
def test_by_which_python_a_program_of_the_image_is_run(
    tmp_path: Path, first: str, expected: str
) -> None:
    assert serve.interpreter(program(tmp_path / "jupyterhub-singleuser", first)) == expected


def test_a_python_that_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = program(tmp_path / "python3", "#!/bin/sh")
    assert serve.interpreter(program(tmp_path / "one", "#!/usr/bin/env python3")) == found
    assert serve.interpreter(program(tmp_path / "two", "#!/usr/bin/env -S python3")) == found
    assert serve.interpreter(program(tmp_path / "three", "#!/usr/bin/env python2")) == ""
    assert serve.interpreter(str(tmp_path / "missing")) == ""


def test_what_does_not_run_is_no_python(tmp_path: Path) -> None:
    assert serve.look(str(tmp_path / "missing")) == {}
    assert serve.look(program(tmp_path / "broken", "#!/bin/sh", "exit 3\n")) == {}
    assert serve.look(program(tmp_path / "other", "#!/bin/sh", "echo '[1]'\n")) == {}
    assert serve.look(PYTHON)["version"]

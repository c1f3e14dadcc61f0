"""What starts in an image that we did not build, as far as no container is needed to see it.

Whole servers of several images are in ``tests/images/test_images_serve.py``.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from singleuser_server import PYTHON

from notebooks_service.singleuser import serve
from notebooks_service.spawner.served import Served, read


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


def test_what_the_images_own_jupyter_offers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert serve.own_offers({"has": ["jupyterlab"], "notebook_7": False}) == ["/lab"]
    assert serve.own_offers({"has": ["notebook"], "notebook_7": True}) == ["/lab", "/tree"]
    # A package that only leads to a program is nothing without it.
    led = {"has": ["jupyter_rsession_proxy"]}
    assert serve.own_offers(led) == ["/lab"]
    program(tmp_path / "rserver", "#!/bin/sh")
    assert serve.own_offers(led) == ["/lab", "/rstudio"]


def test_notebook_is_told_from_its_sixth_version(tmp_path: Path) -> None:
    """Which is no extension of the server that runs here. Seven has the module, six has not."""
    for version in ("6", "7"):
        package = tmp_path / version / "notebook"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
    (package / "app.py").touch()
    for version, seven in (("6", False), ("7", True)):
        path = tmp_path / f"python{version}"
        python = program(path, "#!/bin/sh", f'PYTHONPATH={tmp_path / version} exec {PYTHON} "$@"\n')
        assert serve.look(python)["notebook_7"] is seven


@pytest.mark.parametrize(("wanted", "opens"), [("/tree", "/tree"), ("/rstudio", None), ("", None)])
def test_the_server_opens_in_what_was_chosen_if_it_is_there(
    wanted: str,
    opens: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("NOTEBOOKS_DEFAULT_URL", wanted)
    monkeypatch.setenv("JUPYTERHUB_DEFAULT_URL", "")
    monkeypatch.delenv("JUPYTERHUB_DEFAULT_URL")
    serve.say("jupyterhub-singleuser", "3.11", True, ["/lab", "/tree"])
    assert os.environ.get("JUPYTERHUB_DEFAULT_URL") == opens
    found = read(capsys.readouterr().out)
    assert found == Served("jupyterhub-singleuser", "3.11", offers=("/lab", "/tree"))

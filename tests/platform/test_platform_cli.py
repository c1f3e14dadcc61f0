"""The command line: help everywhere, quick starts, one sentence for an error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from notebooks_service import __version__

COMMANDS = [
    [],
    ["up"],
    ["doctor"],
    ["login"],
    ["token"],
    ["forge"],
    ["forge", "import"],
    ["forge", "user"],
    ["forge", "user", "add"],
    ["forge", "member", "add"],
    ["image", "build"],
    ["version"],
]


def notebooks(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "notebooks_service", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help(command: list[str]) -> None:
    done = notebooks(*command, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(" ".join(["usage: notebooks", *command]))


@pytest.mark.parametrize("command", [["nonsense"], ["up", "--nonsense"], ["forge"], []])
def test_wrong_usage(command: list[str]) -> None:
    done = notebooks(*command)
    assert done.returncode == 2
    assert "usage: notebooks" in done.stderr


def test_version() -> None:
    assert notebooks("version").stdout == f"{__version__}\n"
    assert json.loads(notebooks("version", "--json").stdout) == {"version": __version__}


@pytest.mark.parametrize(
    "command",
    [
        ["login"],
        ["token"],
        ["forge", "import", "."],
        ["forge", "user", "add", "ada"],
        ["forge", "member", "add", "a/b", "ada", "guest"],
    ],
    ids=" ".join,
)
def test_without_data(command: list[str], tmp_path: Path) -> None:
    done = notebooks(*command, "--data", str(tmp_path / "data"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"There is nothing in {tmp_path / 'data'} yet; start `notebooks up` on it first, or name another with --data.\n"
    )
    assert not (tmp_path / "data").exists()


def test_data_comes_from_the_environment(tmp_path: Path) -> None:
    done = notebooks("login", NOTEBOOKS_DATA=str(tmp_path / "mine"))
    assert str(tmp_path / "mine") in done.stderr


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = notebooks("login", "--data", str(tmp_path / "data"), "--debug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_wrong_settings_file(tmp_path: Path) -> None:
    done = notebooks("login", NOTEBOOKS_SETTINGS_FILE=str(tmp_path / "none.toml"))
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)


def test_commands_start_quickly() -> None:
    """A CI job that only tags an environment should not wait for our imports."""
    needless = {"jupyterhub", "fastapi", "sqlalchemy", "httpx", "pydantic", "tornado"}
    program = (
        "import sys; from notebooks_service.cli import main; main(['version']); "
        f"print(sorted({needless!r} & set(sys.modules)))"
    )
    before = os.times()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    after = os.times()
    assert done.stdout.splitlines()[-1] == "[]"
    # Twenty times what it takes of a processor: only a gross mistake should fail here.
    assert after.children_user - before.children_user < 3

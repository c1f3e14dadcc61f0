"""What uv prints when it fails, and the sentence that it becomes; what it is given of a job's variables."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from notebooks_service.errors import BuildFailed, NoSpace
from notebooks_service.images.interpreters import search_path
from notebooks_service.images.log import BuildLog
from notebooks_service.images.uv import clean_environment, failure


@pytest.mark.parametrize(
    ("printed", "begins", "holds"),
    [
        (
            "error: No solution found when resolving dependencies\n  cause: Because a==1 needs b>2 "
            "and you require b<2, we can conclude that your requirements are unsatisfiable.\n",
            "The project's requirements cannot be met: ", "you require b<2",
        ),
        (
            "error: Request failed after 3 retries\n  cause: Failed to fetch: http://h/simple/\n"
            "  cause: tcp connect error\n  cause: Connection refused (os error 111)\n",
            "The package index could not be reached", "Connection refused",
        ),
        (
            "error: Failed to build `x==1`\n  cause: The build backend returned an error\n"
            "         [stderr]\n         Traceback (most recent call last):\n"
            "         ModuleNotFoundError: No module named 'numpy'\n  hint: try this\n",
            "The environment could not be built: Failed to build `x==1`", "No module named 'numpy'",
        ),
        ("something\nelse entirely\n", "The environment could not be built: ", "else entirely"),
        ("", "The environment could not be built: ", "exit code 2"),
    ],
)  # fmt: skip
def test_a_failure_is_one_sentence(printed: str, begins: str, holds: str) -> None:
    error = failure(printed.splitlines(), 2)
    assert isinstance(error, BuildFailed)
    assert error.message.startswith(begins) and holds in error.message
    assert "\n" not in error.message and len(error.message) < 800


@pytest.mark.parametrize(
    "printed",
    [
        "error: Failed to install: x.whl\n  cause: failed to copy file\n  cause: No space left on device (os error 28)",
        "error: failed to write\n  cause: No space left on device",
    ],
)
def test_a_full_disk_in_the_middle(printed: str) -> None:
    assert isinstance(failure(printed.splitlines(), 2), NoSpace)


def test_uv_gets_what_it_needs_and_no_secret_of_the_job() -> None:
    given = {
        "PATH": "/bin", "HOME": "/home", "https_proxy": "p", "UV_DEFAULT_INDEX": "i", "LC_ALL": "C",
        "CI_JOB_TOKEN": "canary", "CI_REGISTRY_PASSWORD": "canary", "JUPYTERHUB_API_TOKEN": "canary",
        "MY_SECRET": "canary", "VIRTUAL_ENV": "/other", "PYTHONPATH": "/other", "CONDA_PREFIX": "/other",
        "UV_PYTHON_DOWNLOADS": "automatic", "UV_LINK_MODE": "hardlink", "UV_CACHE_DIR": "/other",
    }  # fmt: skip
    kept = clean_environment(given, Path("/cache"))
    assert "canary" not in kept.values()
    assert not {"VIRTUAL_ENV", "PYTHONPATH", "CONDA_PREFIX"} & set(kept)
    assert (kept["UV_PYTHON_DOWNLOADS"], kept["UV_LINK_MODE"]) == ("never", "copy")
    assert kept["UV_CACHE_DIR"] == "/cache"
    assert (kept["https_proxy"], kept["UV_DEFAULT_INDEX"]) == ("p", "i")


def test_a_log_line_has_no_password_colour_or_control_character() -> None:
    out = io.StringIO()
    BuildLog(out).line("\x1b[31mfrom https://me:canary@host/simple\x1b[0m\x07\r")
    assert out.getvalue().endswith(" from https://****@host/simple\n")


def test_interpreters_are_looked_for_without_shims_and_in_pyenvs_versions(tmp_path: Path) -> None:
    (tmp_path / ".pyenv" / "versions" / "3.9.1" / "bin").mkdir(parents=True)
    found = search_path(f"/a:{tmp_path}/.pyenv/shims:/a::/b", tmp_path).split(":")
    assert f"{tmp_path}/.pyenv/versions/3.9.1/bin" in found
    assert f"{tmp_path}/.pyenv/shims" not in found
    assert "" not in found and found.count("/a") == 1

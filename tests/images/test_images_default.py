"""The default environment: real uv, an index of the test's own, and packages that mean harm."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from images_index import (
    extension_package,
    package_index,
    source_package,
    without_compilers,
)
from notebooks_service.errors import BuildFailed, BuildsWait
from notebooks_service.high_water import Gauge, Level
from notebooks_service.images.default import WHO, default_environment
from notebooks_service.images.environments import DEFAULT, EnvironmentStore
from notebooks_service.settings import Settings
from notebooks_service.walls.wall import Walls
from notebooks_service.walls.ways import Way

HANDED_ON = re.compile(r"(UV_\w+|SSL_CERT_\w+|\w+_proxy)\Z", re.IGNORECASE)
WAY: Way = "uids" if os.getuid() == 0 else "none"

# By this number this run finds what was left by itself, and by nobody else.
LEFT = str(996_000_000 + os.getpid())
# Fails at once, with what it saw, and leaves a daemon that holds nothing of ours.
LEAVES = f"""
null = subprocess.DEVNULL
subprocess.Popen(["sleep", "{LEFT}"], start_new_session=True, stdin=null, stdout=null, stderr=null)
raise RuntimeError(f"user {{os.getuid()}}, secrets {{os.path.exists('SECRETS')}}")
"""


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    directory = tmp_path / "data" / "secrets"
    directory.mkdir(parents=True)
    return directory


@pytest.fixture
def index(tmp_path: Path, secrets: Path) -> Iterator[str]:
    package = source_package("leaves", LEAVES.replace("SECRETS", str(secrets)))
    with package_index(tmp_path / "index", {"leaves-1.tar.gz": package}) as url:
        yield url


def made(data: Path, **more: str) -> EnvironmentStore:
    environ = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], **more}
    return EnvironmentStore(data / "environments", environ=environ)


def sleeping() -> list[psutil.Process]:
    return [p for p in psutil.process_iter(["cmdline"]) if (p.info["cmdline"] or [])[-1:] == [LEFT]]


@pytest.mark.parametrize("way", sorted({"none", WAY}))
def test_a_package_of_the_default_environment_runs_behind_the_wall_and_leaves_nothing(
    tmp_path: Path, secrets: Path, index: str, way: Way
) -> None:
    data = secrets.parent
    walls = Walls(way, Settings(data=data, walls="none"))
    store = made(data, UV_DEFAULT_INDEX=index)
    with (data / "log").open("a") as log, pytest.raises(BuildFailed) as caught:
        default_environment(store, ("leaves==1",), walls, log, Gauge())
    number = walls.number(WHO)
    # Without a wall it can do what we can, as the page on security says.
    seen = (
        f"user {os.getuid()}, secrets True" if number is None else f"user {number}, secrets False"
    )
    assert seen in caught.value.message
    assert sleeping() == []
    left = [path.name for path in (store.root / DEFAULT).glob("[!.]*")]
    assert left == [] and not [*(store.root / DEFAULT).glob(".staging/*")]


@pytest.mark.skipif(WAY == "none", reason="Not tested here: a compiler missed behind a wall.")
def test_behind_a_wall_a_compiler_that_is_missing_is_named(tmp_path: Path, secrets: Path) -> None:
    data = secrets.parent
    programs = without_compilers(tmp_path / "programs")
    walls = Walls(WAY, Settings(data=data, walls="none", wall_read=(programs,)))
    handed = {name: value for name, value in os.environ.items() if HANDED_ON.match(name)}
    packages = {"compiled-1.tar.gz": extension_package("compiled")}
    with package_index(tmp_path / "index", packages) as url, (data / "log").open("a") as log:
        # Beside the machine's own index, which has setuptools.
        store = made(data, **{**handed, "UV_INDEX": url, "PATH": str(programs)})
        with pytest.raises(BuildFailed) as caught:
            default_environment(store, ("compiled==1",), walls, log, Gauge())
    assert "a package has to be compiled" in caught.value.message
    assert "is not on this host. Install it" in caught.value.message
    assert not [*(store.root / DEFAULT).glob(".staging/*")]


def test_beyond_a_high_water_mark_it_is_not_begun(tmp_path: Path, secrets: Path) -> None:
    data = secrets.parent
    walls = Walls("none", Settings(data=data, walls="none"))
    full = Gauge(memory=lambda: Level(1, 100))
    with (data / "log").open("a") as log, pytest.raises(BuildsWait) as caught:
        default_environment(made(data), ("ipykernel",), walls, log, full)
    assert "The memory of the machine that builds is 99 % full" in caught.value.message
    assert (data / "log").read_text() == ""


def test_an_honest_one_is_built_once_and_is_nobodys_to_change(
    tmp_path: Path, secrets: Path
) -> None:
    data = secrets.parent
    walls = Walls(WAY, Settings(data=data, walls="none"))
    handed = {name: value for name, value in os.environ.items() if HANDED_ON.match(name)}
    store = made(data, **{**handed, "UV_COMPILE_BYTECODE": "0"})
    with (data / "log").open("a") as log:
        built = default_environment(store, ("ipykernel", "six==1.16.0"), walls, log, Gauge())
        assert (
            default_environment(store, ("ipykernel", "six==1.16.0"), walls, log, Gauge()) == built
        )
    assert (data / "log").read_text().count("Building environment") == 1
    assert (built.library / "six.py").is_file() and built.kernel == "project"
    assert store.find(7, built.digest) is None
    for path in (built.path, *built.path.rglob("*")):
        facts = path.lstat()
        assert facts.st_uid == os.getuid(), path
        assert path.is_symlink() or not facts.st_mode & 0o6222, path

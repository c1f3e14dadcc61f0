"""Requirements that mean harm, or only do it: real uv, source packages from an index of the test's own."""

from __future__ import annotations

import io
import os
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from images_repository import commit

from images_index import (
    extension_package,
    package_index,
    source_package,
    without_compilers,
)
from notebooks_service.errors import BuildFailed, NoSpace, NotebooksError
from notebooks_service.images.environments import EnvironmentStore
from notebooks_service.images.limits import BuildLimits
from notebooks_service.images.log import BuildLog
from notebooks_service.images.recipe import read_recipe
from notebooks_service.images.steps import LINE_LENGTH, attempt
from notebooks_service.images.tree import Entry
from small_disk import SmallDisk

# How long what a build leaves would sleep: by these numbers this run finds its own, and nobody else's.
HANGS, LEFT = str(998_000_000 + os.getpid()), str(997_000_000 + os.getpid())
ACTS = {
    "hangs": f"subprocess.Popen(['sleep', '{HANGS}']); time.sleep(600)",
    "talks": """
for _ in range(100_000):
    print("x" * 1023)
raise SystemExit("said enough")
""",
    "drones": """
for _ in range(100):
    sys.stdout.write("y" * 1024 * 1024)
raise SystemExit("said enough")
""",
    "compiles": """
sys.stderr.write("error: command 'x86_64-linux-gnu-gcc' failed: No such file or directory\\n")
raise SystemExit(1)
""",
    "fills": """
with open("filling", "wb") as out:
    while True:
        out.write(b"z" * 1024 * 1024)
        out.flush()
        time.sleep(0.02)
""",
    "daemon": f"""
subprocess.Popen(["sleep", "{LEFT}"], start_new_session=True)
raise SystemExit("nothing comes of it")
""",
}


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    packages = {f"{name}-1.tar.gz": source_package(name, act) for name, act in ACTS.items()}
    with package_index(tmp_path_factory.mktemp("index"), packages) as url:
        yield url


def sleeping(seconds: str) -> list[psutil.Process]:
    return [
        p for p in psutil.process_iter(["cmdline"]) if (p.info["cmdline"] or [])[-1:] == [seconds]
    ]


class Build:
    """One build that is to fail: its error, its log, what it left."""

    def __init__(
        self, root: Path, repository: Path, index: str, package: str, **limits: float
    ) -> None:
        commit(repository, {"requirements.txt": f"{package}==1\n"})
        environ = {**os.environ, "UV_DEFAULT_INDEX": index, "UV_COMPILE_BYTECODE": "0"}
        self.root = root
        self.log = io.StringIO()
        given = BuildLimits(**limits)  # type: ignore[arg-type]
        store = EnvironmentStore(root, environ=environ, limits=given, minimum_free=1)
        began = time.monotonic()
        with pytest.raises(NotebooksError) as caught:
            store.build(7, repository, self.log)
        self.seconds = time.monotonic() - began
        self.error = caught.value

    @property
    def left(self) -> list[str]:
        """What is in the store, but locks, which are empty files."""
        return [path.name for path in (self.root / "7").iterdir() if path.name != ".locks"]


def test_a_build_that_hangs_is_ended(tmp_path: Path, index: str) -> None:
    build = Build(tmp_path / "environments", tmp_path / "repository", index, "hangs", seconds=4)
    assert isinstance(build.error, BuildFailed)
    assert "it was not done after 4 seconds" in build.error.message
    assert build.seconds < 120
    assert build.left == [] and not sleeping(HANGS)


@pytest.mark.parametrize("package", ["talks", "drones"])
def test_a_hundred_megabytes_of_words(tmp_path: Path, index: str, package: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    build = Build(tmp_path / "environments", tmp_path / "repository", index, package)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert "The environment could not be built" in build.error.message
    assert len(build.error.message) < 800
    assert len(build.log.getvalue()) < 12 * 2**20
    assert max(map(len, build.log.getvalue().splitlines())) < 5000
    assert grown < 80 * 1024, "kilobytes more of memory"
    assert build.left == []


def test_a_line_of_any_length_is_shown_up_to_a_limit(tmp_path: Path) -> None:
    log = io.StringIO()
    program = "print('w' * 60_000, flush=True); print('v' * 600_000); print('end')"
    code, lines = attempt(BuildLog(log), tmp_path, [sys.executable, "-c", program], {})
    assert code == 0 and lines[-1] == "end" and lines[0].startswith("www")
    assert max(map(len, lines)) == LINE_LENGTH
    assert max(map(len, log.getvalue().splitlines())) < LINE_LENGTH + 100


def test_a_compiler_that_is_missing_is_named(tmp_path: Path, index: str) -> None:
    build = Build(tmp_path / "environments", tmp_path / "repository", index, "compiles")
    assert "`x86_64-linux-gnu-gcc` is not on this host" in build.error.message
    assert build.left == []


def test_a_machine_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real setuptools, asked to compile a module in C, with no compiler on the path."""
    monkeypatch.setenv("PATH", str(without_compilers(tmp_path / "programs")))
    packages = {"compiled-1.tar.gz": extension_package("compiled")}
    with package_index(tmp_path / "index", packages) as index:
        monkeypatch.setenv("UV_INDEX", index)  # beside the machine's own, which has setuptools
        repository = tmp_path / "repository"
        commit(repository, {"requirements.txt": "compiled==1\n"})
        store = EnvironmentStore(tmp_path / "environments", minimum_free=1)
        with pytest.raises(BuildFailed) as caught:
            store.build(7, repository, io.StringIO())
    assert "a package has to be compiled" in caught.value.message
    assert "is not on this host. Install it" in caught.value.message
    left = [path.name for path in (tmp_path / "environments" / "7").iterdir()]
    assert left == [".locks"]


def test_a_daemon_does_not_hold_up_a_build_for_ever(tmp_path: Path, index: str) -> None:
    """It keeps the pipe that uv reads open; itself it is ended by the runner, with all of its job."""
    build = Build(tmp_path / "environments", tmp_path / "repository", index, "daemon", seconds=4)
    for process in sleeping(LEFT):
        process.kill()
    assert "it was not done after 4 seconds" in build.error.message
    assert build.seconds < 120 and build.left == []


@pytest.mark.parametrize(
    ("reserve", "words"),
    [
        (16 * 2**20, ("have to stay free",)),
        # Who is first to see it: the build itself, or the watch over it.
        (
            1,
            (
                "The disk became full while the environment was built",
                "only 0 MiB of disk were left",
            ),
        ),
    ],
)
def test_a_build_that_fills_the_disk(
    tmp_path: Path, index: str, small_disk: SmallDisk, reserve: int, words: tuple[str, ...]
) -> None:
    disk = small_disk(tmp_path / "disk", "48m")
    build = Build(disk / "environments", tmp_path / "repository", index, "fills", reserve=reserve)
    assert isinstance(build.error, NoSpace)
    assert any(each in build.error.message for each in words), build.error.message
    assert build.left == []
    used = sum(f.stat().st_size for f in disk.rglob("*") if f.is_file())
    assert used < 4 * 2**20, "what filled the disk is still there"


def test_an_environment_that_grows_too_large(tmp_path: Path, index: str) -> None:
    repository = tmp_path / "repository"
    commit(repository, {"requirements.txt": "iniconfig\n"})
    store = EnvironmentStore(tmp_path / "environments", limits=BuildLimits(size=50_000))
    with pytest.raises(BuildFailed, match="became larger than"):
        store.build(7, repository, io.StringIO())
    assert [p.name for p in (tmp_path / "environments" / "7").iterdir()] == [".locks"]


# Any bytes at all as the files that describe an environment


class AnyTree:
    """A commit that has these files and nothing else."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self._files = files

    def listing(self, directory: str) -> dict[str, Entry]:
        if directory:
            return {}
        return {name: Entry(name, "100644", "0" * 40) for name in self._files}

    def content(self, entry: Entry) -> bytes:
        return self._files[entry.path]


PIECES = [
    b"[project]\n", b"dependencies = ", b'["six"]', b"requires-python = ", b'">=3.9"', b"3.11", b"1\n",
    b"python-", b"-r ", b"-e .", b"-c ", b"./", b"../", b"requirements.txt", b"environment.yml",
    b"dependencies:\n", b"- ", b"pip:\n", b"  ", b"python=3.11", b"\n", b"\\\n", b"#", b"\xff", b"\0",
    b"[tool.uv.workspace]\nmembers = ", b"[1, 2]", b"&a [*a]", b"{", b"}", b"file:///etc/passwd", b"x.whl",
    b"!!python/object:os.system ", b"a @ ", b"\xef\xbb\xbf", b"git+ssh://x", b";", b"--index-url ",
    b"!!timestamp ", b"!!int ", b"? [a]\n: b", b"- *x\n", b"!!set {a}", b"- pip: 5\n", b"- pip: [1, {a: b}]",
]  # fmt: skip
CONTENTS = st.one_of(
    st.binary(max_size=80), st.lists(st.sampled_from(PIECES), max_size=10).map(b"".join)
)
NAMES = st.sampled_from(
    [
        "requirements.txt", "pyproject.toml", "uv.lock", "environment.yml", "environment.yaml",
        ".python-version", "runtime.txt", "uv.toml",
    ]
)  # fmt: skip
YAML_BOMB = b"a0: &a0 [x, x]\n" + b"".join(
    b"a%d: &a%d [%s]\n" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 10)) for n in range(1, 12)
) + b"dependencies: [*a11]\n"  # fmt: skip


@pytest.mark.parametrize("name", ["environment.yml", "environment.yaml"])
def test_a_bomb_of_aliases_or_depth_is_not_read(name: str) -> None:
    """Merged, five levels are a hundred thousand entries; each level more is ten times that."""
    merged = b"a0: &a0 {x: 1}\n" + b"".join(
        b"a%d: &a%d {<<: [%s]}\n" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 10))
        for n in range(1, 6)
    )
    for bomb in (merged, b"dependencies: " + b"[" * 60 + b"]" * 60):
        with pytest.raises(BuildFailed, match="too many aliases, or is nested too deeply"):
            read_recipe(AnyTree({name: bomb}))  # type: ignore[arg-type]


@settings(
    max_examples=400, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
@given(st.dictionaries(NAMES, CONTENTS, max_size=4))
@example({"environment.yml": b"dependencies:\n- pip: 5"})
@example({"environment.yml": b"dependencies:\n- pip: [1, {a: b}, [c]]"})
@example({"environment.yml": b"a: !!int ''"})
@example({"environment.yml": b"dependencies: " + b"[" * 5000})
@example({"environment.yml": YAML_BOMB})
@example({"pyproject.toml": b"[tool.uv.workspace]\nmembers = 5\n", "uv.lock": b""})
@example({"pyproject.toml": b"a = " + b"[" * 5000})
@example({"pyproject.toml": b"a = " + b"9" * 5000})
def test_any_files_give_a_recipe_or_a_sentence(files: dict[str, bytes]) -> None:
    try:
        recipe = read_recipe(AnyTree(files))  # type: ignore[arg-type]
    except BuildFailed as error:
        assert len(error.message) < 2000
        error.message.encode()
        return
    for path in recipe.files:
        assert not path.startswith(("/", "../")) and "\0" not in path
    assert all(isinstance(content, bytes) for content in recipe.files.values())

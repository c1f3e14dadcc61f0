"""Environments, really built: real git, real uv, real packages from the index, real kernels."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from images_repository import commit

import notebooks_service
from notebooks_service.errors import BuildFailed, ImageUnavailable, InvalidRequest, NoSpace
from notebooks_service.images.environments import Environment, EnvironmentStore
from notebooks_service.images.kernel_check import check

Files = dict[str, str | bytes | None]
PROJECT = 7
# Compiling takes half of a build's time and nothing here is about it, but `pinned`.
FAST = {**os.environ, "UV_COMPILE_BYTECODE": "0"}


@pytest.fixture(scope="session")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Roots of stores that share one cache, so that each package is downloaded once."""
    base = tmp_path_factory.mktemp("stores")
    return lambda name: base / name


@pytest.fixture
def root(stores: Callable[[str], Path], request: pytest.FixtureRequest) -> Path:
    return stores(request.node.name.replace("/", "_")[:60])


def build(root: Path, repository: Path, **options: object) -> tuple[Environment, str]:
    log = io.StringIO()
    options.setdefault("environ", FAST)
    try:
        return EnvironmentStore(root, **options).build(PROJECT, repository, log), log.getvalue()  # type: ignore[arg-type]
    finally:
        print(log.getvalue())


def python(environment: Environment, code: str) -> str:
    done = subprocess.run(
        [environment.python, "-c", code], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def versions(environment: Environment) -> dict[str, str]:
    code = "import importlib.metadata as m; print({d.name: d.version for d in m.distributions()})"
    return dict(eval(python(environment, code)))


def kernel_answers(environment: Environment) -> str:
    variables = {"PATH": os.environ["PATH"], **environment.kernel_env}
    return check(list(environment.kernel_argv), variables, 60)


def nothing_looks_whole(root: Path) -> bool:
    return not list(root.glob("*/*/image.json"))


@pytest.fixture(scope="session")
def pinned(
    stores: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, Environment, str]:
    """A store with one environment of two pins; its repository; the log of its build."""
    root, repository = stores("pinned"), tmp_path_factory.mktemp("pinned")
    commit(repository, {"requirements.txt": "six==1.15.0\npackaging==23.0\n"})
    environment, log = build(root, repository, environ=os.environ)
    return root, repository, environment, log


Pinned = tuple[Path, Path, Environment, str]


def test_the_pins_are_what_is_installed_and_a_kernel_answers(pinned: Pinned) -> None:
    _, _, environment, log = pinned
    found = versions(environment)
    assert (found["six"], found["packaging"]) == ("1.15.0", "23.0")
    assert environment.kernel == "added"
    assert kernel_answers(environment) == ""
    assert log.strip().splitlines()[-1].endswith(environment.digest)
    assert all(line.startswith("[") for line in log.splitlines())


def test_its_modules_are_compiled(pinned: Pinned) -> None:
    _, _, environment, _ = pinned
    assert list(environment.library.glob("__pycache__/six.*.pyc"))
    assert list(environment.library.glob("jedi/__pycache__/*.pyc"))


def test_it_is_read_only_and_shares_no_file_with_the_cache(pinned: Pinned) -> None:
    _, _, environment, _ = pinned
    assert stat.S_IMODE(environment.path.stat().st_mode) == 0o555
    for top, _, files in os.walk(environment.path):
        assert not Path(top).stat().st_mode & 0o222
        for name in files:
            found = Path(top, name).lstat()
            if not stat.S_ISLNK(found.st_mode):
                assert not found.st_mode & 0o222
                assert found.st_nlink == 1, name


def test_it_is_found_not_built_again(pinned: Pinned) -> None:
    root, repository, environment, _ = pinned
    commit(repository, {"README.md": "a line more"})
    again, log = build(root, repository)
    assert again == environment
    assert "built already" in log and len(log.splitlines()) == 1
    store = EnvironmentStore(root)
    assert store.get(PROJECT, environment.fingerprint) == environment
    assert store.fingerprint(repository) == environment.fingerprint
    assert store.find(PROJECT, environment.digest) == environment


def test_a_store_is_per_project(pinned: Pinned) -> None:
    root, _, environment, _ = pinned
    store = EnvironmentStore(root)
    assert store.get(PROJECT + 1, environment.fingerprint) is None
    assert store.find(PROJECT + 1, environment.digest) is None
    assert store.tags(PROJECT + 1) == {}
    with pytest.raises(ImageUnavailable):
        store.tag(PROJECT + 1, "1" * 40, environment.fingerprint)


def test_tags(pinned: Pinned) -> None:
    root, _, environment, _ = pinned
    store = EnvironmentStore(root)
    one, two = "1" * 40, "2" * 40
    store.tag(PROJECT, one, environment.fingerprint)
    store.tag(PROJECT, two, environment.fingerprint)
    store.tag(PROJECT, two, environment.fingerprint)
    assert store.tags(PROJECT) == {one: environment, two: environment}
    assert store.tagged(PROJECT, one) == environment
    assert store.tagged(PROJECT, "3" * 40) is None
    assert store.tagged(PROJECT, "../image.json") is None
    for wrong in ("abc", "1" * 39, "../" + "1" * 37, "A" * 40):
        with pytest.raises(InvalidRequest):
            store.tag(PROJECT, wrong, environment.fingerprint)
    for wrong in ("0" * 64, "..", "", environment.fingerprint[:12]):
        with pytest.raises(ImageUnavailable):
            store.tag(PROJECT, one, wrong)


def layered(environment: Environment, directory: Path) -> Environment:
    """The environment with a layer, as a server's own start makes it."""
    program = Path(notebooks_service.__file__).parent / "singleuser" / "layer.py"
    command = [sys.executable, "-I", "-S", program, directory, environment.python]
    subprocess.run([*command, environment.library, "--"], check=True)
    return environment.overlay(directory)


def test_a_layer_of_ones_own_takes_what_pip_installs(pinned: Pinned, tmp_path: Path) -> None:
    _, _, environment, _ = pinned
    before = versions(environment)
    layer = layered(environment, tmp_path / "layer")
    assert versions(layer) == before
    assert kernel_answers(layer) == ""
    run = subprocess.run(
        [tmp_path / "layer" / "bin" / "pip", "install", "-q", "iniconfig", "six==1.16.0"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert python(layer, "import iniconfig, six; print(six.__version__)") == "1.16.0"
    assert python(environment, "import six; print(six.__version__)") == "1.15.0"
    assert versions(environment) == before
    again = layered(environment, tmp_path / "layer")
    assert python(again, "import six; print(six.__version__)") == "1.16.0"


def test_no_file_gives_a_plain_environment_and_says_so(root: Path, tmp_path: Path) -> None:
    commit(tmp_path, {"README.md": "nothing here"})
    environment, log = build(root, tmp_path)
    assert "ipykernel" in versions(environment)
    assert "plain" in log and any("plain" in note for note in environment.notes)


def test_a_lock_file_is_obeyed_and_the_project_itself_not_built(root: Path, tmp_path: Path) -> None:
    from uv import find_uv_bin

    project = (
        '[project]\nname = "x"\nversion = "1"\nrequires-python = ">=3.9"\ndependencies = ["six<1.17"]\n'
        '[dependency-groups]\ndev = ["iniconfig"]\n'
        '[build-system]\nrequires = ["no-such-backend-5f2d"]\nbuild-backend = "nothing"\n'
    )
    commit(tmp_path, {"pyproject.toml": project})
    environ = {**os.environ, "UV_CACHE_DIR": str(root.parent / "cache" / "uv")}
    subprocess.run([find_uv_bin(), "lock", "-q"], cwd=tmp_path, env=environ, check=True)
    lock = (tmp_path / "uv.lock").read_text().replace('version = "1.16.0"', 'version = "1.16.0"')
    commit(tmp_path, {"uv.lock": lock})
    environment, _ = build(root, tmp_path)
    found = versions(environment)
    assert found["six"] == "1.16.0" and "iniconfig" in found and "x" not in found


def test_dependencies_of_a_project_without_a_lock(root: Path, tmp_path: Path) -> None:
    commit(
        tmp_path,
        {
            "pyproject.toml": '[project]\nname = "x"\nversion = "1"\ndependencies = ["six==1.16.0"]\n'
            '[build-system]\nrequires = ["no-such-backend-5f2d"]\nbuild-backend = "nothing"\n'
        },
    )
    assert versions(build(root, tmp_path)[0])["six"] == "1.16.0"


def test_the_pip_part_of_a_conda_file(root: Path, tmp_path: Path) -> None:
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    commit(
        tmp_path,
        {
            "environment.yml": f"dependencies:\n- python={version}\n- gdal\n- pip:\n  - six==1.16.0\n"
        },
    )
    environment, _ = build(root, tmp_path)
    assert versions(environment)["six"] == "1.16.0"
    assert any("gdal" in note for note in environment.notes)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"requirements.txt": "six==99"}, ["cannot be met", "six==99"]),
        ({"requirements.txt": "no-such-package-5f2d9c"}, ["cannot be met", "no-such-package-5f2d9c"]),
        ({"requirements.txt": "six==1.15.0\npackaging==23.0\nsix==1.16.0"}, ["cannot be met", "six"]),
        ({"requirements.txt": "this is !! not"}, ["cannot be met", "requirements.txt"]),
        ({"runtime.txt": "python-3.5"}, ["runtime.txt", "3.5", "not on this host", "3."]),
        ({".python-version": "2.7.18"}, [".python-version", "2.7.18"]),
        ({"pyproject.toml": '[project]\nname = "x"\nversion = "1"\ndependencies = ["six"]\n'
                            'requires-python = ">=3.99"'}, ["requires-python", ">=3.99"]),
        ({"pyproject.toml": '[project]\nname = "x"\nversion = "1"\ndependencies = ["six"]\n',
          "uv.lock": "not toml"}, ["uv.lock"]),
    ],
)  # fmt: skip
def test_what_cannot_be_built_is_a_sentence(
    root: Path, tmp_path: Path, files: Files, words: list[str]
) -> None:
    commit(tmp_path, files)
    with pytest.raises(BuildFailed) as caught:
        build(root, tmp_path)
    message = caught.value.message
    assert all(word in message for word in words), message
    assert message.endswith(".") and "\n" not in message and len(message) < 800
    assert nothing_looks_whole(root)


def test_an_index_that_is_away(root: Path, tmp_path: Path) -> None:
    commit(tmp_path, {"requirements.txt": "six==1.14.0"})
    environ = {
        **os.environ,
        "UV_DEFAULT_INDEX": "http://me:canary-5f2d9c@127.0.0.1:9/simple",
        "UV_HTTP_RETRIES": "0",
    }
    with pytest.raises(BuildFailed) as caught:
        build(root, tmp_path, environ=environ)
    assert "could not be reached" in caught.value.message
    assert "127.0.0.1:9" in caught.value.message
    assert "canary" not in caught.value.message


def test_a_full_disk_is_noticed_before(root: Path, tmp_path: Path) -> None:
    commit(tmp_path, {"requirements.txt": "six"})
    with pytest.raises(NoSpace, match="MiB are free"):
        build(root, tmp_path, minimum_free=10**18)
    assert nothing_looks_whole(root)


def test_a_builds_own_programs_get_no_secret_of_the_job(root: Path, tmp_path: Path) -> None:
    seen = tmp_path / "seen.json"
    setup = (
        "import json, os\nfrom setuptools import setup\n"
        f"json.dump(dict(os.environ), open({str(seen)!r}, 'w'))\n"
        "setup(name='spy', version='1', py_modules=[])\n"
    )
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, text in {
            "setup.py": setup,
            "PKG-INFO": "Metadata-Version: 2.1\nName: spy\nVersion: 1\n",
        }.items():
            info = tarfile.TarInfo(f"spy-1/{name}")
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    repository = tmp_path / "repository"
    commit(repository, {"requirements.txt": "./spy-1.tar.gz", "spy-1.tar.gz": archive.getvalue()})
    environ = {**FAST, "CI_JOB_TOKEN": "canary-5f2d9c", "JUPYTERHUB_API_TOKEN": "canary-77"}
    environment, _ = build(root, repository, environ=environ)
    assert versions(environment)["spy"] == "1"
    assert "canary" not in seen.read_text()
    assert json.loads(seen.read_text())["PATH"]


# How ipykernel joins


def test_the_projects_own_ipykernel_is_used_alone(root: Path, tmp_path: Path) -> None:
    commit(tmp_path, {"requirements.txt": "ipykernel==6.29.5\nipython<9\n"})
    environment, _ = build(root, tmp_path)
    assert environment.kernel == "project"
    assert versions(environment)["ipykernel"] == "6.29.5"


@pytest.mark.parametrize("pin", ["traitlets==4.3.3", "jupyter_client==4.0.0", "ipython==7.34.0"])
def test_old_pins_keep_their_version_and_get_an_ipykernel_that_fits(
    root: Path, tmp_path: Path, pin: str
) -> None:
    commit(tmp_path, {"requirements.txt": f"{pin}\n"})
    environment, _ = build(root, tmp_path)
    name, _, version = pin.partition("==")
    found = {one.replace("-", "_"): number for one, number in versions(environment).items()}
    assert found[name] == version
    assert environment.kernel == "added"
    assert kernel_answers(environment) == ""


def test_a_pin_that_no_ipykernel_accepts_gets_one_beside(root: Path, tmp_path: Path) -> None:
    """A fork of traitlets that calls itself 4.0: ipykernel's metadata refuses it, its code does not."""
    commit(
        tmp_path,
        {
            "requirements.txt": "./traitlets-4.0-py3-none-any.whl\n",
            "traitlets-4.0-py3-none-any.whl": _traitlets("4.0"),
        },
    )
    environment, log = build(root, tmp_path)
    assert environment.kernel == "beside"
    assert "beside" in log
    found = versions(environment)
    assert found["traitlets"] == "4.0"
    assert set(found) == {"traitlets", "pip"}, "the environment itself has nothing of the kernel's"
    assert kernel_answers(environment) == ""
    assert kernel_answers(layered(environment, tmp_path / "layer")) == ""


def _traitlets(version: str, *, empty: bool = False) -> bytes:
    import traitlets

    source = Path(traitlets.__file__).parent
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as wheel:
        files = [] if empty else sorted(source.rglob("*.py"))
        if empty:
            wheel.writestr("traitlets/__init__.py", "")
        for file in files:
            wheel.write(file, f"traitlets/{file.relative_to(source)}")
        info = f"traitlets-{version}.dist-info"
        wheel.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: traitlets\nVersion: {version}\n"
        )
        wheel.writestr(
            f"{info}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        wheel.writestr(f"{info}/RECORD", "")
    return out.getvalue()


def test_a_pin_that_no_kernel_can_live_with_is_named(root: Path, tmp_path: Path) -> None:
    wheel = "traitlets-4.0-py3-none-any.whl"
    commit(tmp_path, {"requirements.txt": f"./{wheel}\n", wheel: _traitlets("4.0", empty=True)})
    with pytest.raises(BuildFailed) as caught:
        build(root, tmp_path)
    assert "The pin traitlets==4.0 is in the way" in caught.value.message
    assert nothing_looks_whole(root)


# Killed and racing builds

PROGRAM = """
import sys
from pathlib import Path
from notebooks_service.images.environments import EnvironmentStore
EnvironmentStore(Path(sys.argv[1])).build(7, Path(sys.argv[2]), sys.stdout)
"""


def begin(root: Path, repository: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, str(root), str(repository)]
    return subprocess.Popen(command, env=FAST, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("moment", ["Creating virtual environment", "Adding ipykernel"])
def test_a_killed_build_leaves_nothing_that_looks_whole(
    root: Path, tmp_path: Path, moment: str
) -> None:
    commit(tmp_path, {"requirements.txt": "six==1.15.0\npackaging==23.0\n"})
    killed = begin(root, tmp_path)
    assert killed.stdout is not None
    for line in killed.stdout:
        if moment in line:
            killed.send_signal(signal.SIGKILL)
            break
    else:
        pytest.fail("the build ended before it could be killed")
    killed.wait()
    killed.stdout.close()
    left = [path for path in (root / "7").iterdir() if not path.name.startswith(".")]
    assert len(left) == 1 and not (left[0] / "image.json").exists()
    assert EnvironmentStore(root).get(PROJECT, left[0].name) is None
    environment, _ = build(root, tmp_path)
    assert environment.path == left[0]
    assert kernel_answers(environment) == ""


def test_leftovers_of_other_builds_are_removed_but_not_of_running_ones(
    root: Path, tmp_path: Path
) -> None:
    import fcntl

    place = root / "7"
    dead, alive = place / ("a" * 64), place / ("b" * 64)
    for directory in (dead, alive):
        (directory / "lib").mkdir(parents=True)
        (directory / "lib" / "file").write_text("half")
        (directory / "lib").chmod(0o555)
    (place / ".locks").mkdir()
    with (place / ".locks" / alive.name).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        commit(tmp_path, {"requirements.txt": "six==99"})
        with pytest.raises(BuildFailed):
            build(root, tmp_path)
        assert not dead.exists()
        assert alive.exists()


def test_two_builds_at_once_end_as_one(root: Path, tmp_path: Path) -> None:
    commit(tmp_path, {"requirements.txt": "six==1.15.0\npackaging==23.0\n"})
    both = [begin(root, tmp_path) for _ in range(2)]
    logs = [one.communicate(timeout=240)[0] for one in both]
    assert [one.returncode for one in both] == [0, 0], logs
    assert sum("Built in" in log for log in logs) == 1
    assert sum("waiting for it" in log or "built already" in log for log in logs) == 1
    assert len(list(root.glob("7/*/image.json"))) == 1


def test_a_record_of_another_place_is_not_believed(pinned: Pinned, tmp_path: Path) -> None:
    """A copied store has scripts and records that point back at the original."""
    _, _, environment, _ = pinned
    copy = tmp_path / "environments" / "7" / environment.fingerprint
    copy.mkdir(parents=True)
    shutil.copy(environment.path / "image.json", copy / "image.json")
    assert EnvironmentStore(tmp_path / "environments").get(PROJECT, environment.fingerprint) is None
    (copy / "image.json").chmod(0o644)
    (copy / "image.json").write_text('{"version": 1, "fing')
    assert EnvironmentStore(tmp_path / "environments").get(PROJECT, environment.fingerprint) is None

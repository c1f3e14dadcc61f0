"""From a commit's files to what its environment is made of, and to its fingerprint; real git."""

from __future__ import annotations

from pathlib import Path

import pytest
from images_repository import commit, git

from notebooks_service.errors import BuildFailed
from notebooks_service.images.fingerprint import canonical_text, fingerprint
from notebooks_service.images.recipe import Recipe, read_recipe
from notebooks_service.images.tree import CheckoutTree

Files = dict[str, str | bytes | None]
NO_DEPENDENCIES = '[project]\nname = "x"\nversion = "1"\nrequires-python = ">=3.99"\n'
PYPROJECT = '[project]\nname = "x"\nversion = "1"\ndependencies = ["six"]\n'


def recipe(tmp_path: Path, files: Files) -> Recipe:
    commit(tmp_path / "repository", files)
    return read_recipe(CheckoutTree(tmp_path / "repository"))


@pytest.mark.parametrize(
    ("files", "strategy", "python", "inputs"),
    [
        ({}, "nothing", None, []),
        ({"README.md": "hello"}, "nothing", None, []),
        ({"requirements.txt": "six\n"}, "requirements.txt", None, ["requirements.txt"]),
        ({"requirements.txt": ""}, "requirements.txt", None, ["requirements.txt"]),
        ({"pyproject.toml": PYPROJECT}, "pyproject.toml", None, ["pyproject.toml"]),
        (
            {"pyproject.toml": PYPROJECT, "requirements.txt": "attrs"},
            "pyproject.toml", None, ["pyproject.toml"],
        ),
        (
            {"pyproject.toml": PYPROJECT, "uv.lock": "version = 1", "requirements.txt": "attrs"},
            "uv.lock", None, ["pyproject.toml", "uv.lock"],
        ),
        ({"uv.lock": "version = 1"}, "nothing", None, []),
        (
            {"pyproject.toml": "[tool.ruff]\n", "requirements.txt": "six"},
            "requirements.txt", None, ["requirements.txt"],
        ),
        (
            {"pyproject.toml": '[project]\nname = "x"\ndynamic = ["dependencies"]\n',
             "requirements.txt": "six"},
            "requirements.txt", None, ["requirements.txt"],
        ),
        ({"pyproject.toml": "[tool.ruff]\n"}, "nothing", None, []),
        (
            {"environment.yml": "dependencies:\n- python=3.10\n- pip:\n  - six\n"},
            "environment.yml", "3.10", ["environment.yml"],
        ),
        (
            {"environment.yaml": "dependencies: [python]\n"},
            "environment.yml", None, ["environment.yaml"],
        ),
        (
            {"environment.yml": "name: x\n", "requirements.txt": "six"},
            "requirements.txt", None, ["requirements.txt"],
        ),
        ({"runtime.txt": "python-3.10\n"}, "nothing", "3.10", ["runtime.txt"]),
        (
            {"runtime.txt": "python-3.10.4", "requirements.txt": "six"},
            "requirements.txt", "3.10.4", ["requirements.txt", "runtime.txt"],
        ),
        (
            {".python-version": "# ours\n3.12\n", "runtime.txt": "python-3.10"},
            "nothing", "3.12", [".python-version"],
        ),
        ({".python-version": "cpython-3.11\n"}, "nothing", "cpython-3.11", [".python-version"]),
        ({".python-version": "system\n"}, "nothing", None, [".python-version"]),
        (
            {"pyproject.toml": PYPROJECT + 'requires-python = ">=3.9, <3.13"\n'},
            "pyproject.toml", ">=3.9, <3.13", ["pyproject.toml"],
        ),
        (
            {"pyproject.toml": NO_DEPENDENCIES, "requirements.txt": "six"},
            "requirements.txt", ">=3.99", ["pyproject.toml", "requirements.txt"],
        ),
        (
            {"pyproject.toml": NO_DEPENDENCIES, "environment.yml": "dependencies: [python=3.10]\n"},
            "environment.yml", "3.10", ["environment.yml", "pyproject.toml"],
        ),
        ({"pyproject.toml": NO_DEPENDENCIES}, "nothing", ">=3.99", ["pyproject.toml"]),
        (
            {"pyproject.toml": PYPROJECT + 'requires-python = "==3.10.*"\n', ".python-version": "3.10"},
            "pyproject.toml", "3.10", [".python-version", "pyproject.toml"],
        ),
        (
            {"requirements.txt": "-r more/dev.txt\n--constraint=pins.txt\nsix\n",
             "more/dev.txt": "-r ../base.txt\n", "base.txt": "attrs", "pins.txt": "six==1.16.0"},
            "requirements.txt", None, ["base.txt", "more/dev.txt", "pins.txt", "requirements.txt"],
        ),
        (
            {"requirements.txt": "-rbase.txt\n", "base.txt": "-c requirements.txt\n"},
            "requirements.txt", None, ["base.txt", "requirements.txt"],
        ),
        (
            {"requirements.txt": "-e .[dev]\n", "pyproject.toml": PYPROJECT.replace("six", "attrs")},
            "pyproject.toml", None, ["pyproject.toml"],
        ),
        (
            {"requirements.txt": "-e .\n", "setup.py": "raise SystemExit"},
            "requirements.txt", None, ["requirements.txt"],
        ),
        (
            {"requirements.txt": "./wheels/a-1-py3-none-any.whl\n",
             "wheels/a-1-py3-none-any.whl": b"PK", "wheels/other.whl": b"PK"},
            "requirements.txt", None, ["requirements.txt", "wheels/a-1-py3-none-any.whl"],
        ),
        (
            {"requirements.txt": "six", "uv.toml": "offline = false\n"},
            "requirements.txt", None, ["requirements.txt", "uv.toml"],
        ),
        (
            {"pyproject.toml": PYPROJECT + '[tool.uv.workspace]\nmembers = ["packages/*", "tool"]\n',
             "uv.lock": "version = 1", "packages/a/pyproject.toml": "", "tool/pyproject.toml": "",
             "elsewhere/b/pyproject.toml": "", "packages/a/code.py": ""},
            "uv.lock", None,
            ["packages/a/pyproject.toml", "pyproject.toml", "tool/pyproject.toml", "uv.lock"],
        ),
    ],
)  # fmt: skip
def test_what_an_environment_is_made_of(
    tmp_path: Path, files: Files, strategy: str, python: str | None, inputs: list[str]
) -> None:
    found = recipe(tmp_path, files)
    assert found.strategy == strategy
    assert (found.python.version if found.python else None) == python
    assert [entry.path for entry in found.inputs] == inputs


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"pyproject.toml": "not = = toml"}, ["pyproject.toml", "TOML"]),
        ({"environment.yml": "a: b: c\n"}, ["environment.yml", "line 1", "YAML"]),
        ({"runtime.txt": "r-4.1-2021-10-10"}, ["runtime.txt", "r-4.1"]),
        ({".python-version": "pypy3.9"}, [".python-version", "pypy3.9"]),
        ({"runtime.txt": "python---help"}, ["runtime.txt", "--help"]),
        ({"requirements.txt": "-r gone.txt"}, ["requirements.txt", "gone.txt"]),
        ({"requirements.txt": "-r ../../etc/passwd"}, ["requirements.txt", "outside"]),
        ({"requirements.txt": "-r /etc/passwd"}, ["requirements.txt", "outside"]),
        ({"requirements.txt": "./gone-1-py3-none-any.whl"}, ["gone-1-py3-none-any.whl"]),
        ({"requirements.txt": b"\xff\xfe\x00s"}, ["requirements.txt", "UTF-8"]),
        ({"pyproject.toml": PYPROJECT + 'requires-python = "three"'}, ["requires-python", "three"]),
    ],
)  # fmt: skip
def test_a_wrong_file_is_named(tmp_path: Path, files: Files, words: list[str]) -> None:
    with pytest.raises(BuildFailed) as caught:
        recipe(tmp_path, files)
    assert all(word in caught.value.message for word in words), caught.value.message


@pytest.mark.parametrize(
    ("files", "word"),
    [
        ({"requirements.txt": "-e ./lib\n", "lib/setup.py": ""}, "-e ./lib"),
        ({"requirements.txt": "-e .\n"}, "-e ."),
        ({"requirements.txt": "x @ file:///opt/x\n"}, "file:///opt/x"),
        ({"requirements.txt": "-r https://example.org/r.txt\n"}, "network"),
        ({"environment.yml": "dependencies: [numpy=1.2, 'conda-forge::gdal', pip]\n"}, "gdal"),
        ({}, "plain"),
        ({"pyproject.toml": "[tool.x]\n"}, "no dependencies"),
    ],
)
def test_what_is_left_out_is_said(tmp_path: Path, files: Files, word: str) -> None:
    assert any(word in note for note in recipe(tmp_path, files).notes)


def test_what_is_handed_to_the_package_manager(tmp_path: Path) -> None:
    found = recipe(
        tmp_path,
        {
            "requirements.txt": "\ufeffsix==1.16.0 \\\r\n    --hash=sha256:00 # why\r\n-e .[a,b]\r\n",
            "pyproject.toml": '[project]\nname = "x"\nversion = "1"\n',
        },
    )
    assert found.files["requirements.txt"].split(b"\n") == [
        b"six==1.16.0      --hash=sha256:00", b"# left out: -e .[a,b]", b"",
    ]  # fmt: skip
    assert found.requirements == ("requirements.txt", "pyproject.toml")
    assert found.extras == ("a", "b")


@pytest.mark.parametrize(
    ("spec", "version"),
    [
        ("python=3.10", "3.10"), ("python==3.10.4", "3.10.4"), ("python=3.10.*", "3.10"),
        ("python 3.11", "3.11"), ("conda-forge::python=3.9", "3.9"), ("python>=3.9,<3.12", ">=3.9,<3.12"),
        ("python", None), ("python=*", None), ("python=3.8=h12debd9_0", "3.8"),
    ],
)  # fmt: skip
def test_python_as_conda_writes_it(tmp_path: Path, spec: str, version: str | None) -> None:
    found = recipe(tmp_path, {"environment.yml": f"dependencies: ['{spec}', numpy]\n"})
    assert (found.python.version if found.python else None) == version


def name_of(repository: Path, sha: str = "HEAD") -> str:
    return fingerprint(canonical_text(read_recipe(CheckoutTree(repository, sha)), "3.11"))


def test_only_inputs_change_the_fingerprint(tmp_path: Path) -> None:
    files: Files = {"requirements.txt": "-r base.txt\n", "base.txt": "six\n", "README.md": "a"}
    commit(tmp_path, files)
    first = name_of(tmp_path)
    outside: list[Files] = [
        {"README.md": "b"}, {"notes.txt": "c"}, {"sub/requirements.txt": "attrs"},
        {"environment.yml": "name: x\n"}, {"requirements-dev.txt": "d"}, {"uv.lock": "x"}, {"uv.lock": None},
        {"pyproject.toml": "[tool.ruff]\n"},
    ]  # fmt: skip
    for change in outside:
        commit(tmp_path, change)
        assert name_of(tmp_path) == first, change
    inside: list[Files] = [
        {"base.txt": "six \n"}, {"requirements.txt": "-r base.txt\nattrs\n"},
        {"runtime.txt": "python-3.11"}, {".python-version": "3.11"}, {"uv.toml": "offline = false"},
        {"pyproject.toml": PYPROJECT},
    ]  # fmt: skip
    seen = {first}
    for change in inside:
        commit(tmp_path, change)
        name = name_of(tmp_path)
        assert name not in seen, change
        seen.add(name)


def test_mode_and_name_of_an_input_count(tmp_path: Path) -> None:
    commit(tmp_path, {"requirements.txt": "-r a.txt\n", "a.txt": "six\n"})
    first = name_of(tmp_path)
    git(tmp_path, "update-index", "--chmod=+x", "a.txt")
    git(tmp_path, "commit", "-q", "-m", "mode")
    assert name_of(tmp_path) != first


def test_the_commit_counts_not_the_working_tree(tmp_path: Path) -> None:
    sha = commit(tmp_path, {"requirements.txt": "six\n"})
    first = name_of(tmp_path)
    (tmp_path / "requirements.txt").write_text("attrs\n")
    assert name_of(tmp_path) == first
    commit(tmp_path, {"requirements.txt": "attrs\n"})
    assert name_of(tmp_path, sha) == first != name_of(tmp_path)


def test_links_are_followed_within_the_repository_and_not_beyond(tmp_path: Path) -> None:
    commit(tmp_path, {"env/pins.txt": "six\n"})
    (tmp_path / "requirements.txt").symlink_to("env/pins.txt")
    commit(tmp_path, {})
    found = read_recipe(CheckoutTree(tmp_path))
    assert found.files["requirements.txt"] == b"six\n"
    assert [entry.path for entry in found.inputs] == ["env/pins.txt", "requirements.txt"]
    (tmp_path / "requirements.txt").unlink()
    (tmp_path / "requirements.txt").symlink_to("/etc/passwd")
    commit(tmp_path, {})
    with pytest.raises(BuildFailed, match="outside"):
        read_recipe(CheckoutTree(tmp_path))
    (tmp_path / "requirements.txt").unlink()
    (tmp_path / "requirements.txt").symlink_to("requirements.txt")
    commit(tmp_path, {})
    with pytest.raises(BuildFailed, match="link"):
        read_recipe(CheckoutTree(tmp_path))


def test_names_that_look_like_options_or_patterns(tmp_path: Path) -> None:
    commit(tmp_path, {"requirements.txt": "-r *.txt\n", "*.txt": "six\n", "b.txt": "attrs\n"})
    found = read_recipe(CheckoutTree(tmp_path))
    assert [entry.path for entry in found.inputs] == ["*.txt", "requirements.txt"]


def test_no_repository_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(BuildFailed, match="cannot be read"):
        read_recipe(CheckoutTree(tmp_path))

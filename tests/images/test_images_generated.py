"""The Dockerfile of a commit that has none: a table of texts, what is refused, and what it can never hold."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from images_files import Link, MemoryFiles, MemoryGitLab, Program, Tree

from notebooks_service.errors import BuildFailed
from notebooks_service.images.fingerprint import BuildOptions, environment_of
from notebooks_service.images.generated import (
    FILES,
    UV,
    Generated,
    Plan,
    dockerfile,
    generate,
    packages,
    python_condition,
    written,
)

BASE = "registry.example.org/team/base:1"
PIP = (
    f"RUN python3 -m pip install --quiet --no-cache-dir --target=/tmp/notebooks-build/uv {UV} "
    "&& cd /tmp/notebooks-build/files{place} && UV_NO_CACHE=1 UV_LINK_MODE=copy "
    "UV_PYTHON_DOWNLOADS=never UV_NO_PROGRESS=1 {uv} && rm -rf /tmp/notebooks-build/uv"
)
INSTALL = (
    "/tmp/notebooks-build/uv/bin/uv pip install --break-system-packages "
    '--python "$(command -v python3)" '
)
SYNC = (
    "UV_PROJECT_ENVIRONMENT=\"$(python3 -c 'import sys; print(sys.prefix)')\" "
    "/tmp/notebooks-build/uv/bin/uv sync --frozen --inexact --no-install-project "
    '--no-install-workspace --no-install-local --python "$(command -v python3)"'
)
COPY, CLEAN = "COPY . /tmp/notebooks-build", "RUN rm -rf /tmp/notebooks-build"


def made(tree: Tree, place: str = "", base: str = BASE) -> Generated:
    return generate(MemoryFiles(tree), place, base)


@pytest.mark.parametrize(
    ("tree", "place", "lines", "files"),
    [
        (
            {"requirements.txt": b"six\n-r more/\xc3\xa9.txt\n-e .\n", "more/é.txt": b"attrs", "README": b"x"},
            "",
            [COPY, PIP.format(place="", uv=f"{INSTALL}-r requirements.txt"), CLEAN],
            {"files/requirements.txt", "files/more/é.txt"},
        ),
        (
            {"binder/requirements.txt": b"-r ../base.txt", "base.txt": b"six", "requirements.txt": b"no"},
            "binder",
            [COPY, PIP.format(place="/binder", uv=f"{INSTALL}-r requirements.txt"), CLEAN],
            {"files/binder/requirements.txt", "files/base.txt"},
        ),
        (
            {"pyproject.toml": b'[project]\nname="x"\nversion="1"\ndependencies=["six"]', "uv.lock": b"version = 1",
             "uv.toml": b""},
            "",
            [COPY, PIP.format(place="", uv=SYNC), CLEAN],
            {"files/pyproject.toml", "files/uv.lock", "files/uv.toml"},
        ),
        (
            {".binder/pyproject.toml": b'[project]\nname="x"\nversion="1"\ndependencies=["six"]'},
            ".binder",
            [COPY, PIP.format(place="/.binder", uv=f"{INSTALL}-r pyproject.toml"), CLEAN],
            {"files/.binder/pyproject.toml"},
        ),
        (
            {"environment.yml": b"dependencies:\n- numpy\n- pip:\n  - six\n"},
            "",
            [COPY, PIP.format(place="", uv=f"{INSTALL}-r environment-pip-part.txt"), CLEAN],
            {"files/environment-pip-part.txt"},
        ),
        (
            {"apt.txt": b"# tools\ngraphviz  g++\nlibx-dev=1:2.3-4~a\ngraphviz\n", "postBuild": Program(b"#!/bin/sh\n")},
            "",
            [
                "RUN apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends "
                "-- graphviz g++ libx-dev=1:2.3-4~a && rm -rf /var/lib/apt/lists/*",
                COPY,
                "USER 1000",
                'RUN cd "$HOME" && /tmp/notebooks-build/postBuild',
                "USER 0",
                CLEAN,
            ],
            {"postBuild"},
        ),
        ({"runtime.txt": b"python-3.11", "apt.txt": b""}, "", ["(v[:2] == (3, 11))"], set()),
    ],
)  # fmt: skip
def test_the_text(tree: Tree, place: str, lines: list[str], files: set[str]) -> None:
    found = made(tree, place)
    said = found.text.splitlines()
    assert said[:3] == ["# Generated, version 1", f"FROM {BASE}", "USER 0"]
    assert said[-1] == "USER 1000"
    middle = said[3:-1]
    if "runtime.txt" in tree:
        [check] = middle
        assert lines[0] in check and json.loads(check.removeprefix("RUN "))[0] == "python3"
    else:
        assert middle == lines
    assert set(found.files) == files


def test_the_files_are_those_of_the_commit_and_others_can_read_them() -> None:
    tree = {"requirements.txt": b"./w/a-1-py3-none-any.whl", "w/a-1-py3-none-any.whl": b"PK",
            "postBuild": b"echo hello"}  # fmt: skip
    found = made(tree)
    with written(found) as (context, text):
        here = {str(each.relative_to(context)) for each in context.rglob("*") if each.is_file()}
        assert here == {"files/requirements.txt", "files/w/a-1-py3-none-any.whl", "postBuild"}
        assert not text.is_relative_to(context) and text.read_text() == found.text
        assert (context / "postBuild").stat().st_mode & 0o777 == 0o755
        assert (context / FILES / "w").stat().st_mode & 0o777 == 0o755
        assert (context / FILES / "requirements.txt").stat().st_mode & 0o777 == 0o644
    assert not context.exists()


@pytest.mark.parametrize(
    ("tree", "base", "words"),
    [
        ({"apt.txt": b"a; rm -rf /"}, BASE, "`a;`, which is no Debian package"),
        ({"apt.txt": b"--allow-unauthenticated"}, BASE, "no Debian package"),
        ({"apt.txt": b"./evil.deb"}, BASE, "no Debian package"),
        ({"apt.txt": b"bash-"}, BASE, "no Debian package"),
        ({"apt.txt": b"$(id)"}, BASE, "no Debian package"),
        ({"apt.txt": b"a*"}, BASE, "no Debian package"),
        ({"apt.txt": b"libx\\\nUSER=1"}, BASE, "no Debian package"),
        ({"apt.txt": "bäsh".encode()}, BASE, "no Debian package"),
        ({"apt.txt": "\n".join(f"p{n}" for n in range(501)).encode()}, BASE, "more than 500"),
        ({"setup.py": b""}, BASE, "only to those who run it"),
        ({"runtime.txt": b"r-4.1"}, BASE, "only Python"),
        ({"runtime.txt": b"python-" + b"3." + b"1" * 5000}, BASE, "no version of Python"),
        ({"requirements.txt": b"-r gone.txt"}, BASE, "not in the commit"),
        ({"requirements.txt": Link(b"/etc/passwd")}, BASE, "outside the repository"),
        ({"requirements.txt": b"six"}, "base\nRUN id", "names no image"),
        ({"requirements.txt": b"six"}, "--platform=x base", "names no image"),
        ({"requirements.txt": b"six"}, "base:$TAG", "names no image"),
        ({"pyproject.toml": b'[project]\nname="x"', "requirements.txt": b".[a b]"}, BASE, "no extra"),
    ],
)  # fmt: skip
def test_what_nothing_is_made_of(tree: Tree, base: str, words: str) -> None:
    with pytest.raises(BuildFailed, match=words):
        made(tree, base=base)


@pytest.mark.parametrize(
    "base", ["python:3.12", "localhost:5000/a/b_c:v1.2", f"r.example/x@sha256:{'a' * 64}", "base"]
)
def test_names_of_bases(base: str) -> None:
    assert f"FROM {base}\n" in made({"requirements.txt": b"six"}, base=base).text


@pytest.mark.parametrize(
    ("asked", "fits", "not_these"),
    [
        ("3.11", [(3, 11, 0), (3, 11, 9)], [(3, 1, 1), (3, 12, 0)]),
        ("3.11.4", [(3, 11, 4), (3, 11, 9)], [(3, 12, 4)]),
        (">=3.9,<3.12", [(3, 9, 0), (3, 11, 9)], [(3, 8, 9), (3, 12, 0)]),
        (">=3.9, <3.12,", [(3, 9, 0), (3, 11, 9)], [(3, 8, 9), (3, 12, 0)]),
        ("~=3.9", [(3, 9, 0), (3, 14, 1)], [(3, 8, 0), (4, 0, 0)]),
        ("~=3.9.2", [(3, 9, 2), (3, 9, 9)], [(3, 9, 1), (3, 10, 0)]),
        ("==3.10.*", [(3, 10, 5)], [(3, 11, 0)]),
        (">3.9,!=3.10.*", [(3, 9, 1), (3, 11, 0)], [(3, 10, 1), (3, 9, 0)]),
        (">=3", [(3, 0, 0), (3, 13, 1)], [(2, 7, 18)]),
    ],
)  # fmt: skip
def test_which_python_fits(
    asked: str, fits: list[tuple[int, ...]], not_these: list[tuple[int, ...]]
) -> None:
    condition = python_condition(asked)
    assert all(eval(condition, {"v": v}) for v in fits)
    assert not any(eval(condition, {"v": v}) for v in not_these)


def test_another_python_than_the_bases_ends_the_build_with_a_sentence() -> None:
    for asked, code in ((">=3.9", 0), ("2.7", 1)):
        line = next(
            each for each in dockerfile(Plan(BASE, python=asked)).splitlines() if "python3" in each
        )
        command = [sys.executable, *json.loads(line.removeprefix("RUN "))[1:]]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == code
        assert (
            code == 0
            or "ERROR: This project asks for Python 2.7, and the base image has 3" in done.stderr
        )


HOSTILE = st.text(st.sampled_from("a.é $;&|`'\"\\\n*[](){}<>#-\u202e"), min_size=1, max_size=12)


@settings(max_examples=150, deadline=None)
@given(HOSTILE, HOSTILE)
def test_no_word_of_a_repository_gets_into_the_text(name: str, word: str) -> None:
    """Names of files and lines of them are in the context, whatever they are."""
    tree = {"requirements.txt": b"six"}
    usual = made(tree).text
    assert made({**tree, "requirements-x.txt": word.encode(), "postBuild": word.encode()}).text == (
        made({**tree, "postBuild": b""}).text
    )
    whole = {"requirements.txt": f"{word}\n".encode()}
    with suppress(BuildFailed):  # an include of a file that is not there
        assert made(whole).text == usual
    try:
        found = packages("apt.txt", f"{name}\n{word}".encode())
    except BuildFailed:
        return
    assert all(re.fullmatch(r"[a-z0-9.+:~=-]+", each, re.ASCII) for each in found)


def test_what_is_built_counts_and_the_text_and_its_base_too() -> None:
    member = {"pyproject.toml": b'[project]\nname="x"\n[tool.uv.workspace]\nmembers=["a"]', "uv.lock": b"",
              "a/pyproject.toml": b'[project]\nname="a"'}  # fmt: skip
    options = BuildOptions(base=BASE)
    found = environment_of(MemoryFiles(member), options)
    assert "generated 1\n" in found.text and f'base "{BASE}" unknown' in found.text
    assert [each.path for each in found.inputs].count("a/pyproject.toml") == 1
    other = {**member, "a/pyproject.toml": b'[project]\nname="a"\nversion="2"'}
    assert environment_of(MemoryFiles(other), options).fingerprint != found.fingerprint
    pinned = BuildOptions(base=BASE, base_digest=lambda reference: f"sha256:{'e' * 64}")
    told = environment_of(MemoryFiles(member), pinned)
    assert told.bases == ((BASE, f"sha256:{'e' * 64}"),) and told.fingerprint != found.fingerprint
    tree = {"environment.yml": b"dependencies: [numpy, {pip: [six]}]", "start": b""}
    notes = environment_of(MemoryFiles(tree), pinned).not_reproducible
    assert any("numpy" in each for each in notes) and any("`start`" in each for each in notes)


def test_its_name_needs_no_more_than_what_says_something() -> None:
    """Locks, packages and programs may be large, and the forge is asked for each file."""
    tree: Tree = {
        "pyproject.toml": b'[project]\nname="x"\ndependencies=["six"]', "uv.lock": b"version = 1",
        "postBuild": Program(b"x"), "README.md": b"",
    }  # fmt: skip
    forge = MemoryGitLab(tree)
    found = environment_of(forge.files(), BuildOptions(base=BASE))
    assert len(forge.requests) == 2, forge.requests
    for path in ("uv.lock", "postBuild"):
        changed = MemoryFiles({**tree, path: Program(b"other")})
        assert environment_of(changed, BuildOptions(base=BASE)).fingerprint != found.fingerprint
    assert made(tree).files["files/uv.lock"] == b"version = 1"
    wheel = MemoryGitLab({"requirements.txt": b"./a-1.whl", "a-1.whl": b"PK"})
    environment_of(wheel.files(), BuildOptions(base=BASE))
    assert len(wheel.requests) == 2, wheel.requests


def test_nothing_with_a_dockerfile_knows_of_the_base() -> None:
    tree = MemoryFiles({"Dockerfile": b"FROM x", "requirements.txt": b"-r gone.txt"})
    assert environment_of(tree, BuildOptions(base=BASE)) == environment_of(tree, BuildOptions())

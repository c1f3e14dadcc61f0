"""From a commit's files to its environment's fingerprint: the same by API and from a checkout, and
changed by what the environment depends on and by nothing else."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, note, settings
from hypothesis import strategies as st
from images_files import (
    Gitlink,
    Link,
    MemoryFiles,
    MemoryGitLab,
    Program,
    Tree,
    fast_import,
    write_out,
)

from notebooks_service.errors import BuildFailed
from notebooks_service.gitlab.files import KnownObjects
from notebooks_service.images.environments import EnvironmentStore
from notebooks_service.images.explain import as_facts, as_text, explain, local_options
from notebooks_service.images.fingerprint import (
    BuildOptions,
    Described,
    EnvironmentText,
    describe,
    environment_of,
    interval_at,
)
from notebooks_service.images.tree import CheckoutTree

OPTIONS = BuildOptions()
PINNED = "FROM python@sha256:" + "a" * 64 + "\n"


def named(files: dict[str, str | bytes], options: BuildOptions = OPTIONS) -> EnvironmentText:
    return environment_of(MemoryFiles(tree(files)), options)


def tree(files: dict[str, str | bytes]) -> dict[str, bytes]:
    return {path: c.encode() if isinstance(c, str) else c for path, c in files.items()}


def paths(found: EnvironmentText) -> list[str]:
    return sorted(each.path for each in found.inputs)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bare")
    subprocess.run(["git", "init", "-q", "--bare", str(path)], check=True)
    return path


BODY = {"a.txt": "1", "b.txt": "2", "src/x.py": "3", "src/data/big": "4", "docs/i.md": "5"}


@pytest.mark.parametrize(
    ("dockerfile", "ignore", "inputs"),
    [
        ("RUN true", None, []),
        ("COPY a.txt /x", None, ["a.txt"]),
        ("COPY ./a.txt /x", None, ["a.txt"]),
        ("COPY /a.txt /x", None, ["a.txt"]),
        ("COPY ../../a.txt /x", None, ["a.txt"]),
        ("COPY a.txt b.txt /x/", None, ["a.txt", "b.txt"]),
        ('COPY ["a.txt", "b.txt", "/x/"]', None, ["a.txt", "b.txt"]),
        ("COPY missing /x", None, []),
        ("COPY src /x", None, ["src"]),
        ("COPY src/ /x", None, ["src"]),
        ("COPY src src/x.py /x/", None, ["src"]),
        ("COPY *.txt /x/", None, ["a.txt", "b.txt"]),
        ("COPY [ab].txt /x/", None, ["a.txt", "b.txt"]),
        ("COPY [^a].txt /x/", None, ["b.txt"]),
        ("COPY ?.txt /x/", None, ["a.txt", "b.txt"]),
        ("COPY s*/x.py /x/", None, ["src/x.py"]),
        ("COPY */*.py /x/", None, ["src/x.py"]),
        ("COPY * /x/", None, ["Dockerfile", "a.txt", "b.txt", "docs", "src"]),
        ("COPY [ /x/", None, []),
        ("COPY . /x", None, ["Dockerfile", "a.txt", "b.txt", "docs", "src"]),
        ("ADD . /x", None, ["Dockerfile", "a.txt", "b.txt", "docs", "src"]),
        ("COPY . /x", "docs", [".dockerignore", "Dockerfile", "a.txt", "b.txt", "src"]),
        ("COPY . /x", "docs\n*.txt\nDockerfile\n.dockerignore", ["src"]),
        ("COPY . /x", "*\n!src", ["src"]),
        ("COPY . /x", "*\n!src/x.py", ["src/x.py"]),
        ("COPY . /x", "*\n!**/*.py", ["src/x.py"]),
        ("COPY . /x", "*\n!src\nsrc/data", ["src/x.py"]),
        ("COPY src /x", "src/data", ["src/x.py"]),
        ("COPY src /x", "**/big", ["src/x.py"]),
        ("COPY src /x", "data", ["src"]),
        ("COPY src /x", "/src/data/", ["src/x.py"]),
        ("COPY src /x", "# src\n\n  src/data  ", ["src/x.py"]),
        ("COPY src /x", "!src/data\nsrc", []),
        ("COPY a.txt /x", "a.txt", []),
        ("COPY <<EOF /x\nCOPY a.txt /y\nEOF", None, []),
        ("COPY <<EOF a.txt /x/\n1\nEOF", None, ["a.txt"]),
        ("RUN <<EOF\nCOPY a.txt /y\nEOF", None, []),
        ("RUN --mount=type=bind,source=src,target=/s true", None, ["src"]),
        ("RUN --mount=src=a.txt,target=/s true", None, ["a.txt"]),
        ("RUN --mount=target=/s true", None, ["Dockerfile", "a.txt", "b.txt", "docs", "src"]),
        ("RUN --mount=type=cache,target=/s true", None, []),
        ("RUN --mount=type=secret,id=a.txt true", None, []),
        ("RUN --mount=type=bind,from=busybox,source=src,target=/s true", None, []),
        ("ARG F=a.txt\nCOPY $F /x", None, ["a.txt"]),
        ("ARG F\nENV F=b.txt\nCOPY ${F} /x", None, ["b.txt"]),
        ("ENV D=src\nENV D=no F=${D}/x.py\nENV G=$F\nCOPY ${G:-no} /x", None, ["src/x.py"]),
        ("COPY $HOME/f /x", None, ["Dockerfile", "a.txt", "b.txt", "docs", "src"]),
        ("ADD https://example.org/a.txt /x", None, []),
        ("ONBUILD COPY a.txt /x", None, []),
        ("COPY --from=busybox a.txt /x", None, []),
        ("COPY --chown=1:1 --link a.txt /x", None, ["a.txt"]),
        ("COPY --parents ./**/*.py /x/", None, ["src/x.py"]),
        ("COPY --parents src/./x.py /x/", None, ["src/x.py"]),
        ("COPY a.txt \\\n# why\n  b.txt /x/", None, ["a.txt", "b.txt"]),
    ],
)  # fmt: skip
def test_what_a_dockerfile_takes(dockerfile: str, ignore: str | None, inputs: list[str]) -> None:
    files = {**BODY, "Dockerfile": f"{PINNED}{dockerfile}\n"}
    if ignore is not None:
        files[".dockerignore"] = ignore
    found = named(files)
    assert paths(found) == sorted({*inputs, "Dockerfile"})
    assert found.kind == "dockerfile"


@pytest.mark.parametrize(
    ("dockerfile", "target", "inputs", "bases"),
    [
        ("FROM x AS a\nCOPY a.txt /\nFROM y\nCOPY b.txt /", "", ["b.txt"], ["y"]),
        ("FROM x AS a\nCOPY a.txt /\nFROM y\nCOPY b.txt /", "a", ["a.txt"], ["x"]),
        ("FROM x AS a\nCOPY a.txt /\nFROM y\nCOPY b.txt /", "0", ["a.txt"], ["x"]),
        ("FROM x AS a\nCOPY a.txt /\nFROM a\nCOPY b.txt /", "", ["a.txt", "b.txt"], ["x"]),
        ("FROM x AS Build\nCOPY a.txt /\nFROM y\nCOPY --from=build /a /", "", ["a.txt"], ["x", "y"]),
        ("FROM x\nCOPY a.txt /\nFROM y\nCOPY --from=0 /a /", "", ["a.txt"], ["x", "y"]),
        ("FROM x AS a\nCOPY a.txt /\nFROM y\nRUN --mount=from=a,target=/m true", "", ["a.txt"], ["x", "y"]),
        ("FROM x\nCOPY --from=docker.io/tool:1 /a /", "", [], ["x", "docker.io/tool:1"]),
        ("FROM x AS a\nONBUILD COPY a.txt /\nFROM a\nRUN true", "", ["a.txt"], ["x"]),
        ("ARG V=3\nFROM python:$V\nCOPY a.txt /", "", ["a.txt"], ["python:3"]),
        ("ARG V=3\nARG I=python:${V}-slim\nFROM $I", "", [], ["python:3-slim"]),
        ("ARG V=a.txt\nFROM x\nARG V\nCOPY $V /", "", ["a.txt"], ["x"]),
        ("FROM --platform=$BUILDPLATFORM x\nARG TARGETARCH\nCOPY $TARGETARCH.txt /", "", ["amd64.txt"], ["x"]),
        ("FROM x AS a\nENV F=a.txt\nFROM a\nCOPY $F /", "", ["a.txt"], ["x"]),
        ("# escape=`\nFROM x\nCOPY a.txt `\n b.txt /", "", ["a.txt", "b.txt"], ["x"]),
        ("FROM scratch\nCOPY a.txt /", "", ["a.txt"], ["scratch"]),
    ],
)  # fmt: skip
def test_stages(dockerfile: str, target: str, inputs: list[str], bases: list[str]) -> None:
    files = MemoryFiles(tree({**BODY, "amd64.txt": "6", "Dockerfile": dockerfile}))
    found = describe(files, replace(OPTIONS, target=target))
    assert sorted({*inputs, "Dockerfile"}) == sorted(each.path for each in found.inputs)
    assert [each.reference for each in found.bases] == bases


@pytest.mark.parametrize(
    ("dockerfile", "word"),
    [
        ("FROM python:3", "`python:3`"),
        ("FROM python", "`python`"),
        ("ARG V\nFROM ${V}", "not given"),
        (PINNED + "ADD https://example.org/x /", "https://example.org/x"),
        (PINNED + "ADD https://github.com/a/b.git#main /", "b.git#main"),
        (PINNED + "COPY --from=tool:1 /x /", "tool:1"),
        (PINNED + "COPY $X /", "base image"),
        ("# syntax=example.org/own\n" + PINNED, "example.org/own"),
    ],
)
def test_what_is_not_reproducible_is_named(dockerfile: str, word: str) -> None:
    assert any(word in each for each in named({"Dockerfile": dockerfile}).not_reproducible)


@pytest.mark.parametrize(
    "dockerfile",
    [
        PINNED,
        "FROM scratch",
        "# syntax=docker/dockerfile:1\nFROM scratch",
        PINNED + "ADD --checksum=sha256:00 https://example.org/x /",
        PINNED + f"ADD https://github.com/a/b.git#{'1' * 40} /",
        PINNED + f"ADD https://github.com/a/b.git#{'1' * 40}:sub /",
    ],
)
def test_what_is_reproducible(dockerfile: str) -> None:
    found = named({"Dockerfile": dockerfile})
    assert found.not_reproducible == ()
    assert "interval" not in found.text
    later = named({"Dockerfile": dockerfile}, replace(OPTIONS, interval=7))
    assert later.fingerprint == found.fingerprint


def test_an_interval_counts_only_where_nobody_tells_the_digest() -> None:
    files = {"Dockerfile": "FROM python:3"}
    first = named(files)
    assert named(files, replace(OPTIONS, interval=1)).fingerprint != first.fingerprint
    digests = {"python:3": "sha256:" + "b" * 64}
    told = replace(OPTIONS, base_digest=digests.get)
    known = named(files, told)
    assert digests["python:3"] in known.text
    assert known.not_reproducible == ()
    assert named(files, replace(told, interval=1)).fingerprint == known.fingerprint
    digests["python:3"] = "sha256:" + "c" * 64
    assert named(files, told).fingerprint != known.fingerprint
    assert interval_at(7 * 86400.0, 86400.0) == 7
    assert interval_at(7 * 86400.0, 0) == 0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (OPTIONS, replace(OPTIONS, builder="buildkit 2")),
        (OPTIONS, replace(OPTIONS, platform="linux/arm64")),
        (OPTIONS, replace(OPTIONS, build_args={"A": "1"})),
        (replace(OPTIONS, build_args={"A": "1"}), replace(OPTIONS, build_args={"A": "2"})),
        (OPTIONS, replace(OPTIONS, target="a")),
        (OPTIONS, replace(OPTIONS, dockerfile="other/Dockerfile")),
        (OPTIONS, replace(OPTIONS, context="other")),
    ],
)
def test_how_it_is_built_counts(one: BuildOptions, other: BuildOptions) -> None:
    files: dict[str, str | bytes] = {
        "Dockerfile": "FROM x AS a\nCOPY f /",
        "other/Dockerfile": "FROM x AS a\nCOPY f /",
        "f": "1",
        "other/f": "2",
    }
    assert named(files, one).fingerprint != named(files, other).fingerprint


def test_a_build_argument_chooses_files() -> None:
    files: dict[str, str | bytes] = {"Dockerfile": "FROM x\nARG F=a\nCOPY $F /", "a": "", "b": ""}
    assert paths(named(files)) == ["Dockerfile", "a"]
    chosen = named(files, replace(OPTIONS, build_args={"F": "b"}))
    assert paths(chosen) == ["Dockerfile", "b"]
    assert 'argument "F" "b"' in chosen.text


@pytest.mark.parametrize(
    ("files", "dockerfile", "inputs"),
    [
        ({"Dockerfile": PINNED, "requirements.txt": ""}, "Dockerfile", ["Dockerfile"]),
        ({"binder/Dockerfile": PINNED + "COPY a /", "a": "", "binder/a": ""},
         "binder/Dockerfile", ["a", "binder/Dockerfile"]),
        ({".binder/Dockerfile": PINNED, "Dockerfile": PINNED}, ".binder/Dockerfile", [".binder/Dockerfile"]),
        ({"binder/apt.txt": "", "Dockerfile": PINNED}, "", ["binder/apt.txt"]),
        ({"Dockerfile": Link(b"docker/it"), "docker/it": PINNED}, "Dockerfile", ["Dockerfile", "docker/it"]),
        ({"Dockerfile": PINNED + "COPY a /", "Dockerfile.dockerignore": "a", "a": "1"},
         "Dockerfile", ["Dockerfile"]),
        ({"Dockerfile": PINNED + "COPY a /", "Dockerfile.dockerignore": "", ".dockerignore": "a", "a": ""},
         "Dockerfile", ["Dockerfile", "a"]),
    ],
)  # fmt: skip
def test_which_dockerfile(
    files: dict[str, str | bytes], dockerfile: str, inputs: list[str]
) -> None:
    found = named(files)
    assert found.dockerfile == dockerfile
    assert paths(found) == inputs


JOB = "image_build:\n  script:\n    - {}\n"
HERE = {
    "Dockerfile": PINNED, "env/Dockerfile": PINNED + "COPY f /", "env/f": "", "f": "", "env/Other": PINNED,
}  # fmt: skip


@pytest.mark.parametrize(
    ("ci", "dockerfile", "context", "inputs"),
    [
        (JOB.format("docker build -t $CI_REGISTRY_IMAGE:$CI_COMMIT_SHA ."), "Dockerfile", "", ["Dockerfile"]),
        (JOB.format("docker build -f env/Dockerfile -t x ."), "env/Dockerfile", "", ["env/Dockerfile", "f"]),
        (JOB.format("docker build -t x env && docker push x"), "env/Dockerfile", "env",
         ["env/Dockerfile", "env/f"]),
        (JOB.format("buildah bud --file=env/Other --layers env/"), "env/Other", "env", ["env/Other"]),
        (JOB.format("/kaniko/executor --context $CI_PROJECT_DIR --dockerfile $CI_PROJECT_DIR/env/Dockerfile"),
         "env/Dockerfile", "", ["env/Dockerfile", "f"]),
        ("variables: {D: env}\n" + JOB.format("docker buildx build --push -t x $D"), "env/Dockerfile", "env",
         ["env/Dockerfile", "env/f"]),
        ("image_build:\n  variables: {NOTEBOOKS_DOCKERFILE: env/Dockerfile, NOTEBOOKS_CONTEXT: env}\n",
         "env/Dockerfile", "env", ["env/Dockerfile", "env/f"]),
        # What is not wholly understood says nothing.
        (JOB.format("docker build -f $(find .) ."), "Dockerfile", "", ["Dockerfile"]),
        (JOB.format("docker build $OPTIONS ."), "Dockerfile", "", ["Dockerfile"]),
        (JOB.format("cd env && docker build ."), "Dockerfile", "", ["Dockerfile"]),
        (JOB.format("docker build --strange env ."), "Dockerfile", "", ["Dockerfile"]),
        (JOB.format("docker build ../env"), "Dockerfile", "", ["Dockerfile"]),
        (JOB.format("docker build env; docker build ."), "Dockerfile", "", ["Dockerfile"]),
        (JOB.format("make image"), "Dockerfile", "", ["Dockerfile"]),
        ("image_build: !reference [x]\n", "Dockerfile", "", ["Dockerfile"]),
        ("other:\n  script: [docker build env]\n", "Dockerfile", "", ["Dockerfile"]),
        (": not yaml\n\t", "Dockerfile", "", ["Dockerfile"]),
    ],
)  # fmt: skip
def test_what_the_projects_own_job_builds(
    ci: str, dockerfile: str, context: str, inputs: list[str]
) -> None:
    found = named({**HERE, ".gitlab-ci.yml": ci})
    assert (found.dockerfile, found.context, paths(found)) == (dockerfile, context, inputs)


def test_a_job_that_is_not_understood_is_named() -> None:
    found = named({**HERE, ".gitlab-ci.yml": JOB.format("docker build $OPTIONS .")})
    assert any("not understood" in each for each in found.not_reproducible)
    found = named({**HERE, ".gitlab-ci.yml": JOB.format("docker build --build-arg A=$CI_JOB_ID .")})
    assert any("`A`" in each for each in found.not_reproducible)


@pytest.mark.parametrize(
    ("files", "kind", "inputs"),
    [
        ({"README.md": ""}, "none", []),
        ({}, "none", []),
        ({"uv.lock": "", "start": ""}, "none", []),
        ({"requirements.txt": "six"}, "python", ["requirements.txt"]),
        ({"requirements-dev.txt": "six", "other.txt": ""}, "python", ["requirements-dev.txt"]),
        ({"requirements.txt": "-r env/a.txt\n-c c.txt", "env/a.txt": "-r b.txt", "env/b.txt": "",
          "c.txt": "", "b.txt": ""},
         "python", ["c.txt", "env/a.txt", "env/b.txt", "requirements.txt"]),
        ({"requirements.txt": "./w/a-1-py3-none-any.whl", "w/a-1-py3-none-any.whl": "PK", "w/b.whl": ""},
         "python", ["requirements.txt", "w/a-1-py3-none-any.whl"]),
        ({"pyproject.toml": "", "uv.lock": "", "poetry.lock": "", "pdm.lock": "", "pylock.toml": "",
          "pylock.dev.toml": "", "other.lock": ""},
         "python",
         ["pdm.lock", "poetry.lock", "pylock.dev.toml", "pylock.toml", "pyproject.toml", "uv.lock"]),
        ({"setup.py": "", "setup.cfg": "", "src/x.py": ""}, "python", ["setup.cfg", "setup.py"]),
        ({"environment.yml": "dependencies:\n- pip:\n  - -r more.txt\n", "more.txt": ""},
         "python", ["environment.yml", "more.txt"]),
        ({"runtime.txt": "python-3.11", "apt.txt": "", "postBuild": Program(b""), "start": ""},
         "python", ["apt.txt", "postBuild", "runtime.txt", "start"]),
        ({"binder/requirements.txt": "-r ../base.txt", "requirements.txt": "x", "base.txt": "",
          "setup.py": ""},
         "python", ["base.txt", "binder/requirements.txt"]),
        ({".binder/environment.yml": "", "requirements.txt": ""}, "python", [".binder/environment.yml"]),
        ({"binder/README.md": "", "requirements.txt": "x"}, "none", []),
        ({"requirements.txt": Link(b"env/r.txt"), "env/r.txt": "six"},
         "python", ["env/r.txt", "requirements.txt"]),
        ({"requirements.txt/x": "six"}, "none", []),
    ],
)  # fmt: skip
def test_without_a_dockerfile(files: dict[str, str | bytes], kind: str, inputs: list[str]) -> None:
    found = named(files)
    assert found.kind == kind
    assert paths(found) == inputs


def test_what_python_files_do_not_tell_is_named() -> None:
    said = named({"postBuild": "", "setup.py": "", "requirements.txt": "-e ."}).not_reproducible
    assert len(said) == 3
    assert all(any(word in each for each in said) for word in ("postBuild", "setup.py", "-e ."))
    remote = {"requirements.txt": "-r https://example.org/r.txt"}
    assert "interval 0" in named(remote).text
    plain = {"requirements.txt": "six"}
    assert 'base "python:3" unknown' in named(plain, replace(OPTIONS, base="python:3")).text
    assert "interval" not in named(plain).text


@pytest.mark.parametrize(
    ("files", "word"),
    [
        ({"binder/apt.txt": "", ".binder/apt.txt": ""}, "binder"),
        ({"Dockerfile": ""}, "FROM"),
        ({"Dockerfile": "COPY a /"}, "FROM"),
        ({"Dockerfile": "FROM x\nNOTHING y"}, "NOTHING"),
        ({"Dockerfile": "FROM x\nCOPY <<EOF /x\n"}, "heredoc"),
        ({"Dockerfile": "FROM x y z"}, "FROM"),
        ({"Dockerfile": "# " + "x" * 300_000}, "too large"),
        ({"Dockerfile": "FROM x\nCOPY . /", ".dockerignore": "[a"}, "[a"),
        ({"Dockerfile": "FROM x\nCOPY . /", ".dockerignore": "!"}, "none"),
        ({"Dockerfile": "FROM x\nCOPY '$" + "{a /"}, "Dockerfile"),
        ({"Dockerfile": Link(b"/etc/passwd")}, "outside"),
        ({"requirements.txt": "-r gone.txt"}, "gone.txt"),
    ],
)
def test_what_cannot_be_understood_is_a_sentence(files: dict[str, str | bytes], word: str) -> None:
    with pytest.raises(BuildFailed) as caught:
        named(files)
    assert word in caught.value.message


def test_a_named_dockerfile_or_stage_that_is_not_there() -> None:
    for wrong in (replace(OPTIONS, dockerfile="gone"), replace(OPTIONS, target="gone")):
        with pytest.raises(BuildFailed, match="gone"):
            named({"Dockerfile": PINNED}, wrong)


def test_links_in_a_context() -> None:
    files: dict[str, str | bytes] = {
        "Dockerfile": PINNED + "COPY one /\nCOPY way/f /\nCOPY round /\nCOPY up /",
        "one": Link(b"real/f"), "way": Link(b"/real"), "round": Link(b"round"),
        "up": Link(b"../../../real/g"), "real/f": "1", "real/g": "2", "real/h": "3",
    }  # fmt: skip
    found = ["Dockerfile", "one", "real/f", "real/g", "round", "up", "way"]
    assert paths(named(files)) == found


def test_a_directory_with_more_files_than_rules_are_applied_to() -> None:
    many: dict[str, str | bytes] = {f"many/{n}/f": b"" for n in range(3000)}
    found = named({**many, "Dockerfile": PINNED + "COPY . /", ".dockerignore": "**/x"})
    assert "many" in paths(found)
    assert any("many" in each for each in found.not_reproducible)
    found = named({**many, "Dockerfile": PINNED + "COPY many/*/f /"})
    assert paths(found) == ["Dockerfile", "many"]


def test_renames_and_modes_count() -> None:
    def of(files: dict[str, str | bytes]) -> str:
        return named({"Dockerfile": PINNED + "COPY d /", **files}).fingerprint

    names = {
        of({"d/a": "1"}), of({"d/b": "1"}), of({"d/a": Program(b"1")}), of({"d/a": Link(b"1")}),
        of({"d/a/a": "1"}), of({"d": "1"}), of({"d/a": Gitlink(b"1" * 40)}),
        of({"d/a": Gitlink(b"2" * 40)}),
    }  # fmt: skip
    assert len(names) == 8


def test_a_description_survives_being_kept() -> None:
    files = MemoryFiles(tree({**BODY, "Dockerfile": "FROM x\nCOPY . /\nADD http://a/b /"}))
    described = describe(files, OPTIONS)
    assert Described.from_dict(json.loads(json.dumps(described.to_dict()))) == described


def test_what_is_explained(bare: Path) -> None:
    files = tree(
        {"Dockerfile": "FROM python:3\nCOPY src \x1b[2Jx /", "src/a": "1", "README.md": ""}
    )
    sha = fast_import(bare, files)
    found = explain(bare, sha, OPTIONS)
    facts = as_facts(sha, found)
    assert json.loads(json.dumps(facts)) == facts
    assert facts["fingerprint"] == hashlib.sha256(str(facts["text"]).encode()).hexdigest()
    assert [(each["path"], each["why"]) for each in facts["inputs"]] == [
        ("src", "`COPY` on line 2"), ("Dockerfile", "the Dockerfile"),
    ]  # fmt: skip
    text = as_text(sha, found)
    assert found.fingerprint in text
    assert "src/" in text and "README" not in text and "`python:3`" in text
    assert all(line in text for line in found.text.splitlines())
    assert text.replace("\n", "").isprintable()


def test_local_environments_are_named_by_the_same_writer(bare: Path, tmp_path: Path) -> None:
    files = {"requirements.txt": b"six", "Dockerfile": b"FROM x"}
    sha = fast_import(bare, files)
    store = EnvironmentStore(tmp_path / "environments")
    options = local_options(store.cache, os.environ)
    found = explain(bare, sha, options)
    assert found.fingerprint == store.fingerprint(bare, sha)
    assert environment_of(MemoryGitLab(files).files(), options) == found
    assert paths(found) == ["requirements.txt"], "a Dockerfile is not for the local runtime"


# By property

NAMES = ("a", "b", "c.txt", "d", "é x")
PATTERNS = ("*", "?", "**", "[a-c]*", *NAMES)


@st.composite
def trees(draw: st.DrawFn, *, odd: bool = True) -> dict[str, bytes]:
    """A tree with a Dockerfile that takes some of it, perhaps with rules for what is left out."""
    found: dict[str, bytes] = {}
    for _ in range(draw(st.integers(1, 8))):
        path = "/".join(draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4)))
        if any(path.startswith(f"{p}/") or p.startswith(f"{path}/") for p in found):
            continue
        kind = draw(st.sampled_from("fffffplg" if odd else "fffffl"))
        body = draw(st.sampled_from((b"1", b"2", b"a/b", b"../d", b"/a", b"c.txt")))
        found[path] = {
            "f": body, "p": Program(body), "l": Link(body), "g": Gitlink(b"3" * 40)
        }[kind]  # fmt: skip
    parts = st.lists(st.sampled_from(PATTERNS), min_size=1, max_size=3).map("/".join)
    lines = []
    for source in draw(st.lists(st.one_of(st.just("."), parts), min_size=1, max_size=3)):
        kind = draw(st.sampled_from(("COPY", "ADD", "RUN") if odd else ("COPY", "ADD")))
        if kind == "RUN":
            lines.append(f'RUN --mount="target=/x,source={source}" true')
        else:
            lines.append(f"{kind} {json.dumps([source, '/x/'], ensure_ascii=False)}")
    found["Dockerfile"] = (PINNED + "\n".join(lines) + "\n").encode()
    if draw(st.booleans()):
        rules = draw(st.lists(st.tuples(st.sampled_from(("", "", "!")), parts), max_size=4))
        found[".dockerignore"] = "\n".join(a + b for a, b in rules).encode()
    return found


SLOW = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]


@settings(max_examples=40, deadline=None, suppress_health_check=SLOW)
@given(trees(), st.integers(1, 4), st.booleans())
def test_api_and_checkout_agree(bare: Path, files: Tree, page: int, reverse: bool) -> None:
    """With pages of a few rows, in either order."""
    api = environment_of(MemoryGitLab(files, page=page, reverse=reverse).files(), OPTIONS)
    checkout = environment_of(CheckoutTree(bare, fast_import(bare, files)), OPTIONS)
    assert api == checkout == environment_of(MemoryFiles(files), OPTIONS)


def covers(found: EnvironmentText, path: str) -> bool:
    return any(
        path == each.path or (each.mode == "040000" and path.startswith(f"{each.path}/"))
        for each in found.inputs
    )


@settings(max_examples=200, deadline=None, suppress_health_check=SLOW)
@given(trees(), st.data())
def test_what_is_inside_counts_and_nothing_else(
    files: dict[str, bytes], data: st.DataObject
) -> None:
    before = environment_of(MemoryFiles(files), OPTIONS)
    plain = sorted(p for p, c in files.items() if not isinstance(c, (Link, Gitlink)))
    path = data.draw(st.sampled_from([p for p in plain if p != ".dockerignore"]))
    body = files[path]
    change = data.draw(st.sampled_from(("byte", "mode", "gone", "renamed")))
    changed = dict(files)
    if change == "byte" or path == "Dockerfile":
        changed[path] = type(body)(bytes(body) + b"\n")
    elif change == "mode":
        changed[path] = bytes(body) if isinstance(body, Program) else Program(body)
    else:
        del changed[path]
        if change == "renamed":
            changed[f"{path}~"] = body
    after = environment_of(MemoryFiles(changed), OPTIONS)
    if covers(before, path):
        assert after.fingerprint != before.fingerprint
    elif change != "renamed" or not covers(after, f"{path}~"):
        assert after.fingerprint == before.fingerprint


SENT_TOO = (b"**", b"*/", b"?/", b"]*/")


def sent(directory: Path) -> set[str]:
    """What BuildKit's own code says that a build would be given; it does not look at ``RUN``."""
    tool = Path(sys.executable).parent / "docker-devtools"
    done = subprocess.run(
        [tool, "build-context", "ls", str(directory), "--json"], capture_output=True, check=False
    )
    assume(done.returncode == 0)
    rows = json.loads(done.stdout)["entries"]
    return {row["path"] for row in rows if row.get("transferred") and not row.get("dir")}


@pytest.mark.skipif(
    not (Path(sys.executable).parent / "docker-devtools").exists(),
    reason="docker-devtools has a wheel for x86_64 only",
)
@settings(max_examples=25, deadline=None, suppress_health_check=SLOW)
@given(files=trees(odd=False))
def test_what_is_taken_is_what_buildkit_would_be_given(
    tmp_path_factory: pytest.TempPathFactory, files: Tree
) -> None:
    directory = tmp_path_factory.mktemp("context")
    write_out(directory, files)
    given_to = sent(directory) - {"Dockerfile"}
    found = environment_of(MemoryFiles(files), OPTIONS)
    ours = {path for path in files if covers(found, path)} - {"Dockerfile"}
    note((dict(files), ours, given_to))
    assert ours <= given_to
    # By a pattern over several directories more is sent than COPY then finds by it.
    if not any(sign in line for line in files["Dockerfile"].split(b"\n")[1:] for sign in SENT_TOO):
        assert ours == given_to


# What it costs

BIG: dict[str, bytes] = {f"data/{n}/{m}": b"" for n in range(40) for m in range(40)}


@pytest.mark.parametrize(
    ("files", "most"),
    [
        ({"README.md": b""}, 1),
        ({"requirements.txt": b"six"}, 2),
        ({"pyproject.toml": b"", "uv.lock": b"x" * 10_000}, 1),
        ({"binder/requirements.txt": b"six"}, 3),
        ({"Dockerfile": PINNED.encode() + b"COPY requirements.txt /", "requirements.txt": b""}, 2),
        ({"Dockerfile": PINNED.encode() + b"COPY . /"}, 2),
        ({"Dockerfile": PINNED.encode() + b"COPY data /"}, 2),
        ({"Dockerfile": PINNED.encode() + b"COPY . /", ".dockerignore": b"data"}, 3),
        ({"Dockerfile": PINNED.encode() + b"COPY . /", ".dockerignore": b"**/x"}, 20),
    ],
)
def test_few_requests_and_no_whole_tree(files: dict[str, bytes], most: int) -> None:
    forge = MemoryGitLab({**BIG, **files})
    known = KnownObjects()
    first = environment_of(forge.files(known), OPTIONS)
    assert len(forge.requests) <= most, forge.requests
    again = MemoryGitLab({**BIG, **files, "README.md": b"other"})
    assert environment_of(again.files(known), OPTIONS).kind == first.kind
    assert len(again.requests) <= 2, again.requests

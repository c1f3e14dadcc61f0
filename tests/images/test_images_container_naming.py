"""What a container image is called: the hub, without a clone, and a job in its checkout say the same."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from images_files import Gitlink, Link, MemoryFiles, MemoryGitLab, Program, Tree, fast_import

from notebooks_service.domain import Project
from notebooks_service.errors import BuildFailed, ForgeUnavailable, RegistryUnavailable
from notebooks_service.images import container_command
from notebooks_service.images.base_digests import BaseDigests
from notebooks_service.images.builders import Order
from notebooks_service.images.container_command import Wishes
from notebooks_service.images.container_naming import ContainerNamer
from notebooks_service.images.fingerprint import (
    BuildOptions,
    describe,
    environment_of,
    interval_at,
    name,
)
from notebooks_service.images.naming import Named
from notebooks_service.images.synthetic import ci_file, synthetic_commit
from notebooks_service.images.tree import CheckoutTree
from scripted_gitlab import ScriptedGitLab

JOB = "image_build"
NOW = 1_800_000_000.0
WEEK = 7 * 86_400.0
D = "sha256:" + "d" * 64
PINNED = f"FROM python:3.11@{D}\n".encode()
MOVING = b"FROM python:3.11\n"
PROJECT = Project(1, "g/p", "p", "main", "private", "")
OWN_CI = b"image_build:\n  script: [notebooks image build --builder buildah]\n"


def ci(script: str = "notebooks image build", variables: str = "{}") -> bytes:
    return f"image_build:\n  variables: {variables}\n  script:\n    - {script}\n".encode()


# (what it is, its files, by which variables it can be built on demand, or why not)
Case = tuple[str, Tree, dict[str, str] | str]
WHERE = {"NOTEBOOKS_DOCKERFILE": "docker/Dockerfile", "NOTEBOOKS_CONTEXT": ""}
AT_ROOT = {"NOTEBOOKS_DOCKERFILE": "Dockerfile", "NOTEBOOKS_CONTEXT": ""}
ALL = {"Dockerfile": PINNED + b"COPY . .", "a": b"1"}
CASES: list[Case] = [
    ("pinned", {"Dockerfile": PINNED + b"COPY r.txt /", "r.txt": b"six", "README": b"x"}, {}),
    ("unpinned", {"Dockerfile": MOVING + b"COPY r.txt /", "r.txt": b"six"}, {}),
    ("scratch", {"Dockerfile": b"FROM scratch\nCOPY a /", "a": Program(b"x")}, {}),
    ("with a job", {"Dockerfile": PINNED + b"COPY src /s", "src/a": b"1", ".gitlab-ci.yml": OWN_CI}, {}),
    ("remote file", {"Dockerfile": PINNED + b"ADD https://x.example/a /"}, {}),
    (
        "by the job's variables",
        {"docker/Dockerfile": PINNED + b"COPY app /a", "app": b"1", "Dockerfile": PINNED,
         ".gitlab-ci.yml": ci(variables="{NOTEBOOKS_DOCKERFILE: docker/Dockerfile}")},
        WHERE,
    ),
    (
        "in a context of its own",
        {"docker/Dockerfile": PINNED + b"COPY app /a", "docker/app": b"1", "app": b"2",
         ".gitlab-ci.yml": ci(variables="{NOTEBOOKS_DOCKERFILE: docker/Dockerfile, NOTEBOOKS_CONTEXT: docker}")},
        {**WHERE, "NOTEBOOKS_CONTEXT": "docker"},
    ),
    (
        "by the job's own builder",
        {"docker/Dockerfile": PINNED, ".gitlab-ci.yml": ci("docker build -f docker/Dockerfile .")},
        WHERE,
    ),
    (
        "by what the job says to us",
        {"docker/Dockerfile": PINNED, ".gitlab-ci.yml": ci("notebooks image build --dockerfile=docker/Dockerfile")},
        WHERE,
    ),
    (
        "a stage and an argument",
        {"Dockerfile": b"ARG V=1\nFROM x:$V AS a\nFROM a\nCOPY b /", "b": b"",
         ".gitlab-ci.yml": ci("docker build --target a --build-arg V=2 .")},
        {**AT_ROOT, "NOTEBOOKS_TARGET": "a", "NOTEBOOKS_BUILD_ARGS": '{"V": "2"}'},
    ),
    (
        "a stage and arguments in the job's variables",
        {"d/Dockerfile": b"ARG V=1\nARG W\nFROM x:$V AS a\nFROM a\nCOPY $W /", "x y": b"",
         ".gitlab-ci.yml": ci(variables='{NOTEBOOKS_DOCKERFILE: d/Dockerfile, NOTEBOOKS_TARGET: a, '
                              r"""NOTEBOOKS_BUILD_ARGS: '{"W": "\u00e9\ud83d\ude00 \"\\\n", "V": "2"}'}""")},
        {"NOTEBOOKS_DOCKERFILE": "d/Dockerfile", "NOTEBOOKS_CONTEXT": "", "NOTEBOOKS_TARGET": "a",
         "NOTEBOOKS_BUILD_ARGS": r'{"V": "2", "W": "\u00e9\ud83d\ude00 \"\\\n"}'},
    ),
    (
        "a stage on our own command line, over the variables",
        {"docker/Dockerfile": b"FROM x AS a\nFROM a AS b\nCOPY b /", "b": b"",
         ".gitlab-ci.yml": ci("notebooks image build --target=a",
                              "{NOTEBOOKS_DOCKERFILE: docker/Dockerfile, NOTEBOOKS_TARGET: b}")},
        {**WHERE, "NOTEBOOKS_TARGET": "a"},
    ),
    (
        "an argument that only the job knows",
        {"Dockerfile": b"ARG V=1\nFROM x:1", ".gitlab-ci.yml": ci("docker build --build-arg V=$CI_JOB_ID .")},
        {},
    ),
    (
        "a path that GitLab would change",
        {"a$b/Dockerfile": PINNED, ".gitlab-ci.yml": ci(variables='{NOTEBOOKS_DOCKERFILE: "a$b/Dockerfile"}')},
        "cannot be said in the CI file",
    ),
    ("binder", {"binder/Dockerfile": PINNED + b"COPY x /", "x": b"1", "Dockerfile": MOVING}, {}),
    ("all of it, with the CI file", {"Dockerfile": PINNED + b"COPY . .", ".gitlab-ci.yml": OWN_CI}, {}),
    (
        "all of it, built twice",
        {**ALL, ".gitlab-ci.yml": ci() + b"    - notebooks image build --builder=docker\n"},
        "only known in the job",
    ),
    ("all of it, elsewhere", {**ALL, ".gitlab-ci.yml": ci("cd a && notebooks image build")}, "only known in the job"),
    (
        "all of it, with the CI file, rules and a stage",
        {"e/Dockerfile": b"FROM x AS a\nCOPY . .\nFROM a", "e/Dockerfile.dockerignore": b"*.md\n**/*.dockerignore",
         "README.md": b"x", "sub": Gitlink(b"a" * 40), "l": Link(b"a/b"), "a/b": Program(b"1"), "a/c.md": b"",
         ".gitlab-ci.yml": ci("notebooks image build --dockerfile e/Dockerfile --target a")},
        {},
    ),
    ("all of it, the job builds by itself", {**ALL, ".gitlab-ci.yml": ci("docker build .")}, "does not run `notebooks image build`"),
    ("all of it, the job only says it", {**ALL, ".gitlab-ci.yml": ci("echo notebooks image build")}, "does not run"),
    ("all of it, by what only the job knows", {**ALL, ".gitlab-ci.yml": ci("notebooks image build --build-arg A=$B")},
     "only known in the job"),
    ("all of it, another job", {**ALL, ".gitlab-ci.yml": b"x: {script: notebooks image build}"}, "no job `image_build`"),
    ("all of it, GitLab's own tags", {**ALL, ".gitlab-ci.yml": b"image_build: !reference [x]"}, "no job `image_build`"),
    ("all of it, a link", {**ALL, ".gitlab-ci.yml": Link(b"ci.yml"), "ci.yml": OWN_CI}, "no job `image_build`"),
    ("the CI file alone", {"Dockerfile": PINNED + b"COPY .gitlab* /", "a": b"", ".gitlab-ci.yml": OWN_CI}, {}),
    ("all of it, another job beside it", {**ALL, ".gitlab-ci.yml": OWN_CI + b"deploy: {script: ship}"}, "`deploy` would run too"),
    ("all of it, jobs of other files", {**ALL, ".gitlab-ci.yml": OWN_CI + b"include: [deploy.yml]"}, "includes other files"),
    ("all of it, with what is no job", {**ALL, ".gitlab-ci.yml": OWN_CI + b"stages: [x]\n.hidden: {}\ndefault: {}"}, {}),
    ("all of it, without one", ALL, "takes in the whole repository"),
    (
        "all but the CI file",
        {"Dockerfile": PINNED + b"COPY . .", ".dockerignore": b".gitlab-ci.yml\ndata", "a/b": b"1",
         "data/x": b"1", ".gitlab-ci.yml": OWN_CI, "sub": Gitlink(b"a" * 40)},
        {},
    ),
    (
        "rules that are no input",
        {"Dockerfile": PINNED + b"COPY src /s", ".dockerignore": b"src/data\n", "src/a": b"1",
         "src/data/x": b"2"},
        {},
    ),
    (
        "rules beside the Dockerfile, by a link",
        {"Dockerfile": PINNED + b"COPY src /s", "Dockerfile.dockerignore": Link(b"rules"), "rules": b"**/x\n",
         "src/x": b"1", "src/deep/x": b"1", "src/deep/y": b"1"},
        {},
    ),
    ("a pattern", {"Dockerfile": PINNED + b"COPY src/*.py /s", "src/a.py": b"1", "src/b": b"1"}, {}),
    ("a link", {"Dockerfile": Link(b"docker/it"), "docker/it": PINNED}, {}),
    ("a submodule", {"Dockerfile": PINNED + b"COPY lib /l", "lib": Gitlink(b"b" * 40)}, {}),
    ("Python's files", {"requirements.txt": b"six\n-r more.txt", "more.txt": b"attrs", "apt.txt": b"x"},
     "`base_image` names no image"),
]  # fmt: skip
IDS = [case[0] for case in CASES]


def namer(**more: Any) -> ContainerNamer:
    given = {"rebuild_after": WEEK, "now": lambda: NOW, "digests": BaseDigests(()), **more}
    return ContainerNamer(JOB, **given)


def at_the_hub(tree: Tree, **more: Any) -> Named:
    one = namer(**more)
    return one.name(one.describe(MemoryGitLab(tree).files()), PROJECT)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("named")
    subprocess.run(["git", "init", "-q", "--bare", str(place)], check=True)
    return place


def in_a_job(repository: Path, sha: str, base: str = "") -> str:
    """What ``notebooks image build`` calls the image; what it does not build too, by its options."""
    wishes = Wishes(checkout=repository)
    environ = {"CI_JOB_NAME": JOB, "CI_SERVER_URL": "https://gitlab.example.org"}
    environ |= {"NOTEBOOKS_BASE_IMAGE": base} if base else {}
    options = container_command.options_of(wishes, environ, NOW)
    described = describe(CheckoutTree(repository, sha), options)
    found = name(described, options).fingerprint
    if described.kind == "dockerfile" or base:
        assert container_command.plan(wishes, sha, environ, NOW).fingerprint == found
    return found


@pytest.mark.parametrize(("what", "tree", "variables"), CASES, ids=IDS)
def test_hub_and_job_come_to_one_name_also_for_a_build_on_demand(
    repository: Path, what: str, tree: Tree, variables: dict[str, str] | str
) -> None:
    agree(repository, tree, variables)


PYTHON: list[tuple[str, Tree, dict[str, str] | str]] = [
    ("requirements", {"requirements.txt": b"six\n-r more.txt", "more.txt": b"attrs", "apt.txt": b"x1", "README": b""}, {}),
    ("in binder", {"binder/requirements.txt": b"-r ../a/b.txt", "a/b.txt": b"six", "requirements.txt": b"x"}, {}),
    (
        "a lock with members",
        {"pyproject.toml": b"[tool.uv.workspace]\nmembers=['m']", "uv.lock": b"", "m/pyproject.toml": b"", "m/x": b""},
        {},
    ),
    ("a wheel", {"requirements.txt": b"./w/a-1.whl", "w/a-1.whl": b"PK", "w/b": b"", ".gitlab-ci.yml": OWN_CI}, {}),
    ("all the rest", {"environment.yml": b"dependencies: [{pip: [six]}]", "runtime.txt": b"python-3.11",
                      "postBuild": Program(b"x"), ".python-version": b"3.11", "start": b""}, {}),
    ("names that are odd", {"requirements.txt": "-r é.txt\n-r $x;.txt".encode(), "é.txt": b"", "$x;.txt": b""}, {}),
    ("the CI file too", {"requirements.txt": b"-r .gitlab-ci.yml", ".gitlab-ci.yml": OWN_CI}, {}),
    ("a Dockerfile", {"Dockerfile": PINNED, "requirements.txt": b"-r gone.txt"}, {}),
]  # fmt: skip


@pytest.mark.parametrize(("what", "tree", "variables"), PYTHON, ids=[case[0] for case in PYTHON])
def test_they_agree_without_a_dockerfile_too_where_a_base_is_named(
    repository: Path, what: str, tree: Tree, variables: dict[str, str] | str
) -> None:
    agree(repository, tree, variables, "registry.example.org/base:1")


def agree(repository: Path, tree: Tree, variables: dict[str, str] | str, base: str = "") -> None:
    sha = fast_import(repository, tree)
    found = at_the_hub(tree, base=base)
    assert found.fingerprint == in_a_job(repository, sha, base)
    if isinstance(variables, str):
        assert found.build is None and variables in found.unbuilt
        return
    assert found.build is not None, found.unbuilt
    assert dict(found.build.variables) == variables
    own = None
    if not found.build.own_ci:
        own = ci_file("", JOB, found.fingerprint, dict(found.build.variables))
        assert own is not None
    made = synthetic_commit(found.fingerprint, found.build.files, own)
    assert made is not None
    subprocess.run(
        ["git", "-C", str(repository), "unpack-objects", "-q"], input=made.pack, check=True
    )
    assert in_a_job(repository, made.sha, base) == found.fingerprint


def test_the_interval_moves_only_what_is_not_pinned_and_says_what_that_is() -> None:
    later = {"now": lambda: NOW + WEEK}
    assert at_the_hub(CASES[0][1]).fingerprint == at_the_hub(CASES[0][1], **later).fingerprint
    first, second = at_the_hub(CASES[1][1]), at_the_hub(CASES[1][1], **later)
    assert first.fingerprint != second.fingerprint
    assert first.likeness == second.likeness
    assert "python:3.11" in first.volatile[0]


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ("{NOTEBOOKS_TARGET: a$b}", "`NOTEBOOKS_TARGET`.* `\\$`"),
        ('{NOTEBOOKS_BUILD_ARGS: \'{"V": "$CI_JOB_ID"}\'}', "`NOTEBOOKS_BUILD_ARGS`.* `\\$`"),
        ("{NOTEBOOKS_BUILD_ARGS: V=1}", "JSON object of texts"),
        ("{NOTEBOOKS_BUILD_ARGS: '[\"V\"]'}", "JSON object of texts"),
        ("{NOTEBOOKS_BUILD_ARGS: '{\"V\": 1}'}", "JSON object of texts"),
        ('{NOTEBOOKS_BUILD_ARGS: \'{"V=1": ""}\'}', "JSON object of texts"),
        ('{NOTEBOOKS_BUILD_ARGS: \'{"--push": ""}\'}', "JSON object of texts"),
        ('{NOTEBOOKS_BUILD_ARGS: \'{"V": "\\u0000"}\'}', "JSON object of texts"),
        ('{NOTEBOOKS_BUILD_ARGS: \'{"V": "\\ud800"}\'}', "JSON object of texts"),
        ("{NOTEBOOKS_BUILD_ARGS: '" + "[" * 20_000 + "'}", "JSON object of texts"),
        ("{NOTEBOOKS_TARGET: gone}", "has no stage `gone`"),
    ],
)
def test_variables_that_nobody_could_understand_are_a_sentence(variables: str, words: str) -> None:
    tree = {"Dockerfile": b"FROM x AS a", ".gitlab-ci.yml": ci(variables=variables)}
    with pytest.raises(BuildFailed, match=words):
        at_the_hub(tree)


SAID = st.fixed_dictionaries(
    {},
    optional={
        "dockerfile": st.sampled_from(["Dockerfile", "d/Dockerfile"]),
        "context": st.sampled_from(["d", "."]),
        "target": st.sampled_from(["a", "b"]),
        "build_args": st.dictionaries(st.sampled_from(["V", "W"]), st.sampled_from(["f", "g"])),
    },
)


@settings(max_examples=150, deadline=None)
@given(SAID, SAID)
def test_what_job_and_command_line_say_together_is_read_as_the_command_takes_it(
    variables: dict[str, Any], line: dict[str, Any]
) -> None:
    words = ["notebooks", "image", "build"]
    words += [f"--{key}={line[key]}" for key in ("dockerfile", "context", "target") if key in line]
    words += [f"--build-arg={key}={value}" for key, value in line.get("build_args", {}).items()]
    given = {f"NOTEBOOKS_{key.upper()}": value for key, value in variables.items()}
    if "build_args" in variables:
        given["NOTEBOOKS_BUILD_ARGS"] = json.dumps(variables["build_args"])
    dockerfile = b"ARG V\nARG W=f\nFROM x AS a\nCOPY f /\nFROM x:$V AS b\nARG W\nCOPY $W* /"
    files = {"f": b"1", "g": b"2", "d/f": b"3", "d/g": b"4"}
    tree = {"Dockerfile": dockerfile, "d/Dockerfile": dockerfile, **files}
    commit = MemoryFiles({**tree, ".gitlab-ci.yml": ci(" ".join(words), json.dumps(given))})
    hub = environment_of(commit, BuildOptions(job=JOB))
    job = environment_of(commit, BuildOptions(job=JOB, **line))
    assert hub.text == job.text
    # And a commit that says nothing is named as it always was.
    if not variables and not line:
        assert environment_of(MemoryFiles(tree), BuildOptions(job=JOB)).text == hub.text


SOURCES = ["*", ".", "a", "b", "a/*", "?", ".g*", "sub", "[", "b/../a"]
RULES = ["*", "!a", "a/x", ".gitlab-ci.yml", "**/*.yml", "!**/x", ".dockerignore", "Dockerfile"]
OWN_CIS = [
    OWN_CI, ci(), ci("docker build ."), ci("notebooks image build --target=s"), b"image_build: !reference [x]",
    ci(variables="{NOTEBOOKS_TARGET: s}"), ci("docker build --target s --build-arg A=b ."), Link(b"b"), None,
]  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from(SOURCES), min_size=1, max_size=3),
    st.lists(st.sampled_from(RULES), max_size=3),
    st.sampled_from(OWN_CIS),
    st.booleans(),
)
def test_what_is_built_on_demand_is_the_environment_and_nothing_else(
    sources: list[str], rules: list[str], own: bytes | None, everything: bool
) -> None:
    """Whatever it can be built from: the commit's files that its entries name, and a CI file."""
    lines = ["ARG A=a", "FROM x AS s", *(f"COPY {source} /d/" for source in sources)]
    tree: dict[str, bytes] = {
        "Dockerfile": "\n".join([*lines, "FROM s AS t", "COPY . /" if everything else ""]).encode(),
        "a/x": b"1", "a/y.yml": b"2", "b": Program(b"3"), "c": b"4", "l": Link(b"a"), "sub": Gitlink(b"a" * 40),
    }  # fmt: skip
    tree |= {".dockerignore": "\n".join(rules).encode()} if rules else {}
    tree |= {".gitlab-ci.yml": own} if own is not None else {}
    found = at_the_hub(tree)
    assert (found.build is None) == bool(found.unbuilt)
    if found.build is None:
        return
    inside = {each.path: each.mode for each in found.build.files}
    made = {
        path: content
        for path, content in tree.items()
        if path in inside or inside.get(path.partition("/")[0]) == "040000"
    }
    assert (".gitlab-ci.yml" in made) == found.build.own_ci
    if not found.build.own_ci:
        text = ci_file("", JOB, found.fingerprint, dict(found.build.variables))
        assert text is not None
        made[".gitlab-ci.yml"] = text.encode()
    options = BuildOptions(job=JOB, interval=interval_at(NOW, WEEK))
    assert environment_of(MemoryFiles(made), options).fingerprint == found.fingerprint


def test_a_commit_that_describes_none_has_no_environment() -> None:
    with pytest.raises(BuildFailed, match="no file of this commit"):
        at_the_hub({"README": b"x", "a.py": b"1"})


def test_what_a_description_depends_on_is_in_its_name() -> None:
    names = {
        ContainerNamer(job, BaseDigests(()), rebuild_after=WEEK, ci=ci, base=base).builder
        for job in ("a", "b")
        for base in ("", "x:1")
        for ci in ("", "a: {script: x}")
    }
    assert len(names) == 8


def test_a_ci_file_of_the_settings_is_told_where_the_dockerfile_is() -> None:
    own = f"{JOB}: {{image: builder, variables: {{A: b}}, script: [notebooks image build]}}"
    case = next(case for case in CASES if case[0] == "by the job's variables")
    found = at_the_hub(case[1], ci=own)
    assert found.build is not None and dict(found.build.variables) == WHERE
    said = ci_file(own, JOB, found.fingerprint, WHERE)
    assert said is not None and '"A": "b"' in said and '"image": "builder"' in said
    assert ci_file(own, JOB, found.fingerprint, {}) == own
    tagged = f"{JOB}: {{script: !reference [a, script]}}"
    assert ci_file(tagged, JOB, found.fingerprint, WHERE) is None
    assert at_the_hub(case[1], ci=tagged).build is None


# Bases ------------------------------------------------------------------------------------------


def serve_base(registry: ScriptedGitLab, digest: str, path: str = "lib/base") -> None:
    registry.raw(
        f"HEAD /v2/{path}/manifests/1", 200, b"",
        Docker_Content_Digest=digest, Content_Type="application/vnd.oci.image.manifest.v1+json",
    )  # fmt: skip


def host(registry: ScriptedGitLab) -> str:
    return registry.url.removeprefix("http://")


def test_hub_and_job_ask_the_registries_that_are_named(
    gitlab: ScriptedGitLab, repository: Path
) -> None:
    """``gitlab`` is a registry here."""
    tree = {"Dockerfile": f"FROM {host(gitlab)}/lib/base:1\n".encode()}
    sha = fast_import(repository, tree)
    serve_base(gitlab, D)
    environ = {"NOTEBOOKS_BASE_REGISTRIES": f'["{host(gitlab)}"]'}
    digests = BaseDigests([host(gitlab)], keep=0)
    found = at_the_hub(tree, digests=digests)
    assert found.bases == ((f"{host(gitlab)}/lib/base:1", D),)
    assert found.volatile == ()
    job = container_command.plan(Wishes(checkout=repository), sha, environ, NOW)
    assert job.fingerprint == found.fingerprint and job.not_reproducible == ()
    # It is built on what the registry has, not on what the machine has kept.
    assert job.pull and "--pull" in Order("i", repository, repository, pull=job.pull).options()
    # What is kept of the commit does not keep the digest.
    one = namer(digests=digests)
    described = one.describe(MemoryGitLab(tree).files())
    assert one.name(described, PROJECT).fingerprint == found.fingerprint
    serve_base(gitlab, "sha256:" + "e" * 64)
    moved = one.name(described, PROJECT)
    assert moved.fingerprint != found.fingerprint and moved.likeness == found.likeness
    # The project's own registry needs no setting: the forge says which it is, on both sides.
    own = replace(PROJECT, registry=f"{host(gitlab)}/g/p")
    plain = namer(digests=BaseDigests((), keep=0))
    assert plain.name(described, own).fingerprint == moved.fingerprint
    environ = {"CI_REGISTRY_IMAGE": f"{host(gitlab)}/g/p"}
    job = container_command.plan(Wishes(checkout=repository), sha, environ, NOW)
    assert job.fingerprint == moved.fingerprint
    assert all("authorization" not in {k.lower() for k in one.headers} for one in gitlab.asked)


def test_a_registry_that_is_away_is_no_answer(gitlab: ScriptedGitLab, repository: Path) -> None:
    tree = {"Dockerfile": f"FROM {host(gitlab)}/lib/base:1\n".encode()}
    sha = fast_import(repository, tree)
    gitlab.raw("HEAD /v2/lib/base/manifests/1", 500, b"")
    with pytest.raises(ForgeUnavailable, match="try again"):
        at_the_hub(tree, digests=BaseDigests([host(gitlab)]))
    environ = {"NOTEBOOKS_BASE_REGISTRIES": host(gitlab)}
    with pytest.raises(RegistryUnavailable, match="try again"):
        container_command.plan(Wishes(checkout=repository), sha, environ, NOW)


def test_who_only_a_repository_names_is_never_contacted(gitlab: ScriptedGitLab) -> None:
    serve_base(gitlab, D)
    tree = {"Dockerfile": f"FROM {host(gitlab)}/lib/base:1\n".encode()}
    found = at_the_hub(tree, digests=BaseDigests(["docker.io", "other.example"]))
    assert gitlab.asked == []
    assert found.bases == () and "lib/base:1" in found.volatile[0]

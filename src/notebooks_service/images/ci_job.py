"""Reads from a project's CI file how its own job builds its image; used by ``images/container.py``.

Conservative: a command that is not wholly understood says nothing, and the rules decide instead.
"""

from __future__ import annotations

import json
import posixpath
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from notebooks_service.errors import BuildFailed
from notebooks_service.images.recipe import read_yaml
from notebooks_service.images.tree import CommitFiles

CI_FILE = ".gitlab-ci.yml"
DOCKERFILE, CONTEXT = "NOTEBOOKS_DOCKERFILE", "NOTEBOOKS_CONTEXT"
TARGET, BUILD_ARGS = "NOTEBOOKS_TARGET", "NOTEBOOKS_BUILD_ARGS"
ARGUMENT = re.compile(r"[A-Za-z_][\w.-]*\Z", re.ASCII)
NO_JOBS = frozenset(
    ["after_script", "before_script", "cache", "default", "image", "services", "spec", "stages", "variables",
     "workflow"]
)  # fmt: skip
"""What may stand beside jobs: https://docs.gitlab.com/ci/yaml/#global-keywords and the older ones."""
ROOT = ("$CI_PROJECT_DIR", "${CI_PROJECT_DIR}")
WITH_VALUE = {
    "-f": "file", "--file": "file", "--dockerfile": "file",
    "--target": "target", "--build-arg": "argument", "--context": "context",
    "-t": "", "--tag": "", "--label": "", "--platform": "", "--progress": "", "--cache-from": "",
    "--cache-to": "", "--network": "", "--output": "", "-o": "", "--secret": "", "--ssh": "",
    "--builder": "", "--isolation": "", "--format": "", "--layers": "", "--build-context": "?",
    "--destination": "", "-d": "", "--cpus": "", "-m": "", "--memory": "", "--shm-size": "",
    "--add-host": "", "--ulimit": "", "--iidfile": "", "--metadata-file": "", "--storage-driver": "",
    "--provenance": "", "--sbom": "", "--attest": "", "--cache-repo": "", "--verbosity": "",
}  # fmt: skip
OURS = ("notebooks", "image", "build")
OURS_WITH_VALUE = {
    "--dockerfile": "file", "--context": "context", "--target": "target", "--build-arg": "argument",
    "--builder": "", "--image": "", "--forge": "", "--data": "",
}  # fmt: skip
COMMANDS = (
    ("docker", "build"), ("docker", "buildx", "build"), ("docker", "image", "build"),
    ("buildah", "bud"), ("buildah", "build"), ("buildah", "build-using-dockerfile"),
    ("podman", "build"), ("/kaniko/executor",), ("executor",), OURS,
)  # fmt: skip
FLAGS = frozenset(
    ["--pull", "--push", "--load", "--no-cache", "-q", "--quiet", "--rm", "--force-rm", "--squash",
     "--layers", "--cache", "--reproducible", "--single-snapshot", "--compress"]
)  # fmt: skip
ENDS = frozenset([";", "&&", "||", "|", "&", "(", ")", "<", ">", ">>", "2>", "\n"])


@dataclass(frozen=True)
class JobBuild:
    """What a job's script or variables say; None where they do not."""

    dockerfile: str | None = None
    context: str | None = None
    target: str = ""
    build_args: Mapping[str, str] = field(default_factory=dict)
    unsure: tuple[str, ...] = ()


def in_variables(
    dockerfile: str, context: str, target: str, args: Mapping[str, str]
) -> dict[str, str]:
    """The variables that make ``read_job`` say this of a job whose script is `notebooks image build`."""
    said = {DOCKERFILE: dockerfile, CONTEXT: context}
    said |= {TARGET: target} if target else {}
    return said | ({BUILD_ARGS: json.dumps(dict(args), sort_keys=True)} if args else {})


def read_job(files: CommitFiles, job: str) -> JobBuild:
    """What the job ``job`` of the commit's CI file says; nothing if there is none that can be read.

    Raises ``BuildFailed`` for variables of ours that nobody could understand.
    """
    data, mine = _job(files, job)
    if mine is None:
        return JobBuild()
    variables = {**_variables(data), **_variables(mine)}
    given = _given(variables)
    script = list(_lines(mine.get("script")))
    if given is not None:
        ours = [build for line in script for build in _builds(line, variables, (OURS,))]
        return given if len(ours) != 1 or ours[0] is None else _over(ours[0], given)
    builds = [build for line in script for build in _builds(line, variables)]
    if len(builds) == 1 and builds[0] is not None:
        return builds[0]
    if builds:
        return JobBuild(
            unsure=(f"How the job `{job}` builds its image is not understood: the rules decide.",)
        )
    return JobBuild()


def own_build(files: CommitFiles, job: str) -> str:
    """Why the job ``job`` of the commit's own CI file would not build the environment that the hub
    names, or do more than that, in words that go on from "`.gitlab-ci.yml`,"; empty if it would not.

    A pipeline has all of the file's jobs: somebody who opens an old commit must not deploy it.
    """
    data, mine = _job(files, job)
    if mine is None:
        return f"which has no job `{job}` that could be read"
    if "include" in data:
        return "which includes other files, whose jobs would run too"
    others = [str(key) for key in data if key not in NO_JOBS and key != job]
    if others := sorted(key for key in others if not key.startswith(".")):
        return f"whose job `{others[0]}` would run too"
    variables = {**_variables(data), **_variables(mine)}
    script = _lines(mine.get("script"))
    builds = [build for line in script for build in _builds(line, variables, (OURS,))]
    if not builds:
        return f"whose job `{job}` does not run `{' '.join(OURS)}`"
    if len(builds) > 1 or builds[0] is None or builds[0].unsure:
        return f"whose job `{job}` runs `{' '.join(OURS)}` with what is only known in the job"
    return ""


def _job(files: CommitFiles, job: str) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The CI file, and the job in it; None if there is none, or none that can be read."""
    entry = files.listing("").get(CI_FILE) if job else None
    if entry is None or not entry.mode.startswith("100"):
        return {}, None
    try:
        data = read_yaml(CI_FILE, files.content(entry))
    except BuildFailed:
        # Tags such as !reference are GitLab's own.
        return {}, None
    mine = data.get(job) if isinstance(data, dict) else None
    return (data, mine) if isinstance(mine, dict) else ({}, None)


def _given(variables: Mapping[str, str]) -> JobBuild | None:
    """What the job's variables say; None if they say nothing."""
    if variables.keys().isdisjoint((DOCKERFILE, CONTEXT, TARGET, BUILD_ARGS)):
        return None
    for name in (TARGET, BUILD_ARGS):
        if "$" in variables.get(name, ""):
            raise BuildFailed(
                f"`{name}` in the CI file has a `$`, which GitLab takes for another variable: write the "
                "value itself."
            )
    arguments = _arguments(variables.get(BUILD_ARGS, "") or "{}")
    target = variables.get(TARGET, "")
    return JobBuild(variables.get(DOCKERFILE), variables.get(CONTEXT), target, arguments)


def _arguments(text: str) -> dict[str, str]:
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict) or not all(map(_is_argument, said, said.values())):
        raise BuildFailed(
            f"`{BUILD_ARGS}` in the CI file is not understood: it has to be a JSON object of texts, such "
            'as `{"VERSION": "1.2"}`.'
        )
    return {str(key): str(value) for key, value in said.items()}


def _is_argument(key: str, value: object) -> bool:
    """Whether a command line could have it: JSON knows halves of characters too."""
    return bool(
        ARGUMENT.match(key)
        and isinstance(value, str)
        and not any(each == "\0" or "\ud800" <= each <= "\udfff" for each in value)
    )


def _over(said: JobBuild, given: JobBuild) -> JobBuild:
    """What a command line of ours and the variables of its job say together, as the command takes it."""
    if said.dockerfile is not None:
        return said
    return replace(
        said,
        dockerfile=given.dockerfile,
        context=given.context if said.context is None else said.context,
        target=said.target or given.target,
        build_args={**given.build_args, **said.build_args},
    )


def _variables(data: Mapping[str, Any]) -> dict[str, str]:
    given = data.get("variables")
    found: dict[str, str] = {}
    for key, value in given.items() if isinstance(given, dict) else ():
        value = value.get("value") if isinstance(value, dict) else value
        if isinstance(value, (str, int, float)) and not isinstance(value, bool):
            found[str(key)] = str(value)
    return found


def _lines(script: object, depth: int = 0) -> Iterator[str]:
    if isinstance(script, str):
        yield from script.replace("\\\n", " ").splitlines()
    elif isinstance(script, list) and depth < 5:
        for each in script:
            yield from _lines(each, depth + 1)


def _builds(
    line: str, variables: Mapping[str, str], commands: Sequence[tuple[str, ...]] = COMMANDS
) -> Iterator[JobBuild | None]:
    """Every build in a line of a script by one of ``commands``; None for one that is not understood."""
    try:
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.commenters = "#"
        lexer.whitespace_split = True
        words = list(lexer)
    except ValueError:
        if any(" ".join(command) in line for command in commands):
            yield None
        return
    moved = False
    while words:
        end = next((at for at, word in enumerate(words) if word in ENDS), len(words))
        command, words = words[:end], words[end + 1 :]
        moved = moved or command[:1] in (["cd"], ["pushd"])
        known = next((c for c in commands if tuple(command[: len(c)]) == c), None)
        if known is not None:
            yield None if moved else _build(command[len(known) :], variables, known == OURS)


def _build(words: list[str], variables: Mapping[str, str], ours: bool) -> JobBuild | None:
    """``ours``: it is ``notebooks image build``, for which what is not said is found by the rules."""
    options = OURS_WITH_VALUE if ours else WITH_VALUE
    said: dict[str, str] = {}
    arguments: dict[str, str] = {}
    unsure: list[str] = []
    places: list[str] = []
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        if not word.startswith("-") or word == "-":
            places.append(word)
            continue
        name, equals, value = word.partition("=")
        if name in FLAGS:
            continue
        if name not in options or (not equals and not waiting):
            return None
        value = value if equals else waiting.pop(0)
        kind = options[name]
        if kind == "?":
            return None
        if kind == "argument":
            key, given, argument = value.partition("=")
            known = _known(argument if given else f"${key}", variables)
            if known is None:
                unsure.append(f"The value of the build argument `{key}` is only known in the job.")
            else:
                arguments[key] = known
        elif kind:
            said[kind] = value
    if len(places) > (0 if ours else 1):
        return None
    context = places[0] if places else said.get("context", ".")
    paths = [_path(context, variables), _path(said.get("file", ""), variables)]
    target = _known(said.get("target", ""), variables)
    if None in paths or target is None:
        return None
    if ours:
        file = paths[1] if "file" in said else None
        return JobBuild(
            file, paths[0] if "context" in said else None, target, arguments, tuple(unsure)
        )
    dockerfile = paths[1] or posixpath.join(paths[0] or "", "Dockerfile")
    return JobBuild(dockerfile, paths[0], target, arguments, tuple(unsure))


def _known(word: str, variables: Mapping[str, str]) -> str | None:
    """``word`` with the variables of the CI file; None if it has others, or runs something."""
    for key in sorted(variables, key=len, reverse=True):
        word = word.replace(f"${{{key}}}", variables[key]).replace(f"${key}", variables[key])
    return None if "$" in word or "`" in word else word


def _path(word: str, variables: Mapping[str, str]) -> str | None:
    """A path in the repository, "" for its root; None for anything else."""
    for root in ROOT:
        if word == root or word.startswith(f"{root}/"):
            word = f"./{word[len(root) :].lstrip('/')}"
    known = _known(word, variables)
    if known is None or known.startswith(("/", "-")) or "://" in known or known.startswith("git@"):
        return None
    path = posixpath.normpath(known) if known else ""
    return None if path.split("/")[0] == ".." else path.removeprefix(".") if path == "." else path

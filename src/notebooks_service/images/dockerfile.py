"""Reads what a Dockerfile takes from outside: its bases, and files of its context.

Used by ``images/container.py``. The grammar is BuildKit's, by e2b-dockerfile-utils (decision 0180);
here is what stages need and what their variables are.
https://docs.docker.com/reference/dockerfile/
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from e2b_dockerfile_utils import ShellLex, parse_dockerfile_ast
from e2b_dockerfile_utils.syntax import DockerfileInstruction

from notebooks_service.domain import is_commit_sha
from notebooks_service.errors import BuildFailed
from notebooks_service.images.inputs import Base

LARGEST = 256 * 1024
LONGEST_COMMENT = 1000
LONGEST_VALUE = 4096
MOST_EXPANDED = 4_000_000
MOST_STARS = 2
FRONTENDS = ("docker/dockerfile", "docker.io/docker/dockerfile")


@dataclass(frozen=True)
class Source:
    """A path in the context that an instruction takes. ``glob``: it may be a pattern;
    ``deep``: one of ``--parents``."""

    path: str
    why: str
    glob: bool = True
    deep: bool = False


@dataclass
class Plan:
    """What the stages that the target needs take from outside."""

    sources: list[Source] = field(default_factory=list)
    bases: list[Base] = field(default_factory=list)
    moving: list[str] = field(default_factory=list)
    unsure: list[str] = field(default_factory=list)


@dataclass
class _Stage:
    number: int
    name: str
    base: str
    base_known: bool
    line: int
    parent: _Stage | None
    commands: list[DockerfileInstruction] = field(default_factory=list)


def read_dockerfile(
    content: bytes, name: str, *, build_args: Mapping[str, str], target: str, platform: str
) -> Plan:
    """The plan of a build. Raises ``BuildFailed`` for a file that no builder would take, or that
    is too large or too involved."""
    return _Reader(content, name, build_args, platform).plan(target)


def parsed(text: str, name: str) -> tuple[list[DockerfileInstruction], str]:
    """The instructions of a Dockerfile, and its escape character. Raises ``BuildFailed``."""
    # Nobody needs the end of a long comment, and the parser takes long over it.
    lines = [
        line[:LONGEST_COMMENT] if line.lstrip().startswith("#") else line
        for line in text.split("\n")
    ]
    try:
        found = parse_dockerfile_ast("\n".join(lines))
    except (ValueError, RecursionError, AssertionError) as error:
        raise BuildFailed(f"`{name}` is not understood: {str(error)[:200]}.") from None
    for each in found.instructions:
        if each.name in ("COPY", "ADD", "RUN") and each.heredocs and paths_of(each)[1]:
            # BuildKit sees no heredoc there, and reads what follows as instructions.
            raise BuildFailed(
                f"`{name}`, line {each.start_line}: an array and a heredoc cannot stand together."
            )
    return found.instructions, found.escape_token


class _Reader:
    def __init__(
        self, content: bytes, name: str, build_args: Mapping[str, str], platform: str
    ) -> None:
        self._name = name
        self._build_args = build_args
        self._expanded = 0
        if len(content) > LARGEST:
            raise BuildFailed(f"`{name}` is too large to be a Dockerfile.")
        text = content.decode("utf-8-sig", "replace")
        self._instructions, self._escape = parsed(text, name)
        self._plan = Plan()
        self._frontend(text)
        self._globals: dict[str, str] = _platform_args(platform)
        self._stages: list[_Stage] = []
        self._env: dict[int, dict[str, str]] = {}
        self._read_stages()

    def _frontend(self, text: str) -> None:
        for line in text.splitlines():
            key, equals, value = line.strip().removeprefix("#").partition("=")
            if not line.startswith("#") or not equals:
                return
            if key.strip().lower() == "syntax" and not value.strip().startswith(FRONTENDS):
                self._plan.unsure.append(
                    f"`{self._name}` is read by `{value.strip()[:100]}`, which may understand it otherwise."
                )

    # Stages

    def _read_stages(self) -> None:
        for each in self._instructions:
            if each.name == "FROM":
                self._stages.append(self._stage(each))
            elif self._stages:
                self._stages[-1].commands.append(each)
            elif each.name == "ARG":
                for word in each.args:
                    key, given, value = word.partition("=")
                    value, _ = self._expand(value, self._globals, each.start_line)
                    if key in self._build_args:
                        self._globals[key] = self._build_args[key]
                    elif given:
                        self._globals[key] = value
            else:
                raise BuildFailed(
                    f"`{self._name}`, line {each.start_line}: `{each.name}` stands before the first `FROM`."
                )
        if not self._stages:
            raise BuildFailed(f"`{self._name}` has no `FROM`.")

    def _stage(self, each: DockerfileInstruction) -> _Stage:
        words = each.args
        if len(words) not in (1, 3) or (len(words) == 3 and words[1].upper() != "AS"):
            raise BuildFailed(f"`{self._name}`, line {each.start_line}: a `FROM` that is none.")
        base, known = self._expand(words[0], self._globals, each.start_line)
        name = words[2].lower() if len(words) == 3 else ""
        return _Stage(
            len(self._stages), name, base, known and bool(base), each.start_line, self._named(base)
        )

    def _named(self, name: str) -> _Stage | None:
        """The stage before the present one that is called so; the last of several."""
        wanted = name.lower()
        return next((s for s in reversed(self._stages) if s.name and s.name == wanted), None)

    def _other(self, stage: _Stage, name: str) -> _Stage | None:
        """The stage that ``--from`` means in ``stage``, by name or number; None for an image."""
        before = self._stages[: stage.number]
        for each in reversed(before):
            if each.name and each.name == name.lower():
                return each
        if name.isascii() and name.isdigit() and int(name[:9]) < len(before):
            return before[int(name[:9])]
        return None

    def plan(self, target: str) -> Plan:
        last = self._stages[-1]
        if target:
            found = self._other(_Stage(len(self._stages), "", "", True, 0, None), target)
            if found is None:
                raise BuildFailed(f"`{self._name}` has no stage `{target[:80]}`.")
            last = found
        waiting, seen = [last], {last.number}
        order: list[_Stage] = []
        while waiting:
            stage = waiting.pop()
            order.append(stage)
            for other in self._needs(stage):
                if other.number not in seen:
                    seen.add(other.number)
                    waiting.append(other)
        for stage in sorted(order, key=lambda each: each.number):
            self._read_stage(stage)
        return self._plan

    def _needs(self, stage: _Stage) -> list[_Stage]:
        found = [stage.parent] if stage.parent else []
        for each in self._commands(stage):
            names = [_flag(each, "from")] if each.name in ("COPY", "ADD") else []
            if each.name == "RUN":
                names += [options.get("from") for options in _mounts(each)]
            found += [other for name in names if name and (other := self._other(stage, name))]
        return found

    def _commands(self, stage: _Stage) -> list[DockerfileInstruction]:
        """What runs in a stage: before its own, the triggers of the stage that it begins from."""
        triggers: list[DockerfileInstruction] = []
        for each in stage.parent.commands if stage.parent else ():
            if each.name == "ONBUILD":
                triggers += self._trigger(each)
        return [*triggers, *stage.commands]

    def _trigger(self, each: DockerfileInstruction) -> list[DockerfileInstruction]:
        words = each.original.split(None, 1)
        escape = "" if self._escape == "\\" else f"# escape={self._escape}\n"
        text = escape + (words[1] if len(words) == 2 else "")
        found, _ = parsed(text, self._name)
        for one in found:
            one.start_line = each.start_line
        return found

    def _read_stage(self, stage: _Stage) -> None:
        why = f"`FROM` on line {stage.line}"
        if stage.parent is None:
            self._plan.bases.append(Base(stage.base, why, stage.base_known))
            if not stage.base_known:
                self._plan.unsure.append(f"{why} depends on an argument that is not given.")
            if "onbuild" in stage.base.lower().rpartition(":")[2]:
                self._take_all(stage.line, "a base image that takes files itself (`ONBUILD`)")
        variables = dict(self._env.get(stage.parent.number, {})) if stage.parent else {}
        arguments: dict[str, str] = {}
        for each in self._commands(stage):
            scope = {**arguments, **variables}
            line = each.start_line
            if each.name == "ARG":
                self._argument(each, scope, arguments)
            elif each.name == "ENV":
                for key, value in zip(each.args[::3], each.args[1::3], strict=True):
                    variables[self._expand(key, scope, line)[0]] = self._expand(value, scope, line)[
                        0
                    ]
            elif each.name in ("COPY", "ADD"):
                self._copy(stage, each, scope)
            elif each.name == "RUN":
                for options in _mounts(each):
                    self._mount(stage, each, options, scope)
        self._env[stage.number] = variables

    def _argument(
        self, each: DockerfileInstruction, scope: Mapping[str, str], arguments: dict[str, str]
    ) -> None:
        for word in each.args:
            key, given, value = word.partition("=")
            key = self._expand(key, scope, each.start_line)[0]
            if key in self._build_args:
                arguments[key] = self._build_args[key]
            elif given:
                arguments[key] = self._expand(value, {**arguments, **scope}, each.start_line)[0]
            elif key in self._globals:
                arguments[key] = self._globals[key]

    # Instructions

    def _copy(self, stage: _Stage, each: DockerfileInstruction, scope: Mapping[str, str]) -> None:
        why = f"`{each.name}` on line {each.start_line}"
        other = _flag(each, "from")
        if other:
            self._from(stage, other, why)
            return
        words, is_json = paths_of(each)
        deep = any(flag in ("--parents", "--parents=true") for flag in each.flags)
        for word in words[:-1]:
            if each.heredocs and not is_json and word.lstrip("0123456789").startswith("<<"):
                continue
            path, known = self._expand(word, scope, each.start_line)
            if each.name == "ADD" and _is_remote(path):
                self._remote(path, each, why)
            elif not known:
                self._take_all(each.start_line, f"{why}, whose path depends on its base image")
            else:
                self._plan.sources.append(Source(path.replace("/./", "/"), why, deep=deep))

    def _remote(self, address: str, each: DockerfileInstruction, why: str) -> None:
        commit = address.partition("#")[2].partition(":")[0]
        if _flag(each, "checksum") is None and not is_commit_sha(commit):
            self._plan.moving.append(f"{why} reads `{address[:200]}`, which may change.")

    def _mount(
        self,
        stage: _Stage,
        each: DockerfileInstruction,
        options: Mapping[str, str],
        scope: Mapping[str, str],
    ) -> None:
        why = f"`RUN --mount` on line {each.start_line}"
        kind = options.get("type", "bind")
        other = options.get("from")
        if other and kind in ("bind", "cache"):
            self._from(stage, other, why)
        elif kind == "bind":
            path, known = self._expand(options.get("source", "/"), scope, each.start_line)
            if known:
                self._plan.sources.append(Source(path, why, glob=False))
            else:
                self._take_all(each.start_line, f"{why}, whose source depends on its base image")

    def _from(self, stage: _Stage, name: str, why: str) -> None:
        if self._other(stage, name) is None:
            self._plan.bases.append(Base(name, why, "$" not in name))

    def _take_all(self, line: int, why: str) -> None:
        self._plan.sources.append(Source("/", why, glob=False))
        self._plan.unsure.append(f"Line {line}: {why}: all files count.")

    # Variables

    def _expand(self, word: str, scope: Mapping[str, str], line: int) -> tuple[str, bool]:
        """``word`` without quotes and with its variables; whether all of them are known."""
        if not any(sign in word for sign in ("$", "'", '"', self._escape)):
            return word, True
        variables = word.count("$")
        self._expanded += len(word) + variables * LONGEST_VALUE
        stars = word.count("*") + sum(scope[key].count("*") for key in scope if key in word)
        if self._expanded > MOST_EXPANDED or ("${" in word and stars > MOST_STARS):
            raise BuildFailed(f"`{self._name}`, line {line}: its variables are too involved.")
        try:
            kept = ShellLex(self._escape, env=scope).process_word(word)
            value = ShellLex(self._escape, env=scope, skip_unset_env=False).process_word(word)
        except (ValueError, AssertionError) as error:
            raise BuildFailed(f"`{self._name}`, line {line}: {str(error)[:200]}.") from None
        if len(value) > LONGEST_VALUE:
            raise BuildFailed(f"`{self._name}`, line {line}: its variables are too involved.")
        return value, kept == value


def _platform_args(platform: str) -> dict[str, str]:
    """https://docs.docker.com/reference/dockerfile/#automatic-platform-args-in-the-global-scope"""
    system, _, rest = platform.partition("/")
    machine, _, variant = rest.partition("/")
    found: dict[str, str] = {}
    for whose in ("TARGET", "BUILD"):
        found |= {
            f"{whose}PLATFORM": platform,
            f"{whose}OS": system,
            f"{whose}ARCH": machine,
            f"{whose}VARIANT": variant,
        }
    return found


def _flag(each: DockerfileInstruction, name: str) -> str | None:
    for flag in each.flags:
        key, equals, value = flag.partition("=")
        if key.lower() == f"--{name}" and equals:
            return value
    return None


def paths_of(each: DockerfileInstruction) -> tuple[list[str], bool]:
    """The words of a ``COPY`` or ``ADD``, and whether they are in the JSON form.

    Only in that form names have spaces. BuildKit takes an array whatever comes after it.
    """
    if each.json:
        return each.args, True
    rest = " ".join(each.args)
    if rest.startswith("["):
        try:
            found, _ = json.JSONDecoder().raw_decode(rest)
        except (ValueError, RecursionError):
            found = None
        if isinstance(found, list) and all(isinstance(one, str) for one in found):
            return found, True
    return rest.split(), False


def _mounts(each: DockerfileInstruction) -> list[dict[str, str]]:
    """The options of every ``--mount``; ``src`` and ``source`` are one."""
    found: list[dict[str, str]] = []
    for flag in each.flags:
        key, _, value = flag.partition("=")
        if key.lower() != "--mount":
            continue
        options: dict[str, str] = {}
        for row in csv.reader([value]):
            for field_ in row:
                name, _, said = field_.partition("=")
                name = name.strip().lower()
                options["source" if name == "src" else name] = said.strip()
        found.append(options)
    return found


def _is_remote(path: str) -> bool:
    """https://docs.docker.com/reference/dockerfile/#add: an address of a file or of a repository."""
    return path.startswith(("http://", "https://", "git://", "ssh://", "git@"))

"""What a CI job is once it is checked, and what is made of it: parallel copies, circles of needs.

Plain data and pure functions; filled by ``ci_config``, read by ``ci_rules`` and ``ci_pipelines``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from notebooks_service.forge.ci_yaml import Budget, CiConfigInvalid

PARALLEL_LIMIT = 200
NAME_LIMIT = 255


@dataclass(frozen=True)
class Need:
    """A job that has to be done before this one may start."""

    job: str
    optional: bool = False
    artifacts: bool = True


@dataclass(frozen=True)
class Rule:
    """One entry of ``rules``: https://docs.gitlab.com/ci/yaml/#rules"""

    condition: str | None = None
    changes: tuple[str, ...] | None = None
    exists: tuple[str, ...] | None = None
    when: str | None = None
    allow_failure: bool | None = None
    start_in: int | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    needs: tuple[Need, ...] | None = None


@dataclass(frozen=True)
class RefPolicy:
    """``only`` or ``except``: https://docs.gitlab.com/ci/yaml/deprecated_keywords/#only--except"""

    refs: tuple[str, ...] | None = None
    variables: tuple[str, ...] | None = None
    changes: tuple[str, ...] | None = None
    kubernetes: bool = False


@dataclass(frozen=True)
class ChildTrigger:
    """``trigger: include``: a child pipeline made of files of the same project."""

    files: tuple[str, ...]
    depend: bool = False


@dataclass(frozen=True)
class CiJob:
    """One checked job. Times are in seconds; ``script`` has ``before_script`` in front."""

    name: str
    stage: str
    script: tuple[str, ...] = ()
    after_script: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    raw_variables: frozenset[str] = frozenset()
    when: str = "on_success"
    allow_failure: bool = False
    allow_failure_codes: tuple[int, ...] = ()
    timeout: int | None = None
    start_in: int | None = None
    needs: tuple[Need, ...] | None = None
    image: Mapping[str, Any] | None = None
    services: tuple[Mapping[str, Any], ...] = ()
    tags: tuple[str, ...] = ()
    rules: tuple[Rule, ...] | None = None
    only: RefPolicy | None = None
    excepted: RefPolicy | None = None
    retry: int = 0
    retry_when: tuple[str, ...] = ()
    trigger: ChildTrigger | None = None
    parallel_name: str | None = None
    artifacts: Mapping[str, Any] | None = None
    dependencies: tuple[str, ...] | None = None
    environment: str | None = None


@dataclass(frozen=True)
class CiConfig:
    """A checked configuration; ``workflow`` None means that no rules hold pipelines back."""

    stages: tuple[str, ...]
    jobs: tuple[CiJob, ...]
    variables: Mapping[str, str] = field(default_factory=dict)
    raw_variables: frozenset[str] = frozenset()
    workflow: tuple[Rule, ...] | None = None
    name: str | None = None


_UNITS = {
    "s": 1, "sec": 1, "second": 1, "m": 60, "min": 60, "minute": 60, "h": 3600, "hr": 3600,
    "hour": 3600, "d": 86400, "day": 86400, "w": 604800, "week": 604800,
    "mo": 2592000, "month": 2592000, "y": 31557600, "year": 31557600,
}  # fmt: skip


def duration(text: str) -> int | None:
    """Seconds of ``1h 30m``, ``90 minutes``, ``3600 seconds``, ``02:30``; None if it is none."""
    words = text.strip().lower()
    clock = re.fullmatch(r"(?:(\d{1,6}):)?(\d{1,6}):(\d{1,6})", words)
    if clock:
        return int(clock[1] or 0) * 3600 + int(clock[2]) * 60 + int(clock[3])
    if re.fullmatch(r"\d{1,9}", words):
        return int(words)
    total = 0.0
    rest = re.sub(r"\band\b|,", " ", words)
    matches = list(re.finditer(r"(\d{1,9}(?:\.\d{1,3})?)\s*([a-z]+)\s*", rest))
    if not matches or "".join(m[0] for m in matches).strip() != rest.strip():
        return None
    for match in matches:
        unit = match[2]
        seconds = _UNITS.get(unit) or _UNITS.get(unit.removesuffix("s"))
        if seconds is None:
            return None
        total += float(match[1]) * seconds
    return int(total) or None


def find_circle(needs: Mapping[str, list[str]]) -> list[str]:
    """The names that are in, or behind, a circle of ``needs``; empty if there is none."""
    waiting = {name: {need for need in found if need in needs} for name, found in needs.items()}
    dependants: dict[str, list[str]] = {}
    for name, found in waiting.items():
        for need in found:
            dependants.setdefault(need, []).append(name)
    free = [name for name, found in waiting.items() if not found]
    while free:
        name = free.pop()
        waiting.pop(name, None)
        for other in dependants.get(name, ()):
            if other in waiting:
                waiting[other].discard(name)
                if not waiting[other]:
                    free.append(other)
    return list(waiting)


def parallel(job: CiJob, value: Any, budget: Budget) -> list[CiJob]:
    """``job`` as often as ``parallel`` says: https://docs.gitlab.com/ci/yaml/#parallel"""
    if value is None:
        return [job]
    where = f"jobs:{job.name}:parallel"
    if isinstance(value, int) and not isinstance(value, bool):
        if not 1 <= value <= PARALLEL_LIMIT:
            raise CiConfigInvalid(f"{where} config must be between 1 and {PARALLEL_LIMIT}")
        sets: list[dict[str, str]] = [{} for _ in range(value)]
        names = [f"{job.name} {index}/{value}" for index in range(1, value + 1)]
    else:
        matrix = value.get("matrix") if isinstance(value, dict) else None
        if not isinstance(matrix, list) or not all(isinstance(row, dict) for row in matrix):
            raise CiConfigInvalid(f"{where} should be an integer or a hash")
        sets = []
        for row in matrix:
            combinations: list[dict[str, str]] = [{}]
            for key, given in row.items():
                choices = given if isinstance(given, list) else [given]
                if len(combinations) * len(choices) > PARALLEL_LIMIT:
                    raise CiConfigInvalid(
                        f"{where}:matrix config generates too many jobs (maximum is {PARALLEL_LIMIT})"
                    )
                combinations = [
                    {**done, key: scalar(choice)} for done in combinations for choice in choices
                ]
            sets.extend(combinations)
        if not 1 <= len(sets) <= PARALLEL_LIMIT:
            raise CiConfigInvalid(
                f"{where}:matrix config generates too many jobs (maximum is {PARALLEL_LIMIT})"
            )
        names = [f"{job.name}: [{', '.join(row.values())}]"[:NAME_LIMIT] for row in sets]
    budget.spend(len(sets) * 10)
    return [
        replace(
            job,
            name=name,
            parallel_name=job.name,
            variables={
                **job.variables,
                **row,
                "CI_NODE_INDEX": str(index),
                "CI_NODE_TOTAL": str(len(sets)),
            },
        )
        for index, (name, row) in enumerate(zip(names, sets, strict=True), 1)
    ]


def scalar(value: Any) -> str:
    """A YAML scalar as the text that a variable holds."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)

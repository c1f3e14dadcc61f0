"""The processes of a running ``notebooks up``: are all of them there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from notebooks_service.doctor.findings import Finding, ok, plain, problem
from notebooks_service.platform.directory import PARTS
from notebooks_service.platform.processes import ProcessId


def look_at_parts(data: Path, *, embedded: bool, containers: bool, egress: bool) -> dict[str, bool]:
    """Which parts of the platform on ``data`` live. ``containers``: its servers are some, which reach the
    outside with ``egress``.
    """
    without: set[str] = set() if embedded else {"forge", "runner", "registry"}
    without |= set() if containers else {"inside", "registry"}
    without |= set() if containers and egress else {"egress"}
    wanted = [each for each in PARTS if each not in without]
    found = {}
    for name in wanted:
        known = ProcessId.read(data / "run" / f"{name}.json")
        found[name] = known is not None and known.find() is not None
    return found


def judge_parts(alive: Mapping[str, bool], logs: Path) -> list[Finding]:
    missing = [name for name, lives in alive.items() if not lives]
    if not missing:
        return [ok("parts.alive", f"`notebooks up` runs with all its parts: {', '.join(alive)}.")]
    return [
        problem(
            "parts.missing",
            f"`notebooks up` runs without its {' and '.join(missing)}.",
            f"Read {plain(logs / (missing[0] + '.log'))}; it is started again by itself, with growing pauses.",
        )
    ]

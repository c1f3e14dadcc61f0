"""What a job keeps and what it is given: ``artifacts``, ``dependencies``, ``environment``; for ``ci_job_entry``.

https://docs.gitlab.com/ci/yaml/#artifacts · https://docs.gitlab.com/ci/yaml/#dependencies
"""

from __future__ import annotations

from typing import Any

from notebooks_service.forge import ci_reports
from notebooks_service.forge.ci_values import Values
from notebooks_service.forge.ci_yaml import CiConfigInvalid

EXPIRE_LIMIT = 100 * 366 * 86400
ARTIFACT_WHENS = ("on_success", "on_failure", "always")
_KEYS = frozenset(
    [
        "access",
        "exclude",
        "expire_in",
        "expose_as",
        "name",
        "paths",
        "public",
        "reports",
        "untracked",
        "when",
    ]
)


def artifacts(values: Values, value: Any, where: str) -> dict[str, Any] | None:
    """The entry as a runner is told it, with its ``reports``; None for a job that keeps nothing."""
    if value is None:
        return None
    place = f"{where}:artifacts"
    if not isinstance(value, dict):
        raise CiConfigInvalid(f"{place} config should be a hash")
    unknown = sorted(set(value) - _KEYS)
    if unknown:
        raise CiConfigInvalid(f"{place} config contains unknown keys: {', '.join(unknown)}")
    paths = values.strings(value.get("paths"), f"{place} paths")
    exclude = values.strings(value.get("exclude"), f"{place} exclude")
    untracked = value.get("untracked", False)
    if not isinstance(untracked, bool):
        raise CiConfigInvalid(f"{place} untracked should be a boolean value")
    name = value.get("name")
    if name is not None and not isinstance(name, str):
        raise CiConfigInvalid(f"{place} name should be a string")
    when = value.get("when", "on_success")
    if when not in ARTIFACT_WHENS:
        raise CiConfigInvalid(f"{place} when should be one of: {', '.join(ARTIFACT_WHENS)}")
    expire_in = value.get("expire_in")
    if expire_in is not None and expire_in != "never":
        values.seconds(expire_in, f"{place} expire in", EXPIRE_LIMIT)
    reports = ci_reports.entry(values, value.get("reports"), f"{place}:reports")
    if not paths and not untracked and not reports:
        return None
    return {
        "name": name or "artifacts",
        "untracked": untracked,
        "paths": list(paths),
        "exclude": list(exclude),
        "when": when,
        "expire_in": None if expire_in is None else str(expire_in),
        "reports": reports,
    }


def dependencies(values: Values, value: Any, where: str) -> tuple[str, ...] | None:
    """Jobs whose artifacts this one is given; None for all of the stages before, or all it needs."""
    if value is None:
        return None
    return values.strings(value, f"{where}:dependencies")


def environment(value: Any, where: str) -> str | None:
    """The name of the job's environment, which only limits variables here; nothing is deployed."""
    name = value.get("name") if isinstance(value, dict) else value
    if name is None:
        return None
    if not isinstance(name, str) or len(name) > 255:
        raise CiConfigInvalid(f"{where}:environment name should be a string")
    return name

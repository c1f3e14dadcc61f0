"""Values of a CI configuration, each of the type that it must have; used by ``ci_conditions`` and on.

Every method gives a checked value or raises ``CiConfigInvalid`` with GitLab's sentence; ``where`` is how
that sentence names the place. https://docs.gitlab.com/ci/yaml/
"""

from __future__ import annotations

from typing import Any

from notebooks_service.forge.ci_jobs import duration, scalar
from notebooks_service.forge.ci_yaml import Budget, CiConfigInvalid, Reference

START_IN_LIMIT = 7 * 86_400
"""A week: https://docs.gitlab.com/ci/yaml/#start_in"""
TIMEOUT_LIMIT = 31 * 86_400
"""A month, as GitLab's ``MAX_BUILD_TIMEOUT``."""
WHENS = ("on_success", "on_failure", "always", "never", "manual", "delayed")


class Values:
    """Reads values; what lists and mappings cost is taken from ``budget``."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget

    def mapping(self, value: Any, where: str) -> dict[str, Any]:
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise CiConfigInvalid(f"{where} config should be a hash")
        return dict(value)

    def strings(self, value: Any, where: str) -> tuple[str, ...]:
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(item, (str, int)) for item in value):
            raise CiConfigInvalid(f"{where} config should be an array of strings")
        self.budget.spend(len(value))
        return tuple(str(item) for item in value)

    def script(self, value: Any, where: str) -> tuple[str, ...]:
        """A string, or arrays of strings up to ten deep, flattened."""
        sentence = (
            f"{where} config should be a string or a nested array of strings up to 10 levels deep"
        )
        if value is None:
            return ()
        if isinstance(value, str):
            return (value,)
        lines: list[str] = []

        def flatten(items: Any, depth: int) -> None:
            if not isinstance(items, list) or depth > 10:
                raise CiConfigInvalid(sentence)
            self.budget.spend(len(items) + 1)
            for item in items:
                if isinstance(item, str):
                    lines.append(item)
                else:
                    flatten(item, depth + 1)

        flatten(value, 1)
        return tuple(lines)

    def variables(self, value: Any, where: str) -> tuple[dict[str, str], frozenset[str]]:
        raw: set[str] = set()
        found: dict[str, str] = {}
        for name, item in self.mapping(value, where).items():
            self.budget.spend()
            if isinstance(item, dict):
                if item.get("expand") is False:
                    raw.add(name)
                item = item.get("value", "")
            if isinstance(item, (dict, list, Reference)):
                raise CiConfigInvalid(
                    f"{where} config should be a hash of key value pairs, value can be a hash"
                )
            found[name] = scalar(item)
        return found, frozenset(raw)

    def seconds(self, value: Any, where: str, limit: int) -> int | None:
        """A duration of at most ``limit`` seconds."""
        if value is None:
            return None
        found = duration(str(value)) if isinstance(value, (str, int)) else None
        if found is None:
            raise CiConfigInvalid(f"{where} config should be a duration")
        if found > limit:
            raise CiConfigInvalid(f"{where} config should not exceed the limit")
        return found

    def when(self, value: Any, where: str) -> str | None:
        if value is None:
            return None
        if value not in WHENS:
            raise CiConfigInvalid(f"{where} when should be one of: {', '.join(WHENS)}")
        return str(value)

    def image(self, value: Any, where: str) -> dict[str, Any] | None:
        if value is None:
            return None
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, dict) and isinstance(value.get("name"), str):
            found: dict[str, Any] = {"name": value["name"]}
            for key in ("entrypoint", "command"):
                if value.get(key) is not None:
                    given = value[key]
                    given = [given] if isinstance(given, str) else given
                    found[key] = list(self.strings(given, f"{where}:{key}"))
            if value.get("alias") is not None:
                found["alias"] = str(value["alias"])
            return found
        raise CiConfigInvalid(f"{where} config should be a hash or a string")

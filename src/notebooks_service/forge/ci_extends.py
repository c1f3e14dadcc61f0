"""``extends`` of a CI configuration: merges what jobs have in common into each of them. Pure.

https://docs.gitlab.com/ci/yaml/#extends
"""

from __future__ import annotations

from typing import Any

from notebooks_service.forge.ci_yaml import Budget, CiConfigInvalid

EXTENDS_DEPTH = 11


def extend_all(root: dict[str, Any], budget: Budget) -> dict[str, Any]:
    """``root`` with ``extends`` merged in: hashes deeply, everything else replaced."""
    done: dict[str, Any] = {}

    def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
        budget.spend(len(base) + len(over))
        merged = dict(base)
        for key, value in over.items():
            known = merged.get(key)
            both = isinstance(known, dict) and isinstance(value, dict)
            merged[key] = merge(known, value) if both else value  # type: ignore[arg-type]
        return merged

    def extend(name: str, chain: tuple[str, ...]) -> Any:
        if name in done:
            return done[name]
        entry = root[name]
        if not isinstance(entry, dict) or entry.get("extends") is None:
            return entry
        if name in chain:
            raise CiConfigInvalid(f"{name}: circular dependency detected in `extends`")
        if len(chain) >= EXTENDS_DEPTH:
            raise CiConfigInvalid(f"{name}: nesting too deep in `extends`")
        bases = entry["extends"]
        names = [bases] if isinstance(bases, str) else bases
        if not isinstance(names, list) or not all(isinstance(base, str) for base in names):
            raise CiConfigInvalid(
                f"jobs:{name}:extends config should be an array of strings or a string"
            )
        merged: dict[str, Any] = {}
        for base in names:
            if base not in root:
                raise CiConfigInvalid(f"{name}: unknown keys in `extends` ({base})")
            part = extend(base, (*chain, name))
            if not isinstance(part, dict):
                raise CiConfigInvalid(f"{name}: invalid base hashes in `extends` ({base})")
            merged = merge(merged, part)
        merged = merge(merged, entry)
        merged.pop("extends", None)
        done[name] = merged
        return merged

    return {name: extend(name, ()) for name in root}

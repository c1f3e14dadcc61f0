"""When a job runs and what it waits for: ``rules``, ``only``/``except``, ``needs``; used by ``ci_job_entry``.

Checks what is written; whether a condition holds is ``ci_rules``'s business.
https://docs.gitlab.com/ci/jobs/job_rules/
"""

from __future__ import annotations

from typing import Any

from notebooks_service.forge import ci_expressions
from notebooks_service.forge.ci_jobs import Need, RefPolicy, Rule
from notebooks_service.forge.ci_values import START_IN_LIMIT, Values
from notebooks_service.forge.ci_yaml import CiConfigInvalid

NEEDS_LIMIT = 50
PATHS_LIMIT = 50


class Conditions:
    """Gives checked conditions or raises ``CiConfigInvalid``."""

    def __init__(self, values: Values) -> None:
        self.values = values

    def needs(self, value: Any, where: str) -> tuple[Need, ...] | None:
        if value is None:
            return None
        if not isinstance(value, list):
            raise CiConfigInvalid(f"{where} config can only be a hash or an array")
        if len(value) > NEEDS_LIMIT:
            raise CiConfigInvalid(f"{where} config is too long (maximum is {NEEDS_LIMIT})")
        found: list[Need] = []
        self.values.budget.spend(len(value))
        for item in value:
            if isinstance(item, str):
                found.append(Need(item))
            elif isinstance(item, dict) and isinstance(item.get("job"), str):
                if "project" not in item and "pipeline" not in item:
                    optional = item.get("optional") is True
                    kept = item.get("artifacts") is not False
                    found.append(Need(item["job"], optional, kept))
            elif not isinstance(item, dict):
                raise CiConfigInvalid(f"{where}:need has an unsupported type")
        names = [need.job for need in found]
        if len(set(names)) != len(names):
            raise CiConfigInvalid(f"{where} has duplicate entries in the needs section.")
        return tuple(found)

    def rules(self, value: Any, where: str) -> tuple[Rule, ...]:
        if not isinstance(value, list):
            raise CiConfigInvalid(f"{where} config should be an array")
        found: list[Rule] = []

        def flatten(items: list[Any], depth: int) -> None:
            for item in items:
                self.values.budget.spend()
                if isinstance(item, list) and depth < 10:
                    flatten(item, depth + 1)
                else:
                    found.append(self.rule(item, where))

        flatten(value, 1)
        return tuple(found)

    def rule(self, item: Any, where: str) -> Rule:
        if not isinstance(item, dict):
            raise CiConfigInvalid(f"{where}:rule config should be a hash")
        allowed = {"if", "changes", "exists", "when", "allow_failure", "start_in", "variables"}
        unknown = sorted(set(item) - allowed - {"needs", "interruptible", "auto_cancel"})
        if unknown:
            raise CiConfigInvalid(
                f"{where}:rule config contains unknown keys: {', '.join(unknown)}"
            )
        condition = item.get("if")
        if condition is not None:
            try:
                ci_expressions.check(str(condition))
            except ci_expressions.ExpressionInvalid:
                raise CiConfigInvalid(f"{where}:rule if invalid expression syntax") from None
        allow = item.get("allow_failure")
        if allow is not None and not isinstance(allow, bool):
            raise CiConfigInvalid(f"{where}:rule allow failure should be a boolean value")
        return Rule(
            condition=None if condition is None else str(condition),
            changes=self.paths(item.get("changes"), f"{where}:rule:changes"),
            exists=self.paths(item.get("exists"), f"{where}:rule:exists"),
            when=self.values.when(item.get("when"), f"{where}:rule"),
            allow_failure=allow,
            start_in=self.values.seconds(
                item.get("start_in"), f"{where}:rule start in", START_IN_LIMIT
            ),
            variables=self.values.variables(item.get("variables"), f"{where}:rule:variables")[0],
            needs=self.needs(item.get("needs"), f"{where}:rule:needs"),
        )

    def paths(self, value: Any, where: str) -> tuple[str, ...] | None:
        if value is None:
            return None
        if isinstance(value, dict):
            value = value.get("paths")
        found = self.values.strings(value, where)
        if len(found) > PATHS_LIMIT:
            raise CiConfigInvalid(f"{where} config has too many entries (maximum {PATHS_LIMIT})")
        return found

    def policy(self, value: Any, where: str) -> RefPolicy | None:
        if value is None:
            return None
        if isinstance(value, str):
            value = [value]
        if isinstance(value, list):
            return RefPolicy(refs=self.refs(value, where))
        found = self.values.mapping(value, where)
        unknown = sorted(set(found) - {"refs", "variables", "changes", "kubernetes"})
        if unknown:
            raise CiConfigInvalid(f"{where} config contains unknown keys: {', '.join(unknown)}")
        expressions = (
            self.values.strings(found["variables"], where) if "variables" in found else None
        )
        for expression in expressions or ():
            try:
                ci_expressions.check(expression)
            except ci_expressions.ExpressionInvalid:
                raise CiConfigInvalid(f"{where} variables invalid expression syntax") from None
        return RefPolicy(
            refs=self.refs(found["refs"], where) if "refs" in found else None,
            variables=expressions,
            changes=self.paths(found.get("changes"), where),
            kubernetes="kubernetes" in found,
        )

    def refs(self, value: Any, where: str) -> tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise CiConfigInvalid(
                f"{where} config should be an array of strings or regular expressions"
            )
        self.values.budget.spend(len(value))
        return tuple(value)

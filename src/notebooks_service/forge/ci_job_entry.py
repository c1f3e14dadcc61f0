"""One job's entry in a CI configuration, checked and with the defaults; called by ``ci_config``.

Sentences of errors are GitLab's. https://docs.gitlab.com/ci/yaml/#job-keywords
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from notebooks_service.forge import ci_artifacts_entry
from notebooks_service.forge.ci_conditions import Conditions
from notebooks_service.forge.ci_jobs import NAME_LIMIT, ChildTrigger, CiJob, parallel
from notebooks_service.forge.ci_values import START_IN_LIMIT, TIMEOUT_LIMIT, Values
from notebooks_service.forge.ci_yaml import CiConfigInvalid

DEFAULT_KEYS = frozenset(
    [
        "after_script",
        "artifacts",
        "before_script",
        "cache",
        "hooks",
        "id_tokens",
        "identity",
        "image",
        "interruptible",
        "retry",
        "services",
        "tags",
        "timeout",
    ]
)
"""What `default` may hold."""
_JOB_KEYS = DEFAULT_KEYS | frozenset(
    [
        "allow_failure",
        "coverage",
        "dast_configuration",
        "dependencies",
        "environment",
        "except",
        "extends",
        "inherit",
        "manual_confirmation",
        "needs",
        "only",
        "pages",
        "parallel",
        "publish",
        "release",
        "resource_group",
        "rules",
        "run",
        "script",
        "secrets",
        "stage",
        "start_in",
        "trigger",
        "type",
        "variables",
        "when",
    ]
)


class JobReader:
    """Reads entries of one configuration: its ``stages`` in order, its ``defaults``."""

    def __init__(
        self, values: Values, stages: Collection[str], defaults: Mapping[str, Any]
    ) -> None:
        self.values = values
        self.conditions = Conditions(values)
        self.stages = stages
        self.defaults = defaults

    def read(self, name: str, entry: Any) -> list[CiJob]:
        where = f"jobs:{name}"
        self.values.budget.spend(10)
        if not name or len(name) > NAME_LIMIT:
            raise CiConfigInvalid(f"{where[:80]} name is too long (maximum is 255 characters)")
        if not isinstance(entry, dict):
            raise CiConfigInvalid(f"{where} config should be a hash")
        unknown = sorted(set(entry) - _JOB_KEYS)
        if unknown:
            raise CiConfigInvalid(f"{where} config contains unknown keys: {', '.join(unknown)}")
        entry = self.with_defaults(entry, where)
        trigger = self.trigger(entry.get("trigger"), where) if "trigger" in entry else None
        body = self.values.script(entry.get("script"), f"{where}:script")
        if trigger is None and not body:
            raise CiConfigInvalid(
                f"{where} config should implement the script:, run:, or trigger: keyword"
            )
        if trigger is not None and body:
            raise CiConfigInvalid(f"{where} config contains unknown keys: script")
        stage = entry.get("stage", entry.get("type", "test"))
        if stage not in self.stages:
            raise CiConfigInvalid(
                f"{name} job: chosen stage {stage} does not exist; "
                f"available stages are {', '.join(self.stages)}"
            )
        if "rules" in entry and ({"only", "except"} & set(entry)):
            raise CiConfigInvalid(f"{where} config key may not be used with `rules`: only")
        when = self.values.when(entry.get("when"), where)
        start_in = self.values.seconds(entry.get("start_in"), f"{where} start in", START_IN_LIMIT)
        if when == "delayed" and start_in is None:
            raise CiConfigInvalid(f"{where} start in should be a duration")
        allowed, codes = self.allow_failure(entry.get("allow_failure"), when, where)
        variables, raw = self.values.variables(entry.get("variables"), f"{where}:variables")
        retry, retry_when = self.retry(entry.get("retry"), where)
        before = self.values.script(entry.get("before_script"), f"{where}:before_script")
        services = entry.get("services") or []
        if not isinstance(services, list):
            raise CiConfigInvalid(f"{where}:services config should be a array")
        job = CiJob(
            name=name,
            stage=str(stage),
            script=(*before, *body) if body else (),
            after_script=self.values.script(entry.get("after_script"), f"{where}:after_script"),
            variables=variables,
            raw_variables=raw,
            when=when or "on_success",
            allow_failure=allowed,
            allow_failure_codes=codes,
            timeout=self.values.seconds(entry.get("timeout"), f"{where}:timeout", TIMEOUT_LIMIT),
            start_in=start_in,
            needs=self.conditions.needs(entry.get("needs"), f"{where}:needs"),
            image=self.values.image(entry.get("image"), f"{where}:image"),
            services=tuple(
                service
                for item in services
                if (service := self.values.image(item, f"{where}:services:service")) is not None
            ),
            tags=self.values.strings(entry.get("tags"), f"{where}:tags"),
            rules=self.conditions.rules(entry["rules"], f"{where}:rules")
            if entry.get("rules")
            else None,
            only=self.conditions.policy(entry.get("only"), f"{where}:only"),
            excepted=self.conditions.policy(entry.get("except"), f"{where}:except"),
            retry=retry,
            retry_when=retry_when,
            trigger=trigger,
            artifacts=ci_artifacts_entry.artifacts(self.values, entry.get("artifacts"), where),
            dependencies=ci_artifacts_entry.dependencies(
                self.values, entry.get("dependencies"), where
            ),
            environment=ci_artifacts_entry.environment(entry.get("environment"), where),
        )
        return parallel(job, entry.get("parallel"), self.values.budget)

    def with_defaults(self, entry: dict[str, Any], where: str) -> dict[str, Any]:
        inherit = self.values.mapping(entry.get("inherit"), f"{where}:inherit").get("default", True)
        if inherit is False or "trigger" in entry:
            return entry
        if isinstance(inherit, list):
            names = set(self.values.strings(inherit, f"{where}:inherit:default"))
        else:
            names = set(self.defaults)
        return {**{k: v for k, v in self.defaults.items() if k in names}, **entry}

    def allow_failure(
        self, value: Any, when: str | None, where: str
    ) -> tuple[bool, tuple[int, ...]]:
        if value is None:
            return when == "manual", ()
        if isinstance(value, bool):
            return value, ()
        codes = value.get("exit_codes") if isinstance(value, dict) else None
        codes = [codes] if isinstance(codes, int) else codes
        if not isinstance(codes, list) or not all(isinstance(code, int) for code in codes):
            raise CiConfigInvalid(
                f"{where}:allow_failure exit codes should be an array of integers or an integer"
            )
        return False, tuple(codes)

    def retry(self, value: Any, where: str) -> tuple[int, tuple[str, ...]]:
        reasons: tuple[str, ...] = ()
        if isinstance(value, dict):
            given = value.get("when")
            reasons = (
                (given,) if isinstance(given, str) else self.values.strings(given, f"{where}:retry")
            )
            value = value.get("max", 0)
        if value is None:
            return 0, ()
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 2:
            raise CiConfigInvalid(f"{where}:retry config must be less than or equal to 2")
        return value, reasons

    def trigger(self, value: Any, where: str) -> ChildTrigger:
        include = value.get("include") if isinstance(value, dict) else None
        items = include if isinstance(include, list) else [include]
        files: list[str] = []
        for item in items:
            path = item.get("local") if isinstance(item, dict) and len(item) == 1 else item
            if not isinstance(path, str):
                raise CiConfigInvalid(
                    f"{where}:trigger config is not supported by the embedded forge: "
                    "only `include` of local files is"
                )
            files.append(path.lstrip("/"))
        if len(files) != 1:
            raise CiConfigInvalid(f"{where}:trigger:include config is too long (maximum is 1)")
        return ChildTrigger(tuple(files), value.get("strategy") in ("depend", "mirror"))

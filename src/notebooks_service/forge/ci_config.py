"""From the text of a ``.gitlab-ci.yml`` to checked jobs; pure, called by ``ci_pipelines``.

Which of the jobs a pipeline gets is ``ci_rules``'s business. Sentences of errors are GitLab's.
https://docs.gitlab.com/ci/yaml/
"""

from __future__ import annotations

from typing import Any

from notebooks_service.forge import ci_expressions
from notebooks_service.forge.ci_extends import extend_all
from notebooks_service.forge.ci_jobs import (
    NAME_LIMIT,
    ChildTrigger,
    CiConfig,
    CiJob,
    Need,
    RefPolicy,
    Rule,
    duration,
    find_circle,
    parallel,
    scalar,
)
from notebooks_service.forge.ci_yaml import (
    Budget,
    CiConfigInvalid,
    Reference,
    read,
    resolve_references,
)

WORK_LIMIT = 400_000
JOB_LIMIT = 1000
NEEDS_LIMIT = 50

DEFAULT_STAGES = ("build", "test", "deploy")
WHENS = ("on_success", "on_failure", "always", "never", "manual", "delayed")

_DEFAULT_KEYS = frozenset(
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
_TOP_KEYS = frozenset(
    [
        "after_script",
        "before_script",
        "cache",
        "default",
        "image",
        "include",
        "pages",
        "services",
        "spec",
        "stages",
        "types",
        "variables",
        "workflow",
    ]
)
_JOB_KEYS = _DEFAULT_KEYS | frozenset(
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


def parse(text: str) -> CiConfig:
    """The configuration that ``text`` holds.

    Raises ``CiConfigInvalid`` with GitLab's sentence. What the embedded forge keeps but does not
    act on: ``image``, ``services``, ``tags``. What it accepts and ignores: ``artifacts``,
    ``cache``, ``coverage``, ``environment``, ``release``, ``resource_group``, ``interruptible``.
    """
    budget = Budget(WORK_LIMIT)
    root = read(text)
    if "include" in root:
        raise CiConfigInvalid(
            "`include` is not supported by the embedded forge: Included file could not be fetched"
        )
    root = extend_all(resolve_references(root, budget), budget)
    return _Reader(root, budget).config()


class _Reader:
    """Checks the merged data; every method returns checked parts or raises ``CiConfigInvalid``."""

    def __init__(self, root: dict[str, Any], budget: Budget) -> None:
        self.root = root
        self.budget = budget
        self.defaults = self.mapping(root.get("default"), "default")
        unknown = sorted(set(self.defaults) - _DEFAULT_KEYS)
        if unknown:
            raise CiConfigInvalid(f"default config contains unknown keys: {', '.join(unknown)}")
        for key in ("after_script", "before_script", "image", "services"):
            if key in root:
                if key in self.defaults:
                    raise CiConfigInvalid(f"{key} is defined in top-level and `default:` entry")
                self.defaults[key] = root[key]
        stages = self.strings(root.get("stages", root.get("types")), "stages") or DEFAULT_STAGES
        inner = [stage for stage in dict.fromkeys(stages) if stage not in (".pre", ".post")]
        self.stages = (".pre", *inner, ".post")

    def config(self) -> CiConfig:
        variables, raw = self.variables(self.root.get("variables"), "variables")
        workflow = self.mapping(self.root.get("workflow"), "workflow")
        jobs: list[CiJob] = []
        for name, entry in self.root.items():
            if name.startswith(".") or (name in _TOP_KEYS and name != "pages"):
                continue
            jobs.extend(self.job(name, entry))
            if len(jobs) > JOB_LIMIT:
                raise CiConfigInvalid(
                    f"The number of jobs has exceeded the limit of {JOB_LIMIT}. Try splitting the configuration"
                )
        if not jobs:
            raise CiConfigInvalid("jobs config should contain at least one visible job")
        self.check_needs(jobs)
        rules = workflow.get("rules")
        title = workflow.get("name")
        return CiConfig(
            stages=self.stages,
            jobs=tuple(jobs),
            variables=variables,
            raw_variables=raw,
            workflow=None if rules is None else self.rules(rules, "workflow:rules"),
            name=str(title)[:NAME_LIMIT] if title is not None else None,
        )

    # Values -----------------------------------------------------------------------------------

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

    def seconds(self, value: Any, where: str) -> int | None:
        if value is None:
            return None
        found = duration(str(value)) if isinstance(value, (str, int)) else None
        if found is None:
            raise CiConfigInvalid(f"{where} config should be a duration")
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
            return {
                key: value[key]
                for key in ("name", "entrypoint", "command", "alias")
                if key in value
            }
        raise CiConfigInvalid(f"{where} config should be a hash or a string")

    def needs(self, value: Any, where: str) -> tuple[Need, ...] | None:
        if value is None:
            return None
        if not isinstance(value, list):
            raise CiConfigInvalid(f"{where} config can only be a hash or an array")
        if len(value) > NEEDS_LIMIT:
            raise CiConfigInvalid(f"{where} config is too long (maximum is {NEEDS_LIMIT})")
        found: list[Need] = []
        self.budget.spend(len(value))
        for item in value:
            if isinstance(item, str):
                found.append(Need(item))
            elif isinstance(item, dict) and isinstance(item.get("job"), str):
                if "project" not in item and "pipeline" not in item:
                    found.append(Need(item["job"], item.get("optional") is True))
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
                self.budget.spend()
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
            when=self.when(item.get("when"), f"{where}:rule"),
            allow_failure=allow,
            start_in=self.seconds(item.get("start_in"), f"{where}:rule start in"),
            variables=self.variables(item.get("variables"), f"{where}:rule:variables")[0],
            needs=self.needs(item.get("needs"), f"{where}:rule:needs"),
        )

    def paths(self, value: Any, where: str) -> tuple[str, ...] | None:
        if value is None:
            return None
        if isinstance(value, dict):
            value = value.get("paths")
        return self.strings(value, where)

    def policy(self, value: Any, where: str) -> RefPolicy | None:
        if value is None:
            return None
        if isinstance(value, str):
            value = [value]
        if isinstance(value, list):
            return RefPolicy(refs=self.refs(value, where))
        found = self.mapping(value, where)
        unknown = sorted(set(found) - {"refs", "variables", "changes", "kubernetes"})
        if unknown:
            raise CiConfigInvalid(f"{where} config contains unknown keys: {', '.join(unknown)}")
        expressions = self.strings(found["variables"], where) if "variables" in found else None
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
        self.budget.spend(len(value))
        return tuple(value)

    # Jobs -------------------------------------------------------------------------------------

    def job(self, name: str, entry: Any) -> list[CiJob]:
        where = f"jobs:{name}"
        self.budget.spend(10)
        if not name or len(name) > NAME_LIMIT:
            raise CiConfigInvalid(f"{where[:80]} name is too long (maximum is 255 characters)")
        if not isinstance(entry, dict):
            raise CiConfigInvalid(f"{where} config should be a hash")
        unknown = sorted(set(entry) - _JOB_KEYS)
        if unknown:
            raise CiConfigInvalid(f"{where} config contains unknown keys: {', '.join(unknown)}")
        entry = self.with_defaults(entry, where)
        trigger = self.trigger(entry.get("trigger"), where) if "trigger" in entry else None
        body = self.script(entry.get("script"), f"{where}:script")
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
        when = self.when(entry.get("when"), where)
        start_in = self.seconds(entry.get("start_in"), f"{where} start in")
        if when == "delayed" and start_in is None:
            raise CiConfigInvalid(f"{where} start in should be a duration")
        allowed, codes = self.allow_failure(entry.get("allow_failure"), when, where)
        variables, raw = self.variables(entry.get("variables"), f"{where}:variables")
        retry, retry_when = self.retry(entry.get("retry"), where)
        before = self.script(entry.get("before_script"), f"{where}:before_script")
        services = entry.get("services") or []
        if not isinstance(services, list):
            raise CiConfigInvalid(f"{where}:services config should be a array")
        job = CiJob(
            name=name,
            stage=str(stage),
            script=(*before, *body) if body else (),
            after_script=self.script(entry.get("after_script"), f"{where}:after_script"),
            variables=variables,
            raw_variables=raw,
            when=when or "on_success",
            allow_failure=allowed,
            allow_failure_codes=codes,
            timeout=self.seconds(entry.get("timeout"), f"{where}:timeout"),
            start_in=start_in,
            needs=self.needs(entry.get("needs"), f"{where}:needs"),
            image=self.image(entry.get("image"), f"{where}:image"),
            services=tuple(
                service
                for item in services
                if (service := self.image(item, f"{where}:services:service")) is not None
            ),
            tags=self.strings(entry.get("tags"), f"{where}:tags"),
            rules=self.rules(entry["rules"], f"{where}:rules") if entry.get("rules") else None,
            only=self.policy(entry.get("only"), f"{where}:only"),
            excepted=self.policy(entry.get("except"), f"{where}:except"),
            retry=retry,
            retry_when=retry_when,
            trigger=trigger,
        )
        return parallel(job, entry.get("parallel"), self.budget)

    def with_defaults(self, entry: dict[str, Any], where: str) -> dict[str, Any]:
        inherit = self.mapping(entry.get("inherit"), f"{where}:inherit").get("default", True)
        if inherit is False or "trigger" in entry:
            return entry
        names = set(inherit) if isinstance(inherit, list) else set(self.defaults)
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
            reasons = (given,) if isinstance(given, str) else self.strings(given, f"{where}:retry")
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

    def check_needs(self, jobs: list[CiJob]) -> None:
        """Names that do not exist and circles, as ``lib/gitlab/ci/yaml_processor.rb`` finds them."""
        groups: dict[str, list[CiJob]] = {}
        for job in jobs:
            groups.setdefault(job.parallel_name or job.name, []).append(job)
            if job.parallel_name:
                groups.setdefault(job.name, []).append(job)
        order = {stage: index for index, stage in enumerate(self.stages)}
        for job in jobs:
            for need in job.needs or ():
                targets = groups.get(need.job)
                if targets is None:
                    if need.optional:
                        continue
                    raise CiConfigInvalid(f"{job.name} job: undefined need: {need.job}")
                if order[targets[0].stage] > order[job.stage]:
                    raise CiConfigInvalid(
                        f"{job.name} job: need {need.job} is not defined in current or prior stages"
                    )
        circle = find_circle(
            {
                job.name: [
                    target.name for need in job.needs or () for target in groups.get(need.job, ())
                ]
                for job in jobs
            }
        )
        if circle:
            raise CiConfigInvalid(
                "The pipeline has circular dependencies: topological sort failed: "
                + "["
                + ", ".join(f'"{name}"' for name in circle)
                + "]"
            )

"""From the text of a ``.gitlab-ci.yml`` to checked jobs; pure, called by ``ci_pipelines``.

Which of the jobs a pipeline gets is ``ci_rules``'s business. Sentences of errors are GitLab's.
https://docs.gitlab.com/ci/yaml/
"""

from __future__ import annotations

from typing import Any

from notebooks_service.forge.ci_conditions import Conditions
from notebooks_service.forge.ci_extends import extend_all
from notebooks_service.forge.ci_job_entry import DEFAULT_KEYS, JobReader
from notebooks_service.forge.ci_jobs import NAME_LIMIT, CiConfig, CiJob, find_circle
from notebooks_service.forge.ci_values import Values
from notebooks_service.forge.ci_yaml import Budget, CiConfigInvalid, read, resolve_references

WORK_LIMIT = 400_000
JOB_LIMIT = 1000

DEFAULT_STAGES = ("build", "test", "deploy")

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
    """Checks the merged data as a whole: stages, defaults, how many jobs, what they need."""

    def __init__(self, root: dict[str, Any], budget: Budget) -> None:
        self.root = root
        self.values = Values(budget)
        stages = self.values.strings(root.get("stages", root.get("types")), "stages")
        inner = dict.fromkeys(stages or DEFAULT_STAGES)
        self.stages = (".pre", *(one for one in inner if one not in (".pre", ".post")), ".post")

    def defaults(self) -> dict[str, Any]:
        """What jobs get that say nothing else."""
        found = self.values.mapping(self.root.get("default"), "default")
        unknown = sorted(set(found) - DEFAULT_KEYS)
        if unknown:
            raise CiConfigInvalid(f"default config contains unknown keys: {', '.join(unknown)}")
        for key in ("after_script", "before_script", "image", "services"):
            if key in self.root:
                if key in found:
                    raise CiConfigInvalid(f"{key} is defined in top-level and `default:` entry")
                found[key] = self.root[key]
        return found

    def config(self) -> CiConfig:
        variables, raw = self.values.variables(self.root.get("variables"), "variables")
        workflow = self.values.mapping(self.root.get("workflow"), "workflow")
        rules, title = workflow.get("rules"), workflow.get("name")
        jobs = self.jobs()
        self.check_needs(jobs)
        conditions = Conditions(self.values)
        return CiConfig(
            stages=self.stages,
            jobs=tuple(jobs),
            variables=variables,
            raw_variables=raw,
            workflow=None if rules is None else conditions.rules(rules, "workflow:rules"),
            name=str(title)[:NAME_LIMIT] if title is not None else None,
        )

    def jobs(self) -> list[CiJob]:
        reader = JobReader(self.values, self.stages, self.defaults())
        jobs: list[CiJob] = []
        for name, entry in self.root.items():
            if name.startswith(".") or (name in _TOP_KEYS and name != "pages"):
                continue
            jobs.extend(reader.read(name, entry))
            if len(jobs) > JOB_LIMIT:
                raise CiConfigInvalid(
                    f"The number of jobs has exceeded the limit of {JOB_LIMIT}. "
                    "Try splitting the configuration"
                )
        if not jobs:
            raise CiConfigInvalid("jobs config should contain at least one visible job")
        return jobs

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

"""Which jobs of a configuration a pipeline gets, and how: ``workflow``, ``rules``, ``only``/``except``.

Pure: decides over plain data about the occasion (a push, a call of the API); ``ci_pipelines`` asks.
https://docs.gitlab.com/ci/jobs/job_rules/
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from notebooks_service.errors import NotebooksError
from notebooks_service.forge.ci_expressions import evaluate, expand_all
from notebooks_service.forge.ci_jobs import CiConfig, CiJob, Need, RefPolicy, Rule
from notebooks_service.forge.ci_patterns import Pattern, Patterns
from notebooks_service.forge.ci_yaml import CiConfigInvalid

# https://docs.gitlab.com/ci/yaml/deprecated_keywords/#onlyrefs--exceptrefs
_SOURCES = {
    "api": "api",
    "chat": "chat",
    "external": "external",
    "external_pull_requests": "external_pull_request_event",
    "merge_requests": "merge_request_event",
    "pipelines": "pipeline",
    "pushes": "push",
    "schedules": "schedule",
    "triggers": "trigger",
    "web": "web",
}


class NoPipeline(NotebooksError):
    """The configuration gives this occasion no pipeline; nothing is wrong with it."""

    code = "no_pipeline"
    status = 400


WORKFLOW_FILTERED = "Pipeline filtered out by workflow rules."
NO_JOBS = (
    "Pipeline will not run for the selected trigger. The rules configuration prevented any jobs "
    "from being added to the pipeline."
)


@dataclass(frozen=True)
class Occasion:
    """What a pipeline is made for.

    ``changed``: gives the paths that the push changed, or None if that is not known (a new branch, a
    tag, the API, too many), which counts as every path. ``files``: gives all paths of the commit, or
    None if they are too many. Both are asked only if a rule needs them. ``variables``: predefined,
    project's and pipeline's, later ones having won.
    """

    ref: str
    tag: bool
    source: str
    variables: Mapping[str, str]
    project_path: str = ""
    changed: Callable[[], Collection[str] | None] = lambda: None
    files: Callable[[], Collection[str] | None] = tuple
    patterns: Patterns = field(default_factory=Patterns, compare=False)


@dataclass(frozen=True)
class Plan:
    """The jobs of one pipeline, stage by stage."""

    jobs: tuple[CiJob, ...]
    stages: tuple[str, ...]
    variables: Mapping[str, str]
    name: str | None = None


def plan(config: CiConfig, occasion: Occasion) -> Plan:
    """The pipeline that ``config`` gives for ``occasion``.

    Raises ``NoPipeline`` if there is to be none, ``CiConfigInvalid`` if a job needs one that is not
    in this pipeline.
    """
    pipeline_variables = dict(config.variables)
    if config.workflow is not None:
        rule = _first(config.workflow, occasion, _known(occasion, pipeline_variables))
        if rule is None or rule.when == "never":
            raise NoPipeline(WORKFLOW_FILTERED)
        pipeline_variables.update(rule.variables)
    kept: list[CiJob] = []
    for job in config.jobs:
        decided = _decide(job, occasion, pipeline_variables)
        if decided is not None:
            kept.append(decided)
    if not kept or all(job.stage in (".pre", ".post") for job in kept):
        raise NoPipeline(NO_JOBS)
    order = {stage: index for index, stage in enumerate(config.stages)}
    kept.sort(key=lambda job: order[job.stage])
    return Plan(tuple(_with_needs(kept)), config.stages, pipeline_variables, config.name)


def _known(occasion: Occasion, yaml_variables: Mapping[str, str]) -> dict[str, str]:
    """What an expression sees. A pipeline's own variables win over the file's, as in GitLab."""
    return expand_all({**yaml_variables, **occasion.variables})


def _decide(job: CiJob, occasion: Occasion, pipeline: Mapping[str, str]) -> CiJob | None:
    variables = {**pipeline, **job.variables}
    if job.rules is not None:
        rule = _first(job.rules, occasion, _known(occasion, variables))
        when = (rule.when or job.when) if rule else "never"
        if rule is None or when == "never":
            return None
        # A manual job of `rules` blocks unless it says otherwise; one without `rules` does not.
        # The job's own allow_failure default of `when: manual` stays if it was the job that said so.
        allowed = job.allow_failure if rule.allow_failure is None else rule.allow_failure
        return replace(
            job,
            when=when,
            allow_failure=allowed,
            start_in=rule.start_in or job.start_in,
            variables={**job.variables, **rule.variables},
            needs=rule.needs if rule.needs is not None else job.needs,
        )
    known = _known(occasion, variables) if _has_expressions(job) else {}
    only = job.only or RefPolicy(refs=("branches", "tags"))
    if only.refs is None and job.only is not None:
        only = replace(only, refs=("branches", "tags"))
    if job.when == "never" or not _all_hold(only, occasion, known):
        return None
    if job.excepted is not None and _any_holds(job.excepted, occasion, known):
        return None
    return job


def _has_expressions(job: CiJob) -> bool:
    return any(policy is not None and policy.variables for policy in (job.only, job.excepted))


def _first(rules: Sequence[Rule], occasion: Occasion, variables: Mapping[str, str]) -> Rule | None:
    return next((rule for rule in rules if _applies(rule, occasion, variables)), None)


def _applies(rule: Rule, occasion: Occasion, variables: Mapping[str, str]) -> bool:
    patterns = occasion.patterns
    if rule.condition is not None and not evaluate(rule.condition, variables, patterns):
        return False
    if rule.changes is not None and not _changed(rule.changes, occasion, variables):
        return False
    if rule.exists is None:
        return True
    files = occasion.files()
    # GitLab too takes a glob as met once it has looked at too many files.
    return files is None or patterns.any_path(_expanded(rule.exists, variables), files)


def _changed(globs: Sequence[str], occasion: Occasion, variables: Mapping[str, str]) -> bool:
    changed = occasion.changed()
    return changed is None or occasion.patterns.any_path(_expanded(globs, variables), changed)


def _expanded(globs: Sequence[str], variables: Mapping[str, str]) -> list[str]:
    found = expand_all({**variables, **{f"\0{i}": glob for i, glob in enumerate(globs)}})
    return [found[f"\0{i}"].removeprefix("./") for i in range(len(globs))]


def _ref_holds(ref: str, occasion: Occasion) -> bool:
    pattern, at, path = ref.rpartition("@")
    if at and not pattern.startswith("/") and path != occasion.project_path:
        return False
    if at and path == occasion.project_path:
        ref = pattern
    if ref == "branches":
        return not occasion.tag and occasion.source != "merge_request_event"
    if ref == "tags":
        return occasion.tag
    if ref in _SOURCES and _SOURCES[ref] == occasion.source:
        return True
    found = Pattern.from_text(ref)
    return occasion.patterns.search(found, occasion.ref) if found else ref == occasion.ref


def _parts(policy: RefPolicy, occasion: Occasion, variables: Mapping[str, str]) -> list[bool]:
    parts: list[bool] = []
    if policy.refs is not None:
        parts.append(any(_ref_holds(ref, occasion) for ref in policy.refs))
    if policy.variables is not None:
        known = (evaluate(text, variables, occasion.patterns) for text in policy.variables)
        parts.append(any(known))
    if policy.changes is not None:
        parts.append(_changed(policy.changes, occasion, variables))
    if policy.kubernetes:
        parts.append(False)
    return parts


def _all_hold(policy: RefPolicy, occasion: Occasion, variables: Mapping[str, str]) -> bool:
    return all(_parts(policy, occasion, variables))


def _any_holds(policy: RefPolicy, occasion: Occasion, variables: Mapping[str, str]) -> bool:
    return any(_parts(policy, occasion, variables))


def _with_needs(jobs: list[CiJob]) -> list[CiJob]:
    """``jobs`` with needs of parallel jobs written out, and absent optional ones left out."""
    groups: dict[str, list[str]] = {}
    for job in jobs:
        groups.setdefault(job.name, []).append(job.name)
        if job.parallel_name:
            groups.setdefault(job.parallel_name, []).append(job.name)
    done: list[CiJob] = []
    for job in jobs:
        if job.needs is None:
            done.append(job)
            continue
        found: dict[str, Need] = {}
        for need in job.needs:
            targets = groups.get(need.job)
            if targets is None and not need.optional:
                raise CiConfigInvalid(
                    f"'{job.name}' job needs '{need.job}' job, but '{need.job}' does not exist in "
                    "the pipeline. This might be because of the only, except, or rules keywords. "
                    "To need a job that sometimes does not exist in the pipeline, use "
                    "needs:optional."
                )
            for name in targets or ():
                found[name] = Need(name, artifacts=need.artifacts)
        done.append(replace(job, needs=tuple(found.values())))
    return done

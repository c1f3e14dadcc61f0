"""What one project's CI and registry are like: runners, the image job, who may replace a tag.

https://docs.gitlab.com/api/runners/ · https://docs.gitlab.com/api/jobs/ ·
https://docs.gitlab.com/api/container_registry_protection_tag_rules/
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import re2  # type: ignore[import-untyped]

from notebooks_service.doctor.asking import NO_ANSWER, Answer, Requester
from notebooks_service.doctor.findings import Finding, note, ok, plain, problem, unchecked, warning

MOST_RUNNERS = 5
LONG = 600.0
SOME_SHA = "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c"


@dataclass(frozen=True)
class ProjectFacts:
    """The answers about one project. ``details``: of at most five runners that are online."""

    path: str
    image_job: str
    project: Answer
    runners: Answer = NO_ANSWER
    details: tuple[Answer, ...] = ()
    jobs: Answer = NO_ANSWER
    rules: Answer = NO_ANSWER

    @property
    def found(self) -> bool:
        return self.project.status == 200 and "id" in self.project.mapping()


async def ask_project(forge: Requester, path: str, image_job: str) -> ProjectFacts:
    at = f"/api/v4/projects/{quote(path, safe='')}"
    project = await forge.get(at, token=True)
    if project.status != 200:
        return ProjectFacts(path, image_job, project)
    many = {"per_page": "100"}
    runners, jobs, rules = await asyncio.gather(
        forge.get(f"{at}/runners", many, token=True),
        forge.get(f"{at}/jobs", many, token=True),
        forge.get(f"{at}/registry/protection/tag/rules", token=True),
    )
    online = [row["id"] for row in runners.rows() or () if _works(row) and _number(row.get("id"))]
    details = await asyncio.gather(
        *(forge.get(f"/api/v4/runners/{number}", token=True) for number in online[:MOST_RUNNERS])
    )
    return ProjectFacts(path, image_job, project, runners, tuple(details), jobs, rules)


def _number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _works(runner: dict[str, Any]) -> bool:
    paused = runner.get("paused", runner.get("active") is False)
    return bool(runner.get("online")) and not paused


def judge_project(facts: ProjectFacts) -> list[Finding]:
    name = plain(facts.path, 100)
    if not facts.found:
        return [
            problem(
                "project.not-found",
                f"The project {name} is not there, or the token that the doctor was given may not see it.",
                "Check --project, or give a token of somebody who may see it.",
            )
        ]
    return [*_runners(facts, name), *_image_job(facts, name), *_tags(facts, name)]


def _tags_of(row: dict[str, Any]) -> set[str]:
    listed = row.get("tag_list")
    return {str(each) for each in listed} if isinstance(listed, list) else set()


def _image_jobs(facts: ProjectFacts) -> list[dict[str, Any]]:
    return [row for row in facts.jobs.rows() or () if row.get("name") == facts.image_job]


def _runners(facts: ProjectFacts, name: str) -> list[Finding]:
    rows = facts.runners.rows() if facts.runners.status == 200 else None
    if rows is None:
        return [
            unchecked(
                "runner.unseen",
                f"The runners of {name} could not be seen (HTTP {facts.runners.status}).",
                "Give a Maintainer's token, or look at the project's settings for CI/CD.",
            )
        ]
    online = [row for row in rows if _works(row)]
    if not rows:
        return [
            problem(
                "runner.none",
                f"The project {name} has no runner: no image would ever be built.",
                "Register a runner for it, its group or the whole GitLab.",
            )
        ]
    if not online:
        return [
            problem(
                "runner.offline",
                f"None of the {len(rows)} runners of {name} is online and unpaused: builds would wait for ever.",
                "Start one, or see why it does not reach the forge.",
            )
        ]
    jobs = _image_jobs(facts)
    wanted = _tags_of(jobs[0]) if jobs else set()
    details = [one.mapping() for one in facts.details if one.status == 200]
    fits = [
        one
        for one in details
        if (wanted <= _tags_of(one) if wanted else one.get("run_untagged", True))
    ]
    if details and len(details) == len(online) and not fits:
        need = f"the tags {plain(', '.join(sorted(wanted)))}" if wanted else "no tag"
        return [
            problem(
                "runner.other-tags",
                f"No runner of {name} that is online takes a job with {need}.",
                f"Give the job {facts.image_job} tags that a runner has, or let a runner take it.",
            )
        ]
    return [ok("runner.online", f"{len(online)} runners of {name} are online.")]


def _image_job(facts: ProjectFacts, name: str) -> list[Finding]:
    job = plain(facts.image_job, 60)
    if facts.jobs.status != 200 or facts.jobs.rows() is None:
        return [
            unchecked(
                "job.unseen",
                f"The jobs of {name} could not be seen (HTTP {facts.jobs.status}).",
                "Give a token of somebody who may see its pipelines.",
            )
        ]
    jobs = _image_jobs(facts)
    if not jobs:
        return [
            note(
                "job.none",
                f"Among the last 100 jobs of {name} there is no {job}: commits get the default image.",
                f"Add a job {job} to its .gitlab-ci.yml (see docs/connect-your-own-gitlab.md), or set `image_job`.",
            )
        ]
    newest = jobs[0]
    status = plain(newest.get("status"), 30)
    if (
        status == "pending"
        and isinstance(waited := newest.get("queued_duration"), int | float)
        and waited > LONG
    ):
        return [
            warning(
                "job.waits",
                f"The newest {job} of {name} has been waiting for a runner for {waited / 60:.0f} minutes.",
                "See that a runner which takes its tags is online and not busy.",
            )
        ]
    if status == "failed":
        return [
            warning(
                "job.failed",
                f"The newest {job} of {name} failed ({plain(newest.get('failure_reason', 'no reason given'), 60)}).",
                "Read its log at the forge.",
            )
        ]
    return [ok("job.there", f"{name} has a job {job}; its newest is {status}.")]


def _tags(facts: ProjectFacts, name: str) -> list[Finding]:
    rows = facts.rules.rows() if facts.rules.status == 200 else None
    if rows is None:
        return [
            unchecked(
                "tags.unseen",
                f"Which container tags of {name} are protected could not be seen (HTTP {facts.rules.status}; GitLab tells it from 18.8 on, and to Maintainers).",
                "Look at the project's settings for packages and registries: as long as no rule covers tags that are a commit's id, Developers may replace them.",
            )
        ]
    covering = [row for row in rows if _covers(row.get("tag_name_pattern"))]
    if not covering:
        return [
            warning(
                "tags.open",
                f"In {name} whoever may push images may replace the image of any commit: no rule protects tags that are a commit's id.",
                "Protect the pattern ^[0-9a-f]{40}$ (immutable, where GitLab offers it). Servers that ran keep the digest of their first launch either way.",
            )
        ]
    if all(row.get("minimum_access_level_for_push") is None for row in covering):
        return [ok("tags.immutable", f"In {name} nobody may replace the image of a commit.")]
    levels = sorted({plain(row.get("minimum_access_level_for_push"), 20) for row in covering})
    return [
        note(
            "tags.protected",
            f"In {name} only {', '.join(levels)} may push or replace the image of a commit.",
            "Builds that a Developer starts cannot tag their image then; an immutable rule stops replacing and lets them build.",
        )
    ]


def _covers(pattern: object) -> bool:
    """Whether a rule's pattern, GitLab's RE2, is about tags that are a full commit id."""
    if not isinstance(pattern, str) or len(pattern) > 100:
        return False
    options = re2.Options()
    options.log_errors = False
    options.max_mem = 1 << 20
    try:
        return bool(re2.compile(pattern, options).search(SOME_SHA))
    except re2.error:
        return False

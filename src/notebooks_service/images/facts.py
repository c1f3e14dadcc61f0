"""Reads from forge and store what the decision needs to know of a commit; used by ``images/watch.py``.

Blocking: run in a thread. Everything is asked with the token of the person it is for.
"""

from __future__ import annotations

import re

from notebooks_service.domain import AccessLevel, Commit, Project, image_name
from notebooks_service.errors import NotebooksError, NotFound
from notebooks_service.gitlab.forge import Forge, RegistryTag
from notebooks_service.images.environments import EnvironmentStore
from notebooks_service.images.known import ImageFacts, newest_tries
from notebooks_service.images.log import cleaned

LINE_LENGTH = 300
NOISE = re.compile(r"section_(start|end):|ERROR: Job failed|Cleaning up|Uploading artifacts")


class FactReader:
    """Reads facts. ``index``: the store of local environments, None where images are containers."""

    def __init__(
        self, job_name: str, index: EnvironmentStore | None, *, on_demand: bool = True
    ) -> None:
        self._job_name = job_name
        self._index = index
        self._on_demand = on_demand

    def read(self, forge: Forge, project: Project, commit: Commit) -> ImageFacts:
        """The facts that the forge has; jobs are not asked for where the tag is there."""
        name = image_name(project.path, commit.sha)
        tag = self._tag(forge, project, commit.sha)
        if tag is not None:
            return ImageFacts(name, self._job_name, tag=tag)
        try:
            jobs = tuple(forge.jobs(project, commit.sha, self._job_name))
        except NotFound:
            return ImageFacts(name, self._job_name, jobs=None)
        if any(job.status == "success" for job in newest_tries(jobs)):
            # It may have succeeded between the two questions.
            tag = self._tag(forge, project, commit.sha)
        config_error = "" if jobs else _one_line(forge.config_error(project, commit.sha))
        may_build = (
            not jobs
            and not config_error
            and self._on_demand
            and self._may_build(forge, project, commit)
        )
        return ImageFacts(
            name,
            self._job_name,
            tag=tag,
            jobs=jobs,
            may_build=may_build,
            config_error=config_error,
        )

    @staticmethod
    def _may_build(forge: Forge, project: Project, commit: Commit) -> bool:
        """Whether this person may have the project's CI run for this commit.

        Only for what a branch or tag holds: a commit of somebody's fork is reachable by its sha too,
        and must not run with the project's CI variables because a developer opened a link.
        """
        if forge.access(project).number < AccessLevel.DEVELOPER.number:
            return False
        return bool(forge.commit_refs(project, commit.sha))

    def _tag(self, forge: Forge, project: Project, sha: str) -> RegistryTag | None:
        found = forge.registry_tag(project, sha)
        if self._index is None:
            return found
        if found and found.digest and self._index.find(project.id, found.digest):
            return found
        environment = self._index.tagged(project.id, sha)
        if environment is None:
            return None
        # A registry that does not list it may be one that hides it: GitLab shows a private one to
        # reporters, so only they are told of what the store knows beyond the registry.
        # https://docs.gitlab.com/user/permissions/
        if forge.access(project).number < AccessLevel.REPORTER.number:
            return None
        return RegistryTag(image_name(project.path, sha), environment.digest)

    @staticmethod
    def log_growth(forge: Forge, project: Project, job: int, offset: int) -> int:
        """How many bytes a job's log has beyond ``offset``."""
        return len(forge.trace(project, job, offset))

    @staticmethod
    def failure_line(forge: Forge, project: Project, job: int) -> str:
        """The line of a failed job's log that most likely says why; empty if the log is not to be had."""
        try:
            text = forge.trace(project, job).decode(errors="replace")
        except NotebooksError:
            return ""
        return telling_line(text)


def _one_line(text: str) -> str:
    line = " ".join(cleaned(text).split())
    return line if len(line) <= LINE_LENGTH else f"{line[:LINE_LENGTH]}…"


def telling_line(text: str) -> str:
    """The last line with ``ERROR:``, else the last line, that is not the runner's own good-bye."""
    lines = [cleaned(line.replace("\r", " ")).strip() for line in text.splitlines()[-400:]]
    lines = [line for line in lines if line and not NOISE.search(line)]
    errors = [line for line in lines if "error:" in line.lower()]
    return (errors or lines or [""])[-1][:LINE_LENGTH]

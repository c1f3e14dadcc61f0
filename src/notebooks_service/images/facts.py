"""Reads from forge and store what the decision needs to know of a commit; used by ``images/watch.py``.

Blocking: run in a thread. Everything is asked with the token of the person it is for, and no more
than the first step that applies needs: a commit whose environment exists takes four requests, and one for
each file that has to be read to name it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from notebooks_service.domain import AccessLevel, Commit, Image, Job, Project, image_name
from notebooks_service.errors import BuildFailed, NotebooksError, NotFound
from notebooks_service.gitlab.files import ForgeFiles
from notebooks_service.gitlab.forge import Forge, RegistryTag
from notebooks_service.images.environments import EnvironmentStore
from notebooks_service.images.known import (
    ACTIVE,
    EnvironmentFacts,
    ImageFacts,
    Kept,
    Pin,
    Wish,
    newest_tries,
)
from notebooks_service.images.log import cleaned, first_failure
from notebooks_service.images.naming import PROJECT_FILE, Named, Names
from notebooks_service.images.pins import find_pin
from notebooks_service.images.synthetic import ci_file, synthetic_commit
from notebooks_service.images.twins import find_twin

LINE_LENGTH = 300
NO_WISH = Wish()


@dataclass(frozen=True)
class Subject:
    """What is looked at while a build is waited for: a tag, and the job's tries at one commit.

    ``fingerprint`` is empty where the commit's own build is waited for.
    """

    tag: str
    sha: str
    fingerprint: str = ""


@dataclass(frozen=True)
class Progress:
    """A look at a ``Subject``. ``jobs`` is None if this person may not see the CI."""

    tag: RegistryTag | None
    jobs: tuple[Job, ...] | None

    def of(self, subject: Subject, facts: ImageFacts) -> ImageFacts:
        """``facts`` with what has changed since."""
        if not subject.fingerprint:
            return replace(facts, tag=self.tag, jobs=self.jobs)
        if facts.environment is None:
            return facts
        environment = replace(facts.environment, tag=self.tag, jobs=self.jobs or ())
        return replace(facts, environment=environment)


class FactReader:
    """Reads facts. ``index``: the store of local environments, None where images are containers."""

    def __init__(
        self,
        job_name: str,
        index: EnvironmentStore | None,
        names: Names,
        *,
        on_demand: bool = True,
        ci: str = "",
    ) -> None:
        """``ci``: the CI file of builds on demand, empty for the built-in one."""
        self._job_name = job_name
        self._index = index
        self._names = names
        self._on_demand = on_demand
        self._ci = ci

    def read(
        self, forge: Forge, project: Project, commit: Commit, wish: Wish = NO_WISH
    ) -> ImageFacts:
        """The facts of the first step that applies, and of those before it.

        Raises ``ImageUnavailable`` for a pin that cannot be understood, and what the forge does.
        """
        facts = ImageFacts(image_name(project.path, commit.sha), self._job_name, wants_new=wish.new)
        tree = self._names.files(forge, project, commit.sha)
        pin = self._pin(forge, project, commit.sha, wish, tree)
        if pin is not None:
            return replace(facts, pin=pin, kept=self._kept(forge, project, wish, pin.tag))
        tag = self._tag(forge, project, commit.sha)
        facts = replace(facts, tag=tag, kept=self._kept(forge, project, wish, tag))
        if tag is not None or (facts.kept is not None and facts.kept.exists):
            return facts
        facts = self._with_environment(forge, project, commit.sha, tree, facts)
        environment = facts.environment
        if environment is not None and (environment.tag or environment.twin):
            return facts
        return self._with_jobs(forge, project, commit, facts)

    def progress(self, forge: Forge, project: Project, subject: Subject) -> Progress:
        """What a wait for ``subject`` needs to know, anew."""
        tag = self._tag(forge, project, subject.tag, subject.fingerprint)
        if tag is not None:
            return Progress(tag, ())
        try:
            jobs = tuple(forge.ci.jobs(project, subject.sha, self._job_name))
        except NotFound:
            return Progress(None, None)
        if any(job.status == "success" for job in newest_tries(jobs)):
            # It may have succeeded between the two questions.
            tag = self._tag(forge, project, subject.tag, subject.fingerprint)
        return Progress(tag, jobs)

    # -- the steps' facts --------------------------------------------------------------------

    def _pin(
        self, forge: Forge, project: Project, sha: str, wish: Wish, tree: ForgeFiles
    ) -> Pin | None:
        if wish.image:
            return find_pin(forge, self._runnable, wish.image, "this launch")
        try:
            image = self._names.pinned(project, sha, tree)
        except NotFound:
            return None
        return find_pin(forge, self._runnable, image, f"`{PROJECT_FILE}`") if image else None

    def _kept(
        self, forge: Forge, project: Project, wish: Wish, present: RegistryTag | None
    ) -> Kept | None:
        """Whether this person may still have the image that their server ran in first."""
        if wish.had is None or wish.had.digest is None or wish.new:
            return None
        if present is not None and present.digest == wish.had.digest:
            return Kept(wish.had, True)
        return Kept(wish.had, self._still_there(forge, project, wish.had))

    def _still_there(self, forge: Forge, project: Project, had: Image) -> bool:
        number = had.evidence.get("project") or project.id
        try:
            owner = project if number == project.id else forge.project(int(number))
        except (NotFound, TypeError, ValueError):
            return False
        if self._index is not None:
            found = self._index.find(owner.id, had.digest or "")
            return found is not None and _may_read_store(forge, owner)
        # A registry keeps what no tag names for a while; whether it still has it shows at the start.
        tag = str(had.evidence.get("tag", "")).rpartition(":")[2]
        return bool(tag) and forge.registry.tag(owner, tag) is not None

    def _with_environment(
        self, forge: Forge, project: Project, sha: str, tree: ForgeFiles, facts: ImageFacts
    ) -> ImageFacts:
        try:
            named = self._names.of(forge, project, sha, tree)
        except BuildFailed as error:
            return replace(facts, no_environment=_one_line(error.message))
        except NotFound:
            return facts
        if named is None:
            return facts
        environment = self._described(named)
        tag = self._tag(forge, project, f"env-{named.fingerprint}", named.fingerprint)
        environment = replace(environment, tag=tag)
        if tag is None and self._index is None:
            twin = find_twin(forge, self._names, project, sha, named)
            environment = replace(environment, twin=twin)
        if environment.tag is None and environment.twin is None:
            try:
                self._names.check(forge, project, sha, tree)
            except BuildFailed as error:
                return replace(facts, no_environment=_one_line(error.message))
        return replace(facts, environment=environment)

    def _described(self, named: Named) -> EnvironmentFacts:
        build, wanted = None, named.build
        if wanted is not None:
            variables = dict(wanted.variables)
            ci = ci_file(self._ci, self._job_name, named.fingerprint, variables)
            if wanted.own_ci or ci is not None:
                own = None if wanted.own_ci else ci
                build = synthetic_commit(named.fingerprint, wanted.files, own)
        return EnvironmentFacts(
            named.fingerprint,
            named.kind,
            tuple(entry.path for entry in named.inputs),
            named.volatile,
            build=build,
            unbuilt=named.unbuilt,
            bases=named.bases,
        )

    def _with_jobs(
        self, forge: Forge, project: Project, commit: Commit, facts: ImageFacts
    ) -> ImageFacts:
        try:
            jobs = tuple(forge.ci.jobs(project, commit.sha, self._job_name))
        except NotFound:
            return replace(facts, jobs=None)
        facts = replace(facts, jobs=jobs)
        tries = newest_tries(jobs)
        if any(job.status == "success" for job in tries):
            # It may have succeeded between the two questions.
            facts = replace(facts, tag=self._tag(forge, project, commit.sha))
            if facts.tag is not None:
                return facts
        elif any(job.status in ACTIVE for job in tries):
            return facts
        environment = facts.environment
        if environment is not None and environment.build is not None and self._on_demand:
            seen = self.progress(forge, project, subject_of(commit, facts, shared=True))
            environment = replace(environment, tag=seen.tag, jobs=seen.jobs or ())
            facts = replace(facts, environment=environment)
            if seen.tag or any(job.status in ACTIVE for job in newest_tries(environment.jobs)):
                return facts
            # A commit of somebody's fork is reachable by its sha too, and must not run with the
            # project's CI variables because a developer opened a link.
            reached = self._is_reached(forge, project, commit.sha)
            may = reached and self._may_push(forge, project)
            facts = replace(facts, may_build=may, unreached=not reached)
        if not tries and not facts.may_build:
            error = _one_line(forge.ci.config_error(project, commit.sha))
            facts = replace(facts, config_error=error)
        return facts

    # -- what is asked -----------------------------------------------------------------------

    @staticmethod
    def _is_reached(forge: Forge, project: Project, sha: str) -> bool:
        """Whether a branch or tag of the project holds the commit; no if the forge does not tell."""
        try:
            return bool(forge.commit_refs(project, sha))
        except NotFound:
            return False

    @staticmethod
    def _may_push(forge: Forge, project: Project) -> bool:
        """Whether this person may have the project's CI run."""
        return forge.access(project).number >= AccessLevel.DEVELOPER.number

    def may_tag(self, forge: Forge, project: Project) -> bool:
        """Whether this person may push to the project's registry."""
        return self._may_push(forge, project)

    def _runnable(self, forge: Forge, project: Project, name: str) -> RegistryTag | None:
        """Any tag of any project, if what it names can be run here."""
        fingerprint = name.removeprefix("env-") if name.startswith("env-") else ""
        return self._tag(forge, project, name, fingerprint)

    def _tag(
        self, forge: Forge, project: Project, name: str, fingerprint: str = ""
    ) -> RegistryTag | None:
        """What the tag names: a commit's sha, or with ``fingerprint`` an environment's."""
        return _tag(self._index, forge, project, name, fingerprint)

    @staticmethod
    def log_growth(forge: Forge, project: Project, job: int, offset: int) -> int:
        """How many bytes a job's log has beyond ``offset``."""
        return len(forge.ci.trace(project, job, offset))

    @staticmethod
    def failure_line(forge: Forge, project: Project, job: int) -> str:
        """The line of a failed job's log that most likely says why; empty if the log is not to be had."""
        try:
            text = forge.ci.trace(project, job).decode(errors="replace")
        except NotebooksError:
            return ""
        return first_failure(text)


def find_image(index: EnvironmentStore | None, forge: Forge, name: str) -> Pin:
    """The image of this name as this person may have it; without a ``tag`` they may not, or it cannot
    be run here. ``index`` as for ``FactReader``. The service's ``GET images`` asks.
    """

    def look_up(forge: Forge, project: Project, tag: str) -> RegistryTag | None:
        fingerprint = tag.removeprefix("env-") if tag.startswith("env-") else ""
        return _tag(index, forge, project, tag, fingerprint)

    return find_pin(forge, look_up, name, "this request")


def _tag(
    index: EnvironmentStore | None, forge: Forge, project: Project, name: str, fingerprint: str
) -> RegistryTag | None:
    found = forge.registry.tag(project, name)
    if index is None:
        return found
    if found and found.digest and index.find(project.id, found.digest):
        return found
    environment = (
        index.get(project.id, fingerprint) if fingerprint else index.tagged(project.id, name)
    )
    if environment is None or not _may_read_store(forge, project):
        return None
    return RegistryTag(image_name(project.path, name), environment.digest)


def _may_read_store(forge: Forge, project: Project) -> bool:
    """A registry that does not list an image may be one that hides it: GitLab shows a private one
    to reporters, so only they are told of what the store knows beyond the registry.
    https://docs.gitlab.com/user/permissions/
    """
    return forge.access(project).number >= AccessLevel.REPORTER.number


def subject_of(commit: Commit, facts: ImageFacts, *, shared: bool) -> Subject:
    """What to look at while the commit's own build, or a ``shared`` one of its environment, goes on."""
    environment = facts.environment
    if not shared or environment is None or environment.build is None:
        return Subject(commit.sha, commit.sha)
    name = environment.fingerprint
    return Subject(f"env-{name}", environment.build.sha, name)


def _one_line(text: str) -> str:
    line = " ".join(cleaned(text).split())
    return line if len(line) <= LINE_LENGTH else f"{line[:LINE_LENGTH]}…"

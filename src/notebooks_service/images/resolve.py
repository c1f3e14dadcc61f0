"""Which image a commit gets, as one pure decision over plain facts; called by ``images/watch.py``.

The steps are DESIGN's, first that applies; each is a function from facts to an answer or None, and
``STEPS`` is their order. Those of today: the commit's own tag, a build that is on its way, a build on
demand, and the default with the reason. Tags of fingerprints go after the first, a pinned image
before it. Every answer has an origin, a reason (one true sentence for a person) and evidence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from notebooks_service.domain import Image, ImageOrigin, Job
from notebooks_service.gitlab.answers import RegistryTag

DEFAULT_REFERENCE = "default"

# https://docs.gitlab.com/api/jobs/ and https://docs.gitlab.com/ci/jobs/#available-job-statuses
ACTIVE = frozenset(
    {"created", "preparing", "pending", "running", "waiting_for_resource", "waiting_for_callback"}
)
CANCELLED = frozenset({"canceled", "canceling"})
FAILURES = {
    "stuck_or_timeout_failure": "no runner took it in time, or it ran longer than it may",
    "job_execution_timeout": "it ran longer than it may",
    "runner_system_failure": "its runner failed",
    "script_failure": "its script ended with an error",
    "missing_dependency_failure": "an artifact that it needs is missing",
    "runner_unsupported": "its runner is too old",
    "no_matching_runner": "no runner takes it",
    "upstream_bridge_project_not_found": "its pipeline could not be started",
}


@dataclass(frozen=True)
class ImageFacts:
    """What was found out about one commit, as one person may see it.

    ``name``: ``<project>:<sha>``. ``jobs``: every try of the job in every pipeline, None if this
    person may not see the CI. Times are seconds of the clock that ``now`` is of:
    ``waiting_since``, when this person began to wait; ``log_grew_at``, when the log of the newest
    running try was last seen to grow; ``success_seen_at``, when a success was first seen.
    ``may_build``: nobody has built it, and this person may have it built; ``asked_to_build``: this
    launch has already asked for that. ``config_error``: what the forge has against the commit's CI
    configuration, if it has no job because of that.
    """

    name: str
    job_name: str
    tag: RegistryTag | None = None
    jobs: tuple[Job, ...] | None = ()
    waiting_since: float | None = None
    log_grew_at: float | None = None
    success_seen_at: float | None = None
    failure_line: str = ""
    may_build: bool = False
    config_error: str = ""
    asked_to_build: bool = False


@dataclass(frozen=True)
class ImageLimits:
    """In seconds. ``wait``: for a build; ``silence``: of its log; ``grace``: for a tag to appear."""

    wait: float = 3600.0
    silence: float = 1800.0
    grace: float = 10.0


@dataclass(frozen=True)
class UseImage:
    """The end of the search."""

    image: Image


@dataclass(frozen=True)
class WaitForJob:
    """A build is on its way: look again later. ``reason`` is a sentence for whoever waits."""

    job: Job
    reason: str
    evidence: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BuildOnDemand:
    """Nobody built it and nobody is about to: have it built, then look again."""


Decision = UseImage | WaitForJob | BuildOnDemand
Step = Callable[[ImageFacts, ImageLimits, float], Decision | None]


def decide(facts: ImageFacts, limits: ImageLimits, now: float) -> Decision:
    """The image to use, or the job to wait for. The last step always answers."""
    for step in STEPS:
        answer = step(facts, limits, now)
        if answer is not None:
            return answer
    raise AssertionError("the last step always answers")


def newest_tries(jobs: Sequence[Job]) -> tuple[Job, ...]:
    """The newest try of the job in each pipeline, newest first: a retry replaces what it retries."""
    newest: dict[int, Job] = {}
    for job in jobs:
        if job.pipeline_id not in newest or newest[job.pipeline_id].id < job.id:
            newest[job.pipeline_id] = job
    return tuple(sorted(newest.values(), key=lambda job: job.id, reverse=True))


def _commit_tag(facts: ImageFacts, limits: ImageLimits, now: float) -> Decision | None:
    """1. The registry has this commit's tag."""
    if facts.tag is None:
        return None
    evidence: dict[str, Any] = {"tag": facts.tag.reference, "digest": facts.tag.digest}
    succeeded = [job for job in newest_tries(facts.jobs or ()) if job.status == "success"]
    if succeeded:
        evidence |= _about(succeeded[0])
    origin = ImageOrigin.COMMIT
    reason = "This commit's own image: the project's registry has one tagged with its sha."
    if facts.asked_to_build:
        origin = ImageOrigin.BUILT_ON_DEMAND
        reason = "This commit's own image: nobody had built it, so this launch had it built."
    return UseImage(Image(facts.tag.reference, facts.tag.digest, origin, reason, evidence))


def _on_its_way(facts: ImageFacts, limits: ImageLimits, now: float) -> Decision | None:
    """3. A build of this commit is on its way: any success, else any active try."""
    tries = newest_tries(facts.jobs or ())
    succeeded = next((job for job in tries if job.status == "success"), None)
    if succeeded is not None:
        if _fresh(succeeded, facts, limits, now):
            reason = (
                f"The job `{facts.job_name}` has just succeeded; its image is being registered."
            )
            return WaitForJob(succeeded, reason, _about(succeeded))
        return None
    active = next((job for job in tries if job.status in ACTIVE), None)
    if active is None:
        return None
    if facts.waiting_since is not None and now - facts.waiting_since >= limits.wait:
        return _default(
            f"Building this commit's image took too long: the job `{active.name}` was still "
            f"{_state(active)} after {_duration(limits.wait)} of waiting.",
            cause="timed out",
            **_about(active),
        )
    if (
        active.status == "running"
        and facts.log_grew_at is not None
        and now - facts.log_grew_at >= limits.silence
    ):
        return _default(
            f"The job `{active.name}` that builds this commit's image is running, but its log has "
            f"been silent for {_duration(limits.silence)}.",
            cause="silent",
            **_about(active),
        )
    return WaitForJob(
        active,
        f"The job `{active.name}` builds this commit's image: {_state(active)}.",
        _about(active),
    )


def _on_demand(facts: ImageFacts, limits: ImageLimits, now: float) -> Decision | None:
    """4. Nobody built it, and this person may have it built."""
    if facts.may_build and not facts.asked_to_build and facts.jobs == ():
        return BuildOnDemand()
    return None


def _fallback(facts: ImageFacts, limits: ImageLimits, now: float) -> Decision:
    """5. The default image, with the reason why there is no other."""
    name = facts.job_name
    if facts.jobs is None:
        return _default(
            "No image of this commit is visible to you, nor are its project's CI jobs.",
            cause="hidden",
        )
    tries = newest_tries(facts.jobs)
    if not tries and facts.config_error:
        return _default(
            "The forge cannot make a pipeline of this commit's `.gitlab-ci.yml`, so no job builds its "
            f"image: {facts.config_error.rstrip('.')}.",
            cause="config error",
        )
    if not tries and facts.asked_to_build:
        return _default(
            f"Nobody has built this commit's image, and when asked to, the forge started no job "
            f"named `{name}`.",
            cause="no job",
        )
    if not tries:
        return _default(
            f"No pipeline of this commit has a job named `{name}`, so nothing has built its image. "
            "Somebody who may push to this project can have it built by opening this commit.",
            cause="no job",
        )
    succeeded = next((job for job in tries if job.status == "success"), None)
    if succeeded is not None:
        return _default(
            f"The job `{name}` succeeded, but the image tagged with this commit is gone, or was "
            "never pushed under that tag.",
            cause="image gone",
            **_about(succeeded),
        )
    failed = next((job for job in tries if job.status == "failed"), None)
    if failed is not None:
        why = FAILURES.get(failed.failure_reason or "", "")
        evidence = _about(failed)
        if facts.failure_line:
            evidence["log_line"] = facts.failure_line
        return _default(
            f"The job `{name}` that builds this commit's image failed"
            + (f": {why}." if why else "; its log says why."),
            cause="failed",
            **evidence,
        )
    last = tries[0]
    if last.status in CANCELLED:
        return _default(
            f"The job `{name}` that builds this commit's image was cancelled.",
            cause="cancelled",
            **_about(last),
        )
    sentence = {
        "manual": f"The job `{name}` that builds this commit's image waits for somebody to start it by hand.",
        "scheduled": f"The job `{name}` that builds this commit's image is put off to a later time.",
        "skipped": f"The job `{name}` that builds this commit's image was skipped, because of a job before it.",
    }.get(
        last.status,
        f"The job `{name}` that builds this commit's image has ended as `{last.status}`.",
    )
    return _default(sentence, cause=last.status, **_about(last))


STEPS: tuple[Step, ...] = (_commit_tag, _on_its_way, _on_demand, _fallback)


def _default(reason: str, **evidence: Any) -> UseImage:
    return UseImage(Image(DEFAULT_REFERENCE, None, ImageOrigin.DEFAULT, reason, evidence))


def _about(job: Job) -> dict[str, Any]:
    return {
        "job": job.id,
        "pipeline": job.pipeline_id,
        "status": job.status,
        "job_url": job.web_url,
        "failure_reason": job.failure_reason,
    }


def _state(job: Job) -> str:
    words = {
        "created": "waiting for jobs before it",
        "preparing": "being prepared",
        "pending": "waiting for a runner",
        "waiting_for_resource": "waiting for another job to finish",
        "waiting_for_callback": "waiting for an outside service",
    }
    return words.get(job.status, job.status)


def _fresh(job: Job, facts: ImageFacts, limits: ImageLimits, now: float) -> bool:
    """Whether a success is so new that its tag may still be on its way into the registry.

    Both clocks must say so: the forge's (``finished_at``) may be wrong, and ours only knows since
    when we look.
    """
    seen = now if facts.success_seen_at is None else facts.success_seen_at
    if now - seen >= limits.grace:
        return False
    try:
        finished = datetime.fromisoformat(job.finished_at or "").timestamp()
    except ValueError:
        return True
    return now - finished < limits.grace


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:g} seconds"
    return f"{seconds / 60:.0f} minutes"

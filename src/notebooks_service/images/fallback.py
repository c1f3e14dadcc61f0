"""The default image and the reason why there is no better one; the last step of ``images/resolve.py``.

Pure. Never silently: whoever gets the default image reads why, and what could be done.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from notebooks_service.domain import Image, ImageOrigin, Job
from notebooks_service.images.known import ImageFacts, about_job, newest_tries

DEFAULT_REFERENCE = "default"
SEE_LOG = "; its log says why."
TRY_AGAIN = (
    " It is not tried again by itself: somebody who may push can retry this job at the forge, and the "
    "next launch waits for it."
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


def default(reason: str, **evidence: Any) -> Image:
    """The default image. ``evidence["cause"]`` is one word for programs."""
    return Image(DEFAULT_REFERENCE, None, ImageOrigin.DEFAULT, reason, evidence)


def image_of(facts: ImageFacts) -> Image:
    """The default image with the reason that these facts give."""
    if facts.jobs is None:
        return default(
            "No image of this commit is visible to you, nor are its project's CI jobs.",
            cause="hidden",
        )
    shared = () if facts.environment is None else facts.environment.jobs
    tries = newest_tries(facts.jobs)
    builds = newest_tries(shared)
    if not tries and not builds:
        return _unbuilt(facts)
    # The commit's own job first, unless only a build on demand says what went wrong.
    failed = next((job for job in (*tries, *builds) if job.status == "failed"), None)
    of_environment = failed in builds and failed not in tries
    succeeded = next((job for job in (*tries, *builds) if job.status == "success"), None)
    if succeeded is not None and not (builds and builds[0].status == "failed"):
        return default(
            f"The job `{succeeded.name}` succeeded, but the image tagged with this commit is gone, or "
            "was never pushed under that tag." + _who_can_build(facts),
            cause="image gone",
            **about_job(succeeded),
        )
    if failed is not None:
        return _failed(failed, facts.failure_line, of_environment)
    last = (tries or builds)[0]
    return _ended(last, last in builds and last not in tries)


def _unbuilt(facts: ImageFacts) -> Image:
    name = facts.job_name
    if facts.no_environment:
        return default(
            f"Nothing can be built for this commit: {facts.no_environment.rstrip('.')}.",
            cause="no environment",
        )
    if facts.config_error and not facts.asked_to_build:
        return default(
            "The forge cannot make a pipeline of this commit's `.gitlab-ci.yml`, so no job builds its "
            f"image: {facts.config_error.rstrip('.')}.",
            cause="config error",
        )
    evidence = {} if facts.environment is None else facts.environment.evidence()
    if facts.asked_to_build and facts.build_problem:
        return default(
            "Nobody has built this commit's image, and the forge refused to build it for you: "
            f"{facts.build_problem.rstrip('.')}.",
            cause="build refused",
            **evidence,
        )
    if facts.asked_to_build:
        return default(
            "Nobody has built this commit's image, and when asked to, the forge started no job "
            f"named `{name}`.",
            cause="no job",
            **evidence,
        )
    if facts.environment is not None and facts.environment.build is None:
        why = facts.environment.unbuilt or "no commit can be made of its files alone"
        return default(
            f"No pipeline of this commit has a job named `{name}`, so nothing has built its image, and "
            f"it cannot be built on demand: {why}. Push a commit whose CI has this job.",
            cause="no job",
            **evidence,
        )
    built_by = "Somebody who may push to this project can have it built by opening this commit."
    if facts.unreached:
        built_by = (
            "No branch or tag of this project contains it, so it may be a fork's, and it is built for "
            "nobody. Somebody who may push to this project can put a branch there first."
        )
    return default(
        f"No pipeline of this commit has a job named `{name}`, so nothing has built its image. "
        f"{built_by}",
        cause="no job",
        **evidence,
    )


def _failed(job: Job, line: str, of_environment: bool) -> Image:
    """``of_environment``: it was built on demand, so no push and no launch begins it again."""
    why = FAILURES.get(job.failure_reason or "", "")
    what = "this commit's environment" if of_environment else "this commit's image"
    image = default(
        f"The job `{job.name}` that builds {what} failed"
        + (f": {why}." if why else SEE_LOG)
        + (TRY_AGAIN if of_environment else ""),
        cause="failed",
        **about_job(job),
    )
    return explained(image, line)


def explained(image: Image, line: str) -> Image:
    """The ``image`` of a failed build, with the line of its log that says why; as it is for none.

    Anybody's script may have written the line, so the sentence says where it is from.
    """
    said = line.removeprefix("ERROR: ").strip()
    if not said:
        return image
    failed, advice = image.reason, ""
    if failed.endswith(TRY_AGAIN):
        failed, advice = failed.removesuffix(TRY_AGAIN), TRY_AGAIN
    if failed.endswith(SEE_LOG):
        failed = f"{failed.removesuffix(SEE_LOG)}."
    end = "" if said.endswith((".", "…")) else "."
    return replace(
        image,
        reason=f"{failed} Its log says: {said}{end}{advice}",
        evidence={**image.evidence, "log_line": line},
    )


def _ended(last: Job, of_environment: bool) -> Image:
    name = last.name
    if last.status in CANCELLED:
        if of_environment:
            said = (
                f"The job `{name}` that builds this commit's environment was cancelled.{TRY_AGAIN}"
            )
            return default(said, cause="cancelled", **about_job(last))
        return default(
            f"The job `{name}` that builds this commit's image was cancelled.",
            cause="cancelled",
            **about_job(last),
        )
    sentence = {
        "manual": f"The job `{name}` that builds this commit's image waits for somebody to start it by hand.",
        "scheduled": f"The job `{name}` that builds this commit's image is put off to a later time.",
        "skipped": f"The job `{name}` that builds this commit's image was skipped, because of a job before it.",
    }.get(
        last.status,
        f"The job `{name}` that builds this commit's image has ended as `{last.status}`.",
    )
    return default(sentence, cause=last.status, **about_job(last))


def _who_can_build(facts: ImageFacts) -> str:
    if facts.environment is None or facts.may_build or facts.unreached:
        return ""
    return " Somebody who may push to this project can have it built again by opening this commit."

"""What is known of one commit when its image is decided, as one person may see it: plain data.

Read by ``images/facts.py``, decided over by ``images/resolve.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from notebooks_service.domain import Image, Job
from notebooks_service.gitlab.answers import RegistryTag
from notebooks_service.images.synthetic import Synthetic

# https://docs.gitlab.com/api/jobs/ and https://docs.gitlab.com/ci/jobs/#available-job-statuses
ACTIVE = frozenset(
    {"created", "preparing", "pending", "running", "waiting_for_resource", "waiting_for_callback"}
)
STATES = {
    "created": "waiting for jobs before it",
    "preparing": "being prepared",
    "pending": "waiting for a runner",
    "waiting_for_resource": "waiting for another job to finish",
    "waiting_for_callback": "waiting for an outside service",
}


@dataclass(frozen=True)
class Pin:
    """An image that somebody named. ``source``: ``this launch`` or a file. ``tag``: what it is now.

    ``problem``: why it cannot be had, if there is more to say than that it is not there.
    ``project_id``: the project whose image it is.
    """

    reference: str
    source: str
    tag: RegistryTag | None = None
    problem: str = ""
    project_id: int | None = None


@dataclass(frozen=True)
class Wish:
    """What a launch brings along: an image by name, what its server ran in first, whether it minds.

    ``new``: take what the tag names now, not what the server had.
    """

    image: str = ""
    had: Image | None = None
    new: bool = False


@dataclass(frozen=True)
class Kept:
    """The image of this server's first launch; ``exists``: this person may still run it."""

    image: Image
    exists: bool


@dataclass(frozen=True)
class Twin:
    """A commit with the same environment, and the image that is tagged with its sha."""

    sha: str
    tag: RegistryTag


@dataclass(frozen=True)
class EnvironmentFacts:
    """A commit's environment. ``inputs``: the paths that its fingerprint was computed from.

    ``tag``: the registry's for the fingerprint. ``build``: the commit that a build on demand of it is
    of, None if none can be made, and ``unbuilt`` says why; ``jobs``: the tries of the job there.
    ``volatile``: what in it may give another image next time; ``bases``: references that are not pinned, and the digests that their
    registries have told.
    """

    fingerprint: str
    kind: str = ""
    inputs: tuple[str, ...] = ()
    volatile: tuple[str, ...] = ()
    tag: RegistryTag | None = None
    twin: Twin | None = None
    build: Synthetic | None = None
    unbuilt: str = ""
    jobs: tuple[Job, ...] = ()
    bases: tuple[tuple[str, str], ...] = ()

    MOST_INPUTS = 20

    def evidence(self) -> dict[str, Any]:
        """What an answer says of it: the fingerprint and what that was computed from."""
        shown: dict[str, Any] = {
            "fingerprint": self.fingerprint,
            "kind": self.kind,
            "inputs": list(self.inputs[: self.MOST_INPUTS]),
        }
        if len(self.inputs) > self.MOST_INPUTS:
            shown["more_inputs"] = len(self.inputs) - self.MOST_INPUTS
        if self.bases:
            shown["bases"] = [f"{reference}@{digest}" for reference, digest in self.bases]
        if self.volatile:
            shown["not_reproducible"] = list(self.volatile[: self.MOST_INPUTS])
        return shown


@dataclass(frozen=True)
class ImageFacts:
    """What was found out about one commit, as one person may see it.

    ``name``: ``<project>:<sha>``. ``jobs``: every try of the job in every pipeline, None if this
    person may not see the CI. ``environment``: None if nobody looked, or if there is none; then
    ``no_environment`` may say why. Times are seconds of the clock that ``now`` is of:
    ``waiting_since``, when this person began to wait; ``log_grew_at``, when the log of the newest
    running try was last seen to grow; ``success_seen_at``, when a success was first seen.
    ``may_build``: this person may have it built; ``asked_to_build``: this launch has already asked for
    that, and the forge said ``build_problem``, if anything. ``unreached``: no branch or tag of the project
    holds the commit, so it is built for nobody. ``config_error``: what the forge has against the commit's CI configuration, if it has no job
    because of that. ``wants_new``: this person gives up the image that the server had.
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
    unreached: bool = False
    config_error: str = ""
    asked_to_build: bool = False
    build_problem: str = ""
    environment: EnvironmentFacts | None = None
    no_environment: str = ""
    pin: Pin | None = None
    kept: Kept | None = None
    wants_new: bool = False


def newest_tries(jobs: Sequence[Job]) -> tuple[Job, ...]:
    """The newest try of the job in each pipeline, newest first: a retry replaces what it retries."""
    newest: dict[int, Job] = {}
    for job in jobs:
        if job.pipeline_id not in newest or newest[job.pipeline_id].id < job.id:
            newest[job.pipeline_id] = job
    return tuple(sorted(newest.values(), key=lambda job: job.id, reverse=True))


def about_job(job: Job) -> dict[str, Any]:
    """A job as evidence."""
    return {
        "job": job.id,
        "pipeline": job.pipeline_id,
        "status": job.status,
        "job_url": job.web_url,
        "failure_reason": job.failure_reason,
    }


def state_of(job: Job) -> str:
    """What a job is doing, in words that complete "the job … is"."""
    return STATES.get(job.status, job.status)

"""Which image a commit gets, as one pure decision over plain facts; called by ``images/watch.py``.

The steps are DESIGN's, first that applies; each is a function from facts to an answer or None, and
``STEPS`` is their order. Every answer has an origin, a reason (one true sentence for a person) and
evidence. A step whose facts nobody has read is skipped. The last one is in ``images/fallback.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from notebooks_service.domain import Image, ImageOrigin, Job
from notebooks_service.images import fallback
from notebooks_service.images.known import (
    ACTIVE,
    ImageFacts,
    about_job,
    newest_tries,
    state_of,
)


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
class RefuseImage:
    """The end of the launch: what somebody pinned cannot be had, and nothing takes its place."""

    reason: str


@dataclass(frozen=True)
class WaitForJob:
    """A build is on its way: look again later. ``reason`` is a sentence for whoever waits.

    ``of_environment``: what builds is not the commit's own job but one for its environment.
    """

    job: Job
    reason: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    of_environment: bool = False


@dataclass(frozen=True)
class BuildOnDemand:
    """Nobody built it and nobody is about to: have the environment built, then look again."""


MOVED = ("moved_to", "moved_tag", "first_reason")
"""What the evidence of a server whose tag has moved holds beside that of its first launch."""

Decision = UseImage | RefuseImage | WaitForJob | BuildOnDemand
Step = Callable[[ImageFacts, ImageLimits, float], Decision | None]


def decide(facts: ImageFacts, limits: ImageLimits, now: float) -> Decision:
    """The image to use, or the job to wait for. The last step always answers."""
    for step in STEPS:
        answer = step(facts, limits, now)
        if answer is not None:
            return answer
    raise AssertionError("the last step always answers")


def _kept(facts: ImageFacts, limits: ImageLimits, now: float) -> Decision | None:
    """A server that has run before keeps the digest of its first launch, where it still exists.

    Not if somebody asks for what the tag names now, and not if what is pinned is another one now.
    """
    kept, pin = facts.kept, facts.pin
    if kept is None or not kept.exists or facts.wants_new:
        return None
    first = kept.image
    if first.digest is None or first.origin is ImageOrigin.DEFAULT:
        return None
    if first.evidence.get("pinned") != (None if pin is None else pin.reference):
        return None
    present = facts.tag if pin is None else pin.tag
    evidence = {key: value for key, value in first.evidence.items() if key not in MOVED}
    said = str(first.evidence.get("first_reason", first.reason))
    if present is None or present.digest in (None, first.digest):
        return UseImage(replace(first, reason=said, evidence=evidence))
    reason = (
        f"The image of this server's first launch ({_short(first.digest)}); its tag has moved "
        f"since and now names {_short(present.digest)}."
    )
    evidence |= {
        "moved_to": present.digest,
        "moved_tag": present.reference,
        "first_reason": said,
    }
    return UseImage(replace(first, reason=reason, evidence=evidence))


def _pinned(facts: ImageFacts, limits: ImageLimits, now: float) -> Decision | None:
    """Somebody has named the image: that one or an error, never another."""
    pin = facts.pin
    if pin is None:
        return None
    if pin.tag is None:
        return RefuseImage(
            f"The image `{pin.reference}`, which {pin.source} asks for, cannot be used: "
            f"{pin.problem or 'it does not exist, or you may not read it'}."
        )
    evidence = {
        "pinned": pin.reference,
        "by": pin.source,
        "tag": pin.tag.reference,
        "digest": pin.tag.digest,
        "project": pin.project_id,
    }
    reason = f"The image that {pin.source} asks for by name."
    return UseImage(Image(pin.tag.reference, pin.tag.digest, ImageOrigin.PINNED, reason, evidence))


def _commit_tag(facts: ImageFacts, limits: ImageLimits, now: float) -> Decision | None:
    """1. The registry has this commit's tag."""
    if facts.tag is None:
        return None
    evidence: dict[str, Any] = {"tag": facts.tag.reference, "digest": facts.tag.digest}
    succeeded = [job for job in newest_tries(facts.jobs or ()) if job.status == "success"]
    if succeeded:
        evidence |= about_job(succeeded[0])
    origin = ImageOrigin.COMMIT
    reason = "This commit's own image: the project's registry has one tagged with its sha."
    if facts.asked_to_build:
        origin = ImageOrigin.BUILT_ON_DEMAND
        reason = "This commit's own image: nobody had built it, so this launch had it built."
    return UseImage(Image(facts.tag.reference, facts.tag.digest, origin, reason, evidence))


def _environment_tag(facts: ImageFacts, limits: ImageLimits, now: float) -> Decision | None:
    """2. The registry has this environment's tag; 2b. a commit with the same one has its sha's."""
    environment = facts.environment
    if environment is None:
        return None
    evidence = environment.evidence()
    if (tag := environment.tag) is not None:
        succeeded = [job for job in newest_tries(environment.jobs) if job.status == "success"]
        evidence |= {"tag": tag.reference, "digest": tag.digest}
        evidence |= about_job(succeeded[0]) if succeeded else {}
        if facts.asked_to_build:
            return UseImage(
                Image(
                    tag.reference,
                    tag.digest,
                    ImageOrigin.BUILT_ON_DEMAND,
                    "Nobody had built this commit's environment, so this launch had it built.",
                    evidence,
                )
            )
        reason = (
            "The image of this commit's environment: the files that it is built from are the same "
            "as when it was built."
        )
        return UseImage(Image(tag.reference, tag.digest, ImageOrigin.ENVIRONMENT, reason, evidence))
    if (twin := environment.twin) is not None:
        evidence |= {"tag": twin.tag.reference, "digest": twin.tag.digest, "commit": twin.sha}
        reason = (
            f"The image of commit {twin.sha[:8]}: the files that it is built from are the same in "
            "this commit."
        )
        if evidence.pop("bases", None) or environment.volatile:
            reason += " What they do not pin is as it was when that was built."
        return UseImage(
            Image(twin.tag.reference, twin.tag.digest, ImageOrigin.ENVIRONMENT, reason, evidence)
        )
    return None


def _on_its_way(facts: ImageFacts, limits: ImageLimits, now: float) -> Decision | None:
    """3. A build of this commit, or of its environment, is on its way: any success, else any active."""
    builders = [(facts.jobs or (), False)]
    if facts.environment is not None:
        builders.append((facts.environment.jobs, True))
    for jobs, shared in builders:
        fresh = next((job for job in newest_tries(jobs) if job.status == "success"), None)
        if fresh is not None and _fresh(fresh, facts, limits, now):
            reason = f"The job `{fresh.name}` has just succeeded; its image is being registered."
            return WaitForJob(fresh, reason, about_job(fresh), shared)
    for jobs, shared in builders:
        tries = newest_tries(jobs)
        active = next((job for job in tries if job.status in ACTIVE), None)
        # A success whose image is gone: what was begun before it is not this build, what came later is.
        gone = max((job.id for job in tries if job.status == "success"), default=0)
        if active is not None and active.id > gone:
            return _patient(active, shared, facts, limits, now)
    return None


def _patient(
    active: Job, shared: bool, facts: ImageFacts, limits: ImageLimits, now: float
) -> Decision:
    """Wait for a job, within the limits."""
    what = "this commit's environment" if shared else "this commit's image"
    if facts.waiting_since is not None and now - facts.waiting_since >= limits.wait:
        return UseImage(
            fallback.default(
                f"Building {what} took too long: the job `{active.name}` was still "
                f"{state_of(active)} after {_duration(limits.wait)} of waiting.",
                cause="timed out",
                **about_job(active),
            )
        )
    if (
        active.status == "running"
        and facts.log_grew_at is not None
        and now - facts.log_grew_at >= limits.silence
    ):
        return UseImage(
            fallback.default(
                f"The job `{active.name}` that builds {what} is running, but its log has been "
                f"silent for {_duration(limits.silence)}.",
                cause="silent",
                **about_job(active),
            )
        )
    reason = f"The job `{active.name}` builds {what}: {state_of(active)}."
    return WaitForJob(active, reason, about_job(active), shared)


IDLE = frozenset({"manual", "scheduled", "skipped", "success"})
"""States of a job that has built nothing, or whose image is gone: its environment may be built."""


def _on_demand(facts: ImageFacts, limits: ImageLimits, now: float) -> Decision | None:
    """4. Nobody built it, and this person may have it built. What failed is not tried again."""
    if not facts.may_build or facts.asked_to_build or facts.jobs is None:
        return None
    if facts.environment is None or facts.environment.build is None:
        return None
    tries = (*newest_tries(facts.jobs), *newest_tries(facts.environment.jobs))
    return BuildOnDemand() if all(job.status in IDLE for job in tries) else None


def _fallback(facts: ImageFacts, limits: ImageLimits, now: float) -> Decision:
    """5. The default image, with the reason why there is no other."""
    return UseImage(fallback.image_of(facts))


STEPS: tuple[Step, ...] = (
    _kept,
    _pinned,
    _commit_tag,
    _environment_tag,
    _on_its_way,
    _on_demand,
    _fallback,
)


def _short(digest: str | None) -> str:
    return (digest or "")[:19]


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

"""Which image a commit gets, as a table: facts in, decision out."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from notebooks_service.domain import Image, ImageOrigin, Job
from notebooks_service.gitlab.answers import RegistryTag
from notebooks_service.images.known import (
    EnvironmentFacts,
    ImageFacts,
    Kept,
    Pin,
    Twin,
    newest_tries,
)
from notebooks_service.images.resolve import (
    BuildOnDemand,
    ImageLimits,
    RefuseImage,
    UseImage,
    WaitForJob,
    decide,
)
from notebooks_service.images.synthetic import Synthetic

NOW = 1_800_000_000.0
LIMITS = ImageLimits(wait=3600, silence=1800, grace=10)
TAG = RegistryTag("registry.example/g/p:" + "1" * 40, "sha256:aa")


def job(
    number: int,
    status: str,
    pipeline: int = 1,
    *,
    finished: float | None = None,
    failure: str | None = None,
) -> Job:
    at = None if finished is None else datetime.fromtimestamp(NOW - finished, UTC).isoformat()
    return Job(
        number, "image_build", status, pipeline, f"https://forge/j/{number}",
        finished_at=at, failure_reason=failure,
    )  # fmt: skip


def facts(*jobs: Job, tag: RegistryTag | None = None) -> ImageFacts:
    return ImageFacts("g/p:" + "1" * 40, "image_build", tag=tag, jobs=jobs)


OLD = 3600.0  # a success of an hour ago: nothing is still being registered

# What is there → the id of the job that is waited for, "commit", or the cause of the default.
CASES: list[tuple[str, ImageFacts, int | str]] = [
    ("tag, nothing else", facts(tag=TAG), "commit"),
    ("tag, job hidden", replace(facts(tag=TAG), jobs=None), "commit"),
    ("tag, job failed later", facts(job(1, "failed"), tag=TAG), "commit"),
    ("tag, job running again", facts(job(2, "running"), job(1, "success"), tag=TAG), "commit"),
    ("no pipeline", facts(), "no job"),
    ("no pipeline, may build, no environment known", replace(facts(), may_build=True), "no job"),
    (
        "no job because of the configuration",
        replace(facts(), config_error="jobs:a config should be a hash"),
        "config error",
    ),
    (
        "no pipeline, was asked for",
        replace(facts(), may_build=True, asked_to_build=True),
        "no job",
    ),
    ("a tag, was asked for", replace(facts(tag=TAG), asked_to_build=True), "built on demand"),
    ("a job, may build", replace(facts(job(1, "failed")), may_build=True), "failed"),
    ("CI hidden", replace(facts(), jobs=None), "hidden"),
    ("created", facts(job(1, "created")), 1),
    ("pending", facts(job(1, "pending")), 1),
    ("preparing", facts(job(1, "preparing")), 1),
    ("waiting for resource", facts(job(1, "waiting_for_resource")), 1),
    ("waiting for callback", facts(job(1, "waiting_for_callback")), 1),
    ("running", facts(job(1, "running")), 1),
    ("failed", facts(job(1, "failed")), "failed"),
    ("cancelled", facts(job(1, "canceled")), "cancelled"),
    ("being cancelled", facts(job(1, "canceling")), "cancelled"),
    ("skipped", facts(job(1, "skipped")), "skipped"),
    ("manual", facts(job(1, "manual")), "manual"),
    ("scheduled", facts(job(1, "scheduled")), "scheduled"),
    ("a status of a later GitLab", facts(job(1, "levitating")), "levitating"),
    ("success long ago, no tag", facts(job(1, "success", finished=OLD)), "image gone"),
    ("success just now, no tag yet", facts(job(1, "success", finished=3)), 1),
    ("success, the forge's clock is ahead", facts(job(1, "success", finished=-500)), 1),
    ("success without a time", facts(job(1, "success")), 1),
    (
        "success just now, watched for longer than the grace",
        replace(facts(job(1, "success", finished=-500)), success_seen_at=NOW - 11),
        "image gone",
    ),
    ("retried: failed, then running", facts(job(2, "running"), job(1, "failed")), 2),
    ("retried: failed, then success", facts(job(2, "success", finished=2), job(1, "failed")), 2),
    ("retried: success, then failed", facts(job(2, "failed"), job(1, "success")), "failed"),
    ("retried: cancelled, then pending", facts(job(2, "pending"), job(1, "canceled")), 2),
    ("retried, tries in another order", facts(job(1, "failed"), job(2, "running")), 2),
    ("allow_failure: the pipeline is green, the job failed", facts(job(1, "failed", 9)), "failed"),
    (
        "five pipelines: failed, cancelled, manual, skipped, one still running",
        facts(job(5, "failed", 5), job(4, "canceled", 4), job(3, "running", 3), job(2, "manual", 2),
              job(1, "skipped", 1)),
        3,
    ),
    (
        "five pipelines: any success beats what is active",
        facts(job(5, "running", 5), job(4, "failed", 4), job(3, "success", 3, finished=2),
              job(2, "pending", 2), job(1, "canceled", 1)),
        3,
    ),
    (
        "five pipelines, a success whose image is gone: still the default, not a wait for others",
        facts(job(5, "manual", 5), job(4, "failed", 4), job(3, "success", 3, finished=OLD)),
        "image gone",
    ),
    ("two active: the newest", facts(job(2, "pending", 2), job(1, "running", 1)), 2),
    ("newest failure is cancelled, an older failed", facts(job(2, "canceled", 2), job(1, "failed", 1)), "failed"),
    ("manual and failed", facts(job(2, "manual", 2), job(1, "failed", 1)), "failed"),
    ("cancelled, then success in another pipeline", facts(job(2, "success", 2, finished=1), job(1, "canceled", 1)), 2),
    ("cancelled and manual: the newest", facts(job(2, "manual", 2), job(1, "canceled", 1)), "manual"),
    ("waiting since too long", replace(facts(job(1, "running")), waiting_since=NOW - 3600), "timed out"),
    ("pending since too long", replace(facts(job(1, "pending")), waiting_since=NOW - 4000), "timed out"),
    ("waiting just not too long", replace(facts(job(1, "running")), waiting_since=NOW - 3599), 1),
    ("silent", replace(facts(job(1, "running")), waiting_since=NOW - 1900, log_grew_at=NOW - 1800), "silent"),
    ("not yet silent", replace(facts(job(1, "running")), log_grew_at=NOW - 1799), 1),
    ("pending has no log to be silent", replace(facts(job(1, "pending")), log_grew_at=NOW - 3000), 1),
    ("over while waiting too long", replace(facts(job(1, "failed")), waiting_since=NOW - 9999), "failed"),
    ("tag, waiting too long", replace(facts(job(1, "success"), tag=TAG), waiting_since=NOW - 9999), "commit"),
]  # fmt: skip


FINGERPRINT = "f" * 64
ENVIRONMENT_TAG = RegistryTag(f"registry.example/g/p:env-{FINGERPRINT}", "sha256:ee")
BUILD = Synthetic("b" * 40, f"notebooks/env-{FINGERPRINT}", b"")
TWIN = Twin("2" * 40, RegistryTag("registry.example/g/p:" + "2" * 7, "sha256:22"))
PIN = Pin(
    "registry.example/g/p:v1", "this launch", RegistryTag("registry.example/g/p:v1", "sha256:cc")
)
FIRST = Image(
    TAG.reference, "sha256:aa", ImageOrigin.COMMIT, "It was there.", {"digest": "sha256:aa"}
)
FIRST_PINNED = Image(
    PIN.reference, "sha256:cc", ImageOrigin.PINNED, "It was named.", {"pinned": PIN.reference}
)
MOVED = RegistryTag(TAG.reference, "sha256:bb")


def known(
    *builds: Job, tag: RegistryTag | None = None, twin: Twin | None = None
) -> EnvironmentFacts:
    """A commit whose environment has this tag, this twin, these tries of a build on demand."""
    inputs = ("Dockerfile", "requirements.txt")
    return EnvironmentFacts(
        FINGERPRINT, "dockerfile", inputs, tag=tag, twin=twin, build="b" * 40, jobs=builds
    )


def env(
    *builds: Job, tag: RegistryTag | None = None, twin: Twin | None = None, **more: object
) -> ImageFacts:
    return replace(facts(), environment=known(*builds, tag=tag, twin=twin), **more)


# Environments, builds on demand, pins, and servers that ran before. Also expected: "environment" and
# "twin" by their digests, "refused", "kept" with the first launch's digest, "moved" with that and a word.
MORE: list[tuple[str, ImageFacts, int | str]] = [
    ("environment there, commit never built", env(tag=ENVIRONMENT_TAG), "environment"),
    ("environment there, nobody may build", env(tag=ENVIRONMENT_TAG, may_build=False), "environment"),
    ("environment there, commit's build runs: no wait", env(tag=ENVIRONMENT_TAG, jobs=(job(1, "running"),)), "environment"),
    ("environment there, commit's build failed", env(tag=ENVIRONMENT_TAG, jobs=(job(1, "failed"),)), "environment"),
    ("environment there, CI hidden", env(tag=ENVIRONMENT_TAG, jobs=None), "environment"),
    ("environment there, CI configuration broken", env(tag=ENVIRONMENT_TAG, config_error="x"), "environment"),
    ("commit's tag beats the environment's", replace(facts(tag=TAG), environment=known(tag=ENVIRONMENT_TAG)), "commit"),
    ("commit's tag beats a twin", replace(facts(tag=TAG), environment=known(twin=TWIN)), "commit"),
    ("environment's tag beats a twin", env(tag=ENVIRONMENT_TAG, twin=TWIN), "environment"),
    ("a twin: a project that knows nothing of us", env(twin=TWIN), "twin"),
    ("a twin beats a build that is on its way", env(twin=TWIN, jobs=(job(1, "pending"),)), "twin"),
    ("a twin beats a build on demand", env(twin=TWIN, may_build=True), "twin"),
    ("environment built for this launch", env(tag=ENVIRONMENT_TAG, asked_to_build=True), "built on demand"),
    ("environment built for another launch", env(job(1, "success"), tag=ENVIRONMENT_TAG), "environment"),
    ("nobody built the environment, may build", env(may_build=True), "build"),
    ("nobody built the environment, may not", env(), "no job"),
    ("manual job, may build", env(jobs=(job(1, "manual"),), may_build=True), "build"),
    ("scheduled job, may build", env(jobs=(job(1, "scheduled"),), may_build=True), "build"),
    ("skipped job, may build", env(jobs=(job(1, "skipped"),), may_build=True), "build"),
    ("manual job, may not build", env(jobs=(job(1, "manual"),)), "manual"),
    ("image gone, may build: built again", env(jobs=(job(1, "success", finished=OLD),), may_build=True), "build"),
    ("image gone, may not build", env(jobs=(job(1, "success", finished=OLD),)), "image gone"),
    ("environment's image gone, may build: built again", env(job(9, "success", finished=OLD), may_build=True), "build"),
    ("environment's image gone, built again", env(job(10, "pending", 10), job(9, "success", 9, finished=OLD), asked_to_build=True), 10),
    ("image gone, and a new pipeline of the commit builds it", env(jobs=(job(2, "running", 2), job(1, "success", 1, finished=OLD))), 2),
    ("image gone, what still runs was begun before", env(jobs=(job(2, "success", 2, finished=OLD), job(1, "running", 1))), "image gone"),
    ("environment's image gone, may not build", env(job(9, "success", finished=OLD)), "image gone"),
    ("commit's job failed: not tried on demand", env(jobs=(job(1, "failed"),), may_build=True), "failed"),
    ("commit's job was cancelled: not tried on demand", env(jobs=(job(1, "canceled"),), may_build=True), "cancelled"),
    ("CI hidden: no build on demand", env(jobs=None, may_build=True), "hidden"),
    ("CI configuration broken, may build: ours is not", env(config_error="x", may_build=True), "build"),
    ("CI configuration broken, may not build", env(config_error="x"), "config error"),
    ("may build, but no commit can be made of its files", replace(facts(), may_build=True, environment=replace(known(), build=None)), "no job"),
    ("asked, the forge refused", env(may_build=True, asked_to_build=True, build_problem="push rules"), "build refused"),
    ("asked, no job came", env(may_build=True, asked_to_build=True), "no job"),
    ("somebody else's build on demand pending", env(job(9, "pending", 9)), 9),
    ("somebody else's build on demand running, may build", env(job(9, "running", 9), may_build=True), 9),
    ("build on demand waits for its resource group", env(job(9, "waiting_for_resource", 9)), 9),
    ("build on demand has just succeeded", env(job(9, "success", 9, finished=2)), 9),
    ("build on demand failed", env(job(9, "failed", 9), may_build=True), "failed"),
    ("build on demand failed, retried", env(job(10, "running", 9), job(9, "failed", 9)), 10),
    ("build on demand cancelled", env(job(9, "canceled", 9), may_build=True), "cancelled"),
    ("build on demand failed, the asker's", env(job(9, "failed", 9), may_build=True, asked_to_build=True), "failed"),
    ("build on demand takes too long", env(job(9, "running", 9), waiting_since=NOW - 3600), "timed out"),
    ("build on demand is silent", env(job(9, "running", 9), log_grew_at=NOW - 1800), "silent"),
    ("commit's job and one on demand: the commit's", env(job(9, "running", 9), jobs=(job(1, "pending"),)), 1),
    ("commit's job skipped, one on demand failed", env(job(9, "failed", 9), jobs=(job(1, "skipped"),)), "failed"),
    ("commit's image gone, one on demand running", env(job(9, "running", 9), jobs=(job(1, "success", finished=OLD),)), 9),
    ("commit's image gone, one on demand failed", env(job(9, "failed", 9), jobs=(job(1, "success", finished=OLD),)), "failed"),
    ("files that nothing can be built of", replace(facts(), no_environment="`a` is no TOML."), "no environment"),
    ("files that nothing can be built of, but a tag", replace(facts(tag=TAG), no_environment="x"), "commit"),
    ("pinned by the launch", replace(facts(tag=TAG), pin=PIN), "pinned"),
    ("pinned beats environment and build", env(job(9, "running"), tag=ENVIRONMENT_TAG, pin=PIN), "pinned"),
    ("pinned, gone or hidden: no default", replace(facts(tag=TAG), pin=replace(PIN, tag=None)), "refused"),
    ("pinned, in a project that is hidden", env(pin=replace(PIN, tag=None, problem="it is nowhere")), "refused"),
    ("ran before, tag unchanged", replace(facts(tag=TAG), kept=Kept(FIRST, True)), "kept"),
    ("ran before, tag moved", replace(facts(tag=MOVED), kept=Kept(FIRST, True)), "moved"),
    ("ran before, tag moved, the new one is wanted", replace(facts(tag=TAG), kept=Kept(replace(FIRST, digest="sha256:bb"), True), wants_new=True), "commit"),
    ("ran before, tag gone, image still there", replace(facts(), kept=Kept(FIRST, True)), "kept"),
    ("ran before, image gone: the tag", replace(facts(tag=TAG), kept=Kept(FIRST, False)), "commit"),
    ("ran before, image gone, nothing else", replace(facts(), kept=Kept(FIRST, False)), "no job"),
    ("ran before in the default image", replace(facts(tag=TAG), kept=Kept(replace(FIRST, digest=None, origin=ImageOrigin.DEFAULT), True)), "commit"),
    ("ran before, pinned since", replace(facts(), kept=Kept(FIRST, True), pin=PIN), "pinned"),
    ("ran before pinned, same pin moved", replace(facts(), kept=Kept(FIRST_PINNED, True), pin=replace(PIN, tag=RegistryTag(PIN.reference, "sha256:dd"))), "moved"),
    ("ran before pinned, same pin", replace(facts(), kept=Kept(FIRST_PINNED, True), pin=PIN), "kept"),
    ("ran before pinned, no pin now", replace(facts(tag=TAG), kept=Kept(FIRST_PINNED, True)), "commit"),
    ("ran before pinned, the pin is gone but not its image", replace(facts(), kept=Kept(FIRST_PINNED, True), pin=replace(PIN, tag=None)), "kept"),
]  # fmt: skip

DIGESTS = {
    "commit": "sha256:aa",
    "environment": "sha256:ee",
    "twin": "sha256:22",
    "pinned": "sha256:cc",
    "built on demand": "sha256:ee",
}


@pytest.mark.parametrize(("facts", "expected"), [c[1:] for c in MORE], ids=[c[0] for c in MORE])
def test_decision_with_environments_pins_and_servers_that_ran(
    facts: ImageFacts, expected: int | str
) -> None:
    decision = decide(facts, LIMITS, NOW)
    if isinstance(expected, int):
        assert isinstance(decision, WaitForJob)
        assert decision.job.id == expected
        assert decision.of_environment is (expected > 8)
        return
    if expected == "build":
        assert isinstance(decision, BuildOnDemand)
        return
    if expected == "refused":
        assert isinstance(decision, RefuseImage)
        assert PIN.reference in decision.reason and "this launch" in decision.reason
        return
    assert isinstance(decision, UseImage)
    image = decision.image
    if expected in ("kept", "moved"):
        assert facts.kept is not None
        assert (image.digest, image.origin) == (facts.kept.image.digest, facts.kept.image.origin)
        assert ("moved_to" in image.evidence) is (expected == "moved")
        assert ("has moved" in image.reason) is (expected == "moved")
    elif expected in DIGESTS:
        assert image.origin is ImageOrigin("environment" if expected == "twin" else expected)
        assert image.digest == DIGESTS[expected]
        if expected in ("environment", "twin", "built on demand"):
            assert image.evidence["fingerprint"] == FINGERPRINT
            assert image.evidence["inputs"] == ["Dockerfile", "requirements.txt"]
    else:
        assert image.origin is ImageOrigin.DEFAULT
        assert image.evidence["cause"] == expected
    assert image.reason.endswith(".") and "\n" not in image.reason


def test_a_moved_tag_is_noted_once_and_forgotten_when_it_moves_back() -> None:
    first = decide(replace(facts(tag=MOVED), kept=Kept(FIRST, True)), LIMITS, NOW)
    assert isinstance(first, UseImage)
    assert first.image.evidence["moved_to"] == "sha256:bb"
    back = decide(replace(facts(tag=TAG), kept=Kept(first.image, True)), LIMITS, NOW)
    assert isinstance(back, UseImage)
    assert back.image == FIRST


@pytest.mark.parametrize(("facts", "expected"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_decision(facts: ImageFacts, expected: int | str) -> None:
    decision = decide(facts, LIMITS, NOW)
    if isinstance(expected, int):
        assert isinstance(decision, WaitForJob)
        assert decision.job.id == expected
        sentence = decision.reason
    elif expected == "build":
        assert isinstance(decision, BuildOnDemand)
        return
    else:
        assert isinstance(decision, UseImage)
        image = decision.image
        sentence = image.reason
        if expected in ("commit", "built on demand"):
            assert image.origin is ImageOrigin(expected)
            assert (image.reference, image.digest) == (TAG.reference, TAG.digest)
        else:
            assert image.origin is ImageOrigin.DEFAULT
            assert image.evidence["cause"] == expected
            assert image.digest is None
    assert sentence.endswith(".") and sentence[0].isupper() and "\n" not in sentence


def test_evidence_names_the_job_that_failed() -> None:
    failed = job(7, "failed", 3, failure="script_failure")
    decision = decide(replace(facts(failed), failure_line="ERROR: no such package"), LIMITS, NOW)
    assert isinstance(decision, UseImage)
    evidence = decision.image.evidence
    assert (evidence["job"], evidence["pipeline"]) == (7, 3)
    assert evidence["job_url"] == "https://forge/j/7"
    assert evidence["log_line"] == "ERROR: no such package"
    assert decision.image.reason.endswith(
        "failed: its script ended with an error. Its log says: no such package."
    )
    unknown = replace(facts(replace(failed, failure_reason=None)), failure_line="Killed")
    decision = decide(unknown, LIMITS, NOW)
    assert isinstance(decision, UseImage)
    assert decision.image.reason.endswith("image failed. Its log says: Killed.")


def test_evidence_of_a_tag_is_what_a_server_keeps() -> None:
    decision = decide(facts(tag=TAG), LIMITS, NOW)
    assert isinstance(decision, UseImage)
    assert decision.image.evidence == {"tag": TAG.reference, "digest": TAG.digest}


def test_newest_tries_are_one_for_each_pipeline() -> None:
    jobs = [job(1, "failed", 1), job(4, "success", 2), job(3, "running", 1), job(2, "failed", 2)]
    assert [one.id for one in newest_tries(jobs)] == [4, 3]


def test_what_cannot_be_built_on_demand_says_why() -> None:
    environment = replace(known(), build=None, unbuilt="it has none")
    said = decide(replace(facts(), may_build=True, environment=environment), LIMITS, 0)
    assert isinstance(said, UseImage)
    assert "cannot be built on demand: it has none. Push" in said.image.reason


def test_another_name_of_the_job_is_in_the_sentence() -> None:
    decision = decide(replace(facts(), job_name="build docker"), LIMITS, NOW)
    assert isinstance(decision, UseImage)
    assert "`build docker`" in decision.image.reason

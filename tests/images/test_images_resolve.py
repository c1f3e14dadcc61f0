"""Which image a commit gets, as a table: facts in, decision out."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from notebooks_service.domain import ImageOrigin, Job
from notebooks_service.gitlab.answers import RegistryTag
from notebooks_service.images.resolve import (
    BuildOnDemand,
    ImageFacts,
    ImageLimits,
    UseImage,
    WaitForJob,
    decide,
    newest_tries,
)

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
    ("no pipeline, may build", replace(facts(), may_build=True), "build"),
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
    assert "script ended with an error" in decision.image.reason


def test_evidence_of_a_tag_is_what_a_server_keeps() -> None:
    decision = decide(facts(tag=TAG), LIMITS, NOW)
    assert isinstance(decision, UseImage)
    assert decision.image.evidence == {"tag": TAG.reference, "digest": TAG.digest}


def test_newest_tries_are_one_for_each_pipeline() -> None:
    jobs = [job(1, "failed", 1), job(4, "success", 2), job(3, "running", 1), job(2, "failed", 2)]
    assert [one.id for one in newest_tries(jobs)] == [4, 3]


def test_another_name_of_the_job_is_in_the_sentence() -> None:
    decision = decide(replace(facts(), job_name="build docker"), LIMITS, NOW)
    assert isinstance(decision, UseImage)
    assert "`build docker`" in decision.image.reason

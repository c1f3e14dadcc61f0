"""A real runner at a real forge: what a push makes happen, and how jobs end."""

from __future__ import annotations

import re

import pytest
from forge_fixtures import ForgeProcess
from runner_fixtures import StartRunner, Workspace, until


@pytest.fixture(scope="module")
def runner(forge: ForgeProcess, tmp_path_factory: pytest.TempPathFactory):
    from runner_fixtures import RunnerProcess

    started = RunnerProcess(forge, tmp_path_factory.mktemp("runner"), "--concurrent", "3")
    started.start()
    yield started
    assert started.stop() == 0, started.log.read_text()


def test_push_makes_a_pipeline_whose_job_runs(workspace: Workspace, runner) -> None:
    sha = workspace.push(
        """
job:
  before_script: [echo before]
  script:
    - echo "sha $CI_COMMIT_SHA in $(basename $PWD)"
    - git rev-parse HEAD
    - |
      for i in 1 2 3; do
        echo line $i
      done
"""
    )
    job = workspace.ended(sha)
    trace = workspace.trace(job.id)
    assert job.status == "success", trace
    shown = [
        line
        for line in re.sub(r"\x1b\[[0-9;]*m", "", trace).splitlines()
        if not line.startswith("Running with")
    ]
    assert shown[-10:] == [
        "$ echo before",
        "before",
        '$ echo "sha $CI_COMMIT_SHA in $(basename $PWD)"',
        f"sha {sha} in thing",
        "$ git rev-parse HEAD",
        sha,
        "$ for i in 1 2 3; do # collapsed multi-line command",
        "line 1",
        "line 2",
        "line 3",
    ] + [] or shown[-1] == "Job succeeded"
    assert workspace.pipeline(sha).status == "success"
    assert runner.builds == []


def test_failing_script(workspace: Workspace, runner) -> None:
    sha = workspace.push("job: {script: ['echo one', 'false | cat', 'echo never']}")
    job = workspace.ended(sha)
    assert (job.status, job.failure_reason) == ("failed", "script_failure")
    trace = workspace.trace(job.id)
    assert "Job failed: exit status 1" in trace and "\nnever" not in trace
    assert workspace.pipeline(sha).status == "failed"


def test_masked(workspace: Workspace, runner) -> None:
    workspace.api.variables.create({"key": "SECRET", "value": "s3cr3t-value", "masked": True})
    sha = workspace.push(
        """
job:
  script:
    - printf s3cr; sleep 0.6; printf '3t-va'; sleep 0.6; echo lue
    - echo "$SECRET" "$CI_JOB_TOKEN" "$CI_REPOSITORY_URL"
    - cat .git/config
"""
    )
    job = workspace.ended(sha)
    trace = workspace.trace(job.id)
    assert job.status == "success"
    assert "s3cr3t-value" not in trace and "glcbt-" not in trace
    assert trace.count("[MASKED]") >= 4

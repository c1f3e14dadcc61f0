"""The runner's protocol with a client that we did not write: PyPI's ``gitlab-runner-api``."""

from __future__ import annotations

import io
import warnings
import zipfile

import pytest
import requests

from forge_fixtures import ForgeProcess
from runner_fixtures import RawRunner, Workspace

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it still uses pkg_resources
    from gitlab_runner_api import AuthException, JobCancelledException, Runner, failure_reasons


@pytest.fixture
def foreign(ci_forge: ForgeProcess) -> Runner:
    RawRunner(ci_forge).http.post("/runners", json={"token": "makes the file"})
    secret = (ci_forge.data / "secrets" / "forge-runner-registration-token").read_text().strip()
    with pytest.raises(AuthException):
        Runner.register(ci_forge.url, "wrong")
    return Runner.register(
        ci_forge.url, secret, description="foreign", tags=["foreign"], run_untagged=False
    )


def test_a_foreign_runner_does_jobs(workspace: Workspace, foreign: Runner) -> None:
    foreign.check_auth()
    assert foreign.request_job() is None
    sha = workspace.push(
        """
default: {tags: [foreign]}
stages: [a, b, c]
good: {stage: a, script: [one, two], after_script: [three]}
bad: {stage: b, script: [four], allow_failure: true}
gone: {stage: c, script: [five]}
"""
    )
    good = foreign.request_job()
    assert (good.name, good.commit_sha, good.ref, good.is_branch) == ("good", sha, "main", True)
    assert (good.script, good.after_script) == (["one", "two"], ["three"])
    assert (good.project_path, good.username) == (workspace.path, workspace.username)
    assert good.commit_message == "Change\n" and good.pipeline_id == str(workspace.pipeline(sha).id)
    good.auth()
    good.log += "first line\n"
    good.set_success()
    assert "Running with gitlab_runner_api" in workspace.trace(good.id)
    assert workspace.job(sha, "good").runner["description"] == "foreign"
    bad = foreign.request_job()
    bad.set_failed(failure_reasons.ScriptFailure())
    assert workspace.job(sha, "bad").failure_reason == "script_failure"
    gone = foreign.request_job()
    workspace.api.jobs.get(gone.id).cancel()
    with pytest.raises(JobCancelledException):
        gone.log += "more\n"
    with pytest.raises(JobCancelledException):
        gone.set_success()
    assert workspace.pipeline(sha).status == "canceled"


def test_artifacts_of_a_foreign_runner(workspace: Workspace, foreign: Runner) -> None:
    """This client asks for jobs and ends them, but cannot bring artifacts; requests' form can."""
    sha = workspace.push(
        """
default: {tags: [foreign]}
stages: [a, b]
make: {stage: a, script: [one], artifacts: {paths: [out], when: always}}
use: {stage: b, script: [two], dependencies: [make]}
"""
    )
    make = foreign.request_job()
    with pytest.raises(NotImplementedError):
        make.set_success(artifacts=b"")
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("out/a", "made elsewhere")
    answer = requests.post(
        f"{workspace.forge.url}/api/v4/jobs/{make.id}/artifacts",
        params={"artifact_format": "zip", "artifact_type": "archive", "expire_in": "1 day"},
        headers={"JOB-TOKEN": make.token},
        files={"file": ("default.zip", data.getvalue(), "application/octet-stream")},
        timeout=30,
    )
    assert (answer.status_code, answer.text) == (201, "201")
    make.set_success()
    use = foreign.request_job()
    assert use.name == "use"
    brought = requests.get(
        f"{workspace.forge.url}/api/v4/jobs/{make.id}/artifacts",
        headers={"JOB-TOKEN": use.token},
        timeout=30,
    )
    assert brought.content == data.getvalue()
    use.set_success()
    assert workspace.job(sha, "make").artifact("out/a") == b"made elsewhere"

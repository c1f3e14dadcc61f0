"""The runner's protocol by bare requests, as GitLab's own runner makes them."""

from __future__ import annotations

import json
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import gitlab
import httpx
import pytest

from forge_fixtures import ForgeProcess, StartForge, run_git
from notebooks_service.forge.routes_runner import LONG_POLL
from runner_fixtures import RawRunner, Workspace, until


@pytest.fixture
def runner(ci_forge: ForgeProcess) -> RawRunner:
    found = RawRunner(ci_forge)
    while (left := found.request()).status_code == 201:
        found.put(left.json(), "failed", failure_reason="runner_system_failure")
    return found


def test_register_verify_unregister(ci_forge: ForgeProcess, runner: RawRunner) -> None:
    assert runner.http.post("/runners", json={"token": "wrong"}).status_code == 403
    assert runner.http.post("/runners", json={}).status_code == 400
    # The file is made when somebody first tries to register.
    secret = (ci_forge.data / "secrets" / "forge-runner-registration-token").read_text().strip()
    made = runner.http.post(
        "/runners", json={"token": secret, "tag_list": "gpu,linux", "run_untagged": False}
    )
    assert made.status_code == 201 and made.json()["token"].startswith("glrt-")
    token = made.json()["token"]
    verified = runner.http.post("/runners/verify", json={"token": token})
    assert (verified.status_code, verified.json()["id"]) == (200, made.json()["id"])
    assert runner.http.post("/runners/verify", json={"token": "glrt-no"}).status_code == 403
    other = RawRunner(ci_forge, token)
    assert other.request().status_code == 204
    assert runner.http.request("DELETE", "/runners", json={"token": token}).status_code == 204
    assert other.request().status_code == 403


def test_tags_decide_who_takes_a_job(
    ci_forge: ForgeProcess, workspace: Workspace, runner: RawRunner
) -> None:
    secret = (ci_forge.data / "secrets" / "forge-runner-registration-token").read_text().strip()
    body = {"token": secret, "tag_list": ["gpu"], "run_untagged": False}
    gpu = RawRunner(ci_forge, runner.http.post("/runners", json=body).json()["token"])
    sha = workspace.push("plain: {script: x}\ncuda: {script: x, tags: [gpu]}")
    first = gpu.take()
    assert first["job_info"]["name"] == "cuda"
    assert gpu.request().status_code == 204
    assert runner.take()["job_info"]["name"] == "plain"
    workspace.pipeline(sha).cancel()


def test_payload(workspace: Workspace, runner: RawRunner) -> None:
    sha = workspace.push(
        "job: {image: 'python:3', script: [a, b], before_script: [z], after_script: [c], timeout: 90s}"
    )
    job = runner.take()
    assert job["job_info"]["project_full_path"] == workspace.path
    git = job["git_info"]
    assert (git["sha"], git["ref"], git["ref_type"]) == (sha, "main", "branch")
    assert urlsplit(git["repo_url"]).password == job["token"]
    assert job["runner_info"]["timeout"] == 90
    assert job["image"]["name"] == "python:3"
    assert [(s["name"], s["script"], s["when"]) for s in job["steps"]] == [
        ("script", ["z", "a", "b"], "on_success"),
        ("after_script", ["c"], "always"),
    ]
    names = {item["key"] for item in job["variables"]}
    assert names >= {
        "CI", "GITLAB_CI", "CI_COMMIT_SHA", "CI_COMMIT_SHORT_SHA", "CI_COMMIT_REF_NAME",
        "CI_COMMIT_BRANCH", "CI_DEFAULT_BRANCH", "CI_PROJECT_ID", "CI_PROJECT_PATH",
        "CI_PROJECT_NAME", "CI_PROJECT_NAMESPACE", "CI_PROJECT_URL", "CI_PIPELINE_ID", "CI_JOB_ID",
        "CI_JOB_NAME", "CI_JOB_STAGE", "CI_JOB_TOKEN", "CI_REGISTRY", "CI_REGISTRY_IMAGE",
        "CI_SERVER_URL", "CI_API_V4_URL", "CI_COMMIT_MESSAGE", "GITLAB_USER_LOGIN",
    }  # fmt: skip
    runner.put(job, "success")


def test_trace_goes_on_where_it_ended(workspace: Workspace, runner: RawRunner) -> None:
    workspace.push("job: {script: x}")
    job = runner.take()
    added = runner.patch(job, b"hello ", 0)
    assert (added.status_code, added.headers["Range"]) == (202, "0-6")
    assert added.headers["Job-Status"] == "running"
    assert added.headers["X-GitLab-Trace-Update-Interval"]
    for start in (0, 3, 7, 100):
        mismatch = runner.patch(job, b"world", start)
        assert (mismatch.status_code, mismatch.headers["Range"]) == (416, "0-6")
    assert runner.patch(job, b"world", 6).headers["Range"] == "0-11"
    assert runner.patch(job, b"", 11).status_code == 202
    assert workspace.trace(job["id"]) == "hello world"
    headers = {"PRIVATE-TOKEN": workspace.token, "Range": "bytes=6-"}
    path = f"/projects/{workspace.id}/jobs/{job['id']}/trace"
    rest = runner.http.get(path, headers=headers)
    assert (rest.status_code, rest.text) == (206, "world")
    assert rest.headers["Content-Range"] == "bytes 6-10/11"
    assert runner.http.get(path, headers={**headers, "Range": "bytes=11-"}).status_code == 416
    bad = runner.http.patch(f"/jobs/{job['id']}/trace", headers={"JOB-TOKEN": job["token"]})
    assert bad.status_code == 400
    assert runner.patch({**job, "token": "glcbt-no"}, b"x", 11).status_code == 403
    assert runner.patch({"id": 999_999, "token": job["token"]}, b"x", 0).status_code == 403
    # A runner that forgets to hide the job's token: the forge does.
    runner.patch(job, job["token"].encode(), 11)
    assert job["token"] not in workspace.trace(job["id"])
    runner.put(job, "success")


def test_an_ended_job_tells_its_runner_so(workspace: Workspace, runner: RawRunner) -> None:
    workspace.push("job: {script: x}")
    job = runner.take()
    assert runner.put(job, "running").headers["Job-Status"] == "running"
    assert runner.put(job, "nonsense").status_code == 400
    workspace.api.jobs.get(job["id"]).cancel()
    for answer in (
        runner.patch(job, b"x", 0),
        runner.put(job, "running"),
        runner.put(job, "success"),
    ):
        assert (answer.status_code, answer.headers["Job-Status"]) == (403, "canceled")
    assert workspace.api.jobs.get(job["id"]).status == "canceled"


def test_too_long_a_log_ends_the_job(workspace: Workspace, runner: RawRunner) -> None:
    workspace.push("job: {script: x}")
    job = runner.take()
    part = b"x" * (8 * 1024 * 1024)
    assert runner.patch(job, part, 0).status_code == 202
    assert runner.patch(job, part, len(part)).status_code == 202
    assert runner.patch(job, b"x", 2 * len(part)).status_code == 403
    found = workspace.api.jobs.get(job["id"])
    assert (found.status, found.failure_reason) == ("failed", "trace_size_exceeded")


def test_no_job_is_given_twice(workspace: Workspace, runner: RawRunner) -> None:
    jobs = "\n".join(f"job{number}: {{script: x}}" for number in range(12))
    sha = workspace.push(jobs)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: runner.request(), range(20)))
    given = [answer.json()["id"] for answer in answers if answer.status_code == 201]
    assert {answer.status_code for answer in answers} == {201, 204}
    assert len(given) == len(set(given)) == 12
    workspace.pipeline(sha).cancel()


def test_a_waiting_runner_hears_of_a_job_at_once(workspace: Workspace, runner: RawRunner) -> None:
    known = runner.request().headers["X-GitLab-Last-Update"]
    began = time.monotonic()
    assert runner.request(last_update=known).status_code == 204
    assert time.monotonic() - began > 1

    def ask() -> tuple[httpx.Response, float]:
        asked = time.monotonic()
        return runner.request(last_update=known), time.monotonic() - asked

    for _ in range(10):
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(ask)
            workspace.push("job: {script: x}")
            answer, took = waiting.result()
        if answer.status_code == 201 and took < LONG_POLL:
            break
        # On a slow machine the push takes longer than a runner may wait: that shows nothing.
        job = answer.json() if answer.status_code == 201 else runner.take()
        runner.put(job, "success")
        known = runner.request().headers["X-GitLab-Last-Update"]
    else:
        pytest.fail("nobody who waited was told of a job before the wait was over")
    runner.put(answer.json(), "success")


def test_a_runner_that_is_gone_gets_no_job(workspace: Workspace, runner: RawRunner) -> None:
    """Its request still waits here; the job is for whoever asks next."""
    known = runner.request().headers["X-GitLab-Last-Update"]
    body = {"token": runner.token, "last_update": known}
    for _ in range(3):
        with pytest.raises(httpx.ReadTimeout):
            runner.http.post("/jobs/request", json=body, timeout=0.1)
    sha = workspace.push("job: {script: x}")
    job = runner.take()
    assert job["git_info"]["sha"] == sha
    runner.put(job, "success")


def test_a_runner_that_dies_while_it_is_given_a_job(
    ci_forge: ForgeProcess, workspace: Workspace, runner: RawRunner
) -> None:
    sha = workspace.push("job: {script: x}")
    until(lambda: workspace.job(sha).status == "pending", "a job that waits")
    # Somebody else writes: the forge has seen the job and waits to mark it as taken.
    with closing(sqlite3.connect(ci_forge.data / "forge" / "forge.sqlite")) as database:
        database.execute("BEGIN IMMEDIATE")
        with pytest.raises(httpx.ReadTimeout):
            runner.http.post("/jobs/request", json={"token": runner.token}, timeout=1)
        database.rollback()
    job = runner.take()
    assert job["git_info"]["sha"] == sha
    assert workspace.api.jobs.get(job["id"]).status == "running"
    runner.put(job, "success")


def test_the_job_token_reads_its_project_while_it_runs(
    ci_forge: ForgeProcess, workspace: Workspace, runner: RawRunner, tmp_path: Path
) -> None:
    other = Workspace(ci_forge, tmp_path)
    sha = workspace.push("job: {script: x}")
    job = runner.take()
    url = job["git_info"]["repo_url"]
    assert sha in run_git("ls-remote", url)
    elsewhere = url.replace(workspace.path, other.path)
    assert "fatal" in run_git("ls-remote", elsewhere, check=False)
    pushed = run_git("push", url, "HEAD:refs/heads/mine", cwd=workspace.clone, check=False)
    assert "You are not allowed to push code to this project" in pushed
    current = runner.http.get("/job", headers={"JOB-TOKEN": job["token"]})
    assert current.json()["id"] == job["id"]
    for method, path in (
        ("POST", f"/projects/{workspace.id}/pipeline?ref=main"),
        ("POST", f"/projects/{workspace.id}/jobs/{job['id']}/cancel"),
        ("GET", f"/projects/{workspace.id}/variables"),
        ("GET", f"/projects/{other.id}/pipelines"),
        ("POST", "/projects?name=stolen"),
        ("POST", "/groups?name=stolen&path=stolen"),
        ("POST", "/user/runners?runner_type=instance_type"),
    ):
        code = runner.http.request(method, path, headers={"JOB-TOKEN": job["token"]}).status_code
        assert code in (401, 403, 404), (method, path, code)
    runner.put(job, "success")
    assert "fatal" in run_git("ls-remote", url, check=False)
    assert runner.http.get("/job", headers={"JOB-TOKEN": job["token"]}).status_code == 401


def test_a_dead_runner(start_forge: StartForge, tmp_path: Path) -> None:
    forge = start_forge(arguments=["--job-silence", "4"])
    workspace = Workspace(forge, tmp_path)
    runner = RawRunner(forge)
    workspace.push("job: {script: x}")
    job = runner.take()
    began, start = time.monotonic(), 0
    while time.monotonic() < began + 5:
        # It speaks: the job lives on beyond the limit.
        assert runner.patch(job, b"x", start).status_code == 202
        start += 1
        time.sleep(0.2)
    dead = workspace.reached(job["id"], "failed")
    assert dead.failure_reason == "stuck_or_timeout_failure"
    assert "its runner has said nothing" in workspace.trace(job["id"])
    assert runner.patch(job, b"x", start).headers["Job-Status"] == "failed"


def test_a_restart_of_the_forge_leaves_jobs_running(
    start_forge: StartForge, tmp_path: Path
) -> None:
    forge = start_forge(arguments=["--job-silence", "4"])
    workspace = Workspace(forge, tmp_path)
    runner = RawRunner(forge)
    workspace.push("job: {script: x}\nother: {script: x}")
    job, lost = runner.take(), runner.take()
    runner.patch(job, b"before ", 0)
    forge.stop()
    forge.start()
    assert runner.patch(job, b"after", 7).status_code == 202
    assert runner.put(job, "success").status_code == 200
    assert workspace.trace(job["id"]) == "before after"
    assert workspace.reached(lost["id"], "failed").failure_reason == "stuck_or_timeout_failure"


def test_timeout_is_the_forges_too(start_forge: StartForge, tmp_path: Path) -> None:
    """A runner that goes on sending after the time-out is told to stop; limits are in the payload."""
    forge = start_forge()
    admin = forge.user(admin=True)
    api = gitlab.Gitlab(forge.url, private_token=forge.token(admin))
    made = api.http_post(
        "/user/runners", post_data={"runner_type": "instance_type", "maximum_timeout": 60}
    )
    assert isinstance(made, dict)
    runner = RawRunner(forge, made["token"])
    workspace = Workspace(forge, tmp_path)
    workspace.push("job: {script: x, timeout: 2h}")
    assert runner.take()["runner_info"]["timeout"] == 60


def test_no_token_is_stored_or_logged(
    ci_forge: ForgeProcess, workspace: Workspace, runner: RawRunner
) -> None:
    workspace.push("job: {script: x}")
    job = runner.take()
    runner.patch(job, b"x", 0)
    runner.put(job, "success")
    for path in ci_forge.data.rglob("*"):
        if path.is_file() and path.parent.name != "secrets":
            data = path.read_bytes()
            assert job["token"].encode() not in data, path
            assert runner.token.encode() not in data, path
    assert json.dumps(job["token"]) not in ci_forge.log.read_text()
    assert "GET /api/v4/projects/" in ci_forge.log.read_text()

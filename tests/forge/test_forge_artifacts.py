"""Artifacts and variables: uploads by the runner's protocol, everything else by python-gitlab."""

from __future__ import annotations

import gzip
import io
import re
import tempfile
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import gitlab
import httpx
import pytest
from gitlab.exceptions import GitlabError
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from forge_fixtures import ForgeProcess, StartForge, run_git
from notebooks_service.forge import ci_artifacts, ci_reports, errors
from notebooks_service.forge.ci_models import Artifact
from runner_fixtures import RawRunner, Workspace


@pytest.fixture
def runner(ci_forge: ForgeProcess) -> RawRunner:
    return RawRunner(ci_forge)


def refused(call: Callable[[], object]) -> int | None:
    with pytest.raises(GitlabError) as error:
        call()
    return error.value.response_code


def zipped(**files: str) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", "/"), content)
    return made.getvalue()


def upload(
    runner: RawRunner, job: dict[str, Any], data: bytes, token: str | None = None, **query: str
) -> httpx.Response:
    return runner.http.post(
        f"/jobs/{job['id']}/artifacts",
        params=query,
        headers={"JOB-TOKEN": token or job["token"]},
        files={"file": ("artifacts.zip", data, "application/zip")},
    )


CI = "job: {script: x, artifacts: {paths: [out], expire_in: 1 week}}"


def test_uploading_and_downloading(workspace: Workspace, runner: RawRunner) -> None:
    """https://docs.gitlab.com/api/job_artifacts/"""
    workspace.push(CI)
    job = runner.take()
    [entry] = job["artifacts"]
    assert (entry["paths"], entry["expire_in"], entry["when"]) == (["out"], "1 week", "on_success")
    assert (entry["artifact_type"], entry["artifact_format"]) == ("archive", "zip")
    headers = {"JOB-TOKEN": job["token"]}
    allowed = runner.http.post(f"/jobs/{job['id']}/artifacts/authorize", headers=headers)
    assert allowed.json()["MaximumSize"] == 100 * 1024**2
    large = runner.http.post(
        f"/jobs/{job['id']}/artifacts/authorize", headers=headers, params={"filesize": 10**9}
    )
    assert large.status_code == 413
    data = zipped(out__a="one", out__b="two")
    assert upload(runner, job, data, "wrong").status_code == 403
    assert upload(runner, job, data, artifact_type="nope").status_code == 400
    assert upload(runner, job, data, expire_in="1 week").status_code == 201
    assert upload(runner, job, data).status_code == 201, "the same bytes again are no conflict"
    other = upload(runner, job, zipped(x="y"))
    assert (other.status_code, other.json()["message"]) == (
        400,
        "another artifact of the same type already exists",
    )
    runner.put(job, "success")
    assert upload(runner, job, data).status_code == 403
    mine = workspace.api.jobs.get(job["id"])
    assert mine.artifacts() == data
    assert mine.artifacts_file == {"filename": "artifacts.zip", "size": len(data)}
    [listed] = mine.asdict()["artifacts"] if isinstance(mine.asdict()["artifacts"], list) else [{}]
    assert listed["file_type"] == "archive"
    expires = datetime.fromisoformat(mine.artifacts_expire_at)
    assert timedelta(days=6) < expires - datetime.now(UTC) <= timedelta(days=7)
    assert mine.artifact("out/a") == b"one"
    for path, code in (("out/none", 404), ("../x", 400), ("/etc/passwd", 400), ("out/", 400)):
        address = f"{workspace.forge.url}/api/v4/projects/{workspace.id}/jobs/{mine.id}/artifacts/"
        address += path.replace("/", "%2F").replace(".", "%2E")
        answer = httpx.get(address, headers={"PRIVATE-TOKEN": workspace.token})
        assert answer.status_code == code, path
    assert workspace.api.artifacts.download(ref_name="main", job="job") == data
    assert workspace.api.artifacts.raw("main", "out/b", job="job") == b"two"
    assert refused(lambda: workspace.api.artifacts.download(ref_name="main", job="no")) == 404
    assert refused(lambda: workspace.api.artifacts.download(ref_name="no", job="job")) == 404
    mine.keep_artifacts()
    assert workspace.api.jobs.get(mine.id).artifacts_expire_at is None
    mine.delete_artifacts()
    assert refused(mine.artifacts) == 404
    assert not list((workspace.forge.data / "forge" / "artifacts").glob(f"*/{mine.id}"))


DOTENV = """
make: {stage: build, script: x, artifacts: {reports: {dotenv: b.env}}}
use: {stage: test, script: x, variables: {A: job}}
blind: {stage: test, script: x, dependencies: []}
"""


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"A=1\n\nB=2\n", "Invalid Format"),
        (b"# a comment\n", "Invalid Format"),
        (b"A=1\0\n", "Invalid Format"),
        (b"A-B=1\n", "Key can contain only letters"),
        (b"=1\n", "Key can contain only letters"),
        (b"".join(b"K%d=1\n" % number for number in range(21)), "more than 20 variables"),
        # Small as it is sent, ten megabytes when it is opened.
        (b"A=" + b"x" * 10_000_000, "Too Big"),
        (b"A=" + b"x" * 5118, "Too Big"),
        (None, "Invalid Format"),
    ],
)
def test_a_dotenv_report_that_is_none(tmp_path: Path, content: bytes | None, why: str) -> None:
    file = tmp_path / "dotenv"
    file.write_bytes(b"no gzip" if content is None else gzip.compress(content))
    with pytest.raises(errors.ForgeError) as refusal:
        ci_reports.dotenv(file)
    assert refusal.value.status == 400 and why in refusal.value.body["message"]


@given(st.binary(max_size=200))
def test_any_dotenv_report_gives_variables_or_a_refusal(content: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(gzip.compress(content))
        file.flush()
        try:
            found = ci_reports.dotenv(Path(file.name))
        except errors.ForgeError as refusal:
            assert refusal.status == 400
        else:
            assert len(found) <= 20 and all(re.fullmatch(r"\w+", key, re.A) for key in found)


def test_a_dotenv_report_reaches_later_jobs(workspace: Workspace, runner: RawRunner) -> None:
    """https://docs.gitlab.com/ci/yaml/artifacts_reports/#artifactsreportsdotenv"""
    workspace.api.variables.create({"key": "B", "value": "project"})
    workspace.push(DOTENV)
    job = runner.take()
    [asked] = job["artifacts"]
    assert (asked["artifact_type"], asked["artifact_format"]) == ("dotenv", "gzip")
    assert (asked["name"], asked["paths"], asked["when"]) == (".env", ["b.env"], "always")
    kind = {"artifact_type": "dotenv", "artifact_format": "gzip"}
    wrong = upload(runner, job, b"A=1", artifact_type="dotenv", artifact_format="raw")
    assert (wrong.status_code, "Invalid file format" in wrong.text) == (400, True)
    refusal = upload(runner, job, gzip.compress(b"nothing"), **kind)
    assert (refusal.status_code, refusal.json()["message"]) == (400, "Invalid Format")
    # With Windows' mark at the start and ends of lines; the last of two counts.
    sent = "\ufeffA=first\r\nA = 1=2 \r\nB=dotenv\r\nC=$A-c\r\n".encode()
    assert upload(runner, job, gzip.compress(sent), **kind).status_code == 201
    runner.put(job, "success")
    later = {one["job_info"]["name"]: values(one) for one in (runner.take(), runner.take())}
    seen = later["use"]
    # Stronger than what the file says of the job, weaker than what people gave to the project.
    assert [seen[key]["value"] for key in "ABC"] == ["1=2", "project", "1=2-c"]
    assert (seen["A"]["public"], seen["A"]["masked"]) == (False, False)
    assert "A" not in later["blind"] and "C" not in later["blind"]


def test_the_deploy_token_that_jobs_get(workspace: Workspace, runner: RawRunner) -> None:
    """https://docs.gitlab.com/user/project/deploy_tokens/#gitlab-deploy-token"""
    tokens = workspace.api.deploytokens
    scopes = {"scopes": ["read_repository"]}
    tokens.create({"name": "another", **scopes})

    def given() -> dict[str, dict[str, Any]]:
        workspace.push("job: {script: x}")
        job = runner.take()
        runner.put(job, "success")
        return {key: one for key, one in values(job).items() if key.startswith("CI_DEPLOY")}

    assert given() == {}
    ended = "2020-01-01T00:00:00Z"
    tokens.create({"name": "gitlab-deploy-token", "expires_at": ended, **scopes})
    made = tokens.create({"name": "gitlab-deploy-token", **scopes})
    seen = given()
    assert seen["CI_DEPLOY_USER"]["value"] == made.username
    password = seen["CI_DEPLOY_PASSWORD"]
    assert password["value"] == made.token
    assert (password["masked"], password["public"], password["raw"]) == (True, False, True)
    address = workspace.forge.git_url(workspace.path, made.username, password["value"])
    assert "refs/heads/main" in run_git("ls-remote", address)
    # In the database it is sealed, with a key that lies elsewhere.
    assert made.token.encode() not in b"".join(
        file.read_bytes() for file in (workspace.forge.data / "forge").glob("forge.sqlite*")
    )
    tokens.delete(made.id)
    assert given() == {}


def test_who_may_have_them(workspace: Workspace, runner: RawRunner) -> None:
    workspace.push(CI)
    job = runner.take()
    upload(runner, job, zipped(a="b"))
    runner.put(job, "success")
    forge = workspace.forge
    reporter = forge.user()
    forge.administration.add_member(workspace.path, reporter, "reporter")
    theirs = gitlab.Gitlab(forge.url, private_token=forge.token(reporter))
    found = theirs.projects.get(workspace.id).jobs.get(job["id"])
    assert found.artifacts()
    assert refused(found.delete_artifacts) == 403 and refused(found.keep_artifacts) == 403
    lazy = gitlab.Gitlab(forge.url).projects.get(workspace.id, lazy=True)
    assert refused(lazy.jobs.get(job["id"], lazy=True).artifacts) == 404
    assert refused(lazy.jobs.get(job["id"], lazy=True).delete_artifacts) == 401


def test_expired_ones_go_but_for_the_newest(workspace: Workspace, runner: RawRunner) -> None:
    """https://docs.gitlab.com/ci/jobs/job_artifacts/#keep-artifacts-from-most-recent-successful-jobs"""
    ids = []
    for _ in range(2):
        workspace.push("job: {script: x, artifacts: {paths: [a], expire_in: 1 day}}")
        job = runner.take()
        ids.append(job["id"])
        upload(runner, job, zipped(a="b"), expire_in="1 day")
        runner.put(job, "success")
    administration = workspace.forge.administration
    with administration.database.write() as session:
        for one in session.scalars(select(Artifact).where(Artifact.job_id.in_(ids))).all():
            one.expires_at = datetime.now(UTC) - timedelta(seconds=1)
    # What has expired is not given out, even before it is removed.
    assert refused(workspace.api.jobs.get(ids[0]).artifacts) == 404
    ci_artifacts.remove_expired(administration.database, administration.config)
    root = workspace.forge.data / "forge" / "artifacts"
    assert not list(root.glob(f"*/{ids[0]}"))
    assert workspace.api.jobs.get(ids[1]).artifacts()
    workspace.api.keep_latest_artifact = False
    workspace.api.save()
    assert refused(workspace.api.jobs.get(ids[1]).artifacts) == 404
    ci_artifacts.remove_expired(administration.database, administration.config)
    assert not list(root.glob(f"*/{ids[1]}"))


def test_dependencies_are_opened_by_the_running_job(
    workspace: Workspace, runner: RawRunner
) -> None:
    workspace.push(
        "stages: [a, b]\n"
        "one: {stage: a, script: x, artifacts: {paths: [f]}}\n"
        "two: {stage: b, script: x}\nthree: {stage: b, script: x, needs: [one]}\n"
    )
    first = runner.take()
    data = zipped(f="x")
    upload(runner, first, data)
    runner.put(first, "success")
    second = runner.take()
    [dependency] = second["dependencies"]
    assert (dependency["id"], dependency["name"]) == (first["id"], "one")
    assert dependency["token"] == second["token"] != first["token"]
    assert dependency["artifacts_file"]["size"] == len(data)

    def download(token: str) -> httpx.Response:
        return runner.http.get(f"/jobs/{first['id']}/artifacts", headers={"JOB-TOKEN": token})

    assert download(second["token"]).content == data
    assert download("wrong").status_code == 403
    runner.put(second, "success")
    assert download(second["token"]).status_code == 403
    # What a job depends on was deleted: it is not run without.
    workspace.api.jobs.get(first["id"]).erase()
    assert runner.request().status_code == 204
    [third] = [one for one in workspace.api.jobs.list(get_all=True) if one.name == "three"]
    assert (third.status, third.failure_reason) == ("failed", "missing_dependency_failure")


def test_the_largest_archive(
    start_forge: StartForge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTEBOOKS_ARTIFACTS_LARGEST", "1000")
    forge = start_forge()
    space, runner = Workspace(forge, tmp_path), RawRunner(forge)
    space.push(CI)
    job = runner.take()
    assert upload(runner, job, b"x" * 1001).status_code == 413
    assert upload(runner, job, b"x" * 3_000_000).status_code == 413

    def endless() -> Any:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
        for _ in range(100):
            yield b"x" * 100_000

    answer = runner.http.post(
        f"/jobs/{job['id']}/artifacts",
        content=endless(),
        headers={"JOB-TOKEN": job["token"], "Content-Type": "multipart/form-data; boundary=b"},
    )
    assert answer.status_code == 413
    assert not list((forge.data / "forge").glob("artifacts/*/*/*"))


def values(job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {item["key"]: item for item in job["variables"]}


def test_variables_of_groups_scopes_and_hidden_ones(
    ci_forge: ForgeProcess, runner: RawRunner, tmp_path: Path
) -> None:
    """https://docs.gitlab.com/ci/variables/ · https://docs.gitlab.com/api/group_level_variables/"""
    forge = ci_forge
    name = forge.user()
    space = Workspace(forge, tmp_path, f"top-{name}/sub/thing")
    top = space.gitlab.groups.get(f"top-{name}")
    sub = space.gitlab.groups.get(f"top-{name}/sub")
    top.variables.create({"key": "A", "value": "top"})
    top.variables.create({"key": "B", "value": "top", "protected": True})
    sub.variables.create({"key": "A", "value": "sub"})
    top.variables.create({"key": "C", "value": "top"})
    own = space.api.variables
    own.create({"key": "C", "value": "own"})
    own.create({"key": "D", "value": "any"})
    own.create({"key": "D", "value": "review", "environment_scope": "review/*"})
    own.create({"key": "D", "value": "exact", "environment_scope": "review/1"})
    secret = own.create({"key": "S", "value": "longsecret", "masked_and_hidden": True})
    assert (secret.hidden, secret.masked, secret.value) == (True, True, None)
    assert own.get("S").value is None
    assert refused(lambda: own.update("S", {"masked": False})) == 400
    assert refused(lambda: own.create({"key": "D", "value": "x"})) == 400
    assert refused(lambda: own.get("D")) == 409
    exact = own.get("D", filter={"environment_scope": "review/1"})
    assert exact.value == "exact"
    own.update("D", {"value": "changed", "filter": {"environment_scope": "review/*"}})
    space.push(
        "plain: {script: x}\n"
        "one: {script: x, environment: review/1}\n"
        "two: {script: x, environment: {name: review/2}}\n",
        branch="side",
    )
    jobs = {}
    for _ in range(3):
        job = runner.take()
        jobs[job["job_info"]["name"]] = values(job)
        runner.put(job, "success")
    plain = jobs["plain"]
    assert (plain["A"]["value"], plain["C"]["value"], plain["D"]["value"]) == ("sub", "own", "any")
    assert "B" not in plain and plain["CI_COMMIT_REF_PROTECTED"]["value"] == "false"
    assert (plain["S"]["value"], plain["S"]["masked"]) == ("longsecret", True)
    assert jobs["one"]["D"]["value"] == "exact" and jobs["two"]["D"]["value"] == "changed"
    # A wildcard makes the branch protected, and with it what its jobs see.
    space.api.protectedbranches.create({"name": "sid*", "push_access_level": 40})
    space.push("plain: {script: x}", branch="side")
    job = runner.take()
    assert values(job)["B"]["value"] == "top"
    assert values(job)["CI_COMMIT_REF_PROTECTED"]["value"] == "true"
    runner.put(job, "success")
    stranger = gitlab.Gitlab(forge.url, private_token=forge.token(forge.user()))
    assert refused(lambda: stranger.groups.get(top.id, lazy=True).variables.list()) == 404
    member = forge.user()
    forge.administration.add_member(f"top-{name}", member, "maintainer")
    theirs = gitlab.Gitlab(forge.url, private_token=forge.token(member))
    assert refused(lambda: theirs.groups.get(top.id).variables.list()) == 403

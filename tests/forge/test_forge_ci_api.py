"""Pipelines, jobs and variables through python-gitlab; a bare runner stands in where a job must run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gitlab
import httpx
import pytest

from forge_fixtures import ForgeProcess, StartForge, run_git
from runner_fixtures import RawRunner, Workspace, until

TWO_STAGES = """
stages: [one, two]
first: {stage: one, script: x}
second: {stage: two, script: x}
"""


@pytest.fixture
def runner(ci_forge: ForgeProcess) -> RawRunner:
    """Takes what earlier tests left behind, so that the next job is this test's."""
    found = RawRunner(ci_forge)
    while (left := found.request()).status_code == 201:
        found.put(left.json(), "failed", failure_reason="runner_system_failure")
    return found


def statuses(workspace: Workspace, sha: str) -> dict[str, str]:
    jobs = workspace.pipeline(sha).jobs.list(get_all=True)
    return {job.name: job.status for job in jobs}


def test_default_configuration_gives_image_build(workspace: Workspace) -> None:
    sha = workspace.push()
    pipeline = workspace.pipeline(sha)
    assert (pipeline.ref, pipeline.source, pipeline.tag) == ("main", "push", False)
    assert pipeline.status == "pending"
    (job,) = pipeline.jobs.list(get_all=True)
    assert (job.name, job.stage, job.status) == ("image_build", "test", "pending")
    assert job.commit["id"] == sha and job.commit["short_id"] == sha[:8]
    assert job.user["username"] == workspace.username
    assert job.pipeline["id"] == pipeline.id
    assert job.web_url == f"{workspace.forge.url}/{workspace.path}/-/jobs/{job.id}"
    assert workspace.trace(job.id) == ""


def test_a_push_of_ten_commits_has_one_pipeline_for_the_tip(workspace: Workspace) -> None:
    for number in range(9):
        (workspace.clone / "n").write_text(str(number))
        run_git("add", "n", cwd=workspace.clone)
        run_git("commit", "--quiet", "-m", f"n {number}", cwd=workspace.clone)
    tip = workspace.push()
    assert [pipeline.sha for pipeline in workspace.pipelines()] == [tip]


def test_tags_branches_and_deletions(workspace: Workspace) -> None:
    workspace.push("job: {script: x}", branch="side")
    run_git("tag", "-a", "v1", "-m", "One", cwd=workspace.clone)
    run_git("push", "--quiet", "origin", "v1", cwd=workspace.clone)
    run_git("push", "--quiet", "origin", ":side", cwd=workspace.clone)
    assert [(p.ref, p.source) for p in workspace.pipelines()] == [("v1", "push"), ("side", "push")]
    assert [p.ref for p in workspace.pipelines(scope="tags")] == ["v1"]
    tag = workspace.api.pipelines.get(workspace.pipelines(ref="v1")[0].id)
    assert tag.tag is True and tag.sha == workspace.pipelines(ref="side")[0].sha


@pytest.mark.parametrize(
    ("message", "options"),
    [("Quiet [ci skip]", ()), ("Quiet [skip ci]", ()), ("Loud", ("ci.skip",))],
)
def test_skip(workspace: Workspace, message: str, options: tuple[str, ...]) -> None:
    sha = workspace.push(message=message, options=options)
    pipeline = workspace.pipeline(sha)
    assert pipeline.status == "skipped"
    assert pipeline.jobs.list(get_all=True) == []


def test_push_option_gives_a_variable(workspace: Workspace, runner: RawRunner) -> None:
    workspace.push("job: {script: x}", options=("ci.variable=COLOUR=red green",))
    job = runner.take()
    assert {"COLOUR": "red green"}.items() <= values(job).items()
    runner.put(job, "success")


def values(job: dict[str, Any]) -> dict[str, str]:
    return {item["key"]: item["value"] for item in job["variables"]}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("job: {script: [", "(<unknown>): did not find expected node content"),
        ("job: {stage: nope, script: x}", "chosen stage nope does not exist"),
        ("job: {script: x, needs: [job]}", "The pipeline has circular dependencies"),
        ("include: a.yml", "`include` is not supported"),
    ],
)
def test_wrong_configuration_fails_the_pipeline(
    workspace: Workspace, text: str, sentence: str
) -> None:
    pipeline = workspace.pipeline(workspace.push(text))
    assert pipeline.status == "failed"
    assert sentence in pipeline.yaml_errors
    assert pipeline.jobs.list(get_all=True) == []
    assert [p.id for p in workspace.pipelines(yaml_errors=True)] == [pipeline.id]
    with pytest.raises(gitlab.GitlabCreateError) as caught:
        workspace.api.pipelines.create({"ref": "main"})
    assert caught.value.response_code == 400 and sentence in str(caught.value.error_message)


def test_no_pipeline_where_rules_want_none(workspace: Workspace) -> None:
    sha = workspace.push("job: {script: x, rules: [{if: $CI_PIPELINE_SOURCE == 'api'}]}")
    assert workspace.pipelines(sha=sha) == []
    made = workspace.api.pipelines.create({"ref": "main"})
    assert (made.sha, made.source) == (sha, "api")


def test_changes_are_those_of_the_push(workspace: Workspace) -> None:
    text = "docs: {script: x, rules: [{changes: ['docs/**/*']}]}\nall: {script: x}"
    workspace.push(text)
    without = workspace.push(files={"src/a.py": ""})
    assert set(statuses(workspace, without)) == {"all"}
    with_docs = workspace.push(files={"docs/deep/a.md": ""})
    assert set(statuses(workspace, with_docs)) == {"all", "docs"}


def test_five_pipelines_for_one_sha(workspace: Workspace) -> None:
    sha = workspace.push("job: {script: x}")
    made = [workspace.api.pipelines.create({"ref": "main"}).id for _ in range(4)]
    found = workspace.pipelines(sha=sha)
    assert [p.id for p in found][:4] == made[::-1] and len(found) == 5
    assert len({p.iid for p in found}) == 5
    page = workspace.api.pipelines.list(sha=sha, per_page=2, iterator=True)
    assert page.total == 5 and len(list(page)) == 5
    assert [p.id for p in workspace.pipelines(sha=sha, sort="asc")] == [p.id for p in found][::-1]


def test_stages_follow_each_other_and_failures_skip(
    workspace: Workspace, runner: RawRunner
) -> None:
    sha = workspace.push(TWO_STAGES)
    assert statuses(workspace, sha) == {"first": "pending", "second": "created"}
    first = runner.take()
    assert workspace.pipeline(sha).status == "running"
    assert runner.put(first, "success").status_code == 200
    assert statuses(workspace, sha) == {"first": "success", "second": "pending"}
    second = runner.take()
    runner.put(second, "failed", failure_reason="script_failure", exit_code=3)
    pipeline = workspace.pipeline(sha)
    assert pipeline.status == "failed" and pipeline.duration is not None
    job = workspace.job(sha, "second")
    assert (job.status, job.failure_reason) == ("failed", "script_failure")
    assert job.started_at and job.finished_at and job.duration >= 0 and job.queued_duration >= 0


def test_retry_has_a_new_id_and_keeps_the_old(workspace: Workspace, runner: RawRunner) -> None:
    sha = workspace.push(TWO_STAGES)
    first = runner.take()
    runner.put(first, "failed", failure_reason="script_failure")
    assert statuses(workspace, sha) == {"first": "failed", "second": "skipped"}
    answer = workspace.api.jobs.get(first["id"]).retry()
    assert answer["id"] > first["id"] and answer["status"] == "pending"
    pipeline = workspace.pipeline(sha)
    assert pipeline.status in ("pending", "running")
    assert statuses(workspace, sha) == {"first": "pending", "second": "created"}
    every = pipeline.jobs.list(include_retried=True, get_all=True)
    assert {job.id for job in every} >= {first["id"], answer["id"]}
    with pytest.raises(gitlab.GitlabJobRetryError) as caught:
        workspace.api.jobs.get(first["id"]).retry()
    assert caught.value.response_code == 403
    again = runner.take()
    assert again["id"] == answer["id"] and again["token"] != first["token"]
    runner.put(again, "success")
    runner.put(runner.take(), "success")
    assert workspace.pipeline(sha).status == "success"


def test_retry_by_the_configuration(workspace: Workspace, runner: RawRunner) -> None:
    sha = workspace.push("job: {script: x, retry: {max: 1, when: script_failure}}")
    ids = []
    for _ in range(2):
        job = runner.take()
        ids.append(job["id"])
        runner.put(job, "failed", failure_reason="script_failure")
    assert ids[1] > ids[0]
    assert workspace.pipeline(sha).status == "failed"
    assert runner.request().status_code == 204


def test_allow_failure_turns_a_pipeline_green(workspace: Workspace, runner: RawRunner) -> None:
    sha = workspace.push("job: {script: x, allow_failure: true}")
    runner.put(runner.take(), "failed", failure_reason="script_failure")
    assert workspace.pipeline(sha).status == "success"
    job = workspace.job(sha)
    assert (job.status, job.allow_failure) == ("failed", True)
    exact = workspace.push("job: {script: x, allow_failure: {exit_codes: [7]}}")
    runner.put(runner.take(), "failed", failure_reason="script_failure", exit_code=7)
    assert workspace.pipeline(exact).status == "success"


def test_cancel_play_and_needs(workspace: Workspace, runner: RawRunner) -> None:
    sha = workspace.push(
        """
stages: [a, b]
slow: {stage: a, script: x}
quick: {stage: b, script: x, needs: []}
by hand: {stage: b, script: x, when: manual, needs: []}
later: {stage: b, script: x, when: delayed, start_in: 1 second, needs: []}
"""
    )
    assert statuses(workspace, sha) == {
        "slow": "pending",
        "quick": "pending",
        "by hand": "manual",
        "later": "scheduled",
    }
    hand = workspace.job(sha, "by hand")
    hand.play()
    assert statuses(workspace, sha)["by hand"] == "pending"
    with pytest.raises(gitlab.GitlabJobPlayError):
        hand.play()
    until(lambda: statuses(workspace, sha)["later"] == "pending", "the delayed job")
    workspace.job(sha, "slow").cancel()
    assert statuses(workspace, sha)["slow"] == "canceled"
    workspace.pipeline(sha).cancel()
    assert set(statuses(workspace, sha).values()) == {"canceled"}
    assert workspace.pipeline(sha).status == "canceled"
    workspace.pipeline(sha).retry()
    assert statuses(workspace, sha)["slow"] == "pending"
    workspace.pipeline(sha).cancel()


def test_child_pipeline(workspace: Workspace, runner: RawRunner) -> None:
    sha = workspace.push(
        "build: {trigger: {include: ci/child.yml, strategy: depend}, variables: {FROM: parent}}",
        files={"ci/child.yml": "image_build: {script: x}"},
    )
    job = runner.take()
    assert job["job_info"]["name"] == "image_build" and values(job)["FROM"] == "parent"
    assert values(job)["CI_PIPELINE_SOURCE"] == "parent_pipeline"
    pipeline = workspace.pipeline(sha)
    (bridge,) = pipeline.bridges.list(get_all=True)
    assert (bridge.name, bridge.status) == ("build", "running")
    child = workspace.api.pipelines.get(bridge.downstream_pipeline["id"])
    assert (child.sha, child.source) == (sha, "parent_pipeline")
    assert [job.name for job in child.jobs.list(get_all=True)] == ["image_build"]
    assert pipeline.jobs.list(get_all=True) == []
    assert [p.id for p in workspace.pipelines(source="parent_pipeline")] == [child.id]
    runner.put(job, "success")
    assert workspace.pipeline(sha).status == "success"
    (bridge,) = pipeline.bridges.list(get_all=True)
    assert bridge.status == "success"
    broken = workspace.push("build: {trigger: {include: missing.yml}}")
    until(lambda: workspace.pipeline(broken).status == "failed", "the failed trigger job")


def test_variables(workspace: Workspace, runner: RawRunner) -> None:
    variables = workspace.api.variables
    variables.create({"key": "PLAIN", "value": "one $CI_COMMIT_BRANCH"})
    variables.create({"key": "HIDDEN_1", "value": "longsecret", "masked": True})
    variables.create({"key": "FILE_1", "value": "text", "variable_type": "file"})
    variables.create({"key": "GUARDED", "value": "x", "protected": True})
    for wrong in ({"key": "S", "value": "short", "masked": True}, {"key": "a b", "value": "x"}):
        with pytest.raises(gitlab.GitlabCreateError):
            variables.create(wrong)
    changed = variables.get("PLAIN")
    changed.value = "two $CI_COMMIT_BRANCH"
    changed.save()
    workspace.push("job: {script: x, variables: {PLAIN: weaker, MINE: $PLAIN}}", branch="side")
    job = runner.take()
    found = {item["key"]: item for item in job["variables"]}
    assert found["PLAIN"]["value"] == "two side" and found["MINE"]["value"] == "two side"
    assert found["HIDDEN_1"]["masked"] and found["FILE_1"]["file"]
    assert "GUARDED" not in found
    assert found["CI_COMMIT_SHORT_SHA"]["value"] == job["git_info"]["sha"][:8]
    assert found["CI_JOB_TOKEN"]["masked"] and not found["CI_JOB_TOKEN"]["public"]
    runner.put(job, "success")
    variables.delete("PLAIN")
    assert [v.key for v in variables.list(get_all=True)] == ["HIDDEN_1", "FILE_1", "GUARDED"]


def test_delete_erase_and_latest(workspace: Workspace, runner: RawRunner) -> None:
    sha = workspace.push("job: {script: x}")
    job = runner.take()
    runner.patch(job, b"text", 0)
    runner.put(job, "success")
    assert workspace.trace(job["id"]) == "text"
    assert workspace.api.pipelines.latest().sha == sha
    workspace.api.jobs.get(job["id"]).erase()
    assert workspace.trace(job["id"]) == ""
    assert workspace.api.jobs.get(job["id"]).erased_at
    workspace.pipeline(sha).delete()
    assert workspace.pipelines() == []
    with pytest.raises(gitlab.GitlabGetError):
        workspace.api.jobs.get(job["id"])


def test_who_may(ci_forge: ForgeProcess, workspace: Workspace) -> None:
    sha = workspace.push("job: {script: x}")
    pipeline, job = workspace.pipeline(sha), workspace.job(sha)
    people: dict[str, Any] = {}
    for level in ("reporter", "developer"):
        name = ci_forge.user()
        ci_forge.administration.add_member(workspace.path, name, level)
        people[level] = gitlab.Gitlab(ci_forge.url, private_token=ci_forge.token(name))
    people["stranger"] = gitlab.Gitlab(ci_forge.url, private_token=ci_forge.token(ci_forge.user()))
    people["nobody"] = gitlab.Gitlab(ci_forge.url)

    def code(person: str, method: str, path: str) -> int:
        try:
            path = f"/projects/{workspace.id}{path}"
            people[person].http_request(method, path, post_data={"ref": "main"})
        except gitlab.GitlabError as error:
            return error.response_code or 0
        return 200

    for path in (f"/pipelines/{pipeline.id}", f"/jobs/{job.id}", f"/jobs/{job.id}/trace"):
        assert [code(p, "get", path) for p in people] == [200, 200, 404, 404], path
    # A Developer may not change a protected branch, nor start pipelines for it (GitLab's 400).
    assert [code(p, "post", "/pipeline") for p in people] == [403, 400, 404, 401]
    # Nor touch its jobs: a job of a protected branch sees protected variables.
    changes = [f"/jobs/{job.id}/{verb}" for verb in ("cancel", "retry", "play", "erase")]
    changes += [f"/pipelines/{pipeline.id}/cancel", f"/pipelines/{pipeline.id}/retry"]
    changes += [f"/jobs/{job.id}/artifacts/keep"]
    for path in changes:
        assert [code(p, "post", path) for p in people] == [403, 403, 404, 401], path
    assert workspace.job(sha).status == "pending"
    # Who may merge there may; no push is needed.
    workspace.api.protectedbranches.update("main", {"allowed_to_merge": [{"access_level": 30}]})
    assert code("developer", "post", f"/jobs/{job.id}/cancel") == 200
    # A log is erased by Maintainers, and by the job's own person where nothing is protected.
    workspace.api.protectedbranches.delete("main")
    assert code("developer", "post", f"/jobs/{job.id}/erase") == 403
    people["developer"].projects.get(workspace.id).pipelines.create({"ref": "main"})
    theirs = workspace.pipelines()[0].jobs.list()[0].id
    assert code("developer", "post", f"/jobs/{theirs}/cancel") == 200
    workspace.api.protectedbranches.create({"name": "ma*", "push_access_level": 30})
    assert code("developer", "post", f"/jobs/{theirs}/erase") == 403
    workspace.api.protectedbranches.delete("ma*")
    assert code("developer", "post", f"/jobs/{theirs}/erase") == 200
    for path in ("/pipeline", f"/jobs/{job.id}/cancel", f"/pipelines/{pipeline.id}/retry"):
        assert [code(p, "post", path) for p in people] == [403, 200, 404, 401], path
    assert code("developer", "get", "/variables") == 403
    assert code("developer", "delete", f"/pipelines/{pipeline.id}") == 403


def test_pipelines_of_one_person_only(start_forge: StartForge, tmp_path: Path) -> None:
    forge = start_forge(arguments=["--pipelines-of", "owner"])
    forge.user("owner")
    workspace = Workspace(forge, tmp_path)
    assert workspace.pipelines(sha=workspace.push("job: {script: x}")) == []
    with pytest.raises(gitlab.GitlabCreateError) as caught:
        workspace.api.pipelines.create({"ref": "main"})
    assert caught.value.response_code == 403
    forge.administration.add_member(workspace.path, "owner", "maintainer")
    url = forge.git_url(workspace.path, "owner", forge.token("owner"))
    run_git("commit", "--quiet", "--allow-empty", "-m", "Mine", cwd=workspace.clone)
    run_git("push", "--quiet", url, "HEAD:main", cwd=workspace.clone)
    (pipeline,) = workspace.pipelines()
    assert pipeline.status == "pending"


def test_bad_requests(workspace: Workspace) -> None:
    http = httpx.Client(
        base_url=f"{workspace.forge.url}/api/v4/projects/{workspace.id}",
        headers={"PRIVATE-TOKEN": workspace.token},
        trust_env=False,
    )
    for method, path, code in (
        ("GET", "/pipelines?status=nope", 400),
        ("GET", "/pipelines?updated_after=nope", 400),
        ("GET", "/pipelines/999999", 404),
        ("GET", "/pipelines/99999999999999999999999", 400),
        ("GET", "/jobs?scope[]=nope", 400),
        ("GET", "/jobs?scope[]=pending&scope[]=running", 200),
        ("GET", "/jobs/999999/trace", 404),
        ("POST", "/pipeline", 400),
        ("POST", "/pipeline?ref=nope", 400),
        ("POST", "/jobs/999999/retry", 404),
    ):
        assert http.request(method, path).status_code == code, (method, path)
    assert (
        http.post(
            "/pipeline", content=b"[1", headers={"Content-Type": "application/json"}
        ).status_code
        == 400
    )
    made = http.post("/pipeline", json={"ref": "main", "variables": [{"key": "A", "value": "b"}]})
    assert made.status_code == 201
    found = http.get(f"/pipelines/{made.json()['id']}/variables").json()
    assert found == [{"key": "A", "value": "b", "variable_type": "env_var"}]

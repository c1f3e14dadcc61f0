"""Commit statuses, comparison and deploy tokens, as python-gitlab and git see them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gitlab
import httpx
import pytest
from gitlab.exceptions import GitlabError

from forge_fixtures import ForgeProcess, run_git
from notebooks_service.forge import access, deploy_tokens
from runner_fixtures import RawRunner, Workspace


@pytest.fixture
def space(ci_forge: ForgeProcess, tmp_path: Path) -> Workspace:
    return Workspace(ci_forge, tmp_path)


def refused(call: Callable[[], object]) -> tuple[int | None, str]:
    with pytest.raises(GitlabError) as error:
        call()
    return error.value.response_code, str(error.value.error_message)


def member(space: Workspace, level: str) -> Any:
    name = space.forge.user()
    space.forge.administration.add_member(space.path, name, level)
    client = gitlab.Gitlab(space.forge.url, private_token=space.forge.token(name))
    return client.projects.get(space.id)


def test_a_status_makes_a_pipeline_of_its_own(space: Workspace) -> None:
    """https://docs.gitlab.com/api/commits/#set-commit-pipeline-status"""
    sha = run_git("rev-parse", "HEAD", cwd=space.clone).strip()
    commit = space.api.commits.get(sha)
    assert commit.statuses.list(get_all=True) == []
    made = commit.statuses.create(
        {
            "state": "pending",
            "context": "jenkins",
            "target_url": "https://ci.example/1",
            "description": "waits",
            "coverage": 98.5,
        }
    )
    assert (made.status, made.name, made.ref, made.sha) == ("pending", "jenkins", "main", sha)
    assert (made.target_url, made.description) == ("https://ci.example/1", "waits")
    assert made.coverage == 98.5 and made.author["username"] == space.username
    pipeline = space.pipeline(sha)
    assert (pipeline.source, pipeline.status, pipeline.id) == (
        "external",
        "pending",
        made.pipeline_id,
    )
    running = commit.statuses.create({"state": "running", "name": "jenkins"})
    assert running.id == made.id and running.started_at and running.description == "waits"
    again = refused(lambda: commit.statuses.create({"state": "running", "name": "jenkins"}))
    assert again == (
        400,
        'Cannot transition status via :run from :running (Reason(s): Status cannot transition via "run")',
    )
    commit.statuses.create({"state": "failed", "name": "jenkins"})
    assert space.pipeline(sha).status == "failed"
    # After its end a name begins anew, and stands for itself.
    third = commit.statuses.create({"state": "success", "name": "jenkins"})
    assert third.id != made.id and space.pipeline(sha).status == "success"
    assert [one.id for one in commit.statuses.list(get_all=True)] == [third.id]
    assert len(commit.statuses.list(all=True, get_all=True)) == 2
    assert space.api.commits.get(sha).status == "success"
    # No runner is ever offered it, and it is in no list of jobs.
    assert RawRunner(space.forge).request().status_code == 204
    assert space.api.jobs.list(get_all=True) == []


def test_a_status_joins_the_pipeline_that_is_there(space: Workspace) -> None:
    sha = space.push("job: {script: x}")
    runner = RawRunner(space.forge)
    runner.put(runner.take(), "success")
    commit = space.api.commits.get(sha)
    commit.statuses.create({"state": "failed", "name": "lint"})
    pipeline = space.pipeline(sha)
    assert (pipeline.source, pipeline.status) == ("push", "failed")
    every = commit.statuses.list(get_all=True)
    assert {(one.name, one.status) for one in every} == {("job", "success"), ("lint", "failed")}
    assert [one.name for one in commit.statuses.list(stage="external", get_all=True)] == ["lint"]
    other = commit.statuses.create({"state": "success", "name": "lint", "ref": "elsewhere"})
    assert other.pipeline_id != pipeline.id and other.ref == "elsewhere"
    pinned = {"state": "success", "name": "x", "pipeline_id": pipeline.id}
    assert commit.statuses.create(pinned).pipeline_id == pipeline.id


def test_who_may_report(space: Workspace) -> None:
    sha = run_git("rev-parse", "HEAD", cwd=space.clone).strip()

    def report(project: Any, **values: Any) -> Any:
        body = {"state": "success", **values}
        return project.commits.get(sha, lazy=True).statuses.create(body)

    # Developers may; on a protected branch only who may change it.
    developer = member(space, "developer")
    assert refused(lambda: report(developer))[0] == 403
    space.api.protectedbranches.update("main", {"allowed_to_push": [{"access_level": 30}]})
    assert report(developer).status == "success"
    assert refused(lambda: report(member(space, "reporter")))[0] == 403
    nobody = gitlab.Gitlab(space.forge.url).projects.get(space.id, lazy=True)
    assert refused(lambda: report(nobody))[0] == 401
    for wrong, code in (
        ({"state": "done"}, 400),
        ({"pipeline_id": 10**6}, 404),
        ({"coverage": "much"}, 400),
        ({"target_url": "javascript:alert(1)"}, 400),
    ):
        assert refused(lambda wrong=wrong: report(space.api, **wrong))[0] == code
    missing = space.api.commits.get("f" * 40, lazy=True)
    assert refused(lambda: missing.statuses.create({"state": "success"}))[0] == 404
    assert refused(lambda: missing.statuses.list())[0] == 404


def test_comparing(space: Workspace) -> None:
    """https://docs.gitlab.com/api/repositories/#compare-branches-tags-or-commits"""
    base = run_git("rev-parse", "HEAD", cwd=space.clone).strip()
    # No job of this test may wait for a runner of the next.
    side = space.push(branch="side", files={"new.txt": "one\n"}, options=("ci.skip",))
    run_git("checkout", "--quiet", "main", cwd=space.clone)
    main = space.push(files={"README.md": "# Other\n"}, options=("ci.skip",))
    found = space.api.repository_compare("main", "side")
    assert [one["id"] for one in found["commits"]] == [side]
    assert {one["new_path"] for one in found["diffs"]} == {"new.txt", "counter"}
    assert found["compare_same_ref"] is False
    straight = space.api.repository_compare("main", "side", straight=True)
    assert "README.md" in {one["new_path"] for one in straight["diffs"]}
    plain = next(one for one in found["diffs"] if one["new_path"] == "new.txt")
    assert plain["diff"] == "@@ -0,0 +1 @@\n+one\n" and plain["new_file"]
    unified = space.api.repository_compare("main", "side", unidiff=True)
    text = next(one for one in unified["diffs"] if one["new_path"] == "new.txt")["diff"]
    assert text == "--- /dev/null\n+++ b/new.txt\n@@ -0,0 +1 @@\n+one\n"
    changed = space.api.commits.get(main).diff(unidiff=True, get_all=True)
    assert any(one["diff"].startswith("--- a/README.md\n+++ b/README.md\n") for one in changed)
    merge_base = space.api.repository_merge_base(["main", "side"])
    assert merge_base["id"] == base
    own = space.api.repository_compare("main", "side", from_project_id=space.id)
    assert own["commit"]["id"] == side
    fork = refused(lambda: space.api.repository_compare("main", "side", from_project_id=10**6))
    assert fork == (400, f"Target project id:1000000 is not a fork of project id:{space.id}")
    assert refused(lambda: space.api.repository_compare("main", "none"))[0] == 404


def test_deploy_tokens(space: Workspace) -> None:
    """https://docs.gitlab.com/user/project/deploy_tokens/"""
    forge = space.forge
    made = space.api.deploytokens.create({"name": "ci", "scopes": ["read_repository"]})
    assert made.username == f"gitlab+deploy-token-{made.id}" and made.token.startswith("gldt-")
    [listed] = space.api.deploytokens.list(get_all=True)
    assert listed.name == "ci" and not hasattr(listed, "token")
    assert (listed.revoked, listed.expired, listed.expires_at) == (False, False, None)
    good = forge.git_url(space.path, made.username, made.token)
    assert "refs/heads/main" in run_git("ls-remote", good)
    # It reads. It neither pushes nor is it known to the API.
    pushed = run_git("push", good, "HEAD:refs/heads/x", check=False, cwd=space.clone)
    assert "You are not allowed to push code to this project." in pushed
    headers = {"PRIVATE-TOKEN": made.token}
    assert httpx.get(f"{forge.url}/api/v4/projects/{space.id}", headers=headers).status_code == 401
    assert refused(lambda: member(space, "developer").deploytokens.list())[0] == 403
    other = Workspace(forge, space.clone.parent / "other")
    address = f"{forge.url}/{{}}.git/info/refs?service=git-upload-pack"

    def code(path: str, name: str, token: str) -> int:
        return httpx.get(address.format(path), auth=(name, token)).status_code

    assert code(other.path, made.username, made.token) == 404
    assert code(space.path, "oauth2", made.token) == 401
    registry = space.api.deploytokens.create(
        {"name": "r", "scopes": ["read_registry", "write_registry"], "username": "robot"}
    )
    assert code(space.path, "robot", registry.token) == 403
    old = space.api.deploytokens.create(
        {"name": "old", "scopes": ["read_repository"], "expires_at": "2020-01-01"}
    )
    assert old.expired and code(space.path, old.username, old.token) == 401
    group = space.gitlab.groups.create({"name": "G", "path": f"g-{space.username}"})
    of_group = group.deploytokens.create({"name": "g", "scopes": ["read_repository"]})
    assert code(space.path, of_group.username, of_group.token) == 404
    space.api.transfer(group.id)
    inside = f"g-{space.username}/thing"
    assert code(inside, of_group.username, of_group.token) == 200
    with forge.administration.database.read() as session:
        project = access.project_by_path(session, inside)
        row = deploy_tokens.find(session, "robot", registry.token)
        assert project is not None and row is not None
        assert deploy_tokens.scopes_for(session, row, project) == {
            "read_registry",
            "write_registry",
        }
        assert deploy_tokens.find(session, "other", registry.token) is None
    made.delete()
    assert code(inside, made.username, made.token) == 401
    for wrong in ({"name": "x", "scopes": []}, {"name": "x", "scopes": ["api"]}):
        assert refused(lambda wrong=wrong: space.api.deploytokens.create(wrong))[0] == 400


def test_jobs_of_other_projects_come_in_if_named(space: Workspace, tmp_path: Path) -> None:
    """https://docs.gitlab.com/ci/jobs/ci_job_token/#control-job-token-access-to-your-project"""
    target = Workspace(space.forge, tmp_path / "target")
    space.forge.administration.add_member(target.path, space.username, "maintainer")
    space.push("job: {script: x}")
    runner = RawRunner(space.forge)
    job = runner.take()
    url = f"{space.forge.url}/api/v4/projects/{target.id}"
    git = f"{space.forge.url}/{target.path}.git/info/refs?service=git-upload-pack"

    def codes() -> tuple[int, int]:
        api = httpx.get(f"{url}/repository/tree", headers={"JOB-TOKEN": job["token"]})
        return api.status_code, httpx.get(git, auth=("gitlab-ci-token", job["token"])).status_code

    assert codes() == (403, 404)
    told = httpx.get(url, headers={"JOB-TOKEN": job["token"]}).json()["message"]
    assert "Authentication by CI/CD job token not allowed from thing to thing." in told
    scope = target.api.job_token_scope.get()
    assert scope.inbound_enabled is True
    mine = target.gitlab.projects.get(target.id)
    allowlist = mine.job_token_scope.get().allowlist
    space.forge.administration.add_member(space.path, target.username, "reporter")
    allowlist.create({"target_project_id": space.id})
    assert sorted(one.id for one in allowlist.list(get_all=True)) == sorted([space.id, target.id])
    assert codes() == (200, 200)
    allowlist.delete(space.id)
    assert codes() == (403, 404)
    scope.enabled = False
    scope.save()
    assert codes() == (200, 200)
    me = next(
        one.id for one in space.api.members.list(get_all=True) if one.username == space.username
    )
    # An administrator sees every project, a job of theirs only those that they are a member of.
    target.gitlab.http_delete(f"/projects/{target.id}/members/{me}")
    space.forge.user(space.username, admin=True)
    assert httpx.get(url, headers={"PRIVATE-TOKEN": space.token}).status_code == 200
    assert codes() == (403, 404)
    runner.put(job, "success")
    assert codes() == (401, 401)

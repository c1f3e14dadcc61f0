"""Protected branches and tags: the API by python-gitlab, the pushes by git, the rules as tables."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gitlab
import httpx
import pytest
from gitlab.exceptions import GitlabError
from hypothesis import given, settings
from hypothesis import strategies as st

from forge_fixtures import ForgeProcess, run_git
from notebooks_service.forge.hooks import pre_receive
from notebooks_service.forge.hooks.pre_receive import BranchRule, Rules
from runner_fixtures import Workspace

ZERO = "0" * 40
OLD, NEW = "a" * 40, "b" * 40
NAMES = st.text(alphabet="ab/*.-", max_size=12)


@given(NAMES, NAMES)
@settings(max_examples=300, deadline=None)
def test_a_wildcard_matches_as_a_pattern_does(pattern: str, name: str) -> None:
    expected = re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), name, re.DOTALL)
    assert pre_receive.matches(pattern, name) is (expected is not None)


def test_a_wicked_pattern_is_quick() -> None:
    assert not pre_receive.matches("*a" * 120 + "*b", "a" * 250)


def rules(**more: Any) -> Rules:
    found: dict[str, Any] = {
        "project": "g/p",
        "members": "http://f/g/p/-/project_members",
        "default_branch": "main",
        "empty": False,
        "maintainer": False,
        "web": False,
        "branches": [],
        "tags": [],
        **more,
    }
    return found  # type: ignore[return-value]


def branch(name: str, *allowed: str) -> BranchRule:
    return {
        "name": name,
        "push": "push" in allowed,
        "merge": "merge" in allowed,
        "force": "force" in allowed,
    }


BOTH = [branch("re*", "push"), branch("*", "force")]


@pytest.mark.parametrize(
    ("old", "new", "ref", "more", "sentence"),
    [
        (OLD, NEW, "refs/heads/x", {}, None),
        (OLD, NEW, "refs/heads/main", {"branches": [branch("main")]}, pre_receive.PUSH),
        (OLD, NEW, "refs/heads/main", {"branches": [branch("main", "push")]}, None),
        (NEW, OLD, "refs/heads/main", {"branches": [branch("main", "push")]}, pre_receive.FORCE_PUSH),
        (NEW, OLD, "refs/heads/main", {"branches": [branch("main", "push", "force")]}, None),
        # Force allowed says nothing about who may push.
        (NEW, OLD, "refs/heads/main", {"branches": [branch("main", "force")]}, pre_receive.PUSH),
        # Of several rules the kindest counts.
        (NEW, OLD, "refs/heads/rel/1", {"branches": BOTH}, None),
        (ZERO, NEW, "refs/heads/r", {"branches": [branch("r*")]}, pre_receive.CREATE),
        (ZERO, NEW, "refs/heads/r", {"branches": [branch("r*", "merge")]}, pre_receive.CREATE_FROM),
        (ZERO, OLD, "refs/heads/r", {"branches": [branch("r*", "merge"), branch("main")]}, pre_receive.CREATE_WEB),
        (ZERO, OLD, "refs/heads/r", {"branches": [branch("r*", "merge"), branch("main")], "web": True}, None),
        (OLD, ZERO, "refs/heads/main", {"maintainer": True, "web": True}, pre_receive.DELETE_DEFAULT),
        (OLD, ZERO, "refs/heads/r", {"branches": [branch("r", "push")]}, pre_receive.DELETE),
        (OLD, ZERO, "refs/heads/r", {"branches": [branch("r")], "maintainer": True}, pre_receive.DELETE_WEB),
        (OLD, ZERO, "refs/heads/r", {"branches": [branch("r")], "maintainer": True, "web": True}, None),
        (ZERO, NEW, f"refs/heads/{OLD}", {}, pre_receive.HEX_BRANCH),
        (ZERO, NEW, f"refs/heads/{OLD}/x", {}, pre_receive.HEX_BRANCH),
        (ZERO, NEW, f"refs/heads/{OLD}-x", {}, None),
        (ZERO, NEW, "refs/heads/x", {"empty": True, "maintainer": True}, None),
        (ZERO, NEW, "refs/tags/v1", {}, None),
        (ZERO, NEW, "refs/tags/main", {}, pre_receive.TAG_DEFAULT),
        (ZERO, NEW, f"refs/tags/{OLD}", {}, pre_receive.TAG_SHA),
        (ZERO, NEW, "refs/tags/v1", {"tags": [{"name": "v*", "create": False}]}, pre_receive.TAG_CREATE),
        (ZERO, NEW, "refs/tags/v1", {"tags": [{"name": "v*", "create": True}]}, None),
        (OLD, NEW, "refs/tags/v1", {"tags": [{"name": "v*", "create": True}]}, pre_receive.TAG_UPDATE),
        (OLD, ZERO, "refs/tags/v1", {"tags": [{"name": "v*", "create": True}]}, pre_receive.TAG_DELETE),
        (OLD, ZERO, "refs/tags/v1", {"tags": [{"name": "v*", "create": True}], "maintainer": True}, pre_receive.TAG_DELETE_WEB),
        (OLD, NEW, "refs/notes/x", {}, None),
        (OLD, NEW, "refs/pipelines/1", {}, pre_receive.OTHER_REF),
    ],
)  # fmt: skip
def test_what_an_update_is_refused_for(
    old: str, new: str, ref: str, more: dict[str, Any], sentence: str | None
) -> None:
    """https://docs.gitlab.com/user/project/repository/branches/protected/"""
    found = pre_receive.refusal(
        old,
        new,
        ref,
        rules(**more),
        is_ancestor=lambda first, second: (first, second) == (OLD, NEW),
        branches_with=lambda sha: ["main"] if sha == OLD else ["other"],
    )
    assert found == sentence


def refused(call: Callable[[], object]) -> tuple[int | None, str]:
    with pytest.raises(GitlabError) as error:
        call()
    return error.value.response_code, str(error.value.error_message)


def developer(space: Workspace) -> tuple[str, Any]:
    """The address of the project for a new Developer, and their python-gitlab project."""
    name = space.forge.user()
    space.forge.administration.add_member(space.path, name, "developer")
    token = space.forge.token(name)
    client = gitlab.Gitlab(space.forge.url, private_token=token)
    return space.forge.git_url(space.path, name, token), client.projects.get(space.id)


def push(space: Workspace, address: str, *what: str) -> str:
    return run_git("push", address, *what, check=False, cwd=space.clone)


def test_protecting_branches(forge: ForgeProcess, tmp_path: Path) -> None:
    """https://docs.gitlab.com/api/protected_branches/"""
    space = Workspace(forge, tmp_path)
    manager = space.api.protectedbranches
    [main] = manager.list(get_all=True)
    # The default branch is protected from its first push on.
    assert (main.name, main.allow_force_push) == ("main", False)
    assert main.push_access_levels[0]["access_level"] == 40
    assert main.push_access_levels[0]["access_level_description"] == "Maintainers"
    assert main.merge_access_levels[0]["access_level"] == 40
    made = manager.create({"name": "rel/*", "push_access_level": 30, "merge_access_level": 0})
    assert [one["access_level"] for one in made.push_access_levels] == [30]
    assert manager.get("rel/*").merge_access_levels[0]["access_level_description"] == "No one"
    conflict = refused(lambda: manager.create({"name": "rel/*"}))
    assert conflict == (409, "Protected branch 'rel/*' already exists")
    assert refused(lambda: manager.create({"name": "x", "push_access_level": 20}))[0] == 400
    people = {"name": "y", "allowed_to_push": [{"user_id": 1}]}
    assert refused(lambda: manager.create(people))[0] == 501
    assert refused(lambda: manager.get("none"))[0] == 404

    theirs, their_project = developer(space)
    mine = forge.git_url(space.path, space.username, space.token)
    run_git("commit", "--quiet", "--allow-empty", "-m", "More", cwd=space.clone)
    assert "new branch" in push(space, theirs, "HEAD:refs/heads/rel/1")
    assert pre_receive.PUSH in push(space, theirs, "HEAD:main")
    run_git("commit", "--quiet", "--amend", "--allow-empty", "-m", "Other", cwd=space.clone)
    assert pre_receive.FORCE_PUSH in push(space, theirs, "-f", "HEAD:refs/heads/rel/1")
    assert pre_receive.DELETE in push(space, theirs, ":refs/heads/rel/1")
    assert pre_receive.DELETE_WEB in push(space, mine, ":refs/heads/rel/1")
    forced = manager.get("rel/*")
    forced.allow_force_push = True
    forced.save()
    assert "forced update" in push(space, theirs, "-f", "HEAD:refs/heads/rel/1")
    manager.update("rel/*", {"allowed_to_push": [{"access_level": 40}]})
    shown = their_project.branches.get("rel/1")
    assert (shown.protected, shown.can_push, shown.developers_can_push) == (True, False, False)
    assert refused(lambda: their_project.branches.delete("rel/1"))[0] == 403
    body = {"branch": "rel/2", "ref": "main"}
    assert refused(lambda: their_project.branches.create(body))[0] == 403
    space.api.branches.delete("rel/1")
    # Nobody at all, the Owner included.
    manager.create({"name": "frozen", "push_access_level": 0})
    assert pre_receive.CREATE_WEB in push(space, mine, "origin/main:refs/heads/frozen")
    space.api.branches.create({"branch": "frozen", "ref": "main"})
    assert pre_receive.PUSH in push(space, mine, "HEAD:refs/heads/frozen")
    change = {"branch": "frozen", "content": "x", "commit_message": "m", "file_path": "f"}
    assert refused(lambda: space.api.files.create(change))[0] == 403
    # Without protection a Developer pushes to the default branch too, and nobody deletes it.
    manager.delete("main")
    assert "HEAD -> main" in push(space, theirs, "HEAD:main")
    assert pre_receive.DELETE_DEFAULT in push(space, mine, ":main")
    assert [one.name for one in their_project.protectedbranches.list()] == ["rel/*", "frozen"]
    assert refused(lambda: their_project.protectedbranches.delete("frozen"))[0] == 403


def test_protecting_tags(forge: ForgeProcess, tmp_path: Path) -> None:
    """https://docs.gitlab.com/api/protected_tags/"""
    space = Workspace(forge, tmp_path)
    made = space.api.protectedtags.create({"name": "v*", "create_access_level": 40})
    assert made.create_access_levels[0]["access_level_description"] == "Maintainers"
    assert [one.name for one in space.api.protectedtags.list(get_all=True)] == ["v*"]
    theirs, their_project = developer(space)
    mine = forge.git_url(space.path, space.username, space.token)
    assert pre_receive.TAG_CREATE in push(space, theirs, "HEAD:refs/tags/v1")
    assert "new tag" in push(space, theirs, "HEAD:refs/tags/w1")
    assert refused(lambda: their_project.tags.create({"tag_name": "v1", "ref": "main"}))[0] == 403
    assert "new tag" in push(space, mine, "HEAD:refs/tags/v1")
    assert space.api.tags.get("v1").protected and not space.api.tags.get("w1").protected
    run_git("commit", "--quiet", "--allow-empty", "-m", "More", cwd=space.clone)
    assert pre_receive.TAG_UPDATE in push(space, mine, "-f", "HEAD:refs/tags/v1")
    assert pre_receive.TAG_DELETE_WEB in push(space, mine, ":refs/tags/v1")
    assert refused(lambda: their_project.tags.delete("v1"))[0] == 403
    space.api.tags.delete("v1")
    space.api.protectedtags.delete("v*")
    assert "new tag" in push(space, theirs, "HEAD:refs/tags/v1")


def test_a_moved_project_is_still_found(forge: ForgeProcess, tmp_path: Path) -> None:
    """https://docs.gitlab.com/api/rest/#redirects and, for git, …/user/project/repository/#repository-path-changes"""
    space = Workspace(forge, tmp_path)
    old = space.path
    client = space.gitlab
    group = client.groups.create({"name": "New", "path": f"new-{space.username}"})
    client.projects.update(space.id, {"path": "second"})
    project = client.projects.get(space.id)
    project.transfer(group.id)
    path = client.projects.get(space.id).path_with_namespace
    assert path == f"new-{space.username}/second"
    for gone in (old, f"{space.username}/second"):
        assert client.projects.get(gone).id == space.id
        address = f"{forge.url}/api/v4/projects/{gone.replace('/', '%2F')}"
        headers = {"PRIVATE-TOKEN": space.token}
        answer = httpx.get(f"{address}/repository/tree?ref=main", headers=headers)
        target = f"{forge.url}/api/v4/projects/{space.id}/repository/tree?ref=main"
        assert (answer.status_code, answer.headers["location"]) == (301, target)
        assert answer.text == f"This resource has been moved permanently to {target}"
        changed = httpx.put(address, headers=headers, json={"description": "x"})
        assert changed.status_code == 405
        assert "Non GET methods are not allowed for moved projects" in changed.text
        # Who may not see it learns nothing of the move.
        assert httpx.get(address).status_code == 404
    address = forge.git_url(old, space.username, space.token)
    assert "refs/heads/main" in run_git("ls-remote", address)
    run_git("commit", "--quiet", "--allow-empty", "-m", "More", cwd=space.clone)
    pushed = push(space, address, "HEAD:main")
    assert f"remote: Project '{old}' was moved to '{path}'." in pushed
    assert f"remote:   git remote set-url origin {forge.url}/{path}.git" in pushed
    asked = {"operation": "download", "objects": [{"oid": "0" * 64, "size": 1}]}
    batch = httpx.post(f"{address}/info/lfs/objects/batch", json=asked)
    assert (batch.status_code, batch.json()["objects"][0]["error"]["code"]) == (200, 404)
    # Another project takes the path: from now on it is that one's.
    taken = client.projects.create({"name": "thing", "path": old.split("/")[1]})
    assert client.projects.get(old).id == taken.id != space.id
    assert refused(lambda: project.transfer(group.id))[0] == 400
    stranger = gitlab.Gitlab(forge.url, private_token=forge.token(forge.user()))
    assert refused(lambda: stranger.projects.get(path))[0] == 404


def test_projects_of_a_renamed_group_are_still_found(forge: ForgeProcess, tmp_path: Path) -> None:
    """https://docs.gitlab.com/api/groups/#update-group-attributes"""
    person = forge.user()
    old, new = f"old_{person}", f"new-{person}"
    space = Workspace(forge, tmp_path, f"{old}/sub/thing")
    client = space.gitlab
    group = client.groups.get(old)
    # An underscore is no wildcard: this one stays where it is.
    other = client.groups.create({"name": "Other", "path": f"oldx{person}"})
    beside = client.projects.create({"name": "thing", "namespace_id": other.id})
    group.path, group.name, group.description = new, "New", "Moved"
    group.save()
    shown = client.groups.get(group.id)
    assert (shown.full_path, shown.name, shown.description) == (new, "New", "Moved")
    assert [one.full_path for one in shown.subgroups.list()] == [f"{new}/sub"]
    assert client.projects.get(space.id).path_with_namespace == f"{new}/sub/thing"
    assert client.projects.get(beside.id).path_with_namespace == f"oldx{person}/thing"
    assert client.projects.get(space.path).id == space.id
    # As at GitLab, a project is found at its old path by the API, a group is not.
    assert refused(lambda: client.groups.get(old))[0] == 404
    address = forge.git_url(space.path, space.username, space.token)
    run_git("commit", "--quiet", "--allow-empty", "-m", "More", cwd=space.clone)
    assert f"was moved to '{new}/sub/thing'" in push(space, address, "HEAD:main")
    # Only capitals: nothing to lead on from.
    shown.path = new.title()
    shown.save()
    assert client.projects.get(f"{new}/sub/thing").path_with_namespace == f"{new.title()}/sub/thing"
    # Whoever takes the group's path has all that lies below it.
    taker = gitlab.Gitlab(forge.url, private_token=forge.token(forge.user()))
    taken = taker.groups.create({"name": "Mine", "path": old})
    assert refused(lambda: client.projects.get(space.path))[0] == 404
    assert "not found" in run_git("ls-remote", address, check=False)
    assert refused(lambda: taker.groups.update(shown.id, {"name": "x"}))[0] == 404
    assert refused(lambda: client.groups.update(shown.id, {"path": old})) == (
        400,
        "{'path': ['has already been taken']}",
    )
    assert refused(lambda: client.groups.update(shown.id, {"path": "a b"}))[0] == 400
    assert refused(lambda: client.groups.update(shown.id, {"name": " "}))[0] == 400
    # A name of a person is a path too.
    taker.groups.update(taken.id, {"path": f"{old}-2"})
    taker.projects.create({"name": "kept", "namespace_id": taken.id})
    taker.groups.update(taken.id, {"path": f"{old}-3"})
    assert taker.projects.get(f"{old}-2/kept").path_with_namespace == f"{old}-3/kept"
    forge.administration.add_user(f"{old}-2", None, f"{old}-2@example.org")
    assert refused(lambda: taker.projects.get(f"{old}-2/kept"))[0] == 404


def test_the_visibility_of_a_group(forge: ForgeProcess) -> None:
    client = gitlab.Gitlab(forge.url, private_token=forge.token(forge.user()))
    group = client.groups.create({"name": "G", "path": forge.user() + "-g", "visibility": "public"})
    below = {"parent_id": group.id, "name": "S", "path": "s", "visibility": "internal"}
    sub = client.groups.create(below)
    assert (
        "sub-groups"
        in refused(lambda: client.groups.update(group.id, {"visibility": "private"}))[1]
    )
    assert "parent" not in client.groups.update(group.id, {"visibility": "internal"})
    project = {"name": "p", "namespace_id": sub.id, "visibility": "internal"}
    made = client.projects.create(project)
    assert (
        "contains projects"
        in refused(lambda: client.groups.update(sub.id, {"visibility": "private"}))[1]
    )
    assert (
        "parent group" in refused(lambda: client.groups.update(sub.id, {"visibility": "public"}))[1]
    )
    assert refused(lambda: client.groups.update(sub.id, {"visibility": "odd"}))[0] == 400
    client.projects.update(made.id, {"visibility": "private"})
    client.groups.update(sub.id, {"visibility": "private"})
    assert client.groups.get(sub.id).visibility == "private"
    # A Maintainer of the group changes nothing of it.
    maintainer = forge.user()
    forge.administration.add_member(group.full_path, maintainer, "maintainer")
    theirs = gitlab.Gitlab(forge.url, private_token=forge.token(maintainer))
    assert refused(lambda: theirs.groups.update(group.id, {"name": "x"}))[0] == 403


def test_the_first_branch_of_a_project_that_the_api_made(forge: ForgeProcess) -> None:
    """Protected whoever made the project and however the branch came; not twice."""
    client = gitlab.Gitlab(forge.url, private_token=forge.token(forge.user()))
    commit = {"branch": "trunk", "content": "x", "commit_message": "m"}
    first = client.projects.create({"name": "by-file"})
    assert first.protectedbranches.list() == []
    first.files.create({"file_path": "f", **commit})
    [row] = first.protectedbranches.list()
    assert (row.name, row.push_access_levels[0]["access_level"]) == ("trunk", 40)
    second = client.projects.create({"name": "covered"})
    second.protectedbranches.create({"name": "tr*", "push_access_level": 30})
    second.files.create({"file_path": "f", **commit})
    assert [one.name for one in second.protectedbranches.list()] == ["tr*"]

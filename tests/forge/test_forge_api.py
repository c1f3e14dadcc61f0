"""GitLab's API with python-gitlab as the client, and httpx where codes and headers are the point."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gitlab
import httpx
import pytest
from gitlab.exceptions import GitlabError

from forge_fixtures import ForgeProcess, make_repository, run_git


@pytest.fixture
def owner(forge: ForgeProcess) -> str:
    return forge.user()


@pytest.fixture
def lab(forge: ForgeProcess, owner: str) -> gitlab.Gitlab:
    return connect(forge, owner)


def connect(forge: ForgeProcess, username: str, *scopes: str) -> gitlab.Gitlab:
    client = gitlab.Gitlab(forge.url, private_token=forge.token(username, *scopes))
    client.auth()
    return client


@pytest.fixture
def project(forge: ForgeProcess, lab: gitlab.Gitlab, owner: str, tmp_path: Path) -> Any:
    """``<owner>/thing``: three commits, a branch, an annotated tag."""
    source = tmp_path / "source"
    make_repository(
        source,
        {"a.txt": "1\n", "data/x.csv": "x\n"},
        {"a.txt": "2\n"},
        {"data/ü und %.txt": "3\n", "run.sh": "#!/bin/sh\n"},
    )
    run_git("tag", "-a", "v1", "-m", "first", "HEAD~1", cwd=source)
    run_git("branch", "feat/x", "HEAD~1", cwd=source)
    return lab.projects.get(forge.project(source, f"{owner}/thing", owner))


def refused(call: Callable[[], object]) -> tuple[int | None, str]:
    with pytest.raises(GitlabError) as error:
        call()
    return error.value.response_code, str(error.value.error_message)


# People and tokens


def test_me_and_version(forge: ForgeProcess, lab: gitlab.Gitlab, owner: str) -> None:
    assert lab.user is not None
    assert lab.user.username == owner
    assert lab.user.email == f"{owner}@example.org"
    version, _ = lab.version()
    # oauthenticator takes the numbers before the dash.
    assert [int(part) for part in version.split("-")[0].split(".")] >= [17, 0, 0]
    assert lab.http_get("/metadata")["enterprise"] is False
    assert httpx.get(f"{forge.url}/api/v4/version").status_code == 401


def test_people(forge: ForgeProcess, lab: gitlab.Gitlab, owner: str) -> None:
    [found] = lab.users.list(username=owner.upper(), get_all=True)
    assert found.username == owner
    assert not hasattr(found, "email")
    assert lab.users.get(found.id).name == owner.title()
    assert refused(lambda: lab.users.get(10**9)) == (404, "404 User Not Found")
    assert (
        refused(lambda: lab.users.create({"email": "a@b", "username": "x", "name": "x"}))[0] == 403
    )
    admin = connect(forge, forge.user(admin=True))
    values = {
        "email": "zoe@x.org",
        "username": f"{owner}.zoe",
        "name": "Zoë 張",
        "password": "12345678",
    }
    zoe = admin.users.create(values)
    assert (zoe.name, zoe.email) == ("Zoë 張", "zoe@x.org")
    assert refused(lambda: admin.users.create(values)) == (409, "Username has already been taken")
    token = zoe.personal_access_tokens.create({"name": "t", "scopes": ["read_user"]})
    hers = gitlab.Gitlab(forge.url, private_token=token.token)
    hers.auth()
    assert hers.user is not None and hers.user.id == zoe.id
    assert hers.personal_access_tokens.get("self").scopes == ["read_user"]
    assert refused(lambda: hers.projects.list())[0] == 403
    hers.personal_access_tokens.delete("self")
    assert refused(hers.auth)[0] == 401


def test_tokens_are_taken_where_gitlab_takes_them(forge: ForgeProcess, owner: str) -> None:
    token = forge.token(owner)
    url = f"{forge.url}/api/v4/user"
    for headers, query in (
        ({"PRIVATE-TOKEN": token}, {}),
        ({"Authorization": f"Bearer {token}"}, {}),
        ({}, {"private_token": token}),
        ({}, {"access_token": token}),
    ):
        assert httpx.get(url, headers=headers, params=query).json()["username"] == owner
    for headers in ({}, {"PRIVATE-TOKEN": "wrong"}, {"Authorization": "Bearer wrong"}):
        answer = httpx.get(url, headers=headers)
        assert (answer.status_code, answer.json()) == (401, {"message": "401 Unauthorized"})


# Groups, projects, members


def test_groups_of_any_depth(lab: gitlab.Gitlab, owner: str) -> None:
    parent = None
    names = [f"top-{owner}", "Sub.Group", "deeper", "deepest"]
    for name in names:
        values = {"name": f"Gruppe {name}", "path": name, "visibility": "internal"}
        parent = lab.groups.create({**values, **({"parent_id": parent.id} if parent else {})})
    assert parent is not None
    assert parent.full_path == "/".join(names)
    assert lab.groups.get("/".join(names).lower()).id == parent.id
    top = lab.groups.get(names[0])
    assert [one.full_path for one in top.subgroups.list(get_all=True)] == ["/".join(names[:2])]
    assert len(top.descendant_groups.list(get_all=True)) == 3
    project = lab.projects.create({"name": "Thing", "namespace_id": parent.id})
    found = lab.projects.get("/".join([*names, "thing"]))
    assert found.id == project.id
    assert found.namespace["full_path"] == "/".join(names)
    assert found.permissions == {
        "project_access": None,
        "group_access": {"access_level": 50, "notification_level": 3},
    }
    assert [one.id for one in parent.projects.list(get_all=True)] == [project.id]
    assert [one.id for one in top.projects.list(include_subgroups=True, get_all=True)] == [
        project.id
    ]
    clash = refused(lambda: lab.projects.create({"name": "thing", "namespace_id": parent.id}))
    assert clash[0] == 400 and "taken" in clash[1]
    too_open = {"name": "open", "namespace_id": parent.id, "visibility": "public"}
    assert refused(lambda: lab.projects.create(too_open))[0] == 400


@pytest.mark.parametrize(
    "name", ["0123456789abcdef" * 2 + "01234567", "a.b", "A-Thing_1", "123456"]
)
def test_names_of_projects(lab: gitlab.Gitlab, owner: str, name: str) -> None:
    made = lab.projects.create({"name": f"Datei {name} ü", "path": name})
    assert lab.projects.get(f"{owner}/{name}").id == made.id
    assert lab.projects.get(made.id).path_with_namespace == f"{owner}/{name}"
    assert made.empty_repo is True


def test_a_project_is_found_whatever_stands_in_its_address(
    forge: ForgeProcess, project: Any, owner: str
) -> None:
    headers = {"PRIVATE-TOKEN": forge.token(owner)}
    for name in (f"{owner}%2Fthing", f"{owner}%2fThing", str(project.id)):
        answer = httpx.get(f"{forge.url}/api/v4/projects/{name}", headers=headers)
        assert answer.json()["id"] == project.id
    with_slash = httpx.get(f"{forge.url}/api/v4/projects/{project.id}/", headers=headers)
    assert with_slash.json()["id"] == project.id
    body = httpx.get(f"{forge.url}/api/v4/projects/{project.id}", headers=headers).json()
    assert body["_links"]["self"] == f"{forge.url}/api/v4/projects/{project.id}"
    assert body["http_url_to_repo"] == f"{forge.url}/{owner}/thing.git"
    assert body["default_branch"] == "main"


def test_editing_and_deleting(lab: gitlab.Gitlab, owner: str) -> None:
    made = lab.projects.create({"name": "Edited", "initialize_with_readme": True})
    made.branches.create({"branch": "next", "ref": "main"})
    made.default_branch, made.visibility, made.description = "next", "public", "what it is"
    made.save()
    again = lab.projects.get(made.id)
    assert (again.default_branch, again.visibility) == ("next", "public")
    assert again.branches.get("next").default
    lab.projects.update(made.id, {"path": "renamed"})
    assert lab.projects.get(f"{owner}/renamed").id == made.id
    # The old path leads on: https://docs.gitlab.com/api/rest/#redirects
    assert lab.projects.get(f"{owner}/edited").path == "renamed"
    assert refused(lambda: lab.projects.update(made.id, {"default_branch": "none"}))[0] == 400
    made.delete()
    assert refused(lambda: lab.projects.get(made.id))[0] == 404


def test_lists_of_projects(forge: ForgeProcess, lab: gitlab.Gitlab, owner: str) -> None:
    for name, visibility in (("apple pie", "private"), ("apple", "internal"), ("pear", "public")):
        lab.projects.create({"name": f"{owner} {name}", "visibility": visibility})
    stranger = connect(forge, forge.user())
    anonymous = gitlab.Gitlab(forge.url)

    def names(client: gitlab.Gitlab, **query: object) -> set[str]:
        found = client.projects.list(search=owner, get_all=True, **query)
        return {one.name.removeprefix(f"{owner} ") for one in found}

    assert names(lab) == {"apple pie", "apple", "pear"}
    assert names(stranger) == {"apple", "pear"}
    assert names(anonymous) == {"pear"}
    assert names(lab, membership=True) == {"apple pie", "apple", "pear"}
    assert names(stranger, membership=True) == set()
    assert names(lab, visibility="private") == {"apple pie"}
    assert names(lab, owned=True) == {"apple pie", "apple", "pear"}
    assert names(lab, min_access_level=50) == {"apple pie", "apple", "pear"}
    ordered = lab.projects.list(
        search=owner, order_by="name", sort="asc", simple=True, get_all=True
    )
    assert [one.name.removeprefix(f"{owner} ") for one in ordered] == ["apple", "apple pie", "pear"]
    assert not hasattr(ordered[0], "permissions")


def test_members(forge: ForgeProcess, project: Any, owner: str) -> None:
    other = connect(forge, forge.user())
    assert other.user is not None
    assert refused(lambda: other.projects.get(project.id)) == (404, "404 Project Not Found")
    project.members.create({"user_id": other.user.id, "access_level": 30})
    seen = other.projects.get(project.id)
    assert seen.permissions["project_access"]["access_level"] == 30
    again = refused(lambda: project.members.create({"user_id": other.user.id, "access_level": 30}))
    assert again == (409, "Member already exists")
    assert refused(lambda: seen.members.create({"user_id": 1, "access_level": 10}))[0] == 403
    member = project.members.get(other.user.id)
    member.access_level = 40
    member.save()
    assert seen.members_all.get(other.user.id).access_level == 40
    assert refused(lambda: seen.members.create({"user_id": 1, "access_level": 50}))[0] == 403
    levels = {one.username: one.access_level for one in seen.members_all.list(get_all=True)}
    assert levels == {owner: 50, other.user.username: 40}
    assert refused(lambda: seen.members.delete(project.owner["id"]))[0] == 403
    seen.members.delete(other.user.id)
    assert refused(lambda: other.projects.get(project.id))[0] == 404
    assert refused(lambda: project.members_all.get(other.user.id))[0] == 404


def test_membership_is_inherited_from_groups(
    forge: ForgeProcess, lab: gitlab.Gitlab, owner: str
) -> None:
    top = lab.groups.create({"name": "top", "path": f"inherit-{owner}"})
    sub = lab.groups.create({"name": "sub", "path": "sub", "parent_id": top.id})
    project = lab.projects.create({"name": "deep", "namespace_id": sub.id})
    other = connect(forge, forge.user())
    assert other.user is not None
    top.members.create({"user_id": other.user.id, "access_level": 20})
    seen = other.projects.get(project.id)
    assert seen.permissions["group_access"]["access_level"] == 20
    assert seen.members_all.get(other.user.id).access_level == 20
    assert refused(lambda: seen.members.get(other.user.id))[0] == 404
    project.members.create({"user_id": other.user.id, "access_level": 30})
    assert seen.members_all.get(other.user.id).access_level == 30
    assert [one.id for one in other.projects.list(membership=True, get_all=True)] == [project.id]
    top.members.delete(other.user.id)
    project.members.delete(other.user.id)
    assert refused(lambda: other.projects.get(project.id))[0] == 404
    assert refused(lambda: top.members.delete(lab.user.id))[0] == 403  # type: ignore[union-attr]


ENDPOINTS = (
    "",
    "/members",
    "/members/all",
    "/repository/tree",
    "/repository/branches",
    "/repository/commits",
    "/repository/commits/main",
    "/repository/files/a.txt?ref=main",
    "/repository/compare?from=main&to=main",
    "/search?scope=commits&search=x",
    "/pipelines",
    "/jobs",
    "/registry/repositories",
)


def test_hidden_is_as_missing(forge: ForgeProcess, project: Any) -> None:
    stranger = {"PRIVATE-TOKEN": forge.token(forge.user())}
    for headers in (stranger, {}):
        for endpoint in ENDPOINTS:
            answers = {
                (answer.status_code, answer.text)
                for name in (str(project.id), "9999999", "nobody%2Fnothing")
                for answer in [
                    httpx.get(f"{forge.url}/api/v4/projects/{name}{endpoint}", headers=headers)
                ]
            }
            assert len(answers) == 1, endpoint
            assert answers.pop()[0] in (401, 404)


def test_a_guest_of_a_private_project_reads_no_code(forge: ForgeProcess, project: Any) -> None:
    guest = connect(forge, forge.user())
    assert guest.user is not None
    project.members.create({"user_id": guest.user.id, "access_level": 10})
    seen = guest.projects.get(project.id)
    assert not hasattr(seen, "default_branch")
    for call in (
        seen.repository_tree,
        lambda: seen.commits.list(),
        lambda: seen.branches.list(),
        lambda: seen.files.get("a.txt", ref="main"),
    ):
        assert refused(call)[0] == 403
    project.visibility = "internal"
    project.save()
    assert guest.projects.get(project.id).repository_tree()


def test_public_projects_need_no_token(forge: ForgeProcess, project: Any) -> None:
    project.visibility = "public"
    project.save()
    anonymous = gitlab.Gitlab(forge.url)
    seen = anonymous.projects.get(project.id)
    assert not hasattr(seen, "permissions")
    assert [one["name"] for one in seen.repository_tree()] == ["data", "a.txt", "run.sh"]
    assert seen.files.raw("a.txt", ref="main") == b"2\n"
    assert refused(lambda: seen.branches.create({"branch": "x", "ref": "main"}))[0] == 401
    # A token that is wrong is not the same as none.
    wrong = gitlab.Gitlab(forge.url, private_token="wrong")
    assert refused(lambda: wrong.projects.get(project.id))[0] == 401


# Pages of lists


def test_pages_of_more_than_a_hundred(
    forge: ForgeProcess, lab: gitlab.Gitlab, project: Any, owner: str
) -> None:
    repository = forge.data / "forge" / "repositories" / f"{project.id}.git"
    tip = run_git("rev-parse", "main", cwd=repository).strip()
    for number in range(120):
        file = repository / "refs" / "heads" / f"b{number:03}"
        file.write_text(tip + "\n")
    names = [one.name for one in project.branches.list(get_all=True)]
    assert len(names) == len(set(names)) == 122
    headers = {"PRIVATE-TOKEN": forge.token(owner)}
    url = f"{forge.url}/api/v4/projects/{owner}%2Fthing/repository/branches"
    first = httpx.get(f"{url}?per_page=50&search=b", headers=headers)
    assert {key: first.headers[key] for key in first.headers if key.startswith("x-")} | {} == {
        "x-page": "1",
        "x-per-page": "50",
        "x-next-page": "2",
        "x-prev-page": "",
        "x-total": "120",
        "x-total-pages": "3",
    }
    assert f'<{url}?search=b&page=2&per_page=50>; rel="next"' in first.headers["link"]
    last = httpx.get(f"{url}?per_page=50&search=b&page=3", headers=headers)
    assert (len(last.json()), last.headers["x-next-page"]) == (20, "")
    assert 'rel="next"' not in last.headers["link"]
    assert len(httpx.get(f"{url}?per_page=1000", headers=headers).json()) == 100
    assert len(httpx.get(url, headers=headers).json()) == 20
    assert httpx.get(f"{url}?page=99", headers=headers).json() == []
    assert httpx.get(f"{url}?page=x", headers=headers).status_code == 400
    by_hand = [
        one["name"] for one in lab.http_list(url.removeprefix(f"{forge.url}/api/v4"), iterator=True)
    ]
    assert by_hand == names


def test_pages_of_commits_have_no_totals(
    forge: ForgeProcess, project: Any, owner: str, tmp_path: Path
) -> None:
    clone = tmp_path / "many"
    run_git(
        "clone", "--quiet", forge.git_url(f"{owner}/thing", owner, forge.token(owner)), str(clone)
    )
    shas = make_repository(clone, *({"n": str(number)} for number in range(25)))
    run_git("push", "--quiet", cwd=clone)
    found = [one.id for one in project.commits.list(iterator=True, per_page=10)]
    assert found[:25] == list(reversed(shas)) and len(found) == 28
    page = project.commits.list(page=3, per_page=10)
    assert [one.id for one in page] == found[20:30]
    answer = httpx.get(
        f"{forge.url}/api/v4/projects/{project.id}/repository/commits",
        headers={"PRIVATE-TOKEN": forge.token(owner)},
    )
    assert "x-total" not in answer.headers and answer.headers["x-next-page"] == "2"


# Repositories


def test_trees_and_files(project: Any) -> None:
    assert [(one["type"], one["path"]) for one in project.repository_tree()] == [
        ("tree", "data"),
        ("blob", "a.txt"),
        ("blob", "run.sh"),
    ]
    everything = [one["path"] for one in project.repository_tree(recursive=True, get_all=True)]
    assert everything == ["a.txt", "data", "data/x.csv", "data/ü und %.txt", "run.sh"]
    inside = project.repository_tree(path="data", ref="feat/x")
    assert [one["name"] for one in inside] == ["x.csv"]
    for path in ("none", "a.txt", "../..", "data/none"):
        assert refused(lambda path=path: project.repository_tree(path=path))[0] == 404
    assert refused(lambda: project.repository_tree(ref="none"))[0] == 404
    file = project.files.get("data/ü und %.txt", ref="main")
    assert file.decode() == b"3\n"
    assert project.files.head("a.txt", ref="main")["X-Gitlab-Size"] == "2"
    assert project.files.raw("a.txt", ref="v1") == b"2\n"
    blob = project.repository_blob(file.blob_id)
    assert base64.b64decode(blob["content"]) == b"3\n"
    assert project.repository_raw_blob(file.blob_id) == b"3\n"
    for path, ref in (("none", "main"), ("data", "main"), ("a.txt", "none"), ("../x", "main")):
        assert refused(lambda path=path, ref=ref: project.files.get(path, ref=ref))[0] == 404


def test_raw_content_is_never_a_page(forge: ForgeProcess, project: Any, owner: str) -> None:
    answer = httpx.get(
        f"{forge.url}/api/v4/projects/{project.id}/repository/files/run.sh/raw?ref=main",
        headers={"PRIVATE-TOKEN": forge.token(owner)},
    )
    assert answer.headers["content-type"].startswith("text/plain")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in answer.headers["content-security-policy"]


def test_commits(project: Any) -> None:
    newest, middle, oldest = project.commits.list(get_all=True)
    assert (newest.title, oldest.parent_ids) == ("Commit 3", [])
    assert newest.web_url.endswith(f"/thing/-/commit/{newest.id}")
    for name in (middle.id, middle.id[:8], "feat/x", "v1", "refs/heads/feat/x"):
        assert project.commits.get(name).id == middle.id
    assert project.commits.get(middle.id).stats == {"additions": 1, "deletions": 1, "total": 2}
    for name in ("none", "0" * 40, "main~1", "HEAD@{1}", ":/Commit", "--all", "a..b", "^main", ""):
        assert refused(lambda name=name: project.commits.get(name or "%"))[0] == 404, name
    assert [
        one.id for one in project.commits.list(query_parameters={"path": "a.txt"}, get_all=True)
    ] == [
        middle.id,
        oldest.id,
    ]
    on_branch = project.commits.list(ref_name="feat/x", get_all=True)
    assert [one.id for one in on_branch] == [middle.id, oldest.id]
    assert project.commits.list(author="Nobody", get_all=True) == []
    assert project.commits.list(since="2099-01-01T00:00:00Z", get_all=True) == []
    assert len(project.commits.list(all=True, get_all=True)) == 3
    assert refused(lambda: project.commits.list(ref_name="none"))[0] == 404
    names = {(one["type"], one["name"]) for one in middle.refs(get_all=True)}
    assert names == {("branch", "main"), ("branch", "feat/x"), ("tag", "v1")}
    assert [one["name"] for one in newest.refs(type="branch")] == ["main"]
    [change] = middle.diff(get_all=True)
    assert change["diff"] == "@@ -1 +1 @@\n-1\n+2\n"
    compared = project.repository_compare("feat/x", "main")
    assert [one["id"] for one in compared["commits"]] == [newest.id]
    assert {one["new_path"] for one in compared["diffs"]} == {"data/ü und %.txt", "run.sh"}
    assert project.repository_merge_base(["main", "feat/x"])["id"] == middle.id


def test_search_of_commits(project: Any) -> None:
    assert [one["title"] for one in project.search("commits", "commit 2")] == ["Commit 2"]
    assert project.search("commits", "Commit .") == []
    assert project.search("commits", "--all") == []
    assert refused(lambda: project.search("blobs", "x"))[0] == 501


def test_forty_digits_are_a_commit_even_if_a_branch_is_called_so(
    forge: ForgeProcess, project: Any
) -> None:
    first, *_, last = project.commits.list(get_all=True)
    repository = forge.data / "forge" / "repositories" / f"{project.id}.git"
    run_git("update-ref", f"refs/heads/{last.id}", first.id, cwd=repository)
    assert project.commits.get(last.id).id == last.id


def test_branches_and_tags(project: Any) -> None:
    branches = {one.name: one for one in project.branches.list(get_all=True)}
    assert set(branches) == {"main", "feat/x"}
    main = branches["main"]
    assert (main.default, main.protected, main.can_push) == (True, True, True)
    assert (branches["feat/x"].default, branches["feat/x"].merged) == (False, True)
    assert project.branches.get("feat/x").commit["title"] == "Commit 2"
    made = project.branches.create({"branch": "new/ü", "ref": main.commit["id"]})
    assert made.commit["id"] == main.commit["id"]
    assert [one.name for one in project.branches.list(search="^new")] == ["new/ü"]
    assert refused(lambda: project.branches.create({"branch": "new/ü", "ref": "main"}))[0] == 400
    for name in ("a..b", "a b", "-x", "ab" * 20, "x.lock"):
        assert (
            refused(lambda name=name: project.branches.create({"branch": name, "ref": "main"}))[0]
            == 400
        )
    assert refused(lambda: project.branches.create({"branch": "y", "ref": "none"}))[0] == 400
    project.branches.delete("new/ü")
    assert refused(lambda: project.branches.get("new/ü"))[0] == 404
    assert refused(lambda: project.branches.get("new"))[0] == 404
    assert refused(lambda: project.branches.delete("main"))[0] == 403
    tag = project.tags.get("v1")
    assert (tag.message, tag.commit["title"]) == ("first", "Commit 2")
    assert tag.target != tag.commit["id"]
    light = project.tags.create({"tag_name": "v2", "ref": "main"})
    assert light.target == main.commit["id"]
    noted = project.tags.create({"tag_name": "v3", "ref": "main", "message": "with words"})
    assert noted.message == "with words"
    assert {one.name for one in project.tags.list(get_all=True)} == {"v1", "v2", "v3"}
    project.tags.delete("v3")
    assert refused(lambda: project.tags.get("v3"))[0] == 404


def test_commits_through_the_api(forge: ForgeProcess, project: Any) -> None:
    before = project.branches.get("main").commit["id"]
    made = project.commits.create(
        {
            "branch": "work",
            "start_branch": "main",
            "commit_message": "Work ü\n\nwith a body",
            "author_name": "Grace",
            "author_email": "grace@example.org",
            "actions": [
                {
                    "action": "create",
                    "file_path": "new/ü.bin",
                    "content": base64.b64encode(b"\0\xff").decode(),
                    "encoding": "base64",
                },
                {"action": "update", "file_path": "a.txt", "content": "changed\n"},
                {"action": "move", "previous_path": "data/x.csv", "file_path": "moved.csv"},
                {"action": "delete", "file_path": "data/ü und %.txt"},
                {"action": "chmod", "file_path": "run.sh", "execute_filemode": True},
            ],
        }
    )
    assert made.parent_ids == [before] and made.author_name == "Grace"
    listed = {
        one["path"]: one["mode"] for one in project.repository_tree(recursive=True, ref="work")
    }
    assert listed == {
        "a.txt": "100644",
        "moved.csv": "100644",
        "new": "040000",
        "new/ü.bin": "100644",
        "run.sh": "100755",
    }
    assert project.files.raw("new/ü.bin", ref="work") == b"\0\xff"
    assert project.branches.get("main").commit["id"] == before

    def act(action: str, path: str, **more: str) -> tuple[int | None, str]:
        return refused(
            lambda: project.commits.create(
                {
                    "branch": "work",
                    "commit_message": "m",
                    "actions": [{"action": action, "file_path": path, "content": "x", **more}],
                }
            )
        )

    assert act("create", "a.txt") == (400, "A file with this name already exists")
    assert act("update", "none") == (400, "A file with this name doesn't exist")
    assert act("delete", "none") == (400, "A file with this name doesn't exist")
    for path in ("../x", "/x", ".git/config", "a/../../x", "a//b", "x\n"):
        assert act("create", path)[0] == 400
    file = project.files.create(
        {"file_path": "single", "branch": "work", "content": "one", "commit_message": "m"}
    )
    file = project.files.get("single", ref="work")
    file.content = "two"
    file.save(branch="work", commit_message="m")
    assert project.files.raw("single", ref="work") == b"two"
    file.delete(branch="work", commit_message="m")
    assert refused(lambda: project.files.get("single", ref="work"))[0] == 404
    developer = connect(forge, forge.user())
    assert developer.user is not None
    project.members.create({"user_id": developer.user.id, "access_level": 30})
    theirs = developer.projects.get(project.id)
    values = {"file_path": "x", "content": "x", "commit_message": "m"}
    assert refused(lambda: theirs.files.create({**values, "branch": "main"}))[0] == 403
    theirs.files.create({**values, "branch": "theirs", "start_branch": "main"})


def test_empty_repositories(lab: gitlab.Gitlab) -> None:
    empty = lab.projects.create({"name": "Nothing yet"})
    assert empty.branches.list(get_all=True) == [] and empty.commits.list(get_all=True) == []
    assert refused(empty.repository_tree)[0] == 404
    assert refused(lambda: empty.commits.get("main"))[0] == 404
    empty.files.create(
        {"file_path": "a", "branch": "main", "content": "1", "commit_message": "first"}
    )
    assert [one.name for one in empty.branches.list(get_all=True)] == ["main"]
    assert lab.projects.get(empty.id).empty_repo is False


def test_what_is_not_there_says_so(forge: ForgeProcess, project: Any, owner: str) -> None:
    headers = {"PRIVATE-TOKEN": forge.token(owner)}
    for method, path in (
        ("GET", f"projects/{project.id}/issues"),
        ("POST", f"projects/{project.id}/merge_requests"),
        ("GET", "snippets"),
        ("PATCH", f"projects/{project.id}"),
        ("GET", ""),
    ):
        answer = httpx.request(method, f"{forge.url}/api/v4/{path}", headers=headers)
        assert answer.status_code == 501
        assert "Not Implemented" in answer.json()["message"]


def test_pages_show_text_and_hide_what_is_hidden(
    forge: ForgeProcess, owner: str, tmp_path: Path
) -> None:
    source = tmp_path / "evil"
    make_repository(source, {"<img src=x onerror=alert(1)>": "<script>alert(2)</script>\n"})
    run_git("commit", "--quiet", "--allow-empty", "-m", "<script>alert(3)</script>", cwd=source)
    forge.project(source, f"{owner}/evil", owner, visibility="public")
    sha = run_git("rev-parse", "HEAD~1", cwd=source).strip()
    for path in (f"{owner}/evil", f"{owner}/evil/-/commit/{sha}", f"{owner}/evil/-/tree/main"):
        page = httpx.get(f"{forge.url}/{path}")
        assert page.status_code == 200
        assert "<script" not in page.text and "<img" not in page.text
        assert "&lt;" in page.text
        assert page.headers["content-security-policy"].startswith("default-src 'self'")
    forge.project(source, f"{owner}/hidden", owner)
    answers = set()
    with httpx.Client(base_url=forge.url) as browser:
        for path in (f"/{owner}/hidden", f"/{owner}/none", f"/{owner}/hidden/-/commit/{sha}"):
            answers.add((browser.get(path).status_code, browser.get(path).headers["location"]))
        assert answers == {(302, "/users/sign_in")}
        link = forge.administration.sign_in_url(forge.url, forge.user(), forge.url)
        browser.get(link)
        texts = {browser.get(path).text for path in (f"/{owner}/hidden", f"/{owner}/none")}
        assert len(texts) == 1
        assert browser.get(f"/{owner}/hidden").status_code == 404
        assert browser.get("/static/../forge.sqlite").status_code == 404
        assert browser.get("/static/forge.css").headers["content-type"].startswith("text/css")

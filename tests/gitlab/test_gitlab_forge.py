"""What we ask a forge and how we read its answers; paths are checked as they go over the wire."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs

import pytest

from notebooks_service.domain import AccessLevel, Project
from notebooks_service.errors import NotFound
from notebooks_service.gitlab.forge import Forge
from scripted_gitlab import Asked, ScriptedGitLab

SHA = "0123456789abcdef0123456789abcdef01234567"
OTHER = "f" * 40
PROJECT = Project(5, "Group/sub/project", "project", "main", "private", "")
API = "/api/v4/projects/5"


def forge(gitlab: ScriptedGitLab) -> Forge:
    return Forge(gitlab.url, "token")


def commit(sha: str = SHA, **more: Any) -> dict[str, Any]:
    return {"id": sha, "title": "t", "message": "m", "parent_ids": [OTHER], **more}


def test_the_person_with_the_address_of_their_commits(gitlab: ScriptedGitLab) -> None:
    gitlab.json(
        "GET /api/v4/user",
        {
            "id": 1,
            "username": "ada",
            "name": "Ada",
            "email": "a@b",
            "commit_email": "1-ada@noreply",
        },
    )
    asked = forge(gitlab)
    assert asked.user().email == "1-ada@noreply"
    assert asked.user().username == "ada"
    assert len(gitlab.asked) == 1
    assert gitlab.asked[0].headers["Authorization"] == "Bearer token"


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("group/project", "group%2Fproject"),
        ("a/b/c/d", "a%2Fb%2Fc%2Fd"),
        ("group/0123456789abcdef0123456789abcdef01234567", f"group%2F{SHA}"),
        ("gruppe/größe", "gruppe%2Fgr%C3%B6%C3%9Fe"),
        ("a/b?c#d", "a%2Fb%3Fc%23d"),
        ("a%2Fb/c", "a%252Fb%2Fc"),
        ("a/..", "a%2F.."),
    ],
)
def test_paths_of_projects_are_one_segment(gitlab: ScriptedGitLab, path: str, sent: str) -> None:
    gitlab.json(f"GET /api/v4/projects/{sent}", {"id": 5, "path_with_namespace": path, "name": "x"})
    assert forge(gitlab).project(path).path == path


@pytest.mark.parametrize("path", ["5", "project", "", ".", "..", "/", "project/", "/project"])
def test_a_path_without_a_group_is_never_asked_for(gitlab: ScriptedGitLab, path: str) -> None:
    with pytest.raises(NotFound):
        forge(gitlab).project(path)
    assert gitlab.asked == []


def test_a_project_without_rights_to_its_code(gitlab: ScriptedGitLab) -> None:
    gitlab.json(f"GET {API}", {"id": 5, "path_with_namespace": "g/p", "visibility": "public"})
    found = forge(gitlab).project(5)
    assert (found.default_branch, found.visibility, found.name) == (None, "public", "p")


@pytest.mark.parametrize(
    ("member", "permissions", "admin", "level"),
    [
        (40, None, False, AccessLevel.MAINTAINER),
        (5, None, False, AccessLevel.NONE),
        (10, None, False, AccessLevel.GUEST),
        (15, None, False, AccessLevel.GUEST),
        (20, None, False, AccessLevel.REPORTER),
        (50, None, False, AccessLevel.OWNER),
        (60, None, False, AccessLevel.OWNER),
        (None, (None, None), False, AccessLevel.NONE),
        (None, (30, None), False, AccessLevel.DEVELOPER),
        (None, (20, 40), False, AccessLevel.MAINTAINER),
        (None, "missing", False, AccessLevel.NONE),
        (None, (None, None), True, AccessLevel.OWNER),
        (20, None, True, AccessLevel.OWNER),
    ],
)
def test_the_effective_level(
    gitlab: ScriptedGitLab, member: int | None, permissions: Any, admin: bool, level: AccessLevel
) -> None:
    me = {"id": 9, "username": "ada"} | ({"is_admin": True} if admin else {})
    gitlab.json("GET /api/v4/user", me)
    if member is not None:
        gitlab.json(f"GET {API}/members/all/9", {"id": 9, "access_level": member})
    project: dict[str, Any] = {"id": 5, "path_with_namespace": "g/p"}
    if isinstance(permissions, tuple):
        names = ("project_access", "group_access")
        project["permissions"] = {
            name: None if level is None else {"access_level": level}
            for name, level in zip(names, permissions, strict=True)
        }
    gitlab.json(f"GET {API}", project)
    assert forge(gitlab).access(PROJECT) is level


def test_no_level_in_a_project_that_is_hidden(gitlab: ScriptedGitLab) -> None:
    gitlab.json("GET /api/v4/user", {"id": 9, "username": "ada"})
    with pytest.raises(NotFound):
        forge(gitlab).access(PROJECT)


def test_a_full_sha_is_a_commit_whatever_else_is_called_so(gitlab: ScriptedGitLab) -> None:
    gitlab.json(f"GET {API}/repository/branches/{SHA}", {"name": SHA, "commit": commit(OTHER)})
    gitlab.json(f"GET {API}/repository/commits/{SHA}", commit())
    assert forge(gitlab).commit(PROJECT, SHA).sha == SHA
    assert forge(gitlab).commit(PROJECT, SHA.upper()).sha == SHA
    assert gitlab.paths() == [f"{API}/repository/commits/{SHA}"] * 2


def test_a_forge_that_resolves_the_sha_to_another_commit_is_not_believed(
    gitlab: ScriptedGitLab,
) -> None:
    gitlab.json(f"GET {API}/repository/commits/{SHA}", commit(OTHER))
    with pytest.raises(NotFound):
        forge(gitlab).commit(PROJECT, SHA)


def test_of_branch_and_tag_with_one_name_the_branch_is_meant(gitlab: ScriptedGitLab) -> None:
    gitlab.json(f"GET {API}/repository/branches/v1", {"name": "v1", "commit": commit()})
    gitlab.json(f"GET {API}/repository/tags/v1", {"name": "v1", "commit": commit(OTHER)})
    asked = forge(gitlab)
    assert asked.commit(PROJECT, "v1").sha == SHA
    assert asked.commit(PROJECT, "refs/heads/v1").sha == SHA
    assert asked.commit(PROJECT, "refs/tags/v1").sha == OTHER


def test_a_short_sha_is_resolved_and_checked(gitlab: ScriptedGitLab) -> None:
    gitlab.json(f"GET {API}/repository/commits/{SHA[:8]}", commit())
    assert forge(gitlab).commit(PROJECT, SHA[:8].upper()).sha == SHA
    gitlab.json(f"GET {API}/repository/commits/beef", commit())
    with pytest.raises(NotFound):
        forge(gitlab).commit(PROJECT, "beef")
    gitlab.json(f"GET {API}/repository/branches/beef", {"name": "beef", "commit": commit(OTHER)})
    assert forge(gitlab).commit(PROJECT, "beef").sha == OTHER


@pytest.mark.parametrize(
    ("name", "sent"),
    [
        ("feature/x", "feature%2Fx"),
        ("größe", "gr%C3%B6%C3%9Fe"),
        ("-x", "-x"),
        ("a%2Fb", "a%252Fb"),
        ("a#b", "a%23b"),
        ("a+b&c", "a%2Bb%26c"),
        ("a;b", "a%3Bb"),
        ("$(id)", "%24%28id%29"),
    ],
)
def test_names_of_branches_go_over_as_they_are(
    gitlab: ScriptedGitLab, name: str, sent: str
) -> None:
    gitlab.json(f"GET {API}/repository/branches/{sent}", {"name": name, "commit": commit()})
    assert forge(gitlab).commit(PROJECT, name).sha == SHA
    assert forge(gitlab).branch(PROJECT, name).name == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a..b", "a b", "a\nb", "main~1", "main^", "a:b", "@", "a@{1}", "/a", "a/", "a//b",
     "a.lock", ".a", "a/.b", "a?", "a*", "[a", "a\\b", "a\x00", "a.", "main^{/x}", ":/fix"],
)  # fmt: skip
def test_what_git_takes_for_no_name_is_never_sent(gitlab: ScriptedGitLab, name: str) -> None:
    with pytest.raises(NotFound):
        forge(gitlab).commit(PROJECT, name)
    with pytest.raises(NotFound):
        forge(gitlab).commits(PROJECT, name)
    with pytest.raises(NotFound):
        forge(gitlab).branch(PROJECT, name)
    assert gitlab.asked == []


def test_pages_of_commits_without_a_total(gitlab: ScriptedGitLab) -> None:
    gitlab.json(
        f"GET {API}/repository/commits", [commit(), commit(OTHER)], X_Next_Page="3", X_Total=""
    )
    page = forge(gitlab).commits(PROJECT, "main", page=2, per_page=2)
    assert (page.page, page.next_page, page.total) == (2, 3, None)
    assert [one.sha for one in page.items] == [SHA, OTHER]
    assert parse_qs(gitlab.asked[0].query) == {
        "ref_name": ["main"], "page": ["2"], "per_page": ["2"],
    }  # fmt: skip


def test_the_last_page_has_no_next(gitlab: ScriptedGitLab) -> None:
    gitlab.json("GET /api/v4/projects", [], X_Next_Page="", X_Total="0")
    page = forge(gitlab).projects(membership=True)
    assert (page.items, page.next_page, page.total) == ((), None, 0)


def test_a_search_for_a_sha_finds_it_too(gitlab: ScriptedGitLab) -> None:
    gitlab.json(f"GET {API}/search", [commit(OTHER)], X_Next_Page="", X_Total="1")
    gitlab.json(f"GET {API}/repository/commits/{SHA[:7]}", commit())
    page = forge(gitlab).commits(PROJECT, "main", SHA[:7])
    assert [one.sha for one in page.items] == [SHA, OTHER]
    assert page.total == 2
    query = parse_qs(gitlab.asked[0].query)
    assert (query["scope"], query["ref"], query["search"]) == (["commits"], ["main"], [SHA[:7]])


def paged(rows: list[dict[str, Any]], per_page: int, *, link: bool) -> Any:
    """A list in pages, announced by ``X-Next-Page`` or, as for keysets, only by ``Link``."""

    def answer(asked: Asked) -> tuple[int, dict[str, str], bytes]:
        query = parse_qs(asked.query)
        at = int((query.get("cursor") or query.get("page") or ["1"])[0])
        part = rows[(at - 1) * per_page : at * per_page]
        more = at * per_page < len(rows)
        headers = {"Content-Type": "application/json"}
        if link and more:
            headers["Link"] = f'<http://x{asked.path}?cursor={at + 1}&per_page=2>; rel="next"'
        if not link:
            headers["X-Next-Page"] = str(at + 1) if more else ""
        return 200, headers, json.dumps(part).encode()

    return answer


@pytest.mark.parametrize("link", [False, True])
def test_lists_are_read_to_their_end(gitlab: ScriptedGitLab, link: bool) -> None:
    rows = [{"name": f"b{n}", "commit": {"id": SHA}} for n in range(7)]
    gitlab.answers[f"GET {API}/repository/branches"] = paged(rows, 2, link=link)
    assert [ref.name for ref in forge(gitlab).branches(PROJECT)] == [f"b{n}" for n in range(7)]
    assert len(gitlab.asked) == 4


def job(number: int, status: str, pipeline: int, name: str = "image_build") -> dict[str, Any]:
    return {"id": number, "name": name, "status": status, "pipeline": {"id": pipeline}}


def test_jobs_of_all_pipelines_children_and_tries(gitlab: ScriptedGitLab) -> None:
    gitlab.answers[f"GET {API}/pipelines"] = paged([{"id": n} for n in (1, 2, 3)], 2, link=False)
    tries = [job(10, "failed", 1), job(11, "success", 1), job(12, "failed", 1, "test")]
    gitlab.answers[f"GET {API}/pipelines/1/jobs"] = paged(tries, 2, link=False)
    gitlab.json(f"GET {API}/pipelines/2/jobs", [])
    gitlab.json(f"GET {API}/pipelines/3/jobs", [job(30, "running", 3)])
    gitlab.json(
        f"GET {API}/pipelines/2/bridges",
        [
            {"id": 90, "downstream_pipeline": {"id": 4, "project_id": 5}},
            {"id": 91, "downstream_pipeline": {"id": 77, "project_id": 6}},
            {"id": 92, "downstream_pipeline": None},
        ],
    )
    gitlab.json(f"GET {API}/pipelines/4/jobs", [job(40, "manual", 4)])
    gitlab.json(
        f"GET {API}/pipelines/4/bridges",
        [{"id": 93, "downstream_pipeline": {"id": 1, "project_id": 5}}],
    )
    found = forge(gitlab).ci.jobs(PROJECT, SHA, "image_build")
    assert [(one.id, one.status, one.pipeline_id) for one in found] == [
        (40, "manual", 4), (30, "running", 3), (11, "success", 1), (10, "failed", 1),
    ]  # fmt: skip
    assert not any("/pipelines/77" in path for path in gitlab.paths()), "another project's pipeline"
    asked = next(one for one in gitlab.asked if one.path.endswith("/pipelines/1/jobs"))
    assert parse_qs(asked.query)["include_retried"] == ["true"]
    assert parse_qs(gitlab.asked[0].query)["sha"] == [SHA]


def test_children_of_children_end_somewhere(gitlab: ScriptedGitLab) -> None:
    gitlab.json(f"GET {API}/pipelines", [{"id": 1}])
    for n in range(1, 30):
        gitlab.json(f"GET {API}/pipelines/{n}/jobs", [])
        child = {"downstream_pipeline": {"id": n + 1, "project_id": 5}}
        gitlab.json(f"GET {API}/pipelines/{n}/bridges", [child])
    assert forge(gitlab).ci.jobs(PROJECT, SHA, "image_build") == []
    assert len(gitlab.asked) < 12


def test_jobs_that_are_hidden_are_not_found(gitlab: ScriptedGitLab) -> None:
    gitlab.json(f"GET {API}/pipelines", {"message": "403 Forbidden"}, 403)
    with pytest.raises(NotFound):
        forge(gitlab).ci.jobs(PROJECT, SHA, "image_build")


@pytest.mark.parametrize("ranges", [True, False])
def test_a_trace_is_read_from_an_offset(gitlab: ScriptedGitLab, ranges: bool) -> None:
    text = b"0123456789" * 20000

    def answer(asked: Asked) -> tuple[int, dict[str, str], bytes]:
        wanted = asked.headers.get("Range", "")
        if ranges and wanted:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            return (206, {}, text[start:]) if start < len(text) else (416, {}, b"")
        return 200, {"Content-Type": "text/plain"}, text

    gitlab.answers[f"GET {API}/jobs/8/trace"] = answer
    asked = forge(gitlab)
    assert asked.ci.trace(PROJECT, 8) == text
    assert asked.ci.trace(PROJECT, 8, 100003) == text[100003:]
    assert asked.ci.trace(PROJECT, 8, len(text)) == b""


def test_a_tag_of_the_registry(gitlab: ScriptedGitLab) -> None:
    gitlab.json(
        f"GET {API}/registry/repositories",
        [{"id": 1, "path": "group/sub/project/other"}, {"id": 2, "path": "group/sub/project"}],
    )
    asked = forge(gitlab)
    assert asked.registry.tag(PROJECT, SHA) is None
    location = f"registry.example/group/sub/project:{SHA}"
    gitlab.json(
        f"GET {API}/registry/repositories/2/tags/{SHA}",
        {"name": SHA, "location": location, "digest": "sha256:1"},
    )
    found = asked.registry.tag(PROJECT, SHA)
    assert found and (found.reference, found.digest) == (location, "sha256:1")


def test_a_registry_that_is_hidden_has_no_tag(gitlab: ScriptedGitLab) -> None:
    gitlab.json(f"GET {API}/registry/repositories", {"message": "403 Forbidden"}, 403)
    assert forge(gitlab).registry.tag(PROJECT, SHA) is None


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("a/b c.ipynb", "file"), ("a", "directory"), ("a/", "directory"), ("", "directory"),
        ("none", None), ("a/../b", None), ("../x", None), ("old", None),
    ],
)  # fmt: skip
def test_what_a_path_is(gitlab: ScriptedGitLab, path: str, kind: str | None) -> None:
    gitlab.raw(f"HEAD {API}/repository/files/a%2Fb%20c.ipynb", 200, b"")

    def tree(asked: Asked) -> tuple[int, dict[str, str], bytes]:
        wanted = parse_qs(asked.query)["path"][0]
        if wanted == "none":
            return 404, {}, b'{"message":"404 Tree Not Found"}'
        rows = [{"name": "b c.ipynb", "type": "blob"}] if wanted == "a" else []
        return 200, {"Content-Type": "application/json"}, json.dumps(rows).encode()

    gitlab.answers[f"GET {API}/repository/tree"] = tree
    assert forge(gitlab).path_kind(PROJECT, SHA, path) == kind


def test_a_forge_below_a_path(gitlab: ScriptedGitLab) -> None:
    gitlab.json("GET /gitlab/api/v4/projects/5", {"id": 5, "path_with_namespace": "g/p"})
    assert Forge(f"{gitlab.url}/gitlab/", "token").project(5).id == 5

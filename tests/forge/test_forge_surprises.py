"""GitLab's rules where they surprise: codes, scopes, pages without totals, keys, rate limits."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gitlab
import httpx
import pytest

from forge_fixtures import ForgeProcess, make_repository
from notebooks_service.forge.models import Project
from notebooks_service.forge.rate_limit_values import RateLimits
from notebooks_service.forge.rate_limits import Counter

LEVELS = ("private", "internal", "public")
WHO = ("nobody", "wrong token", "stranger", "guest", "reporter", "read_user only")


@pytest.fixture(scope="module")
def projects(
    forge: ForgeProcess, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[int, str, dict[str, str]]]:
    """For each visibility a project, with the tokens of people who ask for it."""
    found = {}
    for visibility in LEVELS:
        owner = forge.user()
        source = tmp_path_factory.mktemp("s") / "thing"
        make_repository(source, {"a.txt": "1"})
        path = f"{owner}/thing"
        number = forge.project(source, path, owner, visibility=visibility)
        tokens = {"nobody": "", "wrong token": "wrong", "stranger": forge.token(forge.user())}
        for level in ("guest", "reporter"):
            person = forge.user()
            forge.administration.add_member(path, person, level)
            tokens[level] = forge.token(person)
        tokens["read_user only"] = forge.token(owner, "read_user")
        found[visibility] = (number, path, tokens)
    return found


# For each of WHO. https://docs.gitlab.com/api/rest/troubleshooting/#status-codes ·
# https://docs.gitlab.com/user/permissions/ · https://docs.gitlab.com/user/public_access/
API: dict[tuple[str, str], dict[str, tuple[int, ...]]] = {
    ("GET", ""): {
        "private": (404, 401, 404, 200, 200, 403),
        "internal": (404, 401, 200, 200, 200, 403),
        "public": (200, 401, 200, 200, 200, 403),
    },
    ("GET", "/repository/tree"): {
        "private": (404, 401, 404, 403, 200, 403),
        "internal": (404, 401, 200, 200, 200, 403),
        "public": (200, 401, 200, 200, 200, 403),
    },
    ("POST", "/repository/branches?branch=x&ref=main"): {
        "private": (401, 401, 404, 403, 403, 403),
        "internal": (401, 401, 403, 403, 403, 403),
        "public": (401, 401, 403, 403, 403, 403),
    },
    ("GET", "/variables"): {
        "private": (401, 401, 404, 403, 403, 403),
        "internal": (401, 401, 403, 403, 403, 403),
        "public": (401, 401, 403, 403, 403, 403),
    },
    # Whoever reads the code reads what is protected; without a token nobody is asked for one.
    ("GET", "/protected_branches"): {
        "private": (404, 401, 404, 403, 200, 403),
        "internal": (404, 401, 200, 200, 200, 403),
        "public": (200, 401, 200, 200, 200, 403),
    },
    ("POST", "/protected_branches?name=x"): {
        "private": (404, 401, 404, 403, 403, 403),
        "internal": (404, 401, 403, 403, 403, 403),
        "public": (403, 401, 403, 403, 403, 403),
    },
    ("GET", "/protected_tags"): {
        "private": (404, 401, 404, 403, 403, 403),
        "internal": (404, 401, 403, 403, 403, 403),
        "public": (403, 401, 403, 403, 403, 403),
    },
}
GIT: dict[str, dict[str, tuple[int, ...]]] = {
    "git-upload-pack": {
        "private": (401, 401, 404, 403, 200, 401),
        "internal": (401, 401, 200, 200, 200, 401),
        "public": (200, 401, 200, 200, 200, 401),
    },
    "git-receive-pack": {
        "private": (401, 401, 404, 403, 403, 401),
        "internal": (401, 401, 403, 403, 403, 401),
        "public": (401, 401, 403, 403, 403, 401),
    },
}


@pytest.mark.parametrize("visibility", LEVELS)
def test_codes_of_the_api(forge: ForgeProcess, projects: dict[str, Any], visibility: str) -> None:
    number, _, tokens = projects[visibility]
    for (method, path), expected in API.items():
        codes = []
        for who in WHO:
            headers = {"PRIVATE-TOKEN": tokens[who]} if tokens[who] else {}
            url = f"{forge.url}/api/v4/projects/{number}{path}"
            answer = httpx.request(method, url, headers=headers)
            codes.append(answer.status_code)
            if who == "read_user only":
                assert answer.json()["error"] == "insufficient_scope"
                assert "api" in answer.json()["scope"].split()
        assert tuple(codes) == expected[visibility], (method, path)


@pytest.mark.parametrize("visibility", LEVELS)
def test_codes_of_git(forge: ForgeProcess, projects: dict[str, Any], visibility: str) -> None:
    """https://docs.gitlab.com/topics/git/clone/#clone-with-https"""
    _, path, tokens = projects[visibility]
    for service, expected in GIT.items():
        codes = []
        for who in WHO:
            credentials = ("oauth2", tokens[who]) if tokens[who] else None
            url = f"{forge.url}/{path}.git/info/refs?service={service}"
            codes.append(httpx.get(url, auth=credentials).status_code)
        assert tuple(codes) == expected[visibility], service


@pytest.fixture(scope="module")
def many(forge: ForgeProcess) -> Iterator[tuple[str, str]]:
    """10,002 projects that one person sees, as rows only; gone afterwards."""
    owner = forge.user()
    with forge.administration.database.write() as session:
        from notebooks_service.forge import namespaces

        user = namespaces.find_user(session, owner)
        assert user is not None
        namespace = namespaces.user_namespace(session, user)
        rows = [
            Project(
                namespace_id=namespace.id, path=f"p{n}", full_path=f"{owner}/p{n}", name=f"p{n}"
            )
            for n in range(10_002)
        ]
        session.add_all(rows)
        session.flush()
        ids = [row.id for row in rows]
    yield owner, forge.token(owner)
    with forge.administration.database.write() as session:
        for number in ids:
            session.delete(session.get_one(Project, number))


def test_no_totals_over_ten_thousand(forge: ForgeProcess, many: tuple[str, str]) -> None:
    """https://docs.gitlab.com/api/rest/#pagination-response-headers"""
    owner, token = many
    headers = {"PRIVATE-TOKEN": token}
    url = f"{forge.url}/api/v4/users/{owner}/projects"
    few = httpx.get(f"{url}?per_page=5&search=p777", headers=headers)
    assert few.headers["x-total"] == "11" and 'rel="last"' in few.headers["link"]
    all_of = httpx.get(f"{url}?per_page=1&simple=true", headers=headers)
    assert "x-total" not in all_of.headers and "x-total-pages" not in all_of.headers
    assert 'rel="last"' not in all_of.headers["link"]
    assert (all_of.headers["x-next-page"], all_of.headers["x-page"]) == ("2", "1")
    end = httpx.get(f"{url}?per_page=1&simple=true&page=10002", headers=headers)
    assert len(end.json()) == 1 and end.headers["x-next-page"] == ""
    client = gitlab.Gitlab(forge.url, private_token=token)
    page = client.users.list(username=owner)[0].projects.list(iterator=True, simple=True)
    assert page.total is None and page.total_pages is None and page.next_page == 2
    far = httpx.get(f"{url}?per_page=100&page=501", headers=headers)
    assert far.status_code == 405 and "maximum allowed offset of 50000" in far.json()["error"]


def test_keyset_pages_of_projects(forge: ForgeProcess, many: tuple[str, str]) -> None:
    """https://docs.gitlab.com/api/rest/#keyset-based-pagination"""
    _, token = many
    client = gitlab.Gitlab(forge.url, private_token=token)
    asked: dict[str, Any] = {"pagination": "keyset", "order_by": "id", "search": "p99"}
    for sort in ("asc", "desc"):
        found = client.projects.list(
            **asked, sort=sort, per_page=7, owned=True, iterator=True, simple=True
        )
        ids = [one.id for one in found]
        assert len(ids) == 111 and ids == sorted(ids, reverse=sort == "desc")
    url = f"{forge.url}/api/v4/projects?pagination=keyset&owned=true&per_page=2&simple=true"
    headers = {"PRIVATE-TOKEN": token}
    first = httpx.get(f"{url}&order_by=id&sort=asc", headers=headers)
    last = first.json()[-1]["id"]
    assert re.search(rf'id_after={last}[&>].*rel="next"', first.headers["link"])
    assert not [name for name in first.headers if name.startswith("x-")]
    end = httpx.get(f"{url}&order_by=id&sort=asc&search=p10001", headers=headers)
    assert len(end.json()) == 1 and "link" not in end.headers
    other = httpx.get(f"{url}&order_by=name", headers=headers)
    assert (other.status_code, other.json()["error"]) == (
        405,
        "Keyset pagination is not yet available for this type of request",
    )


def test_keyset_pages_of_a_tree(forge: ForgeProcess, tmp_path: Path) -> None:
    """https://docs.gitlab.com/api/repositories/#list-all-repository-trees-in-a-project"""
    owner = forge.user()
    # The same content, so the same object id, in every file.
    make_repository(tmp_path / "t", {f"d/{n:03}": "same" for n in range(45)})
    number = forge.project(tmp_path / "t", f"{owner}/t", owner)
    client = gitlab.Gitlab(forge.url, private_token=forge.token(owner))
    found = client.projects.get(number).repository_tree(
        recursive=True, pagination="keyset", per_page=20, iterator=True
    )
    paths = [one["path"] for one in found]
    assert len(paths) == len(set(paths)) == 46
    wrong = f"{forge.url}/api/v4/projects/{number}/repository/tree?pagination=keyset&page_token=x"
    answer = httpx.get(wrong, headers={"PRIVATE-TOKEN": forge.token(owner)})
    assert answer.status_code == 422


def test_counting_in_windows() -> None:
    moment = 1000.0
    counter = Counter(RateLimits(2, 1, 60), clock=lambda: moment)
    seen = [counter.count(7, "a") for _ in range(3)]
    assert [one is not None and one.exceeded for one in seen] == [False, False, True]
    assert counter.count(8, "a") is not None
    last = seen[-1]
    assert last is not None
    headers = last.headers(moment)
    assert headers["RateLimit-Name"] == "throttle_authenticated_api"
    assert (headers["RateLimit-Limit"], headers["RateLimit-Observed"]) == ("2", "3")
    assert (headers["RateLimit-Remaining"], headers["RateLimit-Reset"]) == ("0", "1020")
    assert headers["Retry-After"] == "20"
    assert headers["RateLimit-ResetTime"] == "Thu, 01 Jan 1970 00:17:00 GMT"
    moment = 1020.0
    again = counter.count(7, "a")
    assert again is not None and again.observed == 1
    assert Counter(RateLimits()).count(7, "a") is None


def test_rate_limits(start_forge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """https://docs.gitlab.com/administration/settings/user_and_ip_rate_limits/"""
    monkeypatch.setenv("NOTEBOOKS_FORGE_RATE_LIMIT", "4")
    monkeypatch.setenv("NOTEBOOKS_FORGE_RATE_LIMIT_ANONYMOUS", "2")
    monkeypatch.setenv("NOTEBOOKS_FORGE_RATE_LIMIT_PERIOD", "3")
    forge = start_forge()
    people = [forge.token(forge.user()) for _ in range(2)]
    url = f"{forge.url}/api/v4/projects"
    with httpx.Client(trust_env=False) as http:

        def ask(token: str = "") -> httpx.Response:
            return http.get(url, headers={"PRIVATE-TOKEN": token} if token else {})

        for _ in range(20):
            while time.time() % 3 > 1:
                time.sleep(0.05)
            window = time.time() // 3
            answers = [ask(people[0]) for _ in range(5)]
            others = [ask(token).status_code for token in (people[1], "", "x", "")]
            if time.time() // 3 == window:
                break  # else a slow machine's answers are of two windows, and show nothing
    assert [one.status_code for one in answers] == [200] * 4 + [429]
    assert answers[0].headers["ratelimit-remaining"] == "3"
    refused = answers[-1]
    assert refused.text.strip() == "Retry later"
    assert refused.headers["content-type"].startswith("text/plain")
    assert 1 <= int(refused.headers["retry-after"]) <= 3
    assert refused.headers["ratelimit-limit"] == "80"
    # Another person, and nobody, have limits of their own; a wrong token is nobody's.
    assert others == [200, 200, 401, 429]
    assert httpx.get(f"{forge.url}/-/health").status_code == 200
    # python-gitlab waits as it is told (obey_rate_limit) and has every answer in the end.
    client = gitlab.Gitlab(forge.url, private_token=people[0])
    began = time.monotonic()
    for _ in range(9):
        client.projects.list()
    assert time.monotonic() - began > 1
    with pytest.raises(gitlab.GitlabHttpError) as error:
        for _ in range(20):
            client.http_request("get", "/projects", obey_rate_limit=False)
    assert error.value.response_code == 429


def test_no_limits_unless_asked_for(forge: ForgeProcess) -> None:
    answer = httpx.get(f"{forge.url}/api/v4/projects")
    assert not [name for name in answer.headers if name.startswith("ratelimit")]

"""What goes wrong between us and a forge, one by one, over real sockets."""

from __future__ import annotations

import socket
import threading
import traceback
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from notebooks_service.domain import Project
from notebooks_service.errors import ForgeUnavailable, NotebooksError, NotFound, SignInExpired
from notebooks_service.gitlab.forge import Forge
from scripted_gitlab import ScriptedGitLab

TOKEN = "canary-5f2d9c"
PROJECT = Project(5, "group/project", "project", "main", "private", "")
ROUTE = "GET /api/v4/projects/5"


@pytest.mark.parametrize(
    ("status", "body", "kind", "reason"),
    [
        (401, b'{"message":"401 Unauthorized"}', SignInExpired, None),
        (401, b'{"error":"invalid_token"}', SignInExpired, None),
        (403, b'{"message":"403 Forbidden"}', NotFound, None),
        (403, b'{"error":"insufficient_scope","scope":"api"}', SignInExpired, None),
        (404, b'{"message":"404 Project Not Found"}', NotFound, None),
        (400, b'{"error":"ref is invalid"}', NotFound, None),
        (409, b'{"message":"409 Conflict"}', ForgeUnavailable, "HTTP 409"),
        (500, b'{"message":"500 Internal Server Error"}', ForgeUnavailable, "HTTP 500"),
        (501, b"{}", ForgeUnavailable, "HTTP 501"),
        (502, b"<html>GitLab is not responding</html>", ForgeUnavailable, "HTTP 502"),
        (503, b"", ForgeUnavailable, "HTTP 503"),
        (200, b"<!DOCTYPE html><title>Sign in</title>", ForgeUnavailable, "no JSON"),
        (200, b'{"id": 5, "path_with', ForgeUnavailable, "no JSON"),
        (200, b'{"hello": "world"}', ForgeUnavailable, "other fields"),
        (200, b"[]", ForgeUnavailable, "other fields"),
        (200, b"null", ForgeUnavailable, "other fields"),
    ],
)
def test_each_answer_is_one_error(
    gitlab: ScriptedGitLab, status: int, body: bytes, kind: type[NotebooksError], reason: str | None
) -> None:
    gitlab.raw(ROUTE, status, body, Content_Type="application/json")
    with pytest.raises(NotebooksError) as caught:
        Forge(gitlab.url, TOKEN).project(5)
    assert type(caught.value) is kind
    if reason:
        assert reason in caught.value.detail["reason"]
    _holds_no_secret(caught)


@pytest.mark.parametrize(
    ("status", "said", "least", "most"),
    [
        (429, "17", 17, 17),
        (503, "17", 17, 17),
        (502, "17", 17, 17),
        (429, "", 60, 60),
        (429, "soon", 60, 60),
        (429, "-5", 60, 60),
        (429, "9" * 400, 60, 60),
        (503, timedelta(hours=1), 3000, 3600),
        (429, "Wed, 21 Oct 2015 07:28:00 GMT", 0, 0),
    ],
)
def test_an_answer_says_when_to_come_back(
    gitlab: ScriptedGitLab, status: int, said: str | timedelta, least: int, most: int
) -> None:
    if isinstance(said, timedelta):
        said = format_datetime(datetime.now(UTC) + said, usegmt=True)
    gitlab.json(ROUTE, {"message": "Retry later"}, status, Retry_After=said)
    with pytest.raises(ForgeUnavailable) as caught:
        Forge(gitlab.url, TOKEN).project(5)
    assert least <= caught.value.detail["retry_after"] <= most
    assert len(gitlab.asked) == 1, "it must not wait by itself: it may sit in a thread of the hub"


def test_half_a_body(gitlab: ScriptedGitLab) -> None:
    gitlab.raw(ROUTE, 200, b'{"id": 5', Content_Type="application/json", Content_Length="4000")
    with pytest.raises(ForgeUnavailable) as caught:
        Forge(gitlab.url, TOKEN).project(5)
    _holds_no_secret(caught)


def test_silence_ends_after_the_timeout(gitlab: ScriptedGitLab) -> None:
    release = threading.Event()

    def slow(asked: object) -> tuple[int, dict[str, str], bytes]:
        release.wait(20)
        return 200, {}, b"{}"

    gitlab.answers[ROUTE] = slow
    try:
        with pytest.raises(ForgeUnavailable) as caught:
            Forge(gitlab.url, TOKEN, timeout=0.2).project(5)
    finally:
        release.set()
    assert caught.value.detail["reason"] == "no answer in time"
    _holds_no_secret(caught)


def test_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(ForgeUnavailable) as caught:
            Forge(f"http://127.0.0.1:{port}", TOKEN).project(5)
    _holds_no_secret(caught)


def test_no_such_host() -> None:
    with pytest.raises(ForgeUnavailable):
        Forge("http://forge.invalid", TOKEN).project(5)


def test_a_redirect_to_another_host_is_not_followed(
    gitlab: ScriptedGitLab, elsewhere: ScriptedGitLab
) -> None:
    gitlab.raw(ROUTE, 302, b"", Location=f"{elsewhere.url}/api/v4/projects/5")
    with pytest.raises(ForgeUnavailable) as caught:
        Forge(gitlab.url, TOKEN).project(5)
    assert "forge_url" in caught.value.message
    assert elsewhere.asked == []


def test_a_renamed_project_is_followed_within_the_forge(gitlab: ScriptedGitLab) -> None:
    gitlab.raw("GET /api/v4/projects/old%2Fname", 301, b"", Location="/api/v4/projects/5")
    gitlab.json(ROUTE, {"id": 5, "path_with_namespace": "new/name", "name": "name"})
    assert Forge(gitlab.url, TOKEN).project("old/name").path == "new/name"
    assert gitlab.asked[-1].headers["Authorization"] == f"Bearer {TOKEN}"


def test_redirects_in_a_circle_end(gitlab: ScriptedGitLab) -> None:
    gitlab.raw(ROUTE, 302, b"", Location="/api/v4/projects/5")
    with pytest.raises(ForgeUnavailable):
        Forge(gitlab.url, TOKEN).project(5)
    assert len(gitlab.asked) < 10


def test_a_link_to_another_host_is_read_as_a_query_only(
    gitlab: ScriptedGitLab, elsewhere: ScriptedGitLab
) -> None:
    route = "/api/v4/projects/5/repository/branches"

    def page(asked: object) -> tuple[int, dict[str, str], bytes]:
        first = "page_token" not in asked.query  # type: ignore[attr-defined]
        name = "a" if first else "b"
        link = f'<{elsewhere.url}{route}?page_token=x&per_page=100>; rel="next"'
        headers = {"Link": link} if first else {}
        body = f'[{{"name": "{name}", "commit": {{"id": "{"1" * 40}"}}}}]'
        return 200, {"Content-Type": "application/json", **headers}, body.encode()

    gitlab.answers[f"GET {route}"] = page
    found = Forge(gitlab.url, TOKEN).branches(PROJECT)
    assert [ref.name for ref in found] == ["a", "b"]
    assert elsewhere.asked == []


def test_a_cookie_of_the_forge_is_not_kept(gitlab: ScriptedGitLab) -> None:
    body = {"id": 5, "path_with_namespace": "g/p", "name": "p"}
    gitlab.json(ROUTE, body, Set_Cookie="_gitlab_session=somebody-else; Path=/")
    forge = Forge(gitlab.url, TOKEN)
    forge.project(5)
    forge.project(5)
    assert all("Cookie" not in asked.headers for asked in gitlab.asked)


CALLS: list[Callable[[Forge], object]] = [
    lambda forge: forge.user(),
    lambda forge: forge.project("group/project"),
    lambda forge: forge.projects("x"),
    lambda forge: forge.access(PROJECT),
    lambda forge: forge.commit(PROJECT, "1" * 40),
    lambda forge: forge.commit(PROJECT, "main"),
    lambda forge: forge.commits(PROJECT, "main"),
    lambda forge: forge.commit_refs(PROJECT, "1" * 40),
    lambda forge: forge.branch(PROJECT, "main"),
    lambda forge: forge.branches(PROJECT),
    lambda forge: forge.tags(PROJECT),
    lambda forge: forge.path_kind(PROJECT, "1" * 40, "a.ipynb"),
    lambda forge: forge.ci.jobs(PROJECT, "1" * 40, "image_build"),
    lambda forge: forge.ci.job(PROJECT, 1),
    lambda forge: forge.ci.trace(PROJECT, 1),
    lambda forge: forge.registry.tag(PROJECT, "1" * 40),
]


class Always:
    """Every route answers the same."""

    def __init__(self, answer: tuple[int, dict[str, str], bytes]) -> None:
        self.answer = answer

    def get(self, route: str, default: object) -> tuple[int, dict[str, str], bytes]:
        return self.answer


@pytest.mark.parametrize("call", range(len(CALLS)))
@pytest.mark.parametrize(
    ("status", "kind"), [(401, SignInExpired), (500, ForgeUnavailable), (429, ForgeUnavailable)]
)
def test_every_call_raises_our_errors(
    gitlab: ScriptedGitLab, call: int, status: int, kind: type[NotebooksError]
) -> None:
    gitlab.answers = Always((status, {"Content-Type": "application/json"}, b"{}"))  # type: ignore[assignment]
    with pytest.raises(kind) as caught:
        CALLS[call](Forge(gitlab.url, TOKEN))
    _holds_no_secret(caught)


def _holds_no_secret(caught: pytest.ExceptionInfo[NotebooksError]) -> None:
    error = caught.value
    shown = "".join(traceback.format_exception(error))
    for text in (error.message, repr(error.detail), str(error), shown):
        assert TOKEN not in text

"""What the gateway reads out of a request, as tables."""

from __future__ import annotations

import base64

import pytest

from notebooks_service.errors import NotFound, NotSignedIn
from notebooks_service.gateway.request import GitRequest, LfsRequest, read_request, read_token

UP, RECEIVE = "git-upload-pack", "git-receive-pack"


@pytest.mark.parametrize(
    ("method", "path", "query", "expected"),
    [
        ("GET", "g/p.git/info/refs", f"service={UP}", GitRequest("g/p", UP, True)),
        ("GET", "g/p/info/refs", f"service={RECEIVE}", GitRequest("g/p", RECEIVE, True)),
        ("POST", f"g/p.git/{UP}", "", GitRequest("g/p", UP, False)),
        ("POST", f"g/sub/sub/p.git/{RECEIVE}", "", GitRequest("g/sub/sub/p", RECEIVE, False)),
        ("POST", f"g/p/{UP}", "", GitRequest("g/p", UP, False)),
        ("POST", "g/p.git/info/lfs/objects/batch", "", LfsRequest("g/p", "objects/batch")),
        ("GET", "g/p.git/info/lfs/locks", "limit=1", LfsRequest("g/p", "locks")),
    ],
)
def test_what_git_asks_for(
    method: str, path: str, query: str, expected: GitRequest | LfsRequest
) -> None:
    assert read_request(method, path, query) == expected


@pytest.mark.parametrize(
    ("method", "path", "query"),
    [
        ("GET", "g/p.git/info/refs", ""),
        ("GET", "g/p.git/info/refs", "service=git-upload-archive"),
        ("GET", "g/p.git/info/refs", f"service={UP}&service={RECEIVE}"),
        ("GET", "g/p.git/info/refs", f"service={UP}&x=y"),
        ("HEAD", "g/p.git/info/refs", f"service={UP}"),
        ("GET", f"g/p.git/{UP}", ""),
        ("POST", f"g/p.git/{UP}", "service=x"),
        ("POST", "g/p.git/git-upload-archive", ""),
        ("GET", "g/p.git/HEAD", ""),
        ("GET", "g/p.git/objects/info/packs", ""),
        ("GET", "api/v4/user", ""),
        ("GET", "", ""),
        ("POST", f"p.git/{UP}", ""),
        ("POST", f"../p.git/{UP}", ""),
        ("POST", f"g/../p.git/{UP}", ""),
        ("POST", f"g/./p.git/{UP}", ""),
        ("POST", f"g//p.git/{UP}", ""),
        ("POST", f"/g/p.git/{UP}", ""),
        ("POST", f"g/%2e%2e/p.git/{UP}", ""),
        ("POST", f"g\\p/x.git/{UP}", ""),
        ("POST", f"g/p\x00.git/{UP}", ""),
        ("POST", f"g/p\n.git/{UP}", ""),
        ("POST", f"g/p?x.git/{UP}", ""),
        ("DELETE", f"g/p.git/{UP}", ""),
    ],
)
def test_what_nobody_asks_for(method: str, path: str, query: str) -> None:
    with pytest.raises(NotFound):
        read_request(method, path, query)


def test_the_target_is_encoded_again() -> None:
    request = GitRequest("g/a b+ü", "git-upload-pack", refs=True)
    assert (
        request.target(request.project) == "/g/a%20b%2B%C3%BC.git/info/refs?service=git-upload-pack"
    )
    assert GitRequest("g/p", "git-receive-pack", False).target("n/p") == "/n/p.git/git-receive-pack"


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("header", "token"),
    [
        (basic("server:abc"), "abc"),
        (basic(":abc"), "abc"),
        (basic("x:a:b"), "a:b"),
        ("token abc", "abc"),
        ("Bearer abc", "abc"),
        ("bearer  abc ", "abc"),
    ],
)
def test_where_the_token_is(header: str, token: str) -> None:
    assert read_token(header) == token


@pytest.mark.parametrize(
    "header",
    [None, "", "Basic", "Basic !!!", basic("server:"), basic("server"), "Digest abc", "Bearer "],
)
def test_where_no_token_is(header: str | None) -> None:
    with pytest.raises(NotSignedIn):
        read_token(header)

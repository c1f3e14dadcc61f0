"""Paths of requests: every reading, every refusal, and that what we write we read."""

from __future__ import annotations

import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from notebooks_service.errors import NotFound
from notebooks_service.web.urls import (
    OWN_WORDS,
    CommitAddress,
    OwnRoute,
    Reading,
    RefAddress,
    clean_path,
    commit_url,
    page_url,
    parse,
    ref_url,
    safe_next,
)

PREFIX = "/services/notebooks/"
SHA = "0123456789abcdef0123456789abcdef01234567"
NAME = "a" * 40


def read(path: str) -> OwnRoute | CommitAddress | RefAddress:
    return parse((PREFIX + path).encode(), PREFIX)


@pytest.mark.parametrize(
    ("path", "readings"),
    [
        (f"group/project/{SHA}", [("group/project", SHA, "")]),
        (f"group/project/{SHA}/", [("group/project", SHA, "")]),
        (f"group/project/{SHA}/a/b%20c.ipynb", [("group/project", SHA, "a/b c.ipynb")]),
        (f"group/project/{SHA}/50%2525", [("group/project", SHA, "50%25")]),
        (f"a/b/c/d/{SHA}", [("a/b/c/d", SHA, "")]),
        (f"group/{NAME}/{SHA}", [(f"group/{NAME}", SHA, "")]),
        (f"{NAME}/{NAME}/{SHA}", [(f"{NAME}/{NAME}", SHA, "")]),
        (f"a/b/{NAME}/{SHA}", [("a/b", NAME, SHA), (f"a/b/{NAME}", SHA, "")]),
        (f"a/b/{SHA}/{NAME}", [("a/b", SHA, NAME), (f"a/b/{SHA}", NAME, "")]),
        (f"servers/thing/{SHA}", [("servers/thing", SHA, "")]),
        (f"projects/12/{SHA}", [("projects/12", SHA, "")]),
        (f"git/thing/{SHA}", [("git/thing", SHA, "")]),
    ],
)
def test_commit_addresses(path: str, readings: list[tuple[str, str, str]]) -> None:
    assert read(path) == CommitAddress(tuple(Reading(*each) for each in readings))


@pytest.mark.parametrize(
    ("path", "readings"),
    [
        ("group/project/main", [("group/project", "main", "")]),
        ("group/project/0123456", [("group/project", "0123456", "")]),
        (
            "group/sub/project/main",
            [
                ("group/sub", "project", "main"),
                ("group/sub", "project/main", ""),
                ("group/sub/project", "main", ""),
            ],
        ),
        ("-/p/group/project/-/feature/x", [("group/project", "feature/x", "")]),
        ("-/p/group/project/-/feature%2Fx", [("group/project", "feature/x", "")]),
        ("-/p/group%2Fproject/-/main", [("group/project", "main", "")]),
        (f"-/p/servers/x/-/{SHA}", [("servers/x", SHA, "")]),
        (f"-/p/a/b/{NAME}/-/{SHA}", [(f"a/b/{NAME}", SHA, "")]),
        ("-/p/a/b/-/x/-/y", [("a/b", "x/-/y", "")]),
    ],
)
def test_ref_addresses(path: str, readings: list[tuple[str, str, str]]) -> None:
    assert read(path) == RefAddress(tuple(Reading(*each) for each in readings))


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("", "/"),
        ("servers", "/servers"),
        ("servers/rivers-abc/events", "/servers/rivers-abc/events"),
        ("projects/12/commits", "/projects/12/commits"),
        ("-/static/style.css", "/-/static/style.css"),
        ("group/project", "/group/project"),
        (f"logs/{SHA}", f"/logs/{SHA}"),
        ("git/group/project.git/info/refs", "/git/group/project.git/info/refs"),
        (f"git/a/{NAME}/b.git/git-upload-pack", f"/git/a/{NAME}/b.git/git-upload-pack"),
        (f"git/a/{NAME}.git/info/lfs/objects/{SHA}", f"/git/a/{NAME}.git/info/lfs/objects/{SHA}"),
    ],
)
def test_own_routes(path: str, route: str) -> None:
    assert read(path) == OwnRoute(route)


@pytest.mark.parametrize(
    "path",
    [
        f"group/project/{SHA}/../x",
        f"group/project/{SHA}/%2e%2e/x",
        f"group/project/{SHA}/%2E./x",
        f"group/project/{SHA}/./x",
        f"group/project/{SHA}//x",
        f"group//project/{SHA}",
        f"/group/project/{SHA}",
        f"group/project/{SHA}/a%2Fb",
        f"group%2Fproject/{SHA}",
        f"group/project/{SHA}/a%5Cb",
        f"group/project/{SHA}/a\\b",
        f"group/project/{SHA}/a%00b",
        f"group/project/{SHA}/a%0Ab",
        f"group/project/{SHA}/a%7Fb",
        f"group/project/{SHA}/a%C2%85b",
        f"group/project/{SHA}/%ff",
        f"group/project/{SHA}/%zz",
        f"group/project/{SHA}/%",
        "servers/../user",
        "git/a/../b.git/info/refs",
        "-/p/group/project/main",
        "-/p/group/-/main",
        "-/p/group/project/-",
        "-/p/group/project/-/a/../b",
        "-/p/group/project/-/a%2F..%2Fb",
        "-/p/..%2F../-/x",
        "x" * 5000,
    ],
)
def test_refused_paths(path: str) -> None:
    with pytest.raises(NotFound):
        read(path)


def test_outside_of_the_prefix_is_nothing() -> None:
    for raw in (
        b"/",
        b"/services/notebooks",
        b"/services/other/x",
        b"http://x/services/notebooks/",
    ):
        with pytest.raises(NotFound):
            parse(raw, PREFIX)


SEGMENT = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True).filter(
    lambda text: not text.endswith((".", ".git", ".atom")) and text not in OWN_WORDS
)
PROJECT = st.lists(SEGMENT | st.just(NAME), min_size=2, max_size=6).map("/".join)
SHAS = st.text("0123456789abcdef", min_size=40, max_size=40)
NICE = st.characters(exclude_categories=("Cc", "Cs"), exclude_characters="/\\")
PATH = st.lists(
    st.text(NICE, min_size=1, max_size=12).filter(lambda text: text not in (".", "..")), max_size=4
).map("/".join)


@given(PROJECT, SHAS, PATH, st.sampled_from(["", "main", "feature/ä?&#%"]))
@example(f"group/{NAME}", SHA, "", "")
def test_a_written_commit_address_is_read_again(
    project: str, sha: str, path: str, branch: str
) -> None:
    url = commit_url(PREFIX, project, sha, path, branch)
    assert url.isascii()
    meant = parse(url.partition("?")[0].encode(), PREFIX)
    assert isinstance(meant, CommitAddress)
    hexes = sum(1 for part in project.split("/")[2:] if part == NAME)
    if hexes < 3:
        assert Reading(project, sha, path) in meant.readings


@given(PROJECT, PATH.filter(bool), PATH)
def test_a_written_ref_address_has_one_reading(project: str, ref: str, path: str) -> None:
    url, _, query = ref_url(PREFIX, project, ref, path).partition("?")
    assert parse(url.encode(), PREFIX) == RefAddress((Reading(project, ref),))
    assert bool(query) == bool(path)


@given(st.binary(max_size=80))
def test_any_bytes_are_an_address_or_not_found(tail: bytes) -> None:
    try:
        meant = parse(PREFIX.encode() + tail, PREFIX)
    except NotFound:
        return
    texts = [meant.path[1:]] if isinstance(meant, OwnRoute) else []
    if not isinstance(meant, OwnRoute):
        texts = [text for each in meant.readings for text in (each.project, each.ref, each.path)]
    for text in texts:
        assert ".." not in text.split("/")
        assert "\\" not in text and "//" not in text
        assert all(character >= " " and character != "\x7f" for character in text)


@given(st.text(string.printable, max_size=40))
def test_a_clean_path_stays_inside(text: str) -> None:
    try:
        path = clean_path(text)
    except NotFound:
        return
    assert not path.startswith("/")
    assert ".." not in path.split("/")


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.example/services/notebooks/",
        "//evil.example/services/notebooks/",
        "/\\evil.example",
        "/services/notebooks/\\\\evil",
        "/services/notebooks/a b",
        "/services/notebooks/\r\nSet-Cookie: x=y",
        "/hub/logout",
        "/services/notebooks/../../hub/logout",
        "/services/notebooks/%2e%2E/.%2e/user/mallory/page.html",
        "/services/notebooks/a/..?x=1",
        "/services/notebooks/..#x",
        "javascript:alert(1)",
        "",
    ],
)
def test_no_open_redirect(url: str) -> None:
    assert safe_next(PREFIX, url) == PREFIX


def test_a_local_address_is_kept() -> None:
    kept = (f"{PREFIX}group/project/{SHA}?branch=a%2F..%2Fb", f"{PREFIX}servers", f"{PREFIX}a..b/c")
    for url in (PREFIX, *kept):
        assert safe_next(PREFIX, url) == url


def test_where_the_notebook_opens() -> None:
    there = "/user/ada/x/"
    assert page_url(there, "thing") == "/user/ada/x/lab/tree/thing"
    path = "a b/c#.ipynb"
    assert page_url(there, "thing", path) == "/user/ada/x/lab/tree/thing/a%20b/c%23.ipynb"
    assert page_url(there, "thing", path, "/tree") == "/user/ada/x/tree/thing/a%20b/c%23.ipynb"
    assert page_url(there, "thing", path, "/rstudio") == "/user/ada/x/rstudio/"

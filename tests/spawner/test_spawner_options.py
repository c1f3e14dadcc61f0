"""What a request for one of our servers may look like, as tables."""

import re
import subprocess

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from notebooks_service.domain import server_name
from notebooks_service.errors import LaunchRefused
from notebooks_service.resources import Resources
from notebooks_service.singleuser.clone import local_branch
from notebooks_service.spawner.options import (
    LaunchOptions,
    is_branch_name,
    is_ours,
    is_project_path,
    may_be_ours,
    read_options,
)

SHA = "0123456789abcdef0123456789abcdef01234567"
GOOD = {"project": "group/sub/thing", "commit": SHA, "branch": "main"}


def test_the_request_that_the_service_makes_is_read() -> None:
    assert read_options({"notebooks": GOOD}) == LaunchOptions("group/sub/thing", SHA, "main")


@pytest.mark.parametrize(
    ("more", "read"),
    [
        ({"lfs_auto_fetch": True}, (True, ())),
        ({"lfs_auto_fetch": False, "submodules": []}, (False, ())),
        ({"lfs_auto_fetch": None, "submodules": [9, 7]}, (None, (9, 7))),
        ({"image": "g/p:v1"}, (None, (), "g/p:v1")),
        ({"new_image": True}, (None, (), "", True)),
        ({"cpu": 1.5, "memory": 2**30}, (None, (), "", False, Resources(1.5, 2**30))),
        ({"mounts": ["a", "b"]}, (None, (), "", False, Resources(), ("a", "b"))),
        ({"default_url": "/tree"}, (None, (), "", False, Resources(), (), "/tree")),
    ],
)
def test_a_choice_is_read_and_changes_nothing_of_the_identity(more: dict, read: tuple) -> None:
    options = read_options({"notebooks": {**GOOD, **more}})
    assert options == LaunchOptions("group/sub/thing", SHA, "main", *read)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"notebooks": GOOD, "image": "x"}, "image"),
        ({"notebooks": GOOD, 1: 2}, "'1'"),
        ({"notebooks": {**GOOD, "image": 7}}, "`image`"),
        ({"notebooks": {**GOOD, "image": "a\nb"}}, "`image`"),
        ({"notebooks": {**GOOD, "image": "a" * 501}}, "`image`"),
        ({"notebooks": {**GOOD, "new_image": "yes"}}, "`new_image`"),
        ({"notebooks": {**GOOD, "cpu": "all"}}, "`cpu_request`"),
        ({"notebooks": {**GOOD, "memory": -1}}, "`mem_request`"),
        ({"notebooks": {**GOOD, "mounts": "a"}}, "`mounts`"),
        ({"notebooks": {**GOOD, "mounts": ["../a"]}}, "`mounts`"),
        ({"notebooks": {**GOOD, "default_url": "//evil.test"}}, "`defaultUrl`"),
        ({"notebooks": {**GOOD, "default_url": ["/lab"]}}, "`defaultUrl`"),
        ({"notebooks": {**GOOD, "environment": {"A": "b"}}}, "environment"),
        ({"notebooks": {"project": "a/b", "commit": SHA}}, "branch"),
        ({"notebooks": {}}, "missing"),
        ({"notebooks": None}, "object"),
        ({"notebooks": [GOOD]}, "object"),
        ({"notebooks": "group/thing"}, "object"),
        ({"notebooks": {**GOOD, "project": 7}}, "`project` must be a string"),
        ({"notebooks": {**GOOD, "commit": None}}, "`commit` must be a string"),
        ({"notebooks": {**GOOD, "branch": ["main"]}}, "`branch` must be a string"),
        ({"notebooks": {**GOOD, "commit": SHA[:8]}}, "40"),
        ({"notebooks": {**GOOD, "commit": SHA.upper()}}, "40"),
        ({"notebooks": {**GOOD, "commit": SHA + "\n"}}, "40"),
        ({"notebooks": {**GOOD, "commit": "main"}}, "40"),
        ({"notebooks": {**GOOD, "project": "../../etc"}}, "project"),
        ({"notebooks": {**GOOD, "branch": "--upload-pack=x"}}, "branch"),
        ({"notebooks": {**GOOD, "branch": "main; rm -rf ~"}}, "branch"),
        ({"notebooks": {**GOOD, "lfs_auto_fetch": "true"}}, "lfs_auto_fetch"),
        ({"notebooks": {**GOOD, "lfs_auto_fetch": 1}}, "lfs_auto_fetch"),
        ({"notebooks": {**GOOD, "submodules": "12"}}, "submodules"),
        ({"notebooks": {**GOOD, "submodules": {"12": True}}}, "submodules"),
        ({"notebooks": {**GOOD, "submodules": ["group/library"]}}, "submodules"),
        ({"notebooks": {**GOOD, "submodules": [True]}}, "submodules"),
        ({"notebooks": {**GOOD, "submodules": [1.0]}}, "submodules"),
        ({"notebooks": {**GOOD, "submodules": [0]}}, "submodules"),
        ({"notebooks": {**GOOD, "submodules": [-7]}}, "submodules"),
        ({"notebooks": {**GOOD, "submodules": [7, 7]}}, "twice"),
        ({"notebooks": {**GOOD, "submodules": list(range(1, 52))}}, "at most 50"),
    ],
)
def test_anything_else_is_refused_with_what_is_wrong(options: dict, says: str) -> None:
    with pytest.raises(LaunchRefused, match="refused") as refused:
        read_options(options)
    assert says in refused.value.message


@pytest.mark.parametrize(
    ("path", "good"),
    [
        ("group/thing", True),
        ("a/b/c/d/e", True),
        ("Group_1/my.thing-2", True),
        ("group/" + SHA, True),
        ("thing", False),
        ("", False),
        ("/group/thing", False),
        ("group//thing", False),
        ("group/thing/", False),
        ("group/../thing", False),
        ("group/./thing", False),
        ("group/-thing", False),
        ("group/thing.git", False),
        ("group/thing.atom", False),
        ("group/thing.", False),
        ("group/thi ng", False),
        ("group/thing\n", False),
        ("group/thing?x", False),
        ("group/thing%2f", False),
        ("group\\thing", False),
        ("a/" + "b" * 1100, False),
    ],
)
def test_project_paths(path: str, good: bool) -> None:
    assert is_project_path(path) is good


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("main", True),
        ("feature/größer-1.2", True),
        ("a$(b)", True),
        ("1", True),
        ("", False),
        ("-main", False),
        ("/main", False),
        ("main/", False),
        ("main.", False),
        ("a..b", False),
        ("a//b", False),
        ("a b", False),
        ("a\tb", False),
        ("a\x7f", False),
        ("a:b", False),
        ("a~1", False),
        ("a^", False),
        ("a@{1}", False),
        ("@", False),
        ("HEAD", False),
        ("x.lock", False),
        ("x.lock/y", False),
        (".x", False),
        ("x/.y", False),
        ("a\\b", False),
        ("a[b", False),
        ("a*", False),
        ("x" * 256, False),
    ],
)
def test_branch_names(name: str, good: bool) -> None:
    assert is_branch_name(name) is good


@pytest.mark.parametrize(
    ("options", "ours"),
    [
        ({"notebooks": None}, True),
        ({}, False),
        (None, False),
        ({"profile": "x"}, False),
        ([], False),
    ],
)
def test_only_the_key_makes_a_server_ours(options: object, ours: bool) -> None:
    assert is_ours(options) is ours


@pytest.mark.parametrize("project", [1, 7, 10**9, 10**15])
def test_every_name_that_we_give_looks_like_ours_and_is_one_for_jupyterhub(project: int) -> None:
    name = server_name(project, SHA, "main")
    assert may_be_ours(name)
    # JupyterHub 6's rule; 5.4 takes more.
    assert re.fullmatch(r"[a-z](?:-?[a-z0-9]){0,29}", name) and len(name) <= 30


@pytest.mark.parametrize("name", ["", "my-server", "thing-ABCDEFGHIJKLMNOP", "x-abcdefghijklmnop1"])
def test_other_names_do_not(name: str) -> None:
    assert not may_be_ours(name)


# Branches of any name, as git itself judges them

PARTS = [
    "/",
    ".",
    "..",
    "-",
    "@",
    "@{",
    "{",
    ".lock",
    "refs/",
    "HEAD",
    "a",
    "b" * 100,
    "ü",
    "漢" * 80,
]
BRANCHES = st.one_of(
    st.text(max_size=30),
    st.lists(st.sampled_from(PARTS), max_size=7).map("".join),
    st.text(
        st.characters(min_codepoint=0x80, exclude_categories=["Cs"]), min_size=60, max_size=255
    ),
)


def git_allows(name: str) -> bool:
    command = ["git", "check-ref-format", "--branch", name]
    return subprocess.run(command, capture_output=True).returncode == 0


@settings(max_examples=150, deadline=None, database=None)
@given(BRANCHES, st.text("0123456789abcdef", min_size=40, max_size=40), st.integers(0, 2))
@example("x" * 250, SHA, 2)
@example("漢" * 80, SHA, 1)
@example("a/" + "ü" * 120, SHA, 0)
def test_a_branch_that_we_take_is_one_for_git_and_so_is_ours_beside_it(
    branch: str, sha: str, taken: int
) -> None:
    """Also as a file, with the ``.lock`` that git makes beside it."""
    if not is_branch_name(branch):
        return
    assert git_allows(branch)
    others: set[str] = set()
    for _ in range(taken + 1):
        name, tracks = local_branch(branch, sha, None, others)
        others.add(name)
    assert not tracks and name != branch and len(others) == taken + 1
    assert git_allows(name)
    assert len(name.rpartition("/")[2].encode() + b".lock") <= 255


@given(st.integers(1, 10**15), st.text("0123456789abcdef", min_size=40, max_size=40), BRANCHES)
def test_a_server_of_any_branch_has_a_name_of_its_own(project: int, sha: str, branch: str) -> None:
    name = server_name(project, sha, branch)
    assert may_be_ours(name) and name == server_name(project, sha, branch)
    assert re.fullmatch(r"[a-z](?:-?[a-z0-9]){0,29}", name) and len(name) <= 30
    others = {
        server_name(project, sha, f"{branch}x"),
        server_name(project + 1, sha, branch),
        server_name(project, sha[1:] + ("0" if sha[0] != "0" else "1"), branch),
    }
    assert name not in others

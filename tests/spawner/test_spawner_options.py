"""What a request for one of our servers may look like, as tables."""

import re

import pytest

from notebooks_service.domain import server_name
from notebooks_service.errors import LaunchRefused
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
        ({"notebooks": {**GOOD, "image": "evil/image:latest"}}, "image"),
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

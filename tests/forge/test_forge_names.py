"""Names, slugs, refs and the throttle: small pure things."""

from __future__ import annotations

import pytest

from notebooks_service.forge import paths
from notebooks_service.forge.changes import is_file_path
from notebooks_service.forge.errors import ForgeError
from notebooks_service.forge.repositories import is_ref_name
from notebooks_service.forge.throttle import Throttle


@pytest.mark.parametrize("path", ["ada", "a", "ada.lovelace", "Ada-1", "_x", "a" * 40, "0" * 40])
def test_paths_that_gitlab_allows(path: str) -> None:
    assert paths.check_path(path) == path


@pytest.mark.parametrize(
    "path",
    ["", "-ada", "ada.git", "ada.GIT", "ada.atom", "a b", "a/b", "ü", "a.", "..", "a..b", "a\n"],
)
def test_paths_that_gitlab_refuses(path: str) -> None:
    with pytest.raises(ForgeError) as refused:
        paths.check_path(path)
    assert refused.value.status == 400


@pytest.mark.parametrize("path", ["api", "-", "oauth", "users", "admin", "static", "API"])
def test_addresses_of_the_forge_are_no_names(path: str) -> None:
    with pytest.raises(ForgeError):
        paths.check_path(path, top=True)


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("Über die Daten!", "uber-die-daten"),
        ("thing", "thing"),
        ("My  Thing_2", "my-thing_2"),
        ("日本", "project"),
        ("..x..", "x"),
        ("a.git", "a-git"),
        ("---", "project"),
    ],
)
def test_slugs(name: str, slug: str) -> None:
    assert paths.slug(name) == slug
    paths.check_path(slug)


@pytest.mark.parametrize("name", ["main", "feat/x", "ü", "a.b", "v1.0", "0" * 40, "HEAD"])
def test_names_of_refs(name: str) -> None:
    assert is_ref_name(name)


@pytest.mark.parametrize(
    "name",
    ["", "@", "-x", "a..b", "a b", "a~1", "a^", "a:b", "x.lock", "/a", "a/", ".a", "a/.b", "a@{1}"],
)
def test_what_is_no_name_of_a_ref(name: str) -> None:
    assert not is_ref_name(name)


@pytest.mark.parametrize(
    ("path", "good"),
    [
        ("a", True),
        ("a/b.txt", True),
        (".github/x", True),
        ("", False),
        ("/a", False),
        ("a//b", False),
        ("../a", False),
        ("a/../b", False),
        (".git/config", False),
        ("a/.GIT/x", False),
        ("a\nb", False),
    ],
)
def test_paths_of_files(path: str, good: bool) -> None:
    assert is_file_path(path) is good


def test_a_throttle_closes_and_opens_again() -> None:
    clock = 0.0
    throttle = Throttle(tries=3, seconds=10, clock=lambda: clock)
    for _ in range(3):
        assert not throttle.is_closed("name Ada")
        throttle.failed("name ada", "address 1")
    assert throttle.is_closed("name ADA")
    assert not throttle.is_closed("name bob", "address 1")
    for _ in range(27):  # an address closes after ten times as many: many people can share it
        throttle.failed("name guessed", "address 1")
    assert throttle.is_closed("name bob", "address 1")
    assert not throttle.is_closed("name bob", "address 2")
    clock = 10.5
    assert not throttle.is_closed("name ada")
    throttle.failed("name ada")
    throttle.failed("name ada")
    throttle.succeeded("name ada")
    throttle.failed("name ada")
    assert not throttle.is_closed("name ada")

"""Names, slugs, refs and the throttle: small pure things."""

from __future__ import annotations

import itertools
import subprocess
import unicodedata
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forge_fixtures import ForgeProcess, make_repository, run_git
from notebooks_service.errors import NotebooksError
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


REFS = st.one_of(
    st.text(alphabet="aB1/.-_@{}~^:?*[\\ \x7f\tü", max_size=12),
    st.text(max_size=20),
    st.sampled_from(["a.lock/b", "a/b.lock", "HEAD", "refs/heads/a", "@{", "a//b", "x" * 249]),
)


def git_takes(name: str) -> bool:
    """git's own word, as the argument of a program: no NUL, and nothing that is no text."""
    try:
        argument = f"refs/heads/{name}".encode()
    except UnicodeEncodeError:
        return False
    if b"\0" in argument:
        return False
    return subprocess.run(["git", "check-ref-format", argument], check=False).returncode == 0


def ours_too(name: str) -> bool:
    """What is refused besides: what git would read as an option or as HEAD, and long names."""
    return name != "@" and not name.startswith("-") and len(name) < 250


@given(REFS)
@settings(max_examples=300, deadline=None)
def test_names_of_refs_are_those_of_git(name: str) -> None:
    assert is_ref_name(name) is (git_takes(name) and ours_too(name))


@pytest.fixture(scope="module")
def space(
    forge: ForgeProcess, tmp_path_factory: pytest.TempPathFactory
) -> tuple[httpx.Client, int, Path]:
    """A client for one person, and a project of theirs with its repository."""
    owner = forge.user()
    source = tmp_path_factory.mktemp("names") / "thing"
    make_repository(source)
    number = forge.project(source, f"{owner}/thing", owner)
    client = httpx.Client(
        base_url=f"{forge.url}/api/v4", headers={"PRIVATE-TOKEN": forge.token(owner)}
    )
    return client, number, forge.data / "forge" / "repositories" / f"{number}.git"


@given(REFS.filter(bool), st.sampled_from(["branches", "tags"]))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_api_makes_the_refs_that_git_takes(
    space: tuple[httpx.Client, int, Path], name: str, kind: str
) -> None:
    client, number, repository = space
    field, base = ("branch", "heads") if kind == "branches" else ("tag_name", "tags")
    address = f"/projects/{number}/repository/{kind}"
    answer = client.post(address, json={field: name, "ref": "main"})
    assert answer.status_code == (201 if git_takes(name) and ours_too(name) else 400), answer.text
    there = run_git("for-each-ref", "--format=%(refname)", cwd=repository).split("\n")
    assert (f"refs/{base}/{name}" in there) is (answer.status_code == 201)
    if answer.status_code == 201:
        # Found by its name, whatever it holds, and gone again.
        assert answer.json()["name"] == name
        one = f"{address}/{quote(name, safe='')}"
        assert client.get(one).json()["name"] == name
        assert client.delete(one).status_code == 204


NUMBERS = itertools.count()
SEGMENTS = st.one_of(
    st.text(alphabet="aZ09_-. /", min_size=1, max_size=10),
    st.text(min_size=1, max_size=10),
    st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,8}", fullmatch=True),
)


def accepted(path: str, **kind: bool) -> bool:
    try:
        return paths.check_path(path, **kind) == path
    except ForgeError:
        return False


@given(SEGMENTS)
def test_an_allowed_path_is_one_segment_that_nothing_reads_otherwise(path: str) -> None:
    if accepted(path):
        assert quote(path, safe="") == path and path not in (".", "..")
        assert unicodedata.normalize("NFKC", path) == path and path.isascii()
        assert not path.startswith("-") and not path.lower().endswith((".git", ".atom"))
        # The same in every case: names differ by more than that.
        assert accepted(path.swapcase())


@given(st.text(max_size=300))
def test_any_name_gives_a_path_and_a_name_that_are_allowed(name: str) -> None:
    assert accepted(paths.slug(name))
    assert paths.check_name(paths.display_name(name))


@given(SEGMENTS)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_groups_projects_and_people_have_the_names_that_are_allowed(
    space: tuple[httpx.Client, int, Path], forge: ForgeProcess, path: str
) -> None:
    client, _, _ = space
    # What was made stays, so each try has a name of its own.
    top = f"{path}{next(NUMBERS)}"
    made = client.post("/groups", json={"name": "Any", "path": top})
    assert made.status_code == (201 if accepted(top, top=True) else 400), made.text
    if made.status_code == 201:
        below = {"name": "Any", "path": path, "namespace_id": made.json()["id"]}
        project = client.post("/projects", json=below)
        assert project.status_code == (201 if accepted(path, project=True) else 400), project.text
        if project.status_code == 201:
            full = f"{top}/{path}".swapcase()
            found = client.get(f"/projects/{quote(full, safe='')}")
            assert found.json()["id"] == project.json()["id"]
            assert (
                client.post("/projects", json={**below, "path": path.swapcase()}).status_code == 400
            )
        # A person and a group never share a name.
        try:
            forge.administration.add_user(top.swapcase())
        except NotebooksError as error:
            assert error.status in (409, 422)
        else:
            raise AssertionError(top)


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

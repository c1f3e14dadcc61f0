"""Which images can go, what a hub says servers run in, and removal from a store and from a registry."""

from __future__ import annotations

import io
import os
import signal
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from images_repository import commit, git

from forge_fixtures import ForgeProcess, make_repository
from notebooks_service.cli import main
from notebooks_service.domain import Image, ImageOrigin, LaunchRecord
from notebooks_service.errors import Forbidden, HubUnavailable, InvalidRequest
from notebooks_service.images.build import make_read_only
from notebooks_service.images.container_build import Place
from notebooks_service.images.container_command import listed
from notebooks_service.images.environment import RECORD_NAME, Environment
from notebooks_service.images.environments import EnvironmentStore
from notebooks_service.images.in_use import images_in_use
from notebooks_service.images.lock import held
from notebooks_service.images.prune import (
    InUse,
    Unneeded,
    history,
    remove_from_registry,
    remove_from_store,
    unneeded,
)
from notebooks_service.images.registry import MEDIA_TYPES, Login, RegistryClient
from registry_fixtures import Registry, push_image

A, B, C = ("a" * 40, "b" * 40, "c" * 40)
ONE, TWO, THREE = (f"sha256:{letter * 64}" for letter in "123")
E1, E2, E3 = (f"env-{letter * 64}" for letter in "def")

TABLE: list[tuple[str, dict[str, str], set[str], InUse, set[str], set[str]]] = [
    ("nothing", {}, set(), InUse(), set(), set()),
    ("reached", {A: ONE, E1: ONE}, {A}, InUse(), set(), set()),
    ("not reached", {A: ONE, E1: ONE}, set(), InUse(), set(), {A, E1}),
    ("its environment is another's", {A: ONE, B: ONE, E1: ONE}, {B}, InUse(), set(), {A}),
    ("a server's digest", {A: ONE, E1: ONE}, set(), InUse(frozenset({ONE})), set(), set()),
    (
        "a server's commit",
        {A: ONE, E1: ONE},
        set(),
        InUse(commits=frozenset({A})),
        set(),
        set(),
    ),
    ("another server's", {A: ONE, E1: ONE}, set(), InUse(frozenset({TWO})), set(), {A, E1}),
    ("an environment of a tip", {E1: ONE, E2: TWO}, set(), InUse(), {"d" * 64}, {E2}),
    ("not ours", {"latest": ONE, "v1": TWO, "env-x": ONE, "a" * 39: ONE}, set(), InUse(), set(), set()),
    ("a moved tag", {A: TWO, E1: ONE}, {A}, InUse(), set(), {E1}),
    ("mixed", {A: ONE, B: TWO, C: THREE, E1: ONE, E2: TWO, E3: THREE}, {A}, InUse(frozenset({THREE})), set(), {B, E2}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "tags", "reachable", "in_use", "wanted", "expected"), TABLE, ids=[r[0] for r in TABLE]
)
def test_what_can_go(
    name: str,
    tags: dict[str, str],
    reachable: set[str],
    in_use: InUse,
    wanted: set[str],
    expected: set[str],
) -> None:
    found = unneeded(tags, reachable, in_use, wanted)
    assert {one.tag for one in found} == expected
    assert all(one.digest == tags[one.tag] and one.why for one in found)


def test_what_branches_and_tags_reach(tmp_path: Path) -> None:
    upstream, clone = tmp_path / "upstream", tmp_path / "clone"
    first = commit(upstream, {"a": "1"})
    second = commit(upstream, {"a": "2"})
    git(upstream, "tag", "-a", "-m", "x", "v1")
    git(upstream, "checkout", "-q", "-b", "side", first)
    side = commit(upstream, {"b": "1"})
    git(upstream, "checkout", "-q", "--detach", first)
    lost = commit(upstream, {"lost": "1"})
    git(tmp_path, "clone", "-q", str(upstream), str(clone))
    known = history(clone, "origin")
    assert known.reachable == {first, second, side} and set(known.tips) == {second, side}
    assert history(upstream, None) == known and lost not in known.reachable
    # Whoever knows less than the remote decides nothing.
    git(upstream, "checkout", "-q", "side")
    commit(upstream, {"b": "2"})
    with pytest.raises(InvalidRequest, match="git fetch"):
        history(clone, "origin")
    shallow = tmp_path / "shallow"
    git(tmp_path, "clone", "-q", "--depth=1", f"file://{upstream}", str(shallow))
    with pytest.raises(InvalidRequest, match="shallow"):
        history(shallow, "origin")
    empty = tmp_path / "empty"
    git(tmp_path, "init", "-q", "--bare", str(empty))
    with pytest.raises(InvalidRequest, match="no branch"):
        history(empty, None)


# What a hub says -------------------------------------------------------------------------------


def record(digest: str, had: str) -> dict[str, Any]:
    """A launch's record as the hub keeps it in a server's state."""
    image = Image("r/x", digest, ImageOrigin.COMMIT, "because")
    made = LaunchRecord("id", 1, "group/project", A, "main", "2026-01-01T00:00:00Z", image=image)
    return {"notebooks": {**made.to_dict(), "had": {**image.to_dict(), "digest": had}}}


def hub(pages: list[Any]) -> httpx.Client:
    left = iter(pages)

    def answer(request: httpx.Request) -> httpx.Response:
        assert request.headers["authorization"] == "token t"
        assert request.url.params["include_stopped_servers"] == "1"
        page = next(left)
        return page if isinstance(page, httpx.Response) else httpx.Response(200, json=page)

    return httpx.Client(transport=httpx.MockTransport(answer))


def users(*servers: dict[str, Any], following: int | None = None) -> dict[str, Any]:
    named = {str(number): server for number, server in enumerate(servers)}
    pagination = {"next": {"offset": following} if following else None}
    return {"items": [{"name": "ada", "servers": named}], "_pagination": pagination}


def test_what_servers_run_in() -> None:
    ours = {"notebooks": {"project": "Group/Project", "commit": B}}
    theirs = {"notebooks": {"project": "group/other", "commit": C}}
    pages = [
        users({"state": record(ONE, TWO), "user_options": ours}, following=200),
        users({"state": None, "user_options": theirs}, {"state": {"pid": 1}, "user_options": None}),
    ]
    with hub(pages) as http:
        found = images_in_use("https://hub.example.org/", "t", "group/project", http)
    assert found == InUse(frozenset({ONE, TWO}), frozenset({B}))


@pytest.mark.parametrize(
    ("page", "error"),
    [
        (httpx.Response(403), Forbidden),
        (httpx.Response(500), HubUnavailable),
        (httpx.Response(302, headers={"Location": "https://evil.example.net"}), HubUnavailable),
        ({"items": [{"name": "ada"}]}, Forbidden),
        ([], HubUnavailable),
        (httpx.Response(200, content=b"<html>"), HubUnavailable),
    ],
)
def test_a_hub_that_does_not_tell_is_not_taken_for_one_without_servers(
    page: Any, error: type[Exception]
) -> None:
    with hub([page]) as http, pytest.raises(error):
        images_in_use("https://hub.example.org", "t", "group/project", http)


# Removal ---------------------------------------------------------------------------------------


def test_from_a_store(tmp_path: Path) -> None:
    store = EnvironmentStore(tmp_path / "environments")
    fingerprint = "d" * 64
    path = store.root / "7" / fingerprint
    (path / "bin").mkdir(parents=True)
    (store.root / "7" / ".locks").mkdir()
    made = Environment(fingerprint, ONE, path, path / "bin" / "python", (), {}, "Python")
    (path / RECORD_NAME).write_text(made.to_record())
    make_read_only(path)
    path.chmod(0o555)
    store.tag(7, A, fingerprint)
    tags = {A: ONE, E1: ONE}
    assert remove_from_store(store, 7, unneeded(tags, {A}, InUse())) == 0
    going = unneeded(tags, set(), InUse())
    with held(store.root / "7" / ".locks" / fingerprint, lambda: None):
        assert remove_from_store(store, 7, going[1:]) == 0  # it is being built
    assert store.tagged(7, A) == made
    assert remove_from_store(store, 7, going) == 2
    assert store.tags(7) == {} and not path.exists()
    assert remove_from_store(store, 7, going) == 0


@pytest.fixture
def place(ci_forge: ForgeProcess, registry: Registry, tmp_path: Path) -> Place:
    owner = ci_forge.user()
    make_repository(tmp_path / "there")
    path = f"{owner}/old"
    ci_forge.project(tmp_path / "there", path, owner)
    login = Login(owner, ci_forge.token(owner))
    client = RegistryClient(registry.url, realms=[f"{ci_forge.url}/jwt/auth"], login=login)
    return Place(client, path, f"127.0.0.1:{registry.port}/{path}")


def test_from_a_registry(place: Place) -> None:
    """Debian's cannot delete a tag alone: an image that a tag needs stays, with all its tags."""
    registry, path = place.registry, place.repository
    shared = push_image(registry, path, MEDIA_TYPES[1])
    alone = push_image(registry, path, MEDIA_TYPES[3])
    for tag in (A, B, "latest"):
        registry.put(path, tag, shared)
    for tag in (C, E1):
        registry.put(path, tag, alone)
    tags = listed(place)
    going = unneeded(tags, {B}, InUse())
    assert {one.tag for one in going} == {A, C, E1}
    staying = {tags[B]}
    said: list[str] = []
    assert remove_from_registry(place, going, staying, said.append) == 2
    assert set(listed(place)) == {A, B, "latest"} and listed(place)[B] == shared.digest
    assert len(said) == 1 and A in said[0] and "other tags need" in said[0]
    # Decided long ago: the tag is another image's by now, or another took the digest.
    registry.put(path, C, shared)
    old = [Unneeded(C, alone.digest, "")]
    assert remove_from_registry(place, old, set(), said.append) == 0
    assert "moved meanwhile" in said[-1] and C in listed(place)
    assert remove_from_registry(place, [Unneeded(C, shared.digest, "")], set(), said.append) == 0
    assert len(listed(place)) == 4


class Terminal(io.StringIO):
    """Somebody at a terminal, who types ``answer`` or, if that is None, Ctrl-C."""

    def __init__(self, answer: str | None) -> None:
        super().__init__(answer or "")
        self.answer = answer
        self.asked = False

    def isatty(self) -> bool:
        return True

    def readline(self, size: int | None = -1, /) -> str:
        self.asked = True
        if self.answer is None:
            signal.raise_signal(signal.SIGINT)
        return super().readline()


def test_it_asks_before_it_removes_anything(
    place: Place,
    ci_forge: ForgeProcess,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(tmp_path / "there"), str(clone))
    for name in [name for name in os.environ if name.startswith("CI")]:
        monkeypatch.delenv(name)
    owner = place.repository.partition("/")[0]
    monkeypatch.setenv("NOTEBOOKS_REGISTRY_USER", owner)
    monkeypatch.setenv("NOTEBOOKS_REGISTRY_PASSWORD", ci_forge.token(owner))
    words = ["image", "prune", "--image", place.image, "--forge", ci_forge.url]
    words += ["--checkout", str(clone)]

    def prune(stdin: io.StringIO, *more: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "stdin", stdin)
        code = main([*words, *more])
        said = capsys.readouterr()
        return code, said.out + said.err

    shared = push_image(place.registry, place.repository, MEDIA_TYPES[1])
    place.registry.put(place.repository, A, shared)
    before = listed(place)
    # Who does not say yes, by a word, by Ctrl-D or by Ctrl-C, has said no.
    for answer, code in (("n\n", 0), ("\n", 0), ("", 0), ("yea\n", 0), (None, 130)):
        terminal = Terminal(answer)
        ended, said = prune(terminal)
        assert ended == code and terminal.asked and "Remove them? [y/N]" in said, said
        assert A in said and listed(place) == before
        assert ("Nothing was removed." in said) is (code == 0)
    # Without a terminal there is nobody to ask, whatever comes by standard input.
    ended, said = prune(io.StringIO("y\n"))
    assert ended == 1 and "say --yes, or run this at a terminal" in said and A in said
    assert listed(place) == before
    unasked = Terminal("n\n")
    assert prune(unasked, "--yes")[0] == 0 and not unasked.asked
    assert A not in listed(place)
    place.registry.put(
        place.repository, A, push_image(place.registry, place.repository, MEDIA_TYPES[1])
    )
    assert A in listed(place)
    ended, said = prune(Terminal("y\n"))
    assert ended == 0 and "removed." in said and A not in listed(place)


def test_an_image_stays_that_a_list_for_several_platforms_names(place: Place) -> None:
    """Its own tag is of no commit any more, but whoever pulls the list is sent to it by digest."""
    registry, path = place.registry, place.repository
    listing = push_image(registry, path, MEDIA_TYPES[0])
    [inner] = listing.images
    image = registry.manifest(path, inner)
    assert image is not None and image.images == []
    registry.put(path, "latest", listing)
    registry.put(path, A, image)
    going = [Unneeded(name, inner, "") for name in (A, "inner")]
    said: list[str] = []
    assert remove_from_registry(place, going, set(), said.append) == 0
    assert "other tags need this one" in said[0]
    assert registry.head(path, inner) == inner


def test_a_registry_that_deletes_tags_alone() -> None:
    """GitLab's own does."""
    tags = {A: ONE, B: ONE}

    def answer(request: httpx.Request) -> httpx.Response:
        name = request.url.path.rsplit("/", 1)[-1]
        if request.method == "DELETE":
            return httpx.Response(202 if tags.pop(name, None) else 404)
        return httpx.Response(200, headers={"Docker-Content-Digest": tags[name]})

    http = httpx.Client(transport=httpx.MockTransport(answer))
    place = Place(RegistryClient("https://r.example.org", http=http), "a/b", "r.example.org/a/b")
    assert remove_from_registry(place, [Unneeded(A, ONE, "")], {ONE}, print) == 1
    assert tags == {B: ONE}

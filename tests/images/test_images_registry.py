"""The registry's client: with Debian's real registry and the forge's tokens, and with hostile answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from forge_fixtures import ForgeProcess, make_repository
from notebooks_service.errors import Forbidden, InvalidRequest, RegistryUnavailable
from notebooks_service.images.registry import (
    MEDIA_TYPES,
    Login,
    Manifest,
    RegistryClient,
    registry_of,
)
from registry_fixtures import Registry, push_image

# With the real registry -----------------------------------------------------------------------

PATH = "images/private"


@pytest.fixture(scope="module")
def people(ci_forge: ForgeProcess, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Login]:
    make_repository(tmp_path_factory.mktemp("thing") / "thing")
    owner = ci_forge.user()
    source = tmp_path_factory.mktemp("source") / "thing"
    make_repository(source)
    ci_forge.project(source, PATH, owner)
    made = {"owner": owner, "stranger": ci_forge.user()}
    for level in ("reporter", "developer"):
        made[level] = ci_forge.user()
        ci_forge.administration.add_member(PATH, made[level], level)
    return {who: Login(name, ci_forge.token(name)) for who, name in made.items()}


@pytest.fixture
def client(
    ci_forge: ForgeProcess, registry: Registry
) -> Iterator[Callable[[Login | None], RegistryClient]]:
    made: list[RegistryClient] = []

    def make(login: Login | None) -> RegistryClient:
        one = RegistryClient(registry.url, realms=[f"{ci_forge.url}/jwt/auth"], login=login)
        made.append(one)
        return one

    yield make
    for one in made:
        one.close()


def test_the_real_registry(
    people: dict[str, Login], client: Callable[[Login | None], RegistryClient]
) -> None:
    developer = client(people["developer"])
    assert developer.tags(PATH) == []
    assert developer.manifest(PATH, "a" * 40) is None and developer.head(PATH, "none") is None
    pushed = {}
    for kind in MEDIA_TYPES:
        pushed[kind] = push_image(developer, PATH, kind)
        tag = f"is-{MEDIA_TYPES.index(kind)}"
        developer.put(PATH, tag, pushed[kind])
        assert developer.head(PATH, tag) == pushed[kind].digest
        # Byte for byte, and under another tag the same.
        found = developer.manifest(PATH, tag)
        assert found == pushed[kind]
        developer.put(PATH, f"{tag}-again", found)
        assert developer.manifest(PATH, f"{tag}-again") == found
        assert developer.manifest(PATH, found.digest) == found
    assert len(developer.tags(PATH)) == 9  # "inner" is what the lists hold
    single = pushed[MEDIA_TYPES[1]]
    assert developer.labels(PATH, single) == {"a": "b"}
    assert developer.labels(PATH, pushed[MEDIA_TYPES[0]]) == {}

    # The reader reads, and cannot write; a stranger and nobody learn nothing, not even that it is there.
    reporter = client(people["reporter"])
    assert reporter.head(PATH, "is-1") == single.digest
    with pytest.raises(Forbidden, match="push"):
        reporter.put(PATH, "is-1-mine", single)
    with pytest.raises(Forbidden, match="delete"):
        reporter.delete_digest(PATH, single.digest)
    for login in (people["stranger"], None):
        other = client(login)
        assert other.head(PATH, "is-1") == other.head(PATH, "no-such-tag") is None
        assert other.head("images/none", "is-1") is None
        assert other.manifest(PATH, single.digest) is None
        assert other.tags(PATH) == other.tags("images/none") == []
        with pytest.raises(Forbidden) as hidden:
            other.put(PATH, "is-1", single)
        with pytest.raises(Forbidden) as missing:
            other.put("images/none", "is-1", single)
        assert hidden.value.message == missing.value.message
    with pytest.raises(Forbidden, match="login was refused"):
        client(Login(people["developer"].user, "wrong")).head(PATH, "is-1")

    # Debian's registry deletes by digest only, which takes every tag of it.
    owner = client(people["owner"])
    assert owner.delete_tag(PATH, "is-1") is None
    assert owner.delete_digest(PATH, single.digest) is True
    assert owner.head(PATH, "is-1") is None and owner.head(PATH, "is-1-again") is None
    assert owner.head(PATH, "is-3") == pushed[MEDIA_TYPES[3]].digest


def test_more_tags_than_a_page(
    people: dict[str, Login],
    client: Callable[[Login | None], RegistryClient],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("notebooks_service.images.registry.TAGS_A_PAGE", 3)
    developer = client(people["developer"])
    manifest = push_image(developer, f"{PATH}/many", MEDIA_TYPES[1])
    names = [f"t{number}" for number in range(7)]
    for name in names:
        developer.put(f"{PATH}/many", name, manifest)
    assert sorted(developer.tags(f"{PATH}/many")) == names


# With answers that no registry should give -----------------------------------------------------

KIND = MEDIA_TYPES[1]
CONTENT = b'{"schemaVersion": 2}'
DIGEST = "sha256:" + hashlib.sha256(CONTENT).hexdigest()
Answer = Callable[[httpx.Request], httpx.Response]


def told(answer: Answer, **options: Any) -> tuple[RegistryClient, list[httpx.Request]]:
    """A client whose network is ``answer``, and what it was asked."""
    asked: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return answer(request)

    options = {"realms": ["https://forge.example.org/jwt/auth"], **options}
    options.setdefault("login", Login("me", "secret"))
    http = httpx.Client(transport=httpx.MockTransport(handle))
    return RegistryClient("https://registry.example.org", http=http, **options), asked


def challenge(realm: str) -> httpx.Response:
    value = f'Bearer realm="{realm}",service="x",scope="repository:other/project:pull,push,delete"'
    return httpx.Response(401, headers={"WWW-Authenticate": value})


@pytest.mark.parametrize(
    "realm",
    [
        "https://evil.example.net/jwt/auth",
        "http://forge.example.org/jwt/auth",
        "https://forge.example.org:8443/jwt/auth",
        "https://forge.example.org/jwt/auth2",
        "https://forge.example.org/group/project",
        "https://forge.example.org@evil.example.net/jwt/auth",
        "https://me@forge.example.org/jwt/auth",
        "https://forge.example.org.evil.example.net/jwt/auth",
        "//forge.example.org/jwt/auth",
        "",
    ],
)
def test_no_password_for_a_realm_that_a_response_names(realm: str) -> None:
    client, asked = told(lambda request: challenge(realm))
    with pytest.raises(RegistryUnavailable, match="no password was sent"):
        client.head("a/b", "c")
    assert len(asked) == 1 and "authorization" not in asked[0].headers


def test_the_known_realm_gets_our_scope_and_not_the_one_asked_for() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.host == "forge.example.org":
            return httpx.Response(200, json={"token": "t", "expires_in": 300})
        if request.headers.get("authorization") != "Bearer t":
            return challenge("https://FORGE.example.org:443/jwt/auth")
        return httpx.Response(
            200, content=CONTENT, headers={"Content-Type": KIND, "Docker-Content-Digest": DIGEST}
        )

    client, asked = told(answer)
    assert client.manifest("a/b", "c") == Manifest(KIND, CONTENT, DIGEST)
    [token] = [request for request in asked if request.url.host == "forge.example.org"]
    assert dict(token.url.params) == {"service": "x", "scope": "repository:a/b:pull"}
    before = len(asked)
    assert client.head("a/b", "d") == DIGEST
    assert len(asked) == before + 1  # the token is kept


def test_basic_goes_to_the_registry_alone() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.headers.get("authorization", "").startswith("Basic "):
            return httpx.Response(302, headers={"Location": "https://evil.example.net/"})
        return httpx.Response(401, headers={"WWW-Authenticate": 'Basic realm="x"'})

    client, asked = told(answer)
    with pytest.raises(RegistryUnavailable, match="302"):
        client.manifest("a/b", "c")
    assert {request.url.host for request in asked} == {"registry.example.org"}
    client, asked = told(answer, login=None)
    assert client.manifest("a/b", "c") is None and len(asked) == 1


def test_a_blob_elsewhere_needs_a_host_that_is_configured() -> None:
    config = json.dumps({"config": {"Labels": {"a": "b", "c": 1}}}).encode()
    digest = "sha256:" + hashlib.sha256(config).hexdigest()

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.host == "registry.example.org":
            return httpx.Response(307, headers={"Location": "https://blobs.example.net/x"})
        assert "authorization" not in request.headers
        return httpx.Response(200, content=config)

    content = json.dumps({"config": {"digest": digest}}).encode()
    manifest = Manifest(KIND, content, "sha256:" + hashlib.sha256(content).hexdigest())
    client, asked = told(answer)
    assert client.labels("a/b", manifest) == {} and len(asked) == 1
    client, asked = told(answer, blob_hosts=["blobs.example.net"])
    assert client.labels("a/b", manifest) == {"a": "b"} and len(asked) == 2


HOSTILE: list[tuple[str, dict[str, Any], str]] = [
    ("another digest", {"headers": {"Docker-Content-Digest": "sha256:" + "0" * 64}}, "digest"),
    ("no image", {"headers": {"Content-Type": "text/html"}}, "not an image"),
    ("too large", {"content": b"x" * (5 * 2**20)}, "too large"),
    (
        "a redirect",
        {"status_code": 307, "headers": {"Location": "https://evil.example.net"}},
        "307",
    ),
    ("broken", {"status_code": 500}, "500"),
]


@pytest.mark.parametrize(("name", "change", "words"), HOSTILE, ids=[row[0] for row in HOSTILE])
def test_hostile_answers(name: str, change: dict[str, Any], words: str) -> None:
    parts: dict[str, Any] = {"status_code": 200, "content": CONTENT, **change}
    parts["headers"] = {"Content-Type": KIND, **change.get("headers", {})}
    client, asked = told(lambda request: httpx.Response(**parts))
    with pytest.raises(RegistryUnavailable, match=words):
        client.manifest("a/b", "c")
    assert len(asked) == 1


def test_a_digest_is_what_was_asked_for() -> None:
    client, _ = told(
        lambda request: httpx.Response(200, content=b"{}", headers={"Content-Type": KIND})
    )
    with pytest.raises(RegistryUnavailable, match="digest"):
        client.manifest("a/b", DIGEST)


def test_a_busy_registry_is_asked_again_and_a_list_without_end_ends() -> None:
    answers = iter([429, 503, 200])

    def busy(request: httpx.Request) -> httpx.Response:
        status = next(answers)
        headers = {"Retry-After": "0", "Content-Type": KIND, "Docker-Content-Digest": DIGEST}
        return httpx.Response(status, headers=headers)

    client, asked = told(busy)
    assert client.head("a/b", "c") == DIGEST and len(asked) == 3
    client, asked = told(lambda request: httpx.Response(429, headers={"Retry-After": "3600"}))
    with pytest.raises(RegistryUnavailable) as error:
        client.head("a/b", "c")
    assert error.value.detail == {"reason": "busy"} and len(asked) == 1

    def endless(request: httpx.Request) -> httpx.Response:
        following = f"{request.url.params.get('last', '')}x"[-50:]
        link = f'<https://evil.example.net/?last={following}>; rel="next"'
        return httpx.Response(200, json={"tags": ["a"]}, headers={"Link": link})

    client, asked = told(endless)
    assert set(client.tags("a/b")) == {"a"}
    assert {request.url.host for request in asked} == {"registry.example.org"} and len(asked) < 60


@pytest.mark.parametrize(
    ("repository", "reference"),
    [("a/../b", "c"), ("A/b", "c"), ("a/b", "c/d"), ("a/b", ""), ("a/b?x", "c"), ("a/b", "c#")],
)
def test_names(repository: str, reference: str) -> None:
    client, asked = told(lambda request: httpx.Response(500))
    with pytest.raises(InvalidRequest):
        client.manifest(repository, reference)
    assert asked == []


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("registry.example.org/a/b", ("https://registry.example.org", "a/b")),
        ("registry.example.org:5050/a", ("https://registry.example.org:5050", "a")),
        ("127.0.0.1:5000/a/b", ("http://127.0.0.1:5000", "a/b")),
        ("localhost:5000/a/b", ("http://localhost:5000", "a/b")),
        ("[::1]:5000/a/b", ("http://[::1]:5000", "a/b")),
        ("127.0.0.1.example.org/a/b", ("https://127.0.0.1.example.org", "a/b")),
        ("me:secret@registry.example.org/a", None),
        ("registry.example.org", None),
        ("registry.example.org/A", None),
        ("[::1/a", None),
        ("", None),
    ],
)
def test_which_registry_an_image_is_in(image: str, expected: tuple[str, str] | None) -> None:
    if expected is None:
        with pytest.raises(InvalidRequest):
            registry_of(image)
    else:
        assert registry_of(image) == expected


def test_a_login_is_never_shown(tmp_path: Path) -> None:
    assert "secret" not in repr(Login("me", "secret")) + str(Login("me", "secret"))

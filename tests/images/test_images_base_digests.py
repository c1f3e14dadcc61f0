"""Which registries are asked what a base image is, how often, and what their answers come to."""

from __future__ import annotations

import pytest

from notebooks_service.errors import RegistryUnavailable, SettingsInvalid
from notebooks_service.images.base_digests import (
    MOST_BASES,
    BaseDigests,
    listed,
    read_base,
    read_registries,
)
from scripted_gitlab import Answer, Asked, ScriptedGitLab

D = "sha256:" + "d" * 64
MANIFEST = {
    "Docker-Content-Digest": D,
    "Content-Type": "application/vnd.oci.image.manifest.v1+json",
}


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("python", ("docker.io", "library/python", "latest")),
        ("python:3.11-slim", ("docker.io", "library/python", "3.11-slim")),
        ("jupyter/base:1", ("docker.io", "jupyter/base", "1")),
        ("docker.io/python", ("docker.io", "library/python", "latest")),
        ("index.docker.io/a/b", ("docker.io", "a/b", "latest")),
        ("registry-1.docker.io/library/a:b", ("docker.io", "library/a", "b")),
        ("Quay.io/a/b:c", ("quay.io", "a/b", "c")),
        ("localhost/a", ("localhost", "a", "latest")),
        ("host:5000/a", ("host:5000", "a", "latest")),
        ("host:5000/a/b:1", ("host:5000", "a/b", "1")),
        ("a/b/c", ("docker.io", "a/b/c", "latest")),
    ],
)
def test_references_as_docker_reads_them(reference: str, expected: tuple[str, ...]) -> None:
    assert read_base(reference) == expected


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("", []),
        ('["docker.io", "quay.io"]', ["docker.io", "quay.io"]),
        ("docker.io, quay.io ghcr.io", ["docker.io", "quay.io", "ghcr.io"]),
        ('"docker.io"', ['"docker.io"']),
    ],
)
def test_lists_in_a_variable(said: str, expected: list[str]) -> None:
    assert listed(said) == expected


def test_which_registries_are_named() -> None:
    assert read_registries(["Docker.io", "a.example:5000", "b.example=https://c.example/t"]) == {
        "docker.io": "",
        "a.example:5000": "",
        "b.example": "https://c.example/t",
    }
    for wrong in (
        "https://a.example",
        "a.example/b",
        "",
        "-a",
        "a=http://b/t",
        "a=b",
        "a b",
        "u@h",
    ):
        with pytest.raises(SettingsInvalid, match="base_registries"):
            read_registries([wrong])


def host(registry: ScriptedGitLab) -> str:
    return registry.url.removeprefix("http://")


def ask(registry: ScriptedGitLab, *named: str, reference: str = "a/b:1") -> str | None:
    return BaseDigests(named or [host(registry)]).asking("")(f"{host(registry)}/{reference}")


# ``gitlab`` and ``elsewhere`` are registries here.
def test_a_token_comes_from_the_registry_itself(gitlab: ScriptedGitLab) -> None:
    def manifest(asked: Asked) -> Answer:
        if asked.headers.get("Authorization") == "Bearer anybody":
            return 200, MANIFEST, b""
        challenge = f'Bearer realm="{gitlab.url}/token",service="s"'
        return 401, {"WWW-Authenticate": challenge}, b""

    gitlab.answers["HEAD /v2/a/b/manifests/1"] = manifest
    gitlab.json("GET /token", {"token": "anybody"})
    assert ask(gitlab) == D


@pytest.mark.parametrize("status", [401, 403, 404])
def test_hidden_and_missing_are_not_known(gitlab: ScriptedGitLab, status: int) -> None:
    gitlab.raw("HEAD /v2/a/b/manifests/1", status, b"")
    assert ask(gitlab) is None


def test_nobody_is_sent_elsewhere(gitlab: ScriptedGitLab, elsewhere: ScriptedGitLab) -> None:
    gitlab.raw("HEAD /v2/a/b/manifests/1", 307, b"", Location=f"{elsewhere.url}/v2/a/b/manifests/1")
    assert ask(gitlab) is None
    gitlab.raw(
        "HEAD /v2/a/b/manifests/1", 401, b"",
        WWW_Authenticate=f'Bearer realm="{elsewhere.url}/token",service="s"',
    )  # fmt: skip
    with pytest.raises(RegistryUnavailable, match="base_registries"):
        ask(gitlab)
    assert elsewhere.asked == []


def test_a_name_that_is_none_is_asked_of_nobody(gitlab: ScriptedGitLab) -> None:
    assert ask(gitlab, reference="UPPER/case:1") is None
    assert ask(gitlab, reference="a/b:1?x=/../") is None
    assert gitlab.asked == []


def test_answers_are_kept_for_moments_and_questions_are_few(gitlab: ScriptedGitLab) -> None:
    now = [0.0]
    for number in range(MOST_BASES + 5):
        gitlab.raw(f"HEAD /v2/a/b/manifests/{number}", 200, b"", Docker_Content_Digest=D)
    digests = BaseDigests([host(gitlab)], keep=5, clock=lambda: now[0])
    one = digests.asking("")
    names = [f"{host(gitlab)}/a/b:{number}" for number in range(MOST_BASES + 5)]
    assert [one(name) for name in names] == [D] * MOST_BASES + [None] * 5
    assert one(names[0]) == D  # asked already
    assert len(gitlab.asked) == MOST_BASES
    assert digests.asking("")(names[0]) == D
    assert len(gitlab.asked) == MOST_BASES
    now[0] = 5.1
    assert digests.asking("")(names[0]) == D
    assert len(gitlab.asked) == MOST_BASES + 1

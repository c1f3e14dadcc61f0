"""Pulls of images by digest: the count over the engine's events, and a real engine with a real registry."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import httpx
import pytest

from forge_fixtures import ForgeProcess, make_repository
from notebooks_service.errors import ImageUnavailable
from notebooks_service.spawner.pulling import Layers, Progress, Pulls
from registry_fixtures import SERVICE, Registry

sys.path.insert(0, str(Path(__file__).parents[1] / "images"))
from images_container import docker_daemon

PATH = "pulls/large"


def events(*rows: tuple[str, str] | tuple[str, str, int, int]) -> Iterator[dict[str, Any]]:
    for row in rows:
        event: dict[str, Any] = {"id": row[0], "status": row[1]}
        if len(row) == 4:
            event["progressDetail"] = {"current": row[2], "total": row[3]}
        yield event


@pytest.mark.parametrize(
    ("heard", "expected"),
    [
        ([], Progress()),
        ([("x", "Pulling from group/project")], Progress()),
        ([("a", "Pulling fs layer"), ("b", "Waiting")], Progress(2, 0)),
        ([("a", "Downloading", 3, 10), ("b", "Already exists")], Progress(2, 1, 3, 10)),
        ([("a", "Downloading", 3, 10), ("a", "Download complete")], Progress(1, 0, 10, 10)),
        # What extracting counts are other bytes.
        ([("a", "Downloading", 9, 10), ("a", "Extracting", 40, 50)], Progress(1, 0, 10, 10)),
        ([("a", "Downloading", 9, 10), ("a", "Pull complete")], Progress(1, 1, 10, 10)),
        # A layer without a length, and one that is longer than was said.
        ([("a", "Downloading", 5, 0), ("b", "Downloading", 9, 8)], Progress(2, 0, 14, 14)),
        # Tried again: what was there is not there any more.
        ([("a", "Downloading", 9, 10), ("a", "Downloading", 1, 10)], Progress(1, 0, 1, 10)),
        ([("a", "Retrying in 5 seconds")], Progress(1, 0)),
    ],
)
def test_layers(heard: list[Any], expected: Progress) -> None:
    layers = Layers()
    found = Progress()
    for event in events(*heard):
        found = layers.hear(event)
    assert found == expected


def test_events_that_are_none_count_nothing() -> None:
    layers = Layers()
    strange: list[Mapping[str, Any]] = [
        {},
        {"id": 3, "status": "Downloading"},
        {"id": "a"},
        {"status": "x"},
    ]
    assert [layers.hear(event) for event in strange] == [Progress()] * 4
    assert layers.hear({"id": "a", "status": "Downloading", "progressDetail": None}) == Progress(1)


def test_sentences() -> None:
    assert Progress().sentence == "Asking the registry for the image."
    assert Progress(3, 1).sentence == "Pulling the image: 1 of 3 layers."
    some = Progress(3, 1, 5 * 2**20, 1500 * 2**20)
    assert some.sentence == "Pulling the image: 1 of 3 layers, 5 of 1,500 MiB."


# -- with a real engine ------------------------------------------------------------------------


@dataclass
class Place:
    """An engine, a registry with one image that the engine does not have, and its people."""

    host: str
    name: str
    digest: str
    forge: ForgeProcess
    logins: dict[str, tuple[str, str]]

    def connect(self) -> docker.APIClient:
        return docker.APIClient(base_url=self.host)

    def token(self, who: str) -> Callable[[], Awaitable[str | None]]:
        async def fetch() -> str | None:
            return _token(self.forge, self.logins[who], "pull")

        return fetch

    def forget(self) -> None:
        client = self.connect()
        while found := client.images():
            for image in found:  # those that others are built on go after these
                with contextlib.suppress(docker.errors.APIError):
                    client.remove_image(image["Id"], force=True)


def _token(forge: ForgeProcess, login: tuple[str, str], actions: str) -> str:
    query = {"service": SERVICE, "scope": f"repository:{PATH}:{actions}"}
    token: str = httpx.get(f"{forge.url}/jwt/auth", params=query, auth=login).json()["token"]
    return token


@pytest.fixture(scope="module")
def place(
    ci_forge: ForgeProcess, registry: Registry, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    source = tmp_path_factory.mktemp("source") / "large"
    make_repository(source)
    owner, stranger = ci_forge.user(), ci_forge.user()
    ci_forge.project(source, PATH, owner)
    logins = {
        who: (name, ci_forge.token(name))
        for who, name in (("owner", owner), ("stranger", stranger))
    }
    name = f"{registry.name}/{PATH}"
    with docker_daemon() as host:
        client = docker.APIClient(base_url=host)
        for number in range(3):
            _layer(client, name, number)
        said = client.push(
            name,
            tag="2",
            auth_config={"registrytoken": _token(ci_forge, logins["owner"], "pull,push")},
        )
        assert "error" not in said, said
        digest = client.inspect_image(f"{name}:2")["RepoDigests"][0].split("@")[1]
        made = Place(host, name, digest, ci_forge, logins)
        made.forget()
        yield made


def _layer(client: docker.APIClient, name: str, number: int) -> None:
    """One more layer on the image before; bytes that do not shrink, so that there is something to count."""
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as archive:
        base = "scratch" if number == 0 else f"{name}:{number - 1}"
        files = {
            "Dockerfile": f"FROM {base}\nCOPY {number} /\n".encode(),
            str(number): os.urandom(2 * 2**20),
        }
        for path, content in files.items():
            info = tarfile.TarInfo(path)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    context.seek(0)
    for event in client.build(
        fileobj=context, custom_context=True, tag=f"{name}:{number}", decode=True
    ):
        assert "error" not in event, event


def nobody(message: str, detail: Mapping[str, Any]) -> None:
    """Tells nobody."""


async def test_a_pull_is_shared_and_counted(place: Place) -> None:
    place.forget()
    pulls = Pulls(place.connect)
    assert await pulls.image(f"{place.name}@{place.digest}") is None
    heard: list[Mapping[str, Any]] = []
    asked = 0

    async def token() -> str | None:
        nonlocal asked
        asked += 1
        return _token(place.forge, place.logins["owner"], "pull")

    found = await asyncio.gather(
        *(
            pulls.bring(place.name, place.digest, token, lambda _, detail: heard.append(detail))
            for _ in range(5)
        )
    )
    assert asked == 1
    assert len({each["Id"] for each in found}) == 1
    assert heard[-1]["layers"] == heard[-1]["layers_done"] == 3
    assert heard[-1]["bytes"] == heard[-1]["total"] > 6 * 2**20
    # What is there is not asked for again, whoever asks: who may have it was decided before.
    await pulls.bring(place.name, place.digest, place.token("stranger"), nobody)


async def test_one_persons_refusal_is_not_anothers(place: Place) -> None:
    place.forget()
    pulls = Pulls(place.connect)
    began = asyncio.Event()

    async def strangers() -> str | None:
        began.set()
        return _token(place.forge, place.logins["stranger"], "pull")

    first = asyncio.create_task(pulls.bring(place.name, place.digest, strangers, nobody))
    await began.wait()
    second = asyncio.create_task(
        pulls.bring(place.name, place.digest, place.token("owner"), nobody)
    )
    with pytest.raises(ImageUnavailable, match="does not let you pull"):
        await first
    assert (await second)["Id"]


async def test_a_digest_that_is_not_there(place: Place) -> None:
    with pytest.raises(ImageUnavailable, match="no longer in its registry"):
        await Pulls(place.connect).bring(
            place.name, f"sha256:{'0' * 64}", place.token("owner"), nobody
        )


async def test_who_is_cancelled_leaves_the_pull_to_the_others(place: Place) -> None:
    place.forget()
    pulls = Pulls(place.connect)
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def owners() -> str | None:
        asked.set()
        await go_on.wait()
        return _token(place.forge, place.logins["owner"], "pull")

    first = asyncio.create_task(pulls.bring(place.name, place.digest, owners, nobody))
    await asked.wait()
    second = asyncio.create_task(
        pulls.bring(place.name, place.digest, place.token("stranger"), nobody)
    )
    while pulls.waiting(place.name, place.digest) < 2:
        await asyncio.sleep(0.01)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    go_on.set()
    assert (await second)["Id"]
    assert pulls.waiting(place.name, place.digest) == 0


async def test_a_pull_that_nobody_waits_for_ends(place: Place) -> None:
    place.forget()
    pulls = Pulls(place.connect)
    asked = asyncio.Event()

    async def owners() -> str | None:
        asked.set()
        return _token(place.forge, place.logins["owner"], "pull")

    alone = asyncio.create_task(pulls.bring(place.name, place.digest, owners, nobody))
    await asked.wait()
    alone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await alone
    assert pulls.waiting(place.name, place.digest) == 0
    # The next wish is not told that it is done because another was given up.
    assert (await pulls.bring(place.name, place.digest, owners, nobody))["Id"]


async def test_an_engine_that_is_away(tmp_path: Path) -> None:
    pulls = Pulls(lambda: docker.APIClient(base_url=f"unix://{tmp_path}/none", version="1.41"))
    with pytest.raises(ImageUnavailable, match="Docker engine does not answer"):
        await pulls.bring("h/a", f"sha256:{'0' * 64}", _no_token, nobody)


async def _no_token() -> str | None:
    return None


def test_no_login_of_the_machine_is_used(place: Place, tmp_path: Path) -> None:
    """The hub's own ``~/.docker/config.json`` must not lend its right to whoever asks."""
    place.forget()
    user, secret = place.logins["owner"]
    config = tmp_path / "docker"
    config.mkdir()
    subprocess.run(
        ["docker", "--host", place.host, "--config", str(config), "login", "-u", user, "--password-stdin",
         place.name.partition("/")[0]],
        input=secret.encode(), check=True, capture_output=True,
    )  # fmt: skip
    before = os.environ.get("DOCKER_CONFIG")
    os.environ["DOCKER_CONFIG"] = str(config)
    try:
        with pytest.raises(ImageUnavailable, match="does not let you pull"):
            asyncio.run(Pulls(place.connect).bring(place.name, place.digest, _no_token, nobody))
    finally:
        if before is None:
            del os.environ["DOCKER_CONFIG"]
        else:
            os.environ["DOCKER_CONFIG"] = before

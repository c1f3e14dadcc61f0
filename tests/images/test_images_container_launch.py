"""The hub finds container images by their environment: a real forge, a real registry, no clone."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests

from forge_fixtures import ForgeProcess, make_repository
from notebooks_service.domain import Commit, Image, ImageOrigin, Project
from notebooks_service.errors import RegistryUnavailable
from notebooks_service.forge import registry_tokens
from notebooks_service.forge.config import ForgeConfig
from notebooks_service.gitlab.forge import Forge
from notebooks_service.images import container_command
from notebooks_service.images.container_command import Wishes
from notebooks_service.images.registry import MEDIA_TYPES, Login, RegistryClient
from notebooks_service.images.sha_tag import tag_commit
from notebooks_service.images.watch import ImageWatcher
from notebooks_service.settings import Settings
from registry_fixtures import Registry, push_image
from scripted_gitlab import ScriptedGitLab

CI = "image_build:\n  script: [notebooks image build]\n"


class House:
    """A forge that answers for a registry of containers."""

    def __init__(self, root: Path) -> None:
        self.forge = ForgeProcess(root / "data")
        (root / "registry").mkdir()
        registry_tokens.write_files(ForgeConfig(self.forge.data, self.forge.url))
        self.registry = Registry(self.forge, root / "registry")
        self.forge.arguments = ["--registry", self.registry.url]
        self.forge.start()

    def close(self) -> None:
        self.registry.stop()
        self.forge.stop()
        self.forge.administration.close()

    def push(self, path: str, owner: str, tag: str, kind: str = MEDIA_TYPES[1]) -> str:
        """Puts an image there; its digest."""
        login = Login(owner, self.forge.token(owner))
        realm = f"{self.forge.url}/jwt/auth"
        with closing(RegistryClient(self.registry.url, realms=[realm], login=login)) as client:
            made = push_image(client, path, kind)
            client.put(path, tag, made)
        return made.digest


def host_of(house: House) -> str:
    return house.registry.url.removeprefix("http://")


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    if shutil.which("docker-registry") is None:
        pytest.skip("docker-registry is not installed here (Debian has it)")
    made = House(tmp_path_factory.mktemp("house"))
    yield made
    made.close()


class WithoutRegistry(requests.adapters.HTTPAdapter):
    """GitLab can show a project's code to people and hide its registry from them (its setting
    ``container_registry_access_level``), which this forge cannot: so GitLab's answer is given here."""

    def send(self, request: requests.PreparedRequest, *more: Any, **named: Any) -> Any:
        if "/registry/" not in str(request.url):
            return super().send(request, *more, **named)
        answer = requests.Response()
        answer.request, answer.url, answer.status_code = request, str(request.url), 403
        answer._content = b'{"message": "403 Forbidden"}'
        return answer


class Place:
    """A project whose image is built from a Dockerfile, and the hub's one watcher."""

    def __init__(self, house: House, root: Path, base: str = "scratch") -> None:
        self.house, forge = house, house.forge
        self.source = root / "thing"
        files = {"Dockerfile": f"FROM {base}\nCOPY requirements.txt src /\n", ".gitlab-ci.yml": CI}
        more = {"requirements.txt": "six\n", "src/a.py": "1\n"}
        self.shas = make_repository(self.source, {**files, **more}, {"README.md": "x"})
        self.owner = forge.user()
        self.path = f"{self.owner}/thing"
        forge.project(self.source, self.path, self.owner)
        settings = Settings(
            data=root / "data",
            forge_url=forge.url,
            forge_scopes=("read_api", "write_registry"),
            build_on_demand=False,
            rebuild_after=0,
            image_poll=0.1,
        )
        self.watcher = ImageWatcher(settings, None)

    def fingerprint(self, sha: str) -> str:
        """As a job in a checkout says it."""
        environ = {"CI_REGISTRY_IMAGE": f"{host_of(self.house)}/{self.path}"}
        environ |= {"CI_SERVER_URL": self.house.forge.url, "NOTEBOOKS_REBUILD_AFTER": "0"}
        return container_command.plan(Wishes(checkout=self.source), sha, environ, 0.0).fingerprint

    async def resolve(
        self, person: str, sha: str, *, hidden: bool = False
    ) -> tuple[Image, list[str]]:
        """What this person gets, and what the forge was asked for it; ``hidden``: not the registry."""
        asked: list[str] = []
        with Forge(self.house.forge.url, self.house.forge.token(self.owner)) as known:
            project = await asyncio.to_thread(known.project, self.path)
        session = requests.Session()
        if hidden:
            session.mount(self.house.forge.url, WithoutRegistry())
        session.hooks["response"] = [lambda answer, **more: asked.append(answer.url)]
        forge = Forge(self.house.forge.url, self.house.forge.token(person), session=session)
        commit = Commit(sha, "t", "m", "a", "a@b", "")
        image = await asyncio.wait_for(
            self.watcher.resolve(forge, project, commit, lambda job: None), 60
        )
        return image, list(asked)

    def member(self, level: str) -> str:
        name = self.house.forge.user()
        self.house.forge.administration.add_member(self.path, name, level)
        return name

    async def tag(self, person: str, name: str) -> str | None:
        def look() -> str | None:
            with Forge(self.house.forge.url, self.house.forge.token(person)) as forge:
                found = forge.registry.tag(forge.project(self.path), name)
                return found and found.digest

        return await asyncio.to_thread(look)


@pytest.fixture
async def place(house: House, tmp_path: Path) -> AsyncIterator[Place]:
    made = Place(house, tmp_path)
    yield made
    made.watcher.close()


async def test_an_environment_is_found_in_six_requests_and_tagged_by_who_may_push(
    place: Place,
) -> None:
    tag = f"env-{place.fingerprint(place.shas[1])}"
    digest = place.house.push(place.path, place.owner, tag)
    reporter, developer = place.member("reporter"), place.member("developer")
    image, asked = await place.resolve(reporter, place.shas[1])
    assert (image.origin, image.digest) == (ImageOrigin.ENVIRONMENT, digest)
    assert image.reference == f"{host_of(place.house)}/{place.path}:{tag}"
    assert image.evidence["inputs"] == ["Dockerfile", "requirements.txt", "src"]
    assert len(asked) <= 6 and not any("pipelines" in url for url in asked), asked
    # Another commit, by somebody who may push: it gets a tag of its own, behind the launch.
    image, asked = await place.resolve(developer, place.shas[0])
    assert (image.origin, image.digest) == (ImageOrigin.ENVIRONMENT, digest)
    # Its CI file and Dockerfile are known, and who asks to tag does so when the image is found.
    tagging = ("/members/", "/user", "/jwt/")
    assert len([url for url in asked if not any(part in url for part in tagging)]) <= 4, asked
    async with asyncio.timeout(30):
        while await place.tag(developer, place.shas[0]) != digest:
            await asyncio.sleep(0.05)
    image, _ = await place.resolve(reporter, place.shas[0])
    assert (image.origin, image.digest) == (ImageOrigin.COMMIT, digest)
    # The reporter's launch was let to tag nothing.
    assert await place.tag(reporter, place.shas[1]) is None


async def test_who_may_not_see_the_registry_learns_of_no_image(place: Place) -> None:
    """The same answer, word for word, whether there is one or not, and whoever found it before."""
    second, sha = place.member("reporter"), place.shas[1]
    await place.resolve(second, sha, hidden=True)
    nothing, asked = await place.resolve(second, sha, hidden=True)
    assert nothing.origin is ImageOrigin.DEFAULT
    place.house.push(place.path, place.owner, f"env-{place.fingerprint(sha)}")
    found, _ = await place.resolve(place.owner, sha)
    assert found.origin is ImageOrigin.ENVIRONMENT
    async with asyncio.timeout(30):  # the owner's launch tags the commit: so it has both
        while await place.tag(place.owner, sha) != found.digest:
            await asyncio.sleep(0.05)
    again, asked_again = await place.resolve(second, sha, hidden=True)
    assert again == nothing
    assert asked_again == asked
    assert (await place.resolve(second, sha))[0].digest == found.digest  # as a check of this test


@pytest.mark.parametrize("visibility", ["public", "private"])
async def test_a_base_in_the_forges_own_registry_counts_if_everybody_may_pull_it(
    house: House, tmp_path: Path, visibility: str
) -> None:
    forge = house.forge
    keeper = forge.user()
    make_repository(tmp_path / "base")
    forge.project(tmp_path / "base", f"{keeper}/base", keeper, visibility=visibility)
    first = house.push(f"{keeper}/base", keeper, "1", MEDIA_TYPES[1])
    base = f"{host_of(house)}/{keeper}/base:1"
    place = Place(house, tmp_path, base)
    sha = place.shas[1]
    built = place.fingerprint(sha)
    digest = house.push(place.path, place.owner, f"env-{built}")
    # Somebody who may not see a private base comes to the same name as the job, whose person may.
    image, asked = await place.resolve(place.member("reporter"), sha)
    assert (image.origin, image.digest) == (ImageOrigin.ENVIRONMENT, digest)
    assert len(asked) <= 6
    moved = house.push(f"{keeper}/base", keeper, "1", MEDIA_TYPES[0])
    assert moved != first
    if visibility == "public":
        assert image.evidence["bases"] == [f"{base}@{first}"]
        assert "not_reproducible" not in image.evidence
        assert place.fingerprint(sha) != built
    else:
        assert "bases" not in image.evidence
        assert base in image.evidence["not_reproducible"][0]
        assert place.fingerprint(sha) == built
    place.watcher.close()


# ``elsewhere`` is a registry here, and ``gitlab`` the forge that names it.
def test_a_registry_that_asks_for_a_password_gets_none_when_a_commit_is_tagged(
    gitlab: ScriptedGitLab, elsewhere: ScriptedGitLab
) -> None:
    digest = "sha256:" + "d" * 64
    manifest = f"GET /v2/g/p/manifests/{digest}"
    gitlab.json("GET /jwt/auth", {"token": "signed"})
    place = elsewhere.url.removeprefix("http://")
    image = Image(f"{place}/g/p:env-1", digest, ImageOrigin.ENVIRONMENT, "x")
    project = Project(5, "G/P", "p", "main", "private", "")
    for status, headers in (
        (401, {"WWW_Authenticate": 'Basic realm="x"'}),
        (401, {"WWW_Authenticate": f'Bearer realm="{elsewhere.url}/t",service="s"'}),
        (307, {"Location": f"{elsewhere.url}/v2/elsewhere"}),
    ):
        elsewhere.raw(manifest, status, b"", **headers)
        with Forge(gitlab.url, "secret-token") as forge, pytest.raises(RegistryUnavailable):
            tag_commit(forge, project, "1" * 40, image)
    assert {one.headers["Authorization"] for one in elsewhere.asked} == {"Bearer signed"}
    assert {one.path for one in elsewhere.asked} == {manifest.removeprefix("GET ")}
    assert all("repository%3Ag%2Fp%3Apull" in one.query for one in gitlab.asked)
    # Another project's image is not looked at.
    other = replace(image, reference=f"{place}/g/other:env-1")
    before = len(elsewhere.asked)
    with Forge(gitlab.url, "secret-token") as forge:
        assert not tag_commit(forge, project, "1" * 40, other)
    assert len(elsewhere.asked) == before

"""With which login an image is pulled: against the embedded forge and a real registry, and a GitLab that refuses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError
from test_images_container_launch import House, house

from forge_fixtures import make_repository
from notebooks_service.domain import Project
from notebooks_service.errors import RegistryLoginRefused, SignInExpired
from notebooks_service.gitlab.forge import Forge
from notebooks_service.images.registry import MEDIA_TYPES
from notebooks_service.settings import Settings
from notebooks_service.spawner.registry_login import pull_token
from scripted_gitlab import ScriptedGitLab, gitlab

__all__ = ["gitlab", "house"]


def deploy_token(house: House, project: str, owner: str) -> tuple[str, str]:
    """A deploy token of this project, made as people make them."""
    answer = httpx.post(
        f"{house.forge.url}/api/v4/projects/{project.replace('/', '%2F')}/deploy_tokens",
        headers={"PRIVATE-TOKEN": house.forge.token(owner)},
        json={"name": "puller", "scopes": ["read_registry"]},
        trust_env=False,
    )
    assert answer.status_code == 201, answer.text
    made = answer.json()
    return made["username"], made["token"]


def with_login(login: tuple[str, str]) -> Settings:
    user, secret = login
    return Settings(
        registry_login="deploy_token", registry_deploy_user=user, registry_deploy_secret=secret
    )


@dataclass
class Rooms:
    """Two private projects of one person's, with an image each; another person reports in the first."""

    house: House
    owner: str
    reporter: str
    first: str
    second: str

    def project(self, person: str, path: str) -> Project:
        with self.forge(person) as forge:
            return forge.project(path)

    def forge(self, person: str) -> Forge:
        return Forge(self.house.forge.url, self.house.forge.token(person))

    def pulls(self, person: str, repository: str, login: Settings, project: str = "") -> bool:
        """Whether a launch of ``project`` by this person could pull that repository."""
        of = self.project(self.owner, project or repository)
        with self.forge(person) as forge:
            token = pull_token(login, forge, of, repository)
        answer = httpx.get(
            f"{self.house.registry.url}/v2/{repository}/manifests/main",
            headers={"Authorization": f"Bearer {token}", "Accept": MEDIA_TYPES[1]},
            trust_env=False,
        )
        return answer.status_code == 200


@pytest.fixture
def rooms(house: House, tmp_path: Path) -> Rooms:
    forge = house.forge
    owner, reporter = forge.user(), forge.user()
    paths = []
    for name in ("first", "second"):
        make_repository(tmp_path / name, {"README.md": name})
        paths.append(f"{owner}/{name}")
        forge.project(tmp_path / name, paths[-1], owner)
        house.push(paths[-1], owner, "main")
    forge.administration.add_member(paths[0], reporter, "reporter")
    return Rooms(house, owner, reporter, *paths)


def test_a_persons_own_login_pulls_what_the_person_may(rooms: Rooms) -> None:
    own = Settings()
    assert rooms.pulls(rooms.reporter, rooms.first, own)
    assert not rooms.pulls(rooms.reporter, rooms.second, own)


def test_a_deploy_token_gives_nobody_more(rooms: Rooms) -> None:
    login = with_login(deploy_token(rooms.house, rooms.first, rooms.owner))
    assert rooms.pulls(rooms.reporter, rooms.first, login)
    stranger = rooms.house.forge.user()
    assert not rooms.pulls(stranger, rooms.first, login)
    # An image of another project: the token could have it pulled, this person may not.
    other = with_login(deploy_token(rooms.house, rooms.second, rooms.owner))
    assert not rooms.pulls(rooms.reporter, rooms.second, other, project=rooms.first)
    assert not rooms.pulls(rooms.reporter, rooms.second, other)
    # Its owner may, by their own login.
    assert rooms.pulls(rooms.owner, rooms.second, login, project=rooms.first)


@pytest.mark.parametrize("status", [401, 403])
def test_a_gitlab_that_takes_no_such_login(gitlab: ScriptedGitLab, status: int) -> None:
    project = Project(7, "group/thing", "thing", "main", "private", "https://x/group/thing")
    gitlab.json("GET /jwt/auth", {"errors": [{"code": "UNAUTHORIZED"}]}, status)
    gitlab.json("GET /api/v4/projects/7/registry/repositories", [{"id": 1, "path": "group/thing"}])
    with Forge(gitlab.url, "token-canary") as forge:
        if status == 401:  # the launch asks once more with a new sign-in
            with pytest.raises(SignInExpired):
                pull_token(Settings(), forge, project, "group/thing")
        else:
            assert pull_token(Settings(), forge, project, "group/thing") is None
        login = with_login(("puller", "deploy-canary"))
        with pytest.raises(RegistryLoginRefused, match="registry_login") as refused:
            pull_token(login, forge, project, "group/thing")
        assert "canary" not in str(refused.value)


def test_a_deploy_token_is_named_whole() -> None:
    with pytest.raises(ValidationError, match="registry_deploy_user"):
        Settings(registry_login="deploy_token", registry_deploy_user="puller")

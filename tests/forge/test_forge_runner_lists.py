"""Lists of runners and rules for tags of images, as people and the doctor ask for them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import gitlab
import jwt
import pytest
from gitlab.exceptions import GitlabError

from notebooks_service.forge import ci_runners, tag_rules
from notebooks_service.forge.ci_models import Runner
from notebooks_service.images.environment import RECORD_NAME, Environment
from notebooks_service.images.environments import EnvironmentStore
from runner_fixtures import RawRunner, Workspace

SHA, OTHER = "a" * 40, "b" * 40
RULE = {
    "tag_name_pattern": "^[0-9a-f]{40}$",
    "minimum_access_level_for_push": "maintainer",
    "minimum_access_level_for_delete": "owner",
}


def refused(call: Callable[[], object]) -> tuple[int | None, str]:
    with pytest.raises(GitlabError) as error:
        call()
    return error.value.response_code, str(error.value.error_message)


def member(space: Workspace, level: str) -> tuple[str, str, gitlab.Gitlab]:
    name = space.forge.user()
    space.forge.administration.add_member(space.path, name, level)
    token = space.forge.token(name)
    return name, token, gitlab.Gitlab(space.forge.url, private_token=token)


def test_who_sees_which_runners(workspace: Workspace) -> None:
    """https://docs.gitlab.com/api/runners/"""
    forge = workspace.forge
    admin = gitlab.Gitlab(
        forge.url, private_token=forge.token(forge.user("runner-admin", admin=True))
    )
    admin.auth()
    assert admin.user is not None
    kind = {"runner_type": "instance_type"}
    made = admin.user.runners.create({**kind, "description": "other", "tag_list": "gpu"})
    admin.user.runners.create({**kind, "description": "idle", "paused": True})
    ours = RawRunner(forge)
    workspace.push("job: {script: x, tags: [special]}")
    job = ours.take()
    everyone = {one.description: one for one in admin.runners_all.list(get_all=True)}
    assert set(everyone) >= {ci_runners.BUILTIN, "other", "idle"}
    built_in = everyone[ci_runners.BUILTIN]
    assert (built_in.online, built_in.status, built_in.job_execution_status) == (
        True,
        "online",
        "active",
    )
    assert (built_in.is_shared, built_in.runner_type, built_in.paused) == (
        True,
        "instance_type",
        False,
    )
    assert everyone["other"].status == "never_contacted" and not everyone["other"].online
    assert everyone["idle"].status == "paused"

    def named(**filters: object) -> set[str]:
        return {one.description for one in admin.runners_all.list(get_all=True, **filters)}

    assert named(paused="true") == {"idle"} == named(scope="paused")
    assert named(status="online") == {ci_runners.BUILTIN}
    assert named(tag_list="gpu") == {"other"}
    # Ours takes whatever tags there are.
    assert named(tag_list="special") == {ci_runners.BUILTIN}
    assert named(type="project_type") == set() == named(version_prefix="99.")
    assert refused(lambda: named(scope="odd")) == (400, "Scope contains invalid value")
    assert refused(lambda: named(type="odd"))[0] == 400
    # Maintainers see those of their project, everybody the details of an instance's runner.
    assert {one.id for one in workspace.api.runners.list(get_all=True)} == {
        one.id for one in everyone.values()
    }
    _, _, developer = member(workspace, "developer")
    listing = developer.projects.get(workspace.id).runners
    assert refused(lambda: listing.list())[0] == 403
    assert refused(lambda: developer.runners_all.list())[0] == 403
    assert developer.runners.list(get_all=True) == []
    details = developer.runners.get(made.id)
    assert (details.tag_list, details.run_untagged, details.locked) == (["gpu"], True, False)
    assert details.access_level == "not_protected" and details.projects == []
    assert "special" in developer.runners.get(built_in.id).tag_list
    assert refused(lambda: developer.runners.get(10**6))[0] == 404
    for ask in (
        "/runners",
        "/runners/all",
        f"/runners/{made.id}",
        f"/projects/{workspace.id}/runners",
    ):
        nobody = gitlab.Gitlab(forge.url)
        assert refused(partial(nobody.http_get, ask))[0] == 401, ask
    # No answer shows a token.
    assert ours.token not in str([one.attributes for one in everyone.values()])
    ours.put(job, "success")


@pytest.mark.parametrize(
    ("seen", "made", "status"),
    [
        (None, 1, "never_contacted"),
        (None, 8 * 24, "stale"),
        (1, 9 * 24, "online"),
        (3, 9 * 24, "offline"),
        (8 * 24, 9 * 24, "stale"),
    ],
)
def test_when_a_runner_is_online(seen: int | None, made: int, status: str) -> None:
    """Hours since it was heard of, and made. https://docs.gitlab.com/ci/runners/runners_scope/#runner-statuses"""
    moment = datetime.now(UTC)
    contacted = None if seen is None else moment - timedelta(hours=seen)
    runner = Runner(contacted_at=contacted, created_at=moment - timedelta(hours=made))
    assert ci_runners.contact(runner) == status


class Rules:
    """The rules of a project by python-gitlab's own requests: it has no class for them yet."""

    def __init__(self, client: gitlab.Gitlab, project: int) -> None:
        self.client = client
        self.path = f"/projects/{project}/registry/protection/tag/rules"

    def list(self) -> Any:
        return self.client.http_list(self.path, get_all=True)

    def create(self, **more: str) -> Any:
        return self.client.http_post(self.path, post_data={**RULE, **more})

    def update(self, number: int, **values: str) -> Any:
        return self.client.http_patch(f"{self.path}/{number}", post_data=values)

    def delete(self, number: int) -> None:
        self.client.http_delete(f"{self.path}/{number}")


def test_rules_for_tags(workspace: Workspace) -> None:
    """https://docs.gitlab.com/api/container_registry_protection_tag_rules/"""
    rules = Rules(workspace.gitlab, workspace.id)
    assert rules.list() == []
    made = rules.create()
    assert made == {"id": made["id"], "project_id": workspace.id, **RULE}
    assert rules.list() == [made]
    taken = (422, "['Tag name pattern has already been taken']")
    assert refused(rules.create) == taken
    for wrong in ("(", "x" * 101, "(?=x)"):
        assert refused(partial(rules.create, tag_name_pattern=wrong))[0] == 422
    developers = {"tag_name_pattern": "x", "minimum_access_level_for_push": "developer"}
    assert refused(partial(rules.create, **developers))[0] == 400
    assert refused(partial(rules.create, minimum_access_level_for_delete=""))[0] == 400
    changed = rules.update(
        made["id"], tag_name_pattern="^v", minimum_access_level_for_delete="admin"
    )
    assert changed == {**made, "tag_name_pattern": "^v", "minimum_access_level_for_delete": "admin"}
    for number in range(tag_rules.MOST_RULES - 1):
        rules.create(tag_name_pattern=f"t{number}")
    assert refused(partial(rules.update, made["id"], tag_name_pattern="t0")) == taken
    assert "Maximum number" in refused(rules.create)[1]
    rules.delete(made["id"])
    assert len(rules.list()) == tag_rules.MOST_RULES - 1
    theirs = Rules(member(workspace, "developer")[2], workspace.id)
    assert refused(theirs.list)[0] == refused(theirs.create)[0] == 403
    other = Workspace(workspace.forge, workspace.clone.parent / "other")
    elsewhere = Rules(other.gitlab, other.id)
    assert refused(partial(elsewhere.delete, rules.list()[0]["id"]))[0] == 404


def test_a_protected_tag_is_not_deleted(workspace: Workspace) -> None:
    store = EnvironmentStore(workspace.forge.data / "environments")
    name = "c" * 64
    place = store.root / str(workspace.id) / name
    place.mkdir(parents=True)
    environment = Environment(name, f"sha256:{name}", place, place / "bin/python", (), {}, "x")
    (place / RECORD_NAME).write_text(environment.to_record())
    for sha in (SHA, OTHER):
        store.tag(workspace.id, sha, name)
    rules = Rules(workspace.gitlab, workspace.id)
    rules.create(tag_name_pattern="^a+$", minimum_access_level_for_delete="maintainer")
    # Of two rules the stricter holds.
    owners = rules.create(tag_name_pattern="aa", minimum_access_level_for_delete="owner")
    _, _, developer = member(workspace, "developer")
    _, _, maintainer = member(workspace, "maintainer")

    def remove(client: gitlab.Gitlab, sha: str) -> None:
        repository = client.projects.get(workspace.id).repositories.list(get_all=True)[0]
        repository.tags.delete(sha)

    assert refused(partial(remove, developer, SHA))[0] == 403
    assert refused(partial(remove, maintainer, SHA))[0] == 403
    remove(developer, OTHER)
    rules.delete(owners["id"])
    assert refused(partial(remove, developer, SHA))[0] == 403
    remove(maintainer, SHA)
    assert store.tags(workspace.id) == {}


def test_what_a_registry_is_told_of_protected_tags(workspace: Workspace) -> None:
    """GitLab's registry reads it in the token; the levels are those of who asks."""
    forge = workspace.forge
    Rules(workspace.gitlab, workspace.id).create()

    def told(name: str, token: str, actions: str) -> object:
        client = gitlab.Gitlab(forge.url, http_username=name, http_password=token)
        scope = f"repository:{workspace.path.lower()}:{actions}"
        answer = client.http_request(
            "get",
            f"{forge.url}/jwt/auth",
            query_data={"service": "container_registry", "scope": scope},
        ).json()
        [access] = jwt.decode(answer["token"], options={"verify_signature": False})["access"]
        return access["meta"].get("tag_deny_access_patterns")

    pattern = RULE["tag_name_pattern"]
    developer, token, _ = member(workspace, "developer")
    assert told(developer, token, "pull,push") == {"push": [pattern]}
    assert told(developer, token, "pull") is None
    maintainer, token, _ = member(workspace, "maintainer")
    assert told(maintainer, token, "push,delete") == {"push": [], "delete": [pattern]}
    assert told(workspace.username, workspace.token, "*") == {"push": [], "delete": []}
    deploy = workspace.api.deploytokens.create(
        {"name": "d", "scopes": ["read_registry", "write_registry"]}
    )
    assert told(deploy.username, deploy.token, "push") == {"push": [pattern]}

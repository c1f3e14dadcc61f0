"""Who may launch: the rule as a table, and the forge's answers through the real client."""

from __future__ import annotations

import pytest
from spawner_small_forge import OTHER, SHA, SmallForge

from notebooks_service.domain import AccessLevel, server_name
from notebooks_service.errors import (
    Forbidden,
    ForgeUnavailable,
    LaunchRefused,
    NotFound,
    SignInExpired,
)
from notebooks_service.gitlab.forge import Forge
from notebooks_service.settings import MinimumAccess
from notebooks_service.spawner.access import Grant, check, check_name, level_is_enough
from notebooks_service.spawner.options import LaunchOptions

THING = LaunchOptions("group/thing", SHA, "main")


@pytest.mark.parametrize(
    ("level", "minimum", "enough"),
    [
        (AccessLevel.NONE, "read", True),
        (AccessLevel.NONE, "guest", False),
        (AccessLevel.GUEST, "guest", True),
        (AccessLevel.GUEST, "reporter", False),
        (AccessLevel.DEVELOPER, "developer", True),
        (AccessLevel.DEVELOPER, "maintainer", False),
        (AccessLevel.OWNER, "maintainer", True),
        (AccessLevel.OWNER, "owner", True),
    ],
)
def test_levels(level: AccessLevel, minimum: MinimumAccess, enough: bool) -> None:
    assert level_is_enough(level, minimum) is enough


async def granted(forge: SmallForge, name: str = "ada", **more: object) -> Grant:
    options = more.pop("options", THING)
    minimum = more.pop("minimum", "read")
    returning = bool(more.pop("returning", False))
    asking = Forge(forge.url, f"token-of-{name}", timeout=60)
    return await check(asking, options, minimum, returning=returning)  # type: ignore[arg-type]


async def test_the_forge_says_who_what_and_where(small_forge: SmallForge) -> None:
    grant = await granted(small_forge)
    assert (grant.project.id, grant.project.path) == (7, "group/thing")
    assert (grant.commit.sha, grant.branch) == (SHA, "main")
    assert (grant.person.username, grant.person.email) == ("ada", "ada@example.org")


@pytest.mark.parametrize(
    "options",
    [
        LaunchOptions("secret/plan", SHA, "main"),
        LaunchOptions("no/such", SHA, "main"),
        LaunchOptions("group/thing", "0" * 40, "main"),
    ],
)
async def test_hidden_and_missing_are_one_answer(
    small_forge: SmallForge, options: LaunchOptions
) -> None:
    with pytest.raises(NotFound) as refused:
        await granted(small_forge, options=options)
    assert refused.value.message == NotFound.message


async def test_a_branch_that_is_gone_matters_only_the_first_time(small_forge: SmallForge) -> None:
    gone = LaunchOptions("group/thing", OTHER, "gone")
    with pytest.raises(NotFound, match="branch"):
        await granted(small_forge, options=gone)
    assert (await granted(small_forge, options=gone, returning=True)).branch == "gone"


async def test_a_level_that_is_too_low_is_said(small_forge: SmallForge) -> None:
    small_forge.level = 20
    assert (await granted(small_forge, minimum="reporter")).level is AccessLevel.REPORTER
    with pytest.raises(Forbidden, match="developer"):
        await granted(small_forge, minimum="developer")


async def test_no_answer_is_no_access(small_forge: SmallForge) -> None:
    small_forge.revoked.add("token-of-ada")
    with pytest.raises(SignInExpired):
        await granted(small_forge)
    small_forge.away = True
    with pytest.raises(ForgeUnavailable):
        await granted(small_forge)


async def test_a_servers_name_belongs_to_its_commit_and_branch(small_forge: SmallForge) -> None:
    grant = await granted(small_forge)
    check_name(server_name(7, SHA, "main"), grant)
    for wrong in (
        server_name(7, SHA, "other"),
        server_name(7, OTHER, "main"),
        server_name(8, SHA, "main"),
        "",
        "mine",
    ):
        with pytest.raises(LaunchRefused):
            check_name(wrong, grant)

"""Which submodules a server gets: what the forge says of the commit, and what the person agreed to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from spawner_small_forge import OTHER, SHA, SmallForge

from notebooks_service.domain import AccessLevel, Submodule
from notebooks_service.errors import LaunchRefused
from notebooks_service.gitlab import submodules as gitlab
from notebooks_service.gitlab.forge import Forge
from notebooks_service.spawner.access import Grant
from notebooks_service.spawner.options import LaunchOptions
from notebooks_service.spawner.submodules import NOT_AGREED, PARENT_OUT, choose, decide


class WithSubmodules(SmallForge):
    """``group/thing`` holds itself at another commit, which does so again, and a project of owl's."""

    modules = (
        '[submodule "self"]\npath = again\nurl = ./../thing.git\n'
        '[submodule "plan"]\npath = plan\nurl = ../../secret/plan\n'
    )

    def about(self, project: str, rest: str, query: dict[str, str]) -> tuple[int, Any]:
        if rest.startswith("/repository/files/"):
            return 200, self.modules.encode()
        if rest == "/repository/tree":
            other = OTHER if query["ref"] == SHA else SHA
            return 200, [
                {"type": "commit", "path": "again", "id": other},
                {"type": "commit", "path": "plan", "id": SHA},
            ]
        return super().about(project, rest, query)


@pytest.fixture
def small() -> Iterator[WithSubmodules]:
    forge = WithSubmodules()
    yield forge
    forge.close()


def ask(small: WithSubmodules, person: str) -> tuple[Forge, Grant]:
    forge = Forge(small.url, f"token-of-{person}")
    project = forge.project("group/thing")
    commit = forge.commit(project, SHA)
    return forge, Grant(forge.user(), project, commit, "main", AccessLevel.DEVELOPER)


def options(*ids: int) -> LaunchOptions:
    return LaunchOptions("group/thing", SHA, "main", None, ids)


async def test_only_what_is_agreed_to_and_readable_and_never_a_loop(small: WithSubmodules) -> None:
    forge, grant = ask(small, "ada")
    found = await decide(forge, grant, options(7), returning=False)
    said = {each.at: each.reason for each in found}
    assert said["again"] == ""
    assert said["again/again"] == gitlab.ITSELF
    assert said["plan"] == said["again/plan"] == gitlab.HIDDEN
    assert len(found) == 4
    forge, grant = ask(small, "owl")
    found = await decide(forge, grant, options(8), returning=False)
    said = {each.at: each.reason for each in found}
    assert said["plan"] == ""
    assert said["again"] == NOT_AGREED
    assert said["again/plan"] == PARENT_OUT


@pytest.mark.parametrize(("person", "ids"), [("ada", (8,)), ("ada", (7, 999)), ("owl", (999,))])
async def test_forged_submodules_are_refused(
    small: WithSubmodules, person: str, ids: tuple[int, ...]
) -> None:
    """8 is owl's: for ada it is as if it were not there, so naming it is no way to it."""
    forge, grant = ask(small, person)
    with pytest.raises(LaunchRefused, match="no submodule of this commit"):
        await decide(forge, grant, options(*ids), returning=False)
    # A server that comes back keeps its work although a submodule is gone; it gets none of it.
    kept = await decide(forge, grant, options(*ids), returning=True)
    assert not any(each.project_id in {8, 999} and not each.reason for each in kept)


async def test_a_project_holds_so_many_and_no_more(small: WithSubmodules) -> None:
    small.modules = "".join(
        f'[submodule "n{number}"]\npath = again\nurl = https://elsewhere.example/a/b\n'
        for number in range(200)
    )
    forge, grant = ask(small, "ada")
    found = await decide(forge, grant, options(), returning=False)
    assert len(found) == gitlab.MOST + 1
    assert found[-1].reason == gitlab.TOO_MANY


def test_choosing_keeps_reasons_and_order() -> None:
    rows = (
        Submodule("a", "", "a", "../a", SHA, 1, "g/a"),
        Submodule("b", "", "b", "../b", SHA, reason="gone."),
        Submodule("a/c", "a", "c", "../c", SHA, 2, "g/c"),
    )
    assert [each.reason for each in choose(rows, frozenset({1, 2}))] == ["", "gone.", ""]
    assert [each.reason for each in choose(rows, frozenset({2}))] == [
        NOT_AGREED,
        "gone.",
        PARENT_OUT,
    ]

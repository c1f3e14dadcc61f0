"""Who may do what: the table of levels, visibilities and abilities."""

from __future__ import annotations

import pytest

from notebooks_service.forge import permissions
from notebooks_service.forge.permissions import Can

READ = {
    Can.READ_PROJECT,
    Can.READ_CODE,
    Can.READ_PIPELINES,
    Can.READ_REGISTRY,
    Can.READ_MEMBERS,
}
GUEST = {Can.READ_PROJECT, Can.READ_PIPELINES, Can.READ_MEMBERS}
DEVELOP = READ | {Can.PUSH, Can.RUN_PIPELINES, Can.CHANGE_REGISTRY}
MAINTAIN = DEVELOP | {Can.PUSH_PROTECTED, Can.EDIT_PROJECT, Can.EDIT_MEMBERS}


@pytest.mark.parametrize(
    ("level", "visibility", "signed_in", "expected"),
    [
        (0, "private", False, set()),
        (0, "private", True, set()),
        (0, "internal", False, set()),
        (0, "internal", True, READ),
        (0, "public", False, READ),
        (0, "public", True, READ),
        (5, "private", True, set()),
        (10, "private", True, GUEST),
        (10, "internal", True, READ),
        (10, "public", True, READ),
        (20, "private", True, READ),
        (30, "private", True, DEVELOP),
        (30, "public", True, DEVELOP),
        (40, "private", True, MAINTAIN),
        (50, "private", True, set(Can)),
    ],
)
def test_the_abilities_of_a_level(
    level: int, visibility: str, signed_in: bool, expected: set[Can]
) -> None:
    assert permissions.abilities(level, visibility, signed_in=signed_in) == expected


def test_an_administrator_may_everything() -> None:
    assert permissions.abilities(0, "private", signed_in=True, admin=True) == set(Can)


@pytest.mark.parametrize(
    ("direct", "inherited", "expected"),
    [
        (None, [], 0),
        (30, [], 30),
        (None, [0, 40], 40),
        (10, [30], 30),
        (50, [10, 20], 50),
    ],
)
def test_the_highest_level_counts(direct: int | None, inherited: list[int], expected: int) -> None:
    assert permissions.effective_level(direct, inherited) == expected


@pytest.mark.parametrize(
    ("own", "level", "may"),
    [(40, 30, True), (40, 40, True), (40, 50, False), (50, 50, True), (30, 10, False)],
)
def test_nobody_gives_away_more_than_they_have(own: int, level: int, may: bool) -> None:
    assert permissions.may_grant(own, level) is may


@pytest.mark.parametrize(
    ("visibility", "parent", "fits"),
    [
        ("private", "private", True),
        ("public", "private", False),
        ("internal", "public", True),
        ("public", "internal", False),
    ],
)
def test_what_lies_in_a_group_is_no_more_visible(visibility: str, parent: str, fits: bool) -> None:
    assert permissions.fits_in(visibility, parent) is fits

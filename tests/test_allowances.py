"""How large one server of somebody may be: the setting ``allowances``, as tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from notebooks_service.allowances import Allowance, most
from notebooks_service.errors import InvalidRequest, SettingsInvalid
from notebooks_service.resources import Resources, check, for_whom, granted, most_of, offered
from notebooks_service.settings import Settings, load_settings

GIB = 2**30
ENTRIES = (
    Allowance(people=("ada", "Bob"), cpu=1),
    Allowance(groups=("lab",), cpu=16, memory=64 * GIB),
    Allowance(groups=("lab/small",), memory=GIB),
    Allowance(projects=("lab/big",), cpu=32, gpu=2),
    Allowance(people=("dora",), gpu=1),
)


@pytest.mark.parametrize(
    ("person", "project", "found"),
    [
        ("carol", "other/thing", (0, 0, 0)),
        ("carol", "lab/course", (16, 64 * GIB, 0)),
        # The least counts, of all that name it.
        ("ada", "lab/course", (1, 64 * GIB, 0)),
        ("carol", "lab/big", (16, 64 * GIB, 2)),
        ("carol", "lab/small/deep/course", (16, GIB, 0)),
        # As at GitLab, case does not count; a group is no beginning of a name.
        ("bob", "LAB/Course", (1, 64 * GIB, 0)),
        ("carol", "laboratory/x", (0, 0, 0)),
        ("carol", "lab", (0, 0, 0)),
        ("ada", "", (1, 0, 0)),
        ("dora", "lab/big", (16, 64 * GIB, 1)),
    ],
)
def test_the_least_of_what_names_a_server(
    person: str, project: str, found: tuple[float, int, int]
) -> None:
    assert most(ENTRIES, person, project) == found


def settings(**more: Any) -> Settings:
    given = {"server_cpu": 2, "server_memory": 4 * GIB, "runtime": "docker", **more}
    return Settings(data=Path("/nowhere"), allowances=ENTRIES, **given)


@pytest.mark.parametrize(
    ("more", "person", "project", "default", "up_to"),
    [
        # Nobody chooses, but for those who are named.
        ({}, "carol", "x/y", Resources(2, 4 * GIB), Resources(0, 0)),
        ({}, "carol", "lab/x", Resources(2, 4 * GIB), Resources(16, 64 * GIB)),
        # Less than what others have by default.
        ({}, "ada", "x/y", Resources(1, 4 * GIB), Resources(1, 0)),
        ({}, "carol", "lab/small/x", Resources(2, GIB), Resources(16, GIB)),
        # In place of what holds for everybody else, also where that is more, or no limit.
        ({"server_cpu_most": 8}, "ada", "x/y", Resources(1, 4 * GIB), Resources(1, 0)),
        ({"server_cpu_most": 8}, "carol", "lab/x", Resources(2, 4 * GIB), Resources(16, 64 * GIB)),
        ({"server_cpu": 0}, "ada", "x/y", Resources(1, 4 * GIB), Resources(1, 0)),
    ],
)
def test_what_somebody_gets_and_may_choose(
    more: dict[str, Any], person: str, project: str, default: Resources, up_to: Resources
) -> None:
    own = for_whom(settings(**more), person, project)
    assert (granted(own, Resources()), most_of(own)) == (default, up_to)
    if up_to.cpu:
        assert offered(own)["cpu_request"]["value_range"]["max"] == up_to.cpu
        check(own, Resources(cpu=up_to.cpu))
        with pytest.raises(InvalidRequest, match="processors"):
            check(own, Resources(cpu=up_to.cpu + 1))


def test_gpus_are_had_by_whom_an_allowance_names() -> None:
    more: dict[str, Any] = {"gpus": ["0", "1", "GPU-8a2b"]}
    for person, project, up_to in (
        ("carol", "x/y", 0),
        ("dora", "x/y", 1),
        ("carol", "lab/big", 2),
    ):
        own = for_whom(settings(**more), person, project)
        assert (granted(own, Resources()).gpu, most_of(own).gpu) == (0, up_to)
        check(own, Resources(gpu=up_to))
        with pytest.raises(InvalidRequest, match="GPUs"):
            check(own, Resources(gpu=up_to + 1))
    # No more than there are.
    assert most_of(for_whom(settings(gpus=["0"]), "carol", "lab/big")).gpu == 1
    assert most_of(for_whom(settings(), "carol", "lab/big")).gpu == 0


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"cpu": 1}, "needs one of"),
        ({"people": ["a"], "groups": ["b"], "cpu": 1}, "needs one of"),
        ({"people": ["a"]}, "needs `cpu`, `memory` or `gpu`"),
        ({"people": ["a"], "cpu": 0.01}, "at least"),
        ({"people": ["a"], "memory": 5}, "at least"),
        ({"people": ["a"], "cpus": 5}, "cpus"),
    ],
)
def test_a_wrong_entry_is_named(entry: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsInvalid, match="allowances") as error:
        load_settings(allowances=[entry])
    assert says in error.value.message


def test_nobody_is_named_twice() -> None:
    with pytest.raises(SettingsInvalid, match="two allowances name ada"):
        load_settings(allowances=[{"people": [each], "cpu": 1} for each in ("ada", "Ada")])

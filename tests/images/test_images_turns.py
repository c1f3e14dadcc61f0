"""How many builds on demand there are at once, of whom, and who waits for whom."""

from __future__ import annotations

import pytest

from notebooks_service.images.on_demand import Turns
from notebooks_service.quotas import Building, BuildQuotas, Quota

ADA = Building("ada", "lab/one")
BOB = Building("bob", "lab/one")
ELSEWHERE = Building("ada", "lab/two")


def test_so_many_at_once_one_for_each_environment_and_the_next_when_one_has_ended() -> None:
    turns = Turns(BuildQuotas(per_project=2))
    with turns.holding() as first, turns.holding() as same, turns.holding() as elsewhere:
        one = first((1, "a"), ADA)
        assert same((1, "a"), BOB) is one is first((1, "a"), ADA)
        with turns.holding() as second:
            two = second((1, "b"), BOB)
            with turns.holding() as third:
                three = third((1, "c"), ADA)
                other = elsewhere((2, "c"), ELSEWHERE)
                assert [each.begun.is_set() for each in (one, two, three, other)] == [
                    *(True, True, False, True)
                ]
                assert three.held_up == "this project"
            # The third gave up; nobody's place is lost by it.
            with turns.holding() as fourth:
                assert not fourth((1, "d"), ADA).begun.is_set()
        with turns.holding() as fifth:
            assert fifth((1, "e"), ADA).begun.is_set()


def test_a_place_is_free_when_the_last_who_waits_has_left() -> None:
    turns = Turns(BuildQuotas(per_project=1))
    with turns.holding() as last:
        with turns.holding() as first:
            first((1, "a"), ADA)
            last((1, "a"), BOB)
        with turns.holding() as next_one:
            assert not next_one((1, "b"), BOB).begun.is_set()
    with turns.holding() as later:
        assert later((1, "c"), BOB).begun.is_set()


def test_who_is_held_up_lets_others_pass_and_each_person_has_a_first() -> None:
    turns = Turns(BuildQuotas(per_person=1, per_project=2))
    with turns.holding() as ada, turns.holding() as bob, turns.holding() as cy:
        first = ada((1, "a"), ADA)
        second = ada((2, "b"), ELSEWHERE)
        assert first.begun.is_set() and not second.begun.is_set()
        assert second.held_up == "yours"
        # Later than ada's second, in the same project as her first.
        assert bob((1, "c"), BOB).begun.is_set()
        assert not cy((1, "d"), Building("cy", "lab/one")).begun.is_set()


def test_the_next_is_of_who_has_the_least() -> None:
    turns = Turns(BuildQuotas(per_project=2))
    with turns.holding() as ada, turns.holding() as bob:
        with turns.holding() as one:
            one((1, "a"), ADA)
            ada((1, "b"), ADA)
            third = ada((1, "c"), ADA)
            his = bob((1, "d"), BOB)
        assert his.begun.is_set() and not third.begun.is_set()


QUOTAS = (
    Quota(people=("ada",), builds=3),
    Quota(people=("*",), running=1),
    Quota(projects=("Lab/Big",), builds=5),
    Quota(groups=("lab",), builds=6),
)


@pytest.mark.parametrize(
    ("under_way", "asking", "held_up"),
    [
        ([], ADA, ""),
        ([ADA], ADA, ""),
        ([ADA, BOB], ADA, "this project"),
        # An entry of one's own in place of the number for each; one without builds says nothing of them.
        ([ELSEWHERE] * 2, ADA, ""),
        ([ELSEWHERE] * 3, ADA, "yours"),
        ([Building("bob", "a/b"), Building("bob", "c/d")], BOB, "yours"),
        ([Building("x", "lab/big")] * 4, Building("bob", "lab/BIG"), ""),
        ([Building("x", "lab/big")] * 5, Building("bob", "lab/BIG"), "this project"),
        ([Building("x", "lab/big")] * 4 + [ELSEWHERE] * 2, BOB, "the group lab"),
        ([Building("x", "labor/x")] * 9, BOB, ""),
    ],
)
def test_whose_builds_have_to_end_first(
    under_way: list[Building], asking: Building, held_up: str
) -> None:
    quotas = BuildQuotas(QUOTAS, per_person=2, per_project=2)
    assert quotas.held_up(under_way, asking) == held_up
    assert BuildQuotas().held_up(under_way * 9, asking) == ""

"""How many environments of one project are built at once, and who waits for whom."""

from __future__ import annotations

import asyncio

from notebooks_service.images.on_demand import Turns


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_so_many_at_once_one_for_each_environment_and_the_next_when_one_has_ended() -> None:
    turns = Turns(2)
    with turns.holding() as first, turns.holding() as same, turns.holding() as elsewhere:
        one = first((1, "a"))
        assert same((1, "a")) is one is first((1, "a"))
        with turns.holding() as second:
            two = second((1, "b"))
            with turns.holding() as third:
                three = third((1, "c"))
                other = elsewhere((2, "c"))
                await settle()
                assert [each.acquiring.done() for each in (one, two, three, other)] == [
                    *(True, True, False, True)
                ]
            # The third gave up; nobody's place is lost by it.
            with turns.holding() as fourth:
                four = fourth((1, "d"))
                await settle()
                assert not four.acquiring.done()
        await settle()
        with turns.holding() as fifth:
            five = fifth((1, "e"))
            await settle()
            assert five.acquiring.done()


async def test_a_place_is_free_when_the_last_who_waits_has_left() -> None:
    turns = Turns(1)
    with turns.holding() as last:
        with turns.holding() as first:
            first((1, "a"))
            last((1, "a"))
            await settle()
        with turns.holding() as next_one:
            waiting = next_one((1, "b"))
            await settle()
            assert not waiting.acquiring.done()
    with turns.holding() as later:
        place = later((1, "c"))
        await settle()
        assert place.acquiring.done()

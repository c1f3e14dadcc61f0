"""The line of launches: who is next, which place one is told, and what is said of the time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from spawner_real_hub import NAME, OTHER_NAME, OTHER_OPTIONS, RealHub, wait_until

from notebooks_service.queues import Rounds
from notebooks_service.spawner.launch_queue import LaunchQueue, estimate, in_words, ordinal


@pytest.mark.parametrize(
    ("waiting", "served", "order"),
    [
        ("", "aa", ""),
        ("a1 a2 a3", "", "a1 a2 a3"),
        ("a1 a2 a3 b1 b2 c1", "", "a1 b1 c1 a2 b2 a3"),
        # What one has already is counted.
        ("a1 b1", "a", "b1 a1"),
        ("a1 a2 b1 c1", "aab", "c1 a1 b1 a2"),
    ],
)
def test_everybodys_first_goes_before_anybodys_second(
    waiting: str, served: str, order: str
) -> None:
    rounds = Rounds()
    for each in served:
        [(number, _)] = rounds.order([each], str, lambda one: rounds.now)
        rounds.serve(each, number)
    found = rounds.order(waiting.split(), lambda each: each[0], lambda each: rounds.now)
    assert [each for _, each in found] == order.split()


def in_order(rounds: Rounds, waiting: list[tuple[str, int]]) -> list[tuple[int, tuple[str, int]]]:
    return rounds.order(waiting, lambda one: one[0], lambda one: one[1])


def test_the_order_that_is_told_is_the_order_of_turns() -> None:
    rounds = Rounds()
    waiting = [(who, rounds.now) for who in "aaaaabbc"]
    told = "".join(who for _, (who, _) in in_order(rounds, waiting))
    served = ""
    while waiting:
        number, first = in_order(rounds, waiting)[0]
        rounds.serve(first[0], number)
        waiting.remove(first)
        served += first[0]
    assert served == told == "abcabaaa"


def test_who_comes_again_and_again_is_not_before_who_waits() -> None:
    """One at a time: ada's launches end quickly, and she always has the next one there already."""
    rounds = Rounds()
    waiting = [("a", 0), ("a", 0), ("b", 0)]
    served = ""
    for _ in range(6):
        number, first = in_order(rounds, waiting)[0]
        rounds.serve(first[0], number)
        waiting.remove(first)
        waiting.append((first[0], rounds.now))
        served += first[0]
    assert [sorted(served[at : at + 2]) for at in (0, 2, 4)] == [["a", "b"]] * 3


@pytest.mark.parametrize(
    ("place", "elapsed", "recent", "seconds"),
    [
        (1, [0], [10, 10], None),  # too few to say anything
        (1, [], [10, 10, 10], None),
        (1, [4], [10, 10, 10], 6),
        (2, [4], [10, 10, 10], 16),
        (3, [4, 8], [10, 10, 10], 12),
        # What has lasted longer than most is compared with those that lasted longer still.
        (1, [11], [10, 10, 10, 20], 9),
        (1, [30], [10, 10, 10, 20], None),
    ],
)
def test_the_estimate(
    place: int, elapsed: list[float], recent: list[float], seconds: float | None
) -> None:
    assert estimate(place, elapsed, recent) == seconds


def test_words() -> None:
    assert [ordinal(n) for n in (1, 2, 3, 4, 11, 12, 13, 21, 102, 111)] == [
        *("1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "102nd", "111th")
    ]
    assert [in_words(s) for s in (3, 14, 59, 70, 200)] == [
        *("a few seconds", "about 10 seconds", "about 60 seconds", "about a minute"),
        "about 3 minutes",
    ]


class Line:
    """A queue, and launches that hold their turn until the test lets go."""

    def __init__(self, most: int) -> None:
        self.now = 0.0
        self.queue = LaunchQueue(most, clock=lambda: self.now)
        self.served: list[str] = []
        self.said: dict[str, list[str]] = {}
        self.places: dict[str, list[int]] = {}
        self.go: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def comes(self, *names: str) -> None:
        for name in names:
            self.go[name] = asyncio.Event()
            self.tasks[name] = asyncio.create_task(self._launch(name))
            await settle()

    async def _launch(self, name: str) -> None:
        def tell(message: str, detail: Mapping[str, Any]) -> None:
            self.said.setdefault(name, []).append(message)
            self.places.setdefault(name, []).append(detail["place"])

        async with self.queue.turn(name[0], tell):
            self.served.append(name)
            await self.go[name].wait()
            if name.endswith("!"):
                raise RuntimeError

    async def ends(self, *names: str) -> None:
        for name in names:
            self.go[name].set()
            await settle()

    async def close(self) -> None:
        for task in self.tasks.values():
            task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_ten_launches_of_one_do_not_hold_up_anothers_first() -> None:
    line = Line(2)
    await line.comes("a0", *(f"a{n}" for n in range(1, 10)), "b0")
    assert line.served == ["a0", "a1"]
    # Whoever waits at once, and whoever does not, hears of it.
    assert "a0" not in line.said
    assert line.places["a2"] == [1, 2] and line.places["b0"] == [1]
    assert line.said["b0"] == ["Others are starting too: you are 1st in line."]
    await line.comes("b1")
    await line.ends("a0")
    assert line.served[2:] == ["b0"]
    await line.ends("a1")
    # Both have one now, and ada's has waited longer.
    assert line.served[3:] == ["a2"]
    await line.ends("b0")
    assert line.served[4:] == ["b1"]
    assert line.places["b1"][-1] == 1
    await line.close()


async def test_the_place_counts_down_and_there_is_an_estimate_when_there_are_launches_to_go_by() -> (
    None
):
    line = Line(1)
    await line.comes("a", "b", "c", "d", "e")
    for name in "abc":
        line.now += 30
        await line.ends(name)
    assert line.served == list("abcd")
    assert line.places["e"] == [4, 3, 2, 1]
    assert line.said["e"][2:] == [
        "Others are starting too: you are 2nd in line.",
        "Others are starting too: you are 1st in line. Going by the last launches, it is your turn in about 30 seconds.",
    ]
    await line.close()


async def test_who_gives_up_or_fails_leaves_no_gap() -> None:
    line = Line(1)
    await line.comes("a!", "b", "c", "d")
    line.tasks["b"].cancel()
    # In the same moment the turn is free: it is not given to who is leaving.
    line.go["a!"].set()
    await settle()
    assert line.served == ["a!", "c"]
    assert line.places["d"][-1] == 1
    line.tasks["c"].cancel()
    await settle()
    assert line.served == ["a!", "c", "d"]
    await line.ends("d")
    await line.comes("e")
    assert line.served[-1] == "e"
    await line.close()


def last_said(hub: RealHub, name: str, server: str = NAME) -> str:
    events = hub.record(name, server).get("events") or [{"message": ""}]
    return str(events[-1]["message"])


def test_in_a_real_hub_the_page_hears_the_place(start_hub: Callable[..., RealHub]) -> None:
    hub = start_hub(concurrent_launches=1, unwalled_people="true")
    ada, bob = hub.person("ada"), hub.person("bob")
    hub.tell("hold-clone")
    hub.launch(ada)
    wait_until(lambda: hub.reached("clone"))
    hub.launch(ada, server=OTHER_NAME, options=OTHER_OPTIONS)
    wait_until(lambda: "you are 1st in line" in last_said(hub, "ada", OTHER_NAME))
    watcher = hub.watch(ada, server=OTHER_NAME)
    hub.launch(bob, "bob")
    wait_until(lambda: "you are 1st in line" in last_said(hub, "bob"))
    wait_until(lambda: "you are 2nd in line" in last_said(hub, "ada", OTHER_NAME))
    hub.untell("hold-clone")
    for name, server in (("ada", NAME), ("bob", NAME), ("ada", OTHER_NAME)):
        assert hub.settled(name, server)["ready"], hub.record(name, server)
    watcher.all()
    details = [each["detail"] for each in watcher.launch_events]
    assert [each["place"] for each in details if "place" in each] == [1, 2, 1]
    at = hub.record("bob")["started_steps"]["clone"]
    assert at < hub.record("ada", OTHER_NAME)["started_steps"]["clone"]

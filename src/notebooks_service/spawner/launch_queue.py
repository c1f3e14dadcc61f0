"""The launches that clone or start, and those that wait for it: fairly, each told its place in the line.

One for a hub; each launch of ours takes a turn here.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from heapq import heapify, heapreplace

from notebooks_service.queues import Rounds
from notebooks_service.spawner.runtime import Tell

RECENT = 20
"""Launches whose durations are remembered."""
LEAST = 3
"""Fewer say nothing of the next one."""


@dataclass(eq=False)
class _Waiting:
    user: str
    tell: Tell
    turn: asyncio.Future[None]
    since: int
    place: int = 0


class LaunchQueue:
    """At most ``most`` launches have a turn at once. ``clock``: seconds that nobody sets back."""

    def __init__(self, most: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._waiting: list[_Waiting] = []
        self._rounds = Rounds()
        self._served: dict[_Waiting, float] = {}
        self._recent: deque[float] = deque(maxlen=RECENT)

    @asynccontextmanager
    async def turn(self, user: str, tell: Tell) -> AsyncIterator[None]:
        """Wait for a turn, and have it while this lasts; ``tell`` hears the place whenever it changes."""
        turn = asyncio.get_running_loop().create_future()
        mine = _Waiting(user, tell, turn, self._rounds.now)
        self._waiting.append(mine)
        try:
            self._advance()
            await mine.turn
            yield
            self._recent.append(self._clock() - self._served[mine])
        finally:
            if mine in self._waiting:
                self._waiting.remove(mine)
            self._served.pop(mine, None)
            self._advance()

    def _advance(self) -> None:
        """Give away the turns that are free, and tell whoever has another place now."""
        # Who was cancelled a moment ago has not left yet.
        waiting = [each for each in self._waiting if not each.turn.done()]
        while len(self._served) < self._most and waiting:
            number, first = self._order(waiting)[0]
            self._rounds.serve(first.user, number)
            waiting.remove(first)
            self._waiting.remove(first)
            self._served[first] = self._clock()
            first.turn.set_result(None)
        for place, (_, each) in enumerate(self._order(waiting), start=1):
            if each.place != place:
                each.place = place
                self._tell(each)

    def _order(self, waiting: Sequence[_Waiting]) -> list[tuple[int, _Waiting]]:
        return self._rounds.order(waiting, lambda each: each.user, lambda each: each.since)

    def _tell(self, waiting: _Waiting) -> None:
        now = self._clock()
        elapsed = [now - began for began in self._served.values()]
        seconds = estimate(waiting.place, elapsed, list(self._recent))
        detail: dict[str, object] = {"place": waiting.place}
        sentence = f"Others are starting too: you are {ordinal(waiting.place)} in line."
        if seconds is not None:
            detail["seconds"] = round(seconds)
            sentence += f" Going by the last launches, it is your turn in {in_words(seconds)}."
        waiting.tell(sentence, detail)


def estimate(place: int, elapsed: Sequence[float], recent: Sequence[float]) -> float | None:
    """Seconds until the turn of who is at ``place``; None where that cannot be said honestly.

    ``elapsed``: how long those who are served have been so; ``recent``: how long it took others.
    """
    if len(recent) < LEAST or not elapsed:
        return None
    ends = []
    for since in elapsed:
        longer = [each for each in recent if each > since]
        if not longer:
            return None  # it has taken longer than any before it
        ends.append(statistics.median(longer) - since)
    typical = statistics.median(recent)
    heapify(ends)
    for _ in range(place - 1):
        heapreplace(ends, ends[0] + typical)
    return float(ends[0])


def ordinal(number: int) -> str:
    """``1st``, ``2nd``, ``3rd``, ``4th``, …"""
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10)
    return f"{number}{ending or 'th'}"


def in_words(seconds: float) -> str:
    """A duration as roughly as it is known."""
    if seconds < 10:
        return "a few seconds"
    if seconds < 60:
        return f"about {10 * round(seconds / 10)} seconds"
    minutes = round(seconds / 60)
    return "about a minute" if minutes == 1 else f"about {minutes} minutes"

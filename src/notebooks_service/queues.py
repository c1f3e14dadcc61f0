"""Who is next where many wait: in rounds, in each of which everybody has one turn; no clock, no waiting.

Used by the launches that wait for a start and by the builds that wait for a turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


class Rounds:
    """Somebody's next turn is a round after their last, but not in a round that is over.

    So nobody is held up by how much another one has asked for, and nobody gains by having waited with it.
    Start-time fair queueing (Goyal, Vin, Cheng, 1996), where all turns are alike.
    """

    def __init__(self) -> None:
        self.now = 0
        """The round of the newest turn."""
        self._last: dict[str, int] = {}

    def order(
        self, waiting: Sequence[T], person: Callable[[T], str], since: Callable[[T], int]
    ) -> list[tuple[int, T]]:
        """``waiting``, which is in order of arrival, in the order of its turns, each with its round.

        ``since``: what ``now`` was when it came.
        """
        last = dict(self._last)
        ranks = []
        for arrived, each in enumerate(waiting):
            who = person(each)
            last[who] = max(since(each), last.get(who, -1) + 1)
            ranks.append((last[who], arrived))
        return [(number, waiting[arrived]) for number, arrived in sorted(ranks)]

    def serve(self, person: str, number: int) -> None:
        """This person's turn of that round has begun."""
        self.now = max(self.now, number)
        self._last[person] = number
        # Whose last turn is before this round is as good as new.
        self._last = {who: each for who, each in self._last.items() if each >= self.now}

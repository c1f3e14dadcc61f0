"""Who is next where many wait: one after another of each person; pure.

Used by the launches that wait for a start and by the builds that wait for a turn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")


def fair(waiting: Sequence[T], person: Callable[[T], str], served: Iterable[str]) -> list[T]:
    """``waiting``, which is in order of arrival, in the order in which it is served.

    Everybody's first goes before anybody's second; what is ``served`` now (whose it is) counts too.
    So nobody is held up by how much another one has asked for.
    """
    ahead = Counter(served)
    ranks = []
    for arrived, each in enumerate(waiting):
        who = person(each)
        ranks.append((ahead[who], arrived))
        ahead[who] += 1
    return [waiting[arrived] for _, arrived in sorted(ranks)]

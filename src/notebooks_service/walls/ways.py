"""Which wall this machine can have: looked at by building one, decided by a pure function.

Asked at the start by ``notebooks up``, and by ``notebooks doctor`` through ``probe``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from notebooks_service.settings import WallsAsked

Way = Literal["uids", "namespaces", "bubblewrap", "none"]


@dataclass(frozen=True)
class Facts:
    """What a look at the machine said. For each way None if it works, else why not.

    A way that was not tried has an empty reason.
    """

    root: bool
    uids: str | None = ""
    namespaces: str | None = ""
    bubblewrap: str | None = ""

    def works(self, way: Way) -> bool:
        return way == "none" or self.reason(way) is None

    def reason(self, way: Way) -> str | None:
        reasons: dict[str, str | None] = {
            "uids": self.uids,
            "namespaces": self.namespaces,
            "bubblewrap": self.bubblewrap,
            "none": None,
        }
        return reasons[way]


@dataclass(frozen=True)
class Choice:
    """The wall in force, and one sentence that says so to a person."""

    way: Way
    sentence: str

    @property
    def holds(self) -> bool:
        return self.way != "none"


HELD = {
    "uids": "Walls: each person has a user number of their own on this machine; servers, jobs and builds see nothing of each other.",
    "namespaces": "Walls: servers, jobs and builds run in user namespaces and see nothing of each other.",
    "bubblewrap": "Walls: servers, jobs and builds run in bubblewrap and see nothing of each other.",
}
OPEN = (
    "Walls: none, so only the owner may launch, and what runs in a notebook can do all that you can"
)


def candidates(root: bool) -> tuple[Way, ...]:
    """The ways in their order. A namespace of root's own would leave it root's files, so it is none."""
    return ("uids",) if root else ("namespaces", "bubblewrap")


def choose(asked: WallsAsked, facts: Facts) -> Choice | None:
    """The wall in force; None if the one that was asked for does not work here."""
    if asked == "none":
        return Choice("none", f"{OPEN} (the setting `walls` says so).")
    if asked != "auto":
        if asked not in candidates(facts.root) or not facts.works(asked):
            return None
        return Choice(asked, HELD[asked])
    for way in candidates(facts.root):
        if facts.works(way):
            return Choice(way, HELD[way])
    reasons = [f"{way}: {facts.reason(way)}" for way in candidates(facts.root) if facts.reason(way)]
    why = "; ".join(reasons) or "nothing was found that could make one"
    return Choice("none", f"{OPEN} ({why}).")

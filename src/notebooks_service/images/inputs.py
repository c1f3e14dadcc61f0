"""What an environment depends on, as plain data; made by ``images/container.py`` and those below it,
named by ``images/fingerprint.py``, printed by ``notebooks image explain``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Input:
    """A file, or a directory with all that is below it. ``why`` says in words what it is for."""

    path: str
    mode: str
    blob: str
    why: str


@dataclass(frozen=True)
class Base:
    """An image that another is built on. ``why`` names the line that says so.

    ``digest`` is the one it is pinned to; ``known`` is whether ``reference`` is all known.
    """

    reference: str
    why: str
    known: bool = True

    @property
    def digest(self) -> str | None:
        """``sha256:…`` if the reference itself names it; an empty base needs none."""
        if self.reference == "scratch":
            return "none"
        _, at, digest = self.reference.rpartition("@")
        return digest if at and digest.startswith("sha256:") and len(digest) == 71 else None


@dataclass(frozen=True)
class Found:
    """What a commit's files say of the container image to be built for it."""

    kind: Literal["dockerfile", "python", "none"]
    inputs: tuple[Input, ...] = ()
    dockerfile: str = ""
    context: str = ""
    target: str = ""
    build_args: Mapping[str, str] = field(default_factory=dict)
    bases: tuple[Base, ...] = ()
    moving: tuple[str, ...] = ()
    unsure: tuple[str, ...] = ()

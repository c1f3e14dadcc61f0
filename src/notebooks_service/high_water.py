"""High-water marks of disk and memory: where builds wait, and where they are ended, before servers suffer.

Asked by whoever begins or runs a build (hub, runner); shown by ``health`` and the doctor.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from notebooks_service.errors import NoMemory

if TYPE_CHECKING:
    # A job that builds images asks too, and has no settings to wait for.
    from notebooks_service.settings import Settings

MIB = 2**20
LEAST_FOR_A_SERVER = 64 * MIB
"""Bytes of memory that have to be available for a server to be started: below, the system would end something."""


@dataclass(frozen=True)
class Level:
    """How much of something there is, and how much of that is free, in bytes."""

    free: int
    total: int

    @property
    def used(self) -> float:
        """The share that is in use, 0 to 1."""
        return 1 - self.free / self.total if self.total > 0 else 0.0


@dataclass(frozen=True)
class Marks:
    """``disk`` and ``memory``: shares in use from which no build begins; ``memory_reserve``: bytes that
    builds have to leave. What they have to leave of a disk is the setting ``disk_reserve``."""

    disk: float = 0.95
    memory: float = 0.9
    memory_reserve: int = 256 * MIB

    @classmethod
    def of(cls, settings: Settings) -> Marks:
        return cls(settings.disk_high_water, settings.memory_high_water, settings.memory_reserve)

    def waits(self, disk: Level | None, memory: Level | None) -> str:
        """Why no build begins now, as a sentence; empty if one may."""
        if disk is not None and disk.used >= self.disk:
            return _waits("disk", disk.used, self.disk)
        if memory is not None and memory.used >= self.memory:
            return _waits("memory", memory.used, self.memory)
        if memory is not None and memory.free < self.memory_reserve:
            return (
                f"{_left(memory.free, self.memory_reserve)} Builds begin again when there is more."
            )
        return ""

    def lacks_memory(self, memory: Level | None) -> str:
        """Why builds that run have to end, as a sentence; empty if they may go on."""
        if memory is None or memory.free >= self.memory_reserve:
            return ""
        return (
            f"{_left(memory.free, self.memory_reserve)} Try again when less runs there, or let the "
            "build use less."
        )


def _waits(what: str, used: float, mark: float) -> str:
    return (
        f"The {what} of the machine that builds is {100 * used:.0f} % full; builds begin again below "
        f"{100 * mark:.0f} %."
    )


def _left(free: int, reserve: int) -> str:
    return (
        f"Only {free / MIB:,.0f} MiB of memory are left on the machine that builds, and "
        f"{reserve / MIB:,.0f} MiB have to stay free."
    )


def disk_at(place: Path) -> Level | None:
    """The disk that holds ``place``, or would; None if that cannot be said."""
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        found = shutil.disk_usage(place)
    except OSError:
        return None
    # Not `total`: a part of most file systems is root's alone, and nobody else's to use.
    return Level(found.free, found.used + found.free)


def memory_of_host() -> Level | None:
    """What can be given to programs without swapping, of this machine's memory."""
    try:
        found = psutil.virtual_memory()
    except OSError:
        return None
    return Level(found.available, found.total)


@dataclass(frozen=True)
class Gauge:
    """The marks, and how full it is now. ``disk`` and ``memory`` measure."""

    marks: Marks = field(default_factory=Marks)
    disk: Callable[[Path], Level | None] = disk_at
    memory: Callable[[], Level | None] = memory_of_host

    def waits(self, place: Path) -> str:
        """Why no build begins now that writes to ``place``, as a sentence; empty if one may."""
        return self.marks.waits(self.disk(place), self.memory())

    def lacks_memory(self) -> str:
        """Why builds that run have to end, as a sentence; empty if they may go on."""
        return self.marks.lacks_memory(self.memory())

    def check_server(self) -> None:
        """Servers start beyond the marks too, but not without any memory: raises ``NoMemory``."""
        memory = self.memory()
        if memory is not None and memory.free < LEAST_FOR_A_SERVER:
            raise NoMemory()

"""What one build of an environment may take: time, disk, memory; used by ``images/uv.py``.

The limits come from the settings; in a CI job they arrive as the variables of ``VARIABLES``, which the
runner sets and the project's own variables cannot change.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from notebooks_service.errors import BuildFailed, NoSpace
from notebooks_service.high_water import Gauge, Marks

LOOK = 0.5
"""Seconds between two looks at the disk; between two countings of files, twenty times the last."""

VARIABLES = {
    "seconds": "NOTEBOOKS_BUILD_WAIT",
    "size": "NOTEBOOKS_ENVIRONMENT_SIZE",
    "reserve": "NOTEBOOKS_DISK_RESERVE",
    "memory": "NOTEBOOKS_MEMORY_RESERVE",
}


@dataclass(frozen=True)
class BuildLimits:
    """``seconds`` for the whole build, ``size`` of the environment and ``reserve`` of free disk in bytes;
    ``memory``: bytes of the machine's memory that have to stay free."""

    seconds: float = 1800.0
    size: int = 20 * 2**30
    reserve: int = 256 * 2**20
    memory: int = 256 * 2**20

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> BuildLimits:
        """The limits that the runner gave; the defaults for what is missing or no number."""
        found = cls()
        given: dict[str, float | int] = {}
        for name, variable in VARIABLES.items():
            kind = type(getattr(found, name))
            try:
                value = kind(environ[variable])
            except (KeyError, ValueError):
                continue
            if value > 0 or name == "memory":
                given[name] = value
        return cls(**given)  # type: ignore[arg-type]


class Watchdog:
    """Looks, while a build runs, whether it keeps within its limits. One for each build."""

    def __init__(
        self, limits: BuildLimits, directory: Path, *places: Path, gauge: Gauge | None = None
    ) -> None:
        """``directory`` holds the environment; ``places`` are others that the build writes into."""
        self._limits = limits
        self._gauge = gauge or Gauge(Marks(memory_reserve=limits.memory))
        self._directory = directory
        self._places = (directory, *places)
        self._deadline = time.monotonic() + limits.seconds
        self._next_count = 0.0

    def check(self) -> None:
        """Raises ``BuildFailed`` or ``NoSpace`` if the build has to end now."""
        limits = self._limits
        if time.monotonic() > self._deadline:
            raise BuildFailed(
                f"The environment could not be built: it was not done after {duration(limits.seconds)}. "
                "Whoever runs this service can allow more (`build_wait`)."
            )
        for place in self._places:
            free = free_bytes(place)
            if free is not None and free < limits.reserve:
                raise NoSpace(
                    f"The build was ended because only {free / 2**20:,.0f} MiB of disk were left, and "
                    f"{limits.reserve / 2**20:,.0f} MiB have to stay free. Ask for fewer or smaller "
                    "packages, or free some space, then try again."
                )
        if lack := self._gauge.lacks_memory():
            raise BuildFailed(f"The build was ended. {lack}")
        if time.monotonic() < self._next_count:
            return
        began = time.monotonic()
        size = disk_usage(self._directory, limits.size)
        self._next_count = time.monotonic() + max(20 * (time.monotonic() - began), LOOK)
        if size > limits.size:
            raise BuildFailed(
                "The environment could not be built: it became larger than "
                f"{limits.size / 2**20:,.0f} MiB. Ask for fewer or smaller packages, or have whoever "
                "runs this service allow more (`environment_size`)."
            )


def free_bytes(place: Path) -> int | None:
    """Free bytes where ``place`` lies; None if it is not there."""
    try:
        return shutil.disk_usage(place).free
    except OSError:
        return None


def disk_usage(directory: Path, enough: int) -> int:
    """Bytes that a directory takes on the disk; counting ends once it is over ``enough``."""
    total = 0
    waiting = [os.fspath(directory)]
    while waiting and total <= enough:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
        except OSError:
            continue  # gone meanwhile
    return total


def duration(seconds: float) -> str:
    """For a sentence."""
    if seconds < 120:
        return f"{seconds:g} seconds"
    return f"{seconds / 60:.0f} minutes"

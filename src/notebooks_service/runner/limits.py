"""What one job may take of the runner's machine; made of the settings by ``__main__``."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from notebooks_service.high_water import Gauge, Marks
from notebooks_service.images.limits import LOOK, VARIABLES, disk_usage
from notebooks_service.settings import Settings

OUTPUT_LIMIT = 4 * 1024 * 1024
"""Bytes of one log, the default of GitLab's runner (``output_limit``)."""


@dataclass(frozen=True)
class JobLimits:
    """``log``: bytes of a job's log. ``reserve``: bytes of disk that have to stay free. ``size``: bytes
    that a job may have in its own directories.

    ``gauge`` says when jobs wait, and when those that run have to end for want of memory.
    ``variables`` tell ``notebooks image build`` its own limits.
    """

    log: int = OUTPUT_LIMIT
    reserve: int = 256 * 2**20
    size: int = 50 * 2**30
    variables: Mapping[str, str] = field(default_factory=dict)
    gauge: Gauge = field(default_factory=Gauge)

    @classmethod
    def from_settings(cls, settings: Settings) -> JobLimits:
        values = {
            "seconds": settings.build_wait,
            "size": settings.environment_size,
            "reserve": settings.disk_reserve,
            "memory": settings.memory_reserve,
        }
        variables = {VARIABLES[name]: str(value) for name, value in values.items()}
        return cls(
            settings.job_log_size,
            settings.disk_reserve,
            settings.job_size,
            variables,
            Gauge(Marks.of(settings)),
        )

    def lack(self, place: Path) -> str | None:
        """A sentence if less than ``reserve`` is free where ``place`` lies."""
        try:
            free = shutil.disk_usage(place).free
        except OSError:
            return None
        if free >= self.reserve:
            return None
        return (
            f"only {free / 2**20:,.0f} MiB of disk are left on the runner's machine, and "
            f"{self.reserve / 2**20:,.0f} MiB have to stay free. Free some space, then retry the job."
        )


class DiskWatch:
    """Looks, while one job runs, whether it takes too much of disk or memory; asked twice a second.

    ``place`` is where jobs are, ``own`` the directory of this one. Counting a directory takes its time,
    so it is done for a twentieth of it at most.
    """

    def __init__(self, limits: JobLimits, place: Path, own: Path) -> None:
        self._limits = limits
        self._place = place
        self._own = own
        self._next_count = 0.0
        self.greedy: str | None = None
        """What it did, once the job itself has taken too much."""
        self.said: str | None = None
        """Why the job had to end, when it had to last."""

    def full(self) -> str | None:
        """A sentence if a job cannot begin before somebody frees space."""
        return self._limits.lack(self._place)

    def waits(self) -> str:
        """A sentence if no job begins now, which may begin later."""
        return self._limits.gauge.waits(self._place)

    def lack(self) -> str | None:
        """A sentence if the job has to end, or cannot begin."""
        found = self._lack()
        if found is not None:
            self.said = found
        return found

    def _lack(self) -> str | None:
        found = self._limits.lack(self._place) or self._limits.gauge.lacks_memory() or None
        if found is not None or time.monotonic() < self._next_count:
            return found
        began = time.monotonic()
        size = disk_usage(self._own, self._limits.size)
        self._next_count = time.monotonic() + max(20 * (time.monotonic() - began), LOOK)
        if size <= self._limits.size:
            return None
        self.greedy = (
            f"the job has written more than the {self._limits.size / 2**20:,.0f} MiB that one may have "
            "here. Let it write less, or have whoever runs this service allow more (`job_size`)."
        )
        return self.greedy

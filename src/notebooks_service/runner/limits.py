"""What one job may take of the runner's machine; made of the settings by ``__main__``."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from notebooks_service.images.limits import VARIABLES
from notebooks_service.settings import Settings

OUTPUT_LIMIT = 4 * 1024 * 1024
"""Bytes of one log, the default of GitLab's runner (``output_limit``)."""


@dataclass(frozen=True)
class JobLimits:
    """``log``: bytes of a job's log. ``reserve``: bytes of disk that have to stay free.

    ``variables`` tell ``notebooks image build`` its own limits.
    """

    log: int = OUTPUT_LIMIT
    reserve: int = 256 * 2**20
    variables: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_settings(cls, settings: Settings) -> JobLimits:
        values = {
            "seconds": settings.build_wait,
            "size": settings.environment_size,
            "reserve": settings.disk_reserve,
        }
        variables = {VARIABLES[name]: str(value) for name, value in values.items()}
        return cls(settings.job_log_size, settings.disk_reserve, variables)

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

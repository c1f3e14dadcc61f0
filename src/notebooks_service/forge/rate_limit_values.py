"""How often the API may be called; plain values, for ``config`` and ``rate_limits``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RateLimits:
    """Calls of the API in ``period`` seconds; 0 stands for no limit."""

    authenticated: int = 0
    unauthenticated: int = 0
    period: int = 3600

    @property
    def on(self) -> bool:
        return bool(self.authenticated or self.unauthenticated)

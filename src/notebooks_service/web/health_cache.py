"""Remembers for a moment how hub and forge are: anybody may ask ``health``, as often as they like."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

SECONDS = 3.0
WHILE_ILL = 0.5
"""Seconds for which a bad answer is kept: what has just started is well a moment later."""

Found = tuple[dict[str, Any], dict[str, Any]]


class HealthCache:
    """What the last look found, for ``SECONDS``, or ``WHILE_ILL``. Who asks during a look waits for its end."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = asyncio.Lock()
        self._until = float("-inf")
        self._found: Found | None = None

    async def look(self, ask: Callable[[], Awaitable[Any]]) -> Found:
        async with self._lock:
            if self._found is None or self._clock() >= self._until:
                hub, forge = await ask()
                self._found = (hub, forge)
                well = hub.get("reachable") and forge.get("reachable")
                self._until = self._clock() + (SECONDS if well else WHILE_ILL)
            return self._found

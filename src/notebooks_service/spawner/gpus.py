"""Which server has which GPUs of the engine's host, each one server at a time; for the docker runtime.

The containers' labels say what is given, so a new hub knows it too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from notebooks_service.errors import NoGpu
from notebooks_service.spawner.containers import GPUS, SERVER, USER, Ours
from notebooks_service.spawner.engine import Engine
from notebooks_service.spawner.runtime import ServerKey

OVER = ("exited", "dead", "removing")
"""States of a container that uses nothing any more. https://docs.docker.com/reference/api/engine/"""


def choose(every: Sequence[str], taken: frozenset[str], count: int) -> tuple[str, ...]:
    """``count`` of those that are free, the first of the setting first. Raises ``NoGpu``."""
    free = [each for each in every if each not in taken]
    if len(free) < count:
        raise NoGpu(
            f"{len(free)} of this machine's {len(every)} GPUs are free, and this server asks for {count}. Try again "
            "when another server has stopped, or start it with fewer; nothing is lost."
        )
    return tuple(free[:count])


def given(containers: Sequence[Mapping[str, Any]], key: ServerKey) -> frozenset[str]:
    """Those that containers of others than this server have, as the engine lists them.

    What a launch before has left of the server itself is removed before it starts.
    """
    living = [each.get("Labels") or {} for each in containers if each.get("State") not in OVER]
    others = [
        each for each in living if (each.get(USER), each.get(SERVER)) != (key.user, key.server)
    ]
    return frozenset(
        device for each in others for device in each.get(GPUS, "").split(",") if device
    )


class Gpus:
    """Those of the setting ``gpus``."""

    def __init__(self, every: Sequence[str], engine: Engine, ours: Ours) -> None:
        self._every = tuple(every)
        self._engine = engine
        self._ours = ours
        self._one = asyncio.Lock()
        self._promised: dict[ServerKey, tuple[str, ...]] = {}

    async def look(self, key: ServerKey, count: int) -> None:
        """Raises ``NoGpu`` if so many are not free now, before anything is done for a launch in vain."""
        if count:
            choose(self._every, await self._taken(key), count)

    async def take(self, key: ServerKey, count: int) -> tuple[str, ...]:
        """So many, promised to this server until ``made``. Raises ``NoGpu``, ``EngineUnavailable``."""
        if not count:
            return ()
        async with self._one:
            found = choose(self._every, await self._taken(key), count)
            self._promised[key] = found
        return found

    def made(self, key: ServerKey) -> None:
        """Its container is there, or will not be: the engine knows now what it has."""
        self._promised.pop(key, None)

    async def _taken(self, key: ServerKey) -> frozenset[str]:
        promised = frozenset(each for found in self._promised.values() for each in found)
        # What is promised meanwhile is in a container then, or still promised.
        return promised | given(await self._engine.containers(self._ours.filters("server")), key)

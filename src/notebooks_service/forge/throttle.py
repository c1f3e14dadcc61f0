"""Slows down guessing of passwords: counts failures of a name at an address, in memory."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from threading import Lock

MOST_KEYS = 10_000
ADDRESS = "address "
FROM_ONE_ADDRESS = 10
"""An address may fail this many times as often as one name at it: many people can share it."""


def guess_keys(name: str, address: str) -> tuple[str, str]:
    """What a wrong password is counted for: the name at this address, and the address.

    Never the name alone: then anybody could keep a person from signing in.
    """
    return f"name {name[:255]} at {address}", f"{ADDRESS}{address}"


class Throttle:
    """After ``tries`` failures within ``seconds`` a key is closed until the oldest is older than that.

    GitLab locks an account for ten minutes after ten failures:
    https://docs.gitlab.com/security/unlock_user/
    """

    def __init__(
        self, tries: int = 10, seconds: float = 600, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._tries = tries
        self._seconds = seconds
        self._clock = clock
        self._lock = Lock()
        self._failures: OrderedDict[str, list[float]] = OrderedDict()

    def is_closed(self, *keys: str) -> bool:
        """Whether one of these (a user name, an address) has failed too often."""
        with self._lock:
            return any(len(self._recent(key)) >= self._most(key) for key in keys)

    def failed(self, *keys: str) -> None:
        with self._lock:
            for key in keys:
                self._failures[key.lower()] = [*self._recent(key), self._clock()]
                self._failures.move_to_end(key.lower())
            while len(self._failures) > MOST_KEYS:
                self._failures.popitem(last=False)

    def succeeded(self, *keys: str) -> None:
        with self._lock:
            for key in keys:
                self._failures.pop(key.lower(), None)

    def _most(self, key: str) -> int:
        return self._tries * (FROM_ONE_ADDRESS if key.startswith(ADDRESS) else 1)

    def _recent(self, key: str) -> list[float]:
        since = self._clock() - self._seconds
        return [moment for moment in self._failures.get(key.lower(), []) if moment > since]

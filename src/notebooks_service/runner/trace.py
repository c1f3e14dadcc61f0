"""A job's log on its way to the forge: masked, limited, remembered until the forge has it.

Written by the thread that reads the job's output, read by the one that sends it (``reporter``).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

from notebooks_service.runner.limits import OUTPUT_LIMIT
from notebooks_service.runner.masking import Masker
from notebooks_service.runner.script import RED, RESET, YELLOW


class Trace:
    """Append-only bytes. ``limit`` is in bytes; what comes after it is dropped, and said once."""

    def __init__(self, secrets: Iterable[str | bytes], limit: int = OUTPUT_LIMIT) -> None:
        self._masker = Masker(secrets)
        self._limit = limit
        self._lock = threading.Lock()
        self._data = bytearray()
        self._full = False

    def write(self, data: bytes) -> None:
        """Output of the job."""
        with self._lock:
            # What nobody will see need not be looked through: a job may print for ever.
            if not self._full:
                self._add(self._masker.feed(data))

    def _add(self, shown: bytes) -> None:
        if self._full:
            return
        room = self._limit - len(self._data)
        self._data += shown[:room]
        if len(shown) > room:
            self._full = True
            self._masker.flush()
            self._data += (
                f"\n{YELLOW}Job's log exceeded limit of {self._limit} bytes.\n"
                f"Job execution will continue but no more output will be collected.{RESET}\n"
            ).encode()

    def say(self, text: str) -> None:
        """A line of the runner's own; it comes through even after the limit."""
        with self._lock:
            self._add(self._masker.flush())
            if self._data and not self._data.endswith(b"\n"):
                self._data += b"\n"
            masked = Masker(self._masker.secrets)
            self._data += masked.feed(text.encode()) + masked.flush() + b"\n"

    def error(self, text: str) -> None:
        self.say(f"{RED}ERROR: {text}{RESET}")

    def flush(self) -> None:
        """The job's output has ended: nothing is held back any more."""
        with self._lock:
            self._add(self._masker.flush())

    def part(self, start: int, size: int) -> bytes:
        """At most ``size`` bytes from ``start`` on."""
        with self._lock:
            return bytes(self._data[start : start + size])

    def __len__(self) -> int:
        with self._lock:
            return len(self._data)

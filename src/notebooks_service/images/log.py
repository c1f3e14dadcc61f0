"""The build log that a person reads: one line at a time, each with the time since the start."""

from __future__ import annotations

import re
import time
from typing import TextIO

CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")


def cleaned(line: str) -> str:
    """``line`` without colours and without the password of an index's URL."""
    return CREDENTIALS.sub("****@", CONTROL.sub("", line)).rstrip()


class BuildLog:
    """Writes to the job's log; a log that nobody reads any more does not end a build."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    def line(self, text: str) -> None:
        try:
            self._out.write(f"[{self.seconds:7.2f} s] {cleaned(text)}\n")
            self._out.flush()
        except OSError:
            pass

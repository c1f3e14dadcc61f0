"""An own user number for each person and project, for the wall of a machine's root.

Kept in one small file of root's below the data directory. A number is never given twice, never one
that the machine knows already, and a file that cannot be read is an error and no reason to begin anew.
"""

from __future__ import annotations

import fcntl
import grp
import json
import os
import pwd
from collections.abc import Callable
from pathlib import Path

from notebooks_service.errors import PlatformFailed

PROBE = "probe"
SUBORDINATE = (Path("/etc/subuid"), Path("/etc/subgid"))


class Identities:
    """Which number whom; any number of processes may use one file at once."""

    def __init__(
        self,
        file: Path,
        first: int,
        count: int,
        known: Callable[[int], bool] | None = None,
    ) -> None:
        """``first`` and ``count``: the range; ``known``: whether the machine uses a number already."""
        self._file = file
        self._first = first
        self._end = first + count
        self._known = known or known_here
        self._seen: dict[str, int] = {}

    def number(self, who: str) -> int:
        """The number of ``who`` (``person:ada``, ``project:7``), user and group alike.

        Raises ``PlatformFailed`` when the range is used up or the file is damaged.
        """
        if who not in self._seen:
            self._seen[who] = self._find(who)
        return self._seen[who]

    def _find(self, who: str) -> int:
        self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(
            self._file.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            following, given = self._read()
            if who in given:
                return given[who]
            number = max(following, self._first)
            while number < self._end and self._known(number):
                number += 1
            if number >= self._end:
                raise PlatformFailed(
                    f"The user numbers {self._first} to {self._end - 1} are used up; give more with the setting `wall_uid_count`."
                )
            self._write(number + 1, {**given, who: number})
            return number
        finally:
            os.close(lock)

    def _read(self) -> tuple[int, dict[str, int]]:
        try:
            data = json.loads(self._file.read_text())
            return int(data["next"]), {str(who): int(uid) for who, uid in data["given"].items()}
        except FileNotFoundError:
            return self._first, {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise PlatformFailed(
                f"{self._file} says which user number is whose, and cannot be read; put it back from a backup, or files would change hands."
            ) from None

    def _write(self, following: int, given: dict[str, int]) -> None:
        new = self._file.with_suffix(".new")
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump({"next": following, "given": given}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._file)


def known_here(number: int) -> bool:
    """Whether the machine has a user or group of this number, or lends it to containers."""
    for look in (pwd.getpwuid, grp.getgrgid):
        try:
            look(number)
        except KeyError:
            continue
        return True
    return any(number in lent for file in SUBORDINATE for lent in _lent(file))


def _lent(file: Path) -> list[range]:
    """The ranges that ``/etc/subuid`` or ``/etc/subgid`` names (``subuid(5)``)."""
    try:
        rows = [line.split(":") for line in file.read_text().splitlines()]
        return [range(int(row[1]), int(row[1]) + int(row[2])) for row in rows if len(row) == 3]
    except (OSError, ValueError):
        return []

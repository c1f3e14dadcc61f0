"""What was once found out about commits and cannot change: in the hub's data, bounded, expendable.

Used by ``images/naming.py``. A commit's files are what they are for ever, so what they say is worked
out once. Nobody is shown anything from here who may not see the commit: that is asked before.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

MOST = 50_000
LARGEST = 64 * 1024
TABLE = """
CREATE TABLE IF NOT EXISTS names (
  number INTEGER PRIMARY KEY,
  project INTEGER NOT NULL,
  sha TEXT NOT NULL,
  builder TEXT NOT NULL,
  value TEXT NOT NULL,
  UNIQUE (project, sha, builder)
)
"""


class KeptNames:
    """JSON objects by project, commit and who worked them out. Thread-safe; never raises.

    A store that cannot be read or written is as good as an empty one: everything is worked out again.
    """

    def __init__(self, file: Path | None, *, most: int = MOST) -> None:
        """``file`` is made when needed; None keeps it in memory. The oldest of over ``most`` go."""
        self._file = file
        self._most = most
        self._lock = threading.Lock()
        self._database: sqlite3.Connection | None = None

    def get(self, project: int, sha: str, builder: str) -> dict[str, Any] | None:
        with self._lock:
            try:
                row = self._open().execute(
                    "SELECT value FROM names WHERE project = ? AND sha = ? AND builder = ?",
                    (project, sha, builder),
                )
                found = row.fetchone()
                value = json.loads(found[0]) if found else None
            except (sqlite3.Error, OSError, ValueError) as error:
                self._broken(error)
                return None
        return value if isinstance(value, dict) else None

    def put(self, project: int, sha: str, builder: str, value: Mapping[str, Any]) -> None:
        """Keep ``value``; one that is very large is not kept."""
        text = json.dumps(value)
        if len(text) > LARGEST:
            return
        with self._lock:
            try:
                database = self._open()
                with database:
                    added = database.execute(
                        "INSERT OR REPLACE INTO names (project, sha, builder, value)"
                        " VALUES (?, ?, ?, ?)",
                        (project, sha, builder, text),
                    )
                    database.execute(
                        "DELETE FROM names WHERE number <= ?",
                        ((added.lastrowid or 0) - self._most,),
                    )
            except (sqlite3.Error, OSError) as error:
                self._broken(error)

    def close(self) -> None:
        with self._lock:
            self._close()

    def _open(self) -> sqlite3.Connection:
        if self._database is None:
            if self._file is not None:
                self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._database = sqlite3.connect(
                self._file or ":memory:", timeout=5, check_same_thread=False
            )
            self._database.execute(TABLE)
        return self._database

    def _close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    def _broken(self, error: Exception) -> None:
        """Log it; a file that is no database begins anew."""
        log.warning("What is known of commits cannot be kept: %s", error)
        self._close()
        if self._file is not None and isinstance(error, sqlite3.DatabaseError):
            if isinstance(error, sqlite3.OperationalError):
                return  # locked, or the disk is full: the file is good
            self._file.unlink(missing_ok=True)

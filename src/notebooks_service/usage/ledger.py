"""The ledger of runs and sizes: a SQLite file in the hub's data. The hub writes it, others read.

Blocking, so called in threads.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import astuple, replace
from pathlib import Path

from notebooks_service.errors import SettingsInvalid
from notebooks_service.usage.records import Run, Size
from notebooks_service.usage.report import Period

VERSION = 1
WAIT = 30.0
"""Seconds to wait for somebody who writes or backs up."""
TABLES = """
CREATE TABLE IF NOT EXISTS runs (
  launch TEXT PRIMARY KEY, user TEXT NOT NULL, server TEXT NOT NULL,
  project_id INTEGER NOT NULL, project TEXT NOT NULL, runtime TEXT NOT NULL,
  cpu REAL NOT NULL, memory INTEGER NOT NULL, gpus INTEGER NOT NULL,
  began REAL NOT NULL, seen REAL NOT NULL, ended INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS runs_seen ON runs (seen);
CREATE INDEX IF NOT EXISTS runs_server ON runs (user, server);
CREATE TABLE IF NOT EXISTS sizes (
  user TEXT NOT NULL, server TEXT NOT NULL,
  project_id INTEGER NOT NULL, project TEXT NOT NULL,
  at REAL NOT NULL, bytes INTEGER NOT NULL,
  PRIMARY KEY (user, server, at)
);
"""
_RUN = "launch, user, server, project_id, project, runtime, cpu, memory, gpus, began, seen, ended"
_SIZE = "user, server, project_id, project, at, bytes"
# With one max(), the other columns are of the row that has it: https://sqlite.org/lang_select.html
_LAST_SIZES = (
    "SELECT user, server, project_id, project, max(at), bytes FROM sizes {} GROUP BY user, server"
)
_LAST_RUNS = "SELECT user, server, project_id, project, max(seen), -1 FROM runs GROUP BY user, server"  # fmt: skip


def ledger_file(data: Path) -> Path:
    """Where it is; `notebooks backup` takes every database of that directory along."""
    return data / "hub" / "usage.sqlite"


class Ledger:
    """Raises ``sqlite3.Error`` and ``OSError``; ``SettingsInvalid`` for one that a newer version wrote."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def write(self, runs: Iterable[Run], ended: Iterable[str] = (), sizes: Iterable[Size] = ()) -> None:  # fmt: skip
        """Add runs, or what is newer of those that are there; a run keeps when it began.

        ``ended``: launches of runs that nobody saw the end of. They ended when they were last seen.
        """
        with self._opened(make=True) as database, database:
            database.executemany(
                f"INSERT INTO runs ({_RUN}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "  # noqa: S608 - ours
                "ON CONFLICT (launch) DO UPDATE SET seen = max(seen, excluded.seen), "
                "ended = excluded.ended",
                [astuple(run) for run in runs],
            )
            database.executemany(
                "UPDATE runs SET ended = 1 WHERE launch = ?", [(launch,) for launch in ended]
            )
            database.executemany(
                f"INSERT OR REPLACE INTO sizes ({_SIZE}) VALUES (?, ?, ?, ?, ?, ?)",  # noqa: S608
                [astuple(size) for size in sizes],
            )

    def read(self, period: Period) -> tuple[list[Run], list[Size]]:
        """All that has a part in ``period``: of each server also the last size before it."""
        with self._opened() as database:
            runs = database.execute(
                f"SELECT {_RUN} FROM runs WHERE seen > ? AND began < ?",  # noqa: S608
                (period.since, period.until),
            )
            found = [replace(Run(*row), ended=bool(row[-1])) for row in runs]
            before = database.execute(_LAST_SIZES.format("WHERE at < ?"), (period.since,))
            sizes = [Size(*row) for row in before]
            within = database.execute(
                f"SELECT {_SIZE} FROM sizes WHERE at >= ? AND at < ?",  # noqa: S608
                (period.since, period.until),
            )
            return found, [*sizes, *(Size(*row) for row in within)]

    def kept(self) -> list[Size]:
        """Every server that may keep something, with its last size; -1 bytes if it never was looked at."""
        with self._opened() as database:
            last = {
                (row[0], row[1]): Size(*row) for row in database.execute(_LAST_SIZES.format(""))
            }
            for row in database.execute(_LAST_RUNS):
                run = Size(*row)
                size = last.get((run.user, run.server))
                if size is None or (size.at < run.at and not size.bytes):
                    last[run.user, run.server] = run
        return [each for each in last.values() if each.bytes]

    def forget(self, before: float) -> None:
        """Remove runs and sizes that ended before; the size that a server still has stays."""
        with self._opened(make=True) as database, database:
            database.execute("DELETE FROM runs WHERE seen < ?", (before,))
            database.execute(
                "DELETE FROM sizes WHERE at < ? AND (bytes = 0 OR EXISTS (SELECT 1 FROM sizes AS newer "
                "WHERE newer.user = sizes.user AND newer.server = sizes.server "
                "AND newer.at > sizes.at AND newer.at <= ?))",
                (before, before),
            )

    @contextmanager
    def _opened(self, *, make: bool = False) -> Iterator[sqlite3.Connection]:
        if not make and not self.file.exists():
            with closing(sqlite3.connect(":memory:")) as empty:
                empty.executescript(TABLES)
                yield empty
            return
        if make and not self.file.exists():
            self.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.file.touch(mode=0o600)
        with closing(sqlite3.connect(self.file, timeout=WAIT)) as database:
            [version] = database.execute("PRAGMA user_version").fetchone()
            if version > VERSION:
                raise SettingsInvalid(
                    f"The record of usage has version {version}; this program knows {VERSION}. Start the "
                    "version of the program that wrote it, or newer."
                )
            if version < VERSION:
                database.executescript(f"{TABLES} PRAGMA user_version = {VERSION};")
            yield database

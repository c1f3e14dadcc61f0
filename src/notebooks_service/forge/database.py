"""The forge's SQLite database: engine, migrations at start, and the session of a request.

One session a request: reads begin a deferred transaction, everything else begins immediately, so
that a writer waits its turn instead of failing half-way. A write is committed before its answer is
sent. Used by the routes (``SessionDep``) and by ``administration.py`` from other processes.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from fastapi import Depends, Request
from filelock import FileLock
from sqlalchemy import DateTime, Dialect, Engine, MetaData, create_engine, event
from sqlalchemy.orm import DeclarativeBase, Session
from sqlalchemy.types import TypeDecorator

from notebooks_service.errors import PlatformFailed

MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_TIMEOUT = 30_000
"""Milliseconds that a writer waits for another one."""


class Base(DeclarativeBase):
    """The base of every table of the forge, the CI's too."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class UtcDateTime(TypeDecorator[datetime]):
    """A time with its zone; stored as UTC, because SQLite stores none."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value.astimezone(UTC).replace(tzinfo=None) if value else None

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        return value.replace(tzinfo=UTC) if value else None


def now() -> datetime:
    return datetime.now(UTC)


def iso(moment: datetime | None) -> str | None:
    """GitLab's way to write a time: ``2024-05-01T10:20:30.456Z``."""
    if moment is None:
        return None
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


class Database:
    """The open, migrated database. Threads may share it.

    ``session_class`` is this object's own: who has to see every change listens to it.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with FileLock(path.with_suffix(".lock")):
            migrate(path)
        self.session_class: type[Session] = type("ForgeSession", (Session,), {})
        self._reads = _engine(path)
        self._writes = self._reads.execution_options(forge_write=True)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session that sees one state of the data and changes nothing."""
        with self.session_class(self._reads, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A session that holds the write lock and commits at the end. Keep it short."""
        with self.session_class(self._writes, expire_on_commit=False) as session:
            yield session
            session.commit()

    def close(self) -> None:
        self._reads.dispose()


def _engine(path: Path) -> Engine:
    engine = create_engine(
        f"sqlite+pysqlite:///{path}",
        connect_args={"timeout": BUSY_TIMEOUT / 1000, "check_same_thread": False},
        pool_size=20,
        max_overflow=40,
        # Errors go to the log; values do not.
        hide_parameters=True,
    )

    @event.listens_for(engine, "connect")
    def connected(connection: sqlite3.Connection, record: Any) -> None:
        # Without this, pysqlite begins transactions by itself, and too late.
        connection.isolation_level = None
        for pragma in (
            f"busy_timeout = {BUSY_TIMEOUT}",
            "journal_mode = WAL",
            "synchronous = NORMAL",
            "foreign_keys = ON",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begun(connection: Any) -> None:
        write = connection.get_execution_options().get("forge_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine


def migrate(path: Path) -> None:
    """Bring the database at ``path`` to this version's form; a new file is made.

    Older data is copied to ``<name>.backup-<revision>-<time>`` first. Raises ``PlatformFailed``
    for data of a newer version.
    """
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["database"] = path
    known = ScriptDirectory.from_config(config)
    head = known.get_current_head()
    current = _revision(path)
    if current == head:
        return
    if current is not None:
        if current not in {script.revision for script in known.walk_revisions()}:
            raise PlatformFailed(
                f"The forge's data in {path} was written by a newer version (form {current}). "
                "Install that version or newer, or choose another data directory."
            )
        _back_up(path, current)
    command.upgrade(config, "head")


def _revision(path: Path) -> str | None:
    if not path.exists() or path.stat().st_size == 0:
        return None
    with closing(sqlite3.connect(path, timeout=BUSY_TIMEOUT / 1000)) as connection:
        try:
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        except sqlite3.OperationalError:
            return None
        except sqlite3.DatabaseError as error:
            raise PlatformFailed(f"The forge's data in {path} cannot be read: {error}.") from None
    return str(row[0]) if row else None


def _back_up(path: Path, revision: str) -> None:
    stamp = now().strftime("%Y%m%dT%H%M%SZ")
    target = path.with_name(f"{path.name}.backup-{revision}-{stamp}")
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(target)) as copy:
        source.backup(copy)
    target.chmod(0o600)


def _request_session(request: Request) -> Iterator[Session]:
    database: Database = request.app.state.database
    reads = request.method in ("GET", "HEAD")
    with database.read() if reads else database.write() as session:
        yield session


SessionDep = Annotated[Session, Depends(_request_session, scope="function")]
"""The request's session: ``def route(session: SessionDep)``. Committed before the answer is sent
unless the route raised."""

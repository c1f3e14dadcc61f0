"""The service's small database: made and opened at its first use, by several processes at once.

``consent`` and ``secret_store`` keep their tables in it; all else is the hub's or the forge's.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Column,
    Connection,
    Engine,
    Integer,
    MetaData,
    Table,
    create_engine,
    event,
    make_url,
    select,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.pool import NullPool
from sqlalchemy.schema import CreateTable

from notebooks_service.errors import SettingsInvalid
from notebooks_service.settings import Settings

SCHEMA_VERSION = 1

metadata = MetaData()
schema = Table("schema_version", metadata, Column("version", Integer, primary_key=True))


def database_url(settings: Settings) -> str:
    """The SQLAlchemy URL of the service's database; makes the directory of the default one."""
    if settings.database_url:
        return settings.database_url
    directory = settings.data / "service"
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    return f"sqlite:///{directory / 'service.sqlite'}"


class Database:
    """Opens at first use; safe with several processes."""

    def __init__(self, url: str) -> None:
        # An error's text, which may end in a log, has no values in it.
        options: dict[str, Any] = {"hide_parameters": True}
        if make_url(url).get_backend_name() == "sqlite":
            # Waits for another process's write instead of failing.
            options |= {"poolclass": NullPool, "connect_args": {"timeout": 30}}
        else:
            options |= {"pool_pre_ping": True}
        self._engine = create_engine(url, **options)
        if self._engine.dialect.name == "sqlite":
            event.listen(self._engine, "connect", _forget_what_is_deleted)
        self._ready = False

    def read(self) -> contextlib.AbstractContextManager[Connection]:
        """A connection for questions."""
        return self._opened().connect()

    def write(self) -> contextlib.AbstractContextManager[Connection]:
        """A transaction: done when the block ends, undone if it raises."""
        return self._opened().begin()

    def _opened(self) -> Engine:
        """Make the tables if they are missing; refuse those of another version."""
        if self._ready:
            return self._engine
        database = self._engine.url.database
        if self._engine.dialect.name == "sqlite" and database:
            file = Path(database)
            if not file.exists():
                file.touch(mode=0o600)
        # Several processes may be at it at once: every statement may come second.
        with self._engine.begin() as connection:
            for table in metadata.sorted_tables:
                connection.execute(CreateTable(table, if_not_exists=True))
        with contextlib.suppress(IntegrityError), self._engine.begin() as connection:
            if connection.execute(select(schema.c.version)).first() is None:
                connection.execute(schema.insert().values(version=SCHEMA_VERSION))
        with self._engine.connect() as connection:
            version = connection.execute(select(schema.c.version)).scalar()
        if version != SCHEMA_VERSION:
            raise SettingsInvalid(
                f"The service's database has version {version}; this program knows"
                f" {SCHEMA_VERSION}. Start the version of the program that wrote it, or newer."
            )
        self._ready = True
        return self._engine


def _forget_what_is_deleted(connection: Any, _record: object) -> None:
    """What is deleted or replaced is not to be found in the file any more."""
    connection.execute("PRAGMA secure_delete = ON")

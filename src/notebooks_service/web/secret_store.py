"""People's secrets at rest: each value sealed for its person and name, and the projects it is granted to.

The keys come from the service's own token at the hub, as those of its cookies do: what was sealed by the
token before is sealed anew when the database is opened, or by ``notebooks keys rotate``.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from sqlalchemy import (
    Column,
    Connection,
    DateTime,
    Integer,
    LargeBinary,
    String,
    Table,
    and_,
    delete,
    func,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError

from notebooks_service.errors import Conflict, InvalidRequest, NotebooksError
from notebooks_service.personal_secrets import MOST, TooManySecrets
from notebooks_service.web.database import Database, metadata

secrets_table = Table(
    "personal_secret",
    metadata,
    Column("username", String(255), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("sealed", LargeBinary(2**20), nullable=False),
    Column("changed_at", DateTime(timezone=True), nullable=False),
)
grants_table = Table(
    "personal_secret_grant",
    metadata,
    Column("username", String(255), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("project_id", Integer, primary_key=True, autoincrement=False),
    # What it was called when it was granted: for people to read. The id decides.
    Column("project_path", String(1024), nullable=False),
)


class SecretUnreadable(NotebooksError):
    code = "secret_unreadable"
    status = 409
    message = "A secret cannot be opened any more. Write its value again on the page of your secrets, or delete it."


@dataclass(frozen=True)
class Grant:
    """A project whose servers get a secret of whoever starts them."""

    project_id: int
    path: str


@dataclass(frozen=True)
class Secret:
    """All that is shown of one: never its value."""

    name: str
    changed_at: datetime
    grants: tuple[Grant, ...]


class SecretStore:
    """The tables of secrets and grants. ``tokens``: the service's own, and the one before if there is one."""

    def __init__(self, url: str, tokens: Sequence[str]) -> None:
        self._database = Database(url)
        self._box = MultiFernet([Fernet(_key(token)) for token in tokens])
        self._sealed_by_newest = len(tokens) < 2

    async def all(self, username: str) -> list[Secret]:
        """This person's secrets, by name."""
        return await asyncio.to_thread(self._all, username)

    async def one(self, username: str, name: str) -> Secret | None:
        found = await asyncio.to_thread(self._all, username)
        return next((each for each in found if each.name == name), None)

    async def put(
        self, username: str, name: str, value: bytes | None, grants: Sequence[Grant] | None
    ) -> bool:
        """Make or change a secret; None leaves what there is. Whether it is a new one.

        Raises ``InvalidRequest`` (a new one without a value), ``TooManySecrets``, ``Conflict``.
        """
        return await asyncio.to_thread(self._put, username, name, value, grants)

    async def delete(self, username: str, name: str) -> bool:
        """Forget a secret and its grants; whether there was one."""
        return await asyncio.to_thread(self._delete, username, name)

    async def granted_names(self, username: str, project_id: int) -> list[str]:
        """Which of this person's secrets their servers of this project get."""
        return await asyncio.to_thread(self._granted_names, username, project_id)

    async def granted(self, username: str, project_id: int) -> dict[str, bytes]:
        """These, with their values. Raises ``SecretUnreadable`` naming the first that does not open."""
        return await asyncio.to_thread(self._granted, username, project_id)

    def seal_anew(self) -> int:
        """Seal all values by the newest key; how many could be opened by none."""
        lost = 0
        with self._database.write() as connection:
            rows = connection.execute(select(secrets_table)).all()
            for row in rows:
                try:
                    anew = self._box.rotate(row.sealed)
                except InvalidToken:
                    lost += 1
                    continue
                # Not over a value that somebody has written meanwhile.
                same = and_(_is(row.username, row.name), secrets_table.c.sealed == row.sealed)
                connection.execute(update(secrets_table).where(same).values(sealed=anew))
        self._sealed_by_newest = True
        return lost

    def _all(self, username: str) -> list[Secret]:
        self._seal_by_newest()
        asked = (
            select(secrets_table.c.name, secrets_table.c.changed_at)
            .where(secrets_table.c.username == username)
            .order_by(secrets_table.c.name)
        )
        granted = (
            select(grants_table)
            .where(grants_table.c.username == username)
            .order_by(grants_table.c.project_path, grants_table.c.project_id)
        )
        with self._database.read() as connection:
            rows = connection.execute(asked).all()
            grants = connection.execute(granted).all()
        return [
            Secret(
                row.name,
                row.changed_at,
                tuple(Grant(g.project_id, g.project_path) for g in grants if g.name == row.name),
            )
            for row in rows
        ]

    def _put(
        self, username: str, name: str, value: bytes | None, grants: Sequence[Grant] | None
    ) -> bool:
        try:
            with self._database.write() as connection:
                return self._write(connection, username, name, value, grants)
        except IntegrityError:
            raise Conflict(
                "This secret was changed somewhere else at the same moment; look at it, then try again."
            ) from None

    def _write(
        self,
        connection: Connection,
        username: str,
        name: str,
        value: bytes | None,
        grants: Sequence[Grant] | None,
    ) -> bool:
        there = connection.execute(select(secrets_table.c.name).where(_is(username, name))).first()
        changes: dict[str, Any] = {"changed_at": datetime.now(UTC)}
        if value is not None:
            changes["sealed"] = self._sealed(username, name, value)
        if there is not None:
            connection.execute(update(secrets_table).where(_is(username, name)).values(changes))
        elif value is None:
            raise InvalidRequest("A new secret needs a value.")
        else:
            own = select(func.count()).where(secrets_table.c.username == username)
            if connection.execute(own).scalar_one() >= MOST:
                raise TooManySecrets
            row = {"username": username, "name": name, **changes}
            connection.execute(secrets_table.insert().values(row))
        if grants is not None:
            connection.execute(delete(grants_table).where(_granted_is(username, name)))
            for project_id, path in {each.project_id: each.path for each in grants}.items():
                row = {"username": username, "name": name}
                row |= {"project_id": project_id, "project_path": path[:1024]}
                connection.execute(grants_table.insert().values(row))
        return there is None

    def _delete(self, username: str, name: str) -> bool:
        with self._database.write() as connection:
            connection.execute(delete(grants_table).where(_granted_is(username, name)))
            done = connection.execute(delete(secrets_table).where(_is(username, name)))
        return done.rowcount > 0

    def _granted_names(self, username: str, project_id: int) -> list[str]:
        with self._database.read() as connection:
            return list(connection.execute(_granted_to(username, project_id, "name")).scalars())

    def _granted(self, username: str, project_id: int) -> dict[str, bytes]:
        self._seal_by_newest()
        with self._database.read() as connection:
            rows = connection.execute(_granted_to(username, project_id, "name", "sealed")).all()
        return {row.name: self._opened(username, row.name, row.sealed) for row in rows}

    def _seal_by_newest(self) -> None:
        """Once, where the token is a new one: the one before will not be given for ever."""
        if not self._sealed_by_newest:
            self.seal_anew()

    def _sealed(self, username: str, name: str, value: bytes) -> bytes:
        return self._box.encrypt(_head(username, name) + value)

    def _opened(self, username: str, name: str, sealed: bytes) -> bytes:
        """The value; of no other person or name, whatever became of the table's rows."""
        head = _head(username, name)
        try:
            opened = self._box.decrypt(sealed)
        except InvalidToken:
            opened = b""
        if not opened.startswith(head):
            raise SecretUnreadable(
                f"Your secret `{name}` cannot be opened any more: the key that it was sealed with is gone."
                " Write its value again on the page of your secrets, or delete it."
            )
        return opened[len(head) :]


def _head(username: str, name: str) -> bytes:
    return json.dumps([username, name]).encode() + b"\n"


def _is(username: str, name: str) -> Any:
    return and_(secrets_table.c.username == username, secrets_table.c.name == name)


def _granted_is(username: str, name: str) -> Any:
    return and_(grants_table.c.username == username, grants_table.c.name == name)


def _granted_to(username: str, project_id: int, *columns: str) -> Any:
    both = and_(
        secrets_table.c.username == grants_table.c.username,
        secrets_table.c.name == grants_table.c.name,
    )
    return (
        select(*(secrets_table.c[column] for column in columns))
        .join(grants_table, both)
        .where(grants_table.c.username == username, grants_table.c.project_id == project_id)
        .order_by(secrets_table.c.name)
    )


def _key(token: str) -> bytes:
    """A key of Fernet's form for this purpose (RFC 5869)."""
    made = HKDF(
        algorithm=SHA256(), length=32, salt=None, info=b"notebooks-service personal secrets"
    )
    return base64.urlsafe_b64encode(made.derive(token.encode()))

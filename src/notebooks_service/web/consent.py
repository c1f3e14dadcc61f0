"""Who trusts which project: a launch by page starts at once only where this person agreed before.

The table is small; it is in the service's own database.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Column, DateTime, Integer, String, Table, delete, select
from sqlalchemy.exc import IntegrityError, OperationalError

from notebooks_service.web.database import Database, metadata

log = logging.getLogger(__name__)

trust = Table(
    "trust",
    metadata,
    Column("username", String(255), primary_key=True),
    Column("project_id", Integer, primary_key=True, autoincrement=False),
    Column("agreed_at", DateTime(timezone=True), nullable=False),
)
# The code of one project gets to read another one: agreeing to a project for itself is not that.
submodule_trust = Table(
    "submodule_trust",
    metadata,
    Column("username", String(255), primary_key=True),
    Column("project_id", Integer, primary_key=True, autoincrement=False),
    Column("submodule_id", Integer, primary_key=True, autoincrement=False),
    Column("agreed_at", DateTime(timezone=True), nullable=False),
)


def starts_at_once(
    *, trusted: bool, reachable: bool, ignored: Sequence[str], open_question: bool = False
) -> bool:
    """Whether a launch page may start without a click.

    ``reachable``: a branch or tag of the project contains the commit, so somebody who may push
    there put it in (a fork's commits can be read through the original project). ``ignored``: what
    the link asked for and a link cannot set; then the person looks first. ``open_question``: there
    is a submodule that they did not agree to yet.
    """
    return trusted and reachable and not ignored and not open_question


class TrustStore:
    """The table of agreements. Opens its database at first use; safe with several processes."""

    def __init__(self, url: str) -> None:
        self._database = Database(url)

    async def trusts(self, username: str, project_id: int) -> bool:
        """Whether this person once agreed to run this project's code."""
        return await asyncio.to_thread(self._trusts, username, project_id)

    async def agree(self, username: str, project_id: int) -> None:
        """Remember that this person agreed; again is the same.

        A disk that is full keeps nobody from what they agreed to: they are asked again the next time.
        """
        await asyncio.to_thread(self._if_there_is_room, self._agree, username, project_id)

    async def agreed_submodules(self, username: str, project_id: int) -> frozenset[int]:
        """The projects that this person let this project's servers read, as its submodules."""
        return await asyncio.to_thread(self._agreed_submodules, username, project_id)

    async def agree_submodules(
        self, username: str, project_id: int, submodules: Sequence[int]
    ) -> None:
        """Remember that this person agreed to these; again is the same. As ``agree`` on a full disk."""
        await asyncio.to_thread(
            self._if_there_is_room, self._agree_submodules, username, project_id, submodules
        )

    async def forget(self, username: str, project_id: int) -> None:
        """Ask this person again the next time, about its submodules too."""
        await asyncio.to_thread(self._forget, username, project_id)

    def _if_there_is_room(self, write: Callable[..., None], *arguments: Any) -> None:
        try:
            write(*arguments)
        except OperationalError as error:
            if "disk is full" not in str(error):
                raise
            log.warning("The disk is full: an agreement is not remembered")

    def _trusts(self, username: str, project_id: int) -> bool:
        asked = select(trust.c.agreed_at).where(
            trust.c.username == username, trust.c.project_id == project_id
        )
        with self._database.read() as connection:
            return connection.execute(asked).first() is not None

    def _agree(self, username: str, project_id: int) -> None:
        row = {"username": username, "project_id": project_id, "agreed_at": datetime.now(UTC)}
        try:
            with self._database.write() as connection:
                connection.execute(trust.insert().values(row))
        except IntegrityError:
            return

    def _agreed_submodules(self, username: str, project_id: int) -> frozenset[int]:
        asked = select(submodule_trust.c.submodule_id).where(
            submodule_trust.c.username == username, submodule_trust.c.project_id == project_id
        )
        with self._database.read() as connection:
            return frozenset(connection.execute(asked).scalars())

    def _agree_submodules(self, username: str, project_id: int, submodules: Sequence[int]) -> None:
        row = {"username": username, "project_id": project_id, "agreed_at": datetime.now(UTC)}
        for submodule in submodules:
            with contextlib.suppress(IntegrityError), self._database.write() as connection:
                connection.execute(submodule_trust.insert().values(**row, submodule_id=submodule))

    def _forget(self, username: str, project_id: int) -> None:
        with self._database.write() as connection:
            for table in (trust, submodule_trust):
                connection.execute(
                    delete(table).where(
                        table.c.username == username, table.c.project_id == project_id
                    )
                )

"""Which launches were let in by the quotas, and which servers the hub has; asked by the launch, in the hub.

Of servers a check and what it lets in are one step on the hub's loop, so that of two launches for one place one gets it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from jupyterhub import orm

from notebooks_service.high_water import Gauge
from notebooks_service.quotas import Held, Quota, Spent, check, check_hours, limits_hours
from notebooks_service.spawner.options import OPTIONS_KEY, may_be_ours
from notebooks_service.spawner.runtime import ServerKey


class Admissions:
    """One per hub process. ``holds_work``: whether a server keeps files; ``spent``: the month's hours."""

    def __init__(
        self,
        quotas: tuple[Quota, ...],
        holds_work: Callable[[ServerKey], bool],
        spent: Callable[[], Awaitable[Sequence[Spent]]],
        gauge: Gauge,
    ) -> None:
        self._gauge = gauge
        self._quotas = quotas
        self._holds_work = holds_work
        self._spent = spent
        self._launches: dict[ServerKey, Held | None] = {}

    @contextmanager
    def launch(self, key: ServerKey) -> Iterator[None]:
        """While this lasts the server counts only if it was let in."""
        self._launches[key] = None
        try:
            yield
        finally:
            self._launches.pop(key, None)

    async def let_in(self, db: Any, key: ServerKey, project: str) -> None:
        """Count this launch as a running server from now on. ``db``: the hub's session.

        Raises ``QuotaReached``, ``HoursUsed``, ``NoMemory``.
        """
        self._gauge.check_server()
        if not self._quotas:
            return
        asking = Held(key.user, key.server, project, running=True, kept=self._holds_work(key))
        if limits_hours(self._quotas, asking):
            # Hours need no lock: what is let in beside this one has used none yet.
            check_hours(self._quotas, await self._spent(), asking, datetime.now(UTC))
        check(self._quotas, self._servers(db), asking)
        self._launches[key] = asking

    def _servers(self, db: Any) -> Iterator[Held]:
        """Every server of ours, as the hub's database has it, or as its launch was let in."""
        rows = db.query(
            orm.User.name, orm.Spawner.name, orm.Spawner.server_id, orm.Spawner.user_options
        ).join(orm.User, orm.Spawner.user_id == orm.User.id)
        for user, server, address, options in rows:
            key = ServerKey(user, server)
            if (launch := self._launches.get(key)) is not None:
                yield launch
            elif may_be_ours(server):
                asked = (options or {}).get(OPTIONS_KEY)
                project = str(asked.get("project", "")) if isinstance(asked, dict) else ""
                # The hub gives a server its address before the launch begins.
                running = address is not None and key not in self._launches
                yield Held(user, server, project, running=running, kept=self._holds_work(key))

"""``LaunchMixin``: puts the launch before any JupyterHub spawner class. JupyterHub calls it.

A server whose options have no ``notebooks`` key goes to the class beneath, untouched. The mixin
has two attributes of its own, so that its names meet nobody else's; all the rest is in
``launches.py`` and ``unfinished_stop.py``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from functools import partial
from typing import Any, ClassVar

from jupyterhub.spawner import Spawner
from tornado import web

from notebooks_service.domain import LaunchRecord
from notebooks_service.spawner import record as records
from notebooks_service.spawner import server_hosts
from notebooks_service.spawner.beneath import SpawnerBeneath
from notebooks_service.spawner.launches import Launches
from notebooks_service.spawner.options import is_ours, may_be_ours
from notebooks_service.spawner.shared import Shared
from notebooks_service.spawner.unfinished_stop import UnfinishedStop


class LaunchMixin(Spawner):  # type: ignore[misc]
    """Goes before a spawner class: ``class Ours(LaunchMixin, Theirs): shared = ...``."""

    shared: ClassVar[Shared]

    def __init__(self, **kwargs: Any) -> None:
        self.launches = Launches(self, self.shared, SpawnerBeneath(self, super()))
        self.unfinished_stop = UnfinishedStop(self)
        super().__init__(**kwargs)
        if (own := self.launches.own_url) is not None:
            server_hosts.give(self, own)

    @property
    def record(self) -> LaunchRecord | None:
        """The record of the newest launch of this server, if it is one of ours."""
        return self.launches.record

    @property
    def ready(self) -> bool:
        """JupyterHub counts a server as ready once its database row exists and nothing is pending.

        That is wrong for a cancelled launch for about a second, in which watchers would be told
        that the server is ready; for ours, the launch must have said so too.
        """
        return self.launches.allow_ready() and bool(super().ready)

    @property
    def server(self) -> Any:
        """Where the hub finds the server. Whether one of ours is up is asked in our own way."""
        server = super().server
        if server is not None and self.record is not None:
            server.wait_up = partial(self.launches.answer, partial(type(server).wait_up, server))
        return server

    @server.setter
    def server(self, server: Any) -> None:
        Spawner.server.fset(self, server)

    def start(self) -> Awaitable[Any]:
        """Start a server: one of ours by a launch, any other by the class beneath.

        No coroutine function, because the hub reads ``start_timeout`` right after this returns.
        """
        if (own := self.launches.own_url) is not None:
            server_hosts.register(self, own)
        if not is_ours(self.user_options):
            self.launches.not_ours()
            return super().start()  # type: ignore[no-any-return]
        self.start_timeout = self.launches.longest
        return self.launches.launch()

    async def stop(self, now: bool = False) -> None:
        """Stop the server; of ours, note what is unsaved and keep every file."""
        if self.record is None:
            await super().stop(now)
        else:
            await self.launches.stop(now=now)

    async def poll(self) -> int | None:
        """None while the server runs or is being started, otherwise an exit code."""
        if self.record is None:
            return await super().poll()  # type: ignore[no-any-return]
        return await self.launches.poll()

    def stop_polling(self) -> None:
        self.unfinished_stop.begun()
        super().stop_polling()

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self.launches.restore(records.read_record(state))

    def get_state(self) -> dict[str, Any]:
        state: dict[str, Any] = super().get_state()
        if self.record is not None:
            state[records.STATE_KEY] = self.record.to_dict()
        return state

    def get_env(self) -> dict[str, str]:
        """For one of ours: the hub's variables and ours; nothing of the hub's own environment."""
        if not is_ours(self.user_options):
            return {**super().get_env(), **self.launches.own_callback}
        if (given := self.launches.beneath.environment) is not None:
            return dict(given)
        kept = self.env_keep
        self.set_trait("env_keep", [])
        try:
            environment = Spawner.get_env(self)
        finally:
            self.set_trait("env_keep", kept)
        environment.pop("JPY_API_TOKEN", None)  # the same token again, for servers before 0.7.2
        return {key: str(value) for key, value in environment.items()} | self.launches.own_callback

    async def progress(self) -> AsyncIterator[dict[str, Any]]:
        """Every event of this launch so far, then each new one, to any number of watchers."""
        if is_ours(self.user_options) or may_be_ours(self.name):
            await self.launches.begun.wait()
        if (events := self.launches.watch()) is None:
            events = super().progress()
        async for event in events:
            yield event

    async def rename(self, old_name: str, new_name: str) -> None:
        """JupyterHub 6 lets people rename servers; the name of one of ours says what it is."""
        if self.record is not None or is_ours(self.user_options):
            raise web.HTTPError(
                400, "A notebooks server keeps its name; its display name may change."
            )
        await super().rename(old_name, new_name)

    async def delete_forever(self) -> None:
        """The server is removed from the hub: its files go to the trash."""
        if may_be_ours(self.name):
            await self.launches.discard()
        if (deleted := super().delete_forever()) is not None:
            await deleted

    async def _run_apply_user_options(self, user_options: dict[str, Any]) -> None:
        """JupyterHub 5.3 and later warn of options that nobody handles; a launch handles ours."""
        if not is_ours(user_options):
            await super()._run_apply_user_options(user_options)

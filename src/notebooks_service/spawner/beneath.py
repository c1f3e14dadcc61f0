"""The spawner class under the launch, as a runtime sees it (``runtime.Beneath``); the mixin makes one
for each spawner object. What it does is that class's own: traits are set, nothing is rewritten.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from tornado.httpclient import HTTPError

log = logging.getLogger(__name__)


class SpawnerBeneath:
    """``spawner`` is the whole object, ``own`` its methods as the class under the mixin has them."""

    def __init__(self, spawner: Any, own: Any) -> None:
        self._spawner = spawner
        self._own = own
        self.environment: Mapping[str, str] | None = None
        """What ``get_env`` answers while that class starts the server."""

    async def start(self, traits: Mapping[str, Any], environment: Mapping[str, str]) -> Any:
        for name, value in traits.items():
            setattr(self._spawner, name, value)
        self.environment = environment
        try:
            return await self._own.start()
        finally:
            self.environment = None

    async def stop(self) -> None:
        await self._own.stop()

    async def poll(self) -> int | None:
        status = await self._own.poll()
        if status is None:
            return None
        return status if isinstance(status, int) else 1

    async def route(self, target: str) -> bool:
        # The same route with the same data that the hub makes when the server is ready.
        data = {"user": self._spawner.user.name, "server_name": self._spawner.name}
        try:
            await self._proxy.add_route(self._spawner.proxy_spec, target, data)
        except (HTTPError, OSError) as error:
            log.warning("The proxy did not take the route %s: %r", self._spawner.proxy_spec, error)
            return False
        return True

    async def unroute(self) -> None:
        await self._proxy.delete_route(self._spawner.proxy_spec)

    @property
    def path(self) -> str:
        spec = str(self._spawner.proxy_spec)
        # With a host of its own for each person a route begins with that host.
        return spec if spec.startswith("/") else urlsplit(f"//{spec}").path

    @property
    def host(self) -> str:
        """The host that the proxy knows the server under; empty without hosts of their own."""
        return urlsplit(f"//{self._spawner.proxy_spec}").netloc

    @property
    def _proxy(self) -> Any:
        return self._spawner.user.settings["proxy"]

"""A host of its own for each server: ``LaunchMixin`` gives it, and the hub's old address leads there.

JupyterHub gives one host to all servers of a person. With the setting `subdomains` the proxy's route, the way
back from signing in and the server's own idea of its address are the server's (``origins``).
"""

from __future__ import annotations

import posixpath
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

from jupyterhub.auth import Authenticator
from jupyterhub.handlers.base import UserUrlHandler

from notebooks_service import origins
from notebooks_service.settings import Settings
from notebooks_service.spawner.options import may_be_ours

PATH = r"/user/(?P<user_name>[^/]+)(?P<user_path>/.*)?"
"""Below the hub's own address, where the proxy leads for what it has no route for."""


def own_url(settings: Settings, user: str, server: str) -> str | None:
    """The server's base URL at a host of its own; None for one that has none."""
    if not (settings.subdomains and may_be_ours(server)):
        return None
    return origins.server_url(settings.hub_url, user, server, subdomains=True)


def give(spawner: Any, url: str) -> None:
    """Have the hub and its proxy look for a server's pages at ``url``."""
    parts = urlsplit(url)
    spawner.proxy_spec = f"{parts.hostname}{parts.path}"
    spawner.public_url = url


def callback(url: str) -> str:
    """Where the hub sends a browser back to after signing in for a server."""
    return posixpath.join(url, "oauth_callback")


def register(spawner: Any, url: str) -> None:
    """Have the hub send browsers back to ``callback``: at each start it has just registered the address
    below the person's host."""
    client = spawner.orm_spawner.oauth_client
    if client is not None:
        client.redirect_uri = callback(url)
        spawner.user.db.commit()


class KnowsServerHosts(Authenticator):  # type: ignore[misc]
    """Goes before an authenticator class: JupyterHub asks its handlers before its own."""

    def get_handlers(self, app: Any) -> list[Any]:
        return [(PATH, ServerHosts), *super().get_handlers(app)]


class ServerHosts(UserUrlHandler):  # type: ignore[misc]
    """The hub's page for the address of a server: to the server's own host, if it is one of ours."""

    async def _redirect_to_user_server(self, user: Any, spawner: Any) -> None:
        own = spawner.launches.own_url
        # All that is asked of the person there is the host of their servers.
        at = user if own is None else SimpleNamespace(host=origins.origin(own))
        await super()._redirect_to_user_server(at, spawner)

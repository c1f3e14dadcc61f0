"""One request of one person: who they are, their servers at the hub, their view of the forge.

Opened by every route that is about a person's projects or servers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from fastapi import Request

from notebooks_service.domain import Project
from notebooks_service.errors import SignInExpired
from notebooks_service.gateway.hub import HubServer
from notebooks_service.gateway.hub import Person as HubPerson
from notebooks_service.gitlab.forge import Forge
from notebooks_service.resources import for_whom
from notebooks_service.settings import Settings
from notebooks_service.web.parts import Parts, parts_of
from notebooks_service.web.sign_in import Person

P = ParamSpec("P")
T = TypeVar("T")

RENEWAL_SECONDS = 0.3
"""How long the hub may need to save a token that the forge has made in place of ours."""


@dataclass
class Visit:
    """What one request may use. The forge is asked with this person's own token only."""

    parts: Parts
    person: Person
    at_hub: HubPerson
    _forge: Forge | None = None

    @property
    def forge(self) -> Forge:
        """The forge as this person sees it; raises ``SignInExpired`` if the hub has no token."""
        if self._forge is None:
            self._forge = self.parts.forge(self.at_hub.forge_token)
        return self._forge

    def server(self, name: str) -> HubServer | None:
        """This person's server of that name, if it is one of ours."""
        found = (server for server in self.at_hub.servers if server.name == name)
        server = next(found, None)
        return server if server and is_ours(server) else None

    def settings_in(self, project: Project | None) -> Settings:
        """The settings as they hold for this person's servers in ``project``; None: in any that nothing names."""
        path = project.path if project is not None else ""
        return for_whom(self.parts.settings, self.person.name, path)

    async def ask(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """A call of ``forge`` off the event loop.

        The hub may have renewed the token since this visit began, and the forge knows only the new
        one then: that is no expired sign-in.
        """
        used = self.at_hub.forge_token
        try:
            return await asyncio.to_thread(call, *args, **kwargs)
        except SignInExpired:
            if not await self._renewed(used):
                raise
        return await asyncio.to_thread(call, *args, **kwargs)

    async def _renewed(self, used: str) -> bool:
        """Whether there is another token than ``used``; if so, ``forge`` has it from now on."""
        for pause in (0.0, RENEWAL_SECONDS):
            await asyncio.sleep(pause)
            if self.at_hub.forge_token == used:
                self.at_hub = await self.parts.hub.person(self.person.name, stopped=True)
            if self.at_hub.forge_token != used:
                self.forge.use(self.at_hub.forge_token)
                return True
        return False

    def close(self) -> None:
        if self._forge is not None:
            self._forge.close()


@asynccontextmanager
async def visit(request: Request) -> AsyncIterator[Visit]:
    """Who asks. Raises ``NotSignedIn``, ``Forbidden``, ``csrf.CrossSite``, ``HubUnavailable``."""
    parts = parts_of(request)
    person = await parts.sign_in.person(request)
    found = Visit(parts, person, await parts.hub.person(person.name, stopped=True))
    try:
        yield found
    finally:
        found.close()


def is_ours(server: HubServer) -> bool:
    """Whether a server of the hub is one that this service started; others are not our business."""
    return "notebooks" in server.options or server.record is not None

"""Which project a server's token opens, and the forge token of the person behind it.

Called by ``gateway/app.py`` for every request; the hub decides, nothing is remembered but who a
token belongs to, for a few seconds, because one git operation makes several requests.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import dataclass

from notebooks_service.domain import LaunchRecord
from notebooks_service.errors import Forbidden, NotFound, NotSignedIn
from notebooks_service.gateway.hub import HubClient, HubServer, Identity, Person

REMEMBERED_SECONDS = 5.0
REMEMBERED_MOST = 10_000


@dataclass(frozen=True)
class Admission:
    """A request that may go on: who asks, from which server, with which forge token.

    ``read_only``: the project is a submodule that the person agreed to; nothing is pushed there.
    """

    user: str
    server: str
    project_id: int
    project: str
    forge_token: str
    read_only: bool = False

    def __repr__(self) -> str:
        return f"Admission({self.user}/{self.server}, {self.project})"

    def need_write(self) -> None:
        """Raises ``Forbidden`` if this server may only read the project."""
        if self.read_only:
            raise Forbidden(
                "This project is a submodule here: this server may read it, not push to it. Start a"
                " server of that project to change it."
            )


@dataclass(frozen=True)
class Starting:
    """A server that the hub is starting: whose it is, and of which project its launch is."""

    user: str
    server: str
    project_id: int


class Access:
    """Admits servers to their own project, and to reading the submodules agreed to at its launch."""

    def __init__(self, hub: HubClient) -> None:
        self._hub = hub
        self._key = secrets.token_bytes(32)
        self._known: dict[bytes, tuple[Identity, float]] = {}

    async def admit(self, token: str, project: str, *, fresh: bool = False) -> Admission:
        """Admit the server that ``token`` was given to, if it was launched for ``project`` or with it
        as a submodule.

        ``fresh`` asks the hub who it is even if that was asked just now, so that the hub refreshes
        the forge token if it is due. Raises ``NotSignedIn``, ``Forbidden`` (no server's token, or
        its server has stopped), ``NotFound`` (another project, or no server of ours),
        ``SignInExpired``, ``HubUnavailable``.
        """
        person, server = await self._server(token, fresh)
        record = server.record
        if record is None:
            raise NotFound
        project_id, read_only = _project(record, project)
        return Admission(
            user=person.name,
            server=server.name,
            project_id=project_id,
            project=project,
            forge_token=person.forge_token,
            read_only=read_only,
        )

    async def starting(self, token: str) -> Starting:
        """The server that ``token`` was given to, if it is one of ours and the hub is starting it.

        A server that runs has what it was given; its token gets nothing more. Raises as ``admit`` does.
        """
        person, server = await self._server(token, True)
        if server.record is None or server.pending != "spawn":
            raise Forbidden("Secrets are given to a server of this service while it starts.")
        return Starting(person.name, server.name, server.record.project_id)

    async def _server(self, token: str, fresh: bool) -> tuple[Person, HubServer]:
        """Whose token this is, and of which server: one that runs or starts."""
        identity = await self._identify(token, fresh)
        if len(identity.servers) != 1:
            raise Forbidden("Git here is for notebook servers: this token is not the token of one.")
        try:
            person = await self._hub.person(identity.name)
        except NotFound:
            raise NotSignedIn from None
        name = identity.servers[0]
        server = next((each for each in person.servers if each.name == name), None)
        if server is None or server.stopped or not (server.ready or server.pending):
            raise Forbidden("This notebook server has stopped; start it again to use git.")
        return person, server

    async def _identify(self, token: str, fresh: bool) -> Identity:
        key = hashlib.blake2b(token.encode(), key=self._key, digest_size=32).digest()
        now = time.monotonic()
        identity, until = self._known.get(key, (None, 0.0))
        if identity is not None and until > now and not fresh:
            return identity
        self._known.pop(key, None)
        identity = await self._hub.identify(token)
        if len(self._known) >= REMEMBERED_MOST:
            self._known = {key: value for key, value in self._known.items() if value[1] > now}
        if len(self._known) < REMEMBERED_MOST:
            self._known[key] = (identity, now + REMEMBERED_SECONDS)
        return identity


def _project(record: LaunchRecord, path: str) -> tuple[int, bool]:
    """The id of the project that a server calls ``path``, and whether it may only read it.

    Raises ``NotFound`` for any that is not in the launch's record.
    """
    if record.project_path == path:
        return record.project_id, False
    for each in record.submodules:
        if each.project == path and each.project_id is not None and not each.reason:
            return each.project_id, True
    raise NotFound

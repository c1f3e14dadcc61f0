"""What the launch asks of the place where servers run; ``local.py`` is the first that answers.

A runtime lives as long as the hub's process, serves all servers, and knows nothing of the hub.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx

from notebooks_service.default_urls import LAB
from notebooks_service.domain import ForgeUser, Image, Project
from notebooks_service.mounts import Mount
from notebooks_service.resources import NOTHING_CHOSEN, Resources
from notebooks_service.spawner.served import Served


@dataclass(frozen=True)
class ServerKey:
    """Whose server, and which: the names that the hub has for them."""

    user: str
    server: str

    def __str__(self) -> str:
        return f"{self.user}/{self.server}"


RegistryToken = Callable[[str], Awaitable[str | None]]


@dataclass(frozen=True)
class ServerPlan:
    """One server to be made. ``environment`` holds its hub token: never log it.

    ``clone`` are the variables that say how its repository is cloned; the server has no use of them.
    ``registry_token`` asks the forge, with the person's own right, for a token of its registry by which
    one repository (without a host) can be pulled; None where the forge gives nobody one. ``resources``
    are what the person chose; what the server gets, ``resources.granted`` says. ``mounts`` are those that the launch
    has found to be allowed. ``default_url`` is what the server opens in if its image offers it.
    """

    key: ServerKey
    launch: str
    project: Project
    commit: str
    branch: str
    image: Image
    person: ForgeUser
    environment: Mapping[str, str] = field(repr=False)
    clone: Mapping[str, str] = field(default_factory=dict)
    registry_token: RegistryToken | None = field(default=None, repr=False)
    resources: Resources = NOTHING_CHOSEN
    mounts: tuple[Mount, ...] = ()
    default_url: str = LAB


Tell = Callable[[str, Mapping[str, Any]], None]
"""Tells watchers a sentence and its detail."""

Save = Callable[[Mapping[str, Any]], None]
"""Commits what is needed to find the server again after a restart of the hub."""


class Beneath(Protocol):
    """One server's spawner object of the class under the launch, and its place in the hub's proxy.

    A runtime of containers has that class do the work; ``local`` has no use of it.
    """

    async def start(self, traits: Mapping[str, Any], environment: Mapping[str, str]) -> Any:
        """Its own ``start`` with these traits, and what that returns; the server gets ``environment``
        and nothing else."""

    async def stop(self) -> None:
        """Its own ``stop``."""

    async def poll(self) -> int | None:
        """Its own ``poll``: None while the server runs, otherwise an exit code (1 if unknown)."""

    async def route(self, target: str) -> bool:
        """Have the hub's proxy send the server's visitors to ``target`` before the hub does so.

        False while the proxy takes none, as when it is being restarted.
        """

    async def unroute(self) -> None:
        """Take that back."""

    @property
    def path(self) -> str:
        """The path of the server below the proxy, with slashes around it."""

    @property
    def host(self) -> str:
        """The host that the proxy knows the server under; empty without a host for each person."""


class Runtime(Protocol):
    """Where servers run. Every coroutine here may be cancelled at any await.

    ``proxied``: the hub cannot reach a server by itself and has ``answer`` look whether it is up.
    """

    proxied: bool

    def refuse(self, user: str) -> str | None:
        """Why this person may not run anything here, or None."""

    def holds_work(self, key: ServerKey) -> bool:
        """Whether a finished clone, perhaps with a person's work in it, is there."""

    async def prepare(self, plan: ServerPlan, tell: Tell) -> None:
        """Make the image ready to run. Raises ``BuildFailed``, ``ImageUnavailable``."""

    async def clone(self, plan: ServerPlan, tell: Tell) -> Mapping[str, Any]:
        """Put the commit into the server's folder; what was checked out. Raises ``CloneFailed``."""

    async def start(self, plan: ServerPlan, save: Save, beneath: Beneath) -> str:
        """Start the server and wait until it answers; its URL. Raises ``StartFailed``."""

    async def served(self, key: ServerKey) -> Served | None:
        """What the image of a server that answers turned out to have; None where nothing says so."""

    async def answer(
        self, key: ServerKey, facts: Mapping[str, Any], beneath: Beneath, wait: float
    ) -> httpx.Response:
        """What a running server answers; ``TimeoutError`` after ``wait`` seconds. For ``proxied`` ones."""

    def kill_now(self, key: ServerKey, facts: Mapping[str, Any]) -> None:
        """Send the hardest signal there is, at once and without waiting."""

    async def clean(self, key: ServerKey, facts: Mapping[str, Any], *, files: bool) -> None:
        """End every process of the server; with ``files``, remove what a launch left there."""

    async def poll(self, key: ServerKey, facts: Mapping[str, Any], beneath: Beneath) -> int | None:
        """None while the server's process lives, otherwise its exit code (0 if unknown)."""

    async def why_ended(self, key: ServerKey, facts: Mapping[str, Any]) -> str:
        """Why a server that nobody stopped has ended, in a sentence; empty if that cannot be said."""

    async def ended(self, key: ServerKey, facts: Mapping[str, Any]) -> None:
        """Return as soon as the server's process has ended; never, where only ``poll`` can tell."""

    async def stop(
        self, key: ServerKey, facts: Mapping[str, Any], beneath: Beneath, *, now: bool
    ) -> None:
        """End the server and everything it started; files stay."""

    async def unsaved(self, key: ServerKey, folder: str) -> Mapping[str, Any] | None:
        """Uncommitted files and unpushed commits, or None if that cannot be said."""

    async def discard(self, key: ServerKey, facts: Mapping[str, Any]) -> None:
        """Move the server's files to the trash; ``facts`` is noted beside them."""

    async def sizes(self, keys: Sequence[ServerKey]) -> Mapping[ServerKey, int]:
        """Bytes that each of these servers takes on the disk: 0 for one of which nothing is kept. Who is
        missing cannot be said. May take long."""

    async def purge(self) -> None:
        """Remove what has been in the trash for longer than the setting says."""

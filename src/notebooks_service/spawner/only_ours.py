"""The class beneath ``LaunchMixin`` on a machine whose hub starts servers of ours and no others.

``notebooks up`` uses it. JupyterHub's own class would run a server, asked for at the hub's API without
our options, as the system's user of the same name: past the owner, the forge and the question.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from jupyterhub.spawner import Spawner

from notebooks_service.errors import LaunchRefused
from notebooks_service.spawner.options import is_ours
from notebooks_service.spawner.refusal import refusal


def _refused() -> Exception:
    return refusal(
        LaunchRefused(
            "This hub starts the servers of commits only. Open a commit's page and start there."
        )
    )


class RefusesOthers(Spawner):  # type: ignore[misc]
    """Goes before a spawner class that a launch of ours uses, and keeps all other servers from it."""

    def start(self) -> Awaitable[Any]:
        if not is_ours(self.user_options):
            raise _refused()
        return super().start()  # type: ignore[no-any-return]

    # JupyterHub wants every spawner class to have all three.
    async def stop(self, now: bool = False) -> None:
        await super().stop(now)

    async def poll(self) -> Any:
        return await super().poll()


class OnlyOurs(Spawner):  # type: ignore[misc]
    """Starts nothing: every server that gets here is refused."""

    async def start(self) -> str:
        raise _refused()

    async def stop(self, now: bool = False) -> None:
        """Nothing runs."""

    async def poll(self) -> int:
        """Never running."""
        return 0

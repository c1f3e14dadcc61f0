"""The class beneath ``LaunchMixin`` on a machine whose hub starts servers of ours and no others.

``notebooks up`` uses it. JupyterHub's own class would run a server, asked for at the hub's API without
our options, as the system's user of the same name: past the owner, the forge and the question.
"""

from __future__ import annotations

from jupyterhub.spawner import Spawner

from notebooks_service.errors import LaunchRefused
from notebooks_service.spawner.refusal import refusal


class OnlyOurs(Spawner):  # type: ignore[misc]
    """Starts nothing: every server that gets here is refused."""

    async def start(self) -> str:
        raise refusal(
            LaunchRefused(
                "This hub starts the servers of commits only. Open a commit's page and start there."
            )
        )

    async def stop(self, now: bool = False) -> None:
        """Nothing runs."""

    async def poll(self) -> int:
        """Never running."""
        return 0

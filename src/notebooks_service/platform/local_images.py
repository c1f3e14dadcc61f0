"""The environments of one project on this machine, listed and pruned; called by ``cli_image.py``.

The embedded forge says which commits are reached, the running hub which environments servers use.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select

from notebooks_service.errors import NotFound
from notebooks_service.forge import access
from notebooks_service.forge.administration import Administration
from notebooks_service.forge.models import User
from notebooks_service.gateway.hub import HubClient
from notebooks_service.images import prune
from notebooks_service.images.environments import EnvironmentStore
from notebooks_service.images.prune import InUse, Unneeded
from notebooks_service.platform import secrets
from notebooks_service.platform.directory import DataDirectory, RunningPlatform
from notebooks_service.platform.secrets import Secrets


@dataclass(frozen=True)
class LocalImages:
    """One project's environments, and what of the forge a decision about them needs."""

    store: EnvironmentStore
    project_id: int
    repository: Path
    people: tuple[str, ...]

    def tags(self) -> dict[str, str]:
        """Commits and environments (``env-…``) to digests, as a registry would have them."""
        found = {sha: one.digest for sha, one in self.store.tags(self.project_id).items()}
        for one in self.store.whole(self.project_id):
            found[f"env-{one.fingerprint}"] = one.digest
        return found

    def unneeded(self, tags: Mapping[str, str], in_use: InUse) -> list[Unneeded]:
        """Which of ``tags`` can go; they are read before the branches are."""
        known = prune.history(self.repository, None)
        wanted = prune.fingerprints(
            known.tips, lambda sha: self.store.fingerprint(self.repository, sha)
        )
        return prune.unneeded(tags, known.reachable, in_use, wanted)

    def remove(self, going: Iterable[Unneeded]) -> int:
        return prune.remove_from_store(self.store, self.project_id, going)


def local_images(administration: Administration, path: str) -> LocalImages:
    """The images of the project at ``path`` of the embedded forge. Raises ``NotFound``."""
    config = administration.config
    with administration.database.read() as session:
        project = access.project_by_path(session, path)
        if project is None:
            raise NotFound(f"The forge has no project {path}.")
        people = tuple(session.scalars(select(User.username)))
        return LocalImages(
            EnvironmentStore(config.environments),
            project.id,
            config.repository(project.id),
            people,
        )


def in_use_here(directory: DataDirectory, running: RunningPlatform, people: Iterable[str]) -> InUse:
    """What everybody's servers run in, stopped ones too. Raises ``HubUnavailable``."""
    token = Secrets(directory.secrets).read(secrets.SERVICE_TOKEN)
    return asyncio.run(_ask(running.hub_api_url, token, people))


async def _ask(api_url: str, token: str, people: Iterable[str]) -> InUse:
    hub = HubClient(api_url, token)
    digests: set[str] = set()
    commits: set[str] = set()
    try:
        for name in people:
            try:
                servers = await hub.servers(name)
            except NotFound:
                continue  # never signed in
            for server in servers:
                if server.record is None:
                    continue
                commits.add(server.record.commit)
                if server.record.image and server.record.image.digest:
                    digests.add(server.record.image.digest)
    finally:
        await hub.aclose()
    return InUse(frozenset(digests), frozenset(commits))

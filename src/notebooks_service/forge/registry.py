"""What the forge's registry holds: the seam between the registry's API and where images really are.

In ``local`` an image is an environment of the store, tagged with commits' shas and with ``env-`` and
its fingerprint. With a registry of containers (``ForgeConfig.registry``) that one is asked
(``container_registry``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from notebooks_service.forge.config import ForgeConfig
from notebooks_service.forge.models import Project
from notebooks_service.images.environments import Environment, EnvironmentStore

ENVIRONMENT = "env-"


@dataclass(frozen=True)
class Tag:
    """One tag and what it points at now. ``size`` is in bytes, None if nobody counted.

    ``revision`` is what is in the image without its name: the digest of its configuration; empty for
    a list of images.
    """

    name: str
    digest: str
    created_at: str
    revision: str
    size: int | None = None


class Registry(Protocol):
    """One repository of images for each project. Raises ``RegistryUnavailable`` if it is away."""

    def names(self, project: Project) -> list[str]:
        """Every tag, sorted."""
        ...

    def tag(self, project: Project, name: str) -> Tag | None: ...

    def remove_tag(self, project: Project, name: str) -> bool | None:
        """False: there is none; None: it cannot be removed alone."""
        ...

    def remove_all(self, project: Project) -> None:
        """For a project that is going."""
        ...

    @property
    def by_path(self) -> bool:
        """Whether images lie where the project's path says: then a project cannot leave them behind."""
        ...


class LocalRegistry:
    """The environments of this machine."""

    by_path = False

    def __init__(self, store: EnvironmentStore) -> None:
        self._store = store

    def names(self, project: Project) -> list[str]:
        whole = {f"{ENVIRONMENT}{one.fingerprint}" for one in self._store.whole(project.id)}
        return sorted({*self._store.tags(project.id), *whole})

    def tag(self, project: Project, name: str) -> Tag | None:
        if name.startswith(ENVIRONMENT):
            found = self._store.get(project.id, name.removeprefix(ENVIRONMENT))
        else:
            found = self._store.tagged(project.id, name)
        return _tag(name, found) if found else None

    def remove_tag(self, project: Project, name: str) -> bool:
        """Only a commit's: an environment is called what it is for as long as it is there."""
        return self._store.untag(project.id, name)

    def remove_all(self, project: Project) -> None:
        """Nothing: they are found by the project's id, which nobody gets again."""


def _tag(name: str, environment: Environment) -> Tag:
    revision = environment.digest.removeprefix("sha256:")
    return Tag(name, environment.digest, environment.created_at, revision)


def open_registry(config: ForgeConfig) -> Registry:
    """The one that the forge's answers come from."""
    if config.registry:
        from notebooks_service.forge.container_registry import ContainerRegistry

        return ContainerRegistry(config)
    return LocalRegistry(EnvironmentStore(config.environments))

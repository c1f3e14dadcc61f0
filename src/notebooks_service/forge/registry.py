"""What the forge's registry holds: the seam between the registry's API and where images really are.

In ``local`` an image is an environment of the store, tagged with commits' shas and with ``env-`` and
its fingerprint. A registry of containers answers the same questions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from notebooks_service.forge.config import ForgeConfig
from notebooks_service.images.environments import Environment, EnvironmentStore

ENVIRONMENT = "env-"


@dataclass(frozen=True)
class Tag:
    """One tag and what it points at now. ``size`` is in bytes, None if nobody counted."""

    name: str
    digest: str
    created_at: str
    size: int | None = None

    @property
    def revision(self) -> str:
        return self.digest.removeprefix("sha256:")


class Registry(Protocol):
    """One repository of images for each project."""

    def tags(self, project_id: int) -> Mapping[str, Tag]: ...

    def tag(self, project_id: int, name: str) -> Tag | None: ...

    def remove_tag(self, project_id: int, name: str) -> bool: ...


class LocalRegistry:
    """The environments of this machine."""

    def __init__(self, store: EnvironmentStore) -> None:
        self._store = store

    def tags(self, project_id: int) -> Mapping[str, Tag]:
        tagged = self._store.tags(project_id)
        named = {f"{ENVIRONMENT}{one.fingerprint}": one for one in self._store.whole(project_id)}
        return {name: _tag(name, found) for name, found in {**tagged, **named}.items()}

    def tag(self, project_id: int, name: str) -> Tag | None:
        if name.startswith(ENVIRONMENT):
            found = self._store.get(project_id, name.removeprefix(ENVIRONMENT))
        else:
            found = self._store.tagged(project_id, name)
        return _tag(name, found) if found else None

    def remove_tag(self, project_id: int, name: str) -> bool:
        """Only a commit's: an environment is called what it is for as long as it is there."""
        return self._store.untag(project_id, name)


def _tag(name: str, environment: Environment) -> Tag:
    return Tag(name, environment.digest, environment.created_at)


def open_registry(config: ForgeConfig) -> Registry:
    return LocalRegistry(EnvironmentStore(config.environments))

"""The forge's answers about images from a registry of containers, such as docker's own.

Made by ``registry.open_registry`` where ``ForgeConfig.registry`` names one. The forge signs the tokens
that it shows there for itself, one repository and one purpose each: nobody is asked for a password.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import httpx

from notebooks_service.errors import RegistryUnavailable
from notebooks_service.forge import errors, registry_tokens
from notebooks_service.forge.config import ForgeConfig
from notebooks_service.forge.database import iso
from notebooks_service.forge.models import Project
from notebooks_service.forge.registry import Tag
from notebooks_service.images.registry import TAG, Manifest, RegistryClient

ANSWER = httpx.Timeout(3, connect=2)
"""Seconds, so that whoever asks the forge is told before they give up themselves."""
AT_ONCE = 8
"""Questions that may be on their way: a registry that hangs must not hold all of the forge's threads."""
MOST_LOOKED_AT = 2000
"""Tags that are looked at to see whether another one has the same image."""
LARGEST_NUMBER = 2**63


class ContainerRegistry:
    """Repositories that are named like their projects, in lower case."""

    by_path = True

    def __init__(self, config: ForgeConfig, http: httpx.Client | None = None) -> None:
        self._client = RegistryClient(
            config.registry,
            sign=lambda scope: registry_tokens.own_token(config, scope),
            http=http or httpx.Client(timeout=ANSWER, follow_redirects=False, trust_env=False),
            longest=2 * (ANSWER.read or 0),
            tries=2,
        )
        self._turns = threading.BoundedSemaphore(AT_ONCE)

    @contextmanager
    def _asked(self) -> Iterator[RegistryClient]:
        if not self._turns.acquire(timeout=ANSWER.connect):
            raise RegistryUnavailable(reason="busy")
        try:
            yield self._client
        finally:
            self._turns.release()

    def names(self, project: Project) -> list[str]:
        where = repository(project)
        if where is None:
            return []
        with self._asked() as client:
            return sorted(client.tags(where))

    def tag(self, project: Project, name: str) -> Tag | None:
        """Two questions: the manifest, and its configuration for the time and nothing else."""
        where = repository(project)
        if where is None or not TAG.match(name):
            return None
        with self._asked() as client:
            manifest = client.manifest(where, name)
            if manifest is None:
                return None
            config = client.config(where, manifest)
        return Tag(
            name,
            manifest.digest,
            created(config.get("created")),
            (manifest.config or "").removeprefix("sha256:"),
            size(manifest),
        )

    def remove_tag(self, project: Project, name: str) -> bool | None:
        """By its name; where the registry cannot do that, by its digest, if no other tag has it."""
        where = repository(project)
        if where is None or not TAG.match(name):
            return False
        with self._asked() as client:
            done = client.delete_tag(where, name)
            if done is not None:
                return done
            digest = client.head(where, name)
            if digest is None:
                return False
            others = [one for one in client.tags(where) if one != name]
            if len(others) > MOST_LOOKED_AT or any(
                client.head(where, one) == digest for one in others
            ):
                return None
            return client.delete_digest(where, digest)

    def remove_all(self, project: Project) -> None:
        """Every image. Raises GitLab's 400 where the registry deletes none."""
        where = repository(project)
        if where is None:
            return
        with self._asked() as client:
            for name in client.tags(where):
                digest = client.head(where, name)
                if digest is not None and client.delete_digest(where, digest) is None:
                    raise errors.bad_request(
                        "The registry deletes nothing, so the project's images would stay for whoever "
                        "has its path next. Let it delete (docker-registry: storage.delete.enabled)."
                    )


def repository(project: Project) -> str | None:
    """Where a project's images are; None for a path that no registry takes, so it has none."""
    name = project.full_path.lower()
    return name if registry_tokens.is_repository(name) else None


def size(manifest: Manifest) -> int | None:
    """Bytes of an image's layers as they lie in the registry; None for a list of images."""
    try:
        rows: Any = json.loads(manifest.content)["layers"]
        found: list[int] = [row["size"] for row in rows]
    except (ValueError, KeyError, TypeError):
        return None
    if not all(type(one) is int and 0 <= one < LARGEST_NUMBER for one in found):
        return None
    return sum(found)


def created(said: object) -> str:
    """When an image says that it was made, as GitLab writes it; empty if it says no time."""
    if not isinstance(said, str) or len(said) > 40:
        return ""
    try:
        moment = datetime.fromisoformat(said)
        return iso(moment if moment.tzinfo else moment.replace(tzinfo=UTC)) or ""
    except (ValueError, OverflowError):
        return ""

"""Tags in a project's registry as the forge lists them, and tokens for the registry itself; it is
``forge.registry`` of ``gitlab/forge.py``. What speaks to registries is ``images/registry.py``.
"""

from __future__ import annotations

from notebooks_service.domain import Project
from notebooks_service.errors import Forbidden, NotFound
from notebooks_service.gitlab import answers
from notebooks_service.gitlab.answers import RegistryTag
from notebooks_service.gitlab.transport import Transport, quoted

MOST_TAG_PAGES = 10
SERVICE = "container_registry"  # GitLab's registries are all called so


class Registry:
    """What the forge says of images. Raises what ``Forge`` does."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._repositories: dict[int, int] = {}

    def tags(self, project: Project) -> list[str]:
        """The names of the tags in the project's registry, as far as one may see it."""
        try:
            repository = self._repository(project)
            if repository is None:
                return []
            path = f"/projects/{project.id}/registry/repositories/{repository}/tags"
            rows = self._transport.every(path, pages=MOST_TAG_PAGES)
        except NotFound:
            return []
        return [answers.read(lambda data: str(data["name"]), row) for row in rows]

    def tag(self, project: Project, name: str) -> RegistryTag | None:
        """What this tag of the project's registry names; None also where it is hidden or off.

        https://docs.gitlab.com/api/container_registry/
        """
        try:
            repository = self._repository(project)
            if repository is None:
                return None
            data = self._transport.get(
                f"/projects/{project.id}/registry/repositories/{repository}/tags/{quoted(name)}"
            )
        except NotFound:
            return None
        return answers.read(answers.registry_tag_from, data)

    def token(self, scope: str, login: tuple[str, str] | None = None) -> tuple[str, float]:
        """A token for the forge's registry and the seconds that it lives; ``scope`` is one repository
        and what for. What the person, or whose ``login`` it is, may not do is not in it.

        https://distribution.github.io/distribution/spec/auth/token/
        """
        data = self._transport.registry_token(SERVICE, scope, login)
        return answers.read(answers.registry_token_from, data)

    def shows(self, project: Project, repository: str) -> bool:
        """Whether the person may see this repository of images in the project's registry.

        https://docs.gitlab.com/api/container_registry/#list-registry-repositories
        """
        try:
            rows = self._transport.every(f"/projects/{project.id}/registry/repositories")
        except (NotFound, Forbidden):
            return False
        return any(row.get("path") == repository for row in rows)

    def _repository(self, project: Project) -> int | None:
        """The id of the repository that is named like the project itself, once it exists."""
        if project.id not in self._repositories:
            rows = self._transport.every(f"/projects/{project.id}/registry/repositories")
            for row in rows:
                if row.get("path") == project.path.lower():
                    self._repositories[project.id] = answers.read(lambda data: int(data["id"]), row)
        return self._repositories.get(project.id)

"""Images lie in a registry where their project's path says: none is left behind for whoever has the path next.

Called by the routes that rename, transfer and delete projects and groups, before they change anything.
https://docs.gitlab.com/user/packages/container_registry/#move-or-rename-container-registry-repositories
"""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import Request
from sqlalchemy import select
from sqlalchemy.orm import Session

from notebooks_service.forge import errors
from notebooks_service.forge.models import Namespace, Project
from notebooks_service.forge.registry import Registry

RENAME = "Cannot rename project because it contains container registry tags!"
TRANSFER = "Project cannot be transferred, because tags are present in its container registry"
GROUP = (
    "Cannot update the path because there are projects under this group that contain Docker images in "
    "their container registry. Please remove the images from your projects first and try again."
)


def check_may_move(
    request: Request, session: Session, projects: Sequence[Project], sentence: str
) -> None:
    """Raises GitLab's 400, with its ``sentence``, if one of these projects has images."""
    registry = _asked(request, session)
    if registry is not None and any(registry.names(project) for project in projects):
        raise errors.bad_request(sentence)


def remove_images(request: Request, session: Session, projects: Sequence[Project]) -> None:
    """Their images go before they do. A project whose images stay, stays too, with an error."""
    registry = _asked(request, session)
    if registry is not None:
        for project in projects:
            registry.remove_all(project)


def below(session: Session, group: Namespace) -> Sequence[Project]:
    """The projects of a group and of all groups in it."""
    tree = select(Namespace.id).where(Namespace.id == group.id).cte(recursive=True)
    tree = tree.union(select(Namespace.id).join(tree, Namespace.parent_id == tree.c.id))
    return session.scalars(select(Project).where(Project.namespace_id.in_(select(tree.c.id)))).all()


def _asked(request: Request, session: Session) -> Registry | None:
    registry: Registry = request.app.state.registry
    if not registry.by_path:
        return None
    # Nobody else could write for as long as the registry takes; nothing has been changed yet.
    session.commit()
    return registry

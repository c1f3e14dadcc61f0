"""Whether this person may launch this commit: decided by the forge, at every launch.

Called by the launch mixin with a fresh token of the person; nothing that the request claims is
believed, and a project that is hidden gives the same answer as one that does not exist.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from notebooks_service.domain import (
    AccessLevel,
    Commit,
    ForgeUser,
    Project,
    server_name,
)
from notebooks_service.errors import Forbidden, LaunchRefused, NotFound
from notebooks_service.gitlab.forge import Forge
from notebooks_service.settings import MinimumAccess
from notebooks_service.spawner.options import LaunchOptions


@dataclass(frozen=True)
class Grant:
    """What the forge says: the person, the project, the commit, and what they may do there."""

    person: ForgeUser
    project: Project
    commit: Commit
    branch: str
    level: AccessLevel


def level_is_enough(level: AccessLevel, minimum: MinimumAccess) -> bool:
    """Whether somebody who can read the code at ``level`` may launch; ``read`` asks no membership."""
    return minimum == "read" or level.number >= AccessLevel(minimum).number


def check_name(name: str, grant: Grant) -> None:
    """Refuse a server whose name is not the one of this project, commit and branch."""
    if name != server_name(grant.project.id, grant.commit.sha, grant.branch):
        raise LaunchRefused(
            "This launch was refused: the server's name does not belong to this project, commit "
            "and branch. Open the commit's page and start there."
        )


async def check(
    forge: Forge, options: LaunchOptions, minimum: MinimumAccess, *, returning: bool
) -> Grant:
    """Ask the forge. ``returning`` lets a branch be gone: the work on it is here already.

    Raises ``NotFound`` (hidden or missing), ``Forbidden`` (readable, but the level is too low),
    ``SignInExpired``, ``ForgeUnavailable``.
    """
    return await asyncio.to_thread(_ask, forge, options, minimum, returning)


def _ask(forge: Forge, options: LaunchOptions, minimum: MinimumAccess, returning: bool) -> Grant:
    project = forge.project(options.project)
    level = AccessLevel.NONE if minimum == "read" else forge.access(project)
    if not level_is_enough(level, minimum):
        raise Forbidden(
            f"Launching needs at least the role `{minimum}` in this project. Ask one of its maintainers."
        )
    commit = forge.commit(project, options.commit)
    if commit.sha != options.commit:
        raise NotFound()
    if not returning:
        try:
            forge.branch(project, options.branch)
        except NotFound:
            raise NotFound(
                "This branch does not exist, or no longer. Open the commit's page and pick another."
            ) from None
    return Grant(forge.user(), project, commit, options.branch, level)

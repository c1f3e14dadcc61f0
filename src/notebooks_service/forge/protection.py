"""Which branches and tags of a project are protected, and what somebody may do with them.

The decisions themselves are ``hooks.pre_receive``, which git runs; this reads the rows for them. Used by
``git_access``, ``branch_changes``, ``entities`` and everything that gives variables to jobs.
https://docs.gitlab.com/user/project/repository/branches/protected/
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from notebooks_service.forge import permissions, repositories
from notebooks_service.forge.access import ProjectAccess
from notebooks_service.forge.config import ForgeConfig
from notebooks_service.forge.hooks import pre_receive
from notebooks_service.forge.hooks.pre_receive import Rules
from notebooks_service.forge.models import Project
from notebooks_service.forge.permissions import Can
from notebooks_service.forge.project_models import ProtectedRef

Kind = Literal["heads", "tags"]

NOBODY = 0
ADMINISTRATOR = 60
BRANCH_LEVELS = {
    NOBODY: "No one",
    permissions.DEVELOPER: "Developers + Maintainers",
    permissions.MAINTAINER: "Maintainers",
    ADMINISTRATOR: "Administrators",
}
TAG_LEVELS = {level: words for level, words in BRANCH_LEVELS.items() if level != ADMINISTRATOR}


def rows(session: Session, project_id: int, kind: Kind) -> Sequence[ProtectedRef]:
    return session.scalars(
        select(ProtectedRef)
        .where(ProtectedRef.project_id == project_id, ProtectedRef.kind == kind)
        .order_by(ProtectedRef.id)
    ).all()


def is_protected(session: Session, project: Project, ref: str, tag: bool) -> bool:
    """Whether this branch or tag is protected: then its jobs see protected variables."""
    kind: Kind = "tags" if tag else "heads"
    return any(pre_receive.matches(row.name, ref) for row in rows(session, project.id, kind))


def protect_default(session: Session, project: Project) -> None:
    """The default branch is protected as soon as there is one, unless a name covers it already.

    As GitLab does whoever made the project, with its default, "fully protected":
    https://docs.gitlab.com/user/project/repository/branches/default/#protect-initial-default-branches
    """
    if not is_protected(session, project, project.default_branch, tag=False):
        session.add(
            ProtectedRef(
                project_id=project.id,
                kind="heads",
                name=project.default_branch,
                push_level=permissions.MAINTAINER,
                merge_level=permissions.MAINTAINER,
            )
        )
        session.flush()


def reaches(found: ProjectAccess, level: int) -> bool:
    """Whether somebody has the level that a protected ref asks for. 0 is nobody's."""
    if level == NOBODY or Can.PUSH not in found.can:
        return False
    return found.admin or found.level >= level


def rules(
    session: Session, config: ForgeConfig, found: ProjectAccess, *, web: bool = False
) -> Rules:
    """What somebody may do with the refs of a project. ``web``: by the API or a page, not by git."""
    project = found.project
    return {
        "project": project.full_path,
        "members": f"{config.url}/{project.full_path}/-/project_members",
        "default_branch": project.default_branch,
        "empty": repositories.is_empty(config.repository(project.id)),
        "maintainer": Can.PUSH_PROTECTED in found.can,
        "web": web,
        "branches": [
            {
                "name": row.name,
                "push": reaches(found, row.push_level),
                "merge": reaches(found, row.merge_level),
                "force": row.allow_force_push,
            }
            for row in rows(session, project.id, "heads")
        ],
        "tags": [
            {"name": row.name, "create": reaches(found, row.push_level)}
            for row in rows(session, project.id, "tags")
        ],
    }


def may_run_on(session: Session, found: ProjectAccess, ref: str, tag: bool) -> bool:
    """Whether somebody may start a pipeline for this ref: who may change it may.

    https://docs.gitlab.com/ci/pipelines/#pipeline-security-on-protected-branches
    """
    kind: Kind = "tags" if tag else "heads"
    covering = [
        row for row in rows(session, found.project.id, kind) if pre_receive.matches(row.name, ref)
    ]
    if not covering:
        return True
    return any(
        reaches(found, level) for row in covering for level in (row.push_level, row.merge_level)
    )


def update_refusal(
    session: Session,
    config: ForgeConfig,
    found: ProjectAccess,
    ref: str,
    *,
    old: str,
    new: str,
) -> str | None:
    """GitLab's sentence if the API may not make this change of a ref; None if it may."""
    repository = config.repository(found.project.id)
    return pre_receive.refusal(
        old,
        new,
        ref,
        rules(session, config, found, web=True),
        lambda first, second: repositories.is_ancestor(repository, first, second),
        lambda sha: [name for _, name in repositories.refs_containing(repository, sha, ("heads",))],
    )

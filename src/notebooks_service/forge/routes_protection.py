"""Protected branches and tags.

https://docs.gitlab.com/api/protected_branches/ · https://docs.gitlab.com/api/protected_tags/
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from notebooks_service.forge import errors, permissions, protection
from notebooks_service.forge.access import ProjectAccess, find_project
from notebooks_service.forge.authentication import Asker, Asks
from notebooks_service.forge.ci_parameters import Parameters, flag, number, text
from notebooks_service.forge.database import SessionDep
from notebooks_service.forge.pagination import PagingDep
from notebooks_service.forge.permissions import Can
from notebooks_service.forge.project_models import ProtectedRef
from notebooks_service.forge.protection import Kind

router = APIRouter(prefix="/api/v4/projects/{project_id:segment}")

NAME_LIMIT = 255
MOST_ROWS = 1000
"""Protected names of one project: each push looks at all of them."""


def _project(
    session: Session, asker: Asker, project_id: str, need: Can = Can.EDIT_PROJECT
) -> ProjectAccess:
    """As GitLab asks here: nobody's question is not 401, but 404 or 403 like a stranger's."""
    return find_project(session, asker, project_id, need)


def _find(session: Session, found: ProjectAccess, kind: Kind, name: str) -> ProtectedRef:
    row = session.scalar(
        select(ProtectedRef).where(
            ProtectedRef.project_id == found.project.id,
            ProtectedRef.kind == kind,
            ProtectedRef.name == name,
        )
    )
    if row is None:
        raise errors.not_found()
    return row


def _level(parameters: dict[str, Any], name: str, known: dict[int, str], default: int) -> int:
    level = number(parameters, name)
    if level is None:
        return default
    if level not in known:
        raise errors.ForgeError(400, {"error": f"{name} does not have a valid value"})
    return level


def _one_level(parameters: dict[str, Any], name: str, known: dict[int, str]) -> int | None:
    """``allowed_to_…`` with one level, which any GitLab has; its people and groups are Premium's.

    Refused rather than dropped: a branch must not be less protected than it was asked for.
    """
    sent = parameters.get(name)
    if sent is None:
        return None
    one = sent[0] if isinstance(sent, list) and len(sent) == 1 else None
    if not isinstance(one, dict) or set(one) != {"access_level"}:
        raise errors.not_implemented(f"{name} of single people, groups or keys (Premium)")
    return _level(one, "access_level", known, permissions.MAINTAINER)


def _levels(row: ProtectedRef, level: int, known: dict[int, str]) -> list[dict[str, Any]]:
    return [{"id": row.id, "access_level": level, "access_level_description": known[level]}]


def _branch_body(row: ProtectedRef) -> dict[str, Any]:
    return {
        "id": row.id,
        "name": row.name,
        "push_access_levels": _levels(row, row.push_level, protection.BRANCH_LEVELS),
        "merge_access_levels": _levels(row, row.merge_level, protection.BRANCH_LEVELS),
        "allow_force_push": row.allow_force_push,
    }


def _tag_body(row: ProtectedRef) -> dict[str, Any]:
    return {
        "name": row.name,
        "create_access_levels": _levels(row, row.push_level, protection.TAG_LEVELS),
    }


def _new_name(
    session: Session, parameters: dict[str, Any], found: ProjectAccess, kind: Kind, what: str
) -> str:
    name = text(parameters, "name")
    if not name:
        raise errors.ForgeError(400, {"error": "name is missing"})
    if len(name) > NAME_LIMIT:
        raise errors.unprocessable("Name is too long (maximum is 255 characters)")
    rows = protection.rows(session, found.project.id, kind)
    if any(row.name == name for row in rows):
        raise errors.conflict(f"Protected {what} '{name}' already exists")
    if len(rows) >= MOST_ROWS:
        raise errors.unprocessable(f"A project has at most {MOST_ROWS} protected names")
    return name


@router.get("/protected_branches")
def list_branches(
    project_id: str, asker: Asks, session: SessionDep, paging: PagingDep, search: str = ""
) -> list[dict[str, Any]]:
    """https://docs.gitlab.com/api/protected_branches/#list-protected-branches (who reads the code)"""
    found = _project(session, asker, project_id, Can.READ_CODE)
    rows = protection.rows(session, found.project.id, "heads")
    kept = [row for row in rows if search.lower() in row.name.lower()]
    return [_branch_body(row) for row in paging.items(kept)]


@router.post("/protected_branches", status_code=201)
def protect_branch(
    project_id: str, asker: Asks, session: SessionDep, parameters: Parameters
) -> dict[str, Any]:
    """https://docs.gitlab.com/api/protected_branches/#protect-repository-branches"""
    found = _project(session, asker, project_id)
    name = _new_name(session, parameters, found, "heads", "branch")
    known = protection.BRANCH_LEVELS
    levels = {}
    for action in ("push", "merge"):
        of_list = _one_level(parameters, f"allowed_to_{action}", known)
        default = permissions.MAINTAINER if of_list is None else of_list
        levels[action] = _level(parameters, f"{action}_access_level", known, default)
    _only_maintainers_unprotect(parameters)
    row = ProtectedRef(
        project_id=found.project.id,
        kind="heads",
        name=name,
        push_level=levels["push"],
        merge_level=levels["merge"],
        allow_force_push=bool(flag(parameters, "allow_force_push")),
    )
    session.add(row)
    session.flush()
    return _branch_body(row)


def _only_maintainers_unprotect(parameters: dict[str, Any]) -> None:
    asked = number(parameters, "unprotect_access_level")
    if parameters.get("allowed_to_unprotect") or asked not in (None, permissions.MAINTAINER):
        raise errors.not_implemented("level of its own for unprotecting (Premium)")


@router.get("/protected_branches/{name:segment}")
def get_branch(project_id: str, name: str, asker: Asks, session: SessionDep) -> dict[str, Any]:
    """https://docs.gitlab.com/api/protected_branches/#get-a-single-protected-branch-or-wildcard-protected-branch (who reads the code)"""
    found = _project(session, asker, project_id, Can.READ_CODE)
    return _branch_body(_find(session, found, "heads", name))


@router.patch("/protected_branches/{name:segment}")
def change_branch(
    project_id: str, name: str, asker: Asks, session: SessionDep, parameters: Parameters
) -> dict[str, Any]:
    """https://docs.gitlab.com/api/protected_branches/#update-a-protected-branch"""
    found = _project(session, asker, project_id)
    row = _find(session, found, "heads", name)
    _only_maintainers_unprotect(parameters)
    push = _one_level(parameters, "allowed_to_push", protection.BRANCH_LEVELS)
    merge = _one_level(parameters, "allowed_to_merge", protection.BRANCH_LEVELS)
    force = flag(parameters, "allow_force_push", None)
    row.push_level = row.push_level if push is None else push
    row.merge_level = row.merge_level if merge is None else merge
    row.allow_force_push = row.allow_force_push if force is None else force
    return _branch_body(row)


@router.delete("/protected_branches/{name:segment}", status_code=204)
def unprotect_branch(project_id: str, name: str, asker: Asks, session: SessionDep) -> Response:
    """https://docs.gitlab.com/api/protected_branches/#unprotect-repository-branches"""
    found = _project(session, asker, project_id)
    session.delete(_find(session, found, "heads", name))
    return Response(status_code=204)


@router.get("/protected_tags")
def list_tags(
    project_id: str, asker: Asks, session: SessionDep, paging: PagingDep
) -> list[dict[str, Any]]:
    """https://docs.gitlab.com/api/protected_tags/#list-protected-tags"""
    found = _project(session, asker, project_id)
    rows = protection.rows(session, found.project.id, "tags")
    return [_tag_body(row) for row in paging.items(rows)]


@router.post("/protected_tags", status_code=201)
def protect_tag(
    project_id: str, asker: Asks, session: SessionDep, parameters: Parameters
) -> dict[str, Any]:
    """https://docs.gitlab.com/api/protected_tags/#protect-a-repository-tag"""
    found = _project(session, asker, project_id)
    name = _new_name(session, parameters, found, "tags", "tag")
    known = protection.TAG_LEVELS
    of_list = _one_level(parameters, "allowed_to_create", known)
    default = permissions.MAINTAINER if of_list is None else of_list
    level = _level(parameters, "create_access_level", known, default)
    row = ProtectedRef(
        project_id=found.project.id, kind="tags", name=name, push_level=level, merge_level=level
    )
    session.add(row)
    session.flush()
    return _tag_body(row)


@router.get("/protected_tags/{name:segment}")
def get_tag(project_id: str, name: str, asker: Asks, session: SessionDep) -> dict[str, Any]:
    """https://docs.gitlab.com/api/protected_tags/#get-a-protected-tag-or-wildcard-protected-tag"""
    return _tag_body(_find(session, _project(session, asker, project_id), "tags", name))


@router.delete("/protected_tags/{name:segment}", status_code=204)
def unprotect_tag(project_id: str, name: str, asker: Asks, session: SessionDep) -> Response:
    """https://docs.gitlab.com/api/protected_tags/#unprotect-repository-tags"""
    found = _project(session, asker, project_id)
    session.delete(_find(session, found, "tags", name))
    return Response(status_code=204)

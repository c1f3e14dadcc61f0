"""Groups, subgroups, namespaces."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from sqlalchemy import or_, select

from notebooks_service.forge import (
    access,
    entities,
    errors,
    namespaces,
    permissions,
    registry_paths,
)
from notebooks_service.forge.authentication import Asks
from notebooks_service.forge.ci_parameters import Parameters, number, text
from notebooks_service.forge.config import ForgeConfig
from notebooks_service.forge.database import SessionDep
from notebooks_service.forge.models import Namespace, Project
from notebooks_service.forge.pagination import PagingDep
from notebooks_service.forge.permissions import Can

router = APIRouter(prefix="/api/v4")


@router.get("/groups")
def list_groups(
    asker: Asks,
    session: SessionDep,
    paging: PagingDep,
    request: Request,
    search: str = "",
    owned: bool = False,
    top_level_only: bool = False,
    all_available: bool | None = None,
    min_access_level: int = 0,
    order_by: str = "name",
    sort: str = "asc",
) -> list[dict[str, Any]]:
    """https://docs.gitlab.com/api/groups/#list-all-groups"""
    query = access.visible_groups(session, asker)
    level = permissions.OWNER if owned else min_access_level
    everything = asker.admin if all_available is None else all_available
    if asker.user is not None and (level or not everything):
        _, mine = access.member_source_ids(session, asker.user)
        query = query.where(Namespace.id.in_(mine))
    if top_level_only:
        query = query.where(Namespace.parent_id.is_(None))
    if search:
        query = query.where(
            or_(
                Namespace.name.icontains(search, autoescape=True),
                Namespace.full_path.icontains(search, autoescape=True),
            )
        )
    columns: dict[str, Any] = {
        "name": Namespace.name,
        "path": Namespace.path,
        "id": Namespace.id,
        "created_at": Namespace.created_at,
    }
    column = columns.get(order_by, Namespace.name)
    query = query.order_by(column.desc() if sort == "desc" else column.asc(), Namespace.id)
    config: ForgeConfig = request.app.state.config
    if level:
        kept = [
            one
            for one in session.scalars(query)
            if (access.group_level(session, asker.user, one) or 0) >= level
        ]
        return [entities.group(config, session, one) for one in paging.items(kept)]
    return [entities.group(config, session, one) for one in paging.rows(session, query)]


@router.post("/groups", status_code=201)
def create_group(
    asker: Asks, session: SessionDep, parameters: Parameters, request: Request
) -> dict[str, Any]:
    """https://docs.gitlab.com/api/groups/#create-a-group"""
    user = asker.need_user()
    name, path = text(parameters, "name"), text(parameters, "path")
    if not name or not path:
        raise errors.ForgeError(400, {"error": f"{'path' if name else 'name'} is missing"})
    parent = None
    parent_id = number(parameters, "parent_id")
    if parent_id is not None:
        found = access.find_group(session, asker, str(parent_id))
        if not permissions.may_create_subgroup(found.level, admin=asker.admin):
            raise errors.forbidden()
        parent = found.group
    group = namespaces.create_group(
        session,
        user,
        path,
        name,
        parent=parent,
        visibility=text(parameters, "visibility") or "private",
        description=text(parameters, "description") or "",
    )
    return entities.group(request.app.state.config, session, group)


@router.get("/groups/{group_id:segment}")
def get_group(
    group_id: str,
    asker: Asks,
    session: SessionDep,
    request: Request,
    with_projects: bool = True,
) -> dict[str, Any]:
    """https://docs.gitlab.com/api/groups/#retrieve-a-group"""
    found = access.find_group(session, asker, group_id)
    config: ForgeConfig = request.app.state.config
    body = entities.group(config, session, found.group)
    if with_projects:
        query = (
            access.visible_projects(session, asker)
            .where(Project.namespace_id == found.group.id)
            .order_by(Project.id.desc())
            .limit(100)
        )
        body["projects"] = [
            entities.project_basic(config, session, one, code=_code(session, asker, one))
            for one in session.scalars(query)
        ]
        body["shared_projects"] = []
    return body


def _code(session: SessionDep, asker: Asks, project: Project) -> bool:
    return Can.READ_CODE in access.project_access(session, asker, project).can


@router.put("/groups/{group_id:segment}")
def edit_group(
    group_id: str, asker: Asks, session: SessionDep, parameters: Parameters, request: Request
) -> dict[str, Any]:
    """https://docs.gitlab.com/api/groups/#update-group-attributes (Owner; name, path, description, visibility)"""
    asker.need_user()
    found = access.find_group(session, asker, group_id)
    if not asker.admin and found.level < permissions.OWNER:
        raise errors.forbidden()
    group = found.group
    path = text(parameters, "path")
    if path and path != group.path:
        inside = registry_paths.below(session, group)
        registry_paths.check_may_move(request, session, inside, registry_paths.GROUP)
    name = text(parameters, "name", limit=255)
    if name is not None:
        if not name.strip() or any(ord(char) < 32 for char in name):
            raise errors.invalid("name", "is invalid")
        group.name = name
    description = text(parameters, "description")
    if description is not None:
        group.description = description[:500]
    visibility = text(parameters, "visibility")
    if visibility and visibility != group.visibility:
        namespaces.set_group_visibility(session, group, visibility)
    if path and path != group.path:
        namespaces.rename_group(session, group, path)
    session.flush()
    return entities.group(request.app.state.config, session, group)


@router.delete("/groups/{group_id:segment}", status_code=202)
def delete_group(
    group_id: str, asker: Asks, session: SessionDep, request: Request
) -> dict[str, str]:
    """https://docs.gitlab.com/api/groups/#delete-a-group"""
    asker.need_user()
    found = access.find_group(session, asker, group_id)
    if not asker.admin and found.level < permissions.OWNER:
        raise errors.forbidden()
    inside = registry_paths.below(session, found.group)
    registry_paths.remove_images(request, session, inside)
    for project in inside:
        namespaces.delete_project(session, request.app.state.config, project)
    session.delete(found.group)
    return {"message": "202 Accepted"}


@router.get("/groups/{group_id:segment}/subgroups")
def subgroups(
    group_id: str,
    asker: Asks,
    session: SessionDep,
    paging: PagingDep,
    request: Request,
    search: str = "",
) -> list[dict[str, Any]]:
    """https://docs.gitlab.com/api/groups/#list-subgroups"""
    found = access.find_group(session, asker, group_id)
    query = access.visible_groups(session, asker).where(Namespace.parent_id == found.group.id)
    if search:
        query = query.where(Namespace.name.icontains(search, autoescape=True))
    rows = paging.rows(session, query.order_by(Namespace.name, Namespace.id))
    return [entities.group(request.app.state.config, session, one) for one in rows]


@router.get("/groups/{group_id:segment}/descendant_groups")
def descendant_groups(
    group_id: str, asker: Asks, session: SessionDep, paging: PagingDep, request: Request
) -> list[dict[str, Any]]:
    """https://docs.gitlab.com/api/groups/#list-descendant-groups"""
    found = access.find_group(session, asker, group_id)
    prefix = f"{found.group.full_path}/"
    query = access.visible_groups(session, asker).where(
        Namespace.full_path.istartswith(prefix, autoescape=True)
    )
    rows = paging.rows(session, query.order_by(Namespace.name, Namespace.id))
    return [entities.group(request.app.state.config, session, one) for one in rows]


@router.get("/namespaces")
def list_namespaces(
    asker: Asks, session: SessionDep, paging: PagingDep, request: Request, search: str = ""
) -> list[dict[str, Any]]:
    """https://docs.gitlab.com/api/namespaces/#list-all-namespaces"""
    user = asker.need_user()
    query = select(Namespace).order_by(Namespace.full_path)
    if not asker.admin:
        _, mine = access.member_source_ids(session, user)
        query = query.where(Namespace.id.in_(mine))
    if search:
        query = query.where(Namespace.full_path.icontains(search, autoescape=True))
    rows = paging.rows(session, query)
    return [entities.namespace(request.app.state.config, one) for one in rows]


@router.get("/namespaces/{namespace_id:segment}")
def get_namespace(
    namespace_id: str, asker: Asks, session: SessionDep, request: Request
) -> dict[str, Any]:
    """https://docs.gitlab.com/api/namespaces/#retrieve-a-namespace"""
    user = asker.need_user()
    if namespace_id.isdecimal():
        found = session.get(Namespace, int(namespace_id)) if len(namespace_id) < 19 else None
    else:
        found = namespaces.find_namespace(session, namespace_id)
    if found is None or (
        not asker.admin
        and found.owner_id != user.id
        and access.group_level(session, user, found) is None
    ):
        raise errors.not_found("Namespace")
    return entities.namespace(request.app.state.config, found)

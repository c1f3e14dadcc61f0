"""Projects: list, get, create, edit, delete. https://docs.gitlab.com/api/projects/"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from sqlalchemy import Select, or_, select
from sqlalchemy.orm import Session

from notebooks_service.forge import (
    access,
    changes,
    entities,
    errors,
    namespaces,
    paths,
    permissions,
    protection,
    registry_paths,
    repositories,
)
from notebooks_service.forge.access import ProjectAccess, find_project
from notebooks_service.forge.authentication import Asker, Asks
from notebooks_service.forge.ci_parameters import Parameters, flag, number, text
from notebooks_service.forge.config import ForgeConfig
from notebooks_service.forge.database import SessionDep, now
from notebooks_service.forge.models import Namespace, Project, User
from notebooks_service.forge.pagination import MOST_SKIPPED, Paging, PagingDep
from notebooks_service.forge.permissions import Can
from notebooks_service.forge.statistics import sizes_of

router = APIRouter(prefix="/api/v4")

TOO_FAR = (
    f"Offset pagination has a maximum allowed offset of {MOST_SKIPPED} for requests that return "
    "objects of type Project. Remaining records can be retrieved using keyset pagination."
)


class ProjectFilter:
    """The filters and the order that every list of projects takes."""

    def __init__(
        self,
        search: str = "",
        search_namespaces: bool = False,
        visibility: str = "",
        membership: bool = False,
        owned: bool = False,
        min_access_level: int = 0,
        archived: bool = False,
        order_by: str = "created_at",
        sort: str = "desc",
        simple: bool = False,
        id_after: int | None = None,
        id_before: int | None = None,
    ) -> None:
        self.search = search.strip()
        self.search_namespaces = search_namespaces or "/" in search
        if visibility and visibility not in permissions.VISIBILITIES:
            raise errors.ForgeError(400, {"error": "visibility does not have a valid value"})
        self.visibility = visibility
        self.membership = membership
        self.owned = owned
        self.min_access_level = min_access_level
        self.archived = archived
        self.order_by = order_by
        self.sort = sort
        self.simple = simple
        self.id_after = id_after
        self.id_before = id_before

    def apply(self, session: Session, asker: Asker, query: Select[Project]) -> Select[Project]:
        if self.search:
            # Every word has to be somewhere, as on GitLab.
            for word in self.search.split():
                columns = [Project.name, Project.path]
                if self.search_namespaces:
                    columns.append(Project.full_path)
                query = query.where(
                    or_(*(column.icontains(word, autoescape=True) for column in columns))
                )
        if self.visibility:
            query = query.where(Project.visibility == self.visibility)
        if self.archived:
            query = query.where(Project.id < 0)
        if asker.user is not None and self.membership:
            query = query.where(access.membership_condition(session, asker.user))
        if asker.user is not None and self.owned:
            mine = select(Namespace.id).where(Namespace.owner_id == asker.user.id)
            query = query.where(Project.namespace_id.in_(mine))
        if self.id_after is not None:
            query = query.where(Project.id > self.id_after)
        if self.id_before is not None:
            query = query.where(Project.id < self.id_before)
        column = {
            "id": Project.id,
            "name": Project.name,
            "path": Project.path,
            "created_at": Project.created_at,
            "updated_at": Project.updated_at,
            "last_activity_at": Project.last_activity_at,
        }.get(self.order_by, Project.created_at)
        order = column.asc() if self.sort == "asc" else column.desc()
        tie = Project.id.asc() if self.sort == "asc" else Project.id.desc()
        return query.order_by(order, tie)


def _listed(
    session: Session,
    asker: Asker,
    paging: Paging,
    config: ForgeConfig,
    query: Select[Project],
    wanted: ProjectFilter,
) -> list[dict[str, Any]]:
    query = wanted.apply(session, asker, query)
    if paging.keyset({("id", "asc"), ("id", "desc")}):
        following = "id_after" if wanted.sort == "asc" else "id_before"
        rows = paging.by_key(
            session.scalars(query.limit(paging.per_page + 1)).all(),
            lambda one: {following: str(one.id)},
        )
    elif paging.skip + paging.per_page > MOST_SKIPPED:
        raise errors.ForgeError(405, {"error": TOO_FAR})
    elif wanted.min_access_level and asker.user is not None:
        rows = paging.items(
            [
                one
                for one in session.scalars(query)
                if access.project_access(session, asker, one).level >= wanted.min_access_level
            ]
        )
    else:
        rows = paging.rows(session, query)
    bodies = []
    for one in rows:
        found = access.project_access(session, asker, one)
        bodies.append(_shape(config, session, found, asker, simple=wanted.simple))
    return bodies


def _shape(
    config: ForgeConfig, session: Session, found: ProjectAccess, asker: Asker, *, simple: bool
) -> dict[str, Any]:
    if simple or not asker.signed_in:
        code = Can.READ_CODE in found.can
        return entities.project_basic(config, session, found.project, code=code)
    return entities.project(config, session, found, asker)


FilterDep = Annotated[ProjectFilter, Depends()]


@router.get("/projects")
def list_projects(
    asker: Asks, session: SessionDep, paging: PagingDep, wanted: FilterDep, request: Request
) -> list[dict[str, Any]]:
    """https://docs.gitlab.com/api/projects/#list-all-projects"""
    query = access.visible_projects(session, asker)
    return _listed(session, asker, paging, request.app.state.config, query, wanted)


@router.get("/users/{user_id:segment}/projects")
def user_projects(
    user_id: str,
    asker: Asks,
    session: SessionDep,
    paging: PagingDep,
    wanted: FilterDep,
    request: Request,
) -> list[dict[str, Any]]:
    """https://docs.gitlab.com/api/projects/#list-a-users-projects"""
    if user_id.isdecimal() and len(user_id) < 19:
        user = session.get(User, int(user_id))
    else:
        user = namespaces.find_user(session, user_id)
    if user is None:
        raise errors.not_found("User")
    own = namespaces.user_namespace(session, user)
    query = access.visible_projects(session, asker).where(Project.namespace_id == own.id)
    return _listed(session, asker, paging, request.app.state.config, query, wanted)


@router.get("/groups/{group_id:segment}/projects")
def group_projects(
    group_id: str,
    asker: Asks,
    session: SessionDep,
    paging: PagingDep,
    wanted: FilterDep,
    request: Request,
    include_subgroups: bool = False,
) -> list[dict[str, Any]]:
    """https://docs.gitlab.com/api/groups/#list-projects"""
    found = access.find_group(session, asker, group_id)
    query = access.visible_projects(session, asker)
    if include_subgroups:
        prefix = f"{found.group.full_path}/"
        query = query.where(Project.full_path.istartswith(prefix, autoescape=True))
    else:
        query = query.where(Project.namespace_id == found.group.id)
    return _listed(session, asker, paging, request.app.state.config, query, wanted)


@router.get("/projects/{project_id:segment}")
def get_project(
    project_id: str,
    asker: Asks,
    session: SessionDep,
    request: Request,
    statistics: bool = False,
) -> dict[str, Any]:
    """https://docs.gitlab.com/api/projects/#retrieve-a-project"""
    found = find_project(session, asker, project_id)
    config: ForgeConfig = request.app.state.config
    body = _shape(config, session, found, asker, simple=False)
    if statistics and found.level >= permissions.REPORTER:
        repository = config.repository(found.project.id)
        body["statistics"] = sizes_of(session, found.project.id, repository)
    return body


@router.post("/projects", status_code=201)
def create_project(
    asker: Asks, session: SessionDep, parameters: Parameters, request: Request
) -> dict[str, Any]:
    """https://docs.gitlab.com/api/projects/#create-a-project"""
    user = asker.need_user()
    config: ForgeConfig = request.app.state.config
    name, path = text(parameters, "name"), text(parameters, "path")
    if not name and not path:
        raise errors.ForgeError(
            400, {"error": "name, path are missing, at least one parameter must be provided"}
        )
    parent = namespaces.user_namespace(session, user)
    namespace_id = number(parameters, "namespace_id")
    if namespace_id is not None and namespace_id != parent.id:
        group = access.find_group(session, asker, str(namespace_id))
        if not permissions.may_create_in_group(group.level, admin=asker.admin):
            raise errors.forbidden("You are not allowed to create projects in this namespace")
        parent = group.group
    default_branch = text(parameters, "default_branch") or namespaces.DEFAULT_BRANCH
    if not repositories.is_ref_name(default_branch):
        raise errors.invalid("default_branch", "is not a valid branch name")
    project = namespaces.create_project(
        session,
        config,
        user,
        parent,
        path or paths.slug(name or ""),
        paths.check_name(name or path or ""),
        visibility=text(parameters, "visibility") or "private",
        description=(text(parameters, "description") or "")[:2000],
        default_branch=default_branch,
    )
    if flag(parameters, "initialize_with_readme"):
        changes.commit_files(
            config.repository(project.id),
            default_branch,
            None,
            [changes.Write("README.md", f"# {project.name}\n\n{project.description}\n".encode())],
            "Initial commit",
            changes.Person(user.name, user.email),
        )
        protection.protect_default(session, project)
    found = access.project_access(session, asker, project)
    return entities.project(config, session, found, asker)


@router.put("/projects/{project_id:segment}")
def edit_project(
    project_id: str, asker: Asks, session: SessionDep, parameters: Parameters, request: Request
) -> dict[str, Any]:
    """https://docs.gitlab.com/api/projects/#update-a-project"""
    asker.need_user()
    config: ForgeConfig = request.app.state.config
    found = find_project(session, asker, project_id, Can.EDIT_PROJECT)
    project = found.project
    path = text(parameters, "path")
    if path and path != project.path:
        found.need(Can.DELETE_PROJECT)
        registry_paths.check_may_move(request, session, [project], registry_paths.RENAME)
    name = text(parameters, "name")
    if name:
        project.name = paths.check_name(name)
    description = text(parameters, "description")
    if description is not None:
        project.description = description[:2000]
    if path and path != project.path:
        namespaces.rename_project(session, project, path)
    visibility = text(parameters, "visibility")
    if visibility and visibility != project.visibility:
        found.need(Can.DELETE_PROJECT)
        namespaces.set_visibility(project, visibility)
    branch = text(parameters, "default_branch")
    if branch and branch != project.default_branch:
        repository = config.repository(project.id)
        empty = repositories.is_empty(repository)
        if not repositories.is_ref_name(branch) or (
            not empty and repositories.one_ref(repository, "heads", branch) is None
        ):
            raise errors.invalid(
                "base",
                f"Could not set the default branch. Do you have a branch named '{branch}' in your repository?",
            )
        project.default_branch = branch
        repositories.set_head(repository, branch)
        if not empty:
            protection.protect_default(session, project)
    keep = flag(parameters, "keep_latest_artifact", None)
    if keep is not None:
        project.keep_latest_artifact = keep
    project.updated_at = now()
    session.flush()
    return entities.project(config, session, access.project_access(session, asker, project), asker)


@router.put("/projects/{project_id:segment}/transfer")
def transfer_project(
    project_id: str, asker: Asks, session: SessionDep, parameters: Parameters, request: Request
) -> dict[str, Any]:
    """https://docs.gitlab.com/api/projects/#transfer-a-project-to-a-new-namespace"""
    user = asker.need_user()
    found = find_project(session, asker, project_id, Can.DELETE_PROJECT)
    wanted = text(parameters, "namespace")
    if not wanted:
        raise errors.ForgeError(400, {"error": "namespace is missing"})
    own = namespaces.user_namespace(session, user)
    if wanted in (str(own.id), own.full_path):
        target = own
    else:
        group = access.find_group(session, asker, wanted)
        if not permissions.may_create_in_group(group.level, admin=asker.admin):
            raise errors.not_found("Namespace")
        target = group.group
    if target.id == found.project.namespace_id:
        raise errors.bad_request("Project is already in this namespace.")
    registry_paths.check_may_move(request, session, [found.project], registry_paths.TRANSFER)
    namespaces.transfer_project(session, found.project, target)
    found.project.updated_at = now()
    session.flush()
    access_now = access.project_access(session, asker, found.project)
    return entities.project(request.app.state.config, session, access_now, asker)


@router.delete("/projects/{project_id:segment}", status_code=202)
def delete_project(
    project_id: str, asker: Asks, session: SessionDep, request: Request
) -> dict[str, str]:
    """https://docs.gitlab.com/api/projects/#delete-a-project"""
    asker.need_user()
    found = find_project(session, asker, project_id, Can.DELETE_PROJECT)
    registry_paths.remove_images(request, session, [found.project])
    namespaces.delete_project(session, request.app.state.config, found.project)
    return {"message": "202 Accepted"}

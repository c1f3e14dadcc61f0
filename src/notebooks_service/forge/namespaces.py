"""Makes and finds people, groups and projects; used by the routes and by ``administration``."""

from __future__ import annotations

import re
import shutil

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.orm import Session

from notebooks_service.forge import access, ci_artifacts, ci_traces, errors, paths, permissions
from notebooks_service.forge.config import ForgeConfig
from notebooks_service.forge.git_process import make_repository
from notebooks_service.forge.models import Member, Namespace, Project, User
from notebooks_service.forge.project_models import ProjectRedirect

_EMAIL = re.compile(r"[^@\s\x00-\x1f<>]+@[^@\s\x00-\x1f<>]+")
DEFAULT_BRANCH = "main"


def find_user(session: Session, username: str) -> User | None:
    """By user name, whatever the case."""
    return session.scalar(select(User).where(User.username == username))


def create_user(
    session: Session,
    username: str,
    name: str,
    email: str,
    *,
    password_hash: str | None,
    admin: bool = False,
) -> User:
    """A new person with their own namespace. Raises GitLab's 400 or 409 for names that cannot be."""
    paths.check_path(username, "username", top=True)
    if not _EMAIL.fullmatch(email):
        raise errors.invalid("email", "is invalid")
    if not name.strip() or len(name) > 255 or any(ord(char) < 32 for char in name):
        raise errors.invalid("name", "is invalid")
    if find_user(session, username) or find_namespace(session, username):
        raise errors.conflict("Username has already been taken")
    if session.scalar(select(User.id).where(User.email == email)):
        raise errors.conflict("Email has already been taken")
    _forget_redirects(session, username)
    user = User(username=username, name=name, email=email, password_hash=password_hash, admin=admin)
    session.add(user)
    session.flush()
    session.add(
        Namespace(
            kind="user",
            path=username,
            full_path=username,
            name=name,
            visibility="public",
            owner_id=user.id,
        )
    )
    session.flush()
    return user


def find_namespace(session: Session, full_path: str) -> Namespace | None:
    return session.scalar(select(Namespace).where(Namespace.full_path == full_path))


def user_namespace(session: Session, user: User) -> Namespace:
    return session.scalars(select(Namespace).where(Namespace.owner_id == user.id)).one()


def create_group(
    session: Session,
    creator: User,
    path: str,
    name: str,
    *,
    parent: Namespace | None = None,
    visibility: str = "private",
    description: str = "",
) -> Namespace:
    """A new group; who makes a top-level one is its Owner."""
    paths.check_path(path, top=parent is None)
    _check_visibility(visibility, parent)
    full_path = f"{parent.full_path}/{path}" if parent else path
    _take_path(session, full_path)
    group = Namespace(
        kind="group",
        path=path,
        full_path=full_path,
        name=name or path,
        description=description,
        visibility=visibility,
        parent_id=parent.id if parent else None,
    )
    session.add(group)
    session.flush()
    if (access.group_level(session, creator, group) or 0) < permissions.OWNER:
        session.add(
            Member(user_id=creator.id, namespace_id=group.id, access_level=permissions.OWNER)
        )
        session.flush()
    return group


def create_project(
    session: Session,
    config: ForgeConfig,
    creator: User,
    namespace: Namespace,
    path: str,
    name: str,
    *,
    visibility: str = "private",
    description: str = "",
    default_branch: str = DEFAULT_BRANCH,
) -> Project:
    """A new project with an empty repository."""
    paths.check_path(path, project=True)
    _check_visibility(visibility, namespace)
    full_path = f"{namespace.full_path}/{path}"
    _take_path(session, full_path)
    project = Project(
        namespace_id=namespace.id,
        creator_id=creator.id,
        path=path,
        full_path=full_path,
        name=name,
        visibility=visibility,
        description=description,
        default_branch=default_branch,
    )
    session.add(project)
    session.flush()
    if (access.group_level(session, creator, namespace) or 0) < permissions.OWNER or (
        namespace.kind == "user"
    ):
        level = permissions.OWNER if namespace.owner_id == creator.id else permissions.MAINTAINER
        session.add(Member(user_id=creator.id, project_id=project.id, access_level=level))
        session.flush()
    make_repository(config.repository(project.id), default_branch)
    return project


def rename_project(session: Session, project: Project, path: str) -> None:
    """A new last segment. The repository is named by id and does not move; the old path leads on.

    https://docs.gitlab.com/user/project/repository/#repository-path-changes
    """
    paths.check_path(path, project=True)
    _move(session, project, f"{project.namespace.full_path}/{path}")
    project.path = path


def transfer_project(session: Session, project: Project, namespace: Namespace) -> None:
    """The project into another namespace. Raises GitLab's 400 where it cannot be."""
    _check_visibility(project.visibility, namespace)
    full_path = f"{namespace.full_path}/{project.path}"
    taken = session.scalar(select(Project.id).where(Project.full_path == full_path))
    if taken or find_namespace(session, full_path):
        raise errors.bad_request(
            "Project with same name or path in target namespace already exists"
        )
    _move(session, project, full_path)
    project.namespace_id = namespace.id
    project.namespace = namespace


def rename_group(session: Session, group: Namespace, path: str) -> None:
    """A new last segment of a group; projects below it are still found at their old paths.

    https://docs.gitlab.com/user/group/manage/#change-a-groups-path
    """
    paths.check_path(path, top=group.parent_id is None)
    old = group.full_path
    full_path = f"{old.rpartition('/')[0]}/{path}" if group.parent_id else path
    inside = Project.full_path.istartswith(f"{old}/", autoescape=True)
    if full_path.lower() != old.lower():
        _take_path(session, full_path)
        before = select(Project.full_path, Project.id).where(inside)
        session.execute(insert(ProjectRedirect).from_select(["path", "project_id"], before))
    group.path, group.full_path = path, full_path
    session.flush()
    for table in (Project, Namespace):
        session.execute(
            update(table)
            .where(table.full_path.istartswith(f"{old}/", autoescape=True))
            .values(full_path=full_path + func.substr(table.full_path, len(old) + 1))
            .execution_options(synchronize_session=False)
        )
    session.expire_all()


def set_group_visibility(session: Session, group: Namespace, visibility: str) -> None:
    """Raises GitLab's 400 if what lies in the group, or what it lies in, does not allow it."""
    if visibility not in permissions.VISIBILITIES:
        raise errors.ForgeError(400, {"error": "visibility does not have a valid value"})
    parent = session.get(Namespace, group.parent_id) if group.parent_id else None
    if parent is not None and not permissions.fits_in(visibility, parent.visibility):
        why = f"since the parent group has a {parent.visibility} visibility."
        raise errors.invalid("visibility_level", f"{visibility} is not allowed {why}")
    higher = permissions.VISIBILITIES[permissions.VISIBILITIES.index(visibility) + 1 :]
    for query, why in (
        (
            select(Project.id).where(
                Project.namespace_id == group.id, Project.visibility.in_(higher)
            ),
            "since this group contains projects with higher visibility.",
        ),
        (
            select(Namespace.id).where(
                Namespace.parent_id == group.id, Namespace.visibility.in_(higher)
            ),
            "since there are sub-groups with higher visibility.",
        ),
    ):
        if session.scalar(query.limit(1)) is not None:
            raise errors.invalid("visibility_level", f"{visibility} is not allowed {why}")
    group.visibility = visibility


def _move(session: Session, project: Project, full_path: str) -> None:
    old = project.full_path
    if full_path.lower() == old.lower():
        project.full_path = full_path
        return
    _take_path(session, full_path)
    project.full_path = full_path
    session.flush()
    session.execute(delete(ProjectRedirect).where(ProjectRedirect.path == old))
    session.add(ProjectRedirect(path=old, project_id=project.id))
    session.flush()


def set_visibility(project: Project, visibility: str) -> None:
    """Raises GitLab's 400 for an unknown one, or one that the project's group does not allow."""
    _check_visibility(visibility, project.namespace)
    project.visibility = visibility


def _check_visibility(visibility: str, namespace: Namespace | None) -> None:
    if visibility not in permissions.VISIBILITIES:
        raise errors.ForgeError(400, {"error": "visibility does not have a valid value"})
    if namespace is None or namespace.kind != "group":
        return
    if not permissions.fits_in(visibility, namespace.visibility):
        raise errors.invalid(
            "visibility_level",
            f"{visibility} is not allowed in a {namespace.visibility} group.",
        )


def delete_project(session: Session, config: ForgeConfig, project: Project) -> None:
    """The project, all that belongs to it, and its repository. Its id is never used again."""
    repository = config.repository(project.id)
    session.delete(project)
    session.flush()
    ci_traces.remove_project(config, project.id)
    ci_artifacts.remove_project(config, project.id)
    if repository.exists():
        gone = repository.with_name(f".{repository.name}.deleted")
        shutil.rmtree(gone, ignore_errors=True)
        repository.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def _take_path(session: Session, full_path: str) -> None:
    """Raises GitLab's 400 if something is there. A project that was there is found there no more."""
    taken = session.scalar(
        select(func.count()).select_from(Project).where(Project.full_path == full_path)
    ) or find_namespace(session, full_path)
    if taken:
        raise errors.invalid("path", "has already been taken")
    _forget_redirects(session, full_path)


def _forget_redirects(session: Session, full_path: str) -> None:
    """Somebody else has this path now, and with it all paths below."""
    below = ProjectRedirect.path.istartswith(f"{full_path}/", autoescape=True)
    session.execute(delete(ProjectRedirect).where((ProjectRedirect.path == full_path) | below))

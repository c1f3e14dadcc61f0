"""Looks up what somebody may do in a project or group; the rules themselves are ``permissions``.

Every route that touches a project gets it from ``find_project``, so that hidden and missing are one
and the same 404.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Select, and_, false, or_, select, true
from sqlalchemy.orm import Session

from notebooks_service.forge import errors, permissions
from notebooks_service.forge.authentication import Asker
from notebooks_service.forge.database import now
from notebooks_service.forge.models import Member, Namespace, Project, User
from notebooks_service.forge.permissions import Can
from notebooks_service.forge.project_models import DeployToken, JobTokenAccess, ProjectRedirect


@dataclass(frozen=True)
class ProjectAccess:
    """A project and what the asker may do there. ``direct`` and ``group`` are levels or None."""

    project: Project
    direct: int | None
    group: int | None
    level: int
    can: frozenset[Can]
    admin: bool = False

    def need(self, ability: Can) -> None:
        """Raises GitLab's 403 for somebody who sees the project but may not do this."""
        if ability not in self.can:
            raise errors.forbidden()


@dataclass(frozen=True)
class GroupAccess:
    """A group and the asker's level in it (own or inherited); ``member`` is False for level 0."""

    group: Namespace
    level: int
    admin: bool


def ancestors(session: Session, namespace: Namespace) -> list[Namespace]:
    """The namespace and all that it lies in, innermost first."""
    chain = [namespace]
    while chain[-1].parent_id is not None:
        parent = session.get_one(Namespace, chain[-1].parent_id)
        chain.append(parent)
    return chain


def current(member: type[Member] = Member) -> ColumnElement[bool]:
    """Memberships that have not expired."""
    return or_(member.expires_at.is_(None), member.expires_at > now().date())


def levels(session: Session, user: User | None, project: Project) -> tuple[int | None, int | None]:
    """A person's own level in the project and the highest of its groups'; None where no member."""
    if user is None:
        return None, None
    direct = session.scalar(
        select(Member.access_level).where(
            Member.project_id == project.id, Member.user_id == user.id, current()
        )
    )
    return direct, group_level(session, user, project.namespace)


def group_level(session: Session, user: User | None, namespace: Namespace) -> int | None:
    """A person's level in a namespace, its parents' included; None if no member of any."""
    if user is None:
        return None
    chain = ancestors(session, namespace)
    if chain[-1].owner_id == user.id:
        return permissions.OWNER
    found = session.scalars(
        select(Member.access_level).where(
            Member.user_id == user.id, Member.namespace_id.in_([one.id for one in chain]), current()
        )
    ).all()
    return max(found) if found else None


def project_access(session: Session, asker: Asker, project: Project) -> ProjectAccess:
    """What ``asker`` may do; nothing at all if it is a job of another, private project."""
    direct, group = levels(session, asker.user, project)
    level = permissions.effective_level(direct, [group or 0])
    can = permissions.abilities(
        level, project.visibility, signed_in=asker.signed_in, admin=asker.admin
    )
    if asker.kind == "job":
        # A job reads what its person may, in projects that let it in.
        # https://docs.gitlab.com/ci/jobs/ci_job_token/
        readable = {
            Can.READ_PROJECT,
            Can.READ_CODE,
            Can.READ_PIPELINES,
            Can.READ_REGISTRY,
            Can.CHANGE_REGISTRY,
        }
        can &= readable
        if not _lets_job_in(session, asker.project_id, project):
            can = set()
    elif asker.kind == "deploy":
        can = _deploy_token_abilities(session, asker, project)
    return ProjectAccess(project, direct, group, level, frozenset(can), asker.admin)


def _lets_job_in(session: Session, source_id: int | None, project: Project) -> bool:
    """https://docs.gitlab.com/ci/jobs/ci_job_token/#control-job-token-access-to-your-project"""
    if source_id == project.id or project.visibility != "private":
        return True
    if not project.job_token_scope_enabled:
        return True
    return session.get(JobTokenAccess, (project.id, source_id)) is not None


def _deploy_token_abilities(session: Session, asker: Asker, project: Project) -> set[Can]:
    """https://docs.gitlab.com/user/project/deploy_tokens/#scope"""
    can = permissions.abilities(permissions.NONE, project.visibility, signed_in=False)
    token = session.get(DeployToken, asker.token_id)
    above = [one.id for one in ancestors(session, project.namespace)]
    if token is None or (token.project_id != project.id and token.namespace_id not in above):
        return can
    can.add(Can.READ_PROJECT)
    if asker.has_scope("read_repository"):
        can.add(Can.READ_CODE)
    if asker.has_scope("read_registry"):
        can.add(Can.READ_REGISTRY)
    if asker.has_scope("write_registry"):
        can.add(Can.CHANGE_REGISTRY)
    return can


def project_by_path(session: Session, path: str) -> Project | None:
    """By full path, whatever the case, as GitLab finds it."""
    return session.scalar(select(Project).where(Project.full_path == path.strip("/")))


def moved_project(session: Session, path: str) -> Project | None:
    """The project that was at this path and is elsewhere now; None if another one is there.

    https://docs.gitlab.com/user/project/repository/#repository-path-changes
    """
    return session.scalar(
        select(Project)
        .join(ProjectRedirect, ProjectRedirect.project_id == Project.id)
        .where(ProjectRedirect.path == path.strip("/"))
    )


def project_by_id_or_path(session: Session, id_or_path: str) -> Project | None:
    """https://docs.gitlab.com/api/rest/#namespaced-paths"""
    if id_or_path.isascii() and id_or_path.isdigit():
        number = int(id_or_path)
        return session.get(Project, number) if number < 2**63 else None
    return project_by_path(session, id_or_path)


def find_project(
    session: Session, asker: Asker, id_or_path: str, need: Can = Can.READ_PROJECT
) -> ProjectAccess:
    """The project, if the asker may see it. 404 for hidden and missing, 403 without ``need``.

    Raises ``ProjectMoved`` for a path that the project had before.
    """
    project = project_by_id_or_path(session, id_or_path)
    moved = None if project is not None else moved_project(session, id_or_path)
    project = project or moved
    if project is None:
        raise errors.not_found("Project")
    access = project_access(session, asker, project)
    if Can.READ_PROJECT not in access.can:
        _say_why_job_stays_out(session, asker, project)
        raise errors.not_found("Project")
    if moved is not None:
        raise errors.ProjectMoved(moved.id)
    access.need(need)
    return access


def _say_why_job_stays_out(session: Session, asker: Asker, project: Project) -> None:
    """Its person sees the project, so the project's name is no secret: the reason is told."""
    if asker.kind != "job" or asker.user is None or asker.project_id is None:
        return
    person = Asker(asker.user, frozenset(), "oauth")
    if Can.READ_PROJECT in project_access(session, person, project).can:
        source = session.get_one(Project, asker.project_id)
        raise errors.forbidden(
            f"Authentication by CI/CD job token not allowed from {source.path} to {project.path}."
        )


def member_source_ids(session: Session, user: User) -> tuple[Sequence[int], Sequence[int]]:
    """Ids of the projects, and of the namespaces with all their descendants, that a user is in."""
    projects = session.scalars(
        select(Member.project_id).where(
            Member.user_id == user.id, Member.project_id.is_not(None), current()
        )
    ).all()
    tree = (
        select(Namespace.id)
        .where(
            or_(
                Namespace.owner_id == user.id,
                Namespace.id.in_(
                    select(Member.namespace_id).where(
                        Member.user_id == user.id, Member.namespace_id.is_not(None), current()
                    )
                ),
            )
        )
        .cte("mine", recursive=True)
    )
    tree = tree.union(select(Namespace.id).join(tree, Namespace.parent_id == tree.c.id))
    namespaces = session.scalars(select(tree.c.id)).all()
    return [one for one in projects if one is not None], namespaces


def membership_condition(session: Session, user: User) -> ColumnElement[bool]:
    """Projects that a user is a member of, directly or through a group."""
    projects, namespaces = member_source_ids(session, user)
    return or_(Project.id.in_(projects), Project.namespace_id.in_(namespaces))


def visible_projects(session: Session, asker: Asker) -> Select[Project]:
    """The query of every project that the asker may see."""
    query = select(Project)
    if asker.kind == "job":
        own = Project.id == asker.project_id
        return query.where(or_(own, Project.visibility == "public"))
    if asker.kind == "deploy":
        return query.where(Project.visibility == "public")
    if asker.user is None:
        return query.where(Project.visibility == "public")
    if asker.admin:
        return query
    return query.where(
        or_(
            Project.visibility.in_(("public", "internal")),
            membership_condition(session, asker.user),
        )
    )


def _group_visible(session: Session, asker: Asker) -> ColumnElement[bool]:
    if asker.admin:
        return true()
    if asker.user is None:
        return Namespace.visibility == "public"
    projects, namespaces = member_source_ids(session, asker.user)
    # Who is in a project or subgroup also sees the groups that it lies in.
    up = (
        select(Namespace.id, Namespace.parent_id)
        .where(
            or_(
                Namespace.id.in_(namespaces),
                Namespace.id.in_(select(Project.namespace_id).where(Project.id.in_(projects))),
            )
        )
        .cte("up", recursive=True)
    )
    up = up.union(
        select(Namespace.id, Namespace.parent_id).join(up, Namespace.id == up.c.parent_id)
    )
    return or_(Namespace.visibility.in_(("public", "internal")), Namespace.id.in_(select(up.c.id)))


def visible_groups(session: Session, asker: Asker) -> Select[Namespace]:
    """The query of every group that the asker may see."""
    if asker.kind == "job":
        return select(Namespace).where(false())
    return select(Namespace).where(and_(Namespace.kind == "group", _group_visible(session, asker)))


def find_group(session: Session, asker: Asker, id_or_path: str) -> GroupAccess:
    """The group, if the asker may see it; 404 for hidden and missing."""
    query = visible_groups(session, asker)
    if id_or_path.isascii() and id_or_path.isdigit() and int(id_or_path) < 2**63:
        query = query.where(Namespace.id == int(id_or_path))
    else:
        query = query.where(Namespace.full_path == id_or_path.strip("/"))
    group = session.scalar(query)
    if group is None:
        raise errors.not_found("Group")
    level = group_level(session, asker.user, group) or 0
    return GroupAccess(group, level, asker.admin)

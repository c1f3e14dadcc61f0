"""Members of projects and groups. https://docs.gitlab.com/api/members/"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from notebooks_service.forge import access, entities, errors, namespaces, permissions
from notebooks_service.forge.authentication import Asker, Asks
from notebooks_service.forge.ci_parameters import Parameters, number, text
from notebooks_service.forge.config import ForgeConfig
from notebooks_service.forge.database import SessionDep
from notebooks_service.forge.models import Member, Namespace, Project, User
from notebooks_service.forge.pagination import PagingDep
from notebooks_service.forge.permissions import Can

router = APIRouter(prefix="/api/v4")

Kind = Literal["projects", "groups"]


@dataclass(frozen=True)
class Source:
    """A project or group whose members are asked about, and the asker's level there."""

    project: Project | None
    group: Namespace
    level: int
    admin: bool

    @property
    def own(self) -> ColumnElement[bool]:
        if self.project is not None:
            return Member.project_id == self.project.id
        return Member.namespace_id == self.group.id

    def new(self, user: User, level: int) -> Member:
        if self.project is not None:
            return Member(user_id=user.id, project_id=self.project.id, access_level=level)
        return Member(user_id=user.id, namespace_id=self.group.id, access_level=level)


def _source(session: Session, asker: Asker, kind: Kind, source_id: str) -> Source:
    if kind == "projects":
        found = access.find_project(session, asker, source_id, Can.READ_MEMBERS)
        return Source(found.project, found.project.namespace, found.level, asker.admin)
    group = access.find_group(session, asker, source_id)
    return Source(None, group.group, group.level, asker.admin)


def _direct(session: Session, source: Source) -> dict[int, Member]:
    rows = session.scalars(
        select(Member).where(source.own, access.current()).order_by(Member.id)
    ).unique()
    return {row.user_id: row for row in rows}


def _all(session: Session, source: Source) -> list[tuple[User, int, Member | None]]:
    """Everybody with their highest level here, from the innermost place that gives it."""
    best: dict[int, tuple[User, int, Member | None]] = {}
    chain = access.ancestors(session, source.group)
    places = [source.own] if source.project is not None else []
    places += [Member.namespace_id == one.id for one in chain]
    for place in places:
        for row in session.scalars(select(Member).where(place, access.current())).unique():
            known = best.get(row.user_id)
            if known is None or row.access_level > known[1]:
                best[row.user_id] = (row.user, row.access_level, row)
    owner_id = chain[-1].owner_id
    if owner_id is not None and best.get(owner_id, (None, 0))[1] < permissions.OWNER:
        best[owner_id] = (session.get_one(User, owner_id), permissions.OWNER, None)
    return [best[key] for key in sorted(best)]


def _bodies(
    config: ForgeConfig, members: Iterable[tuple[User, int, Member | None]], query: str
) -> list[dict[str, Any]]:
    word = query.lower()
    return [
        entities.member(config, user, level, row)
        for user, level, row in members
        if word in user.username.lower() or word in user.name.lower()
    ]


@router.get("/{kind:members_of}/{source_id:segment}/members")
def list_members(
    kind: Kind,
    source_id: str,
    asker: Asks,
    session: SessionDep,
    paging: PagingDep,
    request: Request,
    query: str = "",
) -> list[dict[str, Any]]:
    """https://docs.gitlab.com/api/members/#list-all-direct-members-of-a-group-or-project"""
    source = _source(session, asker, kind, source_id)
    rows = [(row.user, row.access_level, row) for row in _direct(session, source).values()]
    return list(paging.items(_bodies(request.app.state.config, rows, query)))


@router.get("/{kind:members_of}/{source_id:segment}/members/all")
def list_all_members(
    kind: Kind,
    source_id: str,
    asker: Asks,
    session: SessionDep,
    paging: PagingDep,
    request: Request,
    query: str = "",
) -> list[dict[str, Any]]:
    """https://docs.gitlab.com/api/members/#list-all-members-of-a-group-or-project"""
    source = _source(session, asker, kind, source_id)
    return list(paging.items(_bodies(request.app.state.config, _all(session, source), query)))


@router.get("/{kind:members_of}/{source_id:segment}/members/all/{user_id}")
def get_any_member(
    kind: Kind, source_id: str, user_id: int, asker: Asks, session: SessionDep, request: Request
) -> dict[str, Any]:
    """https://docs.gitlab.com/api/members/#retrieve-a-member-of-a-group-or-project-including-inherited-and-invited-members"""
    source = _source(session, asker, kind, source_id)
    for user, level, row in _all(session, source):
        if user.id == user_id:
            return entities.member(request.app.state.config, user, level, row)
    raise errors.not_found()


@router.get("/{kind:members_of}/{source_id:segment}/members/{user_id}")
def get_member(
    kind: Kind, source_id: str, user_id: int, asker: Asks, session: SessionDep, request: Request
) -> dict[str, Any]:
    """https://docs.gitlab.com/api/members/#retrieve-a-direct-member-of-a-group-or-project"""
    source = _source(session, asker, kind, source_id)
    row = _direct(session, source).get(user_id)
    if row is None:
        raise errors.not_found()
    return entities.member(request.app.state.config, row.user, row.access_level, row)


def _level(source: Source, parameters: dict[str, Any]) -> int:
    level = number(parameters, "access_level")
    if level is None:
        raise errors.ForgeError(400, {"error": "access_level is missing"})
    if level not in permissions.LEVELS:
        raise errors.ForgeError(400, {"error": "access_level does not have a valid value"})
    if not permissions.may_grant(source.level, level, admin=source.admin):
        raise errors.forbidden()
    return level


def _end(parameters: dict[str, Any]) -> date | None:
    value = text(parameters, "expires_at")
    try:
        return date.fromisoformat(value) if value else None
    except ValueError:
        raise errors.ForgeError(400, {"error": "expires_at is invalid"}) from None


def _changeable(session: Session, asker: Asker, kind: Kind, source_id: str) -> Source:
    """Members of a project are changed by Maintainers, of a group by Owners."""
    asker.need_user()
    source = _source(session, asker, kind, source_id)
    least = permissions.MAINTAINER if kind == "projects" else permissions.OWNER
    if not asker.admin and source.level < least:
        raise errors.forbidden()
    return source


@router.post("/{kind:members_of}/{source_id:segment}/members", status_code=201)
def add_member(
    kind: Kind,
    source_id: str,
    asker: Asks,
    session: SessionDep,
    parameters: Parameters,
    request: Request,
) -> dict[str, Any]:
    """https://docs.gitlab.com/api/members/#add-a-member-to-a-group-or-project"""
    source = _changeable(session, asker, kind, source_id)
    user_id, username = number(parameters, "user_id"), text(parameters, "username")
    if user_id is None and not username:
        raise errors.ForgeError(
            400, {"error": "user_id, username are missing, exactly one parameter must be provided"}
        )
    user = (
        session.get(User, user_id)
        if user_id is not None
        else namespaces.find_user(session, username or "")
    )
    if user is None:
        raise errors.not_found("User")
    level = _level(source, parameters)
    if session.scalar(select(Member.id).where(source.own, Member.user_id == user.id)):
        raise errors.conflict("Member already exists")
    row = source.new(user, level)
    row.expires_at = _end(parameters)
    session.add(row)
    session.flush()
    return entities.member(request.app.state.config, user, level, row)


def _row(session: Session, source: Source, user_id: int) -> Member:
    row = session.scalar(select(Member).where(source.own, Member.user_id == user_id))
    if row is None:
        raise errors.not_found()
    if row.access_level > source.level and not source.admin:
        raise errors.forbidden()
    return row


def _need_another_owner(session: Session, source: Source, row: Member) -> None:
    """A group without an Owner would be nobody's."""
    if source.project is not None or row.access_level < permissions.OWNER:
        return
    owners = session.scalar(
        select(func.count())
        .select_from(Member)
        .where(source.own, Member.access_level == permissions.OWNER)
    )
    if owners == 1 and source.group.parent_id is None:
        raise errors.forbidden("The last owner of a group cannot be removed")


@router.put("/{kind:members_of}/{source_id:segment}/members/{user_id}")
def edit_member(
    kind: Kind,
    source_id: str,
    user_id: int,
    asker: Asks,
    session: SessionDep,
    parameters: Parameters,
    request: Request,
) -> dict[str, Any]:
    """https://docs.gitlab.com/api/members/#update-a-member-of-a-group-or-project"""
    source = _changeable(session, asker, kind, source_id)
    row = _row(session, source, user_id)
    level = _level(source, parameters)
    if level < permissions.OWNER:
        _need_another_owner(session, source, row)
    row.access_level = level
    if "expires_at" in parameters:
        row.expires_at = _end(parameters)
    session.flush()
    return entities.member(request.app.state.config, row.user, level, row)


@router.delete("/{kind:members_of}/{source_id:segment}/members/{user_id}", status_code=204)
def remove_member(
    kind: Kind, source_id: str, user_id: int, asker: Asks, session: SessionDep
) -> Response:
    """https://docs.gitlab.com/api/members/#remove-a-member-from-a-group-or-project

    Everybody may leave by themselves."""
    user = asker.need_user()
    if user.id == user_id:
        source = _source(session, asker, kind, source_id)
    else:
        source = _changeable(session, asker, kind, source_id)
    row = _row(session, source, user_id)
    _need_another_owner(session, source, row)
    session.delete(row)
    return Response(status_code=204)

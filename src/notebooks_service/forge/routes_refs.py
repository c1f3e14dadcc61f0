"""Branches and tags. https://docs.gitlab.com/api/branches/ · https://docs.gitlab.com/api/tags/"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from sqlalchemy.orm import Session

from notebooks_service.forge import (
    branch_changes,
    changes,
    entities,
    errors,
    history,
    protection,
    repositories,
)
from notebooks_service.forge.access import ProjectAccess, find_project
from notebooks_service.forge.authentication import Asker, Asks
from notebooks_service.forge.changes import ChangeRefused
from notebooks_service.forge.ci_parameters import Parameters, text
from notebooks_service.forge.ci_pipelines import RefChange
from notebooks_service.forge.config import ForgeConfig
from notebooks_service.forge.database import SessionDep
from notebooks_service.forge.git_process import git
from notebooks_service.forge.hooks import pre_receive
from notebooks_service.forge.models import User
from notebooks_service.forge.pagination import PagingDep
from notebooks_service.forge.permissions import Can
from notebooks_service.forge.repositories import RefRow
from notebooks_service.forge.routes_repository import repository_of

router = APIRouter(prefix="/api/v4/projects/{project_id:segment}/repository")

_BRANCH_ORDERS = {
    "name_asc": "refname",
    "name_desc": "-refname",
    "updated_asc": "committerdate",
    "updated_desc": "-committerdate",
}
_TAG_ORDERS = {
    "name": "refname",
    "updated": "creatordate",
    "version": "version:refname",
}


def matching(rows: list[RefRow], search: str) -> list[RefRow]:
    """GitLab's search of names: ``^begin``, ``end$``, or anywhere."""
    word = search.lower()
    if word.startswith("^") and word.endswith("$") and len(word) > 1:
        return [row for row in rows if row.name.lower() == word[1:-1]]
    if word.startswith("^"):
        return [row for row in rows if row.name.lower().startswith(word[1:])]
    if word.endswith("$"):
        return [row for row in rows if row.name.lower().endswith(word[:-1])]
    return [row for row in rows if word in row.name.lower()]


def _code(session: Session, asker: Asker, project_id: str) -> ProjectAccess:
    return find_project(session, asker, project_id, Can.READ_CODE)


@router.get("/branches")
def list_branches(
    project_id: str,
    asker: Asks,
    session: SessionDep,
    paging: PagingDep,
    request: Request,
    search: str = "",
    sort: str = "name_asc",
) -> list[dict[str, Any]]:
    """https://docs.gitlab.com/api/branches/#list-repository-branches"""
    found = _code(session, asker, project_id)
    repository = repository_of(request, found)
    order = _BRANCH_ORDERS.get(sort, "refname")
    rows = paging.items(matching(repositories.refs(repository, "heads", order), search))
    return _branches(session, request, found, list(rows))


def _branches(
    session: Session, request: Request, found: ProjectAccess, rows: list[RefRow]
) -> list[dict[str, Any]]:
    config: ForgeConfig = request.app.state.config
    repository = repository_of(request, found)
    tips = history.commits(repository, [row.commit for row in rows])
    default = repositories.one_ref(repository, "heads", found.project.default_branch)
    rules = protection.rules(session, config, found, web=True)
    protected = protection.rows(session, found.project.id, "heads")
    merged = history.merged_into(repository, default.commit) if default and rows else set()
    return [
        entities.branch(
            config,
            found,
            row,
            tips[row.commit],
            row.name in merged and row.name != found.project.default_branch,
            rules,
            [one for one in protected if pre_receive.matches(one.name, row.name)],
        )
        for row in rows
        if row.commit in tips
    ]


def _branch(repository: Path, name: str) -> RefRow:
    row = repositories.one_ref(repository, "heads", name)
    if row is None:
        raise errors.not_found("Branch")
    return row


@router.get("/branches/{name:segment}")
def get_branch(
    project_id: str, name: str, asker: Asks, session: SessionDep, request: Request
) -> dict[str, Any]:
    """https://docs.gitlab.com/api/branches/#get-single-repository-branch"""
    found = _code(session, asker, project_id)
    return _branches(session, request, found, [_branch(repository_of(request, found), name)])[0]


@router.post("/branches", status_code=201)
def create_branch(
    project_id: str, asker: Asks, session: SessionDep, parameters: Parameters, request: Request
) -> dict[str, Any]:
    """https://docs.gitlab.com/api/branches/#create-repository-branch"""
    user = asker.need_user()
    found = find_project(session, asker, project_id, Can.PUSH)
    repository = repository_of(request, found)
    name, ref = text(parameters, "branch"), text(parameters, "ref")
    if not name or not ref:
        raise errors.ForgeError(400, {"error": f"{'ref' if name else 'branch'} is missing"})
    branch_changes.check_branch_name(name)
    if repositories.one_ref(repository, "heads", name) is not None:
        raise errors.bad_request("Branch already exists")
    sha = repositories.resolve(repository, ref)
    if sha is None:
        raise errors.bad_request(f"Invalid reference name: {ref}")
    _check(session, request, found, f"refs/heads/{name}", new=sha)
    _move(session, request, found, user, f"refs/heads/{name}", sha, None)
    return _branches(session, request, found, [_branch(repository, name)])[0]


def _check(
    session: Session,
    request: Request,
    found: ProjectAccess,
    ref: str,
    *,
    old: str = changes.ZERO,
    new: str = changes.ZERO,
) -> None:
    config: ForgeConfig = request.app.state.config
    branch_changes.check_ref(session, config, found, ref, old=old, new=new)


def _move(
    session: Session,
    request: Request,
    found: ProjectAccess,
    user: User,
    ref: str,
    new: str | None,
    old: str | None,
) -> None:
    try:
        changes.move_ref(repository_of(request, found), ref, new, old)
    except ChangeRefused as refused:
        raise errors.bad_request(str(refused)) from None
    branch_changes.after_change(
        session,
        request.app.state.database,
        request.app.state.config,
        found,
        user,
        RefChange(ref, old or changes.ZERO, new or changes.ZERO),
    )


@router.delete("/branches/{name:segment}", status_code=204)
def delete_branch(
    project_id: str, name: str, asker: Asks, session: SessionDep, request: Request
) -> Response:
    """https://docs.gitlab.com/api/branches/#delete-repository-branch"""
    user = asker.need_user()
    found = find_project(session, asker, project_id, Can.PUSH)
    row = _branch(repository_of(request, found), name)
    if name == found.project.default_branch:
        raise errors.forbidden("Protected branch cannot be deleted")
    _check(session, request, found, f"refs/heads/{name}", old=row.target)
    _move(session, request, found, user, f"refs/heads/{name}", None, row.target)
    return Response(status_code=204)


@router.get("/tags")
def list_tags(
    project_id: str,
    asker: Asks,
    session: SessionDep,
    paging: PagingDep,
    request: Request,
    search: str = "",
    order_by: str = "updated",
    sort: str = "desc",
) -> list[dict[str, Any]]:
    """https://docs.gitlab.com/api/tags/#list-all-tags-for-a-project"""
    found = _code(session, asker, project_id)
    repository = repository_of(request, found)
    order = ("-" if sort == "desc" else "") + _TAG_ORDERS.get(order_by, "creatordate")
    rows = paging.items(matching(repositories.refs(repository, "tags", order), search))
    return _tags(session, request, found, list(rows))


def _tags(
    session: Session, request: Request, found: ProjectAccess, rows: list[RefRow]
) -> list[dict[str, Any]]:
    tips = history.commits(repository_of(request, found), [row.commit for row in rows])
    config: ForgeConfig = request.app.state.config
    names = [one.name for one in protection.rows(session, found.project.id, "tags")]
    return [
        entities.tag(
            config,
            found.project,
            row,
            tips[row.commit],
            any(pre_receive.matches(name, row.name) for name in names),
        )
        for row in rows
        if row.commit in tips
    ]


def _tag(repository: Path, name: str) -> RefRow:
    row = repositories.one_ref(repository, "tags", name)
    if row is None:
        raise errors.not_found("Tag")
    return row


@router.get("/tags/{name:segment}")
def get_tag(
    project_id: str, name: str, asker: Asks, session: SessionDep, request: Request
) -> dict[str, Any]:
    """https://docs.gitlab.com/api/tags/#retrieve-a-tag"""
    found = _code(session, asker, project_id)
    bodies = _tags(session, request, found, [_tag(repository_of(request, found), name)])
    if not bodies:
        raise errors.not_found("Tag")
    return bodies[0]


@router.post("/tags", status_code=201)
def create_tag(
    project_id: str, asker: Asks, session: SessionDep, parameters: Parameters, request: Request
) -> dict[str, Any]:
    """https://docs.gitlab.com/api/tags/#create-a-new-tag"""
    user = asker.need_user()
    found = find_project(session, asker, project_id, Can.PUSH)
    repository = repository_of(request, found)
    name, ref = text(parameters, "tag_name"), text(parameters, "ref")
    if not name or not ref:
        raise errors.ForgeError(400, {"error": f"{'ref' if name else 'tag_name'} is missing"})
    if not repositories.is_ref_name(name):
        raise errors.bad_request("Tag name invalid")
    if repositories.one_ref(repository, "tags", name) is not None:
        raise errors.bad_request(f"Tag {name} already exists")
    sha = repositories.resolve(repository, ref)
    if sha is None:
        raise errors.bad_request(f"Target {ref} is invalid")
    _check(session, request, found, f"refs/tags/{name}", new=sha)
    message = text(parameters, "message")
    target = _tag_object(repository, name, sha, message, user) if message else sha
    _move(session, request, found, user, f"refs/tags/{name}", target, None)
    return _tags(session, request, found, [_tag(repository, name)])[0]


def _tag_object(repository: Path, name: str, sha: str, message: str, user: User) -> str:
    """An annotated tag; its object only, the ref comes after."""
    person = git(
        repository,
        "var",
        "GIT_COMMITTER_IDENT",
        environment={"GIT_COMMITTER_NAME": user.name, "GIT_COMMITTER_EMAIL": user.email},
    ).decode("utf-8", "replace")
    content = f"object {sha}\ntype commit\ntag {name}\ntagger {person.strip()}\n\n{message}\n"
    return git(repository, "mktag", stdin=content.encode()).decode().strip()


@router.delete("/tags/{name:segment}", status_code=204)
def delete_tag(
    project_id: str, name: str, asker: Asks, session: SessionDep, request: Request
) -> Response:
    """https://docs.gitlab.com/api/tags/#delete-a-tag"""
    user = asker.need_user()
    found = find_project(session, asker, project_id, Can.PUSH)
    row = _tag(repository_of(request, found), name)
    _check(session, request, found, f"refs/tags/{name}", old=row.target)
    _move(session, request, found, user, f"refs/tags/{name}", None, row.target)
    return Response(status_code=204)

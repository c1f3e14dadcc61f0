"""Commits: list, get, create, refs, diff. https://docs.gitlab.com/api/commits/"""

from __future__ import annotations

import base64
import binascii
from typing import Any

from fastapi import APIRouter, Request
from sqlalchemy import select
from sqlalchemy.orm import Session

from notebooks_service.forge import (
    branch_changes,
    ci_bodies,
    entities,
    errors,
    history,
    repositories,
)
from notebooks_service.forge.access import ProjectAccess, find_project
from notebooks_service.forge.authentication import Asks
from notebooks_service.forge.changes import Change, Mode, Move, Person, Remove, Write
from notebooks_service.forge.ci_git import CommitFacts
from notebooks_service.forge.ci_models import Pipeline
from notebooks_service.forge.ci_parameters import LargeParameters, flag, text
from notebooks_service.forge.config import ForgeConfig
from notebooks_service.forge.database import SessionDep
from notebooks_service.forge.pagination import PagingDep
from notebooks_service.forge.permissions import Can
from notebooks_service.forge.routes_repository import repository_of

router = APIRouter(prefix="/api/v4/projects/{project_id:segment}/repository/commits")

MOST_ACTIONS = 10_000


@router.get("")
def list_commits(
    project_id: str,
    asker: Asks,
    session: SessionDep,
    paging: PagingDep,
    request: Request,
    ref_name: str = "",
    path: str = "",
    since: str = "",
    until: str = "",
    author: str = "",
    all: bool = False,
    with_stats: bool = False,
    first_parent: bool = False,
    order: str = "default",
) -> list[dict[str, Any]]:
    """https://docs.gitlab.com/api/commits/#list-all-repository-commits

    As on GitLab there are no totals: counting them takes as long as reading the history."""
    found = find_project(session, asker, project_id, Can.READ_CODE)
    repository = repository_of(request, found)
    wanted = history.Filter(path, since, until, author, "", first_parent, all)
    if not wanted.valid:
        raise errors.ForgeError(400, {"error": "since or until is invalid"})
    start: list[str] = []
    if not all:
        sha = _range_or_ref(repository_of(request, found), ref_name)
        if sha is None:
            if ref_name:
                raise errors.not_found("Ref")
            return list(paging.some([]))
        start = sha
    rows = history.log(
        repository,
        start,
        skip=paging.skip,
        count=paging.per_page + 1,
        wanted=wanted,
        topological=order == "topo",
    )
    config: ForgeConfig = request.app.state.config
    bodies = []
    for one in paging.some(rows):
        body = entities.commit(config, found.project, one)
        if with_stats:
            body["stats"] = history.stats(repository, one).body
        bodies.append(body)
    return bodies


def _range_or_ref(repository: Any, ref_name: str) -> list[str] | None:
    """``a..b`` is allowed here, as on GitLab; everything else is one ref."""
    first, dots, last = ref_name.partition("..")
    if dots and not last.startswith("."):
        old, new = (repositories.resolve(repository, name) for name in (first, last))
        return [new, f"^{old}"] if old and new else None
    sha = repositories.resolve(repository, ref_name or "HEAD")
    return [sha] if sha else None


def find_commit(request: Request, found: ProjectAccess, ref: str) -> CommitFacts:
    """The commit that ``ref`` names. GitLab's 404 for none."""
    repository = repository_of(request, found)
    sha = repositories.resolve(repository, ref)
    facts = history.commit(repository, sha) if sha else None
    if facts is None:
        raise errors.not_found("Commit")
    return facts


def _detail(
    session: Session, request: Request, found: ProjectAccess, facts: CommitFacts, *, stats: bool
) -> dict[str, Any]:
    config: ForgeConfig = request.app.state.config
    body = entities.commit(config, found.project, facts)
    if stats:
        body["stats"] = history.stats(repository_of(request, found), facts).body
    pipeline = None
    if Can.READ_PIPELINES in found.can:
        query = (
            select(Pipeline)
            .where(Pipeline.project_id == found.project.id, Pipeline.sha == facts.sha)
            .order_by(Pipeline.id.desc())
            .limit(1)
        )
        pipeline = session.scalars(query).first()
    body["status"] = pipeline.status if pipeline else None
    body["project_id"] = found.project.id
    body["last_pipeline"] = ci_bodies.pipeline_basic(config, pipeline) if pipeline else None
    return body


@router.get("/{sha:segment}")
def get_commit(
    project_id: str,
    sha: str,
    asker: Asks,
    session: SessionDep,
    request: Request,
    stats: bool = True,
) -> dict[str, Any]:
    """https://docs.gitlab.com/api/commits/#retrieve-a-commit"""
    found = find_project(session, asker, project_id, Can.READ_CODE)
    facts = find_commit(request, found, sha)
    return _detail(session, request, found, facts, stats=stats)


@router.get("/{sha:segment}/refs")
def commit_refs(
    project_id: str,
    sha: str,
    asker: Asks,
    session: SessionDep,
    paging: PagingDep,
    request: Request,
    type: str = "all",
) -> list[dict[str, str]]:
    """https://docs.gitlab.com/api/commits/#list-references-a-commit-is-pushed-to"""
    found = find_project(session, asker, project_id, Can.READ_CODE)
    facts = find_commit(request, found, sha)
    kinds = {"branch": ("heads",), "tag": ("tags",), "all": ("heads", "tags")}.get(type)
    if kinds is None:
        raise errors.ForgeError(400, {"error": "type does not have a valid value"})
    names = repositories.refs_containing(repository_of(request, found), facts.sha, kinds)
    words = {"heads": "branch", "tags": "tag"}
    return [{"type": words[kind], "name": name} for kind, name in paging.items(names)]


@router.get("/{sha:segment}/diff")
def commit_diff(
    project_id: str,
    sha: str,
    asker: Asks,
    session: SessionDep,
    paging: PagingDep,
    request: Request,
    unidiff: bool = False,
) -> list[dict[str, object]]:
    """https://docs.gitlab.com/api/commits/#retrieve-the-diff-of-a-commit"""
    found = find_project(session, asker, project_id, Can.READ_CODE)
    facts = find_commit(request, found, sha)
    base = facts.parents[0] if facts.parents else history.EMPTY_TREE
    files, total = history.diff(
        repository_of(request, found), base, facts.sha, skip=paging.skip, count=paging.per_page
    )
    paging.headers(total)
    return [one.unified if unidiff else one.body for one in files]


@router.post("", status_code=201)
def create_commit(
    project_id: str,
    asker: Asks,
    session: SessionDep,
    parameters: LargeParameters,
    request: Request,
) -> dict[str, Any]:
    """https://docs.gitlab.com/api/commits/#create-a-commit-with-multiple-files-and-actions"""
    user = asker.need_user()
    found = find_project(session, asker, project_id)
    branch, message = text(parameters, "branch"), text(parameters, "commit_message")
    if not branch or not message:
        missing = "commit_message" if branch else "branch"
        raise errors.ForgeError(400, {"error": f"{missing} is missing"})
    listed = parameters.get("actions")
    if not isinstance(listed, list) or len(listed) > MOST_ACTIONS:
        raise errors.ForgeError(400, {"error": "actions is invalid"})
    sha = branch_changes.commit(
        session,
        request.app.state.database,
        request.app.state.config,
        found,
        user,
        branch,
        text(parameters, "start_branch") or text(parameters, "start_sha"),
        [_change(action) for action in listed],
        message,
        Person(
            text(parameters, "author_name") or user.name,
            text(parameters, "author_email") or user.email,
        ),
    )
    facts = find_commit(request, found, sha)
    return _detail(session, request, found, facts, stats=flag(parameters, "stats", True) is True)


def _change(action: Any) -> Change:
    if not isinstance(action, dict):
        raise errors.ForgeError(400, {"error": "actions is invalid"})
    path, kind = text(action, "file_path"), action.get("action")
    if not path:
        raise errors.ForgeError(400, {"error": "actions[file_path] is missing"})
    executable = flag(action, "execute_filemode", None)
    if kind == "delete":
        return Remove(path)
    if kind == "chmod":
        return Mode(path, executable is True)
    if kind == "move":
        old = text(action, "previous_path")
        if not old:
            raise errors.ForgeError(400, {"error": "actions[previous_path] is missing"})
        return Move(old, path, _content(action) if action.get("content") is not None else None)
    if kind in ("create", "update"):
        return Write(path, _content(action), must_exist=kind == "update", executable=executable)
    raise errors.ForgeError(400, {"error": "actions[action] does not have a valid value"})


def _content(action: dict[str, Any]) -> bytes:
    value = action.get("content") or ""
    if not isinstance(value, str):
        raise errors.ForgeError(400, {"error": "actions[content] is invalid"})
    if action.get("encoding") != "base64":
        return value.encode("utf-8", "replace")
    try:
        return base64.b64decode(value)
    except (binascii.Error, ValueError):
        raise errors.ForgeError(400, {"error": "actions[content] is invalid"}) from None

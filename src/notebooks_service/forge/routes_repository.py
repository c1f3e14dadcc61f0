"""Trees, blobs, comparison, search. https://docs.gitlab.com/api/repositories/"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse

from notebooks_service.domain import is_commit_sha
from notebooks_service.forge import entities, errors, history, repositories
from notebooks_service.forge.access import ProjectAccess, find_project
from notebooks_service.forge.authentication import Asks, AsksForFiles
from notebooks_service.forge.config import ForgeConfig
from notebooks_service.forge.database import SessionDep
from notebooks_service.forge.pagination import PagingDep
from notebooks_service.forge.permissions import Can
from notebooks_service.forge.repositories import TreeEntry

router = APIRouter(prefix="/api/v4/projects/{project_id:segment}")

MOST_BLOB = 10 << 20
MOST_COMPARED = 1000


def repository_of(request: Request, found: ProjectAccess) -> Path:
    config: ForgeConfig = request.app.state.config
    return config.repository(found.project.id)


@router.get("/repository/tree")
def tree(
    project_id: str,
    asker: Asks,
    session: SessionDep,
    paging: PagingDep,
    request: Request,
    path: str = "",
    ref: str = "",
    recursive: bool = False,
    page_token: str = "",
) -> list[dict[str, Any]]:
    """https://docs.gitlab.com/api/repositories/#list-all-repository-trees-in-a-project

    ``page_token`` goes with ``pagination=keyset``; it comes in the link to the next page."""
    found = find_project(session, asker, project_id, Can.READ_CODE)
    repository = repository_of(request, found)
    commit = repositories.resolve(repository, ref or "HEAD")
    if commit is None:
        raise errors.not_found("Tree")
    entries = list(repositories.tree(repository, commit, path, recursive=recursive))
    if not entries and path.strip("/"):
        kind = repositories.entry(repository, commit, path.strip("/"))
        if kind is None or kind.kind != "tree":
            raise errors.not_found("invalid revision or path")
    # Directories first, as GitLab lists them.
    order = {"tree": 0, "blob": 1, "commit": 2}
    if not recursive:
        entries.sort(key=lambda one: order.get(one.kind, 3))
    if paging.keyset():
        start = _after(entries, page_token) if page_token else 0
        rest = entries[start : start + paging.per_page + 1]
        return [
            entities.tree_entry(one)
            for one in paging.by_key(rest, lambda one: {"page_token": _token_of(one)})
        ]
    return [entities.tree_entry(one) for one in paging.items(entries)]


def _token_of(entry: TreeEntry) -> str:
    """GitLab's is the entry's object id, which two entries may share."""
    return base64.urlsafe_b64encode(entry.path.encode("utf-8", "surrogateescape")).decode()


def _after(entries: Sequence[TreeEntry], token: str) -> int:
    for number, one in enumerate(entries, 1):
        if _token_of(one) == token:
            return number
    raise errors.unprocessable("invalid page token")


def _blob(request: Request, found: ProjectAccess, sha: str) -> tuple[Path, int]:
    repository = repository_of(request, found)
    size = repositories.blob_size(repository, sha) if is_commit_sha(sha) else None
    if size is None:
        raise errors.not_found("Blob")
    return repository, size


@router.get("/repository/blobs/{sha:segment}")
def blob(
    project_id: str, sha: str, asker: AsksForFiles, session: SessionDep, request: Request
) -> dict[str, Any]:
    """https://docs.gitlab.com/api/repositories/#retrieve-a-blob-from-a-repository"""
    found = find_project(session, asker, project_id, Can.READ_CODE)
    repository, size = _blob(request, found, sha)
    if size > MOST_BLOB:
        raise errors.ForgeError(413, {"message": "The blob is too large; take its raw content"})
    content = base64.b64encode(repositories.blob(repository, sha)).decode()
    return {"size": size, "encoding": "base64", "content": content, "sha": sha}


@router.get("/repository/blobs/{sha:segment}/raw")
def raw_blob(
    project_id: str, sha: str, asker: AsksForFiles, session: SessionDep, request: Request
) -> Response:
    """https://docs.gitlab.com/api/repositories/#retrieve-raw-blob-content"""
    found = find_project(session, asker, project_id, Can.READ_CODE)
    repository, size = _blob(request, found, sha)
    return StreamingResponse(repositories.blob_chunks(repository, sha), headers=raw_headers(size))


def raw_headers(size: int) -> dict[str, str]:
    """Whatever a repository holds is text to download, never a page of this origin."""
    return {
        "Content-Type": "text/plain",
        "Content-Length": str(size),
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "default-src 'none'; sandbox",
        "Content-Disposition": "attachment",
    }


@router.get("/repository/compare")
def compare(
    project_id: str,
    asker: Asks,
    session: SessionDep,
    request: Request,
    start: Annotated[str, Query(alias="from")],
    to: str,
    straight: bool = False,
    unidiff: bool = False,
    from_project_id: int | None = None,
) -> dict[str, Any]:
    """https://docs.gitlab.com/api/repositories/#compare-branches-tags-or-commits

    ``from_project_id`` may name a fork; there are none here, so only the project itself."""
    found = find_project(session, asker, project_id, Can.READ_CODE)
    if from_project_id not in (None, found.project.id):
        raise errors.bad_request(
            f"Target project id:{from_project_id} is not a fork of project id:{found.project.id}"
        )
    repository = repository_of(request, found)
    old, new = (repositories.resolve(repository, ref) for ref in (start, to))
    if old is None or new is None:
        raise errors.not_found("Ref")
    base = old if straight else history.merge_base(repository, [old, new]) or old
    every = history.log(repository, [new, f"^{old}"], count=MOST_COMPARED)
    every.reverse()
    diffs, _ = history.diff(repository, base, new, count=100)
    config: ForgeConfig = request.app.state.config
    commits = [entities.commit(config, found.project, one) for one in every]
    project_url = f"{config.url}/{found.project.full_path}"
    return {
        "commit": commits[-1] if commits else None,
        "commits": commits,
        "diffs": [one.unified if unidiff else one.body for one in diffs],
        "compare_timeout": False,
        "compare_same_ref": old == new,
        "web_url": f"{project_url}/-/compare/{old}...{new}",
    }


@router.get("/repository/merge_base")
def merge_base(
    project_id: str,
    asker: Asks,
    session: SessionDep,
    request: Request,
    refs: Annotated[list[str] | None, Query(alias="refs[]")] = None,
) -> dict[str, Any]:
    """https://docs.gitlab.com/api/repositories/#retrieve-the-merge-base"""
    found = find_project(session, asker, project_id, Can.READ_CODE)
    names = refs or request.query_params.getlist("refs")
    if len(names) < 2:
        raise errors.bad_request("Provide at least 2 refs")
    repository = repository_of(request, found)
    shas = []
    for name in names[:20]:
        sha = repositories.resolve(repository, name)
        if sha is None:
            raise errors.bad_request(f"Could not find ref: {name}")
        shas.append(sha)
    base = history.merge_base(repository, shas)
    facts = history.commit(repository, base) if base else None
    if facts is None:
        raise errors.not_found("Merge Base")
    return entities.commit(request.app.state.config, found.project, facts)


@router.get("/search")
@router.get("/-/search")
def search(
    project_id: str,
    asker: Asks,
    session: SessionDep,
    paging: PagingDep,
    request: Request,
    scope: str,
    search: str,
    ref: str = "",
) -> list[dict[str, Any]]:
    """https://docs.gitlab.com/api/search/#scope-commits-2 — of the scopes, commits are there."""
    found = find_project(session, asker, project_id, Can.READ_CODE)
    if scope != "commits":
        raise errors.not_implemented(f"search in {scope[:40]!r}")
    repository = repository_of(request, found)
    start = repositories.resolve(repository, ref or "HEAD")
    if start is None:
        if ref:
            raise errors.not_found("Ref")
        return []
    rows = history.log(
        repository,
        [start],
        skip=paging.skip,
        count=paging.per_page + 1,
        wanted=history.Filter(message=search),
    )
    return [
        {
            **entities.commit(request.app.state.config, found.project, one),
            "project_id": found.project.id,
        }
        for one in paging.some(rows)
    ]

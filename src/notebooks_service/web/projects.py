"""Projects that a person may see, their branches and commits: what to start a notebook from."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response

from notebooks_service.domain import Commit, Project, Ref
from notebooks_service.errors import NotFound
from notebooks_service.gitlab.forge import Page
from notebooks_service.web import pages
from notebooks_service.web.urls import commit_url
from notebooks_service.web.visits import visit

PER_PAGE = 20
MOST_PER_PAGE = 100

PageNumber = Annotated[int, Query(ge=1, le=100_000)]
PerPage = Annotated[int, Query(ge=1, le=MOST_PER_PAGE)]
Search = Annotated[str, Query(max_length=200)]
ProjectId = Annotated[int, Path(ge=1, le=2**63 - 1)]

router = APIRouter(tags=["projects"])


@router.get("/", include_in_schema=False)
async def home(request: Request) -> Response:
    """The first page: the person's own projects."""
    return await _projects(request, "", 1, PER_PAGE, membership=True)


@router.get("/projects", summary="Projects that you may see, the last active first")
async def list_projects(
    request: Request,
    search: Search = "",
    page: PageNumber = 1,
    per_page: PerPage = PER_PAGE,
    membership: bool = False,
) -> Response:
    """A list, with GitLab's pagination headers. `membership`: only those that you belong to."""
    return await _projects(request, search, page, per_page, membership)


async def _projects(
    request: Request, search: str, page: int, per_page: int, membership: bool
) -> Response:
    async with visit(request) as visited:
        found = await visited.ask(
            visited.forge.projects, search, page, per_page, membership=membership
        )
        if pages.wants_html(request):
            return pages.render(
                request,
                "projects.html",
                found=found,
                search=search,
                membership=membership,
                per_page=per_page,
            )
        prefix = visited.parts.prefix
    items = [_project_object(project, prefix) for project in found.items]
    return _listed(request, items, found, per_page)


@router.get("/projects/{project_id}", summary="One project")
async def show_project(request: Request, project_id: ProjectId) -> Response:
    async with visit(request) as visited:
        project = await visited.ask(visited.forge.project, project_id)
        prefix = visited.parts.prefix
        if pages.wants_html(request):
            return RedirectResponse(f"{prefix}projects/{project.id}/commits", status_code=302)
        return JSONResponse(_project_object(project, prefix))


@router.get("/projects/{project_id}/commits", summary="A project's commits, newest first")
async def list_commits(
    request: Request,
    project_id: ProjectId,
    ref: Annotated[str, Query(max_length=255)] = "",
    search: Search = "",
    page: PageNumber = 1,
    per_page: PerPage = PER_PAGE,
) -> Response:
    """Those reachable from `ref` (default branch if left out); `search` looks in messages and for a sha."""
    async with visit(request) as visited:
        forge, prefix = visited.forge, visited.parts.prefix
        project = await visited.ask(forge.project, project_id)
        ref = ref or project.default_branch or ""
        if not ref and not pages.wants_html(request):
            return JSONResponse([])
        found: Page[Commit] = Page((), 1, None, 0)
        branches: list[Ref] = []
        if ref:
            found, branches = await asyncio.gather(
                visited.ask(forge.commits, project, ref, search, page, per_page),
                visited.ask(forge.branches, project),
            )
        branch = next((each.name for each in branches if each.name == ref), "")
        asked = "" if branch == project.default_branch else branch
        rows = [
            {"commit": commit, "url": commit_url(prefix, project.path, commit.sha, "", asked)}
            for commit in found.items
        ]
        if pages.wants_html(request):
            return pages.render(
                request,
                "commits.html",
                project=project,
                found=found,
                rows=rows,
                branches=sorted(branches, key=lambda each: (not each.default, each.name)),
                ref=ref,
                search=search,
                per_page=per_page,
            )
    items = [{**_commit_object(row["commit"]), "url": row["url"]} for row in rows]
    return _listed(request, items, found, per_page)


@router.get("/projects/{project_id}/branches", summary="A project's branches")
async def list_branches(request: Request, project_id: ProjectId, search: Search = "") -> Response:
    async with visit(request) as visited:
        project = await visited.ask(visited.forge.project, project_id)
        try:
            branches = await visited.ask(visited.forge.branches, project, search)
        except NotFound:
            branches = []
    return JSONResponse([asdict(branch) for branch in branches])


def _project_object(project: Project, prefix: str) -> dict[str, Any]:
    return {
        "id": project.id,
        "path_with_namespace": project.path,
        "name": project.name,
        "description": project.description,
        "default_branch": project.default_branch,
        "visibility": project.visibility,
        "web_url": project.web_url,
        "last_activity_at": project.last_activity_at,
        "empty_repo": project.empty,
        "commits_url": f"{prefix}projects/{project.id}/commits",
    }


def _commit_object(commit: object) -> dict[str, Any]:
    assert isinstance(commit, Commit)
    return {
        "id": commit.sha,
        "short_id": commit.sha[:8],
        "title": commit.title,
        "message": commit.message,
        "author_name": commit.author_name,
        "authored_date": commit.authored_at,
        "parent_ids": list(commit.parents),
    }


def _listed(
    request: Request, items: list[dict[str, Any]], page: Page[Any], per_page: int
) -> Response:
    """The list with GitLab's headers. https://docs.gitlab.com/api/rest/#pagination"""
    headers = {
        "X-Page": str(page.page),
        "X-Per-Page": str(per_page),
        "X-Next-Page": str(page.next_page or ""),
        "X-Prev-Page": str(page.page - 1) if page.page > 1 else "",
    }
    if page.total is not None:
        headers["X-Total"] = str(page.total)
        headers["X-Total-Pages"] = str(-(-page.total // per_page))
    if page.next_page:
        query = {**request.query_params, "page": page.next_page}
        here = pages.here(request).partition("?")[0]
        headers["Link"] = f'<{pages.templates.filters["query"](here, **query)}>; rel="next"'
    return JSONResponse(items, headers=headers)

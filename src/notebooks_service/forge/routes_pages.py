"""The forge's few pages: your projects, a project, a commit, a job. Plain, so that links are alive.

Everything shown from a repository or a log is text. Hidden and missing are one 404.
"""

from __future__ import annotations

import re
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from sqlalchemy.orm import Session

from notebooks_service.domain import is_commit_sha
from notebooks_service.forge import (
    access,
    ci_traces,
    entities,
    errors,
    history,
    namespaces,
    pages,
    repositories,
)
from notebooks_service.forge.access import ProjectAccess
from notebooks_service.forge.authentication import Asker
from notebooks_service.forge.ci_models import Job, Pipeline
from notebooks_service.forge.config import ForgeConfig
from notebooks_service.forge.database import SessionDep
from notebooks_service.forge.models import Project
from notebooks_service.forge.permissions import Can
from notebooks_service.forge.sign_in import Browser, BrowserDep

router = APIRouter()

SHOWN = 50
_ESCAPES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|section_(start|end):[^\r\n]*\r|[\x00-\x08\x0b-\x0c\x0e-\x1f]"
)
MOST_LOG = 200_000


def asker_of(browser: Browser) -> Asker:
    """A signed-in person may see on pages what they may read."""
    if browser.user is None:
        return Asker(None, frozenset(), "nobody")
    return Asker(browser.user, frozenset({"read_api"}), "browser")


def _render(template: str, browser: Browser, **values: Any) -> Response:
    csrf = browser.csrf if browser.user else ""
    return pages.page(template, person=browser.user, csrf=csrf, **values)


@router.api_route(
    "/api/{rest:path}", methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
)
def not_there(rest: str, request: Request) -> Response:
    """Whatever of GitLab's API the forge does not have."""
    raise errors.not_implemented(f"{request.method} endpoint at this address")


@router.get("/")
def projects(browser: BrowserDep, session: SessionDep) -> Response:
    """The projects that this person may see, the last active first."""
    if browser.user is None:
        return RedirectResponse("/users/sign_in", 302)
    query = access.visible_projects(session, asker_of(browser))
    rows = session.scalars(query.order_by(Project.last_activity_at.desc()).limit(SHOWN)).all()
    return _render("projects.html", browser, projects=rows, title="Projects")


@router.get("/{path:path}")
def anything(path: str, request: Request, browser: BrowserDep, session: SessionDep) -> Response:
    """``/<project>``, ``/<project>/-/commit/<sha>``, ``/<project>/-/jobs/<id>``, ``/<group>`` …"""
    full_path, dash, rest = path.strip("/").partition("/-/")
    full_path = full_path.removesuffix(".git") if not dash else full_path
    project = access.project_by_path(session, full_path)
    if project is None:
        return _namespace(request, browser, session, full_path.removeprefix("groups/"))
    found = access.project_access(session, asker_of(browser), project)
    if Can.READ_PROJECT not in found.can:
        return _missing(request, browser)
    kind, _, name = rest.partition("/")
    config: ForgeConfig = request.app.state.config
    if not dash or kind in ("tree", "commits"):
        return _project(config, browser, found, name)
    if kind == "commit" and Can.READ_CODE in found.can:
        return _commit(request, browser, found, name)
    if kind in ("pipelines", "jobs") and Can.READ_PIPELINES in found.can and name.isdecimal():
        show = _job if kind == "jobs" else _pipeline
        return show(request, browser, session, found, int(name))
    return _missing(request, browser)


def _missing(request: Request, browser: Browser) -> Response:
    """GitLab sends people who are not signed in to its sign-in page, whatever the address."""
    if browser.user is None:
        return RedirectResponse("/users/sign_in", 302)
    return pages.error_page(request, 404)


def _namespace(request: Request, browser: Browser, session: Session, full_path: str) -> Response:
    """Projects of a group or a person."""
    asker = asker_of(browser)
    found = namespaces.find_namespace(session, full_path) if full_path else None
    if found is None:
        return _missing(request, browser)
    if found.kind == "group":
        try:
            access.find_group(session, asker, full_path)
        except errors.ForgeError:
            return _missing(request, browser)
    query = access.visible_projects(session, asker).where(
        Project.full_path.istartswith(f"{found.full_path}/", autoescape=True)
    )
    rows = session.scalars(query.order_by(Project.full_path).limit(SHOWN)).all()
    return _render("projects.html", browser, projects=rows, title=found.full_path)


def _project(config: ForgeConfig, browser: Browser, found: ProjectAccess, ref: str) -> Response:
    project = found.project
    repository = config.repository(project.id)
    commits, files, branches = [], [], []
    sha = None
    if Can.READ_CODE in found.can:
        sha = repositories.resolve(repository, ref or "HEAD")
        branches = repositories.branch_names(repository)
    if sha is not None:
        commits = history.log(repository, [sha], count=SHOWN)
        files = [entities.clean(one.path) for one in repositories.tree(repository, sha)]
    return _render(
        "project.html",
        browser,
        project=project,
        clone=f"{config.url}/{project.full_path}.git",
        commits=commits,
        files=files,
        branches=branches[:SHOWN],
        may_read=Can.READ_CODE in found.can,
    )


def _commit(request: Request, browser: Browser, found: ProjectAccess, sha: str) -> Response:
    config: ForgeConfig = request.app.state.config
    repository = config.repository(found.project.id)
    full = repositories.resolve(repository, sha)
    facts = history.commit(repository, full) if full else None
    if facts is None:
        return _missing(request, browser)
    if not is_commit_sha(sha):
        return RedirectResponse(f"/{found.project.full_path}/-/commit/{facts.sha}", 302)
    base = facts.parents[0] if facts.parents else history.EMPTY_TREE
    files, total = history.diff(repository, base, facts.sha, count=SHOWN)
    return _render(
        "commit.html", browser, project=found.project, commit=facts, files=files, total=total
    )


def _pipeline(
    request: Request, browser: Browser, session: Session, found: ProjectAccess, number: int
) -> Response:
    pipeline = session.get(Pipeline, number) if number < 2**63 else None
    if pipeline is None or pipeline.project_id != found.project.id:
        return _missing(request, browser)
    jobs = session.query(Job).where(Job.pipeline_id == pipeline.id).order_by(Job.id).all()
    return _render("pipeline.html", browser, project=found.project, pipeline=pipeline, jobs=jobs)


def _job(
    request: Request, browser: Browser, session: Session, found: ProjectAccess, number: int
) -> Response:
    job = session.get(Job, number) if number < 2**63 else None
    if job is None or job.project_id != found.project.id:
        return _missing(request, browser)
    config: ForgeConfig = request.app.state.config
    size = ci_traces.size(config, found.project.id, job.id)
    offset = max(size - MOST_LOG, 0)
    log = ci_traces.read(config, found.project.id, job.id, offset).decode("utf-8", "replace")
    return _render(
        "job.html", browser, project=found.project, job=job, log=plain(log), cut=offset > 0
    )


def plain(log: str) -> str:
    """A log without the escape sequences of terminals."""
    return _ESCAPES.sub("", log)

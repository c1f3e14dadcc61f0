"""The address of a commit: resolving it with the person's own rights, asking once, starting, going on.

A GET starts nothing. ``POST servers`` and the form or script of the launch page do.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response

from notebooks_service import default_urls, mounts, resources
from notebooks_service.domain import (
    AccessLevel,
    Commit,
    LaunchOutcome,
    Project,
    is_commit_sha,
    server_name,
)
from notebooks_service.errors import (
    Forbidden,
    HubUnavailable,
    InvalidRequest,
    NotFound,
)
from notebooks_service.gateway.hub import HubServer
from notebooks_service.web import pages
from notebooks_service.web.bodies import form, json_object
from notebooks_service.web.choices import (
    LFS,
    Choice,
    admitted_mounts,
    amounts_offered,
    check_mounts,
    chosen,
    pages_offered,
    question,
)
from notebooks_service.web.consent import starts_at_once
from notebooks_service.web.logs import last_lines
from notebooks_service.web.routing import COMMIT_ROUTE, REF_ROUTE, commit_address, ref_address
from notebooks_service.web.servers import remove, server_object, start_when_stopped
from notebooks_service.web.states import (
    chosen_mounts,
    opens_in,
    state_of,
    steps_of,
)
from notebooks_service.web.urls import (
    Reading,
    clean_path,
    commit_url,
    is_project_path,
    page_url,
    ref_url,
)
from notebooks_service.web.visits import Visit, visit

log = logging.getLogger(__name__)
router = APIRouter(tags=["launch"])

START_KEYS = frozenset({"namespace", "project", "commit_sha", "branch", "notebook", "image"})
SWITCHES = frozenset({"lfs_auto_fetch"})
AMOUNTS: dict[str, Any] = {
    resources.CPU: {"type": "number", "exclusiveMinimum": 0},
    resources.MEMORY: {"type": ["integer", "string"]},
    resources.GPU: {"type": "integer", "minimum": 0},
}
ASK = "ask"
"""In a link to a launch page: look first, although this person's servers of the project start at once."""
LOG_LINES = 60
LONGEST_IMAGE = 500
CODES_TO_REPEAT = frozenset({"hub_restarted"})


class NoServer(NotFound):
    """The commit is there and may be launched, but this person has no server for it."""

    code = "no_server"
    message = "You have no server for this commit. POST to this address to start one."


@dataclass(frozen=True)
class Target:
    """What is to be launched: one commit of one project, the branch to push to, what to open."""

    project: Project
    commit: Commit
    branch: str
    path: str = ""

    @property
    def server(self) -> str:
        return server_name(self.project.id, self.commit.sha, self.branch)

    def url(self, prefix: str) -> str:
        """The address that means exactly this."""
        branch = "" if self.branch == self.project.default_branch else self.branch
        return commit_url(prefix, self.project.path, self.commit.sha, self.path, branch)


async def find(visited: Visit, readings: Sequence[Reading], branch: str | None) -> Target:
    """The first reading that the forge knows, seen with this person's rights.

    Raises ``NotFound`` for hidden and missing alike, ``InvalidRequest`` for a branch that is none.
    """
    forge = visited.forge
    projects: dict[str, Project | None] = {}
    for reading in readings:
        project = await _project(visited, reading.project, projects)
        if project is None:
            continue
        try:
            commit = await visited.ask(forge.commit, project, reading.ref)
        except NotFound:
            continue
        if branch is None:
            branch = project.default_branch
        else:
            try:
                branch = (await visited.ask(forge.branch, project, branch)).name
            except NotFound:
                raise InvalidRequest("This project has no branch of that name.") from None
        if not branch:
            raise InvalidRequest(
                "This project has no default branch. Name one: add `?branch=` and its name to the address."
            )
        return Target(project, commit, branch, reading.path)
    raise NotFound


async def start(visited: Visit, target: Target, choice: Choice) -> tuple[HubServer, bool]:
    """Start the target's server with the person's own hub token; the second value: it is new.

    A server that stops is waited for; one that is there or on its way is the same server.
    """
    parts, person = visited.parts, visited.person
    await _check_access(visited, target.project)
    name = target.server
    options = {
        "notebooks": {
            "project": target.project.path,
            "commit": target.commit.sha,
            "branch": target.branch,
            **choice.options,
        }
    }
    display_name = f"{target.project.path} at {target.commit.sha[:8]}"[:255]
    new = await start_when_stopped(parts, person, name, display_name, options)
    present = await parts.hub.server(person.name, name)
    if present is None:
        raise HubUnavailable
    log.info(
        "launch user=%s server=%s project=%s commit=%s new=%s",
        person.name,
        name,
        target.project.path,
        target.commit.sha,
        new,
    )
    return present, new


@router.get(COMMIT_ROUTE, summary="The server of a commit, or its launch page")
async def show(request: Request, branch: str | None = None) -> Response:
    """JSON: your server for this commit, or 404 `no_server`. A browser gets the launch page."""
    async with visit(request) as visited:
        target = await find(visited, commit_address(request.scope).readings, branch or None)
        server = visited.server(target.server)
        if pages.wants_html(request):
            return await _page(request, visited, target, server)
        if server is None:
            raise NoServer
        return JSONResponse(server_object(visited.parts, visited.person, server, target.path))


@router.post(COMMIT_ROUTE, status_code=201, summary="Start the server of a commit")
async def start_here(request: Request, branch: str | None = None) -> Response:
    """201 with a new server, 200 with the one that is there or on its way."""
    async with visit(request) as visited:
        unknown = set(request.query_params) - {"branch"}
        if unknown:
            raise InvalidRequest(
                f"An address takes `branch` and nothing else, not {_names(unknown)}."
            )
        if request.headers.get("content-type", "").startswith("application/json"):
            extra = set(await json_object(request))
            if extra:
                raise InvalidRequest(
                    f"The address says it all; the body must be empty. Unknown: {_names(extra)}."
                )
        target = await find(visited, commit_address(request.scope).readings, branch or None)
        fields = await form(request)
        choice = await chosen(visited, target.project, target.commit, fields, None)
        server, new = await start(visited, target, choice)
        if not visited.person.by_bearer:
            await visited.parts.trust.agree(visited.person.name, target.project.id)
        if pages.wants_html(request):
            return RedirectResponse(target.url(visited.parts.prefix), status_code=303)
        body = server_object(visited.parts, visited.person, server, target.path)
        return JSONResponse(body, status_code=201 if new else 200)


@router.delete(COMMIT_ROUTE, status_code=204, summary="Send the server of a commit to the trash")
async def delete_here(request: Request, branch: str | None = None) -> Response:
    async with visit(request) as visited:
        target = await find(visited, commit_address(request.scope).readings, branch or None)
        server = visited.server(target.server)
        if server is None:
            raise NoServer("You have no server for this commit.")
        await remove(visited.parts, visited.person, server)
        return Response(status_code=204)


@router.get(REF_ROUTE, summary="Redirects a branch, tag or short sha to its commit")
async def show_ref(request: Request, path: str | None = None) -> Response:
    """302 to the commit's address. A branch that is not the default one stays asked for."""
    async with visit(request) as visited:
        parts, forge = visited.parts, visited.forge
        projects: dict[str, Project | None] = {}
        for reading in ref_address(request.scope).readings:
            project = await _project(visited, reading.project, projects)
            if project is None:
                continue
            branch = ""
            try:
                if is_commit_sha(reading.ref):
                    raise NotFound  # no branch of that name can pass for the commit
                found = await visited.ask(forge.branch, project, reading.ref)
                branch, sha = found.name, found.sha
            except NotFound:
                try:
                    sha = (await visited.ask(forge.commit, project, reading.ref)).sha
                except NotFound:
                    continue
            if branch == project.default_branch:
                branch = ""
            where = reading.path or clean_path(path or "")
            url = commit_url(parts.prefix, project.path, sha, where, branch)
            return RedirectResponse(url, status_code=302)
        raise NotFound


START_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["namespace", "project", "commit_sha"],
                    "additionalProperties": False,
                    "properties": {
                        **{key: {"type": "string"} for key in sorted(START_KEYS)},
                        "commit_sha": {"type": "string", "pattern": "^[0-9a-f]{40}$"},
                        **{key: {"type": "boolean"} for key in sorted(SWITCHES)},
                        mounts.OPTION: {"type": "array", "items": {"type": "string"}},
                        "serverOptions": {
                            "type": "object",
                            "additionalProperties": False,
                            "properties": {
                                **{key: {"type": "boolean"} for key in sorted(SWITCHES)},
                                **AMOUNTS,
                                default_urls.OPTION: {"enum": list(default_urls.TITLES)},
                            },
                        },
                    },
                }
            }
        },
    }
}


@router.post(
    "/servers",
    status_code=201,
    summary="Start a server",
    tags=["servers"],
    openapi_extra=START_BODY,
)
async def start_server(request: Request) -> Response:
    """Body: `namespace`, `project`, `commit_sha`, and if you like `branch`, `notebook` (a path to open),
    `image` (one of the forge's registry, by name; the launch fails if you may not have it) and
    `lfs_auto_fetch` (whether large files come too; also taken inside `serverOptions`). `serverOptions`
    may hold `cpu_request`, `mem_request`, `gpu_request` and `defaultUrl`, and `mounts` is a list of names of data, as `GET server_options`
    offers them.
    201 with a new server, 200 with the one that is there or on its way.
    """
    async with visit(request) as visited:
        body = await json_object(request)
        reading, branch, large_files = _asked(body)
        target = await find(visited, [reading], branch)
        choice = await chosen(visited, target.project, target.commit, {}, large_files)
        inside = body.get("serverOptions", {})
        amounts = resources.read(*(inside.get(name) for name in AMOUNTS))
        resources.check(visited.settings_in(target.project), amounts)
        data = mounts.read(body.get(mounts.OPTION))
        await check_mounts(visited, target.project, data)
        opens = default_urls.read(inside.get(default_urls.OPTION))
        default_urls.check(visited.parts.settings, opens)
        choice = replace(
            choice,
            image=body.get("image") or "",
            resources=amounts,
            mounts=data,
            default_url=opens,
        )
        server, new = await start(visited, target, choice)
        result = server_object(visited.parts, visited.person, server, target.path)
        return JSONResponse(result, status_code=201 if new else 200)


def _asked(body: dict[str, Any]) -> tuple[Reading, str | None, bool | None]:
    """What the body of ``POST servers`` asks for. Raises ``InvalidRequest`` naming what is wrong."""
    inside = body.get("serverOptions", {})
    if not isinstance(inside, dict):
        raise InvalidRequest("`serverOptions` must be an object.")
    unknown = set(body) - START_KEYS - SWITCHES - {"serverOptions", mounts.OPTION}
    unknown |= set(inside) - SWITCHES - AMOUNTS.keys() - {default_urls.OPTION}
    if unknown:
        raise InvalidRequest(f"These options are not taken here: {_names(unknown)}.")
    for key in ("namespace", "project", "commit_sha"):
        if not isinstance(body.get(key), str) or not body[key]:
            raise InvalidRequest(f"`{key}` is missing or no string.")
    large_files = body.get("lfs_auto_fetch", inside.get("lfs_auto_fetch"))
    if not isinstance(large_files, bool | None):
        raise InvalidRequest("`lfs_auto_fetch` must be true or false.")
    for key in ("branch", "notebook", "image"):
        if not isinstance(body.get(key), str | None):
            raise InvalidRequest(f"`{key}` must be a string.")
    image = body.get("image") or ""
    if len(image) > LONGEST_IMAGE or not image.isprintable():
        raise InvalidRequest("`image` must be an image's name.")
    project = f"{body['namespace']}/{body['project']}"
    if not is_project_path(project.split("/")):
        raise InvalidRequest("`namespace` and `project` together must be a project's full path.")
    if not is_commit_sha(body["commit_sha"]):
        raise InvalidRequest("`commit_sha` must be a full commit id: 40 lower-case hex digits.")
    try:
        path = clean_path(body.get("notebook") or "")
    except NotFound:
        raise InvalidRequest("`notebook` must be a path inside the repository.") from None
    return Reading(project, body["commit_sha"], path), body.get("branch") or None, large_files


async def _project(visited: Visit, path: str, known: dict[str, Project | None]) -> Project | None:
    if path not in known:
        try:
            known[path] = await visited.ask(visited.forge.project, path)
        except NotFound:
            known[path] = None
    return known[path]


async def _check_access(visited: Visit, project: Project) -> None:
    """Refuse early what the spawner would refuse: a level below the setting ``minimum_access``."""
    least = visited.parts.settings.minimum_access
    if least == "read":
        return
    level = await visited.ask(visited.forge.access, project)
    if level.number < AccessLevel(least).number:
        raise Forbidden(
            f"Here a launch needs the role “{least}” in the project, and yours is “{level.value}”."
            " Ask one of its maintainers."
        )


async def _page(
    request: Request, visited: Visit, target: Target, server: HubServer | None
) -> Response:
    """The launch page: on to the notebook, what is under way, what went wrong, or the question."""
    parts, forge = visited.parts, visited.forge
    state = state_of(server) if server else None
    if server and state == "running":
        return RedirectResponse(
            page_url(
                # Without hosts of their own, at whichever address of the hub the person is.
                parts.server_url(visited.person.name, server.name)
                if parts.settings.subdomains
                else server.url,
                target.project.folder,
                await _path_to_open(visited, target),
                opens_in(parts.settings, server),
            ),
            status_code=302,
        )
    record = server.record if server else None
    under_way = state in ("starting", "stopping")
    common: dict[str, Any] = {
        "target": target,
        "address": target.url(parts.prefix),
        "commits": pages.templates.filters["query"](
            f"{parts.prefix}projects/{target.project.id}/commits", ref=target.branch
        ),
        "explicit": ref_url(parts.prefix, target.project.path, target.commit.sha, target.path),
        "server": target.server,
        "state": state,
        "steps": steps_of(record),
        "record": record,
    }
    if under_way:
        return pages.render(request, "launch.html", mode="pending", auto=False, **common)
    outcome = record.outcome if record else None
    failed = outcome is LaunchOutcome.FAILED
    log_end = (
        await last_lines(visited, target.server, record, LOG_LINES) if record and failed else ""
    )
    level, refs, kind, trusted, granted, ask = await asyncio.gather(
        visited.ask(forge.access, target.project),
        visited.ask(forge.commit_refs, target.project, target.commit.sha),
        visited.ask(forge.path_kind, target.project, target.commit.sha, target.path),
        parts.trust.trusts(visited.person.name, target.project.id),
        parts.secrets.granted_names(visited.person.name, target.project.id),
        question(visited, target.project, target.commit, request.query_params.get(LFS)),
    )
    ignored = sorted(set(request.query_params) - {"branch", "path"})[:10]
    interrupted = bool(record and record.failure and record.failure.get("code") in CODES_TO_REPEAT)
    amounts = amounts_offered(visited.settings_in(target.project), server)
    data = await admitted_mounts(visited, target.project, level)
    ended_badly = outcome in (LaunchOutcome.FAILED, LaunchOutcome.CANCELLED) and not interrupted
    shown = {LFS} if ask.large_files is not None else set()
    if any(amounts.values()) or data or len(default_urls.choices(parts.settings)) > 1:
        shown.add(ASK)
    image = record.image if record else None
    moved = image is not None and "moved_to" in image.evidence
    at_once = starts_at_once(
        trusted=trusted, reachable=bool(refs), ignored=ignored, open_question=ask.open or moved
    )
    ignored = sorted(set(ignored) - shown)
    return pages.render(
        request,
        "launch.html",
        mode="failed" if failed else "ask",
        log_end=log_end,
        auto=at_once and not ended_badly,
        level=level,
        reachable=bool(refs),
        can_push=level.number >= AccessLevel.DEVELOPER.number,
        path_kind=kind,
        trusted=trusted,
        secrets=granted,
        ignored=ignored,
        question=ask,
        amounts=amounts,
        data=data,
        had_data=chosen_mounts(server) if server else (),
        default_urls=pages_offered(parts.settings, server),
        moved=image.evidence if image is not None and moved else None,
        runtime=parts.settings.runtime,
        reaches_out=parts.settings.runtime != "docker" or bool(parts.settings.allowed_egress),
        # What `notebooks up` found; a wall that is only asked for protects nobody yet.
        walled=parts.settings.walls not in ("auto", "none"),
        **common,
    )


async def _path_to_open(visited: Visit, target: Target) -> str:
    """The target's path, or the project's folder for one that leads out of the commit's tree."""
    if not target.path:
        return ""
    project, sha = target.project, target.commit.sha
    kind = await visited.ask(visited.forge.path_kind, project, sha, target.path)
    return "" if kind == "outside" else target.path


def _names(names: set[str]) -> str:
    return ", ".join(f"`{name[:40]}`" for name in sorted(names)[:5])

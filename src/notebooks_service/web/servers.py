"""People's servers: their state in our words, and the routes ``servers`` and ``servers/<name>``.

A person acts at the hub with their own token; the service's own only reads.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response

from notebooks_service import default_urls, resources
from notebooks_service.domain import is_commit_sha
from notebooks_service.errors import Conflict, InvalidRequest, NotFound
from notebooks_service.gateway.hub import HubServer
from notebooks_service.web import pages
from notebooks_service.web.bodies import form, json_object
from notebooks_service.web.parts import Parts
from notebooks_service.web.sign_in import Person
from notebooks_service.web.states import (
    asked_of,
    chosen_mounts,
    chosen_resources,
    message_of,
    notes_of,
    opens_in,
    served_of,
    state_of,
    steps_of,
    unsaved_of,
)
from notebooks_service.web.urls import commit_url, page_url, safe_next
from notebooks_service.web.visits import Visit, is_ours, visit

STOP_SECONDS = 60.0
START_TRIES = 4

router = APIRouter(tags=["servers"])


def server_object(
    parts: Parts, person: Person, server: HubServer, path: str = ""
) -> dict[str, Any]:
    """A server as the REST API shows it, in renku-notebooks' shape with our additions.

    ``url`` opens JupyterLab, at ``path`` if given.
    https://github.com/SwissDataScienceCenter/renku-notebooks
    """
    project, commit, branch = asked_of(server)
    namespace, _, name = project.rpartition("/")
    record = server.record
    image = record.image if record else None
    had = chosen_resources(server)
    details = [
        {
            "step": step.name,
            "status": {
                "done": "ready",
                "current": "executing",
                "failed": "failed",
                "cancelled": "failed",
                "waiting": "waiting",
            }[step.state],
            "message": step.message,
            "started": step.started,
        }
        for step in steps_of(record)
    ]
    return {
        "name": server.name,
        "url": page_url(
            parts.server_url(person.name, server.name),
            name,
            path,
            opens_in(parts.settings, server),
        ),
        "started": server.started,
        "last_activity": server.last_activity,
        "state": {"ready": server.ready, "pending": server.pending, "stopped": server.stopped},
        "status": {"state": state_of(server), "message": message_of(server), "details": details},
        "image": image.reference if image else None,
        "image_digest": image.digest if image else None,
        "image_origin": image.origin.value if image else None,
        "image_reason": image.reason if image else None,
        "image_evidence": dict(image.evidence) if image else None,
        "launch": record.id if record else None,
        "failure": dict(record.failure) if record and record.failure else None,
        "submodules": [
            {"path": each.at, "project": each.project, "left_out": each.reason or None}
            for each in (record.submodules if record else ())
        ],
        "notes": notes_of(record),
        "resources": {
            "requests": {
                **({"cpu": had.cpu} if had.cpu else {}),
                **({"memory": resources.in_words(had.memory)} if had.memory else {}),
                **({"gpu": had.gpu} if had.gpu else {}),
            }
        },
        "mounts": list(chosen_mounts(server)),
        "default_url": opens_in(parts.settings, server),
        "served": served_of(record) or None,
        "work": dict(record.work) if record and record.work is not None else None,
        "annotations": {
            "renku.io/username": person.name,
            "renku.io/namespace": namespace,
            "renku.io/projectName": name,
            "renku.io/gitlabProjectId": str(record.project_id) if record else "",
            "renku.io/branch": branch,
            "renku.io/commit-sha": commit,
            "renku.io/repository": f"{parts.settings.forge_url}/{project}",
        },
    }


def own_servers(visited: Visit) -> list[HubServer]:
    """The person's servers of ours: those at work first, then by last activity."""
    order = {"starting": 0, "running": 0, "stopping": 1, "failed": 2, "stopped": 2}
    servers = [server for server in visited.at_hub.servers if is_ours(server)]
    servers.sort(key=lambda server: server.last_activity or "", reverse=True)
    return sorted(servers, key=lambda server: order[state_of(server)])


async def stop(parts: Parts, person: Person, server: HubServer) -> None:
    """Stop a server or cancel its launch; the work stays. Stopped already is fine."""
    if state_of(server) in ("starting", "running"):
        await parts.hub.stop_server(person.hub_token, person.name, server.name)


async def remove(parts: Parts, person: Person, server: HubServer) -> None:
    """Stop a server if it runs, and send it to the trash; returns when the hub has forgotten it.

    Raises ``Conflict`` if that takes longer than ``STOP_SECONDS``.
    """
    await parts.hub.stop_server(person.hub_token, person.name, server.name, remove=True)
    end = time.monotonic() + STOP_SECONDS
    while await parts.hub.server(person.name, server.name) is not None:
        if time.monotonic() > end:
            raise Conflict(
                "The server is still stopping; it goes to the trash when it has stopped."
            )
        await asyncio.sleep(min(parts.poll_seconds, 0.25))


async def start_when_stopped(
    parts: Parts, person: Person, name: str, display_name: str, options: dict[str, Any]
) -> bool:
    """Start a server; one on its way down is waited for. True if this call did it.

    Raises ``Conflict`` if the stop takes longer than ``STOP_SECONDS``, or for another reason of the hub.
    """
    for tries_left in reversed(range(START_TRIES)):
        try:
            return await parts.hub.start_server(
                person.hub_token, person.name, name, display_name, options
            )
        except Conflict:
            # Somebody's stop came first. It may have ended by now, or another one may have begun.
            server = await parts.hub.server(person.name, name)
            if server is None or not tries_left:
                raise
        await _stopped(parts, person, name)
    raise AssertionError("unreachable")


async def _stopped(parts: Parts, person: Person, name: str) -> None:
    """Wait while a server is on its way down. Raises ``Conflict`` after ``STOP_SECONDS``."""
    end = time.monotonic() + STOP_SECONDS
    while (server := await parts.hub.server(person.name, name)) is not None:
        if state_of(server) != "stopping":
            return
        if time.monotonic() > end:
            raise Conflict("The server is still stopping; try again in a minute.")
        await asyncio.sleep(min(parts.poll_seconds, 0.25))


def address_of(parts: Parts, server: HubServer) -> str:
    """The launch address of a server; the same URL brings its work back."""
    project, commit, branch = asked_of(server)
    if not project or not is_commit_sha(commit):
        raise NotFound
    return commit_url(parts.prefix, project, commit, branch=branch)


@router.get("/servers", summary="Your servers, stopped ones too")
async def list_servers(
    request: Request,
    namespace: str | None = None,
    project: str | None = None,
    commit_sha: str | None = None,
    branch: str | None = None,
) -> Response:
    """`{"servers": {name: server}}`; the parameters narrow the list."""
    async with visit(request) as visited:
        servers = own_servers(visited)
        parts, person = visited.parts, visited.person
        if pages.wants_html(request):
            return pages.render(request, "servers.html", cards=[_card(visited, s) for s in servers])
        found = {server.name: server_object(parts, person, server) for server in servers}
    wanted = {
        "renku.io/namespace": namespace,
        "renku.io/projectName": project,
        "renku.io/commit-sha": commit_sha,
        "renku.io/branch": branch,
    }
    kept = {
        name: server
        for name, server in found.items()
        if all(value in (None, server["annotations"][key]) for key, value in wanted.items())
    }
    return JSONResponse({"servers": kept})


@router.get("/servers/{name}", summary="One of your servers")
async def show_server(request: Request, name: str) -> Response:
    """The server; a browser is sent to its launch page."""
    async with visit(request) as visited:
        server = _found(visited, name)
        if pages.wants_html(request):
            return RedirectResponse(address_of(visited.parts, server), status_code=302)
        return JSONResponse(server_object(visited.parts, visited.person, server))


STATE_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["state"],
                    "additionalProperties": False,
                    "properties": {"state": {"enum": ["hibernated", "running"]}},
                }
            }
        },
    }
}


@router.patch("/servers/{name}", summary="Stop or resume a server", openapi_extra=STATE_BODY)
async def change_server(request: Request, name: str) -> Response:
    """Body `{"state": "hibernated"}` stops the server, `{"state": "running"}` resumes it."""
    async with visit(request) as visited:
        body = await json_object(request)
        parts, person = visited.parts, visited.person
        server = _found(visited, name)
        if set(body) != {"state"} or body["state"] not in ("hibernated", "running"):
            raise InvalidRequest(
                'The body must be {"state": "hibernated"} or {"state": "running"}.'
            )
        if body["state"] == "hibernated":
            await stop(parts, person, server)
        else:
            await start_when_stopped(parts, person, name, server.display_name, dict(server.options))
        present = await parts.hub.server(person.name, name)
        if present is None:
            raise NotFound
        return JSONResponse(server_object(parts, person, present))


@router.delete("/servers/{name}", status_code=204, summary="Stop a server, send it to the trash")
async def delete_server(request: Request, name: str) -> Response:
    """204 when it is gone. A server that runs or starts is stopped first."""
    async with visit(request) as visited:
        await remove(visited.parts, visited.person, _found(visited, name))
        return Response(status_code=204)


@router.get("/servers/{name}/delete", include_in_schema=False)
async def confirm_delete(request: Request, name: str) -> Response:
    """The page that names what deleting would take away."""
    async with visit(request) as visited:
        card = _card(visited, _found(visited, name))
        days = visited.parts.settings.trash_days
        return pages.render(request, "delete.html", card=card, days=f"{days:g}")


@router.post("/servers/{name}/delete", include_in_schema=False)
async def delete_by_form(request: Request, name: str) -> Response:
    async with visit(request) as visited:
        await remove(visited.parts, visited.person, _found(visited, name))
        return RedirectResponse(f"{visited.parts.prefix}servers", status_code=303)


@router.post("/servers/{name}/stop", include_in_schema=False)
async def stop_by_form(request: Request, name: str) -> Response:
    """Stop or cancel; goes on to the form's ``next``, one of our own pages."""
    async with visit(request) as visited:
        await stop(visited.parts, visited.person, _found(visited, name))
        prefix = visited.parts.prefix
        following = (await form(request)).get("next") or f"{prefix}servers"
        return RedirectResponse(safe_next(prefix, following), status_code=303)


def _found(visited: Visit, name: str) -> HubServer:
    server = visited.server(name)
    if server is None:
        raise NotFound
    return server


def _card(visited: Visit, server: HubServer) -> dict[str, Any]:
    """What the pages show of a server."""
    parts = visited.parts
    project, commit, branch = asked_of(server)
    own = resources.for_whom(parts.settings, visited.person.name, project)
    try:
        address = address_of(parts, server)
    except NotFound:
        address = ""
    record = server.record
    return {
        "name": server.name,
        "state": state_of(server),
        "message": message_of(server),
        "project": project,
        "folder": project.rpartition("/")[2],
        "commit": commit,
        "branch": branch,
        "address": address,
        "choose": f"{address}{'&' if '?' in address else '?'}ask=resources"
        if address
        and (
            resources.most_of(own) != resources.NOTHING_CHOSEN
            or len(default_urls.choices(parts.settings)) > 1
        )
        else "",
        "base": f"{parts.prefix}servers/{quote(server.name, safe='')}",
        "log": f"{parts.prefix}logs/{quote(server.name, safe='')}",
        "last_activity": server.last_activity,
        "image": record.image if record else None,
        "notes": notes_of(record),
        "served": served_of(record),
        "unsaved": unsaved_of(record),
    }

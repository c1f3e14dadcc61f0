"""People's secrets: the routes ``secrets`` and ``secrets/<name>``, for programs and as pages.

No answer holds a value, not even of the person who wrote it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from datetime import UTC
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response

from notebooks_service.errors import ForgeUnavailable, InvalidRequest, NotFound
from notebooks_service.personal_secrets import (
    LARGEST,
    MOST,
    PLACE,
    check_name,
    read_form_paths,
    read_form_value,
    read_paths,
    read_value,
)
from notebooks_service.web import pages
from notebooks_service.web.bodies import allow, form, json_object
from notebooks_service.web.secret_store import Grant, Secret
from notebooks_service.web.visits import Visit, visit

log = logging.getLogger(__name__)
router = APIRouter(tags=["secrets"])

LARGEST_BODY = 8 * LARGEST
"""Of a form or of JSON, which take up to six bytes for one."""
SECRET_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "value": {"type": "string"},
                        "value_base64": {"type": "string"},
                        "projects": {"type": "array", "items": {"type": "string"}},
                    },
                }
            }
        },
    }
}


@router.get("/secrets", summary="Your secrets, without their values")
async def list_secrets(request: Request) -> Response:
    """`{"secrets": [{name, changed_at, projects: [{id, path}]}]}`. A browser gets the page."""
    async with visit(request) as visited:
        found = await visited.parts.secrets.all(visited.person.name)
        if pages.wants_html(request):
            return pages.render(
                request,
                "secrets.html",
                secrets=[_object(each) for each in found],
                place=PLACE,
                full=len(found) >= MOST,
                most=MOST,
            )
        return JSONResponse({"secrets": [_object(each) for each in found]})


@router.get("/secrets/{name}", summary="One of your secrets, without its value")
async def show_secret(request: Request, name: str) -> Response:
    """When it was changed, and the projects that it is granted to. A browser gets the page to change it."""
    async with visit(request) as visited:
        secret = await _found(visited, name)
        if pages.wants_html(request):
            grants = await asyncio.gather(*(_present(visited, each) for each in secret.grants))
            return pages.render(
                request,
                "secret.html",
                secret=_object(secret),
                paths=[each.path for each in grants],
                base=_address(visited, name),
                place=PLACE,
            )
        return JSONResponse(_object(secret))


@router.put(
    "/secrets/{name}", summary="Make or change one of your secrets", openapi_extra=SECRET_BODY
)
async def put_secret(request: Request, name: str) -> Response:
    """Body: the value as text in `value` or in `value_base64`, and `projects`, the full paths of those that
    it is granted to; what is left out stays as it is. 201 for a new one. Servers get it at their next start.
    """
    allow(request, LARGEST_BODY)
    async with visit(request) as visited:
        body = await json_object(request)
        if unknown := set(body) - {"value", "value_base64", "projects"}:
            raise InvalidRequest(f"These are not taken here: {', '.join(sorted(unknown))[:200]}.")
        value = read_value(body.get("value"), body.get("value_base64"))
        paths = read_paths(body["projects"]) if body.get("projects") is not None else None
        new = await _put(visited, name, value, paths)
        secret = await _found(visited, name)
        return JSONResponse(_object(secret), status_code=201 if new else 200)


@router.delete("/secrets/{name}", status_code=204, summary="Delete one of your secrets")
async def delete_secret(request: Request, name: str) -> Response:
    """Servers that run keep the file that they have until they stop."""
    async with visit(request) as visited:
        await _delete(visited, name)
        return Response(status_code=204)


# -- forms ---------------------------------------------------------------------------------------


@router.post("/secrets", include_in_schema=False)
async def add_by_form(request: Request) -> Response:
    allow(request, LARGEST_BODY)
    async with visit(request) as visited:
        fields = await form(request)
        name = fields.get("name", "").strip()
        value = read_form_value(fields.get("value", ""))
        if await visited.parts.secrets.one(visited.person.name, name) is not None:
            raise InvalidRequest(f"You have a secret `{name}` already; change that one.")
        await _put(visited, name, value, read_form_paths(fields.get("projects", "")))
        return RedirectResponse(f"{visited.parts.prefix}secrets", status_code=303)


@router.post("/secrets/{name}", include_in_schema=False)
async def change_by_form(request: Request, name: str) -> Response:
    """An empty value leaves the one that is there."""
    allow(request, LARGEST_BODY)
    async with visit(request) as visited:
        fields = await form(request)
        await _found(visited, name)
        value = read_form_value(fields.get("value", ""))
        paths = read_form_paths(fields["projects"]) if "projects" in fields else None
        await _put(visited, name, value, paths)
        return RedirectResponse(f"{visited.parts.prefix}secrets", status_code=303)


@router.get("/secrets/{name}/delete", include_in_schema=False)
async def confirm_delete(request: Request, name: str) -> Response:
    async with visit(request) as visited:
        secret = await _found(visited, name)
        return pages.render(
            request, "delete_secret.html", secret=_object(secret), base=_address(visited, name)
        )


@router.post("/secrets/{name}/delete", include_in_schema=False)
async def delete_by_form(request: Request, name: str) -> Response:
    async with visit(request) as visited:
        await _delete(visited, name)
        return RedirectResponse(f"{visited.parts.prefix}secrets", status_code=303)


# -- the pieces ----------------------------------------------------------------------------------


async def _put(visited: Visit, name: str, value: bytes | None, paths: Sequence[str] | None) -> bool:
    check_name(name)
    there = await visited.parts.secrets.one(visited.person.name, name)
    if there is None and value is None:
        raise InvalidRequest("A new secret needs a value.")
    grants = None
    if paths is not None:
        known = {each.path: each for each in there.grants} if there else {}
        # What was granted stays the project that it was, whatever has that path by now.
        grants = [known.get(path) or await _grant(visited, path) for path in paths]
    new = await visited.parts.secrets.put(visited.person.name, name, value, grants)
    log.info(
        "secret user=%s name=%s new=%s value=%s projects=%s",
        visited.person.name,
        name,
        new,
        "written" if value is not None else "kept",
        "kept" if grants is None else ",".join(str(each.project_id) for each in grants) or "none",
    )
    return new


async def _delete(visited: Visit, name: str) -> None:
    if not await visited.parts.secrets.delete(visited.person.name, name):
        raise NotFound
    log.info("secret user=%s name=%s deleted", visited.person.name, name)


async def _found(visited: Visit, name: str) -> Secret:
    secret = await visited.parts.secrets.one(visited.person.name, name)
    if secret is None:
        raise NotFound
    return secret


async def _grant(visited: Visit, path: str) -> Grant:
    """The project of that path, if this person may see it."""
    try:
        project = await visited.ask(visited.forge.project, path)
    except NotFound:
        raise InvalidRequest(
            f"There is no project `{path[:200]}` that you may see. Write its full path, groups included."
        ) from None
    return Grant(project.id, project.path)


async def _present(visited: Visit, grant: Grant) -> Grant:
    """The grant with the path that its project has now; as it is where that cannot be asked or seen."""
    try:
        project = await visited.ask(visited.forge.project, grant.project_id)
    except (NotFound, ForgeUnavailable):  # taking a grant back needs no forge
        return grant
    return Grant(grant.project_id, project.path)


def _address(visited: Visit, name: str) -> str:
    return f"{visited.parts.prefix}secrets/{quote(name, safe='')}"


def _object(secret: Secret) -> dict[str, Any]:
    """A secret as the REST API shows it, and the pages."""
    at = secret.changed_at
    at = at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    return {
        "name": secret.name,
        "changed_at": at.isoformat(timespec="seconds"),
        "projects": [{"id": each.project_id, "path": each.path} for each in secret.grants],
    }

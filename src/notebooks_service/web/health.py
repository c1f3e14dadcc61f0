"""What anybody may ask: is the service well, which version is it, what can it do."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import httpx
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from notebooks_service import __version__
from notebooks_service.errors import HubUnavailable
from notebooks_service.web import pages
from notebooks_service.web.parts import Parts, parts_of

log = logging.getLogger(__name__)

router = APIRouter(tags=["service"])


@router.get("/health", summary="Whether the service, the hub and the forge answer")
async def health(request: Request) -> Response:
    """200 as long as the service answers; `status` is `degraded` when hub or forge do not. `builds` is
    `wait` while disk or memory of this machine is beyond its high-water mark."""
    parts = parts_of(request)
    hub, forge = await parts.health.look(lambda: asyncio.gather(_hub(parts), _forge(parts)))
    well = hub["reachable"] and forge["reachable"]
    waits = await asyncio.to_thread(parts.gauge.waits, parts.settings.data)
    body = {
        "status": "ok" if well else "degraded",
        "hub": hub,
        "forge": forge,
        "builds": "wait" if waits else "go",
    }
    return JSONResponse({**body, "version": __version__})


@router.get("/version", summary="The service's version")
async def version(request: Request) -> Response:
    return JSONResponse({"name": "notebooks-service", "version": __version__})


@router.get("/openapi.json", include_in_schema=False)
async def openapi(request: Request) -> Response:
    return JSONResponse(request.app.openapi())


@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> Response:
    """The API on one plain page, made from the OpenAPI description."""
    schema = request.app.openapi()
    rows = [
        {
            "method": method.upper(),
            "path": path,
            "summary": operation.get("summary", ""),
            "description": operation.get("description", ""),
            "parameters": [p["name"] for p in operation.get("parameters", ())],
        }
        for path, operations in schema["paths"].items()
        for method, operation in operations.items()
    ]
    return pages.render(request, "docs.html", rows=rows)


async def _hub(parts: Parts) -> dict[str, Any]:
    try:
        numbers = await parts.hub.version()
    except HubUnavailable as error:
        log.warning("The hub does not answer: %s", type(error.__cause__ or error).__name__)
        return {"reachable": False}
    return {"reachable": True, "version": ".".join(map(str, numbers))}


async def _forge(parts: Parts) -> dict[str, Any]:
    """Any answer of its API will do; this asks without a token and may well be told 401."""
    try:
        answer = await parts.http.get(f"{parts.settings.forge_url}/api/v4/version")
    except httpx.HTTPError as error:
        log.warning("The forge does not answer: %s", type(error).__name__)
        return {"reachable": False}
    return {"reachable": answer.status_code < 500}

"""The application: FastAPI with our routes, the gateway below ``git/``, ``routing.Front`` around it.

Made by ``__main__`` for uvicorn, and by tests with their own transports.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.routing import Mount, Router
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from notebooks_service import __version__
from notebooks_service.gateway.app import gateway_routes
from notebooks_service.origins import origin
from notebooks_service.web import (
    errors,
    events,
    health,
    images,
    launches,
    logs,
    personal_secrets,
    projects,
    reach,
    server_options,
    servers,
    usage,
    user,
)
from notebooks_service.web.description import describe
from notebooks_service.web.parts import Parts
from notebooks_service.web.routing import Front

STATIC = Path(__file__).parent / "static"


class Static(StaticFiles):
    """Our stylesheet and scripts: kept by browsers, asked after at each use."""

    def file_response(self, *args: Any, **kwargs: Any) -> Any:
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        return response


def make_app(parts: Parts) -> ASGIApp:
    """The whole service as one ASGI application. Makes no call before the first request."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await parts.aclose()

    app = FastAPI(
        title="Notebooks service",
        version=__version__,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.state.parts = parts
    errors.install(app)
    for room in (
        launches,
        servers,
        events,
        logs,
        personal_secrets,
        projects,
        images,
        server_options,
        user,
        usage,
        health,
        reach,
    ):
        app.include_router(room.router)
    app.mount("/-/static", Static(directory=STATIC))
    git = gateway_routes(parts.hub, parts.settings, granted=parts.secrets.granted)
    app.router.routes.append(Mount("/git", app=Router(routes=git, redirect_slashes=False)))
    app.openapi = lambda: describe(app, parts.prefix)  # type: ignore[method-assign]
    own = origin(parts.settings.service_url) if parts.settings.subdomains else ""
    return Front(app, parts.prefix, own=own)

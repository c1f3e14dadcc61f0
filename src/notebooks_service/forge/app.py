"""The forge as an ASGI application: state, middleware, error bodies, routers.

``__main__`` runs it. ``ROUTERS`` is the list of modules with a ``router``; the CI's are added there.
"""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import unquote

from fastapi import FastAPI
from starlette.convertors import Convertor, register_url_convertor
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from notebooks_service.forge import errors, git_hooks, registry_tokens, web_hooks
from notebooks_service.forge.config import ForgeConfig
from notebooks_service.forge.database import Database
from notebooks_service.forge.lfs_store import open_store
from notebooks_service.forge.maintenance import Maintenance, clean_up, clean_up_large_files
from notebooks_service.forge.rate_limits import RateLimited
from notebooks_service.forge.registry import open_registry
from notebooks_service.forge.throttle import Throttle
from notebooks_service.forge.web_hook_delivery import Deliveries

log = logging.getLogger("notebooks_service.forge.access")

ROUTERS = (
    "routes_meta",
    "routes_users",
    "routes_groups",
    "routes_projects",
    "routes_members",
    "routes_repository",
    "routes_files",
    "routes_commits",
    "routes_refs",
    "routes_protection",
    "routes_variables",
    "routes_deploy_tokens",
    "routes_statuses",
    # The CI's (see ci_models.py); each module has a `router`.
    "routes_ci",
    "routes_artifacts",
    "routes_ci_jobs",
    "routes_runner",
    "routes_runners",
    "routes_tag_rules",
    "routes_runner_artifacts",
    "routes_registry",
    "routes_web_hooks",
    # Pages and git last: the routes of git and of project pages take any path.
    "routes_oauth",
    "routes_openid",
    "routes_registry_token",
    "routes_sign_in",
    "routes_lfs",
    "routes_git",
    "routes_pages",
)


class _Segment(Convertor[str]):
    """``{id:segment}``: one segment of the path, decoded, so ``group%2Fproject`` is one value."""

    regex = "[^/]+"

    def convert(self, value: str) -> str:
        return unquote(value)

    def to_string(self, value: str) -> str:
        raise NotImplementedError


class _MembersOf(_Segment):
    regex = "projects|groups"


register_url_convertor("segment", _Segment())
register_url_convertor("members_of", _MembersOf())


def create_app(config: ForgeConfig) -> FastAPI:
    """The application. Opens and migrates the database; needs no running server for that."""
    database = Database(config.database)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        clean_up(config, database)
        clean_up_large_files(database, app.state.lfs_store)
        git_hooks.install(config.hooks)
        registry_tokens.write_files(config)
        app.state.maintenance.start()
        app.state.deliveries.start()
        yield
        await app.state.deliveries.stop()
        await app.state.maintenance.stop()
        database.close()

    app = FastAPI(
        title="Forge",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    app.state.config = config
    app.state.database = database
    app.state.throttle = Throttle()
    app.state.registry = open_registry(config)
    app.state.maintenance = Maintenance(config)
    web_hooks.watch(database, config)
    app.state.deliveries = Deliveries(config, database)
    app.state.hook_throttle = Throttle(tries=5, seconds=60)
    app.state.lfs_store = open_store(config.lfs, config.large_files)
    errors.install(app)
    for name in ROUTERS:
        app.include_router(importlib.import_module(f"notebooks_service.forge.{name}").router)
    if config.rate_limits.on:
        app.add_middleware(RateLimited, database=database, limits=config.rate_limits)
    app.add_middleware(UndecodedSlashes)
    app.add_middleware(AccessLog)
    return app


class UndecodedSlashes:
    """Keeps ``%2F`` inside one path segment of the API: GitLab names projects ``group%2Fproject``.

    https://docs.gitlab.com/api/rest/#namespaced-paths
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/api/"):
            scope = dict(scope)
            path: str = scope["raw_path"].decode("ascii", "replace")
            scope["path"] = path.rstrip("/") if path.startswith("/api/v4/") else path
        await self.app(scope, receive, send)


class AccessLog:
    """One line for each answer: method, path, code, seconds. Never a query: it may hold secrets."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.monotonic()
        status = 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            path = scope["path"]
            if path.startswith("/-/sign_in/"):
                path = "/-/sign_in/[code]"
            # What runners send every second tells nothing.
            quiet = path == "/-/health" or path.startswith("/api/v4/jobs/")
            log.log(
                logging.DEBUG if quiet else logging.INFO,
                "%s %s %s %.3fs",
                scope["method"],
                path.encode("unicode_escape").decode("ascii"),
                status or "disconnected",
                time.monotonic() - began,
            )

"""Version, metadata, health, and the 501 of everything in the API that the forge does not have."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Request, Response
from sqlalchemy import text

from notebooks_service.forge import pages
from notebooks_service.forge.authentication import AsksAboutUsers
from notebooks_service.forge.database import SessionDep

router = APIRouter()

GITLAB_VERSION = "17.8.0-notebooks"
"""The GitLab whose API is followed; clients take the part before the dash as a number."""


@router.get("/api/v4/version")
def get_version(asker: AsksAboutUsers) -> dict[str, str]:
    """https://docs.gitlab.com/api/version/"""
    asker.need_user()
    return {"version": GITLAB_VERSION, "revision": version("notebooks-service")}


@router.get("/api/v4/metadata")
def get_metadata(asker: AsksAboutUsers) -> dict[str, Any]:
    """https://docs.gitlab.com/api/metadata/"""
    asker.need_user()
    return {
        "version": GITLAB_VERSION,
        "revision": version("notebooks-service"),
        "kas": {"enabled": False, "externalUrl": None, "version": None},
        "enterprise": False,
    }


@router.get("/-/health")
def health(session: SessionDep) -> Response:
    """Answers as soon as the database does. https://docs.gitlab.com/administration/monitoring/health_check/"""
    session.execute(text("SELECT 1"))
    return Response("GitLab OK", media_type="text/plain")


@router.get("/static/{name}")
def static(name: str, request: Request) -> Response:
    """The stylesheet and the icon; nothing else is ever read from disk here."""
    kinds = {"forge.css": "text/css", "forge.svg": "image/svg+xml"}
    if name not in kinds:
        return pages.error_page(request, 404)
    headers = {
        "Cache-Control": "public, max-age=31536000, immutable",
        "X-Content-Type-Options": "nosniff",
    }
    return Response(pages.static(name), media_type=kinds[name], headers=headers)

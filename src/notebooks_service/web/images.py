"""Whether an image can be used: ``images?image_url=``, as renku-notebooks has it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response

from notebooks_service.errors import NotFound
from notebooks_service.images.environments import EnvironmentStore
from notebooks_service.images.facts import find_image
from notebooks_service.web.parts import parts_of
from notebooks_service.web.visits import visit

router = APIRouter()


@router.get("/images", summary="Whether you may use an image", tags=["images"])
async def show_image(
    request: Request, image_url: Annotated[str, Query(min_length=1, max_length=500)]
) -> Response:
    """Of the forge's own registry, by its name: ``[host/]project:tag[@digest]``."""
    settings = parts_of(request).settings
    index = (
        EnvironmentStore(settings.data / "environments") if settings.runtime == "local" else None
    )
    async with visit(request) as visited:
        found = await visited.ask(find_image, index, visited.forge, image_url)
    if found.tag is None:
        raise NotFound("There is no such image, or none that you may use here.")
    return JSONResponse(
        {
            "image": found.tag.reference,
            "digest": found.tag.digest,
            "project_id": found.project_id,
        }
    )

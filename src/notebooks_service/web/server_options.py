"""What can be chosen for a server: ``server_options``, as renku-notebooks has it."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from notebooks_service import default_urls, mounts, resources
from notebooks_service.web.choices import admitted_mounts
from notebooks_service.web.visits import visit

router = APIRouter()


@router.get("/server_options", summary="What you may choose for a server", tags=["servers"])
async def show_options(request: Request, project: str | None = None) -> Response:
    """Each option with its default, and the values that are offered; what is not here cannot be chosen.
    With `project`, a full path, what holds for your servers of that project, and `mounts`: the data that they may have.
    """
    async with visit(request) as visited:
        known = await visited.ask(visited.forge.project, project) if project is not None else None
        settings = visited.settings_in(known)
        found = resources.offered(settings) | default_urls.offered(settings)
        if known is not None:
            data = await admitted_mounts(visited, known)
            found[mounts.OPTION] = mounts.offered(data)
        return JSONResponse(found)

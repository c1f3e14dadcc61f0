"""What can be chosen for a server: ``server_options``, as renku-notebooks has it."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from notebooks_service import resources
from notebooks_service.web.visits import visit

router = APIRouter()


@router.get("/server_options", summary="What you may choose for a server", tags=["servers"])
async def show_options(request: Request) -> Response:
    """Each option with its default, and the values that are offered; what is not here cannot be chosen."""
    async with visit(request) as visited:
        return JSONResponse(resources.offered(visited.parts.settings))

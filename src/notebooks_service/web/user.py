"""Who is signed in, and the way in and out: ``user``, ``oauth_callback``, ``-/sign-out``."""

from __future__ import annotations

import contextlib

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response

from notebooks_service.errors import HubUnavailable, NotSignedIn
from notebooks_service.web import pages
from notebooks_service.web.parts import parts_of
from notebooks_service.web.urls import safe_next
from notebooks_service.web.visits import visit

router = APIRouter()


@router.get("/user", summary="Who you are", tags=["user"])
async def show_user(request: Request) -> Response:
    async with visit(request) as visited:
        user = await visited.ask(visited.forge.user)
        return JSONResponse(
            {
                "name": visited.person.name,
                "forge": {
                    "url": visited.parts.settings.forge_url,
                    "id": user.id,
                    "username": user.username,
                    "name": user.name,
                    "email": user.email,
                },
            }
        )


@router.get("/oauth_callback", include_in_schema=False)
async def oauth_callback(request: Request) -> Response:
    return await parts_of(request).sign_in.finish(request)


@router.post("/-/sign-out", include_in_schema=False)
async def sign_out(request: Request) -> Response:
    """Forget the session here; the page links to the hub's own sign-out."""
    sign_in = parts_of(request).sign_in
    with contextlib.suppress(NotSignedIn, HubUnavailable):
        await sign_in.person(request)
    response = RedirectResponse(f"{parts_of(request).prefix}-/signed-out", status_code=303)
    return sign_in.end_session(request, response)


@router.get("/-/signed-out", include_in_schema=False)
async def signed_out(request: Request) -> Response:
    return pages.render(request, "signed_out.html", logout_url=parts_of(request).sign_in.logout_url)


@router.get("/-/sign-in-again", include_in_schema=False)
async def sign_in_again(request: Request, next: str = "") -> Response:
    """After the forge has refused the hub's token: out of the hub, and in again.

    Only our own cookie goes here; the hub's sign-out is a link that the person follows.
    """
    sign_in = parts_of(request).sign_in
    response = pages.render(
        request,
        "sign_in_again.html",
        logout_url=sign_in.logout_url,
        next_url=safe_next(parts_of(request).prefix, next),
    )
    return sign_in.end_session(request, response)

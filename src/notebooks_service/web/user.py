"""Who is signed in, and the way in and out: ``user``, ``oauth_callback``, ``-/sign-out``, ``-/sign-in-again``."""

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
    """Forget the session here, then the hub's own sign-out.

    That ends the hub's tokens of this browser, ours among them. There is no other way to end ours:
    the hub lets a token end itself only with a scope that could also make new ones.
    """
    await _by_our_own_page(request)
    sign_in = parts_of(request).sign_in
    return sign_in.end_session(request, RedirectResponse(sign_in.logout_url, status_code=303))


@router.get("/-/sign-in-again", include_in_schema=False)
async def sign_in_again(request: Request, next: str = "") -> Response:
    """After the forge has refused the hub's token: out of the hub, and in again.

    Changes nothing: the hub's sign-out is a link that the person follows, ours is the form.
    """
    return pages.render(
        request,
        "sign_in_again.html",
        logout_url=parts_of(request).sign_in.logout_url,
        next_url=safe_next(parts_of(request).prefix, next),
    )


@router.post("/-/sign-in-again", include_in_schema=False)
async def leave_and_go_on(request: Request, next: str = "") -> Response:
    """Forget the session here and go on to ``next``, which begins a new one."""
    await _by_our_own_page(request)
    where = safe_next(parts_of(request).prefix, next)
    response = RedirectResponse(where, status_code=303)
    return parts_of(request).sign_in.end_session(request, response)


async def _by_our_own_page(request: Request) -> None:
    """Raises ``csrf.CrossSite`` for a form of somebody else; a session that is over is no obstacle."""
    with contextlib.suppress(NotSignedIn, HubUnavailable):
        await parts_of(request).sign_in.person(request)

"""Signing in and out: the form, the single-use link, the session cookie."""

from __future__ import annotations

import logging
from typing import Annotated

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse

from notebooks_service.forge import namespaces, pages, sign_in
from notebooks_service.forge.config import ForgeConfig
from notebooks_service.forge.credentials import password_matches
from notebooks_service.forge.database import Database, SessionDep
from notebooks_service.forge.sign_in import Browser, BrowserDep
from notebooks_service.forge.throttle import Throttle, guess_keys

log = logging.getLogger(__name__)
router = APIRouter()

NOT_KEPT = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}


@router.get("/users/sign_in")
def form(request: Request, browser: BrowserDep, next: str = "/") -> Response:
    """The sign-in page; goes on at once for somebody who is signed in."""
    target = sign_in.local_target(next)
    if browser.user is not None:
        return RedirectResponse(target, 303, headers=NOT_KEPT)
    return _form(request, browser, target)


def _form(
    request: Request,
    browser: Browser,
    target: str,
    *,
    status: int = 200,
    problem: str = "",
    login: str = "",
) -> Response:
    response = pages.page(
        "sign_in.html", status, csrf=browser.csrf, target=target, problem=problem, login=login
    )
    if browser.fresh:
        sign_in.set_cookie(response, request.app.state.config, browser.cookie)
    return response


@router.post("/users/sign_in")
def submit(
    request: Request,
    session: SessionDep,
    browser: BrowserDep,
    login: Annotated[str, Form(alias="user[login]", max_length=255)] = "",
    password: Annotated[str, Form(alias="user[password]", max_length=1024)] = "",
    authenticity_token: Annotated[str, Form()] = "",
    next: Annotated[str, Form()] = "/",
) -> Response:
    """Checks name and password. Ten failures in ten minutes close a name at that address, but not
    for a browser that its person has used before."""
    target = sign_in.local_target(next)
    if not sign_in.form_is_ours(request, browser, authenticity_token):
        return _form(
            request, browser, target, status=422, problem="The page was too old. Please try again."
        )
    throttle: Throttle = request.app.state.throttle
    config: ForgeConfig = request.app.state.config
    address = request.client.host if request.client else "nowhere"
    user = namespaces.find_user(session, login)
    # The write lock is not for as long as a password takes to be checked.
    session.commit()
    known = sign_in.known_mark(request, config, user)
    keys = (f"browser {known}",) if known else guess_keys(login, address)
    if throttle.is_closed(*keys):
        log.warning("sign-in refused: too many failures from %s", address)
        return _form(
            request,
            browser,
            target,
            status=429,
            problem="Too many failed sign-ins. Wait ten minutes, then try again.",
        )
    right = password_matches(user.password_hash if user else None, password)
    if user is None or not right or user.state != "active":
        throttle.failed(*keys)
        log.warning("failed sign-in from %s", address)
        return _form(
            request, browser, target, status=401, problem="Invalid login or password.", login=login
        )
    throttle.succeeded(keys[0])
    cookie = sign_in.sign_in(session, user)
    sign_in.sign_out(session, browser.cookie)
    log.info("%s signed in from %s", user.username, address)
    response = RedirectResponse(target, 303, headers=NOT_KEPT)
    sign_in.set_cookie(response, config, cookie)
    sign_in.set_known(response, config, user)
    return response


@router.post("/users/sign_out")
def leave(
    request: Request,
    session: SessionDep,
    browser: BrowserDep,
    authenticity_token: Annotated[str, Form()] = "",
) -> Response:
    """Ends this browser's session; tokens of applications live on."""
    if not sign_in.form_is_ours(request, browser, authenticity_token):
        return pages.error_page(request, 422)
    sign_in.sign_out(session, browser.cookie)
    config: ForgeConfig = request.app.state.config
    response = RedirectResponse("/users/sign_in", 303, headers=NOT_KEPT)
    response.delete_cookie(config.cookie_name, path="/")
    return response


@router.get("/-/sign_in/{code}")
def by_link(code: str, request: Request, browser: BrowserDep) -> Response:
    """A single-use link of ``administration.sign_in_url``: signs in, goes on to its target."""
    database: Database = request.app.state.database
    with database.write() as session:
        found = sign_in.use_link(session, code, browser.user)
        if found is None:
            cookie = None
        else:
            user, target = found
            if browser.user is not None and browser.user.id != user.id:
                sign_in.sign_out(session, browser.cookie)
            cookie = sign_in.sign_in(session, user)
    if found is None or cookie is None:
        log.warning("a sign-in link that is unknown, used or too old")
        return pages.page("link_used.html", 403)
    log.info("%s signed in by link", user.username)
    response = RedirectResponse(target, 303, headers=NOT_KEPT)
    sign_in.set_cookie(response, request.app.state.config, cookie)
    sign_in.set_known(response, request.app.state.config, user)
    return response

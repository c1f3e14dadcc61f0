"""Signed-in browsers: the session cookie, the token of forms, single-use sign-in links.

Only hashes are stored. Used by the pages and by ``/oauth/authorize``.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Request, Response
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from notebooks_service.forge.config import ForgeConfig
from notebooks_service.forge.credentials import (
    KNOWN_BROWSERS,
    kept_secret,
    new_token,
    token_hash,
)
from notebooks_service.forge.database import SessionDep, now
from notebooks_service.forge.models import BrowserSession, SignInLink, User

SESSION_LIFETIME = timedelta(days=7)
KNOWN_LIFETIME = timedelta(days=365)
_LOCAL = re.compile(r"/(?![/\\])[^\x00-\x20\\\x7f]*\Z")


@dataclass(frozen=True)
class Browser:
    """The browser that asks: its cookie (a new one if it has none) and who is signed in."""

    cookie: str
    fresh: bool
    user: User | None
    signed_in_at: datetime | None = None

    @property
    def csrf(self) -> str:
        """The token of this browser's forms: only who knows the cookie can make it."""
        return hashlib.sha256(f"form:{self.cookie}".encode()).hexdigest()


def _browser(request: Request, session: SessionDep) -> Browser:
    config: ForgeConfig = request.app.state.config
    cookie = request.cookies.get(config.cookie_name, "")
    if not cookie:
        return Browser(new_token(), True, None)
    found = _signed_in(session, cookie)
    if found is None:
        return Browser(cookie, False, None)
    return Browser(cookie, False, found.user, found.created_at)


BrowserDep = Annotated[Browser, Depends(_browser)]


def user_of(session: Session, cookie: str) -> User | None:
    found = _signed_in(session, cookie)
    return found.user if found else None


def _signed_in(session: Session, cookie: str) -> BrowserSession | None:
    found = session.scalar(
        select(BrowserSession).where(BrowserSession.cookie_hash == token_hash(cookie))
    )
    if found is None or found.expires_at <= now() or found.user.state != "active":
        return None
    return found


def sign_in(session: Session, user: User) -> str:
    """A new signed-in session; returns its cookie. Always a new one: nobody can plant theirs."""
    cookie = new_token()
    moment = now()
    session.add(
        BrowserSession(
            user_id=user.id,
            cookie_hash=token_hash(cookie),
            created_at=moment,
            expires_at=moment + SESSION_LIFETIME,
        )
    )
    return cookie


def sign_out(session: Session, cookie: str) -> None:
    session.execute(delete(BrowserSession).where(BrowserSession.cookie_hash == token_hash(cookie)))


def set_cookie(response: Response, config: ForgeConfig, cookie: str) -> None:
    response.set_cookie(
        config.cookie_name,
        cookie,
        max_age=int(SESSION_LIFETIME.total_seconds()),
        httponly=True,
        secure=config.secure,
        samesite="lax",
        path="/",
    )


# A browser that its person has signed in with before is known by a cookie of its own. Wrong passwords
# of others, from the same address or not, do not keep it out.
# https://owasp.org/www-community/Slow_Down_Online_Guessing_Attacks_with_Device_Cookies


def _known_mac(config: ForgeConfig, user_id: int, mark: str) -> str:
    key = kept_secret(config.secrets / KNOWN_BROWSERS).encode()
    return hmac.new(key, f"{user_id}.{mark}".encode(), hashlib.sha256).hexdigest()


def set_known(response: Response, config: ForgeConfig, user: User) -> None:
    """From now on the browser is one that this person uses."""
    mark = new_token()[:16]
    response.set_cookie(
        f"{config.cookie_name}_known",
        f"{user.id}.{mark}.{_known_mac(config, user.id, mark)}",
        max_age=int(KNOWN_LIFETIME.total_seconds()),
        httponly=True,
        secure=config.secure,
        samesite="lax",
        path="/users/sign_in",
    )


def known_mark(request: Request, config: ForgeConfig, user: User | None) -> str | None:
    """Which of this person's browsers it is; None if they never signed in with it."""
    parts = request.cookies.get(f"{config.cookie_name}_known", "").split(".")
    if user is None or len(parts) != 3 or parts[0] != str(user.id):
        return None
    expected = _known_mac(config, user.id, parts[1])
    return parts[1] if hmac.compare_digest(expected.encode(), parts[2].encode()) else None


def form_is_ours(request: Request, browser: Browser, token: str) -> bool:
    """Whether a form was sent from a page that we made for this browser."""
    if browser.fresh or not hmac.compare_digest(browser.csrf.encode(), token.encode()):
        return False
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return False
    origin = request.headers.get("origin")
    return origin is None or urlsplit(origin).netloc == request.headers.get("host")


def local_target(target: str) -> str:
    """``target`` if it is an address on this forge, else the start page: no open redirects."""
    return target if _LOCAL.match(target) else "/"


def use_link(session: Session, code: str, signed_in: User | None) -> tuple[User, str] | None:
    """Who a sign-in link signs in, and where it leads; None for an unknown, old or used one.

    For the very person who is signed in already, a used link is just a link.
    """
    link = session.scalar(select(SignInLink).where(SignInLink.code_hash == token_hash(code)))
    if link is None:
        return None
    user = session.get_one(User, link.user_id)
    if user.state != "active":
        return None
    if link.used_at is not None or link.expires_at <= now():
        same = signed_in is not None and signed_in.id == user.id
        return (user, link.target) if same else None
    link.used_at = now()
    return user, link.target

"""Writes by a signed-in browser need our token and must come from our own pages; used by ``sign_in``.

Calls with a bearer token are exempt: no browser sends one by itself.
https://cheatsheetseries.owasp.org/cheatsheets/Cross-Site_Request_Forgery_Prevention_Cheat_Sheet.html
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Iterable
from urllib.parse import urlsplit

from notebooks_service.errors import NotebooksError

FIELD = "csrf_token"
HEADER = "x-csrf-token"


class CrossSite(NotebooksError):
    code = "csrf"
    status = 403
    message = (
        "This did not come from one of our own pages, or the page is older than your sign-in."
        " Go back, reload the page and try again."
    )


def token_for(key: bytes, session_id: str) -> str:
    """The token of one session; another session's does not fit."""
    digest = hmac.new(key, session_id.encode(), hashlib.sha256).digest()
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def is_own_origin(
    *, origin: str | None, fetch_site: str | None, host: str | None, page_url: str
) -> bool:
    """Whether a request's headers say that one of our own pages made it.

    ``Sec-Fetch-Site``, where a browser sends it, must be ``same-origin``; ``Origin``, unless it is
    ``null``, must be that of ``page_url`` (where our pages are) or of the host asked. At least one of the two must say so.
    https://developer.mozilla.org/docs/Web/HTTP/Headers/Sec-Fetch-Site
    """
    said_so = False
    if fetch_site is not None:
        if fetch_site != "same-origin":
            return False
        said_so = True
    if origin is not None and origin != "null":
        try:
            netloc = urlsplit(origin).netloc.lower()
        except ValueError:
            return False
        if not netloc or netloc not in (urlsplit(page_url).netloc.lower(), (host or "").lower()):
            return False
        said_so = True
    return said_so


def check(expected: Iterable[str], given: str | None) -> None:
    """Raises ``CrossSite`` unless ``given`` is one of the session's tokens."""
    said = (given or "").encode("utf-8", "replace")
    if not any(hmac.compare_digest(token.encode(), said) for token in expected):
        raise CrossSite

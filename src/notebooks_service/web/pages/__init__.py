"""What all pages share: templates, the choice between page and JSON, the request's id."""

from __future__ import annotations

import re
import secrets
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlencode

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from notebooks_service import __version__
from notebooks_service.web.parts import parts_of
from notebooks_service.web.urls import commit_url

_ACCEPTED = re.compile(r"\s*([\w*.+-]+/[\w*.+-]+)\s*(?:;[^,]*?q=([0-9.]+))?", re.ASCII)

templates = Environment(
    loader=PackageLoader("notebooks_service.web", "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(request: Request, template: str, status: int = 200, **values: Any) -> HTMLResponse:
    """The page; every page about a person is kept out of caches."""
    parts = parts_of(request)
    html = templates.get_template(template).render(
        prefix=parts.prefix,
        version=__version__,
        signed_in=parts.sign_in.signed_in_name(request),
        csrf_token=parts.sign_in.csrf_token(request),
        request_id=request_id(request),
        status=status,
        **values,
    )
    return HTMLResponse(html, status_code=status, headers={"Cache-Control": "no-store"})


def wants_html(request: Request) -> bool:
    """Whether the answer should be a page: ``Accept`` prefers HTML and no token was sent."""
    if "authorization" in request.headers:
        return False
    quality = {"text/html": 0.0, "application/json": 0.0}
    for kind, q in _ACCEPTED.findall(request.headers.get("accept", "")):
        if kind in quality:
            quality[kind] = float(q) if re.fullmatch(r"[01](\.\d*)?", q) else 1.0
    return quality["text/html"] > quality["application/json"]


def request_id(request: Request) -> str:
    """The id under which our log knows this request."""
    kept: str | None = request.scope.get("notebooks.request_id")
    if kept is None:
        kept = secrets.token_hex(6)
        request.scope["notebooks.request_id"] = kept
    return kept


def here(request: Request) -> str:
    """This request's own address, encoded as it came."""
    raw = request.scope.get("notebooks.raw_path") or request.scope.get("raw_path") or b"/"
    query = request.scope.get("query_string") or b""
    return (raw + (b"?" + query if query else b"")).decode("latin-1")


def _web_link(url: str) -> str:
    """A forge's URL, if it is one to follow: anything but http and https becomes none."""
    return url if url.startswith(("https://", "http://")) else ""


def _when(text: str | None) -> str:
    """An ISO time as people read it, in UTC."""
    try:
        at = datetime.fromisoformat((text or "").replace("Z", "+00:00"))
    except ValueError:
        return ""
    at = at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    return f"{at.day} {at:%b %Y, %H:%M} UTC"


def _ticks(text: str) -> Markup:
    """A sentence of ours, with what stands between backticks as code; all of it escaped."""
    parts = text.split("`")
    shown = [
        Markup("<code>{}</code>").format(part) if index % 2 else Markup.escape(part)
        for index, part in enumerate(parts)
    ]
    return Markup("").join(shown)


def _query(url: str, **values: object) -> str:
    """``url`` with a query of those values that are there."""
    given = {key: str(value) for key, value in values.items() if value not in (None, "")}
    return f"{url}?{urlencode(given)}" if given else url


templates.filters.update(
    ticks=_ticks,
    web_link=_web_link,
    when=_when,
    segment=lambda text: quote(text, safe=""),
    query=_query,
)
templates.globals["commit_url"] = commit_url

"""Renders the forge's few HTML pages: templates, escaping, security headers."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

HERE = Path(__file__).parent

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; object-src 'none'",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    # Forms need an Origin, which "no-referrer" would take away.
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
}

_STYLE = (HERE / "static" / "forge.css").read_bytes()
STYLE_VERSION = hashlib.sha256(_STYLE).hexdigest()[:12]
"""In the stylesheet's address, so that browsers may keep it for ever."""

_templates = Environment(
    loader=FileSystemLoader(HERE / "templates"),
    autoescape=select_autoescape(default=True, default_for_string=True),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.globals["style_version"] = STYLE_VERSION


def static(name: str) -> bytes:
    """One of our own static files, by a name that the caller has checked."""
    return (HERE / "static" / name).read_bytes()


def page(
    template: str, status: int = 200, headers: dict[str, str] | None = None, **values: Any
) -> HTMLResponse:
    """The page that ``template`` makes of ``values``; all of them are text, never markup."""
    values.setdefault("person", None)
    values.setdefault("csrf", "")
    text = _templates.get_template(template).render(**values)
    return HTMLResponse(text, status, headers={**SECURITY_HEADERS, **(headers or {})})


SENTENCES = {
    400: "The request is not one that the forge understands.",
    401: "Sign in first.",
    403: "You may see this, but not do it.",
    404: "The page could not be found or you don't have permission to view it.",
    405: "This address does not take that kind of request.",
    422: "The form is too old or came from elsewhere. Go back, reload, and try again.",
    429: "Too many tries. Wait a few minutes, then try again.",
    501: "The embedded forge has no such page.",
}


def error_page(request: Request, status: int, sentence: str = "") -> HTMLResponse:
    """An error as a page. The sentence tells what to do."""
    own = SENTENCES.get(status, "Something went wrong.")
    return page(
        "error.html", status, code=status, sentence=own if status == 404 else sentence or own
    )

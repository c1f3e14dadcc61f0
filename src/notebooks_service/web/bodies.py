"""Reads the small bodies of writes, within a limit; called by routes and by the CSRF check."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qsl

from fastapi import Request

from notebooks_service.errors import InvalidRequest, NotebooksError

LARGEST_BODY = 64 * 1024


class BodyTooLarge(NotebooksError):
    code = "too_large"
    status = 413
    message = "The request's body is larger than any that we need (64 KiB)."


def allow(request: Request, largest: int) -> None:
    """Take a body of this many bytes; before anything reads it."""
    request.state.largest_body = largest


async def body(request: Request) -> bytes:
    """The request's body; read once, then kept with the request. Raises ``BodyTooLarge``."""
    kept: bytes | None = getattr(request.state, "body", None)
    if kept is None:
        kept = b""
        largest = getattr(request.state, "largest_body", LARGEST_BODY)
        async for chunk in request.stream():
            kept += chunk
            if len(kept) > largest:
                raise BodyTooLarge(
                    f"The request's body is larger than any that we need ({largest // 1024} KiB)."
                )
        request.state.body = kept
    return kept


async def form(request: Request) -> dict[str, str]:
    """The fields of an HTML form (urlencoded); empty for any other body."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/x-www-form-urlencoded":
        return {}
    text = (await body(request)).decode("utf-8", "replace")
    try:
        return dict(parse_qsl(text, keep_blank_values=True, max_num_fields=50))
    except ValueError:
        raise InvalidRequest("The form has too many fields.") from None


async def json_object(request: Request) -> dict[str, Any]:
    """The JSON object in the body; no body is an empty object. Raises ``InvalidRequest``."""
    raw = await body(request)
    if not raw.strip():
        return {}
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        raise InvalidRequest("The body is no valid JSON.") from None
    if not isinstance(value, dict):
        raise InvalidRequest("The body must be a JSON object.")
    return value

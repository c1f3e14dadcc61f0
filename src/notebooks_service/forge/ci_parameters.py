"""Parameters of the CI's routes, wherever GitLab takes them from: query, form or JSON body."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import Depends, Request

from notebooks_service.forge import errors

BODY_LIMIT = 1024 * 1024
LARGE_BODY_LIMIT = 64 * 1024 * 1024
"""For calls that bring the content of files."""


async def read_body(request: Request, limit: int = BODY_LIMIT) -> bytes:
    """The whole body. Raises GitLab's 413 if it is longer than ``limit`` bytes."""
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise errors.ForgeError(413, {"message": "413 Request Entity Too Large"})
        parts.append(part)
    return b"".join(parts)


async def _parameters(request: Request) -> dict[str, Any]:
    return await _read(request, BODY_LIMIT)


async def _large_parameters(request: Request) -> dict[str, Any]:
    return await _read(request, LARGE_BODY_LIMIT)


async def _read(request: Request, limit: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in request.query_params.multi_items():
        if key.endswith("[]"):
            found.setdefault(key[:-2], []).append(value)
        else:
            found[key] = value
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in ("application/x-www-form-urlencoded", "multipart/form-data"):
        async with request.form(max_fields=1000, max_files=0) as form:
            for key, item in form.multi_items():
                if isinstance(item, str):
                    found[key] = item
        return found
    body = await read_body(request, limit)
    if not body.strip():
        return found
    try:
        sent = json.loads(body)
    except (ValueError, RecursionError):
        raise errors.ForgeError(400, {"error": "The JSON body cannot be read"}) from None
    if not isinstance(sent, dict):
        raise errors.ForgeError(400, {"error": "The JSON body is no object"})
    return {**found, **sent}


Parameters = Annotated[dict[str, Any], Depends(_parameters)]
"""Everything that was sent, as one mapping; values are unchecked."""
LargeParameters = Annotated[dict[str, Any], Depends(_large_parameters)]


def text(parameters: dict[str, Any], name: str, *, limit: int = 65_536) -> str | None:
    """A parameter as text. Raises GitLab's 400 for another type."""
    value = parameters.get(name)
    if value is None:
        return None
    if isinstance(value, (dict, list)) or len(str(value)) > limit or not _storable(str(value)):
        raise errors.ForgeError(400, {"error": f"{name} is invalid"})
    return str(value)


def _storable(value: str) -> bool:
    """JSON can hold halves of surrogate pairs, and NUL, which neither git nor SQLite takes."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in value


def flag(parameters: dict[str, Any], name: str, default: bool | None = False) -> bool | None:
    """A parameter as a boolean, in any of the forms that GitLab reads."""
    value = parameters.get(name)
    if value is None or value == "":
        return default
    word = str(value).lower()
    if word in ("true", "t", "1", "yes", "on"):
        return True
    if word in ("false", "f", "0", "no", "off"):
        return False
    raise errors.ForgeError(400, {"error": f"{name} is invalid"})


def words(parameters: dict[str, Any], name: str) -> list[str]:
    """A parameter that may come once, as a list, as ``name[]`` or separated by commas."""
    value = parameters.get(name, parameters.get(f"{name}[]"))
    if value is None:
        return []
    items = value if isinstance(value, list) else str(value).split(",")
    if not all(isinstance(item, (str, int)) for item in items):
        raise errors.ForgeError(400, {"error": f"{name} is invalid"})
    return [str(item).strip() for item in items if str(item).strip()]


def number(parameters: dict[str, Any], name: str) -> int | None:
    """A parameter as a whole number."""
    value = parameters.get(name)
    if value is None or value == "":
        return None
    try:
        return int(str(value))
    except ValueError:
        raise errors.ForgeError(400, {"error": f"{name} is invalid"}) from None

"""Git LFS's JSON between a server and the forge, read and written anew: nothing passes as it came.

Pure functions, called by ``lfs.py``. What a forge answers may be anything; only what was asked for,
in the form that the protocol says, gets to a server, and in actions only addresses of ours.
https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard
from urllib.parse import urlsplit

from notebooks_service.errors import ForgeUnavailable, InvalidRequest

Kind = Literal["download", "upload", "verify"]

MOST_OBJECTS = 10_000
LONGEST_ADDRESS = 4096
MOST_HEADERS = 20
LONGEST_TEXT = 4096

_OID = re.compile(r"[0-9a-f]{64}\Z")
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}\Z")
_HEADER_VALUE = re.compile(r"[\x20-\x7e]{0,4096}\Z")
_OURS_TO_SAY = frozenset(
    {
        "connection", "content-length", "cookie", "expect", "host", "keep-alive", "proxy-authorization",
        "proxy-connection", "range", "te", "trailer", "transfer-encoding", "upgrade",
        "accept-encoding", "content-encoding",
    }
)  # fmt: skip
"""Headers that an action may not set: they are the transfer's own, or would change the connection."""

NOT_LFS = "The forge answered a question about large files with something that is no Git LFS."
OBJECT_ERRORS: Mapping[int, str] = {
    401: "The forge does not accept this person's sign-in for this file.",
    403: "The forge does not let you do this with this file.",
    404: "The forge does not have this file, or you may not read it. Whoever committed it has to run `git lfs push --all`.",
    409: "The forge names files by another algorithm.",
    410: "This file was removed from the forge.",
    413: "This file is larger than the forge takes.",
    422: "The forge does not accept this file's name or size.",
    507: "The forge's disk has no room for this file.",
}


@dataclass(frozen=True)
class BatchAsked:
    """What a server asks for; ``ref`` may be empty. ``sizes`` is by oid."""

    operation: Literal["download", "upload"]
    ref: str
    sizes: Mapping[str, int]

    @property
    def body(self) -> dict[str, Any]:
        """The request as the gateway asks it."""
        body: dict[str, Any] = {
            "operation": self.operation,
            "transfers": ["basic"],
            "objects": [{"oid": oid, "size": size} for oid, size in self.sizes.items()],
            "hash_algo": "sha256",
        }
        return {**body, "ref": {"name": self.ref}} if self.ref else body


@dataclass(frozen=True)
class Action:
    """One transfer at the forge, as the forge described it: what a sealed address stands for."""

    kind: Kind
    oid: str
    size: int
    href: str
    headers: tuple[tuple[str, str], ...] = ()


Seal = Callable[[Action, float | None], str]
"""Makes the address that the server gets; the number is how long the forge says it is good, if it does."""


def read_batch(body: object) -> BatchAsked:
    """What a server asks for. Raises ``InvalidRequest`` for any other shape."""
    if not isinstance(body, dict):
        raise InvalidRequest("A batch request is a JSON object.")
    operation, objects, ref = body.get("operation"), body.get("objects"), body.get("ref")
    if operation not in ("download", "upload"):
        raise InvalidRequest("The operation of a batch request is `download` or `upload`.")
    if body.get("hash_algo", "sha256") != "sha256":
        raise InvalidRequest("Large files are named by their SHA-256 here.")
    if not isinstance(objects, list) or not 0 < len(objects) <= MOST_OBJECTS:
        raise InvalidRequest(f"A batch request asks for 1 to {MOST_OBJECTS} objects.")
    sizes: dict[str, int] = {}
    for item in objects:
        oid, size = (item.get("oid"), item.get("size")) if isinstance(item, dict) else (None, None)
        if not isinstance(oid, str) or not _OID.match(oid) or not _is_size(size):
            raise InvalidRequest("An object is asked for by a SHA-256 in hex digits and a size.")
        if sizes.setdefault(oid, size) != size:
            raise InvalidRequest("One object is asked for with two sizes.")
    name = ref.get("name") if isinstance(ref, dict) else None
    return BatchAsked(operation, name if _is_text(name) else "", sizes)


def rewrite_batch(
    asked: BatchAsked, answer: object, seal: Seal, header: Mapping[str, str]
) -> dict[str, Any]:
    """The answer for the server: every address is one of ours, every sentence too.

    ``header`` is what the server has to send to our addresses. Raises ``ForgeUnavailable`` for an
    answer that speaks of other objects than were asked for, or is no answer.
    """
    objects = answer.get("objects") if isinstance(answer, dict) else None
    if not isinstance(answer, dict) or not isinstance(objects, list):
        raise ForgeUnavailable(NOT_LFS)
    if answer.get("transfer") not in (None, "basic"):
        raise ForgeUnavailable(NOT_LFS)
    given: dict[str, dict[str, Any]] = {}
    for item in objects:
        oid = item.get("oid") if isinstance(item, dict) else None
        if not isinstance(oid, str) or oid not in asked.sizes or oid in given:
            raise ForgeUnavailable(NOT_LFS)
        given[oid] = item
    return {
        "transfer": "basic",
        "objects": [
            _object(asked.operation, oid, size, given.get(oid), seal, header)
            for oid, size in asked.sizes.items()
        ],
        "hash_algo": "sha256",
    }


def _object(
    operation: str,
    oid: str,
    size: int,
    given: Mapping[str, Any] | None,
    seal: Seal,
    header: Mapping[str, str],
) -> dict[str, Any]:
    one: dict[str, Any] = {"oid": oid, "size": size}
    if given is None:
        return {**one, "error": {"code": 502, "message": "The forge said nothing of this file."}}
    error, actions = given.get("error"), given.get("actions")
    if error is not None:
        said = error.get("code") if isinstance(error, dict) else None
        code = said if _is_size(said) and 400 <= said < 600 else 502
        message = OBJECT_ERRORS.get(code, f"The forge refused this file with status {code}.")
        return {**one, "error": {"code": code, "message": message}}
    if given.get("size", size) != size:
        message = f"This file has another size at the forge than the {size} bytes asked for."
        return {**one, "error": {"code": 422, "message": message}}
    if actions is None and operation == "upload":
        return one  # The forge has it.
    kinds: tuple[Kind, ...] = ("download",) if operation == "download" else ("upload", "verify")
    if not isinstance(actions, dict) or not isinstance(actions.get(kinds[0]), dict):
        raise ForgeUnavailable(NOT_LFS)
    rewritten = {}
    for kind in kinds:
        if isinstance(action := actions.get(kind), dict):
            read = read_action(kind, oid, size, action)
            href = seal(read, _lifetime(action.get("expires_in")))
            rewritten[kind] = {"href": href, "header": dict(header)}
    return {**one, "authenticated": True, "actions": rewritten}


def read_action(kind: Kind, oid: str, size: int, action: Mapping[str, Any]) -> Action:
    """A transfer that the forge describes. Raises ``ForgeUnavailable`` for what cannot be one."""
    href, header = action.get("href"), action.get("header") or {}
    if not isinstance(href, str) or not is_address(href):
        raise ForgeUnavailable(NOT_LFS)
    if not isinstance(header, dict) or len(header) > MOST_HEADERS:
        raise ForgeUnavailable(NOT_LFS)
    kept = []
    for name, value in header.items():
        if not _HEADER_NAME.match(name) or not isinstance(value, str):
            raise ForgeUnavailable(NOT_LFS)
        if not _HEADER_VALUE.match(value):
            raise ForgeUnavailable(NOT_LFS)
        if name.lower() not in _OURS_TO_SAY:
            kept.append((name.lower(), value))
    return Action(kind, oid, size, href, tuple(kept))


def is_address(text: str) -> bool:
    """Whether this is an absolute http(s) address without credentials, fragments and ways up."""
    if len(text) > LONGEST_ADDRESS or not text.isascii() or not text.isprintable() or " " in text:
        return False
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return False
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        return False
    path = parts.path.lower().replace("%2e", ".")
    climbs = any(segment in (".", "..") for segment in re.split(r"/|%2f|%5c", path))
    return not ("@" in parts.netloc or parts.fragment or "\\" in text or climbs)


# Locks: https://github.com/git-lfs/git-lfs/blob/main/docs/api/locking.md


def lock_request(body: object, *keys: str) -> dict[str, Any]:
    """Those of ``keys`` that a server's request has, in their right form."""
    given = body if isinstance(body, dict) else {}
    asked: dict[str, Any] = {}
    for key in keys:
        value = given.get(key)
        if key == "ref":
            name = value.get("name") if isinstance(value, dict) else None
            if _is_text(name):
                asked["ref"] = {"name": name}
        elif key == "force":
            if value is True:
                asked["force"] = True
        elif _is_text(value) or _is_size(value):
            asked[key] = value
    return asked


def lock_answer(answer: object) -> dict[str, Any]:
    """What the protocol knows of in a forge's answer about locks; the rest stays behind."""
    given = answer if isinstance(answer, dict) else {}
    kept: dict[str, Any] = {}
    if (lock := _lock(given.get("lock"))) is not None:
        kept["lock"] = lock
    for key in ("locks", "ours", "theirs"):
        if isinstance(given.get(key), list):
            locks = [_lock(item) for item in given[key][:MOST_OBJECTS]]
            kept[key] = [lock for lock in locks if lock is not None]
    if _is_text(given.get("next_cursor")):
        kept["next_cursor"] = given["next_cursor"]
    if not kept:
        raise ForgeUnavailable(NOT_LFS)
    return kept


def _lock(item: object) -> dict[str, Any] | None:
    if not isinstance(item, dict) or not _is_text(item.get("path")):
        return None
    number = item.get("id")
    if not (_is_text(number) or _is_size(number)):
        return None
    owner = item.get("owner")
    name = owner.get("name") if isinstance(owner, dict) else None
    lock: dict[str, Any] = {"id": str(number), "path": item["path"]}
    if _is_text(item.get("locked_at")):
        lock["locked_at"] = item["locked_at"]
    if _is_text(name):
        lock["owner"] = {"name": name}
    return lock


def _is_size(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_text(value: object) -> TypeGuard[str]:
    """A text of the protocol: not empty, not long, and one that can be written down."""
    if not isinstance(value, str) or not 0 < len(value) <= LONGEST_TEXT:
        return False
    return not any(ord(c) < 32 or ord(c) == 127 or 0xD800 <= ord(c) < 0xE000 for c in value)


def _lifetime(value: object) -> float | None:
    return float(value) if isinstance(value, int) and _is_size(value) and value else None

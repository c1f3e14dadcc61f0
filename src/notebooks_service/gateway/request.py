"""Reads what a server's git asks for out of a request: pure functions over plain data.

Called by ``gateway/app.py``. The endpoints are those of git's smart HTTP protocol:
https://git-scm.com/docs/http-protocol
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote

from notebooks_service.errors import NotFound, NotSignedIn

Service = Literal["git-upload-pack", "git-receive-pack"]
UPLOAD_PACK: Service = "git-upload-pack"
RECEIVE_PACK: Service = "git-receive-pack"
LFS_MARK = "/info/lfs/"


@dataclass(frozen=True)
class GitRequest:
    """One request of git: ``refs`` is the first of an operation, the others carry packs."""

    project: str
    service: Service
    refs: bool

    @property
    def method(self) -> str:
        return "GET" if self.refs else "POST"

    def target(self, project: str) -> str:
        """Path and query of this request at a forge that has the project at ``project``."""
        repository = f"/{quote(project, safe='/')}.git"
        if self.refs:
            return f"{repository}/info/refs?service={self.service}"
        return f"{repository}/{self.service}"


@dataclass(frozen=True)
class LfsRequest:
    """A request of git-lfs; ``endpoint`` is what follows ``info/lfs/``."""

    project: str
    endpoint: str


def read_request(method: str, path: str, query: str) -> GitRequest | LfsRequest:
    """What is asked for at ``path``, decoded once and relative to the gateway's own URL.

    ``query`` is the query string as it came.

    Raises ``NotFound`` for everything that neither git nor git-lfs asks for.
    """
    if method == "GET" and path.endswith("/info/refs"):
        project = project_path(path.removesuffix("/info/refs"))
        for service in (UPLOAD_PACK, RECEIVE_PACK):
            if query == f"service={service}":
                return GitRequest(project, service, refs=True)
    elif LFS_MARK in path:
        project, _, endpoint = path.partition(LFS_MARK)
        return LfsRequest(project_path(project), endpoint)
    elif method == "POST" and not query:
        for service in (UPLOAD_PACK, RECEIVE_PACK):
            if path.endswith(f"/{service}"):
                return GitRequest(project_path(path.removesuffix(f"/{service}")), service, False)
    raise NotFound


def project_path(repository: str) -> str:
    """The project's full path in ``group/project.git`` or ``group/project``.

    Raises ``NotFound`` for what cannot be one: fewer than two segments, empty or dot segments,
    control characters, backslashes, and what an escape in an escape would leave behind.
    """
    path = repository.removesuffix(".git")
    segments = path.split("/")
    if len(segments) < 2 or any(segment in ("", ".", "..") for segment in segments):
        raise NotFound
    if not path.isprintable() or any(character in "\\%?#" for character in path):
        raise NotFound
    return path


def read_token(authorization: str | None) -> str:
    """The hub token in an Authorization header: Basic (any user), ``token`` or ``Bearer``.

    Raises ``NotSignedIn`` if there is none.
    """
    scheme, _, value = (authorization or "").strip().partition(" ")
    value = value.strip()
    if scheme.lower() == "basic":
        try:
            value = base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            value = ""
    elif scheme.lower() not in ("token", "bearer"):
        value = ""
    if not value:
        raise NotSignedIn("Git here needs the token of a notebook server as its password.")
    return value

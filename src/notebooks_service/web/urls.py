"""What the path of a request means, decided on its raw bytes; called by ``routing`` for every request.

Pure. A project's address is ``<project>/<commit>[/<path>]``; ``-/p/<project>/-/<ref>[?path=]`` says
the same of any ref and is never ambiguous. Both lie below the service's prefix.

Which segment is the commit? The first rule is DESIGN's: a segment of 40 hex digits after at least
two others makes it a project's address. Projects may be named like a sha, so there can be several
such segments; then every reading is offered, the shortest project first, and the forge decides.
At most one reading can be right: a project holds no projects, so no project's path is the beginning
of another's.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from dataclasses import dataclass
from urllib.parse import quote, unquote, unquote_to_bytes

from notebooks_service.default_urls import LAB
from notebooks_service.domain import is_commit_sha
from notebooks_service.errors import NotFound

LONGEST_PATH = 4096
READINGS = 4
# First segments of our own routes. A project in a group of such a name is reached with a full
# commit, or with `-/p/`.
OWN_WORDS = frozenset(
    {
        "-",
        "docs",
        "git",
        "health",
        "images",
        "logs",
        "metrics",
        "oauth_callback",
        "openapi.json",
        "projects",
        "secrets",
        "server_options",
        "servers",
        "user",
        "version",
    }
)
# https://docs.gitlab.com/user/reserved_names/#limitations-on-usernames-project-and-group-names
_PROJECT_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}\Z")
_BAD_PERCENT = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_GIT_SERVICE = frozenset({"info", "git-upload-pack", "git-receive-pack", "gitlab-lfs"})


@dataclass(frozen=True)
class Reading:
    """One way to read an address: a project's full path, a commit or ref, a path in the repository."""

    project: str
    ref: str
    path: str = ""


@dataclass(frozen=True)
class OwnRoute:
    """One of our own routes; ``path`` starts with ``/`` and is decoded."""

    path: str


@dataclass(frozen=True)
class CommitAddress:
    """A project's address with a full commit; the first reading that the forge knows is meant."""

    readings: tuple[Reading, ...]


@dataclass(frozen=True)
class RefAddress:
    """A project's address with a branch, a tag or a short sha; it redirects to its commit."""

    readings: tuple[Reading, ...]


def parse(raw_path: bytes, prefix: str) -> OwnRoute | CommitAddress | RefAddress:
    """What ``raw_path`` (percent-encoded, without query) below ``prefix`` asks for.

    Split first, then decode once. ``.``, ``..``, ``//``, a backslash, a control character, an
    encoded slash outside `-/p/`, or bytes that are no UTF-8 raise ``NotFound``.
    """
    start = prefix.encode()
    if not raw_path.startswith(start) or len(raw_path) > LONGEST_PATH:
        raise NotFound
    raw_segments = raw_path[len(start) :].split(b"/")
    if raw_segments[-1] == b"":
        raw_segments.pop()
    segments = [_decoded(segment) for segment in raw_segments]
    if segments[:2] == ["-", "p"]:
        return _explicit(segments[2:])
    if any("/" in segment for segment in segments):
        raise NotFound
    if segments[:1] != ["-"] and not _is_git(segments):
        readings = tuple(
            Reading("/".join(segments[:index]), segment, "/".join(segments[index + 1 :]))
            for index, segment in enumerate(segments)
            if index >= 2 and is_commit_sha(segment) and is_project_path(segments[:index])
        )
        if readings:
            return CommitAddress(readings[:READINGS])
        if len(segments) >= 3 and segments[0] not in OWN_WORDS and is_project_path(segments[:2]):
            return RefAddress(_ref_readings(segments))
    return OwnRoute("/" + "/".join(segments))


def clean_path(text: str) -> str:
    """A path inside a repository, as a query or a body names it. Raises ``NotFound`` as ``parse`` does."""
    if not text:
        return ""
    segments = text.strip("/").split("/")
    if len(text) > LONGEST_PATH:
        raise NotFound
    for segment in segments:
        _check(segment)
    return "/".join(segments)


def is_project_path(segments: list[str]) -> bool:
    """Whether these can be the segments of a project's full path at a GitLab."""
    return len(segments) >= 2 and all(
        _PROJECT_SEGMENT.match(segment) and not segment.endswith((".", ".git", ".atom"))
        for segment in segments
    )


def commit_url(prefix: str, project: str, commit: str, path: str = "", branch: str = "") -> str:
    """The address of a commit; ``branch`` only where it is not the project's default branch."""
    url = prefix + quote("/".join(part for part in (project, commit, path) if part))
    return f"{url}?branch={quote(branch, safe='')}" if branch else url


def ref_url(prefix: str, project: str, ref: str, path: str = "") -> str:
    """The address of a ref in the form that is never ambiguous."""
    url = f"{prefix}-/p/{quote(project)}/-/{quote(ref)}"
    return f"{url}?path={quote(path, safe='')}" if path else url


def page_url(server_url: str, folder: str, path: str = "", opens: str = LAB) -> str:
    """Where a server shows ``path`` of the repository that was cloned into ``folder``.

    ``server_url``: the server's base URL as browsers open it (``Parts.server_url``). ``opens``: what its image has
    (``default_urls.opens``). Notebook sends a file's address on to its page of notebooks or of texts; RStudio's has
    no place for a path.
    """
    where = quote(f"{folder}/{path}" if path else folder)
    if opens == LAB:
        return f"{server_url}lab/tree/{where}"
    return server_url + ("rstudio/" if opens == "/rstudio" else f"tree/{where}")


def safe_next(prefix: str, url: str) -> str:
    """``url`` if it is a local one below ``prefix``, otherwise ``prefix``: no open redirects."""
    plain = url.isascii() and url.isprintable() and "\\" not in url and " " not in url
    inside = url.startswith(prefix) and prefix.startswith("/") and not url.startswith("//")
    if not plain or not inside or len(url) > LONGEST_PATH:
        return prefix
    # A browser takes `..` out of the path, escaped or not, and would leave our prefix by it.
    path = unquote(re.split("[?#]", url, maxsplit=1)[0])
    return prefix if {".", ".."} & set(path.split("/")) else url


def _decoded(raw: bytes) -> str:
    if _BAD_PERCENT.search(raw):
        raise NotFound
    try:
        text = unquote_to_bytes(raw).decode("utf-8")
    except UnicodeDecodeError:
        raise NotFound from None
    for part in text.split("/"):
        _check(part)
    return text


def _check(segment: str) -> None:
    if segment in ("", ".", "..") or "\\" in segment:
        raise NotFound
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in segment):
        raise NotFound


def _is_git(segments: list[str]) -> bool:
    """Whether this is ``git/<project>.git/…`` of the gateway; no project's name ends in ``.git``."""
    return segments[:1] == ["git"] and any(
        segment.endswith(".git") and following in _GIT_SERVICE
        for segment, following in itertools.pairwise(segments[1:])
    )


def _explicit(segments: list[str]) -> RefAddress:
    if "-" not in segments:
        raise NotFound
    cut = segments.index("-")
    project = "/".join(segments[:cut])
    ref = "/".join(segments[cut + 1 :])
    if not ref or not is_project_path(project.split("/")):
        raise NotFound
    return RefAddress((Reading(project, ref),))


def _ref_readings(segments: list[str]) -> tuple[Reading, ...]:
    """Every project × ref that this can be, few enough to ask the forge for.

    A branch cannot be the beginning of another branch's name (git's own rule), so of the readings
    with one project at most one is a branch; the shortest is asked first.
    """
    readings = []
    for cut in range(2, min(len(segments), 2 + READINGS)):
        project, rest = segments[:cut], segments[cut:]
        if not is_project_path(project):
            break
        for length in range(1, min(len(rest), READINGS) + 1):
            ref, path = "/".join(rest[:length]), "/".join(rest[length:])
            readings.append(Reading("/".join(project), ref, path))
    return tuple(readings)

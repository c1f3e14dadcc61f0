"""GitLab's rules for the names of people, groups and projects, and slugs that keep to them.

https://docs.gitlab.com/user/reserved_names/
"""

from __future__ import annotations

import re
import unicodedata

from notebooks_service.forge import errors

_PATH = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.\-]{0,253}[A-Za-z0-9_\-]|[A-Za-z0-9_]")
_PROJECT_NAME = re.compile(r"[\w\u00a9-\U0001f9ff][\w\u00a9-\U0001f9ff .+\-']{0,254}")

RESERVED_TOP = frozenset(
    [
        "-",
        ".well-known",
        "404.html",
        "422.html",
        "500.html",
        "502.html",
        "503.html",
        "admin",
        "api",
        "apple-touch-icon.png",
        "assets",
        "dashboard",
        "deploy.html",
        "explore",
        "favicon.ico",
        "files",
        "groups",
        "health_check",
        "help",
        "import",
        "jwt",
        "login",
        "oauth",
        "profile",
        "projects",
        "public",
        "robots.txt",
        "s",
        "search",
        "sitemap",
        "sitemap.xml",
        "unsubscribes",
        "uploads",
        "users",
        "v2",
        "static",
    ]
)
"""First segments that are addresses of the forge itself."""

RESERVED_PROJECTS = frozenset(
    [
        "-",
        "badges",
        "blame",
        "blob",
        "builds",
        "commits",
        "create",
        "create_dir",
        "edit",
        "environments/folders",
        "files",
        "find_file",
        "gitlab-lfs/objects",
        "info/lfs/objects",
        "new",
        "preview",
        "raw",
        "refs",
        "tree",
        "update",
        "wikis",
    ]
)
"""Last segments that are addresses within a project."""

PATH_RULE = (
    "can contain only letters, digits, '_', '-' and '.'. "
    "Cannot start with '-', end in '.git' or end in '.atom'."
)


def check_path(path: str, field: str = "path", *, top: bool = False, project: bool = False) -> str:
    """``path`` if GitLab would allow it as one segment; otherwise GitLab's 400."""
    lowered = path.lower()
    if (
        not _PATH.fullmatch(path)
        or lowered.endswith((".git", ".atom", "."))
        or path in (".", "..")
        or ".." in path
    ):
        raise errors.invalid(field, PATH_RULE)
    if (top and lowered in RESERVED_TOP) or (project and lowered in RESERVED_PROJECTS):
        raise errors.invalid(field, "is a reserved name")
    return path


def check_name(name: str, field: str = "name") -> str:
    """A project's name for people: letters of any script, digits, emoji, spaces and ``_ . + -``."""
    if not _PROJECT_NAME.fullmatch(name):
        raise errors.invalid(
            field,
            "can contain only letters, digits, emoji, '_', '.', '+', dashes, or spaces. "
            "It must start with a letter, digit, emoji, or '_'.",
        )
    return name


def slug(name: str) -> str:
    """The path that GitLab makes of a name: ``Über die Daten!`` → ``uber-die-daten``.

    Never empty: a name of which nothing is left gives ``project``.
    """
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    kept = re.sub(r"[^A-Za-z0-9_.]+", "-", plain)
    kept = re.sub(r"([-_.])[-_.]+", r"\1", kept).strip("-_.")
    kept = re.sub(r"\.(git|atom)\Z", r"-\1", kept, flags=re.IGNORECASE)
    return kept[:200].strip("-_.").lower() or "project"


def display_name(name: str) -> str:
    """``name`` without what GitLab's projects may not be called."""
    kept = re.sub(r"[^\w .+\-']+", " ", name).strip(" .+-'")
    return kept[:200] or "Project"

"""Reads a requirements file with what it includes; used by ``images/recipe.py``.

Only what matters here is understood: includes, constraints and local paths. All else is the
package manager's. https://pip.pypa.io/en/stable/reference/requirements-file-format/
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from notebooks_service.errors import BuildFailed

INCLUDE = re.compile(
    r"(?:-r|-c|--requirement|--constraint)(?:\s*=\s*|\s+|(?<=-[rc]))(?P<path>\S+)\s*\Z"
)
EDITABLE = re.compile(r"(?:-e|--editable)(?:\s*=\s*|\s+)(?P<path>.+)\Z")
LOCAL = re.compile(r"(?:[\w.\[\]-]+\s*@\s*)?(?P<path>(?:file:|\.{1,2}(?=/|\[|\s|;|\Z)|/).*)\Z")
ARCHIVE = re.compile(r"(?P<path>(?![^/\s]*:)[^\s;@]+\.(?:whl|tar\.gz|zip|tar\.bz2))(?:\s.*|;.*)?\Z")
OWN_PROJECT = re.compile(r"\./?(?:\[(?P<extras>[\w\s,.-]+)\])?\s*\Z")
MOST_FILES = 50


@dataclass
class RequirementFiles:
    """The files as they are handed to the package manager, and what was found in them."""

    files: dict[str, bytes] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    from_network: list[str] = field(default_factory=list)
    leaves_out: bool = False
    wants_project: bool = False
    extras: set[str] = field(default_factory=set)


def logical_lines(text: str) -> list[str]:
    """Lines with their continuations joined and comments removed."""
    joined = re.sub(r"\\\r?\n", " ", text)
    return [re.sub(r"(^|\s)#.*", "", line).strip() for line in joined.splitlines()]


def read_requirements(
    path: str, content: bytes, load: Callable[[str], bytes | None]
) -> RequirementFiles:
    """``content`` as the requirements file ``path``, and every file of the repository it needs.

    ``load`` gives a file's bytes by its path, or None if there is none. Lines that would build the
    project itself or a directory of it are left out, with a note: notebooks import those from the
    checkout. Raises ``BuildFailed`` for a file that is missing or no text.
    """
    found = RequirementFiles()
    waiting = [(path, content)]
    while waiting:
        name, data = waiting.pop(0)
        if name in found.files:
            continue
        if len(found.files) >= MOST_FILES:
            raise BuildFailed(f"`{path}` includes more than {MOST_FILES} files.")
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise BuildFailed(f"`{name}` is not UTF-8 text.") from None
        kept = [_line(line, name, found, waiting, load) for line in logical_lines(text)]
        found.files[name] = ("\n".join(kept) + "\n").encode()
    return found


def _line(
    line: str,
    name: str,
    found: RequirementFiles,
    waiting: list[tuple[str, bytes]],
    load: Callable[[str], bytes | None],
) -> str:
    include = INCLUDE.match(line)
    if include:
        target = include["path"]
        if "://" in target:
            said = f"`{line}` in {name} is read from the network, so it may change."
            found.notes.append(said)
            found.from_network.append(said)
            return line
        path = _beside(name, target)
        data = load(path)
        if data is None:
            raise BuildFailed(f"`{name}` includes `{target}`, which is not in the commit.")
        waiting.append((path, data))
        return line
    editable = EDITABLE.match(line)
    target = editable["path"] if editable else line
    local = LOCAL.match(target) or ARCHIVE.match(target)
    if not local:
        return line
    path = local["path"].split(";")[0].strip()
    if own := OWN_PROJECT.match(path):
        if posixpath.dirname(name) == "":
            found.wants_project = True
            found.extras |= {e.strip() for e in (own["extras"] or "").split(",") if e.strip()}
    elif ARCHIVE.match(path) and not path.startswith("/"):
        archive = _beside(name, path)
        data = load(archive)
        if data is None:
            raise BuildFailed(f"`{name}` names `{path}`, which is not in the commit.")
        found.files[archive] = data
        return line
    found.leaves_out = True
    found.notes.append(
        f"`{line}` in {name} is left out: the environment holds what the project needs, "
        "not the project itself, which notebooks import from their checkout."
    )
    return f"# left out: {line}"


def _beside(name: str, target: str) -> str:
    path = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
    if path.startswith(("/", "../")) or path == "..":
        raise BuildFailed(f"`{name}` names `{target}`, which lies outside the repository.")
    return path

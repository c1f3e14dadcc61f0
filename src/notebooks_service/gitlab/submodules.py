"""The submodules of a commit: what they are called, where they come from, whether a person may read them.

Called by the service, to name them, and by the hub, to decide: both ask the forge with the person's
own token. An address in ``.gitmodules`` is read for one thing only, which project of *this* forge it
means; nobody ever connects to it. https://git-scm.com/docs/gitmodules
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from urllib.parse import SplitResult, unquote, urlsplit

from notebooks_service.domain import Project, Submodule
from notebooks_service.errors import NotFound
from notebooks_service.gitlab.forge import Forge

DEEPEST = 4
MOST = 50
MOST_BYTES = 256 * 1024
LONGEST = 500

ELSEWHERE = "it is not on this forge."
HIDDEN = "there is no such project at the forge, or none that you may see."
NO_COMMIT = "its project does not have the commit that is named, or you may not see its code."
TOO_DEEP = f"submodules inside submodules are followed {DEEPEST} deep and no deeper."
TOO_MANY = f"a commit may have {MOST} submodules here and no more."
ITSELF = "it holds itself."
RUNS = "its entry would have git run a program."
BAD_NAME = "its name or its place is none that git would take."

_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\Z")
_SCP = re.compile(r"(?:[A-Za-z0-9_.-]+@)?([A-Za-z0-9.-]+):(?!//)(.+)\Z")
_HEADER = re.compile(r"""\[\s*([A-Za-z0-9.-]+)\s*(?:"((?:[^"\\]|\\.)*)")?\s*\](.*)\Z""", re.S)
_VARIABLE = re.compile(r"([A-Za-z][A-Za-z0-9-]*)\s*(?:=(.*))?\Z", re.S)


def find(forge: Forge, project: Project, commit: str) -> tuple[Submodule, ...]:
    """The submodules of a commit and theirs, parents first; those that cannot be had say why.

    Raises ``ForgeUnavailable``, ``SignInExpired``.
    """
    found: list[Submodule] = []
    first: tuple[tuple[int, str], ...] = ((project.id, commit),)
    waiting = [(project, commit, "", first)]
    while waiting:
        holder, sha, parent, chain = waiting.pop(0)
        for each in _listed(forge, holder, sha, parent):
            if len(found) >= MOST:
                if len(found) == MOST:
                    found.append(replace(each, reason=TOO_MANY))
                return tuple(found)
            path = project_of(each.url, forge.url, holder.path)
            if not each.reason and path is None:
                each = replace(each, reason=ELSEWHERE)
            if not each.reason and len(chain) > DEEPEST:
                each = replace(each, reason=TOO_DEEP)
            if not each.reason and path is not None:
                each, inner = _looked_up(forge, each, path)
                if inner is not None and (inner.id, each.commit) in chain:
                    each = replace(each, reason=ITSELF)
                elif inner is not None:
                    step = (*chain, (inner.id, each.commit))
                    waiting.append((inner, each.commit, each.at, step))
            found.append(each)
    return tuple(found)


def _listed(forge: Forge, holder: Project, sha: str, parent: str) -> Iterator[Submodule]:
    """What ``.gitmodules`` names and the tree has, with nothing known of their projects."""
    text = forge.file(holder, sha, ".gitmodules", MOST_BYTES)
    if text is None:
        return
    for name, values in parse(text.decode("utf-8", "replace")):
        place, url = values.get("path", "").rstrip("/"), values.get("url", "")
        good = is_good_name(name) and is_good_name(place) and len(place) <= LONGEST
        link = forge.gitlink(holder, sha, place) if good else None
        if link is None and good:
            continue  # left over in the file; git does not see it either
        yield Submodule(
            at=f"{parent}/{place}" if parent else place[:LONGEST],
            parent=parent,
            name=name[:LONGEST],
            url=url[:LONGEST],
            commit=link or "",
            reason=BAD_NAME if not good else RUNS if _runs_something(values) else "",
        )


def _runs_something(values: dict[str, str]) -> bool:
    """https://git-scm.com/docs/git-submodule: ``update = !command``; git refuses it from a file."""
    return values.get("update", "").startswith("!")


def _looked_up(forge: Forge, each: Submodule, path: str) -> tuple[Submodule, Project | None]:
    try:
        project = forge.project(path)
    except NotFound:
        return replace(each, reason=HIDDEN), None
    try:
        forge.commit(project, each.commit)
    except NotFound:
        return replace(each, reason=NO_COMMIT), None
    return replace(each, project_id=project.id, project=project.path), project


def is_good_name(text: str) -> bool:
    """Whether git takes this as a submodule's name or place: nothing in it leads anywhere else.

    Git itself refuses the same (``check_submodule_name``), for good reasons (CVE-2018-11235).
    """
    return (
        0 < len(text) <= LONGEST
        and text.isprintable()
        and not text.startswith("-")
        and "\\" not in text
        and all(s.lower() not in ("", ".", "..", ".git", "git~1") for s in text.split("/"))
    )


def project_of(url: str, forge_url: str, holder: str) -> str | None:
    """The path of the project of this forge that a submodule's address means; None for any other.

    ``holder`` is the project that has the submodule: relative addresses start from it. SSH addresses
    of the forge's own host mean the same project; they are never used as such.
    """
    root = urlsplit(forge_url)
    prefix = root.path.strip("/")
    if url.startswith(("./", "../")):
        segments = f"{holder}.git".split("/")
        for step in url.split("/"):
            if step == "..":
                if not segments:
                    return None
                segments.pop()
            elif step not in ("", "."):
                segments.append(step)
        return _project_path("/".join(segments))
    try:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https", "ssh"):
            host = (parts.hostname or "").lower()
            if host != (root.hostname or "").lower() or not _same_port(parts, root):
                return None
            path = unquote(parts.path).strip("/")
            if prefix and parts.scheme != "ssh":
                if not path.startswith(prefix + "/"):
                    return None
                path = path[len(prefix) + 1 :]
            return None if parts.query or parts.fragment else _project_path(path)
    except ValueError:
        return None
    if (short := _SCP.match(url)) and short.group(1).lower() == (root.hostname or "").lower():
        return _project_path(short.group(2).strip("/"))
    return None


def _same_port(parts: SplitResult, root: SplitResult) -> bool:
    """Whether both are one web server: the same port, or both the usual one of http or https."""
    usual = {"http": 80, "https": 443}
    if parts.scheme == "ssh":
        return True
    ports = [each.port or usual[each.scheme] for each in (parts, root)]
    usuals = all(
        port == usual[each.scheme] for each, port in zip((parts, root), ports, strict=True)
    )
    return ports[0] == ports[1] or usuals


def _project_path(path: str) -> str | None:
    path = path.rstrip("/").removesuffix(".git")
    segments = path.split("/")
    good = len(segments) >= 2 and all(
        _SEGMENT.match(each) and not each.endswith((".", ".git")) for each in segments
    )
    return path if good and len(path) <= LONGEST else None


def parse(text: str) -> list[tuple[str, dict[str, str]]]:
    """Names and values of the submodules in a ``.gitmodules``, in git's own syntax.

    A line that git would stop at ends the reading. https://git-scm.com/docs/git-config#_syntax
    """
    found: dict[str, dict[str, str]] = {}
    name: str | None = None
    for line in _logical_lines(text):
        rest = line.strip()
        while rest.startswith("["):
            header = _HEADER.match(rest)
            if header is None:
                return list(found.items())
            ours = header.group(1).lower() == "submodule" and header.group(2) is not None
            name = re.sub(r"\\(.)", r"\1", header.group(2)) if ours else None
            rest = header.group(3).strip()
        if not rest or rest[0] in "#;":
            continue
        variable = _VARIABLE.match(rest)
        if variable is None:
            return list(found.items())
        if name is None or variable.group(2) is None:
            continue
        value = _value(variable.group(2))
        if value is None:
            return list(found.items())
        found.setdefault(name, {})[variable.group(1).lower()] = value
    return list(found.items())


def _logical_lines(text: str) -> Iterator[str]:
    """Lines, with those that a backslash continues as one; the backslash and newline stay in it."""
    gathered = ""
    for line in text.replace("\r\n", "\n").split("\n"):
        gathered += line
        if (len(line) - len(line.rstrip("\\"))) % 2:
            gathered += "\n"
            continue
        yield gathered
        gathered = ""
    if gathered:
        yield gathered


def _value(text: str) -> str | None:
    """A value without its quotes, comments and escapes; None for one that git refuses."""
    escapes = {"n": "\n", "t": "\t", "b": "\b", "\\": "\\", '"': '"', "\n": ""}
    result, kept, quoted = "", 0, False
    characters = iter(text.lstrip())
    for character in characters:
        if character == '"':
            quoted = not quoted
            kept = len(result)
        elif character == "\\":
            escaped = escapes.get(next(characters, "\n"))
            if escaped is None:
                return None
            result += escaped
            kept = len(result)
        elif character in "#;" and not quoted:
            break
        else:
            result += character
            if quoted or not character.isspace():
                kept = len(result)
    return None if quoted else result[:kept]

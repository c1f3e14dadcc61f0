"""The files of a commit as the forge tells of them, without a clone; read like those of a checkout.

Used by ``images/fingerprint.py`` through its protocol ``CommitFiles``. Blocking, with the token of
the person it is for. Directories are listed one by one as they are asked for, never a tree as a whole.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from notebooks_service.domain import Entry, Project
from notebooks_service.errors import BuildFailed, ForgeUnavailable

if (
    TYPE_CHECKING
):  # a job that only tags an image reads its checkout, and loads no client of a forge
    from notebooks_service.gitlab.forge import Forge

LARGEST_FILE = 32 * 1024 * 1024
LARGEST_KEPT = 1024 * 1024
MOST_LISTED = 5000
MODE = re.compile(r"(?:040000|1[0-9]{5})\Z")
OBJECT = re.compile(r"(?:[0-9a-f]{40}|[0-9a-f]{64})\Z")

T = TypeVar("T")


class KnownObjects:
    """What other commits of a project have shown: an id stands for the same bytes for ever.

    Thread-safe. Only who was told an id by the forge can ask for it here.
    """

    def __init__(
        self, most: int = 2000, largest: int = 64 * 1024, largest_tree: int = 10_000
    ) -> None:
        """At most so many of each kind, files up to ``largest`` bytes, trees up to so many entries."""
        self.blobs: dict[str, bytes] = {}
        self.trees: dict[str, tuple[Entry, ...]] = {}
        self._most = most
        self._largest = largest
        self._largest_tree = largest_tree
        self._lock = threading.Lock()

    def put_blob(self, name: str, content: bytes) -> None:
        if len(content) <= self._largest:
            self._put(self.blobs, name, content)

    def put_tree(self, name: str, below: tuple[Entry, ...]) -> None:
        """``below``: with paths from the directory itself."""
        if len(below) <= self._largest_tree:
            self._put(self.trees, name, below)

    def _put(self, place: dict[str, T], name: str, value: T) -> None:
        with self._lock:
            if len(place) >= self._most:
                place.pop(next(iter(place)))
            place[name] = value


class ForgeFiles:
    """The files of one commit of one project. Nothing is asked for twice, but for files over 1 MiB."""

    def __init__(
        self, forge: Forge, project: Project, sha: str, known: KnownObjects | None = None
    ) -> None:
        self._forge = forge
        self._project = project
        self._sha = sha
        self._known = known or KnownObjects()
        self._listings: dict[str, dict[str, Entry]] = {}
        self._own = KnownObjects(largest=LARGEST_KEPT)

    def listing(self, directory: str) -> Mapping[str, Entry]:
        """Name to entry of one directory ("" is the root); empty if there is no such directory.

        Raises ``BuildFailed`` if it holds too many, and what ``Forge`` raises.
        """
        if directory not in self._listings:
            rows = self._forge.listing(self._project, self._sha, directory, MOST_LISTED)
            if len(rows) > MOST_LISTED:
                raise BuildFailed(f"`{directory or '/'}` holds too many files to be looked at.")
            found = [_entry(row) for row in rows]
            self._listings[directory] = {each.path.rpartition("/")[2]: each for each in found}
        return self._listings[directory]

    def below(self, directory: Entry, limit: int) -> tuple[Entry, ...] | None:
        """Everything below a directory, directories too; None if that is over ``limit`` entries."""
        known = self._known.trees.get(directory.blob)
        if known is None:
            rows = self._forge.listing(
                self._project, self._sha, directory.path, limit, recursive=True
            )
            if len(rows) > limit:
                return None
            skip = len(directory.path) + 1
            found = (_entry(row) for row in rows)
            known = tuple(Entry(e.path[skip:], e.mode, e.blob) for e in found)
            self._known.put_tree(directory.blob, known)
        if len(known) > limit:
            return None
        return tuple(Entry(f"{directory.path}/{e.path}", e.mode, e.blob) for e in known)

    def content(self, entry: Entry) -> bytes:
        """The bytes of a file. Raises ``BuildFailed`` if it is larger than ``LARGEST_FILE``."""
        known = self._known.blobs.get(entry.blob)
        if known is None:
            known = self._own.blobs.get(entry.blob)
        if known is None:
            known = self._forge.blob(self._project, entry.blob, LARGEST_FILE + 1)
            if len(known) > LARGEST_FILE:
                raise BuildFailed(f"`{entry.path}` is too large to describe an environment.")
            self._known.put_blob(entry.blob, known)
            self._own.put_blob(entry.blob, known)
        return known


def _entry(row: Mapping[str, Any]) -> Entry:
    path, mode, name = row.get("path"), row.get("mode"), row.get("id")
    if not (
        isinstance(path, str)
        and path
        and isinstance(mode, str)
        and MODE.match(mode)
        and isinstance(name, str)
        and OBJECT.match(name)
    ):
        raise ForgeUnavailable(reason="a tree with other fields than GitLab's")
    return Entry(path, mode, name)

"""The files of a commit, whoever tells of them, and the one that reads git's objects.

Used by ``images/fingerprint.py`` and ``images/recipe.py``; ``gitlab/files.py`` is the side of the forge.

Objects, not the working tree: what is fingerprinted is then certainly what is built, whatever a
job has changed in its checkout before.
"""

from __future__ import annotations

import posixpath
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from notebooks_service.domain import Entry
from notebooks_service.errors import BuildFailed
from notebooks_service.gitlab.files import LARGEST_FILE, MOST_LISTED

__all__ = [
    "DIRECTORY",
    "LARGEST_FILE",
    "SUBMODULE",
    "SYMLINK",
    "CheckoutTree",
    "CommitFiles",
    "Entry",
    "Tree",
    "follow",
]

SYMLINK = "120000"
DIRECTORY = "040000"
SUBMODULE = "160000"
MOST_LINKS = 5


class Tree(Protocol):
    """The files of one commit. Two readers of one commit give the same answers."""

    def listing(self, directory: str) -> Mapping[str, Entry]:
        """Name to entry of one directory ("" is the root); empty if there is no such directory."""

    def content(self, entry: Entry) -> bytes:
        """The bytes of a file. Raises ``BuildFailed`` if it is larger than ``LARGEST_FILE``."""


class CommitFiles(Tree, Protocol):
    """The same, for those who may need to know all that lies below a directory."""

    def below(self, directory: Entry, limit: int) -> tuple[Entry, ...] | None:
        """Everything below a directory, directories too, in any order; None if over ``limit``."""


def follow(tree: Tree, path: str) -> tuple[tuple[Entry, ...], Entry | None]:
    """The entry at ``path``, symbolic links followed inside the tree, and the links on the way.

    Raises ``BuildFailed`` for a path that leaves the repository.
    """
    links: list[Entry] = []
    for _ in range(MOST_LINKS):
        path = posixpath.normpath(path)
        if path.startswith(("/", "../")) or path == "..":
            raise BuildFailed(f"`{path}` lies outside the repository, so nothing is built from it.")
        directory, name = posixpath.split(path)
        entry = tree.listing(directory).get(name)
        if entry is None or entry.mode != SYMLINK:
            return tuple(links), entry
        links.append(entry)
        target = tree.content(entry).decode(errors="surrogateescape")
        path = posixpath.join(directory, target)
    raise BuildFailed(f"`{path}` is a symbolic link that leads nowhere.")


class CheckoutTree:
    """The tree of one commit in a local repository."""

    def __init__(self, checkout: Path, commit: str = "HEAD") -> None:
        self._checkout = checkout
        self._commit = commit
        self._listings: dict[str, dict[str, Entry]] = {}

    def listing(self, directory: str) -> Mapping[str, Entry]:
        if directory not in self._listings:
            paths = ["--", f"{directory}/"] if directory else []
            out = self._git("ls-tree", "-z", "--full-tree", self._commit, *paths)
            rows = [row for row in out.decode(errors="surrogateescape").split("\0") if row]
            if len(rows) > MOST_LISTED:
                raise BuildFailed(f"`{directory or '/'}` holds too many files to be looked at.")
            entries = [_entry(row) for row in rows]
            self._listings[directory] = {posixpath.basename(e.path): e for e in entries}
        return self._listings[directory]

    def below(self, directory: Entry, limit: int) -> tuple[Entry, ...] | None:
        out = self._git("ls-tree", "-z", "-r", "-t", "--full-tree", directory.blob)
        rows = [row for row in out.decode(errors="surrogateescape").split("\0") if row]
        if len(rows) > limit:
            return None
        found = (_entry(row) for row in rows)
        return tuple(Entry(f"{directory.path}/{e.path}", e.mode, e.blob) for e in found)

    def content(self, entry: Entry) -> bytes:
        size = int(self._git("cat-file", "-s", entry.blob))
        if size > LARGEST_FILE:
            raise BuildFailed(f"`{entry.path}` is too large to describe an environment.")
        return self._git("cat-file", "blob", entry.blob)

    def _git(self, *arguments: str) -> bytes:
        # A runner's checkout may belong to another user than this process.
        command = ["git", "-c", "safe.directory=*", "--literal-pathspecs", *arguments]
        done = subprocess.run(command, cwd=self._checkout, capture_output=True, check=False)
        if done.returncode:
            first = done.stderr.decode(errors="replace").strip().partition("\n")[0]
            raise BuildFailed(f"The commit's files cannot be read: {first}")
        return done.stdout


def _entry(row: str) -> Entry:
    head, _, path = row.partition("\t")
    mode, _, blob = head.split(" ")
    return Entry(path, mode, blob)

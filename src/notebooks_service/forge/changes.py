"""Makes commits without a worktree: files written, moved or removed on top of a commit.

Used by the API's files and commits endpoints. Objects first, the ref last and only if it has not
moved meanwhile.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from notebooks_service.forge.git_process import GitFailed, git

ZERO = "0" * 40
_BAD_PATH = re.compile(r"(\A|/)(\.{0,2})(/|\Z)|(\A|/)\.git(/|\Z)|[\x00-\x1f]", re.IGNORECASE)


class ChangeRefused(Exception):
    """The change does not fit the branch as it is; the text is GitLab's."""


@dataclass(frozen=True)
class Person:
    name: str
    email: str


@dataclass(frozen=True)
class Write:
    """Create or replace a file. ``must_exist`` is None where either is fine."""

    path: str
    content: bytes
    must_exist: bool | None = None
    executable: bool | None = None


@dataclass(frozen=True)
class Move:
    """Move a file; ``content`` None keeps it."""

    old_path: str
    path: str
    content: bytes | None = None


@dataclass(frozen=True)
class Remove:
    path: str


@dataclass(frozen=True)
class Mode:
    """Make a file executable, or not."""

    path: str
    executable: bool


Change = Write | Move | Remove | Mode


def is_file_path(path: str) -> bool:
    """Whether a file may have this path: relative, no ``..``, nothing in ``.git``."""
    return bool(path) and len(path) < 4096 and not _BAD_PATH.search(path)


def commit_files(
    repository: Path,
    branch: str,
    parent: str | None,
    changes: Sequence[Change],
    message: str,
    author: Person,
    committer: Person | None = None,
    *,
    old_tip: str | None = None,
) -> str:
    """Commit ``changes`` on top of ``parent`` (None: the first commit) and move ``branch`` to it.

    ``old_tip`` is where the branch is now, None if it does not exist. Returns the new commit's sha.
    Raises ``ChangeRefused`` if a file is or is not there as asked, or the branch has moved.
    """
    committer = committer or author
    with tempfile.TemporaryDirectory(prefix="forge-index-") as scratch:
        index = {"GIT_INDEX_FILE": str(Path(scratch) / "index")}
        if parent is None:
            git(repository, "read-tree", "--empty", environment=index)
        else:
            git(repository, "read-tree", parent, environment=index)
        for change in changes:
            _apply(repository, index, change)
        tree = git(repository, "write-tree", environment=index).decode().strip()
    people = {
        "GIT_AUTHOR_NAME": author.name,
        "GIT_AUTHOR_EMAIL": author.email,
        "GIT_COMMITTER_NAME": committer.name,
        "GIT_COMMITTER_EMAIL": committer.email,
    }
    parents = ["-p", parent] if parent else []
    try:
        out = git(
            repository,
            "commit-tree",
            *parents,
            "-F",
            "-",
            tree,
            stdin=message.encode("utf-8", "replace"),
            environment=people,
        )
    except GitFailed as failed:
        raise ChangeRefused(f"The commit cannot be made: {failed.message}") from None
    sha = out.decode().strip()
    move_branch(repository, branch, sha, old_tip)
    return sha


def move_branch(repository: Path, branch: str, new: str | None, old: str | None) -> None:
    """Create, move or (``new`` None) delete a branch, if it still is at ``old`` (None: is not there)."""
    move_ref(repository, f"refs/heads/{branch}", new, old)


def move_ref(repository: Path, ref: str, new: str | None, old: str | None) -> None:
    try:
        if new is None:
            git(repository, "update-ref", "-d", ref, old or ZERO)
        else:
            git(repository, "update-ref", ref, new, old or ZERO)
    except GitFailed:
        raise ChangeRefused("Could not update the ref. Please refresh and try again.") from None


def _apply(repository: Path, index: dict[str, str], change: Change) -> None:
    if not is_file_path(change.path):
        raise ChangeRefused("Invalid path")
    there = _entry(repository, index, change.path)
    if isinstance(change, Remove):
        if there is None:
            raise ChangeRefused("A file with this name doesn't exist")
        _set(repository, index, change.path, None, "0")
        return
    if isinstance(change, Mode):
        if there is None:
            raise ChangeRefused("A file with this name doesn't exist")
        _set(repository, index, change.path, there[1], _mode(change.executable, None))
        return
    if isinstance(change, Move):
        source = _entry(repository, index, change.old_path)
        if source is None:
            raise ChangeRefused("A file with this name doesn't exist")
        if there is not None:
            raise ChangeRefused("A file with this name already exists")
        sha = source[1] if change.content is None else _blob(repository, change.content)
        _set(repository, index, change.old_path, None, "0")
        _set(repository, index, change.path, sha, source[0])
        return
    if change.must_exist is True and there is None:
        raise ChangeRefused("A file with this name doesn't exist")
    if change.must_exist is False and there is not None:
        raise ChangeRefused("A file with this name already exists")
    mode = _mode(change.executable, there[0] if there else None)
    _set(repository, index, change.path, _blob(repository, change.content), mode)


def _mode(executable: bool | None, before: str | None) -> str:
    if executable is None:
        return before if before in ("100644", "100755") else "100644"
    return "100755" if executable else "100644"


def _blob(repository: Path, content: bytes) -> str:
    return git(repository, "hash-object", "-w", "--stdin", stdin=content).decode().strip()


def _entry(repository: Path, index: dict[str, str], path: str) -> tuple[str, str] | None:
    """Mode and id of exactly this file in the index."""
    out = git(repository, "ls-files", "-z", "--stage", "--", path, environment=index)
    for record in out.split(b"\0"):
        head, _, name = record.partition(b"\t")
        if name == os.fsencode(path):
            mode, sha, _ = head.decode().split(" ")
            return mode, sha
    return None


def _set(repository: Path, index: dict[str, str], path: str, sha: str | None, mode: str) -> None:
    line = f"{mode} {sha or ZERO}\t".encode() + os.fsencode(path) + b"\0"
    try:
        git(
            repository,
            "update-index",
            "--add",
            "--replace",
            "-z",
            "--index-info",
            stdin=line,
            environment=index,
        )
    except GitFailed:
        raise ChangeRefused("Invalid path") from None

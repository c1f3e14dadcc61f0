"""Fills one new repository: fetches it, weighs the commit, fetches its large files, checks it out.

Called by ``clone.py`` for the project and for each submodule. Nothing is written to the work tree
before it is known how much that will be, and whether the disk has room for it.

Standard library only, Python 3.8 and newer: it runs in images that we did not build.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

HERE = Path(__file__).resolve().parent

if TYPE_CHECKING:
    from notebooks_service.singleuser import clone_size as size
    from notebooks_service.singleuser.clone_git import TELL_SECONDS, Failed, Git, say
    from notebooks_service.singleuser.lfs import Entry, parse_blobs, parse_index, say_missing, small
    from notebooks_service.singleuser.lfs_objects import Remote, Store, has_git_lfs
else:
    sys.path.insert(0, str(HERE))
    import clone_size as size
    from clone_git import TELL_SECONDS, Failed, Git, say
    from lfs import Entry, parse_blobs, parse_index, say_missing, small
    from lfs_objects import Remote, Store, has_git_lfs


class Source(NamedTuple):
    """What is fetched: ``bytes`` is the repository's size as the forge says it, or None."""

    url: str
    project: str
    commit: str
    bytes: int | None


class Limits(NamedTuple):
    """``partial_from``: repositories of at least so many bytes are cloned without old files'
    contents. ``margin``: bytes to leave free. ``large_files``: fetch those in Git LFS."""

    partial_from: int
    margin: int
    most_files: int
    large_files: bool


class Filled(NamedTuple):
    """How it went: a partial clone or a full one, large files there and not there, remarks."""

    partial: bool
    large_files: int
    pointers: int
    notes: list[str]


def is_partial(bytes_: int | None, partial_from: int) -> bool:
    """Whether old files' contents are left at the forge; also where nobody knows the size."""
    return bytes_ is None or bytes_ >= partial_from


def fetch(beside: Git, source: Source, target: Path, limits: Limits) -> Git:
    """Clone into ``target`` (an empty directory) without a work tree, and make sure of the commit.

    Raises ``Failed``.
    """
    partial = is_partial(source.bytes, limits.partial_from)
    if source.bytes is not None and not partial:
        size.check_room(beside.directory, source.bytes, limits.margin, "This repository takes")
    else:
        size.check_room(beside.directory, 0, limits.margin, "A clone takes more than")
    arguments = ["clone", "--progress", "--no-checkout", "--no-recurse-submodules"]
    arguments += ["--template=", "--origin=origin"]
    arguments += ["--filter=blob:none"] if partial else []
    words = beside.do(*arguments, "--", source.url, str(target))
    git = beside.within(target)
    if any("filtering not recognized" in line for line in words):
        # A forge without partial clones has given everything: this is a full one from now on.
        for key in ("promisor", "partialclonefilter"):
            git.do("config", "--unset", f"remote.origin.{key}")
    if not has_commit(git, source.commit):
        # Not on any branch or tag, but the forge may still hold it: a merge request's, or one that
        # a force-push has left behind.
        try:
            git.do("fetch", "--progress", "--no-tags", "origin", source.commit)
        except Failed as error:
            if error.kind not in ("commit_missing", "git_failed"):
                raise
        if not has_commit(git, source.commit):
            raise Failed("commit_missing", source.commit)
    return git


def has_commit(git: Git, commit: str) -> bool:
    return git.ask("cat-file", "-e", commit + "^{commit}") is not None


def fill(git: Git, source: Source, limits: Limits, *check_out: str) -> Filled:
    """Bring everything that the commit needs, then run ``git checkout`` with ``check_out``."""
    trees = size.read_trees(git, source.commit, limits.most_files)
    partial = bring_blobs(git, source.commit)
    total = trees.sum(size.blob_sizes(git, trees.blobs))
    count = total.files + total.directories
    need = total.bytes + size.INDEX_BYTES * count
    entries = large_files(git, source.commit)
    size.check_inodes(git.directory, count)
    size.check_room(git.directory, need, limits.margin, "The files of this commit take")
    notes: list[str] = []
    store = Store(git.directory / ".git")
    if entries and limits.large_files:
        notes = bring_large_files(git, source, entries, need, limits)
    say("Writing files.", "files")
    git.within(git.directory, filter_options()).do("checkout", "--progress", *check_out)
    there = sum(store.has(each.pointer) for each in entries)
    if entries and not has_git_lfs(os.environ):
        notes.append(
            "This image has no git-lfs; the notebooks service fetches and sends large files by"
            " itself."
        )
    set_hooks(git)
    return Filled(partial, there, len(entries) - there, notes)


def bring_blobs(git: Git, commit: str) -> bool:
    """Fetch the contents that a partial clone left out and this commit needs; whether it is one."""
    if git.ask("config", "remote.origin.promisor") != "true":
        return False
    options = ["--objects", "--no-object-names", "--missing=print"]
    listed = git.read("rev-list", *options, commit + "^{tree}")
    missing = [line[1:] for line in listed.splitlines() if line.startswith(b"?")]
    if missing:
        quiet = git.within(git.directory, ["fetch.negotiationAlgorithm=noop"])
        arguments = ["fetch", "--progress", "--no-tags", "--no-write-fetch-head", "--stdin"]
        arguments += ["--recurse-submodules=no", "--filter=blob:none", "origin"]
        quiet.do(*arguments, given=b"".join(oid + b"\n" for oid in missing))
    return True


def large_files(git: Git, commit: str) -> list[Entry]:
    """The files of the commit that attributes give to Git LFS and that are pointers."""
    index = git.directory / ".git" / "notebooks-index"
    looking = git.within(git.directory, environment={"GIT_INDEX_FILE": str(index)})
    try:
        looking.read("read-tree", commit)
        files = parse_index(looking.read("ls-files", "-s", "-z", "--", ":(top,attr:filter=lfs)"))
    finally:
        if index.exists():
            index.unlink()
    asked = "".join(f"{blob}\n" for blob in sorted({blob for _, blob in files})).encode()
    if not asked:
        return []
    found = small(git.read("cat-file", "--batch-check", given=asked))
    pointers = parse_blobs(git.read("cat-file", "--batch", given=found)) if found else {}
    return [Entry(path, pointers[blob]) for path, blob in files if blob in pointers]


def bring_large_files(
    git: Git, source: Source, entries: list[Entry], need: int, limits: Limits
) -> list[str]:
    """Fetch the objects of these files; what is to be said about them."""
    pointers = {each.pointer for each in entries}
    fetched = sum(each.size for each in pointers)
    both = need + fetched + sum(each.pointer.size for each in entries)
    what = f"The files of this commit with {len(pointers)} large ones (Git LFS) take"
    size.check_room(git.directory, both, limits.margin, what)
    told = _Progress(fetched)
    say(f"Fetching {len(pointers)} large files ({size.human(fetched)}).", "large files")
    store = Store(git.directory / ".git")
    missing = Remote(source.project, os.environ).fetch(pointers, store, told.add)
    sentence = say_missing(missing)
    return [sentence] if sentence else []


class _Progress:
    """Tells how much has come, from several threads."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._at = time.monotonic()
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        with self._lock:
            self._done += count
            now = time.monotonic()
            if now - self._at < TELL_SECONDS:
                return
            self._at = now
            percent = min(100, self._done * 100 // max(self._total, 1))
            message = f"Fetching large files: {percent} % ({size.human(self._done)})"
            say(message, "large files", percent=percent, bytes=self._done)


def filter_options() -> list[str]:
    """Our own filter for large files, which asks no network, in the place of any other."""
    command = [sys.executable or "python3", "-I", "-S", str(HERE / "lfs.py"), "filter"]
    process = " ".join(shlex.quote(part) for part in command)
    return [f"filter.lfs.process={process}", "filter.lfs.required=true"]


HOOK = """#!/bin/sh
# Sends large files (Git LFS) before the commits that name them.
exec {command} pre-push "$@"
"""


def set_hooks(git: Git) -> None:
    """The hook that sends large files before a push: git-lfs's own, or ours where that is missing."""
    directory = git.read("rev-parse", "--absolute-git-dir").decode().rstrip("\n")
    hooks = Path(directory) / "hooks"
    hooks.mkdir(exist_ok=True)
    if has_git_lfs(os.environ):
        # Ours point hooks at nothing and the person's own may point anywhere: neither counts here.
        done = subprocess.run(
            ["git", "-c", f"core.hooksPath={hooks}", "lfs", "update", "--force"],
            cwd=str(git.directory),
            env=git.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        if done.returncode == 0:
            return
    command = [sys.executable or "python3", "-I", "-S", str(HERE / "lfs.py")]
    hook = hooks / "pre-push"
    hook.write_text(HOOK.format(command=" ".join(shlex.quote(part) for part in command)))
    hook.chmod(0o755)

"""How much a commit is when it is checked out, found out before anything of it is written.

Called by ``clone.py``. A small pack can hold a huge tree: ten directories that each hold the same
ten directories are ten objects and ten thousand million files. So every tree is read once, however
often it occurs, and what is below it is added up, not walked.

Standard library only, Python 3.8 and newer: it runs in images that we did not build.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from notebooks_service.singleuser.clone_git import Failed, Git, diagnose, free_bytes
else:
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from clone_git import Failed, Git, diagnose, free_bytes

BLOCK = 4096
INDEX_BYTES = 120
"""What git's index holds of one file, about."""
DEEPEST = 2000
"""Directories in one another; no path that Linux can open has more (PATH_MAX is 4096)."""


class Tree(NamedTuple):
    """One tree object: the ids of its blobs (those of links and files) and of its trees."""

    blobs: list[bytes]
    trees: list[bytes]


class Sum(NamedTuple):
    """What is below a tree: files, directories, and bytes on disk in whole blocks."""

    files: int
    directories: int
    bytes: int


class Trees:
    """The trees of one commit, each once."""

    def __init__(self, root: bytes, trees: dict[bytes, Tree]) -> None:
        self._root = root
        self._trees = trees
        self._order = self._after_what_they_hold()

    @property
    def blobs(self) -> list[str]:
        """The id of every different blob."""
        found = {blob for tree in self._trees.values() for blob in tree.blobs}
        return sorted(blob.hex() for blob in found)

    def sum(self, sizes: dict[str, int] | None = None) -> Sum:
        """Everything below the root; without ``sizes`` (by blob) the files count one block each."""
        by_blob = {bytes.fromhex(oid): size for oid, size in (sizes or {}).items()}
        sums: dict[bytes, Sum] = {}
        for oid in self._order:
            tree = self._trees[oid]
            files, directories, size = len(tree.blobs), len(tree.trees), 0
            for blob in tree.blobs:
                size += -(-max(by_blob.get(blob, 1), 1) // BLOCK) * BLOCK
            for child in tree.trees:
                below = sums[child]
                files += below.files
                directories += below.directories
                size += below.bytes + BLOCK
            sums[oid] = Sum(files, directories, size)
        return sums[self._root]

    def _after_what_they_hold(self) -> list[bytes]:
        """All trees, each after those inside it. Raises ``Failed("unsafe_path")`` if too deep."""
        order: list[bytes] = []
        depth: dict[bytes, int] = {}
        waiting = [(self._root, False)]
        while waiting:
            oid, seen = waiting.pop()
            if oid in depth:
                continue
            if seen:
                depth[oid] = 1 + max((depth[child] for child in self._trees[oid].trees), default=0)
                order.append(oid)
            else:
                waiting.append((oid, True))
                waiting.extend((child, False) for child in self._trees[oid].trees)
        if depth[self._root] > DEEPEST:
            raise Failed("unsafe_path", f"{DEEPEST} directories in one another")
        return order


def read_trees(git: Git, commit: str, most_files: int) -> Trees:
    """Every tree of ``commit``. Raises ``Failed``: ``too_many_files``, or what git says."""
    root = git.read("rev-parse", "--verify", commit + "^{tree}").decode().strip()
    trees: dict[bytes, Tree] = {}
    waiting = [bytes.fromhex(root)]
    entries = 0
    process = subprocess.Popen(
        git.command("cat-file", "--batch"),
        cwd=str(git.directory),
        env=git.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        while waiting:
            oid = waiting.pop()
            if oid in trees:
                continue
            process.stdin.write(oid.hex().encode() + b"\n")
            process.stdin.flush()
            head = process.stdout.readline().split()
            if len(head) != 3 or head[1] != b"tree":
                words = process.stderr.read() if not head else b"fatal: a tree is missing"
                raise diagnose(words.decode("utf-8", "replace").splitlines(), git.directory)
            size = int(head[2])
            # An entry has at least 24 bytes: no tree that we would check out is larger than this.
            if size > 300 * (most_files + 1):
                raise too_many(most_files)
            trees[oid] = parse_tree(process.stdout.read(size))
            process.stdout.read(1)
            entries += len(trees[oid].blobs) + len(trees[oid].trees)
            if entries > most_files * 2:
                raise too_many(most_files)
            waiting.extend(trees[oid].trees)
    finally:
        process.kill()
        process.communicate()
    found = Trees(bytes.fromhex(root), trees)
    count = found.sum()
    if count.files + count.directories > most_files:
        raise too_many(most_files, count.files + count.directories)
    return found


def too_many(most: int, count: int | None = None) -> Failed:
    number = f"{count:,}" if count is not None and count < 10**15 else f"more than {most:,}"
    return Failed(
        "too_many_files",
        f"This commit has {number} files and directories; at most {most:,} are checked out here."
        " Nothing was changed.",
    )


def parse_tree(data: bytes) -> Tree:
    """A tree object's content. https://git-scm.com/book/en/v2/Git-Internals-Git-Objects"""
    blobs, trees = [], []
    at = 0
    while at < len(data):
        end = data.index(b"\0", at)
        mode = data[at : data.index(b" ", at)]
        oid = data[end + 1 : end + 21]
        if mode.lstrip(b"0") == b"40000":
            trees.append(oid)
        elif mode != b"160000":
            blobs.append(oid)
        at = end + 21
    return Tree(blobs, trees)


def blob_sizes(git: Git, blobs: list[str]) -> dict[str, int]:
    """The size of each of these blobs, by id. Raises ``Failed`` if one is not there."""
    asked = "".join(oid + "\n" for oid in blobs).encode()
    options = ["--batch-check=%(objectname) %(objectsize)", "--buffer"]
    sizes = {}
    for line in git.read("cat-file", *options, given=asked).decode().splitlines():
        oid, _, size = line.partition(" ")
        if not size.isdigit():
            raise Failed("git_failed", f"the object {oid} is missing.")
        sizes[oid] = int(size)
    return sizes


def check_room(directory: Path, need: int, margin: int, what: str) -> None:
    """Raises ``Failed("no_room")`` with one sentence if ``need`` bytes would not leave ``margin``."""
    free = free_bytes(directory)
    if need + margin > free:
        left = f", of which {human(margin)} have to stay free" if margin else ""
        raise Failed(
            "no_room",
            f"{what} {human(need)}, and there are {human(free)} free on this disk{left}."
            " Free some space, then try again; nothing was changed.",
        )


def check_inodes(directory: Path, count: int) -> None:
    """The same for files; file systems that do not count them say 0."""
    try:
        found = os.statvfs(str(directory))
    except OSError:
        return
    if found.f_files and found.f_favail < count:
        raise Failed(
            "no_room",
            f"This commit has {count:,} files and directories, and this disk has room for"
            f" {found.f_favail:,} more. Free some space, then try again; nothing was changed.",
        )


def human(size: int) -> str:
    """A size for people: ``1.5 GB``."""
    number = float(size)
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if number < 1000 or unit == "TB":
            return f"{number:.0f} {unit}" if unit == "bytes" else f"{number:.1f} {unit}"
        number /= 1000
    raise AssertionError("unreachable")

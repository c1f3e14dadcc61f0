"""Finds the pointers of large files (Git LFS) in a repository, and what a push of them lacks.

Used by the pre-receive hook, where there is nothing but the standard library, and by imports.
https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md#the-pointer
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import closing

MOST_BYTES = 1024
"""A pointer is shorter than this, by the specification."""
MOST_NEW = 20_000
"""Small new files that are looked into at a push; beyond that a push is not held up, as on GitLab."""
SECONDS = 20.0
MISSING = (
    'LFS objects are missing. Ensure LFS is properly set up or try a manual "git lfs push --all".'
)
_POINTER = re.compile(
    rb"version https://(?:git-lfs\.github\.com|hawser\.github\.com)/spec/v1\n"
    rb"(?:ext-\d-[^\n]+\n)*oid sha256:([0-9a-f]{64})\nsize (\d{1,18})\n?\Z"
)


def read_pointer(content: bytes) -> tuple[str, int] | None:
    """The oid and size that a file's content points at; None if it is an ordinary file."""
    found = _POINTER.match(content)
    return (found[1].decode(), int(found[2])) if found else None


def pointers(
    git: Sequence[str],
    commits: Sequence[str],
    *also: str,
    environment: Mapping[str, str] | None = None,
    most: int | None = None,
    seconds: float | None = None,
) -> dict[str, int] | None:
    """Sizes by oid of what is pointed at in ``commits`` and what ``also`` says to ``git rev-list``.

    None if there are more than ``most`` small files, if it takes longer than ``seconds``, or if git
    fails: then nothing is known.
    """
    listing = subprocess.Popen(
        [*git, "rev-list", "--objects", "--no-object-names",
         f"--filter=blob:limit={MOST_BYTES}", "--filter=object:type=blob",
         "--filter-provided-objects", "--stdin", *also,],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment,
    )  # fmt: skip
    assert listing.stdin is not None and listing.stdout is not None
    reading = subprocess.Popen(
        [*git, "cat-file", "--batch", "--buffer"],
        stdin=listing.stdout, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment,
    )  # fmt: skip
    assert reading.stdout is not None
    listing.stdout.close()
    found: dict[str, int] = {}
    watch = threading.Timer(seconds or 3600.0, listing.kill)
    watch.start()
    try:
        listing.stdin.write("".join(f"{one}\n" for one in commits).encode())
        listing.stdin.close()
        seen = 0
        while line := reading.stdout.readline():
            fields = line.split()
            if len(fields) != 3:
                continue
            content = reading.stdout.read(int(fields[2]) + 1)[:-1]
            pointer = read_pointer(content) if fields[1] == b"blob" else None
            if pointer is not None:
                found[pointer[0]] = pointer[1]
            seen += 1
            if most is not None and seen > most:
                return None
        if reading.wait() or listing.wait():
            return None
        return found
    except (BrokenPipeError, ValueError):
        return None
    finally:
        watch.cancel()
        for process in (listing, reading):
            process.kill()
            process.wait()


def push_refusal(updates: Sequence[tuple[str, str, str]]) -> str | None:
    """Why a push of these (old, new, ref) is refused because of large files; None if it is not.

    ``FORGE_LARGE_FILES`` is JSON: the forge's ``database``, the ids of ``project`` and ``user``.
    """
    told = os.environ.get("FORGE_LARGE_FILES")
    new = [after for _, after, _ in updates if after.strip("0")]
    if not told or not new:
        return None
    facts = json.loads(told)
    with closing(sqlite3.connect(f"file:{facts['database']}?mode=ro", uri=True)) as database:
        locked = database.execute(
            "SELECT lfs_locks.path, users.name FROM lfs_locks JOIN users ON users.id = user_id"
            " WHERE project_id = ? AND user_id IS NOT ?",
            (facts["project"], facts["user"]),
        ).fetchall()
        if locked and (why := _locked(dict(locked), new)):
            return why
        wanted = pointers(["git"], new, "--not", "--all", most=MOST_NEW, seconds=SECONDS)
        if not wanted:
            return None
        there = {
            row[0]
            for oid in wanted
            for row in database.execute(
                "SELECT oid FROM lfs_links WHERE project_id = ? AND oid = ?",
                (facts["project"], oid),
            )
        }
    return None if there >= wanted.keys() else MISSING


def _locked(locks: Mapping[str, str], pushed: Sequence[str]) -> str | None:
    """https://docs.gitlab.com/user/project/file_lock/"""
    done = subprocess.run(
        [
            "git",
            "log",
            "--format=",
            "--name-only",
            "--no-renames",
            "-m",
            "-z",
            "--stdin",
            "--not",
            "--all",
        ],
        input="".join(f"{one}\n" for one in pushed).encode(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    for path in done.stdout.decode("utf-8", "surrogateescape").split("\0"):
        if path in locks:
            return f"The path '{path}' is locked in Git LFS by {locks[path]}"
    return None

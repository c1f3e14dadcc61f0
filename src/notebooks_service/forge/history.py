"""Reads a repository's history: lists of commits, single commits, statistics, diffs.

Lists are read page by page with ``--skip`` and ``--max-count``, so that 100,000 commits cost what one
page costs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from notebooks_service.forge import ci_git
from notebooks_service.forge.ci_git import CommitFacts
from notebooks_service.forge.git_process import GitFailed, git

EMPTY_TREE = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
"""git's id of the tree without entries, which every repository knows."""

MOST_FILE_DIFF = 200_000
_DATE = re.compile(r"[0-9TZ :+.\-]{4,40}\Z")


@dataclass(frozen=True)
class Filter:
    """What ``log`` shows of what can be reached. Times are ISO 8601; ``path`` is exact, no pattern."""

    path: str = ""
    since: str = ""
    until: str = ""
    author: str = ""
    message: str = ""
    first_parent: bool = False
    everything: bool = False

    @property
    def valid(self) -> bool:
        return all(not date or _DATE.match(date) for date in (self.since, self.until))


def log(
    repository: Path,
    revisions: Sequence[str],
    *,
    skip: int = 0,
    count: int = 20,
    wanted: Filter | None = None,
    topological: bool = False,
) -> list[CommitFacts]:
    """Commits that can be reached from ``revisions`` (full shas, ``^sha`` leaves out), newest first."""
    wanted = wanted or Filter()
    if {".", ".."} & set(wanted.path.split("/")):
        return []
    flags = [f"--skip={skip}", f"--max-count={count}", "-z", "--encoding=UTF-8"]
    flags += ["--no-show-signature", f"--format={ci_git.FORMAT}"]
    if wanted.since:
        flags.append(f"--since={wanted.since}")
    if wanted.until:
        flags.append(f"--until={wanted.until}")
    if wanted.author:
        flags += [f"--author={wanted.author}", "--fixed-strings", "--regexp-ignore-case"]
    if wanted.message:
        flags += [f"--grep={wanted.message}", "--fixed-strings", "--regexp-ignore-case"]
    if wanted.first_parent:
        flags.append("--first-parent")
    if topological:
        flags.append("--topo-order")
    names = ["--branches", "--tags"] if wanted.everything else []
    paths = [wanted.path] if wanted.path else []
    out = git(repository, "log", *flags, *names, "--end-of-options", *revisions, "--", *paths)
    return _parsed(out)


def _parsed(out: bytes) -> list[CommitFacts]:
    return [
        replace(one, authored_at=_moment(one.authored_at), committed_at=_moment(one.committed_at))
        for one in ci_git.parsed(out)
    ]


def _moment(text: str) -> str:
    """git's ``2024-01-02T03:04:05+01:00`` with GitLab's milliseconds."""
    return f"{text[:19]}.000{text[19:]}" if len(text) > 19 else text


def commits(repository: Path, shas: Sequence[str]) -> dict[str, CommitFacts]:
    """These commits (full shas that exist), in one call of git."""
    wanted = sorted(set(shas))
    if not wanted:
        return {}
    flags = ("--no-walk", "--ignore-missing", "--stdin", "-z", "--encoding=UTF-8")
    out = git(
        repository,
        "log",
        *flags,
        f"--format={ci_git.FORMAT}",
        stdin="".join(f"{sha}\n" for sha in wanted).encode(),
    )
    return {one.sha: one for one in _parsed(out)}


def commit(repository: Path, sha: str) -> CommitFacts | None:
    return commits(repository, [sha]).get(sha)


def count(repository: Path, sha: str) -> int:
    """How many commits can be reached from ``sha``."""
    return int(git(repository, "rev-list", "--count", "--end-of-options", sha))


@dataclass(frozen=True)
class Stats:
    additions: int
    deletions: int

    @property
    def body(self) -> dict[str, int]:
        return {
            "additions": self.additions,
            "deletions": self.deletions,
            "total": self.additions + self.deletions,
        }


def stats(repository: Path, facts: CommitFacts) -> Stats:
    """Lines added and removed against the first parent; binary files count nothing."""
    base = facts.parents[0] if facts.parents else EMPTY_TREE
    out = git(repository, "diff-tree", "-r", "--numstat", "-z", base, facts.sha, "--")
    added = removed = 0
    for record in out.split(b"\0"):
        parts = record.split(b"\t")
        if len(parts) >= 2 and parts[0].isdigit() and parts[1].isdigit():
            added += int(parts[0])
            removed += int(parts[1])
    return Stats(added, removed)


@dataclass(frozen=True)
class FileDiff:
    """What changed in one file. ``text`` is the unified diff without its header."""

    status: str
    old_path: str
    new_path: str
    old_mode: str
    new_mode: str
    text: str = ""
    too_large: bool = False

    @property
    def body(self) -> dict[str, object]:
        """https://docs.gitlab.com/api/commits/#retrieve-the-diff-of-a-commit"""
        return {
            "diff": self.text,
            "collapsed": False,
            "too_large": self.too_large,
            "new_path": self.new_path,
            "old_path": self.old_path,
            "a_mode": self.old_mode,
            "b_mode": self.new_mode,
            "new_file": self.status == "A",
            "renamed_file": self.status == "R",
            "deleted_file": self.status == "D",
            "generated_file": False,
        }

    @property
    def unified(self) -> dict[str, object]:
        """The same, its text with the two lines that name the files (``unidiff``)."""
        old = "/dev/null" if self.status == "A" else f"a/{self.old_path}"
        new = "/dev/null" if self.status == "D" else f"b/{self.new_path}"
        named = f"--- {old}\n+++ {new}\n{self.text}" if self.text else ""
        return {**self.body, "diff": named}


def changed_files(repository: Path, base: str, head: str) -> list[FileDiff]:
    """The files that differ between two trees or commits, renames found, without their texts."""
    out = git(repository, "diff-tree", "-r", "-z", "-M", "--raw", base, head, "--")
    parts = out.split(b"\0")
    found = []
    index = 0
    while index + 1 < len(parts):
        old_mode, new_mode, _, _, status = parts[index].decode().lstrip(":").split(" ")
        old = parts[index + 1].decode("utf-8", "replace")
        renamed = status[0] in "RC"
        new = parts[index + 2].decode("utf-8", "replace") if renamed else old
        index += 3 if renamed else 2
        found.append(FileDiff(status[0], old, new, old_mode, new_mode))
    return found


def diff(
    repository: Path, base: str, head: str, *, skip: int = 0, count: int = 20
) -> tuple[list[FileDiff], int]:
    """One page of the files that differ, with their texts, and how many there are."""
    files = changed_files(repository, base, head)
    shown = []
    for file in files[skip : skip + count]:
        shown.append(_with_text(repository, base, head, file))
    return shown, len(files)


def _with_text(repository: Path, base: str, head: str, file: FileDiff) -> FileDiff:
    try:
        out = git(
            repository,
            "diff-tree",
            "-p",
            "-M",
            "--no-ext-diff",
            "--no-textconv",
            base,
            head,
            "--",
            *{file.old_path, file.new_path},
        )
    except GitFailed:
        return file
    text = out.decode("utf-8", "replace")
    start = text.find("\n@@ ")
    body = text[start + 1 :] if start >= 0 else ""
    large = len(body) > MOST_FILE_DIFF
    return FileDiff(
        file.status,
        file.old_path,
        file.new_path,
        file.old_mode,
        file.new_mode,
        "" if large else body,
        large,
    )


def merge_base(repository: Path, shas: Sequence[str]) -> str | None:
    """The best common ancestor of these commits; None if they have none."""
    out = git(repository, "merge-base", "--octopus", "--end-of-options", *shas, accept=(0, 1))
    return out.decode().split("\n")[0].strip() or None


def last_commit_of(repository: Path, commit_sha: str, path: str) -> str | None:
    """The newest commit up to ``commit_sha`` that changed ``path``."""
    found = log(repository, [commit_sha], count=1, wanted=Filter(path=path))
    return found[0].sha if found else None


def merged_into(repository: Path, target: str) -> set[str]:
    """Names of the branches whose tip is part of ``target``."""
    out = git(
        repository, "for-each-ref", f"--merged={target}", "--format=%(refname)", "refs/heads/"
    )
    lines = out.decode("utf-8", "replace").splitlines()
    return {line.removeprefix("refs/heads/") for line in lines}

"""What continuous integration asks of a repository: commits, the configuration, changed paths."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from notebooks_service.domain import is_commit_sha
from notebooks_service.forge import repositories
from notebooks_service.forge.config import ForgeConfig
from notebooks_service.forge.git_process import GitFailed, git, git_beginning

NO_SHA = "0" * 40
CONFIG_FILE = ".gitlab-ci.yml"
PATHS_LIMIT = 16 * 1024 * 1024
"""Bytes of all paths together that rules are compared with."""
FORMAT = "%H%x00%P%x00%an%x00%ae%x00%aI%x00%cn%x00%ce%x00%cI%x00%B"
_FIELDS = 9


@dataclass(frozen=True)
class CommitFacts:
    """One commit as git tells it; times in ISO 8601."""

    sha: str
    parents: tuple[str, ...]
    author_name: str
    author_email: str
    authored_at: str
    committer_name: str
    committer_email: str
    committed_at: str
    message: str

    @property
    def title(self) -> str:
        return self.message.split("\n", 1)[0][:255]

    @property
    def description(self) -> str:
        return self.message.partition("\n")[2].lstrip("\n")

    def body(self, project_url: str) -> dict[str, Any]:
        """GitLab's entity of a commit: https://docs.gitlab.com/api/commits/"""
        return {
            "id": self.sha,
            "short_id": self.sha[:8],
            "created_at": self.committed_at,
            "parent_ids": list(self.parents),
            "title": self.title,
            "message": self.message,
            "author_name": self.author_name,
            "author_email": self.author_email,
            "authored_date": self.authored_at,
            "committer_name": self.committer_name,
            "committer_email": self.committer_email,
            "committed_date": self.committed_at,
            "trailers": {},
            "extended_trailers": {},
            "web_url": f"{project_url}/-/commit/{self.sha}",
        }


def parsed(out: bytes) -> list[CommitFacts]:
    """What ``git log -z --format=FORMAT`` prints."""
    # A message may hold any byte but NUL, so records are told apart by their number of fields.
    fields = out.decode("utf-8", "replace").split("\0")
    found = []
    for start in range(0, len(fields) - _FIELDS + 1, _FIELDS):
        sha, parents, name, email, at, by, by_email, by_at, text = fields[start : start + _FIELDS]
        message = text.rstrip("\n") + "\n"
        found.append(
            CommitFacts(sha, tuple(parents.split()), name, email, at, by, by_email, by_at, message)
        )
    return found


def commits(config: ForgeConfig, project_id: int, shas: Iterable[str]) -> dict[str, CommitFacts]:
    """The commits that exist among ``shas``, in one call of git."""
    wanted = sorted({sha for sha in shas if is_commit_sha(sha)})
    if not wanted:
        return {}
    try:
        out = git(
            config.repository(project_id),
            "log",
            "--no-walk",
            "--ignore-missing",
            "--stdin",
            "--encoding=UTF-8",
            "-z",
            f"--format={FORMAT}",
            stdin="".join(f"{sha}\n" for sha in wanted).encode(),
        )
    except GitFailed:
        return {}
    return {one.sha: one for one in parsed(out)}


def file_at(config: ForgeConfig, project_id: int, sha: str, path: str, limit: int) -> bytes | None:
    """The content of a regular file of a commit, or ``limit`` + 1 blanks if it is longer; None if none."""
    repository = config.repository(project_id)
    entry = repositories.entry(repository, sha, path)
    if entry is None or not entry.mode.startswith("100"):
        return None
    if entry.size is None or entry.size > limit:
        return b" " * (limit + 1)
    return repositories.blob(repository, entry.sha)


def paths_at(config: ForgeConfig, project_id: int, sha: str) -> list[str] | None:
    """Every path of a commit's tree; None if they are too many to look at."""
    out = git_beginning(
        config.repository(project_id),
        "ls-tree", "-r", "--name-only", "-z", sha,
        limit=PATHS_LIMIT,
    )  # fmt: skip
    if out is None:
        return None
    return [path.decode("utf-8", "replace") for path in out.split(b"\0") if path]


def changed_paths(
    config: ForgeConfig, project_id: int, before: str, after: str
) -> frozenset[str] | None:
    """Paths that differ between two commits, old and new names.

    None if ``before`` is not there, and if they are too many to look at.
    """
    if before == NO_SHA or not is_commit_sha(before):
        return None
    try:
        # git keeps all differences in memory before it prints the first.
        if any(paths_at(config, project_id, sha) is None for sha in (before, after)):
            return None
        out = git_beginning(
            config.repository(project_id),
            "diff-tree", "-r", "-z", "--name-only", "--no-renames", before, after, "--",
            limit=PATHS_LIMIT,
        )  # fmt: skip
    except GitFailed:
        return None
    if out is None:
        return None
    return frozenset(path.decode("utf-8", "replace") for path in out.split(b"\0") if path)

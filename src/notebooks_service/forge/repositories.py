"""Reads a project's bare repository: refs, objects, trees, blobs. No HTTP, no database.

Names of refs from outside are resolved here, once, to full shas: a branch, a tag, a full ref or a
(short) sha, never git's revision language.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from notebooks_service.domain import is_commit_sha
from notebooks_service.forge.git_process import (
    GitFailed,
    git,
    git_environment,
    git_executable,
)

_SHORT_SHA = re.compile(r"[0-9a-f]{4,39}\Z")
_BAD_REF = re.compile(
    r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|\A-|\A/|/\Z|\.\Z|\.lock(/|\Z)|(\A|/)\."
)

CHUNK = 1 << 16

Kind = Literal["commit", "tree", "blob", "tag"]


def is_ref_name(name: str) -> bool:
    """Whether this can be the short name of a branch or tag. https://git-scm.com/docs/git-check-ref-format"""
    return bool(name) and name != "@" and len(name) < 250 and not _BAD_REF.search(name)


def object_kind(repository: Path, sha: str) -> Kind | None:
    """What the object with this full id is; None if there is none."""
    answer = git(repository, "cat-file", "--batch-check=%(objecttype)", stdin=f"{sha}\n".encode())
    kind = answer.decode().strip()
    return kind if kind in ("commit", "tree", "blob", "tag") else None  # type: ignore[return-value]


def resolve(repository: Path, ref: str) -> str | None:
    """The full sha of the commit that ``ref`` names; None if it names none.

    As on GitLab, 40 digits are the commit with that id, even if a branch has that name; otherwise
    branches go before tags and tags before short shas.
    """
    if is_commit_sha(ref) and object_kind(repository, ref) == "commit":
        return ref
    if ref == "HEAD":
        return _commit_of(repository, "HEAD")
    if not is_ref_name(ref):
        return None
    candidates = [f"refs/heads/{ref}", f"refs/tags/{ref}"]
    if ref.startswith(("refs/heads/", "refs/tags/")):
        candidates.insert(0, ref)
    if ref.startswith(("heads/", "tags/")):
        candidates.append(f"refs/{ref}")
    for name in candidates:
        found = _commit_of(repository, name)
        if found:
            return found
    if _SHORT_SHA.match(ref):
        return _commit_of(repository, ref)
    return None


def _commit_of(repository: Path, name: str) -> str | None:
    try:
        out = git(
            repository, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}"
        )
    except GitFailed:
        return None
    sha = out.decode().strip()
    return sha if is_commit_sha(sha) else None


@dataclass(frozen=True)
class RefRow:
    """A branch or tag. ``commit`` is the commit that it leads to, ``target`` what it points at itself
    (a tag object's id for an annotated tag, which also has ``message``)."""

    name: str
    target: str
    commit: str
    message: str | None = None


def refs(repository: Path, kind: Literal["heads", "tags"], order: str = "refname") -> list[RefRow]:
    """All branches or tags. ``order`` is a sort key of ``git for-each-ref``."""
    fields = ("refname", "objectname", "objecttype", "*objectname", "contents")
    out = git(
        repository,
        "for-each-ref",
        f"--sort={order}",
        "--format=" + "%00".join(f"%({field})" for field in fields) + "%00%00",
        f"refs/{kind}/",
    )
    rows = []
    for record in out.decode("utf-8", "replace").split("\0\0\n"):
        parts = record.split("\0")
        if len(parts) != len(fields):
            continue
        name, target, kind_of, peeled, message = parts
        commit = peeled if kind_of == "tag" else target
        text = message.rstrip("\n") if kind_of == "tag" else None
        rows.append(RefRow(name.split("/", 2)[2], target, commit, text))
    return rows


def branch_names(repository: Path) -> list[str]:
    return [row.name for row in refs(repository, "heads")]


def one_ref(repository: Path, kind: Literal["heads", "tags"], name: str) -> RefRow | None:
    """The branch or tag of exactly this name."""
    if not is_ref_name(name):
        return None
    out = git(
        repository,
        "for-each-ref",
        "--format=%(objectname)%00%(objecttype)%00%(*objectname)%00%(contents)",
        "--count=1",
        f"refs/{kind}/{name}",
    )
    # for-each-ref also matches a directory of that name: ask for the ref itself.
    sha = _exact_ref(repository, f"refs/{kind}/{name}")
    if sha is None or not out:
        return None
    target, kind_of, peeled, message = out.decode("utf-8", "replace").split("\0", 3)
    if kind_of == "tag":
        return RefRow(name, target, peeled, message.rstrip("\n"))
    return RefRow(name, target, target)


def _exact_ref(repository: Path, full_name: str) -> str | None:
    out = git(repository, "show-ref", "--verify", "--hash", "--", full_name, accept=(0, 1, 128))
    return out.decode().strip() or None


def set_head(repository: Path, branch: str) -> None:
    """Make ``branch`` the one that a clone checks out."""
    git(repository, "symbolic-ref", "HEAD", f"refs/heads/{branch}")


def is_empty(repository: Path) -> bool:
    """Whether there is no branch yet. https://docs.gitlab.com/api/projects/ (``empty_repo``)"""
    # Asked for every project of a list, so without a process.
    if any(path.is_file() for path in (repository / "refs" / "heads").rglob("*")):
        return False
    try:
        return b" refs/heads/" not in (repository / "packed-refs").read_bytes()
    except FileNotFoundError:
        return True


@dataclass(frozen=True)
class TreeEntry:
    """One entry of a directory; ``path`` is the full path in the repository."""

    mode: str
    kind: str
    sha: str
    path: str
    size: int | None = None


def tree(
    repository: Path, commit: str, path: str = "", *, recursive: bool = False
) -> Iterator[TreeEntry]:
    """The entries of the directory ``path`` at ``commit``. Nothing if there is no such directory."""
    path = path.strip("/")
    sha = entry_sha(repository, commit, path) if path else f"{commit}^{{tree}}"
    if sha is None:
        return
    flags = ("-r", "-t") if recursive else ()
    try:
        out = git(repository, "ls-tree", "-z", *flags, "--end-of-options", sha)
    except GitFailed:
        return
    prefix = f"{path}/" if path else ""
    for record in out.split(b"\0"):
        if not record:
            continue
        head, _, name = record.partition(b"\t")
        mode, kind, entry = head.decode().split(" ")
        yield TreeEntry(mode, kind, entry, prefix + name.decode("utf-8", "surrogateescape"))


def entry(repository: Path, commit: str, path: str) -> TreeEntry | None:
    """What lies at ``path`` at ``commit``; None if nothing does."""
    if "\0" in path or "\n" in path or {"", ".", ".."} & set(path.split("/")):
        return None
    asked = f"{commit}:{path}\n".encode("utf-8", "surrogateescape")
    answer = git(repository, "cat-file", "--batch-check", stdin=asked).decode("utf-8", "replace")
    parts = answer.split()
    if len(parts) != 3 or parts[1] not in ("blob", "tree"):
        return None
    listed = git(repository, "ls-tree", "-z", "--full-tree", "--end-of-options", commit, path)
    mode = listed.split(b" ", 1)[0].decode() or "040000"
    return TreeEntry(mode, parts[1], parts[0], path, int(parts[2]))


def entry_sha(repository: Path, commit: str, path: str) -> str | None:
    """The id of the directory or file at ``path``."""
    found = entry(repository, commit, path)
    return found.sha if found else None


def blob(repository: Path, sha: str) -> bytes:
    """The content of a file."""
    return git(repository, "cat-file", "blob", sha)


def blob_size(repository: Path, sha: str) -> int | None:
    """Bytes of the file with this id; None if there is none."""
    asked = f"{sha}\n".encode()
    answer = git(repository, "cat-file", "--batch-check=%(objecttype) %(objectsize)", stdin=asked)
    kind, _, size = answer.decode().strip().partition(" ")
    return int(size) if kind == "blob" else None


def blob_chunks(repository: Path, sha: str) -> Iterator[bytes]:
    """The content of a file, in pieces: it may be larger than memory."""
    command = [git_executable(), f"--git-dir={repository}", "cat-file", "blob", sha]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=git_environment(),
    ) as process:
        assert process.stdout is not None
        try:
            while chunk := process.stdout.read(CHUNK):
                yield chunk
        finally:
            process.kill()


def blob_sha256(repository: Path, sha: str) -> str:
    """SHA-256 of a file's content, as GitLab tells it."""
    digest = hashlib.sha256()
    for chunk in blob_chunks(repository, sha):
        digest.update(chunk)
    return digest.hexdigest()


def is_ancestor(repository: Path, old: str, new: str) -> bool:
    """Whether ``new`` has everything that ``old`` has."""
    try:
        git(repository, "merge-base", "--is-ancestor", old, new)
    except GitFailed as error:
        if error.returncode == 1:
            return False
        raise
    return True


def refs_containing(repository: Path, commit: str, kinds: Sequence[str]) -> list[tuple[str, str]]:
    """``(heads|tags, name)`` of every branch and tag from which ``commit`` can be reached."""
    out = git(
        repository,
        "for-each-ref",
        f"--contains={commit}",
        "--format=%(refname)",
        *(f"refs/{kind}/" for kind in kinds),
    )
    found = []
    for line in out.decode("utf-8", "replace").splitlines():
        _, kind, name = line.split("/", 2)
        found.append((kind, name))
    return found

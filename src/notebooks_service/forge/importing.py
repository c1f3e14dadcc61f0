"""Takes the branches and tags of an existing repository into a bare one of ours, again and again.

The source is only read, by ``git upload-pack``: no hook runs, and nothing in the source's
configuration is a command for us. Called by ``administration.import_repository``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from notebooks_service.errors import Conflict, InvalidRequest, NotFound
from notebooks_service.forge.git_process import GitFailed, git
from notebooks_service.forge.repositories import is_ancestor

FETCH_TIMEOUT = 3600.0
IMPORTED = "refs/imported/"
ZERO = "0" * 40


@dataclass(frozen=True)
class Source:
    """Where to fetch from. ``head`` is the branch that its HEAD names, None if it is detached."""

    location: str
    name: str
    head: str | None


@dataclass(frozen=True)
class RefChanges:
    """What an import did to branches and tags, by short name."""

    created: tuple[str, ...] = ()
    updated: tuple[str, ...] = ()
    forced: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()


@contextmanager
def _any_owner() -> Iterator[Mapping[str, str]]:
    """An environment in which git reads repositories of other users of this machine.

    git asks who owns a repository because its configuration may name commands; of those, upload-pack
    obeys none that come from the repository.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".gitconfig") as config:
        config.write("[safe]\n\tdirectory = *\n")
        config.flush()
        yield {"GIT_CONFIG_GLOBAL": config.name}


def find_source(source: Path | str) -> Source:
    """What to fetch from: a local repository (bare, worktree, or a directory in one), or an http(s)
    address. Raises ``NotFound`` or ``InvalidRequest`` with a sentence."""
    text = str(source)
    if "://" in text:
        return _remote_source(text)
    return _local_source(Path(text).expanduser())


def _remote_source(address: str) -> Source:
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidRequest(
            f"{parts.scheme}:// is no source; give a directory or an http(s) address."
        )
    if "@" in parts.netloc:
        raise InvalidRequest(
            "Leave user and password out of the address: clone it yourself first, then import the directory."
        )
    try:
        listed = git(
            None,
            *_ONLY_HTTP,
            "ls-remote",
            "--symref",
            "--end-of-options",
            address,
            "HEAD",
            timeout=120,
        ).decode("utf-8", "replace")
    except GitFailed as error:
        raise NotFound(f"{address} cannot be read: {error.message}.") from None
    head = None
    for line in listed.splitlines():
        if line.startswith("ref: refs/heads/"):
            head = line.removeprefix("ref: refs/heads/").split("\t")[0]
    return Source(address, parts.path.rstrip("/").rsplit("/", 1)[-1].removesuffix(".git"), head)


_ONLY_HTTP = (
    "-c",
    "protocol.allow=never",
    "-c",
    "protocol.http.allow=always",
    "-c",
    "protocol.https.allow=always",
    "-c",
    "credential.helper=",
)


def _local_source(path: Path) -> Source:
    if not path.is_dir():
        raise NotFound(f"{path} is no directory.")
    path = path.resolve()
    with _any_owner() as environment:
        try:
            common, shallow, bare = (
                git(
                    None,
                    "-C",
                    str(path),
                    "rev-parse",
                    "--path-format=absolute",
                    "--git-common-dir",
                    "--is-shallow-repository",
                    "--is-bare-repository",
                    environment=environment,
                )
                .decode("utf-8", "surrogateescape")
                .splitlines()
            )
        except GitFailed:
            raise NotFound(
                f"{path} is no git repository, nor does it lie in one. `git init` and a commit make it one."
            ) from None
        if shallow == "true":
            raise InvalidRequest(
                f"{path} is a shallow clone: its history is cut off. "
                "Run `git fetch --unshallow` there, then import it again."
            )
        head = (
            git(
                None,
                "-C",
                str(path),
                "symbolic-ref",
                "--quiet",
                "HEAD",
                environment=environment,
                accept=(0, 1),
            )
            .decode("utf-8", "surrogateescape")
            .strip()
        )
        if bare == "true":
            top = Path(common)
        else:
            top = Path(
                git(None, "-C", str(path), "rev-parse", "--show-toplevel", environment=environment)
                .decode("utf-8", "surrogateescape")
                .rstrip("\n")
            )
    name = top.name.removesuffix(".git") or top.parent.name
    return Source(common, name, head.removeprefix("refs/heads/") or None)


def fetch(repository: Path, source: Source) -> RefChanges:
    """Bring the source's branches and tags into ``repository``; what it had is never lost.

    A branch goes forward. If the source rewrote it and nobody pushed to it here since the last
    import, it follows, forced; if somebody did, ours is kept. Nothing is deleted.
    """
    before = _refs(repository, IMPORTED)
    remote = "://" in source.location
    with _any_owner() as environment:
        try:
            git(
                repository,
                *(_ONLY_HTTP if remote else ("-c", "protocol.file.allow=always")),
                "-c",
                "fetch.fsckObjects=false",
                "fetch",
                "--quiet",
                "--no-auto-gc",
                "--no-write-fetch-head",
                "--no-recurse-submodules",
                "--no-tags",
                "--prune",
                "--force",
                "--end-of-options",
                source.location,
                f"+refs/heads/*:{IMPORTED}heads/*",
                f"+refs/tags/*:{IMPORTED}tags/*",
                environment=environment,
                timeout=FETCH_TIMEOUT,
            )
        except GitFailed as error:
            raise InvalidRequest(
                f"{source.location} cannot be read: {error.message}. Nothing was imported."
            ) from None
    theirs = _refs(repository, IMPORTED)
    ours = {**_refs(repository, "refs/heads/"), **_refs(repository, "refs/tags/")}
    commands: list[str] = []
    done: dict[str, list[str]] = {"created": [], "updated": [], "forced": [], "kept": []}
    for imported, new in theirs.items():
        name = "refs/" + imported.removeprefix(IMPORTED)
        short = name.split("/", 2)[2]
        old = ours.get(name)
        if old == new:
            continue
        if old is None:
            if before.get(imported) == new:
                continue  # It was imported before and deleted here since: it stays deleted.
            done["created"].append(short)
        elif name.startswith("refs/heads/") and is_ancestor(repository, old, new):
            done["updated"].append(short)
        elif old == before.get(imported):
            done["forced"].append(short)
        else:
            if before.get(imported) != new:
                done["kept"].append(short)
            continue
        commands.append(f"update {name}\0{new}\0{old or ZERO}\0")
    if commands:
        try:
            git(
                repository,
                "update-ref",
                "--stdin",
                "-z",
                stdin="".join(commands).encode("utf-8", "surrogateescape"),
            )
        except GitFailed as error:
            # Somebody pushed just now, or a branch `a` here and `a/b` there exclude each other.
            raise Conflict(
                f"The branches of {source.location} cannot be brought in: {error.message}. "
                "Nothing of the project was changed; if somebody pushed just now, import again."
            ) from None
        git(repository, "commit-graph", "write", "--reachable", "--no-progress", timeout=600)
    return RefChanges(**{kind: tuple(names) for kind, names in done.items()})


def _refs(repository: Path, prefix: str) -> dict[str, str]:
    listed = git(repository, "for-each-ref", "--format=%(objectname) %(refname)", prefix)
    lines = listed.decode("utf-8", "surrogateescape").splitlines()
    return {name: sha for sha, name in (line.split(" ", 1) for line in lines)}


def choose_default(branches: Sequence[str], head: str | None) -> str:
    """The default branch of a new project: the source's own, else ``main``, ``master``, the first."""
    for name in (head, "main", "master"):
        if name is not None and name in branches:
            return name
    return branches[0] if branches else head or "main"

"""Brings the large files (Git LFS) of an imported repository in; called by ``administration``.

Of a local source they lie in its git directory, where git-lfs keeps those that were fetched or made
there; of one at an address its server is asked (``lfs_remote``).
"""

from __future__ import annotations

import contextlib
import logging
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx

from notebooks_service.forge import lfs
from notebooks_service.forge.database import Database
from notebooks_service.forge.git_process import git_environment, git_executable
from notebooks_service.forge.hooks.large_files import pointers
from notebooks_service.forge.lfs_remote import NotHad, Place, RemoteObjects
from notebooks_service.forge.lfs_store import PIECE, LfsStore, Receiver, WrongContent

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LargeFiles:
    """How many objects an import brought in, and the oids of those that the source lacks."""

    brought: int = 0
    missing: tuple[str, ...] = ()


def bring(
    database: Database,
    store: LfsStore,
    project_id: int,
    repository: Path,
    source: str,
    transport: httpx.BaseTransport | None = None,
) -> LargeFiles:
    """Take in what ``repository`` points at and the project does not have yet.

    ``source`` is the git directory that was imported, or an address. ``transport`` is for tests.
    """
    wanted = _wanted(repository)
    with database.read() as session:
        known = lfs.known_objects(session, project_id, wanted)
    lacking = {oid: size for oid, size in wanted.items() if oid not in known}
    if not lacking:
        return LargeFiles()
    brought = 0
    missing = []
    with contextlib.ExitStack() as opened:
        if "://" in source:
            remote = RemoteObjects(source, transport)
            opened.callback(remote.close)
            places = remote.places(lacking)
            stream = partial(_from_address, remote, places)
        else:
            stream = partial(_from_directory, Path(source) / "lfs" / "objects")
        for oid, size in lacking.items():
            lfs.touch(database, oid)
            if _take(store, oid, size, stream(oid)):
                lfs.link(database, project_id, oid, size)
                brought += 1
            else:
                missing.append(oid)
    return LargeFiles(brought, tuple(missing))


def _from_directory(objects: Path, oid: str) -> Iterator[bytes]:
    file = objects / oid[:2] / oid[2:4] / oid
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise NotHad("no file")
        with file.open("rb") as stream:
            while piece := stream.read(PIECE):
                yield piece
    except OSError as error:
        raise NotHad(str(error.strerror)) from None


def _from_address(remote: RemoteObjects, places: Mapping[str, Place], oid: str) -> Iterator[bytes]:
    if oid not in places:
        raise NotHad("the server does not have it")
    yield from remote.read(places[oid])


def _wanted(repository: Path) -> Mapping[str, int]:
    git = [git_executable(), f"--git-dir={repository}"]
    return pointers(git, [], "--branches", "--tags", environment=git_environment()) or {}


def _take(store: LfsStore, oid: str, size: int, pieces: Iterator[bytes]) -> bool:
    """Whether ``pieces`` are the object; it is in the store then."""
    receiver = Receiver(store, oid, size)
    try:
        for piece in pieces:
            receiver.write(piece)
        receiver.finish()
    except (WrongContent, NotHad) as error:
        log.warning("the large file %s was not brought: %s", oid[:12], error)
        return False
    finally:
        receiver.give_up()
    return True
